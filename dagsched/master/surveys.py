"""What those who watch ask the master for: numbers of all nodes, and how things stand. Pure.

Nodes are asked and answer in their own time; what the master knows itself is told at once, as
arrays. Nothing of it is made unless somebody asks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dagsched.ids import ProcessId, RunNo
from dagsched.master.events import StatsArrived
from dagsched.master.lives import Lives
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.state import SubtreeState
from dagsched.plan import Int32
from dagsched.protocol.messages import AskStats, NodeStats

STATES = tuple(SubtreeState)
"""`Standing.state` is an index into these."""

_INDEX_OF = {state: index for index, state in enumerate(STATES)}


@dataclass(frozen=True, slots=True)
class Standing:
    """The subtrees of one run, an element each, in order of their numbers."""

    state: NDArray[np.int8]
    home: Int32  # the node that has it; -1: none
    lo: Int32  # positions lo to hi, or, of a piece, some of them
    hi: Int32
    task_count: Int32
    producer_of: Int32 | None
    """By position the subtree that computes it now, or did last (below 0: none); None: that of the
    plan. Pieces take tasks over from those that are GONE."""


class Surveys:
    """Answers who watches; part of `MasterCore`."""

    def __init__(
        self,
        members: Members,
        lives: Lives,
        outbox: Outbox,
        counters: Callable[[], Mapping[str, int]],
    ) -> None:
        self._members = members
        self._lives = lives
        self._outbox = outbox
        self._counters = counters
        self._asked: dict[int, dict[ProcessId, NodeStats | None]] = {}  # by request

    # --- numbers of the nodes ---------------------------------------------------------------------

    def ask(self, request: int, *, is_watched: bool) -> None:
        """Ask every node for its statistics; `StatsArrived` answers."""
        self._asked[request] = dict.fromkeys(self._members.nodes)
        for broker in self._members.nodes:
            self._outbox.send(broker, AskStats(request, is_watched))
        self._maybe_answer(request)

    def answered(self, broker: ProcessId, request: int, stats: NodeStats) -> bool:
        """A node answers; False if nobody has asked it."""
        waiting = self._asked.get(request)
        if waiting is None or broker not in waiting:
            return False
        waiting[broker] = stats
        self._maybe_answer(request)
        return True

    def broker_lost(self, lost: ProcessId) -> None:
        """It won't answer any more."""
        for request in [r for r, waiting in self._asked.items() if lost in waiting]:
            del self._asked[request][lost]
            self._maybe_answer(request)

    def _maybe_answer(self, request: int) -> None:
        answers = self._asked[request].values()
        stats = [answer for answer in answers if answer is not None]
        if len(stats) == len(answers):
            del self._asked[request]
            self._outbox.tell(StatsArrived(request, stats, self._counters()))

    # --- how things stand -------------------------------------------------------------------------

    def silences(self, now: float) -> dict[int, tuple[float, bool]]:
        """Of each node: for how long it hasn't said anything, and whether it is to leave."""
        return {
            int(broker): (now - node.heard_s, node.leaving)
            for broker, node in self._members.nodes.items()
        }

    def standing(self, run: int) -> Standing | None:
        """How far the subtrees of a run are; None: the master doesn't have it (any more)."""
        found = self._lives.runs.get(RunNo(run))
        if found is None:
            return None
        subtrees, count = found.subtrees, len(found.subtrees)
        return Standing(
            np.fromiter((_INDEX_OF[one.state] for one in subtrees), np.int8, count),
            np.fromiter((one.home or -1 for one in subtrees), np.int32, count),
            np.fromiter((one.lo for one in subtrees), np.int32, count),
            np.fromiter((one.hi for one in subtrees), np.int32, count),
            np.fromiter((one.task_count for one in subtrees), np.int32, count),
            None if found.producer_of is None else found.producer_of.copy(),
        )
