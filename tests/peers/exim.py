"""Exim as a smarthost that keeps every message as it took it, with its envelope.

The whole of it lives in the server's directory: configuration, spool, log, and what arrived.  It never sends anything on:
every recipient goes into one file for the message, in the form of batched SMTP with three lines before; its own reports too.
All that it adds to a message is its Received field.

It wants an account that only the installed package makes, so it runs in a mount namespace that has one.  Debian's light
build is enough: it has TLS, SMTPUTF8, DSN and CRAM-MD5.  Source: Exim's specification, chapters 13, 14, 33 to 36, 42.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.certificate import Certificate
from peers.namespace import accounts as accounts_with
from peers.namespace import inside
from peers.postfix import Arrived, split_trace
from peers.process import Server, free_port, greets, wait_for
from peers.unpacked import unpacked

# Its account, and the number that it has here.
ACCOUNT = "Debian-exim"
NUMBER = 64101

CONFIGURATION = """\
# Its own files; the program is what its reports are handed to.
exim_path = PROGRAM
spool_directory = DIRECTORY/spool
log_file_path = DIRECTORY/%slog
pid_file_path = DIRECTORY/pid
keep_environment =

# The names it goes by; nothing is looked up.
primary_hostname = mail.example.test
local_interfaces = ADDRESS
daemon_smtp_ports = PORTS
host_lookup =
rfc1413_hosts =
disable_ipv6

# A message is delivered at once, by the process that took it: as no other user, so that nothing has to be set-uid.
deliver_drop_privilege
never_users =
smtp_accept_queue_per_connection = 0
smtp_accept_max = 0

# What it takes.
message_size_limit = 0
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
acl_smtp_rcpt = recipient
tls_advertise_hosts = TLS_OFFERED_TO
TLS_FILES
begin acl
recipient:
  accept RELAY_FOR
  deny message = relay not permitted

begin routers
everybody:
  driver = accept
  transport = record

begin transports
record:
  driver = appendfile
  file = DIRECTORY/arrived/$message_exim_id
  batch_max = 100000
  use_bsmtp
  message_prefix = "$sender_helo_name\\n${tr{$sender_host_authenticated}{_}{-}}\\n$authenticated_id\\n"

begin authenticators
"""

TLS_FILES = """\
tls_certificate = DIRECTORY/chain.pem
tls_privatekey = DIRECTORY/key.pem
tls_on_connect_ports = IMPLICIT_PORT
"""

# $authN is a response of the client, N from 1.
AUTHENTICATORS = {
    "PLAIN": """\
  driver = plaintext
  server_prompts = :
  server_condition = ${if eq{$auth3}{${lookup{$auth2}lsearch{DIRECTORY/accounts}{$value}fail}}}
  server_set_id = $auth2
""",
    "LOGIN": """\
  driver = plaintext
  server_prompts = Username:: : Password::
  server_condition = ${if eq{$auth2}{${lookup{$auth1}lsearch{DIRECTORY/accounts}{$value}fail}}}
  server_set_id = $auth1
""",
    "CRAM-MD5": """\
  driver = cram_md5
  server_secret = ${lookup{$auth1}lsearch{DIRECTORY/accounts}{$value}fail}
  server_set_id = $auth1
""",
}


def parse_batched(queue_id: bytes, octets: bytes) -> Arrived:
    """What the transport wrote, with LF line ends: HELO name, mechanism, account, MAIL, RCPT ..., DATA, the message, a dot.

    One transaction has one such piece; were there a second for the same message, the message would not end here.
    """
    commands, _, message = octets.partition(b"\nDATA\n")
    helo, mechanism, account, sender, *recipients = commands.split(b"\n")
    message, end, rest = message.partition(b"\n.\n")
    assert (end, rest) == (b"\n.\n", b""), rest[:200]
    trace, message = split_trace(re.sub(rb"^\.", b"", message + b"\n", flags=re.MULTILINE))
    return Arrived(
        queue_id,
        path(b"MAIL FROM", sender),
        tuple(sorted(path(b"RCPT TO", recipient) for recipient in recipients)),
        helo,
        mechanism,
        account,
        trace,
        message,
    )


def path(command: bytes, line: bytes) -> bytes:
    """What is between the brackets."""
    assert line.startswith(command + b":<") and line.endswith(b">"), line
    return line[len(command) + 2 : -1]


class Exim(Server):
    """Exim that takes mail from loopback for every address.

    ``address``      to serve on, in 127.0.0.0/8.
    ``certificate``  makes STARTTLS and the port ``implicit_port`` for TLS from the first octet.
    ``accounts``     name to password: AUTH, offered only inside TLS if there is a certificate, is then required.
    ``mechanisms``   that AUTH offers, names of AUTHENTICATORS.
    """

    name = "exim"

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        certificate: Certificate | None = None,
        accounts: Mapping[str, str] | None = None,
        mechanisms: Sequence[str] = ("PLAIN", "LOGIN"),
    ) -> None:
        self._program = unpacked("exim4-daemon-light") / "usr/sbin/exim4"
        super().__init__()
        self.address = address
        self.port = free_port(address)
        self.implicit_port = free_port(address) if certificate else None
        self._configuration = self.directory / "configuration"
        self._seen = accounts_with(self.directory, **{ACCOUNT: NUMBER})
        self._make_files(certificate, accounts or {})
        self._write_configuration(certificate, mechanisms if accounts else ())

    def _make_files(self, certificate: Certificate | None, accounts: Mapping[str, str]) -> None:
        # The directory too: the log is made there.
        for name in ("", "spool", "arrived"):
            path = self.directory / name
            path.mkdir(exist_ok=True)
            shutil.chown(path, NUMBER, NUMBER)
        (self.directory / "accounts").write_text(
            "".join(f"{account}: {password}\n" for account, password in accounts.items())
        )
        if certificate:
            # It reads them with the rights of its account.
            for path in (certificate.chain_file, certificate.key_file):
                shutil.chown(shutil.copy(path, self.directory), NUMBER, NUMBER)

    def _write_configuration(
        self, certificate: Certificate | None, mechanisms: Sequence[str]
    ) -> None:
        text = CONFIGURATION
        for mechanism in mechanisms:
            name = mechanism.replace("-", "_")
            text += f"{name}:\n  public_name = {mechanism}\n{AUTHENTICATORS[mechanism]}"
            if certificate:
                text += "  server_advertise_condition = ${if def:tls_in_cipher}\n"
        values = {
            "TLS_FILES": TLS_FILES if certificate else "",
            "TLS_OFFERED_TO": "*" if certificate else "",
            "IMPLICIT_PORT": str(self.implicit_port),
            "PORTS": f"{self.port} : {self.implicit_port}" if certificate else str(self.port),
            "RELAY_FOR": "authenticated = *" if mechanisms else "hosts = 127.0.0.0/8",
            "DIRECTORY": str(self.directory),
            "ADDRESS": self.address,
            "PROGRAM": str(self._program),
        }
        for name, value in values.items():
            text = text.replace(name, value)
        self._configuration.write_text(text)

    def _inside(self, *arguments: str) -> list[str | Path]:
        command = [self._program, "-C", self._configuration, *arguments]
        return inside(command, seen=self._seen)

    def command(self) -> Sequence[str | Path]:
        return self._inside("-bdf")

    def check(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside("-bV"), env=self.environment(), capture_output=True, text=True
        )

    def answers(self) -> bool:
        return greets(self.address, self.port)

    def log(self) -> str:
        """What it has said so far: its three logs, after what was said before there were any."""
        logs = [self.directory / f"{name}log" for name in ("main", "reject", "panic")]
        return super().log() + "".join(
            path.read_text(errors="replace") for path in logs if path.exists()
        )

    def stop(self) -> None:
        """Record what was taken, then stop."""
        self.arrived()
        super().stop()

    def arrived(self) -> list[Arrived]:
        """Every message that it has taken since it was made, in the order of arrival.

        A message that a client has been told ``250`` of is among them; one whose delivery here failed is an error.
        """
        wait_for("exim has recorded what it took", self._is_idle)
        return [
            parse_batched(path.name.encode(), path.read_bytes())
            for path in sorted((self.directory / "arrived").iterdir())
        ]

    def _is_idle(self) -> bool:
        waiting = self.directory / "spool/input"
        return not (waiting.exists() and any(waiting.iterdir()))
