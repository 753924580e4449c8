"""A whole run in one thread: client, master, broker and two executors, without any process.

Responsible for driving the real parts (graph, plan, both cores, codec, checks, the loop of
executors) by hand, turn by turn, and for the CPU time of each. What lies between them in a real
run, sockets, sessions, waking and waiting, isn't there: the figures are CPU time of our own code,
and repeat well on a busy machine. What tasks change of their process isn't looked after.
"""

import gc
import itertools
import mmap
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self, cast

import numpy as np

from dagsched.bench.graphs import Measured
from dagsched.bench.measuring import BenchError, check_value
from dagsched.brokers.code import RunCode
from dagsched.brokers.core import BrokerCore
from dagsched.brokers.entering import check_order
from dagsched.brokers.execution import BundleRun, Services
from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.nursery import Nursery
from dagsched.brokers.objects.reader import Reader
from dagsched.brokers.objects.segments import unlink_segments
from dagsched.brokers.restoring import ProcessState
from dagsched.config import Config
from dagsched.graph import build_graph
from dagsched.master.core import MasterCore, own_version
from dagsched.master.events import OutputsComplete, RunEnded
from dagsched.partition import cut_graph
from dagsched.plan import ClusterShape, RunPlan
from dagsched.planning import make_plan
from dagsched.protocol.checks import check_parcel
from dagsched.protocol.codec import Decoder, encode_batch
from dagsched.protocol.messages import (
    BrokerHello,
    BrokerToExecutor,
    BrokerToMaster,
    BundleDone,
    ExecutorHello,
    ExecutorToBroker,
    ForgetRun,
    Frame,
    FreeExtents,
    MasterToBroker,
    Parcel,
    RunBundle,
)
from dagsched.serialize import load_value

BROKER, EXECUTORS, HOST = 2, (3, 4), "127.0.0.1"
TURNS_MAX = 1_000_000

_NUMBERS = itertools.count(1)

Batch = list[Frame]


@dataclass(slots=True)
class StageTimes:
    """CPU seconds of each stage of one run."""

    tasks: int = 0
    walk: float = 0.0  # build_graph
    cut: float = 0.0  # cut_graph: the subtrees
    encode: float = 0.0  # the rest of make_plan: functions and arguments pickled, arrays permuted
    master: float = 0.0  # its core; its batches checked, encoded and decoded
    broker: float = 0.0  # the same
    decode: float = 0.0  # executors: batches, functions, arguments and inputs decoded
    call: float = 0.0  # executors: the loop that resolves arguments, calls, keeps results
    reply: float = 0.0  # executors: what leaves a bundle pickled, and the report

    def per_task_us(self) -> dict[str, float]:
        """Microseconds a task, by stage."""
        names = [field.name for field in fields(self) if field.name != "tasks"]
        return {name: getattr(self, name) / self.tasks * 1e6 for name in names}


def client_times(made: Measured, config: Config, shape: ClusterShape, times: StageTimes) -> RunPlan:
    """Make graph and plan as a client does, and book what each step took; returns the plan."""
    clock = time.thread_time
    start = clock()
    graph = build_graph(made[0], config.source_bytes_min)
    times.walk += clock() - start
    start = clock()
    plan = make_plan(graph, shape, config, {}).plan
    plan_s = clock() - start
    # The cut once more by itself, on the same arrays: graphs of these benchmarks have no sources.
    weights_s = np.full(graph.task_count, config.unknown_task_s)
    start = clock()
    cut_graph(graph.indptr, graph.deps, weights_s, shape, config)
    cut_s = clock() - start
    times.cut += cut_s
    times.encode += plan_s - cut_s
    times.tasks += graph.task_count
    return plan


class _AsItIs(ProcessState):
    """Leaves the state of this process, which is no executor's, alone."""

    def restore_streams(self) -> None:
        """Nothing."""


class _TimedBundle(BundleRun):
    """Notes when its loop was entered and left."""

    begun_s = ended_s = 0.0

    def run_tasks(self, codes: Sequence[int]) -> None:
        """The loop."""
        self.begun_s = time.thread_time()
        super().run_tasks(codes)
        self.ended_s = time.thread_time()


class _Executor:
    """What an executor does with its messages, stage by stage.

    Args:
        executor: its id.
        prefix: of its segments.
        config: limits.
        times: to be filled in.
    """

    def __init__(self, executor: int, prefix: str, config: Config, times: StageTimes) -> None:
        self.times = times
        self.inbox: deque[Batch] = deque()
        arena = Arena(f"{prefix}-{executor}-1", config)
        self._services = Services(
            executor, config, Reader(), arena, Nursery(arena), _AsItIs(),
            ClusterShape(1, len(EXECUTORS)), "",
        )  # fmt: skip
        self._shared = mmap.mmap(-1, 64)
        self._status = memoryview(self._shared).cast("q")
        self._decoder = Decoder(BrokerToExecutor, config)
        self._code: dict[int, RunCode] = {}

    def close(self) -> None:
        """Let go of all memory."""
        self._services.reader.close()
        self._services.arena.close()
        self._status.release()
        self._shared.close()

    def work(self) -> list[Batch]:
        """Handle one batch; those that answer it."""
        start = time.thread_time()
        _, parcels = self._decoder.decode_batch(self.inbox.popleft())
        self.times.decode += time.thread_time() - start
        answers = []
        for message, frames in parcels:
            match message:
                case RunBundle():
                    answers.append(self._run(message, frames))
                case FreeExtents():
                    for location in message.locations:
                        self._services.arena.free(location)
                case ForgetRun():
                    self._code.pop(message.run, None)
        return answers

    def _run(self, message: RunBundle, frames: Sequence[Frame]) -> Batch:
        start = time.thread_time()
        code = self._code.setdefault(message.run, RunCode())
        rest = iter(frames[5:])
        for chunk in message.chunks:
            code.add_chunk(chunk, next(rest))
        for info in message.functions:
            code.add_function(info, next(rest))
        bundle = _TimedBundle(message, frames[:5], [*rest], code, self._services, self._status)
        outcome = bundle.run()
        bundle.release()
        held, dropped = self._services.reader.try_close()
        if held or dropped:
            raise BenchError("a graph of no-ops keeps views of its inputs")
        done = BundleDone(
            message.run, message.bundle, message.attempt, outcome.infos, outcome.failures,
            outcome.expanded, outcome.deferred, (), (), outcome.retry_count, outcome.seconds,
            0, 0, 1, outcome.retries,
        )  # fmt: skip
        batch = encode_batch([Parcel(done, bundle.reply_frames())], 0)
        end = time.thread_time()
        self.times.decode += bundle.begun_s - start
        self.times.call += bundle.ended_s - bundle.begun_s
        self.times.reply += end - bundle.ended_s
        return batch


class InlineCluster:
    """One node of two executors, and its master, in the calling thread. A context manager.

    Args:
        config: limits; None: as they are by default.
    """

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or Config()
        self._times = StageTimes()
        self._now = 0.0  # stands still while there is work, so no lease or delay ends
        self._prefix = f"dagsched-bench-{os.getpid()}-{next(_NUMBERS)}"
        self._master, self._broker = (
            MasterCore(self._config),
            BrokerCore(BROKER, HOST, self._config),
        )
        self._executors: dict[int, _Executor] = {}
        self._from_broker = Decoder(BrokerToMaster, self._config)
        self._from_master = Decoder(MasterToBroker, self._config)
        self._from_executor = Decoder(ExecutorToBroker, self._config)
        self._to_master: deque[Batch] = deque()
        self._to_broker: deque[Batch] = deque()
        self._from_executors: deque[tuple[int, Batch]] = deque()
        self._run_count = 0
        self._ended = ""
        self._value: object = None

    def __enter__(self) -> Self:
        for executor in EXECUTORS:
            self._executors[executor] = _Executor(executor, self._prefix, self._config, self._times)
        self._master.set_nodes([(BROKER, HOST, EXECUTORS)], self._now)
        hello = BrokerHello(BROKER, os.getpid(), HOST, "", own_version())
        self._to_master.append(encode_batch([Parcel(hello)], 0))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for executor in self._executors.values():
            executor.close()
        unlink_segments(self._prefix)

    def run(self, made: Measured) -> StageTimes:
        """Run a graph and tell what each stage took.

        Raises:
            BenchError: the run failed, never ended, or its value is wrong.
        """
        times = self._times = StageTimes()
        for executor in self._executors.values():
            executor.times = times
        shape = ClusterShape(1, len(EXECUTORS))
        plan = client_times(made, self._config, shape, times)
        self._run_count += 1
        self._ended = ""
        # As in executors, whose heap is small: the client's graph is none of their garbage.
        gc.freeze()
        try:
            start = time.thread_time()
            self._master.submit(self._run_count, plan, self._now)
            times.master += time.thread_time() - start
            state = self._until_end()
        finally:
            gc.unfreeze()
        if state != "done":
            raise BenchError(f"a run in one thread has {state}")
        check_value(self._value, made[1])
        return times

    def _until_end(self) -> str:
        for _ in range(TURNS_MAX):
            state = self._turn()
            if state:
                return state
        return "not ended"

    def _turn(self) -> str:
        """Everybody does what there is, or time goes on; returns how the run ended, if it has."""
        start = time.thread_time()
        has_master_work = self._master_turn()
        middle = time.thread_time()
        has_broker_work = self._broker_turn()
        self._times.master += middle - start
        self._times.broker += time.thread_time() - middle
        has_bundles = False
        for number, executor in self._executors.items():
            if executor.inbox:
                has_bundles = True
                self._from_executors += [(number, batch) for batch in executor.work()]
        if not (has_master_work or has_broker_work or has_bundles):
            self._pass_time()
        return self._ended

    def _pass_time(self) -> None:
        timers = (self._master.next_timer(), self._broker.next_timer())
        due = min((timer for timer in timers if timer is not None), default=None)
        if due is None:
            raise BenchError("a run in one thread stands still")
        self._now = max(self._now, due)
        self._master.handle_timer(self._now)
        self._broker.handle_timer(self._now)

    def _master_turn(self) -> bool:
        core, has_work = self._master, bool(self._to_master)
        while self._to_master:
            for message, frames in self._from_broker.decode_batch(self._to_master.popleft())[1]:
                check_parcel(message, frames, core.total_of)
                core.receive(BROKER, cast("BrokerToMaster", message), frames, self._now)
        actions = core.take_actions()
        for parcels in actions.to_brokers.values():
            self._to_broker.append(encode_batch(parcels, core.epoch_of(BROKER) or 0))
        for event in actions.events:
            match event:
                case OutputsComplete():
                    ((_, _, frame),) = event.objects
                    if frame is None:
                        raise BenchError("the value of a graph of no-ops is no small one")
                    self._value = load_value(frame)
                    core.outputs_taken(event.run, self._now)
                    has_work = True
                case RunEnded():
                    self._ended = event.state
        return has_work or bool(self._to_broker)

    def _broker_turn(self) -> bool:
        core = self._broker
        has_work = bool(self._to_broker or self._from_executors)
        while self._from_executors:
            executor, batch = self._from_executors.popleft()
            for message, frames in self._from_executor.decode_batch(batch)[1]:
                known = cast("ExecutorToBroker", message)
                core.receive_executor(executor, known, frames, self._now)
        while self._to_broker:
            for message, frames in self._from_master.decode_batch(self._to_broker.popleft())[1]:
                order = cast("MasterToBroker", message)
                check_order(core, order, frames)
                core.receive_master(order, frames, self._now)
        actions = core.take_actions()
        if actions.to_master:
            self._to_master.append(encode_batch(actions.to_master, core.epoch))
        for number, parcels in actions.to_executors.items():
            self._executors[number].inbox.append(encode_batch(parcels, core.epoch))
        for number in actions.start:
            hello = Parcel(ExecutorHello(number, 1, os.getpid()))
            self._from_executors.append((number, encode_batch([hello], 0)))
        return has_work
