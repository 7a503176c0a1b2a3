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
        b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n"
        b"250-CHUNKING\r\n250 ENHANCEDSTATUSCODES\r\n",
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
        b"503 5.5.1 command out of order\r\n250 2.0.0 ok\r\n503 5.5.1 command out of order\r\n"
        + HI_REPLY
        + b"503 5.5.1 command out of order\r\n250 2.0.0 ok\r\n503 5.5.1 command out of order\r\n"
        b"554 5.5.1 no valid recipients\r\n250 2.0.0 ok\r\n250 2.0.0 ok\r\n252 2.0.0 send to it and see\r\n",
    ),
    "malformed": (
        b"\r\nFOO\r\nSTARTTLS\r\nEHLO\r\n"
        + HI
        + b"MAIL a@x\r\nMAIL FROM:a@x\r\nMAIL FROM:<a b>\r\nMAIL FROM:<>x\r\n"
        b"MAIL FROM:<> SIZE=x\r\nMAIL FROM:<> SIZE=1 size=1\r\nMAIL FROM:<> SMTPUTF8=1\r\nMAIL FROM:<> FOO=1\r\nMAIL FROM:<> SIZE=1001\r\nQUIT now\r\nNOOP\nNO\0OP\r\nNO\rOP\r\n",
        [Hello(b"me", False)],
        b"500 5.5.2 command not known\r\n500 5.5.2 command not known\r\n502 5.5.1 command not offered\r\n"
        b"501 5.5.4 host name is missing\r\n"
        + HI_REPLY
        + b"501 5.5.4 expected FROM:<address>\r\n" * 4
        + b"501 5.5.4 parameter SIZE not understood\r\n" * 2
        + b"501 5.5.4 parameter SMTPUTF8 not understood\r\n555 5.5.4 parameter not known\r\n"
        b"552 5.3.4 message is larger than 1000 octets\r\n501 5.5.4 QUIT takes no parameter\r\n"
        b"500 5.5.2 line does not end with CRLF\r\n" + b"500 5.5.2 CR or NUL within a line\r\n" * 2,
    ),
    "paths": (
        HI
        + b'mail from: <@r,@s:"a> b"@x>  body=8bitmime size=9 \r\nRCPT TO:<>\r\nRCPT TO:<x> SIZE=1\r\nRCPT TO:<Postmaster>\r\n',
        [Hello(b"me", False), Mail(b'"a> b"@x', 9, "8BITMIME"), Rcpt(b"Postmaster")],
        HI_REPLY
        + b"250 2.0.0 ok\r\n501 5.1.3 recipient is empty\r\n555 5.5.4 parameter not known\r\n250 2.0.0 ok\r\n",
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
    "help": (
        b"HELP\r\nhelp mail\r\n",
        [],
        b"214 2.0.0 HELO EHLO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT\r\n" * 2,
    ),
    "dsn": (
        HI
        + b"MAIL FROM:<a@x> RET=hdrs ENVID=a+2Bb+20c SMTPUTF8\r\n"
        + b"RCPT TO:<b@y> NOTIFY=success,DELAY ORCPT=rfc822;b+2Bc@z\r\n"
        + b"RCPT TO:<c@y> NOTIFY=NEVER ORCPT=UTF-8;\\x{E4}@z\r\n"
        + "RCPT TO:<ä@y> ORCPT=utf-8;ä@z\r\n".encode()
        + b"RCPT TO:<d@y> ORCPT=x400;/c=de/\r\nRCPT TO:<d@y> ORCPT=x400;/c+3Dde/\r\n",
        [
            Hello(b"me", False),
            Mail(b"a@x", ret="HDRS", envid="a+b c"),
            Rcpt(b"b@y", "SUCCESS,DELAY", b"b+c@z"),
            Rcpt(b"c@y", "NEVER", "ä@z".encode()),
            Rcpt("ä@y".encode(), "", "ä@z".encode()),
            Rcpt(b"d@y"),
        ],
        HI_REPLY
        + b"250 2.0.0 ok\r\n" * 4
        + b"501 5.5.4 parameter ORCPT not understood\r\n250 2.0.0 ok\r\n",
    ),
    "chunks": (
        HI
        + b"MAIL FROM:<a@x>\r\nBDAT 5\r\nQUIT\nRCPT TO:<b@y>\r\nBDAT 6\r\n..\r\n.\nbdat 0\r\nDATA\r\nRCPT TO:<c>\r\n"
        b"BDAT 4 Last\r\n.\r\n\0BDAT 6\r\nNOOP\r\nNOOP\r\n",
        [*TRANSACTION_EVENTS, MessageData(b"..\r\n.\n.\r\n\0"), MessageEnd(10)],
        HI_REPLY
        + b"250 2.0.0 ok\r\n554 5.5.1 no valid recipients\r\n250 2.0.0 ok\r\n250 2.0.0 6 octets so far\r\n"
        b"250 2.0.0 6 octets so far\r\n503 5.5.1 command out of order\r\n503 5.5.1 command out of order\r\n"
        b"250 2.0.0 ok\r\n503 5.5.1 command out of order\r\n250 2.0.0 ok\r\n",
    ),
    "chunks-of-nothing": (
        HI + TRANSACTION[:-6] + b"BDAT 0 LAST\r\nNOOP\r\n",
        [*TRANSACTION_EVENTS, MessageEnd(0)],
        HI_REPLY + b"250 2.0.0 ok\r\n" * 4,
    ),
    "chunks-left-by-reset": (
        HI + TRANSACTION[:-6] + b"BDAT 1\r\nxRSET\r\n" + TRANSACTION[:-6] + b"BDAT 1 LAST\r\ny",
        [
            *TRANSACTION_EVENTS,
            MessageData(b"x"),
            Reset(),
            *TRANSACTION_EVENTS[1:],
            MessageData(b"y"),
            MessageEnd(1),
        ],
        HI_REPLY
        + b"250 2.0.0 ok\r\n" * 2
        + b"250 2.0.0 1 octets so far\r\n"
        + b"250 2.0.0 ok\r\n" * 4,
    ),
    "chunk-without-size": (
        HI + TRANSACTION[:-6] + b"BDAT LAST\r\nNOOP\r\n",
        TRANSACTION_EVENTS,
        HI_REPLY + b"250 2.0.0 ok\r\n" * 2 + b"421 4.5.4 expected BDAT <octets> [LAST]\r\n",
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


@pytest.mark.parametrize("ends", [(b".\n", b".\r\n"), (b".\r\n", b".\n")], ids=["LF", "CRLF"])
def test_a_local_session_takes_both_line_ends(ends):
    octets = b"HELO me\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\nDATA\n..x\n\n..\r\n.y\r\n" + ends[0]
    octets += TRANSACTION + b"z\n" + ends[1] + b"QUIT\nNOOP\n"
    events = [
        *TRANSACTION_EVENTS,
        MessageData(b".x\n\n.\r\ny\r\n"),
        MessageEnd(10),
        *TRANSACTION_EVENTS[1:],
        MessageData(b"z\n"),
        MessageEnd(2),
        Quit(),
    ]
    written = (
        GREETING
        + TRANSACTION_REPLIES
        + b"250 2.0.0 ok\r\n"
        + TRANSACTION_REPLIES[len(HI_REPLY) :]
        + b"250 2.0.0 ok\r\n221 2.0.0 bye\r\n"
    )
    for pieces in ([octets], octet_by_octet(octets)):
        assert serve(ServerConnection(b"mx.test", local=True), pieces) == (events, written)


def test_a_local_session_counts_the_octets_of_a_chunk_as_they_are():
    octets = b"MAIL FROM:<a@x>\nRCPT TO:<b@y>\nBDAT 4 LAST\n\n.\n\nBDAT 2\n\n\nQUIT\n"
    events = [*TRANSACTION_EVENTS[1:], MessageData(b"\n.\n\n"), MessageEnd(4), Quit()]
    written = (
        GREETING + b"250 2.0.0 ok\r\n" * 3 + b"503 5.5.1 command out of order\r\n221 2.0.0 bye\r\n"
    )
    for pieces in ([octets], octet_by_octet(octets)):
        assert serve(ServerConnection(b"mx.test", local=True), pieces) == (events, written)


def test_a_local_session_needs_neither_hello_nor_brackets():
    octets = b"mail from: a@x body=7BIT\nRCPT TO:b@y\nRCPT TO:c d\nRCPT TO:x<c>\nRCPT TO: \n"
    events = [Mail(b"a@x", body="7BIT"), Rcpt(b"b@y")]
    written = (
        GREETING
        + b"250 2.0.0 ok\r\n250 2.0.0 ok\r\n555 5.5.4 parameter not known\r\n"
        + b"501 5.5.4 expected TO:<address>\r\n" * 2
    )
    assert serve(ServerConnection(b"mx.test", local=True), [octets]) == (events, written)


@pytest.mark.parametrize(
    ("line", "keyword"),
    [
        ("MAIL FROM:<> RET=ALL", "RET"),
        ("MAIL FROM:<> RET", "RET"),
        ("MAIL FROM:<> BODY=BINARYMIME", "BODY"),
        ("MAIL FROM:<> SIZE=" + "9" * 21, "SIZE"),
        ("MAIL FROM:<> ENVID=", "ENVID"),
        ("MAIL FROM:<> ENVID=a+b", "ENVID"),
        ("MAIL FROM:<> ENVID=a+0Ab", "ENVID"),
        ("MAIL FROM:<> ENVID=+E4", "ENVID"),
        ("MAIL FROM:<> ENVID=" + "x" * 101, "ENVID"),
        ("RCPT TO:<b> NOTIFY", "NOTIFY"),
        ("RCPT TO:<b> NOTIFY=NEVER,FAILURE", "NOTIFY"),
        ("RCPT TO:<b> NOTIFY=SUCCESS,", "NOTIFY"),
        ("RCPT TO:<b> NOTIFY=FAILURE NOTIFY=DELAY", "NOTIFY"),
        ("RCPT TO:<b> ORCPT=b@y", "ORCPT"),
        ("RCPT TO:<b> ORCPT=rfc822;", "ORCPT"),
        ("RCPT TO:<b> ORCPT=;b@y", "ORCPT"),
        ("RCPT TO:<b> ORCPT=rfc822;b+0D+0Ac", "ORCPT"),
        ("RCPT TO:<b> ORCPT=rfc822;b+E4", "ORCPT"),
        ("RCPT TO:<b> ORCPT=utf-8;\\x{A}", "ORCPT"),
        ("RCPT TO:<b> ORCPT=utf-8;\\x{D800}", "ORCPT"),
        ("RCPT TO:<b> ORCPT=utf-8;\\x{110000}", "ORCPT"),
        ("RCPT TO:<b> ORCPT=rfc822;" + "x" * 501, "ORCPT"),
    ],
    ids=lambda text: text[:45],
)
def test_a_parameter_with_a_wrong_value(line, keyword):
    start = b"MAIL FROM:<>\n" if line.startswith("RCPT") else b""
    events, written = serve(
        ServerConnection(b"mx.test", local=True), [start + line.encode() + b"\n"]
    )
    assert events == [Mail(b"")] * bool(start)
    assert written == (
        GREETING
        + b"250 2.0.0 ok\r\n" * bool(start)
        + b"501 5.5.4 parameter %b not understood\r\n" % keyword.encode()
    )


def test_conditions_and_sizes_as_they_are_meant():
    octets = (
        b"MAIL FROM:<> RET=Full ENVID=" + b"x" * 100 + b"\n"
        b"RCPT TO:<b> NOTIFY=failure,DELAY,Failure,SUCCESS\n"
    )
    events, _ = serve(ServerConnection(b"mx.test", local=True), [octets])
    assert events == [
        Mail(b"", ret="FULL", envid="x" * 100),
        Rcpt(b"b", "FAILURE,DELAY,SUCCESS"),
    ]


def test_closing_at_any_time():
    """Between commands, with a reply owed, and within a message; then nothing is read any more."""
    for octets in (HI, HI + b"MAIL FROM:<>\r\n", HI + TRANSACTION + b"x\r\n.\r"):
        server = ServerConnection(b"mx.test")
        server.receive_data(octets)
        while (event := server.next_event()) is not None and not (
            isinstance(event, Mail) and octets.endswith(b"<>\r\n")
        ):
            if isinstance(event, Mail | Rcpt):
                server.reply(250, "ok")
        server.data_to_send()
        server.close("shutting down", "4.3.2")
        assert server.data_to_send() == b"421 4.3.2 shutting down\r\n"
        server.receive_data(b"\n.\r\nNOOP\r\n")
        assert (server.next_event(), server.state) == (None, State.CLOSED)


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
        + b"250 ok\r\n550 5.1.1 no such user\r\n554 5.5.1 no valid recipients\r\n250 ok\r\n"
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
    for local in (False, True):
        events, written = serve(
            ServerConnection(b"mx.test", local=local), [HI + TRANSACTION, *pieces]
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
                b"BDAT 3\r\n",
                b"BDAT 9 LAST\n",
                b"BDAT 0 LAST\r\n",
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
    for local in (False, True):
        whole, cut, single = (
            serve(ServerConnection(b"mx.test", local=local), p)
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
    client.unsent.extend(client.message([b".a\n\xff"]))
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
