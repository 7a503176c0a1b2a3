"""What ``put`` returned for is in drop/new, whole, durable and readable for ingest; what it raised for is nowhere."""

import errno
import os
import re
import stat

import pytest
from crash.faulty import ERRORS

from minisend.envelope import DROP, Recipient
from minisend.errors import DataError, MessageTooBig, SpoolError, SpoolFull, UsageError
from minisend.spool import disk, drop
from minisend.spool.enqueue import Floor
from minisend.spool.place import drop_problems
from minisend.spool.record import head_length, parse_head, parse_tail
from spool.seam import STOPPED, Seam, fail_at, in_child, stop_after
from spool.system import ANN, BOB, LIMIT, MESSAGE, OURS, ROOT, said

ID = bytes(range(16))
LARGE = b"x" * 70 + b"\n"


def put(system, message=(MESSAGE,), submission=ID, envelope=None, **options):
    """As this process's account."""
    drop.put(system.drop, submission, envelope or said(), message, LIMIT, owner=OURS, **options)


def test_the_file(system):
    put(system)
    path = f"{system.drop}/new/{ID.hex()}"
    with open(path, "rb") as file:
        octets = file.read()
    length = head_length(octets)
    envelope, size = parse_head(octets[:length])
    assert octets[length : length + size] == MESSAGE
    tail = parse_tail(octets[length + size :], envelope)
    assert (tail.trailer.octets, tail.history, tail.torn) == (len(MESSAGE), [], False)
    assert (envelope.channel, envelope.uid) == (DROP, os.getuid())
    assert system.leaf("tmp") == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_its_mode_whatever_the_umask(system, umask):
    name = system.put(umask=umask).hex()
    status = os.stat(f"{system.drop}/new/{name}")
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o640, ANN)
    assert status.st_gid == os.stat(f"{system.drop}/new").st_gid


def test_in_this_order(system, monkeypatch):
    seam = Seam()
    monkeypatch.setattr(disk, "posix", seam)
    put(system)
    tmp, new = (f"{system.drop}/{leaf}/{ID.hex()}" for leaf in ("tmp", "new"))
    assert seam.about("open", "fchmod", "write", "rename", "fsync")[4:] == [
        ("open", tmp),
        ("fchmod", tmp),
        ("write", tmp),
        ("rename", tmp),
        ("fsync", new),
    ]


def test_no_right_to_list_is_needed(system):
    if not ROOT:
        pytest.skip("needs a second account")
    system.put(ANN)
    assert len(system.leaf("new")) == 1
    with pytest.raises(PermissionError):
        system.as_user(ANN, lambda: os.listdir(f"{system.drop}/new"))


def test_a_large_message(system):
    put(system, [LARGE] * 40_000)
    path = f"{system.drop}/new/{ID.hex()}"
    assert os.stat(path).st_size > 40_000 * len(LARGE)
    assert system.ingest().ingested[0][2] == 40_000 * len(LARGE)


def test_a_submission_that_is_there_already(system):
    put(system)
    with pytest.raises(SpoolError, match="already"):
        put(system, [b"another"])
    assert (system.leaf("tmp"), system.leaf("new")) == ([], [ID.hex()])
    assert system.ingest().ingested[0][2] == len(MESSAGE)


@pytest.mark.parametrize(
    ("envelope", "message", "options", "error"),
    [
        (said(recipients=[]), [MESSAGE], {}, UsageError),
        (said(recipients=[Recipient(b"a@b> X")]), [MESSAGE], {}, DataError),
        (
            said(recipients=[Recipient(b"a%d" % n) for n in range(200_000)]),
            [MESSAGE],
            {},
            DataError,
        ),
        (None, [b"x" * (LIMIT + 1)], {}, MessageTooBig),
        (None, [MESSAGE], {"floor": Floor("drop", 1 << 60, 0)}, SpoolFull),
    ],
    ids=["nobody", "address", "too many", "size", "floor"],
)
def test_what_ingest_would_not_take_is_refused(system, envelope, message, options, error):
    with pytest.raises(error):
        put(system, message, envelope=envelope, **options)
    assert system.leaf("tmp") + system.leaf("new") == []


@pytest.mark.parametrize("failure", [ValueError("bad"), KeyboardInterrupt(15)])
def test_when_reading_fails_nothing_is_left(system, failure):
    def broken():
        yield LARGE * 5_000
        raise failure

    with pytest.raises(type(failure)):
        put(system, broken())
    assert system.leaf("tmp") + system.leaf("new") == []


def calls_of_a_put(system, monkeypatch, message):
    seam = Seam()
    with monkeypatch.context() as patched:
        patched.setattr(disk, "posix", seam)
        put(system, message)
    os.unlink(f"{system.drop}/new/{ID.hex()}")
    return seam.calls


@pytest.mark.parametrize("message", [[MESSAGE], [LARGE] * 50_000], ids=["small", "large"])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_each_call_fails(system, monkeypatch, message, error):
    """SpoolError with the reason, and nothing stays; advice and close are no reason."""
    calls = calls_of_a_put(system, monkeypatch, message)
    assert {"fchmod", "write", "rename", "fsync"} < set(calls)
    harmless = set()
    for number, call in enumerate(calls, 1):
        opened = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patched:
            patched.setattr(disk, "posix", fail_at(number, error))
            try:
                put(system, message)
            except SpoolError as exc:
                raised = exc
            else:
                raised = None
            if raised is not None:
                assert isinstance(raised.__cause__, OSError)
                assert raised.__cause__.errno == error
                assert os.strerror(error) in str(raised)
                assert system.leaf("tmp") + system.leaf("new") == [], (number, call)
            else:
                harmless.add(call)
                assert system.leaf("new") == [ID.hex()]
                os.unlink(f"{system.drop}/new/{ID.hex()}")
        assert len(os.listdir("/proc/self/fd")) == opened
    assert harmless <= {"close", "posix_fadvise"}


@pytest.mark.crash
@pytest.mark.parametrize("message", [[MESSAGE], [LARGE] * 50_000], ids=["small", "large"])
def test_stopped_after_each_call(system, monkeypatch, message):
    """As by kill -9: nobody was told anything, and what is in ``new`` is whole."""
    calls = calls_of_a_put(system, monkeypatch, message)
    whole = 0
    for number in range(1, len(calls) + 1):
        seam = stop_after(number)

        def stopped(seam=seam):
            disk.posix = seam
            put(system, message)

        assert in_child(stopped) == STOPPED
        result = system.ingest()
        assert (result.left, result.refused) == ({}, {})
        assert [size for _, _, size in result.ingested] == [len(b"".join(message))] * (
            number > calls.index("rename")
        )
        whole += len(result.ingested)
        system.remove_all()
        for name in system.leaf("tmp"):
            os.unlink(f"{system.drop}/tmp/{name}")
    assert whole == len(calls) - calls.index("rename")


@pytest.mark.parametrize("leaf", ["tmp", "new"])
def test_a_leaf_that_is_not_sticky(system, leaf):
    os.chmod(f"{system.drop}/{leaf}", 0o2733)
    with pytest.raises(SpoolError, match="anybody can remove"):
        system.put()


def test_no_drop_directory(system):
    os.rmdir(f"{system.drop}/new")
    with pytest.raises(SpoolError, match=os.strerror(errno.ENOENT)) as raised:
        put(system)
    assert raised.value.__cause__.errno == errno.ENOENT
    assert system.leaf("tmp") == []


def test_a_leaf_that_is_a_link(system):
    os.rename(f"{system.drop}/new", f"{system.top}/elsewhere")
    os.symlink(f"{system.top}/elsewhere", f"{system.drop}/new")
    with pytest.raises(SpoolError) as raised:
        put(system)
    assert raised.value.__cause__.errno in (errno.ENOTDIR, errno.ELOOP)


def test_a_drop_directory_that_others_may_write(system):
    os.chmod(system.drop, 0o777)
    with pytest.raises(SpoolError, match=re.escape("(mode 0777): chmod go-w it")):
        put(system)


@pytest.mark.skipif(not ROOT, reason="needs other accounts")
@pytest.mark.parametrize("what", ["", "/tmp", "/new"])
def test_a_strangers_directory(system, what):
    os.chown(system.drop + what, BOB, BOB)
    with pytest.raises(SpoolError, match=f"belongs to uid {BOB}"):
        system.put()


def test_the_layout(system):
    if not ROOT:
        pytest.skip("a system's drop directory is root's")
    assert drop_problems(system.spool, system.drop) == []
    os.chmod(f"{system.drop}/new", 0o1777)
    os.chown(f"{system.drop}/tmp", ANN, OURS)
    os.chown(system.drop, OURS, OURS)
    os.chmod(f"{system.drop}/tmp", 0o3733)  # the change of owner takes the set-gid bit away
    assert drop_problems(system.spool, system.drop) == [
        f"{system.drop}: belongs to {OURS}:{OURS}: chown 0:0 {system.drop}",
        f"{system.drop}/tmp: belongs to {ANN}:{OURS}: chown {OURS}:{OURS} {system.drop}/tmp",
        f"{system.drop}/new: has mode 1777: chmod 3733 {system.drop}/new",
    ]
    os.rmdir(f"{system.drop}/new")
    assert drop_problems(system.spool, system.drop)[-1] == (
        f"{system.drop}/new: is not there: install -d -o {OURS} -g {OURS} -m 3733 {system.drop}/new"
    )
