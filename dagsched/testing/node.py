"""A simulated node: a real `BrokerCore` with simulated executors and shared memory around it.

Does what the broker's shell does, turn by turn: push what came, take the actions once, do them.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from dagsched.brokers.actions import BrokerActions
from dagsched.brokers.answers import Look
from dagsched.brokers.core import BrokerCore
from dagsched.brokers.transfers import IncomingTransfers, OutgoingTransfers
from dagsched.config import Config
from dagsched.master.core import own_version
from dagsched.plan import RunPlan
from dagsched.protocol.messages import (
    BrokerHello,
    BrokerToBroker,
    ExecutorToBroker,
    ExitInfo,
    Frame,
    MasterToBroker,
    ObjectInfo,
    Parcel,
    SetPeers,
    TransferChunk,
    TransferCredit,
    TransferStart,
)
from dagsched.testing.executor import SimExecutor
from dagsched.testing.links import SimLinks
from dagsched.testing.memory import SimMemory
from dagsched.testing.network import Address
from dagsched.testing.process import Action, SimProcess

if TYPE_CHECKING:
    from dagsched.testing.cluster import SimCluster

RESPAWN_S = 0.005
MASTER = 1
"""How brokers call whoever is their master."""


class SimNode(SimProcess):
    """One node: a broker's process and what it started.

    Args:
        cluster: that it is part of.
        broker: its id; one that comes back after a loss has the same, and is another object.
        serial: its number, which no other node of the simulation has.
        slowness: how much longer tasks take here.
        clock_offset_s: how much its clock is ahead.
    """

    def __init__(
        self,
        cluster: "SimCluster",
        broker: int,
        serial: int,
        *,
        slowness: float = 1.0,
        clock_offset_s: float = 0.0,
    ) -> None:
        super().__init__(cluster.clock, clock_offset_s=clock_offset_s)
        self.broker = broker
        self.serial = serial
        self.slowness = slowness
        self.address: Address = ("broker", serial)
        self.core = BrokerCore(broker, "host", cluster.config)
        self.core.look = self._look
        self.memory = SimMemory(serial)
        self.executors: dict[int, SimExecutor] = {}
        self.stale_count = 0
        self.links = SimLinks(
            self, broker, self.address, cluster.network, cluster.accounts, cluster.config,
            MasterToBroker | BrokerToBroker, self._deliver, cluster.find_links,
        )  # fmt: skip
        self._cluster = cluster
        self._peer_epochs: dict[int, int] = {}
        self._outgoing = OutgoingTransfers(cluster.config, self.memory.view)
        self._incoming = IncomingTransfers(self.memory)
        self._incarnations: dict[int, int] = {}
        self._executors_stand = False
        self._held_by_executors: list[Action] = []

    @property
    def config(self) -> Config:
        """Of the cluster."""
        return self._cluster.config

    def _look(self, executor: int) -> Look | None:
        """What an executor's process says of itself."""
        found = self.executors.get(executor)
        if found is None:
            return None
        since_s = found.running_since_s() - self.clock.now + self.now
        return Look(found.running()[1], since_s, self._executors_stand)

    def start(self, master: Address) -> None:
        """Say hello to the master."""
        if not self.is_alive:
            return
        self.links.route(MASTER, master)
        hello = BrokerHello(self.broker, self.serial, "host", f"{self.serial}", own_version())
        self._to_master([Parcel(hello)])
        self.turn()

    # --- what comes -------------------------------------------------------------------------------

    def _deliver(self, peer: int, epoch: int, parcels: Sequence[Parcel]) -> None:
        """A batch has arrived."""
        if peer == MASTER:
            for message, frames in parcels:
                self._cluster.record(f"master -> {self.broker}", message)
                if isinstance(message, SetPeers):
                    self._set_peers(message)
                self.core.receive_master(cast("MasterToBroker", message), frames, self.now)
        elif epoch < self._peer_epochs.get(peer, 0):
            self.stale_count += len(parcels)
        else:
            for message, frames in parcels:
                self._cluster.record(f"{peer} -> {self.broker}", message)
                self._from_peer(peer, cast("BrokerToBroker", message), frames)
        self.turn()

    def _from_peer(self, peer: int, message: BrokerToBroker, frames: Sequence[Frame]) -> None:
        match message:
            case TransferStart():
                self._incoming.start(peer, message)
            case TransferChunk():
                self._incoming.chunk(peer, message, frames)
            case TransferCredit():
                self._outgoing.credit(peer, message)
            case _:
                self.core.receive_peer(peer, message, frames, self.now)

    def _set_peers(self, message: SetPeers) -> None:
        epochs = {peer: epoch for peer, epoch, _ in message.peers}
        addresses = {peer: address for peer, _, address in message.peers}
        for peer, epoch in self._peer_epochs.items():
            if epochs.get(peer) != epoch:
                self._outgoing.peer_lost(peer)
                self._incoming.peer_lost(peer)
                self.core.peer_lost(peer, self.now)
        for peer in self._peer_epochs.keys() - epochs.keys():
            self.links.forget(peer)
        self._peer_epochs = epochs
        for peer, address in addresses.items():
            self.links.route(peer, ("broker", int(address)))

    def from_executor(self, executor: SimExecutor, parcel: Parcel) -> None:
        """An executor sends something."""

        def arrive(parcels: list[Parcel]) -> None:
            # What an executor wrote before it died is read before its death is noticed.
            if self.executors.get(executor.id) is executor:
                for message, frames in parcels:
                    known = cast("ExecutorToBroker", message)
                    self.core.receive_executor(executor.id, known, frames, self.now)
                self.turn()

        self._cluster.network.send(
            ("executor", executor.pid),
            self.address,
            [parcel],
            lambda parcels: self.take(lambda: arrive(parcels)),
        )

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
            if self.executors.get(executor.id) is executor:
                del self.executors[executor.id]
                exit_info = ExitInfo(exit_code=exit_code, signal=signal)
                self.core.executor_lost(executor.id, exit_info, bundle, position, self.now)
                self.turn()

        link = (("executor", executor.pid), self.address)
        self._cluster.network.carry(*link, 0, lambda: self.take(notice))

    def note_executed(self, run: int, positions: Sequence[int]) -> None:
        """Tasks have been run."""
        self._cluster.note_executed(self, run, positions)

    def returned_plan(self, index: int) -> RunPlan:
        """The plan of a graph in the library."""
        return self._cluster.returned_plan(index)

    # --- the turn ---------------------------------------------------------------------------------

    def _act(self) -> None:
        for peer, run, first in self._outgoing.take_done():
            self.core.transfer_done(peer, run, first, self.now)
        for peer, run, info in self._incoming.take_stored():
            self._cluster.note_moved(run, info)
            self.core.object_received(peer, run, info, self.now)
        actions = self.core.take_actions()
        if self._cluster.checks:
            self.core.check()
        self._do(actions)

    def _next_timer(self) -> float | None:
        times = (self.core.next_timer(), self.links.next_timer())
        return min((time for time in times if time is not None), default=None)

    def _handle_timer(self) -> None:
        due = self.core.next_timer()
        if due is not None and due <= self.now:
            self.core.handle_timer(self.now)
        self.links.handle_timer()

    def _do(self, actions: BrokerActions) -> None:
        network = self._cluster.network
        for executor_id, incarnation, keep in actions.reclaim:
            self.memory.reclaim(executor_id, incarnation, keep)
        for location in actions.free:
            self.memory.free(location)
        for executor_id, parcels in actions.to_executors.items():
            executor = self.executors.get(executor_id)
            if executor is not None:
                network.send(self.address, ("executor", executor.pid), parcels, executor.receive)
        for executor_id, bundle in actions.stop_bundles:
            if executor_id in self.executors:
                self.executors[executor_id].stop_bundle(bundle)
        for executor_id, bundle in actions.take_back:
            if executor_id in self.executors and self.executors[executor_id].take_back(bundle):
                self.core.ledger.taken_back(executor_id, bundle)
                self.after(0.0, self.turn)
        for executor_id in actions.kill:
            if executor_id in self.executors:
                self.executors[executor_id].die(signal=9)
        for executor_id in actions.start:
            self.after(RESPAWN_S, partial(self._start, executor_id))
        for peer, parcels in actions.to_peers.items():
            self.links.send(peer, parcels, self.core.epoch)
        if actions.to_master:
            self._to_master(actions.to_master)
        for run, position, frame in actions.store:
            self._store(run, position, bytes(frame))
        for peer, run, info in actions.transfers:
            self._outgoing.start(peer, run, info)
        for peer, parcel in [*self._incoming.take_parcels(), *self._outgoing.take_parcels()]:
            self.links.send(peer, [parcel], self.core.epoch)
        if actions.shutdown:
            self._cluster.tell(f"node {self.broker} leaves")
            self._cluster.node_left(self)

    def _to_master(self, parcels: Sequence[Parcel]) -> None:
        self.links.send(MASTER, parcels, self.core.epoch)

    def _start(self, executor: int) -> None:
        incarnation = self._incarnations.get(executor, 0) + 1
        self._incarnations[executor] = incarnation
        self.executors[executor] = SimExecutor(self, executor, incarnation)
        self.executors[executor].start()

    def _store(self, run: int, position: int, data: bytes) -> None:
        """Put a constant into the own arena, then tell the core."""
        location, target = self.memory.write_raw(len(data))
        target[:] = data

        def tell() -> None:
            info = ObjectInfo(position, 1, len(data), location)
            self.core.object_stored(run, info, self.now)
            self.turn()

        self.after(1e-6, tell)

    # --- faults -----------------------------------------------------------------------------------

    def pause_all(self) -> None:
        """Stop the broker and its executors: the machine stands still."""
        self.pause()
        self._executors_stand = True

    def proceed(self) -> None:
        """See `SimProcess.proceed`."""
        self._executors_stand = False
        held, self._held_by_executors = self._held_by_executors, []
        for action in held:
            action()
        super().proceed()

    def take_in_executor(self, action: Action) -> None:
        """Something that an executor does by itself."""
        if self._executors_stand:
            self._held_by_executors.append(action)
        elif self.is_alive:
            action()

    def kill(self) -> None:
        """Lose the node with all that it has."""
        super().kill()
        for executor in self.executors.values():
            executor.is_alive = False
