"""The acceptance graphs on every topology and store, and what `reset` does to a cluster."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from dagsched import (
    NodeEnv,
    RunEnv,
    addprocs,
    collect,
    delayed,
    print_stats,
    procs,
    reset,
    rmprocs,
    rundag,
    submit,
)
from dagsched.errors import NoNodesError
from tests import graphs

HOST = "127.0.0.1"


def topology(name: str) -> tuple[list[NodeEnv] | None, set[int]]:
    """Nodes after reserving processes, and the executors that may run tasks."""
    if name == "none_added":
        return None, set()
    counts = {"master_only": 5, "one_node": 5, "two_nodes": 8, "selected": 5, "automatic": 4}
    ids = addprocs(counts[name])
    if name == "master_only":
        return [NodeEnv(1, HOST, ids)], set(ids)
    if name == "one_node":
        return [NodeEnv(ids[0], HOST, ids[1:])], set(ids[1:])
    if name == "two_nodes":
        nodes = [NodeEnv(ids[0], HOST, ids[1:4]), NodeEnv(ids[4], HOST, ids[5:])]
        return nodes, {*ids[1:4], *ids[5:]}
    if name == "selected":
        chosen = ids[::2]
        return [NodeEnv(1, HOST, chosen)], set(chosen)
    return None, set(ids[1:])


def sort(env: RunEnv, count: int, chunk_count: int, result_count: int) -> None:
    chunks = graphs.sort_inputs(count, chunk_count)
    prepared = rundag(env, graphs.sort_preparation(chunks))
    refs = [ref for ref, _ in prepared]
    splitters: list[float] = []
    if result_count > 1:
        splitters = graphs.sort_splitters([collect(s) for _, s in prepared], result_count)
    result = rundag(env, graphs.sort_graph(refs, splitters))
    if result_count > 1:
        result = rundag(env, graphs.sort_concatenation(result))
    np.testing.assert_array_equal(result, np.sort(np.concatenate(chunks)))


def nothing_lives(env: RunEnv) -> bool:
    return all(row["live_object_count"] == 0 for row in env.stats()["brokers"])


@pytest.fixture(params=["memory", "embedded", "redis"])
def metastore(request: pytest.FixtureRequest, redis_url: str) -> str | None:
    if request.param == "redis":
        return redis_url
    return None if request.param == "embedded" else "memory://"


@pytest.mark.parametrize(
    "name", ["master_only", "one_node", "two_nodes", "selected", "automatic", "none_added"]
)
def test_acceptance_graphs(
    name: str, metastore: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes, executors = topology(name)
    with RunEnv(nodes=nodes, metastore=metastore) as env:
        if nodes is not None:
            assert env.nodes == nodes
        executors = executors or {number for node in env.nodes for number in node.executorids}
        assert {number for node in env.nodes for number in node.executorids} == executors
        env.wait_for_nodes(timeout=20)
        dag, expected = graphs.straight([1] * 6**4)
        run = submit(env, dag)
        assert run.result(60) == expected
        assert set(run.trace().executor.tolist()) <= executors
        assert nothing_lives(env)
        dag, expected = graphs.cross()
        assert rundag(env, dag) == expected
        sort(env, 100_000, 40, 1)
        sort(env, 100_000, 40, 40)
        assert nothing_lives(env)
        dag, arrays = graphs.meta_graph()
        gathered = collect(rundag(env, dag))
        for value, array in zip(gathered, arrays, strict=True):
            np.testing.assert_array_equal(value, array)
        assert nothing_lives(env)
        print_stats(env)
        printed = capsys.readouterr().out
        for number in executors:
            assert f"executor {number} " in printed
        assert env.stats()["store"]["state"] == "ok"


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
