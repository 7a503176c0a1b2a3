"""The server's side of an SMTP session without I/O: octets in, events out; decisions in, octets out.

    server = ServerConnection(b"host.example.org")
    server.receive_data(octets)
    while (event := server.next_event()) is not None:
        match event:
            case Mail() | Rcpt() | MessageEnd():
                server.reply(250, "ok", "2.0.0")          the application decides; 4yz and 5yz refuse
            case MessageData(octets=piece):
                ...
    stream.write(server.data_to_send())

``Mail``, ``Rcpt`` and ``MessageEnd`` owe a reply, and no event follows before it is given.  All else is answered here:
EHLO, RSET, NOOP, VRFY, QUIT, and what is unknown (500), malformed (501), not offered (502, 555) or out of order (503).
``TRANSITIONS`` is the only writer of the state, but for a 421, which closes.

It never ends a message at anything but CRLF "." CRLF: a line end of another kind is part of the message, and in a
command an error.  ``lenient_lf`` is for a pipe on this machine, whose programs end lines with LF: every bare LF
then is CRLF from the start, so both forms agree on where a message ends.

It does not count: how many recipients or octets are welcome is for the application to say.

Limits: a command line has at most 2,048 octets (Postfix's line_length_limit); a longer one is dropped and refused.

Source: RFC 5321, RFC 1870 (SIZE), RFC 2034 (enhanced status codes), RFC 2920 (PIPELINING), RFC 6152 (8BITMIME).
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from minisend.errors import LocalProtocolError

MAX_COMMAND = 2048


@dataclass(frozen=True, slots=True)
class Hello:
    """HELO (``extended`` false) or EHLO was answered; a transaction under way is void."""

    name: bytes
    extended: bool


@dataclass(frozen=True, slots=True)
class Mail:
    """MAIL: the reverse-path without brackets and source route; owes a reply.

    ``size``  octets announced, 0 when not said;  ``body``  "" | "7BIT" | "8BITMIME"
    """

    sender: bytes
    size: int = 0
    body: str = ""


@dataclass(frozen=True, slots=True)
class Rcpt:
    """RCPT: the forward-path without brackets and source route, never empty; owes a reply."""

    recipient: bytes


@dataclass(frozen=True, slots=True)
class MessageData:
    """Octets of the message, dots undone, line ends as they came; cut anywhere."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class MessageEnd:
    """The message is whole, with ``size`` octets; owes a reply, which is the point of responsibility."""

    size: int


@dataclass(frozen=True, slots=True)
class Reset:
    """RSET was answered; a transaction under way is void."""


@dataclass(frozen=True, slots=True)
class Quit:
    """QUIT was answered: send what is to be sent and close."""


Event = Hello | Mail | Rcpt | MessageData | MessageEnd | Reset | Quit


class State(Enum):
    """Where a session is."""

    GREETED = auto()
    READY = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    CLOSED = auto()


class Transition(NamedTuple):
    """``allowed``: where a command is in order, else 503; ``accepted``: the state after its 2yz or 3yz, None leaves it."""

    allowed: frozenset[State]
    accepted: State | None
    refused: State | None = None


_COMMAND_STATES = frozenset((State.GREETED, State.READY, State.MAIL, State.RCPT))
_HELLO_SAID = frozenset((State.READY, State.MAIL, State.RCPT))

TRANSITIONS = {
    "HELO": Transition(_COMMAND_STATES, State.READY),
    "EHLO": Transition(_COMMAND_STATES, State.READY),
    "MAIL": Transition(frozenset((State.READY,)), State.MAIL),
    "RCPT": Transition(frozenset((State.MAIL, State.RCPT)), State.RCPT),
    "DATA": Transition(frozenset((State.RCPT,)), State.DATA),
    "end of data": Transition(frozenset((State.DATA,)), State.READY, State.READY),
    "RSET": Transition(_HELLO_SAID, State.READY),
    "NOOP": Transition(_COMMAND_STATES, None),
    "VRFY": Transition(_COMMAND_STATES, None),
    "QUIT": Transition(_COMMAND_STATES, State.CLOSED),
}

#: Commands of RFC 5321 and its extensions that exist but are not offered here.
_NOT_OFFERED = frozenset(
    ("AUTH", "BDAT", "ETRN", "EXPN", "HELP", "SAML", "SEND", "SOML", "STARTTLS", "TURN")
)

# After "FROM:" or "TO:" - an optional source route, which RFC 5321 section 4.1.1.3 says to ignore, the path, parameters.
_PATH = re.compile(
    rb'\s*<(?:@[^\s<>":]*:)?((?:[^\s<>"\\]|\\[^\s<>]|"(?:[^"\\]|\\.)*")*)>(?:\s+(\S.*))?', re.DOTALL
)

_LONE_LF = re.compile(rb"(?<!\r)\n")
_END = b"\r\n.\r\n"


class ServerConnection:
    """One session.

    ``hostname``    our name, for the greeting and EHLO
    ``size_limit``  octets for EHLO's SIZE, 0 for no limit; a MAIL that announces more is refused here (552 5.3.4), one
                    that does not announce is for the application to refuse at ``MessageEnd``
    ``lenient_lf``  bare LF ends lines (a pipe)
    """

    def __init__(self, hostname: bytes, *, size_limit: int = 0, lenient_lf: bool = False) -> None:
        self._hostname = hostname
        self._size_limit = size_limit
        self._lenient_lf = lenient_lf
        self._state = State.GREETED
        self._buffer = bytearray()
        self._searched = 0
        self._after_cr = False
        self._overlong = False
        self._owed = ""  # the command whose reply the application owes
        self._message_size = 0
        self._lead = 0  # octets at the head of the buffer that were put there to begin the message with a line end
        self._ended = False  # the buffer begins with the dot line that ends the message
        self._out: list[bytes] = [b"220 " + hostname + b" ESMTP\r\n"]

    @property
    def state(self) -> State:
        """Where the session is; ``CLOSED`` after QUIT or a 421: send what is to be sent, then close."""
        return self._state

    def receive_data(self, octets: bytes) -> None:
        """What the client sent.  End of file is the caller's to judge: no message is whole before ``MessageEnd``."""
        if self._lenient_lf and octets:
            ended_cr, self._after_cr = self._after_cr, octets.endswith(b"\r")
            if ended_cr and octets.startswith(b"\n"):
                self._buffer += b"\n"
                octets = octets[1:]
            octets = _LONE_LF.sub(b"\r\n", octets)
        self._buffer += octets

    def next_event(self) -> Event | None:
        """The next event, None when octets are missing or the session is closed.

        Raises ``LocalProtocolError`` when the last event was not replied to.
        """
        if self._owed:
            raise LocalProtocolError(f"reply to {self._owed} is due")
        while self._state is not State.CLOSED:
            if self._state is State.DATA:
                return self._message_octets()
            line = self._line()
            if line is None:
                return None
            event = self._command(line)
            if event is not None:
                return event
        return None

    def reply(self, code: int, text: str, enhanced: str = "") -> None:
        """Decide on the last event: 2yz accepts, 4yz and 5yz refuse, 421 also closes.

        ``text``      one line of printable ASCII
        ``enhanced``  RFC 3463 status code of the same class, "" for none
        """
        if not self._owed:
            raise LocalProtocolError("no reply is due")
        owed, self._owed = self._owed, ""
        self._put(code, text, enhanced)
        if code == 421:
            self._state = State.CLOSED
        else:
            self._move(owed, accepted=code < 400)

    def data_to_send(self) -> bytes:
        """All that was written since the last call."""
        octets = b"".join(self._out)
        self._out.clear()
        return octets

    # Lines

    def _line(self) -> bytes | None:
        """The next command line without its end; None when octets are missing."""
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end < 0:
                if len(self._buffer) > MAX_COMMAND:
                    self._overlong = True
                    self._buffer.clear()
                self._searched = len(self._buffer)
                return None
            line = bytes(self._buffer[: end + 1])
            del self._buffer[: end + 1]
            self._searched = 0
            overlong, self._overlong = self._overlong or len(line) > MAX_COMMAND, False
            if overlong:
                self._put(500, "line too long", "5.5.2")
            elif not line.endswith(b"\r\n"):
                self._put(500, "line does not end with CRLF", "5.5.2")
            elif b"\0" in line or b"\r" in line[:-2]:
                self._put(500, "CR or NUL within a line", "5.5.2")
            else:
                return line[:-2]

    def _message_octets(self) -> MessageData | MessageEnd | None:
        """What is certain of the message so far, dots undone; None when octets are missing.

        The buffer began with a line end put before the message, so that a dot on its first line is like any other.
        """
        if not self._ended:
            end = self._buffer.find(_END)
            self._ended = end >= 0
            certain = end + 2 if self._ended else len(self._buffer) - _held_back(self._buffer)
            if certain:
                # The end is not in here, nor the beginning of one: each dot after a line end is one that was added.
                octets = bytes(self._buffer[:certain]).replace(b"\r\n.", b"\r\n")[self._lead :]
                del self._buffer[:certain]
                self._lead = 0
                if octets:
                    self._message_size += len(octets)
                    return MessageData(octets)
        if not self._ended:
            return None
        del self._buffer[: len(_END) - 2]
        self._owed = "end of data"
        return MessageEnd(self._message_size)

    # Commands

    def _command(self, line: bytes) -> Event | None:
        """Answer one command, or give the event whose reply the application owes."""
        word, _, rest = line.rstrip().partition(b" ")
        name = word.decode("ascii", "backslashreplace").upper()
        rest = rest.strip()
        if name == "RSET" and self._state is State.GREETED:
            name = "NOOP"  # RFC 5321 section 4.1.4: in order at any time; here there is nothing to reset
            rest = b""
        transition = TRANSITIONS.get(name)
        if transition is None:
            if name in _NOT_OFFERED:
                self._put(502, "command not offered", "5.5.1")
            else:
                self._put(500, "command not known", "5.5.2")
            return None
        if self._state not in transition.allowed:
            self._put(503, "no recipients" if name == "DATA" else "command out of order", "5.5.1")
            return None
        if name == "MAIL":
            return self._mail(rest)
        if name == "RCPT":
            return self._rcpt(rest)
        if name in ("HELO", "EHLO"):
            return self._hello(rest, extended=name == "EHLO")
        if name == "VRFY":
            self._put(252, "send to it and see", "2.0.0")
        elif name == "NOOP":
            self._put(250, "ok", "2.0.0")
        elif rest:
            self._put(501, f"{name} takes no parameter", "5.5.4")
        elif name == "DATA":
            self._move(name, accepted=True)
            self._put(354, "end with CRLF . CRLF")
            self._buffer[:0] = b"\r\n"
            self._lead = 2
            self._ended = False
            self._message_size = 0
        else:
            self._move(name, accepted=True)
            if name == "QUIT":
                self._put(221, "bye", "2.0.0")
                return Quit()
            self._put(250, "ok", "2.0.0")
            return Reset()
        return None

    def _hello(self, name: bytes, *, extended: bool) -> Hello | None:
        if not name:
            self._put(501, "host name is missing", "5.5.4")
            return None
        self._move("EHLO" if extended else "HELO", accepted=True)
        lines = [self._hostname]
        if extended:
            lines += [
                b"PIPELINING",
                b"SIZE %d" % self._size_limit,
                b"8BITMIME",
                b"ENHANCEDSTATUSCODES",
            ]
        self._out += [b"250-" + line + b"\r\n" for line in lines[:-1]]
        self._out.append(b"250 " + lines[-1] + b"\r\n")
        return Hello(name, extended)

    def _mail(self, rest: bytes) -> Mail | None:
        parsed = self._path(rest, b"FROM:")
        if parsed is None:
            return None
        sender, parameters = parsed
        size, body = 0, ""
        for parameter in parameters:
            keyword, _, value = parameter.upper().partition(b"=")
            if keyword == b"SIZE" and value.isdigit() and len(value) <= 20:
                size = int(value)
            elif keyword == b"BODY" and value in (b"7BIT", b"8BITMIME"):
                body = value.decode("ascii")
            else:
                known = keyword in (b"SIZE", b"BODY")
                self._put(501 if known else 555, "parameter not understood", "5.5.4")
                return None
        if 0 < self._size_limit < size:
            self._put(552, f"message is larger than {self._size_limit} octets", "5.3.4")
            return None
        self._owed = "MAIL"
        return Mail(sender, size, body)

    def _rcpt(self, rest: bytes) -> Rcpt | None:
        parsed = self._path(rest, b"TO:")
        if parsed is None:
            return None
        recipient, parameters = parsed
        if parameters:
            self._put(555, "parameter not understood", "5.5.4")
        elif not recipient:
            self._put(501, "recipient is empty", "5.1.3")
        else:
            self._owed = "RCPT"
            return Rcpt(recipient)
        return None

    def _path(self, rest: bytes, keyword: bytes) -> tuple[bytes, list[bytes]] | None:
        """Path and parameters; None when they are malformed, which was answered."""
        found = _PATH.fullmatch(rest[len(keyword) :]) if rest.upper().startswith(keyword) else None
        if found is None:
            self._put(501, f"expected {keyword.decode('ascii')}<address>", "5.5.4")
            return None
        return found[1], (found[2] or b"").split()

    # Inside

    def _move(self, command: str, *, accepted: bool) -> None:
        transition = TRANSITIONS[command]
        after = transition.accepted if accepted else transition.refused
        if after is not None:
            self._state = after

    def _put(self, code: int, text: str, enhanced: str = "") -> None:
        line = f"{code} {enhanced} {text}" if enhanced else f"{code} {text}"
        if not (line.isascii() and line.isprintable()):
            raise LocalProtocolError(f"not one line of printable ASCII: {line!r}")
        self._out.append(line.encode("ascii") + b"\r\n")


def _held_back(octets: bytearray) -> int:
    """Length of the longest end of ``octets`` that may be the beginning of the end of data."""
    for length in range(len(_END) - 1, 0, -1):
        if octets.endswith(_END[:length]):
            return length
    return 0
