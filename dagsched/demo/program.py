"""The demo's main program: index a directory on a small cluster, check it, draw its schedule.

Responsible for the graph, the cluster of nodes on this machine, the check against a plain serial
run, and the figures; the command line prints them.
"""

import os
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dagsched.delayed import Delayed, delayed
from dagsched.demo.indexing import (
    Summary,
    find_sources,
    index_file,
    merge,
    rank,
    serial_summary,
)
from dagsched.errors import DagschedError

FAN_IN = 8
"""Indexes that one merge task takes."""

PICTURES = ("schedule.svg", "schedule.png")


class DemoError(DagschedError):
    """The demo can't do what it was asked for; the message says why."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo shall do."""

    sources: Sequence[str]  # paths of files
    nodes: int = 2
    executors_per_node: int = 2
    output: Path | None = None  # directory of the pictures; None: no pictures
    has_check: bool = True
    has_progress: bool = False


@dataclass(frozen=True, slots=True)
class ExecutorFigure:
    """What one executor did."""

    id: int
    node: int
    task_count: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What came of it."""

    summary: Summary
    task_count: int
    start_s: float  # from nothing to a cluster that runs its first tasks
    run_s: float  # from the graph to its value
    serial_s: float | None  # None: not checked
    is_equal: bool | None
    cpu_count: int
    executors: Sequence[ExecutorFigure]
    pictures: Sequence[Path]

    @property
    def speed_up(self) -> float | None:
        """How many times faster than the serial run."""
        return None if self.serial_s is None else self.serial_s / self.run_s


def default_directory() -> str:
    """The standard library of the Python that runs this."""
    return sysconfig.get_path("stdlib")


def demo_sources(directory: str | os.PathLike[str]) -> list[str]:
    """The files that the demo shall index.

    Raises:
        DemoError: `directory` is none, or has no Python files.
    """
    try:
        sources = find_sources(directory)
    except NotADirectoryError as error:
        raise DemoError(str(error)) from None
    if not sources:
        raise DemoError(f"{os.fspath(directory)} has no Python files (*.py) to index")
    return sources


def index_graph(sources: Sequence[str], fan_in: int = FAN_IN) -> Delayed:
    """The graph: a task a file, a tree of merges, and the ranking at its end.

    Args:
        sources: paths of files.
        fan_in: how many indexes a merge takes.
    """
    parts = [delayed(index_file)(path) for path in sources]
    while len(parts) > 1:
        parts = [
            delayed(merge)(*parts[first : first + fan_in]) if first + 1 < len(parts) else parts[-1]
            for first in range(0, len(parts), fan_in)
        ]
    return delayed(rank)(parts[0])


def run_demo(options: DemoOptions, say: Callable[[str], None] = lambda _: None) -> DemoReport:
    """Run the graph on a cluster of this machine, then once more serially, and compare.

    Args:
        options: what to do.
        say: is told, in a sentence, what begins.
    """
    from dagsched import addprocs, rmprocs

    size = options.executors_per_node
    ids = addprocs(options.nodes * (size + 1))
    try:
        report = _run_on_cluster(options, ids, say)
    finally:
        rmprocs(ids)
    if not options.has_check:
        return report
    say("Checking: the same in one process, without dagsched")
    before = time.perf_counter()
    summary = serial_summary(options.sources)
    serial_s = time.perf_counter() - before
    return _checked(report, summary, serial_s)


def _run_on_cluster(
    options: DemoOptions, ids: Sequence[int], say: Callable[[str], None]
) -> DemoReport:
    from dagsched import NodeEnv, RunEnv, rundag, submit, visualize
    from dagsched.progress import wait_for_run

    size = options.executors_per_node
    nodes = [
        NodeEnv(ids[first], "127.0.0.1", ids[first + 1 : first + 1 + size])
        for first in range(0, len(ids), size + 1)
    ]
    nodes_noun = "node" if options.nodes == 1 else "nodes"
    executors_noun = "executor" if size == 1 else "executors each"
    say(f"Starting {options.nodes} {nodes_noun} of {size} {executors_noun}")
    before = time.perf_counter()
    with RunEnv(nodes=nodes) as env:
        # A first small run waits for the nodes, so that the figures tell starting from running.
        rundag(env, [delayed(os.getpid)() for _ in ids], progress=False)
        started = time.perf_counter()
        say(f"Indexing {len(options.sources):,} files")
        run = submit(env, index_graph(options.sources))
        wait_for_run(run, options.has_progress)
        summary = run.result()
        ended = time.perf_counter()
        trace = run.trace()
        executors = [
            ExecutorFigure(
                executor,
                node.brokerid,
                int((trace.executor == executor).sum()),
                float(trace.duration_ns[trace.executor == executor].sum()) / 1e9,
            )
            for node in nodes
            for executor in node.executorids
        ]
        pictures = []
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            drawing = visualize(run, title=f"Index of {len(options.sources):,} Python files")
            pictures = [drawing.save(options.output / name) for name in PICTURES]
    return DemoReport(
        summary,
        trace.task_count,
        started - before,
        ended - started,
        None,
        None,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        executors,
        pictures,
    )


def _checked(report: DemoReport, summary: Summary, serial_s: float) -> DemoReport:
    """The report with what the serial run gave."""
    return DemoReport(
        report.summary,
        report.task_count,
        report.start_s,
        report.run_s,
        serial_s,
        summary == report.summary,
        report.cpu_count,
        report.executors,
        report.pictures,
    )
