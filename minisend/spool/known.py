"""What the queue has, or had, under a queue id: how a second copy of a message is known for one.

The queue id is made from the submission id, so a message that comes by two ways comes under one.  It is known by its file, in
any state, or by what that has left behind (``spool.tombstone``).

Never changes anything.
"""

import posix
import time

from minisend.spool import tombstone
from minisend.spool.record import BrokenRecord, UnknownVersion
from minisend.spool.store import Place, Queue

# A directory's time has the grain of the kernel's clock; within this it may have changed and show the same (nanoseconds).
_GRAIN = 100_000_000


class Moving(Exception):
    """It is being moved over and over: nothing can be said at this moment."""


class Known:
    """What a queue has, or had; without a listing of ``cur`` for each id, as long as nothing changes there."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._listed: dict[str, str] = {}
        # the time of the directory for which that holds
        self._of = -1

    def find(self, queue_id: str) -> tuple[int, str] | None:
        """Octets and digest of this message; (-1, "") when it is there and cannot be read."""
        queue = self._queue
        for _ in range(5):
            # In the direction in which messages move, and once more where an administrator moves them to.
            place = queue.find(queue_id, "new")
            if place is None:
                name = self._names().get(queue_id)
                place = Place("cur", name) if name else None
            place = place or queue.find(queue_id, "hold", "failed")
            if place is None:
                gone = tombstone.find(queue.fd, queue_id)
                if gone is not None or queue.find(queue_id, "new") is None:
                    return gone
                continue
            try:
                entry = queue.read(place)
            except (BrokenRecord, UnknownVersion, OSError):
                return -1, ""
            if entry is not None:
                with entry:
                    return entry.trailer.octets, entry.trailer.digest
            self._of = -1
        raise Moving

    def _names(self) -> dict[str, str]:
        """Queue id → name in ``cur``."""
        cur = self._queue.directory("cur")
        if posix.fstat(cur).st_mtime_ns != self._of:
            self._of = -1
            self._listed = {}
            # A name that was given another time while it was listed may have been missed: not twice.
            for _ in range(2):
                began = time.time_ns()
                before = posix.fstat(cur).st_mtime_ns
                self._listed.update(
                    (place.queue_id, place.name) for place in self._queue.places("cur")
                )
                if posix.fstat(cur).st_mtime_ns == before:
                    if before < began - _GRAIN:
                        self._of = before
                    break
        return self._listed
