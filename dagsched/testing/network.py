"""A simulated network: what is sent arrives late, never, twice, or out of order, by seed.

Inside a node (broker and its executors) nothing is lost and order is kept, as on a socket pair.
Between processes each batch is a datagram on its own; what makes links of them is the session
layer above (`links`), as in the product.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dagsched.protocol.codec import Decoder, encode_batch
from dagsched.protocol.messages import (
    BrokerToExecutor,
    ExecutorToBroker,
    Parcel,
)
from dagsched.testing.clock import SimClock

Address = tuple[str, int]
"""Role and number of a process; a process that is started again has another number."""

Deliver = Callable[[list[Parcel]], None]

_UNIONS: dict[tuple[str, str], Any] = {
    ("broker", "executor"): BrokerToExecutor,
    ("executor", "broker"): ExecutorToBroker,
}


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad the network is: shares of all batches between processes."""

    loss: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0  # overtaken by those sent after it
    slow: float = 0.0  # late by up to `slow_s`, and what comes behind it as well
    slow_s: float = 0.2


class SimNetwork:
    """Carries batches between processes.

    Args:
        clock: of the simulation.
        rng: draws delays and faults.
        delay_s: least and most that a batch takes between processes; a tenth of it inside a node.
        bandwidth_bytes_s: of each link.
        is_wired: encode and decode what executors get, so that only what the wire carries arrives.
    """

    def __init__(
        self,
        clock: SimClock,
        rng: random.Random,
        *,
        delay_s: tuple[float, float] = (50e-6, 500e-6),
        bandwidth_bytes_s: float = 1e9,
        is_wired: bool = True,
    ) -> None:
        self.weather = Weather()
        self.counts: Counter[str] = Counter()  # messages by kind
        self.batch_count = 0
        self.byte_count = 0
        self.fates: Counter[str] = Counter()  # of datagrams: lost, cut, repeated, ..
        self._clock = clock
        self._rng = rng
        self._delay_s = delay_s
        self._bandwidth_bytes_s = bandwidth_bytes_s
        self._is_wired = is_wired
        self._free_at: dict[tuple[Address, Address], float] = {}
        self._cuts: Counter[tuple[Address, Address]] = Counter()
        self._decoders = {link: Decoder(union) for link, union in _UNIONS.items()}
        self.is_dropped: Callable[[Address, Address, int], bool] | None = None
        """Asked of each datagram, with its number: for tests that lose chosen ones."""

    # --- faults -----------------------------------------------------------------------------------

    def cut(self, pairs: Iterable[tuple[Address, Address]]) -> Callable[[], None]:
        """Drop all from the first to the second of each pair, until what is returned is called."""
        pairs = list(pairs)
        self._cuts.update(pairs)

        def mend() -> None:
            self._cuts.subtract(pairs)

        return mend

    # --- inside a node ----------------------------------------------------------------------------

    def send(
        self, sender: Address, receiver: Address, parcels: Sequence[Parcel], deliver: Deliver
    ) -> None:
        """Bring a batch from a broker to its executor, or back."""
        self.count(parcels)
        size_bytes = sum(len(frame) for parcel in parcels for frame in parcel.frames)
        if self._is_wired:
            batch = [bytes(frame) for frame in encode_batch(parcels, 1)]
            _, arriving = self._decoders[sender[0], receiver[0]].decode_batch(batch)
        else:
            arriving = list(parcels)
        self.carry(sender, receiver, size_bytes, lambda: deliver(arriving))

    def count(self, parcels: Iterable[Parcel]) -> None:
        """Count messages that are being sent."""
        for parcel in parcels:
            self.counts[type(parcel.message).__name__] += 1

    def carry(
        self, sender: Address, receiver: Address, size_bytes: int, arrive: Callable[[], None]
    ) -> None:
        """Call `arrive` when so many bytes have crossed, after all that was sent before."""
        self.batch_count += 1
        self.byte_count += size_bytes
        self._clock.at(self._arrival_s(sender, receiver, size_bytes, 0.0), arrive)

    def _arrival_s(
        self, sender: Address, receiver: Address, size_bytes: int, extra_s: float
    ) -> float:
        """In order on each link, as a socket keeps it."""
        delay_s = self._rng.uniform(*self._delay_s)
        if "executor" in (sender[0], receiver[0]):
            delay_s /= 10
        link = (sender, receiver)
        free_at = self._free_at.get(link, 0.0)
        begin = max(self._clock.now, free_at - self._delay_s[0])
        end = max(begin + delay_s + extra_s + size_bytes / self._bandwidth_bytes_s, free_at)
        self._free_at[link] = end
        return end

    # --- between processes ------------------------------------------------------------------------

    def datagram(
        self,
        sender: Address,
        receiver: Address,
        size_bytes: int,
        arrive: Callable[[], None],
    ) -> None:
        """Bring a batch to another process, if the weather lets it through."""
        self.batch_count += 1
        self.byte_count += size_bytes
        weather, rng = self.weather, self._rng
        is_dropped = self.is_dropped
        if self._cuts[sender, receiver] > 0:
            self.fates["cut"] += 1
            return
        if is_dropped is not None and is_dropped(sender, receiver, self.batch_count):
            self.fates["chosen"] += 1
            return
        if weather.loss and rng.random() < weather.loss:
            self.fates["lost"] += 1
            return
        times = 1
        if weather.repeat and rng.random() < weather.repeat:
            self.fates["repeated"] += 1
            times = rng.randint(2, 3)
        for _ in range(times):
            if weather.reorder and rng.random() < weather.reorder:
                self.fates["reordered"] += 1
                late_s = rng.uniform(0.0, 20 * self._delay_s[1])
                self._clock.after(late_s, arrive)
                continue
            extra_s = 0.0
            if weather.slow and rng.random() < weather.slow:
                self.fates["slow"] += 1
                extra_s = rng.uniform(0.0, weather.slow_s)
            at_s = self._arrival_s(sender, receiver, size_bytes, extra_s)
            self._clock.at(at_s, arrive)
