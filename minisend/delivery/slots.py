"""The few places for flushers that submissions start: at most so many deliver in the background at once.

A slot is a lock on ``<spool>/state/slots/<number>``; it is free again when its holder ends, however it ends.
"""

import fcntl
import os

from minisend.errors import SpoolError
from minisend.spool.place import state

# As many as there may be destinations that hang before new mail has to wait for the next flush.
SLOTS = 2


def take(spool: str) -> int | None:
    """A descriptor that holds a slot until it is closed, or None when all are taken.

    Raises SpoolError when there can be no slots: no spool, a disk that takes no file.
    """
    directory = f"{state(spool)}/slots"
    try:
        try:
            state(spool, make=True)
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        for number in range(SLOTS):
            fd = _lock(f"{directory}/{number}")
            if fd is not None:
                return fd
    except OSError as exc:
        raise SpoolError(f"{exc.filename or directory}: {exc.strerror}") from exc
    return None


def _lock(path: str) -> int | None:
    """A descriptor of the locked file, None when another process has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(fd)
        if isinstance(exc, BlockingIOError):
            return None
        raise
    return fd
