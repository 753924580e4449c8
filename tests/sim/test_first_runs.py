"""Runs of functions that nobody has measured: as good as later ones, and right whatever is lost."""

import random
import sys
from pathlib import Path

import pytest

from dagsched.testing import SimCluster, SimGraph
from dagsched.testing import graphs as shapes
from tests.sim.test_dealing import BEFALLS, checked, layers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
THREE = {2: 2, 5: 2, 7: 2}


def cluster_of(nodes: dict[int, int], *, seed: int = 1, checks: bool = False) -> SimCluster:
    cluster = SimCluster(nodes, seed=seed, checks=checks)
    cluster.let_pass(0.3)
    return cluster


def chains(seed: int) -> SimGraph:
    rng = random.Random(seed)
    graph = shapes.layered(rng, 20, 8, 1)
    graph.function_s = [0.3]
    return graph


@pytest.mark.parametrize("make", [layers, chains])
def test_a_first_run_takes_hardly_longer_than_a_second_one(make) -> None:
    cluster = cluster_of(THREE)
    first, second = cluster.run(make(1)), cluster.run(make(1))
    assert first.state == second.state == "done"
    assert first.makespan_s <= 1.2 * second.makespan_s
    assert cluster.core.counters["recomputed_tasks"] == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("what", BEFALLS)
def test_values_are_right_whatever_befalls_a_run_that_is_dealt_late(what: str, seed: int) -> None:
    cluster = cluster_of(THREE, seed=seed, checks=True)
    graph = layers(seed)
    outcome = cluster.submit(graph)
    run = cluster.core._lives.runs[outcome.run]
    assert not run.is_dealt
    cluster.step_until(lambda: run.is_dealt and not run.recovering)
    cluster.let_pass(0.15 + 0.1 * seed)
    BEFALLS[what](cluster)
    cluster.wait(outcome)
    checked(cluster, graph, outcome)
    if what == "nothing":
        assert set(cluster.executed.values()) == {1}


def test_no_task_waits_for_another_of_which_nobody_knows_how_long_it_takes() -> None:
    cluster = cluster_of({2: 4})
    graph = shapes.wide(8)
    graph.function_s = [1.0]
    assert cluster.run(graph).makespan_s == pytest.approx(2.0, abs=0.1)


def test_ready_tasks_go_to_idle_nodes_before_one_has_ended() -> None:
    cluster = cluster_of({2: 4, 7: 4, 12: 4})
    graph = shapes.wide(12)
    graph.function_s = [5.0]
    assert cluster.run(graph).makespan_s == pytest.approx(5.0, abs=0.5)


@pytest.mark.parametrize("shape", ["layered", "stencil", "tree", "wide"])
def test_the_measurement_of_placement_still_runs(shape: str, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    try:
        import placement

        row = placement.measured(shape, 120, 3, 1)
        model = placement.Model(3, placement.EXECUTORS)
        graph = placement.SHAPES[shape](120, 12, 1)
        assert model.run(graph, None).makespan_s >= row.bound_s
    finally:
        for name in ("placement", "simulated", "modelled", "workflows", "heft"):
            sys.modules.pop(name, None)
    assert row.own_first_s is not None
    assert row.heft_s is not None
    assert row.own_first_s <= 1.6 * row.heft_s
    assert row.own_s <= 1.4 * row.heft_s
