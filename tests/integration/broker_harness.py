"""A master written by hand: starts real brokers and talks to them message by message."""

import contextlib
import os
import pickle
import select
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dagsched.brokers.launch import GOODBYE, BrokerSettings, launch_broker
from dagsched.brokers.objects.reader import copy_value
from dagsched.brokers.objects.segments import unlink_segments
from dagsched.config import Config
from dagsched.protocol.codec import Decoder
from dagsched.protocol.links import Links
from dagsched.protocol.messages import (
    OUTPUT,
    BrokerHello,
    BrokerToMaster,
    ExecutorChanged,
    FunctionInfo,
    OutputsReady,
    Parcel,
    PlaceSubtree,
    SetExecutors,
    SetPeers,
    Welcome,
)
from dagsched.serialize import dump_entries, dump_function
from dagsched.transport import MasterEndpoint

WAIT_S = 20.0


class HandMaster:
    """The master's end of some brokers, and what they have said and nobody has asked for yet."""

    def __init__(self, config=None):
        self.directory = Path(tempfile.mkdtemp(prefix="run-"))
        self.config = config or Config()
        self.endpoint = MasterEndpoint(self.directory / "m.sock")
        self.links = Links(Decoder(BrokerToMaster), self.config, time.monotonic_ns)
        self.processes = {}
        self.lifelines = {}
        self.launched = []
        self.heard = []

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for _, _, lifeline in self.launched:
            with contextlib.suppress(BrokenPipeError):
                lifeline.write(GOODBYE)
            lifeline.close()
        for process, prefix, _ in self.launched:
            process.wait(WAIT_S)
            # What a killed broker leaves, its client sweeps.
            unlink_segments(prefix)
        self.endpoint.close()
        shutil.rmtree(self.directory)

    def launch(self, broker, incarnation=1):
        """Start a broker's process."""
        settings = BrokerSettings(
            broker=broker,
            host="127.0.0.1",
            env_token="token",
            name_prefix=self.prefix(broker, incarnation),
            run_directory=str(self.directory),
            master_socket=str(self.directory / "m.sock"),
            data_socket=str(self.directory / f"b{broker}.{incarnation}.sock"),
            sys_path=[*sys.path],
            cwd=str(Path.cwd()),
            config=self.config,
            debug=True,
        )
        process, self.lifelines[broker] = launch_broker(settings, dict(os.environ))
        self.processes[broker] = process
        self.launched.append((process, settings.name_prefix, self.lifelines[broker]))

    def prefix(self, broker, incarnation=1):
        return f"dagsched-handmaster-{os.getpid()}-{broker}{incarnation:04d}"

    def join(self, executors_by_broker):
        """Start brokers and wait until all their executors are there; their pids by id."""
        for broker in executors_by_broker:
            self.launch(broker)
        hellos = [self.take(b, BrokerHello).message for b in executors_by_broker]
        addresses = {hello.broker: hello.address for hello in hellos}
        pids = {}
        for broker, executors in executors_by_broker.items():
            peers = [(b, 1, address) for b, address in addresses.items() if b != broker]
            self.send(broker, Welcome(broker, 1), SetPeers(peers), SetExecutors(executors))
        for broker, executors in executors_by_broker.items():
            for _ in executors:
                changed = self.take(broker, ExecutorChanged).message
                pids[changed.executor] = changed.pid
        return pids

    def send(self, broker, *messages):
        parcels = [m if isinstance(m, Parcel) else Parcel(m) for m in messages]
        self.links.send(broker, parcels, time.monotonic())
        self._flush()

    def _flush(self):
        for broker, frames in self.links.take_batches(time.monotonic()):
            self.endpoint.send(broker, frames)

    def take(self, broker, kind, matching=lambda message: True):
        """The next message of a kind from a broker; others stay for later."""
        deadline = time.monotonic() + WAIT_S
        while True:
            for index, (sender, parcel) in enumerate(self.heard):
                message = parcel.message
                if sender == broker and isinstance(message, kind) and matching(message):
                    return self.heard.pop(index)[1]
            self._listen(deadline, kind)

    def _listen(self, deadline, kind):
        arrived = self.endpoint.drain()
        if not arrived:
            ready, _, _ = select.select(
                [self.endpoint.fd], [], [], max(0.0, deadline - time.monotonic())
            )
            assert ready, f"no {kind.__name__}; heard {self.heard}; {self.logs()}"
        for sender, frames in arrived:
            for _, parcels in self.links.receive(sender, frames, time.monotonic()):
                self.heard += [(sender, parcel) for parcel in parcels]
        self._flush()

    def values(self, broker, count):
        """Values of that many outputs, by position."""
        found = {}
        while len(found) < count:
            parcel = self.take(broker, OutputsReady)
            frames = iter(parcel.frames)
            for info in parcel.message.objects:
                if info.location is not None:
                    found[info.first] = copy_value(info.location)
                    continue
                loaded = pickle.loads(next(frames))
                values = [loaded] if info.count == 1 else loaded
                found.update(zip(range(info.first, info.first + info.count), values, strict=True))
        return found

    def logs(self):
        """What brokers and executors have printed."""
        return {p.name: p.read_text(errors="replace") for p in self.directory.glob("*.log")}

    def segments(self, broker, incarnation=1):
        prefix = self.prefix(broker, incarnation)
        return [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


def subtree(run, tasks, *, lo=0, total=None, number=0, epoch=1, imports=(), crash_limit=3):
    """A PlaceSubtree of tasks (function, entry, dependencies, flags), at positions from `lo`.

    ``imports``: (position, broker) of what comes from elsewhere.
    """
    functions = list(dict.fromkeys(task[0] for task in tasks))
    deps = [task[2] for task in tasks]
    count = len(tasks)
    assert lo % 64 == 0
    chunks = [
        dump_entries([task[1] for task in tasks[begin : begin + 64]], plain=False)
        for begin in range(0, count, 64)
    ]
    frames = [
        b"",  # all of them
        np.cumsum([0, *map(len, deps)], dtype=np.int32).tobytes(),
        np.array([d for group in deps for d in group], np.int32).tobytes(),
        np.array([functions.index(task[0]) for task in tasks], np.int32).tobytes(),
        bytes(task[3] for task in tasks),
        b"",
        np.array([position for position, _ in imports], np.int32).tobytes(),
        np.array([broker for _, broker in imports], np.int32).tobytes(),
        *chunks,
        *(dump_function(function) for function in functions),
    ]
    infos = [
        (FunctionInfo(i, b"%016d" % i, function.__name__, None), True)
        for i, function in enumerate(functions)
    ]
    message = PlaceSubtree(run, epoch, number, 1, lo, lo + count, total or lo + count, 0, infos, ())
    return Parcel(message, frames)


def one(function, *args, flags=OUTPUT):
    """A subtree's only task."""
    return [(function, args, (), flags)]
