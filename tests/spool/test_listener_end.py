"""How the loop that takes connections ends: nobody who has connected is left behind."""

import socket

from minisend.spool import listener


def connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(path)
    return connection


def test_those_who_wait_when_it_is_told_to_stop(tmp_path):
    path = f"{tmp_path}/run/submit.sock"
    made = listener.make(path)
    waiting = [connect(path) for _ in range(3)]
    taken: list[socket.socket] = []
    made.loop(taken.append, lambda: False, stopping=lambda: True)
    assert taken == []
    made.close(taken.append)
    assert len(taken) == 3
    for each in (*taken, *waiting):
        each.close()
    assert list((tmp_path / "run").iterdir()) == []


def test_an_idle_time_of_nothing_takes_who_is_there(tmp_path):
    path = f"{tmp_path}/submit.sock"
    made = listener.make(path)
    taken: list[socket.socket] = []
    with connect(path):
        made.loop(taken.append, lambda: False, stopping=lambda: False, exit_idle=0)
    made.close(taken.append)
    assert len(taken) == 1
    taken[0].close()


def test_what_takes_its_time_is_not_idleness(tmp_path):
    """Somebody comes while the drop is looked at, for longer than the idle time."""
    path = f"{tmp_path}/submit.sock"
    made = listener.make(path)
    taken: list[socket.socket] = []
    came: list[socket.socket] = []

    def tick() -> None:
        if not came:
            came.append(connect(path))

    made.loop(taken.append, lambda: False, stopping=lambda: False, tick=tick, exit_idle=0)
    assert len(taken) == 1
    made.close(taken.append)
    for each in (*taken, *came):
        each.close()


def test_a_socket_that_was_passed_keeps_who_comes_later(tmp_path):
    path = f"{tmp_path}/submit.sock"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(5)
    first = listener.Listener(listening.dup(), path, passed=True)
    taken: list[socket.socket] = []
    with connect(path), listening:
        first.close(taken.append)
        assert taken == []
        second = listener.Listener(listening.dup(), path, passed=True)
        second.loop(taken.append, lambda: False, stopping=lambda: False, exit_idle=0)
        second.close(taken.append)
    assert len(taken) == 1
    taken[0].close()
