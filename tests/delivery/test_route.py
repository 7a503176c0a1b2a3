"""Route: every address has exactly one next hop, and equal ones share a transaction."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.config import Config, Smarthost, Spool
from minisend.delivery.route import ERROR, MX, SMARTHOST, NextHop, route


def config(smarthost: Smarthost | None = None) -> Config:
    return Config(
        file=None,
        spool=Spool("/nowhere"),
        hostname="host.here.example",
        mail_domain="here.example",
        smarthost=smarthost,
    )


@pytest.mark.parametrize(
    ("recipient", "domain"),
    [
        pytest.param(b"a@example.net", "example.net", id="plain"),
        pytest.param(b"a@EXAMPLE.Net", "example.net", id="case"),
        pytest.param(b"a@example.net.", "example.net", id="final dot"),
        pytest.param(b'"a@b"@example.net', "example.net", id="quoted @"),
        pytest.param(b"a@[127.0.0.1]", "[127.0.0.1]", id="IPv4 literal"),
        pytest.param(b"a@[IPv6:2001:DB8::1]", "[ipv6:2001:db8::1]", id="IPv6 literal"),
        pytest.param("a@bücher.example".encode(), "xn--bcher-kva.example", id="UTF-8"),
        pytest.param("a@BÜCHER.example".encode(), "xn--bcher-kva.example", id="UTF-8, case"),
        pytest.param("ä@example.net".encode(), "example.net", id="UTF-8 before the @"),
        pytest.param(b"root", "", id="no domain"),
        pytest.param(b"-a@example.net", "example.net", id="a dash elsewhere"),
    ],
)
def test_without_smarthost_the_domain_is_the_next_hop(recipient: bytes, domain: str) -> None:
    assert route(recipient, config()) == NextHop(MX, domain, domain)


@pytest.mark.parametrize("recipient", [b"a@example.net", b"a@[127.0.0.1]", b"root"])
@pytest.mark.parametrize(
    ("smarthost", "name"),
    [
        pytest.param(Smarthost(("smtp.example.org",)), "[smtp.example.org]:587", id="one"),
        pytest.param(Smarthost(("a", "::1"), port=26), "[a]:26,[::1]:26", id="two"),
    ],
)
def test_a_smarthost_takes_everything(recipient: bytes, smarthost: Smarthost, name: str) -> None:
    assert route(recipient, config(smarthost)) == NextHop(SMARTHOST, name, "")


@pytest.mark.parametrize(
    ("recipient", "reason"),
    [
        pytest.param(
            b"a@b\xfccher.example",
            '"a@b\\xfccher.example": the domain has no form in ASCII',
            id="not UTF-8",
        ),
        pytest.param(
            "a@bü..example".encode(),
            '"a@bü..example": the domain has no form in ASCII',
            id="an empty label",
        ),
    ],
)
def test_a_domain_that_cannot_be_looked_up_fails_unless_a_smarthost_takes_it(
    recipient: bytes, reason: str
) -> None:
    assert route(recipient, config()) == NextHop(ERROR, reason, "", "5.1.2")
    assert route(recipient, config(Smarthost(("a",)))) == NextHop(SMARTHOST, "[a]:587")


@pytest.mark.parametrize("smarthost", [None, Smarthost(("a",))], ids=["MX", "smarthost"])
@pytest.mark.parametrize("recipient", [b"-v@here.example", b"--@HERE.example", b"-@here.example"])
def test_an_option_among_the_recipients_fails(
    recipient: bytes, smarthost: Smarthost | None
) -> None:
    expected = NextHop(ERROR, "no account begins with a dash", "", "5.1.1")
    assert route(recipient, config(smarthost)) == expected


@pytest.mark.parametrize(
    "recipient", [b"-v@host.here.example", b"a-v@here.example", b'"-v"@here.example']
)
def test_no_option_goes_its_way(recipient: bytes) -> None:
    assert route(recipient, config(Smarthost(("a",)))) == NextHop(SMARTHOST, "[a]:587")


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(), st.text().map(str.encode)))
def test_no_octets_break_it_and_equal_domains_are_one_key(recipient: bytes) -> None:
    one, two = route(b"x@" + recipient, config()), route(b"x@" + recipient.upper(), config())
    assert one == two or (one.kind, one.status, two.kind, two.status) == (ERROR, "5.1.2") * 2
