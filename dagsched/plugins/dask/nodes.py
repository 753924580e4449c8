"""What Dask's graphs are made of, by its public names, and which kind each node is.

`dask.task_spec` names most classes; the rest are found by what its public methods return, so
that no private name of Dask is used here.
"""

from typing import Any

from dask.task_spec import DataNode, GraphNode, Task, TaskRef

from dagsched.composed import dict_of, list_of, set_of, tuple_of

__all__ = [
    "ALIAS", "ATOMIC", "CONTAINER", "CONTAINER_MAKERS", "DATA", "OTHER_NODE", "REFERENCE", "TASK",
    "VALUE", "Task", "TemporaryFile", "fused_call", "is_node", "kind_of", "makes_files",
]  # fmt: skip

ATOMIC, REFERENCE, ALIAS, TASK, DATA, CONTAINER, OTHER_NODE, VALUE = range(8)
"""Kinds of what stands in a graph. OTHER_NODE: a node of a kind that is not known here."""

Alias = type(Task("a", abs, 1).ref())

fused_call = Task.fuse(Task("a", abs, 1), Task("b", abs, TaskRef("a"))).func
"""The function of a task into which Dask has fused others: ``(tasks by key, key of the last,
keys of inputs, *inputs)``."""

try:
    from partd import File as TemporaryFile
except ImportError:  # comes with dask[bag]
    TemporaryFile = None
"""The class of the files in which bags group on disk."""

CONTAINER_MAKERS: dict[Any, Any] = {list: list_of, tuple: tuple_of, set: set_of, dict: dict_of}

_ATOMIC_TYPES = (int, float, bool, type(None), complex, str, bytes)

_kind_by_type: dict[type, int] = dict.fromkeys(_ATOMIC_TYPES, ATOMIC)


def makes_files(function: object) -> bool:
    """Whether it makes the files in which a bag groups, or a dataframe shuffles, on disk."""
    return function is TemporaryFile or type(function).__name__ == "maybe_buffered_partd"


def kind_of(kind: type) -> int:
    """Which kind objects of a type are.

    >>> kind_of(Task) == TASK, kind_of(int) == ATOMIC, kind_of(list) == VALUE
    (True, True, True)
    """
    known = _kind_by_type.get(kind)
    if known is None:
        known = _kind_by_type[kind] = _looked_up(kind)
    return known


def _looked_up(kind: type) -> int:
    if issubclass(kind, Alias):
        return ALIAS
    if issubclass(kind, TaskRef) or getattr(kind, "__dask_future__", False) is True:
        return REFERENCE
    if issubclass(kind, DataNode):
        return DATA
    if issubclass(kind, Task):
        # Lists, dicts and so on of nodes are tasks with their type as an attribute.
        return CONTAINER if getattr(kind, "klass", None) in CONTAINER_MAKERS else TASK
    return OTHER_NODE if issubclass(kind, GraphNode) else VALUE


def is_node(item: object) -> bool:
    """Whether `item` is something of Dask that stands for a value which is not yet there."""
    return ATOMIC < kind_of(type(item)) < VALUE
