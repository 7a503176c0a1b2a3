"""Where a queue lies and whose it is: ``<spool>/queue/{tmp,new,cur,hold,failed}``; and the drop directory's leaves.

A caller may write only into a queue directory that it owns itself (DESIGN: "own queue"); root is no exception, since
writing inside a directory that another account controls lets that account redirect the write.

Everybody may put a file into the leaves of the drop directory and nobody but their owner may list them; sticky, so that
nobody can take another's file away, and set-gid, so that a file made there is known by its group:

    <spool>, <drop>          root:root   0755    else whoever owns them could put other leaves into their place
    <drop>/tmp, <drop>/new   the queue's 3733    on one file system
"""

import posix

from minisend.errors import SpoolError
from minisend.spool import disk

# What is no mail, in one directory of the delivering user: the spool itself may be root's (DESIGN section 3).
_STATE = "state"
# tmp comes last: where it exists, all of them do, also after a crash in the middle of making them.
STATES = ("new", "cur", "hold", "failed", "tmp")

#: Of the drop directory, for whoever makes it or checks it.
LEAVES = ("tmp", "new")
LEAF_MODE = 0o3733
PARENT_MODE = 0o755
_STICKY = 0o1000
#: The kernel's number for whoever has none in a user namespace: /proc/sys/kernel/overflowuid.
OVERFLOW_UID = 65534


def is_own(spool: str) -> bool:
    """Whether the queue is the effective user's, or may be made by this user: there is nothing of anybody else's.

    ``spool``  "" for a user who has no place for one
    """
    if not spool:
        return False
    euid = posix.geteuid()
    for path in (f"{spool}/queue", spool):
        try:
            if posix.stat(path).st_uid != euid:
                return False
        except FileNotFoundError:
            continue
        except OSError:
            return False
        # In a user namespace this may be anybody's, and so may we.
        return euid != OVERFLOW_UID or posix.access(
            path, posix.W_OK | posix.X_OK, effective_ids=True
        )
    return True


def is_own_drop(drop: str) -> bool:
    """Whether the messages there are for the effective user to bring in."""
    try:
        return posix.stat(f"{drop}/new", follow_symlinks=False).st_uid == posix.geteuid()
    except OSError:
        return False


def queue_owner(spool: str) -> int | None:
    """The uid of who has the queue, None where that cannot be seen."""
    try:
        return posix.stat(f"{spool}/queue").st_uid
    except OSError:
        return None


def is_absent(spool: str) -> bool:
    """Whether there is no such directory, as far as can be seen."""
    try:
        posix.stat(spool)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


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


def state(spool: str, within: str = "", *, make: bool = False) -> str:
    """Where locks, counts and the like are kept, ``<spool>/state``, or a directory ``within`` it.

    ``make``  see that it is there; raises OSError
    """
    path = f"{spool}/{_STATE}"
    paths = (path, f"{path}/{within}") if within else (path,)
    for each in paths if make else ():
        try:
            posix.mkdir(each, 0o700)
        except FileExistsError:
            pass
    return paths[-1]


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


def open_leaf(drop: str, leaf: str, owner: int | None, *, listing: bool = False) -> int:
    """A descriptor of ``<drop>/<leaf>``, that names in it can be made with; to be listed too with ``listing``.

    ``owner``  of the queue that the drop belongs to; None where that is not known
    Raises OSError, and SpoolError where a stranger could take away or replace what is put there: a leaf that is not
    sticky, or not its owner's or root's; a drop directory of somebody else's, or that others may write.
    """
    parent = disk.enter_directory(drop)
    try:
        _check_parent(drop, parent, owner)
        path = f"{drop}/{leaf}"
        fd = (disk.open_directory if listing else disk.enter_directory)(leaf, parent)
        try:
            status = posix.fstat(fd)
            if owner is not None and status.st_uid not in (owner, _root()):
                raise SpoolError(f"{path}: belongs to uid {status.st_uid}, not to uid {owner}")
            if not status.st_mode & _STICKY:
                raise SpoolError(
                    f"{path}: anybody can remove what is in it: chmod {LEAF_MODE:o} it"
                )
        except BaseException:
            disk.close(fd)
            raise
    finally:
        disk.close(parent)
    return fd


def _check_parent(drop: str, fd: int, owner: int | None) -> None:
    status = posix.fstat(fd)
    if status.st_uid not in (owner, _root()):
        raise SpoolError(f"{drop}: belongs to uid {status.st_uid}, not to root")
    if status.st_mode & 0o022:
        mode = status.st_mode & 0o7777
        raise SpoolError(f"{drop}: others can write there (mode {mode:04o}): chmod go-w it")


def _root() -> int:
    """The uid by which root's files are seen here: in a user namespace that has no root it is another than 0."""
    return posix.stat("/").st_uid


def drop_problems(spool: str, drop: str) -> list[str]:
    """What is not as it must be with a system's spool and its drop directory, each with what to run; [] when all is well.

    Needs no right beyond that of passing through ``spool`` and ``drop``.
    """
    try:
        queue = posix.stat(f"{spool}/queue")
    except OSError as exc:
        return [f"{spool}/queue: {exc.strerror}"]
    problems: list[str] = []
    for path in (spool, drop):
        problems += _wrong(path, 0, 0, PARENT_MODE)
    for leaf in LEAVES:
        problems += _wrong(f"{drop}/{leaf}", queue.st_uid, queue.st_gid, LEAF_MODE)
    devices: set[int] = set()
    for leaf in LEAVES:
        try:
            devices.add(posix.stat(f"{drop}/{leaf}", follow_symlinks=False).st_dev)
        except OSError:
            pass  # told above
    if len(devices) > 1:
        problems.append(f"{drop}: tmp and new are not on one file system")
    return problems


def _wrong(path: str, uid: int, gid: int, mode: int) -> list[str]:
    try:
        status = posix.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return [f"{path}: is not there: install -d -o {uid} -g {gid} -m {mode:04o} {path}"]
    except OSError as exc:
        return [f"{path}: {exc.strerror}"]
    if status.st_mode & 0o170000 != 0o040000:
        return [f"{path}: is no directory"]
    problems: list[str] = []
    if (status.st_uid, status.st_gid) != (uid, gid):
        has = f"{status.st_uid}:{status.st_gid}"
        problems.append(f"{path}: belongs to {has}: chown {uid}:{gid} {path}")
    has_mode = status.st_mode & 0o7777
    if has_mode != mode:
        problems.append(f"{path}: has mode {has_mode:04o}: chmod {mode:04o} {path}")
    return problems
