"""What each account has in a queue at this moment, held against the limits of ``spool.limits``.

    count       adds what waits to a Usage
    Quotas      a Usage for all threads of a service, which counts anew when it must
    Admission   of one message, taken back should it not come in after all

Never: without limits, as is the default, no message is opened.
"""

import threading
import time

from minisend.errors import SpoolError
from minisend.spool.limits import Usage
from minisend.spool.record import BrokenRecord, UnknownVersion
from minisend.spool.store import Queue

# Between two counts of what all accounts have in the queue: seconds, and how many times as long as a count takes.
_RECOUNT = 5.0
_RECOUNT_PAUSE = 20


def count(queue: Queue, usage: Usage) -> None:
    """Add what waits in the queue; opens every message."""
    for place in queue.places("new", "cur", "hold"):
        try:
            entry = queue.read(place)
        except (BrokenRecord, UnknownVersion, OSError):
            continue
        if entry is not None:
            with entry:
                usage.add(entry.envelope.uid, entry.size)


class Quotas:
    """What each account has in the queue, where that is limited.

    Who delivers does not tell us what has left: it is counted anew before anybody is refused, but not all the time.
    For all threads; takes the place of a ``Usage``.
    """

    __slots__ = ("_count_at", "_counted", "_lock", "_queue", "_usage")

    def __init__(self, queue: Queue, usage: Usage) -> None:
        self._queue = queue
        self._usage = usage
        self._lock = threading.Lock()
        self._counted = False
        self._count_at = 0.0  # when it may be counted anew

    @property
    def is_limited(self) -> bool:
        """As ``Usage.is_limited``."""
        return self._usage.is_limited

    @property
    def rates(self) -> list[str]:
        """As ``Usage.rates``."""
        with self._lock:
            return self._usage.rates

    def restore(self, lines: list[str]) -> None:
        """As ``Usage.restore``."""
        with self._lock:
            self._usage.restore(lines)

    def admit(self, uid: int, octets: int) -> str | None:
        """As ``Usage.admit``."""
        if not self._usage.is_limited:
            return None
        with self._lock:
            why = self._usage.admit(uid, octets) if self._counted else ""
            began = time.monotonic()
            if why is not None and began >= self._count_at:
                self._usage.forget()
                count(self._queue, self._usage)
                self._counted = True
                # Everybody waits meanwhile, which must not become always: who is over a limit may go on sending.
                now = time.monotonic()
                self._count_at = now + max(_RECOUNT, _RECOUNT_PAUSE * (now - began))
                why = self._usage.admit(uid, octets)
            return why

    def undo(self, uid: int, octets: int) -> None:
        """As ``Usage.undo``."""
        if self._usage.is_limited:
            with self._lock:
                self._usage.undo(uid, octets)


class Admission:
    """A message that counts for its account once it is whole."""

    __slots__ = ("_octets", "_quotas", "_uid")

    def __init__(self, quotas: Quotas, uid: int) -> None:
        self._quotas = quotas
        self._uid = uid
        self._octets = -1

    def admit(self, octets: int) -> None:
        """It has so many.  Raises SpoolError when that is more than its account may have."""
        if why := self._quotas.admit(self._uid, octets):
            raise SpoolError(why)
        self._octets = octets

    def take_back(self) -> None:
        """It has not been taken after all, admitted or not."""
        if self._octets >= 0:
            self._quotas.undo(self._uid, self._octets)
