"""SASL mechanisms and their choice."""

import pytest

from minisend.smtp import auth
from minisend.smtp.auth import AuthError, Credentials
from minisend.smtp.reply import Reply

TIM = Credentials(b"tim", b"tanstaaftanstaaf")


def test_plain_is_the_example_of_rfc_4616():
    exchange = auth.plain(TIM)
    assert next(exchange) == b"\0tim\0tanstaaftanstaaf"
    assert auth.respond(exchange, b"") is None


def test_login_answers_two_challenges_of_any_wording():
    exchange = auth.login(TIM)
    assert [
        next(exchange),
        *(auth.respond(exchange, c) for c in (b"Username:", b"?", b"more")),
    ] == [
        None,
        b"tim",
        b"tanstaaftanstaaf",
        None,
    ]


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (("LOGIN", "PLAIN", "CRAM-MD5"), "auto", "PLAIN"),
        (("LOGIN",), "auto", "LOGIN"),
        (("LOGIN", "PLAIN"), "login", "LOGIN"),
    ],
)
def test_choice(offered, wanted, chosen):
    assert auth.choose(offered, wanted, encrypted=True).name == chosen
    assert auth.choose(offered, wanted, encrypted=False, allow_cleartext=True).name == chosen


@pytest.mark.parametrize(
    ("offered", "wanted", "message"),
    [
        (
            ("XFOO", "NTLM"),
            "auto",
            "no usable authentication mechanism: server offers NTLM XFOO, usable here is PLAIN LOGIN",
        ),
        (
            (),
            "auto",
            "no usable authentication mechanism: server offers no authentication, usable here is PLAIN LOGIN",
        ),
        (
            ("PLAIN",),
            "login",
            "no usable authentication mechanism: server offers PLAIN, usable here is LOGIN",
        ),
    ],
)
def test_no_choice_says_what_was_offered(offered, wanted, message):
    with pytest.raises(AuthError) as caught:
        auth.choose(offered, wanted, encrypted=True)
    assert str(caught.value) == message


def test_never_over_an_open_line_by_accident():
    with pytest.raises(AuthError, match="not encrypted"):
        auth.choose(("PLAIN",), encrypted=False)


def test_credentials_hide_the_password():
    assert repr(TIM) == str(TIM) == "Credentials(b'tim', ***)"
    with pytest.raises(AuthError) as caught:
        Credentials(b"tim", b"tan\0staaf")
    assert "staaf" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "octets"), [(b"VXNlcm5hbWU6", b"Username:"), (b"", b""), (b"Username:", b"Username:")]
)
def test_challenge(line, octets):
    assert auth.challenge(Reply(334, (line,))) == octets
