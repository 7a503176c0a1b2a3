"""A system with minisend on it: the byte-compiled package, a spool of root's, accounts that are numbers, real services.

    with Installed() as system, system.serving(): ...

Every account may enter it.  The delivering account has a secret which nobody else can read.  Each service is a process
of its own and is stopped by its number.  The messages arrive at a server in the test's own process.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from delivery.scripted import Message, ScriptedServer
from peers.process import wait_for

from minisend.spool.place import LEAF_MODE, LEAVES, STATES
from sandbox.hostile import KINDS

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = "/usr/bin/python3"
#: The delivering account, and two that submit; none is in the account database.
SERVICE, ANN, BOB = 61001, 61002, 61003
DEADLINE = 60.0

_RECEIVED = re.compile(rb"\AReceived: by h\.example \(minisend, from userid (\S+) \((\S+)\)\)\r?\n")


class Process:
    """A service, or a part of it; what it logs is in ``log``."""

    def __init__(
        self, system: "Installed", arguments: Sequence[str], listening: "socket.socket | None"
    ) -> None:
        self.arguments = list(arguments)
        command = [*system.minisend, "run", *arguments]
        passed: tuple[int, ...] = ()
        if listening is not None:
            # sd_listen_fds(3)
            passed = (listening.fileno(),)
            moved = f"exec 3<&{passed[0]}; " if passed[0] != 3 else ""
            script = f'{moved}LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
            command = ["bash", "-c", script, "bash", *command]
        number = len(list(system.top.glob("log.*")))
        self._log = system.top / f"log.{number}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=SERVICE,
                group=SERVICE,
                extra_groups=[],
                env={},
                cwd="/",
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def ready(self) -> None:
        """Until it serves."""
        wanted = []
        if "--deliver" not in self.arguments:
            wanted.append("event=accepting")
        if "--accept" not in self.arguments:
            wanted.append("event=serving")

        def serves() -> bool:
            ended = self._process.poll()
            said = self.log
            assert ended in (None, 0), f"ended with {ended}: {said}"
            return all(word in said for word in wanted)

        wait_for("the service serves", serves, DEADLINE)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Stop it; its exit code, negative for a signal."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(DEADLINE)

    def poll(self) -> int | None:
        return self._process.poll()


class Installed:
    """``spool``, ``submission`` and ``tables`` are lines for the configuration: of those two tables, and after the last."""

    def __init__(self, *, spool: str = "", submission: str = "", tables: str = "") -> None:
        self.top = Path(tempfile.mkdtemp(prefix="minisend-sandbox-", dir="/tmp"))
        self.top.chmod(0o755)
        self.server = ScriptedServer()
        self._processes: list[Process] = []
        try:
            self._lay_out(spool, submission, tables)
        except BaseException:
            shutil.rmtree(self.top)
            raise

    def _lay_out(self, spool: str, submission: str, tables: str) -> None:
        library = self.top / "lib"
        shutil.copytree(
            ROOT / "minisend",
            library / "minisend",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        subprocess.run(
            [INTERPRETER, "-IS", "-m", "compileall", "-q", library], check=True, timeout=120
        )
        self.library = library
        launcher = (ROOT / "packaging" / "launcher.in").read_text()
        self.sendmail_path = self.top / "sendmail"
        self.sendmail_path.write_text(launcher.replace("@LIBDIR@", str(library)))
        self.sendmail_path.chmod(0o755)
        self.spool = self.top / "spool"
        self.drop = self.spool / "drop"
        self.run_directory = self.top / "run"
        self.socket = self.run_directory / "submit.sock"
        for path, mode, owner in [
            (self.spool, 0o755, 0),
            (self.drop, 0o755, 0),
            (self.run_directory, 0o755, SERVICE),
            (self.spool / "state", 0o700, SERVICE),
            (self.spool / "queue", 0o700, SERVICE),
            *((self.spool / "queue" / state, 0o700, SERVICE) for state in STATES),
            *((self.drop / leaf, LEAF_MODE, SERVICE) for leaf in LEAVES),
        ]:
            path.mkdir()
            os.chown(path, owner, owner)
            path.chmod(mode)
        self.secret = self.top / "secret"
        self.secret.write_text("hunter2\n")
        os.chown(self.secret, SERVICE, SERVICE)
        self.secret.chmod(0o600)
        self.config = self.top / "config.toml"
        self.config.write_text(
            f'hostname = "h.example"\nmail_domain = "h.example"\n'
            f'[spool]\npath = "{self.spool}"\n{spool}'
            f'[submission]\nsocket = "{self.socket}"\ndrop = "{self.drop}"\n{submission}'
            f'[smarthost]\nhost = "127.0.0.1"\nport = {self.server.port}\ntls = "none"\n{tables}'
        )
        self.config.chmod(0o644)
        self.confine = self.top / "confine.py"
        self.hostile_client = self.top / "hostile.py"
        for path in (self.confine, self.hostile_client):
            shutil.copyfile(Path(__file__).with_name(path.name), path)
            path.chmod(0o644)
        self.sendmail = [str(self.sendmail_path), "-C", str(self.config)]
        self.minisend = [
            INTERPRETER,
            "-IS",
            str(library / "minisend" / "__main__.py"),
            "minisend",
            "-C",
            str(self.config),
        ]

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            for process in self._processes:
                process.end(signal.SIGKILL)
            self.server.__exit__(*exc_info)
        finally:
            shutil.rmtree(self.top)

    # -- the service

    def start(self, *arguments: str, listening: "socket.socket | None" = None) -> Process:
        """``minisend run ARGUMENTS`` as the delivering account; returns when it serves.

        ``listening``  the socket that is passed to it, as systemd does
        """
        process = Process(self, arguments, listening)
        self._processes.append(process)
        process.ready()
        return process

    def listen(self) -> socket.socket:
        """The submission socket as systemd makes it, which outlives each service."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(self.socket))
        self.socket.chmod(0o666)
        listening.listen(512)
        return listening

    @contextmanager
    def serving(self, *, apart: bool = False) -> Iterator[list[Process]]:
        """As one, or as the two that the units start."""
        roles = [("--accept",), ("--deliver",)] if apart else [()]
        processes = [self.start(*role) for role in roles]
        try:
            yield processes
        finally:
            for process in processes:
                assert process.end() == 0, process.log

    # -- those who send

    def submit(
        self,
        *arguments: str,
        uid: int = ANN,
        gid: int | None = None,
        under: Sequence[str] = (),
        message: bytes = b"Subject: hello\n\nHello.\n",
        env: Mapping[str, str] | None = None,
        as_root: bool = False,
    ) -> "subprocess.CompletedProcess[bytes]":
        """``sendmail ARGUMENTS`` as this account.

        ``under``    a command that runs it; with ``as_root`` that one is root's and becomes the account itself
        """
        return self.run(
            [*under, *self.sendmail, *arguments],
            uid=uid,
            gid=gid,
            message=message,
            env=env,
            as_root=as_root,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        uid: int = ANN,
        gid: int | None = None,
        message: bytes = b"",
        env: Mapping[str, str] | None = None,
        as_root: bool = False,
    ) -> "subprocess.CompletedProcess[bytes]":
        """A command as this account, with nothing in its environment but PATH unless it is given."""
        group = uid if gid is None else gid
        identity = {} if as_root else {"user": uid, "group": group, "extra_groups": []}
        return subprocess.run(
            list(command),
            input=message,
            capture_output=True,
            env={"PATH": os.defpath} if env is None else dict(env),
            cwd="/",
            check=False,
            timeout=DEADLINE,
            **identity,
        )

    def flush(self) -> None:
        """One ``minisend flush`` by the delivering account."""
        done = self.run([*self.minisend, "flush", "--all"], uid=SERVICE)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def attacked(self, kinds: Sequence[str] = KINDS, uid: int = BOB) -> Iterator[None]:
        """By a client of each of these kinds, see ``sandbox.hostile``."""
        command = [
            INTERPRETER,
            "-IS",
            str(self.hostile_client),
            str(self.socket),
            str(self.library),
        ]
        clients = [
            subprocess.Popen(
                [*command, kind],
                stdin=subprocess.PIPE,
                user=uid,
                group=uid,
                extra_groups=[],
                env={},
                cwd="/",
            )
            for kind in kinds
        ]
        try:
            yield
            assert [client.poll() for client in clients] == [None] * len(clients)
        finally:
            for client in clients:
                client.kill()
                client.communicate()

    # -- what came of it

    def arrived(self, recipient: str) -> Message:
        """The one message to this recipient, as soon as it is there."""
        wanted = (recipient.encode(),)

        def found() -> list[Message]:
            return [each for each in self.server.messages if each.recipients == wanted]

        wait_for(f"the message to {recipient}", found, DEADLINE)
        [message] = found()
        return message

    def kept(self) -> list[str]:
        """Every file of a message, wherever in the spool."""
        return sorted(
            str(path.relative_to(self.spool))
            for part in ("queue", "drop")
            for path in (self.spool / part).rglob("*")
            if not path.is_dir() and "tombstones" not in path.parts
        )

    def queue(self, *arguments: str, uid: int = SERVICE) -> list[dict[str, object]]:
        """``minisend queue --json`` as this account."""
        done = self.run([*self.minisend, "queue", "--json", *arguments], uid=uid)
        assert (done.returncode, done.stderr) == (0, b""), done
        return [json.loads(line) for line in done.stdout.splitlines()]


def identity(message: Message) -> tuple[bytes, bytes]:
    """User number and the name beside it, of our own trace line."""
    found = _RECEIVED.match(message.octets)
    assert found is not None, message.octets
    return found[1], found[2]


def greeted(path: Path, seconds: float = DEADLINE) -> socket.socket:
    """A connection that the service has greeted."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(seconds)
    end = time.monotonic() + seconds
    while True:
        try:
            connection.connect(str(path))
            break
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < end
            time.sleep(0.01)
    assert connection.recv(100) == b"minisend 1\n"
    return connection
