"""Load balance under skew: task times spread a thousandfold, a slow executor, slow nodes.

The best possible is taken to be a list schedule of single tasks that costs nothing and, as the
product, doesn't know beforehand how long a task takes (`dagsched.testing.skew`).
"""

import random
from collections.abc import Callable

import pytest

from dagsched.testing import SimCluster, SimGraph, serial_values
from dagsched.testing import graphs as shapes
from dagsched.testing.graphs import SimTask
from dagsched.testing.skew import (
    greedy_makespan_s,
    least_makespan_s,
    speeds_of,
    spread_by_argument,
    spread_by_function,
)

Nodes = dict[int, int]

ONE: Nodes = {2: 4}
TWO: Nodes = {2: 2, 5: 2}
EXECUTOR_10 = {200: 10.0}
NODE_2, NODE_10, NODE_20 = {5: 2.0}, {5: 10.0}, {5: 20.0}


def drawn(seed: int) -> tuple[SimGraph, list[float]]:
    graph = shapes.wide(1_000)
    return graph, spread_by_argument(graph, random.Random(seed))


def longest_last(seed: int) -> tuple[SimGraph, list[float]]:
    graph = shapes.wide(1_000)
    return graph, spread_by_argument(graph, random.Random(seed), "longest last")


def longest_first(seed: int) -> tuple[SimGraph, list[float]]:
    graph = shapes.wide(1_000)
    return graph, spread_by_argument(graph, random.Random(seed), "longest first")


def functions(seed: int) -> tuple[SimGraph, list[float]]:
    graph = shapes.wide(1_000)
    return graph, spread_by_function(graph, random.Random(seed))


def equal(seed: int) -> tuple[SimGraph, list[float]]:
    graph = shapes.wide(200)
    graph.function_s = [0.02]
    return graph, [0.02] * 200


def tree(seed: int) -> tuple[SimGraph, list[float]]:
    graph = shapes.tree(9)
    return graph, spread_by_argument(graph, random.Random(seed))


def layered(seed: int) -> tuple[SimGraph, list[float]]:
    graph = shapes.layered(random.Random(seed), 12, 80, 3)
    return graph, spread_by_argument(graph, random.Random(seed))


Make = Callable[[int], tuple[SimGraph, list[float]]]


def makespan_s(graph: SimGraph, nodes: Nodes, slowness: dict[int, float], seed: int = 1) -> float:
    cluster = SimCluster(nodes, seed=seed, slowness=slowness, checks=False, is_wired=False)
    cluster.let_pass(0.3)
    outcome = cluster.run(graph)
    values = serial_values(graph)
    assert [outcome.value_of(i) for i in graph.outputs] == [values[i] for i in graph.outputs]
    assert max(cluster.executed.values()) == 1, "nothing is done twice for the sake of balance"
    return outcome.makespan_s


@pytest.mark.parametrize("make", [drawn, longest_last, longest_first, functions, tree, layered])
@pytest.mark.parametrize("nodes", [ONE, TWO], ids=["one node", "two nodes"])
def test_task_times_a_thousandfold_apart(make: Make, nodes: Nodes) -> None:
    graph, seconds = make(1)
    best_s = greedy_makespan_s(graph.deps, seconds, speeds_of(nodes, {}))
    assert makespan_s(graph, nodes, {}) <= 1.1 * best_s


@pytest.mark.parametrize("make", [drawn, longest_last, longest_first, functions, equal])
@pytest.mark.parametrize(
    ("nodes", "slowness"),
    [(ONE, EXECUTOR_10), (TWO, NODE_2), (TWO, NODE_10), (TWO, NODE_20)],
    ids=["executor 10 x slower", "node 2 x", "node 10 x", "node 20 x"],
)
def test_a_slow_executor_or_node(make: Make, nodes: Nodes, slowness: dict[int, float]) -> None:
    graph, seconds = make(1)
    best_s = greedy_makespan_s(graph.deps, seconds, speeds_of(nodes, slowness))
    assert makespan_s(graph, nodes, slowness) <= 1.1 * best_s


@pytest.mark.parametrize("make", [drawn, longest_last, longest_first, functions, equal, tree])
def test_a_node_with_5_percent_of_a_cpu(make: Make) -> None:
    graph, _ = make(1)
    without_s = makespan_s(graph, {2: 2}, {})
    assert makespan_s(graph, TWO, NODE_20) <= 1.3 * without_s


def test_what_a_slow_node_has_not_begun_moves_away_in_the_middle_of_a_run() -> None:
    graph = shapes.wide(400)
    graph.function_s = [0.02]
    cluster = SimCluster(TWO, seed=1, slowness=NODE_20)
    cluster.let_pass(0.3)
    outcome = cluster.run(graph)
    done = {node.id: sum(e.task_count for e in node.executors) for node in outcome.stats}
    assert done[5] <= 24  # of the 400 a twentieth of what the other does, and what it had begun
    assert outcome.makespan_s <= 1.1 * 0.02 * 400 / 2
    assert cluster.left_behind() == []


def test_the_bounds_agree_where_they_must() -> None:
    graph, seconds = layered(3)
    for speeds in ([1.0], [1.0, 1.0, 0.1]):
        least_s = least_makespan_s(graph.deps, seconds, speeds)
        longest_first_s = greedy_makespan_s(graph.deps, seconds, speeds, longest_first=True)
        assert least_s <= min(longest_first_s, greedy_makespan_s(graph.deps, seconds, speeds))
    assert greedy_makespan_s(graph.deps, seconds, [1.0]) == pytest.approx(sum(seconds))


@pytest.mark.parametrize("seed", range(1, 13))
def test_what_waits_at_the_executors_of_a_slow_node_moves_away_too(seed: int) -> None:
    graph, seconds = equal(1)
    nodes = {2: 2, 5: 2, 7: 2, 9: 2}
    best_s = greedy_makespan_s(graph.deps, seconds, speeds_of(nodes, NODE_20))
    assert makespan_s(graph, nodes, NODE_20, seed) <= 1.1 * best_s


def test_a_bundle_of_tasks_that_take_far_longer_than_those_before_is_shared() -> None:
    graph = shapes.wide(420)
    seconds = [0.000_1] * 400 + [0.02] * 20
    graph.tasks = {number: SimTask(number, seconds=s) for number, s in enumerate(seconds)}
    best_s = greedy_makespan_s(graph.deps, seconds, speeds_of(ONE, {}))
    assert makespan_s(graph, ONE, {}) <= 1.35 * best_s  # one task more than its share is 1.2
