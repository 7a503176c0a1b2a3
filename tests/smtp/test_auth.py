"""SASL mechanisms, their choice, and what a session makes of them."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.errors import RemoteProtocolError, SmtpError
from minisend.smtp import auth
from minisend.smtp.auth import AuthError, Credentials
from minisend.smtp.binding import NOT_BOUND, NOT_OFFERED, ChannelBinding
from minisend.smtp.client import AUTH, Answer
from minisend.smtp.dialogue import Refused
from minisend.smtp.reply import Reply
from minisend.smtp.session import Session
from minisend.smtp.stream import connect

TIM = Credentials(b"tim", b"tanstaaftanstaaf")
OAUTH = Credentials(b"user@example.com", token=b"vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==")
CERTIFIED = Credentials(b"")
BINDING = ChannelBinding(b"p=tls-unique", b"octets")

BY_NAME = {mechanism.name: mechanism for mechanism in auth.MECHANISMS}
ALL = tuple(BY_NAME)


def begin(name, credentials, binding=NOT_BOUND):
    return BY_NAME[name].begin(credentials, binding)


def b64(octets):
    return base64.b64encode(octets)


def asks(octets):
    return Reply(334, (b64(octets),))


def play(exchange, *challenges):
    """The initial response and the responses to the challenges."""
    return [exchange.initial, *(exchange.answer(asks(c)) for c in challenges)]


# Mechanisms


def test_plain_is_the_example_of_rfc_4616():
    assert play(begin("PLAIN", TIM), b"") == [b"\0tim\0tanstaaftanstaaf", None]


def test_plain_leaves_the_octets_as_they_are():
    """Preparing them is the server's part; to one that compares octets, "2" is not the superscript it was set as."""
    credentials = Credentials("jörg".encode(), "x²\u00ad".encode())
    assert begin("PLAIN", credentials).initial == "\0jörg\0x²\u00ad".encode()


def test_login_answers_two_challenges_of_any_wording():
    exchange = begin("LOGIN", TIM)
    wordings = (b"Username:", b"UGFzc3dvcmQ6", b"more")
    assert [exchange.initial, *(exchange.answer(Reply(334, (w,))) for w in wordings)] == [
        None,
        b"tim",
        b"tanstaaftanstaaf",
        None,
    ]


def test_cram_md5_is_the_example_of_rfc_2195():
    challenge = b"<1896.697170952@postoffice.reston.mci.net>"
    assert play(begin("CRAM-MD5", TIM), challenge, challenge) == [
        None,
        b"tim b913a602c7eda7a495b4e6e7334d3890",
        None,
    ]


def test_external_is_a_name_or_nothing():
    assert play(begin("EXTERNAL", CERTIFIED), b"") == [b"", None]
    assert begin("EXTERNAL", Credentials(b"fred@example.org")).initial == b"fred@example.org"


def test_oauthbearer_is_the_example_of_rfc_7628_without_host_and_port():
    example = base64.b64decode(
        "bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9NTg3AWF1dGg9QmVhcmVyIHZGOWRmdDRxbVRj"
        "Mk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
    )
    assert b"\1host=server.example.com\1port=587\1auth=" in example
    shorter = example.replace(b"host=server.example.com\1port=587\1", b"")
    assert begin("OAUTHBEARER", OAUTH).initial == shorter


def test_oauthbearer_quotes_a_name_for_gs2():
    exchange = begin("OAUTHBEARER", Credentials(b"a,b=c", token=b"t"))
    assert exchange.initial == b"n,a=a=2Cb=3Dc,\1auth=Bearer t\1\1"


def test_xoauth2_is_the_example_of_google():
    credentials = Credentials(
        b"someuser@example.com", token=b"ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"
    )
    assert b64(begin("XOAUTH2", credentials).initial) == (
        b"dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSFJoZG1semRHRXVZMjl0Q2cBAQ=="
    )


@pytest.mark.parametrize(("name", "acknowledgement"), [("OAUTHBEARER", b"\1"), ("XOAUTH2", b"")])
@pytest.mark.parametrize(
    ("challenge", "failure"),
    [
        # RFC 7628 section 4.3; Google's.
        (
            b'{"status":"invalid_token","scope":"example_scope","openid-configuration":"https://example.com/x"}',
            b"status invalid_token, scope example_scope",
        ),
        (
            b'{"status":"400","schemes":"Bearer","scope":"https://mail.google.com/"}',
            b"status 400, scope https://mail.google.com/",
        ),
        (b'{"status":401}', b"status 401"),
        (b'{"status":"' + b"x" * 500 + b'"}', b"status " + b"x" * 193),
        (b'{"status":"bad: ' + OAUTH.token + b'"}', b"status bad: ***"),
        (b'{"status":[1],"scope":{}}', b"unreadable error"),
        (b'{"status":"\\ud800"}', b"status \\ud800"),
        (b"[]", b"unreadable error"),
        (b"{", b"unreadable error"),
        (b"\xff", b"unreadable error"),
        (b"", b"unreadable error"),
        (b"[" * 40_000, b"unreadable error"),
        (b'{"status":' + b"1" * 40_000 + b"}", b"unreadable error"),
    ],
)
def test_an_oauth_error_is_acknowledged_once_and_told(name, acknowledgement, challenge, failure):
    exchange = begin(name, OAUTH)
    assert play(exchange, challenge, challenge)[1:] == [acknowledgement, None]
    assert exchange.failure == failure
    with pytest.raises(AuthError) as caught:
        exchange.accepted()
    assert str(caught.value) == f"{name}: server sent an error and accepted"


@pytest.mark.parametrize(
    ("name", "credentials", "challenge", "text"),
    [
        ("PLAIN", TIM, b"!", "PLAIN: challenge is not base64"),
        ("CRAM-MD5", TIM, b"<1@x>", "CRAM-MD5: challenge is not base64"),
        ("CRAM-MD5", TIM, b"", "CRAM-MD5: challenge is empty"),
        ("SCRAM-SHA-1", TIM, b"cj1=x", "SCRAM-SHA-1: challenge is not base64"),
        ("XOAUTH2", OAUTH, b"{}", "XOAUTH2: challenge is not base64"),
    ],
)
def test_bad_challenges(name, credentials, challenge, text):
    with pytest.raises(RemoteProtocolError) as caught:
        begin(name, credentials).answer(Reply(334, (challenge,)))
    assert str(caught.value) == text


def test_md5_that_is_not_allowed_is_a_reason_to_wait(monkeypatch):
    import hmac

    def digest(*_):
        raise ValueError("[digital envelope routines] unsupported")

    monkeypatch.setattr(hmac, "digest", digest)
    with pytest.raises(AuthError) as caught:
        begin("CRAM-MD5", TIM).answer(asks(b"<1@x>"))
    assert str(caught.value) == "CRAM-MD5: this machine does not allow MD5"


@given(
    st.sampled_from(ALL),
    st.lists(st.binary(max_size=80) | st.binary(max_size=60).map(b64), max_size=4),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_server_says(name, challenges, accepts):
    """Each challenge gives octets or None, or an SmtpError without the password; never anything else."""
    credentials = {"OAUTHBEARER": OAUTH, "XOAUTH2": OAUTH, "EXTERNAL": CERTIFIED}.get(name, TIM)
    exchange = begin(name, credentials, BINDING)
    told = ""
    try:
        for challenge in challenges:
            response = exchange.answer(Reply(334, (challenge,)))
            assert response is None or isinstance(response, bytes)
        if accepts:
            exchange.accepted()
    except (RemoteProtocolError, AuthError) as error:
        told = str(error)
    assert "tanstaaf" not in told


# The choice


def chosen(offered, wanted="auto", credentials=TIM, **options):
    options.setdefault("encrypted", True)
    return [choice.name for choice in auth.choose(offered, wanted, credentials, **options)]


SCRAMS = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-1"]


@pytest.mark.parametrize(
    ("offered", "wanted", "options", "names"),
    [
        pytest.param(ALL, "auto", {"binding": BINDING}, [*SCRAMS, "PLAIN", "LOGIN", "CRAM-MD5"], id="all"),
        pytest.param(ALL, "auto", {}, ["SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN", "CRAM-MD5"], id="no binding"),
        pytest.param(
            ALL, "auto", {"encrypted": False, "allow_cleartext": True},
            ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN"],
            id="open line, allowed",
        ),
        pytest.param(ALL, "auto", {"encrypted": False}, ["SCRAM-SHA-256", "SCRAM-SHA-1"], id="open line"),
        pytest.param(("LOGIN", "PLAIN", "CRAM-MD5"), "auto", {}, ["PLAIN", "LOGIN", "CRAM-MD5"], id="PLAIN before CRAM-MD5"),
        pytest.param(("LOGIN", "XFOO"), "auto", {}, ["LOGIN"], id="LOGIN alone"),
        pytest.param(ALL, "login", {"binding": BINDING}, ["LOGIN"], id="only LOGIN"),
        pytest.param(ALL, "cram-md5", {}, ["CRAM-MD5"], id="only CRAM-MD5"),
        pytest.param(ALL, "scram-sha-1", {"binding": BINDING}, SCRAMS[2:], id="bound where it can be"),
        pytest.param(ALL, "scram-sha-256-plus", {"binding": BINDING}, SCRAMS[:1], id="bound or not at all"),
        pytest.param(ALL, "auto", {"credentials": OAUTH, "binding": BINDING}, ["OAUTHBEARER", "XOAUTH2"], id="token"),
        pytest.param(ALL, "xoauth2", {"credentials": OAUTH}, ["XOAUTH2"], id="only XOAUTH2"),
        pytest.param(ALL, "auto", {"credentials": CERTIFIED, "binding": BINDING}, ["EXTERNAL"], id="certificate"),
    ],
)  # fmt: skip
def test_choice(offered, wanted, options, names):
    assert chosen(offered, wanted, **options) == names
    assert chosen(tuple(reversed(offered)), wanted, **options) == names


@pytest.mark.parametrize(
    ("offered", "wanted", "options", "message"),
    [
        (
            ("XFOO", "NTLM"), "auto", {},
            "no usable authentication mechanism: server offers NTLM XFOO, usable here is "
            "SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN CRAM-MD5",
        ),
        ((), "plain", {}, "no usable authentication mechanism: server offers no authentication, usable here is PLAIN"),
        (("PLAIN",), "login", {}, "no usable authentication mechanism: server offers PLAIN, usable here is LOGIN"),
        (
            ("PLAIN", "LOGIN"), "auto", {"credentials": OAUTH},
            "no usable authentication mechanism: server offers LOGIN PLAIN, usable here is OAUTHBEARER XOAUTH2",
        ),
        (ALL, "plain", {"encrypted": False}, "connection is not encrypted: password not sent"),
        (("CRAM-MD5",), "auto", {"encrypted": False}, "connection is not encrypted: password not sent"),
        (ALL, "auto", {"credentials": OAUTH, "encrypted": False}, "connection is not encrypted: password not sent"),
        (ALL, "auto", {"credentials": CERTIFIED, "encrypted": False}, "connection is not encrypted: password not sent"),
        (ALL, "scram-sha-1-plus", {}, "SCRAM-SHA-1-PLUS cannot be used: it needs a password, and TLS that it can be bound to"),
        (ALL, "scram-sha-1", {"credentials": OAUTH}, "SCRAM-SHA-1 cannot be used: it needs a password"),
        (ALL, "login", {"credentials": CERTIFIED}, "LOGIN cannot be used: it needs a password"),
        (ALL, "xoauth2", {}, "XOAUTH2 cannot be used: it needs an access token"),
        (ALL, "external", {}, "EXTERNAL cannot be used: there is a password or an access token in place of a certificate"),
        (ALL, "ntlm", {}, "NTLM cannot be used: no such mechanism here"),
    ],
)  # fmt: skip
def test_no_choice_says_why(offered, wanted, options, message):
    with pytest.raises(AuthError) as caught:
        chosen(offered, wanted, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("offered", "binding", "flags"),
    [
        (("SCRAM-SHA-1", "SCRAM-SHA-1-PLUS"), BINDING, [b"p=tls-unique", b"n"]),
        (("SCRAM-SHA-1",), BINDING, [NOT_OFFERED.flag]),
        (("SCRAM-SHA-1", "SCRAM-SHA-1-PLUS"), None, [NOT_BOUND.flag]),
    ],
)
def test_scram_says_whether_it_could_bind(offered, binding, flags):
    """RFC 5802 section 6: "y" tells a server that did offer it that somebody took the offer away."""
    choices = auth.choose(offered, "auto", TIM, encrypted=True, binding=binding)
    assert [choice.begin().initial.partition(b",")[0] for choice in choices] == flags


def test_what_is_left_after_a_refusal():
    choices = auth.choose(ALL, "auto", TIM, encrypted=True, binding=BINDING)
    refused, later = Reply(535, (b"no",)), Reply(454, (b"later",))
    exchange = choices[0].begin()
    assert auth.further(choices, exchange, later) == []
    unbound = auth.further(choices, exchange, refused)
    assert [c.name for c in unbound] == [
        "SCRAM-SHA-256",
        "SCRAM-SHA-1",
        "PLAIN",
        "LOGIN",
        "CRAM-MD5",
    ]
    passwords = auth.further(unbound, unbound[0].begin(), refused)
    assert [c.name for c in passwords] == ["PLAIN", "LOGIN", "CRAM-MD5"]
    assert auth.further(passwords, passwords[0].begin(), refused) == []
    unknown = Reply(504, (b"5.7.4 unrecognized authentication type",))
    left = auth.further(passwords, passwords[0].begin(), unknown)
    assert [c.name for c in left] == ["LOGIN", "CRAM-MD5"]
    assert auth.further(left[-1:], left[-1].begin(), unknown) == []
    # SCRAM-SHA-256 without its bound form: that of SHA-1 is not worth a try either.
    some = auth.choose(
        ("SCRAM-SHA-256", "SCRAM-SHA-1-PLUS"), "auto", TIM, encrypted=True, binding=BINDING
    )
    assert auth.further(some, some[0].begin(), refused) == []
    # The proof has gone out: this was the password's one try.
    exchange = choices[0].begin()
    nonce = exchange.initial.partition(b",r=")[2]
    exchange.answer(asks(b"r=" + nonce + b"x,s=c2FsdA==,i=4096"))
    assert auth.further(choices, exchange, refused) == []


# Secrets


def test_credentials_hide_what_proves_them():
    assert repr(TIM) == str(TIM) == "Credentials(b'tim', ***)"
    assert repr(OAUTH) == str(OAUTH) == "Credentials(b'user@example.com', ***)"
    for mechanism in auth.MECHANISMS:
        assert "tanstaaf" not in repr(mechanism.begin(TIM, BINDING))
    for choice in auth.choose(ALL, "auto", TIM, encrypted=True):
        assert "tanstaaf" not in repr(choice)


@pytest.mark.parametrize(
    ("arguments", "token", "text"),
    [
        ((b"tim", b"tan\0staaf"), b"", "user name or password holds a NUL octet"),
        ((b"t\0m", b"tanstaaf"), b"", "user name or password holds a NUL octet"),
        ((b"tim",), b"tan\1staaf", "access token holds a space or what is not ASCII"),
        ((b"tim",), b"tan staaf", "access token holds a space or what is not ASCII"),
        ((b"tim",), b"tanstaaf\r\n", "access token holds a space or what is not ASCII"),
        ((b"tim",), b"tan\x7fstaaf", "access token holds a space or what is not ASCII"),
        ((b"tim",), b"tan\xffstaaf", "access token holds a space or what is not ASCII"),
        ((b"tim\1",), b"tanstaaf", "user name holds a control character"),
    ],
)
def test_credentials_that_no_mechanism_can_carry(arguments, token, text):
    with pytest.raises(AuthError) as caught:
        Credentials(*arguments, token=token)
    assert str(caught.value) == text


def test_credentials_at_the_edge_of_what_can_be_carried():
    assert Credentials(b"tim", token=b"!tanstaaf~").token == b"!tanstaaf~"
    # The mechanisms of passwords have no such frame.
    assert Credentials(b"tim\1", b"tan\1staaf").username == b"tim\1"


# In a session


@pytest.fixture
def open_session(serve):
    """``open_session(script, ...)`` -> (error or None, lines of trace): a session opened to a server that follows the script."""

    def run(script, credentials=TIM, **options):
        lines = []
        options.setdefault("allow_cleartext", True)
        session = Session(
            connect("127.0.0.1", serve(script), 5),
            hello=b"me.test",
            credentials=credentials,
            trace=lines.append,
            **options,
        )
        try:
            session.open()
        except SmtpError as error:
            assert not session.usable
            return error, lines
        session.quit()
        return None, lines

    return run


def dialogue(offer, *steps):
    """A server that offers, expects each command and sends each reply."""

    def script(peer):
        peer.hello(offer)
        for command, reply in steps:
            peer.expect(command + b"\r\n")
            peer.send(reply + b"\r\n")
        peer.bye()

    return script


def leaves(peer):
    """The client says goodbye where it still can, and nothing else."""
    rest = peer.socket.recv(100)
    if rest:
        assert rest == b"QUIT\r\n"
        peer.send(b"221 bye\r\n")
        peer.expect_end()


CRAM = b64(b"<1896.697170952@postoffice.reston.mci.net>")
CRAM_PROOF = b64(b"tim b913a602c7eda7a495b4e6e7334d3890")
BEARER = b64(b"n,a=user@example.com,\1auth=Bearer " + OAUTH.token + b"\1\1")
XOAUTH2 = b64(b"user=user@example.com\1auth=Bearer " + OAUTH.token + b"\1\1")
NO_TOKEN = b64(json.dumps({"status": "invalid_token", "scope": "mail"}).encode())


@pytest.mark.parametrize(
    ("credentials", "wanted", "steps"),
    [
        pytest.param(TIM, "cram-md5", [(b"AUTH CRAM-MD5", b"334 " + CRAM), (CRAM_PROOF, b"235 in")], id="CRAM-MD5"),
        pytest.param(OAUTH, "auto", [(b"AUTH OAUTHBEARER " + BEARER, b"235 in")], id="OAUTHBEARER"),
        pytest.param(OAUTH, "xoauth2", [(b"AUTH XOAUTH2 " + XOAUTH2, b"235 in")], id="XOAUTH2"),
        pytest.param(OAUTH, "xoauth2", [(b"AUTH XOAUTH2 " + XOAUTH2, b"334 "), (b"", b"535 no")], id="XOAUTH2 refused"),
        pytest.param(CERTIFIED, "external", [(b"AUTH EXTERNAL =", b"235 in")], id="EXTERNAL"),
        pytest.param(Credentials(b"ann"), "external", [(b"AUTH EXTERNAL YW5u", b"235 in")], id="EXTERNAL with a name"),
    ],
)  # fmt: skip
def test_dialogues(open_session, credentials, wanted, steps):
    error, lines = open_session(
        dialogue(b"AUTH " + " ".join(ALL).encode(), *steps), credentials, auth=wanted
    )
    if steps[-1][1].startswith(b"235"):
        assert error is None
    else:
        assert (type(error), error.phase) == (Refused, AUTH)
    trace = "\n".join(lines)
    assert "***" in trace
    for secret in (TIM.password, OAUTH.token, CRAM_PROOF, BEARER, XOAUTH2, b"YW5u"):
        assert secret.decode() not in trace


def test_the_error_of_oauth_is_shown_with_the_refusal(open_session):
    script = dialogue(
        b"AUTH OAUTHBEARER",
        (b"AUTH OAUTHBEARER " + BEARER, b"334 " + NO_TOKEN),
        (b"AQ==", b"535 5.7.8 not you: AUTH OAUTHBEARER " + BEARER),
    )
    error, lines = open_session(script, OAUTH)
    reply = Reply(
        535, (b"5.7.8 not you: AUTH OAUTHBEARER ***", b"(status invalid_token, scope mail)")
    )
    assert (type(error), error.answer) == (Refused, Answer(AUTH, b"", reply))
    assert (
        str(error)
        == "AUTH refused: 535 5.7.8 not you: AUTH OAUTHBEARER *** (status invalid_token, scope mail)"
    )
    assert lines[-6:] == [
        "C: AUTH OAUTHBEARER ***",
        "S: 334 " + NO_TOKEN.decode(),
        "C: ***",
        "S: 535 5.7.8 not you: AUTH OAUTHBEARER ***",
        "C: QUIT",
        "S: 221 bye",
    ]


@pytest.mark.parametrize("after", [b"501 cancelled", b"235 well then", b"334 more", b"nonsense"])
def test_a_bad_challenge_is_answered_with_a_star(open_session, after):
    def script(peer):
        peer.hello(b"AUTH CRAM-MD5")
        peer.expect(b"AUTH CRAM-MD5\r\n")
        peer.send(b"334 <not base64>\r\n")
        peer.expect(b"*\r\n")
        peer.send(after + b"\r\n")
        leaves(peer)

    error, _ = open_session(script)
    assert (type(error), error.phase, str(error)) == (
        RemoteProtocolError,
        AUTH,
        "CRAM-MD5: challenge is not base64",
    )


def test_a_server_that_leaves_at_the_star_is_blamed_for_the_challenge(open_session):
    def script(peer):
        peer.hello(b"AUTH CRAM-MD5")
        peer.expect(b"AUTH CRAM-MD5\r\n")
        peer.send(b"334 =\r\n")
        peer.expect(b"*\r\n")

    error, _ = open_session(script)
    assert str(error) == "CRAM-MD5: challenge is not base64"


def test_a_long_token_waits_to_be_asked(open_session):
    credentials = Credentials(b"ann", token=b"t" * 2000)
    response = b64(b"user=ann\1auth=Bearer " + b"t" * 2000 + b"\1\1")
    script = dialogue(b"AUTH XOAUTH2", (b"AUTH XOAUTH2", b"334 "), (response, b"235 in"))
    assert open_session(script, credentials)[0] is None


@pytest.mark.parametrize("code", [b"454 4.7.0 later", b"421 4.3.2 bye"])
def test_for_now_is_for_now(open_session, code):
    """A 4yz says nothing about the mechanism: no other is tried."""

    def script(peer):
        peer.hello(b"AUTH SCRAM-SHA-1 PLAIN")
        assert peer.read(18) == b"AUTH SCRAM-SHA-1 b"
        while peer.read(1) != b"\n":
            pass
        peer.send(code + b"\r\n")
        leaves(peer)

    error, _ = open_session(script)
    assert (type(error), str(error)) == (Refused, f"AUTH refused: {code.decode()}")


def test_a_server_without_the_keys_of_scram_gets_the_password(open_session):
    """As Postfix with Cyrus SASL over saslauthd: it offers SCRAM, and refuses it before it has seen a proof."""

    def script(peer):
        peer.hello(b"AUTH SCRAM-SHA-256 SCRAM-SHA-1 PLAIN")
        peer.expect(b"AUTH SCRAM-SHA-256 ")
        while peer.read(1) != b"\n":
            pass
        peer.send(b"535 5.7.8 no secret in database\r\n")
        peer.expect(b"AUTH PLAIN " + b64(b"\0tim\0tanstaaftanstaaf") + b"\r\n")
        peer.send(b"235 in\r\n")
        peer.bye()

    assert open_session(script)[0] is None
