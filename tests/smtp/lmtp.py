"""A small LMTP server (RFC 2033) on a unix socket or a TCP port, for what real ones cannot be made to say.

``reply(path, mailbox)`` is called with b"RCPT" or b"message" and the address; None accepts.  A message has its reply for
each recipient in turn.  ``keywords`` are offered; with PIPELINING and CHUNKING those commands are understood anyway.
"""

import socket
import threading
from collections.abc import Callable
from typing import Self

Reply = Callable[[bytes, bytes], "bytes | None"]


class LmtpServer:
    """``messages``: recipients accepted, and octets; ``commands``: verbs of all sessions."""

    def __init__(
        self,
        where: "str | None" = None,
        *,
        keywords: tuple[bytes, ...] = (b"PIPELINING", b"8BITMIME"),
        reply: Reply = lambda at, address: None,
    ) -> None:
        self._reply = reply
        self._keywords = keywords
        if where is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port: int = self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(where)
            self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._faults: list[BaseException] = []
        self.messages: list[tuple[tuple[bytes, ...], bytes]] = []
        self.commands: list[bytes] = []

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        if self._faults:
            raise self._faults[0]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(20)
            thread = threading.Thread(target=self._run, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rwb") as lines:
                self._talk(lines)
        except ConnectionError:
            pass  # the client has gone
        except BaseException as fault:
            self._faults.append(fault)

    def _talk(self, lines: "socket.SocketIO") -> None:
        def say(*replies: bytes) -> None:
            lines.write(b"".join(reply + b"\r\n" for reply in replies))
            lines.flush()

        accepted: list[bytes] = []
        chunks: list[bytes] = []

        def end(octets: bytes) -> None:
            self.messages.append((tuple(accepted), octets))
            say(*(self._reply(b"message", to) or b"250 2.0.0 kept " + to for to in accepted))
            accepted.clear()
            chunks.clear()

        say(b"220 mailboxes LMTP")
        while line := lines.readline():
            command = line.rstrip(b"\r\n")
            verb = command[:4].upper()
            self.commands.append(verb)
            address = command.partition(b"<")[2].partition(b">")[0]
            if verb == b"LHLO":
                say(*(b"250-" + word for word in (b"mailboxes", *self._keywords)), b"250 HELP")
            elif verb == b"RCPT":
                refusal = self._reply(b"RCPT", address)
                if refusal is None:
                    accepted.append(address)
                say(refusal or b"250 2.1.5 ok")
            elif verb == b"DATA" and not accepted:
                say(b"503 5.5.1 no valid recipients")
            elif verb == b"DATA":
                say(b"354 go ahead")
                octets = []
                while (piece := lines.readline()) not in (b".\r\n", b""):
                    octets.append(piece.removeprefix(b"."))
                end(b"".join(octets))
            elif verb == b"BDAT":
                words = command.split()
                chunks.append(lines.read(int(words[1])))
                if not accepted:
                    say(b"503 5.5.1 no valid recipients")
                elif words[-1] == b"LAST":
                    end(b"".join(chunks))
                else:
                    say(b"250 2.0.0 go on")
            elif verb in (b"MAIL", b"RSET", b"QUIT"):
                accepted.clear()
                chunks.clear()
                say(b"221 2.0.0 bye" if verb == b"QUIT" else b"250 2.0.0 ok")
                if verb == b"QUIT":
                    return
            else:
                say(b"500 5.5.2 LMTP only")
