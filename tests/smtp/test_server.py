"""The sans-IO server: dialogues in every cut, where a message ends, and the client against it in memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.errors import LocalProtocolError
from minisend.smtp.client import END_OF_DATA, Connection
from minisend.smtp.server import (
    MAX_COMMAND,
    Hello,
    Mail,
    MessageData,
    MessageEnd,
    Quit,
    Rcpt,
    Reset,
    ServerConnection,
    State,
)
from minisend.smtp.wire import crlf, wire

GREETING = b"220 mx.test ESMTP\r\n"
HI = b"HELO me\r\n"
HI_REPLY = b"250 mx.test\r\n"


def serve(server, pieces, decide=lambda event: (250, "ok", "2.0.0")):
    """Events (the data of one message joined) and all that was written."""
    events, written = [], [server.data_to_send()]
    for piece in pieces:
        server.receive_data(piece)
        while (event := server.next_event()) is not None:
            if isinstance(event, MessageData) and events and isinstance(events[-1], MessageData):
                events[-1] = MessageData(events[-1].octets + event.octets)
            else:
                events.append(event)
            if isinstance(event, Mail | Rcpt | MessageEnd):
                server.reply(*decide(event))
        written.append(server.data_to_send())
    return events, b"".join(written)


def octet_by_octet(octets):
    return [octets[i : i + 1] for i in range(len(octets))]


TRANSACTION = b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n"
TRANSACTION_EVENTS = [Hello(b"me", False), Mail(b"a@x"), Rcpt(b"b@y")]
TRANSACTION_REPLIES = HI_REPLY + b"250 2.0.0 ok\r\n250 2.0.0 ok\r\n354 end with CRLF . CRLF\r\n"

CASES = {
    "ehlo": (
        b"EHLO me\r\n",
        [Hello(b"me", True)],
        b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n",
    ),
    "transaction": (
        HI + TRANSACTION + b"..x\r\n.\ny\r\n.\r\nQUIT\r\n",
        [*TRANSACTION_EVENTS, MessageData(b".x\r\n\ny\r\n"), MessageEnd(8), Quit()],
        TRANSACTION_REPLIES + b"250 2.0.0 ok\r\n221 2.0.0 bye\r\n",
    ),
    "empty-message": (
        HI + TRANSACTION + b".\r\nRSET\r\n",
        [*TRANSACTION_EVENTS, MessageEnd(0), Reset()],
        TRANSACTION_REPLIES + b"250 2.0.0 ok\r\n250 2.0.0 ok\r\n",
    ),
    "smuggling": (
        HI + TRANSACTION + b"x\n.\nMAIL\r\n\n.\r\nQUIT\r.\r\r\n.\rz\r\n.\r\n",
        [
            *TRANSACTION_EVENTS,
            MessageData(b"x\n.\nMAIL\r\n\n.\r\nQUIT\r.\r\r\n\rz\r\n"),
            MessageEnd(27),
        ],
        TRANSACTION_REPLIES + b"250 2.0.0 ok\r\n",
    ),
    "order": (
        b"MAIL FROM:<>\r\nRSET\r\nDATA\r\n"
        + HI
        + b"RCPT TO:<x>\r\nMAIL FROM:<>\r\nMAIL FROM:<>\r\nDATA\r\nrset\r\nnoop x\r\nVRFY x\r\n",
        [Hello(b"me", False), Mail(b""), Reset()],
        b"503 5.5.1 command out of order\r\n250 2.0.0 ok\r\n503 5.5.1 no recipients\r\n"
        + HI_REPLY
        + b"503 5.5.1 command out of order\r\n250 2.0.0 ok\r\n503 5.5.1 command out of order\r\n"
        b"503 5.5.1 no recipients\r\n250 2.0.0 ok\r\n250 2.0.0 ok\r\n252 2.0.0 send to it and see\r\n",
    ),
    "malformed": (
        b"\r\nFOO\r\nSTARTTLS\r\nEHLO\r\n"
        + HI
        + b"MAIL a@x\r\nMAIL FROM:a@x\r\nMAIL FROM:<a b>\r\nMAIL FROM:<>x\r\n"
        b"MAIL FROM:<> SIZE=x\r\nMAIL FROM:<> FOO=1\r\nMAIL FROM:<> SIZE=1001\r\nQUIT now\r\nNOOP\nNO\0OP\r\nNO\rOP\r\n",
        [Hello(b"me", False)],
        b"500 5.5.2 command not known\r\n500 5.5.2 command not known\r\n502 5.5.1 command not offered\r\n"
        b"501 5.5.4 host name is missing\r\n"
        + HI_REPLY
        + b"501 5.5.4 expected FROM:<address>\r\n" * 4
        + b"501 5.5.4 parameter not understood\r\n555 5.5.4 parameter not understood\r\n"
        b"552 5.3.4 message is larger than 1000 octets\r\n501 5.5.4 QUIT takes no parameter\r\n"
        b"500 5.5.2 line does not end with CRLF\r\n" + b"500 5.5.2 CR or NUL within a line\r\n" * 2,
    ),
    "paths": (
        HI
        + b'mail from: <@r,@s:"a> b"@x>  body=8bitmime size=9 \r\nRCPT TO:<>\r\nRCPT TO:<x> NOTIFY=NEVER\r\nRCPT TO:<Postmaster>\r\n',
        [Hello(b"me", False), Mail(b'"a> b"@x', 9, "8BITMIME"), Rcpt(b"Postmaster")],
        HI_REPLY
        + b"250 2.0.0 ok\r\n501 5.1.3 recipient is empty\r\n555 5.5.4 parameter not understood\r\n250 2.0.0 ok\r\n",
    ),
    "long-line": (
        b"NOOP "
        + b"x" * MAX_COMMAND
        + b"\r\nNOOP "
        + b"x" * (MAX_COMMAND - 7)
        + b"\r\nNOOP "
        + b"x" * (MAX_COMMAND - 6)
        + b"\r\n",
        [],
        b"500 5.5.2 line too long\r\n250 2.0.0 ok\r\n500 5.5.2 line too long\r\n",
    ),
    "after-quit": (b"QUIT\r\nNOOP\r\n", [Quit()], b"221 2.0.0 bye\r\n"),
}


@pytest.mark.parametrize(("octets", "events", "written"), CASES.values(), ids=CASES.keys())
def test_dialogue_whole_octet_by_octet_and_with_octets_behind(octets, events, written):
    for pieces in ([octets], octet_by_octet(octets), [octets + b"NO"]):
        assert serve(ServerConnection(b"mx.test", size_limit=1000), pieces) == (
            events,
            GREETING + written,
        )


def test_lenient_line_ends_for_a_pipe():
    octets = b"HELO me\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\nDATA\n..x\n\ny\r\n.\nQUIT\n"
    events = [*TRANSACTION_EVENTS, MessageData(b".x\r\n\r\ny\r\n"), MessageEnd(9), Quit()]
    written = GREETING + TRANSACTION_REPLIES + b"250 2.0.0 ok\r\n221 2.0.0 bye\r\n"
    for pieces in ([octets], octet_by_octet(octets)):
        assert serve(ServerConnection(b"mx.test", lenient_lf=True), pieces) == (events, written)


def test_the_application_decides():
    def decide(event):
        if isinstance(event, Rcpt):
            return (550, "no such user", "5.1.1") if event.recipient == b"b@y" else (250, "ok")
        return (451, "later") if isinstance(event, MessageEnd) else (250, "ok")

    octets = (
        HI
        + b"MAIL FROM:<>\r\nRCPT TO:<b@y>\r\nDATA\r\nRCPT TO:<c@y>\r\nDATA\r\n.\r\nMAIL FROM:<z>\r\n"
    )
    events = [Hello(b"me", False), Mail(b""), Rcpt(b"b@y"), Rcpt(b"c@y"), MessageEnd(0), Mail(b"z")]
    written = (
        GREETING
        + HI_REPLY
        + b"250 ok\r\n550 5.1.1 no such user\r\n503 5.5.1 no recipients\r\n250 ok\r\n"
        b"354 end with CRLF . CRLF\r\n451 later\r\n250 ok\r\n"
    )
    for pieces in ([octets], octet_by_octet(octets)):
        assert serve(ServerConnection(b"mx.test"), pieces, decide) == (events, written)


def test_a_421_closes():
    server = ServerConnection(b"mx.test")
    events, written = serve(
        server, [HI + TRANSACTION], lambda event: (421, "shutting down", "4.3.2")
    )
    assert events == [Hello(b"me", False), Mail(b"a@x")]
    assert written == GREETING + HI_REPLY + b"421 4.3.2 shutting down\r\n"
    assert server.state is State.CLOSED


def test_replies_are_owed_once():
    server = ServerConnection(b"mx.test")
    with pytest.raises(LocalProtocolError):
        server.reply(250, "ok")
    server.receive_data(HI + TRANSACTION)
    assert [server.next_event(), server.next_event()] == [Hello(b"me", False), Mail(b"a@x")]
    with pytest.raises(LocalProtocolError):
        server.next_event()
    with pytest.raises(LocalProtocolError):
        server.reply(250, "ok\r\n354 forged")


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n.", b".\r\n"]), max_size=14),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_message_comes_back_as_it_was_for_any_cut(tokens, data):
    """What ``wire`` writes the server reads back as what ``crlf`` writes, and the next command is the next command."""
    content = b"".join(tokens)
    octets = b"".join(wire([content])) + b"NOOP\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=5)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    for lenient_lf in (False, True):
        events, written = serve(
            ServerConnection(b"mx.test", lenient_lf=lenient_lf), [HI + TRANSACTION, *pieces]
        )
        expected = b"".join(crlf([content]))
        assert events == [
            *TRANSACTION_EVENTS,
            *([MessageData(expected)] if expected else []),
            MessageEnd(len(expected)),
        ]
        assert written == GREETING + TRANSACTION_REPLIES + b"250 2.0.0 ok\r\n250 2.0.0 ok\r\n"


@given(
    st.lists(
        st.sampled_from(
            [
                b"EHLO x\r\n",
                b"MAIL FROM:<a>\r\n",
                b"RCPT TO:<b>\r\n",
                b"DATA\r\n",
                b"\r\n",
                b".",
                b"\n",
                b"\r",
                b"RSET\r\n",
                b"QUIT\r\n",
                b"\xff",
                b"<",
            ]
        ),
        max_size=14,
    ),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_any_octets_in_any_pieces(tokens, data):
    """No exception, and never a difference that depends on packet boundaries."""
    octets = b"".join(tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=5)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    for lenient_lf in (False, True):
        whole, cut, single = (
            serve(ServerConnection(b"mx.test", lenient_lf=lenient_lf), p)
            for p in ([octets], pieces, octet_by_octet(octets))
        )
        held = [(e, w) for e, w in (whole, cut, single)]
        assert held[0] == held[1] == held[2]


@pytest.mark.parametrize("octetwise", [False, True])
def test_client_against_server_in_memory(octetwise):
    client, server = Connection(), ServerConnection(b"mx.test", size_limit=5000)
    answers, events = [], []

    def carry(octets, into):
        for piece in octet_by_octet(octets) if octetwise else [octets]:
            into.receive_data(piece)

    def exchange():
        carry(client.data_to_send(), server)
        while (event := server.next_event()) is not None:
            events.append(event)
            if isinstance(event, Rcpt):
                server.reply(
                    *((550, "no", "5.1.1") if event.recipient == b"b@y" else (250, "ok", "2.1.5"))
                )
            elif isinstance(event, Mail | MessageEnd):
                server.reply(250, "ok", "2.0.0")
        carry(server.data_to_send(), client)
        while (answer := client.next_event()) is not None:
            answers.append((answer.command, answer.argument, str(answer.reply)))

    exchange()
    client.ehlo(b"me")
    exchange()
    assert (
        client.extensions.size,
        client.extensions.pipelining,
        client.extensions.eightbitmime,
    ) == (5000, True, True)
    client.mail(b"", [b"SIZE=6", b"BODY=8BITMIME"])
    client.rcpt(b"b@y")
    client.rcpt(b"c@y")
    client.data()
    exchange()
    client._out.extend(client.message([b".a\n\xff"]))
    exchange()
    client.quit()
    exchange()
    assert answers[2:] == [
        ("MAIL FROM", b"", "250 2.0.0 ok"),
        ("RCPT TO", b"b@y", "550 5.1.1 no"),
        ("RCPT TO", b"c@y", "250 2.1.5 ok"),
        ("DATA", b"", "354 end with CRLF . CRLF"),
        (END_OF_DATA, b"", "250 2.0.0 ok"),
        ("QUIT", b"", "221 2.0.0 bye"),
    ]
    assert events == [
        Hello(b"me", True),
        Mail(b"", 6, "8BITMIME"),
        Rcpt(b"b@y"),
        Rcpt(b"c@y"),
        MessageData(b".a\r\n\xff\r\n"),
        MessageEnd(7),
        Quit(),
    ]
