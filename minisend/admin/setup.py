"""minisend setup: make a queue, and say what is left to do.

    --system   one for all users of the machine: the account, and the directories of minisend.spool.layout
    without    the caller's own

Does what is missing and repairs what differs; run again, it changes nothing and says so.  Never goes through a name that
somebody else than root could have put there: each directory on the way is opened without following links and must be
root's alone, and owner and mode are set by descriptor.  Never gives away what somebody else has filled, and never
changes an account.  Starts nothing.

Packages bring the account and the directories by sysusers.d and tmpfiles.d instead, out of the same table.
"""

import errno
import os
import shutil
import stat

from minisend.admin import account
from minisend.admin.terminal import GREEN, YELLOW, Paint, aligned, printable, write
from minisend.config.files import SYSTEM_FILE, SYSTEM_SPOOL
from minisend.config.sections import Config
from minisend.errors import CreateError, MinisendError, PermissionDenied, SpoolError
from minisend.spool import disk
from minisend.spool.layout import (
    ACCOUNT,
    DIRECTORIES,
    SECRETS,
    SOCKET_DIRECTORY,
    UNITS,
    Directory,
)
from minisend.spool.place import open_queue

#: There while systemd is process 1, see sd_booted(3).
BOOTED = "/run/systemd/system"

_EXAMPLE = """\
    mail_domain = "example.org"

    [smarthost]
    host = "smtp.example.org"
    username = "user"
    password_file = "{}"

"""


class _Steps:
    """What was done, or with ``dry_run`` what there is to do, in order."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self._made, self._repaired = ("to make", "to repair") if dry_run else ("made", "repaired")
        self._rows: list[tuple[str, ...]] = []

    def add(self, what: str, how: str, *, made: bool = False, was: str = "") -> None:
        word = self._made if made else self._repaired if was else "ok"
        self._rows.append((word, printable(what), how, f"was {was}" if was else ""))

    def write(self, *, counts: bool = True) -> None:
        """As a table, with a line at the end that counts."""
        paint = Paint(1)
        styles = {self._made: GREEN, self._repaired: YELLOW}
        for row, line in zip(self._rows, aligned(self._rows), strict=True):
            word = row[0]
            write(1, paint(styles.get(word, ""), word) + line[len(word) :] + "\n")
        if counts:
            words = [row[0] for row in self._rows]
            told = [f"{words.count(word)} {word}" for word in styles if word in words]
            write(1, (", ".join(told) or "nothing to do") + "\n")


# -- of the system -----------------------------------------------------------------------------


def setup_system(root: str, *, dry_run: bool) -> int:
    """Make account and directories, write what was done to standard output and return the exit code.

    ``root``  the directory below which another machine lies, "" for this one
    Raises PermissionDenied, ConfigError for an account that is there with other properties, CreateError, SystemFault;
    what was done before that is written.
    """
    if os.geteuid() != 0:
        raise PermissionDenied("setup --system: only root can do this")
    root = os.path.realpath(root).rstrip("/") if root else ""
    if root and not os.path.isdir(f"{root}/etc"):
        raise CreateError(f"{root}/etc: is no directory: expected the root directory of a machine")
    system = _System(root, _Steps(dry_run))
    try:
        system.settle()
    except MinisendError:
        system.steps.write(counts=False)
        raise
    system.steps.write()
    if not dry_run and not root:
        write(1, _next_for_system())
    return 0


def directories(root: str = "") -> list[Directory]:
    """The table for this machine: without systemd, which holds the socket, its directory is the account's."""
    rows = list(DIRECTORIES)
    if not root and not os.path.isdir(BOOTED):
        place = rows.index(SOCKET_DIRECTORY)
        row = SOCKET_DIRECTORY
        rows[place] = Directory(row.path, row.mode, ACCOUNT, ACCOUNT, row.about)
    return rows


class _System:
    """One machine, this one or one below ``root``, on its way to what the table says."""

    def __init__(self, root: str, steps: _Steps) -> None:
        self.steps = steps
        self._root = root
        self._rows = directories(root)
        self._numbers = {"root": (0, 0)}

    def settle(self) -> None:
        there = account.checked(self._root)
        made = there is None
        if there is None and not self.steps.dry_run:
            there = account.make(self._root)
        self.steps.add(f"account {ACCOUNT}", f"uid {there.uid}" if there else "", made=made)
        self._numbers[ACCOUNT] = (there.uid, there.gid) if there else (-1, -1)
        for row in self._rows:
            path = self._root + row.path
            try:
                self._settle_directory(path, row)
            except OSError as exc:
                raise _failed(path, exc) from exc

    def _settle_directory(self, path: str, row: Directory) -> None:
        how = f"{row.owner}:{row.group} {row.mode:04o}"
        uid, gid = self._numbers[row.owner][0], self._numbers[row.group][1]
        above, _, name = row.path.rpartition("/")
        parent = self._open(above)
        if parent is None:
            self.steps.add(path, how, made=True)
            return
        try:
            fd = disk.open_directory(name, parent)
        except FileNotFoundError:
            if not self.steps.dry_run:
                _make(name, parent, row.mode, uid, gid)
            self.steps.add(path, how, made=True)
            return
        finally:
            disk.close(parent)
        try:
            was = self._repair(path, fd, row, uid, gid)
        finally:
            disk.close(fd)
        self.steps.add(path, how, was=was)

    def _repair(self, path: str, fd: int, row: Directory, uid: int, gid: int) -> str:
        """Owner, group and mode as the row has them; returns how they were, "" when there was nothing to repair."""
        there = os.fstat(fd)
        mode = stat.S_IMODE(there.st_mode)
        if (there.st_uid, there.st_gid, mode) == (uid, gid, row.mode):
            return ""
        if there.st_uid != uid and row.owner == ACCOUNT and os.listdir(fd):
            raise CreateError(
                f"{path}: belongs to uid {there.st_uid} and is not empty: if what is in it is to be {ACCOUNT}'s: "
                f"chown -R {ACCOUNT}:{ACCOUNT} {path}"
            )
        if not self.steps.dry_run:
            # In this order: a change of the owner takes the set-group-id bit away.
            os.fchown(fd, uid, gid)
            os.fchmod(fd, row.mode)
            disk.fsync(fd)
        return f"{there.st_uid}:{there.st_gid} {mode:04o}"

    def _open(self, path: str) -> int | None:
        """A descriptor of a directory, every step to which is root's alone; what is missing is made.

        An administrator's own link (/var to another disk) is resolved first; each directory that it leads through is
        then held against the same rule.  None in a dry run in which it is still to be made.
        """
        root = self._root
        resolved = os.path.realpath(root + path)
        if root and not f"{resolved}/".startswith(f"{root}/"):
            raise CreateError(f"{root}{path}: a link leads out of {root}")
        so_far = root
        fd = disk.open_directory(root or "/")
        try:
            self._check_trusted(root or "/", fd)
            for name in filter(None, resolved[len(root) :].split("/")):
                so_far = f"{so_far}/{name}"
                try:
                    below = disk.open_directory(name, fd)
                except FileNotFoundError:
                    if self.steps.dry_run:
                        disk.close(fd)
                        return None
                    _make(name, fd, 0o755, 0, 0)
                    self.steps.add(so_far, "root:root 0755", made=True)
                    below = disk.open_directory(name, fd)
                disk.close(fd)
                fd = below
                self._check_trusted(so_far, fd)
        except OSError as exc:
            disk.close(fd)
            raise _failed(so_far, exc) from exc
        except BaseException:
            disk.close(fd)
            raise
        return fd

    def _check_trusted(self, path: str, fd: int) -> None:
        there = os.fstat(fd)
        others = there.st_mode & 0o002 or (there.st_mode & 0o020 and there.st_gid)
        # What a dry run has just shown to need repair is as it was.
        shown = self.steps.dry_run and path in [self._root + row.path for row in self._rows]
        if (there.st_uid or others) and not shown:
            raise CreateError(
                f"{path}: others than root can change what is in it (uid {there.st_uid}, gid {there.st_gid}, "
                f"mode {stat.S_IMODE(there.st_mode):04o}): nothing is made there"
            )


def _make(name: str, parent: int, mode: int, uid: int, gid: int) -> None:
    os.mkdir(name, 0o700, dir_fd=parent)
    fd = disk.open_directory(name, parent)
    try:
        # In this order, see above.
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
        disk.fsync(fd)
        disk.fsync(parent)
    finally:
        disk.close(fd)


def _failed(path: str, exc: OSError) -> CreateError:
    if exc.errno in (errno.ENOTDIR, errno.ELOOP):
        what = "a symbolic link" if os.path.islink(path) else "no directory"
        return CreateError(f"{path}: is {what}: rm {path}")
    return CreateError(f"{path}: {exc.strerror}")


def _next_for_system() -> str:
    lines = ["", "Next:"]
    if not os.path.exists(SYSTEM_FILE):
        secret = f"{SECRETS}/smarthost"
        lines += _example(SYSTEM_FILE, secret, f"install -g {ACCOUNT} -m 640 /dev/stdin {secret}")
    if os.path.isdir(BOOTED):
        lines.append(f"  systemctl enable --now {' '.join(UNITS)}")
    else:
        lines.append(f"  have your supervisor start, as {ACCOUNT}: minisend run")
        lines.append(
            "  and before that at each boot, as /run is empty then: minisend setup --system"
        )
    lines.append("  minisend doctor")
    return "\n".join(lines) + "\n"


# -- one's own ---------------------------------------------------------------------------------


def setup_own(config: Config, *, dry_run: bool) -> int:
    """Make the caller's own queue, write what was done and what is left to do, and return the exit code.

    Raises SpoolError.
    """
    spool = config.spool.path
    queue = f"{spool}/queue"
    owner = _owner(queue)
    if spool == SYSTEM_SPOOL and owner != os.geteuid():
        write(
            1, f"{spool} is the queue of all users: nothing to do, sendmail hands its mail over\n"
        )
        return 0
    steps = _Steps(dry_run)
    if owner is not None or not dry_run:
        disk.close(open_queue(spool, create=not dry_run))
    steps.add(queue, "mode 0700", made=owner is None)
    steps.write()
    lines = ["", "Next:"]
    if os.geteuid() == 0 and not os.path.lexists(SYSTEM_SPOOL):
        lines += ["  one queue for all users instead of root's own: minisend setup --system"]
    if config.file is None:
        file = _own_file()
        secret = f"{os.path.dirname(file)}/secret"
        lines += _example(file, secret, f"install -m 600 /dev/stdin {secret}")
    lines += [
        "  have something serve the queue: minisend run, or one of",
        "    systemctl --user enable --now minisend.timer",
        # By its path: that of cron is short.
        f"    */5 * * * * {shutil.which('minisend') or 'minisend'} flush --quiet    (a line of crontab -e)",
        "  minisend doctor",
    ]
    write(1, "\n".join(lines) + "\n")
    return 0


def _example(file: str, secret: str, command: str) -> list[str]:
    """What to write, and how the password gets to where only the delivery reads it."""
    return [
        f"  write {printable(file)}, see minisend.toml(5); for a smarthost:",
        "",
        *_EXAMPLE.format(printable(secret)).splitlines(),
        "  write the password, and then ^D:",
        f"    {printable(command)}",
    ]


def _own_file() -> str:
    """Where a configuration of the caller's would be looked for."""
    if os.geteuid() == 0:
        return SYSTEM_FILE
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return f"{base if base[:1] == '/' else os.path.expanduser('~/.config')}/minisend/config.toml"


def _owner(path: str) -> int | None:
    try:
        return os.lstat(path).st_uid
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SpoolError(f"{path}: {exc.strerror}") from exc
