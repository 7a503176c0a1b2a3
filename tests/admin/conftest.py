"""A queue made by hand, at fixed times, and what a command writes about it."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from admin.system import ROOT, System

from minisend.envelope import DELAYED, FAILED, RELAYED, Envelope, Outcome, Recipient
from minisend.spool.enqueue import enqueue
from minisend.spool.store import Queue

# 2026-11-23 13:30:00 UTC
NOW = 1795440600.0


class Crafted:
    """A spool with a configuration file that names it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "spool"
        self.config = directory / "config.toml"
        self.config.write_text(f'[spool]\npath = "{self.path}"\n')

    def add(
        self,
        queue_id: str,
        sender: bytes = b"tester@example.org",
        recipients: tuple[bytes, ...] = (b"bob@example.net",),
        message: bytes = b"Subject: hello\n\nworld\n",
        arrived: float = NOW - 183,
    ) -> None:
        """A message in ``new``."""
        envelope = Envelope(
            queue_id,
            sender,
            [Recipient(address) for address in recipients],
            arrived=arrived,
            uid=1000,
            login=b"tester",
        )
        with Queue(str(self.path), create=True) as queue:
            enqueue(queue.fd, envelope, [message], 0)

    def attempt(
        self, queue_id: str, outcomes: list[Outcome], *, until: float = 0, state: str = ""
    ) -> None:
        """Record an attempt, then defer ``until`` a time or move to a ``state``."""
        with Queue(str(self.path)) as queue:
            place = queue.find(queue_id, "new", "cur", "hold", "failed")
            assert place is not None
            entry = queue.claim(place)
            assert entry is not None
            with entry:
                if outcomes:
                    entry.record(outcomes, entry.attempts + 1)
                if until:
                    entry.defer(until)
                if state:
                    entry.move_to(state)

    def file(self, state: str, name: str) -> Path:
        return self.path / "queue" / state / name


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It is NOW, in UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        patch.setattr(time, "time", lambda: NOW)
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def crafted(tmp_path: Path) -> Crafted:
    return Crafted(tmp_path)


@pytest.fixture
def refused() -> Callable[[int], Outcome]:
    """An outcome for the recipient of this index: nobody listens at the smarthost."""
    return lambda recipient: Outcome(
        recipient,
        DELAYED,
        "4.4.1",
        "connect to 127.0.0.1:2525: Connection refused",
        at=NOW - 60,
    )


@pytest.fixture
def four(crafted: Crafted, refused: Callable[[int], Outcome]) -> Crafted:
    """One message in each state; the deferred one was attempted twice."""
    crafted.add("0000000000000001", recipients=(b"carol@example.com", b"root"))
    crafted.add(
        "0000000000000002", sender=b"", recipients=(b"carol@example.com", b"bob@example.net")
    )
    crafted.attempt(
        "0000000000000002",
        [
            refused(0),
            Outcome(
                1,
                RELAYED,
                "2.0.0",
                "taken",
                remote_mta="mx.example.net[192.0.2.1]:25",
                diagnostic="smtp; 250 2.0.0 ok",
                command="end of data",
                at=NOW - 90,
            ),
        ],
        until=NOW - 60,
    )
    crafted.attempt("0000000000000002", [refused(0)], until=NOW + 2100)
    crafted.add("0000000000000003", message=b"x" * 1_500_000)
    crafted.attempt("0000000000000003", [], state="hold")
    crafted.add("0000000000000004")
    crafted.attempt(
        "0000000000000004",
        [Outcome(0, FAILED, "5.1.1", "no such user", at=NOW - 5)],
        state="failed",
    )
    return crafted


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """minisend as packaging/install leaves it below this directory."""
    tree = tmp_path_factory.mktemp("installed")
    subprocess.run(
        ["sh", ROOT / "packaging" / "install"],
        env={"PATH": os.environ["PATH"], "DESTDIR": str(tree)},
        check=True,
    )
    return tree


@pytest.fixture
def system(tmp_path: Path, installed: Path) -> System:
    return System(tmp_path / "system", installed)
