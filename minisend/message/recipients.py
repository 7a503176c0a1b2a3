"""Whom a message names as its recipients, for ``sendmail -t``.

Every To, Cc and Bcc field counts; in a message that is resent only Resent-To, Resent-Cc and
Resent-Bcc do, as the others name those who have had it already (RFC 5322 section 3.6.6).

Never: the header is not changed, no address is qualified, expanded or dropped as a duplicate.
"""

from minisend.address import parse_list
from minisend.message.header import Field

_RECIPIENT_FIELDS = (b"to", b"cc", b"bcc")
_RESENT_FIELDS = (b"resent-to", b"resent-cc", b"resent-bcc")


def header_recipients(fields: list[Field]) -> list[bytes]:
    """The addresses (no brackets, bare names as they are) that the header names, in its order.

    Raises ``AddressError`` if one of them cannot be used.
    """
    resent = [field for field in fields if field.name.lower() in _RESENT_FIELDS]
    named = resent or [field for field in fields if field.name.lower() in _RECIPIENT_FIELDS]
    return [mailbox.address for field in named for mailbox in parse_list(field.value)]
