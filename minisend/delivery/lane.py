"""A lane: one thread with one connection to one next hop, and the messages that it has in hand.

Takes one message after the other from ``delivery.lanes``, opens it, and gives it to ``delivery.remote`` to be sent;
what comes of it goes to the message (``delivery.attempt``) and to the lanes.  Decides neither who works at which message
nor how many lanes there are.
"""

from __future__ import annotations

from minisend.delivery.remote import Remote, Stopped
from minisend.log import line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from minisend.delivery.attempt import Attempt, Run
    from minisend.delivery.destination import Down
    from minisend.delivery.lanes import Destination, Lanes, Work
    from minisend.delivery.policy import Verdict
    from minisend.delivery.remote import Content


class Lane:
    """What the thread does.

    ``served``          messages so far
    ``is_coming``       it has not asked for work yet
    ``is_open``         a server has let it in
    ``is_turned_away``  no server has let it in again, and others go on
    """

    def __init__(self, lanes: Lanes, run: Run, destination: Destination) -> None:
        self._lanes = lanes
        self._run = run
        self._destination = destination
        self.served = 0
        destination.begun += 1
        self._number = destination.begun
        self._in_hand: dict[Carried, None] = {}
        self.is_open = False
        self.is_coming = True
        self.is_turned_away = False

    def work(self) -> None:
        """Serve the destination for as long as there is something to do."""
        lanes, run, destination = self._lanes, self._run, self._destination
        with Remote(
            destination.hop,
            run.config,
            run.resolver,
            opened=lambda host, quickest: lanes.let_in(destination, self, host, quickest),
            refused=lambda verdict: lanes.refused(destination, verdict),
            trace=self._trace if run.trace is not None else None,
            while_waiting=self._make_durable,
            stopping=lambda: lanes.stopping,
            one_by_one=run.one_by_one,
        ) as remote:
            if destination.open and not remote.open_ahead():
                lanes.turned_away(destination)
                return
            try:
                while (work := lanes.next_work(destination, self)) is not None:
                    if destination.open > self.is_open and not remote.open_ahead():
                        # Others are in, and it would put off whatever message it takes.
                        lanes.take_back(destination, work)
                        lanes.turned_away(destination)
                        break
                    carried = self._take(work)
                    if carried is not None:
                        remote.serve(carried, self._more)
                    if self.is_turned_away:
                        break
            except Stopped:
                pass
            finally:
                for carried in list(self._in_hand):
                    carried.drop()
            # Before the goodbye, which a server can draw out.
            self._make_durable()

    def _more(self) -> Carried | None:
        """What is to follow a message over the same session; None when there is nothing now."""
        lanes, destination = self._lanes, self._destination
        while destination.rate is None:
            work = lanes.next_work(destination, self, wait=False)
            if work is None:
                return None
            try:
                carried = self._take(work)
            except Exception as exc:  # noqa: BLE001 - what is in flight is to be heard of first
                lanes.log_bug(exc)
                return None
            if carried is not None:
                return carried
        return None

    def _take(self, work: Work) -> Carried | None:
        """Begin with a message; None when nothing is to be sent of it."""
        lanes, destination = self._lanes, self._destination
        self.served += 1
        try:
            attempt = work.attempt or lanes.begin(work, destination)
        except BaseException:
            lanes.release(work)
            raise
        if attempt is None:
            lanes.release(work)
            return None
        carried = Carried(self, work, attempt)
        down = None
        if attempt.enter(destination.hop):
            try:
                down = lanes.put_off(destination, work)
                if down is None:
                    down = lanes.held_back(destination, self._make_durable)
                if down is None and carried.begin():
                    return carried
            except BaseException:
                carried.drop()
                raise
        carried.leave(down)
        return None

    def _trace(self, text: str) -> None:
        if self._run.trace is not None:
            # Of several connections to the same server each has a number.
            self._run.trace(f"{self._destination.hop.name} ({self._number}) {text}")

    def _make_durable(self) -> None:
        # Removals and moves must not wait for a server that takes minutes.  Where this fails it is for the end to
        # raise: here an attempt is under way, and perhaps has delivered to some.
        try:
            self._run.queue.sync()
        except OSError as exc:
            self._run.log.error(line("-", event="unsynced", reason=f"queue: {exc.strerror}"))


class Carried:
    """A message that a lane has in hand, as ``delivery.remote`` sees it."""

    __slots__ = (
        *("_attempt", "_lane", "_work"),
        *("content", "fail", "recipients", "sender", "settle"),
    )
    content: Content
    recipients: dict[int, bytes]
    sender: bytes
    settle: Callable[[list[Verdict]], bool]
    fail: Callable[[Exception], None]

    def __init__(self, lane: Lane, work: Work, attempt: Attempt) -> None:
        self._lane = lane
        self._work = work
        self._attempt = attempt
        lane._in_hand[self] = None

    def begin(self) -> bool:
        """Make it ready to be sent; False when there is nothing to send."""
        job = self._attempt.job(self._lane._destination.hop)
        if job is None:
            return False
        self.content = job.content
        self.recipients = job.recipients
        self.sender = job.sender
        self.settle = job.settle
        self.fail = job.fail
        return True

    def give_back(self) -> None:
        """See ``remote.Job``."""
        lane = self._lane
        self._attempt.pause()
        lane._in_hand.pop(self, None)
        self._work.attempt = self._attempt
        lane._lanes.take_back(lane._destination, self._work)

    def turned_away(self) -> bool:
        """See ``remote.Job``."""
        lane = self._lane
        lane.is_turned_away = lane._lanes.others_are_there(lane._destination, lane)
        return lane.is_turned_away

    def done(self, unreachable: Verdict | None) -> None:
        """See ``remote.Job``."""
        lane = self._lane
        down = None
        if unreachable is not None:
            down = lane._lanes.failed(lane._destination, lane, unreachable)
        else:
            lane._lanes.delivered(lane._destination)
        self.leave(down)

    def leave(self, down: Down | None) -> None:
        """Its next hop is done with; ``down``: until that answers again."""
        try:
            self._attempt.leave(self._lane._destination.hop, down)
        finally:
            self._end()

    def drop(self) -> None:
        """The run ends before it was sent, or before it is known what became of it."""
        try:
            self._attempt.drop(self._lane._destination.hop)
        finally:
            self._end()

    def _end(self) -> None:
        self._lane._in_hand.pop(self, None)
        self._lane._lanes.release(self._work)
