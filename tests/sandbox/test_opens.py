"""Every file that a submitting process opens, by strace(1): no secret, and of configurations only the one that names the spool."""

import os
import re
import shutil

import pytest

from sandbox.installed import Installed

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace"
)

_CALL = re.compile(r'^\d+ +(\w+)\((?:AT_FDCWD|\d+)?,? ?.*?"((?:[^"\\]|\\.)*)".*\) = (-?\d+)', re.M)
# What the interpreter and the C library look at, for themselves or for the account and the time.
_SYSTEM = {
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
}
# One that the first source of nsswitch.conf knows: what others open for one that it does not is theirs.
BIN = 2


@pytest.fixture
def system():
    with Installed() as made:
        made.config.write_text(
            made.config.read_text()
            + f'username = "user"\npassword_file = "{made.secret}"\ntls = "starttls"\n'
        )
        made.config.write_text(made.config.read_text().replace('tls = "none"\n', "", 1))
        yield made


def opened(system: Installed, *arguments: str, message: bytes) -> tuple[set[str], set[str]]:
    """Paths opened outside /usr and /lib with the package's own left out, and the sockets that were connected to."""
    trace = system.top / "trace"
    trace.touch()
    os.chown(trace, BIN, BIN)
    under = ["strace", "-f", "-s", "4096", "-o", str(trace)]
    under += ["-e", "trace=open,openat,openat2,open_by_handle_at,connect,execve,creat"]
    done = system.submit(*arguments, uid=BIN, under=under, message=message)
    assert (done.returncode, done.stderr) == (0, b"")
    files, sockets = set(), set()
    for call, path, result in _CALL.findall(trace.read_text()):
        if call == "connect":
            if result == "0":
                sockets.add(path)
        elif not path.startswith(("/usr/", "/lib", str(system.library))) and call != "execve":
            files.add(path)
    assert str(system.config) in files  # that anything was seen at all
    return files, sockets


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "large"])
def test_by_the_socket(system, size):
    message = b"To: a@example.net\nSubject: x\n\n" + b"0123456789" * (size // 10) + b"\n"
    with system.serving():
        files, sockets = opened(system, "-t", message=message)
    assert sockets == {str(system.socket)}
    assert files - _SYSTEM == {
        str(system.config),
        f"{system.top}/conf.d",
        str(system.sendmail_path),
    }


def test_by_the_drop(system):
    files, sockets = opened(system, "a@example.net", message=b"Subject: x\n\nHello.\n")
    assert sockets == set()
    [kept] = system.kept()
    name = kept.rpartition("/")[2]
    assert files - _SYSTEM == {
        str(system.config),
        f"{system.top}/conf.d",
        str(system.sendmail_path),
        # The leaves, relative to the drop directory, and the file that is made in one of them.
        str(system.drop),
        *("tmp", "new"),
        name,
    }
