"""Cuts that are used again: iterative programs run graphs of the same shape again and again.

Responsible for telling that two graphs have the same shape, and for how long a cut is good enough.
Only graphs of very short tasks are looked after: of others the cut is a small part of the run, and
one by the newest estimates is worth more than what it costs.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dagsched.config import Config
from dagsched.partition import Cut, cut_graph
from dagsched.plan import ClusterShape, Int32, Int64

TASKS_MIN = 1_000
"""Graphs of fewer tasks are cut sooner than they are recognised, or run much longer than both."""

TASKS_MAX = 2_000_000
"""Tasks of all cuts that are kept, which take 4 bytes each; the one not used for longest goes."""

SHORT_S = 0.000_01
"""Graphs whose tasks take longer on average are always cut anew: a cut costs 0.05 to 1 us a task.
At a few times this the choice between depth first and levels turns, by small differences."""

DRIFT_MAX = 2.0
"""A cut is used as long as no function's estimate is more than this many times larger or smaller
than when it was made. On a busy machine those of calls of a microsecond often differ by half from
one run to the next."""

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Kept:
    cut: Cut
    seconds: Sequence[float]  # of a call, by function, when the cut was made


class CutMemory:
    """The cuts of one environment. Any thread may use it.

    Args:
        config: of the environment.
        tasks_max: as `TASKS_MAX`.
    """

    def __init__(self, config: Config, tasks_max: int = TASKS_MAX) -> None:
        self.reused_count = 0
        self._config = config
        self._tasks_max = tasks_max
        self._lock = threading.Lock()  # guards what follows
        self._kept: dict[bytes, _Kept] = {}  # the one not used for longest first
        self._task_count = 0

    def cut(
        self,
        indptr: Int64,
        deps: Int32,
        function_of: Int32,
        seconds: Sequence[float],
        shape: ClusterShape,
    ) -> Cut:
        """The cut of a graph: one that is kept, or a new one.

        Args:
            indptr: as for `dagsched.partition.cut_graph`.
            deps: the same.
            function_of: of each task the index of its function.
            seconds: of a call, by function.
            shape: of the cluster.
        """
        weights_s = np.array(seconds, np.float64)[function_of]
        count = len(weights_s)
        if not TASKS_MIN <= count <= self._tasks_max or weights_s.sum() > count * SHORT_S:
            return cut_graph(indptr, deps, weights_s, shape, self._config)
        digest = _digest(indptr, deps, function_of, shape)
        with self._lock:
            kept = self._take_out(digest)
            if kept is not None and _are_close(kept.seconds, seconds):
                self._keep(digest, kept)
                self.reused_count += 1
                return kept.cut
        cut = cut_graph(indptr, deps, weights_s, shape, self._config)
        for array in (cut.order, cut.subtree_starts, cut.level_starts):
            array.flags.writeable = False  # it may become part of many plans
        with self._lock:
            self._take_out(digest)  # another thread may have been faster
            self._keep(digest, _Kept(cut, seconds))
        return cut

    def _take_out(self, digest: bytes) -> _Kept | None:
        kept = self._kept.pop(digest, None)
        if kept is not None:
            self._task_count -= len(kept.cut.order)
        return kept

    def _keep(self, digest: bytes, kept: _Kept) -> None:
        self._kept[digest] = kept
        self._task_count += len(kept.cut.order)
        while self._task_count > self._tasks_max:
            self._take_out(next(iter(self._kept)))


def _digest(indptr: Int64, deps: Int32, function_of: Int32, shape: ClusterShape) -> bytes:
    """What two graphs share only if they have the same tasks, edges and calls."""
    text = f"{len(function_of)} {len(deps)} {shape.nodes} {shape.executors}"
    digest = hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES)
    for array in (indptr, deps, function_of):
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _are_close(seconds: Sequence[float], others: Sequence[float]) -> bool:
    return all(
        one <= other * DRIFT_MAX and other <= one * DRIFT_MAX
        for one, other in zip(seconds, others, strict=True)
    )
