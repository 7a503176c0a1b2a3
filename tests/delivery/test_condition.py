"""What ``threading.Condition`` does not promise and ours has to: a signal handler may come in the middle."""

from _thread import RLock
from collections import deque
from functools import partial
from types import SimpleNamespace

from minisend.delivery.condition import Condition


class Interrupted(deque):
    """A signal handler wakes all who wait at the moment at which somebody has found that there are some."""

    def __init__(self, condition: Condition) -> None:
        super().__init__()
        self._handler = condition.notify_all

    def _interrupt(self) -> None:
        handler, self._handler = self._handler, lambda: None
        handler()

    def __bool__(self) -> bool:
        found = len(self) > 0
        self._interrupt()
        return found

    def popleft(self) -> object:
        self._interrupt()
        return super().popleft()


def test_a_signal_handler_may_wake_those_who_are_just_being_woken() -> None:
    lock = RLock()
    for wake in (Condition.notify, Condition.notify_all):
        condition = Condition(lock)
        released: list[int] = []
        condition._waiting = Interrupted(condition)
        for number in range(2):
            waits = SimpleNamespace(release=partial(released.append, number))
            condition._waiting.append(waits)
        with lock:
            wake(condition)
        assert released == [0, 1]
