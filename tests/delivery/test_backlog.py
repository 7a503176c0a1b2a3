"""What a run leaves alone in a queue of deferred messages: seen by strace, at the real processes."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from delivery.program import Program

pytestmark = [
    pytest.mark.skipif(
        shutil.which("strace") is None and not os.environ.get("CI"),
        reason="strace is not installed",
    )
]

# Nobody listens there.
NOWHERE = '[smarthost]\nhost = "127.0.0.1"\nport = 9\ntls = "none"\n'
MESSAGE = b"Subject: s\n\nbody\n"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """With three messages that wait for their next attempt."""
    program = Program(tmp_path, NOWHERE, retry_min="1h")
    for _ in range(3):
        program.sendmail("bob@x.test", stdin=MESSAGE)
    assert program.flush() == (75, "0 delivered, 3 waiting, 0 failed")
    return program


def traced(
    program: Program, directory: Path, face: str, *arguments: str
) -> tuple[set[str], set[str]]:
    """What a command, with all it starts, lists and opens in the queue; relative to it."""
    trace = directory / "trace"
    subprocess.run(
        [
            *("strace", "-f", "-y", "-qq", "-e", "trace=getdents64,openat,open", "-o", trace),
            *program.command(face, *arguments),
        ],
        input=MESSAGE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
        check=True,
        env={},
    )
    queue = re.escape(f"{program.spool}/queue")
    text = trace.read_text(errors="replace")
    listed = re.findall(rf"getdents64\(\d+<{queue}/?([^>]*)>", text)
    # Of a call that another thread's came into, the end with the result stands in a line of its own.
    opened = re.findall(rf"open(?:at)?\b.* = \d+<{queue}/(\w+/[^>]*)>", text)
    return set(listed), set(opened)


def test_a_submission_that_waits_for_its_attempt_lists_nothing_that_waits(
    program: Program, tmp_path: Path
) -> None:
    before = set(os.listdir(program.spool / "queue/cur"))
    listed, opened = traced(program, tmp_path, "sendmail", "-odi", "ann@x.test")
    (new,) = set(os.listdir(program.spool / "queue/cur")) - before
    queue_id = new.partition(".")[2]
    assert "cur" not in listed
    assert "new" not in listed
    assert opened == {f"tmp/{queue_id}", f"new/{queue_id}"}


def test_a_flush_with_nothing_due_opens_no_message(program: Program, tmp_path: Path) -> None:
    listed, opened = traced(program, tmp_path, "minisend", "flush")
    assert {"new", "cur"} <= listed
    assert opened == set()
