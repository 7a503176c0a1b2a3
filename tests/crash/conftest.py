"""The process that runs the program with faults in it."""

import pytest
from crash.faulty import Forks


@pytest.fixture(scope="session")
def forks():
    with Forks() as started:
        yield started
