"""Clients that mean no good, against the service as it is installed: it lives, stays small, and the others are served.

How much slower the others are is measured by tests/bench/by_socket.py.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from peers.process import wait_for

from minisend.envelope import Envelope, Recipient
from minisend.spool.protocol import frame
from minisend.spool.record import format_head
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


# Opens as many connections as it gets, begins a submission with so many octets of its standard input on each, waits for its end.
HOLD = """\
import os, socket, sys
octets = sys.stdin.buffer.read(int(sys.argv[2]))
held = []
while True:
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(sys.argv[1])
    if held[-1].recv(100) == b"busy\\n":
        break
    if octets:
        held[-1].sendall(b"SUBMIT " + os.urandom(16).hex().encode() + b"\\n" + octets)
print(len(held) - 1, flush=True)
sys.stdin.read()
"""


@contextmanager
def all_held(system: Installed, octets: bytes = b"") -> Iterator[None]:
    """Every connection that an account may have, each with a submission begun if there are octets."""
    holder = subprocess.Popen(
        ["/usr/bin/python3", "-IS", "-c", HOLD, str(system.socket), str(len(octets))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=BOB,
        group=BOB,
        extra_groups=[],
        env={},
    )
    try:
        holder.stdin.write(octets)
        holder.stdin.flush()
        assert holder.stdout.readline() == b"50\n"
        yield
    finally:
        holder.communicate()


def test_who_has_all_connections_of_an_account_open_takes_them_from_that_account():
    with Installed() as system, system.serving():
        with all_held(system):
            for uid in (ANN, BOB):
                done = system.submit(f"n{uid}@example.net", uid=uid)
                assert (done.returncode, done.stderr) == (0, b"")
            assert identity(system.arrived(f"n{ANN}@example.net")) == (b"%d" % ANN, b"uid%d" % ANN)
        # Its own message was put into the drop meanwhile.
        system.flush()
        message = system.arrived(f"n{BOB}@example.net")
        assert identity(message) == (b"%d" % BOB, b"unverified")


def test_fifty_of_the_largest_envelopes_at_a_time():
    """Each would take 11 MB as long as its message is not at its end."""
    said = Envelope(
        "0" * 16,
        b"",
        [Recipient(b"%d@x.example" % n) for n in range(50_000)],
        arrived=1.0,
        sender_given=True,
    )
    octets = frame(b"E", format_head(said, 0))
    with Installed() as system:
        service = system.start("--accept")
        with all_held(system, octets):
            done = system.submit("a@example.net")
            assert (done.returncode, done.stderr) == (0, b"")
            wait_for("nothing is worked out any more", lambda: is_idle(service))
        assert peak(service) < 200_000
        assert service.end() == 0
        assert "event=bug" not in service.log


def is_idle(process: Process) -> bool:
    def used() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = used()
    time.sleep(0.3)
    return used() == before


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


@pytest.mark.parametrize("passed", [True, False], ids=["passed", "its own"])
def test_few_can_stand_in_front_of_somebody_else(passed):
    """Whoever connects and leaves fills the listening queue, not the time of the next one."""
    with Installed() as system, ExitStack() as held:
        listening = held.enter_context(system.listen()) if passed else None
        service = system.start("--accept", listening=listening)
        os.kill(service.pid, signal.SIGSTOP)
        waiting = 0
        while waiting < 1000:
            connection = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.setblocking(False)
            try:
                connection.connect(str(system.socket))
            except BlockingIOError:
                break
            waiting += 1
        os.kill(service.pid, signal.SIGCONT)
        assert 32 <= waiting <= 34
        assert system.submit("a@example.net").returncode == 0
