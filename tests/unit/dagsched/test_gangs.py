"""Windows of levels cut into lanes: who runs what and waits for what; when it is not worth it."""

from collections.abc import Sequence

import numpy as np
import pytest

from dagsched.config import Config
from dagsched.partition import Gang, cut_gang

CONFIG = Config()
MS = 0.001


def cut(
    levels: Sequence[Sequence[Sequence[int]]],
    executors: int = 2,
    seconds: float | Sequence[float] = MS,
    config: Config = CONFIG,
) -> Gang | None:
    """Cut levels, each a list of tasks, each of those a list of what it needs."""
    rows = [deps for level in levels for deps in level]
    indptr = np.cumsum([0, *map(len, rows)])
    deps = np.array([dep for row in rows for dep in row], np.int32)
    weights = np.full(len(rows), seconds) if isinstance(seconds, float) else np.array(seconds)
    starts = np.cumsum([0, *map(len, levels)])[:-1].astype(np.int32)
    return cut_gang(indptr, deps, weights, starts, executors, config)


def stencil(width: int, levels: int) -> list[list[list[int]]]:
    return [
        [
            [
                (level - 1) * width + c
                for c in (column - 1, column, column + 1)
                if level and 0 <= c < width
            ]
            for column in range(width)
        ]
        for level in range(levels)
    ]


def tasks_of(gang: Gang | None) -> list[list[int]]:
    assert gang is not None
    return [lane.tasks.tolist() for lane in gang.lanes]


def test_a_stencil_in_columns_with_what_others_wait_for_first() -> None:
    gang = cut(stencil(4, 3))
    assert tasks_of(gang) == [[1, 0, 4, 5, 8, 9], [2, 3, 7, 6, 11, 10]]
    assert gang is not None
    left, right = gang.lanes
    assert left.awaited.tolist() == [[3, 2, 1], [5, 6, 1]]
    assert left.handed.tolist() == [[0, 1], [3, 1]]
    assert right.awaited.tolist() == [[3, 1, 1], [5, 5, 1]]
    assert right.handed.tolist() == [[0, 0], [3, 0]]
    assert [lane.seconds for lane in gang.lanes] == pytest.approx([0.006, 0.006])
    # Three levels of two tasks, two of which wait for messages.
    assert gang.seconds == pytest.approx(6 * MS + 2 * CONFIG.handover_s, rel=0.01)


def test_what_lies_outside_is_no_matter() -> None:
    levels = stencil(4, 3)
    levels[0] = [[-1], [-1], [-1], [-1, -1]]
    assert tasks_of(cut(levels)) == tasks_of(cut(stencil(4, 3)))


def test_a_value_with_several_takers_in_a_lane_is_awaited_once() -> None:
    gang = cut([[[], []], [[0], [1], [1], [0, 1]]])
    assert tasks_of(gang) == [[0, 2, 3], [1, 4, 5]]
    assert gang is not None
    assert gang.lanes[1].awaited.tolist() == [[2, 0, 1]]
    gang = cut([[[], []], [[0], [0], [0], [0, 1]]])
    assert gang is not None
    # Tasks that wait are the last of their level; all of them from the first one on.
    assert gang.lanes[1].awaited.tolist() == [[1, 0, 2]]
    assert gang.lanes[0].handed.tolist() == [[0, 1]]


def test_a_value_for_several_lanes_is_handed_to_each() -> None:
    gang = cut([[[], [], []], [[0], [0], [0]]], executors=3)
    assert gang is not None
    assert gang.lanes[0].handed.tolist() == [[0, 1], [0, 2]]


def test_weights_count_not_numbers() -> None:
    heavy = [3 * MS, MS, MS, MS]
    gang = cut([[[], [], [], []], [[0], [1], [2], [3]]], seconds=heavy * 2)
    assert tasks_of(gang) == [[0, 4], [1, 2, 3, 5, 6, 7]]


def test_columns_stay_with_their_lane_in_odd_levels() -> None:
    gang = cut(stencil(5, 4))
    assert gang is not None
    lanes = [{task % 5 for task in lane.tasks.tolist()} for lane in gang.lanes]
    assert [len(columns) for columns in lanes] == [2, 3]
    assert lanes[0].isdisjoint(lanes[1])


@pytest.mark.parametrize("executors", [2, 3, 4, 8])
def test_no_lane_is_empty(executors: int) -> None:
    """Though a few long tasks make nearly all of the work."""
    seconds = [4 * MS, MS / 10, 4 * MS] * 4
    gang = cut(stencil(3, 4), executors, seconds)
    assert gang is not None
    assert all(len(lane.tasks) for lane in gang.lanes)
    assert sorted(task for lane in tasks_of(gang) for task in lane) == list(range(12))


def test_no_more_lanes_than_the_widest_level_has_tasks() -> None:
    gang = cut(stencil(3, 4), executors=8)
    assert gang is not None
    assert len(gang.lanes) == 3


class TestNotWorthIt:
    def test_one_executor_or_one_level(self) -> None:
        assert cut(stencil(4, 3), executors=1) is None
        assert cut(stencil(4, 1)) is None

    def test_one_task_a_level(self) -> None:
        assert cut(stencil(1, 10)) is None

    def test_one_task_makes_all_the_work(self) -> None:
        assert cut(stencil(2, 10), seconds=[MS, MS / 100] * 10) is None
        assert cut(stencil(2, 10), seconds=[MS, MS / 2] * 10) is not None

    def test_messages_cost_as_much_as_the_work(self) -> None:
        # A level of two tasks of 40 us: 40 us and a message of 30, rather than 80 alone.
        assert cut(stencil(2, 100), seconds=4e-5) is None
        assert cut(stencil(2, 100), seconds=8e-5) is not None
        assert cut(stencil(2, 100), seconds=8e-5, config=Config(handover_s=1e-4)) is None

    def test_columns_that_need_no_other_cost_no_messages(self) -> None:
        columns = [[[(level - 1) * 2 + c] if level else [] for c in (0, 1)] for level in range(50)]
        gang = cut(columns, seconds=1e-5)
        assert gang is not None
        assert all(len(lane.awaited) == len(lane.handed) == 0 for lane in gang.lanes)

    def test_values_that_change_lanes_cost_something_each(self) -> None:
        def dense(width: int) -> list[list[list[int]]]:
            return [
                [list(range((level - 1) * width, level * width)) if level else []] * width
                for level in range(3)
            ]

        assert cut(dense(50), seconds=1e-5) is not None
        assert cut(dense(50), seconds=2e-6) is None
