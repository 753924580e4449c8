"""From a graph to a plan: functions and arguments pickled, arrays in the order of the cut.

The only step for each task is the pickling of its arguments, 64 tasks at a time; all else is done
by numpy on whole arrays.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from dagsched import serialize
from dagsched.config import Config
from dagsched.cuts import CutMemory
from dagsched.entries import Entry
from dagsched.errors import SerializationError
from dagsched.graph import TaskGraph
from dagsched.partition import cut_graph
from dagsched.plan import ClusterShape, ConstantSource, Int32, Int64, RefSource, RunPlan
from dagsched.protocol.messages import (
    CHUNK_TASKS,
    EXPORTED,
    META,
    OUTPUT,
    PERSISTED,
    REFERENCED,
    SOLO,
    FunctionInfo,
    TaskOptions,
)
from dagsched.ref import Ref

DIGEST_BYTES = 16
WARNED_SOURCE_BYTES = 10_000_000
"""A constant of this size is worth a warning: it is pickled and sent by the client."""


class PlannedRun(NamedTuple):
    """A plan, and the graph id of the task at each of its positions."""

    plan: RunPlan
    order: Int32


def make_plan(
    graph: TaskGraph,
    shape: ClusterShape,
    config: Config,
    estimates: Mapping[bytes, float],
    cuts: CutMemory | None = None,
) -> PlannedRun:
    """Cuts a graph for a cluster, and pickles what its tasks need.

    Args:
        graph: What is to be run.
        shape: Nodes and executors that it is cut for.
        config: Limits.
        estimates: Measured mean seconds of a call, by digest of the pickled function.
        cuts: Of graphs that were planned before, made for the same limits; None: there are none.

    Raises:
        SerializationError: A function, argument or constant can't travel; the message names the
            task and `path` says where in its arguments the culprit is.

    >>> from dagsched.delayed import delayed
    >>> from dagsched.graph import build_graph
    >>> graph = build_graph(delayed(abs)(-3))
    >>> make_plan(graph, ClusterShape(1, 2), Config(), {}).plan.task_count
    1
    """
    functions, pickles = _pickled_functions(graph, estimates)
    count = graph.task_count
    seconds = [
        config.unknown_task_s if function.seconds is None else function.seconds
        for function in functions
    ]
    indptr, deps = _without_sources(graph)
    if cuts is None:
        weights_s = np.array(seconds, np.float64)[graph.function_of]
        cut = cut_graph(indptr, deps, weights_s, shape, config)
    else:
        cut = cuts.cut(indptr, deps, graph.function_of, seconds, shape)
    order = cut.order
    position_of = np.arange(count + len(graph.sources), dtype=np.int32)
    position_of[order] = np.arange(count, dtype=np.int32)
    plan_indptr, plan_deps = permuted(graph.indptr, graph.deps, order, position_of)
    outputs = position_of[graph.outputs]
    plan = RunPlan(
        subtree_starts=cut.subtree_starts,
        interlocked=cut.interlocked,
        indptr=plan_indptr,
        deps=plan_deps,
        function_of=graph.function_of[order],
        flags=_flags(graph, position_of, plan_indptr, plan_deps, cut.subtree_starts),
        level_starts=cut.level_starts,
        functions=functions,
        function_pickles=pickles,
        chunks=_pickled_chunks(graph, order),
        options=_task_options(graph, position_of, config),
        outputs=outputs,
        sources=[_packed_source(graph, number) for number in range(len(graph.sources))],
    )
    return PlannedRun(plan, order)


def _pickled_functions(
    graph: TaskGraph, estimates: Mapping[bytes, float]
) -> tuple[list[FunctionInfo], list[bytes]]:
    functions, pickles = [], []
    for index, function in enumerate(graph.functions):
        name = graph.function_names[index]
        try:
            data = serialize.dump_function(function)
        except SerializationError as error:
            key = graph.key(int(np.argmax(graph.function_of == index)))
            raise SerializationError(
                f"the function of task {key} can't travel: {error}", error.path
            ) from error
        digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
        functions.append(FunctionInfo(index, digest, name, estimates.get(digest)))
        pickles.append(data)
    return functions, pickles


def _without_sources(graph: TaskGraph) -> tuple[Int64, Int32]:
    """The graph's arrays with dependencies on tasks only."""
    if not graph.sources:
        return graph.indptr, graph.deps
    is_task = graph.deps < graph.task_count
    before = np.zeros(len(graph.deps) + 1, np.int64)
    np.cumsum(is_task, out=before[1:])
    return before[graph.indptr], graph.deps[is_task]


def permuted(indptr: Int64, deps: Int32, order: Int32, number_of: Int32) -> tuple[Int64, Int32]:
    """A graph's arrays with tasks in another order and under other numbers.

    Args:
        indptr: where each task's dependencies begin.
        deps: dependencies.
        order: old number of the task at each new place.
        number_of: new number of each old one, sources included.
    """
    if np.array_equal(order, np.arange(len(order), dtype=order.dtype)):
        return indptr, deps
    counts = np.diff(indptr)[order]
    starts = np.zeros(len(order) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    shift = indptr[:-1][order] - starts[:-1]
    index = np.arange(starts[-1]) + np.repeat(shift, counts)
    return starts, number_of[deps[index]]


def _flags(
    graph: TaskGraph, position_of: Int32, indptr: Int64, deps: Int32, starts: Int64
) -> NDArray[np.uint8]:
    """Flags of all positions; see `dagsched.protocol.messages`."""
    count = graph.task_count
    flags = np.zeros(len(position_of), np.uint8)
    flags[position_of[graph.outputs]] |= OUTPUT
    if len(starts) > 2:
        subtree_of = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        dependents = np.repeat(subtree_of, np.diff(indptr))
        among_tasks = deps < count
        needed = deps[among_tasks]
        flags[needed[subtree_of[needed] != dependents[among_tasks]]] |= EXPORTED
    asked = graph.options.items()
    flags[position_of[[task_id for task_id, task in asked if task.timeout_s is not None]]] |= SOLO
    flags[position_of[[task_id for task_id, task in asked if task.crash_limit == 1]]] |= SOLO
    flags[position_of[[task_id for task_id, task in asked if task.persist]]] |= PERSISTED
    for position in position_of[graph.meta].tolist():
        flags[position] |= META | SOLO
        flags[deps[indptr[position] : indptr[position + 1]]] |= REFERENCED
    return flags


def _task_options(graph: TaskGraph, position_of: Int32, config: Config) -> dict[int, TaskOptions]:
    """Options by position, of tasks that have some that matter while they run."""
    found = {}
    for task_id, options in graph.options.items():
        limit = options.crash_limit
        if options.retries or options.priority or options.timeout_s is not None or limit:
            position = int(position_of[task_id])
            found[position] = TaskOptions(
                position, options.retries, options.timeout_s, options.priority,
                config.crash_limit if limit is None else limit,
            )  # fmt: skip
    return dict(sorted(found.items()))


def _pickled_chunks(graph: TaskGraph, order: Int32) -> list[bytes]:
    """The argument entries in order of position, pickled by chunks."""
    count = graph.task_count
    if count == 0:
        return []
    entries: Sequence[Entry] = graph.entries
    if count > 1:  # with one index itemgetter would give no tuple
        entries = itemgetter(*order.tolist())(graph.entries)
    starts = range(0, count, CHUNK_TASKS)
    plain = np.minimum.reduceat(np.frombuffer(graph.plain, np.uint8)[order], starts).tolist()
    dump = serialize.dump_entries
    without_constants = dump([None] * CHUNK_TASKS, True)
    none = (None,) * CHUNK_TASKS
    chunks = []
    for start, is_plain in zip(starts, plain, strict=True):
        chunk = entries[start : start + CHUNK_TASKS]
        if chunk == none:
            chunks.append(without_constants)
            continue
        try:
            chunks.append(dump(chunk, bool(is_plain)))
        except SerializationError as error:
            _raise_named(graph, order[start : start + CHUNK_TASKS], error)
    return chunks


def _raise_named(graph: TaskGraph, ids: Int32, error: SerializationError) -> NoReturn:
    """Raises the error of a chunk again, as that of the task that it comes from."""
    for task_id in ids.tolist():
        try:
            serialize.dump_entries([graph.entries[task_id]], False)
        except SerializationError as found:
            raise SerializationError(
                f"an argument of task {graph.key(task_id)} can't travel: {found}", found.path
            ) from found
    raise error


def _packed_source(graph: TaskGraph, number: int) -> ConstantSource | RefSource:
    value: Any = graph.sources[number]
    if type(value) is Ref:
        return RefSource(value.run, value.position, value.nbytes)
    try:
        data = serialize.dump_constant(value)
    except SerializationError as error:
        raise SerializationError(
            f"a constant of task {_first_user(graph, number)} can't travel: {error}", error.path
        ) from error
    if len(data) >= WARNED_SOURCE_BYTES:
        warnings.warn(
            f"the graph holds a constant of {len(data) / 1e6:,.0f} MB ({type(value).__name__}, "
            f"used by task {_first_user(graph, number)}); it is stored once a node, but a task "
            "that loads or makes it would spare the client sending it",
            UserWarning,
            stacklevel=4,
        )
    return ConstantSource(data)


def _first_user(graph: TaskGraph, number: int) -> str:
    """Key of the first task that needs a source."""
    edge = int(np.argmax(graph.deps == graph.task_count + number))
    return graph.key(int(np.searchsorted(graph.indptr, edge, side="right")) - 1)
