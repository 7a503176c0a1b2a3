"""Direct delivery: a real name server says where a domain's mail goes, and real Postfixes are there, or not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from delivery.program import Program
from delivery.reports import read_report

from peers.certificate import Certificate
from peers.nameserver import NameServer
from peers.postfix import Arrived, Postfix
from peers.process import free_port

pytestmark = pytest.mark.peer

StartPostfix = Callable[..., Postfix]

# One port for all of them, as MX hosts have.
FIRST, SECOND, NOBODY = "127.0.0.2", "127.0.0.3", "127.0.0.4"

ZONE = f"""
order.test          MX 20 second.host.test
order.test          MX 10 first.host.test
down.test           MX 10 nobody.host.test
down.test           MX 20 second.host.test
several.test        MX 10 several.host.test
plain.test          A  {FIRST}
alias.test          CNAME order.test
nullmx.test         MX 0 .
hollow.test         MX 10 hollow.host.test
nobody.test         MX 10 nobody.host.test
own.test            MX 10 here.test
own.test            MX 20 first.host.test
half.test           MX 10 gone.broken.test
half.test           MX 20 first.host.test
first.host.test     A  {FIRST}
second.host.test    A  {SECOND}
nobody.host.test    A  {NOBODY}
several.host.test   A  {NOBODY}
several.host.test   A  {SECOND}
hollow.host.test    TXT "no address"
here.test           A  {FIRST}
"""


@pytest.fixture(scope="module")
def nameserver() -> Iterator[NameServer]:
    with NameServer(ZONE, failing=["broken.test"]) as started:
        yield started


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Postfix, Postfix]]:
    port = free_port(FIRST, SECOND, NOBODY)
    refusals = {"later@order.test": "450 4.2.1 later", "no@order.test": "550 5.1.1 no"}
    with Postfix(address=FIRST, port=port, refusals=refusals) as first:
        with Postfix(address=SECOND, port=port) as second:
            yield first, second


def settings(nameserver: NameServer, port: int) -> str:
    return f'[delivery]\nmx_port = {port}\n[dns]\nnameservers = ["{nameserver.address}"]\nport = {nameserver.port}\n'


@pytest.fixture
def program(tmp_path: Path, nameserver: NameServer, servers: tuple[Postfix, Postfix]) -> Program:
    return Program(tmp_path, settings(nameserver, servers[0].port))


@pytest.fixture
def arrived_at(servers: tuple[Postfix, Postfix]) -> Callable[[], list[list[Arrived]]]:
    """What has arrived since the test began, at each of the two."""
    before = [len(server.arrived()) for server in servers]
    return lambda: [server.arrived()[count:] for server, count in zip(servers, before, strict=True)]


@pytest.fixture
def new_at(arrived_at) -> Callable[[], list[list[tuple[bytes, ...]]]]:
    """The recipients of it."""
    return lambda: [[arrived.recipients for arrived in those] for those in arrived_at()]


@pytest.mark.parametrize(
    ("domain", "at"),
    [
        pytest.param("order.test", FIRST, id="the best of two"),
        pytest.param("ORDER.test.", FIRST, id="in another spelling"),
        pytest.param("down.test", SECOND, id="the second, the first being down"),
        pytest.param("several.test", SECOND, id="another address of the host"),
        pytest.param("plain.test", FIRST, id="no MX: its own address"),
        pytest.param("alias.test", FIRST, id="through an alias"),
        pytest.param("half.test", FIRST, id="the first cannot be looked up"),
        pytest.param(f"[{SECOND}]", SECOND, id="an address literal"),
    ],
)
def test_delivered(program: Program, new_at, domain: str, at: str) -> None:
    program.sendmail("-f", "me@here.test", f"bob@{domain}", stdin=b"Subject: s\n\n")
    assert program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    recipient = (f"bob@{domain}".removesuffix(".").encode(),)
    assert new_at() == ([[recipient], []] if at == FIRST else [[], [recipient]])
    assert program.queue() == []


@pytest.mark.parametrize(
    ("domain", "status", "reason"),
    [
        pytest.param(
            "nullmx.test",
            "5.1.10",
            "the domain nullmx.test does not accept mail (null MX, RFC 7505)",
            id="null MX",
        ),
        pytest.param(
            "gone.test", "5.1.2", "the domain gone.test does not exist", id="no such domain"
        ),
        pytest.param(
            "hollow.test", "5.4.4", "no server for hollow.test has an address", id="no address"
        ),
        pytest.param(
            "own.test",
            "5.4.6",
            "mail for own.test loops back to this machine: its best MX is here.test",
            id="ourselves",
        ),
    ],
)
def test_failed(program: Program, arrived_at, domain: str, status: str, reason: str) -> None:
    """And its sender, who is at another server, is told."""
    program.sendmail("-f", f"me@[{SECOND}]", f"bob@{domain}", stdin=b"Subject: s\n\n")
    assert program.flush() == (69, "1 delivered, 0 waiting, 1 failed")
    at_first, (report,) = arrived_at()
    assert at_first == []
    assert (report.sender, report.recipients) == (b"", (f"me@[{SECOND}]".encode(),))
    (recipient,) = read_report(report.message).recipients
    assert recipient.pop("Last-Attempt-Date")
    assert recipient == {
        "Final-Recipient": f"rfc822; bob@{domain}",
        "Action": "failed",
        "Status": status,
        "Diagnostic-Code": f"x-minisend; {reason}",
    }
    assert program.queue() == []


@pytest.mark.parametrize(
    ("domain", "status", "reason"),
    [
        pytest.param("broken.test", "4.4.3", "looking up the MX of broken.test: ", id="SERVFAIL"),
        pytest.param("nobody.test", "4.4.1", f"connect to [{NOBODY}]:", id="down"),
    ],
)
def test_put_off(program: Program, new_at, domain: str, status: str, reason: str) -> None:
    program.sendmail("-f", f"me@[{SECOND}]", f"bob@{domain}", stdin=b"Subject: s\n\n")
    assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
    (message,) = program.queue()
    (recipient,) = message["recipients"]
    assert message["queue_name"] == "deferred"
    assert (recipient["address"], recipient["status"]) == (f"bob@{domain}", status)
    assert recipient["delay_reason"].startswith(reason)
    assert new_at() == [[], []]


def test_one_message_to_three_domains(program: Program, arrived_at, new_at) -> None:
    """A transaction for each, and what one comes to is nothing to the others; one report about all that failed."""
    program.sendmail(
        *("-f", "me@order.test", "a@order.test", "no@order.test", "b@order.test"),
        *("later@order.test", "c@down.test", "d@nullmx.test"),
        stdin=b"Subject: s\n\n",
    )
    assert program.flush() == (69, "1 delivered, 0 waiting, 1 failed")
    # "later" was put off by the first host of its domain, so the second was asked.
    first, second = new_at()
    assert first == [(b"a@order.test", b"b@order.test"), (b"me@order.test",)]
    # Both domains are served at the same time.
    assert sorted(second) == [(b"c@down.test",), (b"later@order.test",)]
    assert read_report(arrived_at()[0][1].message).fates() == [
        ("no@order.test", "failed", "5.1.1"),
        ("d@nullmx.test", "failed", "5.1.10"),
    ]
    assert program.queue() == []


def test_who_is_put_off_everywhere_waits_alone(
    program: Program, new_at, servers: tuple[Postfix, Postfix]
) -> None:
    servers[1].stop()
    try:
        program.sendmail(
            "a@order.test", "later@order.test", "b@plain.test", stdin=b"Subject: s\n\n"
        )
        assert program.flush() == (75, "0 delivered, 1 waiting, 0 failed")
        (message,) = program.queue()
        assert [recipient["address"] for recipient in message["recipients"]] == ["later@order.test"]
    finally:
        servers[1].start()
    program.make_due()
    assert program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    # Two domains at the same server, served side by side.
    assert [sorted(arrived) for arrived in new_at()] == [
        [(b"a@order.test",), (b"b@plain.test",)],
        [(b"later@order.test",)],
    ]


def test_tls_where_it_is_offered(
    start_postfix: StartPostfix, certificate: Certificate, nameserver: NameServer, tmp_path: Path
) -> None:
    """Encrypted, though nothing proves whose certificate it is."""
    postfix = start_postfix(address=FIRST, certificate=certificate)
    program = Program(tmp_path, settings(nameserver, postfix.port))
    program.sendmail("bob@order.test", stdin=b"Subject: s\n\n")
    assert program.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    (arrived,) = postfix.arrived()
    assert b"(using TLSv1.3 " in arrived.trace and b" with ESMTPS id " in arrived.trace


def test_by_recipient_domain(program: Program, new_at) -> None:
    for domain in ("order.test", "plain.test", "down.test"):
        program.sendmail(f"bob@{domain}", stdin=b"Subject: s\n\n")
    assert program.flush("--recipient", "plain.test") == (0, "1 delivered, 0 waiting, 0 failed")
    assert new_at() == [[(b"bob@plain.test",)], []]
    assert program.flush() == (0, "2 delivered, 0 waiting, 0 failed")
