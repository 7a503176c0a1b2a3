"""Stands in for ``posix`` in ``minisend.spool.disk``: notes each system call and can interfere with one of them."""

import os
import posix
import threading
import traceback
from collections.abc import Callable

_CALLS = frozenset(
    (
        *("open", "write", "pwrite", "posix_fallocate", "ftruncate", "fsync", "rename", "unlink"),
        *("close", "mkdir", "rmdir", "stat", "fstat", "chmod", "fchmod", "posix_fadvise"),
    )
)

# The exit code of a process that ``stop_after`` has ended.
STOPPED = 99


class Seam:
    """``calls``  the name of each call made, in order
    ``paths``  beside it, the path that it was about

    ``before(number, name)`` and ``after(number, name, done)`` are called around each; numbers begin with 1; ``done`` is
    False when the call raised OSError.
    """

    def __init__(
        self,
        before: Callable[[int, str], None] | None = None,
        after: Callable[[int, str, bool], None] | None = None,
    ) -> None:
        self.calls: list[str] = []
        self.paths: list[str] = []
        self._lock = threading.Lock()
        self._before = before
        self._after = after

    def __getattr__(self, name: str) -> object:
        real = getattr(posix, name)
        if name not in _CALLS:
            return real

        def call(*arguments: object, **keywords: object) -> object:
            number = self.note(name, _path(arguments[0], keywords))
            if self._before is not None:
                self._before(number, name)
            done = False
            try:
                result = real(*arguments, **keywords)
                done = True
            finally:
                if self._after is not None:
                    self._after(number, name, done)
            return result

        return call

    def note(self, name: str, path: str) -> int:
        """One more of them, or of what happened between two; its number.  Any thread may call it."""
        with self._lock:
            self.calls.append(name)
            self.paths.append(path)
            return len(self.calls)

    def about(self, *names: str) -> list[tuple[str, str]]:
        """Name and path of the calls with these names."""
        return [
            (name, path) for name, path in zip(self.calls, self.paths, strict=True) if name in names
        ]


def _path(what: object, keywords: dict[str, object]) -> str:
    if isinstance(what, int):
        return os.readlink(f"/proc/self/fd/{what}")
    at = keywords.get("dir_fd", keywords.get("src_dir_fd"))
    return f"{os.readlink(f'/proc/self/fd/{at}')}/{what}" if at is not None else str(what)


def fail_at(number: int, error: int) -> Seam:
    """A seam whose call of this number raises OSError; a ``close`` that fails has closed all the same."""

    def before(this: int, name: str) -> None:
        if this == number and name != "close":
            raise OSError(error, os.strerror(error))

    def after(this: int, name: str, done: bool) -> None:
        if this == number:
            raise OSError(error, os.strerror(error))

    return Seam(before, after)


def stop_after(number: int) -> Seam:
    """A seam that ends the process after the call of this number, as kill -9 would."""

    def after(this: int, name: str, done: bool) -> None:
        if this == number:
            os._exit(STOPPED)

    return Seam(after=after)


def in_child(action: Callable[[], object]) -> int:
    """Exit code of a forked process that does this: 0 when it comes to the end, 1 on an exception."""
    child = os.fork()
    if not child:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
