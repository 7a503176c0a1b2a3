"""Log lines: their form, which nobody can forge, and their ways out, which never hold anybody up."""

import os
import posix
import socket
import string
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minisend
from minisend import log as module
from minisend.log import Line, Log, line, parse, service_log

NOW = 1795440600.0  # 2026-11-23 13:30:00 UTC


# -- the form ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("plain", "plain"),
        (b"a@b.example", "a@b.example"),
        ("é", "é"),
        (5, "5"),
        (1.5, "1.5"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "no"', r'"say \"no\""'),
        ("back\\slash", r'"back\\slash"'),
        ("a\nb\tc", r'"a\nb\tc"'),
        ("\r\x00\x1b\x7f", r'"\x0d\x00\x1b\x7f"'),
        (b"\xff\x80", r'"\xff\x80"'),
        ("\x85\u2028", r'"\u0085\u2028"'),
        ("\ud800", r'"\ud800"'),
        ("\U000e0001", r'"\U000e0001"'),
    ],
)
def test_values(value: str | bytes | float, form: str) -> None:
    made = line("0123456789abcdef", to=value, n=1)
    assert made == f"0123456789abcdef: to={form} n=1"
    assert (made.queue_id, made.fields) == ("0123456789abcdef", {"to": value, "n": 1})


ANYTHING = st.text() | st.text(' "=\\:nx0\n', max_size=8)
KEYS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=5).filter(str.isidentifier)


@given(ANYTHING, st.dictionaries(KEYS, ANYTHING | st.binary(), max_size=4))
def test_a_line_is_one_line_and_says_what_it_was_made_from(
    queue_id: str, fields: dict[str, str | bytes]
) -> None:
    """Whatever is in a value: it can be read back whole, and there is one way only to read the line."""
    made = Line(queue_id, dict(fields))
    assert made.isprintable()
    read = parse(str(made))
    assert (read.queue_id, list(read.fields.items())) == (
        queue_id,
        [
            (key, value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value)
            for key, value in fields.items()
        ],
    )


@given(st.text())
def test_parse_of_anything(text: str) -> None:
    """A line, or ValueError: never another exception."""
    try:
        parse(text)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", " ", "no id", "id: word", "id:  a=b", "id: =b", "id: a b=c", 'id: a="b"c=d'),
        *('"id" a=b', 'id: a="\\xzz" b=c', 'id: a="\\Uffffffff"', "id: a-b=c"),
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize(
    ("limit", "fields"),
    [
        (32, {"a": "1", "text": "two\twords é …"}),
        (30, {"a": "1", "text": "two\twords é…"}),
        (29, {"a": "1", "text": "two\twords …"}),  # not inside the character
        (22, {"a": "1", "text": "two\t…"}),
        (21, {"a": "1", "text": "two"}),  # inside the escape
        (20, {"a": "1", "text": "two…"}),
        (17, {"a": "1", "text": "…"}),
        (16, {"a": "1", "text": "…"}),
        (15, {"a": "1"}),
        (11, {"a": "1"}),
        (10, {"a": "1…"}),
    ],
)
def test_parse_of_a_line_that_was_cut(limit: int, fields: dict[str, str]) -> None:
    octets = module._cut(line("id", a=1, text="two\twords é …"), limit)
    assert len(octets) <= limit
    assert parse(octets.decode()).fields == fields


@given(st.text(max_size=40), st.integers(4, 60))
def test_cut(text: str, limit: int) -> None:
    octets = module._cut(text, limit)
    assert len(octets) <= limit
    if len(whole := text.encode("utf-8", "replace")) == len(text.encode("utf-8", "surrogatepass")):
        kept = octets if whole == octets else octets.removesuffix("…".encode())
        assert whole.startswith(kept)
        assert kept.decode() or not text or limit < 7
        assert len(kept) == len(whole) or len(octets) > limit - 4


# -- the daemons -------------------------------------------------------------------------------


class Daemon:
    """A datagram socket in place of the journal's or /dev/log."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = self._bind()

    def _bind(self) -> socket.socket:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bound.bind(self.path)
        bound.setblocking(False)
        return bound

    def stop(self) -> None:
        self.socket.close()
        os.unlink(self.path)

    def start(self) -> None:
        self.socket = self._bind()

    def datagrams(self) -> list[bytes]:
        """All that has come since the last look."""
        came = []
        while True:
            try:
                came.append(self.socket.recv(1 << 20))
            except BlockingIOError:
                return came

    def texts(self) -> list[str]:
        """Of /dev/log: what stands behind the tag."""
        return [octets.decode().split("]: ", 1)[1] for octets in self.datagrams()]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[[str], Daemon]]:
    made = []

    def start(name: str) -> Daemon:
        made.append(Daemon(tmp_path / name))
        return made[-1]

    yield start
    for one in made:
        one.socket.close()


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., Log]:
    """A log whose two sockets are in tmp_path."""

    def make(*, syslog: bool = True, stderr: bool = False, fallback: bool = False) -> Log:
        return Log(
            syslog=syslog,
            stderr=stderr,
            fallback=fallback,
            journal=str(tmp_path / "journal"),
            device=str(tmp_path / "log"),
        )

    return make


@pytest.fixture
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It is NOW, and the zone is an hour east of UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-1")
        there = time.localtime
        patch.setattr(time, "localtime", lambda at=NOW: there(at))
        time.tzset()
        yield
    time.tzset()


def fields(datagram: bytes) -> list[tuple[str, bytes]]:
    """Name and value of each field, read as systemd's JOURNAL_NATIVE_PROTOCOL says."""
    found = []
    while datagram:
        first, _, rest = datagram.partition(b"\n")
        name, equals, value = first.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found.append((name.decode(), value))
        datagram = rest
    return found


def test_journal_fields_whole(daemon: Callable[[str], Daemon], log: Callable[..., Log]) -> None:
    journal, device = daemon("journal"), daemon("log")
    made = line("0123456789abcdef", to=b"\xff@b\nMESSAGE=forged", delay=1.5, dsn="2.0.0", reason="")
    log().warning(made)
    log().info("two\nlines")
    log().error(line("-", event="x"))
    own = [
        ("SYSLOG_IDENTIFIER", b"minisend"),
        ("SYSLOG_FACILITY", b"2"),
        ("SYSLOG_PID", b"%d" % os.getpid()),
    ]
    assert [fields(datagram) for datagram in journal.datagrams()] == [
        [
            ("MESSAGE", str(made).encode()),
            ("PRIORITY", b"4"),
            *own,
            ("MINISEND_QUEUE_ID", b"0123456789abcdef"),
            ("MINISEND_TO", b"\xff@b\nMESSAGE=forged"),
            ("MINISEND_DELAY", b"1.5"),
            ("MINISEND_DSN", b"2.0.0"),
            ("MINISEND_REASON", b""),
        ],
        [("MESSAGE", b"two\\nlines"), ("PRIORITY", b"6"), *own],
        [("MESSAGE", b"-: event=x"), ("PRIORITY", b"3"), *own, ("MINISEND_EVENT", b"x")],
    ]
    assert device.datagrams() == []


@given(value=st.binary() | st.text(), queue_id=st.text())
@settings(max_examples=100)
def test_no_value_makes_a_journal_field(value: str | bytes, queue_id: str) -> None:
    names = [name for name, _ in fields(module._native(6, Line(queue_id, {"to": value})))]
    assert names[0] == "MESSAGE"
    assert names[-1] == "MINISEND_TO"
    assert len(names) == (6 if queue_id == "-" else 7)


@pytest.mark.usefixtures("fixed_time")
def test_syslog_datagrams_whole(daemon: Callable[[str], Daemon], log: Callable[..., Log]) -> None:
    device = daemon("log")
    log().info(line("q", a="b c"))
    log().warning("two\nlines %s")
    log().error("bad")
    head = f"Nov 23 14:30:00 minisend[{os.getpid()}]: "
    assert device.datagrams() == [
        f'<22>{head}q: a="b c"'.encode(),
        f"<20>{head}two\\nlines %s".encode(),
        f"<19>{head}bad".encode(),
    ]


@pytest.mark.parametrize("name", ["journal", "log"])
def test_what_is_too_long_is_cut(
    daemon: Callable[[str], Daemon], log: Callable[..., Log], name: str
) -> None:
    there = daemon(name)
    log().info(line("q", **dict.fromkeys("abcdefghij", "é" * 50_000)))
    (datagram,) = there.datagrams()
    if name == "log":
        text = datagram.split(b"]: ", 1)[1]
    else:
        (text, *_, last) = (value for _, value in fields(datagram))
        assert last == b"\xc3\xa9" * 3998 + "…".encode()
    assert 7990 < len(text) <= 8000
    assert text == b"q: a=" + b"\xc3\xa9" * 3996 + "…".encode()


# -- which one ---------------------------------------------------------------------------------


def test_destinations(
    daemon: Callable[[str], Daemon],
    log: Callable[..., Log],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The journal, else /dev/log, else standard error where that is wanted; chosen at the first line, once."""
    (tmp_path / "journal").write_text("no socket")
    for fallback, on_stderr in ((False, False), (True, True)):
        made = log(fallback=fallback)
        assert made.heard is on_stderr
        made.warning(line("q", a=1))
        assert made.on_stderr is on_stderr
        assert made.heard is on_stderr
    assert capfd.readouterr() == ("", "minisend: warning: q: a=1\n")

    device = daemon("log")
    early = log(fallback=True)
    early.info("first")
    (tmp_path / "journal").unlink()
    journal = daemon("journal")
    early.info("second")
    log(fallback=True).info("third")
    log(syslog=False, stderr=True).error("fourth")
    log(syslog=False).error("nowhere")
    both = log(stderr=True)
    both.info("fifth")
    assert (early.heard, both.heard) == (True, True)
    assert (early.on_stderr, both.on_stderr) == (False, True)
    assert device.texts() == ["first", "second"]
    assert [fields(octets)[0][1] for octets in journal.datagrams()] == [b"third", b"fifth"]
    assert capfd.readouterr() == ("", "minisend: error: fourth\nminisend: fifth\n")


def test_no_connection_before_the_first_line(log: Callable[..., Log], tmp_path: Path) -> None:
    made = log()
    device = Daemon(tmp_path / "log")
    made.info("x")
    assert device.texts() == ["x"]
    device.stop()


@pytest.mark.parametrize(
    ("stream", "socket_there", "native"),
    [
        ("{0.st_dev}:{0.st_ino}", True, True),
        ("{0.st_dev}:{0.st_ino}", False, False),
        ("{0.st_dev}:1{0.st_ino}", True, False),
        ("", True, False),
        (None, True, False),
    ],
)
def test_a_service_logs_to_stderr_or_to_the_journal_it_leads_to(
    daemon: Callable[[str], Daemon],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stream: str | None,
    socket_there: bool,
    native: bool,
) -> None:
    if socket_there:
        daemon("journal")
    monkeypatch.setattr(module, "JOURNAL", str(tmp_path / "journal"))
    environ = {} if stream is None else {b"JOURNAL_STREAM": stream.format(os.fstat(2)).encode()}
    monkeypatch.setattr(posix, "environ", environ)
    made = service_log()
    assert (made._syslog, made._stderr) == (native, not native)


# -- trouble -----------------------------------------------------------------------------------


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is given a moment."""
    monkeypatch.setattr(module, "_PATIENCE", 0.0)


def fill(made: Log) -> int:
    """Log until a line is lost; how many were not."""
    for number in range(100_000):
        made.info(f"filler {number}")
        if made._lost["syslog"]:
            return number
    raise AssertionError("it is never full")


@pytest.mark.parametrize("name", ["journal", "log"])
def test_a_daemon_that_does_not_read(
    daemon: Callable[[str], Daemon],
    log: Callable[..., Log],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The call returns, and what was lost is told, by number, before the next line that can be written."""
    quick(monkeypatch)
    there = daemon(name)
    made = log()
    count = fill(made)
    for _ in range(41):
        made.info("lost")
    there_now = there.datagrams()
    assert (len(there_now), b"filler 0" in there_now[0]) == (count, True)
    made.info("after")
    made.info("later")
    told = '-: event=lost lines=42 reason="42 lines lost"'
    if name == "log":
        assert there.texts() == [told, "after", "later"]
    else:
        came = [fields(octets) for octets in there.datagrams()]
        assert [one[0][1].decode() for one in came] == [told, "after", "later"]
        assert [one[1][1] for one in came] == [b"4", b"6", b"6"]


def test_a_notice_that_cannot_be_written_is_counted_with_its_line(
    daemon: Callable[[str], Daemon], log: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    there = daemon("log")
    made = log()
    fill(made)
    there.socket.recv(1 << 16)
    made.info("the notice takes the room")
    there.datagrams()
    made.info("after")
    assert there.texts() == ['-: event=lost lines=1 reason="1 lines lost"', "after"]


def test_what_waiting_may_cost(log: Callable[..., Log], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second for a line and a second in a minute, then lines are lost at once; a minute later again."""
    made = log()
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    waits = []

    class Poll:
        def register(self, fd: int, events: int) -> None:
            pass

        def poll(self, milliseconds: float) -> list[int]:
            if milliseconds:
                waits.append(milliseconds)
                clock[0] += milliseconds / 1000
            return []

    monkeypatch.setattr("select.poll", Poll)
    for _ in range(20):
        assert made._wait(0) is False
    assert [wait for wait in waits if wait > 0.001] == pytest.approx([100] * 10)
    clock[0] += 60
    assert made._wait(0) is False
    assert waits[-1] == pytest.approx(100)


def test_a_daemon_that_is_only_slow_loses_nothing(
    daemon: Callable[[str], Daemon], log: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = daemon("log")
    made = log()
    monkeypatch.setattr(module, "_PATIENCE", 60.0)
    monkeypatch.setattr(module, "_PATIENCE_EACH_MINUTE", 60.0)
    there.socket.setblocking(True)
    came: list[bytes] = []

    def read() -> None:
        while not came or not came[-1].endswith(b"end"):
            came.append(there.socket.recv(1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(2000):
        made.info(f"n={number}")
    made.info("end")
    reader.join()
    assert [octets.split(b"]: ")[1] for octets in came] == [
        *(b"n=%d" % number for number in range(2000)),
        b"end",
    ]


def test_a_daemon_that_restarts(daemon: Callable[[str], Daemon], log: Callable[..., Log]) -> None:
    there = daemon("log")
    made = log()
    made.info("one")
    assert there.texts() == ["one"]
    there.stop()
    there.start()
    made.info("two: the old connection leads nowhere, the new one is found at once")
    there.stop()
    made.info("lost: ENOENT")
    Path(there.path).symlink_to("nowhere")
    made.info("lost")
    os.unlink(there.path)
    there.start()
    made.info("three")
    assert there.texts() == ['-: event=lost lines=2 reason="2 lines lost"', "three"]
    # Its socket is there, and nobody behind it.
    there.socket.close()
    made.info("lost: ECONNREFUSED")
    os.unlink(there.path)
    there.start()
    made.info("four")
    assert there.texts() == ['-: event=lost lines=1 reason="1 lines lost"', "four"]


def test_a_stream_socket_takes_nothing(log: Callable[..., Log], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "log"))
        listener.listen()
        made = log()
        made.info("x")
        made.info("x")
        assert made._lost == {"syslog": 2, "stderr": 0}


def test_threads(daemon: Callable[[str], Daemon], log: Callable[..., Log]) -> None:
    """Every line of every thread once and whole, on one connection."""
    there = daemon("log")
    there.socket.setblocking(True)
    made = log()
    start = threading.Barrier(8)

    def work(name: int) -> None:
        start.wait()
        for number in range(25):
            made.info(line("q", name=name, number=number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    came = [there.socket.recv(1 << 16).decode().split("]: ")[1] for _ in range(200)]
    for thread in threads:
        thread.join()
    assert sorted(came) == sorted(
        f"q: name={name} number={number}" for name in range(8) for number in range(25)
    )


def test_a_log_that_is_dropped_closes_its_socket(
    daemon: Callable[[str], Daemon], log: Callable[..., Log]
) -> None:
    daemon("log")
    before = sorted(os.listdir("/proc/self/fd"))
    made = log()
    made.info("x")
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    del made
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- standard error ----------------------------------------------------------------------------


@pytest.fixture
def stderr() -> Iterator[Callable[[int], None]]:
    """Puts another descriptor in place of 2."""
    saved = os.dup(2)

    def put(fd: int) -> None:
        os.dup2(fd, 2)

    yield put
    os.dup2(saved, 2)
    os.close(saved)


def test_a_stderr_that_nobody_reads(
    log: Callable[..., Log], stderr: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    read, write = os.pipe()
    stderr(write)
    made = log(syslog=False, stderr=True)
    for _ in range(1000):
        made.info("x" * 10_000)
    octets = b""
    while len(octets) < 65536 - 4096:
        octets += os.read(read, 1 << 16)
    lost = 1000 - octets.count(b"\n")
    made.info("after")
    written = ("minisend: " + "x" * 4082 + "…\n").encode()
    assert len(written) == 4096
    assert octets == written * (1000 - lost)
    assert os.read(read, 1 << 16).decode() == (
        f'minisend: warning: -: event=lost lines={lost} reason="{lost} lines lost"\nminisend: after\n'
    )
    os.close(read)
    os.close(write)


def test_a_stderr_that_is_gone(log: Callable[..., Log], stderr: Callable[[int], None]) -> None:
    made = log(syslog=False, stderr=True)
    read, write = os.pipe()
    stderr(write)
    os.close(read)
    os.close(write)
    made.error("a pipe without reader")
    full = os.open("/dev/full", os.O_WRONLY)
    stderr(full)
    os.close(full)
    made.error("a full disk")
    os.close(2)
    made.error("closed")
    null = os.open("/dev/null", os.O_WRONLY)
    stderr(null)
    if null != 2:
        os.close(null)
    assert made._lost == {"syslog": 0, "stderr": 3}


# -- the commands ------------------------------------------------------------------------------


@pytest.fixture
def no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr(module, "SYSLOG", str(tmp_path / "log"))


@pytest.mark.usefixtures("no_daemon")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["flush"], "minisend: error: q: event=broken\n"),
        (["flush", "--quiet"], ""),
        (["flush", "--background"], ""),
    ],
    ids=" ".join,
)
def test_a_flush_without_any_daemon(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    """On standard error, unless cron would make a mail of it; and in the daemon's stead only."""
    from minisend.admin.command import main
    from minisend.delivery import flush as engine

    def flush(config: object, selection: object, *, log: Log, **more: object) -> engine.Summary:
        log.error(line("q", event="broken"))
        return engine.Summary(broken=1)

    def background_flush(config: object, log: Log, stop: object) -> int:
        log.error(line("q", event="broken"))
        return 0

    monkeypatch.setattr(engine, "flush", flush)
    monkeypatch.setattr(engine, "background_flush", background_flush)
    (tmp_path / "config.toml").write_text(f'[spool]\npath = "{tmp_path}/spool"\n')
    main(arguments, str(tmp_path / "config.toml"))
    assert capfd.readouterr().err == said
    device = Daemon(tmp_path / "log")
    main(arguments, str(tmp_path / "config.toml"))
    assert (capfd.readouterr().err, device.texts()) == ("", ["q: event=broken"])
    device.stop()


@pytest.mark.usefixtures("no_daemon")
def test_a_bug_is_logged_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from minisend import __main__ as program

    def broken(*_: object) -> int:
        raise ZeroDivisionError("x")

    device = Daemon(tmp_path / "log")
    monkeypatch.setattr(sys, "argv", ["mailq"])
    monkeypatch.setattr(program, "_mailq", broken)
    assert program.main() == 70
    (text,) = device.texts()
    told = parse(text)
    assert list(told.fields) == ["event", "face", "trace"]
    assert (told.queue_id, told.fields["event"], told.fields["face"]) == ("-", "bug", "mailq")
    trace = str(told.fields["trace"])
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("\nZeroDivisionError: x\n")
    assert capfd.readouterr().err == (
        "mailq: internal error, please report it: ZeroDivisionError: x\n"
    )
    device.stop()


# -- start-up ----------------------------------------------------------------------------------


def test_nothing_heavy_is_loaded() -> None:
    """Not at the import, and not to write a line: ``_socket`` and ``select`` are all it needs."""
    code = (
        "import sys; before = set(sys.modules)\n"
        f"sys.path.insert(0, {str(Path(minisend.__file__).parents[1])!r})\n"
        "from minisend.log import Log, line\n"
        "at_import = set(sys.modules) - before\n"
        "Log(syslog=False, stderr=True).info(line('q', a=1))\n"
        "print(*sorted(at_import), '/', *sorted(set(sys.modules) - before - at_import))\n"
    )
    done = subprocess.run(
        [sys.executable, "-ISc", code], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (
        "minisend minisend.kept minisend.log / select\n",
        "minisend: q: a=1\n",
    )
