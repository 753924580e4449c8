"""Where subtrees go, on whole clusters: requirements 2 to 5 of the inherited cost model."""

import pytest

from dagsched.plan import RefSource
from dagsched.testing import SimCluster, SimGraph, SimOutcome, serial_values
from dagsched.testing.graphs import SimTask

BLOCK_BYTES = 1_000_000


def blocks_on_both(cluster: SimCluster, count: int) -> dict[int, list[RefSource]]:
    """Large values of an earlier run, by the broker that made them, `count` of each."""
    graph = SimGraph([[] for _ in range(2 * count)], list(range(2 * count)))
    graph.tasks = {i: SimTask(i, size_bytes=BLOCK_BYTES) for i in range(2 * count)}
    graph.persisted = frozenset(range(2 * count))
    outcome = cluster.run(graph)
    made: dict[int, list[RefSource]] = {}
    starts = outcome.planned.plan.subtree_starts
    for subtree, broker in enumerate(outcome.subtree_brokers):
        for position in range(int(starts[subtree]), int(starts[subtree + 1])):
            made.setdefault(broker, []).append(RefSource(outcome.run, position, BLOCK_BYTES))
    assert [len(refs) for refs in made.values()] == [count, count]
    return made


def readers(groups: list[list[RefSource]], task_s: float) -> SimGraph:
    """For each group of inputs a task that reads them; then one that adds all up."""
    sources = list(dict.fromkeys(ref for group in groups for ref in group))
    count = len(groups)
    deps = [[count + sources.index(ref) for ref in group] for group in groups]
    graph = SimGraph(deps, list(range(count)), sources=list(sources))
    graph.function_s = [task_s]
    return graph


def refs_values(cluster: SimCluster) -> dict[tuple[int, int], int]:
    return {(o.run, p): v for o in cluster.outcomes.values() for p, v in o.values.items()}


def done_right(cluster: SimCluster, graph: SimGraph) -> SimOutcome:
    refs = refs_values(cluster)
    outcome = cluster.run(graph)
    values = serial_values(graph, refs=refs)
    assert outcome.state == "done"
    assert [outcome.value_of(i) for i in graph.outputs] == [values[i] for i in graph.outputs]
    return outcome


def tasks_by_node(outcome: SimOutcome) -> dict[int, int]:
    return {node.id: sum(e.task_count for e in node.executors) for node in outcome.stats}


def test_no_input_byte_crosses_between_halves_that_lie_apart():
    cluster = SimCluster({2: 2, 5: 2}, seed=1)
    made = blocks_on_both(cluster, 20)
    outcome = done_right(cluster, readers([[ref] for b in (2, 5) for ref in made[b]], 0.01))
    assert cluster.moved_bytes == 0
    assert tasks_by_node(outcome) == {2: 20, 5: 20}


@pytest.mark.parametrize(("task_s", "is_moved"), [(0.000_01, False), (1.0, True)])
def test_work_moves_away_from_its_inputs_only_where_that_pays(task_s: float, is_moved: bool):
    cluster = SimCluster({2: 2, 5: 2}, seed=1)
    made = blocks_on_both(cluster, 20)
    graph = readers([[ref] for ref in made[2]], task_s)
    done_right(cluster, graph)  # the first time it is learnt how long the tasks take
    before = cluster.moved_bytes
    outcome = done_right(cluster, graph)
    assert (cluster.moved_bytes > before) == is_moved
    assert (tasks_by_node(outcome).get(5, 0) > 5) == is_moved


def test_a_reduction_runs_where_most_of_its_blocks_lie():
    cluster = SimCluster({2: 2, 5: 2}, seed=1)
    made = blocks_on_both(cluster, 8)
    outcome = done_right(cluster, readers([[made[2][0], *made[5]]], 0.01))
    assert tasks_by_node(outcome) == {5: 1}
    assert cluster.moved_bytes == BLOCK_BYTES


def test_an_input_shared_by_a_node_s_tasks_crosses_once():
    cluster = SimCluster({2: 2, 5: 2}, seed=1)
    made = blocks_on_both(cluster, 32)
    groups = [[made[2][0], *made[5][k : k + 8]] for k in range(0, 32, 8)]
    outcome = done_right(cluster, readers(groups, 0.001))
    assert tasks_by_node(outcome) == {5: 4}
    assert cluster.moved_bytes == BLOCK_BYTES


def test_the_same_inputs_give_the_same_placement():
    def brokers() -> list[int]:
        cluster = SimCluster({2: 1, 5: 3, 7: 2}, seed=9)
        made = blocks_on_both_of_three(cluster)
        return list(done_right(cluster, readers([[ref] for ref in made], 0.01)).subtree_brokers)

    assert brokers() == brokers()


def blocks_on_both_of_three(cluster: SimCluster) -> list[RefSource]:
    graph = SimGraph([[] for _ in range(30)], list(range(30)), persisted=frozenset(range(30)))
    graph.tasks = {i: SimTask(i, size_bytes=BLOCK_BYTES) for i in range(30)}
    outcome = cluster.run(graph)
    return [RefSource(outcome.run, position, BLOCK_BYTES) for position in range(30)]
