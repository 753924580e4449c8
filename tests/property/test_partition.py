"""The cut on any graph, against plain definitions of what it promises."""

import random
from collections import Counter
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagsched.config import Config
from dagsched.partition import arrays, cut_graph, cut_window, window
from dagsched.partition.arrays import (
    crossing_counts,
    cumulated,
    distinct,
    distinct_counts,
    edges_of,
    levels_of,
    levels_plainly,
    staged,
    staged_plainly,
    stages_of,
)
from dagsched.partition.intervals import (
    cut_points,
    cut_points_small,
    interval_starts,
    interval_starts_small,
    staged_parts,
)
from dagsched.partition.lanes import laned_order
from dagsched.plan import ClusterShape

CONFIG = Config()
SECONDS = [0.0, 1e-6, 5e-5, 2e-4, 1e-3, 3e-3, 5e-3, 0.05]
Rows = list[list[int]]


def csr(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    return indptr, np.array([dep for row in rows for dep in row], dtype=np.int32)


@st.composite
def graphs(draw: st.DrawFn, most: int = 40) -> tuple[Rows, np.ndarray]:
    """Any graph, each task depending on a few before it, with weights."""
    count = draw(st.integers(1, most))
    rows: Rows = [[]]
    for task in range(1, count):
        rows.append(draw(st.lists(st.integers(0, task - 1), unique=True, max_size=3)))
    weights = draw(st.lists(st.sampled_from(SECONDS), min_size=count, max_size=count))
    return rows, np.array(weights)


@st.composite
def large_graphs(draw: st.DrawFn) -> tuple[Rows, np.ndarray]:
    """Graphs of some hundred tasks, in shapes that lead to each kind of cut."""
    rng = random.Random(draw(st.integers(0, 1 << 30)))
    count = draw(st.integers(65, 400))
    reach = draw(st.sampled_from([1, 3, 20, 400]))
    degree = draw(st.integers(0, 4))
    width = draw(st.sampled_from([1, 5, 25]))
    layers = draw(st.booleans())
    rows: Rows = []
    for task in range(count):
        low, high = max(0, task - reach), task
        if layers:
            level = task // width
            low, high = max(0, (level - 1) * width), level * width
        rows.append(rng.sample(range(low, high), min(degree, high - low)) if high > low else [])
    choice = draw(st.sampled_from([[1e-5], [1e-3], SECONDS, [1e-5, 0.01]]))
    return rows, np.array([rng.choice(choice) for _ in range(count)])


def naive_levels(rows: Rows) -> list[int]:
    levels: list[int] = []
    for row in rows:
        levels.append(max((levels[dep] + 1 for dep in row), default=0))
    return levels


def check_bundles(rows: Rows, bundles: list[list[int]]) -> None:
    bundle_of = {task: number for number, bundle in enumerate(bundles) for task in bundle}
    assert sum(map(len, bundles)) == len(bundle_of) == len(rows)
    for bundle in bundles:
        assert bundle == sorted(bundle)
        assert bundle
    for task, row in enumerate(rows):
        assert all(bundle_of[dep] <= bundle_of[task] for dep in row if dep >= 0)


@given(st.one_of(graphs(), large_graphs()), st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_bundles_of_a_window(graph: tuple[Rows, np.ndarray], executors: int) -> None:
    rows, weights_s = graph
    none = np.empty(0, dtype=np.int32)
    bundles = [x.tolist() for x in cut_window(*csr(rows), weights_s, none, executors, CONFIG)]
    check_bundles(rows, bundles)
    if weights_s.sum() >= 2 * CONFIG.overhead_s:
        for task in np.flatnonzero(weights_s >= CONFIG.bundle_s).tolist():
            assert [task] in bundles
        for bundle in bundles:
            # Blocks up to three halves of the target, borders a quarter of it off on both sides.
            slack_s = 1.25 * CONFIG.bundle_s + 2 * weights_s[bundle].max()
            assert len(bundle) == 1 or weights_s[bundle].sum() <= CONFIG.bundle_s + slack_s
    else:
        assert len(bundles) == 1


@given(large_graphs(), st.integers(0, 300), st.integers(1, 100), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_window_ignores_what_is_outside(
    graph: tuple[Rows, np.ndarray], low: int, length: int, executors: int
) -> None:
    rows, weights_s = graph
    low = min(low, len(rows) - 1)
    inside = [[dep - low for dep in row] for row in rows[low : low + length]]
    dropped = [[dep for dep in row if dep >= 0] for row in inside]
    none = np.empty(0, dtype=np.int32)
    part_s = weights_s[low : low + length]
    some = cut_window(*csr(inside), part_s, none, executors, CONFIG)
    same = cut_window(*csr(dropped), part_s, none, executors, CONFIG)
    assert [x.tolist() for x in some] == [x.tolist() for x in same]
    check_bundles(inside, [x.tolist() for x in some])


@given(graphs(most=60), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_small_and_large_windows_are_cut_alike(
    graph: tuple[Rows, np.ndarray], executors: int
) -> None:
    rows, weights_s = graph
    # Powers of two, whose sums are exact in any order.
    exact_s = np.exp2(np.round(np.log2(np.maximum(weights_s, 1e-6))))
    none = np.empty(0, dtype=np.int32)
    small = cut_window(*csr(rows), exact_s, none, executors, CONFIG)
    with mock.patch.object(window, "SMALL_TASKS_MAX", 0):
        large = cut_window(*csr(rows), exact_s, none, executors, CONFIG)
    assert [x.tolist() for x in small] == [x.tolist() for x in large]


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=12),
    st.integers(0, 1 << 30),
    st.integers(1, 9),
    st.integers(0, 50),
)
@settings(max_examples=200, deadline=None)
def test_bundles_of_levels(widths: list[int], seed: int, executors: int, skip: int) -> None:
    rng = random.Random(seed)
    starts = np.cumsum([0, *widths])
    rows: Rows = [[] for _ in range(widths[0])]
    for number, width in enumerate(widths[1:]):
        above = range(starts[number], starts[number + 1])
        rows += [[rng.choice(above)] for _ in range(width)]
    weights_s = np.array([rng.choice(SECONDS) for _ in rows])
    # The window may begin inside a level.
    skip = min(skip, len(rows) - 1)
    rows = [[dep - skip for dep in row] for row in rows[skip:]]
    weights_s = weights_s[skip:]
    level_starts = np.array([x - skip for x in starts[:-1] if x >= skip], dtype=np.int32)
    bundles = [
        x.tolist() for x in cut_window(*csr(rows), weights_s, level_starts, executors, CONFIG)
    ]
    check_bundles(rows, bundles)
    assert [task for bundle in bundles for task in bundle] == list(range(len(rows)))
    if weights_s.sum() >= 2 * CONFIG.overhead_s:
        for task in np.flatnonzero(weights_s >= CONFIG.bundle_s).tolist():
            assert [task] in bundles


@given(st.one_of(graphs(), large_graphs()), st.integers(1, 8), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_lanes(graph: tuple[Rows, np.ndarray], executors: int, count: int) -> None:
    rows, weights_s = graph
    edges = edges_of(*csr(rows))
    starts = interval_starts(edges, cumulated(weights_s), count)
    parts = staged_parts(edges, weights_s, starts)
    order = laned_order(edges, weights_s, parts, executors, CONFIG).tolist()
    assert sorted(order) == list(range(len(rows)))
    place = {task: number for number, task in enumerate(order)}
    assert all(place[dep] < place[task] for task, row in enumerate(rows) for dep in row)


@given(
    st.one_of(graphs(), large_graphs()),
    st.sampled_from([(1, 1), (1, 2), (1, 8), (2, 4), (3, 7), (2, 2), (5, 5)]),
)
@settings(max_examples=200, deadline=None)
def test_subtrees(graph: tuple[Rows, np.ndarray], shape: tuple[int, int]) -> None:
    rows, weights_s = graph
    cut = cut_graph(*csr(rows), weights_s, ClusterShape(*shape), CONFIG)
    order, starts = cut.order.tolist(), cut.subtree_starts.tolist()
    assert sorted(order) == list(range(len(rows)))
    assert starts[0] == 0
    assert starts[-1] == len(rows)
    assert starts == sorted(set(starts))
    position = {task: place for place, task in enumerate(order)}
    subtree = [int(np.searchsorted(starts, position[task], "right")) for task in range(len(rows))]
    for task, row in enumerate(rows):
        for dep in row:
            if subtree[dep] == subtree[task]:
                assert position[dep] < position[task]
            elif not cut.interlocked:
                assert subtree[dep] < subtree[task]
    if shape[0] == 1:
        assert len(starts) == 2
        assert not cut.interlocked
    if len(cut.level_starts):
        levels = naive_levels(rows)
        begins = [
            place
            for place in range(len(rows))
            if place in starts or levels[order[place]] != levels[order[place - 1]]
        ]
        assert cut.level_starts.tolist() == begins
        for low, high in pairwise(starts):
            own = [levels[task] for task in order[low:high]]
            assert own == sorted(own)
    else:
        assert not cut.interlocked


@given(st.lists(st.floats(1e-3, 2e-3), min_size=50, max_size=300), st.integers(2, 4))
@settings(max_examples=50, deadline=None)
def test_subtrees_of_independent_tasks_are_balanced(weights: list[float], nodes: int) -> None:
    weights_s = np.array(weights)
    rows: Rows = [[] for _ in weights]
    cut = cut_graph(*csr(rows), weights_s, ClusterShape(nodes, 2 * nodes), CONFIG)
    parts_s = np.add.reduceat(weights_s, cut.subtree_starts[:-1])
    assert len(parts_s) == nodes * CONFIG.subtrees_a_node
    assert np.abs(parts_s - weights_s.sum() / len(parts_s)).max() <= weights_s.max()


@given(graphs(), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_cut_points(graph: tuple[Rows, np.ndarray], count: int) -> None:
    rows, weights_s = graph
    crossing = crossing_counts(edges_of(*csr(rows)))
    naive = [
        sum(any(task in row for row in rows[cut:]) for task in range(cut))
        for cut in range(len(rows) + 1)
    ]
    assert crossing.tolist() == naive
    cumulative = cumulated(weights_s)
    points = cut_points(cumulative, crossing, count)
    assert points == cut_points_small(cumulative.tolist(), naive, count)
    assert points[0] == 0
    assert points == sorted(set(points))
    assert points[-1] < len(rows)
    assert len(points) <= count


@given(graphs(), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_interval_starts(graph: tuple[Rows, np.ndarray], count: int) -> None:
    rows, weights_s = graph
    cumulative = cumulated(np.exp2(np.round(np.log2(np.maximum(weights_s, 1e-6)))))
    edges = edges_of(*csr(rows))
    starts = interval_starts(edges, cumulative, count)
    assert starts == interval_starts_small(
        edges.deps.tolist(), edges.tasks.tolist(), cumulative.tolist(), count
    )
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < len(rows)


@given(st.one_of(graphs(), large_graphs()), st.sets(st.integers(1, 39), max_size=6))
@settings(max_examples=200, deadline=None)
def test_stages(graph: tuple[Rows, np.ndarray], cuts: set[int]) -> None:
    rows, weights_s = graph
    starts = [0, *sorted(cut for cut in cuts if cut < len(rows))]
    parts = staged_parts(edges_of(*csr(rows)), weights_s, starts)
    interval = [int(np.searchsorted(starts, task, "right")) for task in range(len(rows))]
    stage: list[int] = []
    for task, row in enumerate(rows):
        stage.append(max((stage[x] + (interval[x] != interval[task]) for x in row), default=0))
    members: dict[tuple[int, int], list[int]] = {}
    for task in range(len(rows)):
        members.setdefault((stage[task], interval[task]), []).append(task)
    order = parts.order.tolist() if parts.order is not None else list(range(len(rows)))
    listed = [order[a:b] for a, b in pairwise(parts.starts)]
    assert listed == [members[key] for key in sorted(members)]
    assert parts.stage_count == max(stage) + 1


@given(st.one_of(graphs(), large_graphs()))
@settings(max_examples=200, deadline=None)
def test_levels(graph: tuple[Rows, np.ndarray]) -> None:
    rows, weights_s = graph
    ends: list[float] = []
    for task, row in enumerate(rows):
        ends.append(max((ends[dep] for dep in row), default=0.0) + float(weights_s[task]))
    levels, critical_s = levels_of(edges_of(*csr(rows)), weights_s)
    assert levels.tolist() == naive_levels(rows)
    assert abs(critical_s - max(ends)) < 1e-9


@given(st.one_of(graphs(), large_graphs()), st.integers(0, 1 << 30))
@settings(max_examples=200, deadline=None)
def test_compiled_scans_lists_and_whole_passes_agree(
    graph: tuple[Rows, np.ndarray], seed: int
) -> None:
    rows, weights_s = graph
    edges = edges_of(*csr(rows))
    crosses = np.random.default_rng(seed).random(edges.count) < 0.2
    columns = (edges.deps.tolist(), edges.tasks.tolist(), crosses.tolist())
    level, critical_s = levels_of(edges, weights_s)
    by_lists, path_s = levels_plainly(edges, weights_s)
    assert by_lists.tolist() == level.tolist()
    assert abs(path_s - critical_s) < 1e-9
    assert staged(edges, crosses).tolist() == stages_of(*columns, len(rows))
    with mock.patch.object(arrays, "SHALLOW_EDGES_MIN", 1):
        by_passes, longest_s = levels_plainly(edges, weights_s)
        assert by_passes.tolist() == level.tolist() == naive_levels(rows)
        assert abs(longest_s - critical_s) < 1e-9
        if edges.count:
            assert staged_plainly(edges, crosses).tolist() == stages_of(*columns, len(rows))


@pytest.mark.skipif(arrays._scans is None, reason="there was no compiler")
def test_scans_refuse_what_are_no_edges() -> None:
    deps, tasks = np.array([0], np.int32), np.array([1], np.int64)
    crosses, stage = np.array([True]), np.zeros(2, np.int64)
    level, start = np.zeros(2, np.int32), np.zeros(2)
    arrays._scans.stages(deps, tasks, crosses, stage)
    arrays._scans.levels(deps, tasks, np.ones(2), level, start)
    assert (stage.tolist(), level.tolist(), start.tolist()) == ([0, 1], [0, 1], [0.0, 1.0])
    for bad_deps, bad_tasks in (([2], [1]), ([-1], [1]), ([0], [2]), ([0], [-1]), ([0, 0], [1])):
        columns = np.array(bad_deps, np.int32), np.array(bad_tasks, np.int64)
        with pytest.raises(ValueError, match="no edges"):
            arrays._scans.stages(*columns, crosses, stage)
        with pytest.raises(ValueError, match="no edges"):
            arrays._scans.levels(*columns, np.ones(2), level, start)
    with pytest.raises(ValueError, match="no edges"):
        arrays._scans.levels(deps, tasks, np.ones(3), level, start)


@given(st.lists(st.integers(-9, 9), max_size=40), st.sampled_from([np.int32, np.int64]))
def test_distinct_values(values: list[int], kind: type) -> None:
    for numbers in (np.array(values, kind), np.array(sorted(values), kind)):
        assert distinct(numbers).tolist() == sorted(set(values))
        assert distinct(numbers).dtype == kind
        if values:
            names, counts = distinct_counts(numbers)
            assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == Counter(values)
            assert names.tolist() == sorted(set(values))
