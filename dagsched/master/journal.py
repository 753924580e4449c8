"""What the master core writes down of each run, so that another master could go on.

Plain frozen records; `dagsched.metastore.records` encodes them, and nothing here knows how. Runs
of graphs that tasks returned are written like the others, with their `parent`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dagsched.master.events import HeldObject, RunOutcome
from dagsched.plan import RunPlan
from dagsched.protocol.messages import Failure, Frame, ObjectInfo

ClientPart = Frame | Callable[[], Frame]
"""What the client wants back with the run when it is resumed; nobody else looks inside.

A function is called in the journal's thread, perhaps more than once: to encode takes time.
"""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run began; its plan says all there is to know of its graph.

    Without a plan in what is left of a run that has ended and need never be computed again.
    """

    run: int
    priority: int
    timeout_s: float | None
    plan: RunPlan | None
    parent: tuple[int, int] | None  # run and position of the task that returned this graph
    client: ClientPart = b""


@dataclass(frozen=True, slots=True)
class RunPast:
    """What a journal knows of a run beyond its plan: outputs that came inline, with their bytes."""

    outputs: Sequence[tuple[ObjectInfo, Frame]] = ()
    epoch: int = 1
    """Above that of a run which has ended: brokers take nothing of that one any more."""


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
    """A task has failed for good, and the run with it; `frame` is its pickled exception."""

    run: int
    failure: Failure
    frame: Frame | None = None
    node: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over; `rest` is what still counts of it, without this record."""

    run: int
    state: RunOutcome
    rest: "Sequence[Record]" = ()

    @property
    def is_whole(self) -> bool:
        """Whether its plan still counts: its result may have to be computed again."""
        return any(type(record) is Submitted and record.plan is not None for record in self.rest)


Record = Submitted | Placed | SubtreeEnded | OutputsReached | Failed | Ended
