"""The flusher that a submission starts: a process of its own that holds nothing of the caller's."""

import fcntl
import json
import os
import signal
import sys

import pytest

from minisend.submit import handover

# Stands in for minisend/__main__.py and writes down what it finds itself in.
PROBE = """\
import json, os, signal, sys
with open({report!r} + ".part", "w") as file:
    json.dump(
        {{
            "argv": sys.argv[1:],
            "isolated": sys.flags.isolated,
            "site": not sys.flags.no_site,
            "cwd": os.getcwd(),
            "environment": dict(os.environ),
            "leader": os.getsid(0) == os.getpid(),
            "standard": [os.readlink(f"/proc/self/fd/{{fd}}") for fd in (0, 1, 2)],
            "descriptors": [
                fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and fd != file.fileno()
                and os.path.exists(f"/proc/self/fd/{{fd}}")
            ],
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "ignored": [
                int(number) for number in (1, 2, 3, 10, 12, 14, 15, 17)
                if signal.getsignal(number) == signal.SIG_IGN
            ],
        }},
        file,
    )
os.rename({report!r} + ".part", {report!r})
sys.exit(75)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Calls ``start_flusher`` in a forked process that ends with 0; returns what the flusher found."""
    report = tmp_path / "report"
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE.format(report=str(report)))

    def run(*arguments, prepare=lambda: None, **options):
        child = os.fork()
        if not child:
            try:
                monkeypatch.setattr(handover, "_launcher", lambda: str(probe))
                prepare()
                handover.start_flusher(*arguments, **options)
                # With ``wait`` the flusher has ended by now.
                os._exit(0 if report.exists() or not options["wait"] else 2)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return json.loads(report.read_text())

    return run


def test_what_it_holds(start, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def prepare():
        os.chdir(tmp_path)
        for name in list(os.environ):
            os.unsetenv(name)
        # posix.environ is what the process began with
        handover.posix.environ.clear()
        handover.posix.environ.update(
            {
                b"HOME": b"/home/x",
                b"XDG_CONFIG_HOME": b"/cfg",
                b"XDG_STATE_HOME": b"/state",
                b"MINISEND_CONFIG": b"/c.toml",
                b"CREDENTIALS_DIRECTORY": b"/run/credentials/x",
                b"PYTHONPATH": b"/evil",
                b"LD_PRELOAD": b"",
                b"TZ": b"UTC",
                b"PATH": b"/evil",
            }
        )
        for target in (7, 150):
            os.dup2(os.open("/dev/zero", os.O_RDONLY), target, inheritable=True)
        fcntl.flock(7, fcntl.LOCK_EX)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTSTP])
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    found = start("c.toml", ["--quiet", "00112233445566aa"], prepare=prepare, wait=True)
    environment = found.pop("environment")
    environment.pop("LC_CTYPE", None)  # the interpreter's own coercion of the C locale
    assert environment == {
        "HOME": "/home/x",
        "XDG_CONFIG_HOME": "/cfg",
        "XDG_STATE_HOME": "/state",
        "MINISEND_CONFIG": "/c.toml",
        "CREDENTIALS_DIRECTORY": "/run/credentials/x",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    assert found == {
        "argv": ["minisend", "-C", f"{tmp_path}/c.toml", "flush", "--quiet", "00112233445566aa"],
        "isolated": 1,
        "site": True,
        "cwd": "/",
        "leader": True,
        "standard": ["/dev/null"] * 3,
        "descriptors": [],
        "blocked": [],
        "ignored": [],
    }


@pytest.mark.parametrize(
    ("config", "argument"), [(None, []), ("/etc/c.toml", ["-C", "/etc/c.toml"])], ids=str
)
def test_its_arguments(start, config, argument):
    found = start(config, ["--background"], wait=True)
    assert found["argv"] == ["minisend", *argument, "flush", "--background"]


def _cannot(what, monkeypatch, tmp_path):
    if what == "no interpreter":
        monkeypatch.setattr(sys, "executable", "")
    elif what == "interpreter gone":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    elif what == "no launcher":
        monkeypatch.setattr(handover, "_launcher", lambda: "")
    else:
        os.mkdir(tmp_path / "gone")
        os.chdir(tmp_path / "gone")
        os.rmdir(tmp_path / "gone")


@pytest.mark.parametrize(
    "what", ["no interpreter", "interpreter gone", "no launcher", "directory gone"]
)
def test_one_that_cannot_be_started_changes_nothing(monkeypatch, tmp_path, what):
    """The message is on the disk: exit 0, whatever becomes of the flusher."""
    child = os.fork()
    if not child:
        try:
            _cannot(what, monkeypatch, tmp_path)
            handover.start_flusher("relative.toml", ["--background"], wait=True)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_launcher_is_the_package_by_its_path():
    launcher = handover._launcher()
    assert launcher == os.path.join(
        os.path.dirname(sys.modules["minisend"].__file__), "__main__.py"
    )
    assert os.path.isabs(launcher)
    assert os.path.isfile(launcher)
