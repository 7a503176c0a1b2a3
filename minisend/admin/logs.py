"""What the logs tell of one message: the journal, else the files that syslog writes.

    where                                                 whose lines count
    journal                                               logged by root or the owner of the queue
    /var/log/mail.log, maillog, syslog, messages,         lines with our tag at its place: syslog does not tell who
      the first that has any, with rotated predecessors     logged them
      (also .gz)

They are read by who may read them; what was looked at, and what could not be, is named for when nothing is found.

Sources: systemd.journal-fields(7), journalctl(1) and Journal Export Formats for its JSON; RFC 3164 section 4.1.2 and
RFC 3339 for the two stamps of syslog files; logrotate(8) for the names of rotated ones.
"""

import glob
import json
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Any

from minisend.admin.terminal import printable
from minisend.log import Line, parse

JOURNALCTL = "journalctl"
LOG_FILES = ("/var/log/mail.log", "/var/log/maillog", "/var/log/syslog", "/var/log/messages")
_DEADLINE = 20.0
_DAY = 24 * 3600.0
_ROTATED = re.compile(r"[.-]\d+(\.gz)?")
# The host may be missing, and busybox writes facility and severity behind it.
_FILE_LINE = re.compile(
    r"(?:(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*)|(?P<old>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d))"
    r" (?:\S+ )?(?:[a-z]+\.[a-z]+ )?minisend(?:\[\d+\])?: (?P<text>.*)"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


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


def from_logs(spool: str, queue_id: str, looked: list[str]) -> list[Event]:
    """The events of the journal, else of the first log file that has any; what was looked at is added to ``looked``."""
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
