"""Many runs at once, many cancels, graphs returned by tasks: fair, bounded, and nothing is left."""

import os
import threading
import time
from pathlib import Path

import pytest

from dagsched import RunEnv, delayed, submit
from dagsched.errors import TaskCancelled
from tests.chaos import harness
from tests.chaos.harness import Gate, Tally


def square(n: int) -> int:
    return n * n


def slow_square(n: int, tally: Tally) -> int:
    tally.mark("begun")
    time.sleep(0.05)
    return n * n


def cancelled(env: RunEnv, task_count: int, tally: Tally) -> None:
    """Cancel a run in its middle: soon over, and nothing of it begins afterwards."""
    run = submit(env, [delayed(slow_square)(n, tally) for n in range(task_count)])
    tally.wait_for("begun", 4)
    started = time.monotonic()
    assert run.cancel()
    assert time.monotonic() - started < 1, "cancel only tells"
    error = harness.error_of(env, run)
    assert isinstance(error, TaskCancelled)
    assert f"of {task_count} tasks were done" in str(error)
    other = submit(env, [delayed(square)(n) for n in range(200)])
    assert harness.value_of(env, other) == [n * n for n in range(200)]
    assert time.monotonic() - started < 2, "all slots are free"
    begun = tally.counts()["begun"]
    harness.assert_whole(env)
    assert tally.counts()["begun"] == begun, "nothing of it begins afterwards"


def test_a_run_is_cancelled_in_its_middle(env: RunEnv, tally: Tally) -> None:
    cancelled(env, 20_000, tally)


@pytest.mark.slow
def test_a_million_tasks_are_cancelled(env: RunEnv, tally: Tally) -> None:
    cancelled(env, 1_000_000, tally)


def submit_and_cancel(env: RunEnv, count: int) -> None:
    for number in range(count):
        middle = [delayed(square)(n) for n in range(10)]
        run = submit(env, delayed(sum)(middle))
        if number % 3 == 1:
            harness.until(lambda run=run: run.progress()[0] or run.done(), what="progress")  # type: ignore[misc]
        was_running = run.cancel()
        harness.ended(env, run)
        assert run.state in (("cancelled", "done") if was_running else ("done",))
        assert run.state == "cancelled" or run.result() == 285
        assert not run.cancel(), "it is over"
    harness.assert_whole(env)
    stats = env.stats()
    harness.until(lambda: env.stats()["brokers"][0]["live_object_count"] == 0, what=f"{stats}")


def test_submitted_and_cancelled_again_and_again(env: RunEnv) -> None:
    submit_and_cancel(env, 60)


@pytest.mark.slow
def test_a_thousand_times_submitted_and_cancelled(env: RunEnv) -> None:
    harness.assert_whole(env)
    (broker,) = harness.broker_pids(env)
    before = (len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{broker}/fd")))
    submit_and_cancel(env, 1000)
    after = (len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{broker}/fd")))
    assert after == before
    assert len(env.runs) <= 1000
    assert threading.active_count() < 20


def runs_at_once(env: RunEnv, run_count: int) -> None:
    """Runs of different sizes and priorities at once; the smallest, begun last, isn't last."""
    ended: list[str] = []
    runs = []
    for number in range(run_count):
        size = 20 + 37 * number % 400
        run = submit(
            env, [delayed(square)(n + number) for n in range(size)], priority=number % 3 - 1
        )
        run.add_done_callback(lambda _, number=number: ended.append(str(number)))  # type: ignore[misc]
        runs.append((number, size, run))
    small = submit(env, delayed(square)(7), priority=0)
    small.add_done_callback(lambda _: ended.append("small"))
    for number, size, run in runs:
        assert harness.value_of(env, run) == [(n + number) ** 2 for n in range(size)]
    assert harness.value_of(env, small) == 49
    harness.until(lambda: len(ended) == run_count + 1, what="callbacks")
    assert sorted(ended) == sorted([*map(str, range(run_count)), "small"])


@pytest.mark.slow
def test_twenty_runs_at_once(env: RunEnv) -> None:
    runs_at_once(env, 20)


@pytest.mark.slow
def test_a_hundred_runs_at_once(env: RunEnv) -> None:
    runs_at_once(env, 100)


def test_a_small_run_does_not_wait_for_a_large_one(env: RunEnv) -> None:
    large = submit(env, [delayed(time.sleep)(0.02) for _ in range(300)])
    harness.until(lambda: large.progress()[0] > 0, what="start")
    small = submit(env, delayed(square)(7))
    assert harness.value_of(env, small) == 49
    assert not large.done()
    assert harness.value_of(env, large, 6) == [None] * 300


def nested(depth: int, width: int) -> object:
    """A task that returns a graph of `width` tasks, each of which does the same."""
    if not depth:
        return 1
    return delayed(sum)([delayed(nested)(depth - 1, width) for _ in range(width)])


@pytest.mark.parametrize(
    ("depth", "width"),
    [(8, 1), (2, 20), pytest.param(100, 1, marks=pytest.mark.slow),
     pytest.param(1, 1000, marks=pytest.mark.slow)],
)  # fmt: skip
def test_tasks_that_return_graphs(env: RunEnv, depth: int, width: int) -> None:
    harness.assert_whole(env)
    (broker,) = harness.broker_pids(env)
    run = submit(env, delayed(nested)(depth, width))
    assert harness.value_of(env, run, 10) == width**depth
    assert len(harness.executor_pids(broker)) == 2
    harness.assert_whole(env)


def test_cancelled_in_each_state(env: RunEnv, tally: Tally, tmp_path: Path) -> None:
    with Gate(tmp_path / "gate") as gate:
        running = submit(env, [delayed(held)(tally, gate, n) for n in range(2)])
        tally.wait_for(0)
        tally.wait_for(1)
        queued = submit(env, [delayed(square)(n) for n in range(50)])
        waiting = submit(env, delayed(square)(delayed(held)(tally, gate, 2)))
        for run in (waiting, queued, running):
            assert run.cancel()
            assert isinstance(harness.error_of(env, run), TaskCancelled)
    harness.assert_whole(env)
    assert tally.counts()["2"] == 0


def held(tally: Tally, gate: Gate, name: int) -> int:
    tally.mark(name)
    gate.wait()  # type: ignore[attr-defined]  # in a task it is the other end
    return name
