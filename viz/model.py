"""What a picture shows: marks (a task each, or a box of many), edges, nodes, and nothing of how.

Pure. Made from the arrays of a graph and, after a run, from its `Trace`; drawn by `layout` and
`svg`. Up to `TASKS_MAX` tasks each gets its mark; beyond, tasks are folded into boxes with array
passes only, so that what is built and drawn stays small whatever the size of the graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dagsched.trace import Trace

TASKS_MAX = 2_000
"""Most tasks that are drawn one by one."""

BOXES_MAX = 120
"""Most boxes that a larger graph is folded into."""

EDGES_PER_BOX_MAX = 4
"""Where boxes have more edges than that, fewer and larger boxes are drawn: no knot is readable."""

Integers = NDArray[np.integer]


class State(Enum):
    """How a task ended, if it ran."""

    WAITING = "not run"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing drawn: a task, or a box of several."""

    key: str
    function: str
    state: State = State.WAITING
    node: int = -1  # the id of the node's broker; -1: not run
    executor: int = -1
    start_ns: int = -1
    duration_ns: int = -1  # of a box: the sum over its tasks
    rank: int = -1  # by start, from 0, among what is drawn; -1: not run
    executions: int = 0
    size_bytes: int = -1  # of the result; -1: not known
    task_count: int = 1
    detail: str = ""  # of a box: what is in it

    @property
    def is_box(self) -> bool:
        """Whether it stands for several tasks."""
        return self.task_count > 1


def is_unseen(mark: Mark) -> bool:
    """Whether it ran, and nobody has told when and where."""
    return mark.state is State.DONE and mark.start_ns < 0


@dataclass(frozen=True, slots=True)
class NodeLine:
    """A line of the legend."""

    id: int
    host: str
    executors: tuple[int, ...]
    task_count: int
    busy_share: float  # of its executors' time between the run's first start and last end


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is drawn.

    `edges` are pairs of marks (from a dependency to its dependent) in rising order of the
    dependent; a mark's dependencies come before it, but for `back_edges` between boxes that wait
    for each other both ways.
    """

    title: str
    marks: Sequence[Mark]
    edges: Sequence[tuple[int, int]]
    task_count: int
    edge_count: int  # between tasks
    nodes: Sequence[NodeLine] = ()
    back_edges: Sequence[tuple[int, int]] = ()
    box_of: Integers | None = None  # mark of each task, where marks are boxes

    @property
    def is_folded(self) -> bool:
        """Whether marks are boxes of many tasks."""
        return len(self.marks) != self.task_count

    @property
    def has_run(self) -> bool:
        """Whether anything was executed or failed."""
        return any(mark.state is not State.WAITING for mark in self.marks)


@dataclass(frozen=True, slots=True)
class Tasks:
    """A graph as the model needs it; a task's dependencies have lower ids than itself."""

    functions: Sequence[str]
    function_of: Integers
    indptr: Integers
    deps: Integers  # ids from len(function_of) on are constants and not drawn
    key_of: Callable[[int], str]
    size_bytes: Integers | None = None

    @property
    def count(self) -> int:
        """Tasks of the graph."""
        return len(self.function_of)

    def edges(self) -> tuple[Integers, Integers]:
        """Dependencies and dependents of all edges between tasks, by rising dependent.

        Raises:
            ValueError: a task depends on itself or on a later one.
        """
        dependents = np.repeat(np.arange(self.count), np.diff(self.indptr))
        between = np.asarray(self.deps) < self.count
        dependencies, dependents = np.asarray(self.deps)[between], dependents[between]
        wrong = np.flatnonzero(dependencies >= dependents)
        if len(wrong):
            task, dependency = dependents[wrong[0]], dependencies[wrong[0]]
            raise ValueError(f"task {task} depends on task {dependency}, which is not before it")
        return dependencies, dependents


def ranks(start_ns: Integers) -> list[int]:
    """The place of each in the order of starts, from 0 and without gaps; equals share a rank."""
    values, inverse = np.unique(start_ns[start_ns >= 0], return_inverse=True)
    result = np.full(len(start_ns), -1)
    result[start_ns >= 0] = inverse if len(values) else 0
    return [int(rank) for rank in result]


def executions_of(trace: Trace) -> Integers:
    """How often each task was tried: what was seen to end, or the number of its last attempt."""
    ran = trace.ran
    if not ran.any():
        return trace.executions
    base = int(trace.attempt[ran].min())
    return np.where(ran, np.maximum(trace.executions, trace.attempt - base + 1), 0)
