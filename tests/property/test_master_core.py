"""MasterCore against brokers that do anything in any order: its rules hold, and all runs end.

Brokers are played as what they hold: values come and go, and a task ends only where all its inputs
are. So whatever the master forgets, releases too early or places twice shows as a run without end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dagsched.config import Config
from dagsched.master.core import MasterCore, own_version
from dagsched.master.events import OutputsComplete, RunEnded
from dagsched.plan import RunPlan
from dagsched.protocol.messages import (
    EXPORTED,
    OUTPUT,
    AskHoldings,
    BrokerHello,
    Drained,
    DrainRun,
    EndRun,
    ExecutorChanged,
    Failure,
    FunctionInfo,
    Holdings,
    NodeStats,
    ObjectInfo,
    ObjectsTaken,
    OutputsReady,
    PlaceSubtree,
    Release,
    Relocate,
    RunClosed,
    SetPeers,
    Shutdown,
    SubtreeDone,
    TakeObjects,
    TaskFailed,
    TellOutputs,
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
        # Interlocked: each subtree has a task of the first level and one of the second.
        rank = (task % 2, task)
        others = [
            t
            for t in range(count)
            if t // 2 != own and ((t % 2, t) < rank if interlocked else t // 2 < own)
        ]
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


@dataclass
class Part:
    """A subtree, or a piece of one, at a broker."""

    message: PlaceSubtree
    left: list[int]  # tasks not ended


@dataclass
class Share:
    """What a broker has of a run."""

    values: set[int] = field(default_factory=set)
    wants: dict[int, int] = field(default_factory=dict)  # position: who is asked for it
    taking: set[int] = field(default_factory=set)  # of those, for `ObjectsTaken`
    parts: dict[int, Part] = field(default_factory=dict)
    draining: bool = False


class Brokers:
    """All living brokers; what they send waits in `answers`, in order for each of them."""

    def __init__(self) -> None:
        self.plan_by_run: dict[int, RunPlan] = {}
        self.shares: dict[int, dict[int, Share]] = {}
        self.answers: dict[int, list[tuple[object, tuple[bytes, ...]]]] = {}
        self.peers: dict[int, set[int]] = {}  # as each was told

    def join(self, broker: int) -> None:
        self.shares[broker] = {}
        self.answers[broker] = []
        self.peers[broker] = set()

    def leave(self, broker: int) -> None:
        self.shares.pop(broker, None)
        self.answers.pop(broker, None)

    def share(self, broker: int, run: int) -> Share:
        return self.shares[broker].setdefault(run, Share())

    def deps(self, run: int, task: int) -> list[int]:
        plan = self.plan_by_run[run]
        return plan.deps[plan.indptr[task] : plan.indptr[task + 1]].tolist()

    def answer(self, broker: int, message: object, *frames: bytes) -> None:
        self.answers[broker].append((message, frames))

    # --- from the master --------------------------------------------------------------------------

    def take(self, broker: int, message: object, frames: list[bytes]) -> None:
        arrays = [np.frombuffer(frame, np.int32).tolist() for frame in frames[:1]]
        match message:
            case PlaceSubtree():
                self.place(broker, message, frames)
            case Release():
                self.release(broker, message.run, arrays[0])
            case AskHoldings():
                for run in message.runs:
                    self.tell(broker, run, message.number)
            case Relocate():
                share = self.share(broker, message.run)
                holders = np.frombuffer(frames[1], np.int32).tolist()
                for position, holder in zip(arrays[0], holders, strict=True):
                    share.wants.pop(position, None)
                    if position not in share.values and holder != broker:
                        share.wants[position] = holder
            case TakeObjects():
                share = self.share(broker, message.run)
                for position in arrays[0]:
                    share.taking.add(position)
                    if position not in share.values:
                        share.wants[position] = message.source_broker
            case TellOutputs():
                self.tell_outputs(broker, message.run, arrays[0])
            case SetPeers():
                stay = set() if message.gone is None else self.peers[broker] - {*message.gone}
                self.peers[broker] = stay | {peer for peer, _, _ in message.peers}
            case DrainRun():
                self.share(broker, message.run).draining = True
                self.answer(broker, Drained(message.run))
            case EndRun():
                self.shares[broker].pop(message.run, None)
                self.answer(broker, RunClosed(message.run, NodeStats(broker, "h")))
            case _:
                pass

    def place(self, broker: int, message: PlaceSubtree, frames: list[bytes]) -> None:
        members, imports, holders = (
            np.frombuffer(frames[index], np.int32).tolist() for index in (0, 6, 7)
        )
        share = self.share(broker, message.run)
        assert message.subtree not in share.parts, "a subtree is placed twice"
        tasks = members or list(range(message.lo, message.hi))
        share.parts[message.subtree] = Part(message, tasks)
        needed = {dep for task in tasks for dep in self.deps(message.run, task)} - set(tasks)
        assert needed == set(imports)
        for position, holder in zip(imports, holders, strict=True):
            # Negative: it isn't there yet, as far as the master knows.
            if position not in share.values and abs(holder) != broker:
                share.wants.setdefault(position, abs(holder))

    def release(self, broker: int, run: int, positions: list[int]) -> None:
        """A value goes where no task of this broker still needs it."""
        share = self.share(broker, run)
        needed = {
            dep
            for part in share.parts.values()
            for task in part.left
            for dep in self.deps(run, task)
        }
        share.values -= set(positions) - needed

    def tell(self, broker: int, run: int, number: int) -> None:
        share = self.share(broker, run)
        has = sorted(share.values)
        left = [task for part in share.parts.values() for task in part.left]
        lacks = sorted(p for p, holder in share.wants.items() if holder not in self.peers[broker])
        rows = [(n, part.message.attempt, len(part.left)) for n, part in share.parts.items()]
        frames = [
            np.array(positions, np.int32).tobytes()
            for positions in (has, [1] * len(has), lacks, [], left)
        ]
        frames.insert(2, np.ones(len(has), np.int64).tobytes())
        self.answer(broker, Holdings(run, number, rows), *frames)

    def tell_outputs(self, broker: int, run: int, positions: list[int]) -> None:
        for position in positions:
            assert position in self.share(broker, run).values, "told to tell what isn't there"
            self.answer(broker, OutputsReady(run, 1, [ObjectInfo(position, 1, 1)]), b"x")

    # --- by themselves ----------------------------------------------------------------------------

    def exchange(self) -> None:
        """Values go to who asked for them."""
        is_moving = True
        while is_moving:
            is_moving = False
            for broker, runs in self.shares.items():
                for run, share in runs.items():
                    for position, holder in list(share.wants.items()):
                        source = self.shares.get(holder, {}).get(run)
                        if source is not None and position in source.values:
                            share.values.add(position)
                            del share.wants[position]
                            is_moving = True
                    taken = sorted(share.taking & share.values)
                    if taken:
                        share.taking -= set(taken)
                        frame = np.array(taken, np.int32).tobytes()
                        self.answer(broker, ObjectsTaken(run), frame, b"")

    def able(self) -> list[tuple[int, int, int, int]]:
        """Tasks whose inputs are there: broker, run, subtree, task."""
        self.exchange()
        return [
            (broker, run, number, task)
            for broker, runs in sorted(self.shares.items())
            for run, share in sorted(runs.items())
            if not share.draining
            for number, part in sorted(share.parts.items())
            for task in part.left
            if share.values.issuperset(self.deps(run, task))
        ]

    def end_task(self, broker: int, run: int, number: int, task: int) -> None:
        share, plan = self.share(broker, run), self.plan_by_run[run]
        part = share.parts[number]
        part.left.remove(task)
        share.values.add(task)
        share.wants.pop(task, None)
        message = part.message
        if plan.flags[task] & OUTPUT:
            self.answer(broker, OutputsReady(run, message.epoch, [ObjectInfo(task, 1, 1)]), b"x")
        if not part.left:
            done = SubtreeDone(run, message.epoch, number, message.attempt, ())
            self.answer(broker, done, b"", b"")


class MasterMachine(RuleBasedStateMachine):
    """Rules let brokers work, speak, come and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.core = MasterCore(Config(start_timeout_s=1e6, lease_s=1e6, no_nodes_grace_s=1e6))
        self.brokers = Brokers()
        self.now = 0.0
        self.wanted: set[int] = set()
        self.plan_by_run = self.brokers.plan_by_run
        self.complete: set[int] = set()
        self.ended: dict[int, str] = {}
        self.stopped: set[int] = set()

    @initialize(brokers=st.sets(st.sampled_from(BROKERS), min_size=1))
    def begin(self, brokers: set[int]) -> None:
        self.want(brokers)

    def want(self, brokers: set[int], *, drop: bool = False) -> None:
        nodes = [(b, "h", tuple(range(10 * b, 10 * b + b))) for b in sorted(brokers)]
        self.wanted = set(brokers)
        self.core.set_nodes(nodes, self.now, drop=drop)
        self.take()

    @property
    def joined(self) -> list[int]:
        return sorted(self.brokers.shares)

    def do(self, command: Callable[[], object]) -> None:
        command()
        self.take()

    def take(self) -> None:
        actions = self.core.take_actions()
        for broker in actions.disconnect:
            self.brokers.leave(broker)
        for broker, parcels in actions.to_brokers.items():
            for message, frames in parcels:
                if isinstance(message, Shutdown):
                    self.brokers.leave(broker)
                elif broker in self.brokers.shares:
                    self.brokers.take(broker, message, [bytes(frame) for frame in frames])
        for event in actions.events:
            if isinstance(event, OutputsComplete):
                outputs = set(self.plan_by_run[event.run].outputs.tolist())
                assert {info.first for _, info, _ in event.objects} == outputs
                self.complete.add(event.run)
            elif isinstance(event, RunEnded):
                assert event.run not in self.ended
                self.ended[event.run] = event.state

    def speak(self, broker: int) -> None:
        message, frames = self.brokers.answers[broker].pop(0)
        self.core.receive(broker, message, frames, self.now)  # type: ignore[arg-type]
        self.take()

    # --- rules ------------------------------------------------------------------------------------

    @rule(broker=st.sampled_from(BROKERS))
    def join(self, broker: int) -> None:
        if broker in self.wanted and broker not in self.joined:
            self.brokers.join(broker)
            hello = BrokerHello(broker, 1, "h", "a", own_version())
            self.do(lambda: self.core.receive(broker, hello, (), self.now))

    @rule(broker=st.sampled_from(BROKERS), pid=st.sampled_from((0, 5)))
    def executor(self, broker: int, pid: int) -> None:
        if broker in self.joined:
            changed = ExecutorChanged(10 * broker, pid, 0)
            self.do(lambda: self.core.receive(broker, changed, (), self.now))

    @rule(plan=plans(), priority=st.integers(0, 2))
    def submit(self, plan: RunPlan, priority: int) -> None:
        run = len(self.plan_by_run) + 1
        self.plan_by_run[run] = plan
        self.do(lambda: self.core.submit(run, plan, self.now, priority=priority))

    @rule(data=st.data())
    def task_ends(self, data: st.DataObject) -> None:
        able = self.brokers.able()
        if able:
            self.brokers.end_task(*data.draw(st.sampled_from(able)))

    @rule(data=st.data(), count=st.integers(1, 5))
    def broker_speaks(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            speakers = [broker for broker in self.joined if self.brokers.answers[broker]]
            if speakers:
                self.speak(data.draw(st.sampled_from(speakers)))

    @rule(run=st.integers(1, 5))
    def outputs_taken(self, run: int) -> None:
        if run in self.complete:
            self.do(lambda: self.core.outputs_taken(run, self.now))

    @rule(run=st.integers(1, 5))
    def cancel(self, run: int) -> None:
        if run in self.plan_by_run:
            self.stopped.add(run)
            self.do(lambda: self.core.cancel(run, self.now))

    @rule(data=st.data())
    def task_fails(self, data: st.DataObject) -> None:
        able = self.brokers.able()
        if able:
            broker, run, _, task = data.draw(st.sampled_from(able))
            self.stopped.add(run)
            failed = TaskFailed(run, 1, Failure(task, 1, "raised"))
            self.do(lambda: self.core.receive(broker, failed, (b"e",), self.now))

    @rule(broker=st.sampled_from(BROKERS))
    def lose(self, broker: int) -> None:
        if broker in self.joined:
            self.brokers.leave(broker)
            self.do(lambda: self.core.peer_lost(broker, "lost", self.now))

    @rule(seconds=st.floats(0.01, 2.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for broker in self.joined:
            self.core.receive(broker, ExecutorChanged(10 * broker + 1, 6, 0), (), self.now)
        self.do(lambda: self.core.handle_timer(self.now))

    @rule(brokers=st.sets(st.sampled_from(BROKERS), min_size=1), drop=st.booleans())
    def reset(self, brokers: set[int], drop: bool) -> None:
        # A broker that leaves is started anew only when it has gone.
        leaving = set(self.joined) - self.wanted
        self.want(brokers - leaving or self.wanted, drop=drop)

    @invariant()
    def core_is_consistent(self) -> None:
        self.core.check()

    def teardown(self) -> None:
        """With a living node and brokers that answer, every run ends."""
        if not self.wanted:
            return
        for broker in self.wanted - set(self.joined):
            self.join(broker)
        self.time_passes(0.1)
        for _ in range(3_000):
            able = self.brokers.able()
            speakers = [broker for broker in self.joined if self.brokers.answers[broker]]
            if speakers:
                self.speak(speakers[0])
            elif able:
                self.brokers.end_task(*able[0])
            elif open_runs := sorted(self.complete - set(self.ended)):
                self.outputs_taken(open_runs[0])
                self.complete.discard(open_runs[0])
            else:
                break
        assert set(self.ended) == set(self.plan_by_run)
        for run, state in self.ended.items():
            assert state == "done" or run in self.stopped
        assert set(self.joined) == self.wanted
        self.core.check()


TestMasterMachine = MasterMachine.TestCase
TestMasterMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
