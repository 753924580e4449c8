"""The lives of runs: opened, restarted after the loss of a node, ended everywhere. Pure.

A *family* is a run of the client (its root) and the runs of graphs that its tasks returned, at
any depth. It fails, restarts and ends as one; a member whose value has been copied ends earlier.
"""

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from dagsched.config import Config
from dagsched.errors import GraphError, InternalError, ProtocolError
from dagsched.ids import ProcessId, RunNo
from dagsched.master.events import OutputsComplete, RunEnded, RunOutcome
from dagsched.master.journal import ClientPart, Ended, Failed, OutputsReached, Submitted
from dagsched.master.kept import KeptObjects
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.placing import Placer
from dagsched.master.slices import (
    check_plan,
    function_seconds,
    holder_of_constant,
    importer_counts,
    is_needed_on,
    subtree_at,
    subtrees_of,
    successors_of,
)
from dagsched.master.state import (
    Child,
    MasterRun,
    RunState,
    Subtree,
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
    OutputsReady,
    Redirect,
)
from dagsched.protocol.plans import decode_plan

CHILD_RUNS_FROM = 1 << 40
"""Numbers of runs that tasks started; below it are the client's."""

ACTIVE = (RunState.RUNNING, RunState.RESTARTING)


class Lives:
    """All runs that haven't ended."""

    def __init__(
        self,
        config: Config,
        members: Members,
        kept: KeptObjects,
        outbox: Outbox,
        estimates: Mapping[bytes, float],
    ) -> None:
        self.runs: dict[RunNo, MasterRun] = {}  # in the order they were opened
        self.placer = Placer(config, members, outbox, self.locate)
        self._config = config
        self._members = members
        self._kept = kept
        self._outbox = outbox
        self._estimates = estimates
        self._child_count = 0
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
        if run is None or run.parent is not None or run.state not in ACTIVE:
            return None
        return run

    def locate(self, run: int, position: int) -> ProcessId | None:
        """The broker that has, or will have, the value of (run, position)."""
        while True:
            broker = self._kept.broker_of((RunNo(run), position))
            found = self.runs.get(RunNo(run))
            if broker is not None or found is None:
                return broker
            index = position - found.plan.task_count
            if index < 0:
                return subtree_at(found, position).home
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
        *,
        priority: int,
        timeout_s: float | None,
        parent: tuple[RunNo, int] | None,
        client: ClientPart = b"",
    ) -> None:
        """Take a run in and place what can be placed.

        Raises:
            GraphError: the plan is inconsistent.
        """
        if number in self.runs:
            raise InternalError(f"run {number} exists already")
        check_plan(plan)
        seconds = function_seconds(plan, self._estimates, self._config.unknown_task_s)
        subtrees = subtrees_of(number, plan, seconds)
        run = MasterRun(
            number=number,
            plan=plan,
            priority=priority,
            parent=parent,
            client=client,
            root=number if parent is None else self.runs[parent[0]].root,
            submitted_s=now,
            deadline_s=None if timeout_s is None else now + timeout_s,
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
        self._outbox.write(Submitted(number, priority, timeout_s, plan, parent, client))
        if run.deadline_s is not None:
            heapq.heappush(self._deadlines, (run.deadline_s, number))
        if self._pin_sources(run, now):
            self._start(run, now)

    def _pin_sources(self, run: MasterRun, now: float) -> bool:
        """Keep objects of earlier runs while this one needs them; False if one is gone."""
        for source in run.plan.sources:
            if not isinstance(source, RefSource):
                continue
            key = (RunNo(source.run), source.position)
            if self._kept.use(key):
                run.pinned.append(key)
            elif self.locate(*key) is None:
                self._lose(self.runs[run.root], "ObjectLost", _lost_text(*key), now)
                return False
        return True

    def _start(self, run: MasterRun, now: float) -> None:
        """Place the run's subtrees, for the first time or anew; nothing of it is anywhere."""
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
        self.placer.begin(run)
        self.placer.place(run, now)
        if not run.missing_count:
            self._announce(run, now)

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
        missing = run.missing
        for info in message.objects:
            frame = next(inline, None) if info.location is None else None
            first, end = info.first, info.first + info.count
            lacks_bytes = frame is None and info.location is None
            if not 0 <= first < end <= len(missing) or lacks_bytes:
                raise ProtocolError(f"broker {broker}, run {run.number}: no output at {first}")
            new_count = missing[first] if info.count == 1 else missing.count(1, first, end)
            if new_count:
                missing[first:end] = bytes(info.count)
                run.missing_count -= new_count
                run.objects.append((broker, info, frame))
        if not run.missing_count and not run.announced:
            self._announce(run, now)

    def _announce(self, run: MasterRun, now: float) -> None:
        """All outputs are there: the client copies them, or the task that waits gets its value."""
        run.announced = True
        self._outbox.write(OutputsReached(run.number, run.epoch, run.objects))
        if run.parent is not None:
            self._link(run, run.parent, now)
            return
        for _, info, _ in run.objects:
            for number, position in info.refs:
                self._keep(number, position)
        flags = run.plan.flags[: run.plan.task_count]
        for position in np.flatnonzero(flags & PERSISTED).tolist():
            self._keep(run.number, position)
        self._outbox.tell(OutputsComplete(run.number, list(run.objects)))
        if not run.subtrees:
            run.taken = True  # there is nothing to copy
            self.maybe_finish(run, now)

    def _keep(self, number: int, position: int) -> None:
        broker = self.locate(number, position)
        if broker is not None:
            self._kept.keep((RunNo(number), position), broker)

    def _link(self, run: MasterRun, parent: tuple[RunNo, int], now: float) -> None:
        """Tell the broker of the task that returned this graph where its value is."""
        above, position = self.runs[parent[0]], parent[1]
        home = subtree_at(above, position).home
        if home is None:
            raise InternalError(f"run {above.number}: the task at {position} ended nowhere")
        output = int(run.plan.outputs[0])
        source_run, source_position, holder = int(run.number), output, None
        if output < run.plan.task_count:
            holder, info, _ = run.objects[0]
            above.children[position].bare = not info.refs
        else:
            source = run.plan.sources[output - run.plan.task_count]
            if isinstance(source, RefSource):
                source_run, source_position = source.run, source.position
                holder = self.locate(source_run, source_position)
        if holder is None:
            text = "the task returned a graph whose value nobody has"
            self.fail(above, home, Failure(position, 1, "result", text=text), None, now)
            return
        redirect = Redirect(above.number, position, source_run, source_position, holder)
        self._outbox.send(home, redirect)

    def expand(
        self,
        run: MasterRun,
        broker: ProcessId,
        position: int,
        frames: Sequence[Frame],
        now: float,
    ) -> None:
        """A task returned a graph: run it, and make its value the task's."""
        if position in run.children:
            return  # it ran again, its executor having died; the first graph stands
        number = RunNo(CHILD_RUNS_FROM + self._child_count)
        self._child_count += 1
        try:
            if not 0 <= position < run.plan.task_count:
                raise ProtocolError(f"there is no task at {position}")
            plan = decode_plan(frames)
            if len(plan.outputs) != 1:
                raise ProtocolError(f"a returned graph has one value, not {len(plan.outputs)}")
            run.children[position] = Child(number)
            parent = (run.number, position)
            self.open(number, plan, now, priority=run.priority, timeout_s=None, parent=parent)
        except (ProtocolError, GraphError) as error:
            text = f"the graph that the task returned can't be run: {error}"
            self.fail(run, broker, Failure(position, 1, "result", text=text), None, now)

    def end_bare_children(self, run: MasterRun, subtree: Subtree, now: float) -> None:
        """The subtree's tasks have their values: graphs that they returned are over."""
        if not run.children:
            return
        ready = [
            child.run
            for position, child in run.children.items()
            if child.bare and subtree.lo <= position < subtree.hi
        ]
        below: list[RunNo] = []
        while ready:
            number = ready.pop()
            child_run = self.runs.get(number)
            if child_run is not None:
                below.append(number)
                ready += [child.run for child in child_run.children.values()]
        self._close_runs(below, keeps=False, grace_s=None, now=now)

    # --- ending -----------------------------------------------------------------------------------

    def maybe_finish(self, run: MasterRun, now: float) -> None:
        """End a run of the client whose tasks have ended and whose outputs are copied."""
        if run.parent is None and run.taken and not run.unfinished_count:
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
        if root.state not in ACTIVE:
            return
        if root is not run:
            values = {name: getattr(failure, name) for name in failure.__struct_fields__}
            failure = Failure(**{**values, "position": position})
        root.failure, root.failure_frame, root.failed_node = failure, frame, broker
        self._outbox.write(Failed(root.number, failure, frame, broker))
        self.stop(root, "failed", now)

    def _lose(self, root: MasterRun, type_name: str, text: str, now: float) -> None:
        """The run can't go on, and no task of it is to blame."""
        if root.state in ACTIVE:
            root.failure = Failure(-1, 0, "lost", type_name=type_name, text=text)
            self._outbox.write(Failed(root.number, root.failure))
            self.stop(root, "lost", now)

    def _end(self, root: MasterRun, outcome: RunOutcome, grace_s: float | None, now: float) -> None:
        root.outcome = outcome
        keeps = outcome == "done"
        self._close_runs([*root.family], keeps=keeps, grace_s=grace_s, now=now)

    def _close_runs(
        self, numbers: Sequence[RunNo], *, keeps: bool, grace_s: float | None, now: float
    ) -> None:
        """Have brokers release these runs; `grace_s`: after stopping what still runs."""
        for number in numbers:
            run = self.runs[number]
            if run.state not in ACTIVE:
                continue
            if run.state is RunState.RUNNING:  # else brokers have been told already
                self.placer.end_loads(run)
                self._tell_end(run, keeps=keeps, grace_s=grace_s)
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
        if root.closing or len(root.family) > 1:
            return
        if root.state is RunState.RESTARTING:
            self._relaunch(root, now)
        elif root.state is RunState.ENDING:
            self._forget(root)
            self._report(root)
            self.let_leavers_go(now)

    def _forget(self, run: MasterRun) -> None:
        run.move(RunState.ENDED)
        self._kept.end_use(run.pinned)
        del self.runs[run.number]
        root = self.runs.get(run.root, run)
        del root.family[run.number]
        self._outbox.write(Ended(run.number, root.outcome or "done"))

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
                subtree_brokers=[subtree.home or 0 for subtree in root.subtrees],
            )
        )

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

    def let_leavers_go(self, now: float) -> None:
        """Shut down nodes that aren't wanted any more and that no run needs."""
        for broker in [b for b, node in self._members.nodes.items() if node.leaving]:
            shares = [run.shares.get(broker) for run in self.runs.values()]
            is_needed = any(share is not None and share.took_part for share in shares)
            if not is_needed and not self._kept.is_used_on(broker):
                self._kept.forget_broker(broker)
                for run in self.runs.values():
                    run.shares.pop(broker, None)
                self._members.remove(broker, f"node {broker} was removed", now, is_lost=False)

    def node_lost(self, broker: ProcessId, now: float) -> None:
        """A node is gone with all that it had: restart the families that needed it."""
        wanted = self._kept.forget_broker(broker)
        for root in self._roots():
            family = [self.runs[number] for number in root.family]
            gone = [key for run in family for key in run.pinned if key in wanted]
            is_hurt = any(is_needed_on(run, broker) for run in family)
            for run in family:
                self._forget_share(run, broker)
            if gone:
                self._lose(root, "ObjectLost", _lost_text(*gone[0]), now)
            elif root.state is RunState.RUNNING and root.taken:
                self._end(root, "done", None, now)  # all values are there, who needs the rest
            elif root.state is RunState.RUNNING and is_hurt:
                self._restart(root, now)
            for run in family:
                if run.number in self.runs:
                    self._go_on(run, now)
        self.place_all(now)
        self.let_leavers_go(now)

    def _forget_share(self, run: MasterRun, broker: ProcessId) -> None:
        """Whoever comes back under this id knows nothing of the run."""
        run.closing.discard(broker)
        share = run.shares.get(broker)
        if share is not None:
            self.placer.empty_queues(run, [broker])
            share.took_part = False
            share.functions.clear()
            share.sources.clear()
            share.done_count = 0

    def _restart(self, root: MasterRun, now: float) -> None:
        """Do the whole run again on the nodes that are left, once they have let go of it."""
        self._tell_end(root, keeps=False, grace_s=_AT_ONCE_S)
        self.placer.take_back(root)
        root.move(RunState.RESTARTING)
        children = [number for number in root.family if number != root.number]
        self._close_runs(children, keeps=False, grace_s=_AT_ONCE_S, now=now)
        self._go_on(root, now)

    def _relaunch(self, root: MasterRun, now: float) -> None:
        root.epoch += 1
        root.objects = []
        root.announced = root.taken = False
        root.children.clear()
        root.importers = importer_counts(root.plan, root.subtrees)
        root.progress_count, root.progress_total = 0, root.plan.task_count
        root.move(RunState.RUNNING)
        self._start(root, now)

    def end_without_nodes(self, now: float) -> None:
        """There is no node, and none will come."""
        for root in self._roots():
            text = "no node joined in time; the reasons are in the logs of their brokers"
            self._lose(root, "NoNodesError", text, now)

    # --- time -------------------------------------------------------------------------------------

    def _patience_ends_s(self, root: MasterRun) -> float | None:
        """When a run is lost for want of nodes; None: there are some."""
        since_s = self._members.empty_since_s
        if since_s is None or root.state not in ACTIVE:
            return None
        return max(since_s, root.submitted_s) + self._config.no_nodes_grace_s

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        while self._deadlines and self.find_active(self._deadlines[0][1]) is None:
            heapq.heappop(self._deadlines)
        times = [deadline_s for deadline_s, _ in self._deadlines[:1]]
        if self._members.empty_since_s is not None:
            ends = [self._patience_ends_s(root) for root in self._roots()]
            times += [end_s for end_s in ends if end_s is not None]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """End runs that took too long, or that have waited too long for a node."""
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
                self._lose(root, "NoNodesError", text, now)

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
            if run.state is RunState.RUNNING and len(run.importers):
                counts = np.zeros_like(run.importers)
                for subtree in run.subtrees:
                    if subtree.state is not SubtreeState.DONE:
                        counts[subtree.imports] += 1
                if (counts != run.importers).any():
                    wrong.append(f"run {run.number} has wrong counts of importers")
        return wrong


_AT_ONCE_S = 0.001  # grace of tasks whose run starts anew: what they do is of no use


def _lost_text(run: int, position: int) -> str:
    return f"the value at position {position} of run {run} is gone with the node that had it"
