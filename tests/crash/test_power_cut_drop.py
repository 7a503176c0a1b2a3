"""The power goes right after a submitter was told that the drop directory has its message, and while it is brought in.

As tests/soak/power_cut.py: the file system lies in a file, and what its device was given by then is what a power cut leaves.
Each time also with the call taken out on which it all rests: then the message has to be lost, or come twice, as otherwise
the test would show nothing.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from soak.power_cut import KINDS, PROGRAMS, FileSystem, Refused
from spool.system import ANN, LIMIT, OURS, System, a_system, said

from minisend.spool import drop, enqueue, ingest

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems: needs root"),
]


@pytest.fixture(params=KINDS)
def kind(request):
    missing = [name for name in PROGRAMS[request.param] if shutil.which(name) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    return request.param


@pytest.fixture
def directory():
    """One that other accounts can enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="minisend-power-") as made:
        os.chmod(made, 0o755)
        yield Path(made)


@contextmanager
def machine(kind: str, directory: Path) -> Iterator[tuple[FileSystem, System]]:
    """A system in a file system of its own, which has it on the disk."""
    disk = FileSystem(kind, directory / "image", directory / "mounted", patient=True)
    try:
        disk.__enter__()
    except Refused as exc:
        pytest.skip(f"no {kind} on a loop device here: {exc}")
    try:
        os.chmod(disk.at, 0o755)
        system = System(disk.at)
        os.sync()
        yield disk, system
    finally:
        disk.__exit__()


@contextmanager
def cut(disk: FileSystem, name: str) -> Iterator[System]:
    """What a power cut at this moment leaves, in order and mounted; for processes that are all at rest."""
    image = disk.image.with_name(name)
    for _ in range(500):
        before, idle = disk.written()
        if idle:
            subprocess.run(["cp", "--sparse=always", disk.image, image], check=True)
            if disk.written() == (before, True):
                break
        time.sleep(0.01)
    else:
        raise AssertionError("the device is written to although everybody is at rest")
    kind = next(each for each in KINDS if FileSystem(each, image, image).make == disk.make)
    copy = FileSystem(kind, image, image.with_name(f"{name}.mounted"))
    with copy:
        system = System.__new__(System)
        system.top = copy.at
        system.spool = str(copy.at / "spool")
        system.drop = f"{system.spool}/drop"
        yield system
    copy.check()
    image.unlink()


def message(number: int) -> bytes:
    return b"Subject: %d\n\n" % number + b"x" * (1 if number % 2 else 1_000_000)


@pytest.mark.parametrize("without", [False, True], ids=["as it is", "without the fsync"])
def test_what_was_put_is_there(directory, kind, without):
    lost = 0
    with machine(kind, directory) as (disk, system):
        for number in range(4):
            submission = bytes([number]) * 16
            system.as_user(
                ANN,
                lambda submission=submission, number=number: drop.put(
                    system.drop, submission, said(), [message(number)], LIMIT, owner=OURS
                ),
                (drop, "disk.fsync(fd)", "pass") if without else None,
            )
            with cut(disk, f"cut{number}") as after:
                there = {octets for _, octets in queued(after)}
            lost += message(number) not in there
            if not without:
                assert there == {message(each) for each in range(number + 1)}
    assert (lost > 0) is without


def queued(system: System) -> list[tuple[object, bytes]]:
    result = system.ingest()
    assert result.left == {}
    return system.queued()


@pytest.mark.parametrize("without", [False, True], ids=["as it is", "without a tombstone"])
def test_what_was_brought_in_and_delivered_does_not_come_back(directory, kind, without):
    """The drop directory is a mount of its own: its removals are not durable because the queue's are."""
    back = 0
    with machine(kind, directory) as (disk, system), a_system() as queue:
        drop_of_its_own, queue.drop = queue.drop, system.drop
        for number in range(3):
            queue.put(ANN, bytes([number]) * 16, message(number))

            def no_settling():
                # The run was killed before that.
                ingest._Run._settle = lambda self: None

            out = (enqueue, "disk.set_mode(fd, UNACKNOWLEDGED)", "pass") if without else None
            assert len(queue.ingest(out, then=no_settling).ingested) == 1
            assert queue.leaf("new") == []
            queue.remove_all()
            with cut(disk, f"cut{number}") as after:
                queue.drop = after.drop
                assert bytes([number]).hex() * 16 in after.leaf("new")
                back += len(queue.ingest().ingested)
                assert after.leaf("new") == []
                queue.drop = system.drop
            queue.remove_all()
        queue.drop = drop_of_its_own
    assert (back > 0) is without


def test_while_it_is_brought_in(directory, kind):
    """Stopped at any change, then the power goes: it is in the queue, or in the drop directory, and comes in once."""
    stops = ("rename", "unlink")
    with machine(kind, directory) as (disk, system):
        for number, call in enumerate(stops):
            submission = bytes([number]) * 16
            system.put(ANN, submission, message(number))

            def stopping(call=call):
                real = getattr(ingest.disk, call)

                def stop(*arguments):
                    real(*arguments)
                    os._exit(99)

                setattr(ingest.disk, call, stop)

            with pytest.raises(Exception, match="99"):
                system.ingest(then=stopping)
            with cut(disk, f"cut{number}") as after:
                assert message(number) in {octets for _, octets in queued(after)}
                assert after.leaf("new") == []
