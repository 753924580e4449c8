"""Nodes that have nothing left to do while others have too much: when work is to move. Pure.

Nobody knows beforehand how long tasks take, nor how fast a node is at this moment: so what was
placed by estimates is placed anew when a node has run out of work and another hasn't begun what
it has. How that is done stands in `spreading`; here is when, and how fast nodes turn out to be.
"""

from collections.abc import Sequence

from dagsched.master.lives import Lives
from dagsched.master.members import Members
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

    def __init__(self, members: Members, lives: Lives) -> None:
        self._members = members
        self._lives = lives
        self._look_at_s: float | None = None

    def maybe_idle(self, now: float) -> None:
        """Some node may have run out of work."""
        if len(self._members.nodes) > 1:
            self._look_at_s = min(now + WAIT_S, self._look_at_s or now + WAIT_S)

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
            runs = [
                run.number
                for run in family
                if gives(
                    run, nodes, self._mean_s(run), pause_s, has_idle=bool(idle) and now >= idle_by_s
                )
            ]
            if runs and now >= by_s and root.recovery is None:
                root.spread_at_s, root.spread_for = now, waiting
                self._lives.recoveries.begin(root, now, give_back=runs)
                by_s = now + pause_s
            if runs or idle:
                by_s = max(by_s, now + WAIT_S) if runs else max(idle_by_s, now + pause_s)
                self._look_at_s = min(by_s, self._look_at_s or by_s)

    def _mean_s(self, run: MasterRun) -> float:
        """Of a call, as far as it is known."""
        seconds = self._lives.seconds_of(run)
        return float(seconds[run.plan.function_of].mean()) if run.plan.task_count else 0.0

    def _is_busy(self, node: Node) -> bool:
        """It has work of some run."""
        shares = [run.shares.get(node.broker) for run in self._lives.runs.values()]
        return any(share and (share.unfinished_count or share.queue) for share in shares)


def _pause_s(root: MasterRun, family: Sequence[MasterRun], now: float) -> float:
    """How long a family isn't asked after it was; at first, after it was submitted."""
    tasks = sum(run.plan.task_count for run in family)
    return max(WAIT_S + WAIT_S_A_TASK * tasks, AGE_SHARE * (now - root.submitted_s))
