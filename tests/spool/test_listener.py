"""The submission socket: made where nobody listens, taken over from systemd, and given up after an idle time.

That nobody who has connected is left behind is in test_listener_end.
"""

import errno
import os
import select
import socket
import stat
from types import SimpleNamespace

import pytest

from minisend.errors import SpoolError
from minisend.spool import listener
from spool.seam import in_child


@pytest.fixture
def path(tmp_path):
    return f"{tmp_path}/run/submit.sock"


def listens(path):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def nobody(connection):
    raise AssertionError("nobody has connected")


# -- made here


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o777])
def test_one_that_is_made(tmp_path, umask):
    """Everybody may connect, whatever the umask; nothing of the making stays."""
    path = f"{tmp_path}/submit.sock"
    before = os.umask(umask)
    try:
        made = listener.make(path)
    finally:
        os.umask(before)
    status = os.stat(path)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o666
    assert os.listdir(tmp_path) == ["submit.sock"]
    assert not made.passed
    assert listens(path)
    made.close(lambda connection: connection.close())
    assert os.listdir(tmp_path) == []


def test_its_directory_is_made(path):
    made = listener.make(path)
    status = os.stat(os.path.dirname(path))
    assert stat.S_IMODE(status.st_mode) == 0o755
    made.close(nobody)


def test_one_that_nobody_listens_on_any_more_is_replaced(path):
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert not listens(path)
    made = listener.make(path)
    assert listens(path)
    made.close(lambda connection: connection.close())


def test_one_that_somebody_listens_on_stays(path):
    first = listener.make(path)
    before = os.stat(path).st_ino
    assert listener.make(path) is None
    assert os.stat(path).st_ino == before
    assert os.listdir(os.path.dirname(path)) == ["submit.sock"]
    first.close(lambda connection: connection.close())


def test_one_whose_service_has_much_to_do_stays(path):
    """A full backlog is no sign that nobody listens."""
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        assert listener.make(path) is None


def test_what_is_no_socket_stays(path):
    os.mkdir(os.path.dirname(path))
    with open(path, "w") as file:
        file.write("precious")
    with pytest.raises(SpoolError) as caught:
        listener.make(path)
    assert str(caught.value) == f"{path}: is no socket"
    with open(path) as file:
        assert file.read() == "precious"
    assert os.listdir(os.path.dirname(path)) == ["submit.sock"]


def test_a_draft_of_one_that_was_killed(path):
    """Of a process with the same number; it is in nobody's way."""
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{path}.{os.getpid()}")
    made = listener.make(path)
    assert os.listdir(os.path.dirname(path)) == ["submit.sock"]
    made.close(nobody)


def test_one_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    path = f"{tmp_path}/file/submit.sock"
    with pytest.raises(SpoolError) as caught:
        listener.make(path)
    assert str(caught.value) == f"{path}: File exists"


# -- passed by systemd


def passed_in_child(check, *, listening=None, pid=None, count="1"):
    """``check`` is called in a process that was given this descriptor and this environment."""

    def child():
        os.closerange(3, 4)
        if listening is not None:
            os.dup2(listening.fileno(), 3)
        os.environ["LISTEN_PID"] = str(pid or os.getpid())
        os.environ["LISTEN_FDS"] = count
        os.environ["LISTEN_FDNAMES"] = "submit"
        check()

    assert in_child(child) == 0


NAMES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def test_one_that_is_passed(tmp_path):
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(path)
        listening.listen()
        client.connect(path)

        def check():
            found = listener.passed()
            assert found.passed
            # No child of ours is given it, nor told of it.
            assert [name for name in NAMES if name in os.environ] == []
            assert not os.get_inheritable(3)
            taken = []
            found.loop(taken.append, lambda: False, stopping=lambda: False, exit_idle=0)
            assert len(taken) == 1
            found.close(nobody)
            assert os.path.exists(path)

        passed_in_child(check, listening=listening)


def test_one_that_was_passed_to_another_process(tmp_path):
    def check():
        assert listener.passed() is None

    passed_in_child(check, pid=1)


def refused(words):
    def check():
        with pytest.raises(SpoolError) as caught:
            listener.passed()
        assert str(caught.value) == words

    return check


@pytest.mark.parametrize("count", ["0", "2", "", "x"])
def test_not_one(count):
    passed_in_child(refused(f"LISTEN_FDS: expected one socket (got {count!r})"), count=count)


def test_none_at_all():
    passed_in_child(refused("descriptor 3: Bad file descriptor"))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_UNIX, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET),
        (socket.AF_INET, socket.SOCK_STREAM),
    ],
)
def test_one_of_another_kind(family, kind):
    with socket.socket(family, kind) as other:
        passed_in_child(
            refused("descriptor 3: not a stream socket of the unix kind"), listening=other
        )


# -- the loop


class Time:
    """Stands in for ``time`` and ``select``: to wait takes no time, and ends when a connection or a wake-up is due.

    ``waits``  how long each wait was to be, in seconds
    """

    POLLIN = select.POLLIN

    def __init__(self):
        self.now = 0.0
        self.waits = []
        self.due = []

    def monotonic(self):
        return self.now

    def poll(self, milliseconds=None):
        if milliseconds is None:
            return SimpleNamespace(register=lambda *what: None, poll=self.poll)
        until = self.now + milliseconds / 1000
        self.waits.append(round(milliseconds / 1000, 1))
        if self.due and self.due[0] <= until:
            self.now = max(self.now, self.due.pop(0))
            return [(0, select.POLLIN)]
        self.now = until
        return []


class Accepting:
    """Stands in for the socket: what ``accept`` gives, or raises, in order; None for "nobody now"."""

    def __init__(self, *script):
        self.script = list(script)

    def setblocking(self, on):
        assert not on

    def accept(self):
        if not self.script:
            raise BlockingIOError
        what = self.script.pop(0)
        if what is None:
            raise BlockingIOError
        if isinstance(what, Exception):
            raise what
        return what, None

    def close(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    stopped = Time()
    monkeypatch.setattr(listener, "time", stopped)
    monkeypatch.setattr(listener, "select", stopped)
    return stopped


def test_the_times_of_tick(clock):
    """At the beginning, each 15 seconds, and at the end."""
    ticks = []
    listener.Listener(Accepting(), "", passed=True).loop(
        nobody,
        lambda: False,
        stopping=lambda: False,
        tick=lambda: ticks.append(round(clock.now)),
        exit_idle=40,
    )
    assert ticks == [0, 15, 30, 40]


def test_idle_is_since_the_last_one_was_served(clock):
    """Who is being served for 100 seconds does not count as idleness."""
    listener.Listener(Accepting(), "", passed=True).loop(
        nobody, lambda: clock.now < 100, stopping=lambda: False, exit_idle=10
    )
    # Seen at the last look, which was less than the idle time ago.
    assert 100 <= clock.now < 110 + listener.TICK


def test_idle_is_since_the_last_one_came(clock):
    clock.due = [8.0]
    taken = []
    listener.Listener(Accepting("one", "two"), "", passed=True).loop(
        taken.append, lambda: False, stopping=lambda: False, exit_idle=10
    )
    assert taken == ["one", "two"]
    assert round(clock.now) == 18


def test_without_an_idle_time_it_goes_on(clock):
    listener.Listener(Accepting(), "", passed=True).loop(
        nobody, lambda: False, stopping=lambda: clock.now > 10_000
    )
    assert clock.now > 10_000
    assert set(clock.waits) == {15.0}


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS], ids=errno.errorcode.get
)
def test_no_descriptors_left(clock, number):
    """A moment later there may be one; nobody who waits is lost."""
    clock.due = [1.0, 2.0]
    taken = []
    listening = Accepting("one", OSError(number, os.strerror(number)), "two")
    listener.Listener(listening, "", passed=True).loop(
        taken.append, lambda: False, stopping=lambda: False, exit_idle=10
    )
    assert taken == ["one", "two"]
    assert 0.1 in clock.waits


def test_a_socket_that_fails_otherwise_ends_it(clock):
    clock.due = [1.0]
    listening = Accepting(OSError(errno.EBADF, "Bad file descriptor"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        listener.Listener(listening, "", passed=True).loop(
            nobody, lambda: False, stopping=lambda: False, exit_idle=10
        )


def test_one_that_has_gone_before_it_was_taken(clock):
    """It hides nobody who comes behind it."""
    clock.due = [1.0, 2.0]
    taken = []
    listener.Listener(Accepting(ConnectionAbortedError(), "two"), "", passed=True).loop(
        taken.append, lambda: False, stopping=lambda: False, exit_idle=10
    )
    assert taken == ["two"]


def test_who_connects_without_end_keeps_nothing_else_from_its_turn(clock):
    """Neither the end nor a tick waits until somebody has had enough."""
    clock.due = [0.0] * 1000
    taken, ticks = [], []
    listening = Accepting(*["again"] * 100_000)

    def take(connection):
        taken.append(connection)
        clock.now += 0.1

    listener.Listener(listening, "", passed=True).loop(
        take,
        lambda: False,
        stopping=lambda: len(taken) >= 1000,
        tick=lambda: ticks.append(clock.now),
    )
    assert 1000 <= len(taken) < 1000 + listener._BACKLOG
    # Every 15 seconds, after those 32 who were there by then; and at the end.
    assert [round(each, 1) for each in ticks] == [0, 16, 32, 48, 64, 80, 96, 102.4]


def test_a_wake_up_ends_the_wait(path, monkeypatch):
    real = select.poll

    class Impatient:
        """Does not wait: what would have to wait is an error."""

        def __init__(self):
            self._poll = real()
            self.register = self._poll.register

        def poll(self, milliseconds):
            found = self._poll.poll(0)
            assert found, f"would wait for {milliseconds} ms"
            return found

    monkeypatch.setattr(listener, "select", SimpleNamespace(poll=Impatient, POLLIN=select.POLLIN))
    made = listener.make(path)
    ticks = []

    def tick():
        ticks.append(1)
        made.wake()

    made.loop(nobody, lambda: False, stopping=lambda: len(ticks) > 0, tick=tick)
    assert len(ticks) == 2
    made.close(nobody)
