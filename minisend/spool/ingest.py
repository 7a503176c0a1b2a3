"""The reader's half of the drop directory: what strangers have put there is brought into the queue, or left where it is.

It trusts nothing.  The files lie in a directory that everybody writes to, under names and with contents that their owners
choose and may change at any moment; whose a file is, its owner could have made look like another's.

    opened     relative to the directory, O_NOFOLLOW, O_NONBLOCK (a lease would stall us for 45 s); a name is 32 hexadecimal
               digits, a file a regular one, of the directory's group: that nobody can give a file who is not in it
    read       once, never more of it than its head says and [spool] max_message_size allows, straight into
               ``queue/tmp``; what is checked is what was read and written
    checked    head, end mark and checksums; nothing may stand behind the end mark; then the envelope is made anew
    counted    by the owner of the file, which is a claim: it gives a name to show and a limit to share, and no right
    removed    when the copy is durable.  A link count says nothing

    what becomes of it      a message                       taken; "once only" below
                            a copy of one that was taken    removed
                            cannot be taken now             left: too much of its user's, no room, being written, another
                                                            version, larger than allowed
                            no message                      left, and removed ``_AGE`` after its last change

Once only: the queue id is made from the name.  A copy is known (``spool.known``) by a message of the same id, octets and digest
that is in the queue or was; one that differs is left.  No tombstone goes while a file of its id is here.  The copy in the queue
leaves a tombstone should it go before the removal of the original is durable.  A socket service with the same submission in hand
holds ``queue/tmp/<queue id>``.

One process at a time: ``<spool>/state/ingest.lock``, which also remembers what was warned about.

Limits: to choose fairly among many, each run looks at every name there is; of those it opens no more than ``_LOOKED_AT``.

Source: DESIGN section 3, "Ingest trusts nothing".
"""

import errno
import posix
import random
import time
from binascii import crc32

from minisend.envelope import DROP, Envelope
from minisend.errors import DataError, MessageTooBig, SpoolError, UsageError
from minisend.spool import disk, known, tombstone
from minisend.spool.account import account
from minisend.spool.admission import admit
from minisend.spool.enqueue import (
    ID_OCTETS,
    Floor,
    acknowledge,
    enqueue,
    new_queue_id,
)
from minisend.spool.limits import Usage
from minisend.spool.place import is_own_drop, open_leaf, state
from minisend.spool.record import (
    SUBMITTED_HEAD_LIMIT,
    BrokenRecord,
    UnknownVersion,
    head_crc,
    head_length,
    parse_head,
    parse_tail,
)
from minisend.spool.store import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from minisend.spool.quota import Quotas

# Files opened in one run; of one user when there are more.
_LOOKED_AT = 10_000
# How long what is no message is kept, in seconds; what a sender that was killed has left in tmp too.
_AGE = 36 * 3600
# Seconds between two warnings of one kind, and between two looks at tmp.
_DAY = 24 * 3600
_HOUR = 3600
# Removals share their fsync.
_GROUP = 100
_PIECE = 256 * 1024
# Of what may stand behind a message: the end mark has less.
_TAIL = 4096
_STATE_LIMIT = 1024 * 1024

_TYPE = 0o170000
_REGULAR = 0o100000
_DIRECTORY = 0o040000
_NAME = frozenset("0123456789abcdef")

#: What cannot be taken now, and what is removed in the end: see ``Result``.
LIMIT = "over a limit of its user"
_VERSION = "its format is of another version"
_LARGE = "larger than [spool] max_message_size"
_BUSY = "its writer has it in hand"
_CHANGED = "it changed while it was read"
_IN_HAND = "its like in the queue is in hand"
_DIFFERENT = "the queue had another message of this id"
_SPOOL = "the queue cannot take it"
_NO_NAME = "its name is none of a message"
_KIND = "no regular file"
_GROUP_WRONG = "its group is not the drop directory's"
_UNREADABLE = "not to be read by its group"
_ENVELOPE = "its envelope cannot be used"
_UNSEEN = "more than are looked at in one run"


class _Left(Exception):
    """Not now; the text is one of the above."""


class _Duplicate(Exception):
    """It is in the queue already, or was."""


class Result:
    """What a run came to.

    ``ingested``    (queue id, claimed uid, octets) of each message brought in
    ``duplicates``  queue ids of removed copies
    ``left``        why → how many messages that could not be taken now
    ``refused``     why → how many things that are no message
    ``removed``     of those, how many had been there long enough
    ``because``     why → the words for one of them, where there is more to say
    ``warnings``    of the reasons above, those to be told now: each once a day
    ``busy``        another process was at it; nothing was looked at
    """

    __slots__ = (
        "because",
        "busy",
        "duplicates",
        "ingested",
        "left",
        "refused",
        "removed",
        "warnings",
    )

    def __init__(self) -> None:
        self.ingested: list[tuple[str, int, int]] = []
        self.duplicates: list[str] = []
        self.left: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.removed = 0
        self.because: dict[str, str] = {}
        self.warnings: list[str] = []
        self.busy = False

    @property
    def is_in_hand(self) -> bool:
        """Whether there was something that its writer, or another process, may let go in a moment."""
        return self.busy or not self.left.keys().isdisjoint((_BUSY, _CHANGED, _IN_HAND))


class Ingest:
    """From one drop directory into one queue, both of the effective user.

    ``limit``  the largest message taken, in octets; 0 for any
    ``usage``  what the users have in the queue; None for no limits.  With ``keep_rates`` it lives no longer than this
               object, and the hour is carried on from one process to the next
    ``floor``  what must stay free on the queue's file system, when the drop directory is on another one: on the same one
               a message that moves takes nothing, and leaving it there would help nobody
    ``clock``  seconds since the epoch
    """

    def __init__(
        self,
        spool: str,
        drop: str,
        *,
        limit: int,
        usage: "Usage | Quotas | None" = None,
        keep_rates: bool = False,
        floor: Floor | None = None,
        clock: "Callable[[], float]" = time.time,
    ) -> None:
        self._spool = spool
        self._drop = drop
        self._limit = limit
        self._usage = usage
        self._keep_rates = keep_rates
        self._floor = floor
        self._clock = clock
        self._logins: dict[int, bytes] = {}

    def run(self) -> Result:
        """Bring in what can be; nothing when there is no drop directory of ours.

        Raises SpoolError when the drop directory is not as it must be, or queue or lock cannot be had.
        """
        result = Result()
        try:
            if not is_own_drop(self._drop):
                return result
            with Queue(self._spool, create=True) as queue:
                lock = self._lock()
                if lock is None:
                    result.busy = True
                    return result
                try:
                    _Run(self, queue, lock, result).work()
                finally:
                    disk.close(lock)
        except OSError as exc:
            raise SpoolError(f"{exc.filename or self._drop}: {exc.strerror}") from exc
        return result

    def _lock(self) -> int | None:
        path = f"{state(self._spool, make=True)}/ingest.lock"
        flags = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC
        fd = posix.open(path, flags, 0o600)
        directory = -1
        try:
            directory = disk.open_directory(state(self._spool))
            if disk.lock(fd) and disk.is_at(fd, "ingest.lock", directory):
                held, fd = fd, -1
                return held
        finally:
            for each in (fd, directory):
                if each >= 0:
                    disk.close(each)
        return None


class _Run:
    """One run, under the lock."""

    def __init__(self, ingest: Ingest, queue: Queue, lock: int, result: Result) -> None:
        self._ingest = ingest
        self._queue = queue
        self._lock = lock
        self._result = result
        self._now = ingest._clock()
        self._new = open_leaf(ingest._drop, "new", posix.geteuid(), listing=True)
        status = posix.fstat(self._new)
        self._gid = status.st_gid
        same = status.st_dev == posix.fstat(queue.fd).st_dev
        self._floor = None if same else ingest._floor
        self._limit = ingest._limit
        self._usage = ingest._usage
        # old tombstones, but for those of which a second copy is still here
        self._buried: set[str] = set()
        # queue ids of messages whose originals are unlinked, which is not durable yet
        self._unlinked: list[str] = []

    def work(self) -> None:
        try:
            self._recall()
            self._clear_tmp()
            for name, status in self._candidates():
                self._look_at(name, status)
            self._settle()
            if self._buried:
                tombstone.remove(self._queue.fd, self._buried)
            self._remember()
        finally:
            disk.close(self._new)

    # -- what was told, and the rates

    def _recall(self) -> None:
        """What the last run noted in the lock file; what cannot be read of it was not noted."""
        self._warned: dict[str, float] = {}
        self._swept = 0.0
        lines = posix.pread(self._lock, _STATE_LIMIT, 0).decode("utf-8", "replace").splitlines()
        for each in lines:
            try:
                word, first, second = each.split(" ", 2)
                if word == "warned":
                    self._warned[second] = float(first)
                elif word == "swept":
                    self._swept = float(first)
            except ValueError:
                pass
        if self._usage is not None and self._ingest._keep_rates:
            self._usage.restore(lines)

    def _remember(self) -> None:
        result = self._result
        for why in (*result.left, *result.refused):
            # One from after now was written by a clock that has been set back.
            if not 0 <= self._now - self._warned.get(why, 0.0) < _DAY:
                result.warnings.append(why)
                self._warned[why] = self._now
        lines = [f"warned {int(at)} {why}" for why, at in self._warned.items()]
        lines.append(f"swept {int(self._swept)} -")
        if self._usage is not None and self._ingest._keep_rates:
            lines += self._usage.rates
        octets = "".join(each + "\n" for each in lines).encode()
        try:
            disk.truncate(self._lock, 0)
            disk.write_at(self._lock, octets, 0)
        except OSError:
            pass  # then it is told once more

    # -- what there is

    def _candidates(self) -> "list[tuple[str, posix.stat_result]]":
        """At most _LOOKED_AT things under names that messages have, the users by turns, each one's oldest first.

        Of a user who has more than that, those that chance chooses: nobody can stand before somebody else, and what is
        there to stay does not stand before what came later.
        """
        users: dict[int, list[tuple[str, posix.stat_result]]] = {}
        seen: dict[int, int] = {}
        total = 0
        with posix.scandir(self._new) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                name = entry.name
                if len(name) != 2 * ID_OCTETS or not _NAME.issuperset(name):
                    self._refuse(name, status, _NO_NAME)
                    continue
                if self._buried:
                    self._buried.discard(new_queue_id(bytes.fromhex(name)))
                total += 1
                uid = status.st_uid
                mine = users.setdefault(uid, [])
                number = seen[uid] = seen.get(uid, 0) + 1
                if number <= _LOOKED_AT:
                    mine.append((name, status))
                elif (place := random.randrange(number)) < _LOOKED_AT:  # noqa: S311
                    mine[place] = (name, status)
        if total > _LOOKED_AT:
            self._result.left[_UNSEEN] = total - _LOOKED_AT
        for mine in users.values():
            mine.sort(key=lambda each: each[1].st_mtime_ns, reverse=True)
        chosen: list[tuple[str, posix.stat_result]] = []
        while users and len(chosen) < _LOOKED_AT:
            for uid in list(users):
                chosen.append(users[uid].pop())
                if not users[uid]:
                    del users[uid]
        return chosen[:_LOOKED_AT]

    def _clear_tmp(self) -> None:
        """Take away what senders that were killed have left, and see which tombstones are old; once an hour."""
        if 0 <= self._now - self._swept < _HOUR:
            return
        self._swept = self._now
        self._buried = tombstone.old(self._queue.fd, self._now)
        tmp = open_leaf(self._ingest._drop, "tmp", posix.geteuid(), listing=True)
        try:
            with posix.scandir(tmp) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    self._age_out(entry.name, tmp, status)
        finally:
            disk.close(tmp)

    def _age_out(self, name: str, directory: int, status: posix.stat_result) -> None:
        # By the time of the last change, which nobody can set.
        if self._now - status.st_ctime <= _AGE:
            return
        try:
            if status.st_mode & _TYPE == _DIRECTORY:
                disk.rmdir(name, directory)
            else:
                disk.unlink(name, directory)
        except OSError:
            return  # a directory with something in it, in which only its owner may write
        self._result.removed += 1

    # -- one of them

    def _look_at(self, name: str, status: posix.stat_result) -> None:
        try:
            self._take(name, status)
        except (_Left, MessageTooBig, SpoolError) as exc:
            why = _SPOOL
            if isinstance(exc, _Left):
                why = str(exc.args[0])
            elif isinstance(exc, MessageTooBig):
                why = _LARGE
            said = str(exc.args[-1])
            if said != why:
                self._result.because[why] = said
            self._result.left[why] = self._result.left.get(why, 0) + 1
        except BrokenRecord as exc:
            self._refuse(name, status, str(exc))
        except (DataError, UsageError) as exc:
            self._result.because[_ENVELOPE] = str(exc)
            self._refuse(name, status, _ENVELOPE)
        except FileNotFoundError:
            pass  # its owner took it away

    def _refuse(self, name: str, status: posix.stat_result, why: str) -> None:
        self._result.refused[why] = self._result.refused.get(why, 0) + 1
        self._age_out(name, self._new, status)

    def _take(self, name: str, seen: posix.stat_result) -> None:
        """Bring one in; raises what says why not."""
        if seen.st_mode & _TYPE != _REGULAR:
            raise BrokenRecord(_KIND)
        try:
            fd = disk.open_reading(name, self._new)
        except FileNotFoundError:
            raise
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO):
                raise BrokenRecord(_KIND) from exc
            if exc.errno == errno.EACCES and not seen.st_mode & 0o040:
                raise BrokenRecord(_UNREADABLE) from exc
            raise _Left(_BUSY if exc.errno == errno.EWOULDBLOCK else _SPOOL, exc.strerror) from exc
        try:
            status = posix.fstat(fd)
            if status.st_mode & _TYPE != _REGULAR:
                raise BrokenRecord(_KIND)
            if status.st_gid != self._gid:
                raise BrokenRecord(_GROUP_WRONG)
            if not disk.lock(fd):
                raise _Left(_BUSY)
            self._take_message(name, fd, posix.fstat(fd))
        except OSError as exc:
            raise _Left(_SPOOL, exc.strerror) from exc
        finally:
            disk.close(fd)

    def _take_message(self, name: str, fd: int, status: posix.stat_result) -> None:
        octets = posix.read(fd, _TAIL)
        try:
            while not (length := head_length(octets)):
                piece = posix.read(fd, _PIECE)
                if not piece or len(octets) > SUBMITTED_HEAD_LIMIT:
                    raise BrokenRecord("its envelope has no end")
                octets += piece
        except UnknownVersion as exc:
            raise _Left(_VERSION) from exc
        head = octets[:length]
        said, size = parse_head(head)
        if not 0 < status.st_size - length - size <= _TAIL:
            raise BrokenRecord("it has not the length it says")
        if self._limit and size > self._limit:
            raise _Left(_LARGE)
        if not disk.is_at(fd, name, self._new):
            return  # its writer had it locked until then, and has told its caller that nothing was kept
        uid = status.st_uid
        envelope = admit(
            said,
            bytes.fromhex(name),
            uid=uid,
            login=self._login(uid),
            channel=DROP,
            now=self._now,
        )
        if self._usage is not None and (why := self._usage.admit(uid, size)):
            raise _Left(LIMIT, why)
        taken = False
        try:
            message = self._message(
                fd, octets[length:], size, status, said, head_crc(head), envelope.queue_id
            )
            enqueue(
                self._queue.fd,
                envelope,
                message,
                self._limit,
                self._floor,
                size,
                acknowledged=False,
            )
            taken = True
            self._result.ingested.append((envelope.queue_id, uid, size))
        except _Duplicate:
            self._result.duplicates.append(envelope.queue_id)
        finally:
            if self._usage is not None and not taken:
                self._usage.undo(uid, size)
        self._remove(name, fd, envelope.queue_id)

    def _message(
        self,
        fd: int,
        first: bytes,
        size: int,
        before: posix.stat_result,
        said: Envelope,
        crc_of_head: int,
        queue_id: str,
    ) -> "Iterator[bytes]":
        """The message, in pieces; at its end, and before anything of it counts, raises what speaks against it."""
        crc = 0
        left = size
        piece = first[:size]
        while left:
            if not piece:
                piece = posix.read(fd, min(_PIECE, left))
                if not piece:
                    raise _Left(_CHANGED)
            crc = crc32(piece, crc)
            left -= len(piece)
            yield piece
            piece = b""
        rest = first[size:]
        while len(rest) <= _TAIL and (piece := posix.read(fd, _PIECE)):
            rest += piece
        after = posix.fstat(fd)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise _Left(_CHANGED)
        tail = parse_tail(rest, said)
        if tail.facts is not None or tail.history or tail.torn:
            raise BrokenRecord("there is more behind its end mark")
        trailer = tail.trailer
        if (trailer.octets, trailer.digest) != (size, f"{crc:08x}"):
            raise BrokenRecord("its message was changed after it was written")
        if trailer.head_crc != crc_of_head:
            raise BrokenRecord("its envelope was changed after it was written")
        # Now that nobody else can bring it in: see enqueue.
        try:
            there = known.find(self._queue, queue_id)
        except known.InHand as exc:
            raise _Left(_IN_HAND) from exc
        if there is not None:
            if there == (size, trailer.digest):
                raise _Duplicate
            raise _Left(_DIFFERENT)

    def _login(self, uid: int) -> bytes:
        if uid not in self._logins:
            self._logins[uid] = account(uid).login
        return self._logins[uid]

    @property
    def _logins(self) -> dict[int, bytes]:
        return self._ingest._logins

    # -- the original goes

    def _remove(self, name: str, fd: int, queue_id: str) -> None:
        try:
            # Not what its owner may have put in its place meanwhile.
            if disk.is_at(fd, name, self._new):
                disk.unlink(name, self._new)
        except OSError:
            return  # found to be a copy by the next run
        self._unlinked.append(queue_id)
        if len(self._unlinked) >= _GROUP:
            self._settle()

    def _settle(self) -> None:
        """No second copy can come of what is gone for good."""
        if not self._unlinked:
            return
        try:
            disk.fsync(self._new)
        except OSError:
            return  # they leave tombstones
        for queue_id in self._unlinked:
            acknowledge(self._queue.fd, queue_id)
        self._unlinked.clear()
