"""A service at the submission socket in this process, on a queue: each client is the other end of a pair of sockets."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from minisend.envelope import Envelope, Recipient
from minisend.log import Log
from minisend.spool import quota
from minisend.spool.enqueue import Floor, new_queue_id
from minisend.spool.limits import Usage
from minisend.spool.protocol import frame
from minisend.spool.record import format_head
from minisend.spool.service import Service, Settings
from spool.make import RecordingQueue, listing

ID = bytes(range(16))
QUEUE_ID = new_queue_id(ID)
MESSAGE = b"Subject: hello\n\nHello.\n"
LIMIT = 100_000
DEADLINE = 20.0
GREETING = b"minisend 1\n"


class Recorded(Log):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(syslog=False, stderr=False)
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)

    warning = error = info


class Served:
    """A service on a queue, and its clients: each is the other end of a pair of sockets."""

    def __init__(
        self, queue: RecordingQueue, *, settings: dict[str, object] | None = None, **limits: int
    ) -> None:
        self.queue = queue
        self.log = Recorded()
        usage = Usage(
            **{"messages": 0, "octets": 0, "rate": 0, **limits},
            clock=lambda: quota.time.monotonic(),
        )
        self.service = Service(
            queue,
            Settings(limit=LIMIT, floor=Floor("", 0, 0), usage=usage, **(settings or {})),
            self.log,
        )

    def connect(self, uid: int = -1) -> socket.socket:
        """A client's end; for root, of any account."""
        ours, theirs = socket.socketpair() if uid < 0 else pair_of(uid)
        ours.settimeout(DEADLINE)
        self.service.take(theirs)
        return ours

    @contextmanager
    def greeted(self, uid: int = -1) -> Iterator[socket.socket]:
        with self.connect(uid) as connection:
            assert read_line(connection) == GREETING
            yield connection

    def say(self, octets: bytes, *, half: bool = True, uid: int = -1) -> bytes:
        """Say this, end, and read what comes; or, unless ``half``, be gone."""
        with self.connect(uid) as connection:
            answer = b""
            try:
                connection.sendall(octets)
                connection.shutdown(socket.SHUT_WR)
                while half and (piece := connection.recv(65536)):
                    answer += piece
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has heard enough
        self.ended()
        return answer

    def ended(self) -> None:
        """No connection is served any more, and what was served has left no trace."""
        assert self.service.wait(DEADLINE)
        assert [line for line in self.log.lines if "event=bug" in line] == []
        assert self.service._connections._open == {}
        assert self.service._under_way == {}

    def queued(self) -> dict[str, list[str]]:
        return listing(self.queue.spool)


def pair_of(uid: int) -> tuple[socket.socket, socket.socket]:
    """Two ends that this account has made: it is the one that the kernel names, whoever has them."""
    ours, childs = socket.socketpair()
    with ours, childs:
        child = os.fork()
        if not child:
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                made = socket.socketpair()
                socket.send_fds(childs, [b"."], [each.fileno() for each in made])
            finally:
                os._exit(0)
        childs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 2)
        os.waitpid(child, 0)
    first, second = (socket.socket(fileno=fd) for fd in fds)
    return first, second


def read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (octet := connection.recv(1)):
        line += octet
    return line


#: What an envelope may say beside sender and recipients, and is taken from it as it is.
OPTIONAL: dict[str, object] = {
    "zone": 60,
    "full_name": b"Ann Other",
    "sender_given": True,
    "from_headers": True,
    "body": "8BITMIME",
    "ret": "HDRS",
    "envid": "e1",
}


def said(**changes: object) -> Envelope:
    values: dict[str, object] = {"arrived": 1.0, "sender_given": True} | changes
    return Envelope("0" * 16, b"ann@example.org", [Recipient(b"bob@example.net")], **values)


HEAD = format_head(said(), len(MESSAGE))
REQUEST = b"SUBMIT " + ID.hex().encode() + b"\n"
ENVELOPE = frame(b"E", HEAD)
END = frame(b"Z", b"23 c84d920e")
WHOLE = REQUEST + ENVELOPE + frame(b"M", MESSAGE[:5]) + frame(b"M", MESSAGE[5:]) + END
OK = b"OK " + QUEUE_ID.encode() + b"\n"
STATUS = b"STATUS " + ID.hex().encode() + b"\n"


def until(probe) -> None:
    end = time.monotonic() + DEADLINE
    while not probe():
        assert time.monotonic() < end
        time.sleep(0.002)
