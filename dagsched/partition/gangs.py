"""Levels that wait for each other, in lanes that several executors run hand in hand.

Pure. Where each level needs values of the one before from all over its width (stencils,
butterflies), bundles of single levels would pay two messages through the broker a level. A *gang*
is a window of several levels, cut into *lanes*: a share of each level's work, the same columns all
the way down. Lanes run at the same time, one an executor, and hand values over to each other
directly.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dagsched.config import Config
from dagsched.partition.arrays import Float64, cumulated, stable_order
from dagsched.plan import Int32, Int64

WORTH = 0.85
"""A gang has to take less than this share of what one executor alone would."""

VALUE_S = 2e-6
"""What one value that changes lanes costs, beside the message that carries it."""


@dataclass(frozen=True, slots=True)
class LaneCut:
    """What one executor does of a gang. Tasks are named by their index in the window."""

    tasks: Int32  # in the order in which they run
    awaited: Int32  # rows (index in `tasks` before which it is needed, task of another lane, uses)
    handed: Int32  # rows (index in `tasks`, lane that needs its value), rising
    seconds: float


@dataclass(frozen=True, slots=True)
class Gang:
    """Lanes of a window, and how long they take together."""

    lanes: list[LaneCut]
    seconds: float


def cut_gang(
    indptr: Int64,
    deps: Int32,
    weights_s: Float64,
    level_starts: Int32,
    executors: int,
    config: Config,
) -> Gang | None:
    """Cut a window of levels into lanes; None: that is no better than one executor alone.

    Args:
        indptr: CSR of dependencies, from 0.
        deps: indexes; negative ones lie outside of the window.
        weights_s: expected seconds of each task.
        level_starts: indexes at which a level begins, from 0; no task depends on its own level.
        executors: lanes at most.
        config: ``handover_s`` is what a level costs whose values change lanes.

    Example:
        >>> pair = [[], [], [0, 1], [0, 1]]  # two levels of two tasks
        >>> indptr = np.cumsum([0, *map(len, pair)])
        >>> deps = np.array(sum(pair, []), dtype=np.int32)
        >>> levels = np.array([0, 2], dtype=np.int32)
        >>> gang = cut_gang(indptr, deps, np.full(4, 0.001), levels, 2, Config())
        >>> [lane.tasks.tolist() for lane in gang.lanes]
        [[0, 2], [1, 3]]
        >>> gang.lanes[0].awaited.tolist(), gang.lanes[0].handed.tolist()
        ([[1, 1, 1]], [[0, 1]])
    """
    count = len(weights_s)
    bounds = np.append(level_starts, np.int32(count))
    widths = np.diff(bounds)
    lanes = min(executors, int(widths.max()))
    if lanes < 2 or len(level_starts) < 2:
        return None
    level_of = np.repeat(np.arange(len(level_starts)), widths)
    lane_of = _lanes_of(weights_s, bounds, level_of, lanes)
    # Where few tasks make most of the work of each level a lane may have nothing at all.
    used, lane_of = np.unique(lane_of, return_inverse=True)
    lanes = len(used)
    if lanes < 2:
        return None
    tasks = np.repeat(np.arange(count, dtype=np.int32), np.diff(indptr))
    crossing = deps >= 0
    crossing[crossing] = lane_of[deps[crossing]] != lane_of[tasks[crossing]]
    takers, givers = tasks[crossing], deps[crossing]
    seconds = _seconds(weights_s, level_of, lane_of, takers, givers, lanes, config)
    if seconds > WORTH * float(weights_s.sum()):
        return None
    takes, gives = np.zeros((2, count), np.int64)
    takes[takers] = 1
    gives[givers] = 1
    # In a level first what others wait for, last what waits for others itself: so a value is under
    # way while the lane that needs it has something else to do.
    order = stable_order(level_of * 4 + takes * 2 + (1 - gives))
    by_lane = order[stable_order(lane_of[order])]
    sizes = np.bincount(lane_of, minlength=lanes)
    return Gang(
        _lanes(by_lane, sizes, lane_of, level_of * 2 + takes, takers, givers, weights_s), seconds
    )


def _lanes_of(weights_s: Float64, bounds: Int32, level_of: Int64, lanes: int) -> NDArray[np.int64]:
    """The lane of each task: where the middle of its share of its level's work lies."""
    cumulative = cumulated(weights_s)
    begins = cumulative[bounds[:-1]]
    work = np.maximum(cumulative[bounds[1:]] - begins, 1e-12)
    middles = (cumulative[:-1] + 0.5 * weights_s - begins[level_of]) / work[level_of]
    # The middle task of an odd level lies on a border, and must lie on the same side each time.
    return np.clip((middles * lanes + 1e-9).astype(np.int64), 0, lanes - 1)


def _seconds(
    weights_s: Float64,
    level_of: Int64,
    lane_of: Int64,
    takers: Int32,
    givers: Int32,
    lanes: int,
    config: Config,
) -> float:
    """How long the lanes take, if each level waits for the slowest lane of the one before."""
    levels = int(level_of[-1]) + 1
    work = np.bincount(level_of * lanes + lane_of, weights_s, minlength=levels * lanes)
    crossed = np.bincount(level_of[takers], minlength=levels) > 0
    pairs = len(np.unique(givers.astype(np.int64) * lanes + lane_of[takers])) if len(givers) else 0
    return (
        float(work.reshape(levels, lanes).max(axis=1).sum())
        + float(crossed.sum()) * config.handover_s
        + pairs * VALUE_S / lanes
    )


def _lanes(
    by_lane: Int64,
    sizes: Int64,
    lane_of: Int64,
    stage_of: Int64,
    takers: Int32,
    givers: Int32,
    weights_s: Float64,
) -> list[LaneCut]:
    """The lanes, given all tasks lane by lane; tasks of one stage wait for others together."""
    count, lanes = len(by_lane), len(sizes)
    bounds = np.zeros(lanes + 1, np.int64)
    np.cumsum(sizes, out=bounds[1:])
    place = np.empty(count, np.int64)  # of each task in its own lane
    place[by_lane] = np.arange(count) - np.repeat(bounds[:-1], sizes)
    stages = stage_of[by_lane]
    is_first = np.ones(count, np.bool_)
    is_first[1:] = (stages[1:] != stages[:-1]) | (place[by_lane[1:]] == 0)
    stage_place = np.empty(count, np.int64)  # .. and of the first of its stage
    stage_place[by_lane] = place[by_lane[np.flatnonzero(is_first)]][np.cumsum(is_first) - 1]
    # Values that lanes await: one row for each lane and value.
    keys = lane_of[takers] * count + givers
    found, index_of, uses = np.unique(keys, return_inverse=True, return_counts=True)
    first = np.full(len(found), count)
    np.minimum.at(first, index_of, stage_place[takers])
    receivers, values = found // count, found % count
    result = []
    for lane, (start, end) in enumerate(pairwise(bounds.tolist())):
        mine = receivers == lane
        awaited = np.stack((first[mine], values[mine], uses[mine]), axis=1)
        given = lane_of[values] == lane
        handed = np.stack((place[values[given]], receivers[given]), axis=1)
        tasks = by_lane[start:end].astype(np.int32)
        result.append(
            LaneCut(
                tasks,
                awaited[np.argsort(awaited[:, 0], kind="stable")].astype(np.int32),
                handed[np.argsort(handed[:, 0], kind="stable")].astype(np.int32),
                float(weights_s[tasks].sum()),
            )
        )
    return result
