"""Clients that mean no good, against the service as it is installed: it lives, stays small, and the others are served.

How much slower the others are is measured by tests/bench/by_socket.py.
"""

import socket
import subprocess
import threading
from pathlib import Path

import pytest

from sandbox.hostile import KINDS
from sandbox.installed import ANN, BOB, DEADLINE, Installed, Process, greeted, identity


def peak(process: Process) -> int:
    """The most memory that it had, in KiB."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


# As another account's, and as the good ones' own.
@pytest.mark.parametrize("uid", [BOB, ANN], ids=["of another account", "of the same account"])
def test_eight_among_thirty_two(uid):
    with Installed() as system:
        service = system.start("--accept")
        done = []

        def submit(number: int) -> None:
            done.extend([system.submit(f"n{number}.{each}@example.net") for each in range(3)])

        with system.attacked(KINDS, uid):
            threads = [threading.Thread(target=submit, args=(number,)) for number in range(24)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [(each.returncode, each.stderr) for each in done] == [(0, b"")] * 72
        assert service.poll() is None
        assert peak(service) < 150_000
        assert service.end() == 0
        assert "event=bug" not in service.log
        system.flush()
        good = {
            each.recipients[0]: identity(each)
            for each in system.server.messages
            if each.recipients[0].startswith(b"n")
        }
        assert set(good) == {
            b"n%d.%d@example.net" % (n, each) for n in range(24) for each in range(3)
        }
        if uid != ANN:
            # Nobody had to go to the drop.
            assert set(good.values()) == {(b"%d" % ANN, b"uid%d" % ANN)}
        # Of the hostile ones' there is what was whole: the envelopes with an end are not.
        assert len(system.server.messages) == len(good)
        assert [path for path in system.kept() if "/tmp/" not in path] == []


def test_who_has_all_connections_of_an_account_open_takes_them_from_that_account():
    with Installed() as system, system.serving():
        hold = (
            "import socket, sys\n"
            "held = []\n"
            "while True:\n"
            "    held.append(socket.socket(socket.AF_UNIX)); held[-1].connect(sys.argv[1])\n"
            "    if held[-1].recv(100) == b'busy\\n': break\n"
            "print(len(held), flush=True); sys.stdin.read()"
        )
        holder = subprocess.Popen(
            ["/usr/bin/python3", "-IS", "-c", hold, str(system.socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            user=BOB,
            group=BOB,
            extra_groups=[],
            env={},
        )
        try:
            assert holder.stdout.readline() == b"51\n"
            for uid in (ANN, BOB):
                done = system.submit(f"n{uid}@example.net", uid=uid)
                assert (done.returncode, done.stderr) == (0, b"")
            assert identity(system.arrived(f"n{ANN}@example.net")) == (b"%d" % ANN, b"uid%d" % ANN)
        finally:
            holder.communicate()
        # Its own message was put into the drop meanwhile.
        system.flush()
        message = system.arrived(f"n{BOB}@example.net")
        assert identity(message) == (b"%d" % BOB, b"unverified")


def test_what_a_client_holds_open_is_nothing_that_another_one_needs():
    """A name in ``queue/tmp``, its lock, a submission id: each is the client's own."""
    with Installed() as system, system.serving(), greeted(system.socket) as first:
        first.sendall(b"SUBMIT " + b"0" * 32 + b"\n")
        with greeted(system.socket) as second:
            second.settimeout(DEADLINE)
            second.sendall(b"STATUS " + b"1" * 32 + b"\n")
            assert second.makefile("rb").readline() == b"NO 75 4.3.0 no such submission\n"
        assert system.submit("a@example.net").returncode == 0
        assert identity(system.arrived("a@example.net"))[0] == b"%d" % ANN
        first.shutdown(socket.SHUT_RDWR)
