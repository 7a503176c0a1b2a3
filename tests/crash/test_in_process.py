"""Stopped after any system call of the spool, or let down by it: a message is not there or whole, in one place, and what was
acted on is recorded.

The state table of minisend-spool(5), row by row.
"""

import errno
import os

import pytest
from crash.faulty import ERRORS
from spool.make import ID, MESSAGE, RecordingQueue, envelope, listing, put
from spool.seam import STOPPED, Seam, fail_at, in_child, stop_after

from minisend.envelope import DELAYED, DELIVERED, Facts, Outcome
from minisend.errors import SpoolError
from minisend.spool import disk
from minisend.spool.enqueue import enqueue
from minisend.spool.entry import Entry, NoRoom, Place
from minisend.spool.store import Queue

pytestmark = pytest.mark.crash

LARGE = [b"x" * 70 + b"\n"] * 8_000
NEXT = 1_700_000_600
FIRST = [Outcome(0, DELAYED, "4.4.1", "connection refused", at=1.0)]
FACTS = Facts(b"here.test", b"here.test", b"me@here.test", b"<1@here.test>")
SECOND = [Outcome(0, DELIVERED, "2.0.0", "taken", at=2.0)]


def stop_within(number: int) -> Seam:
    """A seam that stops in the middle of the call of this number, if it writes: half of the octets are there."""

    class Torn(Seam):
        def __getattr__(self, name: str) -> object:
            real = super().__getattr__(name)
            if name not in ("write", "pwrite"):
                return real

            def call(fd: int, octets: bytes, *offset: int) -> int:
                if len(self.calls) + 1 == number:
                    real(fd, octets[: len(octets) // 2], *offset)
                    os._exit(STOPPED)
                return real(fd, octets, *offset)

            return call

    return Torn()


def calls_of(action) -> list[str]:
    """The system calls of an undisturbed run, which is made in another process."""
    read, write = os.pipe()

    def run():
        seam = Seam()
        disk.posix = seam
        action()
        os.write(write, " ".join(seam.calls).encode())

    assert in_child(run) == 0
    os.close(write)
    with open(read, encoding="ascii") as file:
        return file.read().split()


@pytest.mark.parametrize("message", [[MESSAGE], LARGE], ids=["small", "large"])
def test_enqueue(tmp_path, message):
    def submit(spool: str) -> None:
        with RecordingQueue(spool) as queue:
            disk.posix = seam
            enqueue(queue.fd, envelope(), message, 0)
            os._exit(0)

    seam = Seam()
    spool = f"{tmp_path}/counted"
    RecordingQueue(spool).close()
    queue = RecordingQueue(spool)
    calls = calls_of(lambda: enqueue(queue.fd, envelope(), message, 0))
    queue.close()
    assert calls.count("fsync") == 2
    visible = set()
    for number in range(1, len(calls) + 1):
        for kind in (stop_after, stop_within):
            seam = kind(number)
            spool = f"{tmp_path}/{number}{kind.__name__}"
            code = in_child(lambda at=spool: submit(at))
            writes = calls[number - 1] in ("write", "pwrite")
            assert code == (STOPPED if kind is stop_after or writes else 0), (number, kind.__name__)
            with RecordingQueue(spool) as queue:
                found = listing(spool)
                assert found in ({"tmp": [ID]}, {"new": [ID]}, {})
                if "new" in found:
                    visible.add(number if code else 0)
                    check_whole(queue, b"".join(message))
                else:
                    assert code == STOPPED
                # what a restart does
                queue.sweep(10.0**12)
                assert queue.reported == []
                assert listing(spool) in ({"new": [ID]}, {})
    # it becomes visible with the rename, not before the file is durable, and stays so
    renamed = calls.index("rename") + 1
    assert calls[: renamed - 1].count("fsync") == 1
    assert visible - {0} == set(range(renamed, len(calls) + 1))


def check_whole(queue: Queue, message: bytes) -> None:
    [place] = queue.due(1.0, 1.0)
    entry = queue.claim(place)
    assert entry is not None
    with entry:
        assert entry.envelope == envelope()
        assert b"".join(entry.verified_octets(entry.first_octets(5), 0)) == message


def attempt(entry: Entry) -> None:
    if entry.facts is None:
        entry.keep_facts(FACTS)
    entry.reserve(1)
    entry.record(FIRST, 1)


def wait(entry: Entry) -> None:
    attempt(entry)
    entry.defer(NEXT)


def succeed(entry: Entry) -> None:
    attempt(entry)
    entry.record(SECOND, 2)
    entry.remove()


def succeed_at_once(entry: Entry) -> None:
    entry.reserve(1)
    entry.remove()


def fail(entry: Entry) -> None:
    attempt(entry)
    entry.move_to("failed")


def hold(entry: Entry) -> None:
    entry.move_to("hold")


# action, states in which a crash may leave the message, those of them that need a record to be there
ACTIONS = [
    (attempt, [{"new": [ID]}], []),
    (wait, [{"new": [ID]}, {"cur": [f"{NEXT}.{ID}"]}], [{"cur": [f"{NEXT}.{ID}"]}]),
    (succeed, [{"new": [ID]}, {}], []),
    (succeed_at_once, [{"new": [ID]}, {}], []),
    (fail, [{"new": [ID]}, {"failed": [ID]}], [{"failed": [ID]}]),
    (hold, [{"new": [ID]}, {"hold": [ID]}], []),
]


@pytest.mark.parametrize("block", [1, 4096], ids=["reserved", "in the last block"])
@pytest.mark.parametrize("torn", [False, True], ids=["a torn tail before", "clean before"][::-1])
@pytest.mark.parametrize(
    ("action", "states", "recorded"), ACTIONS, ids=[action[0].__name__ for action in ACTIONS]
)
def test_a_claim_and_what_follows(tmp_path, action, states, recorded, torn, block):
    def prepare(spool: str) -> None:
        with RecordingQueue(spool) as queue:
            place = put(queue)
            if torn:
                with open(f"{spool}/queue/new/{place.name}", "ab") as file:
                    file.write(b"\noutcome\t1\t0\thalf" + b"\0" * 100)

    def act(spool: str, seam: Seam | None) -> None:
        queue = RecordingQueue(spool)
        queue.block = block
        if seam is not None:
            disk.posix = seam
        [place] = queue.due(1.0, 1.0)
        entry = queue.claim(place)
        assert entry is not None
        with entry:
            action(entry)
        queue.close()

    prepare(f"{tmp_path}/counted")
    calls = calls_of(lambda: act(f"{tmp_path}/counted", None))
    assert ("ftruncate" in calls) or not torn
    assert ("posix_fallocate" in calls) == (block == 1 and action is not hold)
    seen = []
    for number in range(1, len(calls) + 1):
        for kind in (stop_after, stop_within):
            spool = f"{tmp_path}/{number}{kind.__name__}"
            prepare(spool)
            assert in_child(lambda at=spool, how=kind, n=number: act(at, how(n))) in (0, STOPPED)
            state = listing(spool)
            assert state in states, f"after call {number}, {calls[number - 1]}"
            seen.append(state)
            with RecordingQueue(spool) as queue:
                places = list(queue.places("new", "cur", "hold", "failed"))
                for place in places:
                    entry = queue.claim(place)
                    assert entry is not None
                    with entry:
                        assert b"".join(entry.verified_octets(b"", 0)) == MESSAGE
                        history = [(1, FIRST[0]), (2, SECOND[0])]
                        assert entry.outcomes == history[: len(entry.outcomes)]
                        assert entry.facts in ((None, FACTS) if not entry.outcomes else (FACTS,))
                        if state in recorded:
                            assert entry.outcomes == history[:1]
                        # the work can be done again
                        attempt(entry) if place.state in ("new", "cur") else None
                assert queue.reported == []
    assert seen[0] == states[0]
    assert seen[-1] == states[-1]


# change → what it raises when a call of it fails, with the name of each that may
CHANGES = {
    "reserve": (lambda entry: entry.reserve(1), {"posix_fallocate": NoRoom}),
    "record": (
        attempt,
        {"posix_fallocate": NoRoom, **dict.fromkeys(("pwrite", "ftruncate", "fsync"), OSError)},
    ),
    "note_reported": (
        lambda entry: entry.note_reported("failure 0"),
        dict.fromkeys(("pwrite", "fsync"), OSError),
    ),
    "requeue": (
        lambda entry: entry.requeue(5.0),
        dict.fromkeys(("pwrite", "fsync", "rename"), OSError),
    ),
    "defer": (lambda entry: entry.defer(NEXT), dict.fromkeys(("rename", "fsync"), OSError)),
    "move_to": (lambda entry: entry.move_to("hold"), dict.fromkeys(("rename", "fsync"), OSError)),
    "remove": (lambda entry: entry.remove(), dict.fromkeys(("unlink", "fsync"), OSError)),
}


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("change", CHANGES)
def test_each_call_of_a_change_fails(tmp_path, monkeypatch, change, error):
    """The caller is told, the message is whole and in one place, and the change can be made afterwards."""
    act, raises = CHANGES[change]

    def prepared(name: str) -> tuple[RecordingQueue, Entry]:
        queue = RecordingQueue(f"{tmp_path}/{name}", strict_sync=True)
        queue.block = 1
        entry = queue.claim(put(queue))
        assert entry is not None
        return queue, entry

    def undisturbed() -> list[str]:
        queue, entry = prepared("counted")
        seam = Seam()
        with queue, entry, monkeypatch.context() as patched:
            patched.setattr(disk, "posix", seam)
            act(entry)
            return list(seam.calls)

    calls = undisturbed()
    assert set(raises) <= set(calls)
    for number, call in enumerate(calls, 1):
        queue, entry = prepared(str(number))
        with queue:
            with entry, monkeypatch.context() as patched:
                patched.setattr(disk, "posix", fail_at(number, error))
                # A directory of another state is opened, and looked at, when it is first needed.
                expected = raises.get(call, (OSError, SpoolError))
                if call == "close":
                    act(entry)
                else:
                    with pytest.raises(expected, match=os.strerror(error)):
                        act(entry)
            found = listing(queue.spool)
            if found:
                [(state, [name])] = found.items()
                entry = queue.claim(Place(state, name))
                assert entry is not None
                with entry:
                    assert b"".join(entry.verified_octets(b"", 0)) == MESSAGE
                    assert entry.outcomes in ([], [(1, FIRST[0])])
                    assert entry.reported <= {"failure 0"}
                    act(entry)
            else:
                assert (change, call) == ("remove", "fsync")
            assert queue.reported == []
            assert listing(queue.spool) == {
                "defer": {"cur": [f"{NEXT}.{ID}"]},
                "move_to": {"hold": [ID]},
                "requeue": {"cur": [f"0000000000.{ID}"]},
                "remove": {},
            }.get(change, {"new": [ID]})


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_each_call_of_a_claim_fails(spool, monkeypatch, error):
    """It is not claimed, somebody is told, and nothing has changed but perhaps the torn tail, which was to go."""
    with RecordingQueue(spool) as queue:
        place = put(queue)
        queue.directory("new")
        file = f"{spool}/queue/new/{ID}"
        with open(file, "rb") as whole:
            good = whole.read()

        def claim(seam: Seam) -> Entry | None:
            with open(file, "wb") as torn:
                torn.write(good + b"\noutcome\t1\t0\thalf")
            queue.reported.clear()
            with monkeypatch.context() as patched:
                patched.setattr(disk, "posix", seam)
                return queue.claim(place)

        seam = Seam()
        entry = claim(seam)
        assert entry is not None
        entry.close()
        calls = list(seam.calls)
        assert calls == ["open", "stat", "fstat", "ftruncate"]
        for number in range(1, len(calls) + 1):
            opened = len(os.listdir("/proc/self/fd"))
            assert claim(fail_at(number, error)) is None
            assert len(os.listdir("/proc/self/fd")) == opened
            [(queue_id, what)] = queue.reported
            assert (queue_id, os.strerror(error) in what) == (ID, True)
            assert listing(spool) == {"new": [ID]}
            with open(file, "rb") as whole:
                assert whole.read().startswith(good)


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_what_could_not_be_synced_is_synced_by_the_next(spool, monkeypatch, error):
    """A failed fsync of one directory leaves both to be done: neither is forgotten."""
    with RecordingQueue(spool) as queue:
        entry = queue.claim(put(queue))
        assert entry is not None
        with entry:
            entry.defer(NEXT)
        for number in (1, 2):
            with monkeypatch.context() as patched:
                patched.setattr(disk, "posix", fail_at(number, error))
                with pytest.raises(OSError, match=os.strerror(error)):
                    queue.sync()
        seam = Seam()
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", seam)
            queue.sync()
            queue.sync()
        assert seam.about("fsync") == [
            ("fsync", f"{spool}/queue/cur"),
            ("fsync", f"{spool}/queue/new"),
        ]
