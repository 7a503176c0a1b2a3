"""minisend log: a message's story from its queue file, the journal and the files of syslog."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest

from minisend.admin import logs as module
from minisend.admin import story
from minisend.admin.command import main
from minisend.envelope import FAILED, RELAYED, Outcome
from minisend.log import line

NOW = 1795440600.0  # 2026-11-23 13:30:00 UTC
ID = "0000000000000002"
REPORT = "00000000000000aa"


class Logs:
    """A journal and log files of this test alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journalctl = directory / "journalctl"
        self.asked = directory / "asked"

    def journal(self, *records: dict, code: int = 0, said: str = "", lines: str = "") -> None:
        """There is a journalctl, which writes these."""
        out = self.directory / "records"
        out.write_text("".join(json.dumps(record) + "\n" for record in records) + lines)
        self.journalctl.write_text(
            f"#!/bin/sh\necho \"$@\" > '{self.asked}'\ncat '{out}'\necho '{said}' >&2\nexit {code}\n"
        )
        self.journalctl.chmod(0o755)

    def file(self, name: str, *lines: str | bytes, written: float = NOW) -> Path:
        path = self.directory / name
        octets = b"".join(
            (text.encode() if isinstance(text, str) else text) + b"\n" for text in lines
        )
        path.write_bytes(gzip.compress(octets) if name.endswith(".gz") else octets)
        os.utime(path, (written, written))
        return path


def record(at: float, text: object, uid: int | None = None, **more: object) -> dict[str, object]:
    """An entry as ``journalctl -o json`` writes it."""
    return {
        "__REALTIME_TIMESTAMP": str(round(at * 1e6)),
        "_UID": str(os.geteuid() if uid is None else uid),
        "MESSAGE": text,
        "PRIORITY": "6",
        **more,
    }


def refusal(at: float, arrived: float = NOW - 183, to: str = "carol@example.com") -> str:
    return line(
        ID,
        **{"from": "tester@example.org"},
        to=to,
        relay="none",
        delay=f"{at - arrived:.2f}",
        dsn="4.4.1",
        status="delayed",
        reason="connect to 127.0.0.1:2525: Connection refused",
    )


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """No journal and no log file, until the test makes them."""
    made = Logs(tmp_path)
    monkeypatch.setattr(module, "JOURNALCTL", str(made.journalctl))
    monkeypatch.setattr(
        module, "LOG_FILES", tuple(f"{tmp_path}/{name}" for name in ("mail.log", "messages"))
    )
    return made


@pytest.fixture
def told(crafted, capfd, logs, monkeypatch):
    """Runs ``minisend log`` and returns what it writes."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        capfd.readouterr()
        assert main(["log", *arguments], str(crafted.config)) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture
def events(told):
    """``minisend log --json``, as objects."""
    return lambda *arguments: [json.loads(text) for text in told("--json", *arguments).splitlines()]


@pytest.fixture
def attempted(crafted, refused):
    """Two recipients, one of them served at the first attempt; 90 and 60 seconds ago."""
    crafted.add(ID, recipients=(b"carol@example.com", b"root"))
    crafted.attempt(
        ID,
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
                at=NOW - 90.0004,
            ),
        ],
        until=NOW + 2100,
    )


ARRIVED = {
    "time": NOW - 183,
    "source": "queue",
    "event": "arrived",
    "queue_id": ID,
    "from": "tester@example.org",
    "recipients": ["carol@example.com", "root"],
    "size": 22,
    "uid": 1000,
    "state": "deferred",
    "next_attempt": NOW + 2100,
}
RELAY = {
    "time": NOW - 90,
    "source": "queue",
    "event": "relayed",
    "queue_id": ID,
    "from": "tester@example.org",
    "to": "root",
    "relay": "mx.example.net[192.0.2.1]:25",
    "delay": 93.0,
    "dsn": "2.0.0",
    "reason": "taken",
    "attempt": 1,
    "command": "end of data",
    "diagnostic": "smtp; 250 2.0.0 ok",
}
REFUSAL = {
    "time": NOW - 60,
    "source": "queue",
    "event": "delayed",
    "queue_id": ID,
    "from": "tester@example.org",
    "to": "carol@example.com",
    "relay": "none",
    "delay": 123.0,
    "dsn": "4.4.1",
    "reason": "connect to 127.0.0.1:2525: Connection refused",
    "attempt": 1,
    "command": "",
    "diagnostic": "",
}


def logged(text: str, at: float, source: str) -> dict[str, object]:
    """The object of a line by ``refusal``."""
    keys = ("queue_id", "from", "to", "relay", "delay", "dsn", "reason")
    whole = {**REFUSAL, "time": at, "source": source, "delay": round(at - NOW + 183, 2)}
    return {key: whole[key] for key in ("time", "source", "event", *keys)}


def test_the_queue_alone(attempted, events):
    assert events(ID) == [ARRIVED, RELAY, REFUSAL]


def test_the_journal_alone_is_asked_for_the_id(events, logs):
    octets = list(str(refusal(NOW - 60)).encode())
    logs.journal(record(NOW - 9, refusal(NOW - 9)), record(NOW - 60, octets))
    assert events(ID) == [
        logged(ID, NOW - 60, "journal"),
        logged(ID, NOW - 9, "journal"),
    ]
    assert logs.asked.read_text() == f"--output=json --all --quiet MINISEND_QUEUE_ID={ID}\n"


def test_what_both_tell_is_told_once(attempted, events, logs):
    """Also where the log has a bare name qualified; a log line for each outcome that the file does not have stays."""
    relayed = line(
        ID,
        **{"from": "tester@example.org"},
        to="root@host.example.org",
        relay="mx.example.net[192.0.2.1]:25",
        delay="93.01",
        dsn="2.0.0",
        status="relayed",
        reason="taken",
    )
    report = line(ID, event="delay report", to="tester@example.org", report=REPORT)
    logs.journal(
        record(NOW - 89, relayed),
        record(NOW - 59, refusal(NOW - 60)),
        record(NOW - 58, refusal(NOW - 58)),
        record(NOW - 57, refusal(NOW - 60, to="carol@example.net")),
        record(NOW - 56, report),
    )
    assert events(ID) == [
        ARRIVED,
        RELAY,
        REFUSAL,
        logged(ID, NOW - 58, "journal"),
        {**logged(ID, NOW - 57, "journal"), "to": "carol@example.net", "delay": 123.0},
        {
            "time": NOW - 56,
            "source": "journal",
            "event": "delay report",
            "queue_id": ID,
            "to": "tester@example.org",
            "report": REPORT,
        },
    ]


def test_the_journal_of_others_and_what_is_no_line_of_ours(crafted, events, logs):
    """Everybody may log everything: the owner of the spool and root are believed, and only what is about the message."""
    crafted.add("0000000000000001")
    good = refusal(NOW - 60)
    stranger = os.stat(crafted.path).st_uid + 1
    logs.journal(
        record(NOW - 1, good, uid=stranger),
        record(NOW - 2, "free text"),
        record(NOW - 3, line("0000000000000003", a=1)),
        record(NOW - 4, None),
        record(NOW - 5, [good, "twice"]),
        {**record(NOW - 6, good), "_UID": None},
        {**record(NOW - 7, good), "__REALTIME_TIMESTAMP": "soon"},
        record(NOW - 60, good, uid=0),
        lines='[1]\n7\nnull\n{"__CURSOR": "x"}\nno json\n',
    )
    assert events(ID) == [logged(ID, NOW - 60, "journal")]


TAGGED = [
    pytest.param("Nov 23 13:29:00 host minisend[7]: ", id="RFC 3164"),
    pytest.param("Nov 23 13:29:00 minisend: ", id="no host, no pid"),
    pytest.param("Nov 23 13:29:00 host mail.info minisend[7]: ", id="busybox"),
    pytest.param("2026-11-23T14:29:00.000000+01:00 host minisend[7]: ", id="RFC 3339"),
    pytest.param("2026-11-23T13:29:00Z host minisend[7]: ", id="RFC 3339, UTC"),
]


@pytest.mark.parametrize("head", TAGGED)
def test_forms_of_log_files(events, logs, head):
    path = logs.file("mail.log", "rubbish \x00", head + refusal(NOW - 60), "more")
    assert events(ID) == [logged(ID, NOW - 60, str(path))]


@pytest.mark.parametrize(
    "text",
    [
        f"Nov 23 13:29:00 host evil[7]: x minisend[7]: {refusal(NOW - 60)}",
        f"Nov 23 13:29:00 host evil: Nov 23 13:29:00 host minisend[7]: {refusal(NOW - 60)}",
        f"Nov 23 13:29:00 host minisend[7]: 0000000000000003: to={ID}",
        f"Nov 23 13:29:00 host minisend[7]: {ID} is free text",
        f"Nov 31 13:29:00 host minisend[7]: {ID}: a=b",
        f"Nix 23 13:29:00 host minisend[7]: {ID}: a=b",
        f"2026-13-23T13:29:00Z host minisend[7]: {ID}: a=b",
    ],
)
def test_lines_that_are_not_ours(crafted, logs, text):
    logs.file("mail.log", text)
    with pytest.raises(story.NothingFound):
        main(["log", ID], str(crafted.config))


def test_rotated_files_and_the_order_of_time(events, logs):
    day = 86400
    ends = {"mail.log": 0, "mail.log.1": 1, "mail.log.2.gz": 2, "mail.log-20261120": 3}
    paths = {}
    for name, days in ends.items():
        at = NOW - days * day
        stamp = time.strftime("%b %e %H:%M:%S", time.gmtime(at))
        text = f"{stamp} h minisend[7]: {refusal(at)}"
        paths[name] = str(logs.file(name, text, written=at))
    for name in ("mail.log.old", "mail.log~", "mail.logic", "messages"):
        logs.file(name, f"Nov 23 13:29:00 h minisend[7]: {refusal(NOW - 60)}")
    assert events(ID) == [
        logged(ID, NOW - days * day, paths[name]) for name, days in reversed(ends.items())
    ]


def test_the_next_file_when_one_has_nothing(events, logs):
    """And an empty journal is not the end of the search."""
    logs.journal()
    logs.file("mail.log", "Nov 23 13:29:00 h other[7]: x")
    path = logs.file("messages", f"Nov 23 13:29:00 h minisend[7]: {refusal(NOW - 60)}")
    assert events(ID) == [logged(ID, NOW - 60, str(path))]


@pytest.mark.parametrize(
    ("stamp", "written", "expected"),
    [
        ("Dec 31 23:59:59", (2027, 1, 1), (2026, 12, 31, 23, 59, 59)),
        ("Jan  1 00:00:01", (2027, 1, 1), (2027, 1, 1, 0, 0, 1)),
        ("Feb 29 12:00:00", (2028, 3, 1), (2028, 2, 29, 12, 0, 0)),
        ("Feb 29 12:00:00", (2029, 1, 1), (2028, 2, 29, 12, 0, 0)),
        ("Nov 24 01:00:00", (2026, 11, 23, 13), (2026, 11, 24, 1, 0, 0)),
    ],
)
def test_the_year_of_a_stamp(stamp, written, expected):
    import calendar

    pad = (0,) * 6
    end = calendar.timegm((*written, *pad)[:6])
    assert module._stamp(None, stamp, end) == calendar.timegm((*expected, *pad)[:6])


def test_page_whole(attempted, told, logs):
    report = line(ID, event="delay report", to="tester@example.org", report=REPORT)
    room = line(ID, event="postponed", status="4.3.1", reason="no room for outcomes: " + "x " * 40)
    logs.journal(record(NOW - 50, room), record(NOW - 40, report), record(NOW - 39, report))
    assert told(ID) == (
        "Message 0000000000000002\n"
        "Nov 23 13:26:57  arrived       from tester@example.org, 22 octets, for carol@example.com, root\n"
        "Nov 23 13:28:30  relayed       root 2.0.0 by mx.example.net[192.0.2.1]:25 after 93.00 s\n"
        "                 taken\n"
        "                 smtp; 250 2.0.0 ok\n"
        "Nov 23 13:29:00  delayed       carol@example.com 4.4.1 after 123.00 s\n"
        "                 connect to 127.0.0.1:2525: Connection refused\n"
        "Nov 23 13:29:10  postponed     4.3.1\n"
        "                 no room for outcomes: x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x\n"
        "                 x x x x x x x x x\n"
        f"Nov 23 13:29:20  delay report  tester@example.org report={REPORT}\n"
        f"Nov 23 13:29:21  delay report  tester@example.org report={REPORT}\n"
        "In the queue: deferred, next attempt 14:05\n"
        f"Its report is a message of its own: minisend log {REPORT}\n"
    )


def test_page_of_the_null_sender_and_of_a_failed_message(crafted, told):
    crafted.add(ID, sender=b"")
    assert told(ID) == (
        "Message 0000000000000002\n"
        "Nov 23 13:26:57  arrived  from MAILER-DAEMON, 22 octets, for bob@example.net\n"
        "In the queue: new, next attempt now\n"
    )
    crafted.attempt(ID, [Outcome(0, FAILED, "5.1.1", "no such user", at=NOW - 5)], state="failed")
    assert told(ID).endswith(
        "Nov 23 13:29:55  failed   bob@example.net 5.1.1 after 178.00 s\n"
        "                 no such user\n"
        "In the queue: failed\n"
    )


def test_page_of_a_traceback_and_of_keys_without_a_column(told, events, logs):
    logs.journal(
        record(NOW, line(ID, event="held", uid=0)),
        record(NOW, line(ID, event="bug", trace="Traceback:\n  File \x1b\nZeroDivisionError\n")),
    )
    assert told(ID) == (
        f"Message {ID}\n"
        "Nov 23 13:30:00  held  uid=0\n"
        "Nov 23 13:30:00  bug\n"
        "                 Traceback:\n"
        "                   File ?\n"
        "                 ZeroDivisionError\n"
    )
    assert events(ID)[1]["trace"] == "Traceback:\n  File ?\nZeroDivisionError"


def test_a_broken_file(crafted, told, events):
    crafted.add(ID)
    crafted.file("new", ID).write_bytes(b"rubbish")
    os.utime(crafted.file("new", ID), (NOW, NOW))
    why = "broken: it does not begin like a queue file"
    assert told(ID) == (
        f"Message {ID}\nNov 23 13:30:00  new\n                 {why}\nIn the queue: new\n"
    )
    assert events(ID) == [
        {
            "time": NOW,
            "source": "queue",
            "event": "new",
            "queue_id": ID,
            "state": "new",
            "next_attempt": None,
            "reason": why,
        }
    ]


def test_nothing_reaches_the_terminal_that_acts_on_it(crafted, told, logs):
    logs.journal(record(NOW, line(ID, to=b"\x1b[2J\xff@b", reason="a\nb\rc", status="delayed")))
    assert told(ID) == (
        f"Message {ID}\nNov 23 13:30:00  delayed  ?[2J\\xff@b\n                 a?b?c\n"
    )


@pytest.mark.parametrize("columns", [10, 60, 80, 200])
def test_page_fits_the_terminal(crafted, told, monkeypatch, columns):
    crafted.add(ID, sender=b"s" * 300, recipients=(b"r" * 300, b"b@example.net"))
    crafted.attempt(ID, [Outcome(0, "delayed", "4.0.0", "why " * 80, at=NOW)], until=NOW)
    monkeypatch.setenv("COLUMNS", str(columns))
    out = told(ID)
    assert max(map(len, out.splitlines())) <= max(columns, 60)
    assert out.count("why") == 80
    assert (out.count("s") >= 300, out.count("r") >= 600) == (True, True)


def test_nothing_found_names_what_was_looked_at(crafted, logs):
    def sought() -> str:
        with pytest.raises(story.NothingFound) as caught:
            main(["log", "no\nsuch"], str(crafted.config))
        assert caught.value.exit_code == 66
        return str(caught.value).replace(str(logs.directory), "DIR")

    first = "no?such: not found: looked at the queue (DIR/spool)"
    assert sought() == first
    crafted.add(ID)
    logs.journal()
    logs.file("mail.log")
    logs.file("mail.log.1")
    (logs.directory / "mail.log.2.gz").write_bytes(b"no gzip")
    (logs.directory / "mail.log.3.gz").write_bytes(gzip.compress(b"x" * 100)[:20])
    (logs.directory / "messages").symlink_to("messages")
    journal = "the journal" if os.geteuid() == 0 else "what you may read of the journal"
    files = (
        "DIR/mail.log*, DIR/mail.log.2.gz (Not a gzipped file (b'no')), "
        "DIR/mail.log.3.gz (Compressed file ended before the end-of-stream marker was reached), "
        "DIR/messages, DIR/messages (Too many levels of symbolic links)"
    )
    assert sought() == f"{first}, {journal}, {files}"
    logs.journal(code=1, said="No journal files were found.")
    assert sought() == f"{first}, {journal} (No journal files were found.), {files}"
    logs.journalctl.write_bytes(b"\x7fELF")
    assert (
        sought() == f"{first}, {journal} ([Errno 8] Exec format error: 'DIR/journalctl'), {files}"
    )


def test_numbers_are_numbers(crafted, logs, events):
    logs.journal(
        record(NOW, line(ID, event="queued", uid=1000, nrcpt=2, to="1")),
        record(NOW + 1, line(ID, event="queued", uid="x", delay="soon")),
    )
    common = {"source": "journal", "event": "queued", "queue_id": ID}
    assert events(ID) == [
        {"time": NOW, **common, "uid": 1000, "nrcpt": 2, "to": "1"},
        {"time": NOW + 1, **common, "uid": "x", "delay": "soon"},
    ]


def test_a_damaged_file(crafted, logs):
    """What can be read of the others counts."""
    head = gzip.compress(b"")[:10]
    (logs.directory / "mail.log.1.gz").write_bytes(head + b"\xff" * 100)
    with pytest.raises(story.NothingFound, match=r"mail\.log\.1\.gz \(Error -3 .*\)$"):
        main(["log", ID], str(crafted.config))
    logs.file("mail.log", f"Nov 23 13:29:00 h minisend[7]: {refusal(NOW - 60)}")
    assert main(["log", ID], str(crafted.config)) == 0


def test_a_journal_that_does_not_answer(crafted, logs, monkeypatch):
    logs.journal()
    logs.journalctl.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(module, "_DEADLINE", 0.1)
    with pytest.raises(story.NothingFound, match=r"journal \(no answer in 0 s\)$"):
        main(["log", ID], str(crafted.config))


def test_a_queue_that_cannot_be_read(crafted, logs, told):
    crafted.path.write_text("no directory")
    with pytest.raises(
        story.NothingFound, match=r"not found: looked at the queue \(.*Not a directory\)"
    ):
        main(["log", ID], str(crafted.config))
    logs.journal(record(NOW, line(ID, event="kept")))
    assert told(ID) == f"Message {ID}\nNov 23 13:30:00  kept\n"


def test_a_reader_that_left(crafted, logs, monkeypatch):
    def gone(fd, octets):
        raise BrokenPipeError

    crafted.add(ID)
    monkeypatch.setattr("minisend.admin.terminal.posix.write", gone)
    assert main(["log", ID], str(crafted.config)) == 0
