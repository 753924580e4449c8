"""Shapes of graphs on clusters of one to four nodes, with bounds on what is sent."""

import random

import pytest

from dagsched.testing import SimCluster, SimGraph, serial_values
from dagsched.testing import graphs as shapes
from dagsched.testing.graphs import SimTask

CLUSTERS = [{2: 1}, {2: 4}, {2: 2, 5: 2}, {2: 1, 3: 4}, {2: 1, 3: 1, 4: 2, 5: 3}]
GRAPHS = {
    "one": lambda: shapes.wide(1),
    "wide": lambda: shapes.wide(300),
    "chain": lambda: shapes.chain(200),
    "tree": lambda: shapes.tree(8),
    "stencil": lambda: shapes.stencil(16, 20),
    "butterfly": lambda: shapes.butterfly(64),
    "layered": lambda: shapes.layered(random.Random(3), 8, 30, 3),
}


@pytest.mark.parametrize("nodes", CLUSTERS, ids=str)
@pytest.mark.parametrize("name", GRAPHS)
def test_values_equal_the_oracle_and_nothing_is_left(name: str, nodes: dict[int, int]):
    graph = GRAPHS[name]()
    values = serial_values(graph)
    for seed in (1, 2):
        cluster = SimCluster(nodes, seed=seed)
        cluster.let_pass(0.2)  # a node that comes later would be given of what others have
        outcome = cluster.run(graph)
        assert outcome.state == "done"
        assert {i: outcome.value_of(i) for i in graph.outputs} == {
            i: values[i] for i in graph.outputs
        }
        assert sum(cluster.executed.values()) == graph.count
        assert cluster.left_behind() == []
        counts = cluster.network.counts
        subtrees = outcome.planned.plan.subtree_count
        if cluster.core.counters["rebalances"]:  # then what is given back is placed once more
            assert subtrees <= counts["PlaceSubtree"]
            subtrees = counts["PlaceSubtree"]
        else:
            assert counts["PlaceSubtree"] == counts["SubtreeDone"] == subtrees
        assert counts["RunBundle"] == sum(s.bundle_count for s in outcome.stats)
        # What waits behind others is taken back for who is idle, and sent once more.
        assert counts["BundleDone"] <= counts["RunBundle"] <= 1.25 * counts["BundleDone"] + 4
        assert counts["EndRun"] == counts["RunClosed"] <= len(nodes)
        assert counts["Release"] <= subtrees * len(nodes)
        assert counts["FetchObjects"] <= subtrees * len(nodes)


def test_large_graphs_pay_by_bundle():
    cluster = SimCluster({2: 2, 5: 2}, checks=False)
    graph = shapes.wide(20_000)
    graph.function_s = [10e-6]
    assert cluster.run(graph).state == "done"
    assert cluster.network.counts["BundleDone"] < 200
    assert sum(cluster.network.counts.values()) < 900


def test_two_nodes_are_nearly_twice_as_fast_as_one():
    graph = shapes.wide(2_000)
    graph.function_s = [0.002]
    one = SimCluster({2: 2}, checks=False)
    two = SimCluster({2: 2, 5: 2}, checks=False)
    for cluster in (one, two):
        cluster.let_pass(0.2)
    assert two.run(graph).makespan_s < 0.6 * one.run(graph).makespan_s


def test_a_slow_node_simply_does_less():
    graph = shapes.wide(2_000)
    graph.function_s = [0.002]
    cluster = SimCluster({2: 2, 5: 2}, slowness={5: 4.0}, checks=False)
    cluster.let_pass(0.2)
    cluster.run(graph)
    outcome = cluster.run(graph)
    fast, slow = (sum(e.task_count for e in node.executors) for node in outcome.stats)
    assert fast > 1.5 * slow
    assert fast + slow == graph.count


def test_several_runs_share_and_the_small_one_is_not_last():
    cluster = SimCluster({2: 2, 5: 2})
    large = cluster.submit(shapes.wide(1_500))
    cluster.let_pass(0.15)
    small = cluster.submit(shapes.wide(6))
    cluster.wait(large, small)
    assert small.ended_s < large.ended_s
    assert cluster.left_behind() == []


def test_higher_priority_goes_first():
    cluster = SimCluster({2: 1})
    cluster.let_pass(0.2)
    low = cluster.submit(shapes.wide(300))
    high = cluster.submit(shapes.wide(300), priority=5)
    cluster.wait(low, high)
    assert high.makespan_s < 0.7 * low.makespan_s


def test_empty_graphs_end_at_once():
    cluster = SimCluster({2: 1})
    outcome = cluster.run(SimGraph([], []))
    assert (outcome.state, outcome.makespan_s) == ("done", 0.0)


def hand_in_hand(steps: int, seconds: float) -> SimGraph:
    """A stencil whose tasks were measured to take 0.1 ms."""
    graph = shapes.stencil(8, steps)
    graph.function_s, graph.is_measured = [1e-4], True
    graph.tasks = {number: SimTask(number, seconds=seconds) for number in range(graph.count)}
    return graph


def test_a_gang_whose_tasks_take_longer_than_thought_goes_on_as_gangs():
    cluster = SimCluster({2: 2})
    graph = hand_in_hand(1_000, 0.001)
    assert cluster.run(graph).state == "done"
    assert sum(cluster.executed.values()) == graph.count
    # By bundles of single levels it would be two for each of 1,000.
    assert cluster.network.counts["RunBundle"] < 100


def test_a_constant_of_each_task_is_no_reason_against_gangs():
    cluster = SimCluster({2: 2})
    graph = hand_in_hand(200, 1e-4)
    graph.sources.append(shapes.constant(7, 70_000))
    for row in graph.deps:
        row.append(graph.count)
    outcome = cluster.run(graph)
    values = serial_values(graph)
    assert {i: outcome.value_of(i) for i in graph.outputs} == {i: values[i] for i in graph.outputs}
    assert cluster.network.counts["RunBundle"] < 20


def test_runs_side_by_side_have_gangs_in_turn():
    cluster = SimCluster({2: 2})
    outcomes = [cluster.submit(hand_in_hand(1_000, 1e-4)) for _ in range(2)]
    cluster.step_until(lambda: all(outcome.is_over for outcome in outcomes), 60.0)
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    assert cluster.network.counts["RunBundle"] < 60
