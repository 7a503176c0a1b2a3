"""Where a submission goes, and the start of its delivery.

    in this order        when                                              the message is durable by
    the caller's queue   the spool in force is the caller's own, or there  fsync of file and directory
                         is none and the caller can make it
    the socket           a service listens, and greets                     the same, by the service
    the drop             nobody does, or its answer was lost               rename and fsync of the file

Each takes the same record.  A submission has one id, on whichever way: what arrives by two of them enters the queue once.
The first octets are kept, so that a small message can still go to the drop when a service is lost in the middle; a large
one is then refused with "try again".

Source: DESIGN section 3.
"""

import errno
import posix
import sys

from minisend.config.submission import SubmissionFacts
from minisend.envelope import Envelope
from minisend.errors import SpoolError
from minisend.spool import disk
from minisend.spool.enqueue import Floor, enqueue
from minisend.spool.place import is_absent, is_own, open_queue, queue_owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from minisend.errors import MinisendError

# Octets of a message that are read before a service is spoken to, and kept until it has answered: a connection is not
# held open for a caller that is slow to write, and a small message can go another way.
_KEPT_OCTETS = 1024 * 1024

# What stops a way, and what would let a confined service go it; the paths are put in.
_SOCKET_REMEDIES = {
    errno.ENOENT: "no service is installed: start minisend-submit.socket",
    errno.ECONNREFUSED: "nobody listens: start minisend-submit.socket",
    errno.EACCES: "InaccessiblePaths= or a security module hides it",
    errno.EPERM: "a security module forbids it",
    errno.EAFNOSUPPORT: "RestrictAddressFamilies= needs AF_UNIX",
    errno.ETIMEDOUT: "look at minisend-accept.service",
}
_DROP_REMEDIES = {
    errno.ENOENT: "run minisend setup --system",
    errno.EROFS: "ProtectSystem= or a read-only mount: add ReadWritePaths={0}, or start minisend-submit.socket",
    errno.EACCES: "InaccessiblePaths=, a security module, or wrong modes: see minisend doctor",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
}


def hand_over(
    facts: SubmissionFacts,
    submission: bytes,
    envelope: Envelope,
    message: "Iterable[bytes]",
    size: int,
    *,
    later: bool,
) -> bool:
    """Make the message durable; True when it is in the caller's own queue, and so is its delivery.

    ``submission``  the id that the queue id of ``envelope`` is made from
    ``size``   of the message, in octets, as far as it is known beforehand; else 0
    ``later``  the delivery is not to be begun at once
    Raises SpoolError, MessageTooBig, ReadError, or the refusal of the service; then nothing was kept.
    """
    stopped: list[str] = []
    queue = _own_queue(facts, stopped)
    if queue >= 0:
        floor = Floor(f"{facts.spool_path}/queue", facts.min_free, facts.min_free_inodes)
        try:
            enqueue(queue, envelope, message, facts.max_message_size, floor, size)
        finally:
            disk.close(queue)
        return True
    pieces = iter(message)
    first, whole = _first_octets(pieces)
    if facts.socket:
        from minisend.spool import client

        try:
            client.submit(
                facts.socket, submission, envelope, _all(first, pieces), size=size, later=later
            )
            return False
        except client.NotServed as exc:
            stopped.append(_said(facts.socket, str(exc), exc.number, _SOCKET_REMEDIES))
        except client.Lost as exc:
            stopped.append(_said(facts.socket, str(exc), 0, {}))
            if exc.kept:
                stopped[-1] += ": it may have been queued"
            if not whole:
                raise SpoolError(stopped[-1]) from exc
    if facts.drop:
        from minisend.spool.drop import put

        try:
            put(
                facts.drop,
                submission,
                envelope,
                _all(first, pieces),
                facts.max_message_size,
                Floor(facts.drop, facts.min_free, facts.min_free_inodes),
                size,
                owner=queue_owner(facts.spool_path),
            )
            return False
        except SpoolError as exc:
            stopped.append(_drop_stopped(facts.drop, exc))
    raise SpoolError("; ".join(stopped))


def _own_queue(facts: SubmissionFacts, stopped: "list[str]") -> int:
    """A descriptor of the caller's own queue; -1 where it has none, with the reason if it could not be made."""
    others = facts.socket or facts.drop
    if others and not is_own(facts.spool_path):
        return -1
    try:
        return open_queue(facts.spool_path, create=True)
    except SpoolError as exc:
        # Where the system's spool is hidden, its socket may have been let through.
        if not (others and is_absent(facts.spool_path)):
            raise
        stopped.append(str(exc))
    return -1


def _first_octets(pieces: "Iterator[bytes]") -> "tuple[list[bytes], bool]":
    """As much as is kept, and whether that is the whole message."""
    first = []
    length = 0
    for piece in pieces:
        if piece:
            first.append(piece)
        length += len(piece)
        if length >= _KEPT_OCTETS:
            return first, False
    return first, True


def _all(first: "list[bytes]", pieces: "Iterator[bytes]") -> "Iterator[bytes]":
    yield from first
    yield from pieces


def _drop_stopped(drop: str, exc: "MinisendError") -> str:
    cause = exc.__cause__
    number = cause.errno or 0 if isinstance(cause, OSError) else 0
    if number in _DROP_REMEDIES:
        return f"{exc} ({_DROP_REMEDIES[number].format(drop)})"
    return str(exc)


def _said(path: str, text: str, number: int, remedies: "dict[int, str]") -> str:
    remedy = remedies.get(number)
    return f"{path}: {text} ({remedy})" if remedy else f"{path}: {text}"


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
