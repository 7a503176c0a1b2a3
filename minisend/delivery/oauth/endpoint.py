"""One request to an OAuth2 endpoint: a form by HTTPS POST, and the JSON object that answers it.

Takes at most ``DEADLINE`` seconds and ``_LIMIT`` octets, whatever the server does; follows no redirect, which would
carry the secrets of the form elsewhere; uses no proxy.  http is for this machine alone, as ``minisend.config`` checks.

    answer                                      result
    object without "error", status 200          the object
    object with "error", status below 500       Rejected
    3yz; 4yz without such an object             OAuthError: this is not the endpoint
    5yz, 408, 429; no HTTP, no TLS, no JSON,    Unavailable
    nobody there, too slow, too long

Source: RFC 6749 sections 3.2 and 5, RFC 6750 section 2.1 (what a token is made of).
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, quote_plus, urlencode, urlsplit

from minisend.config.sections import Smarthost
from minisend.delivery import tls
from minisend.delivery.oauth.failure import OAuthError, Rejected, Unavailable
from minisend.errors import ConfigError

DEADLINE = 30.0
_LIMIT = 64 * 1024
# What is quoted of a server's words.
_SAID_LIMIT = 200
# The fields of requests that nobody may see, should a server repeat them in its error.
_SECRET_FIELDS = (
    "assertion",
    "client_secret",
    "code",
    "code_verifier",
    "device_code",
    "refresh_token",
)
_TEMPORARY_CODES = ("server_error", "temporarily_unavailable")
_TEMPORARY_STATUSES = (408, 429)


def post(
    url: str,
    fields: Mapping[str, str],
    *,
    what: str,
    ca_file: str = "",
    login: tuple[str, str] = ("", ""),
) -> dict[str, Any]:
    """The object that the endpoint answers with.

    ``what``     the table, for errors: "[smarthost]"
    ``ca_file``  authorities in place of the system's
    ``login``    the client's name and secret for HTTP Basic, none when the secret is ""
    Raises as the table above says.
    """
    parts = urlsplit(url)
    what = f"{what} oauth2: {parts.netloc}"
    headers = {
        "Accept": "application/json",
        "Connection": "close",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    hidden = [fields[key] for key in _SECRET_FIELDS if fields.get(key)]
    if login[1]:
        token = _basic(*login)
        headers["Authorization"] = f"Basic {token}"
        hidden += [login[1], token]
    body = urlencode(fields).encode("ascii")
    status, octets = _exchange(url, headers, body, what, ca_file)
    values = _object(octets)
    code = None if values is None else values.get("error")
    if code is not None:
        description = values.get("error_description") if values is not None else None
        said = _said(code, hidden)
        if isinstance(description, str) and description:
            said += f": {_said(description, hidden)}"
        if status >= 500 or status in _TEMPORARY_STATUSES or code in _TEMPORARY_CODES:
            raise Unavailable(f"{what}: {said}")
        raise Rejected(f"{what}: {said}", code if isinstance(code, str) else "")
    if status // 100 == 3:
        raise OAuthError(
            f"{what}: answered {status}, a redirect: none is followed: set the endpoint's own URL"
        )
    if status >= 500 or status in _TEMPORARY_STATUSES:
        raise Unavailable(f"{what}: answered {status}")
    if status != 200:
        raise OAuthError(f"{what}: answered {status}: is this the right URL: {url}")
    if values is None:
        raise Unavailable(f"{what}: did not answer with a JSON object")
    return values


def text(values: Mapping[str, Any], key: str, what: str, *, optional: bool = False) -> str:
    """A member that is a token, code or URL: visible ASCII (RFC 6749 appendix A).  Raises ``Unavailable``."""
    value = values.get(key)
    if value is None and optional:
        return ""
    if not isinstance(value, str) or not value or not all("!" <= char <= "~" for char in value):
        raise Unavailable(f"{what} oauth2: the answer has no usable {key}")
    return value


def seconds(values: Mapping[str, Any], key: str, default: int, most: int) -> int:
    """A member that is a time in seconds, from 1 to ``most``; servers exist that put it in quotes."""
    value = values.get(key)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 15:
        value = int(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 1:
        return default
    return int(min(value, most))


def _basic(client_id: str, secret: str) -> str:
    """RFC 7617, of both in the form's encoding (RFC 6749 section 2.3.1): a colon in the name is none."""
    return b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode("ascii")).decode(
        "ascii"
    )


def _said(value: object, hidden: list[str]) -> str:
    """A server's words on one line, without what is secret in the request."""
    said = value if isinstance(value, str) else json.dumps(value)
    for secret in hidden:
        # Also as it stood in the form: a server may repeat what it got.
        for form in (secret, quote_plus(secret), quote(secret), quote(secret, safe="")):
            said = said.replace(form, "***")
    said = " ".join(said.split())
    return "".join(char if char.isprintable() else "?" for char in said)[:_SAID_LIMIT]


def _object(octets: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(octets.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _exchange(
    url: str, headers: Mapping[str, str], body: bytes, what: str, ca_file: str
) -> tuple[int, bytes]:
    """Status and content of the answer."""
    parts = urlsplit(url)
    assert parts.hostname is not None  # noqa: S101 - minisend.config has checked it
    context = _context(ca_file) if parts.scheme == "https" else None
    connection = _Connection(parts.hostname, parts.port, context)
    try:
        connection.request(
            "POST",
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            body,
            headers,
        )
        with connection.getresponse() as response:
            octets = response.read(_LIMIT + 1)
            status = response.status
    except TimeoutError:
        raise Unavailable(f"{what}: did not answer within {DEADLINE:g} s") from None
    except ssl.SSLCertVerificationError as exc:
        raise Unavailable(f"{what}: certificate does not hold: {exc.verify_message}") from None
    except ssl.SSLError as exc:
        raise Unavailable(f"{what}: TLS failed: {exc.reason or 'connection lost'}") from None
    except http.client.RemoteDisconnected:
        raise Unavailable(f"{what}: hung up without an answer") from None
    except OSError as exc:
        raise Unavailable(f"{what}: {exc.strerror or exc}") from None
    except (http.client.HTTPException, ValueError):
        raise Unavailable(f"{what}: did not answer in HTTP") from None
    finally:
        connection.close()
    if len(octets) > _LIMIT:
        raise Unavailable(f"{what}: answered more than {_LIMIT} octets")
    return status, octets


def _context(ca_file: str) -> ssl.SSLContext | None:
    # A smarthost with implicit TLS wants of a certificate what HTTPS wants.
    like = Smarthost((), tls="implicit", tls_ca_file=ca_file)
    try:
        trust = tls.smarthost_trust(like)
    except ConfigError as exc:
        raise OAuthError(str(exc).replace("tls_ca_file", "oauth2_ca_file", 1)) from None
    return None if trust is None else trust.context


class _Connection(http.client.HTTPConnection):
    """http.client's, with one deadline for all of it in place of a timeout for each octet."""

    def __init__(self, host: str, port: int | None, context: ssl.SSLContext | None) -> None:
        if context is not None:
            self.default_port = http.client.HTTPS_PORT
        super().__init__(host, port)
        self._context = context

    def connect(self) -> None:
        deadline = time.monotonic() + DEADLINE
        plain = self._connected(deadline)
        if self._context is not None:
            try:
                plain.settimeout(_remaining(deadline))
                plain = self._context.wrap_socket(plain, server_hostname=self.host)
            except BaseException:
                plain.close()
                raise
        # http.client asks no more of a socket than these three methods.
        self.sock = cast("socket.socket", _Wire(plain, deadline))

    def _connected(self, deadline: float) -> socket.socket:
        failure = OSError("no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            connecting = socket.socket(family, kind, protocol)
            try:
                connecting.settimeout(_remaining(deadline))
                connecting.connect(address)
                return connecting
            except OSError as exc:
                connecting.close()
                failure = exc
        raise failure


class _Wire:
    """What http.client needs of a socket, with a deadline.

    As with a socket, what ``makefile`` gave outlives ``close``: http.client closes before it reads the last answer.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline
        self._handed_over = False

    def sendall(self, octets: bytes) -> None:
        self._socket.settimeout(_remaining(self._deadline))
        self._socket.sendall(octets)

    def makefile(self, mode: str) -> io.BufferedReader:
        self._handed_over = True
        return io.BufferedReader(_Incoming(self._socket, self._deadline))

    def close(self) -> None:
        if not self._handed_over:
            self._socket.close()


class _Incoming(io.RawIOBase):
    """The octets that arrive before the deadline; closes the socket."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(_remaining(self._deadline))
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        super().close()
        self._socket.close()


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
