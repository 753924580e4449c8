"""How one task stands on this node, when the master asks: from the live state, and only then. Pure.

Changes nothing. What it costs is paid by who asks: some array lookups a task, and a walk over
missing inputs of at most `WALK_MAX` tasks.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dagsched.brokers.bundling import RETURNED_GRAPH
from dagsched.brokers.state import (
    BrokerRun,
    Bundle,
    BundleState,
    Executor,
    Int32,
    Subtree,
)
from dagsched.brokers.status import AWAITING_POSITION
from dagsched.ids import BundleNo, RunNo
from dagsched.protocol.asking import AskTask, TaskAnswer, TaskView

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore

INPUTS_MAX = 5  # missing inputs that an answer describes; all are counted
WALK_MAX = 10_000  # steps to the cause: a millisecond for each hundred


class Look(NamedTuple):
    """What an executor does at this moment, as its process says in shared memory."""

    position: int  # of the task that it runs; below 0: none
    since_s: float  # when that task began
    is_stopped: bool  # the process has been stopped by a signal


LookAt = Callable[[int], Look | None]
"""From an executor's id to what it does; None: there is no such process."""


def no_look(executor: int) -> None:  # noqa: ARG001 - in place of a real one
    """Nobody can look: what the core knows must do."""
    return


def task_answer(core: "BrokerCore", question: AskTask, now: float) -> TaskAnswer:
    """All that this node can say of a task.

    Args:
        core: of the node.
        question: the master's.
        now: monotonic seconds.
    """
    run = core.runs.get(RunNo(question.run))
    there, busy, stopped = _executors_at_work(core)
    position = question.position
    if run is None:
        view = TaskView(position, "unknown")
        return TaskAnswer(
            question.request, question.run, view,
            executor_count=there, running_count=busy, stopped_count=stopped,
        )  # fmt: skip
    if position < 0:
        position = _first_open(run)
    views = _Views(core, run, now)
    view = views.of(position)
    inputs = views.inputs(position)
    missing = [dep for dep in inputs if run.object_of[dep] < 0]
    is_open = view.state in ("waiting", "uncut")
    cause, depth = views.cause(view) if is_open else (None, 0)
    return TaskAnswer(
        question.request,
        question.run,
        view,
        input_count=len(inputs),
        missing_count=len(missing) if is_open else 0,
        inputs=[views.of(dep) for dep in missing[:INPUTS_MAX]] if is_open else [],
        cause=cause,
        depth=depth,
        executor_count=there,
        running_count=busy,
        stopped_count=stopped,
        transfer_count=core.exchange.transfer_count,
    )


def _executors_at_work(core: "BrokerCore") -> tuple[int, int, int]:
    """How many executors are there, run something, and have been stopped."""
    there = busy = stopped = 0
    for executor in core.executors.values():
        if executor.pid:
            there += 1
            look = core.look(executor.id)
            if look is not None and look.is_stopped:
                stopped += 1
            elif executor.queue:
                busy += 1
    return there, busy, stopped


def _first_open(run: BrokerRun) -> int:
    """A task that hasn't ended and should be the next: lined up, or waiting, or not yet cut; -1."""
    for state in (BundleState.DISPATCHED, BundleState.READY, BundleState.WAITING):
        for bundle in run.bundles.values():
            if bundle.state is state:
                return int(bundle.positions[0])
    for subtree in run.subtrees.values():
        uncut = subtree.uncut()
        if subtree.remaining_count and len(uncut):
            return int(uncut[0])
    waiting = np.flatnonzero((run.bundle_of == RETURNED_GRAPH) & (run.object_of < 0))
    return int(waiting[0]) if len(waiting) else -1


class _Views:
    """Tasks of one run, as this node sees them."""

    def __init__(self, core: "BrokerCore", run: BrokerRun, now: float) -> None:
        self._core = core
        self._run = run
        self._now = now

    def _subtree(self, position: int) -> Subtree | None:
        """The living subtree that the task is in; else one that has ended."""
        found = None
        for subtree in self._run.subtrees.values():
            if subtree.has(position) and (found is None or subtree.remaining_count):
                found = subtree
        return found

    def inputs(self, position: int) -> Sequence[int]:
        """What the task depends on; nothing once its subtree has ended."""
        subtree = self._subtree(position)
        if subtree is None or not len(subtree.indptr):
            return []
        begin, end = subtree.indptr[position - subtree.lo : position - subtree.lo + 2]
        inputs: list[int] = subtree.deps[begin:end].tolist()
        return inputs

    def of(self, position: int) -> TaskView:
        """One task, or source."""
        run = self._run
        if not 0 <= position < run.total:
            return TaskView(position, "unknown")
        if run.cancelled:
            return TaskView(position, "cancelled")
        if run.object_of[position] >= 0:
            return TaskView(position, "held")
        number = int(run.bundle_of[position])
        if number == RETURNED_GRAPH:
            return TaskView(position, "graph")
        bundle = run.bundles.get(BundleNo(number))
        if bundle is not None:
            return self._bundled(position, bundle)
        if position in run.lacking:
            return TaskView(position, "lacking")
        if run.sought[position]:
            return TaskView(position, "fetching", node=int(run.sought[position]))
        subtree = self._subtree(position)
        if subtree is None:
            return TaskView(position, "awaited" if position >= run.total_tasks else "unknown")
        if position >= subtree.cursor and subtree.remaining_count:
            ahead = int(np.searchsorted(subtree.uncut(), position))
            return TaskView(position, "draining" if run.draining else "uncut", ahead_count=ahead)
        return TaskView(position, "ended")

    def _bundled(self, position: int, bundle: Bundle) -> TaskView:
        attempt = bundle.attempt
        if bundle.state is BundleState.WAITING:
            return TaskView(position, "waiting", attempt=attempt)
        if bundle.state is BundleState.READY:
            state = "held_back" if bundle.number in self._core.pressure.held else "ready"
            state = "draining" if self._run.draining else state
            return TaskView(
                position, state, attempt=attempt, ahead_count=_bundles_before(self._run, bundle)
            )
        lane = next((lane for lane in bundle.lanes if position in lane.positions), None)
        for executor in self._core.executors.values():
            if bundle in executor.queue and (lane is None or bundle.at.get(executor.id) is lane):
                order = bundle.positions if lane is None else lane.order()
                return self._dispatched(position, bundle, order, executor)
        if any(position in report.positions() for report in bundle.reports):
            return TaskView(position, "ended", attempt=attempt)
        # Its executor is lost, or left it out: it waits for the end of the other lanes.
        return TaskView(position, "ready", attempt=attempt)

    def _dispatched(
        self, position: int, bundle: Bundle, order: Int32, executor: Executor
    ) -> TaskView:
        if executor.queue[0] is not bundle:
            return TaskView(position, "queued", executor.id, attempt=bundle.attempt)
        since_s, ahead = bundle.begun_s, 0
        look = self._core.look(executor.id)
        if look is not None and look.position >= 0:
            mine, theirs = _place(order, position), _place(order, look.position)
            if mine < theirs:
                return TaskView(position, "ended", executor.id, attempt=bundle.attempt)
            ahead = mine - theirs
            since_s = bundle.begun_s if ahead else look.since_s
        elif look is not None and look.position == AWAITING_POSITION:
            since_s = max(0.0, self._now - bundle.begun_s)  # how far it is isn't known
            return TaskView(position, "in_lane", executor.id, since_s, bundle.attempt)
        else:
            ahead = _place(order, position)
        state = "bundled" if ahead else "running"
        if look is not None and look.is_stopped:
            state = "stopped"
        return TaskView(
            position, state, executor.id, max(0.0, self._now - since_s), bundle.attempt, ahead
        )

    def cause(self, view: TaskView) -> tuple[TaskView | None, int]:
        """Follow the first missing input of each task to one that waits for none here."""
        run = self._run
        for depth in range(WALK_MAX):
            needed = self.inputs(view.position)
            bundle = run.bundles.get(BundleNo(int(run.bundle_of[view.position])))
            missing = next((dep for dep in needed if run.object_of[dep] < 0), None)
            if missing is None and bundle is not None:
                # It waits for what others in its bundle need.
                missing = next(
                    (dep for dep in bundle.imports.tolist() if run.object_of[dep] < 0), None
                )
            if missing is None:
                return (view if depth else None), depth
            view = self.of(missing)
            if view.state not in ("waiting", "uncut"):
                return view, depth + 1
        return view, WALK_MAX


def _place(order: Int32, position: int) -> int:
    """How many tasks come before one of these; 0: none, or it isn't one of them."""
    return int((order == position).argmax())


def _bundles_before(run: BrokerRun, bundle: Bundle) -> int:
    """Bundles of the run that go before this READY one."""
    mine = next((entry for entry in run.ready if entry[2] == bundle.number), None)
    if mine is None:
        return 0
    return sum(
        entry < mine and run.bundles[BundleNo(entry[2])].state is BundleState.READY
        for entry in run.ready
        if BundleNo(entry[2]) in run.bundles
    )
