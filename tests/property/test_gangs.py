"""Lanes of any window, run with waits that block: all end, and each value is where it belongs."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dagsched.config import Config
from dagsched.partition import Gang, LaneCut, cut_gang

CONFIG = Config(handover_s=1e-9)
SECONDS = [1e-5, 1e-4, 1e-3, 4e-3]
Rows = list[list[int]]


@st.composite
def windows(draw: st.DrawFn) -> tuple[Rows, np.ndarray, np.ndarray, int]:
    """Levels of any widths; what a task needs lies in any earlier one, or outside."""
    rng = random.Random(draw(st.integers(0, 1 << 30)))
    widths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    most = draw(st.integers(0, 5))
    reach = draw(st.sampled_from([1, 1, 2, 12]))
    starts = np.cumsum([0, *widths])
    rows: Rows = []
    for level, width in enumerate(widths):
        low, high = int(starts[max(0, level - reach)]), int(starts[level])
        for _ in range(width):
            deps = {rng.randrange(low, high) for _ in range(rng.randint(0, most))} if high else {}
            rows.append([-1] * rng.randint(0, 1) + sorted(deps))
    weights = [rng.choice(SECONDS) for _ in rows]
    return rows, np.array(weights), starts[:-1].astype(np.int32), draw(st.integers(2, 6))


def cut(window: tuple[Rows, np.ndarray, np.ndarray, int]) -> Gang | None:
    rows, weights, starts, executors = window
    indptr = np.cumsum([0, *map(len, rows)])
    deps = np.array([dep for row in rows for dep in row], np.int32)
    return cut_gang(indptr, deps, weights, starts, executors, CONFIG)


@given(windows())
@settings(max_examples=200, deadline=None)
def test_each_task_is_in_one_lane_after_what_it_needs(window) -> None:
    rows, weights, _, executors = window
    gang = cut(window)
    if gang is None:
        return
    assert 2 <= len(gang.lanes) <= executors
    tasks = [task for lane in gang.lanes for task in lane.tasks.tolist()]
    assert sorted(tasks) == list(range(len(rows)))
    for lane in gang.lanes:
        place = {task: index for index, task in enumerate(lane.tasks.tolist())}
        assert place
        for task, index in place.items():
            assert all(place.get(dep, -1) < index for dep in rows[task])
        assert np.isclose(lane.seconds, weights[lane.tasks].sum())
    assert gang.seconds <= weights.sum()


@given(windows())
@settings(max_examples=200, deadline=None)
def test_what_is_awaited_and_handed_is_what_changes_lanes(window) -> None:
    rows, _, _, _ = window
    gang = cut(window)
    if gang is None:
        return
    lane_of = {task: k for k, lane in enumerate(gang.lanes) for task in lane.tasks.tolist()}
    uses = Counter(
        (lane_of[task], dep)
        for task, deps in enumerate(rows)
        for dep in deps
        if dep >= 0 and lane_of[dep] != lane_of[task]
    )
    awaited = {
        (k, dep): n for k, lane in enumerate(gang.lanes) for _, dep, n in lane.awaited.tolist()
    }
    assert awaited == uses
    handed = [
        (receiver, int(lane.tasks[index]))
        for lane in gang.lanes
        for index, receiver in lane.handed.tolist()
    ]
    assert len(handed) == len(set(handed))
    assert set(handed) == set(uses)
    for lane in gang.lanes:
        for table in (lane.awaited, lane.handed):
            assert all(a[0] <= b[0] for a, b in pairwise(table.tolist()))


class LaneProcess:
    """One executor: runs tasks in order, blocks until what it awaits is there, and hands over."""

    def __init__(self, lane: LaneCut, rows: Rows) -> None:
        self.tasks = lane.tasks.tolist()
        self.rows = rows
        self.awaited: dict[int, list[int]] = {}
        for index, dep, _ in lane.awaited.tolist():
            self.awaited.setdefault(index, []).append(dep)
        self.handed: dict[int, list[int]] = {}
        for index, receiver in lane.handed.tolist():
            self.handed.setdefault(index, []).append(receiver)
        self.values: set[int] = set()
        self.next = 0

    def step(self, lanes: list["LaneProcess"]) -> bool:
        """Run one task, if it need not wait; whether it did."""
        if self.next == len(self.tasks):
            return False
        if not self.values.issuperset(self.awaited.get(self.next, ())):
            return False
        task = self.tasks[self.next]
        assert self.values.issuperset(dep for dep in self.rows[task] if dep >= 0), task
        self.values.add(task)
        for receiver in self.handed.get(self.next, ()):
            lanes[receiver].values.add(task)
        self.next += 1
        return True


@given(windows(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_no_lane_waits_for_ever(window, rng) -> None:
    rows, _, _, _ = window
    gang = cut(window)
    if gang is None:
        return
    lanes = [LaneProcess(lane, rows) for lane in gang.lanes]
    while any(lane.next < len(lane.tasks) for lane in lanes):
        order = rng.sample(lanes, len(lanes))
        assert any(lane.step(lanes) for lane in order), "all lanes wait"
