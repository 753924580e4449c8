"""What simulated nodes note of runs: each transfer that they count, each spill, each execution."""

import random

import numpy as np
import pytest

from dagsched.config import Config
from dagsched.master.events import NodeTraced, TracesArrived
from dagsched.protocol.tracing import FILE_MADE, FILE_MOVED
from dagsched.tables import Rows
from dagsched.testing import SimCluster, SimGraph, SimOutcome
from dagsched.testing import graphs as shapes
from dagsched.testing.graphs import SimTask
from dagsched.trace import Trace, TraceBuilder
from tests.sim.test_memory import BLOCK, fold, gathered, spill_count

ROWS_MAX = 1_000_000


def recorded(cluster: SimCluster, outcome: SimOutcome) -> Trace:
    """The trace that the client would make, by position."""
    builder = TraceBuilder()
    for event in cluster.events:
        if isinstance(event, NodeTraced | TracesArrived) and event.run == outcome.run:
            builder.take(event, ROWS_MAX)
    order = np.arange(outcome.planned.plan.task_count)
    bundle, bundles = builder.bundles(order)
    trace = builder.build(order)
    return Trace(
        trace.start_ns, trace.end_ns, trace.executor, trace.node, trace.attempt, trace.executions,
        bundle=bundle, bundles=bundles, size_bytes=builder.sizes(order),
        transfers=builder.transfers(order), spills=builder.spills(order),
    )  # fmt: skip


def bytes_by_node(rows: Rows, column: str) -> dict[int, int]:
    nodes = rows[column]
    return {int(node): int(rows["size_bytes"][nodes == node].sum()) for node in np.unique(nodes)}


def mixed_graph(seed: int) -> SimGraph:
    """Small and large values, constants, references."""
    graph = shapes.layered(random.Random(seed), 8, 12, 3)
    graph.function_s = [0.01]
    graph.tasks = {n: SimTask(n, size_bytes=30_000) for n in range(0, graph.count, 3)}
    graph.sources = [shapes.constant(9, 70_000)]
    for row in graph.deps[::5]:
        row.append(graph.count)
    graph.meta = frozenset({graph.count - 4})
    return graph


@pytest.mark.parametrize("seed", range(20))
def test_each_transfer_that_nodes_count_is_recorded_also_in_bad_weather(seed: int) -> None:
    cluster = SimCluster({2: 2, 5: 1, 8: 2}, seed=seed, config=Config(lease_s=20.0))
    cluster.set_weather(*((0.05, 0.05, 0.1, 0.05) if seed % 2 else (0.0, 0.0, 0.0, 0.0)))
    outcome = cluster.run(mixed_graph(seed))
    assert outcome.state == "done"
    trace = recorded(cluster, outcome)
    counted = {stats.id: stats.in_bytes for stats in outcome.stats if stats.in_bytes}
    assert len(counted) > 1
    assert bytes_by_node(trace.transfers, "target") == counted
    transfers = trace.transfers
    assert (transfers["source"] != transfers["target"]).all()
    assert (transfers["start_ns"] <= transfers["end_ns"]).all()
    asked = transfers["asked_ns"]
    assert (asked <= transfers["start_ns"]).all()
    # What came came from where it was made, and is as large as its maker said.
    is_whole = (transfers["value_count"] == 1) & (transfers["task"] >= 0)
    tasks = transfers["task"][is_whole]
    if not seed % 2:  # else work moves, and what was asked for twice may come of the first time
        assert (asked > 0).all()
        assert (trace.node[tasks] == transfers["source"][is_whole]).all()
    assert (trace.size_bytes[tasks] == transfers["size_bytes"][is_whole]).all()


@pytest.mark.parametrize("seed", range(10))
def test_each_execution_is_in_a_recorded_bundle(seed: int) -> None:
    cluster = SimCluster({2: 2, 5: 2}, seed=seed)
    graph = shapes.stencil(8, 20) if seed % 2 else mixed_graph(seed)
    outcome = cluster.run(graph)
    trace = recorded(cluster, outcome)
    bundles = trace.bundles
    assert trace.ran.all()
    assert bundles["task_count"].sum() == trace.executions.sum() == graph.count
    assert (trace.bundle > 0).all()
    row_of = {
        key: row
        for row, key in enumerate(
            zip(*(bundles[name].tolist() for name in ("node", "executor", "bundle")), strict=True)
        )
    }
    for task in range(graph.count):
        row = row_of[int(trace.node[task]), int(trace.executor[task]), int(trace.bundle[task])]
        assert bundles["start_ns"][row] <= trace.start_ns[task]
        assert trace.end_ns[task] <= bundles["end_ns"][row]


def test_each_spill_is_recorded() -> None:
    cluster = SimCluster({2: 4}, seed=3, config=Config(store_bytes_max=80 * BLOCK))
    cluster.let_pass(0.2)
    outcome = cluster.run(gathered(150))
    kinds = np.bincount(recorded(cluster, outcome).spills["kind"], minlength=3).tolist()
    assert kinds[FILE_MOVED] == spill_count(cluster) > 0
    # The last task takes all of them, and reads those that lie in files there.
    assert kinds[2] == kinds[FILE_MOVED] + kinds[FILE_MADE]


def test_a_loss_is_no_end_of_recording() -> None:
    cluster = SimCluster({2: 2, 5: 2}, seed=2, config=Config(store_bytes_max=80 * BLOCK))
    outcome = cluster.submit(fold(60))
    cluster.step_until(lambda: len(cluster.executed) > 30)
    cluster.kill_node(5)
    cluster.wait(outcome)
    assert outcome.state == "done"
    trace = recorded(cluster, outcome)
    assert (
        trace.bundles["task_count"].sum()
        == trace.executions.sum()
        >= outcome.planned.plan.task_count
    )


def test_without_recording_nothing_is_told() -> None:
    cluster = SimCluster({2: 2, 5: 2}, seed=1, config=Config(trace=False))
    outcome = cluster.run(mixed_graph(1))
    assert outcome.state == "done"
    assert not [e for e in cluster.events if isinstance(e, NodeTraced | TracesArrived)]
