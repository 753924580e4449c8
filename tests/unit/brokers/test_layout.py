"""Sizes, alignment and refusals of the object layout; warmth and books of the extent map."""

import pytest

from dagsched.brokers.objects.layout import (
    PAGE_BYTES,
    Extent,
    ExtentMap,
    header_bytes,
    plan_layout,
    read_header,
    write_header,
)
from dagsched.errors import InternalError


def test_plan_aligns_each_buffer() -> None:
    layout = plan_layout(10, [100, 0, 1])
    assert layout.stream_offset == 16 + 3 * 16
    assert layout.offsets == [128, 256, 256]
    assert layout.size_bytes == 257


def test_header_needs_only_its_own_bytes() -> None:
    layout = plan_layout(5, [1000])
    data = bytearray(layout.size_bytes)
    write_header(memoryview(data), layout)
    needed = header_bytes(data[:16])
    assert needed == layout.stream_offset == 32
    assert read_header(data[:needed], layout.size_bytes) == layout
    with pytest.raises(InternalError, match="cut off"):
        read_header(data[: needed - 1], layout.size_bytes)


def test_overlapping_buffers_are_refused() -> None:
    layout = plan_layout(5, [64, 64])
    data = bytearray(layout.size_bytes)
    write_header(memoryview(data), layout._replace(offsets=[64, 64]))
    with pytest.raises(InternalError, match="buffer 1 of 2"):
        read_header(data, layout.size_bytes)


def test_last_freed_is_used_first() -> None:
    extents = ExtentMap()
    extents.add_segment(0, 16 * PAGE_BYTES)
    found = [extents.allocate(PAGE_BYTES) for _ in range(6)]
    assert found[:3] == [Extent(0, 0), Extent(0, PAGE_BYTES), Extent(0, 2 * PAGE_BYTES)]
    extents.free(0, 0)
    extents.free(0, 4 * PAGE_BYTES)
    extents.free(0, 2 * PAGE_BYTES)
    assert extents.allocate(1) == Extent(0, 2 * PAGE_BYTES)
    assert extents.allocate(1) == Extent(0, 4 * PAGE_BYTES)
    assert extents.allocate(1) == Extent(0, 0)


def test_freeing_twice_is_an_internal_error() -> None:
    extents = ExtentMap()
    extents.add_segment(0, PAGE_BYTES)
    assert extents.allocate(1) == Extent(0, 0)
    assert extents.allocate(1) is None
    with pytest.raises(InternalError, match="can't be removed"):
        extents.remove_segment(0)
    assert extents.free(0, 0) == PAGE_BYTES
    with pytest.raises(InternalError, match="nothing in use"):
        extents.free(0, 0)


def test_check_finds_wrong_books() -> None:
    extents = ExtentMap()
    extents.add_segment(0, 4 * PAGE_BYTES)
    extents.allocate(1)
    extents.check()
    extents._used[Extent(0, 0)] = 2 * PAGE_BYTES
    with pytest.raises(InternalError, match="extents are wrong"):
        extents.check()
