"""One queue for all users: the account, the directories and who may do what in them, the socket, the drop."""

import glob
import json
import os
import stat
import time
from collections.abc import Callable
from itertools import islice

from minisend.admin.account import Account
from minisend.admin.check import OVERDUE
from minisend.admin.doctor import queue, secrets, systemd
from minisend.admin.doctor.check import FAIL, OK, UNSEEN, WARN, Check, Checks
from minisend.admin.doctor.queue import SETUP
from minisend.admin.setup import BOOTED, directories
from minisend.config.files import SYSTEM_SPOOL
from minisend.config.load import load
from minisend.config.sections import Config
from minisend.errors import ConfigError
from minisend.spool import disk
from minisend.spool.layout import ACCOUNT, DROP, UNITS
from minisend.spool.trigger import is_served

_SYSCTLS = ("protected_hardlinks", "protected_symlinks")
_GREETING_SECONDS = 5.0
# Entries of the drop: who fills it must not make this take for ever.
_MOST_LISTED = 10_000


def look(config: Config, config_file: str | None, account: Account | None) -> Checks:
    if account is None:
        yield Check(FAIL, "account", f"there is no account {ACCOUNT}", SETUP)
        return
    if account.fault:
        yield Check(FAIL, "account", f"{ACCOUNT}: {account.fault}", account.repair)
    else:
        yield Check(OK, "account", f"{ACCOUNT}, uid {account.uid}")
    yield from check_directories(account, config.submission.drop)
    yield from _sysctls()
    yield from queue.check_room(SYSTEM_SPOOL, config)
    if config.submission.drop is not None and _device(DROP) != _device(SYSTEM_SPOOL):
        yield from queue.check_room(config.submission.drop, config)
    yield _socket(config.submission.socket)

    def read() -> Config:
        # As the service has it: nothing of the caller's environment.
        return load(config_file, {}, account.uid, account.uid)

    if os.geteuid() in (0, account.uid):

        def look() -> Checks:
            try:
                own = read()
            except ConfigError as exc:
                yield Check(FAIL, "configuration", f"for {ACCOUNT}: {exc}")
                return
            yield from _is_what_is_read(config, own)
            yield from queue.look(own)
            if own.submission.drop is not None:
                yield from _waiting_in_drop(f"{own.submission.drop}/new")
            yield from secrets.look(own, {}, secrets.SYSTEM)
            yield queue.check_served(is_served(SYSTEM_SPOOL), [], list(UNITS))

        yield from _as(account, look)
    else:
        yield Check(UNSEEN, "queue", f"only root and {ACCOUNT} may look into it")
        try:
            own = read()
        except ConfigError as exc:
            yield Check(FAIL, "configuration", f"for {ACCOUNT}: {exc}")
        else:
            yield from _is_what_is_read(config, own)
            yield from secrets.look_of_others(own)
        if os.path.isdir(BOOTED):
            yield queue.check_served(False, [], list(UNITS))


def _is_what_is_read(config: Config, own: Config) -> Checks:
    """Is the caller's configuration the one that mail is delivered by, and in force?"""
    if config.file != own.file:
        text = f"of {config.file or 'no file'} the delivery knows nothing: it reads {own.file or 'none'}"
        yield Check(WARN, "configuration", text)
    changed = max((_modified(path) for path in _files(own)), default=0.0)
    stale = [service for service, since in systemd.running().items() if changed > since + 1]
    if stale:
        text = f"changed since {' and '.join(stale)} started, which read it only then"
        command = f"systemctl try-restart {' '.join(systemd.SERVICES)}"
        yield Check(WARN, "configuration", text, command)


def _files(config: Config) -> list[str]:
    """What it was read from, and the directory that lists a part of that."""
    if config.file is None:
        return []
    directory = f"{os.path.dirname(config.file)}/conf.d"
    return [config.file, directory, *glob.glob(f"{glob.escape(directory)}/*.toml")]


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _as(account: Account, look: Callable[[], Checks]) -> list[Check]:
    """What ``look`` finds in a process that is the account's."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(account.gid, account.gid, account.gid)
                os.setresuid(account.uid, account.uid, account.uid)
            found = [(c.state, c.what, c.text, c.command) for c in look()]
            with open(writing, "w", encoding="utf-8") as pipe:
                json.dump(found, pipe)
        except BaseException as exc:  # noqa: BLE001 - the parent goes on: this process was forked in the middle of it
            os.write(
                writing, json.dumps([(FAIL, "queue", f"{type(exc).__name__}: {exc}", "")]).encode()
            )
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        found = json.load(pipe)
    os.waitpid(child, 0)
    return [Check(*fields) for fields in found]


def check_directories(account: Account, drop: str | None) -> Checks:
    numbers = {"root": (0, 0), ACCOUNT: (account.uid, account.gid)}
    for row in directories():
        path = row.path
        if f"{path}/".startswith(f"{DROP}/"):
            if drop is None:
                if path == DROP:
                    yield Check(OK, "drop", "off, see [submission] drop")
                continue
            path = drop + path[len(DROP) :]
        owner = (numbers[row.owner][0], numbers[row.group][1])
        fault, command = _fault(path, owner, row.mode)
        if not fault and row.owner == ACCOUNT and _is_read_only(path):
            fault, command = (
                "is on a read-only file system",
                f"mount -o remount,rw {_mount_of(path)}",
            )
        if command is None:
            yield Check(UNSEEN, path, fault)
        elif fault:
            yield Check(FAIL, path, fault, command)
        else:
            yield Check(OK, path, f"{row.owner}:{row.group} {row.mode:04o}")


def _fault(path: str, owner: tuple[int, int], mode: int) -> tuple[str, str | None]:
    """What is wrong with this directory and what repairs it; "" when nothing is, None when it cannot be seen."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return "missing", SETUP
    except OSError as exc:
        return exc.strerror or "", None
    if not stat.S_ISDIR(there.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(there.st_mode) else "no directory"
        return f"is {what}", f"rm {path} && {SETUP}"
    if (there.st_uid, there.st_gid) != owner:
        has, wants = f"{there.st_uid}:{there.st_gid}", f"{owner[0]}:{owner[1]}"
        return f"owner and group are {has}, not {wants}", SETUP
    if stat.S_IMODE(there.st_mode) != mode:
        return f"mode is {stat.S_IMODE(there.st_mode):04o}, not {mode:04o}", SETUP
    if (
        mode & 0o002
        and not _is_read_only(path)
        and not os.access(path, os.W_OK | os.X_OK, effective_ids=True)
    ):
        return f"uid {os.geteuid()} cannot write there, for all its mode", f"getfacl {path}"
    return "", ""


def _is_read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _mount_of(path: str) -> str:
    """The mount that the directory is on; proc(5) says it also of one that lies on its own file system."""
    mounts = ["/"]
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts += [line.split(" ")[4] for line in file]
    except OSError:
        pass
    return max(
        (mount for mount in mounts if f"{path}/".startswith(f"{mount.rstrip('/')}/")), key=len
    )


def _sysctls() -> Checks:
    for name in _SYSCTLS:
        try:
            with open(f"/proc/sys/fs/{name}", encoding="ascii") as file:
                value = file.read().strip()
        except OSError as exc:
            yield Check(UNSEEN, f"fs.{name}", exc.strerror or "")
            continue
        if value == "0":
            yield Check(
                WARN,
                f"fs.{name}",
                "0: users may lay links to what is not theirs",
                f"echo 'fs.{name} = 1' >>/etc/sysctl.d/60-minisend.conf && sysctl --system",
            )
        else:
            yield Check(OK, f"fs.{name}", value)


def _socket(path: str | None) -> Check:
    import socket

    if path is None:
        return Check(OK, "socket", "off, see [submission] socket")
    repair = f"systemctl enable --now {UNITS[0]}" if os.path.isdir(BOOTED) else "minisend run"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_GREETING_SECONDS)
        try:
            client.connect(path)
            greeting = client.recv(64).partition(b"\n")[0]
        except TimeoutError:
            return Check(FAIL, path, f"no greeting within {_GREETING_SECONDS:g} s", repair)
        except OSError as exc:
            return Check(FAIL, path, f"nobody takes mail here: {exc.strerror}", repair)
    if greeting == b"busy":
        return Check(WARN, path, "busy: mail goes to the drop")
    if not greeting.startswith(b"minisend "):
        return Check(FAIL, path, f"is not minisend's: it says {greeting!r}", repair)
    return Check(OK, path, f"answers: {greeting.decode('ascii', 'replace')}")


def _waiting_in_drop(new: str) -> Checks:
    """What was handed in long ago and nobody has taken."""
    try:
        fd = disk.open_directory(new)
    except OSError:
        return  # told by its row
    before = time.time() - OVERDUE
    try:
        with os.scandir(fd) as entries:
            old = sum(_changed(entry) < before for entry in islice(entries, _MOST_LISTED))
    finally:
        disk.close(fd)
    if old:
        text = f"{old} of what was handed in waits for more than {OVERDUE // 60} minutes: nobody takes it"
        yield Check(FAIL, new, text, "minisend flush")


def _changed(entry: "os.DirEntry[str]") -> float:
    try:
        return entry.stat(follow_symlinks=False).st_ctime
    except OSError:
        return float("inf")


def _device(path: str) -> int:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return 0
