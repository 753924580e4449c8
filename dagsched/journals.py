"""Which journal a run's records go to: the environment's own, or that of a run taken over.

Responsible for the choice only. Called in the master's thread, but for `secure`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagsched.master.journal import Submitted

if TYPE_CHECKING:
    from dagsched.master.journal import Record
    from dagsched.metastore.journal import Journal


class Journals:
    """A `RecordSink` that passes on to others.

    Args:
        own: takes all that is not sent elsewhere.
    """

    def __init__(self, own: "Journal") -> None:
        self._own = own
        self._by_run: dict[int, Journal] = {}

    def send(self, run: int, journal: "Journal") -> None:
        """Have the records of a run, and of graphs that its tasks return, go to `journal`."""
        self._by_run[run] = journal

    def put(self, run: int, record: "Record") -> None:
        """See `RecordSink.put`."""
        if isinstance(record, Submitted) and record.parent is not None:
            # Whoever resumes the run again looks for all of it in one store.
            above = self._by_run.get(record.parent[0])
            if above is not None:
                self._by_run[run] = above
        self._by_run.get(run, self._own).put(run, record)

    def finish(self, run: int, records: "Sequence[Record]", *, is_whole: bool) -> None:
        """See `RecordSink.finish`."""
        self._by_run.pop(run, self._own).finish(run, records, is_whole=is_whole)

    def are_elsewhere(self, run: int) -> bool:
        """Whether a run was begun by another client, and is written down where that did it."""
        return run in self._by_run

    def secure(self, run: int, timeout_s: float) -> None:
        """Wait, in any thread, until a run's records are in its store, if that takes them now."""
        journal = self._by_run.get(run, self._own)
        if journal.state[0] == "ok":
            journal.flush(timeout_s)
