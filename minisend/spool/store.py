"""The queue as those see it who deliver, list and manage: scan, claim, read, record, defer, set aside, remove.

The only remover of messages.  States are directories (minisend-spool(5)):

    tmp      being received; removed by ``sweep`` once old
    new      accepted, never attempted: due at once
    cur      attempted: named ``<next attempt>.<queue id>``, so a listing finds what is due and opens nothing
    hold     held
    failed   could not be delivered and nobody could be told, or the file is broken

Two rules: an outcome is recorded before anything acts on it, and what is read was read under the lock.
"""

import errno
import posix
from _thread import RLock
from binascii import crc32

from minisend.envelope import FAILED, Envelope, Facts, Outcome
from minisend.errors import SpoolError
from minisend.spool import disk, tombstone
from minisend.spool.changes import Changes
from minisend.spool.enqueue import UNACKNOWLEDGED
from minisend.spool.place import open_queue, open_state
from minisend.spool.record import (
    HEAD_LIMIT,
    OUTCOME_ROOM,
    BrokenRecord,
    Requeue,
    Tail,
    Trailer,
    UnknownVersion,
    facts_room,
    format_facts,
    format_outcomes,
    format_report,
    format_requeue,
    head_crc,
    head_length,
    is_about,
    parse_head,
    parse_tail,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PIECE = 256 * 1024
# What most files are whole in: a larger one takes two calls more.
_FIRST_READ = 4 * 1024
# A larger file is closed at once when it was removed: its room on the disk must not wait for others.
_SMALL = 64 * 1024
# Where a message moves to is made durable before where it moved from: a power cut between the two leaves two names, not
# none.  On its way messages go from the right to the left, and back when an administrator lets one go on.
_FORTH = ("failed", "hold", "cur", "new")
_BACK = _FORTH[::-1]
#: Where a message may lie, in the order of its way.
MESSAGE_STATES = _BACK
# A file in tmp is some process's message while it is being received; after this long it is a crash's.
_TMP_AGE = 36 * 3600
# Seconds since the epoch have ten digits until 2286, eleven until 5138.
_TIME_DIGITS = 11


class Place:
    """One name in the queue: ``state`` (directory), ``name`` (in it), ``queue_id``, ``due`` (seconds; 0 in new).

    A time of more than _TIME_DIGITS is nobody's, and no calendar has it: such a name is due now, 0.
    """

    __slots__ = ("due", "name", "queue_id", "state")

    def __init__(self, state: str, name: str) -> None:
        when, _, queue_id = name.partition(".")
        timed = queue_id != "" and when.isascii() and when.isdecimal()
        self.state = state
        self.name = name
        self.queue_id = queue_id if timed else name
        self.due = float(when) if timed and len(when) <= _TIME_DIGITS else 0.0

    def __repr__(self) -> str:
        return f"Place({self.state}/{self.name})"


class NoRoom(Exception):
    """The disk has no room for the outcomes of an attempt, so there must be none."""


class Entry:
    """One message of the queue, read from its file.

    ``attempts``  made so far
    ``latest``    recipient index → its last Outcome
    ``reported``  what reports were queued, see ``note_reported``
    ``since``     when its lifetime began, seconds since the epoch: it arrived, or was last requeued
    ``history``   all that was recorded, see ``record.Tail``; the four above are of the time since the last requeue
    Only a claimed entry (``Queue.claim``) may be changed; leaving its context gives the claim back.
    """

    __slots__ = (
        "_extended",
        "_fd",
        "_first",
        "_kept",
        "_message_at",
        "_queue",
        "_removed",
        "_reserved",
        "_short",
        "_unacknowledged",
        "_unwritten",
        "attempts",
        "envelope",
        "facts",
        "history",
        "latest",
        "place",
        "reported",
        "since",
        "size",
        "tail_at",
        "trailer",
    )

    def __init__(
        self,
        queue: "Queue",
        place: Place,
        fd: int,
        first: bytes,
        message_at: int,
        tail: Tail,
        size: int,
        envelope: Envelope,
    ) -> None:
        self._queue = queue
        self._fd = fd
        self._kept = False
        self._unacknowledged = False
        self._removed = False
        # the file, where one read had all of it, else nothing
        self._first = first
        self._message_at = message_at
        # recipients for whose outcomes there is room behind the last line
        self._reserved = 0
        # there was, and is no more
        self._short = False
        # something stands behind the last line: zeros where there is room, or the half of a line
        self._extended = False
        # the facts of a first attempt, until there is a line that they are written with
        self._unwritten: Facts | None = None
        self.place = place
        self.envelope = envelope
        self.size = size
        self.trailer = tail.trailer
        self.facts = tail.facts
        self.tail_at = message_at + size + tail.length
        self.history = tail.history
        self.attempts = 0
        self.latest: dict[int, Outcome] = {}
        self.reported: set[str] = set()
        self.since = envelope.arrived
        for event in tail.history:
            if isinstance(event, tuple):
                attempt, outcome = event
                self.attempts = max(self.attempts, attempt)
                self.latest[outcome.recipient] = outcome
            elif isinstance(event, str):
                self.reported.add(event)
            else:
                self._begin_again(event)

    def __enter__(self) -> "Entry":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def outcomes(self) -> "list[tuple[int, Outcome]]":
        """(attempt number, Outcome) of every attempt, in the order written."""
        return [event for event in self.history if isinstance(event, tuple)]

    @property
    def pending(self) -> list[int]:
        """Indexes of the recipients that still need an attempt."""
        count = len(self.envelope.recipients)
        if not self.latest:
            return list(range(count))
        return [
            index
            for index in range(count)
            if index not in self.latest or not self.latest[index].final
        ]

    @property
    def failed(self) -> list[int]:
        """Indexes of the recipients that failed for good."""
        return [i for i, outcome in sorted(self.latest.items()) if outcome.action == FAILED]

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of its file."""
        status = posix.fstat(self._fd)
        return status.st_dev, status.st_ino

    def first_octets(self, count: int) -> bytes:
        """Up to ``count`` octets from the start of the message, as it came."""
        count = min(count, self.size)
        at = self._message_at
        if at + count <= len(self._first):
            return self._first[at : at + count]
        return _read_exactly(self._fd, count, at)

    def around(self) -> tuple[bytes, bytes]:
        """What stands in its file before the message, and what was appended behind it so far."""
        head = _read_exactly(self._fd, self._message_at, 0)
        after = self._message_at + self.size
        return head, _read_exactly(self._fd, self.tail_at - after, after)

    def octets(self) -> "Iterator[bytes]":
        """The message as it came, in pieces.  BrokenRecord when the file is shorter than it says."""
        yield from self._octets_from(0)

    def verified_octets(self, first: bytes, offset: int) -> "Iterator[bytes]":
        """The message from ``offset`` on, where ``first`` (from ``first_octets``) is already in hand.

        Raises BrokenRecord in place of the last piece when the message is not the one that was written: who sends it
        on breaks off before its end, and nobody takes half a message for a whole one.
        """
        crc = crc32(first)
        last = first[offset:]
        if len(first) < self.size:
            for piece in self._octets_from(len(first)):
                if last:
                    yield last
                crc = crc32(piece, crc)
                last = piece
        if f"{crc:08x}" != self.trailer.digest:
            raise BrokenRecord("its message was changed after it was written")
        if last:
            yield last

    def _octets_from(self, start: int) -> "Iterator[bytes]":
        position = start
        while position < self.size:
            piece = _read_exactly(
                self._fd, min(_PIECE, self.size - position), self._message_at + position
            )
            position += len(piece)
            yield piece

    # -- changes, under the claim

    def reserve(self, recipients: int) -> None:
        """Room for the outcomes of so many more recipients; NoRoom means that there must be no attempt for them.

        0 is for those who had room, which ``record`` may have had to give up.

        What fits into the last block of the file takes no call, unless the disk has refused a write before (``Queue.wary``):
        the file has that block, used or not.
        """
        if recipients or self._short:
            self._make_room(self._reserved + recipients)

    def confirm_room(self) -> None:
        """Ask for the room anew if the disk has refused a write since it was had; NoRoom as with ``reserve``."""
        if self._queue.wary:
            self._make_room(self._reserved)

    def _make_room(self, recipients: int) -> None:
        room = OUTCOME_ROOM * recipients
        left = 0 if self._queue.wary else -self.tail_at % self._queue.block
        if self._unwritten is not None:
            # Nearly always there is room for them, however they are written.
            most = facts_room(self._unwritten)
            room += most if left >= room + most else len(format_facts(self._unwritten))
        before, self._reserved = self._reserved, recipients
        short, self._short = self._short, False
        if left >= room:
            return
        try:
            disk.reserve(self._fd, self.tail_at, room)
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return  # a file system that knows no reservation, with a C library that does not write in its place
            self._extended = True  # as far as there was room
            if not before:
                self._give_back()
            self._reserved, self._short = before, short
            raise NoRoom(exc.strerror) from exc
        self._extended = True

    def _keep_room(self) -> None:
        """The room that others have who are being attempted, behind a line that has taken some of it."""
        if self._reserved:
            try:
                self._make_room(self._reserved)
            except NoRoom:
                # Their record may fail then, as one may that had room: what is in hand comes first.
                self._short = True

    def keep_facts(self, facts: Facts) -> Facts:
        """Keep the facts of the first attempt, and return them: they are written with the first line that comes after.

        To be called before ``reserve``, which finds room for them too.  A message that everybody gets at once never has
        them in its file; one that was sent to nobody, or of which a crash has left no record, gets them anew.
        """
        self._unwritten = self.facts = facts
        return facts

    def record(self, outcomes: "list[Outcome]", attempt: int) -> None:
        """Append and make durable what the attempt of this number came to.

        An attempt that does not count (a fault of this machine) is recorded under the number of the last one.
        """
        self._append(format_outcomes(attempt, outcomes))
        if self._extended:
            disk.truncate(self._fd, self.tail_at)
            self._extended = False
        self._reserved = max(0, self._reserved - len(outcomes))
        self._keep_room()
        disk.fsync(self._fd)
        self.attempts = max(self.attempts, attempt)
        self.history += [(attempt, outcome) for outcome in outcomes]
        self.latest.update({outcome.recipient: outcome for outcome in outcomes})

    def note_reported(self, note: str) -> None:
        """Append and make durable that a report was queued; ``note`` says which, in ``delivery.bounce``'s words."""
        self._append(format_report(note))
        self._keep_room()
        disk.fsync(self._fd)
        self.history.append(note)
        self.reported.add(note)

    def requeue(self, at: float) -> None:
        """Due at once, with a lifetime that begins ``at`` (seconds since the epoch) and no attempt made.

        Tried again are those who wait and, of a message in ``failed``, those who failed.  Elsewhere a failure stays
        one: its report is on its way.  Recorded and durable before the message moves; a crash between the two leaves
        it where it was.
        """
        again = self.pending
        if self.place.state == "failed":
            again = sorted(again + self.failed)
        if again:
            requeue = Requeue(at, again)
            self._append(format_requeue(requeue))
            disk.fsync(self._fd)
            self.history.append(requeue)
            self._begin_again(requeue)
        self.defer(0)

    def _begin_again(self, requeue: Requeue) -> None:
        count = len(self.envelope.recipients)
        self.since = requeue.at
        self.attempts = 0
        self.reported = {n for n in self.reported if not is_about(n, requeue.recipients, count)}
        for index in requeue.recipients:
            self.latest.pop(index, None)

    def defer(self, until: float) -> None:
        """Wait in ``cur`` until then (seconds)."""
        self._move("cur", f"{int(until):010d}.{self.place.queue_id}")

    def move_to(self, state: str) -> None:
        """To ``hold`` or ``failed``, to stay until somebody acts; of one never attempted, back to ``new``."""
        self._move(state, self.place.queue_id)

    def remove(self) -> None:
        """The message is done with.  Where one attempt made all recipients final this is its only record."""
        self._leave_tombstone()
        disk.unlink(self.place.name, self._queue.directory(self.place.state))
        self._extended = False  # gone with the file
        self._removed = self.size <= _SMALL
        self._queue.changes.made(self.place.state, removal=True)

    def keep_claim(self) -> None:
        """Hold the claim until this process ends, whatever happens to the entry."""
        self._kept = True

    def close(self) -> None:
        """Give the claim back."""
        if self._fd >= 0 and not self._kept:
            self._give_back()
            if self._removed:
                self._queue.changes.close_removed(self._fd)
            else:
                disk.close(self._fd)
            self._fd = -1

    def _append(self, octets: bytes) -> None:
        if self._unwritten is not None:
            octets = format_facts(self._unwritten) + octets
        try:
            disk.write_at(self._fd, octets, self.tail_at)
        except OSError:
            # The next line may be shorter than what has been written of this one.
            self._extended = True
            raise
        self._unwritten = None
        self.tail_at += len(octets)

    def _give_back(self) -> None:
        self._reserved = 0
        if self._extended:
            self._extended = False
            try:
                disk.truncate(self._fd, self.tail_at)
            except OSError:
                pass  # zeros after the last line are a torn tail: the next claim cuts them off

    def _leave_tombstone(self) -> None:
        """By which a second copy is known, unless its submitter has spoken, perhaps since the claim."""
        if self._unacknowledged and _is_unacknowledged(posix.fstat(self._fd).st_mode):
            self._queue.leave_tombstone(self.place, self.trailer)

    def _move(self, state: str, name: str) -> None:
        old = self.place
        if (state, name) == (old.state, old.name):
            return
        if state == "cur" and old.state != "cur":
            # Where it is not found by its name any more (``spool.known``).
            self._leave_tombstone()
        changes = self._queue.changes
        # Not while another thread makes changes durable.
        with changes.moving:
            back = old.state in ("hold", "failed") and state in ("new", "cur")
            changes.take_order(_BACK if back else _FORTH)
            disk.rename(
                old.name, self._queue.directory(old.state), name, self._queue.directory(state)
            )
            self.place = Place(state, name)
            changes.made(state, old.state)


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
        self.changes = Changes(self.directory, _FORTH, strict=strict_sync)
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
                entry._unacknowledged = _is_unacknowledged(mode)
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
            if _is_unacknowledged(mode):
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
            octets = _read_at(fd, want, 0)
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
            rest = _read_at(fd, max(posix.fstat(fd).st_size - after, 0), after)
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
                self.changes.take_order(_FORTH)
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


def _is_unacknowledged(mode: int) -> bool:
    return mode & ~0o600 & UNACKNOWLEDGED != 0


def _why(exc: OSError | SpoolError) -> str:
    return str(exc.strerror if isinstance(exc, OSError) else exc)


def _read_exactly(fd: int, count: int, offset: int) -> bytes:
    octets = _read_at(fd, count, offset)
    if len(octets) < count:
        raise BrokenRecord("it is shorter than it says")
    return octets


def _read_at(fd: int, count: int, offset: int) -> bytes:
    """``count`` octets, fewer only at the end of the file."""
    octets = posix.pread(fd, count, offset)
    while len(octets) < count:
        piece = posix.pread(fd, count - len(octets), offset + len(octets))
        if not piece:
            break
        octets += piece
    return octets
