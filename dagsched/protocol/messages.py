"""Every message that master, brokers and executors send each other, and the frames it brings.

A message is a small typed struct, encoded as MessagePack; bulk (arrays, pickles, object bytes)
travels beside it as raw *frames*, opaque to master and brokers. A `Parcel` is a message with its
frames; a turn's parcels for one peer go out as one batch (see `codec`).

Arrays in frames are little-endian int32 unless said otherwise; ``positions`` are of the run.
Nothing here is ever unpickled by master or brokers.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dagsched.protocol.asking import AskTask, TaskAnswer, TaskRetried
from dagsched.protocol.structs import (
    Doing,
    ExecutorStats,
    ExitInfo,
    Failure,
    Frame,
    FunctionInfo,
    Location,
    NodeStats,
    ObjectInfo,
    Struct,
    TaskOptions,
)
from dagsched.protocol.tracing import TRACE_GAP, NodeTrace, TaskTrace

# Records that messages share stand in `structs`, and are imported from here; so is `tracing`.
__all__ = [
    "TRACE_GAP", "Doing", "ExecutorStats", "ExitInfo", "Failure", "Frame", "FunctionInfo",
    "Location", "NodeStats", "NodeTrace", "ObjectInfo", "TaskOptions", "TaskTrace",
]  # fmt: skip

CHUNK_TASKS = 64
"""Argument entries of the tasks at positions ``64 * c`` up to ``64 * c + 63`` are chunk ``c``."""

# Flags of a position (uint8).
EXPORTED = 1  # a task of another subtree depends on it
OUTPUT = 2  # the client asked for its value
REFERENCED = 4  # a task gets a Ref to it: an object of its own, kept until the run ends
SOLO = 8  # is dispatched as a bundle of its own, to an idle executor (timeouts, meta)
META = 16  # its function gets a Ref for each input, not the values
PERSISTED = 32  # kept in the environment after the run

# --- master -> broker ---------------------------------------------------------------------------


class Welcome(Struct, frozen=True, tag="welcome"):
    """Answer to `BrokerHello`: the broker is a node of this environment from now on."""

    broker: int
    epoch: int


class Refused(Struct, frozen=True, tag="refused"):
    """Answer to a `BrokerHello` that isn't welcome; `kind`: ``version`` or ``authentication``."""

    kind: str
    text: str


class Relayed(Struct, frozen=True, tag="relayed"):
    """A batch from one broker to another that can't go directly; in both directions.

    To the master `peer` is the receiver, from the master it is the sender. Frames: the batch.
    """

    peer: int


class SetPeers(Struct, frozen=True, tag="peers"):
    """Nodes that came: (id, epoch, data address), and ids of the `gone`; without: all others."""

    peers: Sequence[tuple[int, int, str]]
    gone: Sequence[int] | None = None


class SetExecutors(Struct, frozen=True, tag="executors"):
    """The executors that the node shall have; those not named drain and end."""

    executors: Sequence[int]


class PlaceSubtree(Struct, frozen=True, tag="place"):
    """Run the tasks at positions ``lo:hi``, or those of them that are `members`.

    A subtree with members is a *piece*: what of a subtree is to be computed again after a loss. It
    has a number of its own; rows of tasks that are no members are empty.

    Frames: members (positions; empty: all), indptr (hi - lo + 1, from 0), deps (positions),
    function_of (index per task), flags (uint8 a task), levels (see RunPlan.level_starts; empty:
    depth-first order), import positions (sorted, unique: what these tasks need from outside),
    import brokers (broker id that has it, a place each; of a piece the negative id if it will have
    it; 0: a PutObjects or a Redirect brings it), then chunks ``lo // 64 .. (hi - 1) // 64``, then
    one pickle for each of `functions` that has ``True``.
    """

    run: int
    epoch: int
    subtree: int
    attempt: int
    lo: int
    hi: int
    total: int  # tasks and sources of the whole run
    priority: int
    functions: Sequence[tuple[FunctionInfo, bool]]
    options: Sequence[TaskOptions]


class PutObjects(Struct, frozen=True, tag="put"):
    """Sources for this node; a frame each: bytes in the layout of objects in shared memory."""

    run: int
    positions: Sequence[int]


class Release(Struct, frozen=True, tag="release"):
    """No part outside its own subtree needs these any more. Frame: positions."""

    run: int


class AskHoldings(Struct, frozen=True, tag="ask_holdings"):
    """Answer `Holdings` for each of these runs, after telling again what the master may not know.

    Those are, if `retell`, outputs, failures, and graphs that tasks returned. Everything that the
    answer names is held as EXPORTED until `Release` says otherwise. Of the runs in `give_back` the
    node keeps what executors have; the rest of its subtrees it will not do, and says so by not
    naming it.
    """

    number: int  # of the recovery: answers to an older one are stale
    runs: Sequence[int]
    retell: bool = False
    give_back: Sequence[int] = ()


class Relocate(Struct, frozen=True, tag="relocate"):
    """Values that this node may still lack have another holder now: ask it for those needed.

    Frames: positions; brokers (broker id of each).
    """

    run: int


class TakeObjects(Struct, frozen=True, tag="take"):
    """Fetch these objects of `source_broker`, hold them (EXPORTED), answer `ObjectsTaken`.

    Frame: positions. With `kept` they are of an ended run, and stay for a Ref until `Release`.
    """

    run: int
    epoch: int
    total: int  # tasks and sources of the run, which this node may not know yet
    source_broker: int
    kept: bool = False


class TellOutputs(Struct, frozen=True, tag="tell_outputs"):
    """Objects that this node has are outputs: tell the master of them. Frame: positions."""

    run: int


class DrainRun(Struct, frozen=True, tag="drain"):
    """Begin no further bundle of the run; answer `Drained` when none is with an executor."""

    run: int


class Redirect(Struct, frozen=True, tag="redirect"):
    """The value of (run, position) is that of another object, which `source_broker` holds.

    For a task whose returned graph is done, and (after PlaceSubtree) for sources that are Refs.
    """

    run: int
    position: int
    source_run: int
    source_position: int
    source_broker: int


class CancelRun(Struct, frozen=True, tag="cancel"):
    """Stop the run's tasks: nothing new starts; what still runs after `grace_s` is killed."""

    run: int
    grace_s: float


class EndRun(Struct, frozen=True, tag="end"):
    """Release all of the run but these positions; answer `RunClosed`."""

    run: int
    kept: Sequence[int]


class FetchValue(Struct, frozen=True, tag="fetch_value"):
    """The client wants an object: answer `Value` as soon as it is there."""

    request: int
    run: int
    position: int


class AskStats(Struct, frozen=True, tag="ask_stats"):
    """Answer `Stats`; if somebody watches, also with what goes on at this moment.

    Times of tasks that ended (`TaskTrace`) are told before that then, however few they are.
    """

    request: int
    is_watched: bool = False


class Ping(Struct, frozen=True, tag="ping"):
    """Answer `Pong`."""

    number: int


class Shutdown(Struct, frozen=True, tag="shutdown"):
    """End: kill executors, unlink segments, exit with 0."""


MasterToBroker = (
    Welcome | SetPeers | SetExecutors | PlaceSubtree | PutObjects | Release | AskHoldings | Relocate
    | TakeObjects | TellOutputs | DrainRun | Redirect | CancelRun | EndRun | FetchValue | AskStats
    | AskTask | Ping | Shutdown
)  # fmt: skip

# --- broker -> master ---------------------------------------------------------------------------


class BrokerHello(Struct, frozen=True, tag="hello"):
    """First message of a broker. `address` is its data port, for other brokers.

    A broker whose master was lost presents itself to the next one as an *orphan*: under a new id,
    unique on its machine, with the runs that it holds.
    """

    broker: int
    pid: int
    host: str
    address: str
    version: tuple[str, str, int]  # Python major.minor, dagsched, protocol
    runs: Sequence[int] = ()  # of an orphan
    executors: Sequence[int] = ()  # of an orphan
    token: str = ""  # of the environment that it was started for


class ExecutorChanged(Struct, frozen=True, tag="executor"):
    """An executor is there (pid, restarts so far) or is gone (pid 0; `end` says how)."""

    executor: int
    pid: int
    restarts: int
    end: ExitInfo | None = None  # with the last of what it printed only


class OutputsReady(Struct, frozen=True, tag="outputs"):
    """Objects that hold OUTPUT positions; a frame for each inline one."""

    run: int
    epoch: int
    objects: Sequence[ObjectInfo]


class SubtreeDone(Struct, frozen=True, tag="done"):
    """All tasks of the subtree have ended.

    Frames: positions of its exported objects, then their sizes in bytes (int64), both in rising
    order of position.
    """

    run: int
    epoch: int
    subtree: int
    attempt: int
    seconds: Sequence[tuple[int, int, float]]  # function index, calls, seconds in all


class Progress(Struct, frozen=True, tag="progress"):
    """How far a node is with a run.

    The seconds are of calls that ended since this node last told any: function, calls, sum.
    """

    run: int
    done_count: int  # tasks ended so far, in all
    idle_count: int = 0  # executors that have nothing to do
    has_spare: bool = False  # tasks are ready for which no executor is free
    seconds: Sequence[tuple[int, int, float]] = ()


class TaskFailed(Struct, frozen=True, tag="failed"):
    """A task failed for good. Frame: the pickled exception, where the failure's kind has one."""

    run: int
    epoch: int
    failure: Failure


class TaskExpanded(Struct, frozen=True, tag="expanded"):
    """A task returned a graph; its value is that graph's. Frames: an encoded RunPlan."""

    run: int
    epoch: int
    position: int


class Holdings(Struct, frozen=True, tag="holdings"):
    """Answer to `AskHoldings`: all that the node has of a run.

    Frames: first positions of its objects, counts (blocks), sizes in bytes (int64); then positions
    that it has asked of other nodes and still needs; then positions of tasks that returned
    a graph whose value has not come; then the tasks of its subtrees that have not ended, subtree
    after subtree.
    """

    run: int
    number: int
    subtrees: Sequence[tuple[int, int, int]]  # number, attempt, tasks not ended


class ObjectsTaken(Struct, frozen=True, tag="taken"):
    """Answer to `TakeObjects`. Frames: positions that are here now; those that never will be."""

    run: int


class Drained(Struct, frozen=True, tag="drained"):
    """Answer to `DrainRun`."""

    run: int


class AskWhere(Struct, frozen=True, tag="ask_where"):
    """A task collects a Ref whose holder is gone: answer `Relocate` (broker 0: nobody has it)."""

    run: int
    position: int


class RunClosed(Struct, frozen=True, tag="closed"):
    """Answer to `EndRun`; `stats` as in `Stats`."""

    run: int
    stats: NodeStats


class Value(Struct, frozen=True, tag="value"):
    """Answer to `FetchValue`; `info` None: there is no such object. One frame if inline."""

    request: int
    info: ObjectInfo | None


class Stats(Struct, frozen=True, tag="stats"):
    """Answer to `AskStats`."""

    request: int
    stats: NodeStats


class Pong(Struct, frozen=True, tag="pong"):
    """Answer to `Ping`."""

    number: int


BrokerToMaster = (
    BrokerHello | ExecutorChanged | OutputsReady | TaskTrace | NodeTrace | SubtreeDone | Progress
    | TaskFailed | TaskExpanded | TaskRetried | Holdings | ObjectsTaken | Drained | AskWhere
    | RunClosed | Value | Stats | TaskAnswer | Pong
)  # fmt: skip

# --- broker <-> broker --------------------------------------------------------------------------


class FetchObjects(Struct, frozen=True, tag="fetch"):
    """Send these objects to me, each once it is there. Frame: positions.

    With `info_only` their sizes and types are enough (for functions that get Refs).
    """

    run: int
    epoch: int
    info_only: bool = False


class ObjectsData(Struct, frozen=True, tag="objects"):
    """Small objects, whole. A frame each; infos have no location. `info_only`: no frames."""

    run: int
    objects: Sequence[ObjectInfo]
    info_only: bool = False


class TransferStart(Struct, frozen=True, tag="start"):
    """A large object follows in `TransferChunk`s; `transfer` is the sender's number for it."""

    transfer: int
    run: int
    info: ObjectInfo


class TransferChunk(Struct, frozen=True, tag="chunk"):
    """Frame: bytes of the object from `offset` on."""

    transfer: int
    offset: int


class TransferCredit(Struct, frozen=True, tag="credit"):
    """The receiver has taken this many bytes in all and can take more."""

    transfer: int
    taken_bytes: int


class ObjectsMissing(Struct, frozen=True, tag="missing"):
    """The sender has no such objects, and will have none. Frame: positions."""

    run: int


BrokerToBroker = (
    FetchObjects | ObjectsData | TransferStart | TransferChunk | TransferCredit | ObjectsMissing
)

# --- broker -> executor -------------------------------------------------------------------------


class RunBundle(Struct, frozen=True, tag="bundle"):
    """Run these tasks, in this order, and answer `BundleDone`.

    Frames: positions (k; rising, but in lanes), indptr (k + 1, from 0), deps (positions),
    function_of (k), exports (pairs first, count: each becomes one object); of a lane
    `LaneCut.awaited` and `handed`; then new `chunks`, new `functions`, the inline `imports`.
    ``options`` names only tasks that asked for something. ``meta`` are positions whose function
    gets Refs; for them `imports` bring size and type, and no bytes need be read.
    """

    run: int
    bundle: int
    attempt: int
    chunks: Sequence[int]
    functions: Sequence[FunctionInfo]
    imports: Sequence[ObjectInfo]
    options: Sequence[TaskOptions]
    meta: Sequence[int]
    ref_brokers: Sequence[tuple[int, int]]  # for meta: (position, broker id that has it)
    referenced: Sequence[int]  # exports whose ObjectInfo shall carry type_name and refs
    sources_from: int  # positions from here on are sources
    slots: Sequence[int] = ()  # of a gang: where the executor of each lane is reached
    lane: int = 0  # which of them this is


class ForgetRun(Struct, frozen=True, tag="forget"):
    """The run is over: drop its chunks and functions."""

    run: int


class FreeExtents(Struct, frozen=True, tag="free"):
    """Bytes of this executor's own arenas that nobody needs any more."""

    locations: Sequence[Location]


class ValueReply(Struct, frozen=True, tag="value_reply"):
    """Answer to `GetValue`; `info` None: lost. One frame if inline."""

    request: int
    info: ObjectInfo | None


class Stop(Struct, frozen=True, tag="stop"):
    """End after the present task."""


BrokerToExecutor = RunBundle | ForgetRun | FreeExtents | ValueReply | Stop

# --- executor -> broker -------------------------------------------------------------------------


class ExecutorHello(Struct, frozen=True, tag="executor_hello"):
    """First message of an executor's process."""

    executor: int
    incarnation: int
    pid: int
    slot: int = -1  # where other executors of its node reach it; -1: they can't


class BundleDone(Struct, frozen=True, tag="bundle_done"):
    """What came of a bundle.

    Frames: positions of tasks that ended well, in the order they ran; stamps, as in `TaskTrace`
    (none without `Config.trace`); the inline `objects`; an exception for each of `failures` of kind
    ``raised`` or ``not_exception``; those of each of `expanded` (position, frame count).
    ``deferred``: tasks not run, because the bundle was stopped or an input of theirs failed or was
    expanded; values that they need from this bundle are among `objects`. Those of a lane may be
    another lane's, handed over; where it waited for one positions have a gap, as in `TaskTrace`.
    ``held``/``dropped``: imported objects (run, first position) of which a view outlives its task,
    and such of before whose last view has died.
    """

    run: int
    bundle: int
    attempt: int
    objects: Sequence[ObjectInfo]
    failures: Sequence[Failure]
    expanded: Sequence[tuple[int, int]]
    deferred: Sequence[int]
    held: Sequence[tuple[int, int]]
    dropped: Sequence[tuple[int, int]]
    retry_count: int
    seconds: Sequence[tuple[int, int, float]]  # function index, calls, seconds in all
    read_bytes: int
    written_bytes: int
    rss_peak_bytes: int
    retries: Sequence[TaskRetried] = ()  # of `retry_count` the first ones; `run` is 0


class GetValue(Struct, frozen=True, tag="get_value"):
    """A task collects a Ref: answer `ValueReply`. `broker` has the object."""

    request: int
    run: int
    position: int
    broker: int


class BundleLeftOut(Struct, frozen=True, tag="left_out"):
    """A bundle that was sent was not begun, for it was taken back."""

    bundle: int


ExecutorToBroker = ExecutorHello | BundleDone | BundleLeftOut | GetValue

_ToOrFromMaster = MasterToBroker | Refused | Relayed | BrokerToMaster
Message = _ToOrFromMaster | BrokerToBroker | BrokerToExecutor | ExecutorToBroker


class Parcel(NamedTuple):
    """A message and the frames that it brings."""

    message: Message
    frames: Sequence[Frame] = ()
