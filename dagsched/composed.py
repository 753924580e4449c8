"""Several calls as one function: what a task does that is written as calls inside calls.

Pure, and it imports nothing heavy, for executors load it. A front end whose tasks hold further
calls makes one `Composed` for all tasks of the same form; what they differ in are its arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One call of several; its result goes into the next free register."""

    function: Callable[..., Any]
    places: tuple[int, ...]  # registers of its arguments
    names: tuple[str, ...]  # of the last of them: those are keyword arguments
    dead: tuple[int, ...]  # registers that nobody needs after this step


class Composed:
    """A function that makes several calls, each with arguments or results of earlier ones.

    Registers are the arguments, then the constants, then the result of each step; the last result
    is that of all.

    Args:
        name: what it is called.
        count: of its arguments.
        constants: the same in all calls; nobody may change them.
        calls: for each step its function, the registers of its arguments, and the names of those
            at the end that are keyword arguments.

    >>> calls = [(pow, (0, 2), ()), (pow, (1, 2), ()), (max, (3, 4), ())]
    >>> Composed("larger_square", 2, (2,), calls)(3, 4)
    16
    """

    __slots__ = ("__name__", "_calls", "_constants", "_count", "_steps")

    def __init__(
        self,
        name: str,
        count: int,
        constants: Sequence[Any],
        calls: Sequence[tuple[Callable[..., Any], tuple[int, ...], tuple[str, ...]]],
    ) -> None:
        self.__name__ = name
        self._count = count
        self._constants = tuple(constants)
        self._calls = tuple(calls)
        last_use: dict[int, int] = {}
        for index, (_, places, _) in enumerate(self._calls):
            last_use.update(dict.fromkeys(places, index))
        dead: list[list[int]] = [[] for _ in self._calls]
        for place, index in last_use.items():
            dead[index].append(place)
        self._steps = [
            Step(function, places, names, tuple(rest))
            for (function, places, names), rest in zip(self._calls, dead, strict=True)
        ]

    def __call__(self, *values: Any) -> Any:
        """Makes the calls."""
        if len(values) != self._count:
            raise TypeError(f"{self.__name__} takes {self._count} arguments, not {len(values)}")
        registers: list[Any] = [*values, *self._constants]
        for function, places, names, dead in self._steps:
            args = [registers[place] for place in places]
            for place in dead:  # what is large shall not outlive its last use
                registers[place] = None
            if names:
                split = len(args) - len(names)
                named = dict(zip(names, args[split:], strict=True))
                del args[split:]
                registers.append(function(*args, **named))
            else:
                registers.append(function(*args))
        return registers[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return (Composed, (self.__name__, self._count, self._constants, self._calls))

    def __repr__(self) -> str:
        return f"<composed {self.__name__} of {len(self._calls)} calls>"


def list_of(*items: Any) -> list[Any]:
    """A list of its arguments, new at each call."""
    return list(items)


def tuple_of(*items: Any) -> tuple[Any, ...]:
    """A tuple of its arguments."""
    return items


def set_of(*items: Any) -> set[Any]:
    """A set of its arguments, new at each call."""
    return set(items)


def frozenset_of(*items: Any) -> frozenset[Any]:
    """A frozenset of its arguments."""
    return frozenset(items)


def dict_of(*items: Any) -> dict[Any, Any]:
    """A dict of its arguments, keys and values in turn, new at each call."""
    return dict(zip(items[::2], items[1::2], strict=True))
