"""What a submission loads: the exact set of modules, as each costs the time of every mail (DESIGN: process model).

Measured over a bare ``python3 -IS``: re 5 ms, socket 6, argparse 7, typing 8, logging 12, tomllib 12,
dataclasses 13, email 15.  A module that turns up here unasked is one of those, or leads to one.
"""

import os
import pathlib
import subprocess
import sys

import pytest
from delivery.scripted import ScriptedServer
from delivery.spooled import put
from spool.scripted import Scripted
from spool.system import ROOT as ROOT_USER

ROOT = pathlib.Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
INTERPRETERS = sorted(
    {sys.executable, SYSTEM_PYTHON} if os.path.exists(SYSTEM_PYTHON) else {sys.executable}
)

# The launcher that packages install, ending with a list of what was loaded instead of with the process.
LAUNCHER = """\
import posix, sys
before = set(sys.modules)
sys.path.insert(0, {root!r})
def finish(code):
    posix.write(1, " ".join([str(code), *sorted(set(sys.modules) - before)]).encode())
    end(code)
end = posix._exit
posix._exit = finish
from minisend.__main__ import main
sys.exit(main())
"""

ALWAYS = {
    "_blake2",
    "_signal",
    "binascii",
    "errno",
    "fcntl",
    "minisend",
    "minisend.__main__",
    "minisend.address",
    "minisend.config",
    "minisend.config.files",
    "minisend.config.forms",
    "minisend.config.keys",
    "minisend.config.submission",
    "minisend.config.toml",
    "minisend.envelope",
    "minisend.errors",
    "minisend.spool",
    "minisend.spool.account",
    "minisend.spool.disk",
    "minisend.spool.enqueue",
    "minisend.spool.place",
    "minisend.spool.record",
    "minisend.submit",
    "minisend.submit.command",
    "minisend.submit.handover",
    "minisend.submit.identity",
    "minisend.submit.options",
    "minisend.submit.stdin",
    "pwd",
    "select",
}
FROM_HEADER = {
    "minisend.message",
    "minisend.message.header",
    "minisend.message.recipients",
}
# Loaded by the interpreter itself on some versions and not on others, whatever it runs.
INTERPRETERS_OWN = {"_signal", "errno", "binascii"}


# The machine's own configuration and spool, put elsewhere.
NO_CONFIGURATION = """\
from minisend.config import files
files.SYSTEM_FILE, files.SYSTEM_SPOOL = {file!r}, {spool!r}
"""


def loaded(interpreter, directory, *arguments, message=b"To: b@example.net\n\nHello.\n", extra=""):
    """Exit code of a submission, the modules it loaded, and what it said on standard error."""
    launcher = directory / "sendmail"
    first, main, last = LAUNCHER.format(root=str(ROOT)).rpartition("from minisend")
    launcher.write_text(first + extra + main + last)
    done = subprocess.run(
        [interpreter, "-IS", str(launcher), *arguments],
        input=message,
        capture_output=True,
        env={"HOME": str(directory), "MINISEND_CONFIG": str(directory / "config.toml")},
        check=False,
    )
    code, *modules = done.stdout.decode().split()
    return int(code), set(modules), done.stderr


@pytest.fixture(params=INTERPRETERS)
def interpreter(request):
    return request.param


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        f'hostname = "host.example.org"\n\n[spool]\npath = "{tmp_path}/spool"  # here\n'
        'max_message_size = "10M"\n\n[smarthost]\nhost = "smtp.example.org"\n'
    )
    return path


def check(outcome, expected):
    code, modules, errors = outcome
    assert (code, errors) == (0, b"")
    assert modules - INTERPRETERS_OWN == expected - INTERPRETERS_OWN


def test_the_launcher_isolates():
    """-I: nothing of the caller's environment or directory; -S: no site-packages, which take 2 ms to look for."""
    launcher = (ROOT / "packaging" / "launcher.in").read_text()
    assert launcher.startswith("#!/usr/bin/python3 -IS\n")


def test_without_any_configuration(interpreter, tmp_path):
    (tmp_path / "spool").mkdir()
    extra = NO_CONFIGURATION.format(file=f"{tmp_path}/none", spool=f"{tmp_path}/spool")
    check(loaded(interpreter, tmp_path, "-odq", "b@example.net", extra=extra), ALWAYS)
    assert len(os.listdir(tmp_path / "spool" / "queue" / "new")) == 1


def test_with_a_configuration_found(interpreter, tmp_path, config):
    check(loaded(interpreter, tmp_path, "-odq", "b@example.net"), ALWAYS)


def test_with_a_configuration_named(interpreter, tmp_path, config):
    check(loaded(interpreter, tmp_path, "-C", str(config), "-odq", "b@example.net"), ALWAYS)


def test_recipients_from_the_header(interpreter, tmp_path, config):
    check(loaded(interpreter, tmp_path, "-odq", "-t", "-i"), ALWAYS | FROM_HEADER)


def test_every_option_that_callers_give(interpreter, tmp_path, config):
    options = ["-oi", "-om", "-oem", "-f", "a@example.org", "-F", "Ä. Name", "-B8BITMIME", "-odq"]
    check(loaded(interpreter, tmp_path, *options, "--", "b@example.net", "c"), ALWAYS)


def test_a_large_message(interpreter, tmp_path, config):
    message = b"x" * 70 + b"\n"
    check(loaded(interpreter, tmp_path, "-odq", "b", message=message * 20_000), ALWAYS)


SOCKET = {"_socket", "minisend.spool.client", "minisend.spool.protocol"}
DROP = {"minisend.spool.admission", "minisend.spool.drop"}


@pytest.fixture
def of_a_system(system, config):
    """A queue that is another account's, with its socket and its drop directory."""
    if not ROOT_USER:
        pytest.skip("needs another account")
    config.write_text(
        f'[spool]\npath = "{system.spool}"\n'
        f'[submission]\nsocket = "{system.top}/submit.sock"\ndrop = "{system.drop}"\n'
    )
    return system


def test_by_the_socket(interpreter, tmp_path, of_a_system):
    service = Scripted(of_a_system.top)
    service.follow([b"minisend 1\nOK 0123456789abcdef\n", None])
    check(loaded(interpreter, tmp_path, "b@example.net"), ALWAYS | SOCKET)
    service.close()
    assert service.heard[0].endswith(b"ACK\n")


def test_by_the_drop(interpreter, tmp_path, of_a_system):
    check(loaded(interpreter, tmp_path, "b@example.net"), ALWAYS | SOCKET | DROP)
    assert len(of_a_system.leaf("new")) == 1


def test_a_configuration_that_the_scanner_leaves_to_tomllib(interpreter, tmp_path, config):
    """The price of a file that is not plain, and the proof that the others do not pay it."""
    config.write_text(f'spool.path = "{tmp_path}/spool"\n')
    code, modules, errors = loaded(interpreter, tmp_path, "-odq", "b@example.net")
    assert (code, errors) == (0, b"")
    assert "tomllib" in modules


# What a delivery to a smarthost loads, without TLS or a login: each submission starts one.  What ``dataclasses``,
# ``typing``, ``re``, ``enum``, ``threading``, ``argparse`` and ``json`` lead to is 70 ms.
FLUSH = {
    "__future__",
    "_blake2",
    "_collections",
    "_socket",
    "_struct",
    "fcntl",
    "itertools",
    "math",
    "minisend",
    "minisend.__main__",
    "minisend.address",
    "minisend.admin",
    "minisend.admin.command",
    "minisend.admin.flush",
    "minisend.admin.owner",
    "minisend.admin.progress",
    "minisend.admin.signals",
    "minisend.admin.terminal",
    "minisend.config",
    "minisend.config.checks",
    "minisend.config.files",
    "minisend.config.forms",
    "minisend.config.keys",
    "minisend.config.load",
    "minisend.config.machine",
    "minisend.config.mistakes",
    "minisend.config.sections",
    "minisend.config.toml",
    "minisend.delivery",
    "minisend.delivery.attempt",
    "minisend.delivery.bounce",
    "minisend.delivery.condition",
    "minisend.delivery.core_dump",
    "minisend.delivery.destination",
    "minisend.delivery.flood",
    "minisend.delivery.flush",
    "minisend.delivery.lane",
    "minisend.delivery.lanes",
    "minisend.delivery.mx",
    "minisend.delivery.outgoing",
    "minisend.delivery.pace",
    "minisend.delivery.pickup",
    "minisend.delivery.policy",
    "minisend.delivery.rate",
    "minisend.delivery.remote",
    "minisend.delivery.retry",
    "minisend.delivery.route",
    "minisend.delivery.slots",
    "minisend.delivery.workers",
    "minisend.envelope",
    "minisend.errors",
    "minisend.kept",
    "minisend.log",
    "minisend.message",
    "minisend.message.complete",
    "minisend.message.date",
    "minisend.message.dsn",
    "minisend.message.header",
    "minisend.smtp",
    "minisend.smtp.client",
    "minisend.smtp.deadlines",
    "minisend.smtp.dialogue",
    "minisend.smtp.opening",
    "minisend.smtp.reply",
    "minisend.smtp.session",
    "minisend.smtp.stream",
    "minisend.smtp.transaction",
    "minisend.smtp.wire",
    "minisend.spool",
    "minisend.spool.changes",
    "minisend.spool.disk",
    "minisend.spool.enqueue",
    "minisend.spool.place",
    "minisend.spool.record",
    "minisend.spool.entry",
    "minisend.spool.store",
    "minisend.spool.tombstone",
    "minisend.value",
    "resource",
    "select",
    "struct",
}
FLUSH_ARGUMENTS = 'sys.argv = ["minisend", "-C", {config!r}, "flush", "--quiet"]\n'


def test_a_flush(interpreter, tmp_path):
    spool = tmp_path / "spool"
    config = tmp_path / "config.toml"
    with ScriptedServer(lambda command: None) as server:
        config.write_text(
            f'hostname = "host.example.org"\n[spool]\npath = "{spool}"\n'
            f'[smarthost]\nhost = "127.0.0.1"\nport = {server.port}\ntls = "none"\n'
        )
        put(str(spool), 1, b"b@example.net")
        code = LAUNCHER.replace("from minisend", FLUSH_ARGUMENTS + "from minisend", 1)
        code = code.format(root=str(ROOT), config=str(config))
        done = subprocess.run(
            [interpreter, "-IS", "-c", code], capture_output=True, env={}, check=False
        )
    status, *modules = done.stdout.decode().split()
    assert (status, done.stderr, len(server.messages)) == ("0", b"", 1)
    assert set(modules) - INTERPRETERS_OWN == FLUSH - INTERPRETERS_OWN
