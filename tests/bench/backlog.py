"""What a queue of 100,000 deferred messages costs: to list, to submit one more, to find nothing due; beside Postfix in the same run.

    PYTHONPATH=tests python3 -m bench.backlog [--messages 100000] [--runs 5] [--no-peer]

Half of our messages have an outcome of their own, the others wait for a destination that is down, whose reason is in its
status file.  Postfix's are a message that it has deferred itself, copied with its log of deferrals under other queue
ids.  The commands take turns, and the caches are warm; the rows to look at are the ratios: the machine's speed is in
all of them.  As root, and where Postfix is unpacked (tests/peers); without it the ratios to it are left out.

The limits are the issue's: first line of mailq within 0.3 s, whole no slower than Postfix's, a submission with -odi at
most 1.2 times that with an empty queue.
"""

import argparse
import os
import pathlib
import shutil
import smtplib
import statistics
import subprocess
import tempfile
import time
from binascii import crc32
from contextlib import ExitStack
from dataclasses import dataclass

from bench.memory import Discarder
from bench.submission import SENDER, install
from bench.submission import message as make_message
from peers.postfix import Postfix
from peers.process import Server, group_members, wait_for

from minisend.delivery.destination import Destinations, Down
from minisend.envelope import DELAYED, Envelope, Facts, Outcome, Recipient
from minisend.spool import record
from minisend.spool.store import Queue

FIRST_LINE = 0.3
WHOLE = 1.0
SUBMISSION = 1.2
# Seconds from now: no queue manager tries anything before, and no clock seems to have been set back (retry_max).
_LATER = 2 * 3600
# Where nobody listens: what the backlog waits for.
_DOWN = 9
_MESSAGE = b"From: a@example.org\nTo: b@example.net\nSubject: benchmark\n\n" + b"x" * 71 + b"\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="minisend-bench-", dir="/var/tmp")
        )
        directory = pathlib.Path(name)
        server = stack.enter_context(Discarder(None))
        script = install(directory)
        full, empty = (site(directory / name, server.port) for name in ("full", "empty"))
        waiting = full.with_name("waiting.toml")
        waiting.write_text(full.read_text().replace(str(server.port), str(_DOWN)))
        fill(directory / "full" / "spool", arguments.messages)
        peer = None
        if not arguments.no_peer:
            peer = stack.enter_context(Backlog())
            peer.fill(arguments.messages)
        show_listings(script, waiting, peer, arguments.messages, arguments.runs)
        show_submissions(script, full, empty, make_message(directory, 1000), 10 * arguments.runs)
        show_flush(script, full, empty, arguments.runs)


def site(directory: pathlib.Path, port: int) -> pathlib.Path:
    """A configuration with a spool of its own."""
    directory.mkdir()
    config = directory / "config.toml"
    config.write_text(
        f'hostname = "here.test"\n[spool]\npath = "{directory}/spool"\n\n'
        f'[smarthost]\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\n'
    )
    Queue(f"{directory}/spool", create=True).close()
    return config


def fill(spool: pathlib.Path, count: int) -> None:
    """Deferred messages as attempts leave them, without the fsyncs that they make."""
    now = time.time()
    why = {
        "status": "4.4.1",
        "reason": f"connect to 127.0.0.1:{_DOWN}: Connection refused",
        "remote_mta": f"127.0.0.1[127.0.0.1]:{_DOWN}",
        "diagnostic": "",
        "command": "",
        "at": now,
    }
    Destinations(str(spool)).put(
        f"[127.0.0.1]:{_DOWN}",
        Down(since=now, failures=1, counted=(now,), until=int(now) + _LATER, **why),
    )
    outcome = record.format_outcomes(
        1, [Outcome(0, DELAYED, **{**why, "reason": "450 4.2.1 mailbox busy"})]
    )
    facts = record.format_facts(
        Facts(b"here.test", b"here.test", b"a@example.org", b"<1@here.test>")
    )
    cur = os.open(spool / "queue/cur", os.O_RDONLY)
    for number in range(count):
        envelope = Envelope(
            f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}",
            b"a@example.org",
            [Recipient(b"b@example.net")],
            arrived=now,
            uid=1000,
            login=b"tester",
        )
        head = record.format_head(envelope, len(_MESSAGE))
        trailer = record.Trailer(
            len(_MESSAGE),
            _MESSAGE.count(b"\n"),
            f"{crc32(_MESSAGE):08x}",
            "",
            record.head_crc(head),
        )
        octets = head + _MESSAGE + record.format_trailer(trailer)
        if number % 2:
            octets += facts + outcome
        name = f"{int(now) + _LATER + number % 3600:010d}.{envelope.queue_id}"
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=cur)
        os.write(fd, octets)
        os.close(fd)
    os.close(cur)


class Backlog(Postfix):
    """A Postfix that defers whatever it gets."""

    def __init__(self) -> None:
        # Short queue ids, its default: the first digit of one is the directory that its file lies in.
        super().__init__(enable_long_queue_ids="no", defer_transports="record")

    def stop(self) -> None:
        # Nothing of it is to be recorded.
        Server.stop(self)

    def fill(self, count: int) -> None:
        """Have one message deferred, and copy it."""
        with smtplib.SMTP(self.address, self.port) as client:
            client.sendmail("a@example.org", ["b@example.net"], _MESSAGE.replace(b"\n", b"\r\n"))
        (template,) = wait_for(
            "postfix has deferred the message", lambda: self._files_in("deferred")
        )
        later = time.time() + _LATER
        for kind in ("deferred", "defer"):
            (source,) = [p for p in self._files_in(kind) if p.name == template.name]
            octets, status = source.read_bytes(), source.stat()
            for digit in "0123456789ABCDEF":
                directory = self._queue / kind / digit
                directory.mkdir(mode=0o700, exist_ok=True)
                shutil.chown(directory, status.st_uid, status.st_gid)
            for number in range(1, count):
                name = f"{number * 0x9E3779B1 % 2**32:08X}{number:04X}"
                path = self._queue / kind / name[0] / name
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                os.write(fd, octets)
                os.fchmod(fd, status.st_mode)
                os.fchown(fd, status.st_uid, status.st_gid)
                os.close(fd)
                os.utime(path, (later, later))

    def _files_in(self, kind: str) -> list[pathlib.Path]:
        return [path for path in (self._queue / kind).rglob("*") if path.is_file()]

    def cpu(self) -> float:
        """Seconds of processor time that its processes have taken so far (proc(5), stat: fields 14 and 15)."""
        assert self._process is not None
        ticks = 0
        for pid in group_members(self._process.pid):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def listing(self, option: str) -> list[str]:
        """The command that lists its queue: -p or -j."""
        return [str(self._files / "usr/sbin/postqueue"), "-c", str(self._configuration), option]


@dataclass
class Listing:
    """Seconds to the first line, to the end, and of processors, lines, and MB resident of the command at most."""

    first: float
    whole: float
    cpu: float
    lines: int
    peak: float


def run_listing(
    command: list[str], environment: dict[str, str], directory: pathlib.Path, peer: Backlog | None
) -> Listing:
    # Through time(1): what wait4 tells of a child begins with the memory of the process it was forked from.
    report = directory / "report"
    before = peer.cpu() if peer else 0.0
    started = time.perf_counter()
    with subprocess.Popen(
        ["time", "-o", str(report), "-f", "%M %U %S", *command],
        env=environment,
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        octets = os.read(program.stdout.fileno(), 1 << 16)
        first = time.perf_counter() - started
        lines = octets.count(b"\n")
        while octets := os.read(program.stdout.fileno(), 1 << 16):
            lines += octets.count(b"\n")
        whole = time.perf_counter() - started
    if program.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {program.returncode}")
    peak, user, system = map(float, report.read_text().split())
    cpu = user + system + (peer.cpu() - before if peer else 0.0)
    return Listing(first, whole, cpu, lines, peak / 1000)


def show_listings(
    script: pathlib.Path, config: pathlib.Path, peer: Backlog | None, messages: int, runs: int
) -> None:
    own = [str(script.with_name(name)) for name in ("mailq", "minisend")]
    for name in own:
        if not os.path.lexists(name):
            os.symlink(script, name)
    rows: dict[str, tuple[list[str], str]] = {
        "mailq": ([own[0], "-C", str(config)], "postqueue -p"),
        "minisend queue": ([own[1], "-C", str(config), "queue"], "postqueue -p"),
        "minisend queue --json": ([own[1], "-C", str(config), "queue", "--json"], "postqueue -j"),
    }
    environment = dict(os.environ)
    if peer is not None:
        environment |= peer.environment()
        for option in ("-p", "-j"):
            rows[f"postqueue {option}"] = (peer.listing(option), "")
    results: dict[str, list[Listing]] = {name: [] for name in rows}
    for command, _ in rows.values():
        run_listing(command, environment, script.parent, peer)
    for _ in range(runs):
        for name, (command, _) in rows.items():
            results[name].append(run_listing(command, environment, script.parent, peer))
    print(f"\n{messages} deferred messages, {runs} runs each, medians")
    print(
        f"{'':24}{'first line s':>13}{'whole s':>9}{'cpu s':>8}{'x Postfix':>11}{'lines':>9}{'peak MB':>9}"
    )
    for name, (_, other) in rows.items():
        found = results[name]
        first, whole, cpu = (
            statistics.median(getattr(r, what) for r in found) for what in ("first", "whole", "cpu")
        )
        line = f"{name:24}{first:13.3f}{whole:9.2f}{cpu:8.2f}"
        ratio = 0.0
        if peer is not None and other:
            ratio = whole / statistics.median(r.whole for r in results[other])
        line += f"{ratio:11.2f}" if ratio else f"{'-':>11}"
        line += f"{found[0].lines:9}{max(r.peak for r in found):9.1f}"
        if name == "mailq" and first > FIRST_LINE:
            line += f"   first line after more than {FIRST_LINE} s"
        if name == "mailq" and ratio > WHOLE:
            line += f"   more than {WHOLE}"
        print(line, flush=True)


def timed(command: list[str], stdin: pathlib.Path | str) -> float:
    """Milliseconds of wall time."""
    with open(stdin, "rb") as file:
        started = time.perf_counter()
        subprocess.run(
            command, stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )
        return (time.perf_counter() - started) * 1e3


def show_submissions(
    script: pathlib.Path, full: pathlib.Path, empty: pathlib.Path, stdin: pathlib.Path, runs: int
) -> None:
    results: dict[pathlib.Path, list[float]] = {empty: [], full: []}
    for _ in range(runs + 1):
        for config, found in results.items():
            found.append(timed([str(script), "-C", str(config), "-odi", *SENDER], stdin))
    show_pair(f"sendmail -odi, {runs} runs", results[empty][1:], results[full][1:], SUBMISSION)
    for config in results:
        if left := os.listdir(config.parent / "spool/queue/new"):
            raise SystemExit(f"{len(left)} messages were not delivered")


def show_flush(script: pathlib.Path, full: pathlib.Path, empty: pathlib.Path, runs: int) -> None:
    program = str(script.with_name("minisend"))
    results: dict[pathlib.Path, list[float]] = {empty: [], full: []}
    for _ in range(runs + 1):
        for config, found in results.items():
            found.append(timed([program, "-C", str(config), "flush"], os.devnull))
    show_pair(f"flush, nothing due, {runs} runs", results[empty][1:], results[full][1:], None)


def show_pair(what: str, empty: list[float], full: list[float], limit: float | None) -> None:
    before, after = statistics.median(empty), statistics.median(full)
    verdict = f"   more than {limit}" if limit and after > limit * before else ""
    print(
        f"{what}: {before:.1f} ms with an empty queue, {after:.1f} ms with this one,"
        f" x {after / before:.2f}{verdict}",
        flush=True,
    )


if __name__ == "__main__":
    main()
