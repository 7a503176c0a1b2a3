"""The flush: claim what is due, attempt it, record what came of it, tell who is to be told, act on that.

Knows no protocol (``delivery.remote``) and no rule about failures (``delivery.policy``), times (``delivery.retry``) or
reports (``delivery.bounce``).  For each message, in this order: claim; reserve room for the outcomes; attempt; record;
queue the reports; then remove, defer or set aside.

The one window in which a message can go out twice: the server has taken it (``end of data`` was answered, or sent and
not answered) and this process or the machine stops before the record.  A single transaction that makes all recipients
final has the unlink as its record.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from minisend.address import AddressError, qualify, split, to_ascii
from minisend.config import Config
from minisend.delivery import bounce, policy, retry, slots
from minisend.delivery.outgoing import Outgoing
from minisend.delivery.policy import Verdict
from minisend.delivery.remote import MOST_RECIPIENTS, Content, Remote
from minisend.delivery.route import ERROR, NextHop, route
from minisend.envelope import FAILED, Outcome
from minisend.errors import MinisendError, SpoolError, UsageError
from minisend.log import Log, line
from minisend.smtp.session import DsnRequest
from minisend.spool.record import BrokenRecord, UnknownVersion
from minisend.spool.store import Entry, NoRoom, Place, Queue

# RFC 5321 section 6.3: a message that has been through more servers than this goes in circles.
_MOST_HOPS = 100


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages: what is due, or ``everything``, or ``ids``; of those only the ones that match the rest.

    ``domain``       of one of the waiting recipients
    ``id_part``, ``sender_part``, ``recipient_part``  octets that occur in it, in any case (sendmail -qI, -qS, -qR)
    """

    everything: bool = False
    ids: tuple[str, ...] = ()
    domain: bytes = b""
    id_part: bytes = b""
    sender_part: bytes = b""
    recipient_part: bytes = b""


@dataclass(slots=True)
class Summary:
    """What a flush came to, in messages.

    ``failed``   of those that are done with, the ones that not every recipient got
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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Attempt the selected messages once, and the reports that come of it.

    ``progress``  called with (messages done, messages selected)
    Raises SpoolError when the queue cannot be read at all, or its changes not be made durable; UsageError for an id
    that is not in the queue.
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
            Remote(config, while_waiting=make_durable) as remote,
        ):
            queue.sweep(time.time())
            places, missing = _select(queue, config, selection)
            run = _Run(config, selection, log, summary, queue, remote, places)
            selected = len(places)
            # Grows on the way by the reports: who sent a message waits for them.
            for done, place in enumerate(places):
                progress(done, len(places))
                run.take(place, came_up=done >= selected)
            # Before the goodbyes, which a server can draw out.
            queue.sync()
            progress(len(places), len(places))
            if missing:
                raise UsageError(f"{', '.join(missing)}: no such message waits in the queue")
    except OSError as exc:
        raise SpoolError(f"{config.spool.path}/queue: {exc.strerror}") from exc
    return summary


def background_flush(config: Config, log: Log) -> int:
    """What a submission starts: deliver what is due, in one of the slots, and look again before ending."""
    seen: set[str] = set()
    once_more = True
    while True:
        slot = slots.take(config.spool.path)
        if slot is None:
            return 0
        try:
            with Queue(config.spool.path) as queue:
                seen |= {place.queue_id for place in queue.places("new")}
            summary = flush(config, Selection(), log=log)
        finally:
            os.close(slot)
        # A message that came while the slots were taken found no flusher of its own to serve it; one that its
        # submission still held when it was listed was skipped, and may be free now.
        with Queue(config.spool.path) as queue:
            waiting = [place.queue_id in seen for place in queue.places("new")]
        if all(waiting) and not (waiting and summary.skipped and once_more):
            return 0
        once_more = not all(waiting)


def _select(queue: Queue, config: Config, selection: Selection) -> tuple[list[Place], list[str]]:
    """What is to be looked at, and those of the ids that are not there."""
    if selection.ids:
        found = {queue_id: queue.find(queue_id, "new", "cur") for queue_id in selection.ids}
        return (
            [place for place in found.values() if place is not None],
            [queue_id for queue_id, place in found.items() if place is None],
        )
    if selection == Selection():
        return queue.due(time.time(), config.spool.retry_max), []
    part = selection.id_part.lower()
    places = [p for p in queue.places("new", "cur") if part in p.queue_id.encode().lower()]
    return sorted(places, key=lambda place: (place.due, place.queue_id)), []


def _normal(domain: bytes) -> bytes:
    """A domain as it is compared: A-labels, lower case, no final dot."""
    domain = domain.removesuffix(b".")
    try:
        return split(to_ascii(b"x@" + domain))[1].lower()
    except AddressError:
        return domain.lower()


class _NotRecorded(Exception):
    """The disk did not take what an attempt came to: the message must not be attempted again unasked."""


@dataclass(slots=True)
class _Run:
    """One flush at work.

    ``places``  what it goes through, and what new reports are added to
    ``seen``    ids of the reports that it has had in hand
    """

    config: Config
    selection: Selection
    log: Log
    summary: Summary
    queue: Queue
    remote: Remote
    places: list[Place]
    seen: set[str] = field(default_factory=set)

    def take(self, place: Place, *, came_up: bool) -> None:
        """Claim the message and deliver it, if it is one of the selected or a report that this run has queued."""
        if not (came_up or self._selected(place)):
            return
        broken = self.summary.broken
        entry = self.queue.claim(place)
        if entry is None:
            # A report from before a crash has been one of the selected itself, or waits for its own time.
            if not came_up:
                self.summary.skipped += self.summary.broken == broken
            return
        with entry:
            if entry.envelope.uid < 0:
                self.seen.add(place.queue_id)
            self._deliver(entry)

    def _selected(self, place: Place) -> bool:
        """Whether the message matches.  Looked at without a claim: that would keep it from another flusher."""
        selection = self.selection
        if not (selection.domain or selection.recipient_part or selection.sender_part):
            return True
        try:
            entry = self.queue.read(place)
        except (BrokenRecord, UnknownVersion, OSError):
            return True  # for the claim to find out and report
        if entry is None:
            return False
        with entry:
            if selection.sender_part.lower() not in entry.envelope.sender.lower():
                return False
            waiting = [self._address(entry, index) for index in entry.pending]
        if selection.domain:
            domain = _normal(selection.domain)
            waiting = [address for address in waiting if _normal(split(address)[1]) == domain]
        part = selection.recipient_part.lower()
        return any(part in address.lower() for address in waiting)

    def _deliver(self, entry: Entry) -> None:
        summary = self.summary
        summary.tried += 1
        try:
            if entry.outcomes:
                # What a crash kept from being told; who is to be told after this attempt is found below.
                self._tell(entry, resumed=True)
            if entry.pending and self._attempt(entry):
                summary.delivered += 1
                return
            until = self._next_attempt(entry) if entry.pending else None
            told = self._tell(entry, resumed=False)
            if until is not None:
                entry.defer(until)
                summary.deferred += 1
            elif told:
                entry.remove()
                if entry.failed:
                    summary.failed += 1
                else:
                    summary.delivered += 1
            else:
                # Kept until somebody has looked: nothing is dropped.
                entry.move_to("failed")
                summary.failed += 1
        except BrokenRecord as exc:
            self.queue.set_aside(entry, str(exc))
        except _NotRecorded as exc:
            self._stays(entry, "held", "4.3.0", str(exc))
        except NoRoom as exc:
            self._stays(entry, "postponed", "4.3.1", f"no room for outcomes: {exc}")
        except OSError as exc:
            # Nothing was delivered that is not recorded: the message is as safe as it was.
            self._stays(entry, "postponed", "4.3.0", f"queue: {exc.strerror}")
        except SpoolError as exc:
            self._stays(entry, "postponed", "4.3.0", str(exc))
        except Exception as exc:  # noqa: BLE001 - a bug that one message meets must not keep the others waiting
            self._stays(entry, "postponed", "4.3.0", str(self._bug(entry, exc)))

    def _stays(self, entry: Entry, event: str, status: str, reason: str) -> None:
        self.summary.deferred += 1
        self.log.error(line(entry.envelope.queue_id, event=event, status=status, reason=reason))

    def _attempt(self, entry: Entry) -> bool:
        """One attempt for every pending recipient, recorded.  True when the message is done with: delivered, and removed if it can be."""
        attempt = entry.attempts + 1
        counts = done = False
        for hop, recipients in self._groups(entry).items():
            waiting = dict(recipients)
            for verdicts in self._verdicts(entry, hop, waiting):
                # A fault of this machine says nothing about the server and does not advance the back-off.
                counts = counts or any(verdict.scope != policy.LOCAL for verdict in verdicts)
                for verdict in verdicts:
                    self._log_outcome(entry, verdict.outcome)
                    del waiting[verdict.outcome.recipient]
                done = self._record(entry, verdicts, attempt if counts else entry.attempts)
                if waiting:
                    self._reserve(entry, waiting)
        return done

    def _record(self, entry: Entry, verdicts: list[Verdict], attempt: int) -> bool:
        """Write down what has come of it, before anything else is tried.

        True when everybody has it and nobody is to be told: then it is removed instead, if that can be done.
        """
        outcomes = [verdict.outcome for verdict in verdicts]
        latest = entry.latest | {outcome.recipient: outcome for outcome in outcomes}
        done = (
            len(latest) == len(entry.envelope.recipients)
            and all(map(_is_delivered, latest.values()))
            and not bounce.asks_for_success(entry.envelope)
        )
        if done and self._removed(entry):
            return True
        try:
            entry.record(outcomes, attempt)
        except OSError as exc:
            if any(map(_is_delivered, outcomes)):
                _hold(entry, exc)
            # An attempt in which nobody took the message may be made again.
            raise
        bounce.leave_success_to_next_hop(
            entry, [v.outcome.recipient for v in verdicts if v.reports and _is_delivered(v.outcome)]
        )
        return done

    def _verdicts(
        self, entry: Entry, hop: NextHop, waiting: dict[int, bytes]
    ) -> Iterator[list[Verdict]]:
        """One next hop's verdicts, as they come; ``waiting`` is kept by the caller."""
        self._reserve(entry, waiting)
        try:
            outgoing = Outgoing(entry, self.config)
            if entry.facts is None:
                # The first attempt decides what it needs of the configuration.
                entry.keep_facts(outgoing.facts)
            if outgoing.hops > _MOST_HOPS:
                loop = f"too many hops ({outgoing.hops} Received fields): a mail loop"
                hop = NextHop(ERROR, loop, status="5.4.6")
            sender = self._qualified(entry, entry.envelope.sender)
            yield from self.remote.attempt(hop, sender, waiting, _content(entry, outgoing))
        except (BrokenRecord, OSError):
            raise
        except Exception as exc:  # noqa: BLE001 - as any failure it waits longer each time
            bug = self._bug(entry, exc)
            yield [policy.judge(index, bug, at=time.time()) for index in waiting]

    def _reserve(self, entry: Entry, waiting: dict[int, bytes]) -> None:
        # Before each transaction: each record gives back what it did not need.
        entry.reserve(min(len(waiting), MOST_RECIPIENTS))

    def _bug(self, entry: Entry, exc: Exception) -> MinisendError:
        """What nobody has foreseen, logged with its traceback."""
        import traceback

        trace = "".join(traceback.format_exception(exc))
        self.log.error(line(entry.envelope.queue_id, event="bug", trace=trace))
        return MinisendError(f"internal error, please report it: {type(exc).__name__}: {exc}")

    def _removed(self, entry: Entry) -> bool:
        """Remove a message that all its recipients have; False when its outcome must be written down instead."""
        try:
            entry.remove()
        except OSError as exc:
            reason = f"delivered, but its file cannot be removed: {exc.strerror}"
            self.log.error(line(entry.envelope.queue_id, event="kept", reason=reason))
            return False
        return True

    def _next_attempt(self, entry: Entry) -> float | None:
        """When those who wait are tried again; None when their time is over: they have failed now, as is recorded."""
        now = time.time()
        spool = self.config.spool
        until = retry.next_attempt(
            entry.envelope.arrived,
            entry.attempts,
            now,
            lifetime=spool.lifetime,
            retry_min=spool.retry_min,
            retry_max=spool.retry_max,
            jitter=retry.jitter(entry.envelope.queue_id, entry.attempts),
        )
        if until is None:
            outcomes = [policy.expired(entry.latest[index], now) for index in entry.pending]
            for outcome in outcomes:
                self._log_outcome(entry, outcome)
            entry.record(outcomes, entry.attempts)
        return until

    def _tell(self, entry: Entry, *, resumed: bool) -> bool:
        """Queue the reports that are due; False when there is a failure that can be told to nobody."""
        now = time.time()
        told = True
        for report in bounce.reports(entry, self.config, now, resumed=resumed):
            if not bounce.queue_report(
                self.queue, entry, report, self.config, now, resumed=resumed, seen=self.seen
            ):
                told = False
                continue
            self.places.append(Place("new", report.queue_id))
            self.log.info(
                line(
                    entry.envelope.queue_id,
                    event=f"{report.event} report",
                    to=report.to or b"",
                    report=report.queue_id,
                )
            )
        return told

    def _groups(self, entry: Entry) -> dict[NextHop, dict[int, bytes]]:
        """The pending recipients by next hop: index → qualified address."""
        groups: dict[NextHop, dict[int, bytes]] = {}
        for index in entry.pending:
            address = self._address(entry, index)
            groups.setdefault(route(address, self.config), {})[index] = address
        return groups

    def _address(self, entry: Entry, index: int) -> bytes:
        return self._qualified(entry, entry.envelope.recipients[index].address)

    def _qualified(self, entry: Entry, address: bytes) -> bytes:
        """With the domain that the first attempt used: the header has it, and a report will."""
        domain = entry.facts.mail_domain if entry.facts else self.config.mail_domain.encode()
        return qualify(address, domain)

    def _log_outcome(self, entry: Entry, outcome: Outcome) -> None:
        write = self.log.info if _is_delivered(outcome) else self.log.warning
        addresses = {
            "from": entry.envelope.sender,
            "to": self._address(entry, outcome.recipient),
        }
        write(
            line(
                entry.envelope.queue_id,
                **addresses,
                relay=outcome.remote_mta or "none",
                delay=f"{outcome.at - entry.envelope.arrived:.2f}",
                dsn=outcome.status,
                status=outcome.action,
                reason=outcome.reason,
            )
        )


def _is_delivered(outcome: Outcome) -> bool:
    return outcome.final and outcome.action != FAILED


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


def _content(entry: Entry, outgoing: Outgoing) -> Content:
    envelope = entry.envelope
    return Content(
        outgoing.octets,
        size=outgoing.wire_size,
        eight_bit=outgoing.eight_bit,
        ret=envelope.ret,
        envid=envelope.envid,
        dsn={
            index: DsnRequest(recipient.notify, recipient.original)
            for index, recipient in enumerate(envelope.recipients)
            if recipient.notify or recipient.original
        },
    )
