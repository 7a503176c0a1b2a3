"""The sendmail command: argv and stdin to a queue id.

``submit`` is what /usr/sbin/sendmail runs.  It loads little (a test pins the set of modules): the interpreter's start is
most of a submission's time.  When it returns 0, the message is on disk.
"""

import _signal  # type: ignore[import-not-found]  # what signal wraps in enums, which cost 3 ms
import posix
import sys
import time

from minisend.address import one_line, parse_recipients, parse_sender, quote_local, split
from minisend.config.submission import SubmissionFacts, submission_facts
from minisend.envelope import Envelope, Recipient
from minisend.errors import DataError, UsageError
from minisend.spool.account import Account
from minisend.spool.enqueue import ID_OCTETS, new_queue_id
from minisend.submit.handover import hand_over, start_flusher
from minisend.submit.identity import caller, zone
from minisend.submit.options import Options
from minisend.submit.stdin import pieces, size, until_dot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


_SIGNALS = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM)


def submit(options: Options, config_file: str | None) -> int:
    """Queue the message on standard input and start its delivery.  Returns the exit code.

    ``config_file``  of a leading -C, or None
    Raises MinisendError, or KeyboardInterrupt with the number of a signal that came before the message had been read:
    nothing was kept.
    """
    posix.umask(0o077)
    recipients = _recipients(options.words)
    if not recipients and not options.from_headers:
        raise UsageError(
            "no recipients: name them as arguments, or use -t to take them from the header"
        )
    sender = _sender(options.sender)
    facts = submission_facts(config_file, posix.environ, posix.getuid(), posix.geteuid())
    submission = posix.urandom(ID_OCTETS)
    envelope = new_envelope(options, caller(), submission, sender, recipients)
    envelope.from_headers = options.from_headers
    envelope.body = options.body
    envelope.ret = options.ret
    envelope.envid = options.envid
    signals = stop_on_signals()
    known = size()
    message = pieces()
    if not options.dot_is_data:
        message = until_dot(message)
    if options.from_headers:
        message = _take_header_recipients(envelope, message)
    for recipient in envelope.recipients:
        recipient.notify = options.notify
    own = hand_over(
        facts,
        submission,
        envelope,
        _then_ignoring(signals, message),
        known,
        later=options.delivery == "queue",
    )
    if own:
        start_delivery(options, facts, config_file, envelope.queue_id)
    return 0


def new_envelope(
    options: Options,
    identity: Account,
    submission: bytes,
    sender: bytes | None,
    recipients: list[Recipient],
) -> Envelope:
    """An envelope with the time of now and the queue id of this submission id; ``sender`` is None when the caller named none."""
    now = time.time()
    return Envelope(
        new_queue_id(submission),
        quote_local(identity.login) if sender is None else sender,
        recipients,
        arrived=now,
        zone=zone(now),
        uid=identity.uid,
        login=identity.login,
        full_name=_full_name(options, identity.full_name),
        sender_given=sender is not None,
    )


def start_delivery(
    options: Options, facts: SubmissionFacts, config_file: str | None, queue_id: str
) -> None:
    """What -od asks for, once the message is in the queue.  ``config_file`` is the value of a leading -C."""
    if options.delivery == "queue":
        return
    from minisend.spool.trigger import SUBMISSION, poke

    waits = options.delivery == "interactive"
    if waits or not poke(facts.spool_path, SUBMISSION):
        start_flusher(
            facts.file and config_file,
            ["--quiet", queue_id] if waits else ["--background"],
            wait=waits,
        )


def stop_on_signals() -> "list[int]":
    """From here on a signal raises KeyboardInterrupt with its number.  Returns those that the caller does not ignore."""
    caught = [number for number in _SIGNALS if _signal.getsignal(number) is not _signal.SIG_IGN]
    for number in caught:
        _signal.signal(number, _stop)
    return caught


def _then_ignoring(signals: "list[int]", message: "Iterator[bytes]") -> "Iterator[bytes]":
    """``message``; once it has been read the signals do nothing any more.

    It may be durable a moment later, and who sees us end by a signal would send it again.
    """
    yield from message
    for number in signals:
        _signal.signal(number, _do_nothing)


def _stop(number: int, frame: object) -> None:
    for each in _SIGNALS:
        _signal.signal(each, _do_nothing)  # a second one must not break off the cleaning up
    raise KeyboardInterrupt(number)


def _do_nothing(number: int, frame: object) -> None:
    """In place of SIG_IGN, with which the interpreter complains of a signal that was on its way already."""


def _recipients(words: list[str]) -> list[Recipient]:
    found: list[bytes] = []
    for word in words:
        found += parse_recipients(_octets(word))
    return each_once([Recipient(address) for address in found])


def each_once(recipients: list[Recipient]) -> list[Recipient]:
    """The first Recipient of each address; domains compare case-blind."""
    seen: dict[tuple[bytes, bytes], Recipient] = {}
    for recipient in recipients:
        local, domain = split(recipient.address)
        seen.setdefault((local, domain.lower()), recipient)
    return list(seen.values())


def _sender(value: str | None) -> bytes | None:
    return None if value is None else parse_sender(_octets(value))


def _full_name(options: Options, account: bytes) -> bytes:
    """From -F, the environment or the account, on one line: none of them may add a line to anything."""
    if options.full_name is not None:
        return one_line(_octets(options.full_name))
    return one_line(posix.environ.get(b"NAME", b"")) or one_line(account)


def _octets(text: str) -> bytes:
    """An argument as the caller gave it."""
    return text.encode(sys.getfilesystemencoding(), "surrogateescape")


def _take_header_recipients(envelope: Envelope, message: "Iterator[bytes]") -> "Iterator[bytes]":
    """Add the header's recipients to the envelope (-t) and give the whole message again.

    Raises DataError when the header does not end within HEADER_LIMIT, UsageError when there are no recipients.
    """
    from minisend.message.header import HEADER_LIMIT, HeaderEnd, split
    from minisend.message.recipients import header_recipients

    end = HeaderEnd()
    read = bytearray()
    complete = True
    for piece in message:
        read += piece
        if end.reached(read):
            complete = False
            break
    head = bytes(read)
    header = split(head, complete=complete)
    if header.too_long:
        raise DataError(
            f"no end of the header within {HEADER_LIMIT} octets: cannot take recipients from it (-t)"
        )
    found = header_recipients(header.fields)
    envelope.recipients = each_once(envelope.recipients + [Recipient(address) for address in found])
    if not envelope.recipients:
        raise UsageError("no recipients: none in To, Cc or Bcc, and none as arguments")

    def whole() -> "Iterator[bytes]":
        yield head
        yield from message

    return whole()
