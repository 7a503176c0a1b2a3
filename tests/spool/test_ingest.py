"""What lies in the drop directory comes in once, whole and under an envelope of ours; or it stays, is counted, and told of."""

import errno
import os
import shutil
import time

import pytest
from crash.faulty import ERRORS

from minisend.envelope import DROP, Envelope, Recipient
from minisend.errors import SpoolError
from minisend.spool import disk, ingest, place, tombstone
from minisend.spool.account import account
from minisend.spool.enqueue import Floor, acknowledge, enqueue, new_queue_id
from minisend.spool.limits import Usage
from minisend.spool.quota import count
from minisend.spool.record import format_line, format_report
from minisend.spool.store import Queue
from spool.seam import STOPPED, Seam, fail_at, in_child, stop_after
from spool.system import ANN, BOB, LIMIT, MESSAGE, OURS, ROOT, System, said

ID = bytes(range(16))
QUEUE_ID = new_queue_id(ID)
DAY = 24 * 3600


def told(result):
    return result.ingested, result.duplicates, result.left, result.refused, result.removed


def nothing(**but):
    return tuple(
        but.get(name, empty)
        for name, empty in (
            *(("ingested", []), ("duplicates", []), ("left", {}), ("refused", {})),
            ("removed", 0),
        )
    )


def rewrite(system, change):
    """Change the octets of the one file in drop/new."""
    [name] = system.leaf("new")
    with open(f"{system.drop}/new/{name}", "r+b") as file:
        octets = change(file.read())
        file.seek(0)
        file.truncate()
        file.write(octets)


def test_a_message(system):
    system.put(ANN, ID, envelope=said(full_name=b"Ann", uid=0, login=b"root", arrived=5.0))
    result = system.ingest(make=lambda: {"clock": lambda: 1_700_000_000.0})
    assert told(result) == nothing(ingested=[(QUEUE_ID, ANN, len(MESSAGE))])
    expected = Envelope(
        QUEUE_ID,
        b"ann@example.org",
        [Recipient(b"bob@example.net")],
        arrived=1_700_000_000.0,
        uid=ANN,
        login=account(ANN).login,
        full_name=b"Ann",
        sender_given=True,
        channel=DROP,
    )
    assert system.queued() == [(expected, MESSAGE)]
    assert (system.leaf("new"), system.leaf("tmp")) == ([], [])
    assert os.stat(f"{system.spool}/queue/new/{QUEUE_ID}").st_mode & 0o777 == 0o600


def test_a_uid_without_an_account(system):
    if not ROOT:
        pytest.skip("needs other accounts")
    system.put(ANN, envelope=said(sender=b"root", sender_given=False))
    system.ingest()
    [(envelope, _)] = system.queued()
    assert (envelope.uid, envelope.login, envelope.sender) == (ANN, b"uid61002", b"uid61002")


def test_a_large_message_octet_for_octet(system):
    message = os.urandom(3_000_001)
    system.put(ANN, ID, message)
    system.ingest()
    assert system.queued()[0][1] == message


def test_the_original_goes_when_the_copy_is_durable(system, monkeypatch):
    if ROOT:
        # In this process, so as its account.
        for path, _, _ in os.walk(system.spool):
            os.chown(path, 0, 0)
    system.put(OURS, ID)
    os.chown(f"{system.drop}/new/{ID.hex()}", 0 if ROOT else -1, 0 if ROOT else -1)
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    ingest.Ingest(system.spool, system.drop, limit=LIMIT).run()
    top, new = f"{system.spool}/queue", f"{system.drop}/new"
    assert seam.about("fchmod", "fsync", "rename", "unlink", "chmod") == [
        ("fchmod", f"{top}/tmp/{QUEUE_ID}"),
        ("fsync", f"{top}/tmp/{QUEUE_ID}"),
        ("rename", f"{top}/tmp/{QUEUE_ID}"),
        ("fsync", f"{top}/new"),
        ("unlink", f"{new}/{ID.hex()}"),
        ("fsync", new),
        ("chmod", f"{top}/new/{QUEUE_ID}"),
    ]


# -- once only


def in_queue(system, message=MESSAGE, *, acknowledged=False):
    """The submission as the socket would have brought it in."""

    def bring() -> None:
        envelope = Envelope(QUEUE_ID, b"a@b", [Recipient(b"c@d")], arrived=1.0, channel="socket")
        with Queue(system.spool) as queue:
            enqueue(queue.fd, envelope, [message], 0, acknowledged=acknowledged)

    system.as_user(OURS, bring)


def change(system, what):
    def changed() -> None:
        with Queue(system.spool) as queue:
            [place] = queue.places("new")
            with queue.claim(place) as entry:
                what(entry)

    system.as_user(OURS, changed)


STATES = {
    "new": lambda entry: None,
    "cur": lambda entry: entry.defer(1_700_000_600),
    "hold": lambda entry: entry.move_to("hold"),
    "failed": lambda entry: entry.move_to("failed"),
    "gone": lambda entry: entry.remove(),
}


@pytest.mark.parametrize("state", STATES)
def test_a_copy_of_what_the_socket_took(system, state):
    in_queue(system)
    change(system, STATES[state])
    system.put(ANN, ID)
    assert told(system.ingest()) == nothing(duplicates=[QUEUE_ID])
    assert system.leaf("new") == []
    assert len(system.queued()) == (state != "gone")


@pytest.mark.parametrize("state", STATES)
def test_another_message_of_the_same_id_stays(system, state):
    """Whoever could guess an id could not make a message vanish."""
    in_queue(system, b"another message")
    change(system, STATES[state])
    system.put(ANN, ID)
    result = system.ingest()
    assert told(result) == nothing(left={ingest._DIFFERENT: 1})
    assert result.warnings == [ingest._DIFFERENT]
    assert system.leaf("new") == [ID.hex()]


def test_what_was_acknowledged_and_is_gone_is_not_known(system):
    """The client has said that it would not come again."""
    in_queue(system, acknowledged=True)
    change(system, STATES["gone"])
    system.put(ANN, ID)
    assert [queue_id for queue_id, _, _ in system.ingest().ingested] == [QUEUE_ID]


def test_while_the_socket_has_it_in_hand(system):
    """A service that has the submission in queue/tmp may bring it in at any moment."""
    system.put(ANN, ID)
    tmp = f"{system.spool}/queue/tmp/{QUEUE_ID}"
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT, 0o600)
    os.chown(tmp, OURS, -1)
    assert disk.lock(fd)
    assert system.ingest().left == {ingest._SPOOL: 1}
    os.close(fd)
    assert len(system.ingest().ingested) == 1
    assert os.listdir(f"{system.spool}/queue/tmp") == []


def test_while_its_like_in_the_queue_is_in_hand(system):
    """Who has renamed it into new and waits for the fsync of the directory takes it away again should that fail."""
    in_queue(system)
    system.put(ANN, ID)
    fd = os.open(f"{system.spool}/queue/new/{QUEUE_ID}", os.O_RDONLY)
    assert disk.lock(fd)
    result = system.ingest()
    assert told(result) == nothing(left={ingest._IN_HAND: 1})
    assert result.is_in_hand
    assert system.leaf("new") == [ID.hex()]
    os.close(fd)
    assert told(system.ingest()) == nothing(duplicates=[QUEUE_ID])


def test_the_original_of_a_copy_goes_when_what_it_is_a_copy_of_is_durable(system, monkeypatch):
    """Who brought that in may have been killed between its rename and its fsync."""
    in_queue(system)
    system.put(ANN, ID)

    def calls():
        seam = disk.posix = Seam()
        ingest.Ingest(system.spool, system.drop, limit=LIMIT).run()
        return seam.about("fsync", "unlink", "rename")

    new = f"{system.spool}/queue/new"
    assert system.as_user(OURS, calls)[-4:] == [
        ("fsync", new),
        ("unlink", f"{system.spool}/queue/tmp/{QUEUE_ID}"),
        ("unlink", f"{system.drop}/new/{ID.hex()}"),
        ("fsync", f"{system.drop}/new"),
    ]


def test_a_copy_that_a_power_cut_brought_back(system, monkeypatch):
    """The removal of the original was not durable, and the message has been delivered meanwhile."""
    system.put(ANN, ID)
    original = f"{system.drop}/new/{ID.hex()}"
    shutil.copy2(original, f"{system.top}/kept")
    kept = os.stat(original)

    def no_fsync():
        real = disk.fsync
        disk.fsync = lambda fd: fail_at(1, errno.EIO).fsync(fd) if fd_is_drop(fd) else real(fd)

    def fd_is_drop(fd):
        return os.readlink(f"/proc/self/fd/{fd}") == f"{system.drop}/new"

    assert len(system.ingest(then=no_fsync).ingested) == 1
    system.remove_all()
    shutil.copy2(f"{system.top}/kept", original)
    os.chown(original, kept.st_uid, kept.st_gid)
    assert told(system.ingest()) == nothing(duplicates=[QUEUE_ID])
    assert (system.queued(), system.leaf("new")) == ([], [])


def test_two_at_once(system):
    """The second one leaves everything to the first."""
    for _ in range(5):
        system.put(ANN)

    def first():
        run = ingest._Run.work

        def work(self):
            # From another process, while this one has the lock.
            os.write(write, b"busy" if in_child(second) == 0 else b"took")
            run(self)

        ingest._Run.work = work

    def second():
        ingest._Run.work = lambda self: os._exit(1)
        assert ingest.Ingest(system.spool, system.drop, limit=LIMIT).run().busy

    read, write = os.pipe()
    assert len(system.ingest(then=first).ingested) == 5
    assert os.read(read, 10) == b"busy"
    for fd in (read, write):
        os.close(fd)
    assert len(system.queued()) == 5


def test_the_lock_is_of_the_name(system):
    """Who locks a file that is not under its name any more has no lock."""
    real = disk.lock

    def moved() -> None:
        def lock(fd):
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/ingest.lock"):
                os.rename(f"{system.spool}/state/ingest.lock", f"{system.spool}/state/other")
            return real(fd)

        disk.lock = lock

    system.put(ANN)
    assert system.ingest(then=moved).busy
    assert len(system.leaf("new")) == 1


def test_what_its_writer_takes_back_is_not_taken(system):
    """The fsync of a writer fails, who takes the name away, lets go of the file, and tells its caller that nothing was kept."""

    def taken_back():
        real = disk.lock

        def lock(fd):
            if os.readlink(f"/proc/self/fd/{fd}") == f"{system.drop}/new/{ID.hex()}":
                os.unlink(f"{system.drop}/new/{ID.hex()}")
            return real(fd)

        disk.lock = lock

    system.put(ANN, ID)
    assert told(system.ingest(then=taken_back)) == nothing()
    assert (system.queued(), system.leaf("new")) == ([], [])


# -- what is no message


def head(octets):
    return octets.index(b"\n\n") + 2


NO_MESSAGES = {
    "nothing": (lambda o: b"", "it does not begin like a queue file"),
    "another text": (lambda o: b"hello\n\nhello", "it does not begin like a queue file"),
    "no end of the envelope": (lambda o: o[:60], "its envelope has no end"),
    "endless envelope": (
        lambda o: o[: head(o) - 1] + b"to a@b.example\n" * 200_000,
        "its envelope has no end",
    ),
    "half": (lambda o: o[: head(o) + 10], "it has not the length it says"),
    "no end mark": (lambda o: o[: o.index(b"\nend\t")] + b"\n", "its message has no end mark"),
    "torn end mark": (lambda o: o[:-3], "its message has no end mark"),
    "an octet of the message": (
        lambda o: o.replace(b"Hello.", b"Hullo."),
        "its message was changed after it was written",
    ),
    "an octet of the envelope": (
        lambda o: o.replace(b"bob@", b"bab@"),
        "its envelope was changed after it was written",
    ),
    "size": (lambda o: o.replace(b"size 0", b"size 9"), "it has not the length it says"),
    "a report line": (
        lambda o: o + format_report("failed 0"),
        "there is more behind its end mark",
    ),
    "an outcome line": (
        lambda o: o + format_line(b"outcome\t1\t0\t1.0\tdelivered\t2.0.0\t\t\t\tall is well"),
        "there is more behind its end mark",
    ),
    "facts": (
        lambda o: o + format_line(b"facts\th\tm\tf\t<i>"),
        "there is more behind its end mark",
    ),
    "something": (lambda o: o + b"x", "there is more behind its end mark"),
    "a key of none": (
        lambda o: o.replace(b"zone", b"zany"),
        "its envelope is incomplete",
    ),
}


@pytest.mark.parametrize("case", NO_MESSAGES)
def test_what_is_no_message(system, case):
    change, why = NO_MESSAGES[case]
    system.put(ANN, ID)
    rewrite(system, change)
    result = system.ingest()
    assert told(result) == nothing(refused={why: 1})
    assert result.warnings == [why]
    assert (system.queued(), system.leaf("new")) == ([], [ID.hex()])


def test_an_envelope_that_cannot_be_used(system):
    system.put(ANN, ID)

    def change(octets):
        from minisend.spool.record import format_trailer, head_crc, parse_tail

        octets = octets.replace(b"bob@example.net", b"bob@exam le.net")
        length = head(octets)
        trailer = parse_tail(octets[length + len(MESSAGE) :], said()).trailer
        trailer.head_crc = head_crc(octets[:length])
        return octets[: length + len(MESSAGE)] + format_trailer(trailer)

    rewrite(system, change)
    result = system.ingest()
    assert result.refused == {"its envelope cannot be used": 1}
    assert "bob@exam le.net" in result.because["its envelope cannot be used"]


def after(seconds):
    return lambda: {"clock": lambda: time.time() + seconds}


def test_it_goes_after_36_hours(system):
    system.put(ANN)
    rewrite(system, lambda octets: octets[:100])
    os.mkdir(f"{system.drop}/new/empty")
    os.mkdir(f"{system.drop}/new/full")
    os.mkdir(f"{system.drop}/new/full/x")
    for name in ("tmp/left", "new/UPPER"):
        with open(f"{system.drop}/{name}", "wb"):
            pass
    assert system.ingest().removed == 0
    assert system.ingest(make=after(36 * 3600 - 60)).removed == 0
    result = system.ingest(make=after(36 * 3600 + 60))
    assert (result.removed, sum(result.refused.values())) == (3, 4)
    assert (system.leaf("new"), system.leaf("tmp")) == (["full"], ["left"])
    # tmp is looked at once an hour
    assert system.ingest(make=after(37 * 3600 + 60)).removed == 1
    assert (system.leaf("new"), system.leaf("tmp")) == (["full"], [])


def test_what_is_a_message_never_goes(system):
    """Another version; larger than is allowed now; in its writer's hand."""
    for _ in range(3):
        system.put(ANN)
    names = system.leaf("new")
    with open(f"{system.drop}/new/{names[0]}", "r+b") as file:
        octets = file.read().replace(b"minisend-queue 1", b"minisend-queue 2")
        file.seek(0)
        file.write(octets)
    fd = os.open(f"{system.drop}/new/{names[1]}", os.O_RDONLY)
    assert disk.lock(fd)
    result = system.ingest(make=lambda: {"limit": 5, **after(90 * DAY)()})
    os.close(fd)
    assert told(result) == nothing(left={ingest._VERSION: 1, ingest._BUSY: 1, ingest._LARGE: 1})
    assert system.leaf("new") == names


def test_told_once_a_day(system):
    system.put(ANN)
    rewrite(system, lambda octets: b"x")
    why = ["it does not begin like a queue file"]
    assert system.ingest(make=after(0)).warnings == why
    assert system.ingest(make=after(60)).warnings == []
    with open(f"{system.drop}/new/UPPER", "wb"):
        pass
    # another kind of trouble is told of at once
    assert system.ingest(make=after(120)).warnings == [ingest._NO_NAME]
    assert system.ingest(make=after(DAY + 10)).warnings == why
    # a clock that was set back
    assert sorted(system.ingest(make=after(-DAY)).warnings) == sorted([*why, ingest._NO_NAME])


# -- limits


def usage(**limits):
    return lambda: {
        "usage": Usage(**{"messages": 0, "octets": 0, "rate": 0, "clock": lambda: 1e9} | limits),
        "keep_rates": True,
    }


@pytest.mark.skipif(not ROOT, reason="needs other accounts")
@pytest.mark.parametrize(
    ("limits", "word"),
    [
        ({"messages": 2}, "messages_per_uid is 2"),
        ({"octets": 2 * len(MESSAGE)}, "octets_per_uid"),
        ({"rate": 2}, "rate_per_uid is 2"),
    ],
    ids=["messages", "octets", "rate"],
)
def test_what_is_over_a_limit_stays(system, limits, word):
    for _ in range(5):
        system.put(ANN)
    system.put(BOB)
    result = system.ingest(make=usage(**limits))
    assert sorted(uid for _, uid, _ in result.ingested) == [ANN, ANN, BOB]
    assert (result.left, result.warnings) == ({ingest.LIMIT: 3}, [ingest.LIMIT])
    assert word in result.because[ingest.LIMIT]
    assert len(system.leaf("new")) == 3
    # it is no message's fault, so it comes in when there is room
    assert len(system.ingest().ingested) == 3


def test_the_rate_outlives_a_process(system):
    for _ in range(3):
        system.put(ANN)
    assert len(system.ingest(make=usage(rate=2)).ingested) == 2
    assert len(system.ingest(make=usage(rate=2)).ingested) == 0
    later = usage(rate=2, clock=lambda: 1e9 + 3600)
    assert len(system.ingest(make=later).ingested) == 1


def test_what_is_not_taken_counts_for_nothing(system):
    system.put(ANN, ID)
    rewrite(system, lambda octets: octets.replace(b"Hello.", b"Hullo."))
    kept = Usage(messages=1, octets=0, rate=1, clock=lambda: 0.0)
    result = system.as_user(
        OURS,
        lambda: (
            ingest.Ingest(system.spool, system.drop, limit=LIMIT, usage=kept).run(),
            kept.rates[1:],
            kept.admit(ANN, 1),
        ),
    )
    assert (result[0].ingested, result[1:]) == ([], ([f"admitted {ANN} 0"], None))


def test_what_waits_is_counted(system):
    system.put(ANN, message=b"x" * 10)
    system.put(ANN, message=b"x" * 20)
    system.ingest()
    kept = Usage(messages=0, octets=30, rate=0, clock=lambda: 0.0)

    def counted():
        with Queue(system.spool) as queue:
            count(queue, kept)
        return kept.admit(ANN, 1)

    assert "would have 31 octets" in system.as_user(OURS, counted)


def test_the_floor_of_the_queue_is_not_for_what_moves_on_its_file_system(system):
    """Left in the drop directory it would take the same room."""
    system.put(ANN)
    assert len(system.ingest(make=lambda: {"floor": Floor("q", 1 << 60, 0)}).ingested) == 1


# -- many


@pytest.mark.skipif(not ROOT, reason="needs other accounts")
def test_who_fills_it_does_not_stand_before_others(system):
    """However many names there are, each user gets a turn."""

    def fill():
        for number in range(500):
            with open(f"{system.drop}/new/{number:032x}", "wb"):
                pass

    system.as_user(ANN, fill)
    system.put(BOB)
    result = system.ingest((ingest, "_LOOKED_AT = 10_000", "_LOOKED_AT = 10"))
    assert [uid for _, uid, _ in result.ingested] == [BOB]
    assert result.refused == {"it does not begin like a queue file": 9}
    assert result.left == {ingest._UNSEEN: 491}
    assert ingest._UNSEEN in result.warnings


def test_of_many_each_is_looked_at_some_time(system):
    """What is there to stay does not keep what else its user has from being looked at."""

    def fill():
        for number in range(30):
            with open(f"{system.drop}/new/{number:032x}", "wb"):
                pass

    system.as_user(ANN, fill)
    system.put(ANN)
    few = (ingest, "_LOOKED_AT = 10_000", "_LOOKED_AT = 10")
    # Each run sees it with a chance of one in three: not once in 200 runs is a fault.
    assert any(system.ingest(few).ingested for _ in range(200))


def test_ten_thousand_cost_what_they_must(system):
    """A bounded number of calls for each, and no more files opened than in one run may be."""

    def fill():
        for number in range(10_500):
            with open(f"{system.drop}/new/{number:032x}", "wb"):
                pass

    system.as_user(ANN, fill)
    calls = {}

    def run():
        seam = Seam()
        disk.posix = seam
        result = ingest.Ingest(system.spool, system.drop, limit=LIMIT).run()
        for name in seam.calls:
            calls[name] = calls.get(name, 0) + 1
        return told(result), calls

    result, calls = system.as_user(OURS, run)
    assert result == nothing(
        refused={"it does not begin like a queue file": 10_000}, left={ingest._UNSEEN: 500}
    )
    assert calls["open"] <= 10_020
    assert sum(calls.values()) <= 2 * 10_000 + 100


def test_oldest_first(system):
    ids = [system.put(ANN) for _ in range(5)]
    for age, each in enumerate(ids):
        os.utime(f"{system.drop}/new/{each.hex()}", (1_000_000 - age, 1_000_000 - age))
    assert [queue_id for queue_id, _, _ in system.ingest().ingested] == [
        new_queue_id(each) for each in reversed(ids)
    ]


# -- where there is nothing to do


def test_no_drop_directory(system):
    shutil.rmtree(system.drop)
    assert told(system.ingest()) == nothing()


@pytest.mark.skipif(not ROOT, reason="needs other accounts")
def test_somebody_elses(system):
    """Each user has a queue of their own, and one drop directory is the system's."""
    system.put(ANN)
    result = system.as_user(
        BOB, lambda: ingest.Ingest(f"{system.top}/none", system.drop, limit=LIMIT).run()
    )
    assert told(result) == nothing()
    assert not os.path.exists(f"{system.top}/none")


def test_a_leaf_that_is_not_as_it_must_be(system):
    system.put(ANN)
    os.chmod(f"{system.drop}/new", 0o2733)
    with pytest.raises(SpoolError, match="anybody can remove"):
        system.ingest()


# -- crashes


def two_messages(system):
    """One that is new, and one that is in the queue already."""
    system.put(ANN, ID)
    in_queue(system)
    return system.put(ANN, b"0123456789abcdef")


def calls_of_a_run(make):
    with make() as system:
        two_messages(system)

        def run():
            seam = Seam()
            disk.posix = seam
            ingest.Ingest(system.spool, system.drop, limit=LIMIT).run()
            return list(zip(seam.calls, seam.paths, strict=True))

        return system.as_user(OURS, run)


def check_and_finish(system, second, *, litter=False):
    """Never lost: in the drop or in the queue; never twice; another run brings it to its end."""
    there = {queue_id.queue_id for queue_id, _ in queued_of(system)}
    assert {QUEUE_ID} <= there
    assert new_queue_id(second) in there or second.hex() in system.leaf("new")
    # As if it was delivered between the two: what is still in the drop must not come in once more.
    system.remove_all()
    result = system.ingest()
    assert (result.left, result.refused) == ({}, {})
    again = {queue_id for queue_id, _, _ in result.ingested}
    assert again.isdisjoint(there)
    assert there | again == {QUEUE_ID, new_queue_id(second)}
    assert system.leaf("new") == []
    system.remove_all()
    # What could not be taken away again is no message: it goes once it is old enough.
    assert len(os.listdir(f"{system.spool}/queue/tmp")) == litter


def queued_of(system):
    def look():
        found = []
        with Queue(system.spool) as queue:
            for place in queue.places("new", "cur", "hold", "failed"):
                with queue.claim(place) as entry:
                    found.append((entry.envelope, b"".join(entry.verified_octets(b"", 0))))
        return found

    return system.as_user(OURS, look)


@pytest.mark.crash
def test_stopped_after_each_call():
    from spool.system import a_system

    calls = calls_of_a_run(a_system)
    assert {"rename", "unlink", "fsync", "chmod", "fchmod"} < {name for name, _ in calls}
    for number in range(1, len(calls) + 1):
        with a_system() as system:
            second = two_messages(system)

            def stopped(system=system, number=number):
                disk.posix = stop_after(number)
                ingest.Ingest(system.spool, system.drop, limit=LIMIT).run()

            assert system.as_user(OURS, lambda stopped=stopped: in_child(stopped)) == STOPPED
            check_and_finish(system, second)


@pytest.mark.crash
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_each_call_fails(error):
    """Whatever the disk refuses: what could not be taken stays, and the run ends in order or says why not."""
    from spool.system import a_system

    calls = calls_of_a_run(a_system)
    for number in range(1, len(calls) + 1):
        with a_system() as system:
            second = two_messages(system)

            def failing(system=system, number=number):
                disk.posix = fail_at(number, error)
                opened = len(os.listdir("/proc/self/fd"))
                try:
                    ingest.Ingest(system.spool, system.drop, limit=LIMIT).run()
                except SpoolError as exc:
                    said = str(exc)
                else:
                    said = os.strerror(error)
                return len(os.listdir("/proc/self/fd")) - opened, os.strerror(error) in said

            call, about = calls[number - 1]
            assert system.as_user(OURS, failing) == (0, True), (number, call)
            litter = call == "unlink" and "/queue/tmp/" in about
            check_and_finish(system, second, litter=litter)


def test_a_full_disk(system):
    """Everything stays until there is room."""
    system.put(ANN)

    def full():
        def write(fd, octets):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        disk.write = write

    result = system.ingest(then=full)
    assert told(result) == nothing(left={ingest._SPOOL: 1})
    assert os.strerror(errno.ENOSPC) in result.because[ingest._SPOOL]
    assert len(system.ingest().ingested) == 1


def test_a_tombstone_is_looked_at_after_the_names(system):
    """A message that is being removed, or put off, is found by its name or has its tombstone, at every moment."""
    in_queue(system)
    system.put(ANN, ID)

    def removed_after_the_names():
        real = Queue.find

        def find(self, queue_id, *states):
            found = real(self, queue_id, *states)
            if found is not None:
                with self.claim(found) as entry:
                    entry.remove()
                return None
            return found

        Queue.find = find

    assert told(system.ingest(then=removed_after_the_names)) == nothing(duplicates=[QUEUE_ID])
    assert system.as_user(OURS, lambda: known(system)) is None


def test_what_an_administrator_lets_go_on_meanwhile(system):
    """It was not in new yet, and is not in hold any more."""
    in_queue(system)
    change(system, STATES["hold"])
    system.put(ANN, ID)

    def released_between():
        real = Queue.find

        def find(self, queue_id, *states):
            if "hold" in states and (found := real(self, queue_id, "hold")) is not None:
                with self.claim(found) as entry:
                    entry.move_to("new")
                return None
            return real(self, queue_id, *states)

        Queue.find = find

    assert told(system.ingest(then=released_between)) == nothing(duplicates=[QUEUE_ID])


def known(system):
    """What is left: the removal of the copy is durable, but the message had gone before."""
    with Queue(system.spool) as queue:
        acknowledge(queue.fd, QUEUE_ID)
        found = tombstone.find(queue.fd, QUEUE_ID)
    return None if found == (len(MESSAGE), "c84d920e") else found


def test_a_copy_that_could_not_come_in_keeps_its_tombstone(system):
    """Over its user's limit, or with the machine off, for longer than a tombstone lasts: what everybody has stays known."""
    in_queue(system)
    system.remove_all()
    system.put(ANN, ID)
    other = system.put(ANN)
    tombstones = f"{system.spool}/queue/tombstones"
    full = {"usage": Usage(messages=0, octets=1, rate=0, clock=lambda: 0.0)}

    def at(hours, **options):
        return {"clock": lambda: time.time() + hours * 3600} | options

    result = system.ingest(make=lambda: at(37, **full))
    assert told(result) == nothing(left={ingest.LIMIT: 2})
    assert os.listdir(tombstones) == [QUEUE_ID]
    result = system.ingest(make=lambda: at(39))
    assert told(result) == nothing(
        ingested=[(new_queue_id(other), ANN, len(MESSAGE))], duplicates=[QUEUE_ID]
    )
    assert os.listdir(tombstones) == [QUEUE_ID]
    assert told(system.ingest(make=lambda: at(41))) == nothing()
    assert os.listdir(tombstones) == []


def test_who_delivers_leaves_the_tombstones_to_who_looks_at_the_drop(system):
    in_queue(system)
    system.remove_all()

    def sweep(tombstones):
        with Queue(system.spool) as queue:
            queue.sweep(time.time() + 37 * 3600, tombstones=tombstones)
            return tombstone.find(queue.fd, QUEUE_ID)

    assert system.as_user(OURS, lambda: sweep(tombstones=False)) == (len(MESSAGE), "c84d920e")
    assert system.as_user(OURS, lambda: sweep(tombstones=True)) is None


def test_whose_a_drop_is(system):
    assert isinstance(system, System)
    assert system.as_user(OURS, lambda: place.is_own_drop(system.drop))
    assert not place.is_own_drop(f"{system.top}/none")
