"""One real kill of each kind of process; the run goes on, or ends as is promised."""

import os
import signal
import time

import pytest

from dagsched import NodeEnv, RunEnv, addprocs, delayed, submit
from dagsched.config import Config
from dagsched.errors import NoNodesError
from tests.chaos import harness
from tests.chaos.harness import Tally


def counted(tally: Tally, name: object, seconds: float, *needed: object) -> object:
    tally.mark(name)
    time.sleep(seconds)
    return name


def test_an_idle_executor(env: RunEnv, tally: Tally) -> None:
    harness.assert_whole(env)
    broker = harness.broker_pids(env)[0]
    before = harness.executor_pids(broker)
    os.kill(before[0], signal.SIGKILL)
    started = time.monotonic()
    harness.until(
        lambda: len(set(harness.executor_pids(broker)) - set(before)) == 1, what="another executor"
    )
    assert time.monotonic() - started < 1
    run = submit(env, [delayed(counted)(tally, n, 0) for n in range(100)])
    assert harness.value_of(env, run) == list(range(100))
    assert set(tally.counts().values()) == {1}
    assert sorted(harness.restart_counts(env).values()) == [0, 1]
    assert run.stats()["run"]["retry_count"] == 0


def test_an_executor_in_user_code(env: RunEnv, tally: Tally) -> None:
    # Short tasks share bundles with the long one; they are known to be short only after the first.
    tasks = [delayed(counted)(tally, n, 5 if n == 30 else 0.0005) for n in range(100)]
    run = submit(env, tasks)
    (pid,) = tally.wait_for(30)
    os.kill(pid, signal.SIGKILL)
    assert harness.value_of(env, run, 5.1) == list(range(100))
    counts = tally.counts()
    # What had ended in its bundle may run again: its values died with the executor.
    assert counts["30"] == 2
    assert run.stats()["run"]["retry_count"] == 1
    harness.assert_whole(env)


def test_the_zygote_takes_its_broker_along(env: RunEnv) -> None:
    env.wait_for_nodes(timeout=20)
    broker = harness.broker_pids(env)[0]
    executors = harness.executor_pids(broker)
    os.kill(harness.zygote_pid(broker), signal.SIGKILL)
    harness.until(lambda: not harness.is_alive(broker), what="end of the broker")
    harness.until(lambda: not any(map(harness.is_alive, executors)), 2, "end of its executors")


def test_a_broker_of_two(tally: Tally) -> None:
    nodes = [NodeEnv(number, "127.0.0.1", addprocs(1)) for number in addprocs(2)]
    with RunEnv(nodes=nodes, metastore="memory://") as env:
        env.wait_for_nodes(timeout=20)
        run = submit(env, [delayed(counted)(tally, n, 0.5) for n in range(8)])
        tally.wait_for(0)
        victim = harness.broker_pids(env)[0]
        executors = harness.executor_pids(victim)
        os.kill(victim, signal.SIGKILL)
        harness.until(lambda: not any(map(harness.is_alive, executors)), 2, "end of its executors")
        assert harness.value_of(env, run, 4) == list(range(8))


def test_the_only_broker(tally: Tally) -> None:
    with RunEnv(executors=2, metastore="memory://", config=Config(no_nodes_grace_s=0.3)) as env:
        run = submit(env, [delayed(counted)(tally, n, 60) for n in range(2)])
        tally.wait_for(0)
        os.kill(harness.broker_pids(env)[0], signal.SIGKILL)
        with pytest.raises(NoNodesError, match="signal 9"):
            harness.value_of(env, run)
