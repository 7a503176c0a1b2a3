"""A month of retries on a clock of the test's own: attempts at the documented times, one warning, one bounce, nothing after.

Once with a server that puts the recipient off, where each message has its own times, and once with one that nobody
answers for, where the destination has.  The next time is taken from the names in the queue, as ``minisend run`` does.
"""

import os
from types import SimpleNamespace

import pytest
from delivery.reports import read_report
from delivery.scripted import Message, ScriptedServer
from delivery.spooled import ME, NOW, Lines, put, stopped_clock, to_smarthost
from peers.process import free_port
from spool.make import listing

from minisend.config.sections import Config
from minisend.delivery import remote, retry
from minisend.delivery.attempt import Summary
from minisend.delivery.flush import Selection, flush
from minisend.spool.entry import Place

ANN = b"ann@x.test"
HOUR, DAY = 3600.0, 86400.0
MONTH = 30 * DAY


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return stopped_clock(monkeypatch)


def documented(subject: str) -> list[float]:
    """The times of all attempts, by the table in ``delivery.retry``: five minutes, doubled each time up to four hours.

    ``subject``  whose times they are: what the jitter is made of
    """
    times = [NOW]
    while times[-1] - NOW < MONTH:
        attempts = len(times)
        wait = min(300.0 * 2 ** (attempts - 1), 4 * HOUR)
        spread = wait * retry.jitter(subject, attempts) / 10
        wait += spread if wait + spread <= 4 * HOUR else -spread
        # Names have whole seconds.
        times.append(float(int(times[-1] + wait)))
    return times


def replay(config: Config, clock: SimpleNamespace, message: str) -> list[tuple[float, Summary]]:
    """Flush at each time at which something is due, until the message is gone; what came of each."""
    log = Lines()
    runs = []
    while True:
        runs.append((clock.now, flush(config, Selection(), log=log)))
        waiting = [Place("cur", name) for name in os.listdir(f"{config.spool.path}/queue/cur")]
        if message not in {place.queue_id for place in waiting}:
            return runs
        clock.now = min(place.due for place in waiting)


def told(
    messages: list[Message],
) -> list[tuple[tuple[bytes, ...], str, list[tuple[str, str, str]]]]:
    """To whom, under which subject, and of whom each report tells."""
    reports = [read_report(message.octets) for message in messages]
    return [
        (message.recipients, report.header["Subject"], report.fates())
        for message, report in zip(messages, reports, strict=True)
    ]


def reports(status: str) -> list[tuple[tuple[bytes, ...], str, list[tuple[str, str, str]]]]:
    return [
        ((ME,), "Delayed Mail (still being retried)", [("ann@x.test", "delayed", status)]),
        ((ME,), "Undelivered Mail Returned to Sender", [("ann@x.test", "failed", status)]),
    ]


def test_a_recipient_who_is_put_off_for_a_month(spool: str, clock: SimpleNamespace) -> None:
    name = put(spool, 1, ANN, arrived=NOW)
    asked: list[float] = []
    reported: list[float] = []

    def answer(command: bytes) -> bytes | None:
        if command.startswith(b"RCPT TO:<ann@"):
            asked.append(clock.now)
            return b"450 4.2.1 later"
        if command.startswith(b"RCPT"):
            reported.append(clock.now)
        return None

    with ScriptedServer(answer) as server:
        config = to_smarthost(spool, server.port, lifetime=int(MONTH))
        runs = replay(config, clock, name)
        for days in (0, 1, 10, 100):
            clock.now += days * DAY
            assert flush(config, Selection(everything=True), log=Lines()) == Summary()
    times = documented(name)
    assert len(times) > 180
    assert asked == times
    warned = next(at for at in times if at - NOW >= 4 * HOUR)
    assert reported == [warned, times[-1]]
    assert told(server.messages) == reports("4.2.1")
    waits = Summary(tried=1, deferred=1)
    with_report = {
        warned: Summary(tried=2, delivered=1, deferred=1),
        times[-1]: Summary(tried=2, delivered=1, failed=1),
    }
    assert runs == [(at, with_report.get(at, waits)) for at in times]
    assert listing(spool) == {}


def test_a_server_that_nobody_answers_for_in_a_month(
    spool: str, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three messages; what is told of them waits for the same server, and goes out when it is back."""
    names = [put(spool, number, ANN, arrived=NOW) for number in (1, 2, 3)]
    probed: list[float] = []

    def connect(*where: object, **how: object) -> object:
        probed.append(clock.now)
        return real(*where, **how)

    real = remote.connect
    port = free_port("127.0.0.1")
    config = to_smarthost(spool, port, lifetime=int(MONTH))
    with monkeypatch.context() as patch:
        patch.setattr(remote, "connect", connect)
        runs = replay(config, clock, names[0])
    times = documented(f"[127.0.0.1]:{port}")
    assert len(times) > 180
    assert probed == times
    warned = next(at for at in times if at - NOW >= 4 * HOUR)
    # Each of the three has a warning, and at the end a bounce; all wait for the same probe.
    assert runs == [
        *[(at, Summary(tried=3, deferred=3)) for at in times if at < warned],
        *[(at, Summary(tried=6, deferred=6)) for at in times if warned <= at < times[-1]],
        (times[-1], Summary(tried=9, deferred=6, failed=3)),
    ]
    (state,) = listing(spool).items()
    assert (state[0], len(state[1])) == ("cur", 6)
    assert {Place("cur", each).queue_id for each in state[1]}.isdisjoint(names)
    with ScriptedServer(port=port) as server:
        clock.now = Place("cur", state[1][0]).due
        assert flush(config, Selection(), log=Lines()) == Summary(tried=6, delivered=6)
        for days in (0, 1, 10, 100):
            clock.now += days * DAY
            assert flush(config, Selection(everything=True), log=Lines()) == Summary()
    assert sorted(told(server.messages)) == sorted(reports("4.4.1") * 3)
    assert listing(spool) == {}
