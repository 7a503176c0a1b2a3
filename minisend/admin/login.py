"""minisend login: lets a user allow minisend to send mail for an account (OAuth2), and keeps what that gives.

For a smarthost that needs no user (client credentials, service account) it asks for a token, which shows that the
configuration is right.  Shows pages and codes, never a token.

Root becomes the user that owns the system's state directory first: the tokens must belong to who delivers, and root
writes nothing in a directory of another's.
"""

import posix
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from minisend.admin.owner import become_owner_of
from minisend.admin.terminal import BOLD, Paint, printable, write
from minisend.config.keys import smarthost_table
from minisend.config.sections import Config, Smarthost
from minisend.delivery import core_dump
from minisend.delivery.oauth import browser, device
from minisend.delivery.oauth import client as clients
from minisend.delivery.oauth.access import access_token
from minisend.delivery.oauth.failure import OAuthError
from minisend.delivery.oauth.store import Replacement, Store
from minisend.errors import ConfigError, UsageError

DEVICE = "device"
BROWSER = "browser"
# Another process may be renewing the token that is about to be replaced.
_LOCK_SECONDS = 90


def login(config: Config, name: str, method: str) -> int:
    """Log in to a smarthost; returns the exit code.

    ``name``    of a [smarthosts.NAME] table; "" or "smarthost" for [smarthost]
    ``method``  DEVICE, BROWSER, or "" for the first that the service has
    Raises MinisendError.
    """
    core_dump.forbid()
    name = "" if name == clients.DEFAULT_NAME else name
    smarthost = _smarthost(config, name)
    if not smarthost.uses_oauth2:
        raise ConfigError(
            f"{smarthost_table(name)} oauth2_provider: "
            "expected this key, or oauth2_token_endpoint, for a login (got nothing)"
        )
    if not smarthost.oauth2_token_file:
        become_owner_of(clients.SYSTEM_STATE)
    client = clients.Client(smarthost, name, posix.environ, posix.geteuid())
    if client.grant != clients.REFRESH:
        if method:
            raise UsageError(f"login: --{method}: oauth2_grant is {client.grant}: there is no page")
        access_token(smarthost, posix.environ, posix.geteuid(), name=name)
        write(1, f"The service gives tokens for {printable(client.account)}; no login is needed.\n")
        return 0
    with Store(client.token_file, posix.geteuid(), create=True) as store:
        # Before anybody goes through a login for nothing.
        with _room(store):
            pass
        if method == BROWSER or (not method and not client.device_endpoint):
            tokens = browser.log_in(client, lambda page: _show_page(client, page))
        else:
            tokens = device.log_in(
                client, lambda invitation: _show_code(client, invitation), wait=time.sleep
            )
        if not tokens.refresh_token:
            raise OAuthError(
                f"{client.what} oauth2_scope: the service gave no refresh token, so this login would soon end: "
                "many need offline_access in the scope"
            )
        with _room(store) as replacement:
            store.write(replacement, tokens, client.binding())
    write(1, f"Logged in as {printable(client.account)}; tokens kept in {client.token_file}\n")
    return 0


def _smarthost(config: Config, name: str) -> Smarthost:
    smarthost = config.named_smarthost(name)
    if smarthost is None and name:
        there = ", ".join(sorted(config.smarthosts)) or "none"
        file = config.file or "any configuration"
        raise UsageError(f"login: {printable(name)}: no such smarthost in {file} (there: {there})")
    if smarthost is None:
        raise ConfigError("[smarthost]: expected this table for a login (got nothing)")
    return smarthost


@contextmanager
def _room(store: Store) -> Iterator[Replacement]:
    """Room for the tokens, under the lock."""
    with store.locked(_LOCK_SECONDS, time.sleep) as held:
        if not held:
            raise OAuthError("login: another process is at these tokens: try again")
        with store.replacement() as replacement:
            yield replacement


def _show_page(client: clients.Client, page: str) -> None:
    port = urlsplit(parse_qs(urlsplit(page).query)["redirect_uri"][0]).port
    write(
        1,
        f"Open this page in a browser on this machine, and log in as {printable(client.account)}:\n\n"
        f"    {page}\n\n"
        "The browser runs elsewhere?  There, first, forward the port on which it comes back:\n\n"
        f"    ssh -L {port}:127.0.0.1:{port} {posix.uname().nodename}\n\n"
        "Waiting for the browser to come back ...\n",
    )


def _show_code(client: clients.Client, invitation: device.Invitation) -> None:
    code = Paint(1)(BOLD, invitation.code)
    write(
        1,
        f"Open this page on any device, and log in as {printable(client.account)}:\n\n"
        f"    {invitation.page}\n\nand enter there the code\n\n    {code}\n\n"
        f"Waiting for {invitation.lifetime // 60 or 1} min ...\n",
    )
