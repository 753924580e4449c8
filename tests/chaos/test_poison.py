"""Hostile tasks: each harms nobody but itself, its error says what it was, the pool is whole after.

What a task can do to its process is done here by real tasks in real executors; beside each of them
runs an ordinary run, which must end right.
"""

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dagsched import RunEnv, delayed, submit
from dagsched.config import Config
from dagsched.errors import (
    DagschedError,
    ExecutorLost,
    SerializationError,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
)
from tests.chaos import harness
from tests.chaos.harness import Tally

SLOW = pytest.mark.slow

# --- what the tests do around each poison ---------------------------------------------------------


def square(n: int) -> int:
    return n * n


def poisoned(
    env: RunEnv, function: Callable[..., Any], *args: Any, serial_s: float = 0.0, **options: Any
) -> BaseException:
    """The error of a run with that task and others, beside a run of ordinary tasks; all checked."""
    ordinary = submit(env, [delayed(square)(n) for n in range(200)])
    run = submit(env, [delayed(function, **options)(*args), delayed(square)(3)])
    error = harness.error_of(env, run, serial_s)
    assert harness.value_of(env, ordinary) == [n * n for n in range(200)]
    harness.assert_whole(env)
    return error


def lost(env: RunEnv, function: Callable[..., Any], *args: Any, **options: Any) -> ExecutorLost:
    """The error of a task that takes executors down, after exactly as many as it may."""
    limit = options.get("crash_limit") or Config().crash_limit
    error = poisoned(env, function, *args, **options)
    assert isinstance(error, ExecutorLost), repr(error)
    assert sum(harness.restart_counts(env).values()) == limit
    assert function.__name__ in str(error)
    assert error.rss_bytes > 1 << 20
    assert f"{error.rss_bytes} bytes" in str(error)
    return error


# --- dies -----------------------------------------------------------------------------------------


def segfault() -> None:
    print("before the fault", flush=True)
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code: int) -> None:
    print(f"leaving with {code}", flush=True)
    os._exit(code)


def test_a_segmentation_fault(env: RunEnv) -> None:
    error = lost(env, segfault)
    assert (error.signal, error.exit_code) == (signal.SIGSEGV, None)
    assert "SIGSEGV" in str(error)
    assert "before the fault" in error.log_tail
    assert "in segfault" in error.log_tail, "faulthandler says where"


@SLOW
def test_an_abort(env: RunEnv) -> None:
    assert lost(env, abort, crash_limit=1).signal == signal.SIGABRT


def test_a_kill(env: RunEnv) -> None:
    error = lost(env, kill_itself, crash_limit=2)
    assert error.signal == signal.SIGKILL
    assert "from outside" in str(error)
    assert "in attempt" in str(error)


@pytest.mark.parametrize("code", [0, pytest.param(1, marks=SLOW)])
def test_an_exit_past_the_interpreter(env: RunEnv, code: int) -> None:
    error = lost(env, leave, code, crash_limit=1)
    assert (error.exit_code, error.signal) == (code, None)
    assert f"leaving with {code}" in error.log_tail


def test_crashes_and_exceptions_have_budgets_of_their_own(env: RunEnv, tally: Tally) -> None:
    def unlucky() -> str:
        nth = tally.mark("unlucky")
        if nth in (1, 3):
            raise ValueError(f"call {nth}")
        if nth in (2, 4):
            os._exit(1)
        return f"call {nth}"

    run = submit(env, delayed(unlucky, retries=3, crash_limit=3)())
    assert harness.value_of(env, run) == "call 5"
    assert tally.counts()["unlucky"] == 5


# --- harms its process ----------------------------------------------------------------------------


def close_all() -> None:
    os.closerange(3, 1024)


def recurse(n: int) -> int:
    return recurse(n + 1)


def recurse_in_c() -> None:
    # Each level of these nested tuples takes the C stack of the comparison, not Python's.
    sys.setrecursionlimit(10**9)
    inner: Any = ()
    for _ in range(10**6):
        inner = (inner,)
    other: Any = ()
    for _ in range(10**6):
        other = (other,)
    print(inner == other)
    ctypes.string_at(0)


def test_all_descriptors_closed(env: RunEnv) -> None:
    error = lost(env, close_all, crash_limit=1)
    # Whichever comes first: it finds out itself, or its broker does.
    assert "closed its connection" in str(error) or "Bad file descriptor" in error.log_tail


def test_recursion(env: RunEnv) -> None:
    assert isinstance(poisoned(env, recurse, 0), RecursionError)
    assert lost(env, recurse_in_c, crash_limit=1).signal == signal.SIGSEGV


def change_everything(directory: str) -> None:
    import locale

    os.chdir(directory)
    os.umask(0o177)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 3600)
    locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C")
    for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_STACK):
        resource.setrlimit(which, (64, resource.getrlimit(which)[1]))
    os.environ["DAGSCHED_PROBE"] = "x"
    os.environ.pop("PATH")
    sys.setrecursionlimit(77)
    sys.stdout = None  # type: ignore[assignment]
    os.nice(0)


def process_state() -> dict[str, Any]:
    import locale

    umask = os.umask(0)
    os.umask(umask)
    return {
        "pid": os.getpid(),
        "directory": str(Path.cwd()),
        "umask": umask,
        "handlers": {n: repr(signal.getsignal(n)) for n in signal.valid_signals()},
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "locale": locale.setlocale(locale.LC_ALL),
        "limits": {n: resource.getrlimit(n) for n in range(16)},
        "environment": dict(os.environ),
        "recursion": sys.getrecursionlimit(),
        "stdout": sys.stdout is not None,
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
    }


def test_a_clean_state_after_a_task_that_changes_all_of_it(tmp_path: Any) -> None:
    with RunEnv(executors=1, metastore="memory://") as env:
        before = harness.value_of(env, submit(env, delayed(process_state)()))
        harness.value_of(env, submit(env, delayed(change_everything)(str(tmp_path))))
        after = harness.value_of(env, submit(env, delayed(process_state)()))
        assert after == before


def never_ends() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pattern = ctypes.PyDLL(None).sleep  # holds the interpreter's lock, unlike CDLL
    while True:
        pattern(1000)


def test_a_task_that_holds_the_lock_for_ever(env: RunEnv) -> None:
    env.wait_for_nodes(timeout=20)
    started = time.monotonic()
    error = poisoned(env, never_ends, timeout=0.5)
    assert isinstance(error, TaskTimedOut)
    assert time.monotonic() - started < 0.5 + 2
    run = submit(env, delayed(never_ends)())
    harness.until(lambda: run.record.started_s is not None, what="start")
    started = time.monotonic()
    run.cancel()
    assert isinstance(harness.error_of(env, run), TaskCancelled)
    harness.assert_whole(env)
    assert time.monotonic() - started < 2


# --- leaves things behind -------------------------------------------------------------------------


def fork_away(tally: Tally) -> int:
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                tally.mark("daemon")
                time.sleep(600)
            os._exit(0)
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    threading.Thread(target=time.sleep, args=(600,)).start()
    return os.getpid()


def test_daemons_and_threads_do_not_outlive_their_executor(tally: Tally) -> None:
    with RunEnv(executors=1, metastore="memory://") as env:
        # They hold standard output open, and nobody waits for that.
        run = submit(env, delayed(fork_away)(tally))
        pid = harness.value_of(env, run)
        daemons = tally.wait_for("daemon", 3)
        assert all(map(harness.is_alive, daemons))
        harness.assert_whole(env, 1)
        os.kill(pid, signal.SIGKILL)
        harness.until(lambda: not any(map(harness.is_alive, daemons)), 3, "end of the strays")
        harness.assert_whole(env, 1)


def fork_many(tally: Tally, count: int) -> None:
    for _ in range(count):
        if os.fork() == 0:
            if os.getpid() % 2:
                os.setsid()
            tally.mark("child")
            time.sleep(600)
    time.sleep(600)


def test_many_forked_children_go_with_their_task(env: RunEnv, tally: Tally) -> None:
    error = poisoned(env, fork_many, tally, 100, timeout=3)
    assert isinstance(error, TaskTimedOut)
    children = tally.pids("child")
    assert len(children) == 100
    harness.until(lambda: not any(map(harness.is_alive, children)), 3, "end of the children")


# --- prints ---------------------------------------------------------------------------------------


def print_much(megabytes: int) -> str:
    line = b"x" * (1 << 20)
    for _ in range(megabytes):
        os.write(1, line)
    os.write(1, bytes(range(256)) * 40)
    print("the end", flush=True)
    return "printed"


@pytest.mark.parametrize("megabytes", [16, pytest.param(1000, marks=SLOW)])
def test_a_flood_of_output(env: RunEnv, megabytes: int) -> None:
    # In one line, with binary data.
    tasks = [delayed(print_much)(megabytes), delayed(square)(2)]
    assert harness.value_of(env, submit(env, tasks), megabytes / 100) == ["printed", 4]
    directory = harness.directory_of(env)
    logs = [path for path in directory.iterdir() if path.name.startswith("executor-")]
    assert sum(path.stat().st_size for path in logs) <= 2 * env.config.log_bytes_max
    broker = psutil.Process(harness.broker_pids(env)[0])
    assert broker.memory_info().rss < 400 << 20


# --- raises ---------------------------------------------------------------------------------------


class NoPrint(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")

    __repr__ = __str__


class NoPickle(Exception):
    def __init__(self) -> None:
        super().__init__("not to be pickled")
        self.lock = threading.Lock()


def raise_it(make: Callable[[], BaseException]) -> None:
    raise make()


def circular() -> BaseException:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: KeyboardInterrupt("k"), "KeyboardInterrupt"),
        (lambda: SystemExit(3), "SystemExit: 3"),
        (SystemExit, "SystemExit"),
        (GeneratorExit, "GeneratorExit"),
        (lambda: asyncio.CancelledError("c"), "CancelledError"),
        (lambda: BaseException("b"), "BaseException: b"),
    ],
)
def test_what_is_no_exception(env: RunEnv, make: Callable[[], BaseException], name: str) -> None:
    error = poisoned(env, raise_it, make)
    assert isinstance(error, TaskFailed)
    assert name in str(error)
    assert type(error.__cause__) is type(make())
    assert getattr(error.__cause__, "code", None) == getattr(make(), "code", None)
    assert set(harness.restart_counts(env).values()) == {0}


def test_the_end_of_an_iteration(env: RunEnv) -> None:
    error = poisoned(env, raise_it, lambda: StopIteration(5))
    assert isinstance(error, StopIteration)
    assert error.value == 5

    async def awaited() -> object:
        return await submit(env, delayed(raise_it)(lambda: StopIteration(5)))

    with pytest.raises(TaskFailed, match="StopIteration") as info:
        asyncio.run(awaited())
    assert isinstance(info.value.__cause__, StopIteration)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (NoPrint, "NoPrint"),
        (NoPickle, "NoPickle"),
        pytest.param(lambda: ValueError(bytearray(1 << 30)), "ValueError", marks=SLOW),
        (lambda: ValueError("x" * (50 << 20)), "ValueError"),
        pytest.param(lambda: ValueError(np.zeros(10**8, np.uint8)), "ValueError", marks=SLOW),
    ],
)
def test_an_exception_that_can_not_travel(
    env: RunEnv, make: Callable[[], BaseException], name: str
) -> None:
    error = poisoned(env, raise_it, make)
    assert isinstance(error, TaskFailed)
    text = f"{error} {error.__cause__}"
    assert name in text
    assert "in raise_it" in text, "where it was raised"
    assert len(text) < 200_000


@SLOW
def test_a_cycle_of_causes(env: RunEnv) -> None:
    error = poisoned(env, raise_it, circular)
    assert isinstance(error, ValueError)
    assert "two" in str(error.__cause__)


# --- gives what can't be had ----------------------------------------------------------------------


class Hostile:
    """Does something where it is unpickled."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __reduce__(self) -> Any:
        return self.act, ()


def give(act: Callable[[], Any]) -> Hostile:
    return Hostile(act)


def take(value: object, tally: Tally) -> str:
    tally.mark("consumer")
    return type(value).__name__


def divide() -> float:
    return 1 / 0


class KillsInReduce:
    def __reduce__(self) -> Any:
        os._exit(3)


def make_killers(n: int) -> object:
    return [n] if n != 7 else [KillsInReduce()]


@pytest.mark.parametrize(
    "make",
    [
        type("Wrong", (), {"__reduce__": lambda self: 5}),
        pytest.param(threading.Lock, marks=SLOW),
        pytest.param(lambda: (n for n in range(3)), marks=SLOW),
        pytest.param(lambda: open(os.devnull), marks=SLOW),  # noqa: SIM115
        pytest.param(lambda: __import__("socket").socket(), marks=SLOW),
    ],
)
def test_a_result_that_can_not_travel(env: RunEnv, make: Callable[[], Any]) -> None:
    def result() -> object:
        return {"deep": [1, make()]}

    error = poisoned(env, result)
    assert isinstance(error, SerializationError), repr(error)
    assert error.path.endswith("['deep'][1]"), error.path
    assert "result" in str(error)
    assert set(harness.restart_counts(env).values()) == {0}


@SLOW
def test_arguments_and_closures_that_can_not_travel(env: RunEnv) -> None:
    lock = threading.Lock()

    def closure() -> bool:
        return lock.locked()

    with pytest.raises(SerializationError) as info:
        submit(env, delayed(square)(lock))
    assert info.value.path == "args[0]"
    with pytest.raises(SerializationError, match="closure"):
        submit(env, delayed(closure)())
    harness.assert_whole(env)


def test_a_value_whose_unpickling_fails_is_the_consumers(env: RunEnv, tally: Tally) -> None:
    # A call with a timeout is a bundle of its own: what it takes has been pickled.
    consumer = delayed(take, name="consumer", timeout=60)
    run = submit(env, consumer(delayed(give)(divide), tally))
    error = harness.error_of(env, run)
    assert "consumer" in str(error)
    assert "ZeroDivisionError" in f"{error}{error.__cause__}"
    assert not tally.counts()
    harness.assert_whole(env)


def test_a_value_whose_unpickling_kills_is_the_consumers(env: RunEnv, tally: Tally) -> None:
    consumer = delayed(take, name="consumer", timeout=60, crash_limit=2)
    run = submit(env, consumer(delayed(give)(lambda: os._exit(4)), tally))
    error = harness.error_of(env, run)
    assert isinstance(error, ExecutorLost)
    assert error.exit_code == 4
    assert "consumer" in str(error)
    assert sum(harness.restart_counts(env).values()) == 2
    harness.assert_whole(env)


def test_a_value_whose_unpickling_hangs_is_the_consumers(env: RunEnv, tally: Tally) -> None:
    consumer = delayed(take, name="consumer", timeout=0.5)
    run = submit(env, consumer(delayed(give)(lambda: time.sleep(600)), tally))
    error = harness.error_of(env, run)
    assert isinstance(error, TaskTimedOut)
    assert "consumer" in str(error)
    harness.assert_whole(env)


@SLOW
def test_an_unpickler_that_hangs_in_the_client_harms_no_process_of_ours(env: RunEnv) -> None:
    run = submit(env, delayed(give)(divide))
    with pytest.raises(ZeroDivisionError):
        harness.value_of(env, run)
    harness.assert_whole(env)


def test_a_result_that_kills_while_it_is_pickled(env: RunEnv) -> None:
    # Its bundle has others, and their results are pickled together with it.
    run = submit(env, [delayed(make_killers)(n) for n in range(20)])
    error = harness.error_of(env, run)
    assert isinstance(error, ExecutorLost), repr(error)
    assert error.exit_code == 3
    assert run.graph.key(7) in str(error)
    assert sum(harness.restart_counts(env).values()) == 3
    harness.assert_whole(env)


class UnpicklableFunction:
    """A function that kills where it is unpickled."""

    def __call__(self, n: int) -> int:
        return n

    def __reduce__(self) -> Any:
        return os._exit, (5,)


def test_a_function_that_kills_while_it_is_unpickled(env: RunEnv) -> None:
    tasks = [delayed(square)(n) for n in range(20)]
    run = submit(env, [*tasks, delayed(UnpicklableFunction(), name="killer")(1)])
    error = harness.error_of(env, run)
    assert isinstance(error, ExecutorLost), repr(error)
    assert error.exit_code == 5
    assert "killer" in str(error)
    harness.assert_whole(env)


def test_a_large_constant_is_stored_once_and_warned_of(env: RunEnv) -> None:
    constant = np.arange(12_500_000)  # 100 MB
    with pytest.warns(UserWarning, match=r"100 MB .*used by task"):
        run = submit(env, [delayed(_item)(constant, n) for n in range(1000)])
    assert harness.value_of(env, run) == list(range(1000))
    (row,) = env.stats()["brokers"]
    assert row["peak_bytes"] < 210e6
    harness.assert_whole(env)


def _item(values: Any, n: int) -> int:
    return int(values[n])


def test_only_the_guilty_run_fails(env: RunEnv, tally: Tally) -> None:
    runs = [submit(env, [delayed(square)(n) for n in range(500)]) for _ in range(5)]
    bad = submit(env, [delayed(leave)(7), *[delayed(square)(n) for n in range(500)]])
    runs += [submit(env, [delayed(square)(n) for n in range(500)]) for _ in range(5)]
    assert isinstance(harness.error_of(env, bad), DagschedError)
    for run in runs:
        assert harness.value_of(env, run) == [n * n for n in range(500)]
    assert sum(harness.restart_counts(env).values()) == 3
    harness.assert_whole(env)
