"""The names of this machine, where no key says them: from files only, never from DNS."""

import posix

from minisend.config.files import read
from minisend.config.forms import is_domain
from minisend.errors import ConfigError

HOSTS_FILE = "/etc/hosts"
MAILNAME_FILE = "/etc/mailname"


def machine_name() -> str:
    """The default of hostname: the first with a dot of uname, /etc/hosts, /etc/mailname; else bare."""
    name = posix.uname().nodename
    if "." in name and is_domain(name):
        return name
    for line in _lines(HOSTS_FILE):
        canonical, *aliases = line.partition("#")[0].split()[1:] or [""]
        if (
            name.lower() in [alias.lower() for alias in (canonical, *aliases)]
            and "." in canonical
            and is_domain(canonical)
            # "127.0.0.1 localhost.localdomain localhost myhost" says nothing about myhost.
            and not canonical.startswith("localhost")
        ):
            return canonical
    return mailname() or (name if is_domain(name) else "localhost")


def mailname() -> str:
    """The domain in /etc/mailname (Debian Policy 11.6), "" when there is none."""
    for line in _lines(MAILNAME_FILE):
        name = line.strip()
        if name:
            return name if is_domain(name) else ""
    return ""


def _lines(path: str) -> "list[str]":
    try:
        return read(path, ())[0].decode("utf-8", "surrogateescape").splitlines()
    except (OSError, ConfigError):
        return []
