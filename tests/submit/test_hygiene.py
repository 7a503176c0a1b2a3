"""What a caller leaves behind for sendmail, and what sendmail leaves behind: locks, signals, accounts, limits, terminals.

Closed descriptors, umask, locale, signals while reading and small disks are in test_command.py.
"""

import fcntl
import os
import pathlib
import pty
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile

import pytest

from minisend.config.load import load
from minisend.delivery.outgoing import Outgoing
from minisend.envelope import Envelope
from minisend.message.complete import complete, facts_for
from minisend.message.header import find, split
from minisend.spool.record import head_length, parse_head
from minisend.spool.store import Queue

ROOT = pathlib.Path(__file__).resolve().parents[2]
_WAIT = 30.0


def accepted(done: "subprocess.CompletedProcess[bytes]") -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def refused(done: "subprocess.CompletedProcess[bytes]", code: int, words: bytes) -> None:
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(b"sendmail: ") and words in done.stderr
    assert done.stderr.count(b"\n") == done.stderr.endswith(b"\n") == 1


def limited(which: int, value: int):
    """A preexec_fn."""
    return lambda: resource.setrlimit(which, (value, value))


# -- the flusher that outlives us


class Stalled:
    """A server that takes connections and says nothing: whoever delivers to it lives until it ends."""

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_WAIT)
        self.port = self._listener.getsockname()[1]
        self._connection = None
        return self

    def __exit__(self, *exc_info):
        self._listener.close()
        if self._connection is not None:
            self._connection.close()

    def wait(self) -> None:
        """Until a client is there."""
        self._connection, _ = self._listener.accept()


def flusher_of(config: pathlib.Path) -> int:
    """The process id of the one flusher that was started with this configuration."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = pathlib.Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if b"--background" in words and os.fsencode(config) in words:
            found.append(int(name))
    [pid] = found
    return pid


@pytest.fixture
def stalled(sendmail):
    """``sendmail`` delivers in the background, to a server that keeps the flusher alive until the test is over."""
    sendmail.command.remove("-odq")
    with Stalled() as server:
        sendmail.config.write_text(
            f'[spool]\npath = "{sendmail.spool}"\n'
            f'[smarthost]\nhost = "127.0.0.1"\nport = {server.port}\ntls = "none"\n'
        )
        yield server
        ended = os.pidfd_open(flusher_of(sendmail.config))
    assert select.select([ended], [], [], _WAIT)[0], "the flusher does not end"
    os.close(ended)


def test_the_flusher_holds_nothing_of_the_callers(sendmail, stalled, tmp_path):
    """The caller's lock is free, and who reads its pipes sees their end, as soon as sendmail exits."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    read, write = os.pipe()
    process = subprocess.Popen(
        [*sendmail.command, "-odb", "b@example.net"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(lock, write),
        env={"PATH": "/usr/bin:/bin"},
    )
    os.close(lock)
    os.close(write)
    try:
        # returns when nobody has its standard output and error open any more
        assert process.communicate(timeout=_WAIT) == (b"", b"")
        assert process.returncode == 0
        stalled.wait()
        # the flusher lives
        pid = flusher_of(sendmail.config)
        assert select.select([read], [], [], _WAIT)[0], "the pipe is still open"
        assert os.read(read, 1) == b""
        again = os.open(tmp_path / "lock", os.O_RDWR)
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(again)
        targets = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert [targets.pop(fd) for fd in ("0", "1", "2")] == ["/dev/null"] * 3
        kinds = (sendmail.spool, "socket:", "anon_inode:")
        assert [target for target in targets.values() if not target.startswith(kinds)] == []
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) == pid
    finally:
        os.close(read)


# What the interpreter ignores on its own in every process.
_PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}


def test_the_signals_of_the_flusher_are_not_the_callers(sendmail, stalled):
    def prepare():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTSTP, signal.SIGTERM])
        for number in (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    accepted(sendmail.run("-odb", "b@example.net", preexec_fn=prepare))
    stalled.wait()
    status = pathlib.Path(f"/proc/{flusher_of(sendmail.config)}/status").read_text()
    masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))

    def members(mask: str) -> set[int]:
        bits = int(masks[mask], 16)
        # not 32 and 33, which are the C library's own
        return {number for number in signal.valid_signals() if bits >> (number - 1) & 1}

    assert members("SigBlk") == set()
    assert members("SigIgn") == _PYTHONS_OWN


def test_a_caller_that_ignores_its_children(sendmail):
    """With SIGCHLD ignored there is nobody to wait for; -odi still ends, and ends with 0."""
    sendmail.command.remove("-odq")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    sendmail.config.write_text(
        f'[spool]\npath = "{sendmail.spool}"\n'
        f'[smarthost]\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\n'
    )
    accepted(
        sendmail.run("-odi", "b", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    )
    assert len(os.listdir(f"{sendmail.spool}/queue/cur")) == 1


# -- called by other names


@pytest.mark.parametrize("name", ["mailq", "newaliases", "sendmail", "sendmail.minisend"])
@pytest.mark.parametrize("target", ["absolute", "relative"])
@pytest.mark.parametrize("called", ["by its path", "in PATH"])
def test_by_a_link(sendmail, tmp_path, name, target, called):
    """/usr/sbin/sendmail is a file; /usr/lib/sendmail, /usr/bin/mailq and newaliases are links to it."""
    _, _, rest = sendmail.launcher.read_text().partition("\n")
    (tmp_path / "sbin").mkdir()
    (tmp_path / "lib").mkdir()
    program = tmp_path / "sbin" / "sendmail"
    program.write_text(f"#!{sys.executable} -IS\n{rest}")
    program.chmod(0o755)
    link = tmp_path / "lib" / name
    link.symlink_to(program if target == "absolute" else "../sbin/sendmail")
    arguments = ["-odq", "b@example.net"] if name.startswith("sendmail") else []
    done = subprocess.run(
        [name if called == "in PATH" else str(link), "-C", str(sendmail.config), *arguments],
        input=b"Hello.\n",
        capture_output=True,
        check=False,
        env={"PATH": f"{tmp_path}/lib:/usr/bin:/bin"},
    )
    listing = b"\t\tTotal requests: 0\nMail queue is empty\n" if name == "mailq" else b""
    assert (done.returncode, done.stdout, done.stderr) == (0, listing, b"")
    assert [envelope.recipients[0].address for envelope, _ in sendmail.queued()] == (
        [b"b@example.net"] if name.startswith("sendmail") else []
    )


# -- whose message it is

STRANGER = 65432  # no account
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture
def stranger(sendmail):
    """``sendmail`` where any account can run it, with a spool that STRANGER may make; by the system's interpreter."""
    if os.geteuid() != 0:
        pytest.skip("becomes another account: needs root")
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        place.chmod(0o777)
        sendmail.spool = f"{directory}/spool"
        for file in (sendmail.launcher, sendmail.config):
            text = file.read_text().replace(str(sendmail.directory), directory)
            (place / file.name).write_text(text)
            (place / file.name).chmod(0o644)
        sendmail.launcher = place / "sendmail"
        sendmail.program = [SYSTEM_PYTHON, "-IS", str(sendmail.launcher)]
        sendmail.command = [*sendmail.program, "-C", f"{directory}/config.toml", "-odq"]
        probe = [*sendmail.program, "--version"]
        try:
            found = subprocess.run(
                probe, user=STRANGER, extra_groups=[], capture_output=True, check=False
            )
        except OSError:
            pytest.skip(f"{SYSTEM_PYTHON} is missing or not for all")
        if found.returncode:
            pytest.skip("the checkout is not readable for all")
        yield sendmail


def stored(sendmail) -> tuple[Envelope, bytes]:
    """The one queued message and its header as it would go out; the queue is another account's."""
    new = f"{sendmail.spool}/queue/new"
    [name] = os.listdir(new)
    octets = pathlib.Path(new, name).read_bytes()
    length = head_length(octets)
    envelope, size = parse_head(octets[:length])
    header = split(octets[length : length + size], complete=True)
    facts = facts_for(envelope, b"host.example", b"example.org")
    return envelope, complete(header, envelope, facts)


LIES = {
    "LOGNAME": "root",
    "USER": "root",
    "HOME": "/root",
    "EMAIL": "root@example.org",
    "SUDO_USER": "root",
    "MAILUSER": "root",
    "XDG_CONFIG_HOME": "/root",
    "PATH": "/usr/bin:/bin",
}


@pytest.mark.parametrize(
    ("arguments", "environment", "sender", "field"),
    [
        ([], {}, b"uid65432", b" uid65432@example.org"),
        ([], LIES, b"uid65432", b" uid65432@example.org"),
        (["-f", "alice@example.net"], LIES, b"alice@example.net", b" alice@example.net"),
        (["-f", "alice"], LIES, b"alice", b" alice@example.org"),
        (["-f", ""], LIES, b"", b" uid65432@example.org"),
        ([], {"NAME": "A Name"}, b"uid65432", b" A Name <uid65432@example.org>"),
        (["-F", "Doe, J"], {"NAME": "X"}, b"uid65432", b' "Doe, J" <uid65432@example.org>'),
    ],
    ids=["bare", "lies", "-f", "-f bare", "-f null", "NAME", "-F"],
)
def test_a_uid_without_an_account(stranger, arguments, environment, sender, field):
    accepted(
        stranger.run(
            *arguments, "b", env=environment, user=STRANGER, group=STRANGER, extra_groups=[]
        )
    )
    envelope, header = stored(stranger)
    assert (envelope.uid, envelope.login, envelope.sender) == (STRANGER, b"uid65432", sender)
    fields = split(header, complete=True).fields
    assert [each.value for each in find(fields, b"from")] == [field]
    [received] = find(fields, b"received")
    assert b" (minisend, from userid 65432 (uid65432))\n" in received.raw


def test_the_real_uid_counts_and_not_the_effective(stranger):
    """As from a set-uid program: the queue is the effective account's, the message the real one's."""
    done = subprocess.run(
        [
            *(SYSTEM_PYTHON, "-c", "import os, sys; os.setresuid(65432, 0, 0); os.execv(*sys.argv[1:2], sys.argv[1:])"),
            *(*stranger.command, "b"),
        ],
        input=b"Hello.\n",
        capture_output=True,
        check=False,
    )  # fmt: skip
    accepted(done)
    envelope, _ = stored(stranger)
    assert (envelope.uid, envelope.sender) == (STRANGER, b"uid65432")
    assert os.stat(f"{stranger.spool}/queue").st_uid == 0


def test_the_group_of_a_daemon(stranger):
    """The group of the caller is neither needed nor given anything."""
    for group in (1, 1, STRANGER):
        accepted(stranger.run("b", user=STRANGER, group=group, extra_groups=[1]))
    names = [
        os.path.join(path, name)
        for path, directories, files in os.walk(stranger.spool)
        for name in [*directories, *files]
    ]
    assert len(names) == len(["queue", "new", "cur", "hold", "failed", "tmp"]) + 3
    assert {os.stat(name).st_uid for name in names} == {STRANGER}
    assert {os.stat(name).st_mode & 0o077 for name in names} == {0}


def test_no_room_for_another_process(stranger):
    """The flusher cannot be started: the message is queued all the same, and nobody is told otherwise."""
    stranger.command.remove("-odq")
    done = stranger.run(
        "b", user=STRANGER, extra_groups=[], preexec_fn=limited(resource.RLIMIT_NPROC, 0)
    )
    accepted(done)
    assert stored(stranger)[0].recipients[0].address == b"b"


@pytest.mark.parametrize("source", ["-F", "NAME"])
@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("x\nBcc: evil@example.com", b'"x Bcc: evil@example.com"'),
        ("x\r\n\r\nbody", b"x body"),
        ("x\r\n\tBcc: evil@example.com\r\n", b'"x Bcc: evil@example.com"'),
        ("x\rTo: y", b'"x To: y"'),
        ('x" <evil@example.com>,\n "', b'"x\\" <evil@example.com>, \\""'),
        ("Zoë\nX: y", b"=?utf-8?q?Zo=C3=AB_X=3A_y?="),
        ("x\x0b\x1b[2J\x7fy", b'"x [2J y"'),
    ],
    ids=ascii,
)
def test_a_name_adds_no_header(sendmail, name, phrase, source):
    if source == "-F":
        accepted(sendmail.run("-f", "s@example.org", "-F", name, "b"))
    else:
        accepted(sendmail.run("-f", "s@example.org", "b", env={"NAME": name}))
    config = load(str(sendmail.config), {}, os.getuid(), os.geteuid())
    with Queue(sendmail.spool) as queue:
        [place] = queue.places("new")
        with queue.claim(place) as entry:
            outgoing = Outgoing(entry, config)
            assert b"".join(outgoing.body()) == b"Hello.\n"
    fields = split(outgoing.header, complete=True).fields
    assert [field.name for field in fields] == [b"Received", b"Date", b"From", b"Message-ID"]
    assert fields[2].value.replace(b"\n", b"") == b" " + phrase + b" <s@example.org>"


# -- what stands on the standard descriptors


def test_dev_null_for_stdin(sendmail):
    accepted(sendmail.run("b", stdin=subprocess.DEVNULL))
    assert sendmail.message() == b""


@pytest.mark.parametrize(
    ("arguments", "typed", "message"),
    [
        (["b"], b"Hello.\n.\n", b"Hello.\n"),
        (["b"], b"Hello.\n\x04", b"Hello.\n"),
        (["-i", "b"], b"Hello.\n.\n\x04", b"Hello.\n.\n"),
        (["-t"], b"To: b\n\nHello.\n.\n", b"To: b\n\nHello.\n"),
        (["-t"], b"To: b\n.\n", b"To: b\n"),
        (["b"], b".\n", b""),
    ],
    ids=["a dot", "end of file", "-i", "-t", "-t, no body", "a dot alone"],
)
def test_a_terminal_for_stdin(sendmail, arguments, typed, message):
    """It ends with the line of a dot, although the terminal stays; nothing is said there."""
    ours, theirs = pty.openpty()
    os.write(ours, typed)
    process = subprocess.Popen(
        [*sendmail.command, *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin"},
    )
    try:
        assert process.communicate(timeout=_WAIT) == (b"", b"")
    finally:
        process.kill()
        os.close(theirs)
        os.close(ours)
    assert process.returncode == 0
    assert sendmail.message() == message
    assert sendmail.recipients() == [b"b"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["b"], 0), (["bad@@b"], 65), ([], 64), (["--help"], 71), (["--version"], 71), (["-bp"], 71)],
    ids=str,
)
def test_full_standard_output_and_error(sendmail, arguments, code):
    """A message needs neither; who asked for something to be printed learns that it was not."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*sendmail.command, *arguments], input=b"x", stdout=full, stderr=full, check=False
        )
    assert done.returncode == code
    assert len(sendmail.queued()) == (code == 0)


@pytest.mark.parametrize("argument", ["--help", "--version", "-bp"])
def test_a_standard_output_that_nobody_reads(sendmail, argument):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*sendmail.command, argument],
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


# -- much, and little


@pytest.mark.parametrize("shape", ["arguments", "one argument", "-t", "both"])
def test_a_thousand_recipients_and_more(sendmail, shape):
    wanted = [b"user%04d@example.net" % number for number in range(1500)]
    half = len(wanted) // 2
    header = b"To: " + b",\r\n ".join(wanted[half:] if shape == "both" else wanted) + b"\r\n\r\n"
    arguments = {
        "arguments": wanted,
        "one argument": [b", ".join(wanted)],
        "-t": [b"-t"],
        "both": [b"-t", *wanted[:half]],
    }[shape]
    accepted(sendmail.run(*arguments, message=header))
    assert sendmail.recipients() == wanted


def test_a_command_line_as_long_as_they_come(sendmail):
    wanted = [b"u%05d@e" % number for number in range(100_000)]
    # each word costs its octets, a NUL and a pointer
    if os.sysconf("SC_ARG_MAX") < sum(len(word) + 9 for word in wanted) + 10_000:
        pytest.skip("the system takes no such command line")
    accepted(sendmail.run(*wanted))
    assert sendmail.recipients() == wanted


@pytest.mark.parametrize("message", [b"Hello.\n", b"x" * 1_000_000], ids=["small", "large"])
def test_eight_descriptors_are_enough(sendmail, message):
    accepted(sendmail.run("b", message=message, preexec_fn=limited(resource.RLIMIT_NOFILE, 8)))
    assert sendmail.message() == message


@pytest.mark.parametrize("number", [4, 5])
def test_too_few_descriptors(sendmail, number):
    accepted(sendmail.run("first"))
    limit = limited(resource.RLIMIT_NOFILE, number)
    refused(sendmail.run("b", preexec_fn=limit), 75, b"Too many open files")
    assert sendmail.recipients() == [b"first"]


def test_too_little_memory(sendmail):
    """A long list of recipients does not fit, a long message does."""
    limit = limited(resource.RLIMIT_AS, 40 << 20)
    header = b"To: " + b",".join(b"u%05d" % number for number in range(140_000)) + b"\n\n"
    accepted(sendmail.run("b", message=b"x" * 4_000_000, preexec_fn=limit))
    refused(sendmail.run("-t", message=header, preexec_fn=limit), 71, b"not enough memory")
    assert len(sendmail.message()) == 4_000_000
