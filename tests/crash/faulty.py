"""The real program with a fault planted in one of its system calls; nothing of this is in the program.

A process beside the test loads the program once and forks for each run, so that a hundred runs take a few seconds and
the test may have threads.  Started with ``python3 -m crash.faulty``, it reads one request a line and answers with one.
"""

import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from spool.seam import STOPPED, Seam

ROOT = Path(__file__).parents[2]

# What can fail for want of room, quota, a working disk or the right to write.
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)

STOP = "stop"  # the process ends instead of making the call, as kill -9 would end it
ONCE = "once"  # the call fails
FROM_THEN_ON = (
    "from then on"  # so does each that would change something, as on a disk that has gone
)

# The others leave the disk as it is: stopped or let down there, it is as before the next of these.
CHANGES = frozenset(
    (
        *("write", "pwrite", "posix_fallocate", "ftruncate", "fsync", "rename", "unlink", "mkdir"),
        *("rmdir", "chmod", "fchmod"),
    )
)


@dataclass(frozen=True)
class Fault:
    """What happens at the call of this number, from 1; 0 for never.  With ``call`` only those of this name are counted."""

    kind: str = ONCE
    number: int = 0
    error: int = 0
    call: str = ""


@dataclass(frozen=True)
class Done:
    """``calls``  the names of the system calls of the spool, and what each was about; of a stopped process up to there"""

    code: int
    stdout: str
    stderr: str
    calls: tuple[tuple[str, str], ...]

    def reached(self, fault: Fault) -> bool:
        """Whether it came as far as the call that was to fail."""
        return len(self.calls) >= fault.number


class Forks:
    """The process beside the test; a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crash.faulty"],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def run(
        self,
        directory: Path,
        *arguments: str,
        stdin: bytes = b"",
        fault: Fault | None = None,
        reserves: bool = True,
    ) -> Done:
        """A run of the program; files are left in ``directory``.

        ``arguments``  the face and its own, as after ``python3 -m minisend``
        ``reserves``   room for outcomes is asked for, be there some in the last block of the file or not
        """
        fault = fault or Fault()
        (directory / "stdin").write_bytes(stdin)
        request = [str(directory), arguments, astuple(fault), reserves]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        calls = [line.split("\t", 1) for line in (directory / "calls").read_text().splitlines()]
        return Done(
            code,
            (directory / "stdout").read_text(),
            (directory / "stderr").read_text(),
            tuple((name, about) for name, about in calls),
        )


def _serve() -> None:
    # Loaded once, for every run.
    import minisend.admin.command
    import minisend.delivery.flush
    import minisend.submit.command  # noqa: F401

    for line in sys.stdin:
        directory, arguments, fault, reserves = json.loads(line)
        child = os.fork()
        if not child:
            _become(directory, arguments, Fault(*fault), reserves)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


def _become(directory: str, arguments: list[str], fault: Fault, reserves: bool) -> None:
    for number, (name, flags) in enumerate(
        (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY))
    ):
        fd = os.open(f"{directory}/{name}", flags | os.O_CREAT | os.O_TRUNC * (number > 0), 0o600)
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    notes = os.open(f"{directory}/calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.environ.clear()
    from minisend.__main__ import main
    from minisend.spool import disk

    disk.posix = _seam(fault, notes)
    if reserves:
        disk.block = lambda fd: 1
    sys.argv = ["minisend", *arguments]
    code = main()
    sys.stdout.flush()
    os._exit(code)


def _seam(fault: Fault, notes: int) -> Seam:
    """Notes each call, and does what was asked for at one of them, whatever thread it is of."""
    lock = threading.Lock()
    count = 0
    mine = threading.local()

    def before(_: int, name: str) -> None:
        nonlocal count
        with lock:
            count += fault.call in ("", name)
            os.write(notes, f"{name}\t{seam.paths[-1]}\n".encode())
            mine.its_turn = count == fault.number and fault.call in ("", name)
            late = 0 < fault.number <= count and name in CHANGES
        if fault.kind == STOP and mine.its_turn:
            os._exit(STOPPED)
        fails = late if fault.kind == FROM_THEN_ON else fault.kind == ONCE and mine.its_turn
        if fails and name != "close":
            raise OSError(fault.error, os.strerror(fault.error))

    def after(_: int, name: str, done: bool) -> None:
        if name == "close" and fault.kind == ONCE and mine.its_turn:
            # One that fails has closed all the same.
            raise OSError(fault.error, os.strerror(fault.error))

    seam = Seam(before, after)
    return seam


if __name__ == "__main__":
    _serve()
