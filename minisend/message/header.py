"""The header of a message as octets: where it ends and which fields it has.

It reads what callers put on standard input, so it takes any line ends (LF, CRLF, lone CR, mixed)
and a missing last one, drops NULs, and takes a text without a header for what it is.  Lines are
judged from the first on:

    line                                        before any field     after a field
    empty                                       the header ends      the header ends
    name ":" (SP or HT may precede the colon)   a field              a field
    begins with SP or HT                        body begins here     continues the field
    begins with "From " or ">From " (mbox)      dropped              body begins here
    anything else                               body begins here     body begins here

An empty line that ends the header belongs to neither side; any other line at which the body
begins is its first.  Names are printable ASCII without space (RFC 5322 section 2.2; the space
before the colon is section 4.5's).

Never: the value of a field is not judged and no field is changed or put in order.

Limits: a header is held in memory up to HEADER_LIMIT; a longer one is reported, not read.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Postfix's header_size_limit is a tenth of it for one field; Exim's header_maxsize is 1 MiB too.
HEADER_LIMIT = 1 << 20

#: Octets without its end: no line of a message is longer (RFC 5322 section 2.1.1), so no field name is.
LINE_LIMIT = 998

_NAME = bytes(octet for octet in range(33, 127) if octet != ord(":"))

# Looked for as numbers: for octets ``in`` first tries whether they are one, and makes an exception each time.
_CR, _NUL = b"\r\0"

# Of a header up to this size all lines are held at once.
_PLAIN_LIMIT = 16 * 1024

# What a line is, see the table above.
_FIELD, _CONTINUES, _MBOX, _EMPTY, _BODY = range(5)


class Field:
    """One header field.

    ``name``  as it is spelled, without the white space that may precede the colon
    ``raw``   all of it, folding kept: LF line ends, no CR or NUL, ends with LF
    """

    __slots__ = ("name", "raw")

    def __init__(self, name: bytes, raw: bytes) -> None:
        self.name = name
        self.raw = raw

    @property
    def value(self) -> bytes:
        """What follows the colon, folding and white space as they are, without the last LF."""
        return self.raw[self.raw.index(b":") + 1 : -1]

    @property
    def empty(self) -> bool:
        """Whether the value is nothing but white space."""
        return not self.value.strip()

    def is_(self, name: bytes) -> bool:
        """Whether this is the field ``name``, given in lower case."""
        return self.name.lower() == name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Field) and self.name == other.name and self.raw == other.raw

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.raw!r})"


class Header:
    """The fields of a message and where its body begins.

    ``fields``    in order; empty when there is no header and when it is too long
    ``body``      offset of the body's first octet in the raw message
    ``too_long``  the header does not end within HEADER_LIMIT: ``body`` then is where it begins,
                  so that all of it can be passed on as it is
    """

    __slots__ = ("body", "fields", "too_long")

    def __init__(self, fields: list[Field], body: int, *, too_long: bool = False) -> None:
        self.fields = fields
        self.body = body
        self.too_long = too_long

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Header) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Header({self.fields!r}, {self.body}, too_long={self.too_long})"


class HeaderEnd:
    """Tells a reader when it has read enough of a message for ``split``.

    ``reached`` takes all octets read so far, each time from the first; however small the pieces,
    the cost in all is linear, as each octet is searched once and each line judged once.
    """

    __slots__ = ("_any_field", "_line", "_searched")

    def __init__(self) -> None:
        self._any_field = False
        self._line = 0  # where the first line begins that has not been judged
        self._searched = 0  # no line end that is certain stands between the two

    def reached(self, data: bytes | bytearray) -> bool:
        """Whether ``split(data, complete=False)`` knows the whole header, or that it is too long."""
        if len(data) >= HEADER_LIMIT:
            return True
        if data.find(b"\n", self._searched) >= 0 or data.find(b"\r", self._searched) >= 0:
            for _, line, following in _lines(data, self._line, complete=False):
                if not following:
                    break
                verdict = _judge(line, self._any_field)
                if verdict in (_EMPTY, _BODY):
                    return True
                self._any_field = self._any_field or verdict == _FIELD
                self._line = following
        # A CR at the end is looked at again: only what follows tells whether a LF belongs to it.
        self._searched = max(len(data) - 1, self._line)
        return False


def split(data: bytes, *, complete: bool) -> Header:
    """The header of the message that begins with ``data``, octets as they came.

    ``complete``  ``data`` is all of the message: its last line counts without a line end.
    Otherwise it must hold HEADER_LIMIT octets or what satisfied ``HeaderEnd``; a header that does
    not end in it is too long.
    """
    return _split_plain(data) or _split_any(data, complete)


def _split_plain(data: bytes) -> Header | None:
    """What ``_split_any`` says, in few steps, of a header as programs write it: short, nothing but fields, line ends of
    one kind, an empty line at its end.  None for any other."""
    limit = min(_PLAIN_LIMIT, HEADER_LIMIT)
    end = data.find(b"\n\n", 0, limit) + 1
    text, body = data[:end], end + 1
    if not end or _CR in text:
        end = data.find(b"\r\n\r\n", 0, limit) + 2
        text, body = data[:end].replace(b"\r\n", b"\n"), end + 2
        if end < 2 or _CR in text:
            return None
    if _NUL in text:
        return None
    fields: list[Field] = []
    name = b""
    start = at = 0
    while at < len(text):
        if text[at] not in b" \t":
            if name:
                fields.append(Field(name, text[start:at]))
            start = at
            colon = text.find(b":", at)
            name = text[at:colon]
            # Of a colon in a line further down the name would have a line end in it.
            if colon <= at or len(name) >= LINE_LIMIT or name.lstrip(_NAME):
                return None
        elif not name:
            return None
        at = text.find(b"\n", at) + 1
    fields.append(Field(name, text[start:]))
    return Header(fields, body)


def _split_any(data: bytes, complete: bool) -> Header:
    fields: list[Field] = []
    lines: list[bytes] = []
    start = 0  # of the header, after mbox lines

    def finish() -> list[Field]:
        if lines:
            name = lines[0][: lines[0].index(b":")].rstrip(b" \t")
            fields.append(Field(name, b"\n".join(lines) + b"\n"))
            lines.clear()
        return fields

    # Whoever asks, and however much was read beyond it, the limit falls on the same octet: what
    # -t takes for the header must be what is completed later.
    complete = complete and len(data) < HEADER_LIMIT
    data = data[:HEADER_LIMIT]
    reached = 0
    for offset, line, following in _lines(data, 0, complete):
        verdict = _judge(line, bool(lines))
        if verdict == _BODY and (following or len(line) > LINE_LIMIT):
            return Header(finish(), offset)
        if not following:
            return Header([], start, too_long=True)
        if verdict == _EMPTY:
            return Header(finish(), following)
        if verdict == _MBOX:
            start = following
        elif verdict == _FIELD:
            finish()
            lines.append(line)
        else:
            lines.append(line)
        reached = following
    if not complete:
        return Header([], start, too_long=True)
    return Header(finish(), reached)


def find(fields: "Iterable[Field]", name: bytes) -> list[Field]:
    """The fields called ``name`` (given in lower case), in order."""
    return [field for field in fields if field.is_(name)]


def _judge(line: bytes, any_field: bool) -> int:
    """What a line of the header is; ``any_field``: a field precedes it."""
    if not line:
        return _EMPTY
    if line.startswith((b" ", b"\t")):
        return _CONTINUES if any_field else _BODY
    name, colon, _ = line[:LINE_LIMIT].partition(b":")
    name = name.rstrip(b" \t")
    if colon and name and not name.translate(None, _NAME):
        return _FIELD
    if not any_field and line.startswith((b"From ", b">From ")):
        return _MBOX
    return _BODY


def _lines(data: bytes | bytearray, at: int, complete: bool) -> "Iterator[tuple[int, bytes, int]]":
    """Each line from offset ``at``: its offset, its octets without NULs and end, the next offset.

    The next offset of a line that may go on after ``data`` is 0.
    """
    size = len(data)
    newline = -1  # the first LF at or after the line, or size: kept, for a row of CRs before it
    while at < size:
        if newline < at:
            newline = data.find(b"\n", at)
            if newline < 0:
                newline = size
        end = data.find(b"\r", at, newline)
        if end < 0:
            end = newline
            following = newline + 1
        elif end + 1 == newline:
            following = newline + 1
        else:
            following = end + 1
        if following > size:
            following = size if complete else 0
        line = bytes(data[at:end])
        yield at, line.replace(b"\0", b""), following
        if not following:
            return
        at = following
