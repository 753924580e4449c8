"""A graph cut for one cluster: what the master places, and what the journal keeps of a run.

Pure. Positions number the tasks in the order of the cut; a permutation leads back to the graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dagsched.protocol.messages import Frame, FunctionInfo, TaskOptions

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """What the cut needs to know of the cluster."""

    nodes: int
    executors: int  # in all


@dataclass(frozen=True, slots=True)
class ConstantSource:
    """A large constant of the graph, in the layout of objects in shared memory."""

    data: Frame


@dataclass(frozen=True, slots=True)
class RefSource:
    """The value of an earlier run's task, still held by a broker."""

    run: int
    position: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RunPlan:
    """All that scheduling needs of a run. Arrays are indexed by position; never changed.

    n tasks at positions ``0 .. n - 1``, then the sources at ``n .. n + len(sources) - 1``.
    """

    subtree_starts: Int64  # subtrees + 1; subtree k is positions starts[k] : starts[k + 1]
    interlocked: bool  # subtrees wait for each other both ways, so all must be placed at once
    indptr: Int64  # n + 1
    deps: Int32  # positions (or sources), unique in each task, in the order of its arguments
    function_of: Int32  # n: index into functions
    flags: NDArray[np.uint8]  # n + len(sources): see protocol.messages
    level_starts: Int32  # positions at which a level begins; empty: depth-first order
    functions: Sequence[FunctionInfo]
    function_pickles: Sequence[bytes]
    chunks: Sequence[bytes]  # ceil(n / CHUNK_TASKS) pickled lists of argument entries
    options: Mapping[int, TaskOptions]  # by position, only of tasks that asked for something
    outputs: Int32  # positions whose values the client asked for, in its order
    sources: Sequence[ConstantSource | RefSource]

    @property
    def task_count(self) -> int:
        """Tasks, sources not among them."""
        return len(self.function_of)

    @property
    def subtree_count(self) -> int:
        """Subtrees of the cut."""
        return len(self.subtree_starts) - 1
