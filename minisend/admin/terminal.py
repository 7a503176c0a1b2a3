"""Text to descriptors and terminals: what may be shown of foreign octets, and when there may be colour.

Never imports anything heavy: mailq is called every minute by monitoring.  Writes go straight to the descriptor, so
that an error is seen where it happens and nothing is left for the interpreter's exit.
"""

import posix

from minisend.errors import SystemFault

# What a pipe holds.
_BATCH = 64 * 1024

BOLD = "1"
DIM = "2"
RED = "31"
GREEN = "32"
YELLOW = "33"
CYAN = "36"


def printable(value: bytes | str) -> str:
    """``value`` without anything that a terminal or a line reader would act on, one ``?`` for each such character.

    Octets, and text decoded with surrogateescape, are read as UTF-8; what is not UTF-8 is shown as ``\\xHH``.
    """
    octets = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    text = octets.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)


def write(fd: int, text: str) -> None:
    """All of ``text`` as UTF-8.  Raises as ``write_octets``."""
    write_octets(fd, text.encode("utf-8", "backslashreplace"))


def write_octets(fd: int, octets: bytes) -> None:
    """All of them.

    Raises BrokenPipeError when nobody reads any more, SystemFault for any other failure.
    """
    try:
        while octets:
            octets = octets[posix.write(fd, octets) :]
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise SystemFault(f"cannot write to descriptor {fd}: {exc.strerror}") from exc


class Batch:
    """Text for a descriptor in few writes: the first at once, for whoever waits for it, then so much at a time.

    What is left is written at the end of the context, also when that ends in an exception.
    """

    __slots__ = ("_fd", "_length", "_limit", "_parts")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._parts: list[str] = []
        self._length = 0
        self._limit = 0

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None or not issubclass(kind, (BrokenPipeError, SystemFault)):
            self._write()

    def add(self, text: str) -> None:
        """Raises as ``write``."""
        self._parts.append(text)
        self._length += len(text)
        if self._length > self._limit:
            self._write()

    def _write(self) -> None:
        text = "".join(self._parts)
        self._parts.clear()
        self._length = 0
        self._limit = _BATCH
        write(self._fd, text)


def is_terminal(fd: int) -> bool:
    """True when ``fd`` is a terminal that understands control sequences."""
    return posix.isatty(fd) and posix.environ.get(b"TERM", b"dumb") != b"dumb"


class Paint:
    """Colours text for one descriptor, or leaves it alone: no terminal, or $NO_COLOR is set and not empty."""

    __slots__ = ("_on",)

    def __init__(self, fd: int) -> None:
        self._on = is_terminal(fd) and not posix.environ.get(b"NO_COLOR")

    def __call__(self, style: str, text: str) -> str:
        """``text`` in ``style``, one of the words of this module (SGR, ECMA-48 section 8.3.117)."""
        return f"\x1b[{style}m{text}\x1b[0m" if self._on and text else text


def width(text: str) -> int:
    """How many columns of a terminal it takes (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def padded(text: str, columns: int) -> str:
    """``text`` with spaces up to so many columns."""
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """``text`` in at most so many columns, an ellipsis for what is left out."""
    if width(text) <= columns:
        return text
    kept = text[: columns - 1]
    while width(kept) > columns - 1:
        kept = kept[:-1]
    return kept + "…"


def aligned(rows: "list[tuple[str, ...]]") -> list[str]:
    """Each row as a line: two spaces between columns, each as wide as its longest cell, none behind the last."""
    columns = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(padded, row, columns)).rstrip() for row in rows]
