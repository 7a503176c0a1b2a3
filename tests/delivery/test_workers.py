"""The further processes of a flush: how they are told to end, and what it costs when there can be none."""

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence

import pytest
from delivery.scripted import ScriptedServer
from delivery.spooled import Lines, put, to_smarthost
from spool.make import listing

from minisend.admin.signals import EndingOnSignals
from minisend.delivery import workers as module
from minisend.delivery.attempt import Summary
from minisend.delivery.flush import Selection, Stop, flush
from minisend.delivery.workers import Workers
from minisend.spool.entry import Place

Progress = Callable[[int, int], None]


@pytest.fixture
def log() -> Lines:
    return Lines()


def test_one_that_is_told_twice_to_end_ends_with_its_transaction(log: Lines) -> None:
    """By who signals a whole group, as a terminal and systemd do, and by the first process, which was told too."""
    stop = Stop()

    def deliver(share: Sequence[Place], summary: Summary, far: bool, progress: Progress) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        summary.delivered = 1
        summary.stopped = stop.asked

    with EndingOnSignals(stop):
        workers = Workers([[]], deliver, log, stop.ask)
        workers.begin(False)
        summary = Summary()
        assert workers.finish(summary)
    assert (summary, log.lines) == (Summary(delivered=1, stopped=True), [])
    assert not stop.asked


def test_one_that_ignores_an_interrupt_goes_on_ignoring_it(log: Lines) -> None:
    """Begun with nohup(1), or in the background of a shell without job control."""
    stop = Stop()

    def deliver(share: Sequence[Place], summary: Summary, far: bool, progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        summary.stopped = stop.asked

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with EndingOnSignals(stop):
            workers = Workers([[]], deliver, log, stop.ask)
            workers.begin(False)
            summary = Summary()
            assert workers.finish(summary)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (summary, log.lines) == (Summary(), [])


def test_progress_is_that_of_all(spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH", 1)
    for each in range(9):
        put(spool, each, b"ann@x.test", arrived=time.time())
    steps: list[tuple[int, int]] = []
    with ScriptedServer() as server:
        summary = flush(
            to_smarthost(spool, server.port),
            Selection(),
            log=log,
            progress=lambda *step: steps.append(step),
            processes=3,
        )
    assert summary == Summary(tried=9, delivered=9)
    assert steps == sorted(steps)
    assert {total for _, total in steps} == {9}
    assert steps[-1] == (9, 9)


def test_how_far_a_worker_is_can_be_seen_while_it_works(log: Lines) -> None:
    read, write = os.pipe()

    def deliver(share: Sequence[Place], summary: Summary, far: bool, progress: Progress) -> None:
        progress(1, 3)
        os.read(read, 1)
        progress(3, 3)

    def meanwhile() -> None:
        seen.add(workers.progress)
        if (1, 3) in seen:
            os.write(write, b"x")

    seen: set[tuple[int, int]] = set()
    workers = Workers([[]], deliver, log, lambda: None)
    workers.begin(False)
    assert workers.finish(Summary(), meanwhile)
    os.close(read)
    os.close(write)
    assert (1, 3) in seen
    assert workers.progress == (3, 3)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def fails(number: int) -> Callable[[], int]:
    """A fork that fails from the ``number``-th on."""
    fork, forks = os.fork, []

    def instead() -> int:
        forks.append(None)
        if len(forks) >= number:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    return instead


@pytest.mark.parametrize("number", [1, 2])
def test_where_there_can_be_no_process_the_first_delivers_what_was_its_share(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """RLIMIT_NPROC, the limit of a container: a queue that was large enough for workers would never be delivered."""
    monkeypatch.setattr(module, "WORTH", 1)
    monkeypatch.setattr(module.posix, "fork", fails(number))
    for each in range(9):
        put(spool, each, b"ann@x.test", arrived=time.time())
    before = open_files()
    with ScriptedServer() as server:
        config = to_smarthost(spool, server.port)
        summary = flush(config, Selection(), log=log, processes=3)
    assert summary == Summary(tried=9, delivered=9)
    assert (len(server.messages), listing(spool), open_files()) == (9, {}, before)


def test_with_sigchld_ignored_by_who_started_it_a_flush_ends_well(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nobody to wait for then (wait(2), ECHILD)."""
    monkeypatch.setattr(module, "WORTH", 1)
    for each in range(4):
        put(spool, each, b"ann@x.test", arrived=time.time())
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with ScriptedServer() as server:
            config = to_smarthost(spool, server.port)
            summary = flush(config, Selection(), log=log, processes=2)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert summary == Summary(tried=4, delivered=4)
    assert (len(server.messages), listing(spool), log.about("event=")) == (4, {}, [])


def test_one_that_was_killed_before_it_began_keeps_nobody_from_beginning(log: Lines) -> None:
    def deliver(share: Sequence[Place], summary: Summary, far: bool, progress: Progress) -> None:
        summary.delivered = 1

    workers = Workers([[], []], deliver, log, lambda: None)
    killed = workers._workers[0].pid
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    workers.begin(False)
    summary = Summary()
    assert workers.finish(summary)
    assert summary == Summary(delivered=1, stopped=True)
    assert log.lines == [("error", '-: event=worker reason="ended with status 9"')]


@pytest.mark.parametrize(
    ("sizes", "shared"),
    [
        ([1000] * 99, [99]),
        ([1000] * 200, [100, 100]),
        ([50_000_000] * 3, [2, 1]),
        ([50_000_000], [1]),
        ([15 * 2**20, 1000], [2]),
        ([40 * 2**20, 1000], [1, 1]),
        ([], [0]),
    ],
)
def test_many_messages_are_shared_and_few_large_ones(sizes, shared):
    places = [Place("new", f"{number:016x}") for number in range(len(sizes))]
    size = {place.name: octets for place, octets in zip(places, sizes, strict=True)}
    parts = module.shares(places, 2, lambda place: size[place.name])
    assert [len(part) for part in parts] == shared
    assert sorted(place.name for part in parts for place in part) == [p.name for p in places]
