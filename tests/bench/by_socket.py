"""What a submission through the socket costs: alone, by many at a time, and beside clients that mean no good.

    cd tests && PYTHONPATH=.. python3 -m bench.by_socket [--runs 100] [--rounds 7] [--messages 200]      as root

    one submission      beside the bare interpreter, its own queue, and the drop; the commands take turns
    8 in parallel       messages a second, each way
    24, and 8 hostile   latency of the 24 good clients, alone and beside the eight of ``sandbox.hostile``; rounds take turns

The services run as they are installed, as an account of their own, and the clients as another.
"""

import argparse
import os
import statistics
import subprocess
import threading
import time

from sandbox.installed import ANN, INTERPRETER, Installed

MESSAGE = b"From: a@example.org\nTo: b@example.net\nSubject: benchmark\n\n" + b"0123456789\n" * 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--only", choices=("one", "parallel", "hostile"))
    options = parser.parse_args()
    with Bench() as bench:
        if options.only in (None, "one"):
            bench.one(options.runs)
        if options.only in (None, "parallel"):
            bench.parallel(options.messages)
        if options.only in (None, "hostile"):
            bench.hostile(options.rounds)


class Bench(Installed):
    """``own`` and ``drop`` are commands that submit another way."""

    def __enter__(self) -> "Bench":
        super().__enter__()
        self.message = self.top / "message"
        self.message.write_bytes(MESSAGE)
        self.service = self.start("--accept")
        home = self.top / "home"
        home.mkdir()
        os.chown(home, ANN, ANN)
        text = self.config.read_text()
        own = self.top / "own.toml"
        own.write_text(text.replace(f'path = "{self.spool}"', f'path = "{home}/spool"'))
        drop = self.top / "drop.toml"
        drop.write_text(text.replace(f'socket = "{self.socket}"', "socket = false"))
        end = ["-odq", "-i", "-f", "a@example.org", "b@example.net"]
        self.rows = {
            "python3 -IS -c pass": [INTERPRETER, "-IS", "-c", "pass"],
            "socket": [*self.sendmail, *end],
            "own queue": [str(self.sendmail_path), "-C", str(own), *end],
            "drop": [str(self.sendmail_path), "-C", str(drop), *end],
        }
        return self

    def spawn(self, command: list[str]) -> "tuple[float, subprocess.Popen[bytes]]":
        with self.message.open("rb") as stdin:
            began = time.perf_counter()
            return began, subprocess.Popen(
                command, stdin=stdin, user=ANN, group=ANN, extra_groups=[], env={}, cwd="/"
            )

    def time(self, command: list[str]) -> float:
        """Milliseconds."""
        began, process = self.spawn(command)
        if process.wait():
            raise SystemExit(f"{command}: {process.returncode}")
        return (time.perf_counter() - began) * 1e3

    def one(self, runs: int) -> None:
        results: dict[str, list[float]] = {name: [] for name in self.rows}
        for command in self.rows.values():
            self.time(command)
        for _ in range(runs):
            for name, command in self.rows.items():
                results[name].append(self.time(command))
        base = statistics.median(results["python3 -IS -c pass"])
        print(
            f"\none submission, {runs} runs each\n{'':22}{'median ms':>10}{'min':>8}{'x bare':>8}"
        )
        for name, values in results.items():
            median = statistics.median(values)
            print(f"{name:22}{median:10.2f}{min(values):8.2f}{median / base:8.2f}")

    def parallel(self, messages: int, clients: int = 8) -> None:
        print(f"\n{clients} clients in parallel, {messages} messages\n{'':22}{'messages/s':>10}")
        for name, command in self.rows.items():
            rates = [self.rate(command, messages, clients) for _ in range(3)]
            print(f"{name:22}{statistics.median(rates):10.1f}")

    def rate(self, command: list[str], messages: int, clients: int) -> float:
        began = time.perf_counter()
        self.together(command, clients, messages // clients)
        return messages // clients * clients / (time.perf_counter() - began)

    def together(self, command: list[str], clients: int, each: int) -> list[float]:
        """Milliseconds of each submission, by so many clients at the same time."""
        results: list[float] = []

        def client() -> None:
            results.extend([self.time(command) for _ in range(each)])

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == clients * each
        return results

    def hostile(self, rounds: int, each: int = 4) -> None:
        alone, beside = [], []
        for _ in range(rounds):
            alone.append(statistics.median(self.together(self.rows["socket"], 24, each)))
            with self.attacked():
                time.sleep(0.5)
                beside.append(statistics.median(self.together(self.rows["socket"], 24, each)))
        first, second = statistics.median(alone), statistics.median(beside)
        print(
            f"\n24 clients, {each} messages each, median ms of a submission, {rounds} rounds\n"
            f"{'alone':22}{first:10.1f}   {' '.join(f'{x:.0f}' for x in alone)}\n"
            f"{'beside 8 hostile':22}{second:10.1f}   {' '.join(f'{x:.0f}' for x in beside)}\n"
            f"{'ratio':22}{second / first:10.2f}"
        )


if __name__ == "__main__":
    main()
