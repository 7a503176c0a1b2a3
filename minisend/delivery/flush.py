"""The flush: claim what is due, complete it, route it, attempt it, record what came of it, act on that.

Knows no protocol (``delivery.remote``) and no rule about failures (``delivery.policy``) or times (``delivery.retry``).
For each message, in this order: claim; reserve room for the outcomes; attempt; record; then remove, defer or set aside.

The one window in which a message can go out twice: the server has taken it (``end of data`` was answered, or sent and
not answered) and this process or the machine stops before the record.  A single transaction that makes all recipients
final has the unlink as its record.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from minisend.address import qualify, split
from minisend.config import Config
from minisend.delivery import policy, retry, slots
from minisend.delivery.remote import Content, Remote
from minisend.delivery.route import NextHop, route
from minisend.envelope import FAILED, Outcome
from minisend.errors import SpoolError
from minisend.log import Log, line
from minisend.message.complete import complete, facts_for
from minisend.message.header import HEADER_LIMIT
from minisend.message.header import split as split_header
from minisend.spool.record import EIGHT_BIT, BrokenRecord
from minisend.spool.store import Entry, NoRoom, Place, Queue


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages: what is due, or ``everything``, or ``ids``; of those only with a recipient in ``domain``."""

    everything: bool = False
    ids: tuple[str, ...] = ()
    domain: bytes = b""


@dataclass(slots=True)
class Summary:
    """What a flush came to, in messages.

    ``skipped``  claimed by another process or gone meanwhile
    ``broken``   set aside or left alone because the file could not be read as a message
    """

    tried: int = 0
    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    skipped: int = 0
    broken: int = 0

    @property
    def exit_code(self) -> int:
        """75 when something tried stays, else 69 when something failed for good, else 0."""
        if self.deferred:
            return 75
        return 69 if self.failed or self.broken else 0


def flush(
    config: Config,
    selection: Selection,
    *,
    log: Log,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Attempt the selected messages once.

    ``progress``  called with (messages done, messages selected)
    Raises SpoolError when the queue cannot be read at all.
    """
    summary = Summary()

    def report(queue_id: str, text: str) -> None:
        summary.broken += 1
        log.error(line(queue_id, event="broken", reason=text))

    if not os.path.lexists(f"{config.spool.path}/queue"):
        return summary
    with (
        Queue(config.spool.path, strict_sync=config.spool.sync == "each", report=report) as queue,
        Remote(config) as remote,
    ):
        queue.sweep(time.time())
        places = _select(queue, config, selection)
        for done, place in enumerate(places):
            if progress is not None:
                progress(done, len(places))
            broken = summary.broken
            entry = queue.claim(place)
            if entry is None:
                summary.skipped += summary.broken == broken
                continue
            with entry:
                _deliver(config, queue, entry, remote, selection, summary, log)
        if progress is not None:
            progress(len(places), len(places))
    return summary


def background_flush(config: Config, log: Log) -> int:
    """What a submission starts: deliver what is due, in one of the slots, and look again before ending."""
    seen: set[str] = set()
    while True:
        slot = slots.take(config.spool.path)
        if slot is None:
            return 0
        try:
            with Queue(config.spool.path) as queue:
                seen |= {place.queue_id for place in queue.places("new")}
            flush(config, Selection(), log=log)
        finally:
            os.close(slot)
        # A message that came while the slots were taken found no flusher of its own to serve it.
        with Queue(config.spool.path) as queue:
            if all(place.queue_id in seen for place in queue.places("new")):
                return 0


def _select(queue: Queue, config: Config, selection: Selection) -> list[Place]:
    if selection.ids:
        found = []
        for queue_id in selection.ids:
            place = queue.find(queue_id, "new", "cur")
            if place is None:
                raise SpoolError(f"{queue_id}: not in the queue")
            found.append(place)
        return found
    if selection.everything or selection.domain:
        return sorted(queue.places("new", "cur"), key=lambda place: (place.due, place.queue_id))
    return queue.due(time.time(), config.spool.retry_max)


def _deliver(
    config: Config,
    queue: Queue,
    entry: Entry,
    remote: Remote,
    selection: Selection,
    summary: Summary,
    log: Log,
) -> None:
    if selection.domain and not _goes_to(entry, config, selection.domain):
        return
    summary.tried += 1
    queue_id = entry.envelope.queue_id
    try:
        entry.reserve(len(entry.envelope.recipients))
        if _attempt(config, entry, remote, log):
            summary.delivered += 1
        elif entry.pending and _wait(config, entry):
            summary.deferred += 1
        else:
            # Kept until somebody can be told of it: nothing is dropped.
            entry.move_to("failed")
            summary.failed += 1
    except NoRoom as exc:
        summary.deferred += 1
        log.error(
            line(queue_id, event="postponed", status="4.3.1", reason=f"no room for outcomes: {exc}")
        )
    except BrokenRecord as exc:
        queue.set_aside(entry, str(exc))
    except _NotRecorded as exc:
        summary.deferred += 1
        log.error(line(queue_id, event="held", status="4.3.0", reason=str(exc)))
    except OSError as exc:
        # Before the attempt, or after its record: the message is as safe as it was.
        summary.deferred += 1
        log.error(
            line(queue_id, event="postponed", status="4.3.0", reason=f"queue: {exc.strerror}")
        )


class _NotRecorded(Exception):
    """The disk did not take what an attempt came to: the message must not be attempted again unasked."""


def _attempt(config: Config, entry: Entry, remote: Remote, log: Log) -> bool:
    """One attempt for every pending recipient, recorded.  True when the message is delivered, and removed."""
    content = _content(entry, config)
    sender = entry.envelope.sender
    if sender:
        sender = qualify(sender, config.mail_domain.encode())
    groups = _groups(entry, config)
    attempt = entry.attempts + 1
    counts = False
    for number, (hop, recipients) in enumerate(groups.items(), 1):
        verdicts = remote.attempt(hop, sender, recipients, content)
        # A fault of this machine says nothing about the server and does not advance the back-off.
        counts = counts or any(verdict.scope != policy.LOCAL for verdict in verdicts)
        outcomes = [verdict.outcome for verdict in verdicts]
        for outcome in outcomes:
            _log_outcome(log, entry, outcome, recipients[outcome.recipient])
        done = number == len(groups) and _delivered([*entry.latest.values(), *outcomes])
        try:
            if done:
                entry.remove()
            else:
                entry.record(outcomes, attempt if counts else entry.attempts)
        except OSError as exc:
            _hold(entry, exc, delivered=_delivered(outcomes) and number == len(groups))
        if done:
            return True
    return False


def _delivered(outcomes: list[Outcome]) -> bool:
    latest = {outcome.recipient: outcome for outcome in outcomes}
    return all(outcome.final and outcome.action != FAILED for outcome in latest.values())


def _hold(entry: Entry, why: OSError, *, delivered: bool) -> NoReturn:
    """What was done cannot be written down: make sure that it is not done again."""
    # The claim lasts as long as this process: no other flusher may take the message before a person has looked.
    entry.keep_claim()
    try:
        if delivered:
            entry.remove()
        else:
            entry.move_to("hold")
    except OSError as exc:
        why = exc
    raise _NotRecorded(f"the outcome of an attempt could not be recorded: {why.strerror}") from why


def _wait(config: Config, entry: Entry) -> bool:
    """Defer the message to its next attempt; False when its time is over and its recipients have failed."""
    now = time.time()
    spool = config.spool
    until = retry.next_attempt(
        entry.envelope.arrived,
        entry.attempts,
        now,
        lifetime=spool.lifetime,
        retry_min=spool.retry_min,
        retry_max=spool.retry_max,
        jitter=retry.jitter(entry.envelope.queue_id, entry.attempts),
    )
    if until is not None:
        entry.defer(until)
        return True
    entry.record(
        [policy.expired(entry.latest[index], now) for index in entry.pending], entry.attempts
    )
    return False


def _log_outcome(log: Log, entry: Entry, outcome: Outcome, address: bytes) -> None:
    write = log.info if outcome.final and outcome.action != FAILED else log.warning
    write(
        line(
            entry.envelope.queue_id,
            **{"from": entry.envelope.sender, "to": address},
            relay=outcome.remote_mta or "none",
            delay=f"{outcome.at - entry.envelope.arrived:.2f}",
            dsn=outcome.status,
            status=outcome.action,
            reason=outcome.reason,
        )
    )


def _groups(entry: Entry, config: Config) -> dict[NextHop, dict[int, bytes]]:
    """The pending recipients by next hop: index → qualified address."""
    groups: dict[NextHop, dict[int, bytes]] = {}
    for index in entry.pending:
        address = _address(entry, config, index)
        groups.setdefault(route(address, config), {})[index] = address
    return groups


def _address(entry: Entry, config: Config, index: int) -> bytes:
    return qualify(entry.envelope.recipients[index].address, config.mail_domain.encode())


def _goes_to(entry: Entry, config: Config, domain: bytes) -> bool:
    return any(
        split(_address(entry, config, index))[1].lower() == domain.lower()
        for index in entry.pending
    )


def _content(entry: Entry, config: Config) -> Content:
    """The message as it goes out; the first attempt decides, and keeps, what it needs of the configuration."""
    facts = entry.facts or entry.keep_facts(
        facts_for(entry.envelope, config.hostname.encode(), config.mail_domain.encode())
    )
    first = entry.first_octets(HEADER_LIMIT + 4096)
    header = split_header(first, complete=len(first) == entry.size)
    top = complete(header, entry.envelope, facts)
    offset = header.body

    def octets() -> Iterator[bytes]:
        yield top
        yield from entry.verified_octets(first, offset)

    # RFC 1870 section 6.1.2: an estimate is enough, as near as it can be had without reading the message.
    body_lines = max(entry.trailer.lines - first.count(b"\n", 0, offset), 0)
    return Content(
        octets,
        size=len(top) + top.count(b"\n") + entry.size - offset + body_lines,
        eight_bit=EIGHT_BIT in entry.trailer.flags or not top.isascii(),
    )
