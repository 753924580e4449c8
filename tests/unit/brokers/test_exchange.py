"""Objects between nodes: thousands asked for at once, and what each of them is answered."""

import numpy as np

from dagsched.protocol.messages import (
    EXPORTED,
    FetchObjects,
    ObjectInfo,
    ObjectsData,
    ObjectsMissing,
    RunBundle,
    SetPeers,
)
from tests.unit.brokers.test_core import Node, bundles_of, int32, shared

PEER = 7
COUNT = 300


def ask(node, positions, peer=PEER):
    node.core.receive_peer(peer, FetchObjects(1, 1, False), (int32(positions),), node.now)


def told(actions, kind, peer=PEER):
    return [p for p in actions.to_peers.get(peer, ()) if isinstance(p.message, kind)]


def with_peers():
    node = Node(executors=(3,))
    node.tell(SetPeers([(PEER, 1, "there"), (8, 1, "there too")]))
    return node


def end(node, bundle, objects):
    """End a bundle that made these blocks: (first, count)."""
    infos = [ObjectInfo(first, count, 10) for first, count in objects]
    node.done(*bundle, objects=infos, frames=[b"x" * 10] * len(infos))


def test_of_many_some_are_there_some_are_to_be_made_and_some_are_gone():
    node = with_peers()
    # The second half of the tasks is exported; nobody knew of the first beyond its bundle.
    node.place([[] for _ in range(COUNT)], flags=[0] * 150 + [EXPORTED] * 150, seconds=4e-5)
    first, *later = bundles_of(node.turn())
    positions = np.frombuffer(first[1].frames[0], np.int32)
    assert 60 < len(positions) < 150  # so that none of the first bundle is exported
    end(node, first, [])
    later += bundles_of(node.turn())
    ask(node, range(COUNT))
    actions = node.turn()
    (missing,) = told(actions, ObjectsMissing)
    assert np.frombuffer(missing.frames[0], np.int32).tolist() == positions.tolist()
    assert not told(actions, ObjectsData)
    answered = []
    while later:
        bundle = later.pop(0)
        mine = np.frombuffer(bundle[1].frames[0], np.int32)
        exported = mine[mine >= 150]
        end(node, bundle, [(int(exported[0]), len(exported))] if len(exported) else [])
        actions = node.turn()
        later += bundles_of(actions)
        for parcel in told(actions, ObjectsData):
            answered += [(info.first, info.count) for info in parcel.message.objects]
    assert sum(count for _, count in answered) == 150
    ask(node, range(150, COUNT))
    (data,) = told(node.turn(), ObjectsData)
    assert sorted((info.first, info.count) for info in data.message.objects) == sorted(answered)


def test_a_reduction_waits_for_all_that_it_asked_of_others_and_for_each_once():
    node = with_peers()
    holders = dict.fromkeys(range(COUNT // 2), PEER) | dict.fromkeys(range(COUNT // 2, COUNT), 8)
    node.place([list(range(COUNT))], lo=COUNT, total=COUNT + 1, imports=holders)
    actions = node.turn()
    for peer, lo in ((PEER, 0), (8, COUNT // 2)):
        (parcel,) = told(actions, FetchObjects, peer)
        wanted = np.frombuffer(parcel.frames[0], np.int32)
        assert wanted.tolist() == list(range(lo, lo + COUNT // 2))
    run = node.core.runs[1]

    def come(peer, first, count):
        data = ObjectsData(1, [ObjectInfo(first, count, 10)], False)
        node.core.receive_peer(peer, data, (b"x" * 10,), node.now)
        return node.turn()

    for first in (0, 0, 50, 100):
        come(PEER, first, 50)
    assert np.flatnonzero(run.sought).tolist() == list(range(COUNT // 2, COUNT))
    assert not bundles_of(come(8, 150, 149))
    node.core.peer_lost(8, node.now)
    assert run.lacking == {COUNT - 1}
    assert not run.sought.any()
    ((_, parcel),) = bundles_of(come(PEER, COUNT - 1, 1))
    assert isinstance(parcel.message, RunBundle)
    assert [(i.first, i.count) for i in parcel.message.imports] == [
        (0, 50), (50, 50), (100, 50), (150, 149), (299, 1)
    ]  # fmt: skip


def test_who_is_gone_is_not_answered():
    node = with_peers()
    node.place([[] for _ in range(COUNT)], flags=[EXPORTED] * COUNT, seconds=1e-6)
    (bundle,) = bundles_of(node.turn())
    ask(node, range(COUNT))
    ask(node, range(100), peer=8)
    node.core.peer_lost(PEER, node.now)
    end(node, bundle, [(0, COUNT)])
    actions = node.turn()
    assert not told(actions, ObjectsData)
    (data,) = told(actions, ObjectsData, peer=8)
    assert [(info.first, info.count) for info in data.message.objects] == [(0, COUNT)]


def test_what_is_asked_for_before_the_run_has_begun_may_name_what_it_does_not_have():
    node = with_peers()
    ask(node, [*range(COUNT), 10**6])
    node.turn()
    node.place([[] for _ in range(COUNT)], flags=[EXPORTED] * COUNT, seconds=1e-6)
    (bundle,) = bundles_of(node.turn())
    end(node, bundle, [(0, COUNT)])
    (data,) = told(node.turn(), ObjectsData)
    assert [(info.first, info.count) for info in data.message.objects] == [(0, COUNT)]


def test_what_is_asked_for_again_while_it_is_sent_is_sent_again():
    node = with_peers()
    node.place([[]], flags=[EXPORTED])
    (bundle,) = bundles_of(node.turn())
    node.done(*bundle, objects=[shared(0)])
    node.turn()
    ask(node, [0])
    assert node.turn().transfers == [(PEER, 1, shared(0))]
    ask(node, [0])
    assert node.turn().transfers == []
    # It may have come before the second question was asked, and be used up.
    node.core.transfer_done(PEER, 1, 0, node.now)
    assert node.turn().transfers == [(PEER, 1, shared(0))]
    node.core.transfer_done(PEER, 1, 0, node.now)
    assert node.turn().transfers == []
