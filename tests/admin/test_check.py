"""minisend check: each problem alone, all of them in one line, and when there is none."""

import json
import os
import posix

import pytest

from minisend.admin.command import main
from minisend.delivery.destination import Destinations, Down
from minisend.envelope import FAILED, Outcome
from minisend.errors import ConfigError
from minisend.spool import disk

NOW = 1795440600.0
FREE = (50 << 30, 1_000_000)
GONE = ": see minisend queue --state failed"


def full(digit):
    return str(digit).rjust(16, "0")


@pytest.fixture
def moved(monkeypatch):
    """Sets when files were moved last (ctime): by id, else a minute ago."""
    times = {}
    stat = posix.stat

    def at(path, **options):
        status = stat(path, **options)
        if "dir_fd" not in options:
            return status
        fields = list(status)
        return os.stat_result([*fields[:9], int(times.get(str(path).rpartition(".")[2], NOW - 60))])

    monkeypatch.setattr("minisend.admin.check.posix.stat", at)
    return times


@pytest.fixture
def check(crafted, capfd, monkeypatch, moved):
    """Runs ``minisend check``: the exit code and the line without its line end."""
    monkeypatch.setattr(disk, "free", lambda fd: FREE)

    def run(*options):
        capfd.readouterr()
        code = main(["check", *options], str(crafted.config))
        out, err = capfd.readouterr()
        assert (err, out.count("\n"), out[-1]) == ("", 1, "\n")
        return code, out[:-1]

    return run


def test_nothing_yet(crafted, check):
    assert check() == (0, "ok: 0 messages waiting")
    assert not crafted.path.exists()


def test_made_and_never_used(crafted, check):
    """As setup and tmpfiles.d leave it: the states are made by the first submission."""
    (crafted.path / "queue").mkdir(0o700, parents=True)
    assert check() == (0, "ok: 0 messages waiting, 50G free")
    assert list((crafted.path / "queue").iterdir()) == []


def test_all_is_well(crafted, check, refused):
    for digit in (1, 2, 3):
        crafted.add(full(digit))
    crafted.attempt(full(2), [refused(0)], until=NOW + 2100)
    crafted.attempt(full(3), [], state="hold")
    assert check() == (0, "ok: 2 messages waiting, 1 held, 50G free")
    assert json.loads(check("--json")[1]) == {
        "ok": True,
        "problems": [],
        "waiting": 2,
        "held": 1,
        "failed": 0,
        "oldest_due": int(NOW) - 60,
        "free_octets": 50 << 30,
        "free_inodes": 1_000_000,
    }
    assert os.listdir(crafted.path / "queue" / "tmp") == []


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ((), "2 messages failed, nobody was told"),
        ((1,), "1 message failed and 1 file is broken, nobody was told"),
        ((1, 2), "2 files are broken, nobody was told"),
    ],
)
def test_failed(crafted, check, broken, text):
    for digit in (1, 2):
        crafted.add(full(digit))
        crafted.attempt(full(digit), [Outcome(0, FAILED, "5.1.1", "x", at=NOW)], state="failed")
    for digit in broken:
        crafted.file("failed", full(digit)).write_bytes(b"rubbish")
    assert check() == (1, f"not ok: {text}{GONE}")
    told = json.loads(check("--json")[1])
    assert (told["ok"], told["failed"], [p["kind"] for p in told["problems"]]) == (
        False,
        2,
        ["failed"],
    )


OVERDUE = "overdue, due since 12:29: start minisend run, or minisend flush from a timer"


@pytest.mark.parametrize(
    ("until", "moved_at", "options", "said"),
    [
        pytest.param(0, NOW - 3660, (), f"1 message {OVERDUE}", id="new"),
        pytest.param(0, NOW - 1800, (), "", id="new, just not"),
        pytest.param(0, NOW - 3660, ("--overdue", "2h"), "", id="given more time"),
        pytest.param(NOW - 3660, NOW - 7200, (), f"1 message {OVERDUE}", id="deferred"),
        pytest.param(NOW - 3660, NOW - 60, (), "", id="moved later, by a restore or a release"),
        pytest.param(NOW + 60, NOW - 7200, (), "", id="not due"),
        pytest.param(NOW + 20000, NOW - 3660, (), f"1 message {OVERDUE}", id="clock was set back"),
    ],
)
def test_overdue(crafted, check, moved, refused, until, moved_at, options, said):
    crafted.add(full(1))
    if until:
        crafted.attempt(full(1), [refused(0)], until=until)
    moved[full(1)] = moved_at
    expected = (1, f"not ok: {said}") if said else (0, "ok: 1 message waiting, 50G free")
    assert check(*options) == expected


def test_requeued_is_not_overdue_at_once(crafted, check):
    crafted.add(full(1))
    crafted.attempt(full(1), [], state="hold")
    assert main(["requeue", full(1)], str(crafted.config)) == 0
    assert check()[0] == 0


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"rubbish", "broken: it does not begin like a queue file"),
        (b"minisend-queue 7\nx\n", "left alone: its format is version 7"),
    ],
)
def test_unreadable_is_not_a_message_that_waits(crafted, check, moved, octets, why):
    for digit in (1, 2, 3):
        crafted.add(full(digit))
        moved[full(digit)] = NOW - 3660 - (3 - digit) * 60
    for digit in (1, 2):
        crafted.file("new", full(digit)).write_bytes(octets)
    path = f"{crafted.path}/queue/new/{full(1)}"
    assert check() == (1, f"not ok: {path}: {why} (and 1 more); 1 message {OVERDUE}")
    crafted.file("new", full(2)).unlink()
    crafted.file("new", full(3)).unlink()
    assert check() == (1, f"not ok: {path}: {why}")


@pytest.mark.parametrize(
    ("free", "said"),
    [
        ((1 << 20, 10**6), "its file system has 1M free, less than [spool] min_free (16M)"),
        (
            (1 << 30, 7),
            "its file system has 7 free inodes, less than [spool] min_free_inodes (100)",
        ),
    ],
)
def test_no_room(crafted, check, monkeypatch, free, said):
    crafted.add(full(1))
    monkeypatch.setattr(disk, "free", lambda fd: free)
    assert check() == (1, f"not ok: {crafted.path}: {said}")


def test_room_that_nobody_counts(crafted, check, monkeypatch):
    crafted.add(full(1))
    monkeypatch.setattr(disk, "free", lambda fd: (None, None))
    assert check() == (0, "ok: 1 message waiting")


def test_disk_that_cannot_be_written(crafted, check, monkeypatch):
    crafted.add(full(1))

    def create(name, at):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(disk, "create", create)
    assert check() == (1, f"not ok: {crafted.path}/queue/tmp: Read-only file system")


def test_probe_that_cannot_be_written_is_removed(crafted, check, monkeypatch):
    crafted.add(full(1))

    def write(fd, octets):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write", write)
    assert check() == (1, f"not ok: {crafted.path}/queue/tmp: No space left on device")
    assert os.listdir(crafted.path / "queue" / "tmp") == []


def test_queue_that_others_can_write(crafted, check):
    crafted.add(full(1))
    (crafted.path / "queue").chmod(0o777)
    code, line = check()
    assert (code, line) == (
        1,
        f"not ok: {crafted.path}/queue: others can write there (mode 0777): chmod go-w it",
    )
    told = json.loads(check("--json")[1])
    assert told["problems"][0]["kind"] == "spool"


def test_queue_that_cannot_be_made(crafted, check, monkeypatch):
    monkeypatch.setattr("minisend.admin.check.posix.access", lambda *_, **__: False)
    assert check() == (
        1,
        f"not ok: {crafted.path}: does not exist, and uid {os.geteuid()} cannot make it in "
        f"{crafted.path.parent}",
    )


PLACE = "[smtp.example.org]:587"
REFUSED = Down(
    since=NOW - 60,
    failures=1,
    counted=(NOW - 60,),
    until=int(NOW) + 240,
    status="4.4.1",
    reason="connect to [192.0.2.1]:587: Connection refused",
    remote_mta="[192.0.2.1]:587",
    diagnostic="",
    command="",
    at=NOW - 60,
)
LOGIN = REFUSED.but(status="4.7.8", reason="host x refused user name or password", command="AUTH")
TOKEN = REFUSED.but(status="4.7.8", reason="no tokens: run: minisend login", remote_mta="")
SECRET = REFUSED.but(status="4.3.5", reason="password_file: cannot be opened", remote_mta="")
LONG = REFUSED.but(since=NOW - 4 * 3600 - 1)


@pytest.mark.parametrize(
    ("down", "told"),
    [
        pytest.param(REFUSED, False, id="for a minute"),
        pytest.param(LONG, True, id="longer than warn_after"),
        pytest.param(LOGIN, True, id="login"),
        pytest.param(TOKEN, True, id="token"),
        pytest.param(SECRET, True, id="secret"),
        pytest.param(LOGIN.but(until=int(NOW) - 1801), False, id="nobody probes it any more"),
    ],
)
def test_destination(crafted, check, refused, down, told):
    crafted.add(full(1))
    crafted.attempt(full(1), [refused(0)], until=NOW + 60)
    Destinations(str(crafted.path)).put(PLACE, down)
    text = f"{PLACE}: {down.reason}"
    assert check() == ((1, f"not ok: {text}") if told else (0, "ok: 1 message waiting, 50G free"))
    problems = json.loads(check("--json")[1])["problems"]
    assert problems == ([{"kind": "destination", "text": text}] if told else [])


def test_destination_that_nobody_waits_for(crafted, check):
    """The last message for it was removed."""
    crafted.add(full(1))
    crafted.attempt(full(1), [], state="hold")
    Destinations(str(crafted.path)).put(PLACE, LONG)
    assert check() == (0, "ok: 0 messages waiting, 1 held, 50G free")


def test_several_problems_are_one_line(crafted, check, moved):
    for digit in (1, 2):
        crafted.add(full(digit))
        moved[full(digit)] = NOW - 3660
    crafted.attempt(full(2), [Outcome(0, FAILED, "5.1.1", "x", at=NOW)], state="failed")
    assert check() == (1, f"not ok: 1 message failed, nobody was told{GONE}; 1 message {OVERDUE}")


def test_many_are_not_all_opened(crafted, check, moved, monkeypatch):
    from minisend.admin import check as module

    monkeypatch.setattr(module, "_MOST_OPENED", 2)
    opened = []
    monkeypatch.setattr(module, "_unreadable", lambda queue, place: opened.append(place) or "")
    for digit in range(1, 6):
        crafted.add(full(digit))
        moved[full(digit)] = NOW - 3660
    assert check() == (1, f"not ok: 5 messages {OVERDUE}")
    assert len(opened) == 2


def test_configuration_that_is_wrong_is_another_code(crafted):
    crafted.config.write_text("nonsense = 1\n")
    with pytest.raises(ConfigError):
        main(["check"], str(crafted.config))
