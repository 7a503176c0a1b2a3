"""One session with one server: how its transactions follow one another.

    stream = connect("192.0.2.1", 25, deadlines.connect)
    session = Session(stream, hello=b"host.example.org", tls="opportunistic", trust=trust, server_name="mx.example.net")
    session.open()                                              greeting, EHLO, STARTTLS, AUTH
    for transaction, results in session.transact(upcoming):     one Answer or SmtpError a recipient
        ...
    session.quit()

``open`` raises; ``transact`` gives results, in the order of the recipients.  What a result means for the message is not
decided here.

    the server offers            round trips a message      what is in flight
    neither                      one a command              one command
    PIPELINING                   one                        a message's end, and the next one's MAIL, RCPT and DATA
    PIPELINING and CHUNKING      less than one              up to ``WINDOW`` whole transactions of up to ``_SMALL`` octets

The first transaction of ``transact`` is never sent whole before a reply has come: the server may have left meanwhile.

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

Source: RFC 5321, RFC 2033 (LMTP), RFC 2920 (PIPELINING), RFC 3030 (CHUNKING).
"""

from __future__ import annotations

from minisend.errors import LocalProtocolError, NetworkError, RemoteProtocolError, SmtpError
from minisend.smtp import client
from minisend.smtp.client import State
from minisend.smtp.dialogue import PIECE, Refused
from minisend.smtp.opening import Opening
from minisend.smtp.stream import blame
from minisend.smtp.transaction import Flight, Transaction
from minisend.smtp.wire import crlf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from minisend.smtp.client import Answer
    from minisend.smtp.transaction import DsnRequest, Results
else:
    from _collections import deque

#: Transactions in flight with CHUNKING.  What is in flight when the power fails may go out twice.
WINDOW = 8
#: A message of more octets is not sent before somebody is known to be there for it.
_SMALL = 64 * 1024
#: Of a larger one, octets that go out at a time.
_CHUNK = 256 * 1024


class Session(Opening):
    """One session; arguments as ``Opening``."""

    _chunking = False

    @property
    def usable(self) -> bool:
        """Another ``send`` may follow."""
        return (
            self._fault is None
            and not self._connection.awaited
            and self._connection.state in (State.READY, State.MAIL, State.RCPT, State.CHUNKS)
        )

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
        offered = self._connection.extensions
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

    def _one_by_one(self, upcoming: Callable[[], Transaction | None]) -> Iterator[Flight]:
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

    def _one_ahead(self, upcoming: Callable[[], Transaction | None]) -> Iterator[Flight]:
        """MAIL, RCPT and DATA of a message go out behind the end of the one before it (RFC 2920)."""
        connection = self._connection
        following: Flight | None = None

        def follow() -> None:
            nonlocal following
            if self._alive:
                following = self._next(upcoming)
            if following is not None and not following.settled:
                self._flying.append(following)
                self._say_envelope(following)
                connection.data()

        while True:
            if following is None and self.usable:
                follow()
            flight, following = following, None
            if flight is None:
                return
            if not flight.settled:
                try:
                    self._hear_envelope(flight)
                    self._after_data(flight, self._answer(), follow)
                except SmtpError as error:
                    flight.settle(self._blamed(flight, error))
                self._flying.popleft()
            yield flight

    def _in_window(self, upcoming: Callable[[], Transaction | None]) -> Iterator[Flight]:
        """Whole transactions follow one another without a word from the server (RFC 3030 section 4.2, RFC 2920)."""
        flying = self._flying
        alone: Flight | None = None
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

    def _next(self, upcoming: Callable[[], Transaction | None]) -> Flight | None:
        """The next transaction; settled already when nobody of it can be asked for."""
        transaction = upcoming()
        if transaction is None:
            return None
        flight = Flight(transaction)
        flight.prepare(self._connection.extensions)
        return flight

    def _reset_if_needed(self) -> None:
        if self._connection.state is not State.READY:
            self._connection.rset()
            self._answer_ok()

    def _say_envelope(self, flight: Flight) -> None:
        connection = self._connection
        if not connection.between_transactions:
            connection.rset()
            flight.reset = True
        connection.mail(*flight.mail)
        for _, path, parameters in flight.rcpts:
            connection.rcpt(path, parameters)

    def _hear_envelope(self, flight: Flight) -> None:
        """The replies to MAIL and each RCPT.  A 421 says at whatever point that the session is over."""
        if flight.reset:
            self._hear_reset(flight)
        mail = self._answer()
        if not mail.reply.ok:
            flight.settle(mail)
        for index, _, _ in flight.rcpts:
            self._take_rcpt(flight, index, self._answer())

    def _hear_reset(self, flight: Flight) -> None:
        """Exim refuses RSET before it leaves, when there were too many of them, and does not say 421."""
        reset = self._answer()
        if reset.reply.ok:
            return
        if flight.whole and reset.reply.code != 421:
            try:
                self._answer()
            except NetworkError:
                self._dismissed(reset)
            # Else it stays, and goes on with what is behind.
        raise Refused(reset)

    def _take_rcpt(self, flight: Flight, index: int, answer: Answer) -> None:
        if answer.reply.ok:
            flight.accepted += 1
        elif answer.reply.code == 421:
            flight.settle(answer)
        elif flight.results[index] is None:
            flight.results[index] = answer

    def _hear_end(self, flight: Flight) -> None:
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
        flight: Flight,
        data: Answer,
        follow: Callable[[], None] = lambda: None,
    ) -> None:
        """The message, with what ``follow`` says behind its end in one write."""
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
            for piece in connection.message(flight.content()):
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

    def _say_whole(self, flight: Flight) -> None:
        try:
            octets = b"".join(crlf(flight.content()))
        except Exception:
            if flight.failed is None:
                raise
        else:
            self._say_envelope(flight)
            self._connection.chunk(octets, last=True)
            self._write_end(flight, self._connection.data_to_send())
        self._flying.append(flight)

    def _hear_whole(self, flight: Flight) -> None:
        try:
            self._hear_envelope(flight)
            self._hear_end(flight)
        except SmtpError as error:
            flight.settle(self._blamed(flight, error))

    def _send_chunks(self, flight: Flight) -> None:
        """A large message, once it is known that somebody is there for it."""
        if flight.settled:
            return
        held: list[bytes] = []
        length = 0
        try:
            for piece in crlf(flight.content()):
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

    def _write_end(self, flight: Flight, octets: bytes) -> None:
        """Write the last chunk of a message."""
        ends_at = self._stream.sent + len(octets)
        self._write(octets, self._deadlines.block)
        flight.whole = self._stream.sent >= ends_at

    def _end(self, flight: Flight, last: bytes, follow: Callable[[], None]) -> None:
        """Write the end of a message after DATA, and what ``follow`` says behind it, in one if that is one piece."""
        follow()
        behind = self._connection.data_to_send()
        self._ends_at = self._stream.sent + len(last)
        if len(last) + len(behind) <= PIECE:
            last, behind = last + behind, b""
        self._write(last, self._deadlines.block)
        flight.whole = self._stream.sent >= self._ends_at
        if behind:
            self._write(behind, self._deadlines.block)

    def _refuse_unknown_chunk(self, flight: Flight, answer: Answer) -> None:
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

    def _blamed(self, flight: Flight, error: SmtpError) -> SmtpError:
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


def _in_phase(error: SmtpError, phase: str) -> SmtpError:
    """The same error with another phase."""
    from copy import copy

    of_its_own = copy(error)
    vars(of_its_own)["phase"] = phase
    return of_its_own
