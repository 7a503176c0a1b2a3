"""Rate: no period with more messages than it says, over threads, processes, another configuration, damage and a clock set back."""

import os
import posix
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from delivery.program import Program
from delivery.scripted import ScriptedServer
from delivery.spooled import read
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.process import wait_for

from minisend.config.sections import Config, Smarthost, Spool
from minisend.delivery.destination import Down
from minisend.delivery.rate import Rate, rate_of
from minisend.delivery.route import MX, SMARTHOST, NextHop

NOW = 1_700_000_000.0
ROOT = Path(__file__).parents[2]


def taken(rate: Rate, *moments: float) -> list[float]:
    """What it says at these moments, seconds after NOW, in seconds after NOW."""
    return [rate.take(NOW + moment) - NOW for moment in moments]


def test_the_whole_rate_at_once_and_the_next_when_the_first_is_old(tmp_path: Path) -> None:
    rate = Rate(str(tmp_path), "", 3, 60)
    assert taken(rate, 0, 1, 2, 3, 59.5, 60, 60, 61, 62, 62) == [
        0,
        1,
        2,
        60,
        60,
        60,
        61,
        61,
        62,
        120,
    ]
    assert os.listdir(tmp_path / "state/rate") == ["smarthost"]
    file = tmp_path / "state/rate/smarthost"
    assert file.read_bytes() == struct.pack("=QQ3d", 3, 0, NOW + 60, NOW + 61, NOW + 62)
    assert (file.stat().st_mode & 0o7777, file.parent.stat().st_mode & 0o7777) == (0o600, 0o700)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=40))
def test_no_period_has_more(
    tmp_path_factory: pytest.TempPathFactory, count: int, pauses: list[float]
) -> None:
    """And whoever comes at the time that was said is let through."""
    rate = Rate(str(tmp_path_factory.mktemp("spool")), "x", count, 60)
    now = NOW
    begun = []
    for pause in pauses:
        now += pause
        free = rate.take(now)
        if free > now:
            assert rate.take(free) == free
            now = free
        begun.append(now)
    assert all(late - early >= 60 for early, late in zip(begun, begun[count:], strict=False))
    # Each was late for a reason.
    for earlier, later in pairwise(begun):
        assert later - earlier <= 60


def test_two_processes_share_it(tmp_path: Path) -> None:
    rate = Rate(str(tmp_path), "x", 3, 60)
    assert taken(rate, 0, 1) == [0, 1]
    script = (
        "from minisend.delivery.rate import Rate\n"
        f"rate = Rate({str(tmp_path)!r}, 'x', 3, 60)\n"
        f"print(rate.take({NOW} + 2) - {NOW}, rate.take({NOW} + 3) - {NOW})\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert other.stdout == "2.0 60.0\n"
    assert taken(rate, 4) == [60]
    assert taken(Rate(str(tmp_path), "y", 3, 60), 4) == [4]


def test_processes_at_the_same_moment_share_it(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from minisend.delivery.rate import Rate\n"
        f"rate = Rate({str(tmp_path)!r}, 'x', 2000, 60)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        f"print(sum(rate.take({NOW}) == {NOW} for _ in range(1000)))\n"
    )
    command = [sys.executable, "-c", script]
    with ExitStack() as running:
        others = [
            running.enter_context(
                subprocess.Popen(
                    command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(4)
        ]
        assert [other.stdout and other.stdout.readline() for other in others] == ["ready\n"] * 4
        for other in others:
            assert other.stdin is not None
            other.stdin.close()
        assert sum(int(other.stdout.read() if other.stdout else "") for other in others) == 2000


def test_threads_share_it(tmp_path: Path) -> None:
    rate = Rate(str(tmp_path), "x", 10, 60)
    results: list[float] = []
    threads = [
        threading.Thread(target=lambda: results.extend(taken(rate, 0, 0, 0, 0))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0.0] * 10 + [60.0] * 10


def test_another_rate_keeps_the_latest_times(tmp_path: Path) -> None:
    spool = str(tmp_path)
    assert taken(Rate(spool, "x", 4, 60), 0, 1, 2, 3, 60) == [0, 1, 2, 3, 60]
    # Of 1, 2, 3 and 60.
    assert taken(Rate(spool, "x", 2, 60), 61, 63, 63) == [63, 63, 120]
    # Of 60 and 63, with room for two more.
    assert taken(Rate(spool, "x", 4, 60), 64, 64, 64) == [64, 64, 120]
    # The same times within another period.
    assert taken(Rate(spool, "x", 4, 3600), 65) == [3660]


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 7, id="short"),
        pytest.param(b"\xff" * 16, id="a count that is none"),
        pytest.param(b"\0" * 16, id="none at all"),
        pytest.param(struct.pack("=QQdd", 2, 2, NOW, NOW), id="a place that is none"),
        pytest.param(struct.pack("=QQd", 2, 0, NOW), id="cut"),
        pytest.param(struct.pack("=QQddd", 2, 0, NOW, NOW, NOW), id="too long"),
    ],
)
def test_what_cannot_be_read_is_empty(tmp_path: Path, octets: bytes) -> None:
    (tmp_path / "state/rate").mkdir(parents=True)
    (tmp_path / "state/rate/x").write_bytes(octets)
    assert taken(Rate(str(tmp_path), "x", 2, 60), 0, 1, 2) == [0, 1, 60]


@pytest.mark.parametrize("future", [NOW + 1e9, float("nan"), float("inf")])
def test_a_time_from_the_future_counts_as_now(tmp_path: Path, future: float) -> None:
    (tmp_path / "state/rate").mkdir(parents=True)
    (tmp_path / "state/rate/x").write_bytes(struct.pack("=QQdd", 2, 0, future, future))
    assert taken(Rate(str(tmp_path), "x", 2, 60), 0, 30, 60, 60, 120) == [60, 60, 60, 120, 120]


def put_off(rate: Rate, now: float) -> float:
    return rate.put_off(NOW + now).until - NOW


def test_those_that_wait_are_spread_over_the_times_to_come(tmp_path: Path) -> None:
    rate = Rate(str(tmp_path), "x", 2, 60)
    assert taken(rate, 0, 10) == [0, 10]
    # Two when those two are old, two when the next two are; whoever comes back makes room for another.
    assert [put_off(rate, 20) for _ in range(5)] == [60, 70, 120, 130, 180]
    assert taken(rate, 60) == [60]
    assert put_off(rate, 60) == 190
    # Nobody has come back.
    assert taken(rate, 200, 201) == [200, 201]
    assert [put_off(rate, 202) for _ in range(3)] == [260, 261, 320]


def test_why_it_waits(tmp_path: Path) -> None:
    rate = Rate(str(tmp_path), "shop", 1, 3600)
    rate.take(NOW)
    assert rate.put_off(NOW + 0.5) == Down(
        since=NOW + 0.5,
        failures=0,
        counted=(),
        until=int(NOW) + 3600,
        status="4.4.5",
        reason="the rate of [smarthosts.shop] is used up: 1/h",
        remote_mta="",
        diagnostic="",
        command="",
        at=NOW + 0.5,
    )


def test_without_the_file_nothing_goes(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/rate").write_text("")
    rate = Rate(str(tmp_path), "", 1, 60)
    assert taken(rate, 0) == [60]
    down = rate.put_off(NOW)
    assert down.until == NOW + 60
    assert down.reason == (
        f"the rate of [smarthost] is used up: 1/m: {tmp_path}/state/rate/smarthost: Not a directory"
    )


def test_a_disk_that_is_full_lets_nothing_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = Rate(str(tmp_path), "", 2, 60)
    pwrite = os.pwrite
    monkeypatch.setattr(posix, "pwrite", lambda fd, octets, at: pwrite(fd, octets[:9], at))
    assert taken(rate, 0) == [60]
    assert rate.put_off(NOW).reason.endswith("/rate/smarthost: No space left on device")
    monkeypatch.undo()
    assert taken(rate, 0, 0, 0) == [0, 0, 60]


# The program.


def program(directory: Path, server: ScriptedServer, rate: str) -> Program:
    return Program(
        directory,
        f"[delivery]\nconnections_per_host = 3\n"
        f'[smarthosts.slow]\nhost = "127.0.0.1"\nport = {server.port}\ntls = "none"\nrate = "{rate}"\n'
        '[[route]]\nrecipient = "x.test"\nvia = "slow"\n'
        f'[[route]]\nrecipient = "y.test"\nvia = "[127.0.0.1]:{server.port}"\n',
    )


def waiting(sender: Program) -> list[tuple[str, int]]:
    """State of each file, and in ``cur`` the time of the next attempt."""
    queue = sender.spool / "queue"
    found = [("new", 0) for _ in (queue / "new").iterdir()]
    found += [("cur", int(path.name.partition(".")[0])) for path in (queue / "cur").iterdir()]
    return sorted(found)


def test_beyond_the_rate_a_message_waits_without_an_attempt(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        slow = program(tmp_path, server, "2/h")
        for recipient in ("a", "b", "c", "d", "e"):
            slow.sendmail(f"{recipient}@x.test", stdin=b"Subject: s\n\n")
        slow.sendmail("f@y.test", stdin=b"Subject: s\n\n")
        before = int(time.time())
        assert slow.flush() == (75, "3 delivered, 3 waiting, 0 failed")
        after = time.time() + 1
        # Two go in an hour, the third in two, as far as a clock is trusted.
        first, second, third = sorted(when for _, when in waiting(slow))
        assert before + 3600 <= first <= second <= after + 3600
        assert before + 7200 <= third <= after + 7200
        # Nobody was asked, so there is nothing on record; what shows the queue says why all the same.
        why = "the rate of [smarthosts.slow] is used up: 2/h"
        assert [
            (message["recipients"][0].get("delay_reason"), message["attempts"])
            for message in slow.queue()
        ] == [(why, 0)] * 3
        listed = slow.run("mailq").stdout.decode()
        assert listed.count(f"({why}; next attempt ") == 3
        assert read(str(slow.spool), str(slow.queue()[0]["queue_id"])).outcomes == []
        # Another process knows of it.
        slow.make_due()
        slow.sendmail("g@x.test", "h@y.test", stdin=b"Subject: s\n\n")
        assert slow.flush() == (75, "0 delivered, 4 waiting, 0 failed")
        assert sorted(message.recipients[0].decode() for message in server.messages)[-2:] == [
            "f@y.test",
            "h@y.test",
        ]
        assert len(server.messages) == 4


def test_a_lane_waits_for_its_turn(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        slow = program(tmp_path, server, "1/s")
        for recipient in ("a", "b"):
            slow.sendmail(f"{recipient}@x.test", stdin=b"Subject: s\n\n")
        began = time.monotonic()
        assert slow.flush() == (0, "2 delivered, 0 waiting, 0 failed")
        assert time.monotonic() - began >= 1
        assert len(server.messages) == 2


def test_the_end_of_a_run_is_not_waited_for(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        slow = program(tmp_path, server, "1/m")
        for recipient in ("a", "b"):
            slow.sendmail(f"{recipient}@x.test", stdin=b"Subject: s\n\n")
        began = time.monotonic()
        run = subprocess.Popen(slow.command("minisend", "flush"), stdout=subprocess.PIPE, env={})
        wait_for("the first message", lambda: server.messages and len(waiting(slow)) == 1)
        run.send_signal(signal.SIGTERM)
        said, _ = run.communicate(timeout=20)
        assert (run.returncode, time.monotonic() - began < 20) == (75, True), said
        # As if it had not been looked at.
        assert [state for state, _ in waiting(slow)] == ["new"]


def test_only_a_smarthost_has_one(tmp_path: Path) -> None:
    config = Config(
        file=None,
        spool=Spool(str(tmp_path)),
        smarthost=Smarthost(("a",)),
        smarthosts={"x": Smarthost(("a",), rate=(1, 60))},
    )
    assert rate_of(NextHop(MX, "a", "a"), config) is None
    assert rate_of(NextHop(SMARTHOST, "[a]:587"), config) is None
    rate = rate_of(NextHop(SMARTHOST, "x:[a]:587", smarthost="x"), config)
    assert rate is not None
    assert taken(rate, 0, 1) == [0, 60]
    assert os.listdir(tmp_path / "state/rate") == ["x"]
