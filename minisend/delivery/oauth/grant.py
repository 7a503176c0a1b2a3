"""What an access token is asked for with, and the answer as ``Tokens``.

oauth2_grant         request                                             source
refresh              the refresh token that a user's login has given     RFC 6749 section 6
client_credentials   the client's secret alone                           RFC 6749 section 4.4
service_account      a JWT signed with the account's private key, RS256  RFC 7523 section 2.1
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from typing import TYPE_CHECKING, Any

from minisend.delivery import site_packages
from minisend.delivery.oauth import endpoint
from minisend.delivery.oauth.client import CLIENT_CREDENTIALS, REFRESH, Client
from minisend.delivery.oauth.failure import LoginNeeded, OAuthError, Rejected, Unavailable
from minisend.delivery.oauth.store import Tokens

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

# Renewed so long before the end, or at half time when that is later: a message in flight, a clock that is off.
_SKEW_SECONDS = 300
# RFC 6749 section 5.1 only recommends that the server says; an hour is what most give.
_LIFETIME = 3600
_LONGEST_LIFETIME = 366 * 86400
# Google takes no longer one.
_ASSERTION_SECONDS = 3600

# The refresh token is no longer any good; the last three are OpenID's and Microsoft's words for it.
_LOGIN_CODES = ("invalid_grant", "interaction_required", "login_required", "consent_required")


def renew(client: Client, kept: Tokens | None, now: float) -> Tokens:
    """Ask the token endpoint for a new access token.

    ``kept``  with the refresh token, for the grant that needs one
    Raises ``OAuthError``; ``LoginNeeded`` when the refresh token is void.
    """
    if client.grant == REFRESH:
        if kept is None or not kept.refresh_token:
            raise login_needed(client, f"no tokens of {client.account} in {client.token_file}")
        fields = {"grant_type": "refresh_token", "refresh_token": kept.refresh_token}
        try:
            tokens = request(client, fields, now)
        except Rejected as exc:
            if exc.code in _LOGIN_CODES:
                raise login_needed(client, str(exc)) from None
            raise
        # RFC 6749 section 6: the server MAY issue a new one.
        return tokens if tokens.refresh_token else _with_refresh_token(tokens, kept.refresh_token)
    if client.grant == CLIENT_CREDENTIALS:
        fields = {"grant_type": "client_credentials"}
        if client.scope:
            fields["scope"] = client.scope
        return request(client, fields, now)
    fields = {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": _assertion(client, now),
    }
    if client.scope:
        fields["scope"] = client.scope
    return request(client, fields, now, identified=False)


def request(
    client: Client, fields: dict[str, str], now: float, *, identified: bool = True
) -> Tokens:
    """The tokens that the token endpoint gives for ``fields``; ``identified`` as for ``Client.ask``.

    ``now``  before the request: a token's life is counted from then
    """
    values = client.ask(client.token_endpoint, fields, identified=identified)
    kind = values.get("token_type", "bearer")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise Unavailable(f"{client.what} oauth2: the answer has no bearer token")
    lifetime = endpoint.seconds(values, "expires_in", _LIFETIME, _LONGEST_LIFETIME)
    return Tokens(
        endpoint.text(values, "access_token", client.what),
        endpoint.text(values, "refresh_token", client.what, optional=True),
        now + max(lifetime - _SKEW_SECONDS, lifetime / 2),
        now + lifetime,
    )


def login_needed(client: Client, why: str) -> LoginNeeded:
    """The error that names the command to run."""
    return LoginNeeded(f"{why}: run: {client.login_command}")


def _with_refresh_token(tokens: Tokens, refresh_token: str) -> Tokens:
    return Tokens(tokens.access_token, refresh_token, tokens.renew_at, tokens.expires_at)


def _assertion(client: Client, now: float) -> str:
    """A JWT (RFC 7519) that lets the service account act for the mailbox ``username``."""
    issuer, key_id, pem = _account(client)
    header = {"alg": "RS256", "typ": "JWT"}
    if key_id:
        header["kid"] = key_id
    claims = {
        "iss": issuer,
        "sub": client.account,
        "aud": client.token_endpoint,
        "iat": int(now),
        "exp": int(now) + _ASSERTION_SECONDS,
        # RFC 7523 section 3: the server may refuse one that it has seen.
        "jti": secrets.token_urlsafe(16),
    }
    if client.scope:
        claims["scope"] = client.scope
    signed = b".".join(_base64url(json.dumps(part).encode("ascii")) for part in (header, claims))
    return (signed + b"." + _base64url(_signature(client, pem, signed))).decode("ascii")


def _account(client: Client) -> tuple[str, str, bytes]:
    """Issuer, key id ("" for none) and private key (PEM) from Google's JSON key file, or from a bare PEM file."""
    octets = client.key()
    what = f"{client.what} oauth2_service_account_file"
    if octets.lstrip()[:1] != b"{":
        if not client.client_id:
            raise OAuthError(f"{what}: a PEM file does not say whose it is: set oauth2_client_id")
        return client.client_id, "", octets
    try:
        found: Any = json.loads(octets.decode("utf-8"))
        issuer, key_id, key = (
            found["client_email"],
            found.get("private_key_id"),
            found["private_key"],
        )
    except (ValueError, KeyError, RecursionError):
        issuer = key_id = key = None
    if not isinstance(issuer, str) or not isinstance(key, str):
        raise OAuthError(f"{what}: expected a key file with client_email and private_key")
    return issuer, key_id if isinstance(key_id, str) else "", key.encode("utf-8", "replace")


def _signature(client: Client, pem: bytes, octets: bytes) -> bytes:
    """RS256: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 section 3.3)."""
    what = f"{client.what} oauth2_service_account_file"
    site_packages.reach()
    try:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise OAuthError(
            f"{what}: signing needs the Python package cryptography: "
            "install it (python3-cryptography, or minisend[oauth])"
        ) from None
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, binascii.Error):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise OAuthError(f"{what}: expected an RSA private key in PEM form, without passphrase")
    signing: RSAPrivateKey = key
    return signing.sign(octets, PKCS1v15(), SHA256())


def _base64url(octets: bytes) -> bytes:
    """RFC 7515 section 2: without padding."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=")
