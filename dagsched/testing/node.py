"""A simulated node: a real `BrokerCore` with simulated executors and shared memory around it.

Does what the broker's shell does, turn by turn: push what came, take the actions once, do them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from dagsched.brokers.actions import BrokerActions
from dagsched.brokers.answers import Look
from dagsched.brokers.core import BrokerCore
from dagsched.brokers.routes import peers_after
from dagsched.brokers.transfers import IncomingTransfers, OutgoingTransfers
from dagsched.config import Config
from dagsched.master.core import own_version
from dagsched.plan import RunPlan
from dagsched.protocol.messages import (
    BrokerHello,
    BrokerToBroker,
    EndRun,
    ExecutorToBroker,
    ExitInfo,
    Location,
    MasterToBroker,
    ObjectInfo,
    Parcel,
    PlaceSubtree,
    RunBundle,
    SetPeers,
    TransferChunk,
    TransferCredit,
    TransferStart,
    Welcome,
)
from dagsched.testing.executor import SimExecutor
from dagsched.testing.gangs import SimGang
from dagsched.testing.links import SimPort
from dagsched.testing.memory import SimMemory
from dagsched.testing.network import Address
from dagsched.testing.process import Action, SimProcess

if TYPE_CHECKING:
    from dagsched.testing.cluster import SimCluster

RESPAWN_S = 0.005
GANGS_MAX = 100
SPILL_S = 0.002
"""Until an object has been copied to a file."""

MASTER = 1
"""How brokers call whoever is their master."""

ORPHAN_IDS_FROM = 10**9
GENERATION = 1_000_000
"""Between the numbers of a node's addresses: it has a new one with each master."""


class SimNode(SimProcess):
    """One node: a broker's process and what it started.

    Args:
        cluster: that it is part of.
        broker: its id; one that comes back after a loss has the same, and is another object.
        serial: its number, which no other node of the simulation has.
        slowness: how much longer tasks take, by id of a node or of an executor.
        clock_offset_s: how much its clock is ahead.
    """

    def __init__(
        self,
        cluster: "SimCluster",
        broker: int,
        serial: int,
        *,
        slowness: Mapping[int, float],
        clock_offset_s: float = 0.0,
    ) -> None:
        super().__init__(cluster.clock, clock_offset_s=clock_offset_s)
        self.broker = broker
        self.serial = serial
        self._slowness = slowness
        self._slowness_here = slowness.get(broker, 1.0)
        self.address: Address = ("broker", serial)
        self.core = BrokerCore(broker, "host", cluster.config)
        self.core.look = self._look
        self.memory = SimMemory(serial, cluster.config.store_bytes_max)
        self.executors: dict[int, SimExecutor] = {}
        self.to_master = self._port(cluster, MasterToBroker, self._from_master)
        self.to_peers = self._port(cluster, BrokerToBroker, self._from_peer)
        self._cluster = cluster
        self._epoch = 0
        self._peer_epochs: dict[int, int] = {}
        self._outgoing = OutgoingTransfers(cluster.config, self.memory.view)
        self._incoming = IncomingTransfers(self.memory, lambda: self.now)
        self._incarnations: dict[int, int] = {}
        self._executors_stand = False
        self._begun_s: dict[int, float] = {}  # by run that has not ended
        self._had_run = False
        self._generation = 0
        self.leave_at_s: float | None = None  # without a master: until when it waits for another
        self._held_by_executors: list[Action] = []
        self._gangs: dict[tuple[int, int, int], SimGang] = {}

    def _port(
        self,
        cluster: "SimCluster",
        union: Any,
        deliver: Callable[[int, int, Sequence[Parcel]], None],
    ) -> SimPort:
        return SimPort(
            self, self.broker, self.address, cluster.network, cluster.accounts, cluster.config,
            union, deliver, cluster.find_process,
        )  # fmt: skip

    def port_for(self, sender: SimPort) -> SimPort:
        """See `Connected`."""
        return self.to_master if sender.address[0] == "master" else self.to_peers

    def unacknowledged_count(self) -> int:
        """Batches that the master or peers may not have."""
        return self.to_master.unacknowledged_count() + self.to_peers.unacknowledged_count()

    @property
    def config(self) -> Config:
        """Of the cluster."""
        return self._cluster.config

    def slowness_of(self, executor: int) -> float:
        """How much longer tasks take in one of its executors."""
        return self._slowness.get(executor, self._slowness_here)

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
        self.to_master.connect(MASTER, master)
        hello = BrokerHello(self.broker, self.serial, "host", f"{self.serial}", own_version())
        self.to_master.send(MASTER, [Parcel(hello)])
        self.turn()

    # --- what comes -------------------------------------------------------------------------------

    def _from_master(self, peer: int, epoch: int, parcels: Sequence[Parcel]) -> None:  # noqa: ARG002
        for message, frames in parcels:
            self._cluster.record(f"master -> {self.broker}", message)
            if isinstance(message, SetPeers):
                self._set_peers(message)
            elif isinstance(message, Welcome):
                self._join(message.epoch)
                self.leave_at_s = None
            elif isinstance(message, PlaceSubtree):
                self._had_run = True
                self._begun_s.setdefault(message.run, self.now)
            elif isinstance(message, EndRun):
                self._begun_s.pop(message.run, None)
            self.core.receive_master(cast("MasterToBroker", message), frames, self.now)

    def _join(self, epoch: int) -> None:
        if self._epoch not in (0, epoch):
            self.to_peers.links.start_anew()
        self._epoch = self.to_master.links.epoch = self.to_peers.links.epoch = epoch

    def _from_peer(self, peer: int, epoch: int, parcels: Sequence[Parcel]) -> None:  # noqa: ARG002
        for message, frames in parcels:
            self._cluster.record(f"{peer} -> {self.broker}", message)
            match message:
                case TransferStart():
                    self._incoming.start(peer, message)
                case TransferChunk():
                    self._incoming.chunk(peer, message, frames)
                case TransferCredit():
                    self._outgoing.credit(peer, message)
                case _:
                    known = cast("BrokerToBroker", message)
                    self.core.receive_peer(peer, known, frames, self.now)

    def _set_peers(self, message: SetPeers) -> None:
        come = {peer: epoch for peer, epoch, _ in message.peers}
        epochs = peers_after(self._peer_epochs, message, come)
        for peer, epoch in self._peer_epochs.items():
            if epochs.get(peer) != epoch:
                self._lose_peer(peer)
                self.to_peers.links.remove(peer, epoch)
        known, self._peer_epochs = self._peer_epochs, epochs
        for peer, _, address in message.peers:
            self.to_peers.connect(peer, ("broker", int(address)))
            if peer not in known:
                self.to_peers.links.send_again(peer, self.now)

    def _lose_peer(self, peer: int) -> None:
        self._outgoing.peer_lost(peer)
        self._incoming.peer_lost(peer)
        self.core.peer_lost(peer, self.now)

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

    def gang_of(self, message: RunBundle) -> SimGang:
        """The gang that a lane belongs to; of a run only the latest are remembered."""
        key = (message.run, message.bundle, message.attempt)
        while len(self._gangs) > GANGS_MAX:
            del self._gangs[next(iter(self._gangs))]
        return self._gangs.setdefault(key, SimGang())

    def returned_plan(self, index: int) -> RunPlan:
        """The plan of a graph in the library."""
        return self._cluster.returned_plan(index)

    # --- without a master -------------------------------------------------------------------------

    @property
    def will_stay(self) -> bool:
        """Whether it waits for another master when its own has died."""
        return self.is_alive and self._had_run

    def master_died(self) -> None:
        """Whoever led us is dead: stay for another, if there is something to stay for."""
        if not self._had_run:
            self._cluster.node_left(self)
            return
        for peer in list(self._peer_epochs):
            self._lose_peer(peer)
        self._peer_epochs = {}
        self._generation += 1
        self.broker = ORPHAN_IDS_FROM + self.serial
        self.address = ("broker", self.serial + GENERATION * self._generation)
        self._epoch = 0
        for port in (self.to_master, self.to_peers):
            port.move(self.broker, self.address)
        self.core.become_orphan(self.broker, self.now)
        age_s = self.now - min(self._begun_s.values(), default=self.now)
        grace_s = min(max(self.config.master_grace_s, age_s), self.config.master_grace_max_s)
        self.leave_at_s = self.now + grace_s
        self._cluster.orphaned(self)
        self.turn()

    def dial(self, master: Address) -> None:
        """There is another master."""
        if not self.core.is_orphan:
            return
        self.to_master.move(self.broker, self.address)
        self.to_master.connect(MASTER, master)
        hello = self.core.orphan_hello(self.serial, f"{self.address[1]}", own_version())
        self.to_master.send(MASTER, [Parcel(hello)])
        self.turn()

    # --- the turn ---------------------------------------------------------------------------------

    def _act(self) -> None:
        for peer, run, first in self._outgoing.take_done():
            self.core.transfer_done(peer, run, first, self.now)
        for peer, run, info, span in self._incoming.take_stored():
            self._cluster.note_moved(run, info)
            self.core.object_received(peer, run, info, span, self.now)
        actions = self.core.take_actions()
        if self._cluster.checks:
            self.core.check()
        self._do(actions)
        self.to_master.flush()
        self.to_peers.flush()

    def _next_timer(self) -> float | None:
        times = (
            self.core.next_timer(),
            self.to_master.links.next_timer(),
            self.to_peers.links.next_timer(),
            self.leave_at_s,
        )
        return min((time for time in times if time is not None), default=None)

    def _handle_timer(self) -> None:
        due = self.core.next_timer()
        if due is not None and due <= self.now:
            self.core.handle_timer(self.now)
        self.to_master.links.handle_timer(self.now)
        self.to_peers.links.handle_timer(self.now)
        if self.leave_at_s is not None and self.now >= self.leave_at_s:
            self._cluster.tell(f"nobody has resumed the runs of node {self.broker}")
            self._cluster.node_left(self)

    def _do(self, actions: BrokerActions) -> None:
        network = self._cluster.network
        for executor_id, incarnation, keep in actions.reclaim:
            self.memory.reclaim(executor_id, incarnation, keep)
        for location in actions.free:
            self.memory.free(location)
        for job, location in actions.spill:
            self.after(SPILL_S, partial(self._spill, job, location))
        for executor_id, parcels in actions.to_executors.items():
            executor = self.executors.get(executor_id)
            if executor is not None:
                network.send(self.address, ("executor", executor.pid), parcels, executor.receive)
        for executor_id, bundle in actions.stop_bundles:
            if executor_id in self.executors:
                self.executors[executor_id].stop_bundle(bundle)
        begun: set[int] = set()
        for executor_id, bundle in reversed(actions.take_back):
            found = self.executors.get(executor_id)
            is_free = found is not None and executor_id not in begun
            is_left_out = is_free and found is not None and found.take_back(bundle)
            self.core.ledger.taken_back(executor_id, bundle, is_left_out=is_left_out)
            if is_left_out:
                self.after(0.0, self.turn)
            else:
                begun.add(executor_id)
        for executor_id in actions.kill:
            if executor_id in self.executors:
                self.executors[executor_id].die(signal=9)
        for executor_id in actions.start:
            self.after(RESPAWN_S, partial(self._start, executor_id))
        for peer, parcels in actions.to_peers.items():
            self.to_peers.send(peer, parcels)
        if actions.to_master:
            self.to_master.send(MASTER, actions.to_master)
        for run, position, frame in actions.store:
            self._store(run, position, bytes(frame))
        for peer, run, info in actions.transfers:
            self._outgoing.start(peer, run, info)
        for peer, parcel in [*self._incoming.take_parcels(), *self._outgoing.take_parcels()]:
            self.to_peers.send(peer, [parcel])
        if actions.shutdown:
            self._cluster.tell(f"node {self.broker} leaves")
            self._cluster.node_left(self)

    def _start(self, executor: int) -> None:
        incarnation = self._incarnations.get(executor, 0) + 1
        self._incarnations[executor] = incarnation
        self.executors[executor] = SimExecutor(self, executor, incarnation)
        self.executors[executor].start()

    def _spill(self, job: int, location: Location) -> None:
        """Copy an object to a file, then tell the core."""
        self.core.object_spilled(job, self.memory.spill(job, location), self.now)
        self.turn()

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
