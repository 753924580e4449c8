"""When windows of subtrees are cut into bundles, and how far ahead. Pure.

How a window is cut is `dagsched.brokers.bundling`'s.
"""

from typing import TYPE_CHECKING

import numpy as np

from dagsched.brokers import bundling, gangs
from dagsched.brokers.state import BrokerRun, Bundle, Subtree

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore

PROBE_S = 0.002  # after this long without a first measurement the next window is cut anyway
LOOKAHEAD_WINDOWS = 4  # windows cut in one turn for idle executors
PRESSED_WINDOWS = 64  # the same, to find what frees memory
PRESSED_BUNDLES_MAX = 500  # with so many cut and not dispatched nobody looks further


class Cutter:
    """Cuts windows while they are wanted; part of `BrokerCore`."""

    def __init__(self, core: "BrokerCore") -> None:
        self.core = core

    def cut(self, now: float) -> None:
        """Cut further windows where few bundles are left to dispatch, or executors are idle."""
        executors = self.core.executors.values()
        ready_executors = [e for e in executors if e.pid and not e.draining]
        # With those that start: else tasks that nobody has measured share the first one's bundles.
        count = max(1, sum(not executor.draining for executor in executors))
        for run in self.core.runs.values():
            if run.cancelled or run.draining:
                continue
            for subtree in run.uncut_subtrees():
                if subtree.open_bundle_count < 2 * count:
                    self._cut_window(run, subtree, count, now)
        for _ in range(LOOKAHEAD_WINDOWS):
            idle = [e for e in ready_executors if not e.queue and not e.killed]
            if len(idle) <= sum(len(run.ready) for run in self.core.runs.values()):
                return
            # Whoever is idle would begin what only makes more: not while the store is full.
            if self.core.pressure.is_holding or self._cut_ahead(count, now) is None:
                return
        self.core.set_timer(now, "cut", 0)

    def cut_to_free(self, now: float) -> bool:
        """The store is above its mark, and nothing cut so far frees memory: look for what does.

        Graphs that are cut level by level have all that produces before what consumes. Only runs
        that have made large objects are looked at.

        Returns:
            whether there is such a bundle now, though it may wait.
        """
        count = max(1, sum(not executor.draining for executor in self.core.executors.values()))
        open_count = sum(
            subtree.open_bundle_count
            for run in self.core.runs.values()
            for subtree in run.subtrees.values()
        )
        for _ in range(PRESSED_WINDOWS):
            if open_count >= PRESSED_BUNDLES_MAX:
                break
            bundles = self._cut_ahead(count, now, only_large=True)
            if bundles is None:
                break
            open_count += len(bundles)
            if any(map(self.core.pressure.frees, bundles)):
                return True
        return False

    def _cut_ahead(
        self, count: int, now: float, *, only_large: bool = False
    ) -> list[Bundle] | None:
        """The bundles of one more window, which may be none; None: there is no window to cut."""
        for run in self.core.runs.values():
            if run.cancelled or run.draining or (only_large and not run.large_bytes):
                continue
            for subtree in run.uncut_subtrees():
                bundles = self._cut_window(run, subtree, count, now)
                if bundles is not None:
                    return bundles
        return None

    def _cut_window(
        self, run: BrokerRun, subtree: Subtree, count: int, now: float
    ) -> list[Bundle] | None:
        if subtree.probing_until_s > now and np.isnan(run.seconds).any():
            return None
        begin, ledger, config = subtree.cursor, self.core.ledger, self.core.config
        found = gangs.gang_window(run, subtree, self.core.gangs.lanes_max(), config)
        if found is not None:
            positions, gang = found
            subtree.cursor = begin + len(positions)
            bundles = [gangs.make_gang(run, subtree, positions, gang, ledger.bundle_count + 1)]
        else:
            bundles = bundling.cut_next_window(run, subtree, count, config, ledger.bundle_count + 1)
        ledger.bundle_count += len(bundles)
        ledger.enter(run, bundles)
        span = subtree.function_of[begin - subtree.lo : subtree.cursor - subtree.lo]
        if subtree.cursor < subtree.hi and np.isnan(run.seconds[span]).any():
            subtree.probing_until_s = now + PROBE_S
            self.core.set_timer(subtree.probing_until_s, "cut", 0)
        return bundles
