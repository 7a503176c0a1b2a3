"""The file that keeps a smarthost's tokens, and the lock under which they are renewed.

    NAME.json       the tokens: JSON, mode 0600, of the user that delivers; replaced, never written in place
    NAME.json.new   being written; left behind by a crash it means nothing and is removed by the next
    NAME.json.lock  empty; locked by who renews, so that one of several does

A service may make a refresh token void as soon as it has given the next.  So the room for the file is taken before
anything is asked, and the new tokens are on the disk before they are used.

Source: RFC 6749 section 6, RFC 9700 section 4.14.2 (rotation of refresh tokens).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from minisend.delivery.oauth.failure import OAuthError

# Two tokens as long as an answer can be, and the rest.
_LIMIT = 256 * 1024
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, repr=False)
class Tokens:
    """What the service gave; times are seconds UTC.

    ``refresh_token``  "" when there is none
    ``renew_at``       from then on a new access token is asked for
    ``expires_at``     from then on this one is of no use
    ``failed_at``      when that was last in vain because the service was not there, 0 for never
    """

    access_token: str
    refresh_token: str
    renew_at: float
    expires_at: float
    failed_at: float = 0

    def __repr__(self) -> str:
        return f"Tokens(***, expires_at={self.expires_at!r})"


class Store:
    """The directory of a token file, open.  A context manager.

    ``path``    the token file
    ``euid``    whose the directory and the file must be
    ``create``  make the directory when it is missing; else a missing one has no tokens
    Everything raises ``OAuthError`` for what the file system refuses.
    """

    def __init__(self, path: str, euid: int, *, create: bool) -> None:
        self._path = path
        self._directory, _, self._name = path.rpartition("/")
        self._directory = self._directory or "/"
        self._euid = euid
        self._fd = -1
        try:
            if create:
                _make(self._directory)
            self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise self._refused(exc) from None
        try:
            self._check_directory()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, binding: Mapping[str, str]) -> Tokens | None:
        """The tokens; None when there are none for this ``binding`` (``Client.binding``)."""
        if self._fd < 0:
            return None
        try:
            # O_NONBLOCK: a FIFO in this place must not stop the delivery of everything.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(self._name, flags, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._refused(exc) from None
        try:
            self._check_file(os.fstat(fd))
            octets = os.read(fd, _LIMIT + 1)
        except OSError as exc:
            raise self._refused(exc) from None
        finally:
            os.close(fd)
        try:
            found = json.loads(octets.decode("ascii"))
            return _tokens(found) if found["for"] == binding else None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise OAuthError(
                f"{self._path}: not a file with tokens: remove it and log in again"
            ) from None

    @contextmanager
    def locked(self, patience: float, wait: Callable[[float], None]) -> Iterator[bool]:
        """Hold the lock; gives False when another process still had it after ``patience`` seconds.

        ``wait``  sleeps for so many seconds
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(f"{self._name}.lock", flags, 0o600, dir_fd=self._fd)
        except OSError as exc:
            raise self._refused(exc) from None
        try:
            yield self._lock(fd, patience, wait)
        finally:
            os.close(fd)

    def _lock(self, fd: int, patience: float, wait: Callable[[float], None]) -> bool:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if patience <= 0:
                    return False
            except OSError as exc:
                raise self._refused(exc) from None
            wait(_POLL_SECONDS)
            patience -= _POLL_SECONDS

    def replacement(self) -> Replacement:
        """Room for new tokens, to be taken under the lock before they are asked for.  A context manager."""
        try:
            return Replacement(self._fd, self._name)
        except OSError as exc:
            raise self._refused(exc) from None

    def write(self, replacement: Replacement, tokens: Tokens, binding: Mapping[str, str]) -> None:
        """Put the tokens in place of those that are there; when this returns they survive a power cut."""
        content = {
            "for": dict(binding),
            "access_token": tokens.access_token,
            "refresh_token": tokens.refresh_token,
            "renew_at": tokens.renew_at,
            "expires_at": tokens.expires_at,
            "failed_at": tokens.failed_at,
        }
        try:
            replacement.commit(json.dumps(content, indent=1).encode("ascii") + b"\n")
        except OSError as exc:
            raise self._refused(exc) from None

    def _check_directory(self) -> None:
        facts = os.fstat(self._fd)
        if facts.st_uid not in (0, self._euid) or facts.st_mode & 0o022:
            raise OAuthError(
                f"{self._directory}: owned by uid {facts.st_uid}, mode {facts.st_mode & 0o7777:04o}: "
                f"expected the directory of tokens to be of uid {self._euid}, and writable by nobody else"
            )

    def _check_file(self, facts: os.stat_result) -> None:
        if not stat.S_ISREG(facts.st_mode):
            raise OAuthError(f"{self._path}: not a regular file: remove it and log in again")
        if facts.st_uid != self._euid:
            raise OAuthError(
                f"{self._path}: owned by uid {facts.st_uid}: expected uid {self._euid}, which delivers: "
                "log in as that user"
            )
        if facts.st_mode & 0o077:
            raise OAuthError(
                f"{self._path}: mode {facts.st_mode & 0o777:04o} lets others in: "
                "chmod go= it, and log in again if somebody may have read it"
            )

    def _refused(self, exc: OSError) -> OAuthError:
        return OAuthError(f"{self._path}: cannot keep tokens there: {exc.strerror}")


class Replacement:
    """The next token file, with room on the disk.  Gone at the end unless ``commit`` was reached."""

    def __init__(self, directory: int, name: str) -> None:
        self._directory = directory
        self._name = name
        self._new = f"{name}.new"
        try:
            os.unlink(self._new, dir_fd=directory)
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._new, flags, 0o600, dir_fd=directory)
        try:
            os.fchmod(self._fd, 0o600)
            _reserve(self._fd)
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> Replacement:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            self._discard()

    def commit(self, octets: bytes) -> None:
        """Raises OSError; then the file that was there is still there, or the new one is."""
        rest = memoryview(octets)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        os.ftruncate(self._fd, len(octets))
        os.fsync(self._fd)
        os.rename(self._new, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        os.close(self._fd)
        self._fd = -1
        os.fsync(self._directory)

    def _discard(self) -> None:
        os.close(self._fd)
        self._fd = -1
        os.unlink(self._new, dir_fd=self._directory)


def _reserve(fd: int) -> None:
    try:
        os.posix_fallocate(fd, 0, _LIMIT)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
            raise


def _make(directory: str) -> None:
    """mkdir with what is missing above it, each on the disk before the next."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        parent = directory.rpartition("/")[0]
        if not parent:
            raise
        _make(parent)
        os.mkdir(directory, 0o700)
    fd = os.open(f"{directory}/..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _tokens(found: Any) -> Tokens:
    """From JSON.  Raises ValueError, KeyError, TypeError for anything else than ``write`` writes."""
    tokens = [found["access_token"], found["refresh_token"]]
    times = [found["renew_at"], found["expires_at"], found["failed_at"]]
    if not all(isinstance(t, str) and all("!" <= char <= "~" for char in t) for t in tokens):
        raise ValueError
    if not all(isinstance(at, int | float) for at in times):
        raise ValueError
    return Tokens(*tokens, *times)
