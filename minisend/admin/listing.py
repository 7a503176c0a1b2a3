"""Reads the queue for those who show it: every message once, in one order, whatever state its file is in.

Takes no lock and changes nothing.  Names are listed at the start, a file is opened when its turn comes, and only its
envelope and its tail are read.  A flusher may be moving files meanwhile; a message that moved between the listing and
the look is looked for at the end, and none is shown twice.

A message that waits for a destination that is down was perhaps never attempted itself, or not since something else was
wrong: then the status file of the destination says why it waits (``minisend.delivery.destination``), see ``Reasons``.
Where there is none and the smarthost has a ``rate``, it was put off for that.

    queue name (Postfix)   state      marker (mailq)   it is
    active                 any        *                claimed by a process at this moment
    incoming               new                         accepted, never attempted
    deferred               deferred                    attempted, waiting
    hold                   hold       !                held
    failed                 failed     #                not to be tried again, or its file is broken

Source: Postfix showq(8), postqueue(1); the markers are those of its mailq, whose ``#`` is "forced to expire".
"""

import gc
import posix
import time

from minisend.admin.terminal import printable
from minisend.envelope import Outcome
from minisend.errors import SpoolError
from minisend.spool.entry import Entry, Place
from minisend.spool.record import BrokenRecord, UnknownVersion
from minisend.spool.store import Queue, claimed_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from minisend.config.sections import Config
    from minisend.delivery.destination import Down

STATES = ("new", "cur", "hold", "failed")
_WORDS = {"new": "new", "cur": "deferred", "hold": "hold", "failed": "failed"}
_QUEUE_NAMES = {"new": "incoming", "cur": "deferred", "hold": "hold", "failed": "failed"}
_MARKERS = {"active": "*", "hold": "!", "failed": "#"}


class Listed:
    """One message of the queue, as it was when it was looked at.

    ``entry``       None when its file cannot be read; then ``problem`` says why, else that is ""
    ``arrived``     seconds since the epoch; ``size`` octets: those of the file when ``entry`` is None
    ``state``       "new" | "deferred" | "hold" | "failed"
    ``queue_name``  Postfix's word, see the table above; ``marker`` "" or the character behind the queue id
    """

    __slots__ = (
        "_reasons",
        "arrived",
        "entry",
        "marker",
        "place",
        "problem",
        "queue_name",
        "size",
        "state",
    )

    def __init__(
        self,
        place: Place,
        entry: Entry | None,
        problem: str,
        arrived: float,
        size: int,
        active: bool,
        reasons: "Reasons | None" = None,
    ) -> None:
        self._reasons = reasons
        self.place = place
        self.entry = entry
        self.problem = problem
        self.arrived = arrived
        self.size = size
        self.state = _WORDS[place.state]
        self.queue_name = "active" if active else _QUEUE_NAMES[place.state]
        self.marker = _MARKERS.get(self.queue_name, "")

    @property
    def next_attempt(self) -> float | None:
        """When it is due, seconds since the epoch; None when nothing is planned."""
        if self.state in ("hold", "failed") or not self.entry:
            return None
        return self.place.due or self.arrived

    def open_recipients(self) -> "list[tuple[int, Outcome | None]]":
        """Index and last outcome of each recipient that is not served; of a failed message also the failed ones."""
        entry = self.entry
        if entry is None:
            return []
        indexes = entry.pending
        if self.state == "failed":
            indexes = sorted(indexes + entry.failed)
        return [(index, self.outcome(index)) for index in indexes]

    def outcome(self, index: int) -> Outcome | None:
        """The last outcome of this recipient; of one that was put off since, why its destination was not tried for it."""
        entry = self.entry
        if entry is None:
            return None
        outcome = entry.latest.get(index)
        if self.state != "deferred" or self._reasons is None:
            return outcome
        return self._reasons.of(entry, index) or outcome

    def address(self, index: int) -> str:
        """The recipient's address as it may be shown."""
        return printable(self.entry.envelope.recipients[index].address) if self.entry else ""

    @property
    def sender(self) -> str:
        """The reverse-path as it may be shown, ``MAILER-DAEMON`` for the null one."""
        return (printable(self.entry.envelope.sender) or "MAILER-DAEMON") if self.entry else ""


class Reasons:
    """Why a recipient waits that was never attempted, or not lately: what is known of its next hop.

    ``config``  gives the configuration, None where it cannot be had: then no reason is known

    Each status file is read once.  Nothing is loaded or read before there is such a recipient.
    """

    def __init__(self, config: "Callable[[], Config | None]") -> None:
        self._config = config
        self._get: Callable[[Entry, int], Down | None] | None = None
        self._newest: float | None = None

    def of(self, entry: Entry, index: int) -> Outcome | None:
        """What stands for the last outcome of this recipient, None where that itself does, or nothing is known."""
        outcome = entry.latest.get(index)
        if outcome is None:
            down = self._down(entry, index)
            return None if down is None else down.outcome(index)
        return None if outcome.final else self._since(entry, index, outcome)

    def _since(self, entry: Entry, index: int, outcome: Outcome) -> Outcome | None:
        """Where it waits for what was learnt later."""
        if self._newest is None:
            config = self._config()
            self._newest = _newest(config.spool.path) if config else 0.0
        if outcome.at >= self._newest:
            return None
        down = self._down(entry, index)
        # One that was put off is due at the next probe or before; what is due later has been tried, or has a wait of its own.
        # That the rate is used up is known of this moment only, and nothing that was learnt.
        if down is None or not outcome.at < down.at <= self._newest or entry.place.due > down.until:
            return None
        return down.outcome(index)

    def _down(self, entry: Entry, index: int) -> "Down | None":
        if self._get is None:
            self._get = self._getter()
        return self._get(entry, index)

    def _getter(self) -> "Callable[[Entry, int], Down | None]":
        config = self._config()
        if config is None:
            return lambda entry, index: None
        # Heavier than the rest of mailq, which is called every minute.
        from minisend.delivery.attempt import qualified
        from minisend.delivery.destination import Destinations
        from minisend.delivery.rate import rate_of
        from minisend.delivery.route import NextHop, common, route

        destinations = Destinations(config.spool.path)

        def of_hop(hop: NextHop) -> "Down | None":
            down = destinations.get(hop.name)
            if down is None and (rate := rate_of(hop, config)) is not None:
                return rate.why(time.time())
            return down

        everywhere = common(config)
        if everywhere is not None:
            down = of_hop(everywhere)
            return lambda entry, index: down
        known: dict[str, Down | None] = {}

        def get(entry: Entry, index: int) -> "Down | None":
            envelope = entry.envelope
            recipient = qualified(entry, envelope.recipients[index].address, config)
            hop = route(recipient, config, qualified(entry, envelope.sender, config))
            if hop.name not in known:
                known[hop.name] = of_hop(hop)
            return known[hop.name]

        return get


def _newest(spool: str) -> float:
    """When something was last learnt of a destination that is down, 0.0 when nothing is known of any."""
    from minisend.delivery.destination import Destinations

    return max((down.at for _, down in Destinations(spool).all()), default=0.0)


def open_queue(
    spool: str,
    *,
    strict_sync: bool = False,
    report: "Callable[[str, str], None] | None" = None,
) -> Queue | None:
    """The queue of this spool; None when there is none yet, which is an empty one.

    ``strict_sync``, ``report``  as of ``Queue``
    Raises SpoolError.
    """
    try:
        return Queue(spool, strict_sync=strict_sync, report=report)
    except SpoolError as exc:
        if _is_absent(exc):
            return None
        raise


def messages(
    queue: Queue, states: "tuple[str, ...]" = STATES, reasons: Reasons | None = None
) -> "Iterator[Listed]":
    """All messages in these states (directories); each is closed when the next one is asked for."""
    # Nothing here goes in circles: the collector would only look through the names, again and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield from _messages(queue, states, reasons)
    finally:
        if collecting:
            gc.enable()


def _messages(
    queue: Queue, states: "tuple[str, ...]", reasons: Reasons | None
) -> "Iterator[Listed]":
    claimed = claimed_files(queue)
    # On its way a message goes from the left to the right in ``states``: one that moves meanwhile is listed in both.
    names = [(state, _names(queue, state)) for state in states]
    gone: dict[str, None] = {}
    for state, lying in names:
        for name in lying:
            place = Place(state, name)
            listed = _look(queue, place, claimed, reasons)
            if listed is None:
                gone[place.queue_id] = None
                continue
            gone.pop(place.queue_id, None)
            try:
                yield listed
            finally:
                if listed.entry is not None:
                    listed.entry.close()
    for _, moved in named(queue, gone, reasons):
        if moved is not None and moved.place.state in states:
            yield moved


def named(
    queue: Queue, ids: "Iterable[str]", reasons: Reasons | None = None
) -> "Iterator[tuple[str, Listed | None]]":
    """The messages of these ids, each id once and in the order given; None where there is none.

    Each is closed when the next one is asked for.
    """
    claimed = claimed_files(queue)
    for queue_id, place in find(queue, ids).items():
        listed = _look(queue, place, claimed, reasons) if place else None
        if listed is None:
            # It may have moved since it was found, or while it was looked for.
            listed = message(queue, queue_id, reasons)
        try:
            yield queue_id, listed
        finally:
            if listed is not None and listed.entry is not None:
                listed.entry.close()


def message(queue: Queue, queue_id: str, reasons: Reasons | None = None) -> Listed | None:
    """The message of this id, None when there is none; its ``entry`` is the caller's to close."""
    for _ in range(2):
        place = queue.find(queue_id, *STATES)
        if place is None:
            return None
        listed = _look(queue, place, claimed_files(queue), reasons)
        if listed is not None:
            return listed
    return None


def find(queue: Queue, ids: "Iterable[str]") -> "dict[str, Place | None]":
    """Where the messages of these ids lie, None where there is none; ``cur`` is listed once, if at all."""
    found = {
        queue_id: queue.find(queue_id, "new", "hold", "failed") for queue_id in dict.fromkeys(ids)
    }
    if None in found.values():
        for place in queue.places("cur"):
            if found.get(place.queue_id, place) is None:
                found[place.queue_id] = place
    return found


def clock(when: float, now: float) -> str:
    """A time of the near future in local time: ``14:05`` today, else ``Nov 24 09:05``."""
    there = time.localtime(when)
    today = there[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M" if today else "%b %d %H:%M", there)


def places(queue: Queue, state: str) -> list[Place]:
    """What lies in one state (directory), in the order it is shown: by time where the name has one."""
    return [Place(state, name) for name in _names(queue, state)]


def _names(queue: Queue, state: str) -> list[str]:
    try:
        return sorted(queue.names(state))
    except SpoolError as exc:
        # The first submission is just making the directories.
        if _is_absent(exc):
            return []
        raise


def opened(queue: Queue, place: Place) -> tuple[Entry | None, str]:
    """The message that lies there, or why its file cannot be read as one; neither when it is gone."""
    try:
        return queue.read(place), ""
    except UnknownVersion as exc:
        return None, f"left alone: its format is version {exc}"
    except BrokenRecord as exc:
        return None, f"broken: {exc}"
    except OSError as exc:
        return None, f"cannot be read: {exc.strerror}"


def _look(
    queue: Queue, place: Place, claimed: set[tuple[int, int]], reasons: Reasons | None
) -> Listed | None:
    """The message that lies there, None when it is gone."""
    entry, problem = opened(queue, place)
    if entry is not None:
        active = bool(claimed) and entry.identity in claimed
        return Listed(place, entry, "", entry.envelope.arrived, entry.size, active, reasons)
    if not problem:
        return None
    try:
        there = posix.stat(place.name, dir_fd=queue.directory(place.state), follow_symlinks=False)
    except FileNotFoundError:
        return None
    active = (there.st_dev, there.st_ino) in claimed
    return Listed(place, None, problem, there.st_mtime, there.st_size, active)


def _is_absent(exc: SpoolError) -> bool:
    return isinstance(exc.__cause__, FileNotFoundError)
