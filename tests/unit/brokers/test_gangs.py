"""Gangs in the broker's core: windows that become one, what is sent, and what becomes of them."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from dagsched.brokers.core import BrokerActions
from dagsched.brokers.gangs import WAIT_S, gang_window
from dagsched.brokers.state import BundleState
from dagsched.config import Config
from dagsched.errors import InternalError
from dagsched.protocol.asking import TaskRetried
from dagsched.protocol.messages import (
    EXPORTED,
    META,
    OUTPUT,
    REFERENCED,
    SOLO,
    TRACE_GAP,
    AskHoldings,
    CancelRun,
    Drained,
    DrainRun,
    EndRun,
    ExecutorHello,
    ExitInfo,
    Failure,
    FreeExtents,
    Holdings,
    ObjectInfo,
    Parcel,
    RunClosed,
    SetExecutors,
    Stop,
    SubtreeDone,
    TaskExpanded,
    TaskFailed,
    TaskTrace,
)
from tests.unit.brokers.test_core import (
    Node,
    bundle_positions,
    bundles_of,
    inline,
    messages,
    shared,
)

Sent = tuple[int, Parcel]
SIGKILL = ExitInfo(signal=9)


def stencil(width: int, levels: int) -> list[list[int]]:
    """Each task needs what is at its column, and beside it, in the level before."""
    rows: list[list[int]] = [[] for _ in range(width)]
    for level in range(1, levels):
        base = (level - 1) * width
        rows += [
            [base + c for c in (column - 1, column, column + 1) if 0 <= c < width]
            for column in range(width)
        ]
    return rows


class GangNode(Node):
    """Executors reach each other; the graph is a stencil, its last level the output."""

    def hello(self, executor: int) -> None:
        incarnation = self.core.executors[executor].incarnation
        message = ExecutorHello(executor, incarnation, 1000 + executor, executor - 3)
        self.core.receive_executor(executor, message, (), self.now)

    def weave(self, width: int = 4, levels: int = 3, **details: object) -> None:
        flags = [0] * (width * (levels - 1)) + [OUTPUT] * width
        shape = {"flags": flags, "seconds": 0.001, "levels": range(0, width * levels, width)}
        self.place(stencil(width, levels), **{**shape, **details})

    def gang(self, **details: object) -> list[Sent]:
        """A stencil is placed: what is sent of it, a lane an executor."""
        self.weave(**details)
        sent = bundles_of(self.turn())
        assert [executor for executor, _ in sent] == [3, 4]
        assert all(parcel.message.slots for _, parcel in sent)
        return sent

    def whole(self, sent: Sent, **fields: object) -> None:
        """A lane ends with all its tasks; the outputs among them are small."""
        executor, parcel = sent
        outputs = groups_of(parcel)
        objects = [inline(first, count) for first, count in outputs]
        self.done(executor, parcel, objects=objects, frames=[b"o"] * len(objects), **fields)

    def part(
        self, sent: Sent, count: int, told: Sequence[ObjectInfo] = (), **fields: object
    ) -> None:
        """A lane ends after so many of its tasks, and tells these objects."""
        executor, parcel = sent
        order = bundle_positions(parcel)
        frames = [b"t" for info in told if info.location is None]
        deferred = fields.pop("deferred", order[count:])
        self.done(
            executor, parcel, ran=order[:count], deferred=deferred, objects=told,
            frames=frames, **fields,
        )  # fmt: skip

    def lose(self, executor: int, bundle: int = 0, position: int = -1) -> None:
        self.core.executor_lost(executor, SIGKILL, bundle, position, self.now)

    def finish(self, most: int = 100) -> BrokerActions:
        """All that is sent from now on ends well, up to the subtree's end."""
        for _ in range(most):
            actions = self.turn()
            if messages(actions.to_master, SubtreeDone):
                return actions
            for executor in actions.start:
                self.hello(executor)
            for sent in bundles_of(actions):
                self.whole(sent)
        raise AssertionError("the subtree does not end")


def groups_of(parcel: Parcel) -> list[tuple[int, int]]:
    pairs = np.frombuffer(parcel.frames[4], np.int32).tolist()
    return list(zip(pairs[::2], pairs[1::2], strict=True))


def rows_of(frame: bytes, width: int) -> list[list[int]]:
    return np.frombuffer(frame, np.int32).reshape(-1, width).tolist()


def to_do(node: GangNode) -> list[int]:
    """Positions of run 1 in bundles that haven't ended."""
    node.core.check()
    bundles = node.core.runs[1].bundles.values()
    return sorted(position for bundle in bundles for position in bundle.positions.tolist())


def number_of(sent: Sequence[Sent]) -> int:
    (number,) = {parcel.message.bundle for _, parcel in sent}
    return number


class TestWindows:
    """Which windows of a subtree become a gang."""

    CONFIG = Config(gang_s=0.04)

    def end_of(self, lanes: int = 2, *, start: int = 0, **details: object) -> int | None:
        """Where the gang at the cursor ends; None: there is none."""
        node = GangNode()
        node.weave(**{"width": 4, "levels": 6, **details})
        run = node.core.runs[1]
        (subtree,) = run.subtrees.values()
        subtree.cursor = start
        found = gang_window(run, subtree, lanes, self.CONFIG)
        return None if found is None else int(found[0][-1]) + 1

    def test_all_levels_at_once_from_any_border_on(self) -> None:
        assert self.end_of() == 24
        assert self.end_of(start=8) == 24
        assert self.end_of(start=20) is None  # one level is no gang

    def test_nobody_to_go_hand_in_hand_with(self) -> None:
        assert self.end_of(lanes=1) is None

    def test_no_levels(self) -> None:
        assert self.end_of(levels=6, flags=None) == 24
        node = GangNode()
        node.place(stencil(4, 6), seconds=0.001)
        run = node.core.runs[1]
        assert gang_window(run, run.subtrees[0], 2, self.CONFIG) is None

    @pytest.mark.parametrize("seconds", [None, 0.005, 0.1])
    def test_not_measured_or_long(self, seconds: float | None) -> None:
        assert self.end_of(seconds=seconds) is None

    def test_not_worth_the_messages(self) -> None:
        assert self.end_of(seconds=1.4e-5) is None  # 56 us a level, which is less than twice 30
        # So wide that bundles of a level are small beside it.
        assert self.end_of(width=12, levels=4, seconds=0.001) is None
        assert self.end_of(seconds=5e-5) == 24

    @pytest.mark.parametrize("flag", [SOLO, META, REFERENCED])
    def test_ends_before_the_level_of_a_task_that_is_more_than_a_plain_call(
        self, flag: int
    ) -> None:
        flags = [0] * 20 + [OUTPUT] * 4
        flags[14] |= flag
        assert self.end_of(flags=flags) == 12
        flags[14], flags[5] = 0, flag
        assert self.end_of(flags=flags) is None  # which leaves one level

    @pytest.mark.parametrize("flag", [EXPORTED, OUTPUT])
    def test_what_others_want_is_no_hindrance(self, flag: int) -> None:
        assert self.end_of(flags=[flag] * 24) == 24

    def test_functions_that_made_something_large(self) -> None:
        node = GangNode()
        node.weave(levels=6)
        run = node.core.runs[1]
        run.large_bytes[0] = 1_000_000
        assert gang_window(run, run.subtrees[0], 2, self.CONFIG) is None

    def test_ends_where_a_level_needs_something_from_outside(self) -> None:
        rows = stencil(4, 6)
        rows[13].append(24)
        node = GangNode()
        node.place(rows, total=25, imports={24: 5}, seconds=0.001, levels=range(0, 24, 4))
        run = node.core.runs[1]
        (subtree,) = run.subtrees.values()
        for start, end in ((0, 12), (4, 12), (12, 24)):
            subtree.cursor = start
            found = gang_window(run, subtree, 2, self.CONFIG)
            assert found is not None
            assert found[0].tolist() == list(range(start, end))
        subtree.cursor = 8
        assert gang_window(run, subtree, 2, self.CONFIG) is None

    def test_ends_at_a_border_when_time_is_up(self) -> None:
        # 40 ms a lane: 13 levels of six tasks of a millisecond; with three lanes not quite 20.
        assert self.end_of(width=6, levels=20) == 78
        assert self.end_of(width=6, levels=20, lanes=3) == 114

    def test_after_a_task_had_no_room_nothing_goes_hand_in_hand(self) -> None:
        node = GangNode()
        node.weave(levels=6)
        run = node.core.runs[1]
        run.hungry.add(99)
        assert gang_window(run, run.subtrees[0], 2, self.CONFIG) is None


class TestSending:
    def test_all_executors_get_their_lane_in_one_turn(self) -> None:
        sent = GangNode().gang()
        assert [p.message.lane for _, p in sent] == [0, 1]
        assert [list(p.message.slots) for _, p in sent] == [[0, 1], [0, 1]]
        assert number_of(sent) == 1
        assert [sorted(bundle_positions(p)) for _, p in sent] == [
            [0, 1, 4, 5, 8, 9],
            [2, 3, 6, 7, 10, 11],
        ]
        left, right = (parcel.frames for _, parcel in sent)
        # Whoever is waited for comes first in its level, who waits last.
        assert np.frombuffer(left[0], np.int32).tolist() == [1, 0, 4, 5, 8, 9]
        assert rows_of(left[5], 3) == [[3, 2, 1], [5, 6, 1]]
        assert rows_of(left[6], 2) == [[0, 1], [3, 1]]
        assert rows_of(right[6], 2) == [[0, 0], [3, 0]]
        # What leaves the gang are the outputs.
        assert [groups_of(p) for _, p in sent] == [[(8, 2)], [(10, 2)]]
        assert all(p.frames[7:] == [b"chunk", b"pickle"] for _, p in sent)

    def test_dependencies_are_those_of_each_task_in_running_order(self) -> None:
        rows = stencil(4, 3)
        for _, parcel in GangNode().gang():
            order, indptr, deps = (
                np.frombuffer(frame, np.int32).tolist() for frame in parcel.frames[:3]
            )
            assert [deps[a:b] for a, b in pairwise(indptr)] == [
                rows[position] for position in order
            ]

    def test_executors_that_reach_no_other_get_bundles(self) -> None:
        node = Node()
        GangNode.weave(node)
        sent = bundles_of(node.turn())
        assert sent
        assert not any(parcel.message.slots for _, parcel in sent)

    def test_not_if_it_is_not_wanted(self) -> None:
        node = GangNode(hand_in_hand=False)
        node.weave()
        sent = bundles_of(node.turn())
        assert sent
        assert not any(parcel.message.slots for _, parcel in sent)

    def test_broken_up_if_an_executor_has_something_long(self) -> None:
        node = GangNode()
        node.place([[]], run=2, seconds=1.0)
        [(executor, long)] = bundles_of(node.turn())
        node.weave()
        sent = bundles_of(node.turn())
        assert {other for other, _ in sent} == {7 - executor}
        assert not any(parcel.message.slots for _, parcel in sent)
        assert {parcel.message.attempt for _, parcel in sent} == {1}
        for each in sent:
            node.whole(each)
        node.finish()
        assert node.core.executors[executor].queue[0].number == long.message.bundle

    def test_waits_for_executors_that_will_be_free_soon(self) -> None:
        node = GangNode()
        node.place([[] for _ in range(12)], run=2, seconds=0.003)
        short = bundles_of(node.turn())
        assert [executor for executor, _ in short] == [3, 3, 4, 4]
        node.weave()
        node.tell(CancelRun(2, 1.0))
        assert bundles_of(node.turn()) == []
        node.whole(short[0])
        assert bundles_of(node.turn()) == []  # the other has two still
        node.whole(short[2])
        sent = bundles_of(node.turn())
        assert [(executor, parcel.message.lane) for executor, parcel in sent] == [(3, 0), (4, 1)]
        assert [len(executor.queue) for executor in node.core.executors.values()] == [2, 2]

    def test_waits_not_long_for_them(self) -> None:
        node = GangNode(queue_slots_max=1)
        node.place([[] for _ in range(2)], run=2, seconds=0.003)
        assert len(bundles_of(node.turn())) == 2
        node.weave()
        assert bundles_of(node.turn()) == []
        node.now = WAIT_S
        assert node.core.next_timer() <= node.now
        node.core.handle_timer(node.now)
        node.turn()
        bundles = node.core.runs[1].bundles.values()
        assert bundles
        assert not any(bundle.lanes for bundle in bundles)

    def test_while_it_is_next_nothing_is_cut_but_a_leaving_node_does_not_wait(self) -> None:
        node = GangNode(queue_slots_max=1)
        node.place([[] for _ in range(2)], run=2, seconds=0.003)
        short = bundles_of(node.turn())
        node.weave()
        node.turn()
        for each in short:
            node.whole(each)
        assert node.core.gangs.is_next()
        node.tell(DrainRun(1))
        assert not node.core.gangs.is_next()
        assert bundles_of(node.turn()) == []
        node.place([[]], run=3, seconds=0.003)
        assert [p.message.run for _, p in bundles_of(node.turn())] == [3]

    def test_waits_for_its_inputs_as_one(self) -> None:
        node = GangNode()
        rows = [[12], *stencil(4, 3)[1:]]
        node.place(
            rows, total=13, imports={12: 0}, seconds=0.001, levels=(0, 4, 8),
            flags=[0] * 8 + [OUTPUT] * 4,
        )  # fmt: skip
        assert bundles_of(node.turn()) == []
        (bundle,) = node.core.runs[1].bundles.values()
        assert (bundle.state, len(bundle.lanes)) == (BundleState.WAITING, 2)
        node.core.object_stored(1, inline(12), node.now)


class TestEnds:
    def test_well(self) -> None:
        node = GangNode()
        first, second = node.gang()
        node.whole(first)
        actions = node.turn()
        assert messages(actions.to_master, SubtreeDone) == []
        assert node.core.table.live_count == 0  # nothing counts before all has ended
        node.whole(second)
        actions = node.turn()
        assert len(messages(actions.to_master, SubtreeDone)) == 1
        assert node.core.table.live_count == 2
        node.tell(EndRun(1, ()))
        [closed] = messages(node.turn().to_master, RunClosed)
        assert [e.task_count for e in closed.stats.executors] == [6, 6]
        assert closed.stats.bundle_count == 2
        assert closed.stats.live_object_count == 0

    def test_gaps_are_no_tasks(self) -> None:
        node = GangNode()
        first, second = node.gang()
        order = bundle_positions(first[1])
        told = [*order[:2], TRACE_GAP, *order[2:]]
        objects = [inline(first, count) for first, count in groups_of(first[1])]
        node.done(3, first[1], ran=told, objects=objects, frames=[b"o"] * len(objects))
        node.whole(second)
        actions = node.turn()
        traces = [p for p in actions.to_master if isinstance(p.message, TaskTrace)]
        assert [len(p.frames[0]) // 4 for p in traces] == [7, 6]
        assert [len(p.frames[1]) // 8 for p in traces] == [8, 7]
        node.tell(EndRun(1, ()))
        [closed] = messages(node.turn().to_master, RunClosed)
        assert [e.task_count for e in closed.stats.executors] == [6, 6]

    def test_a_lane_that_stops_stops_the_others_and_the_rest_is_cut_anew(self) -> None:
        node = GangNode()
        first, second = node.gang()
        assert bundle_positions(first[1]) == [1, 0, 4, 5, 8, 9]
        node.part(first, 4, [inline(1), inline(5)])  # handed over, or to be
        actions = node.turn()
        assert actions.stop_bundles == [(4, 1)]
        assert bundles_of(actions) == []
        node.part(second, 6, [inline(2), inline(6), inline(10), inline(11)])
        again = bundles_of(node.turn())
        # Both need 4, which nobody has told, nor what it is made of.
        assert to_do(node) == [0, 4, 8, 9]
        for each in again:
            node.whole(each)
        node.finish()
        node.tell(EndRun(1, ()))
        [closed] = messages(node.turn().to_master, RunClosed)
        assert closed.stats.live_object_count == 0

    def test_a_value_is_entered_once_its_makers_first(self) -> None:
        node = GangNode()
        first, second = node.gang()
        # The other lane has 1 by handing over, large where it lies.
        foreign = shared(1, segment="s-4-1-0")
        node.part(second, 2, [foreign, inline(2)])
        node.turn()
        node.part(first, 2, [shared(1, segment="s-3-1-0"), inline(0)])
        actions = node.turn()
        stored = node.core.table.find(node.core.runs[1], 1, 1)
        assert stored is not None
        assert stored.info.location.segment == "s-3-1-0"
        assert node.core.runs[1].large_bytes == {0: 1_000_000}
        freed = {e: messages(parcels, FreeExtents) for e, parcels in actions.to_executors.items()}
        assert freed[4] == [FreeExtents([foreign.location])]

    def test_what_only_another_lane_has_told_counts(self) -> None:
        node = GangNode()
        first, second = node.gang()
        node.part(second, 2, [inline(1), inline(2), inline(3)])
        node.part(first, 2, [inline(0)])
        node.turn()
        assert to_do(node) == list(range(4, 12))

    def test_what_nobody_has_told_is_done_again(self) -> None:
        node = GangNode()
        first, second = node.gang()
        node.part(first, 2, [inline(0)])  # 1 was on its way when both ended
        node.part(second, 2, [inline(2), inline(3)])
        again = bundles_of(node.turn())
        assert to_do(node) == [1, *range(4, 12)]
        for each in again:
            node.whole(each)
        node.finish()

    def test_a_graph_that_a_task_returned(self) -> None:
        node = GangNode()
        first, second = node.gang()
        node.done(
            3, first[1], ran=[1, 0, 4, 5], deferred=[9], expanded=[(8, 2)],
            objects=[inline(1), inline(5)], frames=[b"1", b"5", b"plan", b"more"],
        )  # fmt: skip
        actions = node.turn()
        assert actions.stop_bundles == [(4, 1)]
        assert messages(actions.to_master, TaskExpanded) == []  # once all have ended
        node.part(second, 6, [inline(2), inline(6), inline(10), inline(11)])
        actions = node.turn()
        assert messages(actions.to_master, TaskExpanded) == [TaskExpanded(1, 1, 8)]
        assert [p.frames for p in actions.to_master if isinstance(p.message, TaskExpanded)] == [
            [b"plan", b"more"]
        ]
        assert to_do(node) == [0, 4, 9]

    def test_what_was_told_in_vain_is_not_kept(self) -> None:
        node = GangNode()
        first, second = node.gang()
        order = bundle_positions(first[1])
        assert order[-1] == 9
        node.done(
            3, first[1], ran=order[:-1], expanded=[(9, 1)],
            objects=[inline(1), inline(5), inline(8)], frames=[b"1", b"5", b"8", b"plan"],
        )  # fmt: skip
        node.part(second, 6, [inline(2), inline(6), inline(10), inline(11)])
        node.turn()
        # Nobody needs any more what has changed lanes: the outputs are left.
        assert node.core.table.live_count == 3

    def test_a_failure_is_told_at_once_with_what_was_tried(self) -> None:
        node = GangNode()
        first, _ = node.gang()
        order = bundle_positions(first[1])
        failure = Failure(order[2], 1, "argument", "ValueError", "no")
        retried = TaskRetried(0, order[1], 1, "exception", 3, "ValueError: once")
        node.part(first, 2, [shared(1)], deferred=order[3:], failures=[failure], retries=[retried])
        actions = node.turn()
        assert messages(actions.to_master, TaskFailed) == [TaskFailed(1, 1, failure)]
        assert [r.run for r in messages(actions.to_master, TaskRetried)] == [1]
        assert actions.stop_bundles == [(4, 1)]
        assert messages(actions.to_executors[3], FreeExtents) == [FreeExtents([shared(1).location])]

    def test_when_the_run_has_failed_nothing_counts(self) -> None:
        node = GangNode()
        first, second = node.gang()
        failure = Failure(bundle_positions(first[1])[0], 1, "argument", "ValueError", "no")
        node.part(first, 0, deferred=bundle_positions(first[1])[1:], failures=[failure])
        node.turn()
        node.part(second, 2, [shared(2, segment="s-4-1-0")])
        actions = node.turn()
        assert bundles_of(actions) == []
        assert messages(actions.to_executors[4], FreeExtents)
        assert node.core.runs[1].bundles == {}
        node.tell(EndRun(1, ()))
        [closed] = messages(node.turn().to_master, RunClosed)
        assert closed.stats.live_object_count == 0
        assert [e.task_count for e in closed.stats.executors] == [0, 2]

    def test_no_room_for_a_result_once(self) -> None:
        node = GangNode()
        first, second = node.gang()
        order = bundle_positions(first[1])
        failure = Failure(order[0], 1, "memory", "OutOfMemory", "full")
        node.part(first, 0, deferred=order[1:], failures=[failure])
        assert node.turn().stop_bundles == [(4, 1)]
        node.part(second, 2, [shared(2, segment="s-4-1-0"), inline(3)])
        actions = node.turn()
        assert messages(actions.to_master, TaskFailed) == []
        assert messages(actions.to_executors[4], FreeExtents)
        assert node.core.runs[1].hungry == {order[0]}
        sent = bundles_of(actions)
        while [order[0]] not in [bundle_positions(p) for _, p in sent]:
            for each in sent:
                node.whole(each)
            sent = bundles_of(node.turn())
        assert len(sent) == 1  # alone on the node
        node.whole(sent[0])
        node.finish()


class TestLosses:
    def test_at_a_task_that_alone_is_charged(self) -> None:
        node = GangNode()
        _, second = node.gang()
        node.lose(3, 1, 5)
        actions = node.turn()
        assert (actions.start, actions.stop_bundles) == ([3], [(4, 1)])
        assert messages(actions.to_master, TaskRetried) == []  # once the other has ended
        node.part(second, 2, [shared(2, segment="s-4-1-0")])
        actions = node.turn()
        end = ExitInfo(signal=9)
        assert messages(actions.to_master, TaskRetried) == [
            TaskRetried(1, 5, 1, "crash", 3, end=end)
        ]
        assert node.core.runs[1].crash_counts == {5: 1}
        # Nothing counts of the gang.
        assert messages(actions.to_executors[4], FreeExtents)
        parts = sorted(b.positions.tolist() for b in node.core.runs[1].bundles.values())
        assert parts == [[0, 1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11]]
        assert {b.attempt for b in node.core.runs[1].bundles.values()} == {2}
        node.hello(3)
        for each in bundles_of(actions):
            node.whole(each)
        node.finish()

    @pytest.mark.parametrize("position", [-2, None])
    def test_while_it_waited_or_before_it_began_nobody_is_charged(
        self, position: int | None
    ) -> None:
        node = GangNode()
        _, second = node.gang()
        if position is None:
            node.lose(3)
        else:
            node.lose(3, 1, position)
        node.turn()
        node.part(second, 2, [inline(2), inline(3)])
        actions = node.turn()
        assert messages(actions.to_master, TaskRetried) == []
        run = node.core.runs[1]
        assert (run.crash_counts, run.suspects) == ({}, set())
        assert sorted(p for b in run.bundles.values() for p in b.positions.tolist()) == [*range(12)]
        node.hello(3)
        for each in bundles_of(actions):
            node.whole(each)
        node.finish()

    def test_between_two_tasks_those_of_its_lane_are_suspects(self) -> None:
        node = GangNode()
        first, second = node.gang()
        node.lose(3, 1, -1)
        node.turn()
        node.part(second, 0)
        node.turn()
        run = node.core.runs[1]
        assert run.suspects == set(bundle_positions(first[1]))
        assert all(len(bundle.positions) == 1 for bundle in run.bundles.values())

    @pytest.mark.parametrize("position", [5, -1, -2])
    def test_killed_by_us_all_lanes_go_again(self, position: int) -> None:
        node = GangNode()
        _, second = node.gang()
        node.core.executors[3].killed = True
        node.lose(3, 1, position)
        node.turn()
        node.hello(3)
        node.part(second, 2)
        again = bundles_of(node.turn())
        assert [(e, p.message.attempt, p.message.lane) for e, p in again] == [(3, 2, 0), (4, 2, 1)]
        assert number_of(again) == 1
        for each in again:
            node.whole(each)
        node.finish()

    def test_both(self) -> None:
        node = GangNode()
        node.gang()
        node.lose(3, 1, -2)
        node.lose(4, 1, 7)
        actions = node.turn()
        assert [r.position for r in messages(actions.to_master, TaskRetried)] == [7]
        node.hello(3)
        node.hello(4)
        node.finish()

    def test_after_it_has_told_all_its_segments_go_so_its_lane_is_done_again(self) -> None:
        node = GangNode()
        first, second = node.gang()
        outputs = [shared(8), shared(9, offset=1_000_000)]
        node.done(3, first[1], objects=outputs)
        node.turn()
        node.lose(3)
        actions = node.turn()
        assert actions.reclaim == [(3, 1, frozenset())]
        node.hello(3)
        node.whole(second)
        assert to_do(node) == [*range(7), 8, 9]  # all that 8 and 9 need: no value of it was told
        node.finish()

    def test_after_it_has_told_small_values_all_counts(self) -> None:
        node = GangNode()
        first, second = node.gang()
        node.whole(first)
        node.turn()
        node.lose(3)
        node.turn()
        node.hello(3)
        node.whole(second)
        assert len(messages(node.turn().to_master, SubtreeDone)) == 1


class TestTakenBack:
    def behind(self, node: GangNode) -> tuple[list[Sent], list[Sent]]:
        """A gang whose second lane waits behind another bundle."""
        node.place([[] for _ in range(2)], run=2, seconds=0.004)
        short = bundles_of(node.turn())
        assert [executor for executor, _ in short] == [3, 4]
        node.whole(short[0])
        node.weave()
        sent = bundles_of(node.turn())
        assert [(e, p.message.lane) for e, p in sent] == [(3, 0), (4, 1)]
        return short, sent

    def test_a_lane_behind_something_long_goes_and_the_others_are_stopped(self) -> None:
        node = GangNode()
        short, sent = self.behind(node)
        number = number_of(sent)
        for _ in range(2):
            node.now += 0.11
            node.core.handle_timer(node.now)
        actions = node.turn()
        assert (4, number) in actions.take_back
        node.core.ledger.taken_back(4, number, is_left_out=True)
        assert node.turn().stop_bundles == [(3, number)]
        node.part(sent[0], 2, [inline(0), inline(1)])
        again = bundles_of(node.turn())
        assert all(executor == 3 for executor, _ in again)
        assert not any(parcel.message.slots for _, parcel in again)
        assert to_do(node) == list(range(2, 12))
        for each in again:
            node.whole(each)
        node.finish()
        assert node.core.executors[4].queue[0].number == short[1][1].message.bundle

    def test_a_lane_that_can_not_be_taken_back_is_stopped_when_it_begins(self) -> None:
        node = GangNode()
        short, sent = self.behind(node)
        number = number_of(sent)
        node.part(sent[0], 2, [inline(0), inline(1)])
        actions = node.turn()
        assert (actions.take_back, actions.stop_bundles) == ([(4, number)], [])
        node.core.ledger.taken_back(4, number, is_left_out=False)
        assert node.turn().stop_bundles == []
        node.whole(short[1])
        assert node.turn().stop_bundles == [(4, number)]
        node.part(sent[1], 0)
        for each in bundles_of(node.turn()):
            node.whole(each)
        node.finish()

    def test_a_lane_of_a_broken_gang_that_was_taken_back_ends_it(self) -> None:
        node = GangNode()
        _, sent = self.behind(node)
        number = number_of(sent)
        node.part(sent[0], 2, [inline(0), inline(1)])
        node.turn()
        node.core.ledger.taken_back(4, number, is_left_out=True)
        again = bundles_of(node.turn())
        assert again
        assert {executor for executor, _ in again} == {3}

    def test_an_executor_lost_before_it_began_a_lane_that_waits(self) -> None:
        node = GangNode()
        short, sent = self.behind(node)
        node.lose(4, short[1][1].message.bundle, bundle_positions(short[1][1])[0])
        actions = node.turn()
        assert actions.stop_bundles == [(3, number_of(sent))]
        assert [r.run for r in messages(actions.to_master, TaskRetried)] == [2]
        [retried] = bundles_of(actions)
        node.part(sent[0], 0)
        node.whole(retried)
        actions = node.turn()
        assert messages(actions.to_master, TaskRetried) == []
        assert node.core.runs[1].crash_counts == {}
        node.hello(4)
        for each in bundles_of(actions):
            node.whole(each)
        node.finish()


class TestTheRunEnds:
    def test_cancelled(self) -> None:
        node = GangNode()
        first, second = node.gang()
        node.tell(CancelRun(1, 0.5))
        assert node.turn().stop_bundles == [(3, 1), (4, 1)]
        node.part(first, 1, [shared(1)])
        node.part(second, 6)
        actions = node.turn()
        assert messages(actions.to_executors[3], FreeExtents)
        assert node.core.runs[1].bundles == {}
        node.now = 0.6
        node.core.handle_timer(node.now)
        assert node.turn().kill == []

    def test_cancelled_while_a_task_goes_on_its_executor_alone_is_killed(self) -> None:
        node = GangNode()
        first, _ = node.gang()
        node.tell(CancelRun(1, 0.5))
        node.turn()
        node.part(first, 1)
        node.turn()
        node.now = 0.6
        node.core.handle_timer(node.now)
        assert node.turn().kill == [4]
        node.lose(4, 1, 2)
        node.turn()
        assert node.core.runs[1].bundles == {}

    def test_ended_while_lanes_go_on_their_inputs_stay(self) -> None:
        node = GangNode()
        node.place(
            [[12], *stencil(4, 3)[1:]], total=13, imports={12: 5}, seconds=0.001,
            levels=(0, 4, 8), flags=[0] * 8 + [OUTPUT] * 4,
        )  # fmt: skip
        node.turn()
        node.core.object_received(5, 1, shared(12, segment="0-0-1"), (0.0, 0.0), node.now)
        first, second = bundles_of(node.turn())
        node.tell(EndRun(1, ()))
        assert node.turn().free == []
        node.part(first, 1, [shared(1)])
        assert node.turn().free == []
        node.part(second, 0)
        assert [location.segment for location in node.turn().free] == ["0-0-1"]

    def test_drained_once_all_lanes_have_ended(self) -> None:
        node = GangNode()
        first, second = node.gang()
        node.tell(DrainRun(1))
        node.part(first, 2, [inline(0), inline(1)])
        assert messages(node.turn().to_master, Drained) == []
        node.part(second, 2, [inline(2), inline(3)])
        actions = node.turn()
        assert messages(actions.to_master, Drained) == [Drained(1)]
        assert bundles_of(actions) == []
        node.tell(AskHoldings(1, [1]))
        [held] = [p for p in node.turn().to_master if isinstance(p.message, Holdings)]
        assert sorted(np.frombuffer(held.frames[0], np.int32).tolist()) == [0, 1, 2, 3]
        assert sorted(np.frombuffer(held.frames[5], np.int32).tolist()) == list(range(4, 12))

    def test_given_back_before_it_was_sent(self) -> None:
        node = GangNode()
        rows = [[12], *stencil(4, 3)[1:]]
        node.place(rows, total=13, imports={12: 5}, seconds=0.001, levels=(0, 4, 8))
        node.turn()
        node.tell(AskHoldings(1, [1], give_back=[1]))
        node.turn()
        assert node.core.runs[1].bundles == {}

    def test_an_executor_that_is_to_leave_ends_its_lane_first(self) -> None:
        node = GangNode()
        first, second = node.gang()
        node.tell(SetExecutors((3,)))
        actions = node.turn()
        assert messages(actions.to_executors.get(4, []), Stop) == [Stop()]
        node.whole(second)
        node.whole(first)
        assert len(messages(node.turn().to_master, SubtreeDone)) == 1
        node.lose(4)
        node.turn()
        node.weave(run=2)
        sent = bundles_of(node.turn())
        assert {executor for executor, _ in sent} == {3}
        assert not any(parcel.message.slots for _, parcel in sent)


def test_who_has_a_lane_is_checked() -> None:
    node = GangNode()
    node.gang()
    bundle = node.core.executors[4].queue[0]
    kept = bundle.at.pop(4)
    with pytest.raises(InternalError, match="lane"):
        node.core.check()
    bundle.at[4] = kept
    node.core.check()
