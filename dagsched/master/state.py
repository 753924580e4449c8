"""What the master knows: runs, subtrees, nodes, as records, and how their states may move. Pure.

A subtree's state moves only by `Subtree.move`, along `SUBTREE_MOVES`; a run's only by
`MasterRun.move`, along `RUN_MOVES`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dagsched.errors import InternalError
from dagsched.ids import ProcessId, RunNo, SubtreeNo
from dagsched.master.events import HeldObject, RunOutcome
from dagsched.master.journal import ClientPart
from dagsched.plan import Int32, Int64, RunPlan
from dagsched.protocol.messages import Failure, Frame, NodeStats


class SubtreeState(Enum):
    """Where a subtree is in its life."""

    WAITING = auto()  # a subtree that it needs values of hasn't been placed
    READY = auto()  # in the queue of a broker, its home, or of none while there is no node
    PLACED = auto()  # sent to its broker
    DONE = auto()  # its broker says that all its tasks have ended
    GONE = auto()  # lost with its node, or not needed any more; pieces do what is still to be done


SUBTREE_MOVES = {
    # To PLACED at once: an orphan says that it has it.
    SubtreeState.WAITING: {SubtreeState.READY, SubtreeState.PLACED, SubtreeState.GONE},
    SubtreeState.READY: {SubtreeState.PLACED, SubtreeState.WAITING},
    SubtreeState.PLACED: {SubtreeState.DONE, SubtreeState.GONE},
    SubtreeState.DONE: set(),
    SubtreeState.GONE: set(),
}
UNPLACED = (SubtreeState.WAITING, SubtreeState.READY)
UNFINISHED = (*UNPLACED, SubtreeState.PLACED)


class RunState(Enum):
    """Where a run is in its life."""

    RUNNING = auto()
    ENDING = auto()  # brokers have been told to release all of it
    ENDED = auto()


RUN_MOVES = {
    RunState.RUNNING: {RunState.ENDING},
    RunState.ENDING: {RunState.ENDED},
    RunState.ENDED: set(),
}


FEW = 8
"""Up to so many imports of a subtree are looked at by plain lists."""

SOURCE = -1
"""In place of a producer: no task computes it."""

HELD = -2
"""In place of a producer: its value is there, at the broker that `MasterRun.holder_of` names."""


@dataclass(slots=True, eq=False)
class Subtree:
    """A range of positions, or some of a range (a *piece*), that is placed as one thing."""

    number: SubtreeNo
    run: RunNo
    lo: int
    hi: int
    weight_s: float
    imports: Int32  # positions and sources from outside, rising, unique
    producers: Int32  # the subtree that computes each of `imports`; SOURCE, HELD
    functions: Int32  # indices that its tasks use
    predecessors: Int32  # subtrees that compute something it imports
    unplaced_count: int  # of its predecessors; where the run is dealt: that have not ended
    state: SubtreeState = SubtreeState.WAITING
    home: ProcessId | None = None  # while READY or PLACED, and of its objects when DONE
    attempt: int = 0
    ready_s: float = 0.0  # when it became READY last
    members: Int32 | None = None  # of a piece: what of lo:hi it computes, rising
    urgent: bool = False  # what is placed already may wait for it: goes without credit

    @property
    def task_count(self) -> int:
        """Tasks in it."""
        return self.hi - self.lo if self.members is None else len(self.members)

    def positions(self) -> Int32:
        """Its tasks, rising."""
        if self.members is not None:
            return self.members
        return np.arange(self.lo, self.hi, dtype=np.int32)

    def move(self, state: SubtreeState) -> None:
        """Change the state; the only place that does.

        Raises:
            InternalError: no such transition.
        """
        if state not in SUBTREE_MOVES[self.state]:
            raise InternalError(
                f"subtree {self.number} of run {self.run} (positions {self.lo} to {self.hi}, "
                f"attempt {self.attempt}, broker {self.home}) can't go from {self.state.name} "
                f"to {state.name}"
            )
        self.state = state


@dataclass(slots=True, eq=False)
class Share:
    """What one broker has of one run."""

    queue: deque[SubtreeNo] = field(default_factory=deque)  # READY, not sent yet
    queued_s: float = 0.0  # work in `queue`
    placed_count: int = 0  # subtrees, ever
    unfinished_count: int = 0  # subtrees PLACED
    unfinished_tasks: int = 0
    unfinished_s: float = 0.0  # work in them
    functions: set[int] = field(default_factory=set)  # whose pickles it has
    sources: set[int] = field(default_factory=set)  # that it was given
    took_part: bool = False  # it knows the run, so it must be told of its end
    done_count: int = 0  # tasks, as it tells
    idle_count: int = 0  # executors with nothing to do, as it told last
    has_spare: bool = False  # tasks are ready there and wait for executors; the same


@dataclass(slots=True, eq=False)
class Child:
    """A run of a graph that a task returned, seen from the run of that task."""

    run: RunNo
    bare: bool = False  # its value is there and holds no Refs: once copied the run can end
    waiters: set[ProcessId] = field(default_factory=set)  # where the task waits for its value
    wanted: bool = True  # the task waits for its value somewhere, or will


class RunTerms(NamedTuple):
    """What a run was submitted with, beside its plan."""

    priority: int = 0
    timeout_s: float | None = None
    parent: tuple[RunNo, int] | None = None
    client: ClientPart = b""


@dataclass(slots=True, eq=False)
class MasterRun:
    """One run. Arrays are indexed by position, sources included."""

    number: RunNo
    plan: RunPlan
    priority: int
    parent: tuple[RunNo, int] | None
    client: ClientPart
    root: RunNo
    submitted_s: float
    deadline_s: float | None
    subtrees: list[Subtree]
    successors: list[list[SubtreeNo]]  # by subtree, of those that import from it
    importers: Int32  # subtrees not DONE that import each position; empty: nothing is imported
    sizes: Int64  # bytes of exported values, -1 unknown; empty: nothing is imported
    missing: bytearray  # by task: 1 where it is an output that isn't there yet
    missing_count: int
    state: RunState = RunState.RUNNING
    epoch: int = 1
    is_dealt: bool = False  # its subtrees are single long tasks, placed as executors get free
    unknown_count: int = 0  # functions of which nobody knew, when last looked, how long they take
    is_measured: bool = False  # brokers have told how long some of its calls took
    idle: dict[ProcessId, int] = field(default_factory=dict)  # if dealt: executors without a task
    recovering: bool = False  # brokers have been asked what they hold; nothing is placed meanwhile
    producer_of: Int32 | None = None  # subtree that computes each task; None: as in the plan
    holder_of: Int32 | None = None  # where a value is, if not at its subtree's home; 0: there
    lacking: dict[int, list[ProcessId]] = field(default_factory=dict)  # wait for an unplaced task
    told_where: set[tuple[ProcessId, int]] = field(default_factory=set)  # who asked, for what
    loss_counts: NDArray[np.uint16] | None = None  # how often each value was lost
    lost_done_count: int = 0  # tasks that lost brokers had told as ended, of unfinished subtrees
    shares: dict[ProcessId, Share] = field(default_factory=dict)
    homeless: deque[SubtreeNo] = field(default_factory=deque)  # READY, without a broker
    queued_count: int = 0  # subtrees in queues of `shares`
    unfinished_count: int = 0  # subtrees not DONE
    objects: list[HeldObject] = field(default_factory=list)  # of outputs
    streamed: int | None = None  # so many of them were told one by one; None: nobody asked
    announced: bool = False  # OutputsComplete went out
    taken: bool = False
    started: bool = False
    recovery: "Recovery | None" = None  # of a root
    children: dict[int, Child] = field(default_factory=dict)  # by position of the task
    family: dict[RunNo, None] = field(default_factory=dict)  # of a root: itself, all below; living
    pinned: list[tuple[RunNo, int]] = field(default_factory=list)  # kept objects that it uses
    progress_count: int = 0  # of a root: tasks ended in the family
    progress_total: int = 0
    is_wide: bool | None = None  # several nodes do it faster than one; None: not looked at yet
    spread_at_s: float = 0.0  # of a root: when nodes were asked last to give back, or submitted
    spread_for: dict[ProcessId, int] = field(default_factory=dict)  # who was idle then: see Share
    outcome: RunOutcome | None = None
    failure: Failure | None = None
    failure_frame: Frame | None = None
    failed_node: ProcessId | None = None
    tally: dict[str, int] = field(default_factory=dict)  # of a root: what happened, by kind
    losses: str = ""  # of a root: which nodes it lost, the last ones in words
    told_count: int = 0  # of a root: things that the client was told for the run's story
    moved_s: float = 0.0  # of a root: when something of the family moved last
    closing: set[ProcessId] = field(default_factory=set)  # brokers that owe a RunClosed
    stats: dict[ProcessId, NodeStats] = field(default_factory=dict)

    @property
    def is_interlocked(self) -> bool:
        """Its subtrees wait for each other both ways."""
        return self.plan.interlocked and not self.is_dealt

    @property
    def awaited_states(self) -> tuple[SubtreeState, ...]:
        """A subtree waits while one of its predecessors is in one of these."""
        return UNFINISHED if self.is_dealt else UNPLACED

    @property
    def is_unmeasured(self) -> bool:
        """Of some functions nobody knows how long they take, and no call of any has ended."""
        return bool(self.unknown_count) and not self.is_measured

    def move(self, state: RunState) -> None:
        """Change the state; the only place that does.

        Raises:
            InternalError: no such transition.
        """
        if state not in RUN_MOVES[self.state]:
            raise InternalError(
                f"run {self.number} (epoch {self.epoch}, {self.unfinished_count} of "
                f"{len(self.subtrees)} subtrees unfinished) can't go from {self.state.name} "
                f"to {state.name}"
            )
        self.state = state

    def share(self, broker: ProcessId) -> Share:
        """What `broker` has of it, made if need be."""
        share = self.shares.get(broker)
        if share is None:
            share = self.shares[broker] = Share()
        return share

    def note_lost(self, broker: ProcessId) -> None:
        """A broker is gone: remember how many tasks of its unfinished subtrees it had ended."""
        share = self.shares.get(broker)
        if share is not None:
            mine = (s for s in self.subtrees if s.home == broker)
            known = sum(s.task_count for s in mine if s.state is SubtreeState.DONE)
            self.lost_done_count += max(0, share.done_count - known)
            share.done_count = 0

    def producer(self, position: int) -> Subtree:
        """The subtree that computes a task's value, or did so last."""
        if self.producer_of is not None:
            return self.subtrees[int(self.producer_of[position])]
        index = int(np.searchsorted(self.plan.subtree_starts, position, side="right")) - 1
        return self.subtrees[index]

    def location(self, position: int) -> ProcessId | None:
        """The broker that has, or will have, the value of a task."""
        if self.holder_of is not None and self.holder_of[position]:
            return ProcessId(int(self.holder_of[position]))
        return self.producer(position).home

    def locations(self, positions: Int32, producers: Int32) -> Int32:
        """The same for several tasks with their producers (or HELD); 0: nobody yet."""
        if len(positions) <= FEW:  # of a single task; numpy's calls would take five times as long
            subtrees = self.subtrees
            homes = [subtrees[n].home or 0 if n >= 0 else 0 for n in producers.tolist()]
            brokers = np.array(homes, np.int32)
        elif len(positions) > len(self.subtrees):
            all_homes = np.array([subtree.home or 0 for subtree in self.subtrees], np.int32)
            brokers = np.where(producers >= 0, all_homes[producers], 0).astype(np.int32)
        else:
            numbers, index = np.unique(producers, return_inverse=True)
            homes = [self.subtrees[n].home or 0 if n >= 0 else 0 for n in numbers.tolist()]
            brokers = np.array(homes, np.int32)[index]
        if self.holder_of is not None:
            held = self.holder_of[positions]
            brokers = np.where(held != 0, held, brokers).astype(np.int32)
        return brokers

    def brokers(self) -> list[ProcessId]:
        """Those that know it, by rising id."""
        return sorted(broker for broker, share in self.shares.items() if share.took_part)


class Measure(NamedTuple):
    """Calls that a node has measured: how many, what they took, and would have on the best."""

    call_count: float = 0.0
    took_s: float = 0.0
    best_s: float = 0.0


@dataclass(slots=True, eq=False)
class Node:
    """A node whose broker has been welcomed."""

    broker: ProcessId
    host: str
    address: str
    epoch: int
    executors: tuple[ProcessId, ...]  # that it shall have
    heard_s: float
    pid_by_executor: dict[ProcessId, int] = field(default_factory=dict)  # those that are there
    load_s: float = 0.0  # work of PLACED subtrees of all runs
    slowness: float = 1.0  # how much longer calls take there than on the best: see `paces`
    measured: dict[bytes, Measure] = field(default_factory=dict)  # by digest of the function
    measured_in_all: Measure = field(default_factory=Measure)  # the sums of these
    leaving: bool = False  # no longer wanted; goes when nothing that it has is needed
    is_orphan: bool = False  # of another master that is gone: leaves with the runs it brought
    foreign_runs: set[RunNo] = field(default_factory=set)  # of an orphan: not resumed here
    draining: set[RunNo] = field(default_factory=set)  # asked to begin nothing more of these
    drained: set[RunNo] = field(default_factory=set)  # no executor has anything of these
    is_asked: bool = False  # a recovery has looked for what must move to other nodes
    moving: dict[tuple[RunNo, int], ProcessId] = field(default_factory=dict)  # objects, where to
    last_end: str = ""  # how the executor that ended last did so

    @property
    def speed(self) -> float:
        """How many executors of the best node its own are worth."""
        return len(self.executors) / self.slowness

    @property
    def is_usable(self) -> bool:
        """New subtrees may go there."""
        return bool(self.pid_by_executor) and not self.leaving


@dataclass(frozen=True, slots=True)
class Told:
    """What a broker holds of a run, as it says; arrays as in `Holdings`."""

    firsts: Int32
    counts: Int32
    sizes: Int64
    lacking: Int32
    awaited: Int32
    subtrees: Sequence[tuple[int, int, Int32]]  # number, attempt, tasks not ended

    def positions(self) -> Int32:
        """All positions whose values it has, in the order of its objects."""
        ends = np.cumsum(self.counts)
        offsets = np.arange(int(ends[-1]) if len(ends) else 0)
        starts = np.repeat(self.firsts - (ends - self.counts), self.counts)
        positions: Int32 = (offsets + starts).astype(np.int32)
        return positions


@dataclass(slots=True, eq=False)
class Recovery:
    """Brokers are being asked what they hold of a family's runs."""

    number: int
    spreads: bool = False  # brokers give back what they haven't begun
    is_quiet: bool = False  # .. and nothing is lost
    orphans_by_s: float | None = None  # asks when all have come that are expected, or then
    awaiting: set[tuple[ProcessId, RunNo]] = field(default_factory=set)
    told: dict[RunNo, dict[ProcessId, Told]] = field(default_factory=dict)
    askers: list[tuple[ProcessId, RunNo, int, bool]] = field(default_factory=list)  # for values
    later: list[Callable[[float], None]] = field(default_factory=list)  # told since; takes the time


@dataclass(slots=True, eq=False)
class Kept:
    """An object that a Ref of the client may name."""

    broker: ProcessId
    held: bool = True  # the client hasn't dropped it
    user_count: int = 0  # runs that have it as a source
    settled: bool = False  # its run has ended, so that only we can release it


def merged_stats(one: NodeStats, other: NodeStats) -> NodeStats:
    """The stats of one node in one run that it closed twice, or in a run and its children."""
    executors = {executor.id: executor for executor in one.executors}
    for more in other.executors:
        known = executors.get(more.id)
        executors[more.id] = (
            more
            if known is None
            else type(more)(
                id=more.id,
                pid=more.pid,
                task_count=known.task_count + more.task_count,
                bundle_count=known.bundle_count + more.bundle_count,
                busy_s=known.busy_s + more.busy_s,
                idle_s=min(known.idle_s, more.idle_s),
                read_bytes=known.read_bytes + more.read_bytes,
                written_bytes=known.written_bytes + more.written_bytes,
                restart_count=max(known.restart_count, more.restart_count),
                rss_peak_bytes=max(known.rss_peak_bytes, more.rss_peak_bytes),
            )
        )
    return NodeStats(
        id=other.id,
        host=other.host,
        received_count=one.received_count + other.received_count,
        given_count=one.given_count + other.given_count,
        in_bytes=one.in_bytes + other.in_bytes,
        out_bytes=one.out_bytes + other.out_bytes,
        live_object_count=other.live_object_count,
        live_bytes=other.live_bytes,
        peak_bytes=max(one.peak_bytes, other.peak_bytes),
        spilled_bytes=max(one.spilled_bytes, other.spilled_bytes),
        bundle_count=one.bundle_count + other.bundle_count,
        retry_count=one.retry_count + other.retry_count,
        stale_count=max(one.stale_count, other.stale_count),
        crash_retry_count=one.crash_retry_count + other.crash_retry_count,
        timeout_retry_count=one.timeout_retry_count + other.timeout_retry_count,
        executors=[executors[number] for number in sorted(executors)],
        withheld_count=one.withheld_count + other.withheld_count,
        shared_bytes=other.shared_bytes,
        shared_peak_bytes=max(one.shared_peak_bytes, other.shared_peak_bytes),
        spill_count=max(one.spill_count, other.spill_count),
    )
