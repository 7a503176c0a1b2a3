"""The service behind the submission socket: takes messages from other accounts and puts them into the queue.

A thread for each connection, so that a client which is slow, silent or hostile holds up none but itself: each step has a
deadline, each account has so many connections, and whatever a client sends ends at the worst its own connection.

    SUBMIT     identity by SO_PEERCRED, the envelope through ``admission``, the message straight into ``queue/tmp``; OK when it
               is on disk, and from then on a second copy of the submission is known for one
    STATUS     of a submission that another connection is busy with: its end is waited for.  One that is not known, and is not
               in the queue, is void from then on: who is told "no" may send the message another way
    LIST, REMOVE, FLUSH  the caller's own messages, see ``spool.own_mail``

The message file carries a mark until the client has acknowledged the answer (``spool.tombstone``).

Never: no network, no credentials, no delivery, no configuration beyond what it is given.

Source: DESIGN section 3; unix(7).
"""

import select
import socket
import struct
import threading
import time
from binascii import crc32
from collections.abc import Callable, Iterator
from contextlib import suppress

from minisend.envelope import SOCKET, Envelope
from minisend.errors import (
    DataError,
    MessageTooBig,
    MinisendError,
    SpoolError,
)
from minisend.log import Log, line
from minisend.spool import protocol
from minisend.spool.account import Account, account
from minisend.spool.admission import admit
from minisend.spool.connections import Connections, Turns
from minisend.spool.enqueue import (
    ID_OCTETS,
    Floor,
    acknowledge,
    enqueue,
    new_queue_id,
)
from minisend.spool.known import is_known
from minisend.spool.limits import Usage
from minisend.spool.own_mail import OwnMail, Reasons
from minisend.spool.protocol import Broken, Stream, frame
from minisend.spool.quota import Admission, Quotas
from minisend.spool.record import (
    SUBMITTED_HEAD_LIMIT,
    BrokenRecord,
    UnknownVersion,
    head_length,
    parse_head,
)
from minisend.spool.store import Queue
from minisend.spool.trigger import EVERYTHING, SUBMISSION, poke

# Seconds that a client has: to say what it wants, for the next frame, to acknowledge.
_REQUEST = 10.0
_NEXT_FRAME = 300.0
_ACKNOWLEDGE = 5.0
# ... and to take what it is told.
_ANSWER = 60.0
# How long an answer waits for the connection that is busy with the same submission.
_BUSY = 30.0
# Submissions that are remembered as void: of those whose client gave up on them.
_VOID = 10_000

Permit = Callable[[Envelope, bytes, bool], None]


class Settings:
    """What a service is given of the configuration, and who judges what it cannot.

    ``permit``   raises for an envelope and the first octets of its message, which may be all of it, that its account may
                 not send
    ``reasons``  as of ``OwnMail``
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


class _Client:
    """Who is served on a connection.

    ``uid``      the kernel's word
    ``turns``    of its account
    ``greeted``  when, or just before, on a clock that goes on while this process is stopped
    """

    __slots__ = ("greeted", "stream", "turns", "uid")

    def __init__(self, stream: Stream, uid: int, turns: Turns) -> None:
        self.stream = stream
        self.uid = uid
        self.turns = turns
        self.greeted = time.monotonic()


class Service:
    """Serves the connections that it is given."""

    def __init__(self, queue: Queue, settings: Settings, log: Log) -> None:
        self._queue = queue
        self._settings = settings
        #: What each account has, for whoever takes messages beside the socket.
        self.quotas = Quotas(queue, settings.usage)
        self._log = log
        self._lock = threading.Lock()
        self._connections = Connections()
        self._own_mail = OwnMail(queue, settings.reasons)
        self._under_way: dict[bytes, _UnderWay] = {}
        self._void: dict[bytes, None] = {}

    def take(self, connection: socket.socket) -> None:
        """Serve a connection, in a thread of its own.  Never raises, never waits for the client."""
        try:
            uid = _peer(connection)
            # The memory of the answers that nobody takes is the client's.
            connection.settimeout(0)
            if not self._connections.enter(uid):
                with suppress(OSError):
                    connection.send(protocol.BUSY + b"\n")
                connection.close()
                return
            try:
                client = _Client(Stream(connection), uid, self._connections.turns(uid))
                # Here, so that the client goes on while its thread begins.
                connection.send(protocol.GREETING + b"\n")
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
            except (OSError, RuntimeError):
                self._connections.leave(uid)
                raise
        except (BrokenPipeError, ConnectionResetError):
            connection.close()  # a client that has not waited
        except (OSError, RuntimeError) as exc:
            self._log.error(line("-", event="refused", reason=f"connection: {exc}"))
            connection.close()

    def wait(self, seconds: float) -> bool:
        """Until no connection is served, at most so long; True when none is."""
        return self._connections.wait(seconds)

    def _serve(self, client: _Client) -> None:
        try:
            self._answer(client)
        except (Broken, OSError):
            pass  # a client that left, or does not speak this: it hurts nobody else
        except Exception as exc:  # noqa: BLE001 - one client's bug is no other's
            import traceback

            trace = "".join(traceback.format_exception(exc))
            self._log.error(line("-", event="bug", uid=client.uid, trace=trace))
        finally:
            client.stream.close()
            self._connections.leave(client.uid)

    def _answer(self, client: _Client) -> None:
        word, _, rest = client.stream.line(_REQUEST).partition(b" ")
        try:
            match word:
                case b"SUBMIT":
                    self._submit(client, *_submission(rest))
                case b"STATUS":
                    self._status(client, _submission(rest)[0])
                case b"LIST":
                    self._list(client)
                case b"REMOVE":
                    self._remove(client, rest.decode("ascii", "backslashreplace"))
                case b"FLUSH":
                    self._flush(client)
                case _:
                    raise DataError("not a request")
        except MinisendError as exc:
            _refuse(client.stream, exc)

    # -- SUBMIT and STATUS

    def _submit(self, client: _Client, submission: bytes, later: bool) -> None:
        queue_id = new_queue_id(submission)
        ours = _UnderWay()
        with self._lock:
            void = submission in self._void
            earlier = ours if void else self._under_way.setdefault(submission, ours)
        if void:
            # Also while another connection asks for it: what is known is not given up.
            if not self._is_known(queue_id):
                raise SpoolError("this submission was given up")
            self._confirm(client.stream, queue_id)
            return
        if earlier is not ours:
            self._status(client, submission)
            return
        try:
            if not self._is_known(queue_id):
                envelope = self._receive(client, submission, ours)
                self._log.info(
                    line(
                        queue_id,
                        event="queued",
                        uid=client.uid,
                        **{"from": envelope.sender},
                        nrcpt=len(envelope.recipients),
                    )
                )
        finally:
            with self._lock:
                del self._under_way[submission]
            ours.done.set()
        try:
            self._confirm(client.stream, queue_id)
        finally:
            # Also of a client that has gone.  Not before: what is acknowledged while it is new leaves no tombstone.
            if not later:
                poke(self._queue.spool, SUBMISSION)

    def _receive(self, client: _Client, submission: bytes, ours: _UnderWay) -> Envelope:
        """Take in the envelope and the message, and queue it.  Raises MinisendError, Broken, OSError of the socket."""
        _, head = client.stream.frame(_NEXT_FRAME, {protocol.ENVELOPE: SUBMITTED_HEAD_LIMIT})
        with client.turns.in_hand(head):
            return self._take_in(client, head, submission, ours)

    def _take_in(
        self, client: _Client, head: bytes, submission: bytes, ours: _UnderWay
    ) -> Envelope:
        who: Account = account(client.uid)
        with client.turns.work:
            said, size = _said(head)
            envelope = admit(
                said, submission, uid=client.uid, login=who.login, channel=SOCKET, now=time.time()
            )
        settings = self._settings
        # Not for as long as the client takes for its message.
        del said, head
        if settings.limit and size > settings.limit:
            raise MessageTooBig(f"message larger than max_message_size ({settings.limit} octets)")
        counted = Admission(self.quotas, client.uid)
        try:
            enqueue(
                self._queue.fd,
                envelope,
                self._message(client, envelope, ours, counted),
                settings.limit,
                settings.floor,
                size,
                acknowledged=False,
            )
        except BaseException:
            counted.take_back()
            raise
        return envelope

    def _message(
        self, client: _Client, envelope: Envelope, ours: _UnderWay, counted: Admission
    ) -> Iterator[bytes]:
        """The message as its pieces come.  When this ends, it is whole, it may be sent, and nobody has given it up."""
        # By now ``enqueue`` has made its file in tmp, which keeps ingest from a copy.  Later than this the copy may have come
        # and gone.  No answer: a client that is still there asks, and sends it another way.
        if time.monotonic() - client.greeted > protocol.PATIENCE:
            raise Broken("its client may have gone another way")
        settings = self._settings
        limits = {protocol.MESSAGE: protocol.PIECE, protocol.END: protocol.LONGEST_END}
        octets = crc = 0
        first = bytearray()
        while True:
            try:
                kind, piece = client.stream.frame(_NEXT_FRAME, limits)
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

    def _status(self, client: _Client, submission: bytes) -> None:
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
        self._confirm(client.stream, queue_id)

    def _is_known(self, queue_id: str) -> bool:
        try:
            return is_known(self._queue, queue_id)
        except OSError as exc:
            # Neither answer would be true.
            self._log.error(line(queue_id, event="refused", reason=f"queue: {exc.strerror}"))
            raise Broken(exc.strerror) from exc

    def _confirm(self, stream: Stream, queue_id: str) -> None:
        stream.send(b"OK %b\n" % queue_id.encode("ascii"), _ANSWER)
        with suppress(Broken, OSError):
            if stream.line(_ACKNOWLEDGE) == b"ACK":
                acknowledge(self._queue.fd, queue_id)

    # -- the caller's own

    def _list(self, client: _Client) -> None:
        with client.turns.listing():
            client.stream.send(b"OK\n", _ANSWER)
            gone = select.poll()
            gone.register(client.stream, 0)  # POLLHUP alone
            for octets in self._own_mail.listed(client.uid, client.turns.work):
                if gone.poll(0):
                    return
                if octets:
                    client.stream.send(frame(protocol.LISTED, octets), _ANSWER)
            client.stream.send(frame(protocol.END, b""), _ANSWER)

    def _remove(self, client: _Client, queue_id: str) -> None:
        self._own_mail.remove(client.uid, queue_id, client.turns.work)
        self._log.info(line(queue_id, event="removed", uid=client.uid))
        client.stream.send(b"OK removed\n", _ANSWER)

    def _flush(self, client: _Client) -> None:
        count = self._own_mail.flush(client.uid, client.turns.work)
        poke(self._queue.spool, EVERYTHING)
        client.stream.send(b"OK %d due now\n" % count, _ANSWER)


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


def _refuse(stream: Stream, exc: MinisendError) -> None:
    text = " ".join(str(exc).split()).encode("utf-8", "backslashreplace")
    # So many octets, not letters: an answer that is longer than a line is none, and the message would go another way.
    fits = text[: protocol.LINE - 100].decode("utf-8", "ignore").encode("utf-8")
    stream.send(b"NO %d %b %b\n" % (exc.exit_code, exc.status.encode("ascii"), fits), _ANSWER)
