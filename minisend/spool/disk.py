"""The system calls of the spool, each once, relative to an open directory.

Every change that the spool makes to a disk goes through this module, so that a test can stop the
program after the n-th of them or make it fail there.  OSError passes through: the caller knows
what the failure means.
"""

import errno
import fcntl
import posix

DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
# O_NONBLOCK: a lease or a FIFO under this name must not stall us; it means nothing for a regular file.
_READ = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
_CLAIM = posix.O_RDWR | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
# A directory that one may put files into but not list cannot be opened for reading.
_ENTER = DIRECTORY | getattr(posix, "O_PATH", 0)


def open_directory(name: str, at: int | None = None) -> int:
    """A descriptor of the directory ``name``; a symbolic link in its last component is refused."""
    return posix.open(name, DIRECTORY, dir_fd=at)


def enter_directory(name: str, at: int | None = None) -> int:
    """A descriptor of the directory ``name`` for names in it and nothing else: no right to list it is needed.

    A symbolic link in its last component is refused.
    """
    return posix.open(name, _ENTER, dir_fd=at)


def create(name: str, at: int) -> int:
    """A new file for writing, mode 0600; an existing name is an error."""
    return posix.open(name, _CREATE, 0o600, dir_fd=at)


def open_reading(name: str, at: int) -> int:
    """An existing file for reading."""
    return posix.open(name, _READ, dir_fd=at)


def open_claiming(name: str, at: int) -> int:
    """An existing file for reading and appending."""
    return posix.open(name, _CLAIM, dir_fd=at)


def write(fd: int, octets: bytes) -> None:
    """All of ``octets`` at the descriptor's position."""
    done = posix.write(fd, octets)
    while done < len(octets):
        octets = octets[done:]
        done = posix.write(fd, octets)


def read_at(fd: int, count: int, offset: int) -> bytes:
    """``count`` octets, fewer only at the end of the file."""
    octets = posix.pread(fd, count, offset)
    while len(octets) < count:
        piece = posix.pread(fd, count - len(octets), offset + len(octets))
        if not piece:
            break
        octets += piece
    return octets


def write_at(fd: int, octets: bytes, offset: int) -> None:
    """All of ``octets`` at ``offset``."""
    done = posix.pwrite(fd, octets, offset)
    while done < len(octets):
        octets = octets[done:]
        offset += done
        done = posix.pwrite(fd, octets, offset)


def reserve(fd: int, offset: int, length: int) -> None:
    """Room on the disk for ``length`` octets at ``offset``; the file grows by zeros."""
    posix.posix_fallocate(fd, offset, length)


def block(fd: int) -> int:
    """A file of the file system of ``fd`` has room on the disk in units of this many octets, or of a multiple; 1 when unknown."""
    try:
        return max(1, min(posix.fstatvfs(fd).f_frsize, 4096))
    except OSError:
        return 1


def begin_writing(fd: int) -> None:
    """Let the kernel start to write out what the file has so far; returns at once and promises nothing.

    POSIX_FADV_DONTNEED does this on Linux as a side effect; there is no call of its own in Python.
    """
    try:
        posix.posix_fadvise(fd, 0, 0, posix.POSIX_FADV_DONTNEED)
    except OSError:
        pass  # a file system that takes no advice


def free(fd: int) -> tuple[int | None, int | None]:
    """Octets and inodes that the file system of ``fd`` still has for users other than root.

    None for what it does not count: btrfs has no number of inodes, and some in user space have no numbers at all.
    """
    try:
        status = posix.fstatvfs(fd)
    except OSError:
        return None, None  # the writes that follow say what is wrong with it
    octets = status.f_bavail * status.f_frsize if status.f_blocks else None
    return octets, status.f_favail if status.f_files else None


def truncate(fd: int, length: int) -> None:
    """Cut the file to ``length`` octets."""
    posix.ftruncate(fd, length)


def fsync(fd: int) -> None:
    """Return when the file or directory behind ``fd`` would survive a power cut."""
    posix.fsync(fd)


def rename(old: str, old_at: int, new: str, new_at: int) -> None:
    """Move a name from one directory to another, replacing what has the new name."""
    posix.rename(old, new, src_dir_fd=old_at, dst_dir_fd=new_at)


def unlink(name: str, at: int) -> None:
    """Remove a name."""
    posix.unlink(name, dir_fd=at)


def rmdir(name: str, at: int) -> None:
    """Remove a directory that is empty."""
    posix.rmdir(name, dir_fd=at)


def set_mode(fd: int, mode: int) -> None:
    """Set the mode of the file behind ``fd``, whatever the umask."""
    posix.fchmod(fd, mode)


def set_mode_at(name: str, at: int, mode: int) -> None:
    """Set the mode of the file of this name; only in a directory where nobody else could put a link under it."""
    posix.chmod(name, mode, dir_fd=at)


def close(fd: int) -> None:
    """Close a descriptor; its lock goes with it.

    A failure says nothing that matters: what must be on the disk was fsynced before.
    """
    try:
        posix.close(fd)
    except OSError:
        pass


def close_all(fds: list[int]) -> None:
    """Close descriptors, those with consecutive numbers in one call.  As ``close`` for each."""
    fds.sort()
    first = 0
    for at in range(1, len(fds) + 1):
        if at == len(fds) or fds[at] != fds[at - 1] + 1:
            posix.closerange(fds[first], fds[at - 1] + 1)
            first = at


def lock(fd: int) -> bool:
    """True when this process now holds the exclusive lock, False when another one does."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def exists(name: str, at: int) -> bool:
    """True when there is something of this name."""
    try:
        posix.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def mode_at(fd: int, name: str, at: int) -> int:
    """Type and mode of the file that ``fd`` has open when ``name`` still leads to that very file, else 0.

    To be asked after the lock is held: a name looked up before may have been moved meanwhile.
    """
    try:
        there = posix.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return 0
    here = posix.fstat(fd)
    return here.st_mode if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) else 0


def is_at(fd: int, name: str, at: int) -> bool:
    """True when ``name`` still leads to the very file that ``fd`` has open, see ``mode_at``."""
    return mode_at(fd, name, at) != 0


def make_directory(path: str) -> None:
    """Make ``path`` and what is missing above it, mode 0700, each made durable in its parent.

    Without the fsync of each parent a whole new spool can be gone after a power cut, with the mail in it.
    """
    try:
        _mkdir(path)
    except FileNotFoundError:
        make_directory(_parent(path))
        _mkdir(path)
    _sync_parent(path)


def make_directory_at(name: str, at: int) -> None:
    """Make ``name``, mode 0700, durable in the directory ``at``; it may be there already."""
    try:
        posix.mkdir(name, 0o700, dir_fd=at)
    except FileExistsError:
        pass  # as in _mkdir
    posix.fsync(at)


def _mkdir(path: str) -> None:
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        pass  # made before, or by another process at this moment, which may not have come to its fsync yet


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] or "/"


def _sync_parent(path: str) -> None:
    try:
        fd = posix.open(_parent(path), posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except PermissionError:
        return  # a parent that we may not read was not made by us
    try:
        posix.fsync(fd)
    finally:
        close(fd)
