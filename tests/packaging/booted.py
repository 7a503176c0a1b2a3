"""This machine, booted by its systemd a second time, with minisend installed under /usr/local.

In namespaces of its own, on an overlay whose upper layer is memory: nothing of it reaches this machine, /proc/sys is
read-only, and its network is loopback alone.  Of the units only those that minisend is to be started by are added to
what basic.target needs.
"""

import os
import signal
import subprocess
from pathlib import Path
from typing import Self

from peers.namespace import in_network
from peers.process import wait_for
from peers.unpacked import unavailable

from minisend.admin.sink import Sink
from minisend.spool.layout import UNITS

PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SYSTEMD = "/lib/systemd/systemd"

# $1: where minisend is installed below; then the units.  Becomes systemd.
_BOOT = """
mount -t tmpfs -o mode=755 machine /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work machine /mnt/root
cp -r "$1/usr/local/." /mnt/root/usr/local
shift
cd /mnt/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sys sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for directory in dev run tmp var/spool var/lib; do
    mount -t tmpfs -o mode=755 machine $directory
done
chmod 1777 tmp
mkdir -m 1777 dev/shm
mkdir dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in full null random tty urandom zero; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
ip link set lo up
hostname host.example.org
rm -rf etc/minisend etc/systemd/system/*.wants
mkdir -p etc/systemd/system/basic.target.wants
for unit; do
    ln -s /usr/local/lib/systemd/system/$unit etc/systemd/system/basic.target.wants
done
# As an administrator does it once; systemd-sysusers and systemd-tmpfiles would do the same at boot.
chroot . env PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin minisend setup --system >/dev/null
# A chroot would not do: systemd gives its services roots of their own.
mkdir -p mnt/old
pivot_root . mnt/old
cd /
umount -l /mnt/old
# As on a machine that was booted; without it systemd cannot hand credentials to its services.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=no
"""


class Booted:
    """A context manager; ``sink`` is the smarthost of its minisend."""

    def __init__(self, installed: Path) -> None:
        if os.geteuid() != 0:
            unavailable("booting a machine in namespaces needs root")
        if not os.path.exists(_SYSTEMD):
            unavailable("systemd is not installed")
        self._installed = installed

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private", "--net", "--uts", "--ipc"),
                *("--pid", "--cgroup", "--fork", "--kill-child"),
                *("sh", "-euc", _BOOT, "boot", self._installed, *UNITS),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._pid = 0
        try:
            self._pid = wait_for("systemd", self._process_one)
            wait_for("boot", lambda: self.run("systemctl", "is-system-running") == "running\n")
            self.sink = in_network(self._pid, lambda: Sink(b"sink.test"))
            self.sink.__enter__()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.sink.__exit__()
        self._end()

    def _process_one(self) -> int:
        """Its id here, once it is systemd."""
        assert self._process.poll() is None, "the machine did not come up"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        for child in children.split():
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return int(child)
        return 0

    def _end(self) -> None:
        """With process 1 all others go."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def start(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of root's there."""
        return subprocess.run(
            [
                *(
                    "nsenter",
                    f"--target={self._pid}",
                    "--mount",
                    "--pid",
                    "--net",
                    "--uts",
                    "--ipc",
                ),
                *("--cgroup", "--root", "--wd", "env", "-i", f"PATH={PATH}", *command),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *command: str) -> str:
        """What it writes, to either place."""
        done = self.start(*command)
        return done.stdout + done.stderr

    def write(self, name: str, text: str) -> None:
        path = Path(f"/proc/{self._pid}/root", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def unit(self, *properties: str, user: str = "") -> list[str]:
        """The beginning of a command that runs as a service with these properties, and is waited for."""
        options = [
            f"--property={one}" for one in (*properties, *([f"User={user}"] if user else []))
        ]
        return ["systemd-run", "--quiet", "--wait", "--pipe", *options]
