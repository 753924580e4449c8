"""What the broker's core decided in a turn, for its shell to do. Pure."""

from dataclasses import dataclass, field

from dagsched.protocol.messages import Frame, Location, ObjectInfo, Parcel


@dataclass(slots=True)
class BrokerActions:
    """What the shell must do now, in this order of fields; each turn's are pulled once."""

    to_master: list[Parcel] = field(default_factory=list)
    to_peers: dict[int, list[Parcel]] = field(default_factory=dict)
    to_executors: dict[int, list[Parcel]] = field(default_factory=dict)
    transfers: list[tuple[int, int, ObjectInfo]] = field(default_factory=list)
    store: list[tuple[int, int, Frame]] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    kill: list[int] = field(default_factory=list)
    stop_bundles: list[tuple[int, int]] = field(default_factory=list)
    take_back: list[tuple[int, int]] = field(default_factory=list)
    free: list[Location] = field(default_factory=list)
    spill: list[tuple[int, Location]] = field(default_factory=list)
    reclaim: list[tuple[int, int, frozenset[str]]] = field(default_factory=list)
    shutdown: bool = False

    def send_executor(self, executor: int, parcel: Parcel) -> None:
        """Queue a message for an executor."""
        self.to_executors.setdefault(executor, []).append(parcel)

    def send_peer(self, peer: int, parcel: Parcel) -> None:
        """Queue a message for another broker."""
        self.to_peers.setdefault(peer, []).append(parcel)
