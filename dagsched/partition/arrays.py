"""Passes over a graph's arrays that every cut needs: edges, crossing values, levels, gathers.

Pure. A graph is a CSR of dependencies whose ids are topological (each dependency is less than its
task). What runs along paths is a scan over edges, in `_scans.c`: 2 ns an edge whatever the depth,
where a pass by frontiers costs microseconds a level and so fails on a chain. Where there is no
compiler it is a scan over lists, 100 ns an edge, and graphs of a few levels are gone through by
whole passes instead, a tenth of that each (`SHALLOW_PASSES`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dagsched.plan import Int32, Int64

Float64 = NDArray[np.float64]
SHALLOW_PASSES = 4
"""Graphs of fewer levels are gone through by passes over all edges, one a level and one more."""

SHALLOW_EDGES_MIN = 256
"""For fewer edges lists are as fast."""


def _compiled() -> ModuleType | None:
    try:
        from dagsched.partition import _scans
    except ImportError:
        return None
    return _scans


_scans = _compiled()

Integers = TypeVar("Integers", bound=NDArray[np.signedinteger[Any]])


@dataclass(frozen=True, slots=True)
class Edges:
    """The dependencies of ``task_count`` tasks, one entry an edge, by rising task."""

    task_count: int
    tasks: Int64
    deps: Int32

    @property
    def count(self) -> int:
        """Edges."""
        return len(self.deps)


def edges_of(indptr: Int64, deps: Int32) -> Edges:
    """The edges of a CSR; negative dependencies (outside of what is looked at) are left out."""
    task_count = len(indptr) - 1
    tasks = np.repeat(np.arange(task_count, dtype=np.int64), np.diff(indptr))
    if len(deps) and int(deps.min()) < 0:
        inside = deps >= 0
        return Edges(task_count, tasks[inside], deps[inside])
    return Edges(task_count, tasks, deps)


def crossing_counts(edges: Edges) -> Int64:
    """How many values cross each cut: ``[c]`` is of the cut before task c, ``task_count + 1`` cuts.

    Value u crosses cut c if u < c and some dependent of u is c or later.
    """
    count = edges.task_count
    last = np.full(count, -1, dtype=np.int64)
    # Edges come by rising task, and of repeated indexes numpy keeps the last assignment.
    last[edges.deps] = edges.tasks
    used = last >= 0
    change = np.zeros(count + 2, dtype=np.int64)
    change[1 : count + 1] = used
    change -= np.bincount(last[used] + 1, minlength=count + 2)
    return np.cumsum(change[: count + 1])


def cumulated(weights_s: Float64) -> Float64:
    """Work before each task, and in all: one more than there are tasks."""
    cumulative = np.empty(len(weights_s) + 1, dtype=np.float64)
    cumulative[0] = 0.0
    np.cumsum(weights_s, out=cumulative[1:])
    return cumulative


def levels_of(edges: Edges, weights_s: Float64) -> tuple[Int32, float]:
    """Each task's level (longest path to it, in edges), and the critical path in seconds."""
    if _scans is None:
        return levels_plainly(edges, weights_s)
    level = np.zeros(edges.task_count, dtype=np.int32)
    start = np.zeros(edges.task_count, dtype=np.float64)
    weights_s = np.ascontiguousarray(weights_s, np.float64)
    _scans.levels(*_columns(edges), weights_s, level, start)
    return level, float((start + weights_s).max(initial=0.0))


def _columns(edges: Edges) -> tuple[Int32, Int64]:
    return (
        np.ascontiguousarray(edges.deps, np.int32),
        np.ascontiguousarray(edges.tasks, np.int64),
    )


def levels_plainly(edges: Edges, weights_s: Float64) -> tuple[Int32, float]:
    """The same without compiled parts."""
    count = edges.task_count
    known = _levels_of_chains(edges, weights_s) or _levels_of_shallow(edges, weights_s)
    if known is not None:
        return known
    level = [0] * count
    start = [0.0] * count
    weights = weights_s.tolist()
    for dep, task in zip(edges.deps.tolist(), edges.tasks.tolist(), strict=True):
        above = level[dep] + 1
        if above > level[task]:
            level[task] = above
        end = start[dep] + weights[dep]
        if end > start[task]:
            start[task] = end
    critical_s = float((np.array(start) + weights_s).max()) if count else 0.0
    return np.array(level, dtype=np.int32), critical_s


def _levels_of_chains(edges: Edges, weights_s: Float64) -> tuple[Int32, float] | None:
    """The same, array-wise, where each task depends on the one just before it or on nothing."""
    if edges.count and not np.array_equal(edges.deps, edges.tasks - 1):
        return None
    count = edges.task_count
    first = np.arange(count, dtype=np.int64)
    ids = first.copy()
    first[edges.tasks] = 0
    first = np.maximum.accumulate(first)
    cumulative = cumulated(weights_s)
    longest_s = float((cumulative[1:] - cumulative[first]).max()) if count else 0.0
    return (ids - first).astype(np.int32), longest_s


def _levels_of_shallow(edges: Edges, weights_s: Float64) -> tuple[Int32, float] | None:
    """The same, array-wise, where no path is long."""
    if _has_long_path(edges):
        return None
    passes = _Passes(edges)
    level = np.zeros(edges.task_count, dtype=np.int32)
    start = np.zeros(edges.task_count, dtype=np.float64)
    while passes.may_go_on:
        if passes.raise_to(level, level[edges.deps] + np.int32(1)):
            return level, float((start + weights_s).max())
        start[passes.tasks] = passes.most((start + weights_s)[edges.deps])
    return None


def _has_long_path(edges: Edges) -> bool:
    """Whether the path backwards from the last task that has one, by last dependencies, is long."""
    edge, length = edges.count - 1, 0
    while edge >= 0 and length < SHALLOW_PASSES:
        length += 1
        dep = edges.deps[edge]
        edge = int(np.searchsorted(edges.tasks, dep, side="right")) - 1
        if edge >= 0 and edges.tasks[edge] != dep:
            return False
    return length == SHALLOW_PASSES


def staged(edges: Edges, crosses: NDArray[np.bool_]) -> Int64:
    """For each task the most borders between intervals on a path to it.

    Args:
        edges: of all tasks.
        crosses: by edge, whether its ends lie in different intervals.
    """
    if _scans is None:
        return staged_plainly(edges, crosses)
    stage = np.zeros(edges.task_count, dtype=np.int64)
    _scans.stages(*_columns(edges), np.ascontiguousarray(crosses, np.bool_), stage)
    return stage


def staged_plainly(edges: Edges, crosses: NDArray[np.bool_]) -> Int64:
    """The same without compiled parts."""
    passes = _Passes(edges)
    stage = np.zeros(edges.task_count, dtype=np.int64)
    while passes.may_go_on:
        if passes.raise_to(stage, stage[edges.deps] + crosses):
            return stage
    first = int(crosses.argmax())  # all before is of stage 0
    deps, tasks = edges.deps[first:].tolist(), edges.tasks[first:].tolist()
    return np.array(
        stages_of(deps, tasks, crosses[first:].tolist(), edges.task_count), dtype=np.int64
    )


class _Passes:
    """Whole passes over all edges, until nothing changes; given up where paths seem to be long."""

    def __init__(self, edges: Edges) -> None:
        self.may_go_on = edges.count >= SHALLOW_EDGES_MIN
        self._left = SHALLOW_PASSES
        self._heads: Int64 = np.flatnonzero(_starts_of_runs(edges.tasks))
        self.tasks = edges.tasks[self._heads]
        """Those that depend on something."""
        self._changed = len(self.tasks)

    def most(self, values: NDArray[Any]) -> NDArray[Any]:
        """Of values by edge, the greatest for each task."""
        return np.asarray(np.maximum.reduceat(values, self._heads))

    def raise_to(self, reached: NDArray[Any], by_edge: NDArray[Any]) -> bool:
        """Take the greatest of each task's edges; True: it was so already, everywhere."""
        values = self.most(by_edge)
        changed = int(np.count_nonzero(values != reached[self.tasks]))
        reached[self.tasks] = values
        self._left -= 1
        is_first = self._left == SHALLOW_PASSES - 1
        self.may_go_on = self._left > 0 and (is_first or changed <= 0.7 * self._changed)
        self._changed = changed
        return not changed


def stages_of(
    deps: Sequence[int], tasks: Sequence[int], crosses: Sequence[bool], task_count: int
) -> list[int]:
    """The same by plain lists.

    Args:
        deps: an edge's dependency; edges come by rising task.
        tasks: its task.
        crosses: whether they lie in different intervals.
        task_count: how many tasks there are.
    """
    stage = [0] * task_count
    for dep, task, cross in zip(deps, tasks, crosses, strict=True):
        reached = stage[dep] + cross
        if reached > stage[task]:
            stage[task] = reached
    return stage


def stable_order(keys: Int64 | Int32) -> Int64:
    """Indexes that sort non-negative keys, equal ones staying in order."""
    if len(keys) and int(keys.max()) < 1 << 15:
        # For 16 bits numpy sorts by radix: linear, and ten times as fast.
        return np.argsort(keys.astype(np.int16), kind="stable")
    return np.argsort(keys, kind="stable")


def distinct(values: Integers) -> Integers:
    """Each value once, rising.

    Ten to ninety times as fast as `numpy.unique`, which hashes (2.3 and later): positions mostly
    rise already, or come in runs of equal ones.
    """
    if len(values) < 2:
        return values
    if not (values[1:] >= values[:-1]).all():
        values = cast("Integers", np.sort(values))
    return cast("Integers", values[_starts_of_runs(values)])


def distinct_counts(values: Int64) -> tuple[Int64, Int64]:
    """Each value once, rising, and how often it occurs."""
    if not (values[1:] >= values[:-1]).all():
        values = np.sort(values)
    starts = np.flatnonzero(_starts_of_runs(values))
    return values[starts], np.diff(starts, append=len(values))


def _starts_of_runs(values: Integers) -> NDArray[np.bool_]:
    """Where a value differs from the one before."""
    is_first = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    return is_first


def gather_rows(indptr: Int64, deps: Int32, rows: Int64) -> tuple[Int64, Int32]:
    """The CSR of some rows, in the order given; dependencies keep their names."""
    counts = np.diff(indptr)[rows]
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    where = np.arange(starts[-1], dtype=np.int64) + np.repeat(indptr[rows] - starts[:-1], counts)
    return starts, deps[where]
