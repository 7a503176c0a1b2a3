"""How many messages go over one connection in one round trip, to a server 50 ms away.

    PYTHONPATH=tests python3 -m bench.round_trips [--messages N] [--rtt MILLISECONDS]

One run has both: a server with PIPELINING, to which a message takes a round trip, and one with CHUNKING beside it, to
which whole messages follow one another.  The distance is made by the server, which holds back what it hears and what
it says for half of it each.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
MESSAGE = b"From: a@x.test\nTo: b@x.test\nSubject: s\n\n" + (b"x" * 70 + b"\n") * 14


class Sink(asyncio.Protocol):
    """An SMTP server that takes everything, ``half`` seconds away."""

    def __init__(self, keywords: tuple[bytes, ...], half: float, taken: list[float]) -> None:
        self._keywords = keywords
        self._half = half
        self._taken = taken
        self._octets = b""
        self._in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._later(self._say, b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._later(self._hear, data)

    def _later(self, call, octets: bytes) -> None:
        asyncio.get_running_loop().call_later(self._half, call, octets)

    def _say(self, octets: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(octets)

    def _hear(self, octets: bytes) -> None:
        self._octets += octets
        said = b""
        while (answer := self._next()) is not None:
            said += answer
        if said:
            self._later(self._say, said)

    def _next(self) -> bytes | None:
        if self._in_data:
            _, end, rest = self._octets.partition(b"\r\n.\r\n")
            if not end:
                return None
            self._octets = rest
            self._in_data = False
            self._taken.append(time.monotonic())
            return b"250 taken\r\n"
        line, end, rest = self._octets.partition(b"\r\n")
        if not end:
            return None
        verb = line[:4].upper()
        if verb == b"BDAT":
            count = int(line.split()[1])
            if len(rest) < count:
                return None
            rest = rest[count:]
            if line.upper().endswith(b"LAST"):
                self._taken.append(time.monotonic())
        self._octets = rest
        if verb == b"EHLO":
            lines = [b"sink", *self._keywords]
            return b"".join(b"250-%b\r\n" % each for each in lines[:-1]) + b"250 %b\r\n" % lines[-1]
        if verb == b"DATA":
            self._in_data = True
            return b"354 go\r\n"
        if verb == b"QUIT":
            asyncio.get_running_loop().call_later(2 * self._half, self._transport.close)
        return b"250 ok\r\n"


def measure(messages: int, rtt: float, keywords: tuple[bytes, ...]) -> float:
    """Messages per round trip, from the first that was taken to the last."""
    taken: list[float] = []
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        loop.create_server(lambda: Sink(keywords, rtt / 2, taken), "127.0.0.1", 0)
    )
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with tempfile.TemporaryDirectory() as directory:
            config = Path(directory, "config.toml")
            config.write_text(
                f'[spool]\npath = "{directory}/spool"\n[delivery]\nconnections = 1\n'
                f'[smarthost]\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\n'
            )
            command = [sys.executable, "-I", ROOT / "minisend/__main__.py"]
            for _ in range(messages):
                subprocess.run(
                    [*command, "sendmail", "-C", config, "-odq", "-f", "a@x.test", "b@x.test"],
                    input=MESSAGE,
                    check=True,
                )
            subprocess.run(
                [*command, "minisend", "-C", config, "flush", "--quiet"],
                check=True,
                env={"PATH": os.defpath},
                stderr=subprocess.DEVNULL,
            )
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()
    assert len(taken) == messages, len(taken)
    return (messages - 1) / (taken[-1] - taken[0]) * rtt


def main() -> None:
    """Three runs of each, and their medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--rtt", type=float, default=50.0, help="milliseconds")
    asked = parser.parse_args()
    for name, keywords in (
        ("PIPELINING", (b"PIPELINING", b"8BITMIME")),
        ("CHUNKING", (b"PIPELINING", b"8BITMIME", b"CHUNKING")),
    ):
        runs = [measure(asked.messages, asked.rtt / 1000, keywords) for _ in range(3)]
        print(f"{name:12} {statistics.median(runs):6.2f} messages a round trip and connection")


if __name__ == "__main__":
    main()
