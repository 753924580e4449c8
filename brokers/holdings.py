"""What a node tells a master that has lost sight of things, and what it then does for it. Pure.

After the loss of a node, or for a new master, `Holdings` says all that the node has of a run, in
order with what it told before; what is named stays until the master releases it. Objects can be
taken over from a node that leaves, runs be drained, and a node whose master is gone goes on as an
*orphan*: it works on what it has, tells nobody, and presents itself to the next master.
"""

from typing import TYPE_CHECKING

import numpy as np

from dagsched.brokers import bundling
from dagsched.brokers.state import (
    BrokerRun,
    Bundle,
    BundleState,
    Int32,
    StoredObject,
    Subtree,
)
from dagsched.ids import ProcessId, RunNo, SubtreeNo
from dagsched.protocol.messages import (
    EXPORTED,
    OUTPUT,
    AskHoldings,
    Drained,
    DrainRun,
    ExecutorChanged,
    Holdings,
    ObjectInfo,
    ObjectsTaken,
    TakeObjects,
    TaskExpanded,
    TellOutputs,
)

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore

NO_FRAMES = (b"",) * 6


class Holder:
    """Part of `BrokerCore`, which owns the state."""

    def __init__(self, core: "BrokerCore") -> None:
        self.core = core
        self._taking: dict[tuple[RunNo, int], bool] = {}  # objects asked for; True: of ended runs
        self._taken: dict[RunNo, tuple[list[int], list[int]]] = {}  # there, and not to be had

    # --- telling ----------------------------------------------------------------------------------

    def answer(self, message: AskHoldings) -> None:
        """Tell all that is here of these runs, and hold it."""
        self.core.exchange.forget_gone()
        for number in message.runs:
            run = self.core.runs.get(RunNo(number))
            if run is None or run.cancelled:
                if run is not None and message.retell:
                    for parcel in run.failures:
                        self.core.tell_parcel(parcel)
                self.core.tell_master(Holdings(number, message.number, ()), NO_FRAMES)
                continue
            if message.retell:
                self._retell(run)
            if number in message.give_back and not run.draining:
                self._give_back(run)
            self._tell(run, message.number)

    def _give_back(self, run: BrokerRun) -> None:
        """Let others do what no executor here has: there is a node that has nothing to do."""
        self.core.reclaimer.give_back(run)
        pieces: dict[SubtreeNo, list[Int32]] = {}
        for bundle in [b for b in run.bundles.values() if _is_free(run, b)]:
            pieces.setdefault(bundle.subtree.number, []).append(bundling.uncut(run, bundle))
            self.core.ledger.retire(bundle)
        run.waiters.drop(lambda bundle: bundle.state is BundleState.DONE)
        for subtree in list(run.subtrees.values()):
            given = bundling.give_back(run, subtree, pieces.get(subtree.number, ()))
            if not len(given):
                continue
            if not subtree.remaining_count:
                run.subtrees[subtree.number] = bundling.hollow(subtree)

    def _retell(self, run: BrokerRun) -> None:
        run.outputs_ready = [
            stored
            for stored in run.objects
            if stored is not None
            and stored.storage is not None
            and run.hold[stored.info.first] & OUTPUT
        ]
        self.core.exchange.flush_outputs(run)
        for position, plan in run.expansions.items():
            epoch = run.epoch
            self.core.tell_master(TaskExpanded(run.number, epoch, position), plan)
        run.done_count = run.told_count = 0  # the master counts from what is left

    def tell_outputs(self, message: TellOutputs, positions: list[int]) -> None:
        """What came here as an input, or from a node that left, is an output of the run."""
        run = self.core.runs.get(RunNo(message.run))
        if run is None:
            return
        for position in positions:
            stored = self.core.table.find(run, run.number, position)
            if stored is not None and stored.storage is not None:
                run.hold[position] |= OUTPUT
                if stored not in run.outputs_ready:
                    run.outputs_ready.append(stored)

    def _tell(self, run: BrokerRun, recovery: int) -> None:
        held = [s for s in run.objects if s is not None and s.storage is not None]
        infos = [stored.info for stored in held]
        for info in infos:
            run.hold[info.first : info.first + info.count] |= EXPORTED
        # What was asked of a living node too: that may have given up computing it.
        wanted = run.lacking.union(np.flatnonzero(run.sought).tolist())
        lacking = sorted(p for p in wanted if run.object_of[p] < 0 and run.left[p])
        awaited = sorted(run.expansions)
        unfinished, rows = [], []
        for subtree in run.subtrees.values():
            positions = self._unfinished(run, subtree, awaited)
            unfinished.append(positions)
            rows.append((int(subtree.number), subtree.attempt, len(positions)))
        frames = (
            np.array([info.first for info in infos], np.int32).tobytes(),
            np.array([info.count for info in infos], np.int32).tobytes(),
            np.array([info.size_bytes for info in infos], np.int64).tobytes(),
            np.array(lacking, np.int32).tobytes(),
            np.array(awaited, np.int32).tobytes(),
            b"".join(positions.tobytes() for positions in unfinished),
        )
        self.core.tell_master(Holdings(run.number, recovery, rows), frames)

    def _unfinished(self, run: BrokerRun, subtree: Subtree, awaited: list[int]) -> Int32:
        """Tasks of a subtree that will end here, if all goes well."""
        if not subtree.remaining_count:
            return np.zeros(0, np.int32)
        pieces = [subtree.uncut()]
        pieces += [b.positions for b in run.bundles.values() if b.subtree is subtree]
        mine = [
            p
            for p in awaited
            if run.owner_of(p) is subtree and run.bundle_of[p] == bundling.RETURNED_GRAPH
        ]
        pieces.append(np.array(mine, np.int32))
        return np.concatenate(pieces).astype(np.int32)

    # --- taking over from another node ------------------------------------------------------------

    def take(self, message: TakeObjects, positions: list[int], now: float) -> None:
        """Bring objects of another node here, to be held for others."""
        number, core = RunNo(message.run), self.core
        there, _ = self._taken.setdefault(number, ([], []))
        source = ProcessId(message.source_broker)
        run = core.runs.get(number)
        if run is None and not message.kept:
            run = core.open_run(number, message.epoch, 0, message.total, now)
        wanted = []
        for position in positions:
            stored = core.table.find(run, number, position)
            if stored is not None and stored.storage is not None:
                if run is not None:
                    run.hold[position] |= EXPORTED
                there.append(position)
                continue
            if run is not None:
                run.hold[position] |= EXPORTED
            self._taking[number, position] = message.kept
            wanted.append(position)
        if wanted:
            core.exchange.ask(source, number, wanted)

    def wants(self, number: RunNo, position: int) -> bool:
        """An object of an ended run is being taken over for a Ref."""
        return self._taking.get((number, position), False)

    def keep(self, stored: StoredObject) -> None:
        """An object of an ended run has come: it stays for its Ref."""
        key = (stored.run, stored.info.first)
        del self._taking[key]
        self.core.table.keep(stored)
        self._taken.setdefault(stored.run, ([], []))[0].append(stored.info.first)

    def arrived(self, number: RunNo, info: ObjectInfo) -> None:
        """An object of a living run is here."""
        if not self._taking:
            return
        for position in range(info.first, info.first + info.count):
            if self._taking.pop((number, position), None) is not None:
                self._taken.setdefault(number, ([], []))[0].append(position)

    def missing(self, number: RunNo, position: int) -> None:
        """The other node has no such object."""
        if self._taking.pop((number, position), None) is not None:
            self._taken.setdefault(number, ([], []))[1].append(position)

    def run_ended(self, number: RunNo) -> None:
        """Nothing of the run need be taken over any more."""
        self._taken.pop(number, None)
        for key in [key for key, kept in self._taking.items() if key[0] == number and not kept]:
            del self._taking[key]

    # --- draining, and being without a master -----------------------------------------------------

    def drain(self, message: DrainRun) -> None:
        """Begin nothing more of a run here."""
        run = self.core.runs.get(RunNo(message.run))
        if run is None:
            self.core.tell_master(Drained(message.run))
        else:
            run.draining = True

    def flush(self) -> None:
        """Tell what this turn has brought to an end."""
        for number, (there, gone) in sorted(self._taken.items()):
            if there or gone:
                frames = (np.array(there, np.int32).tobytes(), np.array(gone, np.int32).tobytes())
                self.core.tell_master(ObjectsTaken(number), frames)
        self._taken.clear()
        for run in self.core.runs.values():
            if run.draining and not run.drain_told and not self._is_busy(run):
                run.drain_told = True
                self.core.tell_master(Drained(run.number))

    def _is_busy(self, run: BrokerRun) -> bool:
        return any(b.run is run for e in self.core.executors.values() for b in e.queue)

    def master_lost(self) -> None:
        """Whoever wanted runs to end here, or values, is gone."""
        for run in self.core.runs.values():
            run.draining = run.drain_told = False
        self.core.exchange.master_lost()

    def welcomed(self) -> None:
        """A new master has taken the orphan in: tell it of the executors that are there."""
        for executor in self.core.executors.values():
            if executor.pid:
                self.core.tell_master(
                    ExecutorChanged(executor.id, executor.pid, executor.restart_count)
                )


def _is_free(run: BrokerRun, bundle: Bundle) -> bool:
    """No executor has it; but what was charged for a death stays, so that the count does too."""
    if bundle.state is BundleState.WAITING:
        return True
    charged = run.crash_counts.keys() | run.timeout_counts.keys() | run.suspects | run.hungry
    is_charged = bool(charged) and not charged.isdisjoint(bundle.positions.tolist())
    return bundle.state is BundleState.READY and not is_charged
