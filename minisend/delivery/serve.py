"""The service form: delivers what comes and what falls due, until it is told to stop or has nothing to do for long enough.

    woken by                                looks at
    the trigger, octet "n": a submission    queue/new
    the trigger, any other octet            the whole queue
    the next due time                       what it knows to be due
    every ``_LOOK_AHEAD`` seconds           the whole queue

Between two looks it knows the names that fall due soon, so a wake-up does not list 100,000 files.  What another
process puts off or takes away it finds out by the claim.

Before an idle exit the FIFO is closed, then the queue is looked at once more: who came before found a reader, whoever comes
after finds none and starts a flusher.  Several may serve one queue: a poke is read by one of them.

Source: DESIGN section 3.
"""

import heapq
import time

from minisend.config.sections import Config
from minisend.delivery.attempt import Summary
from minisend.delivery.flush import Stop, add_recovered, new_run, open_queue
from minisend.delivery.lanes import Lanes
from minisend.delivery.pickup import Pickup
from minisend.errors import SpoolError
from minisend.log import Log, line
from minisend.spool.entry import Place
from minisend.spool.store import Queue
from minisend.spool.trigger import EVERYTHING, SUBMISSION, Trigger, poke

_LOOK_AHEAD = 300.0
# While there is something to do: changes of names must not wait longer for their fsync.
_TICK = 0.5


def serve(
    config: Config,
    *,
    log: Log,
    stop: Stop,
    exit_idle: float | None = None,
    ingest: bool = True,
) -> Summary:
    """Serve the queue.

    ``ingest``     bring in what is in the drop, too
    ``exit_idle``  end after so many seconds without anything to do; None: only when asked to
    Raises SpoolError when the queue cannot be read or its changes not be made durable.
    """
    summary = Summary()
    path = config.spool.path
    try:
        # It is made where it is missing: a submission that comes before any other finds us by the FIFO in it.
        with open_queue(config, summary, log) as queue:
            log.info(line("-", event="serving", spool=path))
            while _Service(config, queue, log, summary, stop, ingest).work(exit_idle):
                pass
            queue.sync()
            log.info(line("-", event="stopped" if stop.asked else "idle", spool=path))
    except OSError as exc:
        raise SpoolError(f"{exc.filename or path + '/queue'}: {exc.strerror}") from exc
    return summary


class _Service:
    """One time from opening the FIFO to closing it."""

    def __init__(
        self,
        config: Config,
        queue: Queue,
        log: Log,
        summary: Summary,
        stop: Stop,
        ingest: bool,
    ) -> None:
        self._config = config
        self._queue = queue
        self._stop = stop
        self._trigger = Trigger(config.spool.path)
        self._pickup = Pickup(config, log, ingest=ingest)
        run = new_run(config, queue, summary, log)
        self._destinations = run.destinations
        self._lanes = Lanes(run, ready=self._trigger.wake)
        run.came_up = lambda place: self._lanes.add(place, came_up=True)
        run.deferred = self._deferred
        # (due, state, name): what falls due before the next look at the whole queue
        self._soon: list[tuple[float, str, str]] = []
        self._look_at = 0.0
        # Names that have been given to the lanes: what stays under its name cannot be delivered, or is another process's.
        self._given: set[str] = set()

    def work(self, exit_idle: float | None) -> bool:
        """Serve; True when something came at the moment of an idle exit."""
        self._stop.wake = self._wake
        lanes = self._lanes
        idle_since = time.monotonic()
        try:
            octets = EVERYTHING
            while not (self._stop.asked or lanes.stopping):
                now = time.time()
                added = lanes.added
                if self._pickup.look():
                    octets += SUBMISSION
                # The clock may have been set back.
                if (
                    octets.strip(SUBMISSION)
                    or not self._look_at - _LOOK_AHEAD <= now < self._look_at
                ):
                    self._look(now)
                elif octets:
                    lanes.next_wave()
                    for place in self._queue.places("new"):
                        self._give(place, now)
                self._give_due(now)
                add_recovered(lanes, self._queue)
                self._queue.settle()
                wait = min([self._look_at, *(due for due, _, _ in self._soon[:1])]) - now
                wait = min(wait, self._pickup.wait)
                lanes.look_after()
                if lanes.busy or lanes.added > added:
                    idle_since = time.monotonic()
                    wait = min(wait, _TICK)
                if exit_idle is not None:
                    left = idle_since + exit_idle - time.monotonic()
                    if left <= 0 and not lanes.busy:
                        break
                    wait = min(wait, max(left, _TICK if lanes.busy else 0.0))
                octets = self._trigger.wait(wait)
            unread = self._trigger.leave()
        except BaseException:
            lanes.stop()
            raise
        finally:
            try:
                lanes.close()
            finally:
                self._stop.wake = lambda: None
                self._trigger.close()
        if self._stop.asked:
            # Of what is left here, and of a poke that was read and not acted on, another one that serves the queue hears.
            poke(self._config.spool.path, EVERYTHING)
            return False
        self._pickup.look()
        due = self._queue.due(time.time(), self._config.spool.retry_max)
        return unread != b"" or any(place.name not in self._given for place in due)

    def _wake(self) -> None:
        self._lanes.stop()
        self._trigger.wake()

    def _look(self, now: float) -> None:
        """Look at the whole queue."""
        spool = self._config.spool
        self._look_at = now + _LOOK_AHEAD
        self._queue.sweep(now, tombstones=not self._config.served.drop)
        self._destinations.sweep(now - spool.lifetime)
        self._lanes.next_wave()
        due: list[Place] = []
        # Before the listing: what the lanes put off meanwhile may be missing in it.
        soon = self._soon = []
        self._given.clear()
        for place in self._queue.places("new", "cur"):
            if place.due <= now or place.due > now + spool.retry_max:
                due.append(place)
            elif place.due <= self._look_at:
                heapq.heappush(soon, (place.due, place.state, place.name))
        for place in sorted(due, key=lambda place: (place.due, place.queue_id)):
            self._give(place, now)

    def _give_due(self, now: float) -> None:
        if self._soon and self._soon[0][0] <= now:
            self._lanes.next_wave()
            while self._soon and self._soon[0][0] <= now:
                _, state, name = heapq.heappop(self._soon)
                self._give(Place(state, name), now)

    def _give(self, place: Place, now: float) -> None:
        if self._lanes.add(place):
            self._given.add(place.name)
        else:
            heapq.heappush(self._soon, (now + _TICK, place.state, place.name))

    def _deferred(self, place: Place) -> None:
        """Called by the lanes: a message waits from now on."""
        if place.due <= self._look_at:
            heapq.heappush(self._soon, (place.due, place.state, place.name))
            self._trigger.wake()
