"""minisend log ID: what happened to one message, in order of time, from its queue file and from the logs.

Never changes anything.  The queue file is there until the message is done with; the logs reach as far back as they are
kept, and are read by who may read them: what could not be looked at is named when nothing was found.

    where                  read how                                         whose lines count
    queue file             as ``minisend queue ID``, of another account's   -
                             queue one's own messages by its socket
    journal                journalctl -o json MINISEND_QUEUE_ID=ID          logged by root or the owner of the queue
    /var/log/mail.log, maillog, syslog, messages, the first that has any,   lines with our tag at its place: syslog
      with their rotated predecessors, also .gz                             does not tell who logged them

With --json each event is one object on a line:

    time       seconds since the epoch
    source     "queue", "journal" or the name of a file
    event      "arrived", an RFC 3464 Action of an attempt, or the event of a log line: "failure report", "postponed", ...
    queue_id   the message's
    other keys of the log line: from, to, relay, delay, dsn, reason, report, ...; for what the queue file tells also attempt,
    command, diagnostic, and with "arrived" recipients, size, uid, state, next_attempt.  A number is one (delay: seconds),
    wherever it comes from

An outcome that both the queue file and a log tell is shown once, as the queue file has it.

Sources: systemd.journal-fields(7), journalctl(1) and Journal Export Formats for its JSON; RFC 3164 section 4.1.2 and
RFC 3339 for the two stamps of syslog files; logrotate(8) for the names of rotated ones.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Any

from minisend.admin.listing import Listed, clock, named, open_queue
from minisend.admin.owner import become_owner
from minisend.admin.served import messages as own_messages
from minisend.admin.terminal import BOLD, DIM, GREEN, RED, YELLOW, Paint, printable, write
from minisend.config.sections import Config
from minisend.envelope import DELAYED, DELIVERED, FAILED, RELAYED
from minisend.errors import MinisendError, SpoolError
from minisend.log import Line, parse
from minisend.spool.place import is_own

JOURNALCTL = "journalctl"
LOG_FILES = ("/var/log/mail.log", "/var/log/maillog", "/var/log/syslog", "/var/log/messages")
_DEADLINE = 20.0
_DAY = 24 * 3600.0
# Seconds by which the delay in a log line, rounded, may differ from the time of the same outcome in the queue file.
_ROUNDING = 0.011

_ROTATED = re.compile(r"[.-]\d+(\.gz)?")
# The host may be missing, and busybox writes facility and severity behind it.
_FILE_LINE = re.compile(
    r"(?:(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*)|(?P<old>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d))"
    r" (?:\S+ )?(?:[a-z]+\.[a-z]+ )?minisend(?:\[\d+\])?: (?P<text>.*)"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
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


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    ``at``      seconds since the epoch
    ``source``  where it is told, see above
    ``what``    one or two words
    ``facts``   the rest, key → value
    """

    at: float
    source: str
    what: str
    facts: dict[str, Any] = field(default_factory=dict)


def show_story(config: Config, queue_id: str, *, as_json: bool) -> int:
    """Write the story to standard output.

    Raises NothingFound, naming where it was looked for; SystemFault, BrokenPipeError.
    """
    spool = config.spool.path
    logs: list[str] = []
    looked: list[str] = []
    # As root, before it becomes the account of the queue, which may not read them.
    logged = _from_logs(spool, queue_id, logs)
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


# -- the logs


def _from_logs(spool: str, queue_id: str, looked: list[str]) -> list[Event]:
    """The events of the journal, else of the first log file that has any."""
    events = _from_journal(spool, queue_id, looked)
    if events:
        return events
    for name in LOG_FILES:
        paths = [
            path
            for path in sorted(glob.glob(f"{glob.escape(name)}*"))
            if path == name or _ROTATED.fullmatch(path, len(name))
        ]
        if not paths:
            continue
        looked.append(f"{name}*" if len(paths) > 1 else paths[0])
        for path in paths:
            try:
                events += _from_file(path, queue_id)
            except (OSError, EOFError) as exc:
                looked.append(f"{path} ({getattr(exc, 'strerror', None) or exc})")
        if events:
            break
    return events


def _from_journal(spool: str, queue_id: str, looked: list[str]) -> list[Event]:
    # --all: else values of more than 4096 octets are null.
    command = [JOURNALCTL, "--output=json", "--all", "--quiet", f"MINISEND_QUEUE_ID={queue_id}"]
    looked.append("the journal" if os.geteuid() == 0 else "what you may read of the journal")
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_DEADLINE, check=False
        )
    except FileNotFoundError:
        looked.pop()
        return []
    except subprocess.TimeoutExpired:
        looked[-1] += f" (no answer in {_DEADLINE:.0f} s)"
        return []
    except (OSError, ValueError) as exc:
        looked[-1] += f" ({exc})"
        return []
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        looked[-1] += f" ({printable(said) or f'exit code {done.returncode}'})"
    try:
        # The spool itself is root's where it is one for all users.
        owners = {0, os.lstat(f"{spool}/queue").st_uid}
    except OSError:
        owners = {0, os.geteuid()}
    events = []
    for octets in done.stdout.splitlines():
        try:
            record = json.loads(octets)
            if int(record["_UID"]) not in owners:
                continue
            at = int(record["__REALTIME_TIMESTAMP"]) / 1e6
            line = parse(_journal_text(record["MESSAGE"]))
        except (ValueError, KeyError, TypeError):
            continue  # of others, who may log what they like
        if line.queue_id == queue_id:
            events.append(_logged(at, "journal", line))
    return events


def _journal_text(value: object) -> str:
    """Text, or a list of octets where the journal holds it for binary."""
    return (
        bytes(value).decode("utf-8", "surrogateescape") if isinstance(value, list) else str(value)
    )


def _from_file(path: str, queue_id: str) -> list[Event]:
    """Raises OSError, EOFError."""
    if path.endswith(".gz"):
        import gzip
        import zlib

        try:
            with gzip.open(path, "rb") as packed:
                return list(_events(packed, path, queue_id, os.stat(path).st_mtime))
        except zlib.error as exc:
            raise EOFError(str(exc)) from exc
    with open(path, "rb") as plain:
        return list(_events(plain, path, queue_id, os.fstat(plain.fileno()).st_mtime))


def _events(
    lines: "IO[bytes] | Iterable[bytes]", path: str, queue_id: str, written: float
) -> Iterator[Event]:
    """``written``: when the last line was, which tells the year of stamps that have none."""
    wanted = queue_id.encode("utf-8", "surrogateescape")
    for octets in lines:
        if wanted not in octets:
            continue
        found = _FILE_LINE.fullmatch(octets.decode("utf-8", "surrogateescape").rstrip("\n"))
        if found is None:
            continue
        try:
            line = parse(found["text"])
            at = _stamp(found["iso"], found["old"], written)
        except ValueError:
            continue  # like ours, but it is not
        if line.queue_id == queue_id:
            yield _logged(at, path, line)


def _stamp(iso: str | None, old: str | None, written: float) -> float:
    """Seconds since the epoch of an RFC 3339 or RFC 3164 time, the latter local.  Raises ValueError."""
    if iso:
        return datetime.fromisoformat(iso).timestamp()
    month, day, hms = (old or "").split()
    hour, minute, second = map(int, hms.split(":"))
    year = time.localtime(written).tm_year
    # Of the last year when it would lie ahead; the day is for a clock or a time zone that was changed.
    for guess in (year, year - 1):
        try:
            at = datetime(guess, _MONTHS.index(month) + 1, int(day), hour, minute, second)
        except ValueError:
            continue
        if at.timestamp() <= written + _DAY:
            return at.timestamp()
    raise ValueError("no such time")


def _logged(at: float, source: str, line: Line) -> Event:
    facts = {key: printable(str(value)) for key, value in line.fields.items()}
    if "trace" in facts:
        facts["trace"] = "\n".join(map(printable, str(line.fields["trace"]).splitlines()))
    what = facts.pop("event", "") or facts.pop("status", "") or "logged"
    return Event(at, source, what, facts)


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
