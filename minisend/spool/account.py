"""What the account database says of a uid.

Never the environment: cron runs jobs of one account with the LOGNAME of another.
"""

import pwd
import sys

from minisend.address import AddressError, check, quote_local


class Account:
    """Of one uid.

    ``login``      octets that ``quote_local`` makes an address of: "uid<number>" for a uid without an account, and for
                   one whose name no address can have
    ``full_name``  octets or b""
    """

    __slots__ = ("full_name", "login", "uid")

    def __init__(self, uid: int, login: bytes, full_name: bytes) -> None:
        self.uid = uid
        self.login = login
        self.full_name = full_name


def account(uid: int) -> Account:
    """The account of ``uid``."""
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return Account(uid, b"uid%d" % uid, b"")
    encoding = sys.getfilesystemencoding()
    login = found.pw_name.encode(encoding, "surrogateescape")
    gecos = found.pw_gecos.encode(encoding, "surrogateescape")
    name = gecos_name(gecos, login)
    try:
        check(quote_local(login))
    except AddressError:
        login = b"uid%d" % uid
    return Account(uid, login, name)


def gecos_name(gecos: bytes, login: bytes) -> bytes:
    """The full name in a GECOS field: up to the first comma, ``&`` for the capitalised account name."""
    name = gecos.partition(b",")[0]
    if b"&" in name:
        name = name.replace(b"&", login[:1].upper() + login[1:])
    return name.strip()
