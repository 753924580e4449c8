"""Files that hold a `History`: written in one go, read without trust.

A file is a head and packed columns; integers are little-endian:

    8 bytes   b"dagsched"
    u32       version of the format, 1
    u32       bytes of the head
    head      JSON: {"run": {..}, "columns": [[name, kind, items, packed bytes], ..]}
    columns   in that order, each one zlib stream

`kind` is "json", or the type of the items ("u1" .. "i8"), which stand by bytes: first the lowest of
all, then the next. Columns of the tasks: ``inputs`` (number of dependencies), ``function``,
``serial`` (differences), ``start`` (ns since ``run.base_ns``, differences), ``duration`` (plus one;
0: not run), ``executor``, ``node``, ``attempt``, ``executions``, ``subtree``, ``size``; of edges
``deps`` (a task's id less that of its dependency). ``bundle``, a task, is left out where none is
known; of the tables ``bundles``, ``transfers`` and ``spills`` each column is one by the name
``TABLE.COLUMN``, times as differences, and the head's "every" says of how many rows each is one.
JSON: ``functions``, ``own`` (names of tasks,
by id), ``keys`` (of all tasks, where another library wrote the graph), ``events``, ``repeats``,
``failed``, ``stats``. Readers leave out what they don't know; what can't be read by older ones gets
a new version.

Nothing in it is code. A reader takes no more memory than the head says, which is held against the
file's size and a limit before anything is unpacked, and believes no number that it hasn't checked.
"""

import json
import os
import secrets
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dagsched.columns import KINDS, inflate, pack, unpack
from dagsched.errors import DagschedError, VersionMismatch
from dagsched.history import History
from dagsched.stats import BROKER_FIELDS, EXECUTOR_FIELDS
from dagsched.tables import COLUMNS, SPILL_KINDS, Rows, input_bytes
from dagsched.trace import Execution, Repeat, TaskNames, Trace, TraceEvent

if TYPE_CHECKING:
    from dagsched.run import Run

MAGIC = b"dagsched"
VERSION = 1
BYTES_MAX = 4 << 30
"""Most bytes of all columns of a file, unpacked: those of some 100 million tasks."""

_HEAD = struct.Struct("<8sII")
_HEAD_BYTES_MAX = 1 << 20
_RATIO_MAX = 1040  # zlib packs no more than 1,032 bytes into one
_TASK_COLUMNS = (
    "inputs", "function", "serial", "start", "duration", "executor", "node", "attempt",
    "executions",
)  # fmt: skip


class _Column(NamedTuple):
    """An entry of the head."""

    name: str
    kind: str
    items: int
    packed_bytes: int

    @property
    def unpacked_bytes(self) -> int:
        return self.items * (1 if self.kind == "json" else int(self.kind[1]))


# --- writing --------------------------------------------------------------------------------------


def save_run(run: "Run", path: str | PathLike[str]) -> Path:
    """Write what is known of a run now.

    Raises:
        OSError: it can't be written.
    """
    return save_history(History.of_run(run), path)


def save_history(history: History, path: str | PathLike[str]) -> Path:
    """Write a file; what was there by that name is replaced once the new one is whole.

    Raises:
        OSError: it can't be written.
    """
    target = Path(path)
    packed = [_packed(name, value) for name, value in _columns(history).items()]
    run = {
        "id": history.run_id,
        "state": history.state,
        "submitted_ns": history.submitted_ns,
        "ended_ns": history.ended_ns,
        "base_ns": _base_ns(history.trace),
        "task_count": history.task_count,
    }
    every = {name: getattr(history.trace, name).every for name in COLUMNS}
    run["every"] = {name: number for name, number in every.items() if number > 1}
    head = json.dumps({"run": run, "columns": [column for column, _ in packed]}).encode()
    # A name of its own: others may save there too, and one that died may have left what it had.
    partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(_HEAD.pack(MAGIC, VERSION, len(head)) + head)
            file.writelines(data for _, data in packed)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"the run can't be saved ({error.strerror}): name a file in a directory that is there "
            "and that you may write to",
            str(target),
        ) from error
    return target


def _base_ns(trace: Trace) -> int:
    return int(trace.start_ns[trace.ran].min()) if trace.ran.any() else 0


def _columns(history: History) -> dict[str, object]:
    trace, names = history.trace, history.names
    dependents = np.repeat(np.arange(history.task_count), np.diff(history.indptr))
    start = np.where(trace.ran, trace.start_ns - _base_ns(trace), 0)
    columns: dict[str, object] = {
        "inputs": np.diff(history.indptr),
        "deps": dependents - history.deps,
        "function": names.function_of,
        "serial": np.diff(names.serials, prepend=0),
        "start": np.diff(start, prepend=0),
        "duration": trace.duration_ns + 1,
        "executor": trace.executor,
        "node": trace.node,
        "attempt": trace.attempt,
        "executions": trace.executions,
        "functions": list(names.functions),
        "own": {str(task): name for task, name in names.own.items()},
        "events": list(trace.events),
        "repeats": [[repeat.task, *repeat.execution] for repeat in trace.repeats],
        "failed": list(trace.failed),
        "stats": history.stats,
    }
    if names.own_keys is not None:
        columns["keys"] = [str(key) for key in names.own_keys]
    if len(trace.part):
        columns["subtree"] = trace.part
    if len(trace.size_bytes):
        columns["size"] = trace.size_bytes
    if len(trace.bundle):
        columns["bundle"] = trace.bundle
    for table in COLUMNS:
        for name, column in getattr(trace, table).columns.items():
            is_time = name.endswith("_ns")
            columns[f"{table}.{name}"] = np.diff(column, prepend=0) if is_time else column
    return columns


def _packed(name: str, value: object) -> tuple[_Column, bytes]:
    if isinstance(value, np.ndarray):
        kind, data = pack(value)
        return _Column(name, kind, len(value), len(data)), data
    text = json.dumps(value).encode()
    data = zlib.compress(text, 1)
    return _Column(name, "json", len(text), len(data)), data


# --- reading --------------------------------------------------------------------------------------


def load_history(path: str | PathLike[str], *, bytes_max: int = BYTES_MAX) -> History:
    """Read a file.

    Args:
        path: of the file.
        bytes_max: most memory that its columns may take.

    Raises:
        FileNotFoundError: there is none.
        VersionMismatch: a later dagsched wrote it.
        DagschedError: it is no such file, is damaged, or needs more memory than that.
    """
    target = Path(path)
    try:
        with open(target, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size, bytes_max)
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise DagschedError(
            f"{target} is no run saved by dagsched, or it is damaged: {error}; "
            "files for `dagsched viz` are written by run.save(path)"
        ) from error


def _read(file: BinaryIO, size_bytes: int, bytes_max: int) -> History:
    start = file.read(_HEAD.size)
    if len(start) < _HEAD.size or not start.startswith(MAGIC):
        raise ValueError("it does not begin as one")
    _, version, head_bytes = _HEAD.unpack(start)
    if version != VERSION:
        raise VersionMismatch(
            f"the file has version {version} of the format, this dagsched reads {VERSION}: "
            "read it with the dagsched that wrote it, or a later one"
        )
    _check(head_bytes <= min(_HEAD_BYTES_MAX, size_bytes), "its head is too long")
    head = json.loads(file.read(head_bytes))
    columns = [_Column(*entry) for entry in head["columns"]]
    for column in columns:
        _check(column.kind in (*KINDS, "json"), f"column {column.name!r:.40} has no known kind")
        _check(_is_count(column.items) and _is_count(column.packed_bytes), "a column has no length")
        _check(
            column.unpacked_bytes <= _RATIO_MAX * column.packed_bytes,
            f"column {column.name!r:.40} says that it is longer than it can be",
        )
    packed = sum(column.packed_bytes for column in columns)
    _check(packed == size_bytes - _HEAD.size - head_bytes, "its end is missing, or there is more")
    total = sum(column.unpacked_bytes for column in columns)
    _check(total <= bytes_max, f"it needs {total:,} bytes of memory, and {bytes_max:,} are allowed")
    values = {column.name: _unpacked(column, file.read(column.packed_bytes)) for column in columns}
    return _history(head["run"], values)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check(is_right: bool | np.bool_, problem: str) -> None:
    if not is_right:
        raise ValueError(problem)


def _unpacked(column: _Column, packed: bytes) -> Any:
    if column.kind == "json":
        return json.loads(inflate(packed, column.items))
    return unpack(column.kind, column.items, packed)


def _history(run: Mapping[str, Any], values: Mapping[str, Any]) -> History:
    count = run["task_count"]
    _check(_is_count(count), "it has no number of tasks")
    for name in (*_TASK_COLUMNS, "subtree", "size", "bundle"):
        if name in values or name in _TASK_COLUMNS:
            _check(
                isinstance(values[name], np.ndarray) and len(values[name]) == count,
                f"column {name} does not have an item a task",
            )
    names = _names(values, count)
    indptr, deps = _edges(values, count)
    trace = _with_bytes(_trace(run, values, names), indptr, deps)
    stats = values["stats"]
    _check(_are_stats(stats), "its statistics are not tables")
    return History(
        indptr,
        deps,
        trace,
        names,
        str(run["id"]),
        str(run["state"]),
        int(run["submitted_ns"]),
        int(run["ended_ns"]),
        stats,
    )


def _are_stats(stats: Any) -> bool:
    """Whether these are the tables that `Run.stats` has, or none."""
    if stats == {}:
        return True
    tables = (("brokers", BROKER_FIELDS), ("executors", ("node", *EXECUTOR_FIELDS)))
    return isinstance(stats["run"], dict) and all(
        isinstance(row[name], str if name == "host" else int | float)
        for table, fields in tables
        for row in stats[table]
        for name in fields
    )


def _names(values: Mapping[str, Any], count: int) -> TaskNames:
    functions, own = values["functions"], values["own"]
    _check(all(isinstance(name, str) for name in functions), "a function has no name")
    keys = values.get("keys")
    _check(keys is None or len(keys) == count, "a task has no key")
    function_of = values["function"].astype(np.int32)
    if count:
        _check(
            function_of.min() >= 0 and function_of.max() < len(functions),
            "a task has no function",
        )
    return TaskNames(
        functions,
        function_of,
        np.cumsum(values["serial"], dtype=np.int64),
        {int(task): str(name) for task, name in own.items()},
        keys,
    )


def _edges(values: Mapping[str, Any], count: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    inputs, steps = values["inputs"].astype(np.int64), values["deps"].astype(np.int64)
    _check(count == 0 or inputs.min() >= 0, "a task has less than no dependencies")
    indptr = np.zeros(count + 1, np.int64)
    np.cumsum(inputs, out=indptr[1:])
    _check(indptr[-1] == len(steps), "its edges are not those of its tasks")
    deps = np.repeat(np.arange(count), inputs) - steps
    _check(
        not len(steps) or (steps.min() > 0 and deps.min() >= 0),
        "a task depends on itself or on a later one",
    )
    return indptr, deps.astype(np.int32)


def _trace(run: Mapping[str, Any], values: Mapping[str, Any], names: TaskNames) -> Trace:
    count = run["task_count"]
    ran = values["duration"] > 0
    start_ns = np.cumsum(values["start"], dtype=np.int64) + int(run["base_ns"])
    start_ns[~ran] = -1
    end_ns = start_ns + values["duration"].astype(np.int64) - 1
    end_ns[~ran] = -1
    tasks = [*values["failed"], *(row[0] for row in values["repeats"])]
    _check(
        all(_is_count(task) and task < count for task in tasks),
        "it tells of a task that it does not have",
    )
    return Trace(
        start_ns,
        end_ns,
        values["executor"].astype(np.int32),
        values["node"].astype(np.int32),
        values["attempt"].astype(np.int32),
        values["executions"].astype(np.int32),
        tuple(values["failed"]),
        values.get("subtree", np.empty(0)).astype(np.int32),
        names,
        values.get("size", np.empty(0)).astype(np.int64),
        [_event(row, count) for row in values["events"]],
        [Repeat(int(row[0]), Execution(*map(int, row[1:]))) for row in values["repeats"]],
        bundle=values.get("bundle", np.empty(0)).astype(np.int32),
        bundles=_rows("bundles", run, values),
        transfers=_rows("transfers", run, values),
        spills=_rows("spills", run, values),
    )


def _rows(table: str, run: Mapping[str, Any], values: Mapping[str, Any]) -> Rows:
    """One of the tables beside that of tasks; empty where the file has none."""
    names = [f"{table}.{name}" for name in COLUMNS[table]]
    found = [values[name] for name in names if name in values]
    if not found:
        return Rows.none(table)
    _check(
        len(found) == len(names)
        and all(isinstance(one, np.ndarray) and len(one) == len(found[0]) for one in found),
        f"the table {table} is not whole",
    )
    columns = {
        name: np.cumsum(one, dtype=np.int64) if name.endswith("_ns") else one.astype(np.int64)
        for name, one in zip(COLUMNS[table], found, strict=True)
    }
    count, every = run["task_count"], run.get("every", {}).get(table, 1)
    _check(_is_count(every) and 0 < every < 1 << 31, f"the table {table} has no number of rows")
    if "task" in columns and len(found[0]):
        tasks = columns["task"]
        _check(tasks.min() >= -1 and tasks.max() < count, f"the table {table} has another's task")
    if "kind" in columns:
        _check(np.isin(columns["kind"], list(SPILL_KINDS)).all(), "a spill of no kind")
    return Rows(columns, every)


def _with_bytes(trace: Trace, indptr: NDArray[np.int64], deps: NDArray[np.int32]) -> Trace:
    """With the bytes of inputs, which follow from those of results."""
    if not len(trace.size_bytes):
        return trace
    known = input_bytes(indptr, deps, trace.size_bytes)
    return replace(trace, in_bytes=np.where(trace.ran, known, -1))


def _event(row: Any, count: int) -> TraceEvent:
    event = TraceEvent(*row)
    numbers = event.time_ns, event.node, event.executor, event.task, event.attempt, event.item_count
    _check(
        all(isinstance(number, int) for number in numbers)
        and isinstance(event.kind, str)
        and isinstance(event.text, str)
        and -1 <= event.task < count,
        "an event is not one",
    )
    return event
