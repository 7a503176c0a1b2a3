"""Login on another device (RFC 8628): this machine shows an address and a code, and asks until a user has entered it.

answer                  what follows
authorization_pending   asked again after the interval
slow_down               the same, the interval 5 s longer from now on (section 3.5)
not reached             the same, the interval doubled (section 3.5)
expired_token           OAuthError: log in again, faster
access_denied           OAuthError
tokens                  the result
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from minisend.delivery.oauth import endpoint, grant
from minisend.delivery.oauth.client import Client
from minisend.delivery.oauth.failure import OAuthError, Rejected, Unavailable
from minisend.delivery.oauth.store import Tokens

# Section 3.2: what holds when the server does not say.
_INTERVAL = 5
_LONGEST_INTERVAL = 300
_LIFETIME = 900
_LONGEST_LIFETIME = 86400
# Microsoft's word for the second.
_DENIED = ("access_denied", "authorization_declined")


class Invitation(NamedTuple):
    """What to show: the page to open, the code to enter there, and how long that is possible (seconds)."""

    page: str
    code: str
    lifetime: int


def log_in(
    client: Client,
    show: Callable[[Invitation], None],
    *,
    clock: Callable[[], float] = time.time,
    timer: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Tokens:
    """The tokens, once a user has entered the code.

    ``show``   is called once, before the waiting
    ``timer``  how long that takes is by this one: the clock may be set meanwhile, as on a machine that was just set up
    Raises ``OAuthError``.
    """
    if not client.device_endpoint:
        raise OAuthError(
            f"{client.what} oauth2_device_endpoint: expected a URL, or a login with --browser"
        )
    values = client.ask(client.device_endpoint, {"scope": client.scope} if client.scope else {})
    device_code = endpoint.text(values, "device_code", client.what)
    interval = float(endpoint.seconds(values, "interval", _INTERVAL, _LONGEST_INTERVAL))
    lifetime = endpoint.seconds(values, "expires_in", _LIFETIME, _LONGEST_LIFETIME)
    show(
        Invitation(
            _page(values, client.what), endpoint.text(values, "user_code", client.what), lifetime
        )
    )
    end = timer() + lifetime
    while timer() + interval < end:
        wait(interval)
        try:
            return grant.request(
                client,
                {
                    "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
                    "device_code": device_code,
                },
                clock(),
            )
        except Unavailable:
            interval = min(interval * 2, _LONGEST_INTERVAL)
        except Rejected as exc:
            if exc.code == "slow_down":
                interval += 5
            elif exc.code in _DENIED:
                raise OAuthError(f"{exc}: the user did not allow it") from None
            elif exc.code == "expired_token":
                break
            elif exc.code != "authorization_pending":
                raise
    raise OAuthError(
        f"{client.what} oauth2: the code was not entered in time: run: {client.login_command}"
    )


def _page(values: dict[str, object], what: str) -> str:
    # "verification_url" is what drafts of the RFC called it, and Google still does.
    key = "verification_uri" if "verification_uri" in values else "verification_url"
    page = endpoint.text(values, key, what)
    if not page.startswith("https://"):
        raise Unavailable(f"{what} oauth2: the answer has no usable {key}")
    return page
