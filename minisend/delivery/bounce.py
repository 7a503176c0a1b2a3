"""Who is told what became of a message, and the report put into the queue before anything else happens to the message.

    event     told of                             when the sender is told          with NOTIFY (RFC 3461 section 4.1)
    failure   recipients that failed              once they have failed            absent, or with FAILURE
    delay     recipients that wait                once, ``warn_after`` has passed  absent, or with DELAY
    success   recipients delivered or relayed     once they are                    with SUCCESS

    reverse-path            a failure is told to                          any other event
    an address              that address                                  the same
    null                    ``admin``; with none, to nobody               nobody
    null, our own report    nobody: it went to ``admin`` itself           nobody
      to ``admin``

What can be told to nobody stays in queue/failed.  Recipients with NOTIFY=NEVER are told of to nobody, as was asked.

A report's queue id is made from the message's id, the event and the recipients; that it was queued is noted in the
message's file before the message is removed or attempted again.  So a crash at any point leads to the same report
again, which is then found in the queue, or is known to the run that has just sent it.  Limits: after a crash short of
the note, one that another run delivers and removes before the message is claimed again is sent twice.

The words of a report are ``message.dsn``'s; what has failed is ``delivery.policy``'s to say, when, ``delivery.retry``'s.
"""

from __future__ import annotations

from minisend.address import qualify, same
from minisend.config.sections import Config
from minisend.delivery import retry
from minisend.delivery.outgoing import Outgoing
from minisend.envelope import DELIVERED, FAILED, RELAYED, Envelope, Recipient
from minisend.message import dsn
from minisend.smtp.wire import crlf
from minisend.spool import disk
from minisend.spool.enqueue import enqueue, new_queue_id
from minisend.spool.entry import Entry
from minisend.spool.record import format_ranges, parse_ranges
from minisend.spool.store import Queue
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_WITHOUT_NOTIFY = (dsn.FAILURE, dsn.DELAY)


class Report(Value):
    """One report that is due.

    ``event``       of ``message.dsn``
    ``recipients``  indexes of those it tells of
    ``to``          bare or qualified, no brackets; None when there is nobody who could be told
    ``note``        what the message's file keeps of it: event and recipients
    ``queue_id``    of the report
    """

    __slots__ = ("event", "note", "queue_id", "recipients", "to")

    def __init__(
        self, event: str, recipients: tuple[int, ...], to: bytes | None, note: str, queue_id: str
    ) -> None:
        self.event = event
        self.recipients = recipients
        self.to = to
        self.note = note
        self.queue_id = queue_id


def reports(entry: Entry, config: Config, now: float, *, resumed: bool) -> list[Report]:
    """The reports that are due for a claimed message, as far as its file does not say that they were queued.

    ``resumed``  it was just claimed: what the last run did not come to.  There is no delay to tell of yet, as the
                 attempt may deliver it.  Otherwise: after the attempt was recorded, and, when its time was
                 over, ``policy.expired``.
    """
    due = []
    failed = _untold(entry, dsn.FAILURE, (FAILED,))
    if failed:
        due.append(_report(entry, dsn.FAILURE, failed, _reader_of_failure(entry.envelope, config)))
    sender = entry.envelope.sender
    if not sender:
        return due
    if not resumed and delay_due(entry, config, now):
        waiting = [
            index
            for index in entry.pending
            if index in entry.latest and _asked(entry.envelope.recipients[index], dsn.DELAY)
        ]
        if waiting:
            due.append(_report(entry, dsn.DELAY, waiting, sender))
    arrived = _untold(entry, dsn.SUCCESS, (DELIVERED, RELAYED))
    if arrived:
        due.append(_report(entry, dsn.SUCCESS, arrived, sender))
    return due


def delay_due(entry: Entry, config: Config, now: float) -> bool:
    """Whether it is time to tell the sender that the message is late."""
    return bool(entry.envelope.sender) and retry.warn_due(
        entry.since,
        now,
        warn_after=config.spool.warn_after,
        warned=any(_event(note) == dsn.DELAY for note in entry.reported),
    )


def queue_report(
    queue: Queue,
    entry: Entry,
    report: Report,
    config: Config,
    now: float,
    *,
    resumed: bool,
    seen: Collection[str] = (),
) -> bool:
    """Put the report into the queue, and note that in the message's file; both are durable after.

    ``resumed``  as for ``reports``: the report may be in the queue from before a crash, and is looked for
    ``seen``     ids of reports that this run has found in the queue, and may have delivered and removed since
    True: the reader has it, or will.  False: there is nobody to tell, the message belongs into queue/failed.
    Raises SpoolError or OSError (the disk: keep the message, try again) and BrokenRecord (the message's file).
    """
    if report.to is None:
        return False
    queued = resumed and (
        report.queue_id in seen
        or queue.find(report.queue_id, "new", "cur", "hold", "failed") is not None
    )
    if not queued:
        try:
            # Only who holds the claim of the message builds its reports: what lies there is a crash's.
            disk.unlink(report.queue_id, queue.directory("tmp"))
        except FileNotFoundError:
            pass
        zone = entry.envelope.zone
        envelope = Envelope(
            report.queue_id, b"", [Recipient(report.to)], arrived=now, zone=zone, uid=-1
        )
        octets = dsn.build(
            report.event,
            [entry.latest[index] for index in report.recipients],
            _original(entry, config),
            queue_id=report.queue_id,
            to=report.to,
            at=now,
            retry_until=entry.since + config.spool.lifetime,
        )
        enqueue(queue.fd, envelope, octets, 0)
    entry.note_reported(report.note)
    return True


def asks_for_success(envelope: Envelope) -> bool:
    """Whether a delivery must be recorded before the message is removed, since somebody wants a report of it."""
    for recipient in envelope.recipients:
        if recipient.notify and _asked(recipient, dsn.SUCCESS):
            return envelope.sender != b""
    return False


def leave_success_to_next_hop(entry: Entry, recipients: Iterable[int]) -> None:
    """These recipients were relayed to a server that offers DSN: it reports their success itself (RFC 3461 section 5.2.1).

    Noted in the message's file, and durable, if any of them asked for such a report.
    """
    asking = [i for i in recipients if _asked(entry.envelope.recipients[i], dsn.SUCCESS)]
    if entry.envelope.sender and asking:
        entry.note_reported(_note(dsn.SUCCESS, asking))


def _report(entry: Entry, event: str, recipients: list[int], to: bytes | None) -> Report:
    note = _note(event, recipients)
    seed = f"{entry.envelope.queue_id} {note}"
    if entry.since != entry.envelope.arrived:
        # Requeued: the same may happen, and is to be told, once more.
        seed += f" {entry.since:.3f}"
    return Report(event, tuple(recipients), to, note, new_queue_id(seed.encode("ascii")))


def _reader_of_failure(envelope: Envelope, config: Config) -> bytes | None:
    if envelope.sender:
        return envelope.sender
    admin = config.admin.encode()
    # A report of our own that did not reach the admin would not reach them inside another one.
    if not admin or (
        envelope.uid < 0 and all(_is_same(r.address, admin, config) for r in envelope.recipients)
    ):
        return None
    return admin


def _is_same(a: bytes, b: bytes, config: Config) -> bool:
    domain = config.mail_domain.encode()
    return same(qualify(a, domain), qualify(b, domain))


def _untold(entry: Entry, event: str, actions: tuple[str, ...]) -> list[int]:
    """Recipients whose last outcome is one of ``actions`` and of whom nothing was told that somebody asked for."""
    recipients = entry.envelope.recipients
    told = {
        index
        for note in entry.reported
        if _event(note) == event
        for index in parse_ranges(note.partition(" ")[2].encode("ascii"), len(recipients))
    }
    return [
        index
        for index, outcome in sorted(entry.latest.items())
        if outcome.action in actions and index not in told and _asked(recipients[index], event)
    ]


def _asked(recipient: Recipient, event: str) -> bool:
    """Whether NOTIFY, or its absence, asks for reports of this event.  NEVER names none."""
    if not recipient.notify:
        return event in _WITHOUT_NOTIFY
    return event in (word.strip() for word in recipient.notify.lower().split(","))


def _note(event: str, recipients: Iterable[int]) -> str:
    return f"{event} {format_ranges(recipients).decode('ascii')}"


def _event(note: str) -> str:
    return note.partition(" ")[0]


def _original(entry: Entry, config: Config) -> dsn.Original:
    outgoing = Outgoing(entry, config)

    def body() -> Iterator[bytes]:
        # In the form that servers were given: so no NUL, no lone CR.
        for piece in crlf(outgoing.body()):
            yield piece.replace(b"\r\n", b"\n")

    return dsn.Original(
        entry.envelope,
        outgoing.facts,
        outgoing.header,
        body,
        size=len(outgoing.header) + outgoing.body_size,
        eight_bit=outgoing.eight_bit,
        long_line=outgoing.long_line,
    )
