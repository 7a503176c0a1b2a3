"""What is spoken on the submission socket, by both sides: lines and frames, with a deadline for each.

    service                     client
    minisend 1                                                      the greeting; anything else: nobody serves here
                                SUBMIT <id> [later]                 then frames: E, any number of M, Z
                                STATUS <id>                         what became of a submission whose answer was lost
                                LIST | REMOVE <queue id> | FLUSH    about the caller's own messages
    OK <text>
    NO <exit code> <status> <text>                                  the exit code is sysexits(3), the status RFC 3463
                                ACK                                 to the OK of SUBMIT and STATUS: it was heard

A connection has one request.  A line ends with LF.  A frame is a letter, the length as four octets, most significant
first, and so many octets:

    E    the envelope: the head of a queue file
    M    a piece of the message, at most ``PIECE`` octets
    Z    its end: "<octets> <CRC-32>", decimal and eight hexadecimal digits, of all M together
    L    in the answer to LIST, behind its OK: a message, see ``spool.own_mail``; the last frame is an empty Z

The end of the stream before Z is a client that was killed: nothing is kept.  The submission id is 128 random bits
in hexadecimal, which the client makes once and keeps to itself: the queue id is made from it, and a second copy of
the submission, by whichever way, is known by it.

Loaded by every submission: no heavy import.  The manual is minisend-submit(7).
"""

import _socket
from time import monotonic

GREETING = b"minisend 1"
#: In place of the greeting: so many are being served that this one is not; it tries again, and then the drop takes its message.
BUSY = b"busy"

ENVELOPE = b"E"
MESSAGE = b"M"
END = b"Z"
LISTED = b"L"

#: Octets of a line, and of a piece of a message; of an envelope see ``record.SUBMITTED_HEAD_LIMIT``.
LINE = 1000
PIECE = 64 * 1024
#: Seconds from the greeting in which no client of ours goes another way.  A service that has not taken the envelope in hand by
#: then, having been frozen, must not do it any more.
PATIENCE = 300.0
#: Of the frame Z: both numbers of any message there could be.
LONGEST_END = 40
#: Recipients of a message: more of them than fit with addresses that anybody has, fewer than would fill the memory.
MOST_RECIPIENTS = 50_000
#: Of what the service sends of a message to who lists it.
LONGEST_LISTED = 64 * 1024 * 1024

_HEADER = 5


class Broken(Exception):
    """The other side does not speak this protocol, or has ended in the middle."""


def frame(kind: bytes, octets: bytes) -> bytes:
    """One frame."""
    return kind + len(octets).to_bytes(4, "big") + octets


class Stream:
    """A connected socket, read and written by lines and frames.

    Each call has a deadline in seconds for all of what it reads or writes: one octet at a time gains nothing.
    Raises TimeoutError, OSError, and Broken for what is none and at the end of the stream.
    """

    __slots__ = ("_held", "_socket")

    def __init__(self, connection: _socket.socket) -> None:
        self._socket = connection
        self._held = b""

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def send(self, octets: bytes, seconds: float) -> None:
        """Write all of it."""
        # What sendall counts is the time for all of it.
        self._socket.settimeout(seconds)
        self._socket.sendall(octets)

    def line(self, seconds: float) -> bytes:
        """The next line, without its end."""
        until = monotonic() + seconds
        while (end := self._held.find(b"\n")) < 0:
            if len(self._held) > LINE:
                raise Broken("a line without an end")
            self._read(LINE, until)
        line, self._held = self._held[:end], self._held[end + 1 :]
        return line

    def frame(self, seconds: float, limits: "dict[bytes, int]") -> tuple[bytes, bytes]:
        """Kind and octets of the next frame; ``limits``: the kinds that may come, each with its greatest length."""
        until = monotonic() + seconds
        while len(self._held) < _HEADER:
            self._read(PIECE + _HEADER, until)
        kind = self._held[:1]
        length = int.from_bytes(self._held[1:_HEADER], "big")
        if length > limits.get(kind, -1):
            raise Broken(f"a frame of kind {kind!r} and {length} octets where it has no place")
        octets = self._held[_HEADER : _HEADER + length]
        self._held = self._held[_HEADER + length :]
        if len(octets) < length:
            # Not as a list of what comes, which may be an octet at a time.
            gathered = bytearray(octets)
            while len(gathered) < length:
                gathered += self._receive(min(length - len(gathered), PIECE), until)
            octets = bytes(gathered)
        return kind, octets

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _read(self, count: int, until: float) -> None:
        self._held += self._receive(count, until)

    def _receive(self, count: int, until: float) -> bytes:
        left = until - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        octets = self._socket.recv(count)
        if not octets:
            raise Broken("closed by the other side")
        return octets
