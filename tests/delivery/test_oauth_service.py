"""minisend.delivery.oauth with a real service: every grant and both logins, up to the token that a session gets."""

import base64
import errno
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from delivery.authorization_server import USER, Registered, Service

import minisend
from minisend.config.sections import Smarthost
from minisend.delivery.oauth import browser, device
from minisend.delivery.oauth.access import access_token
from minisend.delivery.oauth.client import Client
from minisend.delivery.oauth.failure import LoginNeeded, OAuthError, Rejected
from minisend.delivery.oauth.store import Store, Tokens
from minisend.delivery.secrets import credentials

EUID = os.geteuid()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as running:
        yield running


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "work.json"


def smarthost(service: Service, token_file: Path, **values: object) -> Smarthost:
    defaults: dict[str, object] = {
        "username": USER,
        "oauth2_client_id": "minisend",
        "oauth2_token_endpoint": service.base + "/token",
        "oauth2_device_endpoint": service.base + "/device",
        "oauth2_auth_endpoint": service.base + "/authorize",
        "oauth2_scope": "smtp offline",
        "oauth2_ca_file": str(service.ca_file),
        "oauth2_token_file": str(token_file),
    }
    return Smarthost(("smtp.example.org",), **(defaults | values))


def client(host: Smarthost) -> Client:
    return Client(host, "work", {}, EUID)


def keep(host: Smarthost, tokens: Tokens) -> None:
    """As a login does."""
    with Store(client(host).token_file, EUID, create=True) as store:
        with store.locked(0, lambda _: None) as held, store.replacement() as replacement:
            assert held
            store.write(replacement, tokens, client(host).binding())


def kept(path: Path) -> dict[str, object]:
    assert path.stat().st_mode & 0o7777 == 0o600
    found: dict[str, object] = json.loads(path.read_text())
    return found


def failure(call: object, kind: type[OAuthError] = OAuthError) -> str:
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "rt-" not in told and "at-" not in told and "hush" not in told
    return str(caught.value)


# -- grants --------------------------------------------------------------------------------------


def test_refresh_rotates_and_is_kept(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file)
    first = service.give_refresh_token()
    keep(host, Tokens("old", first, 0, 0))

    got = access_token(host, {}, EUID, name="work", clock=lambda: 1000.0)
    assert got.decode() == service.granted[0]
    (second,) = service.refresh_tokens
    assert second != first
    assert kept(token_file) == {
        "for": {
            "account": USER,
            "client_id": "minisend",
            "grant": "refresh",
            "scope": "smtp offline",
            "token_endpoint": service.base + "/token",
        },
        "access_token": service.granted[0],
        "refresh_token": second,
        "renew_at": 4300.0,
        "expires_at": 4600.0,
        "failed_at": 0,
    }
    assert service.requests == [
        (
            "/token",
            {"grant_type": "refresh_token", "refresh_token": first, "client_id": "minisend"},
        )
    ]
    # Not due: nobody is asked.  Due: the rotated one is what is shown.
    assert access_token(host, {}, EUID, name="work", clock=lambda: 4299.0) == got
    assert len(service.requests) == 1
    assert access_token(host, {}, EUID, name="work", clock=lambda: 4300.0) != got
    assert service.requests[1][1]["refresh_token"] == second


def test_rejected_by_the_smtp_server(service: Service, token_file: Path) -> None:
    """Two sessions hear 535 to the same token: one new token serves both."""
    host = smarthost(service, token_file)
    keep(host, Tokens("old", service.give_refresh_token(), 1e12, 1e12))
    assert access_token(host, {}, EUID, name="work") == b"old"
    new = access_token(host, {}, EUID, name="work", rejected=b"old")
    assert access_token(host, {}, EUID, name="work", rejected=b"old") == new
    assert service.granted == [new.decode()]


def test_void_refresh_token(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file)
    keep(host, Tokens("old", "rt-void", 0, 0))
    assert failure(lambda: access_token(host, {}, EUID, name="work"), LoginNeeded) == (
        f"[smarthosts.work] oauth2: {urlsplit(service.base).netloc}: invalid_grant: run: minisend login work"
    )
    assert kept(token_file)["refresh_token"] == "rt-void"


def test_unknown_client(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file, oauth2_client_id="who")
    keep(host, Tokens("old", service.give_refresh_token(), 0, 0))
    with pytest.raises(Rejected) as caught:
        access_token(host, {}, EUID)
    assert caught.value.code == "invalid_client"
    assert str(caught.value) == (
        f"[smarthost] oauth2: {urlsplit(service.base).netloc}: invalid_client: "
        "The client does not exist on this server."
    )


def test_many_sessions_ask_once(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file)
    keep(host, Tokens("old", service.give_refresh_token(), 0, 0))
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: got.append(access_token(host, {}, EUID))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [service.granted[0].encode()] * 8
    assert len(service.requests) == 1


def test_client_credentials(service: Service, token_file: Path, tmp_path: Path) -> None:
    service.clients["robot"] = Registered("robot", secret="hush hush")
    secret = tmp_path / "secret"
    secret.write_text("hush hush\n")
    secret.chmod(0o600)
    host = smarthost(
        service,
        token_file,
        oauth2_grant="client_credentials",
        oauth2_client_id="robot",
        oauth2_client_secret_file=str(secret),
    )
    got = access_token(host, {}, EUID)
    assert [got.decode()] == service.granted
    assert service.requests == [
        (
            "/token",
            {
                "grant_type": "client_credentials",
                "scope": "smtp offline",
                "client_id": "robot",
                "client_secret": "hush hush",
            },
        )
    ]
    assert "hush" not in token_file.read_text()
    # The next needs neither the service nor the secret.
    secret.unlink()
    assert access_token(host, {}, EUID) == got

    secret.write_text("hush wrong\n")
    secret.chmod(0o600)
    assert "invalid_client" in failure(lambda: access_token(host, {}, EUID, rejected=got), Rejected)
    secret.chmod(0o644)
    assert failure_of_mode(host, got) == (
        "[smarthost] oauth2_client_secret_file: mode 0644 lets every user in: "
        "chmod o= it, or set secret_mode_check = false"
    )


@pytest.mark.parametrize("method", ["post", "basic"])
def test_the_one_way_in_which_the_service_wants_the_secret(
    service: Service, token_file: Path, tmp_path: Path, method: str
) -> None:
    """Of all that asks with it; the wrong way is refused."""
    service.clients["robot"] = Registered(
        "robot", secret="hush-hush", method=f"client_secret_{method}"
    )
    secret = tmp_path / "secret"
    secret.write_text("hush-hush\n")
    secret.chmod(0o600)
    values: dict[str, object] = {
        "oauth2_client_id": "robot",
        "oauth2_client_secret_file": str(secret),
        "oauth2_client_auth": method,
    }
    robot = smarthost(service, token_file, oauth2_grant="client_credentials", **values)
    assert [access_token(robot, {}, EUID).decode()] == service.granted

    ann = smarthost(service, token_file, **values)
    invited: list[device.Invitation] = []

    def allow(seconds: float) -> None:
        service.decisions[invited[0].code] = (USER, True)

    tokens = device.log_in(client(ann), invited.append, wait=allow)
    keep(ann, Tokens("old", tokens.refresh_token, 0, 0))
    assert access_token(ann, {}, EUID).decode() == service.granted[2]
    shown = {"client_id": "robot", "client_secret": "hush-hush"} if method == "post" else {}
    assert [
        {key: form[key] for key in form if key.startswith("client_")}
        for _, form in service.requests
    ] == [shown] * 4

    values["oauth2_client_auth"] = "basic" if method == "post" else "post"
    token_file.unlink()
    wrong = smarthost(service, token_file, oauth2_grant="client_credentials", **values)
    assert "invalid_client" in failure(lambda: access_token(wrong, {}, EUID), Rejected)


def failure_of_mode(host: Smarthost, rejected: bytes) -> str:
    from minisend.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        access_token(host, {}, EUID, rejected=rejected)
    return str(caught.value).replace(f" {host.oauth2_client_secret_file}:", "")


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def unsigned(jwt: str) -> list[dict[str, Any]]:
    """Header and claims."""
    return [
        json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        for part in jwt.split(".")[:2]
    ]


@pytest.mark.parametrize("form", ["json", "pem"])
def test_service_account(
    service: Service, token_file: Path, tmp_path: Path, key: rsa.RSAPrivateKey, form: str
) -> None:
    """The service checks signature, issuer, audience, subject and times."""
    service.clients["robot@project"] = Registered("robot@project", key=public_pem(key))
    path = tmp_path / "account"
    path.write_bytes(
        pem(key)
        if form == "pem"
        else json.dumps(
            {
                "type": "service_account",
                "client_email": "robot@project",
                "private_key_id": "k1",
                "private_key": pem(key).decode(),
                "token_uri": "https://elsewhere.example/token",
            }
        ).encode()
    )
    path.chmod(0o600)
    host = smarthost(
        service,
        token_file,
        oauth2_grant="service_account",
        oauth2_client_id="robot@project" if form == "pem" else "",
        oauth2_service_account_file=str(path),
    )
    assert [access_token(host, {}, EUID).decode()] == service.granted
    ((_, fields),) = service.requests
    header, claims = unsigned(fields.pop("assertion"))
    kid = {"kid": "k1"} if form == "json" else {}
    assert header == {"alg": "RS256", "typ": "JWT", **kid}
    assert claims.pop("exp") - claims.pop("iat") == 3600
    assert len(claims.pop("jti")) >= 16
    assert claims == {
        "iss": "robot@project",
        "sub": USER,
        "aud": service.base + "/token",
        "scope": "smtp offline",
    }
    assert fields == {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "scope": "smtp offline",
    }
    host.username = "bob@example.org"
    assert failure(lambda: access_token(host, {}, EUID), Rejected) == (
        f"[smarthost] oauth2: {urlsplit(service.base).netloc}: invalid_grant: "
        "Invalid 'sub' value in assertion"
    )


def test_service_account_as_packages_start_it(
    service: Service, token_file: Path, tmp_path: Path, key: rsa.RSAPrivateKey
) -> None:
    """By python3 -S, which does not see the package that signs."""
    service.clients["robot@project"] = Registered("robot@project", key=public_pem(key))
    account = tmp_path / "account"
    account.write_bytes(pem(key))
    account.chmod(0o600)
    configuration = tmp_path / "config.toml"
    configuration.write_text(
        f"""[spool]
path = "{tmp_path}/spool"
[smarthost]
host = "smtp.example.org"
username = "{USER}"
oauth2_grant = "service_account"
oauth2_client_id = "robot@project"
oauth2_service_account_file = "{account}"
oauth2_token_endpoint = "{service.base}/token"
oauth2_scope = "smtp"
oauth2_ca_file = "{service.ca_file}"
oauth2_token_file = "{token_file}"
"""
    )
    start = (
        f"import sys; sys.path.insert(0, {os.path.dirname(os.path.dirname(minisend.__file__))!r});"
        "from minisend.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", start, "-C", str(configuration), "login"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"The service gives tokens for {USER}; no login is needed.\n",
        "",
    )


def test_the_session_gets_a_token(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file)
    keep(host, Tokens("at-1", service.give_refresh_token(), 1e12, 1e12))
    found = credentials(host, {}, EUID)
    assert found is not None
    assert (found.username, found.password, found.token) == (USER.encode(), b"", b"at-1")
    assert "at-1" not in repr(found)
    found = credentials(host, {}, EUID, rejected=b"at-1")
    assert found is not None
    assert [found.token.decode()] == service.granted


def test_untrusted_certificate(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file, oauth2_ca_file="")
    keep(host, Tokens("old", service.give_refresh_token(), 0, 0))
    assert failure(lambda: access_token(host, {}, EUID)) == (
        f"[smarthost] oauth2: {urlsplit(service.base).netloc}: certificate does not hold: "
        "unable to get local issuer certificate"
    )
    host.oauth2_ca_file = "/nowhere.pem"
    assert failure(lambda: access_token(host, {}, EUID)).startswith(
        "[smarthost] oauth2_ca_file: /nowhere.pem: No such file or directory"
    )
    assert service.requests == []


# -- the device flow -----------------------------------------------------------------------------


class Person:
    """Looks at what is shown, and decides after so many waits; its time goes by only while somebody waits."""

    def __init__(self, service: Service, *, after: int, allow: bool = True) -> None:
        self._service = service
        self._after = after
        self._allow = allow
        self.shown: list[device.Invitation] = []
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) == self._after:
            self._service.decisions[self.shown[0].code] = (USER, self._allow)

    def clock(self) -> float:
        return 1000.0 + sum(self.waits)


def log_in(host: Smarthost, person: Person) -> Tokens:
    return device.log_in(
        client(host), person.shown.append, clock=person.clock, timer=person.clock, wait=person.wait
    )


def test_device_flow(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file)
    service.polls_too_fast = [False, True]
    person = Person(service, after=3)
    tokens = log_in(host, person)
    ((device_code, asked),) = service.devices.items()
    assert person.shown == [(service.base + "/activate", asked["user_code"], 1800)]
    assert person.waits == [5.0, 5.0, 10.0]
    (refresh_token,) = service.refresh_tokens
    assert (tokens.access_token, tokens.refresh_token) == (service.granted[0], refresh_token)
    assert (tokens.renew_at, tokens.expires_at) == (1020 + 3300, 1020 + 3600)
    assert service.requests == [
        ("/device", {"client_id": "minisend", "scope": "smtp offline"}),
        *(
            (
                "/token",
                {
                    "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
                    "device_code": device_code,
                    "client_id": "minisend",
                },
            ),
        )
        * 3,
    ]


@pytest.mark.parametrize("step", [86400.0, -86400.0], ids=["forward", "back"])
def test_device_flow_while_the_clock_is_set(
    service: Service, token_file: Path, step: float
) -> None:
    """Neither given up too early nor waited for too long; a token's life is by the clock as it is then."""
    host = smarthost(service, token_file)
    person = Person(service, after=2)
    now = [100_000.0]

    def wait(seconds: float) -> None:
        person.wait(seconds)
        now[0] += seconds + step

    tokens = device.log_in(
        client(host),
        person.shown.append,
        clock=lambda: now[0],
        timer=person.clock,
        wait=wait,
    )
    assert person.waits == [5.0, 5.0]
    assert tokens.expires_at == 100_000 + 10 + 2 * step + 3600


def test_device_flow_denied(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file)
    person = Person(service, after=1, allow=False)
    assert failure(lambda: log_in(host, person)).endswith(": the user did not allow it")


def test_device_flow_expired_there(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file)
    person = Person(service, after=0)

    def late(seconds: float) -> None:
        for asked in service.devices.values():
            asked["expires_at"] = 0

    assert failure(
        lambda: device.log_in(
            client(host), person.shown.append, clock=person.clock, timer=person.clock, wait=late
        )
    ) == ("[smarthosts.work] oauth2: the code was not entered in time: run: minisend login work")


def test_device_flow_expired_here(
    service: Service, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked no longer than the code is good for, whatever the service says."""
    monkeypatch.setattr("delivery.authorization_server._Device.EXPIRES_IN", 31)
    host = smarthost(service, token_file)
    person = Person(service, after=0)
    assert failure(lambda: log_in(host, person)).endswith(
        "the code was not entered in time: run: minisend login work"
    )
    assert person.waits == [5.0] * 6


# -- the browser flow ----------------------------------------------------------------------------


class Browser:
    """Opens the page that is shown, in a thread of its own; what it saw is in ``seen``."""

    def __init__(self, service: Service, *, before: tuple[str, ...] = (), hint: str = "") -> None:
        self._context = ssl.create_default_context(cafile=str(service.ca_file))
        self._before = before
        self._hint = hint
        self.seen: list[tuple[int, str]] = []
        self.page = ""
        self._thread: threading.Thread | None = None

    def show(self, page: str) -> None:
        self.page = page + (f"&login_hint={self._hint}" if self._hint else "")
        self._thread = threading.Thread(target=self._browse)
        self._thread.start()

    def _browse(self) -> None:
        asked = dict(parse_qsl(urlsplit(self.page).query))
        for path in self._before:
            self._get(asked["redirect_uri"] + path.replace("STATE", asked["state"]))
        self._get(self.page)

    def _get(self, url: str) -> None:
        try:
            with urllib.request.urlopen(url, context=self._context, timeout=10) as answer:
                self.seen.append((answer.status, answer.read().decode()))
        except urllib.error.HTTPError as error:
            self.seen.append((error.code, error.read().decode()))
            error.close()

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join()


DONE = (200, "Done. You can close this window and go back to the terminal.\n")
NOTHING = (404, "Nothing here.\n")


def test_browser_flow(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file)
    user = Browser(service)
    tokens = browser.log_in(client(host), user.show, clock=lambda: 1000.0, deadline=20)
    user.join()
    assert user.seen == [DONE]
    assert [tokens.access_token] == service.granted
    assert [tokens.refresh_token] == list(service.refresh_tokens)
    (_, asked), (_, fields) = service.requests
    assert user.page.startswith(service.base + "/authorize?response_type=code&")
    state, challenge = asked.pop("state"), asked.pop("code_challenge")
    assert len(state) >= 43 and len(challenge) == 43
    redirect = asked["redirect_uri"]
    assert asked == {
        "response_type": "code",
        "client_id": "minisend",
        "redirect_uri": redirect,
        "code_challenge_method": "S256",
        "scope": "smtp offline",
    }
    assert 43 <= len(fields.pop("code_verifier")) <= 128  # RFC 7636 section 4.1
    assert fields.pop("code")
    assert fields == {
        "grant_type": "authorization_code",
        "redirect_uri": redirect,
        "client_id": "minisend",
    }


def test_browser_flow_heeds_only_its_own_answer(service: Service, token_file: Path) -> None:
    strays = (
        "/favicon.ico",
        "/",
        "/?code=x",
        "/?code=x&state=y",
        "/?error=access_denied&state=",
        "/?state=STATE",
        "/?code=x&code=y&state=STATE",
        "/?code=x&error=y&state=STATE",
        "/other?code=x&state=STATE",
    )
    user = Browser(service, before=strays)
    tokens = browser.log_in(client(smarthost(service, token_file)), user.show, deadline=20)
    user.join()
    assert user.seen == [*[NOTHING] * len(strays), DONE]
    assert [tokens.access_token] == service.granted


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", (True, False)), ("localhost", (True, has_ipv6()))]
)
def test_whatever_a_browser_takes_the_name_for_is_ours(
    service: Service, token_file: Path, host: str, expected: tuple[bool, bool]
) -> None:
    """Else another user of this machine could be at [::1] and get the answer."""
    found: list[tuple[bool, bool]] = []
    asking = client(smarthost(service, token_file))
    asking.redirect_host = host

    def look(page: str) -> None:
        redirect = dict(parse_qsl(urlsplit(page).query))["redirect_uri"]
        port = urlsplit(redirect).port
        assert port is not None and redirect == f"http://{host}:{port}"
        found.append((listens("127.0.0.1", port), listens("::1", port)))

    failure(lambda: browser.log_in(asking, look, deadline=0.01))
    assert found == [expected]


def test_a_port_that_is_taken_at_one_of_the_two_is_not_used(
    service: Service, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = client(smarthost(service, token_file))
    asking.redirect_host = "localhost"
    taken: list[int] = []

    def refuse_first(answers: object, port: int) -> browser._Listener:
        taken.append(port)
        if len(taken) == 1:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return real(answers, port)  # type: ignore[arg-type]

    real = browser._Listener6
    monkeypatch.setattr(browser, "_Listener6", refuse_first)
    pages: list[str] = []
    failure(lambda: browser.log_in(asking, pages.append, deadline=0.01))
    redirect = dict(parse_qsl(urlsplit(pages[0]).query))["redirect_uri"]
    assert (len(taken), redirect) == (2, f"http://localhost:{taken[1]}")
    assert not listens("127.0.0.1", taken[0])

    def refuse(answers: object, port: int) -> browser._Listener:
        raise OSError(errno.EADDRNOTAVAIL, "no IPv6")

    monkeypatch.setattr(browser, "_Listener6", refuse)
    failure(lambda: browser.log_in(asking, pages.append, deadline=0.01))
    assert len(pages) == 2


def test_browser_flow_denied(service: Service, token_file: Path) -> None:
    user = Browser(service, hint="denied")
    host = smarthost(service, token_file)
    assert failure(lambda: browser.log_in(client(host), user.show, deadline=20), Rejected) == (
        "[smarthosts.work] oauth2: access_denied: The resource owner or authorization server denied the request"
    )
    user.join()
    assert user.seen == [DONE]


def test_browser_flow_nobody_comes(service: Service, token_file: Path) -> None:
    host = smarthost(service, token_file)
    assert (
        failure(lambda: browser.log_in(client(host), lambda page: None, deadline=0.01))
        == "[smarthosts.work] oauth2: nobody logged in within 0.01 s: run: minisend login work"
    )
