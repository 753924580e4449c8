"""The compact graph: calls written down become dense ids, arrays and argument entries.

Pure. One depth-first walk from the outputs visits each task once, whatever the number of paths
(`dagsched.walking`); ids are given in post-order, dependencies in the order of arguments, so they
are topological and neighbours in the graph have neighbouring ids.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dagsched.containers import leaves, rebuild
from dagsched.delayed import Delayed, Options, function_name, is_delayed
from dagsched.entries import Entry, Slot, is_slot, slot
from dagsched.errors import GraphError
from dagsched.given import taken
from dagsched.partition.arrays import distinct
from dagsched.plan import Int32, Int64
from dagsched.ref import Ref
from dagsched.trace import TaskNames
from dagsched.walking import ATOMIC, walked

if TYPE_CHECKING:
    import networkx as nx

SOURCE_BYTES_MIN = 65_536  # as in Config: constants from this size on are sources

_CONTAINERS = frozenset((list, tuple, dict, set, frozenset))
_SIZED = frozenset((str, bytes, bytearray))
# Constants that need no care: plain pickle knows them, and no task can change them.
_IMMUTABLE = ATOMIC | {str, bytes, range, Slot}
_BY_NAME = frozenset((type, type(len), type(lambda: 0)))
_ITEM_BYTES = 8  # what an item of a container takes at the very least


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """All tasks of a run by dense id; ids are topological and in depth-first order.

    n tasks have ids ``0 .. n - 1``; sources (large or shared constants, and `Ref`s) follow.
    """

    functions: Sequence[Callable[..., Any]]
    function_names: Sequence[str]
    function_of: Int32  # n: index into functions
    indptr: Int64  # n + 1
    deps: Int32  # unique in each task, in order of first use; n + s is source s
    entries: Sequence[Entry]  # n
    plain: bytearray  # n: 1 where plain pickle will do and no task could change a constant
    sources: Sequence[object]
    options: Mapping[int, Options]  # by id, only of tasks that asked for something
    serials: Int64  # n
    outputs: Int32  # ids of the values that were asked for, each once
    shape: object  # what was asked for, with a Slot(i) for the value of output i
    persisted: Mapping[int, Delayed]  # by id: tasks whose values the environment keeps
    own_keys: Sequence[object] | None = None  # n: of a graph that another library has written

    @property
    def task_count(self) -> int:
        """Tasks, sources not among them."""
        return len(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def meta(self) -> Int32:
        """Ids of tasks that get references instead of values, rising."""
        return np.array([task_id for task_id, task in self.options.items() if task.meta], np.int32)

    def name(self, task_id: int) -> str:
        """What a task is called: its own name, or its function's."""
        options = self.options.get(task_id)
        if options is not None and options.name is not None:
            return options.name
        return self.function_names[int(self.function_of[task_id])]

    def key(self, task_id: int) -> str:
        """The key of the `Delayed` that the task was, or the one that its library gave it."""
        if self.own_keys is not None:
            return str(self.own_keys[task_id])
        return f"{self.name(task_id)}-{self.serials[task_id]}"

    def task_names(self) -> TaskNames:
        """What the tasks are called, without the tasks.

        Functions of one name, as lambdas that a loop makes, are one there.
        """
        own = {task_id: asked.name for task_id, asked in self.options.items() if asked.name}
        names, of = self.function_names, self.function_of
        number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
        if len(number_of) < len(names):
            of = np.array([number_of[name] for name in names], np.int32)[of]
            names = list(number_of)
        return TaskNames(names, of, self.serials, own, self.own_keys)

    def keys(self) -> list[str]:
        """The keys of all tasks, by id."""
        return [self.key(task_id) for task_id in range(len(self))]

    def dependencies(self, task_id: int) -> Int32:
        """Ids of the tasks and sources that a task needs."""
        return self.deps[self.indptr[task_id] : self.indptr[task_id + 1]]

    def resolve_outputs(self, values: Sequence[object]) -> Any:
        """Builds what the user asked for.

        Args:
            values: The values of `outputs`, in that order.
        """
        return rebuild(self.shape, lambda item: values[item.index], is_slot)  # type: ignore[attr-defined]  # leaves are Slots

    def to_networkx(self) -> "nx.DiGraph[str]":
        """Returns the tasks as nodes, by key, with attributes function and name."""
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph()
        keys = self.keys()
        for task_id, (key, index) in enumerate(zip(keys, self.function_of.tolist(), strict=True)):
            graph.add_node(key, function=self.functions[index], name=self.name(task_id))
        targets = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        for source, target in zip(self.deps.tolist(), targets.tolist(), strict=True):
            if source < len(keys):
                graph.add_edge(keys[source], keys[target])
        return graph


def build_graph(
    dag: object,
    source_bytes_min: int = SOURCE_BYTES_MIN,
    kept: Mapping[Delayed, Ref] | None = None,
) -> TaskGraph:
    """Turns calls written down into a graph.

    Args:
        dag: A `Delayed`, or containers with `Delayed`s anywhere inside; or a graph that a front
            end has made, which is taken as it is, less functions that no task calls.
        source_bytes_min: Constants from this size on are sources.
        kept: `Delayed`s whose values are known already, and the references to them.

    Raises:
        CycleError: A task needs itself, by way of a container that was changed later.
        GraphError: A `Delayed` is a key of a dict; a front end's graph makes no sense.

    >>> from dagsched.delayed import delayed
    >>> graph = build_graph(delayed(max)(delayed(abs)(-3), 2))
    >>> graph.function_names, graph.entries
    (['abs', 'max'], [(-3,), [(None, 2), ((0, 0),)]])
    """
    if isinstance(dag, TaskGraph):
        return taken(dag)
    kept = kept or {}
    scanner = _Scanner(source_bytes_min, kept)
    ids = {node: scanner.source(ref) for node, ref in kept.items()}
    known_count = len(ids)
    roots: dict[Delayed, int] = {}
    with no_garbage_collection():
        shape = rebuild(
            dag,
            lambda item: slot(roots.setdefault(item, len(roots))),  # type: ignore[arg-type]  # leaves are Delayeds
            is_delayed,
            _set_order,
        )
        found = walked(list(roots), ids, scanner)
    count = len(found.entries)
    dep_ids = found.deps
    outputs = np.array([ids[root] for root in roots], np.int32)
    sources = scanner.sources
    if sources:
        dep_ids[dep_ids < 0] = count - 1 - dep_ids[dep_ids < 0]
        outputs[outputs < 0] = count - 1 - outputs[outputs < 0]
        if known_count:
            sources = _drop_unused(sources, dep_ids, outputs, count)
    plain = bytearray(b"\1") * count
    for node in scanner.not_plain:
        plain[ids[node]] = 0
    persisted = [task_id for task_id, asked in found.options.items() if asked.persist]
    tasks = list(ids)[known_count:] if persisted else []
    return TaskGraph(
        functions=found.functions,
        function_names=[function_name(function) for function in found.functions],
        function_of=found.function_of,
        indptr=found.indptr,
        deps=dep_ids,
        entries=found.entries,
        plain=plain,
        sources=sources,
        options=found.options,
        serials=found.serials,
        outputs=outputs,
        shape=shape,
        persisted={task_id: tasks[task_id] for task_id in persisted},
    )


class no_garbage_collection:  # noqa: N801 - used like a function
    """While a graph is made nothing becomes garbage; looking for it takes half as long again."""

    __slots__ = ("_was_on",)

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            gc.enable()


class _Scanner:
    """Entries of calls with arguments other than tasks and small atomic constants."""

    __slots__ = (
        "_container_count", "_index_of", "_kept", "_needed", "_nested", "_owner", "_owners",
        "_plain", "_scans", "_source_of", "not_plain", "source_bytes_min", "sources",
    )  # fmt: skip

    def __init__(self, source_bytes_min: int, kept: Mapping[Delayed, Ref]) -> None:
        self.source_bytes_min = source_bytes_min
        self._kept = kept
        self.sources: list[object] = []
        self.not_plain: list[Delayed] = []
        self._source_of: dict[object, int] = {}  # by id of a constant, or by Ref
        self._owners: dict[int, Delayed | None] = {}  # by id of an object: the first task with it
        # Scans of tasks that wait for their dependencies.
        self._scans: dict[Delayed, tuple[Entry, list[object]]] = {}
        self._needed: list[object] = []  # tasks, and ids of sources, in order of first use
        self._index_of: dict[object, int] = {}  # into _needed
        self._plain = True
        self._container_count = 0  # in the argument that is being scanned
        self._nested = False  # a slot lies inside a container
        self._owner: Delayed | None = None  # the task that is being scanned

    def entry(
        self, node: Delayed, ids: dict[Delayed, int]
    ) -> tuple[Entry, list[Delayed] | None, list[int]]:
        """Returns a task's entry, those of its dependencies without an id, and ids of the rest."""
        scan = self._scans.pop(node, None) if self._scans else None
        if scan is None:
            scan = self._scan(node)
        needed = scan[1]
        if not needed:
            return scan[0], None, []
        pending = [item for item in needed if type(item) is Delayed and item not in ids]
        if pending:
            self._scans[node] = scan
            return None, pending, []
        return scan[0], None, [ids[x] if type(x) is Delayed else x for x in needed]  # type: ignore[misc]  # the rest are ints

    def source(self, value: object) -> int:
        """Returns the id of a source; the same for the same object."""
        key = value if type(value) is Ref else id(value)
        number = self._source_of.get(key)
        if number is None:
            number = self._source_of[key] = len(self.sources)
            self.sources.append(value)
        return -1 - number

    def _scan(self, node: Delayed) -> tuple[Entry, list[object]]:
        self._needed = []
        self._index_of = {}
        self._plain = True
        self._nested = False
        self._owner = node
        replaced = self._argument
        args = [arg if type(arg) in ATOMIC else replaced(arg) for arg in node._args]
        kwargs = node._kwargs
        needed = self._needed
        if kwargs is not None:
            given = {
                name: arg if type(arg) in ATOMIC else replaced(arg) for name, arg in kwargs.items()
            }
        if not self._plain:
            self.not_plain.append(node)
        if kwargs is not None:
            return {"args": tuple(args), "kwargs": given}, needed
        if not needed:
            return tuple(args), needed
        slots = [(index, arg.index) for index, arg in enumerate(args) if type(arg) is Slot]
        if self._nested:
            return {"args": tuple(args), "kwargs": {}}, needed
        if len(slots) == len(args) == len(needed):
            return None, needed
        for index, _ in slots:
            args[index] = None
        return [tuple(args), tuple(slots)], needed

    def _argument(self, arg: Any) -> Any:
        """An argument with slots in place of tasks and sources."""
        if type(arg) is Delayed:
            return self._slot(arg)
        self._container_count = 0
        result = rebuild(arg, self._slot, self._is_leaf, _set_order)
        if result is arg:
            return self._constant(arg)
        if type(result) is not Slot:
            self._nested = True
            if self._container_count > 1:
                # Containers without a slot inside those with one may be changed by a task.
                self._plain = False
        return result

    def _constant(self, arg: Any) -> Any:
        """An argument without tasks in it, or a slot if it is better stored once a node."""
        kind = type(arg)
        if kind in _IMMUTABLE:
            return arg
        if kind in _CONTAINERS:
            if len(arg) * _ITEM_BYTES >= self.source_bytes_min:
                return self._slot(arg)
            if kind is not tuple or not _IMMUTABLE.issuperset(map(type, arg)):
                self._plain = False
            return arg
        if isinstance(arg, np.generic):
            return arg
        self._plain = False
        if kind in _BY_NAME or isinstance(arg, np.ndarray):
            return arg
        # Of any other object nobody knows the size. If several tasks have it, it may be a model
        # that all of them use, which should not travel with each of them.
        owner = self._owners.setdefault(id(arg), self._owner)
        return arg if owner is self._owner else self._slot(arg)

    def _slot(self, item: object) -> Slot:
        """The slot of a task, reference or constant that the scanned task needs."""
        needed: object = item
        if type(item) is not Delayed:
            needed = self.source(item)
        elif item in self._kept:  # the same value may be an argument as a Ref as well
            needed = self.source(self._kept[item])
        index = self._index_of.get(needed)
        if index is None:
            index = self._index_of[needed] = len(self._needed)
            self._needed.append(needed)
        return slot(index)

    def _is_leaf(self, item: Any) -> bool:
        """Says whether `item` is a dependency; notes on the way if it needs cloudpickle."""
        kind = type(item)
        if kind in _IMMUTABLE:
            return kind in _SIZED and len(item) >= self.source_bytes_min
        if kind is Delayed or kind is Ref:
            return True
        if kind in _CONTAINERS:
            self._container_count += 1
            if kind is dict and not _IMMUTABLE.issuperset(map(type, item)):
                self._plain = False
                if any(type(name) is Delayed for name in item):
                    assert self._owner is not None
                    raise GraphError(
                        f"an argument of {self._owner.key} is a dict with a Delayed as a key; only "
                        "values may be Delayed: pass a list of pairs"
                    )
            return False
        if kind is bytearray:
            size_bytes = len(item)
        elif isinstance(item, np.generic):
            return False
        else:
            # Arrays, and what else says how large its data is; more than that is not asked of
            # objects of other people.
            size_bytes = getattr(item, "nbytes", 0) if hasattr(kind, "nbytes") else 0
            if type(size_bytes) is not int:
                size_bytes = 0
        if size_bytes >= self.source_bytes_min:
            return True
        self._plain = False
        return False


def _set_order(item: object) -> tuple[int, int]:
    """Sorts elements of sets, so that ids don't depend on hashes of addresses."""
    if type(item) is Delayed:
        return (item._serial, 0)
    if type(item) is Ref:
        return (item.run, item.position)
    first = next(leaves(item, is_delayed), None)
    return (first._serial, 1) if type(first) is Delayed else (0, 0)


def _drop_unused(sources: list[object], deps: Int32, outputs: Int32, count: int) -> list[object]:
    """Kept values that the graph needs; `deps` and `outputs` are renumbered in place."""
    used = distinct(np.concatenate((deps[deps >= count], outputs[outputs >= count])))
    for ids in (deps, outputs):
        ids[ids >= count] = count + np.searchsorted(used, ids[ids >= count]).astype(np.int32)
    return [sources[index - count] for index in used.tolist()]
