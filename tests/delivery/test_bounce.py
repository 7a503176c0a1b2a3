"""Who is told of what, and that no crash and no repetition tells anybody twice or nobody."""

import email
import email.policy
import errno
import posix

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spool.make import ID, claimed, listing
from spool.seam import Seam

from minisend.config.sections import Config, Spool
from minisend.delivery import bounce
from minisend.delivery.bounce import Report, queue_report, reports
from minisend.envelope import DELAYED, DELIVERED, FAILED, RELAYED, Envelope, Outcome, Recipient
from minisend.errors import SpoolError
from minisend.message.complete import facts_for
from minisend.spool import disk
from minisend.spool.enqueue import enqueue
from minisend.spool.entry import Place
from minisend.spool.record import BrokenRecord

ARRIVED = 1_700_000_000.25
SOON = ARRIVED + 10
LATE = ARRIVED + 4 * 3600
SENDER = b"sender@example.org"
MESSAGE = b"From: sender@example.org\r\nBcc: secret@example.com\r\nSubject: hello\r\n\r\nHel\0lo\rthere.\r\n"


def config(admin: str = "") -> Config:
    return Config(
        file=None,
        spool=Spool("/nowhere"),
        hostname="host.example.org",
        mail_domain="example.org",
        admin=admin,
    )


def outcome(recipient: int, action: str = FAILED) -> Outcome:
    status = {FAILED: "5.1.1", DELAYED: "4.2.2"}.get(action, "2.0.0")
    return Outcome(
        recipient,
        action,
        status,
        "the server said something",
        remote_mta="mx.example.net[192.0.2.1]:25",
        diagnostic=f"smtp; {status[0]}50 words",
        command="RCPT TO",
        at=ARRIVED + 5,
    )


@pytest.fixture
def message(queue):
    """Makes a claimed message: NOTIFY of each recipient, and what became of it by now ("" for not tried)."""
    entries = []

    def make(
        *fates: tuple[str, str],
        sender: bytes = SENDER,
        uid: int = 1000,
        to: tuple[bytes, ...] = (),
        octets: bytes = MESSAGE,
        queue_id: str = ID,
    ):
        recipients = [
            Recipient(to[n] if to else b"r%d@example.net" % n, notify=notify)
            for n, (notify, _) in enumerate(fates)
        ]
        envelope = Envelope(queue_id, sender, recipients, arrived=ARRIVED, zone=60, uid=uid)
        enqueue(queue.fd, envelope, [octets], 0)
        entry = claimed(queue, Place("new", queue_id))
        entries.append(entry)
        entry.keep_facts(facts_for(envelope, b"host.example.org", b"example.org"))
        entry.record([outcome(n, fate) for n, (_, fate) in enumerate(fates) if fate], 1)
        return entry

    yield make
    for entry in entries:
        entry.close()


def due(entry, now=SOON, admin="", resumed=False):
    return [
        (report.event, report.recipients, report.to)
        for report in reports(entry, config(admin), now, resumed=resumed)
    ]


def tell(queue, entry, now=SOON, admin="", resumed=False):
    """Queue all that is due; what ``queue_report`` said."""
    return [
        queue_report(queue, entry, report, config(admin), now, resumed=resumed)
        for report in reports(entry, config(admin), now, resumed=resumed)
    ]


def again(queue, entry):
    """The message as the next run finds it."""
    entry.close()
    place = queue.find(entry.envelope.queue_id, "new", "cur", "hold", "failed")
    return claimed(queue, place)


def report_file(queue, entry):
    """The envelope and the octets of the only other message in queue/new."""
    (place,) = [p for p in queue.places("new") if p.queue_id != entry.envelope.queue_id]
    with claimed(queue, place) as report:
        return report.envelope, b"".join(report.octets())


# -- who is told


@pytest.mark.parametrize(
    ("notify", "action", "now", "event"),
    [
        ("", FAILED, SOON, "failure"),
        ("", DELAYED, SOON, None),
        ("", DELAYED, LATE - 1, None),
        ("", DELAYED, LATE, "delay"),
        ("", RELAYED, LATE, None),
        ("", DELIVERED, LATE, None),
        ("", "", LATE, None),
        ("NEVER", FAILED, LATE, None),
        ("NEVER", DELAYED, LATE, None),
        ("NEVER", RELAYED, LATE, None),
        ("never", FAILED, LATE, None),
        ("FAILURE", FAILED, SOON, "failure"),
        ("FAILURE", DELAYED, LATE, None),
        ("FAILURE", RELAYED, LATE, None),
        ("DELAY", FAILED, SOON, None),
        ("DELAY", DELAYED, LATE, "delay"),
        ("SUCCESS", FAILED, SOON, None),
        ("SUCCESS", RELAYED, SOON, "success"),
        ("SUCCESS", DELIVERED, SOON, "success"),
        ("SUCCESS", DELAYED, LATE, None),
        ("success,failure", FAILED, SOON, "failure"),
        ("success, failure , delay", DELAYED, LATE, "delay"),
        ("SUCCESS,FAILURE,DELAY", RELAYED, SOON, "success"),
        ("nonsense", FAILED, SOON, None),
    ],
)
def test_notify(message, notify, action, now, event):
    expected = [(event, (0,), SENDER)] if event else []
    assert due(message((notify, action)), now) == expected


def test_one_report_an_event_with_all_its_recipients(message):
    entry = message(
        ("", FAILED), ("", DELAYED), ("SUCCESS", RELAYED), ("NEVER", FAILED), ("", FAILED), ("", "")
    )
    assert due(entry, LATE) == [
        ("failure", (0, 4), SENDER),
        ("delay", (1,), SENDER),
        ("success", (2,), SENDER),
    ]


@pytest.mark.parametrize(
    ("sender", "uid", "to", "admin", "reader"),
    [
        (SENDER, 1000, b"a@b.test", "admin@example.org", SENDER),
        (b"root", 0, b"a@b.test", "", b"root"),
        (b"", 1000, b"a@b.test", "admin@example.org", b"admin@example.org"),
        (b"", -1, b"a@b.test", "admin@example.org", b"admin@example.org"),
        (b"", 1000, b"a@b.test", "", None),
        (b"", -1, b"a@b.test", "", None),
        (b"", -1, b"admin@example.org", "admin@example.org", None),
        (b"", -1, b"admin@EXAMPLE.org", "admin", None),
        (b"", -1, b"admin", "admin@example.org", None),
        (b"", 1000, b"admin@example.org", "admin@example.org", b"admin@example.org"),
    ],
)
def test_who_is_told_of_a_failure(queue, message, sender, uid, to, admin, reader):
    entry = message(("", FAILED), sender=sender, uid=uid, to=(to,))
    assert due(entry, admin=admin) == [("failure", (0,), reader)]
    assert tell(queue, entry, admin=admin) == [reader is not None]
    assert len(listing(queue.spool)["new"]) == (1 if reader is None else 2)


def test_without_a_sender_only_failures_are_told(message):
    entry = message(("DELAY", DELAYED), ("SUCCESS", RELAYED), ("NEVER", FAILED), sender=b"")
    assert due(entry, LATE, admin="admin@example.org") == []


def test_what_nobody_can_be_told_stays_to_be_told(queue, message):
    entry = message(("", FAILED), sender=b"")
    assert tell(queue, entry) == [False]
    assert entry.reported == set()
    assert tell(queue, entry, admin="admin@example.org") == [True]


def test_a_delay_is_told_once(queue, message):
    entry = message(("", DELAYED), ("", DELAYED))
    assert tell(queue, entry, LATE) == [True]
    entry = again(queue, entry)
    entry.record([outcome(0, DELAYED), outcome(1, FAILED)], 2)
    assert due(entry, LATE + 10**6) == [("failure", (1,), SENDER)]


def test_there_is_no_delay_before_the_attempt(message):
    entry = message(("", DELAYED), ("", FAILED))
    assert due(entry, LATE, resumed=True) == [("failure", (1,), SENDER)]


def test_each_failure_is_told_once_whenever_it_comes(queue, message):
    entry = message(("", FAILED), ("", DELAYED), ("", DELAYED))
    assert tell(queue, entry) == [True]
    entry = again(queue, entry)
    assert due(entry) == []
    entry.record([outcome(1), outcome(2)], 2)
    assert due(entry) == [("failure", (1, 2), SENDER)]
    assert tell(queue, entry) == [True]
    assert due(again(queue, entry)) == []
    assert len(listing(queue.spool)["new"]) == 3


def test_success_left_to_the_next_hop_is_not_told(queue, message):
    entry = message(("SUCCESS", RELAYED), ("SUCCESS", RELAYED), ("", RELAYED))
    bounce.leave_success_to_next_hop(entry, [0, 2])
    assert entry.reported == {"success 0"}
    assert due(again(queue, entry)) == [("success", (1,), SENDER)]


@pytest.mark.parametrize("sender", [b"", SENDER])
def test_nothing_is_noted_where_nobody_asked(message, sender):
    entry = message(("SUCCESS" if not sender else "", RELAYED), sender=sender)
    size = entry.tail_at
    bounce.leave_success_to_next_hop(entry, [0])
    assert (entry.reported, entry.tail_at) == (set(), size)


@pytest.mark.parametrize(
    ("sender", "notify", "asks"),
    [
        (SENDER, "SUCCESS", True),
        (SENDER, "failure,success", True),
        (SENDER, "", False),
        (SENDER, "NEVER", False),
        (SENDER, "FAILURE,DELAY", False),
        (b"", "SUCCESS", False),
    ],
)
def test_asks_for_success(sender, notify, asks):
    recipients = [Recipient(b"a@b.test"), Recipient(b"c@d.test", notify=notify)]
    assert bounce.asks_for_success(Envelope(ID, sender, recipients, arrived=ARRIVED)) is asks


@given(
    fates=st.lists(
        st.tuples(
            st.sampled_from(["", "NEVER", "SUCCESS", "FAILURE", "DELAY", "SUCCESS,FAILURE,DELAY"]),
            st.sampled_from(["", FAILED, DELAYED, RELAYED, DELIVERED]),
        ),
        min_size=1,
        max_size=8,
    ),
    sender=st.sampled_from([b"", SENDER]),
    now=st.sampled_from([SOON, LATE]),
)
def test_who_asked_is_told_and_nobody_else(fates, sender, now):
    """Against the rule written down once more: each recipient by itself."""

    class Entry:
        envelope = Envelope(
            ID,
            sender,
            [Recipient(b"r%d@x.test" % n, notify=notify) for n, (notify, _) in enumerate(fates)],
            arrived=ARRIVED,
        )
        since = ARRIVED
        latest = {n: outcome(n, fate) for n, (_, fate) in enumerate(fates) if fate}  # noqa: RUF012
        pending = [n for n, (_, fate) in enumerate(fates) if fate in ("", DELAYED)]  # noqa: RUF012
        reported: set[str] = set()  # noqa: RUF012

    told = {
        (index, report.event)
        for report in reports(Entry, config("admin@example.org"), now, resumed=False)
        for index in report.recipients
    }
    expected = set()
    for index, (notify, fate) in enumerate(fates):
        asked = (notify or "FAILURE,DELAY").split(",")
        if fate == FAILED and "FAILURE" in asked:
            expected.add((index, "failure"))
        if sender and fate == DELAYED and "DELAY" in asked and now >= LATE:
            expected.add((index, "delay"))
        if sender and fate in (RELAYED, DELIVERED) and "SUCCESS" in asked:
            expected.add((index, "success"))
    assert told == expected


# -- the report in the queue


def test_the_report(queue, message):
    entry = message(("", FAILED), ("", RELAYED))
    (report,) = reports(entry, config(), SOON, resumed=False)
    assert report == Report("failure", (0,), SENDER, "failure 0", report.queue_id)
    assert queue_report(queue, entry, report, config(), SOON, resumed=False)
    envelope, octets = report_file(queue, entry)
    assert envelope == Envelope(
        report.queue_id, b"", [Recipient(SENDER)], arrived=SOON, zone=60, uid=-1
    )
    found = email.message_from_bytes(octets, policy=email.policy.default)
    assert found["To"] == "sender@example.org"
    assert found["Message-ID"] == f"<{report.queue_id}@host.example.org>"
    assert found["References"] == f"<20231114221320.{ID}@host.example.org>"
    assert b"\r" not in octets
    assert b"\0" not in octets
    _, status, returned = found.get_payload()
    assert [group.items() for group in status.get_payload()] == [
        [
            ("Reporting-MTA", "dns; host.example.org"),
            ("Arrival-Date", "Tue, 14 Nov 2023 23:13:20 +0100"),
        ],
        [
            ("Final-Recipient", "rfc822; r0@example.net"),
            ("Action", "failed"),
            ("Status", "5.1.1"),
            ("Remote-MTA", "dns; mx.example.net"),
            ("Diagnostic-Code", "smtp; 550 words"),
            ("Last-Attempt-Date", "Tue, 14 Nov 2023 23:13:25 +0100"),
        ],
    ]
    assert returned.get_payload()[0].as_bytes() == (
        b"Received: by host.example.org (minisend, from userid 1000)\n"
        b"\tid 00112233445566aa; Tue, 14 Nov 2023 23:13:20 +0100\n"
        b"From: sender@example.org\nSubject: hello\n"
        b"Date: Tue, 14 Nov 2023 23:13:20 +0100\n"
        b"Message-ID: <20231114221320.00112233445566aa@host.example.org>\n"
        b"\nHello\nthere.\n"
    )


def test_a_delay_names_the_end_of_the_lifetime(queue, message):
    entry = message(("", DELAYED))
    assert tell(queue, entry, LATE) == [True]
    found = email.message_from_bytes(report_file(queue, entry)[1], policy=email.policy.default)
    assert found.get_payload()[1].get_payload()[1]["Will-Retry-Until"] == (
        "Sun, 19 Nov 2023 23:13:20 +0100"
    )


def test_a_message_never_attempted_is_reported_as_it_would_have_gone_out(queue, message):
    entry = message(("", FAILED))
    entry.facts = None
    assert tell(queue, entry) == [True]
    assert b"Received: by host.example.org (minisend" in report_file(queue, entry)[1]


def test_octets_above_127_are_declared(queue, message):
    entry = message(("", FAILED), octets="Subject: x\n\nGrüße\n".encode())
    assert tell(queue, entry) == [True]
    found = email.message_from_bytes(report_file(queue, entry)[1], policy=email.policy.default)
    assert found["Content-Transfer-Encoding"] == "8bit"


def test_a_large_message_comes_back_as_its_header(queue, message):
    entry = message(("", FAILED), octets=b"Subject: x\n\n" + b"line\n" * 20_000)
    assert tell(queue, entry) == [True]
    octets = report_file(queue, entry)[1]
    assert b"Content-Type: text/rfc822-headers" in octets
    assert len(octets) < 3000


def test_the_report_is_durable_before_it_is_noted_and_noted_before_anything_else(
    queue, message, monkeypatch
):
    entry = message(("", FAILED))
    (report,) = reports(entry, config(), SOON, resumed=False)
    queue.directory("tmp")
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    assert queue_report(queue, entry, report, config(), SOON, resumed=False)
    root = f"{queue.spool}/queue"
    assert seam.about("rename", "fsync", "pwrite", "unlink") == [
        ("unlink", f"{root}/tmp/{report.queue_id}"),
        ("fsync", f"{root}/tmp/{report.queue_id}"),
        ("rename", f"{root}/tmp/{report.queue_id}"),
        ("fsync", f"{root}/new"),
        ("pwrite", f"{root}/new/{ID}"),
        ("fsync", f"{root}/new/{ID}"),
    ]


def test_reports_have_ids_of_their_own(message):
    """One for each message, event and set of recipients; the same each time."""
    entry = message(("", FAILED), ("", FAILED), ("SUCCESS", RELAYED))
    other = message(("", FAILED), ("", FAILED), ("SUCCESS", RELAYED), queue_id="f" * 16)
    first = reports(entry, config(), SOON, resumed=False)
    entry.latest[1] = outcome(1, DELAYED)
    found = [
        *first,
        *reports(other, config(), SOON, resumed=False),
        *reports(entry, config(), LATE, resumed=False),
    ]
    ids = [(report.queue_id, report.note) for report in found]
    assert [note for _, note in ids] == [
        "failure 0-1",
        "success 2",
        "failure 0-1",
        "success 2",
        "failure 0",
        "delay 1",
        "success 2",
    ]
    assert ids[-1] == ids[1]
    assert len({queue_id for queue_id, _ in ids}) == 6
    assert not {queue_id for queue_id, _ in ids} & {ID, "f" * 16}


# -- faults


@pytest.mark.parametrize("state", ["new", "cur", "hold", "failed"])
def test_a_report_that_is_in_the_queue_is_not_queued_again(queue, message, monkeypatch, state):
    """A crash between the report and the note: wherever the report has come to, it is found."""
    entry = message(("", FAILED))
    with monkeypatch.context() as crash:
        crash.setattr(type(entry), "note_reported", lambda entry, note: None)
        assert tell(queue, entry) == [True]
    entry = again(queue, entry)
    (report,) = reports(entry, config(), SOON, resumed=True)
    if state != "new":
        with claimed(queue, Place("new", report.queue_id)) as moving:
            moving.defer(LATE) if state == "cur" else moving.move_to(state)
    before = listing(queue.spool)
    assert queue_report(queue, entry, report, config(), SOON, resumed=True)
    assert listing(queue.spool) == before
    assert due(again(queue, entry), resumed=True) == []


def descriptors() -> set[int]:
    return {
        int(name)
        for name in posix.listdir("/proc/self/fd")
        if posix.access(f"/proc/self/fd/{name}", posix.F_OK, follow_symlinks=False)
    }


def test_a_crash_after_any_call(queue, message, monkeypatch):
    """Whatever the number of calls done before it: the next run leaves one report, and notes it."""

    class Crash(BaseException):
        pass

    calls = 0
    while True:
        calls += 1
        entry = message(("", FAILED), queue_id=f"{calls:016x}")
        (report,) = reports(entry, config(), SOON, resumed=False)
        stopped = False

        def stop(number, name, limit=calls):
            nonlocal stopped
            stopped = stopped or number > limit
            if stopped:
                raise Crash

        opened = descriptors()
        with monkeypatch.context() as crash:
            crash.setattr(disk, "posix", Seam(before=stop))
            try:
                queue_report(queue, entry, report, config(), SOON, resumed=False)
            except Crash:
                pass
        if not stopped:
            break
        # A process that ends closes what it has open, and its locks go with that.
        for fd in descriptors() - opened - set(queue._directories.values()):
            posix.close(fd)
        posix.close(entry._fd)
        entry._fd = -1
        entry = claimed(queue, Place("new", entry.envelope.queue_id))
        for report in reports(entry, config(), SOON, resumed=True):
            assert queue_report(queue, entry, report, config(), SOON, resumed=True)
        entry = again(queue, entry)
        assert entry.reported == {"failure 0"}
        envelope, octets = report_file(queue, entry)
        assert envelope.queue_id == report.queue_id
        assert octets.endswith(b"--\n")
        entry.remove()
        entry.close()
        with claimed(queue, Place("new", report.queue_id)) as done:
            done.remove()
        assert listing(queue.spool) == {}
    assert calls > 10


def test_what_a_crash_left_in_tmp_is_no_obstacle(queue, message):
    entry = message(("", FAILED))
    (report,) = reports(entry, config(), SOON, resumed=False)
    with open(f"{queue.spool}/queue/tmp/{report.queue_id}", "w") as file:
        file.write("half a rep")
    assert queue_report(queue, entry, report, config(), SOON, resumed=True)
    assert listing(queue.spool) == {"new": sorted([ID, report.queue_id])}


def test_without_room_nothing_is_queued_and_nothing_noted(queue, message, monkeypatch):
    entry = message(("", FAILED))

    def full(number, name):
        if name == "write":
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk_full:
        disk_full.setattr(disk, "posix", Seam(before=full))
        with pytest.raises(SpoolError, match="No space left on device"):
            tell(queue, entry)
    assert listing(queue.spool) == {"new": [ID]}
    assert due(again(queue, entry)) == [("failure", (0,), SENDER)]


def test_a_note_that_fails_is_made_up_for(queue, message, monkeypatch):
    entry = message(("", FAILED))

    def full(number, name):
        if name == "pwrite":
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk_full:
        disk_full.setattr(disk, "posix", Seam(before=full))
        with pytest.raises(OSError, match="No space left on device"):
            tell(queue, entry)
    before = listing(queue.spool)
    assert len(before["new"]) == 2
    entry = again(queue, entry)
    assert tell(queue, entry, resumed=True) == [True]
    assert listing(queue.spool) == before
    assert entry.reported == {"failure 0"}


def test_a_broken_message_makes_no_report(queue, message):
    entry = message(("", FAILED))
    with open(f"{queue.spool}/queue/new/{ID}", "r+b") as file:
        octets = file.read()
        file.seek(octets.index(b"there"))
        file.write(b"THERE")
    entry = again(queue, entry)
    with pytest.raises(BrokenRecord):
        tell(queue, entry)
    assert listing(queue.spool) == {"new": [ID]}
    assert entry.reported == set()
