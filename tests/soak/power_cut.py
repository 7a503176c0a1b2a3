"""Power cuts: sendmail and ``minisend flush`` at work in a file system of their own, which is copied as its disk has it.

    cd tests && PYTHONPATH=.. python3 -m soak.power_cut [--cuts 100] [KIND ...]      as root: prints what came of it

The short form is tests/crash/test_power_cut.py.

The file system lies in a file behind a loop device.  At a cut every process is stopped (SIGSTOP) and the file copied:
it holds what the device was given, and nothing of what the kernel would still have written, which is what a power cut
leaves of a disk that does what it is told.  A copy during which the device was written to is thrown away.  Mounted, its
journal replayed, it has to have each message for which sendmail had ended with 0 and of which the server knows
nothing, whole; what is recorded as delivered was delivered; what is waiting although the server has it is not older
than the window that minisend-spool(5) names.  Then it is flushed, so that everybody has what is theirs.

An ext4 with fast_commit now and then refuses to be mounted after a cut ("journal recovery failed"), whoever wrote to it:
its replay of fast commits is at fault, and such a copy says nothing of messages.  It is counted, and not all may be such.

Limits: the device loses nothing that it was given, in whatever order; a disk with a cache that lies is another matter.
"""

import argparse
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from delivery.program import Program
from delivery.scripted import END_OF_DATA, ScriptedServer
from peers.process import wait_for
from spool.make import RecordingQueue

from minisend.envelope import FAILED

# Name → command that makes the file system in a file, megabytes, options of the mount of a second one of the same
# name, command that finds what is wrong.  The lazy ones would write for a while after the mount.
_EXT4 = ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
_E2FSCK = ["e2fsck", "-f", "-n"]
_KINDS = {
    "ext4": (_EXT4, 128, "", _E2FSCK),
    "ext4 fast_commit": ([*_EXT4, "-O", "fast_commit"], 128, "", _E2FSCK),
    "xfs": (["mkfs.xfs", "-q"], 300, "nouuid", ["xfs_repair", "-n", "-f"]),
}
KINDS = tuple(_KINDS)
# Kind → what has to be installed.
PROGRAMS = {
    kind: (make[0], check[0], "losetup", "mount") for kind, (make, _, _, check) in _KINDS.items()
}

# When the power goes: right after a sendmail has ended with 0, the shortest time that there can be between the promise
# and the cut; at any time; right after a flush has ended, with nobody submitting.
ACCEPTED, ANY, FLUSHED = "accepted", "any", "flushed"
MOMENTS = (ACCEPTED, ANY, ACCEPTED, FLUSHED)

CONNECTIONS = 4
# What may go out twice beside what is in flight ([spool] sync = "group"): the removals of one second, at most this many.
GROUP_COUNT = 100
# Seconds.  One is what the manual names; the other is what a loaded machine takes to come to it.
_GROUP_AGE = 2.0
_WRITERS = 3
_WAIT = 60.0
# /sys/block/NAME/stat: writes and sectors written, requests in flight, discards and sectors discarded, flushes.
_WRITTEN = (4, 6, 8, 11, 13, 15)
_IN_FLIGHT = 8

# Recipients: who takes it, who takes it at the second attempt, who never does.
_TAKES, _LATER, _REFUSES = "takes", "later", "refuses"
_WHO = ((_TAKES,), (_TAKES, "too"), (_TAKES, _REFUSES), (_TAKES, _LATER))


class Refused(Exception):
    """The kernel gives no loop device, or has no such file system: nothing can be tested here."""


class Unmountable(Exception):
    """The file system cannot bring itself up after a cut."""


def address(who: str, number: int) -> str:
    """Of one recipient of the message of this number, or of its sender."""
    return f"{who}.{number}@x.test"


def message(number: int) -> bytes:
    """All of it is to be found again: three in four are small, the others of some size."""
    line = b"%08d %s\n" % (number, b"x" * 60)
    return b"Subject: %d\n\n" % number + line * (1 if number % 4 else 100 + number * 37 % 3000)


class Sink:
    """A server, and who got something: ``taken`` maps an address to the times of its copies."""

    def __init__(self, clock: Callable[[], float], *, second: bool = False) -> None:
        self.taken: dict[str, list[float]] = {}
        self._clock = clock
        self._second = second
        self._asked: Counter[str] = Counter()
        self._session = threading.local()
        self.server = ScriptedServer(self._answer)

    def _answer(self, command: bytes) -> bytes | None:
        if command.startswith(b"MAIL"):
            self._session.to = []
        elif command.startswith(b"RCPT"):
            to = command[command.index(b"<") + 1 : command.rindex(b">")].decode()
            self._asked[to] += 1
            if to.startswith(_REFUSES):
                return b"550 5.1.1 no such user"
            if to.startswith(_LATER) and self._asked[to] == 1 and not self._second:
                return b"450 4.2.1 later"
            self._session.to.append(to)
        elif command == END_OF_DATA:
            for to in self._session.to:
                self.taken.setdefault(to, []).append(self._clock())
        return None


class FileSystem:
    """One in the file ``image``, mounted at ``at``; a context manager.  Raises Refused.

    ``patient``  nothing becomes durable because seconds have gone by, of which ext4 counts five (xfs: thirty, always)
    """

    def __init__(self, kind: str, image: Path, at: Path, *, patient: bool = False) -> None:
        self.make, self.megabytes, self._again, self._check = _KINDS[kind]
        self.name, _, self._feature = kind.partition(" ")
        self.image = image
        self.at = at
        self._device = ""
        self._patient = patient and self.name == "ext4"

    def __enter__(self) -> Self:
        options = ["-o", "commit=3600"] if self._patient else []
        made = not self.image.exists()
        if made:
            with self.image.open("wb") as file:
                file.truncate(self.megabytes << 20)
            _run(*self.make, str(self.image))
        elif self._again:
            options = ["-o", self._again]
        self.at.mkdir()
        try:
            self._device = _run("losetup", "--find", "--show", str(self.image)).strip()
        except subprocess.CalledProcessError as exc:
            raise Refused(exc.stderr) from exc
        try:
            _run("mount", "-t", self.name, *options, self._device, str(self.at))
        except subprocess.CalledProcessError as exc:
            if "unknown filesystem type" in exc.stderr or "permission denied" in exc.stderr:
                raise Refused(exc.stderr) from exc
            if self._feature and not made:
                raise Unmountable(exc.stderr) from exc
            raise
        finally:
            # It goes with the last mount, or at once.
            _run("losetup", "--detach", self._device)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _run("umount", str(self.at))
        # A mount namespace that another program made meanwhile keeps it mounted, and the file in use.
        backing = Path(f"/sys/block/{Path(self._device).name}/loop/backing_file")
        wait_for("the file system to be let go", lambda: not self._is_behind(backing), _WAIT)

    def _is_behind(self, backing: Path) -> bool:
        try:
            return backing.read_text() == f"{self.image}\n"
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Fails when anything is wrong with it; not while it is mounted."""
        done = subprocess.run(
            [*self._check, str(self.image)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def written(self) -> tuple[list[str], bool]:
        """What its device was given so far, as numbers; whether it is idle."""
        numbers = Path(f"/sys/block/{Path(self._device).name}/stat").read_text().split()
        return [numbers[n] for n in _WRITTEN], numbers[_IN_FLIGHT] == "0"


@dataclass
class Cut:
    """What was known when the power went: messages whose sendmail had ended with 0, and who had what, since when.

    ``moment``       see ``Machine.cut``
    ``thrown_away``  copies that were made before one was good
    """

    moment: str
    image: Path
    accepted: set[int]
    taken: dict[str, list[float]]
    at: float
    thrown_away: int


@dataclass
class Found:
    """What a cut has left: ``accepted`` messages, those still in the queue, ``twice`` what the server had already.

    ``in_window``  of ``twice``, those taken shortly before the cut
    ``unmountable``  nothing could be looked at
    """

    accepted: int = 0
    queued: int = 0
    torn: int = 0
    twice: int = 0
    in_window: int = 0
    thrown_away: int = 0
    unmountable: bool = False


@dataclass
class Machine:
    """The writers and the flusher in ``directory``, at work as long as the ``with`` block lasts.

    ``sync``  of the configuration
    """

    kind: str
    directory: Path
    sync: str = "group"
    found: list[Found] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.kind)
        self._stopping = False
        self._halted = threading.Event()
        self._halt_after = ""
        self._submitting = 0
        # Held by whoever starts a process, and while all of them are stopped.
        self._launch = threading.Lock()
        self._state = threading.Lock()
        self._next = 0
        self._frozen = 0.0
        self._accepted: set[int] = set()
        self._faults: list[str] = []
        self._threads = [
            threading.Thread(target=self._work, args=(self._submit,)) for _ in range(_WRITERS)
        ] + [threading.Thread(target=self._work, args=(self._flush,))]

    def __enter__(self) -> Self:
        self._disk = FileSystem(self.kind, self.directory / "image", self.directory / "mounted")
        self._disk.__enter__()
        self._sink = Sink(self._now)
        self._sink.server.__enter__()
        # Below directories that are not there either: they are made with the first message.
        self._program = self._installation("program", self._disk.at / "var/mail", self._sink)
        self._leader = subprocess.Popen(["sleep", "3600"], process_group=0)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping = True
        with self._launch:
            self._signal(signal.SIGKILL)
            self._leader.wait()
        for thread in self._threads:
            thread.join(_WAIT)
        self._sink.server.__exit__(*exc_info)
        self._disk.__exit__(*exc_info)
        if exc_info[0] is None:
            assert self._faults == []

    def _installation(self, name: str, spool_in: Path, sink: Sink) -> Program:
        directory = self.directory / name
        directory.mkdir()
        program = Program(directory, "", retry_min="1s")
        program.spool = spool_in / "spool"
        program.configure(
            f'sync = "{self.sync}"\n[delivery]\nconnections_per_host = {CONNECTIONS}\n'
            f'[smarthost]\nhost = "127.0.0.1"\nport = {sink.server.port}\ntls = "none"\n'
        )
        return program

    def _now(self) -> float:
        """Seconds in which the processes were not stopped."""
        return time.monotonic() - self._frozen

    def _signal(self, number: int) -> None:
        os.killpg(self._leader.pid, number)

    # -- at work

    def _work(self, step: Callable[[], None]) -> None:
        while not self._stopping:
            try:
                step()
            except BaseException as exc:
                self._faults.append(repr(exc))
                raise

    def _start(self, command: list[str], **options: object) -> "subprocess.Popen[bytes] | None":
        with self._launch:
            if self._stopping:
                return None
            return subprocess.Popen(
                command,
                env={},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=self._leader.pid,
                **options,
            )

    def _submit(self) -> None:
        if self._halt_after == FLUSHED:
            time.sleep(0.01)
            return
        with self._state:
            number = self._next
            self._next += 1
            self._submitting += 1
        sender = address("sender", number)
        recipients = [address(who, number) for who in _WHO[number % len(_WHO)]]
        process = self._start(
            self._program.command("sendmail", "-odq", "-f", sender, *recipients),
            stdin=subprocess.PIPE,
        )
        complaint = b""
        if process is not None:
            _, complaint = process.communicate(message(number))
        accepted = process is not None and process.returncode == 0
        with self._state:
            if accepted:
                self._accepted.add(number)
            elif not self._stopping:
                self._faults.append(complaint.decode())
            self._submitting -= 1
        if accepted:
            self._halt(ACCEPTED)

    def _halt(self, moment: str) -> None:
        """Stop everybody, if this is the moment."""
        if self._halt_after == moment:
            # Not while a process is being started: stopped before its exec it would stop who starts it.
            with self._launch:
                self._signal(signal.SIGSTOP)
            self._halt_after = ""
            self._halted.set()

    def _flush(self) -> None:
        process = self._start(self._program.command("minisend", "flush", "--quiet"))
        if process is not None:
            process.communicate()
            if process.returncode not in (0, 69, 75) and not self._stopping:
                self._faults.append(f"flush: exit code {process.returncode}")
            if not self._submitting:
                self._halt(FLUSHED)

    # -- cuts

    def delivered(self) -> int:
        """How many recipients and senders have a message or a report of the server."""
        return len(self._sink.taken)

    def summary(self) -> str:
        """What all cuts so far have come to."""
        found = self.found
        return (
            f"{len(found)} cuts, {found[-1].accepted} messages accepted, {self.delivered()} copies taken, none lost; "
            f"in the queue at the cuts: {sum(each.queued for each in found)}, "
            f"half received: {sum(each.torn for each in found)}, "
            f"to go out twice: {sum(each.twice for each in found)} "
            f"(at most {max(each.twice for each in found)} at once), "
            f"all of the last {_GROUP_AGE:g} s but {sum(each.twice - each.in_window for each in found)}; "
            f"{sum(each.thrown_away for each in found)} copies thrown away, "
            f"{sum(each.unmountable for each in found)} unmountable"
        )

    def cut(self, number: int) -> Cut:
        """Pull the plug, at one moment after the other of MOMENTS; they go on after that."""
        moment = MOMENTS[number % len(MOMENTS)]
        if moment == ANY:
            time.sleep(self._random.uniform(0.2, 1.0))
        else:
            self._halted.clear()
            self._halt_after = moment
            assert self._halted.wait(_WAIT), f"never came: {moment}"
        with self._launch:
            self._signal(signal.SIGSTOP)
            with self._state:
                accepted = set(self._accepted)
            at = self._now()
            image = self.directory / f"cut{number}"
            thrown_away = self._copy(image)
            # Later than the copy: what is on the way to the server may be in both.
            taken = {to: list(times) for to, times in self._sink.taken.items()}
            self._frozen += self._now() - at
            self._signal(signal.SIGCONT)
        return Cut(moment, image, accepted, taken, at, thrown_away)

    def _copy(self, image: Path) -> int:
        for tries in range(200):
            before, idle = self._disk.written()
            if idle:
                _run("cp", "--sparse=always", str(self._disk.image), str(image))
                if self._disk.written() == (before, True):
                    return tries
            time.sleep(0.01)
        raise AssertionError("the device is written to although everybody is stopped")

    def check(self, cut: Cut) -> Found:
        """Bring the copy up, look, flush it, look again."""
        found = Found(len(cut.accepted), thrown_away=cut.thrown_away)
        try:
            self._check(cut, found)
        except Unmountable:
            found.unmountable = True
        cut.image.unlink()
        self.found.append(found)
        return found

    def _check(self, cut: Cut, found: Found) -> None:
        name = cut.image.name
        disk = FileSystem(self.kind, cut.image, self.directory / f"{name}.mounted")
        with disk, (second := Sink(time.monotonic, second=True)).server:
            program = self._installation(f"{name}.program", disk.at / "var/mail", second)
            queued = self._look(cut, str(program.spool), found)
            for number in sorted(cut.accepted):
                for who in _WHO[number % len(_WHO)]:
                    to = address(who, number)
                    # Of who is refused the sender is told.
                    known = {to, address("sender", number)} if who == _REFUSES else {to}
                    assert known & (cut.taken.keys() | queued), f"{to} is lost"
            code, summary = program.flush("--all")
            assert code in (0, 69), summary
            assert list(program.spool.glob("queue/[!t]*/*")) == []
        for to in queued:
            who, _, number = to.removesuffix("@x.test").partition(".")
            if who == _REFUSES:
                sender = address("sender", int(number))
                assert sender in cut.taken.keys() | second.taken.keys(), f"{to}: not told"
            else:
                assert len(second.taken.get(to, ())) == 1, f"{to} did not come once after the cut"
        disk.check()

    def _look(self, cut: Cut, spool: str, found: Found) -> set[str]:
        """The addresses for which something waits, or has failed and is to be told."""
        waiting: set[str] = set()
        ids: Counter[str] = Counter()
        late = 0
        with RecordingQueue(spool) as queue:
            found.torn = len(list(queue.places("tmp")))
            for place in queue.places("new", "cur", "hold", "failed"):
                ids[place.queue_id] += 1
                assert place.state in ("new", "cur"), place
                entry = queue.claim(place)
                assert entry is not None, queue.reported
                with entry:
                    octets = b"".join(entry.verified_octets(b"", 0))
                    recipients = [each.address.decode() for each in entry.envelope.recipients]
                    number = int(recipients[0].split(".")[1].partition("@")[0])
                    if entry.envelope.sender:
                        assert octets == message(number)
                    found.queued += 1
                    for index, to in enumerate(recipients):
                        outcome = entry.latest.get(index)
                        if index in entry.pending:
                            waiting.add(to)
                            if to in cut.taken:
                                found.twice += 1
                                late += cut.at - cut.taken[to][-1] > _GROUP_AGE
                        elif outcome is not None and outcome.action == FAILED:
                            assert to.startswith(_REFUSES), outcome
                            waiting.add(to)
                        else:
                            assert to in cut.taken, f"{to} is recorded as delivered and was not"
            assert queue.reported == []
        assert set(ids.values()) <= {1}, "a message is in two states"
        found.in_window = found.twice - late
        if cut.moment == FLUSHED:
            # Whatever others write makes the journal durable, and what was forgotten with it: here nobody else writes.
            assert found.twice == 0, f"{found}: the flush had ended"
        if self.sync == "each":
            assert found.twice <= 2 * CONNECTIONS, found
        else:
            assert late <= 2 * CONNECTIONS, found
            assert found.in_window <= 2 * (GROUP_COUNT + CONNECTIONS), found
        return waiting


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--sync", choices=("group", "each"), default="group")
    parser.add_argument("kind", nargs="*", choices=(*KINDS, []))
    options = parser.parse_args()
    for kind in options.kind or KINDS:
        with (
            tempfile.TemporaryDirectory(prefix="minisend-power-") as directory,
            Machine(kind, Path(directory), options.sync) as machine,
        ):
            for number in range(options.cuts):
                machine.check(machine.cut(number))
            print(f"{kind}: {machine.summary()}", flush=True)


if __name__ == "__main__":
    main()
