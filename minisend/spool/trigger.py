"""The FIFO that wakes who serves the queue: ``<spool>/trigger``, one octet for each thing to look at.

Never waits and never fails: a queue that nobody serves at this moment is looked at by whoever serves it next.

Source: DESIGN section 3, "Wake-up"; the same as Postfix's trigger(3).
"""

import posix

from minisend.spool import disk

# inode(7): what stat.S_ISFIFO tests, without the module.
# What is to be looked at: ``queue/new``, or all of the queue.
SUBMISSION = b"n"
EVERYTHING = b"a"

_TYPE = 0o170000
_FIFO = 0o010000


def poke(spool: str, octet: bytes) -> bool:
    """Write ``octet`` to the FIFO of this spool.  True when somebody has it open and will read it."""
    try:
        fd = posix.open(
            f"{spool}/trigger",
            posix.O_WRONLY | posix.O_NONBLOCK | posix.O_CLOEXEC | posix.O_NOFOLLOW,
        )
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


class Trigger:
    """The reading end, held by who serves the queue; ``fileno`` is ready when somebody has poked.

    Open for writing too: with nobody else's end open a FIFO would count as ended.  Raises OSError.
    """

    def __init__(self, spool: str) -> None:
        path = f"{spool}/trigger"
        try:
            posix.mkfifo(path, 0o600)
        except FileExistsError:
            pass
        self._fd = posix.open(
            path, posix.O_RDWR | posix.O_NONBLOCK | posix.O_CLOEXEC | posix.O_NOFOLLOW
        )
        if posix.fstat(self._fd).st_mode & _TYPE != _FIFO:
            self.close()
            raise FileExistsError(17, "is there, and is no FIFO: remove it", path)

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._fd

    def take(self) -> bytes:
        """What has been written since the last time; ``b""`` when nothing has."""
        octets = b""
        try:
            while piece := posix.read(self._fd, 4096):
                octets += piece
        except BlockingIOError:
            pass
        return octets

    def wake(self) -> None:
        """Poke ourselves; safe in a signal handler."""
        try:
            posix.write(self._fd, b"\0")
        except OSError:
            pass  # full: ready as it is; closed: nobody waits

    def close(self) -> None:
        """From here on a poke finds nobody."""
        if self._fd >= 0:
            disk.close(self._fd)
            self._fd = -1
