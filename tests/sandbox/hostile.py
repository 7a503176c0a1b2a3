"""Eight clients that mean no good, each in its own way, until they are told to stop.

python3 -IS hostile.py SOCKET LIBRARY KIND      until its standard input ends

silent      connects and says nothing
slow        an octet of a submission now and then
endless     a message without an end
garbage     random octets, one connection after the other
half        closes its half in the middle of a submission, one connection after the other
line        a request line without an end
envelope    as many recipients as an envelope has room for, again and again
deaf        asks for its list and reads nothing, again and again
"""

import os
import select
import socket
import sys

KINDS = ("silent", "slow", "endless", "garbage", "half", "line", "envelope", "deaf")


def main() -> None:
    path, library, kind = sys.argv[1:]
    # What counts is what the service does for them, not that they use the machine up themselves.
    os.nice(19)
    sys.path.insert(0, library)
    from minisend.envelope import Envelope, Recipient
    from minisend.spool.protocol import PIECE, frame
    from minisend.spool.record import format_head

    said = Envelope("0" * 16, b"", [Recipient(b"a@example.net")], arrived=1.0, sender_given=True)
    head = frame(b"E", format_head(said, 0))
    if kind == "envelope":
        said.recipients = [Recipient(b"%d@x.example" % n) for n in range(25_000)]
        head = frame(b"E", format_head(said, 0))
    piece = frame(b"M", b"x" * (PIECE - 1) + b"\n")

    def begin() -> bytes:
        return b"SUBMIT " + os.urandom(16).hex().encode() + b"\n" + head

    def once(connection: socket.socket) -> None:
        if kind == "silent":
            wait(600)
        elif kind == "slow":
            for octet in begin():
                connection.sendall(bytes([octet]))
                wait(0.05)
        elif kind == "endless":
            connection.sendall(begin())
            while not wait(0):
                connection.sendall(piece)
        elif kind == "garbage":
            connection.sendall(os.urandom(3000) + b"\n")
        elif kind == "half":
            connection.sendall(begin() + piece[:1000])
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)
        elif kind == "line":
            while not wait(0):
                connection.sendall(b"x" * 100)
        elif kind == "envelope":
            connection.sendall(begin())
            wait(0.01)
        elif kind == "deaf":
            connection.sendall(b"LIST\n")
            wait(0.01)

    while not wait(0):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30)
            try:
                connection.connect(path)
                once(connection)
            except OSError:
                pass  # the service has had enough of it


def wait(seconds: float) -> bool:
    """So long, or until standard input ends; whether it has."""
    ended, _, _ = select.select([0], [], [], seconds)
    return bool(ended)


if __name__ == "__main__":
    main()
