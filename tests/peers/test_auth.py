"""Every login against servers that others wrote: Dovecot, and Postfix with Cyrus SASL.

The mechanism is the one that the server has in its log or its record, so that a login by another does not pass for it.
"""

import re
import smtplib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from delivery.program import Program

from minisend.errors import SmtpError
from minisend.smtp.auth import Credentials
from minisend.smtp.handshake import Trust
from minisend.smtp.session import Session
from minisend.smtp.stream import connect
from peers.certificate import Certificate
from peers.dovecot import Dovecot, token
from peers.postfix import Postfix
from peers.process import wait_for

pytestmark = pytest.mark.peer

StartPostfix = Callable[..., Postfix]

# Not ASCII, and each its own prepared form, so that servers that do not prepare have the same octets.
PASSWORD = "pässword, ="

DELIVERED = (0, "1 delivered, 0 waiting, 0 failed")
WAITS = (75, "0 delivered, 1 waiting, 0 failed")


def program(
    directory: Path,
    port: int,
    certificate: Certificate,
    secret: str,
    auth: str,
    username: str = "ann",
) -> Program:
    """One that sends by this server, with one message in the queue."""
    path = directory / "secret"
    path.write_text(secret + "\n")
    path.chmod(0o600)
    made = Program(
        directory,
        f'[smarthost]\nhost = "localhost"\nport = {port}\ntls_ca_file = "{certificate.ca_file}"\n'
        f'username = "{username}"\npassword_file = "{path}"\nauth = "{auth}"\n',
    )
    made.sendmail("bob@x.test", stdin=b"Subject: by " + auth.encode() + b"\n\n")
    return made


def reason(waiting: Program) -> str:
    (message,) = waiting.queue()
    (recipient,) = message["recipients"]
    return str(recipient["delay_reason"])


@pytest.fixture(scope="module")
def behind() -> Iterator[Postfix]:
    """Where Dovecot's mail goes."""
    with Postfix() as server:
        yield server


@pytest.fixture(scope="module")
def dovecot(behind: Postfix, certificate: Certificate) -> Iterator[Dovecot]:
    server = Dovecot(
        (behind.address, behind.port),
        certificate,
        {"ann": PASSWORD},
        ("plain", "login", "cram-md5", "scram-sha-1", "scram-sha-256", "xoauth2", "oauthbearer"),
    )
    with server:
        yield server
        # pytest shows it for a test that fails.
        print(f"--- log of dovecot\n{server.log()}")


SECRETS = [
    ("auto", "SCRAM-SHA-256", PASSWORD),
    ("scram-sha-256", "SCRAM-SHA-256", PASSWORD),
    ("scram-sha-1", "SCRAM-SHA-1", PASSWORD),
    ("cram-md5", "CRAM-MD5", PASSWORD),
    ("plain", "PLAIN", PASSWORD),
    ("login", "LOGIN", PASSWORD),
]
TOKENS = [("oauthbearer", "OAUTHBEARER"), ("xoauth2", "XOAUTH2")]


def test_what_is_offered_is_what_is_tried(
    dovecot: Dovecot, cyrus: Postfix, certificate: Certificate
) -> None:
    """Neither has more than the tests here take from it; no -PLUS, which only later versions can (see ``test_cyrus``)."""
    tried = {mechanism for _, mechanism, _ in SECRETS}
    for server, mechanisms in (
        (dovecot, tried | {mechanism for _, mechanism in TOKENS}),
        (cyrus, tried),
    ):
        with smtplib.SMTP(server.address, server.port, timeout=60) as session:
            session.starttls(context=ssl.create_default_context(cafile=certificate.ca_file))
            session.ehlo()
            assert set(session.esmtp_features["auth"].split()) == mechanisms


@pytest.mark.parametrize(
    ("auth", "mechanism", "secret"),
    [*SECRETS, *((auth, mechanism, "") for auth, mechanism in TOKENS)],
)
def test_dovecot_takes_the_right_one(
    dovecot: Dovecot,
    behind: Postfix,
    certificate: Certificate,
    tmp_path: Path,
    auth: str,
    mechanism: str,
    secret: str,
) -> None:
    before = len(dovecot.logins())
    sending = program(tmp_path, dovecot.port, certificate, secret or token("ann"), auth)
    assert sending.flush() == DELIVERED
    logins = wait_for("a login in the log", lambda: dovecot.logins()[before:])
    assert logins == [("ann", mechanism)]
    assert behind.arrived()[-1].message.startswith(b"Received: ")
    assert f"\nSubject: by {auth}\n".encode() in behind.arrived()[-1].message


@pytest.mark.parametrize(
    ("auth", "mechanism", "secret", "told"),
    [
        *((auth, mechanism, "guess", "") for auth, mechanism, _ in SECRETS),
        ("oauthbearer", "OAUTHBEARER", token("ann", key=b"x" * 32), " (status invalid_token)"),
        ("oauthbearer", "OAUTHBEARER", token("ann", expires_in=-10), " (status invalid_token)"),
        ("xoauth2", "XOAUTH2", token("ann", key=b"x" * 32), " (status 401, scope mail)"),
        ("xoauth2", "XOAUTH2", "no-token", " (status 401, scope mail)"),
    ],
    ids=lambda value: value if len(value) < 30 else "",
)
def test_dovecot_refuses_the_wrong_one(
    dovecot: Dovecot,
    behind: Postfix,
    certificate: Certificate,
    tmp_path: Path,
    auth: str,
    mechanism: str,
    secret: str,
    told: str,
) -> None:
    """The message waits, nothing else is tried with the same secret, and the server's reason is shown."""
    before, arrived, refused = len(dovecot.logins()), len(behind.arrived()), dovecot.refused()
    sending = program(tmp_path, dovecot.port, certificate, secret, auth)
    assert sending.flush() == WAITS
    said = reason(sending)
    assert " refused user name or password, check both in [smarthost]: " in said
    assert said.endswith(f": 535 5.7.8 Authentication failed.{told} (in reply to AUTH)")
    assert secret not in said
    refusals = wait_for("a refusal in the log", lambda: dovecot.refused()[len(refused) :])
    assert refusals == [("ann", mechanism, 1)]
    assert dovecot.logins()[before:] == []
    assert len(behind.arrived()) == arrived


def test_an_account_that_dovecot_does_not_know(
    dovecot: Dovecot, certificate: Certificate, tmp_path: Path
) -> None:
    """SCRAM is refused before it has proven anything, so the password is tried too, once."""
    refused = dovecot.refused()
    sending = program(tmp_path, dovecot.port, certificate, PASSWORD, "auto", username="eve")
    assert sending.flush() == WAITS
    refusals = wait_for("a refusal in the log", lambda: dovecot.refused()[len(refused) :])
    assert refusals == [("eve", "PLAIN", 2)]


@pytest.mark.parametrize("username", [b"", b"ann"])
def test_dovecot_takes_a_client_certificate(
    behind: Postfix, certificate: Certificate, tmp_path: Path, username: bytes
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "clients.pem")
    known, stranger = authority, trustme.CA()
    relay = (behind.address, behind.port)
    with Dovecot(
        relay, certificate, {}, ("external",), client_ca=tmp_path / "clients.pem"
    ) as server:
        for issuer, takes in ((known, True), (stranger, False)):
            context = ssl.create_default_context(cafile=certificate.ca_file)
            issuer.issue_cert("ann@x.test", common_name="ann").configure_cert(context)
            session = Session(
                connect(server.address, server.port, 10),
                hello=b"me.test",
                tls="starttls",
                trust=Trust(context),
                server_name="localhost",
                credentials=Credentials(username),
                auth="external",
            )
            if takes:
                session.open()
                session.quit()
            else:
                with pytest.raises(SmtpError):
                    session.open()
        assert wait_for("a login in the log", server.logins) == [("ann", "EXTERNAL")], server.log()


CYRUS = ("SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "LOGIN", "PLAIN")


@pytest.fixture(scope="module")
def cyrus(certificate: Certificate) -> Iterator[Postfix]:
    server = Postfix(certificate=certificate, accounts={"ann": PASSWORD}, mechanisms=CYRUS)
    with server:
        yield server
        print(f"--- log of postfix\n{server.log()}")


@pytest.mark.parametrize(("auth", "mechanism", "secret"), SECRETS)
def test_cyrus_takes_the_right_one(
    cyrus: Postfix,
    certificate: Certificate,
    tmp_path: Path,
    auth: str,
    mechanism: str,
    secret: str,
) -> None:
    before = len(cyrus.arrived())
    sending = program(tmp_path, cyrus.port, certificate, secret, auth)
    assert sending.flush() == DELIVERED
    (arrived,) = cyrus.arrived()[before:]
    assert (arrived.mechanism, arrived.account) == (mechanism.encode(), b"ann@accounts.test")


def failures(server: Postfix) -> list[str]:
    """The mechanism of every failed login so far."""
    return re.findall(r"SASL (\S+) authentication failed", server.log())


@pytest.mark.parametrize(("auth", "mechanism", "_"), SECRETS)
def test_cyrus_refuses_the_wrong_one(
    cyrus: Postfix, certificate: Certificate, tmp_path: Path, auth: str, mechanism: str, _: str
) -> None:
    before, failed = len(cyrus.arrived()), len(failures(cyrus))
    sending = program(tmp_path, cyrus.port, certificate, "guess", auth)
    assert sending.flush() == WAITS
    said = reason(sending)
    assert " refused user name or password, check both in [smarthost]: 535 5.7.8 " in said
    logged = wait_for("a failure in the log", lambda: failures(cyrus)[failed:])
    assert logged == [mechanism]
    assert len(cyrus.arrived()) == before


def test_cyrus_over_an_open_line(start_postfix: StartPostfix, tmp_path: Path) -> None:
    """With tls = "none" the administrator allows a password in clear, but SCRAM comes first all the same."""
    server = start_postfix(accounts={"ann": PASSWORD}, mechanisms=CYRUS)
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    for auth, mechanism in (("auto", b"SCRAM-SHA-256"), ("plain", b"PLAIN")):
        sending = Program(
            tmp_path,
            f'[smarthost]\nhost = "localhost"\nport = {server.port}\ntls = "none"\n'
            f'username = "ann"\npassword_file = "{secret}"\nauth = "{auth}"\n',
        )
        sending.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
        assert sending.flush() == DELIVERED
        assert server.arrived()[-1].mechanism == mechanism
