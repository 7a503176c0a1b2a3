"""A program that runs wild: the same message again and again is held, and one person is told of it, once.

    of one digest within an hour           verdict         what happens
    the first ``limit`` messages           PASS            delivered
    the next one                           HOLD_AND_TELL   queue/hold, and a notice to ``admin``, else to the sender's account
    all after it                           HOLD            queue/hold

The digest is of the uid, the recipients and the subject; the hour begins with the first message.  A message is judged
when it is claimed for the first time.  That it was held is noted in its file, so that it goes out when it is released;
the notice is in the queue before that, with an id made from the message's, so that it is not there twice after a crash.
A message judged twice within the hour gets the same verdict twice.

``<spool>/state/flood`` has a line for each digest, the one seen last at the end:

    DIGEST START ID,ID,...   32 hexadecimal digits; seconds since the epoch; 8 digits of the queue id of each message
                             that passed, and of the one that was told of

It is replaced whole, under a lock on its directory, and never fsynced.  A line that cannot be read is as good as
none, and so is a file that cannot be read or written: then messages pass.

Never: a message with the null reverse-path is not judged; nothing is removed.

Limits: of more than FILE_LIMIT octets the digests seen longest ago are forgotten.  A subject with a number that counts
up is another subject each time.

Source: RFC 3834 (Auto-Submitted).
"""

from __future__ import annotations

import fcntl
import posix

try:
    # What hashlib takes it from, 1 ms and OpenSSL later.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

from minisend.address import qualify, quote_local, split
from minisend.config.sections import Config
from minisend.envelope import Envelope
from minisend.message import dsn
from minisend.message.header import HEADER_LIMIT, find
from minisend.message.header import split as split_header
from minisend.spool import disk
from minisend.spool.enqueue import new_queue_id
from minisend.spool.entry import Entry
from minisend.spool.place import state
from minisend.spool.record import format_ranges
from minisend.spool.store import Queue
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

WINDOW = 3600
FILE_LIMIT = 256 * 1024

_NAME = "flood"
_NEW = "flood.new"
# Recipients that a notice names.
_SHOWN = 10
# The event of the note in the message's file, beside those of message.dsn.
_EVENT = "flood"


class Verdict:
    """What is to become of a message: one of these words."""

    PASS = "pass"  # noqa: S105 - no password
    HOLD = "hold"
    HOLD_AND_TELL = "hold and tell"


class Held(Value):
    """A message was moved to ``hold``.  ``told``: to whom a notice went, and its queue id; b"" and "" when there was one before."""

    __slots__ = ("notice", "told")

    def __init__(self, told: bytes = b"", notice: str = "") -> None:
        self.told = told
        self.notice = notice


class Flood:
    """The count of one spool.  ``limit``  messages of one digest that pass within an hour; 0 for all."""

    def __init__(self, spool: str, limit: int) -> None:
        self._spool = spool
        self._limit = limit

    def judge(
        self,
        queue_id: str,
        uid: int,
        sender: bytes,
        recipients: Iterable[bytes],
        subject: bytes,
        now: float,
    ) -> str:
        """Count a message, if it is not counted yet, and say what it comes to.  Never raises for the state of the disk.

        ``recipients``  addresses, in any order
        ``subject``     value of the field as it came, folded or not
        ``now``         seconds since the epoch
        """
        if not self._limit or not sender:
            return Verdict.PASS
        mark = queue_id[:8].encode("ascii")
        try:
            marks = self._count(digest(uid, recipients, subject), mark, now)
        except OSError:
            return Verdict.PASS
        place = marks.index(mark) if mark in marks else len(marks)
        if place < self._limit:
            return Verdict.PASS
        return Verdict.HOLD_AND_TELL if place == self._limit else Verdict.HOLD

    def _count(self, key: bytes, mark: bytes, now: float) -> list[bytes]:
        """The marks of this digest in the present hour, the new one among them where there was room."""
        spool = posix.open(
            state(self._spool, make=True), posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
        )
        try:
            fcntl.flock(spool, fcntl.LOCK_EX)
            lines = _read(spool)
            start = int(now)
            marks: list[bytes] = []
            for line in lines:
                if line.startswith(key):
                    start, marks = _parsed(line, now) or (start, marks)
            if mark not in marks and len(marks) <= self._limit:
                marks.append(mark)
            lines = [line for line in lines if not line.startswith(key)]
            lines.append(b"%b %d %b" % (key, start, b",".join(marks)))
            _replace(spool, lines)
        finally:
            posix.close(spool)
        return marks


def digest(uid: int, recipients: Iterable[bytes], subject: bytes) -> bytes:
    """What messages have in common that are the same for our purpose: 32 hexadecimal digits."""
    addresses = []
    for address in recipients:
        local, domain = split(address)
        addresses.append(local + b"@" + domain.lower())
    # None of them holds a line end.
    parts = [b"%d" % uid, b" ".join(subject.split()), *sorted(addresses)]
    return blake2b(b"\n".join(parts), digest_size=16).hexdigest().encode("ascii")


def _read(spool: int) -> list[bytes]:
    try:
        fd = disk.open_reading(_NAME, spool)
    except FileNotFoundError:
        return []
    with open(fd, "rb") as file:
        return file.read(2 * FILE_LIMIT).splitlines()


def _parsed(line: bytes, now: float) -> tuple[int, list[bytes]] | None:
    """Start and marks; None when the line is not one of ours, or its hour over."""
    try:
        _, start, marks = line.split(b" ")
        began = int(start)
        for mark in marks.split(b","):
            if len(mark) != 8:
                return None
            int(mark, 16)
    except ValueError:
        return None
    # Another process may have looked at the clock a moment later than we did; further ahead, the clock was stepped.
    return (began, marks.split(b",")) if abs(now - began) < WINDOW else None


def _replace(spool: int, lines: list[bytes]) -> None:
    size = 0
    kept: list[bytes] = []
    for line in reversed(lines):
        size += len(line) + 1
        if size > FILE_LIMIT:
            break
        kept.append(line)
    try:
        # Of a process that ended halfway: who has the lock is alone here.
        disk.unlink(_NEW, spool)
    except FileNotFoundError:
        pass
    fd = disk.create(_NEW, spool)
    try:
        disk.write(fd, b"\n".join([*reversed(kept), b""]))
    finally:
        disk.close(fd)
    disk.rename(_NEW, spool, _NAME, spool)


def control(flood: Flood, queue: Queue, entry: Entry, config: Config, now: float) -> Held | None:
    """Judge a claimed message and do what follows: None when it passes, else it lies in ``hold``.

    Only a message that nothing has happened to yet is judged: not one that was attempted, held before or requeued.
    Raises SpoolError and OSError (the disk: keep the message, try again) and BrokenRecord (the message's file).
    """
    envelope = entry.envelope
    if not config.limits.flood or entry.place.state != "new" or entry.history:
        return None
    subject = _subject(entry)
    recipients = [recipient.address for recipient in envelope.recipients]
    verdict = flood.judge(
        envelope.queue_id, envelope.uid, envelope.sender, recipients, subject, now
    )
    if verdict == Verdict.PASS:
        return None
    held = Held()
    if verdict == Verdict.HOLD_AND_TELL:
        from minisend.delivery.notice import queue_once

        notified, octets = notice(envelope, subject, config, now)
        # Only who holds the claim of the message builds its notice.
        queue_once(queue, notified, octets)
        held = Held(notified.recipients[0].address, notified.queue_id)
    everybody = format_ranges(range(len(recipients))).decode("ascii")
    entry.note_reported(f"{_EVENT} {everybody}")
    entry.move_to("hold")
    return held


def _subject(entry: Entry) -> bytes:
    first = entry.first_octets(HEADER_LIMIT + 4096)
    fields = find(split_header(first, complete=len(first) == entry.size).fields, b"subject")
    return fields[0].value if fields else b""


def notice(
    envelope: Envelope, subject: bytes, config: Config, now: float
) -> tuple[Envelope, bytes]:
    """Who is told of a flood, and the message that tells it: LF line ends, to be completed as any other.

    ``envelope``, ``subject``  of the first message that was held
    """
    from minisend.delivery.notice import compose

    limit = config.limits.flood
    domain = config.mail_domain.encode()
    account = quote_local(envelope.login) if envelope.login else envelope.sender
    to = qualify(config.admin.encode() or account, domain)
    queue_id = new_queue_id(f"{envelope.queue_id} {_EVENT}".encode("ascii"))
    recipients = [qualify(recipient.address, domain) for recipient in envelope.recipients]
    subject_line = b"Mail held: the same message more than %d times in an hour" % limit
    text = _text(envelope, recipients, subject, config.hostname, limit)
    return compose(queue_id, to, subject_line, text, config, now, envelope.zone)


def _text(
    envelope: Envelope, recipients: list[bytes], subject: bytes, hostname: str, limit: int
) -> str:
    login = envelope.login.decode("utf-8", "backslashreplace")
    who = f"uid {envelope.uid} ({login})" if login else f"uid {envelope.uid}"
    opening = (
        f"{who} has sent the same message more than {limit} times within an hour. What came after "
        f"message {limit} is held, and so is every further one until the hour is over; nothing is lost. "
        "You are told of this once an hour."
    )
    shown = [address.decode("utf-8", "backslashreplace") for address in recipients[:_SHOWN]]
    if len(recipients) > _SHOWN:
        shown.append(f"and {len(recipients) - _SHOWN} more")
    lines = [
        f"This is the mail system at host {hostname}.",
        "",
        *dsn.wrapped(opening, ""),
        "",
        *dsn.wrapped(f"Subject: {_readable(subject)}", "    "),
        *dsn.wrapped(f"To: {', '.join(shown)}", "    "),
        *dsn.wrapped(f"The first that is held: {envelope.queue_id}", "    "),
        "",
        *dsn.wrapped(
            "Stop the program that sends them, if that is not what it should do. Then:", ""
        ),
        "",
        "    minisend queue --state held    shows what is held",
        "    minisend release ID ...        lets it go out",
        "    minisend rm ID ...             removes it",
        "",
        *dsn.wrapped(f"The limit is the key flood of [limits], now {limit}.", ""),
        "",
    ]
    return "\n".join(lines)


def _readable(subject: bytes) -> str:
    """A subject as a person reads it, encoded words decoded (RFC 2047) where that can be done."""
    from email.errors import MessageError
    from email.header import decode_header, make_header

    text = subject.decode("utf-8", "backslashreplace").strip()
    try:
        return str(make_header(decode_header(text))) or "(none)"
    except (LookupError, ValueError, MessageError):
        return text
