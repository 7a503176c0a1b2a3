"""Which files are read, and whose they must be; where the queue is when none of them says it.

Which file (DESIGN: the first that exists is the only one, with ``conf.d/*.toml`` beside it):

    source                                   used when                       else
    -C FILE                                  given                           missing: error
    $MINISEND_CONFIG                         euid or root owns it            error (root: only if
                                                                             root owns it, else the next)
    $XDG_CONFIG_HOME/minisend/config.toml    the same, and we are not root   the next
    /etc/minisend/config.toml                it exists                       the defaults

A file of the second or third kind that others than its owner can write is an error, and so is one
that is no regular file.  "Root" is a real *or* effective uid of 0: a set-uid program runs with its
caller's environment.  A link that this environment names is not followed for root, nor is anything
of /proc read: through /proc/self/fd/0 the message itself would be the configuration.

-C names its file, not the directory around it, which may be open to all (/tmp): conf.d and what is
in it must belong to root, to us or to the owner of the file named, and nobody else may write it.

XDG Base Directory Specification 0.8.  Never writes, and makes nothing of what is in the files.
"""

import posix
import sys

from minisend.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_FILE = "/etc/minisend/config.toml"
SYSTEM_SPOOL = "/var/spool/minisend"

# inode(7): what stat.S_ISREG tests, without the module.
_TYPE, _REGULAR = 0o170000, 0o100000
# No file by hand comes near it; it bounds what -C /dev/zero can do.
_MAX_FILE = 1 << 20


class _Unfit(ConfigError):
    """It is no regular file."""


class _Foreign(_Unfit):
    """The file belongs to somebody else."""


def in_force(
    explicit: "str | None", environ: "Mapping[bytes, bytes]", uid: int, euid: int
) -> "list[tuple[str, str]]":
    """Name and text of the main file, then of conf.d/*.toml beside it in name order."""
    main = _main_file(explicit, environ, uid, euid)
    if main is None:
        return []
    path, octets, owners = main
    files = [(path, _decoded(path, octets))]
    head, slash, _ = path.rpartition("/")
    directory = f"{head}{slash}conf.d"
    try:
        fd = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return files
    except OSError as exc:
        raise _unreadable(directory, exc) from exc
    try:
        _check_owner(directory, fd, owners)
        for name in sorted(posix.listdir(fd)):
            if name.endswith(".toml") and name[0] != ".":
                path = f"{directory}/{name}"
                try:
                    octets, _ = read(name, owners, path, fd)
                except OSError as exc:
                    raise _unreadable(path, exc) from exc
                files.append((path, _decoded(path, octets)))
    finally:
        posix.close(fd)
    return files


def _main_file(
    explicit: "str | None", environ: "Mapping[bytes, bytes]", uid: int, euid: int
) -> "tuple[str, bytes, tuple[int, ...]] | None":
    """Name and octets of the file in force, and who may own what is beside it (() = anybody); None when there is none."""
    if explicit is not None:
        try:
            octets, owner = read(explicit, ())
            return explicit, octets, (0, euid, owner)
        except OSError as exc:
            raise _unreadable(explicit, exc) from exc
    root = 0 in (uid, euid)
    named = _environ(environ, b"MINISEND_CONFIG")
    if named:
        owners = (0,) if root else (0, euid)
        try:
            if named[0] == "/":
                return named, read(named, owners, follow=not root)[0], owners
            if not root:
                raise ConfigError(f"$MINISEND_CONFIG: expected an absolute path (got {named!r})")
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (_Unfit, OSError) as exc:
            # Root under sudo or su with another's environment must run nothing of theirs.
            if isinstance(exc, OSError) and not root:
                raise _unreadable(named, exc) from exc
            if not root:
                raise
    if not root:
        base = _absolute(environ, b"XDG_CONFIG_HOME")
        if not base:
            home = _home(environ, uid, euid)
            base = "" if home is None else f"{home}/.config"
        path = f"{base}/minisend/config.toml"
        try:
            if base:
                return path, read(path, (0, euid))[0], (0, euid)
        except (FileNotFoundError, NotADirectoryError, _Foreign):
            # Foreign: su without "-" keeps the variable of the user before.
            pass
        except OSError as exc:
            # A home that this process may not enter (systemd's ProtectHome=) holds nothing for it.
            if not isinstance(exc, PermissionError) or _visible(path):
                raise _unreadable(path, exc) from exc
    try:
        return SYSTEM_FILE, read(SYSTEM_FILE, ())[0], ()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise _unreadable(SYSTEM_FILE, exc) from exc


def read(
    name: str,
    owners: "tuple[int, ...]",
    path: str = "",
    dir_fd: "int | None" = None,
    *,
    follow: bool = True,
) -> "tuple[bytes, int]":
    """The octets of a file and its owner.  Raises OSError, and ConfigError when ``owners`` forbid its use.

    ``follow``  false: the name itself must be a file's, and not one of /proc
    A path from the environment may name a FIFO or a leased file of somebody else's: it is opened
    without waiting, and the check is made on what was opened.
    """
    path = path or name
    flags = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOCTTY
    if owners:
        flags |= posix.O_NONBLOCK
    if not follow:
        flags |= posix.O_NOFOLLOW
    fd = posix.open(name, flags, dir_fd=dir_fd)
    try:
        _check_owner(path, fd, owners)
        status = posix.fstat(fd)
        if owners and (
            status.st_mode & _TYPE != _REGULAR or not (follow or _on_disk(status.st_dev))
        ):
            raise _Unfit(f"{path}: not used: expected a regular file")
        octets = b""
        while len(octets) <= _MAX_FILE:
            chunk = posix.read(fd, 65536)
            if not chunk:
                return octets, status.st_uid
            octets += chunk
        raise ConfigError(f"{path}: larger than {_MAX_FILE} octets")
    finally:
        posix.close(fd)


def _on_disk(device: int) -> bool:
    """False for /proc, whose files are regular and root's, with the caller's own words in some of them."""
    try:
        return device != posix.stat("/proc").st_dev
    except OSError:
        return True  # not mounted


def _check_owner(path: str, fd: int, owners: "tuple[int, ...]") -> None:
    if not owners:
        return
    status = posix.fstat(fd)
    if status.st_uid not in owners:
        wanted = " or ".join(str(owner) for owner in sorted(set(owners)))
        raise _Foreign(
            f"{path}: not used: expected owner uid {wanted} (got {status.st_uid}): "
            f"chown it, or name another file"
        )
    if status.st_mode & 0o022:
        mode = status.st_mode & 0o7777
        raise ConfigError(f"{path}: not used: others can write it (mode {mode:04o}): chmod go-w it")


def _decoded(path: str, octets: bytes) -> str:
    try:
        return octets.decode()
    except UnicodeDecodeError as exc:
        line = octets.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{path}:{line}: not TOML: not UTF-8") from exc


def _unreadable(path: str, exc: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot read it: {exc.strerror}")


def _visible(path: str) -> bool:
    """False when a directory on the way may not be searched."""
    try:
        posix.stat(path)
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def _environ(environ: "Mapping[bytes, bytes]", name: bytes) -> str:
    return environ.get(name, b"").decode(sys.getfilesystemencoding(), "surrogateescape")


def _absolute(environ: "Mapping[bytes, bytes]", name: bytes) -> str:
    """A directory from the environment, "" unless absolute (XDG: "relative ... should be ignored")."""
    path = _environ(environ, name)
    return path if path[:1] == "/" else ""


def _home(environ: "Mapping[bytes, bytes]", uid: int, euid: int) -> "str | None":
    """The home of the real uid, without a slash at its end; None when it has none.

    $HOME counts only for a uid without an account (a container with an arbitrary one): sudo and
    cron jobs carry the HOME of somebody else.
    """
    import pwd

    try:
        home = pwd.getpwuid(uid).pw_dir
    except KeyError:
        home = _absolute(environ, b"HOME")
        try:
            if posix.stat(home).st_uid != euid:
                return None
        except OSError:
            return None
    return home.rstrip("/") if home[:1] == "/" else None


def default_spool(environ: "Mapping[bytes, bytes]", uid: int, euid: int) -> str:
    try:
        posix.stat(SYSTEM_SPOOL)
        return SYSTEM_SPOOL
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        # It may well be there: an error must not send mail into another spool.
        return SYSTEM_SPOOL
    state = state_directory(environ, uid, euid)
    if state is None:
        raise ConfigError(
            f"[spool] path: {SYSTEM_SPOOL} does not exist and uid {uid} has no home directory: "
            "create it, or set path in a configuration file"
        )
    return state


def state_directory(environ: "Mapping[bytes, bytes]", uid: int, euid: int) -> "str | None":
    """The user's own directory for what minisend keeps (XDG); None without a home.  It need not exist."""
    state = "" if 0 in (uid, euid) else _absolute(environ, b"XDG_STATE_HOME")
    if not state:
        home = _home(environ, uid, euid)
        if home is None:
            return None
        state = f"{home}/.local/state"
    return f"{state}/minisend"
