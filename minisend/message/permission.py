"""Under which addresses an account may send: [submission] senders, applied to the reverse-path and to From.

    the account is in senders, by name or by uid    its patterns count
    it is not, and "*" is                           those of "*"
    neither                                         it may send nothing
    it cannot be told who it is (the drop)          those of "*" in which no {user} stands

Root, and who owns the queue, may send under any.  A message without From gets one from its reverse-path.

Pure.  Source: RFC 5322 section 3.6.2; Postfix's local_login_sender_maps, for the reverse-path.
"""

from minisend.address import AddressError, comparable, is_one_of, parse_list, qualify
from minisend.envelope import SOCKET, Envelope
from minisend.message.header import find, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_ANYBODY = "*"
_USER = "{user}"


def refusal(
    envelope: Envelope,
    first: bytes,
    *,
    complete: bool,
    senders: "Mapping[str, tuple[str, ...]]",
    mail_domain: bytes,
) -> str:
    """Why this account may not send this message, "" when it may.

    ``first``     octets of the message, as ``message.header.split`` wants them; ``complete`` as there
    ``senders``   account name, uid or "*" → patterns; empty: everybody may send under any address
    """
    if not senders:
        return ""
    login = envelope.login.decode("utf-8", "surrogateescape")
    patterns = _patterns(envelope, login, senders)
    who = login if envelope.channel == SOCKET else "a sender that cannot be verified"
    if not patterns:
        return f"{who} may not send mail here ([submission] senders)"
    if not _may(patterns, qualify(envelope.sender, mail_domain)):
        return f"{who} may not send as {_shown(envelope.sender)} ([submission] senders)"
    header = split(first, complete=complete)
    if header.too_long:
        return f"{who} may not send a header that is too long to be read ([submission] senders)"
    for field in find(header.fields, b"from"):
        try:
            authors = [mailbox.address for mailbox in parse_list(field.value)]
        except AddressError:
            return f"{who} may not send a From that cannot be read ([submission] senders)"
        for author in authors:
            if not _may(patterns, qualify(author, mail_domain)):
                return f"{who} may not write as {_shown(author)} ([submission] senders)"
    return ""


def _patterns(
    envelope: Envelope, login: str, senders: "Mapping[str, tuple[str, ...]]"
) -> tuple[str, ...]:
    if envelope.channel != SOCKET:
        return tuple(each for each in senders.get(_ANYBODY, ()) if _USER not in each)
    for account in (login, str(envelope.uid), _ANYBODY):
        if account in senders:
            # A name with a "*" in it would be a pattern itself.
            user = login if "*" not in login else ""
            return tuple(
                each.replace(_USER, user) for each in senders[account] if user or _USER not in each
            )
    return ()


def _may(patterns: tuple[str, ...], address: bytes) -> bool:
    return is_one_of(patterns, comparable(address))


def _shown(address: bytes) -> str:
    return f"<{address.decode('utf-8', 'backslashreplace')}>"
