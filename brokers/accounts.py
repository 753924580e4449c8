"""What a node did: counts for statistics, measured durations, and the check of all counts. Pure."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dagsched.brokers import bundling, dispatch, paces
from dagsched.brokers.state import (
    BrokerRun,
    Bundle,
    BundleState,
    Counters,
    Executor,
    ExecutorCounters,
)
from dagsched.brokers.watched import LookAround, add_counters, no_machine, watched_stats
from dagsched.errors import InternalError
from dagsched.ids import BundleNo, ProcessId
from dagsched.protocol.messages import AskStats, BundleDone, ExecutorStats, NodeStats, Progress

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore

PROGRESS_S = 0.1
PROGRESS_RATE_MAX = 500.0  # a second, at the master, however many nodes there are
NEW_WEIGHT = 0.5  # of a new measurement in the moving average: durations may change at once


class Accounts:
    """Books and checks numbers; part of `BrokerCore`."""

    def __init__(self, core: "BrokerCore") -> None:
        self.core = core
        self.stale_batches: Callable[[], int] = lambda: 0
        """The shell's: batches of brokers that had been removed, since this node began."""
        self.look_around: LookAround = no_machine  # the shell's
        self.is_progress_due = False  # the core's timer is set
        self._past = Counters()  # of runs that are over

    def bundle_ended(
        self, executor: Executor, bundle: Bundle, message: BundleDone, task_count: int
    ) -> None:
        """Count a bundle, and learn how long its functions take."""
        run = bundle.run
        counters = run.counters
        mine = counters.executors.setdefault(executor.id, ExecutorCounters())
        mine.task_count += task_count + message.retry_count
        mine.bundle_count += 1
        mine.read_bytes += message.read_bytes
        mine.written_bytes += message.written_bytes
        counters.retry_count += message.retry_count
        paces.note(executor, run, message.seconds)
        for index, call_count, seconds in message.seconds:
            mine.busy_s += seconds
            calls = counters.seconds.setdefault(index, [0, 0.0])
            calls[0] += call_count
            calls[1] += seconds
            if not call_count or index >= len(run.seconds):
                continue
            mean, old = seconds / call_count, float(run.seconds[index])
            if old == old:  # not nan: measured before
                mean = NEW_WEIGHT * mean + (1 - NEW_WEIGHT) * old
            run.seconds[index] = mean
            if index in run.functions:
                self.core.estimates[run.functions[index][0].digest] = mean

    def tell_progress(self, now: float) -> float | None:
        """Tell the master how far runs are, if that has changed, and not too often.

        Returns:
            When to be called again at the latest, if that is new.
        """
        every_s = max(PROGRESS_S, len(self.core.exchange.peers) / PROGRESS_RATE_MAX)
        executors = self.core.executors.values()
        idle_count = sum(1 for e in executors if e.pid and not e.queue and not e.draining)
        if self.core.pressure.held:
            idle_count = 0  # they wait for memory, and could do nothing for others
        told = False
        for run in self.core.runs.values():
            if run.trace.has_many_rows:
                self.core.ledger.flush_traces(run)
            is_later = run.done_count != run.told_count
            news = (idle_count, False) if idle_count else (0, _has_spare(run))
            if not is_later and (news == run.told_news or not run.is_unfinished()):
                continue
            # That somebody is idle is no news when a run has just begun.
            last_s = run.told_at_s if is_later else max(run.told_at_s, run.started_s)
            if now - last_s >= every_s:
                seconds = self.take_seconds(run)
                self.core.tell_master(Progress(run.number, run.done_count, *news, seconds))
                if not self.core.is_orphan:
                    self.core.actions.to_master += run.trace.take_rows(run.number)
                run.told_count, run.told_at_s, run.told_news = run.done_count, now, news
            told = True
        if not told or self.is_progress_due:
            return None
        self.is_progress_due = True
        return now + every_s

    def take_seconds(self, run: BrokerRun) -> list[tuple[int, int, float]]:
        """Function index, calls and seconds since this was last asked."""
        taken, run.counters.seconds = run.counters.seconds, {}
        return [(index, int(calls), seconds) for index, (calls, seconds) in sorted(taken.items())]

    def answer(self, question: AskStats, now: float) -> NodeStats:
        """What the node holds now; if somebody watches, also what it does and has done so far."""
        if not question.is_watched:
            counters = Counters(stale_count=self.stale_batches())
            return self.node_stats_of(counters, 0.0)
        for run in self.core.runs.values():
            self.core.ledger.flush_traces(run)
        return watched_stats(self.core, now)

    def closing_stats(self, run: BrokerRun | None, now: float) -> NodeStats:
        """Of a run that ends here; None: it isn't known here."""
        if run is None:
            return self.node_stats_of(Counters(stale_count=self.stale_batches()), 0.0)
        add_counters(self._past, run.counters)
        return self.node_stats_of(run.counters, now - run.started_s)

    def sums(self) -> Counters:
        """What was done in all runs since the node began."""
        sums = Counters(stale_count=self.stale_batches())
        for counters in (self._past, *(run.counters for run in self.core.runs.values())):
            add_counters(sums, counters)
        return sums

    def node_stats_of(self, counters: Counters, duration_s: float) -> NodeStats:
        """These counts, of so long a time, with what the node holds now."""
        executors = []
        for executor in self.core.executors.values():
            mine = counters.executors.get(executor.id, ExecutorCounters())
            executors.append(
                ExecutorStats(
                    executor.id, executor.pid, mine.task_count, mine.bundle_count, mine.busy_s,
                    max(0.0, duration_s - mine.busy_s), mine.read_bytes, mine.written_bytes,
                    executor.restart_count, executor.rss_peak_bytes,
                )
            )  # fmt: skip
        table = self.core.table
        return NodeStats(
            id=self.core.broker,
            host=self.core.host,
            received_count=counters.received_count,
            in_bytes=counters.in_bytes,
            out_bytes=counters.out_bytes,
            live_object_count=table.live_count,
            live_bytes=table.live_bytes,
            peak_bytes=table.peak_bytes,
            spilled_bytes=table.spilled_bytes,
            bundle_count=counters.bundle_count,
            retry_count=counters.retry_count,
            stale_count=counters.stale_count,
            crash_retry_count=counters.crash_retry_count,
            timeout_retry_count=counters.timeout_retry_count,
            withheld_count=counters.withheld_count,
            shared_bytes=table.shared_bytes,
            shared_peak_bytes=table.shared_peak_bytes,
            spill_count=self.core.pressure.spill_count,
            executors=executors,
        )

    # --- check ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Re-derive every count from scratch.

        Raises:
            InternalError: one is wrong; says which.
        """
        for run in self.core.runs.values():
            if not run.cancelled:
                self._check_uses(run)
                self._check_waits(run)
                self._check_counts(run)
        self._check_lanes()
        self.core.table.check()

    def _check_lanes(self) -> None:
        """Who has a lane of a gang has it in its queue, and the other way round."""
        queued: dict[BundleNo, set[ProcessId]] = {}
        for executor in self.core.executors.values():
            for bundle in executor.queue:
                if bundle.lanes:
                    queued.setdefault(bundle.number, set()).add(executor.id)
                    if bundle.at.keys() - self.core.executors.keys() or (
                        executor.id not in bundle.at
                    ):
                        raise InternalError(
                            f"executor {executor.id} has a lane of bundle {bundle.number}, which "
                            f"is at {sorted(bundle.at)}"
                        )
        for run in self.core.runs.values():
            for bundle in run.bundles.values():
                if bundle.at.keys() != queued.get(bundle.number, set()):
                    raise InternalError(
                        f"lanes of bundle {bundle.number} are at {sorted(bundle.at)}, but in the "
                        f"queues of {sorted(queued.get(bundle.number, ()))}"
                    )

    def _check_uses(self, run: BrokerRun) -> None:
        left = np.zeros(run.total, np.int64)
        for subtree in run.subtrees.values():
            if len(subtree.indptr):
                uncut = subtree.deps[subtree.indptr[subtree.cursor - subtree.lo] :]
                left += np.bincount(uncut, minlength=run.total)
        for bundle in run.bundles.values():
            _, deps = bundling.gather(bundle.subtree, bundle.positions)
            outside = deps[run.bundle_of[deps] != bundle.number]
            left += np.bincount(outside, minlength=run.total)
        wrong = np.flatnonzero(left != run.left)
        if len(wrong):
            at = int(wrong[0])
            raise InternalError(
                f"run {run.number}, position {at}: {run.left[at]} uses booked, {left[at]} left"
            )

    def _check_waits(self, run: BrokerRun) -> None:
        waits: dict[int, int] = {}
        for bundle in run.bundles.values():
            for dependent in bundle.dependents:
                waits[dependent.number] = waits.get(dependent.number, 0) + 1
        for bundle, positions in run.waiters.items():
            waits[bundle.number] = waits.get(bundle.number, 0) + len(positions)
        lined_up = {entry[2] for entry in run.ready}
        for bundle in run.bundles.values():
            is_waiting = bundle.state is BundleState.WAITING
            if is_waiting and waits.get(bundle.number, 0) != bundle.waiting_count:
                raise InternalError(
                    f"bundle {bundle.number} waits for {bundle.waiting_count} things, but "
                    f"{waits.get(bundle.number, 0)} know of it"
                )
            if is_waiting != bool(bundle.waiting_count):
                raise InternalError(f"bundle {bundle.number}: {bundle.state.name} is wrong")
            if bundle.state is BundleState.READY and bundle.number not in lined_up:
                raise InternalError(f"bundle {bundle.number} is ready, but not lined up")

    def _check_counts(self, run: BrokerRun) -> None:
        for subtree in run.subtrees.values():
            mine = [bundle for bundle in run.bundles.values() if bundle.subtree is subtree]
            undispatched = [b for b in mine if b.state is not BundleState.DISPATCHED]
            if len(undispatched) != subtree.open_bundle_count:
                raise InternalError(
                    f"subtree {subtree.number}: {subtree.open_bundle_count} bundles to dispatch "
                    f"booked, {len(undispatched)} found"
                )
            unmade = run.bundle_of[subtree.lo : subtree.hi] == bundling.RETURNED_GRAPH
            unmade &= run.object_of[subtree.lo : subtree.hi] < 0
            remaining = len(subtree.uncut()) + sum(len(b.positions) for b in mine)
            if subtree.remaining_count < remaining or (
                subtree.remaining_count > remaining + int(unmade.sum())
            ):
                raise InternalError(
                    f"subtree {subtree.number}: {subtree.remaining_count} tasks remain, "
                    f"{remaining} found"
                )


def _has_spare(run: BrokerRun) -> bool:
    """Whether tasks are ready that no executor is free for."""
    return not run.cancelled and dispatch.peek_ready(run) is not None
