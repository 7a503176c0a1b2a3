"""A condition variable over a lock that somebody else has too: what ``threading.Condition`` is, without the 6 ms that
``threading`` and what it imports take at the beginning of every delivery.
"""

from __future__ import annotations

from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType, RLock
    from collections import deque
else:
    from _collections import deque


class Condition:
    """To be used by whoever holds ``lock``, however often: also by a signal handler, in the middle of a use by its thread."""

    __slots__ = ("_lock", "_waiting")

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self._waiting: deque[LockType] = deque()

    def wait(self, seconds: float) -> bool:
        """Let go of the lock until notified, at most so long, and take it again.  False when the time was over."""
        mine = allocate_lock()
        mine.acquire()
        self._waiting.append(mine)
        held = self._lock._release_save()  # type: ignore[attr-defined]
        notified = False
        try:
            notified = mine.acquire(timeout=seconds)
        finally:
            self._lock._acquire_restore(held)  # type: ignore[attr-defined]
            if not notified:
                try:
                    self._waiting.remove(mine)
                except ValueError:  # notified just now
                    pass
        return notified

    def notify(self) -> bool:
        """Wake the one who waits longest; False when nobody does."""
        try:
            self._waiting.popleft().release()
        except IndexError:
            return False
        return True

    def notify_all(self) -> None:
        """Wake all who wait."""
        while self.notify():
            pass
