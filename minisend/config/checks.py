"""The checks of ``load``: every key and value of each file, and what one value demands of another over all files.

Never runs at a submission, which a mistake in [smarthost] must not stop.
"""

from minisend.config.forms import NOT_A_NAME, in_form, is_name
from minisend.config.keys import KEYS, NAMED, NUMBERED
from minisend.config.mistakes import expected, mistake, no_table, not_in_form, shown, unknown
from minisend.config.sections import Spool
from minisend.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


def check_file(path: str, text: str, raw: "dict[str, Any]") -> "dict[str, dict[str, Any]]":
    """Every value of one file in its form, by table ("" = top level, of several "smarthosts.NAME", "route 1") and key."""
    rows = {(row[0], row[1]): row[:4] for row in KEYS}
    tables = {table for table, _ in rows if table}
    checked: dict[str, dict[str, Any]] = {}
    for table, like, section in _tables(path, text, raw):
        if like not in tables:
            if ("", table) not in rows:
                raise unknown(path, text, "", table, section)
            checked.setdefault("", {})[table] = _in_form(path, text, rows["", table], section)
            continue
        if not isinstance(section, dict):
            raise no_table(path, text, table, section)
        checked[table] = {}
        for name, value in section.items():
            if (like, name) not in rows:
                raise unknown(path, text, table, name, value, like)
            checked[table][name] = _in_form(path, text, (table, *rows[like, name][1:]), value)
    return checked


def _in_form(
    path: str, text: str, row: "tuple[str, str, str | tuple[str, ...], object]", value: object
) -> "Any":
    table, name, kind, default = row
    try:
        return in_form(kind, value, default)
    except ValueError:
        raise not_in_form(path, text, table, name, kind, value) from None


def _tables(path: str, text: str, raw: "dict[str, Any]") -> "Iterator[tuple[str, str, Any]]":
    """Each table and each key of the top level: its name, that of its table in KEYS, its value."""
    for name, value in raw.items():
        if name + "." == NAMED:
            if not isinstance(value, dict):
                raise no_table(path, text, name, value)
            for own, section in value.items():
                if not is_name(own):
                    raise mistake(
                        path,
                        text,
                        name,
                        own,
                        "expected a name of at most 64 letters, digits, - and _, and none of "
                        f"{', '.join(NOT_A_NAME)}",
                    )
                yield f"{NAMED}{own}", "smarthost", section
        elif name + " " == NUMBERED:
            if not isinstance(value, list):
                raise mistake(
                    path, text, name, "", f"expected [[route]] tables (got {shown(value)})"
                )
            for number, section in enumerate(value, 1):
                yield f"{NUMBERED}{number}", "route", section
        else:
            yield name, name, value


def check_together(
    values: "dict[str, dict[str, Any]]", origin: "dict[tuple[str, str], tuple[str, str, str]]"
) -> None:
    """What one value demands of another, over all files."""

    def wrong(table: str, name: str, what: str) -> ConfigError:
        where = origin[table, name] if (table, name) in origin else origin[table, ""]
        return mistake(*where, name, what)

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
    for table in smarthost_tables(values):
        _check_smarthost(table, values[table], wrong)
    for table in values:
        if table.startswith(NUMBERED):
            _check_route(table, values, wrong)


def smarthost_tables(values: "dict[str, dict[str, Any]]") -> "list[str]":
    return [table for table in values if table == "smarthost" or table.startswith(NAMED)]


def _check_route(
    table: str,
    values: "dict[str, dict[str, Any]]",
    wrong: "Callable[[str, str, str], ConfigError]",
) -> None:
    route = values[table]
    if "via" not in route:
        raise wrong(table, "via", f"expected {expected('via')} (got nothing)")
    if not route.get("sender") and not route.get("recipient"):
        raise wrong(table, "via", "expected sender or recipient beside it (got nothing)")
    kind, name, *_ = route["via"]
    if kind == "local":
        raise wrong(table, "via", "there is no local delivery in this version (got 'local')")
    home = f"{NAMED}{name}" if name else "smarthost"
    if kind == "smarthost" and home not in values:
        raise wrong(table, "via", f"expected {expected('via')}; there is no [{home}]")


def _check_smarthost(
    table: str, smarthost: "dict[str, Any]", wrong: "Callable[[str, str, str], ConfigError]"
) -> None:
    """``table``: its name in the file, without brackets."""
    if smarthost.get("srv"):
        for name in ("host", "port", "tls"):
            if name in smarthost:
                raise wrong(table, name, "expected none beside srv, whose records say it")
    elif "host" not in smarthost:
        raise wrong(table, "host", f"expected {expected('hosts')} (got nothing)")
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
            f'expected "auto", "xoauth2" or "oauthbearer" beside {given[0]} (got {shown(auth)})',
        )
    grant = smarthost.get("oauth2_grant", "refresh")
    quoted = f'"{grant}"'
    if grant == "service_account":
        need("oauth2_service_account_file", "oauth2_grant", quoted)
        return given[0]
    need("oauth2_client_id")
    if smarthost.get("oauth2_client_auth") == "basic":
        need("oauth2_client_secret_file", "oauth2_client_auth", '"basic"')
    if grant == "client_credentials":
        need("oauth2_client_secret_file", "oauth2_grant", quoted)
        if smarthost.get("oauth2_provider") == "microsoft365":
            # "common" stands for the tenant that a user belongs to; here there is no user.
            need("oauth2_tenant", "oauth2_grant", quoted)
    return given[0]
