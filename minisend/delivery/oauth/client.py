"""A smarthost's table as an OAuth2 client: endpoints, scope, identity, and where its tokens are kept.

The secret and the key of a client are read when a request needs them, never before, and not kept.

    provider       flows              source of its endpoints and scopes
    microsoft365   device, browser    Microsoft identity platform v2.0; Exchange Online, "OAuth for SMTP"
    google         browser            Google Identity, "OAuth 2.0 for desktop apps", "XOAUTH2 protocol": its device
                                      flow does not give the scope for mail
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minisend.config.files import state_directory
from minisend.config.keys import smarthost_table
from minisend.delivery.oauth import endpoint
from minisend.delivery.oauth.failure import OAuthError
from minisend.delivery.secrets import one_line, read_secret

if TYPE_CHECKING:
    from minisend.config.sections import Smarthost

#: What the file and the login of the [smarthost] table go by, as those of [smarthosts.NAME] go by NAME.
DEFAULT_NAME = "smarthost"
SYSTEM_STATE = "/var/lib/minisend"

REFRESH = "refresh"
CLIENT_CREDENTIALS = "client_credentials"
SERVICE_ACCOUNT = "service_account"


@dataclass(frozen=True, slots=True)
class _Preset:
    """``{tenant}`` in an endpoint is replaced.

    ``redirect_host``    what the service lets a program on this machine be called in a redirect
    ``auth_parameters``  what its login page needs beyond RFC 6749; the account's name goes into the last
    """

    token_endpoint: str = ""
    device_endpoint: str = ""
    auth_endpoint: str = ""
    scopes: Mapping[str, str] = field(default_factory=dict)
    redirect_host: str = "127.0.0.1"
    auth_parameters: Mapping[str, str] = field(default_factory=dict)


_MICROSOFT = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0"
_PRESETS = {
    "": _Preset(),
    "microsoft365": _Preset(
        token_endpoint=f"{_MICROSOFT}/token",
        device_endpoint=f"{_MICROSOFT}/devicecode",
        auth_endpoint=f"{_MICROSOFT}/authorize",
        scopes={
            REFRESH: "https://outlook.office.com/SMTP.Send offline_access",
            CLIENT_CREDENTIALS: "https://outlook.office365.com/.default",
        },
        # Registered as http://localhost, any port goes; 127.0.0.1 needs an edit of the application's manifest.
        redirect_host="localhost",
        auth_parameters={"login_hint": "{account}"},
    ),
    "google": _Preset(
        token_endpoint="https://oauth2.googleapis.com/token",  # noqa: S106 - a URL, not a token
        auth_endpoint="https://accounts.google.com/o/oauth2/v2/auth",
        scopes=dict.fromkeys((REFRESH, SERVICE_ACCOUNT), "https://mail.google.com/"),
        # Without these two there is no refresh token, or only at the very first login.
        auth_parameters={
            "access_type": "offline",
            "prompt": "consent",
            "login_hint": "{account}",
        },
    ),
}


class Client:
    """One smarthost's OAuth2 client.

    ``name``     of a [smarthosts.NAME] table, "" for [smarthost]
    ``environ``  of the process, octets
    ``euid``     who delivers, and owns the tokens
    An endpoint that is unknown is "".
    """

    def __init__(
        self, smarthost: Smarthost, name: str, environ: Mapping[bytes, bytes], euid: int
    ) -> None:
        preset = _PRESETS[smarthost.oauth2_provider]
        tenant = smarthost.oauth2_tenant
        self.name = name
        self.what = smarthost_table(name)
        self.login_command = f"minisend login {name}" if name else "minisend login"
        self.account = smarthost.username
        self.grant = smarthost.oauth2_grant
        self.client_id = smarthost.oauth2_client_id
        self.scope = smarthost.oauth2_scope or preset.scopes.get(self.grant, "")
        self.ca_file = smarthost.oauth2_ca_file
        self.token_endpoint = smarthost.oauth2_token_endpoint or preset.token_endpoint.format(
            tenant=tenant
        )
        self.device_endpoint = smarthost.oauth2_device_endpoint or preset.device_endpoint.format(
            tenant=tenant
        )
        self.auth_endpoint = smarthost.oauth2_auth_endpoint or preset.auth_endpoint.format(
            tenant=tenant
        )
        self.redirect_host = preset.redirect_host
        self.auth_parameters = {
            key: value.format(account=self.account) for key, value in preset.auth_parameters.items()
        }
        self.token_file = smarthost.oauth2_token_file or _token_file(name, environ, euid)
        self._smarthost = smarthost
        self._environ = environ
        self._euid = euid

    def binding(self) -> dict[str, str]:
        """Whose tokens these are: those of another account, client or service must not be used in their place."""
        return {
            "account": self.account,
            "client_id": self.client_id,
            "grant": self.grant,
            "scope": self.scope,
            "token_endpoint": self.token_endpoint,
        }

    def ask(
        self, url: str, fields: Mapping[str, str], *, identified: bool = True
    ) -> dict[str, Any]:
        """What one of the service's endpoints answers.

        ``identified``  with who asks, in one of the two ways of RFC 6749 section 2.3.1: in the form, which both providers
                        document, or by HTTP Basic, which is the one that a service must have
        Raises as ``endpoint.post``, and ``ConfigError``: the file with the secret.
        """
        login = ("", "")
        if identified:
            secret = self._secret()
            if secret and self._smarthost.oauth2_client_auth == "basic":
                login = (self.client_id, secret)
            else:
                fields = {**fields, "client_id": self.client_id}
                if secret:
                    fields["client_secret"] = secret
        return endpoint.post(url, fields, what=self.what, ca_file=self.ca_file, login=login)

    def _secret(self) -> str:
        """ "" for a client that has none."""
        path = self._smarthost.oauth2_client_secret_file
        if not path:
            return ""
        octets = self._read("oauth2_client_secret_file", path)
        octets = one_line(f"{self.what} oauth2_client_secret_file: {path}", octets)
        try:
            return octets.decode().strip()
        except UnicodeDecodeError:
            raise OAuthError(
                f"{self.what} oauth2_client_secret_file: {path}: not text: expected the secret alone"
            ) from None

    def key(self) -> bytes:
        """The content of the service account's file.  Raises ``ConfigError``."""
        return self._read(
            "oauth2_service_account_file", self._smarthost.oauth2_service_account_file
        )

    def _read(self, key: str, path: str) -> bytes:
        return read_secret(f"{self.what} {key}", path, self._smarthost, self._environ, self._euid)


def _token_file(name: str, environ: Mapping[bytes, bytes], euid: int) -> str:
    """In the system's state directory when it is ours, else in the user's own; ``minisend.config`` has checked the name."""
    directory = SYSTEM_STATE if _is_ours(SYSTEM_STATE, euid) else None
    directory = directory or state_directory(environ, euid, euid)
    if directory is None:
        table = smarthost_table(name)
        raise OAuthError(f"{table} oauth2_token_file: uid {euid} has no home directory: set it")
    return f"{directory}/oauth/{name or DEFAULT_NAME}.json"


def _is_ours(directory: str, euid: int) -> bool:
    try:
        return euid == 0 or os.stat(directory).st_uid == euid
    except OSError:
        return False
