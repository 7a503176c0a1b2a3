"""What every test directory shares: the hypothesis profiles and a queue of its own for each test."""

import os
import signal

import pytest
from hypothesis import settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Started in the background or by nohup, this process ignores signals, and so would every program that it starts.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )


@pytest.fixture
def spool(tmp_path):
    """The path of a spool that does not exist yet."""
    return str(tmp_path / "spool")


@pytest.fixture
def queue(spool):
    """An open, empty queue in ``spool``; what it reports is in ``queue.reported``."""
    from spool.make import RecordingQueue

    with RecordingQueue(spool) as opened:
        yield opened


@pytest.fixture
def system():
    """The spool of a system, with its drop directory, both empty."""
    from spool.system import a_system

    with a_system() as made:
        yield made
