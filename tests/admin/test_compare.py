"""The demo's judgement: what it must accept, and that nothing else passes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisend.admin.compare import compare, split

SENT = b"To: a@example.net, b\nBcc: c@example.net\nSubject: x\n folded\n\nfirst\n.\nlast\n"
ARRIVED = (
    b"Received: by host\r\n\tsomewhen\r\nTo: a@example.net, b@demo.example\r\nSubject: x\r\n folded\r\n"
    b"Date: now\r\n\r\nfirst\r\n.\r\nlast\r\n"
)


def problems(sent, arrived):
    return compare(sent, arrived, b"demo.example").problems


def test_what_must_differ():
    result = compare(SENT, ARRIVED, b"demo.example")
    assert (result.problems, result.kept, result.added, result.removed) == (
        [],
        2,
        ["Received", "Date"],
        ["Bcc"],
    )


def test_fields_that_have_to_go():
    sent = b"Return-Path: <a@b>\nDate: \nContent-Length: 7\nresent-bcc: c@d\nRESENT-FROM:\n \n\nx\n"
    result = compare(sent, b"Date: now\r\n\r\nx\r\n", b"demo.example")
    assert (result.problems, result.kept, result.added, result.removed) == (
        [],
        0,
        ["Date"],
        ["Return-Path", "Date", "Content-Length", "resent-bcc", "RESENT-FROM"],
    )


@pytest.mark.parametrize(
    "sent",
    [
        SENT.replace(b"\n", b"\r\n"),
        SENT.replace(b"\n", b"\r"),
        SENT.replace(b"first\n", b"fi\0rst\r\n"),
        SENT[:-1],
        b"From someone Mon Nov 23 13:26:57 2026\n" + SENT,
    ],
    ids=["CRLF", "CR", "NUL and mixed", "no last line end", "From line"],
)
def test_other_forms_of_the_same_message(sent):
    assert problems(sent, ARRIVED) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"first\r\n", b"", "line 1 of the body differs: sent b'first', arrived b'.'"),
        (b"\r\n.\r\n", b"\r\n..\r\n", "line 2 of the body differs: sent b'.', arrived b'..'"),
        (b"last\r\n", b"last \r\n", "line 3 of the body differs: sent b'last', arrived b'last '"),
        (b"last", b"lost", "line 3 of the body differs: sent b'last', arrived b'lost'"),
        (b"last\r\n", b"last\r\n\r\n", "the body has 4 lines in place of 3"),
        (b"first\r\n", b"first\n", "a line that arrived does not end with CRLF"),
        (b"first\r\n", b"first\r\r\n", "a line that arrived does not end with CRLF"),
        (b"first", b"first\0", "a NUL arrived"),
        (b"Date:", b"Bcc: c@example.net\r\nDate:", "Bcc arrived"),
        (b"Date:", b"RESENT-BCC: c@example.net\r\nDate:", "RESENT-BCC arrived"),
        (b"Subject: x", b"Subject:  x", "the field Subject did not arrive as it was sent"),
        (b" folded", b"folded:", "the field Subject did not arrive as it was sent"),
        (b"Subject: x\r\n folded\r\n", b"", "the field Subject did not arrive as it was sent"),
        (b"b@demo.example", b"b@other.example", "the field To did not arrive as it was sent"),
        (b"b@demo.example", b"", "the field To did not arrive as it was sent"),
    ],
)
def test_any_other_difference_is_found(old, new, problem):
    assert old in ARRIVED
    assert problem in problems(SENT, ARRIVED.replace(old, new))


def test_order_of_fields_counts():
    assert problems(b"A: 1\nB: 2\n\n", b"B: 2\r\nA: 1\r\n\r\n") == [
        "the field B did not arrive as it was sent"
    ]


@pytest.mark.parametrize(
    ("message", "fields", "body"),
    [
        (b"", [], b""),
        (b"\nbody\n", [], b"body\n"),
        (b"just text\n", [], b"just text\n"),
        (b" text\n", [], b" text\n"),
        (b"A: 1\ntext\n", [b"A: 1"], b"text\n"),
        (b"A: 1\n\t2\nB : 3\n\n\nx", [b"A: 1\n\t2", b"B : 3"], b"\nx"),
        (b"A: 1", [b"A: 1"], b""),
        (b"From a\n>From b\nA: 1\n", [b"A: 1"], b""),
        (b"A: 1\nFrom b\n", [b"A: 1"], b"From b\n"),
    ],
)
def test_split(message, fields, body):
    assert split(message) == (fields, body)


lines = st.binary(max_size=12).map(lambda octets: octets.translate(None, b"\r\n\0"))


@settings(max_examples=150, deadline=None)
@given(
    body=st.lists(lines, max_size=6),
    cut=st.integers(0, 60),
    with_octet=st.sampled_from([b"", b"z"]),
)
def test_no_change_of_a_body_passes(body, cut, with_octet):
    """One octet more or one less than was sent, anywhere in the body, is never taken for the same."""
    head = b"Subject: x\n\n"
    sent = b"".join(line + b"\n" for line in [*body, b"end"])
    arrived = (head + sent).replace(b"\n", b"\r\n")
    assert problems(head + sent, arrived) == []
    position = len(b"Subject: x\r\n\r\n") + cut
    rest = arrived[position:] if with_octet else arrived[position + 1 :]
    assert (position >= len(arrived) and not with_octet) or problems(
        head + sent, arrived[:position] + with_octet + rest
    )
