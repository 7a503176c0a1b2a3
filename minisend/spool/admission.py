"""What a submitter may say of a message, made into an envelope of ours: the border between accounts.

Whatever comes from another account - through the socket, out of the drop directory - passes here before it is queued.
Nothing of what it says is kept unchecked, and what only the system knows is not taken from it.

    taken, if it holds                          not taken from the submitter
    sender, recipients with NOTIFY and ORCPT    queue id: made from the submission id
    full name, zone, -t, BODY, RET, ENVID       uid and login: the kernel's, by ``channel`` verified or claimed
                                                time of arrival: the clock's
                                                outcomes, facts, reports: there are none

Pure: no file, no clock, no account database.  Source: DESIGN section 3; RFC 3461 section 4 (the DSN parameters).
"""

from minisend.address import ADDRESS_LIMIT, check, one_line, quote_local
from minisend.envelope import Envelope, Recipient
from minisend.errors import DataError, UsageError
from minisend.spool.enqueue import new_queue_id

# Of a display name: no account file and no -F has more.
_LONGEST_NAME = 1000
_DAY = 24 * 60
# RFC 3461 section 4.4.
_LONGEST_ENVID = 100
_NOTIFY = frozenset(("SUCCESS", "FAILURE", "DELAY"))


def admit(
    said: Envelope, submission: bytes, *, uid: int, login: bytes, channel: str, now: float
) -> Envelope:
    """The envelope under which a message is queued.

    ``said``        what its submitter says; queue id, uid, login and time of arrival in it count for nothing
    ``submission``  its id, ``enqueue.ID_OCTETS`` that the submitter made once
    ``uid``, ``login``, ``channel``  as in ``Envelope``; ``login`` is "uid<number>" for a uid without an account
    Raises DataError for an address or a value that cannot be used, UsageError when there are no recipients.
    """
    if not said.recipients:
        raise UsageError("no recipients")
    if said.sender_given:
        sender = said.sender
        if sender:
            check(sender)
    else:
        sender = quote_local(login)
    return Envelope(
        new_queue_id(submission),
        sender,
        [_recipient(recipient) for recipient in said.recipients],
        arrived=now,
        zone=said.zone if -_DAY < said.zone < _DAY else 0,
        uid=uid,
        login=login,
        full_name=one_line(said.full_name)[:_LONGEST_NAME],
        sender_given=said.sender_given,
        from_headers=said.from_headers,
        body=_one_of("BODY", said.body, "", "7BIT", "8BITMIME"),
        ret=_one_of("RET", said.ret, "", "FULL", "HDRS"),
        envid=_envid(said.envid),
        channel=channel,
    )


def _recipient(said: Recipient) -> Recipient:
    check(said.address)
    # Any text may be an ORCPT: it goes out encoded, and only what would not stay on one line is refused.
    if len(said.original) > ADDRESS_LIMIT or one_line(said.original) != said.original.strip(b" "):
        raise DataError(f"ORCPT: not one line of at most {ADDRESS_LIMIT} octets")
    words = said.notify.split(",")
    if said.notify and words != ["NEVER"] and not _NOTIFY.issuperset(words):
        raise DataError(f"NOTIFY: not NEVER, nor of SUCCESS, FAILURE, DELAY: {said.notify!r}")
    return Recipient(said.address, said.original, said.notify)


def _one_of(name: str, value: str, *allowed: str) -> str:
    if value not in allowed:
        raise DataError(f"{name}: not a value it has: {value!r}")
    return value


def _envid(value: str) -> str:
    if len(value) > _LONGEST_ENVID or not (value.isascii() and value.isprintable()):
        raise DataError("ENVID: expected at most 100 printable ASCII characters")
    return value
