"""A Dask graph as the engine's: one walk from the keys that are wanted, each task read once.

What the wanted keys don't need is left out, aliases and constants are no tasks, and ids are
topological and in depth-first order, as `dagsched.graph` gives them.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import getitem
from typing import Any

import numpy as np

from dagsched.delayed import DEFAULTS, Options
from dagsched.entries import Entry, slot
from dagsched.errors import CycleError
from dagsched.graph import TaskGraph, no_garbage_collection
from dagsched.items import take_item
from dagsched.plan import Int32, Int64
from dagsched.plugins.dask.constants import Constants
from dagsched.plugins.dask.reading import ReadTask, Source, TaskReader
from dagsched.walking import cycle_error

ITEM_USERS_MIN = 4
"""Results of which so many tasks take an item each are kept item by item."""


def convert_graph(
    graph: Mapping[Any, Any],
    keys: Any,
    options: Mapping[Any, Options] | None = None,
    constants: Constants | None = None,
) -> TaskGraph:
    """Turns a low-level Dask graph into a graph of the engine.

    Args:
        graph: nodes of `dask.task_spec`, older tuples, or values, by key; a `Ref` is a value that
            a node has already.
        keys: the key whose value is wanted, or a list of such, which may be nested.
        options: of tasks, by key.
        constants: to be closed by the caller after the run; None: the graph uses no files.

    Raises:
        GraphError: a key that is wanted or needed isn't there.
        CycleError: a task needs itself.

    >>> converted = convert_graph({"x": (abs, -3), "y": (max, "x", 2)}, "y")
    >>> converted.keys(), converted.entries
    (['x', 'y'], [(-3,), [(None, 2), ((0, 0),)]])
    """
    with no_garbage_collection():
        walk = _Walk(graph, constants or Constants())
        wanted = walk.run(list(dict.fromkeys(_flat(keys))))
    count = len(walk.entries)
    indptr = np.zeros(count + 1, np.int64)
    np.cumsum(np.array(walk.counts, np.int64), out=indptr[1:])
    # Several keys may stand for one task.
    outputs = {task: index for index, task in enumerate(dict.fromkeys(wanted.values()))}
    deps, ids = np.array(walk.deps, np.int32), np.array(list(outputs), np.int32)
    for numbers in (deps, ids):
        numbers[numbers < 0] = count - 1 - numbers[numbers < 0]
    walk.keep_items_apart(indptr, deps, ids)
    asked = {}
    if options:
        asked = {
            task: options[key]
            for task, key in enumerate(walk.keys)
            if options.get(key, DEFAULTS) is not DEFAULTS
        }
    return TaskGraph(
        functions=walk.reader.functions,
        function_names=walk.reader.function_names,
        function_of=np.array(walk.function_of, np.int32),
        indptr=indptr,
        deps=deps,
        entries=walk.entries,
        plain=bytearray(walk.plain),
        sources=walk.constants.sources,
        options=asked,
        serials=np.arange(count, dtype=np.int64),
        outputs=ids,
        shape=_shape(keys, {key: outputs[task] for key, task in wanted.items()}),
        persisted={},
        own_keys=walk.keys,
    )


def _flat(keys: Any) -> Iterator[Any]:
    """Keys inside lists, in order."""
    if isinstance(keys, list):
        for key in keys:
            yield from _flat(key)
    else:
        yield keys


def _shape(keys: Any, index_by_key: Mapping[Any, int]) -> Any:
    """What was asked for with slots in place of keys, lists as tuples, as Dask gives them."""
    if isinstance(keys, list):
        return tuple([_shape(key, index_by_key) for key in keys])
    return slot(index_by_key[keys])


class _Walk:
    """Visits each task that is needed once, dependencies first; see `dagsched.graph`."""

    def __init__(self, graph: Mapping[Any, Any], constants: Constants) -> None:
        self.constants = constants
        self.reader = TaskReader(graph, constants)
        self.keys: list[Any] = []
        self.function_of: list[int] = []
        self.entries: list[Entry] = []
        self.deps: list[int] = []  # sources are below 0
        self.counts: list[int] = []
        self.plain: list[bool] = []
        self._graph = graph
        self._ids: dict[Any, int] = {}

    def run(self, roots: Sequence[Any]) -> dict[Any, int]:
        """The ids of what is wanted, by key."""
        targets = [self._target(key) for key in roots]
        self._visit([target for target in targets if type(target) is not Source])
        return {
            key: -1 - target.number if type(target) is Source else self._ids[target]
            for key, target in zip(roots, targets, strict=True)
        }

    def _target(self, key: Any) -> Any:
        """The task that gives the value of a key that is wanted, or a `Source`."""
        target, value, is_constant = self.reader.resolve(key)
        return Source(self.constants.add(value)) if is_constant else target

    def _visit(self, wanted: list[Any]) -> None:
        ids, graph, read = self._ids, self._graph, self.reader.read
        waiting: dict[Any, ReadTask] = {}
        stack = wanted[::-1]
        while stack:
            key = stack.pop()
            if key in ids:
                continue
            task = waiting.pop(key, None)
            was_opened = task is not None
            if task is None:
                task = read(key, graph[key])
            needed = task.needed
            pending = [other for other in needed if other not in ids and type(other) is not Source]
            if pending:
                if was_opened:
                    waiting[key] = task
                    raise _cycle_error(key, waiting, ids)
                waiting[key] = task
                stack.append(key)
                pending.reverse()
                stack += pending
                continue
            ids[key] = len(self.keys)
            self.keys.append(key)
            self.function_of.append(task.function)
            self.entries.append(task.entry)
            self.plain.append(task.is_plain)
            self.counts.append(len(needed))
            self.deps += [
                -1 - other.number if type(other) is Source else ids[other] for other in needed
            ]

    def keep_items_apart(self, indptr: Int64, deps: Int32, outputs: Int32) -> None:
        """Where many tasks each take one item of a result, none shall load all of them."""
        functions, function_of = self.reader.functions, self.function_of
        is_getitem = np.array([function is getitem for function in functions], bool)
        if not is_getitem.any():
            return
        takes = is_getitem[function_of] & (np.diff(indptr) == 1)
        takes[takes] = [type(self.entries[task]) is list for task in np.flatnonzero(takes)]
        count = len(function_of)
        users = np.bincount(deps, minlength=count)[:count]
        takers = np.flatnonzero(takes)
        of = deps[indptr[:-1][takers]]
        whole = np.bincount(of[of < count], minlength=count) == users
        whole &= users >= ITEM_USERS_MIN
        whole[outputs[outputs < count]] = False
        if not whole.any():
            return
        takers = takers[(of < count) & whole[np.minimum(of, count - 1)]]
        made = {
            function_of[task]: self.reader.replaced(function_of[task], take_item) for task in takers
        }
        for task in takers.tolist():
            function_of[task] = made[function_of[task]]
        for task in np.flatnonzero(whole).tolist():
            entry = self.entries[task]
            given = (
                self.counts[task]
                if entry is None
                else len(entry[0] if type(entry) is list else entry)
            )
            function_of[task] = self.reader.kept_apart(function_of[task], given)


def _cycle_error(start: Any, waiting: Mapping[Any, ReadTask], ids: Mapping[Any, int]) -> CycleError:
    def is_waiting(key: Any) -> bool:
        return key in waiting and key not in ids

    return cycle_error(start, lambda key: waiting[key].needed, is_waiting, str)
