"""Columns of a graph's levels: which tasks of one level lie near each other.

Pure. Where depth-first parts would wait for each other (stencils, butterflies), nodes share every
level, and each keeps the same columns all the way down, so that few values change nodes. A task's
column is a share of its level's work, from 0 to 1: at first by depth-first order, further down by
the mean of its dependencies' columns, spread anew over each level.
"""

from itertools import accumulate, pairwise

import numpy as np

from dagsched.partition.arrays import Float64, gather_rows
from dagsched.plan import Int32, Int64

NARROW_TASKS_MAX = 32
"""Levels of at most so many tasks are sorted by plain lists."""


def by_columns(
    indptr: Int64, deps: Int32, weights_s: Float64, order: Int64, starts: Int64
) -> tuple[Int64, Float64]:
    """Sort each level by columns.

    Args:
        indptr: CSR of the graph.
        deps: its dependencies.
        weights_s: work of each task.
        order: tasks by level, and in each by rising number.
        starts: where each level begins in that order.

    Returns:
        Tasks by level, and in each by column; and for each place of that order its column.
    """
    row_starts, row_deps = gather_rows(indptr, deps, order)
    column = np.zeros(len(order), dtype=np.float64)
    sorted_order = order.copy()
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        members = order[start:end]
        if start > 0:
            first = row_starts[start]
            values = column[row_deps[first : row_starts[end]]]
            if end - start <= NARROW_TASKS_MAX:
                _place_narrow(members, values, row_starts, start, weights_s, column, sorted_order)
                continue
            sums = np.add.reduceat(values, row_starts[start:end] - first)
            means = sums / np.diff(row_starts[start : end + 1])
            members = members[np.argsort(means, kind="stable")]
            sorted_order[start:end] = members
        column[members] = _shares(weights_s[members])
    return sorted_order, column[sorted_order]


def _shares(weights_s: Float64) -> Float64:
    """The middle of each task's share of the work, if they lie side by side from 0 to 1."""
    total_s = float(weights_s.sum())
    if not total_s > 0.0:
        return (np.arange(len(weights_s)) + 0.5) / len(weights_s)
    return (np.cumsum(weights_s) - 0.5 * weights_s) / total_s


def _place_narrow(
    members: Int64,
    values: Float64,
    row_starts: Int64,
    start: int,
    weights_s: Float64,
    column: Float64,
    sorted_order: Int64,
) -> None:
    """Sort one narrow level that has dependencies; writes its part of the last two arrays."""
    count = len(members)
    bounds = row_starts[start : start + count + 1].tolist()
    near = values.tolist()
    first = bounds[0]
    means = [sum(near[low - first : high - first]) / (high - low) for low, high in pairwise(bounds)]
    places = sorted(range(count), key=means.__getitem__)
    work = weights_s[members].tolist()
    before = list(accumulate((work[place] for place in places), initial=0.0))
    total_s = before[-1]
    ordered = members[places]
    sorted_order[start : start + count] = ordered
    if total_s > 0.0:
        column[ordered] = [(low + high) / (2.0 * total_s) for low, high in pairwise(before)]
    else:
        column[ordered] = [(place + 0.5) / count for place in range(count)]
