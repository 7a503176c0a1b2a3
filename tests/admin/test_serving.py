"""The accepting role of minisend run: what it does beside its clients is nothing for them to wait for."""

import socket
import threading

from minisend.admin import serving
from minisend.config import Config, Spool
from minisend.delivery.flush import Stop
from minisend.delivery.pickup import Pickup
from minisend.log import Log
from minisend.spool import listener

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
