"""What the placement is compared with: bounds, HEFT, and tasks placed at random.

All know what a task will take and its value will weigh, pay nothing for a decision, a message or
a bundle, and bring values to other nodes without contention: they are harder than any real peer.
"""

import random
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from workflows import Float64, Graph

BANDWIDTH_BYTES_S = 1e9
LATENCY_S = 0.000_1


def transfer_s(graph: Graph) -> Float64:
    """What it takes to bring each task's value to another node."""
    return LATENCY_S + graph.size_bytes / BANDWIDTH_BYTES_S


def critical_path_s(graph: Graph) -> float:
    """The longest path, values where they are needed."""
    ends = [0.0] * graph.count
    indptr, deps, seconds = graph.indptr.tolist(), graph.deps.tolist(), graph.seconds.tolist()
    for task, task_s in enumerate(seconds):
        row = deps[indptr[task] : indptr[task + 1]]
        ends[task] = task_s + max((ends[dep] for dep in row), default=0.0)
    return max(ends, default=0.0)


def bound_s(graph: Graph, executors: int) -> float:
    """No schedule is shorter: all work shared evenly, or the critical path."""
    return max(float(graph.seconds.sum()) / executors, critical_path_s(graph))


def upward_ranks(graph: Graph, nodes: int) -> list[float]:
    """Of each task the longest way to the end, transfers at their mean over pairs of nodes."""
    moved = (transfer_s(graph) * (1.0 - 1.0 / nodes)).tolist()
    ranks = graph.seconds.tolist()
    ahead = [0.0] * graph.count
    indptr, deps = graph.indptr.tolist(), graph.deps.tolist()
    for task in range(graph.count - 1, -1, -1):
        ranks[task] += ahead[task]
        for dep in deps[indptr[task] : indptr[task + 1]]:
            ahead[dep] = max(ahead[dep], ranks[task] + moved[dep])
    return ranks


class _Gaps:
    """Free stretches of all executors, in arrays that grow."""

    def __init__(self, nodes: int, executors: int, least_s: float) -> None:
        count = nodes * executors
        self.least_s = least_s
        self.count = count
        self.begin = np.zeros(2 * count)
        self.end = np.full(2 * count, np.inf)
        self.executors = executors
        self.executor = np.zeros(2 * count, np.int64)
        self.executor[:count] = np.arange(count)

    def take(self, ready_s: Float64, task_s: float) -> tuple[int, float]:
        """Put a task where it ends first: (executor, start); `ready_s` is by node."""
        begin, end = self.begin[: self.count], self.end[: self.count]
        start = np.maximum(begin, ready_s[self.executor[: self.count] // self.executors])
        start[start + task_s > end] = np.inf
        best = int(start.argmin())
        executor, start_s, end_s = int(self.executor[best]), float(start[best]), float(end[best])
        before_s, after_s = start_s - float(begin[best]), end_s - start_s - task_s
        self.begin[best] = start_s + task_s  # the stretch after it, until that is too short
        if after_s < self.least_s:
            self.count -= 1
            for column in (self.begin, self.end, self.executor):
                column[best] = column[self.count]
        if before_s >= self.least_s:
            self._add(start_s - before_s, start_s, executor)
        return executor, start_s

    def _add(self, begin_s: float, end_s: float, executor: int) -> None:
        if self.count == len(self.begin):
            self.begin, self.end, self.executor = (
                np.concatenate((column, column)) for column in (self.begin, self.end, self.executor)
            )
        self.begin[self.count] = begin_s
        self.end[self.count] = end_s
        self.executor[self.count] = executor
        self.count += 1


@dataclass(frozen=True, slots=True)
class Planned:
    """A schedule: of each task when it starts and ends, and on which node and executor."""

    starts_s: list[float]
    ends_s: list[float]
    node_of: list[int]
    executor_of: list[int]

    @property
    def makespan_s(self) -> float:
        """When all has ended."""
        return max(self.ends_s, default=0.0)


def heft(graph: Graph, nodes: int, executors: int) -> Planned:
    """The schedule of HEFT: by falling rank, each task where it ends first, gaps filled.

    Topcuoglu, Hariri and Wu 2002, section 4.1, for executors that share a node's memory: a value is
    brought to another node in `transfer_s`, inside a node at once.

    Args:
        graph: with the durations that HEFT is told.
        nodes: how many.
        executors: of each node.
    """
    ranks = np.array(upward_ranks(graph, nodes))
    order = np.argsort(-ranks, kind="stable").tolist()
    gaps = _Gaps(nodes, executors, float(graph.seconds.min()))
    indptr, deps, seconds = graph.indptr.tolist(), graph.deps.tolist(), graph.seconds.tolist()
    moved = transfer_s(graph).tolist()
    ends, node_of = [0.0] * graph.count, [0] * graph.count
    starts, executor_of = [0.0] * graph.count, [0] * graph.count
    for task in order:
        row = deps[indptr[task] : indptr[task + 1]]
        elsewhere_s = max((ends[dep] + moved[dep] for dep in row), default=0.0)
        ready_s = np.full(nodes, elsewhere_s)
        if row and len(row) <= 4 * nodes:
            for node in {node_of[dep] for dep in row}:
                ready_s[node] = max(
                    ends[dep] + (moved[dep] if node_of[dep] != node else 0.0) for dep in row
                )
        elif row:
            _ready_by_node(row, ends, moved, node_of, ready_s)
        executor_of[task], starts[task] = gaps.take(ready_s, seconds[task])
        node_of[task] = executor_of[task] // executors
        ends[task] = starts[task] + seconds[task]
    return Planned(starts, ends, node_of, executor_of)


def followed_s(graph: Graph, plan: Planned) -> float:
    """The makespan if a schedule made with other durations is kept to: order and executors."""
    indptr, deps, seconds = graph.indptr.tolist(), graph.deps.tolist(), graph.seconds.tolist()
    moved = transfer_s(graph).tolist()
    ends = [0.0] * graph.count
    free_s: dict[int, float] = {}
    node_of = plan.node_of
    # A task and one that depends on it never start together, since all last some time.
    for task in np.argsort(np.array(plan.starts_s), kind="stable").tolist():
        start_s = free_s.get(plan.executor_of[task], 0.0)
        for dep in deps[indptr[task] : indptr[task + 1]]:
            start_s = max(start_s, ends[dep] + (moved[dep] if node_of[dep] != node_of[task] else 0))
        ends[task] = free_s[plan.executor_of[task]] = start_s + seconds[task]
    return max(ends, default=0.0)


def _ready_by_node(
    row: list[int], ends: list[float], moved: list[float], node_of: list[int], ready_s: Float64
) -> None:
    """The same for a row of many dependencies, in one pass: the two latest of different nodes."""
    arrivals = sorted(((ends[dep] + moved[dep], node_of[dep]) for dep in row), reverse=True)
    last_s, last_node = arrivals[0]
    other_s = next((when for when, node in arrivals if node != last_node), 0.0)
    own = {}
    for dep in row:
        own[node_of[dep]] = max(own.get(node_of[dep], 0.0), ends[dep])
    for node, own_s in own.items():
        ready_s[node] = max(own_s, other_s if node == last_node else last_s)


def random_s(graph: Graph, nodes: int, executors: int, seed: int, each_s: float) -> float:
    """The makespan if each task is placed on a node at random, and run there as soon as it can.

    Args:
        graph: what is to run.
        nodes: how many.
        executors: of each.
        seed: of the homes.
        each_s: what it costs an executor to be handed a task.
    """
    rng = random.Random(seed)
    home = [rng.randrange(nodes) for _ in range(graph.count)]
    indptr, deps = graph.indptr.tolist(), graph.deps.tolist()
    seconds = (graph.seconds + each_s).tolist()
    moved = transfer_s(graph).tolist()
    waits = np.diff(graph.indptr).tolist()
    dependents: list[list[int]] = [[] for _ in range(graph.count)]
    for task in range(graph.count):
        for dep in deps[indptr[task] : indptr[task + 1]]:
            dependents[dep].append(task)
    ready_s = [0.0] * graph.count
    events = [(0.0, 0, task) for task in range(graph.count) if not waits[task]]
    heapify(events)
    idle = [executors] * nodes
    queues: list[list[int]] = [[] for _ in range(nodes)]
    now = 0.0
    while events:
        now, has_ended, task = heappop(events)
        node = home[task]
        if has_ended:
            idle[node] += 1
            for other in dependents[task]:
                arrival_s = now + (moved[task] if home[other] != node else 0.0)
                ready_s[other] = max(ready_s[other], arrival_s)
                waits[other] -= 1
                if not waits[other]:
                    heappush(events, (ready_s[other], 0, other))
        else:
            heappush(queues[node], task)
        while idle[node] and queues[node]:
            idle[node] -= 1
            begun = heappop(queues[node])
            heappush(events, (now + seconds[begun], 1, begun))
    return now
