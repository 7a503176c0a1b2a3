"""What an account may see and do of the queue through the service: its own messages, to list, remove and flush.

Own messages are those whose uid the kernel has told.  What came by the drop is shown to the uid that it claims, and no more.  To
a uid of DynamicUser= nothing is: tomorrow it is another service's.  Root and the queue's owner have all of them.

    a listed message    "<state> <name> <1 if claimed>", LF, the message's head, its tail

Never: no connection; another's message is one that does not exist.

Source: systemd.exec(5), DynamicUser=.
"""

import posix
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from minisend.envelope import SOCKET, Envelope, Outcome
from minisend.errors import SpoolError, UsageError
from minisend.spool.entry import Entry, Place
from minisend.spool.place import OVERFLOW_UID
from minisend.spool.record import BrokenRecord, UnknownVersion, format_outcomes
from minisend.spool.store import MESSAGE_STATES, Queue, claimed_files

# Seconds between two times that a uid may have its messages flushed.
_FLUSH_PAUSE = 60.0
# systemd's range for DynamicUser=.
_DYNAMIC = range(61184, 65520)

#: What says why those of a message wait whom no server was asked for; asked for at the beginning of a listing.
Reasons = Callable[[], Callable[[Entry], Sequence[Outcome]]]


class OwnMail:
    """Of each account, in this queue.  ``turn`` is the account's own: what is long is done in parts, each in its turn."""

    def __init__(self, queue: Queue, reasons: Reasons) -> None:
        self._queue = queue
        self._reasons = reasons
        self._lock = threading.Lock()
        self._flushed: dict[int, float] = {}

    def listed(self, uid: int, turn: threading.Lock) -> Iterator[bytes]:
        """What is told of each message; nothing of one that is another's, cannot be read, or is gone."""
        with turn:
            claimed, reasons = claimed_files(self._queue), self._reasons()
            places = sorted(
                self._queue.places(*MESSAGE_STATES), key=lambda place: (place.due, place.name)
            )
        for place in places:
            octets = b""
            with turn, suppress(BrokenRecord, UnknownVersion, OSError):
                entry = self._queue.read(place)
                if entry is not None:
                    with entry:
                        if _is_own(entry.envelope, uid, verified=False):
                            octets = _told(entry, claimed, reasons)
            yield octets

    def remove(self, uid: int, queue_id: str, turn: threading.Lock) -> None:
        """Durably.  Raises UsageError when there is no such message of theirs, SpoolError when it is being delivered."""
        try:
            with turn, self._claimed(uid, queue_id) as entry:
                entry.remove()
            self._queue.sync()
        except OSError as exc:
            raise SpoolError(f"{queue_id}: cannot be removed: {exc.strerror}") from exc

    def flush(self, uid: int, turn: threading.Lock) -> int:
        """Have those that wait be due now; how many there were.  Raises SpoolError for who has done so just before."""
        now = time.monotonic()
        with self._lock:
            if uid and now - self._flushed.get(uid, -_FLUSH_PAUSE) < _FLUSH_PAUSE:
                raise SpoolError(f"flushed less than {_FLUSH_PAUSE:g} s ago: wait a moment")
            self._flushed[uid] = now
        count = 0
        for place in self._queue.places("cur"):
            # By its name in the listing: to look up each would be a listing for each.
            with turn:
                if self._may_change(place, uid) and (entry := self._queue.claim(place)) is not None:
                    with suppress(OSError), entry:
                        entry.defer(0)
                        count += 1
        with suppress(OSError):
            self._queue.sync()
        return count

    def _claimed(self, uid: int, queue_id: str) -> Entry:
        absent = UsageError(f"{queue_id}: not in the queue")
        if len(queue_id) != 16 or not queue_id.isalnum():
            raise absent
        place = self._queue.find(queue_id, *MESSAGE_STATES)
        if place is None or not self._may_change(place, uid):
            raise absent
        entry = self._queue.claim(place)
        if entry is None:
            raise SpoolError(f"{queue_id}: is being delivered, try again")
        return entry

    def _may_change(self, place: Place, uid: int) -> bool:
        try:
            seen = self._queue.read(place)
        except (BrokenRecord, UnknownVersion, OSError):
            return False
        if seen is None:
            return False
        with seen:
            return _is_own(seen.envelope, uid, verified=True)


def _is_own(envelope: Envelope, uid: int, *, verified: bool) -> bool:
    if uid in (0, posix.geteuid()):
        return True
    if uid in _DYNAMIC or uid == OVERFLOW_UID or envelope.uid != uid:
        return False
    return envelope.channel == SOCKET or not verified


def _told(
    entry: Entry, claimed: set[tuple[int, int]], reasons: Callable[[Entry], Sequence[Outcome]]
) -> bytes:
    place = entry.place
    first = f"{place.state} {place.name} {entry.identity in claimed:d}\n"
    head, tail = entry.around()
    # What stands for an outcome, where no server was asked, is told like one.
    waits = reasons(entry) if place.state == "cur" else ()
    return (
        first.encode("ascii", "surrogateescape")
        + head
        + tail
        + format_outcomes(entry.attempts, waits)
    )
