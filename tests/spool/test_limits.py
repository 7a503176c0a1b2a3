"""What a submission must leave free on the disk, and what one user may have in the queue."""

import errno
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from minisend.errors import SpoolFull
from minisend.spool import disk
from minisend.spool.enqueue import Floor, enqueue
from minisend.spool.limits import Usage
from spool.make import ID, MESSAGE, envelope, listing
from spool.seam import Seam

ROOT = pathlib.Path(__file__).resolve().parents[2]
M = 1 << 20
PIECE = b"x" * 65536


class Disk(Seam):
    """A file system that has ``free`` octets and ``inodes``; each octet written takes one of them."""

    def __init__(self, free=None, inodes=None, failing=0):
        super().__init__()
        self.free, self.inodes, self.failing = free, inodes, failing
        self.asked = 0

    def __getattr__(self, name):
        if name == "fstatvfs":
            return self._fstatvfs
        real = super().__getattr__(name)
        if name == "write":

            def write(fd, octets):
                if self.free is not None:
                    self.free -= len(octets)
                return real(fd, octets)

            return write
        return real

    def _fstatvfs(self, fd):
        self.asked += 1
        if self.failing:
            raise OSError(self.failing, os.strerror(self.failing))
        # f_bfree and f_ffree have what is root's alone; no system has it in units of an octet.
        return SimpleNamespace(
            f_frsize=512,
            f_blocks=0 if self.free is None else 1 << 40,
            f_bfree=1 << 40,
            f_bavail=0 if self.free is None else self.free // 512,
            f_files=0 if self.inodes is None else 1 << 40,
            f_ffree=1 << 40,
            f_favail=0 if self.inodes is None else self.inodes,
        )


def refusal(queue, monkeypatch, machine, floor, message=(MESSAGE,), size=0):
    """The words with which a message is refused, None when it is taken; the queue holds it then, and else nothing."""
    with monkeypatch.context() as patched:
        patched.setattr(disk, "posix", machine)
        try:
            enqueue(queue.fd, envelope(), message, 0, floor, size)
        except SpoolFull as exc:
            refused = exc
        else:
            refused = None
    if refused is not None:
        assert (refused.exit_code, refused.status) == (75, "4.3.1")
        assert listing(queue.spool) == {}
        return str(refused)
    assert listing(queue.spool) == {"new": [ID]}
    os.unlink(f"{queue.spool}/queue/new/{ID}")
    return None


@pytest.mark.parametrize(
    ("free", "inodes", "size", "words"),
    [
        pytest.param(16 * M, 100, 0, None, id="just enough"),
        pytest.param(
            16 * M - 512, 100, 0, "15.9M free, less than [spool] min_free (16M)", id="less"
        ),
        pytest.param(0, 0, 0, "0 octets free, less than [spool] min_free (16M)", id="nothing"),
        pytest.param(2048, 100, 0, "2K free, less than [spool] min_free (16M)", id="little"),
        pytest.param(24 * M, 100, 8 * M, None, id="and the message"),
        pytest.param(
            24 * M - 512,
            100,
            8 * M,
            "23.9M free, less than [spool] min_free (16M) and this message (8M) take",
            id="not for the message",
        ),
        pytest.param(
            3 << 30,
            100,
            5 << 30,
            "3G free, less than [spool] min_free (16M) and this message (5G) take",
            id="not for a very large message",
        ),
        pytest.param(
            16 * M, 99, 0, "99 free inodes, less than [spool] min_free_inodes (100)", id="inodes"
        ),
        pytest.param(None, 100, 8 * M, None, id="octets are not counted"),
        pytest.param(16 * M, None, 0, None, id="inodes are not counted"),
        pytest.param(None, None, 0, None, id="nothing is counted"),
    ],
)
def test_the_floor(queue, monkeypatch, free, inodes, size, words):
    floor = Floor("/q/queue", 16 * M, 100)
    expected = words and f"/q/queue: its file system has {words}"
    assert refusal(queue, monkeypatch, Disk(free, inodes), floor, size=size) == expected


@pytest.mark.parametrize(
    ("floor", "words"),
    [
        (Floor("/q", 0, 0), None),
        (Floor("/q", 0, 1), "/q: its file system has 0 free inodes, less than [spool] min_free_inodes (1)"),
        (Floor("/q", 1, 0), "/q: its file system has 0 octets free, less than [spool] min_free (1 octets)"),
        (None, None),
    ],
    ids=["neither", "inodes alone", "octets alone", "no floor"],
)  # fmt: skip
def test_0_is_no_floor(queue, monkeypatch, floor, words):
    assert refusal(queue, monkeypatch, Disk(0, 0), floor, size=1 << 30) == words


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM, errno.EIO], ids=errno.errorcode.get)
def test_a_file_system_that_does_not_answer_is_not_full(queue, monkeypatch, error):
    floor = Floor("/q", 16 * M, 100)
    assert refusal(queue, monkeypatch, Disk(0, 0, failing=error), floor) is None


def test_a_small_message_asks_once_and_before_anything_is_made_or_read(queue, monkeypatch):
    machine = Disk(20 * M, 100)
    assert refusal(queue, monkeypatch, machine, Floor("/q", 16 * M, 100)) is None
    assert machine.asked == 1
    unread = iter([MESSAGE])
    machine = Disk(0, 0)
    assert refusal(queue, monkeypatch, machine, Floor("/q", 16 * M, 100), unread) is not None
    assert (next(unread), machine.calls) == (MESSAGE, [])


@pytest.mark.parametrize("size", [0, 1], ids=["a pipe", "a file that grows"])
def test_one_message_does_not_eat_the_disk(queue, monkeypatch, size):
    """It is refused while it is read: within 2 MiB of the floor, and so with most of it left."""
    read = 0

    def large():
        nonlocal read
        for _ in range(64 * 16):
            read += len(PIECE)
            yield PIECE

    machine = Disk(20 * M, 100)
    words = refusal(queue, monkeypatch, machine, Floor("/q", 16 * M, 100), large(), size)
    assert words is not None
    assert words.endswith("M free, less than [spool] min_free (16M)")
    assert 4 * M <= read <= 6 * M + 3 * 65536
    assert machine.free > 13 * M


# -- the command


def sendmail(directory, keys, message, *, stdin=None):
    """sendmail on the real file system of ``directory``; exit code, standard output and standard error."""
    config = directory / "config.toml"
    config.write_text(f'[spool]\npath = "{directory}/spool"\n{keys}\n')
    done = subprocess.run(
        [
            *(sys.executable, "-I", str(ROOT / "minisend" / "__main__.py"), "sendmail"),
            *("-C", str(config), "-odq", "b@example.net"),
        ],
        capture_output=True,
        check=False,
        timeout=60,
        cwd="/",
        **({"input": message} if stdin is None else {"stdin": stdin}),
    )
    return done.returncode, done.stdout, done.stderr


def no_room(directory, what):
    line = f"sendmail: {directory}/spool/queue: its file system has {what}\n"
    return 75, b"", line.encode()


@pytest.fixture
def small_disk(tmp_path):
    """4 MiB and 40 inodes."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    options = "size=4m,nr_inodes=40,mode=700"
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", mounted], capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("needs mount")
    if done.returncode:
        assert os.geteuid() or not os.environ.get("CI")
        pytest.skip("mounts a small disk: needs root")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def left(directory):
    return sum(len(names) for _, _, names in os.walk(directory / "spool"))


def test_the_floor_of_a_real_disk(small_disk):
    code, out, err = sendmail(small_disk, 'min_free = "1M"\nmin_free_inodes = 5', b"x\n")
    assert (code, out, err, left(small_disk)) == (0, b"", b"", 1)
    code, out, err = sendmail(small_disk, "", b"x\n")
    what = "3.9M free, less than [spool] min_free (16M)"
    assert (code, out, err) == no_room(small_disk, what)
    free = os.statvfs(small_disk).f_favail
    what = f"{free} free inodes, less than [spool] min_free_inodes (41)"
    keys = 'min_free = "1M"\nmin_free_inodes = 41'
    assert sendmail(small_disk, keys, b"x\n") == no_room(small_disk, what)
    assert left(small_disk) == 1


def test_a_large_message_on_a_real_disk(small_disk, tmp_path):
    """From a file it is refused at once, what the shell has read not counted; from a pipe while it is read."""
    keys = 'min_free = "2500K"\nmin_free_inodes = 0'
    large = tmp_path / "message"
    large.write_bytes(b"x" * (3 * M))
    with large.open("rb") as file:
        what = "3.9M free, less than [spool] min_free (2.4M) and this message (3M) take"
        assert sendmail(small_disk, keys, b"", stdin=file) == no_room(small_disk, what)
    assert left(small_disk) == 0
    with large.open("rb") as file:
        os.lseek(file.fileno(), 2 * M, os.SEEK_SET)
        assert sendmail(small_disk, keys, b"", stdin=file) == (0, b"", b"")
    assert left(small_disk) == 1
    code, out, err = sendmail(small_disk, 'min_free = "2M"\nmin_free_inodes = 0', b"x" * (3 * M))
    assert (code, out) == (75, b"")
    assert err.startswith(f"sendmail: {small_disk}/spool/queue: its file system has ".encode())
    assert err.endswith(b" free, less than [spool] min_free (2M)\n")
    assert left(small_disk) == 1


def test_smtp_says_452(tmp_path):
    """And the session goes on."""
    config = tmp_path / "config.toml"
    config.write_text(f'[spool]\npath = "{tmp_path}/spool"\nmin_free = "1024G"\n')
    octets = b"MAIL FROM:<a@b.example>\nRCPT TO:<c@d.example>\nDATA\nx\n.\nQUIT\n"
    done = subprocess.run(
        [
            *(sys.executable, "-I", str(ROOT / "minisend" / "__main__.py"), "sendmail"),
            *("-C", str(config), "-odq", "-bs"),
        ],
        input=octets,
        capture_output=True,
        check=False,
        timeout=60,
    )
    *_, refused, bye = done.stdout.splitlines()
    said = f"452 4.3.1 {tmp_path}/spool/queue: its file system has "
    assert refused.startswith(said.encode())
    assert refused.endswith(b" free, less than [spool] min_free (1024G)")
    assert bye.startswith(b"221 ")
    assert (done.returncode, done.stderr, left(tmp_path)) == (0, b"", 0)


# -- users


@pytest.fixture
def clock():
    return SimpleNamespace(now=1000.0)


def usage(clock, messages=0, octets=0, rate=0):
    return Usage(messages=messages, octets=octets, rate=rate, clock=lambda: clock.now)


MANY = "uid 7 has 2 messages in the queue: [limits] messages_per_uid is 2"
LARGE = "uid 7 would have 101 octets in the queue: [limits] octets_per_uid is 100"
OFTEN = "uid 7 has sent 2 messages this hour: [limits] rate_per_uid is 2"


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        pytest.param({}, [(7, 1 << 40, None)] * 5, id="none"),
        pytest.param(
            {"messages": 2},
            [(7, 9, None), (7, 9, None), (7, 9, MANY), (8, 9, None), (7, -9, None), (7, 9, None), (7, 9, MANY)],
            id="messages",
        ),
        pytest.param(
            {"octets": 100},
            [(7, 60, None), (7, 41, LARGE), (7, 40, None), (7, 1, LARGE), (8, 100, None), (7, -60, None), (7, 60, None)],
            id="octets",
        ),
        pytest.param({"octets": 100}, [(7, 101, LARGE)], id="one that is larger than all may be"),
        pytest.param(
            {"rate": 2},
            [(7, 9, None), (7, -9, None), (7, 9, None), (7, 9, OFTEN), (8, 9, None), (7, -9, None), (7, 9, OFTEN)],
            id="rate",
        ),
        pytest.param(
            {"messages": 2, "octets": 100, "rate": 3},
            [(7, 101, LARGE), (7, 50, None), (7, 50, None), (7, 1, MANY), (7, -50, None), (7, 51, LARGE), (7, 50, None)],
            id="what is refused does not count",
        ),
    ],
)  # fmt: skip
def test_usage(clock, limits, steps):
    """Each step: uid, octets (below 0: of a message that leaves), answer."""
    counted = usage(clock, **limits)
    answers = []
    for uid, octets, _ in steps:
        if octets < 0:
            counted.released(uid, -octets)
            answers.append((uid, octets, None))
        else:
            answers.append((uid, octets, counted.admit(uid, octets)))
    assert answers == steps


def test_the_hour(clock):
    counted = usage(clock, rate=1)
    assert counted.admit(7, 1) is None
    clock.now += 3599.5
    assert counted.admit(7, 1) == "uid 7 has sent 1 messages this hour: [limits] rate_per_uid is 1"
    clock.now += 0.5
    assert counted.admit(7, 1) is None
    assert counted.admit(7, 1) is not None


def test_what_was_in_the_queue_before_counts_but_not_for_the_rate(clock):
    counted = usage(clock, messages=2, rate=1)
    counted.add(7, 10)
    assert counted.admit(7, 1) is None
    assert counted.admit(7, 1) == MANY
    counted.released(7, 10)
    assert counted.admit(7, 1) == "uid 7 has sent 1 messages this hour: [limits] rate_per_uid is 1"


def test_the_hour_of_another_process():
    """Whoever has counted more is right: each has seen some of what the other has."""
    now = [10_000.0]
    usage = Usage(messages=0, octets=0, rate=10, clock=lambda: now[0])
    for uid in (1, 1, 2):
        assert usage.admit(uid, 1) is None
    usage.restore(["hour 9000 -", "admitted 1 1", "admitted 2 5", "admitted 3 7", "admitted x"])
    counted = ["hour 9000 -", "admitted 1 2", "admitted 2 5", "admitted 3 7"]
    assert usage.rates == counted
    for hour in ("10001", "6400"):  # yet to come, and over
        usage.restore([f"hour {hour} -", "admitted 1 9"])
    assert usage.rates == counted


@pytest.mark.parametrize("now", [9000.0 + 3600, 8999.0], ids=["over", "set back"])
def test_another_hour(now):
    clock = [9000.0]
    usage = Usage(messages=0, octets=0, rate=1, clock=lambda: clock[0])
    assert usage.admit(1, 1) is None
    assert usage.admit(1, 1) is not None
    clock[0] = now
    assert usage.admit(1, 1) is None
    assert usage.rates == [f"hour {int(now)} -", "admitted 1 1"]
