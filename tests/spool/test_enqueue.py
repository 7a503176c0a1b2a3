"""A message is in ``new`` whole and durable, or the caller gets an error and nothing of it is left."""

import errno
import os

import pytest

from minisend.errors import MessageTooBig, SpoolError
from minisend.spool import disk
from minisend.spool.enqueue import Counter, enqueue, new_queue_id
from minisend.spool.entry import Place
from minisend.spool.record import format_head, format_trailer, head_crc
from minisend.spool.store import Queue
from spool.make import ID, MESSAGE, claimed, envelope, listing
from spool.seam import Seam, fail_at

LARGE = [(b"x" * 70 + b"\n") * 1000] * 31


def whole(message: bytes) -> bytes:
    """The queue file of this message."""
    counter = Counter()
    if message:
        counter.add(message)
    head = format_head(envelope(), len(message))
    return head + message + format_trailer(counter.trailer(head_crc(head)))


def on_disk(queue: Queue) -> bytes:
    with open(f"{queue.spool}/queue/new/{ID}", "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([MESSAGE], id="one piece"),
        pytest.param([b"", b"Subject: x\n", b"", b"\n", b"body"], id="empty pieces"),
        pytest.param([], id="nothing"),
        pytest.param([b"\0\r\n.\n\nminisend-queue 1\n\n\xff"], id="any octets"),
        pytest.param(LARGE, id="many pieces"),
        pytest.param([b"".join(LARGE)], id="one large piece"),
        pytest.param([b"x" * 131072], id="just as much as is gathered"),
        pytest.param([b"x" * 131072, b"y"], id="one octet more"),
    ],
)
def test_the_file_in_full(queue, pieces):
    enqueue(queue.fd, envelope(), iter(pieces), 0)
    assert on_disk(queue) == whole(b"".join(pieces))
    assert listing(queue.spool) == {"new": [ID]}


def test_the_file_is_the_callers_alone(queue):
    enqueue(queue.fd, envelope(), [MESSAGE], 0)
    assert os.stat(f"{queue.spool}/queue/new/{ID}").st_mode == 0o100600


def test_durable_in_this_order(queue, monkeypatch):
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    enqueue(queue.fd, envelope(), [MESSAGE], 0)
    top = f"{queue.spool}/queue"
    assert seam.about("open", "write", "fsync", "rename") == [
        ("open", f"{top}/tmp"),
        ("open", f"{top}/tmp/{ID}"),
        ("write", f"{top}/tmp/{ID}"),
        ("fsync", f"{top}/tmp/{ID}"),
        ("open", f"{top}/new"),
        ("rename", f"{top}/tmp/{ID}"),
        ("fsync", f"{top}/new"),
    ]


@pytest.mark.parametrize(
    ("size", "limit", "taken"),
    [
        (10, 10, True),
        (11, 10, False),
        (10, 0, True),
        (700_000, 700_000, True),
        (700_001, 700_000, False),
    ],
)
def test_limit(queue, size, limit, taken):
    message = [b"x" * 9973] * (size // 9973) + [b"x" * (size % 9973)]
    if taken:
        enqueue(queue.fd, envelope(), message, limit)
        assert on_disk(queue) == whole(b"x" * size)
    else:
        with pytest.raises(MessageTooBig, match=f"larger than max_message_size .{limit} octets"):
            enqueue(queue.fd, envelope(), message, limit)
        assert listing(queue.spool) == {}


def test_reading_stops_at_the_limit(queue):
    def endless():
        while True:
            yield b"x" * 1000

    with pytest.raises(MessageTooBig):
        enqueue(queue.fd, envelope(), endless(), 1_000_000)
    assert listing(queue.spool) == {}


@pytest.mark.parametrize("failure", [ValueError("bad"), KeyboardInterrupt(15), MemoryError()])
@pytest.mark.parametrize("pieces", [[], [MESSAGE], LARGE], ids=["first", "later", "much later"])
def test_when_reading_fails_nothing_is_left(queue, pieces, failure):
    def broken():
        yield from pieces
        raise failure

    with pytest.raises(type(failure)) as raised:
        enqueue(queue.fd, envelope(), broken(), 0)
    assert raised.value is failure
    assert listing(queue.spool) == {}


@pytest.mark.parametrize("state", ["tmp", "new"])
def test_a_name_that_is_taken_stays_the_others(queue, state):
    other = f"{queue.spool}/queue/{state}/{ID}"
    with open(other, "wb") as file:
        file.write(b"somebody else's")
    with pytest.raises(SpoolError, match=ID):
        enqueue(queue.fd, envelope(), [MESSAGE], 0)
    assert listing(queue.spool) == {state: [ID]}
    with open(other, "rb") as file:
        assert file.read() == b"somebody else's"


def test_a_symbolic_link_in_the_way_is_not_followed(queue, tmp_path):
    os.symlink(tmp_path / "target", f"{queue.spool}/queue/tmp/{ID}")
    with pytest.raises(SpoolError):
        enqueue(queue.fd, envelope(), [MESSAGE], 0)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("missing", ["tmp", "new"])
def test_a_state_directory_is_missing(queue, missing):
    os.rmdir(f"{queue.spool}/queue/{missing}")
    with pytest.raises(SpoolError, match=f"queue/{missing}: No such file or directory"):
        enqueue(queue.fd, envelope(), [MESSAGE], 0)
    os.mkdir(f"{queue.spool}/queue/{missing}")
    assert listing(queue.spool) == {}


ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS]


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("message", [[MESSAGE], LARGE], ids=["small", "large"])
def test_every_system_call_failing_in_turn(queue, monkeypatch, message, error):
    """Exit code 75 and nothing left, whichever call fails; only advice and ``close``, after every fsync, may."""
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    enqueue(queue.fd, envelope(), message, 0)
    calls = seam.calls
    os.unlink(f"{queue.spool}/queue/new/{ID}")
    assert set(calls) >= {"open", "write", "fsync", "stat", "rename", "close"}
    assert ({"pwrite", "posix_fadvise"} <= set(calls)) == (message is LARGE)
    for number, call in enumerate(calls, 1):
        monkeypatch.setattr(disk, "posix", fail_at(number, error))
        if call in ("close", "posix_fadvise"):
            enqueue(queue.fd, envelope(), message, 0)
            assert listing(queue.spool) == {"new": [ID]}
            assert on_disk(queue) == whole(b"".join(message))
            os.unlink(f"{queue.spool}/queue/new/{ID}")
            continue
        with pytest.raises(SpoolError, match=os.strerror(error)) as raised:
            enqueue(queue.fd, envelope(), message, 0)
        assert (raised.value.exit_code, raised.value.status) == (75, "4.3.0")
        assert listing(queue.spool) == {}, f"call {number}, {call}"


def test_a_signal_during_any_system_call(queue, monkeypatch):
    """Its exception is raised when the call has returned, before anything else of ours runs."""
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    enqueue(queue.fd, envelope(), [MESSAGE], 0)
    calls = list(seam.calls)
    os.unlink(f"{queue.spool}/queue/new/{ID}")
    for number in range(2, calls.index("close") + 1):

        def after(this, name, done, number=number):
            if this == number:
                raise KeyboardInterrupt(15)

        monkeypatch.setattr(disk, "posix", Seam(after=after))
        with pytest.raises(KeyboardInterrupt):
            enqueue(queue.fd, envelope(), [MESSAGE], 0)
        assert listing(queue.spool) == {}, f"call {number}, {calls[number - 1]}"


def test_a_disk_that_refuses_even_the_cleaning_up(queue, monkeypatch):
    """What stays is in ``tmp``, which is no message."""

    def before(number, name):
        if name in ("fsync", "unlink"):
            raise OSError(errno.EIO, "it is gone")

    monkeypatch.setattr(disk, "posix", Seam(before=before))
    with pytest.raises(SpoolError, match="it is gone"):
        enqueue(queue.fd, envelope(), [MESSAGE], 0)
    assert listing(queue.spool) == {"tmp": [ID]}


@pytest.mark.parametrize("durable", [True, False], ids=["the fsync works", "the fsync fails"])
def test_nobody_takes_it_before_it_is_durable(queue, monkeypatch, durable):
    """It has its name then, and a flusher may find it; but who is told that it was not kept sends it again."""
    claims = []

    def before(number, name):
        if name == "fsync" and seam.calls[-2] == "rename":
            assert listing(queue.spool) == {"new": [ID]}
            with Queue(queue.spool) as another:
                claims.append(another.claim(Place("new", ID)))
            if not durable:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    seam = Seam(before)
    with monkeypatch.context() as patched:
        patched.setattr(disk, "posix", seam)
        if durable:
            enqueue(queue.fd, envelope(), [MESSAGE], 0)
        else:
            with pytest.raises(SpoolError, match="Input/output error"):
                enqueue(queue.fd, envelope(), [MESSAGE], 0)
    assert claims == [None]
    assert listing(queue.spool) == ({"new": [ID]} if durable else {})
    if durable:
        claimed(queue, Place("new", ID)).close()


def test_who_has_found_it_before_it_failed_gets_nothing(queue, monkeypatch):
    """Opened while it had its name, locked when it had none any more."""
    theirs = []

    def before(number, name):
        if name == "fsync" and seam.calls[-2] == "rename":
            theirs.append(disk.open_claiming(ID, queue.directory("new")))
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    seam = Seam(before)
    with monkeypatch.context() as patched:
        patched.setattr(disk, "posix", seam)
        with pytest.raises(SpoolError):
            enqueue(queue.fd, envelope(), [MESSAGE], 0)
    (fd,) = theirs
    assert disk.lock(fd)
    assert not disk.is_at(fd, ID, queue.directory("new"))
    os.close(fd)


def test_a_write_that_takes_only_a_part_is_continued(queue, monkeypatch):
    class Reluctant(Seam):
        def __getattr__(self, name):
            if name == "write":
                return lambda fd, octets: os.write(fd, octets[:50_000])
            if name == "pwrite":
                return lambda fd, octets, offset: os.pwrite(fd, octets[:3], offset)
            return super().__getattr__(name)

    monkeypatch.setattr(disk, "posix", Reluctant())
    enqueue(queue.fd, envelope(), LARGE, 0)
    assert on_disk(queue) == whole(b"".join(LARGE))


def test_queue_ids():
    assert new_queue_id(b"seed") == new_queue_id(b"seed") == "b9cf2018c1629ad5"
    assert new_queue_id(b"seed") != new_queue_id(b"seee")
