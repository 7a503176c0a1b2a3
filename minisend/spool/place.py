"""Where a queue lies and whose it is: ``<spool>/queue/{tmp,new,cur,hold,failed}``.

A caller may write only into a queue directory that it owns itself (DESIGN: "own queue"); root is no exception, since
writing inside a directory that another account controls lets that account redirect the write.
"""

import posix

from minisend.errors import SpoolError
from minisend.spool import disk

# What is no mail, in one directory of the delivering user: the spool itself may be root's (DESIGN section 3).
_STATE = "state"
# tmp comes last: where it exists, all of them do, also after a crash in the middle of making them.
STATES = ("new", "cur", "hold", "failed", "tmp")


def is_own(spool: str) -> bool:
    """Whether the queue is the effective user's, or may be made by this user: there is nothing of anybody else's.

    ``spool``  "" for a user who has no place for one
    """
    if not spool:
        return False
    for path in (f"{spool}/queue", spool):
        try:
            return posix.stat(path).st_uid == posix.geteuid()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def open_queue(spool: str, *, create: bool) -> int:
    """A descriptor of ``<spool>/queue``, which belongs to the effective user.

    ``create``  make spool and queue when they are missing
    Raises SpoolError, in words that name the directory and its owner when it is somebody else's, and when others may
    write there.
    """
    path = spool + "/queue"
    try:
        try:
            fd = disk.open_directory(path)
        except FileNotFoundError:
            if not create:
                raise
            disk.make_directory(spool)
            _check_owner(spool, posix.stat(spool))
            disk.make_directory(path)
            fd = disk.open_directory(path)
        try:
            _check_ours(path, fd)
            if create and not disk.exists("tmp", fd):
                # Whoever made the queue, in another process at this moment perhaps, may not have come to its fsync yet.
                disk.make_directory(path)
                for state in STATES:
                    disk.make_directory(f"{path}/{state}")
        except BaseException:
            disk.close(fd)
            raise
    except OSError as exc:
        raise SpoolError(f"{path}: {exc.strerror}") from exc
    return fd


def state(spool: str, *, make: bool = False) -> str:
    """Where locks, counts and the like are kept, ``<spool>/state``; with ``make`` it is there.  Raises OSError."""
    path = f"{spool}/{_STATE}"
    if make:
        try:
            posix.mkdir(path, 0o700)
        except FileExistsError:
            pass
    return path


def open_state(state: str, queue: int) -> int:
    """A descriptor of the directory of ``state`` in ``queue`` (a descriptor), to be written to.

    Raises SpoolError, also when it is somebody else's or others may write there.
    """
    path = f"queue/{state}"
    try:
        fd = disk.open_directory(state, queue)
    except OSError as exc:
        raise SpoolError(f"{path}: {exc.strerror}") from exc
    try:
        _check_ours(path, fd)
    except BaseException:
        disk.close(fd)
        raise
    return fd


def _check_ours(path: str, fd: int) -> None:
    status = posix.fstat(fd)
    _check_owner(path, status)
    if status.st_mode & 0o022:
        mode = status.st_mode & 0o7777
        raise SpoolError(f"{path}: others can write there (mode {mode:04o}): chmod go-w it")


def _check_owner(path: str, status: posix.stat_result) -> None:
    if status.st_uid != posix.geteuid():
        raise SpoolError(f"{path}: belongs to uid {status.st_uid}, not to uid {posix.geteuid()}")
