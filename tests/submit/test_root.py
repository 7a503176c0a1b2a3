"""Root with the environment of another user runs nothing of that user's, reads nothing of theirs and writes nothing there."""

import os
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="is about root")

USER = 4242

# A module that leaves a mark wherever it is imported.
MARK = "open({mark!r}, 'a').write(__name__ + '\\n')\n"

# The machine's own configuration and spool, put elsewhere.
ELSEWHERE = """\
from minisend.config import files
files.SYSTEM_FILE, files.SYSTEM_SPOOL = {file!r}, {spool!r}
"""


@pytest.fixture
def planted(tmp_path):
    """A home of another user's full of what root must not touch; its mark is beside it."""
    home = tmp_path / "home"
    mark = str(tmp_path / "mark")
    modules = ["posix.py", "time.py", "errno.py", "fcntl.py", "pwd.py", "sitecustomize.py"]
    modules += [
        "usercustomize.py",
        "minisend/__init__.py",
        "minisend/errors.py",
        "_blake2.py",
        "ssl.py",
    ]
    user_site = f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    for where in ("", user_site):
        for name in modules:
            path = home / where / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(MARK.format(mark=mark))
    config = f'[spool]\npath = "{home}/spool"\n\n[smarthost]\nhost = "192.0.2.1"\n'
    for name in ("config.toml", ".config/minisend/config.toml", "xdg/minisend/config.toml"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(config)
    (home / "xdg/minisend/conf.d").mkdir()
    (home / "xdg/minisend/conf.d/x.toml").write_text(config)
    for path, directories, files in os.walk(home):
        for name in [*directories, *files]:
            os.chown(os.path.join(path, name), USER, USER)
    os.chown(home, USER, USER)
    return home


def environment(home):
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": f"{home}/xdg",
        "XDG_STATE_HOME": f"{home}/state",
        "MINISEND_CONFIG": f"{home}/config.toml",
        "PYTHONPATH": str(home),
        "PYTHONSTARTUP": f"{home}/posix.py",
        "PYTHONHOME": str(home),
        "PYTHONUSERBASE": f"{home}/.local",
        "TMPDIR": str(home),
        "LOGNAME": "somebody",
        "USER": "somebody",
        "PATH": f"{home}:/usr/bin:/bin",
    }


def listing(home):
    return sorted(
        os.path.join(path, name)
        for path, names, files in os.walk(home)
        for name in [*names, *files]
    )


def traced(home, trace, command):
    """Run it in that home under that environment; returns the system calls that name something there."""
    before = listing(home)
    strace = ["strace", "-f", "-qq", "-s", "4096", "-o", str(trace), "-e", "trace=%file", "--"]
    variables = [f"{name}={value}" for name, value in environment(home).items()]
    done = subprocess.run(
        [*strace, "env", "-i", *variables, *command],
        input=b"To: b@example.net\n\nHello.\n",
        capture_output=True,
        check=False,
        cwd=home,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not os.path.exists(home.parent / "mark")
    assert listing(home) == before
    lines = trace.read_text().splitlines()
    begin = next(n for n, line in enumerate(lines) if "execve(" in line and sys.executable in line)
    return [
        line
        for line in lines[begin + 1 :]
        if (str(home) in line or re.search(r'AT_FDCWD, "[^/]|\w+\("[^/]', line))
        and "execve(" not in line
    ]


strace_needed = pytest.mark.skipif(
    shutil.which("strace") is None and not os.environ.get("CI"), reason="strace is not installed"
)


@strace_needed
def test_a_submission(sendmail, planted, tmp_path):
    """The configuration that the environment names is opened to see whose it is; nothing else there is looked at."""
    spool = tmp_path / "spool"
    spool.mkdir()
    first, main, last = sendmail.launcher.read_text().rpartition("from minisend")
    extra = ELSEWHERE.format(file=f"{tmp_path}/none", spool=str(spool))
    sendmail.launcher.write_text(first + extra + main + last)
    touched = traced(planted, tmp_path / "trace", [*sendmail.program, "-odq", "-t"])
    assert [re.sub(r"^\d+ +", "", line).split(" = ")[0] for line in touched] == [
        f'openat(AT_FDCWD, "{planted}/config.toml", O_RDONLY|O_NOCTTY|O_NONBLOCK|O_NOFOLLOW|O_CLOEXEC)'
    ]
    assert sendmail.recipients() == [b"b@example.net"]


@strace_needed
def test_a_submission_and_its_flusher(sendmail, planted, tmp_path):
    """With -C and -odi: the flusher runs from /, isolated, and knows nothing of the caller's."""
    sendmail.config.write_text(
        f'[spool]\npath = "{sendmail.spool}"\n'
        '[smarthost]\nhost = "127.0.0.1"\nport = 9\ntls = "none"\n'
    )
    command = [*sendmail.program, "-C", str(sendmail.config), "-odi", "-t"]
    touched = traced(planted, tmp_path / "trace", command)
    assert [line for line in touched if "readlink" not in line and "getcwd" not in line] == []
    # it came as far as an attempt
    [name] = os.listdir(f"{sendmail.spool}/queue/cur")
    assert name.partition(".")[0].isdecimal()
