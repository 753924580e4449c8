"""MasterCore against brokers that do anything in any order: its rules hold, and all runs end."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dagsched.config import Config
from dagsched.master.core import MasterCore, own_version
from dagsched.master.events import OutputsComplete, RunEnded
from dagsched.plan import RunPlan
from dagsched.protocol.messages import (
    EXPORTED,
    OUTPUT,
    BrokerHello,
    EndRun,
    ExecutorChanged,
    Failure,
    FunctionInfo,
    NodeStats,
    ObjectInfo,
    OutputsReady,
    PlaceSubtree,
    Release,
    RunClosed,
    Shutdown,
    SubtreeDone,
    TaskFailed,
)

BROKERS = (2, 3, 4)


@st.composite
def plans(draw: st.DrawFn) -> RunPlan:
    """Subtrees of two tasks; each task depends on some of earlier subtrees, or of any."""
    subtrees = draw(st.integers(1, 6))
    interlocked = draw(st.booleans())
    count = 2 * subtrees
    deps = []
    for task in range(count):
        own = task // 2
        others = [t for t in range(count) if t // 2 != own and (interlocked or t // 2 < own)]
        deps.append(
            draw(st.lists(st.sampled_from(others), max_size=3, unique=True)) if others else []
        )
    flags = np.zeros(count, np.uint8)
    flags[[d for row in deps for d in row]] |= EXPORTED
    outputs = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=4))
    flags[outputs] |= OUTPUT
    return RunPlan(
        subtree_starts=np.arange(0, count + 1, 2),
        interlocked=interlocked,
        indptr=np.cumsum([0] + [len(row) for row in deps]),
        deps=np.array([d for row in deps for d in row], np.int32),
        function_of=np.zeros(count, np.int32),
        flags=flags,
        level_starts=np.zeros(0, np.int32),
        functions=[FunctionInfo(0, b"d", "f", draw(st.sampled_from((None, 1e-6, 1.0))))],
        function_pickles=[b"p"],
        chunks=[b"c"],
        options={},
        outputs=np.array(outputs, np.int32),
        sources=[],
    )


class MasterMachine(RuleBasedStateMachine):
    """Brokers are lists of what they were sent; rules answer any of it, in any order of runs."""

    def __init__(self) -> None:
        super().__init__()
        self.core = MasterCore(Config(start_timeout_s=1e6, lease_s=1e6, no_nodes_grace_s=1e6))
        self.now = 0.0
        self.joined: dict[int, bool] = {}
        self.plan_by_run: dict[int, RunPlan] = {}
        self.placed: dict[tuple[int, int], tuple[int, PlaceSubtree]] = {}  # by run and subtree
        self.done: set[tuple[int, int]] = set()
        self.released: set[tuple[int, int]] = set()
        self.to_close: list[tuple[int, int]] = []
        self.closing: set[tuple[int, int]] = set()
        self.complete: set[int] = set()
        self.ended: dict[int, str] = {}
        self.stopped: set[int] = set()
        self.epoch_by_run: dict[int, int] = {}

    @initialize(brokers=st.sets(st.sampled_from(BROKERS), min_size=1))
    def begin(self, brokers: set[int]) -> None:
        self.want(brokers)

    def want(self, brokers: set[int]) -> None:
        nodes = [(b, "h", tuple(range(10 * b, 10 * b + b))) for b in sorted(brokers)]
        self.core.set_nodes(nodes, self.now)
        self.wanted = set(brokers)
        self.take()

    def send(self, broker: int, message: object, *frames: bytes) -> None:
        self.core.receive(broker, message, frames, self.now)  # type: ignore[arg-type]
        self.take()

    def take(self) -> None:
        actions = self.core.take_actions()
        for broker in actions.disconnect:
            self.joined.pop(broker, None)
        sent = [
            (broker, message, frames)
            for broker, parcels in actions.to_brokers.items()
            for message, frames in parcels
        ]
        for broker, message, frames in sent:
            if isinstance(message, Release):
                self.note_released(broker, message.run, np.frombuffer(frames[0], np.int32))
            elif isinstance(message, Shutdown):
                self.joined.pop(broker, None)
        for broker, message, _ in sent:
            if isinstance(message, EndRun):
                assert (broker, message.run) not in self.closing
                self.closing.add((broker, message.run))
                self.to_close.append((broker, message.run))
                self.forget(message.run)
        placed = [(m, frames) for _, m, frames in sent if isinstance(m, PlaceSubtree)]
        for broker, message, _ in sent:
            if isinstance(message, PlaceSubtree):
                self.note_placed(broker, message)
        for message, frames in placed:
            self.check_imports(message, frames)
        for event in actions.events:
            if isinstance(event, OutputsComplete):
                outputs = set(self.plan_by_run[event.run].outputs.tolist())
                assert {info.first for _, info, _ in event.objects} == outputs
                self.complete.add(event.run)
            elif isinstance(event, RunEnded):
                assert event.run not in self.ended
                self.ended[event.run] = event.state

    def note_placed(self, broker: int, message: PlaceSubtree) -> None:
        assert broker in self.joined
        if message.epoch > self.epoch_by_run.get(message.run, 1):
            self.forget(message.run)  # it starts anew
            self.epoch_by_run[message.run] = message.epoch
        key = (message.run, message.subtree)
        assert key not in self.placed, "a subtree is in two places"
        self.placed[key] = (broker, message)

    def check_imports(self, message: PlaceSubtree, frames: list[bytes]) -> None:
        imports, holders = (np.frombuffer(frame, np.int32).tolist() for frame in frames[5:7])
        for position, holder in zip(imports, holders, strict=True):
            assert self.placed[message.run, position // 2][0] == holder

    def open_keys(self) -> list[tuple[int, int]]:
        """Subtrees placed on living brokers, and not done."""
        keys = sorted(set(self.placed) - self.done)
        return [key for key in keys if self.placed[key][0] in self.joined]

    def note_released(self, broker: int, run: int, positions: np.ndarray) -> None:
        plan = self.plan_by_run[run]
        for position in positions.tolist():
            assert self.placed[run, position // 2][0] == broker
            assert (run, position) not in self.released
            self.released.add((run, position))
            for task in range(plan.task_count):
                row = plan.deps[plan.indptr[task] : plan.indptr[task + 1]]
                if position in row:
                    assert (run, task // 2) in self.done, "released while somebody needs it"

    def forget(self, run: int) -> None:
        for table in (self.placed, self.done, self.released):
            for key in [key for key in table if key[0] == run]:
                table.pop(key) if isinstance(table, dict) else table.discard(key)

    # --- rules ------------------------------------------------------------------------------------

    @rule(broker=st.sampled_from(BROKERS))
    def join(self, broker: int) -> None:
        if broker in self.wanted and broker not in self.joined:
            self.joined[broker] = False
            self.send(broker, BrokerHello(broker, 1, "h", "a", own_version()))

    @rule(broker=st.sampled_from(BROKERS), pid=st.sampled_from((0, 5)))
    def executor(self, broker: int, pid: int) -> None:
        if broker in self.joined:
            self.joined[broker] = bool(pid)
            self.send(broker, ExecutorChanged(10 * broker, pid, 0))

    @rule(plan=plans(), priority=st.integers(0, 2))
    def submit(self, plan: RunPlan, priority: int) -> None:
        run = len(self.plan_by_run) + 1
        self.plan_by_run[run] = plan
        self.core.submit(run, plan, self.now, priority=priority)
        self.take()

    @precondition(lambda self: self.placed)
    @rule(data=st.data())
    def subtree_done(self, data: st.DataObject) -> None:
        if self.open_keys():
            self.end_subtree(data.draw(st.sampled_from(self.open_keys())))

    def end_subtree(self, key: tuple[int, int]) -> None:
        broker, message = self.placed[key]
        plan = self.plan_by_run[message.run]
        own = [p for p in range(message.lo, message.hi) if plan.flags[p] & EXPORTED]
        for position in range(message.lo, message.hi):
            if plan.flags[position] & OUTPUT:
                info = ObjectInfo(position, 1, 1)
                self.send(broker, OutputsReady(message.run, message.epoch, [info]), b"x")
        self.done.add(key)
        done = SubtreeDone(message.run, message.epoch, message.subtree, message.attempt, ())
        positions = np.array(own, np.int32).tobytes()
        self.send(broker, done, positions, np.ones(len(own), np.int64).tobytes())
        if key[0] in self.complete:
            self.core.outputs_taken(key[0], self.now)
            self.take()

    @precondition(lambda self: self.to_close)
    @rule(data=st.data())
    def run_closed(self, data: st.DataObject) -> None:
        self.close(data.draw(st.sampled_from(self.to_close)))

    def close(self, key: tuple[int, int]) -> None:
        self.to_close.remove(key)
        self.closing.discard(key)
        if key[0] in self.joined:
            self.send(key[0], RunClosed(key[1], NodeStats(key[0], "h")))

    @rule(run=st.integers(1, 5))
    def cancel(self, run: int) -> None:
        if run in self.plan_by_run:
            self.stopped.add(run)
            self.core.cancel(run, self.now)
            self.take()

    @precondition(lambda self: self.placed)
    @rule(data=st.data())
    def task_fails(self, data: st.DataObject) -> None:
        if not self.open_keys():
            return
        broker, message = self.placed[data.draw(st.sampled_from(self.open_keys()))]
        self.stopped.add(message.run)
        failure = Failure(message.lo, 1, "raised")
        self.send(broker, TaskFailed(message.run, message.epoch, failure), b"e")

    @rule(broker=st.sampled_from(BROKERS))
    def lose(self, broker: int) -> None:
        if broker in self.joined and len(self.joined) > 1:
            self.joined.pop(broker)
            self.to_close = [key for key in self.to_close if key[0] != broker]
            self.closing = {key for key in self.closing if key[0] != broker}
            self.core.peer_lost(broker, "lost", self.now)
            self.take()

    @rule(seconds=st.floats(0.01, 2.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for broker in self.joined:
            self.core.receive(broker, ExecutorChanged(10 * broker + 1, 6, 0), (), self.now)
            self.joined[broker] = True
        self.core.handle_timer(self.now)
        self.take()

    @rule(brokers=st.sets(st.sampled_from(BROKERS), min_size=1))
    def reset(self, brokers: set[int]) -> None:
        if brokers & set(self.joined):
            self.want(brokers)

    @invariant()
    def core_is_consistent(self) -> None:
        self.core.check()

    def teardown(self) -> None:
        """With a living node and brokers that answer, every run ends."""
        if not hasattr(self, "wanted"):
            return
        for broker in self.wanted - set(self.joined):
            self.join(broker)
        self.time_passes(0.1)
        for _ in range(400):
            open_keys = self.open_keys()
            if self.to_close:
                self.close(self.to_close[0])
            elif open_keys:
                self.end_subtree(open_keys[0])
            else:
                break
        assert set(self.ended) == set(self.plan_by_run)
        for run, state in self.ended.items():
            assert state == "done" or run in self.stopped
        self.core.check()


TestMasterMachine = MasterMachine.TestCase
TestMasterMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
