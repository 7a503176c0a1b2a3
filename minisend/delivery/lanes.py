"""Lanes: who works at which message, over how many connections, in which turn.

A lane is a thread with one connection to one next hop.  A next hop begins with a single lane, which is its probe; once
a server has let it in that takes its time for an answer there are up to ``_FIRST_LANES``, and with deliveries more, up to
[delivery] connections_per_host, while ``delivery.pace`` says that they are of use.  A server that lets no further one in
gets no more than it had, and a lane that loses its connection and is not let in again ends: the messages are for those
that were.  One slow server holds its own lanes and nobody else's.

    while all [delivery] connections are in use         a lane that has had its turn makes room for a next hop that has none
    a next hop lets nobody in                           that was the probe: whatever else this run has for it is put off to
                                                        the next one, and costs a claim and a rename
    only the administrator can mend that                is told, once, see ``delivery.notice``
    it answers again                                    what was put off to that probe is due now, see ``recovered``
    the rate of a smarthost allows no message now       a lane waits up to a minute for its turn, unless a next hop has
                                                        no connection; then the message is put off, as above
    the run is to end                                   each lane ends its transaction; who has not begun one, at once

Never touches a queue file (``delivery.attempt``) and never decides what is due (``delivery.flush``, ``delivery.serve``).
Source: Postfix's qmgr(8) and scheduler notes, for what a destination may take.
"""

from __future__ import annotations

import time
from _thread import RLock, start_new_thread
from time import monotonic, process_time

from minisend.delivery.attempt import Attempt
from minisend.delivery.condition import Condition
from minisend.delivery.destination import PROBE_PAUSE, after_failure
from minisend.delivery.lane import Lane
from minisend.delivery.pace import Pace
from minisend.delivery.policy import LOCAL, SETTINGS, TOKEN
from minisend.delivery.rate import rate_of
from minisend.delivery.remote import Stopped
from minisend.delivery.route import SMARTHOST, common
from minisend.errors import SpoolError, SystemFault
from minisend.log import line
from minisend.spool.entry import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from minisend.delivery.attempt import Run
    from minisend.delivery.destination import Down
    from minisend.delivery.policy import Verdict
    from minisend.delivery.rate import Rate
    from minisend.delivery.route import NextHop
else:
    from _collections import deque

_FIRST_LANES = 5
# Messages that a lane delivers before it makes room for a next hop that waits for a connection.
_TURN = 20
# Seconds that a connection is kept for a message that may come.
_IDLE = 2.0
# Messages that stay claimed until their turn comes; of more, only the names are kept.
_KEPT_OPEN = 50
# After a server let no further lane in: what of a lane there is for as many deliveries as there are lanes.
_CAUTION = 0.25
# Deliveries by which it is measured what one costs.
_MEASURED = 8
# Seconds without a delivery after which those that wait get further lanes, and between two looks at that.
_STUCK = 0.1
_LOOK = 0.1
# Seconds that a lane waits for its next message where a rate allows no more now; what would wait longer is put off.
_PATIENCE = 60.0
# ... and the longest that it does not look for what must be done meanwhile.
_GLANCE = 1.0


class Work:
    """A message for one next hop.

    ``attempt``  None: nobody has opened it yet
    ``wave``     counts the times that the queue was looked at
    """

    __slots__ = ("attempt", "came_up", "place", "wave")

    def __init__(
        self,
        place: Place,
        attempt: Attempt | None,
        *,
        came_up: bool,
        wave: int,
    ) -> None:
        self.place = place
        self.attempt = attempt
        self.came_up = came_up
        self.wave = wave


class Destination:
    """A next hop and its lanes.

    ``begun``   lanes so far
    ``lanes``   threads; of them ``coming`` have not asked for work yet, ``idle`` wait for it, ``open`` have been let in
    ``limit``   lanes that it may have now, at most ``most``; each delivery adds ``growth`` times what ``pace`` says
    ``failed``  the wave and the time (seconds) of the last failure in this run
    ``done``    messages so far; ``seen``: as many as there were when somebody looked, and when that was
    """

    def __init__(
        self,
        hop: NextHop,
        lock: RLock,
        most: int,
        down: Down | None,
        rate: Rate | None,
    ) -> None:
        self.hop = hop
        self.work: deque[Work] = deque()
        self.changed = Condition(lock)
        self.lanes = 0
        self.coming = 0
        self.idle = 0
        self.open = 0
        self.begun = 0
        self.limit = 1.0
        self.growth = 1.0
        self.pace = Pace()
        self.done = 0
        self.seen = (0, 0.0)
        self.most = most
        self.down = down
        self.rate = rate
        self.failed: tuple[int, float] | None = None


class Lanes:
    """The lanes of one run.

    ``ready``      called, by any thread, when there is nothing left to do, ``recovered`` has grown or the lanes had to stop
    ``recovered``  times of probes that somebody waits for whose destination has answered before: to be looked for in the queue
    """

    def __init__(self, run: Run, *, ready: Callable[[], None] = lambda: None) -> None:
        self._run = run
        self._ready = ready
        self._lock = RLock()
        self._finished = Condition(self._lock)
        self._ended = Condition(self._lock)
        # who waits for a rate: woken when it is of no use any more
        self._no_patience = Condition(self._lock)
        self._destinations: dict[NextHop, Destination] = {}
        self._threads = 0
        # next hops that have work and no lane, since there is no connection for them
        self._queue: deque[Destination] = deque()
        # queue id → the name under which it was added, and how many are at work for it
        self._in_hand: dict[str, tuple[str, int]] = {}
        self._common = common(run.config)
        # connections, so threads, that there may be in all
        self._most = max(1, run.config.delivery.connections // run.processes)
        self._wave = 0
        self._closing = False
        self._died: BaseException | None = None
        # seconds of the processor for each of the last deliveries; measured from so many deliveries and seconds on
        self._work = 0.0
        self._measured_from = (0, process_time())
        self.stopping = False
        self.recovered: set[int] = set()
        self.done = 0
        self.added = 0

    def add(self, place: Place, *, came_up: bool = False) -> bool:
        """Deliver this message, in its turn; one that is in hand already is left out.

        ``came_up``  a report that this run has queued
        False when it is in hand under another name: it was moved meanwhile, and is to be added again.
        """
        with self._lock:
            if self.stopping:
                return True
            if place.queue_id in self._in_hand:
                return self._in_hand[place.queue_id][0] == place.name
            self._in_hand[place.queue_id] = (place.name, 1)
            self.added += 1
            work = Work(place, None, came_up=came_up, wave=self._wave)
        if self._common is not None:
            self._give(self._common, work)
        else:
            self.begin(work, None)
            self.release(work)
        return True

    def take_recovered(self) -> set[int]:
        """What has come to ``recovered`` since the last time."""
        with self._lock:
            times, self.recovered = self.recovered, set()
        return times

    def next_wave(self) -> None:
        """The queue is looked at anew: what is added from here on did not wait while a probe failed."""
        with self._lock:
            self._wave += 1

    @property
    def busy(self) -> bool:
        """There is something to do."""
        with self._lock:
            return bool(self._in_hand) and not self.stopping

    def wait(self, seconds: float) -> bool:
        """Wait until there is nothing left to do, at most so long; True when there is not."""
        with self._lock:
            until = monotonic() + seconds
            while self.busy and (left := until - monotonic()) > 0:
                self._finished.wait(min(left, _LOOK))
                self.look_after()
            return not self.busy

    def look_after(self) -> None:
        """To be called now and then: a message that takes long must not keep those behind it."""
        with self._lock:
            now = monotonic()
            for destination in self._destinations.values():
                done, at = destination.seen
                if not destination.work or not destination.open or destination.done > done:
                    destination.seen = (destination.done, now)
                elif now - at >= _STUCK:
                    self._begin_in_earnest(destination)

    def stop(self) -> None:
        """End with the transactions that are under way.  May be called by a signal handler of the main thread."""
        with self._lock:
            self.stopping = True
            self._wake()

    def close(self) -> None:
        """End all lanes once there is nothing left to do, or with the current transactions after ``stop``."""
        with self._lock:
            self._closing = True
            self._wake()
            while self._threads:
                self._ended.wait(_GLANCE)
        for destination in self._destinations.values():
            for work in destination.work:
                if work.attempt is not None:
                    work.attempt.give_up()
        if self._died is not None:
            raise self._died

    def _wake(self) -> None:
        for destination in self._destinations.values():
            destination.changed.notify_all()
        self._finished.notify_all()
        self._no_patience.notify_all()

    # -- work

    def begin(self, work: Work, here: Destination | None) -> Attempt | None:
        """Open a message and give it to its next hops; the attempt when ``here`` is one of them."""
        attempt = Attempt(self._run, work.place, came_up=work.came_up)
        hops = attempt.begin(keep=here is not None or len(self._in_hand) <= _KEPT_OPEN)
        mine = None
        for hop in hops or ():
            if here is not None and hop == here.hop:
                mine = attempt
                continue
            with self._lock:
                name, count = self._in_hand[work.place.queue_id]
                self._in_hand[work.place.queue_id] = (name, count + 1)
            self._give(
                hop,
                Work(work.place, attempt, came_up=work.came_up, wave=work.wave),
            )
        return mine

    def _give(self, hop: NextHop, work: Work) -> None:
        with self._lock:
            destination = self._destinations.get(hop)
            if destination is None:
                settings = self._run.config.delivery
                destination = self._destinations[hop] = Destination(
                    hop,
                    self._lock,
                    max(1, settings.connections_per_host // self._run.processes),
                    self._run.destinations.get(hop.name),
                    rate_of(hop, self._run.config),
                )
                if self._run.far:
                    destination.limit = float(min(_FIRST_LANES, destination.most))
            destination.work.append(work)
            if destination.idle:
                destination.changed.notify()
            self._staff(destination)

    def release(self, work: Work) -> None:
        """One next hop of this message is done with."""
        with self._lock:
            name, count = self._in_hand[work.place.queue_id]
            if count > 1:
                self._in_hand[work.place.queue_id] = (name, count - 1)
                return
            del self._in_hand[work.place.queue_id]
            self.done += 1
            if self._in_hand:
                return
            self._finished.notify_all()
        self._ready()

    # -- lanes

    def _staff(self, destination: Destination) -> None:
        """Begin as many lanes as there is work for, as many as there may be."""
        while (
            len(destination.work) > destination.idle + destination.coming
            and destination.lanes < int(destination.limit)
            and not self.stopping
        ):
            if self._threads >= self._most:
                if not destination.lanes and destination not in self._queue:
                    self._queue.append(destination)
                    # Whoever keeps a connection for nothing gives it up.
                    for other in self._destinations.values():
                        if other.idle:
                            other.changed.notify_all()
                    self._no_patience.notify_all()
                return
            try:
                start_new_thread(self._lane, (destination,))
            except RuntimeError as exc:
                # RLIMIT_NPROC, the limit of a container: there is room for as many as there are.
                self._most = self._threads
                if not self._most:
                    self._die(SystemFault(f"delivery: {exc}"))
                continue
            destination.lanes += 1
            destination.coming += 1
            self._threads += 1

    def _lane(self, destination: Destination) -> None:
        lane = Lane(self, self._run, destination)
        try:
            lane.work()
        except Stopped:
            pass  # while it said goodbye
        except Exception as exc:  # noqa: BLE001 - the others go on, and the messages stay as they are
            self.log_bug(exc)
            # What ends each new lane at its beginning must not begin them without end.
            self.turned_away(destination)
        except BaseException as exc:  # noqa: BLE001 - the run ends with it: ``close`` raises it
            self._die(exc)
        finally:
            with self._lock:
                destination.lanes -= 1
                destination.coming -= lane.is_coming
                destination.open -= lane.is_open
                if not destination.lanes:
                    # Nobody knows whether it still lets anybody in: the next lane is a probe again.
                    destination.limit = 1.0
                    if not destination.work and not (destination.down or destination.rate):
                        del self._destinations[destination.hop]
                self._threads -= 1
                while self._queue and self._threads < self._most:
                    self._staff(self._queue.popleft())
                self._staff(destination)
                self._ended.notify_all()

    def _die(self, exc: BaseException) -> None:
        with self._lock:
            self._died = self._died or exc
            self.stop()
        self._ready()

    def next_work(self, destination: Destination, lane: Lane, *, wait: bool = True) -> Work | None:
        """The next message for a lane; None when it is to end, or, without ``wait``, to be idle."""
        with self._lock:
            destination.coming -= lane.is_coming
            lane.is_coming = False
            while not self.stopping:
                if self._queue and lane.served >= _TURN:
                    return None
                if destination.work:
                    return destination.work.popleft()
                if self._closing or self._queue or not wait:
                    return None
                destination.idle += 1
                try:
                    came = destination.changed.wait(_IDLE)
                finally:
                    destination.idle -= 1
                if not came and not destination.work:
                    return None
            return None

    def log_bug(self, exc: Exception) -> None:
        """What nobody has foreseen, with its traceback."""
        import traceback

        trace = "".join(traceback.format_exception(exc))
        self._run.log.error(line("-", event="bug", trace=trace))

    def take_back(self, destination: Destination, work: Work) -> None:
        """A lane has taken this and cannot deliver it: it is the next one's."""
        with self._lock:
            destination.work.appendleft(work)
            if destination.idle:
                destination.changed.notify()

    # -- what is known of a destination

    def let_in(self, destination: Destination, lane: Lane, host: str, quickest: float) -> None:
        """A server of this destination, ``host``, is ready for a message; ``quickest``: seconds that an answer took."""
        pace = destination.pace
        down = None
        first = False
        with self._lock:
            if not lane.is_open:
                lane.is_open = True
                destination.open += 1
                first = destination.open == 1
                if first:
                    now = monotonic()
                    pace.let_in(now, quickest)
                    destination.seen = (destination.done, now)
                    if pace.is_far:
                        self._begin_in_earnest(destination)
            down, destination.down = destination.down, None
            destination.failed = None
            if down is not None:
                self.recovered.add(down.until)
            self._staff(destination)
        self._run.let_in(pace.is_far)
        if destination.hop.kind == SMARTHOST:
            if first:
                self._run.destinations.forget_told(destination.hop.name)
            self._run.destinations.forget_told(_host_of(destination.hop, host))
        if down is not None:
            self._run.destinations.forget(destination.hop.name)
            self._run.log.info(
                line("-", event="destination up", relay=destination.hop.name, down=down.reason)
            )
            self._ready()

    def _begin_in_earnest(self, destination: Destination) -> None:
        first = float(min(_FIRST_LANES, destination.most))
        if destination.limit < first and destination.growth == 1.0:
            destination.limit = first
            self._staff(destination)

    def turned_away(self, destination: Destination) -> None:
        """A further lane was not let in, while others are: no more than there are, for a while."""
        with self._lock:
            destination.limit = float(max(1, destination.open))
            destination.growth = _CAUTION / destination.limit

    def delivered(self, destination: Destination) -> None:
        """A message went through: perhaps there is room for a part of a further lane."""
        with self._lock:
            destination.done += 1
            if destination.limit >= destination.most:
                return
            self._measure()
            more = destination.pace.more(monotonic(), destination.open, self._work)
            if more:
                grown = destination.limit + destination.growth * more
                destination.limit = min(grown, float(destination.most))
                self._staff(destination)

    def _measure(self) -> None:
        since, used_then = self._measured_from
        if self.done - since >= _MEASURED:
            used = process_time()
            self._work = (used - used_then) / (self.done - since)
            self._measured_from = (self.done, used)

    def put_off(self, destination: Destination, work: Work) -> Down | None:
        """Why this message waits without being attempted, if it does: a probe has failed since it was selected, or just now."""
        with self._lock:
            if destination.down is None or destination.failed is None:
                return None
            wave, at = destination.failed
            now = time.time()
            just_now = at <= now < min(at + PROBE_PAUSE, destination.down.until)
            return destination.down if work.wave <= wave or just_now else None

    def held_back(self, destination: Destination, meanwhile: Callable[[], None]) -> Down | None:
        """Wait until the rate of this destination allows a message; why it does not, when that takes too long.

        ``meanwhile``  is called about each second.  Raises Stopped when the run is to end.
        """
        rate = destination.rate
        if rate is None:
            return None
        patience = time.monotonic() + _PATIENCE
        while (free := rate.take(now := time.time())) > now:
            meanwhile()
            with self._lock:
                if self.stopping:
                    raise Stopped
                # Looked at after what was done meanwhile, which may have taken long.
                now = time.time()
                if self._queue or free - now > patience - time.monotonic():
                    break
                self._no_patience.wait(min(max(free - now, 0.0), _GLANCE))
        else:
            return None
        down = rate.put_off(now)
        # One further away would be taken for the work of a clock that was stepped.
        latest = int(now + self._run.config.spool.retry_max)
        if not rate.told:
            rate.told = True
            self._run.log.info(
                line("-", event="rate limit", relay=destination.hop.name, reason=down.reason)
            )
        return down.but(until=min(down.until, latest))

    def others_are_there(self, destination: Destination, lane: Lane) -> bool:
        """This lane was not let in again.  Whether there are others, in or about to be: the messages are for those.

        The last of them is the probe that says whether the destination is down.
        """
        with self._lock:
            destination.open -= lane.is_open
            lane.is_open = False
            if destination.lanes > 1:
                self.turned_away(destination)
            return destination.lanes > 1

    def failed(self, destination: Destination, lane: Lane, verdict: Verdict) -> Down | None:
        """No server let this lane in: what its message, and all others, wait for.  None where there are other lanes."""
        spool = self._run.config.spool
        with self._lock:
            if self.others_are_there(destination, lane):
                return None
            down = destination.down = after_failure(
                destination.down,
                verdict.outcome,
                local=verdict.scope == LOCAL,
                settings=verdict.cause in (SETTINGS, TOKEN),
                name=destination.hop.name,
                retry_min=spool.retry_min,
                retry_max=spool.retry_max,
            )
            # Of the waves so far: those that are added from now on may ask again.
            destination.failed = (self._wave, time.time())
            destination.limit = 1.0
        self._run.destinations.put(destination.hop.name, down)
        if verdict.cause and destination.hop.kind == SMARTHOST:
            self._tell_admin(destination.hop, verdict, destination.hop.name)
        return down

    def refused(self, destination: Destination, verdict: Verdict) -> None:
        """One of its servers does not let us in, until the administrator acts; another one did."""
        hop = destination.hop
        if hop.kind == SMARTHOST:
            self._tell_admin(hop, verdict, _host_of(hop, verdict.outcome.remote_mta))

    def _tell_admin(self, hop: NextHop, verdict: Verdict, name: str) -> None:
        """What nobody else can mend.  ``name``: of the next hop, or of one of its hosts; each is told of by itself."""
        from minisend.delivery import notice

        run = self._run
        path = run.destinations.told(name)
        try:
            told = notice.tell(run.queue, run.config, hop, path, verdict.cause, verdict.outcome)
        except (OSError, SpoolError) as exc:
            # It is tried again with the next probe.
            why = exc.strerror if isinstance(exc, OSError) else str(exc)
            run.log.error(line("-", event="no notice", relay=hop.name, reason=f"queue: {why}"))
            return
        if told is not None:
            run.log.warning(
                line(
                    "-",
                    event="notice",
                    relay=hop.name,
                    reason=verdict.outcome.reason,
                    to=told.recipients[0].address,
                    report=told.queue_id,
                )
            )
            run.came_up(Place("new", told.queue_id))


def _host_of(hop: NextHop, host: str) -> str:
    """The name under which is kept what was told of one host; of no next hop the name has a space."""
    return f"{hop.name} {host}"
