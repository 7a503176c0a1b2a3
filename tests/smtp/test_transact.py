"""Many transactions over one session: what is in flight, octet for octet, and whose a loss, a refusal and a reply is."""

import select
import socket
import threading
from functools import partial
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.errors import LocalProtocolError, NetworkError, RemoteProtocolError, SmtpError
from minisend.smtp import session as module
from minisend.smtp.client import BDAT, DATA, END_OF_DATA, MAIL, RCPT, RSET, Answer
from minisend.smtp.deadlines import Deadlines
from minisend.smtp.dialogue import Refused
from minisend.smtp.reply import Reply
from minisend.smtp.server import Hello, Mail, MessageData, MessageEnd, Rcpt, ServerConnection
from minisend.smtp.session import Session
from minisend.smtp.stream import Stream, connect
from minisend.smtp.transaction import SizeExceeded, Transaction

PHASES = (
    *("greeting", "hello", "starttls", "auth", "mail", "rcpt"),
    *("data", "block", "end_of_data", "rset", "quit"),
)
LIMITS = Deadlines(**dict.fromkeys(PHASES, 8.0))

AHEAD = (b"PIPELINING",)
WINDOWED = (b"PIPELINING", b"CHUNKING")
MODES = {"one by one": (), "one ahead": AHEAD, "in window": WINDOWED}

LOST = "lost connection: closed by the server"
ENDED = "the server has ended the session"
GARBAGE = "not an SMTP reply: 'wat'"
GO = b"250 m\r\n250 r\r\n354 d\r\n"  # to an envelope and DATA
TAKEN = b"250 m\r\n250 r\r\n250 2.0.0 q\r\n"  # to a whole transaction


def content(number):
    """With a dot to be doubled where that is done, and line ends to be put right."""
    return b"Subject: %d\n\n.dot\r" % number


def chunk(number):
    octets = b"Subject: %d\r\n\r\n.dot\r\n" % number
    return b"BDAT %d LAST\r\n%b" % (len(octets), octets)


def body(number):
    return b"Subject: %d\r\n\r\n..dot\r\n.\r\n" % number


def envelope(number, recipients=1):
    to = b"".join(b"RCPT TO:<%d.%d@y>\r\n" % (number, each) for each in range(recipients))
    return b"MAIL FROM:<%d@x>\r\n%b" % (number, to)


def whole(number):
    """As it stands behind another one in flight."""
    return b"RSET\r\n" + envelope(number) + chunk(number)


def transaction(number, recipients=1, octets=None, size=20):
    return Transaction(
        b"%d@x" % number,
        [b"%d.%d@y" % (number, each) for each in range(recipients)],
        lambda: [content(number)] if octets is None else octets(),
        size=size,
        eight_bit=False,
    )


def answer(command, argument, line):
    return Answer(command, argument, Reply(int(line[:3]), (line[4:],)))


def ok(text=b"2.0.0 q"):
    return Answer(END_OF_DATA, b"", Reply(250, (text,)))


def shown(results):
    """Answers as they are; errors by class, phase and text."""
    if isinstance(results, Exception):
        return repr(results)
    return [r if isinstance(r, Answer) else (type(r), r.phase, str(r)) for r in results]


def flight(peer, octets):
    """One read brings exactly this: what comes in two writes is not one round trip."""
    assert peer.socket.recv(1 << 20) == octets


@pytest.fixture
def converse(serve):
    """``converse(script, transactions)`` → the results, and the session, which is closed after the test."""
    sessions = []

    def run(script, transactions, *, keywords=(), stream=Stream, **options):
        def greeted(peer):
            peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.hello(*keywords)
            script(peer)

        connected = socket.create_connection(("127.0.0.1", serve(greeted)))
        session = Session(stream(connected), hello=b"me.test", deadlines=LIMITS, **options)
        sessions.append(session)
        session.open()
        session.taken = 0

        def upcoming():
            session.taken += 1
            return next(waiting, None)

        waiting = iter(transactions)
        found = []
        for made, results in session.transact(upcoming):
            assert made.sender == b"%d@x" % (len(found) + 1)
            found.append(shown(results))
        assert not session.in_doubt
        return found, session

    yield run
    for session in sessions:
        session.close()


# -- one ahead


def test_one_ahead_is_one_flight_a_message(converse):
    def script(peer):
        flight(peer, envelope(1, 2) + b"DATA\r\n")
        peer.send(b"250 m\r\n250 r\r\n" + GO[7:])
        for number in (1, 2):
            flight(peer, body(number) + envelope(number + 1, 2) + b"DATA\r\n")
            peer.send(b"250 2.0.0 %d\r\n250 m\r\n250 r\r\n" % number + GO[7:])
        flight(peer, body(3))
        peer.send(b"250 2.0.0 3\r\n")
        peer.bye()

    found, session = converse(script, [transaction(n, 2) for n in (1, 2, 3)], keywords=AHEAD)
    assert found == [[ok(b"2.0.0 %d" % number)] * 2 for number in (1, 2, 3)]
    session.quit()


REFUSALS = {
    "MAIL": (b"550 m\r\n503 r\r\n503 d\r\n", b"", [answer(MAIL, b"2@x", b"550 m")], b""),
    "MAIL, then 354": (
        b"550 m\r\n503 r\r\n354 d\r\n",
        b".\r\n",
        [answer(MAIL, b"2@x", b"550 m")],
        b"",
    ),
    "RCPT": (b"250 m\r\n450 r\r\n554 d\r\n", b"", [answer(RCPT, b"2.0@y", b"450 r")], b"RSET\r\n"),
    "RCPT, 503": (
        b"250 m\r\n450 r\r\n503 d\r\n",
        b"",
        [answer(RCPT, b"2.0@y", b"450 r")],
        b"RSET\r\n",
    ),
    "RCPT, then 354": (
        b"250 m\r\n450 r\r\n354 d\r\n",
        b".\r\n",
        [answer(RCPT, b"2.0@y", b"450 r")],
        b"",
    ),
    "DATA": (b"250 m\r\n250 r\r\n451 d\r\n", b"", [answer(DATA, b"", b"451 d")], b"RSET\r\n"),
}


@pytest.mark.parametrize(("replies", "then", "expected", "reset"), REFUSALS.values(), ids=REFUSALS)
def test_one_ahead_the_next_is_refused(converse, replies, then, expected, reset):
    """And the one behind it is not: RSET where the server is in a transaction still."""

    def script(peer):
        flight(peer, envelope(1) + b"DATA\r\n")
        peer.send(GO)
        flight(peer, body(1) + envelope(2) + b"DATA\r\n")
        peer.send(b"250 2.0.0 q\r\n" + replies)
        if then:
            flight(peer, then)
            peer.send(b"554 nobody\r\n")
        flight(peer, reset + envelope(3) + b"DATA\r\n")
        peer.send(b"250 s\r\n" * bool(reset) + GO)
        flight(peer, body(3))
        peer.send(b"250 2.0.0 q\r\n")
        peer.bye()

    found, session = converse(script, map(transaction, (1, 2, 3)), keywords=AHEAD)
    assert found == [[ok()], expected, [ok()]]
    session.quit()


def test_one_ahead_some_are_refused(converse):
    def script(peer):
        flight(peer, envelope(1) + b"DATA\r\n")
        peer.send(GO)
        flight(peer, body(1) + envelope(2, 3) + b"DATA\r\n")
        peer.send(b"250 2.0.0 q\r\n250 m\r\n550 0\r\n250 1\r\n451 2\r\n354 d\r\n")
        flight(peer, body(2) + envelope(3) + b"DATA\r\n")
        peer.send(b"250 2.0.0 q\r\n" + GO)
        flight(peer, body(3))
        peer.send(b"250 2.0.0 q\r\n")
        peer.bye()

    waiting = [transaction(1), transaction(2, 3), transaction(3)]
    found, session = converse(script, waiting, keywords=AHEAD)
    refused = [
        answer(RCPT, b"2.%d@y" % n, b"%d %d" % (code, n)) for n, code in ((0, 550), (2, 451))
    ]
    assert found == [[ok()], [refused[0], ok(), refused[1]], [ok()]]
    session.quit()


POINTS = {"mail": (0, MAIL, b""), "rcpt": (1, RCPT, b".0@y"), "data": (2, DATA, b"")}
ENDS = {
    "421": b"421 4.3.2 bye\r\n",
    "close": b"",
    "garbage": b"wat\r\n",
}


def ending(way, phase, argument):
    """What the message hears on whose command the session ended."""
    if way == "421":
        return answer(phase, argument, b"421 4.3.2 bye")
    return (NetworkError, phase, LOST) if way == "close" else (RemoteProtocolError, phase, GARBAGE)


def too_late(way):
    """What the message behind it hears."""
    kind, text = {
        "421": (NetworkError, ENDED),
        "close": (NetworkError, LOST),
        "garbage": (RemoteProtocolError, GARBAGE),
    }[way]
    return (kind, MAIL, text)


@pytest.mark.parametrize("way", ENDS)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("number", [1, 2])
def test_one_ahead_ended_in_an_envelope(converse, way, point, number):
    """Nobody has the message, and no further one is begun."""
    replies, phase, argument = POINTS[point]

    def script(peer):
        flight(peer, envelope(1) + b"DATA\r\n")
        before = b"".join(GO.splitlines(True)[:replies])
        if number == 2:
            peer.send(GO)
            flight(peer, body(1) + envelope(2) + b"DATA\r\n")
            before = b"250 2.0.0 q\r\n" + before
        peer.send(before + ENDS[way])

    found, session = converse(script, map(transaction, (1, 2, 3)), keywords=AHEAD)
    argument = (b"%d" % number + argument) if argument else b"%d@x" % number * (phase == MAIL)
    assert found == [[ok()]] * (number - 1) + [[ending(way, phase, argument)]]
    assert session.taken == number
    # With one reply to come nothing was sent ahead of it; and an idle connection may be closed at any time.
    alone = point == "data" or (point == "mail" and number == 1)
    assert session.stumbled == (way == "garbage" or (way == "close" and not alone))


@pytest.mark.parametrize("way", ENDS)
@pytest.mark.parametrize("last", [False, True], ids=["one behind", "none behind"])
def test_one_ahead_ended_instead_of_the_last_reply(converse, way, last):
    """In doubt, but for 421; the one behind has lost nothing but time."""

    def script(peer):
        flight(peer, envelope(1) + b"DATA\r\n")
        peer.send(GO)
        flight(peer, body(1) + (b"" if last else envelope(2) + b"DATA\r\n"))
        peer.send(ENDS[way])

    found, session = converse(script, map(transaction, range(1, 2 if last else 4)), keywords=AHEAD)
    expected = [[ending(way, END_OF_DATA, b"")], [too_late(way)]]
    assert found == expected[: 1 if last else 2]
    assert session.stumbled == (way == "garbage" or (way == "close" and not last))


@pytest.mark.parametrize("keywords", MODES.values(), ids=MODES)
@pytest.mark.parametrize("bad", [1, 2])
def test_content_that_raises(serve, keywords, bad):
    """It is given back with that, and never taken for a whole message.  Only where nothing of it was sent does the session go on."""

    def broken():
        yield b"Subject: half\n"
        raise ValueError("gone")

    server = Strict(keywords)
    with server as connected:
        session = Session(Stream(connected), hello=b"me.test", deadlines=LIMITS)
        session.open()
        waiting = [transaction(n, octets=broken if n == bad else None) for n in (1, 2, 3)]
        found = [
            shown(results)
            for _, results in session.transact(lambda: waiting.pop(0) if waiting else None)
        ]
        session.quit()
    good = [ok(b"2.0.0 kept")]
    expected = [good] * (bad - 1) + [repr(ValueError("gone"))]
    if keywords == WINDOWED and bad == 2:
        expected.append(good)
    assert found == expected
    assert [kept.sender for kept in server.kept] == [
        b"%d@x" % number for number, results in enumerate(found, 1) if results == good
    ]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(
            b"552 5.3.4 big\r\n500 what\r\n",
            [[answer(END_OF_DATA, b"", b"552 5.3.4 big")]],
            id="refused",
        ),
        pytest.param(
            b"250 2.0.0 q\r\n250 m\r\n",
            [[(RemoteProtocolError, DATA, "message acknowledged before it was sent: 250 2.0.0 q")]],
            id="acknowledged",
        ),
    ],
)
def test_one_ahead_an_answer_together_with_354(converse, reply, expected):
    """Together with 354: the content is not even read."""

    def script(peer):
        flight(peer, envelope(1) + b"DATA\r\n")
        peer.send(GO + reply)
        assert peer.read_to_end() == b""

    def unread():
        raise AssertionError

    waiting = [transaction(1, octets=unread), transaction(2)]
    found, session = converse(script, waiting, keywords=AHEAD)
    assert found == expected
    assert not session.usable


@pytest.mark.parametrize("reply", [b"552 5.3.4 big\r\n500 what\r\n", b"250 2.0.0 q\r\n250 m\r\n"])
def test_one_ahead_an_answer_while_the_last_piece_is_held_back(converse, reply):
    """By then the next one's commands stand behind the message: they are not sent, and what comes is no answer to them."""
    begun, said = threading.Event(), threading.Event()

    def script(peer):
        flight(peer, envelope(1) + b"DATA\r\n")
        peer.send(GO)
        assert begun.wait(8)
        peer.send(reply)
        said.set()
        assert peer.read_to_end() == b""

    def octets():
        begun.set()
        assert said.wait(8)
        yield content(1)

    waiting = [transaction(1, octets=octets), transaction(2)]
    found, session = converse(script, waiting, keywords=AHEAD)
    acknowledged = "message acknowledged before it was sent: 250 2.0.0 q"
    first = (
        (RemoteProtocolError, DATA, acknowledged)
        if reply[:1] == b"2"
        else answer(END_OF_DATA, b"", b"552 5.3.4 big")
    )
    early = (NetworkError, MAIL, "answered before the message was sent")
    assert found == [[first], [early]]
    assert not session.usable


class Parted(Stream):
    """Writes to the end of a message, and no further before the reply to it is there."""

    def _send(self, octets):
        end = bytes(octets).find(b"\r\n.\r\n")
        if end < 0:
            return super()._send(octets)
        sent = super()._send(octets[: end + 5])
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        assert poll.poll(8000)
        return sent


def test_one_ahead_the_answer_comes_before_the_next_envelope_is_written(converse):
    """The message was whole by then."""

    def script(peer):
        flight(peer, envelope(1) + b"DATA\r\n")
        peer.send(GO)
        flight(peer, body(1))
        peer.send(b"250 2.0.0 q\r\n")
        flight(peer, envelope(2) + b"DATA\r\n")
        peer.send(GO)
        flight(peer, body(2))
        peer.send(b"250 2.0.0 q\r\n")

    found, _ = converse(script, map(transaction, (1, 2)), keywords=AHEAD, stream=Parted)
    assert found == [[ok()], [ok()]]


@pytest.mark.parametrize("keywords", [AHEAD, WINDOWED])
def test_a_large_message_refused_early(serve, keywords):
    """Its answer is the refusal; with BDAT the session goes on, with DATA nobody knows what the server reads next."""
    server = Strict(keywords, early=b"552 5.3.4 too big")
    big = transaction(1, octets=lambda: iter([b"x" * 998 + b"\n"] * 5000), size=5_000_000)
    with server as connected:
        session = Session(Stream(connected), hello=b"me.test", deadlines=LIMITS)
        session.open()
        waiting = [big, transaction(2)]
        found = [
            shown(results)
            for _, results in session.transact(lambda: waiting.pop(0) if waiting else None)
        ]
    if keywords == AHEAD:
        assert found == [[answer(END_OF_DATA, b"", b"552 5.3.4 too big")]]
        assert not session.usable
    else:
        assert found == [[answer(BDAT, b"", b"552 5.3.4 too big")], [ok(b"2.0.0 kept")]]
    session.close()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_too_large_is_given_back_in_its_turn(mode):
    server = Strict(MODES[mode], size_limit=1000)
    with server as connected:
        session = Session(Stream(connected), hello=b"me.test", deadlines=LIMITS)
        session.open()
        waiting = [transaction(n, size=2000 if n in (1, 3) else 20) for n in range(1, 6)]
        found = [
            (made.sender, shown(results))
            for made, results in session.transact(lambda: waiting.pop(0) if waiting else None)
        ]
        session.quit()
    big = (SizeExceeded, MAIL, "message of 2000 octets is larger than the 1000 the server takes")
    assert found == [
        (b"%d@x" % number, [big] if number in (1, 3) else [ok(b"2.0.0 kept")])
        for number in range(1, 6)
    ]
    assert [kept.sender for kept in server.kept] == [b"2@x", b"4@x", b"5@x"]


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_later_is_sent_too(mode):
    """``upcoming`` has nothing when it is asked first, and something once a result was heard."""
    server = Strict(MODES[mode])
    with server as connected:
        session = Session(Stream(connected), hello=b"me.test", deadlines=LIMITS)
        session.open()
        waiting = [transaction(1)]
        found = []
        for made, _ in session.transact(lambda: waiting.pop(0) if waiting else None):
            found.append(made.sender)
            if len(found) < 4:
                waiting.append(transaction(len(found) + 1))
        assert session.usable
        assert list(session.transact(lambda: None)) == []
        session.quit()
    assert found == [kept.sender for kept in server.kept] == [b"1@x", b"2@x", b"3@x", b"4@x"]


# -- one by one


def test_one_by_one(converse):
    def script(peer):
        for octets, reply in (
            (b"MAIL FROM:<1@x>\r\n", b"250 m\r\n"),
            (b"RCPT TO:<1.0@y>\r\n", b"550 r\r\n"),
            (b"RSET\r\n", b"250 s\r\n"),
            (b"MAIL FROM:<2@x>\r\n", b"550 m\r\n"),
            (b"MAIL FROM:<3@x>\r\n", b"250 m\r\n"),
            (b"RCPT TO:<3.0@y>\r\n", b"250 r\r\n"),
            (b"DATA\r\n", b"354 d\r\n"),
            (body(3), b"250 2.0.0 q\r\n"),
            (b"MAIL FROM:<4@x>\r\n", b"421 m\r\n"),
        ):
            flight(peer, octets)
            peer.send(reply)

    # Offered or not: the caller knows better.
    found, session = converse(
        script, map(transaction, range(1, 6)), keywords=WINDOWED, pipelining=False
    )
    assert found == [
        [answer(RCPT, b"1.0@y", b"550 r")],
        [answer(MAIL, b"2@x", b"550 m")],
        [ok()],
        [answer(MAIL, b"4@x", b"421 m")],
    ]
    assert session.taken == 4
    assert not session.stumbled


@pytest.mark.parametrize("way", ENDS)
@pytest.mark.parametrize("point", [*POINTS, "end"])
def test_one_by_one_ended(converse, way, point):
    """There is nothing behind it, and nothing that could have been sent too early."""
    replies, phase, argument = {**POINTS, "end": (3, END_OF_DATA, b"")}[point]
    said = [b"MAIL FROM:<1@x>\r\n", b"RCPT TO:<1.0@y>\r\n", b"DATA\r\n", body(1)]

    def script(peer):
        for octets, reply in zip(said[:replies], GO.splitlines(True), strict=False):
            flight(peer, octets)
            peer.send(reply)
        flight(peer, said[replies])
        peer.send(ENDS[way])

    found, session = converse(script, map(transaction, (1, 2)))
    argument = (b"1" + argument) if argument else b"1@x" * (phase == MAIL)
    assert found == [[ending(way, phase, argument)]]
    assert not session.stumbled


# -- in window


def open_window(peer):
    """The first transaction, which is not sent whole before the server has been heard."""
    flight(peer, envelope(1))
    peer.send(b"250 m\r\n250 r\r\n")
    flight(peer, chunk(1))
    peer.send(b"250 2.0.0 q\r\n")


class Counting(Stream):
    """Notes before each read how much was taken from ``upcoming``."""

    session = None
    notes: list[tuple[int, bool]]

    def read(self, limit, timeout):
        if self.session is not None:
            self.notes.append((self.session.taken, self.session.in_doubt))
        return super().read(limit, timeout)


def test_window_octets(converse):
    """No RSET before the first, nor where nothing is in flight; one before each that stands behind another."""

    def script(peer):
        open_window(peer)
        peer.expect(envelope(2) + chunk(2))
        for number in range(3, 10):
            peer.expect(whole(number))
        peer.send(TAKEN)
        for number in range(3, 13):
            if number < 6:
                flight(peer, whole(number + 7))
            peer.send(b"250 s\r\n" + TAKEN)
        peer.bye()

    found, session = converse(script, map(transaction, range(1, 13)), keywords=WINDOWED)
    assert found == [[ok()]] * 12
    session.quit()


def test_window_is_eight(serve):
    """Eight are taken, and not a ninth before one is answered.  In doubt exactly while one is sent whole and not answered."""
    step = threading.Semaphore(0)

    def script(peer):
        peer.hello(*WINDOWED)
        flight(peer, envelope(1))
        peer.send(b"250 m\r\n250 r\r\n")
        flight(peer, chunk(1))
        peer.send(b"250 2.0.0 q\r\n")
        peer.expect(envelope(2) + chunk(2) + b"".join(map(whole, range(3, 10))))
        peer.send(TAKEN)
        for number in range(10, 12):
            flight(peer, whole(number))
            peer.send(b"250 s\r\n" + TAKEN)
        for _ in range(5, 12):
            assert step.acquire(timeout=8)
            peer.send(b"250 s\r\n" + TAKEN)
        peer.bye()

    stream = Counting(socket.create_connection(("127.0.0.1", serve(script))))
    session = Session(stream, hello=b"me.test", deadlines=LIMITS)
    session.open()
    stream.notes = []
    stream.session = session
    waiting = [transaction(number) for number in range(1, 12)]
    session.taken = 0

    def upcoming():
        if not waiting:
            return None
        session.taken += 1
        return waiting.pop(0)

    for number, (_, results) in zip(count(1), session.transact(upcoming), strict=False):
        assert results == [ok()]
        if 4 <= number < 11:
            step.release()
    assert stream.notes[:5] == [(1, False), (1, True), (9, True), (10, True), (11, True)]
    assert set(stream.notes[5:]) == {(11, True)}
    assert not session.in_doubt
    session.quit()


@pytest.mark.parametrize("mode", ["one by one", "one ahead"])
def test_in_doubt_while_the_last_reply_is_awaited(serve, mode):
    def script(peer):
        peer.hello(*MODES[mode])
        for number in (1, 2):
            if mode == "one ahead":
                flight(
                    peer,
                    envelope(number) + b"DATA\r\n"
                    if number == 1
                    else body(1) + envelope(2) + b"DATA\r\n",
                )
                peer.send(b"250 2.0.0 q\r\n" * (number - 1) + GO)
            else:
                for line, reply in zip(
                    (envelope(number) + b"DATA\r\n").splitlines(True),
                    GO.splitlines(True),
                    strict=True,
                ):
                    flight(peer, line)
                    peer.send(reply)
                flight(peer, body(number))
                peer.send(b"250 2.0.0 q\r\n")
        if mode == "one ahead":
            flight(peer, body(2))
            peer.send(b"250 2.0.0 q\r\n")
        peer.bye()

    stream = Counting(socket.create_connection(("127.0.0.1", serve(script))))
    session = Session(stream, hello=b"me.test", deadlines=LIMITS)
    session.open()
    stream.notes, stream.session, session.taken = [], session, 0
    waiting = [transaction(1), transaction(2)]
    heard = [
        (results, session.in_doubt)
        for _, results in session.transact(lambda: waiting.pop(0) if waiting else None)
    ]
    assert heard == [([ok()], False)] * 2
    doubts = [doubt for _, doubt in stream.notes]
    if mode == "one ahead":
        assert doubts == [False, True, True]
    else:
        assert doubts == [False, False, False, True] * 2
    session.quit()


def test_window_large_messages_go_alone_and_in_chunks(converse):
    """After all that is in flight, and once a recipient was accepted; one with no recipient left is not sent at all."""
    pieces = [b"%063d\n" % 7 * 1024] * 9  # 65 KiB each on the wire
    piece = pieces[0].replace(b"\n", b"\r\n")
    kibibytes = len(piece) * 4

    def script(peer):
        open_window(peer)
        flight(peer, envelope(2) + chunk(2))
        flight(peer, whole(3))
        peer.send(TAKEN + b"250 s\r\n" + TAKEN)
        flight(peer, envelope(4))
        peer.send(b"250 m\r\n450 r\r\n")
        flight(peer, b"RSET\r\n" + envelope(5))
        peer.send(b"250 s\r\n250 m\r\n250 r\r\n")
        for _ in range(2):
            peer.expect(b"BDAT %d\r\n" % kibibytes + piece * 4)
            peer.send(b"250 so far\r\n")
        peer.expect(b"BDAT %d LAST\r\n" % len(piece) + piece)
        peer.send(b"250 2.0.0 q\r\n")
        flight(peer, envelope(6) + chunk(6))
        peer.send(TAKEN)
        peer.bye()

    def unread():
        raise AssertionError

    waiting = [
        *map(transaction, (1, 2, 3)),
        transaction(4, octets=unread, size=600_000),
        transaction(5, octets=lambda: pieces, size=600_000),
        transaction(6),
    ]
    found, session = converse(script, waiting, keywords=WINDOWED)
    assert found == [[ok()]] * 3 + [[answer(RCPT, b"4.0@y", b"450 r")]] + [[ok()]] * 2
    session.quit()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(b"552 5.3.4 full\r\n", answer(BDAT, b"", b"552 5.3.4 full"), id="refused"),
        pytest.param(b"421 4.3.2 bye\r\n", answer(BDAT, b"", b"421 4.3.2 bye"), id="421"),
        pytest.param(b"", (NetworkError, DATA, LOST), id="closed"),
    ],
)
def test_window_a_chunk_in_the_middle(converse, reply, expected):
    """Nobody has the message; after a refusal the next one begins with RSET."""
    pieces = [b"x" * 62 + b"\r\n"] * 4096 * 3

    def script(peer):
        flight(peer, envelope(1))
        peer.send(b"250 m\r\n250 r\r\n")
        peer.expect(b"BDAT %d\r\n" % (64 * 4096) + b"".join(pieces[:4096]))
        peer.send(reply)
        if reply[:3] == b"552":
            flight(peer, b"RSET\r\n" + envelope(2) + chunk(2))
            peer.send(b"250 s\r\n" + TAKEN)
            peer.bye()

    waiting = [transaction(1, octets=lambda: pieces, size=700_000), transaction(2)]
    found, session = converse(script, waiting, keywords=WINDOWED)
    assert found == [[expected]] + [[ok()]] * (reply[:3] == b"552")
    session.quit()


def lost_in_window(converse, replies, answered, *, stream=Stream, number=9):
    """Eight in flight, ``answered`` of them when the session ends."""

    def script(peer):
        open_window(peer)
        if stream is Stream:
            peer.expect(envelope(2) + chunk(2) + b"".join(map(whole, range(3, 10))))
        else:
            expect_capped(peer)
        taken = TAKEN + (b"250 s\r\n" + TAKEN) * (answered - 1) if answered else b""
        peer.send(taken + replies)
        # Closed with something unread, as what replies make room for may be, it would reset the connection.
        peer.socket.shutdown(socket.SHUT_WR)
        peer.read_to_end()

    return converse(
        script, map(transaction, range(1, number + 5)), keywords=WINDOWED, stream=stream
    )


@pytest.mark.parametrize("answered", [0, 1, 3, 7])
def test_window_closed(converse, answered):
    """The replies to those behind the last one that was answered may be lost: they are in doubt.  No further one was taken."""
    found, session = lost_in_window(converse, b"", answered)
    doubt = [(NetworkError, END_OF_DATA, LOST)]
    taken = 8 - answered
    # What was taken when a reply made room was not sent whole: the server had left.
    assert found[: 1 + answered] == [[ok()]] * (1 + answered)
    assert found[1 + answered : 9] == [doubt] * taken
    assert all(results in ([(NetworkError, MAIL, LOST)], doubt) for results in found[9:])
    assert session.stumbled


class Capped(Stream):
    """Takes no octet after the 40th of the fourth transaction in the window."""

    cap = 0

    def _send(self, octets):
        if not self.cap and bytes(octets).startswith(b"RSET\r\nMAIL FROM:<5@x>"):
            self.cap = self.sent + 40
        if self.cap:
            room = self.cap - self.sent
            if not room:
                return 0, select.POLLIN
            octets = octets[:room]
        return super()._send(octets)


def expect_capped(peer):
    peer.expect(envelope(2) + chunk(2) + whole(3) + whole(4) + whole(5)[:40])


def test_window_closed_in_the_middle_of_one(converse):
    """Those that were wholly written are in doubt, the one that was cut is not."""
    found, session = lost_in_window(converse, b"", 1, stream=Capped)
    assert found == [
        *[[ok()]] * 2,
        *[[(NetworkError, END_OF_DATA, LOST)]] * 2,
        [(NetworkError, MAIL, LOST)],
    ]
    assert session.stumbled


def test_window_acknowledged_before_it_was_whole(converse):
    """Whatever the server says: it has not got the message."""

    def script(peer):
        open_window(peer)
        expect_capped(peer)
        peer.send(TAKEN + (b"250 s\r\n" + TAKEN) * 3)

    found, _ = converse(script, map(transaction, range(1, 9)), keywords=WINDOWED, stream=Capped)
    early = "message acknowledged before it was sent: 250 2.0.0 q"
    assert found == [*[[ok()]] * 4, [(RemoteProtocolError, DATA, early)]]


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        pytest.param(
            b"250 s\r\n250 m\r\n250 r\r\n421 4.3.2 bye\r\n",
            answer(END_OF_DATA, b"", b"421 4.3.2 bye"),
            id="end of data",
        ),
        pytest.param(
            b"250 s\r\n421 4.3.2 bye\r\n", answer(MAIL, b"4@x", b"421 4.3.2 bye"), id="MAIL"
        ),
        pytest.param(
            b"421 4.3.2 bye\r\n", (Refused, RSET, "RSET refused: 421 4.3.2 bye"), id="RSET"
        ),
        pytest.param(
            b"554 Too many nonmail commands\r\n",
            (Refused, RSET, "RSET refused: 554 Too many nonmail commands"),
            id="Exim",
        ),
    ],
)
def test_window_421(converse, replies, expected):
    """Replies come in order: the server did not come to those behind, which may be asked for again at once."""
    found, session = lost_in_window(converse, replies, 2)
    assert found[:3] == [[ok()]] * 3
    assert found[3] == [expected]
    assert found[4:] == [[(NetworkError, MAIL, ENDED)]] * len(found[4:])
    assert len(found) >= 9
    assert not session.stumbled


class Failing(Stream):
    """Cannot write the third transaction in the window any more, with replies there that were not read."""

    def exchange(self, octets, timeout, received):
        if octets.startswith(b"RSET\r\nMAIL FROM:<4@x>"):
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            assert poll.poll(8000)
            raise NetworkError("lost connection: Broken pipe")
        super().exchange(octets, timeout, received)


def test_window_421_found_when_writing_fails(converse):
    """It is the reason, and a good one: the same host may be spoken to as before."""

    def script(peer):
        open_window(peer)
        peer.expect(envelope(2) + chunk(2) + whole(3))
        peer.send(TAKEN + b"250 s\r\n421 4.3.2 bye\r\n")

    found, session = converse(
        script, map(transaction, range(1, 9)), keywords=WINDOWED, stream=Failing
    )
    assert found == [
        *[[ok()]] * 2,
        [answer(MAIL, b"3@x", b"421 4.3.2 bye")],
        [(NetworkError, MAIL, ENDED)],
    ]
    assert not session.stumbled


@pytest.mark.parametrize("way", ENDS)
def test_window_a_large_message_that_waited_for_a_session_that_ended(converse, way):
    """Nothing of it was sent."""

    def script(peer):
        open_window(peer)
        flight(peer, envelope(2) + chunk(2))
        peer.send(ENDS[way])

    waiting = [transaction(1), transaction(2), transaction(3, size=600_000), transaction(4)]
    found, session = converse(script, waiting, keywords=WINDOWED)
    second = {
        "421": answer(MAIL, b"2@x", b"421 4.3.2 bye"),
        "close": (NetworkError, END_OF_DATA, LOST),
        "garbage": (RemoteProtocolError, END_OF_DATA, GARBAGE),
    }[way]
    assert found == [[ok()], [second], [too_late(way)]]
    assert session.taken == 3


def test_window_reset_refused(converse):
    """By a server that goes on.  Then what the server does with those behind it cannot be known."""
    found, session = lost_in_window(converse, b"451 s\r\n" + TAKEN + (b"250 s\r\n" + TAKEN) * 5, 2)
    assert found[:3] == [[ok()]] * 3
    doubt = [(NetworkError, END_OF_DATA, "RSET refused: 451 s")]
    assert found[3] == doubt
    assert [(kind, phase) for ((kind, phase, _),) in found[4:9]] == [
        (NetworkError, END_OF_DATA)
    ] * 5
    assert not session.usable


def test_window_never_over_a_session_that_has_ended_meanwhile(converse, serve):
    """The first one of a ``transact`` is not sent whole, so it is not in doubt."""
    closed = threading.Event()

    def script(peer):
        peer.hello(*WINDOWED)
        open_window(peer)
        peer.socket.shutdown(socket.SHUT_WR)
        closed.set()
        peer.read_to_end()

    session = Session(connect("127.0.0.1", serve(script), 5), hello=b"me.test", deadlines=LIMITS)
    session.open()
    waiting = [transaction(1)]
    ((_, results),) = session.transact(lambda: waiting.pop() if waiting else None)
    assert results == [ok()]
    assert closed.wait(8)
    waiting = [transaction(2, size=2000), transaction(3), transaction(4)]
    found = [shown(r) for _, r in session.transact(lambda: waiting.pop(0) if waiting else None)]
    assert found == [[(NetworkError, MAIL, LOST)]]
    assert not session.stumbled
    session.close()


@pytest.mark.parametrize("code", [b"500", b"502"])
@pytest.mark.parametrize("size", [20, 600_000])
def test_window_offered_by_a_server_that_does_not_know_bdat(converse, code, size):
    """What it says to the lines of the message answers nothing."""
    octets = [b"x" * 62 + b"\r\n"] * (size // 64 + 1)

    def script(peer):
        flight(peer, envelope(1))
        peer.send(b"250 m\r\n250 r\r\n")
        peer.read(len(b"BDAT"))
        peer.send(code + b" what\r\n" + b"500 what\r\n250 fine\r\n")
        peer.read_to_end()

    waiting = [transaction(1, octets=lambda: octets, size=size), transaction(2)]
    found, session = converse(script, waiting, keywords=WINDOWED)
    unknown = f"BDAT is offered, and not known: {code.decode()} what"
    assert found == [[(RemoteProtocolError, MAIL, unknown)]]
    assert session.stumbled


def test_one_write_a_message(serve):
    """And what is not a message costs nothing beside: the envelope of the first, and QUIT."""
    for keywords, writes in ((AHEAD, 21), (WINDOWED, 21)):
        server = Strict(keywords)
        with server as connected:
            stream = Writes(connected)
            session = Session(stream, hello=b"me.test", deadlines=LIMITS)
            session.open()
            waiting = iter([transaction(number) for number in range(1, 21)])
            stream.writes = 0
            found = [results for _, results in session.transact(partial(next, waiting, None))]
            assert found == [[ok(b"2.0.0 kept")]] * 20
            assert stream.writes == writes
            session.quit()
        assert len(server.kept) == 20


class Writes(Stream):
    writes = 0

    def _send(self, octets):
        self.writes += 1
        return super()._send(octets)


# -- against a server that keeps to the letter


class Kept:
    """A message that a server has accepted."""

    def __init__(self, sender, recipients, octets):
        self.sender = sender
        self.recipients = recipients
        self.octets = octets


class Strict:
    """``ServerConnection`` in a thread: nested MAIL is refused, RSET is what ends a transaction without a message.

    ``keywords``  of PIPELINING and CHUNKING, what is offered
    ``decide``    what becomes of the next MAIL, RCPT or message: a reply, CLOSE, or GARBLE: taken, and answered with garbage
    ``early``     said to the first message while it comes: with DATA at once, with BDAT to its first chunk
    ``kept``      what was accepted, noted before it is answered
    """

    CLOSE = b""
    GARBLE = b"wat"

    def __init__(self, keywords, decide=lambda event: None, *, size_limit=0, early=b""):
        self._dropped = [
            b"250-%b\r\n" % word for word in (b"PIPELINING", b"CHUNKING") if word not in keywords
        ]
        self._decide = decide
        self._early = early
        self._core = ServerConnection(b"mx.test", size_limit=size_limit)
        self._ends = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._fault = None
        self.kept = []

    def __enter__(self):
        self._ends[1].settimeout(10)
        self._thread.start()
        return self._ends[0]

    def __exit__(self, *exc_info):
        self._ends[0].close()
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self._fault is not None:
            raise self._fault

    def _run(self):
        try:
            with self._ends[1] as connection:
                self._serve(connection)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone
        except BaseException as fault:
            self._fault = fault

    def _serve(self, connection):
        core = self._core
        connection.sendall(core.data_to_send())
        sender, recipients, pieces = b"", [], []
        while octets := connection.recv(1 << 16):
            core.receive_data(octets)
            while (event := core.next_event()) is not None:
                if isinstance(event, Hello):
                    offered = core.data_to_send()
                    for line in self._dropped:
                        offered = offered.replace(line, b"")
                    connection.sendall(offered)
                elif isinstance(event, MessageData):
                    pieces.append(event.octets)
                    if self._early and sum(map(len, pieces)) > 100_000:
                        early, self._early = self._early, b""
                        if b"250-CHUNKING\r\n" in self._dropped:
                            connection.sendall(early + b"\r\n")
                            return self._drain(connection)
                        self._refuse_chunks(connection, core, early)
                        pieces = []
                elif isinstance(event, Mail | Rcpt | MessageEnd):
                    decision = self._decide(event)
                    if decision == self.CLOSE:
                        if isinstance(event, MessageEnd):
                            self.kept.append(Kept(sender, recipients, b"".join(pieces)))
                        connection.sendall(core.data_to_send())
                        return None
                    taken = decision in (None, self.GARBLE)
                    if taken and isinstance(event, MessageEnd):
                        self.kept.append(Kept(sender, recipients, b"".join(pieces)))
                    if decision == self.GARBLE:
                        connection.sendall(core.data_to_send())
                        core.reply(250, "ok", "2.0.0")
                        core.data_to_send()
                        connection.sendall(b"wat\r\n")
                    elif taken:
                        core.reply(250, "kept" if isinstance(event, MessageEnd) else "ok", "2.0.0")
                    else:
                        core.reply(int(decision[:3]), decision[4:].decode())
                    if isinstance(event, Mail) and taken:
                        sender, recipients = event.sender, []
                    elif isinstance(event, Rcpt) and taken:
                        recipients.append(event.recipient)
                    if isinstance(event, Mail | MessageEnd):
                        pieces = []
            connection.sendall(core.data_to_send())
            if core.state.name == "CLOSED":
                return None
        return None

    def _drain(self, connection):
        while connection.recv(1 << 16):
            pass

    def _refuse_chunks(self, connection, core, early):
        """This chunk to its end, with the refusal as its answer."""
        while not (said := core.data_to_send()):
            if core.next_event() is not None:
                continue
            if said := core.data_to_send():
                break
            octets = connection.recv(1 << 16)
            assert octets
            core.receive_data(octets)
        assert said.startswith(b"250 ")
        connection.sendall(early + b"\r\n")


def test_window_the_next_one_is_not_sent_in_the_name_of_the_one_before():
    """A server without a recipient is in the transaction still: without RSET it would refuse the next MAIL and take the rest."""

    def decide(event):
        if isinstance(event, Rcpt) and event.recipient in (b"2.0@y", b"4.0@y"):
            return b"550 no"
        if isinstance(event, Mail) and event.sender == b"6@x":
            return b"450 later"
        return None

    server = Strict(WINDOWED, decide)
    with server as connected:
        session = Session(Stream(connected), hello=b"me.test", deadlines=LIMITS)
        session.open()
        waiting = [transaction(number) for number in range(1, 9)]
        found = [shown(r) for _, r in session.transact(lambda: waiting.pop(0) if waiting else None)]
        session.quit()
    taken = [ok(b"2.0.0 kept")]
    assert found == [
        taken,
        [answer(RCPT, b"2.0@y", b"550 no")],
        taken,
        [answer(RCPT, b"4.0@y", b"550 no")],
        taken,
        [answer(MAIL, b"6@x", b"450 later")],
        taken,
        taken,
    ]
    assert [(kept.sender, kept.recipients, kept.octets) for kept in server.kept] == [
        (b"%d@x" % n, [b"%d.0@y" % n], b"Subject: %d\r\n\r\n.dot\r\n" % n) for n in (1, 3, 5, 7, 8)
    ]


DECISIONS = st.sampled_from(
    [None] * 12
    + [b"450 later", b"550 never", b"550 never", b"421 bye", Strict.CLOSE, Strict.GARBLE]
)
SHAPES = st.tuples(
    st.integers(1, 3),  # recipients
    st.sampled_from([0, 5, 40, 200, 700]),  # lines
    st.sampled_from([False] * 9 + [True]),  # cannot be read
)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=150, deadline=None)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=12), decisions=st.lists(DECISIONS, max_size=60))
def test_whatever_the_server_decides(mode, shapes, decisions):
    """Each transaction comes back once, in order, with a result for everybody.

    An ok Answer: the server has the message for that recipient, with that sender, octet for octet.  An error of phase
    "end of data": it may.  Anything else: it has not.  And nothing arrives that was not sent like this.
    """
    left = iter(decisions)
    server = Strict(MODES[mode], lambda event: next(left, None), size_limit=9000)
    lines = b"%030d\r\n"

    def made(number, recipients, length, broken):
        def octets():
            for at in range(length):
                if broken and at == length // 2:
                    raise ValueError(number)
                yield lines % at

        if broken and not length:
            length = 2
        return transaction(number, recipients, octets, size=32 * length)

    transactions = [made(number, *shape) for number, shape in enumerate(shapes, 1)]
    waiting = iter(transactions)
    taken, found = [], []

    def upcoming():
        given = next(waiting, None)
        if given is not None:
            taken.append(given)
        return given

    with pytest.MonkeyPatch.context() as patch, server as connected:
        patch.setattr(module, "_SMALL", 2000)
        patch.setattr(module, "_CHUNK", 3000)
        session = Session(Stream(connected), hello=b"me.test", deadlines=LIMITS)
        session.open()
        for each, results in session.transact(upcoming):
            found.append((each, results))
        assert not session.in_doubt
        assert session.usable or session._fault is not None
        assert len(taken) == len(transactions) or not session.usable
        session.quit()
    assert [each for each, _ in found] == taken
    sent = {
        each.sender: b"".join(lines % at for at in range(shape[1]))
        for each, shape in zip(transactions, shapes, strict=True)
    }
    have = {}
    for kept in server.kept:
        assert kept.octets == sent[kept.sender]
        for recipient in kept.recipients:
            assert recipient.split(b".")[0] + b"@x" == kept.sender
            assert recipient not in have
            have[recipient] = True
    for number, (each, results) in enumerate(found, 1):
        if isinstance(results, Exception):
            assert repr(results) == repr(ValueError(number))
            assert not any(recipient in have for recipient in each.recipients)
            continue
        assert len(results) == len(each.recipients)
        for recipient, result in zip(each.recipients, results, strict=True):
            assert isinstance(result, Answer | SmtpError)
            assert not isinstance(result, LocalProtocolError)
            if isinstance(result, Answer) and result.reply.ok:
                assert result.command == END_OF_DATA
                assert recipient in have
            elif isinstance(result, Answer) or result.phase != END_OF_DATA:
                assert recipient not in have
