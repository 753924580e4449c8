"""The master dies at each record of a run's journal, and again at each record of the recovery."""

import random

import pytest

from dagsched.testing import SimCluster, SimGraph, serial_values
from dagsched.testing import graphs as shapes
from dagsched.testing.cluster import SimOutcome

NODES = {2: 2, 5: 2}


def fifty_tasks() -> SimGraph:
    """Layers of 50 tasks in all; some values are large."""
    graph = shapes.layered(random.Random(5), 9, 11, 2)
    graph.deps = graph.deps[:50]
    used = {dep for row in graph.deps for dep in row}
    graph.outputs = [number for number in range(graph.count) if number not in used]
    graph.function_s = [0.005]
    graph.tasks = {
        number: shapes.SimTask(number, size_bytes=30_000) for number in range(0, graph.count, 7)
    }
    return graph


GRAPH = fifty_tasks()
VALUES = serial_values(GRAPH)


def begun(*, seed: int = 3, checks: bool = True) -> tuple[SimCluster, SimOutcome]:
    cluster = SimCluster(NODES, seed=seed, checks=checks)
    cluster.let_pass(0.2)
    return cluster, cluster.submit(GRAPH)


def killed_at(cluster: SimCluster, *counts: int, is_synced: bool) -> None:
    """Kill the master when so many records have been written in all."""

    def on_record(count: int) -> None:
        if is_synced:
            cluster.master.journal.write_through()
        if count in counts:
            cluster.kill_master(0.3)

    cluster.on_record = on_record


def is_right(cluster: SimCluster, outcome: SimOutcome) -> None:
    cluster.wait(outcome, limit_s=30.0)
    assert outcome.state == "done"
    assert [outcome.value_of(i) for i in GRAPH.outputs] == [VALUES[i] for i in GRAPH.outputs]
    assert cluster.left_behind() == []


def record_count() -> int:
    cluster, outcome = begun()
    is_right(cluster, outcome)
    return cluster.record_count


RECORDS = record_count()


def test_there_are_records_enough_for_this_to_say_something() -> None:
    assert GRAPH.count == 50
    assert RECORDS > 15


@pytest.mark.parametrize(
    "is_synced", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["synced", "not synced"]
)
def test_killed_after_each_record(is_synced: bool) -> None:
    for count in range(1, RECORDS + 1):
        cluster, outcome = begun()
        killed_at(cluster, count, is_synced=is_synced)
        is_right(cluster, outcome)
        again = [task for task, times in cluster.executed.items() if times > 1]
        # Both brokers live on with all that they had, so nothing need be done twice, unless nobody
        # could know of the run, or it was over and only its client had had the large outputs.
        if is_synced and count < RECORDS:
            assert again == [], f"killed after record {count}"


@pytest.mark.slow
@pytest.mark.parametrize("first", [2, RECORDS // 2, RECORDS - 2])
def test_killed_again_at_each_record_of_the_recovery(first: int) -> None:
    cluster, outcome = begun()
    killed_at(cluster, first, is_synced=True)
    is_right(cluster, outcome)
    last = cluster.record_count
    for count in range(first + 1, last + 1):
        cluster, outcome = begun()
        killed_at(cluster, first, count, is_synced=True)
        is_right(cluster, outcome)


@pytest.mark.slow
def test_killed_at_any_moment_of_the_recovery() -> None:
    """Also where nothing is written: while orphans are awaited, asked, and told."""
    for number in range(40):
        cluster, outcome = begun(seed=number)
        killed_at(cluster, RECORDS // 2, is_synced=True)
        cluster.clock.at(0.55 + 0.012 * number, lambda c=cluster: c.kill_master(0.2))
        is_right(cluster, outcome)


def test_a_node_is_lost_with_its_master() -> None:
    for count in range(2, RECORDS, 3):
        cluster, outcome = begun()

        def both(at: int, c: SimCluster = cluster, n: int = count) -> None:
            if at == n:
                c.master.journal.write_through()
                c.kill_node(5)
                c.kill_master(0.3)

        cluster.on_record = both
        is_right(cluster, outcome)


def test_the_journal_is_cut_at_each_byte_of_its_last_record() -> None:
    byte_count, size = 0, 1
    while byte_count < size:
        cluster, outcome = begun(checks=False)
        killed_at(cluster, RECORDS // 2 - 1, is_synced=True)  # a subtree with an object has ended
        cluster.step_until(lambda c=cluster: not c.master.is_alive)
        size = len(cluster.store.entries(outcome.run)[-1].data)
        cluster.store.cut_entry(outcome.run, byte_count)
        is_right(cluster, outcome)
        assert max(cluster.executed.values()) == 1
        byte_count += 1
    assert size > 30
