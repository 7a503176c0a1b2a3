"""Root at another account's directories: becomes that account first.

Who writes as root inside a directory that another account controls can be led elsewhere by it (DESIGN section 3).
"""

import posix

from minisend.errors import SystemFault
from minisend.spool.place import OVERFLOW_UID


def become_owner(spool: str) -> None:
    """For root: from here on this process is the account that owns the queue of ``spool``, if that is another one.

    Where there is no queue yet it is the owner of ``spool``, who could put anything in its place.

    Raises SystemFault.
    """
    if posix.geteuid() == 0:
        _become(_owned(spool), f"{spool}/queue")


def become_owner_of(directory: str) -> None:
    """For root: the same with the account that owns this directory, if there is one.  Raises SystemFault."""
    if posix.geteuid() != 0:
        return
    try:
        there = posix.stat(directory)
    except OSError:
        return
    _become(there, directory)


def _become(there: "posix.stat_result | None", path: str) -> None:
    if there is None or there.st_uid == 0 or not _is_somebody(there.st_uid):
        return
    import pwd

    try:
        try:
            found = pwd.getpwuid(there.st_uid)
            posix.initgroups(found.pw_name, found.pw_gid)
            gid = found.pw_gid
        except KeyError:
            gid = there.st_gid
            posix.setgroups([gid])
        posix.setresgid(gid, gid, gid)
        posix.setresuid(there.st_uid, there.st_uid, there.st_uid)
    except OSError as exc:
        raise SystemFault(
            f"{path}: belongs to uid {there.st_uid}, which root cannot become here: {exc.strerror}"
        ) from exc
    posix.umask(0o077)


def _owned(spool: str) -> "posix.stat_result | None":
    """Of a link it is its own owner: whose it is has led root here."""
    try:
        return posix.stat(f"{spool}/queue", follow_symlinks=False)
    except OSError:
        pass
    try:
        return posix.stat(spool)
    except OSError:
        return None  # there is none yet, and whoever makes it owns it


def _is_somebody(uid: int) -> bool:
    """False for the number of all those who have none in this user namespace: whose root is nobody's elsewhere."""
    if uid != OVERFLOW_UID:
        return True
    try:
        with open("/proc/self/uid_map", "rb") as file:
            ranges = [[int(number) for number in line.split()] for line in file]
    except OSError:
        return True
    return any(first <= uid < first + count for first, _, count in ranges)
