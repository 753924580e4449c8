"""When and where each task of a run was executed, as arrays by the graph's own task ids.

Pure. Executors stamp their tasks; brokers pass the stamps on, with what they note themselves of
bundles, transfers and spills; the client puts all of it together here. It is not responsible for
what the tasks were (see `dagsched.graph`) nor for drawing them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dagsched.protocol import tracing as wire
from dagsched.tables import ROWS_MAX, SPILL_KINDS, Rows, Sample, thinned

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from dagsched.master.events import NodeTraced, TracesArrived

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
    """Bytes of each task's result, -1 where not known; empty: of none. Known are those that left
    their bundle; of small values that travelled as one, each has its share."""

    events: Sequence[TraceEvent] = ()
    """Losses, attempts that came to nothing, recoveries, placements: in order of time."""

    repeats: Sequence[Repeat] = ()
    """Executions that were followed by another of the same task, in order of their ends."""

    in_bytes: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    """Bytes of each task's inputs, as far as their sizes are known, -1 where none is or it was not
    run; empty: of none."""

    bundle: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    """Bundle in which each task was executed, as its node numbers them, -1 where not known; empty:
    of none."""

    bundles: Rows = field(default_factory=partial(Rows.none, "bundles"))
    transfers: Rows = field(default_factory=partial(Rows.none, "transfers"))
    spills: Rows = field(default_factory=partial(Rows.none, "spills"))
    """See `table`."""

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

    def table(self, name: str = "tasks", *, keys: bool = False) -> dict[str, NDArray[Any]]:
        """One of the tables of the trace, as arrays by name of the column, all of the same length.

        Times are as those of tasks. Rows of all but ``tasks`` are at most `Config.trace_rows_max`;
        of more each stands for ``every`` of them, as in ``trace.transfers.every``.

        Args:
            name: of the table:
                ``tasks``: a row a task of the graph;
                ``bundles``: a row a bundle that an executor ran, or a lane of one that several
                executors ran hand in hand, if any of its tasks ended well; by start;
                ``transfers``: a row an object that came to a node from another; by end;
                ``spills``: a row an object that went to a file, or was read there; by end.
            keys: also make the column ``key``, a text a row, of tables with a column ``task``.

        Returns:
            Of ``tasks``: ``task`` (graph id), ``function`` (index into ``names.functions``),
            ``start_ns``, ``end_ns``, ``duration_ns`` (monotonic clock; -1: not run), ``node``,
            ``executor`` (ids; -1: not run), ``attempt``, ``executions``, ``failed`` (bool),
            ``subtree``, ``bundle`` (-1: not known), ``in_bytes``, ``size_bytes`` (of its inputs, of
            its result; -1: not known, for no such value ever left its executor). Arrays are the
            trace's own.

            Of ``bundles``: ``node``, ``executor``, ``bundle`` (number, of the node), ``attempt``,
            ``start_ns``, ``end_ns`` (of its first and last task), ``task_count`` (that ended well),
            ``read_bytes``, ``written_bytes`` (large objects, in shared memory and files).

            Of ``transfers``: ``task`` (whose value it is, or the first of those in one object; -1:
            a constant's, or of a graph that a task returned), ``value_count``, ``source``,
            ``target`` (nodes), ``size_bytes``, ``asked_ns`` (-1: not known), ``start_ns``,
            ``end_ns`` (its first and last bytes had come; the same for small ones).

            Of ``spills``: ``task``, ``value_count``, ``node``, ``kind`` (0: moved to a file, as the
            node's store was above its mark; 1: made in a file, for memory had no room; 2: read
            from a file by a bundle), ``size_bytes``, ``start_ns``, ``end_ns`` (of the copying; else
            both when it was noted).

        Raises:
            KeyError: there is no such table; the message names those that there are.

        Example:
            >>> builder = TraceBuilder()
            >>> builder.add(2, 3, 1, np.array([0]), np.array([100, 150]))
            >>> builder.build(np.arange(2)).table()["duration_ns"]
            array([50, -1])
        """
        if name == "tasks":
            columns = self._tasks()
        else:
            rows = {"bundles": self.bundles, "transfers": self.transfers, "spills": self.spills}
            if name not in tuple(rows):
                raise KeyError(f"there is no table {name!r}: there are tasks, {', '.join(rows)}")
            columns = dict(rows[name].columns)
        if keys and "task" in columns:
            tasks = columns["task"].tolist()
            texts = [self.key(task) if task >= 0 else "" for task in tasks]
            columns["key"] = np.array(texts, object)
        return columns

    def _tasks(self) -> dict[str, NDArray[Any]]:
        count = self.task_count
        failed = np.zeros(count, np.bool_)
        failed[list(self.failed)] = True
        unknown = np.full(count, -1)
        return {
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
            "bundle": self.bundle if len(self.bundle) else unknown,
            "in_bytes": self.in_bytes if len(self.in_bytes) else unknown,
            "size_bytes": self.size_bytes if len(self.size_bytes) else unknown,
        }

    def to_arrow(self, name: str = "tasks", *, keys: bool = False) -> "pa.Table":
        """A table for Apache Arrow; ``function`` and ``kind`` are dictionaries of names.

        Raises:
            ImportError: the package pyarrow is not installed.
        """
        try:
            import pyarrow as pa
        except ImportError as error:
            raise ImportError(_missing("pyarrow")) from error
        columns: dict[str, Any] = dict(self.table(name, keys=keys))
        for column, names in self._coded(columns):
            columns[column] = pa.DictionaryArray.from_arrays(
                columns[column], pa.array(names, pa.string())
            )
        return pa.table(columns)

    def to_pandas(self, name: str = "tasks", *, keys: bool = False) -> "pd.DataFrame":
        """A table for pandas; ``function`` and ``kind`` are categoricals of names.

        Raises:
            ImportError: the package pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(_missing("pandas")) from error
        columns = self.table(name, keys=keys)
        frame = pd.DataFrame(columns)
        for column, names in self._coded(columns):
            # A file may have two functions of one name, and categories must differ.
            frame[column] = pd.Categorical(np.array(names, object)[columns[column]])
        return frame

    def _coded(self, columns: Mapping[str, object]) -> list[tuple[str, list[str]]]:
        """Columns whose numbers stand for names, with those."""
        found = []
        if "function" in columns and self.names is not None:
            found.append(("function", list(self.names.functions)))
        if "kind" in columns:
            found.append(("kind", list(SPILL_KINDS.values())))
        return found


def _missing(package: str) -> str:
    return (
        f"this needs the package {package} (pip install {package}); "
        "table() gives the same columns as NumPy arrays"
    )


class _Piece(NamedTuple):
    """What came of tasks that one executor ran; see `TraceBuilder.add`."""

    node: int
    executor: int
    attempt: int
    positions: object
    stamps: object
    bundles: Buffer
    objects: Buffer


class TraceBuilder:
    """Gathers what comes of one run; adding is as cheap as appending to a list.

    Stamps are kept of all tasks, for the graph has more of each of them; of transfers and spills as
    many rows as `take` was told.
    """

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._transfers = Sample(1 + len(wire.TRANSFER_COLUMNS))
        self._files = Sample(1 + len(wire.FILE_COLUMNS))
        self._rows_max = ROWS_MAX

    def take(self, event: "TracesArrived | NodeTraced", rows_max: int) -> None:
        """Take what a node told, of which no more than so many rows of a kind are kept."""
        from dagsched.master.events import NodeTraced

        self._rows_max = rows_max
        if not isinstance(event, NodeTraced):
            self.add(
                event.broker, event.executor, event.attempt, event.positions, event.stamps,
                event.bundles, event.objects,
            )  # fmt: skip
            return
        for sample, frame in ((self._transfers, event.transfers), (self._files, event.files)):
            rows = _as_array(frame, np.dtype("<i8")).reshape(-1, sample.width - 1)
            rows = np.insert(rows, 0, event.broker, axis=1)
            if not event.is_own:
                rows[:, 1] = -1
            sample.rows_max = rows_max
            sample.add(rows)

    def add(
        self,
        broker: int,
        executor: int,
        attempt: int,
        positions: Buffer | NDArray[np.integer],
        stamps: Buffer | NDArray[np.integer],
        bundles: Buffer = b"",
        objects: Buffer = b"",
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
            bundles: int64 bytes of rows as `BUNDLE_COLUMNS` of `dagsched.protocol.tracing` has
                them; none: not known.
            objects: the same of `OBJECT_COLUMNS`.
        """
        self._pieces.append(_Piece(broker, executor, attempt, positions, stamps, bundles, objects))

    @property
    def pieces(self) -> list[_Piece]:
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
        pieces = [_arrays(piece) for piece in self._by_attempt()]
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

    def _by_attempt(self) -> list[_Piece]:
        return sorted(self._pieces, key=lambda piece: piece.attempt)

    def bundles(self, order: NDArray[np.integer]) -> tuple[Int32, Rows]:
        """The bundle of each task's last execution, by graph id, and the table of bundles.

        Args:
            order: graph id of the task at each position.
        """
        bundle = np.full(len(order), -1, np.int32)
        pieces = [piece for piece in self._by_attempt() if len(piece.bundles)]
        if not pieces:
            return np.empty(0, np.int32), Rows.none("bundles")
        rows = [_rows(piece.bundles, wire.BUNDLE_COLUMNS) for piece in pieces]
        arrays = [_arrays(piece) for piece in pieces]
        number, length, read, written = np.concatenate(rows).T
        # Behind each bundle but the last of a piece stands a gap.
        steps = length + 1
        steps[np.cumsum([len(some) for some in rows]) - 1] -= 1
        begin = np.cumsum(steps) - steps
        positions = np.concatenate([piece[3] for piece in arrays])
        ran = positions >= 0
        bundle[order[positions[ran]]] = np.repeat(number, steps)[ran]
        ran_before = np.concatenate([[0], np.cumsum(ran)])
        starts = np.concatenate([piece[4][:-1] for piece in arrays])
        ends = np.concatenate([piece[4][1:] for piece in arrays])
        who = np.array([piece[:3] for piece in arrays], np.int64)
        node, executor, attempt = np.repeat(who, [len(some) for some in rows], axis=0).T
        columns = [
            node, executor, number, attempt, starts[begin], ends[begin + length - 1],
            ran_before[begin + length] - ran_before[begin], read, written,
        ]  # fmt: skip
        table, every = thinned(np.stack(columns, axis=1), self._rows_max)
        return bundle, Rows.of("bundles", table[np.argsort(table[:, 4], kind="stable")], every)

    def sizes(self, order: NDArray[np.integer]) -> Int64:
        """Bytes of results that left their bundle, by graph id; -1 of others.

        Args:
            order: graph id of the task at each position.
        """
        sizes = np.full(len(order), -1, np.int64)
        pieces = [_rows(piece.objects, wire.OBJECT_COLUMNS) for piece in self._by_attempt()]
        if pieces:
            first, count, size = np.concatenate(pieces).T
            # What is left over of a block's bytes is its first value's.
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            shares = np.repeat(size // count, count)
            shares[within == 0] += size % count
            sizes[order[np.repeat(first, count) + within]] = shares
        return sizes

    def transfers(self, order: NDArray[np.integer]) -> Rows:
        """The table of transfers; `order` as above."""
        rows, every = self._transfers.taken()
        target, position, count, source, *rest = rows.T
        columns = (_tasks_at(order, position), count, source, target, *rest)
        return _by_end("transfers", columns, every)

    def spills(self, order: NDArray[np.integer]) -> Rows:
        """The table of spills; `order` as above."""
        rows, every = self._files.taken()
        node, position, count, *rest = rows.T
        return _by_end("spills", (_tasks_at(order, position), count, node, *rest), every)

    def repeats(self, order: NDArray[np.integer]) -> list[Repeat]:
        """Executions of tasks with several, but for the one of each that `build` tells of.

        Args:
            order: graph id of the task at each position.
        """
        pieces = [_arrays(piece) for piece in self._by_attempt()]
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


def _arrays(piece: _Piece) -> tuple[int, int, int, Int32, Int64]:
    """A piece with its stamps seen as arrays, checked."""
    broker, executor, attempt, positions, stamps, _, _ = piece
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


def _rows(frame: Buffer, columns: Sequence[str]) -> Int64:
    return np.frombuffer(frame, "<i8").reshape(-1, len(columns))


def _tasks_at(order: NDArray[np.integer], positions: Int64) -> Int64:
    """Graph ids of tasks; -1 for positions that are none's."""
    is_task = (positions >= 0) & (positions < len(order))
    tasks = np.full(len(positions), -1, np.int64)
    tasks[is_task] = order[positions[is_task]]
    return tasks


def _by_end(table: str, columns: Sequence[Int64], every: int) -> Rows:
    rows = np.stack(columns, axis=1)
    return Rows.of(table, rows[np.argsort(rows[:, -1], kind="stable")], every)
