"""The session against aiosmtpd, a server that knows nothing of us: STARTTLS, AUTH, refusals, the message as it arrives."""

import socket

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

from minisend.smtp.auth import Credentials
from minisend.smtp.client import AUTH, END_OF_DATA, RCPT, Answer
from minisend.smtp.dialogue import Refused
from minisend.smtp.reply import Reply
from minisend.smtp.session import Session
from minisend.smtp.stream import connect
from minisend.smtp.wire import crlf

pytestmark = [
    pytest.mark.peer,
    # aiosmtpd's own use of asyncio.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CONTENT = b"Subject: test\n\n.dot\n..\nlone\rcr \xff\nno end"


class Recorder:
    def __init__(self):
        self.taken = []

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("no"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server, session, envelope):
        self.taken.append((envelope.mail_from, list(envelope.rcpt_tos), envelope.content))
        return "250 2.0.0 taken"


@pytest.fixture
def peer(server_context):
    recorder = Recorder()

    def authenticate(server, session, envelope, mechanism, data):
        good = (data.login, data.password) == (b"user", b"secret")
        return AuthResult(success=good, handled=False)

    class Server(Controller):
        def factory(self):
            return SMTP(
                self.handler,
                hostname="mx.test",
                tls_context=server_context("mx.test"),
                require_starttls=True,
                authenticator=authenticate,
                auth_required=True,
                data_size_limit=1_000_000,
            )

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[
            1
        ]  # aiosmtpd connects to its own port, so it must know it beforehand
    controller = Server(recorder, hostname="127.0.0.1", port=port)
    controller.start()
    yield port, recorder.taken
    controller.stop()


def session_to(port, trusting, **options):
    options = {"credentials": Credentials(b"user", b"secret"), **options}
    return Session(
        connect("127.0.0.1", port, 5),
        hello=b"me.test",
        tls="starttls",
        trust=trusting,
        server_name="mx.test",
        **options,
    )


@pytest.mark.parametrize("mechanism", ["plain", "login"])
def test_two_messages(peer, trusting, mechanism):
    port, taken = peer
    session = session_to(port, trusting, auth=mechanism)
    session.open()
    assert (session.extensions.size, session.extensions.eightbitmime) == (1_000_000, True)
    for sender in (b"a@x.test", b""):
        assert session.send(
            sender, [b"b@y.test", b"no@y.test"], [CONTENT], size=60, eight_bit=True
        ) == [
            Answer(END_OF_DATA, b"", Reply(250, (b"2.0.0 taken",))),
            Answer(RCPT, b"no@y.test", Reply(550, (b"5.1.1 no such user",))),
        ]
    session.quit()
    expected = b"".join(crlf([CONTENT]))
    # "<>" is how aiosmtpd writes the null reverse-path.
    assert taken == [("a@x.test", ["b@y.test"], expected), ("<>", ["b@y.test"], expected)]


def test_a_wrong_password(peer, trusting):
    port, taken = peer
    session = session_to(port, trusting, credentials=Credentials(b"user", b"wrong"))
    with pytest.raises(Refused) as info:
        session.open()
    assert (info.value.phase, info.value.answer.reply.code, info.value.status) == (
        AUTH,
        535,
        "5.7.8",
    )
    assert taken == []
