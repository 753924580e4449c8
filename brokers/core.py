"""BrokerCore: everything that a node decides, as a state machine. Pure.

Subtrees come from the master, are cut into bundles (`bundling`), and go to executors
(`dispatch`); results are objects (`table`), which other nodes fetch. The shell pushes what
happened (`receive_*`, `executor_lost`, `object_stored`, ...) and pulls `take_actions()` once a
turn. Rules for whoever edits this:

- no I/O, no clock (`now` is given, monotonic seconds), no randomness, no order by hash;
- handlers are idempotent, a message of an ended run or a lost attempt is counted and dropped;
- a bundle's state moves by `Bundle.move` only.
"""

import heapq
from collections.abc import Sequence
from typing import assert_never

import numpy as np

from dagsched.brokers import bundling, dispatch
from dagsched.brokers.accounts import Accounts
from dagsched.brokers.actions import BrokerActions
from dagsched.brokers.answers import LookAt, no_look, task_answer
from dagsched.brokers.cutting import Cutter
from dagsched.brokers.exchange import Exchange
from dagsched.brokers.gangs import Gangs
from dagsched.brokers.holdings import Holder
from dagsched.brokers.ledger import Ledger
from dagsched.brokers.pressure import Pressure
from dagsched.brokers.reclaiming import Reclaimer
from dagsched.brokers.routes import peers_after
from dagsched.brokers.state import BrokerRun, Bundle, BundleState, Executor, Loss, Report
from dagsched.brokers.table import ObjectTable
from dagsched.brokers.tracing import RunTrace
from dagsched.config import Config
from dagsched.errors import InternalError
from dagsched.ids import ProcessId, RunNo, SubtreeNo
from dagsched.protocol.asking import AskTask, shortened
from dagsched.protocol.messages import (
    CHUNK_TASKS,
    EXPORTED,
    AskHoldings,
    AskStats,
    BrokerHello,
    BrokerToBroker,
    BrokerToMaster,
    BundleDone,
    BundleLeftOut,
    CancelRun,
    DrainRun,
    EndRun,
    ExecutorChanged,
    ExecutorHello,
    ExecutorToBroker,
    ExitInfo,
    FetchObjects,
    FetchValue,
    ForgetRun,
    Frame,
    FreeExtents,
    GetValue,
    Location,
    MasterToBroker,
    ObjectInfo,
    ObjectsData,
    ObjectsMissing,
    Parcel,
    Ping,
    PlaceSubtree,
    Pong,
    PutObjects,
    Redirect,
    Release,
    Relocate,
    RunClosed,
    SetExecutors,
    SetPeers,
    Shutdown,
    Stats,
    Stop,
    TakeObjects,
    TellOutputs,
    Welcome,
)

ENDED_RUNS_MAX = 1_000  # remembered, so that late messages of theirs are known as such
LATE_S = 0.1  # whoever waits this long behind a bundle that was taken for short goes elsewhere


class BrokerCore:
    """One node's scheduler.

    Args:
        broker: process id of the broker.
        host: name of its machine, for statistics.
        config: limits and defaults.
    """

    def __init__(self, broker: int, host: str, config: Config) -> None:
        self.broker = ProcessId(broker)
        self.host = host
        self.config = config
        self.epoch = 0
        self.runs: dict[RunNo, BrokerRun] = {}
        self.executors: dict[ProcessId, Executor] = {}
        self.table = ObjectTable(self.broker)
        self.actions = BrokerActions()
        self.exchange = Exchange(self)
        self.ledger = Ledger(self)
        self.accounts = Accounts(self)
        self.holder = Holder(self)
        self.pressure = Pressure(self)
        self.cutter = Cutter(self)
        self.reclaimer = Reclaimer(self)
        self.gangs = Gangs(self)
        self.is_orphan = False  # its master is gone, and there is no other yet
        self.look: LookAt = no_look  # the shell's: what an executor does at this moment
        self._now = 0.0
        self.estimates: dict[bytes, float] = {}  # digest of function: mean seconds of a call
        self.ended_runs: dict[RunNo, int] = {}  # lately, in order: the epoch that has ended
        self._incarnations: dict[ProcessId, int] = {}  # the latest of each executor
        self._timers: list[tuple[float, int, str, int]] = []  # heap: when, tie, what, number
        self._timer_count = 0
        self._looks_for_late = False
        self._left_until_s = 0.0  # the timer that is set last for a bundle left by a slow executor

    # --- from the master --------------------------------------------------------------------------

    def receive_master(self, message: MasterToBroker, frames: Sequence[Frame], now: float) -> None:
        """Take a message of the master."""
        self._now = max(self._now, now)
        match message:
            case PlaceSubtree():
                self._place(message, frames, now)
            case Release():
                self._release(message, frames)
            case EndRun():
                self._end_run(message, now)
            case CancelRun():
                self._cancel(message, now)
            case PutObjects():
                pairs = zip(message.positions, frames, strict=True)
                self.actions.store += [(message.run, p, frame) for p, frame in pairs]
            case Redirect():
                self.exchange.redirect(message)
            case FetchValue():
                self.exchange.fetch_value(message)
            case AskHoldings():
                self.holder.answer(message)
            case Relocate():
                positions, brokers = (np.frombuffer(frame, np.int32) for frame in frames)
                self.exchange.relocate(RunNo(message.run), positions.tolist(), brokers.tolist())
            case TakeObjects():
                self.holder.take(message, np.frombuffer(frames[0], np.int32).tolist(), now)
            case TellOutputs():
                self.holder.tell_outputs(message, np.frombuffer(frames[0], np.int32).tolist())
            case DrainRun():
                self.holder.drain(message)
            case SetPeers():
                come = {ProcessId(peer): epoch for peer, epoch, _ in message.peers}
                self.exchange.set_peers(peers_after(self.exchange.peers, message, come))
            case SetExecutors():
                self._set_executors(message.executors)
            case AskStats():
                self.tell_master(Stats(message.request, self.accounts.answer(message, now)))
            case AskTask():
                self.tell_master(task_answer(self, message, now))
            case Ping():
                self.tell_master(Pong(message.number))
            case Welcome():
                self.epoch = message.epoch
                if self.is_orphan:
                    self.is_orphan = False
                    self.holder.welcomed()
            case Shutdown():
                self.actions.shutdown = True
            case _:
                assert_never(message)

    def tell_master(self, message: BrokerToMaster, frames: Sequence[Frame] = ()) -> None:
        """Queue a message for the master."""
        self.tell_parcel(Parcel(message, frames))

    def tell_parcel(self, parcel: Parcel) -> None:
        """The same, with its frames; without a master it is dropped: the next one will ask."""
        if not self.is_orphan:
            self.actions.to_master.append(parcel)

    def become_orphan(self, new_id: int, now: float) -> None:
        """The master is gone: go on under another id, unknown to all who were peers."""
        self._now = max(self._now, now)
        self.is_orphan = True
        self.actions.to_master.clear()
        old, self.broker = self.broker, ProcessId(new_id)
        self.table.rename(old, self.broker, self.runs.values())
        self.exchange.set_peers({})
        self.holder.master_lost()

    def orphan_hello(self, pid: int, address: str, version: tuple[str, str, int]) -> BrokerHello:
        """What an orphan says to the next master."""
        runs = sorted({*self.runs, *(number for number, _ in self.table.kept)})
        executors = [e.id for e in self.executors.values() if not e.draining]
        return BrokerHello(self.broker, pid, self.host, address, version, runs, executors)

    def _set_executors(self, wanted: Sequence[int]) -> None:
        for number in wanted:
            executor_id = ProcessId(number)
            if executor_id not in self.executors:
                # Segments carry the incarnation, so none is ever used again.
                incarnation = self._incarnations.get(executor_id, 0) + 1
                self._incarnations[executor_id] = incarnation
                self.executors[executor_id] = Executor(executor_id, incarnation)
                self.actions.start.append(executor_id)
            else:
                self.executors[executor_id].draining = False
        for executor_id, executor in self.executors.items():
            if executor_id not in wanted and not executor.draining:
                executor.draining = True
                if executor.pid:
                    self.actions.send_executor(executor_id, Parcel(Stop()))

    def _place(self, message: PlaceSubtree, frames: Sequence[Frame], now: float) -> None:
        number = RunNo(message.run)
        if self.ended_runs.get(number, -1) >= message.epoch:
            return
        run = self.runs.get(number)
        if run is None:
            run = self.open_run(number, message.epoch, message.priority, message.total, now)
        run.priority = message.priority
        run.told_news = (0, False)  # the master takes nobody to be idle now
        if SubtreeNo(message.subtree) in run.subtrees or run.cancelled:
            run.counters.stale_count += 1
            return
        arrays = [np.frombuffer(frame, np.int32) for frame in frames[:4]]
        levels, imports, brokers = (np.frombuffer(frame, np.int32) for frame in frames[5:8])
        arrays += [levels, imports[brokers < 0], imports[brokers == 0]]
        subtree = bundling.make_subtree(message, arrays, bytes(frames[4]))
        run.subtrees[subtree.number] = subtree
        run.uncut.append(subtree)
        run.open.append(subtree)
        run.counters.received_count += 1
        self._take_definitions(run, message, frames)
        bundling.count_uses(run, subtree)
        self.exchange.fetch_imports(run, subtree, imports, np.abs(brokers))
        if not subtree.remaining_count:
            self.ledger.subtree_ended(run, subtree)

    def open_run(
        self, number: RunNo, epoch: int, priority: int, total: int, now: float
    ) -> BrokerRun:
        """Begin the record of a run that has a part here."""
        run = BrokerRun(
            number,
            epoch,
            priority,
            object_of=np.full(total, -1, np.int32),
            bundle_of=np.full(total, -1, np.int32),
            left=np.zeros(total, np.int32),
            hold=np.zeros(total, np.uint8),
            asked=np.zeros(total, np.uint8),
            sought=np.zeros(total, np.int32),
            trace=RunTrace(total, lambda: self._now, is_kept=self.config.trace),
            started_s=now,
            total_tasks=total,
        )
        # A run that joins late must not be served alone until it has caught up.
        run.served_s = min((other.served_s for other in self.runs.values()), default=0.0)
        self.runs[run.number] = run
        return run

    def _take_definitions(
        self, run: BrokerRun, message: PlaceSubtree, frames: Sequence[Frame]
    ) -> None:
        first_chunk = message.lo // CHUNK_TASKS
        last_chunk = (message.hi - 1) // CHUNK_TASKS
        rest = iter(frames[8:])
        for chunk in range(first_chunk, last_chunk + 1):
            run.chunks[chunk] = next(rest)
        for function, has_pickle in message.functions:
            if function.index >= len(run.seconds):
                grown = np.full(function.index + 1, np.nan)
                grown[: len(run.seconds)] = run.seconds
                run.seconds = grown
            known = self.estimates.get(function.digest, function.seconds)
            if known is not None:
                run.seconds[function.index] = known
            if has_pickle:
                run.functions[function.index] = (function, next(rest))
        for options in message.options:
            run.options[options.position] = options

    def _release(self, message: Release, frames: Sequence[Frame]) -> None:
        positions = np.frombuffer(frames[0], np.int32)
        run = self.runs.get(RunNo(message.run))
        if run is None:
            self.table.release_kept(RunNo(message.run), positions.tolist())
        else:
            self.table.unhold(run, positions, EXPORTED)

    def _cancel(self, message: CancelRun, now: float) -> None:
        run = self.runs.get(RunNo(message.run))
        if run is None:
            return
        self.ledger.stop_run(run)
        self._stop_executors(run, message.grace_s, now)

    def _stop_executors(self, run: BrokerRun, grace_s: float, now: float) -> None:
        for executor in self.executors.values():
            if executor.queue and executor.queue[0].run is run:
                self._stop_head(executor, grace_s, now)
        self.actions.take_back += dispatch.queued(self.executors.values(), run)

    def _stop_head(self, executor: Executor, grace_s: float, now: float) -> None:
        """Let an executor stop its bundle at the next task, and end it if there is none soon."""
        number = executor.queue[0].number
        self.actions.stop_bundles.append((executor.id, number))
        self.set_timer(now + grace_s, "grace", number)

    def _end_run(self, message: EndRun, now: float) -> None:
        number = RunNo(message.run)
        run = self.runs.get(number)
        if run is not None:
            self.ledger.flush_traces(run)
            self._drop_run(run, message.kept, now)
        self.tell_master(RunClosed(number, self.accounts.closing_stats(run, now)))

    def _drop_run(self, run: BrokerRun, kept: Sequence[int], now: float) -> None:
        del self.runs[run.number]
        self.ledger.stop_run(run)
        self._stop_executors(run, self.config.failure_grace_s, now)
        for executor in self.executors.values():
            self.ledger.pin_inputs(run, executor)
        self.table.end_run(run, kept)
        self.exchange.run_ended(run)
        dispatch.forget_run(self.executors.values(), run.number)
        for executor in self.executors.values():
            if executor.pid:
                self.actions.send_executor(executor.id, Parcel(ForgetRun(run.number)))
        self.ended_runs[run.number] = run.epoch
        while len(self.ended_runs) > ENDED_RUNS_MAX:
            del self.ended_runs[next(iter(self.ended_runs))]

    # --- from other brokers -----------------------------------------------------------------------

    def receive_peer(
        self, peer: int, message: BrokerToBroker, frames: Sequence[Frame], now: float
    ) -> None:
        """Take a message of another broker (transfers of large objects are the shell's)."""
        self._now = max(self._now, now)
        match message:
            case FetchObjects():
                positions = np.frombuffer(frames[0], np.int32)
                self.exchange.fetch_asked(
                    ProcessId(peer), RunNo(message.run), message.epoch, positions, message.info_only
                )
            case ObjectsData():
                for index, info in enumerate(message.objects):
                    frame = None if message.info_only else bytes(frames[index])
                    self.exchange.arrived(
                        RunNo(message.run), info, frame, ProcessId(peer), message.info_only
                    )
            case ObjectsMissing():
                lost = np.frombuffer(frames[0], np.int32).tolist()
                self.exchange.missing(RunNo(message.run), lost)
            case _:
                raise InternalError(f"{type(message).__name__} is not for the core")

    def object_stored(self, run: int, info: ObjectInfo, now: float) -> None:
        """A constant lies in the broker's own arena now."""
        self._now = max(self._now, now)
        self.exchange.arrived(RunNo(run), info, None, self.broker, info_only=False)

    def object_received(
        self, peer: int, run: int, info: ObjectInfo, span: tuple[float, float], now: float
    ) -> None:
        """A large object of another node, which came in that span, lies in the own arena now."""
        self._now = max(self._now, now)
        self.exchange.arrived(RunNo(run), info, None, ProcessId(peer), False, span)

    def object_spilled(self, job: int, location: Location | None, now: float) -> None:
        """An object that was to move lies in a file; None: there was no room for it."""
        self._now = max(self._now, now)
        self.pressure.spilled(job, location, now)

    def transfer_done(self, peer: int, run: int, first: int, now: float) -> None:
        """A large object has been sent (or the peer is gone)."""
        self._now = max(self._now, now)
        self.exchange.transfer_done(ProcessId(peer), RunNo(run), first)

    def peer_lost(self, peer: int, now: float) -> None:
        """Another broker is gone; what was asked of it will be placed anew by the master."""
        self._now = max(self._now, now)
        self.exchange.peer_lost(ProcessId(peer))

    # --- from executors ---------------------------------------------------------------------------

    def receive_executor(
        self, executor: int, message: ExecutorToBroker, frames: Sequence[Frame], now: float
    ) -> None:
        """Take a message of one of the node's executors."""
        self._now = max(self._now, now)
        sender = self.executors.get(ProcessId(executor))
        if sender is None:
            return
        match message:
            case BundleDone():
                self._bundle_done(sender, message, frames)
            case BundleLeftOut():
                self.ledger.left_out(sender, message.bundle)
            case GetValue():
                self.exchange.get_value(sender, message)
            case ExecutorHello():
                sender.pid, sender.slot = message.pid, message.slot
                self.tell_master(ExecutorChanged(executor, message.pid, sender.restart_count))
                if sender.draining:
                    self.actions.send_executor(executor, Parcel(Stop()))
            case _:
                assert_never(message)

    def _bundle_done(
        self, executor: Executor, message: BundleDone, frames: Sequence[Frame]
    ) -> None:
        executor.doubted.discard(message.bundle)
        executor.rss_peak_bytes = max(executor.rss_peak_bytes, message.rss_peak_bytes)
        self.exchange.views_changed(executor, message)
        for stored in executor.collected:
            self.table.unpin(stored)
        executor.collected.clear()
        bundle = executor.queue[0] if executor.queue else None
        if bundle is None or bundle.number != message.bundle:
            self.table.discard(message.objects, executor.id, executor.incarnation)
            return
        executor.take_head(self._now)
        if executor.queue and executor.queue[0].run.cancelled:
            self._stop_head(executor, self.config.cancel_grace_s, self._now)
        self.gangs.begins(executor)
        run, report = bundle.run, Report(executor, message, frames)
        if bundle.lanes:
            self.gangs.reported(report, bundle)
        elif self.runs.get(run.number) is not run or run.cancelled:
            self.table.discard(message.objects, executor.id, executor.incarnation)
            self.ledger.count_bundle(report, bundle)
            self.ledger.retire(bundle)
        else:
            self.ledger.settle(bundle, [report])

    # --- executors come and go --------------------------------------------------------------------

    def executor_lost(
        self, executor: int, exit_info: ExitInfo, bundle: int, position: int, now: float
    ) -> None:
        """An executor's process has ended; `position` is the task that it ran, -1: none."""
        self._now = max(self._now, now)
        lost = self.executors.get(ProcessId(executor))
        if lost is None:
            return
        self.tell_master(ExecutorChanged(executor, 0, lost.restart_count, shortened(exit_info)))
        self.table.executor_ended(lost.id, lost.incarnation)
        self.gangs.forget_reports(lost)
        for stored in lost.collected:
            self.table.unpin(stored)
        queue, killed = lost.queue, lost.killed
        self._incarnations[lost.id] = lost.incarnation + 1
        if lost.draining:
            del self.executors[lost.id]
        else:
            self.executors[lost.id] = lost.successor(exit_info.rss_bytes)
            self.actions.start.append(executor)
        for item in queue:
            if item.lanes:
                at = position if item.number == bundle else None
                self.gangs.lost(lost, item, at, exit_info)
            elif item.run.cancelled:
                self.ledger.retire(item)
            elif item.number == bundle:
                self.ledger.blame(item, Loss(lost.id, None, position, exit_info, killed))
            else:
                self.ledger.requeue(item)

    # --- dispatch, timers, actions ----------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        while True:
            run = dispatch.next_run(self.runs.values(), self.executors)
            if run is None:
                when = self.reclaimer.look(now)
                if when is not None:
                    self.set_timer(when, "look", 0)
                return
            bundle = dispatch.peek_ready(run)
            if bundle is None:
                raise InternalError(f"run {run.number} was to have a ready bundle")
            if bundle.lanes:
                if not self.gangs.dispatch(run, bundle, now):
                    return
                continue
            executor = dispatch.pick_executor(self.executors, bundle, self.config, now)
            if executor is None:
                if now < bundle.left_until_s != self._left_until_s:
                    self._left_until_s = bundle.left_until_s
                    self.set_timer(bundle.left_until_s, "left", bundle.number)
                return
            parcel = dispatch.bundle_parcel(run, bundle, executor, self.table)
            self.hand_over(bundle, executor, parcel, now)
            options = run.options.get(int(bundle.positions[0])) if bundle.solo else None
            if options is not None and options.timeout_s is not None:
                self.set_timer(now + options.timeout_s, "deadline", bundle.number)

    def hand_over(self, bundle: Bundle, executor: Executor, parcel: Parcel, now: float) -> None:
        """Send a bundle that is next, or a lane of it, to an executor."""
        run = bundle.run
        if bundle.state is BundleState.READY:
            heapq.heappop(run.ready)
            bundle.move(BundleState.DISPATCHED)
            bundle.subtree.open_bundle_count -= 1
        bundle.begun_s = now
        executor.queue.append(bundle)
        if len(executor.queue) > 1:
            self._look_for_late(now)
        run.served_s += bundle.weight_s
        run.counters.bundle_count += 1
        self.actions.send_executor(executor.id, parcel)
        self.pressure.dispatched(bundle, now)

    def set_timer(self, when: float, what: str, number: int) -> None:
        """Have `handle_timer` called then."""
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, what, number))

    def next_timer(self) -> float | None:
        """When `handle_timer` must be called at the latest, if ever."""
        return self._timers[0][0] if self._timers else None

    def handle_timer(self, now: float) -> None:
        """Do what has come due."""
        self._now = max(self._now, now)
        while self._timers and self._timers[0][0] <= now:
            _, _, what, number = heapq.heappop(self._timers)
            if what in ("grace", "deadline"):
                self._kill_overdue(number, what)
            elif what == "late":
                self.actions.take_back += dispatch.take_late(self.executors.values())
                self._look_for_late(now, is_due=True)
            elif what == "progress":
                self.accounts.is_progress_due = False  # looked at by `take_actions`

    def _look_for_late(self, now: float, *, is_due: bool = False) -> None:
        if is_due or not self._looks_for_late:
            self._looks_for_late = any(len(e.queue) > 1 for e in self.executors.values())
            if self._looks_for_late:
                self.set_timer(now + LATE_S, "late", 0)

    def _kill_overdue(self, number: int, what: str) -> None:
        for executor in self.executors.values():
            head = executor.queue[0] if executor.queue else None
            if head is not None and head.number == number and not executor.killed:
                head.timed_out = what == "deadline"
                executor.killed = True
                self.actions.kill.append(executor.id)

    def take_actions(self) -> BrokerActions:
        """Decide what follows from all that was pushed, and pull it."""
        now = self._now
        if self.gangs.is_next():
            self.set_timer(now, "cut", 0)  # its executors wait, and cutting takes a while
        else:
            self.cutter.cut(now)
        self.pressure.hold_back(now)
        self._dispatch(now)
        self.pressure.let_in()
        when = self.accounts.tell_progress(now)
        if when is not None:
            self.set_timer(when, "progress", 0)
        if not self.is_orphan:
            for run in self.runs.values():
                self.exchange.flush_outputs(run)
            self.holder.flush()
        self.pressure.spill(now)
        actions = self.actions
        for executor, locations in sorted(self.table.take_freed_by_executor().items()):
            living = self.executors.get(executor)
            if living is not None and living.pid:
                # First, so that the executor can use the space for what follows.
                actions.to_executors.setdefault(executor, []).insert(
                    0, Parcel(FreeExtents(locations))
                )
        actions.free += self.table.take_freed_own()
        actions.reclaim += [(int(e), i, keep) for e, i, keep in self.table.take_reclaim()]
        self.exchange.flush(actions)
        self.actions = BrokerActions()
        return actions

    def check(self) -> None:
        """Re-derive every count from scratch.

        Raises:
            InternalError: one is wrong.
        """
        self.accounts.check()
