"""Route: every address has exactly one next hop, and equal ones share a transaction."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.address import _is_like
from minisend.config.sections import Config, Route, Smarthost, Spool
from minisend.delivery.route import (
    DISCARD,
    ERROR,
    LMTP,
    MX,
    SMARTHOST,
    SMTP,
    NextHop,
    common,
    route,
)

TO_MX = ("mx", "", "", 0, "")
TO_SHOP = ("smarthost", "shop", "", 0, "")


def config(smarthost: Smarthost | None = None, *routes: Route) -> Config:
    return Config(
        file=None,
        spool=Spool("/nowhere"),
        hostname="host.here.example",
        mail_domain="here.example",
        smarthost=smarthost,
        smarthosts={
            "shop": Smarthost(("smtp.example.org",), port=26),
            "found": Smarthost((), srv="example.org"),
        },
        routes=routes,
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


# Routes.


@pytest.mark.parametrize(
    ("via", "hop"),
    [
        pytest.param(TO_MX, NextHop(MX, "x.test", "x.test"), id="mx"),
        pytest.param(
            TO_SHOP,
            NextHop(SMARTHOST, "shop:[smtp.example.org]:26", smarthost="shop"),
            id="smarthost",
        ),
        pytest.param(
            ("smarthost", "found", "", 0, ""),
            NextHop(SMARTHOST, "found:srv:example.org", smarthost="found"),
            id="SRV",
        ),
        pytest.param(
            ("smarthost", "", "", 0, ""), NextHop(SMARTHOST, "[a]:587"), id="the default smarthost"
        ),
        pytest.param(("discard", "", "", 0, ""), NextHop(DISCARD, "discard"), id="discard"),
        pytest.param(
            ("lmtp", "", "", 0, "/run/lmtp"),
            NextHop(LMTP, "lmtp:/run/lmtp", path="/run/lmtp"),
            id="LMTP, unix",
        ),
        pytest.param(
            ("lmtp", "", "::1", 24, ""),
            NextHop(LMTP, "lmtp:[::1]:24", host="::1", port=24),
            id="LMTP, TCP",
        ),
        pytest.param(
            ("smtp", "", "a", 587, ""), NextHop(SMTP, "smtp:[a]:587", host="a", port=587), id="SMTP"
        ),
    ],
)
def test_via(via: tuple[str, str, str, int, str], hop: NextHop) -> None:
    """And no two of them share a name, nor the place of the default: status files are by name."""
    found = route(b"a@X.test.", config(Smarthost(("a",)), Route(via, recipient=("*",))), b"b@y")
    assert found == hop


def test_a_smarthost_found_by_srv_is_named_by_its_domain() -> None:
    assert route(b"a@b", config(Smarthost((), srv="d"))) == NextHop(SMARTHOST, "srv:d")


@pytest.mark.parametrize(
    ("pattern", "address", "matches"),
    [
        pytest.param("*@shop.example", b"a@shop.example", True, id="any local part"),
        pytest.param("*@shop.example", b"a@SHOP.Example.", True, id="domain: case and final dot"),
        pytest.param("*@Shop.example.", b"a@shop.example", True, id="of the pattern too"),
        pytest.param("*@shop.example", b"a@xshop.example", False, id="another domain"),
        pytest.param("*@shop.example", b"a@b.shop.example", False, id="below the domain"),
        pytest.param("@shop.example", b"a@shop.example", True, id="@domain"),
        pytest.param("shop.example", b"a@shop.example", True, id="domain"),
        pytest.param("shop.example", b"shop.example@a", False, id="no local part"),
        pytest.param("*.shop.example", b"a@b.c.shop.example", True, id="all below"),
        pytest.param("*.shop.example", b"a@shop.example", False, id="below, not itself"),
        pytest.param("ann@shop.example", b"ann@shop.example", True, id="address"),
        pytest.param("ann@shop.example", b"Ann@shop.example", False, id="local part: case"),
        pytest.param("ann+*@*", b"ann+x@y", True, id="in both"),
        pytest.param("ann+*@*", b"anna@y", False, id="in both, not"),
        pytest.param("*", b"root", True, id="no domain"),
        pytest.param("x@*", b"\xff@\xff", False, id="octets"),
        pytest.param("*", b"\xff@\xff", True, id="octets, any"),
        pytest.param("xn--bcher-kva.example", "a@BÜCHER.example".encode(), True, id="UTF-8"),
        pytest.param("ä@x", "ä@x".encode(), True, id="UTF-8 before the @"),
        pytest.param('"a@b"@x', b'"a@b"@x', True, id="quoted @"),
        pytest.param("[192.0.2.1]", b"a@[192.0.2.1]", True, id="literal"),
        pytest.param("<>", b"", True, id="bounce"),
        pytest.param("<>", b"a@b", False, id="no bounce"),
        pytest.param("*", b"", False, id="nothing else is for bounces"),
        pytest.param("*@*", b"", False, id="nothing else is for bounces, with @"),
        pytest.param("a.b", b"a@axb", False, id="a dot is a dot"),
    ],
)
def test_patterns(pattern: str, address: bytes, matches: bool) -> None:
    shop = NextHop(SMARTHOST, "shop:[smtp.example.org]:26", smarthost="shop")
    other = NextHop(SMARTHOST, "[a]:587")
    default = Smarthost(("a",))
    by_sender = config(default, Route(TO_SHOP, sender=("no@where", pattern)))
    assert route(b"x@y", by_sender, address) == (shop if matches else other)
    if address:
        by_recipient = config(default, Route(TO_SHOP, recipient=("no@where", pattern)))
        assert route(address, by_recipient, b"x@y") == (shop if matches else other)


def test_both_must_match_and_the_first_route_wins() -> None:
    here = config(
        Smarthost(("a",)),
        Route(TO_MX, sender=("s",), recipient=("r",)),
        Route(TO_SHOP, sender=("s",)),
        Route(("discard", "", "", 0, ""), recipient=("r",)),
    )
    assert [
        route(recipient, here, sender).name
        for sender in (b"x@s", b"x@t", b"")
        for recipient in (b"x@r", b"x@q")
    ] == ["r", "shop:[smtp.example.org]:26", "discard", "[a]:587", "discard", "[a]:587"]


def test_an_option_among_the_recipients_takes_no_route() -> None:
    everything = config(None, Route(TO_SHOP, recipient=("*",)))
    assert route(b"-v@here.example", everything).kind == ERROR


def test_no_next_hop_is_common_where_there_are_routes() -> None:
    default = Smarthost(("a",))
    assert common(config(default)) == NextHop(SMARTHOST, "[a]:587")
    assert common(config(default, Route(TO_MX, recipient=("r",)))) is None
    assert common(config()) is None


@settings(max_examples=200, deadline=None)
@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_a_star_is_any_octets(pattern: str, text: str) -> None:
    expected = re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text) is not None
    assert _is_like(pattern, text.encode()) is expected
