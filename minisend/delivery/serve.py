"""The service form: delivers what comes and what falls due, until it is told to stop or has nothing to do for long enough.

    woken by                                looks at
    the trigger, octet "n": a submission    queue/new
    the trigger, any other octet            the whole queue
    the next due time                       what it knows to be due
    every ``_LOOK_AHEAD`` seconds           the whole queue

Between two looks it knows the names that fall due soon, so a wake-up does not list 100,000 files.  What another
process puts off or takes away it finds out by the claim.

Before an idle exit the FIFO is closed, then the queue is looked at once more: who came before found a reader, whoever comes
after finds none and starts a flusher.  Source: DESIGN section 3.
"""

import heapq
import os
import select
import time

from minisend.config import Config
from minisend.delivery.attempt import Summary
from minisend.delivery.flush import Stop, add_recovered, new_run, open_queue
from minisend.delivery.lanes import Lanes
from minisend.errors import SpoolError
from minisend.log import Log, line
from minisend.spool.place import open_queue as make_queue
from minisend.spool.store import Place, Queue
from minisend.spool.trigger import Trigger

_LOOK_AHEAD = 300.0
# While there is something to do: changes of names must not wait longer for their fsync.
_TICK = 0.5


def serve(config: Config, *, log: Log, stop: Stop, exit_idle: float | None = None) -> Summary:
    """Serve the queue.

    ``exit_idle``  end after so many seconds without anything to do; None: only when asked to
    Raises SpoolError when the queue cannot be read or its changes not be made durable.
    """
    summary = Summary()
    path = config.spool.path
    try:
        # A submission that comes before any other finds us by the FIFO in it.
        os.close(make_queue(path, create=True))
        with open_queue(config, summary, log) as queue:
            log.info(line("-", event="serving", spool=path))
            while _Service(config, queue, log, summary, stop).work(exit_idle):
                pass
            queue.sync()
            log.info(line("-", event="stopped" if stop.asked else "idle", spool=path))
    except OSError as exc:
        raise SpoolError(f"{exc.filename or path + '/queue'}: {exc.strerror}") from exc
    return summary


class _Service:
    """One time from opening the FIFO to closing it."""

    def __init__(
        self, config: Config, queue: Queue, log: Log, summary: Summary, stop: Stop
    ) -> None:
        self._config = config
        self._queue = queue
        self._stop = stop
        self._trigger = Trigger(config.spool.path)
        run = new_run(config, queue, summary, log)
        self._lanes = Lanes(run, ready=self._trigger.wake)
        run.came_up = lambda place: self._lanes.add(place, came_up=True)
        run.deferred = self._deferred
        # (due, name): what falls due before the next look at the whole queue
        self._soon: list[tuple[float, str]] = []
        self._look_at = 0.0

    def work(self, exit_idle: float | None) -> bool:
        """Serve; True when something came at the moment of an idle exit."""
        self._stop.wake = self._wake
        lanes = self._lanes
        poll = select.poll()
        poll.register(self._trigger, select.POLLIN)
        idle_since = time.monotonic()
        try:
            octets = b"a"
            while not self._stop.asked:
                now = time.time()
                if octets.strip(b"n\0") or now >= self._look_at:
                    self._look(now)
                elif b"n" in octets:
                    lanes.next_wave()
                    for place in self._queue.places("new"):
                        lanes.add(place)
                self._add_due(now)
                add_recovered(lanes, self._queue)
                self._queue.settle()
                wait = min([self._look_at, *(due for due, _ in self._soon[:1])]) - now
                if lanes.busy:
                    idle_since = time.monotonic()
                    wait = min(wait, _TICK)
                elif exit_idle is not None:
                    left = idle_since + exit_idle - time.monotonic()
                    if left <= 0:
                        break
                    wait = min(wait, left)
                poll.poll(max(0, int(wait * 1000) + 1))
                octets = self._trigger.take()
        except BaseException:
            lanes.stop()
            raise
        finally:
            self._stop.wake = lambda: None
            self._trigger.close()
            lanes.close()
        return not self._stop.asked and bool(
            self._queue.due(time.time(), self._config.spool.retry_max)
        )

    def _wake(self) -> None:
        self._lanes.stop()
        self._trigger.wake()

    def _look(self, now: float) -> None:
        """Look at the whole queue."""
        retry_max = self._config.spool.retry_max
        self._look_at = now + _LOOK_AHEAD
        self._queue.sweep(now)
        self._lanes.next_wave()
        due: list[Place] = []
        soon: list[tuple[float, str]] = []
        for place in self._queue.places("new", "cur"):
            if place.due <= now or place.due > now + retry_max:
                due.append(place)
            elif place.due <= self._look_at:
                soon.append((place.due, place.name))
        heapq.heapify(soon)
        self._soon = soon
        for place in sorted(due, key=lambda place: (place.due, place.queue_id)):
            self._lanes.add(place)

    def _add_due(self, now: float) -> None:
        if self._soon and self._soon[0][0] <= now:
            self._lanes.next_wave()
            while self._soon and self._soon[0][0] <= now:
                self._lanes.add(Place("cur", heapq.heappop(self._soon)[1]))

    def _deferred(self, place: Place) -> None:
        """Called by the lanes: a message waits from now on."""
        if place.due <= self._look_at:
            heapq.heappush(self._soon, (place.due, place.name))
            self._trigger.wake()
