"""Changes of names that are not durable yet, and removed files that are not closed yet: what nobody needs to wait for.

    fsync of a directory       one for up to _GROUP_COUNT changes, at most _GROUP_SECONDS after the first of them
    close of a removed file    which is when its file system takes it apart: together with that fsync

Whoever removes a message goes on at once: a thread, which begins when there is enough to do, does both.  Where there can
be no thread, where it falls behind, and for other changes, they are done by whoever makes the one that is too many, and
all of them by ``sync``.

Two rules: no name is moved while directories are being synced, since those are synced in an order; and what an fsync has
failed for stays to be synced, while the failure itself is raised by the next ``sync``, whoever met it.
"""

import time
from _thread import RLock, allocate_lock, start_new_thread

from minisend.spool import disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Removals and moves may wait this long for their directory's fsync (DESIGN section 4, "grouped").
_GROUP_COUNT = 100
_GROUP_SECONDS = 1.0
# Removals with which the thread begins, so that it is through before there are too many.  Not with fewer: each time that it
# is woken, whoever removes messages waits for the interpreter.
_SOON = 50


class Changes:
    """Those of one queue.

    ``directory``  gives the descriptor of a state
    ``order``      of the states, in which they are synced
    ``strict``     everything at once, by whoever makes the change
    ``moving``     to be held by whoever moves a name, from ``take_order`` to ``made``
    """

    def __init__(
        self, directory: "Callable[[str], int]", order: tuple[str, ...], *, strict: bool
    ) -> None:
        self._directory = directory
        self._order = order
        self._strict = strict
        self.moving = RLock()
        # for what follows; held for moments, and never while the disk is waited for
        self._lock = allocate_lock()
        # states with changes for which no fsync has begun; how many changes, of them removals; since when
        self._dirty: set[str] = set()
        self._count = 0
        self._removals = 0
        self._since = 0.0
        # those for which one is under way
        self._under_way = 0
        self._under_way_since = 0.0
        # what the thread has met; under ``moving``, so that no other sync comes between
        self._failure: OSError | None = None
        # descriptors
        self._removed: list[int] = []
        # the thread: there is one; there can be none; it waits for ``_called``; it is to end.  Then ``_ended`` is free.
        self._running = False
        self._refused = False
        self._idle = False
        self._ending = False
        self._called = allocate_lock()
        self._called.acquire()
        self._ended = allocate_lock()

    def made(self, *states: str, removal: bool = False) -> None:
        """A name in each of these came or went.  Raises OSError when it was time to sync, and that failed."""
        now = time.monotonic()
        with self._lock:
            if not self._dirty:
                self._since = now
            self._dirty.update(states)
            self._count += len(states)
            self._removals += removal
            since = self._under_way_since if self._under_way else self._since
            due = (
                self._strict
                or self._count + self._under_way >= _GROUP_COUNT
                or now - since >= _GROUP_SECONDS
            )
            if self._removals >= _SOON and not due:
                self._call()
        if due:
            self.sync()

    def take_order(self, order: tuple[str, ...]) -> None:
        """Before a move: what was moved the other way must be durable, as no one order is right for both."""
        if order != self._order:
            self.sync()
            self._order = order

    def close_removed(self, fd: int) -> None:
        """Close the descriptor of a file that was removed, now or when its directory is synced."""
        with self._lock:
            kept = not self._strict and not self._ending
            if kept:
                self._removed.append(fd)
        if not kept:
            disk.close(fd)

    def sync(self) -> None:
        """Make all changes durable.  Raises OSError, also for what the thread has met."""
        self._close()
        with self.moving:
            failure, self._failure = self._failure, None
            self._sync()
        if failure is not None:
            raise failure

    def settle(self) -> None:
        """``sync``, if something has waited for as long as it may: for somebody to call while nothing else happens."""
        if self._failure or (self._dirty and time.monotonic() - self._since >= _GROUP_SECONDS):
            self.sync()

    def end(self) -> None:
        """``sync``, and let the thread end."""
        try:
            self.sync()
        finally:
            with self._lock:
                self._ending = True
                if self._running:
                    self._call()
            self._ended.acquire()
            self._ended.release()
            self._close()

    def _close(self) -> None:
        with self._lock:
            removed, self._removed = self._removed, []
        disk.close_all(removed)

    def _sync(self) -> None:
        """Under ``moving``: nothing may be moved between these calls."""
        with self._lock:
            dirty, self._dirty = self._dirty, set()
            count, self._count, self._removals = self._count, 0, 0
            since = self._since
            self._under_way, self._under_way_since = count, since
        done = False
        try:
            for state in self._order:
                if state in dirty:
                    disk.fsync(self._directory(state))
            done = True
        finally:
            with self._lock:
                self._under_way = 0
                if not done:
                    self._dirty |= dirty
                    self._count += count
                    self._since = since

    # -- the thread

    def _call(self) -> None:
        """Have the thread look, ``_lock`` held, if there can be one."""
        if self._idle:
            self._idle = False
            self._called.release()
        elif not self._running and not self._refused:
            self._running = self._ended.acquire()
            try:
                start_new_thread(self._work, ())
            except RuntimeError:  # RLIMIT_NPROC, the limit of a container
                self._refused = True
                self._running = False
                self._ended.release()

    def _work(self) -> None:
        try:
            while self._wait():
                self._close()
                with self.moving:
                    try:
                        self._sync()
                    except OSError as exc:
                        self._failure = exc
        finally:
            self._ended.release()

    def _wait(self) -> bool:
        """Wait until there is enough to do; False when the thread is to end."""
        while True:
            with self._lock:
                if self._removals >= _SOON:
                    return True
                if self._ending:
                    return False
                self._idle = True
            self._called.acquire()
