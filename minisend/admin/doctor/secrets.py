"""What the delivery has to show to servers, and nobody else may see: passwords, tokens, credentials."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from minisend.admin.doctor.check import FAIL, OK, UNSEEN, Check, Checks
from minisend.admin.doctor.systemd import DELIVER, systemctl
from minisend.config.keys import smarthost_table
from minisend.config.sections import Config, Smarthost
from minisend.delivery.oauth.client import REFRESH, Client
from minisend.delivery.oauth.failure import OAuthError
from minisend.delivery.oauth.store import Store
from minisend.delivery.secrets import one_line, read_secret
from minisend.errors import ConfigError
from minisend.spool.layout import ACCOUNT


@dataclass(frozen=True, slots=True)
class Way:
    """How a secret is put where the delivery can read it and nobody else: commands with {} for the file.

    ``make``  writes what is typed or pasted, up to ^D, to a new file
    """

    make: str
    repair: str


OWN = Way("install -m 600 /dev/stdin {}", "chmod 600 {}")
SYSTEM = Way(
    f"install -g {ACCOUNT} -m 640 /dev/stdin {{}}", f"chown root:{ACCOUNT} {{0}} && chmod 640 {{0}}"
)


def look(config: Config, environ: Mapping[bytes, bytes], way: Way) -> Checks:
    """As who delivers."""
    for what, path, smarthost in _secret_files(config):
        try:
            octets = read_secret(f"{what}: {path}", path, smarthost, environ, os.geteuid())
            if what.endswith("password_file"):
                one_line(f"{what}: {path}", octets)
        except ConfigError as exc:
            text = str(exc).removeprefix(f"{what}: ")
            command = way.repair if _has_something(path) else way.make
            yield Check(FAIL, what, text, command.format(path))
        else:
            yield Check(OK, what, f"{path}: can be read by who delivers, and not by everybody")
    for name, smarthost in smarthosts(config):
        table = smarthost_table(name)
        if smarthost.password_command and shutil.which(smarthost.password_command[0]) is None:
            program = smarthost.password_command[0]
            text = f"there is no program {program}"
            yield Check(FAIL, f"{table} password_command", text, f"ls -l {program}")
        if smarthost.credential and b"CREDENTIALS_DIRECTORY" not in environ:
            yield _credential(f"{table} credential", smarthost.credential, way)
        if smarthost.uses_oauth2 and smarthost.oauth2_grant == REFRESH:
            yield _tokens(name, smarthost, environ)


def _has_something(path: str) -> bool:
    """False also for what is missing; True for what cannot be seen."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _tokens(name: str, smarthost: Smarthost, environ: Mapping[bytes, bytes]) -> Check:
    """Has somebody logged in?  Whether the service still honours that, only an attempt shows."""
    what = f"{smarthost_table(name)} oauth2"
    command = f"minisend login {name}".rstrip()
    try:
        client = Client(smarthost, name, environ, os.geteuid())
        with Store(client.token_file, os.geteuid(), create=False) as store:
            tokens = store.read(client.binding())
    except OAuthError as exc:
        return Check(FAIL, what, str(exc), command)
    if tokens is None:
        text = f"no tokens of {client.account} in {client.token_file}"
        return Check(FAIL, what, text, command)
    return Check(OK, what, f"tokens of {client.account} are in {client.token_file}")


def _credential(what: str, name: str, way: Way) -> Check:
    """Whether the service is given it, as far as systemd tells; a queue of one's own has any service, or none."""
    unit = systemctl("cat", DELIVER) if way is SYSTEM else None
    if unit is None:
        return Check(UNSEEN, what, f"{name}: only the service sees it")
    given = re.compile(rf"^(Load|Set)Credential(Encrypted)?={re.escape(name)}(:|$)")
    if any(given.match(line) for line in unit.splitlines()):
        return Check(OK, what, f"{name}: {DELIVER} is given it")
    text = f"{name}: {DELIVER} is not given it: it needs LoadCredential={name}:/path/to/secret"
    return Check(FAIL, what, text, f"systemctl edit {DELIVER}")


def look_of_others(config: Config) -> Checks:
    """For who may send and may not read them."""
    for what, path, _ in _secret_files(config):
        if os.access(path, os.R_OK, effective_ids=True):
            text = f"{path}: uid {os.geteuid()} can read it"
            yield Check(FAIL, what, text, SYSTEM.repair.format(path))
        else:
            yield Check(OK, what, f"{path}: uid {os.geteuid()} cannot read it")


def _secret_files(config: Config) -> Iterator[tuple[str, str, Smarthost]]:
    """Key and path of each file that holds a secret, and the smarthost that it is for."""
    for name, smarthost in smarthosts(config):
        for key in ("password_file", "oauth2_client_secret_file", "oauth2_service_account_file"):
            path = getattr(smarthost, key)
            if path:
                yield f"{smarthost_table(name)} {key}", path, smarthost


def smarthosts(config: Config) -> Iterator[tuple[str, Smarthost]]:
    """Each with its name, "" for that of the [smarthost] table."""
    if config.smarthost is not None:
        yield "", config.smarthost
    yield from sorted(config.smarthosts.items())
