"""Which looks are taken, and how what they found is told.

exit    0 nothing failed, 1 something did
"""

import json
import os

from minisend.admin import account as accounts
from minisend.admin.account import Account
from minisend.admin.doctor import machine, queue, secrets, system
from minisend.admin.doctor.check import FAIL, OK, UNSEEN, WARN, Check, Checks
from minisend.admin.terminal import BOLD, DIM, GREEN, RED, YELLOW, Paint, aligned, write
from minisend.config.files import SYSTEM_FILE, SYSTEM_SPOOL
from minisend.config.load import load
from minisend.config.sections import Config
from minisend.delivery import core_dump
from minisend.errors import ConfigError
from minisend.spool.layout import DROP
from minisend.spool.trigger import is_served

_STYLES = {OK: GREEN, WARN: YELLOW, FAIL: RED, UNSEEN: DIM}


def doctor(config_file: str | None, *, as_json: bool) -> int:
    """Look at everything, write what was found to standard output and return the exit code.

    ``config_file``  the value of -C, None without one
    Raises SystemFault, BrokenPipeError.
    """
    core_dump.forbid()
    checks = list(_all(config_file))
    failed = any(check.state == FAIL for check in checks)
    if as_json:
        told = [
            {name: getattr(c, name) for name in ("state", "what", "text", "command")}
            for c in checks
        ]
        write(1, json.dumps({"ok": not failed, "checks": told}) + "\n")
    else:
        paint = Paint(1)
        lines = aligned([(check.state, check.what, check.text) for check in checks])
        for check, line in zip(checks, lines, strict=True):
            word = check.state
            write(1, paint(_STYLES[word], word) + line[len(word) :] + "\n")
            if check.command:
                write(1, f"      {paint(BOLD, check.command)}\n")
    return 1 if failed else 0


def _all(config_file: str | None) -> Checks:
    account = accounts.find()
    try:
        config = load(config_file, os.environb, os.getuid(), os.geteuid())
    except ConfigError as exc:
        yield Check(FAIL, "configuration", str(exc))
        if account is not None:
            yield from system.check_directories(account, DROP)
        yield from machine.look()
        return
    yield Check(
        OK, "configuration", config.file or "none: mail goes to the MX hosts of its recipients"
    )
    if config_file is None:
        yield from _passed_over()
    if _is_for_all(config, account):
        yield from system.look(config, config_file, account)
    else:
        if os.geteuid() == 0 and not os.path.lexists(SYSTEM_SPOOL):
            yield Check(OK, "system", "no queue for all users here", queue.SETUP)
        yield from queue.look(config)
        yield from queue.check_room(config.spool.path, config)
        yield from secrets.look(config, os.environb, secrets.OWN)
        yield queue.check_served(is_served(config.spool.path), ["--user"], ["minisend.timer"])
    yield machine.check_hostname(config)
    yield from machine.check_packages(config)
    yield from machine.look()


def _passed_over() -> Checks:
    """A configuration where a user has one, which root has not: see minisend.toml(5)."""
    path = f"{os.environ.get('HOME', '')}/.config/minisend/config.toml"
    if os.geteuid() == 0 and os.path.exists(path):
        there = os.path.exists(SYSTEM_FILE)
        command = "" if there else f"install -D -m 644 {path} {SYSTEM_FILE}"
        yield Check(WARN, "configuration", f"{path} is not read: root's is {SYSTEM_FILE}", command)


def _is_for_all(config: Config, account: Account | None) -> bool:
    """The queue is one for all users: there is the account for it, or it belongs to somebody else."""
    queue = f"{config.spool.path}/queue"
    if account is not None:
        return config.spool.path == SYSTEM_SPOOL or not os.path.lexists(SYSTEM_SPOOL)
    try:
        return config.spool.path == SYSTEM_SPOOL and os.lstat(queue).st_uid != os.geteuid()
    except OSError:
        return False
