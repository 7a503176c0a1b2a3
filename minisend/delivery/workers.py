"""Further processes for a large flush: each takes a share of the messages, as one interpreter uses one processor.

They are forked before any thread exists, and wait until the first process has been let in by a server: while the one
destination there is does not answer, there is one probe, and nothing for them to do.  What they come to is sent
back through a pipe, and how far each is meanwhile is in memory that they share; the locks on the messages, not the
shares, are what keeps two of them from one message.

A worker that dies (killed, out of memory) leaves its messages in the queue; the run then counts as stopped.
"""

from __future__ import annotations

import posix
import sys
from _signal import SIG_IGN, SIGINT, SIGTERM, getsignal, signal  # type: ignore[import-not-found]

from minisend.delivery.attempt import Summary
from minisend.log import line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minisend.log import Log
    from minisend.spool.entry import Place

    Progress = Callable[[int, int], None]
    Deliver = Callable[[Sequence[Place], Summary, bool, Progress], None]

#: Messages that make a process worth while: it takes some milliseconds to begin.
WORTH = 100
# ... and octets that do: a megabyte takes some milliseconds of a processor.
_WORTH_OCTETS = 16 * 1024 * 1024
#: More than these, and the server or the disk is what sets the pace.
MOST = 4

_FAR, _NEAR = b"f", b"n"
# Milliseconds between two looks at how far the others are.
_LOOK = 100


class _Worker:
    def __init__(self, pid: int, go: int, told: int) -> None:
        self.pid = pid
        self.go = go
        self.told = told


class Workers:
    """The further processes of one flush.

    ``deliver``  delivers places, adds what came of it to a summary and says how far it is; called in the new process, with
                 what ``begin`` was
    ``left``     what there could be no process for: the first one's to deliver
    ``ask``      asks it to end with the transactions that are under way; called in the new process
    """

    def __init__(
        self,
        shares: Sequence[Sequence[Place]],
        deliver: Deliver,
        log: Log,
        ask: Callable[[], None],
    ) -> None:
        self._log = log
        self._ask = ask
        self._workers: list[_Worker] = []
        self.left: list[Place] = []
        self._counts = _shared_counts(2 * len(shares))
        for number, share in enumerate(shares):
            try:
                self._workers.append(self._start(share, deliver, 2 * number))
            except OSError:  # RLIMIT_NPROC, the limit of a container
                self.left += share
        self._gone = False

    @property
    def progress(self) -> tuple[int, int]:
        """Messages that they are done with, and that they have."""
        return sum(self._counts[::2]), sum(self._counts[1::2])

    def _start(self, share: Sequence[Place], deliver: Deliver, at: int) -> _Worker:
        """``at``: where its two counts are."""

        def progress(done: int, total: int) -> None:
            self._counts[at], self._counts[at + 1] = done, total

        go_read, go_write = posix.pipe()
        told_read, told_write = posix.pipe()
        try:
            pid = posix.fork()
        except OSError:
            for fd in (go_read, go_write, told_read, told_write):
                posix.close(fd)
            raise
        if pid:
            posix.close(go_read)
            posix.close(told_write)
            progress(0, len(share))
            return _Worker(pid, go_write, told_read)
        code = 1
        try:
            for each in (SIGTERM, SIGINT):
                if getsignal(each) != SIG_IGN:
                    # However often: who signals all of a group or a unit tells the first process too, which tells us.
                    signal(each, lambda number, frame: self._ask())
            posix.close(go_write)
            posix.close(told_read)
            summary = Summary()
            if told := posix.read(go_read, 1):
                deliver(share, summary, told == _FAR, progress)
                posix.write(told_write, _packed(summary))
            code = 0
        except Exception as exc:  # noqa: BLE001 - the first process tells that it failed
            self._log.error(line("-", event="worker", reason=f"{type(exc).__name__}: {exc}"))
        finally:
            # Nothing of the first process's is to be flushed, closed or cleaned up a second time.
            posix._exit(code)

    def begin(self, far: bool) -> None:
        """Let them deliver: a server has let us in.  ``far``: and took its time for it, so that many lanes are of use."""
        if not self._gone:
            self._gone = True
            for worker in self._workers:
                try:
                    posix.write(worker.go, _FAR if far else _NEAR)
                except BrokenPipeError:
                    pass  # killed: ``finish`` says so

    def stop(self) -> None:
        """End them with their current transactions.  Safe in a signal handler."""
        for worker in self._workers:
            try:
                posix.kill(worker.pid, SIGTERM)
            except ProcessLookupError:
                pass

    def finish(self, summary: Summary, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Wait for them, and add up.  False when they were never told to begin: their shares are untouched.

        ``meanwhile``  is called now and then
        """
        begun = self._gone
        for worker in self._workers:
            posix.close(worker.go)
        while self._workers:
            worker = self._workers[0]
            told = _hear(worker.told, meanwhile)
            # From here on its number may be another's, who is not to be told to end.
            del self._workers[0]
            try:
                _, status = posix.waitpid(worker.pid, 0)
            except ChildProcessError:
                status = 0  # SIGCHLD is ignored, as whoever started us had it; what it told is all there is to know
            if not begun:
                continue
            if status or not told:
                self._log.error(line("-", event="worker", reason=f"ended with status {status}"))
                summary.stopped = True
                continue
            _add(summary, told)
        return begun


def _hear(pipe: int, meanwhile: Callable[[], None]) -> bytes:
    """All that a worker tells, which fits into a pipe.  Closes it."""
    import select

    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while not poll.poll(_LOOK):
        meanwhile()
    with open(pipe, "rb") as file:
        return file.read()


def _shared_counts(count: int) -> memoryview:
    """So many numbers, zeros, that this process and those that it forks see and write."""
    from mmap import mmap

    return memoryview(mmap(-1, 4 * count)).cast("I")


def processes() -> int:
    """How many a flush may use here."""
    return min(len(posix.sched_getaffinity(0)), MOST) if sys.platform == "linux" else 1


def shares(
    places: Sequence[Place], count: int, size: Callable[[Place], int]
) -> list[Sequence[Place]]:
    """The places in as many shares as are worth while, at most ``count``, all with messages of any age.

    ``size``  octets of a message's file; asked for where their number is no reason to share them
    """
    worth = len(places) // WORTH
    if worth < count and len(places) > 1:
        worth += min(len(places), sum(map(size, places)) // _WORTH_OCTETS)
    count = max(1, min(count, worth))
    return [places[number::count] for number in range(count)]


def _packed(summary: Summary) -> bytes:
    return b" ".join(b"%d" % getattr(summary, name) for name in Summary.__slots__)


def _add(summary: Summary, packed: bytes) -> None:
    for name, count in zip(Summary.__slots__, packed.split(), strict=True):
        setattr(summary, name, getattr(summary, name) + int(count))
    summary.stopped = bool(summary.stopped)
