"""The walk over calls written down: each task once, dependencies first.

Responsible for ids and for what stands in arrays by id; what becomes of arguments other than tasks
and small constants is its caller's affair (`dagsched.graph`). The walk is the only part of a run
that costs time for each task in the client. So there is a compiled form, `_walking.c`, which does
what `walked_plainly` does at a quarter of the time; that one is used where there is no compiler.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from types import MethodType, ModuleType
from typing import Any, Protocol

import numpy as np

from dagsched.containers import leaves
from dagsched.delayed import DEFAULTS, Delayed, DelayedFunction, Options, is_delayed
from dagsched.entries import Entry
from dagsched.errors import CycleError
from dagsched.plan import Int32, Int64

ATOMIC: frozenset[type] = frozenset((int, float, bool, type(None), complex))
"""Types of constants that go into an entry as they are."""


class EntryScanner(Protocol):
    """Makes entries of calls that aren't common."""

    source_bytes_min: int

    def entry(
        self, node: Delayed, ids: dict[Delayed, int]
    ) -> tuple[Entry, list[Delayed] | None, list[int]]:
        """A task's entry, those of its dependencies without an id, and ids of the rest."""
        ...


@dataclass(frozen=True, slots=True)
class Walked:
    """What a walk has found; n tasks have ids from 0 in the order in which they were done."""

    entries: list[Entry]  # n
    deps: Int32  # of all tasks; below 0: sources
    indptr: Int64  # n + 1
    functions: list[Callable[..., Any]]
    function_of: Int32  # n: index into functions
    serials: Int64  # n
    options: dict[int, Options]  # by id, of tasks that asked for something


def walked(roots: list[Delayed], ids: dict[Delayed, int], scanner: EntryScanner) -> Walked:
    """Visit every task that the roots need.

    Args:
        roots: what was asked for.
        ids: gets the id of each task; what it has already is taken as known.
        scanner: for calls with arguments other than tasks and small constants.

    Raises:
        CycleError: a task needs itself, by way of a container that was changed later.
    """
    return walked_plainly(roots, ids, scanner) if _part is None else _walked(roots, ids, scanner)


def walked_plainly(roots: list[Delayed], ids: dict[Delayed, int], scanner: EntryScanner) -> Walked:
    """The same in Python.

    A task with dependencies not yet visited goes back on the stack below them, so that it is
    looked at twice, and a task that is looked at again before its dependencies are done depends
    on itself.
    """
    entries: list[Entry] = []
    deps: list[int] = []
    counts: list[int] = [0]
    known_count = len(ids)
    opened: set[Delayed] = set()
    mixed_entry = _MixedEntries()
    ids_get, atomic, size_max = ids.get, ATOMIC, scanner.source_bytes_min
    entries_append, counts_append = entries.append, counts.append
    next_id = 0
    stack = roots[::-1]
    while stack:
        node = stack.pop()
        if node in ids:
            continue
        args = node._args
        pending = None
        mine = []
        mixed = False
        common = node._kwargs is None
        if common:
            for arg in args:
                kind = type(arg)
                if kind is Delayed:
                    task_id = ids_get(arg)
                    if task_id is not None:
                        mine.append(task_id)
                    elif pending is None:
                        pending = [arg]
                    else:
                        pending.append(arg)
                elif kind in atomic or ((kind is str or kind is bytes) and len(arg) < size_max):
                    mixed = True
                else:
                    common = False
                    break
        if not common:
            entry, pending, mine = scanner.entry(node, ids)
        if pending:
            if node in opened:
                raise _cycle_error(node, opened, ids)
            opened.add(node)
            stack.append(node)
            pending.reverse()
            stack += pending
            continue
        ids[node] = next_id
        next_id += 1
        if common:
            if not mine:
                entry = args
            elif not mixed and (len(mine) == 1 or len(set(mine)) == len(mine)):
                entry = None
            else:
                entry, mine = mixed_entry(args, mine)
        entries_append(entry)
        counts_append(len(mine))
        deps += mine
    return _columns(list(ids)[known_count:], entries, deps, counts)


def _columns(
    tasks: list[Delayed], entries: list[Entry], deps: list[int], counts: list[int]
) -> Walked:
    """What is known of the tasks, by id."""
    functions, function_of = _merged_functions(list(map(attrgetter("_call.__wrapped__"), tasks)))
    return Walked(
        entries,
        np.array(deps, np.int32),
        np.cumsum(np.array(counts, np.int64), dtype=np.int64),
        functions,
        function_of,
        np.fromiter(map(attrgetter("_serial"), tasks), np.int64, len(tasks)),
        _unusual_options(tasks),
    )


def _walked(roots: list[Delayed], ids: dict[Delayed, int], scanner: EntryScanner) -> Walked:
    """By the compiled form."""
    assert _part is not None
    entries, deps, indptr, found, index_of, serials, options = _part.walk(
        roots, ids, scanner.source_bytes_min, scanner.entry, _MixedEntries(), _cycle_error
    )
    functions, function_of = _merged_functions(found)
    return Walked(
        entries,
        np.frombuffer(deps, np.int32).copy(),  # the caller may change these
        np.frombuffer(indptr, np.int64),
        functions,
        function_of[np.frombuffer(index_of, np.int32)],
        np.frombuffer(serials, np.int64),
        dict(options),
    )


def _compiled() -> ModuleType | None:
    try:
        from dagsched import _walking
    except ImportError:
        return None
    _walking.prepare(Delayed, DelayedFunction, ATOMIC, DEFAULTS)
    return _walking


_part = _compiled()


class _MixedEntries:
    """Entries of calls with constants or repeated tasks as arguments."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        # Equal slots of earlier calls: pickle writes the same object only once.
        self._known: dict[tuple[tuple[int, int], ...], Any] = {}

    def __call__(self, args: tuple[Any, ...], mine: list[int]) -> tuple[Entry, list[int]]:
        """Entry and dependencies; `mine` are ids of the tasks among the arguments."""
        if len(mine) == 1:
            for index, arg in enumerate(args):
                if type(arg) is Delayed:
                    slots: tuple[tuple[int, int], ...] = ((index, 0),)
                    rest = (*args[:index], None, *args[index + 1 :])
                    return [rest, self._known.setdefault(slots, slots)], mine
        index_of: dict[int, int] = {}
        values = list(args)
        places: list[tuple[int, int]] = []
        for index, arg in enumerate(args):
            if type(arg) is Delayed:
                places.append((index, index_of.setdefault(mine[len(places)], len(index_of))))
                values[index] = None
        slots = tuple(places)
        return [tuple(values), self._known.setdefault(slots, slots)], list(index_of)


def _merged_functions(
    given: list[Callable[..., Any]],
) -> tuple[list[Callable[..., Any]], Int32]:
    """The different callables, in order of first appearance, and the index of each given one."""
    keys = list(map(id, given))
    by_key = dict(zip(reversed(keys), reversed(given), strict=True))
    functions: list[Callable[..., Any]] = []
    index_by_key: dict[int, int] = {}
    index_by_method: dict[tuple[int, int], int] = {}
    for key in dict.fromkeys(keys):
        function = by_key[key]
        index = len(functions)
        if type(function) is MethodType:
            # Each look-up of a method makes a new object for it.
            method = (id(function.__self__), id(function.__func__))
            index = index_by_method.setdefault(method, index)
        if index == len(functions):
            functions.append(function)
        index_by_key[key] = index
    return functions, np.fromiter(map(index_by_key.__getitem__, keys), np.int32, len(keys))


def _unusual_options(tasks: list[Delayed]) -> dict[int, Options]:
    """Options by id of the tasks that have any."""
    options = list(map(attrgetter("_call._options"), tasks))
    if options.count(DEFAULTS) == len(options):
        return {}
    return {task_id: asked for task_id, asked in enumerate(options) if asked is not DEFAULTS}


def _cycle_error(start: Delayed, opened: set[Delayed], ids: dict[Delayed, int]) -> CycleError:
    def needed_of(node: Delayed) -> Iterable[Any]:
        return leaves((node._args, node._kwargs), is_delayed)

    return cycle_error(
        start, needed_of, lambda node: node in opened and node not in ids, lambda node: node.key
    )


def cycle_error(
    start: Any,
    needed_of: Callable[[Any], Iterable[Any]],
    is_waiting: Callable[[Any], bool],
    name_of: Callable[[Any], str],
) -> CycleError:
    """Find the shortest way from a task back to itself.

    Args:
        start: a task on a cycle.
        needed_of: what a task needs.
        is_waiting: whether something is a task that was begun and isn't done; others lead nowhere.
        name_of: what a task is called.
    """
    found_from: dict[Any, Any] = {}
    queue = deque([start])
    while queue and start not in found_from:
        node = queue.popleft()
        for needed in needed_of(node):
            if is_waiting(needed) and needed not in found_from:
                found_from[needed] = node
                queue.append(needed)
    path = [start]
    while (before := found_from[path[-1]]) is not start:
        path.append(before)
    # path is start, the task that needs it, the task that needs that, ..
    cycle = tuple(map(name_of, path))
    return CycleError(f"tasks depend on each other: {' -> '.join((*cycle, cycle[0]))}", cycle)
