"""What a full store means: which bundles are held back, and which objects move to files. Pure.

`Config.store_bytes_max` bounds the shared memory that one node's objects take. Long before an arena
finds no room (`dagsched.brokers.objects.arena`), two marks below that bound are watched here:

- above the first, bundles that only produce are held back while something that frees memory runs,
  or can: what is there is used up before more is made;
- above the second, the objects that were not used for longest are moved to files.

Nothing is held back unless something else frees memory, so that no run ever waits for itself. One
comparison a turn is all that a node below its marks pays.
"""

import heapq
from typing import TYPE_CHECKING

import numpy as np

from dagsched.brokers.state import BrokerRun, Bundle, BundleState, StoredObject
from dagsched.ids import BundleNo
from dagsched.partition.arrays import distinct
from dagsched.protocol.messages import Location
from dagsched.protocol.tracing import FILE_MOVED

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore

HOLD_BACK_SHARE = 0.6
"""Of the bound: above this, what only produces is held back."""

SPILL_SHARE = 0.8
"""Of the bound: above this, objects are moved to files. The rest of the bound is for results of
tasks that run, and for what arenas can't use of their segments."""

SPILL_DOWN_TO_SHARE = 0.7
"""Down to here, so that not every further object means another move."""

BARREN_S = 0.05
"""After nothing was found that could be moved, nobody looks again for so long."""

FAILED_S = 1.0
"""The same, after a file could not be written."""

JOBS_MAX = 64
"""Objects on their way to files at once."""

IMPORTS_LOOKED_AT_MAX = 64
DEPENDENTS_LOOKED_AT_MAX = 8
"""Inputs of a bundle, and those that wait for it, that are looked at to see whether it helps."""

NEVER = 1 << 62


class Pressure:
    """Decides what is held back and what is moved; part of `BrokerCore`."""

    def __init__(self, core: "BrokerCore") -> None:
        self.core = core
        limit = core.config.store_bytes_max
        self._hold_back_bytes = self._spill_bytes = self._spill_down_to_bytes = NEVER
        if limit is not None:
            self._spill_bytes = int(limit * SPILL_SHARE)
            self._spill_down_to_bytes = int(limit * SPILL_DOWN_TO_SHARE)
            if core.config.withhold_roots:
                self._hold_back_bytes = int(limit * HOLD_BACK_SHARE)
        self.held: set[BundleNo] = set()  # bundles that are held back at this moment
        self.spill_count = 0  # objects that were moved to files, ever
        self._jobs: dict[int, tuple[StoredObject, float]] = {}  # on their way to files, since when
        self._job_count = 0
        self._moving_bytes = 0
        self._barren_until_s = 0.0

    # --- holding back -----------------------------------------------------------------------------

    @property
    def is_holding(self) -> bool:
        """Whether more is to be used up before more is made; read by who would cut ahead."""
        return self._is_above_mark() and self._something_frees()

    def _is_above_mark(self) -> bool:
        """Whether there will be too much when all that was dispatched has ended."""
        bytes_count = self.core.table.shared_bytes
        if bytes_count * 2 <= self._hold_back_bytes:
            return False
        for executor in self.core.executors.values():
            for bundle in executor.queue:
                bytes_count += bundle.expected_bytes
        return bytes_count > self._hold_back_bytes

    def dispatched(self, bundle: Bundle, now: float) -> None:
        """A bundle goes to an executor: count what it is going to make, and look again."""
        sizes = bundle.run.large_bytes
        if sizes and self._hold_back_bytes < NEVER:
            most = max(sizes.get(function, 0) for function in functions_of(bundle))
            if most:
                bundle.expected_bytes = most * int(
                    np.frombuffer(bundle.frames[4], np.int32)[1::2].sum()
                )
                self.hold_back(now)

    def hold_back(self, now: float) -> None:
        """Take what only produces out of the lines, if it shall wait."""
        if not self._is_above_mark():
            return
        if not self._something_frees():
            if not self.core.cutter.cut_to_free(now) or not self._something_frees():
                return
        for run in self.core.runs.values():
            mine = [entry for entry in run.ready if self._only_produces(run, entry[2])]
            if mine:
                numbers = {number for _, _, number in mine}
                for number in numbers:
                    bundle = run.bundles[number]
                    run.counters.withheld_count += not bundle.was_held_back
                    bundle.was_held_back = True
                run.ready = [entry for entry in run.ready if entry[2] not in numbers]
                heapq.heapify(run.ready)
                run.withheld += mine

    def let_in(self) -> None:
        """Put them back: the next turn decides anew."""
        held: set[BundleNo] = set()
        for run in self.core.runs.values():
            if run.withheld:
                for entry in run.withheld:
                    heapq.heappush(run.ready, entry)
                    held.add(entry[2])
                run.withheld = []
        self.held = held

    def _only_produces(self, run: BrokerRun, number: BundleNo) -> bool:
        """Whether a bundle makes large objects, and neither it nor who waits for it frees any."""
        bundle = run.bundles.get(number)
        if bundle is None or bundle.state is not BundleState.READY or not run.large_bytes:
            return False
        return not run.large_bytes.keys().isdisjoint(functions_of(bundle)) and not self._helps(
            bundle
        )

    def _something_frees(self) -> bool:
        """Whether memory will be free without anything that is held back."""
        if self._jobs:
            return True
        # A task that collects a value waits, maybe for what would be held back.
        collecting = self.core.exchange.collecting()
        for executor in self.core.executors.values():
            if executor.id not in collecting and any(map(self._helps, executor.queue)):
                return True
        for run in self.core.runs.values():
            if run.cancelled or run.draining:
                continue
            for _, _, number in run.ready:
                bundle = run.bundles.get(number)
                if bundle is not None and bundle.state is BundleState.READY:
                    if self._helps(bundle):
                        return True
        return False

    def _helps(self, bundle: Bundle) -> bool:
        """Whether memory is freed by a bundle, or by one that waits for it."""
        return self.frees(bundle) or any(
            self.frees(dependent) for dependent in bundle.dependents[:DEPENDENTS_LOOKED_AT_MAX]
        )

    @staticmethod
    def frees(bundle: Bundle) -> bool:
        """Whether it uses up an object in shared memory that only tasks of this node keep."""
        run = bundle.run
        for position in bundle.imports[:IMPORTS_LOOKED_AT_MAX].tolist():
            index = int(run.object_of[position])
            # The objects of a run that has ended are gone already.
            if 0 <= index < len(run.objects) and not run.hold[position]:
                stored = run.objects[index]
                if stored is not None and is_shared(stored):
                    return True
        return False

    # --- moving to files --------------------------------------------------------------------------

    def spill(self, now: float) -> None:
        """Have the objects moved that were not used for longest, if there are too many bytes."""
        table = self.core.table
        if table.shared_bytes - self._moving_bytes <= self._spill_bytes:
            return
        if now < self._barren_until_s or len(self._jobs) >= JOBS_MAX:
            return
        wanted = table.shared_bytes - self._moving_bytes - self._spill_down_to_bytes
        wanted_soon = self._wanted_soon()
        for stored in table.in_memory:
            if wanted <= 0 or len(self._jobs) >= JOBS_MAX:
                return
            if not self._is_movable(stored) or stored in wanted_soon:
                continue
            location = stored.info.location
            assert location is not None
            wanted -= location.size_bytes
            self._moving_bytes += location.size_bytes
            self._job_count += 1
            self._jobs[self._job_count] = (stored, now)
            table.pin(stored)
            self.core.actions.spill.append((self._job_count, location))
        # All was looked at; what is still too much can't be moved now.
        self._barren_until_s = now + BARREN_S

    def spilled(self, job: int, location: Location | None, now: float) -> None:
        """An object has been copied to a file; None: there is no room for that either."""
        (stored, begun_s), table = self._jobs.pop(job), self.core.table
        old = stored.info.location
        assert old is not None
        self._moving_bytes -= old.size_bytes
        if location is None:
            self._barren_until_s = now + FAILED_S
        elif self._is_movable(stored, pin_count=1) and stored not in self._wanted_soon():
            table.move(stored, location)
            self.spill_count += 1
            run = self.core.runs.get(stored.run)
            if run is not None:  # not a value kept of one that has ended
                run.trace.filed(FILE_MOVED, stored.info, begun_s)
        else:  # it has gone meanwhile, or is being read where it was
            self.core.actions.free.append(location)
        table.unpin(stored)

    @staticmethod
    def _is_movable(stored: StoredObject, pin_count: int = 0) -> bool:
        """Whether nobody but this core knows where the object lies."""
        storage = stored.storage
        return (
            storage is not None
            and storage.share_count == 1
            and stored.pin_count == pin_count
            and not stored.holders
            and not stored.is_told
            and not stored.dropped
            and is_shared(stored)
        )

    def _wanted_soon(self) -> set[StoredObject]:
        """Inputs of bundles that executors have, or that are next."""
        bundles = [bundle for executor in self.core.executors.values() for bundle in executor.queue]
        for run in self.core.runs.values():
            for _, _, number in run.ready:
                bundle = run.bundles.get(number)
                if bundle is not None and bundle.state is BundleState.READY:
                    bundles.append(bundle)
        found: set[StoredObject] = set()
        for bundle in bundles:
            run = bundle.run
            if len(bundle.imports) and run.objects:
                indices = distinct(run.object_of[bundle.imports])
                for index in indices[indices >= 0].tolist():
                    stored = run.objects[index]
                    if stored is not None:
                        found.add(stored)
        return found


def functions_of(bundle: Bundle) -> frozenset[int]:
    """The functions that a bundle calls; found once."""
    if not bundle.functions:
        bundle.functions = frozenset(distinct(np.frombuffer(bundle.frames[3], np.int32)).tolist())
    return bundle.functions


def is_shared(stored: StoredObject) -> bool:
    """Whether an object's bytes lie in shared memory: neither in the core nor in a file."""
    location = stored.info.location
    return location is not None and not location.is_spilled and stored.storage is not None
