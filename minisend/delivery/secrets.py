"""The smarthost's password or token: from a file, a systemd credential, a command or OAuth2, at the moment it is needed.

It never keeps a secret, and no error, ``repr`` or traceback of it contains one.

    source             read from                      must be
    password_file      the file                       regular, mode & 007 == 0, owned by root or the euid
    credential         $CREDENTIALS_DIRECTORY/NAME    regular: systemd set its mode
    password_command   first line of its output       exit status 0 within DEADLINE seconds
    oauth2_...         minisend.delivery.oauth        an access token, see there

Files under ``$CREDENTIALS_DIRECTORY`` or /run/secrets (containers mount those 0444) need only be
regular, and so does every file with ``secret_mode_check = false``.  With ``auth`` "xoauth2" or "oauthbearer" what a source
holds is an access token.  That exactly one source stands beside ``username`` is checked by ``minisend.config``.

Source: systemd.exec(5) "Credentials".
"""

from __future__ import annotations

import os
import select
import stat
import time

from minisend.config.keys import smarthost_table
from minisend.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

    from minisend.config.sections import Smarthost
    from minisend.smtp.auth import Credentials

DEADLINE = 30.0
# An OAuth token has some kilobytes; more than this is the wrong file.
_LIMIT = 64 * 1024
_SECRETS_DIRECTORY = "/run/secrets"


def credentials(
    smarthost: Smarthost,
    environ: Mapping[bytes, bytes],
    euid: int,
    *,
    name: str = "",
    rejected: bytes = b"",
) -> Credentials | None:
    """Username and what proves it for the smarthost; None when it is to be used without.

    ``environ``   of the process, octets: ``posix.environ``, ``os.environb``
    ``name``      of a [smarthosts.NAME] table, "" for [smarthost]
    ``rejected``  with OAuth2: the access token that the server has just refused, so that another one is had
    Raises ``ConfigError`` with key, file or command, what is wrong and the remedy.
    """
    username = smarthost.username.encode()
    if smarthost.auth == "none" or not (username or smarthost.auth == "external"):
        return None
    from minisend.smtp.auth import Credentials

    if smarthost.auth == "external":
        # The client certificate of the connection is the proof.
        return Credentials(username)
    if smarthost.uses_oauth2:
        # HTTPS and JSON: paid for by those who use it.
        from minisend.delivery.oauth.access import access_token

        token = access_token(smarthost, environ, euid, name=name, rejected=rejected)
        return Credentials(username, token=token)
    table = smarthost_table(name)
    if smarthost.password_file:
        what = f"{table} password_file: {smarthost.password_file}"
        octets = read_secret(what, smarthost.password_file, smarthost, environ, euid)
    elif smarthost.credential:
        credential = smarthost.credential
        what = f"{table} credential: {credential}"
        if "/" in credential or credential in (".", ".."):
            raise ConfigError(f"{what}: expected the name of a credential, not a path")
        directory = os.fsdecode(environ.get(b"CREDENTIALS_DIRECTORY", b""))
        if not directory:
            raise ConfigError(
                f"{what}: $CREDENTIALS_DIRECTORY is not set: "
                f"the service needs LoadCredential={credential}:/path/to/secret"
            )
        octets = _read(what, os.path.join(directory, credential), None)
    else:
        # Arguments may be secrets themselves: only the program is named.
        what = f"{table} password_command: {smarthost.password_command[0]}"
        octets = _output(what, smarthost.password_command).partition(b"\n")[0] + b"\n"
    secret = one_line(what, octets)
    if smarthost.auth in ("xoauth2", "oauthbearer"):
        if not all(0x21 <= octet <= 0x7E for octet in secret):
            raise ConfigError(
                f"{what}: holds a space or what is not ASCII: expected an access token alone"
            )
        return Credentials(username, token=secret)
    return Credentials(username, secret)


def read_secret(
    what: str, path: str, smarthost: Smarthost, environ: Mapping[bytes, bytes], euid: int
) -> bytes:
    """The content of a file that a key of the smarthost names, at most ``_LIMIT`` + 1 octets.

    ``what``  begins the error: the key and the file
    Raises ``ConfigError`` when others can read it, unless it is exempt or ``secret_mode_check`` is off.
    """
    directory = os.fsdecode(environ.get(b"CREDENTIALS_DIRECTORY", b""))
    check = smarthost.secret_mode_check and not _is_exempt(path, directory)
    return _read(what, path, euid if check else None)


def _is_exempt(path: str, directory: str) -> bool:
    # Resolved, so that neither ".." nor a link out of the directory takes the exemption along.
    real = os.path.realpath(path)
    return any(
        real.startswith(os.path.realpath(trusted) + "/")
        for trusted in (directory, _SECRETS_DIRECTORY)
        if trusted
    )


def _read(what: str, path: str, euid: int | None) -> bytes:
    """The content of a regular file; with ``euid`` its owner and mode must keep others out."""
    try:
        # O_NONBLOCK: a FIFO in this place must not stop the delivery of everything.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as exc:
        raise ConfigError(
            f"{what}: cannot be opened: {exc.strerror}: the user that runs the deliveries must be able to read it"
        ) from None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"{what}: not a regular file: put the password into one")
        if euid is not None:
            if facts.st_mode & 0o007:
                raise ConfigError(
                    f"{what}: mode {facts.st_mode & 0o777:04o} lets every user in: "
                    "chmod o= it, or set secret_mode_check = false"
                )
            if facts.st_uid not in (0, euid):
                raise ConfigError(
                    f"{what}: owned by uid {facts.st_uid}: expected root or uid {euid}: "
                    "chown it, or set secret_mode_check = false"
                )
        return os.read(fd, _LIMIT + 1)
    except OSError as exc:
        raise ConfigError(f"{what}: cannot be read: {exc.strerror}") from None
    finally:
        os.close(fd)


def _output(what: str, command: tuple[str, ...]) -> bytes:
    """What the command prints, at most ``_LIMIT`` + 1 octets; its stderr goes where ours goes.

    A session of its own: no terminal to ask for a passphrase on, and one signal ends its children too.
    """
    # 12 ms, paid for by those who use it.
    import signal
    import subprocess

    try:
        process = subprocess.Popen(  # noqa: S603 - the administrator's own command, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"{what}: cannot be run: {getattr(exc, 'strerror', None) or exc}"
        ) from None
    with process:
        deadline = time.monotonic() + DEADLINE
        try:
            octets = _until_end(process, deadline)
            if len(octets) > _LIMIT:
                raise ConfigError(
                    f"{what}: prints more than {_LIMIT} octets: expected the password alone"
                )
            status = process.wait(max(deadline - time.monotonic(), 0.0))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise ConfigError(
                f"{what}: did not end within {DEADLINE:g} s: it must print the password without asking"
            ) from None
        finally:
            # Until it is waited for, the id cannot belong to anybody else.
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if status:
        ended = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        raise ConfigError(f"{what}: {ended}: run it by hand to see why")
    return octets


def _until_end(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Read to the end of file, or past ``_LIMIT``; raises ``TimeoutError``."""
    assert process.stdout is not None  # noqa: S101 - it was opened with PIPE
    fd = process.stdout.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    octets = b""
    while len(octets) <= _LIMIT:
        if not poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            raise TimeoutError
        chunk = os.read(fd, _LIMIT)
        if not chunk:
            break
        octets += chunk
    return octets


def one_line(what: str, octets: bytes) -> bytes:
    """What ``read_secret`` gave, without its one line end; CRLF comes from files that were edited elsewhere.

    Raises ``ConfigError`` when it is empty, or more than one line.
    """
    octets = octets.removesuffix(b"\n").removesuffix(b"\r")
    if not octets:
        raise ConfigError(f"{what}: empty: expected the password")
    if len(octets) > _LIMIT:
        raise ConfigError(f"{what}: longer than {_LIMIT} octets: expected the password alone")
    if b"\n" in octets or b"\0" in octets:
        raise ConfigError(f"{what}: holds a NUL or more than one line: expected the password alone")
    return octets
