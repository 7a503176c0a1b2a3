"""kill -9 of submitters and flushers at random moments, against Postfix: every message arrives, and twice only what was in flight.

    cd tests && PYTHONPATH=.. python3 -m soak.kill_storm [--messages 2000] [--seconds 60] [--service] ...      as root

Submitters run ``sendmail`` for one message after the other, flushers ``minisend flush`` again and again; with --service
they are ``sendmail -odb`` and ``minisend run``, and the flushers that submissions start themselves.  A killed submitter
sends the same message again, as its caller would; a killed flusher is started again.  What is left after the storm one
undisturbed flush delivers.  The short form is tests/crash/test_kill_storm.py.

    a copy more than one of a message       is right when
    under another queue id                  a sendmail that was killed had queued it already: "accepted though killed"
    under the same queue id                 it was in flight: among the last ``WINDOW`` messages of a connection that was
                                            cut without QUIT, as the log of Postfix shows

Every message has its number in recipient, subject and body, and every body is compared.
"""

import argparse
import fcntl
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from delivery.program import Program
from peers.postfix import Arrived, Postfix
from peers.process import wait_for

from minisend.smtp import session

#: Messages that a connection may have in flight at once.
WINDOW: int = getattr(session, "WINDOW", 1)

# The states in which nothing may be left.
STATES = ("new", "cur", "hold", "failed")
# Every so many messages one is too large to be written to the queue in one piece.
_LARGE_EACH, _LARGE = 25, 4000
# The part of the storm in which the messages are submitted, so that the last of them are flushed in it too.
_SUBMITTING = 0.9
# Seconds after which the queue takes a file in tmp for one that nobody writes any more.
_AGED = 37 * 3600

_QUEUE_ID = re.compile(rb"^Received: .*?\n\tid ([0-9a-f]{16});", re.DOTALL)
_LOGGED = re.compile(r"postfix/smtpd\[(\d+)\]: (.*)")
_TAKEN = re.compile(r"([0-9A-Za-z]{10,}): client=")


@dataclass(frozen=True)
class Plan:
    """What is to be done; ``every`` so many of ``seconds`` one process is killed, of those that run just then."""

    messages: int = 2000
    submitters: int = 8
    flushers: int = 3
    seconds: float = 60.0
    every: float = 0.2
    service: bool = False
    seed: int = 0


@dataclass
class Counts:
    """What came of it.

    ``killed``      by what was killed
    ``queued``      messages whose submission had succeeded when the storm ended
    ``accepted_though_killed``  messages that are in the queue once more, since their sendmail was killed too late
    ``sessions``, ``cut``       with Postfix; those that ended without QUIT
    ``duplicates``  copies beyond the first of one queue id
    ``left_in_tmp`` files that only their age removes
    """

    plan: Plan
    killed: Counter[str] = field(default_factory=Counter)
    queued: int = 0
    arrived: int = 0
    accepted_though_killed: int = 0
    sessions: int = 0
    cut: int = 0
    duplicates: int = 0
    left_in_tmp: int = 0

    @property
    def bound(self) -> int:
        """The most copies beyond the first that there may be."""
        return self.cut * WINDOW

    def __str__(self) -> str:
        killed = ", ".join(f"{count} {who}" for who, count in sorted(self.killed.items()))
        return (
            f"{self.killed.total()} killed: {killed}\n"
            f"{self.queued} of {self.plan.messages} messages were queued when the storm ended, "
            f"{self.accepted_though_killed} more had been accepted though their sendmail was killed\n"
            f"{self.arrived} of {self.plan.messages} messages arrived\n"
            f"{self.cut} of {self.sessions} connections cut without QUIT x window {WINDOW}: "
            f"{self.duplicates} duplicates, at most {self.bound} allowed, each of them was in flight\n"
            f"left: {self.left_in_tmp} files in tmp, all of killed submitters and removed once aged; "
            f"nothing in {', '.join(STATES)}; no process, no descriptor, no slot taken"
        )


class Worker(threading.Thread, ABC):
    """Runs one process after the other, each of which may be killed at any moment.

    ``kind``    for the counts
    ``killed``  how many of its processes ended by SIGKILL
    """

    kind: str

    def __init__(self, storm: "Storm") -> None:
        super().__init__()
        self.storm = storm
        self.killed = 0
        self.error: BaseException | None = None
        # A pidfd(2) of its process, so that no signal goes to another that has its number by then; -1 without.
        self._process = -1
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as exc:
            self.error = exc
            self.storm.failed.set()

    @abstractmethod
    def work(self) -> None:
        """What the thread does."""

    def execute(self, command: list[str], stdin: bytes = b"", *, logs: bool = False) -> int:
        """Exit code of the process; only one that ``logs`` may say something on standard error."""
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},
        ) as process:
            with self._lock:
                self._process = os.pidfd_open(process.pid)
            try:
                stderr = process.communicate(stdin)[1]
            finally:
                with self._lock:
                    os.close(self._process)
                    self._process = -1
        assert logs or not stderr, (command, stderr)
        self.killed += process.returncode == -signal.SIGKILL
        return process.returncode

    def signal(self, number: int) -> None:
        """Nothing happens when it has no process."""
        with self._lock:
            if self.busy:
                _signal(self._process, number)

    @property
    def busy(self) -> bool:
        """It has a process."""
        return self._process >= 0


class Submitter(Worker):
    """``kills``: of sendmail, by the number of the message; ``queued``: messages that are."""

    kind = "submitter"

    def __init__(self, storm: "Storm", numbers: range) -> None:
        super().__init__(storm)
        self._numbers = numbers
        self.kills: Counter[int] = Counter()
        self.queued = 0

    def work(self) -> None:
        plan = self.storm.plan
        background = "-odb" if plan.service else "-odq"
        for number in self._numbers:
            due = self.storm.began + plan.seconds * _SUBMITTING * number / plan.messages
            self.storm.failed.wait(max(0.0, due - time.monotonic()))
            command = self.storm.program.command(
                "sendmail", background, "-f", "me@here.test", recipient(number)
            )
            while (code := self.execute(command, message(number))) != 0:
                assert code == -signal.SIGKILL, (number, code)
                self.kills[number] += 1
            self.queued += 1
            if self.storm.failed.is_set():
                return


class Flusher(Worker):
    """``minisend flush`` in a loop, or ``minisend run``."""

    kind = "flusher"

    def work(self) -> None:
        service = self.storm.plan.service
        words = ["run"] if service else ["flush", "--quiet"]
        command = self.storm.program.command("minisend", *words)
        while not self.storm.over.is_set():
            code = self.execute(command, logs=service)
            # 75: something stays, as when it was told to end before it was through, or it had just begun to run.
            assert code in (0, 75, -signal.SIGKILL, -signal.SIGTERM), code


class Storm:
    """One storm in ``directory``; ``run`` is all of it."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.counts = Counts(plan)
        self.began = 0.0
        # The storm is over, the submissions are through: who flushes ends.
        self.over = threading.Event()
        # Something is wrong: nobody begins anything more.
        self.failed = threading.Event()
        self._directory = directory

    def run(self) -> Counts:
        """The counts.  Raises AssertionError for whatever is not as it has to be."""
        with Postfix() as postfix:
            settings = f'[smarthost]\nhost = "127.0.0.1"\nport = {postfix.port}\ntls = "none"\n'
            self.program = Program(self._directory, settings, retry_min="1s")
            self._submitters = [
                Submitter(self, range(first, self.plan.messages, self.plan.submitters))
                for first in range(self.plan.submitters)
            ]
            self._flushers = [Flusher(self) for _ in range(self.plan.flushers)]
            self._work()
            code, said = self.program.flush("--all")
            assert code == 0, (code, said)
            self._check_spool()
            wait_for("every connection has ended", lambda: not sessions(postfix.log())[1])
            self._check_arrived(postfix.arrived(), sessions(postfix.log())[0])
        return self.counts

    def _work(self) -> None:
        workers = [*self._submitters, *self._flushers]
        self.began = time.monotonic()
        for worker in workers:
            worker.start()
        try:
            self._kill(workers)
            self.counts.queued = sum(submitter.queued for submitter in self._submitters)
            for submitter in self._submitters:
                submitter.join()
        except BaseException:
            self.failed.set()
            raise
        finally:
            self.over.set()
            for worker in workers:
                while worker.is_alive():
                    worker.signal(signal.SIGTERM)
                    worker.join(0.1)
        for worker in workers:
            if worker.error is not None:
                raise worker.error
            self.counts.killed[worker.kind] += worker.killed
        wait_for("the flushers that submissions started have ended", lambda: not self._detached())

    def _kill(self, workers: list[Worker]) -> None:
        chance = random.Random(self.plan.seed)
        number = 1
        while (at := self.began + number * self.plan.every) <= self.began + self.plan.seconds:
            time.sleep(max(0.0, at - time.monotonic()))
            if self.failed.is_set():
                return
            number += 1
            victims: list[Worker | int] = [worker for worker in workers if worker.busy]
            victims += self._detached()
            if not victims:
                continue
            victim = chance.choice(victims)
            if isinstance(victim, Worker):
                victim.signal(signal.SIGKILL)
            else:
                self.counts.killed["flusher of a submission"] += self._kill_detached(victim)

    def _detached(self) -> list[int]:
        """The flushers that submissions have started: children of nobody here."""
        return [
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if self._is_detached(int(process.name))
        ]

    def _is_detached(self, process: int) -> bool:
        words = _read(f"/proc/{process}/cmdline").split(b"\0")
        return os.fsencode(self.program.config) in words and b"--background" in words

    def _kill_detached(self, process: int) -> bool:
        try:
            fd = os.pidfd_open(process)
        except ProcessLookupError:
            return False
        try:
            # Whoever has the number now, it stays theirs while this is open.
            return self._is_detached(process) and _signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)

    def _check_spool(self) -> None:
        queue = self.program.spool / "queue"
        left = {state: os.listdir(queue / state) for state in STATES}
        assert not any(left.values()), left
        # A name in tmp is one of a sendmail that was killed; for all that a flush knows, it may be at work yet.
        in_tmp = list((queue / "tmp").iterdir())
        self.counts.left_in_tmp = len(in_tmp)
        assert len(in_tmp) <= self.counts.killed["submitter"], in_tmp
        for path in in_tmp:
            os.utime(path, times=(time.time() - _AGED,) * 2)
        assert self.program.flush() == (0, "nothing to deliver: the queue is empty")
        assert os.listdir(queue / "tmp") == []
        assert users(self.program.spool) == []

    def _check_arrived(self, arrived: list[Arrived], taken: list["Taken"]) -> None:
        counts = self.counts
        counts.sessions = len(taken)
        counts.cut = sum(session.cut for session in taken)
        # number, then queue id of minisend, then those of Postfix in the order of arrival
        copies: dict[int, dict[bytes, list[str]]] = {}
        for each in arrived:
            number, queue_id = identify(each)
            copies.setdefault(number, {}).setdefault(queue_id, []).append(each.queue_id.decode())
        counts.arrived = len(copies)
        missing = set(range(self.plan.messages)) - set(copies)
        assert not missing, f"lost: {sorted(missing)}"
        assert set(copies) == set(range(self.plan.messages))
        kills: Counter[int] = Counter()
        for submitter in self._submitters:
            kills += submitter.kills
        for number, ids in copies.items():
            assert len(ids) - 1 <= kills[number], (number, ids, kills[number])
            for queue_id, each in ids.items():
                assert not unexplained(each, taken), (number, queue_id, each)
        counts.accepted_though_killed = sum(len(ids) - 1 for ids in copies.values())
        counts.duplicates = len(arrived) - sum(map(len, copies.values()))
        assert counts.duplicates <= counts.bound, counts


def recipient(number: int) -> str:
    """Of the message of this number."""
    return f"number.{number}@there.test"


def message(number: int) -> bytes:
    """The message of this number, LF line ends."""
    lines = _LARGE if number % _LARGE_EACH == 0 else 1
    return b"Subject: number %d\n\n" % number + body(number, lines)


def body(number: int, lines: int) -> bytes:
    """So many lines, each with the number in it."""
    return b"this is message number %d, and this is a line of it\n" % number * lines


def identify(arrived: Arrived) -> tuple[int, bytes]:
    """Number and minisend's queue id of a message, which has to be as it was submitted."""
    header, _, rest = arrived.message.partition(b"\n\n")
    (to,) = arrived.recipients
    number = int(to.decode().removeprefix("number.").removesuffix("@there.test"))
    assert arrived.sender == b"me@here.test", arrived
    assert b"\nSubject: number %d\n" % number in header + b"\n", arrived
    assert rest == message(number).partition(b"\n\n")[2], arrived
    found = _QUEUE_ID.match(header)
    assert found, header
    return number, found[1]


@dataclass
class Taken:
    """A session as Postfix saw it: the queue ids that it gave, in their order; ``cut``: it ended without QUIT."""

    queued: list[str] = field(default_factory=list)
    cut: bool = False


def sessions(log: str) -> tuple[list[Taken], list[Taken]]:
    """The sessions that have ended, and those that have not, from Postfix's log."""
    ended: list[Taken] = []
    going: dict[str, Taken] = {}
    for process, said in _LOGGED.findall(log):
        if said.startswith("connect from "):
            assert process not in going, said
            going[process] = Taken()
        elif said.startswith("disconnect from "):
            taken = going.pop(process)
            taken.cut = " quit=1 " not in f"{said} "
            ended.append(taken)
        elif named := _TAKEN.match(said):
            going[process].queued.append(named[1])
    return ended, list(going.values())


def unexplained(copies: list[str], taken: list[Taken]) -> set[str]:
    """Those of the copies of one message (Postfix's queue ids, as they arrived) after which there was no reason for another."""
    in_flight = {queued for session in taken if session.cut for queued in session.queued[-WINDOW:]}
    return set(copies[:-1]) - in_flight


def users(spool: Path) -> list[str]:
    """Who has a file of the spool open, or names the directory it lies in on his command line; and slots that are taken."""
    found = []
    inside = os.fsencode(spool.parent)
    for process in Path("/proc").glob("[0-9]*"):
        if inside in _read(f"{process}/cmdline"):
            found.append(f"process {process.name}")
        try:
            found += [
                f"descriptor of {process.name}: {link}"
                for link in map(os.readlink, (process / "fd").iterdir())
                if link.startswith(f"{spool}/")
            ]
        except OSError:
            continue  # it has ended
    for slot in (spool / "state/slots").glob("*"):
        with slot.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(f"slot {slot.name}")
    return found


def _signal(process: int, number: int) -> bool:
    """False when the process, a pidfd, has ended."""
    try:
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        return False
    return True


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # it has ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=Plan.messages)
    parser.add_argument("--submitters", type=int, default=Plan.submitters)
    parser.add_argument("--flushers", type=int, default=Plan.flushers)
    parser.add_argument("--seconds", type=float, default=Plan.seconds)
    parser.add_argument("--every", type=float, default=Plan.every, help="seconds between two kills")
    parser.add_argument(
        "--service", action="store_true", help="sendmail -odb and minisend run, not -odq and flush"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    plan = Plan(**vars(parser.parse_args()))
    print(plan, flush=True)
    with tempfile.TemporaryDirectory(prefix="minisend-storm-") as directory:
        print(Storm(plan, Path(directory)).run())


if __name__ == "__main__":
    main()
