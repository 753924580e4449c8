"""The metadata store in simulated time, with all that stores do to their users; and its journal.

The records, the batches, the fold and the rules for a store that is away are the product's own:
`SimJournal` is the real `Journal`, whose thread is a step now and then.
"""

from collections.abc import Callable, Sequence
from typing import Any

from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.master.journaling import stored_record
from dagsched.metastore.fold import Entry
from dagsched.metastore.journal import Journal
from dagsched.metastore.memory import MemoryStore
from dagsched.metastore.port import Batch, Refusal, Settlement
from dagsched.testing.clock import SimClock
from dagsched.testing.process import SimProcess


class SimStore(MemoryStore):
    """A store that may be away, full, slow, emptied, or lose what it has written last."""

    def __init__(self, clock: SimClock) -> None:
        super().__init__()
        self._clock = clock
        self._refusal: str | None = None
        self._stalled_until_s = 0.0
        self._lost_answers = 0
        self._ill_until_s = 0.0
        self._written_s: dict[tuple[int, int], float] = {}  # by run and position
        self.exchange_count = 0
        self.on_exchange: Callable[[Sequence[Batch]], None] | None = None

    @property
    def well_s(self) -> float:
        """For how long it has done what it should; what was lost before is written anew by then."""
        return self._clock.now - self._ill_until_s

    # --- faults -----------------------------------------------------------------------------------

    def refuse(self, words: str | None) -> None:
        """Answer everything with an error in these words; None: not any more."""
        self._ill_until_s = self._clock.now if words is None else float("inf")
        self._refusal = words

    def stall(self, seconds: float) -> None:
        """Answer nothing for so long."""
        self._stalled_until_s = self._ill_until_s = self._clock.now + seconds

    def lose_answers(self, count: int) -> None:
        """Do the next appends, but reset the connection before the answer."""
        self._lost_answers += count
        self._ill_until_s = self._clock.now

    def lose_tail(self, seconds: float) -> None:
        """Start again from a file that lacks its end: what was written last is gone."""
        since_s = self._clock.now - seconds
        self._ill_until_s = self._clock.now
        for run in self.runs():
            late = [p for p in self._positions(run) if self._written_s.get((run, p), 0.0) > since_s]
            if late:
                self.truncate(run, min(late))
                if not self.read(run):
                    self.drop(run)

    def empty(self) -> None:
        """Lose everything (FLUSHALL)."""
        self._ill_until_s = self._clock.now
        self.drop_all()

    def cut_entry(self, run: int, byte_count: int) -> None:
        """Leave only so many bytes of a run's last entry."""
        last = self.read(run)[-1]
        self.truncate(run, last.position)
        if byte_count:
            kept = bytes(last.data)[:byte_count]
            super().append([Batch(run, last.position, kept, last.position == 1)])

    # --- what the journal does --------------------------------------------------------------------

    @property
    def stalled_s(self) -> float:
        """How long whoever calls now has to wait."""
        return max(0.0, self._stalled_until_s - self._clock.now)

    def open(self) -> None:
        """See `MetaStore.open`."""
        self._check()

    def append(self, batches: Sequence[Batch]) -> list[Refusal]:
        """See `MetaStore.append`."""
        self._check()
        self.exchange_count += 1
        refusals = super().append(batches)
        for batch in batches:
            self._written_s[batch.run, batch.position] = self._clock.now
        if self.on_exchange is not None:
            self.on_exchange(batches)
        if self._lost_answers:
            self._lost_answers -= 1
            raise StoreUnavailable("the connection was reset")
        return refusals

    def settle(self, settlement: Settlement) -> None:
        """See `MetaStore.settle`."""
        self._check()
        super().settle(settlement)

    def lengths(self, runs: Sequence[int]) -> list[int]:
        """See `MetaStore.lengths`."""
        self._check()
        return super().lengths(runs)

    def ping(self) -> None:
        """See `MetaStore.ping`."""
        self._check()

    def _check(self) -> None:
        if self._refusal is not None:
            raise StoreUnavailable(self._refusal)

    def _positions(self, run: int) -> list[int]:
        return [entry.position for entry in self.read(run)]

    def entries(self, run: int) -> list[Entry]:
        """All that is stored of a run."""
        return self.read(run)


class SimJournal(Journal):
    """The real journal; what its thread does is done in steps of the simulation.

    Args:
        store: where to.
        config: limits and times.
        process: the master, whose end is the journal's.
        rewrite: asks the master for the records of a run whose journal is torn.
    """

    def __init__(
        self,
        store: SimStore,
        config: Config,
        process: SimProcess,
        rewrite: Callable[[int], None],
    ) -> None:
        super().__init__(store, config, convert=stored_record, on_torn=self._is_torn_now)
        self._sim_store = store
        self._process = process
        self._rewrite = rewrite
        self._due_s: float | None = None

    def _is_torn_now(self, run: int) -> None:
        self._process.after(1e-4, lambda: self._rewrite(run))

    def put(self, run: int, record: Any) -> None:
        """See `Journal.put`."""
        super().put(run, record)
        self._wake_up(self._config.journal_batch_s)

    def restart(self, run: int, records: Sequence[Any]) -> None:
        """See `Journal.restart`."""
        super().restart(run, records)
        self._wake_up(self._config.journal_batch_s)

    def finish(self, run: int, records: Sequence[Any], *, is_whole: bool) -> None:
        """See `Journal.finish`."""
        super().finish(run, records, is_whole=is_whole)
        self._wake_up(self._config.journal_batch_s)

    def forget(self, run: int) -> None:
        """See `Journal.forget`."""
        super().forget(run)
        self._wake_up(self._config.journal_batch_s)

    def write_through(self) -> None:
        """Bring all that was put to the store now, if it can be had."""
        self._take_queue()
        self._send()

    def secure(self) -> bool:
        """The same if all is well, as `Journals.secure` does it; whether it was done."""
        is_well = self.state[0] == "ok" and not self._sim_store.stalled_s
        if is_well:
            self.write_through()
        return is_well

    def _wake_up(self, delay_s: float) -> None:
        due_s = self._process.now + delay_s
        if self._due_s is None or due_s < self._due_s:
            self._due_s = due_s
            self._process.after(delay_s, lambda: self._step(due_s))

    def _step(self, due_s: float) -> None:
        """One round of the thread: take what was put, send it, wait for more or for the store."""
        if due_s != self._due_s:
            return  # it was woken sooner
        self._due_s = None
        stalled_s = self._sim_store.stalled_s
        if stalled_s > 0:
            if stalled_s <= self._config.store_timeout_s:
                self._wake_up(stalled_s)  # the call takes that long
                return
            self._try(_time_out)
            self._wake_up(self._config.store_timeout_s)
            return
        if not (self._queue or self._pending or self._overflowed or self._backoff_s):
            self._check()
        self._take_queue()
        self._send()
        if self._pending or self._backoff_s:
            self._wake_up(self._backoff_s)
        elif self._runs:
            self._wake_up(self._config.journal_check_s)


def _time_out() -> None:
    raise StoreUnavailable("no answer in time")
