"""The cut of graphs of known shapes: what the parts are, and how long they would take."""

import heapq
import random
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from dagsched.config import Config
from dagsched.partition import Cut, cut_graph, cut_window
from dagsched.partition.arrays import crossing_counts, edges_of, levels_of
from dagsched.partition.intervals import (
    Parts,
    cut_points,
    interval_starts,
    joined_small,
    staged_parts,
)
from dagsched.partition.lanes import by_lanes, window_stretch
from dagsched.partition.simulate import (
    levels_makespan_s,
    list_starts_s,
    part_edges,
    schedule_of,
)
from dagsched.plan import ClusterShape

CONFIG = Config()
NO_LEVELS = np.empty(0, dtype=np.int32)
Graph = tuple[np.ndarray, np.ndarray]


def csr(rows: Sequence[Sequence[int]]) -> Graph:
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    return indptr, np.array([dep for row in rows for dep in row], dtype=np.int32)


def depth_first(rows: Sequence[Sequence[int]]) -> Graph:
    """The graph with its tasks renumbered in depth-first post-order."""
    used = {dep for row in rows for dep in row}
    number: dict[int, int] = {}
    for root in range(len(rows)):
        stack = [] if root in used else [(root, 0)]
        while stack:
            task, place = stack.pop()
            if task in number:
                continue
            if place < len(rows[task]):
                stack += [(task, place + 1), (rows[task][place], 0)]
            else:
                number[task] = len(number)
    tasks = sorted(number, key=number.__getitem__)
    return csr([[number[dep] for dep in rows[task]] for task in tasks])


def wide(count: int) -> Graph:
    return csr([[]] * count)


def chain(count: int) -> Graph:
    return csr([[task - 1] if task else [] for task in range(count)])


def chains(number: int, length: int) -> Graph:
    return csr([[task - 1] if task % length else [] for task in range(number * length)])


def tree(leaves: int) -> Graph:
    rows: list[list[int]] = [[] for _ in range(leaves)]
    level = list(range(leaves))
    while len(level) > 1:
        above = []
        for left, right in zip(level[::2], level[1::2], strict=False):
            rows.append([left, right])
            above.append(len(rows) - 1)
        level = above + ([level[-1]] if len(level) % 2 else [])
    return depth_first(rows)


def stencil(width: int, steps: int) -> Graph:
    rows: list[list[int]] = [[] for _ in range(width)]
    for step in range(1, steps):
        above = (step - 1) * width
        rows += [
            [above + near for near in (cell - 1, cell, cell + 1) if 0 <= near < width]
            for cell in range(width)
        ]
    return depth_first(rows)


def butterfly(width: int) -> Graph:
    rows: list[list[int]] = [[] for _ in range(width)]
    distance = 1
    while distance < width:
        base = len(rows) - width
        rows += [[base + cell, base + (cell ^ distance)] for cell in range(width)]
        distance *= 2
    return depth_first(rows)


def layered(width: int, steps: int, degree: int) -> Graph:
    rng = random.Random(7)
    rows: list[list[int]] = [[] for _ in range(width)]
    for step in range(1, steps):
        above = range((step - 1) * width, step * width)
        rows += [rng.sample(above, degree) for _ in range(width)]
    return depth_first(rows)


def ladder(rungs: int) -> Graph:
    rows: list[list[int]] = [[]]
    for _ in range(rungs):
        last = len(rows) - 1
        rows += [[last], [last], [last + 1, last + 2]]
    return csr(rows)


def fork_joins(width: int, rounds: int) -> Graph:
    rows: list[list[int]] = [[]]
    for _ in range(rounds):
        last = len(rows) - 1
        rows += [[last]] * width
        rows.append(list(range(last + 1, last + 1 + width)))
    return depth_first(rows)


def equal(graph: Graph, each_s: float) -> np.ndarray:
    return np.full(len(graph[0]) - 1, each_s)


def cut(graph: Graph, each_s: float, nodes: int, executors: int) -> Cut:
    return cut_graph(*graph, equal(graph, each_s), ClusterShape(nodes, executors), CONFIG)


def window(
    graph: Graph, weights_s: np.ndarray, executors: int, level_starts: np.ndarray = NO_LEVELS
) -> list[list[int]]:
    bundles = cut_window(*graph, weights_s, level_starts, executors, CONFIG)
    assert all(bundle.dtype == np.int32 for bundle in bundles)
    listed = [bundle.tolist() for bundle in bundles]
    check_parts(graph, listed)
    return listed


def check_parts(graph: Graph, parts: Sequence[Sequence[int]]) -> None:
    """Each task once; topological in each part; parts depend only on earlier ones."""
    indptr, deps = graph
    task_count = len(indptr) - 1
    assert sorted(task for part in parts for task in part) == list(range(task_count))
    place = {}
    for number, part in enumerate(parts):
        for task in part:
            place[task] = (number, len(place))
    for task in range(task_count):
        for dep in deps[indptr[task] : indptr[task + 1]].tolist():
            assert place[dep] < place[task]


def check_cut(graph: Graph, result: Cut) -> list[list[int]]:
    order, starts = result.order.tolist(), result.subtree_starts.tolist()
    assert result.order.dtype == result.level_starts.dtype == np.int32
    assert result.subtree_starts.dtype == np.int64
    assert starts[0] == 0
    assert starts[-1] == len(order)
    subtrees = [order[low:high] for low, high in pairwise(starts)]
    assert all(subtrees)
    if not result.interlocked:
        check_parts(graph, subtrees)
    return subtrees


def makespan_s(graph: Graph, weights_s: np.ndarray, parts: list[list[int]], places: int) -> float:
    """Greedy list scheduling, written independently of the one in the package."""
    indptr, deps = graph
    part_of = {task: number for number, part in enumerate(parts) for task in part}
    needs = [
        {part_of[dep] for task in part for dep in deps[indptr[task] : indptr[task + 1]].tolist()}
        - {number}
        for number, part in enumerate(parts)
    ]
    ends: dict[int, float] = {}
    running: list[tuple[float, int]] = []
    waiting = list(range(len(parts)))
    now = 0.0
    while waiting or running:
        for part in list(waiting):
            if len(running) < places and all(ends.get(need, 9e9) <= now for need in needs[part]):
                heapq.heappush(running, (now + float(weights_s[parts[part]].sum()), part))
                waiting.remove(part)
        now, part = heapq.heappop(running)
        ends[part] = now
    return now


def run_by_windows_s(graph: Graph, weights_s: np.ndarray, result: Cut, executors: int) -> float:
    """What a broker does: at most two windows of three bundles an executor are open at once."""
    order = result.order.tolist()
    position = {task: place for place, task in enumerate(order)}
    indptr, deps = graph
    rows = [[position[dep] for dep in deps[indptr[t] : indptr[t + 1]].tolist()] for t in order]
    work_s = weights_s[result.order]
    opened: list[list[list[int]]] = []
    ended: set[int] = set()
    running: list[tuple[float, int, list[int]]] = []
    low, now, number = 0, 0.0, 0
    while True:
        opened = [bundles for bundles in opened if any(set(x) - ended for x in bundles)]
        while len(opened) < 2 and low < len(order):
            upto = work_s[low:].cumsum() <= 3 * executors * CONFIG.bundle_s + 1e-9
            high = low + max(1, int(np.count_nonzero(upto)))
            levels = result.level_starts
            levels = levels[(levels >= low) & (levels < high)] - low
            inside = csr([[dep - low for dep in row] for row in rows[low:high]])
            bundles = cut_window(*inside, work_s[low:high], levels, executors, CONFIG)
            opened.append([(bundle + low).tolist() for bundle in bundles])
            low = high
        started = {task for _, _, bundle in running for task in bundle} | ended
        for bundle in [bundle for bundles in opened for bundle in bundles]:
            needs = {dep for task in bundle for dep in rows[task]} - set(bundle)
            if len(running) < executors and bundle[0] not in started and needs <= ended:
                number += 1
                heapq.heappush(running, (now + float(work_s[bundle].sum()), number, bundle))
        if not running:
            assert len(ended) == len(order)
            return now
        now, _, bundle = heapq.heappop(running)
        ended.update(bundle)


class TestWindow:
    def test_nothing_and_one_task(self) -> None:
        assert cut_window(*wide(0), np.empty(0), NO_LEVELS, 2, CONFIG) == []
        assert window(wide(1), np.array([3.0]), 2) == [[0]]

    def test_work_not_worth_a_message_is_one_bundle(self) -> None:
        assert window(wide(100), equal(wide(100), 1e-6), 2) == [list(range(100))]
        assert window(chain(4), np.zeros(4), 2) == [[0, 1, 2, 3]]

    @pytest.mark.parametrize("count", [40, 4000])
    def test_wide_is_even(self, count: int) -> None:
        bundles = window(wide(count), equal(wide(count), 0.04 / count), 2)
        assert bundles == [
            list(range(count * part // 8, count * (part + 1) // 8)) for part in range(8)
        ]

    def test_wide_work_that_makes_few_bundles_is_shared_by_all(self) -> None:
        assert [len(part) for part in window(wide(16), equal(wide(16), 0.0005), 4)] == [2] * 8
        # 22 ms are five bundles; six let two executors end together.
        assert [len(part) for part in window(wide(66), equal(wide(66), 22e-3 / 66), 2)] == [11] * 6

    @pytest.mark.parametrize("each_s", [1e-5, 0.001])
    def test_chain_is_consecutive_bundles_of_full_size(self, each_s: float) -> None:
        count = round(0.04 / each_s)
        size = count // 8
        bundles = window(chain(count), equal(chain(count), each_s), 2)
        assert bundles == [list(range(low, low + size)) for low in range(0, count, size)]

    def test_short_chain_is_one_bundle_whatever_the_executors(self) -> None:
        assert window(chain(4), equal(chain(4), 0.001), 8) == [[0, 1, 2, 3]]

    def test_chains_beside_each_other_stay_whole(self) -> None:
        bundles = window(chains(4, 100), equal(chains(4, 100), 2e-5), 2)
        assert bundles == [list(range(low, low + 100)) for low in range(0, 400, 100)]

    def test_outside_dependencies_are_dropped(self) -> None:
        indptr, deps = csr([[-1], [-7, 0], [-2], [2, -3]])
        weights_s = np.full(4, 3e-4)
        bundles = [
            part.tolist() for part in cut_window(indptr, deps, weights_s, NO_LEVELS, 2, CONFIG)
        ]
        assert bundles == [[0, 1], [2, 3]]

    @pytest.mark.parametrize("leaves", [1024, 1000, 1365])
    def test_tree_keeps_two_executors_busy(self, leaves: int) -> None:
        graph = tree(leaves)
        weights_s = equal(graph, 2e-5)
        bundles = window(graph, weights_s, 2)
        assert makespan_s(graph, weights_s, bundles, 2) <= 1.15 * weights_s.sum() / 2
        assert len(bundles) <= 2 * weights_s.sum() / CONFIG.bundle_s

    def test_perfect_tree_is_its_subtrees_and_one_top(self) -> None:
        graph = tree(2048)
        bundles = window(graph, equal(graph, 4.8e-6), 2)
        assert [len(part) for part in bundles] == [1023, 1023, 1023, 1023, 3]

    def test_heavy_tasks_are_alone(self) -> None:
        weights_s = np.full(40, 1e-3)
        weights_s[[3, 17, 39]] = CONFIG.bundle_s
        for graph in (wide(40), chain(40), ladder(13)):
            bundles = window(graph, weights_s[: len(graph[0]) - 1], 2)
            assert [part for part in bundles if 3 in part or 17 in part or 39 in part][:2] == [
                [3],
                [17],
            ]
        assert [39] in window(chain(40), weights_s, 1)

    def test_only_heavy_tasks_are_all_alone(self) -> None:
        graph = tree(64)
        assert window(graph, equal(graph, 0.01), 2) == [[task] for task in range(127)]

    def test_what_waits_for_heavy_tasks_is_not_joined(self) -> None:
        """A short task after each of two long ones: joined, each would wait for both."""
        graph = csr([[], [0], [], [2]])
        weights_s = np.array([0.01, 1e-6, 0.5, 1e-6])
        assert window(graph, weights_s, 2) == [[0], [2], [1], [3]]

    def test_one_executor_gets_plain_intervals(self) -> None:
        graph = tree(1024)
        bundles = window(graph, equal(graph, 1e-5), 1)
        assert [task for part in bundles for task in part] == list(range(2047))
        assert [len(part) for part in bundles] == [511, 512, 511, 513]


class TestWindowByLevels:
    def test_narrow_levels_are_joined(self) -> None:
        # 8 tasks of 2 us a level are not worth a message; 5 ms of them are 312 levels.
        starts = np.arange(0, 4000, 8, dtype=np.int32)
        bundles = window(wide(4000), np.full(4000, 2e-6), 2, starts)
        assert [len(part) for part in bundles] == [312 * 8, 188 * 8]

    @pytest.mark.parametrize("starts", [[0, 8, 16], [8, 16]])
    def test_levels_are_split_among_executors(self, starts: list[int]) -> None:
        bundles = window(wide(24), np.full(24, 0.001), 2, np.array(starts, dtype=np.int32))
        assert bundles == [list(range(low, low + 4)) for low in range(0, 24, 4)]

    def test_large_levels_are_split_by_size(self) -> None:
        bundles = window(wide(400), np.full(400, 1e-4), 2, np.array([0, 200], dtype=np.int32))
        assert bundles == [list(range(low, low + 50)) for low in range(0, 400, 50)]

    def test_heavy_tasks_are_alone(self) -> None:
        weights_s = np.array([1e-5, 0.02, 1e-5, 1e-5, 1e-3, 0.02])
        bundles = window(wide(6), weights_s, 2, np.array([0, 3], dtype=np.int32))
        assert bundles == [[0], [1], [2], [3], [4], [5]]

    def test_a_joined_run_of_levels_ends_before_a_split_one(self) -> None:
        weights_s = np.array([1e-5, 1e-5, 2e-3, 2e-3, 1e-5, 1e-5])
        bundles = window(wide(6), weights_s, 2, np.array([0, 1, 2, 4, 5], dtype=np.int32))
        assert bundles == [[0, 1], [2], [3], [4, 5]]


class TestGraphOnOneNode:
    @pytest.mark.parametrize(
        "graph",
        [wide(0), wide(1), wide(1000), chain(1000), chains(100, 10), tree(1000), ladder(300)],
        ids=["none", "one", "wide", "chain", "short chains", "tree", "ladder"],
    )
    def test_depth_first(self, graph: Graph) -> None:
        result = cut(graph, 0.001, 1, 2)
        count = len(graph[0]) - 1
        assert result.order.tolist() == list(range(count))
        assert result.subtree_starts.tolist() == ([0, count] if count else [0])
        assert not result.interlocked
        assert len(result.level_starts) == 0

    @pytest.mark.parametrize(
        ("graph", "depth"),
        [
            (stencil(8, 100), 100),
            (layered(100, 20, 10), 20),
            (fork_joins(100, 10), 21),
        ],
        ids=["stencil", "layered", "fork-join"],
    )
    def test_levels_where_depth_first_would_serialise(self, graph: Graph, depth: int) -> None:
        result = cut(graph, 0.001, 1, 2)
        check_cut(graph, result)
        assert not result.interlocked
        assert len(result.subtree_starts) == 2
        assert len(result.level_starts) == depth
        levels, _ = levels_of(edges_of(*graph), equal(graph, 0.001))
        changes = np.flatnonzero(np.diff(levels[result.order])) + 1
        assert result.level_starts.tolist() == [0, *changes.tolist()]

    def test_long_chains_are_run_side_by_side(self) -> None:
        graph = chains(2, 100)
        result = cut(graph, 0.001, 1, 2)
        assert len(result.level_starts) == 0
        check_cut(graph, result)
        assert result.order[:20].tolist() == [
            *range(5), *range(100, 105), *range(5, 10), *range(105, 110)
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "graph",
        [
            wide(1000),
            tree(500),
            chains(10, 100),
            chains(2, 500),
            stencil(8, 100),
            stencil(200, 10),
            butterfly(128),
            layered(100, 20, 5),
            fork_joins(99, 10),
        ],
        ids=["wide", "tree", "chains", "two chains", "stencil", "wide stencil", "fft", "layered",
             "fork-join"],
    )  # fmt: skip
    @pytest.mark.parametrize("each_s", [0.0005, 0.001, 0.01])
    def test_a_broker_that_sees_two_windows_keeps_two_executors_busy(
        self, graph: Graph, each_s: float
    ) -> None:
        weights_s = equal(graph, each_s)
        result = cut(graph, each_s, 1, 2)
        assert run_by_windows_s(graph, weights_s, result, 2) <= 1.2 * weights_s.sum() / 2

    def test_narrow_levels_of_short_tasks_stay_depth_first(self) -> None:
        assert len(cut(stencil(8, 1000), 1e-6, 1, 2).level_starts) == 0

    def test_large_graphs_are_several_subtrees(self) -> None:
        assert cut(wide(600_000), 1e-6, 1, 2).subtree_starts.tolist() == [
            0,
            200_000,
            400_000,
            600_000,
        ]
        rows = cut(chain(250_001), 1e-6, 1, 2).subtree_starts.tolist()
        assert rows == [0, 125_000, 250_001]

    def test_large_graphs_by_levels_are_several_subtrees(self) -> None:
        graph = fork_joins(100_000, 3)
        result = cut(graph, 1e-4, 1, 4)
        check_cut(graph, result)
        assert result.subtree_starts.tolist() == [0, 150_002, 300_004]
        assert result.level_starts.tolist() == [0, 1, 100_001, 100_002, 150_002, 200_002, 200_003,
                                                300_003]  # fmt: skip


class TestGraphOnNodes:
    def test_wide_is_even(self) -> None:
        result = cut(wide(1000), 0.005, 2, 4)
        assert result.order.tolist() == list(range(1000))
        assert result.subtree_starts.tolist() == list(range(0, 1001, 125))
        assert not result.interlocked

    def test_a_hundred_unknown_tasks_use_both_nodes(self) -> None:
        subtrees = check_cut(wide(100), cut(wide(100), CONFIG.unknown_task_s, 2, 4))
        assert len(subtrees) == 8
        assert {len(part) for part in subtrees} == {12, 13}

    @pytest.mark.parametrize(
        ("graph", "each_s"),
        [(wide(1000), 1e-7), (tree(100), 1e-6), (chain(10_000), 0.001), (ladder(100), 0.01)],
        ids=["short", "short tree", "chain", "ladder"],
    )
    def test_one_subtree_where_nodes_do_not_help(self, graph: Graph, each_s: float) -> None:
        result = cut(graph, each_s, 2, 4)
        assert result.subtree_starts.tolist() == [0, len(graph[0]) - 1]
        assert not result.interlocked

    def test_independent_chains_are_not_torn(self) -> None:
        result = cut(chains(8, 100), 0.001, 2, 4)
        assert result.subtree_starts.tolist() == list(range(0, 801, 100))

    def test_tree_is_subtrees_and_a_top(self) -> None:
        graph = tree(4096)
        result = cut(graph, 1e-4, 2, 4)
        subtrees = check_cut(graph, result)
        assert [len(part) for part in subtrees] == [1023] * 8 + [7]
        assert makespan_s(graph, equal(graph, 1e-4), subtrees, 2) <= 1.02 * 8191e-4 / 2

    @pytest.mark.parametrize(
        "graph",
        [stencil(8, 100), layered(100, 20, 10)],
        ids=["stencil", "layered"],
    )
    def test_levels_are_shared_by_columns(self, graph: Graph) -> None:
        result = cut(graph, 0.01, 2, 4)
        first, second = check_cut(graph, result)
        assert result.interlocked
        assert sorted(first + second) == list(range(len(graph[0]) - 1))
        assert len(first) == len(second)
        levels, _ = levels_of(edges_of(*graph), equal(graph, 0.01))
        half = int(levels.max()) + 1
        assert len(result.level_starts) == 2 * half
        bounds = [*result.level_starts.tolist(), len(result.order)]
        for number, (low, high) in enumerate(pairwise(bounds)):
            assert set(levels[result.order[low:high]].tolist()) == {number % half}

    @pytest.mark.parametrize("width", [16, 64])
    def test_stencil_columns_touch_only_at_the_border(self, width: int) -> None:
        graph = stencil(width, 100)
        result = cut(graph, 0.01, 2, 8)
        assert result.interlocked
        node = np.zeros(width * 100, dtype=np.int64)
        node[result.order[result.subtree_starts[1] :]] = 1
        edges = edges_of(*graph)
        crossing = np.count_nonzero(node[edges.deps] != node[edges.tasks])
        assert crossing == 2 * 99

    def test_the_same_graph_is_cut_the_same(self) -> None:
        one = cut(layered(50, 10, 5), 0.01, 3, 7)
        two = cut(layered(50, 10, 5), 0.01, 3, 7)
        assert one.order.tolist() == two.order.tolist()
        assert one.subtree_starts.tolist() == two.subtree_starts.tolist()


class TestPasses:
    def test_crossing_counts(self) -> None:
        assert crossing_counts(edges_of(*csr([[], [], [0], [0, 2]]))).tolist() == [0, 1, 1, 2, 0]

    def test_levels_and_critical_path(self) -> None:
        levels, critical_s = levels_of(edges_of(*csr([[], [0], [], [2, 1]])), np.arange(1.0, 5.0))
        assert levels.tolist() == [0, 1, 0, 2]
        assert critical_s == 7.0
        levels, critical_s = levels_of(edges_of(*chains(2, 3)), np.arange(6.0))
        assert levels.tolist() == [0, 1, 2, 0, 1, 2]
        assert critical_s == 12.0

    def test_cut_points_prefer_few_crossing_values(self) -> None:
        cumulative = np.arange(9.0)
        assert cut_points(cumulative, None, 2) == [0, 4]
        assert cut_points(cumulative, np.array([0, 9, 9, 0, 9, 9, 9, 9, 0]), 2) == [0, 3]
        assert cut_points(cumulative, np.array([0, 9, 9, 8, 9, 9, 9, 9, 0]), 2) == [0, 4]
        assert cut_points(np.zeros(9), None, 2) == [0]

    def test_stages(self) -> None:
        parts = staged_parts(edges_of(*csr([[], [], [0], [2], [], [1, 4]])), np.ones(6), [0, 2, 4])
        assert parts.order is not None
        assert parts.order.tolist() == [0, 1, 4, 2, 3, 5]
        assert (parts.starts, parts.seconds) == ([0, 2, 3, 5, 6], [2.0, 1.0, 2.0, 1.0])
        assert parts.stage_count == 2

    def test_small_parts_are_joined_with_their_neighbours(self) -> None:
        parts = Parts(None, [0, 1, 2, 3, 4, 5], [5.0, 0.5, 0.5, 0.5, 5.0], 3)
        assert joined_small(parts, 1.0).starts == [0, 1, 3, 4, 5]
        alone = [False, False, True, False, False]
        assert joined_small(parts, 1.0, alone).starts == [0, 1, 2, 3, 4, 5]

    def test_list_scheduling(self) -> None:
        assert list_starts_s([3.0, 2.0, 2.0], [], [], 2) == [0.0, 0.0, 2.0]
        assert list_starts_s([3.0, 2.0, 2.0], [0], [2], 2) == [0.0, 0.0, 3.0]
        assert list_starts_s([3.0, 2.0, 2.0], [0], [2], 2, 0.5) == [0.0, 0.0, 3.5]
        assert list_starts_s([], [], [], 2) == []

    def test_schedule(self) -> None:
        edges = edges_of(*csr([[], [0], []]))
        parts = Parts(None, [0, 1, 2, 3], [3.0, 2.0, 2.0], 2)
        schedule = schedule_of(edges, parts, 2, 2.0, 0.5, 1.0)
        assert schedule.starts_s == [0.0, 3.0, 0.0]
        assert schedule.makespan_s == 4.5

    def test_blocks_end_at_seams(self) -> None:
        """Two chains in alternating pieces of four, beginning in the middle of a piece."""
        rows: list[list[int]] = [[], [0], [], [2], [3], [4], [1], [6], [7], [8], [5], [10]]
        starts = interval_starts(edges_of(*csr(rows)), np.arange(13.0), 3)
        assert starts == [0, 2, 6, 10]

    def test_a_last_task_longer_than_a_window(self) -> None:
        indptr, deps = np.zeros(4, np.int64), np.zeros(0, np.int32)
        stretch = window_stretch(indptr, deps, np.array([0.1, 0.1, 9.0]), 2, Config())
        assert stretch >= 1.0

    def test_lanes_alternate_by_slots(self) -> None:
        parts = Parts(None, [0, 4, 8], [4.0, 4.0], 1)
        assert by_lanes(np.ones(8), parts, [0.0, 0.0], 2.0).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
        assert by_lanes(np.ones(8), parts, [0.0, 4.0], 2.0).tolist() == list(range(8))

    def test_windows_of_one_chain_of_many_are_stretched(self) -> None:
        graph = chains(4, 100)
        assert window_stretch(*graph, equal(graph, 0.001), 2, CONFIG) > 1.5
        assert window_stretch(*wide(400), equal(graph, 0.001), 2, CONFIG) == pytest.approx(1.0)

    def test_part_edges_are_listed_once(self) -> None:
        edges = edges_of(*csr([[], [0], [0], [1, 2]]))
        assert part_edges(edges, Parts(None, [0, 1, 3, 4], [1.0] * 3, 3)) == ([0, 1], [1, 2])

    def test_levels_estimate(self) -> None:
        # Two levels of 4 x 1 ms on 2 executors, then one of 0.1 ms that is not split.
        weights_s = np.array([1e-3] * 8 + [1e-4])
        starts = np.array([0, 4, 8])
        whole_s = levels_makespan_s(weights_s, np.arange(9), starts, 2, 0.005, 1.5e-4, 0.0)
        assert whole_s == pytest.approx(2 * (2e-3 + 1.5e-4) + 1e-4)


class TestSpeed:
    """Generous bounds: some ten times what was measured, so that only another complexity fails."""

    @pytest.mark.parametrize(
        ("graph", "nodes"),
        [(wide(1_000_000), 2), (chain(1_000_000), 1), (chain(1_000_000), 2), (tree(100_000), 2)],
        ids=["wide", "chain", "chain on two nodes", "tree"],
    )
    def test_graphs(self, graph: Graph, nodes: int) -> None:
        started = time.perf_counter()
        cut(graph, 1e-6, nodes, 2 * nodes)
        assert time.perf_counter() - started < 5e-6 * (len(graph[0]) - 1)

    def test_deep_ladder(self) -> None:
        started = time.perf_counter()
        check = cut(ladder(40), 0.001, 1, 2)
        assert len(check.order) == 121
        assert time.perf_counter() - started < 1.0
