"""Bundles that several executors run hand in hand, lane by lane. Pure.

To the rest of the core a gang is one bundle: what it takes and leaves, and who waits for it, is
booked once, when all its lanes have ended. Here it is told apart: sent to several executors in one
turn, so that all of them have any two gangs in the same order, and put together again. If a lane
does not do all that it had, the others are stopped, and what is left becomes bundles of one
executor each. If an executor dies nothing counts of the whole gang.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dagsched.brokers import bundling, dispatch
from dagsched.brokers.state import (
    BrokerRun,
    Bundle,
    BundleState,
    Executor,
    Int32,
    Lane,
    Loss,
    Report,
    Subtree,
)
from dagsched.brokers.status import AWAITING_POSITION
from dagsched.config import Config
from dagsched.ids import BundleNo
from dagsched.partition import Gang, cut_gang
from dagsched.protocol.messages import META, REFERENCED, SOLO, ExitInfo

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore

TASKS_MAX = 8_192
WAIT_S = 0.5
"""A gang waits so long for executors that were to be free soon; then it is broken up."""


class Gangs:
    """Part of `BrokerCore`, which owns the state."""

    def __init__(self, core: "BrokerCore") -> None:
        self.core = core

    def lanes_max(self) -> int:
        """Executors that can hand values over to each other; below two there are no gangs."""
        if not self.core.config.hand_in_hand:
            return 0
        executors = self.core.executors.values()
        return sum(1 for e in executors if e.slot >= 0 and e.pid and not e.draining)

    def is_next(self) -> bool:
        """Whether there is a gang to be sent, and nobody has anything to do."""
        if any(executor.queue for executor in self.core.executors.values()):
            return False
        runs = [run for run in self.core.runs.values() if not run.draining]
        heads = map(dispatch.peek_ready, runs)
        return any(head is not None and bool(head.lanes) for head in heads)

    def dispatch(self, run: BrokerRun, bundle: Bundle, now: float) -> bool:
        """Send a READY gang to executors, or break it up; False: it waits for them."""
        core = self.core
        chosen = dispatch.pick_executors(core.executors, len(bundle.lanes), core.config)
        if not chosen and not bundle.waits_until_s:
            bundle.waits_until_s = now + WAIT_S
            core.set_timer(bundle.waits_until_s, "gang", 0)
        if chosen is None or (not chosen and now >= bundle.waits_until_s):
            core.ledger.break_up(bundle, self._parts(bundle), is_new_attempt=False)
            return True
        if not chosen:
            return False
        bundle.reports, bundle.loss, bundle.is_broken = [], None, False
        bundle.waits_until_s = 0.0
        slots = [executor.slot for executor in chosen]
        for executor, lane in zip(chosen, bundle.lanes, strict=True):
            parcel = dispatch.bundle_parcel(run, bundle, executor, core.table, lane, slots)
            bundle.at[executor.id] = lane
            core.hand_over(bundle, executor, parcel, now)
        return True

    def reported(self, report: Report, bundle: Bundle) -> None:
        """An executor has ended its lane."""
        core, run, message = self.core, bundle.run, report.message
        del bundle.at[report.executor.id]
        if self._is_over(run):
            self._discard(report)
            core.ledger.count_bundle(report, bundle)
        elif any(failure.kind != "memory" for failure in message.failures):
            self._discard(report)
            core.ledger.count_bundle(report, bundle)
            core.ledger.tell_retries(run, report)
            core.ledger.tell_failures(bundle, report)
            core.ledger.stop_run(run)
            self.stop(bundle)
        else:
            bundle.reports.append(report)
            if message.failures or message.deferred or message.expanded:
                self.stop(bundle)
        self._maybe_settle(bundle)

    def lost(
        self, executor: Executor, bundle: Bundle, position: int | None, exit_info: ExitInfo
    ) -> None:
        """An executor has died, at this position of its lane; None: it hadn't begun it."""
        lane = bundle.at.pop(executor.id)
        if bundle.loss is None or bundle.loss.position < 0:
            at = AWAITING_POSITION if position is None else position
            bundle.loss = Loss(executor.id, lane, at, exit_info, executor.killed)
        self.stop(bundle)
        self._maybe_settle(bundle)

    def forget_reports(self, executor: Executor) -> None:
        """An executor has died, and with it the segments of what is not booked yet.

        A lane of which something lay there counts as if nobody had begun it.
        """
        for run in self.core.runs.values():
            for bundle in run.bundles.values():
                if not bundle.reports:
                    continue
                gone = [
                    report
                    for report in bundle.reports
                    if report.executor is executor
                    and any(info.location is not None for info in report.message.objects)
                ]
                if gone:
                    bundle.reports = [r for r in bundle.reports if r not in gone]
                    self.stop(bundle)

    def left_out(self, executor: Executor, bundle: Bundle) -> None:
        """An executor won't begin its lane, which waited behind another bundle."""
        del bundle.at[executor.id]
        self.stop(bundle)
        self._maybe_settle(bundle)

    def stop(self, bundle: Bundle) -> None:
        """Have the lanes end that are still under way."""
        if bundle.is_broken:
            return
        bundle.is_broken = True
        for executor_id in bundle.at:
            pair = (int(executor_id), int(bundle.number))
            if self.core.executors[executor_id].queue[0] is bundle:
                self.core.actions.stop_bundles.append(pair)
            elif pair not in self.core.actions.take_back:
                self.core.actions.take_back.append(pair)

    def begins(self, executor: Executor) -> None:
        """An executor comes to its next bundle: a lane of what is broken ends at once."""
        if executor.queue and executor.queue[0].is_broken:
            pair = (int(executor.id), int(executor.queue[0].number))
            self.core.actions.stop_bundles.append(pair)

    def _is_over(self, run: BrokerRun) -> bool:
        return self.core.runs.get(run.number) is not run or run.cancelled

    def _discard(self, report: Report) -> None:
        executor = report.executor
        self.core.table.discard(report.message.objects, executor.id, executor.incarnation)

    def _maybe_settle(self, bundle: Bundle) -> None:
        """Book a gang of which no lane is under way any more."""
        if bundle.at:
            return
        ledger, reports, loss = self.core.ledger, bundle.reports, bundle.loss
        bundle.reports = []
        if self._is_over(bundle.run):
            for report in reports:
                self._discard(report)
                ledger.count_bundle(report, bundle)
            ledger.retire(bundle)
        elif loss is None:
            ledger.settle(bundle, reports)
        else:
            for report in reports:
                self._discard(report)
            if loss.position == AWAITING_POSITION and not loss.was_killed:
                ledger.break_up(bundle, self._parts(bundle))
            else:
                ledger.blame(bundle, loss)

    def rest_of(
        self, bundle: Bundle, rest: Int32, reports: Sequence[Report]
    ) -> tuple[list[Bundle], Int32]:
        """Gangs of what a gang has not done because it took long, and what is not worth one.

        Where its tasks took other than was thought, that is the most of it.
        """
        run, subtree, core = bundle.run, bundle.subtree, self.core
        made: list[Bundle] = []
        is_late = len(reports) == len(bundle.lanes) and len(rest) < len(bundle.positions)
        if not is_late or any(report.message.expanded for report in reports):
            return made, rest
        lanes_max = self.lanes_max()
        while len(rest) and lanes_max >= 2:
            found = gang_at_start(run, subtree, rest, lanes_max, core.config)
            if found is None:
                break
            positions, gang = found
            core.ledger.bundle_count += 1
            made.append(make_gang(run, subtree, positions, gang, core.ledger.bundle_count))
            rest = rest[len(positions) :]
        core.ledger.enter(run, made)
        return made, rest

    def _parts(self, bundle: Bundle) -> list[Int32]:
        return self.core.reclaimer.parts_of(bundle, bundle.positions)


def gang_window(
    run: BrokerRun, subtree: Subtree, lanes_max: int, config: Config
) -> tuple[Int32, Gang] | None:
    """A window at the subtree's cursor that is worth a gang: its positions, and its lanes.

    Nothing in it needs anything from outside but what its first level needs.
    """
    if lanes_max < 2 or not len(subtree.level_starts) or subtree.members is not None:
        return None
    border = subtree.import_levels[subtree.import_levels > subtree.cursor][:1]
    limit = min(subtree.hi, subtree.cursor + TASKS_MAX, *border.tolist())
    window = np.arange(subtree.cursor, limit, dtype=np.int32)
    return gang_at_start(run, subtree, window, lanes_max, config)


def gang_at_start(
    run: BrokerRun, subtree: Subtree, window: Int32, lanes_max: int, config: Config
) -> tuple[Int32, Gang] | None:
    """The first levels of rising positions, if they are worth a gang: positions, and its lanes.

    Only plain calls of functions that were measured, are short, and never made anything large.
    """
    if run.hungry:
        return None
    local = window - np.int32(subtree.lo)
    function_of = subtree.function_of[local]
    weights_s = run.seconds[function_of]
    unfit = ~(weights_s < config.bundle_s)
    unfit |= (subtree.flags[local] & (SOLO | META | REFERENCED)) != 0
    if run.large_bytes:
        unfit |= np.isin(function_of, list(run.large_bytes))
    count = int(unfit.argmax()) if unfit.any() else len(unfit)
    count = int(np.searchsorted(np.cumsum(weights_s[:count]), lanes_max * config.gang_s))
    borders = np.unique(np.searchsorted(window, subtree.level_starts)).astype(np.int32)
    if count < len(window) or window[-1] + 1 < subtree.hi:
        count = int(np.append(np.int32(0), borders[borders <= count])[-1])
    inner = borders[(borders > 0) & (borders < count)]
    weights_s = weights_s[:count]
    level_s = float(weights_s.sum()) / (len(inner) + 1)
    # Of wider levels bundles are small beside them, and go to whoever has nothing to do.
    if not len(inner) or not 2 * config.handover_s < level_s <= lanes_max * config.bundle_s:
        return None
    positions = window[:count]
    indptr, deps = bundling.inner_edges(subtree, positions)
    level_starts = np.append(np.int32(0), inner).astype(np.int32)
    gang = cut_gang(indptr, deps, weights_s, level_starts, lanes_max, config)
    return None if gang is None else (positions, gang)


def make_gang(
    run: BrokerRun, subtree: Subtree, positions: Int32, gang: Gang, number: int
) -> Bundle:
    """Enter rising positions, which are in no living bundle, as one bundle of several lanes."""
    parts = [positions[np.sort(lane.tasks)] for lane in gang.lanes]
    whole = bundling.Parts.of(subtree, parts)
    run.bundle_of[positions] = number
    inside = run.bundle_of[whole.deps] == number
    bundling.subtract_uses(run, whole.deps[inside])
    exports, borders = bundling.exports_of(run, subtree, whole)
    function_of = subtree.function_of[positions - subtree.lo]
    bundle = Bundle(
        BundleNo(number), run, subtree, positions, gang.seconds, solo=False,
        frames=(b"", b"", b"", function_of.tobytes(), b""), attempt=subtree.attempt,
    )  # fmt: skip
    lanes = []
    for index, (cut, rising) in enumerate(zip(gang.lanes, parts, strict=True)):
        order = positions[cut.tasks]
        counts, deps = bundling.gather(subtree, order, is_rising=False)
        indptr = np.zeros(len(order) + 1, np.int32)
        np.cumsum(counts, out=indptr[1:])
        awaited = cut.awaited.copy()
        awaited[:, 1] = positions[awaited[:, 1]]
        frames = (
            order.tobytes(), indptr.tobytes(), deps.tobytes(),
            subtree.function_of[order - subtree.lo].tobytes(),
            exports[borders[index] : borders[index + 1]].tobytes(),
            awaited.tobytes(), cut.handed.tobytes(),
        )  # fmt: skip
        imports = np.unique(deps[run.bundle_of[deps] != number])
        lanes.append(Lane(rising, frames, imports))
    bundle.lanes = lanes
    run.bundles[bundle.number] = bundle
    subtree.open_bundle_count += 1
    imports, bundle.import_counts = np.unique(whole.deps[~inside], return_counts=True)
    bundle.imports = imports.astype(np.int32)
    missing = bundle.imports[run.object_of[bundle.imports] < 0]
    if len(missing):
        bundling.enter_waits(run, [bundle], missing, np.zeros(len(missing), np.int64))
    if not bundle.waiting_count:
        bundle.move(BundleState.READY)
    return bundle
