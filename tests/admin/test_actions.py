"""minisend rm, hold, release, requeue: where messages lie after, what is said, the exit code."""

import errno
import fcntl
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import minisend
from minisend.admin.command import main
from minisend.envelope import DELAYED, Outcome
from minisend.spool import disk
from minisend.spool.entry import Entry
from minisend.spool.store import Queue

NOW = 1795440600.0
CHECKOUT = Path(minisend.__file__).parents[1]
WHERE = {
    "1": "new/0000000000000001",
    "2": f"cur/{int(NOW) + 2100}.0000000000000002",
    "3": "hold/0000000000000003",
    "4": "failed/0000000000000004",
}


def full(digit):
    return digit.rjust(16, "0")


def lying(crafted):
    queue = crafted.path / "queue"
    return {
        file.name[-1]: f"{file.parent.name}/{file.name}"
        for state in ("tmp", "new", "cur", "hold", "failed")
        for file in (queue / state).iterdir()
    }


@pytest.fixture
def act(crafted, capfd):
    """Runs a command: exit code, standard output, standard error."""

    def run(*arguments):
        capfd.readouterr()
        code = main(list(arguments), str(crafted.config))
        return code, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("command", "digit", "now_at", "said"),
    [
        ("rm", "1", None, "removed"),
        ("rm", "2", None, "removed"),
        ("rm", "3", None, "removed"),
        ("rm", "4", None, "removed"),
        ("hold", "1", "hold/", "held"),
        ("hold", "2", "hold/", "held"),
        ("hold", "3", "hold/", "held already"),
        ("release", "3", "new/", "released"),
        ("requeue", "1", "new/", "is new and due already"),
        ("requeue", "2", "cur/0000000000.", "requeued"),
        ("requeue", "3", "cur/0000000000.", "requeued"),
        ("requeue", "4", "cur/0000000000.", "requeued"),
    ],
)
def test_one_message(four, act, command, digit, now_at, said):
    assert act(command, full(digit)) == (0, f"{full(digit)}: {said}\n", "")
    expected = {**WHERE, digit: f"{now_at}{full(digit)}"}
    if now_at is None:
        del expected[digit]
    assert lying(four) == expected


@pytest.mark.parametrize(
    ("command", "digit", "why"),
    [
        ("hold", "4", "has failed, nothing tries it (requeue it first)"),
        ("release", "1", "is not held"),
        ("release", "2", "is not held (requeue makes it due at once)"),
        ("release", "4", "has failed and is not held (requeue tries it again)"),
    ],
)
def test_message_in_another_state(four, act, command, digit, why):
    assert act(command, full(digit)) == (64, "", f"minisend: {full(digit)}: {why}\n")
    assert lying(four) == WHERE


def test_what_was_attempted_is_released_to_its_own_kind(crafted, act, refused):
    crafted.add(full("1"))
    crafted.attempt(full("1"), [refused(0)], state="hold")
    assert act("release", full("1"))[0] == 0
    assert lying(crafted) == {"1": f"cur/0000000000.{full('1')}"}


@pytest.mark.parametrize(
    ("arguments", "said", "left"),
    [
        (("rm", "--all"), "4 messages removed", ""),
        (("rm", "--all", "--yes"), "4 messages removed", ""),
        (("rm", "--state", "failed"), "1 message removed", "123"),
        (("rm", "--recipient", "bob@*"), "2 messages removed", "12"),
        (("rm", "--all", "--recipient", "bob@*"), "2 messages removed", "12"),
        (("rm", "--sender", "<>", "--older-than", "1m"), "1 message removed", "134"),
        (("rm", "--older-than", "1d"), "no message matches", "1234"),
    ],
)
def test_chosen_ones_are_removed(four, act, arguments, said, left):
    assert act(*arguments) == (0, said + "\n", "")
    assert "".join(sorted(lying(four))) == left


@pytest.mark.parametrize(
    ("arguments", "said", "moved"),
    [
        (("hold", "--all"), "2 messages held", {"1": "hold/", "2": "hold/"}),
        (("hold", "--state", "new"), "1 message held", {"1": "hold/"}),
        (("hold", "--sender", "<>"), "1 message held", {"2": "hold/"}),
        (("release", "--all"), "1 message released", {"3": "new/"}),
        (("release", "--sender", "<>"), "no message matches", {}),
        (
            ("requeue", "--all"),
            "3 messages requeued",
            dict.fromkeys("234", "cur/0000000000."),
        ),
        (("requeue", "--state", "failed"), "1 message requeued", {"4": "cur/0000000000."}),
        (("requeue", "--recipient", "example.net"), "2 messages requeued",
         dict.fromkeys("34", "cur/0000000000.")),
    ],
)  # fmt: skip
def test_chosen_ones_are_moved(four, act, arguments, said, moved):
    assert act(*arguments) == (0, said + "\n", "")
    assert lying(four) == {**WHERE, **{d: to + full(d) for d, to in moved.items()}}


@pytest.mark.parametrize("command", ["rm", "hold", "release", "requeue"])
def test_no_queue_yet(crafted, act, command):
    assert act(command, "--all") == (0, "no message matches\n", "")
    assert act(command, "x\x1b") == (64, "", "minisend: x?: not in the queue\n")
    assert not crafted.path.exists()


def test_each_named_message_is_answered_for(four, act):
    assert act("hold", full("1"), "x", full("4"), full("2"), full("1")) == (
        64,
        f"{full('1')}: held\n{full('2')}: held\n",
        "minisend: x: not in the queue\n"
        f"minisend: {full('4')}: has failed, nothing tries it (requeue it first)\n",
    )


@pytest.mark.parametrize("command", ["rm", "hold", "requeue"])
def test_message_that_is_being_delivered_is_left_to_it(four, act, command):
    busy = f"minisend: {full('2')}: is being delivered, try again\n"
    with four.file("cur", f"{int(NOW) + 2100}.{full('2')}").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert act(command, full("2")) == (75, "", busy)
        assert act(command, full("2"), "x") == (75, "", busy + "minisend: x: not in the queue\n")
        code, out, err = act(command, "--state", "deferred")
        assert (code, out[:10], err) == (75, "0 messages", busy)
    assert lying(four) == WHERE
    assert act(command, full("2"))[0] == 0


def test_message_that_moves_before_its_lock_is_had(four, act, monkeypatch):
    """A flusher defers it after it was found: it is found again, once."""
    claim = Queue.claim

    def move_then_claim(queue, place):
        if place.name == full("1"):
            four.file("new", full("1")).rename(four.file("cur", f"1.{full('1')}"))
        return claim(queue, place)

    monkeypatch.setattr(Queue, "claim", move_then_claim)
    assert act("hold", full("1")) == (0, f"{full('1')}: held\n", "")


def test_message_that_is_delivered_before_its_lock_is_had(four, act, monkeypatch):
    claim = Queue.claim

    def deliver_then_claim(queue, place):
        if place.name == full("1"):
            four.file("new", full("1")).unlink()
        return claim(queue, place)

    monkeypatch.setattr(Queue, "claim", deliver_then_claim)
    assert act("hold", "--all") == (0, "1 message held\n", "")
    assert act("hold", full("1")) == (64, "", f"minisend: {full('1')}: not in the queue\n")


def test_disk_that_takes_no_line(four, act, monkeypatch):
    def full_disk(self, octets):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Entry, "_append", full_disk)
    assert act("requeue", full("4"), full("1")) == (
        75,
        f"{full('1')}: is new and due already\n",
        f"minisend: {full('4')}: cannot be requeued: No space left on device\n",
    )
    assert lying(four) == WHERE


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"rubbish", "broken: it does not begin like a queue file"),
        (b"minisend-queue 7\nx\n", "left alone: its format is version 7"),
    ],
)
def test_file_that_cannot_be_read_can_only_be_removed(four, act, octets, why):
    four.file("failed", full("4")).write_bytes(octets)
    assert act("requeue", full("4")) == (
        64,
        "",
        f"minisend: {full('4')}: {why} (minisend rm removes it)\n",
    )
    assert lying(four) == WHERE
    assert act("rm", full("4"))[0] == 0
    assert "4" not in lying(four)


def test_broken_file_is_set_aside_by_a_hold(four, act):
    four.file("new", full("1")).write_bytes(b"rubbish")
    why = "set aside in queue/failed: it does not begin like a queue file (minisend rm removes it)"
    assert act("hold", "--all") == (64, "1 message held\n", f"minisend: {full('1')}: {why}\n")


@pytest.mark.parametrize("name", ["..", ".", "", "../new/0000000000000001", "/etc/passwd"])
def test_id_that_is_a_path(four, act, name):
    assert act("rm", name) == (64, "", f"minisend: {name}: not in the queue\n")
    assert lying(four) == WHERE


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_what_is_no_file_is_not_removed(four, act, tmp_path, kind):
    (tmp_path / "precious").write_text("x")
    odd = four.file("new", "odd")
    odd.symlink_to(tmp_path / "precious") if kind == "link" else odd.mkdir()
    code, out, err = act("rm", "odd")
    assert (code, out, err.startswith("minisend: odd: cannot be removed: ")) == (75, "", True)
    assert (tmp_path / "precious").read_text() == "x"


def test_release_and_requeue_wake_who_serves(four, act):
    (four.path / "state").mkdir()
    os.mkfifo(four.path / "state/trigger")
    reader = os.open(four.path / "state/trigger", os.O_RDWR | os.O_NONBLOCK)
    try:
        for arguments, octets in (
            (("release", full("3")), b"a"),
            (("requeue", "--state", "failed"), b"a"),
            (("hold", full("1")), b""),
            (("rm", full("1")), b""),
            (("release", full("3")), b""),
        ):
            act(*arguments)
            try:
                assert os.read(reader, 10) == octets
            except BlockingIOError:
                assert octets == b""
    finally:
        os.close(reader)


def test_what_was_released_is_durable_before_it_is_gone_from_hold(four, act, monkeypatch):
    """A power cut between the two leaves two names, never none; so it is with what was held before in one run."""
    synced = []
    fsync = disk.fsync

    def noting(fd):
        synced.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])
        fsync(fd)

    monkeypatch.setattr(disk, "fsync", noting)
    act("release", full("3"))
    assert synced == ["new", "hold"]
    synced.clear()
    with Queue(str(four.path)) as queue:
        for digit, state in (("1", "hold"), ("3", "failed"), ("1", "new"), ("3", "hold")):
            place = queue.find(full(digit), "new", "hold", "failed")
            assert place is not None
            entry = queue.claim(place)
            assert entry is not None
            with entry:
                entry.move_to(state)
    assert synced == ["failed", "hold", "new", "new", "hold", "failed", "hold"]


@pytest.mark.parametrize(("sync", "times"), [("group", 3), ("each", 4)])
def test_fsync_after_each_change_where_that_is_asked_for(four, act, monkeypatch, sync, times):
    """Two messages move: of both directories each time, or of the three of them at the end."""
    four.config.write_text(four.config.read_text() + f'sync = "{sync}"\n')
    count = []
    fsync = disk.fsync
    monkeypatch.setattr(disk, "fsync", lambda fd: count.append(fd) or fsync(fd))
    act("hold", "--all")
    assert len(count) == times


# -- the question


def asked(config, *arguments, answer):
    """``minisend rm`` with a terminal for standard input: exit code, standard output, standard error."""
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "minisend", "-C", str(config), "rm", *arguments],
        cwd=CHECKOUT,
        stdin=inner,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        os.close(inner)
        os.write(outer, answer)
        out, err = program.communicate(timeout=60)
    os.close(outer)
    return program.returncode, out, err


@pytest.mark.parametrize("answer", [b"y\n", b"yes\n", b" Yes \n"])
def test_bulk_removal_asks_on_a_terminal(four, answer):
    assert asked(four.config, "--recipient", "bob@*", answer=answer) == (
        0,
        "2 messages removed\n",
        "Remove 2 messages? [y/N] ",
    )
    assert "".join(sorted(lying(four))) == "12"


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"yo\n", b"\x04"])
def test_anything_but_yes_is_no(four, answer):
    code, out, err = asked(four.config, "--all", answer=answer)
    assert (code, out, err.rstrip("\n")) == (
        1,
        "nothing removed\n",
        "Remove 4 messages? [y/N] ",
    )
    assert lying(four) == WHERE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--all", "--yes"), "4 messages removed\n"),
        ((full("1"), full("2")), f"{full('1')}: removed\n{full('2')}: removed\n"),
        (("--sender", "nobody"), "no message matches\n"),
    ],
)
def test_no_question_where_there_is_none(four, arguments, said):
    assert asked(four.config, *arguments, answer=b"") == (0, said, "")


# -- the whole way


def test_failed_message_is_tried_again_and_then_bounces_anew(crafted, act):
    """By the real flush: its failed recipient is asked again, the report is a new one."""
    crafted.add(full("1"), sender=b"", recipients=(b"bob@example.net",))
    crafted.attempt(
        full("1"), [Outcome(0, "failed", "5.1.1", "no such user", at=NOW)], state="failed"
    )
    crafted.config.write_text(
        crafted.config.read_text() + '[smarthost]\nhost = "127.0.0.1"\nport = 1\ntls = "none"\n'
    )
    assert act("requeue", full("1"))[0] == 0
    done = subprocess.run(
        [sys.executable, "-m", "minisend", "-C", crafted.config, "flush", "--quiet"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (75, "")
    with Queue(str(crafted.path)) as queue:
        place = queue.find(full("1"), "cur")
        assert place is not None
        entry = queue.read(place)
        assert entry is not None
        with entry:
            assert (entry.attempts, entry.latest[0].action) == (1, DELAYED)
            assert place.due > 0
