"""The few places for flushers that submissions start: at most so many deliver in the background at once.

A slot is a lock on ``<spool>/slots/<number>``; it is free again when its holder ends, however it ends.
"""

import fcntl
import os

# As many as there may be destinations that hang before new mail has to wait for the next flush.
SLOTS = 2


def take(spool: str) -> int | None:
    """A descriptor that holds a slot until it is closed, or None when all are taken."""
    directory = f"{spool}/slots"
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    for number in range(SLOTS):
        fd = os.open(
            f"{directory}/{number}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
        else:
            return fd
    return None
