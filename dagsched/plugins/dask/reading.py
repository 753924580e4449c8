"""One task of a Dask graph as a function and an argument entry of the engine.

A task that calls a function with constants and values of other tasks is just that. Whatever is
written as calls inside a call (nested and fused tasks, containers of nodes, keyword arguments, the
older tuples) becomes a `Composed`, the same for all tasks of the same form, with what they differ
in as arguments; so a layer of 10,000 tasks is one function, and 10,000 short entries.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dagsched.composed import (
    Composed,
    dict_of,
    frozenset_of,
    list_of,
    set_of,
    tuple_of,
)
from dagsched.delayed import function_name
from dagsched.entries import Entry
from dagsched.errors import CycleError, GraphError
from dagsched.items import kept_apart
from dagsched.plugins.dask.constants import Constants, is_plain
from dagsched.plugins.dask.nodes import (
    ALIAS,
    ATOMIC,
    CONTAINER,
    CONTAINER_MAKERS,
    DATA,
    OTHER_NODE,
    REFERENCE,
    TASK,
    VALUE,
    Task,
    fused_call,
    is_node,
    kind_of,
    makes_files,
)

_SIZED = frozenset((str, bytes))

CONTAINER_ITEMS_MAX, CONTAINER_DEPTH_MAX = 64, 4
"""Constant lists and dicts up to this length and depth are made anew by each call, from their
items; others travel as they are."""

_CONSTANT_MAKERS: dict[type, Any] = {list: list_of, tuple: tuple_of, dict: dict_of, slice: slice}
_LEGACY_MAKERS: dict[type, Any] = {
    list: list_of, tuple: tuple_of, set: set_of, frozenset: frozenset_of,
}  # fmt: skip

ARGUMENT, CONSTANT, STEP = range(3)

Place = int
"""Where a step finds an argument: index * 3 + ARGUMENT, CONSTANT or STEP."""


class ReadTask(NamedTuple):
    """What the engine needs of one task."""

    function: int  # index into `TaskReader.functions`
    entry: Entry
    needed: list[Any]  # keys of tasks, and `Source`s, in order of first use
    is_plain: bool


class Source(NamedTuple):
    """A dependency that no task computes."""

    number: int


class _Scope:
    """A fused task's own tasks, and where those are that were read."""

    __slots__ = ("nodes", "places")

    def __init__(self, nodes: Mapping[Any, Any], places: dict[Any, Place]) -> None:
        self.nodes = nodes
        self.places = places


class TaskReader:
    """Reads tasks of one graph; all that they share is made once.

    Args:
        graph: nodes by key.
        constants: decides which constants are sources.
    """

    def __init__(self, graph: Mapping[Any, Any], constants: Constants) -> None:
        self.functions: list[Callable[..., Any]] = []
        self.function_names: list[str] = []
        self._graph = graph
        self._constants = constants
        self._index_by_form: dict[Any, int] = {}
        self._prefix_by_name: dict[str, str] = {}
        self._known_slots: dict[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] = {}
        self._begin(None)

    def _begin(self, key: Any) -> None:
        self._key = key
        self._arguments: list[Any] = []
        self._slots: list[tuple[int, int]] = []
        self._needed: list[Any] = []
        self._place_by_need: dict[Any, Place] = {}
        self._baked: list[Any] = []
        self._steps: list[tuple[Callable[..., Any], tuple[Place, ...], tuple[str, ...]]] = []
        self._is_plain = True

    def read(self, key: Any, node: Any) -> ReadTask:
        """Reads a task.

        Args:
            key: its own.
            node: of the graph; something that `resolve` doesn't take for a constant or an alias.

        Raises:
            GraphError: it needs a key that the graph doesn't have.
        """
        if type(node) is Task and not node.kwargs:
            simple = self._simple(key, node)
            if simple is not None:
                return simple
        self._begin(key)
        if kind_of(type(node)) == VALUE:
            self._older(node)
        else:
            self._value(node, None)
        return ReadTask(self._function(), self._entry(), self._needed, self._is_plain)

    def _simple(self, key: Any, task: Any) -> ReadTask | None:
        """A task with small constants and values of tasks as arguments; None: it has others."""
        function, graph = task.func, self._graph
        if function is fused_call or makes_files(function):
            return None
        arguments: list[Any] = []
        slots: list[tuple[int, int]] = []
        needed: list[Any] = []
        for arg in task.args:
            kind = kind_of(type(arg))
            if kind == ATOMIC:
                if type(arg) in _SIZED and len(arg) >= self._constants.source_bytes_min:
                    return None
                arguments.append(arg)
                continue
            if kind == REFERENCE:
                other = arg.key
            elif kind == ALIAS:
                other = arg.target
            else:
                return None
            if other in needed or type(graph.get(other)) is not Task:
                return None
            slots.append((len(arguments), len(needed)))
            needed.append(other)
            arguments.append(None)
        form = (self._prefix(key), _identity(function))
        index = self._index_by_form.get(form)
        if index is None:
            index = self._add_function(form, function, form[0] or function_name(function))
        entry: Entry = tuple(arguments)
        if slots:
            entry = None if len(slots) == len(arguments) else [entry, self._same_slots(slots)]
        return ReadTask(index, entry, needed, True)

    def resolve(self, key: Any) -> tuple[Any, Any, bool]:
        """Follows aliases from a key to what it stands for.

        Returns:
            The key at the end, its node or value, and whether that is a constant.

        Raises:
            GraphError: there is no such key.
            CycleError: the aliases lead back to where they began.
        """
        seen = [key]
        while True:
            try:
                node = self._graph[key]
            except KeyError:
                raise self._missing(key) from None
            kind = kind_of(type(node))
            if kind == ALIAS:
                target = node.target
            elif kind == REFERENCE:
                target = node.key
            elif kind == DATA:
                return key, node.value, True
            elif kind in (VALUE, ATOMIC):
                if self._is_key(node):
                    target = node
                else:
                    return key, node, not self._has_work(node)
            else:
                return key, node, False
            if target in seen:
                names = tuple(map(str, seen[seen.index(target) :]))
                raise CycleError(
                    f"keys stand for each other: {' -> '.join((*names, names[0]))}", names
                )
            key = target
            seen.append(key)

    def _missing(self, key: Any) -> GraphError:
        if self._key is None:
            return GraphError(f"the graph has no key {key!r:.200}")
        return GraphError(
            f"task {self._key!r:.200} needs {key!r:.200}, which is not among the graph's keys"
        )

    # --- the parts of a task ----------------------------------------------------------------------

    def _value(self, item: Any, scope: _Scope | None) -> Place:
        """Where the value of a node or constant is."""
        kind = kind_of(type(item))
        if kind == REFERENCE:
            return self._need(item.key, scope)
        if kind == ALIAS:
            return self._need(item.target, scope)
        if kind == TASK:
            return self._call(item, scope)
        if kind == CONTAINER:
            places = [self._value(arg, scope) for arg in item.args]
            return self._step(CONTAINER_MAKERS[item.klass], places)
        if kind == DATA:
            return self._literal(item.value)
        if kind == OTHER_NODE:
            return self._other(item, scope)
        return self._literal(item)

    def _call(self, task: Any, scope: _Scope | None) -> Place:
        if task.func is fused_call and _is_fused(task):
            return self._fused(task, scope)
        places = [self._value(arg, scope) for arg in task.args]
        if not task.kwargs:
            return self._step(task.func, places)
        places += [self._value(arg, scope) for arg in task.kwargs.values()]
        return self._step(task.func, places, tuple(task.kwargs))

    def _other(self, node: Any, scope: _Scope | None) -> Place:
        """A node of a kind that isn't known here: it is asked for its value, as Dask does."""
        keys = list(node.dependencies)
        places = [self._bake(node), self._bake(tuple(keys))]
        return self._step(_evaluate, places + [self._need(key, scope) for key in keys])

    def _fused(self, task: Any, scope: _Scope | None) -> Place:
        """The tasks within a fused task, each after those that it needs."""
        nodes, last, inputs, *given = task.args
        places = {key: self._value(arg, scope) for key, arg in zip(inputs, given, strict=True)}
        inner = _Scope(nodes, places)
        rank: dict[Any, int] = {}
        opened: set[Any] = set()
        stack = [last]
        while stack:
            key = stack[-1]
            if key in places:
                stack.pop()
                continue
            missing = [
                other for other in nodes[key].dependencies if other in nodes and other not in places
            ]
            if missing:
                if key in opened:
                    raise CycleError(
                        f"a task fused into {self._key!r:.200} needs itself: {key!r:.200}",
                        (str(key),),
                    )
                opened.add(key)
                if len(missing) > 1:  # a set, whose order is chance
                    rank = rank or {name: index for index, name in enumerate(nodes)}
                    missing.sort(key=rank.__getitem__)
                stack += missing
                continue
            places[key] = self._value(nodes[key], inner)
            stack.pop()
        return places[last]

    def _need(self, key: Any, scope: _Scope | None) -> Place:
        """Where the value of another task is."""
        if scope is not None:
            inside = scope.places.get(key)
            if inside is not None:
                return inside
        place = self._place_by_need.get(key)
        if place is None:
            target, node, is_constant = self.resolve(key)
            if is_constant:
                place = self._literal(node)
            elif target in self._place_by_need:
                place = self._place_by_need[target]
            else:
                place = self._place_by_need[target] = self._dependency(target)
            self._place_by_need[key] = place
        return place

    def _older(self, item: Any) -> Place:
        """Where the value of a part of an older, untyped task is."""
        kind = type(item)
        if is_node(item):
            return self._value(item, None)
        if kind is tuple and item and callable(item[0]):
            places = [
                self._step(dict_of, [self._value(x, None) for pair in arg.items() for x in pair])
                if type(arg) is dict
                else self._older(arg)
                for arg in item[1:]
            ]
            return self._step(item[0], places)
        if self._is_key(item):
            return self._need(item, None)
        if self._has_work(item):
            places = [self._older(one) for one in item]
            if kind in _LEGACY_MAKERS:
                return self._step(_LEGACY_MAKERS[kind], places)
            return self._step(kind, places)  # a named tuple
        return self._literal(item)

    def _is_key(self, item: Any) -> bool:
        if isinstance(item, int | float | str | tuple):
            try:
                return item in self._graph
            except TypeError:  # a tuple with something that has no hash
                return False
        return False

    def _has_work(self, item: Any) -> bool:
        """Whether an older value is a call, or holds nodes, calls or keys."""
        if is_node(item):
            return True
        if isinstance(item, tuple) and item and callable(item[0]) and type(item) is tuple:
            return True
        if type(item) in _LEGACY_MAKERS or (isinstance(item, tuple) and hasattr(item, "_fields")):
            return any(self._is_key(one) or self._has_work(one) for one in item)
        return False

    # --- places -----------------------------------------------------------------------------------

    def _literal(self, value: Any, depth: int = 0) -> Place:
        """Where a constant is, which is in so many containers."""
        kind = type(value)
        if is_plain(value, self._constants.source_bytes_min):
            self._arguments.append(value)
            return len(self._arguments) * 3 - 3 + ARGUMENT
        maker = _CONSTANT_MAKERS.get(kind)
        if maker is not None and depth < CONTAINER_DEPTH_MAX:
            items = _items(value)
            if len(items) <= CONTAINER_ITEMS_MAX:
                return self._step(maker, [self._literal(item, depth + 1) for item in items])
        if callable(value):
            return self._bake(value)
        number = self._constants.source_of(value, self._key)
        if number is not None:
            need = Source(number)
            place = self._place_by_need.get(need)
            if place is None:
                place = self._place_by_need[need] = self._dependency(need)
            return place
        self._is_plain = False
        self._arguments.append(value)
        return len(self._arguments) * 3 - 3 + ARGUMENT

    def _dependency(self, need: Any) -> Place:
        """A new argument, the value of a task or source."""
        self._slots.append((len(self._arguments), len(self._needed)))
        self._needed.append(need)
        self._arguments.append(None)
        return len(self._arguments) * 3 - 3 + ARGUMENT

    def _bake(self, value: Any) -> Place:
        """A constant that is the same for all tasks of this form."""
        self._baked.append(self._constants.lasting(value))
        return len(self._baked) * 3 - 3 + CONSTANT

    def _step(
        self, function: Callable[..., Any], places: list[Place], names: tuple[str, ...] = ()
    ) -> Place:
        self._steps.append((self._constants.lasting(function), tuple(places), names))
        return len(self._steps) * 3 - 3 + STEP

    # --- what comes of it -------------------------------------------------------------------------

    def _entry(self) -> Entry:
        if not self._slots:
            return tuple(self._arguments)
        if len(self._slots) == len(self._arguments):
            return None
        return [tuple(self._arguments), self._same_slots(self._slots)]

    def _same_slots(self, slots: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Equal slots of earlier tasks: pickle writes the same object only once."""
        made = tuple(slots)
        return self._known_slots.setdefault(made, made)

    def _function(self) -> int:
        """Index of the function that makes the steps."""
        prefix = self._prefix(self._key)
        form = (
            prefix,
            tuple([(_identity(call), places, names) for call, places, names in self._steps]),
            tuple(map(_identity, self._baked)),
            len(self._arguments),
        )
        index = self._index_by_form.get(form)
        if index is None:
            name = prefix or function_name(self._steps[-1][0])
            index = self._add_function(form, self._made(name), name)
        return index

    def replaced(self, index: int, function: Callable[..., Any]) -> int:
        """Index of another function under the name of one."""
        name = self.function_names[index]
        form = ("replaced", name, id(function))
        known = self._index_by_form.get(form)
        return self._add_function(form, function, name) if known is None else known

    def kept_apart(self, index: int, count: int) -> int:
        """Index of a function of so many arguments whose result's items are kept apart."""
        form = ("apart", index, count)
        known = self._index_by_form.get(form)
        if known is not None:
            return known
        name, first = self.function_names[index], self.functions[index]
        calls = [(first, tuple(range(count)), ()), (kept_apart, (count,), ())]
        return self._add_function(form, Composed(name, count, (), calls), name)

    def _add_function(self, form: Any, function: Callable[..., Any], name: str) -> int:
        index = self._index_by_form[form] = len(self.functions)
        self.functions.append(function)
        self.function_names.append(name)
        return index

    def _made(self, name: str) -> Callable[..., Any]:
        count = len(self._arguments)
        first = {ARGUMENT: 0, CONSTANT: count, STEP: count + len(self._baked)}
        calls = [
            (function, tuple([first[place % 3] + place // 3 for place in places]), names)
            for function, places, names in self._steps
        ]
        if len(calls) == 1 and not calls[0][2] and calls[0][1] == tuple(range(count)):
            return calls[0][0]
        return Composed(name, count, self._baked, calls)

    def _prefix(self, key: Any) -> str:
        """What all tasks of a collection's layer are called; empty for a key of its own."""
        if type(key) is not tuple or not key or type(key[0]) is not str:
            return ""
        prefix = self._prefix_by_name.get(key[0])
        if prefix is None:
            from dask.utils import key_split

            prefix = self._prefix_by_name[key[0]] = key_split(key[0])
        return prefix


def _items(value: Any) -> Any:
    """What a constant is made from: items, or keys and values in turn, or the parts of a slice."""
    if type(value) is dict:
        return [item for pair in value.items() for item in pair]
    return (value.start, value.stop, value.step) if type(value) is slice else value


def _is_fused(task: Any) -> bool:
    """Whether a fused task has the form that is read here; if not it is called as it is."""
    args = task.args
    return (
        len(args) >= 3
        and not task.kwargs
        and type(args[0]) is dict
        and args[1] in args[0]
        and type(args[2]) is tuple
        and len(args) == 3 + len(args[2])
        and all(is_node(node) for node in args[0].values())
    )


def _identity(item: Any) -> Any:
    """What tells functions apart; each look-up of a method makes a new object for it."""
    if type(item) is types.MethodType:
        return (id(item.__self__), id(item.__func__))
    if type(item) is types.BuiltinMethodType:
        return (id(item.__self__), item.__name__)
    return id(item)


def _evaluate(node: Any, keys: tuple[Any, ...], *values: Any) -> Any:
    """The value of a node, as Dask computes it."""
    return node(dict(zip(keys, values, strict=True)))
