"""What one submission costs, beside the bare interpreter and dma in the same run.

    python3 tests/bench/submission.py [--runs 100] [--big-runs 15] [--no-peer]

Each row is a command started again and again, the commands taking turns; wall time from start to exit, and processor time from
wait4.  The rows to look at are the ratios: the machine's speed is in all of them.  dma is measured
where it is installed and a private mount namespace can be made for its configuration and spool (root); it is told
to queue only, as we are.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
INTERPRETER = "/usr/bin/python3"
SENDER = ["-i", "-f", "a@example.org", "b@example.net"]
NAMESPACE = "MINISEND_BENCH_NAMESPACE"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--big-runs", type=int, default=15)
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    dma = shutil.which("dma", path="/usr/sbin:/usr/bin")
    if dma and not arguments.no_peer and os.geteuid() == 0 and NAMESPACE not in os.environ:
        os.environ[NAMESPACE] = "1"
        os.execvp("unshare", ["unshare", "-m", sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory(prefix="minisend-bench-", dir="/var/tmp") as directory:
        measure(pathlib.Path(directory), arguments, dma if NAMESPACE in os.environ else None)


def measure(directory: pathlib.Path, arguments: argparse.Namespace, dma: str | None) -> None:
    sendmail = install(directory)
    config = directory / "config.toml"
    config.write_text(
        f'[spool]\npath = "{directory}/spool"\nmax_message_size = "200M"\n\n'
        '[smarthost]\nhost = "127.0.0.1"\nport = 9\ntls = "none"\n'
    )
    spool = directory / "spool" / "queue" / "new"
    own = [str(sendmail), "-C", str(config)]
    # Without -C the configuration is found by $MINISEND_CONFIG.
    os.environ["MINISEND_CONFIG"] = str(config)
    rows: dict[str, tuple[list[str], pathlib.Path | None]] = {
        "python3 -IS -c pass": ([INTERPRETER, "-IS", "-c", "pass"], None),
        "sendmail -odq, -C FILE": ([*own, "-odq", *SENDER], spool),
        "sendmail -odq, file found": ([str(sendmail), "-odq", *SENDER], spool),
        "sendmail -odq -t": ([*own, "-odq", "-t"], spool),
        "sendmail (-odb)": ([*own, *SENDER], spool),
    }
    if dma:
        rows["dma (queue only)"] = (dma_command(directory, dma), pathlib.Path("/var/spool/dma"))
    for title, size, runs in (
        ("1 KB", 1000, arguments.runs),
        ("10 MB", 10 * 1024 * 1024, arguments.big_runs),
    ):
        report(title, rows, message(directory, size), runs)
    show_memory(own, message(directory, 100 * 1024 * 1024), spool)


def install(directory: pathlib.Path) -> pathlib.Path:
    """The package as a distribution installs it: byte-compiled, behind the five-line script."""
    library = directory / "lib"
    shutil.copytree(
        ROOT / "minisend", library / "minisend", ignore=shutil.ignore_patterns("__pycache__")
    )
    for source in library.rglob("*.py"):
        subprocess.run([INTERPRETER, "-IS", "-m", "py_compile", source], check=True)
    script = directory / "sendmail"
    script.write_text(
        (ROOT / "packaging" / "launcher.in").read_text().replace("@LIBDIR@", str(library))
    )
    script.chmod(0o755)
    return script


def dma_command(directory: pathlib.Path, dma: str) -> list[str]:
    etc = directory / "dma"
    etc.mkdir()
    (etc / "dma.conf").write_text("SMARTHOST 127.0.0.1\nPORT 9\nDEFER\n")
    (etc / "auth.conf").write_text("")
    queue = directory / "dma-spool"
    queue.mkdir()
    # dma gives up root for the group mail before it touches its spool.
    shutil.copystat("/var/spool/dma", queue)
    shutil.chown(queue, "root", "mail")
    for source, target in ((etc, "/etc/dma"), (queue, "/var/spool/dma")):
        subprocess.run(["mount", "--bind", source, target], check=True)
    return [dma, *SENDER]


def message(directory: pathlib.Path, size: int) -> pathlib.Path:
    path = directory / f"message-{size}"
    line = b"The quick brown fox jumps over the lazy dog. 0123456789 ABCDEFGHIJKLMN\n"
    with open(path, "wb") as file:
        file.write(b"From: a@example.org\nTo: b@example.net\nSubject: benchmark\n\n")
        for _ in range(size // len(line)):
            file.write(line)
    return path


def run(command: list[str], stdin: pathlib.Path) -> tuple[float, float]:
    """Milliseconds of wall time and of processor time."""
    fd = os.open(stdin, os.O_RDONLY)
    started = time.perf_counter()
    pid = os.posix_spawn(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, fd, 0)]
    )
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - started
    os.close(fd)
    if status:
        raise SystemExit(f"{' '.join(command)}: wait status {status}")
    return wall * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3


def report(
    title: str,
    rows: dict[str, tuple[list[str], pathlib.Path | None]],
    stdin: pathlib.Path,
    runs: int,
) -> None:
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for command, queue in rows.values():
        run(command, stdin)
        empty(queue)
    for _ in range(runs):
        for name, (command, queue) in rows.items():
            results[name].append(run(command, stdin))
            settle(queue)
            empty(queue)
    base = statistics.median(r[0] for r in results["python3 -IS -c pass"])
    peer = results.get("dma (queue only)")
    peer_median = statistics.median(r[0] for r in peer) if peer else 0.0
    print(f"\n{title}, {runs} runs each")
    print(f"{'':28}{'median ms':>10}{'min':>8}{'cpu ms':>8}{'x bare':>8}{'x dma':>8}")
    for name, values in results.items():
        wall = statistics.median(v[0] for v in values)
        print(
            f"{name:28}{wall:10.2f}{min(v[0] for v in values):8.2f}"
            f"{statistics.mean(v[1] for v in values):8.2f}"
            f"{wall / base:8.2f}{f'{wall / peer_median:8.2f}' if peer_median else '       -'}"
        )


def show_memory(own: list[str], big: pathlib.Path, queue: pathlib.Path) -> None:
    # Through time(1): what wait4 tells of a child begins with the memory of the process it was forked from.
    with open(big, "rb") as file:
        done = subprocess.run(
            ["time", "-f", "%M", *own, "-odq", *SENDER],
            stdin=file,
            stderr=subprocess.PIPE,
            check=True,
        )
    print(f"\nsendmail with {big.stat().st_size >> 20} MB: peak {int(done.stderr) / 1024:.1f} MiB")
    empty(queue)


def settle(queue: pathlib.Path | None) -> None:
    """Wait until the flusher that a submission started has ended, so that it is not in the next row's time."""
    while (
        queue is not None
        and subprocess.run(
            ["pgrep", "-f", "flush --background"], stdout=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    ):
        time.sleep(0.005)


def empty(queue: pathlib.Path | None) -> None:
    if queue is None:
        return
    root = queue.parent if queue.name == "new" else queue
    for path in root.rglob("*"):
        if path.is_file():
            path.unlink()


if __name__ == "__main__":
    main()
