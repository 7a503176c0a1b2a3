"""An installation of which every run can have a fault, and the server that all its mail goes to."""

from collections import Counter
from pathlib import Path

from crash.faulty import Done, Forks
from delivery.scripted import Answer, ScriptedServer

MESSAGE = b"From: me@here.test\nSubject: s\n\nbody\n"


class Site:
    """``spool`` and configuration in ``directory``; ``server`` is to be entered by who uses it.

    ``settings``  keys of the configuration that come before any table
    """

    def __init__(
        self,
        forks: Forks,
        directory: Path,
        answer: Answer = lambda command: None,
        *,
        settings: str = "",
    ) -> None:
        self._forks = forks
        self.directory = directory
        self.spool = directory / "spool"
        self.server = ScriptedServer(answer)
        (directory / "config.toml").write_text(
            f'hostname = "here.test"\nmail_domain = "here.test"\n{settings}'
            f'[spool]\npath = "{self.spool}"\n'
            f'[smarthost]\nhost = "127.0.0.1"\nport = {self.server.port}\ntls = "none"\n'
            "[delivery]\nconnections_per_host = 1\n"
        )

    def run(self, face: str, *arguments: str, **options: object) -> Done:
        """A run with this configuration; ``options`` are those of ``Forks.run``."""
        return self._forks.run(
            self.directory, face, "-C", f"{self.directory}/config.toml", *arguments, **options
        )

    def submit(self, *arguments: str) -> Path:
        """Queue a message, and nothing else; its file."""
        before = set(self.spool.glob("queue/new/*"))
        done = self.run("sendmail", "-odq", *arguments, stdin=MESSAGE)
        assert (done.code, done.stderr) == (0, "")
        [file] = set(self.spool.glob("queue/new/*")) - before
        return file

    def flush(self, *arguments: str, **options: object) -> Done:
        """Deliver what is due, without a word."""
        return self.run("minisend", "flush", "--quiet", *arguments, **options)

    def copies(self) -> Counter[str]:
        """How often the server has something for whom."""
        return Counter(
            recipient.decode()
            for message in self.server.messages
            for recipient in message.recipients
        )
