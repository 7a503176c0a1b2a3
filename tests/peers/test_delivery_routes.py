"""Routes, named smarthosts, SRV records and source addresses, with a real name server and real Postfixes."""

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

DELIVERED = (0, "1 delivered, 0 waiting, 0 failed")
WAITS = (75, "0 delivered, 1 waiting, 0 failed")
DEAD = free_port("127.0.0.1")


@pytest.fixture(scope="module")
def servers(certificate: Certificate) -> Iterator[tuple[Postfix, Postfix, Postfix]]:
    """Two with accounts of their own, and one that takes everything."""
    with Postfix(certificate=certificate, accounts={"office": "one"}) as office:
        with Postfix(certificate=certificate, accounts={"shop": "two"}) as shop:
            with Postfix() as inside:
                yield office, shop, inside


@pytest.fixture
def new(servers: tuple[Postfix, ...]) -> Callable[[], list[list[Arrived]]]:
    """What has arrived since the test began, at each of them."""
    before = [len(server.arrived()) for server in servers]
    return lambda: [server.arrived()[count:] for server, count in zip(servers, before, strict=True)]


@pytest.fixture(scope="module")
def nameserver(servers: tuple[Postfix, Postfix, Postfix]) -> Iterator[NameServer]:
    shop = servers[1]
    implicit, starttls = f"SRV 0 1 {shop.implicit_port}", f"SRV 0 1 {shop.port}"
    zone = f"""
mail.example.test                      A    127.0.0.1
_submissions._tcp.example.test         {implicit} mail.example.test
_submission._tcp.example.test          SRV 0 1 {DEAD} mail.example.test
_submissions._tcp.starttls.test        SRV 0 0 0 .
_submission._tcp.starttls.test         {starttls} mail.example.test
_submissions._tcp.down.example.test    SRV 0 1 {DEAD} mail.example.test
_submission._tcp.down.example.test     SRV 1 1 {DEAD} mail.example.test
_submission._tcp.down.example.test     {starttls} mail.example.test
_submissions._tcp.none.test            SRV 0 0 0 .
"""
    with NameServer(zone) as started:
        yield started


def smarthost(directory: Path, table: str, server: str, account: str, password: str) -> str:
    secret = directory / f"{account}.secret"
    secret.write_text(password + "\n")
    secret.chmod(0o600)
    return f'[{table}]\n{server}\nusername = "{account}"\npassword_file = "{secret}"\n'


def at_localhost(port: int, certificate: Certificate) -> str:
    return f'host = "localhost"\nport = {port}\ntls_ca_file = "{certificate.ca_file}"'


@pytest.fixture
def program(
    tmp_path: Path, servers: tuple[Postfix, Postfix, Postfix], certificate: Certificate
) -> Program:
    office, shop, inside = servers
    return Program(
        tmp_path,
        smarthost(tmp_path, "smarthost", at_localhost(office.port, certificate), "office", "one")
        + smarthost(
            tmp_path, "smarthosts.shop", at_localhost(shop.port, certificate), "shop", "two"
        )
        + f"""
[[route]]
sender = "no-reply@shop.test"
via = "discard"
[[route]]
recipient = ["inside.test", "*.inside.test"]
via = "[127.0.0.1]:{inside.port}"
[[route]]
sender = ["*@shop.test", "<>"]
via = "shop"
""",
    )


def came(arrived: list[list[Arrived]]) -> list[list[tuple[bytes, tuple[bytes, ...], bytes]]]:
    return [[(each.sender, each.recipients, each.account) for each in each_] for each_ in arrived]


def test_each_sender_has_its_smarthost_and_its_login(program: Program, new) -> None:
    program.sendmail("-f", "ann@shop.test", "bob@x.test", stdin=b"Subject: s\n\n")
    program.sendmail("-f", "ann@office.test", "bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == (0, "2 delivered, 0 waiting, 0 failed")
    assert came(new()) == [
        [(b"ann@office.test", (b"bob@x.test",), b"office@accounts.test")],
        [(b"ann@shop.test", (b"bob@x.test",), b"shop@accounts.test")],
        [],
    ]


def test_the_recipients_of_one_message_take_their_own_routes(program: Program, new) -> None:
    program.sendmail(
        *("-f", "ann@shop.test", "a@x.test", "b@INSIDE.test", "c@deep.inside.test", "d@y.test"),
        stdin=b"Subject: s\n\n",
    )
    assert program.flush() == DELIVERED
    assert came(new()) == [
        [],
        [(b"ann@shop.test", (b"a@x.test", b"d@y.test"), b"shop@accounts.test")],
        [(b"ann@shop.test", (b"b@INSIDE.test", b"c@deep.inside.test"), b"")],
    ]


def test_what_is_discarded_goes_nowhere_and_a_bounce_has_a_route(program: Program, new) -> None:
    """Told as a success, which is sent with the null reverse-path."""
    program.sendmail(
        *("-f", "no-reply@shop.test", "-N", "success", "bob@inside.test"), stdin=b"Subject: s\n\n"
    )
    assert program.flush() == (0, "2 delivered, 0 waiting, 0 failed")
    office, (report,), inside = new()
    assert (office, inside) == ([], [])
    assert (report.sender, report.recipients, report.account) == (
        b"",
        (b"no-reply@shop.test",),
        b"shop@accounts.test",
    )
    assert read_report(report.message).fates() == [("bob@inside.test", "delivered", "2.0.0")]


def test_another_login_that_fails_is_no_fault_of_the_default(
    program: Program, tmp_path: Path, new
) -> None:
    """Both smarthosts may be one server: what is known of one says nothing of the other."""
    (tmp_path / "shop.secret").write_text("wrong\n")
    text = program.config.read_text()
    shop, office = (
        text.split(f"[{table}]")[1].split("port = ")[1].split("\n")[0]
        for table in ("smarthosts.shop", "smarthost")
    )
    program.config.write_text(text.replace(f"port = {shop}", f"port = {office}"))
    program.sendmail("-f", "ann@shop.test", "bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == WAITS
    program.sendmail("-f", "ann@office.test", "bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == DELIVERED
    assert came(new())[0] == [(b"ann@office.test", (b"bob@x.test",), b"office@accounts.test")]


def test_a_secret_of_no_use_is_named_with_its_table(program: Program, tmp_path: Path, new) -> None:
    (tmp_path / "shop.secret").chmod(0o644)
    program.sendmail("-f", "ann@shop.test", "bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == WAITS
    assert reason(program).startswith("[smarthosts.shop] password_file: ")
    assert new() == [[], [], []]


def by_srv(
    directory: Path, domain: str, certificate: Certificate, nameserver: NameServer
) -> Program:
    server = f'srv = "{domain}"\ntls_ca_file = "{certificate.ca_file}"'
    made = Program(
        directory,
        smarthost(directory, "smarthost", server, "shop", "two")
        + f'[dns]\nnameservers = ["{nameserver.address}"]\nport = {nameserver.port}\n',
    )
    made.sendmail("-f", "ann@shop.test", "bob@x.test", stdin=b"Subject: s\n\n")
    return made


@pytest.mark.parametrize(
    "domain",
    [
        # TLS from the first octet; nobody listens where STARTTLS would be.
        "example.test",
        # STARTTLS at the last of three, of which the others are down; the certificate is for the domain too.
        "down.example.test",
    ],
)
def test_the_servers_that_the_dns_names(
    tmp_path: Path, certificate: Certificate, nameserver: NameServer, new, domain: str
) -> None:
    assert by_srv(tmp_path, domain, certificate, nameserver).flush() == DELIVERED
    office, (arrived,), inside = new()
    assert (office, inside) == ([], [])
    assert arrived.account == b"shop@accounts.test"
    assert b"(using TLSv1.3 " in arrived.trace


def reason(waiting: Program) -> str:
    (message,) = waiting.queue()
    (recipient,) = message["recipients"]
    return str(recipient["delay_reason"])


def test_a_server_elsewhere_needs_a_certificate_for_the_domain(
    tmp_path: Path, certificate: Certificate, nameserver: NameServer, new
) -> None:
    """Else whoever forges the DNS gets the password, with a good certificate for a name of their own."""
    found = by_srv(tmp_path, "starttls.test", certificate, nameserver)
    assert found.flush() == WAITS
    assert "certificate is not for starttls.test" in reason(found)
    assert new() == [[], [], []]


def test_a_domain_that_offers_no_submission(
    tmp_path: Path, certificate: Certificate, nameserver: NameServer
) -> None:
    found = by_srv(tmp_path, "none.test", certificate, nameserver)
    assert found.flush() == WAITS
    assert reason(found) == "the DNS names no submission server of none.test (SRV, RFC 6186)"


def test_from_an_address_of_ours(tmp_path: Path, servers: tuple[Postfix, ...], new) -> None:
    port = servers[2].port
    settings = (
        '[delivery]\nsource_address = ["{}", "2001:db8::1"]\n'
        f'[smarthost]\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\n'
    )
    program = Program(tmp_path, settings.format("127.0.0.77"))
    program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == DELIVERED
    (arrived,) = new()[2]
    assert b"[127.0.0.77]" in arrived.trace
    # One that is not ours: that is said, and the back-off does not grow.
    program.configure(settings.format("192.0.2.1"))
    program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    assert program.flush() == WAITS
    assert reason(program) == (
        f"connect to [127.0.0.1]:{port} from [192.0.2.1]: Cannot assign requested address"
    )
    assert len(new()[2]) == 1
