"""Who ran what when: a lane an executor, its executions in order, and what it did between them.

Pure. Whole-array passes only, so that a million executions take tenths of a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dagsched.history import History
from dagsched.plan import Int64
from dagsched.viz.model import Integers

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Lanes:
    """All executions of a run, by lane and start; times in ns since `origin_ns`.

    Those of lane i are ``bounds[i]:bounds[i + 1]``. A task that was executed several times stands
    there several times; `is_last` is the one that its trace tells of.
    """

    places: Sequence[tuple[int, int]]  # node and executor of each lane; lanes of a node are beside
    bounds: Int64
    task: Integers
    start_ns: Int64
    end_ns: Int64
    is_last: NDArray[np.bool_]
    origin_ns: int  # the submission of the run, or its first start
    length_ns: int  # up to the run's end, or the last one of a task

    def lane_of(self) -> Int64:
        """The lane of each execution."""
        return np.repeat(np.arange(len(self.places)), np.diff(self.bounds))


def make_lanes(history: History) -> Lanes:
    """The lanes of a run, those of executors that had nothing to do among them."""
    trace = history.trace
    tasks = np.flatnonzero(trace.ran)
    again = trace.repeats
    times = np.array([one.execution for one in again], np.int64).reshape(len(again), 5)
    task = np.concatenate([tasks, np.array([one.task for one in again], np.int64)])
    node = np.concatenate([trace.node[tasks], times[:, 0]]).astype(np.int64)
    executor = np.concatenate([trace.executor[tasks], times[:, 1]]).astype(np.int64)
    start_ns = np.concatenate([trace.start_ns[tasks], times[:, 3]])
    end_ns = np.concatenate([trace.end_ns[tasks], times[:, 4]])
    first_ns = int(start_ns.min()) if len(task) else max(history.submitted_ns, 0)
    last_ns = int(end_ns.max()) if len(task) else first_ns
    origin_ns = history.submitted_ns if 0 <= history.submitted_ns <= first_ns else first_ns
    places = sorted(
        {(host, one) for host, (_, ids) in history.hosts.items() for one in ids}
        | set(zip(*_distinct(node, executor), strict=True))
    )
    lane_of_place = {place: lane for lane, place in enumerate(places)}
    lane = _lookup(node, executor, lane_of_place)
    order = np.lexsort((end_ns, start_ns, lane))
    bounds = np.zeros(len(places) + 1, np.int64)
    np.cumsum(np.bincount(lane, minlength=len(places)), out=bounds[1:])
    return Lanes(
        places,
        bounds,
        task[order],
        (start_ns - origin_ns)[order],
        (end_ns - origin_ns)[order],
        order < len(tasks),
        origin_ns,
        max(last_ns, history.ended_ns) - origin_ns,
    )


def _distinct(node: Int64, executor: Int64) -> tuple[list[int], list[int]]:
    pairs = np.unique(node << 32 | executor)
    return (pairs >> 32).tolist(), (pairs & 0xFFFF_FFFF).tolist()


def _lookup(node: Int64, executor: Int64, lane_of_place: dict[tuple[int, int], int]) -> Int64:
    pairs, inverse = np.unique(node << 32 | executor, return_inverse=True)
    lanes = [lane_of_place[pair >> 32, pair & 0xFFFF_FFFF] for pair in pairs.tolist()]
    return np.array(lanes, np.int64)[inverse]


def ready_ns(history: History) -> Int64:
    """When the last dependency of each task ended; -1 for a task without any, or if one did not."""
    ends = history.trace.end_ns
    result = np.full(history.task_count, -1, np.int64)
    has_inputs = np.diff(history.indptr) > 0
    if has_inputs.any():
        starts = history.indptr[:-1][has_inputs]
        inputs = ends[history.deps]
        latest = np.maximum.reduceat(inputs, starts)
        latest[np.minimum.reduceat(inputs, starts) < 0] = -1
        result[has_inputs] = latest
    return result


def active(starts: Int64, ends: Int64) -> tuple[Int64, Int64]:
    """How many intervals hold each moment: rising times, and the count from each on.

    Example:
        >>> active(np.array([0, 5]), np.array([10, 8]))
        (array([ 0,  5,  8, 10]), array([1, 2, 1, 0]))
    """
    times, inverse = np.unique(np.concatenate([starts, ends]), return_inverse=True)
    steps = np.concatenate([np.ones(len(starts)), np.full(len(ends), -1)])
    counts = np.cumsum(np.bincount(inverse, weights=steps, minlength=len(times)))
    return times, np.rint(counts).astype(np.int64)


def integral(times: Int64, values: NDArray[np.generic], edges: Floats | Int64) -> Floats:
    """The area below a step function from its first time to each of `edges`.

    Example:
        >>> integral(np.array([0, 10]), np.array([2, 0]), np.array([0, 5, 20]))
        array([ 0., 10., 20.])
    """
    if not len(times):
        return np.zeros(len(edges))
    areas = np.zeros(len(times))
    np.cumsum(np.diff(times) * values[:-1], out=areas[1:])
    return np.interp(edges, times, areas)
