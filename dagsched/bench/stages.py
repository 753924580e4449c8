"""Where the time of a task goes: the CPU time of each stage of a run of no-ops, a task.

Two kinds of measure, both CPU time, so that what else the machine does hardly matters:

- of a real run on real processes: what the kernel booked for the caller's thread, the master's and
  the journal's, and for the processes of broker, executors and store, from before `submit` until
  the value is back and the journal is flushed;
- of the parts of a stage, which can't be told apart from outside: the same code called by hand on
  the same graph in one process (`dagsched.bench.inline`).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagsched.bench.graphs import Measured, wide
from dagsched.bench.measuring import (
    BenchError,
    Spread,
    can_read_cpu,
    check_value,
    loop_cpu_s,
    process_cpu_s,
    thread_cpu_s,
)

if TYPE_CHECKING:
    from dagsched.run import Run
    from dagsched.runenv import RunEnv

TASKS = 100_000
FLUSH_TIMEOUT_S = 30.0
MASTER_THREAD, JOURNAL_THREAD = "dagsched-master", "dagsched-journal"


@dataclass(frozen=True, slots=True)
class Stage:
    """A line of the breakdown; lines of depth 1 are parts of the line of depth 0 above them."""

    name: str
    us: Spread  # of CPU, a task
    budget_us: float | None
    includes: str
    depth: int = 0
    source: str = "run"  # or "inline": called by hand in one process; or "sum"
    key: str = ""  # which no other line has, for programs


@dataclass(frozen=True, slots=True)
class Breakdown:
    """All stages of one graph."""

    graph: str
    task_count: int
    rounds: int
    stages: Sequence[Stage]
    wall_us: Spread  # seconds of the run, a task
    loop_us: Spread  # CPU of a call in a plain loop


LINES: Sequence[tuple[str, str, float | None, int, str, str]] = (
    # key, name, budget, depth, source, what it includes
    ("client", "client", 2.0, 0, "run",
     "the caller's thread: submit, waiting, the value taken"),
    ("walk", "walk", None, 1, "inline", "calls written down to compact graph (build_graph)"),
    ("cut", "cut", None, 1, "inline", "graph to subtrees (cut_graph)"),
    ("encode", "encode", None, 1, "inline",
     "functions and arguments pickled, arrays permuted (make_plan without the cut)"),
    ("scheduling", "master and broker", 0.5, 0, "sum", "the two lines below"),
    ("master", "master", None, 1, "run",
     "its thread in the client: places subtrees, their frames, messages, traces and events taken"),
    ("broker", "broker", None, 1, "run",
     "its process: cuts bundles, dispatches, books, messages, ZeroMQ's thread"),
    ("executors", "executors", 2.0, 0, "run", "their processes, all of it"),
    ("decode", "decode", None, 1, "inline", "batches, functions, arguments and inputs decoded"),
    ("call", "call", None, 1, "inline", "arguments resolved, the calls, results kept"),
    ("reply", "encode", None, 1, "inline", "what leaves the bundle pickled, the report"),
    ("journal", "journal", 0.1, 0, "run", "its thread in the client, and the store's server"),
    ("rest", "rest", None, 0, "run", "other threads of the client: ZeroMQ's, copying outputs"),
    ("total", "all", None, 0, "sum", "the lines that aren't parts of others"),
)  # fmt: skip


def measure_stages(task_count: int = TASKS, rounds: int = 5) -> Breakdown:
    """The breakdown of a wide graph of no-ops, on two executors and the embedded store.

    Args:
        task_count: no-ops; one more task takes their values.
        rounds: real runs, and runs in one process; medians are told.

    Raises:
        BenchError: this system doesn't tell the CPU time of threads, or a value is wrong.
    """
    if not can_read_cpu():
        raise BenchError(
            "the stages can't be told: this kernel has no /proc/PID/task/TID/schedstat (Linux "
            "with CONFIG_SCHED_INFO has)"
        )
    taken: dict[str, list[float]] = {}

    def book(values: Mapping[str, float]) -> None:
        for name, value in values.items():
            taken.setdefault(name, []).append(value)

    _measure_runs(task_count, rounds, book)
    _measure_inline(task_count, rounds, book)
    spreads = {name: Spread.of(values) for name, values in taken.items()}
    stages = [
        Stage(name, spreads[key], budget, text, depth, source, key)
        for key, name, budget, depth, source, text in LINES
    ]
    return Breakdown(
        f"wide, {task_count:,} no-ops and one reduction",
        task_count + 1,
        rounds,
        stages,
        spreads["wall"],
        spreads["loop"],
    )


def _measure_inline(
    task_count: int, rounds: int, book: Callable[[Mapping[str, float]], None]
) -> None:
    from dagsched.bench.inline import InlineCluster

    parts = ("walk", "cut", "encode", "decode", "call", "reply")
    with InlineCluster() as cluster:
        cluster.run(wide(task_count))
        for _ in range(rounds):
            told = cluster.run(wide(task_count)).per_task_us()
            told = {name: told[name] for name in parts}
            book({**told, "loop": loop_cpu_s(task_count) / task_count * 1e6})


def _measure_runs(
    task_count: int, rounds: int, book: Callable[[Mapping[str, float]], None]
) -> None:
    import psutil

    from dagsched.runenv import RunEnv

    known = {process.pid for process in psutil.Process().children(recursive=True)}
    known |= {thread.native_id or 0 for thread in threading.enumerate()}
    with RunEnv(executors=2) as env:
        for _ in range(2):
            run_of(env, wide(task_count))
        processes = _Processes(env, run_of(env, wide(10)), known)
        for _ in range(rounds):
            book(processes.measure(wide(task_count), task_count + 1))


def run_of(env: "RunEnv", made: Measured) -> "Run":
    """Run a graph to its end."""
    from dagsched.submission import submit

    run = submit(env, made[0])
    check_value(run.result(), made[1])
    return run


class _Processes:
    """The processes and threads of an environment, and their clocks.

    Args:
        env: with one node.
        run: one that is over; its statistics name the executors.
        known: ids of processes and threads that were there before the environment.
    """

    def __init__(self, env: "RunEnv", run: "Run", known: set[int]) -> None:
        import psutil

        self._env = env
        own = psutil.Process()
        self._pid = own.pid
        (node,) = run.record.node_stats
        self._executors = [executor.pid for executor in node.executors]
        self._broker = psutil.Process(self._executors[0]).ppid()
        ours = {process.pid for process in own.children(recursive=True)} - known
        brokers_own = {
            process.pid for process in psutil.Process(self._broker).children(recursive=True)
        }
        self._servers = sorted(ours - brokers_own - {self._broker})
        threads = {
            thread.name: thread.native_id
            for thread in threading.enumerate()
            if thread.native_id not in known
        }
        self._caller = threading.get_native_id()
        self._threads: dict[str, Any] = {
            name: threads[name] for name in (MASTER_THREAD, JOURNAL_THREAD)
        }

    def measure(self, made: Measured, task_count: int) -> dict[str, float]:
        """Run a graph; microseconds of CPU a task of everybody, and of the run itself."""
        before = self._clocks()
        start, cpu_s = time.perf_counter(), time.thread_time()
        run_of(self._env, made)
        caller_s = time.thread_time() - cpu_s
        wall_s = time.perf_counter() - start
        self._settle()
        after = self._clocks()
        spent = {name: (after[name] - before[name]) / task_count * 1e6 for name in after}
        spent["client"] = caller_s / task_count * 1e6
        spent["wall"] = wall_s / task_count * 1e6
        spent["scheduling"] = spent["master"] + spent["broker"]
        lines = ("client", "scheduling", "executors", "journal")
        spent["rest"] = spent["process"] - spent["client"] - spent["master"] - spent["writer"]
        spent["total"] = sum(spent[name] for name in lines) + spent["rest"]
        return spent

    def _settle(self) -> None:
        """Wait until what follows a run is over: the journal's records are in the store."""
        journal = self._env._cluster_in_use()._storing.journal
        if journal is None or not journal.flush(FLUSH_TIMEOUT_S):
            raise BenchError(f"the journal was not written within {FLUSH_TIMEOUT_S:.0f} s")

    def _clocks(self) -> dict[str, float]:
        """CPU seconds so far."""
        writer_s = thread_cpu_s(self._pid, self._threads[JOURNAL_THREAD])
        own_s = process_cpu_s(self._pid) - thread_cpu_s(self._pid, self._caller)
        return {
            "master": thread_cpu_s(self._pid, self._threads[MASTER_THREAD]),
            "writer": writer_s,
            "journal": writer_s + sum(map(process_cpu_s, self._servers)),
            "broker": process_cpu_s(self._broker),
            "executors": sum(map(process_cpu_s, self._executors)),
            # The caller's own thread runs, so its clock is that of `time.thread_time`.
            "process": own_s + time.thread_time(),
        }
