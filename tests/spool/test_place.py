"""Making and opening a queue: durable from the top down, and only where the caller is the owner."""

import errno
import os

import pytest

from minisend.errors import SpoolError
from minisend.spool import disk
from minisend.spool.enqueue import enqueue
from minisend.spool.place import STATES, open_queue, open_state
from minisend.spool.store import Queue
from spool.make import MESSAGE, envelope, listing
from spool.seam import STOPPED, Seam, fail_at, in_child, stop_after

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners: needs root")


def test_a_new_spool_is_made_durable_from_the_top(tmp_path, monkeypatch):
    """Each directory is in its parent on the disk before anything is put into it; ``tmp`` is the last."""
    steps = []

    def after(number, name, done):
        if done and name in ("mkdir", "fsync"):
            steps.append((name, seam.paths[-1]))

    seam = Seam(after=after)
    monkeypatch.setattr(disk, "posix", seam)
    top = str(tmp_path)
    os.close(open_queue(f"{top}/a/spool", create=True))
    queue = f"{top}/a/spool/queue"
    assert steps == [
        ("mkdir", f"{top}/a"),
        ("fsync", top),
        ("mkdir", f"{top}/a/spool"),
        ("fsync", f"{top}/a"),
        ("mkdir", queue),
        ("fsync", f"{top}/a/spool"),
        ("fsync", f"{top}/a/spool"),
        *[
            step
            for state in ("new", "cur", "hold", "failed", "tmp")
            for step in (("mkdir", f"{queue}/{state}"), ("fsync", queue))
        ],
    ]


def test_directories_are_the_callers_alone(spool):
    os.close(open_queue(spool, create=True))
    modes = {os.stat(path).st_mode & 0o7777 for path, _, _ in os.walk(spool)}
    assert modes == {0o700}


def test_a_queue_that_is_there_costs_nothing(spool, monkeypatch):
    os.close(open_queue(spool, create=True))
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    os.close(open_queue(spool, create=True))
    assert seam.calls == ["open", "stat"]


@pytest.mark.parametrize("number", range(1, 60))
def test_stopped_while_it_is_made(spool, number):
    """Whatever was made, the next submission completes it."""

    def make():
        disk.posix = stop_after(number)
        open_queue(spool, create=True)

    assert in_child(make) in (0, STOPPED)
    queue = open_queue(spool, create=True)
    enqueue(queue, envelope(), [MESSAGE], 0)
    os.close(queue)
    with Queue(spool) as opened:
        assert len(opened.due(1.0, 1.0)) == 1


def test_two_first_submissions_at_once(spool, monkeypatch):
    """What another process makes in between is taken, and its directory fsynced all the same."""
    others = []

    def before(number, name):
        if name == "mkdir" and seam.paths[-1] not in others:
            others.append(seam.paths[-1])
            try:
                os.mkdir(seam.paths[-1], 0o700)
            except FileNotFoundError:
                pass

    seam = Seam(before=before)
    monkeypatch.setattr(disk, "posix", seam)
    os.close(open_queue(f"{spool}/deeper", create=True))
    assert len(others) == 4 + len(STATES) - 1
    assert ("fsync", f"{spool}/deeper") in seam.about("fsync")
    assert listing(f"{spool}/deeper") == {}


def test_nothing_is_made_unasked(spool):
    with pytest.raises(SpoolError, match="spool/queue: No such file or directory"):
        open_queue(spool, create=False)
    assert not os.path.exists(spool)


@as_root
@pytest.mark.parametrize("foreign", ["queue", ""], ids=["queue", "spool without a queue"])
def test_somebody_elses(spool, foreign):
    os.makedirs(f"{spool}/{foreign}")
    os.chown(f"{spool}/{foreign}", 4242, 4242)
    with pytest.raises(SpoolError, match=r"spool.*: belongs to uid 4242, not to uid 0"):
        open_queue(spool, create=True)
    assert os.listdir(spool) == [foreign][: len(foreign)]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_a_queue_that_others_may_write(spool, mode):
    os.close(open_queue(spool, create=True))
    os.chmod(f"{spool}/queue", mode)
    with pytest.raises(SpoolError) as raised:
        open_queue(spool, create=True)
    assert str(raised.value) == (
        f"{spool}/queue: others can write there (mode {mode:04o}): chmod go-w it"
    )


@pytest.mark.parametrize("state", STATES)
def test_a_state(spool, state):
    """Opened to be written to only where nobody else may write; no descriptor stays open."""
    queue = open_queue(spool, create=True)
    path = f"{spool}/queue/{state}"
    try:
        fd = open_state(state, queue)
        assert os.path.samestat(os.fstat(fd), os.stat(path))
        os.close(fd)
        os.chmod(path, 0o770)
        with pytest.raises(SpoolError) as raised:
            open_state(state, queue)
        assert str(raised.value) == (
            f"queue/{state}: others can write there (mode 0770): chmod go-w it"
        )
        os.rename(path, path + ".away")
        os.symlink(path + ".away", path)
        with pytest.raises(SpoolError, match=rf"^queue/{state}: (Not a directory|Too many levels)"):
            open_state(state, queue)
        assert os.dup(queue) == fd
        os.close(fd)
    finally:
        os.close(queue)


@as_root
def test_a_state_of_somebody_elses(spool):
    queue = open_queue(spool, create=True)
    os.chown(f"{spool}/queue/new", 4242, 4242)
    with pytest.raises(SpoolError) as raised:
        open_state("new", queue)
    os.close(queue)
    assert str(raised.value) == "queue/new: belongs to uid 4242, not to uid 0"


def test_a_symbolic_link_is_no_queue(spool, tmp_path):
    os.mkdir(spool)
    os.mkdir(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", f"{spool}/queue")
    with pytest.raises(SpoolError, match=r"Not a directory|Too many levels"):
        open_queue(spool, create=True)
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("in_the_way", ["spool", "spool/queue", "spool/queue/tmp"])
def test_a_file_in_the_way(tmp_path, in_the_way):
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).touch()
    with pytest.raises(SpoolError), Queue(f"{tmp_path}/spool", create=True) as queue:
        enqueue(queue.fd, envelope(), [MESSAGE], 0)


def test_a_dangling_link_above_the_spool(tmp_path):
    os.symlink(tmp_path / "gone", tmp_path / "link")
    with pytest.raises(SpoolError, match="No such file or directory"):
        open_queue(f"{tmp_path}/link/spool", create=True)


def test_every_system_call_failing_in_turn(tmp_path, monkeypatch):
    """75 whichever call fails (``close`` may), and no descriptor stays open."""
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    os.close(open_queue(f"{tmp_path}/0", create=True))
    for number, call in enumerate(seam.calls, 1):
        monkeypatch.setattr(disk, "posix", fail_at(number, errno.EIO))
        opened = len(os.listdir("/proc/self/fd"))
        if call == "close":
            os.close(open_queue(f"{tmp_path}/{number}", create=True))
            continue
        with pytest.raises(SpoolError, match="Input/output error"):
            open_queue(f"{tmp_path}/{number}", create=True)
        assert len(os.listdir("/proc/self/fd")) == opened, f"call {number}, {call}"
