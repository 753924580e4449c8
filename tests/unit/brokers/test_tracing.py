"""What a node notes for a run's trace: which rows, when they are sent, and that off means off."""

import numpy as np
import pytest

from dagsched.brokers.tracing import ROWS_MAX
from dagsched.protocol.messages import (
    EndRun,
    Location,
    ObjectInfo,
    ObjectsData,
    Progress,
    SetPeers,
    TaskTrace,
)
from dagsched.protocol.tracing import FILE_MADE, FILE_MOVED, FILE_READ, NodeTrace
from tests.unit.brokers.test_core import BROKER, Node, bundle_positions, bundles_of, inline, shared
from tests.unit.brokers.test_pressure import FILE, ended, in_memory, store

PEER = 7


def rows(actions, column):
    """Rows of transfers (0) or files (1) in what the master is told, as lists."""
    told = [p for p in actions.to_master if isinstance(p.message, NodeTrace)]
    width = (7, 6)[column]
    return [
        row
        for parcel in told
        for row in np.frombuffer(parcel.frames[column], "<i8").reshape(-1, width).tolist()
    ]


def data(node, *infos, number=1):
    node.core.receive_peer(
        PEER, ObjectsData(number, infos), [b"x" * info.size_bytes for info in infos], node.now
    )


def receiver(**config):
    """A node whose tasks 3 and 4 need values 0 and 1, 2 of node 7, asked for at 1 s."""
    node = Node(executors=(3,), **config)
    node.tell(SetPeers([(PEER, 1, "there")]))
    node.now = 1.0
    node.place([[0], [1, 2, 3]], lo=3, total=5, imports={0: PEER, 1: PEER, 2: PEER},
               seconds=1.0)  # fmt: skip
    node.turn()
    return node


def test_what_comes_from_other_nodes_is_told_with_the_end_of_the_run():
    node = receiver()
    node.now = 1.5
    data(node, ObjectInfo(1, 2, 40))
    node.core.object_received(PEER, 1, shared(0, segment="s-2-0-0"), (1.25, 1.75), 2.0)
    assert rows(node.turn(), 0) == [], "nothing is sent for it alone"
    node.tell(EndRun(1, ()))
    actions = node.turn()
    assert rows(actions, 0) == [
        [1, 2, PEER, 40, 1_000_000_000, 1_500_000_000, 1_500_000_000],
        [0, 1, PEER, 1_000_000, 1_000_000_000, 1_250_000_000, 1_750_000_000],
    ]
    kinds = [type(parcel.message).__name__ for parcel in actions.to_master]
    assert kinds.index("NodeTrace") < kinds.index("RunClosed")
    assert actions.to_master[kinds.index("RunClosed")].message.stats.in_bytes == 1_000_040


def test_it_travels_with_the_next_word_of_progress():
    node = receiver()
    data(node, ObjectInfo(0, 1, 40))
    [(executor, bundle)] = bundles_of(node.turn())
    assert bundle_positions(bundle) == [3]
    node.done(executor, bundle, objects=[inline(3)], frames=[b"v"])
    node.now = 5.0
    node.core.handle_timer(node.now)
    node.core.receive_peer(PEER, ObjectsData(9, ()), (), node.now)
    actions = node.turn()
    messages = [parcel.message for parcel in actions.to_master]
    at = next(place for place, one in enumerate(messages) if isinstance(one, Progress))
    assert messages[at + 1] == NodeTrace(1)
    assert len(rows(actions, 0)) == 1


def test_a_node_that_only_receives_sends_its_rows_when_they_are_many():
    node = receiver()
    for _ in range(ROWS_MAX - 1):
        data(node, ObjectInfo(0, 1, 1))
    assert rows(node.turn(), 0) == []
    data(node, ObjectInfo(0, 1, 1))
    assert len(rows(node.turn(), 0)) == ROWS_MAX
    assert rows(node.turn(), 0) == []


def test_constants_of_the_node_itself_are_no_transfers():
    node = receiver()
    node.core.object_stored(1, ObjectInfo(0, 1, 40), node.now)
    node.tell(EndRun(1, ()))
    assert rows(node.turn(), 0) == []


@pytest.mark.parametrize("is_on", [True, False])
def test_without_recording_nothing_is_told(is_on):
    node = receiver(trace=is_on)
    data(node, ObjectInfo(0, 1, 40), ObjectInfo(1, 2, 40))
    told = []
    for _ in range(2):
        for executor, bundle in bundles_of(node.turn()):
            positions = bundle_positions(bundle)
            node.done(executor, bundle, objects=[inline(p) for p in positions],
                      frames=[b"v"] * len(positions))  # fmt: skip
        actions = node.turn()
        told += actions.to_master
    node.tell(EndRun(1, ()))
    told += node.turn().to_master
    kinds = {type(parcel.message) for parcel in told}
    assert kinds.isdisjoint({TaskTrace, NodeTrace}) is not is_on
    assert kinds.issuperset({TaskTrace, NodeTrace}) is is_on


def test_moves_to_files_and_reads_of_files_are_noted():
    node = store(executors=(3,))
    node.place([*([] for _ in range(10)), list(range(10))], seconds=1.0)
    bundles = bundles_of(ended(node, 9)[-1])
    node.now += 0.5
    node.core.object_spilled(1, FILE, node.now)
    node.core.object_spilled(2, None, node.now)
    assert node.core.pressure.spill_count == 1
    [(executor, bundle)] = bundles
    [position] = bundle_positions(bundle)
    in_file = ObjectInfo(position, 1, 99, Location("/file", 0, 99))
    node.done(executor, bundle, objects=[in_file])
    actions = node.turn()
    bundles, told = bundles_of(actions), rows(actions, 1)
    assert [bundle_positions(parcel) for _, parcel in bundles] == [[10]]
    node.tell(EndRun(1, ()))
    size, now = in_memory(0).size_bytes, round(node.now * 1e9)
    assert told + rows(node.turn(), 1) == [
        [0, 1, FILE_MOVED, size, now - 500_000_000, now],
        [position, 1, FILE_MADE, 99, now, now],
        [0, 1, FILE_READ, size, now, now],
        [position, 1, FILE_READ, 99, now, now],
    ]


def test_an_orphan_keeps_the_latest_for_the_next_master(monkeypatch):
    monkeypatch.setattr("dagsched.brokers.tracing.ORPHAN_ROWS_MAX", 5)
    node = receiver()
    node.core.become_orphan(10**9, node.now)
    for size in range(ROWS_MAX):
        data(node, ObjectInfo(0, 1, size))
    assert rows(node.turn(), 0) == []
    node.core.is_orphan = False
    node.tell(EndRun(1, ()))
    assert [row[3] for row in rows(node.turn(), 0)] == list(range(ROWS_MAX - 5, ROWS_MAX))
    assert node.core.broker != BROKER
