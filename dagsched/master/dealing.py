"""Long tasks that are dealt one by one: which comes next, and to whom. Pure.

The cut made each task a subtree of its own, numbered in the order in which they shall be taken
(`dagsched.partition.singles`). Such a subtree is READY when all that it imports from has *ended*,
and is placed when an executor has nothing to do: so nothing waits at a busy node, and what takes
longer than expected, or runs on a slow node, delays only what depends on it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dagsched.ids import ProcessId
from dagsched.master.placement import Candidate
from dagsched.master.slices import dependencies_of
from dagsched.master.state import UNFINISHED, MasterRun, Subtree
from dagsched.partition import singles
from dagsched.partition.arrays import edges_of
from dagsched.plan import Int32, Int64, RunPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEALT_S = 0.02
"""Mean duration from which single tasks are dealt; the cut makes them from 0.05 s on, but what was
measured since may be less."""

LOOKED_AT = 8
"""So many of the next subtrees are looked at for one whose inputs lie where an executor is free."""

CHEAP = 0.1
"""A subtree that needs less than this share of its work to bring its inputs in is taken at once."""


LEFT_MIN = 2
"""A run that has begun is dealt if so many tasks for each executor are left."""

LEFT_MAX = 50_000
"""And not more than this in all: nothing else is done meanwhile, for some 30 us a task."""

HOP_S = 0.001
"""What a value is taken to need to another node."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A subtree that is ready, and since when."""

    candidate: Candidate
    waited_s: float


def is_dealt(plan: RunPlan, subtrees: Sequence[Subtree], node_count: int) -> bool:
    """Whether the subtrees of a run, which has just begun, are dealt one by one.

    Args:
        plan: of the run.
        subtrees: with what is known of their durations now.
        node_count: nodes wanted; one gets all at once.
    """
    count = plan.subtree_count
    if plan.interlocked or node_count < 2 or not 1 < count == plan.task_count:
        return False
    return sum(subtree.weight_s for subtree in subtrees) >= DEALT_S * count


def is_better_dealt(run: MasterRun, seconds: "NDArray[np.float64]", executors: int) -> bool:
    """Whether the rest of a run is dealt, now that it is known that its tasks are long.

    Args:
        run: that was cut when nobody knew how long they are.
        seconds: of a call, by function, as far as is known.
        executors: of all nodes.
    """
    left_count = sum(s.task_count for s in run.subtrees if s.state in UNFINISHED)
    if not LEFT_MIN * executors < left_count <= LEFT_MAX:
        return False
    mean_s = float(seconds[run.plan.function_of].mean())
    return singles.is_dealt(left_count, mean_s * left_count, 0.0, executors)


def dealt_order(
    plan: RunPlan, needed: Int32, seconds: "NDArray[np.float64]", executors: int
) -> Int32:
    """What is left of a run, in the order in which idle executors shall take it.

    Args:
        plan: of the run.
        needed: tasks that are to be done, rising.
        seconds: of a call, by function.
        executors: of all nodes.
    """
    if len(needed) < 2:
        return needed
    tasks = _by_depth(plan, needed) if plan.interlocked else needed
    indptr, deps = _rows_among(plan, tasks)
    weights_s = seconds[plan.function_of[tasks]]
    order = singles.dealing_order(edges_of(indptr, deps), weights_s, max(1, executors), HOP_S)
    ordered: Int32 = tasks[order]
    return ordered


def _rows_among(plan: RunPlan, tasks: Int32) -> tuple[Int64, Int32]:
    """Dependencies of these tasks among themselves, by their places; -1: on none of them."""
    counts, deps = dependencies_of(plan, tasks)
    place_of = np.full(plan.task_count + len(plan.sources), -1, np.int32)
    place_of[tasks] = np.arange(len(tasks), dtype=np.int32)
    indptr = np.zeros(len(tasks) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr, place_of[deps]


def _by_depth(plan: RunPlan, tasks: Int32) -> Int32:
    """Tasks of subtrees that wait for each other both ways, so that each follows what it needs."""
    indptr, deps = _rows_among(plan, tasks)
    edges = edges_of(indptr, deps)
    waits = np.bincount(edges.tasks, minlength=len(tasks)).tolist()
    users: list[list[int]] = [[] for _ in waits]
    for dep, task in zip(edges.deps.tolist(), edges.tasks.tolist(), strict=True):
        users[dep].append(task)
    order = [task for task, count in enumerate(waits) if not count]
    for task in order:  # grows meanwhile
        for user in users[task]:
            waits[user] -= 1
            if not waits[user]:
                order.append(user)
    ordered: Int32 = tasks[np.array(order, np.int64)]
    return ordered


def next_deal(turns: Iterable[Turn], free: Mapping[ProcessId, int]) -> tuple[int, ProcessId]:
    """Which of the next subtrees is placed now, by its index, and where.

    The first, at the node that has most of its inputs. If most of its inputs lie where nobody is
    free it is overtaken by one that has its own here, for as long as it would take to bring them:
    longer, and it would wait more than it saves, and starve if it always came too late.

    Args:
        turns: those that are ready, the first to be taken first; at least one.
        free: idle executors by broker, at least one of a broker.
    """
    anywhere = next(iter(free))
    best = (0, anywhere)
    best_s = math.inf
    for index, turn in enumerate(turns):
        candidate = turn.candidate
        there = [broker for broker in candidate.bytes_by_broker if broker in free]
        broker = max(there, key=candidate.bytes_by_broker.__getitem__, default=anywhere)
        transfer_s = candidate.transfer_s(broker)
        if transfer_s <= max(CHEAP * candidate.weight_s, turn.waited_s):
            return index, broker
        if transfer_s < best_s:
            best, best_s = (index, broker), transfer_s
    return best
