"""The links of one simulated process: a real `Session` for each peer, over datagrams that get lost.

Counts every message twice, when it is sent and when it is handed over, so that a story can show
that none vanished: see `Accounts`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

from dagsched.config import Config
from dagsched.protocol.codec import Decoder, encode_batch
from dagsched.protocol.messages import Parcel
from dagsched.protocol.session import Session, Stamp
from dagsched.testing.network import Address, SimNetwork
from dagsched.testing.process import SimProcess

ENDS_APART = 1 << 16
"""Between the numbers of two ends: each may start anew so often."""

Content = tuple[int, list[Parcel]]
"""Epoch of the sender's membership, and what it sends."""


class Accounts:
    """Messages sent, taken and refused, by sender, receiver and kind."""

    def __init__(self) -> None:
        self.sent: Counter[tuple[Address, Address, str]] = Counter()
        self.taken: Counter[tuple[Address, Address, str]] = Counter()
        self.session_count = count(1)


class SimLinks:
    """Ends of links, by the peer's id.

    Args:
        process: whose.
        own_id: what peers call it.
        address: where it is.
        network: carries batches.
        accounts: of all processes together.
        config: limits.
        union: the messages that may come.
        deliver: takes a peer's id, the epoch it sent, and its messages, once and in order.
        find: the process at an address; None: it is gone.
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
        deliver: Callable[[int, int, list[Parcel]], None],
        find: Callable[[Address], "SimLinks | None"],
    ) -> None:
        self.process = process
        self.own_id = own_id
        self.address = address
        self._network = network
        self._accounts = accounts
        self._config = config
        self._decoder = Decoder(union)
        self._deliver = deliver
        self._find = find
        self._sessions: dict[int, Session[Content, list[bytes]]] = {}
        self._routes: dict[int, Address] = {}

    # --- who is there -----------------------------------------------------------------------------

    def route(self, peer: int, address: Address) -> None:
        """The peer is to be found there; what waited for it is sent there."""
        known = self._routes.get(peer)
        if known == address:
            return
        if known is not None:
            self.forget(peer)  # another process had this id
        self._routes[peer] = address
        session = self._sessions.get(peer)
        if session is not None:
            session.send_again(self.process.now)
            self._flush(peer, session)

    def forget(self, peer: int, address: Address | None = None) -> None:
        """The peer (at that address) is gone, with all that was to be sent to it."""
        if address is not None and self._routes.get(peer) != address:
            return
        self._sessions.pop(peer, None)
        self._routes.pop(peer, None)

    def peers(self) -> list[int]:
        """Those that something was sent to, or came from."""
        return sorted(self._sessions)

    def unacknowledged_count(self) -> int:
        """Batches that peers may not have."""
        return sum(session.unacknowledged_count for session in self._sessions.values())

    def _session(self, peer: int) -> Session[Content, list[bytes]]:
        session = self._sessions.get(peer)
        if session is None:
            number = ENDS_APART * next(self._accounts.session_count)
            session = self._sessions[peer] = Session(number, _encoded, self._config)
        return session

    # --- out and in -------------------------------------------------------------------------------

    def send(self, peer: int, parcels: Sequence[Parcel], epoch: int) -> None:
        """Send a turn's messages."""
        self._network.count(parcels)
        address = self._routes.get(peer)
        if address is not None:
            sent = self._accounts.sent
            for message, _ in parcels:
                sent[self.address, address, type(message).__name__] += 1
        session = self._session(peer)
        session.send((epoch, list(parcels)), self.process.now)
        self._flush(peer, session)

    def _flush(self, peer: int, session: Session[Content, list[bytes]]) -> None:
        address = self._routes.get(peer)
        batches = session.take_batches(self.process.now)
        if address is None:
            return  # the session sends them again once there is a way
        for batch in batches:
            size_bytes = sum(map(len, batch))
            arrive = partial(self._arrive, address, batch)
            self._network.datagram(self.address, address, size_bytes, arrive)

    def _arrive(self, address: Address, batch: list[bytes]) -> None:
        links = self._find(address)
        if links is not None:
            links.process.take(lambda: links.arrived(self, batch))

    def arrived(self, sender: "SimLinks", batch: list[bytes]) -> None:
        """A batch has come: hand over what is whole now, and acknowledge."""
        peer = sender.own_id
        session = self._session(peer)
        epoch, stamp, parcels = self._decoder.decode_arrival(batch)
        content = (epoch, parcels) if stamp.sequence else None
        contents = session.receive(stamp, content, self.process.now)
        if session.peer == stamp.session:
            self._routes[peer] = sender.address
        for told_epoch, told in contents:
            taken = self._accounts.taken
            for message, _ in told:
                taken[sender.address, self.address, type(message).__name__] += 1
            self._deliver(peer, told_epoch, told)
        if self._sessions.get(peer) is session:
            self._flush(peer, session)

    # --- time -------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        times = [session.next_timer() for session in self._sessions.values()]
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self) -> None:
        """Send again what wasn't acknowledged; acknowledge what has come."""
        now = self.process.now
        for peer, session in list(self._sessions.items()):
            due = session.next_timer()
            if due is not None and due <= now:
                session.handle_timer(now)
                self._flush(peer, session)


def _encoded(stamp: Stamp, content: Content | None) -> list[bytes]:
    epoch, parcels = content or (0, [])
    return [bytes(frame) for frame in encode_batch(parcels, epoch, stamp)]
