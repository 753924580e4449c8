"""A store in this process's own memory: ``memory://``. Nothing survives the process."""

from collections.abc import Sequence

from dagsched.metastore.fold import Entry
from dagsched.metastore.port import Batch, Refusal, Settlement, StoreInfo


class MemoryStore:
    """The `MetaStore` that simulations and ``memory://`` use."""

    def __init__(self) -> None:
        self._entries_by_run: dict[int, dict[int, bytes]] = {}
        self._results: dict[int, bytes] = {}

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Forget everything."""
        self.drop_all()

    def append(self, batches: Sequence[Batch]) -> list[Refusal]:
        """See `MetaStore.append`."""
        refusals = []
        for batch in batches:
            if batch.is_fresh:
                self._entries_by_run.pop(batch.run, None)
            entries = self._entries_by_run.get(batch.run, {})
            data = bytes(batch.data)
            if batch.position <= len(entries):
                if entries.get(batch.position) != data:
                    refusals.append(Refusal(batch.run, batch.position, "taken"))
            elif batch.position > len(entries) + 1:
                refusals.append(Refusal(batch.run, batch.position, "gone"))
            else:
                entries[batch.position] = data
                self._entries_by_run[batch.run] = entries
        return refusals

    def read(self, run: int) -> list[Entry]:
        """See `MetaStore.read`."""
        return [Entry(*item) for item in sorted(self._entries_by_run.get(run, {}).items())]

    def lengths(self, runs: Sequence[int]) -> list[int]:
        """See `MetaStore.lengths`."""
        return [len(self._entries_by_run.get(run, ())) for run in runs]

    def truncate(self, run: int, position: int) -> None:
        """See `MetaStore.truncate`."""
        entries = self._entries_by_run.get(run, {})
        for late in [known for known in entries if known >= position]:
            del entries[late]

    def runs(self) -> list[int]:
        """See `MetaStore.runs`."""
        return sorted(self._entries_by_run)

    def drop(self, run: int) -> None:
        """See `MetaStore.drop`."""
        self._entries_by_run.pop(run, None)

    def settle(self, settlement: Settlement) -> None:
        """See `MetaStore.settle`."""
        self._results.update((run, bytes(data)) for run, data in settlement.kept.items())
        for run in settlement.forgotten:
            self._results.pop(run, None)
        for run in settlement.dropped:
            self.drop(run)

    def results(self) -> list[int]:
        """See `MetaStore.results`."""
        return sorted(self._results)

    def result(self, run: int) -> bytes | None:
        """See `MetaStore.result`."""
        return self._results.get(run)

    def environments(self) -> list[str]:
        """None but this process's own, which has no use for a list."""
        return []

    def drop_all(self) -> None:
        """See `MetaStore.drop_all`."""
        self._entries_by_run.clear()
        self._results.clear()

    def erase(self) -> None:
        """See `MetaStore.erase`."""
        self.close()

    def interrupt(self) -> None:
        """Nothing ever waits."""

    def ping(self) -> None:
        """It always answers."""

    def info(self) -> StoreInfo:
        """See `MetaStore.info`."""
        journals = [data for entries in self._entries_by_run.values() for data in entries.values()]
        used_bytes = sum(map(len, [*journals, *self._results.values()]))
        return StoreInfo("memory", "memory://", "this process", used_bytes)
