"""The real sendmail command as a process, with a configuration and a spool of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

from minisend.envelope import Envelope
from minisend.errors import SpoolError
from minisend.spool.store import Queue

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Sendmail:
    """``directory`` holds the launcher, config.toml and, after a submission, the spool."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.spool = str(directory / "spool")
        self.config = directory / "config.toml"
        self.configure(f'[spool]\npath = "{self.spool}"\nmax_message_size = "4M"\n')
        self.launcher = directory / "sendmail"
        launcher = (ROOT / "packaging" / "launcher.in").read_text()
        self.launcher.write_text(launcher.replace("@LIBDIR@", str(ROOT)))
        # Without -C: the launcher's own first line is the system's interpreter, this is the one under test.
        self.program = [sys.executable, "-IS", str(self.launcher)]
        self.command = [*self.program, "-C", str(self.config), "-odq"]

    def configure(self, text: str) -> None:
        """A configuration with this text, which knows of no way but a queue of one's own."""
        self.config.write_text(f"{text}[submission]\nsocket = false\ndrop = false\n")

    def run(
        self, *arguments: str | bytes, message: bytes = b"Hello.\n", **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``sendmail -C config.toml -odq ARGUMENTS < message``; options as subprocess.run takes them."""
        if "stdin" not in options:
            options["input"] = message
        options.setdefault("env", {"PATH": "/usr/bin:/bin"})
        return subprocess.run(
            [*self.command, *arguments], capture_output=True, check=False, timeout=60, **options
        )

    def queued(self) -> list[tuple[Envelope, bytes]]:
        """Envelope and octets of every message, checked against what its writer counted; nothing else is left."""
        found = []
        try:
            queue = Queue(self.spool)
        except SpoolError:
            assert not os.path.exists(f"{self.spool}/queue")
            return []
        with queue:
            assert list(queue.places("tmp", "cur", "hold", "failed")) == []
            for place in queue.places("new"):
                entry = queue.claim(place)
                assert entry is not None
                with entry:
                    first = entry.first_octets(10)
                    found.append((entry.envelope, b"".join(entry.verified_octets(first, 0))))
        return found

    def message(self) -> bytes:
        """The octets of the one message."""
        [(_, octets)] = self.queued()
        return octets

    def recipients(self) -> list[bytes]:
        """The addresses of the one message's recipients."""
        [(envelope, _)] = self.queued()
        return [recipient.address for recipient in envelope.recipients]


@pytest.fixture
def sendmail(tmp_path):
    return Sendmail(tmp_path)
