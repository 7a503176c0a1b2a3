"""What each kind of value of ``KEYS`` is, and the form in which ``Config`` holds it.

Never asks DNS or a file whether what is named exists, and has no words for what is wrong: a value that is not of its
kind is ValueError, see ``minisend.config.mistakes``.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_DURATION = 3650 * 86400
LEAST_AND_MOST = {
    "port": (1, 65535),
    "count": (1, 1_000_000),
    "count or 0": (0, 1_000_000),
    # delivery.flood remembers each of them.
    "repeats": (0, 10_000),
}
# Each message within the time has its place in delivery.rate's file.
MOST_IN_A_RATE = 100_000
# Words that a route's via has for something else.
NOT_A_NAME = ("discard", "lmtp", "local", "mx", "smarthost", "smtp", "srv")
_OCTETS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MAX_SIZE = 1 << 40


def in_form(kind: "str | tuple[str, ...]", value: "Any", default: object) -> "Any":
    """The value in the form that ``Config`` holds.  Raises ValueError when it is not of that kind."""
    if value is None or value == "" == default:
        return value  # unset
    if isinstance(kind, tuple):
        if isinstance(value, str) and value in kind:
            return value
    elif kind == "boolean":
        if isinstance(value, bool):
            return value
    elif kind in LEAST_AND_MOST:
        least, most = LEAST_AND_MOST[kind]
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
                account: in_form("sender patterns", _for_anybody(patterns), ())
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
            if 1 <= _number(messages) <= MOST_IN_A_RATE and unit in _SECONDS:
                return (_number(messages), _SECONDS[unit])
        elif kind == "via":
            return _via(value)
        elif (
            kind == "string"
            or (kind in ("path", "path or false") and value[0] == "/")
            or (kind == "domain" and is_domain(value))
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


def _is_text(value: str) -> bool:
    """Not empty and without line ends or control characters, which would reach log and header."""
    return value != "" and value.isprintable()


def is_domain(name: str) -> bool:
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
        and (_is_ip(host) or is_domain(host))
        and (
            url.scheme == "https"
            or (url.scheme == "http" and host in ("localhost", "127.0.0.1", "::1"))
        )
    )


def _host(value: str) -> str:
    """The host without the brackets that Postfix and the URL form use.  Raises ValueError."""
    host = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else value
    # "10.0.0" is neither an address nor a name that any resolver takes as one.
    if _is_ip(host) or (is_domain(host) and not host.replace(".", "").isdecimal()):
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


def is_name(value: str) -> bool:
    """Of a smarthost: it is the name of a file too, and a word of a route's via."""
    return (
        value.isascii()
        and value.replace("_", "").replace("-", "").isalnum()
        and len(value) <= 64
        and value not in NOT_A_NAME
    )


def _via(value: str) -> "tuple[str, str, str, int, str]":
    """What ``Route`` takes for a via.  Raises ValueError."""
    if value in ("mx", "discard", "local"):
        return (value, "", "", 0, "")
    if value == "smarthost":
        return (value, "", "", 0, "")
    if is_name(value):
        return ("smarthost", value, "", 0, "")
    kind, place = ("lmtp", value[5:]) if value[:5] == "lmtp:" else ("smtp", value)
    # sun_path of unix(7).
    if kind == "lmtp" and place[:1] == "/" and len(place.encode()) <= 107:
        return (kind, "", "", 0, place)
    host, _, port = place.rpartition(":")
    least, most = LEAST_AND_MOST["port"]
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
