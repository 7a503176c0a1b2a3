"""A service at the submission socket for each test that wants one."""

import pytest

from spool.served import Served


@pytest.fixture
def served(queue):
    return Served(queue)
