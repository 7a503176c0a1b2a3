"""LMTP: a reply for each recipient, to the client state machine, over every way of sending, and against another's server."""

import pytest
from aiosmtpd.controller import UnixSocketController
from aiosmtpd.lmtp import LMTP
from smtp.lmtp import LmtpServer

from minisend.errors import RemoteProtocolError
from minisend.smtp.client import (
    DATA,
    END_OF_DATA,
    GREETING,
    LHLO,
    MAIL,
    RCPT,
    Answer,
    Connection,
    State,
)
from minisend.smtp.dialogue import Refused
from minisend.smtp.reply import Reply
from minisend.smtp.session import Session
from minisend.smtp.stream import connect, connect_unix
from minisend.smtp.transaction import Transaction


def reply(octets):
    return Reply(int(octets[:3]), (octets[4:],))


def answers(connection, octets, step):
    found = []
    for start in range(0, len(octets), step):
        connection.receive_data(octets[start : start + step])
        while (answer := connection.next_event()) is not None:
            found.append(answer)
    return found


@pytest.mark.parametrize("step", [1, 1000], ids=["octet by octet", "whole"])
def test_each_reply_to_the_message_has_its_recipient(step):
    """With the next envelope behind the message; who was refused has none."""
    connection = Connection(lmtp=True)
    assert answers(connection, b"220 m\r\n", step) == [Answer(GREETING, b"", reply(b"220 m"))]
    connection.ehlo(b"me")
    assert connection.data_to_send() == b"LHLO me\r\n"
    assert answers(connection, b"250-m\r\n250 PIPELINING\r\n", step) == [
        Answer(LHLO, b"me", Reply(250, (b"m", b"PIPELINING")))
    ]
    assert connection.extensions.pipelining
    connection.mail(b"a@x")
    for recipient in (b"b@y", b"no@y", b"c@y"):
        connection.rcpt(recipient)
    connection.data()
    connection.data_to_send()
    answers(connection, b"250 m\r\n250 r\r\n550 r\r\n250 r\r\n354 d\r\n", step)
    assert b"".join(connection.message([b"hi\n"])) == b"hi\r\n.\r\n"
    connection.mail(b"d@x")
    connection.rcpt(b"e@y")
    connection.data()
    received = b"250 kept\r\n452 full\r\n250 m\r\n250 r\r\n354 d\r\n"
    assert connection.awaited == END_OF_DATA
    assert answers(connection, received, step) == [
        Answer(END_OF_DATA, b"b@y", reply(b"250 kept")),
        Answer(END_OF_DATA, b"c@y", reply(b"452 full")),
        Answer(MAIL, b"d@x", reply(b"250 m")),
        Answer(RCPT, b"e@y", reply(b"250 r")),
        Answer(DATA, b"", reply(b"354 d")),
    ]
    list(connection.message([]))
    assert answers(connection, b"250 kept\r\n", step) == [
        Answer(END_OF_DATA, b"e@y", reply(b"250 kept"))
    ]
    assert (connection.state, connection.awaited) == (State.READY, "")


def test_a_recipient_of_an_earlier_transaction_has_no_reply():
    connection = Connection(lmtp=True)
    answers(connection, b"220 m\r\n", 99)
    connection.ehlo(b"me")
    answers(connection, b"250 m\r\n", 99)
    for address, after in ((b"a@x", connection.rset), (b"b@x", connection.data)):
        connection.mail(b"")
        answers(connection, b"250 m\r\n", 99)
        connection.rcpt(address)
        answers(connection, b"250 r\r\n", 99)
        after()
        answers(connection, b"250 s\r\n" if after == connection.rset else b"354 d\r\n", 99)
    list(connection.message([]))
    assert answers(connection, b"250 k\r\n", 99) == [Answer(END_OF_DATA, b"b@x", reply(b"250 k"))]
    assert connection.awaited == ""
    connection.receive_data(b"250 k\r\n")
    with pytest.raises(RemoteProtocolError, match="reply without a command"):
        connection.next_event()


def test_a_message_for_nobody_is_not_begun():
    """There would be no reply to it."""
    connection = Connection(lmtp=True)
    answers(connection, b"220 m\r\n", 99)
    connection.ehlo(b"me")
    answers(connection, b"250-m\r\n250 PIPELINING\r\n", 99)
    connection.mail(b"")
    connection.rcpt(b"a@x")
    connection.data()
    with pytest.raises(RemoteProtocolError, match="message asked for without a recipient: 354 d"):
        answers(connection, b"250 m\r\n550 r\r\n354 d\r\n", 99)


WAYS = {
    "one by one": (b"8BITMIME",),
    "one ahead": (b"PIPELINING", b"8BITMIME"),
    "chunks": (b"PIPELINING", b"CHUNKING", b"8BITMIME"),
}


def open_session(stream):
    session = Session(stream, hello=b"me.test", lmtp=True)
    session.open()
    return session


def said(results):
    return [(each.command, each.argument, str(each.reply)) for each in results]


@pytest.mark.parametrize("keywords", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("size", [100, 300_000], ids=["small", "large"])
def test_every_way_of_sending(keywords, size):
    """Three messages over one session, in flight at the same time where that can be."""

    def answer(at, address):
        if at == b"RCPT" and address.startswith(b"no"):
            return b"550 5.1.1 unknown"
        if at == b"message" and address.startswith(b"full"):
            return b"452 4.2.2 full"
        return None

    content = b"Subject: s\r\n\r\n" + b".x" * (size // 4) + b"\r\n"
    waiting = [
        Transaction(b"a@x", recipients, lambda: [content], size=len(content), eight_bit=False)
        for recipients in (
            [b"one@y", b"no@y", b"full@y", b"two@y"],
            [b"no@y", b"nobody@y"],
            [b"full@y", b"three@y"],
        )
    ]
    with LmtpServer(keywords=keywords, reply=answer) as server:
        session = open_session(connect("127.0.0.1", server.port, 5))
        found = [
            said(results)
            for _, results in session.transact(lambda: waiting.pop(0) if waiting else None)
        ]
        assert session.usable
        session.quit()
    refused = "550 5.1.1 unknown"
    assert found == [
        [
            (END_OF_DATA, b"one@y", "250 2.0.0 kept one@y"),
            (RCPT, b"no@y", refused),
            (END_OF_DATA, b"full@y", "452 4.2.2 full"),
            (END_OF_DATA, b"two@y", "250 2.0.0 kept two@y"),
        ],
        [(RCPT, b"no@y", refused), (RCPT, b"nobody@y", refused)],
        [
            (END_OF_DATA, b"full@y", "452 4.2.2 full"),
            (END_OF_DATA, b"three@y", "250 2.0.0 kept three@y"),
        ],
    ]
    assert server.messages == [
        ((b"one@y", b"full@y", b"two@y"), content),
        ((b"full@y", b"three@y"), content),
    ]


def test_who_has_had_a_reply_keeps_it_when_the_session_is_lost():
    class Cut(LmtpServer):
        def _talk(self, lines):
            lines.write(b"220 m\r\n")
            for received, reply in (
                (1, b"250 m\r\n"),
                *((1, b"250 ok\r\n"),) * 3,
                (1, b"354 go\r\n"),
                (3, b"250 kept\r\n"),
            ):
                lines.flush()
                for _ in range(received):
                    lines.readline()
                lines.write(reply)
            lines.flush()

    with Cut() as server:
        session = open_session(connect("127.0.0.1", server.port, 5))
        kept, lost = session.send(
            b"a@x", [b"one@y", b"two@y"], [b"\r\nx\r\n"], size=5, eight_bit=False
        )
        assert said([kept]) == [(END_OF_DATA, b"one@y", "250 kept")]
        assert (str(lost), lost.phase) == ("lost connection: closed by the server", END_OF_DATA)
        assert not session.usable


def test_a_server_that_speaks_smtp_is_not_greeted_otherwise():
    class Smtp(LmtpServer):
        def _talk(self, lines):
            lines.write(b"220 m\r\n")
            lines.flush()
            while line := lines.readline():
                self.commands.append(line[:4])
                lines.write(b"221 bye\r\n" if line[:4] == b"QUIT" else b"500 what\r\n")
                lines.flush()

    with Smtp() as server:
        with pytest.raises(Refused, match=r"^LHLO refused: 500 what$"):
            open_session(connect("127.0.0.1", server.port, 5))
    assert server.commands == [b"LHLO", b"QUIT"]


class Mailboxes:
    """For aiosmtpd: one of them is full."""

    def __init__(self):
        self.taken = []

    async def handle_DATA(self, server, session, envelope):
        self.taken.append((envelope.mail_from, list(envelope.rcpt_tos), envelope.content))
        return "\r\n".join(
            "452 4.2.2 full" if to.startswith("full") else "250 2.0.0 kept"
            for to in envelope.rcpt_tos
        )


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_server_of_others_on_a_unix_socket(tmp_path):
    class Server(UnixSocketController):
        def factory(self):
            return LMTP(self.handler, hostname="mailboxes")

    handler = Mailboxes()
    server = Server(handler, unix_socket=str(tmp_path / "lmtp"))
    server.start()
    try:
        session = open_session(connect_unix(str(tmp_path / "lmtp"), 5))
        results = session.send(
            b"a@x",
            [b"one@y", b"full@y", b"two@y"],
            [b"Subject: s\n\nx\n"],
            size=17,
            eight_bit=False,
        )
        session.quit()
    finally:
        server.stop()
    assert said(results) == [
        (END_OF_DATA, b"one@y", "250 2.0.0 kept"),
        (END_OF_DATA, b"full@y", "452 4.2.2 full"),
        (END_OF_DATA, b"two@y", "250 2.0.0 kept"),
    ]
    assert handler.taken == [("a@x", ["one@y", "full@y", "two@y"], b"Subject: s\r\n\r\nx\r\n")]
