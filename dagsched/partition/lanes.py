"""The order of a subtree's tasks, such that each of its windows keeps all executors busy.

Pure. A broker looks at a subtree through windows, some tens of milliseconds of work at a time. In
plain depth-first order a window may hold nothing but a piece of one long chain while others wait
unseen. Then the order follows a simulated schedule instead: what runs at the same time, in as many
*lanes* as there are executors, stands near each other, a bundle's work of each lane in turn.
"""

import numpy as np

from dagsched.config import Config
from dagsched.partition.arrays import Edges, Float64, cumulated, edges_of, stable_order
from dagsched.partition.intervals import Parts
from dagsched.partition.simulate import schedule_of
from dagsched.partition.window import cut_window
from dagsched.plan import Int32, Int64

BUNDLES_AHEAD = 6
"""Bundles an executor that a broker is taken to see at once: two windows."""

SAMPLES_MAX = 16
"""Windows that are looked at; the rest are taken to be like them."""

GOLDEN = 0.618_033_988_75
"""Samples lie at multiples of this share, modulo 1: even, but in step with no graph's period."""


def window_stretch(
    indptr: Int64, deps: Int32, weights_s: Float64, executors: int, config: Config
) -> float:
    """How much longer windows in the present order last than their work shared evenly, at least 1.

    A sample of windows is cut into bundles, and these scheduled.
    """
    cumulative = cumulated(weights_s)
    total_s = float(cumulative[-1])
    window_s = BUNDLES_AHEAD * executors * config.bundle_s
    count = int(total_s / window_s)
    if count < 2 or executors == 1:
        return 1.0  # seen as a whole
    none = np.empty(0, dtype=np.int32)
    lasting_s = ideal_s = 0.0
    tasks_left = max(5_000, len(weights_s) // 4)
    for sample in range(min(count, SAMPLES_MAX)):
        begin_s = (total_s - window_s) * ((sample + 0.5) * GOLDEN % 1.0)
        # The last task alone may be longer than a window.
        low = min(int(np.searchsorted(cumulative[:-1], begin_s)), len(weights_s) - 1)
        high = max(int(np.searchsorted(cumulative, begin_s + window_s)), low + 1)
        high = min(high, len(weights_s))
        own_indptr = indptr[low : high + 1] - indptr[low]
        own_deps = (deps[indptr[low] : indptr[high]] - low).astype(np.int32)
        own_s = weights_s[low:high]
        bundles = cut_window(own_indptr, own_deps, own_s, none, executors, config)
        parts = Parts(
            np.concatenate(bundles).astype(np.int64),
            [0, *np.cumsum([len(bundle) for bundle in bundles]).tolist()],
            [float(own_s[bundle].sum()) for bundle in bundles],
            1,
        )
        schedule = schedule_of(edges_of(own_indptr, own_deps), parts, executors, 1.0, 0.0, 0.0)
        lasting_s += schedule.makespan_s
        ideal_s += max(float(own_s.sum()) / executors, float(own_s.max()))
        tasks_left -= high - low
        if tasks_left <= 0:
            break
    return lasting_s / ideal_s


def by_lanes(weights_s: Float64, parts: Parts, starts_s: list[float], bundle_s: float) -> Int64:
    """Tasks in the order of a schedule of their parts, by slots of a bundle's work.

    Args:
        weights_s: seconds of each task.
        parts: listed such that each depends only on earlier ones.
        starts_s: when each part starts, not before the end of those it depends on.
        bundle_s: the length of a slot.
    """
    count = len(weights_s)
    order = np.arange(count, dtype=np.int64) if parts.order is None else parts.order
    bounds = np.array(parts.starts, dtype=np.int64)
    part = np.repeat(np.arange(len(parts.seconds), dtype=np.int64), np.diff(bounds))
    before = cumulated(weights_s[order])[:-1]
    first_slot = (np.array(starts_s) / bundle_s).astype(np.int64)
    own_slot = ((before - before[bounds[:-1]][part]) / bundle_s).astype(np.int64)
    # In one slot earlier parts stay first: what a task depends on is in its own part, or in an
    # earlier part and (as the sum of floors is no more than the floor of the sum) no later slot.
    return order[stable_order(first_slot[part] + own_slot)]


def laned_order(
    edges: Edges, weights_s: Float64, parts: Parts, executors: int, config: Config
) -> Int64:
    """Tasks by lanes, for a broker with so many executors."""
    schedule = schedule_of(edges, parts, executors, 1.0, config.overhead_s, 0.0)
    return by_lanes(weights_s, parts, schedule.starts_s, config.bundle_s)
