"""``sendmail -bv``: where each address would go, without sending anything and without asking anybody.

One line an address, in sendmail's form: ``ADDRESS... deliverable: mailer KIND, host NEXT-HOP, user ADDRESS``.
"""

import posix

from minisend.address import AddressError, parse_recipients, qualify
from minisend.admin.terminal import printable, write
from minisend.config import load
from minisend.delivery.route import route
from minisend.errors import UsageError


def verify(words: list[str], config_file: str | None) -> int:
    """Print the fate of each address in ``words``; the exit code is that of the first bad one, or 0."""
    if not words:
        raise UsageError("no addresses to verify")
    config = load(config_file, posix.environ, posix.getuid(), posix.geteuid())
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
            hop = route(qualified, config)
            where = f"mailer {hop.kind}, host {hop.name}, user {printable(qualified)}"
            write(1, f"{printable(address)}... deliverable: {where}\n")
    return code
