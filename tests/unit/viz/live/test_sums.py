"""Rates, durations, functions and patches: sums of bounded size."""

import numpy as np
import pytest

from dagsched.viz.live.patches import patches_of
from dagsched.viz.live.rates import SLOTS, Rates
from dagsched.viz.live.totals import (
    EDGES_S,
    FUNCTIONS_MAX,
    LABELS_MAX,
    OTHER,
    Durations,
    FunctionTotals,
    Names,
)


def test_rates_are_of_the_last_seconds() -> None:
    rates = Rates(0.0)
    for half in range(200):
        rates.add(half / 2, 5)
    assert rates.per_second(99.5, 5.0) == 10.0
    assert rates.series(99.5) == [10.0] * SLOTS
    assert rates.per_second(102.0, 5.0) == 5.0
    assert rates.per_second(500.0, 5.0) == 0.0
    assert rates.series(500.0) == [0.0] * SLOTS


def test_a_rate_of_a_short_time_is_not_thinned_out() -> None:
    rates = Rates(100.0)
    rates.add(100.9, 100)
    assert rates.per_second(101.0, 5.0) == 100.0


def test_what_ended_long_ago_is_in_no_rate() -> None:
    rates = Rates(0.0)
    rates.add(1000.0, 1)
    rates.add(1.0, 77)
    assert sum(rates.series(1000.0)) == 2.0


def test_names_are_numbered_once_and_bounded() -> None:
    names = Names()
    assert names.numbers(["a", "b"]).tolist() == [0, 1]
    assert names.numbers(["b", "c"]).tolist() == [1, 2]
    many = names.numbers([f"f{n}" for n in range(1000)])
    assert len(names.texts) == FUNCTIONS_MAX
    assert names.texts[-1] == OTHER
    assert many[-1] == FUNCTIONS_MAX - 1
    assert names.numbers(["a"]).tolist() == [0]


def test_durations_are_counted_like_one_by_one() -> None:
    rng = np.random.default_rng(3)
    functions = rng.integers(0, LABELS_MAX + 20, 2000)
    took_s = np.exp(rng.uniform(-14, 9, 2000))
    took_s[:3] = [1e-5, 0.1, 5000.0]
    durations = Durations()
    for part in np.array_split(np.arange(2000), 7):
        durations.add(functions[part], np.rint(took_s[part] * 1e9).astype(np.int64))
    names = [f"f{n}" for n in range(LABELS_MAX + 20)]
    rows = durations.rows(names)
    assert [label for label, _, _ in rows] == [*names[:LABELS_MAX], OTHER]
    for number, (_, counts, sum_s) in enumerate(rows):
        mine = took_s[np.minimum(functions, LABELS_MAX) == number]
        assert counts == [*(int((mine <= edge).sum()) for edge in EDGES_S), len(mine)]
        assert sum_s == pytest.approx(mine.sum())


def test_functions_of_a_run() -> None:
    totals = FunctionTotals(["f", "g"], np.array([0, 0, 0, 1], np.int32))
    new = np.array([True, True])
    totals.add(np.array([0, 1], np.int32), new, np.array([2_000_000_000, 500_000_000]))
    totals.add(np.array([0, 0], np.int32), ~new, np.array([1_000_000_000, 4_000_000_000]))
    totals.add(np.array([0], np.int32), new[:1], np.array([0]))
    f, g = totals.rows(10)
    assert f == {
        "name": "f", "task_count": 3, "done_count": 2, "busy_s": 7.0, "mean_s": 7.0 / 4,
        "longest_s": 4.0,
    }  # fmt: skip
    assert (g["done_count"], g["busy_s"], g["longest_s"]) == (1, 0.5, 0.5)
    assert [row["name"] for row in totals.rows(1)] == ["f"]
    totals.take_back(np.array([0, 1], np.int32))
    assert [row["done_count"] for row in totals.rows(10)] == [1, 0]


def test_few_subtrees_are_told_one_by_one_and_many_as_patches() -> None:
    states = np.array(["done", "running", "placed", "waiting", "waiting"])
    homes, tasks, done = np.array([2, 2, 5, -1, -1]), np.full(5, 10), np.array([10, 4, 0, 0, 0])
    numbers = np.array([0, 1, 3, 4, 9])
    all_five = patches_of(states, homes, tasks, done, numbers)
    assert (all_five.subtree_count, all_five.task_count, len(all_five.cells)) == (5, 50, 5)
    assert all_five.cells[1] == {
        "state": "running", "node": 2, "task_count": 10, "done_count": 4, "subtree_count": 1,
        "first": 1,
    }  # fmt: skip
    merged = patches_of(states, homes, tasks, done, numbers, most=2).cells
    assert [(cell["first"], cell["subtree_count"]) for cell in merged] == [(0, 3), (4, 2)]
    assert [(cell["task_count"], cell["done_count"]) for cell in merged] == [(30, 14), (20, 0)]
    assert (merged[0]["node"], merged[1]["state"], merged[1]["node"]) == (2, "waiting", -1)
    assert patches_of(*(np.empty(0, int) for _ in range(5))).cells == []  # type: ignore[arg-type]
