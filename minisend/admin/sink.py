"""A small SMTP server on the loopback interface that takes every message and keeps it in memory: the demo's other end.

    with Sink(b"mail.example") as sink:
        ...                       a client talks to 127.0.0.1, sink.port
        sink.received

One client at a time, in one thread.  No encryption, no authentication, no limit: it is no server for a network.
"""

import socket
import threading
from dataclasses import dataclass
from typing import Self

from minisend.smtp.server import Mail, MessageData, MessageEnd, Rcpt, Reset, ServerConnection, State

# Seconds without an octet after which a client is given up.
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it was taken: envelope, and octets as they came, dots undone and nothing else."""

    sender: bytes
    recipients: tuple[bytes, ...]
    octets: bytes


class Sink:
    """The server; a context manager.  ``received`` is complete as soon as the client has its last answer."""

    def __init__(self, hostname: bytes) -> None:
        self._hostname = hostname
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, name="sink", daemon=True)
        self._client: socket.socket | None = None
        self._ending = False
        self.port: int = self._listener.getsockname()[1]
        self.received: list[Received] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending = True
        for sock in (self._listener, self._client):
            if sock is not None:
                # Wakes the thread out of accept or recv; close alone would not.
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected any more
        self._thread.join()
        self._listener.close()

    def take(self, message: Received) -> None:
        """Keep a message; the client has its answer when this has returned."""
        self.received.append(message)

    def _serve(self) -> None:
        while not self._ending:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self._client = client
                try:
                    self._session(client)
                except OSError:
                    pass  # the client went away or fell silent: what was not acknowledged was not taken
                self._client = None

    def _session(self, client: socket.socket) -> None:
        client.settimeout(_PATIENCE)
        server = ServerConnection(self._hostname)
        sender = b""
        recipients: list[bytes] = []
        pieces: list[bytes] = []
        while True:
            client.sendall(server.data_to_send())
            if server.state is State.CLOSED:
                return
            octets = client.recv(65536)
            if not octets:
                return
            server.receive_data(octets)
            while (event := server.next_event()) is not None:
                match event:
                    case Mail():
                        sender = event.sender
                        recipients = []
                        pieces = []
                        server.reply(250, "sender ok", "2.1.0")
                    case Rcpt():
                        recipients.append(event.recipient)
                        server.reply(250, "recipient ok", "2.1.5")
                    case MessageData():
                        pieces.append(event.octets)
                    case MessageEnd():
                        self.take(Received(sender, tuple(recipients), b"".join(pieces)))
                        server.reply(250, "message taken", "2.0.0")
                        pieces = []
                    case Reset():
                        recipients = []
                        pieces = []
