"""Contiguous intervals of a topological order, and their split by what they wait for.

Pure. A part waits for all its inputs before it starts, so plain intervals of a tree's post-order
would run one after the other: each ends with merges that need roots of the intervals before it.
Therefore each task gets a *stage*, the most borders of intervals that a path to it crosses, and a
part is what one interval has of one stage. Every dependency is in the same part, or of a lower
stage, so that the parts listed by (stage, interval) depend only on earlier ones. A tree becomes
subtrees (stage 0) and a few tops; a chain stays a row of intervals, as each has a stage of its own.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from dagsched.partition.arrays import Edges, Float64, crossing_counts, stable_order, staged
from dagsched.plan import Int64

SLACK = 0.25
"""A border may lie this share of an interval off its even place, where fewer values cross."""

NEAR = 0.75
"""A value's way to its first dependent is short if it is less work than this share of a part."""

LONG = 0.6
"""A stretch between seams of at least this share of a part is a block; others run together."""

STEEPNESS = 8.0
"""How soon distance outweighs values that cross: at an eighth of an interval a value counts twice.

Tried on trees, chains and layers with 2 and 4 executors: of 1, 4 and 8, linear and squared, this
one lost least to uneven parts, with no more than a few per cent more values crossing.
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts as ranges of an order: part g is ``order[starts[g]:starts[g + 1]]``."""

    order: Int64 | None  # None: as it was
    starts: list[int]  # one more than there are parts
    seconds: list[float]  # work of each part
    stage_count: int


def even_count(total_s: float, target_s: float) -> int:
    """How many intervals of at most about the target the work makes."""
    return max(1, math.ceil(total_s / target_s - 1e-6))


def cut_points(cumulative: Float64, crossing: Int64 | None, count: int) -> list[int]:
    """Starts of at most `count` intervals of about equal work, at borders that few values cross.

    The cost of a border is the values that cross it, plus one, times one plus the square of its
    distance from the even place (in intervals, times `STEEPNESS`); the first of equals is taken.

    Args:
        cumulative: work before each task, and in all.
        crossing: values that cross each cut; None: nowhere any.
        count: intervals wanted.

    Returns:
        Rising task numbers, the first 0, each less than the number of tasks.
    """
    task_count = len(cumulative) - 1
    target_s = float(cumulative[-1]) / count
    if not target_s > 0.0:
        return [0]
    ideals = np.arange(1, count, dtype=np.float64) * target_s
    if crossing is None:
        right = np.clip(np.searchsorted(cumulative, ideals), 1, task_count)
        left_nearer = ideals - cumulative[right - 1] <= cumulative[right] - ideals
        return _distinct((right - left_nearer).tolist(), task_count)
    lows = np.searchsorted(cumulative, ideals - SLACK * target_s, side="left").tolist()
    highs = np.searchsorted(cumulative, ideals + SLACK * target_s, side="right").tolist()
    points = []
    for ideal, low, high in zip(ideals.tolist(), lows, highs, strict=True):
        if low >= high:  # no border that near: the two around the even place
            low, high = max(low - 1, 0), min(low + 1, task_count + 1)
        distance = np.abs(cumulative[low:high] - ideal)
        cost = (crossing[low:high] + 1) * (1.0 + (STEEPNESS * distance / target_s) ** 2)
        points.append(low + int(cost.argmin()))
    return _distinct(points, task_count)


def cut_points_small(cumulative: Sequence[float], crossing: Sequence[int], count: int) -> list[int]:
    """The same as `cut_points`, by plain lists: for a few tasks, where numpy's calls cost more."""
    task_count = len(cumulative) - 1
    target_s = cumulative[-1] / count
    if not target_s > 0.0:
        return [0]
    points = []
    for number in range(1, count):
        ideal = number * target_s
        low = bisect_left(cumulative, ideal - SLACK * target_s)
        high = bisect_right(cumulative, ideal + SLACK * target_s)
        if low >= high:
            low, high = max(low - 1, 0), min(low + 1, task_count + 1)
        best, best_cost = low, math.inf
        for cut in range(low, high):
            distance = abs(cumulative[cut] - ideal)
            cost = (crossing[cut] + 1) * (1.0 + (STEEPNESS * distance / target_s) ** 2)
            if cost < best_cost:
                best, best_cost = cut, cost
        points.append(best)
    return _distinct(points, task_count)


def _distinct(points: list[int], task_count: int) -> list[int]:
    """0 and the rising points inside the order, each once."""
    return [0, *sorted({point for point in points if 0 < point < task_count})]


def interval_starts(edges: Edges, cumulative: Float64, count: int) -> list[int]:
    """Starts of about `count` intervals: blocks apart, and in each even borders.

    A block is a stretch between *seams*, borders that no value crosses on a short way to its first
    dependent. An interval over a seam would tie together what runs side by side: of two chains in
    alternating pieces, a bundle with the end of one and the start of the other waits for both.

    Args:
        edges: of the tasks.
        cumulative: work before each task, and in all.
        count: intervals wanted, if there were no seams.
    """
    if not edges.count or not float(cumulative[-1]) > 0.0:
        return cut_points(cumulative, None, count)
    task_count = edges.task_count
    target_s = float(cumulative[-1]) / count
    crossing = crossing_counts(edges)
    first = np.full(task_count, -1, dtype=np.int64)
    # Of repeated indexes the last assignment stays: here the first dependent.
    first[edges.deps[::-1]] = edges.tasks[::-1]
    used = np.flatnonzero(first >= 0)
    ends = first[used]
    near = cumulative[ends] - cumulative[used + 1] < NEAR * target_s
    change = np.bincount(used[near] + 1, minlength=task_count + 2)
    change -= np.bincount(ends[near] + 1, minlength=task_count + 2)
    seams = np.flatnonzero(np.cumsum(change[: task_count + 1]) == 0)
    long = np.flatnonzero(np.diff(cumulative[seams]) >= LONG * target_s)
    blocks = sorted({0, *seams[long].tolist(), *seams[long + 1].tolist(), task_count})
    if len(blocks) == 2:
        return cut_points(cumulative, crossing, count)
    starts: list[int] = []
    for start, end in pairwise(blocks):
        own = cumulative[start : end + 1] - cumulative[start]
        pieces = block_pieces(float(own[-1]), target_s)
        points = cut_points(own, crossing[start : end + 1], pieces) if pieces > 1 else [0]
        starts.extend(start + point for point in points)
    return starts


def interval_starts_small(
    sources: Sequence[int], targets: Sequence[int], cumulative: Sequence[float], count: int
) -> list[int]:
    """The same as `interval_starts`, by plain lists."""
    task_count = len(cumulative) - 1
    target_s = cumulative[-1] / count
    first = [-1] * task_count
    last = [-1] * task_count
    for source, target in zip(sources, targets, strict=True):
        if first[source] < 0:
            first[source] = target
        last[source] = target
    change = [0] * (task_count + 2)
    near_change = [0] * (task_count + 2)
    for task, end in enumerate(last):
        if end < 0:
            continue
        change[task + 1] += 1
        change[end + 1] -= 1
        if cumulative[first[task]] - cumulative[task + 1] < NEAR * target_s:
            near_change[task + 1] += 1
            near_change[first[task] + 1] -= 1
    crossing = list(accumulate(change[: task_count + 1]))
    blocks = {0, task_count}
    if sources and target_s > 0.0:
        near = accumulate(near_change[: task_count + 1])
        seams = [cut for cut, values in enumerate(near) if values == 0]
        for start, end in pairwise(seams):
            if cumulative[end] - cumulative[start] >= LONG * target_s:
                blocks.add(start)
                blocks.add(end)
    if len(blocks) == 2:
        return cut_points_small(cumulative, crossing, count)
    starts: list[int] = []
    for start, end in pairwise(sorted(blocks)):
        before = cumulative[start]
        own = [work - before for work in cumulative[start : end + 1]]
        points = cut_points_small(own, crossing[start : end + 1], block_pieces(own[-1], target_s))
        starts.extend(start + point for point in points)
    return starts


def block_pieces(block_s: float, target_s: float) -> int:
    """Into how many intervals a block is cut: of three quarters to three halves of the target."""
    return max(1, int(block_s / target_s + 0.5))


def with_single_tasks(starts: list[int], singles: Sequence[int], task_count: int) -> list[int]:
    """The starts, and more, so that each of `singles` is an interval of its own."""
    if not singles:
        return starts
    points = {*starts, *singles, *(single + 1 for single in singles)}
    points.discard(task_count)
    return sorted(points)


def staged_parts(edges: Edges, weights_s: Float64, starts: list[int]) -> Parts:
    """Split intervals into parts by stage, listed by (stage, interval)."""
    count = edges.task_count
    bounds = np.array([*starts, count], dtype=np.int64)
    lengths = np.diff(bounds)
    interval = np.repeat(np.arange(len(starts), dtype=np.int64), lengths)
    crosses = interval[edges.deps] != interval[edges.tasks]
    if not crosses.any():
        seconds = np.add.reduceat(weights_s, bounds[:-1]).tolist()
        return Parts(None, bounds.tolist(), seconds, 1)
    if np.array_equal(edges.deps, edges.tasks - 1):  # chains, one after the other
        chain_first = np.arange(count, dtype=np.int64)
        chain_first[edges.tasks] = 0
        stage = interval - interval[np.maximum.accumulate(chain_first)]
    else:
        stage = staged(edges, crosses)
    order = stable_order(stage)
    key = (stage * len(starts) + interval)[order]
    borders = np.flatnonzero(key[1:] != key[:-1]) + 1
    part_starts = np.concatenate((np.zeros(1, dtype=np.int64), borders))
    seconds = np.add.reduceat(weights_s[order], part_starts).tolist()
    return Parts(order, [*part_starts.tolist(), count], seconds, int(stage.max()) + 1)


def joined_small(parts: Parts, limit_s: float, alone: Sequence[bool] | None = None) -> Parts:
    """Join parts that follow each other in the list, as long as together they stay in the limit.

    What is listed next to each other can be joined without a cycle. A part marked `alone` is left.
    """
    starts: list[int] = []
    seconds: list[float] = []
    open_s = math.inf  # work of the last part that may still grow; inf: none may
    for number, part_s in enumerate(parts.seconds):
        if alone is not None and alone[number]:
            starts.append(parts.starts[number])
            seconds.append(part_s)
            open_s = math.inf
        elif open_s + part_s <= limit_s:
            open_s += part_s
            seconds[-1] = open_s
        else:
            starts.append(parts.starts[number])
            seconds.append(part_s)
            open_s = part_s
    starts.append(parts.starts[-1])
    return Parts(parts.order, starts, seconds, parts.stage_count)
