"""Graphs for simulations: shapes, their plans, and the serial oracle of their values.

A simulated task's value is an integer mixed from its salt and the values of its dependencies, so
that any lost, doubled or exchanged value changes the result. What a task does stands in its
argument entry, which travels in the plan's chunks like a real one.
"""

import pickle
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dagsched.config import Config
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

_MODULUS = (1 << 61) - 1


@dataclass(frozen=True, slots=True)
class SimTask:
    """What a simulated task does."""

    salt: int
    size_bytes: int = 0  # of its value, where that is more than a number takes
    fails: bool = False
    returns: int = -1  # index of the graph in the library that it returns; -1: a number
    seconds: float | None = None  # of this call, where that isn't what its function takes


@dataclass(slots=True)
class SimGraph:
    """A graph with ids in a topological order; dependencies from `count` on are sources."""

    deps: list[list[int]]
    outputs: list[int]
    function_of: list[int] = field(default_factory=list)  # default: all the first one
    function_s: list[float] = field(default_factory=lambda: [0.001])
    tasks: dict[int, SimTask] = field(default_factory=dict)  # by id; default: salt is the id
    sources: list[ConstantSource | RefSource] = field(default_factory=list)
    meta: frozenset[int] = frozenset()
    persisted: frozenset[int] = frozenset()
    options: dict[int, TaskOptions] = field(default_factory=dict)
    is_measured: bool = False  # whether the client knows from earlier runs how long calls take

    @property
    def count(self) -> int:
        """Tasks."""
        return len(self.deps)

    def task(self, number: int) -> SimTask:
        """What the task with this id does."""
        return self.tasks.get(number, SimTask(number))


def mixed(salt: int, values: Sequence[int]) -> int:
    """The value of a task with these dependencies' values, in order."""
    value = 0x9E3779B97F4A7C15 * (salt + 1) % _MODULUS
    for index, other in enumerate(values):
        value = (value * 31 + (2 * index + 3) * other) % _MODULUS
    return value


def constant(value: int, size_bytes: int = 0) -> ConstantSource:
    """A source with this value, taking at least so many bytes."""
    return ConstantSource(dumped(value, size_bytes))


def dumped(value: object, size_bytes: int = 0) -> bytes:
    """A value's bytes in simulated objects: a pickle, filled up."""
    return pickle.dumps(value).ljust(size_bytes, b"\0")


def serial_values(
    graph: SimGraph,
    library: Sequence[SimGraph] = (),
    refs: Mapping[tuple[int, int], int] | None = None,
) -> list[int]:
    """The value of every task, one after the other; `refs`: of earlier runs' objects.

    Tasks that get Refs mix nothing in but their salt.
    """
    sources = [
        pickle.loads(source.data)
        if isinstance(source, ConstantSource)
        else (refs or {})[source.run, source.position]
        for source in graph.sources
    ]
    returned: dict[int, int] = {}
    waiting = list(range(len(library)))
    while waiting:
        index = waiting.pop(0)
        inner_graph = library[index]
        if any(
            task.returns >= 0 and task.returns not in returned
            for task in inner_graph.tasks.values()
        ):
            waiting.append(index)
            continue
        returned[index] = _evaluated(inner_graph, [], returned)[inner_graph.outputs[0]]
    return _evaluated(graph, sources, returned)


def _evaluated(graph: SimGraph, sources: list[int], returned: Mapping[int, int]) -> list[int]:
    values: list[int] = []
    for number, deps in enumerate(graph.deps):
        task = graph.task(number)
        if task.returns >= 0:
            values.append(returned[task.returns])
        elif number in graph.meta:
            values.append(mixed(task.salt, []))
        else:
            inputs = [
                values[dep] if dep < graph.count else sources[dep - graph.count] for dep in deps
            ]
            values.append(mixed(task.salt, inputs))
    return values


# --- plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and which position each task of the graph has."""

    plan: RunPlan
    position_of: Int32


def planned(graph: SimGraph, shape: ClusterShape, config: Config) -> Planned:
    """Cut the graph as a client would."""
    count = graph.count
    indptr = np.zeros(count + 1, np.int64)
    np.cumsum([len(row) for row in graph.deps], out=indptr[1:])
    deps = np.array([dep for row in graph.deps for dep in row], np.int32)
    function_of = np.array(graph.function_of or [0] * count, np.int32)
    weights_s = np.array(graph.function_s)[function_of]
    inner_indptr, inner_deps = _without_sources(indptr, deps, count)
    cut = cut_graph(inner_indptr, inner_deps, weights_s, shape, config)
    return arranged(
        graph, indptr, deps, function_of, cut.order, cut.subtree_starts, cut.level_starts,
        is_interlocked=cut.interlocked,
    )  # fmt: skip


def _without_sources(indptr: Int64, deps: Int32, count: int) -> tuple[Int64, Int32]:
    is_task = deps < count
    if is_task.all():
        return indptr, deps
    kept_before = np.concatenate(([0], np.cumsum(is_task)))
    return kept_before[indptr].astype(np.int64), deps[is_task]


def arranged(
    graph: SimGraph,
    indptr: Int64,
    deps: Int32,
    function_of: Int32,
    order: Int32,
    subtree_starts: Int64,
    level_starts: Int32,
    *,
    is_interlocked: bool,
) -> Planned:
    """The plan of a graph whose tasks were put in this order."""
    count = graph.count
    position_of = np.empty(count + len(graph.sources), np.int32)
    position_of[order] = np.arange(count, dtype=np.int32)
    position_of[count:] = np.arange(count, len(position_of), dtype=np.int32)
    rows = [position_of[deps[indptr[number] : indptr[number + 1]]] for number in order.tolist()]
    new_indptr = np.zeros(count + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=new_indptr[1:])
    new_deps = np.concatenate(rows).astype(np.int32) if rows else np.zeros(0, np.int32)
    entries = [graph.task(number) for number in order.tolist()]
    chunks = [
        pickle.dumps(entries[first : first + CHUNK_TASKS]) for first in range(0, count, CHUNK_TASKS)
    ]
    pickles = [pickle.dumps(seconds) for seconds in graph.function_s]
    outputs = position_of[np.array(graph.outputs, np.int64)]
    options = {}
    for number, option in graph.options.items():
        at = int(position_of[number])
        values = {name: getattr(option, name) for name in option.__struct_fields__}
        options[at] = TaskOptions(**{**values, "position": at})
    plan = RunPlan(
        subtree_starts=np.asarray(subtree_starts, np.int64),
        interlocked=is_interlocked,
        indptr=new_indptr,
        deps=new_deps,
        function_of=function_of[order],
        flags=_flags(graph, position_of, new_indptr, new_deps, subtree_starts, outputs),
        level_starts=np.asarray(level_starts, np.int32),
        functions=[
            FunctionInfo(
                index, b"%016d" % index, f"f{index}", seconds if graph.is_measured else None
            )
            for index, seconds in enumerate(graph.function_s)
        ],
        function_pickles=pickles,
        chunks=chunks,
        options=options,
        outputs=outputs.astype(np.int32),
        sources=list(graph.sources),
    )
    return Planned(plan, position_of)


def _flags(
    graph: SimGraph,
    position_of: Int32,
    indptr: Int64,
    deps: Int32,
    subtree_starts: Int64,
    outputs: Int32,
) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    flags = np.zeros(len(position_of), np.uint8)
    flags[outputs] |= OUTPUT
    owners = np.repeat(np.arange(graph.count), np.diff(indptr))
    inner = deps < graph.count
    producer = np.searchsorted(subtree_starts, deps[inner], side="right")
    consumer = np.searchsorted(subtree_starts, owners[inner], side="right")
    flags[deps[inner][producer != consumer]] |= EXPORTED
    for number in sorted(graph.meta):
        at = int(position_of[number])
        flags[at] |= META | SOLO
        flags[deps[indptr[at] : indptr[at + 1]]] |= REFERENCED
    for number in sorted(graph.persisted):
        flags[position_of[number]] |= PERSISTED
    return flags


# --- shapes ---------------------------------------------------------------------------------------


def wide(count: int) -> SimGraph:
    """Tasks without dependencies, all of them outputs."""
    return SimGraph([[] for _ in range(count)], list(range(count)))


def chain(count: int) -> SimGraph:
    """Each task depends on the one before."""
    return SimGraph([[i - 1] if i else [] for i in range(count)], [count - 1])


def tree(depth: int) -> SimGraph:
    """A binary reduction of ``2**depth`` leaves, in post-order."""
    deps: list[list[int]] = []
    levels: list[list[int]] = [[] for _ in range(depth + 1)]
    for _ in range(1 << depth):
        deps.append([])
        levels[0].append(len(deps) - 1)
        level = 0
        while level < depth and len(levels[level]) == 2:
            deps.append(levels[level])
            levels[level] = []
            level += 1
            levels[level].append(len(deps) - 1)
    return SimGraph(deps, [len(deps) - 1])


def stencil(width: int, steps: int) -> SimGraph:
    """Each cell depends on its neighbours of the step before."""
    deps: list[list[int]] = [[] for _ in range(width)]
    for step in range(1, steps):
        base = (step - 1) * width
        deps += [
            [base + c for c in range(max(0, cell - 1), min(width, cell + 2))]
            for cell in range(width)
        ]
    return SimGraph(deps, list(range((steps - 1) * width, steps * width)))


def butterfly(width: int) -> SimGraph:
    """The data flow of a fast Fourier transform; `width` is a power of two."""
    deps: list[list[int]] = [[] for _ in range(width)]
    base, distance = 0, 1
    while distance < width:
        deps += [[base + cell, base + (cell ^ distance)] for cell in range(width)]
        base, distance = base + width, distance * 2
    return SimGraph(deps, list(range(base, base + width)))


def layered(rng: random.Random, layers: int, width: int, degree: int) -> SimGraph:
    """Layers of random widths, each task with up to `degree` dependencies in earlier ones."""
    deps: list[list[int]] = []
    begin_of_last = 0
    for _ in range(layers):
        begin = len(deps)
        for _ in range(rng.randint(1, width)):
            near = list(range(begin_of_last, begin)) or list(range(begin))
            picked = rng.sample(near, min(len(near), rng.randint(0, degree)))
            if begin and rng.random() < 0.1:
                picked.append(rng.randrange(begin))
            deps.append(list(dict.fromkeys(picked)))
        begin_of_last = begin
    used = {dep for row in deps for dep in row}
    return SimGraph(deps, [number for number in range(len(deps)) if number not in used])
