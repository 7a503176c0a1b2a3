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
EHLO, RSET, NOOP, VRFY, HELP, QUIT, each BDAT but the last, and what is unknown (500), malformed (501), not offered
(502, 555) or out of order (503).  ``TRANSITIONS`` is the only writer of the state, but for a 421, which closes.

It never ends DATA at anything but CRLF "." CRLF: a line end of another kind is part of the message, and in a command
an error.  Only a *local* session - a pipe on this machine, whose programs know nothing of a network - is served as
Postfix does (smtpd_helo_required and strict_rfc821_envelopes are "no") and LSB 5.0 asks: LF ends a line as well as CRLF,
HELO may be left out, and so may the brackets of an address.

It does not count: how many recipients or octets are welcome is for the application to say.  Nor does it judge
addresses: SMTPUTF8 is taken, and tells nothing that the octets of the message and its addresses do not.

Limits: a command line has at most 2,048 octets (Postfix's line_length_limit); a longer one is dropped and refused.

Source: RFC 5321, RFC 1870 (SIZE), RFC 2034 (enhanced status codes), RFC 2920 (PIPELINING), RFC 3030 (CHUNKING),
RFC 3461 (DSN), RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 6533 (ORCPT with UTF-8).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

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

    ``size``   octets announced, 0 when not said
    ``body``   "" | "7BIT" | "8BITMIME"
    ``ret``    "" | "FULL" | "HDRS" (RFC 3461 section 4.3)
    ``envid``  printable ASCII, xtext undone; "" when not said (RFC 3461 section 4.4)
    """

    sender: bytes
    size: int = 0
    body: str = ""
    ret: str = ""
    envid: str = ""


@dataclass(frozen=True, slots=True)
class Rcpt:
    """RCPT: the forward-path without brackets and source route, never empty; owes a reply.

    ``notify``    "" | "NEVER" | some of "SUCCESS,FAILURE,DELAY", each once, in the order given (RFC 3461 section 4.1)
    ``original``  the address of an ORCPT of type rfc822 or utf-8, its encoding undone, no control character in it;
                  ``b""`` for none, and for one of another type, which is no address of mail (RFC 3461 section 4.2)
    """

    recipient: bytes
    notify: str = ""
    original: bytes = b""


@dataclass(frozen=True, slots=True)
class MessageData:
    """Octets of the message, the dots that DATA adds undone, line ends as they came; cut anywhere."""

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
    """Where a session is.  ``CHUNKS``: between the chunks of a message, or in one."""

    GREETED = auto()
    READY = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    CHUNKS = auto()
    CLOSED = auto()


class Transition(NamedTuple):
    """``allowed``: where a command is in order, else 503; ``accepted``: the state after its 2yz or 3yz, None leaves it."""

    allowed: frozenset[State]
    accepted: State | None
    refused: State | None = None


_HELLO_SAID = frozenset((State.READY, State.MAIL, State.RCPT, State.CHUNKS))
_COMMAND_STATES = _HELLO_SAID | {State.GREETED}

TRANSITIONS = {
    "HELO": Transition(_COMMAND_STATES, State.READY),
    "EHLO": Transition(_COMMAND_STATES, State.READY),
    "MAIL": Transition(frozenset((State.READY,)), State.MAIL),
    "RCPT": Transition(frozenset((State.MAIL, State.RCPT)), State.RCPT),
    "DATA": Transition(frozenset((State.RCPT,)), State.DATA),
    "BDAT": Transition(frozenset((State.RCPT, State.CHUNKS)), State.CHUNKS),
    "end of data": Transition(frozenset((State.DATA, State.CHUNKS)), State.READY, State.READY),
    "RSET": Transition(_HELLO_SAID, State.READY),
    "NOOP": Transition(_COMMAND_STATES, None),
    "VRFY": Transition(_COMMAND_STATES, None),
    "HELP": Transition(_COMMAND_STATES, None),
    "QUIT": Transition(_COMMAND_STATES, State.CLOSED),
}

#: Commands of RFC 5321 and its extensions that exist but are not offered here.
_NOT_OFFERED = frozenset(("AUTH", "ETRN", "EXPN", "SAML", "SEND", "SOML", "STARTTLS", "TURN"))

# After "FROM:" or "TO:" - an optional source route, which RFC 5321 section 4.1.1.3 says to ignore, the path, parameters.
_PATH = re.compile(
    rb'\s*<(?:@[^\s<>":]*:)?((?:[^\s<>"\\]|\\[^\s<>]|"(?:[^"\\]|\\.)*")*)>(?:\s+(\S.*))?', re.DOTALL
)
# The same without brackets (Postfix: strict_rfc821_envelopes = no).
_BARE_PATH = re.compile(rb"\s*([^\s<>]+)(?:\s+(\S.*))?", re.DOTALL)

_CHUNK = re.compile(rb"(\d{1,20})(\s+LAST)?", re.IGNORECASE)

# What ends DATA; each begins with a line end and goes on with a line of a dot.
_ENDS = (b"\r\n.\r\n",)
_LOCAL_ENDS = (b"\n.\r\n", b"\n.\n")


# Parameters of MAIL and RCPT.  Each function takes what follows the "=", None without one, and raises ValueError.


def _flag(value: bytes | None) -> None:
    if value is not None:
        raise ValueError("a flag has no value")


def _size(value: bytes | None) -> int:
    if value is None or not value.isdigit() or len(value) > 20:
        raise ValueError("no number of octets")
    return int(value)


def _one_of(*words: str) -> Callable[[bytes | None], str]:
    def word(value: bytes | None) -> str:
        text = (value or b"").decode("ascii").upper()
        if text not in words:
            raise ValueError("none of the words")
        return text

    return word


def _envid(value: bytes | None) -> str:
    text = _from_xtext(value or b"").decode("ascii")
    if not text.isprintable() or not 0 < len(text) <= 100:
        raise ValueError("no envelope identifier")
    return text


def _notify(value: bytes | None) -> str:
    words = (value or b"").decode("ascii").upper().split(",")
    if words != ["NEVER"] and not {"SUCCESS", "FAILURE", "DELAY"}.issuperset(words):
        raise ValueError("no conditions")
    return ",".join(dict.fromkeys(words))


def _original(value: bytes | None) -> bytes:
    kind, separator, text = (value or b"").partition(b";")
    if not kind or not separator or not text or len(text) > 500:
        raise ValueError("no type and address")
    kind = kind.lower()
    if kind == b"utf-8":
        address = _UTF8_HEX.sub(lambda found: chr(int(found[1], 16)).encode(), text)
    else:
        address = _from_xtext(text)
    if not address.decode("ascii" if kind == b"rfc822" else "utf-8").isprintable():
        raise ValueError("a control character in the address")
    return address if kind in (b"rfc822", b"utf-8") else b""


_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})*")
_XTEXT_HEX = re.compile(rb"\+(..)")
_UTF8_HEX = re.compile(rb"\\x\{([0-9A-Fa-f]{1,6})\}")


def _from_xtext(value: bytes) -> bytes:
    """RFC 3461 section 4."""
    if not _XTEXT.fullmatch(value):
        raise ValueError("not xtext")
    return _XTEXT_HEX.sub(lambda found: bytes((int(found[1], 16),)), value)


# keyword: (attribute of the event, "" for none; reader of the value)
_Parameters = Mapping[bytes, tuple[str, Callable[[bytes | None], Any]]]
_MAIL_PARAMETERS: _Parameters = {
    b"SIZE": ("size", _size),
    b"BODY": ("body", _one_of("7BIT", "8BITMIME")),
    b"RET": ("ret", _one_of("FULL", "HDRS")),
    b"ENVID": ("envid", _envid),
    b"SMTPUTF8": ("", _flag),
}
_RCPT_PARAMETERS: _Parameters = {
    b"NOTIFY": ("notify", _notify),
    b"ORCPT": ("original", _original),
}


class ServerConnection:
    """One session.

    ``hostname``    our name, for the greeting and EHLO
    ``size_limit``  octets for EHLO's SIZE, 0 for no limit; a MAIL that announces more is refused here (552 5.3.4), one
                    that does not announce is for the application to refuse at ``MessageEnd``
    ``local``       the other end is a program on this machine: LF ends lines too, HELO and brackets may be missing
    """

    def __init__(self, hostname: bytes, *, size_limit: int = 0, local: bool = False) -> None:
        self._hostname = hostname
        self._size_limit = size_limit
        self._local = local
        self._state = State.READY if local else State.GREETED
        self._buffer = bytearray()
        self._searched = 0
        self._overlong = False
        self._owed = ""  # the command whose reply the application owes
        self._message_size = 0
        self._line_end = b"\n" if local else b"\r\n"  # what a dot of DATA's has before it
        self._ends = _LOCAL_ENDS if local else _ENDS
        self._lead = 0  # octets at the head of the buffer that were put there to begin the message with a line end
        self._ended = False  # the buffer begins with the dot line that ends the message
        self._chunk = -1  # octets of BDAT's that are still to come, -1 outside of one
        self._last = False  # it is the last chunk of the message
        self._discarded = False  # it is to be dropped, as its BDAT was refused
        self._out: list[bytes] = [b"220 " + hostname + b" ESMTP\r\n"]

    @property
    def state(self) -> State:
        """Where the session is; ``CLOSED`` after QUIT or a 421: send what is to be sent, then close."""
        return self._state

    def receive_data(self, octets: bytes) -> None:
        """What the client sent.  End of file is the caller's to judge: no message is whole before ``MessageEnd``."""
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
            if self._chunk >= 0:
                octets = self._chunk_octets()
                if octets is not None:
                    return octets
                if self._chunk >= 0:
                    return None
                continue
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
        if code == 421:
            self.close(text, enhanced)
        else:
            self._put(code, text, enhanced)
            self._move(owed, accepted=code < 400)

    def close(self, text: str, enhanced: str) -> None:
        """Say 421 and be done, at any time (RFC 5321 section 3.8); a message under way is void.  Texts as for ``reply``."""
        self._owed = ""
        self._put(421, text, enhanced)
        self._state = State.CLOSED

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
                continue
            if line.endswith(b"\r\n"):
                line = line[:-2]
            elif self._local:
                line = line[:-1]
            else:
                self._put(500, "line does not end with CRLF", "5.5.2")
                continue
            if b"\0" in line or b"\r" in line:
                self._put(500, "CR or NUL within a line", "5.5.2")
                continue
            return line

    def _message_octets(self) -> MessageData | MessageEnd | None:
        """What is certain of the message so far, dots undone; None when octets are missing.

        The buffer began with a line end put before the message, so that a dot on its first line is like any other.
        """
        if not self._ended:
            found = [at for end in self._ends if (at := self._buffer.find(end)) >= 0]
            self._ended = bool(found)
            if found:
                certain = min(found) + len(self._line_end)
            else:
                certain = len(self._buffer) - _held_back(self._buffer, self._ends)
            if certain:
                # The end is not in here, nor the beginning of one: each dot after a line end is one that was added.
                octets = bytes(self._buffer[:certain])
                octets = octets.replace(self._line_end + b".", self._line_end)[self._lead :]
                del self._buffer[:certain]
                self._lead = 0
                if octets:
                    self._message_size += len(octets)
                    return MessageData(octets)
        if not self._ended:
            return None
        del self._buffer[: self._buffer.index(b"\n") + 1]
        self._owed = "end of data"
        return MessageEnd(self._message_size)

    def _chunk_octets(self) -> MessageData | MessageEnd | None:
        """What came of a chunk; None when octets are missing, or when it is complete and was answered.

        A refused chunk is read to its end before it is answered: it must not be taken for commands (RFC 3030 section 2).
        """
        octets = bytes(self._buffer[: self._chunk])
        del self._buffer[: self._chunk]
        self._chunk -= len(octets)
        if octets and not self._discarded:
            self._message_size += len(octets)
            return MessageData(octets)
        if self._chunk:
            return None
        self._chunk = -1
        if self._discarded:
            self._refuse_order("BDAT")
        elif self._last:
            self._owed = "end of data"
            return MessageEnd(self._message_size)
        else:
            self._put(250, f"{self._message_size} octets so far", "2.0.0")
        return None

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
        if name == "BDAT":
            self._bdat(rest, refused=self._state not in transition.allowed)
            return None
        if self._state not in transition.allowed:
            self._refuse_order(name)
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
        elif name == "HELP":
            self._put(214, " ".join(each for each in TRANSITIONS if each.isupper()), "2.0.0")
        elif rest:
            self._put(501, f"{name} takes no parameter", "5.5.4")
        elif name == "DATA":
            self._move(name, accepted=True)
            self._put(354, "end with CRLF . CRLF")
            self._buffer[:0] = self._line_end
            self._lead = len(self._line_end)
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
                b"SMTPUTF8",
                b"DSN",
                b"CHUNKING",
                b"ENHANCEDSTATUSCODES",
            ]
        self._out += [b"250-" + line + b"\r\n" for line in lines[:-1]]
        self._out.append(b"250 " + lines[-1] + b"\r\n")
        return Hello(name, extended)

    def _mail(self, rest: bytes) -> Mail | None:
        parsed = self._path(rest, b"FROM:", _MAIL_PARAMETERS)
        if parsed is None:
            return None
        sender, values = parsed
        mail = Mail(sender, **values)
        if 0 < self._size_limit < mail.size:
            self._put(552, f"message is larger than {self._size_limit} octets", "5.3.4")
            return None
        self._owed = "MAIL"
        return mail

    def _rcpt(self, rest: bytes) -> Rcpt | None:
        parsed = self._path(rest, b"TO:", _RCPT_PARAMETERS)
        if parsed is None:
            return None
        recipient, values = parsed
        if not recipient:
            self._put(501, "recipient is empty", "5.1.3")
            return None
        self._owed = "RCPT"
        return Rcpt(recipient, **values)

    def _bdat(self, rest: bytes, *, refused: bool) -> None:
        found = _CHUNK.fullmatch(rest)
        if found is None:
            # What follows cannot be told from commands any more; Postfix ends such a session too.
            self.close("expected BDAT <octets> [LAST]", "4.5.4")
            return
        self._chunk = int(found[1])
        self._last = found[2] is not None
        self._discarded = refused
        if not refused:
            if self._state is not State.CHUNKS:
                self._message_size = 0
            self._move("BDAT", accepted=True)

    def _path(
        self, rest: bytes, keyword: bytes, known: _Parameters
    ) -> tuple[bytes, dict[str, Any]] | None:
        """Path and parameters; None when they are malformed, which was answered."""
        found = None
        if rest.upper().startswith(keyword):
            after = rest[len(keyword) :]
            found = _PATH.fullmatch(after) or (self._local and _BARE_PATH.fullmatch(after)) or None
        if found is None:
            self._put(501, f"expected {keyword.decode('ascii')}<address>", "5.5.4")
            return None
        values: dict[str, Any] = {}
        seen = set()
        for parameter in (found[2] or b"").split():
            word, equals, value = parameter.partition(b"=")
            word = word.upper()
            if word not in known:
                self._put(555, "parameter not known", "5.5.4")
                return None
            attribute, read = known[word]
            try:
                if word in seen:
                    raise ValueError("given twice")
                seen.add(word)
                meaning = read(value if equals else None)
            except ValueError:
                self._put(501, f"parameter {word.decode('ascii')} not understood", "5.5.4")
                return None
            if attribute:
                values[attribute] = meaning
        return found[1], values

    # Inside

    def _move(self, command: str, *, accepted: bool) -> None:
        transition = TRANSITIONS[command]
        after = transition.accepted if accepted else transition.refused
        if after is not None:
            self._state = after

    def _refuse_order(self, name: str) -> None:
        if name in ("DATA", "BDAT") and self._state is State.MAIL:
            self._put(554, "no valid recipients", "5.5.1")
        else:
            self._put(503, "command out of order", "5.5.1")

    def _put(self, code: int, text: str, enhanced: str = "") -> None:
        line = f"{code} {enhanced} {text}" if enhanced else f"{code} {text}"
        if not (line.isascii() and line.isprintable()):
            raise LocalProtocolError(f"not one line of printable ASCII: {line!r}")
        self._out.append(line.encode("ascii") + b"\r\n")


def _held_back(octets: bytearray, ends: tuple[bytes, ...]) -> int:
    """Length of the longest end of ``octets`` that may be the beginning of one of ``ends``."""
    for length in range(max(map(len, ends)) - 1, 0, -1):
        if octets.endswith(tuple(end[:length] for end in ends if len(end) > length)):
            return length
    return 0
