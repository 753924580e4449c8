"""Large arrays born where objects lie, so that sealing a result copies nothing.

Responsible for ranges of this process's arena that numpy is offered for the data of large arrays,
and for what becomes of them. The compiled part (`_nursery.c`) is called by numpy; where it could
not be compiled nothing is offered, and every result is copied.

A task's result becomes an object where it lies only if nothing else refers to its memory: all
references of ours are dropped, and if the array does not die of that, somebody else may write to it
later, so what it holds now is copied, as ever.
"""

import ctypes
import logging
from dataclasses import dataclass
from pickle import PickleBuffer
from types import ModuleType
from typing import Any

from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.layout import (
    ALIGN_BYTES,
    PAGE_BYTES,
    Layout,
    plan_layout,
    write_header,
)
from dagsched.protocol.messages import Location
from dagsched.serialize import dump_value

logger = logging.getLogger(__name__)

BORN_BYTES_MIN = 1 << 20
"""Smaller arrays are numpy's own: copying them costs less than looking after them."""

DATA_OFFSET = PAGE_BYTES
"""Before the data of an array is room for what makes it an object: header and pickle."""

OFFERED_MAX = 4
"""Ranges of about one size that wait for arrays, or belong to some that are no objects."""

SIZES_MAX = 8
"""Sizes of which there are such ranges."""

AGE_MAX = 64
"""Large arrays that others were made for, after which a range is given back."""


@dataclass(frozen=True, slots=True)
class _Range:
    place: Location  # of all of it
    view: memoryview  # of the same
    address: int  # of its data
    anchor: object  # keeps the segment mapped

    @property
    def capacity(self) -> int:
        return self.place.size_bytes - DATA_OFFSET

    def fits(self, size_bytes: int) -> bool:
        """Whether it would hold so much, and hardly more: as in `take_range` there."""
        return self.capacity - self.capacity // 8 <= size_bytes <= self.capacity


class Nursery:
    """Offers parts of an arena to numpy.

    Args:
        arena: whose objects arrays become; freed through this from now on.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._part: ModuleType | None = None
        self._ranges: dict[int, _Range] = {}  # offered or some array's, by address
        self._sealed: dict[tuple[str, int], _Range] = {}  # objects, by segment and offset
        self._wanted: dict[int, int] = {}  # ranges by size, that which was lacking last behind
        self.born_count = 0

    def start(self) -> bool:
        """Offer ranges to what this thread does with numpy from now on; False: it can't be."""
        try:
            from dagsched.brokers.objects import _nursery

            _nursery.install(BORN_BYTES_MIN)
        except ImportError as error:
            logger.info("results that are large arrays will be copied: %s", error)
            return False
        self._part = _nursery
        self._arena.spare = self.give_back
        return True

    def seal(self, given: list[Any]) -> Location | None:
        """Make an object of an array in a range.

        Args:
            given: holds the only reference of ours to the array, and is emptied.

        Returns:
            the object's place; None: it lies elsewhere, and `given` is as it was.

        Raises:
            OutOfMemory: it has to be copied, and there is no room.
        """
        part = self._part
        if part is None:
            return None
        try:
            data = PickleBuffer(given[0]).raw()
        except (BufferError, ValueError):
            return None  # it isn't contiguous, or of a type that has no buffers
        length, found = data.nbytes, part.find(data)
        del data
        if found is None:
            if length >= BORN_BYTES_MIN:
                self._want(length)
            return None
        address, offset = found
        born = self._ranges[address]
        dumped = dump_value(given[0])
        if len(dumped.buffers) != 1:
            return None
        stream = dumped.stream
        layout = plan_layout(len(stream), [length])
        if offset % ALIGN_BYTES or layout.offsets[0] > DATA_OFFSET or not born.fits(length):
            return None
        start = DATA_OFFSET + offset
        layout = Layout(start + length, layout.stream_offset, len(stream), [start], [length])
        part.hold(address)
        del dumped
        given.clear()
        if not part.settle(address):
            try:
                return self._arena.write(stream, [born.view[start : start + length]])
            finally:
                part.let_go(address)
        write_header(born.view, layout)
        born.view[layout.stream_offset : layout.stream_offset + len(stream)] = stream
        del self._ranges[address]
        self._sealed[born.place.segment, born.place.offset] = born
        self.born_count += 1
        self._arena.written_bytes += layout.size_bytes
        return Location(born.place.segment, born.place.offset, layout.size_bytes)

    def free(self, location: Location) -> None:
        """Use an object's bytes again, of a range or any other of the arena.

        Raises:
            InternalError: the arena has no such object.
        """
        born = self._sealed.pop((location.segment, location.offset), None)
        if born is None or self._part is None:
            self._arena.free(location)
            return
        self._part.reuse(born.address)
        self._ranges[born.address] = born
        if self._count_like(born.capacity) > self._wanted.get(born.capacity, 0):
            self._withdraw(born.address)

    def offer(self) -> None:
        """Before tasks: offer what was lacking, where the arena has memory that isn't in use."""
        lacking = [n for n, count in self._wanted.items() if self._count_like(n) < count]
        if not lacking or self._arena.is_node_full():
            return
        for size in lacking:
            while self._count_like(size) < self._wanted[size] and self._try_offer(size):
                continue

    def tend(self) -> None:
        """After tasks: take back what wasn't used for long, or all where others need memory."""
        if self._part is None or not self._ranges:
            return
        if self._arena.is_node_full():
            self.give_back()
            return
        for address, age in self._part.ages().items():
            if age > AGE_MAX:
                capacity = self._ranges[address].capacity
                self._withdraw(address)
                self._forget(capacity)

    @property
    def range_count(self) -> int:
        """Ranges that are offered, or some array's."""
        return len(self._ranges)

    def give_back(self) -> None:
        """Take back all ranges that no array uses."""
        if self._part is not None:
            for address in self._part.ages():
                self._withdraw(address)

    def _want(self, size_bytes: int) -> None:
        """Another range would have saved a copy."""
        size = (size_bytes + PAGE_BYTES - 1) & -PAGE_BYTES
        if size not in self._wanted and len(self._wanted) == SIZES_MAX:
            del self._wanted[next(iter(self._wanted))]
        self._wanted[size] = min(OFFERED_MAX, self._wanted.pop(size, 0) + 1)

    def _forget(self, size: int) -> None:
        """One range less of a size is wanted."""
        count = self._wanted.pop(size, 0) - 1
        if count > 0:
            self._wanted[size] = count

    def _count_like(self, size_bytes: int) -> int:
        return sum(each.fits(size_bytes) for each in self._ranges.values())

    def _try_offer(self, size: int) -> bool:
        """Offer another range for arrays of this size."""
        found = self._arena.try_reserve(DATA_OFFSET + size) if self._part is not None else None
        if self._part is None or found is None:
            return False
        place, view = found
        anchor = ctypes.c_char.from_buffer(view)
        address = ctypes.addressof(anchor) + DATA_OFFSET
        if not self._part.offer(address, size):
            self._arena.free(place)
            return False
        self._ranges[address] = _Range(place, view, address, anchor)
        return True

    def _withdraw(self, address: int) -> None:
        if self._part is not None and self._part.withdraw(address):
            self._arena.free(self._ranges.pop(address).place)
