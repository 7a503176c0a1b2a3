"""What is installed: sysusers.d and tmpfiles.d are the table in the code, and nothing has a set-id bit."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from peers.unpacked import unavailable

from minisend.spool.layout import ACCOUNT, ACCOUNT_ABOUT, DIRECTORIES, NO_HOME

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


def lines(path):
    return [line for line in (PACKAGING / path).read_text().splitlines() if line[:1] != "#"]


def test_tmpfiles_is_the_table():
    assert lines("tmpfiles.d/minisend.conf") == [
        f"d {row.path} {row.mode:04o} {row.owner} {row.group} -" for row in DIRECTORIES
    ]


def test_sysusers_is_the_table():
    assert lines("sysusers.d/minisend.conf") == [f'u {ACCOUNT} - "{ACCOUNT_ABOUT}" {NO_HOME}']


def owner(path, tree):
    """Owner, group and mode, by the names that the tree's own account files give."""
    there = path.lstat()
    names = []
    for file, number in (("passwd", there.st_uid), ("group", there.st_gid)):
        found = [line.split(":") for line in (tree / "etc" / file).read_text().splitlines()]
        names += [fields[0] for fields in found if int(fields[2]) == number]
    return (*names, stat.S_IMODE(there.st_mode))


@pytest.fixture
def made_by_systemd(installed, tmp_path):
    """A tree in which systemd has made account and directories out of the two files."""
    for program in ("systemd-sysusers", "systemd-tmpfiles"):
        if shutil.which(program) is None:
            unavailable(f"{program} is not installed")
    if os.geteuid() != 0:
        unavailable("only root can give directories away")
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\n")
    for program, option in (("sysusers", []), ("tmpfiles", ["--create"])):
        subprocess.run(
            [
                *(f"systemd-{program}", f"--root={tmp_path}", *option),
                installed / f"usr/lib/{program}.d/minisend.conf",
            ],
            check=True,
        )
    return tmp_path


def test_systemd_makes_what_the_table_says(made_by_systemd):
    tree = made_by_systemd
    made = {row.path: owner(tree / row.path[1:], tree) for row in DIRECTORIES}
    assert made == {row.path: (row.owner, row.group, row.mode) for row in DIRECTORIES}


def test_nothing_that_is_installed_has_a_set_id_bit(installed):
    files = [path for path in installed.rglob("*") if not path.is_dir()]
    assert len(files) > 100
    assert [path for path in files if path.lstat().st_mode & 0o6000] == []


def test_only_the_two_leaves_that_anybody_writes_to_have_one():
    assert [row.path for row in DIRECTORIES if row.mode & 0o6000] == [
        row.path for row in DIRECTORIES if row.mode & 0o002
    ]


def test_what_is_installed(installed):
    """Every file has a place of the list; the package is whole and compiled."""
    there = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    source = PACKAGING.parent
    modules = {str(path.relative_to(source)) for path in (source / "minisend").rglob("*.py")}
    cached = {path for path in there if path.endswith(".pyc")}
    assert len(cached) == len(modules)
    assert there - cached == {
        *(f"usr/lib/minisend/{module}" for module in modules),
        "usr/lib/minisend/minisend/py.typed",
        *(f"usr/bin/{name}" for name in ("mailq", "minisend", "newaliases", "sendmail")),
        *(f"usr/share/man/man{page.suffix[1:]}/{page.name}" for page in (source / "man").iterdir()),
        *(f"usr/lib/systemd/system/{unit.name}" for unit in (PACKAGING / "systemd").iterdir()),
        "usr/lib/systemd/user/minisend.service",
        "usr/lib/systemd/user/minisend.timer",
        "usr/lib/sysusers.d/minisend.conf",
        "usr/lib/tmpfiles.d/minisend.conf",
    }


@pytest.mark.parametrize("name", ["sendmail", "mailq", "newaliases", "minisend"])
def test_what_is_installed_runs(installed, tmp_path, name):
    text = (installed / "usr/bin" / name).read_text()
    assert '"/usr/lib/minisend"' in text
    launcher = tmp_path / name
    launcher.write_text(text.replace("/usr/lib/minisend", f"{installed}/usr/lib/minisend"))
    launcher.chmod(0o755)
    done = subprocess.run([launcher, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name} ")
