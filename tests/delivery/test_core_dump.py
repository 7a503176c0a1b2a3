"""No core dump: what delivers, or reads a secret, leaves none when it crashes, whatever its caller's limit was."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from delivery.program import ROOT, Program
from delivery.scripted import END_OF_DATA, ScriptedServer

_, _HARD = resource.getrlimit(resource.RLIMIT_CORE)


def as_large_as_may_be() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (_HARD, _HARD))


def limits_of(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_CORE)


@pytest.mark.parametrize(
    "arguments", [("flush",), ("flush", "--background"), ("run", "--deliver")], ids=" ".join
)
@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV], ids=str)
def test_what_delivers_leaves_no_core(
    tmp_path: Path, arguments: tuple[str, ...], number: signal.Signals
) -> None:
    """It has logged in, and crashes while the server has its message."""
    reached, crashed = threading.Event(), threading.Event()

    def answer(command: bytes) -> bytes | None:
        if command == END_OF_DATA:
            reached.set()
            assert crashed.wait(60)
        return None

    directory = tmp_path / "here"
    directory.mkdir()
    with ScriptedServer(answer, keywords=(b"AUTH PLAIN",)) as server:
        (tmp_path / "secret").write_text("wonderland\n")
        (tmp_path / "secret").chmod(0o600)
        program = Program(
            tmp_path,
            f'[smarthost]\nhost = "127.0.0.1"\nport = {server.port}\ntls = "none"\n'
            f'username = "ann"\npassword_file = "{tmp_path}/secret"\n',
        )
        program.sendmail("ann@x.test", stdin=b"Subject: s\n\nbody\n")
        running = subprocess.Popen(
            program.command("minisend", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={},
            preexec_fn=as_large_as_may_be,
        )
        try:
            assert reached.wait(60)
            limits = limits_of(running.pid)
            os.kill(running.pid, number)
            _, status = os.waitpid(running.pid, 0)
        finally:
            crashed.set()
            running.kill()
    assert limits == (0, _HARD)
    assert os.WTERMSIG(status) == number
    assert not os.WCOREDUMP(status)
    assert list(directory.iterdir()) == []
    assert b"AUTH PLAIN AGFubgB3b25kZXJsYW5k" in server.sessions[0].commands


@pytest.mark.parametrize("command", [("login",), ("doctor",)], ids=" ".join)
def test_what_reads_a_secret_leaves_no_core(tmp_path: Path, command: tuple[str, ...]) -> None:
    """The limit as it is when the command is done."""
    program = Program(tmp_path, '[smarthost]\nhost = "127.0.0.1"\ntls = "none"\n')
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-c"),
            "import resource, sys\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            f"sys.argv = ['minisend', '-C', {str(program.config)!r}, *{command!r}]\n"
            "from minisend.__main__ import main\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "print('limit', resource.getrlimit(resource.RLIMIT_CORE))\n",
        ],
        capture_output=True,
        text=True,
        env={},
        preexec_fn=as_large_as_may_be,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == f"limit (0, {_HARD})"
