"""sendmail -bv: the fate of each address, and the exit code."""

import os
import pwd

import pytest

from minisend.admin.verify import verify
from minisend.errors import UsageError

SMARTHOST = '\n[smarthost]\nhost = "smtp.example.org"\n'


@pytest.fixture
def verified(tmp_path, capfd):
    """``verified(word, ..., more="TOML", sender="-f's")`` -> exit code and output."""

    def run(*words, more="", sender=None):
        config = tmp_path / "config.toml"
        config.write_text(
            f'mail_domain = "example.org"\n[spool]\npath = "{tmp_path}/spool"\n{more}'
        )
        code = verify(list(words), str(config), sender)
        out, err = capfd.readouterr()
        assert err == ""
        return code, out

    return run


@pytest.mark.parametrize(
    ("word", "code", "out"),
    [
        (
            "bob@Example.NET",
            0,
            "bob@Example.NET... deliverable: mailer mx, host example.net, user bob@Example.NET\n",
        ),
        ("bob", 0, "bob... deliverable: mailer mx, host example.org, user bob@example.org\n"),
        (
            "a@[192.0.2.1]",
            0,
            "a@[192.0.2.1]... deliverable: mailer mx, host [192.0.2.1], user a@[192.0.2.1]\n",
        ),
        (
            "a@[IPv6:2001:db8::1]",
            0,
            "a@[IPv6:2001:db8::1]... deliverable: "
            "mailer mx, host [ipv6:2001:db8::1], user a@[IPv6:2001:db8::1]\n",
        ),
        (
            "a@[999.1.1.1]",
            65,
            "a@[999.1.1.1]... undeliverable: "
            "[999.1.1.1] is not an address literal of IPv4 or IPv6\n",
        ),
        ("-x", 67, "-x... undeliverable: no account begins with a dash\n"),
        ("-x@example.org", 67, "-x@example.org... undeliverable: no account begins with a dash\n"),
        ("a@", 65, '"a@": nothing follows the @\n'),
    ],
)
def test_one_address(verified, word, code, out):
    assert verified(word) == (code, out)


def test_a_domain_with_no_form_in_ascii(verified):
    word = f"a@{'é' * 64}.example"
    assert verified(word) == (
        65,
        f'{word}... undeliverable: "{word}": the domain has no form in ASCII\n',
    )


def test_a_smarthost_is_left_to_judge_a_literal(verified):
    assert verified("a@[999.1.1.1]", more=SMARTHOST) == (
        0,
        "a@[999.1.1.1]... deliverable: "
        "mailer smarthost, host [smtp.example.org]:587, user a@[999.1.1.1]\n",
    )


ROUTES = """
[[route]]
sender = "*@shop.example"
via = "[127.0.0.1]:26"
[[route]]
sender = "<>"
via = "mx"
[[route]]
sender = "ACCOUNT@example.org"
via = "discard"
[[route]]
recipient = "a@example.net"
via = "lmtp:/run/lmtp"
"""


@pytest.mark.parametrize(
    ("sender", "mailer"),
    [
        ("b@shop.example", "smtp, host smtp:[127.0.0.1]:26"),
        ("", "mx, host example.net"),
        ("<>", "mx, host example.net"),
        ("b", "lmtp, host lmtp:/run/lmtp"),
        (None, "discard, host discard"),
    ],
)
def test_a_route_by_the_sender(verified, sender, mailer):
    """Without -f it is the caller."""
    more = ROUTES.replace("ACCOUNT", pwd.getpwuid(os.getuid()).pw_name)
    assert verified("a@example.net", more=more, sender=sender) == (
        0,
        f"a@example.net... deliverable: mailer {mailer}, user a@example.net\n",
    )


def test_every_address_has_its_line_and_the_first_bad_one_the_code(verified):
    code, out = verified("a@example.net, -x", "a@[999.1.1.1]", "b@example.net")
    assert code == 67
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "a@example.net... deliverable",
        "-x... undeliverable",
        "a@[999.1.1.1]... undeliverable",
        "b@example.net... deliverable",
    ]


def test_no_address():
    with pytest.raises(UsageError, match="no addresses to verify"):
        verify([], None)


def test_a_reader_that_left(verified, monkeypatch):
    def gone(fd, octets):
        raise BrokenPipeError

    monkeypatch.setattr("minisend.admin.terminal.posix.write", gone)
    assert verified("a@example.net") == (0, "")
