"""What a run came to, in numbers: critical path, parallelism, time by function, idle by cause.

Pure. Words and tables are made of it in `report`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dagsched.history import History
from dagsched.plan import Int64
from dagsched.stats import path_ends
from dagsched.viz.lanes import Floats, Lanes, active, integral, make_lanes, ready_ns
from dagsched.viz.moves import (
    FileLine,
    Moves,
    Route,
    arrivals_ns,
    files_of,
    make_moves,
    routes_of,
    slowest,
)
from dagsched.viz.perfetto import crossings

SLOWEST_MAX = 10

MOMENTS = 200
"""Into so many pieces the run's time is cut for the course of its parallelism."""


class FunctionLine(NamedTuple):
    """What the tasks of a function took."""

    name: str
    task_count: int
    ran_count: int
    total_ns: int
    longest_ns: int


class Idle(NamedTuple):
    """Time of executors in which they ran no task, by cause; sums over all of them, in ns."""

    before_ns: int  # until the first task of all began
    starved_ns: int  # no task was ready that nobody ran
    moving_ns: int  # a task was ready but for inputs that hadn't come from other nodes
    waiting_ns: int  # a task was ready, and not begun: it was on its way, or given to another
    after_ns: int  # since the last task of all had ended
    lost_ns: int  # their node was lost


class ExecutorLine(NamedTuple):
    """What an executor did."""

    node: int
    executor: int
    execution_count: int
    busy_ns: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The graph by itself."""

    depth: int  # tasks on the longest chain
    widest: int  # tasks of the level that has most
    root_count: int  # without dependencies
    leaf_count: int  # without dependents


@dataclass(frozen=True, slots=True)
class Course:
    """How a run went."""

    length_ns: int  # from submission to end, as far as both are known
    first_ns: int  # start of the first task, since the submission
    last_ns: int  # end of the last
    ran_count: int
    busy_ns: int  # over all executors
    critical: Sequence[int]  # the tasks of the longest path by measured times, in order
    critical_ns: int
    parallelism: Floats  # mean number of tasks that ran, in each of the pieces
    parallelism_max: int
    idle: Idle
    executors: Sequence[ExecutorLine]
    moved: Sequence[tuple[int, int, int]]  # node, node, values needed there and made here
    routes: Sequence[Route]  # what came from node to node, as measured
    files: Sequence[FileLine]  # what went to files or was read there
    moves: Moves
    slowest: Sequence[int]  # of those the transfers that took longest


@dataclass(frozen=True, slots=True)
class Summary:
    """All numbers of a graph, and of its run if it had one."""

    history: History
    shape: Shape
    functions: Sequence[FunctionLine]  # by falling time, then count
    course: Course | None


def summarize(history: History) -> Summary:
    """The numbers; some seconds for a million tasks."""
    indptr, deps = history.indptr.tolist(), history.deps.tolist()
    course = _course(history, indptr, deps) if history.has_run else None
    return Summary(history, _shape(history, indptr, deps), _functions(history), course)


def _shape(history: History, indptr: list[int], deps: list[int]) -> Shape:
    count = history.task_count
    levels = path_ends(indptr, deps, [1] * count)
    needed = np.zeros(count, np.bool_)
    needed[history.deps] = True
    return Shape(
        max(levels, default=0),
        int(np.bincount(levels).max()) if count else 0,
        int((np.diff(history.indptr) == 0).sum()),
        int((~needed).sum()),
    )


def _functions(history: History) -> list[FunctionLine]:
    trace, names = history.trace, history.names
    count = len(names.functions)
    of, ran = names.function_of, trace.ran
    times = trace.duration_ns.clip(0)
    longest = np.zeros(count, np.int64)
    np.maximum.at(longest, of, times)
    lines = map(
        FunctionLine,
        names.functions,
        np.bincount(of, minlength=count).tolist(),
        np.bincount(of[ran], minlength=count).tolist(),
        np.rint(np.bincount(of, times, count)).astype(np.int64).tolist(),
        longest.tolist(),
    )
    return sorted(lines, key=lambda line: (-line.total_ns, -line.task_count))


def _course(history: History, indptr: list[int], deps: list[int]) -> Course:
    trace, lanes = history.trace, make_lanes(history)
    times, counts = active(lanes.start_ns, lanes.end_ns)
    edges = np.linspace(0, lanes.length_ns, MOMENTS + 1)
    pieces = np.diff(integral(times, counts, edges)) / max(1.0, lanes.length_ns / MOMENTS)
    path, path_ns = _critical(trace.duration_ns.clip(0), indptr, deps)
    busy_ns = int((lanes.end_ns - lanes.start_ns).sum())
    moves = make_moves(history, lanes.origin_ns)
    return Course(
        lanes.length_ns,
        int(times[0]) if len(times) else lanes.length_ns,
        int(times[-1]) if len(times) else lanes.length_ns,
        int(trace.ran.sum()),
        busy_ns,
        path,
        path_ns,
        pieces,
        int(counts.max(initial=0)),
        _idle(history, lanes, times, counts),
        _executors(lanes),
        _moved(history),
        routes_of(moves, trace.transfers.every),
        files_of(moves, trace.spills.every),
        moves,
        slowest(moves, SLOWEST_MAX),
    )


def _critical(durations: Int64, indptr: list[int], deps: list[int]) -> tuple[list[int], int]:
    """The tasks on the longest path through measured times, and its length."""
    times = durations.tolist()
    ends = path_ends(indptr, deps, times)
    if not ends:
        return [], 0
    task = max(range(len(ends)), key=ends.__getitem__)
    length = ends[task]
    path = [task]
    while inputs := deps[indptr[task] : indptr[task + 1]]:
        task = max(inputs, key=ends.__getitem__)
        path.append(task)
    return path[::-1], length


def _idle(history: History, lanes: Lanes, times: Int64, counts: Int64) -> Idle:
    """Idle executors are told apart by how many tasks were ready at the time, and not begun.

    First by those whose inputs were on their node, as far as is known, then by the others.
    """
    count = len(lanes.places)
    if not len(times):
        return Idle(count * lanes.length_ns, 0, 0, 0, 0, 0)
    first, last = int(times[0]), int(times[-1])
    trace = history.trace
    has_inputs = np.diff(history.indptr) > 0
    ready = np.where(has_inputs, ready_ns(history), lanes.origin_ns)
    waits = trace.ran & (ready >= 0) & (ready < trace.start_ns)
    ready, start = ready[waits] - lanes.origin_ns, trace.start_ns[waits] - lanes.origin_ns
    there = np.minimum(np.maximum(arrivals_ns(history, lanes.origin_ns)[waits], ready), start)
    moving_steps, waiting_steps = active(ready, there), active(there, start)
    gone_steps = _gone(history, lanes)
    moments = np.unique(
        np.concatenate(
            [[0, lanes.length_ns], times, moving_steps[0], waiting_steps[0], gone_steps[0]]
        )
    )
    begins, lengths = moments[:-1], np.diff(moments)
    idle = count - _at(times, counts, begins)
    gone = np.minimum(idle, _at(*gone_steps, begins))
    idle -= gone
    within = (begins >= first) & (begins < last)
    waiting = np.minimum(idle, _at(*waiting_steps, begins)) * within
    moving = np.minimum(idle - waiting, _at(*moving_steps, begins)) * within
    starved = (idle - waiting - moving) * within
    parts = (
        idle * (begins < first), starved, moving, waiting, idle * (begins >= last), gone,
    )  # fmt: skip
    return Idle(*(int((part * lengths).sum()) for part in parts))


def _gone(history: History, lanes: Lanes) -> tuple[Int64, Int64]:
    """How many executors are gone with their nodes, from each moment on."""
    lost_at: dict[int, int] = {}
    for event in history.trace.events:
        if event.kind == "node_lost":
            moment = min(max(0, event.time_ns - lanes.origin_ns), lanes.length_ns)
            lost_at.setdefault(event.node, moment)
    gone = np.array([lost_at[node] for node, _ in lanes.places if node in lost_at], np.int64)
    return active(gone, np.full(len(gone), lanes.length_ns))


def _at(times: Int64, counts: Int64, moments: Int64) -> Int64:
    """The value of a step function at some moments; 0 before it begins."""
    if not len(times):
        return np.zeros(len(moments), np.int64)
    places = np.searchsorted(times, moments, side="right") - 1
    return np.where(places >= 0, counts[places], 0)


def _executors(lanes: Lanes) -> list[ExecutorLine]:
    lengths = lanes.end_ns - lanes.start_ns
    sums = np.concatenate([[0], np.cumsum(lengths)])[lanes.bounds]
    return [
        ExecutorLine(node, executor, executions, busy)
        for (node, executor), executions, busy in zip(
            lanes.places, np.diff(lanes.bounds).tolist(), np.diff(sums).tolist(), strict=True
        )
    ]


def _moved(history: History) -> list[tuple[int, int, int]]:
    node = history.trace.node
    pairs = crossings(history)
    routes, counts = np.unique(node[pairs], axis=0, return_counts=True)
    return [
        (source, target, count)
        for (source, target), count in zip(routes.tolist(), counts.tolist(), strict=True)
    ]
