"""An access token for a session: the one that is kept while it is valid, else a new one.

    kept token                service                 result
    not due for renewal       not asked               the kept one
    due, still valid          gives one               the new one, once it is on the disk
                              not there, in trouble   the kept one; asked again after a minute
                              refuses                 OAuthError
                              being asked by another  the kept one
    none, expired, rejected   gives one               the new one, once it is on the disk
    by the SMTP server        anything else           OAuthError
                              being asked by another  waited for; then as above

However many sessions need one at a time, the service is asked once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from minisend.delivery.oauth import endpoint, grant
from minisend.delivery.oauth.client import REFRESH, Client
from minisend.delivery.oauth.failure import Unavailable
from minisend.delivery.oauth.store import Store, Tokens

if TYPE_CHECKING:
    from minisend.config.sections import Smarthost

# Who has the lock asks once, for so long; two more may be before us.
_LOCK_SECONDS = 3 * endpoint.DEADLINE
_PAUSE_SECONDS = 60


def access_token(
    smarthost: Smarthost,
    environ: Mapping[bytes, bytes],
    euid: int,
    *,
    name: str = "",
    rejected: bytes = b"",
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
) -> bytes:
    """A token that the smarthost should accept, visible ASCII.

    ``name``      of a [smarthosts.NAME] table, "" for [smarthost]
    ``rejected``  the token that the server has just answered 535 to: not that one again, whatever its lifetime
    ``clock``, ``wait``  seconds UTC, and how to sleep
    Raises ``OAuthError`` and ``ConfigError``.
    """
    client = Client(smarthost, name, environ, euid)
    with Store(client.token_file, euid, create=client.grant != REFRESH) as store:
        kept = store.read(client.binding())
        if kept is None and client.grant == REFRESH:
            raise grant.login_needed(
                client, f"no tokens of {client.account} in {client.token_file}"
            )
        usable = _is_usable(kept, rejected, clock())
        if usable is not None and not _is_due(usable, clock()):
            return usable.access_token.encode("ascii")
        with store.locked(0 if usable else _LOCK_SECONDS, wait) as held:
            if held:
                # Another may have renewed it before we had the lock.
                kept = store.read(client.binding())
                usable = _is_usable(kept, rejected, clock())
                if usable is None or _is_due(usable, clock()):
                    usable = _renewed(client, store, kept, usable, clock())
            if usable is None:
                raise Unavailable(
                    f"{client.what} oauth2: another process has been asking for a token for {_LOCK_SECONDS:g} s"
                )
            return usable.access_token.encode("ascii")


def _renewed(
    client: Client, store: Store, kept: Tokens | None, usable: Tokens | None, now: float
) -> Tokens:
    with store.replacement() as replacement:
        try:
            tokens = grant.renew(client, kept, now)
        except Unavailable:
            if usable is None:
                raise
            tokens = replace(usable, failed_at=now)
        store.write(replacement, tokens, client.binding())
    return tokens


def _is_usable(kept: Tokens | None, rejected: bytes, now: float) -> Tokens | None:
    if kept is None or now >= kept.expires_at or kept.access_token.encode("ascii") == rejected:
        return None
    return kept


def _is_due(tokens: Tokens, now: float) -> bool:
    return now >= tokens.renew_at and not 0 <= now - tokens.failed_at < _PAUSE_SECONDS
