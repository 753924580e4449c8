"""Sums over tasks: by function of a run, and by duration for histograms. Pure.

Bounded by functions, not by tasks, but for a byte a task of runs that go on.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dagsched.viz.live.cells import FUNCTIONS_MAX

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

OTHER = "(other)"
"""Stands for all functions that come after the first `FUNCTIONS_MAX` - 1 names."""

LABELS_MAX = 50
"""So many functions have a histogram of their own; the others share one."""

EDGES_S = (
    1e-5, 1e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0, 1800.0,
)  # fmt: skip
"""Upper edges of the buckets of durations."""

_EDGES_NS = np.array([round(edge * 1e9) for edge in EDGES_S])


class Names:
    """Numbers of functions by name, the same in all runs of an environment.

    Example:
        >>> names = Names()
        >>> names.numbers(["abs", "max", "abs"]).tolist(), names.texts
        ([0, 1, 0], ['abs', 'max'])
    """

    def __init__(self) -> None:
        self._number_by_name: dict[str, int] = {}

    @property
    def texts(self) -> list[str]:
        """The names by number."""
        return list(self._number_by_name)

    def numbers(self, names: Sequence[str]) -> Int64:
        """The number of each name, given out if need be."""
        known = self._number_by_name
        found = []
        for name in names:
            if name not in known:
                if len(known) >= FUNCTIONS_MAX - 1:
                    name = OTHER
                known.setdefault(name, len(known))
            found.append(known[name])
        return np.array(found, np.int64)


class Durations:
    """How long tasks took, in buckets, by function."""

    def __init__(self) -> None:
        self._counts = np.zeros((LABELS_MAX + 1, len(_EDGES_NS) + 1), np.int64)
        self._sums_s = np.zeros(LABELS_MAX + 1)

    def add(self, functions: Int64, duration_ns: Int64) -> None:
        """Tasks that ended: numbers of their functions, and how long they took."""
        rows = np.minimum(functions, LABELS_MAX)
        places = rows * (len(_EDGES_NS) + 1)
        longer = np.flatnonzero(duration_ns > _EDGES_NS[0])  # few, where tasks are very short
        places[longer] += np.searchsorted(_EDGES_NS, duration_ns[longer])
        counts = np.bincount(places, minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)
        self._sums_s += np.bincount(rows, duration_ns / 1e9, LABELS_MAX + 1)

    def rows(self, names: Sequence[str]) -> list[tuple[str, list[int], float]]:
        """Of each function that has ended a task: label, cumulated counts, sum in seconds."""
        found = []
        for row in np.flatnonzero(self._counts.any(axis=1)).tolist():
            label = names[row] if row < LABELS_MAX else OTHER
            found.append((label, np.cumsum(self._counts[row]).tolist(), float(self._sums_s[row])))
        return found


class FunctionTotals:
    """What the functions of one run came to.

    Args:
        names: by index in the run.
        function_of: index of each task's function, by position.
    """

    def __init__(self, names: Sequence[str], function_of: Int32) -> None:
        count = len(names)
        self.names = names
        self.task_count = np.bincount(function_of, minlength=count)
        self.done_count = np.zeros(count, np.int64)
        self._ran_count = np.zeros(count, np.int64)
        self._busy_ns = np.zeros(count)
        self._longest_ns = np.zeros(count, np.int64)

    def add(self, functions: Int32, is_new: NDArray[np.bool_], duration_ns: Int64) -> None:
        """Tasks that ended; `is_new`: not for the second time."""
        count = len(self.names)
        ran = np.bincount(functions, minlength=count)
        self._ran_count += ran
        self.done_count += ran if is_new.all() else np.bincount(functions[is_new], minlength=count)
        # As floats, for numpy sums integers by a slower way.
        self._busy_ns += np.bincount(functions, duration_ns.astype(np.float64), count)
        np.maximum.at(self._longest_ns, functions, duration_ns)

    def take_back(self, functions: Int32) -> None:
        """Tasks that had ended are to run again."""
        self.done_count -= np.bincount(functions, minlength=len(self.names))

    def end(self) -> None:
        """All have ended, those as well whose times were lost with a node or not told yet."""
        self.done_count[:] = self.task_count

    def rows(self, most: int) -> list[dict[str, object]]:
        """As the snapshot has them, by busy time."""
        order = np.argsort(-self._busy_ns, kind="stable")[:most].tolist()
        return [
            {
                "name": self.names[index],
                "task_count": int(self.task_count[index]),
                "done_count": int(self.done_count[index]),
                "busy_s": float(self._busy_ns[index]) / 1e9,
                "mean_s": float(self._busy_ns[index]) / 1e9 / max(1, int(self._ran_count[index])),
                "longest_s": int(self._longest_ns[index]) / 1e9,
            }
            for index in order
        ]
