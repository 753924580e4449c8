"""The links of one simulated process: the real `Links`, over datagrams that get lost.

Counts every message twice, when it is sent and when it is handed over, so that a story can show
that none vanished: see `Accounts`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol

from dagsched.config import Config
from dagsched.protocol.codec import Arrival, Decoder
from dagsched.protocol.links import Links
from dagsched.protocol.messages import Frame, Parcel
from dagsched.testing.network import Address, SimNetwork
from dagsched.testing.process import SimProcess

ENDS_APART = 1 << 16
"""Between the numbers of two ends of sessions: each may start anew so often."""


class Accounts:
    """Messages sent and taken, by sender, receiver and kind."""

    def __init__(self) -> None:
        self.sent: Counter[tuple[Address, Address, str]] = Counter()
        self.taken: Counter[tuple[Address, Address, str]] = Counter()
        self._session_count = count(1)

    def new_number(self) -> int:
        """Of a new session's end; it rises."""
        return ENDS_APART * next(self._session_count)


class Connected(Protocol):
    """A process with ports."""

    def port_for(self, sender: "SimPort") -> "SimPort":
        """The one that listens to this sender."""


class SimPort:
    """A process's links to its peers of one kind.

    Args:
        process: whose.
        own_id: what peers call it.
        address: where it is.
        network: carries batches.
        accounts: of all processes together.
        config: limits.
        union: the messages that may come.
        deliver: takes a peer's id, the epoch it sent, and its messages, once and in order.
        find: the living process at an address.
        opens: as for `Links`.
    """

    def __init__(
        self,
        process: SimProcess,
        own_id: int,
        address: Address,
        network: SimNetwork,
        accounts: Accounts,
        config: Config,
        union: Any,
        deliver: Callable[[int, int, Sequence[Parcel]], None],
        find: Callable[[Address], Connected | None],
        opens: Callable[[int, Arrival], bool] = lambda _peer, _arrival: True,
    ) -> None:
        self.process = process
        self.own_id = own_id
        self.address = address
        self.links = Links(Decoder(union), config, accounts.new_number, opens)
        self._network = network
        self._accounts = accounts
        self._deliver = deliver
        self._find = find
        self._routes: dict[int, Address] = {}

    def move(self, own_id: int, address: Address) -> None:
        """Begin anew, as somebody else, with nobody known."""
        self.own_id = own_id
        self.address = address
        self.links.start_anew()
        self.links.epoch = 0
        self._routes.clear()

    def connect(self, peer: int, address: Address) -> None:
        """The peer is to be found there."""
        self._routes[peer] = address

    def send(self, peer: int, parcels: Sequence[Parcel]) -> None:
        """Send a turn's messages; `flush` gives them to the network."""
        self._network.count(parcels)
        address = self._routes.get(peer)
        if address is not None:
            for message, _ in parcels:
                self._accounts.sent[self.address, address, type(message).__name__] += 1
        self.links.send(peer, list(parcels), self.process.now)

    def flush(self) -> None:
        """Hand to the network what is to go."""
        for peer, frames in self.links.take_batches(self.process.now):
            address = self._routes.get(peer)
            if address is not None:
                batch = [bytes(frame) for frame in frames]
                size_bytes = sum(map(len, batch))
                arrive = partial(self._arrive, address, batch)
                self._network.datagram(self.address, address, size_bytes, arrive)

    def _arrive(self, address: Address, batch: Sequence[Frame]) -> None:
        receiver = self._find(address)
        if receiver is not None:
            port = receiver.port_for(self)
            port.process.take(partial(port.arrived, self, batch))

    def arrived(self, sender: "SimPort", batch: Sequence[Frame]) -> None:
        """A batch has come: hand over what is whole now, and acknowledge."""
        peer, links = sender.own_id, self.links
        stale_count = links.counts["stale"]
        contents = links.receive(peer, batch, self.process.now)
        if links.counts["stale"] == stale_count:
            self._routes[peer] = sender.address
        for epoch, parcels in contents:
            for message, _ in parcels:
                self._accounts.taken[sender.address, self.address, type(message).__name__] += 1
            self._deliver(peer, epoch, parcels)
        self.process.turn()

    def unacknowledged_count(self) -> int:
        """Batches that peers may not have."""
        return sum(link.session.unacknowledged_count for link in self.links._links.values())
