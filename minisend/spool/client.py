"""The client's side of the submission socket: one request a connection.

    submit                    a message; the queue id, or the refusal as an exception
    listed, remove, flush     the caller's own messages

What goes wrong before the service has greeted is ``NotServed``: nothing was handed over, and the caller may go another way.
An answer that is lost is asked for once more, by the submission id; ``Lost`` says that it stays unknown.

Never touches the queue, the drop or a configuration.  Loaded by every submission: no heavy import.
"""

import _socket
import errno
import sys
from binascii import crc32
from time import monotonic, sleep

from minisend.envelope import Envelope
from minisend.errors import DataError, MinisendError, SpoolError
from minisend.spool.protocol import (
    BUSY,
    END,
    ENVELOPE,
    GREETING,
    LISTED,
    LONGEST_LISTED,
    MESSAGE,
    MOST_RECIPIENTS,
    PATIENCE,
    PIECE,
    Broken,
    Stream,
    frame,
)
from minisend.spool.record import SUBMITTED_HEAD_LIMIT, format_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Seconds.  The service may have to be started first; then it answers at once, but for the disk.
_GREETING = 10.0
# For a service that is busy to have room: an account that sends a hundred at once has fifty served at a time.  Asked again
# after a moment, which becomes longer each time.
_TURN = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_WRITE = PATIENCE
_ANSWER = 2 * PATIENCE
# Sysexits that a refusal may have; all else is "try again".
_CODES = range(64, 79)


class NotServed(Exception):
    """Nobody takes messages at this socket; nothing was handed over.

    ``number``  errno of what stopped it, 0 for a service that is busy or does not greet; the text says which
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class Lost(Exception):
    """The connection ended, and with it what is known.

    ``kept``  False: the message is not in the queue, nor will it be; True: it may be
    """

    def __init__(self, text: str, *, kept: bool) -> None:
        super().__init__(text)
        self.kept = kept


class Refused(MinisendError):
    """The service's refusal, with the exit code and the status that it names."""

    def __init__(self, code: int, status: str, text: str) -> None:
        super().__init__(text)
        self.exit_code = code
        self.status = status


def submit(
    path: str,
    submission: bytes,
    envelope: Envelope,
    message: "Iterable[bytes]",
    *,
    size: int = 0,
    later: bool = False,
) -> str:
    """Hand a message to the service at ``path``; the queue id when it is on disk.

    ``submission``  its id, 16 octets
    ``message``     in pieces, read once; an empty piece: nothing has come for a while, which the service is told
    ``size``        as far as it is known, else 0
    ``later``       its delivery is not to be begun at once
    Raises NotServed, Lost, Refused, DataError for too many recipients, and what reading ``message`` raises: then it is not kept.
    """
    head = format_head(envelope, size)
    if len(head) > SUBMITTED_HEAD_LIMIT or len(envelope.recipients) > MOST_RECIPIENTS:
        raise DataError(f"more recipients than the service takes: {len(envelope.recipients)}")
    stream = _connect(path)
    try:
        try:
            return _hand_over(stream, submission, head, message, later=later)
        except Refused:
            raise
        except (Broken, OSError) as exc:
            stream.close()
            return _ask(path, submission, _words(exc))
    finally:
        stream.close()


def listed(path: str) -> "Iterator[bytes]":
    """What the service says of each of the caller's messages.  Raises NotServed, Refused, SpoolError."""
    stream = _connect(path)
    try:
        stream.send(b"LIST\n", _WRITE)
        _take_answer(stream)
        while True:
            kind, octets = stream.frame(_ANSWER, {LISTED: LONGEST_LISTED, END: 0})
            if kind == END:
                return
            yield octets
    except (Broken, OSError) as exc:
        raise SpoolError(f"{path}: {_words(exc)}") from exc
    finally:
        stream.close()


def remove(path: str, queue_id: str) -> None:
    """Remove a message of the caller's.  Raises NotServed, Refused, SpoolError."""
    _request(path, b"REMOVE " + queue_id.encode("ascii", "backslashreplace"))


def flush(path: str) -> str:
    """Have the caller's messages tried now; what the service says to it.  Raises NotServed, Refused, SpoolError."""
    return _request(path, b"FLUSH")


def _connect(path: str) -> Stream:
    """A connection that has been greeted."""
    until = monotonic() + _TURN
    pause = _FIRST_PAUSE
    while (stream := _greeted(path)) is None:
        if monotonic() + pause > until:
            raise NotServed(0, "the service is busy")
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    return stream


def _greeted(path: str) -> Stream | None:
    """As ``_connect``; None where the service is busy."""
    try:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    except OSError as exc:
        raise NotServed(exc.errno or 0, _words(exc)) from exc
    stream = Stream(connection)
    try:
        # Not in non-blocking mode, in which a service with many who wait would refuse.
        _wait_for(connection, _GREETING)
        connection.connect(path)
        greeting = stream.line(_GREETING)
    except (Broken, OSError) as exc:
        stream.close()
        number = getattr(exc, "errno", None) or 0
        if number == errno.EAGAIN or isinstance(exc, TimeoutError):
            raise NotServed(errno.ETIMEDOUT, f"no greeting within {_GREETING:g} s") from exc
        raise NotServed(number, _words(exc)) from exc
    if greeting != GREETING:
        stream.close()
        if greeting == BUSY:
            return None
        raise NotServed(0, "not a minisend service")
    return stream


def _wait_for(connection: _socket.socket, seconds: float) -> None:
    """A deadline for connect(2), which the kernel keeps: SO_SNDTIMEO, unix(7)."""
    timeval = int(seconds).to_bytes(8, sys.byteorder) + bytes(8)
    try:
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeval)
    except OSError:
        pass  # another form of timeval: then without a deadline


def _hand_over(
    stream: Stream,
    submission: bytes,
    head: bytes,
    message: "Iterable[bytes]",
    *,
    later: bool,
) -> str:
    request = b"SUBMIT " + submission.hex().encode("ascii") + (b" later\n" if later else b"\n")
    waiting = [request, frame(ENVELOPE, head)]
    length = sum(map(len, waiting))
    octets = crc = 0
    try:
        for piece in message:
            octets += len(piece)
            crc = crc32(piece, crc)
            for start in range(0, len(piece), PIECE):
                part = frame(MESSAGE, piece[start : start + PIECE])
                waiting.append(part)
                length += len(part)
            if not piece:
                waiting.append(frame(MESSAGE, b""))
            if length >= PIECE or not piece:
                stream.send(b"".join(waiting), _WRITE)
                waiting.clear()
                length = 0
        waiting.append(frame(END, b"%d %08x" % (octets, crc)))
        stream.send(b"".join(waiting), _WRITE)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has usually said why: too big, no room
    answer = _take_answer(stream)
    _acknowledge(stream)
    return answer


def _ask(path: str, submission: bytes, why: str) -> str:
    """What became of a submission.  Raises Lost."""
    try:
        stream = _connect(path)
    except NotServed as exc:
        raise Lost(f"{why}; then {exc}", kept=True) from exc
    try:
        stream.send(b"STATUS " + submission.hex().encode("ascii") + b"\n", _WRITE)
        answer = _take_answer(stream)
        _acknowledge(stream)
        return answer
    except Refused as exc:
        raise Lost(why, kept=False) from exc
    except (Broken, OSError) as exc:
        raise Lost(f"{why}; then {_words(exc)}", kept=True) from exc
    finally:
        stream.close()


def _acknowledge(stream: Stream) -> None:
    try:
        stream.send(b"ACK\n", _WRITE)
    except OSError:
        pass  # a tombstone more


def _request(path: str, line: bytes) -> str:
    stream = _connect(path)
    try:
        stream.send(line + b"\n", _WRITE)
        return _take_answer(stream)
    except (Broken, OSError) as exc:
        raise SpoolError(f"{path}: {_words(exc)}") from exc
    finally:
        stream.close()


def _take_answer(stream: Stream) -> str:
    """The text of OK.  Raises Refused for NO, Broken, OSError."""
    word, _, text = stream.line(_ANSWER).decode("utf-8", "backslashreplace").partition(" ")
    if word == "OK":
        return text
    if word != "NO":
        raise Broken("an answer that is none")
    code, _, rest = text.partition(" ")
    status, _, reason = rest.partition(" ")
    number = int(code) if code.isascii() and code.isdecimal() else SpoolError.exit_code
    raise Refused(number if number in _CODES else SpoolError.exit_code, status, reason)


def _words(exc: BaseException) -> str:
    return (isinstance(exc, OSError) and exc.strerror) or str(exc) or type(exc).__name__
