"""minisend queue: the queue as a table, as JSON lines, or one message with all its attempts.

Never changes anything.  JSON has the keys of ``postqueue -j`` (queue_name, queue_id, arrival_time, message_size,
sender, recipients with address and delay_reason) and these:

    state                         "new" | "deferred" | "hold" | "failed"
    attempts                      made so far
    next_attempt                  seconds since the epoch, null when none is planned
    error                         only where the file cannot be read: why
    recipients[].action           RFC 3464 Action of the last attempt, "" before the first
    recipients[].status           enhanced status code, "" before the first attempt
    recipients[].remote_mta, .diagnostic   as in RFC 3464, "" when no server was reached
    history                       with an ID only: every outcome of every attempt

Source: Postfix postqueue(1), "JSON OBJECT FORMAT"; RFC 3464 section 2.3.
"""

import json
import shutil
import time
from typing import Any

from minisend.admin.listing import Listed, clock, message, messages, open_queue
from minisend.admin.terminal import BOLD, CYAN, DIM, RED, YELLOW, Paint, printable, write
from minisend.envelope import FAILED, Outcome
from minisend.errors import UsageError

_COLOURS = {"new": CYAN, "deferred": YELLOW, "hold": BOLD, "failed": RED}
# Of the columns that are always there: id, state, size, next attempt, and a space behind each.
_FIXED = 17 + 9 + 6 + 13
_NARROWEST = 60


def show_queue(spool: str, *, as_json: bool) -> int:
    """Write the whole queue to standard output.  Raises SpoolError, SystemFault, BrokenPipeError."""
    now = time.time()
    width = max(shutil.get_terminal_size().columns, _NARROWEST)
    paint = Paint(1)
    count = 0
    queue = open_queue(spool)
    if queue is not None:
        with queue:
            for listed in messages(queue):
                if as_json:
                    write(1, json.dumps(as_object(listed)) + "\n")
                else:
                    if not count:
                        write(1, _headings(width, paint))
                    write(1, _row(listed, now, width, paint))
                count += 1
    if not as_json:
        write(
            1, f"{count} message{'' if count == 1 else 's'}\n" if count else "the queue is empty\n"
        )
    return 0


def show_message(spool: str, queue_id: str, *, as_json: bool) -> int:
    """Write one message and its attempts to standard output.  Raises UsageError when there is none of this id."""
    queue = open_queue(spool)
    listed = None
    if queue is not None:
        with queue:
            listed = message(queue, queue_id)
            if listed is not None and listed.entry is not None:
                listed.entry.close()
    if listed is None:
        raise UsageError(f"{printable(queue_id)}: not in the queue")
    if as_json:
        write(1, json.dumps({**as_object(listed), "history": _history(listed)}) + "\n")
    else:
        write(1, _page(listed, time.time(), Paint(1)))
    return 0


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


def _history(listed: Listed) -> list[dict[str, Any]]:
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


def _headings(width: int, paint: Paint) -> str:
    return paint(BOLD, _cells("ID", "STATE", "SIZE", "NEXT", "FROM", "TO", _share(width))) + "\n"


def _row(listed: Listed, now: float, width: int, paint: Paint) -> str:
    """Two lines: the message, and why it waits where there is a reason."""
    recipients = listed.open_recipients()
    more = f" +{len(recipients) - 1}" if len(recipients) > 1 else ""
    share = _share(width)
    to = _cut(listed.address(recipients[0][0]), share - len(more)) + more if recipients else ""
    cells = _cells(
        printable(listed.place.queue_id),
        listed.state,
        _size(listed.size),
        _next(listed, now),
        _cut(listed.sender, share),
        to,
        share,
    )
    # The state stands behind the id and its space: painted after the cut, so that no escape is cut.
    state = cells[17:25]
    text = cells[:17] + paint(_COLOURS[listed.state], state) + cells[25:] + "\n"
    reason = listed.problem or next((o.reason for _, o in recipients if o is not None), "")
    if reason:
        text += paint(DIM, _cut("    " + printable(reason), width)) + "\n"
    return text


def _share(width: int) -> int:
    """Columns for each of the two addresses."""
    return (width - _FIXED - 1) // 2


def _cells(queue_id: str, state: str, size: str, due: str, sender: str, to: str, share: int) -> str:
    return f"{_cut(queue_id, 16):16} {state:8} {size:>5} {due:12} {sender:{share}} {to}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _size(octets: int) -> str:
    """At most five characters: ``999``, ``1.4K``, ``25M``."""
    if octets < 1000:
        return str(octets)
    amount = octets / 1024
    units = "KMGT"
    while amount >= 999.5 and len(units) > 1:
        amount /= 1024
        units = units[1:]
    return f"{amount:.1f}{units[0]}" if amount < 9.95 else f"{amount:.0f}{units[0]}"


def _next(listed: Listed, now: float) -> str:
    when = listed.next_attempt
    if listed.queue_name == "active":
        return "under way"
    if when is None:
        return "-"
    return "now" if when <= now else clock(when, now)


# -- one message


def _page(listed: Listed, now: float, paint: Paint) -> str:
    state = paint(_COLOURS[listed.state], listed.state)
    if listed.queue_name == "active":
        state += ", under way"
    facts = [
        ("Queue id", printable(listed.place.queue_id)),
        ("State", state),
        ("Arrived", time.strftime("%a, %d %b %Y %H:%M:%S %z", time.localtime(listed.arrived))),
        ("Size", f"{listed.size} octets"),
        ("Next attempt", _next(listed, now)),
    ]
    entry = listed.entry
    if entry is None:
        facts.append(("Problem", printable(listed.problem)))
    else:
        facts.append(("From", listed.sender))
        login = printable(entry.envelope.login)
        facts.append(("Submitted by", f"{login} (uid {entry.envelope.uid})"))
    text = "".join(paint(BOLD, f"{name + ':':14}") + f"{value}\n" for name, value in facts)
    if entry is None:
        return text
    text += paint(BOLD, "Recipients:") + "\n"
    for index in range(len(entry.envelope.recipients)):
        text += f"  {listed.address(index)}: {_fate(listed.state, entry.latest.get(index))}\n"
    if entry.outcomes:
        text += paint(BOLD, "Attempts:") + "\n"
    for attempt, outcome in entry.outcomes:
        at = time.strftime("%b %d %H:%M:%S", time.localtime(outcome.at))
        text += f"  {attempt}. {at}  {listed.address(outcome.recipient)}\n"
        text += f"     {outcome.action} {printable(outcome.status)}: {printable(outcome.reason)}\n"
        said = [outcome.remote_mta, outcome.command, outcome.diagnostic]
        if any(said):
            text += "     " + paint(DIM, ", ".join(printable(part) for part in said if part)) + "\n"
    return text


def _fate(state: str, outcome: Outcome | None) -> str:
    """A recipient's standing, in the words of the queue."""
    if outcome is None:
        return "not tried yet"
    if outcome.action == FAILED:
        return "failed"
    return "sent" if outcome.final else state
