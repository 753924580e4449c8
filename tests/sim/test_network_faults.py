"""Batches that are lost, repeated or out of order, one by one and all of them; differing clocks."""

import random
from collections import Counter

import pytest

from dagsched.config import Config
from dagsched.testing import SimCluster, SimGraph, serial_values
from dagsched.testing import graphs as shapes
from dagsched.testing.cluster import SimOutcome
from dagsched.testing.judging import unaccounted
from dagsched.testing.network import Address

LOST_MAX = 200


def small_graph() -> SimGraph:
    """Enough for every kind of message that a sound run has: large values, constants, Refs."""
    graph = shapes.tree(4)
    graph.function_s = [0.01]
    graph.tasks = {n: shapes.SimTask(n, size_bytes=30_000) for n in range(0, graph.count, 3)}
    graph.sources = [shapes.constant(9, 70_000)]
    for row in graph.deps[::5]:
        row.append(graph.count)
    graph.meta = frozenset({graph.count - 4})
    return graph


GRAPH = small_graph()
VALUES = serial_values(GRAPH)


def begun() -> SimCluster:
    return SimCluster({2: 2, 5: 1}, seed=4, config=Config(lease_s=20.0))


def is_right(cluster: SimCluster, outcome: SimOutcome) -> None:
    cluster.wait(outcome, limit_s=120.0)
    assert outcome.state == "done"
    assert [outcome.value_of(i) for i in GRAPH.outputs] == [VALUES[i] for i in GRAPH.outputs]
    assert max(cluster.executed.values()) == 1
    cluster.network.is_dropped = None
    for ref in set(outcome.refs):
        cluster.drop_ref(*ref)
    assert cluster.left_behind() == []
    assert unaccounted(cluster) == []


def test_each_of_the_first_batches_is_lost() -> None:
    lost: Counter[str] = Counter()
    for number in range(LOST_MAX):
        cluster = begun()
        seen: list[str] = []

        def is_dropped(
            sender: Address, receiver: Address, _: int, n: int = number, s: list[str] = seen
        ) -> bool:
            s.append(f"{sender[0]} to {receiver[0]}")
            return len(s) == n + 1

        cluster.network.is_dropped = is_dropped
        is_right(cluster, cluster.submit(GRAPH))
        lost.update(seen[number : number + 1])
        if len(seen) <= number:
            break
    assert set(lost) == {"broker to master", "master to broker", "broker to broker"}
    assert sum(lost.values()) > 60


@pytest.mark.parametrize(
    "roles", [("broker", "master"), ("master", "broker"), ("broker", "broker")], ids=" to ".join
)
def test_a_third_of_all_batches_on_one_way_is_lost(roles: tuple[str, str]) -> None:
    """Requests and answers of all kinds."""
    for seed in range(5):
        cluster, rng = begun(), random.Random(seed)

        def is_dropped(
            sender: Address, receiver: Address, _: int, rng: random.Random = rng
        ) -> bool:
            return (sender[0], receiver[0]) == roles and rng.random() < 0.33

        cluster.network.is_dropped = is_dropped
        is_right(cluster, cluster.submit(GRAPH))


@pytest.mark.parametrize("weather", [(0.0, 1.0, 0.0, 0.0), (0.0, 1.0, 0.7, 0.0)])
def test_every_batch_comes_again_and_out_of_order(weather: tuple[float, ...]) -> None:
    """Nothing is done twice, and all messages are counted once: as without."""
    calm = begun()
    is_right(calm, calm.submit(GRAPH))
    cluster = begun()
    cluster.set_weather(*weather)
    is_right(cluster, cluster.submit(GRAPH))
    assert cluster.network.fates["repeated"] > 100
    kinds = {kind for _, _, kind in cluster.accounts.taken}
    assert {"PlaceSubtree", "SubtreeDone", "FetchObjects", "TransferChunk", "PutObjects"} <= kinds
    for kind in ("PlaceSubtree", "SubtreeDone", "EndRun", "RunClosed", "OutputsReady"):
        counts = [
            sum(n for (_, _, k), n in one.accounts.taken.items() if k == kind)
            for one in (calm, cluster)
        ]
        assert counts[0] == counts[1], kind


@pytest.mark.parametrize("seed", range(5))
def test_clocks_that_differ_by_hours_change_nothing(seed: int) -> None:
    """Leases, timeouts and order go by differences of one clock only."""
    makespans = []
    for clocks_differ in (False, True):
        cluster = SimCluster({2: 2, 5: 2}, seed=seed, clocks_differ=clocks_differ)
        cluster.let_pass(0.2)
        outcome = cluster.submit(GRAPH, timeout_s=5.0)
        is_right(cluster, outcome)
        cluster.pause_node(5, 1.0)  # shorter than its lease
        cluster.let_pass(10.0)
        assert sorted(cluster.nodes) == [2, 5]
        makespans.append(outcome.makespan_s)
    assert makespans[1] == pytest.approx(makespans[0], rel=0.3)
