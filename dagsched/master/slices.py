"""A plan's subtrees one by one: what each imports, uses and weighs, and the messages that place it.

Pure; numpy only, a few array passes a subtree, nothing per task.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dagsched.errors import GraphError
from dagsched.ids import ProcessId, RunNo, SubtreeNo
from dagsched.master.state import HELD, SOURCE, MasterRun, Subtree, SubtreeState
from dagsched.partition.arrays import distinct
from dagsched.plan import Int32, Int64, RunPlan
from dagsched.protocol.messages import (
    CHUNK_TASKS,
    EXPORTED,
    META,
    Frame,
    Parcel,
    PlaceSubtree,
    TaskOptions,
)

_NO_POSITIONS: Int32 = np.zeros(0, np.int32)


def check_plan(plan: RunPlan) -> None:
    """Refuse a plan whose arrays don't belong together, before anything depends on them.

    Raises:
        GraphError: they don't.
    """
    count, starts = plan.task_count, plan.subtree_starts
    total = count + len(plan.sources)
    if (
        len(starts) < 1
        or starts[0] != 0
        or starts[-1] != count
        or len(plan.indptr) != count + 1
        or len(plan.flags) != total
        or len(plan.chunks) != -(-count // CHUNK_TASKS)
        or plan.indptr[-1] != len(plan.deps)
    ):
        raise GraphError(
            f"the plan is inconsistent: {count} tasks, {len(plan.sources)} sources, subtrees from "
            f"{starts[:1].tolist()} to {starts[-1:].tolist()}, {len(plan.indptr)} row starts, "
            f"{len(plan.deps)} dependencies, {len(plan.flags)} flags, {len(plan.chunks)} chunks"
        )
    function_count = min(len(plan.functions), total)  # brokers take no index as high as `total`
    for name, numbers, limit, of in (
        ("dependency", plan.deps, total, "positions"),
        ("output", plan.outputs, total, "positions"),
        ("function", plan.function_of, function_count, "functions"),
    ):
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < limit:
            raise GraphError(
                f"the plan names a {name} outside its {limit} {of}: "
                f"{int(numbers.min())} to {int(numbers.max())}"
            )


def function_seconds(
    plan: RunPlan, estimates: Mapping[bytes, float], unknown_task_s: float
) -> NDArray[np.float64]:
    """Mean seconds of one call, by function: our own measure, else the plan's, else a guess."""
    seconds = np.empty(len(plan.functions))
    for info in plan.functions:
        known = estimates.get(info.digest, info.seconds)
        seconds[info.index] = unknown_task_s if known is None else known
    return seconds


def unknown_count(plan: RunPlan, estimates: Mapping[bytes, float]) -> int:
    """Functions of which nobody knows how long a call takes."""
    return sum(info.seconds is None and info.digest not in estimates for info in plan.functions)


def subtrees_of(run: RunNo, plan: RunPlan, seconds: NDArray[np.float64]) -> list[Subtree]:
    """The plan's subtrees, by number, each WAITING for those that it imports from."""
    starts = plan.subtree_starts.tolist()
    bounds = plan.indptr[plan.subtree_starts].tolist()
    imports_anything = len(starts) > 2 or len(plan.sources) > 0
    subtrees = []
    for number in range(plan.subtree_count):
        lo, hi = starts[number], starts[number + 1]
        imports = producers = predecessors = _NO_POSITIONS
        if imports_anything:
            deps = plan.deps[bounds[number] : bounds[number + 1]]
            imports = distinct(deps[(deps < lo) | (deps >= hi)])
            if len(imports):
                producers = producers_of(plan, imports)
                predecessors = distinct(producers[producers >= 0])
        functions, weight_s = _functions_of(plan.function_of[lo:hi], seconds)
        subtrees.append(
            Subtree(
                number=SubtreeNo(number),
                run=run,
                lo=lo,
                hi=hi,
                weight_s=weight_s,
                imports=imports,
                producers=producers,
                functions=functions,
                predecessors=predecessors,
                unplaced_count=len(predecessors),
            )
        )
    return subtrees


def _functions_of(function_of: Int32, seconds: NDArray[np.float64]) -> tuple[Int32, float]:
    """Indices that occur, rising, and the seconds that all calls take together."""
    if len(seconds) <= 4 * len(function_of):
        counts = np.bincount(function_of, minlength=len(seconds))
        return np.flatnonzero(counts).astype(np.int32), float(counts @ seconds)
    used, counts = np.unique(function_of, return_counts=True)
    return used, float(counts @ seconds[used])


def producers_of(plan: RunPlan, positions: Int32) -> Int32:
    """The subtree of the plan that computes each position; SOURCE for sources."""
    producers = np.searchsorted(plan.subtree_starts, positions, side="right").astype(np.int32) - 1
    producers[positions >= plan.task_count] = SOURCE
    return producers


def successors_of(subtrees: Sequence[Subtree]) -> list[list[SubtreeNo]]:
    """By subtree: those that import from it, rising."""
    successors: list[list[SubtreeNo]] = [[] for _ in subtrees]
    for subtree in subtrees:
        for predecessor in subtree.predecessors.tolist():
            successors[predecessor].append(subtree.number)
    return successors


def importer_counts(plan: RunPlan, subtrees: Sequence[Subtree]) -> Int32:
    """How many subtrees import each position; empty if none imports anything."""
    if not any(len(subtree.imports) for subtree in subtrees):
        return _NO_POSITIONS
    counts = np.zeros(plan.task_count + len(plan.sources), np.int32)
    for subtree in subtrees:
        counts[subtree.imports] += 1
    return counts


def placing_parcel(
    plan: RunPlan,
    subtree: Subtree,
    *,
    epoch: int,
    priority: int,
    importers: Int32,
    import_brokers: Int32,
    known_functions: set[int],
) -> Parcel:
    """The message that hands a subtree over; adds its functions to `known_functions`.

    Pieces import from each other what the plan had inside one subtree: by `importers` such values
    are known to be exported.
    """
    lo, hi = subtree.lo, subtree.hi
    levels = plan.level_starts
    if len(levels):
        levels = levels[np.searchsorted(levels, lo) : np.searchsorted(levels, hi)]
    if subtree.members is None:
        rows = _whole_rows(plan, lo, hi)
    else:
        rows = _piece_rows(plan, subtree, importers)
    frames: list[Frame] = [
        *rows,
        _int32_frame(levels),
        _int32_frame(subtree.imports),
        _int32_frame(import_brokers),
        *plan.chunks[lo // CHUNK_TASKS : (hi - 1) // CHUNK_TASKS + 1],
    ]
    functions = []
    for index in subtree.functions.tolist():
        is_new = index not in known_functions
        functions.append((plan.functions[index], is_new))
        if is_new:
            known_functions.add(index)
            frames.append(plan.function_pickles[index])
    message = PlaceSubtree(
        run=subtree.run,
        epoch=epoch,
        subtree=subtree.number,
        attempt=subtree.attempt,
        lo=lo,
        hi=hi,
        total=plan.task_count + len(plan.sources),
        priority=priority,
        functions=functions,
        options=_options_between(plan.options, lo, hi),
    )
    return Parcel(message, frames)


def _whole_rows(plan: RunPlan, lo: int, hi: int) -> list[Frame]:
    """Members (none: all), row starts, dependencies, functions and flags of ``lo:hi``."""
    row_starts = plan.indptr[lo : hi + 1]
    first, last = int(row_starts[0]), int(row_starts[-1])
    return [
        b"",
        _int32_frame(row_starts - first),
        _int32_frame(plan.deps[first:last]),
        _int32_frame(plan.function_of[lo:hi]),
        np.ascontiguousarray(plan.flags[lo:hi]).data,
    ]


def _piece_rows(plan: RunPlan, piece: Subtree, importers: Int32) -> list[Frame]:
    """The same of a piece: rows of tasks that are no members are empty, their flags 0."""
    members, size = piece.positions(), piece.hi - piece.lo
    counts, deps = dependencies_of(plan, members)
    row_starts = np.zeros(size + 1, np.int64)
    row_starts[members - piece.lo + 1] = counts
    function_of = np.full(size, plan.function_of[members[0]], np.int32)
    function_of[members - piece.lo] = plan.function_of[members]
    flags = np.zeros(size, np.uint8)
    flags[members - piece.lo] = plan.flags[members]
    flags[members[importers[members] > 0] - piece.lo] |= EXPORTED
    return [
        _int32_frame(members),
        _int32_frame(np.cumsum(row_starts)),
        _int32_frame(deps),
        _int32_frame(function_of),
        flags.data,
    ]


def _options_between(options: Mapping[int, TaskOptions], lo: int, hi: int) -> list[TaskOptions]:
    """Those of tasks in ``lo:hi``, by rising position."""
    if len(options) <= hi - lo:
        return [options[position] for position in sorted(options) if lo <= position < hi]
    return [options[position] for position in range(lo, hi) if position in options]


def _int32_frame(values: Int32 | Int64) -> Frame:
    """Its bytes as little-endian int32, without a copy where they are that already."""
    if not len(values):
        return b""  # an empty view can't be cast
    return np.ascontiguousarray(values, dtype="<i4").data.cast("B")


def positions_frame(positions: Int32) -> bytes:
    """Positions as a small frame of its own."""
    return positions.astype("<i4", copy=False).tobytes()


def holder_of_constant(run: MasterRun, position: int) -> ProcessId | None:
    """A broker that has a constant: where a task got a Ref to it, others may have dropped it."""
    readers = np.searchsorted(run.plan.indptr, np.flatnonzero(run.plan.deps == position), "right")
    readers -= 1
    for reader in readers[(run.plan.flags[readers] & META) != 0].tolist():
        home = run.producer(reader).home
        if home is not None:
            return home
    given = [broker for broker in run.brokers() if position in run.shares[broker].sources]
    return given[0] if given else None


# --- pieces ---------------------------------------------------------------------------------------


def dependencies_of(plan: RunPlan, members: Int32) -> tuple[Int64, Int32]:
    """How many dependencies each of these tasks has, and all of them in order."""
    starts = plan.indptr[members]
    counts = plan.indptr[members + 1] - starts
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    offsets = np.arange(total) + np.repeat(starts - (ends - counts), counts)
    return counts, plan.deps[offsets]


def imports_of(plan: RunPlan, members: Int32) -> Int32:
    """What these tasks, rising, need from outside of them."""
    _, deps = dependencies_of(plan, members)
    deps = distinct(deps)
    return deps[~np.isin(deps, members, assume_unique=True)]


def piece_of(
    run: RunNo, number: int, plan: RunPlan, members: Int32, seconds: NDArray[np.float64]
) -> Subtree:
    """A subtree of just these tasks, rising; what it imports is set by `link_up`."""
    functions, weight_s = _functions_of(plan.function_of[members], seconds)
    return Subtree(
        number=SubtreeNo(number),
        run=run,
        lo=int(members[0]),
        hi=int(members[-1]) + 1,
        weight_s=weight_s,
        imports=imports_of(plan, members),
        producers=_NO_POSITIONS,
        functions=functions,
        predecessors=_NO_POSITIONS,
        unplaced_count=0,
        members=members,
    )


def singles_of(
    run: RunNo, first: int, plan: RunPlan, tasks: Int32, seconds: NDArray[np.float64]
) -> Iterator[Subtree]:
    """Pieces of one task each, numbered from `first`; what they import is set by a `Linker`."""
    functions = [np.array([index], np.int32) for index in range(len(seconds))]
    weights_s = seconds.tolist()
    pairs = zip(tasks.tolist(), plan.function_of[tasks].tolist(), strict=True)
    for number, (task, function) in enumerate(pairs, first):
        yield Subtree(
            number=SubtreeNo(number),
            run=run,
            lo=task,
            hi=task + 1,
            weight_s=weights_s[function],
            imports=_NO_POSITIONS,
            producers=_NO_POSITIONS,
            functions=functions[function],
            predecessors=_NO_POSITIONS,
            unplaced_count=0,
            members=np.array([task], np.int32),
        )


class Linker:
    """Finds what subtrees import, and who computes it now.

    Args:
        plan: of the run.
        holder_of: by task, who has its value; 0: nobody.
        producer_of: by task, the subtree that computes it.
    """

    def __init__(self, plan: RunPlan, holder_of: Int32, producer_of: Int32) -> None:
        self._plan = plan
        self._holder_of = holder_of
        self._producer_of = producer_of

    def links_of(self, subtree: Subtree) -> tuple[Int32, Int32, Int32]:
        """Imports, their producers, and the subtrees among these."""
        if subtree.task_count == 1:
            return self._links_of_task(int(subtree.positions()[0]))
        imports = imports_of(self._plan, subtree.positions())
        producers = np.full(len(imports), SOURCE, np.int32)
        is_task = imports < self._plan.task_count
        tasks = imports[is_task]
        is_held = self._holder_of[tasks] != 0
        producers[is_task] = np.where(is_held, HELD, self._producer_of[tasks])
        return imports, producers, np.unique(producers[producers >= 0])

    def _links_of_task(self, task: int) -> tuple[Int32, Int32, Int32]:
        """The same by plain lists: a tenth of what numpy's calls take."""
        begin, end = self._plan.indptr[task : task + 2].tolist()
        imports = sorted(set(self._plan.deps[begin:end].tolist()))
        producers = []
        for position in imports:
            if position >= self._plan.task_count:
                producers.append(SOURCE)
            else:
                is_held = self._holder_of[position]
                producers.append(HELD if is_held else int(self._producer_of[position]))
        before = sorted({number for number in producers if number >= 0})
        return (
            np.array(imports, np.int32), np.array(producers, np.int32), np.array(before, np.int32)
        )  # fmt: skip


def empty_slot(run: RunNo, number: int) -> Subtree:
    """Takes a number that a former master had given away."""
    none = _NO_POSITIONS
    slot = Subtree(SubtreeNo(number), run, 0, 0, 0.0, none, none, none, none, 0, members=none)
    slot.move(SubtreeState.GONE)
    return slot


def least_set(plan: RunPlan, is_there: NDArray[np.bool_], wanted: Iterable[int]) -> Int32:
    """The tasks that must be computed so that all of `wanted` are there; rising.

    Args:
        plan: its arrays.
        is_there: by task, whether its value lives somewhere, or is being computed.
        wanted: tasks whose values are needed.

    Walks backwards from what is wanted and stops at what is there, each task once: linear in the
    tasks that it names and their dependencies.
    """
    count = plan.task_count
    seen = bytearray(is_there.astype(np.uint8).tobytes())
    stack = [position for position in wanted if position < count and not seen[position]]
    if not stack:
        return _NO_POSITIONS
    indptr, deps = plan.indptr.tolist(), plan.deps.tolist()
    found: list[int] = []
    while stack:
        position = stack.pop()
        if seen[position]:
            continue
        seen[position] = 1
        found.append(position)
        row = deps[indptr[position] : indptr[position + 1]]
        stack += [dep for dep in row if dep < count and not seen[dep]]
    return np.sort(np.array(found, np.int32))
