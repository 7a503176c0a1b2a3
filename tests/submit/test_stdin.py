"""Standard input: read to its end and no further, whatever it is, and cut at a lone dot wherever the pieces fall."""

import itertools
import os
import re
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minisend.errors import ReadError
from minisend.submit import stdin
from minisend.submit.stdin import pieces, until_dot


@pytest.fixture
def pipe():
    read, write = os.pipe()
    opened = [read, write]
    yield opened
    for fd in opened:
        try:
            os.close(fd)
        except OSError:
            pass  # closed by the test


def test_a_pipe_that_has_no_octets_yet_is_waited_for(pipe, monkeypatch):
    """EAGAIN on a descriptor that somebody left non-blocking is not the end of the message."""
    read, write = pipe
    os.set_blocking(read, False)
    waits, waiting = [], threading.Semaphore(0)
    real = stdin._wait

    def noted(fd):
        waits.append(fd)
        waiting.release()
        return real(fd)

    monkeypatch.setattr(stdin, "_wait", noted)

    def feed():
        try:
            for octets in (b"Subject: x\n", b"\nbody\n"):
                assert waiting.acquire(timeout=30)
                os.write(write, octets)
            assert waiting.acquire(timeout=30)
        finally:
            os.close(write)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert list(pieces(read)) == [b"Subject: x\n", b"\nbody\n"]
    feeder.join()
    assert waits == [read] * 3


def test_a_file_is_read_from_where_it_stands(tmp_path):
    path = tmp_path / "mbox"
    path.write_bytes(b"not this\nbut this\n")
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 9, os.SEEK_SET)
    assert b"".join(pieces(fd)) == b"but this\n"
    os.close(fd)


def test_pieces_are_bounded(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"x" * 1_000_000)
    fd = os.open(path, os.O_RDONLY)
    sizes = [len(piece) for piece in pieces(fd)]
    os.close(fd)
    assert (sum(sizes), max(sizes)) == (1_000_000, 256 * 1024)


def test_nothing_there(pipe):
    os.close(pipe[1])
    assert list(pieces(pipe[0])) == []


@pytest.mark.parametrize("what", ["directory", "closed", "write only"])
def test_what_cannot_be_read(pipe, tmp_path, what):
    fd = os.open(tmp_path, os.O_RDONLY) if what == "directory" else pipe[what == "write only"]
    if what != "write only":
        pipe.append(fd)
    if what == "closed":
        os.close(fd)
    with pytest.raises(ReadError, match=r"^standard input: ") as raised:
        list(pieces(fd))
    assert raised.value.exit_code == 74


def naive(message: bytes) -> bytes:
    kept = b""
    for line in re.findall(rb"[^\n]*\n|[^\n]+", message):
        if line.removesuffix(b"\n") in (b".", b".\r"):
            break
        kept += line
    return kept


messages = st.lists(
    st.sampled_from(
        [b".", b"\n", b"\r\n", b"\r", b"..", b"x", b".\n", b"\n.\r\n", b" ", b"long line"]
    )
).map(b"".join)


@given(messages, st.lists(st.integers(0, 60), max_size=8))
@example(b".", [])
@example(b".\r", [1])
@example(b".\nrest", [1])
@example(b"x\n.\r\nrest", [2, 3, 4])
@example(b"x\n.", [1, 2])
@example(b"x\n.x\n.\n", [3])
def test_until_dot_with_any_cut(message, cuts):
    places = [0, *sorted({cut for cut in cuts if cut < len(message)}), len(message)]
    parts = [message[start:end] for start, end in itertools.pairwise(places)]
    out = list(until_dot(part for part in parts if part))
    assert b"".join(out) == naive(message)
    assert b"" not in out


def test_what_follows_the_dot_is_not_read():
    def source():
        yield b"body\n.\n"
        raise AssertionError("read on")

    assert list(until_dot(source())) == [b"body\n"]


def test_a_large_message_passes_in_pieces():
    out = list(until_dot(iter([b"x" * 1000 + b"\n"] * 1000)))
    assert max(map(len, out)) < 1100
    assert b"".join(out) == (b"x" * 1000 + b"\n") * 1000


def test_a_pause_is_told(monkeypatch):
    """By an empty piece, which is no end; and a dot on a line of its own is found on both sides of it."""
    monkeypatch.setattr(stdin, "_PATIENCE", 1)
    read, write = os.pipe()
    try:
        source = stdin.until_dot(stdin.pieces(read))
        os.write(write, b"one\n.")
        assert next(source) == b"one"
        assert next(source) == b""
        assert next(source) == b""
        os.write(write, b"\ntwo\n")
        assert [piece for piece in source if piece] == [b"\n"]
    finally:
        os.close(read)
        os.close(write)
