"""The connections that a service has open: how many, in all and of each account, and what those of one account do in turn.

For all threads.  Never touches a connection itself.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minisend.errors import SpoolError

#: Connections at a time: in all, and of one uid other than root; fewer when there is not so much room left.
MOST = 250
MOST_OF_ONE = 50

# Seconds that a request waits for another one of its account.
_TURN = 30.0
# Octets of an envelope of which an account has one in hand at a time: of some 3,000 recipients.  Each takes ten times as much
# memory.
_LARGE = 64 * 1024


class Turns:
    """What the connections of one account do one after the other: together they take from the others no more than one would.

    ``work``  time: to work out an envelope, to go through the queue or through a part of it
    """

    __slots__ = ("_large", "_listing", "work")

    def __init__(self) -> None:
        self.work = threading.Lock()
        self._large = threading.Lock()
        self._listing = threading.Lock()

    @contextmanager
    def in_hand(self, head: bytes) -> Iterator[None]:
        """While this envelope is: a large one takes memory.  Raises SpoolError when another large one does not end."""
        if len(head) <= _LARGE:
            yield
            return
        with _turn(self._large, "another message of so many recipients is under way: try again"):
            yield

    @contextmanager
    def listing(self) -> Iterator[None]:
        """While the names of the whole queue are held.  Raises SpoolError when another listing does not end."""
        why = "another request of this account goes through the queue, try again"
        with _turn(self._listing, why):
            yield


@contextmanager
def _turn(lock: threading.Lock, why_not: str) -> Iterator[None]:
    if not lock.acquire(timeout=_TURN):
        raise SpoolError(why_not)
    try:
        yield
    finally:
        lock.release()


class Connections:
    """Those that are open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._open: dict[int, int] = {}  # uid → how many
        self._turns: dict[int, Turns] = {}

    def enter(self, uid: int) -> bool:
        """One more of this account; False when it may have no more."""
        with self._lock:
            mine, left = self._open.get(uid, 0), MOST - sum(self._open.values())
            # No more than are left for all others: a handful of accounts must not have every connection there is.
            if left <= 0 or (uid != 0 and mine >= min(MOST_OF_ONE, left)):
                return False
            self._open[uid] = mine + 1
            self._turns.setdefault(uid, Turns())
            return True

    def leave(self, uid: int) -> None:
        """One less of this account."""
        with self._lock:
            left = self._open[uid] - 1
            if left:
                self._open[uid] = left
            else:
                del self._open[uid], self._turns[uid]
            if not self._open:
                self._idle.notify_all()

    def turns(self, uid: int) -> Turns:
        """Of an account that has one open."""
        return self._turns[uid]

    def wait(self, seconds: float) -> bool:
        """Until none is open, at most so long; True when none is."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._open, seconds)
