"""When and where each task of a run was executed, as arrays by the graph's own task ids.

Pure. Executors stamp their tasks; brokers pass the stamps on; the client puts them together here.
It is not responsible for what the tasks were (see `dagsched.graph`) nor for drawing them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class TaskNames:
    """What tasks are called; no text is made but of the tasks that are asked for.

    Example:
        >>> names = TaskNames(["abs"], np.array([0, 0]), np.array([7, 9]), {1: "size"})
        >>> names.key(0), names.key(1), names.function(1)
        ('abs-7', 'size-9', 'abs')
    """

    functions: Sequence[str]
    function_of: Int32  # by task: index into functions
    serials: Int64  # by task: the number at the end of its key
    own: Mapping[int, str] = field(default_factory=dict)  # of tasks with a name of their own
    own_keys: Sequence[object] | None = None  # by task: of a graph that another library wrote

    def function(self, task: int) -> str:
        """Name of the function that the task calls."""
        return self.functions[int(self.function_of[task])]

    def key(self, task: int) -> str:
        """The key of the `Delayed` that the task was, or the one that its library gave it."""
        if self.own_keys is not None:
            return str(self.own_keys[task])
        return f"{self.own.get(task) or self.function(task)}-{self.serials[task]}"


class TraceEvent(NamedTuple):
    """Something that happened to a run and not in the course of a task; -1: has no meaning."""

    time_ns: int
    kind: str  # as `dagsched.master.events.RunHappened` has them, "stalled", "failed"
    node: int = -1
    executor: int = -1
    task: int = -1  # by graph id
    attempt: int = -1
    item_count: int = 0  # of the subtrees or tasks that it concerns, where it is several
    text: str = ""


class Execution(NamedTuple):
    """One time that a task ended."""

    node: int
    executor: int
    attempt: int
    start_ns: int
    end_ns: int


class Repeat(NamedTuple):
    """A time that a task ended and which was not the last."""

    task: int
    execution: Execution


@dataclass(frozen=True, slots=True)
class Trace:
    """What is known of each task's execution; index i is task i of the graph.

    Times are nanoseconds of the monotonic clock, on one machine the same for all processes. A task
    that was not run has -1 in `start_ns`, `end_ns`, `executor`, `node` and 0 in `attempts`.

    Example:
        >>> builder = TraceBuilder()
        >>> builder.add(2, 3, 1, np.array([0, 1]), np.array([100, 150, 175]))
        >>> trace = builder.build(np.array([1, 0, 2]))
        >>> trace.duration_ns.tolist()
        [25, 50, -1]
    """

    start_ns: Int64
    end_ns: Int64
    executor: Int32
    node: Int32  # the id of the node's broker
    attempt: Int32  # the number that the last execution bore on the wire
    executions: Int32  # how often the task ended, in all
    failed: Sequence[int] = ()
    """Tasks that failed for good, by graph id."""

    part: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    """Subtree of each task by graph id; empty: not known."""

    names: TaskNames | None = None
    size_bytes: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    """Bytes of each task's result, -1 where not known; empty: of none. Known are those of outputs
    of the run that travelled by themselves."""

    events: Sequence[TraceEvent] = ()
    """Losses, attempts that came to nothing, recoveries, placements: in order of time."""

    repeats: Sequence[Repeat] = ()
    """Executions that were followed by another of the same task, in order of their ends."""

    @property
    def task_count(self) -> int:
        """Tasks of the graph, whether they ran or not."""
        return len(self.start_ns)

    @property
    def ran(self) -> NDArray[np.bool_]:
        """Which tasks ended at least once."""
        return self.start_ns >= 0

    @property
    def duration_ns(self) -> Int64:
        """How long each task took; -1 where it was not run."""
        return np.where(self.ran, self.end_ns - self.start_ns, -1)

    @property
    def span_ns(self) -> int:
        """From the first start to the last end; 0 if nothing ran."""
        ran = self.ran
        if not ran.any():
            return 0
        return int(self.end_ns[ran].max() - self.start_ns[ran].min())

    def key(self, task: int) -> str:
        """The key of a task; its id as text where names are not known."""
        return str(task) if self.names is None else self.names.key(task)

    def table(self, *, keys: bool = False) -> dict[str, NDArray[Any]]:
        """A row a task of the graph, as arrays by name of the column, all of the same length.

        Args:
            keys: also make the column ``key``, a text a task.

        Returns:
            ``task`` (graph id), ``function`` (index into ``names.functions``), ``start_ns``,
            ``end_ns``, ``duration_ns`` (monotonic clock; -1: not run), ``node``, ``executor``
            (ids; -1: not run), ``attempt``, ``executions``, ``failed`` (bool), ``subtree`` (-1:
            not known), ``size_bytes`` (of the result; -1: not known). Arrays are the trace's own.

        Example:
            >>> builder = TraceBuilder()
            >>> builder.add(2, 3, 1, np.array([0]), np.array([100, 150]))
            >>> builder.build(np.arange(2)).table()["duration_ns"]
            array([50, -1])
        """
        count = self.task_count
        failed = np.zeros(count, np.bool_)
        failed[list(self.failed)] = True
        unknown = np.full(count, -1)
        columns: dict[str, NDArray[Any]] = {
            "task": np.arange(count),
            "function": unknown if self.names is None else self.names.function_of,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "duration_ns": self.duration_ns,
            "node": self.node,
            "executor": self.executor,
            "attempt": self.attempt,
            "executions": self.executions,
            "failed": failed,
            "subtree": self.part if len(self.part) else unknown,
            "size_bytes": self.size_bytes if len(self.size_bytes) else unknown,
        }
        if keys:
            columns["key"] = np.array([self.key(task) for task in range(count)], object)
        return columns

    def to_arrow(self, *, keys: bool = False) -> "pa.Table":
        """The table for Apache Arrow; ``function`` is a dictionary of names.

        Raises:
            ImportError: the package pyarrow is not installed.
        """
        try:
            import pyarrow as pa
        except ImportError as error:
            raise ImportError(_missing("pyarrow")) from error
        columns = self.table(keys=keys)
        if self.names is not None:
            columns["function"] = pa.DictionaryArray.from_arrays(
                columns["function"], pa.array(list(self.names.functions), pa.string())
            )
        return pa.table(columns)

    def to_pandas(self, *, keys: bool = False) -> "pd.DataFrame":
        """The table for pandas; ``function`` is a categorical of names.

        Raises:
            ImportError: the package pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(_missing("pandas")) from error
        frame = pd.DataFrame(self.table(keys=keys))
        if self.names is not None:
            # Two functions may have one name, and categories must differ.
            names = np.array(self.names.functions, object)
            frame["function"] = pd.Categorical(names[self.names.function_of])
        return frame


def _missing(package: str) -> str:
    return (
        f"this needs the package {package} (pip install {package}); "
        "table() gives the same columns as NumPy arrays"
    )


class TraceBuilder:
    """Gathers the stamps of one run as they arrive; adding is as cheap as appending to a list."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, int, int, object, object]] = []

    def add(
        self,
        broker: int,
        executor: int,
        attempt: int,
        positions: Buffer | NDArray[np.integer],
        stamps: Buffer | NDArray[np.integer],
    ) -> None:
        """Take the stamps of tasks that one executor ran one after the other, with gaps or without.

        Args:
            broker: id of the node's broker.
            executor: id of the executor.
            attempt: of the part that the tasks belong to; where a task is told of more than once
                the highest wins, and among equals the last.
            positions: of the tasks, in the order they ran, -1 for a gap; an array, or its int32
                bytes.
            stamps: one more than positions, in ns; ``stamps[0]`` is the first task's start,
                ``stamps[i + 1]`` the end of task i and the start of the next; an array, or its
                int64 bytes.
        """
        self._pieces.append((broker, executor, attempt, positions, stamps))

    @property
    def pieces(self) -> "list[tuple[int, int, int, object, object]]":
        """All that was added, as it was given to `add`, in that order."""
        return list(self._pieces)

    def executions_of(self, position: int) -> list[Execution]:
        """Every time that the task at a position has ended, in order."""
        found = []
        for piece in self._pieces:
            ids = _as_array(piece[3], np.dtype("<i4"))
            for place in np.flatnonzero(ids == position).tolist():
                stamps = _as_array(piece[4], np.dtype("<i8"))
                start_ns, end_ns = int(stamps[place]), int(stamps[place + 1])
                found.append(Execution(piece[0], piece[1], piece[2], start_ns, end_ns))
        return sorted(found, key=lambda one: one.end_ns)

    def seconds_of(self, positions: Iterable[int]) -> float:
        """How long the tasks at these positions took, in all."""
        executions = (one for position in positions for one in self.executions_of(position))
        return sum(one.end_ns - one.start_ns for one in executions) / 1e9

    def build(
        self,
        order: NDArray[np.integer],
        *,
        failed: Sequence[int] = (),
        subtree_starts: NDArray[np.integer] | None = None,
    ) -> Trace:
        """The trace of all that was added; more may be added, and this called again, later.

        Args:
            order: graph id of the task at each position.
            failed: positions of the tasks that failed for good.
            subtree_starts: first position of each subtree, and the number of tasks at the end.

        Raises:
            ValueError: there is not one stamp more than there are positions.
        """
        count = len(order)
        start_ns = np.full(count, -1, np.int64)
        end_ns = np.full(count, -1, np.int64)
        executor, node = np.full(count, -1, np.int32), np.full(count, -1, np.int32)
        attempt, executions = np.zeros(count, np.int32), np.zeros(count, np.int32)
        part = np.empty(0, np.int32)
        if subtree_starts is not None:
            part = np.empty(count, np.int32)
            starts = np.asarray(subtree_starts, np.int64)
            lengths = starts[1:] - starts[:-1]
            part[order] = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        # Assigning to repeated indices keeps the last, so the highest attempt goes last.
        pieces = [_arrays(piece) for piece in sorted(self._pieces, key=lambda piece: piece[2])]
        if pieces:
            sizes = [len(piece[3]) for piece in pieces]
            positions = np.concatenate([piece[3] for piece in pieces])
            ran = positions >= 0
            ids = np.asarray(order)[positions[ran]]
            start_ns[ids] = np.concatenate([piece[4][:-1] for piece in pieces])[ran]
            end_ns[ids] = np.concatenate([piece[4][1:] for piece in pieces])[ran]
            node[ids] = np.repeat([piece[0] for piece in pieces], sizes)[ran]
            executor[ids] = np.repeat([piece[1] for piece in pieces], sizes)[ran]
            attempt[ids] = np.repeat([piece[2] for piece in pieces], sizes)[ran]
            executions = np.bincount(ids, minlength=count).astype(np.int32)
        failed_ids = tuple(sorted(int(order[position]) for position in failed))
        return Trace(start_ns, end_ns, executor, node, attempt, executions, failed_ids, part)

    def repeats(self, order: NDArray[np.integer]) -> list[Repeat]:
        """Executions of tasks with several, but for the one of each that `build` tells of.

        Args:
            order: graph id of the task at each position.
        """
        pieces = [_arrays(piece) for piece in sorted(self._pieces, key=lambda piece: piece[2])]
        if not pieces:
            return []
        positions = np.concatenate([piece[3] for piece in pieces])
        has_several = np.bincount(positions[positions >= 0], minlength=len(order)) > 1
        if not has_several.any():
            return []
        found: dict[int, list[Execution]] = {}
        for node, executor, attempt, ids, stamps in pieces:
            for place in np.flatnonzero((ids >= 0) & has_several[ids]).tolist():
                times = int(stamps[place]), int(stamps[place + 1])
                ended = found.setdefault(int(order[ids[place]]), [])
                ended.append(Execution(node, executor, attempt, *times))
        repeats = [Repeat(task, one) for task, ended in found.items() for one in ended[:-1]]
        return sorted(repeats, key=lambda repeat: repeat.execution.end_ns)


def _arrays(piece: tuple[int, int, int, object, object]) -> tuple[int, int, int, Int32, Int64]:
    """A piece with its frames seen as arrays, checked."""
    broker, executor, attempt, positions, stamps = piece
    ids = _as_array(positions, np.dtype("<i4"))
    times = _as_array(stamps, np.dtype("<i8"))
    if len(times) != len(ids) + 1:
        raise ValueError(f"{len(ids)} positions need {len(ids) + 1} stamps, not {len(times)}")
    return broker, executor, attempt, ids, times


def _as_array(values: object, dtype: "np.dtype[np.signedinteger]") -> NDArray[np.signedinteger]:
    if isinstance(values, np.ndarray):
        return values
    assert isinstance(values, bytes | bytearray | memoryview)
    return np.frombuffer(values, dtype)
