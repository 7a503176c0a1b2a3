"""minisend queue: the table, whole JSON objects, one message."""

import json
import os
import pty
import re

import pytest

from minisend.admin.command import main
from minisend.envelope import FAILED, RELAYED, Outcome

NOW = 1795440600.0


@pytest.fixture
def queue(crafted, capfd, monkeypatch):
    """Runs ``minisend queue`` and returns what it writes."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        capfd.readouterr()
        assert main(["queue", *arguments], str(crafted.config)) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture
def four(crafted, refused):
    """One message in each state; the deferred one was attempted twice."""
    crafted.add("0000000000000001", recipients=(b"carol@example.com", b"root"))
    crafted.add(
        "0000000000000002", sender=b"", recipients=(b"carol@example.com", b"bob@example.net")
    )
    crafted.attempt(
        "0000000000000002",
        [
            refused(0),
            Outcome(
                1,
                RELAYED,
                "2.0.0",
                "taken",
                remote_mta="mx.example.net[192.0.2.1]:25",
                diagnostic="smtp; 250 2.0.0 ok",
                command="end of data",
                at=NOW - 90,
            ),
        ],
        until=NOW - 60,
    )
    crafted.attempt("0000000000000002", [refused(0)], until=NOW + 2100)
    crafted.add("0000000000000003", message=b"x" * 1_500_000)
    crafted.attempt("0000000000000003", [], state="hold")
    crafted.add("0000000000000004")
    crafted.attempt(
        "0000000000000004",
        [Outcome(0, FAILED, "5.1.1", "no such user", at=NOW - 5)],
        state="failed",
    )


def test_json_of_an_empty_queue_is_nothing(queue):
    assert queue("--json") == ""


def test_json_objects_whole(four, queue):
    nothing_yet = {"action": "", "status": "", "remote_mta": "", "diagnostic": ""}
    refusal = {
        "delay_reason": "connect to 127.0.0.1:2525: Connection refused",
        "action": "delayed",
        "status": "4.4.1",
        "remote_mta": "",
        "diagnostic": "",
    }
    assert [json.loads(line) for line in queue("--json").splitlines()] == [
        {
            "queue_name": "incoming",
            "queue_id": "0000000000000001",
            "arrival_time": int(NOW) - 183,
            "message_size": 22,
            "sender": "tester@example.org",
            "recipients": [
                {"address": "carol@example.com", **nothing_yet},
                {"address": "root", **nothing_yet},
            ],
            "state": "new",
            "attempts": 0,
            "next_attempt": int(NOW) - 183,
        },
        {
            "queue_name": "deferred",
            "queue_id": "0000000000000002",
            "arrival_time": int(NOW) - 183,
            "message_size": 22,
            "sender": "MAILER-DAEMON",
            "recipients": [{"address": "carol@example.com", **refusal}],
            "state": "deferred",
            "attempts": 2,
            "next_attempt": int(NOW) + 2100,
        },
        {
            "queue_name": "hold",
            "queue_id": "0000000000000003",
            "arrival_time": int(NOW) - 183,
            "message_size": 1_500_000,
            "sender": "tester@example.org",
            "recipients": [{"address": "bob@example.net", **nothing_yet}],
            "state": "hold",
            "attempts": 0,
            "next_attempt": None,
        },
        {
            "queue_name": "failed",
            "queue_id": "0000000000000004",
            "arrival_time": int(NOW) - 183,
            "message_size": 22,
            "sender": "tester@example.org",
            "recipients": [
                {
                    "address": "bob@example.net",
                    "delay_reason": "no such user",
                    "action": "failed",
                    "status": "5.1.1",
                    "remote_mta": "",
                    "diagnostic": "",
                }
            ],
            "state": "failed",
            "attempts": 1,
            "next_attempt": None,
        },
    ]


def test_json_of_one_message_has_its_history(four, queue):
    (line,) = queue("--json", "0000000000000002").splitlines()
    refusal = {
        "time": int(NOW) - 60,
        "address": "carol@example.com",
        "action": "delayed",
        "status": "4.4.1",
        "reason": "connect to 127.0.0.1:2525: Connection refused",
        "remote_mta": "",
        "command": "",
        "diagnostic": "",
    }
    assert json.loads(line)["history"] == [
        {"attempt": 1, **refusal},
        {
            "attempt": 1,
            "time": int(NOW) - 90,
            "address": "bob@example.net",
            "action": "relayed",
            "status": "2.0.0",
            "reason": "taken",
            "remote_mta": "mx.example.net[192.0.2.1]:25",
            "command": "end of data",
            "diagnostic": "smtp; 250 2.0.0 ok",
        },
        {"attempt": 2, **refusal},
    ]


def test_json_of_a_broken_file(crafted, queue):
    crafted.add("0000000000000001")
    crafted.file("new", "0000000000000001").write_bytes(b"rubbish")
    os.utime(crafted.file("new", "0000000000000001"), (NOW, NOW))
    told = {
        "queue_name": "incoming",
        "queue_id": "0000000000000001",
        "arrival_time": int(NOW),
        "message_size": 7,
        "sender": "",
        "recipients": [],
        "state": "new",
        "attempts": 0,
        "next_attempt": None,
        "error": "broken: it does not begin like a queue file",
    }
    assert json.loads(queue("--json")) == told
    assert json.loads(queue("--json", "0000000000000001")) == {**told, "history": []}
    assert "Problem:      broken: it does not begin like a queue file\n" in queue(
        "0000000000000001"
    )


def test_json_is_ascii_whatever_the_addresses(crafted, queue):
    crafted.add(
        "0000000000000001", sender=b"\xff\x1b@example.org", recipients=("ø@example.net".encode(),)
    )
    out = queue("--json")
    assert out.isascii()
    assert json.loads(out)["sender"] == "\\xff?@example.org"
    assert json.loads(out)["recipients"][0]["address"] == "ø@example.net"


def test_table_whole(four, queue):
    assert queue() == (
        "ID               STATE     SIZE NEXT         FROM                        TO\n"
        "0000000000000001 new         22 now          tester@example.org          carol@example.com +1\n"
        "0000000000000002 deferred    22 14:05        MAILER-DAEMON               carol@example.com\n"
        "    connect to 127.0.0.1:2525: Connection refused\n"
        "0000000000000003 hold      1.4M -            tester@example.org          bob@example.net\n"
        "0000000000000004 failed      22 -            tester@example.org          bob@example.net\n"
        "    no such user\n"
        "4 messages\n"
    )


def test_table_of_an_empty_queue(queue):
    assert queue() == "the queue is empty\n"


@pytest.mark.parametrize("columns", [10, 60, 79, 80, 200])
def test_table_fits_the_terminal(crafted, queue, monkeypatch, columns):
    """Every line, down to 60 columns, below which a table is none."""
    crafted.add(
        "0000000000000001",
        sender=b"s" * 300 + b"@example.org",
        recipients=(b"r" * 300 + b"@example.net", b"b@example.net", b"c@example.net"),
    )
    crafted.attempt(
        "0000000000000001", [Outcome(0, "delayed", "4.0.0", "why " * 80, at=NOW)], until=NOW
    )
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = queue().splitlines()
    assert max(map(len, lines)) <= max(columns, 60)
    assert lines[1].endswith("… +2")
    assert lines[1].index("s…") < lines[1].index(" rrr")


@pytest.mark.parametrize("length", [1, 79, 80, 81, 300])
def test_cut(length):
    from minisend.admin.queue import _cut

    text = "x" * length
    assert _cut(text, 80) == (text if length <= 80 else "x" * 79 + "…")


@pytest.mark.parametrize(
    ("octets", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (10_188, "9.9K"),
        (10_189, "10K"),
        (1_023_487, "999K"),
        (1_023_489, "1.0M"),
        (50 << 20, "50M"),
        (5 << 40, "5.0T"),
        (9999 << 40, "9999T"),
    ],
)
def test_sizes(octets, shown):
    from minisend.admin.queue import _size

    assert _size(octets) == shown


def test_page_of_one_message_whole(four, queue):
    assert queue("0000000000000002") == (
        "Queue id:     0000000000000002\n"
        "State:        deferred\n"
        "Arrived:      Mon, 23 Nov 2026 13:26:57 +0000\n"
        "Size:         22 octets\n"
        "Next attempt: 14:05\n"
        "From:         MAILER-DAEMON\n"
        "Submitted by: tester (uid 1000)\n"
        "Recipients:\n"
        "  carol@example.com: deferred\n"
        "  bob@example.net: sent\n"
        "Attempts:\n"
        "  1. Nov 23 13:29:00  carol@example.com\n"
        "     delayed 4.4.1: connect to 127.0.0.1:2525: Connection refused\n"
        "  1. Nov 23 13:28:30  bob@example.net\n"
        "     relayed 2.0.0: taken\n"
        "     mx.example.net[192.0.2.1]:25, end of data, smtp; 250 2.0.0 ok\n"
        "  2. Nov 23 13:29:00  carol@example.com\n"
        "     delayed 4.4.1: connect to 127.0.0.1:2525: Connection refused\n"
    )
    assert "  bob@example.net: failed\n" in queue("0000000000000004")
    assert "  root: not tried yet\n" in queue("0000000000000001")


@pytest.mark.parametrize("queue_id", ["000000000000000f", "", ".", "..", "../new/0000000000000001"])
def test_id_that_is_not_there(crafted, queue_id):
    from minisend.errors import UsageError

    for make in (False, True):
        if make:
            crafted.add("0000000000000001")
        with pytest.raises(UsageError, match=re.escape(f"{queue_id}: not in the queue")):
            main(["queue", queue_id], str(crafted.config))


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_colour_only_where_it_is_wanted(environment, coloured, monkeypatch):
    from minisend.admin import terminal

    monkeypatch.setattr(
        terminal.posix, "environ", {k.encode(): v.encode() for k, v in environment.items()}
    )
    outer, inner = pty.openpty()
    pipe = os.pipe()
    try:
        expected = "\x1b[31mfailed\x1b[0m" if coloured else "failed"
        assert terminal.Paint(inner)(terminal.RED, "failed") == expected
        assert terminal.Paint(pipe[1])(terminal.RED, "failed") == "failed"
    finally:
        for fd in (outer, inner, *pipe):
            os.close(fd)
