"""Messages for the tests of the queue, and a look at what lies in it."""

import os

from minisend.envelope import Envelope, Recipient
from minisend.spool.enqueue import enqueue
from minisend.spool.entry import Entry, Place
from minisend.spool.store import Queue

ID = "00112233445566aa"
MESSAGE = b"Subject: hello\n\nHello.\n"


class RecordingQueue(Queue):
    """A queue that keeps what it reports."""

    def __init__(self, spool: str, **options: object) -> None:
        self.reported: list[tuple[str, str]] = []
        super().__init__(
            spool, create=True, report=lambda *what: self.reported.append(what), **options
        )


def envelope(
    queue_id: str = ID, recipients: int = 1, arrived: float = 1_700_000_000.25
) -> Envelope:
    return Envelope(
        queue_id,
        b"sender@example.org",
        [Recipient(b"r%d@example.net" % n) for n in range(recipients)],
        arrived=arrived,
        zone=60,
        uid=1000,
        login=b"sender",
        full_name=b"A. Sender",
    )


def put(queue: Queue, queue_id: str = ID, message: bytes = MESSAGE, recipients: int = 1) -> Place:
    enqueue(queue.fd, envelope(queue_id, recipients), [message], 0)
    return Place("new", queue_id)


def claimed(queue: Queue, place: Place) -> Entry:
    entry = queue.claim(place)
    assert entry is not None
    return entry


def path(queue: Queue, place: Place) -> str:
    return f"{queue.spool}/queue/{place.state}/{place.name}"


def listing(spool: str) -> dict[str, list[str]]:
    """State → names in it, of the states that are not empty."""
    found = {}
    for state in ("tmp", "new", "cur", "hold", "failed"):
        names = sorted(os.listdir(f"{spool}/queue/{state}"))
        if names:
            found[state] = names
    return found
