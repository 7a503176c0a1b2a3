"""minisend as its users have it: a configuration file, a spool, and processes of the real program."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Program:
    """One installation in ``directory``.

    ``settings``  the configuration file but for [spool] and the names; it can be written anew with ``configure``
    ``admin``     who gets what no sender can be told
    """

    def __init__(
        self, directory: Path, settings: str, *, retry_min: str = "5m", admin: str = ""
    ) -> None:
        self.spool = directory / "spool"
        self.config = directory / "config.toml"
        self._retry_min = retry_min
        self._admin = admin
        self.configure(settings)

    def configure(self, settings: str) -> None:
        """Another configuration, the same spool."""
        self.config.write_text(
            f'hostname = "here.test"\nmail_domain = "here.test"\nadmin = "{self._admin}"\n'
            f'[spool]\npath = "{self.spool}"\nretry_min = "{self._retry_min}"\n{settings}'
        )

    def command(self, face: str, *arguments: str) -> list[str]:
        """What a shell would run; without the site directory, as the packaged script, where that will do."""
        flags = "-I" if face == "minisend" else "-IS"
        return [
            *(sys.executable, flags, str(ROOT / "minisend/__main__.py")),
            *(face, "-C", str(self.config), *arguments),
        ]

    def run(
        self,
        face: str,
        *arguments: str,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(face, *arguments),
            input=stdin,
            capture_output=True,
            timeout=120,
            env=dict(environment or {}),
        )

    def sendmail(self, *arguments: str, stdin: bytes) -> None:
        """Queue a message, and nothing else."""
        done = self.run("sendmail", "-odq", *arguments, stdin=stdin)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), arguments

    def flush(self, *arguments: str) -> tuple[int, str]:
        """Exit code and the summary line."""
        done = self.run("minisend", "flush", *arguments)
        # Log lines where the machine has neither a journal nor /dev/log.
        assert all(said.startswith(b"minisend: ") for said in done.stderr.splitlines())
        return done.returncode, done.stdout.decode().rstrip("\n")

    def queue(self) -> Sequence[dict[str, object]]:
        """What ``minisend queue --json`` says."""
        done = self.run("minisend", "queue", "--json")
        assert (done.returncode, done.stderr) == (0, b"")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def make_due(self) -> None:
        """Let the time of every message that waits have come."""
        for path in (self.spool / "queue/cur").iterdir():
            path.rename(path.with_name(f"{1:010d}.{path.name.partition('.')[2]}"))
