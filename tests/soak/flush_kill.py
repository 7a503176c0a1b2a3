"""kill -9 of the real ``minisend flush`` at each of its system calls, against Postfix: nothing lost, nothing sent twice
but what was in flight, a report as little as any other message.

    cd tests && python3 -m soak.flush_kill [--rounds 1]        as root: every call; prints what came of it

The short form, some calls of each kind, is tests/crash/test_flush_kill.py.

Each round has a queue of its own with a message for one server, one for two servers, one of which a recipient has to
wait, one of which a recipient is refused, so that its sender gets a report, and one with more recipients than go into one
transaction.  A flush is killed as it enters a system call, a second one, which can reach everybody, runs to its end.  What
the first was about when it was killed is read from the trace of strace: a recipient is in flight from the write that ends
the message to the record of it (a line in the file, or its removal).

strace counts the calls of each thread by themselves, and the first thread to come to a number is the one that is killed
there; each server has a thread of its own.  So each of them is the one that begins in some of the rounds.
"""

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from delivery.program import Program
from delivery.reports import read_report
from peers.postfix import Postfix
from peers.process import free_port

# What changes something, makes it durable or speaks to a server; recvfrom is where it waits for the answer.
KINDS = (
    *("sendto", "recvfrom", "connect", "flock", "fallocate", "write", "pwrite64", "ftruncate"),
    *("fsync", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
)
FIRST, SECOND, NOBODY = "127.0.0.2", "127.0.0.3", "127.0.0.4"
BEGINNERS = (FIRST, SECOND, NOBODY)
MESSAGE = b"Subject: s\n\nbody\n"
# RFC 5321 section 4.5.3.1.8: 100 go into one transaction.
_MANY = 101

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)")
# What is sent, in its order: the beginning of a transaction, its recipients, and the queue id in the content.
_SENT = re.compile(r"(MAIL FROM:)|RCPT TO:<([^>]*)>|Received: by [^;]*\\tid (\w+);")
_RECORDED = re.compile(r'/(?:\d+\.)?(\w+)>, "\\noutcome')
_REMOVED = re.compile(r'"(?:\d+\.)?(\w+)"')


@dataclass(frozen=True)
class Point:
    """Where to kill: the call of this ``kind`` and ``number`` while the server ``beginner`` is served first."""

    beginner: str
    kind: str
    number: int


@dataclass(frozen=True)
class Round:
    """One queue, with the recipients by what is to become of them.  ``name`` is in each address."""

    point: Point
    name: str

    def messages(self) -> list[list[str]]:
        """The recipients of each message, in the order in which they are to be attempted."""

        def begins(recipient: str) -> bool:
            return recipient.endswith(f"@[{self.point.beginner}]")

        messages = [sorted(each, key=begins, reverse=True) for each in self._messages()]
        return sorted(messages, key=lambda message: begins(message[0]), reverse=True)

    def _messages(self) -> list[list[str]]:
        return [
            [f"one.{self.name}@[{FIRST}]"],
            [f"two.{self.name}@[{FIRST}]", f"three.{self.name}@[{SECOND}]"],
            [f"four.{self.name}@[{FIRST}]", f"five.{self.name}@[{NOBODY}]"],
            [f"six.{self.name}@[{FIRST}]", f"refused@[{FIRST}]"],
            [f"{number}.{self.name}@[{FIRST}]" for number in range(_MANY)],
        ]

    @property
    def sender(self) -> str:
        """Of each message."""
        return f"me.{self.name}@[{FIRST}]"

    def delivered(self) -> list[str]:
        """The recipients who have to have it, and the sender, who has to have the report."""
        return [
            *(
                each
                for message in self.messages()
                for each in message
                if not each.startswith("refused@")
            ),
            self.sender,
        ]


@dataclass(frozen=True)
class Result:
    """``reached``: the flush was killed; ``in_flight``: the recipients who may have a second copy of it."""

    round: Round
    reached: bool
    in_flight: frozenset[str]


class Storm:
    """Two Postfixes and the rounds against them; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port(FIRST, SECOND, NOBODY)
        refusals = {"refused@": "550 5.1.1 unknown"}
        self._servers = [
            Postfix(address=FIRST, port=self._port, refusals=refusals),
            Postfix(address=SECOND, port=self._port),
        ]
        self._count = 0

    def __enter__(self) -> "Storm":
        for server in self._servers:
            server.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for server in self._servers:
            server.__exit__(*exc_info)

    def points(self) -> list[Point]:
        """Each call of undisturbed flushes that is about the queue or a server, as far as a thread can be killed there."""
        found = []
        for beginner in BEGINNERS:
            result, trace = self._run(Point(beginner, "", 0))
            assert not result.reached
            counts: Counter[tuple[str, str]] = Counter()
            for line in trace:
                thread, _, call = line.partition(" ")
                kind = call.strip().partition("(")[0]
                if kind in KINDS:
                    counts[thread, kind] += 1
                    if "/queue/" in line or "<TCP:" in line or "<socket:" in line:
                        found.append(Point(beginner, kind, counts[thread, kind]))
        return list(dict.fromkeys(found))

    def kill(self, point: Point) -> Result:
        """One round.  Fails unless the second flush leaves nothing."""
        return self._run(point)[0]

    def check(self, results: list[Result]) -> int:
        """Everybody has it; and once, but who was in flight.  Returns how many have it twice."""
        copies: Counter[str] = Counter()
        for server in self._servers:
            for arrived in server.arrived():
                copies.update(recipient.decode() for recipient in arrived.recipients)
                if not arrived.sender:
                    refused = [(f"refused@[{FIRST}]", "failed", "5.1.1")]
                    assert read_report(arrived.message).fates() == refused
        for result in results:
            for recipient in result.round.delivered():
                allowed = (1, 2) if recipient in result.in_flight else (1,)
                assert copies[recipient] in allowed, (result, recipient, copies[recipient])
        return sum(count == 2 for count in copies.values())

    def _run(self, point: Point) -> tuple[Result, list[str]]:
        self._count += 1
        this = Round(point, str(self._count))
        directory = self._directory / this.name
        directory.mkdir()
        # One connection at a time, so that the calls of a run come in one order.
        settings = f'[delivery]\nmx_port = {self._port}\ntls = "none"\nconnections = 1\n'
        program = Program(directory, settings)
        for recipients in this.messages():
            program.sendmail("-f", this.sender, *recipients, stdin=MESSAGE)
        ids = {
            message["recipients"][0]["address"]: message["queue_id"] for message in program.queue()
        }
        in_order = [ids[recipients[0]] for recipients in this.messages()]
        trace = directory / "trace"
        traced = ",".join(f"?{each}" for each in KINDS)
        injected = (
            ["-e", f"inject={point.kind}:signal=KILL:when={point.number}"] if point.kind else []
        )
        subprocess.run(
            [
                *(
                    "strace",
                    "-f",
                    "-y",
                    "-qq",
                    "-s",
                    "100000",
                    "-o",
                    trace,
                    "-e",
                    f"trace={traced}",
                ),
                *(*injected, "--", *program.command("minisend", "flush", "--quiet", *in_order)),
            ],
            env={},
            check=False,
        )
        lines = whole(trace.read_text().splitlines())
        # In the second flush everybody can be reached.
        program.configure(f'[smarthost]\nhost = "{FIRST}"\nport = {self._port}\ntls = "none"\n')
        said = program.flush("--all")
        left = [
            [recipient["address"] for recipient in message["recipients"]]
            for message in program.queue()
        ]
        assert left == [], (this, said, left, [server.log()[-5000:] for server in self._servers])
        killed = any("killed by SIGKILL" in line for line in lines)
        return Result(this, killed, frozenset(in_flight(lines))), lines


def whole(trace: list[str]) -> list[str]:
    """The trace with each call that another thread's interrupted in one line, where it ended; never ended, it has none."""
    begun: dict[str, str] = {}
    lines = []
    for line in trace:
        thread = line.partition(" ")[0]
        if line.endswith("<unfinished ...>"):
            begun[thread] = line.removesuffix("<unfinished ...>")
        elif "resumed>" in line:
            lines.append(begun.pop(thread, "") + line.partition("resumed>")[2])
        else:
            lines.append(line)
    return lines


def in_flight(trace: list[str]) -> set[str]:
    """The recipients of the transactions that were sent and not recorded when the trace ends."""
    asked: list[str] = []
    sent: list[tuple[str, list[str]]] = []
    for line in trace:
        call = _CALL.match(line)
        if call is None:
            continue
        kind, arguments, result = call.groups()
        # A call at whose beginning the process was killed has no result, and was not made.  One that another thread was
        # in then may have been: what it sent is in flight, what it recorded is not known to be.
        begun = kind == "sendto" and "<unfinished ...>" in arguments
        if result == "-1" or (result == "?" and not begun):
            continue
        if kind == "sendto":
            for mail, recipient, queue_id in _SENT.findall(arguments):
                if mail:
                    asked = []
                elif recipient:
                    asked.append(recipient)
                else:
                    sent.append((queue_id, asked))
        elif kind == "pwrite64" and (recorded := _RECORDED.search(arguments)):
            # The outcomes of one transaction; those of one message are sent and recorded in the same order.
            first = next((each for each in sent if each[0] == recorded[1]), None)
            if first is not None:
                sent.remove(first)
        elif kind.startswith("unlink") and (removed := _REMOVED.search(arguments)):
            sent = [each for each in sent if each[0] != removed[1]]
    return {recipient for _, recipients in sent for recipient in recipients}


def sample(points: list[Point], of_each: int) -> Iterator[Point]:
    """As many calls of each kind, evenly spread, the first and last among them."""
    for kind in dict.fromkeys(point.kind for point in points):
        these = [point for point in points if point.kind == kind]
        count = min(of_each, len(these))
        yield from (these[n * (len(these) - 1) // max(count - 1, 1)] for n in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory, Storm(Path(directory)) as storm:
        points = storm.points()
        print(
            f"{len(points)} system calls: {dict(Counter(point.kind for point in points))}",
            flush=True,
        )
        results = [storm.kill(point) for _ in range(rounds) for point in points]
        twice = storm.check(results)
    reached = [result for result in results if result.reached]
    flying = [result for result in reached if result.in_flight]
    print(
        f"{len(reached)} flushes killed of {len(results)}, {len(flying)} of them with a message in flight; "
        f"nobody went without; {twice} recipients have two copies, all of them of what was in flight"
    )


if __name__ == "__main__":
    main()
