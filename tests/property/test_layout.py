"""The extent map against a naive oracle, and the object layout's round trip."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagsched.brokers.objects.layout import (
    ALIGN_BYTES,
    PAGE_BYTES,
    ExtentMap,
    plan_layout,
    read_header,
    write_header,
)
from dagsched.errors import InternalError


@given(st.integers(0, 10_000), st.lists(st.integers(0, 5_000), max_size=20))
def test_layout_round_trip(stream_bytes: int, sizes: list[int]) -> None:
    layout = plan_layout(stream_bytes, sizes)
    data = bytearray(layout.size_bytes)
    write_header(memoryview(data), layout)
    assert read_header(data, len(data)) == layout
    end = layout.stream_offset + stream_bytes
    for offset, size in zip(layout.offsets, sizes, strict=True):
        assert offset >= end
        assert offset % ALIGN_BYTES == 0
        end = offset + size
    assert end == layout.size_bytes
    with pytest.raises(InternalError):
        read_header(data, len(data) - 1)


@given(st.binary(min_size=0, max_size=200))
def test_garbage_is_no_header(data: bytes) -> None:
    with pytest.raises(InternalError):
        read_header(b"\0" + data, len(data) + 1)


SEGMENTS = (16, 64, 3)  # pages


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("allocate"), st.integers(0, 20 * PAGE_BYTES)),
            st.tuples(st.just("free"), st.integers(0, 1_000)),
        ),
        max_size=80,
    )
)
def test_extents_against_pages(steps: list[tuple[str, int]]) -> None:
    extents = ExtentMap()
    pages = {number: [False] * size for number, size in enumerate(SEGMENTS)}
    for number, size in enumerate(SEGMENTS):
        extents.add_segment(number, size * PAGE_BYTES)
    live: list[tuple[int, int, int]] = []
    for verb, amount in steps:
        if verb == "allocate":
            count = max(1, -(-amount // PAGE_BYTES))
            found = extents.allocate(amount)
            fits = any(
                "f" * count in "".join("u" if used else "f" for used in row)
                for row in pages.values()
            )
            assert (found is not None) == fits
            if found is None:
                continue
            first = found.offset // PAGE_BYTES
            assert found.offset % PAGE_BYTES == 0
            row = pages[found.segment]
            assert first + count <= len(row)
            assert not any(row[first : first + count])
            row[first : first + count] = [True] * count
            live.append((found.segment, found.offset, count))
        elif live:
            segment, offset, count = live.pop(amount % len(live))
            assert extents.free(segment, offset) == count * PAGE_BYTES
            first = offset // PAGE_BYTES
            pages[segment][first : first + count] = [False] * count
        extents.check()
        assert extents.used_bytes == sum(map(sum, pages.values())) * PAGE_BYTES
    for segment, offset, _ in live:
        extents.free(segment, offset)
    extents.check()
    for number, size in enumerate(SEGMENTS):  # each is one extent again
        assert extents.is_empty(number)
        extents.remove_segment(number)
        assert extents.total_bytes == sum(SEGMENTS[number + 1 :]) * PAGE_BYTES
        assert size == SEGMENTS[number]
