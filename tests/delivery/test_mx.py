"""MX: every kind of answer of the DNS, and the order in which servers are tried.

The DNS is a table at the seam (``Query``): a name and kind that is not in it has no such record; a
name of which nothing is in it does not exist; an exception in it is raised.
"""

import _socket
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.resolver
import dns.zone
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.config.sections import Config, Delivery, Dns, Smarthost, Spool
from minisend.delivery import mx
from minisend.delivery.mx import (
    TRY_SECONDS,
    LookupFailed,
    NoAnswer,
    NoSuchName,
    Resolver,
    Target,
    Unroutable,
    dns_query,
    is_own_address,
    targets,
)
from minisend.delivery.route import ERROR, LMTP, MX, SMARTHOST, SMTP, NextHop

if TYPE_CHECKING:
    from minisend.delivery.mx import Query

Zone = dict[tuple[str, str], "tuple[str, ...] | Exception"]

SERVFAIL = LookupFailed("all servers said SERVFAIL")


class Script:
    """The scripted DNS; ``asked`` has every question, ``now`` is the clock that lookups move on."""

    def __init__(self, zone: Zone, seconds_each: float = 0.0) -> None:
        self.zone = zone
        self.asked: list[tuple[str, str]] = []
        self.allowed: list[float] = []
        self.now = 1000.0
        self.seconds_each = seconds_each

    def query(self, name: str, kind: str, seconds: float) -> tuple[str, ...]:
        self.asked.append((name, kind))
        self.allowed.append(seconds)
        self.now += self.seconds_each
        if not any(known == name for known, _ in self.zone):
            raise NoSuchName
        answer = self.zone.get((name, kind), ())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def clock(self) -> float:
        return self.now


def config(port: int = 25, smarthost: Smarthost | None = None) -> Config:
    return Config(
        file=None,
        spool=Spool("/nowhere"),
        hostname="Here.example",
        delivery=Delivery(mx_port=port),
        smarthost=smarthost,
    )


def find(
    zone: Zone | Script, domain: str = "example.net", *, port: int = 25, own: str = ""
) -> list[str]:
    """The targets as "host address"; hosts of equal preference come in reversed order of the table."""
    script = zone if isinstance(zone, Script) else Script(zone)
    found = targets(
        NextHop(MX, domain, domain),
        config(port),
        Resolver(script.query, script.clock),
        shuffle=list.reverse,
        is_own=lambda address: address == own or address.startswith("127."),
    )
    assert all(target.port == port for target in found)
    return [f"{target.host} {target.address}" for target in found]


def failure(zone: Zone | Script, domain: str = "example.net", **values: Any) -> tuple[str, str]:
    with pytest.raises(Unroutable) as caught:
        find(zone, domain, **values)
    return caught.value.status, str(caught.value)


A = {
    ("a.example.net", "A"): ("192.0.2.1",),
    ("b.example.net", "A"): ("192.0.2.2", "192.0.2.22"),
    ("b.example.net", "AAAA"): ("2001:db8::2",),
    ("c.example.net", "AAAA"): ("2001:db8::3",),
}


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        pytest.param(
            {
                ("example.net", "MX"): (
                    "20 b.example.net.",
                    "10 a.example.net.",
                    "30 c.example.net.",
                ),
                **A,
            },
            [
                "a.example.net 192.0.2.1",
                "b.example.net 2001:db8::2",
                "b.example.net 192.0.2.2",
                "b.example.net 192.0.2.22",
                "c.example.net 2001:db8::3",
            ],
            id="by preference, IPv6 and IPv4 in turn",
        ),
        pytest.param(
            {
                ("example.net", "MX"): (
                    "10 a.example.net.",
                    "10 b.example.net.",
                    "10 c.example.net.",
                ),
                **A,
            },
            [
                "c.example.net 2001:db8::3",
                "b.example.net 2001:db8::2",
                "a.example.net 192.0.2.1",
                "b.example.net 192.0.2.2",
                "b.example.net 192.0.2.22",
            ],
            id="equal preference: shuffled, hosts in turn",
        ),
        pytest.param(
            {("example.net", "MX"): ("5 A.Example.NET.",), **A},
            ["a.example.net 192.0.2.1"],
            id="case",
        ),
        pytest.param(
            {("example.net", "MX"): ("100 a.example.net.", "20 c.example.net."), **A},
            ["c.example.net 2001:db8::3", "a.example.net 192.0.2.1"],
            id="preferences are numbers",
        ),
        pytest.param(
            {("example.net", "A"): ("192.0.2.9",), ("example.net", "AAAA"): ("2001:db8::9",)},
            ["example.net 2001:db8::9", "example.net 192.0.2.9"],
            id="no MX: the domain itself",
        ),
        pytest.param(
            {("example.net", "MX"): ("10 gone.example.net.", "20 a.example.net."), **A},
            ["a.example.net 192.0.2.1"],
            id="an MX that does not exist is skipped",
        ),
        pytest.param(
            {
                ("example.net", "MX"): ("10 bare.example.net.", "20 a.example.net."),
                ("bare.example.net", "TXT"): (),
                **A,
            },
            ["a.example.net 192.0.2.1"],
            id="an MX without address is skipped",
        ),
        pytest.param(
            {
                ("example.net", "MX"): ("10 ill.example.net.", "20 a.example.net."),
                ("ill.example.net", "A"): SERVFAIL,
                **A,
            },
            ["a.example.net 192.0.2.1"],
            id="an MX whose lookup fails is skipped",
        ),
        pytest.param(
            {
                ("example.net", "MX"): ("10 half.example.net.",),
                ("half.example.net", "AAAA"): SERVFAIL,
                ("half.example.net", "A"): ("192.0.2.7",),
            },
            ["half.example.net 192.0.2.7"],
            id="one family fails",
        ),
        pytest.param(
            {("example.net", "MX"): ("0 .", "10 a.example.net."), **A},
            ["a.example.net 192.0.2.1"],
            id="a null MX beside others says nothing",
        ),
        pytest.param(
            {("example.net", "MX"): ("10 192.0.2.5.",)},
            ["192.0.2.5 192.0.2.5"],
            id="MX is an address",
        ),
        pytest.param(
            {
                ("example.net", "MX"): ("10 m.example.net.",),
                ("m.example.net", "A"): ("224.0.0.1", "192.0.2.6"),
            },
            ["m.example.net 192.0.2.6"],
            id="multicast is no server",
        ),
        pytest.param(
            {
                ("example.net", "MX"): (
                    "10 a.example.net.",
                    "20 here.example.",
                    "20 b.example.net.",
                    "30 c.example.net.",
                ),
                ("here.example", "A"): ("192.0.2.99",),
                **A,
            },
            ["a.example.net 192.0.2.1"],
            id="we are an MX: only better ones",
        ),
    ],
)
def test_servers(zone: Zone, expected: list[str]) -> None:
    assert find(zone) == expected


LOOP = "mail for example.net loops back to this machine: its best MX is "


@pytest.mark.parametrize(
    ("zone", "status", "reason"),
    [
        pytest.param({}, "5.1.2", "the domain example.net does not exist", id="NXDOMAIN"),
        pytest.param(
            {("example.net", "MX"): ("0 .",), ("example.net", "A"): ("192.0.2.1",)},
            "5.1.10",
            "the domain example.net does not accept mail (null MX, RFC 7505)",
            id="null MX",
        ),
        pytest.param(
            {("example.net", "MX"): ("0 .", "5 ."), ("example.net", "A"): ("192.0.2.1",)},
            "5.1.10",
            "the domain example.net does not accept mail (null MX, RFC 7505)",
            id="null MX, twice",
        ),
        pytest.param(
            {("example.net", "TXT"): ("x",)},
            "5.4.4",
            "no server for example.net has an address",
            id="nothing",
        ),
        pytest.param(
            {
                ("example.net", "MX"): ("10 gone.example.net.",),
                ("example.net", "A"): ("192.0.2.1",),
            },
            "5.4.4",
            "no server for example.net has an address",
            id="MX without address: no implicit one",
        ),
        pytest.param(
            {("example.net", "MX"): ("10 odd\\032name.",)},
            "5.4.4",
            "no server for example.net has an address",
            id="MX that is no name",
        ),
        pytest.param(
            {("example.net", "MX"): SERVFAIL, ("example.net", "A"): ("192.0.2.1",)},
            "4.4.3",
            "looking up the MX of example.net: all servers said SERVFAIL",
            id="SERVFAIL: no implicit MX",
        ),
        pytest.param(
            {
                ("example.net", "MX"): ("10 ill.example.net.", "20 gone.example.net."),
                ("ill.example.net", "A"): SERVFAIL,
            },
            "4.4.3",
            "looking up the servers for example.net: all servers said SERVFAIL",
            id="one may come back, the others never",
        ),
        pytest.param(
            {("example.net", "MX"): ("0 .", "10 here.example.")},
            "5.4.6",
            LOOP + "here.example",
            id="a null MX before us is not better",
        ),
        pytest.param(
            {("example.net", "MX"): ("10 here.example.", "20 a.example.net."), **A},
            "5.4.6",
            LOOP + "here.example",
            id="best MX has our name",
        ),
        pytest.param(
            {
                ("example.net", "MX"): ("10 l.example.net.", "20 a.example.net."),
                ("l.example.net", "A"): ("127.0.0.1",),
                **A,
            },
            "5.4.6",
            LOOP + "l.example.net[127.0.0.1]",
            id="best MX is loopback",
        ),
        pytest.param(
            {("example.net", "MX"): ("10 b.example.net.", "10 a.example.net."), **A},
            "5.4.6",
            LOOP + "b.example.net[2001:db8::2]",
            id="one of the best has our address",
        ),
        pytest.param(
            {("example.net", "A"): ("127.0.0.1",)},
            "5.4.6",
            LOOP + "example.net[127.0.0.1]",
            id="implicit",
        ),
        pytest.param(
            {("example.net", "MX"): ("10 gone.example.net.", "20 here.example.")},
            "4.4.4",
            "no server for example.net that is better than this machine has an address",
            id="we are second to nobody",
        ),
        pytest.param(
            {
                ("example.net", "MX"): ("10 ill.example.net.", "20 here.example."),
                ("ill.example.net", "A"): SERVFAIL,
            },
            "4.4.3",
            "looking up the servers for example.net: all servers said SERVFAIL",
            id="we are second to one that may come back",
        ),
    ],
)
def test_no_server(zone: Zone, status: str, reason: str) -> None:
    assert failure(zone, own="192.0.2.22") == (status, reason)


def test_with_another_port_our_addresses_are_servers_like_others_but_our_name_is_not() -> None:
    zone: Zone = {
        ("example.net", "MX"): ("10 l.example.net.",),
        ("l.example.net", "A"): ("127.0.0.3",),
    }
    assert find(zone, port=2525) == ["l.example.net 127.0.0.3"]
    assert failure({("example.net", "MX"): ("10 here.example.",)}, port=2525) == (
        "5.4.6",
        LOOP + "here.example",
    )


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        pytest.param("[192.0.2.1]", ["192.0.2.1 192.0.2.1"], id="IPv4"),
        pytest.param("[ipv6:2001:db8::1]", ["2001:db8::1 2001:db8::1"], id="IPv6"),
    ],
)
def test_address_literal(domain: str, expected: list[str]) -> None:
    script = Script({})
    assert find(script, domain) == expected
    assert script.asked == []


@pytest.mark.parametrize(
    ("domain", "status", "reason"),
    [
        pytest.param("", "5.1.2", "the domain (none) does not exist", id="none"),
        pytest.param(
            "b\\xfc.example", "5.1.2", "the domain b\\xfc.example does not exist", id="not UTF-8"
        ),
        pytest.param("[x]", "5.1.2", "[x] is not an address literal of IPv4 or IPv6", id="literal"),
        pytest.param(
            "[127.0.0.1]",
            "5.4.6",
            "mail for [127.0.0.1] loops back to this machine: its best MX is 127.0.0.1[127.0.0.1]",
            id="loopback literal",
        ),
    ],
)
def test_a_domain_that_is_not_asked_for(domain: str, status: str, reason: str) -> None:
    script = Script(
        {("", "MX"): ("10 a.example.net.",), (domain, "MX"): ("10 a.example.net.",), **A}
    )
    assert failure(script, domain) == (status, reason)
    assert script.asked == []


def test_a_next_hop_that_is_an_error_has_no_servers() -> None:
    script = Script({})
    hop = NextHop(ERROR, "no account begins with a dash", status="5.1.1")
    with pytest.raises(Unroutable) as caught:
        targets(hop, config(), Resolver(script.query, script.clock))
    assert (caught.value.status, str(caught.value)) == ("5.1.1", "no account begins with a dash")
    assert script.asked == []


def test_each_question_is_asked_once_failures_included_and_again_when_the_answer_is_old() -> None:
    script = Script(
        {("example.net", "MX"): ("10 ill.example.net.",), ("ill.example.net", "A"): SERVFAIL}
    )
    resolver = Resolver(script.query, script.clock)
    once = [("example.net", "MX"), ("ill.example.net", "AAAA"), ("ill.example.net", "A")]
    for moment, asked in ((0.0, once), (59.0, once), (60.0, once + once)):
        script.now = 1000.0 + moment
        with pytest.raises(Unroutable):
            targets(NextHop(MX, "example.net", "example.net"), config(), resolver)
        assert script.asked == asked


def test_the_lookups_for_one_next_hop_are_over_after_their_time() -> None:
    """A hundred MX names with dead servers cost 30 s, not 100 times 30 s, and what was found is used."""
    zone: Zone = {("example.net", "MX"): tuple(f"{n} h{n}.example.net." for n in range(10, 110))}
    zone.update({(f"h{n}.example.net", "A"): ("192.0.2.1",) for n in range(10, 12)})
    script = Script(zone, seconds_each=7.0)
    assert find(script) == ["h10.example.net 192.0.2.1", "h11.example.net 192.0.2.1"]
    assert script.asked == [
        ("example.net", "MX"),
        ("h10.example.net", "AAAA"),
        ("h10.example.net", "A"),
        ("h11.example.net", "AAAA"),
        ("h11.example.net", "A"),
    ]
    assert script.allowed == [30.0, 23.0, 16.0, 9.0, 2.0]


SILENCE = NoAnswer("no answer from 127.0.0.1 within 30 s")
SILENT = (
    "4.4.3",
    "looking up the MX of {}: no answer from 127.0.0.1 within 30 s",
)


def ask(script: Script, resolver: Resolver, name: str) -> tuple[str, str, list[str], float]:
    """Status, reason with {} for the name, the names asked for, the seconds it took."""
    before, script.asked = script.now, []
    with pytest.raises(Unroutable) as caught:
        targets(NextHop(MX, name, name), config(), resolver)
    reason = str(caught.value).replace(name, "{}")
    return caught.value.status, reason, [asked for asked, _ in script.asked], script.now - before


def test_servers_that_never_answer_are_not_waited_for_by_each_name() -> None:
    """Two names wait; then one in each minute, and the others fail at once until there is an answer."""
    names = [f"n{n}.example" for n in range(9)]
    script = Script({(name, "MX"): SILENCE for name in names}, seconds_each=30.0)
    resolver = Resolver(script.query, script.clock)
    for name in names[:2]:
        assert ask(script, resolver, name) == (*SILENT, [name], 30.0)
    for name in names[2:5]:
        assert ask(script, resolver, name) == (*SILENT, [], 0.0)
    script.now += 60.0
    assert ask(script, resolver, names[5]) == (*SILENT, [names[5]], 30.0)
    # One that failed unasked has no failure of its own to remember.
    assert ask(script, resolver, names[2]) == (*SILENT, [], 0.0)
    script.now += 60.0
    del script.zone[names[6], "MX"]
    assert ask(script, resolver, names[6])[0] == "5.1.2"
    assert ask(script, resolver, names[2]) == (*SILENT, [names[2]], 30.0)
    assert ask(script, resolver, names[7]) == (*SILENT, [names[7]], 30.0)
    assert ask(script, resolver, names[8]) == (*SILENT, [], 0.0)


@pytest.mark.parametrize(
    "answer", [("10 a.example.net.",), (), SERVFAIL], ids=["records", "none", "SERVFAIL"]
)
def test_any_answer_shows_that_the_servers_are_there(answer: "tuple[str, ...] | Exception") -> None:
    script = Script({**A, ("up.example", "MX"): answer, ("up.example", "A"): ("192.0.2.1",)})
    script.zone.update({(f"n{n}.example", "MX"): SILENCE for n in range(3)})
    resolver = Resolver(script.query, script.clock)
    for name in ("n0.example", "up.example", "n1.example"):
        try:
            targets(NextHop(MX, name, name), config(), resolver)
        except Unroutable:
            pass
    assert ask(script, resolver, "n2.example")[2] == ["n2.example"]


def test_a_question_without_time_for_an_answer_proves_nothing() -> None:
    script = Script({(f"n{n}.example", "MX"): SILENCE for n in range(5)})
    resolver = Resolver(script.query, script.clock)
    for n, seconds, asked in ((0, 4.9, 1), (1, 4.9, 2), (2, 5.0, 3), (3, 5.0, 4), (4, 5.0, 4)):
        with pytest.raises(NoAnswer):
            resolver.records(f"n{n}.example", "MX", script.now + seconds)
        assert len(script.asked) == asked


def test_time_up_before_anything_was_found() -> None:
    script = Script({("example.net", "MX"): ("10 a.example.net.",), **A}, seconds_each=31.0)
    assert failure(script) == (
        "4.4.3",
        "looking up the servers for example.net: no time left to look up a.example.net",
    )


def test_there_is_an_end_to_servers() -> None:
    zone: Zone = {("example.net", "MX"): tuple(f"{n} h{n}.example.net." for n in range(10, 110))}
    zone.update(
        {
            (f"h{n}.example.net", "A"): (f"192.0.2.{n}", f"198.51.100.{n}", f"203.0.113.{n}")
            for n in range(10, 110)
        }
    )
    script = Script(zone)
    found = find(script)
    assert len(found) == 20
    assert found[-1] == "h16.example.net 198.51.100.16"
    assert len(script.asked) == 1 + 2 * 7


_hosts = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcdefgh")), max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    _hosts, st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["", "own", "fail", "ok"]))
)
def test_never_a_server_as_bad_as_we_are_and_always_in_order(
    records: list[tuple[int, str]], kinds: dict[str, str]
) -> None:
    """For any MX records: each target is better than ourselves, sorted, and of a host that has an address."""
    zone: Zone = {("example.net", "MX"): tuple(f"{p} {h}.example." for p, h in records)}
    answers = {
        (host, "A"): {"own": ("127.0.0.1",), "fail": SERVFAIL, "ok": (f"192.0.2.{n}",), "": ()}[
            kind
        ]
        for n, (host, kind) in enumerate(sorted(kinds.items()))
    }
    zone.update({(f"{host}.example", "A"): answer for (host, _), answer in answers.items()})
    ours = min((p for p, h in records if kinds.get(h) == "own"), default=99)
    expected = [
        f"{host}.example {answers[host, 'A'][0]}"
        for preference in range(min(ours, 4))
        for host in sorted((h for p, h in records if p == preference), reverse=True)
        if kinds.get(host) == "ok"
    ]
    if expected:
        assert find(zone) == list(dict.fromkeys(expected))
    else:
        loop = bool(records) and ours == min(p for p, _ in records)
        assert (failure(zone)[0] == "5.4.6") == loop


# The smarthost: the system resolver.


def smarthost_targets(*hosts: str) -> list[Target]:
    smarthost = Smarthost(hosts, port=26)
    return targets(NextHop(SMARTHOST, "x"), config(smarthost=smarthost), Resolver(Script({}).query))


def test_smarthost_literals_need_no_dns() -> None:
    assert smarthost_targets("127.0.0.1", "::1", "127.0.0.1") == [
        Target("127.0.0.1", "127.0.0.1", 26),
        Target("::1", "::1", 26),
    ]


def test_smarthost_names_come_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(host: bytes, port: int, **kwargs: Any) -> list[Any]:
        assert (port, kwargs) == (26, {"type": socket.SOCK_STREAM})
        if host == b"first.example":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
        ]

    monkeypatch.setattr(_socket, "getaddrinfo", lookup)
    assert smarthost_targets("first.example", "second.example") == [
        Target("second.example", "2001:db8::1", 26),
        Target("second.example", "192.0.2.1", 26),
    ]


@pytest.mark.parametrize(
    ("errors", "status", "reason"),
    [
        pytest.param(
            [socket.gaierror(socket.EAI_NONAME, "Name or service not known")],
            "4.4.4",
            "looking up the smarthost: h0: Name or service not known",
            id="unknown",
        ),
        pytest.param(
            [
                socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
                socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
            ],
            "4.4.3",
            "looking up the smarthost: h0: Name or service not known; "
            "h1: Temporary failure in name resolution",
            id="one of them may come back",
        ),
        pytest.param(
            [UnicodeError("label too long")],
            "4.4.4",
            "looking up the smarthost: h0: label too long",
            id="no name",
        ),
    ],
)
def test_smarthost_not_found(
    errors: list[Exception], status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup(host: bytes, port: int, **kwargs: Any) -> list[Any]:
        raise errors[int(host[1:])]

    monkeypatch.setattr(_socket, "getaddrinfo", lookup)
    with pytest.raises(Unroutable) as caught:
        smarthost_targets(*(f"h{n}" for n in range(len(errors))))
    assert (caught.value.status, str(caught.value)) == (status, reason)


# Routes and SRV.


def test_what_a_route_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each from its own place, and none of the default smarthost."""
    here = config(smarthost=Smarthost(("127.0.0.9",), port=26))
    here.smarthosts = {"x": Smarthost(("127.0.0.8",), port=27)}
    resolver = Resolver(Script({}).query)
    hops = [
        NextHop(SMARTHOST, "x:", smarthost="x"),
        NextHop(SMTP, "smtp:", host="::1", port=28),
        NextHop(LMTP, "lmtp:", host="127.0.0.7", port=29),
        NextHop(LMTP, "lmtp:", path="/run/lmtp"),
    ]
    assert [targets(hop, here, resolver) for hop in hops] == [
        [Target("127.0.0.8", "127.0.0.8", 27)],
        [Target("::1", "::1", 28)],
        [Target("127.0.0.7", "127.0.0.7", 29)],
        [Target("localhost", "/run/lmtp", 0, "none")],
    ]
    monkeypatch.setattr(_socket, "getaddrinfo", lambda *args, **kwargs: [])
    with pytest.raises(Unroutable) as caught:
        targets(hops[1], here, resolver)
    assert (caught.value.status, str(caught.value)[:24]) == ("4.4.4", "looking up the server: ")


SRV = {
    ("a.example.net", "A"): ("192.0.2.1",),
    ("b.example.net", "A"): ("192.0.2.2",),
    ("b.example.net", "AAAA"): ("2001:db8::2",),
    ("c.example.org", "A"): ("192.0.2.3",),
    ("xexample.net", "A"): ("192.0.2.4",),
    ("example.net", "A"): ("192.0.2.5",),
}
SUBMISSIONS, SUBMISSION = "_submissions._tcp.example.net", "_submission._tcp.example.net"


def by_srv(zone: Zone | Script, *drawn: int) -> list[Target]:
    """What the records say, when these numbers are drawn and then the lowest."""
    script = zone if isinstance(zone, Script) else Script(zone)
    lots = iter(drawn)
    return targets(
        NextHop(SMARTHOST, "srv:"),
        config(smarthost=Smarthost((), srv="Example.NET.")),
        Resolver(script.query, script.clock),
        draw=lambda least, most: next(lots, least),
    )


def test_srv_implicit_tls_first_and_every_address() -> None:
    zone: Zone = {
        (SUBMISSION, "SRV"): ("0 1 587 A.Example.NET.",),
        (SUBMISSIONS, "SRV"): ("20 1 465 b.example.net.", "10 1 4650 a.example.net."),
        **SRV,
    }
    assert by_srv(zone) == [
        Target("a.example.net", "192.0.2.1", 4650, "implicit"),
        Target("b.example.net", "2001:db8::2", 465, "implicit"),
        Target("b.example.net", "192.0.2.2", 465, "implicit"),
        Target("a.example.net", "192.0.2.1", 587, "starttls"),
    ]


def test_srv_elsewhere_the_certificate_must_be_for_the_domain() -> None:
    """Its last letters are not enough to be in it, and the domain itself may be the server."""
    names = ("c.example.org", "xexample.net", "example.net", "a.example.net")
    zone: Zone = {
        (SUBMISSION, "SRV"): tuple(f"{n} 0 587 {name}." for n, name in enumerate(names)),
        **SRV,
    }
    assert [(target.host, target.domain, target.server_name) for target in by_srv(zone)] == [
        ("c.example.org", "example.net", "example.net"),
        ("xexample.net", "example.net", "example.net"),
        ("example.net", "", "example.net"),
        ("a.example.net", "", "a.example.net"),
    ]


@pytest.mark.parametrize(
    ("drawn", "ports"),
    [
        # By weight 0, 1, 3, 6; then the others, each time the lowest lot.
        pytest.param(0, [1, 2, 3, 4], id="weight 0 at 0"),
        pytest.param(1, [2, 1, 3, 4], id="the first number of a weight"),
        pytest.param(2, [3, 1, 2, 4], id="the next one's first"),
        pytest.param(4, [3, 1, 2, 4], id="and last"),
        pytest.param(5, [4, 1, 2, 3], id="the largest weight"),
        pytest.param(10, [4, 1, 2, 3], id="the last number"),
    ],
)
def test_srv_of_equal_priority_by_lot(drawn: int, ports: list[int]) -> None:
    zone: Zone = {
        (SUBMISSION, "SRV"): tuple(
            f"5 {weight} {port} a.example.net." for port, weight in ((4, 6), (2, 1), (1, 0), (3, 3))
        ),
        **SRV,
    }
    assert [target.port for target in by_srv(zone, drawn)] == ports


@pytest.mark.parametrize(
    ("zone", "port"),
    [
        pytest.param({(SUBMISSIONS, "SRV"): ("0 0 0 .",)}, 587, id="not offered"),
        pytest.param({(SUBMISSIONS, "TXT"): ()}, 587, id="no record"),
        pytest.param({(SUBMISSIONS, "SRV"): SERVFAIL}, 587, id="no answer"),
        pytest.param({(SUBMISSIONS, "SRV"): ("0 0 465 gone.example.net.",)}, 587, id="no address"),
        pytest.param(
            {
                (SUBMISSIONS, "SRV"): ("0 0 465 ill.example.net.", "1 0 466 a.example.net."),
                ("ill.example.net", "A"): SERVFAIL,
            },
            466,
            id="one whose address is not to be had",
        ),
    ],
)
def test_srv_what_cannot_be_used_is_passed_over(zone: Zone, port: int) -> None:
    found = by_srv({**zone, (SUBMISSION, "SRV"): ("0 0 587 a.example.net.",), **SRV})
    assert found[0].port == port
    assert found[-1] == Target("a.example.net", "192.0.2.1", 587, "starttls")


@pytest.mark.parametrize(
    ("zone", "status", "reason"),
    [
        pytest.param(
            {},
            "4.4.4",
            "the DNS names no submission server of example.net (SRV, RFC 6186)",
            id="nothing",
        ),
        pytest.param(
            {(SUBMISSIONS, "SRV"): ("0 0 0 .",), (SUBMISSION, "SRV"): ("0 0 0 .",)},
            "4.4.4",
            "the DNS names no submission server of example.net (SRV, RFC 6186)",
            id="neither is offered",
        ),
        pytest.param(
            {(SUBMISSIONS, "SRV"): SERVFAIL},
            "4.4.3",
            "looking up the submission servers of example.net: all servers said SERVFAIL",
            id="no answer",
        ),
    ],
)
def test_srv_no_server(zone: Zone, status: str, reason: str) -> None:
    with pytest.raises(Unroutable) as caught:
        by_srv(zone)
    assert (caught.value.status, str(caught.value)) == (status, reason)


# This machine's own addresses.


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"]
)
def test_loopback_is_ours(address: str) -> None:
    assert is_own_address(address)


@pytest.mark.parametrize(
    "address", ["192.0.2.1", "198.51.100.7", "2001:db8::1", "::ffff:192.0.2.1"]
)
def test_documentation_addresses_are_not(address: str) -> None:
    assert not is_own_address(address)


@pytest.mark.parametrize(
    ("bindable", "address", "ours"),
    [
        pytest.param({"198.51.100.7"}, "198.51.100.7", True, id="an interface's"),
        pytest.param({"198.51.100.7"}, "::ffff:198.51.100.7", True, id="the same, mapped"),
        pytest.param({"2001:db8::7"}, "2001:db8::7", True, id="IPv6"),
        pytest.param({"0.0.0.0", "192.0.2.1"}, "0.0.0.0", True, id="unspecified, ip_nonlocal_bind"),
        pytest.param({"198.51.100.7"}, "198.51.100.8", False, id="a neighbour's"),
        pytest.param({"198.51.100.7", "192.0.2.1"}, "198.51.100.7", False, id="ip_nonlocal_bind"),
        pytest.param(
            {"2001:db8::7", "2001:db8::1"}, "2001:db8::7", False, id="ip_nonlocal_bind, IPv6"
        ),
    ],
)
def test_an_address_that_can_be_bound_to_is_ours(
    bindable: set[str], address: str, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "_can_bind", bindable.__contains__)
    assert is_own_address(address) is ours


# dnspython, over a real socket


class DnsServer:
    """Answers what ``ZONE`` has over UDP on loopback; ``dead.example`` gets no answer at all."""

    ZONE = """
$ORIGIN .
$TTL 60
@ SOA ns.invalid admin.invalid 1 2 3 4 5
@ NS ns.invalid
example.net MX 10 mx.example.net.
example.net MX 20 192.0.2.5.
mx.example.net A 192.0.2.1
mx.example.net AAAA 2001:db8::1
null.example MX 0 .
alias.example CNAME example.net.
xn--bcher-kva.example A 192.0.2.8
"""

    def __init__(self) -> None:
        self._zone = dns.zone.from_text(self.ZONE, origin=".", relativize=False, check_origin=False)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            octets, client = self._socket.recvfrom(4096)
            if not octets:
                return
            query = dns.message.from_wire(octets)
            name = query.question[0].name
            if str(name) == "dead.example.":
                continue
            self._socket.sendto(self._response(query, name).to_wire(), client)

    def _response(self, query: dns.message.Message, name: dns.name.Name) -> dns.message.Message:
        response = dns.message.make_response(query)
        if str(name) == "ill.example.":
            response.set_rcode(dns.rcode.SERVFAIL)
            return response
        alias = self._zone.get_rrset(name, "CNAME")
        if alias is not None:
            response.answer.append(alias)
            name = alias[0].target
        found = self._zone.get_rrset(name, query.question[0].rdtype)
        if found is not None:
            response.answer.append(found)
        elif name not in self._zone.nodes:
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response

    def close(self) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()


@pytest.fixture(scope="module")
def query() -> "Iterator[Query]":
    server = DnsServer()
    yield dns_query(Dns(nameservers=("127.0.0.1",), port=server.port))
    server.close()


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        pytest.param("example.net", "MX", {"10 mx.example.net.", "20 192.0.2.5."}, id="MX"),
        pytest.param("mx.example.net", "A", {"192.0.2.1"}, id="A"),
        pytest.param("mx.example.net", "AAAA", {"2001:db8::1"}, id="AAAA"),
        pytest.param("null.example", "MX", {"0 ."}, id="null MX"),
        pytest.param("alias.example", "MX", {"10 mx.example.net.", "20 192.0.2.5."}, id="CNAME"),
        pytest.param("mx.example.net", "MX", set(), id="no such record"),
        pytest.param("b\xfccher.example", "A", {"192.0.2.8"}, id="IDNA"),
    ],
)
def test_records(query: "Query", name: str, kind: str, expected: set[str]) -> None:
    assert set(query(name, kind, 20.0)) == expected


@pytest.mark.parametrize(
    "name", ["gone.example", "x" * 64 + ".example", "a..example", "\xad.example"]
)
def test_no_such_name(query: "Query", name: str) -> None:
    with pytest.raises(NoSuchName):
        query(name, "MX", 20.0)


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("ill.example", LookupFailed, "127.0.0.1: SERVFAIL"),
        ("dead.example", NoAnswer, "no answer from 127.0.0.1 within 0.5 s"),
    ],
)
def test_lookup_failed(query: "Query", name: str, kind: type[Exception], why: str) -> None:
    with pytest.raises(LookupFailed) as caught:
        query(name, "MX", 0.5)
    assert (type(caught.value), str(caught.value)) == (kind, why)


def test_one_server_of_two_that_answers_is_no_silence() -> None:
    """The first says SERVFAIL and is not asked again; nobody is behind the second."""
    server = DnsServer()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.2", server.port))
        query = dns_query(Dns(nameservers=("127.0.0.1", "127.0.0.2"), port=server.port))
        with pytest.raises(LookupFailed) as caught:
            query("ill.example", "MX", 0.5)
    server.close()
    assert (type(caught.value), str(caught.value)) == (
        LookupFailed,
        "127.0.0.1, 127.0.0.2: SERVFAIL",
    )


def test_from_the_domain_to_the_servers(query: "Query") -> None:
    assert targets(NextHop(MX, "x", "alias.example"), config(), Resolver(query)) == [
        Target("mx.example.net", "2001:db8::1", 25),
        Target("mx.example.net", "192.0.2.1", 25),
        Target("192.0.2.5", "192.0.2.5", 25),
    ]


def test_without_dnspython_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.resolver", None)
    assert unroutable(dns_query(Dns())) == (
        "4.3.5",
        "delivery to MX hosts, and srv of a smarthost, need dnspython: install it "
        "(python3-dnspython), or set [smarthost] host",
    )


def test_without_any_name_server_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unconfigured(self: dns.resolver.Resolver, path: str = "/nowhere/resolv.conf") -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver.Resolver, "read_resolv_conf", unconfigured)
    assert unroutable(dns_query(Dns())) == (
        "4.3.5",
        "no DNS server is known: name one in /etc/resolv.conf or set [dns] nameservers",
    )


@pytest.mark.parametrize(
    "error",
    [dns.resolver.YXDOMAIN(), dns.exception.FormError("what is that"), OSError(99, "no address")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_else_the_dns_comes_to_is_for_now(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Each server gets its time, and the name as it is."""
    asked: list[tuple[object, ...]] = []

    def resolve(
        self: dns.resolver.Resolver, name: dns.name.Name, kind: str, **options: object
    ) -> NoReturn:
        asked.append((name.to_text(), kind, options, self.timeout))
        raise error

    monkeypatch.setattr(dns.resolver.Resolver, "resolve", resolve)
    query = dns_query(Dns(nameservers=("127.0.0.1",)))
    status, why = unroutable(query)
    assert (status, why) == ("4.4.3", f"looking up the MX of x: {error}")
    ((name, kind, options, seconds),) = asked
    assert (name, kind, seconds) == ("x.", "MX", TRY_SECONDS)
    assert isinstance(options, dict)
    assert 29 < options.pop("lifetime") <= 30
    assert options == {"raise_on_no_answer": False, "search": False}


def unroutable(query: "Query") -> tuple[str, str]:
    with pytest.raises(Unroutable) as caught:
        targets(NextHop(MX, "x", "x"), config(), Resolver(query))
    return caught.value.status, str(caught.value)


def test_remote_mta() -> None:
    assert (
        Target("mx.example.net", "2001:db8::1", 25).remote_mta == "mx.example.net[2001:db8::1]:25"
    )
