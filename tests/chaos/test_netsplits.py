"""Nodes in network namespaces, and links between them and the master that lose everything.

Shorter than the lease: nothing is repeated. Longer: the node is lost, and the rest ends the run.
The kernel tells nobody of such a cut, so this is what leases and sessions are for.
"""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import pytest

from dagsched import delayed, submit
from tests.chaos import harness
from tests.chaos.harness import Tally
from tests.chaos.netspaces import NetSpaces, both_ways, cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TASKS = 120
TASK_S = 0.05
SERIAL_S = TASKS * TASK_S


@pytest.fixture
def spaces() -> Iterator[NetSpaces]:
    with NetSpaces(["m", "a", "b"]) as made:
        yield made


def slow(tally: Tally, i: int) -> int:
    tally.mark(i)
    time.sleep(TASK_S)
    return i


def big(tally: Tally, i: int) -> np.ndarray:
    tally.mark(i)
    time.sleep(TASK_S)
    return np.full(200_000, i, np.float64)


def add(*arrays: np.ndarray) -> float:
    return float(sum(array.sum() for array in arrays))


def broad(tally: Tally):
    return delayed(sum)([delayed(slow)(tally, i) for i in range(TASKS)])


def wait_for_tasks(tally: Tally, count: int) -> None:
    harness.until(lambda: sum(tally.counts().values()) >= count, 20.0, f"{count} executions")


def repeated(tally: Tally) -> list[str]:
    return [task for task, count in tally.counts().items() if count > 1]


@pytest.mark.parametrize("pairs", [both_ways("m", "a"), (("m", "a"),), (("a", "m"),)])
def test_master_and_node_apart_for_less_than_the_lease(spaces, monkeypatch, tally, pairs):
    with cluster(spaces, monkeypatch, lease_s=6.0) as env:
        run = submit(env, broad(tally))
        wait_for_tasks(tally, 10)
        with spaces.split(*pairs):
            time.sleep(2.0)  # this is the fault itself
        assert harness.value_of(env, run, SERIAL_S) == sum(range(TASKS))
        assert repeated(tally) == []
        assert len(env.nodes) == 2
        assert env.stats()["links"]["stale"] == 0


@pytest.mark.parametrize("pairs", [both_ways("m", "a"), (("m", "a"),), (("a", "m"),)])
def test_master_and_node_apart_for_longer(spaces, monkeypatch, tally, pairs):
    """The process lives, its connections seem to live; only the lease tells."""
    with cluster(spaces, monkeypatch) as env:
        gone, stays = env.nodes
        run = submit(env, broad(tally))
        wait_for_tasks(tally, 10)
        began = time.monotonic()
        with spaces.split(*pairs):
            harness.until(lambda: env.nodes == [stays], 20.0, "the loss")
            assert time.monotonic() - began < 6.0
            assert harness.value_of(env, run, SERIAL_S) == sum(range(TASKS))
        assert "silent" in env._cluster._roster.describe_losses()
        assert str(gone.brokerid) in env._cluster._roster.describe_losses()


def test_nodes_apart_for_a_while(spaces, monkeypatch, tally):
    """What one needs of the other comes when they reach each other again."""
    with cluster(spaces, monkeypatch) as env:
        parts = [delayed(big)(tally, i) for i in range(40)]
        sums = [delayed(add)(*parts[i::8], parts[(7 * i) % 40]) for i in range(8)]
        run = submit(env, delayed(sum)(sums))
        wait_for_tasks(tally, 4)
        with spaces.split(*both_ways("a", "b")):
            time.sleep(3.0)  # this is the fault itself
        expected = sum(200_000.0 * (sum(range(i, 40, 8)) + (7 * i) % 40) for i in range(8))
        assert harness.value_of(env, run, 40 * TASK_S) == expected
        assert repeated(tally) == []


def test_nodes_that_never_reach_each_other(spaces, monkeypatch, tally):
    """Both reach the master, and so each other through it."""
    with cluster(spaces, monkeypatch) as env, spaces.split(*both_ways("a", "b")):
        parts = [delayed(big)(tally, i) for i in range(40)]
        sums = [delayed(add)(*parts[i::8], parts[(7 * i) % 40]) for i in range(8)]
        run = submit(env, delayed(sum)(sums))
        expected = sum(200_000.0 * (sum(range(i, 40, 8)) + (7 * i) % 40) for i in range(8))
        assert harness.value_of(env, run, 40 * TASK_S) == expected
        assert repeated(tally) == []
        assert env.stats()["links"]["relayed"] > 0


def test_blackouts_again_and_again(spaces, monkeypatch, tally):
    """A second without any network in every two."""
    with cluster(spaces, monkeypatch, lease_s=6.0) as env:
        run = submit(env, broad(tally))
        everything = (*both_ways("m", "a"), *both_ways("m", "b"), *both_ways("a", "b"))
        while not run.done():
            with spaces.split(*everything):
                time.sleep(1.0)  # this is the fault itself
            with contextlib.suppress(TimeoutError):
                run.exception(1.0)
        assert harness.value_of(env, run, SERIAL_S) == sum(range(TASKS))
        assert repeated(tally) == []
