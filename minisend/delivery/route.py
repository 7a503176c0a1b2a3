"""Where one recipient goes: an address, the sender and the configuration give a ``NextHop``.  Pure.

It never looks up a name and never opens a file: what hosts a next hop has is ``delivery.mx``'s.

    rule                   next hop                            key (equal = one transaction)
    -NAME@mail_domain      kind "error"                        the reason
    [[route]], the first   what its ``via`` says               that, but with "mx" the domain; the same place of two
    that matches                                               routes is one
    [smarthost]            kind "smarthost"                    the same for every recipient
    anything else          kind "mx", domain                   the recipient's domain or address literal

The first rule with an answer wins.

    pattern               matches                                            in
    <>                    the null reverse-path, which nothing else matches  sender
    LOCAL@DOMAIN          both; LOCAL as it is, DOMAIN in any case
    @DOMAIN, DOMAIN       that domain, and none below it: *.DOMAIN
    *                     any octets or none, anywhere in a pattern

A domain is compared in A-labels without a final dot.  The sender of a message that bounces is null, and the report goes
to its recipient by the routes as any message.

Sources: RFC 5321 sections 2.3.5, 2.4, 4.1.3 and 5.1.
"""

from __future__ import annotations

from minisend.address import AddressError, comparable, is_one_of, same, split, to_ascii
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from minisend.config.sections import Config, Route, Smarthost

ERROR = "error"
DISCARD = "discard"
SMARTHOST = "smarthost"
LMTP = "lmtp"
SMTP = "smtp"
MX = "mx"


class NextHop(Value):
    """One destination: recipients with equal next hops share a transaction.

    ``kind``       ERROR (the recipient fails) | DISCARD | SMARTHOST | LMTP | SMTP | MX
    ``name``       for logs, mailq and status files, of no two destinations the same:
                   "[smtp.example.org]:587" (several: comma between), "srv:example.org" for [smarthost];
                   "NAME:" and the same for [smarthosts.NAME]; "smtp:[host]:25", "lmtp:[host]:24", "lmtp:/path";
                   "discard"; with MX the domain; with ERROR the reason
    ``domain``     with MX the domain to look up: A-labels in lower case, no final dot, or an address literal with
                   its brackets; octets that are not UTF-8 stand as ``\\xHH``, which no domain name contains.
                   "" with the others
    ``status``     with ERROR the enhanced status code, else ""
    ``smarthost``  with SMARTHOST the NAME of its table, "" for [smarthost]
    ``host``, ``port``, ``path``  with SMTP and LMTP as in ``config.sections.Route``
    """

    __slots__ = ("domain", "host", "kind", "name", "path", "port", "smarthost", "status")

    def __init__(
        self,
        kind: str,
        name: str,
        domain: str = "",
        status: str = "",
        smarthost: str = "",
        host: str = "",
        port: int = 0,
        path: str = "",
    ) -> None:
        self.kind = kind
        self.name = name
        self.domain = domain
        self.status = status
        self.smarthost = smarthost
        self.host = host
        self.port = port
        self.path = path

    def __hash__(self) -> int:
        # Asked for many times a message; no two destinations have the same.
        return hash(self.name)

    # Python takes it away from who defines the one and not the other.
    __eq__ = Value.__eq__

    def smarthost_in(self, config: Config) -> Smarthost | None:
        """The table that says how to connect and to log in; None when this is no smarthost."""
        return config.named_smarthost(self.smarthost) if self.kind == SMARTHOST else None


def _dash(recipient: bytes, sender: bytes, config: Config) -> NextHop | None:
    """No account's name begins with a dash (Postfix has allow_min_user): it is an option that came after a recipient."""
    if not recipient.startswith(b"-"):
        return None
    _, domain = split(recipient)
    if same(b"x@" + domain, b"x@" + config.mail_domain.encode()):
        return NextHop(ERROR, "no account begins with a dash", status="5.1.1")
    return None


def _routes(recipient: bytes, sender: bytes, config: Config) -> NextHop | None:
    if not config.routes:
        return None
    to, by = comparable(recipient), comparable(sender)
    for each in config.routes:
        if is_one_of(each.recipient, to) and is_one_of(each.sender, by):
            return _VIA[each.via](each, recipient, config)
    return None


def _default(recipient: bytes, sender: bytes, config: Config) -> NextHop | None:
    return _smarthost("", config)


def _smarthost(name: str, config: Config) -> NextHop | None:
    smarthost = config.named_smarthost(name)
    if smarthost is None:
        return None
    hop = _smarthosts.get((name, smarthost))
    if hop is None:
        hop = _smarthosts[name, smarthost] = _smarthost_hop(name, smarthost)
    return hop


# One object for each, since most messages go to the same: (name of the table, table) → next hop.
_smarthosts: dict[tuple[str, Smarthost], NextHop] = {}


def _smarthost_hop(name: str, smarthost: Smarthost) -> NextHop:
    # The brackets say, as in Postfix, that the host itself is meant and not its MX.
    place = f"srv:{smarthost.srv}" if smarthost.srv else ""
    place = place or ",".join(f"[{host}]:{smarthost.port}" for host in smarthost.hosts)
    return NextHop(SMARTHOST, f"{name}:{place}" if name else place, smarthost=name)


def _server(via: Route, recipient: bytes, config: Config) -> NextHop:
    place = via.path or f"[{via.host}]:{via.port}"
    return NextHop(via.via, f"{via.via}:{place}", host=via.host, port=via.port, path=via.path)


def _mx(recipient: bytes, sender: bytes, config: Config) -> NextHop | None:
    try:
        domain = split(to_ascii(recipient))[1]
    except AddressError as exc:
        return NextHop(ERROR, str(exc), status="5.1.2")
    # Lower case in octets: a domain compares in ASCII (RFC 5321 section 2.4), and str.lower() would fold more.
    name = domain.lower().removesuffix(b".").decode("utf-8", "backslashreplace")
    return NextHop(MX, name, name)


_RULES: tuple[Callable[[bytes, bytes, Config], NextHop | None], ...] = (
    _dash,
    _routes,
    _default,
    _mx,
)

_VIA: dict[str, Callable[[Route, bytes, Config], NextHop | None]] = {
    "smarthost": lambda via, recipient, config: _smarthost(via.name, config),
    "mx": lambda via, recipient, config: _mx(recipient, b"", config),
    "discard": lambda via, recipient, config: NextHop(DISCARD, "discard"),
    "lmtp": _server,
    "smtp": _server,
}


def route(recipient: bytes, config: Config, sender: bytes = b"") -> NextHop:
    """The next hop of ``recipient``: a qualified address, octets, no angle brackets; ``sender`` the reverse-path likewise.

    An address without domain is not looked up on anybody's behalf: its MX next hop has the domain
    "", which ``delivery.mx`` answers with 5.1.2.
    """
    for rule in _RULES:
        hop = rule(recipient, sender, config)
        if hop is not None:
            return hop
    raise RuntimeError("the last rule has an answer for everybody")


def common(config: Config) -> NextHop | None:
    """Where nearly every recipient goes, whatever the addresses; None when that depends on them."""
    return None if config.routes else _default(b"", b"", config)
