"""Bounded stores of simulated nodes: what is withheld, what moves to files, and that runs end."""

import pytest

from dagsched.config import Config
from dagsched.master.explaining import words
from dagsched.testing import SimCluster, SimGraph, SimOutcome, serial_values
from dagsched.testing import graphs as shapes
from dagsched.testing.graphs import SimTask

BLOCK = 100_000
EXECUTORS = 4
STORE = 80 * BLOCK


def large(graph: SimGraph, *small: int) -> SimGraph:
    """Each value is a block, but those of `small`."""
    graph.tasks = {
        number: SimTask(number, size_bytes=BLOCK)
        for number in range(graph.count)
        if number not in small
    }
    return graph


def fold(count: int, slow_s: float = 0.1) -> SimGraph:
    """Blocks that are made fast, and a chain that takes one after the other, slowly."""
    deps: list[list[int]] = [[] for _ in range(count)]
    deps += [[0, 1] if number == 1 else [count + number - 2, number] for number in range(1, count)]
    graph = SimGraph(deps, [len(deps) - 1], function_s=[0.02, slow_s])
    graph.function_of = [0] * count + [1] * (count - 1)
    return large(graph, len(deps) - 1)


def gathered(count: int) -> SimGraph:
    """Blocks that one task takes all at once."""
    graph = SimGraph([*([] for _ in range(count)), list(range(count))], [count])
    graph.function_s = [0.02]
    return large(graph, count)


def played(
    graph: SimGraph, nodes: dict[int, int] | None = None, **config: int
) -> tuple[SimCluster, SimOutcome]:
    cluster = SimCluster(nodes or {2: EXECUTORS}, seed=3, config=Config(**config))
    cluster.let_pass(0.2)  # so that all nodes are there
    outcome = cluster.run(graph)
    values = serial_values(graph)
    assert outcome.state == "done"
    assert all(outcome.value_of(number) == values[number] for number in graph.outputs)
    return cluster, outcome


def peak_bytes(cluster: SimCluster) -> int:
    """In shared memory, of the fullest node."""
    return max(node.memory.shared_peak_bytes for node in cluster.all_nodes)


def spill_count(cluster: SimCluster) -> int:
    return sum(node.core.pressure.spill_count for node in cluster.all_nodes)


def test_a_slow_consumer_sets_the_pace_of_what_it_consumes() -> None:
    graph = fold(200)
    free, unbound = played(graph)
    assert peak_bytes(free) > 150 * BLOCK, "this graph needs no withholding"
    bound, outcome = played(graph, store_bytes_max=STORE)
    [stats] = outcome.stats
    # All that is alive, in files too: nobody knows at first that these tasks make blocks.
    assert stats.peak_bytes <= 0.85 * STORE
    assert stats.withheld_count > 50
    assert bound.left_behind() == []
    # The chain never waits for a block, so holding back costs no time.
    assert outcome.makespan_s <= 1.05 * unbound.makespan_s


def test_without_withholding_the_same_store_spills() -> None:
    cluster, outcome = played(fold(200), store_bytes_max=STORE, withhold_roots=False)
    assert spill_count(cluster) > 50
    assert peak_bytes(cluster) <= STORE
    assert outcome.stats[0].withheld_count == 0
    assert outcome.stats[0].peak_bytes > 1.8 * STORE
    assert cluster.left_behind() == []


@pytest.mark.parametrize("nodes", [{2: 1}, {2: EXECUTORS}, {2: 2, 5: 2}], ids=str)
def test_a_tree_is_reduced_within_the_bound(nodes: dict[int, int]) -> None:
    graph = shapes.tree(8)
    graph.function_s = [0.02]
    cluster, _ = played(large(graph, graph.count - 1), nodes, store_bytes_max=STORE)
    assert peak_bytes(cluster) <= STORE
    assert cluster.left_behind() == []


def test_blocks_of_two_nodes_that_one_of_them_gathers() -> None:
    """Blocks that another node takes are held until it has them: there only files help."""
    cluster, _ = played(gathered(300), {2: 2, 5: 2}, store_bytes_max=STORE)
    assert cluster.moved_bytes > STORE
    assert peak_bytes(cluster) <= STORE
    assert cluster.left_behind() == []


def test_where_all_is_needed_at_once_the_oldest_move_to_files() -> None:
    cluster, outcome = played(gathered(150), store_bytes_max=STORE)
    assert peak_bytes(cluster) <= STORE
    assert spill_count(cluster) >= 150 - 80 - 10
    assert outcome.stats[0].peak_bytes >= 150 * BLOCK
    assert cluster.left_behind() == []


def test_what_is_not_large_is_never_withheld() -> None:
    """A run of small tasks beside one that has filled the store."""
    cluster = SimCluster({2: 2}, seed=1, config=Config(store_bytes_max=10 * BLOCK))
    slow = cluster.submit(fold(30, slow_s=1.0))
    cluster.step_until(lambda: bool(cluster.nodes[2].core.pressure.held))
    small = cluster.submit(shapes.wide(50))
    cluster.wait(small)
    assert small.state == "done"
    assert small.stats[0].withheld_count == 0
    assert not slow.is_over
    cluster.wait(slow)
    assert cluster.left_behind() == []


def test_values_that_are_kept_withhold_nothing() -> None:
    """Refs fill the store; nothing that could wait would free it, so all goes on in files."""
    cluster = SimCluster({2: 2}, seed=1, config=Config(store_bytes_max=10 * BLOCK))
    graph = large(SimGraph([[] for _ in range(20)], list(range(20))))
    graph.persisted = frozenset(range(20))
    kept = cluster.run(graph)
    wide = large(SimGraph([[] for _ in range(20)], list(range(20))))
    outcome = cluster.run(wide)
    assert outcome.state == "done"
    for position in range(20):
        assert cluster.fetch(kept.run, position) == kept.values[position]
        cluster.drop_ref(kept.run, position)
    assert cluster.left_behind() == []


def test_explained_as_held_back() -> None:
    cluster = SimCluster({2: 2}, seed=1, config=Config(store_bytes_max=10 * BLOCK))
    run = cluster.submit(fold(40, slow_s=1.0))
    core = cluster.nodes[2].core
    cluster.step_until(lambda: bool(core.pressure.held))
    [mine] = core.runs.values()
    position = int(mine.bundles[min(core.pressure.held)].positions[0])
    found = cluster.explain(run.run, position)
    assert found is not None
    assert found.task.state == "held_back"
    assert "what frees memory goes first" in words(found, str)
    cluster.wait(run)
    assert cluster.left_behind() == []
