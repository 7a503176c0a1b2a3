"""The client's side of an SMTP session without I/O: commands in, octets out; octets in, answers out.

    connection.mail(b"a@example.org")           the command is written ...
    octets = connection.data_to_send()          ... to be sent by whoever does I/O
    connection.receive_data(octets)             what the server sent, cut anywhere
    connection.next_event()                     Answer, or None when octets are missing

Each reply is paired with its command through a queue, so pipelined recipients keep theirs.  Two positions move
through the same states, as in Postfix: ``sent`` runs ahead and takes for granted that every command succeeds; it says
what may be written.  ``state`` follows the replies; it says where the session is.  When nothing is outstanding
they are one again.  Only ``TRANSITIONS`` moves them, except that ``tls_established`` begins the session anew and
a 421 reply, a broken reply or an early refusal of the message ends it.

It never sends what the state forbids or an argument with CR, LF or NUL (``LocalProtocolError``, before an octet is
written).  ``next_event`` and ``tls_established`` raise ``RemoteProtocolError`` and nothing else: for what is not a reply, a
reply nobody asked for, a reply of a class that its command does not have, octets behind the reply to
STARTTLS (RFC 3207 section 4.2: somebody in the middle may have written them), or a message acknowledged before it was sent.
Whatever command is tried after that raises the same again.

With LMTP the message has a reply for each recipient that was accepted, in their order.

Source: RFC 5321, RFC 2033 (LMTP), RFC 2920 (PIPELINING), RFC 3030 (CHUNKING), RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 1870 (SIZE),
RFC 3461 and RFC 6533 (DSN), RFC 6531 (SMTPUTF8), RFC 9422 (LIMITS).
"""

from binascii import b2a_base64

from minisend.errors import LocalProtocolError, RemoteProtocolError
from minisend.smtp.reply import Reply, ReplyParser, printable
from minisend.smtp.wire import wire
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Iterator
else:
    from _collections import deque

# Commands, by the names that logs and delivery status notifications use for them.
GREETING = "greeting"
EHLO = "EHLO"
HELO = "HELO"
LHLO = "LHLO"
STARTTLS = "STARTTLS"
AUTH = "AUTH"
MAIL = "MAIL FROM"
RCPT = "RCPT TO"
DATA = "DATA"
BDAT = "BDAT"
END_OF_DATA = "end of data"
RSET = "RSET"
QUIT = "QUIT"


# The last chunk of a message: its answer is the one to ``END_OF_DATA``.
_LAST = "BDAT LAST"


class State:
    """Where a session is: one of these words."""

    START = "START"  # connected, not greeted (or greeted with a refusal)
    GREETED = "GREETED"
    READY = "READY"  # EHLO or HELO was taken, no transaction
    TLS = "TLS"  # STARTTLS was taken: the next octets are the handshake's
    AUTH = "AUTH"  # a response is due
    MAIL = "MAIL"  # a transaction, no recipient yet
    RCPT = "RCPT"
    CHUNKS = "CHUNKS"  # a part of the message is sent, and more is to come
    DATA = "DATA"  # the message is due
    CLOSED = "CLOSED"


class Transition:
    """What one command does.

    ``allowed``  the states in which it may be sent
    ``sent``     the state in which the next command may count on it; None leaves it
    ``replies``  first digit of the reply -> state, None leaves it; a digit that is not here breaks the protocol
    ``alone``    nothing may be outstanding when it is sent (RFC 2920 section 3.1, RFC 3207, RFC 4954)
    """

    __slots__ = ("allowed", "alone", "replies", "sent")

    def __init__(
        self,
        allowed: frozenset[str],
        sent: str | None,
        replies: dict[int, str | None],
        *,
        alone: bool = False,
    ) -> None:
        self.allowed = allowed
        self.sent = sent
        self.replies = replies
        self.alone = alone


def _in(*states: str) -> frozenset[str]:
    return frozenset(states)


_S = State
TRANSITIONS = {
    GREETING: Transition(_in(), None, {2: _S.GREETED, 4: None, 5: None}),
    EHLO: Transition(
        _in(_S.GREETED, _S.READY), _S.READY, {2: _S.READY, 4: None, 5: None}, alone=True
    ),
    HELO: Transition(
        _in(_S.GREETED, _S.READY), _S.READY, {2: _S.READY, 4: None, 5: None}, alone=True
    ),
    LHLO: Transition(
        _in(_S.GREETED, _S.READY), _S.READY, {2: _S.READY, 4: None, 5: None}, alone=True
    ),
    STARTTLS: Transition(_in(_S.READY), _S.TLS, {2: _S.TLS, 4: None, 5: None}, alone=True),
    AUTH: Transition(
        _in(_S.READY, _S.AUTH),
        _S.AUTH,
        {2: _S.READY, 3: _S.AUTH, 4: _S.READY, 5: _S.READY},
        alone=True,
    ),
    MAIL: Transition(_in(_S.READY), _S.MAIL, {2: _S.MAIL, 4: None, 5: None}),
    RCPT: Transition(_in(_S.MAIL, _S.RCPT), _S.RCPT, {2: _S.RCPT, 4: None, 5: None}),
    DATA: Transition(_in(_S.RCPT), _S.DATA, {3: _S.DATA, 4: None, 5: None}),
    END_OF_DATA: Transition(_in(_S.DATA), _S.READY, {2: _S.READY, 4: _S.READY, 5: _S.READY}),
    BDAT: Transition(_in(_S.RCPT, _S.CHUNKS), _S.CHUNKS, {2: _S.CHUNKS, 4: None, 5: None}),
    # A server that had no recipient, or no sender, may still be in the transaction after it.
    _LAST: Transition(_in(_S.RCPT, _S.CHUNKS), _S.MAIL, {2: _S.READY, 4: _S.MAIL, 5: _S.MAIL}),
    RSET: Transition(
        _in(_S.READY, _S.MAIL, _S.RCPT, _S.CHUNKS), _S.READY, {2: _S.READY, 4: None, 5: None}
    ),
    QUIT: Transition(
        _in(_S.START, _S.GREETED, _S.READY, _S.MAIL, _S.RCPT),
        _S.CLOSED,
        {2: _S.CLOSED, 4: _S.CLOSED, 5: _S.CLOSED},
    ),
}

#: Octets that are kept of a reply to RCPT: there are thousands of them at a time, all kept until the message is answered.  More
#: than the queue has room for in an outcome.
_RCPT_REPLY = 1024

#: A shorter password is not looked for in replies: it would be found in words that have nothing to do with it.
_LEAST_HIDDEN = 4

#: Pieces of a message smaller than this are joined, so that a small message is one write.
_PIECE = 64 * 1024

_BEFORE_PATH = {MAIL: b"MAIL FROM:<", RCPT: b"RCPT TO:<"}
# A forward- or reverse-path between its brackets.  Outside a quoted string a space or a bracket would end the path and
# make parameters of what follows.
_PATH = rb'(?:[^\s<>"\\]|\\[^\s<>]|"(?:[^"\\]|\\.)*")*'
# What needs no closer look, as nearly all of them.
_SPACE = b" \t\n\r\f\v"
_PLAIN = bytes(octet for octet in range(1, 256) if octet not in _SPACE + b'<>"\\')
_WORD = bytes(octet for octet in range(256) if octet not in _SPACE)
# Looked for as numbers: for octets ``in`` first tries whether they are one, and makes an exception each time.
_LF, _CR, _NUL = b"\n\r\0"

# What stands in xtext as it is (RFC 3461 section 4), and of characters in utf-8-addr-xtext (RFC 6533 section 3).
_XCHARS = bytes(octet for octet in range(0x21, 0x7F) if octet not in b"+=")
_QCHARS = _XCHARS.replace(b"\\", b"").decode("ascii")


def _is_one_line(octets: bytes) -> bool:
    return not (_LF in octets or _CR in octets or _NUL in octets)


def check_path(command: str, path: bytes) -> None:
    """Raise ``LocalProtocolError`` for octets that ``mail`` and ``rcpt`` would not put between brackets.

    Not a check of addresses: only of what would not stay one argument of one line.
    """
    # Of a short word less work than ``translate``, which makes a table first.
    if not path.lstrip(_PLAIN):
        return
    import re

    if not re.fullmatch(_PATH, path) or not _is_one_line(path):
        raise LocalProtocolError(f"{command}: not a path: {path!r}")


def xtext(octets: bytes) -> bytes:
    """Any octets as the value of a parameter: printable ASCII but "+" and "=" as it is, the rest "+XX" (RFC 3461 section 4)."""
    return b"".join(b"%c" % octet if octet in _XCHARS else b"+%02X" % octet for octet in octets)


def original_recipient(address: bytes, *, utf8: bool) -> bytes:
    """The value of ORCPT for ``address``, which has no brackets (RFC 3461 section 4.2).

    One in UTF-8 has a type and an encoding of its own, and goes out in ASCII unless the transaction has SMTPUTF8
    (``utf8``); RFC 6533 section 3.
    """
    try:
        text = "" if address.isascii() else address.decode()
    except UnicodeDecodeError:
        text = ""
    if not text:
        return b"rfc822;" + xtext(address)
    encoded = (
        char if char in _QCHARS or (utf8 and not char.isascii()) else f"\\x{{{ord(char):02X}}}"
        for char in text
    )
    return b"utf-8;" + "".join(encoded).encode()


class Extensions(dict[str, tuple[str, ...]]):
    """What EHLO offered: keyword in upper case -> parameters as they came.

    A keyword that comes twice has the parameters of both.
    """

    @classmethod
    def parse(cls, reply: Reply) -> "Extensions":
        """From the reply to EHLO; its first line is the server's name (RFC 5321 section 4.1.1.1)."""
        extensions = cls()
        for line in reply.lines[1:]:
            words = line.decode("ascii", "backslashreplace").split()
            if words and words[0].upper().startswith("AUTH="):
                # From before RFC 2554; servers still offer it for clients as old.
                words[:1] = [name for name in words[0].split("=", 1) if name]
            if words:
                keyword = words[0].upper()
                extensions[keyword] = (*extensions.get(keyword, ()), *words[1:])
        return extensions

    @property
    def size(self) -> int:
        """Octets of the largest message that the server takes; 0 when it does not say (RFC 1870 section 4)."""
        limit = self.get("SIZE", ())[:1]
        return int(limit[0]) if limit and limit[0].isdecimal() and len(limit[0]) <= 20 else 0

    @property
    def pipelining(self) -> bool:
        """RFC 2920."""
        return "PIPELINING" in self

    @property
    def eightbitmime(self) -> bool:
        """RFC 6152."""
        return "8BITMIME" in self

    @property
    def smtputf8(self) -> bool:
        """RFC 6531."""
        return "SMTPUTF8" in self

    @property
    def chunking(self) -> bool:
        """RFC 3030."""
        return "CHUNKING" in self

    @property
    def dsn(self) -> bool:
        """RFC 3461: from here on the server tells the sender what was asked for; without it that is left to us."""
        return "DSN" in self

    @property
    def mail_max(self) -> int:
        """MAIL commands that the server takes in one session, refused ones too; 0 when it does not say (RFC 9422, MAILMAX)."""
        return self._limit("MAILMAX")

    @property
    def rcpt_max(self) -> int:
        """RCPT commands that the server takes in one transaction; 0 when it does not say (RFC 9422, RCPTMAX)."""
        return self._limit("RCPTMAX")

    @property
    def rcpt_domain_max(self) -> int:
        """Domains that recipients may have in one session; 0 when the server does not say (RFC 9422, RCPTDOMAINMAX)."""
        return self._limit("RCPTDOMAINMAX")

    def _limit(self, wanted: str) -> int:
        """A number of at most six digits, as RFC 9422 has it; what is none of the kind, or 0, is as good as unsaid."""
        for limit in self.get("LIMITS", ()):
            name, _, value = limit.partition("=")
            if name.upper() == wanted and value.isdecimal() and len(value) <= 6:
                return int(value)
        return 0

    @property
    def starttls(self) -> bool:
        """RFC 3207."""
        return "STARTTLS" in self

    @property
    def auth(self) -> tuple[str, ...]:
        """Names of SASL mechanisms, upper case, each once, in the server's order (RFC 4954)."""
        return tuple(dict.fromkeys(name.upper() for name in self.get("AUTH", ())))


class Answer(Value):
    """A reply and what it answers.

    ``command``   one of the names above, such as ``RCPT``
    ``argument``  the path without brackets (with LMTP also of the recipient whose reply to "end of data" this is),
                  EHLO's name, AUTH's mechanism (never its secrets), else ``b""``
    """

    __slots__ = ("argument", "command", "reply")

    def __init__(self, command: str, argument: bytes, reply: Reply) -> None:
        self.command = command
        self.argument = argument
        self.reply = reply


class Connection:
    """One session.

    ``trace``  if given, gets each line sent and received, printable and without secrets
    ``lmtp``   the server speaks LMTP
    """

    def __init__(self, trace: "Callable[[str], None] | None" = None, *, lmtp: bool = False) -> None:
        self.extensions = Extensions()
        self._trace = trace
        self._sent = State.START
        #: The state after the last reply, a word of ``State``.  Only this class changes it.
        self.state = State.START
        #: MAIL commands so far.
        self.mails = 0
        # The greeting is a reply that the server owes without a command.
        self._outstanding: deque[tuple[str, bytes]] = deque([(GREETING, b"")])
        self._parser = ReplyParser()
        #: What was written and not yet handed out by ``data_to_send``.
        self.unsent: list[bytes] = []
        self._error: RemoteProtocolError | None = None
        self._message_sent = False
        self._lmtp = lmtp
        # with LMTP, those who have not had their reply to the message
        self._accepted: deque[bytes] = deque()
        self._secrets: list[bytes] = []  # the responses of the last AUTH as they were sent
        self._hidden: list[bytes] = []  # what they were made of
        self._shows_challenges = True

    # Where the session is

    @property
    def awaited(self) -> str:
        """The command that the next reply answers, "" when none is outstanding.

        ``END_OF_DATA`` only once the whole message was handed out: a connection lost while it is "DATA" has
        delivered nothing, one lost while it is "end of data" perhaps has.
        """
        if not self._outstanding:
            return ""
        command = self._outstanding[0][0]
        if command == _LAST:
            return END_OF_DATA
        return DATA if command == END_OF_DATA and not self._message_sent else command

    @property
    def pipelined(self) -> bool:
        """More than one command is unanswered."""
        return len(self._outstanding) > 1

    @property
    def between_transactions(self) -> bool:
        """MAIL may be the next command, as far as is known."""
        return self._sent is State.READY

    # Commands

    def ehlo(self, name: bytes) -> None:
        """``name``: our host name or address literal, octets.  With LMTP the command is LHLO."""
        if self._lmtp:
            self._command(LHLO, b"LHLO " + name, name)
        else:
            self._command(EHLO, b"EHLO " + name, name)

    def helo(self, name: bytes) -> None:
        """As ``ehlo``, for servers that refuse it."""
        self._command(HELO, b"HELO " + name, name)

    def starttls(self) -> None:
        """After its 2yz: no further octet but the handshake, then ``tls_established``."""
        self._command(STARTTLS, b"STARTTLS")

    def tls_established(self) -> None:
        """The handshake is done: what was learnt before it is void (RFC 3207 section 4.2)."""
        if self.state is not State.TLS:
            raise LocalProtocolError(f"TLS established in state {self.state}")
        self._refuse_injected()
        self.extensions = Extensions()
        self._sent = self.state = State.GREETED

    def auth(self, mechanism: str, initial: bytes | None = None) -> None:
        """Begin AUTH; ``initial`` is the initial response, not yet base64, None to be asked for it."""
        name = mechanism.encode("ascii")
        self._secrets.clear()
        # SCRAM's, with the server's proof, are enough to try passwords against at leisure.
        self._shows_challenges = not name.startswith(b"SCRAM-")
        if initial is None:
            self._command(AUTH, b"AUTH " + name, name)
        else:
            # RFC 4954 section 4: "=" stands for a response that is present and empty.
            response = self._secret(initial) or b"="
            self._command(
                AUTH, b"AUTH " + name + b" " + response, name, shown=b"AUTH " + name + b" ***"
            )

    def auth_response(self, response: bytes | None) -> None:
        """Answer a 334 with ``response``, not yet base64; None gives the exchange up."""
        if self._sent is not State.AUTH and self._error is None:
            raise LocalProtocolError(f"AUTH response in state {self._sent}")
        if response is None:
            self._command(AUTH, b"*")
        else:
            self._command(AUTH, self._secret(response), shown=b"***")

    def hide(self, *secrets: bytes) -> None:
        """Passwords and tokens: what a reply to AUTH says is known, shown and kept without them."""
        self._hidden = [secret for secret in secrets if len(secret) >= _LEAST_HIDDEN]

    def mail(self, sender: bytes, parameters: "Iterable[bytes]" = ()) -> None:
        """``sender``: reverse-path without brackets, ``b""`` the null one; ``parameters``: such as ``b"SIZE=1000"``."""
        self._path(MAIL, sender, parameters)
        self.mails += 1

    def rcpt(self, recipient: bytes, parameters: "Iterable[bytes]" = ()) -> None:
        """``recipient``: forward-path without brackets."""
        self._path(RCPT, recipient, parameters)

    def data(self) -> None:
        """After its 354: ``message``, even when no recipient is left (RFC 2920 section 3.1: then an empty one)."""
        self._command(DATA, b"DATA")

    def message(self, content: "Iterable[bytes]") -> "Iterator[bytes]":
        """The message in wire form, in pieces to be sent as they come; ends the transaction.

        ``content`` may have any line ends.  The message counts as sent when the iterator is exhausted, that is
        when the last piece was written: a 2yz before is an error, another reply before is its answer
        and closes the session, as the server no longer reads what we say as a message or as commands.
        """
        if self.state is not State.DATA or self._message_sent:
            raise LocalProtocolError(f"message in state {self.state}")
        return self._pieces(content)

    def chunk(self, octets: bytes, *, last: bool) -> None:
        """A part of the message in ``crlf`` form, all of it when it is the first and ``last`` (RFC 3030).

        The answer to the last one is that to ``END_OF_DATA``, those before are to ``BDAT``.
        """
        self._command(_LAST if last else BDAT, b"BDAT %d%b" % (len(octets), b" LAST" * last))
        self.unsent.append(octets)

    def rset(self) -> None:
        """Give the transaction up."""
        self._command(RSET, b"RSET")

    def quit(self) -> None:
        """The last command."""
        self._command(QUIT, b"QUIT")

    def data_to_send(self) -> bytes:
        """All that was written since the last call."""
        octets = b"".join(self.unsent)
        self.unsent.clear()
        return octets

    # Replies

    def receive_data(self, octets: bytes) -> None:
        """What the server sent.  End of file is the caller's to judge."""
        self._parser.feed(octets)

    def next_event(self) -> Answer | None:
        """The next answer, None when octets are missing or the session is closed.

        Raises ``RemoteProtocolError``, then again at each call.  If it raises anything else, that is a bug.
        """
        if self._error is not None:
            raise self._error
        if self.state is State.CLOSED:
            return None
        if self.state is State.TLS:
            self._refuse_injected()
            return None
        try:
            reply = self._parser.next_reply()
        except RemoteProtocolError as error:
            if self._outstanding and self._outstanding[0][0] == AUTH:
                # Without what is quoted of the line: it may be an echo of ours.
                error = RemoteProtocolError(str(error).partition(":")[0])
            self._error = error
            self._close()
            raise error from None
        if reply is None:
            return None
        if not self._outstanding:
            raise self._fail(f"reply without a command: {reply}")
        command, argument = self._outstanding.popleft()
        if self._accepted and command in (END_OF_DATA, _LAST):
            argument = self._accepted.popleft()
            if self._accepted:
                self._outstanding.appendleft((command, b""))
        if command == AUTH:
            reply = self._without_secret(reply)
        elif command == RCPT and (len(reply.lines) > 1 or len(reply.lines[0]) > _RCPT_REPLY):
            reply = reply.shortened(_RCPT_REPLY)
        if self._trace is not None:
            hides = command == AUTH and reply.code == 334 and not self._shows_challenges
            for line in reply.lines:
                self._trace(f"S: {reply.code} {'***' if hides else printable(line)}")
        self._move(command, reply)
        if self._lmtp:
            if command == RCPT and reply.ok:
                self._accepted.append(argument)
            elif command in (MAIL, RSET):
                self._accepted.clear()
        return Answer(END_OF_DATA if command == _LAST else command, argument, reply)

    # Inside

    def _path(self, command: str, path: bytes, parameters: "Iterable[bytes]") -> None:
        check_path(command, path)
        line = _BEFORE_PATH[command] + path + b">"
        for word in parameters:
            if word.lstrip(_WORD):
                raise LocalProtocolError(f"{command}: space within a parameter: {word!r}")
            line += b" " + word
        self._command(command, line, path)

    def _command(
        self, command: str, line: bytes, argument: bytes = b"", *, shown: bytes | None = None
    ) -> None:
        if self._error is not None:
            # Not our bug: the session ended before this.
            raise self._error
        transition = TRANSITIONS[command]
        if self._sent not in transition.allowed:
            raise LocalProtocolError(f"{command} in state {self._sent}")
        if self._outstanding and (transition.alone or "PIPELINING" not in self.extensions):
            raise LocalProtocolError(f"{command} before the reply to {self._outstanding[0][0]}")
        if _LF in line or _CR in line or _NUL in line:
            raise LocalProtocolError(
                f"{command}: line end or NUL in {line if shown is None else shown!r}"
            )
        if transition.sent is not None:
            self._sent = transition.sent
        self._outstanding.append((command, argument))
        self.unsent.append(line + b"\r\n")
        if self._trace is not None:
            self._trace("C: " + printable(line if shown is None else shown))

    def _move(self, command: str, reply: Reply) -> None:
        """Follow one reply."""
        replies = TRANSITIONS[command].replies
        digit = reply.code // 100
        if reply.code == 421:
            # RFC 5321 section 3.8: the server closes the connection, whatever it was asked.
            self._close()
            return
        if digit not in replies:
            # Taken as it reads, a 250 to DATA would pass for a message delivered.
            raise self._fail(f"unexpected reply to {command}: {reply}")
        if command == END_OF_DATA and not self._message_sent:
            if digit == 2:
                raise self._fail(f"message acknowledged before it was sent: {reply}")
            self._close()
            return
        after = replies[digit]
        if after is not None:
            self.state = after
        if command == DATA and digit == 3:
            if self._lmtp and not self._accepted:
                # RFC 2033 section 4.2: it must refuse.  A reply to the message would never come.
                raise self._fail(f"message asked for without a recipient: {reply}")
            # From here on the server owes one reply whatever is sent, and may give it early.
            self._message_sent = False
            self._outstanding.append((END_OF_DATA, b""))
        elif digit == 2 and command in (EHLO, HELO, LHLO):
            self.extensions = Extensions() if command == HELO else Extensions.parse(reply)
        if not self._outstanding:
            self._sent = self.state

    def _pieces(self, content: "Iterable[bytes]") -> "Iterator[bytes]":
        held: list[bytes] = []
        length = total = 0
        for octets in wire(content):
            held.append(octets)
            length += len(octets)
            if length >= _PIECE:
                yield b"".join(held)
                total += length
                held.clear()
                length = 0
        if held:
            yield b"".join(held)
        if self._trace is not None:
            self._trace(f"C: ({total + length} octets of message)")
        self._message_sent = True
        after = TRANSITIONS[END_OF_DATA].sent
        # While the last piece was written the session may have ended.
        if after is not None and self._sent is State.DATA:
            self._sent = after

    def _without_secret(self, reply: Reply) -> Reply:
        """The reply with an echo of an AUTH response hidden: Sendmail and others quote a line they do not know."""
        if not self._secrets:
            return reply
        import re

        # Of letters alone only the whole word: "***word" would say what it is.
        words = [
            rb"\b%b\b" % secret if secret.isalpha() else re.escape(secret)
            for secret in self._hidden
        ]
        # An echo may be cut short, so its beginning is looked for.
        begins = b"|".join(re.escape(secret[:8]) for secret in self._secrets)
        echo = re.compile(b"|".join([*words, b"(?:" + begins + rb")[A-Za-z0-9+/=]*"]))
        return Reply(reply.code, tuple(echo.sub(b"***", line) for line in reply.lines))

    def _secret(self, response: bytes) -> bytes:
        """A response as it is sent, kept for its echo to be known."""
        # RFC 4954 section 4.
        encoded = b2a_base64(response, newline=False)
        if encoded:
            self._secrets.append(encoded)
        return encoded

    def _refuse_injected(self) -> None:
        if self._parser.pending:
            raise self._fail("octets after the reply to STARTTLS")

    def _fail(self, message: str) -> RemoteProtocolError:
        self._error = RemoteProtocolError(message)
        self._close()
        return self._error

    def _close(self) -> None:
        self._sent = self.state = State.CLOSED
        self._outstanding.clear()
