"""Graphs that front ends have made: refused if they make no sense, less what no task calls.

Pure; some passes over arrays, nothing for each task. What `dagsched.graph` makes needs it not.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dagsched.errors import GraphError

if TYPE_CHECKING:
    from dagsched.graph import TaskGraph


def taken(graph: "TaskGraph") -> "TaskGraph":
    """The graph without functions that no task calls; itself if there are none.

    Those would be pickled for nothing, and a function's index must be below the number of tasks.

    Raises:
        GraphError: its arrays don't belong together, or a task needs a later one.
    """
    _check(graph)
    function_of = graph.function_of
    is_used = np.bincount(function_of, minlength=len(graph.functions)) > 0
    if is_used.all():
        return graph
    number_of = np.cumsum(is_used, dtype=np.int32) - np.int32(1)
    kept = np.flatnonzero(is_used).tolist()
    return replace(
        graph,
        functions=[graph.functions[index] for index in kept],
        function_names=[graph.function_names[index] for index in kept],
        function_of=number_of[function_of],
    )


def _check(graph: "TaskGraph") -> None:
    count, functions = len(graph.function_of), len(graph.functions)
    total = count + len(graph.sources)
    lengths = {
        "entries": len(graph.entries),
        "plain": len(graph.plain),
        "serials": len(graph.serials),
        "indptr": len(graph.indptr) - 1,
        "own_keys": count if graph.own_keys is None else len(graph.own_keys),
    }
    for name, length in lengths.items():
        if length != count:
            raise GraphError(f"the graph has {count} tasks, but {name} of {length}")
    if len(graph.function_names) != functions:
        raise GraphError(
            f"the graph has {functions} functions, but {len(graph.function_names)} names of them"
        )
    counts = np.diff(graph.indptr)
    if graph.indptr[0] != 0 or graph.indptr[-1] != len(graph.deps) or (counts < 0).any():
        raise GraphError(
            f"the graph's indptr doesn't rise from 0 to its {len(graph.deps)} dependencies"
        )
    for name, ids, limit in (
        ("a function", graph.function_of, functions),
        ("a dependency", graph.deps, total),
        ("an output", graph.outputs, total),
    ):
        if len(ids) and not 0 <= ids.min() <= ids.max() < limit:
            raise GraphError(
                f"the graph names {name} outside its {limit}: {ids.min()} to {ids.max()}"
            )
    tasks = np.repeat(np.arange(count), counts)
    late = np.flatnonzero((graph.deps >= tasks) & (graph.deps < count))
    if len(late):
        raise GraphError(
            f"task {tasks[late[0]]} of the graph needs task {graph.deps[late[0]]}, which doesn't "
            "come before it: ids must be topological"
        )
