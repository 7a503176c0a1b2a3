"""The most memory that messages take: in sendmail, and in the flush that delivers one of 100 MB, or three of 50 MB at once.

    cd tests && python3 -m bench.memory [--size 100]

Both run as they are installed, byte-compiled and by ``python3 -IS``, under time(1).  The server reads, and keeps nothing.
"""

import argparse
import pathlib
import socket
import ssl
import subprocess
import tempfile
import threading

import trustme
from bench.submission import SENDER, install, message

# MB resident; the issues' limits: for one message, and for three of half the size at once.
LIMIT = 30
LIMIT_AT_ONCE = 60
AT_ONCE = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=100, metavar="MB")
    size = parser.parse_args().size
    with tempfile.TemporaryDirectory(prefix="minisend-bench-", dir="/var/tmp") as name:
        directory = pathlib.Path(name)
        script = install(directory)
        certificate = trustme.CA()
        certificate.cert_pem.write_to_path(directory / "ca.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.issue_cert("127.0.0.1").configure_cert(context)
        octets, half = message(directory, size << 20), message(directory, size // 2 << 20)
        for title, tls, server in (
            ("plain text", 'tls = "none"', Discarder(None)),
            ("TLS", f'tls = "implicit"\ntls_ca_file = "{directory}/ca.pem"', Discarder(context)),
        ):
            config = directory / "config.toml"
            config.write_text(
                f'[spool]\npath = "{directory}/spool"\nmax_message_size = "1G"\n'
                f'[smarthost]\nhost = "127.0.0.1"\nport = {server.port}\n{tls}\n'
            )
            with server, octets.open("rb") as stdin:
                command = [str(script), "-C", str(config)]
                row("sendmail", f"{size} MB", peak([*command, "-odq", *SENDER], stdin), LIMIT)
                flush = [*command, "-q"]
                row(f"flush, {title}", f"{size} MB", peak(flush, subprocess.DEVNULL), LIMIT)
                for _ in range(AT_ONCE):
                    with half.open("rb") as stdin_of_one:
                        submit = [*command, "-odq", *SENDER]
                        subprocess.run(submit, stdin=stdin_of_one, check=True)
                what = f"{AT_ONCE} x {size // 2} MB"
                row(f"flush, {title}", what, peak(flush, subprocess.DEVNULL), LIMIT_AT_ONCE)
            if server.octets < (size + AT_ONCE * (size // 2)) << 20:
                raise SystemExit(f"{server.octets} octets arrived")
            if server.at_once < AT_ONCE:
                raise SystemExit(f"only {server.at_once} sessions at once")


def peak(command: list[str], stdin: object) -> float:
    """MB resident.  Through time(1): what wait4 tells of a child begins with the memory of the process it was forked from."""
    done = subprocess.run(
        ["time", "-f", "%M", *command], stdin=stdin, stderr=subprocess.PIPE, check=True
    )
    return int(done.stderr) / 1000


def row(what: str, size: str, megabytes: float, limit: int) -> None:
    verdict = "" if megabytes <= limit else f"   more than {limit}"
    print(f"{what:20} {size:>9}: peak {megabytes:5.1f} MB{verdict}", flush=True)


class Discarder:
    """A server on loopback that takes everything, sessions side by side.

    ``octets``   what it has read
    ``at_once``  the most messages that were on their way at the same time
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._listen)]
        self._lock = threading.Lock()
        self.port: int = self._listener.getsockname()[1]
        self.octets = 0
        self.at_once = self._open = 0

    def __enter__(self) -> "Discarder":
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # nobody comes any more
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection:
            connection.sendall(b"220 bench\r\n")
            end = b""
            while octets := connection.recv(1 << 18):
                with self._lock:
                    self.octets += len(octets)
                end = (end + octets)[-5:]
                if end == b"\r\n.\r\n":
                    self._count(-1)
                    connection.sendall(b"250 taken\r\n")
                elif octets.startswith(b"DATA"):
                    self._count(1)
                    connection.sendall(b"354 go ahead\r\n")
                elif octets.startswith((b"EHLO", b"MAIL", b"RCPT", b"RSET", b"QUIT")):
                    connection.sendall(b"250 ok\r\n")

    def _count(self, change: int) -> None:
        with self._lock:
            self._open += change
            self.at_once = max(self.at_once, self._open)


if __name__ == "__main__":
    main()
