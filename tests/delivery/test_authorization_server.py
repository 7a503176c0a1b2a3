"""The OAuth2 service of these tests refuses what a real one refuses: else what it accepts would say little."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from delivery.authorization_server import USER, Registered, Service
from joserfc import jwk, jwt

VERIFIER = "v" * 64
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
)
REDIRECT = "http://127.0.0.1:4321"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as running:
        running.clients["other"] = Registered("other")
        running.clients["robot"] = Registered("robot", secret="hush")
        yield running


def ask(service: Service, path: str, **fields: str) -> str:
    """The error of a request by POST, "" when it was granted."""
    _, body, _ = service.answer("POST", path, fields)
    body = json.loads(body) if isinstance(body, str) else body
    assert ("access_token" in body or "device_code" in body) != ("error" in body)
    return str(body.get("error", ""))


def code(service: Service, **changed: str) -> str:
    """An authorization code, or the error, as the browser brings it."""
    fields = {
        "response_type": "code",
        "client_id": "minisend",
        "redirect_uri": REDIRECT,
        "state": "s",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        **changed,
    }
    status, body, headers = service.answer("GET", "/authorize?" + urlencode(fields), fields)
    if status != 302:
        return str((json.loads(body) if isinstance(body, str) else body)["error"])
    answer = dict(parse_qsl(urlsplit(dict(headers)["Location"]).query))
    assert answer["state"] == "s"
    return answer.get("code") or answer["error"]


def exchange(service: Service, found: str, **changed: str) -> str:
    fields = {
        "grant_type": "authorization_code",
        "code": found,
        "redirect_uri": REDIRECT,
        "client_id": "minisend",
        "code_verifier": VERIFIER,
        **changed,
    }
    return ask(service, "/token", **{key: value for key, value in fields.items() if value})


def test_a_code_is_good_once(service: Service) -> None:
    found = code(service)
    assert (exchange(service, found), exchange(service, found)) == ("", "invalid_grant")


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_verifier": "w" * 64}, "invalid_grant"),
        ({"code_verifier": CHALLENGE}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_request"),
        ({"code_verifier": "short"}, "invalid_request"),
        ({"redirect_uri": "http://127.0.0.1:4322"}, "invalid_grant"),
        ({"client_id": "other"}, "invalid_grant"),
        ({"client_id": "nobody"}, "invalid_client"),
        ({"code": "made up"}, "invalid_grant"),
    ],
    ids=str,
)
def test_an_exchange_that_is_refused(service: Service, changed: dict[str, str], error: str) -> None:
    assert exchange(service, code(service), **changed) == error
    assert service.granted == []


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"redirect_uri": "http://192.0.2.1:80"}, "invalid_request"),
        ({"redirect_uri": "https://127.0.0.1:80"}, "invalid_request"),
        ({"client_id": "nobody"}, "invalid_client"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge_method": "S512"}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
    ],
    ids=str,
)
def test_a_page_that_is_refused(service: Service, changed: dict[str, str], error: str) -> None:
    assert code(service, **changed) == error


def test_a_secret_must_be_shown_and_right(service: Service) -> None:
    grant = {"grant_type": "client_credentials", "client_id": "robot"}
    assert [
        ask(service, "/token", **grant),
        ask(service, "/token", **grant, client_secret=""),
        ask(service, "/token", **grant, client_secret="husk"),
        ask(service, "/token", **(grant | {"client_id": "minisend"})),
        ask(service, "/token", **grant, client_secret="hush"),
    ] == ["invalid_client"] * 4 + [""]


def test_a_refresh_token_is_good_once_and_for_its_client(service: Service) -> None:
    token = service.give_refresh_token()
    grant = {"grant_type": "refresh_token", "refresh_token": token}
    assert [
        ask(service, "/token", **grant, client_id="other"),
        ask(service, "/token", **grant, client_id="minisend"),
        ask(service, "/token", **grant, client_id="minisend"),
    ] == ["invalid_grant", "", "invalid_grant"]


def test_a_device_code_goes_through_its_states(service: Service) -> None:
    assert ask(service, "/device", client_id="nobody") == "invalid_client"
    assert ask(service, "/device", client_id="minisend", scope="smtp") == ""
    ((device_code, asked),) = service.devices.items()
    grant = {"grant_type": DEVICE, "device_code": device_code, "client_id": "minisend"}
    service.polls_too_fast = [False, True]
    said = [ask(service, "/token", **grant) for _ in range(2)]
    said.append(ask(service, "/token", **(grant | {"client_id": "other"})))
    said.append(ask(service, "/token", **(grant | {"device_code": "made up"})))
    service.decisions[asked["user_code"]] = (USER, False)
    said.append(ask(service, "/token", **grant))
    service.decisions[asked["user_code"]] = (USER, True)
    said += [ask(service, "/token", **grant) for _ in range(2)]
    assert said == [
        "authorization_pending",
        "slow_down",
        "unauthorized_client",
        "invalid_request",
        "access_denied",
        "",
        "expired_token",
    ]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({}, ""),
        ({"aud": "https://elsewhere.example/token"}, "invalid_grant"),
        ({"sub": "bob@example.org"}, "invalid_grant"),
        ({"exp": 1}, "invalid_grant"),
        ({"iss": "nobody"}, "invalid_grant"),
        ({"key": True}, "invalid_grant"),
    ],
    ids=str,
)
def test_an_assertion(service: Service, changed: dict[str, object], error: str) -> None:
    import time

    keys = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
    private, public = (
        keys[bool(changed.get("key"))].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        keys[0]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )
    service.clients["account"] = Registered("account", key=public)
    now = int(time.time())
    claims = {
        "iss": "account",
        "sub": USER,
        "aud": service.base + "/token",
        "iat": now,
        "exp": now + 60,
        **{key: value for key, value in changed.items() if key != "key"},
    }
    assertion = jwt.encode({"alg": "RS256"}, claims, jwk.RSAKey.import_key(private))
    assert ask(service, "/token", grant_type=BEARER, assertion=assertion) == error
