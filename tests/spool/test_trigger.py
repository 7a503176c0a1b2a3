"""The FIFO that wakes who serves the queue: who hears a poke, and who does not."""

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from minisend.spool import trigger as module
from minisend.spool.trigger import EVERYTHING, SUBMISSION, Trigger, poke

_LONG = 20.0


@pytest.fixture
def served(tmp_path):
    """A spool, and the trigger that is held in it."""
    trigger = Trigger(str(tmp_path))
    yield str(tmp_path), trigger
    trigger.close()


def test_nobody_serves(tmp_path: Path) -> None:
    spool = str(tmp_path)
    assert not poke(spool, SUBMISSION)  # nobody ever did
    Trigger(spool).close()
    assert not poke(spool, SUBMISSION)  # somebody did
    assert stat.filemode(os.stat(f"{spool}/state/trigger").st_mode) == "prw-------"


def test_pokes_are_read_together_and_once(served: tuple[str, Trigger]) -> None:
    spool, trigger = served
    assert poke(spool, SUBMISSION)
    assert poke(spool, EVERYTHING)
    assert trigger.wait(_LONG) == b"na"
    assert trigger.wait(0) == b""


def test_a_poke_ends_the_wait(served: tuple[str, Trigger]) -> None:
    spool, trigger = served
    heard: list[bytes] = []
    waiting = threading.Thread(target=lambda: heard.append(trigger.wait(_LONG)))
    waiting.start()
    assert poke(spool, SUBMISSION)
    waiting.join(_LONG)
    assert heard == [SUBMISSION]


def test_to_be_woken_is_not_to_be_poked(served: tuple[str, Trigger]) -> None:
    _, trigger = served
    trigger.wake()
    trigger.wake()
    assert trigger.wait(_LONG) == b""


def test_who_shares_the_fifo_does_not_take_the_other_ones_waking(
    served: tuple[str, Trigger],
) -> None:
    spool, one = served
    other = Trigger(spool)
    one.wake()
    assert other.wait(0) == b""
    assert one.wait(_LONG) == b""
    assert poke(spool, SUBMISSION)
    assert [one.wait(_LONG), other.wait(0)] == [SUBMISSION, b""]
    other.close()
    # The first is still there.
    assert poke(spool, SUBMISSION)


def test_who_leaves_takes_along_what_was_written_and_is_not_found_any_more(
    served: tuple[str, Trigger],
) -> None:
    spool, trigger = served
    assert poke(spool, SUBMISSION)
    assert trigger.leave() == SUBMISSION
    assert trigger.leave() == b""
    assert not poke(spool, SUBMISSION)
    trigger.wake()
    trigger.close()
    trigger.wake()  # nobody waits, and nothing else is written to


def test_after_close_nothing_is_written_to_what_has_the_descriptor_now(tmp_path: Path) -> None:
    trigger = Trigger(str(tmp_path))
    trigger.close()
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(4)]
    trigger.wake()
    for reading, writing in pipes:
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
        os.close(reading)
        os.close(writing)


def test_a_full_fifo_is_nobody_who_would_read(served: tuple[str, Trigger]) -> None:
    spool, trigger = served
    fd = os.open(f"{spool}/state/trigger", os.O_WRONLY | os.O_NONBLOCK)
    with open(fd, "wb", buffering=0) as full:
        while full.write(b"n" * 4096):
            pass
    assert not poke(spool, SUBMISSION)
    assert set(trigger.wait(_LONG)) == set(SUBMISSION)
    assert poke(spool, SUBMISSION)


def _regular(path: Path) -> None:
    path.write_text("kept")


def _link(path: Path) -> None:
    path.with_name("other").write_text("kept")
    path.symlink_to("other")


def _fifo_link(path: Path) -> None:
    os.mkfifo(path.with_name("other"))
    path.symlink_to("other")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_regular, id="a file"),
        pytest.param(_link, id="a link"),
        pytest.param(_fifo_link, id="a link to a FIFO"),
        pytest.param(Path.mkdir, id="a directory"),
        pytest.param(_socket, id="a socket"),
    ],
)
def test_what_is_no_fifo_is_neither_written_to_nor_read(tmp_path: Path, make) -> None:
    path = tmp_path / "state/trigger"
    path.parent.mkdir()
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    assert not poke(str(tmp_path), SUBMISSION)
    with pytest.raises(FileExistsError) as caught:
        Trigger(str(tmp_path))
    assert (caught.value.errno, caught.value.strerror, caught.value.filename) == (
        errno.EEXIST,
        "is there, and is no FIFO: remove it",
        str(path),
    )
    assert len(os.listdir("/proc/self/fd")) == before
    if path.is_file():
        assert path.read_text() == "kept"


def test_where_it_cannot_be_made_or_opened(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError):
        Trigger(str(tmp_path / "none"))

    def refused(*rest: object, **keywords: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    class Refusing:
        def __getattr__(self, name: str) -> object:
            return refused if name == "open" else getattr(os, name)

    monkeypatch.setattr(module, "posix", Refusing())
    assert not poke(str(tmp_path), SUBMISSION)
    with pytest.raises(PermissionError):
        Trigger(str(tmp_path))
