"""Root at a queue that is another account's: the command becomes that account before it looks at anything in there."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from minisend.admin.owner import become_owner

ROOT = Path(__file__).resolve().parents[2]
OWNER = 4242

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every account can get into, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="minisend-owner-"))
    directory.chmod(0o755)
    (directory / "config.toml").write_text(
        f'hostname = "h.example"\n[spool]\npath = "{directory}/spool"\n'
        "[submission]\nsocket = false\ndrop = false\n"
    )
    spool = directory / "spool"
    spool.mkdir()
    os.chown(spool, OWNER, OWNER)
    yield directory
    shutil.rmtree(directory)


def run(place: Path, *words: str, uid: int | None = None, stdin: bytes = b""):
    return subprocess.run(
        [
            # One that other accounts can run.
            "/usr/bin/python3",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from minisend.__main__ import main; sys.exit(main())",
            words[0],
            "-C",
            str(place / "config.toml"),
            *words[1:],
        ],
        input=stdin,
        capture_output=True,
        user=uid,
        group=uid,
        extra_groups=[] if uid is not None else None,
        check=False,
        cwd="/",
    )


def queued(place: Path) -> str:
    done = run(place, "sendmail", "-odq", "bob@example.net", uid=OWNER, stdin=b"Subject: x\n\nx\n")
    assert (done.returncode, done.stderr) == (0, b"")
    (queue_id,) = os.listdir(place / "spool/queue/new")
    return queue_id


def test_root_sees_and_moves_the_messages_of_a_queue_that_is_an_accounts(place: Path) -> None:
    queue_id = queued(place)
    listing = run(place, "mailq")
    assert (listing.returncode, listing.stderr) == (0, b"")
    assert queue_id.encode() in listing.stdout
    done = run(place, "minisend", "hold", queue_id)
    assert (done.returncode, done.stdout) == (0, f"{queue_id}: held\n".encode())
    held = os.stat(place / f"spool/queue/hold/{queue_id}")
    assert (held.st_uid, held.st_gid) == (OWNER, OWNER)
    assert run(place, "minisend", "rm", queue_id).returncode == 0
    assert os.listdir(place / "spool/queue/hold") == []


def test_what_a_flush_as_root_makes_is_the_owners(place: Path) -> None:
    queue_id = queued(place)
    with open(place / "config.toml", "a") as config:
        config.write('[smarthost]\nhost = "127.0.0.1"\nport = 1\ntls = "none"\n')
    done = run(place, "minisend", "flush", "--quiet", queue_id)
    assert done.returncode == 75
    owners = {
        (os.stat(os.path.join(directory, name)).st_uid)
        for directory, names, files in os.walk(place / "spool")
        for name in names + files
    }
    assert owners == {OWNER}


def test_another_account_than_root_stays_what_it_is(place: Path) -> None:
    queued(place)
    done = run(place, "mailq", uid=OWNER + 1)
    assert (done.returncode, done.stdout) == (75, b"")
    assert done.stderr.endswith(b"/spool/queue: Permission denied\n")


def test_the_whole_of_the_account_is_taken_on(place: Path) -> None:
    """No group of root's and no way back."""
    queued(place)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            become_owner(str(place / "spool"))
            told = repr((os.getresuid(), os.getresgid(), os.getgroups()))
            os.write(write, told.encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with open(read, "rb") as pipe:
        assert pipe.read().decode() == repr(((OWNER,) * 3, (OWNER,) * 3, [OWNER]))


@pytest.mark.parametrize("link", [True, False], ids=["a link to root's", "none"])
def test_no_queue_is_no_way_to_keep_root(place: Path, link: bool) -> None:
    """The account could lead root elsewhere by any other name in its spool, ``state`` among them."""
    spool = place / "spool"
    elsewhere = place / "root's"
    elsewhere.mkdir(mode=0o700)
    os.symlink(elsewhere, spool / "state")
    if link:
        os.symlink("/", spool / "queue")
        os.chown(spool / "queue", OWNER, OWNER, follow_symlinks=False)
    run(place, "minisend", "flush", "--background")
    assert list(elsewhere.iterdir()) == []
    pid = os.fork()
    if not pid:
        become_owner(str(spool))
        os._exit(os.geteuid() == OWNER)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
