"""Clusters of several nodes: who works, what is refused, and what `reset` does to them."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from dagsched import (
    NodeEnv,
    RunEnv,
    addprocs,
    delayed,
    procs,
    reset,
    rmprocs,
    rundag,
    submit,
)
from dagsched.errors import NoNodesError
from tests import graphs

HOST = "127.0.0.1"


def nothing_lives(env: RunEnv) -> bool:
    return all(row["live_object_count"] == 0 for row in env.stats()["brokers"])


def test_both_nodes_work() -> None:
    ids = addprocs(4)
    nodes = [NodeEnv(ids[0], HOST, ids[1:2]), NodeEnv(ids[2], HOST, ids[3:])]
    with RunEnv(nodes=nodes, metastore="memory://") as env:
        env.wait_for_nodes(timeout=20)
        run = submit(env, [delayed(time.sleep)(0.005) for _ in range(200)])
        run.result(60)
        assert set(run.trace().node.tolist()) == {ids[0], ids[2]}
        rows = run.stats()["executors"]
        assert sum(row["task_count"] for row in rows) == 200
        assert all(row["task_count"] > 40 for row in rows)


def test_large_objects_between_nodes() -> None:
    ids = addprocs(4)
    nodes = [NodeEnv(ids[0], HOST, ids[1:2]), NodeEnv(ids[2], HOST, ids[3:])]
    with RunEnv(nodes=nodes, metastore="memory://") as env:
        env.wait_for_nodes(timeout=20)

        def make(n: int) -> object:
            time.sleep(0.02)
            return np.full(300_000, n, dtype=np.float64)

        arrays = [delayed(make)(n) for n in range(24)]
        dag = delayed(lambda *parts: float(sum(part.sum() for part in parts)))(*arrays)
        run = submit(env, dag)
        assert run.result(60) == 300_000 * sum(range(24))
        brokers = run.stats()["brokers"]
        assert sum(row["in_bytes"] for row in brokers) > 0
        assert nothing_lives(env)


def test_the_environment_shows_its_nodes() -> None:
    ids = addprocs(5)
    nodes = [NodeEnv(ids[0], HOST, ids[1:3]), NodeEnv(ids[3], "localhost", ids[4:])]
    with RunEnv(nodes=nodes, metastore="memory://", rootpath="/some/where") as env:
        a, b, c, d, e = ids
        assert repr(env) == f"RunEnv\n ↳ 127.0.0.1 [{a} <-> {b},{c}]\n ↳ localhost [{d} <-> {e}]"
        assert env.rootpath == "/some/where"


def test_wrong_nodes_start_nothing() -> None:
    ids = addprocs(3)
    with pytest.raises(ValueError, match="process 9999 of node"):
        RunEnv(nodes=[NodeEnv(ids[0], HOST, [9999])])
    with pytest.raises(ValueError, match="in two places"):
        RunEnv(nodes=[NodeEnv(ids[0], HOST, [ids[0]])])
    with pytest.raises(NoNodesError, match="not possible yet"):
        RunEnv(nodes=[NodeEnv(ids[0], "192.0.2.1", [ids[1]])])
    with pytest.raises(NoNodesError, match="empty"):
        RunEnv(nodes=[])
    with pytest.raises(ValueError, match="either nodes or executors"):
        RunEnv(nodes=[NodeEnv(ids[0], HOST, [ids[1]])], executors=2)
    with pytest.raises(ValueError, match="at least 1"):
        RunEnv(executors=0)
    rmprocs(ids[1:])
    with pytest.raises(NoNodesError, match="has 1 process"):
        RunEnv()


@pytest.fixture
def two_nodes() -> Iterator[tuple[RunEnv, list[NodeEnv]]]:
    ids = addprocs(4)
    nodes = [NodeEnv(ids[0], HOST, ids[1:2]), NodeEnv(ids[2], HOST, ids[3:])]
    with RunEnv(nodes=nodes, metastore="memory://") as env:
        env.wait_for_nodes(timeout=20)
        yield env, nodes


def pids(env: RunEnv) -> dict[int, int]:
    """Process id of the broker by node, from inside its executors."""
    return {
        started.node.brokerid: started.process.pid for started in env._cluster._brokers._started
    }  # type: ignore[union-attr]


def test_reset_adds_and_removes_nodes(two_nodes: tuple[RunEnv, list[NodeEnv]]) -> None:
    env, nodes = two_nodes
    before = pids(env)
    ids = addprocs(2)
    added = NodeEnv(ids[0], HOST, ids[1:])
    report = reset(env, [nodes[0], added])
    assert (report.added, report.removed, report.kept) == ((added,), (nodes[1],), (nodes[0],))
    assert env.nodes == [nodes[0], added]
    env.wait_for_nodes(timeout=20)
    run = submit(env, [delayed(time.sleep)(0.005) for _ in range(100)])
    run.result(60)
    assert set(run.trace().node.tolist()) == {nodes[0].brokerid, added.brokerid}
    assert pids(env)[nodes[0].brokerid] == before[nodes[0].brokerid]
    again = reset(env, [nodes[0], added])
    assert (again.added, again.removed, again.kept) == ((), (), (nodes[0], added))


def test_reset_to_what_was_removed_before(two_nodes: tuple[RunEnv, list[NodeEnv]]) -> None:
    env, nodes = two_nodes
    reset(env, nodes[:1])
    assert rundag(env, delayed(sum)([1, 2])) == 3
    report = reset(env, nodes)
    assert report.added == (nodes[1],)
    env.wait_for_nodes(2, timeout=20)
    run = submit(env, [delayed(time.sleep)(0.005) for _ in range(100)])
    run.result(60)
    assert set(run.trace().node.tolist()) == {node.brokerid for node in nodes}


def test_reset_changes_the_executors_of_a_node(two_nodes: tuple[RunEnv, list[NodeEnv]]) -> None:
    env, nodes = two_nodes
    (extra,) = addprocs(1)
    before = pids(env)
    grown = NodeEnv(nodes[0].brokerid, HOST, [*nodes[0].executorids, extra])
    report = reset(env, [grown, nodes[1]])
    assert report == ((), (), (grown, nodes[1]))
    seen: set[int] = set()
    deadline = time.monotonic() + 20
    while extra not in seen and time.monotonic() < deadline:
        run = submit(env, [delayed(time.sleep)(0.005) for _ in range(60)])
        run.result(60)
        seen |= set(run.trace().executor.tolist())
    assert extra in seen
    assert pids(env) == before


def test_reset_during_a_run(two_nodes: tuple[RunEnv, list[NodeEnv]]) -> None:
    env, nodes = two_nodes
    run = submit(env, [delayed(graphs.total)(n, n) for n in range(2000)])
    slow = submit(env, [delayed(time.sleep)(0.01) for _ in range(200)])
    ids = addprocs(2)
    reset(env, [nodes[0], NodeEnv(ids[0], HOST, ids[1:])])
    assert run.result(60) == [2 * n for n in range(2000)]
    assert slow.result(60) == [None] * 200
    assert rundag(env, delayed(sum)([1, 2])) == 3


def test_reset_to_no_nodes_changes_nothing(two_nodes: tuple[RunEnv, list[NodeEnv]]) -> None:
    env, nodes = two_nodes
    with pytest.raises(NoNodesError):
        reset(env, [])
    with pytest.raises(ValueError, match="unknown"):
        reset(env, [NodeEnv(77_777, HOST, [88_888])])
    assert env.nodes == nodes
    assert rundag(env, delayed(sum)([1, 2])) == 3


def test_reset_takes_up_processes_added_since() -> None:
    ids = addprocs(2)
    with RunEnv(metastore="memory://") as env:
        assert env.nodes == [NodeEnv(ids[0], HOST, ids[1:])]
        more = addprocs(1)
        report = reset(env)
        assert report.kept == (NodeEnv(ids[0], HOST, [ids[1], *more]),)
        assert env.nodes == list(report.kept)
        rmprocs(more)
        reset(env)
        assert env.nodes == [NodeEnv(ids[0], HOST, ids[1:])]
        assert rundag(env, delayed(sum)([1, 2])) == 3


def test_reset_of_a_local_environment_keeps_its_own_node() -> None:
    with RunEnv(executors=1, metastore="memory://") as env:
        own = env.nodes[0]
        ids = addprocs(2)
        report = reset(env)
        assert report.kept == (own,)
        assert report.added == (NodeEnv(ids[0], HOST, ids[1:]),)
        env.wait_for_nodes(2, timeout=20)
        assert procs() == [1, *ids]
