"""A socket that is made here: who may connect, and what the making of it may be led to."""

import os
import socket
import stat

from minisend.spool import listener


def mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_everybody_may_connect_whatever_the_umask(tmp_path):
    path = f"{tmp_path}/run/minisend/submit.sock"
    before = os.umask(0o077)
    try:
        made = listener.make(path)
        after = os.umask(0o077)
    finally:
        os.umask(before)
    made.close(socket.socket.close)
    assert after == 0o077
    assert mode(f"{tmp_path}/run/minisend") == 0o755


def test_a_link_in_place_of_the_draft_changes_nothing_else(tmp_path, monkeypatch):
    """Where there is no systemd the directory is the account's, and who makes the socket may be root."""
    path = f"{tmp_path}/submit.sock"
    victim = tmp_path / "shadow"
    victim.write_text("secret")
    victim.chmod(0o600)
    bind = socket.socket.bind

    def bind_and_lose(self, name):
        bind(self, name)
        modes.append(mode(name))
        os.unlink(name)
        os.symlink(victim, name)

    modes: list[int] = []
    monkeypatch.setattr(socket.socket, "bind", bind_and_lose)
    made = listener.make(path)
    made.close(socket.socket.close)
    assert mode(str(victim)) == 0o600
    assert modes == [0o666]


def test_one_that_was_replaced_leaves_the_name_to_the_other(tmp_path, monkeypatch):
    """Two services that were started at the same moment found nobody there."""
    path = f"{tmp_path}/submit.sock"
    monkeypatch.setattr(listener, "_is_served", lambda path: False)
    first, second = listener.make(path), listener.make(path)
    first.close(socket.socket.close)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
    second.close(socket.socket.close)
    assert list(tmp_path.iterdir()) == []
