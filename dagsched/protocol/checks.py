"""Whether a message's numbers and frames make sense, before a core looks at them. Pure.

The codec has seen to types; here it is counts and lengths of frames, and positions that a run has.
So cores may index by whatever they are told. Costs a fraction of a microsecond for most messages;
for a `PlaceSubtree` some passes over its arrays.

Responsible for what would break a core, not for lies: a broker that says it has a value which it
hasn't is believed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagsched.errors import ProtocolError
from dagsched.protocol import messages as m
from dagsched.protocol.asking import AskTask, TaskAnswer, TaskRetried
from dagsched.protocol.messages import CHUNK_TASKS, Frame, Message, ObjectInfo
from dagsched.protocol.tracing import (
    BUNDLE_COLUMNS,
    FILE_COLUMNS,
    FILE_MADE,
    FILE_MOVED,
    FILE_READ,
    OBJECT_COLUMNS,
    TRANSFER_COLUMNS,
)

POSITIONS_MAX = 1 << 27
"""Tasks and sources of a run; a node reserves some bytes for each when the run begins."""

NUMBER_MAX = 1 << 63
"""Runs, requests, bytes: above all that is ever counted, below what arrays can't hold."""

FRAMES_OF_SUBTREE = 8
"""Arrays of a `PlaceSubtree`, before chunks and functions."""

_FAILURES_WITH_FRAME = ("raised", "not_exception")

TotalOf = Callable[[int], int | None]
"""Positions of a run; None: the run isn't known."""


def check_parcel(message: Message, frames: Sequence[Frame], total_of: TotalOf) -> None:
    """Return if the message makes sense.

    Args:
        message: decoded.
        frames: that came with it.
        total_of: how many positions a run has, as far as the receiver knows.

    Raises:
        ProtocolError: it doesn't.

    Example:
        >>> check_parcel(m.Release(7), [b"12345678"], lambda run: None)
        >>> check_parcel(m.Release(7), [b"1234567"], lambda run: None)
        Traceback (most recent call last):
        dagsched.errors.ProtocolError: Release: positions of 7 bytes
    """
    check = _CHECKS.get(type(message))
    try:
        if check is not None:
            check(message, frames, total_of)
        else:
            _need(not frames, f"{len(frames)} frames, and it has none")
            _check_numbers(message, total_of)
    except _Nonsense as error:
        raise ProtocolError(f"{type(message).__name__}: {error}") from None


class _Nonsense(Exception):
    """Says what is wrong."""


def _need(condition: object, text: str) -> None:
    if not condition:
        raise _Nonsense(text)


def _limit(total: int | None) -> int:
    return POSITIONS_MAX if total is None else total


def _check_position(position: int, total: int | None) -> None:
    _need(0 <= position < _limit(total), f"position {position} of {total}")


def _check_numbers(message: Any, total_of: TotalOf) -> None:
    """Run and position of a message without frames, where it has them."""
    position = getattr(message, "position", None)
    if position is not None:
        _check_position(position, total_of(message.run))
    source = getattr(message, "source_position", None)
    if source is not None:
        _check_position(source, total_of(message.source_run))


def _array(frame: Frame, dtype: str, what: str) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    _need(len(frame) % size == 0, f"{what} of {len(frame)} bytes")
    return np.frombuffer(frame, dtype)


def _positions(frame: Frame, total: int | None, what: str = "positions") -> NDArray[Any]:
    positions = _array(frame, "<i4", what)
    if len(positions):
        lowest, highest = int(positions.min()), int(positions.max())
        _need(lowest >= 0 and highest < _limit(total), f"{what} {lowest} to {highest} of {total}")
    return positions


def _frames(frames: Sequence[Frame], count: int) -> None:
    _need(len(frames) == count, f"{len(frames)} frames instead of {count}")


def _check_infos(infos: Sequence[ObjectInfo], frames: Sequence[Frame], total: int | None) -> None:
    """Objects; of those without a location the bytes come as frames."""
    inline_count = 0
    for info in infos:
        _check_info(info, total)
        inline_count += info.location is None
    _frames(frames, inline_count)


def _check_info(info: ObjectInfo, total: int | None) -> None:
    limit = _limit(total)
    is_block = 0 <= info.first < limit and 1 <= info.count <= limit - info.first
    _need(is_block, f"an object of {info.count} positions from {info.first} of {total}")
    _need(0 <= info.size_bytes < NUMBER_MAX, f"an object of {info.size_bytes} bytes")
    place = info.location
    if place is not None:
        is_place = place.offset >= 0 and 0 < place.size_bytes < NUMBER_MAX
        is_name = place.is_spilled or "/" not in place.segment
        _need(is_place and is_name, f"an object at {place}")


# --- kinds with frames, or lists ------------------------------------------------------------------


def _one_array(message: Any, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 1)
    _positions(frames[0], total_of(message.run))


def _two_arrays(message: Any, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 2)
    for frame in frames:
        _positions(frame, total_of(message.run))


def _put(message: m.PutObjects, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, len(message.positions))
    total = total_of(message.run)
    for position, frame in zip(message.positions, frames, strict=True):
        _check_position(position, total)
        _need(len(frame), "an object of 0 bytes")


def _relocate(message: m.Relocate, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 2)
    positions = _positions(frames[0], total_of(message.run))
    _need(len(_array(frames[1], "<i4", "brokers")) == len(positions), "brokers for some only")


def _take(message: m.TakeObjects, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 1)
    _need(0 <= message.total <= POSITIONS_MAX, f"a run of {message.total} positions")
    known = total_of(message.run)
    _positions(frames[0], known if known is not None or message.kept else message.total)


def _end_run(message: m.EndRun, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 0)
    total = total_of(message.run)
    for position in message.kept:
        _check_position(position, total)


def _set_peers(message: m.SetPeers, frames: Sequence[Frame], _total_of: TotalOf) -> None:
    _frames(frames, 0)
    for peer, epoch, address in message.peers:
        _need(peer > 0 and epoch > 0, f"peer {peer} of epoch {epoch}")
        _need(address.startswith(("ipc://", "tcp://")), f"address {address!r}")
    _need(all(peer > 0 for peer in message.gone or ()), "a peer's id below 1")


def _set_executors(message: m.SetExecutors, frames: Sequence[Frame], _total_of: TotalOf) -> None:
    _frames(frames, 0)
    _need(all(executor > 0 for executor in message.executors), "an executor's id below 1")
    _need(len(set(message.executors)) == len(message.executors), "an executor named twice")


def _cancel(message: m.CancelRun, frames: Sequence[Frame], _total_of: TotalOf) -> None:
    _frames(frames, 0)
    _need(0 <= message.grace_s < NUMBER_MAX, f"a grace of {message.grace_s} s")


def _ask_task(message: AskTask, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 0)
    _need(message.position >= -1, f"position {message.position}")
    _check_position(max(message.position, 0), total_of(message.run))


def _place(message: m.PlaceSubtree, frames: Sequence[Frame], total_of: TotalOf) -> None:
    lo, hi, total = message.lo, message.hi, message.total
    known = total_of(message.run)
    _need(0 <= lo < hi <= total <= POSITIONS_MAX, f"tasks {lo} to {hi} of {total}")
    _need(known is None or known == total, f"{total} positions, and the run has {known}")
    chunk_count = (hi - 1) // CHUNK_TASKS - lo // CHUNK_TASKS + 1
    pickles = sum(has_pickle for _, has_pickle in message.functions)
    _frames(frames, FRAMES_OF_SUBTREE + chunk_count + pickles)
    members = _positions(frames[0], total, "members")
    if len(members):
        is_rising = lo <= members[0] and members[-1] < hi and (np.diff(members) > 0).all()
        _need(is_rising, "members that don't rise within its tasks")
    indptr, deps = _array(frames[1], "<i4", "indptr"), _positions(frames[2], total, "deps")
    _need(len(indptr) == hi - lo + 1, f"indptr of {len(indptr)} for {hi - lo} tasks")
    is_indptr = indptr[0] == 0 and indptr[-1] == len(deps) and (np.diff(indptr) >= 0).all()
    _need(is_indptr, "indptr that doesn't fit its deps")
    function_of = _array(frames[3], "<i4", "functions")
    _need(len(function_of) == hi - lo, f"functions of {len(function_of)} tasks")
    _check_definitions(message, function_of)
    _need(len(frames[4]) == hi - lo, f"flags of {len(frames[4])} tasks")
    levels = _array(frames[5], "<i4", "levels")
    if len(levels):
        is_rising = lo <= levels[0] and levels[-1] < hi and (np.diff(levels) >= 0).all()
        _need(is_rising, "levels that don't rise within its tasks")
    imports = _positions(frames[6], total, "imports")
    _need((np.diff(imports) > 0).all(), "imports that don't rise")
    _need(len(_array(frames[7], "<i4", "brokers")) == len(imports), "brokers for some imports only")
    is_member = np.ones(hi - lo, np.bool_)
    if len(members):
        is_member[:] = False
        is_member[members - lo] = True
        _need(not np.diff(indptr)[~is_member].any(), "deps of tasks that are no members")
    is_inside = (deps >= lo) & (deps < hi)
    inside = deps[is_inside]
    rows = np.repeat(np.arange(lo, hi), np.diff(indptr))[is_inside]
    _need((inside < rows).all(), "a task that comes before what it needs")
    needed = np.concatenate((deps[~is_inside], inside[~is_member[inside - lo]]))
    if len(needed):
        _need(len(imports), "deps outside, and no imports")
        places = np.minimum(np.searchsorted(imports, needed), len(imports) - 1)
        _need((imports[places] == needed).all(), "deps outside that are no imports")


def _check_definitions(message: m.PlaceSubtree, function_of: NDArray[Any]) -> None:
    is_named = np.zeros(message.total + 1, np.bool_)
    for function, _ in message.functions:
        _need(0 <= function.index < message.total, f"function {function.index}")
        is_named[function.index] = True
    is_fit = 0 <= function_of.min() <= function_of.max() < message.total
    _need(is_fit and is_named[function_of].all(), "a function that it doesn't name")
    for options in message.options:
        _need(message.lo <= options.position < message.hi, f"options of {options.position}")
        _need(0 <= options.retries < NUMBER_MAX, f"{options.retries} retries")
        _need(1 <= options.crash_limit < NUMBER_MAX, f"a crash limit of {options.crash_limit}")
        _need(abs(options.priority) < NUMBER_MAX, f"a priority of {options.priority}")
        seconds = options.timeout_s
        _need(seconds is None or 0 < seconds < NUMBER_MAX, f"a timeout of {seconds}")


def _outputs(message: m.OutputsReady, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _check_infos(message.objects, frames, total_of(message.run))


def _trace(message: m.TaskTrace, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 4)
    positions, total = _array(frames[0], "<i4", "positions"), total_of(message.run)
    _positions(positions[positions != m.TRACE_GAP].tobytes(), total)
    stamps = _array(frames[1], "<i8", "stamps")
    _need(len(stamps) == len(positions) + 1, f"{len(stamps)} stamps for {len(positions)} tasks")
    bundles = _rows(frames[2], BUNDLE_COLUMNS, "bundles")
    lengths = bundles[:, 1]
    _need(not len(bundles) or 0 < lengths.min() <= lengths.max() < POSITIONS_MAX, "no length")
    entries = int(lengths.sum()) + len(bundles) - 1
    _need(len(bundles) and entries == len(positions), f"bundles of {entries} entries")
    _need(bundles.min() >= 0, "a number below 0 of a bundle")
    _blocks(_rows(frames[3], OBJECT_COLUMNS, "objects"), total, 2)


def _node_trace(message: m.NodeTrace, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 2)
    total = total_of(message.run)
    _blocks(_rows(frames[0], TRANSFER_COLUMNS, "transfers"), total, 3)
    files = _rows(frames[1], FILE_COLUMNS, "files")
    _blocks(files, total, 3)
    _need(np.isin(files[:, 2], (FILE_MOVED, FILE_MADE, FILE_READ)).all(), "no kind of file")


def _rows(frame: Frame, columns: Sequence[str], what: str) -> NDArray[np.int64]:
    numbers = _array(frame, "<i8", what)
    _need(len(numbers) % len(columns) == 0, f"{len(numbers)} numbers of {what}")
    return numbers.reshape(-1, len(columns))


def _blocks(rows: NDArray[np.int64], total: int | None, size_column: int) -> None:
    """Rows that begin with a position and a count, and have a size."""
    if len(rows):
        first, count = rows[:, 0], rows[:, 1]
        limit = _limit(total)
        _need(first.min() >= 0 and first.max() < limit, "a position outside")
        _need(count.min() > 0 and count.max() <= limit, "a block of no values")
        _need((first + count).max() <= limit, "a block that ends outside")
        _need(rows[:, size_column].min() >= 0, "a size below 0")


def _done(message: m.SubtreeDone, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 2)
    positions = _positions(frames[0], total_of(message.run))
    sizes = _array(frames[1], "<i8", "sizes")
    _need(len(sizes) == len(positions), f"{len(sizes)} sizes of {len(positions)} objects")
    _need(not len(sizes) or sizes.min() >= 0, "a size below 0")
    for _, calls, seconds in message.seconds:
        _need(calls >= 0 and 0 <= seconds < NUMBER_MAX, f"{calls} calls in {seconds} s")


def _failed(message: m.TaskFailed, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _check_position(message.failure.position, total_of(message.run))
    has_frame = message.failure.kind in _FAILURES_WITH_FRAME
    _need(len(frames) == has_frame, f"{len(frames)} frames of a {message.failure.kind!r}")


def _expanded(message: m.TaskExpanded, _plan: Sequence[Frame], total_of: TotalOf) -> None:
    _check_position(message.position, total_of(message.run))  # the plan is checked as one


def _holdings(_message: m.Holdings, frames: Sequence[Frame], _total_of: TotalOf) -> None:
    _frames(frames, 6)  # they are checked where the run's subtrees are known
    for frame in frames:
        _array(frame, "<i4", "positions")
    _array(frames[2], "<i8", "sizes")


def _value(message: m.Value, frames: Sequence[Frame], _total_of: TotalOf) -> None:
    if message.info is None:
        _frames(frames, 0)
    else:
        _check_infos((message.info,), frames, None)


def _task_retried(message: TaskRetried, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 0)
    _check_position(message.position, total_of(message.run))


def _task_answer(message: TaskAnswer, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 0)
    total = total_of(message.run)
    for view in (message.task, *message.inputs, *([message.cause] if message.cause else ())):
        _need(-1 <= view.position < _limit(total), f"position {view.position} of {total}")


def _fetch(message: m.FetchObjects, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 1)
    # A node may be asked for a run that it has yet to hear of.
    _positions(frames[0], total_of(message.run))


def _objects(message: m.ObjectsData, frames: Sequence[Frame], total_of: TotalOf) -> None:
    total = total_of(message.run)
    for info in message.objects:
        _check_info(info, total)
        _need(info.location is None, "a place on another machine")
    _frames(frames, 0 if message.info_only else len(message.objects))


def _start(message: m.TransferStart, frames: Sequence[Frame], total_of: TotalOf) -> None:
    _frames(frames, 0)
    _check_info(message.info, total_of(message.run))
    _need(message.info.location is None, "a place on another machine")
    _need(message.info.size_bytes > 0, "an object of 0 bytes")


def _chunk(message: m.TransferChunk, frames: Sequence[Frame], _total_of: TotalOf) -> None:
    _frames(frames, 1)
    _need(0 <= message.offset < NUMBER_MAX, f"offset {message.offset}")


_CHECKS: dict[type, Callable[[Any, Sequence[Frame], TotalOf], None]] = {
    m.PlaceSubtree: _place,
    m.PutObjects: _put,
    m.Release: _one_array,
    m.Relocate: _relocate,
    m.TakeObjects: _take,
    m.TellOutputs: _one_array,
    m.EndRun: _end_run,
    m.SetPeers: _set_peers,
    m.SetExecutors: _set_executors,
    m.CancelRun: _cancel,
    AskTask: _ask_task,
    m.OutputsReady: _outputs,
    m.TaskTrace: _trace,
    m.NodeTrace: _node_trace,
    m.SubtreeDone: _done,
    m.TaskFailed: _failed,
    m.TaskExpanded: _expanded,
    m.Holdings: _holdings,
    m.ObjectsTaken: _two_arrays,
    m.Value: _value,
    TaskRetried: _task_retried,
    TaskAnswer: _task_answer,
    m.FetchObjects: _fetch,
    m.ObjectsMissing: _one_array,
    m.ObjectsData: _objects,
    m.TransferStart: _start,
    m.TransferChunk: _chunk,
}
