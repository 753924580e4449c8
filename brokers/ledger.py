"""What became of bundles: results booked, dependents woken, the blame for a lost executor. Pure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from dagsched.brokers import bundling, dispatch
from dagsched.brokers.state import (
    BrokerRun,
    Bundle,
    BundleState,
    Executor,
    Int32,
    Loss,
    Report,
    Subtree,
)
from dagsched.ids import Position, ProcessId
from dagsched.partition.arrays import distinct
from dagsched.protocol.asking import TaskRetried, shortened
from dagsched.protocol.messages import (
    EXPORTED,
    TRACE_GAP,
    AskWhere,
    ExitInfo,
    Failure,
    Frame,
    ObjectInfo,
    Parcel,
    SubtreeDone,
    TaskExpanded,
    TaskFailed,
)

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore


class Ledger:
    """Books what executors report; part of `BrokerCore`, which owns the state."""

    def __init__(self, core: "BrokerCore") -> None:
        self.core = core
        self.bundle_count = 0  # of all runs, ever: numbers of bundles

    def settle(self, bundle: Bundle, reports: Sequence[Report]) -> None:
        """Book a bundle's results, then what it did not do, then who waited for it.

        Args:
            bundle: that has ended.
            reports: of its executor, or of those that did the lanes of a gang; a lane without one
                was not begun.
        """
        run, subtree = bundle.run, bundle.subtree
        failures = [failure for report in reports for failure in report.message.failures]
        if failures and self._is_tried_again(bundle, reports):
            return
        deferred = self._deferred(bundle, reports)
        if len(deferred):
            _, deps = bundling.gather(subtree, deferred, is_rising=False)
            bundling.add_uses(run, deps)  # the bundle's uses are booked off as a whole below
        expanded = [position for r in reports for position, _ in r.message.expanded]
        run.bundle_of[expanded] = bundling.RETURNED_GRAPH
        entered = self._enter_objects(bundle, reports)
        if bundle.lanes and len(deferred):
            deferred = self._with_unmade(bundle, deferred)
        for report in reports:
            self.count_bundle(report, bundle)
        ended_count = len(bundle.positions) - len(deferred) - len(expanded)
        subtree.remaining_count -= ended_count - len(failures)
        run.done_count += ended_count - len(failures)
        for report in reports:
            self.tell_retries(run, report)
            self.tell_failures(bundle, report)
        if failures:
            self.stop_run(run)  # the master will say the same to the other nodes
        for report in reports:
            self._tell_expanded(bundle, report)
        successors: list[Bundle] = []
        if len(deferred) and not run.cancelled:
            rest = deferred
            if bundle.lanes:
                successors, rest = self.core.gangs.rest_of(bundle, deferred, reports)
            if len(rest):
                parts = self.core.reclaimer.parts_of(bundle, rest)
                successors = successors + self.rebundle(run, subtree, parts)
        self._wake_dependents(bundle, successors, expanded)
        self.retire(bundle)
        self.core.table.consume(run, bundle.imports, bundle.import_counts)
        if len(deferred) or bundle.lanes:  # else all that was exported is needed
            for first in entered:
                stored = self.core.table.find(run, run.number, first)
                if stored is not None:
                    self.core.table.maybe_drop(run, stored)
        if not subtree.remaining_count:
            self.subtree_ended(run, subtree)

    @staticmethod
    def _deferred(bundle: Bundle, reports: Sequence[Report]) -> Int32:
        """What a bundle did not do, rising."""
        deferred = np.array([p for r in reports for p in r.message.deferred], np.int32)
        if len(reports) < len(bundle.lanes):
            ended = [report.positions() for report in reports]
            other = [p for r in reports for p, _ in r.message.expanded]
            other += [failure.position for r in reports for failure in r.message.failures]
            told = np.concatenate([deferred, *ended, np.array(other, np.int32)])
            deferred = np.concatenate([deferred, np.setdiff1d(bundle.positions, told)])
        return np.sort(deferred)

    def _enter_objects(self, bundle: Bundle, reports: Sequence[Report]) -> list[int]:
        """Take in what a bundle has made; the first position of each object.

        What a lane has by handing over comes last, and only if its maker has not told it as well.
        """
        run, subtree = bundle.run, bundle.subtree
        own: list[tuple[Report, ObjectInfo, bytes | None]] = []
        foreign: list[tuple[Report, ObjectInfo, bytes | None]] = []
        for report in reports:
            inline = iter(report.frames[2:])
            mine = set(report.message.deferred).union(
                report.positions().tolist() if bundle.lanes else ()
            )
            for info in report.message.objects:
                frame = bytes(next(inline)) if info.location is None else None
                is_own = not bundle.lanes or info.first in mine
                (own if is_own else foreign).append((report, info, frame))
        entered = []
        for report, info, frame in own + foreign:
            executor = report.executor
            if bundle.lanes and run.object_of[info.first] >= 0:
                self.core.table.discard([info], executor.id, executor.incarnation)
                continue
            stored = self.core.table.add(
                run, info, frame, broker=self.core.broker,
                owner=executor.id if info.location is not None else None,
                incarnation=executor.incarnation,
            )  # fmt: skip
            if info.location is not None:
                local = info.first - subtree.lo
                run.large_bytes[int(subtree.function_of[local])] = info.location.size_bytes
            self.core.exchange.available(run, stored)
            entered.append(info.first)
        return entered

    def _with_unmade(self, bundle: Bundle, deferred: Int32) -> Int32:
        """What a gang did not do, with what has to be done again for it.

        A value may have been on its way from lane to lane when both of them ended.
        """
        run, subtree = bundle.run, bundle.subtree
        rest = set(deferred.tolist())
        again: list[int] = []
        for position in reversed(bundle.positions.tolist()):
            if position not in rest:
                continue
            begin, end = subtree.indptr[position - subtree.lo : position - subtree.lo + 2]
            for dep in subtree.deps[begin:end].tolist():
                if run.bundle_of[dep] == bundle.number and run.object_of[dep] < 0:
                    if dep not in rest:
                        rest.add(dep)
                        again.append(dep)
        if again:
            _, deps = bundling.gather(subtree, np.array(again, np.int32), is_rising=False)
            bundling.add_uses(run, deps)
        return np.array(sorted(rest), np.int32)

    def tell_retries(self, run: BrokerRun, report: Report) -> None:
        """Tell the master what was tried again inside a bundle."""
        for retried in report.message.retries:
            self.core.tell_master(replace(retried, run=run.number))

    def tell_failures(self, bundle: Bundle, report: Report) -> None:
        """Tell the master what failed in a bundle."""
        objects = report.message.objects
        frames = iter(report.frames[2 + sum(info.location is None for info in objects) :])
        for failure in report.message.failures:
            has_frame = failure.kind in ("raised", "not_exception")
            told = TaskFailed(bundle.run.number, bundle.subtree.epoch, failure)
            self.tell_failure(bundle.run, Parcel(told, [next(frames)] if has_frame else []))

    def _tell_expanded(self, bundle: Bundle, report: Report) -> None:
        """Tell the master which tasks returned graphs, and those."""
        run, message = bundle.run, report.message
        count = sum(frame_count for _, frame_count in message.expanded)
        frames = iter(report.frames[len(report.frames) - count :])
        for position, frame_count in message.expanded:
            plan: list[Frame] = [bytes(next(frames)) for _ in range(frame_count)]
            run.expansions[position] = plan
            self.core.tell_master(TaskExpanded(run.number, bundle.subtree.epoch, position), plan)

    def tell_failure(self, run: BrokerRun, parcel: Parcel) -> None:
        """Tell the master; the first one is kept, for a master that comes later."""
        if not run.failures:
            run.failures.append(parcel)
        self.core.tell_parcel(parcel)

    def _is_tried_again(self, bundle: Bundle, reports: Sequence[Report]) -> bool:
        """Whether a bundle had no room for a result, and runs again: that task alone on the node.

        By then others have ended, and what only they needed is free. Nothing of the bundle counts.
        """
        run = bundle.run
        failures = [failure for report in reports for failure in report.message.failures]
        lacking = [f.position for f in failures if f.kind == "memory"]
        if not lacking or not run.hungry.isdisjoint(lacking):
            return False
        for executor, message in ((report.executor, report.message) for report in reports):
            self.core.table.discard(message.objects, executor.id, executor.incarnation)
        run.hungry.update(map(Position, lacking))
        run.counters.retry_count += len(lacking)
        positions = bundle.positions
        borders = np.flatnonzero(np.isin(positions, lacking))
        self.break_up(bundle, np.split(positions, np.unique([*borders, *(borders + 1)])))
        return True

    def _wake_dependents(
        self, bundle: Bundle, successors: Sequence[Bundle], expanded: Sequence[int]
    ) -> None:
        """The bundle has ended: who waited for it waits for its successors, or is ready."""
        for dependent in bundle.dependents:
            for successor in successors:
                successor.dependents.append(dependent)
            for position in expanded:
                bundle.run.waiters.add(position, dependent)
            dependent.waiting_count += len(successors) + len(expanded)
            self.wait_over(dependent)
        bundle.dependents = []

    def wait_over(self, bundle: Bundle, count: int = 1) -> None:
        """So many of the things that a bundle waits for are there."""
        if bundle.state is not BundleState.WAITING:
            return
        bundle.waiting_count -= count
        if not bundle.waiting_count and not self._waits_for_lost(bundle):
            bundle.move(BundleState.READY)
            dispatch.push_ready(bundle.run, bundle)

    def _waits_for_lost(self, bundle: Bundle) -> bool:
        """Whether inputs were made here and are gone: inside a bundle cut before they were wanted.

        So it is where a part of a node that was lost goes to one that computed its inputs again
        for others. The master has them made once more.
        """
        run = bundle.run
        gone = bundle.imports[run.object_of[bundle.imports] < 0].tolist()
        gone = [
            p for p in gone if p not in run.sized and run.bundle_of[p] != bundling.RETURNED_GRAPH
        ]
        for position in gone:
            run.waiters.add(position, bundle)
            bundle.waiting_count += 1
        self._ask_for(run, gone)
        return bool(gone)

    def _ask_for(self, run: BrokerRun, gone: Sequence[int]) -> None:
        """The master finds out where values are that won't come by themselves, or has them made."""
        for position in gone:
            run.lacking.add(position)
            self.core.tell_master(AskWhere(run.number, position))

    def rebundle(
        self, run: BrokerRun, subtree: Subtree, parts: Sequence[np.ndarray]
    ) -> list[Bundle]:
        """Make bundles of tasks that were in a bundle and did not end; returns those with tasks."""
        parts = bundling.split_solo_positions(subtree, [part for part in parts if len(part)])
        first_number = self.bundle_count + 1
        self.bundle_count += len(parts)
        bundles = bundling.make_bundles(run, subtree, parts, self.core.config, first_number)
        self.enter(run, bundles)
        return bundles

    def enter(self, run: BrokerRun, bundles: Sequence[Bundle]) -> None:
        """New bundles: what is ready may be dispatched, what can't come by itself is asked for."""
        for bundle in bundles:
            if bundle.state is BundleState.READY:
                dispatch.push_ready(run, bundle)
        gone, run.gone = run.gone, []
        self._ask_for(run, gone)

    def stop_run(self, run: BrokerRun) -> None:
        """Start nothing more of the run; what executors have of it is not waited for."""
        if run.cancelled:
            return
        run.cancelled = True
        for bundle in list(run.bundles.values()):
            if bundle.state is not BundleState.DISPATCHED:
                self.retire(bundle)
        run.ready.clear()
        run.waiters.clear()

    def pin_inputs(self, run: BrokerRun, executor: Executor) -> None:
        """The run ends: keep what its bundles in the executor may still read."""
        for bundle in executor.queue:
            if bundle.run is run:
                for index in distinct(run.object_of[bundle.imports]).tolist():
                    stored = run.objects[index] if index >= 0 else None
                    if stored is not None:
                        self.core.table.pin(stored)
                        bundle.pins.append(stored)

    def retire(self, bundle: Bundle) -> None:
        """The bundle's life is over."""
        if bundle.state in (BundleState.WAITING, BundleState.READY):
            bundle.subtree.open_bundle_count -= 1
        bundle.move(BundleState.DONE)
        for stored in bundle.pins:
            self.core.table.unpin(stored)
        bundle.pins = []
        bundle.run.bundles.pop(bundle.number, None)

    def count_bundle(self, report: Report, bundle: Bundle) -> None:
        """Book numbers and times of a bundle, whatever became of its run."""
        run, executor, frames = bundle.run, report.executor, report.frames
        task_count = len(frames[0]) // 4
        if bundle.lanes:
            task_count -= report.positions().tolist().count(TRACE_GAP)
        self.core.accounts.bundle_ended(executor, bundle, report.message, task_count)
        if len(frames[0]):
            run.trace.bundle_ended(report, bundle)
            if run.trace.is_due:
                self.flush_traces(run)

    def flush_traces(self, run: BrokerRun) -> None:
        """Send the master what was noted so far."""
        if self.core.is_orphan:
            run.trace.trim()
        else:
            self.core.actions.to_master += run.trace.take(run.number)

    def subtree_ended(self, run: BrokerRun, subtree: Subtree) -> None:
        """All its tasks have ended: say so, with what others may want of it."""
        local = np.flatnonzero(subtree.flags & EXPORTED)
        objects = run.object_of[local + subtree.lo]
        held = [run.objects[i] for i in distinct(objects[objects >= 0]).tolist()]
        infos = sorted((s.info.first, s.info.size_bytes) for s in held if s is not None)
        firsts = np.array([first for first, _ in infos], np.int32)
        sizes = np.array([size for _, size in infos], np.int64)
        if run.fetchers:
            asked = run.fetchers.within(subtree.lo, subtree.hi)
            if subtree.members is not None:
                asked = asked[subtree.members[asked - subtree.lo]]
            self.core.exchange.will_not_be_made(run, asked[run.object_of[asked] < 0])
        self.flush_traces(run)
        self.core.exchange.flush_outputs(run)
        self.core.tell_master(
            SubtreeDone(
                run.number, subtree.epoch, subtree.number, subtree.attempt,
                self.core.accounts.take_seconds(run),
            ),
            (firsts.tobytes(), sizes.tobytes()),
        )  # fmt: skip
        # Its tables are not needed any more; its number says that it was here.
        del run.subtrees[subtree.number]
        run.subtrees[subtree.number] = bundling.hollow(subtree)

    def task_redirected(self, run: BrokerRun, position: int) -> None:
        """A task that had returned a graph has its value: it has ended."""
        subtree = run.owner_of(position)
        if subtree is not None:
            run.done_count += 1
            subtree.remaining_count -= 1
            if not subtree.remaining_count:
                self.subtree_ended(run, subtree)

    def _tell_retried(
        self, bundle: Bundle, position: int, kind: str, executor: int, exit_info: ExitInfo
    ) -> None:
        """Count a retry, and let the master write it into the run's story."""
        counters = bundle.run.counters
        counters.retry_count += 1
        if kind == "timeout":
            counters.timeout_retry_count += 1
        else:
            kind = "crash"
            counters.crash_retry_count += 1
        end = shortened(exit_info)
        self.core.tell_master(
            TaskRetried(bundle.run.number, position, bundle.attempt, kind, executor, end=end)
        )

    def requeue(self, bundle: Bundle, *, is_new_attempt: bool = True) -> None:
        """Dispatch again what an executor had; nobody is charged.

        Args:
            bundle: that it had.
            is_new_attempt: whether it may have begun it.
        """
        bundle.attempt += is_new_attempt
        bundle.is_recalled = bundle.is_stopped = False
        bundle.subtree.open_bundle_count += 1
        bundle.move(BundleState.READY)
        dispatch.push_ready(bundle.run, bundle)

    def taken_back(self, executor_id: int, number: int, *, is_left_out: bool) -> None:
        """Whether an executor won't begin a bundle that it was sent: then others may have it.

        Who seems to have begun it may have left it out in this very moment, and says so then.
        """
        executor = self.core.executors.get(ProcessId(executor_id))
        if executor is None:
            return
        if is_left_out:
            self._remove(executor, number)
            return
        for bundle in executor.queue[1:]:
            if bundle.number == number:
                bundle.is_recalled = False
                executor.doubted.add(number)

    def left_out(self, executor: Executor, number: int) -> None:
        """An executor has left a bundle out; mostly that is known."""
        if number in executor.doubted:
            self._remove(executor, number)

    def _remove(self, executor: Executor, number: int) -> None:
        """Take a bundle that an executor has left out off its queue, for others."""
        executor.doubted.discard(number)
        bundle = next((bundle for bundle in executor.queue if bundle.number == number), None)
        if bundle is None:
            return
        executor.queue.remove(bundle)
        if executor.queue:
            # Nothing more behind what it runs: it would be taken back as well.
            executor.is_late, executor.seen_head = True, executor.queue[0].number
        if bundle.lanes:
            self.core.gangs.left_out(executor, bundle)
        elif bundle.run.cancelled:
            self.retire(bundle)
        else:
            self.requeue(bundle, is_new_attempt=False)

    def blame(self, bundle: Bundle, loss: Loss) -> None:
        """Charge the task that ran; it is tried again alone, the others without it.

        A position of -1 says that none did: the executor was unpickling, or packing results, of
        several. Each of them is tried alone then, and which it was shows when it does it again.
        """
        run, position, exit_info = bundle.run, loss.position, loss.exit_info
        if position < 0 and len(bundle.positions) > 1:
            if loss.was_killed:
                self.requeue(bundle)
                return
            mine = bundle.positions if loss.lane is None else loss.lane.positions
            run.suspects.update(map(Position, mine.tolist()))
            self.break_up(
                bundle, [bundle.positions[i : i + 1] for i in range(len(bundle.positions))]
            )
            return
        key = Position(position if position >= 0 else int(bundle.positions[0]))
        position = int(key)
        options = run.options.get(position)
        if bundle.timed_out:
            count = run.timeout_counts[key] = run.timeout_counts.get(key, 0) + 1
            limit = 1 + (options.retries if options is not None else 0)
            kind = "timeout"
        elif loss.was_killed:
            self.requeue(bundle)
            return
        else:
            if exit_info.is_oom:
                run.hungry.add(key)  # only alone may it fare better
            count = run.crash_counts.get(key, int(key in run.suspects)) + 1
            run.crash_counts[key] = count
            limit = options.crash_limit if options is not None else self.core.config.crash_limit
            kind = "lost"
        if count >= limit:
            failure = Failure(
                position, bundle.attempt, kind, executor=loss.executor, exit=exit_info
            )
            self.tell_failure(run, Parcel(TaskFailed(run.number, bundle.subtree.epoch, failure)))
            self.retire(bundle)
            self.stop_run(run)
            return
        self._tell_retried(bundle, position, kind, loss.executor, exit_info)
        bundle.timed_out = False
        if len(bundle.positions) == 1:
            self.requeue(bundle)
            return
        positions = bundle.positions
        self.break_up(
            bundle,
            [
                positions[positions < position],
                positions[positions == position],
                positions[positions > position],
            ],
        )

    def break_up(
        self, bundle: Bundle, parts: Sequence[np.ndarray], *, is_new_attempt: bool = True
    ) -> None:
        """Make several bundles of one that has ended without having done anything that counts.

        Args:
            bundle: that an executor took with it, or that nobody has begun.
            parts: its positions, each depending on earlier ones only.
            is_new_attempt: whether it may have been begun.
        """
        run = bundle.run
        bundling.add_uses(run, bundling.inner_deps(run, bundle, bundle.positions))
        successors = self.rebundle(run, bundle.subtree, parts)
        for successor in successors:
            successor.attempt = bundle.attempt + is_new_attempt
        self._wake_dependents(bundle, successors, [])
        self.retire(bundle)
