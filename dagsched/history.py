"""A graph and its run without functions, arguments and values: what pictures and files need.

Responsible for gathering it from a graph or a run, as far as it is known at that time; how it is
kept in files is in `historyfile`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dagsched.plan import Int32, Int64
from dagsched.protocol.asking import failure_in_words
from dagsched.tables import input_bytes
from dagsched.trace import TaskNames, Trace, TraceBuilder, TraceEvent

if TYPE_CHECKING:
    from dagsched.graph import TaskGraph
    from dagsched.master.events import RunHappened, RunStalled
    from dagsched.pastrun import PastRun
    from dagsched.run import Run


@dataclass(frozen=True, slots=True)
class History:
    """What is known of a graph, and of its run if it had one.

    `dagsched.viz.load` gives one, `visualize` takes it. The dependencies of task i are
    ``deps[indptr[i]:indptr[i + 1]]``, all below i.
    """

    indptr: Int64
    deps: Int32  # between tasks only
    trace: Trace
    names: TaskNames
    run_id: str = ""  # empty: it was not run
    state: str = ""
    submitted_ns: int = -1  # of the clock of the trace; -1: not known
    ended_ns: int = -1
    stats: Mapping[str, Any] = field(default_factory=dict)
    """``brokers`` and ``executors`` as `Run.stats` has them, and ``run``: counts of retries and
    losses; empty while the run goes on."""

    @classmethod
    def of_graph(cls, graph: "TaskGraph") -> "History":
        """Of a graph that was not run."""
        names = graph.task_names()
        trace = replace(TraceBuilder().build(np.arange(len(graph))), names=names)
        return cls(*_between_tasks(graph), trace, names)

    @classmethod
    def of_run(cls, run: "Run | PastRun") -> "History":
        """Of a run, as far as is known now."""
        record = run.record
        trace = trace_of(run)
        assert trace.names is not None
        return cls(
            *_between_tasks(run.graph),
            trace,
            trace.names,
            run.run_id,
            run.state,
            int(record.submitted_s * 1e9),
            -1 if record.ended_s is None else int(record.ended_s * 1e9),
            _stats(run),
        )

    @property
    def task_count(self) -> int:
        """Tasks of the graph."""
        return len(self.indptr) - 1

    @property
    def has_run(self) -> bool:
        """Whether it is a run's, and not only a graph's."""
        return bool(self.run_id)

    @property
    def hosts(self) -> dict[int, tuple[str, Sequence[int]]]:
        """Host and executors of the run's nodes by id, as far as statistics tell."""
        return {
            row["id"]: (
                row["host"],
                [one["id"] for one in self.stats["executors"] if one["node"] == row["id"]],
            )
            for row in self.stats.get("brokers", ())
        }

    def __repr__(self) -> str:
        ran = f"run {self.run_id}: {self.state}, " if self.has_run else ""
        return f"<History of {ran}{self.task_count:,} tasks, {len(self.deps):,} edges>"


def trace_of(run: "Run | PastRun") -> Trace:
    """When and where each task of a run was executed, what they are called, and what happened."""
    order = run.shape.order
    count = len(order)
    failure = run.failure
    trace = run.traces.build(
        order,
        failed=[failure.position] if failure is not None and 0 <= failure.position < count else [],
        subtree_starts=run.shape.subtree_starts,
    )
    sizes = run.traces.sizes(order)
    for position, size in list(run.record.output_bytes.items()):
        if position < count:
            sizes[order[position]] = size
    indptr, deps = _between_tasks(run.graph)
    bundle, bundles = run.traces.bundles(order)
    events = [_event(run, event) for event in list(run.record.events)]
    if failure is not None and run.record.ended_s is not None:
        task = int(order[failure.position]) if 0 <= failure.position < count else -1
        place = run.record.failed_node or -1, failure.executor or -1
        words = failure_in_words(failure)
        ended_ns = int(run.record.ended_s * 1e9)
        events.append(TraceEvent(ended_ns, "failed", *place, task, failure.attempt, text=words))
    return replace(
        trace,
        names=run.graph.task_names(),
        size_bytes=sizes,
        in_bytes=np.where(trace.ran, input_bytes(indptr, deps, sizes), -1),
        bundle=bundle,
        events=events,
        repeats=run.traces.repeats(order),
        bundles=bundles,
        transfers=run.traces.transfers(order),
        spills=run.traces.spills(order),
    )


def _event(run: "Run | PastRun", event: "RunHappened | RunStalled") -> TraceEvent:
    """Something that happened, by graph ids and without what only the master needs."""
    from dagsched.master.events import RunStalled
    from dagsched.story import stall_text

    time_ns = int(event.time_s * 1e9)
    if isinstance(event, RunStalled):
        return TraceEvent(time_ns, "stalled", text=stall_text(run, event))
    has_task = 0 <= event.position < len(run.shape.order)
    count = len(event.placements)
    if event.positions is not None:
        count = len(event.positions)
    return TraceEvent(
        time_ns,
        event.kind,
        event.node or -1,
        event.executor or -1,
        int(run.shape.order[event.position]) if has_task else -1,
        event.attempt or -1,
        count,
        event.text,
    )


def _stats(run: "Run | PastRun") -> dict[str, Any]:
    from dagsched.stats import TALLY_FIELDS, broker_rows, executor_rows, retry_fields

    nodes, tally = run.record.node_stats, run.record.tally
    if not nodes:
        return {}
    counts = {name: tally.get(kind, 0) for name, kind in TALLY_FIELDS.items()}
    return {
        "run": {**retry_fields(nodes, tally), **counts},
        "brokers": broker_rows(nodes),
        "executors": executor_rows(nodes),
    }


def _between_tasks(graph: "TaskGraph") -> tuple[Int64, Int32]:
    """The edges of a graph without those from its sources."""
    count = len(graph)
    if not graph.sources:
        return graph.indptr, graph.deps
    between = graph.deps < count
    before = np.zeros(len(between) + 1, np.int64)
    np.cumsum(between, out=before[1:])
    return before[graph.indptr], graph.deps[between]
