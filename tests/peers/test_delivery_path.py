"""Root flushes in the environment of another user, through the packaged script: nothing of that user's is run or used.

Whatever root must not touch leaves a mark when it is run; a server of that user's would hear of it.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from delivery.program import ROOT, Program

from peers.certificate import Certificate
from peers.nameserver import NameServer
from peers.postfix import Postfix

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(os.geteuid() != 0, reason="is about root"),
]

StartPostfix = Callable[..., Postfix]
StartNameServer = Callable[..., NameServer]

USER = 4242

# What a flush imports for TLS, for the DNS and at its start.
MODULES = (
    *(
        "posix.py",
        "errno.py",
        "socket.py",
        "ssl.py",
        "select.py",
        "re.py",
        "argparse.py",
        "tomllib.py",
    ),
    *(
        "dns/__init__.py",
        "dns/resolver.py",
        "minisend/__init__.py",
        "minisend/delivery/__init__.py",
    ),
    *("sitecustomize.py", "usercustomize.py", "evil.pth"),
)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def home(tmp_path: Path, mark: Path) -> Path:
    home = tmp_path / "home"
    user_site = f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    leave = f"import sys; open({str(mark)!r}, 'a').write('a module\\n')\n"
    for where in ("", user_site):
        for name in MODULES:
            path = home / where / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(leave)
    for name in ("sh", "python3", "minisend", "sendmail"):
        path = home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho a program >>{mark}\n")
        path.chmod(0o755)
    return home


def give_away(home: Path) -> None:
    for path, directories, files in os.walk(home):
        for name in (".", *directories, *files):
            os.chown(os.path.join(path, name), USER, USER)


def environment(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": f"{home}/.config",
        "XDG_STATE_HOME": f"{home}/state",
        "MINISEND_CONFIG": f"{home}/config.toml",
        "CREDENTIALS_DIRECTORY": str(home),
        "PYTHONPATH": str(home),
        "PYTHONSTARTUP": f"{home}/posix.py",
        "PYTHONHOME": str(home),
        "PYTHONUSERBASE": f"{home}/.local",
        "PATH": f"{home}/bin:/usr/bin:/bin",
        "TMPDIR": str(home),
        "USER": "somebody",
        "LOGNAME": "somebody",
    }


def script(directory: Path, name: str, extra: str = "") -> list[str]:
    """The packaged script, run by the interpreter under test in place of the system's."""
    path = directory / name
    text = (ROOT / "packaging/launcher.in").read_text().replace("@LIBDIR@", str(ROOT))
    head, line, tail = text.partition("from minisend")
    path.write_text(head + extra + line + tail)
    return [sys.executable, "-IS", str(path)]


def run(home: Path, command: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=60
    )
    # Log lines where the machine has neither a journal nor /dev/log.
    assert all(said.startswith("minisend: ") for said in done.stderr.splitlines())
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        pytest.param("sendmail", ["-q"], "", id="sendmail -q"),
        pytest.param(
            "minisend", ["flush"], "1 delivered, 0 waiting, 0 failed\n", id="minisend flush"
        ),
    ],
)
def test_to_a_smarthost(
    start_postfix: StartPostfix,
    certificate: Certificate,
    tmp_path: Path,
    home: Path,
    mark: Path,
    name: str,
    arguments: list[str],
    said: str,
) -> None:
    give_away(home)
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    secret.chmod(0o600)
    postfix = start_postfix(certificate=certificate, accounts={"ann": "hush"})
    program = Program(
        tmp_path,
        f'[smarthost]\nhost = "localhost"\nport = {postfix.port}\nusername = "ann"\n'
        f'password_file = "{secret}"\ntls_ca_file = "{certificate.ca_file}"\n',
    )
    program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    command = [*script(tmp_path, name), "-C", str(program.config), *arguments]
    assert run(home, command) == (0, said)
    assert len(postfix.arrived()) == 1
    assert not mark.exists()


def test_to_an_mx_host(
    start_postfix: StartPostfix,
    start_nameserver: StartNameServer,
    tmp_path: Path,
    home: Path,
    mark: Path,
) -> None:
    """dnspython is found although the script hides it (-S), and not in that user's directories."""
    give_away(home)
    postfix = start_postfix()
    nameserver = start_nameserver("x.test MX 10 mx.x.test\nmx.x.test A 127.0.0.1\n")
    program = Program(
        tmp_path,
        f'[delivery]\nmx_port = {postfix.port}\n[dns]\nnameservers = ["127.0.0.1"]\nport = {nameserver.port}\n',
    )
    program.sendmail("bob@x.test", stdin=b"Subject: s\n\n")
    command = [*script(tmp_path, "sendmail"), "-C", str(program.config), "-q"]
    assert run(home, command) == (0, "")
    assert len(postfix.arrived()) == 1
    assert not mark.exists()


def test_without_a_configuration_of_its_own(
    start_postfix: StartPostfix, tmp_path: Path, home: Path, mark: Path
) -> None:
    """The configuration of that user, wherever the environment points, is not used: not its smarthost, not its command."""
    postfix = start_postfix()
    wanted = (
        f'[smarthost]\nhost = "127.0.0.1"\nport = {postfix.port}\ntls = "none"\n'
        f'username = "x"\npassword_command = ["{home}/bin/sh"]\n'
    )
    for path in (home / "config.toml", home / ".config/minisend/config.toml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted)
    give_away(home)
    # Of use to that user, if root did not look at whose it is.
    run_as_user = Program(tmp_path, wanted)
    # Of the null sender, so that nobody is told and nothing else goes out.
    run_as_user.sendmail("-f", "<>", "bob@[127.0.0.1]", stdin=b"Subject: s\n\n")
    run_as_user.flush()
    assert mark.read_text() == "a program\n"
    mark.unlink()

    # The machine's own places, put elsewhere: no configuration there, and the queue with the message.
    extra = (
        "from minisend.config import files\n"
        f"files.SYSTEM_FILE, files.SYSTEM_SPOOL = '{tmp_path}/none', '{run_as_user.spool}'\n"
    )
    run_as_user.make_due()
    code, said = run(home, [*script(tmp_path, "minisend", extra), "flush"])
    # Its own server would listen on port 25 of this address.
    assert (code, said) == (69, "0 delivered, 0 waiting, 1 failed\n")
    assert postfix.arrived() == []
    assert not mark.exists()
    assert not (home / "state").exists()
