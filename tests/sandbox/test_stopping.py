"""The service is told to stop, or ends because it is idle, while messages come and go: nothing is lost, no client fails."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from delivery.scripted import END_OF_DATA
from peers.process import wait_for
from sandbox.installed import ANN, DEADLINE, SERVICE, Installed, greeted


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_whole_group_told_twice_ends_in_good_order():
    """As a terminal, or systemd with KillMode=control-group, does: each process hears it, and from the one above it again."""
    with Installed() as system:
        reached, go = threading.Event(), threading.Event()

        def answer(command):
            if command == END_OF_DATA:
                reached.set()
                assert go.wait(DEADLINE)
            return None

        system.server._answer = answer
        service = system.start()
        roles = children(service.pid)
        assert len(roles) == 2
        assert system.submit("a@example.net").returncode == 0
        assert reached.wait(DEADLINE)
        for pid in roles:
            os.kill(pid, signal.SIGTERM)
        # Its first part has ended, for which the one above tells the other one again.
        wait_for("one has ended", lambda: len(children(service.pid)) == 1)
        for _ in range(3):
            os.kill(children(service.pid)[0], signal.SIGINT)
        os.kill(service.pid, signal.SIGTERM)
        go.set()
        assert service.end(0) == 0, service.log
        assert service.log.count("event=stopped") == 2
        assert len(system.server.messages) == 1
        assert system.kept() == []
