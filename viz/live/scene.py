"""All that is known of an environment at a moment, from its events and what nodes say. Pure.

Memory is bounded: by runs (50), by lanes and functions (a minute of cells), and by a few bytes a
task of runs that go on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dagsched.master import events
from dagsched.protocol.messages import ExecutorStats, NodeStats
from dagsched.viz.live.cells import (
    BIN_NS,
    BINS,
    BLOCK_TASKS,
    LANES_MAX,
    Cells,
    Int64,
    Spans,
    in_blocks,
)
from dagsched.viz.live.facts import RunFacts
from dagsched.viz.live.rates import Rates
from dagsched.viz.live.seen import SeenRun
from dagsched.viz.live.totals import Durations, Names
from dagsched.viz.live.troubles import Troubles

RUNS_MAX = 50
TICKS_MAX = 240

Noted = tuple[float, events.ClientEvent]
"""When an event came (monotonic seconds), and the event."""


@dataclass(slots=True)
class Counts:
    """What happened since the observer began, for metrics."""

    done: int = 0
    failed: int = 0
    retried: int = 0
    recomputed: int = 0
    stalled: int = 0
    runs_by_state: dict[str, int] = field(default_factory=dict)


class Scene:
    """An environment as it is seen.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self.origin_bin = int(now * 1e9) // BIN_NS - BINS
        self.names = Names()
        self.cells = Cells()
        self.rates = Rates(now)
        self.durations = Durations()
        self.troubles = Troubles()
        self.counts = Counts()
        self.runs: dict[int, SeenRun] = {}  # oldest first
        self.lanes: dict[tuple[int, int], int] = {}  # by node and executor
        self.stats: dict[int, NodeStats] = {}  # by node, as told last
        self.stats_at_s = 0.0  # when that was
        self._past: dict[int, NodeStats] = {}  # the same of nodes that tell no more
        self.counters: Mapping[str, int] = {}
        self.silences: Mapping[int, tuple[float, bool]] = {}
        self.failed_cells: list[tuple[int, int]] = []  # bin and lane of each
        self.tick = 0
        self._changed_bins: dict[int, int] = {}  # first bin that changed, by tick

    # --- runs -----------------------------------------------------------------------------------

    def begin(self, facts: RunFacts) -> SeenRun:
        """A run begins, or is known from now on."""
        run = self.runs.get(facts.number)
        if run is None:
            run = self.runs[facts.number] = SeenRun(facts, self.names)
            over = [one for one in self.runs.values() if one.is_over]
            for old in over[: max(0, len(self.runs) - RUNS_MAX)]:
                del self.runs[old.number]
        return run

    def shown(self, run_id: str | None) -> SeenRun | None:
        """The run with an id; without one the newest that goes on, else the newest."""
        if run_id is not None:
            return next((run for run in self.runs.values() if run.run_id == run_id), None)
        known = list(self.runs.values())
        going_on = [run for run in known if not run.is_over]
        newest = (going_on or known)[-1:]
        return newest[0] if newest else None

    # --- events ---------------------------------------------------------------------------------

    def take(self, noted: Iterable[Noted], now: float) -> None:
        """All events since the last time, in order."""
        self.tick += 1
        spans: list[Spans] = []
        for when, event in noted:
            match event:
                case events.TracesArrived():
                    if (run := self.runs.get(event.run)) is not None:
                        spans += self._traced(run, event)
                case events.RunProgressed():
                    if (run := self.runs.get(event.run)) is not None:
                        self._count(run.take_progress(event.done_count, event.total, when), when)
                case events.RunHappened():
                    if (run := self.runs.get(event.run)) is not None:
                        self._happened(run, event)
                case events.RunStalled():
                    self.counts.stalled += 1
                    if (run := self.runs.get(event.run)) is not None:
                        self.troubles.stalled(run, event)
                case events.RunEnded():
                    if (run := self.runs.get(event.run)) is not None:
                        self._ended(run, event, when)
                case _:
                    pass  # of values, references and questions: nothing to be seen
        self._take_spans(spans, now)

    def _traced(self, run: SeenRun, event: events.TracesArrived) -> list[Spans]:
        positions = np.frombuffer(event.positions, "<i4")
        stamps = np.frombuffer(event.stamps, "<i8")
        lane = self.lane(event.broker, event.executor)
        if lane is None or len(stamps) != len(positions) + 1:
            return []
        found = []
        for at in range(0, len(positions), BLOCK_TASKS):
            block = positions[at : at + BLOCK_TASKS]
            functions, starts, ends = run.take_traces(block, stamps[at : at + len(block) + 1])
            if len(functions):
                found.append(Spans(np.full(len(functions), lane), functions, starts, ends))
        return found

    def _take_spans(self, spans: Sequence[Spans], now: float) -> None:
        for block in in_blocks(spans):
            self.durations.add(block.functions, block.end_ns - block.start_ns)
            changed = self.cells.add(block, int(now * 1e9))
            if changed is not None:
                self._changed(changed)

    def _changed(self, first_bin: int) -> None:
        self._changed_bins[self.tick] = min(first_bin, self._changed_bins.get(self.tick, first_bin))
        for old in list(self._changed_bins)[:-TICKS_MAX]:
            del self._changed_bins[old]

    def changed_since(self, tick: int) -> int | None:
        """The first bin that has changed after a tick; None: none has."""
        return min((b for t, b in self._changed_bins.items() if t > tick), default=None)

    def _count(self, more: int, when: float) -> None:
        if more:
            self.counts.done += more
            self.rates.add(when, more)

    def _happened(self, run: SeenRun, event: events.RunHappened) -> None:
        if event.kind == "retried":
            run.retry_count += 1
            self.counts.retried += 1
        elif event.kind == "recomputed" and event.positions is not None:
            self.counts.recomputed += len(event.positions)
            run.take_recomputed(event.positions)
        self.troubles.happened(run, event)

    def _ended(self, run: SeenRun, event: events.RunEnded, when: float) -> None:
        failure = event.failure
        if event.state == "failed" and failure is not None:
            self.counts.failed += 1
            run.take_failed(failure.position)
            lane = self.lane(event.node or 0, failure.executor) if failure.executor else None
            if lane is not None:
                self.failed_cells = [*self.failed_cells[-999:], (int(when * 1e9) // BIN_NS, lane)]
                self._changed(self.failed_cells[-1][0])
        self.troubles.ended(run, event, when)
        known = sum(event.tally.get(f"{kind}_retries", 0)
                    for kind in ("exception", "crash", "timeout"))  # fmt: skip
        if known > run.retry_count:
            self.counts.retried += known - run.retry_count
            run.retry_count = known
        by_state = self.counts.runs_by_state
        by_state[event.state] = by_state.get(event.state, 0) + 1
        self._count(run.end(event.state, when, list(event.subtree_brokers)), when)

    # --- what nodes and the master say when they are asked ---------------------------------------

    def take_stats(
        self, stats: Sequence[NodeStats], counters: Mapping[str, int], when: float
    ) -> None:
        """What all nodes say of themselves, at `when` (monotonic seconds)."""
        self._past |= self.stats
        self.stats = {node.id: node for node in stats}
        self.stats_at_s = when
        self.counters = counters

    def sums_of(self, node: int, host: str) -> NodeStats:
        """What a node that was lost had done by the time it told for the last time.

        It holds nothing any more, but what was counted doesn't become less.
        """
        past = self.stats.get(node) or self._past.get(node) or NodeStats(node, host)
        return NodeStats(
            node, host, in_bytes=past.in_bytes, out_bytes=past.out_bytes,
            spill_count=past.spill_count,
            executors=[
                ExecutorStats(one.id, 0, task_count=one.task_count,
                              restart_count=one.restart_count)
                for one in past.executors
            ],
        )  # fmt: skip

    # --- executors ------------------------------------------------------------------------------

    def lane(self, node: int, executor: int) -> int | None:
        """The number of an executor's lane; None: there are too many."""
        lane = self.lanes.get((node, executor))
        if lane is None and len(self.lanes) < LANES_MAX:
            lane = self.lanes[node, executor] = len(self.lanes)
        return lane

    def is_over(self, run: int) -> bool:
        """Whether a run has ended; what an executor said of it is then true no more."""
        seen = self.runs.get(run)
        return seen is not None and seen.is_over

    def open_spans(self) -> Spans:
        """What executors were doing when they were asked last, as if it had ended then."""
        rows: list[tuple[int, int, int, int]] = []
        until_ns = int(self.stats_at_s * 1e9)
        for node in self.stats.values():
            for executor in node.executors:
                doing = executor.doing
                lane = self.lane(node.id, executor.id)
                if doing is None or lane is None or self.is_over(doing.run):
                    continue
                since_ns = int(doing.since_s * 1e9)
                if since_ns < until_ns:
                    rows.append((lane, self.function_number(doing.run, doing.position),
                                 since_ns, until_ns))  # fmt: skip
        columns: Int64 = np.array(rows, np.int64).reshape(-1, 4)
        return Spans(*columns.T)

    def function_number(self, run: int, position: int) -> int:
        """The number of the function of a run's task; of one that isn't known, of the others."""
        seen = self.runs.get(run)
        name = seen.facts.function(position) if seen is not None and seen.facts is not None else ""
        return int(self.names.numbers([name or "(returned graph)"])[0])
