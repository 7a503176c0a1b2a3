"""Replies: what is one, what is kept of it, and that the cut into pieces never matters."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.errors import RemoteProtocolError
from minisend.smtp.reply import (
    KEPT_OCTETS,
    LINE_OCTETS,
    MAX_OCTETS,
    Reply,
    ReplyParser,
    printable,
)


def parse(pieces):
    """All replies of the pieces, and the text of the error that ended them ("" for none)."""
    parser, replies = ReplyParser(), []
    try:
        for piece in pieces:
            parser.feed(piece)
            while (reply := parser.next_reply()) is not None:
                replies.append(reply)
    except RemoteProtocolError as error:
        with pytest.raises(RemoteProtocolError, match=re.escape(str(error))):  # and again
            parser.next_reply()
        return replies, str(error)
    return replies, ""


def octet_by_octet(octets):
    return [octets[i : i + 1] for i in range(len(octets))]


@pytest.mark.parametrize(
    ("octets", "replies"),
    [
        pytest.param(b"250 ok\r\n", [Reply(250, (b"ok",))], id="one-line"),
        pytest.param(b"250\r\n", [Reply(250, (b"",))], id="no-text"),
        pytest.param(b"250 \r\n", [Reply(250, (b"",))], id="empty-text"),
        pytest.param(b"250 ok\n", [Reply(250, (b"ok",))], id="bare-lf"),
        pytest.param(b"250 a\rb\r\r\n", [Reply(250, (b"a\rb\r",))], id="cr-inside"),
        pytest.param(
            b"250-a\r\n250-\r\n250 c\r\n", [Reply(250, (b"a", b"", b"c"))], id="multi-line"
        ),
        pytest.param(b"250-a\n250\r\n", [Reply(250, (b"a", b""))], id="multi-line-ends-bare"),
        pytest.param(
            b"220 x\r\n550 5.1.1 y\r\n", [Reply(220, (b"x",)), Reply(550, (b"5.1.1 y",))], id="two"
        ),
        pytest.param(b"250 \xff\x00\xe9\r\n", [Reply(250, (b"\xff\x00\xe9",))], id="any-octets"),
    ],
)
def test_a_reply_whole_octet_by_octet_and_with_more_behind(octets, replies):
    assert parse([octets]) == (replies, "")
    assert parse(octet_by_octet(octets)) == (replies, "")
    parser = ReplyParser()
    parser.feed(octets + b"35")
    assert [parser.next_reply() for _ in replies] == replies
    assert parser.next_reply() is None
    assert parser.pending


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        pytest.param(b"\r\n", "not an SMTP reply: ''", id="empty-line"),
        pytest.param(b"25\r\n", "not an SMTP reply: '25'", id="two-digits"),
        pytest.param(b"2500 ok\r\n", "not an SMTP reply: '2500 ok'", id="four-digits"),
        pytest.param(b"150 wait\r\n", "not an SMTP reply: '150 wait'", id="1yz"),
        pytest.param(b"650 no\r\n", "not an SMTP reply: '650 no'", id="6yz"),
        pytest.param(b"250_ok\r\n", "not an SMTP reply: '250_ok'", id="separator"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", "not an SMTP reply: 'HTTP/1.1 200 OK'", id="http"),
        pytest.param(
            b"250-a\r\n251 b\r\n",
            "reply code changes from 250 to 251 within a reply",
            id="code-changes",
        ),
        pytest.param(b"250-a\r\nb\r\n", "not an SMTP reply: 'b'", id="garbage-inside"),
    ],
)
def test_what_is_no_reply(octets, message):
    assert parse([octets]) == ([], message)
    assert parse(octet_by_octet(octets)) == ([], message)
    assert parse([b"220 hi\r\n" + octets + b"250 ok\r\n"]) == ([Reply(220, (b"hi",))], message)


@pytest.mark.parametrize(
    ("reply", "enhanced"),
    [
        pytest.param(Reply(550, (b"5.1.1 unknown",)), "5.1.1", id="plain"),
        pytest.param(Reply(250, (b"2.0.0",)), "2.0.0", id="alone"),
        pytest.param(Reply(550, (b"4.1.1 unknown",)), "", id="other-class"),
        pytest.param(Reply(550, (b"5.1.1234 x",)), "", id="too-long"),
        pytest.param(Reply(550, (b"5.1.1x",)), "", id="no-space"),
        pytest.param(Reply(550, (b"see 5.1.1",)), "", id="not-first"),
        pytest.param(Reply(354, (b"go",)), "", id="3yz"),
        pytest.param(Reply(554, (b"hello", b" 5.7.1 go away")), "5.7.1", id="second-line"),
    ],
)
def test_enhanced_status_code(reply, enhanced):
    assert reply.enhanced == enhanced


def test_classes_and_text():
    assert [(r.ok, r.permanent) for r in (Reply(c, ()) for c in (250, 354, 451, 550))] == [
        (True, False),
        (True, False),
        (False, False),
        (False, True),
    ]
    reply = Reply(550, (b"5.1.1 no\tsuch", "Bücher".encode(), b"\xff\x1b[2J\x85"))
    assert reply.text == "5.1.1 no such Bücher \\xff\\x1b[2J\\x85"
    assert str(reply) == f"550 {reply.text}"
    assert str(Reply(250, (b"",))) == "250"


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_printable_is_one_printable_line(octets):
    assert printable(octets).isprintable()
    assert printable("a\u2028\u202e\x7f\n".encode()) == "a\\u2028\\u202e\\x7f\\n"


def test_a_long_line_is_kept_in_part_and_the_next_reply_is_whole():
    octets = b"250 " + b"x" * (KEPT_OCTETS + 1000) + b"\r\n220 y\r\n"
    expected = ([Reply(250, (b"x" * KEPT_OCTETS,)), Reply(220, (b"y",))], "")
    assert parse([octets]) == expected
    assert parse([octets[i : i + 1000] for i in range(0, len(octets), 1000)]) == expected


def test_many_lines_are_kept_in_part():
    (reply,), error = parse([b"250-\r\n" * 100_000 + b"250 end\r\n"])
    assert (reply.lines, error) == ((b"",) * -(-KEPT_OCTETS // LINE_OCTETS), "")


def test_a_shortened_reply_keeps_the_lines_that_fit():
    reply = Reply(550, (b"5.1.1 no", b"x" * 100, b"", b"end"))
    assert reply.shortened(1000) == reply
    assert reply.shortened(LINE_OCTETS + 18) == Reply(550, (b"5.1.1 no", b"x" * 10))
    assert reply.shortened(4) == Reply(550, (b"5.1.",))


@pytest.mark.parametrize("line", [b"250-abc\r\n", b"x"], ids=["lines", "no-line-end"])
def test_an_endless_reply_ends_at_the_limit(line):
    octets = b"250 " + line * 2 if line == b"x" else line
    octets = octets + line * (MAX_OCTETS // len(line)) + b"250 x\r\n"
    message = f"reply longer than {MAX_OCTETS} octets"
    assert parse([octets]) == ([], message)
    assert parse([octets[i : i + 4096] for i in range(0, len(octets), 4096)]) == ([], message)


@given(
    st.lists(
        st.sampled_from(
            [b"250", b"251", b"550", b"-", b" ", b"\r\n", b"\n", b"\r", b"5.1.1", b"x", b"\xff"]
        ),
        max_size=20,
    ),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_the_cut_never_matters(tokens, data):
    """For any octets in any pieces: the same replies and the same error, and no other exception."""
    octets = b"".join(tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=5)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    assert parse(pieces) == parse([octets]) == parse(octet_by_octet(octets))
