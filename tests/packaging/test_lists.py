"""What is installed: sysusers.d and tmpfiles.d are the table in the code, and nothing has a set-id bit."""

import os
import shutil
import stat
import subprocess
import tempfile
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
        *(f"usr/share/man/man8/{name}.8" for name in ("mailq", "newaliases")),
        *(f"usr/lib/systemd/system/{unit.name}" for unit in (PACKAGING / "systemd").iterdir()),
        "usr/lib/systemd/user/minisend.service",
        "usr/lib/systemd/user/minisend.timer",
        "usr/lib/sysusers.d/minisend.conf",
        "usr/lib/tmpfiles.d/minisend.conf",
    }


def install(**settings):
    """Run packaging/install with these variables and no others."""
    subprocess.run(
        ["sh", PACKAGING / "install"], env={"PATH": os.environ["PATH"], **settings}, check=True
    )


def files(tree):
    """Octets of each file, or where a link leads, and the mode, by the path below."""
    return {
        str(path.relative_to(tree)): (
            os.readlink(path) if path.is_symlink() else path.read_bytes(),
            stat.S_IMODE(path.lstat().st_mode),
        )
        for path in tree.rglob("*")
        if not path.is_dir()
    }


def test_a_package_that_is_built_twice_is_the_same(installed, tmp_path):
    install(PREFIX="/usr", DESTDIR=str(tmp_path))
    assert files(tmp_path) == files(installed)


def test_a_package_stays_compiled_whatever_happens_to_the_times_of_its_files(installed):
    """PEP 552: bit 0 of the flags for a hash in place of a time, bit 1 for its being compared."""
    for path in (installed / "usr/lib/minisend").rglob("*.pyc"):
        assert path.read_bytes()[4:8] == b"\x01\0\0\0"


def test_what_is_started_is_what_was_installed(tmp_path):
    """Also in a place where systemd does not look for programs."""
    install(PREFIX="/opt/minisend", DESTDIR=str(tmp_path), COMPILE="no")
    there = files(tmp_path / "opt/minisend")
    units = {path: text.decode() for path, (text, _) in there.items() if path.endswith(".service")}
    assert {
        path: [line for line in text.splitlines() if line.startswith("ExecStart=")]
        for path, text in units.items()
    } == {
        f"lib/systemd/{path}": [f"ExecStart=/opt/minisend/bin/minisend {arguments}"]
        for path, arguments in (
            ("system/minisend-accept.service", "run --accept --exit-idle 60"),
            ("system/minisend-deliver.service", "run --deliver --exit-idle 60"),
            ("user/minisend.service", "flush --quiet"),
        )
    }
    assert [path for path in there if path.endswith(".pyc")] == []


def test_names_for_alternatives(tmp_path):
    install(PREFIX="/usr", DESTDIR=str(tmp_path), SUFFIX=".minisend", SBINDIR="/usr/sbin")
    there = files(tmp_path / "usr")
    names = [path for path in there if path.split("/")[0] in ("bin", "sbin")]
    assert sorted(names) == [
        *("bin/mailq.minisend", "bin/minisend", "bin/newaliases.minisend"),
        "sbin/sendmail.minisend",
    ]
    manuals = {path: octets for path, (octets, _) in there.items() if "/man8/" in path}
    assert manuals == {
        "share/man/man8/sendmail.minisend.8": (PACKAGING.parent / "man/sendmail.8").read_bytes(),
        "share/man/man8/mailq.minisend.8": "sendmail.minisend.8",
        "share/man/man8/newaliases.minisend.8": "sendmail.minisend.8",
    }


def test_for_oneself():
    """Who is not root gets what one user needs, where their shell, man(1) and systemd look for it; and it runs."""
    if os.geteuid() != 0:
        unavailable("only root can become somebody else")
    home = Path(tempfile.mkdtemp(prefix="minisend-home-"))
    try:
        os.chown(home, 4242, 4242)
        become = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(home)}
        subprocess.run([*become, "sh", PACKAGING / "install"], env=environment, cwd="/", check=True)
        local = home / ".local"
        assert {
            "/".join(path.split("/")[:2])
            for path in files(local)
            if "minisend/minisend/" not in path
        } == {
            *(f"bin/{name}" for name in ("mailq", "minisend", "newaliases", "sendmail")),
            *("share/man", "share/systemd"),
        }
        assert sorted(
            path for path in files(local) if "systemd" in path and "/minisend/" not in path
        ) == [
            "share/systemd/user/minisend.service",
            "share/systemd/user/minisend.timer",
        ]
        done = subprocess.run(
            [*become, local / "bin/sendmail", "-odq", "bob@example.net"],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(list((home / ".local/state/minisend/queue/new").iterdir())) == 1
    finally:
        shutil.rmtree(home)


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
