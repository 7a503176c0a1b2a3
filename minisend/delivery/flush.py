"""The flush: claim what is due, complete it, route it, attempt it, record what came of it, act on that.

Knows no protocol (``delivery.remote``) and no rule about failures (``delivery.policy``) or times (``delivery.retry``).
For each message, in this order: claim; reserve room for the outcomes; attempt; record; then remove, defer or set aside.

The one window in which a message can go out twice: the server has taken it (``end of data`` was answered, or sent and
not answered) and this process or the machine stops before the record.  A single transaction that makes all recipients
final has the unlink as its record; the directory's fsync is grouped ([spool] sync), and until it a power cut undoes it.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from minisend.address import qualify, split
from minisend.config import Config
from minisend.delivery import policy, retry, slots
from minisend.delivery.policy import Verdict
from minisend.delivery.remote import Content, Remote
from minisend.delivery.route import NextHop, route
from minisend.envelope import FAILED, Outcome
from minisend.errors import MinisendError, SpoolError
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
    Raises SpoolError when the queue cannot be read at all, or its changes not be made durable.
    """
    summary = Summary()

    def report(queue_id: str, text: str) -> None:
        summary.broken += 1
        log.error(line(queue_id, event="broken", reason=text))

    def make_durable() -> None:
        # Removals and moves must not wait for a server that takes minutes.  Where this fails it is for the end to
        # raise: here an attempt is under way, and perhaps has delivered to some.
        try:
            queue.sync()
        except OSError as exc:
            log.error(line("-", event="unsynced", reason=f"queue: {exc.strerror}"))

    if not os.path.lexists(f"{config.spool.path}/queue"):
        return summary
    try:
        with (
            Queue(
                config.spool.path, strict_sync=config.spool.sync == "each", report=report
            ) as queue,
            Remote(config, before_connect=make_durable) as remote,
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
            # Before the goodbyes, which a server can draw out.
            queue.sync()
            if progress is not None:
                progress(len(places), len(places))
    except OSError as exc:
        raise SpoolError(f"{config.spool.path}/queue: {exc.strerror}") from exc
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
        if entry.pending and _attempt(config, entry, remote, log):
            summary.delivered += 1
        elif entry.pending and _wait(config, entry, log):
            summary.deferred += 1
        elif entry.failed:
            # Kept until somebody can be told of it: nothing is dropped.
            entry.move_to("failed")
            summary.failed += 1
        else:
            # All of it was delivered and recorded before, and only its removal is missing.
            entry.remove()
            summary.delivered += 1
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
        # Nothing was delivered that is not recorded: the message is as safe as it was.
        summary.deferred += 1
        log.error(
            line(queue_id, event="postponed", status="4.3.0", reason=f"queue: {exc.strerror}")
        )


class _NotRecorded(Exception):
    """The disk did not take what an attempt came to: the message must not be attempted again unasked."""


def _attempt(config: Config, entry: Entry, remote: Remote, log: Log) -> bool:
    """One attempt for every pending recipient, recorded.  True when the message is delivered, and removed."""
    groups = _groups(entry, config)
    attempt = entry.attempts + 1
    counts = False
    for number, (hop, recipients) in enumerate(groups.items(), 1):
        verdicts = _ask(config, entry, remote, hop, recipients, log)
        # A fault of this machine says nothing about the server and does not advance the back-off.
        counts = counts or any(verdict.scope != policy.LOCAL for verdict in verdicts)
        outcomes = [verdict.outcome for verdict in verdicts]
        for outcome in outcomes:
            _log_outcome(log, entry, outcome, recipients[outcome.recipient])
        done = number == len(groups) and _delivered([*entry.latest.values(), *outcomes])
        try:
            if not (done and _removed(entry, log)):
                entry.record(outcomes, attempt if counts else entry.attempts)
        except OSError as exc:
            if any(map(_is_delivered, outcomes)):
                _hold(entry, exc)
            # An attempt in which nobody took the message may be made again.
            raise
        if done:
            return True
    return False


def _ask(
    config: Config,
    entry: Entry,
    remote: Remote,
    hop: NextHop,
    recipients: dict[int, bytes],
    log: Log,
) -> list[Verdict]:
    """One next hop's verdicts, with room on the disk for what they come to."""
    # Here and not once for all hops: each record gives back what it did not need.
    entry.reserve(len(recipients))
    try:
        content = _content(entry, config)
        sender = entry.envelope.sender
        if sender:
            sender = qualify(sender, config.mail_domain.encode())
        return remote.attempt(hop, sender, recipients, content)
    except (BrokenRecord, OSError):
        raise
    except Exception as exc:  # noqa: BLE001 - a bug that one message meets must not keep the others waiting
        import traceback

        trace = "".join(traceback.format_exception(exc))
        log.error(line(entry.envelope.queue_id, event="bug", trace=trace))
        bug = MinisendError(f"internal error, please report it: {type(exc).__name__}: {exc}")
        return [policy.judge(index, bug, at=time.time()) for index in recipients]


def _removed(entry: Entry, log: Log) -> bool:
    """Remove a message that all its recipients have; False when its outcome must be written down instead."""
    try:
        entry.remove()
    except OSError as exc:
        log.error(
            line(
                entry.envelope.queue_id,
                event="kept",
                reason=f"delivered, but its file cannot be removed: {exc.strerror}",
            )
        )
        return False
    return True


def _is_delivered(outcome: Outcome) -> bool:
    return outcome.final and outcome.action != FAILED


def _delivered(outcomes: list[Outcome]) -> bool:
    """The last outcome of each recipient is a delivery."""
    return all(map(_is_delivered, {outcome.recipient: outcome for outcome in outcomes}.values()))


def _hold(entry: Entry, why: OSError) -> NoReturn:
    """What was delivered cannot be written down: make sure that it is not delivered again."""
    # The claim lasts as long as this process: no other flusher may take the message before a person has looked.
    entry.keep_claim()
    text = f"delivered to some or all recipients, which cannot be recorded: {why.strerror}"
    try:
        entry.move_to("hold")
    except (OSError, SpoolError) as exc:
        text += f"; queue/hold: {exc}"
    raise _NotRecorded(text) from why


def _wait(config: Config, entry: Entry, log: Log) -> bool:
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
    outcomes = [policy.expired(entry.latest[index], now) for index in entry.pending]
    for outcome in outcomes:
        _log_outcome(log, entry, outcome, _address(entry, config, outcome.recipient))
    entry.record(outcomes, entry.attempts)
    return False


def _log_outcome(log: Log, entry: Entry, outcome: Outcome, address: bytes) -> None:
    write = log.info if _is_delivered(outcome) else log.warning
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
