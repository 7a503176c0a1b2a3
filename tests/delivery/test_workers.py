"""The further processes of a flush: how they are told to end, and what it costs when there can be none."""

import os
import signal
from collections.abc import Sequence

import pytest
from delivery.spooled import Lines

from minisend.admin.command import _EndingOnSignals
from minisend.delivery.attempt import Summary
from minisend.delivery.flush import Stop
from minisend.delivery.workers import Workers
from minisend.spool.store import Place


@pytest.fixture
def log() -> Lines:
    return Lines()


def test_one_that_is_told_twice_to_end_ends_with_its_transaction(log: Lines) -> None:
    """By who signals a whole group, as a terminal and systemd do, and by the first process, which was told too."""
    stop = Stop()

    def deliver(share: Sequence[Place], summary: Summary, far: bool) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        summary.delivered = 1
        summary.stopped = stop.asked

    with _EndingOnSignals(stop):
        workers = Workers([[]], deliver, log, stop.ask)
        workers.begin(False)
        summary = Summary()
        assert workers.finish(summary)
    assert (summary, log.lines) == (Summary(delivered=1, stopped=True), [])
    assert not stop.asked


def test_one_that_ignores_an_interrupt_goes_on_ignoring_it(log: Lines) -> None:
    """Begun with nohup(1), or in the background of a shell without job control."""
    stop = Stop()

    def deliver(share: Sequence[Place], summary: Summary, far: bool) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        summary.stopped = stop.asked

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _EndingOnSignals(stop):
            workers = Workers([[]], deliver, log, stop.ask)
            workers.begin(False)
            summary = Summary()
            assert workers.finish(summary)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (summary, log.lines) == (Summary(), [])
