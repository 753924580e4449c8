"""What a broker knows: runs, subtrees, bundles, executors, as records. Pure.

A bundle's state moves only by `Bundle.move`, along `BUNDLE_MOVES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from dagsched.brokers.tracing import RunTrace
from dagsched.brokers.wants import Wants
from dagsched.errors import InternalError
from dagsched.ids import BundleNo, Position, ProcessId, RunNo, SubtreeNo
from dagsched.protocol.messages import (
    BundleDone,
    ExitInfo,
    Frame,
    FunctionInfo,
    ObjectInfo,
    Parcel,
    TaskOptions,
)

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Fetcher = tuple[ProcessId, bool]
"""Another node, and whether it wants size and type only."""


class BundleState(Enum):
    """Where a bundle is in its life."""

    WAITING = auto()  # some value that it needs isn't there
    READY = auto()  # may be dispatched
    DISPATCHED = auto()  # sent to an executor, which may not have begun it
    DONE = auto()  # its tasks have ended, or were handed to other bundles


NO_POSITIONS = np.zeros(0, np.int32)
NO_COUNTS = np.zeros(0, np.int64)

BUNDLE_MOVES = {
    BundleState.WAITING: {BundleState.READY, BundleState.DONE},
    BundleState.READY: {BundleState.DISPATCHED, BundleState.DONE},
    BundleState.DISPATCHED: {BundleState.READY, BundleState.DONE},
    BundleState.DONE: set(),
}


@dataclass(slots=True, eq=False)
class Lane:
    """What one executor does of a bundle that is a gang: see `dagsched.partition.gangs`."""

    positions: Int32  # rising
    frames: tuple[bytes, ...]  # as a bundle's, in the order in which they run; awaited, handed
    imports: Int32  # what it takes from outside the gang

    def order(self) -> Int32:
        """Its positions in the order in which they run."""
        return np.frombuffer(self.frames[0], np.int32)


@dataclass(slots=True, eq=False)
class Bundle:
    """Tasks that one executor runs as one thing."""

    number: BundleNo
    run: "BrokerRun"
    subtree: "Subtree"
    positions: Int32  # rising
    weight_s: float
    solo: bool  # runs alone, on an executor that was idle
    frames: tuple[bytes, ...]  # positions, indptr, deps, function_of, exports: see RunBundle
    flags: NDArray[np.uint8] | None = None  # of its tasks, if one is more than a plain call
    state: BundleState = BundleState.WAITING
    waiting_count: int = 0  # bundles and single positions that it still waits for
    dependents: list["Bundle"] = field(default_factory=list)
    attempt: int = 1
    begun_s: float = 0.0  # when it came first in its executor's queue
    left_until_s: float = 0.0  # until then it waits for a fast executor, if a slow one is idle
    imports: Int32 = field(
        default_factory=lambda: NO_POSITIONS
    )  # what it takes from outside itself ..
    import_counts: Int64 = field(
        default_factory=lambda: NO_COUNTS
    )  # .. and by how many of its tasks
    timed_out: bool = False
    functions: frozenset[int] = frozenset()  # that it calls, once somebody has asked
    expected_bytes: int = 0  # of large objects that it is going to make, once it is dispatched
    was_held_back: bool = False  # because the store was above its mark
    is_recalled: bool = False  # its executor is not to begin it
    is_stopped: bool = False  # .. or to leave what it hasn't begun; or that was not worth it
    pins: list["StoredObject"] = field(default_factory=list)  # inputs of an ended run, being read
    lanes: Sequence[Lane] = ()  # of a gang, which goes to several executors at once
    at: dict[ProcessId, Lane] = field(default_factory=dict)  # .. who have not said how theirs ended
    reports: list["Report"] = field(default_factory=list)  # .. and who have
    loss: "Loss | None" = None  # .. one of them has died
    waits_until_s: float = 0.0  # .. so long for executors that are to be free soon; 0: for none
    is_broken: bool = False  # .. its lanes are to end, for one of them did not do all that it had

    def move(self, state: BundleState) -> None:
        """Change the state; the only place that does.

        Raises:
            InternalError: no such transition.
        """
        if state not in BUNDLE_MOVES[self.state]:
            raise InternalError(
                f"bundle {self.number} (run {self.run.number}, positions from "
                f"{self.positions[0]}) can't go from {self.state.name} to {state.name}"
            )
        self.state = state


@dataclass(slots=True, eq=False)
class Report:
    """What an executor says of a bundle, or of its lane of a gang."""

    executor: "Executor"
    message: BundleDone
    frames: Sequence[Frame]

    def positions(self) -> Int32:
        """Whose tasks have ended well, and `TRACE_GAP` between some of them."""
        return np.frombuffer(self.frames[0], np.int32)


@dataclass(slots=True, eq=False)
class Loss:
    """How the executor died that had a bundle."""

    executor: ProcessId
    lane: Lane | None  # of a gang
    position: int  # at which it was; see `dagsched.brokers.status`
    exit_info: ExitInfo
    was_killed: bool  # by us


@dataclass(slots=True, eq=False)
class Subtree:
    """A range of positions that the master placed here. Arrays are indexed by position - lo."""

    number: SubtreeNo
    attempt: int
    epoch: int
    lo: int
    hi: int
    indptr: Int32
    deps: Int32
    function_of: Int32
    flags: NDArray[np.uint8]
    level_starts: Int32
    import_levels: Int32  # those of level_starts where a task needs something from outside lo:hi
    first_dependent: Int32  # of its own tasks, -1 where none: groups exports into blocks
    last_dependent: Int32
    cursor: int  # positions below it are cut into bundles
    remaining_count: int  # tasks not ended yet
    members: NDArray[np.bool_] | None = None  # of a piece: which of lo:hi it computes
    barriers: Int32 = field(default_factory=lambda: NO_POSITIONS)  # windows end before these
    probing_until_s: float = 0.0  # no further window before this while durations are unknown
    open_bundle_count: int = 0  # bundles cut and not yet dispatched

    def uncut(self) -> Int32:
        """Positions that are in no bundle yet."""
        if self.members is None:
            return np.arange(self.cursor, self.hi, dtype=np.int32)
        found = np.flatnonzero(self.members[self.cursor - self.lo :]) + self.cursor
        return found.astype(np.int32)

    def has(self, position: int) -> bool:
        """Whether the subtree computes a position."""
        if not self.lo <= position < self.hi:
            return False
        return self.members is None or bool(self.members[position - self.lo])


@dataclass(slots=True, eq=False)
class Storage:
    """Bytes of an object; several (run, position) may share them."""

    frame: Frame | None  # inline bytes
    location_size_bytes: int
    owner: ProcessId | None  # executor whose arena has them; None: the broker's own, or inline
    incarnation: int = 0
    share_count: int = 1


@dataclass(slots=True, eq=False)
class StoredObject:
    """An object that this node holds, or (`storage` None) knows by size and type only."""

    run: RunNo
    info: ObjectInfo
    storage: Storage | None
    broker: ProcessId  # where the original is
    holders: set[ProcessId] = field(default_factory=set)  # executors with a view on its bytes
    pin_count: int = 0  # transfers under way, collected by running tasks
    dropped: bool = False  # nobody needs it; its bytes wait for holders and pins only
    is_told: bool = False  # the client knows where its bytes lie, and may look at any time


@dataclass(slots=True, eq=False)
class BrokerRun:
    """One run's state on this node. Arrays are indexed by position, sources included."""

    number: RunNo
    epoch: int
    priority: int
    object_of: Int32  # index into objects, -1: not here
    bundle_of: Int32  # number of the bundle it was last cut into, -1: none, -2: returned a graph
    left: Int32  # tasks outside its own bundle, on this node, that still need its value
    hold: NDArray[np.uint8]  # flags for which the master must say when they end
    asked: NDArray[np.uint8]  # of another node: 1 size and type, 2 the bytes
    sought: Int32  # of which node, as long as it isn't here; 0: of none
    trace: RunTrace
    objects: list[StoredObject | None] = field(default_factory=list)
    subtrees: dict[SubtreeNo, Subtree] = field(default_factory=dict)
    uncut: list[Subtree] = field(default_factory=list)  # see `uncut_subtrees`
    open: list[Subtree] = field(default_factory=list)  # see `is_unfinished`
    bundles: dict[BundleNo, Bundle] = field(default_factory=dict)  # all not DONE
    ready: list[tuple[int, int, BundleNo]] = field(default_factory=list)  # heap
    withheld: list[tuple[int, int, BundleNo]] = field(default_factory=list)  # of it, in this turn
    large_bytes: dict[int, int] = field(default_factory=dict)  # by function: its last large result
    waiters: Wants[Bundle] = field(default_factory=Wants)
    gone: list[int] = field(default_factory=list)  # made here, dropped, waited for again
    sized: dict[int, StoredObject] = field(default_factory=dict)  # by position; bytes under way
    lacking: set[int] = field(default_factory=set)  # sought of a node that is gone
    expansions: dict[int, Sequence[Frame]] = field(default_factory=dict)  # without a value yet
    failures: list[Parcel] = field(default_factory=list)  # as told to the master
    fetchers: Wants[Fetcher] = field(default_factory=Wants)
    functions: dict[int, tuple[FunctionInfo, Frame]] = field(default_factory=dict)
    chunks: dict[int, Frame] = field(default_factory=dict)
    options: dict[int, TaskOptions] = field(default_factory=dict)
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # by function, nan
    crash_counts: dict[Position, int] = field(default_factory=dict)
    timeout_counts: dict[Position, int] = field(default_factory=dict)
    hungry: set[Position] = field(default_factory=set)  # tried once more, alone on the node
    suspects: set[Position] = field(default_factory=set)  # one of these took an executor down
    total_tasks: int = 0  # positions from here on are sources
    outputs_ready: list[StoredObject] = field(default_factory=list)
    cancelled: bool = False
    draining: bool = False  # no further bundle is to begin here
    drain_told: bool = False
    served_s: float = 0.0
    started_s: float = 0.0
    done_count: int = 0
    told_count: int = 0
    told_at_s: float = 0.0
    told_news: tuple[int, bool] = (0, False)  # idle executors, tasks to spare
    counters: "Counters" = field(default_factory=lambda: Counters())  # noqa: PLW0108 - defined below

    def uncut_subtrees(self) -> list[Subtree]:
        """Those with tasks that are in no bundle yet, in the order in which they were placed.

        Ended ones are remembered by the thousand, so that each turn must not look at all.
        """
        if any(
            subtree.cursor >= subtree.hi or not subtree.remaining_count for subtree in self.uncut
        ):
            self.uncut = [s for s in self.uncut if s.cursor < s.hi and s.remaining_count]
        return self.uncut

    def is_unfinished(self) -> bool:
        """Whether some subtree has tasks to end; ended ones aren't looked at again and again."""
        while self.open and not self.open[-1].remaining_count:
            self.open.pop()
        return bool(self.open)

    def owner_of(self, position: int) -> Subtree | None:
        """The subtree that has a task to end: the latest, for a piece does again what was done."""
        for subtree in reversed(self.subtrees.values()):
            if subtree.remaining_count and subtree.has(position):
                return subtree
        return None

    @property
    def total(self) -> int:
        """Tasks and sources of the whole run."""
        return len(self.object_of)


@dataclass(slots=True)
class ExecutorCounters:
    """What one executor did in one run."""

    task_count: int = 0
    bundle_count: int = 0
    busy_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0


@dataclass(slots=True)
class Counters:
    """What the node did in one run."""

    received_count: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    bundle_count: int = 0
    retry_count: int = 0
    crash_retry_count: int = 0  # of these: executors died
    timeout_retry_count: int = 0
    stale_count: int = 0
    withheld_count: int = 0  # bundles that were held back
    seconds: dict[int, list[float]] = field(default_factory=dict)  # by function: calls, seconds
    executors: dict[ProcessId, ExecutorCounters] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Executor:
    """An executor process of this node."""

    id: ProcessId
    incarnation: int = 1
    pid: int = 0  # 0: not there (yet)
    slot: int = -1  # where others of its node reach it; -1: they can't
    queue: list[Bundle] = field(default_factory=list)  # the first one runs
    functions: dict[RunNo, set[int]] = field(default_factory=dict)
    chunks: dict[RunNo, set[int]] = field(default_factory=dict)
    collected: list[StoredObject] = field(default_factory=list)  # pinned for its running task
    draining: bool = False
    killed: bool = False  # by us: nobody is charged
    doubted: set[int] = field(default_factory=set)  # bundles taken back in vain, as it seems
    seen_head: int = 0  # the bundle that it ran when last looked at
    is_late: bool = False  # it has run that for longer than anybody should have to wait behind it
    call_count: float = 0.0  # calls measured, the latest; what they took, and should have
    took_s: float = 0.0
    expected_s: float = 0.0
    restart_count: int = 0
    rss_peak_bytes: int = 0

    def take_head(self, now: float) -> Bundle:
        """Take the bundle that ran out of the queue: the next one begins."""
        head = self.queue.pop(0)
        if self.queue:
            self.queue[0].begun_s = now
        return head

    def successor(self, rss_bytes: int) -> "Executor":
        """The process in place of this one, which has ended with so much memory."""
        return Executor(
            self.id, self.incarnation + 1, restart_count=self.restart_count + 1,
            rss_peak_bytes=max(self.rss_peak_bytes, rss_bytes),
        )  # fmt: skip
