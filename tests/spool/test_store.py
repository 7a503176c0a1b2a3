"""The queue for those who deliver: claims, records, moves, and what is done with files that are not as they should be."""

import errno
import fcntl
import os

import pytest

from minisend.envelope import DELAYED, DELIVERED, FAILED, Facts, Outcome
from minisend.errors import SpoolError
from minisend.spool import disk
from minisend.spool.entry import NoRoom, Place
from minisend.spool.record import (
    OUTCOME_ROOM,
    BrokenRecord,
    Requeue,
    UnknownVersion,
    format_facts,
    format_line,
    format_outcomes,
)
from minisend.spool.store import Queue
from spool.make import ID, MESSAGE, RecordingQueue, claimed, envelope, listing, path, put
from spool.seam import Seam, fail_at

OTHER = "ffeeddccbbaa9988"
FACTS = Facts(b"host.example.org", b"example.org", b"A <a@example.org>", b"<1@host.example.org>")


def delayed(recipient: int = 0, at: float = 1.0) -> Outcome:
    return Outcome(recipient, DELAYED, "4.4.1", "connection refused", at=at)


def final(recipient: int = 0, action: str = DELIVERED) -> Outcome:
    return Outcome(
        recipient, action, "2.0.0" if action == DELIVERED else "5.1.1", "said so", at=2.0
    )


def contents(queue: Queue, place: Place) -> bytes:
    with open(path(queue, place), "rb") as file:
        return file.read()


def rewrite(queue: Queue, place: Place, old: bytes, new: bytes) -> None:
    octets = contents(queue, place)
    assert old in octets
    with open(path(queue, place), "wb") as file:
        file.write(octets.replace(old, new, 1))


# -- names


@pytest.mark.parametrize(
    ("name", "queue_id", "due"),
    [
        (ID, ID, 0.0),
        (f"1700000000.{ID}", ID, 1_700_000_000.0),
        (f"0000000000.{ID}", ID, 0.0),
        ("notes.txt", "notes.txt", 0.0),
        ("²." + ID, "²." + ID, 0.0),
        ("12.", "12.", 0.0),
        ("12", "12", 0.0),
        ("9" * 11 + ".x", "x", 99_999_999_999.0),
        ("9" * 12 + ".x", "x", 0.0),
        ("9" * 400 + ".x", "x", 0.0),
    ],
)
def test_a_name_says_what_is_due(name, queue_id, due):
    place = Place("cur", name)
    assert place.queue_id == queue_id
    assert place.due == pytest.approx(due)


def test_due_the_longest_waiting_first(queue):
    put(queue, OTHER)
    put(queue, ID)
    for name in (f"0000000900.{'a' * 16}", f"0000001000.{'b' * 16}", f"0000001001.{'c' * 16}"):
        open(f"{queue.spool}/queue/cur/{name}", "w").close()
    open(f"{queue.spool}/queue/hold/{'d' * 16}", "w").close()
    open(f"{queue.spool}/queue/new/.hidden", "w").close()
    names = [place.name for place in queue.due(1000.0, 3600.0)]
    assert names == [ID, OTHER, f"0000000900.{'a' * 16}", f"0000001000.{'b' * 16}"]


@pytest.mark.parametrize(("due", "counts"), [(5000, False), (5001, True), (10**9, True)])
def test_a_time_beyond_the_longest_wait_is_a_clock_set_back(queue, due, counts):
    open(f"{queue.spool}/queue/cur/{due:010d}.{ID}", "w").close()
    assert bool(queue.due(1000.0, 4000.0)) is counts


def test_nothing_is_opened_to_find_what_is_due(queue, monkeypatch):
    for n in range(20):
        put(queue, f"{n:016x}")
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    assert len(queue.due(1.0, 1.0)) == 20
    assert seam.about("open") == [
        ("open", f"{queue.spool}/queue/new"),
        ("open", f"{queue.spool}/queue/cur"),
    ]


@pytest.mark.parametrize("state", ["new", "cur", "hold", "failed"])
def test_find(queue, state):
    put(queue, OTHER)
    place = put(queue)
    with claimed(queue, place) as entry:
        if state == "cur":
            entry.defer(1234.0)
        elif state != "new":
            entry.move_to(state)
        place = entry.place
    found = queue.find(ID, "new", "cur", "hold", "failed")
    assert found is not None
    assert (found.state, found.name) == (place.state, place.name)
    assert queue.find(ID, *{"new", "cur", "hold", "failed"} - {state}) is None


@pytest.mark.parametrize("queue_id", ["", ".", "..", "../new/" + ID, "/etc/passwd", "x", ID + "/"])
def test_what_is_no_id_finds_nothing(queue, queue_id):
    put(queue)
    assert queue.find(queue_id, "new", "cur", "hold", "failed") is None


# -- claims


def test_a_claim_reads_what_was_enqueued(queue):
    place = put(queue, recipients=3)
    with claimed(queue, place) as entry:
        assert entry.envelope == envelope(recipients=3)
        assert (entry.size, entry.attempts, entry.facts) == (len(MESSAGE), 0, None)
        assert (entry.pending, entry.failed, entry.latest) == ([0, 1, 2], [], {})
        assert b"".join(entry.octets()) == MESSAGE
        assert [entry.first_octets(n) for n in (0, 7, 10**6)] == [b"", b"Subject", MESSAGE]
        assert b"".join(entry.verified_octets(MESSAGE[:9], 4)) == MESSAGE[4:]
    assert queue.reported == []


def test_one_process_at_a_time(queue):
    """The second claim fails while the first process has it, and succeeds once that one is gone."""
    place = put(queue)
    has_it, says_so = os.pipe()
    waits, let_go = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(let_go)
            with RecordingQueue(queue.spool) as other:
                entry = other.claim(place)
                os.write(says_so, b"y" if entry is not None else b"n")
                os.read(waits, 1)
        finally:
            os._exit(0)
    try:
        assert os.read(has_it, 1) == b"y"
        assert queue.claim(place) is None
    finally:
        os.close(let_go)
        os.waitpid(child, 0)
        for fd in (has_it, says_so, waits):
            os.close(fd)
    with claimed(queue, place):
        pass
    assert queue.reported == []


def test_a_claim_given_back_can_be_had_again(queue):
    place = put(queue)
    with claimed(queue, place):
        assert queue.claim(place) is None
    claimed(queue, place).close()


def test_the_name_is_old(queue):
    place = put(queue)
    with claimed(queue, place) as entry:
        entry.defer(500.0)
        now = entry.place
    assert queue.claim(place) is None
    claimed(queue, now).close()
    assert queue.reported == []


@pytest.mark.parametrize("then", ["gone", "moved", "another file"])
def test_the_file_is_moved_between_open_and_lock(queue, monkeypatch, then):
    """The lock is on what was opened: whoever waited for it may hold a file that is elsewhere by now."""
    place = put(queue)
    real = fcntl.flock

    def flock(fd, operation):
        os.rename(path(queue, place), f"{queue.spool}/queue/hold/{ID}")
        if then == "gone":
            os.unlink(f"{queue.spool}/queue/hold/{ID}")
        elif then == "another file":
            open(path(queue, place), "w").close()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    queue.directory("new")
    opened = len(os.listdir("/proc/self/fd"))
    assert queue.claim(place) is None
    assert len(os.listdir("/proc/self/fd")) == opened
    assert queue.reported == []


# -- records


@pytest.fixture
def failed(queue):
    """In ``failed``: delivered, failed and told, waiting, never tried; after two attempts and a warning."""
    place = put(queue, recipients=4)
    with claimed(queue, place) as entry:
        entry.keep_facts(FACTS)
        entry.record([final(0), final(1, FAILED), delayed(2)], 1)
        entry.note_reported("success 0")
        entry.note_reported("delay 2")
        entry.record([delayed(2, at=3.0)], 2)
        entry.note_reported("failure 1")
        entry.move_to("failed")
    queue.sync()
    return entry.place


def standing(entry):
    return (
        entry.pending,
        entry.failed,
        entry.attempts,
        entry.latest,
        entry.reported,
        entry.since,
        entry.place.name,
        entry.place.state,
    )


def test_requeued_from_failed(queue, failed):
    """Whoever did not get it is tried again, with a lifetime, attempts and reports of their own."""
    with claimed(queue, failed) as entry:
        before = list(entry.history)
        assert entry.since == 1_700_000_000.25
        entry.requeue(1_700_100_000.5)
        expected = (
            [1, 2, 3],
            [],
            0,
            {0: final(0)},
            {"success 0"},
            1_700_100_000.5,
            f"0000000000.{ID}",
            "cur",
        )
        assert standing(entry) == expected
        assert entry.history == [*before, Requeue(1_700_100_000.5, [1, 2, 3])]
        again = entry.place
    with claimed(queue, again) as entry:
        assert standing(entry) == expected
        assert entry.facts == FACTS
        assert queue.due(1_700_100_000.5, 60)[0].name == again.name
        entry.record([final(1, FAILED), delayed(2), final(3)], 1)
        entry.note_reported("failure 1")
        assert (entry.attempts, entry.pending, entry.failed) == (1, [2], [1])
    with claimed(queue, again) as entry:
        assert (entry.attempts, entry.reported) == (1, {"success 0", "failure 1"})


@pytest.mark.parametrize("state", ["cur", "hold"])
def test_requeued_from_elsewhere(queue, failed, state):
    """Who failed has failed: the report is on its way."""
    with claimed(queue, failed) as entry:
        entry.defer(5.0) if state == "cur" else entry.move_to(state)
        entry.requeue(9.0)
        expected = (
            [2, 3],
            [1],
            0,
            {0: final(0), 1: final(1, FAILED)},
            {"success 0", "failure 1"},
            9.0,
            f"0000000000.{ID}",
            "cur",
        )
        assert standing(entry) == expected
    with claimed(queue, entry.place) as entry:
        assert standing(entry) == expected
        entry.requeue(10.0)
        assert (entry.since, entry.history[-2:]) == (
            10.0,
            [Requeue(9.0, [2, 3]), Requeue(10.0, [2, 3])],
        )


def test_requeued_with_nobody_left_to_try(queue):
    """It goes to whoever removes it; there is nothing to record."""
    place = put(queue)
    with claimed(queue, place) as entry:
        entry.record([final(0)], 1)
        entry.move_to("hold")
        entry.requeue(9.0)
        assert (entry.place.state, entry.since, entry.pending) == ("cur", 1_700_000_000.25, [])
    assert b"requeue" not in contents(queue, entry.place)


def test_a_requeue_is_durable_before_the_message_moves(queue, failed, monkeypatch):
    with claimed(queue, failed) as entry:
        seam = Seam()
        monkeypatch.setattr(disk, "posix", seam)
        entry.requeue(9.0)
        changes = [call for call in seam.calls if call in ("pwrite", "fsync", "rename")]
        assert changes == ["pwrite", "fsync", "rename"]


def test_a_requeue_that_fails_leaves_the_message_where_it_was(queue, failed, monkeypatch):
    """At whichever call; and it can be repeated."""
    calls = 0
    while True:
        calls += 1
        with claimed(queue, failed) as entry, monkeypatch.context() as patch:
            seam = fail_at(calls, errno.ENOSPC)
            patch.setattr(disk, "posix", seam)
            try:
                entry.requeue(9.0)
            except (OSError, SpoolError):
                assert entry.place is failed
            else:
                break
    assert [call for call in seam.calls if call in ("pwrite", "fsync", "rename")] == [
        "pwrite",
        "fsync",
        "rename",
    ]
    assert calls > 3
    with claimed(queue, entry.place) as entry:
        assert (entry.place.state, entry.since, entry.pending) == ("cur", 9.0, [1, 2, 3])


def test_a_note_that_names_nobody_is_damage_once_it_matters(queue, failed):
    with claimed(queue, failed) as entry:
        entry.note_reported("something")
        with pytest.raises(BrokenRecord, match="a report names no recipients"):
            entry.requeue(9.0)


# -- removal of files that are no messages


def test_discard_takes_what_cannot_be_read(queue):
    with open(f"{queue.spool}/queue/failed/{ID}", "wb") as file:
        file.write(b"rubbish")
    place = Place("failed", ID)
    with open(path(queue, place), "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert queue.discard(place) is False
    assert listing(queue.spool) == {"failed": [ID]}
    assert queue.discard(place) is True
    assert listing(queue.spool) == {}
    assert queue.discard(place) is False
    assert queue.reported == []


def test_a_broken_file_in_failed_stays_and_is_reported(queue):
    with open(f"{queue.spool}/queue/failed/{ID}", "wb") as file:
        file.write(b"rubbish")
    assert queue.claim(Place("failed", ID)) is None
    assert queue.reported == [(ID, "broken: it does not begin like a queue file")]
    assert listing(queue.spool) == {"failed": [ID]}


def test_what_is_recorded_is_read(queue):
    place = put(queue, recipients=3)
    with claimed(queue, place) as entry:
        entry.reserve(3)
        entry.keep_facts(FACTS)
        entry.record([delayed(0), final(1), final(2, FAILED)], 1)
        assert (entry.pending, entry.failed, entry.attempts) == ([0], [2], 1)
    before = contents(queue, place)
    with claimed(queue, place) as entry:
        assert (entry.pending, entry.failed, entry.attempts) == ([0], [2], 1)
        assert entry.facts == FACTS
        assert entry.latest == {0: delayed(0), 1: final(1), 2: final(2, FAILED)}
        entry.reserve(1)
        entry.record([delayed(0, at=5.0)], 2)
    with claimed(queue, place) as entry:
        assert entry.outcomes == [
            (1, delayed(0)),
            (1, final(1)),
            (1, final(2, FAILED)),
            (2, delayed(0, at=5.0)),
        ]
        assert (entry.attempts, entry.latest[0]) == (2, delayed(0, at=5.0))
        assert b"".join(entry.octets()) == MESSAGE
    assert contents(queue, place).startswith(before)


def test_an_attempt_that_does_not_count(queue):
    place = put(queue)
    with claimed(queue, place) as entry:
        entry.record([delayed(at=1.0)], 1)
        entry.record([delayed(at=2.0)], 1)
        assert entry.attempts == 1
    with claimed(queue, place) as entry:
        assert (entry.attempts, entry.latest[0].at) == (1, 2.0)


def test_a_record_is_durable_when_it_returns(queue, monkeypatch):
    """And the facts of the first attempt with it: they go into the same write."""
    queue.block = 1
    place = put(queue)
    with claimed(queue, place) as entry:
        seam = Seam()
        monkeypatch.setattr(disk, "posix", seam)
        entry.keep_facts(FACTS)
        entry.reserve(1)
        entry.record([delayed()], 1)
        assert seam.calls == ["posix_fallocate", "pwrite", "ftruncate", "fsync"]
        del seam.calls[:]
        entry.record([delayed()], 2)
        assert seam.calls == ["pwrite", "fsync"]
    assert contents(queue, place).count(b"\nfacts\t") == 1


@pytest.mark.parametrize("write", ["record", "note_reported", "requeue"])
def test_the_facts_are_written_with_the_first_line(queue, write):
    place = put(queue)
    before = contents(queue, place)
    with claimed(queue, place) as entry:
        assert entry.keep_facts(FACTS) == entry.facts == FACTS
        assert contents(queue, place) == before
        if write == "record":
            entry.record([delayed()], 1)
        elif write == "note_reported":
            entry.note_reported("failure 0")
        else:
            entry.requeue(9.0)
        after = contents(queue, entry.place)
        assert after.startswith(before + format_facts(FACTS))
        place = entry.place
    with claimed(queue, place) as entry:
        assert entry.facts == FACTS
        entry.record([delayed()], 1)
        assert contents(queue, place).startswith(after)
        assert contents(queue, place).count(b"\nfacts\t") == 1


def test_the_facts_of_an_attempt_that_has_come_to_nothing_are_not_kept(queue):
    """Nobody has seen them: the next attempt is a first one."""
    place = put(queue)
    before = contents(queue, place)
    with claimed(queue, place) as entry:
        entry.keep_facts(FACTS)
        entry.reserve(1)
        entry.defer(10)
        place = entry.place
    assert contents(queue, place) == before
    with claimed(queue, place) as entry:
        assert entry.facts is None


def test_a_torn_write_of_facts_and_outcome_leaves_whole_lines(queue):
    """Wherever it is cut: nothing of it, the facts, or both."""
    place = put(queue)
    before = contents(queue, place)
    with claimed(queue, place) as entry:
        entry.keep_facts(FACTS)
        entry.record([delayed()], 1)
    whole = contents(queue, place)
    with_facts = len(before) + len(format_facts(FACTS))
    for cut in range(len(before), len(whole) + 1):
        with open(path(queue, place), "wb") as file:
            file.write(whole[:cut])
        with claimed(queue, place) as entry:
            assert entry.facts == (FACTS if cut >= with_facts else None)
            assert entry.outcomes == ([(1, delayed())] if cut == len(whole) else [])
            if entry.facts is None:
                entry.keep_facts(FACTS)
            if not entry.outcomes:
                entry.record([delayed()], 1)
        assert contents(queue, place) == whole
    assert queue.reported == []


def test_facts_and_outcome_whose_write_fails_are_written_again_together(queue, monkeypatch):
    """What the first try has left of a longer line is gone when a shorter one has been written."""
    place = put(queue, recipients=3)
    before = contents(queue, place)

    def tear(number, name):
        if name == "pwrite":
            with open(path(queue, place), "ab") as file:
                file.write(lines[:-5])
            raise OSError(errno.EIO, "torn")

    # Two good lines and the most of a third.
    refused = [Outcome(n, FAILED, "5.1.1", f"no such user {n}", at=2.0) for n in range(3)]
    lines = format_facts(FACTS) + format_outcomes(1, refused)
    with claimed(queue, place) as entry:
        entry.keep_facts(FACTS)
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", Seam(tear))
            with pytest.raises(OSError, match="torn"):
                entry.record(refused, 1)
        assert contents(queue, place) == before + lines[:-5]
        entry.record([delayed(2)], 1)
        written = before + format_facts(FACTS) + format_outcomes(1, [delayed(2)])
        assert contents(queue, place) == written
    with claimed(queue, place) as entry:
        assert (entry.facts, entry.outcomes) == (FACTS, [(1, delayed(2))])
    assert queue.reported == []


def test_half_a_line_is_cut_off_when_the_claim_is_given_back(queue, monkeypatch):
    place = put(queue)
    before = contents(queue, place)

    def tear(number, name):
        if name == "pwrite":
            with open(path(queue, place), "ab") as file:
                file.write(b"\noutcome\t1\t0")
            raise OSError(errno.EIO, "torn")

    with claimed(queue, place) as entry, monkeypatch.context() as patched:
        patched.setattr(disk, "posix", Seam(tear))
        with pytest.raises(OSError, match="torn"):
            entry.record([delayed()], 1)
    assert contents(queue, place) == before


def filled(queue: Queue, block: int, left: int) -> Place:
    """A message whose file ends so many octets before the end of a block of this size."""
    queue.block = block
    place = put(queue, message=b"x" * 1000)
    short = (-len(contents(queue, place)) - left) % block
    os.unlink(path(queue, place))
    place = put(queue, message=b"x" * (1000 + short))
    assert -len(contents(queue, place)) % block == left
    return place


@pytest.mark.parametrize("facts", [None, FACTS], ids=["later attempt", "first attempt"])
@pytest.mark.parametrize("recipients", [1, 3])
def test_what_fits_into_the_last_block_is_not_reserved(queue, monkeypatch, recipients, facts):
    """It has been the file's since the message was accepted."""
    room = recipients * OUTCOME_ROOM + (len(format_facts(facts)) if facts else 0)
    for missing, calls in (
        (0, ["pwrite", "fsync"]),
        (1, ["posix_fallocate", "pwrite", "ftruncate", "fsync"]),
    ):
        place = filled(queue, 4096, room - missing)
        size = len(contents(queue, place))
        with claimed(queue, place) as entry, monkeypatch.context() as patched:
            seam = Seam()
            patched.setattr(disk, "posix", seam)
            if facts:
                entry.keep_facts(facts)
            entry.reserve(recipients)
            assert len(contents(queue, place)) == size + missing * (room)
            entry.record([delayed(n) for n in range(recipients)], 1)
            assert seam.calls == calls
        os.unlink(path(queue, place))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_takes_the_outcomes_that_fit_into_the_last_block(queue, monkeypatch, error):
    """What the file system is asked for is refused: that is not."""
    place = filled(queue, 4096, OUTCOME_ROOM + len(format_facts(FACTS)))
    end = len(contents(queue, place)) + OUTCOME_ROOM + len(format_facts(FACTS))

    def full(number, name):
        if name == "posix_fallocate":
            raise OSError(error, os.strerror(error))

    longest = Outcome(0, FAILED, *("x" * 9999,) * 2, remote_mta="x" * 9999, at=9e10)
    longest.command = longest.diagnostic = longest.reason
    with claimed(queue, place) as entry, monkeypatch.context() as patched:
        patched.setattr(disk, "posix", Seam(full))
        entry.keep_facts(FACTS)
        entry.reserve(1)
        with pytest.raises(NoRoom):
            entry.reserve(1)
        entry.record([longest], 1)
        assert entry.tail_at <= end
    assert len(contents(queue, place)) == entry.tail_at
    with claimed(queue, place) as entry:
        assert (entry.facts, entry.failed) == (FACTS, [0])


@pytest.mark.parametrize("block", [1, 4096])
def test_those_who_are_being_attempted_keep_their_room(queue, monkeypatch, block):
    """Behind what is recorded of others, and behind the note of a report."""
    place = filled(queue, block, (2 * OUTCOME_ROOM + len(format_facts(FACTS))) % block)
    ends = []

    def after(number, name, done):
        if name == "posix_fallocate":
            ends.append(len(contents(queue, place)))

    with claimed(queue, place) as entry, monkeypatch.context() as patched:
        patched.setattr(disk, "posix", Seam(after=after))

        def room() -> int:
            """Behind the last line."""
            return max(-entry.tail_at % block, len(contents(queue, place)) - entry.tail_at)

        entry.keep_facts(FACTS)
        entry.reserve(1)
        entry.reserve(1)
        assert room() >= 2 * OUTCOME_ROOM
        entry.note_reported("success 0")
        assert room() >= 2 * OUTCOME_ROOM
        entry.record([delayed()], 1)
        assert room() >= OUTCOME_ROOM
        for number in range(200):
            entry.note_reported(f"delay 0-{number}")
            assert room() >= OUTCOME_ROOM
        entry.record([delayed()], 1)
        assert len(contents(queue, place)) == entry.tail_at
    assert ends


def test_a_note_for_which_there_is_room_is_written_on_a_full_disk(queue, monkeypatch):
    """What is in hand comes first; the others may have to be held."""
    place = filled(queue, 4096, OUTCOME_ROOM)

    def full(number, name):
        if name == "posix_fallocate":
            raise OSError(errno.ENOSPC, "full")

    with claimed(queue, place) as entry, monkeypatch.context() as patched:
        patched.setattr(disk, "posix", Seam(full))
        entry.reserve(1)
        entry.note_reported("success 0")
        assert entry.reported == {"success 0"}
        entry.record([delayed()], 1)


def test_room_is_reserved_and_given_back(queue):
    queue.block = 1
    place = put(queue)
    size = len(contents(queue, place))
    with claimed(queue, place) as entry:
        entry.reserve(7)
        assert len(contents(queue, place)) >= size + 7 * OUTCOME_ROOM
        reading = queue.read(place)  # mailq, meanwhile
        assert reading is not None
        with reading:
            assert b"".join(reading.octets()) == MESSAGE
    assert len(contents(queue, place)) == size


def test_the_facts_have_room_too(queue):
    """A From field made of a very long name takes none of what was reserved for the outcomes."""
    long = envelope()
    long.full_name = b"\xe9\n" * 4000
    from minisend.spool.enqueue import enqueue

    enqueue(queue.fd, long, [MESSAGE], 0)
    place = Place("new", ID)
    with claimed(queue, place) as entry:
        end = entry.tail_at
        coded = b"\n ".join([b"=?utf-8?q?" + b"=C3=A9=0A" * 6 + b"?="] * (4000 // 6 + 1))
        facts = Facts(b"h" * 253, b"d" * 253, coded + b" <a@b>", b"<" + b"i" * 300 + b">")
        entry.keep_facts(facts)
        entry.reserve(1)
        assert len(contents(queue, place)) - end == len(format_facts(facts)) + OUTCOME_ROOM


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_no_room_no_attempt(queue, monkeypatch, error):
    queue.block = 1
    place = put(queue)
    before = contents(queue, place)
    with claimed(queue, place) as entry:
        monkeypatch.setattr(disk, "posix", fail_at(1, error))
        with pytest.raises(NoRoom, match=os.strerror(error)):
            entry.reserve(1)
    assert contents(queue, place) == before


def test_a_disk_that_fills_up_while_room_is_reserved(queue, monkeypatch):
    """What was reserved before the failure is given back."""
    queue.block = 1
    place = put(queue)
    before = contents(queue, place)

    def after(number, name, done):
        if name == "posix_fallocate":
            raise OSError(errno.ENOSPC, "full")

    with claimed(queue, place) as entry:
        monkeypatch.setattr(disk, "posix", Seam(after=after))
        with pytest.raises(NoRoom, match="full"):
            entry.reserve(1)
        assert contents(queue, place) == before


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_reserve(queue, monkeypatch, error):
    queue.block = 1
    place = put(queue)
    with claimed(queue, place) as entry:
        monkeypatch.setattr(disk, "posix", fail_at(1, error))
        entry.reserve(1)
        entry.record([delayed()], 1)
    with claimed(queue, place) as entry:
        assert entry.latest == {0: delayed()}


def test_a_directory_that_cannot_be_opened_is_told_like_a_file(queue, monkeypatch):
    """Who claims one message after the other goes on with the next."""
    place = put(queue)
    with monkeypatch.context() as patched:
        patched.setattr(disk, "posix", fail_at(1, errno.EIO))
        assert queue.claim(place) is None
    assert queue.reported == [(ID, "cannot be opened: queue/new: Input/output error")]
    with claimed(queue, place) as entry:
        assert entry.pending == [0]


def test_what_cannot_be_set_aside_stays(queue):
    place = put(queue)
    rewrite(queue, place, b"uid 1000", b"uid 1001")
    os.rmdir(f"{queue.spool}/queue/failed")
    assert queue.claim(place) is None
    assert queue.reported == [
        (
            ID,
            "broken (its envelope was changed after it was written) and cannot be set aside: "
            "queue/failed: No such file or directory",
        )
    ]
    os.mkdir(f"{queue.spool}/queue/failed", 0o700)
    assert listing(queue.spool) == {"new": [ID]}


def test_an_append_that_fails_is_told_and_can_be_repeated(queue, monkeypatch):
    place = put(queue)
    with claimed(queue, place) as entry:
        monkeypatch.setattr(disk, "posix", fail_at(1, errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            entry.record([delayed()], 1)
        assert (entry.attempts, entry.latest) == (0, {})
        monkeypatch.undo()
        entry.record([final()], 1)
    with claimed(queue, place) as entry:
        assert entry.outcomes == [(1, final())]


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_torn_tail_is_cut_off_by_the_next_claim(queue, kept):
    place = put(queue)
    with claimed(queue, place) as entry:
        entry.record([delayed()], 1)
    good = contents(queue, place)
    with claimed(queue, place) as entry:
        entry.record([delayed(at=9.0)], 2)
    os.truncate(path(queue, place), len(good) + kept)
    with claimed(queue, place) as entry:
        assert contents(queue, place) == good
        assert entry.outcomes == [(1, delayed())]
        entry.record([final()], 2)
    with claimed(queue, place) as entry:
        assert entry.outcomes == [(1, delayed()), (2, final())]


def test_a_look_changes_nothing(queue):
    place = put(queue)
    with open(path(queue, place), "ab") as file:
        file.write(b"\noutcome\thalf")
    before = contents(queue, place)
    entry = queue.read(place)
    assert entry is not None
    with entry:
        assert entry.envelope == envelope()
    assert contents(queue, place) == before
    assert queue.read(Place("new", OTHER)) is None


# -- moves


def test_defer_hold_fail_remove(queue):
    place = put(queue)
    with claimed(queue, place) as entry:
        entry.defer(1_700_000_123.9)
        assert listing(queue.spool) == {"cur": [f"1700000123.{ID}"]}
        assert entry.place.due == 1_700_000_123.0
        entry.defer(1_700_000_123.0)
        entry.move_to("hold")
        assert listing(queue.spool) == {"hold": [ID]}
        entry.move_to("failed")
        assert listing(queue.spool) == {"failed": [ID]}
        entry.remove()
    assert listing(queue.spool) == {}


def test_changes_of_names_are_synced_in_groups(queue, monkeypatch):
    """One fsync a directory for up to a hundred messages; the directory a message went to comes first."""
    places = [put(queue, f"{n:016x}") for n in range(60)]
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    for number, place in enumerate(places):
        with claimed(queue, place) as entry:
            entry.defer(5000.0) if number % 2 else entry.move_to("hold")
    top = f"{queue.spool}/queue"
    grouped = [("fsync", f"{top}/{state}") for state in ("hold", "cur", "new")]
    assert (
        seam.about("fsync") == grouped
    )  # two changes a message: the hundredth is the fiftieth message
    queue.sync()
    assert seam.about("fsync") == grouped * 2
    queue.sync()
    assert seam.about("fsync") == grouped * 2


def test_a_group_waits_no_longer_than_a_second(queue, monkeypatch):
    places = [put(queue, f"{n:016x}") for n in range(3)]
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    counts = []
    for at, place in zip((100.0, 100.9, 101.0), places, strict=True):
        now[0] = at
        with claimed(queue, place) as entry:
            entry.remove()
        counts.append(len(seam.about("fsync")))
    assert counts == [0, 0, 1]


def test_strict_sync_is_after_each(spool, monkeypatch):
    with RecordingQueue(spool, strict_sync=True) as queue:
        place = put(queue)
        with claimed(queue, place) as entry:
            seam = Seam()
            monkeypatch.setattr(disk, "posix", seam)
            entry.defer(5.0)
            entry.remove()
            top = f"{spool}/queue"
            assert seam.about("fsync", "rename", "unlink") == [
                ("rename", f"{top}/new/{ID}"),
                ("fsync", f"{top}/cur"),
                ("fsync", f"{top}/new"),
                ("unlink", f"{top}/cur/0000000005.{ID}"),
                ("fsync", f"{top}/cur"),
            ]


def test_closing_syncs(spool, monkeypatch):
    seam = Seam()
    with RecordingQueue(spool) as queue:
        place = put(queue)
        monkeypatch.setattr("time.monotonic", lambda: 0.0)
        with claimed(queue, place) as entry:
            monkeypatch.setattr(disk, "posix", seam)
            entry.remove()
    assert seam.about("fsync") == [("fsync", f"{spool}/queue/new")]


def test_closing_closes_though_the_disk_fails(spool, monkeypatch):
    opened = len(os.listdir("/proc/self/fd"))
    queue = RecordingQueue(spool)
    with claimed(queue, put(queue)) as entry:
        entry.remove()

    def before(number, name):
        if name == "fsync":
            raise OSError(errno.EIO, "it is gone")

    monkeypatch.setattr(disk, "posix", Seam(before=before))
    with pytest.raises(OSError, match="it is gone"):
        queue.close()
    assert len(os.listdir("/proc/self/fd")) == opened


# -- files that are not as they should be


def test_the_message_was_changed(queue):
    place = put(queue)
    rewrite(queue, place, b"Hello.", b"Jello.")
    with claimed(queue, place) as entry:
        pieces = []
        with pytest.raises(BrokenRecord, match="changed after it was written"):
            pieces.extend(entry.verified_octets(entry.first_octets(10), 0))
        queue.set_aside(entry, "its message was changed")
    assert listing(queue.spool) == {"failed": [ID]}
    assert queue.reported == [(ID, "set aside in queue/failed: its message was changed")]


def test_a_changed_message_is_never_passed_on_whole(queue):
    message = b"xyz" * 200_000
    place = put(queue, message=message)
    rewrite(queue, place, b"xyz", b"xxz")
    with claimed(queue, place) as entry:
        passed = []
        with pytest.raises(BrokenRecord):
            passed.extend(entry.verified_octets(entry.first_octets(100), 50))
        assert 0 < len(b"".join(passed)) < len(message) - 50


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"minisend-queue", b"minisend-quack", "does not begin like a queue file"),
        (b"r0@example.net", b"r1@example.net", "its envelope was changed after it was written"),
        (b"size 000000000000023", b"size 000000000000022", "its message has no end mark"),
        (b"size 000000000000023", b"size 000000000009999", "its message has no end mark"),
        (b"size 000000000000023", b"colour 0000000000023", "its envelope is incomplete"),
        (b"\nend\t", b"\nEnd\t", "its message has no end mark"),
        (b"id " + ID.encode(), b"id " + OTHER.encode(), "its envelope was changed"),
    ],
)
def test_a_broken_file_is_set_aside_and_the_others_go_on(queue, old, new, why):
    put(queue, OTHER)
    place = put(queue)
    rewrite(queue, place, old, new)
    assert queue.claim(place) is None
    assert listing(queue.spool) == {"new": [OTHER], "failed": [ID]}
    [(queue_id, text)] = queue.reported
    assert queue_id == ID
    assert text.startswith("set aside in queue/failed: ")
    assert why in text
    assert [place.queue_id for place in queue.due(1.0, 1.0)] == [OTHER]
    claimed(queue, Place("new", OTHER)).close()


def test_a_file_cut_short_is_set_aside(queue):
    """Wherever in envelope, message or end mark: ``new`` never holds such a file unless the disk lost it."""
    place = put(queue)
    size = len(contents(queue, place))
    os.unlink(path(queue, place))
    for length in [*range(0, size - 12, 7), *range(size - 12, size)]:
        place = put(queue)
        os.truncate(path(queue, place), length)
        assert queue.claim(place) is None
        assert listing(queue.spool) == {"failed": [ID]}
        os.unlink(f"{queue.spool}/queue/failed/{ID}")


def test_an_envelope_without_an_end(queue):
    with open(f"{queue.spool}/queue/new/{ID}", "wb") as file:
        file.write(b"minisend-queue 1\n" + b"name x\n" * 5000)
    assert queue.claim(Place("new", ID)) is None
    assert queue.reported == [(ID, "set aside in queue/failed: its envelope has no end")]


def test_a_damaged_record_is_set_aside(queue):
    place = put(queue)
    with claimed(queue, place) as entry:
        entry.record([delayed()], 1)
        entry.record([final()], 2)
    rewrite(queue, place, b"connection refused", b"connection refusee")
    assert queue.claim(place) is None
    assert queue.reported == [
        (ID, "set aside in queue/failed: a line after the message is damaged")
    ]


def test_a_file_under_a_wrong_name(queue):
    place = put(queue)
    os.rename(path(queue, place), f"{queue.spool}/queue/cur/0000000007.{OTHER}")
    assert queue.claim(Place("cur", f"0000000007.{OTHER}")) is None
    assert listing(queue.spool) == {"failed": [OTHER]}
    assert "a name that is not its own" in queue.reported[0][1]


def test_setting_aside_replaces_nothing(queue):
    place = put(queue)
    os.rename(path(queue, place), f"{queue.spool}/queue/failed/{ID}")
    place = put(queue)
    os.truncate(path(queue, place), 10)
    assert queue.claim(place) is None
    assert listing(queue.spool) == {"new": [ID], "failed": [ID]}
    assert len(contents(queue, Place("failed", ID))) > 10
    assert queue.reported == [
        (ID, "broken (it does not begin like a queue file), with its like in queue/failed already")
    ]


def test_another_version_is_left_alone(queue):
    place = put(queue)
    rewrite(queue, place, b"minisend-queue 1", b"minisend-queue 2")
    before = contents(queue, place)
    assert queue.claim(place) is None
    assert contents(queue, place) == before
    assert queue.reported == [(ID, "left alone: its format is version 2")]
    with pytest.raises(UnknownVersion):
        queue.read(place)


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_what_is_no_file_is_reported_and_left(queue, kind, tmp_path):
    where = f"{queue.spool}/queue/new/{ID}"
    if kind == "directory":
        os.mkdir(where)
    elif kind == "fifo":
        os.mkfifo(where)
    else:
        os.symlink(tmp_path / "secret", where)
        (tmp_path / "secret").write_text("minisend-queue 1\n")
    assert queue.claim(Place("new", ID)) is None
    assert listing(queue.spool) == {"new": [ID]}
    [(queue_id, text)] = queue.reported
    assert (queue_id, text.partition(":")[0]) == (
        ID,
        "cannot be read" if kind == "fifo" else "cannot be opened",
    )


def test_every_descriptor_of_a_refused_claim_is_closed(queue):
    opened = None
    for name in ("new", "hold", "failed", "cur"):
        queue.directory(name)
    for old, new in ((b"queue 1", b"queue 2"), (b"queue", b"quack")):
        place = put(queue)
        rewrite(queue, place, old, new)
        opened = len(os.listdir("/proc/self/fd"))
        assert queue.claim(place) is None
        assert len(os.listdir("/proc/self/fd")) == opened
        os.path.exists(path(queue, place)) and os.unlink(path(queue, place))


def test_the_end_of_a_file_can_shrink_while_it_is_read(queue, monkeypatch):
    """A flusher gives back what it had reserved between the look at the size and the read."""
    queue.block = 1
    place = put(queue, message=b"x" * 20_000)
    with claimed(queue, place) as entry:
        entry.reserve(1)
        real = os.pread

        class Shrinking(Seam):
            def pread(self, fd, count, offset):
                if offset > 0:
                    os.truncate(path(queue, place), entry.tail_at)
                return real(fd, count, offset)

        monkeypatch.setattr("minisend.spool.disk.posix", Shrinking())
        reading = queue.read(place)
        assert reading is not None
        with reading:
            assert reading.envelope == envelope()


def test_an_envelope_of_many_recipients(queue):
    place = put(queue, recipients=30_000)
    with claimed(queue, place) as entry:
        assert len(entry.pending) == 30_000
        entry.record([delayed(n) for n in range(30_000)], 1)
    with claimed(queue, place) as entry:
        assert (len(entry.pending), entry.attempts) == (30_000, 1)


def test_a_line_of_the_future_kind_is_damage(queue):
    place = put(queue)
    with open(path(queue, place), "ab") as file:
        file.write(format_line(b"colour\tred"))
    assert queue.claim(place) is None
    assert queue.reported == [(ID, "set aside in queue/failed: it has a line of an unknown kind")]


# -- tmp


def test_sweep_takes_what_is_old(queue, tmp_path):
    now = 1_700_000_000.0
    tmp = f"{queue.spool}/queue/tmp"
    for name, age in (("old", 36 * 3600 + 1), ("young", 36 * 3600 - 1), ("future", -5000)):
        open(f"{tmp}/{name}", "w").close()
        os.utime(f"{tmp}/{name}", (now - age, now - age))
    os.symlink(tmp_path / "nothing", f"{tmp}/dangling")
    os.utime(f"{tmp}/dangling", (0, 0), follow_symlinks=False)
    os.mkdir(f"{tmp}/directory")
    os.utime(f"{tmp}/directory", (0, 0))
    queue.sweep(now)
    assert listing(queue.spool) == {"tmp": ["directory", "future", "young"]}
    [(queue_id, text)] = queue.reported
    assert queue_id == "directory"
    assert text.startswith("cannot be removed from tmp: ")


def test_a_message_that_is_received_for_very_long_is_refused(queue):
    """Its file swept away from under it: an error, not a message that is lost with exit code 0."""
    from minisend.spool.enqueue import enqueue

    def slow():
        yield MESSAGE
        tmp = f"{queue.spool}/queue/tmp/{ID}"
        os.utime(tmp, (0, 0))
        queue.sweep(10.0**6)

    with pytest.raises(SpoolError):
        enqueue(queue.fd, envelope(), slow(), 0)
    assert listing(queue.spool) == {}


# -- the directories


def test_a_queue_that_cannot_be_listed(queue):
    os.rmdir(f"{queue.spool}/queue/cur")
    with pytest.raises(SpoolError, match="queue/cur: No such file or directory"):
        queue.due(1.0, 1.0)


def test_two_processes_remove_and_defer_all_between_them(queue):
    """Every message is handled by exactly one of two flushers that run at once."""
    count = 60
    for n in range(count):
        put(queue, f"{n:016x}")
    read, write = os.pipe()

    def work():
        with RecordingQueue(queue.spool) as mine:
            for place in mine.due(1.0, 1.0):
                entry = mine.claim(place)
                if entry is not None:
                    with entry:
                        os.write(write, place.queue_id.encode() + b"\n")
                        entry.remove()

    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            try:
                work()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    os.close(write)
    with open(read, "rb") as file:
        assert sorted(file.read().split()) == sorted(b"%016x" % n for n in range(count))
    assert listing(queue.spool) == {}
