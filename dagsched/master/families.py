"""Graphs that tasks returned: runs of their own, whose value becomes the task's. Pure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagsched.errors import GraphError, ProtocolError
from dagsched.ids import ProcessId, RunNo
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.state import Child, MasterRun, RunState, RunTerms, Subtree
from dagsched.plan import RefSource
from dagsched.protocol.messages import Failure, Frame, Redirect
from dagsched.protocol.plans import decode_plan

if TYPE_CHECKING:
    from dagsched.master.lives import Lives

CHILD_RUNS_FROM = 1 << 62
"""Numbers of runs that tasks started; below it are the client's."""


class Families:
    """Part of `Lives`, which owns the runs.

    Args:
        lives: the owner.
        members: the nodes.
        outbox: for messages.
        base: where the environment's numbers of runs begin.
    """

    def __init__(self, lives: "Lives", members: Members, outbox: Outbox, base: int) -> None:
        self._lives = lives
        self._members = members
        self._outbox = outbox
        self._child_count = CHILD_RUNS_FROM + base

    def link(self, run: MasterRun, parent: tuple[RunNo, int], now: float) -> None:
        """Tell the brokers of the task that returned this graph where its value is."""
        above, position = self._lives.runs[parent[0]], parent[1]
        child = above.children[position]
        waiters = sorted(child.waiters & self._members.nodes.keys())
        if not waiters:
            return  # the task is to be done again, and will return its graph again
        output = int(run.plan.outputs[0])
        source_run, source_position, holder = int(run.number), output, None
        if output < run.plan.task_count:
            holder = run.location(output)
            child.bare = not run.objects[0][1].refs
        else:
            source = run.plan.sources[output - run.plan.task_count]
            if isinstance(source, RefSource):
                source_run, source_position = source.run, source.position
                holder = self._lives.locate(source_run, source_position)
        if holder is None and run.recovering:
            return  # it is linked again when it is known who has what
        if holder is None:
            text = "the task returned a graph whose value nobody has"
            failure = Failure(position, 1, "result", text=text)
            self._lives.fail(above, waiters[0], failure, None, now)
            return
        redirect = Redirect(above.number, position, source_run, source_position, holder)
        for waiter in waiters:
            self._outbox.send(waiter, redirect)

    def link_again(self, run: MasterRun, now: float) -> None:
        """The task that returned this graph may have lost sight of its value."""
        if run.parent is not None:
            self.link(run, run.parent, now)

    def expand(
        self,
        run: MasterRun,
        broker: ProcessId,
        position: int,
        frames: Sequence[Frame],
        now: float,
    ) -> None:
        """A task returned a graph: run it, and make its value the task's."""
        # A drained broker does no more of it; others may both have it, after the loss of a master.
        node = self._members.nodes.get(broker)
        waiters = set() if node is None or run.number in node.drained else {broker}
        known = run.children.get(position)
        if known is not None and not waiters:
            return
        if known is not None:
            # It ran again, its executor or node having died: the first graph stands.
            child_run = self._lives.runs.get(known.run)
            if child_run is not None and child_run.state is RunState.RUNNING:
                known.waiters |= waiters
                if child_run.announced:
                    self.link(child_run, (run.number, position), now)
                return
            del run.children[position]  # that one has ended, and its value is gone
        number = RunNo(self._child_count)
        self._child_count += 1
        try:
            if not 0 <= position < run.plan.task_count:
                raise ProtocolError(f"there is no task at {position}")
            plan = decode_plan(frames)
            if len(plan.outputs) != 1:
                raise ProtocolError(f"a returned graph has one value, not {len(plan.outputs)}")
            run.children[position] = Child(number, waiters=waiters)
            parent = (run.number, position)
            self._lives.open(number, plan, now, RunTerms(run.priority, None, parent))
        except (ProtocolError, GraphError) as error:
            text = f"the graph that the task returned can't be run: {error}"
            self._lives.fail(run, broker, Failure(position, 1, "result", text=text), None, now)

    def end_bare_children(self, run: MasterRun, subtree: Subtree, now: float) -> None:
        """The subtree's tasks have their values: graphs that they returned are over."""
        if not run.children:
            return
        ready = [
            child.run
            for position, child in run.children.items()
            if child.bare and run.producer(position) is subtree
        ]
        below: list[RunNo] = []
        while ready:
            number = ready.pop()
            child_run = self._lives.runs.get(number)
            if child_run is not None:
                below.append(number)
                ready += [child.run for child in child_run.children.values()]
        self._lives.close_runs(below, keeps=False, grace_s=None, now=now)
