"""The flush: what becomes of each message, in which order the disk and the server hear of it, and what a fault leaves.

The servers are scripted, the clock is the test's, and the disk is watched and made to fail through the seam that
``minisend.spool.disk`` is.
"""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from delivery.reports import Told, read_report
from delivery.scripted import (
    CLOSE,
    CONNECT,
    END_OF_DATA,
    IN_MESSAGE,
    KEYWORDS,
    Answer,
    ScriptedServer,
    replies,
)
from delivery.spooled import MESSAGE, NOW, Lines, put, queue_id, stopped_clock
from peers.process import free_port
from spool.make import listing
from spool.seam import Seam

from minisend.config.sections import Config, Delivery, Smarthost, Spool
from minisend.delivery import attempt, bounce, outgoing, remote, retry
from minisend.delivery import flush as module
from minisend.delivery.destination import Destinations, Down
from minisend.delivery.flush import Selection, Summary, flush
from minisend.envelope import DELAYED, FAILED, RELAYED, Envelope, Outcome, Recipient
from minisend.errors import NetworkError, SpoolError, UsageError
from minisend.smtp.session import WINDOW
from minisend.smtp.stream import blame
from minisend.spool import disk
from minisend.spool.enqueue import new_queue_id
from minisend.spool.entry import Entry, Place
from minisend.spool.place import STATES
from minisend.spool.store import Queue

ROOT = Path(__file__).parents[2]
ONE_EACH = (*KEYWORDS, b"LIMITS RCPTMAX=1")
RCPT_BOB = b"RCPT TO:<bob@x.test>"
ANN, BOB, CARL = b"ann@x.test", b"bob@x.test", b"carl@x.test"
EVERYTHING = Selection(everything=True)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return stopped_clock(monkeypatch)


@pytest.fixture
def log() -> Lines:
    return Lines()


def configuration(
    spool: str, port: int, *, name: str = "here.test", admin: str = "", **settings: object
) -> Config:
    """Everything to a smarthost on 127.0.0.1, over one connection, so that there is one order."""
    return Config(
        file=None,
        spool=Spool(spool, **settings),
        hostname=name,
        mail_domain=name,
        admin=admin,
        smarthost=Smarthost(("127.0.0.1",), port=port, tls="none"),
        delivery=Delivery(connections=1),
    )


def direct(spool: str, port: int) -> Config:
    """To the recipients' own servers: an address literal needs no DNS, and each is a next hop of its own."""
    return Config(
        file=None,
        spool=Spool(spool),
        hostname="here.test",
        mail_domain="here.test",
        delivery=Delivery(mx_port=port, tls="none", connections=1),
    )


def read(spool: str, state: str, name: str) -> Entry:
    """An entry to look at.  Only its descriptor is of the file, and that is closed."""
    with Queue(spool) as queue:
        entry = queue.read(Place(state, name))
        assert entry is not None
        entry.close()
        return entry


def octets_of(spool: str, state: str, name: str) -> bytes:
    """The message of an entry, as it lies in the queue."""
    with Queue(spool) as queue:
        entry = queue.claim(Place(state, name))
        assert entry is not None
        with entry:
            return b"".join(entry.octets())


def answered(
    server: ScriptedServer, recipient: int, action: str, status: str, reply: str, command: str
) -> Outcome:
    mta = f"127.0.0.1[127.0.0.1]:{server.port}"
    return Outcome(
        recipient,
        action,
        status,
        f"host {mta} said: {reply} (in reply to {command})",
        remote_mta=mta,
        diagnostic=f"smtp; {reply}",
        command=command,
        at=NOW,
    )


def taken(server: ScriptedServer, recipient: int) -> Outcome:
    return answered(server, recipient, RELAYED, "2.0.0", "250 2.0.0 taken", END_OF_DATA.decode())


def report_id(original: str, note: str) -> str:
    """The queue id of the report of a message that is noted so in its file."""
    return new_queue_id(f"{original} {note}".encode())


def told(server: ScriptedServer) -> list[tuple[bytes, Told]]:
    """To whom, and what, of each report that the server has taken."""
    return [
        (message.recipients[0], read_report(message.octets))
        for message in server.messages
        if not message.sender and b"report-type=delivery-status" in message.octets
    ]


def fates(server: ScriptedServer) -> list[tuple[bytes, list[tuple[str, str, str]]]]:
    """To whom, and address, action and status of those it tells of, of each report that the server has taken."""
    return [(to, report.fates()) for to, report in told(server)]


def due_after(number: int, attempts: int, now: float, retry_min: float = 300.0) -> str:
    """The name in ``cur`` of a message that has been attempted so often."""
    until = retry.next_attempt(
        NOW,
        attempts,
        now,
        lifetime=1e9,
        retry_min=retry_min,
        retry_max=4 * 3600,
        jitter=retry.jitter(queue_id(number), attempts),
    )
    assert until is not None
    return f"{int(until):010d}.{queue_id(number)}"


# -- the order: claim, reserve, attempt, record, act


def _reserve_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for outcomes is asked for, be there some in the last block of the file or not."""
    monkeypatch.setattr(disk, "block", lambda fd: 1)


class Watched:
    """A seam that notes what the server hears between the system calls."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        spool: str,
        before: Callable[[int, str], None] | None = None,
        *,
        heard: tuple[bytes, ...] = (b"MAIL", b"RCPT", END_OF_DATA),
    ) -> None:
        self._seam = Seam(before)
        self._heard = heard
        self._prefix = f"{spool}/queue/"
        _reserve_always(monkeypatch)
        monkeypatch.setattr(disk, "posix", self._seam)

    def noting(self, answer: Answer) -> Answer:
        def noted(command: bytes) -> bytes | None:
            if command.startswith(self._heard):
                self._seam.note("smtp", command.decode())
            return answer(command)

        return noted

    def sequence(self) -> list[tuple[str, str]]:
        names = ("posix_fallocate", "pwrite", "ftruncate", "fsync", "rename", "unlink", "smtp")
        return [(name, path.removeprefix(self._prefix)) for name, path in self._seam.about(*names)]


SAID_MAIL = ("smtp", "MAIL FROM:<me@here.test> SIZE=188")
SAID_RCPT = ("smtp", "RCPT TO:<ann@x.test>")
SAID_END = ("smtp", "end of data")


def test_order_when_all_have_it_the_removal_is_the_record(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(spool, 1, ANN)
    watched = Watched(monkeypatch, spool)
    with ScriptedServer(watched.noting(lambda command: None)) as server:
        summary = flush(configuration(spool, server.port), Selection(), log=log)
    assert watched.sequence() == [
        ("posix_fallocate", f"new/{name}"),
        SAID_MAIL,
        SAID_RCPT,
        SAID_END,
        ("unlink", f"new/{name}"),
        ("fsync", "new"),
    ]
    assert summary == Summary(tried=1, delivered=1)
    assert summary.exit_code == 0
    assert listing(spool) == {}
    mta = f"127.0.0.1[127.0.0.1]:{server.port}"
    assert log.lines == [
        (
            "info",
            f"{name}: from=me@here.test to=ann@x.test relay={mta} delay=10.00 dsn=2.0.0 status=relayed "
            f'reason="host {mta} said: 250 2.0.0 taken (in reply to end of data)"',
        )
    ]


NOBODY = b""  # the null reverse-path: nobody can be told


@pytest.mark.parametrize(
    ("sender", "reply", "moved_to", "summary", "code"),
    [
        pytest.param(
            b"me@here.test", b"450 4.2.1 no", "cur", Summary(tried=1, deferred=1), 75, id="deferred"
        ),
        pytest.param(
            NOBODY, b"550 5.1.1 no", "failed", Summary(tried=1, failed=1), 69, id="nobody to tell"
        ),
    ],
)
def test_order_when_somebody_has_it_not_the_record_comes_before_the_move(
    spool: str,
    log: Lines,
    monkeypatch: pytest.MonkeyPatch,
    sender: bytes,
    reply: bytes,
    moved_to: str,
    summary: Summary,
    code: int,
) -> None:
    name = put(spool, 1, ANN, sender=sender)
    watched = Watched(monkeypatch, spool)
    with ScriptedServer(watched.noting(replies({b"RCPT": reply}))) as server:
        assert flush(configuration(spool, server.port), Selection(), log=log) == summary
    assert watched.sequence() == [
        ("posix_fallocate", f"new/{name}"),
        ("smtp", f"MAIL FROM:<{sender.decode()}> SIZE=188"),
        SAID_RCPT,
        ("pwrite", f"new/{name}"),  # the outcome
        ("ftruncate", f"new/{name}"),
        ("fsync", f"new/{name}"),
        ("rename", f"new/{name}"),
        ("fsync", moved_to),
        ("fsync", "new"),
    ]
    assert summary.exit_code == code
    assert list(listing(spool)) == [moved_to]


def test_order_when_it_fails_the_report_is_queued_before_the_removal(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(spool, 1, ANN)
    report = report_id(name, "failure 0")
    watched = Watched(monkeypatch, spool)
    with ScriptedServer(watched.noting(replies({b"RCPT TO:<ann@": b"550 5.1.1 no"}))) as server:
        summary = flush(configuration(spool, server.port), Selection(), log=log)
    (message,) = server.messages
    assert watched.sequence() == [
        ("posix_fallocate", f"new/{name}"),
        SAID_MAIL,
        SAID_RCPT,
        ("pwrite", f"new/{name}"),  # the outcome
        ("ftruncate", f"new/{name}"),
        ("fsync", f"new/{name}"),
        ("unlink", f"tmp/{report}"),  # what a crash may have left there: nothing
        ("fsync", f"tmp/{report}"),
        ("rename", f"tmp/{report}"),
        ("fsync", "new"),
        ("pwrite", f"new/{name}"),  # the note that it is queued
        ("fsync", f"new/{name}"),
        ("unlink", f"new/{name}"),
        # And then like any other message.
        ("posix_fallocate", f"new/{report}"),
        ("smtp", f"MAIL FROM:<> SIZE={len(message.octets)}"),
        ("smtp", "RCPT TO:<me@here.test>"),
        SAID_END,
        ("unlink", f"new/{report}"),
        ("fsync", "new"),
    ]
    assert summary == Summary(tried=2, delivered=1, failed=1)
    assert summary.exit_code == 69
    assert listing(spool) == {}
    mta = f"127.0.0.1[127.0.0.1]:{server.port}"
    assert log.lines == [
        (
            "info",
            f"{name}: from=me@here.test to=ann@x.test relay={mta} delay=10.00 dsn=5.1.1 status=failed "
            f'reason="host {mta} said: 550 5.1.1 no (in reply to RCPT TO)"',
        ),
        ("info", f'{name}: event="failure report" to=me@here.test report={report}'),
        (
            "info",
            f'{report}: from="" to=me@here.test relay={mta} delay=0.00 dsn=2.0.0 status=relayed '
            f'reason="host {mta} said: 250 2.0.0 taken (in reply to end of data)"',
        ),
    ]


def test_order_with_two_next_hops_each_has_room_and_a_record_of_its_own(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port("127.0.0.1", "127.0.0.2")
    name = put(spool, 1, b"ann@[127.0.0.1]", b"bob@[127.0.0.2]")
    watched = Watched(monkeypatch, spool)
    one = ScriptedServer(watched.noting(lambda command: None), port=port)
    two = ScriptedServer(watched.noting(lambda command: None), address="127.0.0.2", port=port)
    with one, two:
        assert flush(direct(spool, port), Selection(), log=log) == Summary(tried=1, delivered=1)
    assert watched.sequence() == [
        ("posix_fallocate", f"new/{name}"),
        SAID_MAIL,
        ("smtp", "RCPT TO:<ann@[127.0.0.1]>"),
        SAID_END,
        ("pwrite", f"new/{name}"),
        ("ftruncate", f"new/{name}"),
        ("fsync", f"new/{name}"),
        ("posix_fallocate", f"new/{name}"),
        SAID_MAIL,
        ("smtp", "RCPT TO:<bob@[127.0.0.2]>"),
        SAID_END,
        ("unlink", f"new/{name}"),
        ("fsync", "new"),
    ]
    assert [message.recipients for server in (one, two) for message in server.messages] == [
        (b"ann@[127.0.0.1]",),
        (b"bob@[127.0.0.2]",),
    ]


def test_order_what_was_removed_is_durable_before_another_server_is_waited_for(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection, and a goodbye, may take minutes."""
    port = free_port("127.0.0.1", "127.0.0.2")
    names = [put(spool, 1, b"ann@[127.0.0.1]"), put(spool, 2, b"bob@[127.0.0.2]")]
    watched = Watched(monkeypatch, spool, heard=(CONNECT, END_OF_DATA, b"QUIT"))
    one = ScriptedServer(watched.noting(lambda command: None), port=port)
    two = ScriptedServer(watched.noting(lambda command: None), address="127.0.0.2", port=port)
    with one, two:
        assert flush(direct(spool, port), Selection(), log=log) == Summary(tried=2, delivered=2)
    assert [call for call in watched.sequence() if call[0] in ("smtp", "fsync", "unlink")] == [
        ("smtp", "connect"),
        ("smtp", "end of data"),
        ("unlink", f"new/{names[0]}"),
        ("fsync", "new"),
        ("smtp", "QUIT"),
        ("smtp", "connect"),
        ("smtp", "end of data"),
        ("unlink", f"new/{names[1]}"),
        ("fsync", "new"),
        ("smtp", "QUIT"),
    ]


def test_order_with_several_transactions_each_has_room_and_a_record_of_its_own(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has to wait has a record at the end."""
    name = put(spool, 1, ANN, BOB, CARL)
    watched = Watched(monkeypatch, spool, heard=(END_OF_DATA,))
    answer = replies({b"RCPT TO:<bob@": b"450 4.2.1 later"})
    with ScriptedServer(watched.noting(answer), keywords=ONE_EACH) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
    reserved = ("posix_fallocate", f"new/{name}")
    recorded = [("pwrite", f"new/{name}"), ("ftruncate", f"new/{name}")]
    synced = ("fsync", f"new/{name}")
    assert watched.sequence() == [
        reserved,
        SAID_END,
        *recorded,
        reserved,  # for the others
        synced,
        SAID_END,
        *recorded,
        reserved,
        synced,
        *recorded,
        synced,
        ("rename", f"new/{name}"),
        ("fsync", "cur"),
        ("fsync", "new"),
    ]
    entry = read(spool, "cur", due_after(1, 1, NOW))
    assert entry.outcomes == [
        (1, taken(server, 0)),
        (1, taken(server, 2)),
        (1, answered(server, 1, DELAYED, "4.2.1", "450 4.2.1 later", "RCPT TO")),
    ]


def test_what_was_removed_is_durable_while_a_kept_session_stalls(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gives no answer to the second message before the removal of the first is on the disk."""
    names = [put(spool, number, ANN) for number in (1, 2)]
    durable = threading.Event()

    def after(number: int, call: str, done: bool) -> None:
        if call == "fsync" and seam.paths[number - 1] == f"{spool}/queue/new":
            durable.set()

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA and len(server.messages) == 2:
            assert durable.wait(20)
        return None

    seam = Seam(after=after)
    monkeypatch.setattr(disk, "posix", seam)
    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=2)
    assert len(server.sessions) == 1
    changes = [
        (call, path.removeprefix(f"{spool}/queue/")) for call, path in seam.about("fsync", "unlink")
    ]
    assert changes == [
        ("unlink", f"new/{names[0]}"),
        ("fsync", "new"),
        ("unlink", f"new/{names[1]}"),
        ("fsync", "new"),
    ]
    assert listing(spool) == {}


def test_it_is_claimed_while_it_is_attempted(spool: str, log: Lines) -> None:
    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA:
            with Queue(spool) as queue:
                claims.append(queue.claim(Place("new", name)))
        return None

    claims: list[Entry | None] = []
    name = put(spool, 1, ANN)
    with ScriptedServer(answer) as server:
        flush(configuration(spool, server.port), Selection(), log=log)
    assert claims == [None]
    assert listing(spool) == {}


# -- what becomes of recipients


def test_one_refused_of_three_is_told_and_never_tried_again(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    name = put(spool, 1, ANN, BOB, CARL)
    with ScriptedServer(replies({b"RCPT TO:<bob@": b"550 5.1.1 no bob"})) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=1, failed=1)
        clock.now += 10 * 86400
        assert flush(config, EVERYTHING, log=log) == Summary()
    assert listing(spool) == {}
    original, report = server.messages
    assert original.recipients == (ANN, CARL)
    assert (report.sender, report.recipients) == (b"", (b"me@here.test",))
    said = read_report(report.octets)
    assert said.header == {
        "From": "Mail Delivery System <MAILER-DAEMON@here.test>",
        "To": "me@here.test",
        "Subject": "Undelivered Mail Returned to Sender",
        "Date": "Tue, 14 Nov 2023 22:13:20 +0000",
        "Message-ID": f"<{report_id(name, 'failure 1')}@here.test>",
        "In-Reply-To": "<1@here.test>",
        "References": "<1@here.test>",
        "Auto-Submitted": "auto-replied",
    }
    assert said.message == {
        "Reporting-MTA": "dns; here.test",
        "Arrival-Date": "Tue, 14 Nov 2023 22:13:10 +0000",
    }
    assert said.recipients == [
        {
            "Final-Recipient": "rfc822; bob@x.test",
            "Action": "failed",
            "Status": "5.1.1",
            "Remote-MTA": "dns; 127.0.0.1",
            "Diagnostic-Code": "smtp; 550 5.1.1 no bob",
            "Last-Attempt-Date": "Tue, 14 Nov 2023 22:13:20 +0000",
        }
    ]
    assert (said.kind, said.returned) == (
        "message/rfc822",
        original.octets.replace(b"\r\n", b"\n"),
    )
    assert [level for level, _ in log.lines] == ["info", "info", "info", "info", "info"]


def test_one_refused_of_three_is_kept_with_its_reason_when_nobody_can_be_told(
    spool: str, log: Lines
) -> None:
    name = put(spool, 1, ANN, BOB, CARL, sender=NOBODY)
    with ScriptedServer(replies({b"RCPT TO:<bob@": b"550 5.1.1 no bob"})) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=1, failed=1)
        assert flush(config, EVERYTHING, log=log) == Summary()
    assert [message.recipients for message in server.messages] == [(ANN, CARL)]
    assert listing(spool) == {"failed": [name]}
    entry = read(spool, "failed", name)
    assert entry.outcomes == [
        (1, taken(server, 0)),
        (1, taken(server, 2)),
        (1, answered(server, 1, FAILED, "5.1.1", "550 5.1.1 no bob", "RCPT TO")),
    ]
    assert (entry.failed, entry.pending, entry.reported) == ([1], [], set())
    assert [level for level, _ in log.lines] == ["info", "info", "info"]


def test_one_put_off_of_three_waits_alone(spool: str, log: Lines, clock: SimpleNamespace) -> None:
    put(spool, 1, ANN, BOB, CARL)
    with ScriptedServer(replies({b"RCPT TO:<bob@": [b"450 4.2.1 later"]})) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
        waiting = due_after(1, 1, NOW)
        assert listing(spool) == {"cur": [waiting]}
        assert read(spool, "cur", waiting).pending == [1]
        # Not before its time, and then only with who is missing.
        assert flush(config, Selection(), log=log) == Summary()
        clock.now = float(waiting.partition(".")[0])
        assert flush(config, Selection(), log=log) == Summary(tried=1, delivered=1)
    assert [message.recipients for message in server.messages] == [(ANN, CARL), (BOB,)]
    assert len({message.octets for message in server.messages}) == 1
    assert listing(spool) == {}


def test_a_failure_is_told_at_once_and_not_forgotten_when_the_others_are_delivered_later(
    spool: str, log: Lines
) -> None:
    put(spool, 1, ANN, BOB)
    answer = replies(
        {b"RCPT TO:<ann@": b"550 5.1.1 no ann", b"RCPT TO:<bob@": [b"450 4.2.1 later"]}
    )
    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=1, deferred=1)
        waiting = due_after(1, 1, NOW)
        assert listing(spool) == {"cur": [waiting]}
        entry = read(spool, "cur", waiting)
        assert entry.outcomes == [
            (1, answered(server, 0, FAILED, "5.1.1", "550 5.1.1 no ann", "RCPT TO")),
            (1, answered(server, 1, DELAYED, "4.2.1", "450 4.2.1 later", "RCPT TO")),
        ]
        assert entry.reported == {"failure 0"}
        # Of those that are done with, it is one that not every recipient got.
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, failed=1)
    assert listing(spool) == {}
    assert fates(server) == [(b"me@here.test", [("ann@x.test", "failed", "5.1.1")])]
    assert [message.recipients for message in server.messages] == [(b"me@here.test",), (BOB,)]


def test_failures_at_different_times_are_told_each_once(spool: str, log: Lines) -> None:
    put(spool, 1, ANN, BOB)
    answer = replies(
        {
            b"RCPT TO:<ann@": b"550 5.1.1 no ann",
            b"RCPT TO:<bob@": [b"450 4.2.1 later", b"550 5.2.1 no"],
        }
    )
    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=1, deferred=1)
        assert flush(config, EVERYTHING, log=log) == Summary(tried=2, delivered=1, failed=1)
        assert flush(config, EVERYTHING, log=log) == Summary()
    assert fates(server) == [
        (b"me@here.test", [("ann@x.test", "failed", "5.1.1")]),
        (b"me@here.test", [("bob@x.test", "failed", "5.2.1")]),
    ]


def test_bare_names_are_qualified_and_the_null_sender_is_not(spool: str, log: Lines) -> None:
    put(spool, 1, b"root", sender=b"")
    put(spool, 2, b"root", sender=b"cron")
    with ScriptedServer() as server:
        flush(configuration(spool, server.port), Selection(), log=log)
    assert [(message.sender, message.recipients) for message in server.messages] == [
        (b"", (b"root@here.test",)),
        (b"cron@here.test", (b"root@here.test",)),
    ]


def test_every_attempt_sends_the_same_octets(spool: str, log: Lines) -> None:
    """Also when the configuration has changed in between, and with it what is added."""
    seen: list[bytes] = []
    put(spool, 1, ANN, message=b"To: bob\n\nHello.\n")

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA:
            seen.append(server.messages[-1].octets)
            return b"451 4.3.0 not now" if len(seen) == 1 else None
        return None

    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port)
        flush(config, Selection(), log=log)
        other = Config(
            file=None,
            spool=config.spool,
            hostname="other.test",
            mail_domain="other.test",
            smarthost=config.smarthost,
        )
        flush(other, EVERYTHING, log=log)
    assert (
        seen
        == [
            b"Received: by here.test (minisend, from userid 1000 (me))\r\n"
            b"\tid 0000000000000001; Tue, 14 Nov 2023 22:13:10 +0000\r\n"
            b"To: bob@here.test\r\n"
            b"Date: Tue, 14 Nov 2023 22:13:10 +0000\r\n"
            b"From: me@here.test\r\n"
            b"Message-ID: <20231114221310.0000000000000001@here.test>\r\n"
            b"\r\nHello.\r\n"
        ]
        * 2
    )


@pytest.mark.parametrize(
    ("message", "parameters"),
    [
        pytest.param(b"To: a@b.test\n\none\ntwo\n", b"", id="header and body"),
        pytest.param(b"To: a@b.test\nX: 1\n 2\n\n", b"", id="no body"),
        pytest.param(b"no header\nat all\n", b"", id="no header"),
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"Subject: x\n\n\xc3\xa9\n", b" BODY=8BITMIME", id="8-bit body"),
        pytest.param(b"Subject: \xc3\xa9\n\nx\n", b" BODY=8BITMIME", id="8-bit header"),
    ],
)
def test_the_size_announced_is_the_size_sent(
    spool: str, log: Lines, message: bytes, parameters: bytes
) -> None:
    put(spool, 1, ANN, message=message)
    with ScriptedServer() as server:
        flush(configuration(spool, server.port), Selection(), log=log)
    ((octets,), (session,)) = [each.octets for each in server.messages], server.sessions
    assert session.commands[1] == b"MAIL FROM:<me@here.test> SIZE=%d%b" % (len(octets), parameters)


def test_names_that_get_a_domain_make_no_line_too_long(spool: str, log: Lines) -> None:
    """998 octets with its end off is what a server must take (RFC 5321 section 4.5.3.1.6)."""
    names = [b"u%d" % number for number in range(150)]
    put(spool, 1, ANN, message=b"To: %b\n\nx\n" % b", ".join(names))
    with ScriptedServer() as server:
        flush(configuration(spool, server.port), Selection(), log=log)
    (octets,) = [message.octets for message in server.messages]
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    (to,) = [field for field in octets.replace(b"\r\n ", b" ").split(b"\r\n") if b"u0" in field]
    assert to == b"To: " + b", ".join(name + b"@here.test" for name in names)


# -- recipients in several transactions


@pytest.mark.parametrize("offered", [(), (b"PIPELINING",), (b"PIPELINING", b"CHUNKING")])
def test_a_server_that_takes_two_messages_a_session_has_them_all_in_one_run(
    spool: str, log: Lines, offered: tuple[bytes, ...]
) -> None:
    """RFC 9422, MAILMAX: nothing is put off for it, and no destination is said to be down."""
    for number in range(1, 8):
        put(spool, number, ANN)
    with ScriptedServer(keywords=(*offered, b"LIMITS MAILMAX=2")) as server:
        config = configuration(spool, server.port)
        config.delivery.connections_per_host = 1
        assert flush(config, Selection(), log=log) == Summary(tried=7, delivered=7)
        verbs = [session.verbs() for session in server.sessions]
    assert [each.count(b"MAIL") for each in verbs] == [2, 2, 2, 1]
    assert [(each[0], each[-1]) for each in verbs] == [(b"EHLO", b"QUIT")] * 4
    assert [message.recipients for message in server.messages] == [(ANN,)] * 7
    assert [level for level, _ in log.lines] == ["info"] * 7
    assert listing(spool) == {}
    assert Destinations(spool).all() == []


@pytest.mark.parametrize(
    "goodbye",
    [pytest.param(b"421 4.3.2 going down", id="421"), pytest.param(CLOSE, id="closed")],
)
@pytest.mark.parametrize(
    ("keywords", "count", "most"),
    [
        pytest.param(ONE_EACH, 3, 1, id="one in each"),
        pytest.param(KEYWORDS, 250, 100, id="as the standard has it"),
    ],
)
def test_a_session_that_ends_between_two_transactions_doubles_nothing(
    spool: str, log: Lines, keywords: tuple[bytes, ...], count: int, most: int, goodbye: bytes
) -> None:
    """Who has it never gets it again, for how often ever it is tried; the rest have it when the server is well."""
    everybody = [b"r%d@x.test" % number for number in range(count)]
    put(spool, 1, *everybody)
    batches = [tuple(everybody[at : at + most]) for at in range(0, count, most)]
    ill = True

    def answer(command: bytes) -> bytes | None:
        return goodbye if command.startswith(b"MAIL") and ill and server.messages else None

    with ScriptedServer(answer, keywords=keywords) as server:
        config = configuration(spool, server.port)
        for attempts in (1, 2, 3):
            assert flush(config, EVERYTHING, log=log) == Summary(tried=1, deferred=1)
            assert [message.recipients for message in server.messages] == batches[:1]
            entry = read(spool, "cur", due_after(1, attempts, NOW))
            assert entry.pending == list(range(most, count))
            assert [entry.latest[index] for index in range(most)] == [
                taken(server, index) for index in range(most)
            ]
        ill = False
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, delivered=1)
    assert [message.recipients for message in server.messages] == batches
    assert listing(spool) == {}


def test_a_kept_session_that_is_lost_in_the_middle_of_a_message_doubles_nothing(
    spool: str, log: Lines
) -> None:
    """The second of three recipients' transactions, on the session that took the message before."""
    put(spool, 1, b"dan@x.test")
    put(spool, 2, ANN, BOB, CARL, message=MESSAGE + b"a line of the body\n" * 400_000)
    ill = True
    asked: list[bytes] = []

    def answer(command: bytes) -> bytes | None:
        if command.startswith(b"RCPT"):
            asked.append(command)
        return CLOSE if command == IN_MESSAGE and ill and asked[-1] == RCPT_BOB else None

    with ScriptedServer(answer, keywords=ONE_EACH) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=1, deferred=1)
        assert [RCPT_BOB in session.commands for session in server.sessions] == [True, True]
        for attempts in (2, 3):
            assert read(spool, "cur", due_after(2, attempts - 1, NOW)).pending == [1, 2]
            assert flush(config, EVERYTHING, log=log) == Summary(tried=1, deferred=1)
        assert {session.cut for session in server.sessions} == {True}
        assert [message.recipients for message in server.messages] == [(b"dan@x.test",), (ANN,)]
        ill = False
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, delivered=1)
    assert [message.recipients for message in server.messages] == [
        (b"dan@x.test",),
        (ANN,),
        (BOB,),
        (CARL,),
    ]
    assert len({message.octets for message in server.messages[1:]}) == 1
    assert listing(spool) == {}


def test_a_message_that_cannot_be_read_again_is_not_taken_back_from_those_who_have_it(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spool, 1, ANN, BOB)

    class Unreadable(outgoing.Outgoing):
        def octets(self) -> Iterator[bytes]:
            if server.messages:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().octets()

    with ScriptedServer(keywords=ONE_EACH) as server:
        config = configuration(spool, server.port)
        with monkeypatch.context() as patched:
            patched.setattr(attempt, "Outgoing", Unreadable)
            assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
        assert read(spool, "new", queue_id(1)).outcomes == [(1, taken(server, 0))]
        assert flush(config, Selection(), log=log) == Summary(tried=1, delivered=1)
    assert [message.recipients for message in server.messages] == [(ANN,), (BOB,)]
    assert [level for level, _ in log.lines] == ["info", "error", "info"]


def test_a_421_to_one_recipient_does_not_stop_the_other_messages(spool: str, log: Lines) -> None:
    put(spool, 1, BOB)
    put(spool, 2, ANN)
    with ScriptedServer(replies({RCPT_BOB: b"421 4.3.2 closing"})) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=1, deferred=1)
    assert [message.recipients for message in server.messages] == [(ANN,)]
    assert listing(spool) == {"cur": [due_after(1, 1, NOW)]}


# -- who is told what

WITH_DSN = (*KEYWORDS, b"DSN")


def test_success_is_told_here_when_the_next_hop_offers_no_dsn(spool: str, log: Lines) -> None:
    put(spool, 1, Recipient(ANN, b"ann", "SUCCESS"), Recipient(BOB), envid="QQ1", ret="FULL")
    with ScriptedServer() as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=2)
    assert server.sessions[0].commands[1:4] == [
        b"MAIL FROM:<me@here.test> SIZE=188",
        b"RCPT TO:<ann@x.test>",
        b"RCPT TO:<bob@x.test>",
    ]
    ((to, report),) = told(server)
    assert (to, report.header["Subject"]) == (b"me@here.test", "Successful Mail Delivery Report")
    assert report.message["Original-Envelope-Id"] == "QQ1"
    assert report.recipients == [
        {
            "Original-Recipient": "rfc822; ann",
            "Final-Recipient": "rfc822; ann@x.test",
            "Action": "relayed",
            "Status": "2.0.0",
            "Remote-MTA": "dns; 127.0.0.1",
            "Diagnostic-Code": "smtp; 250 2.0.0 taken",
            "Last-Attempt-Date": "Tue, 14 Nov 2023 22:13:20 +0000",
        }
    ]
    assert report.kind == "text/rfc822-headers"
    assert listing(spool) == {}


def test_success_is_left_to_a_next_hop_that_offers_dsn(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told what was asked for; that it reports is noted before the message goes."""
    name = put(
        spool,
        1,
        Recipient(ANN, b"ann+1", "SUCCESS,DELAY"),
        Recipient(BOB, b"bob"),
        Recipient(CARL, notify="NEVER"),
        envid="QQ 1",
        ret="HDRS",
    )
    watched = Watched(monkeypatch, spool)
    with ScriptedServer(watched.noting(lambda command: None), keywords=WITH_DSN) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=1, delivered=1)
    assert watched.sequence() == [
        ("posix_fallocate", f"new/{name}"),
        ("smtp", "MAIL FROM:<me@here.test> SIZE=188 RET=HDRS ENVID=QQ+201"),
        ("smtp", "RCPT TO:<ann@x.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;ann+2B1"),
        ("smtp", "RCPT TO:<bob@x.test> ORCPT=rfc822;bob"),
        ("smtp", "RCPT TO:<carl@x.test> NOTIFY=NEVER"),
        SAID_END,
        ("pwrite", f"new/{name}"),  # the outcomes
        ("ftruncate", f"new/{name}"),
        ("fsync", f"new/{name}"),
        ("pwrite", f"new/{name}"),  # the note
        ("fsync", f"new/{name}"),
        ("unlink", f"new/{name}"),
        ("fsync", "new"),
    ]
    assert len(server.messages) == 1
    assert listing(spool) == {}


def test_success_is_told_of_those_whose_next_hop_will_not(spool: str, log: Lines) -> None:
    port = free_port("127.0.0.1", "127.0.0.2")
    put(
        spool,
        1,
        Recipient(b"ann@[127.0.0.1]", notify="SUCCESS"),
        Recipient(b"bob@[127.0.0.2]", notify="SUCCESS"),
        sender=b"me@[127.0.0.1]",
    )
    one = ScriptedServer(port=port, keywords=WITH_DSN)
    two = ScriptedServer(address="127.0.0.2", port=port)
    with one, two:
        assert flush(direct(spool, port), Selection(), log=log) == Summary(tried=2, delivered=2)
    assert fates(one) == [(b"me@[127.0.0.1]", [("bob@[127.0.0.2]", "relayed", "2.0.0")])]
    assert [message.recipients for message in one.messages] == [
        (b"ann@[127.0.0.1]",),
        (b"me@[127.0.0.1]",),
    ]
    assert fates(two) == []


def test_a_failure_of_which_nobody_wants_to_know_is_not_told(spool: str, log: Lines) -> None:
    put(spool, 1, Recipient(ANN, notify="NEVER"), Recipient(BOB, notify="SUCCESS"))
    with ScriptedServer(replies({b"RCPT": b"550 5.1.1 no"})) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=1, failed=1)
    assert listing(spool) == {}


def test_a_delay_is_told_once(spool: str, log: Lines, clock: SimpleNamespace) -> None:
    """Of those who wait, when ``warn_after`` has passed, and before the message goes back to wait."""
    name = put(spool, 1, ANN, BOB, Recipient(CARL, notify="FAILURE"))
    answer = replies({b"RCPT TO:<ann@": b"450 4.2.1 no", b"RCPT TO:<carl@": b"450 4.2.1 no"})
    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port, warn_after=600)
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, deferred=1)
        clock.now = NOW + 590
        assert flush(config, EVERYTHING, log=log) == Summary(tried=2, delivered=1, deferred=1)
        assert read(spool, "cur", due_after(1, 2, clock.now)).reported == {"delay 0"}
        for _ in range(3):
            clock.now += 86400
            assert flush(config, EVERYTHING, log=log) == Summary(tried=1, deferred=1)
    assert fates(server) == [(b"me@here.test", [("ann@x.test", "delayed", "4.2.1")])]
    assert read(spool, "cur", due_after(1, 5, clock.now)).envelope.queue_id == name


def test_what_no_sender_can_be_told_is_told_to_admin(spool: str, log: Lines) -> None:
    """A message of the null sender that is refused; and a report that the sender's server refuses."""
    put(spool, 1, ANN, sender=NOBODY)
    put(spool, 2, ANN, sender=b"gone@x.test")
    answer = replies({b"RCPT TO:<ann@": b"550 5.1.1 no ann", b"RCPT TO:<gone@": b"550 5.1.1 gone"})
    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port, admin="admin")
        assert flush(config, Selection(), log=log) == Summary(tried=5, delivered=2, failed=3)
    assert fates(server) == [
        (b"admin@here.test", [("ann@x.test", "failed", "5.1.1")]),
        (b"admin@here.test", [("gone@x.test", "failed", "5.1.1")]),
    ]
    subjects = [report.header["Subject"] for _, report in told(server)]
    assert subjects == ["Undelivered Mail (its sender cannot be told)"] * 2
    assert listing(spool) == {}


@pytest.mark.parametrize(
    ("refusal", "summary", "state"),
    [
        pytest.param(b"550 5.1.1 no", Summary(tried=3, failed=3), "failed", id="refused"),
        pytest.param(b"450 4.2.1 no", Summary(tried=3, failed=2, deferred=1), "cur", id="put off"),
    ],
)
def test_a_report_that_admin_does_not_get_is_told_to_nobody(
    spool: str, log: Lines, refusal: bytes, summary: Summary, state: str
) -> None:
    """The chain of reports has an end: the one to ``admin`` is kept."""
    name = put(spool, 1, ANN)
    first = report_id(name, "failure 0")
    second = report_id(first, "failure 0")
    answer = replies({b"RCPT TO:<admin@": refusal, b"RCPT": b"550 5.1.1 no"})
    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port, admin="admin@x.test")
        assert flush(config, Selection(), log=log) == summary
    assert server.messages == []
    ((kept_in, (kept,)),) = listing(spool).items()
    assert (kept_in, kept.rpartition(".")[2]) == (state, second)
    entry = read(spool, kept_in, kept)
    assert (entry.envelope.sender, entry.envelope.recipients) == (b"", [Recipient(b"admin@x.test")])
    assert read_report(octets_of(spool, kept_in, kept)).fates() == [
        ("me@here.test", "failed", "5.1.1")
    ]


@pytest.mark.parametrize(
    ("recipient", "final", "status", "reason"),
    [
        pytest.param(
            b"-v", "rfc822; -v@here.test", "5.1.1", "no account begins with a dash", id="an option"
        ),
        pytest.param(
            "a@bü..test".encode(),
            "utf-8; a@b\\x{FC}..test",
            "5.1.2",
            r'"a@b\xfc..test": the domain has no form in ASCII',
            id="a domain without A-labels",
        ),
    ],
)
def test_what_has_no_next_hop_fails_and_the_others_have_theirs(
    spool: str, log: Lines, recipient: bytes, final: str, status: str, reason: str
) -> None:
    put(spool, 1, recipient, b"ann@[127.0.0.1]", sender=b"me@[127.0.0.1]")
    with ScriptedServer() as server:
        config = direct(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=1, failed=1)
    assert [message.recipients for message in server.messages] == [
        (b"ann@[127.0.0.1]",),
        (b"me@[127.0.0.1]",),
    ]
    ((_, report),) = told(server)
    assert report.recipients == [
        {
            "Final-Recipient": final,
            "Action": "failed",
            "Status": status,
            "Diagnostic-Code": f"x-minisend; {reason}",
            "Last-Attempt-Date": "Tue, 14 Nov 2023 22:13:20 +0000",
        }
    ]


def test_a_message_that_goes_in_circles_fails(spool: str, log: Lines) -> None:
    """A hundred servers may have had it; its report begins anew."""
    hops = b"received: from a by b; Tue, 14 Nov 2023 22:13:10 +0000\n"
    put(spool, 1, ANN, message=hops * 100 + MESSAGE)
    put(spool, 2, BOB, CARL, message=hops * 101 + MESSAGE)
    with ScriptedServer() as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=3, delivered=2, failed=1)
    assert [message.recipients for message in server.messages] == [(ANN,), (b"me@here.test",)]
    ((_, report),) = told(server)
    assert report.fates() == [(f"{name}@x.test", "failed", "5.4.6") for name in ("bob", "carl")]
    assert {each["Diagnostic-Code"] for each in report.recipients} == {
        "x-minisend; too many hops (101 Received fields): a mail loop"
    }


def test_success_that_cannot_be_left_to_the_next_hop_is_told_here(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delivery is recorded, so nothing is held and nobody gets it again."""
    name = put(spool, 1, Recipient(ANN, notify="SUCCESS"))
    failing = Failing(errno.EIO, "pwrite", once=True)

    def after(number: int, call: str, done: bool) -> None:
        failing.armed = failing.armed or (call == "fsync" and bool(server.messages))

    with ScriptedServer(keywords=WITH_DSN) as server:
        config = configuration(spool, server.port)
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", Seam(failing, after))
            assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
        assert listing(spool) == {"new": [name]}
        assert read(spool, "new", name).outcomes == [(1, taken(server, 0))]
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=2)
    assert [message.recipients for message in server.messages] == [(ANN,), (b"me@here.test",)]
    assert listing(spool) == {}


# -- a crash


class Crash(BaseException):
    """In place of kill -9."""


def crashed(spool: str) -> None:
    """What the end of a process does: its descriptors are closed, and with them its claims."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{spool}/"):
                os.close(int(fd))
        except FileNotFoundError:
            pass  # the descriptor of the listing


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(1, id="the message comes first"),
        pytest.param(2**64 - 1, id="its report comes first"),
    ],
)
def test_a_crash_before_any_system_call_loses_nothing_and_doubles_only_what_was_in_flight(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Of a message and of the report about it alike; after each crash a whole run follows.

    In flight is what the server has, until the outcome is written or the file removed.
    """
    in_flight = []
    heard_at: list[int] = []  # how many system calls there had been when the server had a message

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA:
            heard_at.append(len(seam.calls))
        return b"550 5.1.1 no" if command.startswith(b"RCPT TO:<bob@") else None

    with ScriptedServer(answer) as server:
        for limit in range(1, 1000):

            def stop(count: int, call: str, limit: int = limit) -> None:
                # Also what is done on the way out, which a process that is killed does not do.
                if count >= limit:
                    raise Crash

            here = f"{spool}{limit}"
            put(here, number, ANN, BOB)
            config = configuration(here, server.port)
            seam = Seam(stop)
            del server.messages[:], heard_at[:]
            with monkeypatch.context() as patched:
                patched.setattr(disk, "posix", seam)
                try:
                    flush(config, Selection(), log=log)
                except Crash:
                    crashed(here)
                else:
                    break
            done = seam.calls[: limit - 1]
            copies = {(ANN,): 1, (b"me@here.test",): 1}
            if heard_at and not {"pwrite", "unlink"} & set(done[heard_at[-1] :]):
                copies[server.messages[-1].recipients] = 2
                in_flight.append(server.messages[-1].recipients)
            flush(config, EVERYTHING, log=log)
            have = [message.recipients for message in server.messages]
            assert {each: have.count(each) for each in have} == copies, (limit, seam.calls)
            assert (
                fates(server)
                == [(b"me@here.test", [("bob@x.test", "failed", "5.1.1")])]
                * copies[b"me@here.test",]
            )
            assert not listing(here).keys() - {"tmp"}, (limit, seam.calls)
    # The loop has come to its end, and through both windows.
    assert limit > 20
    assert set(in_flight) == {(ANN,), (b"me@here.test",)}


@pytest.mark.parametrize(
    ("call", "servers", "again"),
    [
        pytest.param("posix_fallocate", 2, 0, id="before the third transaction"),
        pytest.param("pwrite", 3, 1, id="the third is in flight"),
        pytest.param("ftruncate", 3, 0, id="the third is written down"),
        pytest.param("fsync", 3, 0, id="but not durable"),
        pytest.param("unlink", 4, 1, id="all of it is in flight"),
    ],
)
def test_a_crash_between_two_transactions_doubles_none_that_was_recorded(
    spool: str,
    log: Lines,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    servers: int,
    again: int,
) -> None:
    """``servers`` is how many messages the server has when it happens, ``again`` how many of them it gets once more."""
    everybody = [b"r%d@x.test" % number for number in range(4)]
    put(spool, 1, *everybody)
    dead = False

    def stop(number: int, name: str) -> None:
        nonlocal dead
        dead = dead or (name == call and len(server.messages) == servers)
        if dead:
            raise Crash

    with ScriptedServer(keywords=ONE_EACH) as server:
        config = configuration(spool, server.port)
        with monkeypatch.context() as patched:
            _reserve_always(patched)
            patched.setattr(disk, "posix", Seam(stop))
            with pytest.raises(Crash):
                flush(config, Selection(), log=log)
            crashed(spool)
        before = everybody[:servers]
        assert [message.recipients for message in server.messages] == [(each,) for each in before]
        assert flush(config, Selection(), log=log) == Summary(tried=1, delivered=1)
        assert [message.recipients for message in server.messages] == [
            (each,) for each in before + everybody[servers - again :]
        ]
    assert listing(spool) == {}


# -- when: what is due, retry times, the end


def test_a_fault_of_this_machine_does_not_count(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    """A TCP connection to the broadcast address is ENETUNREACH on Linux, before any packet."""
    put(spool, 1, ANN)
    config = configuration(spool, 25, lifetime=3600, warn_after=30 * 86400)
    config.smarthost = Smarthost(("255.255.255.255",), port=25, tls="none")
    for days in range(5):
        clock.now = NOW + days * 86400
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, deferred=1)
        waiting = f"{int(clock.now) + 300}.{queue_id(1)}"
        assert listing(spool) == {"cur": [waiting]}
        entry = read(spool, "cur", waiting)
        assert (entry.attempts, entry.pending) == (0, [0])
        # Said once: a machine without network would write it every five minutes.
        assert [outcome.reason for _, outcome in entry.outcomes] == [
            "connect to [255.255.255.255]:25: Network is unreachable"
        ]


def test_who_has_ipv6_alone_is_given_up_by_a_machine_that_has_none(
    spool: str, log: Lines, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a network, and it does not lead there: the back-off advances, and the lifetime ends."""

    def connect(address: str, *arguments: object, **options: object) -> NoReturn:
        raise blame(NetworkError("no IPv6", "4.4.1", local=True, lasting=True), "connect")

    monkeypatch.setattr(remote, "connect", connect)
    put(spool, 1, ANN)
    config = configuration(spool, 25, lifetime=3600, warn_after=30 * 86400)
    config.smarthost = Smarthost(("::1",), port=25, tls="none")
    for hours in (1, 2):
        clock.now = NOW + hours * 3600
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, deferred=1)
    clock.now = NOW + 3 * 3600
    # What is left is the report, which waits for the same.
    assert flush(config, EVERYTHING, log=log) == Summary(tried=2, deferred=1, failed=1)


def test_a_lifetime_and_three_attempts_are_the_end(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    """The sender is warned once on the way."""
    name = put(spool, 1, ANN, BOB)
    reply = "450 4.2.1 later"
    with ScriptedServer(replies({b"RCPT TO:<bob@": reply.encode()})) as server:
        config = configuration(spool, server.port, lifetime=3600)
        clock.now = NOW + 86400
        assert flush(config, EVERYTHING, log=log) == Summary(tried=2, delivered=1, deferred=1)
        assert listing(spool) == {"cur": [due_after(1, 1, clock.now)]}
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, deferred=1)
        assert listing(spool) == {"cur": [due_after(1, 2, clock.now)]}
        log.lines.clear()
        clock.now += 60
        assert flush(config, EVERYTHING, log=log) == Summary(tried=2, delivered=1, failed=1)
        assert flush(config, EVERYTHING, log=log) == Summary()
    assert listing(spool) == {}
    assert [message.recipients for message in server.messages] == [
        (ANN,),
        *[(b"me@here.test",)] * 2,
    ]
    assert fates(server) == [
        (b"me@here.test", [("bob@x.test", "delayed", "4.2.1")]),
        (b"me@here.test", [("bob@x.test", "failed", "4.2.1")]),
    ]
    (_, warning), (_, failure) = told(server)
    assert warning.header["Subject"] == "Delayed Mail (still being retried)"
    assert warning.recipients[0]["Will-Retry-Until"] == "Tue, 14 Nov 2023 23:13:10 +0000"
    assert warning.kind == "text/rfc822-headers"
    assert failure.recipients == [
        {
            "Final-Recipient": "rfc822; bob@x.test",
            "Action": "failed",
            "Status": "4.2.1",
            "Remote-MTA": "dns; 127.0.0.1",
            "Diagnostic-Code": f"smtp; {reply}",
            "Last-Attempt-Date": "Wed, 15 Nov 2023 22:14:20 +0000",
        }
    ]
    mta = f"127.0.0.1[127.0.0.1]:{server.port}"
    reason = f"host {mta} said: {reply} (in reply to RCPT TO)"
    start = f"{name}: from=me@here.test to=bob@x.test relay={mta} delay=86470.00 dsn=4.2.1"
    report = report_id(name, "failure 1")
    assert log.lines[:3] == [
        ("info", f'{start} status=delayed reason="{reason}"'),
        ("info", f'{start} status=failed reason="delivery time expired: {reason}"'),
        ("info", f'{name}: event="failure report" to=me@here.test report={report}'),
    ]


def test_the_end_of_a_message_of_which_nobody_can_be_told(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    name = put(spool, 1, ANN, BOB, sender=NOBODY)
    with ScriptedServer(replies({b"RCPT TO:<bob@": b"450 4.2.1 later"})) as server:
        config = configuration(spool, server.port, lifetime=3600)
        clock.now = NOW + 86400
        for _ in range(2):
            assert flush(config, EVERYTHING, log=log) == Summary(tried=1, deferred=1)
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, failed=1)
        assert flush(config, EVERYTHING, log=log) == Summary()
    assert [message.recipients for message in server.messages] == [(ANN,)]
    assert listing(spool) == {"failed": [name]}
    entry = read(spool, "failed", name)
    assert [(attempt, each.action, each.status) for attempt, each in entry.outcomes] == [
        (1, RELAYED, "2.0.0"),
        (1, DELAYED, "4.2.1"),
        (2, DELAYED, "4.2.1"),
        (3, DELAYED, "4.2.1"),
        (3, FAILED, "4.2.1"),
    ]
    mta = f"127.0.0.1[127.0.0.1]:{server.port}"
    assert entry.latest[1].reason == (
        f"delivery time expired: host {mta} said: 450 4.2.1 later (in reply to RCPT TO)"
    )


def test_a_next_hop_that_is_down_is_asked_once_for_all(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects: list[int] = []

    def connect(address: str, port: int, *rest: object, **more: object) -> object:
        connects.append(port)
        return real(address, port, *rest, **more)

    real = remote.connect
    monkeypatch.setattr(remote, "connect", connect)
    port = free_port("127.0.0.1")
    for number in range(1, 31):
        put(spool, number, ANN)
    assert flush(configuration(spool, port), Selection(), log=log) == Summary(tried=30, deferred=30)
    assert connects == [port]
    down = Destinations(spool).get(f"[127.0.0.1]:{port}")
    assert down is not None
    # The first has been tried, and has it in writing; the others cost a rename each, to the time of the next probe.
    assert listing(spool) == {"cur": [f"{down.until}.{queue_id(n)}" for n in range(1, 31)]}
    entries = [read(spool, "cur", f"{down.until}.{queue_id(n)}") for n in range(1, 31)]
    assert [len(entry.outcomes) for entry in entries] == [1] + [0] * 29
    assert down == Down(
        since=NOW,
        failures=1,
        counted=(NOW,),
        until=down.until,
        status="4.4.1",
        reason=f"connect to [127.0.0.1]:{port}: Connection refused",
        remote_mta=f"127.0.0.1[127.0.0.1]:{port}",
        diagnostic="",
        command="",
        at=NOW,
    )
    assert NOW + 300 <= down.until <= NOW + 330


def test_down_and_up_again_is_delivered_once(
    spool: str, log: Lines, clock: SimpleNamespace
) -> None:
    put(spool, 1, ANN)
    port = free_port("127.0.0.1")
    config = configuration(spool, port)
    assert flush(config, Selection(), log=log).exit_code == 75
    with ScriptedServer(port=port) as server:
        assert flush(config, Selection(), log=log) == Summary()
        clock.now += 400
        assert flush(config, Selection(), log=log) == Summary(tried=1, delivered=1)
        assert flush(config, EVERYTHING, log=log) == Summary()
    assert len(server.messages) == 1


# -- which: selections and sums


def test_by_id(spool: str, log: Lines) -> None:
    one, two, three = (put(spool, number, ANN) for number in (1, 2, 3))
    with ScriptedServer(replies({b"DATA": [b"450 4.0.0 later"]})) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(ids=(two,)), log=log) == Summary(tried=1, deferred=1)
        # Due or not, and each once.
        assert flush(config, Selection(ids=(two, one, two)), log=log) == Summary(
            tried=2, delivered=2
        )
    assert listing(spool) == {"new": [three]}


def test_the_ids_that_are_there_are_tried_before_the_others_are_named(
    spool: str, log: Lines
) -> None:
    names = [put(spool, number, ANN, sender=b"%d@x.test" % number) for number in (1, 2, 3)]
    with ScriptedServer() as server:
        config = configuration(spool, server.port)
        selection = Selection(ids=(names[2], "gone", names[0], queue_id(9), "gone"))
        with pytest.raises(
            UsageError, match=f"^gone, {queue_id(9)}: no such message waits in the queue$"
        ):
            flush(config, selection, log=log)
    assert [message.sender for message in server.messages] == [b"3@x.test", b"1@x.test"]
    assert listing(spool) == {"new": [names[1]]}


@pytest.mark.parametrize(
    ("domain", "recipient"),
    [
        pytest.param("bücher.test", b"bob@xn--bcher-kva.test", id="asked in letters"),
        pytest.param("xn--bcher-kva.test", "bob@bücher.test".encode(), id="written in letters"),
        pytest.param("BÜCHER.test", "bob@bücher.test".encode(), id="in any case"),
        pytest.param("XN--Bcher-KVA.Test", b"bob@xn--bcher-kva.test", id="A-labels in any case"),
        pytest.param("y.test.", b"bob@y.test", id="a final dot"),
        pytest.param("y.test", b"bob@Y.test.", id="a final dot of the recipient"),
        pytest.param("here.test.", b"bob", id="a bare name"),
        pytest.param("[127.0.0.1]", b"bob@[127.0.0.1]", id="a literal"),
        pytest.param("bü..Test", "bob@bü..test".encode(), id="without A-labels"),
    ],
)
def test_a_domain_has_more_than_one_form(
    spool: str, log: Lines, domain: str, recipient: bytes
) -> None:
    put(spool, 1, recipient, sender=b"one@x.test")
    put(spool, 2, ANN, sender=b"two@x.test")
    with ScriptedServer(replies({b"MAIL": b"451 4.3.0 later"})) as server:
        config = configuration(spool, server.port)
        flush(config, Selection(domain=domain.encode()), log=log)
    assert listing(spool)["new"] == [queue_id(2)]
    assert log.lines[0][1].startswith(f"{queue_id(1)}: ")


def test_what_is_not_selected_is_not_claimed(spool: str, log: Lines) -> None:
    """Another flusher may have it, and may take it at any time."""
    put(spool, 1, ANN)
    other = put(spool, 2, b"bob@y.test")
    selection = Selection(domain=b"x.test")
    with ScriptedServer() as server, Queue(spool) as queue:
        config = configuration(spool, server.port)
        theirs = queue.claim(Place("new", other))
        assert theirs is not None
        with theirs:
            assert flush(config, selection, log=log) == Summary(tried=1, delivered=1)
    claims: list[str] = []

    class Watching(Queue):
        def claim(self, place: Place) -> Entry | None:
            claims.append(place.queue_id)
            return super().claim(place)

    put(spool, 3, ANN)
    with pytest.MonkeyPatch.context() as patched, ScriptedServer() as server:
        patched.setattr(module, "Queue", Watching)
        config = configuration(spool, server.port)
        assert flush(config, selection, log=log) == Summary(tried=1, delivered=1)
    assert claims == [queue_id(3)]
    assert listing(spool) == {"new": [other]}


def test_a_broken_file_is_found_out_by_a_selection_too(spool: str, log: Lines) -> None:
    name = put(spool, 1, ANN)
    Path(f"{spool}/queue/new/{name}").write_bytes(b"no queue file\n")
    assert flush(configuration(spool, 25), Selection(domain=b"x.test"), log=log) == Summary(
        broken=1
    )
    assert listing(spool) == {"failed": [name]}


def test_by_recipient_domain(spool: str, log: Lines) -> None:
    put(spool, 1, ANN, b"bob@y.test")
    put(spool, 2, b"bob@z.test")
    put(spool, 3, b"root")
    with ScriptedServer() as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(domain=b"Y.test"), log=log) == Summary(tried=1, delivered=1)
        assert flush(config, Selection(domain=b"here.test"), log=log) == Summary(
            tried=1, delivered=1
        )
        assert flush(config, Selection(domain=b"gone.test"), log=log) == Summary()
    assert [message.recipients for message in server.messages] == [
        (ANN, b"bob@y.test"),
        (b"root@here.test",),
    ]


def test_the_domain_of_a_recipient_who_has_it_does_not_count(spool: str, log: Lines) -> None:
    put(spool, 1, ANN, b"bob@y.test")
    with ScriptedServer(replies({b"RCPT TO:<bob@": b"450 4.2.1 later"})) as server:
        config = configuration(spool, server.port)
        flush(config, Selection(), log=log)
        assert flush(config, Selection(domain=b"x.test"), log=log) == Summary()


@pytest.mark.parametrize(
    ("parts", "senders"),
    [
        pytest.param({"id_part": b"00Ab"}, [b"Two@y.test"], id="id"),
        pytest.param({"id_part": b"00"}, [b"one@x.test", b"Two@y.test"], id="any id"),
        pytest.param({"sender_part": b"tWO@"}, [b"Two@y.test"], id="sender"),
        pytest.param({"recipient_part": b"BOB"}, [b"one@x.test"], id="recipient"),
        pytest.param({"recipient_part": b"t@here.TEST"}, [b"Two@y.test"], id="qualified"),
        pytest.param({"recipient_part": b"@", "sender_part": b"x.test"}, [b"one@x.test"], id="two"),
        pytest.param({"domain": b"x.test", "recipient_part": b"root"}, [], id="of one recipient"),
        pytest.param({"id_part": b"ff"}, [], id="none"),
    ],
)
def test_by_parts(spool: str, log: Lines, parts: dict[str, bytes], senders: list[bytes]) -> None:
    put(spool, 1, ANN, BOB, sender=b"one@x.test")
    name = put(spool, 0xAB, b"root", sender=b"Two@y.test")
    # Due or not.
    os.rename(f"{spool}/queue/new/{name}", f"{spool}/queue/cur/{int(NOW) + 60:010d}.{name}")
    with ScriptedServer() as server:
        summary = flush(
            configuration(spool, server.port), Selection(everything=True, **parts), log=log
        )
    assert summary == Summary(tried=len(senders), delivered=len(senders))
    assert [message.sender for message in server.messages] == senders


def test_a_report_is_selected_like_any_message_but_for_those_that_come_up(
    spool: str, log: Lines
) -> None:
    put(spool, 1, b"them@z.test", sender=b"", uid=-1)
    put(spool, 2, ANN)
    with ScriptedServer(replies({b"RCPT TO:<ann@": b"550 5.1.1 no"})) as server:
        config = configuration(spool, server.port)
        summary = flush(config, Selection(domain=b"x.test"), log=log)
    assert summary == Summary(tried=2, delivered=1, failed=1)
    assert [message.recipients for message in server.messages] == [(b"me@here.test",)]
    assert listing(spool) == {"new": [queue_id(1)]}


@pytest.mark.parametrize("waits", [False, True], ids=["among the due", "not due"])
def test_a_report_from_before_a_crash_is_delivered_once_and_passed_over_without_a_word(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    name = put(spool, 1, ANN)
    report = report_id(name, "failure 0")
    with ScriptedServer(replies({b"RCPT TO:<ann@": b"550 5.1.1 no"})) as server:
        config = configuration(spool, server.port)
        with monkeypatch.context() as patched:
            # Nothing can be written any more when the report is in the queue.
            failing = Failing(errno.EIO, "pwrite", "unlink", "open")

            def after(number: int, call: str, done: bool) -> None:
                failing.armed = failing.armed or call == "rename"

            patched.setattr(disk, "posix", Seam(failing, after))
            flush(config, Selection(), log=log)
        assert listing(spool) == {"new": sorted([name, report])}
        if waits:
            os.rename(
                f"{spool}/queue/new/{report}", f"{spool}/queue/cur/{int(NOW) + 60:010d}.{report}"
            )
        now = Summary(tried=1, failed=1) if waits else Summary(tried=2, delivered=1, failed=1)
        assert flush(config, Selection(), log=log) == now
        flush(config, EVERYTHING, log=log)
    assert fates(server) == [(b"me@here.test", [("ann@x.test", "failed", "5.1.1")])]
    assert listing(spool) == {}


def test_what_is_held_or_has_failed_is_never_tried(spool: str, log: Lines) -> None:
    for number, state in ((1, "hold"), (2, "failed")):
        name = put(spool, number, ANN)
        os.rename(f"{spool}/queue/new/{name}", f"{spool}/queue/{state}/{name}")
    with ScriptedServer() as server:
        config = configuration(spool, server.port)
        assert flush(config, EVERYTHING, log=log) == Summary()
        for number in (1, 2):
            with pytest.raises(UsageError, match="no such message waits in the queue"):
                flush(config, Selection(ids=(queue_id(number),)), log=log)
    assert server.sessions == []


def test_one_connection_for_many_messages_in_order_of_waiting(spool: str, log: Lines) -> None:
    for number in range(20, 0, -1):
        put(spool, number, ANN, sender=b"%d@x.test" % number)
    progress: list[tuple[int, int]] = []
    with ScriptedServer() as server:
        summary = flush(
            configuration(spool, server.port),
            Selection(),
            log=log,
            progress=lambda *step: progress.append(step),
        )
    assert summary == Summary(tried=20, delivered=20)
    (session,) = server.sessions
    assert session.verbs() == [b"EHLO", *[b"MAIL", b"RCPT", b"DATA"] * 20, b"QUIT"]
    assert [message.sender for message in server.messages] == [
        b"%d@x.test" % number for number in range(1, 21)
    ]
    assert progress[0][1] == 20
    assert progress == sorted(progress)
    assert progress[-1] == (20, 20)


@pytest.mark.parametrize(
    ("summary", "code"),
    [
        (Summary(), 0),
        (Summary(tried=2, delivered=2, skipped=1), 0),
        (Summary(tried=2, delivered=1, failed=1), 69),
        (Summary(broken=1), 69),
        (Summary(tried=3, failed=1, deferred=1, broken=1), 75),
    ],
)
def test_exit_codes(summary: Summary, code: int) -> None:
    assert summary.exit_code == code


def test_no_queue_is_an_empty_queue(spool: str, log: Lines) -> None:
    assert flush(configuration(spool, 25), Selection(), log=log) == Summary()
    assert not os.path.exists(spool)


@pytest.mark.parametrize("made", range(len(STATES)))
def test_a_queue_that_a_submission_is_making(spool: str, log: Lines, made: int) -> None:
    os.makedirs(f"{spool}/queue")
    for state in STATES[:made]:
        os.mkdir(f"{spool}/queue/{state}")
    assert flush(configuration(spool, 25), Selection(), log=log) == Summary()
    assert sorted(os.listdir(f"{spool}/queue")) == sorted(STATES)
    assert log.lines == []


# -- files that are not as they should be


def test_a_broken_file_is_set_aside_and_the_others_go_on(spool: str, log: Lines) -> None:
    names = [put(spool, number, ANN) for number in (1, 2, 3, 4)]
    for name, octets in (
        (names[1], b"no queue file\n"),
        (names[2], b"minisend-queue 2\nof the future\n"),
    ):
        Path(f"{spool}/queue/new/{name}").write_bytes(octets)
    with ScriptedServer() as server:
        summary = flush(configuration(spool, server.port), Selection(), log=log)
    assert summary == Summary(tried=2, delivered=2, broken=2)
    assert summary.exit_code == 69
    assert listing(spool) == {"new": [names[2]], "failed": [names[1]]}
    assert [text for level, text in log.lines if level == "error"] == [
        f'{names[1]}: event=broken reason="set aside in queue/failed: it does not begin like a queue file"',
        f'{names[2]}: event=broken reason="left alone: its format is version 2"',
    ]


@pytest.mark.parametrize(
    "lines", [pytest.param(1, id="before"), pytest.param(40_000, id="under way")]
)
def test_a_message_that_was_changed_is_delivered_to_nobody(
    spool: str, log: Lines, lines: int
) -> None:
    """No end of data is sent: what the server has is half a message, which it throws away (RFC 5321 section 4.1.1.4)."""
    name = put(spool, 1, ANN, message=MESSAGE + (b"x" * 70 + b"\n") * lines + b"the end\n")
    put(spool, 2, BOB)

    def change() -> None:
        with open(f"{spool}/queue/new/{name}", "r+b") as file:
            file.seek(file.read().index(b"the end"))
            file.write(b"!")

    def answer(command: bytes) -> bytes | None:
        # A large message is not read before it is sent.
        if command == b"DATA" and len(server.sessions) == 1 and lines > 1:
            change()
        return None

    if lines == 1:
        change()
    with ScriptedServer(answer) as server:
        summary = flush(configuration(spool, server.port), Selection(), log=log)
    assert summary == Summary(tried=2, delivered=1, broken=1)
    assert listing(spool) == {"failed": [name]}
    assert [message.recipients for message in server.messages] == [(BOB,)]
    assert [session.cut for session in server.sessions] == [True, False]
    assert log.lines[0] == (
        "error",
        f'{name}: event=broken reason="set aside in queue/failed: its message was changed after it was written"',
    )


def test_a_bug_that_one_message_meets_does_not_stop_the_others(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete(header: object, envelope: Envelope, facts: object) -> bytes:
        if envelope.queue_id == queue_id(1):
            raise ZeroDivisionError("division by zero")
        return real(header, envelope, facts)

    real = outgoing.complete
    monkeypatch.setattr(outgoing, "complete", complete)
    put(spool, 1, ANN)
    put(spool, 2, BOB)
    with ScriptedServer() as server:
        summary = flush(configuration(spool, server.port), Selection(), log=log)
    assert summary == Summary(tried=2, delivered=1, deferred=1)
    waiting = due_after(1, 1, NOW)
    assert listing(spool) == {"cur": [waiting]}
    assert read(spool, "cur", waiting).outcomes == [
        (
            1,
            Outcome(
                0,
                DELAYED,
                "4.3.0",
                "internal error, please report it: ZeroDivisionError: division by zero",
                at=NOW,
            ),
        )
    ]
    level, text = log.lines[0]
    assert level == "error"
    assert text.startswith(f'{queue_id(1)}: event=bug trace="Traceback (most recent call last):\\n')


def test_a_bug_that_one_report_meets_does_not_stop_the_others(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is queued, and the message stays, with what became of it."""

    def build(event: str, outcomes: object, original: SimpleNamespace, **more: object) -> object:
        if original.envelope.queue_id == queue_id(1):
            raise ZeroDivisionError("division by zero")
        return real(event, outcomes, original, **more)

    real = bounce.dsn.build
    put(spool, 1, ANN)
    put(spool, 2, ANN)
    with ScriptedServer(replies({b"RCPT TO:<ann@": b"550 5.1.1 no"})) as server:
        config = configuration(spool, server.port)
        with monkeypatch.context() as patched:
            patched.setattr(bounce.dsn, "build", build)
            summary = flush(config, Selection(), log=log)
        assert summary == Summary(tried=3, delivered=1, deferred=1, failed=1)
        assert listing(spool) == {"new": [queue_id(1)]}
        assert [text for level, text in log.lines if level == "error"][1:] == [
            f"{queue_id(1)}: event=postponed status=4.3.0 "
            'reason="internal error, please report it: ZeroDivisionError: division by zero"'
        ]
        # Ann is not asked again.
        assert flush(config, Selection(), log=log) == Summary(tried=2, delivered=1, failed=1)
    assert [session.verbs().count(b"RCPT") for session in server.sessions] == [3, 1]
    assert fates(server) == [(b"me@here.test", [("ann@x.test", "failed", "5.1.1")])] * 2
    assert listing(spool) == {}


# -- a disk that fails


class Failing:
    """``before`` for a seam: once ``armed``, the named calls fail, or the next one of them only (``once``)."""

    def __init__(self, error: int, *names: str, armed: bool = False, once: bool = False) -> None:
        self._error = error
        self._names = names
        self._once = once
        self.armed = armed

    def __call__(self, number: int, name: str) -> None:
        if self.armed and name in self._names:
            self.armed = not self._once
            raise OSError(self._error, os.strerror(self._error))

    def arming_at(self, trigger: bytes, answer: Answer) -> Answer:
        def armed(command: bytes) -> bytes | None:
            self.armed = self.armed or command.startswith(trigger)
            return answer(command)

        return armed


def test_no_room_for_the_outcome_is_no_attempt(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(spool, 1, ANN)
    before = Path(f"{spool}/queue/new/{name}").read_bytes()
    with ScriptedServer() as server:
        with monkeypatch.context() as patched:
            failing = Failing(errno.ENOSPC, "posix_fallocate", armed=True)
            _reserve_always(patched)
            patched.setattr(disk, "posix", Seam(failing))
            summary = flush(configuration(spool, server.port), Selection(), log=log)
        assert summary == Summary(tried=1, deferred=1)
        assert server.sessions == []
        assert listing(spool) == {"new": [name]}
        assert Path(f"{spool}/queue/new/{name}").read_bytes() == before
        assert log.lines == [
            (
                "error",
                f"{name}: event=postponed status=4.3.1 "
                'reason="no room for outcomes: No space left on device"',
            )
        ]
        # With room again it goes at once.
        assert flush(configuration(spool, server.port), Selection(), log=log).delivered == 1


def test_the_last_block_of_the_file_has_room_on_a_full_disk(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And costs no call; nor does the message that everybody has at once cost a write."""
    names = [put(spool, 1, ANN), put(spool, 2, BOB)]
    watched = Watched(monkeypatch, spool, Failing(errno.ENOSPC, "posix_fallocate", armed=True))
    monkeypatch.setattr(disk, "block", lambda fd: 4096)
    answer = watched.noting(replies({RCPT_BOB: b"450 4.2.1 later"}))
    with ScriptedServer(answer, keywords=(b"8BITMIME", b"SIZE")) as server:
        summary = flush(configuration(spool, server.port), Selection(), log=log)
    assert summary == Summary(tried=2, delivered=1, deferred=1)
    assert [call for call in watched.sequence() if call[0] != "smtp"] == [
        ("unlink", f"new/{names[0]}"),
        ("pwrite", f"new/{names[1]}"),
        ("fsync", f"new/{names[1]}"),
        ("rename", f"new/{names[1]}"),
        ("fsync", "cur"),
        ("fsync", "new"),
    ]
    entry = read(spool, "cur", due_after(2, 1, NOW))
    assert (entry.pending, entry.attempts) == ([0], 1)
    assert entry.facts is not None


BARE = b"Subject: s\nTo: ann\n\nHello.\n"


def test_later_attempts_send_the_octets_of_the_first(spool: str, log: Lines) -> None:
    """Whatever becomes of the configuration, once an attempt is on record."""
    put(spool, 1, ANN, BOB, message=BARE)
    later = True

    def answer(command: bytes) -> bytes | None:
        return b"450 4.2.1 later" if later and command.startswith(RCPT_BOB) else None

    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
        later = False
        config = configuration(spool, server.port, name="elsewhere.test")
        assert flush(config, EVERYTHING, log=log) == Summary(tried=1, delivered=1)
    first, second = server.messages
    assert (first.recipients, second.recipients) == ((ANN,), (BOB,))
    assert first.octets == second.octets
    assert b"\nTo: ann@here.test\r\n" in first.octets
    assert b"elsewhere" not in first.octets


def test_an_attempt_that_asked_nobody_settles_nothing(spool: str, log: Lines) -> None:
    """The next one is the first, and shows the configuration of its day."""
    put(spool, 1, ANN, message=BARE)
    put(spool, 2, BOB, message=BARE)
    with ScriptedServer() as server:
        config = configuration(spool, free_port("127.0.0.1"))
        assert flush(config, Selection(), log=log) == Summary(tried=2, deferred=2)
        config = configuration(spool, server.port, name="elsewhere.test")
        assert flush(config, EVERYTHING, log=log) == Summary(tried=2, delivered=2)
    sent = {message.recipients: message.octets for message in server.messages}
    # The probe of the destination is on record, the one that waited for it is not.
    assert sorted(b"\nTo: ann@here.test\r\n" in octets for octets in sent.values()) == [False, True]
    assert sorted(b"\nTo: ann@elsewhere.test\r\n" in octets for octets in sent.values()) == [
        False,
        True,
    ]


def test_no_room_for_the_next_transaction_is_no_transaction(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the first of three is sent, and what was reserved for the others was given back."""
    name = put(spool, 1, ANN, BOB, CARL)
    one_by_one = (b"8BITMIME", b"SIZE", b"LIMITS RCPTMAX=1")
    failing = Failing(errno.ENOSPC, "posix_fallocate")
    answer = failing.arming_at(END_OF_DATA, lambda command: None)
    with ScriptedServer(answer, keywords=one_by_one) as server:
        with monkeypatch.context() as patched:
            _reserve_always(patched)
            patched.setattr(disk, "posix", Seam(failing))
            summary = flush(configuration(spool, server.port), Selection(), log=log)
        assert summary == Summary(tried=1, deferred=1)
        assert [message.recipients for message in server.messages] == [(ANN,)]
        assert read(spool, "new", name).pending == [1, 2]


def test_no_room_for_the_second_next_hop_is_no_attempt_there(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port("127.0.0.1", "127.0.0.2")
    name = put(spool, 1, b"ann@[127.0.0.1]", b"bob@[127.0.0.2]")
    failing = Failing(errno.ENOSPC, "posix_fallocate")
    one = ScriptedServer(failing.arming_at(END_OF_DATA, lambda command: None), port=port)
    two = ScriptedServer(address="127.0.0.2", port=port)
    with one, two:
        with monkeypatch.context() as patched:
            _reserve_always(patched)
            patched.setattr(disk, "posix", Seam(failing))
            assert flush(direct(spool, port), Selection(), log=log).deferred == 1
        assert two.sessions == []
        assert read(spool, "new", name).pending == [1]
        assert flush(direct(spool, port), Selection(), log=log) == Summary(tried=1, delivered=1)
    assert [len(server.messages) for server in (one, two)] == [1, 1]


@pytest.mark.parametrize(
    ("error", "call"),
    [
        pytest.param(errno.ENOSPC, "pwrite", id="no space"),
        pytest.param(errno.EIO, "fsync", id="fsync fails"),
    ],
)
def test_a_delivery_that_cannot_be_recorded_is_held(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch, error: int, call: str
) -> None:
    name = put(spool, 1, ANN, BOB)
    put(spool, 2, CARL)
    failing = Failing(error, call, once=True)
    refusing = replies({b"RCPT TO:<bob@": b"550 5.1.1 no bob"})

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA and not server.messages[1:]:
            failing.armed = True
        return refusing(command)

    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port)
        monkeypatch.setattr(disk, "posix", Seam(failing))
        summary = flush(config, Selection(), log=log)
        assert summary == Summary(tried=2, deferred=1, delivered=1)
        assert listing(spool) == {"hold": [name]}
        # The claim is kept: also who would release it has to wait for this process to end.
        with Queue(spool) as queue:
            assert queue.claim(Place("hold", name)) is None
        assert flush(config, EVERYTHING, log=log) == Summary()
    assert [message.recipients for message in server.messages] == [(ANN,), (CARL,)]
    assert (
        "error",
        f'{name}: event=held status=4.3.0 reason="delivered to some or all recipients, '
        f'which cannot be recorded: {os.strerror(error)}"',
    ) in log.lines


def test_a_delivery_that_cannot_be_removed_is_recorded_and_removed_later(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(spool, 1, ANN)
    with ScriptedServer() as server:
        config = configuration(spool, server.port)
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", Seam(Failing(errno.EPERM, "unlink", armed=True)))
            assert flush(config, Selection(), log=log) == Summary(tried=1, delivered=1)
        assert listing(spool) == {"new": [name]}
        assert read(spool, "new", name).outcomes == [(1, taken(server, 0))]
        assert (
            "error",
            f'{name}: event=kept reason="delivered, but its file cannot be removed: Operation not permitted"',
        ) in log.lines
        assert flush(config, Selection(), log=log) == Summary(tried=1, delivered=1)
    assert len(server.messages) == 1
    assert listing(spool) == {}


def test_a_delivery_that_the_disk_takes_no_word_of_keeps_its_claim(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(spool, 1, ANN)
    failing = Failing(errno.EROFS, "pwrite", "unlink", "rename", "ftruncate", "fsync")
    with ScriptedServer(failing.arming_at(END_OF_DATA, lambda command: None)) as server:
        config = configuration(spool, server.port)
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", Seam(failing))
            assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
        # As long as this process lives nobody else sends it again.
        assert flush(config, EVERYTHING, log=log) == Summary(skipped=1)
    assert len(server.messages) == 1
    assert listing(spool) == {"new": [name]}
    assert log.lines[-1] == (
        "error",
        f'{name}: event=held status=4.3.0 reason="delivered to some or all recipients, which cannot be '
        'recorded: Read-only file system; queue/hold: [Errno 30] Read-only file system"',
    )


@pytest.mark.parametrize("block", [1, 4096], ids=["reserved", "in the last block"])
@pytest.mark.parametrize("error", [errno.EROFS, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("offered", "most"),
    [
        pytest.param((), 1, id="one by one"),
        pytest.param((b"PIPELINING",), 1, id="PIPELINING"),
        # So many are sent before the first of them is answered.
        pytest.param((b"PIPELINING", b"CHUNKING"), WINDOW, id="CHUNKING"),
    ],
)
def test_a_disk_that_takes_nothing_more_stops_what_follows(
    spool: str,
    log: Lines,
    monkeypatch: pytest.MonkeyPatch,
    offered: tuple[bytes, ...],
    error: int,
    block: int,
    most: int,
) -> None:
    """From the end of the third message on: what was in flight goes out again, and nothing else, be it announced or not."""
    senders = [b"%d@here.test" % number for number in range(1, 21)]
    for number, sender in enumerate(senders, 1):
        put(spool, number, ANN, sender=sender)
    failing = Failing(
        error, *("pwrite", "unlink", "rename", "ftruncate", "fsync", "posix_fallocate")
    )

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA and server.messages[-1].sender == senders[2]:
            failing.armed = True
        return None

    with ScriptedServer(answer, keywords=offered) as server:
        config = configuration(spool, server.port)
        config.delivery.connections_per_host = 1
        with monkeypatch.context() as patched:
            patched.setattr(disk, "block", lambda fd: block)
            patched.setattr(disk, "posix", Seam(failing))
            with pytest.raises(SpoolError):
                flush(config, Selection(), log=log)
        crashed(spool)
        before = [message.sender for message in server.messages]
        summary = flush(config, EVERYTHING, log=log)
        after = [message.sender for message in server.messages[len(before) :]]
    assert before == senders[: len(before)]
    twice = set(before) & set(after)
    assert senders[2] in twice
    assert len(twice) <= most
    assert summary == Summary(tried=len(after), delivered=len(after))
    assert sorted(after) == sorted({*senders} - ({*before} - twice))
    assert listing(spool) == {}


def test_an_attempt_that_nobody_took_may_be_made_again_when_it_cannot_be_recorded(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(spool, 1, ANN)
    failing = Failing(errno.EIO, "pwrite")
    answer = failing.arming_at(b"RCPT", replies({b"RCPT": [b"450 4.2.1 later"]}))
    with ScriptedServer(answer) as server:
        config = configuration(spool, server.port)
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", Seam(failing))
            assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
        assert listing(spool) == {"new": [name]}
        assert log.lines[-1] == (
            "error",
            f'{name}: event=postponed status=4.3.0 reason="queue: Input/output error"',
        )
        assert flush(config, Selection(), log=log) == Summary(tried=1, delivered=1)


@pytest.mark.parametrize(
    ("sender", "second", "left"),
    [
        pytest.param(
            b"me@here.test", Summary(tried=2, delivered=1, failed=1), {}, id="a report is queued"
        ),
        pytest.param(
            NOBODY, Summary(tried=1, failed=1), {"failed": [queue_id(1)]}, id="nobody to tell"
        ),
    ],
)
def test_what_cannot_be_done_about_a_failure_is_done_later(
    spool: str,
    log: Lines,
    monkeypatch: pytest.MonkeyPatch,
    sender: bytes,
    second: Summary,
    left: dict[str, list[str]],
) -> None:
    """Stopped between the record and what acts on it: the next run finds the record and asks nobody."""
    name = put(spool, 1, ANN, sender=sender)
    with ScriptedServer(replies({b"RCPT TO:<ann@": b"550 5.1.1 no"})) as server:
        config = configuration(spool, server.port)
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", Seam(Failing(errno.EIO, "rename", armed=True)))
            assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
        assert listing(spool) == {"new": [name]}
        assert server.messages == []
        assert flush(config, Selection(), log=log) == second
    asked = [command for session in server.sessions for command in session.commands]
    assert asked.count(b"RCPT TO:<ann@x.test>") == 1
    assert listing(spool) == left
    assert len(fates(server)) == second.delivered


def test_a_queue_whose_changes_cannot_be_made_durable(
    spool: str, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that can be done is done, and what was delivered is not forgotten on the way; then it is said."""
    port = free_port("127.0.0.1", "127.0.0.2")
    put(spool, 1, b"ann@[127.0.0.1]")
    put(spool, 2, b"bob@[127.0.0.2]")
    failing = Failing(errno.EIO, "fsync")
    one = ScriptedServer(failing.arming_at(END_OF_DATA, lambda command: None), port=port)
    two = ScriptedServer(address="127.0.0.2", port=port)
    with one, two:
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", Seam(failing))
            with pytest.raises(SpoolError) as failure:
                flush(direct(spool, port), Selection(), log=log)
        assert str(failure.value) == f"{spool}/queue: Input/output error"
        assert ("error", '-: event=unsynced reason="queue: Input/output error"') in log.lines
        assert flush(direct(spool, port), Selection(), log=log) == Summary()
    assert [len(server.messages) for server in (one, two)] == [1, 1]
    assert listing(spool) == {}


# -- two at once


def test_two_flushers_deliver_each_message_once(spool: str, tmp_path: Path) -> None:
    """Both are held at their first greeting until the other is there too."""
    for number in range(1, 51):
        put(spool, number, ANN, sender=b"%d@x.test" % number)
    both = threading.Barrier(2, timeout=30)

    def answer(command: bytes) -> bytes | None:
        if command == CONNECT:
            both.wait()
        return None

    config = tmp_path / "config.toml"
    with ScriptedServer(answer) as server:
        config.write_text(
            f'[spool]\npath = "{spool}"\n[smarthost]\nhost = "127.0.0.1"\nport = {server.port}\ntls = "none"\n'
            "[delivery]\nconnections = 1\n"
        )
        command = [sys.executable, "-I", ROOT / "minisend/__main__.py", "minisend", "-C", config]
        flushers = [
            subprocess.Popen([*command, "flush"], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [flusher.communicate(timeout=60)[0] for flusher in flushers]
    assert [flusher.returncode for flusher in flushers] == [0, 0], said
    assert sorted(message.sender for message in server.messages) == sorted(
        b"%d@x.test" % number for number in range(1, 51)
    )
    assert len(server.sessions) == 2
    assert all(b"MAIL" in session.verbs() for session in server.sessions)
    assert listing(spool) == {}


def test_a_server_that_breaks_off_after_the_message_is_not_asked_again_in_this_run(
    spool: str, log: Lines
) -> None:
    """The one window in which it can go out twice: it waits, as long as any other."""
    put(spool, 1, ANN)
    with ScriptedServer(replies({END_OF_DATA: CLOSE})) as server:
        config = configuration(spool, server.port)
        assert flush(config, Selection(), log=log) == Summary(tried=1, deferred=1)
    (outcome,) = read(spool, "cur", due_after(1, 1, NOW)).latest.values()
    assert outcome.reason == (
        f"host 127.0.0.1[127.0.0.1]:{server.port}: lost connection: closed by the server "
        "(during end of data): the message may be sent more than once"
    )
    assert len(server.sessions) == 1
