"""The links of one process to its peers of one kind: parcels in, batches out, and back. Pure.

Each link is a `session` with one peer, keyed by the peer's process id. Responsible for numbering,
for acknowledgements, for telling a peer's incarnations apart, and for counting what is dropped and
why; the endpoints of `dagsched.transport` carry the batches. What the messages mean, and who is a
member, is the owner's affair.

Of two incarnations of a peer the one with the higher epoch is the newer; what comes from an older
one, or from one that was removed, is stale.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from dagsched.config import Config
from dagsched.errors import ProtocolError
from dagsched.protocol.codec import Arrival, Decoder, encode_batch
from dagsched.protocol.messages import Frame, Parcel
from dagsched.protocol.session import Session, Stamp

PEERS_MAX = 100_000
"""Peers of which something is remembered though they are gone."""

Content = tuple[int, Sequence[Parcel]]
"""Epoch of the sender, and its parcels."""


class _Link:
    """A session, with the newest epoch that the peer has spoken of in it."""

    __slots__ = ("epoch", "session")

    def __init__(self, session: Session[Content, list[Frame]]) -> None:
        self.session = session
        self.epoch = 0


class Links:
    """All links of one process to peers of one kind.

    Args:
        decoder: of what the peers send.
        config: gives the limits.
        new_number: the number of a new session's end: rising, such as the machine's monotonic
            nanoseconds.
        opens: whether a batch may begin a link, or begin it anew, given the peer and the batch.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: Config,
        new_number: Callable[[], int],
        opens: Callable[[int, Arrival], bool] = lambda _peer, _arrival: True,
    ) -> None:
        self.epoch = 0  # of this process's own membership
        self.counts: Counter[str] = Counter()
        self._decoder = decoder
        self._config = config
        self._new_number = new_number
        self._opens = opens
        self._links: dict[int, _Link] = {}
        self._removed: dict[int, int] = {}  # highest epoch removed, by peer
        self._nonsense: dict[int, int] = {}
        self._touched: dict[int, None] = {}  # links that may have something to send
        self._due: float | None = None  # no link's timer is earlier

    # --- going out --------------------------------------------------------------------------------

    def send(self, peer: int, parcels: Sequence[Parcel], now: float) -> None:
        """Have parcels delivered, as one batch; `take_batches` gives it.

        Raises:
            SessionFull: the peer takes nothing, and too much waits for it.
        """
        self._touched[peer] = None
        self._of(peer).session.send((self.epoch, parcels), now)

    def take_batches(self, now: float) -> list[tuple[int, list[Frame]]]:
        """What is to be handed to the transport now: peers and batches."""
        if not self._touched:
            return []
        batches: list[tuple[int, list[Frame]]] = []
        for peer in self._touched:
            link = self._links.get(peer)
            if link is None:
                continue
            batches += [(peer, batch) for batch in link.session.take_batches(now)]
            due = link.session.next_timer()
            if due is not None and (self._due is None or due < self._due):
                self._due = due
        self._touched.clear()
        return batches

    def send_again(self, peer: int, now: float) -> None:
        """The way to a peer has only now been opened: what was sent before may not have gone."""
        link = self._links.get(peer)
        if link is not None and link.session.unacknowledged_count:
            self._touched[peer] = None
            link.session.send_again(now)

    def _encode(self, stamp: Stamp, content: Content | None) -> list[Frame]:
        # What is sent again has been ours all along, so the present epoch is right for it.
        return encode_batch(() if content is None else content[1], self.epoch, stamp)

    def _of(self, peer: int) -> _Link:
        link = self._links.get(peer)
        if link is None:
            session: Session[Content, list[Frame]] = Session(
                self._new_number(), self._encode, self._config
            )
            link = self._links[peer] = _Link(session)
        return link

    # --- coming in --------------------------------------------------------------------------------

    def receive(self, peer: int, frames: Sequence[Frame], now: float) -> list[Content]:
        """Take a batch; returns what comes next in order: epochs and parcels, maybe nothing.

        Raises:
            ProtocolError: it can't be read. Not being acknowledged, it will come again.
            VersionMismatch: the peer speaks another version of the protocol.
        """
        arrival = self._decoder.decode_arrival(frames)
        epoch, stamp, parcels = arrival
        if not stamp.session:
            raise ProtocolError("a batch on a link that needs a session has none")
        link = self._links.get(peer)
        if epoch and epoch <= self._removed.get(peer, 0):
            return self._stale(len(parcels))
        if link is not None and epoch < link.epoch:
            # Without an epoch it may come from a new incarnation that isn't a member yet.
            if epoch or stamp.session <= link.session.peer:
                return self._stale(len(parcels))
        is_known = link is not None and link.session.peer in (0, stamp.session)
        if not is_known and not self._opens(peer, arrival):
            return self._stale(len(parcels))
        if link is not None and epoch > link.epoch and link.epoch and not is_known:
            self.forget(peer)  # its clock may say otherwise, but this is the newer one
        link = self._of(peer)
        link.epoch = max(link.epoch, epoch)
        self._touched[peer] = None
        restart_count, stale_count = link.session.restart_count, link.session.stale_count
        content = (epoch, parcels) if stamp.sequence else None
        contents = link.session.receive(stamp, content, now)
        if link.session.restart_count != restart_count:
            link.epoch = epoch
        if link.session.stale_count != stale_count:
            self.counts["stale"] += max(len(parcels), 1)
        return contents

    def _stale(self, count: int) -> list[Content]:
        self.counts["stale"] += max(count, 1)
        return []

    def note_nonsense(self, peer: int) -> bool:
        """A peer sent what can't be read, or makes no sense; True: once too often."""
        self.counts["nonsense"] += 1
        count = self._nonsense[peer] = self._nonsense.pop(peer, 0) + 1
        _bound(self._nonsense)
        return count >= self._config.nonsense_max

    # --- peers come and go ------------------------------------------------------------------------

    @property
    def peers(self) -> list[int]:
        """Those to whom there is a link."""
        return list(self._links)

    def epoch_of(self, peer: int) -> int:
        """The newest epoch that a peer has spoken of; 0: none."""
        link = self._links.get(peer)
        return 0 if link is None else link.epoch

    def is_unanswered(self, peer: int) -> bool:
        """Whether a peer has not answered for long."""
        link = self._links.get(peer)
        return link is not None and link.session.is_unanswered

    def forget(self, peer: int) -> None:
        """Drop a link, with all that waits in it."""
        link = self._links.pop(peer, None)
        self._touched.pop(peer, None)
        self._nonsense.pop(peer, None)
        if link is not None:
            self.counts["resent"] += link.session.resent_count
            self.counts["repeated"] += link.session.repeated_count

    def remove(self, peer: int, epoch: int) -> None:
        """A peer is gone: nothing of this epoch, or an older one, is wanted any more."""
        self._removed[peer] = max(epoch, self._removed.pop(peer, 0))
        _bound(self._removed)
        if self.epoch_of(peer) <= epoch:
            self.forget(peer)

    def start_anew(self) -> None:
        """This process is another member than before: to its peers, and so are they to it."""
        for peer in self.peers:
            self.forget(peer)
        self._removed.clear()

    # --- time and numbers -------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When `handle_timer` may have something to do, if ever; ask after `take_batches`."""
        return self._due

    def handle_timer(self, now: float) -> None:
        """Do what has come due; `take_batches` gives it."""
        if self._due is None or now < self._due:
            return
        dues: list[float] = []
        for peer, link in self._links.items():
            due = link.session.next_timer()
            if due is not None and due <= now:
                self._touched[peer] = None
                link.session.handle_timer(now)
                due = link.session.next_timer()
            if due is not None:
                dues.append(due)
        self._due = min(dues, default=None)

    def summary(self) -> dict[str, int]:
        """What was dropped and what was sent again so far."""
        counts = {name: self.counts[name] for name in ("stale", "nonsense", "resent", "repeated")}
        for link in list(self._links.values()):  # may be asked by another thread than the owner's
            counts["resent"] += link.session.resent_count
            counts["repeated"] += link.session.repeated_count
        return counts


def _bound(table: dict[int, int]) -> None:
    if len(table) > PEERS_MAX:
        del table[next(iter(table))]
