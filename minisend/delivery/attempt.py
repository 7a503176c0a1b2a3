"""One attempt of one message: claim it, send it to each of its next hops, record what came of it, tell who is to be told, act on that.

Knows no protocol (``delivery.remote``), no rule about failures (``delivery.policy``), times (``delivery.retry``) or
reports (``delivery.bounce``), and nothing of who works beside it (``delivery.lanes``).  In this order: claim; for each
next hop reserve room for the outcomes, send, record; when the last next hop is done with, queue the reports; then
remove, defer or set aside.

The one window in which a message can go out twice: the server has taken it (``end of data`` was answered, or sent and
not answered) and this process or the machine stops before the record.  A single transaction that makes all recipients
final has the unlink as its record.

Several next hops of a message may be served at the same time, each by a thread of its own; what they do to the
message's file, they do under the attempt's lock.  While nobody works at it the claim is given back: a message that
waits for its turn at a slow server holds no descriptor.
"""

from __future__ import annotations

import time
from _thread import RLock, allocate_lock

from minisend.address import qualify, split
from minisend.config.sections import Config
from minisend.delivery import bounce, flood, mx, policy, retry
from minisend.delivery.destination import Destinations, Down
from minisend.delivery.outgoing import Outgoing
from minisend.delivery.policy import Verdict
from minisend.delivery.remote import MOST_RECIPIENTS, Content, Stopped
from minisend.delivery.route import DISCARD, ERROR, NextHop, route
from minisend.envelope import DELIVERED, DROP, FAILED, Outcome
from minisend.errors import MinisendError, SpoolError
from minisend.kept import Kept
from minisend.log import Log, line
from minisend.smtp.transaction import DsnRequest
from minisend.spool.entry import Entry, NoRoom, Place
from minisend.spool.record import BrokenRecord, format_ranges
from minisend.spool.store import Queue
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn, ParamSpec, TypeVar

    _Result = TypeVar("_Result")
    _Arguments = ParamSpec("_Arguments")

# RFC 5321 section 6.3: a message that has been through more servers than this goes in circles.
_MOST_HOPS = 100
# Of so many domains, or addresses, a run remembers where they go.
_KEPT_HOPS = 1000


class Summary(Value):
    """What a run came to, in messages.

    ``failed``   of those that are done with, the ones that not every recipient got
    ``skipped``  claimed by another process or gone meanwhile
    ``broken``   set aside or left alone because the file could not be read as a message
    ``stopped``  the run was asked to end before it was through
    """

    __slots__ = ("broken", "deferred", "delivered", "failed", "skipped", "stopped", "tried")

    def __init__(
        self,
        tried: int = 0,
        delivered: int = 0,
        deferred: int = 0,
        failed: int = 0,
        skipped: int = 0,
        broken: int = 0,
        stopped: bool = False,
    ) -> None:
        self.tried = tried
        self.delivered = delivered
        self.deferred = deferred
        self.failed = failed
        self.skipped = skipped
        self.broken = broken
        self.stopped = stopped

    @property
    def exit_code(self) -> int:
        """75 when something tried stays, else 69 when something failed for good, else 0."""
        if self.deferred or self.stopped:
            return 75
        return 69 if self.failed or self.broken else 0


class Run:
    """What the attempts of one run share.

    ``came_up``   takes the place of a report that was queued
    ``deferred``  hears of each message that waits, and until when (seconds)
    ``let_in``    called when a server is ready for a message; with whether it took its time
    ``far``       it did so with another process: no lane needs to be the first
    ``one_by_one``  servers to which commands are sent singly, see ``Remote``
    ``trace``     gets each line of each dialogue, without secrets
    ``processes`` that share the connections
    ``seen``      ids of the reports that the run has had in hand
    ``put_off``   ids of the messages that it has deferred
    ``lock``      for ``summary`` and the sets, which all threads change
    """

    def __init__(
        self,
        config: Config,
        log: Log,
        queue: Queue,
        destinations: Destinations,
        resolver: mx.Resolver,
        flood: flood.Flood,
        summary: Summary,
    ) -> None:
        self.config = config
        self.log = log
        self.queue = queue
        self.destinations = destinations
        self.resolver = resolver
        self.flood = flood
        self.summary = summary
        self.came_up: Callable[[Place], object] = lambda place: None
        self.deferred: Callable[[Place], None] = lambda place: None
        self.let_in: Callable[[bool], None] = lambda far: None
        self.far = False
        self.one_by_one: set[mx.Target] = set()
        self.trace: Callable[[str], None] | None = None
        self.processes = 1
        self.seen: set[str] = set()
        self.put_off: set[str] = set()
        self.lock = allocate_lock()
        self._hops: Kept[NextHop] = Kept(self._route, _KEPT_HOPS)

    def hop(self, recipient: bytes, sender: bytes) -> NextHop:
        """The next hop of a recipient, see ``route``."""
        if self.config.routes or recipient.startswith(b"-"):
            return self._hops[recipient, sender]
        # It is the same for all of a domain, but for the text of an error.
        hop = self._hops[b"x@" + split(recipient)[1], b""]
        return hop if hop.kind != ERROR else self._hops[recipient, sender]

    def _route(self, recipient: bytes, sender: bytes) -> NextHop:
        return route(recipient, self.config, sender)

    def count(self, what: str) -> None:
        """One more of ``what``, a field of ``Summary``."""
        with self.lock:
            setattr(self.summary, what, getattr(self.summary, what) + 1)


class _NotRecorded(Exception):
    """The disk did not take what an attempt came to: the message must not be attempted again unasked."""


class Attempt:
    """One message in the hands of a run.

        hops = attempt.begin()          the next hops of those who wait; None when it is not ours to attempt
        for hop in hops:                in any order, by any thread, each once
            if attempt.enter(hop) and (job := attempt.job(hop)) is not None:
                ...                     ``settle``, ``fail``: as ``delivery.remote`` calls them
            attempt.leave(hop, down)    the last one to leave decides what becomes of the message

    ``came_up``  a report that this run has queued itself
    """

    def __init__(self, run: Run, place: Place, *, came_up: bool = False) -> None:
        self.place = place
        self._run = run
        self._came_up = came_up
        self._lock = RLock()
        self._entry: Entry | None = None
        self._at_work = 0
        # next hop → index → qualified address, of those that are not done with
        self._todo: dict[NextHop, dict[int, bytes]] = {}
        # qualified, as every attempt has them
        self._sender = b""
        self._addresses: dict[int, bytes] = {}
        self._number = 0
        self._counts = False
        # Nothing more is to be done with it in this run: it is gone, or must not be touched.
        self._over = False
        self._downs: list[Down] = []
        # Somebody waits who was not put off by a destination that is down.
        self._put_off = False

    def begin(self, *, keep: bool = True) -> list[NextHop] | None:
        """Claim the message, and say where it goes.  ``keep``: the claim, until somebody enters."""
        with self._lock:
            if not self._claim():
                return None
            entry = self._claimed()
            run = self._run
            with run.lock:
                run.summary.tried += 1
                if self.place.queue_id in run.put_off:
                    # Its destination has answered after all: it counts once.
                    run.put_off.discard(self.place.queue_id)
                    run.summary.tried -= 1
                    run.summary.deferred -= 1
                if entry.envelope.uid < 0:
                    run.seen.add(self.place.queue_id)
            self._number = entry.attempts + 1
            self._guarded(self._prepare)
            hops = [] if self._over else list(self._todo)
            if not hops:
                self._end()
            elif not keep:
                self._close()
            return hops

    def enter(self, hop: NextHop) -> bool:
        """Begin with one of its next hops; False when there is nothing to do for it any more."""
        with self._lock:
            # Whatever comes of it: ``leave`` counts down, and the claim lasts while anybody is at work.
            self._at_work += 1
            if self._over or (self._entry is None and not self._claim()):
                self._over = True
                return False
            entry = self._claimed()
            if entry.latest:
                waiting = set(entry.pending)
                self._todo[hop] = {i: a for i, a in self._todo[hop].items() if i in waiting}
            return bool(self._todo[hop])

    def job(self, hop: NextHop) -> Job | None:
        """The message for those of this next hop, with room for what will be recorded; None when that cannot be had."""
        with self._lock:
            job = self._guarded(self._job, hop)
            return job if job is not None and job.recipients and not self._over else None

    def leave(self, hop: NextHop, down: Down | None = None) -> None:
        """Done with this next hop.  ``down``: who still waits there waits for its next probe."""
        with self._lock:
            self._at_work -= 1
            recipients = self._todo.pop(hop, {})
            if down is not None:
                self._downs.append(down)
            elif self._entry is not None and not self._over:
                self._put_off |= not recipients.keys().isdisjoint(self._entry.pending)
            if not self._todo and not self._at_work:
                self._end()
            elif not self._at_work:
                self._close()

    def pause(self) -> None:
        """Stop working at a next hop that was entered, for somebody else to enter it."""
        with self._lock:
            self._at_work -= 1
            if not self._at_work:
                self._close()

    def drop(self, hop: NextHop) -> None:
        """The run ends while this next hop was served: what has been recorded stands, and the rest is for another run."""
        with self._lock:
            self._over = True
            self.leave(hop)

    def give_up(self) -> None:
        """The run ends before anybody has entered."""
        with self._lock:
            self._over = True
            if not self._at_work:
                self._close()

    # -- claim

    def _claim(self) -> bool:
        run = self._run
        broken = run.summary.broken
        entry = run.queue.claim(self.place)
        if entry is None:
            # A report from before a crash has been one of the selected itself, or waits for its own time.
            if not self._came_up and run.summary.broken == broken:
                run.count("skipped")
            return False
        self._entry = entry
        return True

    def _claimed(self) -> Entry:
        entry = self._entry
        if entry is None:
            raise RuntimeError("the message is not claimed")
        return entry

    def _close(self) -> None:
        if self._entry is not None:
            self._entry.close()
            self._entry = None

    def _prepare(self) -> None:
        entry = self._claimed()
        if self._held_for_sender(entry) or self._held_for_flood(entry):
            return
        if entry.outcomes:
            # What a crash kept from being told; who is to be told after this attempt is found below.
            self._tell(entry, resumed=True)
        envelope = entry.envelope
        sender = self._sender = qualified(entry, envelope.sender, self._run.config)
        for index in entry.pending:
            address = qualified(entry, envelope.recipients[index].address, self._run.config)
            self._addresses[index] = address
            hop = self._run.hop(address, sender)
            self._todo.setdefault(hop, {})[index] = address
        for hop in [hop for hop in self._todo if hop.kind in (ERROR, DISCARD)]:
            # Nobody is asked about those.
            now = time.time()
            recipients = self._todo.pop(hop)
            self._reserve(entry, recipients, 0)
            self._settle([_without_server(index, hop, now) for index in recipients])

    def _held_for_sender(self, entry: Entry) -> bool:
        """Of a message from the drop its submitter was told that it is safe: an administrator decides, and nobody else."""
        senders = self._run.config.submission.senders
        if not senders or entry.envelope.channel != DROP or entry.history:
            return False
        from minisend.message.header import HEADER_LIMIT
        from minisend.message.permission import refusal

        first = entry.first_octets(HEADER_LIMIT + 1)
        why = refusal(
            entry.envelope,
            first,
            complete=len(first) == entry.size,
            senders=senders,
            mail_domain=self._run.config.mail_domain.encode(),
        )
        if not why:
            return False
        self._over = True
        self._run.count("deferred")
        # Once released, it is not held for this again.
        everybody = format_ranges(range(len(entry.envelope.recipients))).decode("ascii")
        entry.note_reported(f"sender {everybody}")
        entry.move_to("hold")
        self._run.log.warning(line(entry.envelope.queue_id, event="held", reason=why))
        return True

    def _held_for_flood(self, entry: Entry) -> bool:
        run = self._run
        held = flood.control(run.flood, run.queue, entry, run.config, time.time())
        if held is None:
            return False
        self._over = True
        run.count("deferred")
        run.log.warning(
            line(
                entry.envelope.queue_id,
                event="held",
                reason="flood",
                to=held.told,
                report=held.notice,
            )
        )
        if held.notice:
            run.came_up(Place("new", held.notice))
        return True

    # -- what can go wrong with one message must not keep the others waiting

    def _guarded(
        self,
        work: Callable[_Arguments, _Result],
        *arguments: _Arguments.args,
        **keywords: _Arguments.kwargs,
    ) -> _Result | None:
        """What ``work`` returns; None when it has failed, which the message has heard of then."""
        entry = self._claimed()
        try:
            return work(*arguments, **keywords)
        except BrokenRecord as exc:
            self._over = True
            self._run.queue.set_aside(entry, str(exc))
        except _NotRecorded as exc:
            self._stays(entry, "held", "4.3.0", str(exc))
        except NoRoom as exc:
            self._stays(entry, "postponed", "4.3.1", f"no room for outcomes: {exc}")
        except OSError as exc:
            # Nothing was delivered that is not recorded: the message is as safe as it was.
            self._stays(entry, "postponed", "4.3.0", f"queue: {exc.strerror}")
        except SpoolError as exc:
            self._stays(entry, "postponed", "4.3.0", str(exc))
        except Stopped:
            self._over = True
        except Exception as exc:  # noqa: BLE001 - a bug that one message meets
            self._stays(entry, "postponed", "4.3.0", str(self._bug(entry, exc)))
        return None

    def _stays(self, entry: Entry, event: str, status: str, reason: str) -> None:
        self._over = True
        self._run.count("deferred")
        self._run.log.error(
            line(entry.envelope.queue_id, event=event, status=status, reason=reason)
        )

    def _bug(self, entry: Entry, exc: Exception) -> MinisendError:
        """What nobody has foreseen, logged with its traceback."""
        import traceback

        trace = "".join(traceback.format_exception(exc))
        self._run.log.error(line(entry.envelope.queue_id, event="bug", trace=trace))
        return MinisendError(f"internal error, please report it: {type(exc).__name__}: {exc}")

    # -- one next hop

    def _job(self, hop: NextHop) -> Job:
        entry = self._claimed()
        waiting = self._todo[hop]
        job = Job(self, self._sender, waiting)
        try:
            outgoing = Outgoing(entry, self._run.config)
            if entry.facts is None:
                # The first attempt decides what it needs of the configuration.
                entry.keep_facts(outgoing.facts)
            job.room = self._reserve(entry, waiting, 0)
            job.content = _content(entry, outgoing, self._octets(entry, outgoing))
            if outgoing.hops > _MOST_HOPS:
                loop = f"too many hops ({outgoing.hops} Received fields): a mail loop"
                job.give_up(mx.Unroutable(loop, "5.4.6"))
        except (BrokenRecord, NoRoom, OSError, SpoolError):
            raise
        except Exception as exc:  # noqa: BLE001 - as any failure it waits longer each time
            job.give_up(self._bug(entry, exc))
        return job

    def _octets(self, entry: Entry, outgoing: Outgoing) -> Callable[[], Iterable[bytes]]:
        def octets() -> Iterable[bytes]:
            if self._run.queue.wary:
                # Room was had before MAIL; the message before this one may have shown since what that is worth.
                with self._lock:
                    entry.confirm_room()
            return outgoing.octets()

        return octets

    def _settle(self, verdicts: list[Verdict]) -> None:
        """Log and record."""
        entry = self._claimed()
        # A fault of this machine says nothing about the server and does not advance the back-off.
        for verdict in verdicts:
            if verdict.scope != policy.LOCAL:
                self._counts = True
        if self._run.log.heard:
            for verdict in verdicts:
                self._log_outcome(entry, verdict.outcome)
        self._record(entry, verdicts)

    def _reserve(self, entry: Entry, waiting: dict[int, bytes], room: int) -> int:
        """Room for the outcomes of the next transaction, where there is room for so many; for how many there is now."""
        need = min(len(waiting), MOST_RECIPIENTS)
        entry.reserve(max(0, need - room))
        return max(need, room)

    def _record(self, entry: Entry, verdicts: list[Verdict]) -> None:
        """Write down what has come of it, before anything else is tried.

        When everybody has it and nobody is to be told, it is removed instead, if that can be done.
        """
        outcomes = [verdict.outcome for verdict in verdicts]
        latest = entry.latest | {outcome.recipient: outcome for outcome in outcomes}
        done = (
            len(latest) == len(entry.envelope.recipients)
            and all(map(_is_delivered, latest.values()))
            and not bounce.asks_for_success(entry.envelope)
        )
        if done and self._removed(entry):
            self._delivered()
            return
        try:
            # A laptop without network finds that out every few minutes: once is enough to know.
            fresh = [v.outcome for v in verdicts if not _said_before(v, entry)]
            if fresh:
                entry.record(fresh, self._number if self._counts else entry.attempts)
        except OSError as exc:
            # What comes next may have been announced to the server already.
            self._run.queue.wary = True
            if any(map(_is_delivered, outcomes)):
                _hold(entry, exc)
            # An attempt in which nobody took the message may be made again.
            raise
        bounce.leave_success_to_next_hop(
            entry, [v.outcome.recipient for v in verdicts if v.reports and _is_delivered(v.outcome)]
        )
        if done:
            self._delivered()

    def _delivered(self) -> None:
        self._over = True
        self._run.count("delivered")

    def _removed(self, entry: Entry) -> bool:
        """Remove a message that all its recipients have; False when its outcome must be written down instead."""
        try:
            entry.remove()
        except OSError as exc:
            reason = f"delivered, but its file cannot be removed: {exc.strerror}"
            self._run.log.error(line(entry.envelope.queue_id, event="kept", reason=reason))
            return False
        return True

    # -- the end

    def _end(self) -> None:
        """All next hops are done with: the message goes, waits or is set aside."""
        try:
            if not self._over:
                if self._entry is None and not self._claim():
                    return
                self._guarded(self._decide)
        finally:
            self._close()

    def _decide(self) -> None:
        entry = self._claimed()
        run = self._run
        until = self._next_attempt(entry) if entry.pending else None
        told = self._tell(entry, resumed=False)
        if until is not None:
            entry.defer(until)
            with run.lock:
                run.summary.deferred += 1
                run.put_off.add(entry.envelope.queue_id)
            run.deferred(entry.place)
        elif told:
            failed = bool(entry.failed)
            entry.remove()
            run.count("failed" if failed else "delivered")
        else:
            # Kept until somebody has looked: nothing is dropped.
            entry.move_to("failed")
            run.count("failed")

    def _next_attempt(self, entry: Entry) -> float | None:
        """When those who wait are tried again; None when their time is over: they have failed now, as is recorded."""
        now = time.time()
        spool = self._run.config.spool
        probes = max((down.attempts_since(entry.since) for down in self._downs), default=0)
        until = retry.next_attempt(
            entry.since,
            max(entry.attempts, probes),
            now,
            lifetime=spool.lifetime,
            retry_min=spool.retry_min,
            retry_max=spool.retry_max,
            jitter=retry.jitter(entry.envelope.queue_id, entry.attempts),
        )
        unheard = [index for index in entry.pending if index not in entry.latest]
        outcomes: list[Outcome] = []
        if until is None:
            outcomes = [
                policy.expired(entry.latest.get(index) or self._unheard(index), now)
                for index in entry.pending
            ]
            for outcome in outcomes:
                self._log_outcome(entry, outcome)
        elif unheard and bounce.delay_due(entry, self._run.config, now):
            # The sender is told why.
            outcomes = [self._unheard(index) for index in unheard]
        if outcomes:
            entry.record(outcomes, entry.attempts)
        if until is not None and self._downs:
            probe = float(min(down.until for down in self._downs))
            # The probes count towards the end, and not for those whose server was reached.
            until = min(self._wait(entry, now), probe) if self._put_off else probe
        return until

    def _wait(self, entry: Entry, now: float) -> float:
        """When it is tried again, by its own attempts."""
        spool = self._run.config.spool
        return retry.wait_after(
            entry.attempts,
            now,
            retry_min=spool.retry_min,
            retry_max=spool.retry_max,
            jitter=retry.jitter(entry.envelope.queue_id, entry.attempts),
        )

    def _unheard(self, index: int) -> Outcome:
        """What stands for a recipient that waited for a destination, and of whom no server was asked."""
        return self._downs[-1].outcome(index)

    def _tell(self, entry: Entry, *, resumed: bool) -> bool:
        """Queue the reports that are due; False when there is a failure that can be told to nobody."""
        now = time.time()
        run = self._run
        told = True
        for report in bounce.reports(entry, run.config, now, resumed=resumed):
            if not bounce.queue_report(
                run.queue, entry, report, run.config, now, resumed=resumed, seen=run.seen
            ):
                told = False
                continue
            run.came_up(Place("new", report.queue_id))
            run.log.info(
                line(
                    entry.envelope.queue_id,
                    event=f"{report.event} report",
                    to=report.to or b"",
                    report=report.queue_id,
                )
            )
        return told

    def _log_outcome(self, entry: Entry, outcome: Outcome) -> None:
        addresses = {
            "from": entry.envelope.sender,
            "to": self._addresses[outcome.recipient],
        }
        self._run.log.info(
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


_NOTHING = Content(lambda: (), size=0, eight_bit=False)


class Job:
    """A message for one next hop, as ``delivery.remote`` delivers it; whoever gives it adds ``done`` and ``give_back``.

    ``recipients``  those of the next hop: index → qualified address
    ``room``        for the outcomes of so many there is room
    """

    __slots__ = ("_attempt", "content", "recipients", "room", "sender")

    def __init__(self, attempt: Attempt, sender: bytes, recipients: dict[int, bytes]) -> None:
        self._attempt = attempt
        self.sender = sender
        self.recipients = dict(recipients)
        self.room = 0
        self.content = _NOTHING

    def settle(self, verdicts: list[Verdict]) -> bool:
        """Record what became of these recipients; False when nothing more is to be sent of the message."""
        attempt = self._attempt
        with attempt._lock:
            attempt._guarded(self._settle, verdicts)
            return not attempt._over

    def fail(self, error: Exception) -> None:
        """Reading the message raised this."""
        attempt = self._attempt

        def act() -> None:
            if isinstance(error, (BrokenRecord, NoRoom, OSError, SpoolError, Stopped)):
                raise error
            self.give_up(attempt._bug(attempt._claimed(), error))

        with attempt._lock:
            attempt._guarded(act)

    def give_up(self, error: MinisendError) -> None:
        """This is what all who wait have to hear."""
        now = time.time()
        self._settle([policy.judge(index, error, at=now) for index in self.recipients])

    def _settle(self, verdicts: list[Verdict]) -> None:
        attempt = self._attempt
        for verdict in verdicts:
            del self.recipients[verdict.outcome.recipient]
        attempt._settle(verdicts)
        if self.recipients and not attempt._over:
            self.room = attempt._reserve(
                attempt._claimed(), self.recipients, self.room - len(verdicts)
            )


def _without_server(index: int, hop: NextHop, at: float) -> Verdict:
    """What a next hop is that nobody is asked about."""
    if hop.kind == DISCARD:
        outcome = Outcome(index, DELIVERED, "2.0.0", "discarded by route", at=at)
        return Verdict(outcome, policy.STOP, policy.RECIPIENT)
    return policy.judge(index, mx.Unroutable(hop.name, hop.status), at=at)


def qualified(entry: Entry, address: bytes, config: Config) -> bytes:
    """An address of the envelope with the domain that the first attempt used: the header has it, and a report will."""
    return qualify(address, entry.facts.mail_domain if entry.facts else config.mail_domain.encode())


def _is_delivered(outcome: Outcome) -> bool:
    return outcome.final and outcome.action != FAILED


def _said_before(verdict: Verdict, entry: Entry) -> bool:
    """A fault of this machine that is already the last thing on record."""
    earlier = entry.latest.get(verdict.outcome.recipient)
    return (
        verdict.scope == policy.LOCAL
        and earlier is not None
        and (earlier.action, earlier.reason) == (verdict.outcome.action, verdict.outcome.reason)
    )


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


def _content(entry: Entry, outgoing: Outgoing, octets: Callable[[], Iterable[bytes]]) -> Content:
    envelope = entry.envelope
    return Content(
        octets,
        size=outgoing.wire_size,
        eight_bit=outgoing.eight_bit,
        header=outgoing.header,
        long_line=outgoing.long_line,
        ret=envelope.ret,
        envid=envelope.envid,
        dsn={
            index: DsnRequest(recipient.notify, recipient.original)
            for index, recipient in enumerate(envelope.recipients)
            if recipient.notify or recipient.original
        },
    )
