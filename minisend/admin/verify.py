"""``sendmail -bv``: where each address would go, without sending anything and without asking anybody.

A route may depend on who sends: that is the argument of -f or -r, else the caller's account.  One line an address, in
sendmail's form:

    ADDRESS... deliverable: mailer KIND, host NEXT-HOP, user ADDRESS
    ADDRESS... undeliverable: REASON
"""

import posix

from minisend.address import AddressError, parse_recipients, parse_sender, qualify, quote_local
from minisend.admin.terminal import printable, write
from minisend.config.load import load
from minisend.config.sections import Config
from minisend.delivery.mx import Unroutable, literal_address
from minisend.delivery.route import ERROR, MX, NextHop, route
from minisend.errors import DataError, UsageError

# sysexits(3) EX_NOUSER; whatever else is wrong with an address is EX_DATAERR.
_NO_USER = 67


def verify(words: list[str], config_file: str | None, sender: str | None = None) -> int:
    """Print the fate of each address in ``words``; the exit code is that of the first bad one, or 0.

    ``sender``  the reverse-path as -f has it, None when the caller named none
    Raises AddressError for the sender, UsageError without words, ConfigError, SystemFault.
    """
    if not words:
        raise UsageError("no addresses to verify")
    config = load(config_file, posix.environ, posix.getuid(), posix.geteuid())
    try:
        return _verify(words, config, qualify(_reverse_path(sender), config.mail_domain.encode()))
    except BrokenPipeError:
        return 0  # the reader has all it wants


def _reverse_path(given: str | None) -> bytes:
    if given is not None:
        return parse_sender(given.encode("utf-8", "surrogateescape"))
    import pwd

    uid = posix.getuid()
    try:
        return quote_local(pwd.getpwuid(uid).pw_name.encode("utf-8", "surrogateescape"))
    except KeyError:
        return b"uid%d" % uid


def _verify(words: list[str], config: Config, sender: bytes) -> int:
    code = 0
    for word in words:
        try:
            addresses = parse_recipients(word.encode("utf-8", "surrogateescape"))
        except AddressError as exc:
            write(1, f"{exc}\n")
            code = code or exc.exit_code
            continue
        for address in addresses:
            qualified = qualify(address, config.mail_domain.encode())
            hop = _hop(qualified, config, sender)
            if hop.kind == ERROR:
                fate = f"undeliverable: {printable(hop.name)}"
                code = code or (_NO_USER if hop.status == "5.1.1" else DataError.exit_code)
            else:
                fate = (
                    f"deliverable: mailer {hop.kind}, host {hop.name}, user {printable(qualified)}"
                )
            write(1, f"{printable(address)}... {fate}\n")
    return code


def _hop(address: bytes, config: Config, sender: bytes) -> NextHop:
    """As ``route``; an address literal that is none, which a look-up would find out, is an error here already."""
    hop = route(address, config, sender)
    if hop.kind == MX and hop.domain.startswith("["):
        try:
            literal_address(hop.domain)
        except Unroutable as exc:
            return NextHop(ERROR, str(exc), status=exc.status)
    return hop
