"""One message of the queue, as it is read from its file, and what may be done to it under a claim.

Reads, records, defers, sets aside and removes; which messages there are, and who may have one, is ``spool.store``'s.

Two rules: an outcome is recorded before anything acts on it, and what is read was read under the lock.
"""

import errno
import posix
from binascii import crc32

from minisend.envelope import FAILED, Envelope, Facts, Outcome
from minisend.spool import disk
from minisend.spool.enqueue import UNACKNOWLEDGED
from minisend.spool.record import (
    OUTCOME_ROOM,
    BrokenRecord,
    Requeue,
    Tail,
    facts_room,
    format_facts,
    format_outcomes,
    format_report,
    format_requeue,
    is_about,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from minisend.spool.store import Queue

_PIECE = 256 * 1024
# A larger file is closed at once when it was removed: its room on the disk must not wait for others.
_SMALL = 64 * 1024
# Where a message moves to is made durable before where it moved from: a power cut between the two leaves two names, not
# none.  On its way messages go from the right to the left, and back when an administrator lets one go on.
FORTH = ("failed", "hold", "cur", "new")
BACK = FORTH[::-1]
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
    ``unacknowledged``  when it was claimed, its submitter had not said that it heard of it
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
        "unacknowledged",
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
        self.unacknowledged = False
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
        if self.unacknowledged and is_unacknowledged(posix.fstat(self._fd).st_mode):
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
            changes.take_order(BACK if back else FORTH)
            disk.rename(
                old.name, self._queue.directory(old.state), name, self._queue.directory(state)
            )
            self.place = Place(state, name)
            changes.made(state, old.state)


def is_unacknowledged(mode: int) -> bool:
    """Whether this is the mode of a file whose submitter has not said yet that it heard of it."""
    return mode & ~0o600 & UNACKNOWLEDGED != 0


def _read_exactly(fd: int, count: int, offset: int) -> bytes:
    octets = disk.read_at(fd, count, offset)
    if len(octets) < count:
        raise BrokenRecord("it is shorter than it says")
    return octets
