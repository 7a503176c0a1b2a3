"""Lanes: who works at which message, over how many connections, in which turn.

A lane is a thread with one connection to one next hop.  A next hop begins with a single lane, which is its probe; once
a server has let it in there are up to ``_FIRST_LANES``, and one more for as many deliveries as there are lanes, up to
[delivery] connections_per_host.  A server that lets no further one in gets no more than it had.  One slow server holds
its own lanes and nobody else's.

    while all [delivery] connections are in use         a lane that has had its turn makes room for a next hop that has none
    a next hop lets nobody in                           that was the probe: whatever else this run has for it is put off to
                                                        the next one, and costs a claim and a rename
    it answers again                                    what was put off to that probe is due now, see ``recovered``
    the run is to end                                   each lane ends its transaction; who has not begun one, at once

Never touches a queue file (``delivery.attempt``) and never decides what is due (``delivery.flush``, ``delivery.serve``).
Source: Postfix's qmgr(8) and scheduler notes, for what a destination may take.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from minisend.delivery.attempt import Attempt, Run
from minisend.delivery.destination import PROBE_PAUSE, Down, after_failure
from minisend.delivery.policy import LOCAL, Verdict
from minisend.delivery.remote import Remote
from minisend.delivery.route import NextHop, common
from minisend.log import line
from minisend.spool.store import Place

_FIRST_LANES = 5
# Messages that a lane delivers before it makes room for a next hop that waits for a connection.
_TURN = 20
# Seconds that a connection is kept for a message that may come.
_IDLE = 2.0
# Messages that stay claimed until their turn comes; of more, only the names are kept.
_KEPT_OPEN = 50
# A server that lets no further lane in is asked for one less often by this.
_CAUTION = 0.25


class _Work:
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


class _Destination:
    """A next hop and its lanes.

    ``lanes``   threads; of them ``idle`` wait for work, ``open`` have been let in
    ``limit``   lanes that it may have now, at most ``most``; ``growth`` of a lane for as many deliveries as there are lanes
    ``failed``  the wave and the time (seconds) of the last failure in this run
    """

    def __init__(self, hop: NextHop, lock: threading.RLock, most: int, down: Down | None) -> None:
        self.hop = hop
        self.work: deque[_Work] = deque()
        self.changed = threading.Condition(lock)
        self.lanes = 0
        self.idle = 0
        self.open = 0
        self.limit = 1.0
        self.growth = 1.0
        self.most = most
        self.down = down
        self.failed: tuple[int, float] | None = None


class Lanes:
    """The lanes of one run.

    ``ready``      called, by any thread, when there is nothing left to do or ``recovered`` has grown
    ``recovered``  times of probes that somebody waits for whose destination has answered before: to be looked for in the queue
    """

    def __init__(self, run: Run, *, ready: Callable[[], None] = lambda: None) -> None:
        self._run = run
        self._ready = ready
        self._lock = threading.RLock()
        self._finished = threading.Condition(self._lock)
        self._destinations: dict[NextHop, _Destination] = {}
        self._threads: set[threading.Thread] = set()
        # next hops that have work and no lane, since there is no connection for them
        self._queue: deque[_Destination] = deque()
        self._in_hand: dict[str, int] = {}
        self._wave = 0
        self._closing = False
        self._died: BaseException | None = None
        self.stopping = False
        self.recovered: set[int] = set()
        self.done = 0
        self.added = 0

    def add(self, place: Place, *, came_up: bool = False) -> None:
        """Deliver this message, in its turn; one that is in hand already is left out.

        ``came_up``  a report that this run has queued
        """
        with self._lock:
            if self.stopping or place.queue_id in self._in_hand:
                return
            self._in_hand[place.queue_id] = 1
            self.added += 1
            work = _Work(place, None, came_up=came_up, wave=self._wave)
        hop = common(self._run.config)
        if hop is not None:
            self._give(hop, work)
        else:
            self._begin(work, None)
            self._release(work)

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
            if self.busy:
                self._finished.wait(seconds)
            return not self.busy

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
        while True:
            with self._lock:
                threads = list(self._threads)
            if not threads:
                break
            for thread in threads:
                thread.join()
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

    # -- work

    def _begin(self, work: _Work, here: _Destination | None) -> Attempt | None:
        """Open a message and give it to its next hops; the attempt when ``here`` is one of them."""
        attempt = Attempt(self._run, work.place, came_up=work.came_up)
        hops = attempt.begin(keep=here is not None or len(self._in_hand) <= _KEPT_OPEN)
        mine = None
        for hop in hops or ():
            if here is not None and hop == here.hop:
                mine = attempt
                continue
            with self._lock:
                self._in_hand[work.place.queue_id] += 1
            self._give(
                hop,
                _Work(work.place, attempt, came_up=work.came_up, wave=work.wave),
            )
        return mine

    def _give(self, hop: NextHop, work: _Work) -> None:
        with self._lock:
            destination = self._destinations.get(hop)
            if destination is None:
                settings = self._run.config.delivery
                destination = self._destinations[hop] = _Destination(
                    hop,
                    self._lock,
                    settings.connections_per_host,
                    self._run.destinations.get(hop.name),
                )
            destination.work.append(work)
            if destination.idle:
                destination.changed.notify()
            self._staff(destination)

    def _release(self, work: _Work) -> None:
        """One next hop of this message is done with."""
        with self._lock:
            left = self._in_hand[work.place.queue_id] - 1
            if left:
                self._in_hand[work.place.queue_id] = left
                return
            del self._in_hand[work.place.queue_id]
            self.done += 1
            if self._in_hand:
                return
            self._finished.notify_all()
        self._ready()

    # -- lanes

    def _staff(self, destination: _Destination) -> None:
        """Begin as many lanes as there is work for, as many as there may be."""
        most = self._run.config.delivery.connections
        while (
            len(destination.work) > destination.idle
            and destination.lanes < int(destination.limit)
            and not self.stopping
        ):
            if len(self._threads) >= most:
                if not destination.lanes and destination not in self._queue:
                    self._queue.append(destination)
                    # Whoever keeps a connection for nothing gives it up.
                    for other in self._destinations.values():
                        if other.idle:
                            other.changed.notify_all()
                return
            thread = threading.Thread(target=self._lane, args=(destination,), daemon=True)
            destination.lanes += 1
            self._threads.add(thread)
            thread.start()

    def _lane(self, destination: _Destination) -> None:
        lane = _Lane(self, self._run, destination)
        try:
            lane.work()
        except Exception as exc:  # noqa: BLE001 - the others go on, and the messages stay as they are
            import traceback

            trace = "".join(traceback.format_exception(exc))
            self._run.log.error(line("-", event="bug", trace=trace))
        except BaseException as exc:  # noqa: BLE001 - the run ends with it: ``close`` raises it
            with self._lock:
                self._died = self._died or exc
                self.stop()
        finally:
            with self._lock:
                destination.lanes -= 1
                destination.open -= lane.is_open
                self._threads.discard(threading.current_thread())
                while self._queue and len(self._threads) < self._run.config.delivery.connections:
                    self._staff(self._queue.popleft())
                self._staff(destination)

    def next_work(self, destination: _Destination, served: int) -> _Work | None:
        """The next message for a lane that has served so many; None when it is to end."""
        with self._lock:
            while not self.stopping:
                if self._queue and served >= _TURN:
                    return None
                if destination.work:
                    return destination.work.popleft()
                if self._closing or self._queue:
                    return None
                destination.idle += 1
                try:
                    came = destination.changed.wait(_IDLE)
                finally:
                    destination.idle -= 1
                if not came and not destination.work:
                    return None
            return None

    # -- what is known of a destination

    def let_in(self, destination: _Destination, lane: "_Lane") -> None:
        """A server of this destination is ready for a message."""
        down = None
        with self._lock:
            if not lane.is_open:
                lane.is_open = True
                destination.open += 1
            down, destination.down = destination.down, None
            destination.failed = None
            destination.limit = max(destination.limit, float(min(_FIRST_LANES, destination.most)))
            if down is not None:
                self.recovered.add(down.until)
            self._staff(destination)
        if down is not None:
            self._run.destinations.forget(destination.hop.name)
            self._run.log.info(
                line("-", event="destination up", relay=destination.hop.name, down=down.reason)
            )
            self._ready()

    def turned_away(self, destination: _Destination) -> None:
        """A further lane was not let in, while others are: no more than there are, for a while."""
        with self._lock:
            destination.limit = float(max(1, destination.open))
            destination.growth *= _CAUTION

    def delivered(self, destination: _Destination) -> None:
        """A message went through: room for a part of a further lane."""
        with self._lock:
            grown = destination.limit + destination.growth / destination.limit
            destination.limit = min(grown, float(destination.most))
            self._staff(destination)

    def put_off(self, destination: _Destination, work: _Work) -> Down | None:
        """Why this message waits without being attempted, if it does: a probe has failed since it was selected, or just now."""
        with self._lock:
            if destination.down is None or destination.failed is None:
                return None
            wave, at = destination.failed
            now = time.time()
            just_now = at <= now < min(at + PROBE_PAUSE, destination.down.until)
            return destination.down if work.wave <= wave or just_now else None

    def failed(self, destination: _Destination, lane: "_Lane", verdict: Verdict) -> Down | None:
        """No server let this lane in: what its message, and all others, wait for.  None while there are lanes that were let in."""
        spool = self._run.config.spool
        with self._lock:
            destination.open -= lane.is_open
            lane.is_open = False
            if destination.open:
                self.turned_away(destination)
                return None
            down = destination.down = after_failure(
                destination.down,
                verdict.outcome,
                local=verdict.scope == LOCAL,
                name=destination.hop.name,
                retry_min=spool.retry_min,
                retry_max=spool.retry_max,
            )
            # Of the waves so far: those that are added from now on may ask again.
            destination.failed = (self._wave, time.time())
            destination.limit = 1.0
        self._run.destinations.put(destination.hop.name, down)
        return down


class _Lane:
    """One thread with one connection."""

    def __init__(self, lanes: Lanes, run: Run, destination: _Destination) -> None:
        self._lanes = lanes
        self._run = run
        self._destination = destination
        self.is_open = False

    def work(self) -> None:
        """Serve the destination for as long as there is something to do."""
        lanes, run, destination = self._lanes, self._run, self._destination
        with Remote(
            destination.hop,
            run.config,
            run.resolver,
            opened=lambda: lanes.let_in(destination, self),
            while_waiting=self._make_durable,
            stopping=lambda: lanes.stopping,
        ) as remote:
            if destination.open and not remote.open_ahead():
                lanes.turned_away(destination)
                return
            served = 0
            while (work := lanes.next_work(destination, served)) is not None:
                try:
                    self._serve(work, remote)
                finally:
                    lanes._release(work)
                served += 1
            # Before the goodbye, which a server can draw out.
            self._make_durable()

    def _serve(self, work: _Work, remote: Remote) -> None:
        lanes, destination = self._lanes, self._destination
        attempt = work.attempt or lanes._begin(work, destination)
        if attempt is None:
            return
        down = None
        try:
            if attempt.enter(destination.hop):
                down = lanes.put_off(destination, work)
                if down is None:
                    remote.unreachable = None
                    attempt.deliver(destination.hop, remote)
                    if remote.unreachable is not None:
                        down = lanes.failed(destination, self, remote.unreachable)
                    else:
                        lanes.delivered(destination)
        finally:
            attempt.leave(destination.hop, down)

    def _make_durable(self) -> None:
        # Removals and moves must not wait for a server that takes minutes.  Where this fails it is for the end to
        # raise: here an attempt is under way, and perhaps has delivered to some.
        try:
            self._run.queue.sync()
        except OSError as exc:
            self._run.log.error(line("-", event="unsynced", reason=f"queue: {exc.strerror}"))
