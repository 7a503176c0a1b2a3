"""minisend.delivery.oauth with a service in every kind of trouble, and with token files that are not as they should be."""

import fcntl
import json
import os
import socket
import sys
import threading
import traceback
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.config.sections import Smarthost
from minisend.delivery import policy
from minisend.delivery.oauth import browser, client, device, endpoint, grant
from minisend.delivery.oauth.access import access_token
from minisend.delivery.oauth.client import Client
from minisend.delivery.oauth.failure import LoginNeeded, OAuthError, Rejected, Unavailable
from minisend.delivery.oauth.store import Store, Tokens
from minisend.errors import ConfigError

EUID = os.geteuid()
USER = "ann@example.org"


class Script:
    """A server on 127.0.0.1 that answers one connection after the other with these octets, and closes.

    ``requests``  what it was sent, header and content
    """

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.name}/token?v=1"
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Script":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(self._request(connection))
                try:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
                except OSError:
                    pass

    @staticmethod
    def _request(connection: socket.socket) -> bytes:
        octets = b""
        while b"\r\n\r\n" not in octets:
            octets += connection.recv(65536)
        head, _, body = octets.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body


def answer(status: int, content: object) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


TOKEN = {"access_token": "at-new", "token_type": "Bearer", "expires_in": 3600}


def smarthost(url: str, path: Path, **values: object) -> Smarthost:
    defaults: dict[str, object] = {
        "username": USER,
        "oauth2_client_id": "minisend",
        "oauth2_token_endpoint": url,
        "oauth2_token_file": str(path),
    }
    return Smarthost(("smtp.example.org",), **(defaults | values))


def keep(host: Smarthost, tokens: Tokens) -> None:
    bound = Client(host, "", {}, EUID)
    with Store(bound.token_file, EUID, create=True) as store:
        with store.locked(0, lambda _: None) as held, store.replacement() as replacement:
            assert held
            store.write(replacement, tokens, bound.binding())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "oauth" / "smarthost.json"


def failure(call: object, kind: type[ConfigError] = OAuthError) -> str:
    """The one line of the error, with nothing secret in it or around it."""
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    assert type(caught.value) is kind
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
    assert not any(secret in told for secret in ("rt-old", "at-old", "at-new"))
    assert str(caught.value).isprintable()
    return str(caught.value)


# -- answers -------------------------------------------------------------------------------------


def test_the_request(path: Path) -> None:
    with Script([answer(200, TOKEN)]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "rt-old", 0, 0))
        assert access_token(host, {}, EUID) == b"at-new"
    assert server.requests == [
        b"POST /token?v=1 HTTP/1.1\r\nHost: %s\r\nAccept-Encoding: identity\r\nContent-Length: 64\r\n"
        b"Accept: application/json\r\nConnection: close\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
        b"grant_type=refresh_token&refresh_token=rt-old&client_id=minisend" % server.name.encode()
    ]
    # The service kept the refresh token as it was.
    assert json.loads(path.read_text())["refresh_token"] == "rt-old"


TROUBLE = [
    pytest.param(answer(500, b"oops"), "answered 500", id="500"),
    pytest.param(answer(503, {"error": "invalid_grant"}), "invalid_grant", id="503 with an error"),
    pytest.param(answer(429, b""), "answered 429", id="429"),
    pytest.param(
        answer(400, {"error": "temporarily_unavailable", "error_description": "later"}),
        "temporarily_unavailable: later",
        id="temporarily_unavailable",
    ),
    pytest.param(b"", "hung up without an answer", id="nothing"),
    pytest.param(b"220 mail.example.org ESMTP\r\n", "did not answer in HTTP", id="SMTP"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        "did not answer with a JSON object",
        id="cut",
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n{}",
        "did not answer in HTTP",
        id="headers",
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "did not answer in HTTP",
        id="chunks",
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 65537, "answered more than 65536 octets", id="huge"
    ),
    pytest.param(answer(200, b"<html>"), "did not answer with a JSON object", id="HTML"),
    pytest.param(answer(200, b"[" * 65000), "did not answer with a JSON object", id="deep"),
    pytest.param(answer(200, b"9" * 65000), "did not answer with a JSON object", id="long number"),
    pytest.param(answer(200, b'{"a":"\xff"}'), "did not answer with a JSON object", id="no UTF-8"),
    pytest.param(answer(200, [TOKEN]), "did not answer with a JSON object", id="list"),
]


@pytest.mark.parametrize(("octets", "why"), TROUBLE)
def test_trouble(path: Path, octets: bytes, why: str) -> None:
    """With a token that still holds it is used; without, the error is a temporary one."""
    with Script([octets, octets]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "rt-old", 1000, 1300))
        assert access_token(host, {}, EUID, clock=lambda: 1100.0) == b"at-old"
        assert failure(lambda: access_token(host, {}, EUID, clock=lambda: 1300.0), Unavailable) == (
            f"[smarthost] oauth2: {server.name}: {why}"
        )
    assert json.loads(path.read_text())["refresh_token"] == "rt-old"
    assert sorted(os.listdir(path.parent)) == ["smarthost.json", "smarthost.json.lock"]


UNUSABLE = [
    pytest.param({}, "the answer has no usable access_token", id="no token"),
    pytest.param(TOKEN | {"access_token": 1}, "the answer has no usable access_token", id="number"),
    pytest.param(
        TOKEN | {"access_token": "at-new\r\nRSET"},
        "the answer has no usable access_token",
        id="line end",
    ),
    pytest.param(
        TOKEN | {"access_token": "at-new\x01"}, "the answer has no usable access_token", id="^A"
    ),
    pytest.param(TOKEN | {"access_token": ""}, "the answer has no usable access_token", id="empty"),
    pytest.param(
        TOKEN | {"refresh_token": {}}, "the answer has no usable refresh_token", id="refresh token"
    ),
    pytest.param(TOKEN | {"token_type": "mac"}, "the answer has no bearer token", id="mac"),
    pytest.param(TOKEN | {"token_type": 7}, "the answer has no bearer token", id="type"),
]


@pytest.mark.parametrize(("content", "why"), UNUSABLE)
def test_unusable_answer(path: Path, content: object, why: str) -> None:
    with Script([answer(200, content)]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "rt-old", 0, 0))
        assert failure(lambda: access_token(host, {}, EUID), Unavailable) == (
            f"[smarthost] oauth2: {why}"
        )
    assert json.loads(path.read_text())["access_token"] == "at-old"


@pytest.mark.parametrize(
    ("lifetime", "renew_at", "expires_at"),
    [
        pytest.param(3600, 4300, 4600, id="an hour"),
        pytest.param("3600", 4300, 4600, id="in quotes"),
        pytest.param(3599.9, 4299, 4599, id="a fraction"),
        pytest.param(400, 1200, 1400, id="short"),
        pytest.param(1, 1000.5, 1001, id="a second"),
        pytest.param(1e300, 31623100, 31623400, id="for ever"),
        pytest.param(None, 4300, 4600, id="not said"),
        pytest.param(0, 4300, 4600, id="0"),
        pytest.param(-5, 4300, 4600, id="negative"),
        pytest.param(True, 4300, 4600, id="boolean"),
        pytest.param("9" * 50, 4300, 4600, id="long digits"),
        pytest.param([], 4300, 4600, id="list"),
        pytest.param(float("nan"), 4300, 4600, id="NaN"),
    ],
)
def test_lifetime(path: Path, lifetime: object, renew_at: float, expires_at: float) -> None:
    with Script([answer(200, TOKEN | {"expires_in": lifetime})]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "rt-old", 0, 0))
        access_token(host, {}, EUID, clock=lambda: 1000.0)
    found = json.loads(path.read_text())
    assert (found["renew_at"], found["expires_at"]) == (renew_at, expires_at)


@pytest.mark.parametrize(
    ("status", "content", "kind", "why"),
    [
        pytest.param(
            302,
            b"",
            OAuthError,
            "answered 302, a redirect: none is followed: set the endpoint's own URL",
            id="302",
        ),
        pytest.param(
            404, b"<html>", OAuthError, "answered 404: is this the right URL: {url}", id="404"
        ),
        pytest.param(204, b"", OAuthError, "answered 204: is this the right URL: {url}", id="204"),
        pytest.param(400, {"error": "invalid_scope"}, Rejected, "invalid_scope", id="scope"),
        pytest.param(
            400,
            {
                "error": "invalid_grant",
                "error_description": "gone\r\n\x1b[2Jrt-old at " + "x" * 500,
            },
            LoginNeeded,
            "invalid_grant: gone ?[2J*** at " + "x" * 184 + ": run: minisend login",
            id="what it says",
        ),
        pytest.param(
            400,
            {"error": "interaction_required"},
            LoginNeeded,
            "interaction_required: run: minisend login",
            id="interaction_required",
        ),
        pytest.param(
            400,
            {"error": "login_required"},
            LoginNeeded,
            "login_required: run: minisend login",
            id="login_required",
        ),
        pytest.param(
            400,
            {"error": "consent_required"},
            LoginNeeded,
            "consent_required: run: minisend login",
            id="consent_required",
        ),
        pytest.param(200, {"error": "invalid_client"}, Rejected, "invalid_client", id="200"),
        pytest.param(400, {"error": ["rt-old"]}, Rejected, '["***"]', id="list"),
    ],
)
def test_refusal(
    path: Path, status: int, content: object, kind: type[OAuthError], why: str
) -> None:
    with Script([answer(status, content)]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "rt-old", 0, 0))
        said = failure(lambda: access_token(host, {}, EUID), kind)
        assert said == f"[smarthost] oauth2: {server.name}: {why}".replace("{url}", server.url)


@pytest.mark.parametrize(
    "form", ["1//rt-old/x+y=", "1%2F%2Frt-old%2Fx%2By%3D", "1//rt-old/x%2By%3D"]
)
def test_a_token_that_is_repeated_as_it_was_sent(path: Path, form: str) -> None:
    """Google's refresh tokens have slashes: in a form they are not what they were."""
    content = {
        "error": "invalid_request",
        "error_description": f"bad form: a=b&refresh_token={form}&c",
    }
    with Script([answer(400, content)]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "1//rt-old/x+y=", 0, 0))
        assert failure(lambda: access_token(host, {}, EUID), Rejected) == (
            f"[smarthost] oauth2: {server.name}: invalid_request: bad form: a=b&refresh_token=***&c"
        )


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"", "empty: expected the password"),
        (b"\n", "empty: expected the password"),
        (b"one\ntwo\n", "holds a NUL or more than one line: expected the password alone"),
    ],
)
def test_a_client_secret_that_is_none(path: Path, tmp_path: Path, octets: bytes, why: str) -> None:
    """The service is not asked with an empty one, which some take for a public client."""
    secret = tmp_path / "secret"
    secret.write_bytes(octets)
    secret.chmod(0o600)
    with Script([]) as server:
        host = smarthost(
            server.url,
            path,
            oauth2_grant="client_credentials",
            oauth2_client_secret_file=str(secret),
        )
        assert failure(lambda: access_token(host, {}, EUID), ConfigError) == (
            f"[smarthost] oauth2_client_secret_file: {secret}: {why}"
        )
    assert server.requests == []


def test_a_client_secret_in_http_basic(path: Path, tmp_path: Path) -> None:
    """Name and secret are in the form's encoding before they are joined (RFC 6749 section 2.3.1), and told to nobody."""
    secret = tmp_path / "secret"
    secret.write_text("hush: hush/é%\n")
    secret.chmod(0o600)
    coded = b64encode(b"mini%3Asend:hush%3A+hush%2F%C3%A9%25").decode()
    said = {
        "error": "invalid_client",
        "error_description": f"Basic {coded}: hush%3A+hush%2F%C3%A9%25",
    }
    with Script([answer(401, said)]) as server:
        host = smarthost(
            server.url,
            path,
            oauth2_grant="client_credentials",
            oauth2_client_id="mini:send",
            oauth2_client_secret_file=str(secret),
            oauth2_client_auth="basic",
        )
        assert failure(lambda: access_token(host, {}, EUID), Rejected) == (
            f"[smarthost] oauth2: {server.name}: invalid_client: Basic ***: ***"
        )
    (request,) = server.requests
    head, _, form = request.partition(b"\r\n\r\n")
    assert f"Authorization: Basic {coded}".encode() in head.split(b"\r\n")
    assert form == b"grant_type=client_credentials"


def test_a_slow_server_meets_one_deadline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Octet by octet, each in time for a timeout by octet."""
    monkeypatch.setattr(endpoint, "DEADLINE", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                while not stop.wait(0.05):
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            except OSError:
                pass

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        name = f"127.0.0.1:{listener.getsockname()[1]}"
        host = smarthost(f"http://{name}/", path)
        keep(host, Tokens("at-old", "rt-old", 0, 0))
        assert failure(lambda: access_token(host, {}, EUID), Unavailable) == (
            f"[smarthost] oauth2: {name}: did not answer within 0.3 s"
        )
    finally:
        stop.set()
        thread.join()
        listener.close()


def test_nobody_there(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    host = smarthost(f"http://127.0.0.1:{port}/", path)
    keep(host, Tokens("at-old", "rt-old", 0, 0))
    assert failure(lambda: access_token(host, {}, EUID), Unavailable) == (
        f"[smarthost] oauth2: 127.0.0.1:{port}: Connection refused"
    )


def test_a_service_in_trouble_is_left_alone_for_a_minute(path: Path) -> None:
    with Script([answer(500, b""), answer(200, TOKEN)]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "rt-old", 1000, 1300))
        got = [access_token(host, {}, EUID, clock=lambda at=at: at) for at in (1100, 1159, 1160)]
    assert got == [b"at-old", b"at-old", b"at-new"]
    assert len(server.requests) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200)
    | st.builds(
        lambda head, body: b"HTTP/1.1 " + head + b"\r\n\r\n" + body,
        st.binary(max_size=80),
        st.binary(max_size=80),
    )
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=10),
        lambda inner: st.dictionaries(
            st.sampled_from(
                ["error", "error_description", "access_token", "token_type", "expires_in"]
            ),
            inner,
        ),
    ).map(lambda value: answer(200, value))
)
def test_any_answer(octets: bytes) -> None:
    """Tokens, or an OAuthError of one printable line: never another exception."""
    host = smarthost("http://127.0.0.1:1/", Path("/nowhere/x.json"))
    with Script([octets]) as server:
        host.oauth2_token_endpoint = server.url
        bound = Client(host, "", {}, EUID)
        try:
            tokens = grant.request(bound, {"refresh_token": "rt-old"}, 1000.0)
        except OAuthError as error:
            said = str(error)
        else:
            said = tokens.access_token
            assert 1000 < tokens.renew_at <= tokens.expires_at
    assert said.isprintable() and "rt-old" not in said


# -- the policy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [(LoginNeeded("run: minisend login"), "4.7.8"), (Unavailable("answered 503"), "4.7.0")],
)
def test_the_message_waits(error: OAuthError, status: str) -> None:
    verdict = policy.judge(0, error, at=1.0)
    assert (verdict.outcome.action, verdict.outcome.status, verdict.outcome.reason) == (
        "delayed",
        status,
        str(error),
    )
    assert (verdict.then, verdict.scope) == (policy.STOP, policy.SITE)


# -- the file ------------------------------------------------------------------------------------


def test_no_login_yet(path: Path) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    expected = f"no tokens of {USER} in {path}: run: minisend login"
    assert failure(lambda: access_token(host, {}, EUID), LoginNeeded) == expected
    assert not path.parent.exists()
    path.parent.mkdir()
    assert failure(lambda: access_token(host, {}, EUID, name="a"), LoginNeeded) == expected + " a"


@pytest.mark.parametrize(
    "change",
    [
        {"username": "bob@example.org"},
        {"oauth2_client_id": "other"},
        {"oauth2_scope": "more"},
        {"oauth2_token_endpoint": "http://127.0.0.1:2/"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_tokens_of_another_login_are_not_used(path: Path, change: dict[str, str]) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    keep(host, Tokens("at-old", "rt-old", 1e12, 1e12))
    assert access_token(host, {}, EUID) == b"at-old"
    for key, value in change.items():
        setattr(host, key, value)
    failure(lambda: access_token(host, {}, EUID), LoginNeeded)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_can_read(path: Path, mode: int) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    keep(host, Tokens("at-old", "rt-old", 1e12, 1e12))
    path.chmod(mode)
    assert failure(lambda: access_token(host, {}, EUID)) == (
        f"{path}: mode {mode:04o} lets others in: chmod go= it, and log in again if somebody may have read it"
    )


@pytest.mark.skipif(EUID != 0, reason="needs root to give a file away")
def test_a_file_of_another_user(path: Path) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    keep(host, Tokens("at-old", "rt-old", 1e12, 1e12))
    os.chown(path, 4711, 4711)
    assert failure(lambda: access_token(host, {}, EUID)) == (
        f"{path}: owned by uid 4711: expected uid 0, which delivers: log in as that user"
    )
    os.chown(path.parent, 4711, 4711)
    assert failure(lambda: access_token(host, {}, EUID)) == (
        f"{path.parent}: owned by uid 4711, mode 0700: "
        "expected the directory of tokens to be of uid 0, and writable by nobody else"
    )


def test_a_directory_that_others_can_write(path: Path) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    keep(host, Tokens("at-old", "rt-old", 1e12, 1e12))
    path.parent.chmod(0o770)
    assert failure(lambda: access_token(host, {}, EUID)).startswith(
        f"{path.parent}: owned by uid {EUID}, mode 0770: "
    )


def test_no_regular_file(path: Path) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    path.parent.mkdir()
    os.mkfifo(path, 0o600)
    assert failure(lambda: access_token(host, {}, EUID)) == (
        f"{path}: not a regular file: remove it and log in again"
    )
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert failure(lambda: access_token(host, {}, EUID)) == (
        f"{path}: cannot keep tokens there: Too many levels of symbolic links"
    )


GOOD = {
    "access_token": "a",
    "refresh_token": "",
    "renew_at": 1,
    "expires_at": 2,
    "failed_at": 0,
}


@pytest.mark.parametrize(
    "change",
    [
        {"access_token": None},
        {"access_token": "a b"},
        {"refresh_token": 5},
        {"renew_at": "1"},
        {"expires_at": None},
        {"failed_at": []},
    ],
    ids=str,
)
def test_a_broken_file(path: Path, change: dict[str, object]) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    path.parent.mkdir()
    bound = Client(host, "", {}, EUID).binding()
    for content in (json.dumps({"for": bound, **GOOD, **change}), "", "[", "[]", "{}", "\xff"):
        path.write_text(content)
        path.chmod(0o600)
        assert failure(lambda: access_token(host, {}, EUID)) == (
            f"{path}: not a file with tokens: remove it and log in again"
        )


def test_nothing_is_asked_when_the_answer_could_not_be_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotated refresh token that meets a full disk would be the end of the login."""
    with Script([answer(200, TOKEN)]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "rt-old", 0, 0))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            assert failure(lambda: access_token(host, {}, EUID)) == (
                f"{path}: cannot keep tokens there: No space left on device"
            )
        assert server.requests == []
        assert sorted(os.listdir(path.parent)) == ["smarthost.json", "smarthost.json.lock"]


def test_on_the_disk_before_it_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, its name, its directory, in this order; a failure on the way leaves the old file or the new one."""
    calls: list[str] = []
    with Script([answer(200, TOKEN | {"refresh_token": "rt-2"})]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "rt-old", 0, 0))
        for name in ("fsync", "rename"):
            real = getattr(os, name)

            def spied(
                *args: object, _name: str = name, _real: object = real, **more: object
            ) -> object:
                calls.append(_name)
                return _real(*args, **more)  # type: ignore[operator]

            monkeypatch.setattr(os, name, spied)
        assert access_token(host, {}, EUID) == b"at-new"
    assert calls == ["fsync", "rename", "fsync"]
    assert json.loads(path.read_text())["refresh_token"] == "rt-2"


def test_a_file_half_written_by_a_crash_is_replaced(path: Path) -> None:
    with Script([answer(200, TOKEN)]) as server:
        host = smarthost(server.url, path)
        keep(host, Tokens("at-old", "rt-old", 0, 0))
        (path.parent / "smarthost.json.new").write_text("{")
        assert access_token(host, {}, EUID) == b"at-new"
    assert sorted(os.listdir(path.parent)) == ["smarthost.json", "smarthost.json.lock"]


# -- the lock ------------------------------------------------------------------------------------


@pytest.fixture
def other(path: Path) -> Iterator[int]:
    """Another process renews: it has the lock."""
    path.parent.mkdir(mode=0o700)
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield fd
    os.close(fd)


def write_under(path: Path, host: Smarthost, tokens: Tokens) -> None:
    """What the holder of the lock does."""
    bound = Client(host, "", {}, EUID)
    with Store(str(path), EUID, create=False) as store, store.replacement() as replacement:
        store.write(replacement, tokens, bound.binding())


def test_while_another_renews_a_valid_token_is_used(path: Path, other: int) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    write_under(path, host, Tokens("at-old", "rt-old", 1000, 1300))
    waits: list[float] = []
    got = access_token(host, {}, EUID, clock=lambda: 1100.0, wait=waits.append)
    assert (got, waits) == (b"at-old", [])


def test_an_expired_one_waits_for_what_another_gets(path: Path, other: int) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    write_under(path, host, Tokens("at-old", "rt-old", 0, 0))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            write_under(path, host, Tokens("at-other", "rt-other", 1e12, 1e12))
            fcntl.flock(other, fcntl.LOCK_UN)

    assert access_token(host, {}, EUID, wait=wait) == b"at-other"
    assert waits == [0.1] * 3


def test_not_for_ever(path: Path, other: int) -> None:
    host = smarthost("http://127.0.0.1:1/", path)
    write_under(path, host, Tokens("at-old", "rt-old", 0, 0))
    waits: list[float] = []
    assert failure(lambda: access_token(host, {}, EUID, wait=waits.append), Unavailable) == (
        "[smarthost] oauth2: another process has been asking for a token for 90 s"
    )
    assert sum(waits) == pytest.approx(90, abs=0.2)


# -- the client ----------------------------------------------------------------------------------


def endpoints(found: Client) -> tuple[str, ...]:
    return (found.token_endpoint, found.device_endpoint, found.auth_endpoint, found.scope)


def test_presets() -> None:
    at = "https://login.microsoftonline.com/common/oauth2/v2.0"
    base = {"username": USER, "oauth2_client_id": "c", "oauth2_token_file": "/t/x.json"}
    host = Smarthost(("a",), **base, oauth2_provider="microsoft365")
    assert endpoints(Client(host, "", {}, EUID)) == (
        f"{at}/token",
        f"{at}/devicecode",
        f"{at}/authorize",
        "https://outlook.office.com/SMTP.Send offline_access",
    )
    host.oauth2_tenant = "example.org"
    host.oauth2_grant = "client_credentials"
    found = Client(host, "", {}, EUID)
    assert (found.token_endpoint, found.scope) == (
        f"{at.replace('common', 'example.org')}/token",
        "https://outlook.office365.com/.default",
    )
    host = Smarthost(("a",), **base, oauth2_provider="google")
    found = Client(host, "", {}, EUID)
    assert endpoints(found) == (
        "https://oauth2.googleapis.com/token",
        "",
        "https://accounts.google.com/o/oauth2/v2/auth",
        "https://mail.google.com/",
    )
    assert found.auth_parameters == {
        "access_type": "offline",
        "prompt": "consent",
        "login_hint": USER,
    }
    assert found.login_command == "minisend login"
    host.oauth2_token_endpoint, host.oauth2_scope = "https://t.example/", "s"
    found = Client(host, "work", {}, EUID)
    assert (found.token_endpoint, found.scope, found.login_command) == (
        "https://t.example/",
        "s",
        "minisend login work",
    )


def test_where_tokens_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Smarthost(("a",), username=USER, oauth2_provider="google")
    system = tmp_path / "var"
    system.mkdir()
    monkeypatch.setattr(client, "SYSTEM_STATE", str(system))
    xdg = {b"XDG_STATE_HOME": b"/state"}
    assert (
        Client(host, "", xdg, system.stat().st_uid).token_file == f"{system}/oauth/smarthost.json"
    )
    assert Client(host, "work", xdg, 4711).token_file == "/state/minisend/oauth/work.json"
    for name, table in (("", "[smarthost]"), ("work", "[smarthosts.work]")):
        assert failure(lambda name=name: Client(host, name, {}, 4711)) == (
            f"{table} oauth2_token_file: uid 4711 has no home directory: set it"
        )


def service_account(path: Path, content: bytes, **values: object) -> Smarthost:
    account = path.parent.parent / "account"
    account.write_bytes(content)
    account.chmod(0o600)
    return smarthost(
        "http://127.0.0.1:1/",
        path,
        oauth2_grant="service_account",
        oauth2_service_account_file=str(account),
        **values,
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{}", "expected a key file with client_email and private_key"),
        (b"{", "expected a key file with client_email and private_key"),
        (
            b'{"client_email": 1, "private_key": "x"}',
            "expected a key file with client_email and private_key",
        ),
        (
            b'{"client_email": "a@b", "private_key": "x"}',
            "expected an RSA private key in PEM form, without passphrase",
        ),
        (b"x", "expected an RSA private key in PEM form, without passphrase"),
    ],
)
def test_unusable_key(path: Path, content: bytes, why: str) -> None:
    host = service_account(path, content)
    assert failure(lambda: access_token(host, {}, EUID)) == (
        f"[smarthost] oauth2_service_account_file: {why}"
    )


def test_a_bare_key_needs_an_issuer(path: Path) -> None:
    host = service_account(path, b"x", oauth2_client_id="")
    assert failure(lambda: access_token(host, {}, EUID)) == (
        "[smarthost] oauth2_service_account_file: a PEM file does not say whose it is: set oauth2_client_id"
    )


def test_without_cryptography(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.hashes", None)
    host = service_account(path, b"x")
    assert failure(lambda: access_token(host, {}, EUID)) == (
        "[smarthost] oauth2_service_account_file: signing needs the Python package cryptography: "
        "install it (python3-cryptography, or minisend[oauth])"
    )


# -- logins --------------------------------------------------------------------------------------

INVITATION = {
    "device_code": "dc",
    "user_code": "AB-CD",
    "verification_uri": "https://login.example/",
    "expires_in": 60,
    "interval": 5,
}


def device_login(answers: Sequence[bytes]) -> tuple[Tokens | str, list[float], int]:
    """What came of it, the waits, how many were shown something."""
    shown: list[object] = []
    waits: list[float] = []
    with Script(answers) as server:
        host = smarthost(server.url, Path("/nowhere/x.json"), oauth2_device_endpoint=server.url)
        try:
            result: Tokens | str = device.log_in(
                Client(host, "", {}, EUID),
                shown.append,
                clock=lambda: sum(waits),
                timer=lambda: sum(waits),
                wait=waits.append,
            )
        except OAuthError as error:
            result = str(error).replace(f" {server.name}:", "")
    return result, waits, len(shown)


def test_device_flow_backs_off_while_the_service_is_in_trouble() -> None:
    pending = answer(400, {"error": "authorization_pending"})
    got, waits, _ = device_login(
        [answer(200, INVITATION), answer(503, b""), b"", pending, answer(200, TOKEN)]
    )
    assert isinstance(got, Tokens)
    assert (got.access_token, waits) == ("at-new", [5, 10, 20, 20])


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("access_denied", "access_denied: the user did not allow it"),
        ("authorization_declined", "authorization_declined: the user did not allow it"),
        ("expired_token", "the code was not entered in time: run: minisend login"),
        ("invalid_client", "invalid_client"),
    ],
)
def test_device_flow_ends_with_what_no_wait_will_change(code: str, why: str) -> None:
    pending = answer(400, {"error": "authorization_pending"})
    refused = answer(400, {"error": code})
    assert device_login([answer(200, INVITATION), pending, refused]) == (
        f"[smarthost] oauth2: {why}",
        [5, 5],
        1,
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"device_code": None}, "[smarthost] oauth2: the answer has no usable device_code"),
        ({"user_code": "A\x1b[2J"}, "[smarthost] oauth2: the answer has no usable user_code"),
        (
            {"verification_uri": "javascript:x"},
            "[smarthost] oauth2: the answer has no usable verification_uri",
        ),
        ({"error": "unauthorized_client"}, "[smarthost] oauth2: unauthorized_client"),
    ],
)
def test_device_flow_with_an_unusable_invitation(change: dict[str, object], why: str) -> None:
    assert device_login([answer(200, INVITATION | change)]) == (why, [], 0)


def test_google_calls_the_page_a_url() -> None:
    invitation = {k: v for k, v in INVITATION.items() if k != "verification_uri"}
    invitation |= {"verification_url": "https://www.google.com/device", "interval": "x"}
    got, waits, shown = device_login([answer(200, invitation), answer(200, TOKEN)])
    assert isinstance(got, Tokens)
    assert (waits, shown) == ([5], 1)


def test_a_login_that_the_service_does_not_have() -> None:
    bound = Client(smarthost("https://t.example/", Path("/t/x.json")), "", {}, EUID)
    assert failure(lambda: device.log_in(bound, print)) == (
        "[smarthost] oauth2_device_endpoint: expected a URL, or a login with --browser"
    )
    assert failure(lambda: browser.log_in(bound, print)) == (
        "[smarthost] oauth2_auth_endpoint: expected a URL, or a login with --device"
    )


def test_nothing_tells_a_token() -> None:
    assert repr(Tokens("at-old", "rt-old", 1, 2)) == "Tokens(***, expires_at=2)"
