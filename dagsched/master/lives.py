"""The lives of runs: opened, announced, ended everywhere; what the loss of a node means. Pure.

A *family* is a run of the client (its root) and the runs of graphs that its tasks returned, at
any depth. It fails, recovers and ends as one; a member whose value has been copied ends earlier.
"""

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from dagsched.config import Config
from dagsched.errors import InternalError, ProtocolError
from dagsched.ids import ProcessId, RunNo
from dagsched.master.dealing import is_dealt
from dagsched.master.departures import Departures
from dagsched.master.events import OutputsComplete, RunEnded, RunOutcome
from dagsched.master.families import Families
from dagsched.master.journal import Ended, Failed, OutputsReached, RunPast, Submitted
from dagsched.master.kept import KeptObjects, lost_text
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.placing import Placer
from dagsched.master.recovery import Recoveries
from dagsched.master.rewriting import rest_of
from dagsched.master.slices import (
    check_plan,
    function_seconds,
    holder_of_constant,
    importer_counts,
    subtrees_of,
    successors_of,
    unknown_count,
)
from dagsched.master.state import (
    UNFINISHED,
    Child,
    MasterRun,
    Node,
    RunState,
    RunTerms,
    SubtreeState,
    merged_stats,
)
from dagsched.plan import ConstantSource, RefSource, RunPlan
from dagsched.protocol.messages import (
    PERSISTED,
    CancelRun,
    EndRun,
    Failure,
    Frame,
    NodeStats,
    ObjectInfo,
    OutputsReady,
    Relocate,
)


class Lives:
    """All runs that haven't ended."""

    def __init__(
        self,
        config: Config,
        members: Members,
        kept: KeptObjects,
        outbox: Outbox,
        estimates: Mapping[bytes, float],
        base: int,
    ) -> None:
        self.runs: dict[RunNo, MasterRun] = {}  # in the order they were opened
        self.placer = Placer(config, members, outbox, self.locate)
        self._config = config
        self._members = members
        self._kept = kept
        self._outbox = outbox
        self._estimates = estimates
        self.families = Families(self, members, outbox, base)
        self.departures = Departures(self, members, kept, outbox)
        self.recoveries = Recoveries(self, members, outbox, self.placer, config)
        self._deadlines: list[tuple[float, RunNo]] = []  # heap

    # --- asked by the core ------------------------------------------------------------------------

    def running(self) -> list[MasterRun]:
        """Runs whose subtrees may be placed: higher priority first, then older."""
        runs = [run for run in self.runs.values() if run.state is RunState.RUNNING]
        return sorted(runs, key=lambda run: (-run.priority, run.number))

    def _roots(self) -> list[MasterRun]:
        return [run for run in self.runs.values() if run.parent is None]

    def find_active(self, number: RunNo) -> MasterRun | None:
        """A run of the client that isn't ending."""
        run = self.runs.get(number)
        if run is None or run.parent is not None or run.state is not RunState.RUNNING:
            return None
        return run

    def family(self, root: MasterRun) -> list[MasterRun]:
        """A root and all below it, parents first."""
        return [self.runs[number] for number in root.family]

    def seconds_of(self, run: MasterRun) -> "np.ndarray":
        """Mean seconds of one call, by function."""
        return function_seconds(run.plan, self._estimates, self._config.unknown_task_s)

    def locate(self, run: int, position: int) -> ProcessId | None:
        """The broker that has, or will have, the value of (run, position)."""
        while True:
            broker = self._kept.broker_of((RunNo(run), position))
            found = self.runs.get(RunNo(run))
            if broker is not None or found is None:
                return broker
            index = position - found.plan.task_count
            if index < 0:
                return found.location(position)
            if index >= len(found.plan.sources):
                return None
            source = found.plan.sources[index]
            if isinstance(source, ConstantSource):
                return holder_of_constant(found, position)
            run, position = source.run, source.position

    # --- beginning --------------------------------------------------------------------------------

    def open(
        self,
        number: RunNo,
        plan: RunPlan,
        now: float,
        terms: RunTerms,
    ) -> None:
        """Take a run in and place what can be placed.

        Raises:
            GraphError: the plan is inconsistent.
        """
        run = self._enter(number, plan, now, terms)
        self._outbox.write(Submitted(number, *terms[:2], plan, *terms[2:]))
        if self._pin_sources(run, now):
            self._start(run, now)

    def resume(
        self, number: RunNo, plan: RunPlan, past: RunPast, now: float, terms: RunTerms
    ) -> None:
        """Take in a run whose master is gone; it goes on once its brokers have told what they have.

        Raises:
            GraphError: the plan is inconsistent.
        """
        run = self._enter(number, plan, now, terms)
        if terms.parent is not None:
            self.runs[terms.parent[0]].children[terms.parent[1]] = Child(number)
        self._begin_counts(run)
        run.epoch = past.epoch
        run.recovering = True
        if not self._pin_sources(run, now):
            return
        for info, frame in past.outputs:
            self._take_output(run, ProcessId(0), info, frame)
        self.recoveries.await_orphans(self.runs[run.root], now + self._config.orphans_timeout_s)

    def _enter(
        self,
        number: RunNo,
        plan: RunPlan,
        now: float,
        terms: RunTerms,
    ) -> MasterRun:
        if number in self.runs:
            raise InternalError(f"run {number} exists already")
        check_plan(plan)
        unknown_s = self._config.unknown_task_s
        subtrees = subtrees_of(number, plan, function_seconds(plan, self._estimates, unknown_s))
        run = MasterRun(
            number=number,
            plan=plan,
            priority=terms.priority,
            parent=terms.parent,
            client=terms.client,
            root=number if terms.parent is None else self.runs[terms.parent[0]].root,
            submitted_s=now,
            spread_at_s=now,
            deadline_s=None if terms.timeout_s is None else now + terms.timeout_s,
            subtrees=subtrees,
            successors=successors_of(subtrees),
            importers=importer_counts(plan, subtrees),
            sizes=np.zeros(0, np.int64),
            missing=bytearray(),
            missing_count=0,
        )
        self.runs[number] = run
        root = self.runs[run.root]
        root.family[number] = None
        root.progress_total += plan.task_count
        if run.deadline_s is not None:
            heapq.heappush(self._deadlines, (run.deadline_s, number))
        return run

    def _pin_sources(self, run: MasterRun, now: float) -> bool:
        """Keep objects of earlier runs while this one needs them; False if one is gone."""
        for source in run.plan.sources:
            if not isinstance(source, RefSource):
                continue
            key = (RunNo(source.run), source.position)
            if self._kept.use(key):
                run.pinned.append(key)
            elif self.locate(*key) is None:
                self.lose(self.runs[run.root], "ObjectLost", lost_text(*key), now)
                return False
        return True

    def _start(self, run: MasterRun, now: float) -> None:
        """Place the run's subtrees; nothing of it is anywhere."""
        self._begin_counts(run)
        run.is_dealt = is_dealt(run.plan, run.subtrees, len(self._members.wanted))
        run.unknown_count = unknown_count(run.plan, self._estimates)
        self.placer.begin(run)
        self.placer.place(run, now)
        self.maybe_announce(run, now)

    def _begin_counts(self, run: MasterRun) -> None:
        plan = run.plan
        missing = np.zeros(plan.task_count, np.uint8)
        missing[plan.outputs[plan.outputs < plan.task_count]] = 1
        run.missing = bytearray(missing.tobytes())
        run.missing_count = int(missing.sum())
        if len(run.importers):
            run.sizes = np.full(len(run.importers), -1, np.int64)
            for index, source in enumerate(plan.sources):
                run.sizes[plan.task_count + index] = (
                    source.size_bytes if isinstance(source, RefSource) else len(source.data)
                )
        run.unfinished_count = len(run.subtrees)

    # --- outputs ----------------------------------------------------------------------------------

    def outputs_ready(
        self,
        run: MasterRun,
        broker: ProcessId,
        message: OutputsReady,
        frames: Sequence[Frame],
        now: float,
    ) -> None:
        """Objects with outputs are there.

        Raises:
            ProtocolError: they aren't of this run, or lack their frames.
        """
        inline = iter(frames)
        for info in message.objects:
            frame = next(inline, None) if info.location is None else None
            first, end = info.first, info.first + info.count
            lacks_bytes = frame is None and info.location is None
            if not 0 <= first < end <= len(run.missing) or lacks_bytes:
                raise ProtocolError(f"broker {broker}, run {run.number}: no output at {first}")
            self._take_output(run, broker, info, frame)
        self._outbox.tell_outputs(run)
        if not run.recovering:
            self.maybe_announce(run, now)

    def _take_output(
        self, run: MasterRun, broker: ProcessId, info: ObjectInfo, frame: Frame | None
    ) -> None:
        missing, first, end = run.missing, info.first, info.first + info.count
        new_count = missing[first] if info.count == 1 else missing.count(1, first, end)
        if new_count:
            missing[first:end] = bytes(info.count)
            run.missing_count -= new_count
            run.objects.append((broker, info, frame))

    def maybe_announce(self, run: MasterRun, now: float) -> None:
        """Tell that all outputs are there, if they are."""
        if not run.missing_count and not run.announced:
            self._announce(run, now)

    def _announce(self, run: MasterRun, now: float) -> None:
        """All outputs are there: the client copies them, or the task that waits gets its value."""
        run.announced = True
        self._outbox.write(OutputsReached(run.number, run.epoch, run.objects))
        if run.parent is not None:
            self.families.link(run, run.parent, now)
            return
        self._keep_refs(run)
        self._outbox.tell(OutputsComplete(run.number, list(run.objects)))
        if not run.subtrees:
            run.taken = True  # there is nothing to copy
            self.maybe_finish(run, now)

    def _keep_refs(self, run: MasterRun) -> None:
        """Hold what outputs refer to, and what tasks persist, wherever that is now."""
        for _, info, _ in run.objects:
            for number, position in info.refs:
                self.keep(number, position)
        flags = run.plan.flags[: run.plan.task_count]
        for position in np.flatnonzero(flags & PERSISTED).tolist():
            self.keep(run.number, position)

    def keep(self, number: int, position: int) -> None:
        """Hold a value for the Refs that the client has to it, wherever it is."""
        if (broker := self.locate(number, position)) is not None:
            self._kept.keep((RunNo(number), position), broker)

    # --- ending -----------------------------------------------------------------------------------

    def maybe_finish(self, run: MasterRun, now: float) -> None:
        """End a run of the client whose tasks have ended and whose outputs are copied."""
        if run.parent is None and run.taken and not run.unfinished_count and not run.recovering:
            self._end(run, "done", None, now)

    def stop(self, root: MasterRun, outcome: RunOutcome, now: float) -> None:
        """End a run early."""
        is_failed = outcome == "failed"
        grace_s = self._config.failure_grace_s if is_failed else self._config.cancel_grace_s
        self._end(root, outcome, grace_s, now)

    def fail(
        self,
        run: MasterRun,
        broker: ProcessId,
        failure: Failure,
        frame: Frame | None,
        now: float,
    ) -> None:
        """A task has failed for good, and its family with it; the first failure counts."""
        root, position = run, failure.position
        above = root.parent
        while above is not None:
            root, position = self.runs[above[0]], above[1]
            above = root.parent
        if root.state is not RunState.RUNNING:
            return
        if root is not run:
            values = {name: getattr(failure, name) for name in failure.__struct_fields__}
            failure = Failure(**{**values, "position": position})
        root.failure, root.failure_frame, root.failed_node = failure, frame, broker
        self._outbox.write(Failed(root.number, failure, frame, broker))
        self.stop(root, "failed", now)

    def lose(self, root: MasterRun, type_name: str, text: str, now: float) -> None:
        """The run can't go on, and no task of it is to blame."""
        if root.state is RunState.RUNNING:
            root.failure = Failure(-1, 0, "lost", type_name=type_name, text=text)
            self._outbox.write(Failed(root.number, root.failure))
            self.stop(root, "lost", now)

    def _end(self, root: MasterRun, outcome: RunOutcome, grace_s: float | None, now: float) -> None:
        root.outcome = outcome
        keeps = outcome == "done"
        self.close_runs([*root.family], keeps=keeps, grace_s=grace_s, now=now)

    def close_runs(
        self, numbers: Sequence[RunNo], *, keeps: bool, grace_s: float | None, now: float
    ) -> None:
        """Have brokers release these runs; `grace_s`: after stopping what still runs."""
        for number in numbers:
            run = self.runs[number]
            if run.state is not RunState.RUNNING:
                continue
            self.placer.end_loads(run)
            self._tell_end(run, keeps=keeps, grace_s=grace_s)
            run.recovery = None
            run.move(RunState.ENDING)
        for number in numbers:
            ending = self.runs.get(number)
            if ending is not None:
                self._go_on(ending, now)

    def _tell_end(self, run: MasterRun, *, keeps: bool, grace_s: float | None) -> None:
        for broker in run.brokers():
            if grace_s is not None:
                self._outbox.send(broker, CancelRun(run.number, grace_s))
            positions = self._kept.settle(run.number, broker) if keeps else []
            self._outbox.send(broker, EndRun(run.number, positions))
            run.closing.add(broker)
        if not keeps:
            self._kept.forget_run(run.number)

    def closed(self, number: RunNo, broker: ProcessId, stats: NodeStats, now: float) -> bool:
        """A broker has released all of a run; False if nobody asked it to."""
        run = self.runs.get(number)
        if run is None or broker not in run.closing:
            return False
        run.closing.discard(broker)
        root = self.runs[run.root]
        known = root.stats.get(broker)
        root.stats[broker] = stats if known is None else merged_stats(known, stats)
        self._go_on(run, now)
        return True

    def _go_on(self, run: MasterRun, now: float) -> None:
        """Take the next step of a run that brokers have released, then of its root."""
        root = self.runs[run.root]
        if run is not root and run.state is RunState.ENDING and not run.closing:
            self._forget(run)
            self.departures.step(now)
        if root.closing or len(root.family) > 1:
            return
        if root.state is RunState.ENDING:
            self._forget(root)
            self._report(root)
            self.departures.step(now)

    def _forget(self, run: MasterRun) -> None:
        run.move(RunState.ENDED)
        self._kept.end_use(run.pinned)
        self.departures.run_ended(run.number)
        del self.runs[run.number]
        root = self.runs.get(run.root, run)
        del root.family[run.number]
        self._outbox.write(Ended(run.number, root.outcome or "done", rest_of(run)))

    def _report(self, root: MasterRun) -> None:
        if root.outcome is None:
            raise InternalError(f"run {root.number} ended without an outcome")
        self._outbox.tell(
            RunEnded(
                run=root.number,
                state=root.outcome,
                failure=root.failure,
                failure_frame=root.failure_frame,
                node=root.failed_node,
                stats=[root.stats[broker] for broker in sorted(root.stats)],
                subtree_brokers=[
                    root.location(lo) or 0 for lo in root.plan.subtree_starts[:-1].tolist()
                ],
                kept_brokers=self._persisted(root),
                tally=root.tally,
            )
        )

    def _persisted(self, root: MasterRun) -> dict[int, int]:
        flags = root.plan.flags[: root.plan.task_count]
        positions = np.flatnonzero(flags & PERSISTED).tolist()
        found = {p: self._kept.broker_of((root.number, p)) for p in positions}
        return {position: broker for position, broker in found.items() if broker is not None}

    def abandon_all(self) -> None:
        """The environment is being closed: tell the client so of each of its runs."""
        for run in self.runs.values():
            if run.state is RunState.RUNNING:
                self.placer.end_loads(run)
        for root in self._roots():
            root.outcome = root.outcome or "cancelled"
            self._outbox.write(Ended(root.number, root.outcome))
            self._report(root)
        self.runs.clear()

    # --- nodes come and go ------------------------------------------------------------------------

    def place_all(self, now: float) -> None:
        """Something has changed in the cluster: place what can be placed."""
        for run in self.running():
            self.placer.place(run, now)

    def remove_node(self, node: Node, now: float) -> None:
        """Let a node go that others don't need any more, or that is to go all the same."""
        broker = node.broker
        self._members.remove(broker, f"node {broker} was removed", now, is_lost=False)
        self.node_gone(broker, now)

    def node_gone(self, broker: ProcessId, now: float) -> None:
        """A node is gone with all that it had: the families that it had a part in recover."""
        wanted = self._kept.forget_broker(broker)
        self.departures.node_gone(broker)
        for root in self._roots():
            family = self.family(root)
            gone = [key for run in family for key in run.pinned if key in wanted]
            is_hurt = False
            for run in family:
                is_hurt |= self._forget_share(run, broker)
            if gone:
                self.lose(root, "ObjectLost", lost_text(*gone[0]), now)
            elif root.state is RunState.RUNNING and root.taken:
                self._end(root, "done", None, now)  # all values are there, who needs the rest
            elif root.state is RunState.RUNNING and (is_hurt or root.recovery is not None):
                self.recoveries.begin(root, now)
            for run in family:
                if run.number in self.runs:
                    self._go_on(run, now)
        self.place_all(now)
        self.departures.step(now)

    def _forget_share(self, run: MasterRun, broker: ProcessId) -> bool:
        """Whoever comes back under this id knows nothing of the run; whether it had a part."""
        run.closing.discard(broker)
        run.note_lost(broker)
        if run.state is RunState.RUNNING:
            for subtree in run.subtrees:
                if subtree.home == broker and subtree.state is SubtreeState.PLACED:
                    self.placer.give_up(run, subtree)
                if subtree.home == broker and subtree.state is not SubtreeState.READY:
                    subtree.home = None
        share = run.shares.get(broker)
        if share is None:
            return False
        self.placer.empty_queues(run, [broker])
        took_part, share.took_part = share.took_part, False
        share.functions.clear()
        share.sources.clear()
        return took_part

    def recovered(self, root: MasterRun, now: float) -> None:
        """A family knows again where everything is."""
        for run in self.family(root):
            self._kept.follow(run.number, run.plan.task_count, run.location)
        if root.state is RunState.RUNNING and root.announced and not root.taken:
            self._keep_refs(root)  # what was lost with its node is computed again
        for run in self.family(root):
            if run.state is RunState.RUNNING:
                self.maybe_finish(run, now)
        self.departures.step(now)

    def where(self, broker: ProcessId, number: RunNo, position: int, now: float) -> None:
        """A broker looks for a value whose holder doesn't have it, or is gone."""
        run = self.runs.get(number)
        if run is not None and run.state is RunState.RUNNING:
            self.recoveries.look_for(run, broker, position, now)
            return
        holder = self.locate(number, position)
        is_told = holder is not None and holder in self._members.nodes and holder != broker
        frames = [
            np.array([position], np.int32).tobytes(),
            np.array([holder if is_told else 0], np.int32).tobytes(),
        ]
        self._outbox.send(broker, Relocate(number), frames)

    def end_without_nodes(self, now: float) -> None:
        """There is no node, and none will come."""
        for root in self._roots():
            text = "no node joined in time; the reasons are in the logs of their brokers"
            self.lose(root, "NoNodesError", text, now)

    # --- time -------------------------------------------------------------------------------------

    def _patience_ends_s(self, root: MasterRun) -> float | None:
        """When a run is lost for want of nodes; None: there are some."""
        since_s = self._members.empty_since_s
        if since_s is None or root.state is not RunState.RUNNING:
            return None
        return max(since_s, root.submitted_s) + self._config.no_nodes_grace_s

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        while self._deadlines and self.find_active(self._deadlines[0][1]) is None:
            heapq.heappop(self._deadlines)
        times = [deadline_s for deadline_s, _ in self._deadlines[:1]]
        orphans_by_s = self.recoveries.next_timer()
        if orphans_by_s is not None:
            times.append(orphans_by_s)
        if self._members.empty_since_s is not None:
            ends = [self._patience_ends_s(root) for root in self._roots()]
            times += [end_s for end_s in ends if end_s is not None]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """End runs that took too long, or that have waited too long for a node."""
        self.recoveries.handle_timer(now)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            root = self.find_active(number)
            if root is not None and not root.announced:
                self.stop(root, "timed_out", now)
        for root in self._roots():
            end_s = self._patience_ends_s(root)
            if end_s is not None and now >= end_s:
                text = (
                    f"there has been no node for {self._config.no_nodes_grace_s:g} s; "
                    "add processes and reset the environment"
                )
                self.lose(root, "NoNodesError", text, now)

    # --- checking ---------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Re-derive counts and families; returns what is wrong."""
        wrong = []
        for run in self.runs.values():
            root = self.runs.get(run.root)
            if root is None or run.number not in root.family:
                wrong.append(f"run {run.number} isn't in its family {run.root}")
            if run.missing_count != run.missing.count(1):
                wrong.append(f"run {run.number} misses {run.missing.count(1)} outputs")
            if not run.closing <= self._members.nodes.keys():
                wrong.append(f"run {run.number} waits for {sorted(run.closing)} to let go of it")
            if run.closing and run.state is RunState.RUNNING:
                wrong.append(f"run {run.number} runs and is being closed")
            if run.state is RunState.RUNNING and len(run.importers) and not run.recovering:
                counts = np.zeros_like(run.importers)
                for subtree in run.subtrees:
                    if subtree.state in UNFINISHED:
                        counts[subtree.imports] += 1
                if (counts != run.importers).any():
                    wrong.append(f"run {run.number} has wrong counts of importers")
        return wrong
