"""Long tasks one by one: each a subtree of its own, in the order in which the master deals them.

Pure. Where tasks are long and a decision of the master costs next to nothing beside them, no cut
that is made beforehand is as good as to decide when an executor is free: durations differ from
their means, and nodes from each other. What is left to the cut is the order: depth first, which
keeps least alive, or by the longest way to the end where that ends clearly earlier.
"""

import numpy as np

from dagsched.partition.arrays import Edges, Float64
from dagsched.partition.simulate import list_starts_s
from dagsched.plan import Int64

LONG_S = 0.05
"""Mean duration from which tasks may be dealt: a hundred times the way to the master and back."""

DECISION_S = 0.000_1
"""What a subtree costs the master, from the plan to its end."""

DECISIONS_MAX = 0.05
"""The master may be busy with decisions for this share of the shortest makespan there can be."""

CLEARLY_EARLIER = 1.02
"""Depth-first order is left where the other ends earlier by this factor."""


def is_dealt(task_count: int, total_s: float, critical_s: float, executors: int) -> bool:
    """Whether tasks are so long, and so few, that the master can decide on each.

    Args:
        task_count: tasks.
        total_s: their work.
        critical_s: the longest path.
        executors: of all nodes.
    """
    if total_s < LONG_S * task_count:
        return False
    shortest_s = max(total_s / executors, critical_s)
    return task_count * DECISION_S <= DECISIONS_MAX * shortest_s


def dealing_order(edges: Edges, weights_s: Float64, executors: int, hop_s: float) -> Int64:
    """Tasks in the order in which idle executors shall take those that are ready; topological.

    By upward rank as in HEFT (Topcuoglu, Hariri, Wu 2002, section 4.1), if a list schedule in that
    order is clearly shorter than one in the order of numbers.

    Args:
        edges: of the tasks.
        weights_s: their expected durations.
        executors: of all nodes.
        hop_s: how long values take to their dependents.
    """
    plain = np.arange(edges.task_count, dtype=np.int64)
    plain_s = _makespan_s(edges, weights_s, plain, executors, hop_s)
    ranked = np.argsort(-_upward_ranks(edges, weights_s, hop_s), kind="stable")
    ranked_s = _makespan_s(edges, weights_s, ranked, executors, hop_s)
    return ranked if plain_s > CLEARLY_EARLIER * ranked_s else plain


def _upward_ranks(edges: Edges, weights_s: Float64, hop_s: float) -> Float64:
    """Of each task the longest way from its start to the end of all."""
    ahead = [0.0] * edges.task_count
    weights = weights_s.tolist()
    # Edges come by rising task, so from behind all of a task's dependents come before it.
    backwards = zip(edges.deps[::-1].tolist(), edges.tasks[::-1].tolist(), strict=True)
    for dep, task in backwards:
        rank = ahead[task] + weights[task] + hop_s
        if rank > ahead[dep]:
            ahead[dep] = rank
    return np.array(ahead) + weights_s


def _makespan_s(
    edges: Edges, weights_s: Float64, order: Int64, executors: int, hop_s: float
) -> float:
    """Of a list schedule in this order."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    ordered = weights_s[order]
    sources, targets = place[edges.deps].tolist(), place[edges.tasks].tolist()
    starts_s = list_starts_s(ordered.tolist(), sources, targets, executors, hop_s)
    return float((np.array(starts_s) + ordered).max())
