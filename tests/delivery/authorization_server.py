"""A real OAuth2 service on 127.0.0.1: Authlib's authorization server behind HTTPS, with a CA of its own.

Grants: refresh token (rotating), authorization code with PKCE required, device code, client credentials, JWT bearer.
What it accepts is Authlib's judgement, not ours, and ``test_authorization_server`` has what it refuses; kept in memory;
``requests`` has each form it got.  A code and a device code are good for one exchange.
"""

import http.server
import json
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import trustme
from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    ClientMixin,
    OAuth2Error,
    OAuth2Request,
    grants,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7523 import JWTBearerGrant
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc8628 import (
    DeviceAuthorizationEndpoint,
    DeviceCodeGrant,
    DeviceCredentialDict,
)
from joserfc import jwk

USER = "ann@example.org"
_METHODS = ("client_secret_post", "client_secret_basic", "none")


@dataclass
class Registered(ClientMixin):
    """A client of the service; one with a secret must show it, by the one ``method``."""

    id: str
    secret: str = ""
    method: str = "client_secret_post"
    key: bytes = b""

    def get_client_id(self):
        return self.id

    def get_allowed_scope(self, scope):
        return scope or ""

    def check_redirect_uri(self, redirect_uri):
        # RFC 8252 section 7.3: the port is any.
        url = urlsplit(redirect_uri)
        return (url.scheme, url.hostname, url.path) == ("http", "127.0.0.1", "")

    def check_client_secret(self, client_secret):
        return secrets.compare_digest(client_secret, self.secret)

    def check_endpoint_auth_method(self, method, endpoint):
        return method == (self.method if self.secret else "none")

    def check_response_type(self, response_type):
        return response_type == "code"

    def check_grant_type(self, grant_type):
        return True


class _Code(grants.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS

    def save_authorization_code(self, code, request):
        data = request.payload.data
        self.server.codes[code] = SimpleNamespace(
            client_id=request.client.id,
            code_challenge=data.get("code_challenge"),
            code_challenge_method=data.get("code_challenge_method"),
            get_redirect_uri=lambda: data.get("redirect_uri"),
            get_scope=lambda: data.get("scope", ""),
            code=code,
        )

    def query_authorization_code(self, code, client):
        found = self.server.codes.get(code)
        return found if found is not None and found.client_id == client.id else None

    def delete_authorization_code(self, authorization_code):
        del self.server.codes[authorization_code.code]

    def authenticate_user(self, authorization_code):
        return USER


class _Refresh(grants.RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token):
        return self.server.refresh_tokens.get(refresh_token)

    def authenticate_user(self, refresh_token):
        return USER

    def revoke_old_credential(self, refresh_token):
        del self.server.refresh_tokens[refresh_token.token]


class _ClientCredentials(grants.ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS[:2]


class _Jwt(JWTBearerGrant):
    def resolve_issuer_client(self, issuer):
        return self.server.clients.get(issuer)

    def resolve_client_public_key(self, client):
        return jwk.RSAKey.import_key(client.key)

    def authenticate_user(self, subject):
        return subject if subject == USER else None

    def get_audiences(self):
        return [self.server.base + "/token"]

    def has_granted_permission(self, client, user):
        return True


class _Device(DeviceAuthorizationEndpoint):
    CLIENT_AUTH_METHODS = _METHODS

    def get_verification_uri(self):
        return self.server.base + "/activate"

    def save_device_credential(self, client_id, scope, data):
        self.server.devices[data["device_code"]] = DeviceCredentialDict(
            client_id=client_id,
            scope=scope,
            expires_at=time.time() + data["expires_in"],
            **data,
        )


class _DeviceCode(DeviceCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS

    def query_device_credential(self, device_code):
        return self.server.devices.get(device_code)

    def query_user_grant(self, user_code):
        return self.server.decisions.get(user_code)

    def create_token_response(self):
        response = super().create_token_response()
        # RFC 8628 leaves it open; those that are in use take one once.
        self.request.credential["expires_at"] = 0
        return response

    def should_slow_down(self, credential):
        return self.server.polls_too_fast.pop(0) if self.server.polls_too_fast else False


class _Request(OAuth2Request):
    def __init__(
        self, method: str, uri: str, fields: dict[str, str], headers: Mapping[str, str]
    ) -> None:
        super().__init__(method, uri, headers=headers)
        self.payload = BasicOAuth2Payload(fields)
        self._fields = fields

    @property
    def args(self):
        return self._fields

    @property
    def form(self):
        return self._fields


class Service(AuthorizationServer):
    """The service; a context manager.

    ``ca_file``         to trust it by
    ``clients``         by id; those with a ``key`` are service accounts
    ``decisions``       what the user said to a user code: (user, allowed)
    ``polls_too_fast``  for each poll to come, whether to answer slow_down
    ``lifetime``        of an access token, seconds
    ``granted``         every access token given, in order
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.clients = {"minisend": Registered("minisend")}
        self.codes: dict[str, Any] = {}
        self.refresh_tokens: dict[str, Any] = {}
        self.devices: dict[str, Any] = {}
        self.decisions: dict[str, tuple[str, bool]] = {}
        self.polls_too_fast: list[bool] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.granted: list[str] = []
        self.lifetime = 3600
        self.register_token_generator(
            "default",
            BearerTokenGenerator(
                lambda **_: "at-" + secrets.token_urlsafe(24),
                lambda **_: "rt-" + secrets.token_urlsafe(24),
                lambda client, grant_type: self.lifetime,
            ),
        )
        for grant in (_Refresh, _ClientCredentials, _Jwt, _DeviceCode):
            self.register_grant(grant)
        self.register_grant(_Code, [CodeChallenge(required=True)])
        self.register_endpoint(_Device)

        ca = trustme.CA()
        self.ca_file = directory / "oauth-ca.pem"
        ca.cert_pem.write_to_path(str(self.ca_file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(context)
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.base = f"https://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> "Service":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def give_refresh_token(self, client_id: str = "minisend") -> str:
        """As if the user had logged in before."""
        token = "rt-" + secrets.token_urlsafe(24)
        self._remember(token, client_id)
        return token

    def _remember(self, token: str, client_id: str) -> None:
        self.refresh_tokens[token] = SimpleNamespace(
            token=token,
            check_client=lambda client: client.id == client_id,
            get_scope=lambda: "",
        )

    # What Authlib leaves to its user.

    def query_client(self, client_id):
        return self.clients.get(client_id)

    def save_token(self, token, request):
        self.granted.append(token["access_token"])
        if "refresh_token" in token:
            self._remember(token["refresh_token"], request.client.id)

    def create_oauth2_request(self, request):
        return request

    def handle_response(self, status, body, headers):
        return status, body, headers

    def send_signal(self, name, *args, **kwargs):
        pass

    def answer(
        self,
        method: str,
        path: str,
        fields: dict[str, str],
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, Any]:
        place = urlsplit(path).path
        self.requests.append((place, fields))
        request = _Request(method, self.base + path, fields, headers or {})
        if (method, place) == ("POST", "/token"):
            return self.create_token_response(request)
        if (method, place) == ("POST", "/device"):
            return self.create_endpoint_response(_Device.ENDPOINT_NAME, request)
        if (method, place) == ("GET", "/authorize"):
            # The user says yes at once, unless the client asks for somebody else.
            user = None if fields.get("login_hint") == "denied" else USER
            try:
                grant = self.get_consent_grant(request, user)
            except OAuth2Error as error:
                return self.handle_error_response(request, error)
            return self.create_authorization_response(request, user, grant)
        return 404, {}, []


def _handler(service: Service) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.respond("GET", urlsplit(self.path).query)

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            assert self.headers["Content-Type"] == "application/x-www-form-urlencoded"
            self.respond("POST", self.rfile.read(length).decode("ascii"))

        def respond(self, method, form):
            fields = dict(parse_qsl(form, keep_blank_values=True, strict_parsing=True))
            status, body, headers = service.answer(method, self.path, fields, self.headers)
            octets = (json.dumps(body) if isinstance(body, dict) else body or "").encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(octets)))
            self.end_headers()
            self.wfile.write(octets)

        def log_message(self, *args):
            pass

    return Handler
