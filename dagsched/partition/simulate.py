"""How long a cut would take: list scheduling of its parts, and of levels one after the other.

Pure. The estimates choose between cuts; they need to rank them, not to be right. Their time is
bounded by the number of parts they are given, not by a clock, so that a cut never depends on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from dagsched.partition.arrays import Edges, Float64, distinct
from dagsched.partition.intervals import Parts
from dagsched.plan import Int64

MATRIX_PARTS_MAX = 2048
"""Up to so many parts their dependencies are marked in a matrix (4 MiB) instead of sorted."""


def part_edges(edges: Edges, parts: Parts) -> tuple[list[int], list[int]]:
    """Dependencies between parts, each once: (part depended on, part), by rising pairs."""
    count = len(parts.seconds)
    part = np.repeat(np.arange(count, dtype=np.int64), np.diff(np.array(parts.starts)))
    if parts.order is not None:
        part_by_task = np.empty_like(part)
        part_by_task[parts.order] = part
        part = part_by_task
    sources, targets = part[edges.deps], part[edges.tasks]
    pairs = sources * count + targets
    if count <= MATRIX_PARTS_MAX:
        marked = np.zeros(count * count, dtype=np.bool_)
        marked[pairs] = True
        pairs = np.flatnonzero(marked)
    else:
        pairs = distinct(pairs)
    sources, targets = pairs // count, pairs % count
    between = sources != targets
    return sources[between].tolist(), targets[between].tolist()


def list_starts_s(
    seconds: Sequence[float],
    sources: Sequence[int],
    targets: Sequence[int],
    executors: int,
    hop_s: float = 0.0,
) -> list[float]:
    """When each part starts, if idle executors take the ready part with the lowest number.

    Args:
        seconds: how long each part takes.
        sources: for each dependency the part depended on.
        targets: and the part that waits for it.
        executors: parts that run at the same time.
        hop_s: how long after its end a part's values are with its dependents.
    """
    waits = [0] * len(seconds)
    dependents: list[list[int]] = [[] for _ in seconds]
    for source, target in zip(sources, targets, strict=True):
        waits[target] += 1
        dependents[source].append(target)
    ready = [part for part, count in enumerate(waits) if count == 0]
    heapify(ready)
    events: list[tuple[float, int, int]] = []  # (time, 0: ended or 1: values arrived, part)
    starts = [0.0] * len(seconds)
    idle, now = executors, 0.0
    while ready or events:
        while ready and idle:
            part = heappop(ready)
            starts[part] = now
            heappush(events, (now + seconds[part], 0, part))
            idle -= 1
        now, kind, part = heappop(events)
        if kind == 0:
            idle += 1
            if dependents[part]:
                heappush(events, (now + hop_s, 1, part))
        else:
            for target in dependents[part]:
                waits[target] -= 1
                if waits[target] == 0:
                    heappush(ready, target)
    return starts


@dataclass(frozen=True, slots=True)
class Schedule:
    """An estimated schedule of parts."""

    starts_s: list[float]
    makespan_s: float


def schedule_of(
    edges: Edges, parts: Parts, executors: int, speed: float, overhead_s: float, hop_s: float
) -> Schedule:
    """List scheduling of a cut in parts.

    Args:
        edges: of the tasks.
        parts: the cut.
        executors: places that run a part each.
        speed: seconds of work that such a place does in a second.
        overhead_s: what each part costs beside its work.
        hop_s: how long values take from a part to those that wait for it.
    """
    sources, targets = part_edges(edges, parts)
    lasting = [part_s / speed + overhead_s for part_s in parts.seconds]
    starts_s = list_starts_s(lasting, sources, targets, executors, hop_s)
    ends = (start_s + part_s for start_s, part_s in zip(starts_s, lasting, strict=True))
    return Schedule(starts_s, max(ends, default=0.0))


def levels_makespan_s(
    weights_s: Float64,
    order: Int64,
    starts: Int64,
    executors: int,
    bundle_s: float,
    overhead_s: float,
    hop_s: float,
    handover_s: float = math.inf,
) -> float:
    """Estimated duration if each level is split among the executors and waits for the one before.

    Args:
        weights_s: work of each task.
        order: tasks by rising level.
        starts: where each level begins in that order.
        executors: of all nodes that share a level.
        bundle_s: most work of a bundle.
        overhead_s: what a bundle costs; a level of less than twice that is not split.
        hop_s: what each level costs more for values that go to other nodes.
        handover_s: what a level costs where executors hand values over to each other; infinite:
            they don't.
    """
    ordered = weights_s[order]
    level_s = np.add.reduceat(ordered, starts)
    longest_s = np.maximum.reduceat(ordered, starts)
    widths = np.diff(np.append(starts, len(order)))
    slices = np.minimum(executors, np.floor(level_s / overhead_s))
    slices = np.maximum(np.maximum(slices, np.ceil(level_s / bundle_s)), 1.0)
    slices = np.minimum(slices, widths)
    at_once = np.minimum(slices, executors)
    split_s = np.maximum(longest_s, level_s / at_once) + overhead_s * np.ceil(slices / executors)
    lasting_s = np.where(level_s < 2.0 * overhead_s, level_s, split_s)
    lanes_s = np.maximum(longest_s, level_s / np.minimum(widths, executors)) + handover_s
    lasting_s = np.where(longest_s < bundle_s, np.minimum(lasting_s, lanes_s), lasting_s)
    return float((lasting_s + hop_s).sum())
