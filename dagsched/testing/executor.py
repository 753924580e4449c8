"""A simulated executor: takes messages one after the other, as a real one reads its socket.

Its tasks take simulated time; its values are those of `graphs.mixed`. It refuses what a real
executor could not do: a task whose chunk or function never came, an input whose bytes are gone.
"""

import pickle
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from dagsched.brokers.status import AWAITING_POSITION, IDLE_POSITION
from dagsched.errors import InternalError
from dagsched.ids import RunNo
from dagsched.protocol.messages import (
    CHUNK_TASKS,
    BundleDone,
    BundleLeftOut,
    ExecutorHello,
    ExecutorToBroker,
    Failure,
    ForgetRun,
    Frame,
    FreeExtents,
    ObjectInfo,
    Parcel,
    RunBundle,
    Stop,
)
from dagsched.protocol.plans import encode_plan
from dagsched.testing.gangs import SimGang, SimLane
from dagsched.testing.graphs import SimTask, dumped, mixed

if TYPE_CHECKING:
    from dagsched.testing.node import SimNode

START_S = 0.01
LONG_BUNDLE_S = 0.1
_MOMENT_S = 1e-3
"""A bundle that takes longer ends at the next task, as in a real executor."""


@dataclass(slots=True)
class _Bundle:
    """A bundle that runs: what to do, and when each task ends."""

    message: RunBundle
    positions: list[int]
    deps: list[list[int]]
    function_of: list[int]
    exports: list[tuple[int, int]]
    inline: list[Frame]
    began_s: float
    durations_s: list[float]
    ends_s: list[float]
    run_count: int  # tasks that will have run; the rest is deferred
    lane: SimLane | None = None  # of a gang, which knows better when tasks begin and end
    gang: SimGang | None = None


@dataclass(slots=True)
class _Results:
    """What the tasks of a bundle came to."""

    values: dict[int, int] = field(default_factory=dict)
    refs: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    expanded: list[tuple[int, list[Frame]]] = field(default_factory=list)
    deferred: list[int] = field(default_factory=list)
    foreign: dict[int, int] = field(default_factory=dict)  # values that another lane has made


class SimExecutor:
    """One executor process; a restarted one is another object."""

    def __init__(self, node: "SimNode", executor: int, incarnation: int) -> None:
        self.id = executor
        self.incarnation = incarnation
        self.pid = executor * 1_000 + incarnation
        self.is_alive = True
        self._node = node
        self._inbox: deque[Parcel] = deque()
        self._bundle: _Bundle | None = None
        self._chunks: dict[tuple[int, int], list[SimTask]] = {}
        self._functions: dict[tuple[int, int], float] = {}
        self._segment_count = 0
        self._taken_back: set[int] = set()
        self._latest = 0  # the bundle that it has begun, or left out, last
        self._due_s = 0.0  # when what it runs ends
        self._turn = 0  # rises when the end of the present bundle changes

    def start(self) -> None:
        """Say hello, some time after the process was asked for."""
        self._node.clock.after(START_S, lambda: self._node.take_in_executor(self._hello))

    def _hello(self) -> None:
        if self.is_alive:
            self._send(ExecutorHello(self.id, self.incarnation, self.pid, self.id))

    def _send(self, message: ExecutorToBroker, frames: Sequence[Frame] = ()) -> None:
        self._node.from_executor(self, Parcel(message, frames))

    # --- what comes -------------------------------------------------------------------------------

    def receive(self, parcels: Sequence[Parcel]) -> None:
        """Take a batch of the broker."""
        self._node.take_in_executor(lambda: self._take(parcels))

    def _take(self, parcels: Sequence[Parcel]) -> None:
        if self.is_alive:
            self._inbox.extend(parcels)
            self._read()

    def _read(self) -> None:
        while self.is_alive and self._bundle is None and self._inbox:
            message, frames = self._inbox.popleft()
            match message:
                case RunBundle():
                    self._begin(message, list(frames))
                case ForgetRun():
                    for table in (self._chunks, self._functions):
                        for key in [key for key in table if key[0] == message.run]:
                            del table[key]
                case FreeExtents():
                    for location in message.locations:
                        self._node.memory.free(location, (self.id, self.incarnation))
                case Stop():
                    self.die(exit_code=0)
                case _:
                    raise InternalError(f"executor {self.id} got a {type(message).__name__}")

    def _begin(self, message: RunBundle, frames: list[Frame]) -> None:
        arrays = [np.frombuffer(frame, np.int32).tolist() for frame in frames[:5]]
        positions, indptr, flat, function_of, pairs = arrays
        rest = iter(frames[7:] if message.slots else frames[5:])
        for chunk in message.chunks:
            self._chunks[message.run, chunk] = pickle.loads(next(rest))
        for function in message.functions:
            self._functions[message.run, function.index] = pickle.loads(next(rest))
        self._latest = message.bundle
        if message.bundle in self._taken_back:
            self._taken_back.remove(message.bundle)
            self._send(BundleLeftOut(message.bundle))
            return
        lacking = {i for i in function_of if (message.run, i) not in self._functions}
        lacking |= {p for p in positions if (message.run, p // CHUNK_TASKS) not in self._chunks}
        if lacking:
            raise InternalError(f"executor {self.id}, bundle {message.bundle}: lacks {lacking}")
        began_s = self._node.clock.now
        durations_s = [
            self._duration_s(message.run, position, index)
            for position, index in zip(positions, function_of, strict=True)
        ]
        ends_s = [began_s + s for s in accumulate(durations_s)]
        bundle = self._bundle = _Bundle(
            message,
            positions,
            [flat[a:b] for a, b in pairwise(indptr)],
            function_of,
            list(zip(pairs[::2], pairs[1::2], strict=True)),
            list(rest),
            began_s,
            durations_s,
            ends_s,
            1 + sum(s <= began_s + LONG_BUNDLE_S for s in ends_s[:-1]),
        )
        if message.slots:
            handed = np.frombuffer(frames[6], np.int32).tolist()[::2]
            self._join(bundle, [positions[index] for index in dict.fromkeys(handed)])
        else:
            self._schedule_end()

    def _join(self, bundle: _Bundle, handed: list[int]) -> None:
        """Begin one lane of a gang."""
        message = bundle.message

        def task_of(position: int) -> SimTask:
            return self._chunks[message.run, position // CHUNK_TASKS][position % CHUNK_TASKS]

        is_known = self._is_known(message)
        lane = bundle.lane = SimLane(
            message, bundle.positions, bundle.deps, bundle.durations_s, handed, task_of,
            self._imported(bundle) if is_known else {}, self._end_at,
        )  # fmt: skip
        gang = bundle.gang = self._node.gang_of(message)
        if not is_known:
            gang.is_broken = True
        bundle.run_count = 0
        gang.join(lane, self._node.clock.now)

    def _is_known(self, message: RunBundle) -> bool:
        """Whether the broker still has the bundle: else it has freed what that reads."""
        run = self._node.core.runs.get(RunNo(message.run))
        return run is not None and message.bundle in run.bundles

    def _duration_s(self, run: int, position: int, function: int) -> float:
        task = self._chunks[run, position // CHUNK_TASKS][position % CHUNK_TASKS]
        seconds = self._functions[run, function] if task.seconds is None else task.seconds
        return seconds * self._node.slowness_of(self.id)

    def _schedule_end(self) -> None:
        bundle = self._bundle
        if bundle is None:
            raise InternalError(f"executor {self.id} runs nothing")
        self._end_at(bundle.ends_s[bundle.run_count - 1] if bundle.run_count else bundle.began_s)

    def _end_at(self, when_s: float) -> None:
        """The present bundle ends then."""
        self._due_s = when_s
        self._turn += 1
        turn = self._turn

        def end() -> None:
            if self.is_alive and turn == self._turn:
                self._end()

        self._node.clock.at(when_s, lambda: self._node.take_in_executor(end))

    # --- being stopped ----------------------------------------------------------------------------

    def running(self) -> tuple[int, int]:
        """Bundle and position that run now; (0, -1): none."""
        bundle = self._bundle
        if bundle is None:
            return 0, IDLE_POSITION
        if bundle.lane is not None:
            return bundle.message.bundle, self._lane_position(bundle.lane)
        for position, end_s in zip(bundle.positions, bundle.ends_s, strict=True):
            if end_s > self._node.clock.now:
                return bundle.message.bundle, position
        return bundle.message.bundle, IDLE_POSITION

    def _lane_position(self, lane: SimLane) -> int:
        now = self._node.clock.now
        spans = zip(lane.positions[: lane.run_count], lane.begins_s, lane.ends_s, strict=False)
        for position, begin_s, end_s in spans:
            if end_s > now:
                return position if begin_s <= now else AWAITING_POSITION
        return AWAITING_POSITION

    def running_since_s(self) -> float:
        """When the task that runs was begun."""
        bundle = self._bundle
        if bundle is None:
            return self._node.clock.now
        return max([bundle.began_s, *(s for s in bundle.ends_s if s <= self._node.clock.now)])

    def stop_bundle(self, number: int) -> None:
        """Don't begin another task of that bundle."""
        bundle = self._bundle
        if bundle is not None and bundle.message.bundle == number:
            if bundle.gang is not None:
                bundle.gang.break_up(self._node.clock.now)
                return
            now = self._node.clock.now
            begun = 1 + sum(end_s <= now for end_s in bundle.ends_s[:-1])
            if begun < bundle.run_count:
                bundle.run_count = begun
                self._schedule_end()

    def take_back(self, number: int) -> bool:
        """Leave out a bundle that was sent; False: it runs, or has run, as it seems.

        Each fifth of those whose turn comes in this very moment seems so though it is left out.
        """
        if self._latest == number:
            return False
        self._taken_back.add(number)
        return number % 5 != 0 or self._due_s - self._node.clock.now > _MOMENT_S

    def die(self, *, exit_code: int | None = None, signal: int | None = None) -> None:
        """End now, whatever runs."""
        if self.is_alive:
            self.is_alive = False
            bundle, position = self.running()
            if self._bundle is not None and self._bundle.gang and self._bundle.lane:
                self._bundle.gang.died(self._bundle.lane, self._node.clock.now)
            self._node.executor_died(self, bundle, position, exit_code, signal)

    # --- results ----------------------------------------------------------------------------------

    def _end(self) -> None:
        bundle, self._bundle = self._bundle, None
        if bundle is None:
            raise InternalError(f"executor {self.id} ends nothing")
        message = bundle.message
        if bundle.gang is not None and bundle.lane is not None:
            results = self._lane_results(bundle.gang, bundle.lane)
        else:
            results = self._results_of(bundle)
        ended = [p for p in bundle.positions if p in results.values]
        objects, object_frames = self._sealed(bundle, results)
        starts_ns = [round(bundle.began_s * 1e9)]
        starts_ns += [
            round(end_s * 1e9)
            for position, end_s in zip(bundle.positions, bundle.ends_s, strict=True)
            if position in results.values
        ]
        seconds: dict[int, tuple[int, float]] = {}
        for position, index, duration_s in zip(
            bundle.positions, bundle.function_of, bundle.durations_s, strict=True
        ):
            if position in results.values:
                calls, total_s = seconds.get(index, (0, 0.0))
                seconds[index] = (calls + 1, total_s + duration_s)
        done = BundleDone(
            run=message.run,
            bundle=message.bundle,
            attempt=message.attempt,
            objects=objects,
            failures=results.failures,
            expanded=[(position, len(plan)) for position, plan in results.expanded],
            deferred=results.deferred,
            held=(),
            dropped=(),
            retry_count=0,
            seconds=[(index, calls, total_s) for index, (calls, total_s) in seconds.items()],
            read_bytes=0,
            written_bytes=0,
            rss_peak_bytes=1,
        )
        frames = [
            np.array(ended, np.int32).tobytes(),
            np.array(starts_ns, np.int64).tobytes(),
            *object_frames,
            *(b"an exception" for _ in results.failures),
            *(frame for _, plan in results.expanded for frame in plan),
        ]
        self._node.note_executed(message.run, ended)
        self._send(done, frames)
        self._read()

    def _results_of(self, bundle: _Bundle) -> _Results:
        run, results = bundle.message.run, _Results()
        if not self._is_known(bundle.message):
            # The broker ended the run while this ran and has freed its inputs; whatever a real
            # executor would make of those bytes now is thrown away.
            results.deferred = list(bundle.positions)
            return results
        imported = self._imported(bundle)
        meta = set(bundle.message.meta)
        for index, position in enumerate(bundle.positions):
            deps = bundle.deps[index]
            lacks = [
                d for d in deps if position not in meta
                and d not in results.values and d not in imported
            ]  # fmt: skip
            if index >= bundle.run_count or any(d in bundle.positions for d in lacks):
                results.deferred.append(position)
                continue
            if lacks:
                raise InternalError(f"run {run}, position {position} lacks inputs {lacks}")
            task = self._chunks[run, position // CHUNK_TASKS][position % CHUNK_TASKS]
            if task.fails:
                results.failures.append(self._failure(bundle.message, position))
            elif task.returns >= 0:
                plan = self._node.returned_plan(task.returns)
                results.expanded.append((position, encode_plan(plan)))
            elif position in meta:
                results.values[position] = mixed(task.salt, [])
                results.refs[position] = [(run, dep) for dep in deps]
            else:
                inputs = [results.values[d] if d in results.values else imported[d] for d in deps]
                results.values[position] = mixed(task.salt, inputs)
        return results

    def _failure(self, message: RunBundle, position: int) -> Failure:
        return Failure(
            position, message.attempt, "raised",
            type_name="ValueError", text="as asked", executor=self.id,
        )  # fmt: skip

    def _lane_results(self, gang: SimGang, lane: SimLane) -> _Results:
        """What one lane of a gang came to."""
        results, message = _Results(), lane.message
        lane.is_over = True
        for index, position in enumerate(lane.positions):
            task = lane.task(position)
            if index >= lane.run_count:
                results.deferred.append(position)
            elif task.fails:
                results.failures.append(self._failure(message, position))
            elif task.returns >= 0:
                plan = self._node.returned_plan(task.returns)
                results.expanded.append((position, encode_plan(plan)))
            else:
                results.values[position] = gang.values[position]
        if len(results.values) < len(lane.positions):
            gang.is_broken = True
        if gang.is_broken:
            results.foreign = {p: gang.values[p] for p in lane.handed if p in results.values}
        for deps in lane.deps[lane.run_count :]:
            for dep in deps:
                if gang.is_there(dep, lane, self._node.clock.now):
                    results.foreign[dep] = gang.values[dep]
        return results

    def _imported(self, bundle: _Bundle) -> dict[int, int]:
        """Values of the bundle's imports; bytes that meta functions don't read stay unread."""
        inline = iter(bundle.inline)
        meta = set(bundle.message.meta)
        readers = {
            dep
            for position, deps in zip(bundle.positions, bundle.deps, strict=True)
            if position not in meta
            for dep in deps
        }
        values: dict[int, int] = {}
        for info in bundle.message.imports:
            frame = next(inline) if info.location is None else None
            members = range(info.first, info.first + info.count)
            if readers.isdisjoint(members):
                continue
            data = self._node.memory.read(info.location) if info.location else frame
            if data is None:
                raise InternalError(f"executor {self.id}: import {info.first} came without bytes")
            loaded = pickle.loads(data)
            values.update(zip(members, loaded if info.count > 1 else [loaded], strict=True))
        return values

    def _sealed(self, bundle: _Bundle, results: _Results) -> tuple[list[ObjectInfo], list[Frame]]:
        """Objects for all exports that have values, and for what deferred tasks still need."""
        run, groups = bundle.message.run, []
        for first, count in bundle.exports:
            members = [p for p in range(first, first + count) if p in results.values]
            is_small = all(not self._size_bytes(run, p) for p in members)
            if members and is_small and members[-1] - members[0] + 1 == len(members):
                groups.append(members)
            else:
                groups += [[p] for p in members]
        grouped = {p for members in groups for p in members}
        needed = {
            dep
            for position, deps in zip(bundle.positions, bundle.deps, strict=True)
            if position in results.deferred
            for dep in deps
            if dep in results.values
        }
        groups += [[p] for p in sorted((needed | results.foreign.keys()) - grouped)]
        made = {**results.foreign, **results.values}
        objects: list[ObjectInfo] = []
        frames: list[Frame] = []
        for members in groups:
            values = [made[p] for p in members]
            size_bytes = self._size_bytes(run, members[0])
            data = dumped(values if len(members) > 1 else values[0], size_bytes)
            location = None
            if len(data) > self._node.config.inline_bytes_max:
                self._segment_count += 1
                segment = f"{self.id}-{self.incarnation}-{self._segment_count // 3}"
                location = self._node.memory.write(segment, data)
            else:
                frames.append(data)
            is_referenced = members[0] in bundle.message.referenced
            refs = results.refs.get(members[0], [])
            type_name = "int" if is_referenced else ""
            objects.append(
                ObjectInfo(members[0], len(members), len(data), location, type_name, refs)
            )
        return objects, frames

    def _size_bytes(self, run: int, position: int) -> int:
        if (run, position // CHUNK_TASKS) not in self._chunks:
            return 0  # another lane's, whose value came with a message
        return self._chunks[run, position // CHUNK_TASKS][position % CHUNK_TASKS].size_bytes
