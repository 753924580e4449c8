"""Which objects this node holds, who still needs them, and when their bytes are free. Pure.

An object of a run is needed while one of its positions has `left` dependents on this node or a
`hold` of the master. When nobody needs it its bytes are still kept for executors that hold a view
(`holders`) and for transfers (`pin_count`). Bytes may be shared by several objects (`Storage`):
a task that returned a graph has the value of another object.
"""

from collections.abc import Iterable

import msgspec
import numpy as np

from dagsched.brokers.state import BrokerRun, Int32, Int64, Storage, StoredObject
from dagsched.errors import InternalError
from dagsched.ids import ProcessId, RunNo
from dagsched.partition.arrays import distinct
from dagsched.protocol.messages import Frame, Location, ObjectInfo
from dagsched.protocol.tracing import FILE_MADE

SMALL = 48  # below this many elements Python loops beat numpy calls


class ObjectTable:
    """The objects of one node. `take_freed` pulls what the shell must give back."""

    def __init__(self, broker: ProcessId) -> None:
        self.broker = broker
        self.live_count = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self.spilled_bytes = 0  # of live ones, those that lie in files
        self.shared_bytes = 0  # of live ones, those that lie in shared memory
        self.shared_peak_bytes = 0
        self.in_memory: dict[StoredObject, None] = {}  # those, the one used last at the end
        self.kept: dict[tuple[RunNo, int], StoredObject] = {}  # of ended runs, for Refs
        self._segments: dict[tuple[ProcessId, int], dict[str, int]] = {}  # live storages in each
        self._dead: set[tuple[ProcessId, int]] = set()  # incarnations that have ended
        self._held: dict[ProcessId, set[StoredObject]] = {}
        self._free_own: list[Location] = []
        self._free_by_executor: dict[ProcessId, list[Location]] = {}
        self._reclaim: set[tuple[ProcessId, int]] = set()

    # --- coming in --------------------------------------------------------------------------------

    def add(
        self,
        run: BrokerRun,
        info: ObjectInfo,
        frame: Frame | None,
        *,
        broker: ProcessId,
        owner: ProcessId | None = None,
        incarnation: int = 0,
    ) -> StoredObject:
        """Take an object in; its bytes are `frame`, or lie at ``info.location``."""
        storage = Storage(frame, info.size_bytes, owner, incarnation)
        if info.location is not None and owner is not None:
            segments = self._segments.setdefault((owner, incarnation), {})
            segments[info.location.segment] = segments.get(info.location.segment, 0) + 1
        self.live_bytes += info.size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        stored = StoredObject(run.number, info, storage, broker)
        self._place(stored)
        if info.location is not None and info.location.is_spilled:
            run.trace.filed(FILE_MADE, info)
        return self._enter(run, stored)

    def add_remote(self, run: BrokerRun, info: ObjectInfo, broker: ProcessId) -> StoredObject:
        """Know an object of another node by size and type, for functions that get Refs."""
        return self._enter(run, StoredObject(run.number, info, None, broker))

    def add_loose(
        self, number: RunNo, info: ObjectInfo, frame: Frame | None, broker: ProcessId
    ) -> StoredObject:
        """Take in an object that belongs to no living run here; it is freed by its last `unpin`."""
        self.live_bytes += info.size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        storage = Storage(frame, info.size_bytes, None)
        stored = StoredObject(number, info, storage, broker, dropped=True)
        self._place(stored)
        return stored

    def _place(self, stored: StoredObject) -> None:
        """Count the bytes of a new object where they lie."""
        location = stored.info.location
        if location is None:
            return
        if location.is_spilled:
            self.spilled_bytes += location.size_bytes
            return
        self.shared_bytes += location.size_bytes
        self.shared_peak_bytes = max(self.shared_peak_bytes, self.shared_bytes)
        self.in_memory[stored] = None

    def touch(self, stored: StoredObject) -> None:
        """An executor is going to read it."""
        if stored in self.in_memory:
            del self.in_memory[stored]
            self.in_memory[stored] = None

    def move(self, stored: StoredObject, location: Location) -> None:
        """Its bytes lie in a file of the broker's now; nobody reads them where they were."""
        old, storage = stored.info.location, stored.storage
        if old is None or storage is None or storage.share_count != 1:
            raise InternalError(f"run {stored.run}, position {stored.info.first} can't be moved")
        self._count_out(old)
        del self.in_memory[stored]
        stored.info = msgspec.structs.replace(stored.info, location=location)
        stored.storage = Storage(None, storage.location_size_bytes, None)
        self.spilled_bytes += location.size_bytes
        self._free(old, storage)

    def _count_out(self, location: Location) -> None:
        if location.is_spilled:
            self.spilled_bytes -= location.size_bytes
        else:
            self.shared_bytes -= location.size_bytes

    def alias(self, run: BrokerRun, position: int, source: StoredObject) -> StoredObject:
        """Let (run, position) be the value of `source`, which is the only value of its object."""
        if source.info.count != 1:
            raise InternalError(f"run {run.number}, position {position}: its source is a block")
        info = source.info
        named = ObjectInfo(position, 1, info.size_bytes, info.location, info.type_name, info.refs)
        if source.storage is not None:
            source.storage.share_count += 1
        return self._enter(run, StoredObject(run.number, named, source.storage, source.broker))

    def _enter(self, run: BrokerRun, stored: StoredObject) -> StoredObject:
        first, count = stored.info.first, stored.info.count
        if count == 1:
            run.object_of[first] = len(run.objects)
        else:
            run.object_of[first : first + count] = len(run.objects)
        run.objects.append(stored)
        self.live_count += 1
        return stored

    def find(self, run: BrokerRun | None, number: RunNo, position: int) -> StoredObject | None:
        """The object that holds a position's value, of a living or an ended run."""
        if run is None:
            return self.kept.get((number, position))
        if not 0 <= position < run.total:
            return None
        index = int(run.object_of[position])
        return None if index < 0 else run.objects[index]

    def find_many(self, run: BrokerRun, positions: Int32) -> tuple[list[StoredObject], Int32]:
        """The objects whose bytes are here of these positions, and, rising, the other positions."""
        positions = distinct(positions)
        indices = run.object_of[positions]
        is_other = indices < 0
        held: list[StoredObject] = []
        bare: list[int] = []
        for index in distinct(indices[~is_other]).tolist():
            stored = run.objects[index]
            if stored is not None and stored.storage is not None:
                held.append(stored)
            else:
                bare.append(index)
        if bare:
            is_other |= np.isin(indices, bare)
        return held, positions[is_other]

    # --- no longer needed -------------------------------------------------------------------------

    def consume(self, run: BrokerRun, positions: Int32, counts: Int64) -> None:
        """`counts` dependents of each of `positions` (unique) have had their value."""
        if len(positions) <= SMALL:
            self._consume_few(run, positions.tolist(), counts.tolist())
            return
        run.left[positions] -= counts
        spent = positions[(run.left[positions] == 0) & (run.hold[positions] == 0)]
        self._drop_unneeded(run, spent)

    def _consume_few(self, run: BrokerRun, positions: list[int], counts: list[int]) -> None:
        """The same in plain Python, which is faster than numpy for a handful."""
        left, hold = run.left, run.hold
        for position, count in zip(positions, counts, strict=True):
            left[position] -= count
            if not left[position] and not hold[position]:
                index = run.object_of[position]
                stored = run.objects[index] if index >= 0 else None
                if stored is not None:
                    self.maybe_drop(run, stored)

    def unhold(self, run: BrokerRun, positions: Int32, flags: int) -> None:
        """The master says that these flags hold `positions` no longer."""
        run.hold[positions] &= np.uint8(~flags & 0xFF)
        self._drop_unneeded(run, positions)

    def _drop_unneeded(self, run: BrokerRun, positions: Int32) -> None:
        if not len(positions):
            return
        indices = run.object_of[positions]
        for index in distinct(indices[indices >= 0]).tolist():
            stored = run.objects[index]
            if stored is not None:
                self.maybe_drop(run, stored)

    def maybe_drop(self, run: BrokerRun, stored: StoredObject) -> bool:
        """Drop it if nobody on this node and no part elsewhere needs it."""
        first, end = stored.info.first, stored.info.first + stored.info.count
        if end == first + 1:
            if run.left[first] or run.hold[first]:
                return False
        elif run.left[first:end].any() or run.hold[first:end].any():
            return False
        self._drop_from(run, stored)
        return True

    def _drop_from(self, run: BrokerRun, stored: StoredObject) -> None:
        first, end = stored.info.first, stored.info.first + stored.info.count
        index = int(run.object_of[first])
        run.objects[index] = None
        run.object_of[first:end] = -1
        run.asked[first:end] = 0
        self._drop(stored)

    def _drop(self, stored: StoredObject) -> None:
        stored.dropped = True
        self.live_count -= 1
        self._maybe_free(stored)

    def _maybe_free(self, stored: StoredObject) -> None:
        """Give the bytes back once the object is dropped and nobody looks at them any more."""
        if not stored.dropped or stored.holders or stored.pin_count or stored.storage is None:
            return
        storage, stored.storage = stored.storage, None
        self.in_memory.pop(stored, None)
        storage.share_count -= 1
        if storage.share_count:
            return
        self.live_bytes -= storage.location_size_bytes
        location = stored.info.location
        if location is not None:
            self._count_out(location)
            self._free(location, storage)

    def _free(self, location: Location, storage: Storage) -> None:
        if storage.owner is None:
            self._free_own.append(location)
            return
        key = (storage.owner, storage.incarnation)
        segments = self._segments[key]
        segments[location.segment] -= 1
        if not segments[location.segment]:
            del segments[location.segment]
            if key in self._dead:
                self._reclaim.add(key)
        if key not in self._dead:
            self._free_by_executor.setdefault(storage.owner, []).append(location)

    def discard(self, infos: Iterable[ObjectInfo], owner: ProcessId, incarnation: int) -> None:
        """Free what an executor made for a run that is over."""
        if (owner, incarnation) in self._dead:
            return
        for info in infos:
            if info.location is not None:
                self._free_by_executor.setdefault(owner, []).append(info.location)

    # --- views, transfers, deaths, ends -----------------------------------------------------------

    def hold_view(self, stored: StoredObject, executor: ProcessId) -> None:
        """An executor still has a view of these bytes after its task."""
        stored.holders.add(executor)
        self._held.setdefault(executor, set()).add(stored)

    def drop_view(self, executor: ProcessId, number: RunNo, first: int) -> None:
        """The executor's last view of that object has died."""
        for stored in tuple(self._held.get(executor, ())):
            if stored.run == number and stored.info.first == first:
                stored.holders.discard(executor)
                self._held[executor].discard(stored)
                self._maybe_free(stored)
                return

    def pin(self, stored: StoredObject) -> None:
        """Keep the bytes while they are being sent or read."""
        stored.pin_count += 1

    def unpin(self, stored: StoredObject) -> None:
        """Undo one `pin`."""
        stored.pin_count -= 1
        self._maybe_free(stored)

    def executor_ended(self, executor: ProcessId, incarnation: int) -> None:
        """Its views are gone; its sealed objects stay, what it had not sealed is reclaimed."""
        for stored in self._held.pop(executor, set()):
            stored.holders.discard(executor)
            self._maybe_free(stored)
        self._dead.add((executor, incarnation))
        self._free_by_executor.pop(executor, None)
        self._reclaim.add((executor, incarnation))

    def end_run(self, run: BrokerRun, kept: Iterable[int]) -> None:
        """Drop all objects of the run but those at `kept`, which `release_kept` ends."""
        keep = set(kept)
        for stored in run.objects:
            if stored is None:
                continue
            if stored.info.count == 1 and stored.info.first in keep and stored.storage is not None:
                self.kept[run.number, stored.info.first] = stored
            else:
                self._drop(stored)
        run.objects.clear()

    def keep(self, stored: StoredObject) -> None:
        """Keep an object of an ended run that came from elsewhere, until `release_kept`."""
        stored.dropped = False
        self.live_count += 1
        self.kept[stored.run, stored.info.first] = stored

    def rename(self, old: ProcessId, new: ProcessId, runs: Iterable[BrokerRun]) -> None:
        """This node is known under another id from now on."""
        self.broker = new
        for stored in (*self.kept.values(), *(s for run in runs for s in run.objects if s)):
            if stored.broker == old:
                stored.broker = new

    def release_kept(self, number: RunNo, positions: Iterable[int]) -> None:
        """The client has dropped its Refs to these."""
        for position in positions:
            stored = self.kept.pop((number, position), None)
            if stored is not None:
                self._drop(stored)

    # --- pulled by the core -----------------------------------------------------------------------

    def take_freed_own(self) -> list[Location]:
        """Extents of the broker's own arena that are free."""
        freed, self._free_own = self._free_own, []
        return freed

    def take_freed_by_executor(self) -> dict[ProcessId, list[Location]]:
        """Extents that living executors may use again."""
        freed, self._free_by_executor = self._free_by_executor, {}
        return freed

    def take_reclaim(self) -> list[tuple[ProcessId, int, frozenset[str]]]:
        """Dead incarnations, with the segments that still hold objects; the rest can go."""
        keys, self._reclaim = sorted(self._reclaim), set()
        return [
            (executor, incarnation, frozenset(self._segments.get((executor, incarnation), ())))
            for executor, incarnation in keys
        ]

    def check(self) -> None:
        """Re-derive the counts.

        Raises:
            InternalError: they are wrong.
        """
        in_memory = sum(s.info.location.size_bytes for s in self.in_memory if s.info.location)
        if not 0 <= in_memory <= self.shared_bytes or self.spilled_bytes < 0:
            raise InternalError(
                f"object table: {in_memory} bytes in memory, {self.shared_bytes} booked, "
                f"{self.spilled_bytes} in files"
            )
        if self.live_count < len(self.kept) or self.live_bytes < 0:
            raise InternalError(
                f"object table: {self.live_count} live, {len(self.kept)} kept, "
                f"{self.live_bytes} bytes"
            )
