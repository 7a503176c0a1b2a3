"""The account that takes and delivers the mail of a whole system: is it there, is it as it should be, make it.

It is nobody's login, its primary group is its own, and nobody else is in that group: whoever were could give a file the
group by which ingest knows the drop's.  One that is there with other properties is somebody else's, or was changed by
an administrator: it is told, and never changed.

``root`` is "" for this machine, else the directory below which another one lies.

Source: sysusers.d(5), useradd(8).
"""

import grp
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass

from minisend.errors import ConfigError, SystemFault
from minisend.spool.layout import ACCOUNT, ACCOUNT_ABOUT, NO_HOME

_NO_SHELLS = ("nologin", "false")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Account:
    """``fault`` says what is not as it should be, ``repair`` the command that changes it; both "" when all is."""

    uid: int
    gid: int
    fault: str = ""
    repair: str = ""


def find(root: str = "") -> Account | None:
    """The account, None when there is none.  Raises SystemFault when the account files cannot be read."""
    if root:
        users = [pwd.struct_passwd(_numbers(f, 2, 3)) for f in _lines(f"{root}/etc/passwd", 7)]
        groups = [
            grp.struct_group((*_numbers(f, 2)[:3], [m for m in f[3].split(",") if m]))
            for f in _lines(f"{root}/etc/group", 4)
        ]
        user = next((user for user in users if user.pw_name == ACCOUNT), None)
        group = next((group for group in groups if group.gr_name == ACCOUNT), None)
        first = next((other for other in users if user and other.pw_uid == user.pw_uid), None)
        return None if user is None else _judged(user, group, first or user)
    try:
        user = pwd.getpwnam(ACCOUNT)
    except KeyError:
        return None
    try:
        group = grp.getgrnam(ACCOUNT)
    except KeyError:
        group = None
    return _judged(user, group, pwd.getpwuid(user.pw_uid))


def _judged(
    user: pwd.struct_passwd, group: grp.struct_group | None, same_uid: pwd.struct_passwd
) -> Account:
    fault = repair = ""
    others = [] if group is None else [name for name in group.gr_mem if name != ACCOUNT]
    if group is None:
        fault, repair = f"there is no group {ACCOUNT}", f"groupadd --system {ACCOUNT}"
    elif user.pw_uid == 0:
        fault, repair = "its uid is 0", f"userdel --force {ACCOUNT}"
    elif same_uid.pw_name != ACCOUNT:
        fault = f"its uid {user.pw_uid} is also that of {same_uid.pw_name}"
        repair = f"userdel {ACCOUNT}"
    elif user.pw_gid != group.gr_gid:
        fault = f"its primary group is gid {user.pw_gid}, not {ACCOUNT} (gid {group.gr_gid})"
        repair = f"usermod --gid {ACCOUNT} {ACCOUNT}"
    elif others:
        fault = f"its group has other members: {', '.join(others)}"
        repair = f"gpasswd --delete {others[0]} {ACCOUNT}"
    elif os.path.basename(user.pw_shell) not in _NO_SHELLS:
        fault = f"it can log in: its shell is {user.pw_shell or '/bin/sh'}"
        repair = f"usermod --shell /usr/sbin/nologin {ACCOUNT}"
    return Account(user.pw_uid, user.pw_gid, fault, repair)


def checked(root: str = "") -> Account | None:
    """As ``find``; raises ConfigError when it is there and not as it should be."""
    account = find(root)
    if account is not None and account.fault:
        raise ConfigError(f"account {ACCOUNT}: {account.fault}: {account.repair}")
    return account


def make(root: str = "") -> Account:
    """Make it, with what this machine has for that.  Raises SystemFault, ConfigError."""
    commands = _commands(root)
    if not commands:
        raise SystemFault(
            f"account {ACCOUNT}: neither systemd-sysusers nor useradd nor adduser is here to make it"
        )
    for command in commands:
        done = subprocess.run(  # noqa: S603 - names of programs and options of our own
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8"},
        )
        if done.returncode:
            said = done.stderr.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
            name = os.path.basename(command[0])
            raise SystemFault(f"account {ACCOUNT}: {name} ended with {done.returncode}: {said}")
    account = checked(root)
    if account is None:
        raise SystemFault(f"account {ACCOUNT}: {commands[-1][0]} did not make it")
    return account


def _commands(root: str) -> list[list[str]]:
    sysusers = _program("systemd-sysusers")
    if sysusers:
        line = f'u {ACCOUNT} - "{ACCOUNT_ABOUT}" {NO_HOME}'
        return [[sysusers, *([f"--root={root}"] if root else []), "--inline", line]]
    groupadd, useradd = _program("groupadd"), _program("useradd")
    if groupadd and useradd:
        there = ["--prefix", root] if root else []
        user = [useradd, *there, "--system", "--gid", ACCOUNT, "--comment", ACCOUNT_ABOUT]
        user += ["--home-dir", NO_HOME, "--no-create-home", "--shell", "/usr/sbin/nologin", ACCOUNT]
        return [[groupadd, *there, "--system", "--force", ACCOUNT], user]
    # BusyBox's, which knows no other root.
    addgroup, adduser = _program("addgroup"), _program("adduser")
    if addgroup and adduser and not root:
        user = [adduser, "-S", "-D", "-H", "-h", NO_HOME, "-s", "/sbin/nologin", "-G", ACCOUNT]
        return [[addgroup, "-S", ACCOUNT], [*user, "-g", ACCOUNT_ABOUT, ACCOUNT]]
    return []


def _program(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


def _lines(path: str, fields: int) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            found = [line.rstrip("\n").split(":") for line in file]
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise SystemFault(f"{path}: {exc.strerror}") from exc
    return [line for line in found if len(line) == fields and line[2].isdecimal()]


def _numbers(fields: list[str], *places: int) -> list[str | int]:
    return [int(field) if place in places else field for place, field in enumerate(fields)]
