"""minisend queue: the queue as a table or as JSON lines.

Never changes anything, and holds one message at a time: rows are written while files are read.  So the columns have fixed widths; on a terminal they share its width and what is longer is cut, elsewhere nothing is.

JSON has the keys of ``postqueue -j`` (queue_name, queue_id, arrival_time, message_size, sender, recipients with address
and delay_reason) and these:

    state                         "new" | "deferred" | "hold" | "failed"
    attempts                      made so far, since it was last requeued
    next_attempt                  seconds since the epoch, null when none is planned
    error                         only where the file cannot be read: why
    recipients[].action           RFC 3464 Action of the last attempt, "" before the first
    recipients[].status           enhanced status code, "" before the first attempt
    recipients[].remote_mta       the server asked or tried, "" when it was none
    recipients[].diagnostic       as in RFC 3464, "" when no server said anything
    history                       only of messages named by their ids: every outcome of every attempt

Source: Postfix postqueue(1), "JSON OBJECT FORMAT"; RFC 3464 section 2.3.
"""

import json
import posix
import shutil
import time
from collections.abc import Iterable, Iterator
from typing import Any

from minisend.admin.filters import Filter
from minisend.admin.listing import Listed, Reasons, clock, messages, named, open_queue
from minisend.admin.terminal import (
    BOLD,
    CYAN,
    DIM,
    RED,
    YELLOW,
    Batch,
    Paint,
    cut,
    padded,
    printable,
)
from minisend.config.sections import Config
from minisend.envelope import Outcome
from minisend.errors import UsageError
from minisend.spool.place import is_own
from minisend.spool.store import Queue

COLOURS = {"new": CYAN, "deferred": YELLOW, "hold": BOLD, "failed": RED}
# Of the columns that are always there: id, state, size, next attempt, and a space behind each.
_FIXED = 17 + 9 + 6 + 13
_NARROWEST = 60


def show_queue(config: Config, chosen: Filter, ids: tuple[str, ...], *, as_json: bool) -> int:
    """Write the messages of these ids, or without any those that were chosen, to standard output.

    Raises UsageError for an id that is not there, after the others; SpoolError, SystemFault, BrokenPipeError.
    """
    table = _Table(posix.isatty(1), shutil.get_terminal_size().columns)
    now = time.time()
    missing = []
    with Batch(1) as out:
        for queue_id, listed in _waiting(config, chosen, ids):
            if listed is None:
                missing.append(queue_id)
            elif as_json:
                told = as_object(listed)
                if ids:
                    told["history"] = outcomes(listed)
                out.add(json.dumps(told) + "\n")
            else:
                out.add(table.row(listed, now))
        if not as_json and not (ids and missing and not table.count):
            out.add(table.summary(any_chosen=chosen.given))
    if missing:
        raise not_there(missing)
    return 0


def _waiting(
    config: Config, chosen: Filter, ids: tuple[str, ...]
) -> Iterator[tuple[str, Listed | None]]:
    """Id and message; None where there is none.  Of a queue that is another account's: the caller's own messages."""
    if config.submission.socket and not is_own(config.spool.path):
        from minisend.admin.served import chosen as own

        yield from own(config.submission.socket, chosen, ids)
        return
    queue = open_queue(config.spool.path)
    if queue is None:
        yield from ((queue_id, None) for queue_id in ids)
        return
    with queue:
        yield from _chosen(queue, chosen, ids, Reasons(lambda: config))


def _chosen(
    queue: Queue, chosen: Filter, ids: tuple[str, ...], reasons: Reasons
) -> Iterator[tuple[str, Listed | None]]:
    if ids:
        yield from named(queue, ids, reasons)
        return
    for listed in messages(queue, chosen.states, reasons):
        if chosen.takes(listed):
            yield listed.place.queue_id, listed


def not_there(ids: Iterable[str]) -> UsageError:
    """What is said of ids that name no message."""
    return UsageError(f"{', '.join(map(printable, ids))}: not in the queue (see minisend queue)")


def as_object(listed: Listed) -> dict[str, Any]:
    """One message as the JSON object described above."""
    next_attempt = listed.next_attempt
    told: dict[str, Any] = {
        "queue_name": listed.queue_name,
        "queue_id": printable(listed.place.queue_id),
        "arrival_time": int(listed.arrived),
        "message_size": listed.size,
        "sender": listed.sender,
        "recipients": [
            _recipient(listed.address(index), outcome)
            for index, outcome in listed.open_recipients()
        ],
        "state": listed.state,
        "attempts": listed.entry.attempts if listed.entry else 0,
        "next_attempt": None if next_attempt is None else int(next_attempt),
    }
    if listed.problem:
        told["error"] = printable(listed.problem)
    return told


def _recipient(address: str, outcome: Outcome | None) -> dict[str, str]:
    if outcome is None:
        return {"address": address, "action": "", "status": "", "remote_mta": "", "diagnostic": ""}
    return {
        "address": address,
        "delay_reason": printable(outcome.reason),
        "action": outcome.action,
        "status": printable(outcome.status),
        "remote_mta": printable(outcome.remote_mta),
        "diagnostic": printable(outcome.diagnostic),
    }


def outcomes(listed: Listed) -> list[dict[str, Any]]:
    """Every outcome of every attempt, in the order in which they were recorded."""
    if listed.entry is None:
        return []
    return [
        {
            "attempt": attempt,
            "time": int(outcome.at),
            "address": listed.address(outcome.recipient),
            "action": outcome.action,
            "status": printable(outcome.status),
            "reason": printable(outcome.reason),
            "remote_mta": printable(outcome.remote_mta),
            "command": printable(outcome.command),
            "diagnostic": printable(outcome.diagnostic),
        }
        for attempt, outcome in listed.entry.outcomes
    ]


# -- the table


class _Table:
    """Rows, and what they add up to.

    ``cut``    what is longer than its column is cut: a terminal reads it
    ``width``  columns in all
    """

    def __init__(self, cut: bool, width: int) -> None:
        self._cut = cut
        self._width = max(width, _NARROWEST)
        # for each of the two addresses
        self._share = (self._width - _FIXED - 1) // 2
        self._paint = Paint(1)
        self._octets = 0
        self.count = 0

    def row(self, listed: Listed, now: float) -> str:
        """The message, and in a second line why it waits where there is a reason; the headings before the first."""
        recipients = listed.open_recipients()
        more = f" +{len(recipients) - 1}" if len(recipients) > 1 else ""
        to = listed.address(recipients[0][0]) if recipients else ""
        text = self._cells(
            printable(listed.place.queue_id),
            self._paint(COLOURS[listed.state], f"{listed.state:8}"),
            size(listed.size),
            next_attempt(listed, now),
            listed.sender or "-",
            self._fit(to, self._share - len(more)) + more,
        )
        reason = listed.problem or next((o.reason for _, o in recipients if o is not None), "")
        if reason:
            line = self._fit("    " + printable(reason), self._width)
            text += self._paint(DIM, line) + "\n"
        if not self.count:
            headings = self._cells("ID", "STATE   ", "SIZE", "NEXT", "FROM", "TO")
            text = self._paint(BOLD, headings[:-1]) + "\n" + text
        self.count += 1
        self._octets += listed.size
        return text

    def summary(self, *, any_chosen: bool) -> str:
        """The last line."""
        if not self.count:
            return "no message matches\n" if any_chosen else "the queue is empty\n"
        return f"{messages_in_words(self.count)}, {size(self._octets)}\n"

    def _cells(self, queue_id: str, state: str, octets: str, due: str, sender: str, to: str) -> str:
        sender = padded(self._fit(sender, self._share), self._share)
        return (
            f"{self._fit(queue_id, 16):16} {state} {octets:>5} {due:12} {sender} {to}".rstrip()
            + "\n"
        )

    def _fit(self, text: str, columns: int) -> str:
        return cut(text, columns) if self._cut else text


def messages_in_words(count: int) -> str:
    """``1 message``, ``2 messages``."""
    return f"{count} message{'' if count == 1 else 's'}"


def size(octets: int) -> str:
    """At most five characters: ``999``, ``1.4K``, ``25M``."""
    if octets < 1000:
        return str(octets)
    amount = octets / 1024
    units = "KMGT"
    while amount >= 999.5 and len(units) > 1:
        amount /= 1024
        units = units[1:]
    return f"{amount:.1f}{units[0]}" if amount < 9.95 else f"{amount:.0f}{units[0]}"


def next_attempt(listed: Listed, now: float) -> str:
    """When it is tried next, in at most 12 characters."""
    when = listed.next_attempt
    if listed.queue_name == "active":
        return "under way"
    if when is None:
        return "-"
    return "now" if when <= now else clock(when, now)
