"""The process that runs user code: its loop of messages, one bundle at a time.

Responsible for what reaches and leaves the process. How bundles run is
`dagsched.brokers.execution`; how the process is made (fork, pipes, death signal) is the pool's.
"""

import contextlib
import gc
import os
import resource
import socket
import sys
import threading
import types
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import NoReturn

from dagsched.brokers.channel import Receiver, Sender
from dagsched.brokers.code import RunCode
from dagsched.brokers.execution import BundleRun, Services
from dagsched.brokers.handover import Handover
from dagsched.brokers.lanes import LaneRun
from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.nursery import Nursery
from dagsched.brokers.objects.reader import Key, Reader
from dagsched.brokers.restoring import ProcessState
from dagsched.brokers.status import IDLE_POSITION, LATEST, POSITION, RUNNING, TAKEN_BACK
from dagsched.config import Config
from dagsched.errors import ClosedError, InternalError, ObjectLost
from dagsched.faults import fault
from dagsched.ids import run_id_of
from dagsched.plan import ClusterShape
from dagsched.profiling import Profile
from dagsched.protocol.codec import Decoder, encode_batch
from dagsched.protocol.messages import (
    BrokerToExecutor,
    BundleDone,
    BundleLeftOut,
    ExecutorHello,
    ForgetRun,
    Frame,
    FreeExtents,
    GetValue,
    Location,
    Parcel,
    RunBundle,
    Stop,
    ValueReply,
)
from dagsched.ref import Ref, set_resolver
from dagsched.serialize import load_value

COLLECTED_AT_ONCE_MAX = 256
"""Values that one `collect` asks for before it waits for answers."""

WARM_S = 10.0
"""Memory and mappings that nobody uses are kept so long for what may come."""

GARBAGE_INTERVAL_S = 1.0
"""Views kept alive by reference cycles are looked for at most this often."""


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What an executor is told when it starts.

    Args:
        name_prefix: of the node's segments; ours are ``<prefix>-<executor>-<incarnation>-<k>``.
        sys_path: the client's, so that its modules can be imported.
        cwd: the client's working directory.
        config: limits.
        broker_pid: process of the broker.
        token: of the environment; references carry it.
        shape: of the cluster, for graphs that tasks return.
        spill_directory: of objects for which shared memory has no room; empty: none.
        profiled_broker: id of the node's broker, if a profile of each run is to be written.
    """

    name_prefix: str
    sys_path: Sequence[str]
    cwd: str
    config: Config = field(default_factory=Config)
    broker_pid: int = 0
    token: str = ""
    shape: ClusterShape = field(default_factory=lambda: ClusterShape(1, 1))
    spill_directory: str = ""
    profiled_broker: int = 0


def executor_main(
    executor: int,
    incarnation: int,
    sock: socket.socket,
    status: memoryview,
    settings: ExecutorSettings,
    slot: int = -1,
    handover: Handover | None = None,
) -> NoReturn:
    """Run bundles until the broker says stop or is gone; never returns.

    Args:
        executor: its id.
        incarnation: how many processes of this id there were before.
        sock: connected to the broker, blocking.
        status: eight int64 words shared with the broker; see `dagsched.brokers.status`.
        settings: of the node.
        slot: where other executors of the node reach this one; -1: they can't.
        handover: reaches them.
    """
    process = Executor(executor, incarnation, sock, status, settings, slot, handover)
    code = 1
    try:
        process.start()
        process.serve()
        code = 0
    except (BrokenPipeError, ConnectionResetError):
        code = 0  # the broker is gone, and with it whoever would want to know
    except BaseException:  # noqa: BLE001 - told to the log, then the process ends
        import traceback

        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


class Executor:
    """State of an executor process, across bundles. Arguments as of `executor_main`."""

    def __init__(
        self,
        executor: int,
        incarnation: int,
        sock: socket.socket,
        status: memoryview,
        settings: ExecutorSettings,
        slot: int = -1,
        handover: Handover | None = None,
    ) -> None:
        self._slot = slot if handover is not None else -1
        self._handover = handover
        self._incarnation = incarnation
        self._settings = settings
        self.env_token = settings.token
        self._status = status
        self._fence = threading.Lock()
        self._sender = Sender(sock)
        self._receiver = Receiver(sock)
        self._decoder = Decoder(BrokerToExecutor)
        self._epoch = 0
        self._waiting: deque[Parcel] = deque()
        self._code: dict[int, RunCode] = {}
        self._profiles: dict[int, Profile] = {}
        arena = Arena(
            f"{settings.name_prefix}-{executor}-{incarnation}",
            settings.config,
            Path(settings.spill_directory) if settings.spill_directory else None,
            settings.name_prefix,
        )
        self._services = Services(
            executor,
            settings.config,
            Reader(),
            arena,
            Nursery(arena),
            ProcessState(),
            settings.shape,
            settings.token,
        )
        self._leftover: list[tuple[Key, Location]] = []
        self._collected_at = 0.0
        self._resolver = _Collector(self)
        self._is_warm = False
        self.is_stopped = False

    def start(self) -> None:
        """Make the process what tasks expect, and tell the broker."""
        sys.path[:] = list(self._settings.sys_path)
        with contextlib.suppress(OSError):  # it may have been removed; tasks will notice
            os.chdir(self._settings.cwd)
        # What was pickled by value as part of the client's __main__ must not meet another one here.
        sys.modules["__main__"] = types.ModuleType("__main__")
        self._services.state.watch()
        self._services.nursery.start()
        set_resolver(self._resolver)
        gc.collect()
        gc.freeze()
        self._status[POSITION] = IDLE_POSITION
        fault("executor.before_hello")
        number = self._services.executor
        self.send([Parcel(ExecutorHello(number, self._incarnation, os.getpid(), self._slot))])

    def serve(self) -> None:
        """Handle messages until told to stop, or the broker is gone."""
        while not self.is_stopped:
            while self._waiting and not self.is_stopped:
                self._handle(self._waiting.popleft())
            if self.is_stopped or not self.receive_more():
                return

    def receive_more(self) -> bool:
        """Wait for messages and line them up; False: the broker is gone."""
        if self._is_warm and not self._receiver.can_receive(WARM_S):
            self._cool_down()
        batches = self._receiver.receive_batch()
        for frames in batches:
            self._epoch, parcels = self._decoder.decode_batch(frames)
            self._waiting.extend(parcels)
        return bool(batches)

    def send(self, parcels: Sequence[Parcel]) -> None:
        """Send a batch to the broker."""
        self._sender.send_batch(encode_batch(parcels, self._epoch))

    def take_reply(self, request: int) -> Parcel:
        """Wait for the answer to `GetValue`; other messages keep their order for later."""
        seen = 0
        while True:
            for index in range(seen, len(self._waiting)):
                message = self._waiting[index].message
                if isinstance(message, ValueReply) and message.request == request:
                    parcel = self._waiting[index]
                    del self._waiting[index]
                    return parcel
            seen = len(self._waiting)
            if not self.receive_more():
                os._exit(0)

    def load(self, ref: Ref, parcel: Parcel) -> object:
        """The value in the answer to `GetValue`."""
        message = parcel.message
        info = message.info if isinstance(message, ValueReply) else None
        if info is None:
            raise ObjectLost(f"the value of {ref!r} is gone; run the graph that made it again")
        if info.location is not None:
            return self._services.reader.load((ref.run, info.first), info.location)
        value = load_value(parcel.frames[0])
        if info.count == 1:
            return value
        if not isinstance(value, list):
            raise InternalError(f"a block of {info.count} values is no list")
        return value[ref.position - info.first]

    def _handle(self, parcel: Parcel) -> None:
        message, frames = parcel
        match message:
            case RunBundle():
                with self._profiled(message.run):
                    self._run_bundle(message, frames)
            case FreeExtents():
                for location in message.locations:
                    self._services.nursery.free(location)
            case ForgetRun():
                self._code.pop(message.run, None)
                profile = self._profiles.pop(message.run, None)
                if profile is not None:
                    profile.write(run_id_of(message.run))
                if self._handover is not None:
                    self._handover.forget(message.run)
            case Stop():
                self.is_stopped = True
            case ValueReply():
                pass  # nobody waits for it any more
            case _:
                raise InternalError(f"{type(message).__name__} is no message for an executor")

    def _run_bundle(self, message: RunBundle, frames: Sequence[Frame]) -> None:
        status, reader, arena = self._status, self._services.reader, self._services.arena
        read_before, written_before = reader.read_bytes, arena.written_bytes
        status[RUNNING] = status[LATEST] = message.bundle
        code = self._code.setdefault(message.run, RunCode())
        own_count = place = 7 if message.slots else 5
        for chunk in message.chunks:
            code.add_chunk(chunk, frames[place])
            place += 1
        for info in message.functions:
            code.add_function(info, frames[place])
            place += 1
        if self._is_taken_back(message.bundle):
            status[RUNNING] = 0
            # The broker may have looked in this very moment, and think that it was begun.
            self.send([Parcel(BundleLeftOut(message.bundle))])
            return
        self._services.nursery.offer()
        bundle = self._bundle_run(message, frames[:own_count], frames[place:], code)
        with self._resolver.serving():
            outcome = bundle.run()
            bundle.release()
        self._leftover += bundle.values.temporary
        held, dropped = self._look_at_views()
        status[POSITION] = IDLE_POSITION
        self._services.state.restore_rest()
        _flush()
        done = BundleDone(
            message.run,
            message.bundle,
            message.attempt,
            outcome.infos,
            outcome.failures,
            outcome.expanded,
            outcome.deferred,
            held,
            dropped,
            outcome.retry_count,
            outcome.seconds,
            reader.read_bytes - read_before,
            arena.written_bytes - written_before,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            outcome.retries,
        )
        fault("executor.before_report")
        self.send([Parcel(done, bundle.reply_frames())])
        fault("executor.after_report")
        # Only now: if anything up to here ends the process, this bundle is the one to look at.
        status[RUNNING] = 0
        # Whoever needs the results is on its way already.
        reader.tidy()
        self._services.nursery.tend()
        self._is_warm = bool(reader.file_count or arena.total_bytes)

    def _cool_down(self) -> None:
        """Nothing has come for a while: give back what is kept for being warm."""
        self._is_warm = False
        self._services.reader.close()
        self._services.nursery.give_back()
        self._services.arena.drop_empty()

    @contextlib.contextmanager
    def _profiled(self, run: int) -> Iterator[None]:
        broker = self._settings.profiled_broker
        if not broker:
            yield
            return
        number = self._services.executor
        profile = self._profiles.get(run)
        if profile is None:
            profile = self._profiles[run] = Profile(self._settings.cwd, "executor", broker, number)
        profile.start()
        try:
            yield
        finally:
            profile.pause()

    def _bundle_run(
        self, message: RunBundle, own: Sequence[Frame], imports: Sequence[Frame], code: RunCode
    ) -> BundleRun:
        if not message.slots:
            return BundleRun(message, own, imports, code, self._services, self._status)
        if self._handover is None:
            raise InternalError("an executor that reaches no other got a lane of a gang")
        return LaneRun(message, own, imports, code, self._services, self._status, self._handover)

    def _is_taken_back(self, bundle: int) -> bool:
        """Whether the broker has given the bundle to somebody else meanwhile."""
        with self._fence:  # what it says that it begins is seen before it looks
            pass
        for index in TAKEN_BACK:
            if self._status[index] == bundle:
                self._status[index] = 0
                return True
        return False

    def _look_at_views(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Imported objects of which views outlive their task, and those of before that ended."""
        reader = self._services.reader
        if reader.live_count and monotonic() - self._collected_at > GARBAGE_INTERVAL_S:
            gc.collect()
            self._collected_at = monotonic()
        held, dropped = reader.try_close()
        if self._leftover:
            kept = [item for item in self._leftover if reader.is_live(item[0])]
            for key, location in self._leftover:
                if not reader.is_live(key):
                    self._services.nursery.free(location)
            self._leftover = kept
        return _of_runs(held), _of_runs(dropped)


class _Collector:
    """Fetches references for tasks that `collect` them; the only user of the socket meanwhile."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = threading.Lock()  # tasks may have threads of their own
        self._is_serving = False
        self._request = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Within, tasks run and may collect."""
        with self._lock:
            self._is_serving = True
        try:
            yield
        finally:
            with self._lock:
                self._is_serving = False

    def fetch(self, ref: Ref) -> object:
        """The value of a reference."""
        return self.fetch_many([ref])[0]

    def fetch_many(self, refs: Sequence[Ref]) -> list[object]:
        """The values of references, asked for together."""
        for ref in refs:
            if ref.env != self._executor.env_token:
                raise ClosedError(
                    f"{ref!r} can't be fetched here: it belongs to another environment; collect "
                    "it in the client, and give its value instead"
                )
        values: list[object] = []
        for start in range(0, len(refs), COLLECTED_AT_ONCE_MAX):
            values += self._fetch_some(refs[start : start + COLLECTED_AT_ONCE_MAX])
        return values

    def adopt(self, ref: Ref) -> None:
        """Nothing to do: the run keeps its objects while its tasks run."""

    def _fetch_some(self, refs: Sequence[Ref]) -> list[object]:
        with self._lock:
            if not self._is_serving:
                raise ClosedError("references can be collected only while a task runs")
            first = self._request + 1
            self._request += len(refs)
            self._executor.send(
                [
                    Parcel(GetValue(request, ref.run, ref.position, next(iter(ref.nodes), 0)))
                    for request, ref in enumerate(refs, first)
                ]
            )
            return [
                self._executor.load(ref, self._executor.take_reply(request))
                for request, ref in enumerate(refs, first)
            ]


def _of_runs(keys: Sequence[Key]) -> list[tuple[int, int]]:
    """Keys of objects that the broker knows; those of one bundle only are our own matter."""
    return [(key[0], key[1]) for key in keys if isinstance(key, tuple) and len(key) == 2]


def _flush() -> None:
    """Write out what tasks printed; the pipe may be gone, or the streams closed by user code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
