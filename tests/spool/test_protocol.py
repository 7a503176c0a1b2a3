"""Lines and frames of the submission socket: the same whatever the pieces in which they come, never more than allowed, and in time."""

import socket
import threading

import pytest

from minisend.spool import protocol
from minisend.spool.protocol import Broken, Stream, frame

SECONDS = 20.0
KINDS = {b"E": 100, b"M": protocol.PIECE, b"Z": protocol.LONGEST_END}


@pytest.fixture
def pair():
    """A stream, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(SECONDS)
    with ours, theirs:
        yield Stream(ours), theirs


def whole(theirs, octets):
    theirs.sendall(octets)
    theirs.shutdown(socket.SHUT_WR)


class OctetByOctet:
    """A socket of which each call receives one octet, whatever it asks for."""

    def __init__(self, octets):
        self._octets = octets
        self.asked = []

    def settimeout(self, seconds):
        assert seconds > 0

    def recv(self, count):
        self.asked.append(count)
        first, self._octets = self._octets[:1], self._octets[1:]
        return first


SAID = (
    b"SUBMIT 00 later\n"
    + frame(b"E", b"head\n\n")
    + frame(b"M", b"")
    + frame(b"M", b"\n\0Z\xff" * 20)
    + frame(b"Z", b"80 01234567")
    + b"ACK\n"
    + b"\n"
)
HEARD = [
    b"SUBMIT 00 later",
    (b"E", b"head\n\n"),
    (b"M", b""),
    (b"M", b"\n\0Z\xff" * 20),
    (b"Z", b"80 01234567"),
    b"ACK",
    b"",
]


def heard(stream):
    frames = [stream.frame(SECONDS, KINDS) for _ in range(4)]
    return [*frames, stream.line(SECONDS), stream.line(SECONDS)]


def test_all_at_once(pair):
    stream, theirs = pair
    whole(theirs, SAID)
    assert [stream.line(SECONDS), *heard(stream)] == HEARD
    with pytest.raises(Broken, match=r"^closed by the other side$"):
        stream.line(SECONDS)


def test_octet_by_octet():
    stream = Stream(OctetByOctet(SAID))
    assert [stream.line(SECONDS), *heard(stream)] == HEARD
    with pytest.raises(Broken, match=r"^closed by the other side$"):
        stream.line(SECONDS)


def read_on(stream, said):
    said.append(stream.line(SECONDS))
    for _ in range(4):
        said.append(stream.frame(SECONDS, KINDS))
    while True:
        said.append(stream.line(SECONDS))


@pytest.mark.parametrize("length", range(len(SAID)))
def test_cut_anywhere(length):
    """All that was whole is heard, and then that the other side has gone."""
    stream = Stream(OctetByOctet(SAID[:length]))
    said = []
    with pytest.raises(Broken, match=r"^closed by the other side$"):
        read_on(stream, said)
    assert said == HEARD[: len(said)]
    rest = b"".join(each + b"\n" if isinstance(each, bytes) else frame(*each) for each in said)
    assert SAID.startswith(rest)
    assert len(rest) <= length
    # ... and nothing whole was left unheard.
    following = HEARD[len(said)]
    missing = following + b"\n" if isinstance(following, bytes) else frame(*following)
    assert length < len(rest) + len(missing)


def test_a_frame():
    assert frame(b"M", b"abc") == b"M\0\0\0\x03abc"
    assert frame(b"Z", b"") == b"Z\0\0\0\0"
    assert frame(b"E", b"x" * 0x010203)[:5] == b"E\0\x01\x02\x03"


# -- limits


@pytest.mark.parametrize("more", [0, 1])
def test_a_line_without_an_end(more):
    """No more is read than shows that it is none; one of full length is one."""
    line = b"x" * (protocol.LINE + more)
    connection = OctetByOctet(line + b"\n")
    stream = Stream(connection)
    if not more:
        assert stream.line(SECONDS) == line
        return
    with pytest.raises(Broken, match=r"^a line without an end$"):
        stream.line(SECONDS)
    assert len(connection.asked) == protocol.LINE + 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.decode())
def test_a_frame_of_full_length_and_one_octet_more(pair, kind):
    stream, theirs = pair
    octets = b"x" * KINDS[kind]
    theirs.sendall(frame(kind, octets))
    assert stream.frame(SECONDS, KINDS) == (kind, octets)
    theirs.sendall(kind + (len(octets) + 1).to_bytes(4, "big"))
    with pytest.raises(
        Broken, match=f"^a frame of kind b'{kind.decode()}' and {len(octets) + 1} octets where"
    ):
        stream.frame(SECONDS, KINDS)


@pytest.mark.parametrize("kind", [b"L", b"m", b"\0", b"\n"])
def test_a_kind_that_has_no_place(pair, kind):
    stream, theirs = pair
    theirs.sendall(frame(kind, b""))
    with pytest.raises(Broken, match=r"and 0 octets where it has no place$"):
        stream.frame(SECONDS, KINDS)


def test_no_more_is_asked_for_than_a_frame_has():
    """What follows a large frame stays in the socket, and what is in hand is bounded by a piece."""
    octets = b"x" * (3 * protocol.PIECE + 100)
    connection = Whole(frame(b"M", octets) + b"next")
    stream = Stream(connection)
    assert stream.frame(SECONDS, {b"M": len(octets)}) == (b"M", octets)
    assert max(connection.asked) == protocol.PIECE + 5
    assert connection.rest == b"next"


class Whole(OctetByOctet):
    """A socket that gives as much as is asked for."""

    @property
    def rest(self):
        return self._octets

    def recv(self, count):
        self.asked.append(count)
        first, self._octets = self._octets[:count], self._octets[count:]
        return first


# -- time


@pytest.mark.parametrize(
    ("begun", "what"),
    [
        (b"", "line"),
        (b"ACK", "line"),
        (b"", "frame"),
        (b"M\0\0", "frame"),
        (b"M\0\0\0\x02x", "frame"),
    ],
)
def test_a_deadline(pair, begun, what):
    stream, theirs = pair
    theirs.sendall(begun)
    with pytest.raises(TimeoutError):
        stream.line(0.01) if what == "line" else stream.frame(0.01, KINDS)


@pytest.mark.parametrize("what", ["line", "frame"])
def test_a_deadline_is_for_all_of_it(monkeypatch, what):
    """An octet each second, of a line or a frame that has ten seconds."""
    clock = iter(range(1000))
    monkeypatch.setattr(protocol, "monotonic", lambda: next(clock))
    connection = OctetByOctet(b"x" * 100 if what == "line" else frame(b"M", b"x" * 95))
    with pytest.raises(TimeoutError, match=r"^timed out$"):
        Stream(connection).line(10) if what == "line" else Stream(connection).frame(10, KINDS)
    assert len(connection.asked) == 9


def test_what_nobody_takes_has_a_deadline(pair):
    stream, _ = pair
    with pytest.raises(TimeoutError):
        stream.send(b"x" * 10_000_000, 0.01)


def test_what_is_sent_is_sent_whole(pair):
    stream, theirs = pair
    octets = bytes(range(256)) * 10_000
    got = []

    def take():
        while piece := theirs.recv(65536):
            got.append(piece)

    thread = threading.Thread(target=take)
    thread.start()
    stream.send(octets, SECONDS)
    stream.close()
    thread.join()
    assert b"".join(got) == octets
