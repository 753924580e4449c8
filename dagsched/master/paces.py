"""How much longer calls take on one node than on the best, by what nodes measured. Pure.

A call's time also depends on its arguments: it takes a few calls to say anything, older ones soon
count little, and less than `PACE_MIN` is taken for chance. What is wrong all the same is put right
by moving work (`balancing`).
"""

from dagsched.ids import ProcessId
from dagsched.master.state import Node

CALLS_MIN = 8.0
CALLS_MAX = 50.0
"""When a node has measured more calls of a function, those before count half."""

PACE_MIN = 1.5
SLOWNESS_MAX = 20.0
FUNCTIONS_MAX = 100
"""Of a node; and a hundred times as many of which it is known who does them best."""


class Paces:
    """The best that any node needs for a call, by digest of the function."""

    def __init__(self) -> None:
        self._best: dict[bytes, tuple[float, ProcessId]] = {}  # mean seconds, and whose

    def note(self, node: Node, digest: bytes, call_count: int, seconds: float) -> None:
        """A node has measured calls of a function: change its `slowness`."""
        mine = node.measured.setdefault(digest, (0.0, 0.0))
        share = 0.5 if mine[0] > CALLS_MAX else 1.0
        calls, took_s = mine[0] * share + call_count, mine[1] * share + seconds
        node.measured[digest] = calls, took_s
        if len(node.measured) > FUNCTIONS_MAX:
            del node.measured[next(iter(node.measured))]
        best_s, whose = self._best.get(digest, (took_s / calls, node.broker))
        if whose == node.broker or took_s / calls < best_s:
            self._best[digest] = (took_s / calls, node.broker)
            if len(self._best) > 100 * FUNCTIONS_MAX:
                del self._best[next(iter(self._best))]
        node.slowness = self._slowness(node)

    def _slowness(self, node: Node) -> float:
        calls = took_s = best_s = 0.0
        for digest, (call_count, seconds) in node.measured.items():
            calls += call_count
            took_s += seconds
            best_s += call_count * self._best.get(digest, (seconds / call_count,))[0]
        if calls < CALLS_MIN or took_s < PACE_MIN * best_s:
            return 1.0
        return min(took_s / best_s, SLOWNESS_MAX) if best_s else 1.0
