"""Long tasks dealt one by one, on whole clusters: right whatever is lost, and nobody waits."""

import random
from collections.abc import Callable

import pytest

from dagsched.testing import SimCluster, SimGraph, SimOutcome, serial_values
from dagsched.testing import graphs as shapes

TASK_S = 0.2


def measured(nodes: dict[int, int], **kwargs: object) -> SimCluster:
    """A cluster that knows how long the tasks take."""
    cluster = SimCluster(nodes, **kwargs)  # type: ignore[arg-type]
    cluster.let_pass(0.2)
    first = shapes.wide(8)
    first.function_s = [TASK_S]
    cluster.run(first)
    return cluster


def layers(seed: int) -> SimGraph:
    graph = shapes.layered(random.Random(seed), 8, 16, 3)
    graph.function_s = [TASK_S]
    return graph


def checked(cluster: SimCluster, graph: SimGraph, outcome: SimOutcome) -> None:
    values = serial_values(graph)
    assert outcome.state == "done"
    assert {i: outcome.value_of(i) for i in graph.outputs} == {i: values[i] for i in graph.outputs}
    assert cluster.left_behind() == []


BEFALLS: dict[str, Callable[[SimCluster], None]] = {
    "nothing": lambda _: None,
    "a node is lost": lambda cluster: cluster.kill_node(5),
    "an executor is lost": lambda cluster: cluster.kill_executor(2, 0),
    "a node leaves": lambda cluster: cluster.remove_node(5),
    "a node comes": lambda cluster: cluster.add_node(9, 2),
    "the client is lost": lambda cluster: cluster.kill_master(0.5),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("what", BEFALLS)
def test_values_are_right_whatever_befalls(what: str, seed: int):
    cluster = measured({2: 2, 5: 2, 7: 2}, seed=seed)
    graph = layers(seed)
    outcome = cluster.submit(graph)
    assert cluster.core._lives.runs[outcome.run].is_dealt
    cluster.let_pass(TASK_S * (2.5 + seed))
    BEFALLS[what](cluster)
    cluster.wait(outcome)
    checked(cluster, graph, outcome)
    if what == "nothing":
        assert sum(n for (run, _), n in cluster.executed.items() if run == outcome.run) == len(
            graph.deps
        )


def test_a_slow_node_delays_nobody():
    cluster = measured({2: 2, 5: 2}, slowness={5: 4.0}, checks=False)
    graph = shapes.wide(80)
    graph.function_s = [TASK_S]
    outcome = cluster.run(graph)
    tasks = {node.id: sum(e.task_count for e in node.executors) for node in outcome.stats}
    assert tasks == {2: 64, 5: 16}


def test_a_node_that_comes_late_takes_its_part():
    cluster = measured({2: 2, 5: 2}, checks=False)
    graph = shapes.wide(60)
    graph.function_s = [TASK_S]
    outcome = cluster.submit(graph)
    cluster.let_pass(5.1 * TASK_S)
    cluster.add_node(9, 2)
    cluster.wait(outcome)
    tasks = {node.id: sum(e.task_count for e in node.executors) for node in outcome.stats}
    assert tasks[9] >= 10
    checked(cluster, graph, outcome)
