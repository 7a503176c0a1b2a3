"""Our reports at a real Postfix: it takes them as bounces, from nobody, and hands them on octet for octet.

Each is made while a scripted server stands in for the smarthost, and kept by that in the queue; then a Postfix takes
its place, so that what arrives can be compared with what was queued.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from delivery.program import Program
from delivery.reports import read_report
from delivery.scripted import ScriptedServer, replies
from delivery.trouble import queue_long_ago

from minisend.envelope import Recipient
from minisend.spool.store import Queue
from peers.postfix import Postfix

pytestmark = pytest.mark.peer

StartPostfix = Callable[..., Postfix]

MESSAGE = b"From: me@here.test\nDate: Mon, 2 Nov 2026 10:00:00 +0100\nMessage-ID: <1@here.test>\n\n.x\n\xe9\n"
LATER = b"450 4.2.1 the sender's mailbox is busy"
RECEIVED = re.compile(rb"Received: by here\.test \(minisend\)\n\tid [0-9a-f]{16}; .*\n")

# What the scripted server says of ann, who wants to know of that, and what the report then is.
EVENTS = {
    "failed": (b"550 5.1.1 no ann", "FAILURE", "Undelivered Mail Returned to Sender"),
    "delayed": (b"450 4.2.2 ann's mailbox is full", "DELAY", "Delayed Mail (still being retried)"),
    "relayed": (b"250 2.1.5 ok", "SUCCESS", "Successful Mail Delivery Report"),
}


def smarthost(address: str, port: int) -> str:
    return f'[smarthost]\nhost = "{address}"\nport = {port}\ntls = "none"\n'


def queued_report(program: Program) -> bytes:
    """The report that lies in the queue, as it was written, without what is added when it goes out."""
    found = []
    with Queue(str(program.spool)) as queue:
        for place in queue.places("cur"):
            entry = queue.read(place)
            assert entry is not None
            with entry:
                if not entry.envelope.sender:
                    assert [each.address for each in entry.envelope.recipients] == [b"me@here.test"]
                    found.append(b"".join(entry.octets()))
    (report,) = found
    return report


def with_a_report_queued(tmp_path: Path, event: str) -> tuple[Program, bytes]:
    """A message has met its fate, and the report of it waits in the queue; that report."""
    reply, notify, _ = EVENTS[event]
    script = replies({b"RCPT TO:<me@": LATER, b"RCPT TO:<ann@": reply})
    with ScriptedServer(script) as server:
        program = Program(tmp_path, smarthost("127.0.0.1", server.port))
        # So long ago that a delay is due.
        arrived = time.time() - 5 * 3600
        ann = Recipient(b"ann@x.test", notify=notify)
        queue_long_ago(program, arrived, MESSAGE, ann, envid="QQ+1")
        assert program.flush()[0] == 75
    return program, queued_report(program)


@pytest.mark.parametrize("event", EVENTS)
def test_a_report_arrives_as_it_was_queued(
    event: str, start_postfix: StartPostfix, tmp_path: Path
) -> None:
    program, queued = with_a_report_queued(tmp_path, event)
    # It would tell of a success itself, in a further message.
    postfix = start_postfix(smtpd_discard_ehlo_keywords="dsn")
    program.configure(smarthost(postfix.address, postfix.port))
    assert program.flush("--all")[0] == 0

    arrived = postfix.arrived()
    (report,) = [each for each in arrived if not each.sender]
    assert report.recipients == (b"me@here.test",)
    received = RECEIVED.match(report.message)
    assert received
    assert report.message[received.end() :] == queued
    told = read_report(report.message)
    assert told.header["Subject"] == EVENTS[event][2]
    assert told.message["Original-Envelope-Id"] == "QQ+1"
    ((address, action, status),) = told.fates()
    assert (address, action, status[0]) == ("ann@x.test", event, EVENTS[event][0][:1].decode())

    # As Postfix's own log has it: from nobody, under our Message-ID.
    queue_id = report.queue_id.decode()
    log = postfix.log()
    assert re.search(rf"{queue_id}: message-id={re.escape(told.header['Message-ID'])}\n", log)
    assert re.search(rf"{queue_id}: from=<>, size=\d+, nrcpt=1 \(queue active\)\n", log)
    assert re.search(rf"{queue_id}: to=<me@here\.test>,.* status=sent ", log)
    # The message itself came only if it had not before.
    assert len(arrived) == (2 if event == "delayed" else 1)


@pytest.mark.parametrize("event", EVENTS)
def test_a_report_that_does_not_arrive_is_a_bounce_to_postfix(
    event: str, start_postfix: StartPostfix, tmp_path: Path
) -> None:
    """To Postfix its failure is that of a bounce, and its postmaster's to know; that of a message is its sender's."""
    program, _ = with_a_report_queued(tmp_path, event)
    postfix = start_postfix(
        smtpd_discard_ehlo_keywords="dsn",
        # Not so early that the client would be told.
        virtual_alias_maps="inline:{ me@here.test=me@gone.test }",
        transport_maps="inline:{ gone.test=error:5.1.1 }",
        notify_classes="2bounce",
    )
    program.configure(smarthost(postfix.address, postfix.port))
    program.sendmail("-f", "you@here.test", "me@here.test", stdin=MESSAGE)
    assert program.flush("--all")[0] == 0
    told = sorted(
        (each.sender, each.recipients)
        for each in postfix.arrived()
        if each.recipients != (b"ann@x.test",)
    )
    assert told == [
        (b"", (b"you@here.test",)),
        (b"double-bounce@mail.example.test", (b"postmaster@mail.example.test",)),
    ]

    log = postfix.log()
    senders = dict(re.findall(r"(\w+): from=<(.*)>, size=\d+, nrcpt=1 \(queue active\)\n", log))
    bounced = re.findall(r"(\w+): to=<me@gone\.test>,.* dsn=5\.1\.1, status=bounced ", log)
    notified = dict(re.findall(r"(\w+): (\w+) non-delivery notification: ", log))
    assert len(bounced) == 2
    assert {senders[each]: notified[each] for each in bounced} == {
        "": "postmaster",
        "you@here.test": "sender",
    }
