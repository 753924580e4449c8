"""How much longer calls take on one node than on the best, by what nodes measured. Pure.

A call's time also depends on its arguments: it takes a few calls to say anything, older ones soon
count little, and less than `PACE_MIN` is taken for chance. What is wrong all the same is put right
by moving work (`balancing`).
"""

from dagsched.ids import ProcessId
from dagsched.master.state import Measure, Node

CALLS_MIN = 8.0
CALLS_MAX = 50.0
"""When a node has measured more calls of a function, those before count half."""

PACE_MIN = 1.5
SLOWNESS_MAX = 20.0
FUNCTIONS_MAX = 100
"""Of a node; and a hundred times as many of which it is known who does them best."""

NOTHING = Measure()


class Paces:
    """The best that any node needs for a call, by digest of the function."""

    def __init__(self) -> None:
        self._best: dict[bytes, tuple[float, ProcessId]] = {}  # mean seconds, and whose

    def note(self, node: Node, digest: bytes, call_count: int, seconds: float) -> None:
        """A node has measured calls of a function: change its `slowness`.

        What the best node needs for its other functions is looked up when those are noted.
        """
        before = node.measured.get(digest, NOTHING)
        share = 0.5 if before.call_count > CALLS_MAX else 1.0
        calls, took_s = before.call_count * share + call_count, before.took_s * share + seconds
        best_s, whose = self._best.get(digest, (took_s / calls, node.broker))
        if whose == node.broker or took_s / calls < best_s:
            best_s = took_s / calls
            self._best[digest] = (best_s, node.broker)
            if len(self._best) > 100 * FUNCTIONS_MAX:
                del self._best[next(iter(self._best))]
        mine = node.measured[digest] = Measure(calls, took_s, calls * best_s)
        node.measured_in_all = _with(_with(node.measured_in_all, mine), before, -1)
        if len(node.measured) > FUNCTIONS_MAX:
            oldest = node.measured.pop(next(iter(node.measured)))
            node.measured_in_all = _with(node.measured_in_all, oldest, -1)
        node.slowness = _slowness(node.measured_in_all)


def _with(total: Measure, part: Measure, sign: int = 1) -> Measure:
    """The sums with one part more, or less."""
    return Measure(
        total.call_count + sign * part.call_count,
        total.took_s + sign * part.took_s,
        total.best_s + sign * part.best_s,
    )


def _slowness(measured: Measure) -> float:
    is_little = measured.call_count < CALLS_MIN or measured.best_s <= 0.0
    if is_little or measured.took_s < PACE_MIN * measured.best_s:
        return 1.0
    return min(measured.took_s / measured.best_s, SLOWNESS_MAX)
