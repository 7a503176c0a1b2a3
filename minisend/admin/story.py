"""minisend log ID: what happened to one message, in order of time, from its queue file and from the logs.

Never changes anything.  The queue file is there until the message is done with, and is read as by ``minisend queue ID``; of
another account's queue it is one's own messages, by its socket.  The logs (``minisend.admin.logs``) reach as far back as
they are kept.

With --json each event is one object on a line:

    time       seconds since the epoch
    source     "queue", "journal" or the name of a file
    event      "arrived", an RFC 3464 Action of an attempt, or the event of a log line: "failure report", "postponed", ...
    queue_id   the message's
    other keys of the log line: from, to, relay, delay, dsn, reason, report, ...; for what the queue file tells also attempt,
    command, diagnostic, and with "arrived" recipients, size, uid, state, next_attempt.  A number is one (delay: seconds),
    wherever it comes from

An outcome that both the queue file and a log tell is shown once, as the queue file has it.
"""

import json
import os
import shutil
import textwrap
import time
from collections.abc import Iterator
from typing import Any

from minisend.admin.listing import Listed, clock, named, open_queue
from minisend.admin.logs import Event, from_logs
from minisend.admin.owner import become_owner
from minisend.admin.served import messages as own_messages
from minisend.admin.terminal import BOLD, DIM, GREEN, RED, YELLOW, Paint, printable, write
from minisend.config.sections import Config
from minisend.envelope import DELAYED, DELIVERED, FAILED, RELAYED
from minisend.errors import MinisendError, SpoolError
from minisend.spool.place import is_own

# Seconds by which the delay in a log line, rounded, may differ from the time of the same outcome in the queue file.
_ROUNDING = 0.011

_COLOURS = {DELIVERED: GREEN, RELAYED: GREEN, DELAYED: YELLOW, FAILED: RED}
_NARROWEST = 60
# Below the line of an event, and what else of it is not shown as key=value.
_REASONS = ("reason", "diagnostic", "trace")
_SHOWN = {
    *("from", "to", "dsn", "status", "relay", "delay", *_REASONS),
    *("attempt", "command", "state", "next_attempt"),
}
_INDENT = " " * 17
# What is a number, also where a log has it as text.
_NUMBERS = {
    **dict.fromkeys(("attempt", "claimed_uid", "next_attempt", "nrcpt", "size", "uid"), int),
    "delay": float,
}


class NothingFound(MinisendError):
    """Neither the queue nor a log knows the message (EX_NOINPUT)."""

    exit_code = 66


def show_story(config: Config, queue_id: str, *, as_json: bool) -> int:
    """Write the story to standard output.

    Raises NothingFound, naming where it was looked for; SystemFault, BrokenPipeError.
    """
    spool = config.spool.path
    logs: list[str] = []
    looked: list[str] = []
    # As root, before it becomes the account of the queue, which may not read them.
    logged = from_logs(spool, queue_id, logs)
    become_owner(spool)
    listed = _from_queue(config, queue_id, looked)
    told = _recorded(listed) if listed is not None else []
    looked += logs
    events = sorted([*told, *_without(logged, told, listed)], key=lambda event: event.at)
    if not events and listed is None:
        raise NothingFound(f"{printable(queue_id)}: not found: looked at {', '.join(looked)}")
    if as_json:
        for event in events:
            write(1, json.dumps(_as_object(queue_id, event)) + "\n")
    else:
        write(1, _page(queue_id, events, listed, time.time(), Paint(1)))
    return 0


# -- the queue


def _from_queue(config: Config, queue_id: str, looked: list[str]) -> Listed | None:
    """The message as the queue has it, one of the caller's in a queue of another account; what was looked at is added to ``looked``."""
    spool, socket = config.spool.path, config.submission.socket
    looked.append(f"the queue ({spool})")
    try:
        if socket and os.path.isdir(f"{spool}/queue") and not is_own(spool):
            looked[-1] = f"your messages in the queue ({spool})"
            return next((m for m in own_messages(socket) if m.place.queue_id == queue_id), None)
        queue = open_queue(spool)
        if queue is None:
            return None
        with queue:
            # What is asked of it below was read with its envelope: its file need not stay open.
            ((_, listed),) = named(queue, [queue_id])
            return listed
    except SpoolError as exc:
        looked[-1] = f"the queue ({exc})"
        return None


def _recorded(listed: Listed) -> list[Event]:
    """The arrival and every recorded outcome."""
    entry = listed.entry
    arrived: dict[str, Any] = {"state": listed.state, "next_attempt": listed.next_attempt}
    if entry is None:
        return [Event(listed.arrived, "queue", listed.state, {**arrived, "reason": listed.problem})]
    envelope = entry.envelope
    addresses = [listed.address(index) for index in range(len(envelope.recipients))]
    arrived = {
        "from": printable(envelope.sender),
        "recipients": addresses,
        "size": listed.size,
        "uid": envelope.uid,
        **arrived,
    }
    outcomes = [
        Event(
            outcome.at,
            "queue",
            outcome.action,
            {
                "from": printable(envelope.sender),
                "to": addresses[outcome.recipient],
                "relay": printable(outcome.remote_mta) or "none",
                "delay": f"{outcome.at - envelope.arrived:.2f}",
                "dsn": printable(outcome.status),
                "reason": printable(outcome.reason),
                "attempt": attempt,
                "command": printable(outcome.command),
                "diagnostic": printable(outcome.diagnostic),
            },
        )
        for attempt, outcome in entry.outcomes
    ]
    return [Event(listed.arrived, "queue", "arrived", arrived), *outcomes]


def _without(logged: list[Event], told: list[Event], listed: Listed | None) -> Iterator[Event]:
    """The logged events that the queue file does not tell."""
    if listed is None or listed.entry is None:
        yield from logged
        return
    known: dict[tuple[str, str], list[Event]] = {}
    for event in told:
        known.setdefault((event.what, event.facts.get("dsn", "")), []).append(event)
    for event in logged:
        same = known.get((event.what, event.facts.get("dsn", "")), [])
        if not any(_is_same(event, other) for other in same):
            yield event


def _is_same(logged: Event, recorded: Event) -> bool:
    # The log has the address qualified.
    to, bare = logged.facts.get("to", ""), recorded.facts.get("to", "")
    if to != bare and not ("@" not in bare and to.startswith(f"{bare}@")):
        return False
    try:
        delays = float(logged.facts["delay"]), float(recorded.facts["delay"])
    except (KeyError, ValueError):
        return False
    return abs(delays[0] - delays[1]) <= _ROUNDING


# -- what is shown


def _as_object(queue_id: str, event: Event) -> dict[str, Any]:
    return {
        "time": round(event.at, 3),
        "source": event.source,
        "event": event.what,
        "queue_id": printable(queue_id),
        **{key: _number(key, value) for key, value in event.facts.items()},
    }


def _number(key: str, value: Any) -> Any:
    """``value`` as a number, if it is to be one and can be."""
    form = _NUMBERS.get(key)
    try:
        return value if form is None or value is None else form(value)
    except ValueError:
        return value  # of a line that somebody else has logged


def _page(
    queue_id: str, events: list[Event], listed: Listed | None, now: float, paint: Paint
) -> str:
    width = max(shutil.get_terminal_size().columns, _NARROWEST)
    widest = max((len(event.what) for event in events), default=0)
    text = paint(BOLD, f"Message {printable(queue_id)}") + "\n"
    for event in events:
        text += _entry(event, widest, width, paint)
    if listed is not None:
        due = listed.next_attempt
        until = (
            "" if due is None else ", next attempt " + ("now" if due <= now else clock(due, now))
        )
        text += f"In the queue: {listed.state}{until}\n"
    reports = dict.fromkeys(e.facts["report"] for e in events if e.facts.get("report"))
    for report in reports:
        text += f"Its report is a message of its own: minisend log {report}\n"
    return text


def _entry(event: Event, widest: int, width: int, paint: Paint) -> str:
    """One line of what, to whom and how, and below it the reason, whole."""
    facts = event.facts
    stamp = time.strftime("%b %d %H:%M:%S", time.localtime(event.at))
    what = paint(_COLOURS.get(event.what, BOLD), event.what) + " " * (widest - len(event.what))
    if event.what == "arrived":
        sender = facts["from"] or "MAILER-DAEMON"
        rest = f"from {sender}, {facts['size']} octets, for {', '.join(facts['recipients'])}"
    else:
        relay = facts.get("relay", "none")
        words = [
            facts.get("to", ""),
            facts.get("dsn") or facts.get("status", ""),
            f"by {relay}" if relay != "none" else "",
            f"after {facts['delay']} s" if "delay" in facts else "",
            *(f"{key}={value}" for key, value in facts.items() if key not in _SHOWN),
        ]
        rest = " ".join(word for word in words if word)
    first, *more = _wrapped(rest, width - 19 - widest) or [""]
    text = f"{stamp}  {what}  {first}".rstrip() + "\n"
    below = [" " * widest + "  " + part for part in more]
    reasons = dict.fromkeys(facts[key] for key in _REASONS if facts.get(key))
    below += [
        paint(DIM, part)
        for reason in reasons
        for one in reason.splitlines()
        for part in _wrapped(one, width - 17)
    ]
    return text + "".join(f"{_INDENT}{part}\n" for part in below)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False)
