"""Graphs and traces by hand, for pictures."""

from dataclasses import replace
from typing import Any

import numpy as np

from dagsched.history import History
from dagsched.trace import TaskNames, Trace, TraceBuilder
from dagsched.viz.model import Tasks


class GraphBuilder:
    """Writes tasks down one by one; `call` gives the id of the new one."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.function_of: list[int] = []
        self.deps: list[int] = []
        self.indptr = [0]

    def call(self, name: str, *deps: int) -> int:
        if name not in self.names:
            self.names.append(name)
        self.function_of.append(self.names.index(name))
        self.deps += dict.fromkeys(deps)
        self.indptr.append(len(self.deps))
        return len(self.function_of) - 1

    def tasks(self) -> Tasks:
        names, function_of = self.names, self.function_of
        return Tasks(
            names,
            np.array(function_of, np.int32),
            np.array(self.indptr, np.int64),
            np.array(self.deps, np.int32),
            lambda task: f"{names[function_of[task]]}-{task}",
        )


def wide(count: int) -> Tasks:
    """One task, `count` that depend on it, one that depends on all of those."""
    graph = GraphBuilder()
    root = graph.call("root")
    graph.call("total", *[graph.call("square", root) for _ in range(count)])
    return graph.tasks()


def chain(count: int) -> Tasks:
    graph = GraphBuilder()
    last = graph.call("step")
    for _ in range(count - 1):
        last = graph.call("step", last)
    return graph.tasks()


def straight(depth: int = 4) -> Tasks:
    """The tree h(f, g, h) with six branches a level, as in the acceptance graphs."""
    graph = GraphBuilder()
    values: list[list[int]] = [[] for _ in range(6**depth)]
    while len(values) > 1:
        groups = [values[place : place + 6] for place in range(0, len(values), 6)]
        values = [
            [
                graph.call(
                    "h",
                    graph.call("f", *a),
                    graph.call("g", *b, *c),
                    graph.call("h", *d, *e, *f),
                )
            ]
            for a, b, c, d, e, f in groups
        ]
    return graph.tasks()


def run_in_turns(tasks: Tasks, nodes: dict[int, list[int]]) -> Trace:
    """A trace in which the executors take the tasks in turns; task i starts at 1000 * i ns."""
    places = [(node, executor) for node, ids in nodes.items() for executor in ids]
    builder = TraceBuilder()
    for task in range(tasks.count):
        node, executor = places[task % len(places)]
        stamps = np.array([1000 * task, 1000 * task + 500])
        builder.add(node, executor, 1, np.array([task]), stamps)
    return builder.build(np.arange(tasks.count))


def history_of(tasks: Tasks, trace: Trace | None = None, **more: Any) -> History:
    """The history of a graph made here, and of its run if it had one."""
    names = TaskNames(
        list(tasks.functions), np.asarray(tasks.function_of), np.arange(tasks.count, dtype=np.int64)
    )
    has_run = trace is not None
    trace = replace(trace or TraceBuilder().build(np.arange(tasks.count)), names=names)
    facts = {"run_id": "cafe0123-7", "state": "done", **more} if has_run else more
    return History(tasks.indptr, tasks.deps, trace, names, **facts)


def many(count: int = 1_000_000, executors: int = 8) -> History:
    """Leaves of which ten each are merged, a million tasks in all, run in bundles of a thousand."""
    inputs = np.zeros(count, np.int64)
    inputs[10::11] = 10
    heads = np.flatnonzero(inputs)
    deps = (heads[:, None] - 10 + np.arange(10)).ravel().astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(inputs)])
    builder = TraceBuilder()
    clock = [10**12] * executors
    for place, begin in enumerate(range(0, count, 1_000)):
        ids = np.arange(begin, min(count, begin + 1_000))
        executor = place % executors
        stamps = clock[executor] + 50_000 + 10_000 * np.arange(len(ids) + 1)
        builder.add(2 + 4 * (executor // 4), 10 + executor, 1, ids, stamps)
        clock[executor] = int(stamps[-1])
    trace = builder.build(np.arange(count), subtree_starts=np.arange(0, count + 1, count // 100))
    tasks = Tasks(["leaf", "merge"], (inputs > 0).astype(np.int32), indptr, deps, str)
    return history_of(tasks, trace, submitted_ns=10**12 - 10**6, ended_ns=max(clock) + 10**6)
