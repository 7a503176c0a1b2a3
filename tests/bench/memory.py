"""The most memory that a message of 100 MB takes: in sendmail, and in the flush that delivers it.

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

# MB resident; the issue's limit for both.
LIMIT = 30


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
        octets = message(directory, size << 20)
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
                row("sendmail", size, peak([*command, "-odq", *SENDER], stdin))
                row(f"flush, {title}", size, peak([*command, "-q"], subprocess.DEVNULL))
            if server.octets < size << 20:
                raise SystemExit(f"{server.octets} octets arrived")


def peak(command: list[str], stdin: object) -> float:
    """MB resident.  Through time(1): what wait4 tells of a child begins with the memory of the process it was forked from."""
    done = subprocess.run(
        ["time", "-f", "%M", *command], stdin=stdin, stderr=subprocess.PIPE, check=True
    )
    return int(done.stderr) / 1000


def row(what: str, size: int, megabytes: float) -> None:
    verdict = "" if megabytes <= LIMIT else f"   more than {LIMIT}"
    print(f"{what:20} {size} MB: peak {megabytes:5.1f} MB{verdict}", flush=True)


class Discarder:
    """A server on loopback that takes everything, for one session; ``octets`` counts what it read."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.port: int = self._listener.getsockname()[1]
        self.octets = 0

    def __enter__(self) -> "Discarder":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # nobody came
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection:
            connection.sendall(b"220 bench\r\n")
            end = b""
            while octets := connection.recv(1 << 18):
                self.octets += len(octets)
                end = (end + octets)[-5:]
                if end == b"\r\n.\r\n":
                    connection.sendall(b"250 taken\r\n")
                elif octets.startswith(b"DATA"):
                    connection.sendall(b"354 go ahead\r\n")
                elif octets.startswith((b"EHLO", b"MAIL", b"RCPT", b"QUIT")):
                    connection.sendall(b"250 ok\r\n")


if __name__ == "__main__":
    main()
