"""The accepting role of minisend run: what it does beside its clients is nothing for them to wait for."""

import os
import socket
import threading

import pytest

from minisend.admin import serving
from minisend.config import Config, Spool
from minisend.delivery.flush import Stop
from minisend.delivery.pickup import Pickup
from minisend.log import Log
from minisend.spool import listener
from minisend.spool.trigger import Trigger
from spool.make import RecordingQueue, put

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
