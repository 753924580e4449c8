"""Helpers of chaos tests: the watchdog, executions counted across processes, processes found.

A chaos test compares a completed run's value with a serial oracle's: `value_of` waits with the
deadline of all chaos tests, and says what stands still before it fails.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from dagsched import Run, RunEnv

GRACE_S = 20.0
SHOWN_TASKS_MAX = 20
SHOWN_LINES_MAX = 50
_LOOK_S = 0.01


# --- the watchdog ---------------------------------------------------------------------------------


def deadline_s(serial_s: float) -> float:
    """How long a run may take that takes so long when its tasks are called one by one."""
    return 3 * serial_s + GRACE_S


def value_of(env: RunEnv, run: Run, serial_s: float = 0.0) -> Any:
    """The run's value (or its error), in time; else what stands still is printed, and it fails.

    Args:
        env: in which it runs.
        run: to wait for.
        serial_s: how long its tasks take when they are called one by one.
    """
    ended(env, run, serial_s)
    return run.result()


def error_of(env: RunEnv, run: Run, serial_s: float = 0.0) -> BaseException:
    """The error of a run that has to fail, in time; see `value_of`."""
    ended(env, run, serial_s)
    error = run.exception()
    assert error is not None, f"{run!r} was to fail"
    return error


def ended(env: RunEnv, run: Run, serial_s: float = 0.0) -> None:
    """Wait for a run's end, whatever it is; see `value_of`."""
    limit_s = deadline_s(serial_s)
    try:
        run.exception(limit_s)
    except TimeoutError:
        if run.done():
            return  # with an error that is a TimeoutError itself
        print(stall_report(env, run), file=sys.stderr)
        pytest.fail(f"{run!r} has not ended within {limit_s:.0f} s; see the report above")


def stall_report(env: RunEnv, run: Run) -> str:
    """Everything that is known of a run that stands still; its executors are ended to get it."""
    parts = [f"=== {run!r} stands still", f"nodes: {env.nodes}"]
    parts += [f"event {event}" for event in run.record.events[-SHOWN_LINES_MAX:]]
    for key in _unfinished(run)[:SHOWN_TASKS_MAX]:
        parts.append(f"--- {key}: {_guarded(lambda key=key: run.explain(key))}")  # type: ignore[misc]
    parts.append(f"stats: {_guarded(env.stats)}")
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        parts.append(f"--- thread {names.get(ident)} of the client")
        parts += traceback.format_stack(frame)
    directory = directory_of(env)
    for pid in broker_pids(env):
        parts.append(f"--- below broker {pid}: {_below(pid)}")
        for child in executor_pids(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGABRT)  # faulthandler prints its stacks to the log
    time.sleep(0.5)  # nobody tells when they have; the test has failed anyway
    for path in sorted(directory.glob("*.log")):
        parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-50:]]
    return "\n".join(parts)


def _unfinished(run: Run) -> list[str]:
    done = set(_guarded(lambda: {event.key for event in run.trace().tasks}) or ())
    keys = [run.graph.key(number) for number in range(run.graph.task_count)]
    return [key for key in keys if key not in done]


def _guarded(ask: Callable[[], Any]) -> Any:
    """What a function says; its failure is of no use to a report of another one."""
    try:
        return ask()
    except Exception as error:  # noqa: BLE001 - whatever it is, the report goes on
        return f"<{type(error).__name__}: {error}>"


def _below(pid: int) -> list[str]:
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return [f"{each.pid} {each.status()} {each.cpu_times()[:2]}" for each in processes]
    except psutil.Error:
        return ["gone"]


# --- processes ------------------------------------------------------------------------------------


def directory_of(env: RunEnv) -> Path:
    """The run directory: sockets, logs, files of the store."""
    return env._cluster._names.directory  # type: ignore[union-attr]


def broker_pids(env: RunEnv) -> list[int]:
    """Living brokers that this environment has started, in that order."""
    started = env._cluster._brokers._started  # type: ignore[union-attr]
    return [each.process.pid for each in started if each.process.poll() is None]


def executor_pids(broker_pid: int) -> list[int]:
    """Executors of a broker: its children but the first, which is the zygote."""
    try:
        children = psutil.Process(broker_pid).children()
    except psutil.NoSuchProcess:
        return []
    by_age = sorted(children, key=lambda process: (process.create_time(), process.pid))
    return [process.pid for process in by_age[1:]]


def zygote_pid(broker_pid: int) -> int:
    """The process from which a broker's executors are forked."""
    children = psutil.Process(broker_pid).children()
    return int(min(children, key=lambda process: (process.create_time(), process.pid)).pid)


def server_pid(env: RunEnv) -> int:
    """The embedded store's server."""
    directory = str(directory_of(env))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "valkey" in process.name() and directory in " ".join(process.cmdline()):
                return int(process.pid)
    raise AssertionError(f"no server of a store in {directory}")


def is_alive(pid: int) -> bool:
    """Whether there is such a process that isn't just waiting to be reaped."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "") -> Any:
    """Look until something is true that nobody tells: of other processes, of files.

    Returns:
        what the condition gave.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        time.sleep(_LOOK_S)


def restart_counts(env: RunEnv) -> dict[int, int]:
    """How often each executor was started again."""
    return {row["id"]: row["restart_count"] for row in env.stats()["executors"]}


def assert_whole(env: RunEnv, executor_count: int = 2) -> None:
    """The pool has all its executors, and each of them works."""
    pids = until(
        lambda: [p for broker in broker_pids(env) for p in executor_pids(broker)],
        what="executors",
    )
    until(
        lambda: len([p for b in broker_pids(env) for p in executor_pids(b)]) == executor_count,
        what=f"{executor_count} executors instead of {pids}",
    )
    from dagsched import delayed, rundag

    assert rundag(env, [delayed(_square)(n) for n in range(50)]) == [n * n for n in range(50)]


def _square(n: int) -> int:
    return n * n


# --- what tasks tell ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """Counts executions, whatever becomes of the process: one short line each, appended."""

    path: str

    def mark(self, name: object) -> int:
        """In a task: it runs now. Returns how often it did, this time among them."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{name} {os.getpid()}\n".encode())
        finally:
            os.close(fd)
        return self.counts()[str(name)]

    def counts(self) -> Counter[str]:
        """Executions by name."""
        return Counter(name for name, _ in self.lines())

    def pids(self, name: object) -> list[int]:
        """The processes that ran a task of that name, in order."""
        return [pid for marked, pid in self.lines() if marked == str(name)]

    def lines(self) -> Iterator[tuple[str, int]]:
        """Name and process of each execution, in order."""
        path = Path(self.path)
        for line in path.read_text().splitlines() if path.exists() else ():
            name, _, pid = line.rpartition(" ")
            yield name, int(pid)

    def wait_for(self, name: object, count: int = 1, timeout_s: float = 20.0) -> list[int]:
        """In the test: until a task of that name has begun so often; the processes."""
        until(lambda: len(self.pids(name)) >= count, timeout_s, f"{count} executions of {name}")
        return self.pids(name)


class Gate:
    """Holds tasks until the test lets them go: a FIFO that nobody has opened for writing."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)  # so that a pass waits for bytes

    def __reduce__(self) -> Any:
        return _gate_in_task, (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)

    def open(self, count: int = 1) -> None:
        """In the test: let so many pass."""
        os.write(self._fd, b"g" * count)


@dataclass(frozen=True)
class _GateInTask:
    path: str

    def wait(self, timeout_s: float = 60.0) -> None:
        """In a task: until the test lets one pass."""
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            ready, _, _ = select.select([fd], [], [], timeout_s)
            if not ready or os.read(fd, 1) != b"g":
                raise TimeoutError(f"nobody opened the gate {self.path}")
        finally:
            os.close(fd)


def _gate_in_task(path: str) -> _GateInTask:
    return _GateInTask(path)
