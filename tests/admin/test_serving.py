"""The accepting role of minisend run: what it does beside its clients is nothing for them to wait for."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from spool.make import MESSAGE, RecordingQueue, envelope, put

from minisend.admin import serving
from minisend.config.sections import Config, Limits, Spool
from minisend.delivery.flush import Stop
from minisend.delivery.pickup import Pickup
from minisend.log import Log
from minisend.spool import client, listener
from minisend.spool.record import format_head
from minisend.spool.trigger import Trigger

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0


def test_a_drop_directory_that_takes_its_time_keeps_nobody_waiting(tmp_path, monkeypatch):
    """Any account can fill it, and programs in a sandbox have no other way in than the socket."""
    looking, looked = threading.Event(), threading.Event()

    def look(self: Pickup) -> bool:
        looking.set()
        assert looked.wait(DEADLINE)
        return False

    monkeypatch.setattr(Pickup, "look", look)
    path = f"{tmp_path}/submit.sock"
    made = listener.make(path)
    stop = Stop()
    log = Log(syslog=False, stderr=False)
    config = Config(file=None, spool=Spool(f"{tmp_path}/spool"))
    role = threading.Thread(target=serving._accept, args=(config, made, log, stop, None))
    role.start()
    try:
        assert looking.wait(DEADLINE)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2)
            connection.connect(path)
            greeting = connection.recv(100)
    finally:
        looked.set()
        stop.ask()
        role.join(DEADLINE)
    assert greeting == b"minisend 1\n"
    assert not role.is_alive()


@pytest.mark.parametrize(
    ("waiting", "served", "touched"), [(1, False, True), (1, True, False), (0, False, False)]
)
def test_what_nobody_was_told_of_is_announced_again(tmp_path, waiting, served, touched):
    """systemd watches the directory again only after the service has ended; a change of its time counts as one."""
    spool = f"{tmp_path}/spool"
    with RecordingQueue(spool) as queue:
        for _ in range(waiting):
            put(queue)
    new = f"{spool}/queue/new"
    os.utime(new, (1e9, 1e9))
    made = listener.make(f"{tmp_path}/submit.sock")
    config = Config(file=None, spool=Spool(spool))
    log = Log(syslog=False, stderr=False)
    trigger = Trigger(spool) if served else None
    serving._accept(config, made, log, Stop(), 0.0)
    if trigger is not None:
        trigger.close()
    assert (os.stat(new).st_mtime > 1e9) == touched


def test_the_hour_of_a_rate_does_not_begin_anew_with_each_idle_exit(tmp_path, monkeypatch):
    spool = f"{tmp_path}/spool"
    config = Config(file=None, spool=Spool(spool), limits=Limits(rate_per_uid=2))
    log = Log(syslog=False, stderr=False)
    stop = Stop()
    answers: list[str] = []

    def submit(self: object, take: Callable[[socket.socket], None], *_: object, **__: object):
        ours, theirs = socket.socketpair()
        take(theirs)
        stream = client.Stream(ours)
        assert stream.line(DEADLINE) == client.GREETING
        try:
            head = format_head(envelope(), len(MESSAGE))
            client._hand_over(stream, os.urandom(16), head, [MESSAGE], later=True)
            answers.append("OK")
        except client.Refused as exc:
            answers.append(str(exc))
        stream.close()

    monkeypatch.setattr(listener.Listener, "loop", submit)
    for _ in range(3):
        serving._accept(config, listener.make(f"{tmp_path}/submit.sock"), log, stop, None)
    uid = os.getuid()
    over = f"uid {uid} has sent 2 messages this hour: [limits] rate_per_uid is 2"
    assert answers == ["OK", "OK", over]


def target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""  # closed at this moment


def holders(pids: list[str], inode: str) -> list[str]:
    return [
        pid for pid in pids if f"socket:[{inode}]" in map(target, Path(f"/proc/{pid}/fd").iterdir())
    ]


def test_the_socket_is_the_accepting_process_s_alone(tmp_path):
    """Who connects when that one has ended must not wait for a greeting until the others have; nor has delivery a socket."""
    path = f"{tmp_path}/submit.sock"
    (tmp_path / "config.toml").write_text(
        f'hostname = "h.example"\n[spool]\npath = "{tmp_path}/spool"\n'
        f'[submission]\nsocket = "{path}"\ndrop = false\n'
    )
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from minisend.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "minisend", "-C", str(tmp_path / "config.toml"), "run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            roles = [running.stderr.readline() for _ in range(2)]
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            names = [
                line.split()[6]
                for line in Path("/proc/net/unix").read_text().splitlines()
                if line.rpartition(" ")[2].startswith(path)
            ]
            pids = [str(running.pid), *children]
            # The process above the two may not have come to it yet.
            until = time.monotonic() + DEADLINE
            while len(holding := holders(pids, names[0])) > 1 and time.monotonic() < until:
                pass
        finally:
            running.terminate()
    assert sorted("event=accepting" in line for line in roles) == [False, True], roles
    assert (len(children), len(names)) == (2, 1)
    assert holding == [children[1]]
    assert running.returncode == 0
