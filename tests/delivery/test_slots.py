"""Slots and the background flusher: so many at once, none beyond, and no message overlooked between them."""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from delivery.scripted import CONNECT, ScriptedServer, replies
from peers.process import free_port
from spool.make import listing

from minisend.config.sections import Config, Delivery, Smarthost, Spool
from minisend.delivery import flush as module
from minisend.delivery.flush import Selection, Summary, background_flush
from minisend.delivery.slots import SLOTS, take
from minisend.envelope import Envelope, Recipient
from minisend.errors import SpoolError
from minisend.log import Log
from minisend.spool.enqueue import enqueue
from minisend.spool.store import Queue

SILENT = Log(syslog=False, stderr=False)


@pytest.fixture
def taken(spool: str) -> Iterator[list[int]]:
    """Slots that others hold: to be appended to, closed with the test."""
    os.mkdir(spool)
    held: list[int] = []
    yield held
    for fd in held:
        os.close(fd)


def take_all(spool: str, held: list[int]) -> None:
    while (fd := take(spool)) is not None:
        held.append(fd)


def test_so_many_and_no_more(spool: str, taken: list[int]) -> None:
    take_all(spool, taken)
    assert len(taken) == SLOTS
    assert stat.S_IMODE(os.stat(f"{spool}/state/slots").st_mode) == 0o700
    os.close(taken.pop(0))
    take_all(spool, taken)
    assert len(taken) == SLOTS


def test_a_slot_is_free_when_its_holder_is_killed(spool: str, taken: list[int]) -> None:
    ready, say_ready = os.pipe()
    child = os.fork()
    if not child:
        take_all(spool, [])
        os.write(say_ready, b".")
        signal.pause()
    os.read(ready, 1)
    try:
        assert take(spool) is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(say_ready)
    take_all(spool, taken)
    assert len(taken) == SLOTS


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            lambda spool: os.rmdir(spool), "state: No such file or directory", id="no spool"
        ),
        pytest.param(
            lambda spool: (
                Path(spool, "state").mkdir(),
                Path(spool, "state/slots").write_text(""),
            ),
            "state/slots/0: Not a directory",
            id="a file",
        ),
        pytest.param(
            lambda spool: (
                os.makedirs(f"{spool}/state/slots"),
                os.symlink("/dev/null", f"{spool}/state/slots/0"),
            ),
            "state/slots/0: Too many levels of symbolic links",
            id="a link",
        ),
    ],
)
def test_where_there_can_be_no_slots(spool: str, spoil, message: str) -> None:
    os.mkdir(spool)
    spoil(spool)
    with pytest.raises(SpoolError) as failure:
        take(spool)
    assert str(failure.value) == f"{spool}/{message}"


# -- the background flusher


def configuration(spool: str, port: int) -> Config:
    return Config(
        file=None,
        spool=Spool(spool),
        hostname="here.test",
        mail_domain="here.test",
        smarthost=Smarthost(("127.0.0.1",), port=port, tls="none"),
        delivery=Delivery(connections=1),  # one session, so that there is one order
    )


def put(spool: str, number: int) -> None:
    envelope = Envelope(
        f"{number:016x}", b"%d@x.test" % number, [Recipient(b"ann@x.test")], arrived=1_700_000_000.0
    )
    with Queue(spool, create=True) as queue:
        enqueue(queue.fd, envelope, [b"Subject: x\n\n"], 0)


def senders(server: ScriptedServer) -> list[bytes]:
    return [message.sender for message in server.messages]


def test_it_delivers_what_is_due_and_gives_its_slot_back(spool: str) -> None:
    put(spool, 1)
    put(spool, 2)
    # Waiting, and not due for a good while.
    os.rename(f"{spool}/queue/new/{2:016x}", f"{spool}/queue/cur/{2**31:010d}.{2:016x}")
    with ScriptedServer() as server:
        config = configuration(spool, server.port)
        config.spool.retry_max = 2**32
        assert background_flush(config, SILENT) == 0
    assert senders(server) == [b"1@x.test"]
    held: list[int] = []
    take_all(spool, held)
    assert len(held) == SLOTS
    for fd in held:
        os.close(fd)


def test_without_a_slot_it_leaves_the_work_to_those_who_have_one(
    spool: str, taken: list[int]
) -> None:
    put(spool, 1)
    take_all(spool, taken)
    with ScriptedServer() as server:
        assert background_flush(configuration(spool, server.port), SILENT) == 0
    assert server.sessions == []
    assert listing(spool) == {"new": [f"{1:016x}"]}


def test_what_came_while_all_slots_were_taken_is_delivered_by_their_holder(
    spool: str, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message is queued when the holder of the last slot has done its work, and its own flusher finds no slot."""
    put(spool, 1)
    runs: list[Summary] = []

    def flush(config: Config, selection: Selection, *, log: Log, **more: object) -> Summary:
        runs.append(real(config, selection, log=log))
        if len(runs) == 1:
            put(spool, 2)
            assert background_flush(config, log) == 0
            assert senders(server) == [b"1@x.test"]
        return runs[-1]

    real = module.flush
    monkeypatch.setattr(module, "flush", flush)
    take_all(spool, taken)
    os.close(taken.pop())
    with ScriptedServer() as server:
        assert background_flush(configuration(spool, server.port), SILENT) == 0
    assert senders(server) == [b"1@x.test", b"2@x.test"]
    assert runs == [Summary(tried=1, delivered=1)] * 2
    assert listing(spool) == {}


@pytest.mark.parametrize("name", ["notes.txt", f"{5:016x}", f"1700000000.{6:016x}"])
def test_what_cannot_be_delivered_is_looked_at_once(
    spool: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Left alone for its version, it stays in new."""
    put(spool, 1)
    Path(f"{spool}/queue/new/{name}").write_text("minisend-queue 9\n")
    runs: list[Summary] = []

    def flush(config: Config, selection: Selection, *, log: Log, **more: object) -> Summary:
        runs.append(real(config, selection, log=log))
        return runs[-1]

    real = module.flush
    monkeypatch.setattr(module, "flush", flush)
    with ScriptedServer() as server:
        assert background_flush(configuration(spool, server.port), SILENT) == 0
    assert runs == [Summary(tried=1, delivered=1, broken=1)]
    assert listing(spool) == {"new": [name]}


def test_a_server_that_is_down_does_not_keep_it(spool: str) -> None:
    put(spool, 1)
    put(spool, 2)
    assert background_flush(configuration(spool, free_port("127.0.0.1")), SILENT) == 0
    assert list(listing(spool)) == ["cur"]


def test_one_that_hangs_does_not_keep_the_others_waiting(spool: str) -> None:
    """As many flushers as there are slots, and the first waits for a greeting that does not come."""
    put(spool, 1)
    go_on, waits = threading.Event(), threading.Event()

    def answer(command: bytes) -> bytes | None:
        if command == CONNECT and not waits.is_set():
            waits.set()
            assert go_on.wait(20)
        return None

    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port)
        first = threading.Thread(target=background_flush, args=(config, SILENT))
        first.start()
        assert waits.wait(20)
        put(spool, 2)
        assert background_flush(config, SILENT) == 0
        assert senders(server) == [b"2@x.test"]
        go_on.set()
        first.join(20)
    assert senders(server) == [b"2@x.test", b"1@x.test"]
    assert listing(spool) == {}


def test_a_message_that_is_put_off_is_not_tried_twice(spool: str) -> None:
    """Its warning, which is queued on the way, goes out in the same run."""
    put(spool, 1)
    with ScriptedServer(replies({b"RCPT TO:<ann@": b"450 4.2.1 later"})) as server:
        assert background_flush(configuration(spool, server.port), SILENT) == 0
    (session,) = server.sessions
    assert [command for command in session.commands if command.startswith(b"RCPT")] == [
        b"RCPT TO:<ann@x.test>",
        b"RCPT TO:<1@x.test>",
    ]
    assert senders(server) == [b""]
    assert list(listing(spool)) == ["cur"]
