"""ruff, mypy and mandoc have nothing to say.  Each is skipped where it is missing, but never in CI."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MANUALS = sorted((ROOT / "man").glob("*.[1-9]"))


def run(*command):
    """Run a tool of this environment in the checkout; it must end with 0."""
    beside = pathlib.Path(sys.executable).parent / command[0]
    tool = str(beside) if beside.exists() else shutil.which(command[0])
    if tool is None:
        assert not os.environ.get("CI"), f"{command[0]} is not installed"
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_ruff_check():
    run("ruff", "check", ".")


def test_ruff_format():
    run("ruff", "format", "--check", ".")


def test_mypy():
    run("mypy", "-p", "minisend")


@pytest.mark.parametrize("manual", MANUALS, ids=lambda path: path.name)
def test_manual(manual):
    assert run("mandoc", "-T", "lint", "-W", "warning", str(manual)) == ""


def test_there_are_manuals():
    assert [path.name for path in MANUALS] == [
        "minisend-spool.5",
        "minisend-submit.7",
        "minisend.1",
        "minisend.toml.5",
        "sendmail.8",
    ]
