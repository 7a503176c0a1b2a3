"""A service at a submission socket that follows a script, whatever its clients say."""

import socket
import threading

DEADLINE = 20.0


class Scripted:
    """Serves one connection for each of ``script``: its steps in order.

    octets     are sent
    a number   so many octets are waited for
    None       the end of what comes is waited for
    else       is called

    ``heard``  what came over each connection
    """

    def __init__(self, directory):
        self.path = f"{directory}/submit.sock"
        self.heard = []
        self.failed = []
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.path)
        self._listening.listen(5)
        self._listening.settimeout(DEADLINE)
        self._thread = None

    def follow(self, *scripts):
        self._thread = threading.Thread(target=self._follow, args=scripts)
        self._thread.start()

    def _follow(self, *scripts):
        try:
            for number, script in enumerate(scripts):
                connection, _ = self._listening.accept()
                if number == len(scripts) - 1:
                    self._listening.close()
                with connection:
                    connection.settimeout(DEADLINE)
                    self.heard.append(b"")
                    for step in script:
                        self._step(connection, step)
        except BaseException as exc:
            self.failed.append(exc)

    def _step(self, connection, step):
        if isinstance(step, bytes):
            connection.sendall(step)
            return
        if callable(step):
            step()
            return
        left = step
        while left is None or left > 0:
            piece = connection.recv(left or 65536)
            self.heard[-1] += piece
            if left is None and not piece:
                return
            assert piece, "the client has gone"
            left = left and left - len(piece)

    def close(self):
        """The script was followed to its end."""
        if self._thread is not None:
            self._thread.join()
        self._listening.close()
        assert self.failed == []
