"""What executors have and haven't begun goes to those that have nothing to do."""

import numpy as np

from dagsched.brokers.answers import Look
from dagsched.ids import RunNo
from dagsched.protocol.messages import (
    AskHoldings,
    BundleLeftOut,
    DrainRun,
    ExitInfo,
    FetchObjects,
    Holdings,
    ObjectsData,
    Progress,
    SetPeers,
)
from tests.unit.brokers.test_core import Node, bundle_positions, bundles_of, inline, messages


def wait(node, now):
    node.now = now
    node.core.handle_timer(now)
    return node.turn()


def held(actions):
    """Tasks that a node still has to end, by what it tells."""
    [frames] = [p.frames for p in actions.to_master if isinstance(p.message, Holdings)]
    return np.frombuffer(frames[5], np.int32).tolist()


def a_bundle_of_ten(deps=None):
    """Executor 3 runs ten tasks that were thought to take 0.1 ms; 4 has nothing to do."""
    node = Node(executors=(3, 4), overhead_s=0.01)
    node.place(deps or [[] for _ in range(10)], seconds=1e-4)
    [(executor, bundle)] = bundles_of(node.turn())
    assert (executor, bundle_positions(bundle)) == (3, list(range(10)))
    node.core.config = node.core.config.__class__()  # the rest is worth a message
    return node, bundle


def test_the_rest_of_a_bundle_that_takes_longer_than_thought_is_shared():
    node, bundle = a_bundle_of_ten()
    node.core.look = lambda executor: Look(1, 0.0, False)
    assert wait(node, 0.001).stop_bundles == []  # as was to be expected
    assert node.core.next_timer() == 0.006  # a bundle's time later than that
    assert wait(node, 0.006).stop_bundles == [(3, bundle.message.bundle)]
    assert wait(node, 0.02).stop_bundles == [], "once"
    node.core.runs[RunNo(1)].seconds[0] = 0.002  # as the two that ended took
    node.done(3, bundle, ran=[0, 1], deferred=[*range(2, 10)])
    sent = bundles_of(node.turn())
    assert {executor for executor, _ in sent} == {3, 4}
    assert sorted(p for _, parcel in sent for p in bundle_positions(parcel)) == [*range(2, 10)]


def test_a_chain_is_not_shared():
    node, _ = a_bundle_of_ten([[]] + [[n - 1] for n in range(1, 10)])
    node.core.look = lambda executor: Look(1, 0.0, False)
    assert wait(node, 0.006).stop_bundles == []
    assert wait(node, 0.1).stop_bundles == []


def test_the_rest_of_two_chains_is_cut_along_them():
    deps = [[n - 1] if n % 5 else [] for n in range(10)]
    node, bundle = a_bundle_of_ten(deps)
    run = node.core.runs[RunNo(1)]
    run.seconds[0] = 0.000_5
    whole = run.bundles[bundle.message.bundle]
    parts = node.core.reclaimer.parts_of(whole, whole.positions[1:])
    assert sorted(np.concatenate(parts).tolist()) == list(range(1, 10))
    assert all(part[0] // 5 == part[-1] // 5 for part in parts)
    assert parts[0][0] // 5 != parts[1][0] // 5, "two executors begin at once"
    assert [p.tolist() for p in node.core.reclaimer.parts_of(whole, whole.positions[9:])] == [[9]]


def test_an_executor_between_two_tasks_is_not_stopped():
    node, _ = a_bundle_of_ten()
    node.core.look = lambda executor: Look(-1, 0.0, False)
    assert wait(node, 0.006).stop_bundles == []


def test_what_waits_behind_a_bundle_goes_at_once_to_whoever_is_idle():
    node = Node(executors=(3, 4))
    node.place([[] for _ in range(4)], seconds=0.004)
    sent = bundles_of(node.turn())
    node.now = 0.004
    for executor, bundle in sent[2:]:
        node.done(executor, bundle)
    actions = node.turn()
    assert actions.take_back == [(3, sent[1][1].message.bundle)]
    assert node.turn().take_back == [], "once"


def test_what_is_given_back_is_all_that_no_executor_has():
    node = Node(executors=(3,))
    node.place([[] for _ in range(40)], seconds=0.002)
    sent = bundles_of(node.turn())
    at_executor = [p for _, parcel in sent for p in bundle_positions(parcel)]
    run = node.core.runs[RunNo(1)]
    assert any(b.state.name == "READY" for b in run.bundles.values()), "some are cut already"
    node.tell(AskHoldings(1, [1], give_back=[1]))
    actions = node.turn()
    assert sorted(held(actions)) == sorted(at_executor)
    # .. and what the executor has and hasn't begun is asked for again, for the next time.
    assert actions.stop_bundles == [(3, sent[0][1].message.bundle)]
    assert actions.take_back == [(3, parcel.message.bundle) for _, parcel in sent[1:]]


def test_what_waits_for_others_is_given_back_with_them():
    node = Node(executors=(3,))
    node.place([[]] + [[n - 1] for n in range(1, 12)], seconds=1.0)
    [(_, first)] = bundles_of(node.turn())
    run = node.core.runs[RunNo(1)]
    assert any(b.state.name == "WAITING" for b in run.bundles.values())
    node.tell(AskHoldings(1, [1], give_back=[1]))
    assert held(node.turn()) == bundle_positions(first) == [0]


def test_who_was_charged_for_a_death_is_not_given_back():
    node = Node(executors=(3,))
    node.place([[] for _ in range(3)], seconds=1.0)
    [(_, parcel)] = bundles_of(node.turn())
    node.core.executor_lost(3, ExitInfo(signal=9), parcel.message.bundle, 0, node.now)
    node.turn()
    node.tell(AskHoldings(1, [1], give_back=[1]))
    assert held(node.turn()) == [0]


def test_a_run_that_is_drained_gives_nothing():
    node = Node(executors=(3,))
    node.place([[] for _ in range(3)], seconds=1.0)
    node.turn()
    node.tell(DrainRun(1))
    node.tell(AskHoldings(1, [1], give_back=[1]))
    assert sorted(held(node.turn())) == [0, 1, 2]


def test_the_master_hears_of_idle_executors_and_of_tasks_to_spare():
    node = Node(executors=(3, 4))
    node.place([[], [0], [0]], seconds=1.0)
    [(_, first)] = bundles_of(node.turn())
    assert messages(wait(node, 0.05).to_master, Progress) == [], "no news when a run has just begun"
    [told] = messages(wait(node, 0.1).to_master, Progress)
    assert (told.done_count, told.idle_count, told.has_spare) == (0, 1, False)
    assert messages(wait(node, 0.3).to_master, Progress) == [], "it isn't said again"
    node.done(3, first, objects=[inline(0)], frames=[b"abc"])
    [told] = messages(wait(node, 0.4).to_master, Progress)
    assert (told.done_count, told.idle_count, told.has_spare) == (1, 0, False)
    assert told.seconds == [(0, 1, 1e-6)]
    node.place([[] for _ in range(8)], run=2, seconds=1.0)
    node.turn()
    [told] = messages(wait(node, 0.6).to_master, Progress)
    assert (told.run, told.idle_count, told.has_spare) == (2, 0, True)


def test_who_asked_for_bytes_is_not_answered_with_a_size():
    node = Node(executors=(3,))
    node.tell(SetPeers([(7, 1, "there"), (8, 1, "there too")]))
    node.place([[]], lo=1, total=2, seconds=1.0)
    node.turn()
    run = node.core.runs[RunNo(1)]
    frame = np.array([0], np.int32).tobytes()
    node.core.receive_peer(7, FetchObjects(1, 1, False), (frame,), node.now)
    run.left[0] += 1
    node.core.exchange._want(run, 0, 8, True)
    node.core.receive_peer(8, ObjectsData(1, [inline(0)], True), (), node.now)
    actions = node.core.take_actions()
    assert not [p for p in actions.to_peers.get(7, ()) if isinstance(p.message, ObjectsData)]
    assert actions.transfers == []
    assert run.fetchers.items() == [((7, False), [0])]


def test_who_could_not_be_asked_is_asked_again_and_who_was_gets_nothing_more():
    node = Node(executors=(3, 4))
    node.place([[] for _ in range(4)], seconds=0.004)
    sent = bundles_of(node.turn())
    assert [executor for executor, _ in sent] == [3, 3, 4, 4]
    waiting = sent[1][1].message.bundle
    for executor, bundle in sent[2:]:
        node.done(executor, bundle)
    assert node.turn().take_back == [(3, waiting)]
    assert node.turn().take_back == []
    node.core.ledger.taken_back(3, waiting, is_left_out=False)
    assert node.turn().take_back == [(3, waiting)]
    node.core.ledger.taken_back(3, waiting, is_left_out=True)
    assert [executor for executor, _ in bundles_of(node.turn())] == [4]
    node.place([[] for _ in range(4)], run=2, seconds=0.004)
    # An executor has few words for bundles to leave out, and may be stopped for long.
    assert {executor for executor, _ in bundles_of(node.turn())} == {4}


def test_what_seemed_to_be_begun_and_was_left_out_goes_to_others():
    node = Node(executors=(3, 4))
    node.place([[] for _ in range(4)], seconds=0.004)
    sent = bundles_of(node.turn())
    first, waiting = (parcel.message.bundle for _, parcel in sent[:2])
    for executor, bundle in sent[2:]:
        node.done(executor, bundle)
    assert node.turn().take_back == [(3, waiting)]
    left_out = BundleLeftOut(waiting)
    node.core.receive_executor(3, left_out, (), node.now)  # nobody has asked for it yet: late
    assert bundles_of(node.turn()) == []
    node.core.ledger.taken_back(3, waiting, is_left_out=False)
    node.done(3, sent[0][1])  # so it is the one that runs, by what the broker knows
    node.core.receive_executor(3, left_out, (), node.now)
    ((executor, parcel),) = bundles_of(node.turn())
    assert (executor, parcel.message.bundle) == (3, waiting)
    node.core.receive_executor(3, left_out, (), node.now)
    assert bundles_of(node.turn()) == []
    node.core.check()
    assert first != waiting


def test_what_was_left_out_when_its_turn_had_come_goes_to_others():
    node = Node(executors=(3, 4))
    node.place([[] for _ in range(4)], seconds=0.004)
    sent = bundles_of(node.turn())
    waiting = sent[1][1].message.bundle
    for executor, bundle in [*sent[2:], sent[0]]:
        node.done(executor, bundle)
    node.core.ledger.taken_back(3, waiting, is_left_out=True)
    ((_, parcel),) = bundles_of(node.turn())
    assert parcel.message.bundle == waiting
