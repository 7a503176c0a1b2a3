"""Postfix as a smarthost or MX that keeps every message as it took it, with its envelope.

The whole of it lives in the server's directory: main.cf, master.cf, queue, data, log, and what arrived.  It never
sends anything on: every recipient goes to one pipe(8) that writes a file.  What cleanup(8) does to a message by
default (fields dropped, headers cut, MIME converted) is switched off, so all that Postfix adds is its Received field,
and what ends each line in the file is a LF.  No message is taken with a line that ends in anything but CRLF.

Its accounts are two that every Debian has, since dpkg -x makes none: ``daemon`` owns the queue, ``mail`` is the group
of its commands, and the pipe runs as ``nobody``.  Sources: postconf(5), master(5), pipe(8), SASL_README.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peers.certificate import Certificate
from peers.process import Server, free_port, greets, wait_for
from peers.unpacked import unavailable, unpacked

OWNER = "daemon"
GROUP = "mail"
RECORDER = "nobody"

# The domain of the accounts; a client leaves it out.
REALM = "accounts.test"

# Postfix gives: directory, queue id, HELO name, mechanism, account, sender, recipients; and the message on stdin.
# A reader sees a file in new/ only when it is whole.
RECORD = """\
set -eu
cd "$1"
shift
{ printf '%s\\0' "$#" "$@"; cat; } >"tmp/$1.$$"
mv "tmp/$1.$$" "new/$1.$$"
"""

# name, type, private, unprivileged, wakeup, process limit, command; chroot is never (master(5)).
SERVICES = """\
cleanup    unix       n - n -     0  cleanup
qmgr       unix       n - n 300   1  qmgr
tlsmgr     unix       - - n 1000? 1  tlsmgr
rewrite    unix       - - n -     -  trivial-rewrite
bounce     unix       - - n -     0  bounce
defer      unix       - - n -     0  bounce
trace      unix       - - n -     0  bounce
verify     unix       - - n -     1  verify
proxymap   unix       - - n -     -  proxymap
error      unix       - - n -     -  error
retry      unix       - - n -     -  error
showq      unix       n - n -     -  showq
anvil      unix       - - n -     1  anvil
postlog    unix-dgram n - n -     1  postlogd
"""

PRIVATE_DIRECTORIES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush"),
    *("hold", "incoming", "private", "saved", "trace"),
)


@dataclass(frozen=True, slots=True)
class Arrived:
    """One message as one transaction brought it.

    ``sender``, ``recipients``  without <>, quoted where RFC 5321 needs it; the null reverse-path is b"";
                                recipients sorted, each once.
    ``helo``                    the name that the client gave.
    ``mechanism``, ``account``  of AUTH (account with its realm), b"" without.
    ``trace``                   the server's own Received field, with the protocol, TLS version and account in it.
    ``message``                 the rest, octet for octet, LF line ends.
    """

    queue_id: bytes
    sender: bytes
    recipients: tuple[bytes, ...]
    helo: bytes
    mechanism: bytes
    account: bytes
    trace: bytes
    message: bytes


def split_trace(delivered: bytes) -> tuple[bytes, bytes]:
    """The Received field that a server put in front, and the message as it came."""
    assert delivered.startswith(b"Received: "), delivered[:200]
    end = delivered.index(b"\n") + 1
    while delivered[end : end + 1] in (b" ", b"\t"):
        end = delivered.index(b"\n", end) + 1
    return delivered[:end], delivered[end:]


def parse_recorded(octets: bytes) -> Arrived:
    """What RECORD wrote: the number of fields, the fields, each ended by a NUL; then the message."""
    count, _, rest = octets.partition(b"\0")
    *fields, delivered = rest.split(b"\0", int(count))
    queue_id, helo, mechanism, account, sender, *recipients = fields
    trace, message = split_trace(delivered)
    return Arrived(
        queue_id,
        sender,
        tuple(sorted(recipients)),
        helo,
        mechanism,
        account,
        trace,
        message,
    )


class Postfix(Server):
    """Postfix that takes mail from loopback for every address.

    ``address``      to serve on, in 127.0.0.0/8.
    ``port``         for plain sessions, with STARTTLS if there is a certificate; a free one unless given.
    ``certificate``  makes STARTTLS and the port ``implicit_port`` for TLS from the first octet.
    ``accounts``     name to password: AUTH, offered only inside TLS if there is a certificate, is then required.
    ``mechanisms``   that AUTH offers, as Cyrus SASL names them.
    ``refusals``     access(5) table for recipients: address (``user@`` for any domain, ``domain`` for any user) to
                     reply (``550 5.1.1 unknown``, ``450 4.2.1 later``).
    ``parameters``   of postconf(5); they win over the ones here.
    """

    name = "postfix"

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        certificate: Certificate | None = None,
        accounts: Mapping[str, str] | None = None,
        mechanisms: Sequence[str] = ("PLAIN", "LOGIN"),
        refusals: Mapping[str, str] | None = None,
        **parameters: str | int,
    ) -> None:
        self._files = unpacked("postfix")
        saslpasswd2 = unpacked("sasl2-bin") / "usr/sbin/saslpasswd2" if accounts else None
        if os.geteuid() != 0:
            unavailable("Postfix is started by root only")
        super().__init__()
        self.address = address
        self.port = port or free_port(address)
        self.implicit_port = free_port(address) if certificate else None
        self._arrived = self.directory / "arrived"
        self._queue = self.directory / "queue"
        self._configuration = self.directory / "etc"
        self._make_directories()
        self._configure("record", RECORD)
        self._configure(
            "refusals", "".join(f"{key} {reply}\n" for key, reply in (refusals or {}).items())
        )
        self._write_services()
        self._write_parameters(certificate, bool(accounts), parameters)
        if accounts and saslpasswd2:
            self._write_accounts(saslpasswd2, accounts, mechanisms)

    def _make_directories(self) -> None:
        """What ``postfix check`` would make, with the rights of postfix-files."""
        for name, mode, owner, group in (
            ("etc", 0o755, "root", "root"),
            ("etc/sasl", 0o755, "root", "root"),
            ("data", 0o700, OWNER, OWNER),
            ("queue", 0o755, "root", "root"),
            ("queue/pid", 0o755, "root", "root"),
            ("queue/public", 0o710, OWNER, GROUP),
            *((f"queue/{name}", 0o700, OWNER, "root") for name in PRIVATE_DIRECTORIES),
            ("queue/maildrop", 0o730, OWNER, GROUP),
            ("arrived", 0o755, "root", "root"),
            ("arrived/tmp", 0o700, RECORDER, "root"),
            ("arrived/new", 0o700, RECORDER, "root"),
        ):
            path = self.directory / name
            path.mkdir()
            path.chmod(mode)
            shutil.chown(path, owner, group)

    def _configure(self, name: str, text: str) -> None:
        path = self._configuration / name
        path.write_text(text)
        # Postfix waits while a file is younger than two seconds: it may still be being written.
        os.utime(path, (0, 0))

    def _write_services(self) -> None:
        services = f"{self.address}:{self.port} inet n - n - - smtpd\n"
        if self.implicit_port:
            services += f"{self.address}:{self.implicit_port} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes\n"
        recorder = (
            f"record unix - n n - 10 pipe user={RECORDER} flags=q null_sender="
            f" argv=/bin/sh {self._configuration}/record {self._arrived}"
            " ${queue_id} ${client_helo} ${sasl_method} ${sasl_username} ${sender} ${recipient}\n"
        )
        self._configure("master.cf", services + SERVICES + recorder)

    def _write_parameters(
        self,
        certificate: Certificate | None,
        has_accounts: bool,
        parameters: Mapping[str, str | int],
    ) -> None:
        libraries = self._files / "usr/lib/postfix"
        written: dict[str, str | int] = {
            "compatibility_level": "3.6",
            # Its own files.
            "command_directory": f"{self._files}/usr/sbin",
            "daemon_directory": f"{libraries}/sbin",
            "shlib_directory": str(libraries),
            "meta_directory": str(self._configuration),
            "queue_directory": str(self._queue),
            "data_directory": f"{self.directory}/data",
            "maillog_file": f"{self.directory}/maillog",
            "maillog_file_prefixes": str(self.directory),
            "mail_owner": OWNER,
            "setgid_group": GROUP,
            "import_environment": f"MAIL_CONFIG LANG=C TZ=UTC LD_LIBRARY_PATH={libraries}",
            # The names it goes by; nothing is looked up, nothing is sent on.
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "myhostname": "mail.example.test",
            "mynetworks": "127.0.0.0/8",
            "mydestination": "",
            "alias_maps": "",
            "disable_dns_lookups": "yes",
            "smtpd_peername_lookup": "no",
            # One next hop for all recipients, so that a transaction is one delivery.
            "default_transport": "record:all",
            "record_destination_recipient_limit": 100000,
            # Sorted by name is sorted by arrival.
            "enable_long_queue_ids": "yes",
            # The message stays as it is.
            "local_header_rewrite_clients": "",
            "append_dot_mydomain": "no",
            "swap_bangpath": "no",
            "allow_percent_hack": "no",
            "message_drop_headers": "",
            "cleanup_replace_stray_cr_lf": "no",
            "disable_mime_input_processing": "yes",
            "disable_mime_output_conversion": "yes",
            "header_size_limit": 2**30,
            "message_size_limit": 0,
            # A message with a bare LF in it is refused, from loopback too.
            "smtpd_forbid_bare_newline": "reject",
            "smtpd_forbid_bare_newline_exclusions": "",
            # Who may send to whom.
            "allow_min_user": "yes",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject"
            if has_accounts
            else "permit_mynetworks, reject",
            "smtpd_recipient_restrictions": f"check_recipient_access texthash:{self._configuration}/refusals, permit",
            "smtpd_error_sleep_time": 0,
        }
        if certificate:
            written |= {
                "smtpd_tls_security_level": "may",
                "smtpd_tls_chain_files": f"{certificate.key_file}, {certificate.chain_file}",
                "smtpd_tls_received_header": "yes",
            }
        if has_accounts:
            written |= {
                "smtpd_sasl_auth_enable": "yes",
                "smtpd_sasl_authenticated_header": "yes",
                "smtpd_sasl_local_domain": REALM,
                "smtpd_tls_auth_only": "yes" if certificate else "no",
            }
        written |= parameters
        self._configure(
            "main.cf", "".join(f"{name} = {value}\n" for name, value in written.items())
        )

    def _write_accounts(
        self, saslpasswd2: Path, accounts: Mapping[str, str], mechanisms: Sequence[str]
    ) -> None:
        database = self._configuration / "sasl/sasldb2"
        # Where Debian's smtpd looks for it, whatever cyrus_sasl_config_path says.
        self._configure(
            "sasl/smtpd.conf",
            "pwcheck_method: auxprop\nauxprop_plugin: sasldb\n"
            f"sasldb_path: {database}\nmech_list: {' '.join(mechanisms)}\n",
        )
        for account, password in accounts.items():
            subprocess.run(
                [saslpasswd2, *("-p", "-c", "-u", REALM, "-f"), database, account],
                input=password.encode(),
                check=True,
            )
        shutil.chown(database, OWNER)

    def command(self) -> Sequence[str | Path]:
        # -d: stays in the foreground and in the session made for it.
        return [self._files / "usr/lib/postfix/sbin/master", "-d", "-c", self._configuration]

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "LD_LIBRARY_PATH": f"{self._files}/usr/lib/postfix"}

    def check(self) -> subprocess.CompletedProcess[str]:
        # As ``postfix start`` does; unlike master it says on stderr what it will not have in main.cf.
        return subprocess.run(
            [self._files / "usr/sbin/postsuper", "-c", self._configuration],
            env=self.environment(),
            capture_output=True,
            text=True,
        )

    def answers(self) -> bool:
        return greets(self.address, self.port)

    def log(self) -> str:
        """What it has said so far: the mail log, after what master said before there was one."""
        try:
            return super().log() + (self.directory / "maillog").read_text(errors="replace")
        except FileNotFoundError:
            return super().log()

    def stop(self) -> None:
        """Record what was taken, then stop: a pipe that is killed half way would record half a message."""
        self.arrived()
        super().stop()

    def arrived(self) -> list[Arrived]:
        """Every message that it has taken since it was made, in the order of arrival.

        A message that a client has been told ``250`` of is among them; one whose delivery here failed is an error.
        """
        wait_for("postfix has recorded what it took", self._is_idle)
        deferred = [path for path in (self._queue / "deferred").rglob("*") if path.is_file()]
        assert not deferred, f"postfix could not record {deferred}:\n{self.log()}"
        return [
            parse_recorded(path.read_bytes()) for path in sorted((self._arrived / "new").iterdir())
        ]

    def _is_idle(self) -> bool:
        # In this order: a message goes from incoming to active, so it cannot be missed in both.
        return not any(any((self._queue / name).iterdir()) for name in ("incoming", "active"))
