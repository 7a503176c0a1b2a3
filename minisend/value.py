"""What is the same when all that it holds is the same: ``Value``, for small classes with ``__slots__``.

In place of ``dataclasses`` and ``typing.NamedTuple``, which cost every delivery 25 ms before it begins.  Nothing keeps a
value from being changed but that nobody does.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self


class Value:
    """A class whose ``__slots__`` are its fields: it compares, hashes and shows by them."""

    __slots__: "tuple[str, ...]" = ()

    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(other) is type(self)
            and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)
        )

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({shown})"

    def but(self, **changes: "Any") -> "Self":
        """The same with other values in some fields."""
        other = object.__new__(type(self))
        for name in self.__slots__:
            setattr(other, name, changes.pop(name) if name in changes else getattr(self, name))
        if changes:
            raise TypeError(f"no such field: {', '.join(changes)}")
        return other
