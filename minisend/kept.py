"""What a function came to for the arguments that it was last given: ``Kept``, a dict that makes what it is asked for.

In place of ``functools.lru_cache``, whose module takes 2 ms to import.  For functions that always come to the same, as
messages come in bursts and have much in common; it never holds more than it was told to.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Made = TypeVar("Made")


class Kept(dict["tuple[Any, ...]", "Made"]):
    """``make``  gets the key, a tuple, as its arguments
    ``most``  of the last results are kept

    Several threads may use one.
    """

    __slots__ = ("_make", "_most")

    def __init__(self, make: "Callable[..., Made]", most: int) -> None:
        super().__init__()
        self._make = make
        self._most = most

    def __missing__(self, key: "tuple[Any, ...]") -> "Made":
        if len(self) >= self._most:
            self.clear()
        made = self[key] = self._make(*key)
        return made
