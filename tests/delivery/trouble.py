"""Servers that fail at one point of a session, a program that does not wait long for them, and what time does to a message."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Self

from delivery.program import ROOT, Program
from delivery.reports import Told
from delivery.scripted import CLOSE, CONNECT, END_OF_DATA, IN_MESSAGE

from minisend.envelope import Envelope, Recipient
from minisend.spool.enqueue import enqueue, new_queue_id
from minisend.spool.store import Queue

# In place of a reply: none, with the connection open.
SILENCE = b"silence"

# Seconds.  What is waited for in vain is given up after the one; nothing that comes takes as long as the other.
IMPATIENCE = 0.2
_WAIT = 20.0

#: What a scripted server is asked, by the phase in an outcome; and in the middle of the message.
WHILE_WRITTEN = "message"
ASKED = {
    "greeting": CONNECT,
    "EHLO": b"EHLO",
    "HELO": b"HELO",
    "AUTH": b"AUTH",
    "MAIL FROM": b"MAIL",
    "RCPT TO": b"RCPT TO:<bob@",
    "DATA": b"DATA",
    WHILE_WRITTEN: IN_MESSAGE,
    "end of data": END_OF_DATA,
}

#: The deadline that ends the wait for a reply in a phase: a field of ``smtp.session.Deadlines``.
DEADLINES = {
    "connect": "connect",
    "greeting": "greeting",
    "EHLO": "hello",
    "HELO": "hello",
    "AUTH": "auth",
    "MAIL FROM": "mail",
    "RCPT TO": "rcpt",
    "DATA": "data",
    WHILE_WRITTEN: "block",
    "end of data": "end_of_data",
}

_LAUNCHER = """\
import sys
root, deadline, seconds = sys.argv[1:4]
del sys.argv[1:4]
sys.path.insert(0, root)
from minisend.__main__ import main
from minisend.smtp.deadlines import Deadlines
assert hasattr(Deadlines, deadline)
setattr(Deadlines, deadline, float(seconds))
sys.exit(main())
"""


class Trouble:
    """An ``answer`` of a ScriptedServer that fails up to ``times`` times, at ``phase``, and else takes everything.

    ``reply``  with lines after the first behind CR LF, or CLOSE, or SILENCE, which lasts until the context ends
    As a server does, it refuses recipients and message of a sender that it has refused.
    """

    def __init__(self, phase: str, reply: bytes, times: int = 1) -> None:
        self._asked = ASKED[phase]
        self._phase = phase
        self._reply = reply
        self._left = threading.Event()
        self._refused_sender = False
        self._times = times
        self.failed = False

    def __call__(self, command: bytes) -> bytes | None:
        if self._phase == "HELO" and command.startswith(b"EHLO"):
            return b"502 5.5.1 no such command"
        if command.startswith(b"MAIL"):
            self._refused_sender = False
        if self._refused_sender and command.startswith((b"RCPT", b"DATA")):
            return b"503 5.5.1 no sender"
        if not self._times or not command.startswith(self._asked):
            return None
        self._times -= 1
        self.failed = True
        self._refused_sender = self._phase == "MAIL FROM"
        if self._reply == SILENCE:
            self._left.wait(_WAIT)
            return CLOSE
        return self._reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._left.set()


class ImpatientProgram(Program):
    """A program of which one deadline, that of ``phase``, passes at once."""

    def __init__(self, directory: Path, settings: str, phase: str) -> None:
        super().__init__(directory, settings)
        self._deadline = DEADLINES[phase]
        self._launcher = directory / "impatient.py"
        self._launcher.write_text(_LAUNCHER)

    def command(self, face: str, *arguments: str) -> list[str]:
        if face != "minisend":
            return super().command(face, *arguments)
        return [
            *(sys.executable, "-I", str(self._launcher)),
            *(str(ROOT), self._deadline, str(IMPATIENCE)),
            *(face, "-C", str(self.config), *arguments),
        ]


@contextmanager
def port_that_never_answers() -> Iterator[int]:
    """A port where a connection is neither made nor refused: a full backlog drops what knocks."""
    knocking = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        try:
            for _ in range(8):
                client = socket.socket()
                client.setblocking(False)
                knocking.append(client)
                client.connect_ex(("127.0.0.1", port))
            yield port
        finally:
            for client in knocking:
                client.close()


def queue_long_ago(
    program: Program, arrived: float, message: bytes, *recipients: Recipient, envid: str = ""
) -> None:
    """A message from me@here.test as it was submitted then."""
    envelope = Envelope(
        new_queue_id(b"long ago"),
        b"me@here.test",
        list(recipients),
        arrived=arrived,
        uid=1000,
        login=b"me",
        envid=envid,
    )
    with Queue(str(program.spool), create=True) as queue:
        enqueue(queue.fd, envelope, [message], 0)


def take_moments(told: Told, since: float, until: float) -> set[str]:
    """Take out of a report the fields that name a moment which lies in this time; the names of those."""
    names = set()
    for fields in (told.header, told.message, *told.recipients):
        for name in ("Date", "Arrival-Date", "Last-Attempt-Date"):
            if name in fields:
                # Its seconds are whole.
                assert int(since) <= parsedate_to_datetime(fields.pop(name)).timestamp() <= until
                names.add(name)
    return names
