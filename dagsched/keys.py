"""From a task's key to the task, and what a wrong key may have meant. Pure.

A key is a name and a serial number that no other task of the process has, or, in a graph that
another library has written, whatever that calls it. A graph of a million
tasks is searched by number, as an array: no text is made of any task but the one that is found.
"""

import difflib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dagsched.graph import TaskGraph

NEAR_MAX = 3


def find_key(graph: "TaskGraph", key: str) -> int | None:
    """Id of the task with a key; None: there is none.

    Example:
        >>> from dagsched.delayed import delayed
        >>> from dagsched.graph import build_graph
        >>> one = delayed(abs)(-1)
        >>> find_key(build_graph(delayed(max)(one, 2)), one.key)
        0
    """
    if graph.own_keys is not None:
        return next((task for task, own in enumerate(graph.own_keys) if str(own) == key), None)
    name, serial = _split(key)
    if serial is None:
        return None
    for task in np.flatnonzero(graph.serials == serial).tolist():
        if graph.name(task) == name:
            return int(task)
    return None


def unknown_key(graph: "TaskGraph", key: str) -> str:
    """A key that no task has, with keys that it may have meant."""
    near = near_keys(graph, key)
    return f"{key!r:.200}" + (f"; there are {', '.join(near)}" if near else "")


def near_keys(graph: "TaskGraph", key: str) -> list[str]:
    """Up to three keys that look like one that isn't there: same number, same or similar name."""
    if graph.own_keys is not None:
        return difflib.get_close_matches(key, graph.keys(), NEAR_MAX, cutoff=0.5)
    name, serial = _split(key)
    if serial is not None:
        same = np.flatnonzero(graph.serials == serial).tolist()
        if same:
            return [graph.key(task) for task in same]
    own_names = {options.name: task for task, options in graph.options.items() if options.name}
    names = [*dict.fromkeys([*own_names, *graph.function_names])]
    similar = difflib.get_close_matches(name, names, NEAR_MAX, cutoff=0.5)
    found: list[str] = []
    for one in similar:
        tasks = (
            [own_names[one]]
            if one in own_names
            else _tasks_of_function(graph, graph.function_names.index(one), serial)
        )
        found += [graph.key(task) for task in tasks]
    return list(dict.fromkeys(found))[:NEAR_MAX]


def _tasks_of_function(graph: "TaskGraph", function: int, serial: int | None) -> list[int]:
    """Some tasks of a function, those with the nearest numbers first."""
    tasks = np.flatnonzero(graph.function_of == function)
    if serial is not None and len(tasks) > NEAR_MAX:
        distances = np.abs(graph.serials[tasks] - serial)
        tasks = tasks[np.argpartition(distances, NEAR_MAX)[:NEAR_MAX]]
        tasks = tasks[np.argsort(np.abs(graph.serials[tasks] - serial), kind="stable")]
    found: list[int] = tasks[:NEAR_MAX].tolist()
    return found


def _split(key: str) -> tuple[str, int | None]:
    """Name and serial number; no number where there is none."""
    name, dash, number = key.rpartition("-")
    if dash and number.isdecimal() and number.isascii() and len(number) < 19:  # fits an int64
        return name, int(number)
    return key, None
