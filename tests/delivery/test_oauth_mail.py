"""OAuth2 from the login to the mailbox: processes of the real program, a real OAuth2 service, and aiosmtpd, which takes mail
over TLS for a token that the service has given and not for any other."""

import base64
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from delivery import authorization_server
from delivery.authorization_server import USER, Registered, Service
from delivery.program import Program
from delivery.scripted import ScriptedServer

pytestmark = [
    pytest.mark.peer,
    # aiosmtpd's own use of asyncio.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Mailbox(Controller):
    """Takes mail of who shows a token that ``service`` has given and that is not in ``revoked``; a context manager.

    ``seen``      mechanism and token of each login, whatever became of it
    ``messages``  sender, recipients and first line of each message
    """

    def __init__(self, service: Service, context: ssl.SSLContext) -> None:
        self.service = service
        self.context = context
        self.revoked: set[str] = set()
        self.seen: list[tuple[str, str]] = []
        self.messages: list[tuple[str, list[str], bytes]] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        super().__init__(self, hostname="127.0.0.1", port=port)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        first = envelope.content.partition(b"Subject: ")[2].partition(b"\r\n")[0]
        self.messages.append((envelope.mail_from, envelope.rcpt_tos, first))
        return "250 2.0.0 taken"

    def factory(self) -> SMTP:
        mailbox = self

        class Server(SMTP):
            async def auth_XOAUTH2(self, _: SMTP, arguments: list[str]) -> AuthResult:
                octets = await self._initial(arguments)
                user, _, token = octets.removesuffix(b"\1\1").partition(b"\1auth=Bearer ")
                return await self._checked("XOAUTH2", user.removeprefix(b"user="), token)

            async def auth_OAUTHBEARER(self, _: SMTP, arguments: list[str]) -> AuthResult:
                octets = await self._initial(arguments)
                header, _, token = octets.removesuffix(b"\1\1").partition(b"\1auth=Bearer ")
                user = header.removeprefix(b"n,a=").removesuffix(b",")
                return await self._checked("OAUTHBEARER", user, token)

            async def _initial(self, arguments: list[str]) -> bytes:
                if len(arguments) > 1:
                    return base64.b64decode(arguments[1], validate=True)
                found: bytes = await self.challenge_auth("")
                return found

            async def _checked(self, mechanism: str, user: bytes, token: bytes) -> AuthResult:
                shown = token.decode("ascii")
                mailbox.seen.append((mechanism, shown))
                given = set(mailbox.service.granted) - mailbox.revoked
                if user.decode() == USER and shown in given:
                    return AuthResult(success=True, auth_data=user)
                # RFC 7628 section 3.2.3: the reason first, then the refusal.
                await self.challenge_auth('{"status":"invalid_token"}')
                return AuthResult(success=False, handled=False)

        return Server(
            self.handler,
            hostname="mx.test",
            tls_context=self.context,
            require_starttls=True,
            auth_required=True,
            auth_exclude_mechanism=["LOGIN", "PLAIN"],
        )

    def __enter__(self) -> "Mailbox":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    # Seconds between two polls, of real ones.
    monkeypatch.setattr(authorization_server._Device, "INTERVAL", 1)
    with Service(tmp_path) as running:
        yield running


@pytest.fixture
def ca(tmp_path: Path) -> trustme.CA:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "mail-ca.pem"))
    return ca


@pytest.fixture
def mailbox(service: Service, ca: trustme.CA) -> Iterator[Mailbox]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with Mailbox(service, context) as running:
        yield running


def program(
    directory: Path, service: Service, mailbox: Mailbox, more: str = "", routes: str = ""
) -> Program:
    text = (
        f'[smarthosts.work]\nhost = "127.0.0.1"\nport = {mailbox.port}\n'
        f'tls_ca_file = "{directory}/mail-ca.pem"\nusername = "{USER}"\n'
        f'oauth2_token_endpoint = "{service.base}/token"\n'
        f'oauth2_device_endpoint = "{service.base}/device"\n'
        f'oauth2_auth_endpoint = "{service.base}/authorize"\n'
        f'oauth2_ca_file = "{service.ca_file}"\n'
        f'oauth2_token_file = "{directory}/state/work.json"\n{more}\n'
        f'{routes}[[route]]\nrecipient = "*"\nvia = "work"\n'
    )
    made = Program(directory, text, admin="admin@other.test")
    made.sendmail("-f", "me@here.test", "bob@x.test", stdin=b"Subject: first\n\n")
    return made


USER_LOGIN = 'oauth2_client_id = "minisend"'


def log_in(sender: Program, service: Service, way: str) -> None:
    """``minisend login work``, with the user's part in it."""
    known = set(service.devices)
    with subprocess.Popen(
        sender.command("minisend", "login", "work", way),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if way == "--browser" and line.startswith("    https://"):
                context = ssl.create_default_context(cafile=str(service.ca_file))
                with urllib.request.urlopen(line.strip(), context=context, timeout=20) as page:
                    assert page.read().startswith(b"Done.")
                break
            if way == "--device" and line.startswith("Waiting for "):
                (new,) = set(service.devices) - known
                service.decisions[service.devices[new]["user_code"]] = (USER, True)
                break
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out.splitlines()[-1:], err) == (
        0,
        [f"Logged in as {USER}; tokens kept in {sender.config.parent}/state/work.json"],
        "",
    )


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize("way", ["--device", "--browser"])
def test_a_user_logs_in_and_mail_goes_out(
    tmp_path: Path, service: Service, mailbox: Mailbox, way: str, mechanism: str
) -> None:
    more = f'{USER_LOGIN}\nauth = "{mechanism.lower()}"'
    sender = program(tmp_path, service, mailbox, more)
    assert sender.flush()[0] == 75
    assert mailbox.seen == []
    log_in(sender, service, way)
    # The notice that there is no token waited with it.
    assert sender.flush("--all") == (0, "2 delivered, 0 waiting, 0 failed")
    # Over one connection or two.
    assert set(mailbox.seen) == {(mechanism, service.granted[0])}
    assert sorted(mailbox.messages) == [
        ("<>", ["admin@other.test"], b"Mail waits: there is no access token ([smarthosts.work])"),
        ("me@here.test", ["bob@x.test"], b"first"),
    ]


def robot(directory: Path, service: Service) -> str:
    service.clients["robot"] = Registered("robot", secret="hush hush")
    path = directory / "secret"
    path.write_text("hush hush\n")
    path.chmod(0o600)
    return (
        'oauth2_grant = "client_credentials"\noauth2_client_id = "robot"\n'
        f'oauth2_client_secret_file = "{path}"'
    )


def account(directory: Path, service: Service) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    service.clients["robot@project"] = Registered("robot@project", key=public)
    path = directory / "key.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return (
        'oauth2_grant = "service_account"\noauth2_client_id = "robot@project"\n'
        f'oauth2_service_account_file = "{path}"'
    )


@pytest.mark.parametrize("grant", [robot, account], ids=["client credentials", "service account"])
def test_a_server_needs_no_user(
    tmp_path: Path, service: Service, mailbox: Mailbox, grant: Any
) -> None:
    sender = program(tmp_path, service, mailbox, grant(tmp_path, service))
    done = sender.run("minisend", "login", "work")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"The service gives tokens for {USER}; no login is needed.\n".encode(),
        b"",
    )
    assert sender.flush() == (0, "1 delivered, 0 waiting, 0 failed")
    assert mailbox.seen == [("OAUTHBEARER", service.granted[0])]
    assert [message[2] for message in mailbox.messages] == [b"first"]
    # Kept for the next run; no second one was asked for.
    assert len(service.granted) == 1


def test_a_token_that_is_revoked_and_then_the_login_too(
    tmp_path: Path, service: Service, mailbox: Mailbox
) -> None:
    """A new one within the same run; then one notice, by another way, and everything goes out after a login."""
    with ScriptedServer() as elsewhere:
        route = f'[[route]]\nrecipient = "other.test"\nvia = "[127.0.0.1]:{elsewhere.port}"\n'
        sender = program(tmp_path, service, mailbox, USER_LOGIN, route)
        log_in(sender, service, "--browser")
        mailbox.revoked = set(service.granted)
        assert sender.flush() == (0, "1 delivered, 0 waiting, 0 failed")
        assert [token for _, token in mailbox.seen] == service.granted
        assert len(service.granted) == 2

        mailbox.revoked = set(service.granted)
        service.refresh_tokens.clear()
        for name in ("a", "b", "c"):
            sender.sendmail(f"{name}@x.test", stdin=b"Subject: later\n\n")
        assert sender.flush()[0] == 75
        assert sender.flush("--all") == (75, "0 delivered, 3 waiting, 0 failed")
        (notice,) = elsewhere.messages
        assert (notice.sender, notice.recipients) == (b"", (b"admin@other.test",))
        assert b"invalid_grant: run: minisend login work" in b" ".join(notice.octets.split())
        told = notice.octets + sender.run("minisend", "queue", "--json").stdout
        assert not any(token.encode() in told for token in service.granted)

        log_in(sender, service, "--browser")
        assert sender.flush("--all") == (0, "3 delivered, 0 waiting, 0 failed")
        assert len(elsewhere.messages) == 1
        assert [message[2] for message in mailbox.messages] == [b"first", *[b"later"] * 3]


def test_several_processes_ask_for_one_token(
    tmp_path: Path, service: Service, mailbox: Mailbox
) -> None:
    """And the dialogue that one of them shows has no token in it."""
    sender = program(tmp_path, service, mailbox, robot(tmp_path, service))
    for number in range(6):
        sender.sendmail(f"b{number}@x.test", stdin=b"Subject: more\n\n")
    flushes = [
        subprocess.Popen(
            sender.command("minisend", "flush", "-v"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
        )
        for _ in range(3)
    ]
    said = b"".join(flush.communicate(timeout=60)[0] for flush in flushes)
    assert len(mailbox.messages) == 7
    assert len(service.granted) == 1
    assert {token for _, token in mailbox.seen} == set(service.granted)
    assert b"C: AUTH OAUTHBEARER ***" in said
    (token,) = service.granted
    for form in (token.encode(), base64.b64encode(token.encode())[4:20], b"hush"):
        assert form not in said
