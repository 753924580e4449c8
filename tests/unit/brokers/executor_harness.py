"""Drives an executor in a forked process with hand-written bundles, as a broker would."""

import mmap
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import cloudpickle
import numpy as np

from dagsched.brokers import execution
from dagsched.brokers.channel import Receiver, Sender
from dagsched.brokers.executor import ExecutorSettings, executor_main
from dagsched.brokers.handover import Handover, SlotSockets, open_slots
from dagsched.brokers.objects.reader import copy_value
from dagsched.brokers.objects.segments import unlink_segments
from dagsched.config import Config
from dagsched.protocol.codec import Decoder, encode_batch
from dagsched.protocol.messages import (
    BundleDone,
    ExecutorHello,
    ExecutorToBroker,
    Failure,
    Frame,
    FunctionInfo,
    ObjectInfo,
    Parcel,
    RunBundle,
    TaskOptions,
)
from dagsched.serialize import dump_entries


def loaded(frame: Any) -> Any:
    """The value, or the error by which one that can't be unpickled says so."""
    try:
        return pickle.loads(frame)
    except ValueError as error:
        return error


@dataclass
class Task:
    """A task of a hand-written bundle: function, argument entry, dependencies (positions)."""

    function: Callable[..., Any]
    entry: Any = ()
    deps: Sequence[int] = ()


@dataclass
class Result:
    """A `BundleDone` taken apart."""

    message: BundleDone
    done: list[int]
    stamps: list[int]
    values: dict[int, Any] = field(default_factory=dict)
    errors: list[bytes] = field(default_factory=list)
    expanded: list[list[bytes]] = field(default_factory=list)

    @property
    def failure(self) -> Failure:
        """The only failure."""
        (failure,) = self.message.failures
        return failure


class ExecutorHarness:
    """One executor process and the broker's end of its socket."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        executor: int = 3,
        slot: int = -1,
        slots: SlotSockets | None = None,
        **settings: Any,
    ) -> None:
        self.config = config or Config()
        self.prefix = f"dagsched-test-{os.getpid()}"
        self.shared = mmap.mmap(-1, 64)
        self.status = memoryview(self.shared).cast("q")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.settings = ExecutorSettings(
            self.prefix, settings.pop("sys_path", _paths()), str(Path.cwd()), self.config,
            os.getpid(), **settings,
        )  # fmt: skip
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ours.close()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                # On a busy machine a bundle would end before its last task, for the time it takes.
                execution.LONG_BUNDLE_NS = 60_000_000_000
                handover = Handover(slots.readers[slot], slots.writers) if slots else None
                executor_main(executor, 1, theirs, self.status, self.settings, slot, handover)
            finally:
                os._exit(99)
        theirs.close()
        self.socket = ours
        self.socket.settimeout(60)
        self.sender, self.receiver = Sender(ours), Receiver(ours)
        self.decoder = Decoder(ExecutorToBroker)
        self.parcels: list[Parcel] = []
        self.bundle = 0
        hello = self.receive().message
        assert hello == ExecutorHello(executor, 1, self.pid, slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> int:
        """End the executor by closing its socket; its exit code."""
        self.socket.close()
        _, status = os.waitpid(self.pid, 0)
        unlink_segments(self.prefix)
        self.status.release()
        self.shared.close()
        return os.waitstatus_to_exitcode(status)

    def receive(self) -> Parcel:
        while not self.parcels:
            batches = self.receiver.receive_batch()
            assert batches, "the executor has gone"
            for frames in batches:
                self.parcels += self.decoder.decode_batch(frames)[1]
        return self.parcels.pop(0)

    def wait_until_idle(self) -> None:
        """Until its status word says so, which it writes after its report and tells nobody."""
        deadline_s = time.monotonic() + 10
        while self.status[0]:
            assert time.monotonic() < deadline_s, "the executor stays in its bundle"
            time.sleep(0.001)

    def send(self, *parcels: Parcel) -> None:
        self.sender.send_batch(encode_batch(parcels, 1))

    def run(self, tasks: dict[int, Task], **details: Any) -> Result:
        """Send a bundle of these tasks (by position) and wait for what came of it."""
        self.send(self.parcel(tasks, **details))
        return self.result()

    def parcel(
        self,
        tasks: dict[int, Task],
        exports: Sequence[tuple[int, int]] = (),
        imports: Sequence[tuple[ObjectInfo, bytes | None]] = (),
        options: Sequence[TaskOptions] = (),
        meta: Sequence[int] = (),
        ref_brokers: Sequence[tuple[int, int]] = (),
        referenced: Sequence[int] = (),
        plain: bool = False,
        run: int = 1,
        with_code: bool = True,
        order: Sequence[int] = (),
        lane: tuple[int, Sequence[int], Sequence[int]] | None = None,
    ) -> Parcel:
        """A bundle of these tasks; as a `lane`: its number, what is awaited, what is handed."""
        positions = order or sorted(tasks)
        functions = list(dict.fromkeys(task.function for task in tasks.values()))
        index_of = {function: index for index, function in enumerate(functions)}
        indptr, deps = [0], []
        for position in positions:
            deps += tasks[position].deps
            indptr.append(len(deps))
        chunks = sorted({position // 64 for position in positions}) if with_code else []
        chunk_frames = [
            dump_entries(
                [tasks[p].entry if p in tasks else None for p in range(64 * c, 64 * c + 64)], plain
            )
            for c in chunks
        ]
        infos = (
            [FunctionInfo(i, b"d" * 16, f.__name__, None) for f, i in index_of.items()]
            if with_code
            else []
        )
        pickles = [cloudpickle.dumps(f) for f in functions] if with_code else []
        self.bundle += 1
        message = RunBundle(
            run, self.bundle, 1, chunks, infos, [info for info, _ in imports], options, meta,
            ref_brokers, referenced, 1_000_000, [] if lane is None else [0, 1],
            0 if lane is None else lane[0],
        )  # fmt: skip
        frames: list[Frame] = [
            np.array(positions, np.int32).tobytes(),
            np.array(indptr, np.int32).tobytes(),
            np.array(deps, np.int32).tobytes(),
            np.array([index_of[tasks[p].function] for p in positions], np.int32).tobytes(),
            np.array(exports, np.int32).tobytes(),
            *[np.array(rows, np.int32).tobytes() for rows in (lane[1:] if lane else ())],
            *chunk_frames,
            *pickles,
            *[data for _, data in imports if data is not None],
        ]
        return Parcel(message, frames)

    def result(self) -> Result:
        message, frames = self.receive()
        assert isinstance(message, BundleDone)
        done = np.frombuffer(frames[0], np.int32).tolist()
        stamps = np.frombuffer(frames[1], np.int64).tolist()
        rest = iter(frames[2:])
        result = Result(message, done, stamps)
        for info in message.objects:
            if info.location is not None:
                result.values[info.first] = copy_value(info.location)
            elif info.count == 1:
                result.values[info.first] = loaded(next(rest))
            else:
                values = pickle.loads(next(rest))
                assert len(values) == info.count
                result.values.update(enumerate(values, info.first))
        result.errors = [
            bytes(next(rest))
            for failure in message.failures
            if failure.kind in ("raised", "not_exception")
        ]
        result.expanded = [[bytes(next(rest)) for _ in range(n)] for _, n in message.expanded]
        assert list(rest) == []
        return result


class PairHarness:
    """Two executors that hand values over to each other."""

    def __init__(self, config: Config | None = None) -> None:
        self.sockets = open_slots(2)
        self.executors = [
            ExecutorHarness(config, executor=3 + slot, slot=slot, slots=self.sockets)
            for slot in range(2)
        ]
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for executor in reversed(self.executors):  # later ones have inherited ends of earlier ones
            executor.close()
        for end in (*self.sockets.readers, *self.sockets.writers):
            end.close()

    def parcels(
        self, tasks: dict[int, Task], lanes: Sequence[Sequence[int]], exports: Sequence[int] = ()
    ) -> list[Parcel]:
        """A gang of these tasks: each lane's positions in the order in which they run."""
        self._number += 1
        lane_of = {position: lane for lane, order in enumerate(lanes) for position in order}
        parcels = []
        for lane, order in enumerate(lanes):
            needed: dict[int, list[int]] = {}  # by position: indexes of its users here
            for index, position in enumerate(order):
                for dep in tasks[position].deps:
                    if lane_of[dep] != lane:
                        needed.setdefault(dep, []).append(index)
            awaited = sorted((users[0], dep, len(users)) for dep, users in needed.items())
            takers = {
                (place, lane_of[user])
                for place, position in enumerate(order)
                for user, task in tasks.items()
                if position in task.deps and lane_of[user] != lane
            }
            harness = self.executors[lane]
            harness.bundle = self._number - 1
            mine = {position: tasks[position] for position in order}
            rows = (
                lane,
                [number for row in awaited for number in row],
                [number for row in sorted(takers) for number in row],
            )
            mine_exported = [(position, 1) for position in exports if position in mine]
            parcels.append(harness.parcel(mine, mine_exported, order=order, lane=rows))
        return parcels

    def run(
        self, tasks: dict[int, Task], lanes: Sequence[Sequence[int]], exports: Sequence[int] = ()
    ) -> list[Result]:
        """Send a gang, and wait for what came of each lane."""
        for executor, parcel in zip(
            self.executors, self.parcels(tasks, lanes, exports), strict=True
        ):
            executor.send(parcel)
        return [executor.result() for executor in self.executors]


def _paths() -> list[str]:
    import sys

    return list(sys.path)
