"""The product's own cut, master and brokers on a simulated cluster, lean enough for 1,000 nodes.

The cores are the real ones. Around them: a heap of events, links with a latency and a bandwidth
each, and executors that let time go by. What `dagsched.testing` adds (sessions, encoded batches,
bytes, faults, a store) is left out, since none of it decides where a task runs.
"""

import heapq
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
from heft import BANDWIDTH_BYTES_S, LATENCY_S
from workflows import Float64, Graph, Int32

from dagsched.brokers.answers import Look
from dagsched.brokers.core import BrokerCore
from dagsched.config import Config
from dagsched.master import lives, placing
from dagsched.master.core import MasterCore, own_version
from dagsched.master.events import OutputsComplete, RunEnded
from dagsched.partition import cut_graph
from dagsched.plan import ClusterShape, RunPlan
from dagsched.planning import permuted
from dagsched.protocol.messages import (
    CHUNK_TASKS,
    EXPORTED,
    OUTPUT,
    BrokerHello,
    BundleDone,
    ExecutorHello,
    FunctionInfo,
    Location,
    ObjectInfo,
    Parcel,
    RunBundle,
)

LOCAL_S = 0.000_03
"""A message from a broker to its executor, or back."""

BUNDLE_S = 0.000_15
"""What a bundle costs its executor beside its tasks."""

TASK_S = 0.000_001
"""What a task costs its executor beside its own work."""

LONG_BUNDLE_S = 0.1
"""After so long a bundle begins no further task; see `dagsched.brokers.execution`."""

CLIENT_S = 0.001
"""Until the client has copied the outputs."""

FOREVER_S = 1e9


def quiet_config() -> Config:
    """The defaults, without heartbeats, which decide nothing here and cost the most events."""
    return Config(
        heartbeat_s=FOREVER_S, lease_s=FOREVER_S, stall_warning_s=FOREVER_S,
        start_timeout_s=FOREVER_S,
    )  # fmt: skip


@dataclass(slots=True)
class Result:
    """What came of a run."""

    makespan_s: float = 0.0
    cut_s: float = 0.0  # CPU of the client
    master_s: float = 0.0  # CPU of the master's core
    moved_bytes: float = 0.0
    subtree_count: int = 0
    is_interlocked: bool = False
    bundle_count: int = 0


def plan_of(
    graph: Graph, known_s: Float64 | None, shape: ClusterShape, config: Config
) -> tuple[RunPlan, Int32]:
    """The plan that the client would make, empty for executors; the task at each position.

    Args:
        graph: what is to run.
        known_s: what the client takes each task to last; None: nothing is known.
        shape: of the cluster.
        config: limits.
    """
    guessed_s = np.full(graph.count, config.unknown_task_s) if known_s is None else known_s
    cut = cut_graph(graph.indptr, graph.deps, guessed_s, shape, config)
    count, order = graph.count, cut.order
    position_of = np.empty(count, np.int32)
    position_of[order] = np.arange(count, dtype=np.int32)
    indptr, deps = permuted(graph.indptr, graph.deps, order, position_of)
    outputs = position_of[graph.sinks()]
    flags = np.zeros(count, np.uint8)
    flags[outputs] |= OUTPUT
    subtree_of = np.repeat(np.arange(len(cut.subtree_starts) - 1), np.diff(cut.subtree_starts))
    owners = np.repeat(subtree_of, np.diff(indptr))
    flags[deps[subtree_of[deps] != owners]] |= EXPORTED
    function_of = graph.function_of[order]
    expected = np.zeros(int(graph.function_of.max()) + 1)
    expected[graph.function_of] = guessed_s
    functions = [
        FunctionInfo(
            index, b"%016d" % index, f"f{index}", None if known_s is None else float(seconds)
        )
        for index, seconds in enumerate(expected)
    ]
    return RunPlan(
        subtree_starts=cut.subtree_starts,
        interlocked=cut.interlocked,
        indptr=indptr,
        deps=deps,
        function_of=function_of,
        flags=flags,
        level_starts=cut.level_starts,
        functions=functions,
        function_pickles=[b""] * len(functions),
        chunks=[b""] * -(-count // CHUNK_TASKS),
        options={},
        outputs=outputs.astype(np.int32),
        sources=[],
    ), order


class Simulation:
    """One run on one cluster.

    Args:
        nodes: how many.
        executors: of each.
        homes: draws a home for each subtree, instead of the product's own choice.
    """

    def __init__(self, nodes: int, executors: int, *, homes: random.Random | None = None) -> None:
        self.config = quiet_config()
        self.shape = ClusterShape(nodes, nodes * executors)
        self.result = Result()
        self._homes = homes
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._tie = 0
        self._now = 0.0
        self._ended = False
        self._link_free_s: dict[tuple[int, int], float] = {}
        self._master = MasterCore(self.config)
        self._brokers = {
            2 + number * (executors + 1): BrokerCore(2 + number * (executors + 1), "h", self.config)
            for number in range(nodes)
        }
        self._wanted = [
            (broker, "h", tuple(range(broker + 1, broker + 1 + executors)))
            for broker in self._brokers
        ]
        self._executors: dict[int, _Executor] = {}
        self._timers: dict[int, float] = {}
        self.seconds: list[float] = []  # by position, as the executors see it
        self.sizes: list[int] = []

    def run(self, graph: Graph, known_s: Float64 | None) -> Result:
        """Run a graph to its end, on nodes that have all joined.

        Args:
            graph: what is to run.
            known_s: what client and master take each task to last; None: nothing is known.
        """
        begun_s = time.thread_time()
        plan, order = plan_of(graph, known_s, self.shape, self.config)
        self.result.cut_s = time.thread_time() - begun_s
        self.seconds = graph.seconds[order].tolist()
        self.sizes = graph.size_bytes[order].tolist()
        self.result.subtree_count = plan.subtree_count
        self.result.is_interlocked = plan.interlocked
        with self._chosen():
            self._join()
            begun_at_s = self._now
            self.result.master_s = 0.0
            self._of_master(lambda: self._master.submit(1, plan, self._now))
            while not self._ended:
                if not self._heap:
                    raise SystemExit("the simulation stands still")
                self._step()
        self.result.makespan_s -= begun_at_s
        return self.result

    @contextmanager
    def _chosen(self) -> Iterator[None]:
        """With homes at random, if they are asked for: nothing is dealt, and nobody steals."""
        rng = self._homes
        if rng is None:
            yield
            return

        def homes_of(candidates: Any, hosts: Any) -> dict[Any, Any]:
            return {candidate.number: rng.choice(hosts).broker for candidate in candidates}

        def place_all(placer: Any, run: Any, nodes: Any, placements: Any) -> None:
            numbers = sorted(run.homeless)
            run.homeless.clear()
            for number in numbers:
                run.subtrees[number].home = rng.choice(nodes).broker
            for number in numbers:
                placer._send(run, run.subtrees[number], placements)

        with (
            patch.object(placing, "homes_of", homes_of),
            patch.object(placing.Placer, "_place_all", place_all),
            patch.object(placing.Placer, "_maybe_steal", lambda *_: None),
            patch.object(lives, "is_dealt", lambda *_: False),
        ):
            yield

    def _join(self) -> None:
        """All nodes say hello at once; time goes by until all executors are there."""
        self._master.set_nodes(self._wanted, self._now)
        for broker in self._brokers:
            hello = BrokerHello(broker, broker, "h", str(broker), own_version())
            self._master.receive(broker, hello, (), self._now)
        self._of_master(lambda: None)
        while len(self._executors) < self.shape.executors or self._heap:
            self._step()

    # --- time -------------------------------------------------------------------------------------

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        """Do it then."""
        self._tie += 1
        heapq.heappush(self._heap, (when_s, self._tie, act))

    def _step(self) -> None:
        when_s, _, act = heapq.heappop(self._heap)
        self._now = max(self._now, when_s)
        act()

    def _arrival_s(self, sender: int, receiver: int, size_bytes: float) -> float:
        """In order on each link, whose bandwidth is its own."""
        link = (sender, receiver)
        begin_s = max(self._now, self._link_free_s.get(link, 0.0))
        free_s = begin_s + size_bytes / BANDWIDTH_BYTES_S
        self._link_free_s[link] = free_s
        return free_s + LATENCY_S

    # --- master -----------------------------------------------------------------------------------

    def _of_master(self, push: Callable[[], None]) -> None:
        begun_s = time.thread_time()
        push()
        actions = self._master.take_actions()
        due_s = self._master.next_timer()
        self.result.master_s += time.thread_time() - begun_s
        for broker, parcels in actions.to_brokers.items():
            size = sum(len(frame) for parcel in parcels for frame in parcel.frames)
            self.at(self._arrival_s(1, broker, size), partial(self._at_broker, broker, parcels))
        for event in actions.events:
            if isinstance(event, OutputsComplete):
                self.result.makespan_s = self._now
                self.at(
                    self._now + CLIENT_S,
                    lambda: self._of_master(lambda: self._master.outputs_taken(1, self._now)),
                )
            elif isinstance(event, RunEnded):
                if event.state != "done":
                    raise SystemExit(f"the run ended as {event.state}: {event.failure}")
                self._ended = True
        if due_s is not None and due_s < FOREVER_S / 2:
            self._arm(1, due_s, self._master_timer)

    def _arm(self, who: int, due_s: float, act: Callable[[], None]) -> None:
        """One event for the next timer of a process, and an earlier one if that comes up."""
        armed_s = self._timers.get(who)
        if armed_s is None or due_s < armed_s:
            self._timers[who] = due_s

            def fire() -> None:
                if self._timers.get(who) == due_s:
                    del self._timers[who]
                    act()

            self.at(max(due_s, self._now), fire)

    def _master_timer(self) -> None:
        self._of_master(lambda: self._master.handle_timer(self._now))

    def _at_master(self, broker: int, parcels: Sequence[Parcel]) -> None:
        def push() -> None:
            for message, frames in parcels:
                self._master.receive(broker, message, frames, self._now)

        self._of_master(push)

    # --- brokers ----------------------------------------------------------------------------------

    def _at_broker(self, broker: int, parcels: Sequence[Parcel]) -> None:
        core = self._brokers[broker]
        for message, frames in parcels:
            core.receive_master(message, frames, self._now)
        self._turn(broker)

    def _at_peer(self, broker: int, peer: int, parcels: Sequence[Parcel]) -> None:
        for message, frames in parcels:
            self._brokers[broker].receive_peer(peer, message, frames, self._now)
        self._turn(broker)

    def from_executor(self, broker: int, executor: int, parcel: Parcel) -> None:
        """An executor has something to say, which arrives now."""
        self._brokers[broker].receive_executor(executor, parcel.message, parcel.frames, self._now)
        self._turn(broker)

    def _turn(self, broker: int) -> None:
        core = self._brokers[broker]
        actions = core.take_actions()
        for executor, parcels in actions.to_executors.items():
            bundles = [parcel for parcel in parcels if isinstance(parcel.message, RunBundle)]
            if bundles:
                self.result.bundle_count += len(bundles)
                self._executors[executor].enqueue(self._now + LOCAL_S, bundles)
        for executor in actions.start:
            self._executors[executor] = _Executor(self, broker, executor)
            core.look = self._look
            hello = Parcel(ExecutorHello(executor, 1, executor))
            self.at(self._now + LOCAL_S, partial(self.from_executor, broker, executor, hello))
        for executor, number in actions.take_back:
            is_left_out = self._executors[executor].take_back(number)
            core.ledger.taken_back(executor, number, is_left_out=is_left_out)
            if is_left_out:
                self.at(self._now, partial(self._turn, broker))
        for executor, number in actions.stop_bundles:
            self._executors[executor].stop_bundle(number)
        if actions.to_master:
            size = sum(len(frame) for parcel in actions.to_master for frame in parcel.frames)
            arrive = partial(self._at_master, broker, actions.to_master)
            self.at(self._arrival_s(broker, 1, size), arrive)
        for peer, parcels in actions.to_peers.items():
            size = sum(map(_size_of, parcels))
            self.at(
                self._arrival_s(broker, peer, size), partial(self._at_peer, peer, broker, parcels)
            )
        for peer, run, info in actions.transfers:
            self._transfer(broker, peer, run, info)
        due_s = core.next_timer()
        if due_s is not None:
            self._arm(broker, due_s, partial(self._broker_timer, broker))

    def _broker_timer(self, broker: int) -> None:
        self._brokers[broker].handle_timer(self._now)
        self._turn(broker)

    def _transfer(self, broker: int, peer: int, run: int, info: ObjectInfo) -> None:
        self.result.moved_bytes += info.size_bytes
        there = ObjectInfo(
            info.first, info.count, info.size_bytes, Location("0-0-1", 0, info.size_bytes),
            info.type_name, info.refs,
        )  # fmt: skip

        begun_s = self._now

        def arrive() -> None:
            span = (begun_s, self._now)
            self._brokers[peer].object_received(broker, run, there, span, self._now)
            self._turn(peer)
            self._brokers[broker].transfer_done(peer, run, info.first, self._now)
            self._turn(broker)

        self.at(self._arrival_s(broker, peer, info.size_bytes), arrive)

    def _look(self, executor: int) -> Look | None:
        return self._executors[executor].look()

    @property
    def now(self) -> float:
        """Simulated seconds."""
        return self._now

    @property
    def inline_bytes_max(self) -> int:
        """Values up to this size travel in messages."""
        return self.config.inline_bytes_max


def _size_of(parcel: Parcel) -> int:
    """Bytes of a message between brokers; frames of simulated values are empty."""
    objects = getattr(parcel.message, "objects", ())
    return sum(map(len, parcel.frames)) + sum(info.size_bytes for info in objects)


@dataclass(slots=True)
class _Running:
    """A bundle that an executor runs: its tasks, when it began, and when each of them ends."""

    parcel: Parcel
    positions: list[int]
    begun_s: float
    ends_s: list[float]


class _Executor:
    """Takes bundles one after the other, and lets their time go by."""

    def __init__(self, simulation: Simulation, broker: int, number: int) -> None:
        self._simulation = simulation
        self._broker = broker
        self._number = number
        self._queue: list[Parcel] = []
        self._free_s = 0.0
        self._running: _Running | None = None

    def enqueue(self, when_s: float, bundles: Sequence[Parcel]) -> None:
        """Bundles that arrive then."""
        self._queue += bundles
        if self._running is None:
            self._begin(when_s)

    def take_back(self, number: int) -> bool:
        """Leave a bundle out that hasn't begun."""
        for at, parcel in enumerate(self._queue):
            if parcel.message.bundle == number:
                del self._queue[at]
                return True
        return False

    def stop_bundle(self, number: int) -> None:
        """Begin no further task of a bundle."""
        running, now = self._running, self._simulation.now
        if running is not None and running.parcel.message.bundle == number:
            begun = 1 + sum(end_s <= now for end_s in running.ends_s[:-1])
            if begun < len(running.ends_s):
                del running.ends_s[begun:]
                self._await_end(running)

    def look(self) -> Look | None:
        """What it does at this moment."""
        running, now = self._running, self._simulation.now
        if running is None:
            return Look(-1, now, is_stopped=False)
        ended = sum(end_s <= now for end_s in running.ends_s)
        if ended == len(running.ends_s):
            return Look(-1, now, is_stopped=False)
        since_s = [running.begun_s, *running.ends_s][ended]
        return Look(running.positions[ended], since_s, is_stopped=False)

    def _begin(self, when_s: float) -> None:
        parcel = self._queue.pop(0)
        positions = np.frombuffer(parcel.frames[0], np.int32).tolist()
        seconds = self._simulation.seconds
        begun_s = max(when_s, self._free_s) + BUNDLE_S
        end_s, ends_s = begun_s, []
        for position in positions:
            if end_s > begun_s + LONG_BUNDLE_S:
                break
            end_s += seconds[position] + TASK_S
            ends_s.append(end_s)
        self._running = _Running(parcel, positions, begun_s, ends_s)
        self._await_end(self._running)

    def _await_end(self, running: _Running) -> None:
        end_s = self._free_s = running.ends_s[-1]

        def act() -> None:
            if self._running is running and running.ends_s[-1] == end_s:
                self._end(running)

        self._simulation.at(end_s, act)

    def _end(self, running: _Running) -> None:
        """The bundle is done, or as much of it as was begun; its answer arrives a little later."""
        message, frames = running.parcel
        positions, begun_s, ends_s = running.positions, running.begun_s, running.ends_s
        count = len(ends_s)
        done, deferred = positions[:count], positions[count:]
        objects = self._objects(frames, done, deferred)
        times: dict[int, tuple[int, float]] = {}
        functions = np.frombuffer(frames[3], np.int32).tolist()
        for index, (before_s, end_s) in zip(functions, pairwise([begun_s, *ends_s]), strict=False):
            calls, total_s = times.get(index, (0, 0.0))
            times[index] = (calls + 1, total_s + end_s - before_s)
        answer = BundleDone(
            message.run, message.bundle, message.attempt, objects, (), (), deferred, (), (), 0,
            [(index, calls, total_s) for index, (calls, total_s) in times.items()], 0, 0, 1,
        )  # fmt: skip
        stamps = (np.array([begun_s, *ends_s]) * 1e9).astype(np.int64).tobytes()
        inline = [b"" for info in objects if info.location is None]
        parcel = Parcel(answer, [np.array(done, np.int32).tobytes(), stamps, *inline])
        arrive = partial(self._simulation.from_executor, self._broker, self._number, parcel)
        self._simulation.at(self._free_s + LOCAL_S, arrive)
        self._running = None
        if self._queue:
            self._begin(self._free_s)

    def _objects(
        self, frames: Sequence[Any], done: list[int], deferred: list[int]
    ) -> list[ObjectInfo]:
        """Exports of what was done: blocks of small values, others one by one."""
        pairs = np.frombuffer(frames[4], np.int32).tolist()
        sizes, limit = self._simulation.sizes, self._simulation.inline_bytes_max
        ended = set(done) if deferred else None
        groups: list[range | list[int]] = []
        for first, count in zip(pairs[::2], pairs[1::2], strict=True):
            members = range(first, first + count)
            is_whole = ended is None or ended.issuperset(members)
            if count > 1 and not (is_whole and sum(sizes[first : first + count]) <= limit):
                groups += [[p] for p in members if ended is None or p in ended]
            elif is_whole:
                groups.append(members)
        if ended is not None:
            there = {p for members in groups for p in members}
            ends = np.frombuffer(frames[1], np.int32).tolist()
            deps = np.frombuffer(frames[2], np.int32).tolist()
            needed = {p for p in deps[ends[len(done)] :] if p in ended}
            groups += [[p] for p in sorted(needed - there)]
        infos = []
        for members in groups:
            size = sum(sizes[p] for p in members)
            place = Location(f"{self._number}-1-1", 0, size) if size > limit else None
            infos.append(ObjectInfo(members[0], len(members), size, place))
        return infos
