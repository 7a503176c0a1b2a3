"""What the trailer says of a message never depends on the pieces in which it came."""

import itertools
from binascii import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minisend.spool.enqueue import Counter, Ruler
from minisend.spool.record import BARE_CR, EIGHT_BIT, HAS_NUL, LONG_LINE, Trailer


def naive(message: bytes) -> Trailer:
    """The same without any cleverness."""
    lines = [line.removesuffix(b"\r") for line in message.split(b"\n")]
    flags = {
        EIGHT_BIT: any(octet > 127 for octet in message),
        HAS_NUL: b"\0" in message,
        BARE_CR: b"\r" in message.replace(b"\r\n", b""),
        LONG_LINE: any(len(line) > 998 for line in lines),
    }
    return Trailer(
        len(message),
        message.count(b"\n"),
        f"{crc32(message):08x}",
        "".join(sorted(flag for flag, found in flags.items() if found)),
        7,
    )


def counted(pieces: list[bytes]) -> Trailer:
    counter = Counter()
    for piece in pieces:
        counter.add(piece)
    return counter.trailer(7)


lengths = st.sampled_from([0, 1, 70, 500, 996, 997, 998, 999, 1000, 1001, 1995, 1996, 1997, 2500])
ends = st.sampled_from([b"\n", b"\r\n", b"\r", b"\r\r\n", b"", b"\0", b"\xe9", b"\n\n", b"\n\r"])
messages = st.lists(st.tuples(lengths, ends), max_size=8).map(
    lambda parts: b"".join(b"x" * length + end for length, end in parts)
)


@given(messages, st.lists(st.integers(0, 8000), max_size=6))
@example(b"x" * 999 + b"\nx", [999])
@example(b"x" * 998 + b"\r\nx", [999])
@example(b"x" * 998 + b"\r\r\n", [999, 1000])
@example(b"x" * 998 + b"\r", [])
@example(b"x" * 997 + b"\r\r", [998])
def test_any_cut(message, cuts):
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(message)}), len(message)]
    pieces = [message[start:end] for start, end in itertools.pairwise(places) if end > start]
    assert counted(pieces) == naive(message)


@pytest.mark.parametrize("piece", [1 << 18, 1000, 70])
@pytest.mark.parametrize("long", [b"", b"y" * 999 + b"\n"], ids=["short lines", "a long line"])
def test_lines_of_a_large_message_are_neither_counted_nor_measured(piece, long):
    message = long + (b"x" * 70 + b"\n") * 3600
    message += b"z" * ((1 << 18) - len(message) - 1) + b"\n" if not long else b""
    for extra in (b"", b"w" * (1 << 18)):
        whole = message + extra
        trailer = counted([whole[at : at + piece] for at in range(0, len(whole), piece)])
        if extra:
            assert (trailer.lines, trailer.flags) == (-1, "")
        else:
            assert trailer == naive(whole)


@given(messages)
def test_octet_by_octet(message):
    assert counted([message[n : n + 1] for n in range(len(message))]) == naive(message)


@pytest.mark.parametrize("pieces", [1, 7, 998, 999, 1000, 5000])
@pytest.mark.parametrize(
    ("message", "is_long"),
    [
        (b"x" * 998 + b"\n" + b"y" * 998, False),
        (b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r", False),
        (b"x" * 999 + b"\n", True),
        (b"a\n" * 3000 + b"x" * 999, True),
        (b"x" * 998 + b"\r" + b"y\n", True),
    ],
)
def test_a_ruler_says_the_same_of_a_message_in_any_pieces(message, is_long, pieces):
    ruler = Ruler()
    for start in range(0, len(message), pieces):
        ruler.add(message[start : start + pieces])
    assert ruler.is_long is is_long
