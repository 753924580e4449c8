"""Nodes that have nothing left to do while others have too much: when work is to move. Pure.

Nobody knows beforehand how long tasks take, nor how fast a node is at this moment: so what was
placed by estimates is placed anew when a node has run out of work and another hasn't begun what
it has. How that is done stands in `spreading`; here is when, and how fast nodes turn out to be.
"""

from collections.abc import Sequence

import numpy as np

from dagsched.ids import ProcessId
from dagsched.master.lives import Lives
from dagsched.master.members import Members
from dagsched.master.spreading import givers
from dagsched.master.state import MasterRun, Node, RunState

WAIT_S = 0.02
"""A node is idle for so long before others are asked: what is under way has come by then."""

WAIT_S_A_TASK = 2e-6
"""And as much longer for each task of the run, for that is what asking costs."""

AGE_SHARE = 0.03
"""A run isn't asked again within this share of its age, so that it costs no more than that."""


class Balance:
    """Looks after nodes that have nothing to do."""

    def __init__(self, members: Members, lives: Lives) -> None:
        self._members = members
        self._lives = lives
        self._look_at_s: float | None = None

    def maybe_idle(self, now: float) -> None:
        """Some node may have run out of work."""
        if self._look_at_s is None and len(self._members.nodes) > 1:
            self._look_at_s = now + WAIT_S

    def next_timer(self) -> float | None:
        """When `handle_timer` should be called."""
        return self._look_at_s

    def handle_timer(self, now: float) -> None:
        """Have work given back for nodes that are idle still."""
        if self._look_at_s is None or now < self._look_at_s:
            return
        self._look_at_s = None
        nodes = self._members.usable(now)
        if all(self._is_busy(node) for node in nodes):
            return
        for root in [run for run in self._lives.running() if run.parent is None]:
            # Not while tasks wait for graphs that they returned, whose values would have to follow.
            if root.taken or root.children:
                continue
            family = [r for r in self._lives.family(root) if r.state is RunState.RUNNING]
            runs = givers(family, nodes)
            if not runs:
                continue
            by_s = root.spread_at_s + _pause_s(root, family, now)
            if now >= by_s and root.recovery is None:
                root.spread_at_s = now
                self._lives.recoveries.begin(root, now, give_back=runs)
            by_s = max(by_s, now + _pause_s(root, family, now))
            self._look_at_s = min(by_s, self._look_at_s or by_s)

    def _is_busy(self, node: Node) -> bool:
        """It has work of some run."""
        shares = [run.shares.get(node.broker) for run in self._lives.runs.values()]
        return any(share and (share.unfinished_count or share.queue) for share in shares)


def _pause_s(root: MasterRun, family: Sequence[MasterRun], now: float) -> float:
    """How long a family isn't asked after it was; at first, after it was submitted."""
    tasks = sum(run.plan.task_count for run in family)
    return max(WAIT_S + WAIT_S_A_TASK * tasks, AGE_SHARE * (now - root.submitted_s))


class Paces:
    """How much longer calls take on one node than on the best, by what nodes measured.

    A call's time also depends on its arguments, so it takes a few calls, and less than
    `PACE_MIN` is taken for chance.
    """

    def __init__(self) -> None:
        self._measured: dict[ProcessId, dict[bytes, list[float]]] = {}  # calls, seconds
        self._best: dict[bytes, tuple[float, ProcessId]] = {}  # mean of a call, and whose

    def note(self, broker: ProcessId, digest: bytes, call_count: int, seconds: float) -> None:
        """A node has measured calls of a function."""
        mine = self._measured.setdefault(broker, {})
        measured = mine.setdefault(digest, [0.0, 0.0])
        if len(mine) > FUNCTIONS_MAX:
            del mine[next(iter(mine))]
        if measured[0] > CALLS_MAX:
            measured[:] = [measured[0] / 2, measured[1] / 2]
        measured[0] += call_count
        measured[1] += seconds
        mean_s = measured[1] / measured[0]
        best_s, whose = self._best.get(digest, (np.inf, broker))
        if whose == broker or mean_s < best_s:
            self._best[digest] = (mean_s, broker)

    def forget(self, broker: ProcessId) -> None:
        """A node is gone; another of its id may be faster."""
        self._measured.pop(broker, None)
        self._best = {d: best for d, best in self._best.items() if best[1] != broker}

    def slowness(self, broker: ProcessId) -> float:
        """1.0, or how many times longer calls take there than where they take least."""
        calls = took_s = best_s = 0.0
        for digest, (call_count, seconds) in self._measured.get(broker, {}).items():
            calls += call_count
            took_s += seconds
            best_s += call_count * self._best.get(digest, (0.0, broker))[0]
        if calls < CALLS_MIN or took_s < PACE_MIN * best_s or not best_s:
            return 1.0
        return took_s / best_s


FUNCTIONS_MAX = 100
CALLS_MAX = 200.0
CALLS_MIN = 4.0
PACE_MIN = 1.5
