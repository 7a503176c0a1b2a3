"""minisend run: what wakes it, how it ends, and that no message is left between its end and the next flusher's start.

Most of it with the real program; what happens between two system calls, in this process.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from delivery.program import Program
from delivery.scripted import CONNECT, END_OF_DATA, KEYWORDS, Answer, ScriptedServer
from delivery.spooled import NOW, Lines, is_free, put, queue_id, to_smarthost
from peers.process import free_port
from spool.make import listing

from minisend.delivery import lanes
from minisend.delivery import serve as module
from minisend.delivery.attempt import Run, Summary
from minisend.delivery.flush import Stop, background_flush
from minisend.delivery.serve import serve
from minisend.errors import SpoolError, SystemFault
from minisend.spool.entry import Place
from minisend.spool.store import Queue
from minisend.spool.trigger import EVERYTHING, SUBMISSION, Trigger, poke

_WAIT = 20.0  # a test that waits longer has failed
ANN = b"ann@x.test"
MESSAGE = b"Subject: x\n\n"
# Without PIPELINING the next message is not on its way before this one is answered.
ONE_BY_ONE = (b"8BITMIME", b"SIZE")


# -- the real program


def program(tmp_path: Path, server: ScriptedServer, *, retry_min: str = "5m") -> Program:
    """Over one connection, so that there is one order."""
    return Program(
        tmp_path,
        f'[smarthost]\nhost = "127.0.0.1"\nport = {server.port}\ntls = "none"\n'
        "[delivery]\nconnections = 1\n",
        retry_min=retry_min,
    )


@contextmanager
def running(
    installed: Program, *arguments: str, face: str = "run"
) -> Iterator[subprocess.Popen[bytes]]:
    """``minisend run``, or another command, with these arguments; killed at the end if it has not ended."""
    with subprocess.Popen(
        installed.command("minisend", face, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def serves(process: subprocess.Popen[bytes]) -> bool:
    """It has the FIFO open."""
    directory = f"/proc/{process.pid}/fd"
    for fd in os.listdir(directory):
        try:
            if os.readlink(f"{directory}/{fd}").endswith("/trigger"):
                return True
        except FileNotFoundError:
            pass  # closed meanwhile
    return False


def asked_to_end(process: subprocess.Popen[bytes]) -> bool:
    """It has handled SIGTERM: a second one would kill it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = [line for line in status.splitlines() if line.startswith("SigCgt:")]
    return not int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1


def ended(process: subprocess.Popen[bytes]) -> tuple[int, list[str]]:
    """Exit code, and what it logged of itself."""
    _, said = process.communicate(timeout=_WAIT)
    lines = said.decode().splitlines()
    return process.returncode, [line for line in lines if line.startswith("minisend: -: ")]


def told(installed: Program) -> list[str]:
    return [
        f"minisend: -: event=serving spool={installed.spool}",
        f"minisend: -: event=stopped spool={installed.spool}",
    ]


def counting(counts: "list[threading.Event]") -> Answer:
    """Sets the n-th event when the n-th message has been taken."""
    left = iter(counts)

    def answer(command: bytes) -> None:
        if command == END_OF_DATA:
            next(left).set()

    return answer


def events(count: int) -> list[threading.Event]:
    return [threading.Event() for _ in range(count)]


def test_a_submission_wakes_it_and_needs_no_flusher_of_its_own(tmp_path: Path) -> None:
    taken = events(2)
    with ScriptedServer(counting(taken)) as server:
        installed = program(tmp_path, server)
        with running(installed) as process:
            eventually(lambda: serves(process))
            for each in taken:
                done = installed.run("sendmail", "ann@x.test", stdin=MESSAGE)
                assert (done.returncode, done.stderr) == (0, b"")
                assert each.wait(_WAIT)
            process.terminate()
            assert ended(process) == (0, told(installed))
    assert listing(str(installed.spool)) == {}
    # What a flusher that a submission starts takes first.
    assert not (installed.spool / "state/slots").exists()


def test_it_delivers_what_falls_due(tmp_path: Path) -> None:
    asked: list[bytes] = []
    taken = threading.Event()

    def answer(command: bytes) -> bytes | None:
        if command.startswith(b"RCPT"):
            asked.append(command)
            return b"450 4.2.1 later" if len(asked) == 1 else None
        if command == END_OF_DATA:
            taken.set()
        return None

    with ScriptedServer(answer) as server:
        installed = program(tmp_path, server, retry_min="1s")
        installed.sendmail("ann@x.test", stdin=MESSAGE)
        with running(installed) as process:
            assert taken.wait(_WAIT)
            process.terminate()
            assert ended(process) == (0, told(installed))
    assert len(asked) == 2
    assert listing(str(installed.spool)) == {}


@pytest.mark.parametrize("command", ["release", "requeue"])
def test_an_administrator_wakes_it(tmp_path: Path, command: str) -> None:
    taken = events(1)
    with ScriptedServer(counting(taken)) as server:
        installed = program(tmp_path, server)
        spool = str(installed.spool)
        later = int(time.time()) + 3600
        name = put(spool, 1, ANN, arrived=time.time(), due=later)
        if command == "release":
            os.rename(f"{spool}/queue/cur/{later}.{name}", f"{spool}/queue/hold/{name}")
        with running(installed) as process:
            eventually(lambda: serves(process))
            assert installed.run("minisend", command, name).returncode == 0
            assert taken[0].wait(_WAIT)
            process.terminate()
            assert ended(process) == (0, told(installed))
    assert listing(spool) == {}


def test_the_end_does_not_wait_for_a_server_that_says_nothing(tmp_path: Path) -> None:
    connected, over = threading.Event(), threading.Event()

    def answer(command: bytes) -> None:
        if command == CONNECT:
            connected.set()
            assert over.wait(_WAIT)

    with ScriptedServer(answer) as server:
        installed = program(tmp_path, server)
        installed.sendmail("ann@x.test", stdin=MESSAGE)
        with running(installed) as process:
            assert connected.wait(_WAIT)
            process.terminate()
            assert ended(process) == (0, told(installed))
        over.set()
        ((state, (name,)),) = listing(str(installed.spool)).items()
        assert state == "new"
        assert is_free(str(installed.spool), Place(state, name))
    assert [session.commands for session in server.sessions] == [[]]


@contextmanager
def at_the_final_dot(
    tmp_path: Path, face: str, count: int, keywords: tuple[bytes, ...] = ONE_BY_ONE
) -> Iterator[tuple[Program, subprocess.Popen[bytes], threading.Event, ScriptedServer]]:
    """A command whose first message is sent, and whose server says nothing to it before the event."""
    sent, go_on = threading.Event(), threading.Event()

    def answer(command: bytes) -> None:
        if command == END_OF_DATA:
            sent.set()
            assert go_on.wait(_WAIT)

    with ScriptedServer(answer, keywords=keywords) as server:
        installed = program(tmp_path, server)
        for number in range(count):
            put(str(installed.spool), number, ANN, arrived=time.time())
        try:
            with running(installed, face=face) as process:
                assert sent.wait(_WAIT)
                process.terminate()
                eventually(lambda: asked_to_end(process))
                yield installed, process, go_on, server
        finally:
            go_on.set()


def test_the_end_waits_for_the_answer_to_a_message_that_is_sent(tmp_path: Path) -> None:
    with at_the_final_dot(tmp_path, "run", 2) as (installed, process, go_on, server):
        go_on.set()
        assert ended(process) == (0, told(installed))
    assert len(server.messages) == 1
    assert listing(str(installed.spool)) == {"new": [queue_id(1)]}


def test_the_end_waits_for_the_answers_to_all_that_is_on_its_way(tmp_path: Path) -> None:
    """What the server has taken is gone from the queue, what it has not is in it, and nothing is both."""
    with at_the_final_dot(tmp_path, "run", 8, KEYWORDS) as (installed, process, go_on, server):
        go_on.set()
        assert ended(process) == (0, told(installed))
    taken = len(server.messages)
    assert 1 <= taken < 8
    assert listing(str(installed.spool)) == {"new": [queue_id(n) for n in range(taken, 8)]}


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with at_the_final_dot(tmp_path, "run", 1) as (installed, process, _, _):
        process.terminate()
        assert process.wait(_WAIT) == -signal.SIGTERM
        assert is_free(str(installed.spool), Place("new", queue_id(0)))
    assert listing(str(installed.spool)) == {"new": [queue_id(0)]}


def test_a_flush_that_is_stopped_says_so(tmp_path: Path) -> None:
    with at_the_final_dot(tmp_path, "flush", 3) as (installed, process, go_on, server):
        go_on.set()
        said, _ = process.communicate(timeout=_WAIT)
        assert said == b"1 delivered, 0 waiting, 0 failed, stopped before the end\n"
        assert process.returncode == 75
    assert len(server.messages) == 1
    assert listing(str(installed.spool)) == {"new": [queue_id(1), queue_id(2)]}


def test_two_serve_one_queue(tmp_path: Path) -> None:
    """Each message goes out once, and each of them ends when it is asked to, at once, the other one serving on."""
    taken = events(22)
    with ScriptedServer(counting(taken)) as server:
        installed = program(tmp_path, server)
        for number in range(20):
            put(str(installed.spool), number, ANN, arrived=time.time())
        with running(installed) as one, running(installed) as other:
            assert taken[19].wait(_WAIT)
            eventually(lambda: serves(one) and serves(other))
            installed.run("sendmail", "ann@x.test", stdin=MESSAGE)
            assert taken[20].wait(_WAIT)
            one.terminate()
            assert ended(one) == (0, told(installed))
            installed.run("sendmail", "ann@x.test", stdin=MESSAGE)
            assert taken[21].wait(_WAIT)
            other.terminate()
            assert ended(other) == (0, told(installed))
    assert len(server.messages) == 22
    assert listing(str(installed.spool)) == {}
    assert not (installed.spool / "state/slots").exists()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_trigger_that_is_no_fifo(tmp_path: Path, kind: str) -> None:
    with ScriptedServer() as server:
        installed = program(tmp_path, server)
        installed.sendmail("ann@x.test", stdin=MESSAGE)
        trigger = installed.spool / "state/trigger"
        trigger.parent.mkdir(exist_ok=True)
        if kind == "file":
            trigger.write_text("kept")
        else:
            trigger.symlink_to("/dev/null")
        done = installed.run("minisend", "run")
    assert (done.returncode, done.stdout) == (75, b"")
    assert done.stderr.decode().splitlines()[-1] == (
        f"minisend: {trigger}: is there, and is no FIFO: remove it"
    )
    assert kind == "link" or trigger.read_text() == "kept"
    assert list(listing(str(installed.spool))) == ["new"]


# -- between two system calls


@pytest.fixture
def log() -> Lines:
    return Lines()


def submit(spool: str, number: int, then: Callable[[], None]) -> None:
    """What sendmail does: queue it, wake who serves; when nobody does, start a flusher (``then``)."""
    put(spool, number, ANN, arrived=time.time())
    if not poke(spool, SUBMISSION):
        then()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_what_comes_next_to_the_idle_exit_is_delivered(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """By this run when the FIFO was still open, by the flusher of the submission when it was not."""
    flushers: list[bool] = []
    came: list[int] = []

    def leave(self: Trigger) -> bytes:
        if self in left:
            return b""  # of its close
        left.append(self)
        if before and len(came) < 1:
            came.append(1)
            submit(spool, 1, lambda: flushers.append(True))
        octets = real(self)
        if not before and len(came) < 1:
            came.append(1)
            submit(spool, 1, lambda: flushers.append(True))
        return octets

    left: list[Trigger] = []
    real = Trigger.leave
    monkeypatch.setattr(Trigger, "leave", leave)
    with ScriptedServer() as server:
        config = to_smarthost(spool, server.port)
        assert serve(config, log=log, stop=Stop(), exit_idle=0) == Summary(tried=1, delivered=1)
    assert flushers == ([] if before else [True])
    assert len(server.messages) == 1
    assert listing(spool) == {}
    assert [text.split()[1] for text in log.about("event=")] == ["event=serving", "event=idle"]


def test_no_submission_at_the_moment_of_an_idle_exit_is_left(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many times over, from another thread that is let go when the exit begins."""
    rounds = 120
    begins = threading.Barrier(2)

    def leave(self: Trigger) -> bytes:
        if waiting:
            waiting.clear()
            begins.wait(_WAIT)
        return real(self)

    waiting: list[int] = []
    real = Trigger.leave
    monkeypatch.setattr(Trigger, "leave", leave)
    by_flusher: list[int] = []
    with ScriptedServer() as server:
        config = to_smarthost(spool, server.port)

        def come(number: int) -> None:
            put(spool, number, ANN, arrived=time.time())
            # Queued before, poked now; or both now, in every other round.
            if number % 2:
                os.rename(f"{spool}/queue/new/{queue_id(number)}", f"{spool}/{number}")
            begins.wait(_WAIT)
            if number % 2:
                os.rename(f"{spool}/{number}", f"{spool}/queue/new/{queue_id(number)}")
            if not poke(spool, SUBMISSION):
                by_flusher.append(number)
                background_flush(config, log)

        for number in range(rounds):
            waiting.append(number)
            submission = threading.Thread(target=come, args=(number,))
            submission.start()
            serve(config, log=log, stop=Stop(), exit_idle=0)
            submission.join(_WAIT)
            assert not submission.is_alive()
            assert listing(spool) == {}, (number, by_flusher)
    assert len(server.messages) == rounds


@contextmanager
def ending(seconds: float, stop: Stop) -> Iterator[list[bool]]:
    """Ends what does not end by itself, and notes that it had to."""
    late: list[bool] = []

    def end() -> None:
        late.append(True)
        stop.ask()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        timer.join()


@pytest.mark.parametrize("name", ["notes.txt", queue_id(5), f"1700000000.{queue_id(6)}"])
def test_what_cannot_be_delivered_does_not_keep_it_from_ending(
    spool: str, log: Lines, name: str
) -> None:
    """Left alone for its version, it stays in new, due for ever."""
    put(spool, 1, ANN, arrived=time.time())
    Path(spool, "queue/new", name).write_text("minisend-queue 9\n")
    stop = Stop()
    with ScriptedServer() as server, ending(5, stop) as late:
        summary = serve(to_smarthost(spool, server.port), log=log, stop=stop, exit_idle=0)
    assert late == []
    assert summary == Summary(tried=1, delivered=1, broken=1)
    assert listing(spool) == {"new": [name]}


def test_a_service_that_can_have_no_thread_ends(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of a container: whoever started it starts it again; else it would stay, and deliver nothing any more."""

    def refused(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(lanes, "start_new_thread", refused)
    name = put(spool, 1, ANN, arrived=time.time())
    stop = Stop()
    with ending(5, stop) as late, pytest.raises(SystemFault, match="can't start new thread"):
        serve(to_smarthost(spool, free_port()), log=log, stop=stop)
    assert late == []
    assert listing(spool) == {"new": [name]}


def stand_in(monkeypatch: pytest.MonkeyPatch, now: float) -> SimpleNamespace:
    """``clock.now`` is the time for this module; intervals are real."""
    clock = SimpleNamespace(now=now)
    stands_in = SimpleNamespace(time=lambda: clock.now, monotonic=time.monotonic)
    monkeypatch.setattr(module, "time", stands_in)
    return clock


def test_a_clock_that_is_set_back_by_a_year(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of the next look, and of what falls due, would be a year away."""
    put(spool, 1, ANN, arrived=time.time())
    clock = stand_in(monkeypatch, NOW)
    stop = Stop()

    def answer(command: bytes) -> None:
        if command == END_OF_DATA:
            if len(server.messages) == 1:
                clock.now -= 365 * 86400
                # By whoever tells nobody.
                put(spool, 2, ANN, arrived=time.time())
            else:
                stop.ask()

    with ScriptedServer(answer) as server, ending(_WAIT, stop) as late:
        summary = serve(to_smarthost(spool, server.port), log=log, stop=stop)
    assert late == []
    assert summary == Summary(tried=2, delivered=2)
    assert listing(spool) == {}


def test_what_is_put_off_while_the_queue_is_listed_is_not_forgotten(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing saw it under its old name, or not at all; its new time is known before the listing is at its end."""
    Queue(spool, create=True).close()
    clock = stand_in(monkeypatch, NOW)
    runs: list[Run] = []
    looks: list[float] = []
    stop = Stop()

    def new_run(*arguments: object) -> Run:
        runs.append(real_new_run(*arguments))
        return runs[-1]

    def places(self: Queue, *states: str) -> Iterator[Place]:
        yield from real_places(self, *states)
        if states == ("new", "cur"):
            looks.append(clock.now)
            if len(looks) == 1:
                name = put(spool, 1, ANN, arrived=time.time(), due=int(NOW) + 100)
                runs[0].deferred(Place("cur", f"{int(NOW) + 100}.{name}"))

    def wait(self: Trigger, seconds: float) -> bytes:
        clock.now = min(clock.now + 50, NOW + 150)
        return real_wait(self, 0)

    real_new_run, real_places, real_wait = module.new_run, Queue.places, Trigger.wait
    monkeypatch.setattr(module, "new_run", new_run)
    monkeypatch.setattr(Queue, "places", places)
    monkeypatch.setattr(Trigger, "wait", wait)

    def answer(command: bytes) -> None:
        if command == END_OF_DATA:
            looks.append(len(looks))
            stop.ask()

    with ScriptedServer(answer) as server, ending(_WAIT, stop):
        serve(to_smarthost(spool, server.port), log=log, stop=stop)
    assert len(server.messages) == 1
    # Not found by the next look.
    assert looks[:2] == [NOW, 1]


def test_what_was_moved_while_it_was_in_hand_is_taken_up_again(spool: str, log: Lines) -> None:
    """Requeued while it waits for its turn: it is in hand under a name that leads nowhere any more."""
    later = int(time.time()) - 5
    put(spool, 1, ANN, arrived=time.time())
    put(spool, 2, ANN, arrived=time.time(), due=later)
    stop = Stop()
    connected, moved = threading.Event(), threading.Event()

    def answer(command: bytes) -> None:
        if command == CONNECT and not connected.is_set():
            connected.set()
            assert moved.wait(_WAIT)
        elif command == END_OF_DATA and len(server.messages) == 2:
            stop.ask()

    def requeue() -> None:
        assert connected.wait(_WAIT)
        os.rename(
            f"{spool}/queue/cur/{later}.{queue_id(2)}", f"{spool}/queue/cur/{0:010d}.{queue_id(2)}"
        )
        poke(spool, EVERYTHING)
        eventually(lambda: any(args[1] == f"{0:010d}.{queue_id(2)}" for args in given))
        moved.set()

    given: list[tuple[str, str]] = []
    real = module._Service._give

    def give(self: object, place: Place, now: float) -> None:
        real(self, place, now)
        given.append((place.state, place.name))

    with pytest.MonkeyPatch.context() as patch, ScriptedServer(answer) as server:
        patch.setattr(module._Service, "_give", give)
        administrator = threading.Thread(target=requeue)
        administrator.start()
        with ending(_WAIT, stop) as late:
            config = to_smarthost(spool, server.port)
            config.delivery.connections = 1
            serve(config, log=log, stop=stop)
        administrator.join(_WAIT)
    assert late == []
    assert len(server.messages) == 2
    assert listing(spool) == {}


def test_a_destination_that_was_down_is_probed_for_what_comes_and_then_left_in_peace(
    spool: str, log: Lines
) -> None:
    """Within a minute of a failure nobody else is attempted: what comes waits for the next probe."""
    port = free_port("127.0.0.1")
    put(spool, 1, ANN, arrived=time.time())
    stop = Stop()

    class Ending(Lines):
        def info(self, text: str) -> None:
            super().info(text)
            if "status=delayed" in text:
                submit(spool, 2, lambda: None)

    watching = Ending()
    with ending(_WAIT, stop) as late:
        summary = serve(to_smarthost(spool, port), log=watching, stop=stop, exit_idle=1)
    assert late == []
    assert summary == Summary(tried=2, deferred=2)
    assert len(watching.about("status=delayed")) == 1
    first, second = listing(spool)["cur"]
    assert first.partition(".")[0] == second.partition(".")[0]


def test_a_queue_that_cannot_be_read_ends_it(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spool, 1, ANN, arrived=time.time())

    def places(self: Queue, *states: str) -> Iterator[Place]:
        raise SpoolError(f"{spool}/queue/new: Input/output error")

    monkeypatch.setattr(Queue, "places", places)
    with pytest.raises(SpoolError, match="queue/new: Input/output error"):
        serve(to_smarthost(spool, 25), log=log, stop=Stop())
    # And nobody is told that the queue is served.
    assert not poke(spool, SUBMISSION)
