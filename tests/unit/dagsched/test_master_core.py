"""MasterCore: events in, exact actions out."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dagsched.config import Config
from dagsched.errors import GraphError, InternalError, ProtocolError
from dagsched.master import placement
from dagsched.master.core import MasterCore, own_version
from dagsched.master.events import (
    NodeJoined,
    NodeRemoved,
    NodeTraced,
    OutputsArrived,
    OutputsComplete,
    RunEnded,
    RunProgressed,
    RunStarted,
    StatsArrived,
    TracesArrived,
    ValueArrived,
)
from dagsched.master.families import CHILD_RUNS_FROM
from dagsched.master.journal import (
    Ended,
    Failed,
    OutputsReached,
    Placed,
    RunPast,
    Submitted,
    SubtreeEnded,
)
from dagsched.master.outbox import MasterActions
from dagsched.master.placement import Candidate, Host, homes_of
from dagsched.master.state import MasterRun, RunState, SubtreeState
from dagsched.plan import ConstantSource, RefSource, RunPlan
from dagsched.protocol.messages import (
    EXPORTED,
    META,
    OUTPUT,
    PERSISTED,
    REFERENCED,
    AskHoldings,
    AskStats,
    AskWhere,
    BrokerHello,
    BrokerToMaster,
    CancelRun,
    Drained,
    DrainRun,
    EndRun,
    ExecutorChanged,
    Failure,
    FetchValue,
    Frame,
    FunctionInfo,
    Holdings,
    Location,
    NodeStats,
    NodeTrace,
    ObjectInfo,
    ObjectsTaken,
    OutputsReady,
    Parcel,
    Ping,
    PlaceSubtree,
    Pong,
    Progress,
    PutObjects,
    Redirect,
    Release,
    Relocate,
    RunClosed,
    SetExecutors,
    SetPeers,
    Shutdown,
    Stats,
    SubtreeDone,
    TakeObjects,
    TaskExpanded,
    TaskFailed,
    TaskOptions,
    TaskTrace,
    TellOutputs,
    Value,
    Welcome,
)
from dagsched.protocol.plans import encode_plan


def ints(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def plan_of(
    deps: Sequence[Sequence[int]],
    starts: Sequence[int],
    outputs: Sequence[int],
    *,
    sources: Sequence[ConstantSource | RefSource] = (),
    interlocked: bool = False,
    seconds: float | None = None,
    flags: dict[int, int] | None = None,
    options: dict[int, TaskOptions] | None = None,
) -> RunPlan:
    count = len(deps)
    marks = np.zeros(count + len(sources), np.uint8)
    marks[[o for o in outputs if o < count]] |= OUTPUT
    bounds = np.array(starts)
    for consumer, row in enumerate(deps):
        for dep in row:
            apart = np.searchsorted(bounds, dep, "right") != np.searchsorted(
                bounds, consumer, "right"
            )
            if dep < count and apart:
                marks[dep] |= EXPORTED
    for position, bits in (flags or {}).items():
        marks[position] |= bits
    return RunPlan(
        subtree_starts=np.array(starts, np.int64),
        interlocked=interlocked,
        indptr=np.cumsum([0] + [len(row) for row in deps]).astype(np.int64),
        deps=np.array([d for row in deps for d in row], np.int32),
        function_of=np.zeros(count, np.int32),
        flags=marks,
        level_starts=np.zeros(0, np.int32),
        functions=[FunctionInfo(0, b"0123456789abcdef", "f", seconds)],
        function_pickles=[b"function"],
        chunks=[b"chunk%d" % i for i in range(-(-count // 64))],
        options=options or {},
        outputs=np.array(outputs, np.int32),
        sources=list(sources),
    )


def alone(count: int, subtrees: int) -> RunPlan:
    """Tasks without dependencies, in equal subtrees."""
    starts = [count * k // subtrees for k in range(subtrees + 1)]
    return plan_of([[] for _ in range(count)], starts, range(count))


class Driver:
    """A master core, with the brokers played by hand."""

    def __init__(self, nodes: dict[int, int], **settings: float) -> None:
        self.config = replace(Config(), **settings)
        self.core = MasterCore(self.config)
        self.now = 0.0
        self.actions = MasterActions()
        self.epochs: dict[int, int] = {}
        self.wanted = [
            (broker, "h", tuple(range(100 * broker, 100 * broker + executors)))
            for broker, executors in nodes.items()
        ]
        self.core.set_nodes(self.wanted, self.now)
        self.take()

    def take(self) -> MasterActions:
        self.core.check()
        self.actions = self.core.take_actions()
        return self.actions

    def receive(self, broker: int, message: BrokerToMaster, *frames: Frame) -> MasterActions:
        self.core.receive(broker, message, frames, self.now)
        return self.take()

    def hello(self, broker: int) -> MasterActions:
        return self.receive(broker, BrokerHello(broker, 9, "h", f"at {broker}", own_version()))

    def join(self, *brokers: int) -> None:
        for broker in brokers:
            self.hello(broker)
            executors = next(node[2] for node in self.wanted if node[0] == broker)
            for executor in executors:
                self.receive(broker, ExecutorChanged(executor, 77, 0))

    def submit(self, run: int, plan: RunPlan, **kwargs: float) -> MasterActions:
        self.core.submit(run, plan, self.now, **kwargs)  # type: ignore[arg-type]
        return self.take()

    def done(
        self, broker: int, run: int, subtree: int, *, epoch: int = 1, attempt: int = 1,
        exports: Sequence[int] = (), sizes: Sequence[int] = (),
        seconds: Sequence[tuple[int, int, float]] = (),
    ) -> MasterActions:  # fmt: skip
        size_frame = np.array(sizes, np.int64).tobytes()
        message = SubtreeDone(run, epoch, subtree, attempt, seconds)
        return self.receive(broker, message, ints(*exports), size_frame)

    def output(
        self, broker: int, run: int, first: int, count: int = 1, *, epoch: int = 1,
        refs: Sequence[tuple[int, int]] = (),
    ) -> MasterActions:  # fmt: skip
        info = ObjectInfo(first, count, 5, refs=refs)
        return self.receive(broker, OutputsReady(run, epoch, [info]), b"bytes")

    def tell(
        self, broker: int, run: int, number: int, *, has: Sequence[int] = (),
        lacks: Sequence[int] = (), awaits: Sequence[int] = (),
        works: Sequence[tuple[int, int, Sequence[int]]] = (),
    ) -> MasterActions:  # fmt: skip
        """A broker tells what it holds; `works`: subtree, attempt, tasks not ended."""
        rows = [(subtree, attempt, len(tasks)) for subtree, attempt, tasks in works]
        sizes = np.full(len(has), 5, np.int64).tobytes()
        unfinished = ints(*(task for _, _, tasks in works for task in tasks))
        frames = (ints(*has), ints(*[1] * len(has)), sizes, ints(*lacks), ints(*awaits), unfinished)
        return self.receive(broker, Holdings(run, number, rows), *frames)

    def closed(self, broker: int, run: int) -> MasterActions:
        return self.receive(broker, RunClosed(run, NodeStats(broker, "h")))

    def sent(self, broker: int, kind: type) -> list[Parcel]:
        parcels = self.actions.to_brokers.get(broker, [])
        return [parcel for parcel in parcels if isinstance(parcel.message, kind)]

    def placed(self) -> dict[int, list[int]]:
        """Subtrees placed in the last turn, by broker."""
        return {
            broker: [p.message.subtree for p in self.sent(broker, PlaceSubtree)]
            for broker in self.actions.to_brokers
            if self.sent(broker, PlaceSubtree)
        }

    def events(self, kind: type) -> list:
        return [event for event in self.actions.events if isinstance(event, kind)]

    def pass_time(self, seconds: float) -> MasterActions:
        self.now += seconds
        self.core.handle_timer(self.now)
        return self.take()


def ready(nodes: dict[int, int], **settings: float) -> Driver:
    driver = Driver(nodes, **settings)
    driver.join(*nodes)
    return driver


# --- nodes ----------------------------------------------------------------------------------------


def test_a_broker_is_welcomed_and_told_of_executors_and_peers():
    driver = Driver({2: 2, 5: 1})
    actions = driver.hello(2)
    assert actions.to_brokers == {
        2: [Parcel(Welcome(2, 1)), Parcel(SetPeers([])), Parcel(SetExecutors((200, 201)))]
    }
    assert actions.events == [NodeJoined(2)]
    actions = driver.hello(5)
    assert actions.to_brokers[2] == [Parcel(SetPeers([(5, 2, "at 5")], []))]
    assert actions.to_brokers[5][1] == Parcel(SetPeers([(2, 1, "at 2")]))


def test_of_a_node_that_comes_all_others_are_told_that_alone():
    driver = Driver(dict.fromkeys(range(2, 32), 1))
    for broker in range(2, 31):
        driver.hello(broker)
    actions = driver.hello(31)
    said = {broker: parcels for broker, parcels in actions.to_brokers.items() if broker != 31}
    assert said == {b: [Parcel(SetPeers([(31, 30, "at 31")], []))] for b in range(2, 31)}
    assert len(actions.to_brokers[31][1].message.peers) == 29


def test_a_node_that_is_back_within_a_turn_is_gone_first():
    driver = ready({2: 1, 3: 1})
    driver.hello(2)
    assert [parcel.message for parcel in driver.sent(3, SetPeers)] == [
        SetPeers([], [2]), SetPeers([(2, 3, "at 2")], []),
    ]  # fmt: skip


def test_another_version_is_refused_with_both_named():
    driver = Driver({2: 1})
    actions = driver.receive(2, BrokerHello(2, 9, "h", "a", ("3.9", "0.0.1", 0)))
    assert actions.disconnect == [2]
    assert actions.to_brokers == {}
    (removed,) = actions.events
    assert "Python 3.9, dagsched 0.0.1, protocol 0" in removed.reason
    assert f"dagsched {own_version()[1]}" in removed.reason


def test_a_broker_that_nobody_wants_is_sent_away():
    driver = Driver({2: 1})
    assert driver.hello(9).to_brokers == {9: [Parcel(Shutdown())]}


def test_nodes_are_pinged_and_lost_when_silent_for_the_lease():
    driver = ready({2: 1, 3: 1})
    for _ in range(4):
        driver.pass_time(0.5)
        assert driver.sent(2, Ping)
        assert driver.sent(3, Ping)
        driver.receive(3, Pong(1))
    actions = driver.pass_time(0.5)
    assert driver.events(NodeRemoved) == [NodeRemoved(2, "node 2 was silent for 2.5 s")]
    assert actions.disconnect == [2]
    assert 2 not in actions.to_brokers
    assert driver.sent(3, SetPeers) == [Parcel(SetPeers([], [2]))]


def test_a_master_that_was_stopped_itself_loses_nobody():
    driver = ready({2: 1})
    driver.pass_time(60.0)
    assert driver.events(NodeRemoved) == []
    assert driver.sent(2, Ping)


def test_a_node_that_never_joins_is_named_and_the_rest_goes_on():
    driver = Driver({2: 1, 3: 1}, start_timeout_s=10.0)
    driver.join(2)
    driver.submit(1, alone(4, 2))
    assert driver.placed() == {}  # the other one may be about to come
    driver.pass_time(0.06)
    assert driver.placed() == {2: [0, 1]}
    driver.receive(2, Pong(1))
    driver.now = 9.0
    driver.receive(2, Pong(1))
    driver.pass_time(1.0)
    (removed,) = driver.events(NodeRemoved)
    assert removed.broker == 3
    assert "did not join within 10 s" in removed.reason


def test_an_idle_master_sleeps_until_the_next_ping():
    driver = Driver({2: 1, 3: 1})
    driver.join(2)
    assert driver.core.next_timer() == pytest.approx(0.05)
    driver.pass_time(0.06)
    assert driver.core.next_timer() == pytest.approx(0.5)


def test_if_no_node_joins_runs_are_lost():
    driver = Driver({2: 1, 3: 1})
    driver.submit(1, alone(4, 2))
    driver.pass_time(10.0)
    (ended,) = driver.events(RunEnded)
    assert (ended.state, ended.failure.kind, ended.failure.type_name) == (
        "lost",
        "lost",
        "NoNodesError",
    )
    driver.submit(2, alone(4, 2))
    assert [event.state for event in driver.events(RunEnded)] == ["lost"]


def test_without_nodes_a_run_waits_for_the_grace_time():
    driver = ready({2: 1}, no_nodes_grace_s=30.0)
    driver.submit(1, alone(2, 1))
    driver.core.peer_lost(2, "gone", driver.now)
    driver.take()
    driver.pass_time(29.0)
    assert driver.events(RunEnded) == []
    driver.pass_time(1.0)
    (ended,) = driver.events(RunEnded)
    assert "no node for 30 s" in ended.failure.text


def test_a_removed_node_leaves_when_its_runs_have_ended_before_it_is_drained():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(2, 2))
    driver.core.set_nodes(driver.wanted[:1], driver.now)
    driver.take()
    assert driver.sent(3, Shutdown) == []
    assert driver.sent(3, DrainRun) == [Parcel(DrainRun(1))]
    for broker, subtree in ((2, 0), (3, 1)):
        driver.output(broker, 1, subtree)
        driver.done(broker, 1, subtree)
    driver.core.outputs_taken(1, driver.now)
    driver.take()
    driver.closed(2, 1)
    driver.closed(3, 1)
    assert driver.sent(3, Shutdown) == [Parcel(Shutdown())]
    assert driver.events(NodeRemoved) == [NodeRemoved(3, "node 3 was removed")]
    driver.core.set_nodes([], driver.now)
    driver.take()
    assert driver.sent(2, Shutdown)  # between runs at once


# --- placing --------------------------------------------------------------------------------------


def test_place_subtree_carries_exactly_its_slice():
    deps = [[], [0], [65, 1], [2, 66]] + [[] for _ in range(61)]
    sources = [ConstantSource(b"constant"), RefSource(1, 3, 10)]
    options = {1: TaskOptions(1, retries=2), 3: TaskOptions(3, timeout_s=1.0)}
    plan = plan_of(deps, [0, 2, 65], [64], sources=sources, options=options)
    driver = ready({2: 1})
    driver.core.submit(1, plan_of([[]] * 4, [0, 4], [3], flags={3: PERSISTED}), driver.now)
    driver.take()
    driver.output(2, 1, 3)
    driver.submit(7, plan, priority=4)
    first, second = driver.sent(2, PlaceSubtree)
    info = plan.functions[0]
    assert first.message == PlaceSubtree(7, 1, 0, 1, 0, 2, 67, 4, [(info, True)], [options[1]])
    assert [bytes(frame) for frame in first.frames] == [
        b"", ints(0, 0, 1), ints(0), ints(0, 0), bytes([0, EXPORTED]), b"", b"", b"",
        b"chunk0", b"function",
    ]  # fmt: skip
    assert second.message == PlaceSubtree(7, 1, 1, 1, 2, 65, 67, 4, [(info, False)], [options[3]])
    frames = [bytes(frame) for frame in second.frames]
    assert frames[1] == ints(*[0, 2, 4] + [4] * 61)
    assert frames[2] == ints(65, 1, 2, 66)
    assert frames[6:] == [ints(1, 65, 66), ints(2, 0, 0), b"chunk0", b"chunk1"]
    assert driver.sent(2, PutObjects) == [Parcel(PutObjects(7, [65]), [b"constant"])]
    assert driver.sent(2, Redirect) == [Parcel(Redirect(7, 66, 1, 3, 2))]


def test_levels_are_those_of_the_subtree():
    plan = replace(alone(8, 2), level_starts=np.array([0, 2, 4, 6], np.int32))
    driver = ready({2: 1})
    driver.submit(1, plan)
    assert [bytes(p.frames[5]) for p in driver.sent(2, PlaceSubtree)] == [ints(0, 2), ints(4, 6)]


def test_neighbours_stay_together_and_nodes_get_even_shares():
    driver = ready({2: 2, 5: 2}, placed_subtrees_max=9)
    driver.submit(1, alone(800, 8))
    assert driver.placed() == {2: [0, 1, 2, 3], 5: [4, 5, 6, 7]}


def test_shares_follow_the_number_of_executors():
    driver = ready({2: 1, 5: 3}, placed_subtrees_max=9)
    driver.submit(1, alone(800, 8))
    assert driver.placed() == {2: [0, 1], 5: [2, 3, 4, 5, 6, 7]}


def test_a_broker_gets_more_as_it_ends_some():
    driver = ready({2: 1, 5: 1}, placed_subtrees_max=2)
    driver.submit(1, alone(800, 8))
    assert driver.placed() == {2: [0, 1], 5: [4, 5]}
    driver.done(2, 1, 1)
    assert driver.placed() == {2: [2]}


def test_small_subtrees_are_credited_by_tasks():
    driver = ready({2: 4, 5: 4}, placed_subtrees_max=2)
    driver.submit(1, alone(8, 8))
    assert driver.placed() == {2: [0, 1, 2, 3], 5: [4, 5, 6, 7]}


def test_an_idle_broker_takes_the_end_of_the_longest_queue():
    driver = ready({2: 1, 5: 1}, placed_subtrees_max=1)
    driver.submit(1, alone(800, 8))
    for subtree in (4, 5, 6, 7):
        driver.done(5, 1, subtree)
    assert driver.placed() == {5: [3]}


def test_a_single_node_gets_everything():
    driver = ready({2: 1}, placed_subtrees_max=1)
    driver.submit(1, alone(800, 8))
    assert driver.placed() == {2: list(range(8))}


def test_interlocked_subtrees_are_placed_all_at_once():
    plan = plan_of([[], [], [0, 1], [1, 0]], [0, 1, 4], [2, 3], interlocked=True)
    plan = replace(plan, subtree_starts=np.array([0, 2, 4], np.int64))
    driver = ready({2: 1, 5: 1}, placed_subtrees_max=1)
    driver.submit(1, plan)
    assert driver.placed() == {2: [0], 5: [1]}
    (parcel,) = driver.sent(5, PlaceSubtree)
    assert bytes(parcel.frames[7]) == ints(2, 2)


def test_a_subtree_is_placed_once_those_it_needs_are_placed():
    plan = plan_of([[], [0], [1]], [0, 1, 2, 3], [2])
    driver = ready({2: 1, 5: 1}, placed_subtrees_max=1)
    driver.submit(1, plan)
    placed = [parcel.message.subtree for b in (2, 5) for parcel in driver.sent(b, PlaceSubtree)]
    assert sorted(placed) == [0, 1, 2]


def test_a_new_node_gets_its_share_during_a_run():
    driver = ready({2: 1, 3: 1}, placed_subtrees_max=1)
    driver.submit(1, alone(800, 8))
    driver.core.set_nodes([*driver.wanted, (4, "h", (400,))], driver.now)
    driver.wanted.append((4, "h", (400,)))
    driver.take()
    driver.hello(4)
    driver.receive(4, ExecutorChanged(400, 77, 0))
    assert driver.placed() == {4: [3]}


def wait_until(driver: Driver, now: float) -> None:
    driver.now = now
    driver.core.handle_timer(now)
    driver.take()


def test_a_second_node_gets_what_the_first_gives_back():
    driver = ready({2: 1})
    driver.submit(1, alone(80, 1))
    assert driver.placed() == {2: [0]}
    driver.core.set_nodes([*driver.wanted, (4, "h", (400,))], driver.now)
    driver.wanted.append((4, "h", (400,)))
    driver.take()
    driver.hello(4)
    driver.receive(4, ExecutorChanged(400, 77, 0))
    assert driver.sent(2, AskHoldings) == []
    wait_until(driver, 0.05)
    assert driver.sent(2, AskHoldings) == [Parcel(AskHoldings(1, [1], give_back=[1]))]
    driver.tell(2, 1, 1, has=range(10), works=[(0, 1, range(10, 16))])
    placed = driver.placed()
    assert placed.keys() == {2, 4}
    positions = [
        np.frombuffer(parcel.frames[0], np.int32).tolist()
        or [*range(parcel.message.lo, parcel.message.hi)]
        for broker in (2, 4)
        for parcel in driver.sent(broker, PlaceSubtree)
    ]
    assert {len(part) for part in positions} == {8}  # 64 tasks in 4 parts for each node
    driver.done(2, 1, 0)
    assert driver.core._lives.runs[1].subtrees[0].state is SubtreeState.DONE
    # A node that is not idle, or comes when there is little to do, changes nothing.
    driver.receive(4, ExecutorChanged(400, 78, 1))
    wait_until(driver, 0.1)
    assert driver.sent(2, AskHoldings) == []


# --- requirements of the cost model ---------------------------------------------------------------


def hosts(*executors: int) -> list[Host]:
    return [Host(broker, count, 0.0) for broker, count in enumerate(executors, 2)]


def test_halves_go_where_their_inputs_lie():
    candidates = [Candidate(k, 0.05, {2 if k < 4 else 3: 1e6}) for k in range(8)]
    homes = homes_of(candidates, hosts(2, 2))
    assert homes == {k: 2 if k < 4 else 3 for k in range(8)}


@pytest.mark.parametrize(("task_s", "moved"), [(0.001, 0), (1.0, 4)])
def test_work_moves_to_where_no_input_lies_only_if_it_pays(task_s: float, moved: int):
    candidates = [Candidate(k, 5 * task_s, {2: 5 * 100e6}) for k in range(8)]
    homes = homes_of(candidates, hosts(1, 1))
    assert list(homes.values()).count(3) == moved


def test_a_reduction_runs_where_most_of_its_inputs_lie():
    assert homes_of([Candidate(0, 0.01, {2: 1e8, 3: 7e8})], hosts(2, 2)) == {0: 3}


def test_placement_is_a_pure_function():
    candidates = [Candidate(k, 0.01 * (k % 3), {2 + k % 2: 1e6 * k}) for k in range(20)]
    assert homes_of(candidates, hosts(1, 2, 3)) == homes_of(candidates, hosts(1, 2, 3))


def test_a_shared_input_counts_once():
    candidate = Candidate(0, 0.0, {2: 1e9})
    assert candidate.transfer_s(3) == pytest.approx(1e9 / placement.BANDWIDTH_BYTES_S)


# --- release, estimates, progress, traces ---------------------------------------------------------


def test_values_are_released_with_their_last_importer():
    plan = plan_of([[], [], [0], [0, 1], []], [0, 2, 3, 5], [4])
    driver = ready({2: 1}, placed_subtrees_max=9)
    driver.submit(1, plan)
    driver.done(2, 1, 0, exports=[0, 1], sizes=[10, 20])
    assert driver.sent(2, Release) == []
    driver.done(2, 1, 1)
    assert driver.sent(2, Release) == []
    driver.done(2, 1, 2)
    assert driver.sent(2, Release) == [Parcel(Release(1), [ints(0, 1)])]


def test_constants_are_released_wherever_they_were_put():
    plan = plan_of([[4]] * 4, [0, 2, 4], range(4), sources=[ConstantSource(b"c")])
    driver = ready({2: 1, 5: 1})
    driver.submit(1, plan)
    assert driver.placed() == {2: [0], 5: [1]}
    driver.done(2, 1, 0)
    assert driver.sent(2, Release) == []
    driver.done(5, 1, 1)
    assert driver.sent(2, Release) == driver.sent(5, Release) == [Parcel(Release(1), [ints(4)])]


def test_estimates_are_a_moving_mean_and_shape_weights():
    driver = ready({2: 1})
    driver.submit(1, alone(4, 2))
    driver.done(2, 1, 0, seconds=[(0, 2, 0.2)])
    assert driver.core.estimates == {b"0123456789abcdef": pytest.approx(0.1)}
    driver.done(2, 1, 1, seconds=[(0, 2, 0.6)])
    assert driver.core.estimates == {b"0123456789abcdef": pytest.approx(0.2)}


def test_progress_and_traces_reach_the_client():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(10, 2))
    assert driver.events(RunStarted) == [RunStarted(1)]
    driver.receive(2, Progress(1, 3))
    assert driver.receive(3, Progress(1, 4)).events == [RunProgressed(1, 7, 10)]
    frames = ints(5), b"12345678", b"bundles", b"objects"
    actions = driver.receive(3, TaskTrace(1, 300, 1), *frames)
    assert actions.events == [TracesArrived(1, 3, 300, 1, *frames)]
    actions = driver.receive(3, NodeTrace(1), b"transfers", b"files")
    assert actions.events == [NodeTraced(1, 3, True, b"transfers", b"files")]
    assert driver.receive(3, NodeTrace(2), b"transfers", b"files").events == []
    assert driver.core.stale_count == 1


def test_the_journal_tells_the_whole_story():
    driver = Driver({2: 1})
    driver.join(2)
    plan = alone(2, 2)
    actions = driver.submit(1, plan, priority=3, timeout_s=9.0)
    assert actions.journal == [
        Submitted(1, 3, 9.0, plan, None), Placed(1, 1, [(0, 2, 1), (1, 2, 1)])
    ]  # fmt: skip
    actions = driver.done(2, 1, 0, exports=[0], sizes=[8])
    assert actions.journal == [
        SubtreeEnded(1, 1, 0, 1, 2, ints(0), np.array([8], np.int64).tobytes())
    ]


# --- ends -----------------------------------------------------------------------------------------


def finished(driver: Driver, run: int, plan: RunPlan, refs: Sequence[tuple[int, int]] = ()) -> None:
    """Play a run of one node to the client's having its outputs."""
    driver.submit(run, plan)
    for subtree in range(plan.subtree_count):
        driver.done(2, run, subtree)
    for output in plan.outputs.tolist():
        driver.output(2, run, output, refs=refs)


def test_a_run_ends_when_outputs_are_taken_and_all_subtrees_done():
    driver = ready({2: 1})
    driver.submit(1, alone(2, 2))
    driver.output(2, 1, 0)
    assert driver.events(OutputsComplete) == []
    driver.output(2, 1, 1)
    (complete,) = driver.events(OutputsComplete)
    assert complete.objects == [
        (2, ObjectInfo(0, 1, 5), b"bytes"), (2, ObjectInfo(1, 1, 5), b"bytes")
    ]  # fmt: skip
    driver.core.outputs_taken(1, driver.now)
    driver.take()
    assert driver.sent(2, EndRun) == []
    driver.done(2, 1, 0)
    driver.done(2, 1, 1)
    assert driver.sent(2, EndRun) == [Parcel(EndRun(1, []))]
    actions = driver.closed(2, 1)
    tally = {"placed": 2}
    ended = RunEnded(1, "done", None, None, None, [NodeStats(2, "h")], [2, 2], tally=tally)
    assert actions.events == [ended]
    rest = [
        Submitted(1, 0, None, None, None), OutputsReached(1, 1, complete.objects)
    ]  # fmt: skip
    assert actions.journal == [Ended(1, "done", rest)]


def test_a_block_of_outputs_counts_once_for_each_and_repeats_not_at_all():
    driver = ready({2: 1})
    driver.submit(1, alone(4, 1))
    driver.output(2, 1, 0, 3)
    driver.output(2, 1, 0, 3)
    assert driver.events(OutputsComplete) == []
    driver.output(2, 1, 3)
    (complete,) = driver.events(OutputsComplete)
    assert [info.first for _, info, _ in complete.objects] == [0, 3]


def test_outputs_are_told_one_by_one_where_that_is_asked():
    driver = ready({2: 1})
    driver.submit(1, plan_of([[], [], []], [0, 3], [0, 1, 2]))
    driver.output(2, 1, 1)
    assert driver.events(OutputsArrived) == []
    driver.core.stream_outputs(1, driver.now)
    driver.take()
    assert [
        told.first for event in driver.events(OutputsArrived) for _, told, _ in event.objects
    ] == [1]
    driver.core.stream_outputs(1, driver.now)
    driver.take()
    assert driver.events(OutputsArrived) == []
    driver.output(2, 1, 0)
    (event,) = driver.events(OutputsArrived)
    assert [told.first for _, told, _ in event.objects] == [0]
    driver.output(2, 1, 2)
    (event,) = driver.events(OutputsArrived)
    assert [told.first for _, told, _ in event.objects] == [2]
    (complete,) = driver.events(OutputsComplete)
    assert [told.first for _, told, _ in complete.objects] == [1, 0, 2]
    driver.core.stream_outputs(99, driver.now)  # of no run that there is
    driver.take()
    assert driver.events(OutputsArrived) == []


def test_outputs_that_come_again_after_a_loss_are_told_again():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(2, 2))
    home = {subtree: broker for broker, subtrees in driver.placed().items() for subtree in subtrees}
    driver.core.stream_outputs(1, driver.now)
    there = Location("segment", 0, 9)
    driver.receive(home[0], OutputsReady(1, 1, [ObjectInfo(0, 1, 9, there)]))
    assert len(driver.events(OutputsArrived)) == 1
    driver.core.peer_lost(home[0], "it died", driver.now)
    driver.take()
    driver.tell(home[1], 1, 1, works=[(1, 1, [1])])
    driver.receive(home[1], OutputsReady(1, 1, [ObjectInfo(0, 1, 9, there)]))
    (event,) = driver.events(OutputsArrived)
    assert [(broker, told.first) for broker, told, _ in event.objects] == [(home[1], 0)]


def test_outputs_that_the_client_has_refs_to_are_kept_until_dropped():
    driver = ready({2: 1})
    finished(driver, 1, plan_of([[], []], [0, 2], [0, 1]))
    driver.core.outputs_taken(1, driver.now, [1])
    driver.take()
    assert driver.sent(2, EndRun) == [Parcel(EndRun(1, [1]))]
    driver.closed(2, 1)
    driver.core.drop_ref(1, 1, driver.now)
    driver.take()
    assert driver.sent(2, Release) == [Parcel(Release(1), [ints(1)])]


def test_an_empty_run_ends_at_once():
    driver = ready({2: 1})
    actions = driver.submit(1, plan_of([], [0], [0], sources=[ConstantSource(b"c")]))
    assert actions.events == [
        OutputsComplete(1, []), RunEnded(1, "done", None, None, None, [], [])
    ]  # fmt: skip
    assert actions.to_brokers == {}


def test_objects_of_refs_are_kept_until_dropped():
    driver = ready({2: 1})
    plan = plan_of([[], [0]], [0, 2], [1], flags={0: REFERENCED, 1: META})
    finished(driver, 1, plan, refs=[(1, 0)])
    driver.core.outputs_taken(1, driver.now)
    driver.take()
    assert driver.sent(2, EndRun) == [Parcel(EndRun(1, [0]))]
    driver.closed(2, 1)
    driver.core.fetch(8, 1, 0, driver.now)
    driver.take()
    assert driver.sent(2, FetchValue) == [Parcel(FetchValue(8, 1, 0))]
    info = ObjectInfo(0, 1, 3)
    assert driver.receive(2, Value(8, info), b"abc").events == [ValueArrived(8, 2, info, b"abc")]
    driver.core.drop_ref(1, 0, driver.now)
    driver.take()
    assert driver.sent(2, Release) == [Parcel(Release(1), [ints(0)])]
    driver.core.fetch(9, 1, 0, driver.now)
    assert driver.take().events == [ValueArrived(9, 0, None, None)]


def test_a_ref_to_a_constant_is_kept_where_a_meta_task_got_it():
    constants = [ConstantSource(b"c")]
    plan = plan_of([[2], [2]], [0, 1, 2], [0, 1], sources=constants, flags={1: META, 2: REFERENCED})
    driver = ready({2: 1, 3: 1})
    driver.submit(1, plan)
    assert driver.placed() == {2: [0], 3: [1]}
    for broker, subtree, refs in ((2, 0, ()), (3, 1, [(1, 2)])):
        driver.output(broker, 1, subtree, refs=refs)
        driver.done(broker, 1, subtree)
    driver.core.outputs_taken(1, driver.now)
    driver.take()
    assert driver.sent(2, EndRun) == [Parcel(EndRun(1, []))]
    assert driver.sent(3, EndRun) == [Parcel(EndRun(1, [2]))]


def test_a_ref_dropped_before_the_end_is_not_kept():
    driver = ready({2: 1})
    plan = plan_of([[], [0]], [0, 2], [1], flags={0: REFERENCED, 1: META})
    finished(driver, 1, plan, refs=[(1, 0)])
    driver.core.drop_ref(1, 0, driver.now)
    driver.core.outputs_taken(1, driver.now)
    driver.take()
    assert driver.sent(2, EndRun) == [Parcel(EndRun(1, []))]
    assert driver.sent(2, Release) == []


def test_a_ref_in_use_by_a_run_outlives_its_drop():
    driver = ready({2: 1})
    finished(driver, 1, plan_of([[]], [0, 1], [0], flags={0: PERSISTED}))
    driver.core.outputs_taken(1, driver.now)
    driver.take()
    assert driver.sent(2, EndRun) == [Parcel(EndRun(1, [0]))]
    driver.closed(2, 1)
    finished(driver, 2, plan_of([[1]], [0, 1], [0], sources=[RefSource(1, 0, 8)]))
    driver.core.drop_ref(1, 0, driver.now)
    driver.take()
    assert driver.sent(2, Release) == []
    driver.core.outputs_taken(2, driver.now)
    driver.take()
    driver.closed(2, 2)
    assert driver.sent(2, Release) == [Parcel(Release(1), [ints(0)])]


def test_a_source_that_is_gone_loses_the_run_by_name():
    driver = ready({2: 1})
    driver.submit(1, plan_of([[1]], [0, 1], [0], sources=[RefSource(77, 5, 8)]))
    (ended,) = driver.events(RunEnded)
    assert (ended.state, ended.failure.type_name) == ("lost", "ObjectLost")
    assert "position 5 of run 77" in ended.failure.text


def test_the_first_failure_ends_the_run():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(2, 2))
    failure = Failure(1, 1, "raised", type_name="ValueError")
    actions = driver.receive(3, TaskFailed(1, 1, failure), b"pickle")
    for broker in (2, 3):
        assert actions.to_brokers[broker] == [Parcel(CancelRun(1, 5.0)), Parcel(EndRun(1, []))]
    assert actions.journal == [Failed(1, failure, b"pickle", 3)]
    driver.receive(2, TaskFailed(1, 1, Failure(0, 1, "raised")), b"other")
    driver.closed(2, 1)
    driver.closed(3, 1)
    (ended,) = driver.events(RunEnded)
    assert (ended.state, ended.failure, ended.failure_frame, ended.node) == (
        "failed", failure, b"pickle", 3
    )  # fmt: skip


def test_cancel_and_timeout_stop_a_run():
    driver = ready({2: 1})
    driver.submit(1, alone(2, 1))
    driver.core.cancel(1, driver.now)
    driver.take()
    assert driver.sent(2, CancelRun) == [Parcel(CancelRun(1, 0.2))]
    driver.core.cancel(1, driver.now)
    assert driver.take().to_brokers == {}
    assert driver.closed(2, 1).events[0].state == "cancelled"
    driver.submit(2, alone(2, 1), timeout_s=0.5)
    assert driver.core.next_timer() == driver.now + 0.5
    driver.pass_time(0.5)
    assert driver.sent(2, EndRun) == [Parcel(EndRun(2, []))]
    assert driver.closed(2, 2).events[0].state == "timed_out"


def test_stale_messages_are_counted_and_dropped():
    driver = ready({2: 1})
    driver.submit(1, alone(2, 1))
    driver.done(2, 1, 0, attempt=2)
    driver.done(2, 1, 0, epoch=2)
    driver.done(2, 9, 0)
    driver.closed(2, 1)
    driver.receive(2, TaskFailed(9, 1, Failure(0, 1, "raised")))
    assert driver.core.stale_count == 5
    driver.done(2, 1, 0)
    driver.done(2, 1, 0)
    assert driver.core.stale_count == 6
    assert driver.events(RunEnded) == []


def test_stats_are_of_all_nodes():
    driver = ready({2: 1, 3: 1})
    driver.core.surveys.ask(4, is_watched=False)
    driver.take()
    assert driver.sent(3, AskStats) == [Parcel(AskStats(4))]
    assert driver.receive(3, Stats(4, NodeStats(3, "h"))).events == []
    actions = driver.receive(2, Stats(4, NodeStats(2, "h")))
    [event] = actions.events
    assert event.stats == [NodeStats(2, "h"), NodeStats(3, "h")]
    assert event.counters["stale_messages"] == 0


def test_close_shuts_all_brokers_down_and_ends_runs():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(2, 2))
    driver.core.close(driver.now)
    actions = driver.take()
    assert actions.to_brokers == {2: [Parcel(Shutdown())], 3: [Parcel(Shutdown())]}
    assert [event.state for event in actions.events] == ["cancelled"]
    assert driver.core.next_timer() is None
    driver.core.close(driver.now)
    assert driver.take() == MasterActions()


# --- nodes are lost -------------------------------------------------------------------------------


def test_what_a_lost_node_had_is_placed_again_when_the_rest_has_told():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(2, 2))
    driver.output(2, 1, 0)
    driver.core.peer_lost(3, "gone", driver.now)
    driver.take()
    assert driver.events(NodeRemoved) == [NodeRemoved(3, "gone")]
    assert driver.sent(2, AskHoldings) == [Parcel(AskHoldings(1, [1]))]
    assert driver.placed() == {}
    driver.done(2, 1, 0)  # told before the answer: it counts
    driver.tell(2, 1, 1, has=[0], works=[(0, 1, [])])
    (parcel,) = driver.sent(2, PlaceSubtree)
    assert (parcel.message.subtree, parcel.message.attempt) == (2, 2)
    assert bytes(parcel.frames[0]) == ints(1)
    driver.output(2, 1, 1)
    assert len(driver.events(OutputsComplete)) == 1
    driver.done(2, 1, 2, attempt=2)
    assert driver.core.counters["recomputed_tasks"] == 0, "nobody has said that it was executed"


@pytest.mark.parametrize(("told_count", "again"), [(0, 0), (3, 3), (9, 6)])
def test_of_what_went_with_a_node_only_tasks_that_had_been_executed_are_counted(
    told_count: int, again: int
):
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(12, 2))
    if told_count:
        driver.receive(3, Progress(1, told_count))
    driver.core.peer_lost(3, "gone", driver.now)
    driver.take()
    driver.tell(2, 1, 1, works=[(0, 1, range(6))])
    assert driver.placed() == {2: [2]}
    assert driver.core.counters["recomputed_tasks"] == again
    assert driver.core._lives.runs[1].tally.get("recomputed", 0) == again


def test_only_what_nobody_has_is_computed_again():
    # 0 and 1 on node 2; 2 = f(0) and 3 = f(1) on node 3, which has fetched 0, not yet 1.
    plan = plan_of([[], [], [0], [1]], [0, 2, 4], [2, 3])
    driver = ready({2: 1, 3: 1})
    driver.submit(1, plan)
    assert driver.placed() == {2: [0], 3: [1]}
    driver.core.peer_lost(2, "gone", driver.now)
    driver.take()
    driver.tell(3, 1, 1, has=[0], lacks=[1], works=[(1, 1, [2, 3])])
    (parcel,) = driver.sent(3, PlaceSubtree)
    assert bytes(parcel.frames[0]) == ints(1)
    assert driver.sent(3, Relocate) == [Parcel(Relocate(1), [ints(1), ints(3)])]
    assert driver.sent(3, Release) == []  # of 0, which its subtree still needs


def test_a_lost_node_that_nobody_needs_costs_the_run_a_question():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(2, 2))
    driver.output(3, 1, 1)
    driver.done(3, 1, 1)
    driver.core.peer_lost(3, "gone", driver.now)
    driver.take()
    assert driver.sent(2, EndRun) == []
    driver.tell(2, 1, 1, works=[(0, 1, [0])])
    assert driver.placed() == {}
    driver.output(2, 1, 0)
    driver.done(2, 1, 0)
    driver.core.outputs_taken(1, driver.now)
    driver.take()
    driver.closed(2, 1)
    assert [event.state for event in driver.events(RunEnded)] == ["done"]


def test_a_loss_while_brokers_are_asked_asks_the_rest_anew():
    driver = ready({2: 1, 3: 1, 4: 1})
    driver.submit(1, alone(3, 3))
    driver.core.peer_lost(3, "gone", driver.now)
    driver.take()
    driver.core.peer_lost(4, "gone", driver.now)
    driver.take()
    assert driver.sent(2, AskHoldings) == [Parcel(AskHoldings(2, [1]))]
    driver.tell(2, 1, 1, works=[(0, 1, [0])])
    assert driver.core.stale_count == 1
    driver.tell(2, 1, 2, works=[(0, 1, [0])])
    members = [bytes(parcel.frames[0]) for parcel in driver.sent(2, PlaceSubtree)]
    assert sorted(members) == [ints(1), ints(2)]


def test_a_removed_node_is_drained_emptied_and_let_go():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, plan_of([[], [], [0, 1]], [0, 1, 2, 3], [2]))
    home = {subtree: broker for broker, subtrees in driver.placed().items() for subtree in subtrees}
    leaver = home[0]
    other = 5 - leaver
    driver.done(leaver, 1, 0, exports=[0], sizes=[5])
    driver.core.set_nodes([node for node in driver.wanted if node[0] == other], driver.now)
    driver.take()
    assert driver.sent(leaver, DrainRun) == [Parcel(DrainRun(1))]
    driver.receive(leaver, Drained(1))
    assert driver.sent(leaver, AskHoldings)
    works = [(s, 1, [s]) for s in (1, 2) if home.get(s) == leaver]
    others = [(s, 1, [s]) for s in (1, 2) if home.get(s) == other]
    driver.tell(leaver, 1, 1, has=[0], works=works)
    if driver.core._lives.runs[1].recovery is not None:
        driver.tell(other, 1, 1, works=others)
    (taking,) = driver.sent(other, TakeObjects)
    assert (taking.message.source_broker, taking.frames) == (leaver, [ints(0)])
    assert driver.sent(leaver, Shutdown) == []
    driver.receive(other, ObjectsTaken(1), ints(0), b"")
    assert driver.sent(leaver, Shutdown) == [Parcel(Shutdown())]
    assert driver.core.counters["moved_objects"] == 1


def removed_while_copied(driver: Driver, leaver: int, other: int) -> None:
    """Node `leaver` goes as planned while the client copies outputs, and moves its value."""
    driver.core.set_nodes([node for node in driver.wanted if node[0] == other], driver.now)
    driver.take()
    driver.receive(leaver, Drained(1))
    driver.tell(leaver, 1, 1, has=[0, 1])
    driver.tell(other, 1, 1, works=[(1, 1, [2])])
    assert driver.sent(other, TakeObjects)
    driver.receive(other, ObjectsTaken(1), ints(0, 1), b"")
    assert driver.sent(leaver, Shutdown) == [Parcel(Shutdown())]


def announced(driver: Driver) -> int:
    """A run has ended but for one task; returns who has its output, and what that refers to."""
    flags = {0: REFERENCED | PERSISTED, 1: META}
    driver.submit(1, plan_of([[], [0], []], [0, 2, 3], [1], flags=flags))
    home = {subtree: broker for broker, subtrees in driver.placed().items() for subtree in subtrees}
    driver.done(home[0], 1, 0, exports=[0, 1], sizes=[5, 5])
    driver.output(home[0], 1, 1, refs=[(1, 0)])
    assert driver.events(OutputsComplete)
    return home[0]


def test_what_refs_name_moves_with_the_objects_of_a_run_that_goes_on():
    driver = ready({2: 1, 3: 1})
    leaver = announced(driver)
    other = 5 - leaver
    removed_while_copied(driver, leaver, other)
    driver.tell(other, 1, 2, has=[0, 1], works=[(1, 1, [2])])
    driver.core.outputs_taken(1, driver.now)
    driver.done(other, 1, 1)
    assert driver.sent(other, EndRun) == [Parcel(EndRun(1, [0]))]
    driver.closed(other, 1)
    (ended,) = driver.events(RunEnded)
    assert ended.kept_brokers == {0: other}


def test_what_refs_name_is_computed_again_before_the_client_has_them():
    driver = ready({2: 1, 3: 1})
    lost = announced(driver)
    other = 5 - lost
    driver.core.peer_lost(lost, "gone", driver.now)
    driver.tell(other, 1, 1, works=[(1, 1, [2])])
    again = driver.placed()[other]
    driver.done(other, 1, again[0], exports=[0], sizes=[5], attempt=2)
    driver.core.outputs_taken(1, driver.now)
    driver.done(other, 1, 1)
    assert driver.sent(other, EndRun) == [Parcel(EndRun(1, [0]))]


def test_who_collects_a_value_of_a_lost_node_is_told_where_it_is_made_again():
    driver = ready({2: 1, 3: 1})
    flags = {0: REFERENCED, 1: META}
    driver.submit(1, plan_of([[], [0]], [0, 1, 2], [1], flags=flags))
    home = {subtree: broker for broker, subtrees in driver.placed().items() for subtree in subtrees}
    lost = home[0]
    collector = 5 - lost
    driver.core.peer_lost(lost, "gone", driver.now)
    driver.take()
    # Its holdings can't say so: the task has begun, and nothing waits for the value but it.
    driver.receive(collector, AskWhere(1, 0))
    driver.tell(collector, 1, 1, works=[(1, 1, [1])] if home[1] == collector else [])
    assert driver.placed()[collector]
    assert Parcel(Relocate(1), [ints(0), ints(collector)]) in driver.sent(collector, Relocate)


def test_what_was_taken_over_for_a_ref_that_is_gone_is_released():
    driver = ready({2: 1, 3: 1})
    driver.receive(2, ObjectsTaken(9), ints(4), b"")
    assert driver.sent(2, Release) == [Parcel(Release(9), [ints(4)])]


def test_a_dropped_node_goes_at_once():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(2, 2))
    driver.core.set_nodes(driver.wanted[:1], driver.now, drop=True)
    driver.take()
    assert driver.sent(3, Shutdown) == [Parcel(Shutdown())]
    assert driver.core.counters["node_losses"] == 0
    driver.tell(2, 1, 1, works=[(0, 1, [0])])
    assert [bytes(p.frames[0]) for p in driver.sent(2, PlaceSubtree)] == [ints(1)]


def test_a_run_is_resumed_from_its_plan_and_what_orphans_tell():
    driver = ready({2: 1})
    driver.core.expect_orphans(1)
    driver.core.resume(
        9, plan_of([[], [0], [1], []], [0, 2, 4], [2, 3]), RunPast(), driver.now, priority=3
    )
    driver.take()
    assert driver.placed() == {}
    orphan = BrokerHello(10**9, 9, "h", "at", own_version(), [9], [3, 4])
    driver.receive(10**9, orphan)
    assert driver.sent(10**9, AskHoldings) == [Parcel(AskHoldings(1, [9], True))]
    driver.output(10**9, 9, 3)
    driver.tell(10**9, 9, 1, has=[1], works=[(0, 1, []), (5, 2, [])])
    (parcel,) = driver.sent(2, PlaceSubtree)
    assert (parcel.message.subtree, parcel.message.priority) == (6, 3)
    assert bytes(parcel.frames[0]) == ints(2)
    assert bytes(parcel.frames[7]) == ints(10**9)
    driver.output(2, 9, 2)
    assert len(driver.events(OutputsComplete)) == 1


def test_a_resumed_run_doesn_t_wait_for_orphans_for_ever():
    driver = ready({2: 1}, orphans_timeout_s=1.0)
    driver.core.expect_orphans(2)
    info = ObjectInfo(0, 1, 5)
    driver.core.resume(9, alone(2, 1), RunPast([(info, b"bytes")]), driver.now)
    driver.take()
    assert driver.placed() == {}
    driver.pass_time(1.0)
    (parcel,) = driver.sent(2, PlaceSubtree)
    assert bytes(parcel.frames[0]) == ints(1)


def test_an_orphan_that_comes_when_its_runs_are_over_leaves():
    driver = ready({2: 1}, orphans_timeout_s=1.0)
    driver.core.expect_orphans(2)
    driver.core.resume(9, alone(1, 1), RunPast([(ObjectInfo(0, 1, 5), b"bytes")]), driver.now)
    driver.core.resume(10, alone(1, 1), RunPast(), driver.now)
    driver.pass_time(1.0)
    driver.core.outputs_taken(9, driver.now)
    driver.take()
    assert [event.run for event in driver.events(RunEnded)] == [9]
    driver.receive(10**9, BrokerHello(10**9, 9, "h", "at", own_version(), [9, 10]))
    assert driver.sent(10**9, EndRun) == [Parcel(EndRun(9, []))]
    driver.receive(10**9 + 1, BrokerHello(10**9 + 1, 9, "h", "at", own_version(), [9]))
    assert len(driver.sent(10**9 + 1, Shutdown)) == 1
    assert driver.sent(10**9, Shutdown) == []


def test_an_output_that_lives_as_an_input_elsewhere_is_told_of_from_there():
    plan = plan_of([[], [0]], [0, 1, 2], [0, 1])
    driver = ready({2: 1, 3: 1})
    driver.core.expect_orphans(1)
    driver.core.resume(9, plan, RunPast(), driver.now)
    driver.receive(10**9, BrokerHello(10**9, 9, "h", "at", own_version(), [9]))
    driver.tell(10**9, 9, 1, has=[0], works=[(1, 1, [1])])
    assert driver.sent(10**9, TellOutputs) == [Parcel(TellOutputs(9), [ints(0)])]
    assert driver.placed() == {}


def test_a_value_lost_too_often_ends_the_run():
    driver = ready({2: 1, 3: 1}, recovery_limit=1)
    driver.submit(1, plan_of([[], [0]], [0, 1, 2], [1], flags={0: REFERENCED}))
    for number in (1, 2):
        home = 2 if driver.sent(2, PlaceSubtree) else 3
        subtrees = [parcel.message for parcel in driver.sent(home, PlaceSubtree)]
        for message in subtrees:
            if message.lo == 0:
                driver.done(home, 1, message.subtree, attempt=message.attempt)
        driver.core.peer_lost(home, "gone", driver.now)
        driver.take()
        if not driver.events(RunEnded) and driver.core._lives.runs[1].recovery is not None:
            driver.tell(5 - home, 1, number)
        driver.wanted = [node for node in driver.wanted if node[0] != home] + [(home, "h", (9,))]
        placed = driver.actions
        driver.core.set_nodes(driver.wanted, driver.now)
        driver.take()
        driver.actions = placed
        if number == 1:
            driver.join(home)
            driver.actions = placed
    failures = [event.failure for event in driver.events(RunEnded)]
    assert [failure.type_name for failure in failures] == ["ObjectLost"]
    assert "recovery_limit" in failures[0].text


def test_a_broker_started_anew_joins_under_a_higher_epoch():
    driver = ready({2: 1})
    driver.submit(1, alone(2, 1))
    driver.hello(2)
    assert driver.events(NodeRemoved) == [NodeRemoved(2, "node 2 was started anew")]
    assert driver.sent(2, Welcome) == [Parcel(Welcome(2, 2))]
    driver.receive(2, ExecutorChanged(200, 78, 0))
    (parcel,) = driver.sent(2, PlaceSubtree)
    assert (parcel.message.attempt, parcel.message.functions[0][1]) == (2, True)


def test_fetches_and_stats_don_t_wait_for_the_dead():
    driver = ready({2: 1, 3: 1})
    finished_plan = plan_of([[]], [0, 1], [0], flags={0: PERSISTED})
    finished(driver, 1, finished_plan)
    driver.core.fetch(5, 1, 0, driver.now)
    driver.core.surveys.ask(6, is_watched=False)
    driver.receive(3, Stats(6, NodeStats(3, "h")))
    driver.core.peer_lost(2, "gone", driver.now)
    driver.take()
    assert driver.events(ValueArrived) == [ValueArrived(5, 2, None, None)]
    assert [event.stats for event in driver.events(StatsArrived)] == [[NodeStats(3, "h")]]


# --- graphs that tasks return ---------------------------------------------------------------------


def test_a_returned_graph_becomes_a_run_and_its_value_the_task_s():
    driver = ready({2: 1, 3: 1})
    driver.submit(1, alone(2, 2))
    child_plan = plan_of([[], [0]], [0, 1, 2], [1])
    driver.receive(3, TaskExpanded(1, 1, 1), *encode_plan(child_plan))
    child = CHILD_RUNS_FROM
    holder = next(b for b, numbers in driver.placed().items() if 1 in numbers)
    driver.output(holder, child, 1)
    assert driver.sent(3, Redirect) == [Parcel(Redirect(1, 1, child, 1, holder))]
    driver.done(3, 1, 1)
    assert any(driver.sent(broker, EndRun) for broker in (2, 3))  # its value has been copied
    assert driver.events(RunEnded) == []


def test_failures_below_carry_the_position_of_the_root_s_task():
    one = plan_of([[], [0], [1]], [0, 3], [2])
    driver = ready({2: 1})
    driver.submit(1, alone(2, 1))
    driver.receive(2, TaskExpanded(1, 1, 1), *encode_plan(one))
    driver.receive(2, TaskExpanded(CHILD_RUNS_FROM, 1, 2), *encode_plan(one))
    failure = Failure(0, 1, "raised", text="deep")
    driver.receive(2, TaskFailed(CHILD_RUNS_FROM + 1, 1, failure), b"x")
    assert [p.message.run for p in driver.sent(2, EndRun)] == [
        1, CHILD_RUNS_FROM, CHILD_RUNS_FROM + 1
    ]  # fmt: skip
    for run in (CHILD_RUNS_FROM, 1, CHILD_RUNS_FROM + 1):
        driver.closed(2, run)
    (ended,) = driver.events(RunEnded)
    assert (ended.run, ended.failure.position, ended.failure.text) == (1, 1, "deep")


def test_a_returned_graph_that_is_garbage_fails_the_task():
    driver = ready({2: 1})
    driver.submit(1, alone(2, 1))
    driver.receive(2, TaskExpanded(1, 1, 1), b"garbage")
    (failed,) = [record for record in driver.actions.journal if isinstance(record, Failed)]
    assert (failed.failure.position, failed.failure.kind) == (1, "result")


# --- what must not be -----------------------------------------------------------------------------


def test_inconsistent_plans_are_refused():
    driver = ready({2: 1})
    with pytest.raises(GraphError, match="outside its 2 positions: 5 to 5"):
        driver.core.submit(1, plan_of([[], [5]], [0, 2], [0]), 0.0)
    with pytest.raises(GraphError, match="inconsistent"):
        driver.core.submit(1, replace(alone(2, 1), chunks=[]), 0.0)
    # No node would take it, and nobody would say so.
    plan = plan_of([[]], [0, 1], [0])
    known = plan.functions[0]
    plan = replace(
        plan, functions=[known, known], function_pickles=[b"", b""],
        function_of=np.array([1], np.int32),
    )  # fmt: skip
    with pytest.raises(GraphError, match="a function outside its 1 functions: 1 to 1"):
        driver.core.submit(1, plan, 0.0)


def test_impossible_messages_are_protocol_errors():
    driver = ready({2: 1})
    driver.submit(1, alone(2, 1))
    with pytest.raises(ProtocolError):
        driver.core.receive(2, SubtreeDone(1, 1, 5, 1, ()), [b"", b""], 0.0)
    with pytest.raises(ProtocolError):
        driver.core.receive(2, OutputsReady(1, 1, [ObjectInfo(7, 1, 5)]), [b"x"], 0.0)


def test_illegal_moves_tell_the_story():
    driver = ready({2: 1})
    driver.submit(1, alone(2, 1))
    run: MasterRun = driver.core._lives.runs[1]
    with pytest.raises(InternalError, match=r"subtree 0 of run 1 .* from PLACED to READY"):
        run.subtrees[0].move(SubtreeState.READY)
    with pytest.raises(InternalError, match=r"run 1 .* from RUNNING to ENDED"):
        run.move(RunState.ENDED)


@pytest.mark.parametrize(
    "harm",
    [
        lambda core: core._lives.runs[1].shares[2].__setattr__("unfinished_count", 5),
        lambda core: core._lives.runs[1].__setattr__("unfinished_count", 7),
        lambda core: core._lives.runs[1].__setattr__("missing_count", 0),
        lambda core: core._lives.runs[1].closing.add(99),
        lambda core: core._members.nodes[2].__setattr__("load_s", 3.0),
        lambda core: core._lives.runs[1].family.clear(),
    ],
)
def test_check_notices_wrong_counts(harm):
    driver = ready({2: 1})
    driver.submit(1, alone(2, 1))
    harm(driver.core)
    with pytest.raises(InternalError, match="master: "):
        driver.core.check()
