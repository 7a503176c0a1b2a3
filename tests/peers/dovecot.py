"""Dovecot as a submission server: it has every login that Debian's servers have, and hands what it takes to a smarthost.

The whole of it lives in the server's directory.  Its programs look for their modules and each other under /usr, so they run in
a mount namespace of their own with the unpacked files laid over /usr; nothing outside sees them.

Its accounts are some that every Debian has, since dpkg -x makes none.  Source: doc.dovecot.org/2.3, doveconf(1).
"""

import base64
import hmac
import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.certificate import Certificate
from peers.namespace import inside
from peers.process import Server, free_port, greets
from peers.unpacked import unpacked

# Who its parts run as: the processes that talk to strangers, the others, and a session once it is logged in.
LOGIN = "nobody"
INTERNAL = "daemon"
SESSION = "mail"

CONFIGURATION = """\
protocols = submission
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
default_login_user = {login}
default_internal_user = {internal}
default_internal_group = {internal}
first_valid_uid = 1
first_valid_gid = 1
mail_location = maildir:{directory}/home/mail
hostname = mail.example.test
ssl = required
ssl_cert = <{certificate.chain_file}
ssl_key = <{certificate.key_file}
auth_mechanisms = {mechanisms}
# Refusals that take longer each time would only cost time here.
auth_failure_delay = 0
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {directory}/etc/oauth2
}}
passdb {{
  driver = passwd-file
  args = {directory}/etc/accounts
}}
userdb {{
  driver = static
  args = uid={session} gid={session} home={directory}/home
}}
service submission-login {{
  chroot =
  inet_listener submission {{
    address = {address}
    port = {port}
  }}
  inet_listener submissions {{
    address = {address}
    port = {implicit_port}
    ssl = yes
  }}
}}
submission_relay_host = {relay[0]}
submission_relay_port = {relay[1]}
"""

# With EXTERNAL the account is the common name of the client's certificate, and a password is not asked for.
EXTERNAL = """\
ssl_ca = <{ca_file}
ssl_verify_client_cert = yes
ssl_require_crl = no
auth_ssl_username_from_cert = yes
passdb {{
  driver = static
  mechanisms = external
  args = nopassword
}}
"""

# Tokens are JSON Web Tokens, checked by their signature alone: nobody is asked.
OAUTH2 = """\
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={directory}/etc/keys/
username_attribute = sub
"""

SECRET = b"a key that the issuer of tokens shares with the server"


def token(account: str, *, expires_in: float = 3600.0, key: bytes = SECRET) -> str:
    """An access token for ``account``, a JWT with HS256 (RFC 7519, RFC 7515); ``expires_in`` seconds."""

    def encoded(octets: bytes) -> bytes:
        return base64.urlsafe_b64encode(octets).rstrip(b"=")

    now = int(time.time())
    claims = {"sub": account, "iat": now - 60, "exp": int(now + expires_in)}
    signed = b".".join(
        encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "HS256"}, claims)
    )
    return (signed + b"." + encoded(hmac.digest(key, signed, "sha256"))).decode()


class Dovecot(Server):
    """Dovecot's submission service on loopback: with STARTTLS, and on ``implicit_port`` with TLS from the first octet.

    ``relay``       address and port of the SMTP server that gets every message
    ``accounts``    name to password
    ``mechanisms``  that AUTH offers, as Dovecot names them
    ``client_ca``   a PEM file: who issues the certificates of clients, for EXTERNAL
    """

    name = "dovecot"

    def __init__(
        self,
        relay: tuple[str, int],
        certificate: Certificate,
        accounts: Mapping[str, str],
        mechanisms: Sequence[str] = ("plain",),
        *,
        client_ca: Path | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self._usr = [unpacked(each) / "usr" for each in ("dovecot-submissiond", "dovecot-core")]
        super().__init__()
        self.address = address
        self.port = free_port(address)
        self.implicit_port = free_port(address)
        self._configuration = self.directory / "etc/dovecot.conf"
        keys = self.directory / "etc/keys/default/HS256"
        keys.mkdir(parents=True)
        home = self.directory / "home"
        home.mkdir()
        shutil.chown(home, SESSION, SESSION)
        (keys / "default").write_bytes(base64.b64encode(SECRET))
        (self.directory / "etc/oauth2").write_text(OAUTH2.format(directory=self.directory))
        (self.directory / "etc/accounts").write_text(
            "".join(f"{account}:{{PLAIN}}{password}\n" for account, password in accounts.items())
        )
        self._configuration.write_text(
            CONFIGURATION.format(
                directory=self.directory,
                login=LOGIN,
                internal=INTERNAL,
                session=SESSION,
                certificate=certificate,
                mechanisms=" ".join(mechanisms),
                address=address,
                port=self.port,
                implicit_port=self.implicit_port,
                relay=relay,
            )
            + (EXTERNAL.format(ca_file=client_ca) if client_ca else "")
        )

    def command(self) -> Sequence[str | Path]:
        return inside(["/usr/sbin/dovecot", "-F", "-c", self._configuration], usr=self._usr)

    def check(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            inside(["/usr/bin/doveconf", "-n", "-c", self._configuration], usr=self._usr),
            env=self.environment(),
            capture_output=True,
            text=True,
        )

    def answers(self) -> bool:
        return greets(self.address, self.port)

    def logins(self) -> list[tuple[str, str]]:
        """Account and mechanism of every login so far."""
        return re.findall(r"Login: user=<([^>]*)>, method=([^,]*),.* TLS", self.log())

    def refused(self) -> list[tuple[str, str, int]]:
        """Of every session that ended without a login: account and mechanism of the last attempt, and the number of attempts."""
        found = re.findall(
            r"\(auth failed, (\d+) attempts .*?user=<([^>]*)>, method=([^,]*), .* TLS", self.log()
        )
        return [(account, mechanism, int(count)) for count, account, mechanism in found]
