"""Work that brokers have been given and not begun, for nodes that came later or are idle. Pure.

Brokers give back what no executor has (`AskHoldings.give_back`); a recovery finds it missing, and
it is placed anew in parts that suit the nodes there are now. When that is worth it is said here;
who looks, and when, in `balancing`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dagsched.ids import ProcessId
from dagsched.master.slices import imports_of
from dagsched.master.state import MasterRun, Node, Told
from dagsched.plan import Int32, RunPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_POSITIONS: Int32 = np.zeros(0, np.int32)

PARTS_MAX = 16
"""Nodes' worth of parts that work given back is cut into for the sake of slow ones, at most."""

TASKS_MIN = 2
"""Who has more tasks than this for each executor can give back some; one will do if they are long:
what waits behind a long task, or on a slow node, is better off with whoever has nothing to do."""

WIDTH_MIN = 2
"""A run is spread if it has so many tasks for each of its longest path."""

TASKS_LOOKED_AT = 20_000
"""More tasks than this aren't looked at one by one, which takes about a microsecond each."""

BEGINNINGS_MIN = 16
"""So large a graph is wide if so many tasks depend on nothing: it is no row of a few chains."""


def gives(
    run: MasterRun, nodes: Sequence[Node], mean_s: float, least_s: float, *, has_idle: bool
) -> bool:
    """Whether all nodes shall give back what they haven't begun of a run; mostly not.

    For the sake of a node that has nothing to do (`has_idle`) while another has plenty, or that
    waits, with executors idle, while tasks at another are ready and wait for executors.

    Args:
        run: that goes on.
        nodes: that may work for it.
        mean_s: what a call takes.
        least_s: who has less to do than this for each executor gives nothing.
        has_idle: whether one of the nodes has nothing to do.
    """
    rich = [
        node
        for node in nodes
        if _has_plenty(node, run, least_s)
        and run.shares[node.broker].unfinished_tasks * mean_s > least_s * node.speed
    ]
    if not rich or not (has_idle or _is_starved(run, nodes, rich)):
        return False
    return _is_wide(run)


def _is_starved(run: MasterRun, nodes: Sequence[Node], rich: Sequence[Node]) -> bool:
    """Executors of a node have nothing to do, and those of another can't do what is ready."""
    is_idle = any(run.shares[n.broker].idle_count for n in nodes if n.broker in run.shares)
    return is_idle and any(run.shares[node.broker].has_spare for node in rich)


def part_count(nodes: Iterable[Node], parts_a_node: int) -> int:
    """In how many parts work that is given back is placed."""
    speeds = [node.speed for node in nodes if node.is_usable]
    # So that there is a part for the slowest as well, if it isn't much slower than all.
    count = max(len(speeds), min(PARTS_MAX, int(sum(speeds) / min(speeds, default=1.0))))
    return max(1, count * parts_a_node)


def _has_plenty(node: Node, run: MasterRun, least_s: float) -> bool:
    share = run.shares.get(node.broker)
    are_long = node.measured_in_all.took_s > least_s * node.measured_in_all.call_count
    least = (1 if are_long else TASKS_MIN) * len(node.executors)
    return share is not None and share.unfinished_tasks > least


def evened(
    pieces: Sequence[Int32], plan: RunPlan, seconds: "NDArray[np.float64]", part_count: int
) -> list[Int32]:
    """Pieces (rising positions) cut into ones of about equal work, `part_count` in all.

    Dependencies go forward in the order of positions, so intervals of it wait for no later one.
    """
    weights = [seconds[plan.function_of[piece]] for piece in pieces]
    limit_s = sum(float(weight.sum()) for weight in weights) / part_count
    if limit_s <= 0:
        return list(pieces)
    result: list[Int32] = []
    for piece, weight in zip(pieces, weights, strict=True):
        ends_s = np.cumsum(weight)
        borders_s = np.arange(1, int(ends_s[-1] / limit_s) + 1) * limit_s
        borders = np.unique(np.searchsorted(ends_s, borders_s * (1 - 1e-9)) + 1)
        result += [part for part in np.split(piece, borders) if len(part)]
    return result


def _is_wide(run: MasterRun) -> bool:
    """Whether several nodes can do it faster than one: not so for a chain. Found out once."""
    if run.is_wide is None:
        run.is_wide = _has_width(run.plan)
    return run.is_wide


def _has_width(plan: RunPlan) -> bool:
    if plan.task_count > TASKS_LOOKED_AT:
        begin_count = int((np.diff(plan.indptr) == 0).sum())
        return len(plan.deps) > plan.task_count or begin_count >= BEGINNINGS_MIN
    indptr, deps = plan.indptr.tolist(), plan.deps.tolist()
    depths = [0] * (plan.task_count + len(plan.sources))
    for position in range(plan.task_count):
        row = deps[indptr[position] : indptr[position + 1]]
        depths[position] = 1 + max([depths[dep] for dep in row], default=0)
    return plan.task_count >= WIDTH_MIN * max(depths, default=0)


def missing_imports(
    plan: RunPlan, told: Mapping[ProcessId, Told], is_there: "NDArray[np.bool_]"
) -> dict[ProcessId, Told]:
    """What brokers told, with what they wait for and nobody will make among what they lack."""
    result = {}
    for broker, said in told.items():
        positions = [part for _, _, part in said.subtrees if len(part)]
        needs = imports_of(plan, np.sort(np.concatenate(positions))) if positions else NO_POSITIONS
        needs = needs[needs < plan.task_count]
        missing = np.union1d(said.lacking, needs[~is_there[needs]]).astype(np.int32)
        result[broker] = replace(said, lacking=missing)
    return result


def split_around(pieces: Sequence[Int32], is_active: "NDArray[np.bool_]") -> list[Int32]:
    """Pieces split where somebody is about tasks in between.

    Those may need what comes before them and be needed by what comes after: a bundle of both sides
    would wait for itself.
    """
    counts = np.cumsum(is_active)
    result: list[Int32] = []
    for piece in pieces:
        result += np.split(piece, np.flatnonzero(np.diff(counts[piece])) + 1)
    return result
