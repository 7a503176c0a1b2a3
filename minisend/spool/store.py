"""The queue as those see it who deliver, list and manage: list, find, claim, read, sweep.

The only remover of messages, by ``spool.entry``.  States are directories (minisend-spool(5)):

    tmp      being received; removed by ``sweep`` once old
    new      accepted, never attempted: due at once
    cur      attempted: named ``<next attempt>.<queue id>``, so a listing finds what is due and opens nothing
    hold     held
    failed   could not be delivered and nobody could be told, or the file is broken
"""

import posix
from _thread import RLock

from minisend.errors import SpoolError
from minisend.spool import disk, tombstone
from minisend.spool.changes import Changes
from minisend.spool.entry import BACK, FORTH, Entry, Place, is_unacknowledged
from minisend.spool.place import open_queue, open_state
from minisend.spool.record import (
    HEAD_LIMIT,
    BrokenRecord,
    Trailer,
    UnknownVersion,
    head_crc,
    head_length,
    parse_head,
    parse_tail,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What most files are whole in: a larger one takes two calls more.
_FIRST_READ = 4 * 1024
#: Where a message may lie, in the order of its way.
MESSAGE_STATES = BACK
# A file in tmp is some process's message while it is being received; after this long it is a crash's.
_TMP_AGE = 36 * 3600


class Queue:
    """An open queue directory.

    ``strict_sync``  fsync a directory after each change ([spool] sync = "each")
    ``report``       called with a queue id and a text when a file is set aside or cannot be read
    ``changes``      of its names: hears of each that is made here

    Several threads may use one; an entry belongs to one of them at a time.
    """

    def __init__(
        self,
        spool: str,
        *,
        strict_sync: bool = False,
        report: "Callable[[str, str], None] | None" = None,
        create: bool = False,
    ) -> None:
        self.spool = spool
        self._fd = open_queue(spool, create=create)
        self._lock = RLock()
        self.block = disk.block(self._fd)
        #: The disk has refused to take an outcome: whether it takes the next is to be asked, and not to be counted on.
        self.wary = False
        self._directories: dict[str, int] = {}
        self.changes = Changes(self.directory, FORTH, strict=strict_sync)
        self._report = report or (lambda queue_id, text: None)

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Make the last changes durable and close."""
        if self._fd >= 0:
            try:
                self.changes.end()
            finally:
                for fd in self._directories.values():
                    disk.close(fd)
                self._directories.clear()
                disk.close(self._fd)
                self._fd = -1

    @property
    def fd(self) -> int:
        """Descriptor of the queue directory, as ``enqueue`` takes it."""
        return self._fd

    def directory(self, state: str) -> int:
        """Descriptor of the directory of ``state``."""
        fd = self._directories.get(state)
        if fd is None:
            with self._lock:
                fd = self._directories.get(state)
                if fd is None:
                    fd = self._directories[state] = open_state(state, self._fd)
        return fd

    def sync(self) -> None:
        """Make all changes of names durable.  Raises OSError."""
        self.changes.sync()

    def settle(self) -> None:
        """Make changes durable that have waited for as long as they may: for somebody to call while nothing else happens."""
        self.changes.settle()

    def places(self, *states: str) -> "Iterator[Place]":
        """What lies in these states, in no order; nothing is opened."""
        for state in states:
            for name in self.names(state):
                yield Place(state, name)

    def names(self, state: str) -> list[str]:
        """What lies in this state, by its name there: 100,000 of these take a third of the room that places do."""
        try:
            # On a descriptor of its own: the position in a shared one would be shared with other threads.
            fd = disk.open_directory(state, self._fd)
            try:
                return [name for name in posix.listdir(fd) if not name.startswith(".")]
            finally:
                disk.close(fd)
        except OSError as exc:
            raise SpoolError(f"{self.spool}/queue/{state}: {exc.strerror}") from exc

    def due(self, now: float, retry_max: float) -> list[Place]:
        """What is to be attempted now, the longest waiting first; nothing is opened.

        A time further away than ``retry_max`` was made by a clock that has been set back: it counts as due.
        """
        found = [
            place
            for place in self.places("new", "cur")
            if place.due <= now or place.due > now + retry_max
        ]
        found.sort(key=lambda place: (place.due, place.queue_id))
        return found

    def find(self, queue_id: str, *states: str) -> Place | None:
        """Where the message of this id lies; ``new``, ``hold`` and ``failed`` are looked up without a listing."""
        if "/" in queue_id or queue_id.startswith("."):
            return None
        for state in states:
            if state == "cur":
                for name in self.names("cur"):
                    # First what tells most of 100,000 apart at once.
                    if (
                        name.endswith(queue_id)
                        and (place := Place("cur", name)).queue_id == queue_id
                    ):
                        return place
            elif disk.exists(queue_id, self.directory(state)):
                return Place(state, queue_id)
        return None

    def size(self, place: Place) -> int:
        """Octets of a file; 0 when it is gone."""
        try:
            directory = self.directory(place.state)
            return posix.stat(place.name, dir_fd=directory, follow_symlinks=False).st_size
        except (OSError, SpoolError):
            return 0

    def claim(self, place: Place) -> Entry | None:
        """The entry, locked, a torn tail cut off; None when another process has it or it is gone.

        A broken file is moved to ``failed`` and reported; one of an unknown version is left alone and reported.
        """
        try:
            directory = self.directory(place.state)
            fd = disk.open_claiming(place.name, directory)
        except FileNotFoundError:
            return None
        except (OSError, SpoolError) as exc:
            self._report(place.queue_id, f"cannot be opened: {_why(exc)}")
            return None
        claimed = None
        try:
            if disk.lock(fd) and (mode := disk.mode_at(fd, place.name, directory)):
                entry, torn = self._read(place, fd)
                entry.unacknowledged = is_unacknowledged(mode)
                if torn:
                    disk.truncate(fd, entry.tail_at)
                claimed = entry
        except UnknownVersion as exc:
            self._report(place.queue_id, f"left alone: its format is version {exc}")
        except BrokenRecord as exc:
            self._set_aside(place, str(exc))
        except OSError as exc:
            self._report(place.queue_id, f"cannot be read: {exc.strerror}")
        finally:
            if claimed is None:
                disk.close(fd)
        return claimed

    def read(self, place: Place) -> Entry | None:
        """The entry as it is, without a lock, to be looked at; None when it is gone.

        Raises BrokenRecord, UnknownVersion, OSError.
        """
        try:
            fd = disk.open_reading(place.name, self.directory(place.state))
        except FileNotFoundError:
            return None
        try:
            return self._read(place, fd)[0]
        except BaseException:
            disk.close(fd)
            raise

    def discard(self, place: Place) -> bool:
        """Remove a file, whatever is in it, under its lock.  False when another process has it or it is gone.

        Raises OSError.
        """
        directory = self.directory(place.state)
        try:
            fd = disk.open_claiming(place.name, directory)
        except FileNotFoundError:
            return False
        try:
            if not (disk.lock(fd) and (mode := disk.mode_at(fd, place.name, directory))):
                return False
            if is_unacknowledged(mode):
                self.leave_tombstone(place, self._trailer(place, fd))
            disk.unlink(place.name, directory)
        finally:
            disk.close(fd)
        self.changes.made(place.state, removal=True)
        return True

    def leave_tombstone(self, place: Place, trailer: Trailer | None) -> None:
        """Before a removal, or a move to cur.  A disk that takes none is no reason to send again what everybody has."""
        try:
            tombstone.leave(self._fd, place.queue_id, trailer)
        except OSError as exc:
            self._report(place.queue_id, f"leaves no trace against a second copy: {exc.strerror}")

    def _trailer(self, place: Place, fd: int) -> Trailer | None:
        try:
            return self._read(place, fd)[0].trailer
        except (BrokenRecord, UnknownVersion, OSError):
            return None

    def set_aside(self, entry: Entry, why: str) -> None:
        """Move a claimed entry whose message turned out broken to ``failed`` and report it."""
        self._set_aside(entry.place, why)

    def sweep(self, now: float, *, tombstones: bool = True) -> None:
        """Remove from ``tmp`` what crashes have left there, and tombstones that are old enough.

        ``tombstones``  False where there is a drop directory: then those are ingest's to remove
        """
        for place in self.places("tmp"):
            directory = self.directory("tmp")
            try:
                status = posix.stat(place.name, dir_fd=directory, follow_symlinks=False)
                if now - status.st_mtime > _TMP_AGE:
                    disk.unlink(place.name, directory)
            except FileNotFoundError:
                pass
            except OSError as exc:
                self._report(place.queue_id, f"cannot be removed from tmp: {exc.strerror}")
        if not tombstones:
            return
        try:
            tombstone.sweep(self._fd, now)
        except OSError as exc:
            self._report("-", f"tombstones cannot be removed: {exc.strerror}")

    def _read(self, place: Place, fd: int) -> tuple[Entry, bool]:
        # One page: nothing but the end of the file cuts this short, where more could be by a page that is unreadable.
        octets = posix.pread(fd, _FIRST_READ, 0)
        want = _FIRST_READ
        length = head_length(octets)
        while not length:
            if len(octets) < want or want > HEAD_LIMIT:
                raise BrokenRecord("its envelope has no end")
            want *= 8
            octets = disk.read_at(fd, want, 0)
            length = head_length(octets)
        head = octets[:length]
        envelope, size = parse_head(head)
        after = length + size
        if len(octets) < want:
            # All of it is in hand, without another call: a listing reads 100,000 such files.
            rest = octets[after:]
            first = octets if want == _FIRST_READ else b""
        else:
            first = b""
            # Not exactly to its end: a flusher may be giving back the room it had reserved there.
            rest = disk.read_at(fd, max(posix.fstat(fd).st_size - after, 0), after)
        tail = parse_tail(rest, envelope)
        if tail.trailer.head_crc != head_crc(head):
            raise BrokenRecord("its envelope was changed after it was written")
        if envelope.queue_id != place.queue_id:
            raise BrokenRecord("it lies under a name that is not its own")
        return Entry(self, place, fd, first, length, tail, size, envelope), tail.torn

    def _set_aside(self, place: Place, why: str) -> None:
        if place.state == "failed":
            self._report(place.queue_id, f"broken: {why}")
            return
        try:
            failed = self.directory("failed")
            if disk.exists(place.queue_id, failed):
                # A rename would replace it.
                self._report(
                    place.queue_id, f"broken ({why}), with its like in queue/failed already"
                )
                return
            with self.changes.moving:
                self.changes.take_order(FORTH)
                disk.rename(place.name, self.directory(place.state), place.queue_id, failed)
                self.changes.made("failed", place.state)
        except (OSError, SpoolError) as exc:
            self._report(place.queue_id, f"broken ({why}) and cannot be set aside: {_why(exc)}")
        else:
            self._report(place.queue_id, f"set aside in queue/failed: {why}")


def claimed_files(queue: Queue) -> set[tuple[int, int]]:
    """Device and inode of every file on the queue's file system that some process has locked with flock (proc(5), /proc/locks).

    Trying the lock instead would make a flusher that comes by at this moment pass the message over.
    """
    octets = b""
    try:
        fd = posix.open("/proc/locks", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            while piece := posix.read(fd, 65536):
                octets += piece
        finally:
            disk.close(fd)
    except OSError:
        return set()
    claimed = set()
    device = posix.fstat(queue.fd).st_dev
    for line in octets.splitlines():
        fields = line.split()
        # "3: FLOCK ADVISORY WRITE 1423 fe:01:1055 0 EOF"; one that waits has "->" in its second field
        if len(fields) > 5 and fields[1] == b"FLOCK" and fields[3] == b"WRITE":
            major, minor, inode = fields[5].split(b":")
            if posix.makedev(int(major, 16), int(minor, 16)) == device:
                claimed.add((device, int(inode)))
    return claimed


def _why(exc: OSError | SpoolError) -> str:
    return str(exc.strerror if isinstance(exc, OSError) else exc)
