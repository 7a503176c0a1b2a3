"""What minisend-spool(5) shows is what the program writes and reads."""

import pathlib
import re

from minisend.spool.place import STATES
from minisend.spool.store import Place
from spool.make import ID, claimed

MANUAL = pathlib.Path(__file__).resolve().parents[2] / "man" / "minisend-spool.5"


def test_the_example_is_a_message(queue):
    text = MANUAL.read_text()
    example = re.search(r"^\.Bd .*\n(minisend-queue 1\n(?:.*\n)+?)\.Ed$", text, re.MULTILINE)
    assert example is not None
    octets = example.group(1).replace("<TAB>", "\t").encode()
    with open(f"{queue.spool}/queue/new/{ID}", "wb") as file:
        file.write(octets)
    with claimed(queue, Place("new", ID)) as entry:
        assert b"".join(entry.verified_octets(b"", 0)) == b"Subject: hello\n\nHello.\n"
        assert entry.envelope.recipients[0].address == b"bob@example.net"
        assert entry.tail_at == len(octets)


def test_every_state_has_its_row():
    rows = re.findall(r"^\.It Pa queue/(\w+) Ta .+ Ta .+$", MANUAL.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(STATES)
