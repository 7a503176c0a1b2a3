"""The servers of a next hop: names in, a list of ``Target`` in the order to try them out.

It never connects to a server, and a failure here is always an ``Unroutable``, which
``delivery.policy`` turns into an Outcome.

    what the DNS says of the domain                  status   source
    MX hosts with addresses                          -        RFC 5321 section 5.1
    no MX: the domain's own addresses ("implicit")   -        RFC 5321 section 5.1
    no such domain, or no possible name              5.1.2    RFC 5321 section 5.1
    a single MX "."                                  5.1.10   RFC 7505
    neither MX nor address; no MX host has one       5.4.4    RFC 5321 section 5.1, as Postfix
    the best MX is this machine                      5.4.6    RFC 5321 section 5.1
    this machine is an MX, better ones have no
    address                                          4.4.4    as Postfix
    no answer, SERVFAIL, REFUSED                     4.4.3    RFC 5321 section 5.1
    dnspython is not installed, no resolv.conf       4.3.5    -
    (what the configuration names: smarthost, LMTP   4.4.4    no fault of the message's
    or SMTP server) the system resolver finds
    nothing; no SRV record for it, or "."

A lookup that fails for the moment never lets a name that failed for good decide: 4.4.3 wins over
5.4.4, and SERVFAIL for the MX does not lead to the implicit one.  But one host with an address is
enough.

**What "this machine" is.**  An MX host whose name is ``hostname`` is ourselves; so is, with
``mx_port`` 25, one with a loopback address or an address of this machine: there our own server
would listen.  With another ``mx_port`` the administrator has said where servers listen, and
addresses prove nothing (several servers on one machine, tests on loopback).  MX hosts of our own or a
worse preference are dropped, for they would hand the message back (RFC 5321 section 5.1).

Smarthosts are looked up with the system resolver: /etc/hosts counts and dnspython is not needed.  But ``srv`` needs it:

    1.  _submissions._tcp     TLS from the first octet     RFC 8314 sections 3.3 and 5.1
    2.  _submission._tcp      STARTTLS, required           RFC 6186 section 3.1

Of each the targets by priority, among equals by lot according to weight (RFC 2782).  What a certificate must hold: the
name of the target when it is the domain asked for or below it, else that domain (RFC 6186 section 6, RFC 7817 section
3): the answer may be a stranger's, who has good certificates for names of their own.

Where no DNS server answers, each name would wait for its whole time in turn: after two names without
any answer one is asked every ``CACHE_SECONDS``, and the others fail at once.

Limits: an answer is believed for ``CACHE_SECONDS``, whatever its TTL.  The time of the system
resolver is bounded by resolv.conf's own options, not here.
"""

from __future__ import annotations

import _socket
import time
from itertools import chain, groupby, zip_longest

from minisend.delivery.route import ERROR, NextHop
from minisend.errors import MinisendError
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from minisend.config.sections import Config, Dns

    T = TypeVar("T")

# The seam to the DNS: (name, "MX" | "SRV" | "A" | "AAAA", seconds) -> records.
#
# Name: lower case, no final dot.  Records in zone file form ("10 mx.example.org.", "192.0.2.1"), CNAMEs
# followed; () when the name has none of the kind.  Raises ``NoSuchName``, ``LookupFailed``, ``NoAnswer``;
# an ``Unroutable`` goes through to the caller.
if TYPE_CHECKING:
    Query = Callable[[str, str, float], tuple[str, ...]]

TRY_SECONDS = 5.0
NEXT_HOP_SECONDS = 30.0
CACHE_SECONDS = 60.0
# Postfix stops at 5 (smtp_mx_address_limit); large providers list up to 15.
TARGET_LIMIT = 20
SMTP_PORT = 25
# Service and level of TLS, the preferred one first.
_SERVICES = (("_submissions._tcp", "implicit"), ("_submission._tcp", "starttls"))


class Target(Value):
    """One address to connect to.

    ``host``     its name; the address itself when there is no name
    ``address``  IPv4 or IPv6 in text, no brackets; or the absolute path of a unix socket, whose port is 0
    ``tls``      the level that goes with it by the DNS, "" leaves it to the configuration
    ``domain``   what a certificate must hold in place of ``host``, "" for that
    """

    __slots__ = ("address", "domain", "host", "port", "tls")

    def __init__(self, host: str, address: str, port: int, tls: str = "", domain: str = "") -> None:
        self.host = host
        self.address = address
        self.port = port
        self.tls = tls
        self.domain = domain

    @property
    def remote_mta(self) -> str:
        """The form of logs and ``Outcome.remote_mta``: "host[address]:port", of a unix socket "host[path]"."""
        return f"{self.host}[{self.address}]" + (f":{self.port}" if self.port else "")

    @property
    def server_name(self) -> str:
        """The name for SNI, and that a certificate must hold."""
        return self.domain or self.host


class Unroutable(MinisendError):
    """A next hop has no server to try: ``status`` 4.y.z for now, 5.y.z for good; the text says why."""

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class NoSuchName(Exception):
    """Seam: the name does not exist (NXDOMAIN), or no name can look like this."""


class LookupFailed(Exception):
    """Seam: no answer to be had now; the text says why."""


class NoAnswer(LookupFailed):
    """Seam: no server said anything, for as long as it was given."""


def dns_query(settings: Dns) -> Query:
    """A ``Query`` over dnspython, which is imported with the first question (62 ms)."""
    resolver = None

    def query(name: str, kind: str, seconds: float) -> tuple[str, ...]:
        nonlocal resolver
        try:
            import dns.exception
            import dns.name
            import dns.resolver
        except ModuleNotFoundError:
            raise Unroutable(
                "delivery to MX hosts, and srv of a smarthost, need dnspython: install it "
                "(python3-dnspython), or set [smarthost] host",
                "4.3.5",
            ) from None
        try:
            absolute = dns.name.from_text(name)
        except (dns.exception.DNSException, UnicodeError):  # a label over 63 octets and the like
            raise NoSuchName from None
        try:
            if resolver is None:
                resolver = dns.resolver.Resolver(configure=not settings.nameservers)
                resolver.timeout = TRY_SECONDS
                if settings.nameservers:
                    resolver.nameservers = list(settings.nameservers)
                resolver.port = settings.port
            answer = resolver.resolve(
                absolute, kind, raise_on_no_answer=False, lifetime=seconds, search=False
            )
        except dns.resolver.NXDOMAIN:
            raise NoSuchName from None
        except dns.resolver.NoResolverConfiguration:
            raise Unroutable(
                "no DNS server is known: name one in /etc/resolv.conf or set [dns] nameservers",
                "4.3.5",
            ) from None
        except (dns.resolver.LifetimeTimeout, dns.resolver.NoNameservers) as exc:
            errors = [error[3] for error in exc.kwargs["errors"]]
            # One sentence of dnspython's for each of up to a dozen tries says the same over and over.
            said = [str(e) for e in errors if not isinstance(e, dns.exception.Timeout)]
            servers = ", ".join(map(str, resolver.nameservers)) if resolver else ""
            if said:
                raise LookupFailed(f"{servers}: {', '.join(dict.fromkeys(said))}") from None
            raise NoAnswer(f"no answer from {servers} within {seconds:.3g} s") from None
        except (dns.exception.DNSException, OSError) as exc:
            raise LookupFailed(str(exc)) from None
        return () if answer.rrset is None else tuple(record.to_text() for record in answer.rrset)

    return query


class Resolver:
    """Answers of the DNS, each asked for once: one object for a run.

    Failures are remembered too: a thousand messages for a domain whose servers are down wait for
    its time-out once, and a thousand domains for the one of our own DNS servers not much longer.
    """

    def __init__(self, query: Query, clock: Callable[[], float] = time.monotonic) -> None:
        self._query = query
        self._clock = clock
        self._answers: dict[tuple[str, str], tuple[float, tuple[str, ...] | Exception]] = {}
        # Names that got no answer since the last one that did, and until when nobody is asked therefore.
        self._unanswered: set[str] = set()
        self._silence: tuple[float, NoAnswer] | None = None

    def deadline(self) -> float:
        """The moment at which the lookups for one next hop, begun now, must be over."""
        return self._clock() + NEXT_HOP_SECONDS

    def records(self, name: str, kind: str, deadline: float) -> tuple[str, ...]:
        """As ``Query``."""
        now = self._clock()
        expires, answer = self._answers.get((name, kind), (0.0, ()))
        if expires <= now:
            if deadline <= now:
                raise LookupFailed(f"no time left to look up {name}")
            if self._silence is not None and now < self._silence[0]:
                raise self._silence[1].with_traceback(None)
            answer = self._ask(name, kind, deadline - now)
            self._answers[name, kind] = (self._clock() + CACHE_SECONDS, answer)
        if isinstance(answer, Exception):
            raise answer.with_traceback(None)
        return answer

    def _ask(self, name: str, kind: str, seconds: float) -> tuple[str, ...] | Exception:
        # A backslash is an octet that no domain name has: of ours (NextHop.domain) or of the record's.
        if not name or "\\" in name:
            return NoSuchName()
        answer: tuple[str, ...] | Exception
        try:
            answer = self._query(name, kind, seconds)
        except (NoSuchName, LookupFailed, Unroutable) as exc:
            answer = exc
        self._listen(name, answer, seconds)
        return answer

    def _listen(self, name: str, answer: tuple[str, ...] | Exception, seconds: float) -> None:
        """Find out whether our servers are there at all: one name alone may be what makes them slow."""
        if not isinstance(answer, NoAnswer):
            self._unanswered.clear()
        elif seconds >= TRY_SECONDS:
            self._unanswered.add(name)
            if len(self._unanswered) > 1:
                self._silence = (self._clock() + CACHE_SECONDS, answer)

    def addresses(self, host: str, deadline: float) -> list[str]:
        """IPv6 and IPv4 in turn (RFC 6724 prefers IPv6, RFC 5321 section 5.2 wants both tried).

        [] when the host has none.  Raises ``LookupFailed`` only when no address is known.
        """
        # "10 192.0.2.1" is no MX by RFC 5321, but it is seen, and Postfix takes it.
        if literal := _ip(host):
            return [literal]
        families: list[tuple[str, ...]] = []
        failed: LookupFailed | None = None
        for kind in ("AAAA", "A"):
            try:
                families.append(self.records(host, kind, deadline))
            except NoSuchName:
                pass
            except LookupFailed as exc:
                failed = exc
        found = [address for address in _in_turn(families) if _is_unicast(address)]
        if failed and not found:
            raise failed
        return found


def targets(
    next_hop: NextHop,
    config: Config,
    resolver: Resolver,
    *,
    shuffle: Callable[[list[str]], None] | None = None,
    draw: Callable[[int, int], int] | None = None,
    is_own: Callable[[str], bool] | None = None,
) -> list[Target]:
    """At least one target, in the order to try them.  Raises ``Unroutable``.

    ``shuffle``  puts MX hosts of equal preference into a new order, in place (RFC 5321 section 5.1);
                 ``random.shuffle`` unless given
    ``draw``     a number from the first to the second, both included, for SRV records of equal priority;
                 ``random.randint`` unless given
    ``is_own``   tells an address of this machine, ``is_own_address`` unless given
    """
    if next_hop.kind == ERROR:
        raise Unroutable(next_hop.name, next_hop.status)
    smarthost = next_hop.smarthost_in(config)
    if smarthost is not None and smarthost.srv:
        return _srv_targets(smarthost.srv, resolver, draw or _randint)
    if smarthost is not None:
        return _named_targets(smarthost.hosts, smarthost.port, "smarthost")
    if next_hop.path:
        return [Target("localhost", next_hop.path, 0, "none")]
    if next_hop.host:
        return _named_targets((next_hop.host,), next_hop.port, "server")
    return _mx_targets(
        next_hop.domain, config, resolver, shuffle or _shuffle, is_own or is_own_address
    )


def _shuffle(names: list[str]) -> None:
    import random

    random.shuffle(names)


def _randint(least: int, most: int) -> int:
    import random

    return random.randint(least, most)  # noqa: S311 - a lot among servers, not a secret


def _mx_targets(
    domain: str,
    config: Config,
    resolver: Resolver,
    shuffle: Callable[[list[str]], None],
    is_own: Callable[[str], bool],
) -> list[Target]:
    port = config.delivery.mx_port
    hostname = _normal(config.hostname)
    deadline = resolver.deadline()
    failure = ""
    found: list[Target] = []
    groups = _mx_hosts(domain, resolver, deadline)
    for rank, (_, group) in enumerate(groupby(groups, key=lambda mx: mx[0])):
        names = [name for _, name in group]
        shuffle(names)
        ourselves = ""
        by_host: list[list[Target]] = []
        for name in names:
            try:
                addresses = resolver.addresses(name, deadline)
            except LookupFailed as exc:
                addresses = []
                failure = str(exc)
            if name == hostname:
                ourselves = name
            elif port == SMTP_PORT and any(map(is_own, addresses)):
                ourselves = f"{name}[{addresses[0]}]"
            by_host.append([Target(name, address, port) for address in addresses])
        if ourselves and rank == 0:
            raise Unroutable(
                f"mail for {domain} loops back to this machine: its best MX is {ourselves}", "5.4.6"
            )
        if ourselves:
            if not found and not failure:
                raise Unroutable(
                    f"no server for {domain} that is better than this machine has an address",
                    "4.4.4",
                )
            break
        found += _in_turn(by_host)
        if len(found) >= TARGET_LIMIT:
            break
    if found:
        return list(dict.fromkeys(found))[:TARGET_LIMIT]
    if failure:
        raise Unroutable(f"looking up the servers for {domain}: {failure}", "4.4.3")
    raise Unroutable(f"no server for {domain} has an address", "5.4.4")


def _mx_hosts(domain: str, resolver: Resolver, deadline: float) -> list[tuple[int, str]]:
    """Preference and host, best first; the domain itself where it has no MX."""
    if domain.startswith("["):
        return [(0, literal_address(domain))]
    try:
        records = resolver.records(domain, "MX", deadline)
    except NoSuchName:
        raise Unroutable(f"the domain {domain or '(none)'} does not exist", "5.1.2") from None
    except LookupFailed as exc:
        raise Unroutable(f"looking up the MX of {domain}: {exc}", "4.4.3") from None
    hosts = []
    for record in records:
        preference, _, host = record.partition(" ")
        hosts.append((int(preference), _normal(host)))
    if hosts and not any(host for _, host in hosts):
        raise Unroutable(f"the domain {domain} does not accept mail (null MX, RFC 7505)", "5.1.10")
    # Beside others a "." is against RFC 7505 section 3, and says nothing that could be acted on.
    return sorted((p, host) for p, host in hosts if host) or [(0, domain)]


def literal_address(domain: str) -> str:
    """The address in an address literal as ``NextHop.domain`` has it (RFC 5321 section 4.1.3).  Raises ``Unroutable``."""
    address = _ip(domain[1:-1].removeprefix("ipv6:"))
    if not address:
        raise Unroutable(f"{domain} is not an address literal of IPv4 or IPv6", "5.1.2")
    return address


def _srv_targets(domain: str, resolver: Resolver, draw: Callable[[int, int], int]) -> list[Target]:
    domain = _normal(domain)
    deadline = resolver.deadline()
    failure = ""
    found: list[Target] = []
    for service, level in _SERVICES:
        try:
            records = resolver.records(f"{service}.{domain}", "SRV", deadline)
        except NoSuchName:
            continue
        except LookupFailed as exc:
            failure = str(exc)
            continue
        for host, port in _in_order(records, draw):
            try:
                addresses = resolver.addresses(host, deadline)
            except LookupFailed as exc:
                failure = str(exc)
                continue
            below = host == domain or host.endswith(f".{domain}")
            found += [
                Target(host, address, port, level, "" if below else domain) for address in addresses
            ]
    if found:
        return list(dict.fromkeys(found))[:TARGET_LIMIT]
    if failure:
        raise Unroutable(f"looking up the submission servers of {domain}: {failure}", "4.4.3")
    raise Unroutable(f"the DNS names no submission server of {domain} (SRV, RFC 6186)", "4.4.4")


def _in_order(
    records: tuple[str, ...], draw: Callable[[int, int], int]
) -> Iterator[tuple[str, int]]:
    """Host and port of SRV records, in the order to try them (RFC 2782); none where "." says that there is no service."""
    fields = [record.split(" ") for record in records]
    services = [
        (int(priority), int(weight), int(port), _normal(host))
        for priority, weight, port, host in fields
        if _normal(host)
    ]
    # Those with weight 0 first, so that they have a chance, if a small one.
    left = sorted(services)
    while left:
        equal = [each for each in left if each[0] == left[0][0]]
        number = draw(0, sum(weight for _, weight, _, _ in equal))
        for each in equal:
            number -= each[1]
            if number <= 0:
                break
        left.remove(each)
        yield each[3], each[2]


def _named_targets(hosts: Iterable[str], port: int, what: str) -> list[Target]:
    """The servers that the configuration names; ``what`` they are is for the error."""
    found: list[Target] = []
    failures: list[str] = []
    status = "4.4.4"
    for host in hosts:
        try:
            # As octets: from text it would make octets by way of IDNA, which takes 5 ms to load.
            name = host.encode("ascii")
            answers = _socket.getaddrinfo(name, port, type=_socket.SOCK_STREAM)
        except _socket.gaierror as exc:
            failures.append(f"{host}: {exc.strerror}")
            if exc.errno == _socket.EAI_AGAIN:
                status = "4.4.3"
        except (UnicodeError, OSError) as exc:
            failures.append(f"{host}: {exc}")
        else:
            found += [Target(host, str(answer[4][0]), port) for answer in answers]
    if not found:
        raise Unroutable(f"looking up the {what}: {'; '.join(failures)}", status)
    return list(dict.fromkeys(found))


def is_own_address(address: str) -> bool:
    """True for a loopback or unspecified address and for one that an interface of this machine has.

    Asked without traffic: a socket can be bound to an address of ours only.  Where the kernel allows
    any (net.ipv4.ip_nonlocal_bind), which a documentation address (RFC 5737, 3849) tells, that
    proves nothing, and only loopback is known.
    """
    import ipaddress

    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_loopback or ip.is_unspecified:
        return True
    foreign = "192.0.2.1" if ip.version == 4 else "2001:db8::1"
    return _can_bind(str(ip)) and not _can_bind(foreign)


def _can_bind(address: str) -> bool:
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    try:
        probe = _socket.socket(family, _socket.SOCK_DGRAM)
        try:
            probe.bind((address, 0))
        finally:
            probe.close()
    except OSError:
        return False
    return True


def _ip(text: str) -> str:
    """The address that the text is, without brackets; "" when it is none."""
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _is_unicast(address: str) -> bool:
    import ipaddress

    # Nobody accepts a TCP connection on a multicast address, and binding to one succeeds.
    return not ipaddress.ip_address(address).is_multicast


def _normal(name: str) -> str:
    return name.lower().removesuffix(".")


def _in_turn(rows: Iterable[Iterable[T]]) -> list[T]:
    return [item for item in chain.from_iterable(zip_longest(*rows)) if item is not None]
