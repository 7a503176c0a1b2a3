"""Standard input as octets, in pieces: bounded memory, whatever is on descriptor 0.

A descriptor left in non-blocking mode by the caller is waited for: EAGAIN is never the end of the message.
"""

import fcntl
import posix
import select

from minisend.errors import ReadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 256 * 1024
_PATIENCE = 1000  # milliseconds
# So many of them without anything to read are told.
_SILENCE = 60
# lseek(2): SEEK_CUR, which Python has in os alone.
_FROM_HERE = 1


def pieces(fd: int = 0) -> "Iterator[bytes]":
    """What can be read from ``fd`` up to its end; an empty piece each minute in which nothing came.  Raises ReadError."""
    _check(fd)
    while True:
        if not _wait(fd):
            yield b""
            continue
        try:
            piece = posix.read(fd, _PIECE)
        except BlockingIOError:
            continue
        except OSError as exc:
            raise ReadError(f"standard input: {exc.strerror}") from exc
        if not piece:
            return
        yield piece


def _check(fd: int) -> None:
    """Raise ReadError for a descriptor that is closed or only for writing, which there would be no end of waiting for."""
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & posix.O_ACCMODE
    except OSError as exc:
        raise ReadError(f"standard input: {exc.strerror}") from exc
    if mode == posix.O_WRONLY:
        raise ReadError("standard input: not open for reading")


def _wait(fd: int) -> bool:
    """Until there is something to read, an end or an error; False after a minute without.

    Each call to the kernel has an end, also where the descriptor blocks: a signal that comes just before a call is
    noticed when the call returns.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return any(poller.poll(_PATIENCE) for _ in range(_SILENCE))


def size(fd: int = 0) -> int:
    """How many octets are left to read where ``fd`` is a regular file; 0 where nobody knows."""
    try:
        # A shell may have read the first lines.
        position = posix.lseek(fd, 0, _FROM_HERE)
        return max(posix.fstat(fd).st_size - position, 0)
    except OSError:
        return 0  # a pipe, a socket, a terminal; a closed descriptor is for ``pieces`` to report


def until_dot(source: "Iterator[bytes]") -> "Iterator[bytes]":
    """``source`` up to a line that is a single dot, which is not passed on (sendmail(8) without -i).

    What follows the dot is not read.
    """
    # The last octets seen, so that a dot line cut between two pieces is found; the message starts after a line end.
    held = b"\n"
    first = True
    for piece in source:
        if not piece:
            yield piece
            continue
        text = held + piece
        end = _dot_line(text)
        if end >= 0:
            out = text[1 : end + 1] if first else text[: end + 1]
            if out:
                yield out
            return
        # "\n.\r" is the longest beginning of a dot line.
        keep = min(len(text), 3)
        cut = text.rfind(b"\n", len(text) - keep)
        if cut < 0:
            cut = len(text)
        out = text[:cut]
        held = text[cut:]
        if first and out:
            out = out[1:]
            first = False
        if out:
            yield out
    # At the end of input a dot without a line end ends the message as well (Postfix, sendmail).
    out = held[1:] if first else held
    if held in (b"\n.", b"\n.\r"):
        out = b"" if first else b"\n"
    if out:
        yield out


def _dot_line(text: bytes) -> int:
    """Index of the LF before the first dot line, -1 when there is none."""
    at = text.find(b"\n.")
    while at >= 0 and not text.startswith((b"\n", b"\r\n"), at + 2):
        at = text.find(b"\n.", at + 2)
    return at
