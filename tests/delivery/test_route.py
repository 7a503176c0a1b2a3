"""Route: every address has exactly one next hop, and equal ones share a transaction."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.config import Config, Smarthost, Spool
from minisend.delivery.route import MX, SMARTHOST, NextHop, route


def config(smarthost: Smarthost | None = None) -> Config:
    return Config(file=None, spool=Spool("/nowhere"), hostname="here.example", smarthost=smarthost)


@pytest.mark.parametrize(
    ("recipient", "domain"),
    [
        pytest.param(b"a@example.net", "example.net", id="plain"),
        pytest.param(b"a@EXAMPLE.Net", "example.net", id="case"),
        pytest.param(b"a@example.net.", "example.net", id="final dot"),
        pytest.param(b'"a@b"@example.net', "example.net", id="quoted @"),
        pytest.param(b"a@[127.0.0.1]", "[127.0.0.1]", id="IPv4 literal"),
        pytest.param(b"a@[IPv6:2001:DB8::1]", "[ipv6:2001:db8::1]", id="IPv6 literal"),
        pytest.param("a@bücher.example".encode(), "bücher.example", id="UTF-8"),
        pytest.param(b"a@b\xfccher.example", "b\\xfccher.example", id="not UTF-8"),
        pytest.param(b"root", "", id="no domain"),
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


@settings(max_examples=100, deadline=None)
@given(st.binary())
def test_no_octets_break_it_and_equal_domains_are_one_key(recipient: bytes) -> None:
    assert hash(route(b"x@" + recipient, config())) == hash(
        route(b"x@" + recipient.upper(), config())
    )
