"""A run's subtrees as a bounded number of patches: neighbours that are alike are one. Pure."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PATCHES_MAX = 1000


class Patches(NamedTuple):
    """All subtrees of a run."""

    subtree_count: int
    task_count: int
    cells: list[dict[str, Any]]


def patches_of(
    state: NDArray[np.str_],
    home: NDArray[np.integer],
    task_count: NDArray[np.integer],
    done_count: NDArray[np.integer],
    numbers: NDArray[np.integer],
    most: int = PATCHES_MAX,
) -> Patches:
    """Subtrees, an element each in order of their `numbers`, as at most `most` patches.

    With more subtrees than that, as many neighbours as needed share a patch, whatever their states:
    it has the state and node that most of its tasks are in.

    Example:
        >>> alike = patches_of(np.array(["done"] * 4), np.full(4, 2), np.ones(4, int),
        ...                    np.ones(4, int), np.arange(4), 2)
        >>> [(cell["first"], cell["subtree_count"], cell["done_count"]) for cell in alike.cells]
        [(0, 2, 2), (2, 2, 2)]
    """
    count = len(state)
    if not count:
        return Patches(0, 0, [])
    each = -(-count // most)
    firsts = np.arange(0, count, each)
    tasks, done = np.add.reduceat(task_count, firsts), np.add.reduceat(done_count, firsts)
    if each == 1:
        kinds, homes = state, home
    else:
        words, codes = np.unique(state, return_inverse=True)
        places, home_codes = np.unique(home, return_inverse=True)
        kinds = words[_most_of(codes, task_count, each, len(words))]
        homes = places[_most_of(home_codes, task_count, each, len(places))]
    columns = (
        kinds.tolist(),
        homes.tolist(),
        tasks.tolist(),
        done.tolist(),
        firsts.tolist(),
        numbers[firsts].tolist(),
    )
    cells = [
        {
            "state": kind,
            "node": node,
            "task_count": tasks_here,
            "done_count": done_here,
            "subtree_count": min(each, count - first),
            "first": number,
        }
        for kind, node, tasks_here, done_here, first, number in zip(*columns, strict=True)
    ]
    return Patches(count, int(task_count.sum()), cells)


def _most_of(
    codes: NDArray[np.integer], weights: NDArray[np.integer], each: int, kinds: int
) -> NDArray[np.integer]:
    """Of each patch the code that has most tasks."""
    patch = np.arange(len(codes)) // each
    rows = int(patch[-1]) + 1
    sums = np.bincount(patch * kinds + codes, weights, rows * kinds).reshape(rows, kinds)
    most: NDArray[np.integer] = sums.argmax(axis=1)
    return most
