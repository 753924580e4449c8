"""What has to be computed again after a loss: asked of all brokers, decided in one place. Pure.

A family of runs *recovers* when a node that took part in it is gone, when a node is to leave with
objects that are still needed, and when its master is a new one. All its brokers are asked what they
hold; what they tell is in order with all that they told before, and what they name stays where it
is until it is released. From that, backwards from the outputs that are missing and from what living
subtrees still lack, follows the least set of tasks (`least_set`). Those become *pieces*: subtrees
of just these tasks, which are placed before all others. Meanwhile nothing of the family is placed;
what brokers have goes on.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dagsched.config import Config
from dagsched.ids import ProcessId, RunNo
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.placing import Placer
from dagsched.master.rebuilding import Rebuild
from dagsched.master.state import MasterRun, Recovery, RunState
from dagsched.master.telling import told_by
from dagsched.protocol.messages import AskHoldings, Frame, Holdings

if TYPE_CHECKING:
    from dagsched.master.lives import Lives


class Recoveries:
    """Part of `Lives`, which owns the runs."""

    def __init__(
        self, lives: "Lives", members: Members, outbox: Outbox, placer: Placer, config: Config
    ) -> None:
        self.lives = lives
        self.members = members
        self.outbox = outbox
        self.placer = placer
        self.limit = config.recovery_limit
        self.parts_a_node = config.subtrees_a_node
        self._count = 0
        kinds = ("recoveries", "rebalances", "recomputed_tasks", "moved_objects")
        self.counters = dict.fromkeys(kinds, 0)

    # --- asking -----------------------------------------------------------------------------------

    def await_orphans(self, root: MasterRun, until_s: float) -> None:
        """A resumed run: ask when the brokers that it had are there."""
        if root.recovery is None:
            root.recovery = Recovery(0, orphans_by_s=until_s)

    def next_timer(self) -> float | None:
        """When a run stops waiting for orphans."""
        waits = [run.recovery.orphans_by_s for run in self.lives.runs.values() if run.recovery]
        return min((when for when in waits if when is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Go on without the orphans that haven't come."""
        for root in [run for run in self.lives.runs.values() if run.recovery is not None]:
            by_s = root.recovery.orphans_by_s if root.recovery is not None else None
            if by_s is not None and (now >= by_s or self.members.has_all_orphans):
                self.begin(root, now, retell=True)

    def begin(
        self,
        root: MasterRun,
        now: float,
        *,
        retell: bool = False,
        give_back: Sequence[RunNo] = (),
        deals: Sequence[RunNo] = (),
    ) -> None:
        """Ask the brokers of a family what they hold; a recovery under way begins anew.

        Of the runs in `give_back` they are to give back what they haven't begun; what is left of
        those in `deals` is dealt then, task by task.
        """
        if root.state is not RunState.RUNNING:
            return
        if root.recovery is not None and root.recovery.orphans_by_s is not None and not retell:
            return  # it will begin as soon as the orphans are there
        before, root.recovery = root.recovery, None
        for catch_up in before.later if before is not None else ():
            catch_up(now)  # what brokers told before they are asked once more
        if not _is_running(root):
            return
        self._count += 1
        is_quiet = bool(give_back) and (before is None or before.is_quiet)
        self.counters["rebalances" if is_quiet else "recoveries"] += 1
        if not is_quiet:
            self.outbox.happened(root, "recovering", text=root.losses)
        spreads = bool(give_back) or (before is not None and before.spreads)
        recovery = root.recovery = Recovery(self._count, spreads, is_quiet)
        recovery.askers = before.askers if before is not None else []
        asked: dict[ProcessId, list[int]] = {}
        for run in self.lives.family(root):
            if run.state is not RunState.RUNNING:
                continue
            run.recovering = True
            run.is_dealt |= run.number in deals
            recovery.told[run.number] = {}
            for broker in run.brokers():
                if broker in self.members.nodes:
                    recovery.awaiting.add((broker, run.number))
                    asked.setdefault(broker, []).append(run.number)
        for broker, runs in asked.items():
            self.outbox.send(broker, AskHoldings(recovery.number, runs, retell, give_back))
        self._maybe_conclude(root, now)

    def look_for(self, run: MasterRun, broker: ProcessId, position: int, now: float) -> None:
        """A broker looks for a value; a task may collect it, of which holdings say nothing."""
        root = self.lives.runs[run.root]
        share = run.shares.get(broker)
        place = self.lives.locate(run.number, position)
        if root.recovery is None and (broker, position) not in run.told_where:
            run.told_where.add((broker, position))  # once
            if place in self.members.nodes and place != broker:
                self.placer.tell_where(run, broker, position)
                return
        if root.recovery is None and share is not None and share.took_part:
            self.begin(root, now)
        if root.recovery is None:
            self.placer.tell_where(run, broker, position)
        else:
            is_told_after = (broker, run.number) in root.recovery.awaiting
            root.recovery.askers.append((broker, run.number, position, is_told_after))

    def take(
        self,
        run: MasterRun,
        broker: ProcessId,
        message: Holdings,
        frames: Sequence[Frame],
        now: float,
    ) -> bool:
        """A broker says what it holds; False: nobody waits for that.

        Raises:
            ProtocolError: its frames can't be what the message says.
        """
        root = self.lives.runs[run.root]
        recovery = root.recovery
        key = (broker, run.number)
        if recovery is None or recovery.number != message.number or key not in recovery.awaiting:
            return False
        recovery.awaiting.discard(key)
        recovery.told[run.number][broker] = told_by(run, broker, message, frames)
        self._maybe_conclude(root, now)
        return True

    def defer(self, run: MasterRun, broker: ProcessId, catch_up: Callable[[float], None]) -> bool:
        """Whether something that a broker told after its holdings has to wait for the conclusion.

        To the conclusion the broker still works on what had not ended when it told its holdings.
        """
        recovery = self.lives.runs[run.root].recovery
        if recovery is None or broker not in recovery.told.get(run.number, ()):
            return False
        recovery.later.append(catch_up)
        return True

    def _maybe_conclude(self, root: MasterRun, now: float) -> None:
        recovery = root.recovery
        if recovery is None or recovery.awaiting or recovery.orphans_by_s is not None:
            return
        root.recovery = None
        family = [run for run in self.lives.family(root) if run.number in recovery.told]
        for run in family:  # parents come before the runs that their tasks began
            if run.state is RunState.RUNNING:
                Rebuild(self, run, recovery.told[run.number], recovery.spreads).do(now)
                if root.state is not RunState.RUNNING:
                    return  # something is lost for good
        for run in family:
            if run.state is RunState.RUNNING:
                run.recovering = False
                self.placer.begin(run)
        for run in family:
            if run.state is RunState.RUNNING:
                self.placer.place(run, now)
                if run.announced:
                    self.lives.families.link_again(run, now)
                self.lives.maybe_announce(run, now)
        for broker, number, position, is_known in recovery.askers:
            asked_of = self.lives.runs.get(number)
            if asked_of is not None and asked_of.state is RunState.RUNNING:
                if is_known:
                    self.placer.tell_where(asked_of, broker, position)
                else:  # what the broker held may not be so any more
                    self.look_for(asked_of, broker, position, now)
        if not recovery.is_quiet:
            self.outbox.happened(root, "recovered")
        for catch_up in recovery.later:
            catch_up(now)
        self.lives.recovered(root, now)


def _is_running(run: MasterRun) -> bool:
    return run.state is RunState.RUNNING
