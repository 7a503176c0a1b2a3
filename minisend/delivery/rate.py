"""How many messages a smarthost is given in a time: the ``rate`` of its table, kept over all processes of a spool.

With "30/m" there is no period of a minute, wherever it begins, in which more than 30 messages are sent.  The 30 may go
at once (the burst is the whole rate); the next one goes when the first of them is a minute old.

    <spool>/state/rate/NAME         "smarthost" for [smarthost]; numbers in the order of this machine
    octets 0 to 7             messages of the rate, N
    octets 8 to 15            the place P of the oldest of N times, 0 to N-1
    8 octets each, N times    seconds since the epoch at which a message was begun; 0.0 for none

A ring: the next message takes the place of the oldest one.  The file is locked while it is looked at and changed, and
never fsynced: after a power failure a few messages more may go.  One of another N, from before the configuration was
changed, gives its latest times to its successor; one that cannot be read as such counts as empty.

A time from the future, of a clock that was set back, counts as now.  Where the file cannot be had nothing is sent: a
provider that bans costs more than a message that waits.

What is counted is messages to which a server was to be asked, whatever the number of their recipients and whether it
takes them or not.
"""

from __future__ import annotations

import errno
import fcntl
import posix
import struct
from _thread import allocate_lock
from math import ceil

from minisend.config.keys import smarthost_table
from minisend.delivery.destination import Down
from minisend.spool.place import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque

    from minisend.config.sections import Config
    from minisend.delivery.route import NextHop
else:
    from _collections import deque

# In the spool's directory of state, a file for each smarthost.
_DIRECTORY = "rate"
# How long a message waits when the file cannot be had.
_PAUSE = 60.0
_UNITS = {1: "s", 60: "m", 3600: "h", 86400: "d"}
_HEAD = struct.Struct("=QQ")
_TIME = struct.Struct("=d")


class Rate:
    """The rate of one smarthost; its methods may be called by any thread.

    ``count``, ``seconds``  so many messages within so long
    ``told``                somebody has logged that messages wait for it
    """

    def __init__(self, spool: str, name: str, count: int, seconds: int) -> None:
        self._spool = spool
        self._path = f"{state(spool, _DIRECTORY)}/{name or 'smarthost'}"
        self._table = smarthost_table(name)
        self._count = count
        self._seconds = seconds
        self._lock = allocate_lock()
        # The times that were given out for messages to come back at, earliest first.
        self._promised: deque[float] = deque()
        self.told = False

    def take(self, now: float) -> float:
        """Begin with a message: ``now``, or the later time from which one may go.  Seconds since the epoch."""
        try:
            with self._lock, self._ring() as ring:
                free = ring.free(0, now)
                if free <= now:
                    ring.begin(now)
                    return now
                return free
        except OSError:
            return now + _PAUSE

    def put_off(self, now: float) -> Down:
        """Why a message waits, and until when: those that wait are spread over the times at which one may go."""
        with self._lock:
            while self._promised and self._promised[0] <= now:
                self._promised.popleft()
            try:
                with self._ring() as ring:
                    until = ring.free(len(self._promised), now)
                if self._promised:
                    until = max(until, self._promised[-1])
            except OSError as exc:
                return self._down(now, now + _PAUSE, f": {self._path}: {exc.strerror}")
            self._promised.append(until)
            return self._down(now, until)

    def why(self, now: float) -> Down:
        """Why a message waits that was put off; until when is in its name.  Opens nothing."""
        return self._down(now, now)

    def _down(self, now: float, until: float, more: str = "") -> Down:
        return Down(
            since=now,
            failures=0,
            counted=(),
            until=ceil(until),
            status="4.4.5",  # RFC 3463: mail system congestion
            reason=f"the rate of {self._table} is used up: {self._count}/{_UNITS[self._seconds]}{more}",
            remote_mta="",
            diagnostic="",
            command="",
            at=now,
        )

    def _ring(self) -> _Ring:
        """The file, locked.  Raises OSError, as all that is done with it."""
        state(self._spool, _DIRECTORY, make=True)
        fd = posix.open(
            self._path, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600
        )
        return _Ring(fd, self._count, self._seconds)


class _Ring:
    """The times of the last ``count`` messages in an open file, which is made one of them if it is not.

    Locked and closed as a context.
    """

    def __init__(self, fd: int, count: int, seconds: int) -> None:
        self._fd = fd
        self._count = count
        self._seconds = seconds
        self._oldest = 0

    def __enter__(self) -> _Ring:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._oldest = self._find_oldest()
        except BaseException:
            posix.close(self._fd)
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        posix.close(self._fd)

    def free(self, ahead: int, now: float) -> float:
        """When a message may begin before which ``ahead`` others do."""
        rounds, ahead = divmod(ahead, self._count)
        at = self._at(ahead)
        begun: float = _TIME.unpack(posix.pread(self._fd, _TIME.size, at))[0]
        if not begun <= now:
            # Written down: else it would be in the future for as long as the clock was set back.
            begun = now
            _write(self._fd, _TIME.pack(now), at)
        return max(now, begun + self._seconds) + rounds * self._seconds

    def begin(self, now: float) -> None:
        """A message begins."""
        # The time first: a process that ends between the two writes leaves one place less, not one more.
        _write(self._fd, _TIME.pack(now), self._at(0))
        _write(self._fd, _HEAD.pack(self._count, (self._oldest + 1) % self._count), 0)

    def _at(self, ahead: int) -> int:
        return _HEAD.size + (self._oldest + ahead) % self._count * _TIME.size

    def _find_oldest(self) -> int:
        size = posix.fstat(self._fd).st_size
        count, oldest = 0, 0
        if size >= _HEAD.size:
            count, oldest = _HEAD.unpack(posix.pread(self._fd, _HEAD.size, 0))
        whole = size == _HEAD.size + count * _TIME.size and oldest < count
        if whole and count == self._count:
            return int(oldest)
        times: list[float] = []
        if whole:
            octets = posix.pread(self._fd, count * _TIME.size, _HEAD.size)
            times = [time for (time,) in _TIME.iter_unpack(octets)]
            times = (times[oldest:] + times[:oldest])[-self._count :]
        times = [0.0] * (self._count - len(times)) + times
        # Until all of it is written there is no file of this length, so none that could be read.
        posix.ftruncate(self._fd, 0)
        _write(self._fd, _HEAD.pack(self._count, 0) + b"".join(map(_TIME.pack, times)), 0)
        return 0


def _write(fd: int, octets: bytes, at: int) -> None:
    if posix.pwrite(fd, octets, at) < len(octets):
        raise OSError(errno.ENOSPC, posix.strerror(errno.ENOSPC))


def rate_of(hop: NextHop, config: Config) -> Rate | None:
    """The rate of a next hop, None when it has none.  One object of it is enough for a run."""
    smarthost = hop.smarthost_in(config)
    if smarthost is None or smarthost.rate is None:
        return None
    return Rate(config.spool.path, hop.smarthost, *smarthost.rate)
