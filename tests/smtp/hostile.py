"""A server for the tests that answers each command with whatever it was given, up to an octet, and then falls silent or leaves.

``Responder`` is the server without I/O: it tells commands from message, and keeps what it was sent.  ``Lockstep`` lets
a session talk to it in memory, where nothing waits; ``Served`` over a socket, where everything does.
"""

import socket
import threading

from minisend.errors import NetworkError
from minisend.smtp.stream import Stream

#: A dialogue that goes well for the first recipient and not for the second.
GOOD = {
    b"": b"220 mx.test ESMTP\r\n",
    b"EHLO": b"250-mx.test\r\n250 HELP\r\n",
    b"MAIL": b"250 2.1.0 sender\r\n",
    b"RCPT TO:<b@y>": b"250 2.1.5 b\r\n",
    b"RCPT TO:<c@y>": b"550-5.1.1 no\r\n550 5.1.1 c\r\n",
    b"DATA": b"354 go\r\n",
    b".": b"250 2.0.0 queued\r\n",
    b"BDAT": b"250 2.0.0 queued\r\n",
    b"RSET": b"250 r\r\n",
    b"QUIT": b"221 bye\r\n",
}

#: What EHLO says for each way of sending a transaction.
WAYS = {
    "one-by-one": b"250-mx.test\r\n250 HELP\r\n",
    "pipelined": b"250-mx.test\r\n250 PIPELINING\r\n",
    "chunked": b"250-mx.test\r\n250-PIPELINING\r\n250 CHUNKING\r\n",
}


def good(way):
    """GOOD for one of WAYS."""
    return {**GOOD, b"EHLO": WAYS[way]}


class Responder:
    """``replies``   beginning of a command → octets, the longest that fits; ``b"."`` is the end of the message
    ``budget``    octets that it says in all, None for no limit; it is ``done`` once it would have to say more

    ``messages``  each whole message that it was sent, in the form of the wire, before it was answered
    ``accepted``  those that are not empty and were answered with a whole line that begins with a 2
    """

    def __init__(self, replies, budget=None):
        self._replies = replies
        self._budget = budget
        self._received = bytearray()
        self._chunk = None
        self._in_data = False
        self._out = []
        self._content = bytearray()
        self.messages = []
        self.accepted = []
        self.done = False
        self._say(replies[b""])

    def receive(self, octets):
        self._received += octets
        while not self.done and self._step():
            pass

    def output(self):
        """What it says now."""
        octets = b"".join(self._out)
        self._out.clear()
        return octets

    def _step(self):
        if self._chunk is not None:
            length, last = self._chunk
            if len(self._received) < length:
                return False
            self._content += self._received[:length]
            del self._received[:length]
            self._chunk = None
            self._end(b"BDAT", last)
            return True
        line, end, _ = self._received.partition(b"\r\n")
        if not end:
            return False
        del self._received[: len(line) + 2]
        if self._in_data:
            if line != b".":
                self._content += line + b"\r\n"
            else:
                self._in_data = False
                self._end(b".", True)
        elif line.startswith(b"BDAT "):
            words = line.split()
            self._chunk = int(words[1]), words[2:] == [b"LAST"]
        else:
            reply = self._reply(bytes(line))
            self._in_data = line == b"DATA" and reply.startswith(b"354")
            self._say(reply)
        return True

    def _end(self, command, last):
        said = self._say(self._replies[command])
        if last:
            self.messages.append(bytes(self._content))
            if self._content and said.startswith(b"2") and b"\n" in said:
                self.accepted.append(self.messages[-1])
            self._content.clear()

    def _reply(self, line):
        fitting = [begin for begin in self._replies if begin and line.startswith(begin)]
        return self._replies[max(fitting, key=len)] if fitting else b"500 what\r\n"

    def _say(self, octets):
        if self._budget is not None:
            self.done = len(octets) > self._budget
            octets = octets[: self._budget]
            self._budget -= len(octets)
        self._out.append(octets)
        return octets


class Lockstep(Stream):
    """``piece``   octets that a read gives
    ``closes``  what follows the last octet: the end of the connection, else silence to the deadline
    """

    def __init__(self, responder, *, piece=65536, closes=True):
        self._responder = responder
        self._held = bytearray()
        self._piece = piece
        self._closes = closes
        self._encrypted = False
        self.sent = 0

    def read(self, limit, timeout):
        self._held += self._responder.output()
        octets = bytes(self._held[: min(limit, self._piece)])
        del self._held[: len(octets)]
        if not octets and not (self._closes and self._responder.done):
            raise NetworkError("timed out")
        return octets

    def exchange(self, octets, timeout, received):
        self.sent += len(octets)
        self._responder.receive(octets)

    def close(self):
        pass


class Served:
    """The responder at the other end of ``client``, a socket; a context manager.

    ``piece``   octets that go out at a time
    ``closes``  as ``Lockstep``; whatever the client still sends is taken
    """

    def __init__(self, responder, *, piece=65536, closes=True):
        self._responder = responder
        self._piece = piece
        self._closes = closes
        self.client, self._server = socket.socketpair()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            while True:
                octets = self._responder.output()
                for start in range(0, len(octets), self._piece):
                    self._server.sendall(octets[start : start + self._piece])
                if self._responder.done and self._closes:
                    self._server.shutdown(socket.SHUT_WR)
                received = self._server.recv(65536)
                if not received:
                    return
                self._responder.receive(received)
        except OSError:  # the client has gone
            pass

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self.client.close()
        self._thread.join(60)
        self._server.close()
        assert not self._thread.is_alive()
