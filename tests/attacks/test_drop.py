"""The attacks on a directory that everybody writes to, each made for real by another account, and each a second time with
its defence taken out of the source: then it has to succeed, or the test would show nothing.

The numbers are those of the list in the design's notes.  Not here: A18, A20, A23 and A24, which are about containers, other
roots, the listing of mail and SELinux; A5, a mount of its own, is hardening that does not hold (A5b).
"""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import time

import pytest
from spool.system import ANN, BOB, LIMIT, MESSAGE, OURS, ROOT, Ended, a_system, said

from minisend.delivery.pickup import Pickup
from minisend.envelope import DROP, SOCKET
from minisend.errors import SpoolError
from minisend.spool import disk, drop, ingest, place
from minisend.spool.limits import Usage

pytestmark = pytest.mark.skipif(not ROOT, reason="needs other accounts: root")

LIBC = ctypes.CDLL(None, use_errno=True)
NAME = "0123456789abcdef" * 2
# Seconds after which a process that waits for a lease or a writer is taken for stuck: the lease would be 45.
STUCK = 3


def kernel_protects_links():
    """fs.protected_symlinks: in a sticky directory the kernel follows nobody's link for somebody else."""
    with open("/proc/sys/fs/protected_symlinks") as file:
        return file.read().strip() != "0"


@pytest.fixture(params=[False, True], ids=["defended", "defence out"])
def out(request):
    return request.param


def record(message=MESSAGE):
    """The octets of a drop file."""
    with a_system() as other:
        name = other.put(message=message).hex()
        with open(f"{other.drop}/new/{name}", "rb") as file:
            return file.read()


def errno_of(action):
    """Name of the error of a system call, "" when there is none."""
    try:
        action()
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return ""


def write(path, octets, mode=0o644):
    with open(path, "wb") as file:
        file.write(octets)
    os.chmod(path, mode)


def watch(path):
    """inotify_add_watch for everything."""
    fd = LIBC.inotify_init()
    try:
        if LIBC.inotify_add_watch(fd, path.encode(), 0xFFF) < 0:
            raise OSError(ctypes.get_errno(), path)
    finally:
        os.close(fd)


GROUP = (ingest, "status.st_gid != self._gid", "False")
IS_REGULAR = (ingest, "_REGULAR = 0o100000", "_REGULAR = _TYPE = 0")


def test_a1_read_list_or_watch_the_mail_of_others(out):
    with a_system(0o3777 if out else place.LEAF_MODE) as system:
        submission = os.urandom(16)
        system.as_user(
            ANN,
            lambda: drop.put(system.drop, submission, said(), [MESSAGE], LIMIT),
            (drop, "_MODE = 0o640", "_MODE = 0o644") if out else None,
        )
        new = f"{system.drop}/new"
        known = f"{new}/{submission.hex()}"
        found = system.as_user(
            BOB,
            lambda: [
                errno_of(lambda: os.listdir(new)),
                errno_of(lambda: watch(new)),
                errno_of(lambda: os.close(os.open(known, os.O_RDONLY))),
                # All that a known name tells, so it must be nobody's to guess.
                os.stat(known).st_size > 0,
            ],
        )
    assert found == (["", "", "", True] if out else ["EACCES"] * 3 + [True])


def test_a2_take_the_mail_of_others_away(out):
    with a_system(0o2733 if out else place.LEAF_MODE) as system:
        submission = os.urandom(16)
        system.as_user(
            ANN,
            lambda: drop.put(system.drop, submission, said(), [MESSAGE], LIMIT),
            (place, "if not status.st_mode & _STICKY:", "if False:") if out else None,
        )
        path = f"{system.drop}/new/{submission.hex()}"
        found = system.as_user(
            BOB,
            lambda: [
                errno_of(lambda: os.rename(path, path + "x")),
                errno_of(lambda: os.unlink(path + "x" if os.path.exists(path + "x") else path)),
            ],
        )
        assert found == (["", ""] if out else ["EPERM", "EPERM"])
        assert system.leaf("new") == ([] if out else [submission.hex()])


def test_a2_nothing_is_put_where_others_could_take_it_away(system, out):
    os.chmod(f"{system.drop}/new", 0o2733)

    def put():
        try:
            place_out = (place, "if not status.st_mode & _STICKY:", "if False:")
            system.as_user(
                ANN,
                lambda: drop.put(system.drop, b"x" * 16, said(), [MESSAGE], LIMIT),
                place_out if out else None,
            )
        except SpoolError:
            return False
        return True

    assert put() is out


def test_a3_roots_file_renamed_into_the_drop(system, out):
    """The owner of a file is no proof; its group keeps this form out."""
    home = system.home(ANN)
    write(f"{home}/log", record())
    system.as_user(ANN, lambda: os.rename(f"{home}/log", f"{system.drop}/new/{NAME}"))
    result = system.ingest(GROUP if out else None)
    if out:
        assert [uid for _, uid, _ in result.ingested] == [0]
    else:
        assert result.ingested == []
        assert result.refused == {ingest._GROUP_WRONG: 1}


def forged(system, out, where):
    """What is queued of a file that root was tricked into making, with our group."""
    result = system.ingest((ingest, "channel=DROP", 'channel="socket"') if out else None)
    assert [uid for _, uid, _ in result.ingested] == [0], where
    [(envelope, _)] = system.queued()
    # It came in as root's, as it claims: what is not believed is the claim.
    assert (envelope.uid, envelope.channel) == (0, SOCKET if out else DROP)


def test_a4_root_writes_in_a_directory_that_was_made_in_the_drop(system, out):
    home = system.home(ANN)
    inside, outside = f"{system.drop}/tmp/evil", f"{home}/evil"

    def prepare():
        os.mkdir(inside)
        os.rename(inside, outside)

    system.as_user(ANN, prepare)
    write(f"{outside}/log", record())
    assert os.stat(f"{outside}/log").st_gid == OURS
    system.as_user(ANN, lambda: os.rename(f"{outside}/log", f"{system.drop}/new/{NAME}"))
    forged(system, out, "A4")


def test_a5b_root_writes_through_a_link_into_the_drop(system, out):
    home = system.home(ANN)
    system.as_user(ANN, lambda: os.symlink(f"{system.drop}/new/{NAME}", f"{home}/log"))
    write(f"{home}/log", record())
    forged(system, out, "A5b")


def test_a6_a_file_of_others_linked_into_the_drop(system, out):
    """As it can be done where fs.protected_hardlinks is 0."""
    write(f"{system.home(BOB)}/letter", record())
    os.chown(f"{system.home(BOB)}/letter", BOB, BOB)
    os.link(f"{system.home(BOB)}/letter", f"{system.drop}/new/{NAME}")
    result = system.ingest(GROUP if out else None)
    assert [uid for _, uid, _ in result.ingested] == [BOB] * out
    assert result.refused == ({} if out else {ingest._GROUP_WRONG: 1})


def test_a7_written_to_while_it_is_read(system, out):
    """Through a mapping, so that its time stays as it is: what is checked is what was read, and not the file."""
    name = system.put(ANN, message=b"x" * 1_000_000).hex()
    writer = os.open(f"{system.drop}/new/{name}", os.O_RDWR)

    def scribble():
        mapping = mmap.mmap(writer, 0)
        # The time of a file is that of the first store to a page that was not written to since the disk has it.
        mapping[900_000] = mapping[900_000]
        real = os.read
        count = 0

        def read(fd, length):
            nonlocal count
            count += 1
            octets = real(fd, length)
            if count == 2:
                mapping[900_000:900_004] = b"evil"
            return octets

        ingest.posix = Calls(read=read)

    check = '(trailer.octets, trailer.digest) != (size, f"{crc:08x}")'
    result = system.ingest((ingest, check, "False") if out else None, then=scribble)
    os.close(writer)
    assert len(result.ingested) == out
    why = "its message was changed after it was written"
    assert result.refused == ({} if out else {why: 1})


class Calls:
    """``posix``, but for some of its functions."""

    def __init__(self, **calls):
        self.__dict__.update(calls)

    def __getattr__(self, name):
        return getattr(os, name)


def test_a8_a_second_link_makes_nobodys_mail_refused(system, out):
    """Bernstein's: who refuses a file with two links lets others destroy mail.  The defence is not to ask."""
    name = system.put(ANN).hex()
    os.link(f"{system.drop}/new/{name}", f"{system.home(BOB)}/kept")
    result = system.ingest(
        (ingest, "status.st_gid != self._gid", "status.st_nlink > 1") if out else None
    )
    assert len(result.ingested) == (not out)


KINDS = {
    "fifo": lambda path: os.mkfifo(path, 0o666),
    "link": lambda path: os.symlink("../../letter", path),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(path),
    "device": lambda path: None,
    "mode 0000": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0)),
    "directory": os.mkdir,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a9_what_is_no_file(system, kind):
    """Neither waited for nor taken, in nobody's way, and gone after 36 hours."""
    path = f"{system.drop}/new/{NAME}"
    write(f"{system.spool}/letter", record())
    os.chown(f"{system.spool}/letter", OURS, OURS)
    system.as_user(ANN, lambda: KINDS[kind](path))
    if kind == "device":
        os.mknod(path, 0o020666, os.makedev(1, 5))
        os.chown(path, ANN, OURS)
    system.put(BOB)
    result = system.ingest()
    assert [uid for _, uid, _ in result.ingested] == [BOB]
    assert sum(result.refused.values()) == 1
    result = system.ingest(make=lambda: {"clock": lambda: time.time() + 37 * 3600})
    assert (result.removed, system.leaf("new")) == (1, [])


def test_a9_a_link_to_what_only_we_may_read(system, out):
    write(f"{system.spool}/letter", record(), 0o600)
    os.chown(f"{system.spool}/letter", OURS, OURS)
    system.as_user(ANN, lambda: os.symlink("../../letter", f"{system.drop}/new/{NAME}"))

    def follow():
        if out:
            disk._READ &= ~os.O_NOFOLLOW
            # Which would find that the name is the link's.
            disk.is_at = lambda fd, name, at: True

    taken = len(system.ingest(IS_REGULAR if out else None, then=follow).ingested)
    # Ours is the second defence where the kernel has one.
    assert taken == (out and not kernel_protects_links())


def stuck(system, out, then):
    """Whether a run of ingest waits for something; it is ended then."""

    def run():
        signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
        signal.alarm(STUCK)
        then()
        ingest.Ingest(system.spool, system.drop, limit=LIMIT).run()
        return False

    try:
        return system.as_user(OURS, run, IS_REGULAR if out else None)
    except Ended:
        return True


def test_a9_a_fifo_that_nobody_writes_to(system, out):
    system.as_user(ANN, lambda: os.mkfifo(f"{system.drop}/new/{NAME}", 0o666))
    assert stuck(system, out, blocking if out else lambda: None) is out


def blocking():
    disk._READ &= ~os.O_NONBLOCK


def test_a10_a_lease_on_ones_own_file(system, out):
    name = system.put(ANN).hex()
    path = f"{system.drop}/new/{name}"
    told, tell = os.pipe()
    wait, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        os.setresgid(ANN, ANN, ANN)
        os.setresuid(ANN, ANN, ANN)
        fd = os.open(path, os.O_RDWR)
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.write(tell, b"x")
        os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    try:
        assert os.read(told, 1) == b"x"
        assert stuck(system, out, blocking if out else lambda: None) is out
        if not out:
            assert system.ingest().left == {ingest._BUSY: 1}
    finally:
        os.close(end)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)
    # It only kept its owner's own mail.
    assert len(system.ingest().ingested) == 1


def test_a11_a_size_that_takes_no_room(system, out):
    """1 TiB of nothing: no more is read than the limit."""
    size = 1 << 40
    octets = record().replace(b"size 000000000000023", b"size %015d" % size)
    length = octets.index(b"\n\n") + 2

    def make():
        write(f"{system.drop}/new/{NAME}", octets, 0o640)
        os.truncate(f"{system.drop}/new/{NAME}", length + size + 70)

    system.as_user(ANN, make)
    total = 0

    def count():
        real = os.read

        def read(fd, length):
            nonlocal total
            got = real(fd, length)
            total += len(got)
            if total > 2 * LIMIT:
                raise OSError(errno.EFBIG, "enough")
            return got

        ingest.posix = Calls(read=read)

    unlimited = {"limit": 0} if out else {}
    result = system.ingest(make=lambda: unlimited, then=count)
    assert result.ingested == []
    assert result.left == ({ingest._SPOOL: 1} if out else {ingest._LARGE: 1})


def test_a11_a_size_of_its_own(system, out):
    """A file that is longer than its head says is no message, and is not read to its end."""
    name = system.put(ANN).hex()
    os.truncate(f"{system.drop}/new/{name}", 1 << 40)
    result = system.ingest(
        (ingest, "if not 0 < status.st_size - length - size <= _TAIL:", "if False:")
        if out
        else None
    )
    assert result.ingested == []
    assert ("it has not the length it says" in result.refused) is not out


def test_a12_a_directory_that_cannot_be_removed(system, out):
    """It stays, and keeps nothing else from being done, now and when it is old enough to go."""

    def make():
        os.makedirs(f"{system.drop}/new/{NAME}/x")

    system.as_user(ANN, make)
    system.put(BOB)
    without = (
        ingest,
        "return  # a directory with something in it, in which only its owner may write",
        "raise",
    )
    later = {"clock": lambda: time.time() + 37 * 3600}
    try:
        result = system.ingest(without if out else None, make=lambda: later)
    except SpoolError:
        assert out
        return
    assert not out
    assert [uid for _, uid, _ in result.ingested] == [BOB]
    assert (result.refused, result.removed) == ({ingest._KIND: 1}, 0)
    assert system.leaf("new") == [NAME]


def test_a12_it_is_not_looked_at_over_and_over(system):
    """What serves the queue looks again when something changed, and a directory that stays is no change."""
    system.as_user(ANN, lambda: os.makedirs(f"{system.drop}/new/{NAME}/x"))

    def looks():
        from minisend.config.sections import Config, Limits, Spool, Submission

        runs = []
        pickup = Pickup(
            Config(
                file=None,
                spool=Spool(system.spool),
                submission=Submission(drop=system.drop),
                limits=Limits(),
            ),
            None,
        )
        pickup.run = lambda: runs.append(1) or ingest.Result()
        for _ in range(100):
            pickup.look()
        return len(runs)

    assert system.as_user(OURS, looks) == 1


def test_a13_more_than_ones_share(system, out):
    for _ in range(10):
        system.put(ANN)
    system.put(BOB)
    usage = Usage(messages=3, octets=0, rate=0, clock=lambda: 0.0)
    result = system.ingest(make=lambda: {} if out else {"usage": usage})
    uids = [uid for _, uid, _ in result.ingested]
    assert (uids.count(ANN), uids.count(BOB)) == (10 if out else 3, 1)


def test_a14_rewritten_while_it_is_read(system, out):
    """It is looked at again when its owner is done with it: what is in the making is not for the dustbin."""
    message = b"x" * 1_000_000
    name = system.put(ANN, message=message).hex()
    path = f"{system.drop}/new/{name}"

    def scribble():
        real = os.read
        count = 0

        def read(fd, length):
            nonlocal count
            count += 1
            if count == 3:
                with open(writer, "r+b", closefd=False) as file:
                    file.seek(700_000)
                    file.write(b"other")
            return real(fd, length)

        ingest.posix = Calls(read=read)

    writer = os.open(path, os.O_RDWR)
    without = (
        ingest,
        "if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):",
        "if False:",
    )
    result = system.ingest(without if out else None, then=scribble)
    os.close(writer)
    assert result.ingested == []
    assert result.left == ({} if out else {ingest._CHANGED: 1})


def test_a15_a_file_given_our_group(system, out):
    """The kernel lets nobody do that who is not in it; a file with another one is not taken."""
    home = system.home(ANN)
    octets = record()

    def make():
        write(f"{home}/letter", octets, 0o644)
        failed = errno_of(lambda: os.chown(f"{home}/letter", -1, OURS))
        os.rename(f"{home}/letter", f"{system.drop}/new/{NAME}")
        return failed

    assert system.as_user(ANN, make) == "EPERM"
    assert len(system.ingest(GROUP if out else None).ingested) == out


def test_a16_a_umask_that_leaves_nobody_a_right(system, out):
    def put():
        drop.put(system.drop, b"x" * 16, said(), [MESSAGE], LIMIT, owner=OURS)

    system.as_user(
        ANN, put, (drop, "disk.set_mode(fd, _MODE)", "pass") if out else None, umask=0o077
    )
    result = system.ingest()
    assert len(result.ingested) == (not out)
    assert result.refused == ({ingest._UNREADABLE: 1} if out else {})


def in_user_namespace():
    """Become root of a namespace of one's own."""
    uid, gid = os.getuid(), os.getgid()
    LIBC.prctl(
        4, 1, 0, 0, 0
    )  # PR_SET_DUMPABLE: who has changed its uid may not write there otherwise
    if LIBC.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    assert os.getuid() == 0


def test_a17_from_a_user_namespace(system, out):
    """Root's directories are seen as nobody's there; the real uid is what ingest sees."""

    def put():
        in_user_namespace()
        drop.put(system.drop, b"x" * 16, said(), [MESSAGE], LIMIT)

    if out:
        # Root is not 0 there.
        with pytest.raises(SpoolError, match="not to root"):
            system.as_user(ANN, put, (place, 'return posix.stat("/").st_uid', "return 0"))
    else:
        system.as_user(ANN, put)
    assert [uid for _, uid, _ in system.ingest().ingested] == [ANN] * (not out)


def test_a21_without_new_privileges(system):
    def put():
        assert LIBC.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        drop.put(system.drop, b"x" * 16, said(), [MESSAGE], LIMIT, owner=OURS)

    system.as_user(ANN, put)
    assert [uid for _, uid, _ in system.ingest().ingested] == [ANN]


def test_a22_a_link_under_the_name_that_will_be_made(system, out):
    """Who could guess the name would redirect the write."""
    target = f"{system.home(ANN)}/target"
    write(target, b"precious")
    os.chown(target, ANN, ANN)
    system.as_user(BOB, lambda: os.symlink(target, f"{system.drop}/tmp/{NAME}"))

    def put():
        if out:
            disk._CREATE &= ~(os.O_EXCL | os.O_NOFOLLOW)
        drop.put(system.drop, bytes.fromhex(NAME), said(), [MESSAGE], LIMIT, owner=OURS)

    with pytest.raises(SpoolError):
        system.as_user(ANN, put)
    with open(target, "rb") as file:
        assert (file.read() == b"precious") is not (out and not kernel_protects_links())


@pytest.mark.parametrize("how", ["directory", "link"])
def test_a25_root_writes_nothing_where_another_account_could_redirect_it(system, how):
    """Root submits as everybody does, into a directory of root's and the queue's."""
    home = system.home(BOB)
    os.makedirs(f"{home}/new")
    os.chmod(f"{home}/new", 0o3777)
    if how == "link":
        os.rmdir(f"{system.drop}/new")
        os.symlink(f"{home}/new", f"{system.drop}/new")
    else:
        os.chown(system.drop, BOB, BOB)
    with pytest.raises(SpoolError):
        system.put(0)
    assert os.listdir(f"{home}/new") == []


def test_a25_with_the_check_taken_out(system):
    os.chown(system.drop, BOB, BOB)
    system.as_user(
        0,
        lambda: drop.put(system.drop, b"x" * 16, said(), [MESSAGE], LIMIT),
        (
            drop,
            'tmp = open_leaf(drop, "tmp", owner)',
            "open_leaf = lambda d, leaf, o: "
            "disk.enter_directory(f'{d}/{leaf}')\n        tmp = open_leaf(drop, \"tmp\", owner)",
        ),
    )
    assert len(system.leaf("new")) == 1


NAMES = [
    "x\ny",
    "y" * 255,
    "..x",
    NAME.upper(),
    NAME + "0",
    NAME[:-1],
    "\x1b[2J",
    "ü" * 32,
    ".hidden",
]


def test_a26_names_that_are_games(system, out):
    """Ignored, counted, never shown; the others' mail comes in."""

    def make():
        for name in NAMES:
            with open(f"{system.drop}/new/{name}", "wb"):
                pass

    system.as_user(ANN, make)
    system.put(BOB)
    without = (
        ingest,
        "if len(name) != 2 * ID_OCTETS or not _NAME.issuperset(name):",
        "if False:",
    )
    result = system.ingest(without if out else None)
    assert (result.refused.get(ingest._NO_NAME, 0) == len(NAMES)) is not out
    assert [uid for _, uid, _ in result.ingested] == [BOB]
    assert not any(name in text for name in NAMES for text in result.because.values())
