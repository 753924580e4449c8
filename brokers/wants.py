"""Who wants which positions: a few by name, thousands as one crowd. Pure.

Bundles wait for values, other nodes ask for them, and a reduction over several nodes wants tens of
thousands of each node. They come in blocks, so a crowd, which marks its positions in an array, is
served by a block at a time; whoever wants few, or some here and there, has an entry a position.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dagsched.partition.arrays import distinct

Int32 = NDArray[np.int32]

Owner = TypeVar("Owner", bound=Hashable)
"""Whoever wants."""

CROWD_MIN = 48
"""Fewer positions have an entry each, which costs less than calls of numpy."""

SPREAD_MAX = 16
"""Positions between a crowd's first and last for each that it wants: a byte is kept for each."""


class _Crowd(Generic[Owner]):
    """Many positions of one owner, close to each other."""

    __slots__ = ("count", "end", "first", "is_wanted", "owner", "view")

    def __init__(self, owner: Owner, positions: Int32) -> None:
        self.owner = owner
        self.first = int(positions[0])
        self.end = int(positions[-1]) + 1
        self.count = len(positions)
        self.is_wanted = np.zeros(self.end - self.first, np.bool_)
        self.is_wanted[positions - self.first] = True
        self.view = self.is_wanted.data  # single marks, without numpy's scalars

    def take(self, first: int, end: int) -> int:
        """Unmark a range; returns how many were marked."""
        if end == first + 1:
            if not self.view[first - self.first]:
                return 0
            self.view[first - self.first] = False
            self.count -= 1
            return 1
        part = self.is_wanted[max(0, first - self.first) : end - self.first]
        found = int(np.count_nonzero(part))
        if found:
            part[:] = False
            self.count -= found
        return found

    def positions(self) -> Int32:
        """All that is still wanted, rising."""
        return (np.flatnonzero(self.is_wanted) + self.first).astype(np.int32)


class Wants(Generic[Owner]):
    """Owners, and the positions that each wants still.

    Example:
        >>> wants = Wants()
        >>> wants.add_many(np.arange(1_000, dtype=np.int32), "reduction")
        >>> wants.add(7, "neighbour")
        >>> wants.take(0, 500)
        {'neighbour': 1, 'reduction': 500}
        >>> wants.take(400, 200)
        {'reduction': 100}
    """

    def __init__(self) -> None:
        self._few: dict[int, list[Owner]] = {}
        self._crowds: list[_Crowd[Owner]] = []

    def __bool__(self) -> bool:
        return bool(self._few or self._crowds)

    def add(self, position: int, owner: Owner) -> None:
        """An owner wants one more."""
        self._few.setdefault(position, []).append(owner)

    def add_many(self, positions: Int32, owner: Owner) -> None:
        """An owner wants these, which rise."""
        count = len(positions)
        if count >= CROWD_MIN and int(positions[-1]) - int(positions[0]) < SPREAD_MAX * count:
            self._crowds.append(_Crowd(owner, positions))
            return
        for position in positions.tolist():
            self.add(position, owner)

    def take(
        self, first: int, count: int, is_due: Callable[[Owner], bool] = lambda _: True
    ) -> dict[Owner, int]:
        """Who wants some of the positions from `first` on wants them no more.

        Args:
            first: the first position.
            count: how many there are.
            is_due: an owner for whom it isn't keeps what it wants.

        Returns:
            How many of them each wanted, as often as it said so.
        """
        taken: dict[Owner, int] = {}
        end = first + count
        if self._few:
            for position in self._named(first, end):
                owners = self._few.pop(position)
                for owner in owners:
                    if is_due(owner):
                        taken[owner] = taken.get(owner, 0) + 1
                if kept := [owner for owner in owners if not is_due(owner)]:
                    self._few[position] = kept
        is_over = False
        for crowd in self._crowds:
            if crowd.first < end and first < crowd.end and is_due(crowd.owner):
                found = crowd.take(first, end)
                if found:
                    taken[crowd.owner] = taken.get(crowd.owner, 0) + found
                    is_over |= not crowd.count
        if is_over:
            self._crowds = [crowd for crowd in self._crowds if crowd.count]
        return taken

    def _named(self, first: int, end: int) -> list[int]:
        """Those of a range that have an entry, rising."""
        few = self._few
        if end - first <= len(few):
            return [position for position in range(first, end) if position in few]
        return sorted(position for position in few if first <= position < end)

    def within(self, first: int, end: int) -> Int32:
        """Positions of a range that somebody wants, rising."""
        pieces = [np.array(self._named(first, end), np.int32)]
        pieces += [c.positions() for c in self._crowds if c.first < end and first < c.end]
        wanted = distinct(np.concatenate(pieces))
        return wanted[(wanted >= first) & (wanted < end)]

    def drop(self, is_gone: Callable[[Owner], bool]) -> None:
        """Some owners want nothing any more."""
        for position, owners in list(self._few.items()):
            kept = [owner for owner in owners if not is_gone(owner)]
            if kept:
                self._few[position] = kept
            else:
                del self._few[position]
        self._crowds = [crowd for crowd in self._crowds if not is_gone(crowd.owner)]

    def items(self) -> list[tuple[Owner, list[int]]]:
        """Owners with what they want, each as often as it said so."""
        named = [(owner, [p]) for p, owners in self._few.items() for owner in owners]
        return named + [(crowd.owner, crowd.positions().tolist()) for crowd in self._crowds]

    def clear(self) -> None:
        """Nobody wants anything."""
        self._few.clear()
        self._crowds.clear()
