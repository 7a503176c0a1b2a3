"""minisend doctor: is this machine as it must be for mail to be taken and to leave?

One row for each thing that is looked at:

    ok     as it should be
    warn   mail goes out, but somebody should know
    fail   mail is refused, or lost sight of, or somebody may do what they should not; with the command that repairs it
    -      not to be seen by who asks: root sees all

In a queue of one's own it is that queue; where there is one for all users also the account, each directory of
minisend.spool.layout, the socket and what systemd was told.  What belongs to the account is looked at as the account, in
a process that has become it: root opens nothing in a directory that somebody else controls.

Changes nothing but what minisend.admin.check writes and removes, runs no password command, asks no server.

    exit    0 nothing failed, 1 something did

Source: DESIGN section 3; PEERS section 4.3 (attacks), A6 for the two sysctls.
"""

import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import minisend
from minisend.admin import account as accounts
from minisend.admin.account import Account
from minisend.admin.check import OVERDUE, Problem, summary, survey
from minisend.admin.setup import BOOTED, directories
from minisend.admin.terminal import BOLD, DIM, GREEN, RED, YELLOW, Paint, aligned, printable, write
from minisend.config.files import SYSTEM_SPOOL
from minisend.config.load import load
from minisend.config.sections import Config, Smarthost
from minisend.delivery import core_dump
from minisend.delivery.secrets import read_secret
from minisend.errors import ConfigError, SpoolFull
from minisend.spool import disk
from minisend.spool.enqueue import Floor
from minisend.spool.layout import ACCOUNT, DROP, UNITS
from minisend.spool.trigger import is_served

OK, WARN, FAIL, UNSEEN = "ok", "warn", "fail", "-"
_STYLES = {OK: GREEN, WARN: YELLOW, FAIL: RED, UNSEEN: DIM}

_SETUP = "minisend setup --system"
_SYSCTLS = ("protected_hardlinks", "protected_symlinks")
_CALLED = ("/usr/sbin/sendmail", "/usr/lib/sendmail")
_GREETING_SECONDS = 5.0
# Entries of the drop: who fills it must not make this take for ever.
_MOST_LISTED = 10_000


class Check:
    """``state`` a word of the table above, ``what`` was looked at, ``text``, and the ``command`` that repairs it or ""."""

    __slots__ = ("command", "state", "text", "what")

    def __init__(self, state: str, what: str, text: str, command: str = "") -> None:
        self.state = state
        self.what = printable(what)
        self.text = printable(text)
        self.command = printable(command)


Checks = Iterator[Check]


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
            yield from _directories(account, DROP)
        yield from _of_the_machine()
        return
    yield Check(
        OK, "configuration", config.file or "none: mail goes to the MX hosts of its recipients"
    )
    if _is_for_all(config, account):
        yield from _system(config, config_file, account)
    else:
        if os.geteuid() == 0 and not os.path.lexists(SYSTEM_SPOOL):
            yield Check(OK, "system", "no queue for all users here", _SETUP)
        yield from _queue(config)
        yield from _room(config.spool.path, config)
        yield from _secrets(config, os.environb, "chmod 600 {}")
        yield _served(is_served(config.spool.path), ["--user"], ["minisend.timer"])
    yield _hostname(config)
    yield from _dnspython(config)
    yield from _of_the_machine()


def _is_for_all(config: Config, account: Account | None) -> bool:
    """The queue is one for all users: there is the account for it, or it belongs to somebody else."""
    queue = f"{config.spool.path}/queue"
    if account is not None:
        return config.spool.path == SYSTEM_SPOOL or not os.path.lexists(SYSTEM_SPOOL)
    try:
        return config.spool.path == SYSTEM_SPOOL and os.lstat(queue).st_uid != os.geteuid()
    except OSError:
        return False


# -- one queue for all users -------------------------------------------------------------------


def _system(config: Config, config_file: str | None, account: Account | None) -> Checks:
    if account is None:
        yield Check(FAIL, "account", f"there is no account {ACCOUNT}", _SETUP)
        return
    if account.fault:
        yield Check(FAIL, "account", f"{ACCOUNT}: {account.fault}", account.repair)
    else:
        yield Check(OK, "account", f"{ACCOUNT}, uid {account.uid}")
    yield from _directories(account, config.submission.drop)
    yield from _sysctls()
    yield from _room(SYSTEM_SPOOL, config)
    if config.submission.drop is not None and _device(DROP) != _device(SYSTEM_SPOOL):
        yield from _room(config.submission.drop, config)
    yield _socket(config.submission.socket)
    if os.geteuid() in (0, account.uid):

        def look() -> Checks:
            # As the service has it: nothing of the caller's environment.
            try:
                own = load(config_file, {}, account.uid, account.uid)
            except ConfigError as exc:
                yield Check(FAIL, "configuration", f"for {ACCOUNT}: {exc}")
                return
            yield from _queue(own)
            if own.submission.drop is not None:
                yield from _waiting_in_drop(f"{own.submission.drop}/new")
            yield from _secrets(own, {}, f"chown root:{ACCOUNT} {{0}} && chmod 640 {{0}}")
            yield _served(is_served(SYSTEM_SPOOL), [], list(UNITS))

        yield from _as(account, look)
    else:
        yield Check(UNSEEN, "queue", f"only root and {ACCOUNT} may look into it")
        yield from _secrets_of_others(config)
        if os.path.isdir(BOOTED):
            yield _served(False, [], list(UNITS))


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


def _directories(account: Account, drop: str | None) -> Checks:
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
        return "missing", _SETUP
    except OSError as exc:
        return exc.strerror or "", None
    if not stat.S_ISDIR(there.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(there.st_mode) else "no directory"
        return f"is {what}", f"rm {path} && {_SETUP}"
    if (there.st_uid, there.st_gid) != owner:
        has, wants = f"{there.st_uid}:{there.st_gid}", f"{owner[0]}:{owner[1]}"
        return f"owner and group are {has}, not {wants}", _SETUP
    if stat.S_IMODE(there.st_mode) != mode:
        return f"mode is {stat.S_IMODE(there.st_mode):04o}, not {mode:04o}", _SETUP
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


def _secrets_of_others(config: Config) -> Checks:
    """For who may send and may not read them."""
    for what, path, _ in _secret_files(config):
        if os.access(path, os.R_OK, effective_ids=True):
            command = f"chown root:{ACCOUNT} {path} && chmod 640 {path}"
            yield Check(FAIL, what, f"{path}: uid {os.geteuid()} can read it", command)
        else:
            yield Check(OK, what, f"{path}: uid {os.geteuid()} cannot read it")


# -- of any queue ------------------------------------------------------------------------------


def _queue(config: Config) -> Checks:
    """Run as its owner."""
    problems, found = survey(config, OVERDUE)
    # Also of the drop, and also for those who may not look into the queue: see _room.
    problems = [problem for problem in problems if problem.kind != "room"]
    if not problems:
        yield Check(OK, "queue", summary(found))
    for problem in problems:
        yield Check(FAIL, "queue", problem.text, _repair(problem, config.spool.path))


def _repair(problem: Problem, spool: str) -> str:
    if problem.kind != "spool":
        return {
            "failed": "minisend queue --state failed",
            "unreadable": "minisend queue",
            "destination": "minisend flush --all -v",
            "overdue": "minisend flush",
        }[problem.kind]
    if spool == SYSTEM_SPOOL:
        return _SETUP
    try:
        there = os.lstat(f"{spool}/queue")
    except OSError:
        return f"mkdir -p {spool} && chown {os.geteuid()} {spool}"
    if there.st_uid != os.geteuid():
        return f"chown -R {os.geteuid()} {spool}"
    return f"chmod -R go-w {spool}"


def _room(path: str, config: Config) -> Checks:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # not there yet, or told by its row
    try:
        Floor(path, config.spool.min_free, config.spool.min_free_inodes).check(fd, 0)
    except SpoolFull as exc:
        yield Check(FAIL, "room", str(exc), f"df -h {path}; df -i {path}")
    else:
        yield Check(OK, "room", f"{path}: more than [spool] min_free and min_free_inodes")
    finally:
        os.close(fd)


def _device(path: str) -> int:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return 0


def _secret_files(config: Config) -> Iterator[tuple[str, str, Smarthost]]:
    """Key and path of each file that holds a secret, and the smarthost that it is for."""
    for table, smarthost in _smarthosts(config):
        for key in ("password_file", "oauth2_client_secret_file", "oauth2_service_account_file"):
            path = getattr(smarthost, key)
            if path:
                yield f"{table} {key}", path, smarthost


def _smarthosts(config: Config) -> Iterator[tuple[str, Smarthost]]:
    if config.smarthost is not None:
        yield "[smarthost]", config.smarthost
    for name, smarthost in sorted(config.smarthosts.items()):
        yield f"[smarthosts.{name}]", smarthost


def _secrets(config: Config, environ: Mapping[bytes, bytes], repair: str) -> Checks:
    """As who delivers.  ``repair``: the command, with {} for the file."""
    for what, path, smarthost in _secret_files(config):
        try:
            read_secret(f"{what}: {path}", path, smarthost, environ, os.geteuid())
        except ConfigError as exc:
            text = str(exc).removeprefix(f"{what}: ")
            yield Check(FAIL, what, text, repair.format(path))
        else:
            yield Check(OK, what, f"{path}: can be read by who delivers, and not by everybody")
    for table, smarthost in _smarthosts(config):
        if smarthost.password_command and shutil.which(smarthost.password_command[0]) is None:
            program = smarthost.password_command[0]
            text = f"there is no program {program}"
            yield Check(FAIL, f"{table} password_command", text, f"ls -l {program}")
        if smarthost.credential and b"CREDENTIALS_DIRECTORY" not in environ:
            text = f"{smarthost.credential}: only the service sees it"
            yield Check(UNSEEN, f"{table} credential", text)


def _served(now: bool, options: list[str], units: list[str]) -> Check:
    """Whether somebody delivers, now or when there is something to deliver."""
    if now:
        return Check(OK, "served", "minisend run is there")
    systemctl = shutil.which("systemctl") if os.path.isdir(BOOTED) else None
    if systemctl is not None:
        done = subprocess.run(  # noqa: S603 - names of our own
            [systemctl, *options, "is-active", *units],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        states = done.stdout.split()
        off = [unit for unit, word in zip(units, states, strict=False) if word != "active"]
        if len(states) == len(units) and not off:
            return Check(OK, "served", "systemd starts the delivery when there is something")
        if not options:
            text = f"nobody delivers: not active: {', '.join(off or units)}"
            return Check(FAIL, "served", text, f"systemctl enable --now {' '.join(UNITS)}")
    text = "by nobody at this moment; cron or a timer may run minisend flush"
    return Check(WARN, "served", text, "minisend run")


# -- of the machine ----------------------------------------------------------------------------


def _hostname(config: Config) -> Check:
    name = config.hostname
    if name.partition(".")[0] == "localhost":
        text = f"{name}: servers refuse it, and so is every other machine called"
        return Check(FAIL, "hostname", text, "hostnamectl set-hostname host.example.org")
    if "." not in name:
        text = f"{name}: servers may refuse a name without a domain"
        return Check(WARN, "hostname", text, f"hostnamectl set-hostname {name}.example.org")
    return Check(OK, "hostname", name)


def _dnspython(config: Config) -> Checks:
    """The DNS is asked for MX hosts and for SRV records, and for nothing else."""
    from importlib.util import find_spec

    needed = any(smarthost.srv for _, smarthost in _smarthosts(config))
    needed |= config.smarthost is None or any(route.via == "mx" for route in config.routes)
    if not needed:
        return
    if find_spec("dns") is None:
        text = "dnspython is not installed: the MX hosts of recipients cannot be found"
        debian = shutil.which("apt-get") is not None
        command = (
            "apt-get install python3-dnspython" if debian else "python3 -m pip install dnspython"
        )
        yield Check(FAIL, "dns", text, command)
    else:
        yield Check(OK, "dns", "dnspython is installed")


def _of_the_machine() -> Checks:
    yield _clock()
    yield from _sendmail()
    yield _set_id()


def _clock() -> Check:
    """It cannot be before this program was made."""
    made = os.stat(minisend.__file__).st_mtime
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now))
    if now < made - 86400:
        text = f"{shown}: before this program was made; mail waits or expires at the wrong time"
        return Check(FAIL, "clock", text, "timedatectl set-ntp true")
    return Check(OK, "clock", shown)


def _sendmail() -> Checks:
    found = dict.fromkeys(path for path in (shutil.which("sendmail"), *_CALLED) if path)
    for path in found:
        if not os.path.exists(path):
            if path == _CALLED[0]:
                ours = f"{os.path.dirname(shutil.which('minisend') or '/usr/local/bin/')}/sendmail"
                text = "there is none, and most programs call it"
                yield Check(WARN, path, text, f"ln -s {ours} {path}")
        elif _is_ours(path):
            yield Check(OK, path, "is minisend's")
        else:
            yield Check(WARN, path, f"is not minisend's: {os.path.realpath(path)}")


def _is_ours(path: str) -> bool:
    """The launcher, or the script that pip makes."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!" and b"minisend" in file.read(4096)
    except OSError:
        return False


def _set_id() -> Check:
    """Nothing of ours has a set-user-id or set-group-id bit, nor needs one."""
    programs = [shutil.which(name) for name in ("sendmail", "mailq", "newaliases", "minisend")]
    files = [path for path in programs if path and _is_ours(path)]
    for directory, _, names in os.walk(os.path.dirname(minisend.__file__)):
        files += [os.path.join(directory, name) for name in names]
    found = [path for path in files if os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID)]
    if found:
        text = f"{', '.join(found)}: nothing of minisend needs one"
        return Check(FAIL, "set-id bits", text, f"chmod ug-s {' '.join(found)}")
    return Check(OK, "set-id bits", "none on a file of minisend")
