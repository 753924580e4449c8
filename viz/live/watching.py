"""What a page reads of the environment that it watches: a port, and its form for a real one.

Responsible for asking the environment's parts; what is made of the answers is `observer`'s affair.
"""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dagsched._version import __version__
from dagsched.viz.live.snapshot import Surroundings

if TYPE_CHECKING:
    from dagsched.dashboard import Observed
    from dagsched.master.surveys import Standing
    from dagsched.protocol.messages import NodeStats
    from dagsched.run import Run


class Watched(Protocol):
    """An environment, as the page sees it."""

    @property
    def directory(self) -> Path:
        """Of sockets and logs."""

    def runs(self) -> "Sequence[Run]":
        """Runs that go on, or whose handles are held; oldest first."""

    def surroundings(self) -> Surroundings:
        """Who it is, and its nodes; the offset of clocks isn't set."""

    def ask_stats(self) -> "tuple[Sequence[NodeStats], Mapping[str, int]] | None":
        """What all nodes do; None: one of them doesn't answer."""

    def ask_standing(
        self, number: int
    ) -> "tuple[Standing | None, Mapping[int, tuple[float, bool]], float]":
        """A run's subtrees, silences of nodes, and the seconds that this took of the master."""


@dataclass(frozen=True, slots=True)
class WatchedEnvironment:
    """An open environment of this process."""

    observed: "Observed"
    host: str = field(default_factory=socket.gethostname)

    @property
    def directory(self) -> Path:
        """Of sockets and logs."""
        return self.observed.names.directory

    def runs(self) -> "Sequence[Run]":
        """Runs that go on, or whose handles are held; oldest first."""
        return self.observed.list_runs()

    def surroundings(self) -> Surroundings:
        """Who it is, and its nodes."""
        observed = self.observed
        store = dict(observed.store_state())
        store["state"] = "up" if store["state"] == "ok" else store["state"]
        return Surroundings(
            token=observed.names.token,
            rootpath=observed.names.rootpath,
            pid=os.getpid(),
            host=self.host,
            dagsched=__version__,
            opened_s=observed.opened_s,
            store=store,
            nodes=observed.roster.standing(),
            wall_offset_s=time.time() - time.monotonic(),
        )

    def ask_stats(self) -> "tuple[Sequence[NodeStats], Mapping[str, int]] | None":
        """What all nodes do; None: one of them doesn't answer."""
        return self.observed.enquiries.ask_stats(is_watched=True)

    def ask_standing(
        self, number: int
    ) -> "tuple[Standing | None, Mapping[int, tuple[float, bool]], float]":
        """A run's subtrees, silences of nodes, and the seconds that this took of the master."""
        return self.observed.enquiries.ask_standing(number)
