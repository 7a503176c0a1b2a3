"""Dovecot as a submission server, which has every login that Debian's servers have, and as an LMTP server with mailboxes.

What the first takes it hands to a smarthost; the second has a Maildir for each of its users, and nobody else's mail.

The whole of it lives in the server's directory.  Its programs look for their modules and each other under /usr, so they run in
a mount namespace of their own with the unpacked files laid over /usr; nothing outside sees them.

Its accounts are some that every Debian has, since dpkg -x makes none.  Sources: doc.dovecot.org/2.3, doveconf(1); RFC 2033.
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
from peers.postfix import Arrived
from peers.process import Server, free_port, greets
from peers.unpacked import unpacked

# Who its parts run as: the processes that talk to strangers, the others, and a session once it is logged in.
LOGIN = "nobody"
INTERNAL = "daemon"
SESSION = "mail"

CONFIGURATION = """\
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
default_login_user = {login}
default_internal_user = {internal}
default_internal_group = {internal}
first_valid_uid = 1
first_valid_gid = 1
hostname = mail.example.test
"""

SUBMISSION = """\
protocols = submission
mail_location = maildir:{directory}/home/mail
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

# Who has an account in etc/users has a mailbox, of the size that stands there.
LMTP = """\
protocols = lmtp
mail_location = maildir:~/mail
mail_plugins = quota
plugin {{
  quota = maildir:User quota
}}
# Nobody logs in, but its auth process will not start without one.
passdb {{
  driver = static
  args = nopassword
}}
userdb {{
  driver = passwd-file
  args = {directory}/etc/users
}}
# As long as the name is: an address with "+" is one of its own.
recipient_delimiter =
lmtp_user_concurrency_limit = 0
service lmtp {{
  # Many messages a process, as a busy server has it.
  service_count = 0
  inet_listener lmtp {{
    address = {address}
    port = {port}
  }}
  unix_listener {directory}/lmtp {{
    mode = 0666
  }}
}}
{tls}
"""
LMTP_TLS = """\
ssl = yes
ssl_cert = <{certificate.chain_file}
ssl_key = <{certificate.key_file}
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

# What its LMTP service puts before a message; the recipient is named where it is the only one.
STORED = re.compile(
    rb"Return-Path: <(.*)>\n(?:Delivered-To: .*\n)?"
    rb"(Received: from (\S+)(?: .*)?\n(?:\t.*\n)*?\tid (\S+)\n(?:\t.*\n)*)"
)

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


class _Dovecot(Server):
    """What both services have: ``settings`` is their part of the configuration, ``parts`` are packages beside dovecot-core."""

    name = "dovecot"

    def __init__(self, *parts: str, address: str) -> None:
        self._usr = [unpacked(each) / "usr" for each in (*parts, "dovecot-core")]
        super().__init__()
        self.address = address
        self.port = free_port(address)
        self._configuration = self.directory / "etc/dovecot.conf"
        self._configuration.parent.mkdir()

    def _configure(self, settings: str, **values: object) -> None:
        self._configuration.write_text(
            (CONFIGURATION + settings).format(
                directory=self.directory,
                login=LOGIN,
                internal=INTERNAL,
                session=SESSION,
                address=self.address,
                port=self.port,
                **values,
            )
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


class Dovecot(_Dovecot):
    """Dovecot's submission service on loopback: with STARTTLS, and on ``implicit_port`` with TLS from the first octet.

    ``relay``       address and port of the SMTP server that gets every message
    ``accounts``    name to password
    ``mechanisms``  that AUTH offers, as Dovecot names them
    ``client_ca``   a PEM file: who issues the certificates of clients, for EXTERNAL

    A login from its own address needs no TLS.
    """

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
        super().__init__("dovecot-submissiond", address=address)
        self.implicit_port = free_port(address)
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
        self._configure(
            SUBMISSION + (EXTERNAL if client_ca else ""),
            certificate=certificate,
            mechanisms=" ".join(mechanisms),
            implicit_port=self.implicit_port,
            relay=relay,
            ca_file=client_ca,
        )

    def logins(self) -> list[tuple[str, str]]:
        """Account and mechanism of every login so far."""
        return re.findall(r"Login: user=<([^>]*)>, method=([^,]*),.* TLS", self.log())

    def refused(self) -> list[tuple[str, str, int]]:
        """Of every session that ended without a login: account and mechanism of the last attempt, and the number of attempts."""
        found = re.findall(
            r"\(auth failed, (\d+) attempts .*?user=<([^>]*)>, method=([^,]*), .* TLS", self.log()
        )
        return [(account, mechanism, int(count)) for count, account, mechanism in found]


class DovecotLMTP(_Dovecot):
    """Dovecot's LMTP service on loopback, and on the unix socket ``path``; a recipient it has no mailbox for is refused.

    ``mailboxes``    address to the octets that its mailbox has room for, 0 for no limit
    ``certificate``  makes STARTTLS
    """

    name = "dovecot-lmtp"

    def __init__(
        self,
        mailboxes: Mapping[str, int],
        *,
        certificate: Certificate | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        super().__init__("dovecot-lmtpd", address=address)
        self.path = self.directory / "lmtp"
        self._home = self.directory / "home"
        self._home.mkdir()
        shutil.chown(self._home, SESSION, SESSION)
        uid, gid = self._home.stat().st_uid, self._home.stat().st_gid
        (self.directory / "etc/users").write_text(
            "".join(
                f"{address}:x:{uid}:{gid}::{self._home}/{address}::userdb_quota_rule=*:bytes={room}\n"
                for address, room in mailboxes.items()
            )
        )
        tls = LMTP_TLS.format(certificate=certificate) if certificate else "ssl = no\n"
        self._configure(LMTP, tls=tls)

    def arrived(self) -> list[Arrived]:
        """Every transaction of which something is in a mailbox, in the order of their first files.

        What a client has been told ``250`` of is there.
        """
        found = [path for path in self._home.glob("*/mail/new/*") if path.is_file()]
        transactions: dict[bytes, Arrived] = {}
        for path in sorted(found, key=lambda path: _moment(path.name)):
            octets = path.read_bytes()
            stored = STORED.match(octets)
            assert stored is not None, octets[:500]
            sender, trace, helo, session = stored.groups()
            message = octets[stored.end() :]
            before = transactions.get(session)
            assert before is None or (before.sender, before.message) == (sender, message)
            recipient = path.parents[2].name.encode()
            recipients = (recipient, *(before.recipients if before else ()))
            assert len(set(recipients)) == len(recipients), "twice in one mailbox"
            transactions[session] = Arrived(
                session, sender, tuple(sorted(recipients)), helo, b"", b"", trace, message
            )
        return list(transactions.values())


def _moment(name: str) -> tuple[int, int]:
    """When a file of a Maildir was made: its name begins with the second, and with M the microsecond."""
    seconds, unique = name.split(".")[:2]
    return int(seconds), int(unique.split("P")[0].removeprefix("M"))
