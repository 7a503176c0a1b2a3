"""One call of the sendmail command as a caller makes it, and what became of it.

The delivery is not started: what is looked at is the queue, and the message as the first attempt would send it.
"""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minisend.config.load import load
from minisend.config.sections import Config
from minisend.delivery.outgoing import Outgoing
from minisend.envelope import Envelope
from minisend.message.header import HEADER_LIMIT, Field
from minisend.message.header import split as split_header
from minisend.spool.store import Queue

ROOT = Path(__file__).resolve().parents[2]

_LAUNCHER = f"""\
import sys
sys.path.insert(0, {str(ROOT)!r})
from minisend.__main__ import main
from minisend.submit import command
command.start_flusher = lambda *_arguments, **_options: None
sys.exit(main())
"""

LOGIN = pwd.getpwuid(os.getuid()).pw_name.encode()
USUAL = {"PATH": "/usr/bin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, kw_only=True)
class Call:
    """How sendmail is called.

    ``arguments``    without argv[0], which the kernel drops when it starts a script
    ``stdin``        octets; ``from_file``: a file at its start, and not a pipe
    ``closed``       descriptors that are not open
    ``ignored``, ``blocked``  signals
    ``leaked``       a descriptor of the caller's is open too
    ``gone``         the working directory has been removed
    ``one_pipe``     stderr is the pipe that stdout is
    """

    arguments: Iterable[str]
    stdin: bytes
    from_file: bool = False
    umask: int = 0o022
    closed: tuple[int, ...] = ()
    ignored: tuple[signal.Signals, ...] = ()
    blocked: tuple[signal.Signals, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: USUAL)
    leaked: bool = False
    gone: bool = False
    one_pipe: bool = False


@dataclass(frozen=True)
class Sent:
    """A message in the queue: its envelope, the fields of the header that goes out, and the body as it came."""

    envelope: Envelope
    fields: tuple[Field, ...]
    body: bytes

    @property
    def recipients(self) -> list[bytes]:
        return [recipient.address for recipient in self.envelope.recipients]

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of that name, outer white space off."""
        return [field.value.strip() for field in self.fields if field.name.lower() == name.lower()]


class Mailer:
    """A sendmail command with a spool and a configuration below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spool = directory / "spool"
        self._launcher = directory / "sendmail"
        self._launcher.write_text(_LAUNCHER)
        self._file = directory / "config.toml"
        self._file.write_text(
            'hostname = "here.test"\nmail_domain = "here.test"\n'
            f'[spool]\npath = "{self.spool}"\n[submission]\nsocket = false\ndrop = false\n'
        )

    @property
    def config(self) -> Config:
        return load(str(self._file), {}, os.getuid(), os.geteuid())

    def run(self, call: Call) -> subprocess.CompletedProcess[bytes]:
        """The process, ended.  What it wrote to a closed descriptor is nowhere."""
        command = [sys.executable, "-IS", str(self._launcher), "-C", str(self._file)]
        cwd = self.directory / "cwd"
        cwd.mkdir()
        lock = os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)

        def inherit() -> None:
            for number in call.ignored:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, call.blocked)
            if call.gone:
                os.rmdir(cwd)
            for descriptor in call.closed:
                os.close(descriptor)

        stdin = self.directory / "stdin"
        stdin.write_bytes(call.stdin)
        try:
            with stdin.open("rb") as opened:
                return subprocess.run(
                    [*command, *call.arguments],
                    **({"stdin": opened} if call.from_file else {"input": call.stdin}),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT if call.one_pipe else subprocess.PIPE,
                    umask=call.umask,
                    env=dict(call.environment),
                    cwd=cwd,
                    pass_fds=(lock,) if call.leaked else (),
                    preexec_fn=inherit,
                    timeout=60,
                    check=False,
                )
        finally:
            os.close(lock)

    def sent(self) -> list[Sent]:
        """All messages of the queue, none of which may be anywhere but in ``new``, in the order of their arrival."""
        if not self.spool.exists():
            return []
        found = []
        with Queue(str(self.spool)) as queue:
            assert list(queue.places("tmp", "cur", "hold", "failed")) == []
            for place in queue.places("new"):
                entry = queue.claim(place)
                assert entry is not None
                with entry:
                    outgoing = Outgoing(entry, self.config)
                    octets = b"".join(outgoing.octets())
                    # The completed header must read as one, and end where the body begins.
                    header = split_header(octets[:HEADER_LIMIT], complete=True)
                    assert header.body == len(outgoing.header)
                    found.append(Sent(entry.envelope, tuple(header.fields), octets[header.body :]))
        return sorted(found, key=lambda sent: sent.envelope.arrived)


def with_lf(octets: bytes) -> bytes:
    """Every line end, also a lone CR, as LF."""
    return octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
