"""What a server sees of the file system where it cannot be told its paths: a mount namespace over this machine's.

Debian's programs have accounts, directories and the places of their parts compiled in that only an installed package
makes.  Here they are laid over the machine's for one process and its children; nothing outside sees them, and they go
with the last of these processes.  Root only: ``unavailable`` for anybody else.

Source: mount_namespaces(7), mount(8), unshare(1).
"""

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from peers.unpacked import unavailable

# $1: layers over /usr; $2: number of pairs that follow, each what is seen and where; then the command, which this
# process becomes.  mount -n: it would keep a list of its own in /run, which may be one of the places.
SCRIPT = """\
set -e
if [ "$1" ]; then
    mount -n -t overlay -o "lowerdir=$1:/usr" usr /usr
fi
pairs=$2
shift 2
while [ "$pairs" -gt 0 ]; do
    mount -n --bind "$1" "$2"
    shift 2
    pairs=$((pairs - 1))
done
exec "$@"
"""


T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # sched.h


def in_network(pid: int, make: Callable[[], T]) -> T:
    """What ``make`` returns when it is called in the network of a process: a socket stays in the one it was made in."""
    made: list[T] = []

    def run() -> None:
        network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            # For this thread alone (setns(2)).
            if ctypes.CDLL(None, use_errno=True).setns(network, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            made.append(make())
        finally:
            os.close(network)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return made[0]


def inside(
    command: Sequence[str | Path],
    *,
    usr: Sequence[Path] = (),
    seen: Mapping[Path, str] | None = None,
) -> list[str | Path]:
    """What to run so that the process becomes the command, in a namespace of its own.

    ``usr``   directories laid over /usr, the first on top
    ``seen``  file or directory to the place where it is seen instead of what is there, which has to exist
    """
    if os.geteuid() != 0:
        unavailable("mount namespaces are for root only")
    places = seen or {}
    return [
        *("unshare", "--mount", "--propagation", "private"),
        *("sh", "-c", SCRIPT, "sh", ":".join(map(str, usr)), str(len(places))),
        *(word for pair in places.items() for word in pair),
        *command,
    ]


def accounts(directory: Path, **numbers: int) -> dict[Path, str]:
    """For ``seen``: this machine's accounts and groups with those named, each with its number for both.

    ``directory``  gets the files.
    """
    seen = {}
    for name, line in (
        ("passwd", "{0}:x:{1}:{1}::/nonexistent:/usr/sbin/nologin\n"),
        ("group", "{0}:x:{1}:\n"),
    ):
        entries = [
            entry
            for entry in Path("/etc", name).read_text().splitlines(keepends=True)
            if entry.partition(":")[0] not in numbers
        ]
        path = directory / name
        path.write_text("".join(entries) + "".join(line.format(*pair) for pair in numbers.items()))
        seen[path] = f"/etc/{name}"
    return seen
