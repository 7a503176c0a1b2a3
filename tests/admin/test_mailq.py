"""mailq's output, whole, to the column."""

import fcntl
import json
import os
import posix
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minisend
from minisend.admin.command import main
from minisend.admin.mailq import mailq
from minisend.envelope import DELAYED, FAILED, RELAYED, Outcome
from minisend.errors import SpoolError, SystemFault
from minisend.spool.store import Queue

NOW = 1795440600.0
EMPTY = "\t\tTotal requests: 0\nMail queue is empty\n"
HEADINGS = "----Queue ID----- --Size-- ---Arrival Time---- --Sender/Recipient------\n"
CHECKOUT = Path(minisend.__file__).parents[1]

# Run as the packaged script runs it: no site, nothing of the environment.
ISOLATED = "import sys; sys.path.insert(0, sys.argv.pop(1)); from minisend.__main__ import main; sys.exit(main())"


def why(reason: str) -> str:
    """The line of a reason as Postfix writes it: its brackets close in column 78."""
    return " " * (78 - len(reason)) + reason + "\n"


def isolated(*arguments: str) -> list[str]:
    return [sys.executable, "-ISc", ISOLATED, str(CHECKOUT), *arguments]


def listing(crafted, capfd):
    capfd.readouterr()
    assert mailq(str(crafted.config)) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return out


def test_no_spool_yet_is_an_empty_queue(crafted, capfd):
    assert listing(crafted, capfd) == EMPTY
    assert not crafted.path.exists()


def test_queue_that_is_just_being_made_is_empty(crafted, capfd):
    (crafted.path / "queue" / "new").mkdir(parents=True)
    assert listing(crafted, capfd) == EMPTY


def test_served_queue_is_empty(crafted, capfd):
    crafted.add("00000000000000aa")
    crafted.file("new", "00000000000000aa").unlink()
    assert listing(crafted, capfd) == EMPTY


def test_every_state_whole(crafted, capfd, refused):
    crafted.add("0000000000000001", recipients=(b"carol@example.com", b"root"))
    crafted.add(
        "0000000000000002", recipients=(b"carol@example.com", b"bob@example.net", b"d@e.org")
    )
    crafted.attempt(
        "0000000000000002",
        [
            refused(0),
            Outcome(1, RELAYED, "2.0.0", "250 ok", at=NOW),
            Outcome(2, DELAYED, "4.7.1", "host mx[192.0.2.1]:25 said: 450 come back", at=NOW),
        ],
        until=NOW + 2100,
    )
    crafted.add("0000000000000003", sender=b"", message=b"x" * 2048)
    crafted.attempt("0000000000000003", [refused(0)], until=NOW + 86400)
    crafted.add("0000000000000004")
    crafted.attempt("0000000000000004", [refused(0)], state="hold")
    crafted.add("0000000000000005", recipients=(b"gone@example.net", b"well@example.net"))
    crafted.attempt(
        "0000000000000005",
        [
            Outcome(0, FAILED, "5.1.1", "no such user", at=NOW),
            Outcome(1, RELAYED, "2.0.0", "ok", at=NOW),
        ],
        state="failed",
    )
    assert listing(crafted, capfd) == HEADINGS + (
        "0000000000000001        22 Mon Nov 23 13:26:57 tester@example.org\n"
        "                                               carol@example.com\n"
        "                                               root\n"
        "\n"
        "0000000000000002        22 Mon Nov 23 13:26:57 tester@example.org\n"
        + why("(connect to 127.0.0.1:2525: Connection refused; next attempt 14:05)")
        + "                                               carol@example.com\n"
        + why("(host mx[192.0.2.1]:25 said: 450 come back; next attempt 14:05)")
        + "                                               d@e.org\n"
        "\n"
        "0000000000000003      2048 Mon Nov 23 13:26:57 MAILER-DAEMON\n"
        + why("(connect to 127.0.0.1:2525: Connection refused; next attempt Nov 24 13:30)")
        + "                                               bob@example.net\n"
        "\n"
        "0000000000000004!       22 Mon Nov 23 13:26:57 tester@example.org\n"
        + why("(connect to 127.0.0.1:2525: Connection refused; held)")
        + "                                               bob@example.net\n"
        "\n"
        "0000000000000005#       22 Mon Nov 23 13:26:57 tester@example.org\n"
        + why("(no such user; failed)")
        + "                                               gone@example.net\n"
        "\n"
        "\t\tTotal requests: 5\n"
        "-- 2 Kbytes in 5 Requests.\n"
    )


def test_recipients_with_one_reason_share_its_line(crafted, capfd, refused):
    """A failed message shows those that failed and those that were still waiting, in their order."""
    crafted.add("0000000000000001", recipients=(b"a@e.org", b"b@e.org", b"c@e.org", b"d@e.org"))
    crafted.attempt(
        "0000000000000001",
        [
            refused(0),
            refused(1),
            Outcome(2, FAILED, "5.1.1", "no such user", at=NOW),
            Outcome(3, RELAYED, "2.0.0", "ok", at=NOW),
        ],
        state="failed",
    )
    assert listing(crafted, capfd) == (
        HEADINGS
        + "0000000000000001#       22 Mon Nov 23 13:26:57 tester@example.org\n"
        + why("(connect to 127.0.0.1:2525: Connection refused; will not be tried again)")
        + "                                               a@e.org\n"
        "                                               b@e.org\n"
        + why("(no such user; failed)")
        + "                                               c@e.org\n"
        "\n"
        "\t\tTotal requests: 1\n"
        "-- 0 Kbytes in 1 Request.\n"
    )


def test_deferred_messages_are_in_the_order_of_their_next_attempts(crafted, capfd):
    for number, until in ((1, 300), (2, 100), (3, 200)):
        crafted.add(f"000000000000000{number}")
        crafted.attempt(f"000000000000000{number}", [], until=NOW + until)
    assert re.findall(r"^0{15}(\d)", listing(crafted, capfd), re.MULTILINE) == ["2", "3", "1"]


def test_one_request_is_singular(crafted, capfd):
    crafted.add("0000000000000001")
    assert listing(crafted, capfd).endswith("\n\t\tTotal requests: 1\n-- 0 Kbytes in 1 Request.\n")


def test_recipient_without_an_attempt_after_one_with_a_reason(crafted, capfd, refused):
    crafted.add("0000000000000001", recipients=(b"a@example.net", b"b@example.net"))
    crafted.attempt("0000000000000001", [refused(0)], until=NOW - 1)
    assert listing(crafted, capfd) == HEADINGS + (
        "0000000000000001        22 Mon Nov 23 13:26:57 tester@example.org\n"
        + why("(connect to 127.0.0.1:2525: Connection refused; due now)")
        + "                                               a@example.net\n"
        + why("(due now)")
        + "                                               b@example.net\n"
        "\n"
        "\t\tTotal requests: 1\n"
        "-- 0 Kbytes in 1 Request.\n"
    )


def test_claimed_message_is_marked_active(crafted, capfd, refused):
    crafted.add("0000000000000001")
    crafted.attempt("0000000000000001", [refused(0)], until=NOW + 2100)
    crafted.add("0000000000000002")
    with crafted.file("cur", f"{int(NOW) + 2100}.0000000000000001").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        out = listing(crafted, capfd)
    assert "0000000000000001*       22 Mon Nov 23 13:26:57 tester@example.org\n" in out
    assert "(connect to 127.0.0.1:2525: Connection refused)\n" in out
    assert "0000000000000002        22 " in out


def test_files_that_cannot_be_read_get_a_line_and_the_others_go_on(crafted, capfd):
    crafted.add("0000000000000001")
    crafted.add("0000000000000009")
    for name, octets in (
        ("0000000000000002", b"minisend-queue 7\nsomething\n"),
        ("0000000000000003", b"rubbish"),
        ("0000000000000004", crafted.file("new", "0000000000000001").read_bytes()),
        ("esc\x1b[2J", b""),
    ):
        crafted.file("new", name).write_bytes(octets)
        os.utime(crafted.file("new", name), (NOW, NOW))
    crafted.file("new", "0000000000000005").mkdir()
    crafted.file("new", "0000000000000006").symlink_to("/etc/passwd")
    out = listing(crafted, capfd)
    assert (
        "0000000000000002        27 Mon Nov 23 13:30:00 -\n"
        + why("(left alone: its format is version 7)")
        + "\n"
        "0000000000000003         7 Mon Nov 23 13:30:00 -\n"
        + why("(broken: it does not begin like a queue file)")
        + "\n"
    ) in out
    assert "(broken: it lies under a name that is not its own)" in out
    assert "(cannot be read: Is a directory)" in out
    assert "(cannot be read: Too many levels of symbolic links)" in out
    assert "\nesc?[2J " in out
    assert "\x1b" not in out
    assert re.search("^0000000000000009 ", out, re.MULTILINE)
    assert out.endswith(" in 8 Requests.\n")


def test_foreign_octets_do_nothing_to_a_terminal(crafted, capfd):
    crafted.add(
        "0000000000000001",
        sender=b"a\x1b]0;x\x07b@example.org",
        recipients=("bøb\x85@ü.net".encode(), b"\xff@e"),
    )
    crafted.attempt(
        "0000000000000001",
        [Outcome(0, DELAYED, "4.0.0", "said: \x1b[31m\nTotal requests: 99", at=NOW)],
        until=NOW + 2100,
    )
    out = listing(crafted, capfd)
    assert "tester" not in out
    assert " a?]0;x?b@example.org\n" in out
    assert " bøb?@ü.net\n" in out
    assert " \\xff@e\n" in out
    assert "(said: ?[31m?Total requests: 99; next attempt 14:05)\n" in out


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_check_mailq_looks_for(crafted, capfd, count):
    """Its sendmail mode takes the number from any such line, its postfix mode from the last line alone."""
    for number in range(count):
        crafted.add(f"{number:016x}")
    lines = listing(crafted, capfd).splitlines()
    assert [
        found[1]
        for line in lines
        if (found := re.search(r"^\s+Total\sRequests:\s(\d+)$", line, re.I))
    ] == [str(count)]
    if count:
        found = re.search(r"Kbytes in (\d+)", lines[-1])
        assert found is not None
        assert found[1] == str(count)
    else:
        assert lines[-1] == "Mail queue is empty"
    assert not any("mqueue" in line or re.search("<.*@.*>", line) for line in lines)


def test_message_that_moves_while_the_queue_is_listed_is_shown_once(crafted, capfd, monkeypatch):
    """A flusher defers the second message after ``cur`` was listed and before its turn comes."""
    from minisend.admin import listing as module

    for number in (1, 2):
        crafted.add(f"000000000000000{number}")
        crafted.attempt(f"000000000000000{number}", [], until=NOW + number)
    look = module._look

    def move_then_look(queue, place, *rest):
        if place.name == f"{int(NOW) + 2}.0000000000000002":
            crafted.file("cur", place.name).rename(
                crafted.file("cur", f"{int(NOW) + 99}.0000000000000002")
            )
        return look(queue, place, *rest)

    monkeypatch.setattr(module, "_look", move_then_look)
    out = listing(crafted, capfd)
    assert re.findall(r"^0{15}\d", out, re.MULTILINE) == ["0000000000000001", "0000000000000002"]
    assert out.endswith(" in 2 Requests.\n")


def test_message_that_moves_between_two_listings_is_shown_once(crafted, capfd, monkeypatch):
    """A flusher defers it after ``new`` was listed and before ``cur`` is: both lists have it."""
    crafted.add("0000000000000001")
    names = Queue.names

    def defer_between(self, state):
        found = names(self, state)
        if state == "new":
            crafted.attempt("0000000000000001", [], until=NOW + 1)
        return found

    monkeypatch.setattr(Queue, "names", defer_between)
    out = listing(crafted, capfd)
    assert re.findall(r"^0{15}\d", out, re.MULTILINE) == ["0000000000000001"]
    assert out.endswith(" in 1 Request.\n")


def test_what_was_read_before_a_fault_is_written(crafted, capfd, monkeypatch):
    for number in (1, 2, 3):
        crafted.add(f"000000000000000{number}")
    read = Queue.read

    def fail_at_last(self, place):
        if place.name.endswith("3"):
            raise SpoolError("queue/new: gone")
        return read(self, place)

    monkeypatch.setattr(Queue, "read", fail_at_last)
    capfd.readouterr()
    with pytest.raises(SpoolError):
        mailq(str(crafted.config))
    shown = re.findall(r"^0{15}\d", capfd.readouterr().out, re.MULTILINE)
    assert shown == ["0000000000000001", "0000000000000002"]


def test_it_needs_no_heavy_module(crafted):
    """A monitoring system calls it every minute; it works without site-packages."""
    crafted.add("0000000000000001")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from minisend.admin.mailq import mailq; "
        "code = mailq(sys.argv[2]); print(sorted(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-ISc", program, CHECKOUT, crafted.config],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0000000000000001 " in done.stdout
    heavy = {
        "argparse",
        "collections",
        "dataclasses",
        "datetime",
        "json",
        "os",
        "re",
        "socket",
        "tomllib",
        "typing",
    }
    assert heavy & set(eval(done.stderr)) == set()


def test_reader_that_has_enough_is_no_error(crafted):
    for number in range(30):
        crafted.add(f"{number:016x}", recipients=tuple(b"%d@example.net" % n for n in range(100)))
    with subprocess.Popen(
        isolated("mailq", "-C", str(crafted.config)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == HEADINGS.encode()
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait() == 0


@pytest.mark.parametrize("digits", [20, 400])
def test_a_name_with_no_time_of_this_world_is_due_now(crafted, capfd, refused, digits):
    """Whoever put it there: the others are still to be seen."""
    for number in (1, 2):
        crafted.add(f"000000000000000{number}")
        crafted.attempt(f"000000000000000{number}", [refused(0)], until=NOW + 2100)
    (odd,) = (crafted.path / "queue" / "cur").glob("*.0000000000000002")
    # 255 octets is what a name may have.
    odd.rename(odd.with_name("9" * min(digits, 238) + ".0000000000000002"))
    shown = listing(crafted, capfd)
    assert shown.count("next attempt 14:05") == 1
    assert shown.count("due now") == 1
    assert main(["queue", "--json"], str(crafted.config)) == 0
    objects = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [o["next_attempt"] for o in objects] == [int(NOW + 2100), int(NOW - 183)]


@pytest.mark.parametrize("face", ["mailq", "newaliases"])
def test_help_and_version(face):
    for option, begin in (("--help", f"usage: {face}"), ("--version", "minisend ")):
        done = subprocess.run(isolated(face, option), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout[: len(begin)], done.stderr) == (0, begin, "")


@pytest.mark.parametrize(
    "words", [["-v"], ["-Ac"], ["-qIabc", "-v"], ["-qRexample.org"], ["-d0.1"]]
)
def test_what_other_mailqs_take_is_ignored(crafted, words):
    done = subprocess.run(
        isolated("mailq", "-C", str(crafted.config), *words), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, EMPTY.encode(), b"")


@pytest.mark.parametrize("word", ["--jsno", "ID", "-x", ""])
def test_what_no_mailq_takes_is_a_usage_error(crafted, word):
    done = subprocess.run(
        isolated("mailq", "-C", str(crafted.config), word), capture_output=True, check=False
    )
    message = f"mailq: unknown argument: {word}\n".encode()
    assert (done.returncode, done.stdout, done.stderr) == (64, b"", message)


@pytest.mark.parametrize("words", [[], ["-C"], ["-v", "-oA/etc/aliases"], ["x"]])
def test_newaliases_takes_anything(words):
    done = subprocess.run(isolated("newaliases", *words), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_descriptor_that_takes_little_at_a_time(crafted, capfd, monkeypatch):
    """A short write is not the end: nothing is lost and nothing stands twice."""
    crafted.add("0000000000000001")
    whole = listing(crafted, capfd)
    write = posix.write
    monkeypatch.setattr(
        "minisend.admin.terminal.posix.write", lambda fd, octets: write(fd, octets[:7])
    )
    assert listing(crafted, capfd) == whole


def test_full_standard_output_is_an_error(crafted):
    crafted.add("0000000000000001")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            isolated("mailq", "-C", str(crafted.config)),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        SystemFault.exit_code,
        b"mailq: cannot write to descriptor 1: No space left on device\n",
    )
