"""What a package of a system is made from: all that is in the tree is in the source distribution, and all of the program in a wheel."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = shutil.ignore_patterns(".*", "__pycache__", "dist")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The tree as somebody has it who unpacked it: no checkout."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=NOT_OURS)
    shutil.copytree(ROOT / ".ci", source / ".ci")
    return source


def built(source: Path, kind: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", source.parent],
        cwd=source,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    [archive] = source.parent.glob("minisend-*")
    return archive


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_everything_is_in_the_sdist(source: Path) -> None:
    with tarfile.open(built(source, "sdist")) as packed:
        there = {member.name.partition("/")[2] for member in packed if member.isfile()}
    assert there - {"PKG-INFO"} == files(source)


def test_the_wheel_is_the_program(source: Path) -> None:
    with zipfile.ZipFile(built(source, "wheel")) as packed:
        there = set(packed.namelist())
    program = {f"minisend/{name}" for name in files(source / "minisend")}
    assert "minisend/py.typed" in program
    assert {name for name in there if ".dist-info/" not in name} == program
