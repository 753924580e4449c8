"""One incarnation of the master, with the client that it lives in: the shell around the core."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from dagsched.errors import InternalError
from dagsched.master.core import MasterCore
from dagsched.master.events import (
    ClientEvent,
    OutputsComplete,
    RunEnded,
    StatsArrived,
    ValueArrived,
)
from dagsched.master.journal import Ended
from dagsched.protocol.codec import Arrival
from dagsched.protocol.messages import (
    BrokerHello,
    BrokerToMaster,
    Frame,
    ObjectInfo,
    Parcel,
)
from dagsched.taking import SECURED_FROM_S
from dagsched.testing.links import SimPort
from dagsched.testing.network import Address
from dagsched.testing.process import SimProcess
from dagsched.testing.store import SimJournal

if TYPE_CHECKING:
    from dagsched.testing.cluster import SimCluster
    from dagsched.testing.node import SimNode

COPY_S = 0.0005  # until the client has copied outputs
ANSWER_S = 0.001  # until the store has answered that it has them


class SimMaster(SimProcess):
    """The client's process: its master's thread, its journal's, and what waits for results.

    Args:
        cluster: that it rules.
        number: which incarnation.
        clock_offset_s: how much its clock is ahead.
    """

    def __init__(self, cluster: "SimCluster", number: int, *, clock_offset_s: float = 0.0) -> None:
        super().__init__(cluster.clock, clock_offset_s=clock_offset_s)
        self.number = number
        self.address: Address = ("master", number)
        self.core = MasterCore(cluster.config, base=(number - 1) << 24)
        self.port = SimPort(
            self, 1, self.address, cluster.network, cluster.accounts, cluster.config,
            BrokerToMaster, self._deliver, cluster.find_process, _is_hello,
        )  # fmt: skip
        self.journal = SimJournal(cluster.store, cluster.config, self, self._rewrite)
        self.answers: dict[int, ValueArrived | StatsArrived] = {}
        self._cluster = cluster
        # Told to leave: until when that is awaited, and of whom.
        self._leaving: dict[int, tuple[float, SimNode | None]] = {}

    def unacknowledged_count(self) -> int:
        """Batches that brokers may not have."""
        return self.port.unacknowledged_count()

    # --- the master's thread ----------------------------------------------------------------------

    def port_for(self, sender: SimPort) -> SimPort:  # noqa: ARG002
        """See `Connected`."""
        return self.port

    def _deliver(self, broker: int, epoch: int, parcels: Sequence[Parcel]) -> None:
        for message, frames in parcels:
            self._cluster.record(f"{broker} -> master", message)
            if not isinstance(message, BrokerHello) and epoch != self.core.epoch_of(broker):
                self.port.links.counts["stale"] += 1
            else:
                self.core.receive(broker, cast("BrokerToMaster", message), frames, self.now)

    def _act(self) -> None:
        cluster, links = self._cluster, self.port.links
        for broker, (until_s, _) in list(self._leaving.items()):
            if self.core.epoch_of(broker) is not None:
                del self._leaving[broker]
            elif self.now >= until_s:
                node = self._leaving.pop(broker)[1]
                links.forget(broker)
                if node is not None and node.is_alive:
                    cluster.end_node(node)
        actions = self.core.take_actions()
        if cluster.checks:
            self.core.check()
        for record in actions.journal:
            if isinstance(record, Ended):
                rest = [*record.rest, record] if record.rest else []
                self.journal.finish(record.run, rest, is_whole=record.is_whole)
            else:
                self.journal.put(record.run, record)
            cluster.record_written()
            if not self.is_alive:
                return
        for broker in actions.disconnect:
            cluster.gone(broker)
            if self.core.epoch_of(broker) is None:
                links.forget(broker)
                cluster.end_broker(broker)
        for broker, parcels in actions.to_brokers.items():
            self.port.send(broker, parcels)
            if self.core.epoch_of(broker) is None:
                until_s = self.now + cluster.config.lease_s
                self._leaving[broker] = (until_s, cluster.nodes.get(broker))
        for event in actions.events:
            self._event(event)
        self.port.flush()

    def _next_timer(self) -> float | None:
        times = (self.core.next_timer(), self.port.links.next_timer())
        return min((time for time in times if time is not None), default=None)

    def _handle_timer(self) -> None:
        due = self.core.next_timer()
        if due is not None and due <= self.now:
            self.core.handle_timer(self.now)
        self.port.links.handle_timer(self.now)

    def peer_lost(self, broker: int, reason: str) -> None:
        """The process of a broker has ended."""
        self.core.peer_lost(broker, reason, self.now)
        self.turn()

    def _rewrite(self, run: int) -> None:
        """The journal asks for all records of a run."""
        records = self.core.journal_of(run)
        if records is None:
            self.journal.forget(run)
        else:
            self.journal.restart(run, records)

    # --- the client -------------------------------------------------------------------------------

    def _event(self, event: ClientEvent) -> None:
        self._cluster.events.append(event)
        self._cluster.record("event", event)
        match event:
            case OutputsComplete():
                self.after(COPY_S, lambda: self._take(event))
            case RunEnded():
                self._cluster.run_ended(event)
            case ValueArrived() | StatsArrived():
                self.answers[event.request] = event
            case _:
                pass

    def _take(self, event: OutputsComplete) -> None:
        """Copy the outputs, unless a node that had them has gone meanwhile."""
        outcome = self._cluster.outcomes[event.run]
        if outcome.is_over or not all(
            self._is_there(broker, info) for broker, info, _ in event.objects
        ):
            return  # it has ended otherwise, or the master will announce the outputs again
        outcome.refs = []
        for broker, info, frame in event.objects:
            outcome.take(info, self.bytes_of(broker, info, frame))
        secured_s = 0.0
        if self.now - outcome.submitted_s >= SECURED_FROM_S and self.journal.secure():
            secured_s = ANSWER_S
        self.after(secured_s, lambda: self._let_go(event.run))

    def _let_go(self, run: int) -> None:
        self.core.outputs_taken(run, self.now)
        self.turn()

    def _is_there(self, broker: int, info: ObjectInfo) -> bool:
        if info.location is None:
            return True
        node = self._cluster.node_of(self, broker)
        return node is not None and node.memory.is_here(info.location)

    def bytes_of(self, broker: int, info: ObjectInfo, frame: Frame | None) -> Frame:
        """The bytes of an object that came, or that lies in the memory of a node."""
        if info.location is not None:
            node = self._cluster.node_of(self, broker)
            if node is None:
                raise InternalError(f"object {info.first} is on node {broker}, which is gone")
            frame = node.memory.read(info.location)
        if frame is None:
            raise InternalError(f"object {info.first} came without bytes")
        return frame


def _is_hello(_broker: int, arrival: Arrival) -> bool:
    """Nobody but a broker that presents itself may begin a link; as in the real shell."""
    parcels = arrival.parcels
    return bool(parcels) and isinstance(parcels[0].message, BrokerHello)
