"""Ten times as many bytes as the store may hold: runs finish, and the bound holds.

The bound is `Config.store_bytes_max`. Arenas of several processes that grow at the same moment may
not see each other, so one segment a process may be beyond it: that is the slack.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dagsched import Delayed, RunEnv, collect, delayed, submit
from dagsched.config import Config
from tests.chaos import harness

MB = 1_000_000
BLOCK_MB = 8
STORE_MB = 100
COUNT = 10 * STORE_MB // BLOCK_MB
SLACK_MB = 3 * (BLOCK_MB + 1)  # two executors and the broker
SHM = Path("/dev/shm")

Block = "np.ndarray[tuple[int], np.dtype[np.float64]]"


def block(number: int) -> Block:
    return np.full(BLOCK_MB * MB // 8, float(number))


def add(x: Block, y: Block) -> Block:
    assert (x == x[0]).all()
    assert (y == y[0]).all()
    return x + y


def ends(*blocks: Block) -> list[float]:
    return [float(each[0] + each[-1]) for each in blocks]


def tree(parts: list[Delayed]) -> Delayed:
    while len(parts) > 1:
        pairs = [delayed(add)(x, y) for x, y in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + ([parts[-1]] if len(parts) % 2 else [])
    return parts[0]


def fold(parts: list[Delayed]) -> Delayed:
    total = parts[0]
    for part in parts[1:]:
        total = delayed(add)(total, part)
    return total


@contextmanager
def environment(**config: bool) -> Iterator[tuple[RunEnv, list[int]]]:
    """An environment with a bounded store, and what its segments take, as seen over time."""
    own = f"bound{os.getpid()}"
    seen, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            sizes = []
            for entry in os.scandir(SHM):
                try:
                    sizes.append(entry.stat().st_size if own in entry.name else 0)
                except FileNotFoundError:
                    continue
            seen.append(sum(sizes))

    watcher = threading.Thread(target=watch)
    settings = Config(store_bytes_max=STORE_MB * MB, **config)  # type: ignore[arg-type]
    with RunEnv(executors=2, metastore="memory://", config=settings, rootpath=f"/{own}") as env:
        watcher.start()
        try:
            yield env, seen
        finally:
            over.set()
            watcher.join()
        harness.until(lambda: not spilled_files(env), what="removal of files")
    assert not [name for name in os.listdir(SHM) if own in name]


def spilled_files(env: RunEnv) -> list[str]:
    return os.listdir(harness.directory_of(env) / "spill")


@pytest.mark.parametrize("shape", [tree, fold], ids=["tree", "fold"])
def test_a_reduction_of_ten_times_the_store(shape: "type[tree]") -> None:
    with environment() as (env, seen):
        run = submit(env, delayed(ends)(shape([delayed(block)(k) for k in range(COUNT)])))
        assert harness.value_of(env, run) == [COUNT * (COUNT - 1.0)]
        assert 2 * BLOCK_MB * MB < max(seen) <= (STORE_MB + SLACK_MB) * MB
        [node] = run.stats()["brokers"]
        assert node["shared_peak_bytes"] <= (STORE_MB + SLACK_MB) * MB
        assert node["live_bytes"] == 0
        harness.assert_whole(env)


@pytest.mark.parametrize("withholds", [True, False])
def test_all_blocks_at_once_lie_in_files(withholds: bool) -> None:
    with environment(withhold_roots=withholds) as (env, seen):
        run = submit(env, delayed(ends)(*[delayed(block)(k) for k in range(COUNT)]))
        assert harness.value_of(env, run) == [2.0 * k for k in range(COUNT)]
        assert max(seen) <= (STORE_MB + SLACK_MB) * MB
        [node] = run.stats()["brokers"]
        assert node["peak_bytes"] >= COUNT * BLOCK_MB * MB
        assert node["spill_count"] > 0
        harness.assert_whole(env)


def test_refs_beyond_the_store_are_read_from_files_by_tasks_and_the_client() -> None:
    with environment() as (env, seen):
        blocks = [delayed(block)(k) for k in range(3 * STORE_MB // BLOCK_MB)]
        refs = harness.value_of(env, submit(env, delayed(list, meta=True)(blocks)))
        [node] = env.stats()["brokers"]
        assert node["spilled_bytes"] >= (2 * STORE_MB - SLACK_MB) * MB
        assert harness.value_of(env, submit(env, delayed(ends)(*refs))) == [
            2.0 * k for k in range(len(refs))
        ]
        for k, ref in enumerate(refs):
            assert (collect(ref) == k).all()
        assert max(seen) <= (STORE_MB + SLACK_MB) * MB
        del refs, ref
        harness.until(lambda: env.stats()["brokers"][0]["live_bytes"] == 0, what="release")
