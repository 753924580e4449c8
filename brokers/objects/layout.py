"""The bytes of an object in shared memory, and which bytes of a segment are in use.

Pure. Responsible for the header that a reader trusts (after checking it) and for first-fit
allocation of page-aligned extents; knows nothing of files, mappings or pickles.

An object is: header, pickle stream, then the out-of-band buffers, each aligned to 64 bytes (a
cache line, and what array libraries like best), or to a page where it is large: an array that is
born where objects lie has the page before it for header and stream.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from dagsched.errors import InternalError

PAGE_BYTES = 4096
ALIGN_BYTES = 64
PAGE_ALIGNED_MIN = 1 << 20
"""Buffers from this size on are aligned to a page."""

_MAGIC = 0x314F5344  # "DSO1": bytes that some other program put there are noticed
_HEAD = struct.Struct("<IIQ")  # magic, buffer count, stream length
_BUFFER = struct.Struct("<QQ")  # offset, length
_BUFFERS_MAX = 1 << 24

_CANDIDATES_MAX = 32
"""Extents of an object's own size class that are looked at before a larger one is split."""


class Layout(NamedTuple):
    """Where the parts of one object lie, from its first byte."""

    size_bytes: int
    stream_offset: int
    stream_bytes: int
    offsets: Sequence[int]
    lengths: Sequence[int]


class Extent(NamedTuple):
    """A place in a segment."""

    segment: int
    offset: int


def plan_layout(stream_bytes: int, buffer_bytes: Sequence[int]) -> Layout:
    """Where stream and buffers of these sizes go.

    Example:
        >>> plan_layout(10, [100]).offsets
        [64]
    """
    stream_offset = _HEAD.size + _BUFFER.size * len(buffer_bytes)
    end = stream_offset + stream_bytes
    offsets: list[int] = []
    for length in buffer_bytes:
        align = ALIGN_BYTES if length < PAGE_ALIGNED_MIN else PAGE_BYTES
        start = (end + align - 1) & -align
        offsets.append(start)
        end = start + length
    return Layout(end, stream_offset, stream_bytes, offsets, list(buffer_bytes))


def write_header(target: memoryview, layout: Layout) -> None:
    """Write the header of `layout` to the start of `target`."""
    _HEAD.pack_into(target, 0, _MAGIC, len(layout.offsets), layout.stream_bytes)
    place = _HEAD.size
    for offset, length in zip(layout.offsets, layout.lengths, strict=True):
        _BUFFER.pack_into(target, place, offset, length)
        place += _BUFFER.size


def header_bytes(start: bytes | bytearray | memoryview) -> int:
    """Length of the header that begins with `start` (at least 16 bytes of it).

    Raises:
        InternalError: this is no object.
    """
    if len(start) < _HEAD.size:
        raise InternalError(f"an object of {len(start)} bytes is shorter than its header")
    magic, count, _ = _HEAD.unpack_from(start)
    if magic != _MAGIC or count > _BUFFERS_MAX:
        raise InternalError(f"no object begins here (magic {magic:#x}, {count} buffers)")
    return _HEAD.size + _BUFFER.size * int(count)


def read_header(source: bytes | bytearray | memoryview, size_bytes: int) -> Layout:
    """The layout of the object of `size_bytes` that `source` begins with.

    Args:
        source: the object's bytes, or at least its header.
        size_bytes: length of the whole object.

    Raises:
        InternalError: the header does not fit the size, so the bytes are not of this object.
    """
    stream_offset = header_bytes(source)
    if len(source) < stream_offset:
        raise InternalError(f"a header of {stream_offset} bytes is cut off at {len(source)}")
    _, count, stream_bytes = _HEAD.unpack_from(source)
    end = stream_offset + stream_bytes
    offsets: list[int] = []
    lengths: list[int] = []
    for place in range(_HEAD.size, stream_offset, _BUFFER.size):
        offset, length = _BUFFER.unpack_from(source, place)
        if offset < end or offset % ALIGN_BYTES:
            raise InternalError(f"buffer {len(offsets)} of {count} lies at {offset}, before {end}")
        offsets.append(offset)
        lengths.append(length)
        end = offset + length
    if end > size_bytes:
        raise InternalError(f"an object of {size_bytes} bytes claims to end at {end}")
    return Layout(end, stream_offset, stream_bytes, offsets, lengths)


class ExtentMap:
    """Which extents of some segments are free; sizes are multiples of a page.

    Free extents are kept by size class (powers of two), the last freed first: its pages are warm,
    and writing warm pages is several times faster than fresh ones. Neighbours that are free are
    always one extent.

    Example:
        >>> extents = ExtentMap()
        >>> extents.add_segment(0, 8192)
        >>> extents.allocate(100)
        Extent(segment=0, offset=0)
    """

    def __init__(self) -> None:
        self._segments: dict[int, int] = {}
        self._used: dict[Extent, int] = {}
        self._used_by_segment: dict[int, int] = {}
        self._free: dict[Extent, int] = {}
        self._free_by_end: dict[Extent, int] = {}
        self._classes: list[dict[Extent, int]] = [{} for _ in range(64)]
        self._nonempty = 0  # bit k: class k has extents

    @property
    def used_bytes(self) -> int:
        """Bytes in use, in whole pages."""
        return sum(self._used_by_segment.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(self._segments.values())

    @property
    def segments(self) -> dict[int, int]:
        """Size of each segment in bytes."""
        return dict(self._segments)

    def is_empty(self, segment: int) -> bool:
        """Whether nothing of the segment is in use."""
        return self._used_by_segment[segment] == 0

    def add_segment(self, segment: int, size_bytes: int) -> None:
        """Bytes ``0:size_bytes`` of a new segment are free from now on."""
        if segment in self._segments or size_bytes <= 0 or size_bytes % PAGE_BYTES:
            raise InternalError(f"segment {segment} of {size_bytes} bytes can't be added")
        self._segments[segment] = size_bytes
        self._used_by_segment[segment] = 0
        self._insert(Extent(segment, 0), size_bytes)

    def remove_segment(self, segment: int) -> None:
        """Forget a segment of which nothing is in use."""
        if self._used_by_segment.get(segment) != 0:
            raise InternalError(f"segment {segment} is in use or unknown, and can't be removed")
        self._remove(Extent(segment, 0))
        del self._segments[segment], self._used_by_segment[segment]

    def allocate(self, size_bytes: int) -> Extent | None:
        """A free extent of at least `size_bytes`, in use from now on; None: there is none."""
        size = max(PAGE_BYTES, (size_bytes + PAGE_BYTES - 1) & -PAGE_BYTES)
        found = self._find(size)
        if found is None:
            return None
        extent_bytes = self._remove(found)
        if extent_bytes > size:
            self._insert(Extent(found.segment, found.offset + size), extent_bytes - size)
        self._used[found] = size
        self._used_by_segment[found.segment] += size
        return found

    def free(self, segment: int, offset: int) -> int:
        """Give back what `allocate` gave; returns its bytes.

        Raises:
            InternalError: nothing that is in use begins there.
        """
        start = Extent(segment, offset)
        size = self._used.pop(start, 0)
        if not size:
            raise InternalError(f"nothing in use begins at {offset} of segment {segment}")
        self._used_by_segment[segment] -= size
        merged, merged_start = size, start
        after = Extent(segment, offset + size)
        if after in self._free:
            merged += self._remove(after)
        before_bytes = self._free_by_end.get(start)
        if before_bytes is not None:
            merged_start = Extent(segment, offset - before_bytes)
            merged += self._remove(merged_start)
        self._insert(merged_start, merged)
        return size

    def check(self) -> None:
        """Derive everything again from the extents.

        Raises:
            InternalError: extents overlap, leave gaps, are not coalesced, or a count is wrong.
        """
        pieces: dict[int, list[tuple[int, int, bool]]] = {key: [] for key in self._segments}
        for (segment, offset), size in self._free.items():
            pieces[segment].append((offset, size, True))
        for (segment, offset), size in self._used.items():
            pieces[segment].append((offset, size, False))
        for segment, listed in pieces.items():
            end, was_free = 0, False
            for offset, size, is_free in sorted(listed):
                if offset != end or size <= 0 or (is_free and was_free):
                    raise InternalError(f"segment {segment}: extents are wrong at {offset}")
                end, was_free = offset + size, is_free
            used = sum(size for _, size, is_free in listed if not is_free)
            if end != self._segments[segment] or used != self._used_by_segment[segment]:
                raise InternalError(f"segment {segment}: {used} bytes used up to {end}")
        ends = {Extent(e.segment, e.offset + size): size for e, size in self._free.items()}
        in_classes = {e: size for group in self._classes for e, size in group.items()}
        wrong = [
            k
            for k, group in enumerate(self._classes)
            if bool(group) != bool(self._nonempty >> k & 1)
            or any(_class_of(size) != k for size in group.values())
        ]
        if ends != self._free_by_end or in_classes != self._free or wrong:
            raise InternalError(f"the index of free extents is wrong (classes {wrong})")

    def _find(self, size: int) -> Extent | None:
        """First what fits among the warmest of the same class, then anything larger."""
        own = _class_of(size)
        group = self._classes[own]
        if group:
            for extent in islice(reversed(group), _CANDIDATES_MAX):
                if group[extent] >= size:
                    return extent
        larger = self._nonempty >> (own + 1)
        if larger:
            lowest = own + 1 + ((larger & -larger).bit_length() - 1)
            return next(reversed(self._classes[lowest]))
        return next(self._fitting(group, size), None)

    @staticmethod
    def _fitting(group: dict[Extent, int], size: int) -> Iterator[Extent]:
        return (extent for extent, free in group.items() if free >= size)

    def _insert(self, start: Extent, size: int) -> None:
        number = _class_of(size)
        self._free[start] = size
        self._free_by_end[Extent(start.segment, start.offset + size)] = size
        self._classes[number][start] = size
        self._nonempty |= 1 << number

    def _remove(self, start: Extent) -> int:
        size = self._free.pop(start)
        del self._free_by_end[Extent(start.segment, start.offset + size)]
        number = _class_of(size)
        del self._classes[number][start]
        if not self._classes[number]:
            self._nonempty &= ~(1 << number)
        return size


def _class_of(size: int) -> int:
    return (size // PAGE_BYTES).bit_length() - 1
