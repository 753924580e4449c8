"""Long tasks that are dealt one by one: which comes next, and to whom. Pure.

The cut made each task a subtree of its own, numbered in the order in which they shall be taken
(`dagsched.partition.singles`). Such a subtree is READY when all that it imports from has *ended*,
and is placed when an executor has nothing to do: so nothing waits at a busy node, and what takes
longer than expected, or runs on a slow node, delays only what depends on it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dagsched.ids import ProcessId
from dagsched.master.placement import Candidate
from dagsched.master.state import Subtree
from dagsched.plan import RunPlan

DEALT_S = 0.02
"""Mean duration from which single tasks are dealt; the cut makes them from 0.05 s on, but what was
measured since may be less."""

LOOKED_AT = 8
"""So many of the next subtrees are looked at for one whose inputs lie where an executor is free."""

CHEAP = 0.1
"""A subtree that needs less than this share of its work to bring its inputs in is taken at once."""


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
