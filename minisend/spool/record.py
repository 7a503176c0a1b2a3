"""The octets of a queue file: envelope, message, trailer, appended lines.  Pure: no file is touched here.

    minisend-queue 1            format and version
    size 000000000001234        octets of the message; fixed width, so that it can be filled in last
    key value ...               the envelope and the facts of the submission, one a line
                                (empty line)
    message                     as it came, exactly ``size`` octets
    trailer                     appended line ``end``: octets, LF count, digest (CRC-32), flags, checksum of the envelope
    facts, outcome, report, requeue lines   appended lines, see below

Values are octets with control characters and the backslash as ``\\xHH``, so a value never holds a line end.
An appended line is LF, the text, a space, eight hexadecimal digits of the text's CRC-32, LF.  The leading LF ends
whatever a crash left half written before it; a torn last line has no valid checksum and counts for nothing.
Recipients stand in outcome lines by their index or range, so that 1,000 of them over 40 attempts stay small.

    appended line                      from here on
    end ...                            the message is whole
    facts ...                          every attempt uses these facts; written together with the line after it
    outcome attempt recipients ...     that is what is known of these recipients
    report event recipients            this report was queued, and is not queued again
    requeue time recipients            these are tried again as if nothing had been tried: what was recorded of them is
                                       history, attempts count from 1, the lifetime from ``time``

The manual of the format is minisend-spool(5).
"""

import binascii

from minisend.envelope import (
    DELAYED,
    DELIVERED,
    DROP,
    FAILED,
    RELAYED,
    SOCKET,
    Envelope,
    Facts,
    Outcome,
    Recipient,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 1
MAGIC = b"minisend-queue "
_SIZE_DIGITS = 15
SIZE_OFFSET = len(MAGIC) + 2 + len(b"size ")
# A message cannot have more recipients than fit: an envelope this large is no envelope of ours.
HEAD_LIMIT = 64 * 1024 * 1024
#: Of the envelope that comes from another account, on the socket or in the drop: some 20,000 recipients.  It is a
#: stranger's, and must not fill the memory.
SUBMITTED_HEAD_LIMIT = 1024 * 1024
# What a record may say is checked as far as a reader counts on it: a checksum holds for nonsense too.
_LAST_TIME = 1e11
_UIDS = 1 << 32
_DAY = 24 * 60
#: Values of ``Envelope.channel``.
CHANNELS = ("", SOCKET, DROP)
_ACTIONS = (DELIVERED, RELAYED, DELAYED, FAILED)

# Trailer flags
EIGHT_BIT = "8"
LONG_LINE = "L"
HAS_NUL = "0"
BARE_CR = "R"

# Octets that the text fields of an outcome line may take, escapes included: action, status, remote_mta (a host name of
# 253, address and port), command, diagnostic, reason.  With the fixed fields and a range they stay below OUTCOME_ROOM:
# before an attempt there is so much room for each recipient.
_TEXT_LIMITS = (16, 16, 320, 32, 400, 400)
OUTCOME_ROOM = 1300
# Octets of a facts line beside its values: the word, four tabs, checksum and line ends.
_FACTS_FRAME = 5 + 4 + 11

# Lines of an envelope: how many each has before its recipients, the first one not counted; those that some have.
_HEAD_KEYS = 8
_OPTIONS = frozenset((b"from-headers", b"body", b"ret", b"envid", b"channel"))

_SAFE = bytes(c for c in range(0x20, 0x100) if c not in (0x5C, 0x7F))
# Looked for as numbers: for octets ``in`` first tries whether they are one, and makes an exception each time.
_LF, _BACKSLASH = b"\n\\"


class BrokenRecord(Exception):
    """The octets are no record: damaged, cut short, or not written by us.  The text says what is wrong."""


class UnknownVersion(Exception):
    """A record of another format version: to be left alone."""


class Trailer:
    """What the writer counted.

    ``lines``   LF octets; -1 where the message is so large that its lines were neither counted nor measured
    ``digest``  CRC-32 of the message, hexadecimal
    ``flags``   letters, see above
    """

    __slots__ = ("digest", "flags", "head_crc", "lines", "octets")

    def __init__(self, octets: int, lines: int, digest: str, flags: str, head_crc: int) -> None:
        self.octets = octets
        self.lines = lines
        self.digest = digest
        self.flags = flags
        self.head_crc = head_crc

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trailer) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Trailer({self.octets}, {self.lines}, {self.digest!r}, {self.flags!r}, {self.head_crc:#x})"


class Requeue:
    """An administrator had a message tried again from the start.

    ``at``          seconds since the epoch
    ``recipients``  indexes of those who were then tried again
    """

    __slots__ = ("at", "recipients")

    def __init__(self, at: float, recipients: "list[int]") -> None:
        self.at = at
        self.recipients = recipients

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Requeue) and (self.at, self.recipients) == (
            other.at,
            other.recipients,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Requeue({self.at!r}, {self.recipients!r})"


class Tail:
    """What stands after the message.

    ``length``    octets that are good, from the end of the message
    ``torn``      a half-written line follows them
    ``history``   in the order written: (attempt number, Outcome) of an outcome, the note of a report, a Requeue
    """

    __slots__ = ("facts", "history", "length", "torn", "trailer")

    def __init__(
        self,
        trailer: Trailer,
        facts: Facts | None,
        history: "list[tuple[int, Outcome] | str | Requeue]",
        length: int,
        torn: bool,
    ) -> None:
        self.trailer = trailer
        self.facts = facts
        self.history = history
        self.length = length
        self.torn = torn

    @property
    def outcomes(self) -> "list[tuple[int, Outcome]]":
        """(attempt number, Outcome) in the order written."""
        return [event for event in self.history if isinstance(event, tuple)]


def escape(value: bytes) -> bytes:
    r"""``value`` with control characters and the backslash as ``\xHH``."""
    if not value.translate(None, _SAFE):
        return value
    return b"".join(b"%c" % c if c in _SAFE else b"\\x%02x" % c for c in value)


def unescape(value: bytes) -> bytes:
    """The inverse of ``escape``; BrokenRecord on anything that ``escape`` does not write."""
    if _BACKSLASH not in value:
        return value
    first, *rest = value.split(b"\\")
    parts = [first]
    for part in rest:
        if part[:1] != b"x" or len(part) < 3:
            raise BrokenRecord("a value has a broken escape")
        try:
            parts.append(bytes((int(part[1:3], 16),)))
        except ValueError:
            raise BrokenRecord("a value has a broken escape") from None
        parts.append(part[3:])
    return b"".join(parts)


def _text(value: str) -> bytes:
    return escape(value.encode("utf-8", "surrogateescape"))


def _short(value: str, limit: int) -> bytes:
    """``_text``, cut to ``limit`` octets, never inside an escape."""
    # A character has at least one octet: what lies beyond that many of them need not be escaped to be cut off.
    octets = _text(value[:limit])
    if len(octets) > limit:
        octets = octets[:limit]
        if b"\\" in octets[-3:]:
            octets = octets[: octets.rindex(b"\\")]
        octets = octets.decode("utf-8", "ignore").encode("utf-8")
    return octets


def _from_text(value: bytes) -> str:
    return unescape(value).decode("utf-8", "surrogateescape")


def format_size(size: int) -> bytes:
    """The fixed-width form that stands at ``SIZE_OFFSET``."""
    return b"%0*d" % (_SIZE_DIGITS, size)


def format_head(envelope: Envelope, size: int) -> bytes:
    """Everything before the message."""
    lines = [
        MAGIC + b"%d" % VERSION,
        b"size " + format_size(size),
        b"id " + envelope.queue_id.encode("ascii"),
        b"arrived %.6f" % envelope.arrived,
        b"zone %d" % envelope.zone,
        b"uid %d" % envelope.uid,
        b"login " + escape(envelope.login),
        b"name " + escape(envelope.full_name),
    ]
    if envelope.sender_given:
        lines.append(b"sender-given")
    if envelope.from_headers:
        lines.append(b"from-headers")
    if envelope.body:
        lines.append(b"body " + _text(envelope.body))
    if envelope.ret:
        lines.append(b"ret " + _text(envelope.ret))
    if envelope.envid:
        lines.append(b"envid " + _text(envelope.envid))
    if envelope.channel:
        lines.append(b"channel " + _text(envelope.channel))
    lines.append(b"sender " + escape(envelope.sender))
    for recipient in envelope.recipients:
        lines.append(b"to " + escape(recipient.address))
        if recipient.original:
            lines.append(b"original " + escape(recipient.original))
        if recipient.notify:
            lines.append(b"notify " + _text(recipient.notify))
    lines.append(b"\n")
    return b"\n".join(lines)


def head_length(octets: bytes) -> int:
    """Length of the head at the start of ``octets``, 0 when its end is not among them yet.

    Raises BrokenRecord when this cannot be a queue file, UnknownVersion when it is one of another version.
    """
    if not octets.startswith(MAGIC):
        raise BrokenRecord("it does not begin like a queue file")
    first = octets[: len(MAGIC) + 20].partition(b"\n")
    if first[1] and first[0] != MAGIC + b"%d" % VERSION:
        raise UnknownVersion(first[0][len(MAGIC) :].decode("ascii", "backslashreplace"))
    end = octets.find(b"\n\n")
    return end + 2 if end >= 0 else 0


def parse_head(head: bytes) -> tuple[Envelope, int]:
    """The envelope and the size of the message; the recipients come last.  Raises BrokenRecord."""
    # Few steps: a flush and the listing of a large queue spend their time here.
    facts, found, to = head[:-2].partition(b"\nto ")
    lines = facts.split(b"\n")
    del lines[0]
    single = {key: rest for key, _, rest in [line.partition(b" ") for line in lines]}
    if len(single) != len(lines):
        raise BrokenRecord("a line stands twice in its envelope")
    value = unescape if _BACKSLASH in head else bytes
    try:
        envelope = Envelope(
            single[b"id"].decode("ascii"),
            value(single[b"sender"]),
            [_parse_recipient(lines) for lines in to.split(b"\nto ")],
            arrived=float(single[b"arrived"]),
            zone=int(single[b"zone"]),
            uid=int(single[b"uid"]),
            login=value(single[b"login"]),
            full_name=value(single[b"name"]),
            sender_given=b"sender-given" in single,
        )
        size = int(single[b"size"])
        known = _HEAD_KEYS + envelope.sender_given
        if len(single) != known:
            known += _parse_options(single, envelope)
    except (KeyError, ValueError) as exc:
        raise BrokenRecord("its envelope is incomplete") from exc
    if (
        len(single) != known
        or not found
        or not 0 <= size < 10**_SIZE_DIGITS
        or not 0 <= envelope.arrived <= _LAST_TIME
        or not -_DAY < envelope.zone < _DAY
        or not -1 <= envelope.uid <= _UIDS
        or envelope.channel not in CHANNELS
    ):
        raise BrokenRecord("its envelope is not one of ours")
    return envelope, size


def _parse_options(single: dict[bytes, bytes], envelope: Envelope) -> int:
    """How many there are of the lines that few envelopes have."""
    envelope.from_headers = b"from-headers" in single
    envelope.body = _from_text(single.get(b"body", b""))
    envelope.ret = _from_text(single.get(b"ret", b""))
    envelope.envid = _from_text(single.get(b"envid", b""))
    envelope.channel = _from_text(single.get(b"channel", b""))
    return len(single.keys() & _OPTIONS)


def _parse_recipient(lines: bytes) -> Recipient:
    """From the octets between two ``to``."""
    if _LF not in lines:
        return Recipient(unescape(lines))
    address, *others = lines.split(b"\n")
    recipient = Recipient(unescape(address))
    for line in others:
        key, _, value = line.partition(b" ")
        if key == b"original":
            recipient.original = unescape(value)
        elif key == b"notify":
            recipient.notify = _from_text(value)
        else:
            raise BrokenRecord("its envelope is not one of ours")
    return recipient


def format_line(text: bytes) -> bytes:
    """An appended line: LF, ``text``, its checksum, LF.  ``text`` holds no LF."""
    return b"\n%b %08x\n" % (text, binascii.crc32(text))


def format_trailer(trailer: Trailer) -> bytes:
    """The appended line that closes the message."""
    return format_line(
        b"end\t%d\t%d\t%b\t%b\t%08x"
        % (
            trailer.octets,
            trailer.lines,
            trailer.digest.encode("ascii"),
            trailer.flags.encode("ascii"),
            trailer.head_crc,
        )
    )


def format_facts(facts: Facts) -> bytes:
    """The appended line that goes before the first outcome."""
    return format_line(
        b"facts\t"
        + b"\t".join(
            escape(value)
            for value in (facts.hostname, facts.mail_domain, facts.from_field, facts.message_id)
        )
    )


def facts_room(facts: Facts) -> int:
    """Octets that ``format_facts`` takes at most."""
    values = (facts.hostname, facts.mail_domain, facts.from_field, facts.message_id)
    # An octet that is escaped takes four.
    return 4 * sum(map(len, values)) + _FACTS_FRAME


def format_outcomes(attempt: int, outcomes: "Iterable[Outcome]") -> bytes:
    """Appended lines for the outcomes of one attempt, recipients with the same outcome in one line."""
    groups: dict[bytes, list[int]] = {}
    for outcome in outcomes:
        rest = b"%.3f\t%b" % (
            outcome.at,
            b"\t".join(
                _short(value, limit)
                for value, limit in zip(
                    (
                        outcome.action,
                        outcome.status,
                        outcome.remote_mta,
                        outcome.command,
                        outcome.diagnostic,
                        outcome.reason,
                    ),
                    _TEXT_LIMITS,
                    strict=True,
                )
            ),
        )
        groups.setdefault(rest, []).append(outcome.recipient)
    return b"".join(
        format_line(b"outcome\t%d\t%b\t%b" % (attempt, format_ranges(who), rest))
        for rest, who in groups.items()
    )


def format_report(note: str) -> bytes:
    """The appended line that says that a report was queued."""
    return format_line(b"report\t" + _text(note))


def format_requeue(requeue: Requeue) -> bytes:
    """The appended line that starts again for some recipients, at least one."""
    return format_line(b"requeue\t%.3f\t%b" % (requeue.at, format_ranges(requeue.recipients)))


def format_ranges(numbers: "Iterable[int]") -> bytes:
    """Recipient indexes as ``0-3,7``."""
    parts: list[bytes] = []
    first = last = -1
    for number in [*sorted(numbers), -1]:
        if first >= 0 and number == last + 1:
            last = number
            continue
        if first >= 0:
            parts.append(b"%d-%d" % (first, last) if last > first else b"%d" % first)
        first = last = number
    return b",".join(parts)


def parse_ranges(text: bytes, count: int) -> list[int]:
    """The inverse of ``format_ranges``; BrokenRecord when an index is not below ``count``."""
    numbers: list[int] = []
    for part in text.split(b","):
        first, _, last = part.partition(b"-")
        low = int(first)
        high = int(last) if last else low
        if not 0 <= low <= high < count:
            raise BrokenRecord("an outcome names a recipient that is not there")
        numbers.extend(range(low, high + 1))
    return numbers


def _valid(line: bytes) -> bool:
    text, _, crc = line.rpartition(b" ")
    return len(crc) == 8 and b"%08x" % binascii.crc32(text) == crc


def parse_tail(octets: bytes, envelope: Envelope) -> Tail:
    """What stands after the message.

    A torn last line is told apart from damage: after a torn line there is nothing good.  Raises BrokenRecord.
    """
    trailer: Trailer | None = None
    facts: Facts | None = None
    history: list[tuple[int, Outcome] | str | Requeue] = []
    position = 0
    while octets[position : position + 1] == b"\n":
        end = octets.find(b"\n", position + 1)
        line = octets[position + 1 : end]
        if end < 0 or not _valid(line):
            break
        fields = line[:-9].split(b"\t")
        try:
            if trailer is None:
                trailer = _parse_trailer(fields)
            elif fields[0] == b"facts":
                _, hostname, mail_domain, from_field, message_id = map(unescape, fields)
                facts = Facts(hostname, mail_domain, from_field, message_id)
            elif fields[0] == b"outcome":
                history += _parse_outcomes(fields, len(envelope.recipients))
            elif fields[0] == b"report":
                _, note = fields
                history.append(_from_text(note))
            elif fields[0] == b"requeue":
                history.append(_parse_requeue(fields, len(envelope.recipients)))
            else:
                raise BrokenRecord("it has a line of an unknown kind")
        except ValueError as exc:
            raise BrokenRecord("a line after the message makes no sense") from exc
        position = end + 1
    if trailer is None:
        raise BrokenRecord("its message has no end mark")
    rest = octets[position:]
    if not rest:
        return Tail(trailer, facts, history, position, torn=False)
    bad = 0
    for line in rest.split(b"\n")[:-1]:
        if _valid(line):
            # No line holds a NUL.  Where one stands, a page that was reserved for a line never reached the disk, so
            # the fsync after it never returned, and nothing acted on what stands behind it.
            if b"\0" not in rest[:bad]:
                raise BrokenRecord("a line after the message is damaged")
            break
        bad += len(line) + 1
    return Tail(trailer, facts, history, position, torn=True)


def _parse_trailer(fields: list[bytes]) -> Trailer:
    kind, octets, lines, digest, flags, head_crc = fields
    if kind != b"end":
        raise BrokenRecord("its message has no end mark")
    return Trailer(
        int(octets), int(lines), digest.decode("ascii"), flags.decode("ascii"), int(head_crc, 16)
    )


def _parse_outcomes(fields: list[bytes], count: int) -> list[tuple[int, Outcome]]:
    _, attempt, who, when, what, status, mta, command, diagnostic, reason = fields
    at = float(when)
    action = _from_text(what)
    if action not in _ACTIONS or not 0 <= at <= _LAST_TIME:
        raise BrokenRecord("an outcome is not one of ours")
    return [
        (
            int(attempt),
            Outcome(
                index,
                action,
                _from_text(status),
                _from_text(reason),
                remote_mta=_from_text(mta),
                diagnostic=_from_text(diagnostic),
                command=_from_text(command),
                at=at,
            ),
        )
        for index in parse_ranges(who, count)
    ]


def _parse_requeue(fields: list[bytes], count: int) -> Requeue:
    _, when, who = fields
    at = float(when)
    if not 0 <= at <= _LAST_TIME:
        raise BrokenRecord("a requeue line is not one of ours")
    return Requeue(at, parse_ranges(who, count))


def is_about(note: str, recipients: "Iterable[int]", count: int) -> bool:
    """Whether the report of this note tells of one of ``recipients``; ``count`` is the number of the message's.

    A note is a word and the recipients by index or range, as ``delivery.bounce`` writes it.  Raises BrokenRecord.
    """
    try:
        told = parse_ranges(note.partition(" ")[2].encode("ascii"), count)
    except ValueError as exc:
        raise BrokenRecord("a report names no recipients") from exc
    return not set(recipients).isdisjoint(told)


def head_crc(head: bytes) -> int:
    """The checksum of the envelope that stands in the trailer."""
    return binascii.crc32(head)
