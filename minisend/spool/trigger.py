"""The FIFO that wakes who serves the queue: ``<spool>/state/trigger``, one octet for each thing to look at.

Never waits and never fails: a queue that nobody serves at this moment is looked at by whoever serves it next.

Source: DESIGN section 3, "Wake-up"; the same as Postfix's trigger(3).
"""

import errno
import posix

from minisend.spool import disk
from minisend.spool.place import state

# What is to be looked at: ``queue/new``, or all of the queue.
SUBMISSION = b"n"
EVERYTHING = b"a"

# inode(7): what stat.S_ISFIFO tests, without the module.
_TYPE = 0o170000
_FIFO = 0o010000


def poke(spool: str, octet: bytes) -> bool:
    """Write ``octet`` to the FIFO of this spool.  True when somebody has it open and will read it."""
    try:
        fd = _open(spool)
    except OSError:
        return False  # ENXIO: nobody reads; ENOENT: nobody ever did
    try:
        if posix.fstat(fd).st_mode & _TYPE != _FIFO:
            return False
        return posix.write(fd, octet) == 1
    except OSError:
        return False
    finally:
        disk.close(fd)


def is_served(spool: str) -> bool:
    """Whether somebody has the FIFO open to read; writes nothing."""
    try:
        fd = _open(spool)
    except OSError:
        return False
    disk.close(fd)
    return True


def _open(spool: str) -> int:
    return posix.open(
        f"{state(spool)}/trigger",
        posix.O_WRONLY | posix.O_NONBLOCK | posix.O_CLOEXEC | posix.O_NOFOLLOW,
    )


class Trigger:
    """The reading end, held by who serves the queue.

    Open for writing too: with nobody else's end open a FIFO would count as ended.  Beside it there is a pipe of our own:
    what wakes this process must not be read by another one that serves the same queue.  Raises OSError.
    """

    def __init__(self, spool: str) -> None:
        path = f"{state(spool, make=True)}/trigger"
        try:
            posix.mkfifo(path, 0o600)
        except FileExistsError:
            pass
        try:
            self._fd = posix.open(
                path, posix.O_RDWR | posix.O_NONBLOCK | posix.O_CLOEXEC | posix.O_NOFOLLOW
            )
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _no_fifo(path) from exc  # a symbolic link, a directory, a socket
            raise
        if posix.fstat(self._fd).st_mode & _TYPE != _FIFO:
            disk.close(self._fd)
            raise _no_fifo(path)
        self._woken, self._waking = posix.pipe2(posix.O_NONBLOCK | posix.O_CLOEXEC)
        import select  # here: a submission, which only pokes, does without

        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    def wait(self, seconds: float) -> bytes:
        """What has been written since the last time, as soon as there is something; ``b""`` when there is nothing in time.

        Also when ``wake`` was called, then and there.
        """
        self._poll.poll(max(0, int(seconds * 1000) + 1))
        _read_all(self._woken)
        return _read_all(self._fd)

    def wake(self) -> None:
        """End the wait, or the next one; safe in a signal handler and in any thread."""
        try:
            posix.write(self._waking, b"\0")
        except OSError:
            pass  # full: it will end as it is; closed: nobody waits

    def leave(self) -> bytes:
        """From here on a poke finds nobody; ``wake`` may still be called.  Returns what had been written by then."""
        octets = b""
        if self._fd >= 0:
            octets = _read_all(self._fd)
            disk.close(self._fd)
            self._fd = -1
        return octets

    def close(self) -> None:
        """Nobody calls ``wake`` any more: its descriptor may soon be something else's."""
        self.leave()
        if self._waking >= 0:
            disk.close(self._woken)
            disk.close(self._waking)
            self._waking = -1


def _read_all(fd: int) -> bytes:
    octets = b""
    try:
        while piece := posix.read(fd, 4096):
            octets += piece
    except BlockingIOError:
        pass
    return octets


def _no_fifo(path: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "is there, and is no FIFO: remove it", path)
