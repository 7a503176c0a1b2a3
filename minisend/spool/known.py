"""What the queue has, or had, under a queue id: how a second copy of a message is known for one.

The queue id is made from the submission id, so a message that comes by two ways comes under one.

    in new, hold, failed    there is a file of that name
    in cur, or gone         it has a tombstone (``spool.tombstone``), unless it was acknowledged: then there is no second copy

So no listing is needed: with 100,000 messages in ``cur`` one would take a tenth of a second of each submission.

Never changes anything, but makes durable what it calls known: whoever hears of it sends the message no other way.
"""

from minisend.spool import disk, tombstone
from minisend.spool.entry import Place
from minisend.spool.record import BrokenRecord, UnknownVersion
from minisend.spool.store import Queue

_NAMED = ("new", "hold", "failed")


class InHand(Exception):
    """Somebody has it in hand: nothing can be said at this moment."""


def is_known(queue: Queue, queue_id: str) -> bool:
    """Whether there is such a message, or was.  Raises OSError, SpoolError."""
    found = _look(queue, queue_id)
    if isinstance(found, Place):
        _make_durable(queue, found)
    return found is not None


def find(queue: Queue, queue_id: str) -> tuple[int, str] | None:
    """Octets and digest of this message; (-1, "") when it cannot be read.  Raises InHand, OSError, SpoolError.

    Not for who has it in hand: who is just bringing it in might take it away again.
    """
    found = _look(queue, queue_id)
    if not isinstance(found, Place):
        return found
    try:
        fd = disk.open_reading(found.name, queue.directory(found.state))
    except FileNotFoundError as exc:
        raise InHand from exc
    try:
        if not (disk.lock(fd) and disk.is_at(fd, found.name, queue.directory(found.state))):
            raise InHand
    finally:
        disk.close(fd)
    _make_durable(queue, found)
    try:
        entry = queue.read(found)
    except (BrokenRecord, UnknownVersion):
        return -1, ""
    if entry is None:
        raise InHand
    with entry:
        return entry.trailer.octets, entry.trailer.digest


def _look(queue: Queue, queue_id: str) -> "Place | tuple[int, str] | None":
    """In the direction in which messages move, and once more where an administrator moves them to."""
    return (
        queue.find(queue_id, *_NAMED)
        or tombstone.find(queue.fd, queue_id)
        or queue.find(queue_id, "new")
    )


def _make_durable(queue: Queue, place: Place) -> None:
    """Who gave it this name may have been killed before the fsync."""
    disk.fsync(queue.directory(place.state))
