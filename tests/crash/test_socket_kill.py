"""kill -9 of the socket service and of its clients: the short form of tests/soak/socket_kill.py, which says what is asserted."""

import os
import random

import pytest
from sandbox.installed import Installed
from soak.socket_kill import Storm

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other accounts"),
]


@pytest.mark.parametrize("of", ["service", "activated", "client"])
def test_storm(of):
    seed = random.randrange(1 << 32)
    with Installed() as system:
        counts = Storm(system, clients=4, of=of, seed=seed).run(rounds=500, seconds=6, least=3)
    # pytest shows it for a test that fails.
    print(seed, counts, sep="\n")
    assert counts.met >= 3
    assert counts.said["exit 0"] >= 3
