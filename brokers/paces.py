"""How much longer calls take on one executor than on the others of its node. Pure.

An executor may have to share its core with others, or be stopped now and then. What a call takes
also depends on its arguments, so some calls must have been measured, old ones soon count little,
and only what is far from the rest is believed.
"""

from collections.abc import Sequence

import numpy as np

from dagsched.brokers.bundling import task_seconds
from dagsched.brokers.state import BrokerRun, Bundle, BundleState, Executor, Subtree
from dagsched.config import Config
from dagsched.ids import BundleNo

CALLS_MIN = 8
CALLS_MAX = 50
"""When an executor has measured more calls, those before count half."""

PACE_MIN = 4.0
"""Times differ that much by chance: a task may be among the longest, a core busy for a moment."""

LOOKED_AT = 500
"""Tasks of each subtree that are looked at for work that others have before them."""


def note(executor: Executor, run: BrokerRun, seconds: Sequence[tuple[int, int, float]]) -> None:
    """An executor has measured calls: function index, how many, and what they took together.

    Before the run's means are changed by them.
    """
    for index, call_count, took_s in seconds:
        expected_s = float(run.seconds[index]) if index < len(run.seconds) else 0.0
        if not expected_s > 0.0:  # or it isn't known
            continue
        if executor.call_count > CALLS_MAX:
            executor.call_count *= 0.5
            executor.expected_s *= 0.5
            executor.took_s *= 0.5
        executor.call_count += call_count
        executor.expected_s += call_count * expected_s
        executor.took_s += took_s


def slowness(executor: Executor) -> float:
    """How many times longer than elsewhere calls take on an executor; 1.0 if not much."""
    if executor.call_count < CALLS_MIN or executor.took_s < PACE_MIN * executor.expected_s:
        return 1.0
    return executor.took_s / executor.expected_s


def is_better_left(bundle: Bundle, slow_s: float, fast_count: int, config: Config) -> bool:
    """Whether a bundle should wait for an executor that is busy, though a slow one is idle.

    So it is if the others would be through with all that is ready before the slow one with this.

    Args:
        bundle: that is ready.
        slow_s: what it takes on the slow executor.
        fast_count: how many executors are as fast as most.
        config: what calls take that nobody has measured.
    """
    run, enough_s = bundle.run, fast_count * slow_s
    ahead_s = 0.0
    for _, _, number in run.ready:
        other = run.bundles.get(BundleNo(number))
        if other is not None and other.state is BundleState.READY:
            ahead_s += other.weight_s
    for subtree in run.uncut_subtrees():
        if ahead_s > enough_s:
            break
        ahead_s += _next_s(run, subtree, config)
    return fast_count > 0 and ahead_s <= enough_s


def _next_s(run: BrokerRun, subtree: Subtree, config: Config) -> float:
    """Work in the next tasks of a subtree that wait for nothing, and are in no bundle yet."""
    begin = subtree.cursor - subtree.lo
    end = min(begin + LOOKED_AT, subtree.hi - subtree.lo)
    is_free = np.diff(subtree.indptr[begin : end + 1]) == 0
    if subtree.members is not None:
        is_free &= subtree.members[begin:end]
    return float(task_seconds(run, subtree.function_of[begin:end][is_free], config).sum())
