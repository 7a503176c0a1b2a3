"""The flush: which messages are delivered now, and once; how it ends.

Selects; who works at what is ``delivery.lanes``'s, and what happens to a message ``delivery.attempt``'s.
"""

from __future__ import annotations

import posix
import time

from minisend.address import AddressError, split, to_ascii
from minisend.config.sections import Config
from minisend.delivery import core_dump, mx, slots, workers
from minisend.delivery.attempt import Run, Summary, qualified
from minisend.delivery.destination import Destinations
from minisend.delivery.flood import Flood
from minisend.delivery.lanes import Lanes
from minisend.delivery.pickup import Pickup
from minisend.errors import SpoolError, UsageError
from minisend.log import Log, line
from minisend.spool.entry import Place
from minisend.spool.record import BrokenRecord, UnknownVersion
from minisend.spool.store import Queue
from minisend.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Seconds between two looks at how far it is.
_GLANCE = 0.1


class Selection(Value):
    """Which messages: what is due, or ``everything``, or ``ids``; of those only the ones that match the rest.

    ``domain``       of one of the waiting recipients
    ``id_part``, ``sender_part``, ``recipient_part``  octets that occur in it, in any case (sendmail -qI, -qS, -qR)
    """

    __slots__ = ("domain", "everything", "id_part", "ids", "recipient_part", "sender_part")

    def __init__(
        self,
        everything: bool = False,
        ids: tuple[str, ...] = (),
        domain: bytes = b"",
        id_part: bytes = b"",
        sender_part: bytes = b"",
        recipient_part: bytes = b"",
    ) -> None:
        self.everything = everything
        self.ids = ids
        self.domain = domain
        self.id_part = id_part
        self.sender_part = sender_part
        self.recipient_part = recipient_part


class Stop:
    """A request to end, from a signal handler: ``ask``."""

    def __init__(self) -> None:
        self.asked = False
        self.wake: Callable[[], None] = lambda: None
        self.also: Callable[[], None] = lambda: None

    def ask(self) -> None:
        """End as soon as no message is in doubt."""
        self.asked = True
        self.wake()
        self.also()


def flush(
    config: Config,
    selection: Selection,
    *,
    log: Log,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Stop | None = None,
    processes: int = 1,
    trace: Callable[[str], None] | None = None,
) -> Summary:
    """Attempt the selected messages once, and the reports that come of it.

    ``progress``   called with (messages done, messages selected)
    ``processes``  that may share the work if there is much of it; no thread of ours may exist then
    ``trace``      gets each line of each dialogue, without secrets
    Raises SpoolError when the queue cannot be read at all, or its changes not be made durable; UsageError for an id
    that is not in the queue.
    """
    summary = Summary()
    Pickup(config, log).run()
    if not _exists(f"{config.spool.path}/queue"):
        return summary
    stop = stop or Stop()
    missing: list[str] = []

    def deliver(
        share: Iterable[Place],
        summary: Summary,
        far: bool,
        progress: Callable[[int, int], None],
        *,
        let_in: Callable[[bool], None] = lambda far: None,
    ) -> None:
        with open_queue(config, summary, log) as queue:
            run = new_run(config, queue, summary, log)
            run.processes = len(parts)
            run.trace = trace
            run.let_in = let_in
            run.far = far
            lanes = Lanes(run)
            run.came_up = lambda place: lanes.add(place, came_up=True)
            stop.wake = lanes.stop
            if stop.asked:
                lanes.stop()
            try:
                for place in share:
                    if lanes.stopping:
                        break
                    if _selected(place, selection, queue, config):
                        lanes.add(place)
                _work_off(lanes, queue, progress)
            except BaseException:
                lanes.stop()
                raise
            finally:
                lanes.close()
            summary.stopped |= lanes.stopping
            queue.sync()

    try:
        with open_queue(config, summary, log) as queue:
            now = time.time()
            queue.sweep(now, tombstones=not config.served.drop)
            places, missing = _select(queue, config, selection)
            Destinations(config.spool.path).sweep(now - config.spool.lifetime)
            parts = workers.shares(places, processes, queue.size)
        if len(parts) == 1:
            deliver(places, summary, False, progress)
        else:
            further = workers.Workers(parts[1:], deliver, log, stop.ask)
            stop.also = further.stop
            mine = [*parts[0], *further.left]
            ours = (0, len(mine))

            def show() -> None:
                done, total = further.progress
                progress(ours[0] + done, ours[1] + total)

            def mine_are(done: int, total: int) -> None:
                nonlocal ours
                ours = (done, total)
                show()

            try:
                deliver(mine, summary, False, mine_are, let_in=further.begin)
            finally:
                begun = further.finish(summary, show)
                stop.also = lambda: None
            if begun:
                show()
            elif not summary.stopped:
                # Nobody has let us in: the others are put off, which costs little.
                del parts[1:]
                deliver(places, summary, False, progress)
    except OSError as exc:
        raise SpoolError(f"{config.spool.path}/queue: {exc.strerror}") from exc
    if missing:
        raise UsageError(f"{', '.join(missing)}: no such message waits in the queue")
    return summary


def open_queue(config: Config, summary: Summary, log: Log) -> Queue:
    """The queue of a run, whose broken files are counted and logged.  Raises SpoolError.

    Made whole where the first submission is just making it.
    """

    def report(queue_id: str, text: str) -> None:
        summary.broken += 1
        log.error(line(queue_id, event="broken", reason=text))

    strict = config.spool.sync == "each"
    return Queue(config.spool.path, strict_sync=strict, report=report, create=True)


def _exists(path: str) -> bool:
    try:
        posix.lstat(path)
    except OSError:
        return False
    return True


def new_run(config: Config, queue: Queue, summary: Summary, log: Log) -> Run:
    """What the attempts of one run share, which read secrets: from here on this process leaves no core."""
    core_dump.forbid()
    smarthost = config.smarthost
    if config.routes or smarthost is None or smarthost.srv or smarthost.username:
        # dnspython and subprocess import it.  By a lane it would be taken for the main thread's, and fail at the end.
        import threading  # noqa: F401

        from minisend.delivery import site_packages

        site_packages.reach()
    return Run(
        config,
        log,
        queue,
        Destinations(config.spool.path),
        mx.Resolver(mx.dns_query(config.dns)),
        Flood(config.spool.path, config.limits.flood),
        summary,
    )


def add_recovered(lanes: Lanes, queue: Queue) -> None:
    """What was put off to the next probe of a destination that has answered: its time is the probe's."""
    times = lanes.take_recovered()
    if times:
        for place in queue.places("cur"):
            if place.due in times:
                lanes.add(place)


def _work_off(lanes: Lanes, queue: Queue, progress: Callable[[int, int], None]) -> None:
    progress(lanes.done, lanes.added)
    while True:
        finished = lanes.wait(_GLANCE)
        queue.settle()
        if lanes.recovered and not lanes.stopping:
            add_recovered(lanes, queue)
        elif finished:
            break
        progress(lanes.done, lanes.added)
    progress(lanes.done, lanes.added)


def background_flush(config: Config, log: Log, stop: Stop | None = None) -> int:
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
            summary = flush(config, Selection(), log=log, stop=stop, processes=workers.processes())
        finally:
            posix.close(slot)
        # A message that came while the slots were taken found no flusher of its own to serve it; one that its
        # submission still held when it was listed was skipped, and may be free now.
        with Queue(config.spool.path) as queue:
            waiting = [place.queue_id in seen for place in queue.places("new")]
        if summary.stopped:
            return 0
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


def _selected(place: Place, selection: Selection, queue: Queue, config: Config) -> bool:
    """Whether the message matches.  Looked at without a claim: that would keep it from another flusher."""
    if not (selection.domain or selection.recipient_part or selection.sender_part):
        return True
    try:
        entry = queue.read(place)
    except (BrokenRecord, UnknownVersion, OSError):
        return True  # for the claim to find out and report
    if entry is None:
        return False
    with entry:
        if selection.sender_part.lower() not in entry.envelope.sender.lower():
            return False
        recipients = entry.envelope.recipients
        waiting = [qualified(entry, recipients[i].address, config) for i in entry.pending]
    if selection.domain:
        domain = _normal(selection.domain)
        waiting = [address for address in waiting if _normal(split(address)[1]) == domain]
    part = selection.recipient_part.lower()
    return any(part in address.lower() for address in waiting)
