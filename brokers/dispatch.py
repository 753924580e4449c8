"""Ready bundles onto executors: which one next, where, and the message that carries it. Pure."""

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from dagsched.brokers import paces
from dagsched.brokers.state import (
    BrokerRun,
    Bundle,
    BundleState,
    Executor,
    Int32,
    Lane,
    StoredObject,
)
from dagsched.brokers.table import SMALL, ObjectTable
from dagsched.config import Config
from dagsched.errors import InternalError
from dagsched.ids import BundleNo, ProcessId, RunNo
from dagsched.partition.arrays import distinct
from dagsched.protocol.messages import (
    CHUNK_TASKS,
    META,
    REFERENCED,
    Frame,
    FunctionInfo,
    ObjectInfo,
    Parcel,
    RunBundle,
    TaskOptions,
)
from dagsched.protocol.tracing import FILE_READ

LAST = 1 << 62
"""Where others of its run are ready, a task that has to be alone waits."""

CHUNK_SHIFT = CHUNK_TASKS.bit_length() - 1


def push_ready(run: BrokerRun, bundle: Bundle) -> None:
    """Line a READY bundle up: higher priority first, then depth-first order."""
    first = int(bundle.positions[0])
    priority = LAST if is_alone(run, bundle) else -_priority(run, first)
    heapq.heappush(run.ready, (priority, first, bundle.number))


def is_alone(run: BrokerRun, bundle: Bundle) -> bool:
    """Whether nothing else may run on the node beside it: there was no room for its result."""
    return bool(run.hungry) and len(bundle.positions) == 1 and bundle.positions[0] in run.hungry


def _priority(run: BrokerRun, position: int) -> int:
    options = run.options.get(position)
    return options.priority if options is not None else 0


def peek_ready(run: BrokerRun) -> Bundle | None:
    """The run's next bundle, or None."""
    while run.ready:
        bundle = run.bundles.get(BundleNo(run.ready[0][2]))
        if bundle is not None and bundle.state is BundleState.READY:
            return bundle
        heapq.heappop(run.ready)
    return None


def next_run(
    runs: Collection[BrokerRun], executors: Mapping[ProcessId, Executor]
) -> BrokerRun | None:
    """The run whose turn it is: highest priority, then least served, then oldest.

    A task that has to be alone comes when nothing else is ready in its run or runs here.
    """
    heads: list[Bundle] = []
    if any(run.hungry for run in runs):
        heads = [executor.queue[0] for executor in executors.values() if executor.queue]
        if any(is_alone(head.run, head) for head in heads):
            return None
    best: BrokerRun | None = None
    for run in runs:
        bundle = None if run.cancelled or run.draining else peek_ready(run)
        if bundle is None or (heads and is_alone(run, bundle)):
            continue
        if best is None or (-run.priority, run.served_s) < (-best.priority, best.served_s):
            best = run
    return best


def pick_executor(
    executors: Mapping[ProcessId, Executor], bundle: Bundle, config: Config, now: float
) -> Executor | None:
    """An idle executor; else one whose short bundle will end soon; else None.

    One that is much slower than the others of the node is left idle if those end earlier with it;
    not for longer than the slow one would have taken.
    """
    short: Executor | None = None
    slow: Executor | None = None
    fast_count = 0
    for executor in executors.values():
        if not executor.pid or executor.draining or executor.killed:
            continue
        queue = executor.queue
        if paces.slowness(executor) > 1.0:
            slow = slow or (None if queue else executor)
            continue
        if not queue:
            return executor
        fast_count += 1
        if (
            short is None
            and not bundle.solo
            and not (executor.is_late and queue[0].number == executor.seen_head)
            and len(queue) < config.queue_slots_max
            and not queue[0].solo
            and queue[0].weight_s + bundle.weight_s <= 4 * config.bundle_s
        ):
            short = executor
    if slow is not None:
        slow_s = bundle.weight_s * paces.slowness(slow)
        bundle.left_until_s = bundle.left_until_s or now + slow_s
        is_left = now < bundle.left_until_s
        if not is_left or not paces.is_better_left(bundle, slow_s, fast_count, config):
            return slow
    return short


def pick_executors(
    executors: Mapping[ProcessId, Executor], count: int, config: Config
) -> list[Executor] | None:
    """So many executors for the lanes of a gang, those with nothing to do first.

    Returns:
        none of them while others will be free soon; None: nobody knows when.
    """
    free: list[Executor] = []
    soon: list[Executor] = []
    for executor in executors.values():
        if not executor.pid or executor.draining or executor.killed or executor.slot < 0:
            continue
        queue = executor.queue
        if not queue:
            free.append(executor)
        elif not (
            queue[0].solo
            or (queue[-1].weight_s > 4 * config.bundle_s and not queue[-1].lanes)
            or (executor.is_late and queue[0].number == executor.seen_head)
        ):
            soon.append(executor)
    if len(free) + len(soon) < count:
        return None
    ready = free + [executor for executor in soon if len(executor.queue) < config.queue_slots_max]
    return ready[:count] if len(ready) >= count else []


def queued(executors: Iterable[Executor], run: BrokerRun) -> list[tuple[int, int]]:
    """Bundles of a run that wait behind others: executor and number of bundle, for each."""
    return [(e.id, b.number) for e in executors for b in e.queue[1:] if b.run is run]


def take_late(executors: Iterable[Executor]) -> list[tuple[int, int]]:
    """Bundles that wait behind one that ran at the last look already; they shall go elsewhere.

    Returns:
        executor and number of bundle, for each.
    """
    found = []
    for executor in executors:
        head = executor.queue[0].number if executor.queue else 0
        executor.is_late = bool(head) and head == executor.seen_head
        executor.seen_head = head
        if executor.is_late:
            found += [(int(executor.id), int(bundle.number)) for bundle in executor.queue[1:]]
    return found


def bundle_parcel(
    run: BrokerRun,
    bundle: Bundle,
    executor: Executor,
    table: ObjectTable,
    lane: Lane | None = None,
    slots: Sequence[int] = (),
) -> Parcel:
    """The message that sends a bundle, or one lane of it, to an executor.

    Args:
        run: of the bundle.
        bundle: to be sent.
        executor: to which it is sent.
        table: of the node's objects.
        lane: of a gang.
        slots: of a gang: where the executors of all its lanes are reached.

    Raises:
        InternalError: a READY bundle lacks an input.
    """
    part = lane or bundle
    chunks = _new_chunks(run, part.positions, executor)
    functions = _new_functions(run, part, executor)
    frames: list[Frame] = [*part.frames]
    frames += [run.chunks[chunk] for chunk in chunks]
    frames += [run.functions[function.index][1] for function in functions]
    meta: list[int] = []
    referenced: list[int] = []
    if bundle.flags is not None:
        meta = bundle.positions[(bundle.flags & META) != 0].tolist()
        referenced = bundle.positions[(bundle.flags & REFERENCED) != 0].tolist()
    infos, ref_brokers = [], []
    for stored in _imported(run, bundle, part.imports):
        info = stored.info
        if meta:
            ref_brokers.append((info.first, int(stored.broker)))
            info = ObjectInfo(
                info.first, info.count, info.size_bytes, info.location, info.type_name
            )
        infos.append(info)
        if info.location is not None:
            table.touch(stored)
            if table.spilled_bytes and info.location.is_spilled:
                run.trace.filed(FILE_READ, info)
        else:
            frame = stored.storage.frame if stored.storage is not None else None
            frames.append(frame if frame is not None else b"")
    message = RunBundle(
        run.number, bundle.number, bundle.attempt, chunks, functions, infos,
        _options(run, part.positions), meta, ref_brokers, referenced, run.total_tasks, slots,
        bundle.lanes.index(lane) if lane is not None else 0,
    )  # fmt: skip
    return Parcel(message, frames)


def _imported(run: BrokerRun, bundle: Bundle, imports: Int32) -> list[StoredObject]:
    if len(imports) > SMALL:
        indices = distinct(run.object_of[imports]).tolist()
    else:
        indices = list(dict.fromkeys(run.object_of[imports].tolist()))
    result = []
    for index in indices:
        if index < 0:
            lacking = imports[run.object_of[imports] < 0].tolist()
            result += [run.sized[position] for position in lacking if position in run.sized]
            if all(position in run.sized for position in lacking):
                continue
        stored = run.objects[index] if index >= 0 else None
        if stored is None:
            raise InternalError(
                f"bundle {bundle.number} of run {run.number} is ready, but an input of it is not"
            )
        result.append(stored)
    return result


def _new_chunks(run: BrokerRun, positions: np.ndarray, executor: Executor) -> list[int]:
    first, last = int(positions[0]), int(positions[-1])
    if last - first + 1 == len(positions):
        touched = range(first >> CHUNK_SHIFT, (last >> CHUNK_SHIFT) + 1)
    else:
        touched = distinct(positions >> CHUNK_SHIFT).tolist()
    known = executor.chunks.setdefault(run.number, set())
    new = [chunk for chunk in touched if chunk not in known]
    known.update(new)
    return new


def _new_functions(run: BrokerRun, part: Bundle | Lane, executor: Executor) -> list[FunctionInfo]:
    known = executor.functions.setdefault(run.number, set())
    if len(known) == len(run.functions):
        return []
    new = sorted(set(np.frombuffer(part.frames[3], np.int32).tolist()) - known)
    known.update(new)
    return [run.functions[index][0] for index in new]


def _options(run: BrokerRun, positions: Int32) -> list[TaskOptions]:
    if not run.options:
        return []
    if len(positions) < len(run.options):
        return [run.options[p] for p in positions.tolist() if p in run.options]
    first, last = int(positions[0]), int(positions[-1])
    members = set(positions.tolist())
    return [run.options[p] for p in sorted(run.options) if first <= p <= last and p in members]


def forget_run(executors: Iterable[Executor], number: RunNo) -> None:
    """Executors will have dropped what they knew of the run."""
    for executor in executors:
        executor.chunks.pop(number, None)
        executor.functions.pop(number, None)
