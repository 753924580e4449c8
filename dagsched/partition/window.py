"""The cut of a window of a subtree into bundles: what a broker does again and again.

Pure. A bundle goes to one executor as one thing and waits for all its inputs from outside, so the
bundles are listed such that each depends only on earlier ones. Windows of a few tasks (long ones)
are cut by plain lists, larger ones array-wise; both give the same bundles.
"""

import math
from itertools import accumulate, pairwise

import numpy as np

from dagsched.config import Config
from dagsched.partition.arrays import (
    Edges,
    Float64,
    cumulated,
    edges_of,
    stages_of,
)
from dagsched.partition.intervals import (
    Parts,
    cut_points,
    cut_points_small,
    even_count,
    interval_starts,
    interval_starts_small,
    joined_small,
    staged_parts,
    with_single_tasks,
)
from dagsched.plan import Int32, Int64

SMALL_TASKS_MAX = 64
"""Windows, and levels, of at most so many tasks are cut by plain lists."""


def cut_window(
    indptr: Int64,
    deps: Int32,
    weights_s: Float64,
    level_starts: Int32,
    executors: int,
    config: Config,
) -> list[Int32]:
    """Cut consecutive tasks of a subtree into bundles.

    Tasks are named by their index in the window, in topological order.

    Args:
        indptr: CSR of dependencies, from 0.
        deps: indexes; negative ones lie outside of the window.
        weights_s: expected seconds of each task.
        level_starts: indexes at which a level begins; empty: depth-first order.
        executors: of the node.
        config: ``bundle_s`` and ``overhead_s`` set the sizes.

    Returns:
        Bundles, each of rising indexes. Each index is in one bundle, and a bundle depends only on
        those listed before it.

    Example:
        >>> two = np.array([0.004, 0.004])
        >>> none = np.empty(0, dtype=np.int32)
        >>> bundles = cut_window(np.zeros(3, dtype=np.int64), none, two, none, 2, Config())
        >>> [bundle.tolist() for bundle in bundles]
        [[0], [1]]
    """
    task_count = len(weights_s)
    if task_count == 0:
        return []
    ids = np.arange(task_count, dtype=np.int32)
    if task_count == 1:
        return [ids]
    if task_count > SMALL_TASKS_MAX:
        total_s = float(weights_s.sum())
        shortest_s = float(weights_s.min())
    else:
        weights = weights_s.tolist()
        total_s = sum(weights)
        shortest_s = min(weights)
    if total_s < 2.0 * config.overhead_s:
        return [ids]
    if shortest_s >= config.bundle_s:
        return [ids[index : index + 1] for index in range(task_count)]
    if len(level_starts):
        return _ranges(ids, _level_slices(weights_s, level_starts, executors, config))
    if task_count <= SMALL_TASKS_MAX:
        return _bundles(ids, _small_parts(indptr, deps, weights, executors, config))
    return _bundles(ids, _large_parts(edges_of(indptr, deps), weights_s, executors, config))


def _ranges(ids: Int32, starts: list[int]) -> list[Int32]:
    """Contiguous bundles."""
    ends = [*starts[1:], len(ids)]
    return [ids[start:end] for start, end in zip(starts, ends, strict=True)]


def _bundles(ids: Int32, parts: Parts) -> list[Int32]:
    """The parts' members, rising in each."""
    if parts.order is None:
        return _ranges(ids, parts.starts[:-1])
    order = parts.order.astype(np.int32)
    bundles = []
    start = 0
    for end in parts.starts[1:]:
        members = order[start:end]
        members.sort()  # joined parts follow each other, each rising
        bundles.append(members)
        start = end
    return bundles


def _interval_count(light_s: float, total_s: float, executors: int, config: Config) -> int:
    """How many intervals the work makes that is not in tasks of their own.

    Half an executor's share of the work each, so that all have something to do to the end; at most
    a bundle, and not so little that messages cost as much as work.
    """
    if executors == 1:
        return even_count(light_s, config.bundle_s)
    share_s = max(total_s / (2 * executors), 2.0 * config.overhead_s)
    count = even_count(light_s, min(share_s, config.bundle_s))
    rounds = -(-count // executors)
    whole = rounds * executors
    # Five equal bundles on two executors last as long as six, so rather six smaller ones.
    return whole if count > executors and light_s >= whole * 2.0 * config.overhead_s else count


def _large_parts(edges: Edges, weights_s: Float64, executors: int, config: Config) -> Parts:
    """Bundles of a depth-first window, array-wise."""
    is_heavy = weights_s >= config.bundle_s
    heavy = np.flatnonzero(is_heavy).tolist()
    cumulative = cumulated(np.where(is_heavy, 0.0, weights_s) if heavy else weights_s)
    light_s = float(cumulative[-1])
    total_s = float(weights_s.sum()) if heavy else light_s
    count = _interval_count(light_s, total_s, executors, config)
    starts = interval_starts(edges, cumulative, count)
    starts = with_single_tasks(starts, heavy, edges.task_count)
    if executors == 1:
        return _plain(starts, edges.task_count)
    parts = staged_parts(edges, weights_s, starts)
    if parts.stage_count == len(parts.seconds):
        # One waits for the other all along: no use in more bundles than their size asks for.
        starts = interval_starts(edges, cumulative, even_count(light_s, config.bundle_s))
        return _plain(with_single_tasks(starts, heavy, edges.task_count), edges.task_count)
    alone = None
    if heavy:
        task_order = parts.order if parts.order is not None else np.arange(edges.task_count)
        waits = is_heavy.copy()
        waits[edges.tasks[is_heavy[edges.deps]]] = True
        alone = np.logical_or.reduceat(waits[task_order], parts.starts[:-1]).tolist()
    return joined_small(parts, 2.0 * config.overhead_s, alone)


def _small_parts(
    indptr: Int64, deps: Int32, weights: list[float], executors: int, config: Config
) -> Parts:
    """Bundles of a depth-first window, by plain lists: the same as `_large_parts`."""
    task_count = len(weights)
    bundle_s = config.bundle_s
    heavy = [task for task, weight in enumerate(weights) if weight >= bundle_s]
    light = [0.0 if weight >= bundle_s else weight for weight in weights] if heavy else weights
    cumulative = list(accumulate(light, initial=0.0))
    light_s = cumulative[-1]
    sources, targets = _small_edges(indptr, deps)
    total_s = sum(weights) if heavy else light_s
    count = _interval_count(light_s, total_s, executors, config)
    starts = interval_starts_small(sources, targets, cumulative, count)
    starts = with_single_tasks(starts, heavy, task_count)
    if executors == 1:
        return _plain(starts, task_count)
    parts = _small_staged(sources, targets, weights, starts)
    if parts.stage_count == len(parts.seconds):
        starts = interval_starts_small(sources, targets, cumulative, even_count(light_s, bundle_s))
        return _plain(with_single_tasks(starts, heavy, task_count), task_count)
    alone = None
    if heavy:
        heavies = set(heavy)
        waits = heavies.union(
            target for source, target in zip(sources, targets, strict=True) if source in heavies
        )
        order = parts.order.tolist() if parts.order is not None else range(task_count)
        alone = [
            any(task in waits for task in order[start:end]) for start, end in pairwise(parts.starts)
        ]
    return joined_small(parts, 2.0 * config.overhead_s, alone)


def _small_edges(indptr: Int64, deps: Int32) -> tuple[list[int], list[int]]:
    """Edges inside the window: dependencies, tasks."""
    bounds, names = indptr.tolist(), deps.tolist()
    sources: list[int] = []
    targets: list[int] = []
    for task, (start, end) in enumerate(pairwise(bounds)):
        for dep in names[start:end]:
            if dep >= 0:
                sources.append(dep)
                targets.append(task)
    return sources, targets


def _small_staged(
    sources: list[int], targets: list[int], weights: list[float], starts: list[int]
) -> Parts:
    """The same as `staged_parts`, by plain lists."""
    task_count = len(weights)
    interval = [0] * task_count
    for start in starts[1:]:
        interval[start] = 1
    interval = list(accumulate(interval))
    crosses = [
        interval[source] != interval[target]
        for source, target in zip(sources, targets, strict=True)
    ]
    if True not in crosses:
        bounds = [*starts, task_count]
        seconds = [sum(weights[start:end]) for start, end in pairwise(bounds)]
        return Parts(None, bounds, seconds, 1)
    stage = stages_of(sources, targets, crosses, task_count)
    order = sorted(range(task_count), key=stage.__getitem__)
    part_starts: list[int] = []
    seconds = []
    before = (-1, -1)
    for place, task in enumerate(order):
        key = (stage[task], interval[task])
        if key != before:
            part_starts.append(place)
            seconds.append(0.0)
            before = key
        seconds[-1] += weights[task]
    return Parts(np.array(order), [*part_starts, task_count], seconds, max(stage) + 1)


def _plain(starts: list[int], task_count: int) -> Parts:
    """Intervals as they are."""
    return Parts(None, [*starts, task_count], [0.0] * len(starts), len(starts))


def _level_slices(
    weights_s: Float64, level_starts: Int32, executors: int, config: Config
) -> list[int]:
    """Starts of bundles in a window that is ordered by levels.

    A level is split among the executors where that pays; levels that are not follow each other in
    one bundle, without a message between them, up to the size of a bundle.
    """
    task_count = len(weights_s)
    starts = [0, *(start for start in level_starts.tolist() if 0 < start < task_count)]
    works_s = np.add.reduceat(weights_s, starts).tolist()
    is_heavy = weights_s >= config.bundle_s
    has_heavy = np.logical_or.reduceat(is_heavy, starts).tolist()
    points: list[int] = []
    open_s = 0.0  # work of the bundle that further levels may join
    for start, end, work_s, heavy in zip(
        starts, [*starts[1:], task_count], works_s, has_heavy, strict=True
    ):
        slices = 1 if end == start + 1 else _slice_count(work_s, executors, config)
        if slices == 1 and not heavy:
            if not points or open_s + work_s > config.bundle_s:
                points.append(start)
                open_s = 0.0
            open_s += work_s
            continue
        open_s = math.inf  # nothing joins a slice
        light_s = weights_s[start:end]
        singles: list[int] = []
        if heavy:
            singles = np.flatnonzero(is_heavy[start:end]).tolist()
            light_s = np.where(is_heavy[start:end], 0.0, light_s)
            slices = _slice_count(float(light_s.sum()), executors, config)
        slice_starts = with_single_tasks(_slice_starts(light_s, slices), singles, end - start)
        points.extend(start + point for point in slice_starts)
    return points


def _slice_count(work_s: float, executors: int, config: Config) -> int:
    """Into how many bundles the work of one level is split."""
    if work_s < 2.0 * config.overhead_s:
        return 1
    return max(min(executors, int(work_s / config.overhead_s)), even_count(work_s, config.bundle_s))


def _slice_starts(weights_s: Float64, slices: int) -> list[int]:
    """Starts of even slices of one level."""
    count = len(weights_s)
    if count > SMALL_TASKS_MAX:
        return cut_points(cumulated(weights_s), None, slices)
    cumulative = list(accumulate(weights_s.tolist(), initial=0.0))
    return cut_points_small(cumulative, [0] * (count + 1), slices)
