"""The configuration: TOML files -> ``Config``, or -> the few facts that a submission needs.

``KEYS`` is the one table of every key: validation, error texts and the check of
minisend.toml(5) come from it.  Never asks DNS, never reads a secret, never writes.

Which file (DESIGN: the first that exists is the only one, with ``conf.d/*.toml`` beside it):

    source                                   used when                       else
    -C FILE                                  given                           missing: error
    $MINISEND_CONFIG                         euid or root owns it            error (root: only if
                                                                             root owns it, else the next)
    $XDG_CONFIG_HOME/minisend/config.toml    the same, and we are not root   the next
    /etc/minisend/config.toml                it exists                       the defaults

A file of the second or third kind that others than its owner can write is an error, and so is one
that is no regular file.  "Root" is a real *or* effective uid of 0: a set-uid program runs with its
caller's environment.  A link that this environment names is not followed for root, nor is anything
of /proc read: through /proc/self/fd/0 the message itself would be the configuration.

-C names its file, not the directory around it, which may be open to all (/tmp): conf.d and what is
in it must belong to root, to us or to the owner of the file named, and nobody else may write it.

Two readers: ``load`` checks everything; ``submission_facts`` runs in every ``sendmail``, and checks only
the keys it returns: a mistake in [smarthost] must not stop a cron job from handing over its mail.  Both
read with ``scan`` where they can: tomllib costs 12 ms.

TOML 1.0.0; XDG Base Directory Specification 0.8.
"""

import posix
import sys

from minisend.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

SYSTEM_FILE = "/etc/minisend/config.toml"
SYSTEM_SPOOL = "/var/spool/minisend"
HOSTS_FILE = "/etc/hosts"
MAILNAME_FILE = "/etc/mailname"

# table ("" = top level), key, kind (a tuple = one of these words), default, meaning.
# The default stands as a file would have it; None = worked out, see the manual.
KEYS: "tuple[tuple[str, str, str | tuple[str, ...], object, str], ...]" = (
    ("", "hostname", "domain", None, "The name of this machine in EHLO, Received and Message-ID."),
    ("", "mail_domain", "domain", None, "Appended to an address that has no domain."),
    ("", "admin", "address", "", "Gets mail for root, and what can be told to nobody else."),
    ("spool", "path", "path", None, "The directory that holds the queue."),
    ("spool", "lifetime", "duration", "5d", "A message that waited this long goes back to its sender."),
    ("spool", "warn_after", "duration", "4h", "A message that waited this long causes one delay warning."),
    ("spool", "retry_min", "duration", "5m", "The wait after the first attempt; it doubles with each further one."),
    ("spool", "retry_max", "duration", "4h", "The longest wait between two attempts."),
    ("spool", "max_message_size", "size", "50M", "A larger message is refused at submission."),
    ("spool", "min_free", "size or 0", "16M", "The room that a submission must leave on the queue's file system."),
    ("spool", "min_free_inodes", "count or 0", 100, "The inodes that must be free there for a submission."),
    ("spool", "sync", ("group", "each"), "group", "How the record of deliveries reaches the disk."),
    ("submission", "socket", "path or false", "/run/minisend/submit.sock", "The socket on which the service takes messages."),
    ("submission", "drop", "path or false", "/var/spool/minisend/drop", "The directory that takes messages while nobody listens on the socket."),
    ("submission", "senders", "senders", {}, "Under which addresses each account may send; without it, under any."),
    ("smarthost", "host", "hosts", None, "The server that gets all mail, or a list of servers that are tried in order."),
    ("smarthost", "srv", "domain", "", "A domain whose SRV records name the servers, in place of host."),
    ("smarthost", "port", "port", None, "The TCP port of the server."),
    ("smarthost", "rate", "rate", None, "The most messages that the server is given in a time."),
    ("smarthost", "tls", ("starttls", "implicit", "opportunistic", "none"), "starttls", "How the connection is encrypted."),
    ("smarthost", "tls_ca_file", "path", "", "A PEM file of the authorities to trust in place of the system's."),
    ("smarthost", "tls_fingerprint", "fingerprints", (), "The certificate or key that the server must show, or a list of them."),
    ("smarthost", "tls_cert_file", "path", "", "A PEM file of the certificate to show to the server."),
    ("smarthost", "tls_key_file", "path", "", "A PEM file of the private key of tls_cert_file."),
    ("smarthost", "tls_min_version", ("1.2", "1.3"), "1.2", "The oldest TLS version to accept."),
    ("smarthost", "tls_verify", "boolean", True, "Whether the server's certificate must hold."),
    ("smarthost", "username", "string", "", "The login name at the server."),
    ("smarthost", "password_file", "path", "", "A file that holds the password."),
    ("smarthost", "password_command", "strings", (), "A program and its arguments; the first line it prints is the password."),
    ("smarthost", "credential", "string", "", "The name of a systemd credential that holds the password."),
    ("smarthost", "secret_mode_check", "boolean", True, "Whether a password file that others can read is refused."),
    ("smarthost", "auth", ("auto", "plain", "login", "cram-md5", "scram-sha-1", "scram-sha-1-plus", "scram-sha-256", "scram-sha-256-plus", "oauthbearer", "xoauth2", "external", "none"), "auto", "The SASL mechanism."),
    ("smarthost", "oauth2_provider", ("microsoft365", "google"), "", "Whose OAuth2 service gives the access tokens; it sets the endpoints and the scope."),
    ("smarthost", "oauth2_grant", ("refresh", "client_credentials", "service_account"), "refresh", "What an access token is asked for with."),
    ("smarthost", "oauth2_client_id", "string", "", "The name under which the service knows this program."),
    ("smarthost", "oauth2_client_secret_file", "path", "", "A file that holds the client's secret."),
    ("smarthost", "oauth2_service_account_file", "path", "", "A file that holds the private key of a service account."),
    ("smarthost", "oauth2_tenant", "domain", "common", "The Microsoft 365 tenant: its identifier or one of its domains."),
    ("smarthost", "oauth2_scope", "string", "", "What the token must allow, in place of what the provider needs for sending mail."),
    ("smarthost", "oauth2_token_endpoint", "endpoint", "", "The URL that gives tokens."),
    ("smarthost", "oauth2_device_endpoint", "endpoint", "", "The URL that gives a code to log in with on another device."),
    ("smarthost", "oauth2_auth_endpoint", "endpoint", "", "The URL of the page on which a user logs in."),
    ("smarthost", "oauth2_ca_file", "path", "", "A PEM file of the authorities to trust for these URLs in place of the system's."),
    ("smarthost", "oauth2_token_file", "path", "", "Where the tokens are kept."),
    ("route", "sender", "sender patterns", (), "Whose messages take this route."),
    ("route", "recipient", "patterns", (), "To whom messages take this route."),
    ("route", "via", "via", None, "Where these messages go."),
    ("delivery", "mx_port", "port", 25, "The TCP port of MX hosts."),
    ("delivery", "tls", ("none", "opportunistic"), "opportunistic", "How a connection to an MX host is encrypted."),
    ("delivery", "connections_per_host", "count", 20, "The most connections to one destination at a time."),
    ("delivery", "connections", "count", 100, "The most connections in all."),
    ("delivery", "source_address", "addresses", (), "The addresses of this machine that connections are made from."),
    ("dns", "nameservers", "addresses", (), "The addresses of the DNS servers to ask."),
    ("dns", "port", "port", 53, "The UDP and TCP port of the DNS servers."),
    ("limits", "messages_per_uid", "count or 0", 0, "The most messages of one user that may wait at a time."),
    ("limits", "octets_per_uid", "size or 0", 0, "The most octets that the waiting messages of one user may have."),
    ("limits", "rate_per_uid", "count or 0", 0, "The most messages that are taken from one user within an hour."),
    ("limits", "flood", "repeats", 0, "A message that one user sends more often than this within an hour is held."),
)  # fmt: skip

# What submission_facts returns.
_FOR_SUBMISSION = (
    ("spool", "path"),
    ("spool", "max_message_size"),
    ("spool", "min_free"),
    ("spool", "min_free_inodes"),
    ("spool", "sync"),
    ("submission", "socket"),
    ("submission", "drop"),
)

# With [smarthost] port unset: RFC 6409, RFC 8314 section 3.3, RFC 5321.
_PORTS = {"starttls": 587, "opportunistic": 587, "implicit": 465, "none": 25}

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_DURATION = 3650 * 86400
_LEAST_AND_MOST = {
    "port": (1, 65535),
    "count": (1, 1_000_000),
    "count or 0": (0, 1_000_000),
    # delivery.flood remembers each of them.
    "repeats": (0, 10_000),
}
# Each message within the time has its place in delivery.rate's file.
_MOST_IN_A_RATE = 100_000
# The tables of KEYS of which there are several have names of their own in what is read: "smarthosts.NAME", "route 1".
_NAMED = "smarthosts."
_NUMBERED = "route "
# Words that a route's via has for something else.
_NOT_A_NAME = ("discard", "lmtp", "local", "mx", "smarthost", "smtp", "srv")
_OCTETS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MAX_SIZE = 1 << 40
# difflib's ratio from which a known name is suggested: "lifetme" has 0.93, "port" for mx_port 0.73.
_NEAR = 0.7
# inode(7): what stat.S_ISREG tests, without the module.
_TYPE, _REGULAR = 0o170000, 0o100000
# No file by hand comes near it; it bounds what -C /dev/zero can do.
_MAX_FILE = 1 << 20


# -- what load returns -------------------------------------------------------------------------


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


def smarthost_table(name: str) -> str:
    """What the table of a smarthost is called, brackets and all; ``name`` is "" for [smarthost]."""
    return f"[smarthosts.{name}]" if name else "[smarthost]"


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
        if self.spool.path == SYSTEM_SPOOL:
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
            self._hostname = _machine_name()
        return self._hostname

    @property
    def mail_domain(self) -> str:
        """A domain name, ASCII."""
        if not self._mail_domain:
            self._mail_domain = _mailname() or self.hostname
        return self._mail_domain


class SubmissionFacts:
    """All that ``sendmail`` needs to know before it hands a message over; forms as in ``Config``.

    ``spool_path``  "" for a uid that has no home, and no spool is named: then the socket and the drop are left
    """

    __slots__ = (
        "drop",
        "file",
        "max_message_size",
        "min_free",
        "min_free_inodes",
        "socket",
        "spool_path",
        "sync",
    )

    def __init__(self, file: "str | None", spool: Spool, submission: Submission) -> None:
        self.file = file
        self.spool_path = spool.path
        self.max_message_size = spool.max_message_size
        self.min_free = spool.min_free
        self.min_free_inodes = spool.min_free_inodes
        self.sync = spool.sync
        self.socket = submission.socket
        self.drop = submission.drop


def _fill(section: object, table: str, values: "dict[str, Any]") -> None:
    """Set one attribute for each key of the table: from ``values``, else the default."""
    for row_table, name, kind, default, _ in KEYS:
        if row_table == table and name != "host":
            in_force = values.pop(name) if name in values else _in_form(kind, default, default)
            setattr(section, name, in_force)
    if values:
        raise TypeError(f"no such key in [{table}]: {', '.join(sorted(values))}")


# -- the two readers ---------------------------------------------------------------------------


def load(explicit: "str | None", environ: "Mapping[bytes, bytes]", uid: int, euid: int) -> Config:
    """Read and check the whole configuration.

    ``explicit``  the value of -C, None without one
    ``environ``   as ``posix.environ`` and ``os.environb`` have it
    Raises ConfigError, one line: ``FILE:LINE: [table] key: expected this (got that)``.
    """
    main = None
    values: dict[str, dict[str, Any]] = {}
    origin: dict[tuple[str, str], tuple[str, str, str]] = {}
    routes = 0
    for path, text in _files(explicit, environ, uid, euid):
        main = main or path
        raw = scan(text)
        if raw is None:
            raw = _parse(path, text)
        for there, names in _checked(path, text, raw).items():
            table = there
            if there.startswith(_NUMBERED):
                routes += 1
                table = f"{_NUMBERED}{routes}"
            values.setdefault(table, {}).update(names)
            origin[table, ""] = (path, text, there)
            for name in names:
                origin[table, name] = (path, text, there)
    _check_together(values, origin)

    spool = values.get("spool", {})
    spool_path = spool.pop("path", None) or _default_spool(environ, uid, euid)
    smarthosts = {
        table: Smarthost(values[table].pop("host", ()), **values[table])
        for table in _smarthost_tables(values)
    }
    return Config(
        file=main,
        spool=Spool(spool_path, **spool),
        submission=Submission(**values.get("submission", {})),
        smarthost=smarthosts.pop("smarthost", None),
        smarthosts={table[len(_NAMED) :]: found for table, found in smarthosts.items()},
        routes=tuple(Route(**values[f"{_NUMBERED}{number + 1}"]) for number in range(routes)),
        delivery=Delivery(**values.get("delivery", {})),
        dns=Dns(**values.get("dns", {})),
        limits=Limits(**values.get("limits", {})),
        **values.get("", {}),
    )


def submission_facts(
    explicit: "str | None", environ: "Mapping[bytes, bytes]", uid: int, euid: int
) -> SubmissionFacts:
    """Read what a submission needs; arguments as for ``load``.

    Raises ConfigError for a file that cannot be read or is not TOML, and for a wrong value of a key
    it returns; what else is wrong there is for ``load`` to say.
    """
    main = None
    spool: dict[str, Any] = {}
    submission: dict[str, Any] = {}
    for path, text in _files(explicit, environ, uid, euid):
        main = main or path
        tables = scan(text)
        if tables is None:
            tables = _parse(path, text)
        for table, name, kind, default, _ in KEYS:
            if (table, name) not in _FOR_SUBMISSION or table not in tables:
                continue
            section = tables[table]
            if not isinstance(section, dict):
                raise _wrong_table(path, text, table, section)
            if name in section:
                into = spool if table == "spool" else submission
                into[name] = _typed(path, text, (table, name, kind, default), section[name])
    ways = Submission(**submission)
    spool_path = spool.pop("path", None)
    if spool_path is None:
        try:
            spool_path = _default_spool(environ, uid, euid)
        except ConfigError:
            if not (ways.socket or ways.drop):
                raise
            spool_path = ""  # who has no place for a queue has the system's service
    return SubmissionFacts(main, Spool(spool_path, **spool), ways)


# -- TOML --------------------------------------------------------------------------------------


def scan(text: str) -> "dict[str, Any] | None":
    """Read plain TOML: what ``tomllib.loads(text)`` returns, or None for "ask tomllib".

    Plain is: blank lines, comments, ``[table]`` lines of one bare key, and lines of a bare key with
    a one-line basic string without a backslash, an unsigned decimal integer, or a boolean.
    All else is None: no text that tomllib refuses is ever accepted here.
    """
    tables: dict[str, Any] = {}
    table = tables
    for line in text.replace("\r\n", "\n").split("\n"):
        line = line.strip(" \t")
        if not line:
            continue
        # Refuses more than TOML does (a tab, U+00A0), but all control characters that TOML refuses.
        if not line.isprintable():
            return None
        if line[0] == "#":
            continue
        if line[0] == "[":
            name, bracket, rest = line[1:].partition("]")
            if not bracket or name in tables:
                return None
            table = tables[name] = {}
        else:
            name, equals, value = line.partition("=")
            name = name.rstrip(" ")
            value = value.lstrip(" ")
            if not equals or name in table:
                return None
            if value[:1] == '"':
                value, quote, rest = value[1:].partition('"')
                if not quote or "\\" in value:  # of triple quotes, the third stands in rest
                    return None
                table[name] = value
            else:
                value, _, _ = value.partition("#")
                value = value.rstrip(" ")
                rest = ""
                if value in ("true", "false"):
                    table[name] = value == "true"
                elif value == "0" or (value.isdecimal() and value[0] != "0" and len(value) <= 18):
                    table[name] = int(value)
                else:
                    return None
        bare = name.replace("_", "").replace("-", "")
        rest = rest.lstrip(" ")
        if not bare.isalnum() or not line.isascii() or (rest and rest[0] != "#"):
            return None
    return tables


def _parse(path: str, text: str) -> "dict[str, Any]":
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        # ValueError: TOMLDecodeError is one, and so is an integer of more than 4,300 digits.
        raise ConfigError(f"{path}: not TOML: {exc}") from exc


# -- values ------------------------------------------------------------------------------------


def _in_form(kind: "str | tuple[str, ...]", value: "Any", default: object) -> "Any":
    """The value in the form that ``Config`` holds.  Raises ValueError when it is not of that kind."""
    if value is None or value == "" == default:
        return value  # unset
    if isinstance(kind, tuple):
        if isinstance(value, str) and value in kind:
            return value
    elif kind == "boolean":
        if isinstance(value, bool):
            return value
    elif kind in _LEAST_AND_MOST:
        least, most = _LEAST_AND_MOST[kind]
        if type(value) is int and least <= value <= most:
            return value
    elif kind in ("size", "size or 0"):
        octets = _octets(value)
        if (kind == "size") <= octets <= _MAX_SIZE:
            return octets
    elif kind == "path or false" and value is False:
        return None
    elif kind in ("strings", "addresses"):
        if isinstance(value, (list, tuple)) and all(
            isinstance(item, str) and (_is_text(item) if kind == "strings" else _is_ip(item))
            for item in value
        ):
            return tuple(value)
    elif kind == "hosts":
        hosts = value if isinstance(value, list) else [value]
        if hosts and all(isinstance(host, str) for host in hosts):
            return tuple(_host(host) for host in hosts)
    elif kind in ("patterns", "sender patterns"):
        patterns = [value] if isinstance(value, str) else value
        if (
            isinstance(patterns, (list, tuple))
            and (patterns or not default)
            and all(
                isinstance(item, str)
                and (_is_pattern(item) or (item == "<>" and kind == "sender patterns"))
                for item in patterns
            )
        ):
            return tuple(patterns)
    elif kind == "senders":
        if isinstance(value, dict):
            return {
                account: _in_form("sender patterns", _for_anybody(patterns), ())
                and _several(patterns)
                for account, patterns in value.items()
            }
    elif kind == "fingerprints":
        prints = [value] if isinstance(value, str) else value
        if isinstance(prints, (list, tuple)) and all(isinstance(item, str) for item in prints):
            return tuple(_fingerprint(item) for item in prints)
    elif isinstance(value, str) and _is_text(value):
        if kind == "duration":
            seconds = _number(value[:-1]) * _SECONDS.get(value[-1], 0)
            if 1 <= seconds <= _MAX_DURATION:
                return seconds
        elif kind == "rate":
            messages, _, unit = value.partition("/")
            if 1 <= _number(messages) <= _MOST_IN_A_RATE and unit in _SECONDS:
                return (_number(messages), _SECONDS[unit])
        elif kind == "via":
            return _via(value)
        elif (
            kind == "string"
            or (kind in ("path", "path or false") and value[0] == "/")
            or (kind == "domain" and _is_domain(value))
            or (kind == "endpoint" and _is_endpoint(value))
            or (kind == "address" and _is_address(value))
        ):
            return value
    raise ValueError


def _several(patterns: "Any") -> "tuple[str, ...]":
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _for_anybody(patterns: "Any") -> "Any":
    """Patterns of [submission] senders as any other are checked: "{user}" in them is somebody's name."""
    if isinstance(patterns, str):
        return patterns.replace("{user}", "user")
    if isinstance(patterns, list):
        return [_for_anybody(each) for each in patterns]
    return patterns


_PATTERN = 'a pattern such as "*@shop.example", "user@shop.example" or "shop.example"'


def _expected(kind: "str | tuple[str, ...]") -> str:
    if isinstance(kind, tuple):
        return " or ".join(", ".join(f'"{word}"' for word in kind).rsplit(", ", 1))
    return {
        "address": "a mail address",
        "addresses": 'a list of IP addresses, such as ["127.0.0.1"]',
        "boolean": "true or false",
        "count": "a whole number from 1 to 1000000",
        "domain": 'a domain name in ASCII, such as "host.example.org"',
        "endpoint": "an https URL without user name or fragment",
        "duration": 'a time of at most 3650 days, such as "5d", "4h", "30m" or "90s"',
        "fingerprints": '"sha256:" or "spki-sha256:" and the digest in hexadecimal or base64, or a list of them',
        "hosts": "a host name or IP address without a port, or a list of them",
        "patterns": f"{_PATTERN}, or a list of them",
        "path": "an absolute path",
        "path or false": "an absolute path or false",
        "port": "a whole number from 1 to 65535",
        "rate": f'at most {_MOST_IN_A_RATE} messages in a second, minute, hour or day, such as "30/m" or "2000/d"',
        "senders": "accounts, each with "
        f'{_PATTERN}, "<>" for the null reverse-path, or a list of them; in which {{user}} is the account',
        "sender patterns": f'{_PATTERN}, "<>" for the null reverse-path, or a list of them',
        "via": 'the name of a smarthost, "mx", "discard", "lmtp:/path", "lmtp:[host]:port" or "[host]:port"',
        "count or 0": "a whole number from 0 to 1000000",
        "repeats": "a whole number from 0 to 10000",
        "size": 'a size of at most 1024G, such as "50M", "512K" or a number of octets',
        "size or 0": 'a size of at most 1024G, such as "16M", "512K" or a number of octets, or 0',
        "string": "text without control characters",
        "strings": 'a list of strings, such as ["/usr/bin/pass", "mail"]',
    }[kind]


def _is_text(value: str) -> bool:
    """Not empty and without line ends or control characters, which would reach log and header."""
    return value != "" and value.isprintable()


def _is_domain(name: str) -> bool:
    """RFC 1034 section 3.5, and the underscore, which container networks use."""
    return len(name) <= 253 and all(
        len(label) <= 63
        and label.isascii()
        and label.replace("-", "").replace("_", "").isalnum()
        and label[0] != "-" != label[-1]
        for label in name.split(".")
    )


def _is_address(value: str) -> bool:
    """One address, bare or qualified: enough to catch a list, a display name or angle brackets."""
    return not any(char in ' <>,;:"()' for char in value) and "@" not in (value[0], value[-1])


def _is_ip(value: str) -> bool:
    from _socket import AF_INET, AF_INET6, inet_pton

    for family in (AF_INET, AF_INET6):
        try:
            inet_pton(family, value.partition("%")[0])  # fe80::1%eth0: RFC 4007 section 11
            return True
        except (OSError, ValueError):
            pass
    return False


def _is_endpoint(value: str) -> bool:
    """RFC 6749 section 3.1: no fragment; TLS is a must, but on the way to this machine itself there is nobody."""
    from urllib.parse import urlsplit

    try:
        url = urlsplit(value)
        host, _ = url.hostname or "", url.port
    except ValueError:
        return False
    return (
        value.isascii()
        and not any(char in value for char in ' "<>\\^`{|}#')
        and "@" not in url.netloc
        and (_is_ip(host) or _is_domain(host))
        and (
            url.scheme == "https"
            or (url.scheme == "http" and host in ("localhost", "127.0.0.1", "::1"))
        )
    )


def _host(value: str) -> str:
    """The host without the brackets that Postfix and the URL form use.  Raises ValueError."""
    host = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else value
    # "10.0.0" is neither an address nor a name that any resolver takes as one.
    if _is_ip(host) or (_is_domain(host) and not host.replace(".", "").isdecimal()):
        return host
    raise ValueError


def _is_pattern(value: str) -> bool:
    """Something before the last "@" or nothing, then a domain; "*" anywhere."""
    local, _, domain = value.rpartition("@")
    return (
        domain != ""
        and domain.isascii()
        and all(char.isalnum() or char in "-_.:[]*" for char in domain)
        and local.isprintable()
        and not any(char in " <>,;" for char in local)
    )


def _is_name(value: str) -> bool:
    """Of a smarthost: it is the name of a file too, and a word of a route's via."""
    return (
        value.isascii()
        and value.replace("_", "").replace("-", "").isalnum()
        and len(value) <= 64
        and value not in _NOT_A_NAME
    )


def _via(value: str) -> "tuple[str, str, str, int, str]":
    """What ``Route`` takes for a via.  Raises ValueError."""
    if value in ("mx", "discard", "local"):
        return (value, "", "", 0, "")
    if value == "smarthost":
        return (value, "", "", 0, "")
    if _is_name(value):
        return ("smarthost", value, "", 0, "")
    kind, place = ("lmtp", value[5:]) if value[:5] == "lmtp:" else ("smtp", value)
    # sun_path of unix(7).
    if kind == "lmtp" and place[:1] == "/" and len(place.encode()) <= 107:
        return (kind, "", "", 0, place)
    host, _, port = place.rpartition(":")
    least, most = _LEAST_AND_MOST["port"]
    if host[:1] != "[" or host[-1:] != "]" or not least <= _number(port) <= most:
        raise ValueError
    return (kind, "", _host(host), _number(port), "")


def _fingerprint(value: str) -> str:
    """In the form of ``Smarthost``; with colons between the octets as openssl prints it, or not.  Raises ValueError."""
    import binascii

    subject, _, digest = value.partition(":")
    if subject not in ("sha256", "spki-sha256"):
        raise ValueError
    digits = digest.replace(":", "")
    # binascii.Error is a ValueError.
    octets = (
        binascii.unhexlify(digits)
        if len(digits) == 64
        else binascii.a2b_base64(digest, strict_mode=True)
    )
    if len(octets) != 32:
        raise ValueError
    return f"{subject}:{octets.hex()}"


def _number(digits: str) -> int:
    """-1 for what is not a number of a sensible length."""
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 15 else -1


def _octets(value: object) -> int:
    if type(value) is int:
        return value
    if not isinstance(value, str):
        return -1
    unit = _OCTETS.get(value[-1:])
    return _number(value[:-1]) * unit if unit else _number(value)


# -- checks ------------------------------------------------------------------------------------


def _checked(path: str, text: str, raw: "dict[str, Any]") -> "dict[str, dict[str, Any]]":
    """Every value of one file in its form, by table ("" = top level, of several "smarthosts.NAME", "route 1") and key."""
    rows = {(row[0], row[1]): row[:4] for row in KEYS}
    tables = {table for table, _ in rows if table}
    checked: dict[str, dict[str, Any]] = {}
    for table, like, section in _tables(path, text, raw):
        if like not in tables:
            if ("", table) not in rows:
                raise _unknown(path, text, "", table, section)
            checked.setdefault("", {})[table] = _typed(path, text, rows["", table], section)
            continue
        if not isinstance(section, dict):
            raise _wrong_table(path, text, table, section)
        checked[table] = {}
        for name, value in section.items():
            if (like, name) not in rows:
                raise _unknown(path, text, table, name, value, like)
            checked[table][name] = _typed(path, text, (table, *rows[like, name][1:]), value)
    return checked


def _tables(path: str, text: str, raw: "dict[str, Any]") -> "Iterator[tuple[str, str, Any]]":
    """Each table and each key of the top level: its name, that of its table in KEYS, its value."""
    for name, value in raw.items():
        if name + "." == _NAMED:
            if not isinstance(value, dict):
                raise _wrong_table(path, text, name, value)
            for own, section in value.items():
                if not _is_name(own):
                    raise _wrong(
                        path,
                        text,
                        name,
                        own,
                        "expected a name of at most 64 letters, digits, - and _, and none of "
                        f"{', '.join(_NOT_A_NAME)}",
                    )
                yield f"{_NAMED}{own}", "smarthost", section
        elif name + " " == _NUMBERED:
            if not isinstance(value, list):
                raise _wrong(
                    path, text, name, "", f"expected [[route]] tables (got {_shown(value)})"
                )
            for number, section in enumerate(value, 1):
                yield f"{_NUMBERED}{number}", "route", section
        else:
            yield name, name, value


def _check_together(
    values: "dict[str, dict[str, Any]]", origin: "dict[tuple[str, str], tuple[str, str, str]]"
) -> None:
    """What one value demands of another, over all files."""

    def wrong(table: str, name: str, what: str) -> ConfigError:
        where = origin[table, name] if (table, name) in origin else origin[table, ""]
        return _wrong(*where, name, what)

    spool = Spool("/", **{k: v for k, v in values.get("spool", {}).items() if k != "path"})
    if spool.retry_min > spool.retry_max:
        raise wrong(
            "spool",
            "retry_max" if ("spool", "retry_max") in origin else "retry_min",
            f"expected retry_min <= retry_max (got {spool.retry_min} s and {spool.retry_max} s)",
        )
    sources = values.get("delivery", {}).get("source_address", ())
    if len({":" in address for address in sources}) < len(sources):
        raise wrong(
            "delivery", "source_address", "expected at most one IPv4 and one IPv6 address in it"
        )
    for table in _smarthost_tables(values):
        _check_smarthost(table, values[table], wrong)
    for table in values:
        if table.startswith(_NUMBERED):
            _check_route(table, values, wrong)


def _smarthost_tables(values: "dict[str, dict[str, Any]]") -> "list[str]":
    return [table for table in values if table == "smarthost" or table.startswith(_NAMED)]


def _check_route(
    table: str,
    values: "dict[str, dict[str, Any]]",
    wrong: "Callable[[str, str, str], ConfigError]",
) -> None:
    route = values[table]
    if "via" not in route:
        raise wrong(table, "via", f"expected {_expected('via')} (got nothing)")
    if not route.get("sender") and not route.get("recipient"):
        raise wrong(table, "via", "expected sender or recipient beside it (got nothing)")
    kind, name, *_ = route["via"]
    if kind == "local":
        raise wrong(table, "via", "there is no local delivery in this version (got 'local')")
    home = f"{_NAMED}{name}" if name else "smarthost"
    if kind == "smarthost" and home not in values:
        raise wrong(table, "via", f"expected {_expected('via')}; there is no [{home}]")


def _check_smarthost(
    table: str, smarthost: "dict[str, Any]", wrong: "Callable[[str, str, str], ConfigError]"
) -> None:
    """``table``: its name in the file, without brackets."""
    if smarthost.get("srv"):
        for name in ("host", "port", "tls"):
            if name in smarthost:
                raise wrong(table, name, "expected none beside srv, whose records say it")
    elif "host" not in smarthost:
        raise wrong(table, "host", f"expected {_expected('hosts')} (got nothing)")
    oauth2 = _check_oauth2(table, smarthost, wrong)
    given = [n for n in ("password_file", "password_command", "credential") if smarthost.get(n)]
    if len(given) > 1:
        raise wrong(table, given[1], f"expected only one of this and {given[0]}")
    auth = smarthost.get("auth", "auto")
    username = smarthost.get("username")
    if oauth2 and given:
        raise wrong(table, given[0], f"expected only one of this and {oauth2}")
    if given and not username:
        raise wrong(table, given[0], "expected username beside it (got nothing)")
    if auth == "external" and given:
        raise wrong(table, "auth", f'expected no {given[0]} beside "{auth}"')
    if auth not in ("auto", "external", "none") and not username:
        raise wrong(table, "auth", f'expected username beside "{auth}" (got nothing)')
    if username and not given and not oauth2 and auth not in ("external", "none"):
        raise wrong(
            table,
            "username",
            "expected password_file, password_command or credential beside it (got nothing)",
        )
    _check_tls(table, smarthost, wrong)


def _check_tls(
    table: str, smarthost: "dict[str, Any]", wrong: "Callable[[str, str, str], ConfigError]"
) -> None:
    """A certificate that would never be shown, or a fingerprint never looked at, is a mistake that costs mail or trust."""
    level = smarthost.get("tls", "starttls")
    if smarthost.get("tls_fingerprint"):
        if level not in ("starttls", "implicit"):
            what = f'expected tls = "starttls" or "implicit" beside it (got "{level}")'
            raise wrong(table, "tls_fingerprint", what)
        if not smarthost.get("tls_verify", True):
            raise wrong(table, "tls_fingerprint", "expected no tls_verify = false beside it")
    has_certificate = bool(smarthost.get("tls_cert_file"))
    if smarthost.get("tls_key_file") and not has_certificate:
        raise wrong(table, "tls_key_file", "expected tls_cert_file beside it (got nothing)")
    if has_certificate and level == "none":
        raise wrong(table, "tls_cert_file", 'expected no tls = "none" beside it')
    if smarthost.get("auth") == "external" and not has_certificate:
        raise wrong(table, "auth", 'expected tls_cert_file beside "external" (got nothing)')


def _check_oauth2(
    table: str, smarthost: "dict[str, Any]", wrong: "Callable[[str, str, str], ConfigError]"
) -> str:
    """Whether the table asks for OAuth2: the first key that says so, "" when none does."""
    given = [row[1] for row in KEYS if row[1].startswith("oauth2_") and smarthost.get(row[1])]
    if not given:
        return ""

    def need(name: str, at: str = given[0], beside: str = "it") -> None:
        if not smarthost.get(name):
            raise wrong(table, at, f"expected {name} beside {beside} (got nothing)")

    if "oauth2_provider" not in given and "oauth2_token_endpoint" not in given:
        need("oauth2_provider or oauth2_token_endpoint")
    need("username")
    auth = smarthost.get("auth", "auto")
    if auth not in ("auto", "xoauth2", "oauthbearer", "none"):
        raise wrong(
            table,
            "auth",
            f'expected "auto", "xoauth2" or "oauthbearer" beside {given[0]} (got {_shown(auth)})',
        )
    grant = smarthost.get("oauth2_grant", "refresh")
    quoted = f'"{grant}"'
    if grant == "service_account":
        need("oauth2_service_account_file", "oauth2_grant", quoted)
        return given[0]
    need("oauth2_client_id")
    if grant == "client_credentials":
        need("oauth2_client_secret_file", "oauth2_grant", quoted)
        if smarthost.get("oauth2_provider") == "microsoft365":
            # "common" stands for the tenant that a user belongs to; here there is no user.
            need("oauth2_tenant", "oauth2_grant", quoted)
    return given[0]


def _typed(
    path: str, text: str, row: "tuple[str, str, str | tuple[str, ...], object]", value: object
) -> "Any":
    table, name, kind, default = row
    try:
        return _in_form(kind, value, default)
    except ValueError:
        # Somebody may have put the secret itself there: it must not reach a log.
        got = (
            ""
            if name in ("password_file", "credential", "oauth2_client_secret_file")
            else f" (got {_shown(_culprit(kind, value))})"
        )
        raise _wrong(path, text, table, name, f"expected {_expected(kind)}{got}") from None


def _culprit(kind: "str | tuple[str, ...]", value: object) -> object:
    """The first member of a list of addresses, hosts or the like that is none, else the value itself."""
    if isinstance(value, list) and kind in (
        "addresses",
        "fingerprints",
        "hosts",
        "patterns",
        "sender patterns",
    ):
        for member in value:
            try:
                _in_form(kind, [member], None)
            except ValueError:
                return member
    return value


def _shown(value: object) -> str:
    if isinstance(value, str):
        shown = repr(value)
        return shown if len(shown) <= 60 else shown[:56] + "...'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return str(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"


def _unknown(
    path: str, text: str, table: str, name: str, value: object, like: str = ""
) -> ConfigError:
    """An unknown key, or for a table of the file an unknown table, with the nearest known name.

    ``like``  the table of KEYS that has the keys of this one, unless it is this one
    """
    import difflib

    like = like or table
    is_table = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(item, dict) for item in value)
    )
    if is_table and not table:
        known = [row[0] for row in KEYS if row[0]]
        table, kind, form = name, "table", "{}"
        near = [_heading(table) for table in difflib.get_close_matches(name, known, 1, _NEAR)]
        name = ""
    else:
        kind, form = "key", "{}"
        near = difflib.get_close_matches(name, [row[1] for row in KEYS if row[0] == like], 1, _NEAR)
        elsewhere = [row[0] for row in KEYS if row[1] == name]
        if elsewhere and not near:
            home = (
                f"in {_heading(elsewhere[0])}" if elsewhere[0] else "at the top, before any table"
            )
            return _wrong(path, text, table, name, f"unknown key here: it belongs {home}")
    hint = f" (did you mean {form.format(near[0])}?)" if near else ""
    return _wrong(path, text, table, name, f"unknown {kind}{hint}")


def _wrong_table(path: str, text: str, table: str, value: object) -> ConfigError:
    return _wrong(path, text, table, "", f"expected a table (got {_shown(value)})")


def _wrong(path: str, text: str, table: str, name: str, what: str) -> ConfigError:
    line = _line(text, table, name)
    parts = [f"{path}:{line}" if line else path]
    key = repr(name)[1:-1]
    if table:
        parts.append(f"{_heading(table)} {key}" if key else _heading(table))
    else:
        parts.append(key)
    return ConfigError(": ".join([*parts, what]))


def _heading(table: str) -> str:
    """As it stands in a file."""
    return "[[route]]" if (table + " ").startswith(_NUMBERED) else f"[{table}]"


def _line(text: str, table: str, name: str) -> int:
    """The number of the line that sets the key, else of the one that opens the table.

    0 when no line or several could be meant: text in triple quotes may look like either.
    """
    here = ""
    keys, headers = [], []
    routes = 0
    for number, line in enumerate(text.split("\n"), 1):
        key, equals, _ = line.partition("=")
        if line.lstrip().startswith("["):
            here = line.partition("#")[0].strip("[] \t\r")
            if here + " " == _NUMBERED and line.lstrip().startswith("[["):
                routes += 1
                here = f"{_NUMBERED}{routes}"
            if here == (table or name):
                headers.append(number)
        elif equals and (here, key.strip(" \t\"'")) in ((table, name), ("", table)):
            keys.append(number)
    found = keys or headers
    return found[0] if len(found) == 1 else 0


# -- files -------------------------------------------------------------------------------------


class _Unfit(ConfigError):
    """It is no regular file."""


class _Foreign(_Unfit):
    """The file belongs to somebody else."""


def _files(
    explicit: "str | None", environ: "Mapping[bytes, bytes]", uid: int, euid: int
) -> "list[tuple[str, str]]":
    """Name and text of the main file, then of conf.d/*.toml beside it in name order."""
    main = _main_file(explicit, environ, uid, euid)
    if main is None:
        return []
    path, octets, owners = main
    files = [(path, _decoded(path, octets))]
    head, slash, _ = path.rpartition("/")
    directory = f"{head}{slash}conf.d"
    try:
        fd = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return files
    except OSError as exc:
        raise _unreadable(directory, exc) from exc
    try:
        _check_owner(directory, fd, owners)
        for name in sorted(posix.listdir(fd)):
            if name.endswith(".toml") and name[0] != ".":
                path = f"{directory}/{name}"
                try:
                    octets, _ = _read(name, owners, path, fd)
                except OSError as exc:
                    raise _unreadable(path, exc) from exc
                files.append((path, _decoded(path, octets)))
    finally:
        posix.close(fd)
    return files


def _main_file(
    explicit: "str | None", environ: "Mapping[bytes, bytes]", uid: int, euid: int
) -> "tuple[str, bytes, tuple[int, ...]] | None":
    """Name and octets of the file in force, and who may own what is beside it (() = anybody); None when there is none."""
    if explicit is not None:
        try:
            octets, owner = _read(explicit, ())
            return explicit, octets, (0, euid, owner)
        except OSError as exc:
            raise _unreadable(explicit, exc) from exc
    root = 0 in (uid, euid)
    named = _environ(environ, b"MINISEND_CONFIG")
    if named:
        owners = (0,) if root else (0, euid)
        try:
            if named[0] == "/":
                return named, _read(named, owners, follow=not root)[0], owners
            if not root:
                raise ConfigError(f"$MINISEND_CONFIG: expected an absolute path (got {named!r})")
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (_Unfit, OSError) as exc:
            # Root under sudo or su with another's environment must run nothing of theirs.
            if isinstance(exc, OSError) and not root:
                raise _unreadable(named, exc) from exc
            if not root:
                raise
    if not root:
        base = _absolute(environ, b"XDG_CONFIG_HOME")
        if not base:
            home = _home(environ, uid, euid)
            base = "" if home is None else f"{home}/.config"
        path = f"{base}/minisend/config.toml"
        try:
            if base:
                return path, _read(path, (0, euid))[0], (0, euid)
        except (FileNotFoundError, NotADirectoryError, _Foreign):
            # Foreign: su without "-" keeps the variable of the user before.
            pass
        except OSError as exc:
            # A home that this process may not enter (systemd's ProtectHome=) holds nothing for it.
            if not isinstance(exc, PermissionError) or _visible(path):
                raise _unreadable(path, exc) from exc
    try:
        return SYSTEM_FILE, _read(SYSTEM_FILE, ())[0], ()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise _unreadable(SYSTEM_FILE, exc) from exc


def _read(
    name: str,
    owners: "tuple[int, ...]",
    path: str = "",
    dir_fd: "int | None" = None,
    *,
    follow: bool = True,
) -> "tuple[bytes, int]":
    """The octets of a file and its owner.  Raises OSError, and ConfigError when ``owners`` forbid its use.

    ``follow``  false: the name itself must be a file's, and not one of /proc
    A path from the environment may name a FIFO or a leased file of somebody else's: it is opened
    without waiting, and the check is made on what was opened.
    """
    path = path or name
    flags = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOCTTY
    if owners:
        flags |= posix.O_NONBLOCK
    if not follow:
        flags |= posix.O_NOFOLLOW
    fd = posix.open(name, flags, dir_fd=dir_fd)
    try:
        _check_owner(path, fd, owners)
        status = posix.fstat(fd)
        if owners and (
            status.st_mode & _TYPE != _REGULAR or not (follow or _on_disk(status.st_dev))
        ):
            raise _Unfit(f"{path}: not used: expected a regular file")
        octets = b""
        while len(octets) <= _MAX_FILE:
            chunk = posix.read(fd, 65536)
            if not chunk:
                return octets, status.st_uid
            octets += chunk
        raise ConfigError(f"{path}: larger than {_MAX_FILE} octets")
    finally:
        posix.close(fd)


def _on_disk(device: int) -> bool:
    """False for /proc, whose files are regular and root's, with the caller's own words in some of them."""
    try:
        return device != posix.stat("/proc").st_dev
    except OSError:
        return True  # not mounted


def _check_owner(path: str, fd: int, owners: "tuple[int, ...]") -> None:
    if not owners:
        return
    status = posix.fstat(fd)
    if status.st_uid not in owners:
        wanted = " or ".join(str(owner) for owner in sorted(set(owners)))
        raise _Foreign(
            f"{path}: not used: expected owner uid {wanted} (got {status.st_uid}): "
            f"chown it, or name another file"
        )
    if status.st_mode & 0o022:
        mode = status.st_mode & 0o7777
        raise ConfigError(f"{path}: not used: others can write it (mode {mode:04o}): chmod go-w it")


def _decoded(path: str, octets: bytes) -> str:
    try:
        return octets.decode()
    except UnicodeDecodeError as exc:
        line = octets.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{path}:{line}: not TOML: not UTF-8") from exc


def _unreadable(path: str, exc: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot read it: {exc.strerror}")


def _visible(path: str) -> bool:
    """False when a directory on the way may not be searched."""
    try:
        posix.stat(path)
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def _environ(environ: "Mapping[bytes, bytes]", name: bytes) -> str:
    return environ.get(name, b"").decode(sys.getfilesystemencoding(), "surrogateescape")


def _absolute(environ: "Mapping[bytes, bytes]", name: bytes) -> str:
    """A directory from the environment, "" unless absolute (XDG: "relative ... should be ignored")."""
    path = _environ(environ, name)
    return path if path[:1] == "/" else ""


def _home(environ: "Mapping[bytes, bytes]", uid: int, euid: int) -> "str | None":
    """The home of the real uid, without a slash at its end; None when it has none.

    $HOME counts only for a uid without an account (a container with an arbitrary one): sudo and
    cron jobs carry the HOME of somebody else.
    """
    import pwd

    try:
        home = pwd.getpwuid(uid).pw_dir
    except KeyError:
        home = _absolute(environ, b"HOME")
        try:
            if posix.stat(home).st_uid != euid:
                return None
        except OSError:
            return None
    return home.rstrip("/") if home[:1] == "/" else None


def _default_spool(environ: "Mapping[bytes, bytes]", uid: int, euid: int) -> str:
    try:
        posix.stat(SYSTEM_SPOOL)
        return SYSTEM_SPOOL
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        # It may well be there: an error must not send mail into another spool.
        return SYSTEM_SPOOL
    state = state_directory(environ, uid, euid)
    if state is None:
        raise ConfigError(
            f"[spool] path: {SYSTEM_SPOOL} does not exist and uid {uid} has no home directory: "
            "create it, or set path in a configuration file"
        )
    return state


def state_directory(environ: "Mapping[bytes, bytes]", uid: int, euid: int) -> "str | None":
    """The user's own directory for what minisend keeps (XDG); None without a home.  It need not exist."""
    state = "" if 0 in (uid, euid) else _absolute(environ, b"XDG_STATE_HOME")
    if not state:
        home = _home(environ, uid, euid)
        if home is None:
            return None
        state = f"{home}/.local/state"
    return f"{state}/minisend"


# -- the names of this machine -----------------------------------------------------------------


def _machine_name() -> str:
    """The default of hostname: the first with a dot of uname, /etc/hosts, /etc/mailname; else bare."""
    name = posix.uname().nodename
    if "." in name and _is_domain(name):
        return name
    for line in _lines(HOSTS_FILE):
        canonical, *aliases = line.partition("#")[0].split()[1:] or [""]
        if (
            name.lower() in [alias.lower() for alias in (canonical, *aliases)]
            and "." in canonical
            and _is_domain(canonical)
            # "127.0.0.1 localhost.localdomain localhost myhost" says nothing about myhost.
            and not canonical.startswith("localhost")
        ):
            return canonical
    return _mailname() or (name if _is_domain(name) else "localhost")


def _mailname() -> str:
    """The domain in /etc/mailname (Debian Policy 11.6), "" when there is none."""
    for line in _lines(MAILNAME_FILE):
        name = line.strip()
        if name:
            return name if _is_domain(name) else ""
    return ""


def _lines(path: str) -> "list[str]":
    try:
        return _read(path, ())[0].decode("utf-8", "surrogateescape").splitlines()
    except (OSError, ConfigError):
        return []
