"""A store in this process's own memory: ``memory://``. Nothing survives the process."""

from collections.abc import Sequence

from dagsched.metastore.fold import Entry
from dagsched.metastore.port import Batch, Refusal, StoreInfo


class MemoryStore:
    """The `MetaStore` that simulations and ``memory://`` use."""

    def __init__(self) -> None:
        self._entries_by_run: dict[int, dict[int, bytes]] = {}

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Forget everything."""
        self._entries_by_run.clear()

    def append(self, batches: Sequence[Batch]) -> list[Refusal]:
        """See `MetaStore.append`."""
        refusals = []
        for batch in batches:
            if batch.is_fresh:
                self._entries_by_run.pop(batch.run, None)
            entries = self._entries_by_run.get(batch.run)
            if entries is None:
                if batch.position > 1:
                    refusals.append(Refusal(batch.run, batch.position, "gone"))
                    continue
                entries = self._entries_by_run[batch.run] = {}
            data = bytes(batch.data)
            if batch.position <= max(entries, default=0):
                if entries.get(batch.position) != data:
                    refusals.append(Refusal(batch.run, batch.position, "taken"))
                continue
            entries[batch.position] = data
        return refusals

    def read(self, run: int) -> list[Entry]:
        """See `MetaStore.read`."""
        return [Entry(*item) for item in sorted(self._entries_by_run.get(run, {}).items())]

    def truncate(self, run: int, position: int) -> None:
        """See `MetaStore.truncate`."""
        entries = self._entries_by_run.get(run, {})
        for late in [known for known in entries if known >= position]:
            del entries[late]

    def runs(self) -> list[int]:
        """See `MetaStore.runs`."""
        return sorted(self._entries_by_run)

    def expire(self, run: int, expiry_s: int) -> None:
        """Nothing to do: the process's end is the expiry."""

    def drop(self, run: int) -> None:
        """See `MetaStore.drop`."""
        self._entries_by_run.pop(run, None)

    def drop_all(self) -> None:
        """See `MetaStore.drop_all`."""
        self._entries_by_run.clear()

    def ping(self) -> None:
        """It always answers."""

    def info(self) -> StoreInfo:
        """See `MetaStore.info`."""
        used_bytes = sum(
            len(data) for entries in self._entries_by_run.values() for data in entries.values()
        )
        return StoreInfo("memory", "memory://", "this process", used_bytes)
