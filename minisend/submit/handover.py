"""Where a submission goes, and the start of its delivery.

Three ways in are meant, tried in this order: the caller's own queue, the socket of a running service, the drop
directory.  Each takes the same envelope and the same pieces of octets and answers with a queue id; today the first is
the only one, so a queue that belongs to another account is a SpoolError.
"""

import posix
import sys

from minisend.config import SubmissionFacts
from minisend.envelope import Envelope
from minisend.spool import disk
from minisend.spool.enqueue import Floor, enqueue
from minisend.spool.place import open_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def hand_over(
    facts: SubmissionFacts, envelope: Envelope, message: "Iterable[bytes]", size: int
) -> None:
    """Make the message durable.  Raises SpoolError, MessageTooBig, ReadError; then nothing was kept.

    ``size``  of the message, in octets, as far as it is known beforehand; else 0
    """
    floor = Floor(f"{facts.spool_path}/queue", facts.min_free, facts.min_free_inodes)
    queue = open_queue(facts.spool_path, create=True)
    try:
        enqueue(queue, envelope, message, facts.max_message_size, floor, size)
    finally:
        disk.close(queue)


# What a flusher may know of the caller's environment: where the configuration, the spool and systemd's credentials are.
_KEPT = (
    b"HOME",
    b"XDG_CONFIG_HOME",
    b"XDG_STATE_HOME",
    b"MINISEND_CONFIG",
    b"CREDENTIALS_DIRECTORY",
)


def start_flusher(config_file: str | None, arguments: list[str], *, wait: bool) -> None:
    """Run ``minisend flush`` as a process of its own session that holds nothing of the caller's.

    ``wait``  until it ends (-odi)
    A flusher that cannot be started changes nothing: the message is on disk and the next flush delivers it.
    """
    launcher = _launcher()
    if not sys.executable or not launcher:
        return
    environment = {b"PATH": b"/usr/sbin:/usr/bin:/sbin:/bin"}
    environment.update({k: v for k, v in posix.environ.items() if k in _KEPT})
    try:
        command = [sys.executable, "-I", launcher, "minisend"]
        if config_file is not None:
            command += ["-C", absolute(config_file)]
        command += ["flush", *arguments]
        posix.chdir("/")
        # Locks and pipes that the caller leaked to us would otherwise stay open for as long as the delivery takes.
        # Nothing of this process is needed beyond the three standard descriptors.
        _close_from(3)
        null = posix.open("/dev/null", posix.O_RDWR)
        pid = posix.posix_spawn(
            sys.executable,
            command,
            environment,
            file_actions=[(posix.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)],
            setsid=True,
            setsigmask=[],
            setsigdef=range(1, 32),
        )
        if wait:
            posix.waitpid(pid, 0)
    except OSError:
        return


def _launcher() -> str:
    """Absolute path of minisend/__main__.py, "" when it is not a file of its own."""
    package = sys.modules["minisend"].__file__ or ""
    return package.rpartition("/")[0] + "/__main__.py" if package[:1] == "/" else ""


def absolute(path: str) -> str:
    """``path`` as it is still true after a change of the working directory.  Raises OSError when that is gone."""
    return path if path[:1] == "/" else posix.getcwd() + "/" + path


def _close_from(first: int) -> None:
    posix.closerange(first, 1 << 20)
