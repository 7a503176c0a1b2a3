"""Root at a queue that is another account's: the command becomes that account before it looks at anything in there."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from minisend.admin.owner import become_owner
from minisend.log import line

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


def run(
    place: Path,
    *words: str,
    uid: int | None = None,
    stdin: bytes = b"",
    through: Sequence[str] = (),
):
    return subprocess.run(
        [
            *through,
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


def test_root_reads_the_logs_as_root_and_the_lines_of_the_account(place: Path, monkeypatch) -> None:
    """The account may not read them; and of a queue for all users the spool around it is root's."""
    queue_id = queued(place)
    os.chown(place / "spool", 0, 0)
    programs = place / "bin"
    programs.mkdir()
    logged = {
        "__REALTIME_TIMESTAMP": "1700000000000000",
        "_UID": str(OWNER),
        "MESSAGE": line(queue_id, event="held"),
    }
    journalctl = programs / "journalctl"
    journalctl.write_text(f"#!/bin/sh\ntest $(id -u) = 0 && echo '{json.dumps(logged)}'\n")
    journalctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    done = run(place, "minisend", "log", "--json", queue_id)
    assert done.stderr == b""
    told = [json.loads(each) for each in done.stdout.splitlines()]
    assert [(each["source"], each["event"]) for each in told] == [
        ("journal", "held"),
        ("queue", "arrived"),
    ]


def test_root_of_a_user_namespace_is_no_root_of_the_queue(place: Path) -> None:
    """The account has no number there: the service is asked, which knows the caller by the one outside."""
    (place / "config.toml").write_text(
        f'hostname = "h.example"\n[spool]\npath = "{place}/spool"\n'
        f'[submission]\nsocket = "{place}/no.sock"\ndrop = false\n'
    )
    os.chown(place / "config.toml", 4343, 4343)
    (place / "spool/queue").mkdir(mode=0o700)
    os.chown(place / "spool/queue", OWNER, OWNER)
    done = run(place, "mailq", uid=4343, through=["unshare", "--user", "--map-root-user"])
    why = f"nobody serves it: {place}/no.sock: No such file or directory\n"
    assert done.stderr.decode() == f"mailq: the queue is another account's, and {why}"
    assert (done.returncode, done.stdout) == (75, b"")
