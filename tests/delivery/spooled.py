"""Messages put straight into a queue, the configuration to deliver them with, a log to be read after, and a clock."""

import os
from types import SimpleNamespace

import pytest

from minisend.config.sections import Config, Delivery, Smarthost, Spool
from minisend.delivery import attempt, flush, lanes, remote
from minisend.envelope import Envelope, Recipient
from minisend.spool.enqueue import enqueue
from minisend.spool.entry import Entry, Place
from minisend.spool.store import Queue

NOW = 1_700_000_000.0
MESSAGE = b"From: Me <me@here.test>\nDate: today\nMessage-ID: <1@here.test>\n\nHello.\n"
ME = b"me@here.test"


class Lines:
    """A log that keeps its lines."""

    heard = True

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, text: str) -> None:
        self.lines.append(("info", text))

    def warning(self, text: str) -> None:
        self.lines.append(("warning", text))

    def error(self, text: str) -> None:
        self.lines.append(("error", text))

    def about(self, *parts: str) -> list[str]:
        """The lines with all of these in them."""
        return [text for _, text in self.lines if all(part in text for part in parts)]


def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Its ``now`` is the time for the whole room."""
    shown = SimpleNamespace(now=NOW)
    stands_in = SimpleNamespace(time=lambda: shown.now)
    for room in (flush, attempt, lanes, remote):
        monkeypatch.setattr(room, "time", stands_in)
    return shown


def to_smarthost(
    spool: str,
    port: int,
    *,
    host: str = "127.0.0.1",
    delivery: Delivery | None = None,
    **times: object,
) -> Config:
    """Everything to one server.  ``times``: keys of [spool]."""
    return Config(
        file=None,
        spool=Spool(spool, **times),
        hostname="here.test",
        mail_domain="here.test",
        smarthost=Smarthost((host,), port=port, tls="none"),
        delivery=delivery or Delivery(),
    )


def to_literals(spool: str, port: int, *, delivery: Delivery | None = None) -> Config:
    """To the server of each address literal: it needs no DNS, and each is a next hop of its own."""
    delivery = delivery or Delivery()
    delivery.mx_port = port
    delivery.tls = "none"
    return Config(
        file=None,
        spool=Spool(spool),
        hostname="here.test",
        mail_domain="here.test",
        delivery=delivery,
    )


def queue_id(number: int) -> str:
    return f"{number:016x}"


def put(
    spool: str,
    number: int,
    *recipients: bytes | Recipient,
    message: bytes = MESSAGE,
    sender: bytes = ME,
    arrived: float = NOW - 10,
    uid: int = 1000,
    ret: str = "",
    envid: str = "",
    due: int | None = None,
) -> str:
    """Queue a message; its queue id.  ``due``: it waits in ``cur`` until then."""
    name = queue_id(number)
    envelope = Envelope(
        name,
        sender,
        [each if isinstance(each, Recipient) else Recipient(each) for each in recipients],
        arrived=arrived,
        uid=uid,
        login=b"me",
        ret=ret,
        envid=envid,
    )
    with Queue(spool, create=True) as queue:
        enqueue(queue.fd, envelope, [message], 0)
    if due is not None:
        os.rename(f"{spool}/queue/new/{name}", f"{spool}/queue/cur/{due:010d}.{name}")
    return name


def read(spool: str, queue_id: str) -> Entry:
    """An entry, wherever it lies, to look at.  Only its descriptor is of the file, and that is closed."""
    with Queue(spool) as queue:
        place = queue.find(queue_id, "new", "cur", "hold", "failed")
        assert place is not None
        entry = queue.read(place)
        assert entry is not None
        entry.close()
        return entry


def is_free(spool: str, place: Place) -> bool:
    """Nobody has claimed it."""
    with Queue(spool) as queue:
        entry = queue.claim(place)
        if entry is None:
            return False
        entry.close()
        return True
