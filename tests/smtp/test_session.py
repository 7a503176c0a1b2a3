"""The driver against scripted servers on loopback sockets: one result a recipient, whatever the server does."""

import socket
import ssl
import threading
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.errors import (
    LocalProtocolError,
    NetworkError,
    RemoteProtocolError,
    SmtpError,
    TlsError,
)
from minisend.smtp.auth import AuthError, Credentials
from minisend.smtp.client import (
    AUTH,
    DATA,
    EHLO,
    END_OF_DATA,
    GREETING,
    HELO,
    MAIL,
    RCPT,
    STARTTLS,
    Answer,
)
from minisend.smtp.deadlines import Deadlines
from minisend.smtp.dialogue import Refused
from minisend.smtp.handshake import Fault, Trust
from minisend.smtp.reply import Reply
from minisend.smtp.session import Session
from minisend.smtp.stream import HandshakeError, Stream, connect
from minisend.smtp.transaction import SizeExceeded

SECRET = Credentials(b"user", b"pass phrase")
FLIGHT = b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nRCPT TO:<c@y>\r\nDATA\r\n"
OK = Answer(END_OF_DATA, b"", Reply(250, (b"2.0.0 queued",)))


def answer(command, argument, line):
    return Answer(command, argument, Reply(int(line[:3]), (line[4:],)))


def shown(results):
    """Answers as they are; errors by class, phase and text."""
    return [r if isinstance(r, Answer) else (type(r), r.phase, str(r)) for r in results]


@pytest.fixture
def session_to():
    """``session_to(port, ...)`` -> a session that is not open yet; closed after the test."""
    sessions = []

    def make(port, **options):
        sessions.append(
            Session(
                connect("127.0.0.1", port, 5), hello=b"me.test", **{"deadlines": LIMITS, **options}
            )
        )
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


LIMITS = Deadlines(
    **dict.fromkeys(
        (
            "greeting",
            "hello",
            "starttls",
            "auth",
            "mail",
            "rcpt",
            "data",
            "block",
            "end_of_data",
            "rset",
            "quit",
        ),
        10.0,
    )
)
LOST = "lost connection: closed by the server"


def send(
    session,
    recipients=(b"b@y", b"c@y"),
    content=(b"Subject: x\n\n.dot\n",),
    size=20,
    eight_bit=False,
):
    return shown(session.send(b"a@x", list(recipients), content, size=size, eight_bit=eight_bit))


def open_fails(session, kind, phase, text):
    with pytest.raises(SmtpError) as info:
        session.open()
    error = info.value
    assert (type(error), error.phase, str(error)) == (kind, phase, text)
    assert not session.usable
    return error


# The way it should go


def test_two_transactions_in_flights_over_one_session(serve, session_to):
    def script(peer):
        peer.hello(b"PIPELINING", b"SIZE 1000", b"8BITMIME")
        peer.expect(FLIGHT.replace(b"<a@x>", b"<a@x> SIZE=20 BODY=8BITMIME"))
        peer.send(b"250 m\r\n550 5.1.1 no\r\n250 c\r\n354 go\r\n")
        peer.expect(b"Subject: x\r\n\r\n..dot\r\n.\r\n")
        peer.send(b"250 2.0.0 queued\r\n")
        peer.expect(b"MAIL FROM:<a@x> SIZE=20\r\nRCPT TO:<d@y>\r\nDATA\r\n")
        peer.send(b"250 m\r\n250 d\r\n354 go\r\n")
        peer.expect(b"..\r\n.\r\n")
        peer.send(b"452 4.3.1 full\r\n")
        peer.bye()

    lines = []
    session = session_to(serve(script), trace=lines.append)
    session.open()
    assert (session.extensions.size, session.usable) == (1000, True)
    assert send(session, eight_bit=True) == [answer(RCPT, b"b@y", b"550 5.1.1 no"), OK]
    assert session.usable
    assert send(session, [b"d@y"], [b"."]) == [answer(END_OF_DATA, b"", b"452 4.3.1 full")]
    session.quit()
    assert not session.usable
    assert lines[-4:] == ["C: (7 octets of message)", "S: 452 4.3.1 full", "C: QUIT", "S: 221 bye"]


def test_one_at_a_time_and_reset_after_all_were_refused(serve, session_to):
    def script(peer):
        peer.hello()
        peer.expect(b"MAIL FROM:<a@x>\r\n")
        peer.send(b"250 m\r\n")
        for name in (b"b", b"c"):
            peer.expect(b"RCPT TO:<" + name + b"@y>\r\n")
            peer.send(b"550 no " + name + b"\r\n")
        peer.expect(b"RSET\r\n")
        peer.send(b"250 r\r\n")
        peer.expect(b"MAIL FROM:<a@x>\r\n")
        peer.send(b"250 m\r\n")
        peer.expect(b"RCPT TO:<b@y>\r\n")
        peer.send(b"250 b\r\n")
        peer.expect(b"RCPT TO:<c@y>\r\n")
        peer.send(b"451 c\r\n")
        peer.expect(b"DATA\r\n")
        peer.send(b"354 d\r\n")
        peer.expect(b"Subject: x\r\n\r\n..dot\r\n.\r\n")
        peer.send(b"250 2.0.0 queued\r\n")
        peer.bye()

    session = session_to(serve(script))
    session.open()
    assert send(session) == [answer(RCPT, b"b@y", b"550 no b"), answer(RCPT, b"c@y", b"550 no c")]
    assert session.usable
    assert send(session) == [OK, answer(RCPT, b"c@y", b"451 c")]
    session.quit()


# open


def test_helo_for_a_server_from_before_esmtp(serve, session_to):
    def script(peer):
        peer.send(b"220 old\r\n")
        peer.expect(b"EHLO me.test\r\n")
        peer.send(b"500 what\r\n")
        peer.expect(b"HELO me.test\r\n")
        peer.send(b"250 hi\r\n")
        peer.bye()

    session = session_to(serve(script), tls="opportunistic")
    session.open()
    assert (session.usable, session.extensions) == (True, {})
    session.quit()


@pytest.mark.parametrize(
    ("steps", "kind", "phase", "text"),
    [
        pytest.param(
            [(b"", b"554 5.7.1 go away\r\n"), (b"QUIT\r\n", b"221 x\r\n")],
            Refused,
            GREETING,
            "greeting refused: 554 5.7.1 go away",
            id="greeting",
        ),
        pytest.param(
            [(b"", b"421 busy\r\n")], Refused, GREETING, "greeting refused: 421 busy", id="421"
        ),
        pytest.param([(b"", b"")], NetworkError, GREETING, LOST, id="closed"),
        pytest.param([(b"", b"220 x")], NetworkError, GREETING, LOST, id="closed-within-a-line"),
        pytest.param(
            [(b"", b"SSH-2.0-x\r\n")],
            RemoteProtocolError,
            GREETING,
            "not an SMTP reply: 'SSH-2.0-x'",
            id="not-smtp",
        ),
        pytest.param(
            [(b"", b"220 x\r\n"), (b"EHLO me.test\r\n", b"451 x\r\n"), (b"QUIT\r\n", b"")],
            Refused,
            EHLO,
            "EHLO refused: 451 x",
            id="ehlo-4yz",
        ),
        pytest.param(
            [
                (b"", b"220 x\r\n"),
                (b"EHLO me.test\r\n", b"500 x\r\n"),
                (b"HELO me.test\r\n", b"550 y\r\n"),
                (b"QUIT\r\n", b""),
            ],
            Refused,
            HELO,
            "HELO refused: 550 y",
            id="helo",
        ),
        pytest.param(
            [(b"", b"220 x\r\n"), (b"EHLO me.test\r\n", b"250 x\r\n250 y\r\n"), (b"QUIT\r\n", b"")],
            None,
            "",
            "",
            id="reply-too-many",
        ),
    ],
)
def test_open_fails(serve, session_to, steps, kind, phase, text):
    def script(peer):
        for expected, reply in steps:
            peer.expect(expected)
            peer.send(reply)

    session = session_to(
        serve(
            script
            if kind
            else lambda peer: (
                peer.send(steps[0][1]),
                peer.expect(steps[1][0]),
                peer.send(steps[1][1]),
            )
        )
    )
    if kind is None:
        session.open()
        assert not session.usable
        with pytest.raises(LocalProtocolError):
            session.send(b"", [b"x"], (), size=0, eight_bit=False)
    else:
        error = open_fails(session, kind, phase, text)
        assert error.status == {
            "554 5": "5.7.1",
            "421 b": "4.0.0",
            "451 x": "4.0.0",
            "550 y": "5.0.0",
        }.get(text.partition(": ")[2][:5], kind.status if kind is RemoteProtocolError else "4.4.2")


def test_a_server_that_drips_does_not_outlive_the_deadline():
    ours, theirs = socket.socketpair()
    done = threading.Event()

    def drip():
        try:
            theirs.sendall(b"220-")
            while not done.wait(0.002):
                theirs.sendall(b"x")
        except OSError:  # the session is over
            pass

    thread = threading.Thread(target=drip)
    thread.start()
    open_fails(
        Session(Stream(ours), hello=b"me.test", deadlines=Deadlines(greeting=0.1)),
        NetworkError,
        GREETING,
        "timed out",
    )
    done.set()
    thread.join(10)
    theirs.close()


# TLS


@pytest.mark.parametrize("level", ["starttls", "opportunistic", "implicit"])
def test_a_server_that_says_nothing_may_wait_for_tls(level, monkeypatch):
    """Where it is asked to begin in the clear."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(Stream, "start_tls", lambda *arguments: None)
    trust = Trust(ssl.create_default_context(), remedies={Fault.SILENT: "mend it"})
    limits = Deadlines(greeting=0.05)
    session = Session(
        Stream(ours), hello=b"me.test", tls=level, trust=trust, server_name="mx", deadlines=limits
    )
    said = "timed out" if level == "implicit" else "timed out: mend it"
    open_fails(session, NetworkError, GREETING, said)
    theirs.close()


def tls_script(context, *keywords_after):
    def script(peer):
        peer.hello(b"STARTTLS", b"AUTH PLAIN LOGIN", b"SIZE 5")
        peer.expect(b"STARTTLS\r\n")
        peer.send(b"220 go\r\n")
        peer.start_tls(context)
        peer.hello(*keywords_after, greeting=False)
        peer.bye()

    return script


@pytest.mark.parametrize("level", ["starttls", "opportunistic"])
def test_starttls(serve, session_to, server_context, trusting, level):
    lines = []
    port = serve(tls_script(server_context("mx.test"), b"SIZE 9"))
    session = session_to(
        port,
        tls=level,
        trust=trusting,
        server_name="mx.test",
        trace=lines.append,
    )
    session.open()
    assert (session.extensions.size, session.extensions.starttls, session.stream.encrypted) == (
        9,
        False,
        True,
    )
    assert f"-- {session.stream.tls}" in lines
    session.quit()


def test_implicit_tls(serve, session_to, server_context, trusting):
    def script(peer):
        peer.start_tls(server_context("mx.test"))
        peer.hello(b"PIPELINING")
        peer.expect(FLIGHT)
        peer.send(b"250 m\r\n250 b\r\n250 c\r\n354 d\r\n")
        peer.expect(b"x" * 300_000 + b"\r\n.\r\n")
        peer.send(b"250 2.0.0 queued\r\n")
        peer.bye()

    session = session_to(serve(script), tls="implicit", trust=trusting, server_name="mx.test")
    session.open()
    assert send(session, content=[b"x" * 300_000]) == [OK, OK]
    session.quit()


def test_a_level_of_tls_that_is_none_of_the_four():
    with pytest.raises(LocalProtocolError):
        Session(Scripted([]), hello=b"me.test", tls="required")


def test_tls_required_and_not_offered(serve, session_to, trusting):
    def script(peer):
        peer.hello(b"AUTH PLAIN")
        peer.bye()

    session = session_to(
        serve(script),
        tls="starttls",
        trust=trusting,
        server_name="mx.test",
        credentials=SECRET,
    )
    error = open_fails(
        session, TlsError, STARTTLS, "TLS is required, and the server does not offer STARTTLS"
    )
    assert error.status == "4.7.5"


@pytest.mark.parametrize("reply", [b"454 4.7.0 no", b"502 5.5.1 no"])
def test_starttls_refused(serve, session_to, trusting, reply):
    def script(peer):
        peer.hello(b"STARTTLS")
        peer.expect(b"STARTTLS\r\n")
        peer.send(reply + b"\r\n")
        peer.bye()

    port = serve(script, script)
    required = session_to(port, tls="starttls", trust=trusting, server_name="mx.test")
    open_fails(
        required,
        TlsError,
        STARTTLS,
        "TLS is required, and the server refused STARTTLS: " + reply.decode(),
    )
    session = session_to(port, tls="opportunistic", trust=trusting, server_name="mx.test")
    session.open()
    assert (session.usable, session.stream.encrypted) == (True, False)
    session.quit()


@pytest.mark.parametrize("level", ["starttls", "opportunistic", "implicit"])
def test_a_handshake_that_fails_is_never_followed_by_plain_text(
    serve, session_to, server_context, trusting, level
):
    after = []

    def script(peer):
        if level != "implicit":
            peer.hello(b"STARTTLS", b"AUTH PLAIN")
            peer.expect(b"STARTTLS\r\n")
            peer.send(b"220 go\r\n")
        try:
            peer.start_tls(server_context("other.test"))
            after.append(peer.read_to_end())
        except OSError:
            pass

    session = session_to(
        serve(script), tls=level, trust=trusting, server_name="mx.test", credentials=SECRET
    )
    phase = "connect" if level == "implicit" else STARTTLS
    error = open_fails(
        session,
        HandshakeError,
        phase,
        "certificate is not for mx.test, the name expected, but for other.test",
    )
    assert error.plain_text_allowed is (level == "opportunistic")
    assert after in ([], [b""])


@pytest.mark.parametrize("injected", [b"250 ok\r\n", b"x"])
def test_plain_text_injected_behind_starttls(serve, session_to, trusting, injected):
    def script(peer):
        peer.hello(b"STARTTLS")
        peer.expect(b"STARTTLS\r\n")
        peer.send(b"220 go\r\n" + injected)
        peer.read_to_end()

    session = session_to(serve(script), tls="starttls", trust=trusting, server_name="mx.test")
    open_fails(session, RemoteProtocolError, STARTTLS, "octets after the reply to STARTTLS")


# AUTH

PLAIN_RESPONSE = b"AHVzZXIAcGFzcyBwaHJhc2U="


@pytest.mark.parametrize(
    ("offer", "wanted", "steps"),
    [
        pytest.param(
            b"AUTH PLAIN LOGIN", "auto", [(b"AUTH PLAIN " + PLAIN_RESPONSE, b"235 in")], id="plain"
        ),
        pytest.param(
            b"AUTH PLAIN",
            "auto",
            [(b"AUTH PLAIN " + PLAIN_RESPONSE, b"334 "), (b"*", b"501 x")],
            id="plain-asks-again",
        ),
        pytest.param(
            b"AUTH=LOGIN",
            "auto",
            [
                (b"AUTH LOGIN", b"334 VXNlcm5hbWU6"),
                (b"dXNlcg==", b"334 Password:"),
                (b"cGFzcyBwaHJhc2U=", b"235 in"),
            ],
            id="login",
        ),
        pytest.param(
            b"AUTH PLAIN LOGIN",
            "auto",
            [
                (b"AUTH PLAIN " + PLAIN_RESPONSE, b"504 5.7.4 unrecognized"),
                (b"AUTH LOGIN", b"334 x"),
                (b"dXNlcg==", b"334 x"),
                (b"cGFzcyBwaHJhc2U=", b"235 in"),
            ],
            id="plain-offered-and-unknown",
        ),
        pytest.param(
            b"AUTH PLAIN LOGIN",
            "login",
            [(b"AUTH LOGIN", b"334 x"), (b"dXNlcg==", b"535 5.7.8 no")],
            id="login-refused",
        ),
    ],
)
def test_auth(serve, session_to, offer, wanted, steps):
    def script(peer):
        peer.hello(offer)
        for command, reply in steps:
            peer.expect(command + b"\r\n")
            peer.send(reply + b"\r\n")
        peer.bye()

    lines = []
    session = session_to(
        serve(script), credentials=SECRET, auth=wanted, allow_cleartext=True, trace=lines.append
    )
    if steps[-1][1].startswith(b"235"):
        session.open()
        assert session.usable
        session.quit()
    elif steps[-1][1].startswith(b"535"):
        error = open_fails(session, Refused, AUTH, "AUTH refused: 535 5.7.8 no")
        assert (error.status, error.answer.argument) == ("5.7.8", b"")
    else:
        open_fails(session, RemoteProtocolError, AUTH, "more challenges than PLAIN has")
    trace = "\n".join(lines)
    assert not any(
        secret in trace for secret in ("pass phrase", "cGFzcyBwaHJhc2U", "AHVzZXIA", "dXNlcg")
    )


def test_a_long_initial_response_waits_to_be_asked(serve, session_to):
    import base64

    credentials = Credentials(b"u" * 300, b"p" * 300)
    response = base64.b64encode(b"\0" + b"u" * 300 + b"\0" + b"p" * 300)

    def script(peer):
        peer.hello(b"AUTH PLAIN")
        peer.expect(b"AUTH PLAIN\r\n")
        peer.send(b"334\r\n")
        peer.expect(response + b"\r\n")
        peer.send(b"235 in\r\n")
        peer.bye()

    session = session_to(serve(script), credentials=credentials, allow_cleartext=True)
    session.open()
    session.quit()


def test_a_refusal_that_quotes_the_password_is_shown_without(serve, session_to):
    def script(peer):
        peer.hello(b"AUTH PLAIN")
        peer.expect(b"AUTH PLAIN " + PLAIN_RESPONSE + b"\r\n")
        peer.send(b'500 5.5.1 Command unrecognized: "AUTH PLAIN ' + PLAIN_RESPONSE + b'"\r\n')
        peer.bye()

    session = session_to(serve(script), credentials=SECRET, allow_cleartext=True)
    error = open_fails(
        session, Refused, AUTH, 'AUTH refused: 500 5.5.1 Command unrecognized: "AUTH PLAIN ***"'
    )
    assert PLAIN_RESPONSE not in repr(error.answer).encode()


@pytest.mark.parametrize(
    ("mechanism", "said", "shown"),
    [
        pytest.param(
            b"PLAIN",
            b"535 5.7.8 no user ann with password hunter2!\r\n",
            "AUTH refused: 535 5.7.8 no user ann with password ***",
            id="PLAIN",
        ),
        pytest.param(
            b"LOGIN",
            b"535-5.7.8 got aHVudGVyMiE=,\r\n535 5.7.8 which is hunter2!\r\n",
            "AUTH refused: 535 5.7.8 got ***, 5.7.8 which is ***",
            id="LOGIN",
        ),
        pytest.param(
            b"PLAIN", b"what is hunter2!?\r\n", "not an SMTP reply", id="what is no reply"
        ),
    ],
)
def test_a_refusal_that_says_the_password_is_shown_without(
    serve, session_to, mechanism, said, shown
):
    def script(peer):
        peer.hello(b"AUTH " + mechanism)
        if mechanism == b"PLAIN":
            peer.expect(b"AUTH PLAIN AGFubgBodW50ZXIyIQ==\r\n")
        else:
            peer.expect(b"AUTH LOGIN\r\n")
            peer.send(b"334 more\r\n")
            peer.expect(b"YW5u\r\n")
            peer.send(b"334 more\r\n")
            peer.expect(b"aHVudGVyMiE=\r\n")
        peer.send(said)
        if said.startswith(b"535"):
            peer.bye()
        else:
            peer.read_to_end()

    lines = []
    session = session_to(
        serve(script),
        credentials=Credentials(b"ann", b"hunter2!"),
        allow_cleartext=True,
        trace=lines.append,
    )
    with pytest.raises(SmtpError) as caught:
        session.open()
    assert (str(caught.value), caught.value.phase) == (shown, AUTH)
    told = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value)) + str(lines)
    assert "hunter2!" not in told and "aHVudGVyMiE" not in told


@pytest.mark.parametrize(
    ("offer", "allow", "text"),
    [
        (b"AUTH PLAIN", False, "connection is not encrypted: password not sent"),
        (
            b"AUTH NTLM",
            True,
            "no usable authentication mechanism: server offers NTLM, usable here is "
            "SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5 PLAIN LOGIN",
        ),
        (
            b"HELP",
            True,
            "no usable authentication mechanism: server offers no authentication, usable here is "
            "SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5 PLAIN LOGIN",
        ),
        (
            b"STARTTLS",
            True,
            "no usable authentication mechanism: server offers no authentication, usable here is "
            "SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5 PLAIN LOGIN; it may offer more inside TLS, and offers STARTTLS",
        ),
    ],
)
def test_no_way_to_authenticate(serve, session_to, offer, allow, text):
    def script(peer):
        peer.hello(offer)
        peer.bye()

    session = session_to(serve(script), credentials=SECRET, allow_cleartext=allow)
    open_fails(session, AuthError, AUTH, text)


# send: refusals and losses


def pipelined(session_to, port, **options):
    session = session_to(port, **options)
    session.open()
    return session


def one_flight(replies, then=lambda peer: None):
    """A server that answers the whole flight at once, then does ``then``."""

    def script(peer):
        peer.hello(b"PIPELINING")
        peer.expect(FLIGHT)
        peer.send(replies)
        then(peer)

    return script


FLIGHTS = {
    "mail-refused": (
        b"550 5.7.1 m\r\n503 r\r\n503 r\r\n503 d\r\n",
        [answer(MAIL, b"a@x", b"550 5.7.1 m")] * 2,
        True,
    ),
    "mail-refused-and-421": (b"550 m\r\n421 r\r\n", [answer(MAIL, b"a@x", b"550 m")] * 2, False),
    "mail-refused-and-lost": (b"550 m\r\n503 r\r\n", [answer(MAIL, b"a@x", b"550 m")] * 2, False),
    "mail-421": (b"421 m\r\n", [answer(MAIL, b"a@x", b"421 m")] * 2, False),
    "mail-lost": (b"", [(NetworkError, MAIL, LOST)] * 2, False),
    "rcpt-all-refused": (
        b"250 m\r\n550 b\r\n451 c\r\n554 d\r\n",
        [answer(RCPT, b"b@y", b"550 b"), answer(RCPT, b"c@y", b"451 c")],
        True,
    ),
    "rcpt-refused-then-421": (
        b"250 m\r\n550 b\r\n421 c\r\n",
        [answer(RCPT, b"b@y", b"550 b"), answer(RCPT, b"c@y", b"421 c")],
        False,
    ),
    "rcpt-accepted-then-421": (
        b"250 m\r\n250 b\r\n421 c\r\n",
        [answer(RCPT, b"c@y", b"421 c")] * 2,
        False,
    ),
    "rcpt-refused-then-lost": (
        b"250 m\r\n550 b\r\n",
        [answer(RCPT, b"b@y", b"550 b"), (NetworkError, RCPT, LOST)],
        False,
    ),
    "rcpt-accepted-then-garbage": (
        b"250 m\r\n250 b\r\nwat\r\n",
        [(RemoteProtocolError, RCPT, "not an SMTP reply: 'wat'")] * 2,
        False,
    ),
    "data-refused": (
        b"250 m\r\n550 b\r\n250 c\r\n451 d\r\n",
        [answer(RCPT, b"b@y", b"550 b"), answer(DATA, b"", b"451 d")],
        True,
    ),
    "data-lost": (
        b"250 m\r\n550 b\r\n250 c\r\n",
        [answer(RCPT, b"b@y", b"550 b"), (NetworkError, DATA, LOST)],
        False,
    ),
    "data-250": (
        b"250 m\r\n250 b\r\n250 c\r\n250 d\r\n",
        [(RemoteProtocolError, DATA, "unexpected reply to DATA: 250 d")] * 2,
        False,
    ),
}


@pytest.mark.parametrize(("replies", "expected", "usable"), FLIGHTS.values(), ids=FLIGHTS.keys())
def test_a_flight(serve, session_to, replies, expected, usable):
    session = pipelined(
        session_to,
        serve(
            one_flight(replies, (lambda peer: peer.read_to_end()) if usable else lambda peer: None)
        ),
    )
    content_read = []
    assert send(session, content=(content_read.append(1) for _ in range(1))) == expected
    assert (session.usable, content_read) == (usable, [])
    assert (session.stream._socket.fileno() == -1) is not usable  # closed, not left to the caller


@pytest.mark.parametrize("recipients", ["refused", "mail-refused"])
def test_354_although_nobody_is_left_gets_an_empty_message(serve, session_to, recipients):
    def then(peer):
        peer.expect(b".\r\n")
        peer.send(b"554 no recipients\r\n")
        peer.bye()

    first = b"250 m\r\n" if recipients == "refused" else b"550 m\r\n"
    session = pipelined(
        session_to, serve(one_flight(first + b"550 b\r\n550 c\r\n354 go\r\n", then))
    )
    expected = (
        [answer(RCPT, b"b@y", b"550 b"), answer(RCPT, b"c@y", b"550 c")]
        if recipients == "refused"
        else [answer(MAIL, b"a@x", b"550 m")] * 2
    )
    assert send(session) == expected
    assert session.usable
    session.quit()


def test_354_with_recipients_taken_after_mail_was_refused_gets_nothing(serve, session_to):
    after = []
    port = serve(
        one_flight(
            b"550 m\r\n250 b\r\n250 c\r\n354 go\r\n", lambda peer: after.append(peer.read_to_end())
        )
    )
    session = pipelined(session_to, port)
    assert send(session) == [answer(MAIL, b"a@x", b"550 m")] * 2
    assert not session.usable


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"", (NetworkError, END_OF_DATA, LOST)),
        (b"250 2.0", (NetworkError, END_OF_DATA, LOST)),
        (b"421 bye\r\n", answer(END_OF_DATA, b"", b"421 bye")),
        (b"554 5.6.0 spam\r\n", answer(END_OF_DATA, b"", b"554 5.6.0 spam")),
        (b"oops\r\n", (RemoteProtocolError, END_OF_DATA, "not an SMTP reply: 'oops'")),
    ],
    ids=["lost", "lost-within-the-reply", "421", "refused", "garbage"],
)
def test_after_the_final_dot(serve, session_to, reply, expected):
    """From here on the server may have the message: the phase says so."""

    def then(peer):
        peer.expect(b"x\r\n.\r\n")
        peer.send(reply)

    session = pipelined(
        session_to, serve(one_flight(b"250 m\r\n550 b\r\n250 c\r\n354 go\r\n", then))
    )
    assert send(session, content=[b"x"]) == [answer(RCPT, b"b@y", b"550 b"), expected]


def endless(limit=200):
    """Up to 200 MB, so that a test which nobody stops fails and does not hang."""
    for _ in range(limit):
        yield b"x" * 1_000_000
    raise AssertionError("the message was read to its end")


@pytest.mark.parametrize("close", [True, False], ids=["and-closes", "and-stays"])
@pytest.mark.parametrize("reply", [b"552 5.3.4 too big", b"421 4.3.2 shutting down"])
def test_a_reply_while_the_message_is_written_is_the_answer(serve, session_to, reply, close):
    def then(peer):
        peer.read(500_000)
        peer.send(reply + b"\r\n")
        if not close:
            peer.read_to_end()

    session = pipelined(
        session_to, serve(one_flight(b"250 m\r\n250 b\r\n250 c\r\n354 go\r\n", then))
    )
    assert send(session, content=endless()) == [answer(END_OF_DATA, b"", reply)] * 2
    assert not session.usable


def test_a_connection_lost_while_the_message_is_written(serve, session_to):
    """No dot was sent: the phase is DATA, and nothing was delivered."""
    session = pipelined(
        session_to,
        serve(
            one_flight(b"250 m\r\n250 b\r\n250 c\r\n354 go\r\n", lambda peer: peer.read(100_000))
        ),
    )
    (first, second) = session.send(b"a@x", [b"b@y", b"c@y"], endless(), size=1, eight_bit=False)
    assert (type(first), first.phase, first.status, first is second) == (
        NetworkError,
        DATA,
        "4.4.2",
        True,
    )
    assert str(first).startswith("lost connection: ")


def test_a_message_acknowledged_before_it_was_sent(serve, session_to):
    def then(peer):
        peer.read(100_000)
        peer.send(b"250 queued\r\n")
        peer.read_to_end()

    session = pipelined(
        session_to, serve(one_flight(b"250 m\r\n250 b\r\n250 c\r\n354 go\r\n", then))
    )
    expected = (RemoteProtocolError, DATA, "message acknowledged before it was sent: 250 queued")
    assert send(session, content=endless()) == [expected] * 2


def test_a_server_that_takes_no_more_of_the_message(serve, session_to):
    done = threading.Event()
    port = serve(one_flight(b"250 m\r\n250 b\r\n250 c\r\n354 go\r\n", lambda peer: done.wait(10)))
    session = pipelined(session_to, port, deadlines=Deadlines(block=0.05))
    assert send(session, content=endless()) == [(NetworkError, DATA, "timed out")] * 2
    done.set()


@pytest.mark.parametrize("phase", ["mail", "rcpt", "end_of_data"])
def test_a_reply_that_does_not_come(serve, session_to, phase):
    done = threading.Event()
    replies = {
        "mail": b"",
        "rcpt": b"250 m\r\n",
        "end_of_data": b"250 m\r\n250 b\r\n250 c\r\n354 d\r\n",
    }[phase]
    session = pipelined(
        session_to,
        serve(one_flight(replies, lambda peer: done.wait(10))),
        deadlines=Deadlines(**{phase: 0.05}),
    )
    name = {"mail": MAIL, "rcpt": RCPT, "end_of_data": END_OF_DATA}[phase]
    assert send(session) == [(NetworkError, name, "timed out")] * 2
    done.set()


def test_content_that_cannot_be_read_never_becomes_a_message(serve, session_to):
    after = []

    def broken():
        yield b"first half\n"
        raise OSError("disk")

    port = serve(
        one_flight(
            b"250 m\r\n250 b\r\n250 c\r\n354 go\r\n", lambda peer: after.append(peer.read_to_end())
        )
    )
    session = pipelined(session_to, port)
    with pytest.raises(OSError, match="disk"):
        session.send(b"a@x", [b"b@y", b"c@y"], broken(), size=1, eight_bit=False)
    assert not session.usable


def test_a_message_larger_than_the_server_takes_is_not_sent(serve, session_to):
    def script(peer):
        peer.hello(b"SIZE 10", b"PIPELINING")
        peer.bye()

    session = pipelined(session_to, serve(script))
    results = session.send(b"a@x", [b"b@y", b"c@y"], [b"x" * 11], size=11, eight_bit=False)
    assert (
        shown(results)
        == [(SizeExceeded, MAIL, "message of 11 octets is larger than the 10 the server takes")] * 2
    )
    assert (results[0].status, session.usable) == ("5.3.4", True)
    session.quit()


def test_a_recipient_that_cannot_be_written_leaves_the_others(serve, session_to):
    session = pipelined(
        session_to,
        serve(one_flight(b"250 m\r\n250 b\r\n250 c\r\n451 d\r\n", lambda peer: peer.bye())),
    )
    assert send(session, [b"b@y", b"x\r\nDATA\r\n@y", b"c@y"]) == [
        answer(DATA, b"", b"451 d"),
        (LocalProtocolError, RCPT, "RCPT TO: not a path: b'x\\r\\nDATA\\r\\n@y'"),
        answer(DATA, b"", b"451 d"),
    ]
    session.quit()


def test_a_sender_that_cannot_be_written(serve, session_to):
    def script(peer):
        peer.hello(b"PIPELINING")
        peer.bye()

    session = pipelined(session_to, serve(script))
    results = session.send(b"a\n@x", [b"b@y"], (), size=1, eight_bit=False)
    assert shown(results) == [(LocalProtocolError, MAIL, "MAIL FROM: not a path: b'a\\n@x'")]
    assert session.send(b"a@x", [b"b\n@y"], (), size=1, eight_bit=False)[0].phase == RCPT
    assert session.usable
    session.quit()


def test_reset_refused(serve, session_to):
    """In which transaction the server is then, nobody knows."""

    def then(peer):
        peer.expect(b"RSET\r\n" + FLIGHT)
        peer.send(b"451 r\r\n")
        peer.expect_end()

    session = pipelined(
        session_to, serve(one_flight(b"250 m\r\n550 b\r\n550 c\r\n554 d\r\n", then))
    )
    send(session)
    assert send(session) == [(Refused, "RSET", "RSET refused: 451 r")] * 2
    session.quit()


def test_quit_never_raises(serve, session_to):
    session = pipelined(session_to, serve(lambda peer: peer.hello()))
    session.quit()
    session.quit()
    assert not session.usable


@pytest.mark.parametrize("tls", ["none", "implicit"])
def test_a_server_that_reads_nothing_until_its_replies_are_read(
    serve, session_to, server_context, trusting, tls
):
    """1,000 recipients in a flight against small buffers: each reply of 2,000 octets is written before the next line is read."""
    count = 1000

    def script(peer):
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        if tls == "implicit":
            peer.start_tls(server_context("mx.test"))
        peer.hello(b"PIPELINING")
        peer.expect(b"MAIL FROM:<a@x>\r\n")
        peer.send(b"250 m\r\n")
        for number in range(count):
            peer.expect(b"RCPT TO:<%s%03d@y>\r\n" % (b"r" * 200, number))
            peer.send(
                b"250 " + b"%03d" % number + b"x" * 2000 + b"\r\n"
                if number % 2
                else b"550 %03d" % number + b"x" * 2000 + b"\r\n"
            )
        peer.expect(b"DATA\r\n")
        peer.send(b"354 go\r\n")
        peer.expect(b"x\r\n.\r\n")
        peer.send(b"250 2.0.0 queued\r\n")
        peer.bye()

    session = session_to(serve(script), tls=tls, trust=trusting, server_name="mx.test")
    session.stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
    session.stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    session.open()
    recipients = [b"r" * 200 + b"%03d@y" % number for number in range(count)]
    assert send(session, recipients, [b"x"]) == [
        # Of which half is kept.
        OK if number % 2 else answer(RCPT, recipients[number], b"550 %03d" % number + b"x" * 1021)
        for number in range(count)
    ]
    session.quit()


REPLIES = st.sampled_from(
    [
        b"220 a\r\n",
        b"250 ok\r\n",
        b"250 ok\r\n" * 3,
        b"250-mx\r\n250 PIPELINING\r\n",
        b"250-mx\r\n250 SIZE 3\r\n",
        b"354 go\r\n",
        b"421 bye\r\n",
        b"451 x\r\n",
        b"550 y\n",
        b"250",
        b"\xff\r\n",
    ]
)


class Scripted(Stream):
    """A stream whose server says what it says, in pieces, whatever we say."""

    def __init__(self, pieces):
        self.pieces = [piece for piece in pieces if piece]
        self.sent = 0

    def read(self, limit, timeout):
        return self.pieces.pop(0) if self.pieces else b""

    def exchange(self, octets, timeout, received):
        self.sent += len(octets)

    def close(self):
        self.pieces = []


class Breaking(Scripted):
    """As a server that says why and closes just when the message is written: the write fails, the reply is there."""

    def exchange(self, octets, timeout, received):
        if octets.startswith(b"hello"):
            raise NetworkError("lost connection: Broken pipe")
        super().exchange(octets, timeout, received)


@pytest.mark.parametrize(
    ("last_words", "expected"),
    [
        (b"552 too big\r\n", answer(END_OF_DATA, b"", b"552 too big")),
        (b"552-too", (NetworkError, DATA, "lost connection: Broken pipe")),
        (b"", (NetworkError, DATA, "lost connection: Broken pipe")),
    ],
)
def test_a_write_that_fails_gives_way_to_the_reply_that_is_there(last_words, expected):
    replies = [
        b"220 hi\r\n",
        b"250-mx\r\n250 PIPELINING\r\n",
        b"250 m\r\n",
        b"250 b\r\n",
        b"250 c\r\n354 go\r\n",
    ]
    session = Session(Breaking([*replies, last_words]), hello=b"me.test")
    session.open()
    assert send(session, content=[b"hello"]) == [expected] * 2


@given(st.lists(REPLIES, max_size=12).map(lambda tail: [b"220 hi\r\n", *tail]), st.data())
@settings(max_examples=200, deadline=None)
def test_any_octets_in_any_pieces(tokens, data):
    """Never another exception than SmtpError; one result a recipient; and the packet boundaries make no difference.

    Whole, the octets come at once; so they would answer commands not sent yet.  Hence the comparison is
    between one reply a piece and each reply octet by octet.
    """
    octets = [line + b"\n" for line in b"".join(tokens).split(b"\n") if line]
    single = [piece[i : i + 1] for piece in octets for i in range(len(piece))]
    random = data.draw(st.lists(st.sampled_from(octets), max_size=3))

    def run(pieces):
        session = Session(Scripted(pieces), hello=b"me.test")
        try:
            session.open()
            return shown(
                session.send(b"a@x", [b"b@y", b"c@y"], [b"hello"], size=5, eight_bit=False)
            ), session.usable
        except SmtpError as error:
            return type(error), error.phase, str(error)

    assert run(octets) == run(single)
    run([b"".join(octets)])
    run([b"220 hi\r\n250 x\r\n", *random])
