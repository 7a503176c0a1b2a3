"""OpenSMTPD as a smarthost that keeps every message as it took it, with its envelope.

The whole of it lives in the server's directory: configuration, queue, log, and what arrived.  It never sends anything on:
every recipient goes to a command that writes a file, one for each, as OpenSMTPD delivers them; its own reports too.
What it adds to a message are its Received field and two fields of the delivery, which are left out here.

It wants two accounts, directories under /var and its parts under /usr, so it runs in a mount namespace that has them; with the
libraries of the Debian that it is from, which may be newer than this machine's.  Source: smtpd.conf(5), smtpd(8), table(5).
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

# Its accounts, and the numbers that they have here: those who talk to strangers, and those who own the queue.
ACCOUNT = "opensmtpd"
NUMBER = 64111
QUEUE_ACCOUNT = "opensmtpq"
QUEUE_NUMBER = 64112
RECORDER = "nobody"

# A delivery: what the server says of it, and the message on stdin.  A reader sees a file in new/ only when it is whole.
RECORD = """\
set -eu
cd "$1"
{ printf '%s\\0' "$SENDER" "$RECIPIENT"; cat; } >"tmp/$$"
mv "tmp/$$" "new/$(date +%s.%N).$$"
"""

CONFIGURATION = """\
smtp max-message-size 1G
smtp limit max-mails 100000
# Nothing that an address has.
smtp sub-addr-delim "|"
pki mail cert "{directory}/chain.pem"
pki mail key "{directory}/key.pem"
table accounts file:{directory}/accounts
table recorder {{ "@" = "{recorder}" }}
{listeners}
action record mda "/bin/sh {directory}/record {directory}/arrived" virtual <recorder>
match from any for any action record
"""

# The queue id, and with TLS and AUTH what Received says of them.
ID = re.compile(rb" id ([0-9a-f]{8})\b")
USER = re.compile(rb" auth=yes user=(.*?);?\s")
HELO = re.compile(rb"Received: from (\S+) \(")

# What is put before the message as it was taken.
# Its processes share the log and write lines in pieces: this one of the parent's, which looks for a .forward, may stand within
# a line of another's.
OTHERS = re.compile(r"warn: smtpd: parent_forward_open: .*\n")
DELIVERY_FIELDS = re.compile(rb"(?:(?:Return-Path|Delivered-To): .*\n)*")


class OpenSMTPD(Server):
    """OpenSMTPD that takes mail from loopback for every address.

    ``address``      to serve on, in 127.0.0.0/8.
    ``certificate``  makes STARTTLS and the port ``implicit_port`` for TLS from the first octet.
    ``accounts``     name to password: AUTH with PLAIN and LOGIN, inside TLS only, is then required.
    ``traced``       each line of every session goes into the log; that is the only place that names the mechanism.
    """

    name = "opensmtpd"

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        certificate: Certificate | None = None,
        accounts: Mapping[str, str] | None = None,
        traced: bool = False,
    ) -> None:
        self._usr = unpacked("opensmtpd") / "files/usr"
        super().__init__()
        self.address = address
        self.port = free_port(address)
        self.implicit_port = free_port(address) if certificate else None
        self._traced = traced
        self._configuration = self.directory / "smtpd.conf"
        self._queue = self.directory / "spool/smtpd"
        self._make_files(certificate)
        self._write_accounts(accounts or {})
        self._write_configuration(certificate, bool(accounts))
        self._seen = {
            **accounts_with(self.directory, **{ACCOUNT: NUMBER, QUEUE_ACCOUNT: QUEUE_NUMBER}),
            self.directory / "spool": "/var/spool",
            self.directory / "lib": "/var/lib",
            self.directory / "run": "/run",
            # So that nobody is asked for a name.
            self.directory / "resolv.conf": "/etc/resolv.conf",
        }

    def _make_files(self, certificate: Certificate | None) -> None:
        for name in ("spool", "lib/opensmtpd/empty", "run", "arrived/tmp", "arrived/new"):
            (self.directory / name).mkdir(parents=True)
        for name in ("arrived/tmp", "arrived/new"):
            shutil.chown(self.directory / name, RECORDER)
        (self.directory / "record").write_text(RECORD)
        (self.directory / "resolv.conf").write_text("lookup file\n")
        if certificate:
            for path in (certificate.chain_file, certificate.key_file):
                Path(shutil.copy(path, self.directory)).chmod(0o600)

    def _write_accounts(self, accounts: Mapping[str, str]) -> None:
        lines = []
        for account, password in accounts.items():
            hashed = subprocess.run(
                inside(["/usr/libexec/opensmtpd/encrypt"], usr=[self._usr]),
                input=password + "\n",
                capture_output=True,
                text=True,
                check=True,
            )
            lines.append(f"{account} {hashed.stdout}")
        (self.directory / "accounts").write_text("".join(lines))

    def _write_configuration(self, certificate: Certificate | None, has_accounts: bool) -> None:
        auth = " auth <accounts> received-auth" if has_accounts else ""
        ports = [(self.port, " tls pki mail" if certificate else "")]
        if self.implicit_port:
            ports.append((self.implicit_port, " smtps pki mail"))
        text = CONFIGURATION.format(
            directory=self.directory,
            recorder=RECORDER,
            listeners="\n".join(
                f"listen on {self.address} port {port} hostname mail.example.test{tls}{auth}"
                for port, tls in ports
            ),
        )
        if not certificate:
            text = re.sub("^pki .*\n", "", text, flags=re.MULTILINE)
        self._configuration.write_text(text)

    def _inside(self, *arguments: str) -> list[str | Path]:
        command = ["/usr/sbin/smtpd", *arguments, "-f", self._configuration]
        return inside(command, usr=[self._usr], seen=self._seen)

    def command(self) -> Sequence[str | Path]:
        return self._inside("-d", *(("-T", "smtp") if self._traced else ()))

    def check(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside("-n"), env=self.environment(), capture_output=True, text=True
        )

    def answers(self) -> bool:
        return greets(self.address, self.port)

    def logins(self) -> list[tuple[str, str]]:
        """Account and mechanism of every login so far, if ``traced``."""
        mechanisms = re.findall(r"<<< AUTH (\S+)", self.log(), re.IGNORECASE)
        accounts = re.findall(r"smtp authentication user=(\S+).* result=ok", self.log())
        return list(zip(accounts, mechanisms, strict=True))

    def stop(self) -> None:
        """Record what was taken, then stop."""
        self.arrived()
        super().stop()

    def arrived(self) -> list[Arrived]:
        """Every message that it has taken since it was made, in the order of the last delivery.

        A message that a client has been told ``250`` of is among them; one whose delivery here failed is an error.
        ``mechanism`` is not known to it, see ``logins``.
        """
        wait_for("opensmtpd has recorded what it took", self._is_idle)
        failed = [
            line
            for line in OTHERS.sub("", self.log()).splitlines()
            if " mda delivery " in line and " result=Ok " not in line
        ]
        assert not failed, failed
        messages: dict[bytes, Arrived] = {}
        for path in sorted((self.directory / "arrived/new").iterdir()):
            sender, recipient, delivered = path.read_bytes().split(b"\0", 2)
            trace, message = split_trace(DELIVERY_FIELDS.sub(b"", delivered, count=1))
            found = ID.search(trace), USER.search(trace), HELO.match(trace)
            queue_id, account, helo = (match[1] if match else b"" for match in found)
            before = messages.pop(queue_id, None)
            assert before is None or (before.sender, before.message) == (sender, message)
            recipients = {recipient, *(before.recipients if before else ())}
            messages[queue_id] = Arrived(
                queue_id, sender, tuple(sorted(recipients)), helo, b"", account, trace, message
            )
        return list(messages.values())

    def _is_idle(self) -> bool:
        # In this order: a message goes from incoming to queue, so it cannot be missed in both.
        return not any(any(self._queue.glob(pattern)) for pattern in ("incoming/*/*", "queue/*/*"))
