"""Lanes: how many there are, whom a slow or a full server keeps waiting, and what a lane that breaks costs.

The servers are scripted, one on each address of 127.0.0.0/8 that a test needs; what must happen at the same time is held
there until it does.
"""

import _thread
import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from delivery.program import Program
from delivery.scripted import CLOSE, CONNECT, END_OF_DATA, Message, ScriptedServer, replies
from delivery.spooled import (
    NOW,
    Lines,
    is_free,
    put,
    queue_id,
    read,
    to_literals,
    to_smarthost,
)
from peers.process import free_port
from spool.make import listing

from minisend.config.sections import Delivery
from minisend.delivery import lanes as module
from minisend.delivery.attempt import Attempt, Job, Run, Summary
from minisend.delivery.flush import Selection, flush, new_run
from minisend.delivery.lanes import Lanes
from minisend.delivery.pace import Pace
from minisend.delivery.remote import Remote
from minisend.delivery.route import NextHop
from minisend.envelope import RELAYED
from minisend.errors import SystemFault
from minisend.spool.entry import Place
from minisend.spool.store import Queue

_WAIT = 20.0  # a test that waits longer has failed
ANN = b"ann@x.test"


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture(autouse=True)
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further lane is of use: how many there are must not depend on what else this machine does."""
    monkeypatch.setattr(Pace, "let_in", lambda self, now, quickest: setattr(self, "is_far", True))
    monkeypatch.setattr(Pace, "more", lambda self, now, connections, work: 1.0)


@pytest.fixture(autouse=True)
def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes can be told from other threads."""

    def start(function: Callable[..., None], arguments: tuple[object, ...]) -> None:
        threading.Thread(target=function, args=arguments, name="_lane", daemon=True).start()

    monkeypatch.setattr(module, "start_new_thread", start)


def running() -> int:
    """Lanes that there are at this moment."""
    return sum("_lane" in thread.name for thread in threading.enumerate())


class Crowd:
    """Lets so many sessions in at a time, and answers further ones with 421; counts both.  To be asked first by an ``answer``."""

    def __init__(self, room: int = 1000) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._inside: set[int] = set()
        self.most = 0
        self.refused = 0
        self.full = threading.Event()

    def __call__(self, command: bytes) -> bytes | None:
        this = threading.get_ident()  # each session has a thread of its own
        with self._lock:
            if command == CONNECT:
                if len(self._inside) >= self._room:
                    self.refused += 1
                    self.full.set()
                    return b"421 4.3.2 too many connections"
                self._inside.add(this)
                self.most = max(self.most, len(self._inside))
            elif command == b"QUIT":
                self._inside.discard(this)
        return None


def senders(messages: list[Message]) -> list[bytes]:
    return sorted(message.sender for message in messages)


def put_many(spool: str, numbers: range, *recipients: bytes) -> list[bytes]:
    """Queue a message of each number; their senders, by which a server knows them."""
    names = [b"%d@here.test" % number for number in numbers]
    for number, sender in zip(numbers, names, strict=True):
        put(spool, number, *recipients, sender=sender, arrived=time.time())
    return sorted(names)


# -- how many


def test_one_lane_until_a_server_let_it_in_then_five(spool: str, log: Lines) -> None:
    sent = put_many(spool, range(12), ANN)
    all_added = threading.Event()
    lanes: list[int] = []
    crowd = Crowd()
    together = threading.Barrier(5, lambda: lanes.append(running()))

    def answer(command: bytes) -> bytes | None:
        crowd(command)
        if command == CONNECT and not lanes:
            assert all_added.wait(_WAIT)
            lanes.append(running())
        elif command == END_OF_DATA and len(lanes) < 2:
            together.wait(_WAIT)
        return None

    def progress(done: int, total: int) -> None:
        if total == 12:
            all_added.set()

    with ScriptedServer(answer) as server:
        config = to_smarthost(spool, server.port)
        summary = flush(config, Selection(), log=log, progress=progress)
    assert lanes == [1, 5]
    assert summary == Summary(tried=12, delivered=12)
    assert senders(server.messages) == sent
    assert listing(spool) == {}


def test_a_server_that_is_near_gets_more_lanes_as_they_are_of_use(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One to begin with; that the time is looked at is ``Pace``'s, which hears of every delivery."""
    heard: list[tuple[int, float]] = []

    def more(pace: Pace, now: float, connections: int, work: float) -> float:
        heard.append((connections, work))
        return 1.0 if len(heard) == 20 else 0.0

    monkeypatch.setattr(Pace, "let_in", lambda self, now, quickest: None)
    monkeypatch.setattr(Pace, "more", more)
    monkeypatch.setattr(module, "_STUCK", _WAIT)
    # With the processor's time of each delivery: of the last eight that were looked at.
    clock = iter(range(100))
    monkeypatch.setattr(module, "process_time", lambda: 8.0 * next(clock))
    sent = put_many(spool, range(60), ANN)
    crowd = Crowd()
    together = threading.Barrier(2)

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA and 40 < len(server.messages) <= 42:
            together.wait(_WAIT)
        return crowd(command)

    with ScriptedServer(answer) as server:
        config = to_smarthost(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=60, delivered=60)
    assert senders(server.messages) == sent
    assert crowd.most == 2
    assert heard[:20] == [(1, 0.0)] * 8 + [(1, 1.0)] * 12
    assert len(heard) == 60


def test_lanes_grow_to_the_limit_of_the_host(spool: str, log: Lines) -> None:
    """From five to eight: as each lane has delivered, there is one more."""
    sent = put_many(spool, range(60), ANN)
    crowd = Crowd()
    together = threading.Barrier(8)

    def answer(command: bytes) -> bytes | None:
        crowd(command)
        if command == END_OF_DATA and 40 < len(server.messages) <= 48:
            together.wait(_WAIT)
        return None

    with ScriptedServer(answer) as server:
        config = to_smarthost(spool, server.port, delivery=Delivery(connections_per_host=8))
        assert flush(config, Selection(), log=log) == Summary(tried=60, delivered=60)
    assert senders(server.messages) == sent
    assert crowd.most == 8


def test_never_more_connections_in_all_than_configured(spool: str, log: Lines) -> None:
    port = free_port("127.0.0.1")
    sent = []
    for server in range(4):
        sent += put_many(spool, range(server * 8, server * 8 + 8), b"a@[127.0.0.%d]" % (server + 1))
    crowd = Crowd()
    together = threading.Barrier(3)
    counts: list[int] = []

    def answer(command: bytes) -> bytes | None:
        crowd(command)
        if command == END_OF_DATA:
            counts.append(1)
            if len(counts) <= 3:
                together.wait(_WAIT)
        return None

    servers = [ScriptedServer(answer, address=f"127.0.0.{n}", port=port) for n in (1, 2, 3, 4)]
    with servers[0], servers[1], servers[2], servers[3]:
        config = to_literals(spool, port, delivery=Delivery(connections=3))
        assert flush(config, Selection(), log=log) == Summary(tried=32, delivered=32)
    assert senders([m for server in servers for m in server.messages]) == sorted(sent)
    assert crowd.most == 3


def test_a_message_that_comes_begins_one_lane_and_not_as_many_as_there_may_be(
    spool: str, log: Lines
) -> None:
    for number in (1, 2):
        put(spool, number, ANN)
    second = threading.Event()

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA:
            if len(server.messages) == 1:
                lanes.add(Place("new", queue_id(2)))
                assert second.wait(_WAIT)
            else:
                second.set()
        return None

    with ScriptedServer(answer) as server, Queue(spool) as queue:
        summary = Summary()
        lanes = Lanes(new_run(to_smarthost(spool, server.port), queue, summary, log))
        lanes.add(Place("new", queue_id(1)))
        assert lanes.wait(_WAIT)
        lanes.close()
    assert summary == Summary(tried=2, delivered=2)
    assert [session.verbs().count(b"MAIL") for session in server.sessions] == [1, 1]


class Scarce:
    """In place of ``start_new_thread``: so many threads, and then the system has no more."""

    def __init__(self, most: int) -> None:
        self._left = most

    def __call__(self, function: Callable[..., None], arguments: tuple[object, ...]) -> int:
        if not self._left:
            raise RuntimeError("can't start new thread")
        self._left -= 1
        return _thread.start_new_thread(function, arguments)


def test_fewer_threads_than_configured_are_enough(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = put_many(spool, range(12), ANN)
    monkeypatch.setattr(module, "start_new_thread", Scarce(2))
    together = threading.Barrier(2)

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA and len(server.messages) <= 2:
            together.wait(_WAIT)
        return None

    with ScriptedServer(answer) as server:
        config = to_smarthost(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=12, delivered=12)
    assert senders(server.messages) == sent
    assert len(server.sessions) == 2


def test_without_any_thread_the_run_ends_and_says_why(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(spool, 1, ANN)
    monkeypatch.setattr(module, "start_new_thread", Scarce(0))
    with pytest.raises(SystemFault, match=r"^delivery: can't start new thread$"):
        flush(to_smarthost(spool, free_port("127.0.0.1")), Selection(), log=log)
    assert listing(spool) == {"new": [name]}


# -- servers that let few in


def test_a_server_that_lets_three_in_costs_no_message_a_deferral(spool: str, log: Lines) -> None:
    sent = put_many(spool, range(40), ANN)
    crowd = Crowd(room=3)
    together = threading.Barrier(3)

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA and len(server.messages) <= 3:
            together.wait(_WAIT)
            assert crowd.full.wait(_WAIT)
        return crowd(command)

    with ScriptedServer(answer) as server:
        config = to_smarthost(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=40, delivered=40)
    assert senders(server.messages) == sent
    assert listing(spool) == {}
    assert crowd.most == 3
    # Those that came up with the second and third, and then now and again: each time less often.
    assert 1 <= crowd.refused <= 8
    assert log.about("status=delayed") == log.about("destination") == []


def test_a_server_that_closes_after_each_message_is_not_asked_for_more_lanes_each_time(
    spool: str, log: Lines
) -> None:
    """It lets one in at a time: every new session of that one lane is no reason to try four more."""
    sent = put_many(spool, range(30), ANN)
    turned_away = threading.Event()
    lock = threading.Lock()
    inside: set[int] = set()
    refused: list[bytes] = []

    def answer(command: bytes) -> bytes | None:
        this = threading.get_ident()
        with lock:
            if command == CONNECT:
                if inside:
                    refused.append(command)
                    turned_away.set()
                    return b"421 4.3.2 one at a time"
                inside.add(this)
                done.discard(this)
            elif command == b"QUIT":
                inside.discard(this)
        if command.startswith(b"MAIL") and this in done:
            with lock:
                inside.discard(this)
            return b"421 4.3.2 one message is enough"
        if command == END_OF_DATA:
            done.add(this)
            assert turned_away.wait(_WAIT)
        return None

    done: set[int] = set()
    with ScriptedServer(answer) as server:
        summary = flush(to_smarthost(spool, server.port), Selection(), log=log)
    # Where a further lane was let in between two sessions of the first, that one leaves its message to it.
    assert summary == Summary(tried=30, delivered=30)
    assert senders(server.messages) == sent
    assert len(refused) <= 16


def test_a_lane_that_is_not_let_in_again_leaves_the_messages_to_the_others(
    spool: str, log: Lines
) -> None:
    """The second session is lost at its second message, and nobody is let in any more: the first takes that message too."""
    sent = put_many(spool, range(40), ANN)
    second: list[int] = []
    refused = threading.Event()

    def answer(command: bytes) -> bytes | None:
        this = threading.get_ident()
        if command == CONNECT:
            if len(server.sessions) > 2:
                refused.set()
                return b"421 4.3.2 no more"
            if len(server.sessions) == 2:
                second.append(this)
        elif command.startswith(b"MAIL") and this in second:
            second.append(this)
            if len(second) == 3:
                return CLOSE
        elif command == END_OF_DATA and this not in second:
            # The first goes on when the second has been refused.
            assert refused.wait(_WAIT)
        return None

    with ScriptedServer(answer) as server:
        config = to_smarthost(spool, server.port, delivery=Delivery(connections_per_host=2))
        assert flush(config, Selection(), log=log) == Summary(tried=40, delivered=40)
    assert senders(server.messages) == sent
    assert listing(spool) == {}
    # Not down, as the first lane was let in all the time.
    assert log.about("event=") == []
    assert not os.path.exists(f"{spool}/state/destinations")


def test_after_its_last_lane_a_next_hop_is_probed_again(spool: str, log: Lines) -> None:
    """What had five lanes, and lost them all, begins with one."""
    put_many(spool, range(10), ANN)
    port = free_port("127.0.0.1")
    together = threading.Barrier(5)

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA and len(server.messages) <= 5:
            together.wait(_WAIT)
        return None

    with Queue(spool) as queue:
        summary = Summary()
        lanes = Lanes(new_run(to_smarthost(spool, port), queue, summary, log))
        with ScriptedServer(answer, port=port) as server:
            for place in queue.places("new"):
                lanes.add(place)
            assert lanes.wait(_WAIT)
            lanes_before = [thread for thread in threading.enumerate() if "_lane" in thread.name]
            server.disconnect()
            for thread in lanes_before:
                # They have kept their connections for a moment, for a message that might have come.
                thread.join(_WAIT)
        put_many(spool, range(10, 20), ANN)
        lanes.next_wave()
        with ScriptedServer(replies({CONNECT: b"421 4.3.2 go away"}), port=port) as refusing:
            for place in queue.places("new"):
                lanes.add(place)
            assert lanes.wait(_WAIT)
            lanes.close()
    assert summary == Summary(tried=20, delivered=10, deferred=10)
    assert len(refusing.sessions) == 1
    assert len(log.about("status=delayed")) == 1


# -- who waits for whom


def test_a_slow_server_keeps_no_other_destination_waiting(spool: str, log: Lines) -> None:
    port = free_port("127.0.0.1")
    slow = put_many(spool, range(10), b"a@[127.0.0.2]")
    quick = put_many(spool, range(10, 40), b"a@[127.0.0.1]")
    all_quick = threading.Event()

    def answer_quick(command: bytes) -> None:
        if command == END_OF_DATA and len(server.messages) == len(quick):
            all_quick.set()

    def answer_slow(command: bytes) -> None:
        if command == CONNECT:
            assert all_quick.wait(_WAIT)

    with (
        ScriptedServer(answer_quick, port=port) as server,
        ScriptedServer(answer_slow, address="127.0.0.2", port=port) as slow_server,
    ):
        config = to_literals(spool, port, delivery=Delivery(connections=6))
        assert flush(config, Selection(), log=log) == Summary(tried=40, delivered=40)
    assert senders(server.messages) == quick
    assert senders(slow_server.messages) == slow


def test_a_message_that_takes_long_keeps_no_other_of_its_destination_waiting(
    spool: str, log: Lines
) -> None:
    sent = put_many(spool, range(20), ANN)
    all_others = threading.Event()

    def answer(command: bytes) -> None:
        if command == END_OF_DATA:
            if len(server.messages) == 1:
                assert all_others.wait(_WAIT)
            elif len(server.messages) == 20:
                all_others.set()

    # With pipelining a message or two would be on their way behind the one that takes long.
    with ScriptedServer(answer, keywords=(b"8BITMIME", b"SIZE")) as server:
        config = to_smarthost(spool, server.port, delivery=Delivery(connections_per_host=2))
        assert flush(config, Selection(), log=log) == Summary(tried=20, delivered=20)
    assert senders(server.messages) == sent


def test_few_messages_get_their_turn_before_many_are_through(spool: str, log: Lines) -> None:
    """Two connections in all, 200 messages for one server, and then three for another."""
    port = free_port("127.0.0.1")
    put_many(spool, range(200), b"a@[127.0.0.1]")
    few = put_many(spool, range(200, 203), b"a@[127.0.0.2]")
    before: list[int] = []
    all_added = threading.Event()
    few_are_through = threading.Event()

    def answer_many(command: bytes) -> None:
        if command == END_OF_DATA:
            assert all_added.wait(_WAIT)
        # A turn of each of the two lanes, and what may go out while the new one connects.
        held = command == END_OF_DATA and len(server.messages) >= 60
        if held and not few_are_through.wait(_WAIT):
            few_are_through.set()  # and ``before`` tells

    def answer_few(command: bytes) -> None:
        if command == END_OF_DATA:
            before.append(len(server.messages))
            if len(before) == len(few):
                few_are_through.set()

    with (
        ScriptedServer(answer_many, port=port) as server,
        ScriptedServer(answer_few, address="127.0.0.2", port=port) as other,
    ):
        summary = flush(
            to_literals(spool, port, delivery=Delivery(connections=2)),
            Selection(),
            log=log,
            progress=lambda done, total: all_added.set() if total == 203 else None,
        )
    assert summary == Summary(tried=203, delivered=203)
    assert senders(other.messages) == few
    # Behind the sixtieth there is at most the one that the other lane has in hand.
    assert before[-1] <= 61


def test_of_two_next_hops_the_slow_one_does_not_keep_the_other_waiting(
    spool: str, log: Lines
) -> None:
    port = free_port("127.0.0.1")
    name = put(spool, 1, b"slow@[127.0.0.2]", b"quick@[127.0.0.1]")
    seen: list[tuple[int, str]] = []
    recorded = threading.Event()

    def answer_slow(command: bytes) -> None:
        if command == END_OF_DATA:
            assert recorded.wait(_WAIT)
            seen.extend((index, each.action) for index, each in read(spool, name).latest.items())
            # In the hands of the lane that is here.
            assert not is_free(spool, Place("new", name))

    def answer_quick(command: bytes) -> None:
        if command == b"QUIT":
            recorded.set()

    with (
        ScriptedServer(answer_quick, port=port) as quick,
        ScriptedServer(answer_slow, address="127.0.0.2", port=port) as slow,
    ):
        assert flush(to_literals(spool, port), Selection(), log=log) == Summary(
            tried=1, delivered=1
        )
    assert seen == [(1, RELAYED)]
    assert [message.recipients for message in quick.messages] == [(b"quick@[127.0.0.1]",)]
    assert [message.recipients for message in slow.messages] == [(b"slow@[127.0.0.2]",)]
    assert listing(spool) == {}


def test_a_message_that_waits_for_its_turn_holds_no_claim_and_no_descriptor(
    spool: str, log: Lines
) -> None:
    port = free_port("127.0.0.1")
    sent = put_many(spool, range(300), b"a@[127.0.0.2]", b"a@[127.0.0.1]")
    all_quick = threading.Event()
    descriptors: list[int] = []

    def answer_quick(command: bytes) -> None:
        if command == END_OF_DATA and len(server.messages) == 300:
            all_quick.set()

    def answer_slow(command: bytes) -> None:
        if command == CONNECT and not descriptors:
            assert all_quick.wait(_WAIT)
            held = [_target(fd) for fd in os.listdir("/proc/self/fd")]
            descriptors.append(sum(path.startswith(f"{spool}/queue/new/") for path in held))
            # One that has had its turn at the other, long ago; not the first, which this lane holds.
            assert is_free(spool, Place("new", queue_id(100)))

    with (
        ScriptedServer(answer_quick, port=port) as server,
        ScriptedServer(answer_slow, address="127.0.0.2", port=port) as slow,
    ):
        summary = flush(to_literals(spool, port), Selection(), log=log)
    assert summary == Summary(tried=300, delivered=300)
    assert senders(server.messages) == senders(slow.messages) == sent
    assert listing(spool) == {}
    # The message of the lane that waits, and those of the lanes that have just finished.
    assert descriptors[0] <= 21


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def test_many_open_messages_need_few_descriptors(spool: str, log: Lines) -> None:
    """Before anybody is let in: of most of those that wait only the name is kept."""
    port = free_port("127.0.0.1")
    put_many(spool, range(200), b"a@[127.0.0.1]")
    all_added = threading.Event()
    descriptors: list[int] = []

    def answer(command: bytes) -> None:
        if command == CONNECT and not descriptors:
            assert all_added.wait(_WAIT)
            held = [_target(fd) for fd in os.listdir("/proc/self/fd")]
            descriptors.append(sum(path.startswith(f"{spool}/queue/new/") for path in held))

    with ScriptedServer(answer, port=port):
        config = to_literals(spool, port)
        summary = flush(
            config,
            Selection(),
            log=log,
            progress=lambda done, total: all_added.set() if total == 200 else None,
        )
    assert summary == Summary(tried=200, delivered=200)
    assert descriptors[0] <= 51


# -- what breaks


def test_a_bug_in_a_lane_costs_the_message_that_it_had(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_many(spool, range(10), ANN)

    def job(self: Attempt, hop: NextHop) -> Job | None:
        if self.place.queue_id == queue_id(3):
            raise RuntimeError("a bug")
        return real(self, hop)

    real = Attempt.job
    monkeypatch.setattr(Attempt, "job", job)
    with ScriptedServer(keywords=(b"8BITMIME", b"SIZE")) as server:
        config = to_smarthost(spool, server.port, delivery=Delivery(connections=1))
        assert flush(config, Selection(), log=log) == Summary(tried=10, delivered=9)
    assert len(server.messages) == 9
    assert listing(spool) == {"new": [queue_id(3)]}
    assert is_free(spool, Place("new", queue_id(3)))
    (bug,) = [text for level, text in log.lines if level == "error"]
    assert "event=bug" in bug
    assert "RuntimeError: a bug" in bug


def test_a_bug_that_every_further_lane_meets_does_not_begin_them_without_end(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = put_many(spool, range(30), ANN)
    met = threading.Event()

    def open_ahead(self: Remote) -> bool:
        met.set()
        raise RuntimeError("a bug")

    def answer(command: bytes) -> None:
        if command == END_OF_DATA:
            assert met.wait(_WAIT)

    monkeypatch.setattr(Remote, "open_ahead", open_ahead)
    with ScriptedServer(answer) as server:
        config = to_smarthost(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=30, delivered=30)
    assert senders(server.messages) == sent
    # Four at first, and then one for each four deliveries.
    assert 1 <= len(log.about("event=bug")) <= 12


def test_the_claim_lasts_while_anybody_is_at_work(spool: str, log: Lines) -> None:
    """One next hop meets a fault of the disk, another finds that all is over: the third is in the middle of it."""
    put(spool, 1, b"a@[127.0.0.1]", b"b@[127.0.0.2]", b"c@[127.0.0.3]")
    place = Place("new", queue_id(1))

    with Queue(spool) as queue:
        attempt = Attempt(_run(spool, queue, log), place)
        hops = attempt.begin()
        assert hops is not None
        a, b, c = hops
        assert attempt.enter(a)
        assert attempt.enter(b)
        job = attempt.job(a)
        assert job is not None
        job.fail(OSError(errno.EIO, "Input/output error"))
        assert not attempt.enter(c)
        attempt.leave(c)
        assert not is_free(spool, place)
        attempt.leave(a)
        assert not is_free(spool, place)
        attempt.leave(b)
        assert is_free(spool, place)


def _run(spool: str, queue: Queue, log: Lines) -> Run:
    return new_run(to_literals(spool, 25), queue, Summary(), log)


def test_what_is_in_hand_under_another_name_is_to_be_added_again(spool: str, log: Lines) -> None:
    put(spool, 1, ANN)
    added: list[bool] = []

    def answer(command: bytes) -> None:
        if command == END_OF_DATA:
            added.append(lanes.add(Place("new", queue_id(1))))
            added.append(lanes.add(Place("cur", f"0000000001.{queue_id(1)}")))

    with ScriptedServer(answer) as server, Queue(spool) as queue:
        lanes = Lanes(new_run(to_smarthost(spool, server.port), queue, Summary(), log))
        added.append(lanes.add(Place("new", queue_id(1))))
        assert lanes.wait(_WAIT)
        lanes.close()
    assert added == [True, True, False]
    assert len(server.messages) == 1


# -- several processes


def test_two_flush_processes_share_the_work(tmp_path: Path) -> None:
    names = ("one.test", "two.test")
    both = {name.encode(): threading.Event() for name in names}
    helloes: dict[int, bytes] = {}

    def answer(command: bytes) -> None:
        this = threading.get_ident()
        if command.startswith(b"EHLO "):
            helloes[this] = command[5:]
        elif command == END_OF_DATA:
            both[helloes[this]].set()
            # Neither goes on before the other has delivered something too.
            assert all(event.wait(_WAIT) for event in both.values())

    with ScriptedServer(answer) as server:
        settings = (
            f'[smarthost]\nhost = "127.0.0.1"\nport = {server.port}\ntls = "none"\n'
            "[delivery]\nconnections_per_host = 3\n"
        )
        program = Program(tmp_path, settings)
        sent = put_many(str(program.spool), range(40), ANN)
        configuration = program.config.read_text()
        processes = []
        for name in names:
            file = tmp_path / f"{name}.toml"
            file.write_text(configuration.replace("here.test", name, 1))
            command = [
                part.replace(str(program.config), str(file))
                for part in program.command("minisend", "flush")
            ]
            processes.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
        said = [process.communicate(timeout=60)[0].decode() for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
    assert senders(server.messages) == sent
    counts = [int(text.split()[0]) for text in said]
    assert min(counts) >= 1
    assert sum(counts) == 40
    assert listing(str(program.spool)) == {}


def test_a_slow_disk_takes_nothing_of_the_patience_with_a_rate(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn is 58 s away, and the sync of what others have done takes 5: that is less than a minute all the same."""
    clock = SimpleNamespace(now=NOW)
    stands_in = SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", stands_in)
    rate = SimpleNamespace(take=lambda now: max(now, NOW + 58))
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        clock.now += seconds

    def sync() -> None:
        clock.now += 5

    config = to_smarthost(spool, free_port())
    with Queue(spool, create=True) as queue:
        lanes = Lanes(new_run(config, queue, Summary(), log))
        monkeypatch.setattr(lanes, "_no_patience", SimpleNamespace(wait=pause))
        assert lanes.held_back(SimpleNamespace(rate=rate), sync) is None
    assert NOW + 58 <= clock.now <= NOW + 63
    assert waited == [1.0] * 9 + [0.0]
