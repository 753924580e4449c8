"""Processes that are stopped, not dead: noticed by their silence, fenced when they come back."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dagsched import Config, delayed, reset, submit
from tests.chaos import clusters, harness
from tests.chaos.clusters import cluster
from tests.chaos.harness import Gate
from tests.chaos.shapes import Marks, Mixed, combined, nap_values, naps


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(str(tmp_path / "marks"))


def test_a_silent_node_is_lost_within_three_seconds(marks: Marks) -> None:
    with cluster(2, 1) as env:
        run = submit(env, naps(marks, 44, 0.1))
        harness.until(lambda: len(marks.brokers()) == 2, what="work on both nodes")
        victim = env.nodes[0].brokerid
        pid = clusters.broker_pid(env, victim)
        stopped_s = time.monotonic()
        clusters.stop(pid)
        clusters.wait_until_lost(env, victim)
        assert time.monotonic() - stopped_s < 3
        harness.until(lambda: not harness.is_alive(pid), what="its end")
        assert harness.value_of(env, run, 6) == nap_values(44)
        assert env.stats()["counters"]["node_losses"] == 1


def test_a_lost_node_that_goes_on_changes_nothing(marks: Marks, tmp_path: Path) -> None:
    """As on a machine that can't be reached: nobody can kill it, and its word doesn't count."""
    config = Config(lease_s=0.6, heartbeat_s=0.1)
    with Gate(tmp_path / "gate") as gate, cluster(2, 1, config=config) as env:
        env._cluster.end_broker = lambda _broker: None  # type: ignore[union-attr,method-assign]
        run = submit(env, [*naps(marks, 40, 0.05), delayed(_pass)(gate)])
        harness.until(lambda: len(marks.brokers()) == 2, what="work on both nodes")
        waits_at = _broker_that_waits(env, marks, gate)
        victim = next(node.brokerid for node in env.nodes if node.brokerid != waits_at)
        pid = clusters.broker_pid(env, victim)
        clusters.stop(pid)
        clusters.wait_until_lost(env, victim)
        clusters.go_on(pid)
        # It says what its executors did meanwhile, to a master that goes on without it.
        harness.until(lambda: env.stats()["links"]["stale"] > 0, what="stale batches")
        gate.open(9)
        assert harness.value_of(env, run, 2) == [*nap_values(40), "passed"]
        again = submit(env, naps(marks, 10, 0.01, first=100))
        assert harness.value_of(env, again, 0.1) == nap_values(10, first=100)
        assert [node.brokerid for node in env.nodes] == [waits_at]
        assert env.stats()["counters"]["node_losses"] == 1
        os.killpg(pid, signal.SIGKILL)


def _pass(gate: Any) -> str:
    Path(gate.path + f"-{os.getppid()}").touch()
    gate.wait()
    return "passed"


def _broker_that_waits(env: Any, marks: Marks, gate: Gate) -> int:
    """The node whose executor holds the gate's task."""
    path = Path(gate.path)
    found = harness.until(lambda: list(path.parent.glob(path.name + "-*")), what="the gate's task")
    return int(clusters.node_of(env, int(found[0].name.rpartition("-")[2])).brokerid)


@pytest.mark.slow
def test_a_stopped_client_loses_nothing(tmp_path: Path) -> None:
    """The master is a thread of the client: brokers work on, and nobody is taken for lost."""
    marks, answer = Marks(str(tmp_path / "marks")), tmp_path / "answer"
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.chaos.shapes import Marks, naps, nap_values
        from tests.chaos.clusters import cluster, counters
        from dagsched import submit
        with cluster(2, 2) as env:
            run = submit(env, naps(Marks({marks.path!r}), 2000, 0.005))
            assert run.result(60) == nap_values(2000)
            print(counters(env)["node_losses"], len(env.nodes))
    """
    with answer.open("wb") as out:
        client = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=out)
        try:
            marks.wait_for(100)
            clusters.stop(client.pid)
            before = marks.count
            time.sleep(10)  # the fault's length; nothing is waited for
            assert marks.count > before  # the brokers have gone on
            clusters.go_on(client.pid)
            assert client.wait(60) == 0
        finally:
            clusters.go_on(client.pid) if client.poll() is None else None
            client.kill()
            client.wait()
    assert answer.read_text() == "0 2\n"
    executions = marks.by_task()
    assert sorted(executions) == list(range(2000))
    assert all(len(places) == 1 for places in executions.values())


@pytest.mark.slow
def test_a_busy_machine_loses_no_node(marks: Marks) -> None:
    mixed = Mixed(marks, 1, wide=60_000, rows=600, micros_max=50)
    burn = [sys.executable, "-c", "while True: pass"]
    with cluster(2, 2) as env:
        burners = [subprocess.Popen(burn) for _ in range(6)]
        try:
            run = submit(env, mixed.dag())
            assert harness.value_of(env, run, 4 * mixed.serial_s) == mixed.value()
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        assert clusters.counters(env)["node_losses"] == 0
        assert marks.count == mixed.task_count


@pytest.mark.slow
def test_a_node_comes_back_under_its_id(marks: Marks) -> None:
    with cluster(2, 1) as env:
        nodes = env.nodes
        victim = nodes[0]
        run = submit(env, naps(marks, 150, 0.04))
        harness.until(lambda: len(marks.brokers()) == 2, what="work on both nodes")
        old = clusters.broker_pid(env, victim.brokerid)
        before = env._cluster._core.epoch_of(victim.brokerid)  # type: ignore[union-attr]
        clusters.kill(old)
        clusters.wait_until_lost(env, victim.brokerid)
        assert reset(env, nodes).added == (victim,)
        new = clusters.broker_pid(env, victim.brokerid)
        harness.until(lambda: new in marks.brokers(), what="work on the node that came back")
        assert not run.done()
        assert harness.value_of(env, run, 6) == nap_values(150)
        assert env._cluster._core.epoch_of(victim.brokerid) > before  # type: ignore[union-attr,operator]
        assert clusters.counters(env)["node_losses"] == 1
        executions = marks.by_task()
        assert all(len(p) == 1 or p[0][1] == old for p in executions.values())


def filled(marks: Marks, number: int, *before: bytes) -> bytes:
    marks.mark(number)
    return bytes([number % 251]) * 500_000


def _lengths(*values: bytes) -> list[tuple[int, int]]:
    return [(len(value), value[0]) for value in values]


@pytest.mark.slow
def test_a_broker_that_reads_nothing_holds_up_nobody_else(marks: Marks) -> None:
    """Its lease is long here: what waits for it is bounded, others go on, then it does too."""
    with cluster(2, 1, config=Config(lease_s=60.0)) as env:
        layer = [delayed(filled)(marks, number) for number in range(200)]
        run = submit(env, delayed(_lengths)(*layer))
        harness.until(lambda: len(marks.brokers()) == 2, what="work on both nodes")
        stopped = clusters.broker_pid(env, env.nodes[0].brokerid)
        other = clusters.broker_pid(env, env.nodes[1].brokerid)
        clusters.stop(stopped)
        rss_before = psutil.Process(other).memory_info().rss
        here = [pid for pid in marks.brokers() if pid == other]
        assert here == [other]
        done = len([1 for _, _, broker in marks.lines() if broker == other])
        _until_settled(marks, other, done)
        assert psutil.Process(other).memory_info().rss - rss_before < 64 << 20
        assert psutil.Process().memory_info().rss < 1 << 30
        clusters.go_on(stopped)
        expected = [(500_000, number % 251) for number in range(200)]
        assert harness.value_of(env, run, 5) == expected
        assert marks.count == 200
        assert clusters.counters(env)["node_losses"] == 0


def _until_settled(marks: Marks, broker: int, done: int) -> None:
    """Until the other node has done all that it has, or two seconds long nothing."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        now = len([1 for _, _, at in marks.lines() if at == broker])
        if now > done:
            done, deadline = now, time.monotonic() + 2
        time.sleep(0.05)  # nobody tells that nothing happens


@pytest.mark.slow
def test_an_executor_that_is_stopped_holds_up_its_bundle_only(marks: Marks) -> None:
    with cluster(1, 2) as env:
        slow = [delayed(_timed, timeout=1.0, retries=1)(marks, n) for n in range(30)]
        run = submit(env, slow)
        marks.wait_for(4)
        pid = marks.lines()[-1][1]
        clusters.stop(pid)
        assert harness.value_of(env, run, 3) == [combined(n, ()) for n in range(30)]
        assert clusters.counters(env)["node_losses"] == 0
        harness.assert_whole(env, 2)


def _timed(marks: Marks, number: int) -> int:
    marks.mark(number)
    time.sleep(0.1)
    return combined(number, ())
