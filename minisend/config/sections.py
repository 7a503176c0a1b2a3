"""What ``load`` returns: one class for each table, filled from ``KEYS``.

Holds values that were checked; checks none itself, and reads no file but to work out the names of this machine.
"""

from minisend.config import files
from minisend.config.forms import in_form
from minisend.config.keys import KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# With [smarthost] port unset: RFC 6409, RFC 8314 section 3.3, RFC 5321.
_PORTS = {"starttls": 587, "opportunistic": 587, "implicit": 465, "none": 25}


class Spool:
    """[spool]: ``path`` absolute; times in seconds; sizes in octets; ``min_free...`` 0 for any; ``sync`` a word."""

    __slots__ = (
        "lifetime",
        "max_message_size",
        "min_free",
        "min_free_inodes",
        "path",
        "retry_max",
        "retry_min",
        "sync",
        "warn_after",
    )
    path: str
    lifetime: int
    warn_after: int
    retry_min: int
    retry_max: int
    max_message_size: int
    min_free: int
    min_free_inodes: int
    sync: str

    def __init__(self, path: str, **values: "Any") -> None:
        _fill(self, "spool", {"path": path, **values})


class Submission:
    """[submission]: absolute paths, None where the file says false; ``senders``: account, uid or "*" → patterns."""

    __slots__ = ("drop", "senders", "socket")
    socket: "str | None"
    drop: "str | None"
    senders: "dict[str, tuple[str, ...]]"

    def __init__(self, **values: "Any") -> None:
        _fill(self, "submission", values)


class Smarthost:
    """[smarthost] and [smarthosts.NAME]: what is unset is "" or (); ``hosts`` are names or addresses without brackets.

    ``srv``   a domain: then ``hosts`` is (), and ``port`` and ``tls`` are what the DNS says
    ``rate``  messages, and the seconds within which there are no more of them; None without a limit
    ``tls_fingerprint``  each "sha256:" or "spki-sha256:" and 64 hexadecimal digits in lower case
    """

    __slots__ = (
        "auth",
        "credential",
        "hosts",
        "oauth2_auth_endpoint",
        "oauth2_ca_file",
        "oauth2_client_auth",
        "oauth2_client_id",
        "oauth2_client_secret_file",
        "oauth2_device_endpoint",
        "oauth2_grant",
        "oauth2_provider",
        "oauth2_scope",
        "oauth2_service_account_file",
        "oauth2_tenant",
        "oauth2_token_endpoint",
        "oauth2_token_file",
        "password_command",
        "password_file",
        "port",
        "rate",
        "secret_mode_check",
        "srv",
        "tls",
        "tls_ca_file",
        "tls_cert_file",
        "tls_fingerprint",
        "tls_key_file",
        "tls_min_version",
        "tls_verify",
        "username",
    )
    hosts: "tuple[str, ...]"
    srv: str
    port: int
    rate: "tuple[int, int] | None"
    tls: str
    tls_ca_file: str
    tls_fingerprint: "tuple[str, ...]"
    tls_cert_file: str
    tls_key_file: str
    tls_min_version: str
    tls_verify: bool
    username: str
    password_file: str
    password_command: "tuple[str, ...]"
    credential: str
    secret_mode_check: bool
    auth: str
    oauth2_provider: str
    oauth2_grant: str
    oauth2_client_id: str
    oauth2_client_secret_file: str
    oauth2_client_auth: str
    oauth2_service_account_file: str
    oauth2_tenant: str
    oauth2_scope: str
    oauth2_token_endpoint: str
    oauth2_device_endpoint: str
    oauth2_auth_endpoint: str
    oauth2_ca_file: str
    oauth2_token_file: str

    def __init__(self, hosts: "tuple[str, ...]", **values: "Any") -> None:
        self.hosts = hosts
        _fill(self, "smarthost", values)
        if self.tls is None:
            # RFC 8314 section 7.3: on this port a server that is waited for to speak first would wait for us, too.
            self.tls = "implicit" if self.port == _PORTS["implicit"] else "starttls"
        if self.port is None:
            self.port = _PORTS[self.tls]

    @property
    def uses_oauth2(self) -> bool:
        """Access tokens come from the service that the oauth2_... keys name."""
        return bool(self.oauth2_provider or self.oauth2_token_endpoint)


class Route:
    """[[route]]: for mail that both sides match.

    ``sender``, ``recipient``  patterns, of which one must match; () matches all.  "<>" is the null reverse-path;
                               else the domain follows the last "@", without one the whole is a domain
    ``via``     "smarthost" | "mx" | "lmtp" | "smtp" | "discard"
    ``name``    with "smarthost" that of the table, "" for [smarthost]
    ``host``    with "lmtp" and "smtp" a name or an address, no brackets; "" with a ``path``
    ``port``    0 without a host
    ``path``    with "lmtp" the absolute path of a socket, "" with a ``host``
    """

    __slots__ = ("host", "name", "path", "port", "recipient", "sender", "via")

    def __init__(
        self,
        via: "tuple[str, str, str, int, str]",
        sender: "tuple[str, ...]" = (),
        recipient: "tuple[str, ...]" = (),
    ) -> None:
        self.via, self.name, self.host, self.port, self.path = via
        self.sender = sender
        self.recipient = recipient


class Delivery:
    """[delivery]: ``tls`` is for MX hosts; the counts are limits.

    ``source_address``  at most one of IPv4 and one of IPv6
    """

    __slots__ = ("connections", "connections_per_host", "mx_port", "source_address", "tls")
    mx_port: int
    tls: str
    connections_per_host: int
    connections: int
    source_address: "tuple[str, ...]"

    def __init__(self, **values: "Any") -> None:
        _fill(self, "delivery", values)


class Dns:
    """[dns]: ``nameservers`` are addresses; () means those of resolv.conf."""

    __slots__ = ("nameservers", "port")
    nameservers: "tuple[str, ...]"
    port: int

    def __init__(self, **values: "Any") -> None:
        _fill(self, "dns", values)


class Limits:
    """[limits]: sizes in octets, rates an hour; 0 is no limit."""

    __slots__ = ("flood", "messages_per_uid", "octets_per_uid", "rate_per_uid")
    messages_per_uid: int
    octets_per_uid: int
    rate_per_uid: int
    flood: int

    def __init__(self, **values: "Any") -> None:
        _fill(self, "limits", values)


class Config:
    """Every value of one configuration, defaults filled in; see ``KEYS``.

    ``file``       the main file as it was named, None when there is none
    ``admin``      an address, bare or qualified, "" when unset
    ``smarthost``  None: deliver to the recipients' MX hosts
    ``smarthosts`` those of [smarthosts.NAME], by name
    ``routes``     in the order of the file, those of conf.d after it; the first that matches counts
    """

    __slots__ = (
        "_hostname",
        "_mail_domain",
        "admin",
        "delivery",
        "dns",
        "file",
        "limits",
        "routes",
        "smarthost",
        "smarthosts",
        "spool",
        "submission",
    )

    def __init__(
        self,
        *,
        file: "str | None",
        spool: Spool,
        hostname: str = "",
        mail_domain: str = "",
        admin: str = "",
        submission: "Submission | None" = None,
        smarthost: "Smarthost | None" = None,
        smarthosts: "Mapping[str, Smarthost] | None" = None,
        routes: "tuple[Route, ...]" = (),
        delivery: "Delivery | None" = None,
        dns: "Dns | None" = None,
        limits: "Limits | None" = None,
    ) -> None:
        self.file = file
        self._hostname = hostname
        self._mail_domain = mail_domain
        self.admin = admin
        self.spool = spool
        self.submission = submission or Submission()
        self.smarthost = smarthost
        self.smarthosts = smarthosts or {}
        self.routes = routes
        self.delivery = delivery or Delivery()
        self.dns = dns or Dns()
        self.limits = limits or Limits()

    def named_smarthost(self, name: str) -> "Smarthost | None":
        """That of [smarthosts.NAME], of [smarthost] for ""; None without such a table."""
        return self.smarthosts.get(name) if name else self.smarthost

    @property
    def served(self) -> "Submission":
        """The ways into this queue that its service keeps open.

        Those of the defaults lead into the system's: a service of another queue has only what it names.
        """
        if self.spool.path == files.SYSTEM_SPOOL:
            return self.submission
        usual, named = Submission(), self.submission
        return Submission(
            senders=named.senders,
            socket=None if named.socket == usual.socket else named.socket,
            drop=None if named.drop == usual.drop else named.drop,
        )

    @property
    def hostname(self) -> str:
        """A domain name, ASCII.  Worked out when first asked for: files only, never DNS."""
        if not self._hostname:
            from minisend.config.machine import machine_name

            self._hostname = machine_name()
        return self._hostname

    @property
    def mail_domain(self) -> str:
        """A domain name, ASCII."""
        if not self._mail_domain:
            from minisend.config.machine import mailname

            self._mail_domain = mailname() or self.hostname
        return self._mail_domain


def _fill(section: object, table: str, values: "dict[str, Any]") -> None:
    """Set one attribute for each key of the table: from ``values``, else the default."""
    for row_table, name, kind, default, _ in KEYS:
        if row_table == table and name != "host":
            in_force = values.pop(name) if name in values else in_form(kind, default, default)
            setattr(section, name, in_force)
    if values:
        raise TypeError(f"no such key in [{table}]: {', '.join(sorted(values))}")
