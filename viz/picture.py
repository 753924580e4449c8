"""From the arrays of a graph, and of its run, to what is drawn.

Pure. Small graphs get a mark a task; `folding` makes boxes of large ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dagsched.trace import Trace
from dagsched.viz.folding import fold
from dagsched.viz.model import (
    TASKS_MAX,
    Mark,
    NodeLine,
    Picture,
    State,
    Tasks,
    executions_of,
    ranks,
)


def make_picture(
    tasks: Tasks,
    trace: Trace | None = None,
    *,
    title: str = "",
    hosts: Mapping[int, tuple[str, Sequence[int]]] | None = None,
    tasks_max: int = TASKS_MAX,
) -> Picture:
    """What to draw of a graph, and of its run.

    Args:
        tasks: the graph.
        trace: of the run; None: nothing has run.
        title: stands at the top.
        hosts: host and executors by node id; what the trace names is added to it.
        tasks_max: most tasks that are drawn one by one.

    Raises:
        ValueError: the trace is of another graph, or the graph's ids are not topological.
    """
    if trace is not None and trace.task_count != tasks.count:
        raise ValueError(f"a trace of {trace.task_count} tasks for a graph of {tasks.count}")
    dependencies, dependents = tasks.edges()
    lines = node_lines(trace, hosts or {})
    if tasks.count > tasks_max:
        folded = fold(tasks, trace, dependencies, dependents)
        return Picture(
            title,
            folded.marks,
            folded.edges,
            tasks.count,
            len(dependents),
            lines,
            folded.back_edges,
            folded.box_of,
        )
    edges = list(zip(dependencies.tolist(), dependents.tolist(), strict=True))
    return Picture(title, _task_marks(tasks, trace), edges, tasks.count, len(dependents), lines)


def as_done(picture: Picture) -> Picture:
    """The same of a run that is done: what it has no times of has run all the same."""
    marks = [
        replace(mark, state=State.DONE) if mark.state is State.WAITING else mark
        for mark in picture.marks
    ]
    return replace(picture, marks=marks)


def node_lines(
    trace: Trace | None, hosts: Mapping[int, tuple[str, Sequence[int]]]
) -> list[NodeLine]:
    """The legend's lines, by rising id of the node."""
    executors: dict[int, set[int]] = {node: set(ids) for node, (_, ids) in hosts.items()}
    counts: dict[int, int] = {}
    busy_ns: dict[int, int] = {}
    span_ns = 0
    if trace is not None:
        ran, span_ns = trace.ran, trace.span_ns
        for node, executor in np.unique(
            np.stack([trace.node[ran], trace.executor[ran]], axis=1), axis=0
        ).tolist():
            executors.setdefault(node, set()).add(executor)
        for node in executors:
            here = ran & (trace.node == node)
            counts[node] = int(here.sum())
            busy_ns[node] = int((trace.end_ns[here] - trace.start_ns[here]).sum())
    return [
        NodeLine(
            node,
            hosts[node][0] if node in hosts else "",
            tuple(sorted(ids)),
            counts.get(node, 0),
            busy_ns.get(node, 0) / (span_ns * len(ids)) if span_ns and ids else 0.0,
        )
        for node, ids in sorted(executors.items())
    ]


def _task_marks(tasks: Tasks, trace: Trace | None) -> list[Mark]:
    names = [tasks.functions[index] for index in tasks.function_of.tolist()]
    keys = [tasks.key_of(task) for task in range(tasks.count)]
    sizes = [-1] * tasks.count if tasks.size_bytes is None else tasks.size_bytes.tolist()
    if trace is None:
        return [
            Mark(key, name, size_bytes=size)
            for key, name, size in zip(keys, names, sizes, strict=True)
        ]
    failed = frozenset(trace.failed)
    executions = executions_of(trace)
    return [
        Mark(
            keys[task],
            names[task],
            State.FAILED if task in failed else State.DONE if start >= 0 else State.WAITING,
            node,
            executor,
            start,
            duration,
            rank,
            count,
            sizes[task],
        )
        for task, (node, executor, start, duration, rank, count) in enumerate(
            zip(
                trace.node.tolist(),
                trace.executor.tolist(),
                trace.start_ns.tolist(),
                trace.duration_ns.tolist(),
                ranks(trace.start_ns),
                executions.tolist(),
                strict=True,
            )
        )
    ]
