"""The service is told to stop, or ends because it is idle, while messages come and go: nothing is lost, no client fails."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

from delivery.scripted import END_OF_DATA
from peers.process import wait_for

from sandbox.installed import DEADLINE, Installed


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


def submit_until(
    system: Installed, over: threading.Event, results: list[tuple[int, int, bytes]], first: int
) -> None:
    """One submission after the other: number, exit code, standard error."""
    number = first
    while not over.is_set():
        done = system.submit(
            f"n{number}@example.net", message=b"Subject: %d\n\n%d\n" % (number, number)
        )
        results.append((number, done.returncode, done.stderr))
        number += 1


def submitting(system: Installed, threads: int = 3):
    """Ends them when called; then what became of each."""
    over = threading.Event()
    results: list[tuple[int, int, bytes]] = []
    each = [
        threading.Thread(target=submit_until, args=(system, over, results, 100_000 * n))
        for n in range(threads)
    ]
    for thread in each:
        thread.start()

    def end() -> list[tuple[int, int, bytes]]:
        over.set()
        for thread in each:
            thread.join()
        return results

    return results, end


def all_arrived_once(system: Installed, results: list[tuple[int, int, bytes]]) -> None:
    system.flush()
    assert [each for each in results if each[1:] != (0, b"")] == []
    recipients = sorted(each.recipients for each in system.server.messages)
    assert recipients == sorted(((b"n%d@example.net" % number),) for number, _, _ in results)
    assert system.kept() == []


def test_stopped_and_started_while_clients_come():
    """Between two services the drop takes what comes, and what a service has begun it ends."""
    with Installed() as system:
        results, end = submitting(system)
        try:
            for _ in range(4):
                before = len(results)
                service = system.start("--accept")
                wait_for("some come", lambda: len(results) > before + 10)  # noqa: B023
                assert service.end() == 0, service.log
        finally:
            end()
        all_arrived_once(system, results)


def test_idle_exits_while_clients_come():
    """Started by socket: each service ends when for a moment nobody is there, and the next one takes who came meanwhile."""
    with Installed() as system, system.listen() as listening:
        results, end = submitting(system, 1)
        ended = 0
        try:
            until = time.monotonic() + 5
            while time.monotonic() < until:
                process = system.start("--accept", "--exit-idle", "0", listening=listening)
                wait_for("it ends", lambda: process.poll() is not None)  # noqa: B023
                assert process.poll() == 0, process.log
                assert process.log.splitlines()[-1].startswith("minisend: -: event=idle")
                ended += 1
            service = system.start("--accept", listening=listening)
        finally:
            end()
        assert service.end() == 0
        assert ended > 3
        assert len(results) > 3
        assert list((system.drop / "new").iterdir()) == []
        all_arrived_once(system, results)


def test_who_had_connected_when_it_was_stopped_is_served():
    """Its own socket, and nothing to fall back to: who is in its queue when the name goes is answered all the same."""
    with Installed(submission="") as system:
        service = system.start("--accept")
        os.kill(service.pid, signal.SIGSTOP)
        waiting = []
        for _ in range(20):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(DEADLINE)
            connection.connect(str(system.socket))
            waiting.append(connection)
        os.kill(service.pid, signal.SIGTERM)
        os.kill(service.pid, signal.SIGCONT)
        for connection in waiting:
            with connection, connection.makefile("rwb") as lines:
                assert lines.readline() == b"minisend 1\n"
                lines.write(b"STATUS " + b"0" * 32 + b"\n")
                lines.flush()
                assert lines.readline() == b"NO 75 4.3.0 no such submission\n"
        assert service.end(0) == 0, service.log
        assert not system.socket.exists()
