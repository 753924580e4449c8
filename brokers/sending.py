"""Large objects on their way to other nodes. Pure.

One transfer of an object to a node at a time. Whoever asks again meanwhile may have had it already,
and used it up, so it is sent once more.
"""

from typing import TYPE_CHECKING

from dagsched.brokers.state import StoredObject
from dagsched.ids import ProcessId, RunNo

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore


class Sendings:
    """Part of `Exchange`; the shell does the transfers."""

    def __init__(self, core: "BrokerCore") -> None:
        self._core = core
        self._under_way: dict[tuple[ProcessId, RunNo, int], StoredObject] = {}
        self._again: set[tuple[ProcessId, RunNo, int]] = set()

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, peer: ProcessId, number: RunNo, stored: StoredObject) -> None:
        """Send an object, or note that it was asked for again."""
        key = (peer, number, stored.info.first)
        if key in self._under_way:
            self._again.add(key)
            return
        self._core.table.pin(stored)
        self._under_way[key] = stored
        self._core.actions.transfers.append((peer, number, stored.info))

    def end(self, peer: ProcessId, number: RunNo, first: int) -> bool:
        """It has been sent, or the shell has given up; whether it was asked for again."""
        key = (peer, number, first)
        stored = self._under_way.pop(key, None)
        if stored is not None:
            self._core.table.unpin(stored)
        is_again = key in self._again
        self._again.discard(key)
        return is_again

    def peer_lost(self, peer: ProcessId) -> None:
        """Nothing is sent there any more."""
        for key in [key for key in self._under_way if key[0] == peer]:
            self.end(*key)
