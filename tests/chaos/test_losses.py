"""Parts of a cluster are killed at random moments of a run of 20,000 small tasks.

Two nodes of two executors; the value must be the oracle's, and what is executed again no more than
what was lost: nothing whose value lives, or is being computed, where nobody died.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from dagsched import Run, submit
from tests.chaos import clusters, harness
from tests.chaos.clusters import Overheard, cluster
from tests.chaos.shapes import Marks, Mixed

SLOW = pytest.mark.slow


def seeds(fast: int, count: int) -> list[object]:
    """The first few in `make test`, all in `make chaos`."""
    return [pytest.param(seed, marks=() if seed < fast else SLOW) for seed in range(count)]


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(str(tmp_path / "marks"))


def moment(marks: Marks, mixed: Mixed, seed: int) -> None:
    """Wait for a moment of the run that the seed gives."""
    share = random.Random(seed).uniform(0.02, 0.95)
    marks.wait_for(int(share * mixed.task_count))


@pytest.mark.parametrize("seed", seeds(1, 6))
def test_a_broker_is_killed(seed: int, marks: Marks) -> None:
    mixed = Mixed(marks, seed)
    with cluster() as env:
        run = submit(env, mixed.dag())
        moment(marks, mixed, seed)
        overheard = Overheard(env)  # from now on: what moves for balance is told of as well
        victim = env.nodes[seed % 2]
        pid = clusters.broker_pid(env, victim.brokerid)
        killed_s = time.monotonic()
        clusters.kill(pid)
        clusters.wait_until_lost(env, victim.brokerid)
        assert time.monotonic() - killed_s < 1
        assert harness.value_of(env, run, mixed.serial_s) == mixed.value()
        executions = marks.by_task()
        assert executions.keys() == set(range(mixed.task_count))
        repeated = {task for task, places in executions.items() if len(places) > 1}
        # Values that lived at the other node, and tasks that it was about, stay as they were.
        assert repeated <= least_set(mixed, overheard, run)
        assert max(map(len, executions.values())) <= 2
        assert clusters.counters(env)["node_losses"] == 1
        assert run.stats()["run"]["retry_count"] == 0


def least_set(mixed: Mixed, overheard: Overheard, run: Run) -> set[int]:
    """Backwards from what is wanted, up to what lives or is being computed; task by task."""
    there = {mixed.number_by_key[key] for key in overheard.held(run)}
    ready = [mixed.number_by_key[key] for key in overheard.wanted(run)]
    found: set[int] = set()
    while ready:
        task = ready.pop()
        if task not in there and task not in found:
            found.add(task)
            ready += mixed.inputs[task]
    return found


@pytest.mark.parametrize("seed", seeds(1, 6))
def test_an_executor_is_killed(seed: int, marks: Marks) -> None:
    mixed = Mixed(marks, seed)
    with cluster() as env:
        run = submit(env, mixed.dag())
        moment(marks, mixed, seed)
        broker = clusters.broker_pid(env, env.nodes[seed % 2].brokerid)
        pid = harness.executor_pids(broker)[0]
        clusters.kill(pid)
        assert harness.value_of(env, run, mixed.serial_s) == mixed.value()
        executions = marks.by_task()
        assert executions.keys() == set(range(mixed.task_count))
        repeated = {task: places for task, places in executions.items() if len(places) > 1}
        # Only what was with that executor, in the bundles that it had, is executed again.
        assert all(places[0][0] == pid and len(places) == 2 for places in repeated.values())
        assert len(repeated) < 1000
        assert clusters.counters(env)["node_losses"] == 0
        harness.assert_whole(env, 4)


@pytest.mark.parametrize("seed", seeds(0, 4))
def test_the_store_is_killed(seed: int, marks: Marks) -> None:
    mixed = Mixed(marks, seed)
    with cluster(metastore=None) as env:
        run = submit(env, mixed.dag())
        moment(marks, mixed, seed)
        os.kill(harness.server_pid(env), signal.SIGKILL)
        assert harness.value_of(env, run, mixed.serial_s) == mixed.value()
        assert marks.count == mixed.task_count  # each exactly once


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_all_of_them_one_after_the_other(seed: int, marks: Marks) -> None:
    mixed = Mixed(marks, seed)
    rng = random.Random(seed)
    with cluster(3, 1, metastore=None) as env:
        run = submit(env, mixed.dag())
        moment(marks, mixed, seed)
        doings = ["executor", "broker", "store", "broker", "executor"]
        rng.shuffle(doings)
        for doing in doings:
            marks.wait_for(min(marks.count + rng.randrange(800), mixed.task_count))
            pids = harness.broker_pids(env)
            if doing == "store":
                clusters.kill(harness.server_pid(env))
            elif doing == "broker":
                clusters.kill(rng.choice(pids))
                harness.until(lambda pids=pids: harness.broker_pids(env) != pids)
            else:
                broker = rng.choice(pids)
                executors = harness.until(lambda broker=broker: harness.executor_pids(broker))
                clusters.kill(rng.choice(executors))
        assert harness.value_of(env, run, mixed.serial_s) == mixed.value()
        assert {task for task, _, _ in marks.lines()} == set(range(mixed.task_count))
