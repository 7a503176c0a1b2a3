"""TOML 1.0.0 as octets become tables: plain text by ``scan``, all else by tomllib, which costs 12 ms.

Knows nothing of keys; never accepts what tomllib refuses.
"""

from minisend.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def parse(path: str, text: str) -> "dict[str, Any]":
    """Its tables.  Raises ConfigError, which names ``path``, for what is not TOML."""
    tables = scan(text)
    if tables is not None:
        return tables
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        # ValueError: TOMLDecodeError is one, and so is an integer of more than 4,300 digits.
        raise ConfigError(_with_line(path, str(exc))) from exc


def _with_line(path: str, what: str) -> str:
    """The line as other mistakes have it: behind the file, where editors look for it."""
    text, found, place = what.rpartition(" (at line ")
    line, _, column = place.removesuffix(")").partition(", ")
    if not (found and line.isdecimal()):
        return f"{path}: not TOML: {what}"
    return f"{path}:{line}: not TOML: {text} (at {column})"


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
