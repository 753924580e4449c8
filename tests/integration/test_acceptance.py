"""The acceptance graphs on every topology with every store: right values, and nothing left.

One environment runs all graphs, one after the other, in the order of the inherited matrix. After
each run all executors are named, no object lives, and what was used of shared memory is free.
"""

import contextlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagsched import NodeEnv, Ref, RunEnv, addprocs, collect, delayed, print_stats, rundag, submit
from dagsched.brokers.executor import WARM_S
from tests import graphs

HOST = "127.0.0.1"
TOPOLOGIES = (
    "master_only", "one_node", "two_nodes", "four_nodes", "selected", "automatic", "none_added"
)  # fmt: skip


@dataclass
class Bench:
    """An environment, and what is true after each of its runs."""

    env: RunEnv
    executors: set[int]
    inspected_count: int = field(default=0)

    def run(self, dag: Any) -> Any:
        """The value of a graph, whose tasks have run where they may."""
        run = submit(self.env, dag)
        value = run.result(100)
        trace = run.trace()
        assert trace.ran.all()
        assert set(trace.executor.tolist()) <= self.executors
        rows = run.stats()["executors"]
        assert sum(row["task_count"] for row in rows) == trace.task_count
        return value

    def inspect(self) -> None:
        """All executors are named; no object lives; call it when no `Ref` is held any more."""
        out = io.StringIO()
        print_stats(self.env, file=out)
        words = {tuple(line.split()[:2]) for line in out.getvalue().splitlines() if line}
        assert {("executor", str(number)) for number in self.executors} <= words
        stats = self.env.stats()
        assert {row["id"] for row in stats["executors"]} == self.executors
        for row in stats["brokers"]:
            assert (row["live_object_count"], row["live_bytes"]) == (0, 0)
        self.inspected_count += 1

    def sort(self, count: int, chunk_count: int, result_count: int) -> None:
        """The sort of the matrix; chunks enter the graph as references."""
        chunks = graphs.sort_inputs(count, chunk_count)
        prepared = self.run(graphs.sort_preparation(chunks))
        refs = [ref for ref, _ in prepared]
        assert all(type(ref) is Ref for ref in refs)
        splitters: list[float] = []
        if result_count > 1:
            splitters = graphs.sort_splitters([sample for _, sample in prepared], result_count)
        result = self.run(graphs.sort_graph(refs, splitters))
        if result_count > 1:
            assert len(result) == result_count
            result = self.run(graphs.sort_concatenation(result))
        result = collect(result)  # one chunk is its own result, and a reference
        assert result.tobytes() == np.sort(np.concatenate(chunks)).tobytes()


def topology(name: str) -> list[NodeEnv] | None:
    """The nodes of a topology, on processes that are reserved now."""
    counts = {"master_only": 5, "one_node": 5, "two_nodes": 8, "four_nodes": 8, "selected": 5}
    if name == "none_added":
        return None
    ids = addprocs(counts.get(name, 4))
    match name:
        case "master_only":
            return [NodeEnv(1, HOST, ids)]
        case "one_node":
            return [NodeEnv(ids[0], HOST, ids[1:])]
        case "two_nodes":
            return [NodeEnv(ids[0], HOST, ids[1:4]), NodeEnv(ids[4], HOST, ids[5:])]
        case "four_nodes":
            return [NodeEnv(ids[k], HOST, [ids[k + 1]]) for k in range(0, 8, 2)]
        case "selected":
            with RunEnv(nodes=[NodeEnv(1, HOST, ids)], metastore="memory://") as env:
                assert rundag(env, delayed(sum)([1, 2])) == 3
            return [NodeEnv(1, HOST, ids[::2])]
    return None


def straight(bench: Bench) -> None:
    dag, expected = graphs.straight([1] * 6**4)
    assert bench.run(dag) == expected == 1


def cross(bench: Bench) -> None:
    dag, expected = graphs.cross()
    assert bench.run(dag) == expected == 84


def meta(bench: Bench) -> None:
    dag, arrays = graphs.meta_graph()
    gathered = bench.run(dag)
    assert [type(item) for item in gathered] == [Ref] * 10
    for value, array in zip(collect(gathered), arrays, strict=True):
        np.testing.assert_array_equal(value, array)


def quick_start(bench: Bench) -> None:
    dag, expected = graphs.quick_sum()
    assert collect(bench.run(dag)) == expected == 55
    dag, mean = graphs.quick_means()
    assert 4 < bench.run(dag) == mean < 6
    dag, ordered = graphs.quick_sort()
    np.testing.assert_array_equal(bench.run(dag), ordered)


def lambdas(bench: Bench) -> None:
    """The same graphs of functions that only travel by value."""
    three: tuple[Callable[..., int], ...] = (
        lambda i: i + 1, lambda i, j: i + j, lambda i, j, k: (i + j + k) // 3,
    )  # fmt: skip
    dag, expected = graphs.straight([1] * 6**3, three)
    assert bench.run(dag) == expected
    dag, expected = graphs.cross(6, (*three, lambda: 10))
    assert bench.run(dag) == expected
    chunks = graphs.sort_inputs(10_000, 7)
    pieces = [delayed(lambda chunk: np.sort(chunk) + 0)(chunk) for chunk in chunks]
    while len(pieces) > 1:
        merge = delayed(lambda *some: np.sort(np.concatenate(some)))
        pieces = [merge(*pieces[k : k + 2]) for k in range(0, len(pieces), 2)]
    np.testing.assert_array_equal(bench.run(pieces[0]), np.sort(np.concatenate(chunks)))
    gathered = bench.run(delayed(lambda *c: list(c), meta=True)(*map(delayed(np.arange), range(9))))
    assert [len(array) for array in collect(gathered)] == list(range(9))
    collected = delayed(lambda refs: sum(map(collect, refs)))
    tens = [delayed(lambda: 10)() for _ in range(4)]
    assert bench.run(collected(delayed(lambda *c: list(c), meta=True)(*tens))) == 40


@pytest.fixture(params=["memory", "embedded", "redis"])
def metastore(request: pytest.FixtureRequest, redis_url: str) -> str | None:
    if request.param == "redis":
        return redis_url
    return None if request.param == "embedded" else "memory://"


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_acceptance_matrix(
    name: str, metastore: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = topology(name)
    steps: list[Callable[[Bench], None]] = [
        straight,
        cross,
        partial(Bench.sort, count=10**6, chunk_count=40, result_count=1),
        partial(Bench.sort, count=10**6, chunk_count=40, result_count=40),
        meta,
        quick_start,
        lambdas,
    ]
    with RunEnv(nodes=nodes, metastore=metastore) as env:
        if nodes is not None:
            assert env.nodes == nodes
        env.wait_for_nodes(timeout=20)
        bench = Bench(env, {number for node in env.nodes for number in node.executorids})
        for step in steps:
            step(bench)
            bench.inspect()
        assert bench.inspected_count == len(steps)
        assert env.stats()["store"] == {"state": "ok", "reason": ""}
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_sort_of_ten_million_on_two_nodes() -> None:
    with RunEnv(nodes=topology("two_nodes"), metastore="memory://") as env:
        env.wait_for_nodes(timeout=20)
        bench = Bench(env, {number for node in env.nodes for number in node.executorids})
        for result_count in (1, 40):
            bench.sort(10**7, 40, result_count)
            bench.inspect()


@pytest.mark.parametrize(
    ("count", "chunk_count", "result_count"),
    [(100_003, 40, 40), (1_000, 1, 1), (1_000, 1, 3), (30, 40, 1), (30, 40, 7)],
)
def test_sorts_with_chunks_that_are_short_empty_or_one(
    env: RunEnv, count: int, chunk_count: int, result_count: int
) -> None:
    bench = Bench(env, set(env.nodes[0].executorids))
    bench.sort(count, chunk_count, result_count)
    bench.inspect()


def test_references_reach_the_client_without_their_values(env: RunEnv) -> None:
    """A meta task's list of ten large arrays: under 4 KiB arrive before they are collected."""
    dag, arrays = graphs.meta_graph(100_000)
    run = submit(env, dag)
    gathered = run.result(30)
    assert sum(len(frame or b"") for _, _, frame in run._objects) < 4096
    assert [ref.nbytes > 800_000 for ref in gathered] == [True] * 10
    np.testing.assert_array_equal(collect(gathered), arrays)


def segment_bytes() -> int:
    """Shared memory that environments of this process take, in bytes."""
    total = 0
    for entry in Path("/dev/shm").glob(f"dagsched*-{os.getpid()}-*"):
        with contextlib.suppress(FileNotFoundError):  # it has just been given back
            total += entry.stat().st_blocks * 512
    return total


def test_shared_memory_is_back_at_its_level(env: RunEnv) -> None:
    """What stays warm when nothing comes: one usual segment a process, whatever the peak was."""
    bench = Bench(env, set(env.nodes[0].executorids))
    process_count = 1 + len(bench.executors)
    limit_bytes = process_count * env.config.segment_bytes
    for _ in range(3):
        bench.sort(4 * 10**6, 40, 40)
        bench.inspect()
    # Executors are told what to free, and confirm nothing: look until they have. What arrays were
    # born in they keep for a moment longer.
    deadline = time.monotonic() + WARM_S + 10
    while segment_bytes() > limit_bytes and time.monotonic() < deadline:
        time.sleep(0.005)
    assert 0 < segment_bytes() <= limit_bytes
