"""A machine for the programs that call sendmail: this one, with those programs and minisend laid over it.

Namespaces of its own for mounts, processes, host name and network; its root is an overlay whose upper layer is memory,
so that nothing of what happens there reaches this machine, and all of it ends with the test.  Its network is loopback
alone, and the smarthost of its minisend is a sink of the test's.

``.ci/run`` unpacks the programs into a tree in the cache of ``peers.unpacked``.
"""

import os
import quopri
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from peers.namespace import in_network
from peers.process import wait_for
from peers.unpacked import unavailable, unpacked

from minisend.admin.sink import Received, Sink

ROOT = Path(__file__).resolve().parents[2]

# A uid that this machine will not have given to anybody.
_UIDS = {"root": 0, "alice": 54321, "logcheck": 54322}
_HOMES = {"root": "/", "alice": "/home/alice", "logcheck": "/var/lib/logcheck"}
_NAMES = {"alice": "Alice Example,,,", "logcheck": "logcheck system account,,,"}
# What PAM does is no matter here, and a container may not set the login uid that cron asks it for.
_PERMIT = "".join(f"{kind} required pam_permit.so\n" for kind in ("auth", "account", "session"))

ENVIRONMENT = {
    "HOME": "/home/alice",
    "LC_ALL": "C.UTF-8",
    "LOGNAME": "alice",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "USER": "alice",
}
# With this in its environment a sendmail finds no spool: exit 75.
NO_SPOOL = {"MINISEND_CONFIG": "/etc/minisend/no-spool.toml"}

# $1: the tree.  Run by root in the new namespaces; afterwards process 1, for as long as its standard input is open.
_SETUP = """
mount -t tmpfs -o mode=755 machine /mnt
mkdir /mnt/upper /mnt/work /mnt/root
# Not a layer of its own: one that lies below another is refused, and layers upon layers are where / is one already.
cp -a "$1/." /mnt/upper
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work machine /mnt/root
cd /mnt/root
mount -t proc proc proc
# Not this machine's: its /dev/log and what stands in its /tmp and /run are none of ours.
for directory in dev run tmp; do
    mount -t tmpfs -o mode=755 machine $directory
done
chmod 1777 tmp
mkdir -m 1777 run/lock dev/shm
for device in full null random urandom zero; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
ln -s /proc/self/fd dev/fd
ip link set lo up
hostname here.test
echo made
exec chroot . cat
"""


class Machine:
    """A context manager.

    ``tree``   of ``.ci/run``: "callers" or "cronie"
    ``root``   its / as a path of this machine
    ``alice``  is the account there that has mail to send
    """

    def __init__(self, tree: str) -> None:
        if os.geteuid() != 0:
            unavailable("namespaces with mounts of their own need root")
        self._tree = unpacked(tree) / "files"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private", "--net", "--uts", "--ipc"),
                *("--pid", "--fork", "--kill-child", "sh", "-euc", _SETUP, "machine", self._tree),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == b"made\n"
            self._made()
        except BaseException:
            self._end()
            raise
        return self

    def _made(self) -> None:
        [self._pid] = _children(self._process.pid)
        # Process 1 is still the shell's, with the root of this machine, until it has become cat.
        wait_for("process 1", lambda: Path(f"/proc/{self._pid}/comm").read_text() == "cat\n")
        self.root = Path(f"/proc/{self._pid}/root")
        self._log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._log.bind(str(self.root / "dev/log"))
        (self.root / "dev/log").chmod(0o666)
        self._logged: list[str] = []
        # Always read: who writes to a full socket waits.
        self._reader = threading.Thread(target=self._read_log, name="log", daemon=True)
        self._reader.start()
        self.sink = in_network(self._pid, lambda: Sink(b"sink.test"))
        self.sink.__enter__()
        self._make_accounts()
        self._settle()
        self._install()

    def __exit__(self, *_: object) -> None:
        self.sink.__exit__()
        self._end()
        self._log.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._log.close()

    def _end(self) -> None:
        """Process 1 ends with its input, and all others with it."""
        try:
            self._process.communicate(timeout=30)
        finally:
            self._process.kill()
            self._process.wait()

    def _make_accounts(self) -> None:
        for user, name in _NAMES.items():
            uid, home = _UIDS[user], _HOMES[user]
            self._append("etc/passwd", f"{user}:x:{uid}:{uid}:{name}:{home}:/bin/sh\n")
            self._append("etc/shadow", f"{user}:*:19000::::::\n")
            self._append("etc/group", f"{user}:x:{uid}:\n")
            directory = self.root / home[1:]
            directory.mkdir(parents=True, exist_ok=True)
            os.chown(directory, uid, uid)

    def _settle(self) -> None:
        """What the maintainer scripts of the programs would have done, as far as these tests need it."""
        self.write("etc/hosts", "127.0.0.1 localhost here.test\n")
        for service in ("atd", "cron", "crond", "cronie"):
            self.write(f"etc/pam.d/{service}", _PERMIT)
        if (self.root / "usr/sbin/atd").exists():
            # The program belongs to the account daemon, and so must this.
            daemon = (self.root / "usr/bin/at").stat()
            self.write("var/spool/cron/atjobs/.SEQ", "0\n", 0o600)
            os.chown(self.root / "var/spool/cron/atjobs/.SEQ", daemon.st_uid, daemon.st_gid)
        for php in (self.root / "usr/bin").glob("php[0-9].[0-9]"):
            (self.root / "usr/bin/php").unlink(missing_ok=True)
            (self.root / "usr/bin/php").symlink_to(php.name)

    def _install(self) -> None:
        """As a package has it: byte-compiled, in a directory of its own, with the launcher at both paths."""
        library = self.root / "usr/lib/minisend"
        shutil.copytree(
            ROOT / "minisend", library / "minisend", ignore=shutil.ignore_patterns("__pycache__")
        )
        launcher = (ROOT / "packaging/launcher.in").read_text()
        for name in ("usr/sbin/sendmail", "usr/lib/sendmail", "usr/bin/mailq"):
            (self.root / name).unlink(missing_ok=True)
        self.write("usr/sbin/sendmail", launcher.replace("@LIBDIR@", "/usr/lib/minisend"), 0o755)
        (self.root / "usr/lib/sendmail").symlink_to("../sbin/sendmail")
        (self.root / "usr/bin/mailq").symlink_to("../sbin/sendmail")
        compiled = self.run(
            "/usr/bin/python3", "-m", "compileall", "-q", "/usr/lib/minisend", user="root"
        )
        assert compiled.returncode == 0, compiled.stdout
        self.write(
            "etc/minisend/config.toml",
            'hostname = "here.test"\nmail_domain = "here.test"\n'
            f'[smarthost]\nhost = "127.0.0.1"\nport = {self.sink.port}\ntls = "none"\n',
        )
        self.write("etc/minisend/no-spool.toml", '[spool]\npath = "/etc/nowhere"\n')

    def write(self, path: str, text: str, mode: int = 0o644, *, user: str = "root") -> None:
        """A file there."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        # From here an absolute link there leads to a file of this machine.
        file.unlink(missing_ok=True)
        file.write_text(text)
        file.chmod(mode)
        os.chown(file, _UIDS[user], _UIDS[user])

    def _append(self, path: str, text: str) -> None:
        with (self.root / path).open("a") as file:
            file.write(text)

    def command(self, *arguments: str, user: str = "alice") -> list[str]:
        """What runs ``arguments`` there, as ``user``, in its home."""
        return [
            *("nsenter", f"--target={self._pid}", "--mount", "--net", "--uts", "--ipc", "--pid"),
            *(f"--root={self.root}", f"--wd={self.root}{_HOMES[user]}"),
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--", *arguments),
        ]

    def run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        user: str = "alice",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program there to its end; its outputs are one, and ``environment`` is added to the usual."""
        return subprocess.run(
            self.command(*arguments, user=user),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, **(environment or {})},
            timeout=60,
            check=False,
        )

    @contextmanager
    def daemon(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Run a program there as root that stays in the foreground, and end it."""
        process = subprocess.Popen(
            self.command(*arguments, user="root"),
            stdin=subprocess.DEVNULL,
            env={"PATH": ENVIRONMENT["PATH"], "HOME": "/root", **(environment or {})},
        )
        try:
            yield
        finally:
            # nsenter stays as the parent of what it runs, and ends with that.
            for child in _children(process.pid):
                os.kill(child, signal.SIGTERM)
            process.wait(30)

    def _read_log(self) -> None:
        while message := self._log.recv(65536):
            self._logged.append(message.decode(errors="replace"))

    def log(self) -> str:
        """What was sent to syslog there so far, a line each."""
        return "\n".join(self._logged)

    def mail_for(self, recipient: str) -> Received:
        """The message that reaches the smarthost for ``recipient``; waits for it."""
        wanted = recipient.encode()

        def find() -> list[Received]:
            return [mail for mail in self.sink.received if wanted in mail.recipients]

        [mail] = wait_for(f"mail for {recipient}", find)
        return mail


def _children(parent: int) -> list[int]:
    """The child processes of one that has a single thread."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def body(mail: Received) -> bytes:
    """Its body with LF line ends, and quoted-printable undone."""
    octets = mail.octets.partition(b"\r\n\r\n")[2]
    if values(mail, "Content-Transfer-Encoding") == ["quoted-printable"]:
        octets = quopri.decodestring(octets)
    return octets.replace(b"\r\n", b"\n")


def values(mail: Received, name: str) -> list[str]:
    """The values of its header fields of that name, unfolded."""
    header = mail.octets.partition(b"\r\n\r\n")[0].decode("utf-8", "replace")
    lines = header.replace("\r\n ", " ").replace("\r\n\t", " ").split("\r\n")
    fields = [line.partition(":") for line in lines]
    return [value.strip() for field, _, value in fields if field.lower() == name.lower()]
