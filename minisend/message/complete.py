"""The header as it goes out: what is missing added, what is nobody's business removed.

    field                                what is done
    Received                             ours on top, always
    Bcc, Resent-Bcc                      removed, with -t and without
    Return-Path, Content-Length          removed: a mailbox writes them when it stores the message
    Date, From, Message-ID               added when none has a value; one without a value is removed
    Resent-Date, -From, -Message-ID      the same, if there is any Resent- field; above the first of them
    From, Sender, Reply-To, To, Cc       a bare name gets @mail_domain in place, if the field parses
    Resent-From, -Sender, -To, -Cc       the same
    all other octets                     kept: order, spelling, folding, repeated fields (also a second
                                         From, as Postfix and Exim pass it), 8-bit octets

Nothing is asked of a clock, the system or a configuration here: the same message with the same
``Facts`` gives the same octets at every attempt and in its DSN.

Never: no To is added, since the recipients of the envelope need not be shown to each other.

Source: RFC 5322 sections 3.6 and 3.6.6, RFC 5321 section 4.4 (Received), RFC 6409 section 8.
"""

import time

from minisend.address import (
    AddressError,
    check,
    parse_list,
    qualify,
    quote_local,
    quote_phrase,
    split,
)
from minisend.envelope import DROP, Envelope, Facts
from minisend.kept import Kept
from minisend.message.date import format_date
from minisend.message.header import Field, Header

_REMOVED = frozenset((b"bcc", b"resent-bcc", b"return-path", b"content-length"))
_ADDED = ((b"Date", b"date"), (b"From", b"from"), (b"Message-ID", b"message-id"))
_REQUIRED = frozenset(resent + name for resent in (b"", b"resent-") for _, name in _ADDED)
_QUALIFIED = frozenset((
    b"from", b"sender", b"reply-to", b"to", b"cc",
    b"resent-from", b"resent-sender", b"resent-to", b"resent-cc",
))  # fmt: skip


_KNOWN = _REMOVED | _REQUIRED | _QUALIFIED
# All but what makes an address list more than mailboxes between commas.
_PLAIN = bytes(octet for octet in range(256) if octet not in b'"():;[]\\')


def facts_for(envelope: Envelope, hostname: bytes, mail_domain: bytes) -> Facts:
    """The facts of a first attempt; later ones take those that the queue file recorded.

    The Message-ID is ``<YYYYMMDDhhmmss.QUEUEID@hostname>`` with the time of arrival in UTC.
    """
    return Facts(
        hostname,
        mail_domain,
        _from_field(envelope, mail_domain),
        b"<%b.%b@%b>"
        % (_stamps[int(envelope.arrived),], envelope.queue_id.encode("ascii"), hostname),
    )


def complete(header: Header, envelope: Envelope, facts: Facts) -> bytes:
    """The header as it goes out, LF line ends, with the empty line that ends it.

    The body follows it from ``header.body`` on.  Of a header that is too long to be read nothing
    is known: then the result is the Received field alone, and all of the message follows it.
    """
    date = format_date(envelope.arrived, envelope.zone)
    received = _received(envelope, facts, date)
    if header.too_long:
        return received

    present: set[bytes] = set()
    kept: list[bytes] = []
    resent_at = -1  # where the first Resent- field stands, or stood
    for field in header.fields:
        name = field.name.lower()
        if resent_at < 0 and name.startswith(b"resent-"):
            resent_at = len(kept)
        if name not in _KNOWN:
            kept.append(field.raw)
            continue
        if name in _REMOVED:
            continue
        if name in _REQUIRED:
            if field.empty:
                continue
            present.add(name)
        kept.append(_qualified(field, facts.mail_domain) if name in _QUALIFIED else field.raw)

    values = (date, facts.from_field, facts.message_id)
    kept += [
        b"%b: %b\n" % (spelling, value)
        for (spelling, name), value in zip(_ADDED, values, strict=True)
        if name not in present
    ]
    if resent_at >= 0:
        kept[resent_at:resent_at] = [
            b"Resent-%b: %b\n" % (spelling, value)
            for (spelling, name), value in zip(_ADDED, values, strict=True)
            if b"resent-" + name not in present
        ]
    return b"".join([received, *kept, b"\n"])


def _received(envelope: Envelope, facts: Facts, date: bytes) -> bytes:
    """Our trace line, in Postfix's form: there is no host that the message came from.

    A message of our own making (uid below 0) names no user.  Of one that came by the drop nobody knows whose it is:
    the owner of a file there can be forged.
    """
    return b"Received: by %b (%b)\n\tid %b; %b\n" % (
        facts.hostname,
        _origins[envelope.uid, envelope.login, envelope.channel],
        envelope.queue_id.encode("ascii"),
        date,
    )


def _origin(uid: int, login: bytes, channel: str) -> bytes:
    if uid < 0:
        return b"minisend"
    about = b""
    if channel == DROP:
        about = b" (unverified)"
    # A login that is no plain word would need quoting here, and the number says as much.
    elif login.isascii() and quote_local(login) == login:
        about = b" (%b)" % login
    return b"minisend, from userid %d%b" % (uid, about)


def _stamp(seconds: int) -> bytes:
    return b"%04d%02d%02d%02d%02d%02d" % time.gmtime(seconds)[:6]


def _author(sender: bytes, login: bytes, uid: int, mail_domain: bytes) -> bytes:
    address = qualify(sender or quote_local(login or b"uid%d" % uid), mail_domain)
    try:
        check(address)
    except AddressError:
        return qualify(b"uid%d" % uid, mail_domain)
    return address


_stamps: "Kept[bytes]" = Kept(_stamp, 64)
_origins: "Kept[bytes]" = Kept(_origin, 256)
_authors: "Kept[bytes]" = Kept(_author, 256)


def _from_field(envelope: Envelope, mail_domain: bytes) -> bytes:
    """The value of the From field for a message that has none.

    The reverse-path, else the login, else the uid; the full name goes with each, as in Postfix.
    """
    address = _authors[envelope.sender, envelope.login, envelope.uid, mail_domain]
    name = quote_phrase(envelope.full_name)
    if not name:
        return address
    # RFC 2047 section 2: a line with encoded words has at most 76 octets.
    separator = b" " if len(name) + len(address) < 60 else b"\n "
    return b"%b%b<%b>" % (name, separator, address)


def _qualified(field: Field, mail_domain: bytes) -> bytes:
    """The field, ``@mail_domain`` put after each bare name in it; as it is if it does not parse."""
    value = field.value
    if value.count(b"@") == value.count(b",") + 1 and not value.lstrip(_PLAIN):
        # Nothing but plain mailboxes, each with its domain; or what does not parse.
        return field.raw
    try:
        mailboxes = parse_list(value)
    except AddressError:
        return field.raw
    bare = [mailbox.end for mailbox in mailboxes if not split(mailbox.address)[1]]
    if not bare:
        return field.raw
    parts = [field.raw[: len(field.raw) - len(value) - 1]]
    done = 0
    for end in bare:
        parts += (value[done:end], b"@", mail_domain)
        done = end
    parts += (value[done:], b"\n")
    return b"".join(parts)
