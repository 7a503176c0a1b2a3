"""kill -9 of the socket service, and of its clients, at random moments: no message is lost, none is queued twice.

    cd tests && PYTHONPATH=.. python3 -m soak.socket_kill [--rounds 500] [--clients 4] [--of WHOM] [--seed N]      as root

In each round so many clients submit at the same time, small messages and some that are too large for the drop, and the
service, or each client, is killed at a random moment; then the service is started again: when the clients have ended
("service"), or at once, on the socket that stays, where they ask it what became of their messages ("activated").  At the end what is in the drop
is brought in and everything is delivered, to a server that takes all of it.

    the client said               how often its message arrives
    exit 0                        once
    75                            never
    75, "may have been queued"    never or once
    nothing, it was killed        never or once, whole

No delivery is disturbed, so that a second copy can come of nothing but a client that went two ways.
"""

import argparse
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from sandbox.installed import ANN, DEADLINE, Installed

# Every so many messages one is larger than what a client keeps.
_LARGE_EACH, _LARGE = 4, 6_000_000
# The moment of a kill, as a part of the time that submissions were seen to take.
_EARLIEST, _LATEST = 0.2, 1.1
_UNSURE = b"may have been queued"
_NUMBER = re.compile(rb"^Subject: (\d+)\r?$", re.M)


@dataclass
class Counts:
    """What the clients said, what arrived of each kind, and how many services and clients were killed while at work."""

    said: Counter[str] = field(default_factory=Counter)
    arrived: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    met: int = 0
    by_drop: int = 0

    def __str__(self) -> str:
        rows = "\n".join(
            f"{said:28}{count:6} messages, {self.arrived[said]:6} arrived"
            for said, count in sorted(self.said.items())
        )
        return (
            f"{self.killed} killed, {self.met} in the middle of a submission; {self.by_drop} by the drop\n"
            f"{rows}\nnone more often than it may, none changed"
        )


def body(number: int, *, large: bool) -> bytes:
    """Each line has the number, so that parts of two messages would be seen."""
    line = b"%08d 0123456789 0123456789 0123456789 0123456789 0123456789\n" % number
    return b"Subject: %d\n\n" % number + line * (_LARGE // len(line) if large else 3)


class Storm:
    """``of``  what is killed: "service", "activated" or "client"."""

    def __init__(self, system: Installed, *, clients: int, of: str, seed: int) -> None:
        self.system = system
        self.clients = clients
        self.of = of
        self.random = random.Random(seed)
        self.counts = Counts()
        self._said: dict[int, str] = {}
        self._took = 0.1
        self._lock = threading.Lock()

    def large(self, number: int) -> bool:
        return number % _LARGE_EACH == 0

    def run(self, rounds: int, seconds: float = 1e9, *, least: int = 0) -> Counts:
        """So many rounds, or as many as there is time for; for ``least`` who were killed while at work there always is."""
        end = time.monotonic() + seconds
        self._listening = self.system.listen() if self.of == "activated" else None
        self._start()
        for number in range(3):
            began = time.monotonic()
            self.round(number, kill=False)
            self._took = time.monotonic() - began
        for number in range(3, 3 + rounds):
            if time.monotonic() > end and self.counts.met >= least:
                break
            self.round(number)
        self._service.end()
        self._ended()
        if self._listening is not None:
            self._listening.close()
        self.check()
        return self.counts

    def _start(self) -> None:
        self._service = self.system.start("--accept", listening=self._listening)

    def _ended(self) -> None:
        log = self._service.log
        assert "event=bug" not in log, log
        self.counts.by_drop += log.count("event=ingested")

    def round(self, number: int, *, kill: bool = True) -> None:
        """Each client submits one message."""

        def moment() -> float:
            return self._took * self.random.uniform(_EARLIEST, _LATEST)

        wait = moment()
        threads = [
            threading.Thread(
                target=self.submit,
                args=(
                    number * self.clients + n,
                    moment() if kill and self.of == "client" else None,
                ),
            )
            for n in range(self.clients)
        ]
        for thread in threads:
            thread.start()
        service_dies = kill and self.of != "client"
        if service_dies:
            time.sleep(wait)
            self.counts.met += any(thread.is_alive() for thread in threads)
            self._service.end(signal.SIGKILL)
            self._ended()
            self.counts.killed += 1
            if self.of == "activated":
                self._start()
        for thread in threads:
            thread.join()
        if self.of == "service" and service_dies:
            self._start()

    def submit(self, number: int, wait: float | None) -> None:
        recipient = f"n{number}@example.net"
        process = subprocess.Popen(
            [*self.system.sendmail, "-i", recipient],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=ANN,
            group=ANN,
            extra_groups=[],
            env={},
            cwd="/",
        )
        kill = None
        if wait is not None:
            kill = threading.Timer(wait, process.kill)
            kill.start()
        output, errors = process.communicate(body(number, large=self.large(number)), DEADLINE)
        if kill is not None:
            kill.cancel()
            kill.join()
        said = self.judged(process.returncode, errors)
        assert output == b""
        with self._lock:
            self._said[number] = said
            self.counts.said[said] += 1
            if said == "killed":
                self.counts.killed += 1
                self.counts.met += 1

    def judged(self, code: int, errors: bytes) -> str:
        if code == -signal.SIGKILL and self.of == "client":
            assert errors == b"", errors
            return "killed"
        if code == 0:
            assert errors == b"", errors
            return "exit 0"
        assert code == 75, (code, errors)
        assert errors.startswith(b"sendmail: ") and errors.count(b"\n") == 1, errors
        return "75, may have been queued" if _UNSURE in errors else "75"

    def check(self) -> None:
        """Deliver what there is; every message has arrived as often as its client may expect."""
        system = self.system
        self.counts.by_drop += len(list((system.drop / "new").iterdir()))
        system.flush()
        # What those who were killed had begun is no message; only its age tells it from one in hand.
        left = [path for path in system.kept() if "/tmp/" not in path]
        assert left == [], left
        arrived: Counter[int] = Counter()
        for message in system.server.messages:
            found = _NUMBER.search(message.octets)
            assert found is not None
            number = int(found[1])
            assert message.recipients == (b"n%d@example.net" % number,)
            whole = body(number, large=self.large(number)).partition(b"\n\n")[2]
            assert message.octets.replace(b"\r\n", b"\n").partition(b"\n\n")[2] == whole
            arrived[number] += 1
        assert set(arrived) <= set(self._said)
        for number, said in self._said.items():
            allowed = {"exit 0": {1}, "75": {0}}.get(said, {0, 1})
            assert arrived[number] in allowed, (number, said, arrived[number])
            self.counts.arrived[said] += arrived[number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--of", choices=("service", "activated", "client"), default="service")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"{options}")
    with Installed() as system:
        storm = Storm(system, clients=options.clients, of=options.of, seed=options.seed)
        print(storm.run(options.rounds))


if __name__ == "__main__":
    main()
