"""Nodes that have nothing left to do while others have too much: when work is to move. Pure.

Nobody knows beforehand how long tasks take, nor how fast a node is at this moment: so what was
placed by estimates is placed anew when a node has run out of work and another hasn't begun what
it has. How that is done stands in `spreading`; here is when, and how fast nodes turn out to be.
"""

from collections.abc import Mapping, Sequence

from dagsched.master.dealing import is_better_dealt
from dagsched.master.lives import Lives
from dagsched.master.members import Members
from dagsched.master.slices import unknown_count
from dagsched.master.spreading import gives
from dagsched.master.state import MasterRun, Node, RunState

WAIT_S = 0.02
"""A node is idle for so long before others are asked: what is under way has come by then."""

WAIT_S_A_TASK = 2e-5
"""And as much longer for each task of the run: some five times what asking and placing anew costs
(measured: 0.1 to 0.5 s for 100,000 tasks). Less work than that is not moved either."""

AGE_SHARE = 0.03
"""A run isn't asked again within this share of its age, so that it costs no more than that."""

IN_VAIN = 9
"""So many pauses more if the nodes that were idle got nothing of what was given back."""


class Balance:
    """Looks after nodes that have nothing to do."""

    def __init__(self, members: Members, lives: Lives, estimates: Mapping[bytes, float]) -> None:
        self._members = members
        self._lives = lives
        self._estimates = estimates
        self._look_at_s: float | None = None

    def maybe_idle(self, now: float) -> None:
        """Some node may have run out of work."""
        if len(self._members.nodes) > 1:
            self._look_at_s = min(now + WAIT_S, self._look_at_s or now + WAIT_S)

    def maybe_long(self, run: MasterRun, now: float) -> None:
        """How long calls take has been told: more perhaps than was guessed."""
        if run.unknown_count and not run.is_dealt:
            self.maybe_idle(now)

    def next_timer(self) -> float | None:
        """When `handle_timer` should be called."""
        return self._look_at_s

    def handle_timer(self, now: float) -> None:
        """Have work given back for nodes that are idle still."""
        if self._look_at_s is None or now < self._look_at_s:
            return
        self._look_at_s = None
        nodes = self._members.usable(now)
        if len(nodes) < 2:
            return
        idle = [node.broker for node in nodes if not self._is_busy(node)]
        for root in [run for run in self._lives.running() if run.parent is None]:
            # Not while tasks wait for graphs that they returned, whose values would have to follow.
            if root.taken or root.children:
                continue
            family = [r for r in self._lives.family(root) if r.state is RunState.RUNNING]
            pause_s = _pause_s(root, family, now)
            by_s = root.spread_at_s + pause_s
            idle_by_s = by_s
            waiting = {b: sum(r.share(b).placed_count for r in family) for b in idle}
            if waiting == {b: root.spread_for.get(b) for b in idle}:
                idle_by_s += IN_VAIN * pause_s  # they got nothing when it was done for them before
            deals = []
            if now >= by_s and root.recovery is None:
                deals = [run.number for run in family if self._is_better_dealt(run, nodes)]
            has_idle = bool(idle) and now >= idle_by_s
            runs = deals + [
                run.number
                for run in family
                if run.number not in deals
                and gives(run, nodes, self._mean_s(run, now), pause_s, has_idle=has_idle)
            ]
            if runs and now >= by_s and root.recovery is None:
                root.spread_at_s, root.spread_for = now, waiting
                self._lives.recoveries.begin(root, now, give_back=runs, deals=deals)
                by_s = now + pause_s
            if runs or idle:
                by_s = max(by_s, now + WAIT_S) if runs else max(idle_by_s, now + pause_s)
                self._look_at_s = min(by_s, self._look_at_s or by_s)

    def _is_better_dealt(self, run: MasterRun, nodes: Sequence[Node]) -> bool:
        """A function has become known, and tasks are long: one look for each such function."""
        unknown_before = run.unknown_count
        if not unknown_before or run.is_dealt:
            return False
        run.unknown_count = unknown_count(run.plan, self._estimates)
        if run.unknown_count == unknown_before:
            return False
        executors = sum(len(node.executors) for node in nodes)
        return is_better_dealt(run, self._lives.seconds_of(run), executors)

    def _mean_s(self, run: MasterRun, now: float) -> float:
        """Of a call, as far as it is known; while none has ended they take as long as it is old."""
        seconds = self._lives.seconds_of(run)
        mean_s = float(seconds[run.plan.function_of].mean()) if run.plan.task_count else 0.0
        if run.is_unmeasured:
            return max(mean_s, now - run.submitted_s)
        return mean_s

    def _is_busy(self, node: Node) -> bool:
        """It has work of some run."""
        shares = [run.shares.get(node.broker) for run in self._lives.runs.values()]
        return any(share and (share.unfinished_count or share.queue) for share in shares)


def _pause_s(root: MasterRun, family: Sequence[MasterRun], now: float) -> float:
    """How long a family isn't asked after it was; at first, after it was submitted."""
    tasks = sum(run.plan.task_count for run in family)
    pause_s = AGE_SHARE * (now - root.submitted_s)
    if all(run.is_unmeasured for run in family):
        # While no task has ended nothing will have changed soon: it is asked ever more rarely.
        pause_s = root.spread_at_s - root.submitted_s
    return max(WAIT_S + WAIT_S_A_TASK * tasks, pause_s)
