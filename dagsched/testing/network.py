"""A simulated network: delays by seed, in order on each link, as a socket keeps it."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from dagsched.protocol.codec import Decoder, encode_batch
from dagsched.protocol.messages import (
    BrokerToBroker,
    BrokerToExecutor,
    BrokerToMaster,
    ExecutorToBroker,
    MasterToBroker,
    Parcel,
)
from dagsched.testing.clock import SimClock

Deliver = Callable[[list[Parcel]], None]

_UNIONS: dict[tuple[str, str], Any] = {
    ("master", "broker"): MasterToBroker,
    ("broker", "master"): BrokerToMaster,
    ("broker", "broker"): BrokerToBroker,
    ("broker", "executor"): BrokerToExecutor,
    ("executor", "broker"): ExecutorToBroker,
}


class SimNetwork:
    """Carries batches between processes.

    Args:
        clock: of the simulation.
        rng: draws the delays.
        delay_s: least and most that a batch takes between nodes; a tenth of it inside one.
        bandwidth_bytes_s: of each link.
        is_wired: encode and decode each batch, so that only what the wire carries arrives.
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
        self.counts: Counter[str] = Counter()  # messages by kind
        self.batch_count = 0
        self.byte_count = 0
        self._clock = clock
        self._rng = rng
        self._delay_s = delay_s
        self._bandwidth_bytes_s = bandwidth_bytes_s
        self._is_wired = is_wired
        self._free_at: dict[tuple[object, object], float] = {}
        self._decoders = {link: Decoder(union) for link, union in _UNIONS.items()}

    def send(
        self,
        sender: tuple[str, object],
        receiver: tuple[str, object],
        parcels: Sequence[Parcel],
        deliver: Deliver,
    ) -> None:
        """Bring a batch from one process, (role, name), to another."""
        role_pair = (sender[0], receiver[0])
        for parcel in parcels:
            self.counts[type(parcel.message).__name__] += 1
        self.batch_count += 1
        size_bytes = sum(len(frame) for parcel in parcels for frame in parcel.frames)
        self.byte_count += size_bytes
        if self._is_wired:
            batch = [bytes(frame) for frame in encode_batch(parcels, 1)]
            _, arriving = self._decoders[role_pair].decode_batch(batch)
        else:
            arriving = list(parcels)
        self.carry(sender, receiver, size_bytes, lambda: deliver(arriving))

    def carry(
        self,
        sender: tuple[str, object],
        receiver: tuple[str, object],
        size_bytes: int,
        arrive: Callable[[], None],
    ) -> None:
        """Call `arrive` when so many bytes have crossed, after all that was sent before."""
        delay_s = self._rng.uniform(*self._delay_s)
        if "executor" in (sender[0], receiver[0]):
            delay_s /= 10
        link = (sender, receiver)
        begin = max(self._clock.now, self._free_at.get(link, 0.0) - self._delay_s[0])
        end = max(
            begin + delay_s + size_bytes / self._bandwidth_bytes_s, self._free_at.get(link, 0.0)
        )
        self._free_at[link] = end
        self._clock.at(end, arrive)
