"""What the master core tells the client: of its runs, of values it asked for, of the nodes.

Pure data; the master's shell hands each event to the run or the environment that it concerns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dagsched.master.explaining import Explanation
from dagsched.plan import Int32
from dagsched.protocol.messages import Failure, Frame, NodeStats, ObjectInfo

RunOutcome = Literal["done", "failed", "cancelled", "timed_out", "lost"]

HeldObject = tuple[int, ObjectInfo, Frame | None]
"""Broker that holds it, the object, and its bytes where they came inline."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The first subtree of the run has been placed."""

    run: int


HappeningKind = Literal[
    "resumed", "placed", "retried", "expanded", "node_lost", "recovering", "recomputed",
    "recovered", "moved", "cut",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunHappened:
    """Something that belongs into the story of the run; `kind` says which fields have a meaning.

    ``resumed``: another client had begun it, and was lost.
    ``placed``: subtrees went to nodes: `placements` of (subtree, node, attempt).
    ``retried``: `position`, attempt `attempt` on `executor` of `node`, came to nothing: `text`.
    ``expanded``: the task at `position` returned a graph.
    ``node_lost``: `node`, which the run needed; `text` says why.
    ``recovering``, ``recovered``: nodes are asked what they hold, have all told; `text` says why.
    ``recomputed``: subtree `subtree` is made of `positions`, which nobody has (any more).
    ``moved``: values at `positions` went to `node`.
    ``cut``: there was more than `Config.story_events_max`, and what follows is counted only.
    """

    run: int
    time_s: float
    kind: HappeningKind
    node: int = 0
    executor: int = 0
    position: int = -1
    attempt: int = 0
    subtree: int = -1
    placements: Sequence[tuple[int, int, int]] = ()
    positions: Int32 | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class RunStalled:
    """Nothing of the run has moved since `since_s`, and no task runs; `found` says why."""

    run: int
    time_s: float
    since_s: float
    found: Explanation | None


@dataclass(frozen=True, slots=True)
class RunProgressed:
    """Tasks that have ended, of all that the run has (graphs that tasks returned included)."""

    run: int
    done_count: int
    total: int


@dataclass(frozen=True, slots=True)
class OutputsComplete:
    """Every output that a task computes is there: copy them, then call `outputs_taken`.

    Outputs that are sources of the plan aren't among them: the client has those, or fetches them.
    Comes again if a node was lost before its outputs had been copied.
    """

    run: int
    objects: Sequence[HeldObject]


@dataclass(frozen=True, slots=True)
class OutputsArrived:
    """Outputs that are there already, of a run of which `stream_outputs` was asked.

    After a loss some may come again. All of them are in `OutputsComplete` once more.
    """

    run: int
    objects: Sequence[HeldObject]


@dataclass(frozen=True, slots=True)
class TracesArrived:
    """Tasks that ended on one executor; frames as in `TaskTrace`."""

    run: int
    broker: int
    executor: int
    attempt: int
    positions: Frame
    stamps: Frame
    bundles: Frame
    objects: Frame


@dataclass(frozen=True, slots=True)
class NodeTraced:
    """Transfers to a node and files of it; frames as in `NodeTrace`.

    `is_own`: positions are those of the run, not of a graph that a task of it returned.
    """

    run: int
    broker: int
    is_own: bool
    transfers: Frame
    files: Frame


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over, and nothing of it is left in the cluster but what is kept for Refs.

    `tally` counts what happened by kind, as in `RunHappened` (``retried`` by its cause), all of it.

    ``lost``: `failure` is of kind ``lost``; its `type_name` names the error (NoNodesError,
    ObjectLost). Failures in graphs that tasks returned carry the position of the task of this run.
    """

    run: int
    state: RunOutcome
    failure: Failure | None
    failure_frame: Frame | None
    node: int | None
    stats: Sequence[NodeStats]
    subtree_brokers: Sequence[int]
    kept_brokers: Mapping[int, int] = field(
        default_factory=dict
    )  # of persisted values that are kept, by position
    tally: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeptMoved:
    """The object of a Ref is at another broker now."""

    run: int
    position: int
    broker: int


@dataclass(frozen=True, slots=True)
class ValueArrived:
    """Answer to `fetch`; `info` None: nobody has the object."""

    request: int
    broker: int
    info: ObjectInfo | None
    frame: Frame | None


@dataclass(frozen=True, slots=True)
class TaskExplained:
    """Answer to `explain`; `found` None: the master knows no such run or task (any more)."""

    request: int
    found: Explanation | None


@dataclass(frozen=True, slots=True)
class StatsArrived:
    """Answer to `Surveys.ask`, of all nodes that were there, by rising broker id."""

    request: int
    stats: Sequence[NodeStats]
    counters: Mapping[str, int] = field(default_factory=dict)  # of the environment, by name


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """The node's broker has been welcomed."""

    broker: int


@dataclass(frozen=True, slots=True)
class NodeRemoved:
    """The node is out of the cluster."""

    broker: int
    reason: str


@dataclass(frozen=True, slots=True)
class ExecutorMoved:
    """An executor is there (its pid, how often it was restarted), or is gone (pid 0)."""

    broker: int
    executor: int
    pid: int
    restarts: int


ClientEvent = (
    RunStarted | RunHappened | RunStalled | RunProgressed | TaskExplained | OutputsArrived
    | OutputsComplete | TracesArrived | NodeTraced | RunEnded | ValueArrived | StatsArrived
    | KeptMoved | NodeJoined | NodeRemoved | ExecutorMoved
)  # fmt: skip
