"""A message re-encoded for a server that takes 7-bit octets only, or whose lines are longer than any server must take.

A server without 8BITMIME must not be sent octets above 127 (RFC 6152 section 3), no server must take a line of
more than 998 octets (RFC 5321 section 4.5.3.1.6).  What has them is re-encoded, part by part, and nothing else is:

    part                                    becomes                              its 8bit or binary label
    text/*, message/* not read as message   quoted-printable                     quoted-printable
    any other leaf                          base64 of its octets as they came    base64
    a leaf labelled quoted-printable        its bad lines quoted again           stays
    a leaf labelled base64                  its bad lines cut and cleaned        stays
    multipart/*, message/rfc822             what is in it, one by one            7bit
    multipart/signed, -/encrypted,          CannotConvert                        7bit
    message/partial, -/external-body,
    a multipart without boundary or
    delimiter, an encoding "x-..."
    preamble, epilogue                      "*" for an octet above 127, lines    -
                                            cut off: nobody is meant to read it
    header fields                           see ``message.transport``

Quoted-printable keeps text legible and its lines what they are.  Base64 does not depend on lines: what a caller
put into the message as it is arrives as it is, where Postfix, which has quoted-printable only, makes it three times as large.
A leaf without a Content-Type gets text/plain with utf-8, if it is that, else unknown-8bit (RFC 1428), and a
message MIME-Version.  A Content-Type that is there is the sender's, also without charset.

Two passes: ``plan`` reads all of the message and knows what becomes of each part, or that it cannot be done, before an
octet is sent; ``Conversion.octets`` reads it again.  Held are one block of lines and one octet a part.

DKIM: a message with a DKIM-Signature is converted.  RFC 6376 section 5.3 tells signers to convert before they sign, for
relays do it after; a signature that fails is to be taken for none (section 6.1), not for a forgery, and all content is there.
S/MIME and PGP instead tell the reader that somebody tampered, and PGP/MIME may then show nothing: so those bounce.
A signature of our own is to be made from what this gives.

Never: a part without 8-bit octets and long lines is not touched but for its label, a signed or encrypted one not at all;
what has been converted is not converted again.

Limits: an octet above 127 in an address, and a line without white space in a structured field, stay (``message.transport``).

Source: RFC 6152, RFC 2045 sections 6 and 6.7, RFC 2046, RFC 1847, RFC 3463 section 3.7.
"""

import binascii
import codecs

from minisend.errors import DataError
from minisend.message import transport
from minisend.message.header import Field
from minisend.message.mime import MULTIPART, SEALED, Part, Walker, first_word, line_blocks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# What a message needs.
NOTHING, LINES, SEVEN_BIT = "nothing", "lines", "seven-bit"

# What becomes of a part's body, and, from _CHARSET on, which charset it gets if it names none.
_KEEP, _QUOTE, _BASE64, _QUOTE_AGAIN, _BASE64_AGAIN = range(5)
_CHARSETS = (b"us-ascii", b"utf-8", b"unknown-8bit")
_CHARSET = 8

_LABELS = {_QUOTE: b"quoted-printable", _BASE64: b"base64"}
_SEVEN_BIT_LABEL = b"Content-Transfer-Encoding: 7bit\n"

_BASE64_LINE = 57  # octets, 76 encoded
_ENCODED_LINE = 76
_NOT_BASE64 = bytes(
    octet
    for octet in range(256)
    if octet not in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
)
# RFC 2046 section 5.1.1: no boundary has it, so no line of filler becomes a delimiter.
_STARS = bytes(octet if octet < 128 else ord("*") for octet in range(256))


class CannotConvert(DataError):
    """The message cannot be sent to this server without breaking it: "conversion required but not supported"."""

    status = "5.6.3"


class Conversion:
    """A message that is re-encoded as it is read; from ``plan``."""

    __slots__ = ("_actions", "_octets", "_seven_bit")

    def __init__(
        self, octets: "Callable[[], Iterable[bytes]]", actions: bytes, *, seven_bit: bool
    ) -> None:
        self._octets = octets
        self._actions = actions
        self._seven_bit = seven_bit

    def octets(self) -> "Iterator[bytes]":
        """The message, LF line ends; reads it once more, and raises what that raises."""
        writer = _Writer(self._actions, seven_bit=self._seven_bit)
        for lines, begins in line_blocks(self._octets()):
            writer.walker.feed(lines, begins)
            if written := writer.take():
                yield written
        writer.walker.end()
        if written := writer.take():
            yield written

    def wire_size(self) -> int:
        """Octets with CRLF line ends, exact (RFC 1870); costs the conversion."""
        size = 0
        last = b"\n"
        for piece in self.octets():
            size += len(piece) + piece.count(b"\n")
            last = piece
        return size if last.endswith(b"\n") else size + 2


def needs(header: bytes, *, eight_bit: bool, long_line: bool, eightbitmime: bool) -> str:
    """What a message needs before a server takes it: NOTHING | LINES | SEVEN_BIT; nothing of the body is read.

    ``header``        as it goes out, LF line ends
    ``eight_bit``     header or body has octets above 127
    ``long_line``     a line of the message as it came has more than 998 octets
    ``eightbitmime``  the server offers it
    """
    if eight_bit and not eightbitmime:
        return SEVEN_BIT
    if long_line or max(map(len, header.split(b"\n"))) > transport.LINE_LIMIT:
        return LINES
    return NOTHING


def plan(octets: "Callable[[], Iterable[bytes]]", need: str) -> Conversion | None:
    """How the message is to be converted, None when it can go as it is.

    ``octets``  gives header and body from the first octet on, any pieces, any line ends; called once here and once for
                each ``Conversion.octets``, and must give the same each time
    ``need``    LINES | SEVEN_BIT

    Raises CannotConvert, whose text names the part and why, and what ``octets`` raises.
    """
    survey = _Survey(seven_bit=need == SEVEN_BIT)
    walker = Walker(survey)
    for lines, begins in line_blocks(octets()):
        walker.feed(lines, begins)
    walker.end()
    if not survey.changes:
        return None
    return Conversion(octets, bytes(survey.actions), seven_bit=need == SEVEN_BIT)


class _Survey:
    """Decides: one action a part in ``actions``, and whether anything ``changes`` at all."""

    def __init__(self, *, seven_bit: bool) -> None:
        self.actions = bytearray()
        self.changes = False
        self._seven_bit = seven_bit
        self._part: Part | None = None  # whose content is read
        self._index = 0
        self._bad_filler = False
        self._forget()

    def _forget(self) -> None:
        self._eight_bit = self._long = False
        self._utf8: codecs.IncrementalDecoder | None = None
        self._charset = 0

    def header(self, part: Part) -> None:
        self._settle()
        self._part, self._index = part, len(self.actions)
        self.actions.append(_KEEP)
        self._bad_filler = False
        if not self.changes:
            self.changes = any(
                transport.fit(field, seven_bit=self._seven_bit) != field.raw
                for field in part.fields
            )

    def content(self, lines: "list[bytes]") -> None:
        text = b"".join(lines)
        ascii_ = text.isascii()
        self._eight_bit = self._eight_bit or not ascii_
        self._long = self._long or _any_long(lines)
        if self._charset < 2 and self._part is not None and not self._part.typed:
            self._check_utf8(text, ascii_=ascii_)

    def _check_utf8(self, text: bytes, *, ascii_: bool, final: bool = False) -> None:
        if self._utf8 is None:
            if ascii_:
                return
            self._utf8 = codecs.getincrementaldecoder("utf-8")()
            self._charset = 1
        try:
            self._utf8.decode(text, final)
        except UnicodeDecodeError:
            self._charset = 2

    def filler(self, lines: "list[bytes]") -> None:
        if _any_long(lines) or (self._seven_bit and not b"".join(lines).isascii()):
            self._bad_filler = self.changes = True

    def delimiter(self, line: bytes) -> None:
        self._settle()
        if len(line) > transport.LINE_LIMIT:
            self.changes = True

    def undivided(self) -> None:
        if self._bad_filler:
            # Whoever reads it sees all of it as text.
            raise CannotConvert(_refusal(b"a multipart", b"need a delimiter that is nowhere in it"))

    def end(self, inside: bool) -> None:
        self._settle()

    def _settle(self) -> None:
        """The content of a part is over."""
        part = self._part
        if part is not None and (self._long or (self._eight_bit and self._seven_bit)):
            if part.kind == SEALED:
                raise CannotConvert(_refusal(part.type, part.why))
            if part.encoding == b"quoted-printable":
                action = _QUOTE_AGAIN
            elif part.encoding == b"base64":
                action = _BASE64_AGAIN
            elif part.type.startswith((b"text/", b"message/")):
                action = _QUOTE
            else:
                action = _BASE64
            if self._utf8 is not None:
                self._check_utf8(b"", ascii_=True, final=True)
            self.actions[self._index] = action + _CHARSET * self._charset
            self.changes = True
        self._part = None
        self._forget()


class _Writer:
    """Does what a survey decided, and keeps what it wrote until it is taken."""

    def __init__(self, actions: bytes, *, seven_bit: bool) -> None:
        self.walker = Walker(self)
        self._actions = iter(actions)
        self._seven_bit = seven_bit
        self._written: list[bytes] = []
        self._body: _Plain = _Plain()

    def take(self) -> bytes:
        written = b"".join(self._written)
        self._written.clear()
        return written

    def header(self, part: Part) -> None:
        charset, action = divmod(next(self._actions), _CHARSET)
        label = _LABELS.get(action, b"")
        fields = part.fields
        to_add = []
        if label:
            to_add.append(b"Content-Transfer-Encoding: " + label + b"\n")
            if not part.typed:
                to_add.insert(0, b"Content-Type: text/plain; charset=" + _CHARSETS[charset] + b"\n")
            if part.top and not any(field.is_(b"mime-version") for field in fields):
                to_add.insert(0, b"MIME-Version: 1.0\n")
        for field in fields:
            if field.is_(b"content-transfer-encoding") and (label or self._mislabelled(field)):
                if not label:
                    self._written.append(_SEVEN_BIT_LABEL)
            else:
                self._written.append(transport.fit(field, seven_bit=self._seven_bit))
        self._written += to_add
        if part.separated or to_add:
            self._written.append(b"\n")
        if part.kind == MULTIPART:
            self._body = _Filler(seven_bit=self._seven_bit)
        elif action == _QUOTE:
            self._body = _QuotedPrintable(self.walker)
        elif action == _QUOTE_AGAIN:
            self._body = _QuotedAgain(self.walker)
        elif action == _BASE64:
            self._body = _Base64()
        elif action == _BASE64_AGAIN:
            self._body = _Base64Again()
        else:
            self._body = _Plain()

    def _mislabelled(self, field: Field) -> bool:
        return self._seven_bit and first_word(field.value).lower() in (b"8bit", b"binary")

    def content(self, lines: "list[bytes]") -> None:
        self._written.append(self._body.feed(lines))

    filler = content

    def delimiter(self, line: bytes) -> None:
        self._written.append(self._body.finish(delimited=True))
        text = _text([line])
        self._written.append(text.rstrip() + b"\n" * text.endswith(b"\n"))
        # What follows a closing delimiter; another one is followed by a header, which says what follows that.
        self._body = _Filler(seven_bit=self._seven_bit)

    def undivided(self) -> None:
        """Nothing is to be done."""

    def end(self, inside: bool) -> None:
        # Where only the closing delimiter is missing, the last line end was to be its.
        self._written.append(self._body.finish(delimited=inside))


class _Plain:
    """A body as it is, LF line ends and no NULs."""

    def feed(self, lines: "list[bytes]") -> bytes:
        """The encoded form of lines; the line end before a delimiter belongs to that."""
        return _text(lines)

    def finish(self, *, delimited: bool) -> bytes:
        """What is left; ``delimited``: the last line end belongs to a delimiter."""
        return b""


class _Filler(_Plain):
    """Text outside the parts: whatever does not fit is cut off."""

    def __init__(self, *, seven_bit: bool) -> None:
        self._seven_bit = seven_bit
        self._inside = False  # the last piece did not end its line

    def feed(self, lines: "list[bytes]") -> bytes:
        first, *rest = _text(lines).split(b"\n")
        kept = b"" if self._inside else first[: transport.LINE_LIMIT]
        self._inside = not rest or bool(rest[-1])
        text = b"\n".join([kept, *(line[: transport.LINE_LIMIT] for line in rest)])
        return text.translate(_STARS) if self._seven_bit else text


class _QuotedPrintable(_Plain):
    """Text in quoted-printable, each line on its own; one that comes in pieces gets a soft break between them."""

    def __init__(self, walker: Walker) -> None:
        self._delimits = walker.delimits
        self._inside = False

    def feed(self, lines: "list[bytes]") -> bytes:
        coded = self._coded(_text(lines).split(b"\n"))
        if self._inside and coded[0]:
            coded[0] = b"=\n" + coded[0]
        self._inside = bool(coded[-1]) or (self._inside and len(coded) == 1)
        quoted = b"\n".join(coded)
        if quoted.startswith(b"--") or b"\n--" in quoted:
            # A soft break must not make a delimiter of what stood inside a line.
            quoted = b"\n".join(
                b"=2D" + line[1:] if line.startswith(b"--") and self._delimits(line) else line
                for line in quoted.split(b"\n")
            )
        return quoted

    def _coded(self, texts: "list[bytes]") -> "list[bytes]":
        """The texts, without line ends, encoded."""
        return list(map(binascii.b2a_qp, texts))


class _QuotedAgain(_QuotedPrintable):
    """Lines of quoted-printable that are none, as they have 8-bit octets or are too long: decoded leniently and encoded.

    A "=" with another behind it is no code: both are text, as RFC 2045 section 6.7 would have it.
    """

    def __init__(self, walker: Walker) -> None:
        super().__init__(walker)
        self._escape = b""  # what a piece ends with that may go on in the next: "=" or "=C"

    def finish(self, *, delimited: bool) -> bytes:
        return b"=\n" * self._inside + self._escape if self._escape else b""

    def _coded(self, texts: "list[bytes]") -> "list[bytes]":
        last = len(texts) - 1
        return [
            text
            if _fits(text) and (at or not self._inside)
            else self._again(text, goes_on=at == last)
            for at, text in enumerate(texts)
        ]

    def _again(self, text: bytes, *, goes_on: bool) -> bytes:
        """``goes_on``: no line end follows yet."""
        # In place of binascii, which takes two for one.
        text, self._escape = (self._escape + text).replace(b"==", b"=3D=3D"), b""
        if goes_on:
            at = text.find(b"=", max(len(text) - 2, 0))
            if at >= 0:
                text, self._escape = text[:at], text[at:]
        soft = not goes_on and text.endswith(b"=")
        # In place of the "=" of a soft break, so that there is room for it.
        octets = binascii.a2b_qp(text[:-1]) + b"x" if soft else binascii.a2b_qp(text)
        # Where it finds CR LF, which is =0D=0A here, it makes its soft breaks alike.
        quoted = binascii.b2a_qp(octets, istext=False).replace(b"\r\n", b"\n")
        return quoted[:-1] + b"=" if soft else quoted


class _Base64(_Plain):
    """Octets as they came, line ends and NULs too, in base64."""

    def __init__(self) -> None:
        self._rest = b""  # not enough for a line
        self._line_end = b""  # the last one: a delimiter may follow, to which it belongs

    def feed(self, lines: "list[bytes]") -> bytes:
        octets = b"".join((self._rest, self._line_end, *lines))
        body = octets.removesuffix(b"\n").removesuffix(b"\r")
        self._line_end = octets[len(body) :]
        full = len(body) - len(body) % _BASE64_LINE
        self._rest = body[full:]
        return self._lines(body[:full])

    def finish(self, *, delimited: bool) -> bytes:
        return self._lines(self._rest if delimited else self._rest + self._line_end)

    def _lines(self, octets: bytes) -> bytes:
        return b"".join(
            binascii.b2a_base64(octets[at : at + _BASE64_LINE])
            for at in range(0, len(octets), _BASE64_LINE)
        )


class _Base64Again(_Plain):
    """Lines of base64 that are none: without the octets that decoders skip, and cut."""

    def __init__(self) -> None:
        self._inside = False

    def feed(self, lines: "list[bytes]") -> bytes:
        coded = [
            text if _fits(text) and (at or not self._inside) else self._again(text)
            for at, text in enumerate(_text(lines).split(b"\n"))
        ]
        if self._inside and coded[0]:
            coded[0] = b"\n" + coded[0]
        self._inside = bool(coded[-1]) or (self._inside and len(coded) == 1)
        return b"\n".join(coded)

    def _again(self, text: bytes) -> bytes:
        digits = text.translate(None, _NOT_BASE64)
        return b"\n".join(
            digits[at : at + _ENCODED_LINE] for at in range(0, len(digits), _ENCODED_LINE)
        )


def _text(lines: "list[bytes]") -> bytes:
    """The lines with LF line ends and without NULs."""
    return b"".join(lines).replace(b"\0", b"").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _fits(text: bytes) -> bool:
    return text.isascii() and len(text) <= transport.LINE_LIMIT


def _any_long(lines: "list[bytes]") -> bool:
    """Whether one has more than LINE_LIMIT octets without its end and NULs."""
    limit = transport.LINE_LIMIT
    return max(map(len, lines)) > limit and any(
        len(text) > limit for text in _text(lines).split(b"\n")
    )


def _refusal(what: bytes, why: bytes) -> str:
    text = b"it has 8-bit text or lines over %d octets in %b, whose re-encoding would %b" % (
        transport.LINE_LIMIT,
        what,
        why,
    )
    return text.decode("ascii", "backslashreplace")
