"""Cells of busy time: against a sum made task by task, and bounded."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dagsched.viz.live.cells import BIN_NS, BINS, Cells, Spans, in_blocks

TASKS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(0, 300 * BIN_NS),
        st.integers(0, 70 * BIN_NS),
    ),
    max_size=30,
)


def spans_of(tasks: list[tuple[int, int, int, int]]) -> Spans:
    rows = np.array(tasks, np.int64).reshape(-1, 4)
    lanes, functions, starts, lengths = rows.T
    return Spans(lanes, functions, starts, starts + lengths)


def by_hand(tasks: list[tuple[int, int, int, int]], first: int) -> tuple[np.ndarray, np.ndarray]:
    """Busy nanoseconds by lane, bin and function, and tasks that ended by lane and bin."""
    busy, ended = np.zeros((3, BINS, 4), np.int64), np.zeros((3, BINS), np.int64)
    for lane, function, start, length in tasks:
        end = start + length
        if end <= first * BIN_NS:
            continue
        start = max(start, first * BIN_NS)
        last = max((end - 1) // BIN_NS, start // BIN_NS)
        for a_bin in range(start // BIN_NS, last + 1):
            inside = min(end, (a_bin + 1) * BIN_NS) - max(start, a_bin * BIN_NS)
            if a_bin - first < BINS:
                busy[lane, a_bin - first, function] += inside
        if last - first < BINS:
            ended[lane, last - first] += 1
    return busy, ended


@given(TASKS, st.integers(0, 30), st.integers(100 * BIN_NS, 400 * BIN_NS))
def test_cells_are_what_a_sum_over_tasks_gives(
    tasks: list[tuple[int, int, int, int]], cut: int, now_ns: int
) -> None:
    cells = Cells()
    cells.add(spans_of(tasks[:cut]), now_ns)
    cells.add(spans_of(tasks[cut:]), now_ns)
    first = now_ns // BIN_NS - BINS + 1
    busy, ended = by_hand(tasks, first)
    grid = cells.grid(3, first, BINS)
    shares = np.minimum(busy.sum(axis=2) / BIN_NS, 1.0)
    assert np.allclose(grid.busy_share, shares)
    assert (grid.ended == ended).all()
    most = busy.max(axis=2)
    took = np.take_along_axis(busy, np.maximum(grid.function, 0)[:, :, None], axis=2)[:, :, 0]
    assert (took == most).all()
    assert ((grid.function >= 0) | (most == 0)).all()


def test_blocks_are_all_tasks_in_order_and_none_is_large() -> None:
    sizes = [3, 1, 1, 25, 10, 0, 4]
    ends = np.cumsum(sizes)
    every = np.arange(sum(sizes))
    spans = [
        Spans(*(every[end - size : end] for _ in range(4)))
        for size, end in zip(sizes, ends.tolist(), strict=True)
    ]
    blocks = [block.lanes.tolist() for block in in_blocks(spans, 10)]
    assert [n for block in blocks for n in block] == every.tolist()
    assert max(map(len, blocks)) <= 10
    assert len(blocks) == 6
    assert list(in_blocks([])) == []


def test_what_is_older_than_the_window_is_dropped() -> None:
    cells = Cells()
    for second in range(0, 600, 5):
        end_ns = second * 4 * BIN_NS
        cells.add(spans_of([(0, 0, end_ns - BIN_NS, BIN_NS)]), end_ns)
        assert len(cells) <= BINS
    assert len(cells) == 12


def test_a_task_of_an_hour_is_one_window_of_cells() -> None:
    cells = Cells()
    now_ns = 20_000 * BIN_NS
    changed = cells.add(spans_of([(0, 1, now_ns - 14_400 * BIN_NS, 14_400 * BIN_NS)]), now_ns)
    assert changed == 20_000 - BINS + 1
    assert len(cells) == BINS - 1
    assert cells.add(spans_of([(0, 1, 0, BIN_NS)]), now_ns) is None


def test_what_runs_is_added_to_a_copy_only() -> None:
    cells = Cells()
    cells.add(spans_of([(0, 0, 0, BIN_NS)]), 10 * BIN_NS)
    seen = cells.with_open(spans_of([(0, 1, BIN_NS, 2 * BIN_NS)]), 10 * BIN_NS).grid(1, 0, 4)
    assert seen.busy_share.tolist() == [[1.0, 1.0, 1.0, 0.0]]
    assert seen.function.tolist() == [[0, 1, 1, -1]]
    assert seen.ended.tolist() == [[1, 0, 0, 0]]
    assert cells.grid(1, 0, 4).busy_share.tolist() == [[1.0, 0.0, 0.0, 0.0]]
