"""What the master core writes down of each run, so that another master could go on.

Plain frozen records; `dagsched.metastore.records` encodes them, and nothing here knows how. Runs
of graphs that tasks returned are written like the others, with their `parent`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dagsched.master.events import HeldObject, RunOutcome
from dagsched.plan import RunPlan
from dagsched.protocol.messages import Failure


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run began; its plan says all there is to know of its graph."""

    run: int
    priority: int
    timeout_s: float | None
    plan: RunPlan
    parent: tuple[int, int] | None  # run and position of the task that returned this graph


@dataclass(frozen=True, slots=True)
class Placed:
    """Subtrees went to brokers."""

    run: int
    epoch: int
    placements: Sequence[tuple[int, int, int]]  # subtree, broker, attempt


@dataclass(frozen=True, slots=True)
class SubtreeEnded:
    """All tasks of a subtree have ended; `broker` holds what it exports."""

    run: int
    epoch: int
    subtree: int
    attempt: int
    broker: int
    positions: bytes  # int32, rising
    sizes: bytes  # int64, of each


@dataclass(frozen=True, slots=True)
class OutputsReached:
    """All outputs are there; inline ones with their bytes."""

    run: int
    epoch: int
    objects: Sequence[HeldObject]


@dataclass(frozen=True, slots=True)
class Failed:
    """A task has failed for good, and the run with it."""

    run: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over."""

    run: int
    state: RunOutcome


Record = Submitted | Placed | SubtreeEnded | OutputsReached | Failed | Ended
