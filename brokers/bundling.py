"""Subtrees into bundles: the windows that are cut, and what each bundle waits for. Pure, numpy.

Cost: some ten array passes a window, nothing a task. A window holds a few bundles an executor, so
that sizes follow durations as they become known: tasks of functions never measured come in small
bundles first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from dagsched.brokers.state import (
    NO_POSITIONS,
    BrokerRun,
    Bundle,
    BundleState,
    Int32,
    Int64,
    Subtree,
)
from dagsched.brokers.table import SMALL
from dagsched.config import Config
from dagsched.ids import BundleNo, SubtreeNo
from dagsched.partition import cut_window
from dagsched.partition.arrays import distinct, distinct_counts
from dagsched.protocol.messages import (
    EXPORTED,
    META,
    OUTPUT,
    PERSISTED,
    REFERENCED,
    SOLO,
    PlaceSubtree,
)

HOLDS = EXPORTED | OUTPUT | REFERENCED | PERSISTED
RETURNED_GRAPH = -2  # in BrokerRun.bundle_of
WINDOW_TASKS_MAX = 65_536
BUNDLE_TASKS_MAX = 16_384


def make_subtree(message: PlaceSubtree, arrays: Sequence[Int32], flags: bytes) -> Subtree:
    """A subtree as placed.

    Args:
        message: that places it.
        arrays: members, indptr, deps, function_of, levels; imports that nobody has yet, and those
            that no task of the run makes.
        flags: a byte a task.
    """
    members, indptr, deps, function_of, levels, unmade, given = arrays
    lo, hi = message.lo, message.hi
    mask: np.ndarray | None = None
    if len(members):
        mask = np.zeros(hi - lo, np.bool_)
        mask[members - lo] = True
    first = np.full(hi - lo, -1, np.int32)
    last = np.full(hi - lo, -1, np.int32)
    owners = np.repeat(np.arange(lo, hi, dtype=np.int32), np.diff(indptr))
    inside = (deps >= lo) & (deps < hi)
    if mask is not None:
        inside[inside] = mask[deps[inside] - lo]
    inner_deps, inner_owners = deps[inside] - lo, owners[inside]
    last[inner_deps] = inner_owners  # owners rise, so the last assignment is the largest
    first[inner_deps[::-1]] = inner_owners[::-1]
    import_levels = levels[:0]
    if len(levels):
        is_import = ~inside if not len(given) else ~inside & ~np.isin(deps, given)
        places = np.searchsorted(levels, owners[is_import], side="right") - 1
        # A piece may begin inside a level; nothing is before that, and no border is needed.
        import_levels = levels[distinct(places[places >= 0])]
    return Subtree(
        SubtreeNo(message.subtree), message.attempt, message.epoch, lo, hi, indptr, deps,
        function_of, np.frombuffer(flags, np.uint8), levels, import_levels, first, last,
        cursor=lo, remaining_count=hi - lo if mask is None else len(members), members=mask,
        barriers=distinct(owners[np.isin(deps, unmade)]) if len(unmade) else NO_POSITIONS,
    )  # fmt: skip


def count_uses(run: BrokerRun, subtree: Subtree) -> None:
    """Enter a subtree: count every dependency of it as a use, and take its holds."""
    lo, hi, deps = subtree.lo, subtree.hi, subtree.deps
    add_uses(run, deps)
    # A piece's flags are 0 where it computes nothing; what is held there already stays so.
    run.hold[lo:hi] |= subtree.flags & HOLDS
    if subtree.members is not None:  # what was made here before, and is gone, will be made again
        again = np.flatnonzero(subtree.members) + lo
        again = again[(run.object_of[again] < 0) & (run.bundle_of[again] >= 0)]
        run.bundle_of[again] = -1
    for local in np.flatnonzero(subtree.flags & META).tolist():
        # What a Ref may name is kept until the run ends, constants among it.
        run.hold[deps[subtree.indptr[local] : subtree.indptr[local + 1]]] |= REFERENCED


def gather(subtree: Subtree, positions: Int32, *, is_rising: bool = True) -> tuple[Int32, Int32]:
    """Dependency counts of each position, and all their dependencies in order."""
    first, last = int(positions[0]) - subtree.lo, int(positions[-1]) - subtree.lo
    if is_rising and last - first + 1 == len(positions):
        counts = np.diff(subtree.indptr[first : last + 2])
        return counts, subtree.deps[subtree.indptr[first] : subtree.indptr[last + 1]]
    local = positions - subtree.lo
    starts = subtree.indptr[local]
    counts = subtree.indptr[local + 1] - starts
    ends = np.cumsum(counts)
    offsets = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(
        starts - (ends - counts), counts
    )
    return counts, subtree.deps[offsets]


def window_end(run: BrokerRun, subtree: Subtree, executors: int, config: Config) -> int:
    """Where the window that begins at the cursor ends."""
    start, hi = subtree.cursor, subtree.hi
    limit = min(hi, start + WINDOW_TASKS_MAX)
    local = slice(start - subtree.lo, limit - subtree.lo)
    weights = task_seconds(run, subtree.function_of[local], config)
    if subtree.members is not None:
        weights = weights * subtree.members[local]
    budget_s = 3 * executors * config.bundle_s
    end = start + int(np.searchsorted(np.cumsum(weights), budget_s)) + 1
    end = min(limit, max(end, start + 2 * executors))
    levels = subtree.level_starts
    if len(subtree.barriers) and not len(levels):
        # What a task of a piece imports may be made elsewhere of tasks before it: a bundle of both
        # would wait for itself. Windows that begin with such a task wait for lower positions only.
        after = int(np.searchsorted(subtree.barriers, start, side="right"))
        end = min(end, *subtree.barriers[after : after + 1].tolist(), hi)
    if len(levels) and end < hi:
        # A level is cut as a whole where it isn't much larger than the window.
        after = int(np.searchsorted(levels, end))
        border = int(levels[after]) if after < len(levels) else hi
        if border - start <= 2 * (end - start):
            end = border
    return end


def task_seconds(run: BrokerRun, function_of: Int32, config: Config) -> np.ndarray:
    """Expected seconds of each call; see `unknown_s` for functions not measured yet."""
    if len(run.seconds) == 1:
        seconds = float(run.seconds[0])
        known = seconds == seconds  # not nan
        return np.full(len(function_of), seconds if known else config.bundle_s)
    weights = run.seconds[function_of]
    is_unknown = np.isnan(weights)
    return np.where(is_unknown, unknown_s(run, config), weights) if is_unknown.any() else weights


def unknown_s(run: BrokerRun, config: Config) -> float:
    """What a call of a function is taken to last that was never measured.

    A bundle's work, so that it is a bundle alone: were it long, nothing else should have to wait
    for it. Where others have been measured, as long as those, but `unknown_task_s` at least.
    """
    known = run.seconds[~np.isnan(run.seconds)]
    mean_s = float(known.mean()) if len(known) else config.bundle_s
    return min(max(mean_s, config.unknown_task_s), config.bundle_s)


def cut_next_window(
    run: BrokerRun, subtree: Subtree, executors: int, config: Config, first_number: int
) -> list[Bundle]:
    """Cut the next window of the subtree into bundles, and enter them into the run."""
    start, end = subtree.cursor, window_end(run, subtree, executors, config)
    subtree.cursor = end
    local = slice(start - subtree.lo, end - subtree.lo)
    offsets = subtree.indptr[start - subtree.lo : end - subtree.lo + 1]
    deps = subtree.deps[offsets[0] : offsets[-1]] - start
    deps[(deps >= end - start) | (deps < 0)] = -1
    weights = task_seconds(run, subtree.function_of[local], config)
    members = None if subtree.members is None else subtree.members[local]
    if members is not None:
        deps[(deps >= 0) & ~members[deps]] = -1
        weights = weights * members
    levels = subtree.level_starts
    if len(levels):
        levels = levels[(levels > start) & (levels < end)] - start
        levels = np.concatenate((np.zeros(1, np.int32), levels)).astype(np.int32)
    parts = cut_window(
        (offsets - offsets[0]).astype(np.int64), deps, weights, levels, executors, config
    )
    if len(subtree.import_levels):
        parts = split_at(parts, subtree.import_levels - np.int32(start))
    if members is not None:
        # Who is no member has no member before it that needs it, so parts stay convex without.
        parts = [inner for part in parts if len(inner := part[members[part]])]
    parts = split_solo(parts, subtree.flags[local])
    return make_bundles(
        run, subtree, [part + np.int32(start) for part in parts], config, first_number
    )


def inner_edges(subtree: Subtree, positions: Int32) -> tuple[Int64, Int32]:
    """CSR among rising positions, which are named by their index; others are -1."""
    counts, deps = gather(subtree, positions)
    indptr = np.zeros(len(positions) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):
        local = deps - first
        local[(local < 0) | (deps > last)] = -1
        return indptr, local
    places = np.searchsorted(positions, deps)
    places[places == len(positions)] = 0
    return indptr, np.where(positions[places] == deps, places, -1).astype(np.int32)


def cut_rest(
    run: BrokerRun,
    subtree: Subtree,
    rest: Int32,
    executors: int,
    config: Config,
    *,
    by_levels: bool = False,
) -> list[Int32]:
    """Cut positions (rising) of a bundle anew; each part depends on earlier ones at most.

    The bundle had all that it needs from outside, so imports matter no more, nor do levels unless
    they were in it for being run `by_levels`.
    """
    if len(rest) == 1:
        return [rest]
    indptr, local = inner_edges(subtree, rest)
    weights = task_seconds(run, subtree.function_of[rest - subtree.lo], config)
    levels = np.zeros(0, np.int32)
    if by_levels:
        levels = np.unique(np.searchsorted(rest, subtree.level_starts)).astype(np.int32)
        levels = levels[levels < len(rest)]
    return [rest[part] for part in cut_window(indptr, local, weights, levels, executors, config)]


def split_at(parts: list[Int32], borders: Int32) -> list[Int32]:
    """Split parts of several levels where one of the later levels has imports.

    Subtrees cut by levels may wait for each other both ways: what a later level imports may depend
    on an earlier one, so a bundle of both would wait for itself.
    """
    result: list[Int32] = []
    for part in parts:
        inner = borders[(borders > part[0]) & (borders <= part[-1])]
        result += np.split(part, np.searchsorted(part, inner)) if len(inner) else [part]
    return result


def split_solo(parts: list[Int32], flags: np.ndarray) -> list[Int32]:
    """Give tasks that are dispatched alone a part of their own, and bound the size of parts."""
    has_solo = bool((flags & SOLO).any())
    result: list[Int32] = []
    for part in parts:
        borders = [0, len(part)]
        if has_solo:
            for index in np.flatnonzero(flags[part] & SOLO).tolist():
                borders += [index, index + 1]
        if len(part) > BUNDLE_TASKS_MAX:
            borders += list(range(0, len(part), BUNDLE_TASKS_MAX))
        borders = sorted(set(borders))
        result += [part[a:b] for a, b in pairwise(borders)]
    return result


def split_solo_positions(subtree: Subtree, parts: Sequence[Int32]) -> list[Int32]:
    """`split_solo` for parts given by position."""
    lo = np.int32(subtree.lo)
    return [part + lo for part in split_solo([part - lo for part in parts], subtree.flags)]


def uncut(run: BrokerRun, bundle: Bundle) -> Int32:
    """Undo the cut of a bundle that was not dispatched; its positions, which are in no other."""
    add_uses(run, inner_deps(run, bundle, bundle.positions))
    run.bundle_of[bundle.positions] = -1
    return bundle.positions


def give_back(run: BrokerRun, subtree: Subtree, pieces: Sequence[Int32]) -> Int32:
    """Take out of a subtree what no executor has; the rest doesn't depend on it.

    What is made here of its inputs is held for whoever will do it.

    Args:
        run: of the subtree.
        subtree: whose cursor moves to its end.
        pieces: positions below the cursor that are in no bundle any more.
    """
    given = np.sort(np.concatenate([subtree.uncut(), *pieces])).astype(np.int32)
    if not subtree.remaining_count or not len(given):
        return given[:0]
    _, deps = gather(subtree, given)
    subtract_uses(run, deps)
    run.hold[given] &= np.uint8(~(EXPORTED | OUTPUT) & 0xFF)
    run.hold[deps[run.bundle_of[deps] >= 0]] |= EXPORTED
    # Where a value comes from that only these needed will be told with whatever needs it next.
    unneeded = distinct(deps[(run.left[deps] == 0) & (run.object_of[deps] < 0)])
    run.asked[unneeded] = 0
    run.sought[unneeded] = 0
    run.lacking.difference_update(unneeded.tolist())
    if subtree.members is None:
        subtree.members = np.ones(subtree.hi - subtree.lo, np.bool_)
    subtree.members[given - subtree.lo] = False
    subtree.cursor = subtree.hi
    subtree.remaining_count -= len(given)
    return given


def hollow(subtree: Subtree) -> Subtree:
    """What is kept of a subtree that has ended: its number and range."""
    none = np.zeros(0, np.int32)
    return Subtree(
        subtree.number, subtree.attempt, subtree.epoch, subtree.lo, subtree.hi, none, none, none,
        np.zeros(0, np.uint8), none, none, none, none, cursor=subtree.hi, remaining_count=0,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parts:
    """Several parts of a subtree at once: their tasks and edges, part after part."""

    count: int
    positions: Int32
    labels: Int64  # which part a position is in
    starts: list[int]  # where each part's positions begin; one more: where they end
    ends: Int64  # dependencies up to and with each position
    deps: Int32
    consumers: Int64  # which part a dependency's task is in

    @classmethod
    def of(cls, subtree: Subtree, parts: Sequence[Int32]) -> "Parts":
        """Gather the edges of all parts in one pass."""
        sizes = [len(part) for part in parts]
        labels = np.repeat(np.arange(len(parts)), sizes)
        positions = parts[0] if len(parts) == 1 else np.concatenate(parts)
        is_rising = len(parts) == 1 or bool((positions[1:] > positions[:-1]).all())
        counts, deps = gather(subtree, positions, is_rising=is_rising)
        return cls(
            count=len(parts),
            positions=positions,
            labels=labels,
            starts=[0, *accumulate(sizes)],
            ends=np.cumsum(counts),
            deps=deps,
            consumers=np.repeat(labels, counts),
        )

    def edge_starts(self) -> list[int]:
        """Where each part's dependencies begin; one more: where they end."""
        last = self.ends[np.array(self.starts[1:]) - 1]
        return [0, *last.tolist()]


def make_bundles(
    run: BrokerRun, subtree: Subtree, parts: Sequence[Int32], config: Config, first_number: int
) -> list[Bundle]:
    """Enter bundles of these positions, none of which is in a living bundle, into the run.

    Dependencies inside one bundle are no uses any more; for each other one that isn't there the
    bundle waits: for the bundle that will make it, or else for the position itself. All that its
    message needs is made here, ahead of the moment when an executor waits for it.
    """
    if not parts:
        return []
    whole = Parts.of(subtree, parts)
    run.bundle_of[whole.positions] = whole.labels + first_number
    inside = run.bundle_of[whole.deps] == whole.consumers + first_number
    subtract_uses(run, whole.deps[inside])
    bundles = _bundles(run, subtree, parts, whole, config, first_number)
    subtree.open_bundle_count += len(bundles)
    keys = (whole.consumers[~inside] << 32) | whole.deps[~inside]
    if len(keys):
        keys, counts = distinct_counts(keys)
        imports = (keys & 0xFFFFFFFF).astype(np.int32)
        borders = np.searchsorted(keys, np.arange(whole.count + 1) << 32).tolist()
        for bundle, (start, end) in zip(bundles, pairwise(borders), strict=True):
            bundle.imports, bundle.import_counts = imports[start:end], counts[start:end]
        missing = run.object_of[imports] < 0
        if missing.any():
            enter_waits(run, bundles, imports[missing], (keys[missing] >> 32))
    for bundle in bundles:
        if not bundle.waiting_count:
            bundle.move(BundleState.READY)
    return bundles


def _bundles(
    run: BrokerRun,
    subtree: Subtree,
    parts: Sequence[Int32],
    whole: Parts,
    config: Config,
    first_number: int,
) -> list[Bundle]:
    """The bundles, each with the frames of its message."""
    local = whole.positions - subtree.lo
    function_of, flags = subtree.function_of[local], subtree.flags[local]
    weights = np.bincount(whole.labels, task_seconds(run, function_of, config)).tolist()
    special = (flags & (SOLO | META | REFERENCED)) != 0
    is_special = np.bincount(whole.labels, special).tolist() if special.any() else [0] * whole.count
    exports, export_borders = exports_of(run, subtree, whole)
    edge_starts = whole.edge_starts()
    bundles = []
    for label, (start, end) in enumerate(pairwise(whole.starts)):
        first_edge = edge_starts[label]
        indptr = np.empty(end - start + 1, np.int32)
        indptr[0] = 0
        indptr[1:] = whole.ends[start:end]
        indptr[1:] -= first_edge
        number = BundleNo(first_number + label)
        bundle = Bundle(
            number, run, subtree, parts[label], weights[label],
            solo=bool(is_special[label] and end == start + 1 and flags[start] & SOLO),
            frames=(
                parts[label].tobytes(),
                indptr.tobytes(),
                whole.deps[first_edge : edge_starts[label + 1]].tobytes(),
                function_of[start:end].tobytes(),
                exports[export_borders[label] : export_borders[label + 1]].tobytes(),
            ),
            attempt=subtree.attempt,
        )  # fmt: skip
        if is_special[label]:
            bundle.flags = flags[start:end]
        run.bundles[number] = bundle
        bundles.append(bundle)
    return bundles


def exports_of(run: BrokerRun, subtree: Subtree, whole: Parts) -> tuple[Int32, list[int]]:
    """What bundles must export, as pairs (first, count) that become one object each.

    Neighbours are one block when they have the same first and last dependent: those are wanted by
    the same bundles. Whatever is more than a plain result (a reference) stands alone.

    Returns:
        The pairs of all bundles, and where each bundle's begin (one more: where they end).
    """
    holds = run.hold[whole.positions]
    wanted = np.flatnonzero((run.left[whole.positions] > 0) | (holds != 0))
    if not len(wanted):
        return np.zeros((0, 2), np.int32), [0] * (whole.count + 1)
    exports, holds, labels = whole.positions[wanted], holds[wanted], whole.labels[wanted]
    local = exports - subtree.lo
    first, last = subtree.first_dependent[local], subtree.last_dependent[local]
    breaks = (
        (exports[1:] != exports[:-1] + 1)
        | (labels[1:] != labels[:-1])
        | (first[1:] != first[:-1])
        | (last[1:] != last[:-1])
        | (holds[1:] != holds[:-1])
        | ((holds[1:] & (REFERENCED | PERSISTED)) != 0)
    )
    starts = np.concatenate((np.zeros(1, np.int64), np.flatnonzero(breaks) + 1))
    pairs = np.empty((len(starts), 2), np.int32)
    pairs[:, 0] = exports[starts]
    pairs[:, 1] = np.diff(starts, append=len(exports))
    borders = np.searchsorted(labels[starts], np.arange(whole.count + 1)).tolist()
    return pairs, borders


def enter_waits(run: BrokerRun, bundles: list[Bundle], deps: Int32, consumers: Int64) -> None:
    """Have bundles wait for `deps`, each named once for a consumer, which aren't there."""
    producers = run.bundle_of[deps]
    made = producers >= 0
    for pair in distinct((consumers[made] << 32) | producers[made]).tolist():
        producer = run.bundles.get(BundleNo(pair & 0xFFFFFFFF))
        if producer is not None:
            producer.dependents.append(bundles[pair >> 32])
            bundles[pair >> 32].waiting_count += 1
    # The rest comes from elsewhere, or was made here, for others, and is gone.
    lone = ~made
    ended = [n for n in distinct(producers[made]).tolist() if n not in run.bundles]
    if ended:
        lone |= np.isin(producers, ended)
        run.gone += deps[lone & made & (run.asked[deps] == 0)].tolist()
    deps, counts = deps[lone], np.bincount(consumers[lone], minlength=len(bundles))
    borders = [0, *np.cumsum(counts).tolist()]
    for bundle, (start, end) in zip(bundles, pairwise(borders), strict=True):
        if end > start:  # each bundle's stand together, and rise
            run.waiters.add_many(deps[start:end], bundle)
            bundle.waiting_count += end - start


def subtract_uses(run: BrokerRun, deps: Int32) -> None:
    """Each of `deps` (may repeat) has one use less."""
    _shift_uses(run, deps, -1)


def add_uses(run: BrokerRun, deps: Int32) -> None:
    """Each of `deps` (may repeat) has one use more."""
    _shift_uses(run, deps, 1)


def _shift_uses(run: BrokerRun, deps: Int32, sign: int) -> None:
    if len(deps) <= SMALL:
        left = run.left
        for dep in deps.tolist():
            left[dep] += sign
        return
    # With a scalar of the array's own type this is an order of magnitude faster than without.
    np.add.at(run.left, deps, np.int32(sign))


def inner_deps(run: BrokerRun, bundle: Bundle, positions: Int32) -> Int32:
    """Dependencies of `positions` that lie inside the bundle."""
    _, deps = gather(bundle.subtree, positions)
    inner: Int32 = deps[run.bundle_of[deps] == bundle.number]
    return inner
