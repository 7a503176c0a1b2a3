"""A real server as processes of the test's own, in one process group, on loopback.

It never outlives the test: it is stopped with the ``with`` block, and where the test itself is killed a guard beside
it sends SIGTERM.  Waiting is polling against a deadline, never a fixed sleep.
"""

import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")

# Seconds.  Far above what is ever needed: two loaded cores must not fail a test.
DEADLINE = 30.0
POLL = 0.01


def wait_for(what: str, probe: Callable[[], T], deadline: float = DEADLINE) -> T:
    """Call ``probe`` until its result is true, and return that.

    ``what``      is awaited, for the message of the failure.
    ``deadline``  seconds; then AssertionError, with the last result.
    """
    end = time.monotonic() + deadline
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline:g} s; last: {result!r}")
        time.sleep(POLL)


def free_port(*addresses: str) -> int:
    """A port that is free on every address, for TCP and UDP.

    It is below the ephemeral range, so that no connection takes it while a test has its server stopped, and above
    1023, so that it needs no right.
    """
    for port in random.sample(range(10000, 32000), 1000):
        with ExitStack() as held:
            try:
                for address in addresses:
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        held.enter_context(socket.socket(socket.AF_INET, kind)).bind(
                            (address, port)
                        )
            except OSError:
                continue
            return port
    raise AssertionError(f"no port is free on {addresses}")


def greets(address: str, port: int) -> bool:
    """Whether an SMTP server there says that it serves; it is left in good order."""
    try:
        with socket.create_connection((address, port), timeout=5) as session:
            with session.makefile("rwb") as lines:
                greeting = lines.readline()
                lines.write(b"QUIT\r\n")
                lines.flush()
                lines.read()
    except OSError:
        return False
    return greeting.startswith(b"220 ")


def group_members(group: int) -> list[int]:
    """The processes of a process group that still run (proc(5), stat: the state is field 3, the group field 5)."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in field 2 may hold anything, so count from its closing bracket.
            state, _parent, its_group = (
                stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state not in "ZX":
            members.append(int(stat.parent.name))
    return members


class Server(ABC):
    """One server: a directory of its own, a command that stays in the foreground, a sign that it answers.

    A context manager: entering starts it, leaving stops it and removes the directory.  ``stop`` and ``start`` in
    between are an outage: port, state and directory are kept.
    """

    name: str

    def __init__(self) -> None:
        # Not pytest's tmp_path: nobody but its owner can enter that, and servers drop their rights.
        self._temporary = tempfile.TemporaryDirectory(prefix=f"minisend-{self.name}-")
        self.directory = Path(self._temporary.name)
        self.directory.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The program and its arguments; it must not put itself into the background."""

    def environment(self) -> Mapping[str, str]:
        """The whole environment of the process."""
        return {"PATH": os.defpath}

    @abstractmethod
    def check(self) -> subprocess.CompletedProcess[str]:
        """The server's own check of its configuration, run before it starts, since a daemon says little of that."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves."""

    def log(self) -> str:
        """What it has said so far."""
        try:
            return (self.directory / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def start(self) -> None:
        """Start it and return when it answers."""
        assert self._process is None, f"{self.name} is running"
        checked = self.check()
        assert checked.returncode == 0, f"{self.name}: {checked.stdout}{checked.stderr}"
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                env=self.environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # Its standard input ends when this process does.  (The kernel's PR_SET_PDEATHSIG will not do: it is void
        # once a process changes its ids, as Postfix's master does.)
        self._guard = subprocess.Popen(
            ["sh", "-c", 'read -r _; kill "$1"', "guard", str(self._process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            wait_for(f"{self.name} answers", self._answers_or_ended)
        except BaseException as exc:
            exc.add_note(f"log of {self.name}:\n{self.log()}")
            self.terminate()
            raise

    def _answers_or_ended(self) -> bool:
        assert self._process is not None
        ended = self._process.poll()
        assert ended is None, f"{self.name} ended with {ended}"
        return self.answers()

    def stop(self) -> None:
        """Stop it in good order; no process of it is left."""
        self.terminate()

    def terminate(self) -> None:
        """End it now; no process of it is left.  Nothing to do if it does not run."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.communicate()
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(DEADLINE)
            wait_for(f"{self.name} is gone", lambda: not group_members(process.pid))
        except BaseException:
            # The number cannot be somebody else's: a process group is not used again while it has a member.
            if group_members(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)
            raise

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._temporary.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.terminate()
        finally:
            self._temporary.cleanup()
