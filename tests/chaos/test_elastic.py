"""Nodes and executors come and go while runs go on: to work at once, let go with nothing lost."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dagsched import (
    Config,
    NodeEnv,
    RunEnv,
    addprocs,
    collect,
    delayed,
    reset,
    rmprocs,
    rundag,
    submit,
)
from dagsched.errors import ObjectLost
from tests.chaos import clusters, harness
from tests.chaos.clusters import HOST, cluster, new_node
from tests.chaos.harness import Gate
from tests.chaos.shapes import Marks, Mixed, nap_values, naps


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(str(tmp_path / "marks"))


def each_once(marks: Marks, count: int) -> bool:
    """Nothing was lost, so nothing was done twice."""
    return sorted(task for task, _, _ in marks.lines()) == list(range(count))


def test_a_new_node_works_for_the_running_run_at_once(marks: Marks) -> None:
    with cluster(1, 1) as env:
        run = submit(env, naps(marks, 120, 0.05))
        marks.wait_for(5)
        added = new_node(2)
        reset(env, [*env.nodes, added])
        pid = clusters.broker_pid(env, added.brokerid)
        began_s = time.monotonic()
        harness.until(lambda: pid in marks.brokers(), what="work on the new node")
        assert time.monotonic() - began_s < 5
        there = lambda: {p for _, p, broker in marks.lines() if broker == pid}  # noqa: E731
        harness.until(lambda: len(there()) == 2, what="work on both of its executors")
        assert not run.done()
        assert harness.value_of(env, run, 6) == nap_values(120)
        assert each_once(marks, 120)


def test_more_executors_work_for_the_running_run_at_once(marks: Marks) -> None:
    ids = addprocs(2)
    with RunEnv(metastore="memory://") as env:
        assert env.nodes == [NodeEnv(ids[0], HOST, ids[1:])]
        run = submit(env, naps(marks, 100, 0.05))
        marks.wait_for(5)
        addprocs(2)
        assert len(reset(env).kept[0].executorids) == 3
        began_s = time.monotonic()
        seen = lambda: {pid for _, pid, _ in marks.lines()}  # noqa: E731
        harness.until(lambda: len(seen()) == 3, what="work on all three executors")
        assert time.monotonic() - began_s < 5
        assert not run.done()
        assert harness.value_of(env, run, 5) == nap_values(100)
        assert each_once(marks, 100)


@pytest.mark.slow
def test_fewer_executors_end_what_they_have_first(marks: Marks) -> None:
    ids = addprocs(4)
    with RunEnv(metastore="memory://") as env:
        run = submit(env, naps(marks, 60, 0.05))
        harness.until(lambda: len({pid for _, pid, _ in marks.lines()}) == 3)
        rmprocs(ids[2:])
        reset(env)
        broker = harness.broker_pids(env)[0]
        harness.until(lambda: len(harness.executor_pids(broker)) == 1, 5, "end of two executors")
        assert not run.done()
        assert harness.value_of(env, run, 3) == nap_values(60)
        assert each_once(marks, 60)


def test_a_removed_node_ends_its_tasks_and_leaves(marks: Marks) -> None:
    with cluster(2, 1) as env:
        run = submit(env, naps(marks, 30, 0.1))
        harness.until(lambda: len(marks.brokers()) == 2, what="work on both nodes")
        leaver = env.nodes[1]
        pid = clusters.broker_pid(env, leaver.brokerid)
        rmprocs(leaver.ids)
        began_s = time.monotonic()
        reset(env, env.nodes[:1])
        harness.until(lambda: not harness.is_alive(pid), 5, "its end")
        assert time.monotonic() - began_s < 2  # a task is 0.1 s
        assert not run.done()
        assert harness.value_of(env, run, 3) == nap_values(30)
        assert each_once(marks, 30)
        assert clusters.counters(env)["node_losses"] == 0


@pytest.mark.slow
def test_a_dropped_node_leaves_at_once(marks: Marks) -> None:
    with cluster(2, 1) as env:
        run = submit(env, naps(marks, 8, 2.0))
        harness.until(lambda: len(marks.brokers()) == 2, what="work on both nodes")
        leaver = env.nodes[1]
        pid = clusters.broker_pid(env, leaver.brokerid)
        (stopped,) = [task for task, _, broker in marks.lines() if broker == pid]
        began_s = time.monotonic()
        clusters.drop(env, leaver)
        harness.until(lambda: not harness.is_alive(pid), 5, "its end")
        assert time.monotonic() - began_s < 1.5  # a task is 2 s
        assert harness.value_of(env, run, 16) == nap_values(8)
        repeated = [task for task, places in marks.by_task().items() if len(places) > 1]
        assert repeated == [stopped]
        assert run.stats()["run"]["retry_count"] == 0


def array(marks: Marks, number: int) -> "np.ndarray":
    marks.mark(number)
    return np.full(50_000, number, np.float64)


def test_objects_move_with_their_refs(marks: Marks) -> None:
    with cluster(2, 1) as env:
        kept = delayed(array, persist=True)(marks, 100)
        refs = rundag(env, delayed(list, meta=True)([delayed(array)(marks, n) for n in range(20)]))
        assert rundag(env, delayed(float)(kept[0])) == 100.0
        holders = {ref.nodes[0] for ref in refs}
        assert holders == {node.brokerid for node in env.nodes}
        for leaver in list(env.nodes)[:1]:
            pid = clusters.broker_pid(env, leaver.brokerid)
            reset(env, [node for node in env.nodes if node != leaver])
            harness.until(lambda pid=pid: not harness.is_alive(pid), 5, "its end")
        total = delayed(_sum)(refs)
        assert rundag(env, total) == 50_000 * sum(range(20))
        for number, value in enumerate(collect(refs)):
            assert value.tolist() == [number] * 50_000
        assert rundag(env, delayed(float)(kept[1])) == 100.0
        assert sorted(task for task, _, _ in marks.lines()) == [*range(20), 100]


def _sum(values: Sequence["np.ndarray"]) -> float:
    return float(sum(value.sum() for value in values))


def test_objects_that_only_a_leaver_has_are_moved(marks: Marks, tmp_path: Path) -> None:
    """Their consumer waits for a gate all that time."""
    with Gate(tmp_path / "gate") as gate, cluster(2, 1) as env:
        layer = [delayed(array)(marks, number) for number in range(30)]
        held = delayed(_wait)(gate, delayed(len)(layer))
        run = submit(env, delayed(_total)(held, *layer))
        marks.wait_for(30)
        path = Path(gate.path)
        found = harness.until(lambda: list(path.parent.glob("gate-*")), what="the gate's task")
        waits_at = clusters.node_of(env, int(found[0].name.rpartition("-")[2]))
        (leaver,) = [node for node in env.nodes if node != waits_at]
        pid = clusters.broker_pid(env, leaver.brokerid)
        reset(env, [waits_at])
        harness.until(lambda: not harness.is_alive(pid), 10, "its end")
        gate.open()
        assert harness.value_of(env, run) == 50_000 * sum(range(30))
        assert each_once(marks, 30)
        counts = clusters.counters(env)
        assert (counts["node_losses"], counts["recomputed_tasks"]) == (0, 0)


def _wait(gate: "Gate", count: int) -> int:
    import os

    Path(gate.path + f"-{os.getppid()}").touch()
    gate.wait()  # type: ignore[attr-defined]  # a gate has it in a task
    return count


def _total(held: int, *values: "np.ndarray") -> float:
    assert held == len(values)
    return float(sum(value.sum() for value in values))


def test_the_last_node_is_lost_and_another_comes(marks: Marks) -> None:
    with cluster(1, 2, config=Config(no_nodes_grace_s=60.0)) as env:
        tasks = naps(marks, 60, 0.02)
        run = submit(env, tasks)
        marks.wait_for(10)
        lost = env.nodes[0]
        clusters.kill(clusters.broker_pid(env, lost.brokerid))
        clusters.wait_until_lost(env, lost.brokerid)
        count = marks.count
        said = run.explain(tasks[-1].key)
        assert "node" in said.lower(), said
        assert not run.done()
        assert marks.count == count
        reset(env, [new_node(2)])
        assert harness.value_of(env, run, 2) == nap_values(60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_twenty_changes_during_a_run(seed: int, marks: Marks) -> None:
    rng = random.Random(seed)
    mixed = Mixed(marks, seed, micros_max=1500)
    with cluster(2, 1) as env:
        run = submit(env, mixed.dag())
        is_lossless = True
        for _ in range(20):
            marks.wait_for(min(marks.count + rng.randrange(400), mixed.task_count))
            nodes = list(env.nodes)
            kind = rng.choice(["add", "add", "grow", "remove", "remove", "drop"])
            if kind == "add" and len(nodes) < 4:
                reset(env, [*nodes, new_node(rng.choice([1, 2]))])
            elif kind == "grow":
                at = rng.randrange(len(nodes))
                node = nodes[at]
                nodes[at] = NodeEnv(node.brokerid, HOST, [*node.executorids, *addprocs(1)])
                reset(env, nodes)
            elif len(nodes) > 1:
                gone = nodes.pop(rng.randrange(len(nodes)))
                is_lossless &= kind == "remove"
                reset(env, nodes, drop=kind == "drop")
                rmprocs(gone.ids)
        assert harness.value_of(env, run, mixed.serial_s) == mixed.value()
        assert run.stats()["run"]["retry_count"] == 0
        assert clusters.counters(env)["node_losses"] == 0
        assert {task for task, _, _ in marks.lines()} == set(range(mixed.task_count))
        if is_lossless:
            assert marks.count == mixed.task_count


@pytest.mark.slow
def test_a_ref_whose_node_was_dropped_says_so(marks: Marks) -> None:
    with cluster(2, 1) as env:
        refs = rundag(env, delayed(list, meta=True)([delayed(array)(marks, n) for n in range(20)]))
        leaver = env.nodes[0]
        clusters.drop(env, leaver)
        clusters.wait_until_lost(env, leaver.brokerid)
        lost = [ref for ref in refs if ref.nodes == (leaver.brokerid,)]
        assert 0 < len(lost) < 20
        with pytest.raises(ObjectLost, match="run its graph again"):
            collect(lost[0])
        assert len(collect([ref for ref in refs if ref not in lost])) == 20 - len(lost)
