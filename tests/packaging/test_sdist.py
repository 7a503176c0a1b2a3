"""The source distribution: all that a package of a system is made from, with the setuptools that the system has."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")


def test_everything_is_in_it(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=NOT_OURS)
    shutil.copytree(ROOT / ".ci", source / ".ci")
    subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c"),
            "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])",
            tmp_path,
        ],
        cwd=source,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        there = {
            name.partition("/")[2] for name in packed.getnames() if packed.getmember(name).isfile()
        }
    made = {"PKG-INFO", "setup.cfg"}
    expected = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and ".egg-info" not in str(path)
    }
    assert {name for name in there if ".egg-info/" not in name} - made == expected
