"""What one user may have in a queue that is not their own: messages, octets, and messages an hour.

For whoever takes messages from others and knows from whom they are: ``add`` at the start for each message that is in
the queue already, ``admit`` before one is taken, ``released`` when it has left the queue.  In a queue of one's own
there is no such limit: its owner harms nobody else.

    limit      key of [limits]     counts
    messages   messages_per_uid    those that wait
    octets     octets_per_uid      of those that wait, as they came
    rate       rate_per_uid        those admitted in the present hour; counted anew for everybody each hour, so that
                                   what is kept of users who have gone does not grow

The rate outlives a process by ``rates`` and ``restore``.

Never: no disk, no queue; the clock is the caller's.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_HOUR = 3600


class Usage:
    """What the users have; each limit is 0 for none.  ``clock`` gives seconds that never go back (time.monotonic)."""

    __slots__ = ("_admitted", "_clock", "_hour", "_messages", "_octets", "_rate", "_waiting")

    def __init__(
        self, *, messages: int, octets: int, rate: int, clock: "Callable[[], float]"
    ) -> None:
        self._messages = messages
        self._octets = octets
        self._rate = rate
        self._clock = clock
        self._hour = clock()  # when the present one began
        self._admitted: dict[int, int] = {}
        # uid → messages and octets; none for who has nothing
        self._waiting: dict[int, tuple[int, int]] = {}

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit at all."""
        return bool(self._messages or self._octets or self._rate)

    def forget(self) -> None:
        """What waits is to be added anew; the hour goes on."""
        self._waiting.clear()

    @property
    def rates(self) -> "list[str]":
        """When the present hour began, on the clock, and whom it has seen how often: lines for ``restore``."""
        lines = [f"hour {int(self._hour)} -"]
        return lines + [f"admitted {uid} {count}" for uid, count in dict(self._admitted).items()]

    def restore(self, lines: "list[str]") -> None:
        """Go on with the hour of another process on the same clock; one that is over, or yet to come, is none.

        Lines of another kind, and what cannot be read of them, count for nothing.
        """
        hour = 0.0
        admitted: dict[int, int] = {}
        for each in lines:
            try:
                word, first, second = each.split(" ", 2)
                if word == "hour":
                    hour = float(first)
                elif word == "admitted":
                    admitted[int(first)] = int(second)
            except ValueError:
                pass
        if 0 <= self._clock() - hour < _HOUR:
            self._hour = hour
            self._admitted = admitted

    def add(self, uid: int, octets: int) -> None:
        """A message that is in the queue, admitted or from before."""
        count, size = self._waiting.get(uid, (0, 0))
        self._waiting[uid] = count + 1, size + octets

    def admit(self, uid: int, octets: int) -> str | None:
        """Count a message of this size and return None; or leave it uncounted and return why, on one line."""
        now = self._clock()
        if now - self._hour >= _HOUR:
            self._hour = now
            self._admitted.clear()
        count, size = self._waiting.get(uid, (0, 0))
        admitted = self._admitted.get(uid, 0)
        if self._messages and count >= self._messages:
            return f"uid {uid} has {count} messages in the queue: [limits] messages_per_uid is {self._messages}"
        if self._octets and size + octets > self._octets:
            return (
                f"uid {uid} would have {size + octets} octets in the queue: "
                f"[limits] octets_per_uid is {self._octets}"
            )
        if self._rate and admitted >= self._rate:
            return f"uid {uid} has sent {admitted} messages this hour: [limits] rate_per_uid is {self._rate}"
        self._admitted[uid] = admitted + 1
        self.add(uid, octets)
        return None

    def undo(self, uid: int, octets: int) -> None:
        """A message that was just admitted has not been taken after all."""
        self.released(uid, octets)
        if self._admitted.get(uid):
            self._admitted[uid] -= 1

    def released(self, uid: int, octets: int) -> None:
        """A message that was added or admitted has left the queue."""
        # Nothing, where it was counted anew since.
        count, size = self._waiting.get(uid, (0, 0))
        if count > 1:
            self._waiting[uid] = count - 1, size - octets
        else:
            self._waiting.pop(uid, None)
