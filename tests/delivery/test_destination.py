"""Destinations that are down: what one costs the messages that wait for it, when it is probed, how it ends.

The clock is the test's, and the disk is watched through the seam that ``minisend.spool.disk`` is.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from delivery.reports import read_report
from delivery.scripted import CONNECT, ScriptedServer, replies
from delivery.spooled import ME, NOW, Lines, put, queue_id, read, stopped_clock, to_smarthost
from peers.process import free_port
from spool.make import listing
from spool.seam import Seam

from minisend.config.sections import Config, Delivery
from minisend.delivery import destination, remote, retry
from minisend.delivery.attempt import Summary
from minisend.delivery.destination import Destinations, Down, _values, after_failure
from minisend.delivery.flush import Selection, flush
from minisend.envelope import DELAYED, FAILED, Outcome
from minisend.spool import disk
from minisend.spool.store import Queue

ANN = b"ann@x.test"
EVERYTHING = Selection(everything=True)
ONE = Delivery(connections=1)
HOUR, DAY = 3600, 86400


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return stopped_clock(monkeypatch)


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> list[float]:
    """The times at which a connection was tried, in seconds after ``NOW``."""
    times: list[float] = []

    def connect(*where: object, **how: object) -> object:
        times.append(clock.now - NOW)
        return real(*where, **how)

    real = remote.connect
    monkeypatch.setattr(remote, "connect", connect)
    return times


def name_of(port: int, host: str = "127.0.0.1") -> str:
    return f"[{host}]:{port}"


def refused(port: int, at: float) -> Outcome:
    """What is heard from a port on which nobody listens."""
    return Outcome(
        0,
        DELAYED,
        "4.4.1",
        f"connect to [127.0.0.1]:{port}: Connection refused",
        remote_mta=f"127.0.0.1[127.0.0.1]:{port}",
        at=at,
    )


def known(spool: str, port: int, host: str = "127.0.0.1") -> Down:
    down = Destinations(spool).get(name_of(port, host))
    assert down is not None
    return down


# -- what it costs


def test_of_many_messages_one_is_attempted_and_the_others_cost_a_rename(
    spool: str, log: Lines, probes: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 300
    for number in range(count):
        put(spool, number, ANN)
    port = free_port("127.0.0.1")
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    # The clock that says when a group of changes has waited long enough would add a few.
    monkeypatch.setattr("minisend.spool.changes._GROUP_SECONDS", 1e9)
    summary = flush(to_smarthost(spool, port), Selection(), log=log)
    assert summary == Summary(tried=count, deferred=count)
    assert probes == [0.0]
    # The first has been tried, and has it in writing; the others have nothing, not even the facts of an attempt.
    written = seam.about("pwrite", "posix_fallocate", "write", "ftruncate")
    assert {path for _, path in written} == {f"{spool}/queue/new/{queue_id(0)}"}
    assert len(seam.about("rename")) == count
    synced = [path for _, path in seam.about("fsync")]
    assert synced[:1] == [f"{spool}/queue/new/{queue_id(0)}"]
    # Of the directories: the two of a move, for each group of changes, and at the end.
    groups = 2 * count // 100
    assert synced[1:] == [f"{spool}/queue/cur", f"{spool}/queue/new"] * groups
    down = known(spool, port)
    assert listing(spool) == {"cur": [f"{down.until}.{queue_id(n)}" for n in range(count)]}
    assert [len(read(spool, queue_id(n)).history) for n in (0, 1, count - 1)] == [1, 0, 0]
    assert len(log.about("status=delayed")) == 1


def test_the_status_file_says_all_of_the_last_failure(spool: str, log: Lines) -> None:
    put(spool, 1, ANN)
    reply = "421 4.3.2 closed for repairs"
    with ScriptedServer(replies({CONNECT: reply.encode()})) as server:
        flush(to_smarthost(spool, server.port), Selection(), log=log)
    name = name_of(server.port)
    mta = f"127.0.0.1[127.0.0.1]:{server.port}"
    (file,) = Path(spool, "state/destinations").iterdir()
    assert (file.name, file.stat().st_mode & 0o7777) == (f"={name}", 0o600)
    down = Down(
        since=NOW,
        failures=1,
        counted=(NOW,),
        until=int(NOW + 300 * (1 + 0.1 * retry.jitter(name, 1))),
        status="4.3.2",
        reason=f"host {mta} said: {reply} (in reply to greeting)",
        remote_mta=mta,
        diagnostic=f"smtp; {reply}",
        command="greeting",
        at=NOW,
    )
    assert json.loads(file.read_text()) == {
        "destination": name,
        **_values(down),
        "counted": [NOW],
    }
    assert known(spool, server.port) == down


BELIEVED = Down(
    since=NOW,
    failures=4,
    counted=(NOW,),
    until=int(NOW + 4000),
    status="4.4.1",
    reason="is down",
    remote_mta="",
    diagnostic="",
    command="",
    at=NOW,
)


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe{", id="no text"),
        pytest.param(b"[" * 100_000, id="nested"),
        pytest.param(b"[1]", id="no object"),
        pytest.param({"status": "5.4.1"}, id="a failure for good"),
        pytest.param({"status": "4.x"}, id="no status"),
        pytest.param({"status": "4.4.1\nMail"}, id="a status and more"),
        pytest.param({"reason": None}, id="no reason"),
        pytest.param({"since": float("nan")}, id="no number"),
        pytest.param({"at": float("inf")}, id="endless"),
        pytest.param({"at": -1}, id="before all time"),
        pytest.param({"since": 10**400}, id="more than a float holds"),
        pytest.param({"until": NOW + 4000.5}, id="no whole second"),
        pytest.param({"failures": float("nan")}, id="failures that are no number"),
        pytest.param({"failures": True}, id="failures that are a word"),
        pytest.param({"failures": -1}, id="fewer than none"),
        pytest.param({"counted": 5}, id="counted is no list"),
        pytest.param({"counted": ["x"]}, id="counted has no numbers"),
        pytest.param({"counted": [float("nan")]}, id="counted has what is no number"),
    ],
)
def test_a_broken_status_file_is_as_good_as_none(
    spool: str, log: Lines, octets: bytes | dict[str, object]
) -> None:
    put(spool, 1, ANN)
    port = free_port("127.0.0.1")
    file = Path(spool, "state/destinations", f"={name_of(port)}")
    file.parent.mkdir(parents=True)
    if isinstance(octets, dict):
        octets = json.dumps(_values(BELIEVED) | octets).encode()
    file.write_bytes(octets)
    assert Destinations(spool).get(name_of(port)) is None
    assert flush(to_smarthost(spool, port), Selection(), log=log) == Summary(tried=1, deferred=1)
    assert known(spool, port).failures == 1
    assert log.about("bug") == []


def test_a_status_file_is_believed_as_it_was_written(spool: str) -> None:
    os.mkdir(spool)
    for name in ("example.net", "[2001:db8::1]:25", "a/../b", ".hidden", "x" * 300, "\\xff.test"):
        Destinations(spool).put(name, BELIEVED)
        assert Destinations(spool).get(name) == BELIEVED
        Destinations(spool).forget(name)
        assert Destinations(spool).get(name) is None
    assert os.listdir(f"{spool}/state/destinations") == []


@pytest.mark.parametrize("spoil", ["a file", "full"])
def test_where_no_status_file_can_be_written_everything_else_is_as_ever(
    spool: str, log: Lines, spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        put(spool, number, ANN)
    if spoil == "a file":
        Path(spool, "state").mkdir()
        Path(spool, "state/destinations").write_text("")
    else:

        def write(fd: int, octets: bytes) -> int:
            raise OSError(28, "No space left on device")

        stands_in = SimpleNamespace(**vars(os))
        stands_in.write = write
        monkeypatch.setattr(destination, "posix", stands_in)
    port = free_port("127.0.0.1")
    assert flush(to_smarthost(spool, port), Selection(), log=log) == Summary(tried=2, deferred=2)
    assert Destinations(spool).get(name_of(port)) is None
    assert list(listing(spool)) == ["cur"]
    assert log.about("bug") == []


def test_what_nobody_has_waited_for_in_a_lifetime_is_forgotten(spool: str, log: Lines) -> None:
    put(spool, 1, ANN)
    destinations = Destinations(spool)
    for name, age in (("old.test", 6 * DAY), ("new.test", 4 * DAY)):
        destinations.put(name, BELIEVED)
        os.utime(f"{spool}/state/destinations/={name}", (NOW - age, NOW - age))
    with ScriptedServer() as server:
        flush(to_smarthost(spool, server.port), Selection(), log=log)
    assert os.listdir(f"{spool}/state/destinations") == ["=new.test"]


# -- when it is probed


def due(port: int, failures: int, now: float) -> int:
    """The documented time of the probe after so many failures in a row, the last of them now."""
    name = name_of(port)
    return int(
        retry.wait_after(
            failures,
            now,
            retry_min=300,
            retry_max=4 * HOUR,
            jitter=retry.jitter(name, failures),
        )
    )


def test_the_back_off_doubles_with_each_probe_at_its_time(
    spool: str, log: Lines, clock: SimpleNamespace, probes: list[float]
) -> None:
    for number in range(5):
        put(spool, number, ANN, arrived=NOW)
    port = free_port("127.0.0.1")
    config = to_smarthost(spool, port, warn_after=30 * DAY)
    waits = []
    for failures in range(1, 10):
        assert flush(config, Selection(), log=log) == Summary(tried=5, deferred=5)
        down = known(spool, port)
        assert (down.failures, down.until) == (failures, due(port, failures, clock.now))
        assert listing(spool) == {"cur": [f"{down.until}.{queue_id(n)}" for n in range(5)]}
        # Nothing is due before.
        clock.now, waited = float(down.until), down.until - clock.now
        waits.append(waited)
    assert len(probes) == 9
    doubled = [min(300 * 2**n, 4 * HOUR) for n in range(9)]
    assert all(
        wait * 0.9 - 1 <= actual <= wait * 1.1 for wait, actual in zip(doubled, waits, strict=True)
    )
    assert known(spool, port).counted == tuple(NOW + after for after in probes[-3:])
    assert known(spool, port).since == NOW


@pytest.mark.parametrize("selection", [EVERYTHING, Selection()], ids=["--all", "a new message"])
def test_a_probe_before_its_time_does_not_advance_the_back_off(
    spool: str, log: Lines, clock: SimpleNamespace, probes: list[float], selection: Selection
) -> None:
    put(spool, 1, ANN, arrived=NOW)
    port = free_port("127.0.0.1")
    config = to_smarthost(spool, port)
    flush(config, Selection(), log=log)
    first = known(spool, port)
    for number in range(2, 6):
        clock.now += 10
        put(spool, number, ANN, arrived=clock.now)
        waiting = number if selection.everything else 1
        assert flush(config, selection, log=log) == Summary(tried=waiting, deferred=waiting)
        down = known(spool, port)
        assert down == first.but(at=clock.now, counted=tuple(NOW + after for after in probes[-3:]))
    # All of them wait for that one time.
    assert listing(spool) == {"cur": [f"{first.until}.{queue_id(n)}" for n in range(1, 6)]}
    assert probes == [0.0, 10.0, 20.0, 30.0, 40.0]


def test_a_fault_of_this_machine_neither_counts_nor_advances_the_back_off(
    spool: str, log: Lines, clock: SimpleNamespace, probes: list[float]
) -> None:
    """A TCP connection to the broadcast address is ENETUNREACH on Linux, before any packet."""
    for number in range(3):
        put(spool, number, ANN, arrived=NOW)
    config = to_smarthost(spool, 25, host="255.255.255.255", lifetime=HOUR, warn_after=30 * DAY)
    for n in range(8):
        clock.now = NOW + n * DAY
        assert flush(config, Selection(), log=log) == Summary(tried=3, deferred=3)
        assert known(spool, 25, "255.255.255.255") == Down(
            since=NOW,
            failures=0,
            counted=(),
            until=int(clock.now + 300),
            status="4.4.1",
            reason="connect to [255.255.255.255]:25: Network is unreachable",
            remote_mta="255.255.255.255[255.255.255.255]:25",
            diagnostic="",
            command="",
            at=clock.now,
        )
        assert listing(spool) == {
            "cur": [f"{int(clock.now + 300)}.{queue_id(number)}" for number in range(3)]
        }
    # Long after its lifetime, none has been given up: it has never been tried.
    assert [read(spool, queue_id(number)).attempts for number in range(3)] == [0, 0, 0]
    assert len(probes) == 8


def test_a_fault_of_this_machine_leaves_the_back_off_where_it_was() -> None:
    down = after_failure(
        BELIEVED.but(failures=6, counted=(NOW - 9,), until=int(NOW - 1)),
        refused(25, NOW),
        local=True,
        name="x.test",
        retry_min=300,
        retry_max=4 * HOUR,
    )
    assert (down.failures, down.counted, down.until) == (6, (NOW - 9,), int(NOW + 300))


def test_a_setting_is_looked_at_again_soon_and_counts() -> None:
    """When it is mended mail flows within minutes; when it is not, its senders hear of it."""
    down = after_failure(
        BELIEVED.but(failures=6, counted=(NOW - 9,), until=int(NOW - 1)),
        refused(25, NOW),
        local=False,
        settings=True,
        name="x.test",
        retry_min=300,
        retry_max=4 * HOUR,
    )
    assert (down.failures, down.counted, down.until) == (6, (NOW - 9, NOW), int(NOW + 300))


def test_after_the_clock_was_set_back_a_probe_counts_as_one_at_its_time() -> None:
    down = after_failure(
        BELIEVED.but(until=int(NOW + DAY)),
        refused(25, NOW),
        local=False,
        name="x.test",
        retry_min=300,
        retry_max=4 * HOUR,
    )
    assert down.failures == BELIEVED.failures + 1
    assert down.until <= NOW + 4 * HOUR


# -- how it ends


def test_when_it_answers_the_others_go_out_in_the_same_run(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    for number in range(20):
        put(spool, number, ANN, arrived=NOW)
    # This one waits for a time of its own.
    put(spool, 99, ANN, arrived=NOW, due=int(NOW) + 3600)
    port = free_port("127.0.0.1")
    config = to_smarthost(spool, port)
    assert flush(config, Selection(), log=log) == Summary(tried=20, deferred=20)
    reason = known(spool, port).reason
    clock.now += 5
    put(spool, 20, ANN, arrived=clock.now)
    with ScriptedServer(port=port) as server:
        assert flush(config, Selection(), log=log) == Summary(tried=21, delivered=21)
    assert len(server.messages) == 21
    assert listing(spool) == {"cur": [f"{int(NOW) + 3600}.{queue_id(99)}"]}
    assert os.listdir(f"{spool}/state/destinations") == []
    assert log.about("event=") == [
        f'-: event="destination up" relay={name_of(port)} down="{reason}"'
    ]


def given_up(spool: str, log: Lines, clock: SimpleNamespace, config: Config, port: int) -> Lines:
    """Two messages, for a server that nobody answers for, until the last probe but the one that ends them."""
    for number in (1, 2):
        put(spool, number, ANN, arrived=NOW)
    for _ in range(2):
        assert flush(config, Selection(), log=log) == Summary(tried=2, deferred=2)
        clock.now = float(known(spool, port).until)
    # A lifetime is not enough: it was tried twice.
    assert clock.now - NOW >= config.spool.lifetime
    return log


def test_a_message_that_only_waited_ends_with_the_reason_of_its_destination(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    port = free_port("127.0.0.1")
    config = to_smarthost(spool, port, lifetime=600, warn_after=30 * DAY)
    given_up(spool, log, clock, config, port)
    # The probe, and who waits for it: both have failed, and their reports wait for the same server.
    assert flush(config, Selection(), log=log) == Summary(tried=4, deferred=2, failed=2)
    reports = [name.partition(".")[2] for name in listing(spool)["cur"]]
    assert not {queue_id(1), queue_id(2)} & set(reports)
    clock.now = float(known(spool, port).until)
    with ScriptedServer(port=port) as server:
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=2)
    assert listing(spool) == {}
    told = [read_report(message.octets) for message in server.messages]
    assert [message.recipients for message in server.messages] == [(ME,), (ME,)]
    reason = f"connect to [127.0.0.1]:{port}: Connection refused"
    for each in told:
        (about,) = each.recipients
        assert {key: about[key] for key in ("Final-Recipient", "Action", "Status")} == {
            "Final-Recipient": "rfc822; ann@x.test",
            "Action": "failed",
            "Status": "4.4.1",
        }
        assert f"delivery time expired: {reason}" in " ".join(each.text.split())


def test_a_message_that_came_late_has_not_been_waiting_for_the_probes_before_it(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    """Three attempts are three of its own time."""
    port = free_port("127.0.0.1")
    config = to_smarthost(spool, port, lifetime=60, warn_after=30 * DAY)
    put(spool, 2, ANN, arrived=NOW)
    counted = (NOW - 3000, NOW - 2000, NOW - 1000)
    Destinations(spool).put(name_of(port), BELIEVED.but(counted=counted, until=int(NOW)))
    for attempts in (1, 2):
        clock.now = max(clock.now, known(spool, port).until) + 3600.0
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, deferred=1), attempts
    clock.now += 3600
    assert flush(config, EVERYTHING, log=log).failed == 1


def test_a_message_that_only_waited_is_warned_about_once(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    port = free_port("127.0.0.1")
    config = to_smarthost(spool, port, delivery=ONE, warn_after=HOUR)
    for number in (1, 2):
        put(spool, number, ANN, arrived=NOW)
    flush(config, Selection(), log=log)
    clock.now += HOUR
    # The first of them is the probe; the second has its reason from that.  Both reports wait too.
    assert flush(config, Selection(), log=log) == Summary(tried=4, deferred=4)
    for number in (1, 2):
        entry = read(spool, queue_id(number))
        assert entry.reported == {"delay 0"}
        assert [(each.action, each.at) for each in entry.latest.values()] == [(DELAYED, clock.now)]
    clock.now = float(known(spool, port).until)
    assert flush(config, Selection(), log=log) == Summary(tried=4, deferred=4)
    clock.now = float(known(spool, port).until)
    reply = b"450 4.2.1 later"
    with ScriptedServer(replies({b"RCPT TO:<ann@": reply}), port=port) as server:
        assert flush(config, Selection(), log=log) == Summary(tried=4, delivered=2, deferred=2)
    assert [message.recipients for message in server.messages] == [(ME,), (ME,)]
    assert [read_report(message.octets).fates() for message in server.messages] == [
        [("ann@x.test", "delayed", "4.4.1")]
    ] * 2


def test_a_requeued_message_begins_anew_and_its_destination_does_not(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    port = free_port("127.0.0.1")
    config = to_smarthost(spool, port, lifetime=600, warn_after=30 * DAY)
    given_up(spool, log, clock, config, port)
    with Queue(spool) as queue:
        place = queue.find(queue_id(2), "cur")
        assert place is not None
        entry = queue.claim(place)
        assert entry is not None
        with entry:
            entry.requeue(clock.now)
    down = known(spool, port)
    # The first fails now, for it was its third probe; the requeued one has heard of one.
    assert flush(config, Selection(), log=log) == Summary(tried=3, deferred=2, failed=1)
    assert known(spool, port).failures == down.failures + 1
    entry = read(spool, queue_id(2))
    assert (entry.since, entry.place.due) == (clock.now, known(spool, port).until)
    clock.now = known(spool, port).until + 600.0
    assert flush(config, EVERYTHING, log=log) == Summary(tried=2, deferred=2)
    clock.now = known(spool, port).until + 600.0
    # With it the report about the first, which is as old; its own report has just come up.
    assert flush(config, EVERYTHING, log=log) == Summary(tried=3, deferred=1, failed=2)
    assert len(log.about(queue_id(2), f"status={FAILED}")) == 1


def test_what_is_put_off_is_put_off_to_the_sooner_of_two(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    """One next hop is down, the other has put its recipient off: the message waits for whichever comes first."""
    port = free_port("127.0.0.1")
    put(spool, 1, b"a@[127.0.0.1]", b"b@[127.0.0.2]", arrived=NOW)
    Destinations(spool).put("[127.0.0.2]", BELIEVED.but(until=int(NOW + 4000)))
    with ScriptedServer(replies({b"RCPT": b"450 4.2.1 later"}), port=port):
        config = to_smarthost(spool, port)
        config.smarthost = None
        config.delivery.mx_port = port
        config.delivery.tls = "none"
        assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
    own = retry.wait_after(
        1, NOW, retry_min=300, retry_max=4 * HOUR, jitter=retry.jitter(queue_id(1), 1)
    )
    assert listing(spool) == {"cur": [f"{int(own)}.{queue_id(1)}"]}
    down = Destinations(spool).get("[127.0.0.2]")
    assert down is not None
    assert own < down.until == int(NOW + 4000)
