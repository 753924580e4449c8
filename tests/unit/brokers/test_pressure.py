"""Marks of the store: what is held back, what moves to files, and what never does."""

import pytest

from dagsched.errors import InternalError
from dagsched.protocol.messages import (
    OUTPUT,
    PERSISTED,
    AskStats,
    EndRun,
    FetchValue,
    FreeExtents,
    GetValue,
    Location,
    ObjectInfo,
    OutputsReady,
    Release,
    Stats,
    Value,
)
from tests.unit.brokers.test_core import (
    Node,
    bundle_positions,
    bundles_of,
    int32,
    messages,
)

MB = 1_000_000
STORE = 10 * MB
FILE = Location("/spill/n-0-0s-1", 0, MB)


def in_memory(first: int, size: int = MB) -> ObjectInfo:
    """An object of executor 3, in a segment of its own."""
    return ObjectInfo(first, 1, size, Location(f"s-3-1-{first}", 0, size))


def store(executors=(3, 4), **config) -> Node:
    return Node(executors=executors, store_bytes_max=STORE, **config)


def positions_begun(actions) -> list[int]:
    return sorted(p for _, parcel in bundles_of(actions) for p in bundle_positions(parcel))


def made(node: Node, count: int, *, size: int = MB, flags=None, executors=(3,)) -> list:
    """Place `count` blocks and one task that takes them all; end the blocks.

    Returns:
        what the core decided after the last of them.
    """
    flags = flags or [0] * count + [OUTPUT]
    node.place([*([] for _ in range(count)), list(range(count))], seconds=1.0, flags=flags)
    return ended(node, count, size=size)


def ended(node: Node, count: int, *, size: int = MB) -> list:
    """End so many blocks, one after the other; what the core decided after each."""
    found = []
    actions = node.turn()
    for _ in range(count):
        [(executor, parcel)] = bundles_of(actions)
        [position] = bundle_positions(parcel)
        node.done(executor, parcel, objects=[in_memory(position, size)])
        actions = node.turn()
        found.append(actions)
    return found


# --- moving to files -----------------------------------------------------------------------------


def test_the_oldest_move_when_the_store_is_above_its_mark_and_their_bytes_are_free_then():
    node = store(executors=(3,))
    turns = made(node, 9)
    assert [turn.spill for turn in turns[:8]] == [[]] * 8
    assert turns[8].spill == [], "inputs of a bundle that an executor has stay where they are"
    node = store(executors=(3,))
    # One more block is to come, so the task that takes them waits.
    node.place([*([] for _ in range(11)), list(range(11))], seconds=1.0)
    actions = ended(node, 9)[-1]
    assert actions.spill == [(1, in_memory(0).location), (2, in_memory(1).location)]
    node.core.object_spilled(1, FILE, node.now)
    actions = node.turn()
    [free] = messages(actions.to_executors[3], FreeExtents)
    assert free.locations == [in_memory(0).location]
    table = node.core.table
    assert (table.shared_bytes, table.spilled_bytes, table.live_bytes) == (8 * MB, MB, 9 * MB)
    node.tell(AskStats(1))
    [stats] = messages(node.turn().to_master, Stats)
    assert (stats.stats.spill_count, stats.stats.shared_bytes) == (1, 8 * MB)
    # Whoever reads it next is told where it is, and the file goes with the object.
    assert table.find(node.core.runs[1], 1, 0).info.location == FILE
    node.tell(EndRun(1, ()))
    assert FILE in node.turn().free


def test_where_no_file_can_be_written_nothing_changes_and_nobody_tries_at_once():
    node = store(executors=(3,))
    node.place([*([] for _ in range(12)), list(range(12))], seconds=1.0)
    actions = ended(node, 9)[-1]
    assert len(actions.spill) == 2
    for job in (1, 2):
        node.core.object_spilled(job, None, node.now)
    assert node.turn().spill == []
    assert node.core.table.shared_bytes == 9 * MB
    node.now += 1.5
    node.core.handle_timer(node.now)
    node.core.object_stored(9, ObjectInfo(0, 1, 1, Location("s-0-0-0", 0, 1)), node.now)
    assert len(node.turn().spill) == 2


def test_what_is_freed_while_it_is_copied_is_freed_and_so_is_its_copy():
    node = store(executors=(3,))
    node.place([*([] for _ in range(12)), list(range(12))], seconds=1.0)
    actions = ended(node, 9)[-1]
    node.tell(EndRun(1, ()))
    freed = [
        location
        for message in messages(node.turn().to_executors[3], FreeExtents)
        for location in message.locations
    ]
    assert in_memory(0).location not in freed, "it is still being read"
    node.core.object_spilled(1, FILE, node.now)
    actions = node.turn()
    assert FILE in actions.free
    [free] = messages(actions.to_executors[3], FreeExtents)
    assert free.locations == [in_memory(0).location]
    node.core.object_spilled(2, None, node.now)
    node.turn()
    assert node.core.table.shared_bytes == 0


def test_what_the_client_was_told_the_place_of_never_moves():
    node = store(executors=(3,))
    node.place([[] for _ in range(10)], seconds=1.0, flags=[OUTPUT] * 10)
    actions = node.turn()
    told = []
    for _ in range(10):
        [(executor, parcel)] = bundles_of(actions)
        [position] = bundle_positions(parcel)
        node.done(executor, parcel, objects=[in_memory(position)])
        actions = node.turn()
        told += [o.location for m in messages(actions.to_master, OutputsReady) for o in m.objects]
        assert actions.spill == []
    assert told == [in_memory(position).location for position in range(10)]
    assert node.core.table.shared_bytes == 10 * MB


def test_values_for_refs_move_until_somebody_asks_for_them():
    node = store(executors=(3,))
    node.place([[] for _ in range(8)], seconds=1.0, flags=[PERSISTED] * 8)
    ended(node, 8)
    node.tell(EndRun(1, tuple(range(8))))
    node.turn()
    node.tell(FetchValue(7, 1, 0))
    [value] = messages(node.turn().to_master, Value)
    assert value.info.location == in_memory(0).location
    node.place([[]], run=2, seconds=1.0, flags=[PERSISTED])
    [(executor, parcel)] = bundles_of(node.turn())
    node.done(executor, parcel, objects=[ObjectInfo(0, 1, MB, Location("s-3-1-99", 0, MB))])
    spill = node.turn().spill
    assert [location for _, location in spill] == [in_memory(1).location, in_memory(2).location]
    node.tell(Release(1), int32(range(8)))
    node.tell(Release(2), int32([0]))
    for job, _ in spill:
        node.core.object_spilled(job, None, node.now)
    node.turn()


def test_what_a_task_keeps_a_view_of_does_not_move():
    node = store(executors=(3,))
    node.place([*([] for _ in range(12)), list(range(12))], seconds=1.0)
    actions = node.turn()
    for _ in range(9):
        [(executor, parcel)] = bundles_of(actions)
        [position] = bundle_positions(parcel)
        held = [(1, 0)] if position == 1 else []
        node.done(executor, parcel, objects=[in_memory(position)], held=held)
        actions = node.turn()
    assert [location for _, location in actions.spill] == [
        in_memory(1).location,
        in_memory(2).location,
    ]


def test_a_shared_object_is_not_moved_by_mistake():
    node = store(executors=(3,))
    made(node, 2)
    run = node.core.runs[1]
    stored = node.core.table.find(run, 1, 0)
    stored.storage.share_count = 2
    with pytest.raises(InternalError, match="can't be moved"):
        node.core.table.move(stored, FILE)


# --- holding back --------------------------------------------------------------------------------


def fold(node: Node, count: int) -> None:
    """Blocks 0 .. count - 1, then a chain that adds one after the other."""
    deps = [[] for _ in range(count)]
    deps += [[0, 1] if k == 1 else [count + k - 2, k] for k in range(1, count)]
    node.place(deps, seconds=1.0)


def blocks_made(node: Node, count: int):
    """End the first `count` blocks of a fold on executor 3 while 4 is busy with the chain."""
    actions = node.turn()
    begun = bundles_of(actions)
    ended = 0
    consumer = None
    while True:
        for executor, parcel in begun:
            [position] = bundle_positions(parcel)
            if parcel.message.imports:
                consumer = (executor, parcel)
                continue
            node.done(executor, parcel, objects=[in_memory(position)])
            ended += 1
        actions = node.turn()
        if ended >= count:
            return actions, consumer
        begun = bundles_of(actions)


def test_above_the_mark_roots_wait_while_the_chain_runs():
    node = store()
    fold(node, 30)
    actions, consumer = blocks_made(node, 7)
    assert consumer is not None
    assert positions_begun(actions) == []
    pressure = node.core.pressure
    assert pressure.held
    assert all(not node.core.runs[1].bundles[number].imports.size for number in pressure.held)
    # The chain goes on: what it has used up is free, and whoever waited may begin.
    before = node.core.table.shared_bytes
    last = bundle_positions(consumer[1])[-1]
    node.done(*consumer, objects=[in_memory(last)])
    assert positions_begun(node.turn()) != []
    assert node.core.table.shared_bytes < before
    assert node.core.runs[1].counters.withheld_count > 0


def test_without_withholding_they_go():
    node = store(withhold_roots=False)
    fold(node, 30)
    actions, _ = blocks_made(node, 7)
    assert positions_begun(actions) != []
    assert not node.core.pressure.held


def test_where_nothing_frees_memory_nobody_waits():
    node = store(executors=(3,))
    node.place([[] for _ in range(12)], seconds=1.0, flags=[PERSISTED] * 12)
    actions = node.turn()
    for position in range(8):
        [(executor, parcel)] = bundles_of(actions)
        node.done(executor, parcel, objects=[in_memory(position)])
        actions = node.turn()
    assert positions_begun(actions) == [8]


def test_a_task_that_collects_does_not_count_as_freeing():
    node = store()
    fold(node, 30)
    _, consumer = blocks_made(node, 7)
    assert node.core.pressure.held
    executor, _ = consumer
    # Of a node that is gone: the master will say where the value is made anew.
    node.core.receive_executor(executor, GetValue(1, 7, 0, 99), (), node.now)
    assert positions_begun(node.turn()) != []
