"""The submission socket itself: passed by systemd or made here, and the loop that takes connections from it.

One that is made here replaces a socket that nobody listens on any more, and no other; it is gone when the service ends.
One that was passed stays, and keeps the connections that come between two services.

Never reads from a connection (``spool.service``).  Source: sd_listen_fds(3).
"""

import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable

from minisend.errors import SpoolError

# sd_listen_fds(3): the first descriptor that is passed.
_FIRST_PASSED = 3
# Connections that wait to be taken.  Few: who floods us with them can only put so many in front of somebody else, who then
# waits in connect(2) beside the flooder, and not behind all of its connections.
_BACKLOG = 32
# Between two times of ``tick``.
TICK = 15.0


class Listener:
    """A listening socket.

    ``passed``  by systemd: it outlives us
    ``inode``   of one that was made here
    """

    def __init__(
        self, listening: socket.socket, path: str, *, passed: bool, inode: int = 0
    ) -> None:
        listening.setblocking(False)
        self._socket = listening
        self._path = path
        self._inode = inode
        self._woken, self._waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.passed = passed

    def wake(self) -> None:
        """End the wait of ``loop``, or its next one; safe in a signal handler."""
        try:
            os.write(self._waking, b"\0")
        except OSError:
            pass

    def close(self, take: Callable[[socket.socket], None]) -> None:
        """Take no more; one that was made here has no name any more, and who had connected by then goes to ``take``."""
        if not self.passed:
            try:
                # Two that were started at one moment: the name is that of the later one.
                if os.lstat(self._path).st_ino == self._inode:
                    os.unlink(self._path)
                while connection := self._accept():
                    take(connection)
            except OSError:
                pass  # its directory may be one that we may not write to any more
        self._socket.close()

    def leave(self) -> None:
        """Close it in this process: another one that has it, by fork(2), takes the connections."""
        self._socket.close()
        os.close(self._woken)
        os.close(self._waking)

    def loop(
        self,
        take: Callable[[socket.socket], None],
        busy: Callable[[], bool],
        *,
        stopping: Callable[[], bool],
        tick: Callable[[], None] = lambda: None,
        exit_idle: float | None = None,
    ) -> None:
        """Give each connection to ``take``, until ``stopping``, or nothing was ``busy`` for ``exit_idle`` seconds.

        ``tick``  is called each ``TICK`` seconds, and at the end
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        idle_since = next_tick = time.monotonic()
        while not stopping():
            now = time.monotonic()
            if now >= next_tick:
                tick()
                next_tick = time.monotonic() + TICK
            wait = next_tick - now
            left = wait + 1
            if exit_idle is not None:
                if busy():
                    idle_since = now
                left = idle_since + exit_idle - now
                wait = min(wait, left)
            if not poll.poll(max(0.0, wait) * 1000 + 1):
                # Only now: whoever came while something else took its time was not seen yet.
                if left <= 0:
                    break
                continue
            try:
                # No more at a time than can wait: who connects without end must not keep us from a tick, or from stopping.
                for _ in range(_BACKLOG):
                    if not (connection := self._accept()):
                        break
                    idle_since = time.monotonic()
                    take(connection)
            except OSError as exc:
                # No descriptors left: those that are open end some time.
                if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                select.poll().poll(100)
        tick()

    def _accept(self) -> socket.socket | None:
        try:
            return self._socket.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None


def passed() -> Listener | None:
    """What systemd has passed to this process, None when it has not.  Raises SpoolError for what is no such socket."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "")
    # Not for our children.
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if count != "1":
        raise SpoolError(f"LISTEN_FDS: expected one socket (got {count!r})")
    try:
        listening = socket.socket(fileno=_FIRST_PASSED)
    except OSError as exc:
        raise SpoolError(f"descriptor {_FIRST_PASSED}: {exc.strerror}") from exc
    if listening.family != socket.AF_UNIX or listening.type != socket.SOCK_STREAM:
        raise SpoolError(f"descriptor {_FIRST_PASSED}: not a stream socket of the unix kind")
    os.set_inheritable(_FIRST_PASSED, False)
    # systemd's own default is as many as the kernel allows.
    listening.listen(_BACKLOG)
    return Listener(listening, "", passed=True)


def make(path: str) -> Listener | None:
    """A socket that everybody may connect to at ``path``, its directory made too; None where somebody listens already.

    Raises SpoolError.
    """
    # The modes come from the umask, never from a chmod by name: we may be root, and the directory another account's,
    # which could put a link under that name.
    umask = os.umask(0o022)
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        if _is_served(path):
            return None
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Under another name first: at no moment is there one that is bound and does not listen.
            draft = f"{path}.{os.getpid()}"
            _remove_socket(draft)
            os.umask(0o111)  # anybody may send
            listening.bind(draft)
            listening.listen(_BACKLOG)
            inode = os.lstat(draft).st_ino
            os.rename(draft, path)
        except BaseException:
            listening.close()
            raise
    except OSError as exc:
        raise SpoolError(f"{path}: {exc.strerror or exc}") from exc
    finally:
        os.umask(umask)
    return Listener(listening, path, passed=False, inode=inode)


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        except ConnectionRefusedError:
            # So it says of any other file, too.
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise SpoolError(f"{path}: is no socket") from None
            return False
    return True


def _remove_socket(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
