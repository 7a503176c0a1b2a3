"""The dialogue of one session: commands out, answers in, over one connection, and what is known when it ends.

Joins ``client.Connection``, which does no I/O, and ``stream.Stream``, which knows no command.  What is said is
``opening``'s and ``session``'s.

Every ``SmtpError`` that leaves here has a ``phase``: "connect", or the command that failed by its name in
``client`` ("greeting", "EHLO", "STARTTLS", "AUTH", "MAIL FROM", "RCPT TO", "DATA", "end of data", "RSET").
An error is kept until the answers that were read before it are used up.

Of a server that offers PIPELINING or CHUNKING and cannot do it ``stumbled`` says so afterwards.
"""

from __future__ import annotations

from time import monotonic

from minisend.errors import NetworkError, RemoteProtocolError, SmtpError, TlsError
from minisend.smtp import client
from minisend.smtp.client import Connection, State
from minisend.smtp.deadlines import Deadlines
from minisend.smtp.stream import READ_SIZE, blame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from minisend.smtp.client import Answer, Extensions
    from minisend.smtp.stream import Stream
    from minisend.smtp.transaction import Flight
else:
    from _collections import deque

#: Octets written under one deadline.
PIECE = 16 * 1024


class Refused(SmtpError):
    """The server refused a command without which the session cannot go on; ``answer`` says which and how."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.command} refused: {answer.reply}")
        self.answer = answer
        self.phase = answer.command
        self.status = answer.reply.enhanced or f"{answer.reply.code // 100}.0.0"


class Dialogue:
    """A connection that was made, and what was said over it.

    ``trace``  gets each line of the dialogue, without secrets
    ``lmtp``   the server speaks LMTP
    ``pipelining``  False: one command at a time, whatever the server offers
    """

    def __init__(
        self,
        stream: Stream,
        deadlines: Deadlines | None,
        trace: Callable[[str], None] | None,
        *,
        lmtp: bool,
        pipelining: bool,
    ) -> None:
        self._stream = stream
        self._deadlines = deadlines or Deadlines()
        self._trace = trace
        self._lmtp = lmtp
        self._pipelining = pipelining
        self._connection = Connection(trace, lmtp=lmtp)
        #: Domains of the recipients so far, for whoever divides these among sessions (``rcpt_domain_max``).
        self.domains: set[bytes] = set()
        self._answers: deque[Answer] = deque()  # read, not asked for yet
        self._fault: SmtpError | None = None  # what ended the session, due when _answers is empty
        self._flying: deque[Flight] = deque()  # oldest first
        self._heard = False  # since ``transact`` began: the server is there
        self._ahead = False  # commands are sent before their turn
        self._stumbled = False
        self._ends_at = 0  # octets sent when the message after DATA is whole
        #: The least seconds that an answer was waited for.
        self.quickest = 0.0

    @property
    def extensions(self) -> Extensions:
        """What the server offered in its last EHLO."""
        return self._connection.extensions

    @property
    def spent(self) -> bool:
        """The server has said that it takes no further MAIL in this session (RFC 9422)."""
        return 0 < self.extensions.mail_max <= self._connection.mails

    @property
    def stream(self) -> Stream:
        """The connection, for what it says of its TLS."""
        return self._stream

    @property
    def in_doubt(self) -> bool:
        """A message is sent to its end, and not answered: the server may have it."""
        for flight in self._flying:  # noqa: SIM110 - asked twice a message, and ``any`` would make a generator each time
            if flight.whole:
                return True
        return False

    @property
    def stumbled(self) -> bool:
        """The session has ended, and what was sent ahead of its turn may be why: the next one better has no ``pipelining``.

        That is: a server that was there fell silent or left with further commands behind the one it had to answer;
        it answered with garbage; or it offers BDAT and does not know it.  Not so with 421, the right way to leave.
        """
        return self._stumbled

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

    @property
    def _alive(self) -> bool:
        return self._fault is None and self._connection.state is not State.CLOSED

    def _answer_ok(self) -> Answer:
        answer = self._answer()
        if not answer.reply.ok:
            raise Refused(answer)
        return answer

    def _answer(self) -> Answer:
        """Send what is to be sent, then wait for the next answer."""
        if self._connection.unsent:
            self._flush()
        if not self._answers:
            self._wait_for_answers()
        answer = self._answers.popleft()
        self._heard = True
        if answer.reply.code == 421:
            self._dismissed(answer)
        return answer

    def _wait_for_answers(self) -> None:
        began = now = monotonic()
        patience = self._patience()
        while not self._answers:
            if self._fault is not None:
                raise self._fault
            if self._connection.state is State.CLOSED:
                raise blame(NetworkError("the server has ended the session"), client.MAIL)
            try:
                self._received(self._stream.read(READ_SIZE, began + patience - now))
            except SmtpError as error:
                self._lose(error, self._connection.awaited)
            now = monotonic()
        if now - began < self.quickest or not self.quickest:
            self.quickest = now - began

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
            for start in range(0, len(octets), PIECE):
                if not self._alive:
                    return
                self._stream.exchange(octets[start : start + PIECE], limit, self._received)
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
