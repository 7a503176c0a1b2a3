"""The few places for flushers that submissions start: at most so many deliver in the background at once.

A slot is a lock on ``<spool>/state/slots/<number>``; it is free again when its holder ends, however it ends.
"""

import fcntl
import posix

from minisend.errors import SpoolError
from minisend.spool.place import state

# In the spool's directory of state.
_DIRECTORY = "slots"
# As many as there may be destinations that hang before new mail has to wait for the next flush.
SLOTS = 2


def take(spool: str) -> int | None:
    """A descriptor that holds a slot until it is closed, or None when all are taken.

    Raises SpoolError when there can be no slots: no spool, a disk that takes no file.
    """
    directory = state(spool, _DIRECTORY)
    try:
        state(spool, _DIRECTORY, make=True)
        for number in range(SLOTS):
            fd = _lock(f"{directory}/{number}")
            if fd is not None:
                return fd
    except OSError as exc:
        raise SpoolError(f"{exc.filename or directory}: {exc.strerror}") from exc
    return None


def _lock(path: str) -> int | None:
    """A descriptor of the locked file, None when another process has it."""
    fd = posix.open(path, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        posix.close(fd)
        if isinstance(exc, BlockingIOError):
            return None
        raise
    return fd
