"""Outputs of real runs as they complete, and as references."""

import asyncio
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dagsched import Ref, RunEnv, collect, delayed, submit
from dagsched.errors import ClosedError


def gated(gate: str) -> str:
    """Wait for a line in a FIFO."""
    with open(gate) as lines:
        return lines.readline().strip()


def block(count: int) -> np.ndarray:
    return np.arange(count)


def fail() -> None:
    raise ValueError("no")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def test_quick_outputs_come_while_others_run(env: RunEnv, gate: Path) -> None:
    slow = delayed(gated)(str(gate))
    quick = [delayed(abs)(-n) for n in range(3)]
    # A run of its own measures the quick function, so that no bundle has both.
    submit(env, quick).result()
    run = submit(env, {"slow": slow, "quick": quick, "large": delayed(block)(100_000)})
    loop = run.as_completed()
    found = dict(next(loop) for _ in range(4))
    assert [found[item.key] for item in quick] == [0, 1, 2]
    assert not run.done()
    gate.write_text("open\n")
    assert list(loop) == [(slow.key, "open")]
    result = run.result()
    assert any(value is result["large"] for value in found.values())


def test_a_failure_is_raised_by_the_loop(env: RunEnv, gate: Path) -> None:
    run = submit(env, [delayed(abs)(-1), delayed(fail)()])
    with pytest.raises(ValueError, match="no"):
        list(run.as_completed())


def test_the_end_of_the_environment_ends_the_loop(gate: Path) -> None:
    with RunEnv(executors=1, metastore="memory://") as env:
        loop = submit(env, delayed(gated)(str(gate))).as_completed()
    with pytest.raises(ClosedError):
        next(loop)


def test_an_event_loop_is_never_blocked(env: RunEnv) -> None:
    """While outputs come, many, large and late, a heartbeat of 1 ms misses no beat for long."""
    dag = [delayed(abs)(-n) for n in range(3_000)] + [delayed(block)(300_000) for _ in range(8)]
    dag.append(delayed(time.sleep)(1.0))

    async def main() -> tuple[int, float]:
        longest_s = 0.0
        is_over = False

        async def beat() -> None:
            nonlocal longest_s
            while not is_over:
                begun_s = time.monotonic()
                await asyncio.sleep(0.001)
                longest_s = max(longest_s, time.monotonic() - begun_s)

        run = submit(env, dag)
        heart = asyncio.create_task(beat())
        count = 0
        async for _ in run.as_completed():
            count += 1
        is_over = True
        await heart
        return count, longest_s

    count, longest_s = asyncio.run(main())
    assert count == len(dag)
    # For busy machines; alone it is some 10 ms. A loop that waits is away for a second.
    assert longest_s < 0.5, longest_s


def test_values_are_unpickled_in_another_thread(env: RunEnv) -> None:
    async def main() -> list[object]:
        run = submit(env, [delayed(Marked)() for _ in range(3)])
        return [value async for _, value in run.as_completed()]

    marks = asyncio.run(main())
    assert {mark.thread for mark in marks} == {"dagsched-copies"}  # type: ignore[attr-defined]


class Marked:
    """Knows in which thread it was unpickled."""

    thread = ""

    def __reduce__(self) -> tuple[object, ...]:
        return (restore_marked, ())


def restore_marked() -> Marked:
    mark = Marked()
    mark.thread = threading.current_thread().name
    return mark


def test_large_outputs_stay_on_their_node(env: RunEnv) -> None:
    large, small = submit(env, [delayed(block)(100_000), delayed(abs)(-3)], as_refs=True).result()
    assert isinstance(large, Ref)
    assert small == 3
    assert submit(env, delayed(len)(large)).result() == 100_000
    np.testing.assert_array_equal(collect(large), block(100_000))
    assert _live_objects(env) == 1
    del large
    deadline = time.monotonic() + 10
    while _live_objects(env):
        assert time.monotonic() < deadline
        time.sleep(0.005)  # the broker is told in its next turn, and tells nobody


def _live_objects(env: RunEnv) -> int:
    return int(env.stats()["brokers"][0]["live_object_count"])
