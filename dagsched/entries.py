"""How the arguments of a task are written without the values of its dependencies.

The four kinds of entry stand in the README of this folder. Executors have their own fast path for
the first three and use `fill` for the general one; this module is the reference for all.
"""

from collections.abc import Sequence
from typing import Any

from dagsched.containers import rebuild

Entry = tuple[Any, ...] | list[Any] | dict[str, Any] | None


class Slot:
    """Stands for the value of dependency `index` anywhere inside a task's arguments."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return (slot, (self.index,))

    def __deepcopy__(self, memo: object) -> "Slot":
        return self

    def __eq__(self, other: object) -> bool:
        return type(other) is Slot and other.index == self.index

    def __hash__(self) -> int:
        return hash((Slot, self.index))

    def __repr__(self) -> str:
        return f"Slot({self.index})"


_KEPT = tuple(map(Slot, range(256)))


def slot(index: int) -> Slot:
    """Returns a `Slot`; small ones are always the same object, so that pickle names them once."""
    return _KEPT[index] if index < len(_KEPT) else Slot(index)


def fill(entry: Entry, values: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """Puts values of dependencies into an entry.

    Args:
        entry: One of the four kinds; it is not changed.
        values: The dependencies' values, in their order.

    Returns:
        Positional and keyword arguments of the call.

    >>> fill({"args": ([Slot(1), 5],), "kwargs": {"k": Slot(0)}}, ["a", "b"])
    ((['b', 5],), {'k': 'a'})
    """
    if entry is None:
        return values, {}
    if type(entry) is tuple:
        return entry, {}
    if type(entry) is list:
        args = list(entry[0])
        for index, dependency in entry[1]:
            args[index] = values[dependency]
        return args, {}
    assert isinstance(entry, dict)
    # One walk over both, so that a container used in several arguments stays one object.
    filled = rebuild((entry["args"], entry["kwargs"]), lambda item: values[item.index], is_slot)  # type: ignore[attr-defined]  # only Slots are leaves
    return filled[0], filled[1]


def is_slot(item: object) -> bool:
    """Says whether `item` is a placeholder."""
    return type(item) is Slot
