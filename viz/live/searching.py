"""Keys of tasks that look like what somebody has typed. Pure.

A graph of a million tasks is searched by name and number, as arrays: no text is made of any task
but those that are found.
"""

import re
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dagsched.graph import TaskGraph

_SERIAL = re.compile("(.*)-([0-9]{1,18})")


def keys_like(graph: TaskGraph, text: str, most: int) -> list[str]:
    """Some keys that contain a text, those that begin with it first.

    Args:
        graph: of the run.
        text: what was typed: a part of a name, or a name and the beginning of a number.
        most: so many at most.
    """
    if graph.own_keys is not None:
        keys = [str(key) for key in graph.own_keys]
        begin = (key for key in keys if key.startswith(text))
        within = (key for key in keys if text in key and not key.startswith(text))
        return [*islice((*begin, *within), most)]
    found: dict[str, None] = {}
    match = _SERIAL.fullmatch(text)
    if match is not None:
        named = _tasks_named(graph, match[1], is_whole=True)
        begins = _begin_with(graph.serials[named], match[2])
        found |= {graph.key(task): None for task in named[begins][:most].tolist()}
    for is_whole in (True, False):
        tasks = _tasks_named(graph, text.rstrip("-"), is_whole=is_whole)[:most]
        found |= {graph.key(task): None for task in tasks.tolist()}
    return list(found)[:most]


def _tasks_named(graph: TaskGraph, name: str, *, is_whole: bool) -> NDArray[np.integer]:
    """Tasks with a name, or one that contains it, rising."""

    def fits(known: str) -> bool:
        return known == name if is_whole else name in known

    functions = [index for index, known in enumerate(graph.function_names) if fits(known)]
    chosen = np.isin(graph.function_of, functions)
    for task, options in graph.options.items():
        if options.name is not None:
            chosen[task] = fits(options.name)
    return np.flatnonzero(chosen)


def _begin_with(serials: NDArray[np.integer], digits: str) -> NDArray[np.bool_]:
    """Which numbers begin with these digits."""
    begins = np.zeros(len(serials), np.bool_)
    low, width = int(digits), 1
    while low * width < 1 << 62 and width < 10**12:
        begins |= (serials >= low * width) & (serials < (low + 1) * width)
        width *= 10
        if not low:
            break
    return begins
