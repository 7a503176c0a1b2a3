"""How fast a loaded queue goes out, and what that costs: minisend beside Postfix and dma, to the same server in one run.

    PYTHONPATH=tests python3 -m bench.flush [WORK ...] [--runs 5] [--only NAME,...] [--no-limits]

    work        messages                    over
    n1000       1,000 of 1 KB               loopback to smtp-sink
    lat500      500 of 1 KB                 the same, a round trip of 50 ms away
    tls1000     1,000 of 1 KB               STARTTLS to a Postfix, which writes each to its disk and then discards it
    m200x100k   200 of 100 KB               loopback to smtp-sink
    m3x50m      3 of 50 MB                  loopback to smtp-sink

All of them without a WORK.  The senders take turns, each with the same messages already in its queue, and the time is from
the command that releases them to the moment the server has the last one; rows are medians.  The processor's time is that of all
of a sender's processes until its queue is empty, by a control group of its own; memory is the sum of their
proportional shares (PSS), sampled.
The rows to look at are the ratios: the machine's speed is in all of them.

"postfix tuned" is what TUNING_README and CONNECTION_CACHE_README advise: more deliveries at a time and sessions that are used again.
Neither has a flush that takes a message over a used connection to a server with CHUNKING, and dma has one process and
one connection for each message.

As root, where Postfix is unpacked (.ci/run install) and control groups of version 2 can be made; dma's row is left out,
and that said, where dma is not unpacked.

The limits are what the project wants to reach, against the best peer unless it says otherwise.
"""

import argparse
import asyncio
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.submission import install, message
from peers.certificate import Certificate
from peers.namespace import inside
from peers.postfix import Postfix
from peers.process import DEADLINE, Server, free_port, wait_for
from peers.unpacked import unpacked

from minisend.envelope import Envelope, Recipient
from minisend.spool.enqueue import enqueue
from minisend.spool.store import Queue

ADDRESS = "127.0.0.1"
SENDER, RECIPIENT = "a@example.org", "b@example.net"
RTT = 0.05
# Seconds, for one flush; then it has failed.
LONGEST = 180.0
# MB of minisend, and its processor time against Postfix's.
MEMORY = 60.0
CPU = 0.4


@dataclass(frozen=True)
class Work:
    """``times``: messages per second against the best peer, or against ``than``, that are asked for."""

    messages: int
    size: int
    times: float
    than: str = ""
    distant: bool = False
    tls: bool = False


WORKS = {
    "n1000": Work(1000, 1000, 4.0),
    "lat500": Work(500, 1000, 2.0, than="postfix", distant=True),
    "tls1000": Work(1000, 1000, 2.5, tls=True),
    "m200x100k": Work(200, 100_000, 1.0),
    "m3x50m": Work(3, 50_000_000, 1.0),
}


# -- where the messages go


class SmtpSink(Server):
    """Postfix's load sink."""

    name = "smtp-sink"

    def __init__(self) -> None:
        self._files = unpacked("postfix")
        super().__init__()
        self.address, self.port = ADDRESS, free_port(ADDRESS)

    def command(self) -> Sequence[str | pathlib.Path]:
        program = self._files / "usr/sbin/smtp-sink"
        return [program, "-c", "-u", "nobody", "-m", "3000", f"{ADDRESS}:{self.port}", "4096"]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "LD_LIBRARY_PATH": f"{self._files}/usr/lib/postfix"}

    def check(self) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, "", "")

    def answers(self) -> bool:
        import socket

        with socket.socket() as client:
            return client.connect_ex((ADDRESS, self.port)) == 0

    def taken(self) -> int:
        """Messages so far."""
        # Counters that are written over each other, a carriage return between them.
        with open(self.directory / "log", "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 400))
            found = re.findall(rb"mesg=(\d+)", log.read())
        return int(found[-1]) if found else 0


class PostfixSink(Postfix):
    """A Postfix that takes everything, to its disk, and then discards it."""

    def __init__(self, certificate: Certificate) -> None:
        super().__init__(
            certificate=certificate,
            default_transport="discard:",
            smtpd_client_connection_count_limit=0,
        )
        self._seen = self._at = 0

    def _write_services(self) -> None:
        super()._write_services()
        master = (self._configuration / "master.cf").read_text()
        self._configure("master.cf", master + "discard unix - - n - - discard\n")

    def taken(self) -> int:
        """Messages so far."""
        with open(self.directory / "maillog", "rb") as log:
            log.seek(self._at)
            lines = log.read()
            lines = lines[: lines.rfind(b"\n") + 1]
            self._at += len(lines)
        self._seen += len(re.findall(rb"/cleanup\[\d+\]: \w+: message-id=", lines))
        return self._seen


class Delay(asyncio.Protocol):
    """One side of a connection whose octets arrive at the other half a round trip later."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._held: list[bytes] | None = [] if port else None
        self.other: Delay | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._port:
            # The handshake of TCP takes a round trip, and its last part another half.
            asyncio.get_running_loop().call_later(
                1.5 * RTT, lambda: asyncio.ensure_future(self._connect())
            )

    async def _connect(self) -> None:
        _, other = await asyncio.get_running_loop().create_connection(Delay, ADDRESS, self._port)
        self.other, other.other = other, self
        held, self._held = self._held, None
        for octets in held or ():
            other.transport.write(octets)

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(RTT / 2, self._pass_on, data)

    def _pass_on(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(data)
        elif self.other is not None and not self.other.transport.is_closing():
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        asyncio.get_running_loop().call_later(RTT / 2, self._end)

    def _end(self) -> None:
        if self.other is not None:
            self.other.transport.close()


@contextmanager
def distance(port: int) -> Iterator[int]:
    """A port from which a server's is RTT away; in a process of its own."""
    near = free_port(ADDRESS)
    code = f"import bench.flush as f; f.serve_distance({near}, {port})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE
    ) as proxy:
        try:
            assert proxy.stdout is not None and proxy.stdout.readline() == b"ready\n"
            yield near
        finally:
            proxy.terminate()


def serve_distance(near: int, port: int) -> None:
    """Until the process is ended."""

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Delay(port), ADDRESS, near, backlog=1000)
        print("ready", flush=True)
        await server.serve_forever()

    asyncio.run(serve())


# -- who sends them


class Account:
    """A control group: all processes of one sender, those that go into the background too (cgroups(7))."""

    def __init__(self) -> None:
        mounts = pathlib.Path("/proc/mounts").read_text().splitlines()
        places = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
        if not places:
            raise SystemExit("no control groups of version 2 are mounted")
        try:
            self._path = pathlib.Path(tempfile.mkdtemp(prefix="minisend-bench-", dir=places[0]))
        except OSError as exc:
            raise SystemExit(f"no control group can be made in {places[0]}: {exc}") from None

    def around(self, command: Sequence[str | pathlib.Path]) -> list[str | pathlib.Path]:
        """What to run so that the command is in it from its first moment on."""
        return ["sh", "-ec", 'echo 0 >"$0/cgroup.procs"; exec "$@"', self._path, *command]

    def members(self) -> list[int]:
        return [int(pid) for pid in (self._path / "cgroup.procs").read_text().split()]

    def cpu(self) -> float:
        """Seconds of processor time so far, of those who have ended too."""
        found = re.search(
            r"^usage_usec (\d+)$", (self._path / "cpu.stat").read_text(), re.MULTILINE
        )
        assert found is not None
        return int(found[1]) / 1e6

    def clear(self) -> None:
        """End whoever is left."""
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)
        wait_for("the control group is empty", lambda: not self.members())

    def close(self) -> None:
        """As ``clear``, and of no use after."""
        self.clear()
        self._path.rmdir()


class Sender(ABC):
    """``name`` is that of its row; ``load`` comes before every ``release``, and ``end`` after it."""

    name: str
    account: Account

    @abstractmethod
    def load(self, path: pathlib.Path, work: Work, port: int) -> None:
        """Have ``work.messages`` copies of the message wait in the queue, for a server on ``port``."""

    @abstractmethod
    def release(self) -> None:
        """Begin to deliver them."""

    @abstractmethod
    def end(self) -> None:
        """Wait until the queue is empty and nobody does anything about it any more."""

    def rest(self) -> None:  # noqa: B027 - a command that has ended does
        """Take no part while others are measured."""

    def is_over(self) -> bool:
        """Whether it will deliver nothing more, all out or not."""
        return False

    def give_up(self) -> bool:
        """Forget what is in the queue; False when that must not happen."""
        return False

    def close(self) -> None:
        self.account.close()


class Command(Sender):
    """A command that delivers the queue and ends."""

    def __init__(self) -> None:
        self.account = Account()

    @abstractmethod
    def command(self) -> Sequence[str | pathlib.Path]: ...

    @abstractmethod
    def left(self) -> int:
        """Messages in the queue."""

    def release(self) -> None:
        with open(os.devnull, "r+b") as nothing:
            self._process = subprocess.Popen(
                self.account.around(self.command()),
                stdin=nothing,
                stdout=nothing,
                stderr=nothing,
                env={"PATH": os.defpath},
            )

    def is_over(self) -> bool:
        return self._process.poll() is not None and not self.account.members()

    def end(self) -> None:
        self._process.wait(LONGEST)
        wait_for(f"{self.name} has ended", lambda: not self.account.members(), LONGEST)
        if left := self.left():
            raise SystemExit(f"{self.name}: {left} messages are still in the queue")


class Minisend(Command):
    name = "minisend"

    def __init__(self, directory: pathlib.Path, ca_file: pathlib.Path) -> None:
        super().__init__()
        self._script = install(directory)
        self._spool = directory / "spool"
        self._config = directory / "config.toml"
        self._ca_file = ca_file
        self._number = 0

    def load(self, path: pathlib.Path, work: Work, port: int) -> None:
        security = f'"starttls"\ntls_ca_file = "{self._ca_file}"' if work.tls else '"none"'
        self._config.write_text(
            f'hostname = "here.test"\n[spool]\npath = "{self._spool}"\n'
            f'[smarthost]\nhost = "localhost"\nport = {port}\ntls = {security}\n'
        )
        octets = path.read_bytes()
        with Queue(str(self._spool), create=True) as queue:
            for _ in range(work.messages):
                self._number += 1
                envelope = Envelope(
                    f"{self._number * 0x9E3779B97F4A7C15 % 2**64:016x}",
                    SENDER.encode(),
                    [Recipient(RECIPIENT.encode())],
                    arrived=time.time(),
                    uid=1000,
                    login=b"tester",
                )
                enqueue(queue.fd, envelope, [octets], 0)

    def command(self) -> Sequence[str | pathlib.Path]:
        return [self._script, "-C", self._config, "-q"]

    def left(self) -> int:
        return _files(self._spool / "queue/new", self._spool / "queue/cur")


class Dma(Command):
    """dma, which has its paths compiled in: in a namespace with an /etc and a spool of its own."""

    name = "dma"

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__()
        self._program = unpacked("dma") / "usr/sbin/dma"
        self._etc, spool = directory / "etc", directory / "spool"
        (self._etc / "dma").mkdir(parents=True)
        for name in ("group", "hosts", "nsswitch.conf", "passwd", "ld.so.cache"):
            shutil.copy(f"/etc/{name}", self._etc)
        (self._etc / "mailname").write_text("here.test\n")
        (self._etc / "dma/auth.conf").write_text("")
        self._queue = spool / "dma"
        self._queue.mkdir(parents=True)
        # It gives up root for this account before it touches its spool.
        shutil.chown(self._queue, "mail", "mail")
        self._seen = {self._etc: "/etc", spool: "/var/spool"}
        self._settings = ""

    def load(self, path: pathlib.Path, work: Work, port: int) -> None:
        self._settings = f"SMARTHOST {ADDRESS}\nPORT {port}\nMAILNAME /etc/mailname\n"
        if work.tls:
            self._settings += "SECURETRANSFER\nSTARTTLS\n"
        (self._etc / "dma/dma.conf").write_text(self._settings + "DEFER\n")
        script = 'n=$1 file=$2; shift 2; while [ "$n" -gt 0 ]; do "$@" <"$file"; n=$((n - 1)); done'
        submit = [self._program, "-i", "-f", SENDER, RECIPIENT]
        subprocess.run(
            inside(["sh", "-ec", script, "sh", str(work.messages), path, *submit], seen=self._seen),
            check=True,
        )
        if self.left() != work.messages:
            raise SystemExit(f"dma: {self.left()} messages are in the queue, not {work.messages}")
        (self._etc / "dma/dma.conf").write_text(self._settings)

    def command(self) -> Sequence[str | pathlib.Path]:
        return inside([self._program, "-q"], seen=self._seen)

    def give_up(self) -> bool:
        """Of a thousand connections at once a server may refuse some, and dma tries again in minutes."""
        self.account.clear()
        for path in self._queue.iterdir():
            path.unlink()
        return True

    def left(self) -> int:
        return sum(path.name.startswith("Q") for path in self._queue.iterdir())


class PostfixSender(Sender, Postfix):
    """Postfix with a smarthost.  It is restarted for each release, as a queue that was held and a setting that changes ask for."""

    name = "postfix"
    # The pickup is there for postqueue alone, which will not believe without it that the system is up.
    SERVICES = """\
smtp unix - - n - - smtp
scache unix - - n - 1 scache
pickup unix n - n 60 1 pickup
"""

    def __init__(self, *, tuned: bool = False) -> None:
        self._tuned = tuned
        # No log of its own: it would be the only one here that writes one.
        super().__init__(default_transport="smtp", maillog_file="")
        if tuned:
            # Not before: its directory is named after it, and a path in main.cf has no space.
            self.name = "postfix tuned"
        self._fixed = (self._configuration / "main.cf").read_text()
        self.account = Account()

    def command(self) -> Sequence[str | pathlib.Path]:
        return self.account.around(super().command())

    def _write_services(self) -> None:
        super()._write_services()
        master = (self._configuration / "master.cf").read_text()
        self._configure("master.cf", master + self.SERVICES)

    def _set(self, **parameters: str | int) -> None:
        text = "".join(f"{name} = {value}\n" for name, value in parameters.items())
        self._configure("main.cf", self._fixed + text)

    def load(self, path: pathlib.Path, work: Work, port: int) -> None:
        settings: dict[str, str | int] = {
            "relayhost": f"[{ADDRESS}]:{port}",
            "smtp_tls_security_level": "encrypt" if work.tls else "none",
        }
        if self._tuned:
            many = 100 if work.distant else 20
            settings |= {
                "initial_destination_concurrency": many,
                "default_destination_concurrency_limit": many,
                "smtp_connection_cache_destinations": f"[{ADDRESS}]:{port}",
            }
        self._set(**settings, defer_transports="smtp")
        self.start()
        program = self._files / "usr/sbin/smtp-source"
        count = ("-s", str(min(5, work.messages)), "-m", str(work.messages))
        envelope = ("-f", SENDER, "-t", RECIPIENT)
        subprocess.run(
            [program, "-F", path, *count, *envelope, f"{self.address}:{self.port}"],
            env=self.environment(),
            check=True,
        )
        wait_for(
            "postfix has deferred all", lambda: self._count() == (0, work.messages), DEADLINE * 4
        )
        self.terminate()
        self._set(**settings)
        self.start()

    def _count(self) -> tuple[int, int]:
        return (
            _files(self._queue / "incoming", self._queue / "active"),
            _files(self._queue / "deferred"),
        )

    def release(self) -> None:
        program = self._files / "usr/sbin/postqueue"
        flush = self.account.around([program, "-c", self._configuration, "-f"])
        subprocess.run(flush, env=self.environment(), check=True)

    def end(self) -> None:
        wait_for("postfix has delivered all", lambda: self._count() == (0, 0), LONGEST)

    def rest(self) -> None:
        self.terminate()

    def close(self) -> None:
        self.terminate()
        Sender.close(self)
        self._temporary.cleanup()


def _files(*directories: pathlib.Path) -> int:
    return sum(len(names) for each in directories for _, _, names in os.walk(each))


# -- what it takes


@dataclass
class Run:
    """Seconds to the last message, of processors, and MB at most."""

    seconds: float
    cpu: float
    memory: float


class Memory(threading.Thread):
    """The most that a sender's processes had at once, in MB."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self._account = account
        self._over = threading.Event()
        self.most = 0.0

    def run(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            members = self._account.members()
            self.most = max(self.most, sum(map(_proportional, members)) / 1000)
            # A look at many processes costs more.
            pause = 0.1 + 0.01 * len(members)

    def end(self) -> float:
        self._over.set()
        self.join()
        return self.most


def _proportional(pid: int) -> int:
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def measure(
    sender: Sender, sink: SmtpSink | PostfixSink, port: int, work: Work, path: pathlib.Path
) -> Run | None:
    """None when it did not get all of them through."""
    sender.load(path, work, port)
    os.sync()
    before, cpu = sink.taken(), sender.account.cpu()
    memory = Memory(sender.account)
    memory.start()
    try:
        started = looked = time.perf_counter()
        sender.release()
        while (taken := sink.taken() - before) < work.messages:
            now = time.perf_counter()
            late = now > started + LONGEST
            if late or (now - looked > 0.5 and sender.is_over() and sink.taken() == before + taken):
                print(f"{sender.name}: {taken} of {work.messages} after {now - started:.1f} s")
                if sender.give_up():
                    return None
                raise SystemExit(1)
            if now - looked > 0.5:
                looked = now
            time.sleep(0.002)
        seconds = time.perf_counter() - started
    finally:
        most = memory.end()
    sender.end()
    cpu = sender.account.cpu() - cpu
    sender.rest()
    if sink.taken() - before != work.messages:
        raise SystemExit(f"{sender.name}: {sink.taken() - before} messages, not {work.messages}")
    return Run(seconds, cpu, most)


def show(name: str, work: Work, results: dict[str, list[Run]], *, limits: bool) -> None:
    rate, cpu, memory = (
        {sender: statistics.median(take(run) for run in runs) for sender, runs in results.items()}
        for take in (
            lambda run: work.messages / run.seconds,
            lambda run: run.cpu / work.messages * 1000,
            lambda run: run.memory,
        )
    )
    best = max(
        (each for each in rate if each != "minisend"), key=lambda each: rate[each], default=""
    )
    runs = len(next(iter(results.values())))
    print(f"\n{name}: {work.messages} messages of {work.size} octets, medians of {runs}")
    print(
        f"{'':16}{'messages/s':>11}{'from':>9}{'to':>9}{'x best peer':>13}{'CPU ms each':>13}"
        f"{'x Postfix':>11}{'MB':>7}"
    )
    for sender, found in results.items():
        rates = sorted(work.messages / run.seconds for run in found)
        line = f"{sender:16}{rate[sender]:11.1f}{rates[0]:9.1f}{rates[-1]:9.1f}"
        line += f"{rate[sender] / rate[best]:13.2f}" if best else f"{'-':>13}"
        line += f"{cpu[sender]:13.2f}"
        line += f"{cpu[sender] / cpu['postfix']:11.2f}" if "postfix" in cpu else f"{'-':>11}"
        line += f"{memory[sender]:7.1f}"
        if sender == "minisend" and limits:
            than = work.than or best
            if than in rate and rate[sender] < work.times * rate[than]:
                line += f"   less than {work.times:g} x {than}"
            if "postfix" in cpu and work.size == 1000 and not work.tls:
                line += f"   CPU more than {CPU}" * (cpu[sender] > CPU * cpu["postfix"])
            line += f"   more than {MEMORY:g} MB" * (memory[sender] > MEMORY)
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", nargs="*", choices=[[], *WORKS])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="the names of rows, comma between")
    parser.add_argument("--no-limits", action="store_true")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("Postfix is started by root only")
    # The servers and senders end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cache = pathlib.Path(os.environ.get("MINISEND_PEERS") or "/var/tmp/minisend-peers")
    if not (cache / "postfix").is_dir():
        raise SystemExit(f"postfix is not unpacked in {cache}: run .ci/run install")
    with ExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="minisend-bench-", dir="/var/tmp")
        )
        directory = pathlib.Path(name)
        directory.chmod(0o755)
        # As the queues of Postfix, which are in the directories of servers, are to be on the same disk.
        tempfile.tempdir = name
        certificate = Certificate(directory, "localhost", ADDRESS)
        senders: list[Sender] = []
        for name, make in {
            "minisend": lambda: Minisend(directory, certificate.ca_file),
            "postfix": PostfixSender,
            "postfix tuned": lambda: PostfixSender(tuned=True),
            "dma": lambda: Dma(directory / "dma"),
        }.items():
            if arguments.only and name not in arguments.only.split(","):
                continue
            if name == "dma" and not (cache / name).is_dir():
                print(f"no dma: it is not unpacked in {cache}")
                continue
            senders.append(make())
            stack.callback(senders[-1].close)
        sink = stack.enter_context(SmtpSink())
        far = stack.enter_context(distance(sink.port))
        secure = stack.enter_context(PostfixSink(certificate))
        for title in arguments.work or WORKS:
            work = WORKS[title]
            path = message(directory, work.size)
            target = secure if work.tls else sink
            results: dict[str, list[Run]] = {each.name: [] for each in senders}
            for _ in range(arguments.runs):
                for each in senders:
                    port = far if work.distant else target.port
                    if run := measure(each, target, port, work, path):
                        results[each.name].append(run)
            done = {name: runs for name, runs in results.items() if runs}
            show(title, work, done, limits=not arguments.no_limits)


if __name__ == "__main__":
    main()
