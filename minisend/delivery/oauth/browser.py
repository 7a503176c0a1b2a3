"""Login with a browser on this machine: the authorization code flow of a native application, with PKCE.

A listener on 127.0.0.1, at a port of the kernel's choice, waits for the browser to be sent back with a code; where the
service insists on the name "localhost", which browsers look for at ::1 first, one there too, at the same port: it must not
be another user's.  Only a request with our ``state`` counts; any other, of another user of this machine or of the browser itself, is answered and
forgotten.  The code is of no use to who lacks the verifier, which never leaves this process but for the token endpoint.

Source: RFC 6749 section 4.1, RFC 7636 (S256), RFC 8252 section 7.3.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import http.server
import queue
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import parse_qs, urlencode, urlsplit

from minisend.delivery.oauth import grant
from minisend.delivery.oauth.client import Client
from minisend.delivery.oauth.failure import OAuthError, Rejected
from minisend.delivery.oauth.store import Tokens

DEADLINE = 900.0
_REQUEST_SECONDS = 10.0
_SAID_LIMIT = 200
_TRIES = 10


def log_in(
    client: Client,
    show: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.time,
    deadline: float = DEADLINE,
) -> Tokens:
    """The tokens, once a user has logged in at the page whose URL ``show`` is called with.

    ``deadline``  seconds until nobody is waited for any more
    Raises ``OAuthError``.
    """
    if not client.auth_endpoint:
        raise OAuthError(
            f"{client.what} oauth2_auth_endpoint: expected a URL, or a login with --device"
        )
    state = secrets.token_urlsafe(32)
    verifier = secrets.token_urlsafe(64)
    answers = _Answers(state)
    with ExitStack() as stack:
        for listener in _listeners(answers, client):
            stack.enter_context(listener)
        redirect = f"http://{client.redirect_host}:{listener.port}"
        show(_page(client, redirect, state, verifier))
        code = answers.code(client, deadline)
    return grant.request(
        client,
        {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect,
            "code_verifier": verifier,
        },
        clock(),
    )


def _page(client: Client, redirect: str, state: str, verifier: str) -> str:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest())
    fields = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": redirect,
        "state": state,
        "code_challenge": challenge.rstrip(b"=").decode("ascii"),
        "code_challenge_method": "S256",
        **({"scope": client.scope} if client.scope else {}),
        **client.auth_parameters,
    }
    mark = "&" if urlsplit(client.auth_endpoint).query else "?"
    return f"{client.auth_endpoint}{mark}{urlencode(fields)}"


class _Answers:
    """What browsers bring, and which of it is for us."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._answers: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()

    def accept(self, query: str) -> bool:
        """Take what the browser brings; False when it is not for us."""
        try:
            found = parse_qs(query, strict_parsing=True, max_num_fields=20)
        except ValueError:
            return False
        # RFC 6749 section 3.1: no parameter more than once.
        if any(len(values) > 1 for values in found.values()):
            return False
        answer = {key: values[0] for key, values in found.items()}
        ours = hmac.compare_digest(answer.get("state", "").encode(), self._state.encode())
        if not ours or ("code" in answer) == ("error" in answer):
            return False
        self._answers.put(answer)
        return True

    def code(self, client: Client, deadline: float) -> str:
        """The authorization code."""
        what = f"{client.what} oauth2"
        try:
            answer = self._answers.get(timeout=deadline)
        except queue.Empty:
            raise OAuthError(
                f"{what}: nobody logged in within {deadline:g} s: run: {client.login_command}"
            ) from None
        if "code" in answer:
            return answer["code"]
        said = answer["error"]
        if "error_description" in answer:
            said += f": {answer['error_description']}"
        said = "".join(char if char.isprintable() else "?" for char in " ".join(said.split()))
        raise Rejected(f"{what}: {said[:_SAID_LIMIT]}", answer["error"])


def _listeners(answers: _Answers, client: Client) -> list[_Listener]:
    """One for each address that the browser may try, all at one port.  Raises ``OAuthError``."""
    for _ in range(_TRIES):
        first = _Listener(answers, 0)
        if client.redirect_host != "localhost":
            return [first]
        try:
            return [first, _Listener6(answers, first.port)]
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                return [first]  # no IPv6 here
            first.server_close()
    raise OAuthError(f"{client.what} oauth2: no port is free on both 127.0.0.1 and ::1")


class _Listener(socketserver.ThreadingTCPServer):
    """Threads, because browsers open connections that they do not use.

    Not ``http.server``'s own, which asks DNS for the name of this machine.
    """

    host = "127.0.0.1"
    daemon_threads = True
    # Not reused while another may still hold the port.
    allow_reuse_address = False

    def __init__(self, answers: _Answers, port: int) -> None:
        super().__init__((self.host, port), _Request)
        self.answers = answers
        self.port: int = self.socket.getsockname()[1]
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> _Listener:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is no event; what it asked for stands in the traceback that this would print."""


class _Listener6(_Listener):
    host = "::1"
    address_family = socket.AF_INET6


class _Request(http.server.BaseHTTPRequestHandler):
    server: _Listener
    timeout = _REQUEST_SECONDS
    server_version = "minisend"
    sys_version = ""

    def do_GET(self) -> None:
        # Named by the interface: http.server.
        target = urlsplit(self.path)
        known = target.path in ("", "/") and self.server.answers.accept(target.query)
        page = "Done. You can close this window and go back to the terminal.\n"
        octets = (page if known else "Nothing here.\n").encode("ascii")
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "text/plain; charset=us-ascii")
        self.send_header("Content-Length", str(len(octets)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the request line holds the code."""
