"""Losses during recoveries, values lost again and again, many kinds of work while nodes die."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagsched import Config, Delayed, Run, RunEnv, collect, delayed, reset, submit
from dagsched.errors import ObjectLost, TaskTimedOut
from dagsched.master.state import SubtreeState
from tests.chaos import clusters, harness
from tests.chaos.clusters import cluster, new_node
from tests.chaos.harness import Gate
from tests.chaos.shapes import Marks, Mixed, combined, nap_values, naps


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(str(tmp_path / "marks"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_second_node_is_lost_during_the_recovery_from_the_first(seed: int, marks: Marks) -> None:
    rng = random.Random(seed)
    mixed = Mixed(marks, seed)
    with cluster(3, 1) as env:
        run = submit(env, mixed.dag())
        marks.wait_for(int(rng.uniform(0.05, 0.9) * mixed.task_count))
        first, second = rng.sample(env.nodes, 2)
        clusters.kill(clusters.broker_pid(env, first.brokerid))
        # From at once to when the recovery is long over, in 30 ms at most.
        until_s = time.monotonic() + rng.choice((0.0, 0.001, 0.003, 0.01, 0.03)) * rng.random()
        while time.monotonic() < until_s:
            pass
        clusters.kill(clusters.broker_pid(env, second.brokerid))
        assert harness.value_of(env, run, mixed.serial_s) == mixed.value()
        assert {task for task, _, _ in marks.lines()} == set(range(mixed.task_count))
        assert clusters.counters(env)["node_losses"] == 2
        assert len(env.nodes) == 1


def array(marks: Marks, number: int) -> "np.ndarray":
    marks.mark(number)
    return np.full(50_000, number, np.float64)


def held_back(gate: Any, *values: int) -> int:
    gate.wait()
    return sum(values)


def total(held: int, *values: "np.ndarray") -> float:
    return float(sum(value.sum() for value in values))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2, 10])
def test_a_value_is_lost_with_each_node_that_computes_it_again(
    limit: int, marks: Marks, tmp_path: Path
) -> None:
    """Below the limit it is computed again each time; beyond it the run ends and says why."""
    config = Config(recovery_limit=limit)
    count = 80
    with Gate(tmp_path / "gate") as gate, cluster(2, 1, config=config) as env:
        nodes = list(env.nodes)
        layer = [delayed(array)(marks, number) for number in range(count)]
        held = delayed(held_back)(gate, *[delayed(len)(value) for value in layer])
        run = submit(env, delayed(total)(held, *layer))
        for loss in range(1, 4):
            harness.until(lambda: run.done() or _subtrees_done(env, run), 30, "values to lose")
            before = marks.count
            for node in nodes:
                clusters.kill(clusters.broker_pid(env, node.brokerid))
            harness.until(lambda: not env.nodes, what="both losses")
            reset(env, nodes)
            if loss <= limit:
                harness.until(lambda before=before: marks.count > before, 30, "the next time")
        if limit > 3:
            gate.open(9)
            assert harness.value_of(env, run) == 50_000 * sum(range(count))
        else:
            error = harness.error_of(env, run)
            assert isinstance(error, ObjectLost)
            assert "was lost 3 times" in str(error)
            assert "recovery_limit" in str(error)


def _subtrees_done(env: RunEnv, run: Run) -> bool:
    """Whether a node has all values of some part, which are then lost with it."""
    known = env._cluster._core._lives.runs.get(run.number)  # type: ignore[union-attr]
    return known is not None and any(
        subtree.state is SubtreeState.DONE and subtree.home is not None
        for subtree in known.subtrees
    )


# --- several kinds of work at once ----------------------------------------------------------------


def value_of_graph(marks: Marks, number: int, width: int) -> Delayed:
    """A task that returns a graph."""
    marks.mark(number)
    parts = [delayed(combined)(number + n, ()) for n in range(width)]
    return delayed(combined)(number, parts)


def graph_value(number: int, width: int) -> int:
    return combined(number, [combined(number + n, ()) for n in range(width)])


def flaky(path: str, number: int) -> int:
    """Fails the first time."""
    mark = Path(f"{path}-{number}")
    if not mark.exists():
        mark.touch()
        raise OSError(f"task {number} fails once")
    time.sleep(0.01)
    return number


def sums(refs: list[Any]) -> list[float]:
    return [float(collect(ref).sum()) for ref in refs]


Work = tuple[Callable[[], Any], Any]


def works(marks: Marks, tmp_path: Path) -> dict[str, Work]:
    """Graphs of each kind, made anew, and their values."""
    mixed = Mixed(marks, 5, wide=1500, columns=16, rows=40, micros_max=500)
    return {
        "mixed": (mixed.dag, mixed.value()),
        "naps": (lambda: naps(marks, 80, 0.02, first=100_000), nap_values(80, first=100_000)),
        "graphs": (
            lambda: [delayed(value_of_graph)(marks, 200_000 + 100 * n, 20) for n in range(25)],
            [graph_value(200_000 + 100 * n, 20) for n in range(25)],
        ),
        "retries": (
            lambda: [delayed(flaky, retries=2)(str(tmp_path / "flaky"), n) for n in range(40)],
            list(range(40)),
        ),
        "refs": (
            lambda: delayed(sums, meta=True)([delayed(array)(marks, n) for n in range(30)]),
            [50_000.0 * n for n in range(30)],
        ),
    }


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed == 0 else pytest.mark.slow) for seed in range(5)]
)
def test_runs_of_all_kinds_while_nodes_die(seed: int, marks: Marks, tmp_path: Path) -> None:
    rng = random.Random(seed)
    with cluster(3, 1) as env:
        kinds = works(marks, tmp_path)
        names = list(kinds)
        rng.shuffle(names)
        runs = {name: submit(env, kinds[name][0]()) for name in names}
        late = submit(env, delayed(time.sleep)(60), timeout=3)
        for _ in range(2):
            marks.wait_for(marks.count + rng.randrange(50, 600), 30)
            node = rng.choice(env.nodes)
            clusters.kill(clusters.broker_pid(env, node.brokerid))
            clusters.wait_until_lost(env, node.brokerid)
            if rng.random() < 0.5:
                reset(env, [*env.nodes, node])
            else:
                reset(env, [*env.nodes, new_node(1)])
        for name, run in runs.items():
            assert harness.value_of(env, run, 10) == kinds[name][1], name
        assert isinstance(harness.error_of(env, late), TaskTimedOut)
        # One that is killed before it has joined isn't counted; nobody else was lost.
        assert 1 <= clusters.counters(env)["node_losses"] <= 2


@pytest.mark.slow
def test_a_minute_of_kills_stops_and_changes(tmp_path: Path) -> None:
    """A soak: each run is right, and memory and descriptors stay as they are."""
    import os

    import psutil

    rng = random.Random(7)
    own = psutil.Process()
    began_s, round_count = time.monotonic(), 0
    sizes: list[tuple[int, int]] = []
    with cluster(3, 2, metastore=None) as env:
        while time.monotonic() - began_s < 60:
            place = tmp_path / f"round-{round_count}"
            place.mkdir()
            marks = Marks(str(place / "marks"))
            kinds = works(marks, place)
            runs = {name: submit(env, make()) for name, (make, _) in kinds.items()}
            for _ in range(rng.randrange(1, 4)):
                aim = marks.count + rng.randrange(10, 300)
                harness.until(
                    lambda aim=aim, marks=marks, runs=runs: (
                        marks.count >= aim or all(run.done() for run in runs.values())
                    ),
                    60,
                    "work",
                )
                _do_harm(rng, env)
            for name, run in runs.items():
                assert harness.value_of(env, run, 10) == kinds[name][1], (round_count, name)
            del runs, run
            reset(env, [*env.nodes, *(new_node(2) for _ in range(3 - len(env.nodes)))])
            env.wait_for_nodes(timeout=20)
            sizes.append((own.memory_info().rss, len(os.listdir("/proc/self/fd"))))
            round_count += 1
    assert round_count >= 3
    rss, descriptors = zip(*sizes, strict=True)
    assert max(descriptors) - descriptors[0] <= 12
    assert rss[-1] - rss[1] < 64 << 20


def _do_harm(rng: random.Random, env: RunEnv) -> None:
    nodes = env.nodes
    kind = rng.choice(["broker", "executor", "stop", "remove", "drop", "executor"])
    if kind == "executor" or len(nodes) == 1:
        pids = harness.executor_pids(rng.choice(harness.broker_pids(env)))
        if pids:
            clusters.kill(rng.choice(pids))
        return
    victim = rng.choice(nodes)
    if kind in ("broker", "stop"):
        pid = clusters.broker_pid(env, victim.brokerid)
        (clusters.kill if kind == "broker" else clusters.stop)(pid)
        clusters.wait_until_lost(env, victim.brokerid)
    else:
        reset(env, [node for node in nodes if node != victim], drop=kind == "drop")
