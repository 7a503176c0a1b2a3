"""The sendmail command as a process: exit 0 and the message is in the queue, or a code, one line on stderr, and nothing kept."""

import itertools
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys

import pytest

HEADER = b"From: a@example.org\nTo: b@example.net\nSubject: x\n"


def refused(done: subprocess.CompletedProcess[bytes], code: int, *words: bytes) -> None:
    """It ended with this code and one line, of sendmail's, with these words in it."""
    assert done.returncode == code, done.stderr
    assert done.stdout == b""
    assert done.stderr.startswith(b"sendmail: ")
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.endswith(b"\n")
    assert done.stderr[:-1].decode().isprintable()
    assert b"internal error" not in done.stderr
    for word in words:
        assert word in done.stderr


def accepted(done: subprocess.CompletedProcess[bytes]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# -- what is queued


def test_the_envelope(sendmail):
    accepted(
        sendmail.run(
            "-f",
            "s@example.org",
            "-F",
            "A Name",
            "-B8BITMIME",
            "-Rhdrs",
            "-Vid",
            "b@example.net",
            "c",
        )
    )
    [(envelope, octets)] = sendmail.queued()
    assert octets == b"Hello.\n"
    assert [recipient.address for recipient in envelope.recipients] == [b"b@example.net", b"c"]
    assert (envelope.sender, envelope.sender_given) == (b"s@example.org", True)
    assert (envelope.full_name, envelope.body, envelope.ret, envelope.envid) == (
        b"A Name",
        "8BITMIME",
        "HDRS",
        "id",
    )
    assert (envelope.uid, envelope.from_headers) == (os.getuid(), False)
    assert len(envelope.queue_id) == 16


@pytest.mark.parametrize(
    ("arguments", "sender", "given"),
    [
        ([], None, False),
        (["-f", ""], b"", True),
        (["-f<>"], b"", True),
        (["-f", "<a@b>"], b"a@b", True),
        (["-f", "N <a@b>"], b"a@b", True),
        (["-f", "alice"], b"alice", True),
        (["-f", "a@b", "-r", "c@d"], b"c@d", True),
    ],
    ids=str,
)
def test_the_sender(sendmail, arguments, sender, given):
    environment = {"LOGNAME": "wrong", "USER": "wrong", "EMAIL": "wrong@example.org"}
    accepted(sendmail.run(*arguments, "b", env=environment))
    [(envelope, _)] = sendmail.queued()
    assert (envelope.sender, envelope.sender_given) == (
        envelope.login if sender is None else sender,
        given,
    )


def test_name_from_the_environment(sendmail):
    accepted(sendmail.run("b", env={"NAME": "The Name"}))
    assert sendmail.queued()[0][0].full_name == b"The Name"


def test_each_recipient_once(sendmail):
    accepted(sendmail.run("a@b.example, A@b.example", "a@B.example", "<c>", "Name <c>"))
    assert sendmail.recipients() == [b"a@b.example", b"A@b.example", b"c"]


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"no header at all", id="no header, no line end"),
        pytest.param(HEADER + b"\nbody\n", id="header and body"),
        pytest.param(HEADER[:-1], id="ends in the header"),
        pytest.param(HEADER + b"text without an empty line\n", id="no empty line"),
        pytest.param(b"From root Mon Nov 23 2026\n" + HEADER + b"\nx\n", id="From line"),
        pytest.param((HEADER + b"\nbody\n").replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(HEADER.replace(b"\n", b"\r\n") + b"\nbody\r\n\n", id="mixed line ends"),
        pytest.param(HEADER + b"\nbare\rCR\n", id="bare CR"),
        pytest.param(HEADER + b"\nN\0UL\n", id="NUL"),
        pytest.param(HEADER + b"\n" + b"x" * 10_000 + b"\n", id="a line of 10,000 octets"),
        pytest.param(HEADER + b"\n\xff\xfe8-bit\n", id="8-bit"),
        pytest.param(HEADER + b"\n..\n .\n.x\n", id="dots that end nothing"),
        pytest.param(b"X: " + b"y" * 1_100_000 + b"\n", id="a header without an end"),
        pytest.param(HEADER + b"\n" + (b"z" * 70 + b"\n") * 20_000, id="large"),
        pytest.param(b"\n\n\n", id="empty lines"),
        pytest.param(b"minisend-queue 1\n\nend\t0\n", id="looks like a queue file"),
    ],
)
def test_every_octet_is_kept_as_it_came(sendmail, message):
    accepted(sendmail.run("-i", "b@example.net", message=message))
    assert sendmail.message() == message


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ([], b"one\n"),
        (["-i"], b"one\n.\ntwo\n"),
        (["-oi"], b"one\n.\ntwo\n"),
        (["-t"], b"To: b\n\none\n"),
    ],
    ids=str,
)
def test_a_lone_dot(sendmail, arguments, kept):
    message = b"one\n.\ntwo\n"
    if "-t" in arguments:
        accepted(sendmail.run(*arguments, message=b"To: b\n\n" + message))
    else:
        accepted(sendmail.run(*arguments, "b", message=message))
    assert sendmail.message() == kept


# -- recipients from the header


@pytest.mark.parametrize(
    ("header", "arguments", "expected"),
    [
        (b"To: a@b\n", [], [b"a@b"]),
        (b"to: a@b\nCC: c\nBcc: d@e, f\n", [], [b"a@b", b"c", b"d@e", b"f"]),
        (b"To: a@b,\n c@d\n\n", [], [b"a@b", b"c@d"]),
        (b"To: a@b\r\nCc: c@d\r\n\r\n", [], [b"a@b", b"c@d"]),
        (b"To: a@b", [], [b"a@b"]),
        (b"To: a@b\n\nCc: not@header\n", [], [b"a@b"]),
        (b"From x\nTo: a@b\n\n", [], [b"a@b"]),
        (b"To: a@b\nCc: a@B\n", ["c@d", "a@b"], [b"c@d", b"a@b"]),
        (b"To: undisclosed-recipients:;\nBcc: x@y\n", [], [b"x@y"]),
        (b"To: a@b\nResent-To: c@d\n", [], [b"c@d"]),
    ],
)
def test_recipients_from_the_header(sendmail, header, arguments, expected):
    accepted(sendmail.run("-t", "-i", *arguments, message=header))
    assert sendmail.recipients() == expected
    assert sendmail.message() == header


@pytest.mark.parametrize("filler", [b"X: y\n", b"X: " + b"z" * 5000 + b"\n"], ids=["short", "long"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "without an end"])
def test_a_header_up_to_a_mebibyte(sendmail, filler, ended):
    count = ((1 << 20) - 100) // len(filler)
    message = b"To: a@b\n" + filler * count + b"Cc: c@d\n" + (b"\nbody\n" if ended else b"")
    assert len(message) < 1 << 20
    accepted(sendmail.run("-t", message=message))
    assert sendmail.recipients() == [b"a@b", b"c@d"]
    assert sendmail.message() == message


@pytest.mark.parametrize("source", ["pipe", "file"])
def test_a_header_over_a_mebibyte(sendmail, source, tmp_path):
    """The same octets get the same answer, however they come."""
    message = b"To: a@b\n" + b"X: y\n" * ((1 << 20) // 5 + 10) + b"\nbody\n"
    if source == "pipe":
        done = sendmail.run("-t", message=message)
    else:
        (tmp_path / "message").write_bytes(message)
        with open(tmp_path / "message", "rb") as file:
            done = sendmail.run("-t", stdin=file)
    refused(done, 65, b"no end of the header within 1048576 octets")
    assert sendmail.queued() == []


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "message", "code", "words"),
    [
        pytest.param([], b"x\n", 64, b"no recipients", id="no recipients"),
        pytest.param(["--"], b"x\n", 64, b"no recipients", id="no recipients after --"),
        pytest.param(["-t"], b"Subject: x\n\nTo: a@b\n", 64, b"no recipients", id="-t, none"),
        pytest.param(["-t"], b"To: undisclosed:;\n", 64, b"no recipients", id="-t, empty group"),
        pytest.param(["-t"], b"", 64, b"no recipients", id="-t, no message"),
        pytest.param(["-Z", "a@b"], b"x\n", 64, b"-Z", id="unknown option"),
        pytest.param(["-f"], b"x\n", 64, b"-f needs a value", id="no value"),
        pytest.param(["-bd"], b"x\n", 64, b"-bd", id="mode"),
        pytest.param(["a@b\nRCPT TO:<c@d>"], b"x\n", 65, b"", id="LF in an address"),
        pytest.param(["a@b\r\nDATA"], b"x\n", 65, b"", id="CRLF in an address"),
        pytest.param(["a\r@b"], b"x\n", 65, b"", id="CR in an address"),
        pytest.param(["\n"], b"x\n", 65, b"", id="a line end for an address"),
        pytest.param(["-f", "a@b\nc@d", "x"], b"x\n", 65, b"", id="LF in the sender"),
        pytest.param(["-f", "a@b>\r\nRCPT TO:<x", "x"], b"x\n", 65, b"", id="CRLF in the sender"),
        pytest.param([""], b"x\n", 65, b"", id="empty address"),
        pytest.param(["@b"], b"x\n", 65, b"", id="no local part"),
        pytest.param(["a@"], b"x\n", 65, b"", id="no domain"),
        pytest.param(["good@b", "bad@@b"], b"x\n", 65, b"", id="one bad among good"),
        pytest.param(["a@b \x01"], b"x\n", 65, b"", id="control character"),
        pytest.param([b"a@b \xff\xfe"], b"x\n", 65, b"", id="not UTF-8"),
        pytest.param(["-t"], b"To: a@b, c@@d\n", 65, b"", id="-t, bad address"),
        pytest.param(["-t"], b'To: "x\n y\x0b"@b\n', 65, b"", id="-t, control character"),
        pytest.param(["a@b"], b"x" * 4_194_305, 69, b"4194304", id="too big"),
        pytest.param(["-t"], b"To: b\n\n" + b"x" * 4_194_305, 69, b"4194304", id="-t, too big"),
    ],
)
def test_bad_input(sendmail, arguments, message, code, words):
    refused(sendmail.run(*arguments, message=message), code, words)
    assert sendmail.queued() == []


def test_as_large_as_allowed(sendmail):
    accepted(sendmail.run("b", message=b"x" * 4_194_304))
    assert len(sendmail.message()) == 4_194_304


def test_stdin_is_a_directory(sendmail, tmp_path):
    """The interpreter itself refuses it, in words of its own, before a line of ours has run (CPython, init_sys_streams)."""
    fd = os.open(tmp_path, os.O_RDONLY)
    done = sendmail.run("b", stdin=fd)
    os.close(fd)
    assert (done.returncode, b"<stdin> is a directory" in done.stderr) == (1, True)
    assert sendmail.queued() == []


def test_stdin_is_write_only(sendmail, tmp_path):
    with open(tmp_path / "x", "wb") as file:
        refused(sendmail.run("b", stdin=file), 74, b"standard input: ")
    assert sendmail.queued() == []


@pytest.mark.parametrize(
    "text", ["[spool\n", "nonsense", "[spool]\npath = 7\n", '[spool]\npath = "relative"\n', "\xff"]
)
def test_a_configuration_that_is_wrong(sendmail, text):
    sendmail.config.write_text(text, encoding="latin-1")
    refused(sendmail.run("b"), 78, b"config.toml")


def test_a_configuration_that_is_not_there(sendmail):
    sendmail.config.unlink()
    refused(sendmail.run("b"), 78, b"config.toml", b"No such file")


@pytest.mark.parametrize("arguments", [["-C"], ["-C", "", "b"]], ids=str)
def test_a_configuration_that_is_not_named(sendmail, arguments):
    done = subprocess.run(
        [*sendmail.program, *arguments], input=b"x", capture_output=True, check=False
    )
    refused(done, 78 if "b" in arguments else 64)


@pytest.mark.parametrize(
    ("place", "words"),
    [("/dev/null/spool", b"Not a directory"), ("/proc/minisend", b"/proc/minisend")],
    ids=["below a file", "where nothing can be made"],
)
def test_a_spool_that_cannot_be(sendmail, place, words):
    sendmail.configure(f'[spool]\npath = "{place}"\n')
    refused(sendmail.run("b"), 75, words)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners and mounts: needs root")


@as_root
def test_a_queue_of_somebody_elses(sendmail):
    accepted(sendmail.run("b"))
    os.chown(f"{sendmail.spool}/queue", 4242, 4242)
    refused(sendmail.run("b"), 75, b"belongs to uid 4242, not to uid 0")
    os.chown(f"{sendmail.spool}/queue", 0, 0)
    assert len(sendmail.queued()) == 1


@as_root
def test_a_spool_of_somebody_elses(sendmail):
    """The owner of the queue directory counts: it was opened without following a link, and nobody can exchange it."""
    accepted(sendmail.run("b"))
    os.chown(sendmail.spool, 4242, 4242)
    accepted(sendmail.run("b"))
    os.rename(f"{sendmail.spool}/queue", f"{sendmail.spool}/elsewhere")
    os.symlink("elsewhere", f"{sendmail.spool}/queue")
    refused(sendmail.run("b"), 75, b"queue: Not a directory")
    os.unlink(f"{sendmail.spool}/queue")
    refused(sendmail.run("b"), 75, b"belongs to uid 4242, not to uid 0")


def test_a_spool_without_write_permission(sendmail):
    accepted(sendmail.run("b"))
    if os.geteuid() == 0:
        # As in a container without it: a root for whom modes count.
        sendmail.command[:0] = ["setpriv", "--bounding-set=-dac_override"]
    os.chmod(f"{sendmail.spool}/queue/tmp", 0o500)
    refused(sendmail.run("b"), 75, b"queue/tmp", b"Permission denied")
    os.chmod(f"{sendmail.spool}/queue/tmp", 0o700)
    assert len(sendmail.queued()) == 1


@pytest.mark.parametrize("size", [3000, 100_000, 1_000_000])
def test_a_file_that_may_not_grow(sendmail, size):
    """RLIMIT_FSIZE stands for a full disk where there is no root to mount one: EFBIG and no signal."""
    accepted(sendmail.run("first"))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    done = sendmail.run("b", message=b"x" * size, preexec_fn=limit)
    refused(done, 75, b"File too large")
    assert sendmail.recipients() == [b"first"]


# Runs in a mount namespace of its own: what it mounts is gone with it.
_IN_NAMESPACE = """\
set -e
mount -t tmpfs -o "$1" none "$2"
mkdir -m 700 "$2/spool"
eval "$3"
shift 3
code=0
"$@" || code=$?
echo "code=$code left=$(find "$MOUNTED" -path '*/queue/*' -type f ! -name first | wc -l)"
"""


def _may_mount() -> bool:
    return (
        os.geteuid() == 0
        and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode
        == 0
    )


@pytest.mark.skipif(
    not _may_mount() and not os.environ.get("CI"),
    reason="mounts a small disk: needs root and unshare -m",
)
@pytest.mark.parametrize(
    ("options", "before", "size", "words"),
    [
        pytest.param("size=128k", "", 500_000, b"No space left", id="no room for a large one"),
        pytest.param(
            "size=128k",
            'head -c 200000 /dev/zero > "$MOUNTED/full" || true',
            10,
            b"No space left",
            id="no room at all",
        ),
        pytest.param("size=1m,nr_inodes=3", "", 10, b"No space left", id="no inode for the queue"),
        pytest.param("size=1m,nr_inodes=8", "", 10, b"No space left", id="no inode for the file"),
        pytest.param(
            "size=1m",
            'mount -o remount,ro "$MOUNTED"',
            10,
            b"Read-only file system",
            id="read-only",
        ),
    ],
)
def test_a_full_disk(sendmail, tmp_path, options, before, size, words):
    mounted = tmp_path / "disk"
    mounted.mkdir()
    sendmail.config.write_text(
        f'[spool]\npath = "{mounted}/spool"\nmin_free = 0\nmin_free_inodes = 0\n'
    )
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", _IN_NAMESPACE, "sh", options, str(mounted), before),
            *(*sendmail.command, "b@example.net"),
        ],
        input=b"x" * size,
        capture_output=True,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MOUNTED": str(mounted)},
    )
    assert done.stdout == b"code=75 left=0\n"
    complaints = [line for line in done.stderr.splitlines() if not line.startswith(b"head: ")]
    assert len(complaints) == 1
    assert complaints[0].startswith(b"sendmail: ")
    assert words in complaints[0]


# -- the state of the process


@pytest.mark.parametrize(
    "closed",
    [fds for n in range(4) for fds in itertools.combinations((0, 1, 2), n)],
    ids=str,
)
@pytest.mark.parametrize("good", [True, False], ids=["good", "refused"])
def test_closed_standard_descriptors(sendmail, closed, good):
    """Never a hang, never a changed exit code, and no queue file becomes standard error."""

    def close():
        for fd in closed:
            os.close(fd)

    arguments = ["b@example.net"] if good else ["bad@@b"]
    done = sendmail.run(*arguments, message=b"Hello.\n", preexec_fn=close)
    assert done.returncode == (0 if good else 65)
    assert done.stdout == b""
    assert (done.stderr != b"") == (not good and 2 not in closed)
    if good:
        assert sendmail.message() == (b"" if 0 in closed else b"Hello.\n")
    else:
        assert sendmail.queued() == []


@pytest.mark.parametrize("umask", [0o177, 0o777, 0o000, 0o077])
def test_any_umask(sendmail, umask):
    for _ in range(2):
        accepted(sendmail.run("b", preexec_fn=lambda: os.umask(umask)))
    assert len(sendmail.queued()) == 2
    modes = {os.stat(path).st_mode & 0o777 for path, _, _ in os.walk(sendmail.spool)}
    assert modes == {0o700}
    new = f"{sendmail.spool}/queue/new"
    assert {os.stat(f"{new}/{name}").st_mode & 0o777 for name in os.listdir(new)} == {0o600}


def test_an_empty_environment(sendmail):
    accepted(sendmail.run("b", env={}))
    assert sendmail.message() == b"Hello.\n"


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1", "nonsense"])
def test_octets_of_arguments_in_any_locale(sendmail, locale):
    name = "Zoë \udcff"
    done = sendmail.run("-F", name, "b", env={"LC_ALL": locale})
    assert done.returncode == 0
    assert sendmail.queued()[0][0].full_name == os.fsencode(name)


def test_a_directory_that_was_deleted(sendmail, tmp_path):
    def enter():
        os.mkdir(tmp_path / "gone")
        os.chdir(tmp_path / "gone")
        os.rmdir(tmp_path / "gone")

    accepted(sendmail.run("b", preexec_fn=enter))
    assert sendmail.message() == b"Hello.\n"


def test_a_full_stderr_changes_nothing(sendmail):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*sendmail.command], stderr=full, input=b"x", check=False)
    assert done.returncode == 64


def test_a_stderr_nobody_reads_changes_nothing(sendmail):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*sendmail.command], stderr=write, input=b"x", check=False)
    os.close(write)
    assert done.returncode == 64


def test_a_socket_for_stdin(sendmail):
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"Hello.\n")
        ours.shutdown(socket.SHUT_WR)
        accepted(sendmail.run("b", stdin=theirs))
    assert sendmail.message() == b"Hello.\n"


def drained(fd: int) -> None:
    """Return when the process at the other end of this pipe has read everything in it."""
    import fcntl
    import struct
    import termios
    import time

    until = time.monotonic() + 30
    while struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0]:
        assert time.monotonic() < until, "it does not read"
        os.sched_yield()


def test_a_stdin_that_does_not_block(sendmail):
    """Handed over empty, fed later: every EAGAIN was waited out."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    process = subprocess.Popen([*sendmail.command, "b"], stdin=read, stderr=subprocess.PIPE)
    for octets in (b"Subject: x\n", b"\n", b"body\n"):
        os.write(write, octets)
        drained(read)
    os.close(write)
    os.close(read)
    assert process.communicate(timeout=30) == (None, b"")
    assert process.returncode == 0
    assert sendmail.message() == b"Subject: x\n\nbody\n"


# -- signals


def reading(sendmail, message: bytes, *arguments: str, **options) -> "subprocess.Popen[bytes]":
    """A sendmail that has read this much of its message and waits for more."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [*sendmail.command, *arguments], stdin=read, stderr=subprocess.PIPE, **options
    )
    view = memoryview(message)
    while view:
        select.select([], [write], [], 30)
        view = view[os.write(write, view[:4096]) :]
    drained(read)
    os.close(read)
    process.feed = write
    return process


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("size", "arguments"),
    [(100, ["b"]), (500_000, ["b"]), (100, ["-t"]), (0, ["b"])],
    ids=["small", "large", "in the header", "before anything"],
)
def test_a_signal_while_reading(sendmail, number, size, arguments):
    accepted(sendmail.run("first"))
    process = reading(sendmail, b"x" * size or b"", *arguments)
    if not size:
        # nothing to be drained: it reads once its file is there
        while not os.listdir(f"{sendmail.spool}/queue/tmp"):
            os.sched_yield()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    os.close(process.feed)
    assert process.returncode == 128 + number
    assert errors == b"sendmail: stopped by signal %d\n" % number
    assert sendmail.recipients() == [b"first"]


def test_many_signals_at_once(sendmail):
    """The second does not break off the cleaning up after the first."""
    process = reading(sendmail, b"x" * 500_000, "b")
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=30)
    os.close(process.feed)
    assert process.returncode in [128 + number for number in numbers]
    assert errors == b"sendmail: stopped by signal %d\n" % (process.returncode - 128)
    assert sendmail.queued() == []


def test_a_hangup_that_the_caller_ignores(sendmail):
    process = reading(
        sendmail, b"one\n", "b", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    process.send_signal(signal.SIGHUP)
    os.write(process.feed, b"two\n")
    os.close(process.feed)
    assert process.communicate(timeout=30) == (None, b"")
    assert process.returncode == 0
    assert sendmail.message() == b"one\ntwo\n"


def test_killed_while_reading_leaves_no_message(sendmail):
    accepted(sendmail.run("first"))
    process = reading(sendmail, b"x" * 500_000, "b")
    process.kill()
    process.communicate(timeout=30)
    os.close(process.feed)
    assert process.returncode == -signal.SIGKILL
    assert len(os.listdir(f"{sendmail.spool}/queue/new")) == 1
    assert len(os.listdir(f"{sendmail.spool}/queue/tmp")) == 1


# -- the other faces


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["-bp"]], ids=str)
def test_what_it_prints_arrives(sendmail, arguments):
    done = subprocess.run(
        [*sendmail.program, "-C", str(sendmail.config), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\n")


def test_newaliases_has_nothing_to_do(sendmail):
    accepted(sendmail.run("-bi"))
    assert sendmail.queued() == []


def test_as_a_module(sendmail):
    done = subprocess.run(
        [sys.executable, "-m", "minisend", "sendmail", *sendmail.command[3:], "-t"],
        input=HEADER + b"\nx\n",
        capture_output=True,
        check=False,
        cwd=sendmail.launcher.parent,
        env={"PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2])},
    )
    accepted(done)
    assert sendmail.recipients() == [b"b@example.net"]
