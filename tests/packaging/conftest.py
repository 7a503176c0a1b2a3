"""minisend as packaging/install leaves it, below a directory of the tests."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """What lies below it is what a package with PREFIX=/usr has."""
    tree = tmp_path_factory.mktemp("installed")
    subprocess.run(
        ["sh", ROOT / "packaging" / "install"],
        env={"PATH": os.environ["PATH"], "PREFIX": "/usr", "DESTDIR": str(tree)},
        check=True,
    )
    return tree


@pytest.fixture(scope="session")
def in_local(tmp_path_factory):
    """The same with PREFIX=/usr/local, as the README has it."""
    tree = tmp_path_factory.mktemp("local")
    subprocess.run(
        ["sh", ROOT / "packaging" / "install"],
        env={"PATH": os.environ["PATH"], "DESTDIR": str(tree)},
        check=True,
    )
    return tree
