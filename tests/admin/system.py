"""A machine with minisend installed under /usr/local, for the commands that look after all of it.

Each command runs in a mount namespace of its own, in which /etc, /run, /usr/local, /var/lib and /var/spool are directories
of the test's; so what one command changes the next one finds, and this machine has none of it.
"""

import os
import shutil
import stat
import subprocess
from pathlib import Path

from peers.unpacked import unavailable

ROOT = Path(__file__).resolve().parents[2]
ALICE = 54321
HOSTNAME = "host.example.org"

# Besides: what a system whose sendmail is minisend has under these names, where this machine has anything there.
_ENTER = """
for place in etc usr/local var/lib var/spool; do
    mount --bind "$0/$place" "/$place"
done
for path in /usr/sbin/sendmail /usr/lib/sendmail; do
    if [ -e $path ]; then mount --bind /usr/local/bin/sendmail $path; fi
done
hostname "$1"
eval "$2"
# The last one: mount(8) keeps notes there.
mount --bind "$0/run" /run
shift 2
exec "$@"
"""


class System:
    """``root`` is where its files are on this machine; ``hostname``, ``mounts`` (a shell command) and ``sysctls`` may be changed.

    ``sysctls``  the value of each file of /proc/sys/fs that is not this machine's
    """

    def __init__(self, root: Path, installed: Path) -> None:
        if os.geteuid() != 0:
            unavailable("mounts of its own need root")
        self.root = root
        self.hostname = HOSTNAME
        self.mounts = ":"
        self.sysctls = {"protected_hardlinks": 1, "protected_symlinks": 1}
        for place in ("etc", "run", "var/lib", "var/spool"):
            (root / place).mkdir(parents=True)
        shutil.copytree(installed / "usr/local", root / "usr/local", symlinks=True)
        self.write(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\n"
            f"alice:x:{ALICE}:{ALICE}:Alice:/home/alice:/bin/sh\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        )
        self.write("etc/group", f"root:x:0:\nalice:x:{ALICE}:\nnogroup:x:65534:\n")
        self.write("etc/nsswitch.conf", "passwd: files\ngroup: files\n")
        for name in ("ld.so.cache", "login.defs"):
            if Path("/etc", name).exists():
                shutil.copy(f"/etc/{name}", root / "etc")

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """A file of root's."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def run(self, *command: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
        mounts = self.mounts
        for name, value in self.sysctls.items():
            # Beside the machine's files: it is no change of theirs.
            path = self.root.with_name(f"{name}.{value}")
            path.write_text(f"{value}\n")
            mounts += f"; mount --bind {path} /proc/sys/fs/{name}"
        become = []
        if uid:
            become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private", "--uts"),
                *("sh", "-euc", _ENTER, str(self.root), self.hostname, mounts),
                *become,
                *command,
            ],
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    def minisend(self, *arguments: str, uid: int = 0) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        done = self.run("minisend", *arguments, uid=uid)
        return done.returncode, done.stdout, done.stderr

    def number(self, name: str, file: str = "passwd") -> int:
        """The uid of an account, or with "group" the gid of a group."""
        for line in (self.root / "etc" / file).read_text().splitlines():
            fields = line.split(":")
            if fields[0] == name:
                return int(fields[2])
        raise LookupError(name)

    def state(self) -> dict[str, tuple[int, ...]]:
        """Everything that stat(2) tells of everything that is there, but when it was read."""
        found = {}
        for directory, names, files in os.walk(self.root):
            for name in (".", *names, *files):
                path = os.path.join(directory, name)
                s = os.lstat(path)
                found[os.path.normpath(path)] = (
                    *(s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size),
                    *(s.st_mtime_ns, s.st_ctime_ns),
                )
        return found

    def modes(self) -> dict[str, tuple[int, int, int]]:
        """Owner, group and mode of each directory of the spool and the like, by its path there."""
        found = {}
        for place in ("etc/minisend", "run/minisend", "var/lib/minisend", "var/spool/minisend"):
            for directory, _, _ in os.walk(self.root / place):
                there = os.lstat(directory)
                name = "/" + os.path.relpath(directory, self.root)
                found[name] = (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode))
        return found
