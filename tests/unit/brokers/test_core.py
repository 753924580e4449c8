"""BrokerCore: events in, exact actions out."""

import numpy as np
import pytest

from dagsched.brokers.core import BrokerActions, BrokerCore
from dagsched.brokers.state import Bundle, BundleState
from dagsched.config import Config
from dagsched.errors import InternalError
from dagsched.ids import RunNo, SubtreeNo
from dagsched.protocol.asking import TaskRetried
from dagsched.protocol.messages import (
    EXPORTED,
    META,
    OUTPUT,
    REFERENCED,
    SOLO,
    TRACE_GAP,
    AskHoldings,
    AskStats,
    AskWhere,
    BundleDone,
    CancelRun,
    EndRun,
    ExecutorChanged,
    ExecutorHello,
    ExitInfo,
    Failure,
    FetchObjects,
    FetchValue,
    ForgetRun,
    FreeExtents,
    FunctionInfo,
    GetValue,
    Holdings,
    Location,
    ObjectInfo,
    ObjectsData,
    ObjectsMissing,
    OutputsReady,
    Ping,
    PlaceSubtree,
    Pong,
    Progress,
    PutObjects,
    Redirect,
    Release,
    Relocate,
    RunBundle,
    RunClosed,
    SetExecutors,
    SetPeers,
    Stats,
    Stop,
    SubtreeDone,
    TaskExpanded,
    TaskFailed,
    TaskOptions,
    TaskTrace,
    Value,
    ValueReply,
)
from dagsched.protocol.tracing import BUNDLE_COLUMNS, OBJECT_COLUMNS

BROKER = 2


def int32(values):
    return np.asarray(values, np.int32).tobytes()


class Node:
    """A BrokerCore with its executors, and the turns' actions."""

    def __init__(self, executors=(3, 4), **config):
        self.core = BrokerCore(BROKER, "host", Config(**config))
        self.now = 0.0
        self.core.receive_master(SetExecutors(executors), (), self.now)
        assert self.turn().start == list(executors)
        for executor in executors:
            self.hello(executor)
        self.turn()

    def hello(self, executor):
        incarnation = self.core.executors[executor].incarnation
        message = ExecutorHello(executor, incarnation, 1000 + executor)
        self.core.receive_executor(executor, message, (), self.now)

    def turn(self) -> BrokerActions:
        actions = self.core.take_actions()
        self.core.check()
        return actions

    def tell(self, message, *frames):
        self.core.receive_master(message, frames, self.now)

    def place(
        self, deps, *, run=1, lo=0, total=None, flags=None, seconds=1e-6, options=(), imports=None,
        subtree=0, epoch=1, levels=(),
    ):  # fmt: skip
        """Place tasks lo, lo + 1, .. with these dependency lists."""
        count = len(deps)
        flat = [dep for item in deps for dep in item]
        indptr = np.cumsum([0] + [len(item) for item in deps])
        imports = imports or {}
        flag_list = flags or [0] * (count - 1) + [OUTPUT]
        chunk_count = (lo + count - 1) // 64 - lo // 64 + 1
        self.tell(
            PlaceSubtree(
                run, epoch, subtree, 1, lo, lo + count, total or lo + count, 0,
                [(FunctionInfo(0, b"d" * 16, "f", seconds), True)], options,
            ),
            b"", int32(indptr), int32(flat), int32([0] * count), bytes(flag_list), int32(levels),
            int32(sorted(imports)), int32([imports[p] for p in sorted(imports)]),
            *[b"chunk"] * chunk_count, b"pickle",
        )  # fmt: skip

    def done(self, executor, bundle, *, objects=(), frames=(), ran=None, **fields):
        """The executor ends a bundle; by default with all its tasks."""
        positions = bundle_positions(bundle) if ran is None else ran
        message = BundleDone(
            bundle.message.run, bundle.message.bundle, bundle.message.attempt, objects,
            fields.pop("failures", ()), fields.pop("expanded", ()), fields.pop("deferred", ()),
            fields.pop("held", ()), fields.pop("dropped", ()), 0,
            [(0, len(positions), 1e-6 * len(positions))], 0, 0, 0, fields.pop("retries", ()),
        )  # fmt: skip
        assert not fields
        stamps = np.zeros(len(positions) + 1, np.int64).tobytes()
        parts = (int32(positions), stamps, *frames)
        self.core.receive_executor(executor, message, parts, self.now)


def bundle_positions(parcel):
    return np.frombuffer(parcel.frames[0], np.int32).tolist()


def bundles_of(actions):
    """(executor, parcel) of each RunBundle."""
    return [
        (executor, parcel)
        for executor, parcels in actions.to_executors.items()
        for parcel in parcels
        if isinstance(parcel.message, RunBundle)
    ]


def messages(parcels, kind):
    return [parcel.message for parcel in parcels if isinstance(parcel.message, kind)]


def inline(first, count=1, size=3):
    return ObjectInfo(first, count, size)


def shared(first, size=1_000_000, segment="s-3-1-0", offset=0):
    return ObjectInfo(first, 1, size, Location(segment, offset, size))


def test_a_subtree_of_little_work_is_one_bundle_with_all_that_it_needs():
    node = Node()
    node.place([[], [], [0, 1]])
    actions = node.turn()
    [(executor, parcel)] = bundles_of(actions)
    assert executor == 3
    assert parcel.message.chunks == [0]
    assert [function.name for function in parcel.message.functions] == ["f"]
    positions, indptr, deps, function_of, exports = (
        np.frombuffer(frame, np.int32).tolist() for frame in parcel.frames[:5]
    )
    assert (positions, indptr, deps, function_of) == ([0, 1, 2], [0, 0, 0, 2], [0, 1], [0, 0, 0])
    assert exports == [2, 1]  # the output alone crosses the bundle's border
    assert parcel.frames[5:] == [b"chunk", b"pickle"]


def test_the_end_of_a_bundle_ends_the_subtree_and_offers_the_output():
    node = Node()
    node.place([[], [0]])
    [(executor, parcel)] = bundles_of(node.turn())
    node.done(executor, parcel, objects=[inline(1)], frames=[b"abc"])
    actions = node.turn()
    [ready] = messages(actions.to_master, OutputsReady)
    assert ready.objects == [inline(1)]
    assert [p.frames for p in actions.to_master if p.message is ready] == [[b"abc"]]
    [ended] = messages(actions.to_master, SubtreeDone)
    assert (ended.run, ended.subtree, ended.seconds) == (1, 0, [(0, 2, 2e-6)])
    node.tell(EndRun(1, ()))
    actions = node.turn()
    [closed] = messages(actions.to_master, RunClosed)
    assert closed.stats.live_object_count == 0
    assert sum(executor.task_count for executor in closed.stats.executors) == 2
    assert {e: messages(p, ForgetRun) for e, p in actions.to_executors.items()} == {
        3: [ForgetRun(1)],
        4: [ForgetRun(1)],
    }


def test_independent_long_tasks_go_to_both_executors_and_a_dependent_waits():
    node = Node()
    node.place([[], [], [0, 1]], seconds=1.0)
    first, second = bundles_of(node.turn())
    assert [first[0], second[0]] == [3, 4]
    node.done(*first, objects=[inline(0)], frames=[b"a"])
    assert bundles_of(node.turn()) == []
    node.done(*second, objects=[inline(1)], frames=[b"b"])
    [(executor, third)] = bundles_of(node.turn())
    assert third.message.imports == [inline(0), inline(1)]
    assert third.frames[-2:] == [b"a", b"b"]
    node.done(executor, third, objects=[inline(2)], frames=[b"c"])
    actions = node.turn()
    assert len(messages(actions.to_master, SubtreeDone)) == 1
    assert node.core.table.live_count == 1  # inputs are released, the output is held


def test_values_with_the_same_dependents_are_exported_as_one_block():
    node = Node(executors=(3,))
    node.place([[] for _ in range(20)] + [list(range(20))], seconds=0.001)
    [(_, parcel)] = bundles_of(node.turn())[:1]
    exports = np.frombuffer(parcel.frames[4], np.int32).tolist()
    positions = bundle_positions(parcel)
    assert exports == [positions[0], len(positions)]


def test_functions_and_chunks_are_sent_once_to_an_executor():
    node = Node(executors=(3,))
    node.place([[] for _ in range(3)], seconds=1.0)
    [(executor, first)] = bundles_of(node.turn())
    node.done(executor, first)
    [(_, second)] = bundles_of(node.turn())
    assert (second.message.chunks, second.message.functions) == ([], [])


def test_a_dead_executor_is_replaced_and_only_the_running_task_is_tried_alone():
    node = Node(executors=(3,))
    node.place([[] for _ in range(5)])
    [(_, parcel)] = bundles_of(node.turn())
    assert bundle_positions(parcel) == [0, 1, 2, 3, 4]
    node.core.executor_lost(3, ExitInfo(signal=11), parcel.message.bundle, 2, node.now)
    actions = node.turn()
    assert actions.start == [3]
    end = ExitInfo(signal=11)
    assert messages(actions.to_master, ExecutorChanged) == [ExecutorChanged(3, 0, 0, end)]
    assert messages(actions.to_master, TaskRetried) == [TaskRetried(1, 2, 1, "crash", 3, end=end)]
    assert bundles_of(actions) == []
    node.hello(3)
    actions = node.turn()
    again = bundles_of(actions)
    assert [bundle_positions(p) for _, p in again] == [[0, 1], [2]]
    assert [p.message.attempt for _, p in again] == [2, 2]
    assert again[0][1].message.chunks == [0]  # the new process knows nothing


def test_a_task_that_kills_executors_fails_after_its_crash_limit():
    node = Node(executors=(3,))
    node.place([[]], options=[TaskOptions(0, crash_limit=2)])
    for attempt in (1, 2):
        [(_, parcel)] = bundles_of(node.turn())
        assert parcel.message.attempt == attempt
        exit_info = ExitInfo(signal=9, log_tail="last words")
        node.core.executor_lost(3, exit_info, parcel.message.bundle, 0, node.now)
        actions = node.turn()
        node.hello(3)
    [failed] = messages(actions.to_master, TaskFailed)
    assert failed.failure == Failure(0, 2, "lost", executor=3, exit=exit_info)


def test_a_death_while_idle_or_before_the_first_task_charges_nobody():
    node = Node(executors=(3,))
    node.place([[]], options=[TaskOptions(0, crash_limit=1)])
    [(_, parcel)] = bundles_of(node.turn())
    node.core.executor_lost(3, ExitInfo(exit_code=1), 0, -1, node.now)
    node.turn()
    node.hello(3)
    [(_, again)] = bundles_of(node.turn())
    assert bundle_positions(again) == bundle_positions(parcel)
    assert not node.core.runs[1].crash_counts


def test_sealed_objects_of_a_dead_executor_live_on_and_its_segment_goes_with_the_last():
    node = Node(executors=(3,))
    node.place([[], [0]], seconds=1.0)
    [(_, parcel)] = bundles_of(node.turn())
    node.done(3, parcel, objects=[shared(0)])
    node.core.executor_lost(3, ExitInfo(signal=9), 0, -1, node.now)
    actions = node.turn()
    assert actions.reclaim == [(3, 1, frozenset({"s-3-1-0"}))]
    node.hello(3)
    [(_, parcel)] = bundles_of(node.turn())
    assert parcel.message.imports == [shared(0)]
    node.done(3, parcel, objects=[inline(1)], frames=[b"x"])
    actions = node.turn()
    assert actions.reclaim == [(3, 1, frozenset())]
    assert not any(messages(p, FreeExtents) for p in actions.to_executors.values())


def test_bytes_with_a_living_view_are_not_reused_until_it_dies():
    node = Node(executors=(3,))
    node.place([[], [0], [1], [2]], seconds=1.0)
    for position in range(2):
        [(_, parcel)] = bundles_of(node.turn())
        held = [(1, 0)] if position == 1 else []
        objects = [shared(0)] if position == 0 else [inline(1)]
        frames = [] if position == 0 else [b"x"]
        node.done(3, parcel, objects=objects, frames=frames, held=held)
    actions = node.turn()
    assert messages(actions.to_executors[3], FreeExtents) == []
    [(_, parcel)] = bundles_of(actions)
    node.done(3, parcel, objects=[inline(2)], frames=[b"y"], dropped=[(1, 0)])
    actions = node.turn()
    [free] = messages(actions.to_executors[3], FreeExtents)
    assert free.locations == [Location("s-3-1-0", 0, 1_000_000)]
    assert isinstance(actions.to_executors[3][0].message, FreeExtents)  # before the next bundle


def test_deferred_tasks_come_again_with_the_values_that_they_need():
    node = Node(executors=(3,))
    node.place([[], [0], [1]])
    [(_, parcel)] = bundles_of(node.turn())
    node.done(3, parcel, ran=[0], deferred=[1, 2], objects=[inline(0)], frames=[b"v"])
    [(_, again)] = bundles_of(node.turn())
    assert bundle_positions(again) == [1, 2]
    assert again.message.imports == [inline(0)]
    node.done(3, again, objects=[inline(2)], frames=[b"w"])
    actions = node.turn()
    assert len(messages(actions.to_master, SubtreeDone)) == 1
    assert node.core.table.live_count == 1


def test_a_returned_graph_is_reported_and_its_dependents_wait_for_the_redirect():
    node = Node(executors=(3,))
    node.place([[], [0], []], flags=[0, OUTPUT, OUTPUT])
    [(_, parcel)] = bundles_of(node.turn())
    node.done(
        3, parcel, ran=[0, 2], expanded=[(0, 2)], deferred=[1],
        objects=[inline(2)], frames=[b"v", b"plan", b"frames"],
    )  # fmt: skip
    actions = node.turn()
    [expanded] = [p for p in actions.to_master if isinstance(p.message, TaskExpanded)]
    assert (expanded.message.position, expanded.frames) == (0, [b"plan", b"frames"])
    assert bundles_of(actions) == []
    node.place([[]], run=77)
    [(_, child)] = bundles_of(node.turn())
    node.done(3, child, objects=[inline(0)], frames=[b"child value"])
    node.turn()
    node.tell(Redirect(1, 0, 77, 0, BROKER))
    [(_, again)] = bundles_of(node.turn())
    assert again.message.imports == [inline(0)]
    assert again.frames[-1] == b"child value"
    node.done(3, again, objects=[inline(1)], frames=[b"end"])
    assert len(messages(node.turn().to_master, SubtreeDone)) == 1


def test_a_failed_task_stops_its_run_here_and_is_reported_with_its_exception():
    node = Node(executors=(3,))
    node.place([[], [], [0, 1]], seconds=1.0)
    [(_, parcel)] = bundles_of(node.turn())
    failure = Failure(0, 1, "raised", type_name="ValueError")
    node.done(3, parcel, ran=[], failures=[failure], frames=[b"pickled"])
    actions = node.turn()
    [failed] = [p for p in actions.to_master if isinstance(p.message, TaskFailed)]
    assert (failed.message.failure, failed.frames) == (failure, [b"pickled"])
    assert bundles_of(actions) == []


def test_cancel_stops_at_the_next_task_and_kills_after_the_grace():
    node = Node(executors=(3,))
    node.place([[], []], seconds=1.0)
    [(_, parcel)] = bundles_of(node.turn())
    node.tell(CancelRun(1, 0.5))
    actions = node.turn()
    assert actions.stop_bundles == [(3, parcel.message.bundle)]
    assert (0.5, "grace") in [(when, what) for when, _, what, _ in node.core._timers]
    node.core.handle_timer(0.5)
    assert node.turn().kill == [3]
    node.core.executor_lost(3, ExitInfo(signal=9), parcel.message.bundle, 0, 0.6)
    actions = node.turn()
    assert (actions.start, bundles_of(actions)) == ([3], [])
    assert messages(actions.to_master, TaskFailed) == []


def test_results_of_a_run_that_is_over_are_freed():
    node = Node(executors=(3,))
    node.place([[]])
    [(_, parcel)] = bundles_of(node.turn())
    node.tell(EndRun(1, ()))
    node.turn()
    node.done(3, parcel, objects=[shared(0)])
    [free] = messages(node.turn().to_executors[3], FreeExtents)
    assert free.locations == [shared(0).location]
    assert node.core.table.live_count == 0


def test_a_task_with_a_timeout_runs_alone_and_is_killed_at_its_deadline():
    node = Node(executors=(3,))
    options = [TaskOptions(1, retries=1, timeout_s=2.0)]
    node.place([[], [], []], flags=[0, SOLO, 0], options=options)
    first, *_ = bundles_of(node.turn())
    assert bundle_positions(first[1]) == [0]
    node.done(*first)
    [(_, timed)] = [b for b in bundles_of(node.turn()) if bundle_positions(b[1]) == [1]]
    for attempt in (1, 2):
        assert timed.message.attempt == attempt
        node.core.handle_timer(node.now + 1.9)
        assert node.turn().kill == []
        node.now += 2.0
        node.core.handle_timer(node.now)
        assert node.turn().kill == [3]
        exit_info = ExitInfo(signal=9)
        node.core.executor_lost(3, exit_info, timed.message.bundle, 1, node.now)
        actions = node.turn()
        node.hello(3)
        if attempt == 1:
            [(_, timed)] = [b for b in bundles_of(node.turn()) if bundle_positions(b[1]) == [1]]
    [failed] = messages(actions.to_master, TaskFailed)
    assert (failed.failure.kind, failed.failure.position) == ("timeout", 1)


# --- objects between nodes -----------------------------------------------------------------------


def test_imports_are_fetched_once_and_wake_what_waits_for_them():
    node = Node(executors=(3,))
    node.place([[0], [1]], lo=2, total=4, imports={0: 7, 1: 7})
    actions = node.turn()
    [parcel] = actions.to_peers[7]
    assert parcel.message == FetchObjects(1, 1)
    assert np.frombuffer(parcel.frames[0], np.int32).tolist() == [0, 1]
    node.core.receive_peer(7, ObjectsData(1, [inline(0, 2)]), [b"block"], node.now)
    [(_, bundle)] = bundles_of(node.turn())
    assert bundle_positions(bundle) == [2, 3]
    assert bundle.message.imports == [inline(0, 2)]
    node.done(3, bundle, objects=[inline(3)], frames=[b"v"])
    node.turn()
    assert node.core.table.live_count == 1  # the copy is gone, the output stays


def test_another_node_is_answered_at_once_or_when_the_value_is_there():
    node = Node(executors=(3,))
    node.core.receive_peer(7, FetchObjects(1, 1), [int32([0, 1])], node.now)  # before the subtree
    node.place([[], [0]], flags=[EXPORTED, EXPORTED])
    actions = node.turn()
    assert actions.to_peers == {}
    [(_, bundle)] = bundles_of(actions)
    node.done(3, bundle, objects=[inline(0), shared(1)], frames=[b"v"])
    actions = node.turn()
    [parcel] = actions.to_peers[7]
    assert (parcel.message, parcel.frames) == (ObjectsData(1, [inline(0)]), [b"v"])
    assert actions.transfers == [(7, 1, shared(1))]
    node.tell(Release(1), int32([0, 1]))
    assert FreeExtents not in [type(p.message) for p in node.turn().to_executors.get(3, [])]
    node.core.transfer_done(7, 1, 1, node.now)  # sent: now the bytes are free
    [free] = messages(node.turn().to_executors[3], FreeExtents)
    assert free.locations == [shared(1).location]
    assert node.core.table.live_count == 0


def test_a_node_that_will_never_have_a_value_says_so():
    node = Node(executors=(3,))
    node.place([[]])
    node.turn()
    node.tell(EndRun(1, ()))
    node.turn()
    node.core.receive_peer(7, FetchObjects(1, 1), [int32([0])], node.now)
    [parcel] = node.turn().to_peers[7]
    assert parcel.message == ObjectsMissing(1)


def test_what_was_made_here_and_will_be_made_again_is_not_said_to_be_missing():
    node = Node(executors=(3,))
    node.place([[] for _ in range(40)], flags=[0] * 40, seconds=0.02, total=80)
    while sent := bundles_of(node.turn()):
        for executor, bundle in sent:
            node.done(executor, bundle)
    members, rows = int32(range(20, 40)), int32([0] * 41)
    message = PlaceSubtree(
        1, 1, 7, 1, 0, 40, 80, 0, [(FunctionInfo(0, b"d" * 16, "f", 0.02), False)], ()
    )
    flags = bytes([0] * 20 + [EXPORTED] * 20)
    node.tell(message, members, rows, b"", int32([0] * 40), flags, b"", b"", b"", b"chunk")
    node.core.runs[RunNo(1)].seconds[0] = 0.02
    node.turn()
    assert node.core.runs[RunNo(1)].subtrees[SubtreeNo(7)].cursor < 40, "the last is in no bundle"
    node.core.receive_peer(9, FetchObjects(1, 1), (int32([39]),), node.now)
    assert node.turn().to_peers == {}


def test_an_idle_executor_is_told_of_anew_when_more_was_placed():
    node = Node(executors=(3, 4))
    node.place([[], [0]], seconds=0.5, total=4)
    node.turn()
    node.now = 0.2
    node.core.handle_timer(node.now)
    said = [p.idle_count for p in messages(node.turn().to_master, Progress)]
    node.place([[1], [2]], lo=2, subtree=1, total=4, imports={1: 9}, seconds=0.5)
    node.now = 0.5
    node.core.handle_timer(node.now)
    said += [p.idle_count for p in messages(node.turn().to_master, Progress)]
    assert said == [1, 1]


def test_a_meta_task_gets_references_and_no_bytes_move():
    node = Node(executors=(3,))
    flags = [REFERENCED | EXPORTED, META | SOLO | OUTPUT]
    node.place([[], [0, 1]], lo=1, total=3, flags=flags, imports={0: 7})
    actions = node.turn()
    [parcel] = actions.to_peers[7]
    assert parcel.message == FetchObjects(1, 1, info_only=True)
    [(_, first)] = bundles_of(actions)
    info = ObjectInfo(0, 1, 10**9, None, "ndarray")
    node.core.receive_peer(7, ObjectsData(1, [info], info_only=True), [], node.now)
    node.done(3, first, objects=[ObjectInfo(1, 1, 3, None, "int")], frames=[b"v"])
    [(_, meta)] = bundles_of(node.turn())
    assert meta.message.meta == [2]
    assert meta.message.ref_brokers == [(0, 7), (1, BROKER)]
    assert [i.size_bytes for i in meta.message.imports] == [10**9, 3]


def test_a_ready_meta_task_keeps_the_size_that_it_needs_while_another_fetches_the_bytes():
    node = Node(executors=(3,))
    node.place([[]], lo=3, total=6, seconds=1.0)
    [(executor, busy)] = bundles_of(node.turn())
    node.place(
        [[0]], lo=4, total=6, subtree=1, imports={0: 7}, flags=[OUTPUT | META | SOLO], seconds=1.0
    )
    node.turn()
    info = ObjectInfo(0, 1, 10**9, None, "ndarray")
    node.core.receive_peer(7, ObjectsData(1, [info], info_only=True), [], node.now)
    node.place([[0]], lo=5, total=6, subtree=2, imports={0: 7}, seconds=1.0)
    [parcel] = node.turn().to_peers[7]
    assert parcel.message == FetchObjects(1, 1, info_only=False)
    node.done(executor, busy)
    [(_, meta)] = bundles_of(node.turn())
    assert (meta.message.meta, meta.message.ref_brokers) == ([4], [(0, 7)])
    assert [i.size_bytes for i in meta.message.imports] == [10**9]
    node.done(executor, meta)
    assert bundles_of(node.turn()) == []  # the other waits for the bytes
    node.core.receive_peer(7, ObjectsData(1, [ObjectInfo(0, 1, 4)]), [b"data"], node.now)
    [(_, reader)] = bundles_of(node.turn())
    assert bundle_positions(reader) == [5]


def test_constants_are_stored_and_stay_for_later_subtrees():
    node = Node(executors=(3,))
    node.tell(PutObjects(1, [4]), b"layout")
    actions = node.turn()
    assert actions.store == [(1, 4, b"layout")]
    location = Location("s-2-0-0", 0, 6)
    node.core.object_stored(1, ObjectInfo(4, 1, 6, location), node.now)  # before the subtree
    node.place([[4], [4]], total=5, imports={4: 0})
    [(_, bundle)] = bundles_of(node.turn())
    assert [i.location for i in bundle.message.imports] == [location]
    node.done(3, bundle, objects=[inline(1)], frames=[b"v"])
    assert node.turn().free == []
    node.tell(EndRun(1, ()))
    assert node.turn().free == [location]


def test_kept_objects_outlive_their_run_until_released():
    node = Node(executors=(3,))
    node.place([[], []], flags=[REFERENCED, OUTPUT])
    [(_, bundle)] = bundles_of(node.turn())
    node.done(3, bundle, objects=[shared(0), inline(1)], frames=[b"v"])
    node.turn()
    node.tell(EndRun(1, [0]))
    node.turn()
    node.tell(FetchValue(9, 1, 0))
    assert messages(node.turn().to_master, Value) == [Value(9, shared(0))]
    node.core.receive_executor(3, GetValue(5, 1, 0, BROKER), (), node.now)
    assert messages(node.turn().to_executors[3], ValueReply) == [ValueReply(5, shared(0))]
    node.tell(Release(1), int32([0]))
    actions = node.turn()
    assert node.core.table.live_count == 0
    assert not any(messages(p, FreeExtents) for p in actions.to_executors.values())  # being read
    node.tell(FetchValue(10, 1, 0))
    assert messages(node.turn().to_master, Value) == [Value(10, None)]


def test_a_collected_ref_of_another_node_is_fetched_for_the_task_that_waits():
    node = Node(executors=(3,))
    node.core.receive_master(SetPeers([(7, 1, "at 7")]), (), node.now)
    node.core.receive_executor(3, GetValue(5, 1, 0, 7), (), node.now)
    [parcel] = node.turn().to_peers[7]
    assert isinstance(parcel.message, FetchObjects)
    node.core.receive_peer(7, ObjectsData(1, [inline(0)]), [b"v"], node.now)
    [parcel] = node.turn().to_executors[3]
    assert (parcel.message, parcel.frames) == (ValueReply(5, inline(0)), (b"v",))
    node.core.receive_executor(3, GetValue(6, 1, 1, 7), (), node.now)
    node.turn()
    node.core.receive_peer(7, ObjectsMissing(1), [int32([1])], node.now)
    [parcel] = node.turn().to_executors[3]
    assert parcel.message == ValueReply(6, None)


@pytest.mark.parametrize(("executors", "killed"), [((3,), [3]), ((3, 4), [])])
def test_a_task_that_collects_makes_room_for_what_makes_its_value(executors, killed):
    node = Node(executors=executors)
    node.place([[]], seconds=1.0)
    node.turn()
    node.core.receive_executor(3, GetValue(5, 1, 0, 7), (), node.now)
    [parcel] = [p for p in node.turn().to_master if isinstance(p.message, AskWhere)]
    assert parcel.message == AskWhere(1, 0)
    frames = (int32([0]), int32([node.core.broker]))
    node.core.receive_master(Relocate(1), frames, node.now)
    assert node.turn().kill == killed


# --- fairness, executors, odds and ends ----------------------------------------------------------


def test_a_small_run_is_not_served_last():
    node = Node(executors=(3,))
    node.place([[] for _ in range(50)], run=1, seconds=1.0)
    [(_, parcel)] = bundles_of(node.turn())
    node.place([[]], run=2, seconds=1.0)
    order = []
    for _ in range(4):
        node.done(3, parcel)
        [(_, parcel)] = bundles_of(node.turn())
        order.append(parcel.message.run)
    assert 2 in order


def test_removed_executors_drain_and_added_ones_start():
    node = Node(executors=(3, 4))
    node.tell(SetExecutors([4, 5]))
    actions = node.turn()
    assert actions.start == [5]
    assert messages(actions.to_executors[3], Stop) == [Stop()]
    node.core.executor_lost(3, ExitInfo(exit_code=0), 0, -1, node.now)
    assert node.turn().start == []
    assert sorted(node.core.executors) == [4, 5]


def test_late_and_repeated_messages_change_nothing():
    node = Node(executors=(3,))
    node.place([[]])
    [(_, parcel)] = bundles_of(node.turn())
    node.place([[]])
    node.done(3, parcel, objects=[inline(0)], frames=[b"v"])
    node.turn()
    node.done(3, parcel, objects=[inline(0)], frames=[b"v"])
    actions = node.turn()
    assert (actions.to_master, bundles_of(actions)) == ([], [])
    assert node.core.runs[1].counters.stale_count == 1
    node.tell(EndRun(1, ()))
    node.turn()
    node.place([[]])  # of the epoch that has ended
    assert node.turn() == BrokerActions()


def test_questions_are_answered():
    node = Node()
    node.core.accounts.stale_batches = lambda: 6
    node.tell(Ping(7))
    node.tell(AskStats(8))
    actions = node.turn()
    assert messages(actions.to_master, Pong) == [Pong(7)]
    [stats] = messages(actions.to_master, Stats)
    assert (stats.request, [e.id for e in stats.stats.executors]) == (8, [3, 4])
    assert stats.stats.stale_count == 6


def test_an_illegal_move_of_a_bundle_is_an_error_that_names_it():
    node = Node()
    node.place([[]])
    node.turn()
    [bundle] = node.core.runs[1].bundles.values()
    assert isinstance(bundle, Bundle)
    with pytest.raises(InternalError, match=r"bundle 1 \(run 1, positions from 0\) can't go"):
        bundle.move(BundleState.WAITING)


def test_check_finds_a_wrong_count():
    node = Node(executors=(3,))
    node.place([[], [0]], seconds=1.0)
    node.core.take_actions()
    node.core.runs[1].left[0] += 1
    with pytest.raises(InternalError, match="position 0: 2 uses booked, 1 left"):
        node.core.check()


def test_a_large_object_of_another_node_is_counted_and_goes_with_its_last_use():
    node = Node(executors=(3,))
    node.place([[0]], lo=1, total=2, imports={0: 7})
    node.turn()
    node.core.object_received(7, 1, shared(0, segment="s-2-0-0"), (0.0, 0.0), node.now)
    [(_, bundle)] = bundles_of(node.turn())
    node.done(3, bundle, objects=[inline(1)], frames=[b"v"])
    assert node.turn().free == [shared(0, segment="s-2-0-0").location]
    node.tell(EndRun(1, ()))
    [closed] = messages(node.turn().to_master, RunClosed)
    assert closed.stats.in_bytes == 1_000_000


def test_a_level_that_imports_begins_a_bundle_when_subtrees_wait_for_each_other():
    node = Node(executors=(3,))
    # Column a of a stencil: tasks 0, 1, 2 here, 3, 4, 5 on node 7; each needs both of its past.
    node.place([[], [0, 3], [1, 4]], total=6, imports={3: 7, 4: 7}, levels=[0, 1, 2])
    [(_, first)] = bundles_of(node.turn())
    assert bundle_positions(first) == [0]
    node.done(3, first, objects=[inline(0)], frames=[b"a"])
    assert bundles_of(node.turn()) == []
    node.core.receive_peer(7, ObjectsData(1, [inline(3)]), [b"b"], node.now)
    [(_, second)] = bundles_of(node.turn())
    assert bundle_positions(second) == [1]


def test_a_request_of_a_newer_epoch_waits_for_that_epochs_subtree():
    node = Node(executors=(3,))
    node.place([[]], epoch=1, flags=[EXPORTED])
    [(_, old)] = bundles_of(node.turn())
    node.tell(EndRun(1, ()))
    node.turn()
    node.core.receive_peer(7, FetchObjects(1, 2), [int32([0])], node.now)
    assert node.turn().to_peers == {}
    node.place([[]], epoch=2, flags=[EXPORTED])
    [(_, bundle)] = bundles_of(node.turn())
    node.done(3, old)
    node.turn()
    node.done(3, bundle, objects=[inline(0)], frames=[b"v"])
    [parcel] = node.turn().to_peers[7]
    assert parcel.message == ObjectsData(1, [inline(0)])


def test_inputs_of_a_bundle_that_still_runs_outlive_the_end_of_its_run():
    node = Node(executors=(3,))
    node.place([[], [0]], seconds=1.0)
    [(_, first)] = bundles_of(node.turn())
    node.done(3, first, objects=[shared(0)])
    [(_, second)] = bundles_of(node.turn())
    node.tell(EndRun(1, ()))
    actions = node.turn()
    assert messages(actions.to_executors[3], FreeExtents) == []
    node.done(3, second, objects=[])
    [free] = messages(node.turn().to_executors[3], FreeExtents)
    assert free.locations == [shared(0).location]


def test_a_death_between_tasks_has_each_of_the_bundle_tried_alone_and_charges_at_most_one_more():
    node = Node(executors=(3,))
    node.place([[] for _ in range(3)], options=[TaskOptions(1, crash_limit=2)])
    [(_, parcel)] = bundles_of(node.turn())
    assert bundle_positions(parcel) == [0, 1, 2]
    node.core.executor_lost(3, ExitInfo(signal=11), parcel.message.bundle, -1, node.now)
    node.turn()
    node.hello(3)
    again = bundles_of(node.turn())
    assert [bundle_positions(p) for _, p in again] == [[0], [1]]
    assert not node.core.runs[1].crash_counts
    node.done(3, again[0][1])
    exit_info = ExitInfo(exit_code=0)
    node.core.executor_lost(3, exit_info, again[1][1].message.bundle, -1, node.now)
    # With the death that nobody was charged for that is its second.
    [failed] = messages(node.turn().to_master, TaskFailed)
    assert failed.failure == Failure(1, 2, "lost", executor=3, exit=exit_info)


def test_a_bundle_that_is_killed_on_purpose_between_tasks_stays_whole():
    node = Node(executors=(3,))
    node.place([[] for _ in range(3)])
    [(_, parcel)] = bundles_of(node.turn())
    node.core.executors[3].killed = True
    node.core.executor_lost(3, ExitInfo(signal=9), parcel.message.bundle, -1, node.now)
    node.turn()
    node.hello(3)
    [(_, again)] = bundles_of(node.turn())
    assert bundle_positions(again) == [0, 1, 2]
    assert not node.core.runs[1].suspects


def test_a_deadline_that_passes_before_the_task_has_begun_is_charged():
    node = Node(executors=(3,))
    node.place([[]], flags=[SOLO | OUTPUT], options=[TaskOptions(0, timeout_s=1.0)])
    [(_, parcel)] = bundles_of(node.turn())
    node.core.handle_timer(node.now + 1.0)
    assert node.turn().kill == [3]
    node.core.executor_lost(3, ExitInfo(signal=9), parcel.message.bundle, -1, node.now)
    [failed] = messages(node.turn().to_master, TaskFailed)
    assert failed.failure.kind == "timeout"


def test_what_waits_behind_a_bundle_that_takes_long_goes_to_another_executor():
    node = Node(executors=(3, 4))
    node.place([[] for _ in range(4)], seconds=0.004)
    sent = bundles_of(node.turn())
    assert [(e, bundle_positions(b)) for e, b in sent] == [(3, [0]), (3, [2]), (4, [1]), (4, [3])]
    (_, late), (_, waiting) = sent[:2]
    for now in (0.25, 0.5):  # looked at twice: it ran at both
        node.now = now
        node.core.handle_timer(now)
        actions = node.turn()
        for executor, bundle in sent[2:] if now == 0.25 else ():
            node.done(executor, bundle)
    assert actions.take_back == [(3, waiting.message.bundle)]
    assert bundles_of(node.turn()) == [], "not before the executor can't begin it any more"
    node.core.ledger.taken_back(3, waiting.message.bundle, is_left_out=True)
    [(executor, again)] = bundles_of(node.turn())
    assert (executor, again.message.bundle) == (4, waiting.message.bundle)
    assert again.message.attempt == 1
    node.done(4, again)
    node.place([[] for _ in range(4)], run=2, seconds=0.004)
    assert {executor for executor, _ in bundles_of(node.turn())} == {4}, "nothing behind it"
    node.done(3, late)
    assert {executor for executor, _ in bundles_of(node.turn())} == {3}
    node.core.ledger.taken_back(
        3, waiting.message.bundle, is_left_out=True
    )  # said again: nothing happens


def test_nobody_looks_for_what_waits_where_nothing_does():
    node = Node(executors=(3,))
    node.place([[]], seconds=1.0)
    assert len(bundles_of(node.turn())) == 1
    assert "late" not in [what for _, _, what, _ in node.core._timers]


def test_what_waits_of_a_cancelled_run_is_taken_back_at_once():
    node = Node(executors=(3,))
    node.place([[] for _ in range(4)], seconds=0.004)
    (_, first), (_, second) = bundles_of(node.turn())
    node.tell(CancelRun(1, 0.2))
    actions = node.turn()
    assert actions.stop_bundles == [(3, first.message.bundle)]
    assert actions.take_back == [(3, second.message.bundle)]
    node.core.ledger.taken_back(3, second.message.bundle, is_left_out=True)
    assert [b.number for b in node.core.executors[3].queue] == [first.message.bundle]
    assert second.message.bundle not in node.core.runs[1].bundles


def test_executors_that_start_have_their_share_of_what_nobody_has_measured():
    node = Node(executors=(3,))
    node.tell(SetExecutors((3, 4)))
    assert node.turn().start == [4]
    node.place([[], []], seconds=None)
    sent = bundles_of(node.turn())
    assert [bundle_positions(parcel) for _, parcel in sent] == [[0], [1]]


def test_a_result_for_which_there_is_no_room_is_tried_once_more_alone_on_the_node():
    node = Node(executors=(3, 4))
    node.place([[] for _ in range(4)], seconds=0.004)
    (_, first), (_, second), (_, third), (_, fourth) = bundles_of(node.turn())
    node.place([[]], run=2, seconds=0.004)
    full = Failure(0, 1, "memory", text="full", executor=3)
    node.done(3, first, failures=[full], ran=[], objects=[shared(0)])
    actions = node.turn()
    assert messages(actions.to_master, TaskFailed) == []
    [free] = [p.message for p in actions.to_executors[3] if isinstance(p.message, FreeExtents)]
    assert free.locations == [shared(0).location], "what was sealed of that bundle is given back"
    # The others go on, and another run is not held up.
    [(executor, other)] = bundles_of(actions)
    assert (executor, other.message.run) == (3, 2)
    for executor, bundle in ((3, second), (3, other), (4, third)):
        node.done(executor, bundle)
        assert bundles_of(node.turn()) == [], "not while another runs"
    node.done(4, fourth)
    [(executor, again)] = bundles_of(node.turn())
    assert (bundle_positions(again), again.message.attempt) == ([0], 2)
    node.place([[]], run=3)
    assert bundles_of(node.turn()) == [], "nothing beside it"
    node.done(executor, again, failures=[full], ran=[])
    actions = node.turn()
    [failed] = messages(actions.to_master, TaskFailed)
    assert failed.failure == full
    assert [b.message.run for _, b in bundles_of(actions)] == [3]


def test_what_is_in_no_bundle_yet_is_given_back_with_all_that_it_needs():
    node = Node(executors=(3,))
    node.place([[]] + [[n - 1] for n in range(1, 30)], seconds=1.0)
    [(_, first)] = bundles_of(node.turn())
    node.tell(AskHoldings(1, [1], give_back=[1]))
    actions = node.turn()
    [(row, frames)] = [
        (p.message.subtrees, p.frames) for p in actions.to_master if isinstance(p.message, Holdings)
    ]
    kept = np.frombuffer(frames[5], np.int32).tolist()
    assert [(number, attempt) for number, attempt, _ in row] == [(0, 1)]
    assert bundle_positions(first) == [0]
    assert kept == list(range(len(kept)))
    assert 1 <= len(kept) < 30
    running = first
    for position in kept:
        assert bundle_positions(running) == [position]
        node.done(3, running, objects=[inline(position)], frames=[b"abc"])
        actions = node.turn()
        if position != kept[-1]:
            [(_, running)] = bundles_of(actions)
    assert len(messages(actions.to_master, SubtreeDone)) == 1
    assert bundles_of(actions) == []
    # The last value is held for whoever does the next task.
    node.tell(SetPeers([(8, 1, "x")]))
    node.core.receive_peer(8, FetchObjects(1, 1, False), (int32([kept[-1]]),), node.now)
    [sent] = messages(node.turn().to_peers[8], ObjectsData)
    assert sent.objects == [inline(kept[-1])]


def test_a_task_that_the_kernel_killed_for_memory_is_tried_again_alone():
    node = Node(executors=(3, 4))
    node.place([[], [], []], seconds=1.0)
    (_, first), (_, other) = bundles_of(node.turn())
    exit_info = ExitInfo(signal=9, is_oom=True)
    node.core.executor_lost(3, exit_info, first.message.bundle, 0, node.now)
    node.turn()
    node.hello(3)
    [(executor, last)] = bundles_of(node.turn())
    assert bundle_positions(last) == [2]
    node.done(4, other)
    assert bundles_of(node.turn()) == []
    node.done(executor, last)
    [(_, again)] = bundles_of(node.turn())
    assert (bundle_positions(again), again.message.attempt) == ([0], 2)


def test_a_piece_that_begins_inside_a_level_is_split_at_the_levels_that_import():
    node = Node(executors=(3,))
    deps = [[], [100], [0, 101], [1], [2], [3, 102], [4], [5]]
    imports = {100: 8, 101: 8, 102: 8}
    node.place(deps, lo=0, total=200, levels=(2, 4, 6), imports=imports)
    assert node.core.runs[1].subtrees[0].import_levels.tolist() == [2, 4]


def test_subtrees_that_have_ended_are_not_looked_at_each_turn():
    node = Node()
    for number in range(20):
        node.place([[]], lo=number, total=20, subtree=number)
        [(executor, parcel)] = bundles_of(node.turn())
        node.done(executor, parcel, objects=[inline(number)], frames=[b"abc"])
        node.turn()
    (run,) = node.core.runs.values()
    assert len(run.subtrees) == 20
    assert run.uncut == []


def test_times_of_bundles_are_told_in_one_message_an_executor():
    node = Node(executors=(3,))
    node.place([[], [], []], seconds=1.0, flags=[0, 0, OUTPUT])
    told = []
    for _ in range(3):
        bundles = bundles_of(node.turn())
        for executor, parcel in bundles:
            node.done(executor, parcel, objects=[inline(p) for p in bundle_positions(parcel)][:1],
                      frames=[b"abc"])  # fmt: skip
    told = [p for p in node.turn().to_master if isinstance(p.message, TaskTrace)]
    [(message, (positions, stamps, bundles, objects))] = told
    assert message == TaskTrace(1, 3, 1)
    assert np.frombuffer(positions, np.int32).tolist() == [0, TRACE_GAP, 1, TRACE_GAP, 2]
    assert len(stamps) == 8 * 6
    rows = np.frombuffer(bundles, np.int64).reshape(-1, len(BUNDLE_COLUMNS))
    assert rows[:, :2].tolist() == [[1, 1], [2, 1], [3, 1]]
    rows = np.frombuffer(objects, np.int64).reshape(-1, len(OBJECT_COLUMNS))
    assert rows[:, :2].tolist() == [[0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize(("peers", "told"), [(1, 20), (1_000, 1)])
def test_a_thousand_nodes_tell_of_progress_as_often_in_all_as_fifty(peers, told):
    node = Node(executors=(3,))
    node.tell(SetPeers([(100 + peer, 1, "") for peer in range(peers)]))
    node.place([[] for _ in range(20)], seconds=1.0)
    node.turn()
    (run,) = node.core.runs.values()
    count = 0
    for _ in range(20):
        node.now += 0.1001
        run.done_count += 1
        node.tell(Ping(1))
        count += len(messages(node.core.take_actions().to_master, Progress))
    assert count == told


def test_what_was_made_here_and_dropped_is_asked_for_when_it_is_needed_again():
    node = Node(executors=(3,))
    node.place([[], [0]], total=3)
    [(_, bundle)] = bundles_of(node.turn())
    node.done(3, bundle, objects=[inline(1)], frames=[b"v"])
    node.turn()
    node.place([[0]], lo=2, total=3, imports={0: BROKER}, subtree=1)
    [parcel] = [p for p in node.turn().to_master if isinstance(p.message, AskWhere)]
    assert parcel.message == AskWhere(1, 0)
