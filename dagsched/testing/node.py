"""A simulated node: a real `BrokerCore` with simulated executors and shared memory around it.

Does what the broker's shell does, turn by turn: push what came, take the actions once, do them.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from dagsched.brokers.core import BrokerActions, BrokerCore
from dagsched.config import Config
from dagsched.master.core import own_version
from dagsched.plan import RunPlan
from dagsched.protocol.messages import (
    BrokerHello,
    BrokerToBroker,
    ExecutorToBroker,
    ExitInfo,
    MasterToBroker,
    ObjectInfo,
    Parcel,
)
from dagsched.testing.clock import SimClock
from dagsched.testing.executor import SimExecutor
from dagsched.testing.memory import SimMemory

if TYPE_CHECKING:
    from dagsched.testing.cluster import SimCluster

RESPAWN_S = 0.005


class SimNode:
    """One node; a node that comes back after a loss is another object."""

    def __init__(self, cluster: "SimCluster", broker: int, *, slowness: float = 1.0) -> None:
        self.broker = broker
        self.is_alive = True
        self.slowness = slowness
        self.core = BrokerCore(broker, "host", cluster.config)
        self.memory = SimMemory()
        self.executors: dict[int, SimExecutor] = {}
        self._cluster = cluster
        self._incarnations: dict[int, int] = {}
        self._name = ("broker", broker)
        self._own_count = 0
        self._wake_s: float | None = None

    @property
    def clock(self) -> SimClock:
        """Of the simulation."""
        return self._cluster.clock

    @property
    def config(self) -> Config:
        """Of the cluster."""
        return self._cluster.config

    def start(self) -> None:
        """Say hello to the master."""
        hello = BrokerHello(self.broker, self.broker, "host", f"sim://{self.broker}", own_version())
        self._to_master([Parcel(hello)])

    # --- what comes -------------------------------------------------------------------------------

    def from_master(self, parcels: Sequence[Parcel]) -> None:
        """A batch of the master has arrived."""
        if self.is_alive:
            for message, frames in parcels:
                self.core.receive_master(cast("MasterToBroker", message), frames, self.clock.now)
            self.turn()

    def from_peer(self, peer: int, parcels: Sequence[Parcel]) -> None:
        """A batch of another broker has arrived."""
        if self.is_alive:
            for message, frames in parcels:
                known = cast("BrokerToBroker", message)
                self.core.receive_peer(peer, known, frames, self.clock.now)
            self.turn()

    def from_executor(self, executor: SimExecutor, parcel: Parcel) -> None:
        """An executor sends something."""

        def arrive(parcels: list[Parcel]) -> None:
            # What an executor wrote before it died is read before its death is noticed.
            if self.is_alive and self.executors.get(executor.id) is executor:
                for message, frames in parcels:
                    known = cast("ExecutorToBroker", message)
                    self.core.receive_executor(executor.id, known, frames, self.clock.now)
                self.turn()

        self._cluster.network.send(("executor", executor.pid), self._name, [parcel], arrive)

    def executor_died(
        self,
        executor: SimExecutor,
        bundle: int,
        position: int,
        exit_code: int | None,
        signal: int | None,
    ) -> None:
        """An executor's process has ended, running this."""
        self._cluster.tell(
            f"executor {executor.id} of node {self.broker} dies running position {position}"
        )

        def notice() -> None:
            if self.is_alive and self.executors.get(executor.id) is executor:
                del self.executors[executor.id]
                exit_info = ExitInfo(exit_code=exit_code, signal=signal)
                self.core.executor_lost(executor.id, exit_info, bundle, position, self.clock.now)
                self.turn()

        self._cluster.network.carry(("executor", executor.pid), self._name, 0, notice)

    def peer_lost(self, peer: int) -> None:
        """Another node has gone."""
        if self.is_alive:
            self.core.peer_lost(peer, self.clock.now)
            self.turn()

    def note_executed(self, run: int, positions: Sequence[int]) -> None:
        """Tasks have been run."""
        self._cluster.note_executed(run, positions)

    def returned_plan(self, index: int) -> RunPlan:
        """The plan of a graph in the library."""
        return self._cluster.returned_plan(index)

    # --- the turn ---------------------------------------------------------------------------------

    def turn(self) -> None:
        """Take the core's actions and do them."""
        actions = self.core.take_actions()
        if self._cluster.checks:
            self.core.check()
        self._do(actions)
        timer_s = self.core.next_timer()
        if timer_s is not None and (self._wake_s is None or timer_s < self._wake_s):
            self._wake_s = max(timer_s, self.clock.now + 1e-6)
            self.clock.at(self._wake_s, self._wake)

    def _wake(self) -> None:
        if self.is_alive and self._wake_s is not None and self.clock.now >= self._wake_s:
            self._wake_s = None
            self.core.handle_timer(self.clock.now)
            self.turn()

    def _do(self, actions: BrokerActions) -> None:
        network = self._cluster.network
        if actions.to_master:
            self._to_master(actions.to_master)
        for peer, parcels in actions.to_peers.items():
            self._cluster.between(self, peer, parcels)
        for executor_id, incarnation, keep in actions.reclaim:
            self.memory.reclaim(executor_id, incarnation, keep)
        for location in actions.free:
            self.memory.free(location, (0, 0))
        for executor_id, parcels in actions.to_executors.items():
            executor = self.executors.get(executor_id)
            if executor is not None:
                network.send(self._name, ("executor", executor.pid), parcels, executor.receive)
        for executor_id, bundle in actions.stop_bundles:
            if executor_id in self.executors:
                self.executors[executor_id].stop_bundle(bundle)
        for executor_id in actions.kill:
            if executor_id in self.executors:
                self.executors[executor_id].die(signal=9)
        for executor_id in actions.start:
            self.clock.after(RESPAWN_S, partial(self._start, executor_id))
        for run, position, frame in actions.store:
            self._store(run, ObjectInfo(position, 1, len(frame)), bytes(frame))
        for peer, run, info in actions.transfers:
            self._transfer(peer, run, info)
        if actions.shutdown:
            self._cluster.node_left(self)

    def _to_master(self, parcels: Sequence[Parcel]) -> None:
        def arrive(arrived: list[Parcel]) -> None:
            self._cluster.at_master(self, arrived)

        self._cluster.network.send(self._name, ("master", 1), parcels, arrive)

    def _start(self, executor: int) -> None:
        if self.is_alive:
            incarnation = self._incarnations.get(executor, 0) + 1
            self._incarnations[executor] = incarnation
            self.executors[executor] = SimExecutor(self, executor, incarnation)
            self.executors[executor].start()

    def _store(self, run: int, info: ObjectInfo, data: bytes, peer: int | None = None) -> None:
        """Put bytes (a constant, or what `peer` sent) into the own arena, then tell the core."""
        self._own_count += 1
        location = self.memory.write(f"0-0-{self._own_count // 3}", data)
        stored = ObjectInfo(info.first, 1, len(data), location, info.type_name, tuple(info.refs))

        def tell() -> None:
            if self.is_alive:
                if peer is None:
                    self.core.object_stored(run, stored, self.clock.now)
                else:
                    self.core.object_received(peer, run, stored, self.clock.now)
                self.turn()

        self.clock.after(1e-6, tell)

    def _transfer(self, peer: int, run: int, info: ObjectInfo) -> None:
        """Send a large object; it is read when it has all been sent."""
        receiver = self._cluster.nodes.get(peer)

        def arrive() -> None:
            if not self.is_alive:
                return
            if info.location is not None and receiver is not None and receiver.is_alive:
                data = self.memory.read(info.location)
                self._cluster.note_moved(run, info)
                receiver.store_received(self.core.broker, run, info, data)
            self.core.transfer_done(peer, run, info.first, self.clock.now)
            self.turn()

        self._cluster.network.carry(self._name, ("broker", peer), info.size_bytes, arrive)

    def store_received(self, peer: int, run: int, info: ObjectInfo, data: bytes) -> None:
        """A large object of another node has come."""
        self._store(run, info, data, peer)

    def kill(self) -> None:
        """Lose the node with all that it has."""
        self.is_alive = False
        for executor in self.executors.values():
            executor.is_alive = False
