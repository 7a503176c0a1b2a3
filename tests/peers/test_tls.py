"""TLS with servers that others wrote: Postfix, and Dovecot for a login by certificate.

What was agreed on is what the server has in its record or its log.
"""

import re
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from delivery.program import Program

from minisend.smtp.handshake import Trust, fingerprints
from minisend.smtp.session import Session
from minisend.smtp.stream import connect
from peers.certificate import Certificate
from peers.dovecot import Dovecot
from peers.postfix import Postfix
from peers.process import wait_for

pytestmark = pytest.mark.peer

StartPostfix = Callable[..., Postfix]

DELIVERED = (0, "1 delivered, 0 waiting, 0 failed")
WAITS = (75, "0 delivered, 1 waiting, 0 failed")


def program(directory: Path, port: int | None, settings: str) -> Program:
    """One with a message in the queue."""
    made = Program(directory, f'[smarthost]\nhost = "localhost"\nport = {port}\n{settings}')
    made.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    return made


def reason(waiting: Program) -> str:
    (message,) = waiting.queue()
    (recipient,) = message["recipients"]
    return str(recipient["delay_reason"])


def pins(certificate: Certificate) -> list[str]:
    pem = certificate.chain_file.read_text()
    end = "-----END CERTIFICATE-----\n"
    return fingerprints(ssl.PEM_cert_to_DER_cert(pem[: pem.index(end) + len(end)]))


@pytest.mark.parametrize("level", ["starttls", "implicit"])
def test_fingerprints(start_postfix: StartPostfix, tmp_path: Path, level: str) -> None:
    """Of a certificate for another name, from an authority that nobody knows."""
    shown = Certificate(tmp_path, "other.test")
    postfix = start_postfix(certificate=shown)
    port = postfix.implicit_port if level == "implicit" else postfix.port
    tls = f'tls = "{level}"\n'
    for number, pin in enumerate(pins(shown), 1):
        sending = program(tmp_path, port, f'{tls}tls_fingerprint = "{pin}"\n')
        assert sending.flush() == DELIVERED
        assert len(postfix.arrived()) == number
        assert b"(using TLSv1.3 " in postfix.arrived()[-1].trace
    wrong = f"spki-sha256:{'00' * 32}"
    sending = program(tmp_path, port, f'{tls}tls_fingerprint = "{wrong}"\n')
    assert sending.flush() == WAITS
    assert f"(expected {wrong}; found {pins(shown)[1]}): change [smarthost]" in reason(sending)
    assert len(postfix.arrived()) == 2


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_certificate(
    start_postfix: StartPostfix, certificate: Certificate, tmp_path: Path, version: str
) -> None:
    """Postfix takes nobody without one, and has the name in its record."""
    (tmp_path / "client").mkdir()
    ours = Certificate(tmp_path / "client", "client.test")
    ours.key_file.chmod(0o600)
    postfix = start_postfix(
        certificate=certificate,
        smtpd_tls_security_level="encrypt",
        smtpd_tls_req_ccert="yes",
        smtpd_tls_CAfile=str(ours.ca_file),
        smtpd_tls_mandatory_protocols=f"{'>=' if version == '1.3' else '<='}TLSv{version}",
    )
    trust = f'tls_ca_file = "{certificate.ca_file}"\n'
    without = program(tmp_path, postfix.port, trust)
    assert without.flush() == WAITS
    # It says so in SMTP, not by an alert.
    assert reason(without).endswith(
        " said: 421 4.7.1 mail.example.test Error: No client certificate presented (in reply to EHLO)"
    )
    assert postfix.arrived() == []
    without.configure(
        f'[smarthost]\nhost = "localhost"\nport = {postfix.port}\n{trust}'
        f'tls_cert_file = "{ours.chain_file}"\ntls_key_file = "{ours.key_file}"\n'
    )
    assert without.flush("--all") == DELIVERED
    (arrived,) = postfix.arrived()
    assert f"(using TLSv{version} ".encode() in arrived.trace
    assert re.search(rb"\(Client .*verified OK\)", arrived.trace), arrived.trace


@pytest.mark.parametrize("username", ["", "ann"])
def test_a_login_by_certificate(
    start_postfix: StartPostfix, certificate: Certificate, tmp_path: Path, username: str
) -> None:
    """auth = "external", by the configuration alone."""
    behind = start_postfix()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "clients.pem")
    ours = tmp_path / "ours.pem"
    issued = authority.issue_cert("ann@x.test", common_name="ann")
    ours.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    ours.chmod(0o600)
    with Dovecot(
        (behind.address, behind.port),
        certificate,
        {},
        ("external",),
        client_ca=tmp_path / "clients.pem",
    ) as server:
        sending = program(
            tmp_path,
            server.port,
            f'tls_ca_file = "{certificate.ca_file}"\ntls_cert_file = "{ours}"\n'
            f'auth = "external"\nusername = "{username}"\n',
        )
        assert sending.flush() == DELIVERED, reason(sending)
        assert wait_for("a login in the log", server.logins) == [("ann", "EXTERNAL")]
    assert len(behind.arrived()) == 1


def test_a_version_that_is_too_old(
    start_postfix: StartPostfix, certificate: Certificate, tmp_path: Path
) -> None:
    postfix = start_postfix(certificate=certificate, smtpd_tls_protocols="<=TLSv1.2")
    sending = program(
        tmp_path, postfix.port, f'tls_ca_file = "{certificate.ca_file}"\ntls_min_version = "1.3"\n'
    )
    assert sending.flush() == WAITS
    assert reason(sending).endswith(
        "no TLS version in common with the server: "
        '[smarthost] tls_min_version = "1.3" is the oldest accepted (during STARTTLS)'
    )
    assert postfix.arrived() == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_postfix_takes_a_session_up_again(
    start_postfix: StartPostfix, certificate: Certificate, version: ssl.TLSVersion
) -> None:
    """By its own log: the first handshake is whole, those after it are not."""
    postfix = start_postfix(certificate=certificate, smtpd_tls_loglevel=2)
    context = ssl.create_default_context(cafile=certificate.ca_file)
    context.minimum_version = context.maximum_version = version
    trust = Trust(context)
    for _ in range(3):
        session = Session(
            connect(postfix.address, postfix.port, 10),
            hello=b"me.test",
            tls="starttls",
            trust=trust,
            server_name="localhost",
        )
        session.open()
        session.quit()
    assert wait_for(
        "three handshakes in the log",
        lambda: len(re.findall(r" TLS connection established from ", postfix.log())) == 3,
    )
    assert len(re.findall(r"(?:[Rr]eusing old session|TLS connection reused)", postfix.log())) == 2
