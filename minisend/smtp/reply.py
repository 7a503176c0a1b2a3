"""Replies of an SMTP server: one value, and the parser that finds them in a stream of octets.

It never does I/O, never guesses: what is not a reply is a ``RemoteProtocolError``, and once raised it is raised
again, as nobody knows which command the next line would answer.

    250-mail.example.org        code, "-" while more lines follow, text
    250-SIZE 52428800
    250 2.0.0 the last line     code, " ", text; the enhanced status code is part of the text

Accepted beyond the letter, as Postfix does: a bare LF as line end, no text at all ("250"), lines of any length.

Limits: a reply keeps its first 64 KiB of memory, lines counted with what they cost beside their text (the rest is read and
dropped); one longer than 1 MiB is an error, so a server that never ends its reply costs bounded memory.  No server in the
field comes near either.

Source: RFC 5321 section 4.2 (form), RFC 2034 and RFC 3463 (enhanced status codes).
"""

from minisend.errors import RemoteProtocolError
from minisend.value import Value

KEPT_OCTETS = 64 * 1024
MAX_OCTETS = 1024 * 1024

#: What a line costs beside its text, its place in a tuple included: many short ones must not cost more than one long.
LINE_OCTETS = 48

# What a reply can begin with.
_CODES = {b"%d" % code: code for code in range(200, 600)}
# ... when it is one line.
_ONE_LINE = {b"%d " % code: code for code in range(200, 600)}


def _enhanced(line: bytes) -> str:
    """The enhanced status code that the line begins with, "" when it begins with none."""
    word = line.split(None, 1)[:1]
    parts = word[0].split(b".") if word else ()
    if len(parts) != 3:
        return ""
    status_class, subject, detail = parts
    if (
        status_class in (b"2", b"4", b"5")
        and subject.isdigit()
        and len(subject) <= 3
        and detail.isdigit()
        and len(detail) <= 3
    ):
        return word[0].decode("ascii")
    return ""


def printable(octets: bytes) -> str:
    """One line of text for a log or a person.

    UTF-8 as RFC 6531 allows in replies; octets that are not become ``\\xNN``, a tab becomes a space, and what is
    not printable (controls, line separators, direction marks) is escaped, so a server cannot forge a log line.
    """
    text = octets.decode("utf-8", "backslashreplace").replace("\t", " ")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


class Reply(Value):
    """One reply: its three digits and its lines of text, octets without code, separator and line end."""

    __slots__ = ("code", "lines")

    def __init__(self, code: int, lines: tuple[bytes, ...]) -> None:
        self.code = code
        self.lines = lines

    @property
    def enhanced(self) -> str:
        """Enhanced status code such as "5.1.1"; "" when there is none or its class contradicts the code (RFC 2034)."""
        for line in self.lines:
            found = _enhanced(line)
            if found and int(found[0]) == self.code // 100:
                return found
        return ""

    @property
    def text(self) -> str:
        """All lines as one line of printable text, the enhanced status code included, the code not."""
        return printable(b" ".join(self.lines))

    @property
    def ok(self) -> bool:
        """2yz or 3yz: the command was taken."""
        return self.code < 400

    @property
    def permanent(self) -> bool:
        """5yz: do not try the same again."""
        return self.code // 100 == 5

    def shortened(self, octets: int) -> "Reply":
        """The same with the lines that fit into so many octets of memory, the last one cut."""
        lines = []
        for line in self.lines:
            if octets <= 0:
                break
            lines.append(line[:octets])
            octets -= len(line) + LINE_OCTETS
        return Reply(self.code, tuple(lines))

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


class ReplyParser:
    """Octets in, replies out; what comes out does not depend on how the octets were cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = (
            0  # no LF before this place: a reply that drips in is not searched again and again
        )
        self._lines: list[bytes] = []
        self._code = 0  # of the lines before, 0 at the first
        self._kept = 0
        self._octets = 0
        self._error: RemoteProtocolError | None = None

    @property
    def pending(self) -> bool:
        """True while octets are held that no reply handed out so far accounts for."""
        return bool(self._buffer or self._code)

    def feed(self, octets: bytes) -> None:
        """Append what was read.  Take the replies out before feeding on: only that bounds the memory."""
        self._buffer += octets

    def next_reply(self) -> Reply | None:
        """The next whole reply, None when octets are missing; raises ``RemoteProtocolError``."""
        if self._error is not None:
            raise self._error
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if 0 <= end <= KEPT_OCTETS and not self._code:
                # As nearly every reply: one line, all of it here.
                line = bytes(self._buffer[:end])
                code = _ONE_LINE.get(line[:4])
                if code is not None:
                    del self._buffer[: end + 1]
                    self._searched = 0
                    return Reply(code, (line[4:].removesuffix(b"\r"),))
            # Counted before anything is judged, so that the verdict on a long line is the same whole or in pieces.
            if self._octets + (len(self._buffer) if end < 0 else end + 1) > MAX_OCTETS:
                raise self._fail(f"reply longer than {MAX_OCTETS} octets")
            if end < 0:
                self._searched = len(self._buffer)
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            self._octets += end + 1
            if self._take(line.removesuffix(b"\r")):
                reply = Reply(self._code, tuple(self._lines))
                self._lines, self._code, self._kept, self._octets = [], 0, 0, 0
                return reply

    def _take(self, line: bytes) -> bool:
        """Add one line, without its end; True when it was the last of its reply."""
        code, separator, text = _CODES.get(line[:3]), line[3:4], line[4:]
        if code is None or separator not in (b"", b" ", b"-"):
            raise self._fail(f"not an SMTP reply: {printable(line[:200])!r}")
        if self._code and code != self._code:
            raise self._fail(f"reply code changes from {self._code} to {code} within a reply")
        self._code = code
        if self._kept < KEPT_OCTETS:
            self._lines.append(text[: KEPT_OCTETS - self._kept])
            self._kept += len(text) + LINE_OCTETS
        return separator != b"-"

    def _fail(self, message: str) -> RemoteProtocolError:
        self._error = RemoteProtocolError(message)
        self._buffer.clear()
        return self._error
