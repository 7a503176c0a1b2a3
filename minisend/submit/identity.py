"""Who is submitting: facts that only the caller's process knows, taken from the kernel and the account database.

Never from LOGNAME or USER: cron runs jobs of one account with the environment of another.
"""

import posix
import pwd
import sys
import time

from minisend.address import AddressError, check, quote_local

_MOST_MINUTES = 24 * 60 - 1


class Identity:
    """Of one caller.

    ``uid``        real
    ``login``      octets that ``quote_local`` makes an address of: "uid<number>" for a uid without an account, and for
                   one whose name no address can have
    ``full_name``  octets or b""
    """

    __slots__ = ("full_name", "login", "uid")

    def __init__(self, uid: int, login: bytes, full_name: bytes) -> None:
        self.uid = uid
        self.login = login
        self.full_name = full_name


def caller() -> Identity:
    """The account of the real uid."""
    uid = posix.getuid()
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return Identity(uid, b"uid%d" % uid, b"")
    encoding = sys.getfilesystemencoding()
    login = account.pw_name.encode(encoding, "surrogateescape")
    gecos = account.pw_gecos.encode(encoding, "surrogateescape")
    name = gecos_name(gecos, login)
    try:
        check(quote_local(login))
    except AddressError:
        login = b"uid%d" % uid
    return Identity(uid, login, name)


def gecos_name(gecos: bytes, login: bytes) -> bytes:
    """The full name in a GECOS field: up to the first comma, ``&`` for the capitalised account name."""
    name = gecos.partition(b",")[0]
    if b"&" in name:
        name = name.replace(b"&", login[:1].upper() + login[1:])
    return name.strip()


def zone(now: float) -> int:
    """Minutes east of UTC in the caller's time zone at ``now``, less than a day either way whatever TZ says (RFC 5322 3.3)."""
    minutes = int(time.localtime(now).tm_gmtoff) // 60
    return max(-_MOST_MINUTES, min(minutes, _MOST_MINUTES))
