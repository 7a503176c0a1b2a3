"""A progress bar on standard error, where that is a terminal; elsewhere nothing is written at all.

    with Progress("flushing") as progress:
        ...
        progress(done, total)

Redrawn at most ten times a second, and gone when the block ends, however it ends.
"""

import time

from minisend.admin.terminal import is_terminal, write
from minisend.errors import SystemFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

_INTERVAL = 0.1
_BAR = 30
# Back to the first column, erase to the end of the line (ECMA-48: EL).
_CLEAR = "\r\x1b[K"


class Progress:
    """``label`` stands before the bar; ``shown`` False draws nothing (--quiet); ``clock`` gives seconds."""

    def __init__(
        self, label: str, *, shown: bool = True, clock: "Callable[[], float]" = time.monotonic
    ) -> None:
        self._label = label
        self._on = shown and is_terminal(2)
        self._clock = clock
        self._drawn_at: float | None = None

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._drawn_at is not None:
            self._write(_CLEAR)
            self._drawn_at = None

    def __call__(self, done: int, total: int) -> None:
        """``done`` of ``total`` are over with."""
        now = self._clock()
        if not self._on or (self._drawn_at is not None and now - self._drawn_at < _INTERVAL):
            return
        filled = _BAR * done // total if total else _BAR
        bar = f"{self._label} [{'#' * filled}{'.' * (_BAR - filled)}] {done}/{total}"
        from shutil import get_terminal_size

        # A line that wraps could not be erased.
        self._write(_CLEAR + bar[: get_terminal_size().columns - 1])
        self._drawn_at = now

    def _write(self, text: str) -> None:
        try:
            write(2, text)
        except (BrokenPipeError, SystemFault):
            self._on = False  # a terminal that went away must not end a delivery
