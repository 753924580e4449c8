"""`DagschedExecutor`: what `concurrent.futures` promises, and what it adds.

What CPython's own tests of executors hold is written down here again (see `test_futures_cpython`).
"""

import asyncio
import contextlib
import functools
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagsched import RunEnv, delayed, setrunenv
from dagsched.errors import ExecutorLost, SerializationError
from dagsched.plugins.futures import BrokenDagschedExecutor, DagschedExecutor
from tests.checkout import ROOT

STATUS = "not set up"


def add(x: Any, y: Any = 0) -> Any:
    return x + y


def capture(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


def gated(gate: str) -> str:
    """Wait for a line in a FIFO."""
    with open(gate) as lines:
        return lines.readline().strip()


def set_up(status: str) -> None:
    global STATUS
    STATUS = status


def status() -> str:
    return STATUS


def fail_to_set_up() -> None:
    raise ValueError("error in initializer")


def die() -> None:
    os._exit(3)


def leave() -> None:
    sys.exit(7)


def note(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text + "\n")


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("can't be pickled")


class UnpicklesBadly:
    def __reduce__(self) -> Any:
        return (int, ("x",))


@pytest.fixture
def executor(env: RunEnv) -> Iterator[DagschedExecutor]:
    executor = DagschedExecutor(env=env)
    yield executor
    executor.terminate_workers()  # a test that fails may leave calls that wait for ever
    executor.shutdown()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


# --- submit, map ---------------------------------------------------------------------------------


def test_values_and_arguments(executor: DagschedExecutor) -> None:
    assert executor.submit(pow, 2, 8).result() == 256
    assert executor.submit(add, 2, y=8).result() == 10
    assert executor.submit(capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
    assert executor.submit(lambda: STATUS).result() == "not set up"
    with pytest.raises(TypeError):
        executor.submit(fn=capture, arg=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="must be callable"):
        executor.submit(3)  # type: ignore[arg-type]


def test_many_short_calls(executor: DagschedExecutor) -> None:
    submitted = [executor.submit(add, n, 1) for n in range(5_000)]
    assert [future.result() for future in submitted] == list(range(1, 5_001))
    mixed = [executor.submit((add, abs, str)[n % 3], n) for n in range(600)]
    assert [future.result() for future in mixed] == [
        str(n) if n % 3 == 2 else n for n in range(600)
    ]


def test_map_as_the_builtin(executor: DagschedExecutor) -> None:
    expected = list(map(pow, range(40), range(40)))
    assert list(executor.map(pow, range(40), range(40))) == expected
    for chunksize in (1, 3, 6, 40, 50):
        mapped = executor.map(pow, range(40), range(40), chunksize=chunksize)
        assert list(mapped) == expected
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(pow, range(4), range(4), chunksize=-1)


def test_rows_of_a_chunk_that_hold_no_futures_are_not_looked_into(
    executor: DagschedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    submitted = executor.submit

    def submit(fn: Any, *args: Any) -> Any:
        sizes.extend(len(arg) for arg in args if isinstance(arg, list))
        return submitted(fn, *args)

    monkeypatch.setattr(executor, "submit", submit)
    assert list(executor.map(add, range(100), chunksize=50)) == list(range(100))
    assert sizes == []
    one = submitted(add, 1)
    assert list(executor.map(add, [one, 2], [4, 5], chunksize=2)) == [5, 7]
    assert sizes == [2]


def test_map_raises_in_its_place(executor: DagschedExecutor) -> None:
    mapped = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(mapped), next(mapped)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(mapped)


def test_map_in_time(executor: DagschedExecutor, gate: Path) -> None:
    mapped = executor.map(lambda path: gated(path) if path else "", ["", str(gate)], timeout=3)
    assert next(mapped) == ""
    with pytest.raises(futures.TimeoutError):
        next(mapped)
    gate.write_text("\n")


def test_map_submits_without_being_iterated(executor: DagschedExecutor, tmp_path: Path) -> None:
    executor.map(note, [str(tmp_path / "notes")] * 3, "abc")
    executor.shutdown()
    assert sorted((tmp_path / "notes").read_text().split()) == ["a", "b", "c"]


def test_map_with_a_bounded_buffer(executor: DagschedExecutor) -> None:
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for n in range(100):
            taken.append(n)
            yield n

    mapped = executor.map(add, inputs(), buffersize=3)
    for given, value in enumerate(mapped):
        assert value == given
        assert len(taken) <= given + 4
    with pytest.raises(ValueError, match="buffersize"):
        executor.map(add, [1], buffersize=0)
    with pytest.raises(TypeError, match="buffersize"):
        executor.map(add, [1], buffersize="2")  # type: ignore[arg-type]


def test_map_keeps_no_result(executor: DagschedExecutor) -> None:
    for value in executor.map(lambda n: {n}, range(10)):
        seen = weakref.ref(value)
        del value
        gc.collect()
        assert seen() is None


# --- wait, as_completed, cancel ------------------------------------------------------------------


def test_the_first_that_is_completed(executor: DagschedExecutor, gate: Path) -> None:
    quick, slow = executor.submit(add, 21, 21), executor.submit(gated, str(gate))
    done, not_done = futures.wait([quick, slow], return_when=futures.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})
    bad = executor.submit(divmod, 1, 0)
    done, not_done = futures.wait([bad, slow], return_when=futures.FIRST_EXCEPTION)
    assert (done, not_done) == ({bad}, {slow})
    done, not_done = futures.wait([quick, slow], timeout=0.05)
    assert (done, not_done) == ({quick}, {slow})
    assert slow.running()
    gate.write_text("open\n")
    assert futures.wait([quick, slow, bad]).not_done == set()
    assert slow.result() == "open"


def test_as_completed(executor: DagschedExecutor, gate: Path) -> None:
    slow, quick = executor.submit(gated, str(gate)), executor.submit(add, 1)
    completed = futures.as_completed([slow, quick, slow])
    assert next(completed) is quick
    with pytest.raises(futures.TimeoutError):
        next(futures.as_completed([slow], timeout=0))
    gate.write_text("\n")
    assert list(completed) == [slow]


def test_cancel_before_it_runs(env: RunEnv, gate: Path, tmp_path: Path) -> None:
    with DagschedExecutor(1, env) as executor:
        running = executor.submit(gated, str(gate))
        notes = [executor.submit(note, str(tmp_path / "notes"), str(n)) for n in range(3)]
        _until(running.running)
        assert not running.cancel()
        assert notes[1].cancel()
        assert notes[1].cancelled()
        gate.write_text("\n")
    assert (tmp_path / "notes").read_text().split() == ["0", "2"]
    with pytest.raises(futures.CancelledError):
        notes[1].result()


def test_max_workers_bounds_what_runs_at_once(env: RunEnv, tmp_path: Path) -> None:
    def look(path: str) -> int:
        """How many are here now; leaves a name, for as long as another would need to come."""
        mine = Path(path) / str(os.getpid())
        mine.touch()
        time.sleep(0.02)
        count = len(os.listdir(path))
        mine.unlink()
        return count

    with DagschedExecutor(1, env) as executor:
        assert set(executor.map(look, [str(tmp_path)] * 6)) == {1}
    with DagschedExecutor(8, env) as executor:
        assert max(executor.map(look, [str(tmp_path)] * 20)) == 2
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            DagschedExecutor(number)
    with pytest.raises(TypeError):
        DagschedExecutor(1.5)  # type: ignore[arg-type]


def test_callbacks(executor: DagschedExecutor) -> None:
    told: list[Any] = []
    done = threading.Event()
    future = executor.submit(np.arange, 100_000)  # large: it is there when the callback is called
    future.add_done_callback(lambda done: told.append(done.result()))
    future.add_done_callback(lambda _: done.set())
    assert done.wait(20)
    assert len(told[0]) == 100_000
    future.add_done_callback(told.append)
    assert told[1] is future


# --- futures as arguments ------------------------------------------------------------------------


def test_futures_stand_for_their_values(executor: DagschedExecutor) -> None:
    one, two = executor.submit(add, 1), executor.submit(add, 2)
    total = executor.submit(sum, [one, two, executor.submit(add, one, two)])
    assert total.result() == 6
    nested = executor.submit(capture, {"x": (one, [two])}, y=total)
    assert nested.result() == (({"x": (1, [2])},), {"y": 6})
    foreign: futures.Future[int] = futures.Future()
    waits = executor.submit(add, foreign, 1)
    foreign.set_result(4)
    assert waits.result() == 5
    assert executor.submit(add, delayed(add)(1, 2), one).result() == 4


def test_a_long_chain(executor: DagschedExecutor) -> None:
    future = executor.submit(add, 0)
    future.result()
    for _ in range(2_000):
        future = executor.submit(add, future, 1)
    assert future.result() == 2_000


def test_a_large_value_stays_where_it_is(env: RunEnv, executor: DagschedExecutor) -> None:
    """Fetched by nobody but who asks for it; its tasks map it where it lies."""
    large = executor.submit(np.ones, 1_000_000)
    totals = [executor.submit(np.sum, large), executor.submit(lambda d: d["x"].sum(), {"x": large})]
    assert [future.result() for future in totals] == [1_000_000] * 2
    assert large._result.ref.nbytes > 8_000_000  # type: ignore[attr-defined]  # hence not fetched
    np.testing.assert_array_equal(large.result(), np.ones(1_000_000))
    del large, totals
    _until(lambda: not env.stats()["brokers"][0]["live_object_count"])


def test_what_needs_a_failed_future_fails_as_that(executor: DagschedExecutor, gate: Path) -> None:
    bad = executor.submit(divmod, 1, 0)
    assert type(executor.submit(add, bad).exception()) is ZeroDivisionError
    foreign: futures.Future[int] = futures.Future()
    waits = executor.submit(add, [foreign])
    foreign.cancel()
    assert type(waits.exception()) is futures.CancelledError


# --- errors --------------------------------------------------------------------------------------


def test_an_exception_is_the_functions_own(executor: DagschedExecutor) -> None:
    for _ in range(3):  # alone, and in a chunk, once the function is known to be short
        errors = [executor.submit(divmod, n, 0).exception() for n in range(20)]
        assert {type(error) for error in errors} == {ZeroDivisionError}
        assert all("raised by" in error.__notes__[0] for error in errors)  # type: ignore[union-attr]
    assert type(executor.submit(leave).exception()) is SystemExit


def test_what_cannot_travel_fails_alone(executor: DagschedExecutor) -> None:
    for _ in range(2):
        good = [executor.submit(add, n) for n in range(50)]
        bad_argument = executor.submit(add, Unpicklable())
        bad_result = executor.submit(Unpicklable)
        bad_at_the_other_end = executor.submit(add, UnpicklesBadly())
        comes_back_bad = executor.submit(UnpicklesBadly)
        assert type(bad_argument.exception()) is SerializationError
        assert type(bad_result.exception()) is SerializationError
        assert isinstance(bad_at_the_other_end.exception(), SerializationError | ValueError)
        assert type(comes_back_bad.exception()) is ValueError
        assert [future.result() for future in good] == list(range(50))


def test_a_call_that_kills_its_executor_again_and_again(env: RunEnv, gate: Path) -> None:
    executor = DagschedExecutor(env=env)
    waits = executor.submit(gated, str(gate))
    bad = executor.submit(die)
    more = [executor.submit(add, bad, n) for n in range(5)]
    with pytest.raises(BrokenProcessPool, match="is broken"):
        bad.result()
    assert isinstance(bad.exception().__cause__, ExecutorLost)  # type: ignore[union-attr]
    assert {type(future.exception()) for future in [waits, *more]} == {BrokenDagschedExecutor}
    with pytest.raises(futures.BrokenExecutor):
        executor.submit(add, 1)
    executor.shutdown()
    with DagschedExecutor(env=env) as other:  # the environment is as good as ever
        assert other.submit(add, 1).result() == 1


def test_a_process_that_is_killed_once_breaks_nothing(
    executor: DagschedExecutor, tmp_path: Path
) -> None:
    def die_once(path: str) -> str:
        with contextlib.suppress(FileExistsError):
            Path(path).mkdir()
            os.kill(os.getpid(), 9)
        return "done"

    assert executor.submit(die_once, str(tmp_path / "died")).result() == "done"


def test_the_end_of_the_environment_breaks_it(gate: Path) -> None:
    with RunEnv(executors=1, metastore="memory://") as env:
        executor = DagschedExecutor(env=env)
        running = [executor.submit(gated, str(gate)) for _ in range(5)]
        _until(running[0].running)
    assert {type(future.exception()) for future in running} == {BrokenDagschedExecutor}
    with pytest.raises(BrokenDagschedExecutor):
        executor.submit(add, 1)
    executor.shutdown()
    with pytest.raises(BrokenDagschedExecutor, match="closed"):
        DagschedExecutor(env=env).submit(add, 1)


# --- initializer ---------------------------------------------------------------------------------


def test_the_initializer_runs_once_in_each_process(env: RunEnv, tmp_path: Path) -> None:
    def set_all(path: str) -> None:
        set_up("set up")
        note(path, str(os.getpid()))

    path = str(tmp_path / "pids")
    with DagschedExecutor(env=env, initializer=set_all, initargs=(path,)) as executor:
        found = list(executor.map(lambda n: (n, status()), range(300)))
        assert found == [(n, "set up") for n in range(300)]
    pids = Path(path).read_text().split()
    assert 1 <= len(pids) == len(set(pids)) <= 2


def test_an_initializer_that_fails_breaks_it(env: RunEnv, caplog: pytest.LogCaptureFixture) -> None:
    with DagschedExecutor(env=env, initializer=fail_to_set_up) as executor:
        future = executor.submit(status)
        with pytest.raises(futures.BrokenExecutor, match="error in initializer"):
            future.result()
        with pytest.raises(futures.BrokenExecutor):
            executor.submit(status)
    assert any(record.name == "concurrent.futures" for record in caplog.records)
    with pytest.raises(TypeError):
        DagschedExecutor(initializer=3)  # type: ignore[arg-type]


# --- the end -------------------------------------------------------------------------------------


def test_after_shutdown_nothing_is_taken(env: RunEnv) -> None:
    executor = DagschedExecutor(env=env)
    submitted = [executor.submit(time.sleep, 0.01) for _ in range(20)]
    executor.shutdown()
    assert all(future.done() for future in submitted)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(pow, 2, 5)
    executor.shutdown()
    DagschedExecutor(env=env).shutdown()


def test_shutdown_without_waiting(env: RunEnv, gate: Path) -> None:
    executor = DagschedExecutor(env=env)
    future = executor.submit(gated, str(gate))
    executor.shutdown(wait=False)
    assert not future.done()
    gate.write_text("open\n")
    assert future.result() == "open"
    executor.shutdown()


def test_shutdown_cancels_what_was_not_handed_out(env: RunEnv) -> None:
    executor = DagschedExecutor(env=env)
    submitted = [executor.submit(time.sleep, 0.05) for _ in range(50)]
    executor.shutdown(cancel_futures=True)
    cancelled = [future for future in submitted if future.cancelled()]
    others = [future for future in submitted if not future.cancelled()]
    assert len(cancelled) > 20
    assert len(others) > 0
    assert all(future.done() and future.exception() is None for future in others)
    assert futures.wait(submitted, timeout=10).not_done == set()


def test_terminate_stops_what_runs(env: RunEnv) -> None:
    executor = DagschedExecutor(env=env)
    submitted = [executor.submit(time.sleep, 3600) for _ in range(10)]
    _until(submitted[0].running)
    executor.terminate_workers()
    assert futures.wait(submitted, timeout=20).not_done == set()
    executor.shutdown()


def test_an_executor_that_is_dropped_ends_its_thread(env: RunEnv) -> None:
    executor = DagschedExecutor(env=env)
    future = executor.submit(time.sleep, 0.05)
    thread = executor._pool._thread
    assert thread is not None
    del executor
    gc.collect()
    assert future.result() is None
    thread.join(20)
    assert not thread.is_alive()


def test_nothing_holds_what_a_call_was_given(executor: DagschedExecutor) -> None:
    class Held:
        def method(self) -> None:
            pass

    held, gone = Held(), threading.Event()
    seen = weakref.ref(held, lambda _: gone.set())
    executor.submit(held.method)
    del held
    assert gone.wait(20)
    assert seen() is None


SCRIPT = """
import sys, time
from dagsched.plugins.futures import DagschedExecutor
def write(path):
    time.sleep(0.5)
    with open(path, "w") as file:
        file.write("apple")
executor = DagschedExecutor(2)
executor.submit(write, sys.argv[1])
{last}
"""


@pytest.mark.parametrize("last", ["", "executor.shutdown(wait=False)", "del executor"])
def test_what_was_submitted_is_done_before_the_interpreter_ends(last: str, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(last=last), str(tmp_path / "out")],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (found.returncode, found.stderr) == (0, b"")
    assert (tmp_path / "out").read_text() == "apple"


# --- asyncio, environments -----------------------------------------------------------------------


def test_run_in_executor(executor: DagschedExecutor) -> None:
    async def main() -> tuple[int, list[int]]:
        loop = asyncio.get_running_loop()
        large = await loop.run_in_executor(executor, np.arange, 200_000)
        calls = [functools.partial(add, n, 1) for n in range(100)]
        values = await asyncio.gather(*(loop.run_in_executor(executor, call) for call in calls))
        return len(large), values

    assert asyncio.run(main()) == (200_000, list(range(1, 101)))


def test_the_environment_that_is_set(env: RunEnv) -> None:
    setrunenv(env)
    try:
        with DagschedExecutor() as executor:
            assert executor.submit(add, 1).result() == 1
        assert not env.closed
    finally:
        setrunenv(None)


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)  # futures and statistics tell nobody of such changes
