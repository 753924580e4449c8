"""Nodes that leave as planned: drained, emptied of what others need, then let go. Pure.

A node that isn't wanted any more gets nothing new. Its executors end what they run of each run
(`DrainRun`, `Drained`), a recovery finds out what of its objects is still needed, other nodes take
those over (`TakeObjects`, `ObjectsTaken`), those that are kept for Refs too; then it is shut down.
Nothing is charged to anybody. An adopted orphan isn't drained: it stays until the runs that it
brought have ended.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dagsched.ids import ProcessId, RunNo
from dagsched.master.events import KeptMoved
from dagsched.master.kept import KeptObjects
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.slices import positions_frame
from dagsched.master.state import MasterRun, Node, RunState
from dagsched.plan import Int32
from dagsched.protocol.messages import DrainRun, TakeObjects, TellOutputs

if TYPE_CHECKING:
    from dagsched.master.lives import Lives


class Departures:
    """Part of `Lives`, which owns the runs."""

    def __init__(self, lives: "Lives", members: Members, kept: KeptObjects, outbox: Outbox) -> None:
        self._lives = lives
        self._members = members
        self._kept = kept
        self._outbox = outbox

    def target_for(self, leaver: ProcessId) -> ProcessId | None:
        """The node that takes over: the one with the least to do; None: there is none."""
        nodes = [
            node
            for node in self._members.nodes.values()
            if node.broker != leaver and node.is_usable
        ]
        best = min(
            nodes, key=lambda node: (node.load_s / len(node.executors), node.broker), default=None
        )
        return None if best is None else best.broker

    def step(self, now: float) -> None:
        """Do for each leaving node what can be done next."""
        for broker in [b for b, node in self._members.nodes.items() if node.leaving]:
            node = self._members.nodes.get(broker)
            if node is not None:
                self._step_one(node, now)

    def _step_one(self, node: Node, now: float) -> None:
        broker = node.broker
        here = [
            run
            for run in self._lives.runs.values()
            if (share := run.shares.get(broker)) is not None and share.took_part
        ]
        if node.foreign_runs or (node.is_orphan and here):
            return
        for run in here:
            if run.state is RunState.RUNNING and run.number not in node.draining | node.drained:
                node.draining.add(run.number)
                self._outbox.send(broker, DrainRun(run.number))
        if any(run.state is not RunState.RUNNING for run in here) or node.draining:
            return
        if here and not self._can_go(node, here, now):
            return
        is_kept = set(self._kept.on(broker))
        # What was on its way for a run that has ended meanwhile is of no use to anybody.
        node.moving = {
            key: to
            for key, to in node.moving.items()
            if key[0] in self._lives.runs or key in is_kept
        }
        kept = [key for key in self._kept.on(broker) if key not in node.moving]
        target = self.target_for(broker)
        if kept and target is not None:
            self._move_kept(node, kept, target)
        if node.moving:
            return
        if kept and self._members.wanted:
            return  # other nodes are wanted, and will be there
        self._lives.remove_node(node, now)

    def _can_go(self, node: Node, here: Sequence[MasterRun], now: float) -> bool:
        """Nothing that runs need is left on it but what is being moved."""
        roots = {run.root: None for run in here}
        if any(self._lives.runs[root].recovery is not None for root in roots):
            return False
        if self.target_for(node.broker) is None:
            return False  # it stays until another can take over
        if not node.is_asked:
            for root in roots:
                self._lives.recoveries.begin(self._lives.runs[root], now)
            return False
        return True

    def _move_kept(self, node: Node, keys: list[tuple[RunNo, int]], target: ProcessId) -> None:
        by_run: dict[RunNo, list[int]] = {}
        for run, position in keys:
            by_run.setdefault(run, []).append(position)
            node.moving[run, position] = target
        for run, positions in by_run.items():
            frame = positions_frame(np.array(sorted(positions), np.int32))
            message = TakeObjects(run, 1, 0, node.broker, kept=True)
            self._outbox.send(target, message, [frame])

    def drained(self, broker: ProcessId, run: RunNo, now: float) -> None:
        """Nothing of the run is with an executor of that node any more."""
        node = self._members.nodes.get(broker)
        if node is not None and run in node.draining:
            node.draining.discard(run)
            node.drained.add(run)
            node.is_asked = False
            self.step(now)

    def taken(
        self, broker: ProcessId, run: RunNo, there: Sequence[int], gone: Sequence[int], now: float
    ) -> None:
        """A node has taken objects over, or could not."""
        arrived: list[int] = []
        for position in (*there, *gone):
            key = (run, position)
            for node in self._members.nodes.values():
                if node.moving.get(key) == broker:
                    del node.moving[key]
                    if position in there:
                        arrived.append(position)
        self._lives.recoveries.counters["moved_objects"] += len(arrived)
        found = self._lives.runs.get(run)
        for position in sorted(set(there) - set(arrived)) if found is None else ():
            # The client had dropped its Ref, and the leaver went without waiting for this.
            if self._kept.broker_of((run, position)) != broker:
                self._kept.release_at((run, position), broker)
        if found is not None and found.parent is None and arrived:
            moved = np.array(arrived, np.int32)
            self._outbox.happened(found, "moved", count=len(moved), node=broker, positions=moved)
        if found is not None and found.holder_of is not None:
            found.holder_of[arrived] = broker
            for position in arrived:
                self._kept.move((run, position), broker)
            outputs = [position for position in arrived if found.missing[position]]
            if outputs:
                frame = positions_frame(np.array(outputs, np.int32))
                self._outbox.send(broker, TellOutputs(run), [frame])
        else:
            for position in arrived:
                if self._kept.move((run, position), broker):
                    self._outbox.tell(KeptMoved(run, position, broker))
                else:
                    self._kept.release_at((run, position), broker)
            for position in gone:
                self._kept.lose((run, position))
        self.step(now)

    def run_ended(self, run: RunNo) -> None:
        """What leavers were asked about it won't be answered; what Refs still name goes anew."""
        for node in self._members.nodes.values():
            node.draining.discard(run)
            if node.moving:
                node.moving = {key: to for key, to in node.moving.items() if key[0] != run}

    def node_gone(self, lost: ProcessId) -> None:
        """What others were to take over of a leaving node must be looked at again."""
        for node in self._members.nodes.values():
            if lost in node.moving.values():
                node.moving = {key: to for key, to in node.moving.items() if to != lost}
                node.is_asked = False


def send_taking(
    outbox: Outbox, run: MasterRun, node: Node, target: ProcessId, positions: Int32
) -> None:
    """Have `target` take objects of a run over from a node that leaves."""
    total = run.plan.task_count + len(run.plan.sources)
    run.share(target).took_part = True
    message = TakeObjects(run.number, run.epoch, total, node.broker)
    outbox.send(target, message, [positions_frame(positions)])
    for position in positions.tolist():
        node.moving[run.number, position] = target
