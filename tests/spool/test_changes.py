"""What nobody waits for when a message is removed, and what somebody must wait for all the same."""

import errno
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from minisend.spool import changes, disk
from minisend.spool.entry import Place
from spool.make import MESSAGE, RecordingQueue, claimed, put
from spool.seam import Seam

_PATIENCE = 30


class Disk:
    """Stands at ``disk.fsync``: a sync of a directory waits until it is let go, and fails if it is told to.

    ``order``  what has happened, as the tests note it too
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        self.begun = threading.Semaphore(0)
        self.free = threading.Event()
        self.error = 0
        self._real = disk.fsync
        monkeypatch.setattr(disk, "fsync", self._fsync)
        # No group is ended by the time that this takes.
        monkeypatch.setattr("time.monotonic", lambda: 0.0)

    def _fsync(self, fd: int) -> None:
        self.begun.release()
        assert self.free.wait(_PATIENCE)
        self.order.append("fsync " + os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self._real(fd)


@pytest.fixture
def queue(tmp_path) -> Iterator[RecordingQueue]:
    with RecordingQueue(f"{tmp_path}/spool") as queue:
        yield queue


@pytest.fixture
def slow(queue: RecordingQueue, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk that is waited for; the queue of the test was made before it, and is closed without it."""
    with monkeypatch.context() as patched:
        stand_in = Disk(patched)
        yield stand_in
        stand_in.free.set()
        stand_in.error = 0
        try:
            queue.sync()
        except OSError:
            queue.sync()


class Asked:
    """Stands at ``moving``: ``by`` counts who has asked for it since."""

    def __init__(self, queue: RecordingQueue) -> None:
        self._real = queue.changes.moving
        self.by = threading.Semaphore(0)
        queue.changes.moving = self

    def __enter__(self) -> None:
        self.by.release()
        self._real.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._real.release()


def filled(queue: RecordingQueue, count: int, message: bytes = MESSAGE) -> list[Place]:
    return [put(queue, f"{n:016x}", message) for n in range(count)]


def remove(queue: RecordingQueue, places: list[Place]) -> None:
    for place in places:
        with claimed(queue, place) as entry:
            entry.remove()


def beside(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def put_fast(queue: RecordingQueue, monkeypatch: pytest.MonkeyPatch, count: int) -> list[Place]:
    """``filled`` while ``disk.fsync`` costs nothing."""
    with monkeypatch.context() as patched:
        patched.setattr(disk, "fsync", lambda fd: None)
        return filled(queue, count)


def test_removing_goes_on_while_a_directory_is_synced(queue, monkeypatch, slow):
    places = put_fast(queue, monkeypatch, 99)
    remove(queue, places[:50])
    assert slow.begun.acquire(timeout=_PATIENCE)
    remove(queue, places[50:])
    assert slow.order == []
    slow.free.set()
    queue.sync()
    # The first of the thread, for half of them; whatever came later needs another.
    assert slow.order == ["fsync new", "fsync new"]


def test_no_more_than_a_hundred_wait_for_their_sync(queue, monkeypatch, slow):
    places = put_fast(queue, monkeypatch, 100)
    remove(queue, places[:99])
    assert slow.begun.acquire(timeout=_PATIENCE)

    def one_more() -> None:
        remove(queue, places[99:])
        slow.order.append("removed")

    asked = Asked(queue)
    thread = beside(one_more)
    assert asked.by.acquire(timeout=_PATIENCE)
    slow.order.append("free")
    slow.free.set()
    thread.join(_PATIENCE)
    assert slow.order == ["free", "fsync new", "fsync new", "removed"]


def test_nothing_moves_while_a_directory_is_synced(queue, monkeypatch, slow):
    places = put_fast(queue, monkeypatch, 51)
    remove(queue, places[:50])
    assert slow.begun.acquire(timeout=_PATIENCE)
    assert not queue.changes.moving.acquire(blocking=False)
    real = disk.rename

    def rename(*arguments: object) -> None:
        slow.order.append("rename")
        real(*arguments)

    monkeypatch.setattr(disk, "rename", rename)

    def move() -> None:
        with claimed(queue, places[50]) as entry:
            entry.defer(5.0)

    asked = Asked(queue)
    thread = beside(move)
    assert asked.by.acquire(timeout=_PATIENCE)
    slow.order.append("free")
    slow.free.set()
    thread.join(_PATIENCE)
    queue.sync()
    assert slow.order == ["free", "fsync new", "rename", "fsync cur", "fsync new"]


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_what_the_thread_could_not_sync_is_told_by_the_next_sync(queue, monkeypatch, slow, error):
    """Also when that one finds nothing wrong: the kernel tells of a lost write only once."""
    slow.error = error
    remove(queue, put_fast(queue, monkeypatch, 50))
    assert slow.begun.acquire(timeout=_PATIENCE)
    slow.free.set()
    # Whoever comes to the lock first, one of the two has failed.
    queue.changes.moving.acquire()
    queue.changes.moving.release()
    slow.error = 0
    with pytest.raises(OSError, match=os.strerror(error)):
        queue.sync()
    assert slow.order == ["fsync new"] * 2
    queue.sync()
    assert slow.order == ["fsync new"] * 2


def test_closing_waits_for_the_thread(tmp_path, monkeypatch):
    opened = descriptors()
    threads = []
    begin = changes.start_new_thread
    monkeypatch.setattr(
        changes, "start_new_thread", lambda *what: threads.append(what) or begin(*what)
    )
    with RecordingQueue(f"{tmp_path}/spool") as queue:
        remove(queue, filled(queue, 60))
    assert len(threads) == 1
    assert descriptors() == opened
    assert queue.changes._ended.acquire(blocking=False)


def test_removed_files_do_not_pile_up(queue, monkeypatch):
    """Small ones wait for each other, a large one gives its room back at once."""
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    large, *places = [put(queue, "f" * 16, b"\n" + b"x" * 70_000), *filled(queue, 99)]
    remove(queue, [places.pop()])
    opened = descriptors()
    remove(queue, [large])
    assert descriptors() == opened
    begun = threading.Semaphore(0)
    ended = threading.Semaphore(0)
    held = threading.Event()
    real = disk.close_all

    def close_all(fds: list[int]) -> None:
        begun.release()
        assert held.wait(_PATIENCE)
        real(fds)
        ended.release()

    monkeypatch.setattr(disk, "close_all", close_all)
    counts = []
    for number, place in enumerate(places[:97], 3):
        remove(queue, [place])
        if number == 50:
            assert begun.acquire(timeout=_PATIENCE)
        counts.append(descriptors() - opened)
    # One more was open before.  The thread has a batch in hand, and others wait for it.
    assert counts == [*range(1, 98)]
    held.set()
    assert ended.acquire(timeout=_PATIENCE)
    remove(queue, places[97:])
    queue.sync()
    assert descriptors() == opened - 1


def test_without_a_thread_it_is_done_by_who_makes_the_change(tmp_path, monkeypatch):
    def refuse(*what: object) -> None:
        raise RuntimeError("can't start new thread")

    with RecordingQueue(f"{tmp_path}/spool") as queue:
        places = filled(queue, 101)
        monkeypatch.setattr(changes, "start_new_thread", refuse)
        monkeypatch.setattr("time.monotonic", lambda: 0.0)
        seam = Seam()
        monkeypatch.setattr(disk, "posix", seam)
        opened = descriptors()
        remove(queue, places[:99])
        assert descriptors() == opened + 99 + 1  # the directory
        assert seam.about("fsync") == []
        remove(queue, places[99:100])
        assert descriptors() == opened + 1 + 1  # closed after the sync that it made necessary
        assert seam.about("fsync") == [("fsync", f"{queue.spool}/queue/new")]


def test_strict_is_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "start_new_thread", None)
    with RecordingQueue(f"{tmp_path}/spool", strict_sync=True) as queue:
        places = filled(queue, 60)
        remove(queue, places[:1])
        opened = descriptors()
        seam = Seam()
        monkeypatch.setattr(disk, "posix", seam)
        remove(queue, places[1:])
        assert len(seam.about("fsync")) == 59
        assert descriptors() == opened


def test_consecutive_descriptors_are_closed_together_and_no_other(monkeypatch):
    calls = []
    monkeypatch.setattr(disk.posix, "closerange", lambda low, high: calls.append((low, high)))
    disk.close_all([])
    disk.close_all([9, 7, 8, 12, 4, 5])
    assert calls == [(4, 6), (7, 10), (12, 13)]
