"""One session with one server: the driver that joins ``client.Connection`` and ``stream.Stream``.

    stream = connect("192.0.2.1", 25, deadlines.connect)
    session = Session(stream, hello=b"host.example.org", tls="opportunistic", trust=trust, server_name="mx.example.net")
    session.open()                                              greeting, EHLO, STARTTLS, AUTH
    for transaction, results in session.transact(upcoming):     one Answer or SmtpError a recipient
        ...
    session.quit()

``open`` raises; ``transact`` gives results, in the order of the recipients.  What a result means for the message is not
decided here.  No message is ever sent over a connection with less TLS than asked for.

    the server offers            round trips a message      what is in flight
    neither                      one a command              one command
    PIPELINING                   one                        a message's end, and the next one's MAIL, RCPT and DATA
    PIPELINING and CHUNKING      less than one              up to ``WINDOW`` whole transactions of up to ``_SMALL`` octets

The first transaction of ``transact`` is never sent whole before a reply has come: the server may have left meanwhile.

Every ``SmtpError`` that leaves here has a ``phase``: "connect", or the command that failed by its name in
``client`` ("greeting", "EHLO", "STARTTLS", "AUTH", "MAIL FROM", "RCPT TO", "DATA", "end of data", "RSET").

The one window in which a message can arrive twice: the connection is lost after the last octet of the message was sent
and before its reply came.  The error then has phase "end of data"; the server may have the message, and whoever tries
again may send it a second time.  While the message itself is being written the phase is "DATA", and nothing was
delivered.  With CHUNKING up to ``WINDOW`` messages are in that window at a time, else one.

    what ends the session                  the message that it concerns       those sent whole behind it     the others
    421, or RSET refused and nothing       has that answer                    "MAIL FROM": RFC 5321          "MAIL FROM"
    said any more                                                             section 3.8, replies come in
                                                                              order: it did not come to them
    connection lost, time over, garbage    as above: "end of data" once it    "end of data": it may have     "MAIL FROM"
                                           was sent whole                     them, its replies be lost

Of a server that offers PIPELINING or CHUNKING and cannot do it ``stumbled`` says so afterwards.

Between two transactions in flight stands a RSET: where the first has no recipient left, a server is still in it, and
would take the second one's recipients and content with the first one's sender.

    an address that is not ASCII     SMTPUTF8 offered                 not offered
    in its domain alone              as it is; MAIL has SMTPUTF8      the domain in A-labels
    in its local part                as it is; MAIL has SMTPUTF8      Utf8NotOffered: for the recipient whose it is,
                                                                      for all when it is the sender's

Octets above 127 in the header alone ask for no SMTPUTF8: of the servers without it nearly all pass them on, and
to refuse them would lose mail that every other agent delivers.

Source: RFC 5321, RFC 2033 (LMTP), RFC 2920, RFC 3207, RFC 4954, RFC 1870, RFC 6152, RFC 3461 (DSN), RFC 6531 (SMTPUTF8), RFC 5891 (IDNA).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
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
from minisend.smtp.wire import crlf

if TYPE_CHECKING:
    from minisend.smtp.handshake import Trust

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

#: Transactions in flight with CHUNKING.  What is in flight when the power fails may go out twice.
WINDOW = 8
#: A message of more octets is not sent before somebody is known to be there for it.
_SMALL = 64 * 1024
#: Of a larger one, octets that go out at a time.
_CHUNK = 256 * 1024


# Command → its field of ``Deadlines``.
_LIMITS = {
    client.GREETING: "greeting",
    client.EHLO: "hello",
    client.HELO: "hello",
    client.LHLO: "hello",
    client.STARTTLS: "starttls",
    client.AUTH: "auth",
    client.MAIL: "mail",
    client.RCPT: "rcpt",
    client.DATA: "data",
    client.BDAT: "data",
    client.END_OF_DATA: "end_of_data",
    client.RSET: "rset",
}


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
        return float(getattr(self, _LIMITS.get(command, "quit")))


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


_NO_REQUEST = DsnRequest()


@dataclass(slots=True)
class Transaction:
    """One transaction to be made.

    ``sender``, ``recipients``  paths without brackets; ``b""`` is the null reverse-path
    ``content``    gives the message in any line ends; called at most once, and only when it is to be sent
    ``size``       its octets with CRLF line ends, for SIZE; 0 when that is not known
    ``eight_bit``  it has octets above 127: BODY=8BITMIME is said when offered
    ``ret``        "FULL" | "HDRS", in any case, "" leaves it to the server
    ``envid``      the sender's name for the transaction, printable ASCII, not yet xtext; "" for none
    ``dsn``        one for each recipient, in order; none at all when nothing was asked for any
    """

    sender: bytes
    recipients: Sequence[bytes]
    content: Callable[[], Iterable[bytes]]
    size: int
    eight_bit: bool
    ret: str = ""
    envid: str = ""
    dsn: Sequence[DsnRequest] = ()


Results = list[Answer | SmtpError]
"""One a recipient, in order: the ``Answer`` that settled it - to the message, or the refusal of MAIL, RCPT, DATA or BDAT -
or the error that ended the session before it was settled, or kept the recipient out of the transaction.
An ``Answer`` with ``reply.ok`` is always the one to "end of data"."""


class _Flight:
    """A transaction that is under way.

    ``results``  as far as they are known
    ``mail``     path and parameters
    ``rcpts``    index, path and parameters of each who can be asked for
    ``reset``    RSET was said before it
    ``whole``    its last octet was written: the server may have it
    ``failed``   what reading its content raised
    """

    __slots__ = (
        *("accepted", "failed", "mail", "rcpts", "reset"),
        *("results", "transaction", "whole"),
    )

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self.results: list[Answer | SmtpError | None] = [None] * len(transaction.recipients)
        self.mail: tuple[bytes, list[bytes]] = (b"", [])
        self.rcpts: list[tuple[int, bytes, list[bytes]]] = []
        self.accepted = 0
        self.reset = False
        self.whole = False
        self.failed: Exception | None = None

    def settle(self, result: Answer | SmtpError) -> None:
        """For all who have no result yet."""
        self.results = [result if each is None else each for each in self.results]

    @property
    def settled(self) -> bool:
        return None not in self.results


class Session:
    """One session.

    ``hello``        our name for EHLO, octets
    ``tls``          "none" | "opportunistic" (if offered) | "starttls" (or nothing) | "implicit" (from the first octet)
    ``trust``        needed unless ``tls`` is "none"; what it verifies is the caller's policy
    ``server_name``  name for SNI and for the certificate
    ``credentials``  None: no AUTH
    ``auth``         "auto" or the mechanism to use, as ``auth.choose`` takes it
    ``trace``        gets each line of the dialogue, without secrets
    ``allow_cleartext``  let a password go over a connection without TLS
    ``lmtp``         the server speaks LMTP: each recipient that it accepts gets an answer of its own to the message
    ``pipelining``   False: one command at a time, whatever the server offers
    """

    def __init__(
        self,
        stream: Stream,
        *,
        hello: bytes,
        tls: str = "none",
        trust: "Trust | None" = None,
        server_name: str | None = None,
        credentials: auth.Credentials | None = None,
        auth: str = "auto",
        deadlines: Deadlines | None = None,
        trace: Callable[[str], None] | None = None,
        allow_cleartext: bool = False,
        lmtp: bool = False,
        pipelining: bool = True,
    ) -> None:
        if tls not in _TLS_LEVELS:
            raise LocalProtocolError(f"not a level of TLS: {tls!r}")  # and must not pass for "none"
        self._stream = stream
        self._hello_name = hello
        self._tls = tls
        self._trust = trust
        self._server_name = server_name
        self._credentials = credentials
        self._mechanism = auth
        self._deadlines = deadlines or Deadlines()
        self._trace = trace
        self._allow_cleartext = allow_cleartext
        self._lmtp = lmtp
        self._pipelining = pipelining
        self._connection = Connection(trace, lmtp=lmtp)
        self._answers: deque[Answer] = deque()  # read, not asked for yet
        self._fault: SmtpError | None = None  # what ended the session, due when _answers is empty
        self._flying: deque[_Flight] = deque()  # oldest first
        self._heard = False  # since ``transact`` began: the server is there
        self._ahead = self._chunking = False  # how it is done
        self._stumbled = False
        self._ends_at = 0  # octets sent when the message after DATA is whole

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
            and self._connection.state in (State.READY, State.MAIL, State.RCPT, State.CHUNKS)
        )

    @property
    def in_doubt(self) -> bool:
        """A message is sent to its end, and not answered: the server may have it."""
        return any(flight.whole for flight in self._flying)

    @property
    def stumbled(self) -> bool:
        """The session has ended, and what was sent ahead of its turn may be why: the next one better has no ``pipelining``.

        That is: a server that was there fell silent or left with further commands behind the one it had to answer;
        it answered with garbage; or it offers BDAT and does not know it.  Not so with 421, the right way to leave.
        """
        return self._stumbled

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
            if self._trust is not None:
                self._stream.keep_tls_session(self._trust, self._server_name)
        except SmtpError as error:
            if isinstance(error, HandshakeError):
                error.plain_text_allowed = self._tls == "opportunistic" and not error.taken_up
            # What has no phase yet failed between commands: while choosing how to encrypt or authenticate.
            blame(error, client.AUTH if isinstance(error, auth.AuthError) else client.STARTTLS)
            self.quit()
            raise
        except BaseException:
            self.close()
            raise

    def transact(
        self, upcoming: Callable[[], Transaction | None]
    ) -> Iterator[tuple[Transaction, Results | Exception]]:
        """One transaction after the other, as close upon each other as the server allows.

        ``upcoming``  gives the next transaction when there is room for it, None when there is none now; must not raise

        Ends when nothing is in flight and ``upcoming`` gives None, or when the session is no longer ``usable``; all
        that was taken from ``upcoming`` has been given back then, in the same order, with its results, or with the exception
        that reading its content raised: then no half message is taken for a whole one.

        Whether the server took ``ret``, ``envid`` and ``dsn`` on itself is ``extensions.dsn``, also when the session has ended.
        How many recipients it takes is ``extensions.rcpt_max``; they are not divided here.
        """
        if not self.usable:
            raise LocalProtocolError("session cannot take another message")
        offered = self.extensions
        pipelining = offered.pipelining and self._pipelining
        self._heard = False
        self._ahead = pipelining
        self._chunking = pipelining and offered.chunking
        if self._chunking:
            flights = self._in_window(upcoming)
        elif pipelining:
            flights = self._one_ahead(upcoming)
        else:
            flights = self._one_by_one(upcoming)
        try:
            for flight in flights:
                if flight.failed is not None:
                    yield flight.transaction, flight.failed
                else:
                    yield flight.transaction, [each for each in flight.results if each is not None]
        except BaseException:
            self.close()
            raise
        if not self.usable:
            self.close()

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
    ) -> Results:
        """One transaction alone, arguments as ``Transaction``.

        What reading ``content`` raises goes through, with the connection closed.
        """
        waiting = [
            Transaction(
                sender, recipients, lambda: content, size, eight_bit, ret=ret, envid=envid, dsn=dsn
            )
        ]
        ((_, results),) = self.transact(lambda: waiting.pop() if waiting else None)
        if isinstance(results, Exception):
            self.close()
            raise results
        return results

    def quit(self) -> None:
        """Say goodbye if the session is in a state for it, and close.  Raises nothing of its own."""
        try:
            if self._fault is None and not self._connection.awaited:
                self._connection.quit()
                self._answer()
        except SmtpError:
            pass
        finally:
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
        if answer.reply.permanent and not self._lmtp:
            # RFC 5321 section 3.2: a server from before ESMTP.
            self._connection.helo(self._hello_name)
            answer = self._answer()
        if not answer.reply.ok:
            raise Refused(answer)

    def _ask_for_tls(self) -> None:
        required = self._tls == "starttls"
        if not self.extensions.starttls:
            if required:
                raise self._without_tls("does not offer STARTTLS")
            return
        self._connection.starttls()
        answer = self._answer()
        if answer.reply.code == 421:
            raise Refused(answer)
        if not answer.reply.ok:
            if required:
                raise self._without_tls(f"refused STARTTLS: {answer.reply}")
            return
        self._start_tls(client.STARTTLS)
        self._connection.tls_established()
        self._say_hello()

    def _without_tls(self, why: str) -> TlsError:
        text = f"TLS is required, and the server {why}"
        if self._trust is not None:
            from minisend.smtp.handshake import Fault

            text = self._trust.advised(Fault.NOT_OFFERED, text)
        return TlsError(text)

    def _start_tls(self, phase: str) -> None:
        if self._fault is not None:  # octets behind the reply to STARTTLS
            raise self._fault
        try:
            if self._trust is None:
                raise LocalProtocolError("TLS without saying whom to trust")
            self._stream.start_tls(self._trust, self._server_name, self._deadlines.starttls)
        except SmtpError as error:
            self._fault = blame(error, phase)
            raise
        if self._trace is not None:
            self._trace(f"-- {self._stream.tls}")

    def _authenticate(self, credentials: auth.Credentials) -> None:
        self._connection.hide(credentials.password, credentials.token)
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

    # Transactions

    def _one_by_one(self, upcoming: Callable[[], Transaction | None]) -> Iterator[_Flight]:
        """A reply is waited for before the next command is sent."""
        connection = self._connection
        while self.usable and (flight := self._next(upcoming)) is not None:
            if not flight.settled:
                self._flying.append(flight)
                try:
                    self._reset_if_needed()
                    connection.mail(*flight.mail)
                    mail = self._answer()
                    if not mail.reply.ok:
                        flight.settle(mail)
                    else:
                        for index, path, parameters in flight.rcpts:
                            connection.rcpt(path, parameters)
                            self._take_rcpt(flight, index, self._answer())
                            if flight.settled:
                                break
                        if flight.accepted and not flight.settled:
                            connection.data()
                            self._after_data(flight, self._answer())
                except SmtpError as error:
                    flight.settle(self._blamed(flight, error))
                self._flying.clear()
            yield flight

    def _one_ahead(self, upcoming: Callable[[], Transaction | None]) -> Iterator[_Flight]:
        """MAIL, RCPT and DATA of a message go out behind the end of the one before it (RFC 2920)."""
        connection = self._connection
        following: _Flight | None = None
        ready: _Flight | None = None

        def prepare() -> None:
            # While the server thinks: what it takes to have the next message ready is not to be waited for.
            nonlocal ready
            if ready is None and self._alive:
                ready = self._next(upcoming)

        def follow() -> None:
            nonlocal following, ready
            prepare()
            following, ready = ready, None
            if following is not None and not following.settled:
                self._flying.append(following)
                self._say_envelope(following)
                connection.data()

        while True:
            if following is None and self.usable:
                follow()
            flight, following = following, None
            if flight is None:
                if ready is not None:
                    ended = self._fault or NetworkError("the server has ended the session")
                    ready.settle(self._blamed(ready, ended))
                    yield ready
                return
            if not flight.settled:
                try:
                    self._hear_envelope(flight)
                    self._after_data(flight, self._answer(), follow, prepare)
                except SmtpError as error:
                    flight.settle(self._blamed(flight, error))
                self._flying.popleft()
            yield flight

    def _in_window(self, upcoming: Callable[[], Transaction | None]) -> Iterator[_Flight]:
        """Whole transactions follow one another without a word from the server (RFC 3030 section 4.2, RFC 2920)."""
        flying = self._flying
        alone: _Flight | None = None
        while True:
            while self._alive and alone is None and len(flying) < WINDOW:
                flight = self._next(upcoming)
                if flight is None:
                    break
                if flight.settled:
                    flying.append(flight)
                elif not (self._heard and 0 < flight.transaction.size <= _SMALL):
                    alone = flight
                else:
                    self._say_whole(flight)
            if flying:
                flight = flying[0]
                if not flight.settled and flight.failed is None:
                    self._hear_whole(flight)
            elif alone is not None:
                flight, alone = alone, None
                flying.append(flight)
                try:
                    if self._fault is not None:
                        raise self._fault
                    self._say_envelope(flight)
                    self._hear_envelope(flight)
                    self._send_chunks(flight)
                except SmtpError as error:
                    flight.settle(self._blamed(flight, error))
            else:
                return
            flying.popleft()
            yield flight

    @property
    def _alive(self) -> bool:
        return self._fault is None and self._connection.state is not State.CLOSED

    def _next(self, upcoming: Callable[[], Transaction | None]) -> _Flight | None:
        """The next transaction; settled already when nobody of it can be asked for."""
        transaction = upcoming()
        if transaction is None:
            return None
        flight = _Flight(transaction)
        try:
            if transaction.dsn and len(transaction.dsn) != len(transaction.recipients):
                raise LocalProtocolError(
                    f"{len(transaction.dsn)} DSN requests for {len(transaction.recipients)} recipients"
                )
            if not transaction.recipients:
                raise LocalProtocolError("no recipients")
            flight.mail = self._mail(transaction)
            flight.rcpts = list(self._rcpts(flight))
        except SmtpError as error:
            flight.settle(blame(error, client.MAIL))
        return flight

    def _reset_if_needed(self) -> None:
        if self._connection.state is not State.READY:
            self._connection.rset()
            self._answer_ok()

    def _say_envelope(self, flight: _Flight) -> None:
        connection = self._connection
        if not connection.between_transactions:
            connection.rset()
            flight.reset = True
        connection.mail(*flight.mail)
        for _, path, parameters in flight.rcpts:
            connection.rcpt(path, parameters)

    def _hear_envelope(self, flight: _Flight) -> None:
        """The replies to MAIL and each RCPT.  A 421 says at whatever point that the session is over."""
        if flight.reset:
            self._hear_reset(flight)
        mail = self._answer()
        if not mail.reply.ok:
            flight.settle(mail)
        for index, _, _ in flight.rcpts:
            self._take_rcpt(flight, index, self._answer())

    def _hear_reset(self, flight: _Flight) -> None:
        """Exim refuses RSET before it leaves, when there were too many of them, and does not say 421."""
        reset = self._answer()
        if reset.reply.ok:
            return
        if flight.whole and reset.reply.code != 421:
            with suppress(NetworkError):
                self._answer()
                # It stays, and goes on with what is behind.
                raise Refused(reset)
            self._dismissed(reset)
        raise Refused(reset)

    def _take_rcpt(self, flight: _Flight, index: int, answer: Answer) -> None:
        if answer.reply.ok:
            flight.accepted += 1
        elif answer.reply.code == 421:
            flight.settle(answer)
        elif flight.results[index] is None:
            flight.results[index] = answer

    def _hear_end(self, flight: _Flight) -> None:
        """The answer to the message, or with LMTP the answers: one for each who was accepted (RFC 2033 section 4.2)."""
        if not (self._lmtp and flight.whole and flight.accepted):
            answer = self._answer()
            if answer.reply.ok and not flight.whole:
                early = f"message acknowledged before it was sent: {answer.reply}"
                raise blame(RemoteProtocolError(early), client.DATA)
            self._refuse_unknown_chunk(flight, answer)
            flight.settle(answer)
            return
        waiting = deque(index for index, result in enumerate(flight.results) if result is None)
        for _ in range(flight.accepted):
            answer = self._answer()
            self._refuse_unknown_chunk(flight, answer)
            if waiting:
                flight.results[waiting.popleft()] = answer

    def _after_data(
        self,
        flight: _Flight,
        data: Answer,
        follow: Callable[[], None] = lambda: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """The message, with what ``follow`` says behind its end in one write; ``meanwhile``: until it is answered."""
        connection = self._connection
        if not data.reply.ok:
            flight.settle(data)
            return
        if flight.settled:
            self._discard(flight.accepted)
            return
        if connection.state is not State.DATA:
            # It has refused the message already, or left.
            flight.settle(self._answer())
            return
        last = b""
        try:
            for piece in connection.message(_content(flight)):
                if last:
                    self._write(last, self._deadlines.block)
                    if self._fault is not None or self._answers:
                        break
                last = piece
            else:
                self._end(flight, last, follow)
        except Exception:
            if flight.failed is None:
                raise
            self.close()
            return
        self._hear_end(flight)

    def _say_whole(self, flight: _Flight) -> None:
        try:
            octets = b"".join(crlf(_content(flight)))
        except Exception:
            if flight.failed is None:
                raise
        else:
            self._say_envelope(flight)
            self._connection.chunk(octets, last=True)
            self._write_end(flight, self._connection.data_to_send())
        self._flying.append(flight)

    def _hear_whole(self, flight: _Flight) -> None:
        try:
            self._hear_envelope(flight)
            self._hear_end(flight)
        except SmtpError as error:
            flight.settle(self._blamed(flight, error))

    def _send_chunks(self, flight: _Flight) -> None:
        """A large message, once it is known that somebody is there for it."""
        if flight.settled:
            return
        held: list[bytes] = []
        length = 0
        try:
            for piece in crlf(_content(flight)):
                if length >= _CHUNK:
                    self._connection.chunk(b"".join(held), last=False)
                    if not (answer := self._answer()).reply.ok:
                        self._refuse_unknown_chunk(flight, answer)
                        flight.settle(answer)
                        return
                    held.clear()
                    length = 0
                held.append(piece)
                length += len(piece)
        except Exception:
            if flight.failed is None:
                raise
            self.close()
            return
        self._connection.chunk(b"".join(held), last=True)
        self._write_end(flight, self._connection.data_to_send())
        self._hear_end(flight)

    def _write_end(self, flight: _Flight, octets: bytes) -> None:
        """Write the last chunk of a message."""
        ends_at = self._stream.sent + len(octets)
        self._write(octets, self._deadlines.block)
        flight.whole = self._stream.sent >= ends_at

    def _end(self, flight: _Flight, last: bytes, follow: Callable[[], None]) -> None:
        """Write the end of a message after DATA, and what ``follow`` says behind it, in one if that is one piece."""
        follow()
        behind = self._connection.data_to_send()
        self._ends_at = self._stream.sent + len(last)
        if len(last) + len(behind) <= _PIECE:
            last, behind = last + behind, b""
        self._write(last, self._deadlines.block)
        flight.whole = self._stream.sent >= self._ends_at
        if behind:
            self._write(behind, self._deadlines.block)

    def _refuse_unknown_chunk(self, flight: _Flight, answer: Answer) -> None:
        """Raise for a server that offers CHUNKING and does not know BDAT, or something on the way to it does not.

        It has read the octets of the message as commands, and what it says to them answers nothing.
        """
        if not self._chunking or answer.reply.code not in (500, 502):
            return
        flight.whole = False
        self._stumbled = True
        unknown = f"BDAT is offered, and not known: {answer.reply}"
        self._fault = blame(RemoteProtocolError(unknown), client.MAIL)
        raise self._fault

    def _blamed(self, flight: _Flight, error: SmtpError) -> SmtpError:
        """The error as it stands for this transaction: in doubt once all of it was written."""
        ended: SmtpError = NetworkError(str(error)) if isinstance(error, Refused) else error
        self._answers.clear()
        # Nothing is wrong with the next one but that it comes too late.  After a refused RSET nobody knows in which
        # transaction the server is.
        self._fault = _in_phase(self._fault or ended, client.MAIL)
        phase = str(vars(error).get("phase", client.MAIL))
        if flight.whole:
            return _in_phase(ended, client.END_OF_DATA)
        if isinstance(error, Refused):
            return error
        return _in_phase(
            error, client.DATA if phase in (client.END_OF_DATA, client.BDAT) else phase
        )

    def _mail(self, transaction: Transaction) -> tuple[bytes, list[bytes]]:
        """Path and parameters.  Raises ``SizeExceeded``, ``Utf8NotOffered``, ``LocalProtocolError``."""
        utf8 = self._utf8(transaction)
        path = _path(client.MAIL, transaction.sender, utf8=utf8)
        offered = self.extensions
        size, ret, envid = transaction.size, transaction.ret, transaction.envid
        if 0 < offered.size < size:
            raise SizeExceeded(
                f"message of {size} octets is larger than the {offered.size} the server takes"
            )
        parameters = []
        if "SIZE" in offered:
            parameters.append(b"SIZE=%d" % size)
        if transaction.eight_bit and offered.eightbitmime:
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
        return path, parameters

    def _utf8(self, transaction: Transaction) -> bool:
        return self.extensions.smtputf8 and not all(
            map(bytes.isascii, (transaction.sender, *transaction.recipients))
        )

    def _rcpts(self, flight: _Flight) -> Iterator[tuple[int, bytes, list[bytes]]]:
        """Index, path and parameters of each who can be asked for; the others have the reason in ``results``."""
        transaction = flight.transaction
        utf8 = self._utf8(transaction)
        for index, (recipient, request) in enumerate(
            zip(transaction.recipients, transaction.dsn or repeat(_NO_REQUEST), strict=False)
        ):
            try:
                path = _path(client.RCPT, recipient, utf8=utf8)
                parameters = _rcpt_parameters(request, utf8=utf8) if self.extensions.dsn else []
            except SmtpError as error:
                flight.results[index] = blame(error, client.RCPT)
                continue
            yield index, path, parameters

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
        self._flush()
        deadline = 0.0
        while not self._answers:
            if self._fault is not None:
                raise self._fault
            if self._connection.state is State.CLOSED:
                raise blame(NetworkError("the server has ended the session"), client.MAIL)
            deadline = deadline or monotonic() + self._patience()
            try:
                self._received(self._stream.read(READ_SIZE, deadline - monotonic()))
            except SmtpError as error:
                self._lose(error, self._connection.awaited)
        answer = self._answers.popleft()
        self._heard = True
        if answer.reply.code == 421:
            self._dismissed(answer)
        return answer

    def _patience(self) -> float:
        """Seconds for the next reply."""
        limits = self._deadlines
        command = self._connection.awaited
        # A server may hold its replies back for as long as it has more to read (RFC 2920 section 3.2).
        if self.in_doubt:
            return max(limits.for_reply(command), limits.end_of_data)
        if command == client.RSET and self._connection.pipelined:
            command = client.MAIL
        return limits.for_reply(command)

    def _dismissed(self, answer: Answer) -> None:
        """The server has left in good order: it did not come to what was sent behind the command that this answers."""
        self._fault = blame(NetworkError("the server has ended the session"), client.MAIL)
        self._stumbled = False
        for number, flight in enumerate(self._flying):
            # With LMTP the message may have reached some, and others still have no answer.
            if number or answer.command != client.END_OF_DATA:
                flight.whole = False

    def _lose(self, error: SmtpError, phase: str) -> None:
        """The session has ended with this, unless it had before."""
        if self._fault is not None:
            return
        self._fault = blame(error, phase)
        if isinstance(error, NetworkError):
            self._stumbled = self._heard and self._connection.pipelined and not error.local
        else:
            self._stumbled = self._ahead and isinstance(error, RemoteProtocolError)

    def _flush(self) -> None:
        octets = self._connection.data_to_send()
        if octets:
            self._write(octets, self._deadlines.for_reply(self._connection.awaited))

    def _write(self, octets: bytes, limit: float) -> None:
        """Write, reading what arrives; what goes wrong is kept until the answers read before it are used up."""
        if self.in_doubt:
            # It may read on only when it has done with what it has.
            limit = max(limit, self._deadlines.end_of_data)
        try:
            for start in range(0, len(octets), _PIECE):
                if not self._alive:
                    return
                self._stream.exchange(octets[start : start + _PIECE], limit, self._received)
        except (NetworkError, TlsError) as error:
            self._lose(error, self._connection.awaited)
            # A server that closes early has usually said why: "552 too big", "421 shutting down".
            try:
                while self._received(self._stream.read(READ_SIZE, 0)):
                    pass
            except NetworkError:
                pass
            except TlsError as alert:
                self._fault = blame(alert, self._connection.awaited)

    def _received(self, octets: bytes) -> bool:
        """Take what the server sent, ``b""`` at its end; True while there is reason to go on writing."""
        connection = self._connection
        phase = connection.awaited
        if not octets:
            self._lose(NetworkError("lost connection: closed by the server"), phase)
            return False
        early = self._stream.sent < self._ends_at
        connection.receive_data(octets)
        try:
            while (answer := connection.next_event()) is not None:
                self._answers.append(answer)
                phase = connection.awaited or phase
                if early:
                    # It no longer reads what we say as a message, or as commands.
                    too_early = NetworkError("answered before the message was sent")
                    self._fault = self._fault or blame(too_early, client.MAIL)
                    return False
        except RemoteProtocolError as error:
            self._lose(error, phase)
            return False
        return connection.state is not State.CLOSED


def _content(flight: _Flight) -> Iterator[bytes]:
    """The message; what reading it raises is in ``failed`` then."""
    try:
        yield from flight.transaction.content()
    except Exception as error:
        flight.failed = error
        raise


def _in_phase(error: SmtpError, phase: str) -> SmtpError:
    """The same error with another phase."""
    of_its_own = copy(error)
    vars(of_its_own)["phase"] = phase
    return of_its_own


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
