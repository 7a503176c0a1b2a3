"""The accepting role: what one process of it knows of an account, the next one goes on with."""

import os
import socket

from spool.served import GREETING, ID, WHOLE, Recorded

from minisend.admin import serving
from minisend.config.load import load
from minisend.delivery.flush import Stop
from minisend.delivery.pickup import Pickup
from minisend.spool import listener
from minisend.spool.place import LEAF_MODE


def accept(config, octets):
    """What a client hears that has said this before the role begins; the role ends when it is served."""
    path = config.served.socket
    made = listener.make(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        client.sendall(octets)
        client.shutdown(socket.SHUT_WR)
        serving._accept(config, made, Recorded(), Stop(), 0.0)
        heard = b""
        while piece := client.recv(65536):
            heard += piece
    return heard


def test_the_messages_of_this_hour(tmp_path):
    for leaf in ("", "/tmp", "/new"):
        os.mkdir(f"{tmp_path}/drop{leaf}")
        os.chmod(f"{tmp_path}/drop{leaf}", LEAF_MODE if leaf else 0o755)
    file = tmp_path / "config.toml"
    file.write_text(
        f'[spool]\npath = "{tmp_path}/spool"\nmin_free = 0\nmin_free_inodes = 0\n'
        f'[submission]\nsocket = "{tmp_path}/run/s"\ndrop = "{tmp_path}/drop"\n'
        "[limits]\nrate_per_uid = 1\n"
    )
    config = load(str(file), {}, os.getuid(), os.geteuid())
    assert accept(config, WHOLE + b"ACK\n").startswith(GREETING + b"OK ")
    # minisend flush looks at the drop, too, and counts by the same clock.
    assert Pickup(config, Recorded()).run() is not None
    another = WHOLE.replace(ID.hex().encode(), b"f" * 32)
    assert accept(config, another) == GREETING + (
        b"NO 75 4.3.0 uid %d has sent 1 messages this hour: [limits] rate_per_uid is 1\n"
        % os.geteuid()
    )
