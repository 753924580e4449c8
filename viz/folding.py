"""Graphs too large to draw task by task: boxes of neighbouring tasks, with counts.

Pure. A box is a subtree of the run where the cut is known, else an interval of the graph's ids;
these are in depth-first order, so that an interval is a piece of the graph that hangs together.
Only whole-array passes here: what is walked in Python is what is drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dagsched.trace import Trace
from dagsched.viz.model import (
    BOXES_MAX,
    EDGES_PER_BOX_MAX,
    Integers,
    Mark,
    State,
    Tasks,
    executions_of,
    ranks,
)

Pairs = Sequence[tuple[int, int]]

_BOXES_MIN = 15


class Folded(NamedTuple):
    """A graph as boxes."""

    marks: list[Mark]
    edges: Pairs
    back_edges: Pairs  # that lead to an earlier box
    box_of: Integers  # of each task


def fold(tasks: Tasks, trace: Trace | None, dependencies: Integers, dependents: Integers) -> Folded:
    """Boxes and the edges between them; so few boxes that these can be followed.

    Args:
        tasks: the graph.
        trace: of the run, or None.
        dependencies: of each edge between tasks.
        dependents: of each edge between tasks.
    """
    boxes_max = BOXES_MAX
    while True:
        box_of, labels = _boxes(tasks, trace, boxes_max)
        count = len(labels)
        sources = box_of[dependencies].astype(np.int64)
        targets = box_of[dependents].astype(np.int64)
        crossing = sources != targets
        pairs = np.unique(targets[crossing] * count + sources[crossing])
        box_of, labels, pairs = _in_order(box_of, labels, pairs)
        if len(pairs) <= EDGES_PER_BOX_MAX * count or boxes_max <= _BOXES_MIN:
            break
        boxes_max //= 2
    edges = [(int(pair % count), int(pair // count)) for pair in pairs]
    forward = [edge for edge in edges if edge[0] < edge[1]]
    backward = [edge for edge in edges if edge[0] > edge[1]]
    return Folded(_box_marks(tasks, trace, box_of, labels), forward, backward, box_of)


def _boxes(tasks: Tasks, trace: Trace | None, boxes_max: int) -> tuple[Integers, list[str]]:
    """The box of each task, and each box's label."""
    size = -(-tasks.count // boxes_max)
    intervals = np.arange(tasks.count) // size
    labels = [f"part {box}" for box in range(int(intervals[-1]) + 1)]
    if trace is None or not len(trace.part):
        return intervals, labels
    present, parts = np.unique(trace.part, return_inverse=True)
    if len(present) < 2 or len(present) > boxes_max:
        return intervals, labels
    return _pieces(parts, present.tolist(), boxes_max)


def _pieces(part_of: Integers, parts: Sequence[int], boxes_max: int) -> tuple[Integers, list[str]]:
    """Parts cut into intervals of ids, about `boxes_max` / 2 in all, with a label each."""
    order = np.argsort(part_of, kind="stable")
    sizes = np.bincount(part_of)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.empty(len(part_of), np.int64)
    place[order] = np.arange(len(part_of)) - np.repeat(starts, sizes)
    size = -(-len(part_of) // (boxes_max // 2))
    counts = -(-sizes // size)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    box_of = first[part_of] + place * counts[part_of] // sizes[part_of]
    labels = [
        f"subtree {part}" if count == 1 else f"subtree {part}, {piece + 1} of {count}"
        for part, count in zip(parts, counts.tolist(), strict=True)
        for piece in range(count)
    ]
    return box_of, labels


def _in_order(
    box_of: Integers, labels: Sequence[str], pairs: Integers
) -> tuple[Integers, list[str], Integers]:
    """Boxes numbered anew so that edges lead forward, as far as boxes don't wait for each other.

    Kahn's algorithm; among those that may come next, and where none may, the lowest mean id.

    Args:
        box_of: of each task.
        labels: of each box.
        pairs: of edges between boxes: dependent times the number of boxes, and dependency.
    """
    count = len(labels)
    means = np.bincount(box_of, weights=np.arange(len(box_of))) / np.bincount(box_of)
    by_mean = np.argsort(means, kind="stable").tolist()
    missing = [0] * count
    dependents: list[list[int]] = [[] for _ in range(count)]
    for target, source in zip(*(part.tolist() for part in np.divmod(pairs, count)), strict=True):
        missing[target] += 1
        dependents[source].append(target)
    order: list[int] = []
    left = by_mean
    while left:
        box = next((one for one in left if not missing[one]), left[0])
        left.remove(box)
        order.append(box)
        for dependent in dependents[box]:
            missing[dependent] -= 1
    number = np.empty(count, np.int64)
    number[order] = np.arange(count)
    targets, sources = np.divmod(pairs, count)
    renumbered = np.sort(number[targets] * count + number[sources])
    return number[box_of], [labels[box] for box in order], renumbered


def _box_marks(
    tasks: Tasks, trace: Trace | None, box_of: Integers, labels: Sequence[str]
) -> list[Mark]:
    count = len(labels)
    sizes = np.bincount(box_of, minlength=count)
    functions = len(tasks.functions)
    pairs, amounts = np.unique(
        box_of.astype(np.int64) * functions + tasks.function_of, return_counts=True
    )
    contents: list[list[tuple[int, str]]] = [[] for _ in range(count)]
    for pair, amount in zip(pairs.tolist(), amounts.tolist(), strict=True):
        box, function = divmod(pair, functions)
        contents[box].append((-amount, tasks.functions[function]))
    details = [
        ", ".join(f"{name} x {-amount:,}" for amount, name in sorted(content)[:4])
        + (f" and {len(content) - 4} more functions" if len(content) > 4 else "")
        for content in contents
    ]
    names = [min(content)[1] for content in contents]
    if trace is None:
        return [
            Mark(labels[box], names[box], task_count=int(sizes[box]), detail=details[box])
            for box in range(count)
        ]
    start_ns = np.full(count, np.iinfo(np.int64).max)
    ran = trace.ran
    np.minimum.at(start_ns, box_of[ran], trace.start_ns[ran])
    start_ns[start_ns == np.iinfo(np.int64).max] = -1
    busy_ns = np.bincount(box_of[ran], weights=trace.duration_ns[ran], minlength=count)
    executions = np.zeros(count, np.int64)
    np.maximum.at(executions, box_of, executions_of(trace))
    failed = set(box_of[list(trace.failed)].tolist())
    nodes = _most_common(box_of[ran], trace.node[ran], count)
    executors = _most_common(box_of[ran], trace.executor[ran], count)
    return [
        Mark(
            labels[box],
            names[box],
            State.FAILED if box in failed else State.DONE if start >= 0 else State.WAITING,
            nodes[box],
            executors[box],
            start,
            int(busy_ns[box]) if start >= 0 else -1,
            rank,
            int(executions[box]),
            task_count=int(sizes[box]),
            detail=details[box],
        )
        for box, (start, rank) in enumerate(zip(start_ns.tolist(), ranks(start_ns), strict=True))
    ]


def _most_common(box_of: Integers, values: Integers, count: int) -> list[int]:
    """For each box the value that most of its tasks have, the lowest among equals; -1 for none."""
    result = [-1] * count
    if not len(values):
        return result
    base = int(values.max()) + 1
    pairs, amounts = np.unique(box_of.astype(np.int64) * base + values, return_counts=True)
    best = [0] * count
    for pair, amount in zip(pairs.tolist(), amounts.tolist(), strict=True):
        box, value = divmod(pair, base)
        if amount > best[box]:
            best[box], result[box] = amount, value
    return result
