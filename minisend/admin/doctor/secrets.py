"""What the delivery has to show to servers, and nobody else may see: passwords, tokens, credentials."""

import os
import shutil
from collections.abc import Iterator, Mapping

from minisend.admin.doctor.check import FAIL, OK, UNSEEN, Check, Checks
from minisend.config.sections import Config, Smarthost
from minisend.delivery.secrets import read_secret
from minisend.errors import ConfigError
from minisend.spool.layout import ACCOUNT


def look(config: Config, environ: Mapping[bytes, bytes], repair: str) -> Checks:
    """As who delivers.  ``repair``: the command, with {} for the file."""
    for what, path, smarthost in _secret_files(config):
        try:
            read_secret(f"{what}: {path}", path, smarthost, environ, os.geteuid())
        except ConfigError as exc:
            text = str(exc).removeprefix(f"{what}: ")
            yield Check(FAIL, what, text, repair.format(path))
        else:
            yield Check(OK, what, f"{path}: can be read by who delivers, and not by everybody")
    for table, smarthost in smarthosts(config):
        if smarthost.password_command and shutil.which(smarthost.password_command[0]) is None:
            program = smarthost.password_command[0]
            text = f"there is no program {program}"
            yield Check(FAIL, f"{table} password_command", text, f"ls -l {program}")
        if smarthost.credential and b"CREDENTIALS_DIRECTORY" not in environ:
            text = f"{smarthost.credential}: only the service sees it"
            yield Check(UNSEEN, f"{table} credential", text)


def look_of_others(config: Config) -> Checks:
    """For who may send and may not read them."""
    for what, path, _ in _secret_files(config):
        if os.access(path, os.R_OK, effective_ids=True):
            command = f"chown root:{ACCOUNT} {path} && chmod 640 {path}"
            yield Check(FAIL, what, f"{path}: uid {os.geteuid()} can read it", command)
        else:
            yield Check(OK, what, f"{path}: uid {os.geteuid()} cannot read it")


def _secret_files(config: Config) -> Iterator[tuple[str, str, Smarthost]]:
    """Key and path of each file that holds a secret, and the smarthost that it is for."""
    for table, smarthost in smarthosts(config):
        for key in ("password_file", "oauth2_client_secret_file", "oauth2_service_account_file"):
            path = getattr(smarthost, key)
            if path:
                yield f"{table} {key}", path, smarthost


def smarthosts(config: Config) -> Iterator[tuple[str, Smarthost]]:
    if config.smarthost is not None:
        yield "[smarthost]", config.smarthost
    for name, smarthost in sorted(config.smarthosts.items()):
        yield f"[smarthosts.{name}]", smarthost
