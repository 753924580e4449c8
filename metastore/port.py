"""What a metadata store must do for the journal. Pure: the implementations do the I/O.

A store keeps, under one prefix, a stream of entries for each run. An entry has a position, counted
from 1 by the writer: so an append may be repeated after its answer was lost, and a second writer is
noticed. All methods may raise `StoreUnavailable` with the store's own words; after it `open` again.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from dagsched.metastore.fold import Entry
from dagsched.protocol.messages import Frame


class Batch(NamedTuple):
    """Frames to append to a run's stream, at a position one above the last.

    With `is_fresh` the stream begins anew with this entry, whatever it held. `expiry_s`: how long
    it stays from then on; None: the time for runs that go on.
    """

    run: int
    position: int
    data: Frame
    is_fresh: bool = False
    expiry_s: int | None = None


class Settlement(NamedTuple):
    """What becomes of finished runs."""

    kept: Mapping[int, Frame]
    """Results to keep, by run."""
    forgotten: Sequence[int]
    """Runs whose results go."""
    dropped: Sequence[int]
    """Runs whose journals go."""


class Refusal(NamedTuple):
    """An append that is of no use, and won't be if asked again.

    ``gone``: the stream, or its end before this position, is not there any more (the store was
    emptied, or came back without the last second of its file).
    ``taken``: another writer has written at this position.
    """

    run: int
    position: int
    kind: str


class StoreInfo(NamedTuple):
    """What serves the store, for people."""

    kind: str
    address: str
    server: str
    used_bytes: int


class MetaStore(Protocol):
    """A store of one environment. One thread uses it at a time."""

    def open(self) -> None:
        """Get ready, also again after `StoreUnavailable`. Nothing happens if it is ready."""

    def close(self) -> None:
        """End what was opened; safe twice. What is stored stays, if a store outlives its client."""

    def append(self, batches: Sequence[Batch]) -> list[Refusal]:
        """Append in order, in one exchange; those at positions already written count as done."""

    def read(self, run: int) -> list[Entry]:
        """All entries of a run in order; none if there is no such run."""

    def lengths(self, runs: Sequence[int]) -> list[int]:
        """How many entries each run's journal has."""

    def truncate(self, run: int, position: int) -> None:
        """Drop the entries from `position` on, so that it can be written next."""

    def runs(self) -> list[int]:
        """Runs that have a journal, in rising order."""

    def drop(self, run: int) -> None:
        """Remove one run's journal."""

    def settle(self, settlement: Settlement) -> None:
        """Do all that a settlement says, in one exchange; again is the same as once."""

    def results(self) -> list[int]:
        """Runs whose results are kept by themselves, in rising order."""

    def result(self, run: int) -> bytes | None:
        """A result that was kept."""

    def environments(self) -> list[str]:
        """Prefixes of the environments of this user that have something in this store."""

    def drop_all(self) -> None:
        """Remove every key of this environment."""

    def erase(self) -> None:
        """Remove every key of this environment and close, in little time whatever happens."""

    def interrupt(self) -> None:
        """Have a call that waits in another thread fail soon."""

    def ping(self) -> None:
        """Return if the store answers."""

    def info(self) -> StoreInfo:
        """What serves it."""
