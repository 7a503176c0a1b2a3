"""Compares a message as it was given to sendmail with the message as a server got it.  Pure.

Written against what was promised, not against the code that does it: it shares none with ``minisend.message``.
What may differ, and nothing else:

    line ends        LF, CRLF and CR before; CRLF after; a last line without one gets it; NULs go
    "From " lines    mailbox separators before the header go
    Bcc              and Resent-Bcc go; so do Return-Path and Content-Length
    empty fields     Date, From, Message-ID without a value go, to be added with one; so with Resent- before them
    addresses        a bare one in an address field gets a domain
    the header       may get fields in addition, anywhere; those it had keep their order and their octets
    long lines       of more than 998 octets: then the parts of the message are encoded, and compared decoded
"""

import re
from dataclasses import dataclass, field

_LONG_LINE = re.compile(rb"[^\r\n]{999}")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
_BLIND = (b"bcc", b"resent-bcc")
_REMOVED = (*_BLIND, b"return-path", b"content-length")
_REMOVED_EMPTY = frozenset(
    prefix + name for prefix in (b"", b"resent-") for name in (b"date", b"from", b"message-id")
)
_ADDRESS_FIELDS = frozenset(
    prefix + name
    for prefix in (b"", b"resent-")
    for name in (b"from", b"sender", b"reply-to", b"to", b"cc")
)


@dataclass(slots=True)
class Comparison:
    """What was found.

    ``problems``  differences that must not be; empty when what arrived is what was sent
    ``kept``      how many header fields arrived as they were
    ``added``     names of fields that were not in the header before, as they are spelt
    ``removed``   names of fields that went, as they had to
    """

    problems: list[str] = field(default_factory=list)
    kept: int = 0
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def compare(sent: bytes, arrived: bytes, domain: bytes) -> Comparison:
    """Compare the octets given to sendmail with those that a server took.

    ``domain``  what a bare address gets
    """
    result = Comparison()
    if re.search(rb"\r(?!\n)|(?<!\r)\n", arrived):
        result.problems.append("a line that arrived does not end with CRLF")
    if b"\0" in arrived:
        result.problems.append("a NUL arrived")
    fields_before, body_before = split(_lines_end_with_lf(sent))
    fields_after, body_after = split(arrived.replace(b"\r\n", b"\n"))
    _compare_fields(fields_before, fields_after, domain, result)
    if body_before != body_after and not (
        _LONG_LINE.search(sent) and _parts(sent) == _parts(arrived)
    ):
        result.problems.append(_first_difference(body_before, body_after))
    return result


def split(message: bytes) -> tuple[list[bytes], bytes]:
    """Header fields, each with its folding and without its last line end, and the body; line ends are LF.

    The header ends at the first empty line, which belongs to neither, or before the first line that is no field.
    """
    fields: list[bytes] = []
    position = 0
    while position < len(message):
        end = message.find(b"\n", position)
        end = len(message) if end < 0 else end
        line = message[position:end]
        if not line:
            position = end + 1
            break
        if fields and line[:1] in (b" ", b"\t"):
            fields[-1] += b"\n" + line
        elif _FIELD.match(line):
            fields.append(line)
        elif fields or not line.startswith((b"From ", b">From ")):
            break
        position = end + 1
    return fields, message[position:]


def _parts(message: bytes) -> list[bytes]:
    """What the leaves of the message hold, decoded."""
    from email import message_from_bytes

    fields, body = split(_lines_end_with_lf(message))
    parsed = message_from_bytes(b"\n".join([*fields, b"", body]))
    payloads = [part.get_payload(decode=True) for part in parsed.walk() if not part.is_multipart()]
    return [_lines_end_with_lf(each) for each in payloads if isinstance(each, bytes)]


def _lines_end_with_lf(octets: bytes) -> bytes:
    octets = octets.replace(b"\0", b"").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return octets if octets.endswith(b"\n") or not octets else octets + b"\n"


def _name(whole: bytes) -> bytes:
    return whole.partition(b":")[0].strip()


def _compare_fields(
    before: list[bytes], after: list[bytes], domain: bytes, result: Comparison
) -> None:
    awaited = []
    for whole in before:
        name = _name(whole).lower()
        if name in _REMOVED or (name in _REMOVED_EMPTY and not whole.partition(b":")[2].strip()):
            result.removed.append(_name(whole).decode("ascii"))
        else:
            awaited.append(whole)
    for whole in after:
        if _name(whole).lower() in _BLIND:
            result.problems.append(f"{_name(whole).decode('ascii')} arrived")
        elif result.kept < len(awaited) and _is_same(awaited[result.kept], whole, domain):
            result.kept += 1
        else:
            result.added.append(_name(whole).decode("ascii"))
    if result.kept < len(awaited):
        missing = _name(awaited[result.kept]).decode("ascii")
        result.problems.append(f"the field {missing} did not arrive as it was sent")


def _is_same(before: bytes, after: bytes, domain: bytes) -> bool:
    if before == after:
        return True
    suffix = b"@" + domain
    return _name(before).lower() in _ADDRESS_FIELDS and before.replace(
        suffix, b""
    ) == after.replace(suffix, b"")


def _first_difference(before: bytes, after: bytes) -> str:
    lines_before = before.split(b"\n")
    lines_after = after.split(b"\n")
    for number, (sent, got) in enumerate(zip(lines_before, lines_after, strict=False), 1):
        if sent != got:
            return f"line {number} of the body differs: sent {sent[:60]!r}, arrived {got[:60]!r}"
    return f"the body has {len(lines_after) - 1} lines in place of {len(lines_before) - 1}"
