"""What is wrong in a file, as one line: ``FILE:LINE: [table] key: expected this (got that)``.

Makes errors and raises none; loaded by a submission only when there is one.  Never shows what may be a secret.
"""

from minisend.config.forms import MOST_IN_A_RATE, in_form
from minisend.config.keys import KEYS, NUMBERED
from minisend.errors import ConfigError

# difflib's ratio from which a known name is suggested: "lifetme" has 0.93, "port" for mx_port 0.73.
_NEAR = 0.7
_PATTERN = 'a pattern such as "*@shop.example", "user@shop.example" or "shop.example"'


def not_in_form(
    path: str, text: str, table: str, name: str, kind: "str | tuple[str, ...]", value: object
) -> ConfigError:
    # Somebody may have put the secret itself there: it must not reach a log.
    got = (
        ""
        if name in ("password_file", "credential", "oauth2_client_secret_file")
        else f" (got {shown(_culprit(kind, value))})"
    )
    return mistake(path, text, table, name, f"expected {expected(kind)}{got}")


def expected(kind: "str | tuple[str, ...]") -> str:
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
        "rate": f'at most {MOST_IN_A_RATE} messages in a second, minute, hour or day, such as "30/m" or "2000/d"',
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
                in_form(kind, [member], None)
            except ValueError:
                return member
    return value


def shown(value: object) -> str:
    if isinstance(value, str):
        quoted = repr(value)
        return quoted if len(quoted) <= 60 else quoted[:56] + "...'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return str(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"


def unknown(
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
        table, kind = name, "table"
        near = [_heading(table) for table in difflib.get_close_matches(name, known, 1, _NEAR)]
        name = ""
    else:
        kind = "key"
        near = difflib.get_close_matches(name, [row[1] for row in KEYS if row[0] == like], 1, _NEAR)
        elsewhere = [row[0] for row in KEYS if row[1] == name]
        if elsewhere and not near:
            home = (
                f"in {_heading(elsewhere[0])}" if elsewhere[0] else "at the top, before any table"
            )
            return mistake(path, text, table, name, f"unknown key here: it belongs {home}")
    hint = f" (did you mean {near[0]}?)" if near else ""
    return mistake(path, text, table, name, f"unknown {kind}{hint}")


def no_table(path: str, text: str, table: str, value: object) -> ConfigError:
    return mistake(path, text, table, "", f"expected a table (got {shown(value)})")


def mistake(path: str, text: str, table: str, name: str, what: str) -> ConfigError:
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
    return "[[route]]" if (table + " ").startswith(NUMBERED) else f"[{table}]"


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
            if here + " " == NUMBERED and line.lstrip().startswith("[["):
                routes += 1
                here = f"{NUMBERED}{routes}"
            if here == (table or name):
                headers.append(number)
        elif equals and (here, key.strip(" \t\"'")) in ((table, name), ("", table)):
            keys.append(number)
    found = keys or headers
    return found[0] if len(found) == 1 else 0
