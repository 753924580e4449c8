"""What a metadata store must do for the journal. Pure: the implementations do the I/O.

A store keeps, under one prefix, a stream of entries for each run. An entry has a position, counted
from 1 by the writer: so an append may be repeated after its answer was lost, and a second writer is
noticed. All methods may raise `StoreUnavailable` with the store's own words; after it `open` again.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from dagsched.metastore.fold import Entry
from dagsched.protocol.messages import Frame


class Batch(NamedTuple):
    """Frames to append to a run's stream, at a position one above the last.

    With `is_fresh` the stream begins anew with this entry, whatever it held.
    """

    run: int
    position: int
    data: Frame
    is_fresh: bool = False


class Refusal(NamedTuple):
    """An append that the store did not do, and won't do if asked again.

    ``gone``: the stream is not there any more (the store was emptied).
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
        """End what was opened; safe twice. A store of our own vanishes with its content."""

    def append(self, batches: Sequence[Batch]) -> list[Refusal]:
        """Append in order, in one exchange; those at positions already written count as done."""

    def read(self, run: int) -> list[Entry]:
        """All entries of a run in order; none if there is no such run."""

    def truncate(self, run: int, position: int) -> None:
        """Drop the entries from `position` on, so that it can be written next."""

    def runs(self) -> list[int]:
        """Runs that have a journal, in rising order."""

    def expire(self, run: int, expiry_s: int) -> None:
        """Let the run's journal vanish after so long without an append."""

    def drop(self, run: int) -> None:
        """Remove one run's journal."""

    def drop_all(self) -> None:
        """Remove every key of this environment."""

    def ping(self) -> None:
        """Return if the store answers."""

    def info(self) -> StoreInfo:
        """What serves it."""
