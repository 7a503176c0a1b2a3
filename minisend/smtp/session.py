"""One session with one server: the driver that joins ``client.Connection`` and ``stream.Stream``.

    stream = connect("192.0.2.1", 25, deadlines.connect)
    session = Session(stream, hello=b"host.example.org", tls="opportunistic", tls_context=context, server_name="mx.example.net")
    session.open()                                              greeting, EHLO, STARTTLS, AUTH
    results = session.send(sender, recipients, content, size=n, eight_bit=False)     one Answer or SmtpError a recipient
    session.quit()

``open`` raises; ``send`` gives results, in the order of the recipients.  What a result means for the message is not
decided here.  No message is ever sent over a connection with less TLS than asked for.

Every ``SmtpError`` that leaves here has a ``phase``: "connect", or the command that failed by its name in
``client`` ("greeting", "EHLO", "STARTTLS", "AUTH", "MAIL FROM", "RCPT TO", "DATA", "end of data", "RSET").

The one window in which a message can arrive twice: the connection is lost after the final dot was sent and before its
reply came.  The error then has phase "end of data"; the server may have the message, and whoever tries again may send
it a second time.  While the message itself is being written the phase is "DATA", and nothing was delivered.

    an address that is not ASCII     SMTPUTF8 offered                 not offered
    in its domain alone              as it is; MAIL has SMTPUTF8      the domain in A-labels
    in its local part                as it is; MAIL has SMTPUTF8      Utf8NotOffered: for the recipient whose it is,
                                                                      for all when it is the sender's

Octets above 127 in the header alone ask for no SMTPUTF8: of the servers without it nearly all pass them on, and
to refuse them would lose mail that every other agent delivers.

Source: RFC 5321, RFC 2920, RFC 3207, RFC 4954, RFC 1870, RFC 6152, RFC 3461 (DSN), RFC 6531 (SMTPUTF8), RFC 5891 (IDNA).
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from time import monotonic
from typing import TYPE_CHECKING

from minisend.address import AddressError, to_ascii
from minisend.errors import (
    LocalProtocolError,
    NetworkError,
    RemoteProtocolError,
    SmtpError,
    TlsError,
)
from minisend.smtp import auth, client
from minisend.smtp.client import Answer, Connection, Extensions, State
from minisend.smtp.reply import Reply, printable
from minisend.smtp.stream import READ_SIZE, HandshakeError, Stream, blame

if TYPE_CHECKING:
    import ssl

#: Octets of a command line with its CRLF (RFC 5321 section 4.5.3.1.4): a longer AUTH waits to be asked (RFC 4954 section 4).
_COMMAND_LINE = 512

_TLS_LEVELS = ("none", "opportunistic", "starttls", "implicit")

# Values of RFC 3461: RET (section 4.3), and NOTIFY where it is not NEVER (section 4.1).
_RET = ("FULL", "HDRS")
_NOTIFY = frozenset(("SUCCESS", "FAILURE", "DELAY"))

#: Characters of an ENVID before xtext: what Postfix takes.
_ENVID_LIMIT = 100

#: Octets written under one deadline.
_PIECE = 16 * 1024


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that each phase may take.  RFC 5321 section 4.5.3.2 names most; the others follow Postfix.

    A deadline is for one whole reply, or for one piece of what we write (16 KiB), however many octets it comes in:
    a server that drips an octet at a time gains nothing.
    """

    connect: float = 30.0
    greeting: float = 300.0
    hello: float = 300.0
    starttls: float = 300.0  # the reply, and then the handshake
    auth: float = 300.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    end_of_data: float = 600.0
    rset: float = 20.0
    quit: float = 5.0

    def for_reply(self, command: str) -> float:
        """The limit for the reply to ``command``."""
        return {
            client.GREETING: self.greeting,
            client.EHLO: self.hello,
            client.HELO: self.hello,
            client.STARTTLS: self.starttls,
            client.AUTH: self.auth,
            client.MAIL: self.mail,
            client.RCPT: self.rcpt,
            client.DATA: self.data,
            client.END_OF_DATA: self.end_of_data,
            client.RSET: self.rset,
        }.get(command, self.quit)


class Refused(SmtpError):
    """The server refused a command without which the session cannot go on; ``answer`` says which and how."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.command} refused: {answer.reply}")
        self.answer = answer
        self.phase = answer.command
        self.status = answer.reply.enhanced or f"{answer.reply.code // 100}.0.0"


class SizeExceeded(SmtpError):
    """The message is larger than the server's EHLO said it takes; nothing was sent."""

    status = "5.3.4"


class Utf8NotOffered(SmtpError):
    """An address can be written in UTF-8 only, and the server's EHLO did not offer that; nothing was sent to it."""

    status = "5.6.7"

    def __init__(self, address: bytes) -> None:
        super().__init__(
            f"address needs SMTPUTF8, which the server does not offer: {printable(address)}"
        )


@dataclass(frozen=True, slots=True)
class DsnRequest:
    """What the sender asked to be told of one recipient (RFC 3461); a server that does not offer DSN never hears of it.

    ``notify``    "NEVER", or any of "SUCCESS", "FAILURE", "DELAY" with commas between, in any case; "" leaves it to the server
    ``original``  the address as the sender gave it, octets without brackets; ``b""`` when not known
    """

    notify: str = ""
    original: bytes = b""


class Session:
    """One session.

    ``hello``        our name for EHLO, octets
    ``tls``          "none" | "opportunistic" (if offered) | "starttls" (or nothing) | "implicit" (from the first octet)
    ``tls_context``  needed unless ``tls`` is "none"; what it verifies is the caller's policy
    ``server_name``  name for SNI and for the certificate
    ``credentials``  None: no AUTH
    ``auth``         "auto" or the mechanism to use, as ``auth.choose`` takes it
    ``trace``        gets each line of the dialogue, without secrets
    ``allow_cleartext``  let a password go over a connection without TLS
    """

    def __init__(
        self,
        stream: Stream,
        *,
        hello: bytes,
        tls: str = "none",
        tls_context: "ssl.SSLContext | None" = None,
        server_name: str | None = None,
        credentials: auth.Credentials | None = None,
        auth: str = "auto",
        deadlines: Deadlines | None = None,
        trace: Callable[[str], None] | None = None,
        allow_cleartext: bool = False,
    ) -> None:
        if tls not in _TLS_LEVELS:
            raise LocalProtocolError(f"not a level of TLS: {tls!r}")  # and must not pass for "none"
        self._stream = stream
        self._hello_name = hello
        self._tls = tls
        self._tls_context = tls_context
        self._server_name = server_name
        self._credentials = credentials
        self._mechanism = auth
        self._deadlines = deadlines or Deadlines()
        self._trace = trace
        self._allow_cleartext = allow_cleartext
        self._connection = Connection(trace)
        self._answers: deque[Answer] = deque()  # read, not asked for yet
        self._fault: SmtpError | None = None  # what ended the session, due when _answers is empty

    @property
    def extensions(self) -> Extensions:
        """What the server offered in its last EHLO."""
        return self._connection.extensions

    @property
    def stream(self) -> Stream:
        """The connection, for what it says of its TLS."""
        return self._stream

    @property
    def usable(self) -> bool:
        """Another ``send`` may follow."""
        return (
            self._fault is None
            and not self._connection.awaited
            and self._connection.state in (State.READY, State.MAIL, State.RCPT)
        )

    @property
    def in_doubt(self) -> bool:
        """The message is sent to its end, and not answered: the server may have it."""
        return self._connection.awaited == client.END_OF_DATA

    def open(self) -> None:
        """From the connection to the point where a message may be sent.

        Raises ``Refused``, ``NetworkError``, ``TlsError`` (``HandshakeError`` when the handshake failed),
        ``AuthError``, ``RemoteProtocolError``; the connection is closed then.
        """
        try:
            if self._tls == "implicit":
                self._start_tls("connect")
            self._answer_ok()
            self._say_hello()
            if self._tls in ("starttls", "opportunistic"):
                self._ask_for_tls()
            if self._credentials is not None:
                self._authenticate(self._credentials)
        except SmtpError as error:
            # What has no phase yet failed between commands: while choosing how to encrypt or authenticate.
            blame(error, client.AUTH if isinstance(error, auth.AuthError) else client.STARTTLS)
            self.quit()
            raise
        except BaseException:
            self.close()
            raise

    def send(
        self,
        sender: bytes,
        recipients: Sequence[bytes],
        content: Iterable[bytes],
        *,
        size: int,
        eight_bit: bool,
        ret: str = "",
        envid: str = "",
        dsn: Sequence[DsnRequest] = (),
    ) -> list[Answer | SmtpError]:
        """One transaction; one result a recipient, in order.

        ``sender``, ``recipients``  paths without brackets; ``b""`` is the null reverse-path
        ``content``    the message in any line ends, read only once a recipient was accepted; what it raises goes
                       through, with the connection closed, so that no half message is taken for a whole one
        ``size``       its octets with CRLF line ends, for SIZE
        ``eight_bit``  it has octets above 127: BODY=8BITMIME is said when offered
        ``ret``        "FULL" | "HDRS", in any case, "" leaves it to the server
        ``envid``      the sender's name for the transaction, printable ASCII, not yet xtext; "" for none
        ``dsn``        one for each recipient, in order; none at all when nothing was asked for any

        Whether the server took ``ret``, ``envid`` and ``dsn`` on itself is ``extensions.dsn``, also when the session has ended.
        How many recipients it takes is ``extensions.rcpt_max``; they are not divided here.

        A result is the ``Answer`` that settled the recipient - to the message, or the refusal of MAIL, RCPT or
        DATA - or the error that ended the session before it was settled, or kept the recipient out of
        the transaction.  An ``Answer`` with ``reply.ok`` is always the one to "end of data".
        Raises ``LocalProtocolError`` when not ``usable``.
        """
        if not self.usable:
            raise LocalProtocolError("session cannot take another message")
        if dsn and len(dsn) != len(recipients):
            raise LocalProtocolError(f"{len(dsn)} DSN requests for {len(recipients)} recipients")
        results: list[Answer | SmtpError | None] = [None] * len(recipients)
        ended: Answer | SmtpError
        try:
            utf8 = self.extensions.smtputf8 and not all(map(bytes.isascii, (sender, *recipients)))
            mail = partial(
                self._connection.mail,
                _path(client.MAIL, sender, utf8=utf8),
                self._mail_parameters(size, eight_bit, ret, envid, utf8=utf8),
            )
            rcpts = self._rcpts(recipients, dsn, results, utf8=utf8)
            ended = self._transaction(mail, rcpts, content, results)
        except SmtpError as error:
            blame(error, client.MAIL)
            ended = error
        except BaseException:
            self.close()
            raise
        if not self.usable:
            self.close()
        return [ended if result is None else result for result in results]

    def quit(self) -> None:
        """Say goodbye if the session is in a state for it, and close.  Never raises."""
        try:
            if self._fault is None and not self._connection.awaited:
                self._connection.quit()
                self._answer()
        except SmtpError:
            pass
        self.close()

    def close(self) -> None:
        """Close the connection without a word.  Never raises."""
        if self._fault is None:
            self._fault = blame(
                NetworkError("connection is closed"), self._connection.awaited or client.QUIT
            )
        self._stream.close()

    # From the greeting to the first MAIL

    def _say_hello(self) -> None:
        self._connection.ehlo(self._hello_name)
        answer = self._answer()
        if answer.reply.permanent:
            # RFC 5321 section 3.2: a server from before ESMTP.
            self._connection.helo(self._hello_name)
            answer = self._answer()
        if not answer.reply.ok:
            raise Refused(answer)

    def _ask_for_tls(self) -> None:
        required = self._tls == "starttls"
        if not self.extensions.starttls:
            if required:
                raise TlsError("TLS is required, and the server does not offer STARTTLS")
            return
        self._connection.starttls()
        answer = self._answer()
        if answer.reply.code == 421:
            raise Refused(answer)
        if not answer.reply.ok:
            if required:
                raise TlsError(f"TLS is required, and the server refused STARTTLS: {answer.reply}")
            return
        self._start_tls(client.STARTTLS)
        self._connection.tls_established()
        self._say_hello()

    def _start_tls(self, phase: str) -> None:
        if self._fault is not None:  # octets behind the reply to STARTTLS
            raise self._fault
        try:
            if self._tls_context is None:
                raise LocalProtocolError("no TLS context")
            self._stream.start_tls(self._tls_context, self._server_name, self._deadlines.starttls)
        except SmtpError as error:
            if isinstance(error, HandshakeError):
                error.plain_text_allowed = self._tls == "opportunistic"
            self._fault = blame(error, phase)
            raise
        if self._trace is not None:
            self._trace(f"-- {self._stream.tls}")

    def _authenticate(self, credentials: auth.Credentials) -> None:
        choices = auth.choose(
            self.extensions.auth,
            self._mechanism,
            credentials,
            encrypted=self._stream.encrypted,
            allow_cleartext=self._allow_cleartext,
            binding=self._stream.channel_binding,
        )
        while True:
            name = choices[0].name
            exchange = choices[0].begin()
            try:
                answer = self._run(name, exchange)
                if answer.reply.ok:
                    exchange.accepted()
                    return
            except SmtpError as error:
                blame(error, client.AUTH)
                raise
            choices = auth.further(choices, exchange, answer.reply)
            if not choices:
                raise Refused(_with_reason(answer, exchange.failure))

    def _run(self, name: str, exchange: auth.Exchange) -> Answer:
        """One AUTH to its end; a challenge that the exchange has no response to is answered with "*" (RFC 4954 section 4)."""
        response = exchange.initial
        if (
            response is not None
            and len(f"AUTH {name} \r\n") + len(auth.encode(response)) <= _COMMAND_LINE
        ):
            self._connection.auth(name, response)
            response = None
        else:
            self._connection.auth(name)
        answer = self._answer()
        while answer.reply.code // 100 == 3:
            try:
                if response is None:
                    response = exchange.answer(answer.reply)
                if response is None:
                    raise RemoteProtocolError(f"more challenges than {name} has")
            except SmtpError:
                # What the server says to that, if it does, explains nothing.
                with suppress(SmtpError):
                    self._connection.auth_response(None)
                    self._answer()
                raise
            self._connection.auth_response(response)
            response = None
            answer = self._answer()
        return answer

    # One transaction

    def _mail_parameters(
        self, size: int, eight_bit: bool, ret: str, envid: str, *, utf8: bool
    ) -> list[bytes]:
        """Raises ``SizeExceeded``, ``LocalProtocolError``; ``utf8``: with SMTPUTF8."""
        offered = self.extensions
        if 0 < offered.size < size:
            raise SizeExceeded(
                f"message of {size} octets is larger than the {offered.size} the server takes"
            )
        parameters = []
        if "SIZE" in offered:
            parameters.append(b"SIZE=%d" % size)
        if eight_bit and offered.eightbitmime:
            parameters.append(b"BODY=8BITMIME")
        if utf8:
            parameters.append(b"SMTPUTF8")
        if ret and offered.dsn:
            if ret.upper() not in _RET:
                raise LocalProtocolError(f"RET: not FULL or HDRS: {ret!r}")
            parameters.append(b"RET=" + ret.upper().encode("ascii"))
        if envid and offered.dsn:
            if not (envid.isascii() and envid.isprintable() and len(envid) <= _ENVID_LIMIT):
                raise LocalProtocolError(
                    f"ENVID: not up to {_ENVID_LIMIT} printable ASCII characters: {envid!r}"
                )
            parameters.append(b"ENVID=" + client.xtext(envid.encode("ascii")))
        return parameters

    def _rcpts(
        self,
        recipients: Sequence[bytes],
        dsn: Sequence[DsnRequest],
        results: list[Answer | SmtpError | None],
        *,
        utf8: bool,
    ) -> dict[int, partial[None]]:
        """The commands by index; who cannot be asked for has the reason in ``results``."""
        commands = {}
        for index, (recipient, request) in enumerate(
            zip(recipients, dsn or repeat(DsnRequest()), strict=False)
        ):
            try:
                path = _path(client.RCPT, recipient, utf8=utf8)
                parameters = _rcpt_parameters(request, utf8=utf8) if self.extensions.dsn else []
            except SmtpError as error:
                results[index] = blame(error, client.RCPT)
                continue
            commands[index] = partial(self._connection.rcpt, path, parameters)
        return commands

    def _transaction(
        self,
        mail_command: partial[None],
        rcpt_commands: dict[int, partial[None]],
        content: Iterable[bytes],
        results: list[Answer | SmtpError | None],
    ) -> Answer:
        """Settle what is settled before the end in ``results``; return what settles the others.

        ``rcpt_commands``  index into ``results`` → command
        """
        if not rcpt_commands:
            raise LocalProtocolError("no recipients")
        offered = self.extensions
        connection = self._connection
        if connection.state is not State.READY:
            connection.rset()
            self._answer_ok()
        commands = deque([mail_command, *rcpt_commands.values(), partial(connection.data)])
        if offered.pipelining:
            while commands:
                commands.popleft()()

        def ask() -> Answer:
            if commands:
                commands.popleft()()
            return self._answer()

        # A 421 says at whatever point that the session is over: it settles everybody not settled before.
        mail = ask()
        if not mail.reply.ok:
            results[:] = [mail if result is None else result for result in results]
            if mail.reply.code == 421 or not offered.pipelining:
                return mail
        accepted = 0
        for index in rcpt_commands:
            answer = ask()
            if answer.reply.code == 421:
                return answer
            if answer.reply.ok:
                accepted += 1
            elif results[index] is None:
                results[index] = answer
        if not accepted and not offered.pipelining:
            return mail
        data = ask()
        if None not in results:
            if data.reply.ok:
                self._discard(accepted)
            return data
        if not data.reply.ok:
            return data
        for piece in connection.message(content):
            self._write(piece, self._deadlines.block)
            if self._fault is not None or self._answers:
                break
        return self._answer()

    def _discard(self, accepted: int) -> None:
        """354 although there is nobody to send to: an empty message, its reply ignored (RFC 2920 section 3.1)."""
        if accepted:
            # A server that took recipients after it refused MAIL might deliver the empty message.
            self.close()
            return
        try:
            for piece in self._connection.message(()):
                self._write(piece, self._deadlines.block)
            self._answer()
        except SmtpError:  # all recipients are settled; the session is no longer usable
            pass

    # Octets

    def _answer_ok(self) -> Answer:
        answer = self._answer()
        if not answer.reply.ok:
            raise Refused(answer)
        return answer

    def _answer(self) -> Answer:
        """Send what is to be sent, then wait for the next answer."""
        octets = self._connection.data_to_send()
        if octets:
            self._write(octets, self._deadlines.for_reply(self._connection.awaited))
        deadline = monotonic() + self._deadlines.for_reply(self._connection.awaited)
        while not self._answers:
            if self._fault is not None:
                raise self._fault
            try:
                self._received(self._stream.read(READ_SIZE, deadline - monotonic()))
            except SmtpError as error:
                self._fault = blame(error, self._connection.awaited)
        return self._answers.popleft()

    def _write(self, octets: bytes, limit: float) -> None:
        """Write, reading what arrives; what goes wrong is kept until the answers read before it are used up."""
        try:
            for start in range(0, len(octets), _PIECE):
                if self._fault is not None or self._connection.state is State.CLOSED:
                    return
                self._stream.exchange(octets[start : start + _PIECE], limit, self._received)
        except (NetworkError, TlsError) as error:
            self._fault = blame(error, self._connection.awaited)
            # A server that closes early has usually said why: "552 too big", "421 shutting down".
            try:
                while self._received(self._stream.read(READ_SIZE, 0)):
                    pass
            except (NetworkError, TlsError):
                pass

    def _received(self, octets: bytes) -> bool:
        """Take what the server sent, ``b""`` at its end; True while there is reason to go on writing."""
        phase = self._connection.awaited
        if not octets:
            if self._fault is None:
                self._fault = blame(NetworkError("lost connection: closed by the server"), phase)
            return False
        self._connection.receive_data(octets)
        try:
            while (answer := self._connection.next_event()) is not None:
                self._answers.append(answer)
                phase = self._connection.awaited or phase
        except RemoteProtocolError as error:
            if self._fault is None:
                self._fault = blame(error, phase)
            return False
        return self._connection.state is not State.CLOSED


def _with_reason(answer: Answer, reason: bytes) -> Answer:
    """The refusal of AUTH, with what the server said in a challenge before it as a last line."""
    if not reason:
        return answer
    reply = Reply(answer.reply.code, (*answer.reply.lines, b"(" + reason + b")"))
    return Answer(answer.command, answer.argument, reply)


def _path(command: str, address: bytes, *, utf8: bool) -> bytes:
    """``address`` as it is sent.  Raises ``LocalProtocolError``, ``Utf8NotOffered``; ``utf8``: MAIL has SMTPUTF8."""
    client.check_path(command, address)
    if utf8:
        try:
            address.decode()
        except UnicodeDecodeError:
            raise LocalProtocolError(f"{command}: not UTF-8: {address!r}") from None
        return address
    try:
        path = to_ascii(address)
    except AddressError as error:
        raise Utf8NotOffered(address) from error
    if not path.isascii():
        raise Utf8NotOffered(address)
    return path


def _rcpt_parameters(request: DsnRequest, *, utf8: bool) -> list[bytes]:
    parameters = []
    if request.notify:
        words = request.notify.upper().split(",")
        if words != ["NEVER"] and not _NOTIFY.issuperset(words):
            raise LocalProtocolError(
                f"NOTIFY: not NEVER, nor of SUCCESS, FAILURE, DELAY: {request.notify!r}"
            )
        parameters.append(b"NOTIFY=" + ",".join(words).encode("ascii"))
    if request.original:
        parameters.append(b"ORCPT=" + client.original_recipient(request.original, utf8=utf8))
    return parameters
