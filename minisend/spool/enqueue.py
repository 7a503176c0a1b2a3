"""The only writer of new messages: octets to ``queue/tmp``, made durable, moved to ``queue/new``.

No policy in it: who may submit what, and where the queue is, has been decided before.  A message is read once and
never held whole.  What a crash leaves in ``tmp`` is no message; the store removes it.

The file in ``tmp`` is locked from its creation to the end, and its name is made from the message's id: of several
processes that have the same message in hand, one can bring it in.  One that nobody has locked is a crash's.
"""

from binascii import crc32

from minisend.envelope import Envelope
from minisend.errors import MessageTooBig, SpoolError, SpoolFull
from minisend.spool import disk
from minisend.spool.place import open_state
from minisend.spool.record import (
    BARE_CR,
    EIGHT_BIT,
    HAS_NUL,
    LONG_LINE,
    SIZE_OFFSET,
    Trailer,
    format_head,
    format_size,
    format_trailer,
    head_crc,
)

try:
    # The module behind hashlib, which on its own would cost a submission 3 ms.
    from _blake2 import blake2b
except ImportError:  # not every build of Python has it under this name
    from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# Up to here a message is written in one call, with its size known.
_GATHER = 128 * 1024
# The lines of a larger message are neither counted nor measured: that would take longer than writing it.
_COUNTED = 256 * 1024
# How much is written before the disk is told to begin with it, so that the fsync at the end has little left to wait for.
_WRITEBACK = 2 * 1024 * 1024
# RFC 5322 section 2.1.1: a line has at most 998 octets before its line end.
_LONGEST_LINE = 998
#: Mode of a message whose submitter has not said that it knows: another copy of it may be on its way, so its removal
#: leaves a tombstone (``spool.tombstone``).  Without the bit for executing it is an ordinary one.
UNACKNOWLEDGED = 0o700
_ACKNOWLEDGED = 0o600


#: Octets of a submission id, which its client makes once and nobody can guess.
ID_OCTETS = 16


def new_queue_id(seed: bytes) -> str:
    """A queue id made from ``seed``: 16 hexadecimal digits, the same for the same seed.

    Hashed, so that who knows a queue id cannot make a seed that leads to it.
    """
    return blake2b(seed, digest_size=8).hexdigest()


class Ruler:
    """Finds out whether a line of a message has more than 998 octets; its pieces may be of any size."""

    __slots__ = ("_column", "_last_cr", "_long")

    def __init__(self) -> None:
        self._column = 0  # octets since the last line end, when no long line was seen yet
        self._last_cr = False
        self._long = False

    @property
    def is_long(self) -> bool:
        """One of those that have passed has; the last may have no end."""
        return self._long or self._column - self._last_cr > _LONGEST_LINE

    def add(self, octets: bytes) -> None:
        """The next piece, not empty."""
        if self._long:
            return
        # Leaps to the last line end that a line of full length could reach: most lines are never looked at.
        start = -self._column
        while len(octets) - start > _LONGEST_LINE + 1:
            end = octets.rfind(b"\n", max(start, 0), start + _LONGEST_LINE + 1)
            if end < 0:
                end = start + _LONGEST_LINE + 1
                # One octet too many is none when it is the CR of a line end, perhaps the last octet of the piece before.
                is_cr = octets[end - 1 : end] == b"\r" if end else self._last_cr
                if not is_cr or octets[end : end + 1] != b"\n":
                    self._long = True
                    return
            start = end + 1
        end = octets.rfind(b"\n", max(start, 0))
        self._column = len(octets) - (end + 1 if end >= 0 else start)
        self._last_cr = octets.endswith(b"\r")


class Counter:
    """Counts what the trailer says of a message while it passes by in pieces of any size."""

    __slots__ = ("_crc", "_flags", "_last_cr", "_ruler", "lines", "octets")

    def __init__(self) -> None:
        self._crc = 0
        self._ruler = Ruler()
        self._last_cr = False
        self._flags: set[str] = set()
        self.octets = 0
        self.lines = 0

    def add(self, octets: bytes) -> None:
        """The next piece, not empty."""
        flags = self._flags
        self._crc = crc32(octets, self._crc)
        self.octets += len(octets)
        if EIGHT_BIT not in flags and not octets.isascii():
            flags.add(EIGHT_BIT)
        if HAS_NUL not in flags and b"\0" in octets:
            flags.add(HAS_NUL)
        if BARE_CR not in flags and (self._last_cr or b"\r" in octets):
            # A CR at the end of a piece is judged with the next one.
            inside = octets.count(b"\r") - octets.endswith(b"\r")
            if inside != octets.count(b"\r\n") or (self._last_cr and octets[:1] != b"\n"):
                flags.add(BARE_CR)
        self._last_cr = octets.endswith(b"\r")
        if self.octets > _COUNTED:
            self.lines = -1
        else:
            self.lines += octets.count(b"\n")
            self._ruler.add(octets)

    def trailer(self, crc: int) -> Trailer:
        """The trailer of what has passed, under an envelope with this checksum."""
        if self._last_cr:
            self._flags.add(BARE_CR)
        if self.lines >= 0 and self._ruler.is_long:
            self._flags.add(LONG_LINE)
        return Trailer(
            self.octets, self.lines, f"{self._crc:08x}", "".join(sorted(self._flags)), crc
        )


class Floor:
    """What a submission must leave free on the file system of the queue, for outcomes and reports of what is queued.

    ``path``               of the queue, for the words of a refusal
    ``octets``, ``inodes``  0 for any; the keys of [spool] are min_free and min_free_inodes
    """

    __slots__ = ("inodes", "octets", "path")

    def __init__(self, path: str, octets: int, inodes: int) -> None:
        self.path = path
        self.octets = octets
        self.inodes = inodes

    def check(self, queue: int, size: int) -> None:
        """Raise SpoolFull when ``size`` octets more would leave less than that; ``queue`` is a descriptor."""
        octets, inodes = disk.free(queue)
        if self.octets and octets is not None and octets < self.octets + size:
            has, wants = f"{_shown(octets)} free", f"min_free ({_shown(self.octets)})"
            if octets >= self.octets:
                wants += f" and this message ({_shown(size)}) take"
        elif self.inodes and inodes is not None and inodes < self.inodes:
            has, wants = f"{inodes} free inodes", f"min_free_inodes ({self.inodes})"
        else:
            return
        raise SpoolFull(f"{self.path}: its file system has {has}, less than [spool] {wants}")


def _shown(octets: int) -> str:
    """A size in its largest unit, with one decimal, cut off: what is below a limit must not look like it."""
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if octets >= factor:
            tenths = octets * 10 // factor
            return f"{tenths // 10}.{tenths % 10}{unit}" if tenths % 10 else f"{tenths // 10}{unit}"
    return f"{octets} octets"


def enqueue(
    queue: int,
    envelope: Envelope,
    message: "Iterable[bytes]",
    limit: int,
    floor: Floor | None = None,
    size: int = 0,
    *,
    acknowledged: bool = True,
) -> None:
    """Make a message durable as ``new/<queue id>`` in the directory ``queue`` (a descriptor).

    ``message``  octets as they came, in pieces; read once
    ``limit``    the largest message taken, in octets; 0 for any
    ``floor``    what must stay free; None: nothing, as for a report, without which its message could not go
    ``size``     of the message, in octets, as far as it is known beforehand
    ``acknowledged``  False: a second copy may come by another way, until ``acknowledge``

    When this returns, the message survives a power cut.  When it raises, nothing of it stays visible: MessageTooBig,
    SpoolFull and SpoolError (the disk), or whatever reading ``message`` raised.
    """
    if floor is not None:
        floor.check(queue, size)
    name = envelope.queue_id
    tmp = open_state("tmp", queue)
    fd = abandoned = -1
    ours = False
    try:
        if not acknowledged:
            abandoned = _take_abandoned(name, tmp)
        ours = True
        try:
            fd = disk.create(name, tmp)
        except OSError as exc:
            ours = False
            raise SpoolError(f"queue/tmp/{name}: {exc.strerror}") from exc
        # Until this ends, well or not, the name it will have is no message that a flusher could take.
        if not disk.lock(fd):
            ours = (
                False  # whoever was quicker to lock it takes it for abandoned, and the name with it
            )
            raise SpoolError(f"queue/tmp/{name}: another process has it")
        if not acknowledged:
            disk.set_mode(fd, UNACKNOWLEDGED)
        write_record(fd, envelope, message, limit, floor, queue)
        disk.fsync(fd)
        _publish(name, tmp, queue)
    except BaseException as exc:
        # Also when a signal came before the descriptor was ours to close.
        if ours:
            forget(name, tmp)
        if isinstance(exc, OSError):
            raise SpoolError(f"queue: {exc.strerror}") from exc
        raise
    finally:
        for each in (fd, abandoned, tmp):
            if each >= 0:
                disk.close(each)


def acknowledge(queue: int, queue_id: str) -> None:
    """No second copy of this message will come: its removal leaves nothing.  ``queue`` is a descriptor.

    Only of one still in ``new``; any other keeps its mark, which costs a tombstone and does no harm.
    """
    try:
        disk.set_mode_at(f"new/{queue_id}", queue, _ACKNOWLEDGED)
    except OSError:
        pass


def forget(name: str, directory: int) -> None:
    """Take a name away again after a failure, as far as the disk lets us."""
    try:
        disk.unlink(name, directory)
    except OSError:
        pass  # not there, or no more; or a disk that refuses even this: the store clears tmp


def _take_abandoned(queue_id: str, tmp: int) -> int:
    """Clear the way where a crash has left a message of this id half received in ``tmp``.

    Returns a descriptor that is to be held until the new one is queued, since it keeps others from doing the same; -1 when
    there is nothing to clear.  Raises OSError.
    """
    fd = -1
    try:
        fd = disk.open_claiming(queue_id, tmp)
        if disk.lock(fd) and disk.is_at(fd, queue_id, tmp):
            disk.unlink(queue_id, tmp)
            held, fd = fd, -1
            return held
    except FileNotFoundError:
        pass
    finally:
        if fd >= 0:
            disk.close(fd)
    return -1


def _publish(name: str, tmp: int, queue: int) -> None:
    new = open_state("new", queue)
    try:
        if disk.exists(name, new):
            # A rename would replace it.
            raise SpoolError(f"queue/new/{name}: exists already")
        try:
            disk.rename(name, tmp, name, new)
            disk.fsync(new)
        except BaseException:
            # The caller will be told to try again: it must not go out once more.
            forget(name, new)
            raise
    finally:
        disk.close(new)


def write_record(
    fd: int,
    envelope: Envelope,
    message: "Iterable[bytes]",
    limit: int,
    floor: Floor | None,
    directory: int,
) -> None:
    """Write head, message and trailer to a new file; nothing is durable yet.

    ``directory``  a descriptor on the file system that ``floor`` is about
    Raises MessageTooBig, SpoolFull, OSError, or whatever reading ``message`` raised.
    """
    counter = Counter()
    gathered: list[bytes] = []
    waiting = written = begun = 0
    for piece in message:
        if not piece:
            continue
        counter.add(piece)
        if limit and counter.octets > limit:
            raise MessageTooBig(f"message larger than max_message_size ({limit} octets)")
        gathered.append(piece)
        waiting += len(piece)
        if waiting >= _GATHER:
            if not written:
                gathered.insert(0, format_head(envelope, 0))
            octets = b"".join(gathered)
            disk.write(fd, octets)
            written += len(octets)
            gathered = []
            waiting = 0
            if written - begun >= _WRITEBACK:
                # Nobody may have known how large it would be, and others write at the same time.
                if floor is not None:
                    floor.check(directory, 0)
                disk.begin_writing(fd)
                begun = written
    head = format_head(envelope, counter.octets)
    if written:
        disk.write_at(fd, format_size(counter.octets), SIZE_OFFSET)
    else:
        gathered.insert(0, head)
    gathered.append(format_trailer(counter.trailer(head_crc(head))))
    disk.write(fd, b"".join(gathered))
