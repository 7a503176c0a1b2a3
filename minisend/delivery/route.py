"""Where one recipient goes: an address and the configuration give a ``NextHop``.  Pure.

It never looks up a name and never opens a file: what hosts a next hop has is ``delivery.mx``'s.

    rule                              next hop                        key (equal = one transaction)
    -NAME@mail_domain                 kind "error"                    the reason
    [smarthost]                       kind "smarthost"                the same for every recipient
    anything else                     kind "mx", domain               the recipient's domain or address literal

The first rule with an answer wins.  Sources: RFC 5321 sections 2.3.5, 4.1.3 and 5.1.
"""

from collections.abc import Callable
from dataclasses import dataclass

from minisend.address import AddressError, same, split, to_ascii
from minisend.config import Config

ERROR = "error"
SMARTHOST = "smarthost"
MX = "mx"


@dataclass(frozen=True, slots=True)
class NextHop:
    """One destination: recipients with equal next hops share a transaction.

    ``kind``    ERROR (the recipient fails) | SMARTHOST | MX
    ``name``    for logs, mailq and status files: "[smtp.example.org]:587" (several: comma between), "example.net";
                with ERROR the reason
    ``domain``  with MX the domain to look up: A-labels in lower case, no final dot, or an address literal with
                its brackets; octets that are not UTF-8 stand as ``\\xHH``, which no domain name contains.
                "" with the others
    ``status``  with ERROR the enhanced status code, else ""
    """

    kind: str
    name: str
    domain: str = ""
    status: str = ""


def _dash(recipient: bytes, config: Config) -> NextHop | None:
    """No account's name begins with a dash (Postfix has allow_min_user): it is an option that came after a recipient."""
    local, domain = split(recipient)
    if local.startswith(b"-") and same(b"x@" + domain, b"x@" + config.mail_domain.encode()):
        return NextHop(ERROR, "no account begins with a dash", status="5.1.1")
    return None


def _smarthost(recipient: bytes, config: Config) -> NextHop | None:
    smarthost = config.smarthost
    if smarthost is None:
        return None
    # The brackets say, as in Postfix, that the host itself is meant and not its MX.
    return NextHop(SMARTHOST, ",".join(f"[{host}]:{smarthost.port}" for host in smarthost.hosts))


def _mx(recipient: bytes, config: Config) -> NextHop | None:
    try:
        domain = split(to_ascii(recipient))[1]
    except AddressError as exc:
        return NextHop(ERROR, str(exc), status="5.1.2")
    # Lower case in octets: a domain compares in ASCII (RFC 5321 section 2.4), and str.lower() would fold more.
    name = domain.lower().removesuffix(b".").decode("utf-8", "backslashreplace")
    return NextHop(MX, name, name)


_RULES: tuple[Callable[[bytes, Config], NextHop | None], ...] = (_dash, _smarthost, _mx)


def route(recipient: bytes, config: Config) -> NextHop:
    """The next hop of ``recipient``: a qualified address, octets, no angle brackets.

    An address without domain is not looked up on anybody's behalf: its MX next hop has the domain
    "", which ``delivery.mx`` answers with 5.1.2.
    """
    return next(hop for rule in _RULES if (hop := rule(recipient, config)) is not None)


def common(config: Config) -> NextHop | None:
    """Where nearly every recipient goes, whatever the address; None when that depends on it."""
    return _smarthost(b"", config)
