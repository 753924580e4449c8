"""The cut of a whole graph into subtrees, for a cluster of known shape.

Pure. Two shapes are tried. *Depth first*: contiguous intervals of the depth-first order, split by
what they wait for; little crosses their borders. *Levels*: each level is shared by all nodes, by
columns; subtrees then wait for each other both ways. A simulation of each on the cluster says
which loses less; depth first has the benefit of the doubt.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dagsched.config import Config
from dagsched.partition.arrays import (
    Edges,
    Float64,
    cumulated,
    edges_of,
    gather_rows,
    levels_of,
    stable_order,
)
from dagsched.partition.columns import by_columns
from dagsched.partition.intervals import Parts, interval_starts, joined_small, staged_parts
from dagsched.partition.lanes import BUNDLES_AHEAD, laned_order, window_stretch
from dagsched.partition.simulate import levels_makespan_s, schedule_of
from dagsched.partition.singles import LONG_S, dealing_order, is_dealt
from dagsched.plan import ClusterShape, Int32, Int64

SUBTREE_TASKS_MAX = 250_000
"""A subtree of more tasks is split: its arrays and pickles travel as one message."""

JUDGED_EXECUTORS_MAX = 64
"""More executors than this are judged as this many, which bounds the simulation's parts."""

GOOD_ENOUGH = 1.25
"""Depth first within this factor of ideal is taken at once, without a look at levels."""

CLEARLY_WORSE = 1.2
"""Levels must be faster by this factor to be chosen."""

SLIGHTLY_WORSE = 1.05
""".. or by this, where executors go hand in hand: parts of short tasks that wait for each other
last longer than their schedule says, for a broker sees few at once and pays for each."""

STRETCH_MAX = 1.3
"""Windows that last this much longer than their work shared evenly ask for an order by lanes."""

PARALLELISM_MIN = 1.5
"""Below this (work / critical path) no cut helps, and depth-first order keeps least alive."""

HOP_OVERHEADS = 4.0
"""A value that goes to another node costs about so many times the overhead of a bundle."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A graph cut into subtrees: position p is task ``order[p]``."""

    order: Int32
    subtree_starts: Int64  # subtrees + 1; subtree k is positions starts[k] : starts[k + 1]
    interlocked: bool  # subtrees wait for each other both ways
    level_starts: Int32  # positions at which a level of a subtree begins; empty: depth first


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be cut, for whom, with what all candidates need."""

    indptr: Int64
    deps: Int32
    weights_s: Float64
    shape: ClusterShape
    config: Config
    edges: Edges
    cumulative: Float64

    @property
    def total_s(self) -> float:
        """All work."""
        return float(self.cumulative[-1])

    @property
    def hop_s(self) -> float:
        """What it costs to bring a value to another node."""
        return HOP_OVERHEADS * self.config.overhead_s if self.shape.nodes > 1 else 0.0

    @property
    def node_executors(self) -> int:
        """Executors of one node, on average."""
        return max(1, self.shape.executors // self.shape.nodes)


def cut_graph(
    indptr: Int64, deps: Int32, weights_s: Float64, shape: ClusterShape, config: Config
) -> Cut:
    """Cut a graph into subtrees.

    Args:
        indptr: CSR of dependencies; task numbers are a depth-first post-order of the graph.
        deps: task numbers, each less than the task that depends on it.
        weights_s: expected seconds of each task.
        shape: of the cluster.
        config: sizes and overheads.

    Returns:
        The cut. Inside a subtree positions are topological; unless it is interlocked a subtree
        depends only on those before it.

    Example:
        >>> indptr = np.array([0, 0, 1], dtype=np.int64)
        >>> deps = np.array([0], dtype=np.int32)
        >>> cut = cut_graph(indptr, deps, np.ones(2), ClusterShape(1, 2), Config())
        >>> cut.order.tolist(), cut.subtree_starts.tolist(), cut.interlocked
        ([0, 1], [0, 2], False)
    """
    task_count = len(weights_s)
    nodes = max(1, shape.nodes)
    executors = max(nodes, shape.executors)
    total_s = float(weights_s.sum())
    if task_count < 2 or executors == 1 or total_s < 2.0 * config.overhead_s * executors:
        return _whole(task_count)
    edges = edges_of(indptr, deps)
    if nodes == 1 and edges.count == 0:
        return _whole(task_count)
    task = _Task(
        indptr, deps, weights_s, ClusterShape(nodes, executors), config, edges,
        cumulated(weights_s),
    )  # fmt: skip
    return _cut_for_one_node(task) if nodes == 1 else _cut_for_nodes(task)


def _cut_for_one_node(task: _Task) -> Cut:
    """Depth first or by levels, all for one broker."""
    executors = task.shape.executors
    parts, depth_first_s = _judged(task)
    if depth_first_s > GOOD_ENOUGH * task.total_s / executors:
        levels, critical_s = levels_of(task.edges, task.weights_s)
        if task.total_s < PARALLELISM_MIN * critical_s:
            return _whole(task.edges.task_count)
        order, starts = _by_level(levels)
        is_short = task.total_s < task.config.overhead_s * task.edges.task_count
        factor = SLIGHTLY_WORSE if is_short and task.config.hand_in_hand else CLEARLY_WORSE
        if _levels_s(task, order, starts, executors, 0.0) * factor < depth_first_s:
            return _whole_by_levels(order, starts)
    elif not _is_narrow(task, executors):
        return _whole(task.edges.task_count)
    return _whole_by_lanes(task, parts, executors)


def _is_narrow(task: _Task, executors: int) -> bool:
    """Whether a broker's windows of the depth-first order would leave executors idle."""
    stretch = window_stretch(task.indptr, task.deps, task.weights_s, executors, task.config)
    return stretch > STRETCH_MAX


def _cut_for_nodes(task: _Task) -> Cut:
    """One by one, depth first or by levels, over all nodes or on one."""
    nodes, executors = task.shape.nodes, task.shape.executors
    if task.total_s >= LONG_S * task.edges.task_count:
        _, longest_s = levels_of(task.edges, task.weights_s)
        is_parallel = task.total_s >= PARALLELISM_MIN * longest_s
        if is_parallel and is_dealt(task.edges.task_count, task.total_s, longest_s, executors):
            return _one_by_one(task)
    parts = _subtrees(task)
    places_s = schedule_of(
        task.edges, parts, nodes, executors / nodes, task.config.overhead_s, task.hop_s
    ).makespan_s
    fine, fine_s = _judged(task)
    spread_s = max(places_s, fine_s)
    if spread_s <= GOOD_ENOUGH * task.total_s / executors + task.hop_s:
        return _spread(task, parts)
    levels, critical_s = levels_of(task.edges, task.weights_s)
    alone_s = max(fine_s, task.total_s / task.node_executors)
    depth_first_s = min(spread_s, alone_s)
    if task.total_s >= PARALLELISM_MIN * critical_s:
        order, starts = _by_level(levels)
        levels_s = _levels_s(task, order, starts, executors, task.hop_s)
        alone_levels_s = _levels_s(task, order, starts, task.node_executors, 0.0)
        if min(levels_s, alone_levels_s) * CLEARLY_WORSE < depth_first_s:
            if alone_levels_s <= levels_s:
                return _whole_by_levels(order, starts)
            return _interlocked(task, levels, order, starts)
    if alone_s > spread_s:
        return _spread(task, parts)
    if fine_s < task.total_s and _is_narrow(task, task.node_executors):
        return _whole_by_lanes(task, fine, task.node_executors)
    return _whole(task.edges.task_count)


def _one_by_one(task: _Task) -> Cut:
    """Each task a subtree, in the order in which the master shall deal them."""
    order = dealing_order(task.edges, task.weights_s, task.shape.executors, task.hop_s)
    starts = np.arange(len(order) + 1, dtype=np.int64)
    return Cut(order.astype(np.int32), starts, False, np.empty(0, dtype=np.int32))


def _judged(task: _Task) -> tuple[Parts, float]:
    """The depth-first cut in parts of a quarter of an executor's share, and its duration."""
    executors = min(task.shape.executors, JUDGED_EXECUTORS_MAX)
    starts = interval_starts(task.edges, task.cumulative, 4 * executors)
    parts = staged_parts(task.edges, task.weights_s, starts)
    parts = joined_small(parts, 2.0 * task.config.overhead_s)
    if parts.stage_count == len(parts.seconds) or len(parts.seconds) > 64 * executors:
        return parts, task.total_s  # a row, or so scattered that it is no better
    speed = task.shape.executors / executors
    overhead_s = task.config.overhead_s
    return parts, schedule_of(task.edges, parts, executors, speed, overhead_s, 0.0).makespan_s


def _levels_s(task: _Task, order: Int64, starts: Int64, executors: int, hop_s: float) -> float:
    """Estimated duration of a cut by levels; executors of one node go hand in hand through them."""
    config = task.config
    is_one_node = hop_s == 0.0 and config.hand_in_hand
    return levels_makespan_s(
        task.weights_s, order, starts, executors, config.bundle_s, config.overhead_s, hop_s,
        config.handover_s if is_one_node else math.inf,
    )  # fmt: skip


def _subtrees(task: _Task) -> Parts:
    """The depth-first cut for several nodes."""
    config, nodes = task.config, task.shape.nodes
    wanted = nodes * config.subtrees_a_node
    # A subtree costs a place, an answer and its objects' way to other nodes.
    worth = int(task.total_s / (HOP_OVERHEADS * config.overhead_s))
    count = max(1, min(wanted, worth))
    parts = staged_parts(
        task.edges, task.weights_s, interval_starts(task.edges, task.cumulative, count)
    )
    return joined_small(parts, task.total_s / (4 * count))


def _spread(task: _Task, parts: Parts) -> Cut:
    """A cut whose subtrees are these parts."""
    count = task.edges.task_count
    order = np.arange(count, dtype=np.int64) if parts.order is None else parts.order
    executors = task.node_executors
    if task.edges.count and executors > 1 and _is_narrow(task, executors):
        seen_s = BUNDLES_AHEAD * executors * task.config.bundle_s
        place = np.full(count, -1, dtype=np.int32)
        pieces = []
        subtrees = np.split(order, parts.starts[1:-1])
        for members, subtree_s in zip(subtrees, parts.seconds, strict=True):
            if subtree_s <= seen_s:  # a broker sees it as a whole, in whatever order
                pieces.append(members)
                continue
            place[members] = np.arange(len(members), dtype=np.int32)
            pieces.append(members[_lanes_of_subtree(task, members, place, executors)])
            place[members] = -1
        order = np.concatenate(pieces)
    none = np.empty(0, dtype=np.int32)
    return Cut(order.astype(np.int32), _split_large(parts.starts), False, none)


def _lanes_of_subtree(task: _Task, members: Int64, place: Int32, executors: int) -> Int64:
    """The order of a subtree's tasks by lanes, as places among its members.

    `place` is of each task of the graph its place among them, or -1.
    """
    indptr, deps = gather_rows(task.indptr, task.deps, members)
    edges = edges_of(indptr, place[deps])
    weights_s = task.weights_s[members]
    starts = interval_starts(edges, cumulated(weights_s), 4 * executors)
    parts = joined_small(staged_parts(edges, weights_s, starts), 2.0 * task.config.overhead_s)
    return laned_order(edges, weights_s, parts, executors, task.config)


def _whole_by_lanes(task: _Task, parts: Parts, executors: int) -> Cut:
    """All for one node, in the order of a schedule of parts."""
    order = laned_order(task.edges, task.weights_s, parts, executors, task.config)
    none = np.empty(0, dtype=np.int32)
    return Cut(order.astype(np.int32), _split_large([0, len(order)]), False, none)


def _whole(task_count: int) -> Cut:
    """All for one node, in depth-first order."""
    order = np.arange(task_count, dtype=np.int32)
    starts = _split_large([0, task_count] if task_count else [0])
    return Cut(order, starts, False, np.empty(0, dtype=np.int32))


def _whole_by_levels(order: Int64, starts: Int64) -> Cut:
    """All for one node, level by level; in a level in depth-first order."""
    subtree_starts = _split_large([0, len(order)])
    level_starts = np.union1d(starts, subtree_starts[:-1]).astype(np.int32)
    return Cut(order.astype(np.int32), subtree_starts, False, level_starts)


def _interlocked(task: _Task, levels: Int32, order: Int64, starts: Int64) -> Cut:
    """A subtree a node, of the same columns of all levels."""
    nodes = task.shape.nodes
    by_column, columns = by_columns(task.indptr, task.deps, task.weights_s, order, starts)
    node = np.minimum((columns * nodes).astype(np.int64), nodes - 1)
    by_node = stable_order(node)
    final = by_column[by_node]
    node_of_position = node[by_node]
    level_of_position = levels[final]
    begins = np.ones(len(final), dtype=np.bool_)
    begins[1:] = (level_of_position[1:] != level_of_position[:-1]) | (
        node_of_position[1:] != node_of_position[:-1]
    )
    present = np.flatnonzero(np.bincount(node_of_position, minlength=nodes))
    firsts = np.searchsorted(node_of_position, present)
    subtree_starts = np.append(firsts, len(final)).astype(np.int64)
    return Cut(
        final.astype(np.int32),
        subtree_starts,
        len(present) > 1,
        np.flatnonzero(begins).astype(np.int32),
    )


def _by_level(levels: Int32) -> tuple[Int64, Int64]:
    """Tasks by rising level, in each by number; and where each level begins."""
    counts = np.bincount(levels)
    starts = np.zeros(len(counts), dtype=np.int64)
    np.cumsum(counts[:-1], out=starts[1:])
    return stable_order(levels), starts


def _split_large(starts: list[int]) -> Int64:
    """The same borders, and even ones within subtrees of too many tasks."""
    points = [0]
    for start, end in pairwise(starts):
        pieces = -(-(end - start) // SUBTREE_TASKS_MAX)
        points.extend(start + (end - start) * piece // pieces for piece in range(1, pieces + 1))
    return np.array(points, dtype=np.int64)
