"""Servers that cut, flood, babble and stall: one result a recipient or an SmtpError, in bounded time and memory.

Whatever such a server does, nobody counts as served whose message it did not have whole and acknowledge.
"""

import socket
import ssl
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smtp.hostile import GOOD, WAYS, Lockstep, Responder, Served, good

from minisend.errors import LocalProtocolError, NetworkError, RemoteProtocolError, SmtpError
from minisend.smtp.auth import Credentials
from minisend.smtp.client import (
    AUTH,
    DATA,
    EHLO,
    END_OF_DATA,
    GREETING,
    HELO,
    LHLO,
    MAIL,
    RCPT,
    STARTTLS,
    Answer,
    Connection,
)
from minisend.smtp.deadlines import Deadlines
from minisend.smtp.handshake import Trust
from minisend.smtp.reply import MAX_OCTETS, Reply
from minisend.smtp.session import Session
from minisend.smtp.stream import Stream

PHASES = (
    *("greeting", "hello", "starttls", "auth", "mail", "rcpt"),
    *("data", "block", "end_of_data", "rset", "quit"),
)


def limits(seconds):
    return Deadlines(**dict.fromkeys(PHASES, seconds))


CONTENT = b"Subject: x\n\n.dot\n"
WIRE = dict.fromkeys(WAYS, b"Subject: x\r\n\r\n..dot\r\n") | {
    "chunked": b"Subject: x\r\n\r\n.dot\r\n"
}
RECIPIENTS = (b"b@y", b"c@y")
OK = Answer(END_OF_DATA, b"", Reply(250, (b"2.0.0 queued",)))
REFUSED = Answer(RCPT, b"c@y", Reply(550, (b"5.1.1 no", b"5.1.1 c")))


def converse(stream, deadline=60.0, recipients=RECIPIENTS, content=(CONTENT,), **options):
    """All of a session.  A result is an Answer, or of an error its class, phase and text; one alone is that of ``open``.

    A session that is open and not usable has said too much already.
    """
    session = Session(stream, hello=b"me.test", deadlines=limits(deadline), **options)
    try:
        session.open()
        if not session.usable:
            return [(SmtpError, "", "not usable")]
        results = session.send(
            b"a@x", list(recipients), content, size=len(CONTENT), eight_bit=False
        )
    except SmtpError as error:
        return [described(error)]
    else:
        assert len(results) == len(recipients)
        return [result if isinstance(result, Answer) else described(result) for result in results]
    finally:
        session.quit()


def described(error):
    """A fault of the server's never looks like one of ours."""
    assert isinstance(error, SmtpError) and not isinstance(error, LocalProtocolError)
    assert error.status[:2] in ("4.", "5.")
    return type(error), error.phase, str(error)


def delivered(results):
    """How many have the message, as far as we know."""
    served = [each for each in results if isinstance(each, Answer) and each.reply.ok]
    assert all(each.command == END_OF_DATA and each.reply.code // 100 == 2 for each in served)
    return len(served)


def check(results, responder):
    """Nobody is served unless the server has the message whole and has said so."""
    assert delivered(results) == 0 or any(responder.accepted)
    # Without a recipient the message is empty (RFC 2920 section 3.1); what EHLO said may have changed.
    assert set(responder.messages) <= {b"", *WIRE.values()}


# Each reply cut at each octet


def steps(way):
    """Replies of the good dialogue in the order they come, with the phase that waits for each."""
    replies = good(way)
    order = [(GREETING, b""), (EHLO, b"EHLO"), (MAIL, b"MAIL")]
    order += [(RCPT, b"RCPT TO:<b@y>"), (RCPT, b"RCPT TO:<c@y>")]
    order += (
        [(END_OF_DATA, b"BDAT")] if way == "chunked" else [(DATA, b"DATA"), (END_OF_DATA, b".")]
    )
    return [(phase, replies[command]) for phase, command in order]


def cuts(way):
    return range(sum(len(octets) for _, octets in steps(way)))


def expected(way, cut, text):
    """Results when the server's words end after ``cut`` octets."""
    ends = accumulate(len(octets) for _, octets in steps(way))
    missing = next(number for number, end in enumerate(ends) if cut < end)
    error = (NetworkError, steps(way)[missing][0], text)
    if missing < 2:
        return [error]
    return [error, error if missing < 5 else REFUSED]


LOST = "lost connection: closed by the server"


@pytest.mark.parametrize("piece", [1, 65536], ids=["octets", "whole"])
@pytest.mark.parametrize("closes", [True, False], ids=["closed", "silent"])
@pytest.mark.parametrize("way", WAYS)
def test_each_reply_cut_at_each_octet(way, closes, piece):
    for cut in cuts(way):
        responder = Responder(good(way), cut)
        results = converse(Lockstep(responder, piece=piece, closes=closes))
        assert results == expected(way, cut, LOST if closes else "timed out"), cut
        check(results, responder)
    responder = Responder(good(way))
    assert converse(Lockstep(responder, piece=piece)) == [OK, REFUSED]
    assert (responder.messages, responder.accepted) == ([WIRE[way]], [WIRE[way]])


# What comes before a transaction that not every session has, in the order of the replies; then the options of the session.
BEFORE = {
    "a login in one step": (
        [(b"EHLO", b"250-mx.test\r\n250 AUTH PLAIN\r\n", EHLO), (b"AUTH PLAIN", b"235-2.7.0 in\r\n235 in\r\n", AUTH)],
        {"auth": "plain"},
    ),
    "a login in three": (
        [
            (b"EHLO", b"250-mx.test\r\n250 AUTH LOGIN\r\n", EHLO),
            (b"AUTH LOGIN", b"334 VXNlcm5hbWU6\r\n", AUTH),
            (b"YW5u", b"334 UGFzc3dvcmQ6\r\n", AUTH),
            (b"c2VjcmV0", b"235 2.7.0 in\r\n", AUTH),
        ],
        {"auth": "login"},
    ),
    "STARTTLS": (
        [(b"EHLO", b"250-mx.test\r\n250 STARTTLS\r\n", EHLO), (b"STARTTLS", b"220-go\r\n220 ahead\r\n", STARTTLS)],
        {"tls": "starttls", "trust": Trust(ssl.create_default_context())},
    ),
    "HELO": (
        [(b"EHLO", b"502-5.5.1 what\r\n502 5.5.1 what\r\n", EHLO), (b"HELO", b"250 mx.test\r\n", HELO)],
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("piece", [1, 65536], ids=["octets", "whole"])
@pytest.mark.parametrize("closes", [True, False], ids=["closed", "silent"])
@pytest.mark.parametrize("name", BEFORE)
def test_each_reply_before_a_transaction_cut_at_each_octet(name, closes, piece):
    """Nothing of the transaction was said, and the session is none."""
    dialogue, options = BEFORE[name]
    if "auth" in options:
        options = {
            **options,
            "credentials": Credentials(b"ann", b"secret"),
            "allow_cleartext": True,
        }
    replies = GOOD | {command: said for command, said, _ in dialogue}
    greeting = len(GOOD[b""])
    ends = list(accumulate((len(said) for _, said, _ in dialogue), initial=greeting))[1:]
    for cut in range(greeting, ends[-1]):
        responder = Responder(replies, cut)
        results = converse(Lockstep(responder, piece=piece, closes=closes), **options)
        missing = next(at for at, end in enumerate(ends) if cut < end)
        text = LOST if closes else "timed out"
        assert results == [(NetworkError, dialogue[missing][2], text)], cut
        assert responder.messages == []
    if "tls" not in options:
        responder = Responder(replies)
        assert converse(Lockstep(responder, piece=piece), **options) == [OK, REFUSED]


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "silent"])
@pytest.mark.parametrize("command", [b"RSET", b"QUIT"], ids=["RSET", "QUIT"])
def test_a_reply_behind_a_transaction_cut_at_each_octet(command, closes):
    """What became of the messages before is not touched by it; what was to come after is told so."""
    refused = b"550-5.1.1 no\r\n550 5.1.1 nobody\r\n"
    replies = good("one-by-one") | {b"RCPT TO:<b@y>": refused, command: b"250-r\r\n250 r\r\n"}
    before = sum(len(replies[each]) for each in (b"", b"EHLO", b"MAIL", b"RCPT TO:<b@y>"))
    no = Answer(RCPT, b"b@y", Reply(550, (b"5.1.1 no", b"5.1.1 nobody")))
    for cut in range(before, before + len(replies[command])):
        stream = Lockstep(Responder(replies, cut), closes=closes)
        session = Session(stream, hello=b"me.test", deadlines=limits(60.0))
        session.open()

        def send(session=session):
            return session.send(b"a@x", [b"b@y"], (CONTENT,), size=len(CONTENT), eight_bit=False)

        assert send() == [no]
        if command == b"RSET":
            try:
                (result,) = send()
            except SmtpError as error:
                result = error
            assert isinstance(result, NetworkError), (cut, result)
        session.quit()
        assert not session.usable


LMTP = {
    b"": b"220 mx.test LMTP\r\n",
    b"LHLO": b"250-mx.test\r\n250 PIPELINING\r\n",
    b"MAIL": b"250 2.1.0 sender\r\n",
    b"RCPT TO:<b@y>": b"250 2.1.5 b\r\n",
    b"RCPT TO:<c@y>": b"250-2.1.5 c\r\n250 2.1.5 c\r\n",
    b"DATA": b"354 go\r\n",
}
LMTP_PHASES = (GREETING, LHLO, MAIL, RCPT, RCPT, DATA, END_OF_DATA, END_OF_DATA)
TO_MESSAGE = (b"250-2.0.0 b\r\n250 2.0.0 kept\r\n", b"452 4.2.2 full\r\n")


@pytest.mark.parametrize("piece", [1, 65536], ids=["octets", "whole"])
@pytest.mark.parametrize("closes", [True, False], ids=["closed", "silent"])
def test_each_reply_of_lmtp_cut_at_each_octet(closes, piece):
    """Who has the whole of a reply has it, whoever waits for the next one."""
    replies = LMTP | {b".": b"".join(TO_MESSAGE), b"QUIT": b"221 bye\r\n"}
    ends = list(accumulate(map(len, (*LMTP.values(), *TO_MESSAGE))))
    kept = Answer(END_OF_DATA, b"b@y", Reply(250, (b"2.0.0 b", b"2.0.0 kept")))
    full = Answer(END_OF_DATA, b"c@y", Reply(452, (b"4.2.2 full",)))
    for cut in range(ends[-1] + 1):
        stream = Lockstep(Responder(replies, cut), piece=piece, closes=closes)
        results = converse(stream, lmtp=True)
        if cut == ends[-1]:
            assert results == [kept, full]
            continue
        missing = next(at for at, end in enumerate(ends) if cut < end)
        error = (NetworkError, LMTP_PHASES[missing], LOST if closes else "timed out")
        expected = [error] if missing < 2 else [kept, error] if missing == 7 else [error, error]
        assert results == expected, cut


@pytest.mark.parametrize("way", WAYS)
def test_each_reply_cut_at_each_octet_over_sockets(way):
    def run(cut):
        responder = Responder(good(way), cut)
        with Served(responder) as server:
            return converse(Stream(server.client)), responder

    for cut in cuts(way):
        results, responder = run(cut)
        assert results == expected(way, cut, LOST), cut
        check(results, responder)


@pytest.mark.parametrize("way", WAYS)
def test_silence_ends_at_the_deadline(way):
    """At each reply's first and last octets; sessions side by side, as each waits."""
    ends = list(accumulate(len(octets) for _, octets in steps(way)))
    chosen = sorted({end + shift for end in ends for shift in (-1, 0, 1)} & set(cuts(way)))
    deadline = 0.5

    def run(cut):
        with Served(Responder(good(way), cut), closes=False) as server:
            start = time.monotonic()
            results = converse(Stream(server.client), deadline)
            return results, time.monotonic() - start

    with ThreadPoolExecutor(len(chosen)) as pool:
        for cut, (results, seconds) in zip(chosen, pool.map(run, chosen), strict=True):
            assert results == expected(way, cut, "timed out"), cut
            assert deadline <= seconds < 5


@pytest.mark.parametrize("way", WAYS)
def test_a_group_is_answered_in_single_octets(way):
    responder = Responder(good(way))
    with Served(responder, piece=1) as server:
        assert converse(Stream(server.client)) == [OK, REFUSED]
    assert (responder.messages, responder.accepted) == ([WIRE[way]], [WIRE[way]])


# What is said is wrong

SAID = [
    *(b"%03d x\r\n" % code for code in (0, 100, 200, 220, 235, 250, 251, 252, 334, 354)),
    *(b"%03d x\r\n" % code for code in (400, 421, 450, 499, 500, 530, 550, 599, 600, 999)),
    *(b"25\r\n", b"2500 x\r\n", b"-250 x\r\n", b" 250 x\r\n", b"250\tx\r\n", b"+OK x\r\n"),
    *(b"250-x\r\n550 y\r\n", b"550-x\r\n250 y\r\n", b"250-x\r\n251 y\r\n", b"250-x\r\ny\r\n"),
    *(b"\r\n", b"\n", b"\0\r\n", b"250\0x\r\n", b"250 x\0y\r\n", b"250 \xff\xfe\x80\r\n"),
    *(b"\xb2\xb5\xb0 x\r\n", "٢٥٠ x\r\n".encode(), b"250 x\n", b"250-x\n250 y\n", b"250 x\r\r\n"),
    *(
        b"250 x\r",
        b"250 x\r250 y\r\n",
        b"250 x\r\n250 y\r\n",
        b"250 x\r\n" * 40,
        b"2\r\n5\r\n0\r\n",
    ),
    *(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"* OK IMAP\r\n"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", list(good("pipelined")), ids=lambda command: command.decode())
def test_a_wrong_reply_to_each_command(way, command):
    for said in SAID:
        outcomes = []
        for piece in (1, 65536):
            responder = Responder({**good(way), command: said})
            results = converse(Lockstep(responder, piece=piece, closes=False))
            check(results, responder)
            outcomes.append(delivered(results))
            if delivered(results) and command == (b"BDAT" if way == "chunked" else b"."):
                assert said.startswith(b"2")
        # With one reply too many it is a matter of time whether it was there before the command.
        if said.count(b"\n") == 1:
            assert outcomes[0] == outcomes[1], said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("code", [b"250", b"354", b"220", b"550", b"421"])
def test_everything_is_said_before_it_is_asked(way, code):
    """All replies, and more, behind the greeting: nothing that was sent after it may count as answered."""
    ahead = b"".join(octets for _, octets in steps(way)) + (code + b" x\r\n") * 100
    for first in (b"", b"EHLO", b"MAIL"):
        responder = Responder(
            {**good(way), first: ahead if not first else good(way)[first] + ahead}
        )
        results = converse(Lockstep(responder, closes=False))
        assert delivered(results) == 0
        assert responder.messages == []
        if first == b"EHLO":
            assert results == [(SmtpError, "", "not usable")]
        else:
            assert {each[0] for each in results} == {RemoteProtocolError}


def test_line_ends_nuls_and_octets_above_127_are_text():
    replies = good("pipelined") | {
        b"RCPT TO:<b@y>": b"250-\0\xff\r\r\n250 \xc3\xbc\n",
        b".": b"250-\xff\r\n250 2.0.0 \0\x1b[2J\n",
    }
    results = converse(Lockstep(Responder(replies)))
    answer = Answer(END_OF_DATA, b"", Reply(250, (b"\xff", b"2.0.0 \0\x1b[2J")))
    assert results == [answer, REFUSED]
    assert str(answer.reply) == "250 \\xff 2.0.0 \\x00\\x1b[2J"


# Too much of it

MEMORY = 30_000_000

# The first reply of each in the good dialogue, pipelined.
PLACES = {GREETING: 0, EHLO: 1, MAIL: 2, RCPT: 3, END_OF_DATA: 6}


class Flood(Stream):
    """Says the dialogue, then ``octets`` again and again, up to a gigabyte."""

    def __init__(self, responder, octets):
        self._responder = responder
        self._octets = octets * (65536 // len(octets))
        self.said = 0
        self.sent = 0

    def read(self, limit, timeout):
        octets = self._responder.output()
        if octets:
            return octets
        assert self.said < 1_000_000_000, "nobody stopped it"
        self.said += len(self._octets)
        return self._octets

    def exchange(self, octets, timeout, received):
        self.sent += len(octets)
        self._responder.receive(octets)

    def close(self):
        pass


def peak(call):
    """Its result, and the octets that it held at most."""
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("octets", [b"250-ab\r\n", b"x", b"\r"], ids=repr)
@pytest.mark.parametrize("phase", [GREETING, EHLO, MAIL, RCPT, END_OF_DATA])
def test_a_reply_without_end(octets, phase):
    command = {
        GREETING: b"",
        EHLO: b"EHLO",
        MAIL: b"MAIL",
        RCPT: b"RCPT TO:<b@y>",
        END_OF_DATA: b".",
    }[phase]
    replies = good("pipelined")
    # Silent from there on.
    before = sum(len(said) for waiting, said in steps("pipelined")[: PLACES[phase]])
    responder = Responder({**replies, command: b"250-x" * 2}, before + 4)
    stream = Flood(responder, octets)
    results, held = peak(lambda: converse(stream))
    error = (RemoteProtocolError, phase, f"reply longer than {MAX_OCTETS} octets")
    expected = {GREETING: [error], EHLO: [error], END_OF_DATA: [error, REFUSED]}
    assert results == expected.get(phase, [error, error])
    assert stream.said < 3 * MAX_OCTETS
    assert held < 8 * MAX_OCTETS


def test_a_gigabyte_of_greeting_over_a_socket():
    ours, theirs = socket.socketpair()
    said = 0

    def run():
        nonlocal said
        block = b"220-" + b"x" * 996 + b"\r\n"
        block *= 1000
        try:
            while said < 1_000_000_000:
                theirs.sendall(block)
                said += len(block)
        except OSError:
            pass

    thread = threading.Thread(target=run)
    thread.start()
    try:
        results, held = peak(lambda: converse(Stream(ours)))
    finally:
        ours.close()
        thread.join(60)
        theirs.close()
    assert results == [(RemoteProtocolError, GREETING, f"reply longer than {MAX_OCTETS} octets")]
    assert said < 10 * MAX_OCTETS
    assert held < 8 * MAX_OCTETS


@pytest.mark.parametrize("line", [b"ab", b"x" * 1000], ids=["short", "long"])
def test_a_long_answer_to_each_of_many_recipients(line):
    """What is kept of each is little enough for a thousand of them."""
    count = 40
    begin = b"550-" + line + b"\r\n"
    responder = Responder(
        good("pipelined") | {b"RCPT TO:<r": begin * (70_000 // len(begin)) + b"550 end\r\n"}
    )
    recipients = [b"b@y", *(b"r%03d@y" % number for number in range(count))]

    class OneByOne(Lockstep):
        """Each command is answered before the next is taken, so that what is held is the client's."""

        def exchange(self, octets, timeout, received):
            self.sent += len(octets)
            for command in octets.splitlines(keepends=True):
                self._responder.receive(command)
                # The end of the message is not answered before it was sent.
                said = b"" if self._responder.messages else self._responder.output()
                if said and not received(said):
                    return

    stream = OneByOne(responder)
    results, held = peak(lambda: converse(stream, recipients=recipients))
    assert results[0] == OK
    assert [each.reply.code for each in results[1:]] == [550] * count
    assert held < MEMORY * count // 1000 + 400_000


# Too little of it


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_stops_reading(way):
    """The commands of many recipients, or the message, no longer fit into what the system holds for it."""
    greeted = threading.Event()
    replies = good(way)
    for recipients, content in (
        ([b"r" * 200 + b"%04d@y" % number for number in range(4000)], (CONTENT,)),
        (RECIPIENTS, (b"x" * 70 + b"\n" for _ in range(100_000))),
    ):
        ours, theirs = socket.socketpair()
        greeted.clear()

        def run(theirs=theirs):
            responder = Responder(replies)
            theirs.sendall(responder.output())
            try:
                while b"MAIL" not in (received := theirs.recv(65536)):
                    responder.receive(received)
                    theirs.sendall(responder.output())
            except OSError:
                return
            greeted.set()

        thread = threading.Thread(target=run)
        thread.start()
        start = time.monotonic()
        results = converse(Stream(ours), 0.3, recipients, content)
        assert time.monotonic() - start < 10
        thread.join(60)
        theirs.close()
        assert greeted.is_set()
        assert set(results) == {(NetworkError, MAIL, "timed out")}


# Anything at all


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_good_dialogue_edited_anywhere(data):
    way = data.draw(st.sampled_from(sorted(WAYS)))
    replies = good(way)
    for _ in range(data.draw(st.integers(1, 4))):
        command = data.draw(st.sampled_from(sorted(replies)))
        octets = replies[command]
        start = data.draw(st.integers(0, len(octets)))
        end = data.draw(st.integers(start, min(len(octets), start + 5)))
        put = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\r\n", b"\n", b"-", b"2", b"421 "])
        )
        replies[command] = octets[:start] + put + octets[end:]
    for piece in (1, 3, 65536):
        for closes in (True, False):
            responder = Responder(replies)
            check(converse(Lockstep(responder, piece=piece, closes=closes)), responder)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.sampled_from(sorted(WAYS)))
@settings(max_examples=200, deadline=None)
def test_any_octets_instead_of_a_dialogue(octets, way):
    commands = sorted(good(way))
    for shift in range(len(commands)):
        replies = good(way) | {
            commands[(shift + number) % len(commands)]: said for number, said in enumerate(octets)
        }
        responder = Responder(replies)
        check(converse(Lockstep(responder, closes=False)), responder)


DIALOGUE = b"".join(octets for _, octets in steps("pipelined"))


def follow(pieces):
    """The state machine alone in a pipelined transaction: the answers, and the text of the error at the end if there is one."""
    connection = Connection()
    answers = []
    try:
        for piece in pieces:
            connection.receive_data(piece)
            while (answer := connection.next_event()) is not None:
                answers.append(answer)
                if answer.command == GREETING and answer.reply.ok:
                    connection.ehlo(b"me.test")
                elif answer.command == EHLO and answer.reply.ok:
                    connection.mail(b"a@x")
                    if connection.extensions.pipelining:
                        connection.rcpt(b"b@y")
                        connection.rcpt(b"c@y")
                        connection.data()
                elif answer.command == DATA and answer.reply.ok:
                    list(connection.message([CONTENT]))
                elif not connection.awaited:
                    return answers, "", connection.state
    except RemoteProtocolError as error:
        answers.append(str(error))
    return answers, connection.awaited, connection.state


def test_the_state_machine_octet_by_octet():
    """After each octet it has handed out the replies that are whole, and waits for the next one."""
    connection_answers, awaited, _ = follow([DIALOGUE])
    assert (len(connection_answers), awaited) == (7, "")
    ends = list(accumulate(len(octets) for _, octets in steps("pipelined")))
    for cut in range(len(DIALOGUE)):
        answers, awaited, _ = follow([DIALOGUE[n : n + 1] for n in range(cut)])
        whole = sum(end <= cut for end in ends)
        assert answers == connection_answers[:whole]
        assert awaited == steps("pipelined")[whole][0]


@given(
    st.lists(
        st.tuples(st.integers(0, len(DIALOGUE)), st.integers(0, 6), st.binary(max_size=6)),
        max_size=4,
    )
)
@settings(max_examples=200, deadline=None)
def test_the_state_machine_with_any_edits(edits):
    """Never another exception, and the same octet by octet as whole."""
    octets = DIALOGUE
    for start, length, put in edits:
        octets = octets[:start] + put + octets[start + length :]
    assert follow([octets]) == follow([octets[n : n + 1] for n in range(len(octets))])
