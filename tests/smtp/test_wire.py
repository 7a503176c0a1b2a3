"""The wire form against a model that goes octet by octet."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.smtp.wire import crlf, wire


def model(octets, stuffed):
    """One octet at a time, as the RFC reads."""
    octets = octets.replace(b"\0", b"")
    lines, line, i = [], bytearray(), 0
    while i < len(octets):
        if octets[i] in b"\r\n":
            i += 2 if octets[i : i + 2] == b"\r\n" else 1
            lines.append(bytes(line))
            line.clear()
        else:
            line.append(octets[i])
            i += 1
    if line:
        lines.append(bytes(line))
    if stuffed:
        lines = [b"." + one if one.startswith(b".") else one for one in lines] + [b"."]
    return b"".join(one + b"\r\n" for one in lines)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        pytest.param([], b".\r\n", id="empty"),
        pytest.param([b"a\nb\n"], b"a\r\nb\r\n.\r\n", id="lf"),
        pytest.param([b"a\r\nb\r\n"], b"a\r\nb\r\n.\r\n", id="crlf"),
        pytest.param([b"a\r", b"\nb"], b"a\r\nb\r\n.\r\n", id="crlf-cut"),
        pytest.param([b"a\r", b"b\r"], b"a\r\nb\r\n.\r\n", id="cr"),
        pytest.param([b"a\r", b"\0", b"\nb"], b"a\r\nb\r\n.\r\n", id="nul-within-crlf"),
        pytest.param([b"a\r\r\n\n"], b"a\r\n\r\n\r\n.\r\n", id="cr-crlf-lf"),
        pytest.param([b".", b".\n"], b"...\r\n.\r\n", id="first-line-dot"),
        pytest.param([b"a\n", b".\n"], b"a\r\n..\r\n.\r\n", id="dot-begins-chunk"),
        pytest.param([b"a\r.\r"], b"a\r\n..\r\n.\r\n", id="smuggled-cr-dot-cr"),
        pytest.param(
            [b"a\n.\r\nMAIL FROM:<x>"],
            b"a\r\n..\r\nMAIL FROM:<x>\r\n.\r\n",
            id="smuggled-lf-dot-crlf",
        ),
        pytest.param([b"a\r\n\0.\r\nb"], b"a\r\n..\r\nb\r\n.\r\n", id="dot-behind-nul"),
        pytest.param([b"\xff\n"], b"\xff\r\n.\r\n", id="eight-bit"),
    ],
)
def test_cases(chunks, expected):
    assert b"".join(wire(chunks)) == expected


@given(
    st.lists(
        st.lists(st.sampled_from([b"\r", b"\n", b".", b"\0", b"a", b"\r\n"]), max_size=8).map(
            b"".join
        ),
        max_size=6,
    )
)
@settings(max_examples=200, deadline=None)
def test_equal_to_the_model_for_any_cut(chunks):
    octets = b"".join(chunks)
    assert b"".join(wire(chunks)) == model(octets, stuffed=True)
    assert b"".join(crlf(chunks)) == model(octets, stuffed=False)
    assert b"".join(wire(octets[i : i + 1] for i in range(len(octets)))) == model(
        octets, stuffed=True
    )


def test_the_end_is_last_and_on_its_own():
    assert list(wire([b"a\n" * 3, b"b"])) == [b"a\r\n" * 3, b"b", b"\r\n", b".\r\n"]
