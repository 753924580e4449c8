"""Levels that executors of a node run hand in hand, in real environments."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagsched import Config, Run, RunEnv, delayed, submit
from tests import graphs

STEP_S = 0.0003
LEVELS = 80
WIDTH = 6
PROMPT_S = 1.0


def step(*values: int) -> int:
    """A short task, which leaves the processor to others."""
    time.sleep(STEP_S)
    return (sum((k + 1) * value for k, value in enumerate(values)) + 1) % 1_000_003


def stencil(function: Callable[..., Any] = step, levels: int = LEVELS) -> list[Any]:
    """The last level of a stencil, each column told where it is."""
    call = delayed(function)
    row = [call(column) for column in range(WIDTH)]
    for _ in range(levels - 1):
        row = [call(*(row[c] for c in (k - 1, k, k + 1) if 0 <= c < WIDTH)) for k in range(WIDTH)]
    return row


def expected(levels: int = LEVELS) -> list[int]:
    def plain(*values: int) -> int:
        return (sum((k + 1) * value for k, value in enumerate(values)) + 1) % 1_000_003

    row = [plain(column) for column in range(WIDTH)]
    for _ in range(levels - 1):
        row = [plain(*(row[c] for c in (k - 1, k, k + 1) if 0 <= c < WIDTH)) for k in range(WIDTH)]
    return row


def bundle_count(run: Run) -> int:
    return sum(row["bundle_count"] for row in run.stats()["executors"])


@pytest.fixture
def env() -> Iterator[RunEnv]:
    """A node that has measured how long a step takes."""
    with RunEnv(executors=2, metastore="memory://") as environment:
        for levels in (5, LEVELS):
            assert submit(environment, stencil(levels=levels)).result(60) == expected(levels)
        yield environment


def is_hand_in_hand(run: Run, levels: int = LEVELS) -> bool:
    """Far fewer bundles than levels were run, by both executors, at the same time."""
    stats = run.stats()
    counts = [row["task_count"] for row in stats["executors"]]
    return bundle_count(run) < levels / 2 and min(counts) > sum(counts) / 4


def nothing_left(env: RunEnv) -> None:
    live = env.stats()["brokers"]
    assert [(row["live_object_count"], row["live_bytes"]) for row in live] == [(0, 0)]


def test_a_stencil(env: RunEnv) -> None:
    run = submit(env, stencil())
    assert run.result(60) == expected()
    assert is_hand_in_hand(run)
    stats = run.stats()
    assert stats["run"]["task_count"] == stats["run"]["done_count"] == LEVELS * WIDTH
    assert sum(row["task_count"] for row in stats["executors"]) == LEVELS * WIDTH
    # What tasks waited for others is no time of theirs.
    duration_s = stats["run"]["duration_s"]
    assert all(row["busy_s"] <= duration_s for row in stats["executors"])
    trace = run.trace()
    assert trace.task_count == LEVELS * WIDTH
    assert trace.ran.all()
    spans = [
        (trace.start_ns[trace.executor == e].min(), trace.end_ns[trace.executor == e].max())
        for e in np.unique(trace.executor)
    ]
    assert len(spans) == 2
    assert max(begin for begin, _ in spans) < min(end for _, end in spans)
    nothing_left(env)


def test_a_butterfly(env: RunEnv) -> None:
    dag, value = graphs.butterfly(32)
    for _ in range(2):
        assert submit(env, dag).result(60) == value


def test_constants_and_arrays_that_are_changed_in_place(env: RunEnv) -> None:
    start = np.arange(200.0)

    def relax(*blocks: np.ndarray) -> np.ndarray:
        time.sleep(STEP_S)
        total = sum(block.sum() for block in blocks)
        for block in blocks:
            block += total / 1e3  # nobody else may see it
        return blocks[0] % 97.0

    def build(call: Callable[..., Any]) -> list[Any]:
        row = [call(start + column) for column in range(WIDTH)]
        for _ in range(30):
            row = [call(row[k], row[k - 1], row[(k + 1) % WIDTH]) for k in range(WIDTH)]
        return row

    serial = build(lambda *blocks: relax(*(block.copy() for block in blocks)))
    for _ in range(2):
        run = submit(env, build(delayed(relax)))
        found = run.result(60)
        assert all(np.array_equal(a, b) for a, b in zip(found, serial, strict=True))
    assert is_hand_in_hand(run, 31)


def test_a_task_that_raises_ends_the_run_at_once(env: RunEnv) -> None:
    class Stormy(Exception):
        pass

    def maybe(*values: int) -> int:
        time.sleep(STEP_S)
        if max(values) < 0:
            raise Stormy("it had to be")
        return max(values)

    def build(bad: int) -> list[Any]:
        call = delayed(maybe)
        row = [call(1) for _ in range(WIDTH)]
        for level in range(LEVELS):
            row = [
                call(-1) if (level, k) == (bad, 2) else call(row[k], row[k - 1])
                for k in range(WIDTH)
            ]
        return row

    for _ in range(2):
        submit(env, build(-1)).result(60)
    begun_s = time.monotonic()
    run = submit(env, build(LEVELS // 2))
    with pytest.raises(Stormy, match="it had to be"):
        run.result(60)
    assert time.monotonic() - begun_s < PROMPT_S
    assert submit(env, stencil()).result(60) == expected()


def test_a_task_that_returns_a_graph(env: RunEnv) -> None:
    double = delayed(lambda value: 2 * value)

    def maybe(level: int, *values: int) -> Any:
        time.sleep(STEP_S)
        return double(sum(values) % 1_009) if level == 40 else sum(values) % 1_009

    def build(call: Callable[..., Any], outcome: Callable[[Any], Any]) -> list[Any]:
        row = [call(0, column) for column in range(WIDTH)]
        for level in range(1, 80):
            row = [outcome(call(level, row[k], row[k - 1])) for k in range(WIDTH)]
        return row

    def serially(level: int, *values: int) -> int:
        return 2 * (sum(values) % 1_009) if level == 40 else sum(values) % 1_009

    value = build(serially, lambda x: x)
    for _ in range(2):
        assert submit(env, build(delayed(maybe), lambda x: x)).result(60) == value


def test_a_value_that_is_large_once(env: RunEnv) -> None:
    def grown(number: int, *values: Any) -> Any:
        time.sleep(STEP_S)
        total = sum(value if isinstance(value, int) else len(value) for value in values) % 1_009
        return bytes(1_000_000) if number == 300 else total

    def build(call: Callable[..., Any]) -> list[Any]:
        row = [call(k, 1) for k in range(WIDTH)]
        for level in range(1, LEVELS):
            row = [call(level * WIDTH + k, row[k], row[k - 1]) for k in range(WIDTH)]
        return row

    value = build(grown)
    for _ in range(2):
        assert submit(env, build(delayed(grown))).result(60) == value
    nothing_left(env)


def test_an_executor_killed_in_the_middle(env: RunEnv, tmp_path: Path) -> None:
    def once(path: str, number: int, *values: int) -> int:
        if number == 200 and not os.path.exists(path):
            with open(path, "w") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(STEP_S)
        return sum(values) % 1_009 + 1

    def build(call: Callable[..., Any], path: str) -> list[Any]:
        row = [call(path, k) for k in range(WIDTH)]
        for level in range(1, LEVELS):
            row = [call(path, level * WIDTH + k, row[k], row[k - 1]) for k in range(WIDTH)]
        return row

    marked = tmp_path / "was here"
    marked.touch()
    quiet = delayed(once)
    value = submit(env, build(quiet, str(marked))).result(60)
    marked.unlink()
    run = submit(env, build(quiet, str(marked)))
    assert run.result(60) == value
    assert marked.exists()
    assert run.stats()["run"]["crash_retry_count"] == 1
    assert sum(row["restart_count"] for row in run.stats()["executors"]) >= 1
    assert submit(env, stencil()).result(60) == expected()


def test_programs_that_tasks_start_inherit_no_sockets(env: RunEnv) -> None:
    def sockets() -> list[str]:
        listing = subprocess.run(
            ["ls", "-l", "/proc/self/fd"],
            capture_output=True,
            text=True,
            check=True,
            close_fds=False,
        )
        return [line for line in listing.stdout.splitlines() if "socket:" in line]

    assert submit(env, delayed(sockets)()).result(60) == []


def test_the_same_without() -> None:
    config = Config(hand_in_hand=False)
    with RunEnv(executors=2, metastore="memory://", config=config) as env:
        for _ in range(2):
            run = submit(env, stencil())
            assert run.result(60) == expected()
        assert bundle_count(run) > LEVELS
