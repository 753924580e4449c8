"""What users see when something goes wrong in a task."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from dagsched import RunEnv, delayed, rundag, submit
from dagsched.errors import (
    CycleError,
    ExecutorLost,
    RemoteTraceback,
    SerializationError,
    TaskFailed,
    TaskTimedOut,
)


class OwnError(Exception):
    """With attributes of its own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code


@delayed
def fail(x: int) -> int:
    raise OwnError("no good", x)


@delayed
def good(x: object) -> object:
    return x


def test_the_users_own_exception(env: RunEnv) -> None:
    task = fail(7)
    with pytest.raises(OwnError, match="no good") as info:
        rundag(env, good(task))
    error = info.value
    assert error.code == 7
    assert isinstance(error.__cause__, RemoteTraceback)
    assert 'raise OwnError("no good", x)' in str(error.__cause__)
    note = error.__notes__[-1]
    assert task.key in note
    assert "function fail" in note
    assert "attempt 1" in note
    assert f"node {env.nodes[0].brokerid}" in note
    assert any(f"executor {number}" in note for number in env.nodes[0].executorids)


def test_a_failure_harms_nobody_else(env: RunEnv) -> None:
    pids = executor_pids(env)
    others = [submit(env, [good(n) for n in range(50)]) for _ in range(3)]
    with pytest.raises(OwnError):
        rundag(env, [fail(1), *[good(n) for n in range(100)]])
    for run in others:
        assert run.result(30) == list(range(50))
    assert executor_pids(env) == pids


def test_numbers_of_a_failed_run(env: RunEnv) -> None:
    run = submit(env, good(fail(1)))
    with pytest.raises(OwnError):
        run.result(30)
    numbers = run.stats()["run"]
    assert (numbers["state"], numbers["failed_count"]) == ("failed", 1)
    assert numbers["task_count"] == 2
    assert run.trace().failed == (0,)


def test_retries(env: RunEnv, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def sometimes() -> str:
        with log.open("a") as out:
            out.write("x")
        if len(log.read_text()) < 3:
            raise ValueError("not yet")
        return "now"

    assert rundag(env, delayed(sometimes, retries=2)()) == "now"
    log.unlink()
    with pytest.raises(ValueError, match="not yet") as info:
        rundag(env, delayed(sometimes, retries=1)())
    assert "attempt 2" in info.value.__notes__[-1]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt("k"), "KeyboardInterrupt"),
        (GeneratorExit("g"), "GeneratorExit"),
    ],
)
def test_what_is_no_exception(env: RunEnv, error: BaseException, text: str) -> None:
    def leave() -> None:
        raise error

    pids = executor_pids(env)
    with pytest.raises(TaskFailed, match=text) as info:
        rundag(env, delayed(leave)())
    assert type(info.value.__cause__) is type(error)
    assert info.value.__cause__.args == error.args
    assert executor_pids(env) == pids


def test_an_exception_that_can_not_travel(env: RunEnv) -> None:
    def leave() -> None:
        class Local(Exception):
            def __reduce__(self) -> tuple[object, ...]:
                raise TypeError("never")

        raise Local("local words")

    with pytest.raises(TaskFailed, match="local words"):
        rundag(env, delayed(leave)())


def test_an_argument_that_can_not_travel(env: RunEnv) -> None:
    with pytest.raises(SerializationError) as info:
        rundag(env, good([1, {"x": threading.Lock()}]))
    assert info.value.path == "args[0][1]['x']"
    assert "good" in str(info.value)


def test_a_result_that_can_not_travel(env: RunEnv) -> None:
    with pytest.raises(SerializationError) as info:
        rundag(env, delayed(lambda: {"f": open(os.devnull)})())  # noqa: SIM115
    assert "'f'" in info.value.path
    assert "result of task" in str(info.value)


def test_a_task_that_kills_its_process(env: RunEnv) -> None:
    with pytest.raises(ExecutorLost, match="SIGKILL") as info:
        rundag(env, delayed(lambda: os.kill(os.getpid(), signal.SIGKILL))())
    assert info.value.signal == signal.SIGKILL
    assert rundag(env, good(5)) == 5


def test_a_task_that_leaves_by_exit(env: RunEnv) -> None:
    def leave() -> None:
        print("last words")
        sys.stdout.flush()
        os._exit(0)

    with pytest.raises(ExecutorLost, match="exit code 0") as info:
        rundag(env, delayed(leave)())
    assert info.value.exit_code == 0
    assert "last words" in info.value.log_tail


def test_a_task_that_takes_too_long(env: RunEnv) -> None:
    started = time.monotonic()
    with pytest.raises(TaskTimedOut, match="longer than its timeout"):
        rundag(env, delayed(time.sleep, timeout=0.2)(60))
    assert time.monotonic() - started < 10
    assert rundag(env, good(5)) == 5


def test_recursion_without_end(env: RunEnv) -> None:
    def down(n: int) -> int:
        return down(n + 1)

    with pytest.raises(RecursionError):
        rundag(env, delayed(down)(0))


def test_a_cycle_is_named(env: RunEnv) -> None:
    items: list[object] = []
    first = good(items)
    second = good(first)
    items.append(second)
    with pytest.raises(CycleError) as info:
        rundag(env, second)
    assert set(info.value.cycle) == {first.key, second.key}


def test_a_value_that_can_not_be_unpickled_here(env: RunEnv) -> None:
    run = submit(env, delayed(Poison)())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run.result(30)
    assert rundag(env, good(5)) == 5


class Poison:
    """Can be pickled, but not back in the client."""

    def __reduce__(self) -> tuple[object, ...]:
        return divide_in, (os.getppid(),)


def divide_in(broker: int) -> object:
    """Works in a child of `broker` only."""
    if os.getppid() != broker:
        raise ZeroDivisionError("not here")
    return Poison()


def executor_pids(env: RunEnv) -> dict[int, int]:
    rundag(env, [good(n) for n in range(4)])
    return {row["id"]: row["restart_count"] for row in env.stats()["executors"]}


def test_standard_streams_that_a_task_closed_harm_no_later_task(env: RunEnv) -> None:
    import numpy as np

    def close_all() -> None:
        sys.stdout.close()
        os.closerange(0, 3)

    def told(size: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        values = np.ones(size)
        print("heard", flush=True)
        return values

    # Each executor has its turn; a large result opens a segment, that must not be descriptor 1.
    assert rundag(env, [delayed(close_all)() for _ in range(8)]) == [None] * 8
    for values in rundag(env, [delayed(told)(100_000) for _ in range(8)]):
        assert values.sum() == 100_000
