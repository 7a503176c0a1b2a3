"""kill -9 of the real sendmail at each of its system calls: no message or a whole one, and exit 0 only for a durable one.

The short form: every call that touches the spool, for a small message into a new spool and a larger one into an old spool.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from spool.make import RecordingQueue

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(
        shutil.which("strace") is None and not os.environ.get("CI"),
        reason="strace is not installed",
    ),
]

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What changes something, what makes it durable, and the ends of both.
KINDS = (
    *("open", "openat", "creat", "mkdir", "mkdirat", "write", "pwrite64", "fsync", "fdatasync"),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "ftruncate"),
    "close",
)
SMALL = b"To: b@example.net\n\nHello.\n"
LARGE = b"To: b@example.net\n\n" + (b"y" * 70 + b"\n") * 6000


class Submission:
    """``sendmail -t`` into a spool of its own, under strace."""

    def __init__(self, directory: pathlib.Path, message: bytes, mode: str = "-odq") -> None:
        directory.mkdir()
        self.spool = str(directory / "spool")
        self.trace = directory / "trace"
        self.message = message
        launcher = directory / "sendmail"
        text = (ROOT / "packaging" / "launcher.in").read_text()
        launcher.write_text(text.replace("@LIBDIR@", str(ROOT)))
        config = directory / "config.toml"
        config.write_text(
            f'[spool]\npath = "{self.spool}"\n'
            '[smarthost]\nhost = "127.0.0.1"\nport = 9\ntls = "none"\n'
        )
        self.command = [sys.executable, "-IS", str(launcher), "-C", str(config), mode, "-t", "-i"]

    def run(self, *strace: str) -> int:
        command = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(self.trace), *strace, "--"]
        done = subprocess.run(
            [*command, *self.command], input=self.message, capture_output=True, check=False
        )
        return done.returncode

    def calls(self) -> list[str]:
        """The lines of the trace without their process ids."""
        return [re.sub(r"^\d+ +", "", line) for line in self.trace.read_text().splitlines()]

    def whole(self) -> bool:
        """True when the message is there, False when nothing is; anything else fails."""
        with RecordingQueue(self.spool) as queue:
            assert list(queue.places("cur", "hold", "failed")) == []
            places = list(queue.places("new"))
            for place in places:
                entry = queue.claim(place)
                assert entry is not None
                with entry:
                    first = entry.first_octets(100)
                    assert b"".join(entry.verified_octets(first, 0)) == self.message
                    assert [r.address for r in entry.envelope.recipients] == [b"b@example.net"]
                    entry.remove()
            # a restart leaves nothing of what was half received
            queue.sweep(10.0**12)
            assert list(queue.places("tmp")) == []
            assert queue.reported == []
        assert len(places) <= 1
        return bool(places)


def points(submission: Submission) -> list[tuple[str, int]]:
    """Kind and number (of its kind) of each call of an undisturbed run that is about the spool."""
    assert submission.run("-e", "trace=" + ",".join(f"?{kind}" for kind in KINDS)) == 0
    counts = dict.fromkeys(KINDS, 0)
    found = []
    for line in submission.calls():
        kind = line.partition("(")[0]
        counts[kind] += 1
        if submission.spool in line:
            found.append((kind, counts[kind]))
    return found


@pytest.mark.parametrize(
    ("message", "old"), [(SMALL, False), (LARGE, True)], ids=["new spool", "larger message"]
)
def test_killed_at_every_system_call(tmp_path, message, old):
    def prepared(name: str) -> Submission:
        submission = Submission(tmp_path / name, message)
        if old:
            RecordingQueue(submission.spool).close()
        return submission

    # once for the byte code of the package, once to be counted
    prepared("warm").run("-e", "trace=none")
    counted = prepared("counted")
    found = points(counted)
    assert counted.whole()
    kinds = {kind for kind, _ in found}
    assert kinds >= {"openat", "write", "fsync", "close"} | ({"pwrite64"} if old else {"mkdir"})
    assert kinds & {"rename", "renameat", "renameat2"}
    kept = []
    for kind, number in found:
        submission = prepared(f"{kind}{number}")
        code = submission.run(
            "-e", f"trace={kind}", "-e", f"inject={kind}:signal=KILL:when={number}"
        )
        assert code not in (0, 1), f"{kind} {number} was not reached"
        assert "killed by SIGKILL" in submission.calls()[-1]
        kept.append(submission.whole())
        # the next submission is none the worse
        assert submission.run("-e", "trace=none") == 0
        assert submission.whole()
    # from the rename on it is there; before it, it is not
    order = [kind for kind, _ in found]
    renamed = next(n for n, kind in enumerate(order) if kind.startswith("rename"))
    assert kept == [False] * (renamed + 1) + [True] * (len(order) - renamed - 1)


@pytest.mark.parametrize("call", ["fsync", "rename", "renameat", "close"])
def test_a_signal_after_the_last_octet(tmp_path, call):
    """It may be durable already, and who sees an error would send it again: exit 0."""
    submission = Submission(tmp_path / "run", SMALL)
    RecordingQueue(submission.spool).close()
    assert submission.run("-e", f"trace={call}") == 0
    lines = submission.calls()
    places = [n for n, line in enumerate(lines, 1) if f"{submission.spool}/queue" in line]
    submission.whole()
    for place in places:
        inject = f"inject={call}:signal=TERM:when={place}"
        assert submission.run("-e", f"trace={call}", "-e", inject) == 0
        assert any("SIGTERM" in line for line in submission.calls())
        assert submission.whole()
    assert places or call in ("rename", "renameat")


@pytest.mark.parametrize("mode", ["-odq", "-odb", "-odi"])
def test_durable_before_exit_0(tmp_path, mode):
    """fsync of the file, rename, fsync of the directory; only then the flusher, only then the end."""
    submission = Submission(tmp_path / "run", SMALL, mode)
    assert submission.run() == 0
    top = re.escape(f"{submission.spool}/queue")
    main = submission.trace.read_text().split(maxsplit=1)[0]
    lines = [
        line.partition(" ")[2].strip()
        for line in submission.trace.read_text().splitlines()
        if line.startswith(main + " ")
    ]
    steps = [
        rf"openat\(\d+<{top}/tmp>, \"[0-9a-f]{{16}}\", O_WRONLY\|O_CREAT\|O_EXCL\|O_NOFOLLOW\|O_CLOEXEC, 0600\)",
        rf"write\(\d+<{top}/tmp/[0-9a-f]{{16}}>",
        rf"fsync\(\d+<{top}/tmp/[0-9a-f]{{16}}>\) += 0",
        rf"rename(at2?)?\(\d+<{top}/tmp>, \"[0-9a-f]{{16}}\", \d+<{top}/new>, \"[0-9a-f]{{16}}\".*\) += 0",
        rf"fsync\(\d+<{top}/new>\) += 0",
        *([r"(clone|clone3|vfork|fork)\("] if mode != "-odq" else []),
        r"exit_group\(0",
    ]
    at = [[n for n, line in enumerate(lines) if re.match(step, line)] for step in steps]
    assert [len(found) for found in at] == [1] * len(steps)
    order = [found[0] for found in at]
    assert order == sorted(order)
