"""What is left of a message that is gone although its submitter may not know that it came: ``<queue>/tombstones/<queue id>``.

A client that has not heard the answer of the socket may put its message into the drop directory as well, and a drop file
whose removal never reached the disk is there again after a power cut.  Such a message has the bit for executing in its
mode (``enqueue.UNACKNOWLEDGED``).  Who removes it, or moves it to ``cur``, leaves a tombstone first, durable, by which the
second copy is known (``spool.known``); one that was acknowledged leaves none and costs nothing.

    <octets> <digest>       of the message, as in its trailer; "-1 -" when the file was broken: equal to no message

Removed after ``AGE``: by ``sweep``, or where there is a drop directory by ingest, which has looked whether the second copy
still lies there - over a limit of its user, or while the machine was off.  Source: DESIGN section 3.
"""

import posix

from minisend.spool import disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minisend.spool.record import Trailer

_DIRECTORY = "tombstones"
#: Seconds: no submitter tries for so long.
AGE = 36 * 3600
_LONGEST = 100


def leave(queue: int, queue_id: str, trailer: "Trailer | None") -> None:
    """Make durable that this message was in the queue.  Raises OSError.

    ``queue``    a descriptor of the queue
    ``trailer``  of the message; None for a file that could not be read
    """
    said = b"%d %s\n" % (trailer.octets, trailer.digest.encode()) if trailer else b"-1 -\n"
    try:
        directory = disk.open_directory(_DIRECTORY, queue)
    except FileNotFoundError:
        disk.make_directory_at(_DIRECTORY, queue)
        directory = disk.open_directory(_DIRECTORY, queue)
    try:
        try:
            fd = disk.create(queue_id, directory)
        except FileExistsError:
            # A crash came between it and the removal: it says the same, or nothing yet.
            fd = disk.open_claiming(queue_id, directory)
        try:
            disk.write_at(fd, said, 0)
            disk.fsync(fd)
        finally:
            disk.close(fd)
        disk.fsync(directory)
    finally:
        disk.close(directory)


def find(queue: int, queue_id: str) -> tuple[int, str] | None:
    """Octets and digest of a message that was in the queue, None when nothing is known of it.  Raises OSError.

    ``queue_id``  16 hexadecimal digits
    """
    try:
        fd = disk.open_reading(f"{_DIRECTORY}/{queue_id}", queue)
    except FileNotFoundError:
        return None
    try:
        octets, _, digest = posix.read(fd, _LONGEST).decode("ascii", "replace").partition(" ")
    finally:
        disk.close(fd)
    # One that a crash has left half written belongs to a message that is still in the queue.
    return (int(octets), digest.rstrip("\n")) if octets.isdecimal() else (-1, "")


def sweep(queue: int, now: float) -> None:
    """Remove those that are old, of a queue without a drop directory.  Raises OSError.

    ``now``  seconds since the epoch
    """
    remove(queue, old(queue, now))


def old(queue: int, now: float) -> set[str]:
    """Queue ids of those older than ``AGE``.  Raises OSError."""
    found: set[str] = set()
    try:
        directory = disk.open_directory(_DIRECTORY, queue)
    except FileNotFoundError:
        return found
    try:
        for name in posix.listdir(directory):
            try:
                status = posix.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if now - status.st_mtime > AGE:
                found.add(name)
    finally:
        disk.close(directory)
    return found


def remove(queue: int, queue_ids: set[str]) -> None:
    """Remove these, as far as they are there.  Raises OSError."""
    for queue_id in queue_ids:
        try:
            disk.unlink(f"{_DIRECTORY}/{queue_id}", queue)
        except FileNotFoundError:
            pass
