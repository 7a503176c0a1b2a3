"""The service behind the submission socket: takes messages from other accounts and puts them into the queue.

A thread for each connection, so that a client which is slow, silent or hostile holds up none but itself: each step has a
deadline, each account has so many connections, and whatever a client sends ends at the worst its own connection.

    SUBMIT     identity by SO_PEERCRED, the envelope through ``admission``, the message straight into ``queue/tmp``; OK when it
               is on disk, and from then on a second copy of the submission is known for one
    STATUS     of a submission that another connection is busy with: its end is waited for.  One that is not known, and is not
               in the queue, is void from then on: who is told "no" may send the message another way
    LIST       the caller's own messages, all of them for root and the queue's owner
    REMOVE     the same ones, under their locks; for another's message the answer is the one for none
    FLUSH      they are due now

    frame L    "<state> <name> <1 if claimed>", LF, the message's head, its tail

The message file carries a mark until the client has acknowledged the answer (``spool.tombstone``).  Own messages are
those whose uid the kernel has told; what came by the drop is shown to the uid that it claims, and no more.  To a uid of
DynamicUser= nothing is: tomorrow it is another service's.

Never: no network, no credentials, no delivery, no configuration beyond what it is given.

Source: DESIGN section 3; unix(7); systemd.exec(5), DynamicUser=.
"""

import posix
import select
import socket
import struct
import threading
import time
from binascii import crc32
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from minisend.envelope import SOCKET, Envelope, Outcome
from minisend.errors import (
    DataError,
    MessageTooBig,
    MinisendError,
    SpoolError,
)
from minisend.log import Log, line
from minisend.spool import protocol, tombstone
from minisend.spool.account import Account, account
from minisend.spool.admission import admit
from minisend.spool.enqueue import (
    ID_OCTETS,
    Floor,
    acknowledge,
    enqueue,
    new_queue_id,
    take_abandoned,
)
from minisend.spool.ingest import count
from minisend.spool.limits import Usage
from minisend.spool.place import OVERFLOW_UID
from minisend.spool.protocol import Broken, Stream, frame
from minisend.spool.record import (
    SUBMITTED_HEAD_LIMIT,
    BrokenRecord,
    UnknownVersion,
    format_outcomes,
    head_length,
    parse_head,
)
from minisend.spool.store import Entry, Place, Queue, claimed_files
from minisend.spool.trigger import EVERYTHING, SUBMISSION, poke

#: Connections at a time: in all, and of one uid other than root.
MOST = 250
MOST_OF_ONE = 50

# Seconds that a client has: to say what it wants, for the next frame, to acknowledge.
_REQUEST = 10.0
_NEXT_FRAME = 300.0
_ACKNOWLEDGE = 5.0
# ... and to take what it is told.
_ANSWER = 60.0
# How long an answer waits for the connection that is busy with the same submission, and a large envelope for its turn.
_BUSY = 30.0
# Octets of an envelope of which an account has one in hand at a time: of some 3,000 recipients.  Each takes ten times as much
# memory.
_LARGE = 64 * 1024
# Submissions that are remembered as void: of those whose client gave up on them.
_VOID = 10_000
# Between two times that a uid may have its messages flushed.
_FLUSH_PAUSE = 60.0
# Between two counts of what all accounts have in the queue: seconds, and how many times as long as a count takes.
_RECOUNT = 5.0
_RECOUNT_PAUSE = 20
# systemd's range for DynamicUser=.
_DYNAMIC = range(61184, 65520)
_STATES = ("new", "cur", "hold", "failed")

Permit = Callable[[Envelope, bytes, bool], None]
Reasons = Callable[[], Callable[[Entry], Sequence[Outcome]]]


class Settings:
    """What a service is given of the configuration, and who judges what it cannot.

    ``permit``   raises for an envelope and the first octets of its message, which may be all of it, that its account may
                 not send
    ``reasons``  asked at the beginning of a listing for what says why those of a message wait whom no server was asked for
    ``header``   octets of a message that ``permit`` is to see
    """

    __slots__ = ("floor", "header", "limit", "permit", "reasons", "usage")

    def __init__(
        self,
        *,
        limit: int,
        floor: Floor,
        usage: Usage,
        permit: Permit = lambda envelope, first, complete: None,
        reasons: Reasons = lambda: lambda entry: (),
        header: int = 0,
    ) -> None:
        self.limit = limit
        self.floor = floor
        self.usage = usage
        self.permit = permit
        self.reasons = reasons
        self.header = header


class _UnderWay:
    """A submission that a connection is busy with."""

    __slots__ = ("done", "void")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.void = False


class _Turns:
    """What the connections of one account do one after the other: together they take from the others no more than one would.

    ``work``   time: to work out an envelope, or a part of a listing
    ``large``  memory: to have a large envelope in hand
    """

    __slots__ = ("large", "work")

    def __init__(self) -> None:
        self.work = threading.Lock()
        self.large = threading.Lock()

    @contextmanager
    def in_hand(self, head: bytes) -> Iterator[None]:
        """While this envelope is.  Raises SpoolError when another large one does not end."""
        if len(head) <= _LARGE:
            yield
            return
        if not self.large.acquire(timeout=_BUSY):
            raise SpoolError("another message of so many recipients is under way: try again")
        try:
            yield
        finally:
            self.large.release()


class Service:
    """Serves the connections that it is given."""

    def __init__(self, queue: Queue, settings: Settings, log: Log) -> None:
        self._queue = queue
        self._settings = settings
        #: What each account has, for whoever takes messages beside the socket.
        self.accounts = Accounts(queue, settings.usage)
        self._log = log
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._turn = threading.Condition(self._lock)
        self._looking: set[int] = set()  # uids that go through the whole queue
        self._open: dict[int, int] = {}  # uid → connections
        self._turns: dict[int, _Turns] = {}
        self._under_way: dict[bytes, _UnderWay] = {}
        self._void: dict[bytes, None] = {}
        self._flushed: dict[int, float] = {}

    def take(self, connection: socket.socket) -> None:
        """Serve a connection, in a thread of its own.  Never raises, never waits for the client."""
        try:
            uid = _peer(connection)
            # The memory of the answers that nobody takes is the client's.
            connection.settimeout(0)
            with self._lock:
                mine, every = self._open.get(uid, 0), sum(self._open.values())
                busy = every >= MOST or (mine >= MOST_OF_ONE and uid != 0)
                if not busy:
                    self._open[uid] = mine + 1
                    self._turns.setdefault(uid, _Turns())
            if busy:
                with suppress(OSError):
                    connection.send(protocol.BUSY + b"\n")
                connection.close()
                return
            try:
                # Here, so that the client goes on while its thread begins.
                connection.send(protocol.GREETING + b"\n")
                threading.Thread(target=self._serve, args=(connection, uid), daemon=True).start()
            except (OSError, RuntimeError):
                self._leave(uid)
                raise
        except (BrokenPipeError, ConnectionResetError):
            connection.close()  # a client that has not waited
        except (OSError, RuntimeError) as exc:
            self._log.error(line("-", event="refused", reason=f"connection: {exc}"))
            connection.close()

    def wait(self, seconds: float) -> bool:
        """Until no connection is served, at most so long; True when none is."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._open, seconds)

    def _leave(self, uid: int) -> None:
        with self._lock:
            left = self._open[uid] - 1
            if left:
                self._open[uid] = left
            else:
                del self._open[uid], self._turns[uid]
            if not self._open:
                self._idle.notify_all()

    def _serve(self, connection: socket.socket, uid: int) -> None:
        stream = Stream(connection)
        try:
            self._answer(stream, uid)
        except (Broken, OSError):
            pass  # a client that left, or does not speak this: it hurts nobody else
        except Exception as exc:  # noqa: BLE001 - one client's bug is no other's
            import traceback

            trace = "".join(traceback.format_exception(exc))
            self._log.error(line("-", event="bug", uid=uid, trace=trace))
        finally:
            stream.close()
            self._leave(uid)

    def _answer(self, stream: Stream, uid: int) -> None:
        word, _, rest = stream.line(_REQUEST).partition(b" ")
        try:
            match word:
                case b"SUBMIT":
                    self._submit(stream, uid, *_submission(rest))
                case b"STATUS":
                    self._status(stream, _submission(rest)[0])
                case b"LIST":
                    with self._alone(uid):
                        self._list(stream, uid)
                case b"REMOVE":
                    self._remove(stream, uid, rest.decode("ascii", "backslashreplace"))
                case b"FLUSH":
                    self._flush(stream, uid)
                case _:
                    raise DataError("not a request")
        except MinisendError as exc:
            _refuse(stream, exc)

    # -- SUBMIT and STATUS

    def _submit(self, stream: Stream, uid: int, submission: bytes, later: bool) -> None:
        queue_id = new_queue_id(submission)
        ours = _UnderWay()
        with self._lock:
            void = submission in self._void
            earlier = ours if void else self._under_way.setdefault(submission, ours)
        if void:
            # Also while another connection asks for it: what is known is not given up.
            if not self._is_known(queue_id):
                raise SpoolError("this submission was given up")
            self._confirm(stream, queue_id)
            return
        if earlier is not ours:
            self._status(stream, submission)
            return
        try:
            if not self._is_known(queue_id):
                envelope = self._receive(stream, uid, submission, ours)
                self._log.info(
                    line(
                        queue_id,
                        event="queued",
                        uid=uid,
                        **{"from": envelope.sender},
                        nrcpt=len(envelope.recipients),
                    )
                )
        finally:
            with self._lock:
                del self._under_way[submission]
            ours.done.set()
        try:
            self._confirm(stream, queue_id)
        finally:
            # Also of a client that has gone.  Not before: what is acknowledged while it is new leaves no tombstone.
            if not later:
                poke(self._queue.spool, SUBMISSION)

    def _receive(self, stream: Stream, uid: int, submission: bytes, ours: _UnderWay) -> Envelope:
        """Take in the envelope and the message, and queue it.  Raises MinisendError, Broken, OSError of the socket."""
        _, head = stream.frame(_NEXT_FRAME, {protocol.ENVELOPE: SUBMITTED_HEAD_LIMIT})
        with self._turns[uid].in_hand(head):
            return self._take_in(stream, uid, head, submission, ours)

    def _take_in(
        self, stream: Stream, uid: int, head: bytes, submission: bytes, ours: _UnderWay
    ) -> Envelope:
        who: Account = account(uid)
        with self._turns[uid].work:
            said, size = _said(head)
            envelope = admit(
                said, submission, uid=uid, login=who.login, channel=SOCKET, now=time.time()
            )
        settings = self._settings
        # Not for as long as the client takes for its message.
        del said, head
        if settings.limit and size > settings.limit:
            raise MessageTooBig(f"message larger than max_message_size ({settings.limit} octets)")
        counted = _Admission(self.accounts, uid)
        abandoned = take_abandoned(self._queue.fd, envelope.queue_id)
        try:
            enqueue(
                self._queue.fd,
                envelope,
                self._message(stream, envelope, ours, counted),
                settings.limit,
                settings.floor,
                size,
                acknowledged=False,
            )
        except BaseException:
            counted.take_back()
            raise
        finally:
            if abandoned >= 0:
                posix.close(abandoned)
        return envelope

    def _message(
        self, stream: Stream, envelope: Envelope, ours: _UnderWay, counted: "_Admission"
    ) -> Iterator[bytes]:
        """The message as its pieces come.  When this ends, it is whole, it may be sent, and nobody has given it up."""
        settings = self._settings
        limits = {protocol.MESSAGE: protocol.PIECE, protocol.END: protocol.LONGEST_END}
        octets = crc = 0
        first = bytearray()
        while True:
            try:
                kind, piece = stream.frame(_NEXT_FRAME, limits)
            except TimeoutError as exc:
                raise SpoolError(f"nothing came from the client for {_NEXT_FRAME:g} s") from exc
            except OSError as exc:
                # To ``enqueue`` it would be one of the disk's.
                raise Broken(exc.strerror) from exc
            if kind == protocol.END:
                break
            octets += len(piece)
            crc = crc32(piece, crc)
            if len(first) < settings.header:
                first += piece[: settings.header - len(first)]
            if piece:
                yield piece
        if piece != b"%d %08x" % (octets, crc):
            raise DataError("the message is not the one that was announced")
        settings.permit(envelope, bytes(first), octets == len(first))
        counted.admit(octets)
        with self._lock:
            if ours.void:
                raise SpoolError("this submission was given up")

    def _status(self, stream: Stream, submission: bytes) -> None:
        queue_id = new_queue_id(submission)
        with self._lock:
            busy = self._under_way.get(submission)
        if busy is not None and not busy.done.wait(_BUSY):
            with self._lock:
                busy.void = True
            if not busy.done.wait(_BUSY):
                # It has passed the point where it asks, and the disk is slow: neither answer would be true.
                raise Broken("its end is not to be waited for")
        # From here on it cannot begin.  First this, then the look, which is not one for everybody to wait for.
        with self._lock:
            self._void[submission] = None
            if len(self._void) > _VOID:
                del self._void[next(iter(self._void))]
        if not self._is_known(queue_id):
            raise SpoolError("no such submission")
        with self._lock:
            self._void.pop(submission, None)
        self._confirm(stream, queue_id)

    def _is_known(self, queue_id: str) -> bool:
        queue = self._queue
        return (
            queue.find(queue_id, *_STATES) is not None
            or tombstone.find(queue.fd, queue_id) is not None
        )

    def _confirm(self, stream: Stream, queue_id: str) -> None:
        stream.send(b"OK %b\n" % queue_id.encode("ascii"), _ANSWER)
        with suppress(Broken, OSError):
            if stream.line(_ACKNOWLEDGE) == b"ACK":
                acknowledge(self._queue.fd, queue_id)

    # -- the caller's own

    def _is_own(self, envelope: Envelope, uid: int, *, verified: bool) -> bool:
        if uid in (0, posix.geteuid()):
            return True
        if uid in _DYNAMIC or uid == OVERFLOW_UID or envelope.uid != uid:
            return False
        return envelope.channel == SOCKET or not verified

    @contextmanager
    def _alone(self, uid: int) -> Iterator[None]:
        """One at a time of each account, for what goes through the whole queue.  Raises SpoolError when it is long."""
        with self._lock:
            if not self._turn.wait_for(lambda: uid not in self._looking, _BUSY):
                raise SpoolError(
                    "another request of this account goes through the queue, try again"
                )
            self._looking.add(uid)
        try:
            yield
        finally:
            with self._lock:
                self._looking.discard(uid)
                self._turn.notify_all()

    def _list(self, stream: Stream, uid: int) -> None:
        stream.send(b"OK\n", _ANSWER)
        turn = self._turns[uid].work
        with turn:
            look = _Look(claimed_files(self._queue), self._settings.reasons())
            places = sorted(self._queue.places(*_STATES), key=lambda place: (place.due, place.name))
        gone = select.poll()
        gone.register(stream, 0)  # POLLHUP alone
        for place in places:
            if gone.poll(0):
                return
            with turn:
                octets = self._look_at(place, uid, look)
            if octets:
                stream.send(frame(protocol.LISTED, octets), _ANSWER)
        stream.send(frame(protocol.END, b""), _ANSWER)

    def _look_at(self, place: Place, uid: int, look: "_Look") -> bytes:
        """What is told of a message; nothing of one that is another's, cannot be read, or is gone."""
        with suppress(BrokenRecord, UnknownVersion, OSError):
            entry = self._queue.read(place)
            if entry is not None:
                with entry:
                    if self._is_own(entry.envelope, uid, verified=False):
                        return look.told(entry)
        return b""

    def _own(self, queue_id: str, uid: int) -> Entry:
        """Claimed.  Raises DataError when there is no such message of theirs, SpoolError when it is being delivered."""
        absent = DataError(f"{queue_id}: not in the queue")
        if len(queue_id) != 16 or not queue_id.isalnum():
            raise absent
        place = self._queue.find(queue_id, *_STATES)
        if place is None or not self._may_change(place, uid):
            raise absent
        entry = self._queue.claim(place)
        if entry is None:
            raise SpoolError(f"{queue_id}: is being delivered, try again")
        return entry

    def _may_change(self, place: Place, uid: int) -> bool:
        try:
            seen = self._queue.read(place)
        except (BrokenRecord, UnknownVersion, OSError):
            return False
        if seen is None:
            return False
        with seen:
            return self._is_own(seen.envelope, uid, verified=True)

    def _remove(self, stream: Stream, uid: int, queue_id: str) -> None:
        try:
            with self._own(queue_id, uid) as entry:
                entry.remove()
            self._queue.sync()
        except OSError as exc:
            raise SpoolError(f"{queue_id}: cannot be removed: {exc.strerror}") from exc
        self._log.info(line(queue_id, event="removed", uid=uid))
        stream.send(b"OK removed\n", _ANSWER)

    def _flush(self, stream: Stream, uid: int) -> None:
        now = time.monotonic()
        with self._lock:
            if uid and now - self._flushed.get(uid, -_FLUSH_PAUSE) < _FLUSH_PAUSE:
                raise SpoolError(f"flushed less than {_FLUSH_PAUSE:g} s ago: wait a moment")
            self._flushed[uid] = now
        count = 0
        for place in self._queue.places("cur"):
            # By its name in the listing: to look up each would be a listing for each.
            if self._may_change(place, uid) and (entry := self._queue.claim(place)) is not None:
                with suppress(OSError), entry:
                    entry.defer(0)
                    count += 1
        with suppress(OSError):
            self._queue.sync()
        poke(self._queue.spool, EVERYTHING)
        stream.send(b"OK %d due now\n" % count, _ANSWER)


class Accounts:
    """What each account has in the queue, where that is limited.

    Who delivers does not tell us what has left: it is counted anew before anybody is refused, but not all the time.
    For all threads; takes the place of a ``Usage``.
    """

    __slots__ = ("_count_at", "_counted", "_lock", "_queue", "_usage")

    def __init__(self, queue: Queue, usage: Usage) -> None:
        self._queue = queue
        self._usage = usage
        self._lock = threading.Lock()
        self._counted = False
        self._count_at = 0.0  # when it may be counted anew

    @property
    def is_limited(self) -> bool:
        """As ``Usage.is_limited``."""
        return self._usage.is_limited

    @property
    def rates(self) -> list[str]:
        """As ``Usage.rates``."""
        with self._lock:
            return self._usage.rates

    def restore(self, lines: list[str]) -> None:
        """As ``Usage.restore``."""
        with self._lock:
            self._usage.restore(lines)

    def admit(self, uid: int, octets: int) -> str | None:
        """As ``Usage.admit``."""
        if not self._usage.is_limited:
            return None
        with self._lock:
            why = self._usage.admit(uid, octets) if self._counted else ""
            began = time.monotonic()
            if why is not None and began >= self._count_at:
                self._usage.forget()
                count(self._queue, self._usage)
                self._counted = True
                # Everybody waits meanwhile, which must not become always: who is over a limit may go on sending.
                now = time.monotonic()
                self._count_at = now + max(_RECOUNT, _RECOUNT_PAUSE * (now - began))
                why = self._usage.admit(uid, octets)
            return why

    def undo(self, uid: int, octets: int) -> None:
        """As ``Usage.undo``."""
        if self._usage.is_limited:
            with self._lock:
                self._usage.undo(uid, octets)


class _Admission:
    """A message that counts for its account once it is whole."""

    __slots__ = ("_accounts", "_octets", "_uid")

    def __init__(self, accounts: Accounts, uid: int) -> None:
        self._accounts = accounts
        self._uid = uid
        self._octets = -1

    def admit(self, octets: int) -> None:
        if why := self._accounts.admit(self._uid, octets):
            raise SpoolError(why)
        self._octets = octets

    def take_back(self) -> None:
        if self._octets >= 0:
            self._accounts.undo(self._uid, self._octets)


def _peer(connection: socket.socket) -> int:
    """The uid of who connected.  A descriptor that is inherited stays that of who made it: SO_PEERCRED, unix(7)."""
    octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", octets)
    return int(uid) & 0xFFFFFFFF


def _submission(rest: bytes) -> tuple[bytes, bool]:
    """Submission id and whether its delivery waits."""
    digits, _, option = rest.partition(b" ")
    if len(digits) != 2 * ID_OCTETS or digits.translate(None, b"0123456789abcdef"):
        raise DataError("not a submission id")
    if option not in (b"", b"later"):
        raise DataError("an option that nobody knows")
    return bytes.fromhex(digits.decode("ascii")), option == b"later"


def _said(head: bytes) -> tuple[Envelope, int]:
    try:
        if head_length(head) != len(head):
            raise BrokenRecord("it does not end where its frame does")
        if head.count(b"\nto ") > protocol.MOST_RECIPIENTS:
            raise DataError("more recipients than the service takes")
        return parse_head(head)
    except BrokenRecord as exc:
        raise DataError(f"envelope: {exc}") from exc
    except UnknownVersion as exc:
        raise DataError(f"envelope: its format is version {exc}") from exc


class _Look:
    """One listing: what is claimed at its beginning, and what is known of destinations then."""

    __slots__ = ("_claimed", "_reasons")

    def __init__(
        self, claimed: set[tuple[int, int]], reasons: Callable[[Entry], Sequence[Outcome]]
    ) -> None:
        self._claimed = claimed
        self._reasons = reasons

    def told(self, entry: Entry) -> bytes:
        """The frame of one message."""
        place = entry.place
        claimed = entry.identity in self._claimed
        first = f"{place.state} {place.name} {claimed:d}\n".encode("ascii", "surrogateescape")
        head, tail = entry.around()
        # What stands for an outcome, where no server was asked, is told like one.
        waits = self._reasons(entry) if place.state == "cur" else ()
        return first + head + tail + format_outcomes(entry.attempts, waits)


def _refuse(stream: Stream, exc: MinisendError) -> None:
    text = " ".join(str(exc).split()).encode("utf-8", "backslashreplace")
    # So many octets, not letters: an answer that is longer than a line is none, and the message would go another way.
    fits = text[: protocol.LINE - 100].decode("utf-8", "ignore").encode("utf-8")
    stream.send(b"NO %d %b %b\n" % (exc.exit_code, exc.status.encode("ascii"), fits), _ANSWER)
