"""A delivery status notification: what became of a message, in words for a person and in fields for a program.

    part                       holds
    text/plain                 who, why in the words of the server, and what the reader can do about it
    message/delivery-status    the same as fields, one group for the message and one for each recipient
    message/rfc822             the message as it went out; else text/rfc822-headers, its header alone

    returned          when
    the header        the report tells of no failure (RFC 3461 section 4.3), or RET=HDRS, or the message was refused
                      for its size, as the report would be with it; or without RET beyond RETURN_LIMIT; or the message
                      is one that ``convert`` must not touch and a server may have to, such as a signed one with 8-bit
                      text: the report would be refused where the message was
    all of it         RET=FULL, or without RET up to RETURN_LIMIT

Nothing that a server said or a message holds can add a field or a part: text is made one line and folded, and the
boundary holds a digest of what is returned, which no message can contain.

Never: no clock, no queue, no decision who is told (``delivery.bounce``); no Bcc, as the header returned is the
completed one; no field but To with octets above 127.

Source: RFC 3461 (NOTIFY, RET, ENVID), RFC 6522 (multipart/report), RFC 3464 (fields), RFC 3834 (Auto-Submitted),
RFC 6533 section 3 (addresses that are not ASCII).
"""

import binascii

from minisend.address import qualify
from minisend.envelope import DELIVERED, Envelope, Facts, Outcome
from minisend.message.date import format_date
from minisend.message.header import find, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# What a report tells: the keywords of NOTIFY, RFC 3461 section 4.1.
FAILURE = "failure"
DELAY = "delay"
SUCCESS = "success"

# Postfix's bounce_size_limit.
RETURN_LIMIT = 50_000

_WIDTH = 76
# RFC 5322 section 2.1.1 allows 998 octets a line; a word, with what stands before it, stays below.
_LONGEST_WORD = 900
_TOO_BIG = ("2.3", "3.4")
_NO_ANSWER = "4.1"

_SUBJECTS = {
    FAILURE: b"Undelivered Mail Returned to Sender",
    DELAY: b"Delayed Mail (still being retried)",
    SUCCESS: b"Successful Mail Delivery Report",
}
_SUBJECT_OF_DOUBLE = b"Undelivered Mail (its sender cannot be told)"

# Subject and detail of a status (RFC 3463), or the subject alone: what it means, what the sender can do.
_MEANINGS = {
    "1": (
        "There is no such address.",
        "Check the address for typing errors, and send the message again to the right one.",
    ),
    "1.2": (
        "The domain of the address does not exist or takes no mail.",
        "Check what stands after the @ for typing errors, and send the message again to the right address.",
    ),
    "1.7": (
        "Your own address was refused, not the recipient's.",
        "Check the sender address that your program uses, or ask the administrator of this system.",
    ),
    "2": (
        "The mailbox takes no mail.",
        "Reach the recipient in another way, and tell them of this report.",
    ),
    "2.2": (
        "The mailbox is full.",
        "Send the message again later, or reach the recipient in another way.",
    ),
    "2.3": (
        "The message is too large.",
        "Send it in smaller parts, or send a link in place of what is attached.",
    ),
    "3": (
        "The recipient's mail system could not take the message.",
        "Send it again later, or reach the recipient in another way.",
    ),
    "4": (
        "The recipient's mail system could not be reached.",
        "Check the address for typing errors; if it is right, send the message again later.",
    ),
    "4.6": (
        "The message went round in circles between mail systems.",
        "Show this report to the administrator of this system.",
    ),
    "6": (
        "The form or the content of the message was refused.",
        "Send it in a simpler form, for example as plain text without attachments.",
    ),
    "6.7": (
        "The address has letters that are not ASCII, which a server on the way does not take.",
        "Ask the recipient for an address in ASCII letters.",
    ),
    "7": (
        "A rule of the recipient's mail system refused the message.",
        "Change what the server complains of; if it does not say, show this report to the recipient or to the "
        "administrator of their mail system.",
    ),
    "7.8": (
        "This system could not log in to its mail server.",
        "Show this report to the administrator of this system, then send the message again.",
    ),
    "": (
        "The recipient's mail system refused the message.",
        "Show this report to the recipient or to the administrator of their mail system.",
    ),
}
_SAME_MEANING = {
    "1.10": "1.2",
    "4.4": "1.2",
    "1.8": "1.7",
    "3.4": "2.3",
    "7.9": "7.8",
    "7.11": "7.8",
}


class Original:
    """The message that a report is about, as it went out.

    ``header``     completed, LF line ends, with the empty line that ends it
    ``body``       gives all octets after it anew at each call, LF line ends, no CR or NUL
    ``size``       octets of the message, as near as is known
    ``eight_bit``  it has octets above 127, in the header or after it
    ``long_line``  it has lines of more than 998 octets
    """

    __slots__ = ("body", "eight_bit", "envelope", "facts", "header", "long_line", "size")

    def __init__(
        self,
        envelope: Envelope,
        facts: Facts,
        header: bytes,
        body: "Callable[[], Iterable[bytes]]",
        *,
        size: int,
        eight_bit: bool,
        long_line: bool = False,
    ) -> None:
        self.envelope = envelope
        self.facts = facts
        self.header = header
        self.body = body
        self.size = size
        self.eight_bit = eight_bit
        self.long_line = long_line

    def octets(self) -> "Iterator[bytes]":
        """Header and body."""
        yield self.header
        yield from self.body()

    def is_sealed(self) -> bool:
        """Whether a server may need it in another form, and it has none; if it may, all of it is read."""
        if not self.eight_bit and not self.long_line:
            return False
        from minisend.message import convert

        try:
            convert.plan(self.octets, convert.SEVEN_BIT)
        except convert.CannotConvert:
            return True
        return False


def build(
    event: str,
    outcomes: "list[Outcome]",
    original: Original,
    *,
    queue_id: str,
    to: bytes,
    at: float,
    retry_until: float = 0.0,
) -> "Iterator[bytes]":
    """The report as a message: header first, LF line ends, in pieces; a returned body is never held whole.

    ``event``        FAILURE, DELAY or SUCCESS
    ``outcomes``     one for each recipient it tells of, never none
    ``queue_id``     of the report: it makes the Message-ID
    ``to``           the sender, bare or qualified, no brackets; where the message has none, who is told in its place
    ``at``           the moment of the report, seconds since the epoch
    ``retry_until``  for DELAY: when the message is given up

    What ``original.body`` raises goes through.
    """
    whole = _returns_all(event, outcomes, original)
    returned = original.header if whole else original.header.rstrip(b"\n") + b"\n"
    eight_bit = original.eight_bit if whole else not returned.isascii()
    boundary = _boundary(queue_id, returned, original.body() if whole else ())
    encoding = b"Content-Transfer-Encoding: 8bit\n" if eight_bit else b""
    delimiter = b"\n--%b\n" % boundary
    yield b"".join(
        (
            _header(event, original, queue_id, to, at),
            b'Content-Type: multipart/report; report-type=delivery-status;\n\tboundary="%b"\n'
            % boundary,
            encoding,
            delimiter,
            b"Content-Description: Notification\n",
            text_part(_text(event, outcomes, original, whole, retry_until)),
            delimiter,
            b"Content-Description: Delivery report\nContent-Type: message/delivery-status\n\n",
            _status_fields(event, outcomes, original, retry_until),
            delimiter,
            b"Content-Description: %b\nContent-Type: %b\n"
            % (
                (b"Message", b"message/rfc822")
                if whole
                else (b"Message header", b"text/rfc822-headers")
            ),
            encoding,
            b"\n",
        )
    )
    yield returned
    if whole:
        yield from original.body()
    yield b"\n--%b--\n" % boundary


def _returns_all(event: str, outcomes: "list[Outcome]", original: Original) -> bool:
    ret = original.envelope.ret.upper()
    if event != FAILURE or ret == "HDRS" or any(_detail(o) in _TOO_BIG for o in outcomes):
        return False
    return (ret == "FULL" or original.size <= RETURN_LIMIT) and not original.is_sealed()


def _boundary(queue_id: str, header: bytes, body: "Iterable[bytes]") -> bytes:
    """A boundary that what it bounds does not contain: who wrote that cannot have known its digest."""
    from hashlib import blake2b

    digest = blake2b(header, digest_size=16)
    for piece in body:
        digest.update(piece)
    return b"%b.%b" % (queue_id.encode("ascii"), digest.hexdigest().encode("ascii"))


# -- the header


def _header(event: str, original: Original, queue_id: str, to: bytes, at: float) -> bytes:
    facts = original.facts
    double = event == FAILURE and not original.envelope.sender
    lines = [
        b"From: Mail Delivery System <MAILER-DAEMON@%b>" % facts.mail_domain,
        b"To: " + _one_line(_decoded(qualify(to, facts.mail_domain))).encode(),
        b"Subject: " + (_SUBJECT_OF_DOUBLE if double else _SUBJECTS[event]),
        b"Date: " + format_date(at, original.envelope.zone),
        b"Message-ID: <%b@%b>" % (queue_id.encode("ascii"), facts.hostname),
    ]
    message_id = _message_id(original.header)
    if message_id:
        lines += (b"In-Reply-To: " + message_id, b"References: " + message_id)
    lines += (b"Auto-Submitted: auto-replied", b"MIME-Version: 1.0", b"")
    return b"\n".join(lines)


def _message_id(header: bytes) -> bytes:
    """The message's own Message-ID with its brackets, ``b""`` if it has none that another field can hold."""
    for field in find(split(header, complete=True).fields, b"message-id"):
        value = field.value.strip()
        if (
            value.startswith(b"<")
            and value.endswith(b">")
            and len(value) <= _LONGEST_WORD
            and value.isascii()
            and value.decode("ascii").isprintable()
            and b" " not in value
        ):
            return value
    return b""


# -- for a person


def text_part(text: str) -> bytes:
    """Header and content of the first part; 7-bit whatever the text, so that it can go everywhere."""
    octets = text.encode()
    if octets.isascii():
        return b"Content-Type: text/plain; charset=us-ascii\n\n" + octets
    return (
        b"Content-Type: text/plain; charset=utf-8\n"
        b"Content-Transfer-Encoding: quoted-printable\n\n" + binascii.b2a_qp(octets)
    )


def _text(
    event: str, outcomes: "list[Outcome]", original: Original, whole: bool, retry_until: float
) -> str:
    envelope, facts = original.envelope, original.facts
    several = "s" if len(outcomes) > 1 else ""
    mail_system = f"This is the mail system at host {facts.hostname.decode('ascii', 'replace')}."
    if event == FAILURE and not envelope.sender:
        opening = (
            f"A message could not be delivered to the recipient{several} below, and it has no "
            "sender who could be told. You get this report as the administrator of this system."
        )
    elif event == FAILURE:
        opening = f"Your message could not be delivered to the recipient{several} below."
    elif event == DELAY:
        opening = (
            f"Your message has not been delivered to the recipient{several} below yet. You need "
            "not send it again: it will be tried until "
            f"{format_date(retry_until, envelope.zone).decode('ascii')}."
        )
    else:
        opening = f"Your message has been delivered to the recipient{several} below."
    lines = [mail_system, "", *wrapped(opening, "")]

    # A server that refuses a message for all its recipients is quoted once.
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        said = (outcome.action, outcome.status, outcome.reason, outcome.diagnostic)
        groups.setdefault((*said, outcome.remote_mta), []).append(outcome)
    for group in groups.values():
        lines.append("")
        for outcome in group:
            address = qualify(envelope.recipients[outcome.recipient].address, facts.mail_domain)
            lines += wrapped(f"<{_decoded(address)}>", "")
        lines += _explanation(event, group[0])

    lines.append("")
    if len(outcomes) < len(envelope.recipients):
        lines += wrapped("This report says nothing of recipients who are not named in it.", "")
    part = "message" if whole else "header of the message"
    lines += (f"The {part} follows at the end of this report.", "")
    return "\n".join(lines)


def _explanation(event: str, outcome: Outcome) -> "list[str]":
    """What is told below the addresses that share an outcome."""
    indent = "    "
    if event == SUCCESS:
        text = (
            "It is in the mailbox."
            if outcome.action == DELIVERED
            else f"It was handed over to {outcome.remote_mta or 'the next mail system'}, which will "
            "not confirm that it reached the mailbox. This is the last report about it."
        )
        return wrapped(text, indent)
    detail = _detail(outcome)
    detail = _SAME_MEANING.get(detail, detail)
    meaning, remedy = (
        _MEANINGS.get(detail) or _MEANINGS.get(detail.partition(".")[0]) or _MEANINGS[""]
    )
    lines = []
    if event == FAILURE and outcome.status.startswith("4"):
        lines += wrapped("It was tried until its time in the queue was over.", indent)
    if event == FAILURE:
        lines += wrapped(meaning, indent)
    server_said = outcome.diagnostic.partition(";")[2].strip()
    if server_said:
        where = f" in reply to {outcome.command}" if outcome.command else ""
        lines += wrapped(f"The server {outcome.remote_mta or 'asked'} said{where}:", indent)
        lines += wrapped(server_said, 2 * indent)
    else:
        lines += wrapped("The reason:", indent) + wrapped(outcome.reason, 2 * indent)
    if event == FAILURE:
        lines += wrapped(f"What you can do: {remedy}", indent)
    return lines


# -- for a program


def _status_fields(
    event: str, outcomes: "list[Outcome]", original: Original, retry_until: float
) -> bytes:
    """The content of message/delivery-status, RFC 3464 sections 2.2 and 2.3."""
    envelope, facts = original.envelope, original.facts
    lines = [b"Reporting-MTA: dns; " + facts.hostname]
    if envelope.envid:
        lines.append(_field("Original-Envelope-Id", envelope.envid))
    lines.append(b"Arrival-Date: " + format_date(envelope.arrived, envelope.zone))
    for outcome in outcomes:
        recipient = envelope.recipients[outcome.recipient]
        lines.append(b"")
        if recipient.original:
            lines.append(b"Original-Recipient: " + _typed(recipient.original))
        lines += (
            b"Final-Recipient: " + _typed(qualify(recipient.address, facts.mail_domain)),
            _field("Action", outcome.action),
            _field("Status", outcome.status),
        )
        name = _name_of(outcome.remote_mta)
        # Not of a server that was never reached (RFC 3464 section 2.3.5): it had no part in this.
        if name and (outcome.diagnostic or _detail(outcome) != _NO_ANSWER):
            lines.append(_field("Remote-MTA", f"dns; {name}"))
        if outcome.diagnostic:
            lines.append(_field("Diagnostic-Code", outcome.diagnostic))
        elif event != SUCCESS:
            # As Postfix does where no server has said anything.
            lines.append(_field("Diagnostic-Code", f"x-minisend; {outcome.reason}"))
        lines.append(b"Last-Attempt-Date: " + format_date(outcome.at, envelope.zone))
        if event == DELAY:
            lines.append(b"Will-Retry-Until: " + format_date(retry_until, envelope.zone))
    lines.append(b"")
    return b"\n".join(lines)


def _field(name: str, value: str) -> bytes:
    """One field in ASCII, folded, without its last line end."""
    lines = wrapped(f"{name}: {value}", " ", first="")
    return "\n".join(lines).encode("ascii", "backslashreplace")


def _typed(address: bytes) -> bytes:
    r"""An address with its type; one that is not ASCII as RFC 6533's utf-8-addr-xtext, ``\x{F6}`` for ö."""
    if address.isascii():
        kind, text = b"rfc822; ", _one_line(address.decode("ascii"))
    else:
        kind = b"utf-8; "
        text = "".join(
            c if "!" <= c <= "~" and c not in "\\+=" else f"\\x{{{ord(c):02X}}}"
            for c in address.decode("utf-8", "replace")
        )
    pieces = (text[at : at + _LONGEST_WORD] for at in range(0, len(text), _LONGEST_WORD))
    return kind + "\n ".join(pieces).encode("ascii")


def _name_of(remote_mta: str) -> str:
    """The host of "host[address]:port": its name, else its address as a literal."""
    name, bracket, rest = remote_mta.partition("[")
    return name or (f"[{rest.partition(']')[0]}]" if bracket else "")


def _detail(outcome: Outcome) -> str:
    """Subject and detail of the status: "1.1" of "5.1.1"."""
    return outcome.status.partition(".")[2]


# -- text


def _decoded(address: bytes) -> str:
    """The text of an address; an octet that is not UTF-8 as ``\\xHH``."""
    return address.decode("utf-8", "backslashreplace")


def _one_line(text: str) -> str:
    """``text`` with white space as spaces and what does not print escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def wrapped(text: str, indent: str, *, first: str | None = None) -> "list[str]":
    """Lines of about _WIDTH characters, each behind ``indent``, the first behind ``first`` if that is given."""
    lines = []
    line = indent if first is None else first
    empty = True
    for word in _one_line(text).split():
        for at in range(0, len(word), _LONGEST_WORD):
            piece = word[at : at + _LONGEST_WORD]
            if not empty and len(line) + 1 + len(piece) > _WIDTH:
                lines.append(line)
                line = indent
                empty = True
            line += piece if empty else " " + piece
            empty = False
    lines.append(line)
    return lines
