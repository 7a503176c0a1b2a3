"""An SMTP server on loopback of which a test can replace every reply: for faults that no real server has to order.

    with ScriptedServer(replies({b"RCPT TO:<b@x.test>": b"550 5.1.1 no such user"})) as server:
        ...
    server.sessions, server.messages

What is not replaced is answered as a server does that takes everything.  The real ones are in ``peers``.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

Answer = Callable[[bytes], "bytes | None"]

# Beside command lines, what a reply can be replaced to.
CONNECT = b"connect"
IN_MESSAGE = b"in message"  # with CLOSE alone: after its first line
END_OF_DATA = b"end of data"

# In place of a reply: the connection is closed.
CLOSE = b""

KEYWORDS = (b"PIPELINING", b"8BITMIME", b"SIZE")

_WAIT = 20.0  # a test that waits longer has failed


@dataclass(frozen=True)
class Message:
    """One that was taken: recipients in the order given, octets as they came, dots undone."""

    sender: bytes
    recipients: tuple[bytes, ...]
    octets: bytes


@dataclass
class Session:
    """``commands`` as they came; ``tls``; ``cut``: it ended in the middle of a message, which began with ``octets``."""

    commands: list[bytes] = field(default_factory=list)
    tls: bool = False
    cut: bool = False
    octets: bytes = b""

    def verbs(self) -> list[bytes]:
        """The commands without what follows their first word or colon."""
        return [command.replace(b":", b" ").split(b" ")[0] for command in self.commands]


def replies(table: Mapping[bytes, "bytes | list[bytes] | list[bytes | None]"]) -> Answer:
    """An ``answer``: the reply of the first key that the command begins with.

    Of a list each is given once, in order; for None, and after the last, the command is taken.
    """

    def answer(command: bytes) -> bytes | None:
        for prefix, reply in table.items():
            if command.startswith(prefix):
                if isinstance(reply, list):
                    return reply.pop(0) if reply else None
                return reply
        return None

    return answer


class ScriptedServer:
    """``answer(command)`` gives the reply to a command line, to CONNECT, IN_MESSAGE or END_OF_DATA; None leaves it to the server.

    ``context``  for STARTTLS; without one the handshake fails, if STARTTLS is offered or answered with 220
    """

    def __init__(
        self,
        answer: Answer = lambda command: None,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        keywords: tuple[bytes, ...] = KEYWORDS,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._answer = answer
        self._keywords = keywords
        self._context = context
        self._listener = socket.create_server((address, port))
        self._threads = [threading.Thread(target=self._accept)]
        self._connections: list[socket.socket] = []
        self._faults: list[BaseException] = []
        self.port: int = self._listener.getsockname()[1]
        self.sessions: list[Session] = []
        self.messages: list[Message] = []

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.disconnect()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(_WAIT)
            assert not thread.is_alive()
        if self._faults:
            raise self._faults[0]

    def disconnect(self) -> None:
        """Close the sessions that are open, as a server does that has waited long enough."""
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(_WAIT)
            # Each reply is a write: without this a pipelining client waits for its own delayed acknowledgement.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._run, args=(connection,))
            self._connections.append(connection)
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket) -> None:
        session = Session()
        self.sessions.append(session)
        try:
            with connection:
                if self._talk(connection, session, greet=True) == b"220":
                    self._talk_over_tls(connection, session)
        except (ConnectionError, ssl.SSLError):
            pass  # the client has gone
        except BaseException as fault:
            self._faults.append(fault)

    def _talk_over_tls(self, connection: socket.socket, session: Session) -> None:
        if self._context is None:
            connection.recv(1)  # not before the handshake has begun: that would be an injection
            connection.sendall(b"no TLS record\r\n")
            return
        with self._context.wrap_socket(connection, server_side=True) as encrypted:
            self._connections.append(encrypted)
            session.tls = True
            self._talk(encrypted, session, greet=False)

    def _talk(self, connection: socket.socket, session: Session, *, greet: bool) -> bytes:
        """One session; b"220" when the client is to begin the handshake."""
        with connection.makefile("rwb") as lines:

            def take(octets: bytes) -> bytes:
                # Noted before the client can know, and act on it.
                message = Message(sender, tuple(recipients), octets)
                self.messages.append(message)
                reply = say(END_OF_DATA, b"250 2.0.0 taken")
                if not reply.startswith(b"250"):
                    self.messages.remove(message)
                recipients.clear()
                return reply

            def say(command: bytes, taken: bytes) -> bytes:
                reply = self._answer(command)
                reply = taken if reply is None else reply
                if reply:
                    lines.write(reply + b"\r\n")
                    lines.flush()
                return reply

            if greet and not say(CONNECT, b"220 mx.test ESMTP"):
                return CLOSE
            sender = b""
            recipients: list[bytes] = []  # of the transaction under way
            chunks: list[bytes] = []
            while line := lines.readline():
                command = line.rstrip(b"\r\n")
                session.commands.append(command)
                verb = command[:4].upper()
                if verb == b"EHLO":
                    reply = say(command, self._hello(session))
                elif verb == b"STAR":
                    reply = say(command, b"220 2.0.0 go ahead")
                    if reply.startswith(b"220"):
                        return b"220"
                elif verb == b"AUTH":
                    reply = say(command, b"235 2.7.0 welcome")
                elif verb == b"DATA":
                    refused = b"554 5.5.1 no valid recipients"
                    reply = say(command, b"354 go ahead" if recipients else refused)
                    if reply.startswith(b"354"):
                        breaks_off = self._answer(IN_MESSAGE) == CLOSE
                        octets = _read_message(lines, session, breaks_off=breaks_off)
                        if octets is None:
                            return CLOSE
                        reply = take(octets)
                elif verb == b"BDAT" and self._answer(command) is None:
                    chunks.append(lines.read(int(command.split()[1])))
                    if command.upper().endswith(b" LAST"):
                        reply = take(b"".join(chunks))
                        chunks.clear()
                    else:
                        reply = say(command, b"250 2.0.0 go on")
                elif verb == b"QUIT":
                    say(command, b"221 2.0.0 bye")
                    return CLOSE
                else:
                    reply = say(command, b"250 2.0.0 ok")
                    if reply.startswith(b"2") and verb == b"MAIL":
                        sender, recipients = _path(command), []
                    elif reply.startswith(b"2") and verb == b"RCPT":
                        recipients.append(_path(command))
                if not reply:
                    return CLOSE
        return CLOSE

    def _hello(self, session: Session) -> bytes:
        keywords = [word for word in self._keywords if word != b"STARTTLS" or not session.tls]
        return b"".join(b"250-" + word + b"\r\n" for word in (b"mx.test", *keywords)) + b"250 HELP"


def _read_message(lines: "socket.SocketIO", session: Session, *, breaks_off: bool) -> bytes | None:
    pieces = []
    # However the client leaves: closed, or reset.
    session.cut = True
    try:
        while line := lines.readline():
            if line == b".\r\n":
                session.cut = False
                return b"".join(pieces)
            pieces.append(line.removeprefix(b"."))
            if breaks_off:
                break
    finally:
        if session.cut:
            session.octets = b"".join(pieces)
    return None


def _path(command: bytes) -> bytes:
    return command[command.index(b"<") + 1 : command.rindex(b">")]
