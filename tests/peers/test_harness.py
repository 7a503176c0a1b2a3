"""Each real server by itself, with smtplib and dnspython as its clients: what the other tests build on."""

import os
import re
import shutil
import smtplib
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.exception
import dns.resolver
import pytest

from peers.certificate import Certificate
from peers.nameserver import NameServer
from peers.postfix import Arrived, Postfix
from peers.process import free_port, group_members, wait_for
from peers.unpacked import unpacked

pytestmark = pytest.mark.peer

StartPostfix = Callable[..., Postfix]
StartNameServer = Callable[..., NameServer]

MESSAGE = b"From: ann@example.test\nSubject: s\n\nbody\n"


def wire(message: bytes) -> bytes:
    return message.replace(b"\n", b"\r\n")


def send(session: smtplib.SMTP, *recipients: str, message: bytes = MESSAGE) -> None:
    session.sendmail(
        "ann@example.test", recipients or ["bob@example.test"], wire(message), ["BODY=8BITMIME"]
    )


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(MESSAGE, id="plain"),
        pytest.param(b"Subject: s\n\n", id="no body"),
        pytest.param(b"Subject: s\n\n.\n..\n.x\n", id="dots"),
        pytest.param(b"Subject: s\n\nFrom ann\n>From bob\n", id="From lines"),
        pytest.param(
            b"Subject: \xc3\xa9\n\n" + bytes(range(1, 10)) + bytes(range(14, 256)) + b"\n",
            id="octets",
        ),
        pytest.param(b"Subject: s\n\none\rtwo\r\r\n", id="bare CR"),
        pytest.param(b"Subject: s\n\n" + b"x" * 10000 + b"\n", id="long line"),
        pytest.param(b"Subject: s\n\na \n\t\n\n\n", id="blanks"),
        pytest.param(b"X: " + b"\n y" * 100_000 + b"\n\nbody\n", id="long header"),
        pytest.param(
            b"Bcc: eve@example.test\nContent-Length: 1\nReturn-Path: <x>\nFrom: root\nTo: bob\n\nx\n",
            id="fields",
        ),
        pytest.param(
            b"Content-Type: text/plain\nContent-Transfer-Encoding: 7bit\n\n\xff\n", id="wrong MIME"
        ),
        pytest.param(b"Subject: s\n\n" + b"0123456789abcde\n" * 65536, id="1 MiB"),
    ],
)
def test_a_message_is_recorded_octet_for_octet(start_postfix: StartPostfix, message: bytes) -> None:
    postfix = start_postfix()
    with smtplib.SMTP(postfix.address, postfix.port, local_hostname="client.test") as session:
        send(session, message=message)
    (arrived,) = postfix.arrived()
    assert arrived == Arrived(
        queue_id=arrived.queue_id,
        sender=b"ann@example.test",
        recipients=(b"bob@example.test",),
        helo=b"client.test",
        mechanism=b"",
        account=b"",
        trace=arrived.trace,
        message=message,
    )
    assert b" with ESMTP id " + arrived.queue_id in arrived.trace


def test_an_envelope_is_recorded_as_it_was_said(start_postfix: StartPostfix) -> None:
    """One transaction is one record, whatever the domains; quotes stay, the null reverse-path is empty."""
    postfix = start_postfix()
    recipients = ["z@one.test", '"odd name"@two.test', "-a@one.test", "a%b!c@three.test"]
    with smtplib.SMTP(postfix.address, postfix.port) as session:
        session.sendmail("", recipients, wire(MESSAGE))
    assert [(each.sender, each.recipients) for each in postfix.arrived()] == [
        (b"", tuple(sorted(address.encode() for address in recipients)))
    ]


def test_messages_are_in_order_of_arrival(start_postfix: StartPostfix) -> None:
    postfix = start_postfix()
    messages = [b"Subject: %d\n\n" % number for number in range(20)]
    with smtplib.SMTP(postfix.address, postfix.port) as session:
        for message in messages:
            send(session, message=message)
    assert [each.message for each in postfix.arrived()] == messages


def test_a_bare_lf_is_refused(start_postfix: StartPostfix) -> None:
    postfix = start_postfix()
    with smtplib.SMTP(postfix.address, postfix.port) as session:
        with pytest.raises(smtplib.SMTPDataError, match="bare <LF>"):
            session.sendmail(
                "ann@example.test", ["bob@example.test"], b"Subject: s\r\n\r\nx\n.\ny\r\n"
            )
    assert postfix.arrived() == []


def test_one_refused_recipient_of_three(start_postfix: StartPostfix) -> None:
    postfix = start_postfix(
        refusals={"refused@": "550 5.1.1 unknown here", "later@example.test": "450 4.2.1 later"}
    )
    with smtplib.SMTP(postfix.address, postfix.port) as session:
        refused = session.sendmail(
            "ann@example.test",
            ["bob@example.test", "refused@example.test", "later@example.test", "later@other.test"],
            wire(MESSAGE),
        )
    assert {address: code for address, (code, _) in refused.items()} == {
        "refused@example.test": 550,
        "later@example.test": 450,
    }
    assert (
        b"5.1.1 " in refused["refused@example.test"][1]
        and b"unknown here" in refused["refused@example.test"][1]
    )
    assert [each.recipients for each in postfix.arrived()] == [
        (b"bob@example.test", b"later@other.test")
    ]


def test_a_parameter_is_taken(start_postfix: StartPostfix) -> None:
    postfix = start_postfix(message_size_limit=2000)
    with smtplib.SMTP(postfix.address, postfix.port) as session:
        session.ehlo()
        assert session.esmtp_features["size"] == "2000"
        with pytest.raises(smtplib.SMTPSenderRefused) as refusal:
            send(session, message=MESSAGE + b"x\n" * 2000)
    assert refusal.value.smtp_code == 552


def test_starttls_with_a_verified_certificate(
    start_postfix: StartPostfix, certificate: Certificate
) -> None:
    postfix = start_postfix(certificate=certificate)
    trusted = ssl.create_default_context(cafile=certificate.ca_file)
    with smtplib.SMTP("localhost", postfix.port) as session:
        session.starttls(context=trusted)
        send(session)
    (arrived,) = postfix.arrived()
    assert arrived.message == MESSAGE
    assert b"(using TLSv1.3 " in arrived.trace and b" with ESMTPS id " in arrived.trace


def test_implicit_tls_with_a_verified_certificate(
    start_postfix: StartPostfix, certificate: Certificate
) -> None:
    postfix = start_postfix(certificate=certificate, address="127.0.0.9")
    trusted = ssl.create_default_context(cafile=certificate.ca_file)
    assert postfix.implicit_port is not None
    with smtplib.SMTP_SSL("127.0.0.9", postfix.implicit_port, context=trusted) as session:
        send(session)
    (arrived,) = postfix.arrived()
    assert arrived.message == MESSAGE
    assert b" with ESMTPS id " in arrived.trace


@pytest.mark.parametrize(
    ("names", "expired", "trusts", "reason"),
    [
        pytest.param(["localhost"], False, False, "unable to get local issuer", id="unknown CA"),
        pytest.param(["other.test"], False, True, "Hostname mismatch", id="another name"),
        pytest.param(["localhost"], True, True, "certificate has expired", id="expired"),
    ],
)
def test_a_certificate_that_must_be_refused(
    start_postfix: StartPostfix,
    tmp_path: Path,
    names: list[str],
    expired: bool,
    trusts: bool,
    reason: str,
) -> None:
    expires = datetime.now(UTC) - timedelta(days=1) if expired else None
    certificate = Certificate(tmp_path, *names, expires=expires)
    postfix = start_postfix(certificate=certificate)
    context = ssl.create_default_context(cafile=certificate.ca_file if trusts else None)
    session = smtplib.SMTP("localhost", postfix.port)
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        session.starttls(context=context)
    session.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_auth_is_required_and_checked(
    start_postfix: StartPostfix, certificate: Certificate, mechanism: str
) -> None:
    postfix = start_postfix(certificate=certificate, accounts={"ann": "se cret", "bob": "other"})
    trusted = ssl.create_default_context(cafile=certificate.ca_file)

    def authenticate(session: smtplib.SMTP, password: str) -> None:
        session.user, session.password = "ann", password
        session.auth(
            mechanism, {"PLAIN": session.auth_plain, "LOGIN": session.auth_login}[mechanism]
        )

    with smtplib.SMTP("localhost", postfix.port) as session:
        session.ehlo()
        assert "auth" not in session.esmtp_features
        session.starttls(context=trusted)
        session.ehlo()
        assert session.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refusal:
            send(session)
        assert refusal.value.recipients["bob@example.test"][0] == 554
        for wrong in ("other", ""):
            with pytest.raises(smtplib.SMTPAuthenticationError) as failure:
                authenticate(session, wrong)
            assert failure.value.smtp_code in (501, 535)
        authenticate(session, "se cret")
        send(session)
    assert [(each.mechanism, each.account, each.message) for each in postfix.arrived()] == [
        (mechanism.encode(), b"ann@accounts.test", MESSAGE)
    ]


def test_the_mechanisms_offered_can_be_chosen(start_postfix: StartPostfix) -> None:
    postfix = start_postfix(accounts={"ann": "secret"}, mechanisms=["LOGIN"])
    with smtplib.SMTP(postfix.address, postfix.port) as session:
        session.ehlo()
        assert session.esmtp_features["auth"].split() == ["LOGIN"]


def test_an_outage_keeps_port_and_messages(start_postfix: StartPostfix) -> None:
    postfix = start_postfix()
    with smtplib.SMTP(postfix.address, postfix.port) as session:
        send(session, message=b"Subject: 1\n\n")
    postfix.stop()
    with pytest.raises(ConnectionRefusedError):
        smtplib.SMTP(postfix.address, postfix.port)
    assert [each.message for each in postfix.arrived()] == [b"Subject: 1\n\n"]
    postfix.start()
    with smtplib.SMTP(postfix.address, postfix.port) as session:
        send(session, message=b"Subject: 2\n\n")
    assert [each.message for each in postfix.arrived()] == [b"Subject: 1\n\n", b"Subject: 2\n\n"]


def test_several_addresses_with_one_port(start_postfix: StartPostfix) -> None:
    """As MX hosts are."""
    addresses = ["127.0.0.2", "127.0.0.3"]
    port = free_port(*addresses)
    servers = [start_postfix(address=address, port=port) for address in addresses]
    with smtplib.SMTP("127.0.0.3", port) as session:
        send(session)
    assert [len(server.arrived()) for server in servers] == [0, 1]


def test_postfix_has_nothing_to_complain_of(
    start_postfix: StartPostfix, certificate: Certificate
) -> None:
    postfix = start_postfix(
        certificate=certificate, accounts={"ann": "secret"}, refusals={"x@y.test": "550 no"}
    )
    with smtplib.SMTP("localhost", postfix.port) as session:
        session.starttls(context=ssl.create_default_context(cafile=certificate.ca_file))
        session.login("ann", "secret")
        send(session)
    assert len(postfix.arrived()) == 1
    postfix.stop()
    assert "status=sent (delivered via record service)" in postfix.log()
    assert re.findall(r".*(?:warning|error|fatal|panic).*", postfix.log()) == []


def test_a_configuration_that_postfix_refuses_is_told() -> None:
    with pytest.raises(AssertionError, match="setgid_group: unknown group name: no_such_group"):
        with Postfix(setgid_group="no_such_group"):
            pass


ZONE = """
example.test        MX  20 mx2.example.test
example.test        MX  10 mx1.example.test
mx1.example.test    A   127.0.0.2
mx1.example.test    A   127.0.0.3
mx2.example.test    A   127.0.0.4
mx2.example.test    AAAA ::1
host.test           A   127.0.0.5
alias.test          CNAME example.test
dangling.test       CNAME gone.test
nullmx.test         MX  0 .
long.test           TXT "some text"
"""


def resolver(nameserver: NameServer) -> dns.resolver.Resolver:
    asking = dns.resolver.Resolver(configure=False)
    asking.nameservers = [nameserver.address]
    asking.port = nameserver.port
    asking.lifetime = 10
    return asking


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        pytest.param(
            "example.test", "MX", {"10 mx1.example.test.", "20 mx2.example.test."}, id="MX"
        ),
        pytest.param("mx1.example.test", "A", {"127.0.0.2", "127.0.0.3"}, id="two addresses"),
        pytest.param("mx2.example.test", "AAAA", {"::1"}, id="AAAA"),
        pytest.param(
            "alias.test", "MX", {"10 mx1.example.test.", "20 mx2.example.test."}, id="CNAME"
        ),
        pytest.param("nullmx.test", "MX", {"0 ."}, id="null MX"),
        pytest.param("host.test", "MX", dns.resolver.NoAnswer, id="no MX"),
        pytest.param("gone.test", "MX", dns.resolver.NXDOMAIN, id="NXDOMAIN"),
        pytest.param("dangling.test", "A", dns.resolver.NXDOMAIN, id="CNAME to nothing"),
        pytest.param("broken.test", "MX", dns.resolver.NoNameservers, id="SERVFAIL"),
        pytest.param("mx.broken.test", "A", dns.resolver.NoNameservers, id="SERVFAIL below"),
    ],
)
@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
def test_the_name_server_answers(
    start_nameserver: StartNameServer,
    name: str,
    kind: str,
    answer: set[str] | type[dns.exception.DNSException],
    tcp: bool,
) -> None:
    asking = resolver(start_nameserver(ZONE, failing=["broken.test"]))
    if isinstance(answer, set):
        assert {record.to_text() for record in asking.resolve(name, kind, tcp=tcp)} == answer
    else:
        with pytest.raises(answer) as failure:
            asking.resolve(name, kind, tcp=tcp)
        assert answer is not dns.resolver.NoNameservers or "SERVFAIL" in str(failure.value)


def test_a_zone_with_an_error_is_told() -> None:
    with pytest.raises(AssertionError, match="unrecognized RR type 'MXX'"):
        with NameServer("example.test MXX 10 mx.example.test"):
            pass


def test_a_server_is_gone_with_its_block() -> None:
    with Postfix() as postfix, NameServer(ZONE) as nameserver:
        groups = [server._process.pid for server in (postfix, nameserver) if server._process]
        assert [bool(group_members(group)) for group in groups] == [True, True]
    assert [group_members(group) for group in groups] == [[], []]
    assert not postfix.directory.exists()
    assert not nameserver.directory.exists()


def test_a_server_does_not_outlive_a_test_that_is_killed() -> None:
    with Postfix():
        pass  # It can be had: a skip in the process below would not be one here.
    script = (
        "from peers.postfix import Postfix\n"
        "with Postfix() as postfix:\n"
        "    print(postfix._process.pid, postfix.directory, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as test:
        assert test.stdout is not None
        group, directory = test.stdout.readline().split()
        assert group_members(int(group))
        test.kill()
    wait_for("postfix is gone", lambda: not group_members(int(group)))
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("environment", "outcome"),
    [("true", pytest.fail.Exception), ("", pytest.skip.Exception)],
    ids=["CI", "elsewhere"],
)
def test_an_absent_peer_fails_in_ci_and_skips_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", environment)
    monkeypatch.setenv("MINISEND_PEERS", str(tmp_path))
    with pytest.raises(outcome, match=r"postfix is not unpacked in .*: run \.ci/run install"):
        unpacked("postfix")


def test_waiting_has_an_end() -> None:
    results = iter([0, "", "ready"])
    assert wait_for("a word", lambda: next(results)) == "ready"
    with pytest.raises(AssertionError, match=r"a sign: not within 0\.05 s; last: \[\]"):
        wait_for("a sign", list, deadline=0.05)
