"""One header field made fit for a server: no octets above 127 where that can be helped, no line over LINE_LIMIT.

    octets above 127 in        become
    unstructured text          RFC 2047 encoded words, one row for each row of such words; the rest stays
    names and comments of      encoded words, if all of the field parses, its addresses are ASCII and it
    From, To and their kin     has no group
    a parameter of Content-    RFC 2231 "name*=utf-8''%C3%A4", but for a boundary
    Type or -Disposition
    any other structured       stay as they are: nothing there has a 7-bit form that means the same
    field, an address          (an address needs SMTPUTF8).  Postfix and Sendmail pass all of them

What is not UTF-8 is called ISO-8859-1 in encoded words, as ``address.quote_phrase`` does for names, and in parameters.
A field is unstructured unless it is known not to be: unknown ones are (RFC 5322 section 3.6.8).

A line over LINE_LIMIT is folded where it has white space, which unfolding gives back as it was (RFC 5322 section 2.2.3).
What has none for so long becomes encoded words in an unstructured field and stays in a structured one.

Never: a field that is fit already is not touched, and none is added or removed.

Source: RFC 5322 sections 2.1.1, 2.2.3 and 3.6, RFC 2047 section 5, RFC 2231 section 4.
"""

from minisend.address import AddressError, encoded_words, parse_list, quote_phrase
from minisend.message.header import Field
from minisend.message.mime import parameter_value, parameters

# Octets of a line without its end (RFC 5322 section 2.1.1, RFC 5321 section 4.5.3.1.6).
LINE_LIMIT = 998
# What is folded is folded to this: RFC 2047 section 2 asks it of lines with encoded words.
_WIDTH = 76

_MAILBOXES = frozenset({
    b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc", b"resent-from", b"resent-sender", b"resent-reply-to",
    b"resent-to", b"resent-cc", b"resent-bcc", b"errors-to", b"return-receipt-to", b"disposition-notification-to",
    b"mail-followup-to", b"mail-reply-to", b"x-original-from",
})  # fmt: skip
_PARAMETERS = (b"content-type", b"content-disposition")
_STRUCTURED = frozenset({
    b"", b"date", b"resent-date", b"message-id", b"resent-message-id", b"in-reply-to", b"references", b"received",
    b"return-path", b"delivered-to", b"x-original-to", b"envelope-to", b"mime-version", b"content-transfer-encoding", b"content-id",
    b"content-language", b"content-location", b"content-base", b"content-md5", b"content-features", b"content-duration",
    b"dkim-signature", b"domainkey-signature", b"authentication-results", b"received-spf", b"auto-submitted", b"autocrypt",
    b"list-id", b"list-help", b"list-unsubscribe", b"list-unsubscribe-post", b"list-subscribe", b"list-post",
    b"list-owner", b"list-archive", b"expires", b"expiry-date", b"reply-by", b"face", b"x-face", b"newsgroups", b"path",
    b"followup-to", b"archived-at", b"require-recipient-valid-since", b"tls-required", b"tls-report-domain", b"bimi-selector",
})  # fmt: skip
# RFC 2231 section 7, attribute-char.
_ATTRIBUTE = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$&+-.^_`{|}~"


def fit(field: Field, *, seven_bit: bool) -> bytes:
    """The field as it may be sent, LF line ends, with its last; ``seven_bit``: octets above 127 may not.

    Only in the cases that the table above leaves as they are is the result not what was asked for.
    """
    raw, name = field.raw, field.name.lower()
    free = (
        name not in _STRUCTURED
        and name not in _MAILBOXES
        and name not in _PARAMETERS
        and not name.startswith(b"arc-")
    )
    if seven_bit and not raw.isascii():
        if name in _MAILBOXES:
            raw = _mailboxes(raw)
        elif name in _PARAMETERS:
            raw = _parameters(raw)
        elif free:
            raw = _text(raw, LINE_LIMIT)
    if _too_long(raw):
        raw = b"".join(
            fold(line) if len(line) > LINE_LIMIT else line for line in raw.splitlines(keepends=True)
        )
        if free and _too_long(raw):
            raw = _text(raw, _WIDTH)
    return raw


def fold(line: bytes) -> bytes:
    """The line, or the unfolded field, with its end, in lines of at most _WIDTH octets where its white space allows it.

    White space at its end goes, so that no line is made that has nothing else: some take such a line for the end of the header.
    """
    line = line.rstrip()
    lines: list[bytes] = []
    start = 0
    while len(line) - start > _WIDTH:
        # A line begins with white space but the first; the next one begins at a run of it after a word.
        word = start
        while line[word : word + 1] in (b" ", b"\t"):
            word += 1
        at = max(
            line.rfind(b" ", word, start + _WIDTH + 1), line.rfind(b"\t", word, start + _WIDTH + 1)
        )
        if at < 0:
            ends = [end for end in (line.find(b" ", word), line.find(b"\t", word)) if end >= 0]
            if not ends:
                break
            at = min(ends)
        while line[at - 1 : at] in (b" ", b"\t"):
            at -= 1
        lines.append(line[start:at])
        start = at
    lines.append(line[start:])
    return b"\n".join(lines) + b"\n"


def _too_long(raw: bytes) -> bool:
    return len(raw) > LINE_LIMIT and max(map(len, raw.split(b"\n"))) > LINE_LIMIT


def _value(raw: bytes) -> tuple[bytes, bytes]:
    """The name with its colon, and the value unfolded."""
    name, colon, value = raw.replace(b"\n", b"").partition(b":")
    return name + colon, value


def _text(raw: bytes, longest: int) -> bytes:
    """An unstructured field with each word that is not ASCII or longer than ``longest`` in encoded words."""
    import re

    name, value = _value(raw)
    # Words and the white space between them in turn.
    pieces = re.split(rb"([ \t]+)", value.strip())
    plain = [word.isascii() and len(word) <= longest for word in pieces[::2]]
    out: list[bytes] = []
    at = 0
    while at < len(plain):
        if plain[at]:
            out.append(pieces[2 * at])
            end = at + 1
        else:
            end = plain.index(True, at) if True in plain[at:] else len(plain)
            first, last = 2 * at, 2 * end - 1
            # White space between two encoded words is not shown (RFC 2047 section 6.2): beside one
            # that is there already it goes inside.
            if at and _is_encoded(pieces[first - 2]):
                first -= 1
            if end < len(plain) and _is_encoded(pieces[2 * end]):
                last += 1
            out.append(encoded_words(b"".join(pieces[first:last])).replace(b"\n", b""))
        if end < len(plain):
            out.append(pieces[2 * end - 1])
        at = end
    return fold(name + b" " + b"".join(out))


def _is_encoded(word: bytes) -> bool:
    return word.startswith(b"=?") and word.endswith(b"?=")


def _mailboxes(raw: bytes) -> bytes:
    """A field of addresses with its names in encoded words; as it is where that cannot be done for all."""
    name, value = _value(raw)
    try:
        mailboxes = parse_list(value)
    except AddressError:
        return raw
    members = []
    for mailbox in mailboxes:
        address = value[mailbox.start : mailbox.end]
        if not address.isascii():
            return raw
        phrase = quote_phrase(mailbox.name).replace(b"\n", b"")
        members.append(phrase + b" <" + address + b">" if phrase else address)
    if b":" in value:
        return raw
    return fold(name + b" " + b", ".join(members))


def _parameters(raw: bytes) -> bytes:
    """A field with its parameters that are not ASCII in the form of RFC 2231."""
    name, value = _value(raw)
    first, *rest = parameters(value)
    parts = [name + first]
    for part in rest:
        attribute, equals, text = part.partition(b"=")
        attribute = attribute.strip()
        if (
            part.isascii()
            or not equals
            or not attribute.isascii()
            or b"*" in attribute
            or attribute.lower() == b"boundary"
        ):
            parts.append(part)
            continue
        octets = parameter_value(text)
        try:
            octets.decode()
            charset = b"utf-8"
        except UnicodeDecodeError:
            charset = b"iso-8859-1"
        coded = b"".join(
            b"%c" % octet if octet in _ATTRIBUTE else b"%%%02X" % octet for octet in octets
        )
        parts.append(b" " + attribute + b"*=" + charset + b"''" + coded)
    return fold(b";".join(parts))
