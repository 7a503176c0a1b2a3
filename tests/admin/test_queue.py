"""minisend queue: the table, whole JSON objects, named messages."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import minisend
from minisend.admin import serving
from minisend.admin.command import main
from minisend.admin.mailq import mailq
from minisend.config.load import load
from minisend.delivery.destination import Destinations, Down
from minisend.envelope import Outcome
from minisend.spool.store import Queue

NOW = 1795440600.0
CHECKOUT = Path(minisend.__file__).parents[1]


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
    assert queue().splitlines()[1:] == [
        "0000000000000001 new          7 -            -",
        "    broken: it does not begin like a queue file",
        "1 message, 7",
    ]


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
        "4 messages, 1.4M\n"
    )


def test_rows_of_named_messages_are_in_the_order_given(four, queue):
    assert queue("0000000000000004", "0000000000000001", "0000000000000004").splitlines()[1:] == [
        "0000000000000004 failed      22 -            tester@example.org          bob@example.net",
        "    no such user",
        "0000000000000001 new         22 now          tester@example.org          carol@example.com +1",
        "2 messages, 44",
    ]


def test_table_of_an_empty_queue(queue):
    assert queue() == "the queue is empty\n"


def long(crafted):
    crafted.add(
        "0000000000000001",
        sender=b"s" * 300 + b"@example.org",
        recipients=(b"r" * 300 + b"@example.net", b"b@example.net", b"c@example.net"),
    )
    crafted.attempt(
        "0000000000000001", [Outcome(0, "delayed", "4.0.0", "why " * 80, at=NOW)], until=NOW
    )


def on_a_terminal(config, *arguments, columns, term="dumb"):
    """What ``minisend queue`` writes to a terminal of this width, as a process."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "minisend", "-C", str(config), "queue", *arguments],
        cwd=CHECKOUT,
        env={**environment, "TERM": term},
        stdin=subprocess.DEVNULL,
        stdout=inner,
        stderr=subprocess.PIPE,
    ) as program:
        os.close(inner)
        octets = b""
        try:
            while piece := os.read(outer, 65536):
                octets += piece
        except OSError:
            pass  # EIO: the other side is closed
        os.close(outer)
        assert program.stderr is not None
        assert (program.stderr.read(), program.wait()) == (b"", 0)
    return octets.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [10, 60, 79, 80, 200])
def test_table_fits_the_terminal(crafted, columns):
    """Every line, down to 60 columns, below which a table is none."""
    long(crafted)
    lines = on_a_terminal(crafted.config, columns=columns).splitlines()
    assert max(map(len, lines)) <= max(columns, 60)
    assert lines[1].endswith("… +2")
    assert lines[1].index("s…") < lines[1].index(" rrr")
    assert lines[2].endswith("…")


def test_nothing_is_cut_where_no_terminal_reads(crafted, queue, monkeypatch):
    long(crafted)
    monkeypatch.setenv("COLUMNS", "60")
    row, why = queue().splitlines()[1:3]
    assert row == (
        "0000000000000001 deferred    22 now          "
        + "s" * 300
        + "@example.org "
        + "r" * 300
        + "@example.net +2"
    )
    assert why == "    " + "why " * 80


@pytest.mark.parametrize(("term", "coloured"), [("xterm", True), ("dumb", False)])
def test_colour_of_a_state_does_not_move_the_columns(crafted, term, coloured):
    crafted.add("0000000000000001")
    heading, row, _ = on_a_terminal(crafted.config, columns=80, term=term).splitlines()
    assert ("\x1b[36mnew     \x1b[0m" in row) == coloured
    plain = re.sub(r"\x1b\[\d+m", "", row)
    assert plain == "0000000000000001 new         22 now          tester@example.o… bob@example.net"
    assert re.sub(r"\x1b\[\d+m", "", heading).index("TO") == plain.index("bob")


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("日本語@例え.jp", 14, "日本語@例え.jp"),
        ("日本語@例え.jp", 13, "日本語@例え.…"),
        ("日本語@例え.jp", 12, "日本語@例え…"),
        ("日本語@例え.jp", 11, "日本語@例…"),
        ("日本語@例え.jp", 10, "日本語@例…"),
        ("e\u0301" * 5, 5, "e\u0301" * 5),
    ],
)
def test_cut_counts_columns_not_characters(text, columns, shown):
    from minisend.admin.terminal import cut, width

    assert cut(text, columns) == shown
    assert width(shown) <= columns


@pytest.mark.parametrize("command", [["queue"], ["queue", "--json"]])
def test_rows_are_written_as_files_are_read(crafted, monkeypatch, command):
    """The first is out before the second is opened, the rest in pieces: 100,000 messages take no memory and no wait."""
    from minisend.admin import terminal
    from minisend.spool.store import Queue

    happened = []
    for number in range(4):
        crafted.add(f"{number:016x}", recipients=(b"r" * 40_000 + b"@example.net",))
    read = Queue.read
    monkeypatch.setattr(
        Queue, "read", lambda self, place: happened.append("read") or read(self, place)
    )
    monkeypatch.setattr(terminal, "write", lambda fd, text: happened.append("write"))
    main(command, str(crafted.config))
    assert happened == ["read", "write", "read", "read", "write", "read", "write"]


def down(crafted, name, reason, at=NOW - 60):
    Destinations(str(crafted.path)).put(
        name,
        Down(
            since=NOW - 600,
            failures=2,
            counted=(NOW - 600, at),
            until=int(NOW) + 2100,
            status="4.4.1",
            reason=reason,
            remote_mta="mx.example.net[192.0.2.1]:25",
            diagnostic="",
            command="",
            at=at,
        ),
    )


@pytest.fixture
def put_off(crafted, refused):
    """Two recipients of three wait for destinations that were not tried for them, of which one is down."""
    crafted.add(
        "0000000000000001", recipients=(b"a@example.net", b"b@example.com", b"c@example.org")
    )
    crafted.attempt("0000000000000001", [refused(2)], until=NOW + 2100)
    for domain in ("example.net", "example.org"):
        down(crafted, domain, f"connect to mx.{domain}: No route to host")
    return crafted


DOWN = "connect to mx.example.net: No route to host"


def test_tables_align_by_columns_not_characters():
    from minisend.admin.terminal import aligned

    assert aligned(
        [("ok", "/home/東京", "a"), ("fail", "/home/tokyo", ""), ("-", "e\u0301", "b")]
    ) == [
        "ok    /home/東京   a",
        "fail  /home/tokyo",
        "-     e\u0301            b",
    ]


def test_who_waits_for_a_destination_that_is_down_is_told_why(put_off, queue):
    """The reason of the status file stands only for those who have no outcome of their own."""
    assert json.loads(queue("--json"))["recipients"] == [
        {
            "address": "a@example.net",
            "delay_reason": DOWN,
            "action": "delayed",
            "status": "4.4.1",
            "remote_mta": "mx.example.net[192.0.2.1]:25",
            "diagnostic": "",
        },
        {
            "address": "b@example.com",
            "action": "",
            "status": "",
            "remote_mta": "",
            "diagnostic": "",
        },
        {
            "address": "c@example.org",
            "delay_reason": "connect to 127.0.0.1:2525: Connection refused",
            "action": "delayed",
            "status": "4.4.1",
            "remote_mta": "",
            "diagnostic": "",
        },
    ]
    assert queue().splitlines()[2] == f"    {DOWN}"
    assert queue("0000000000000001").splitlines()[2] == f"    {DOWN}"


def test_mailq_says_which_destination_is_down(put_off, capfd):
    capfd.readouterr()
    assert mailq(str(put_off.config)) == 0
    assert re.findall(r"\((.*)\)\n|^ +(\w@.*)\n", capfd.readouterr().out, re.MULTILINE) == [
        (f"{DOWN}; next attempt 14:05", ""),
        ("", "a@example.net"),
        ("next attempt 14:05", ""),
        ("", "b@example.com"),
        ("connect to 127.0.0.1:2525: Connection refused; next attempt 14:05", ""),
        ("", "c@example.org"),
    ]


def test_mailq_lists_also_where_the_configuration_has_a_mistake(put_off, capfd):
    with put_off.config.open("a") as config:
        config.write('\n[delivery]\nmx_port = "x"\n')
    capfd.readouterr()
    assert mailq(str(put_off.config)) == 0
    assert "(next attempt 14:05)\n" in capfd.readouterr().out


def test_show_says_which_destination_is_down(put_off, capfd):
    assert main(["show", "--headers", "0000000000000001"], str(put_off.config)) == 0
    shown = capfd.readouterr().out
    assert (
        "Recipients:\n"
        "  a@example.net: deferred (4.4.1)\n"
        f"     {DOWN} (Nov 23 13:29:00)\n"
        "  b@example.com: not tried yet\n"
        "  c@example.org: deferred (4.4.1)\n"
        "History:\n"
    ) in shown
    assert main(["show", "--json", "0000000000000001"], str(put_off.config)) == 0
    told = json.loads(capfd.readouterr().out)
    assert [(r["state"], r["status"]) for r in told["envelope"]["recipients"]] == [
        ("deferred", "4.4.1"),
        ("not tried yet", ""),
        ("deferred", "4.4.1"),
    ]


@pytest.mark.parametrize(
    ("outcome_at", "until", "told"),
    [
        pytest.param(NOW - 120, NOW + 2100, True, id="put off"),
        pytest.param(NOW - 120, NOW - 5, True, id="to be put off when its time has come"),
        pytest.param(NOW - 30, NOW + 2100, False, id="tried since"),
        pytest.param(NOW - 120, NOW + 9000, False, id="has a wait of its own"),
    ],
)
def test_who_was_put_off_since_the_last_attempt_is_told_why(
    crafted, queue, refused, outcome_at, until, told
):
    """Not what was wrong then and has been mended."""
    crafted.add("0000000000000001", recipients=(b"a@example.net",))
    outcome = refused(0)
    outcome.at = outcome_at
    crafted.attempt("0000000000000001", [outcome], until=until)
    down(crafted, "example.net", DOWN)
    down(crafted, "example.org", "something else", at=NOW - 10)
    reason = json.loads(queue("--json"))["recipients"][0]["delay_reason"]
    assert reason == (DOWN if told else outcome.reason)
    # The same is told of a queue that is another account's.
    of = serving._reasons(load(str(crafted.config), os.environb, os.getuid(), os.geteuid()))
    with Queue(str(crafted.path)) as seen:
        (place,) = seen.places("cur")
        with seen.read(place) as entry:
            assert [outcome.reason for outcome in of(entry)] == [DOWN] * told


def test_the_rate_is_no_reason_for_who_was_tried(crafted, queue, refused):
    with crafted.config.open("a") as config:
        config.write('[smarthost]\nhost = "192.0.2.1"\nrate = "1/m"\n')
    crafted.add("0000000000000001", recipients=(b"a@example.net",))
    outcome = refused(0)
    outcome.at = NOW - 120
    crafted.attempt("0000000000000001", [outcome], until=NOW - 5)
    down(crafted, "example.net", DOWN)
    reason = json.loads(queue("--json"))["recipients"][0]["delay_reason"]
    assert reason == outcome.reason


@pytest.mark.parametrize("state", ["hold", "new"])
def test_what_waits_for_no_destination_has_no_such_reason(crafted, queue, state):
    crafted.add("0000000000000001", recipients=(b"a@example.net",))
    if state == "hold":
        crafted.attempt("0000000000000001", [], state="hold")
    down(crafted, "example.net", DOWN)
    assert "delay_reason" not in json.loads(queue("--json"))["recipients"][0]


def test_a_status_file_is_read_once_for_a_listing(crafted, queue, monkeypatch):
    read = []
    get = Destinations.get
    monkeypatch.setattr(
        Destinations, "get", lambda self, name: read.append(name) or get(self, name)
    )
    for number in range(6):
        crafted.add(f"{number:016x}", recipients=(b"%d@example.%d" % (number, number % 2),))
        crafted.attempt(f"{number:016x}", [], until=NOW + number)
    queue()
    assert read == ["example.0", "example.1"]
    read.clear()
    with crafted.config.open("a") as config:
        config.write('\n[smarthost]\nhost = "smtp.example.org"\n')
    queue()
    assert read == ["[smtp.example.org]:587"]


@pytest.mark.parametrize("length", [1, 79, 80, 81, 300])
def test_cut(length):
    from minisend.admin.terminal import cut

    text = "x" * length
    assert cut(text, 80) == (text if length <= 80 else "x" * 79 + "…")


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
    from minisend.admin.queue import size

    assert size(octets) == shown


@pytest.mark.parametrize("queue_id", ["000000000000000f", "", ".", "..", "../new/0000000000000001"])
def test_id_that_is_not_there(crafted, queue_id):
    from minisend.errors import UsageError

    for make in (False, True):
        if make:
            crafted.add("0000000000000001")
        with pytest.raises(
            UsageError, match=re.escape(f"{queue_id}: not in the queue (see minisend queue)")
        ):
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
