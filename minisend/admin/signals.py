"""How a command that delivers is ended: SIGTERM and SIGINT, from systemd, a supervisor or a terminal."""

from _signal import SIG_DFL, SIG_IGN, SIGINT, SIGTERM, getsignal, signal  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minisend.delivery.flush import Stop


class EndingOnSignals:
    """SIGTERM and SIGINT end the transactions that are under way, and then the run; a second one ends at once."""

    def __init__(self, stop: "Stop") -> None:
        self._stop = stop
        self._before = {each: getsignal(each) for each in (SIGTERM, SIGINT)}

    def _ask(self, number: int, frame: object) -> None:
        for each in self._before:
            signal(each, SIG_DFL)
        self._stop.ask()

    def __enter__(self) -> None:
        for each, handler in self._before.items():
            if handler != SIG_IGN:
                signal(each, self._ask)

    def __exit__(self, *exc_info: object) -> None:
        for each, handler in self._before.items():
            signal(each, handler)
