"""The parts of a message, found while its octets stream by.

``Walker`` is fed the lines of a message and tells a handler what they are:

    call                  for
    header(part)          the header of the message, of a part, or of a message inside it has ended
    content(lines)        lines of the body of a leaf, or of a part that is not looked into
    filler(lines)         the preamble or epilogue of a multipart: what nobody is meant to read
    delimiter(line)       a line that separates or ends parts
    undivided()           a multipart is over, and no part of it began: its "preamble" is what is read
    end(inside)           the message is over; ``inside``: in a multipart that no delimiter closed

A delimiter is the whole line, but for white space after it, so one boundary may begin with another.  That of an
outer multipart ends whatever is open inside it (RFC 2046 section 5.1.2); after a closing delimiter, or outside the part, it is
text like any other.  A header that lacks its empty line ends where a line is no field.

Never: nothing is decoded, judged or changed, nothing but the header of one part is held, and no
line is asked for twice.

Limits: what has a header of more than HEADER_LIMIT octets is not looked into, nor a multipart more than NESTING_LIMIT deep.

Source: RFC 2045 section 5, RFC 2046 section 5, RFC 5322 section 2.2.
"""

from minisend.message.header import HEADER_LIMIT, Field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Protocol

    class Handler(Protocol):
        """What a ``Walker`` calls; see above.  Lines are octets as they came, each with its line end."""

        def header(self, part: "Part") -> None: ...
        def content(self, lines: "list[bytes]") -> None: ...
        def filler(self, lines: "list[bytes]") -> None: ...
        def delimiter(self, line: bytes) -> None: ...
        def undivided(self) -> None: ...
        def end(self, inside: bool) -> None: ...


# Postfix's mime_nesting_limit.
NESTING_LIMIT = 100

# RFC 2046 section 5.1.1 allows 70; a delimiter of more cannot stand on one line with its dashes.
_BOUNDARY_LIMIT = 990

# A line is handed on in pieces of so many octets when it has more.
_PIECE = 1 << 15
_BLOCK = 1 << 16

# What a part is.
LEAF, MULTIPART, MESSAGE, SEALED = range(4)

_NAME = bytes(octet for octet in range(33, 127) if octet != ord(":"))
_SPACE = b" \t\r\n"


class Part:
    """The header of a message or part, and what it says of the body.

    ``fields``     in order; a mbox line before them is one without a name
    ``separated``  an empty line ended the header
    ``top``        it is the header of a message, outer or inner, not of a part of a multipart
    ``kind``       LEAF | MULTIPART | MESSAGE (a message is its body) | SEALED (not to be looked into, see ``why``)
    ``type``       "type/subtype" in lower case, the default where there is none that is valid
    ``typed``      there is a Content-Type field
    ``encoding``   the first word of Content-Transfer-Encoding in lower case, b"" without one
    ``why``        of a SEALED part: what its re-encoding would break
    """

    __slots__ = (
        "boundary",
        "encoding",
        "fields",
        "kind",
        "separated",
        "top",
        "type",
        "typed",
        "why",
    )

    def __init__(
        self, fields: "list[Field]", default: bytes, *, top: bool, separated: bool
    ) -> None:
        self.fields = fields
        self.separated = separated
        self.top = top
        self.type, self.typed, self.encoding = default, False, b""
        self.boundary = self.why = b""
        words: list[bytes] = []
        for field in fields:
            if field.is_(b"content-type") and not self.typed:
                self.typed = True
                words = parameters(field.value)
                self.type = _type(words[0])
            elif field.is_(b"content-transfer-encoding") and not self.encoding:
                self.encoding = first_word(field.value).lower()
        self.kind = self._kind(words)

    def _kind(self, words: "list[bytes]") -> int:
        kind = LEAF
        if self.type in (b"multipart/signed", b"multipart/encrypted"):
            # RFC 1847 section 2.1: agents treat the content of both as opaque.
            self.why = b"break its signature or encryption"
        elif self.type.startswith(b"multipart/"):
            kind, self.boundary = MULTIPART, _boundary(words)
            if not self.boundary:
                self.why = b"need a boundary that it does not have"
        elif self.type in (b"message/rfc822", b"message/news"):
            # RFC 2046 section 5.2.1 allows no other encoding; what has one is no message to read.
            if self.encoding not in (b"quoted-printable", b"base64"):
                kind = MESSAGE
        elif self.type in (b"message/partial", b"message/external-body"):
            self.why = b"go against RFC 2046 section 5.2, which allows 7-bit lines only"
        elif self.encoding.startswith((b"x-", b"uu")):
            self.why = b"lose its encoding " + self.encoding
        return SEALED if self.why else kind


def first_word(value: bytes) -> bytes:
    """The first word of a field's value, up to white space, a semicolon or a comment."""
    word = value.replace(b"(", b" ").replace(b";", b" ").split(None, 1)
    return word[0] if word else b""


def parameters(value: bytes) -> "list[bytes]":
    """A value in its parts between semicolons, as they stand; one in a quoted string separates nothing."""
    parts = [b""]
    quoted = False
    for piece in value.split(b";"):
        parts[-1] += b";" + piece if quoted else piece
        # A quote that a backslash precedes neither opens nor closes.
        plain = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        if plain.count(b'"') % 2:
            quoted = not quoted
        if not quoted:
            parts.append(b"")
    if not quoted:
        parts.pop()
    return parts


def parameter_value(text: bytes) -> bytes:
    """What follows "=" in a parameter: of a quoted string its content, else the first word."""
    text = text.strip(_SPACE)
    if not text.startswith(b'"'):
        return first_word(text)
    parts: list[bytes] = []
    at = 1
    while True:
        quote, slash = text.find(b'"', at), text.find(b"\\", at)
        if slash < 0 or 0 <= quote < slash:
            parts.append(text[at : quote if quote >= 0 else len(text)])
            return b"".join(parts).replace(b"\n", b"").replace(b"\r", b"")
        parts += (text[at:slash], text[slash + 1 : slash + 2])
        at = slash + 2


def _type(word: bytes) -> bytes:
    """RFC 2045 section 5.2: what is no type is text/plain."""
    kind = first_word(word).lower()
    return kind if kind.count(b"/") == 1 and kind.isascii() else b"text/plain"


def _boundary(words: "list[bytes]") -> bytes:
    """The boundary parameter; b"" when there is none, or none that a line could hold."""
    for word in words[1:]:
        name, _, text = word.partition(b"=")
        if name.strip(_SPACE).lower() == b"boundary":
            # RFC 2046 section 5.1.1: a boundary does not end with white space.
            boundary = parameter_value(text).rstrip(b" \t")
            if boundary.isascii() and len(boundary) <= _BOUNDARY_LIMIT and b"\0" not in boundary:
                return boundary
            return b""
    return b""


def line_blocks(pieces: "Iterable[bytes]") -> "Iterator[tuple[list[bytes], bool]]":
    """A message as lists of lines, octets as they came, each line with its end: LF, CR LF or a lone CR.

    However the message was cut into pieces, the lines are the same.  A line with more than _PIECE octets before its end comes
    in pieces, each a list of its own; the second value is False for those that do not begin a line.
    At most the largest piece and _BLOCK octets are held.
    """
    held: list[bytes] = []
    size = 0
    begins = True
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size < _BLOCK:
            continue
        lines = b"".join(held).splitlines(keepends=True)
        # The last may go on, or be a CR whose LF is to come.
        *cut, rest = _cut(lines.pop())
        lines += cut
        held, size = [rest], len(rest)
        for block in _blocks(lines):
            yield block, begins
            begins = block[-1].endswith((b"\n", b"\r"))
    for block in _blocks(b"".join(held).splitlines(keepends=True)):
        yield block, begins
        begins = block[-1].endswith((b"\n", b"\r"))


def _cut(line: bytes) -> "list[bytes]":
    """The line in pieces of _PIECE octets, the last with at least one octet before the line end."""
    size = len(line.rstrip(b"\r\n"))
    if size <= _PIECE:
        return [line]
    last = (size - 1) // _PIECE * _PIECE
    return [*(line[at : at + _PIECE] for at in range(0, last, _PIECE)), line[last:]]


def _blocks(lines: "list[bytes]") -> "Iterator[list[bytes]]":
    """The lines in lists, each piece of a line that is too long on its own."""
    start = 0
    if lines and max(map(len, lines)) >= _PIECE:
        for at, line in enumerate(lines):
            if len(line) >= _PIECE:
                if at > start:
                    yield lines[start:at]
                for piece in _cut(line):
                    yield [piece]
                start = at + 1
    if start < len(lines):
        yield lines[start:]


class Walker:
    """Tells ``handler`` what the lines are that ``feed`` is given, from the first of a message on; then call ``end``."""

    __slots__ = (
        "_default", "_delimiters", "_field", "_fields", "_filler", "_handler", "_in_header", "_open", "_size", "_top",
    )  # fmt: skip

    def __init__(self, handler: "Handler") -> None:
        self._handler = handler
        # Of each open multipart: boundary, the type of a part that names none, whether a part began.
        self._open: list[tuple[bytes, bytes, bool]] = []
        # What a line may say, without white space after it → index in _open, whether it closes.
        self._delimiters: dict[bytes, tuple[int, bool]] = {}
        self._filler = False
        self._begin(b"text/plain", top=True)

    def feed(self, lines: "list[bytes]", begins: bool) -> None:
        """One list of ``line_blocks``; ``begins``: its first octet begins a line."""
        # Most lines do not even look like a delimiter; only where there are NULs do they need a closer look.
        heads = [line.replace(b"\0", b"") for line in lines] if _holds_nul(lines) else lines
        marks = [at for at, line in enumerate(heads) if line[:2] == b"--"]
        if marks and not marks[0] and not begins:
            marks.pop(0)
        marks.append(len(lines))
        mark = at = 0
        while at < len(lines):
            if self._in_header:
                at = self._header_lines(lines, at, begins or at > 0)
                continue
            while marks[mark] < at:
                mark += 1
            while marks[mark] < len(lines) and not self.delimits(lines[marks[mark]]):
                mark += 1
            if marks[mark] > at:
                told = self._handler.filler if self._filler else self._handler.content
                told(lines[at : marks[mark]] if at or marks[mark] < len(lines) else lines)
            at = marks[mark]
            if at < len(lines):
                self._delimiter(lines[at])
                at += 1

    def end(self) -> None:
        """The last line was fed."""
        if self._in_header:
            self._end_header(separated=False)
        inside = bool(self._open)
        self._close(0)
        self._handler.end(inside)

    def delimits(self, line: bytes) -> bool:
        """Whether the line, with or without its end, is a delimiter of an open multipart."""
        return _bare(line) in self._delimiters

    def _delimiter(self, line: bytes) -> None:
        level, closes = self._delimiters[_bare(line)]
        boundary, default, divided = self._open[level]
        self._close(level + 1)
        self._handler.delimiter(line)
        self._open[level] = boundary, default, divided or not closes
        self._filler = closes
        if closes:
            self._close(level)
        else:
            self._begin(default, top=False)

    def _begin(self, default: bytes, *, top: bool) -> None:
        """A header is to follow."""
        self._in_header = True
        self._default, self._top = default, top
        self._fields: list[Field] = []
        self._field: list[bytes] = []
        self._size = 0

    def _header_lines(self, lines: "list[bytes]", at: int, begins: bool) -> int:
        """Take lines from ``at`` for the header; the index of the first that is not of it, an empty one that ends it being."""
        while at < len(lines):
            line = lines[at].replace(b"\0", b"")
            bare = line.rstrip(b"\r\n")
            ended = bare != line
            if self._size + len(lines[at]) > HEADER_LIMIT:
                self._end_header(separated=False, too_long=True)
                return at
            if not begins:
                self._field.append(line)
            elif not bare and ended:
                self._end_header(separated=True)
                return at + 1
            elif self.delimits(line):
                break
            elif self._field and bare.startswith((b" ", b"\t")):
                self._field.append(line)
            elif _is_field(bare) or (not self._field and bare.startswith((b"From ", b">From "))):
                self._end_field()
                self._field.append(line)
            else:
                break
            self._size += len(lines[at])
            at, begins = at + 1, True
        else:
            return at
        self._end_header(separated=False)
        return at

    def _end_field(self) -> None:
        if self._field:
            raw = b"".join(self._field).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            name = raw.partition(b":")[0].rstrip(b" \t") if _is_field(raw) else b""
            self._fields.append(Field(name, raw if raw.endswith(b"\n") else raw + b"\n"))
            self._field = []

    def _end_header(self, *, separated: bool, too_long: bool = False) -> None:
        self._end_field()
        part = Part(self._fields, self._default, top=self._top, separated=separated)
        if too_long:
            part.kind, part.why = SEALED, b"need its whole header, which is too long to be read"
        elif part.kind == MULTIPART and len(self._open) == NESTING_LIMIT:
            part.kind, part.why = SEALED, b"mean to look deeper than any honest message goes"
        self._in_header = self._filler = False
        self._handler.header(part)
        if part.kind == MULTIPART:
            digest = part.type == b"multipart/digest"
            self._open.append(
                (part.boundary, b"message/rfc822" if digest else b"text/plain", False)
            )
            self._list_delimiters()
            self._filler = True
        elif part.kind == MESSAGE:
            self._begin(b"text/plain", top=True)

    def _close(self, level: int) -> None:
        """The multiparts from ``level`` on are over."""
        if len(self._open) > level:
            while len(self._open) > level:
                if not self._open.pop()[2]:
                    self._handler.undivided()
            self._list_delimiters()

    def _list_delimiters(self) -> None:
        self._delimiters = {}
        for level, (boundary, _, _) in enumerate(self._open):
            # Of two that are alike the outer one counts.
            self._delimiters.setdefault(b"--" + boundary, (level, False))
            self._delimiters.setdefault(b"--" + boundary + b"--", (level, True))


def _holds_nul(lines: "list[bytes]") -> bool:
    return b"\0" in b"".join(lines)


def _bare(line: bytes) -> bytes:
    return line.replace(b"\0", b"").rstrip(_SPACE)


def _is_field(line: bytes) -> bool:
    name, colon, _ = line[:_PIECE].partition(b":")
    name = name.rstrip(b" \t")
    return bool(colon and name and not name.translate(None, _NAME))
