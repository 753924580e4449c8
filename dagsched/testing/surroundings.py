"""What befalls a cluster from outside its processes: the network and the store fail."""

from typing import TYPE_CHECKING

from dagsched.testing.clock import SimClock
from dagsched.testing.network import SimNetwork, Weather
from dagsched.testing.store import SimStore

if TYPE_CHECKING:
    from dagsched.testing.master import SimMaster
    from dagsched.testing.node import SimNode


class Surroundings:
    """Part of `SimCluster`, which owns all that is named here."""

    clock: SimClock
    network: SimNetwork
    store: SimStore
    master: "SimMaster"
    nodes: "dict[int, SimNode]"

    def tell(self, text: str) -> None:
        """Write a line of the story."""
        raise NotImplementedError

    # --- faults of the network --------------------------------------------------------------------

    def set_weather(self, loss: float, repeat: float, reorder: float, slow: float) -> None:
        """From now on the network is like this; see `Weather`."""
        self.network.weather = Weather(loss, repeat, reorder, slow)
        self.tell(f"the network: {self.network.weather}")

    def split(self, one: int, other: int, seconds: float, ways: int = 2) -> None:
        """Nothing passes between two processes for so long; ids of brokers, or 1, the master.

        With one way only, nothing from the first to the second.
        """
        addresses = [
            self.master.address if broker == 1 else self.nodes[broker].address
            for broker in (one, other)
            if broker == 1 or broker in self.nodes
        ]
        if len(addresses) < 2:
            return
        self.tell(f"nothing passes from {one} to {other} for {seconds:.3f} s, ways: {ways}")
        pairs = [(addresses[0], addresses[1]), (addresses[1], addresses[0])]
        self.clock.after(seconds, self.network.cut(pairs[:ways]))

    # --- faults of the store ----------------------------------------------------------------------

    def store_refuses(self, seconds: float) -> None:
        """Each command is an error for so long, as of a store that is full or not there."""
        self.tell(f"the store refuses everything for {seconds:.3f} s")
        self.store.refuse("OOM command not allowed when used memory > 'maxmemory'")
        self.clock.after(seconds, lambda: self.store.refuse(None))

    def store_stalls(self, seconds: float) -> None:
        """It answers nothing for so long."""
        self.tell(f"the store stands still for {seconds:.3f} s")
        self.store.stall(seconds)

    def store_empties(self) -> None:
        """It loses everything."""
        self.tell("the store is emptied")
        self.store.empty()

    def store_restarts(self, seconds: float) -> None:
        """It comes back without what it had written in the last seconds."""
        self.tell(f"the store loses its last {seconds:.3f} s")
        self.store.lose_tail(seconds)

    def store_resets(self, count: int) -> None:
        """It does what it is told, but its next answers are lost."""
        self.tell(f"the store's next {count} answers are lost")
        self.store.lose_answers(count)
