"""Objects that come and go: between nodes, to the client, to tasks that collect a Ref. Pure.

Who asks for a value that isn't there yet is written down and answered when it becomes available;
all answers of a turn to one peer are one message.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dagsched.brokers.bundling import RETURNED_GRAPH
from dagsched.brokers.sending import Sendings
from dagsched.brokers.state import BrokerRun, Executor, Fetcher, Int32, StoredObject, Subtree
from dagsched.brokers.table import SMALL
from dagsched.ids import ProcessId, RunNo
from dagsched.partition.arrays import distinct
from dagsched.protocol.messages import (
    EXPORTED,
    META,
    OUTPUT,
    AskWhere,
    BundleDone,
    Failure,
    FetchObjects,
    FetchValue,
    Frame,
    GetValue,
    ObjectInfo,
    ObjectsData,
    ObjectsMissing,
    OutputsReady,
    Parcel,
    Redirect,
    TaskFailed,
    Value,
    ValueReply,
)

if TYPE_CHECKING:
    from dagsched.brokers.actions import BrokerActions
    from dagsched.brokers.core import BrokerCore

ASKED_INFO, ASKED_DATA = 1, 2  # in BrokerRun.asked
EARLY_MAX = 10_000  # requests kept for runs that this node hasn't heard of yet

Key = tuple[RunNo, int]


class Exchange:
    """Requests for objects and their answers; part of `BrokerCore`."""

    def __init__(self, core: "BrokerCore") -> None:
        self.core = core
        self.peers: dict[ProcessId, int] = {}  # the other nodes, with their epochs
        self._lost_ids: set[ProcessId] = set()  # under which nodes were lost, and may be back
        self._data: dict[tuple[ProcessId, RunNo, bool], list[tuple[ObjectInfo, Frame]]] = {}
        self._missing: dict[tuple[ProcessId, RunNo], list[int]] = {}
        self._wanted: dict[tuple[ProcessId, RunNo, bool], list[Int32]] = {}
        self._sendings = Sendings(core)
        self._early: dict[RunNo, list[tuple[ProcessId, int, Int32, bool]]] = {}
        self._early_stored: dict[RunNo, list[ObjectInfo]] = {}
        self._early_redirects: dict[RunNo, list[Redirect]] = {}
        self._redirects: dict[Key, list[tuple[RunNo, int]]] = {}
        self._redirect_holders: dict[Key, ProcessId] = {}  # who was asked for those
        self._requests: dict[Key, list[int]] = {}  # of the master
        self._collecting: dict[Key, list[tuple[Executor, int]]] = {}

    # --- what a placed subtree needs --------------------------------------------------------------

    def fetch_imports(
        self, run: BrokerRun, subtree: Subtree, imports: Int32, brokers: Int32
    ) -> None:
        """Ask other nodes for what the subtree needs of them, once for each object."""
        data_only = np.ones(len(imports), np.bool_)
        if (subtree.flags & META).any():
            owners = np.repeat(subtree.flags & META, np.diff(subtree.indptr))
            data_only = np.isin(imports, subtree.deps[owners == 0])
        remote = (brokers != 0) & (brokers != self.core.broker)
        if run.asked.any():
            self._expect_bytes(run, np.concatenate([imports[data_only & ~remote], subtree.uncut()]))
        is_new = remote & data_only
        is_new[is_new] = (run.object_of[imports[is_new]] < 0) & (run.asked[imports[is_new]] == 0)
        self._seek(run, imports[is_new], brokers[is_new])
        for index in np.flatnonzero(remote & ~is_new).tolist():
            position, info_only = int(imports[index]), not data_only[index]
            self._want(run, position, ProcessId(int(brokers[index])), info_only)
        for info in self._early_stored.pop(run.number, ()):
            self.arrived(run.number, info, None, self.core.broker, info_only=False)
        for redirect in self._early_redirects.pop(run.number, ()):
            self.redirect(redirect)
        for peer, epoch, asked, info_only in self._early.pop(run.number, ()):
            within = asked[asked < run.total]  # it came before anybody could tell
            self.fetch_asked(peer, run.number, epoch, within, info_only)

    def _seek(self, run: BrokerRun, positions: Int32, brokers: Int32) -> None:
        """Ask for bytes of which nothing is here, and of nobody yet."""
        run.asked[positions] = ASKED_DATA
        run.sought[positions] = brokers
        if run.lacking:
            run.lacking.difference_update(positions.tolist())
        for number in distinct(brokers).tolist():
            self.ask(ProcessId(number), run.number, positions[brokers == number])

    def _want(self, run: BrokerRun, position: int, broker: ProcessId, info_only: bool) -> None:
        stored = self.core.table.find(run, run.number, position)
        if stored is not None:
            if stored.storage is not None or info_only:
                return
            self._forget_size(run, stored)
        wanted = ASKED_INFO if info_only else ASKED_DATA
        if run.asked[position] < wanted:
            run.asked[position] = wanted
            run.sought[position] = broker
            run.lacking.discard(position)
            self.ask(broker, run.number, [position], info_only=info_only)

    def _expect_bytes(self, run: BrokerRun, positions: Int32) -> None:
        """What others had, and was known by size only, is to be computed here."""
        is_sized = (run.asked[positions] == ASKED_INFO) & (run.object_of[positions] >= 0)
        for position in positions[is_sized].tolist():
            run.asked[position] = 0
            stored = self.core.table.find(run, run.number, position)
            if stored is not None and stored.storage is None:
                self._forget_size(run, stored)

    def _forget_size(self, run: BrokerRun, stored: StoredObject) -> None:
        """Its bytes are to come. Bundles that need no more than its size may be ready already."""
        for position in range(stored.info.first, stored.info.first + stored.info.count):
            run.sized[position] = stored
            run.object_of[position] = -1
        run.objects[run.objects.index(stored)] = None
        self.core.table.live_count -= 1

    def ask(
        self,
        broker: ProcessId,
        number: RunNo,
        positions: Sequence[int] | Int32,
        *,
        info_only: bool = False,
    ) -> None:
        """Have `flush` ask a node for objects."""
        asked, run = np.asarray(positions, np.int32), self.core.runs.get(number)
        self._wanted.setdefault((broker, number, info_only), []).append(asked)
        if run is not None and not info_only:
            run.trace.asked(asked)

    def relocate(self, number: RunNo, positions: Sequence[int], brokers: Sequence[int]) -> None:
        """Values have, or will have, another holder: ask it for those that are needed here."""
        run = self.core.runs.get(number)
        for position, holder in zip(positions, brokers, strict=True):
            broker = ProcessId(holder)
            collecting = self._collecting.get((number, position))
            if collecting:
                if holder == 0:
                    self.missing(number, [position])
                elif broker != self.core.broker:
                    self.ask(broker, number, [position])
                else:
                    self._maybe_free_executor()
            if run is None or run.object_of[position] >= 0:
                continue
            run.lacking.discard(position)
            if not run.left[position] or run.sought[position] == broker:
                continue
            info_only = bool(run.asked[position] == ASKED_INFO)
            run.asked[position] = run.sought[position] = 0
            if broker != self.core.broker:  # else it will be made here
                self._want(run, position, broker, info_only)

    def _maybe_free_executor(self) -> None:
        """A value that a task collects is to be made here: not while all executors wait for such.

        The task of the highest position is ended and runs again, uncharged, behind what is to be
        made for it, which stands before it in the order.
        """
        waiting = [executor for pairs in self._collecting.values() for executor, _ in pairs]
        executors = [e for e in self.core.executors.values() if e.pid and not e.draining]
        if any(e.killed or not e.queue or e not in waiting for e in executors):
            return
        for executor in sorted(executors, key=lambda e: int(e.queue[0].positions[0]))[-1:]:
            executor.killed = True
            self.core.actions.kill.append(executor.id)

    # --- an object is there -----------------------------------------------------------------------

    def available(self, run: BrokerRun, stored: StoredObject) -> None:
        """Wake the bundles that wait for the object's positions, answer who asked for them."""
        info = stored.info
        run.sought[info.first : info.first + info.count] = 0
        if run.lacking:
            run.lacking.difference_update(range(info.first, info.first + info.count))
        self.core.holder.arrived(run.number, info)
        if run.hold[info.first] & OUTPUT:
            run.outputs_ready.append(stored)
        if run.waiters:
            for bundle, count in run.waiters.take(info.first, info.count).items():
                self.core.ledger.wait_over(bundle, count)
        if run.fetchers:
            self._answer_fetchers(run, stored)
        key = (run.number, info.first)
        if stored.storage is not None:
            for request in self._requests.pop(key, ()):
                self._send_value(request, stored)
            for executor, request in self._collecting.pop(key, ()):
                self._reply(executor, request, stored)

    def _answer_fetchers(self, run: BrokerRun, stored: StoredObject) -> None:
        """Who has asked for it is answered; with its bytes only if they are here.

        They may not be where its task was given back, and its size is told by who computed it.
        """
        has_bytes = stored.storage is not None
        for peer, info_only in run.fetchers.take(
            stored.info.first, stored.info.count, lambda fetcher: has_bytes or fetcher[1]
        ):
            self._answer(peer, run.number, stored, info_only)

    def arrived(
        self,
        number: RunNo,
        info: ObjectInfo,
        frame: Frame | None,
        peer: ProcessId,
        info_only: bool,
        span: tuple[float, float] | None = None,
    ) -> None:
        """An object of another node, or a constant, has come."""
        core = self.core
        run = core.runs.get(number)
        if run is None and peer == core.broker and number not in core.ended_runs:
            self._early_stored.setdefault(number, []).append(info)
            return
        key = (number, info.first)
        targets = self._redirects.pop(key, ())
        self._redirect_holders.pop(key, None)
        # A value of an ended run comes for the run that was given a reference to it.
        reader = core.runs.get(targets[0][0]) if targets else run
        if reader is not None and peer != core.broker and not info_only:
            reader.counters.in_bytes += info.size_bytes
            reader.trace.arrived(targets[0][1] if targets else info.first, info, peer, span)
        collecting = self._collecting.pop(key, ())
        stored: StoredObject | None = None
        if run is not None and run.object_of[info.first] < 0:
            stored = self._enter(run, info, frame, peer, info_only)
        if info_only:
            return
        is_taken = run is None and core.holder.wants(number, info.first)
        if stored is None and (targets or collecting or is_taken or info.location is not None):
            stored = core.table.add_loose(number, info, frame, peer)
        if stored is None:
            return
        if is_taken:
            stored.broker = core.broker
            core.holder.keep(stored)
        core.table.pin(stored)
        for target_number, position in targets:
            target = core.runs.get(target_number)
            if target is not None:
                self._alias(target, position, stored)
        for executor, request in collecting:
            self._reply(executor, request, stored)
        core.table.unpin(stored)

    def _enter(
        self,
        run: BrokerRun,
        info: ObjectInfo,
        frame: Frame | None,
        peer: ProcessId,
        info_only: bool,
    ) -> StoredObject | None:
        span = slice(info.first, info.first + info.count)
        if peer == self.core.broker:
            run.hold[span] |= EXPORTED  # a constant: later subtrees may need it as well
        elif not run.left[span].any() and not run.hold[span].any():
            return None  # nobody needs it any more
        if info_only:
            if run.asked[info.first] == ASKED_DATA:
                return None  # its bytes are under way
            stored = self.core.table.add_remote(run, info, peer)
        else:
            stored = self.core.table.add(run, info, frame, broker=peer)
        self.available(run, stored)
        return stored

    # --- other nodes ask --------------------------------------------------------------------------

    def set_peers(self, peers: Mapping[ProcessId, int]) -> None:
        """These are the other nodes now, with their epochs; those before of another are gone."""
        for peer, epoch in list(self.peers.items()):
            if peers.get(peer) != epoch:
                self.peer_lost(peer)
        self.peers = dict(peers)

    def fetch_asked(
        self,
        peer: ProcessId,
        number: RunNo,
        epoch: int,
        positions: Int32,
        info_only: bool,
    ) -> None:
        """Another node wants these: now, or as soon as they are there."""
        run = self.core.runs.get(number)
        if self._is_ahead(number, epoch):
            if sum(map(len, self._early.values())) < EARLY_MAX:
                early = self._early.setdefault(number, [])
                early.append((peer, epoch, positions, info_only))
            else:  # rather a clear answer than none
                self._missing.setdefault((peer, number), []).extend(positions.tolist())
            return
        if run is not None and len(positions) > SMALL:
            positions = self._answer_many(run, positions, (peer, info_only))
        answered: set[int] = set()
        for position in positions.tolist():
            stored = self.core.table.find(run, number, position)
            if stored is not None and stored.storage is not None:
                if stored.info.first not in answered:
                    answered.add(stored.info.first)
                    self._answer(peer, number, stored, info_only)
            elif run is not None and not self._is_past(run, position):
                run.fetchers.add(position, (peer, info_only))
            else:
                self._missing.setdefault((peer, number), []).append(position)

    def _answer_many(self, run: BrokerRun, positions: Int32, fetcher: Fetcher) -> Int32:
        """Answer for those that are there, note those that will be made; returns the rest."""
        held, positions = self.core.table.find_many(run, positions)
        for stored in held:
            self._answer(fetcher[0], run.number, stored, fetcher[1])
        made_by = run.bundle_of[positions]
        ended = [n for n in distinct(made_by[made_by >= 0]).tolist() if n not in run.bundles]
        is_open = ~np.isin(made_by, ended)
        run.fetchers.add_many(positions[is_open], fetcher)
        return positions[~is_open]

    @staticmethod
    def _is_past(run: BrokerRun, position: int) -> bool:
        """It was made here, inside a bundle that nobody thought would be asked for it."""
        number = int(run.bundle_of[position])
        return number >= 0 and number not in run.bundles and not run.asked[position]

    def will_not_be_made(self, run: BrokerRun, positions: Int32) -> None:
        """Who waits for these is to ask the master where they will be."""
        for position in positions.tolist() if run.fetchers else ():
            for peer, _ in run.fetchers.take(position, 1):
                self._missing.setdefault((peer, run.number), []).append(position)

    def _is_ahead(self, number: RunNo, epoch: int) -> bool:
        """Whether this node has yet to hear of the run, or of its new beginning."""
        run = self.core.runs.get(number)
        if run is not None:
            return epoch > run.epoch
        # Who has no part in the run itself asks with epoch 0, for what is kept of ended runs.
        return epoch > self.core.ended_runs.get(number, 0)

    def _answer(
        self, peer: ProcessId, number: RunNo, stored: StoredObject, info_only: bool
    ) -> None:
        info, storage = stored.info, stored.storage
        run = self.core.runs.get(number)
        if run is not None and not info_only:
            run.counters.out_bytes += info.size_bytes
        if info_only or (storage is not None and storage.frame is not None):
            frame = b"" if info_only or storage is None else storage.frame or b""
            bare = ObjectInfo(
                info.first, info.count, info.size_bytes, None, info.type_name, info.refs
            )
            self._data.setdefault((peer, number, info_only), []).append((bare, frame))
        else:
            self._sendings.begin(peer, number, stored)

    @property
    def transfer_count(self) -> int:
        """Large objects that are being sent."""
        return len(self._sendings)

    def transfer_done(self, peer: ProcessId, number: RunNo, first: int) -> None:
        """The shell has sent a large object, or given up."""
        if self._sendings.end(peer, number, first):
            run = self.core.runs.get(number)
            epoch = run.epoch if run is not None else 0
            self.fetch_asked(peer, number, epoch, np.array([first], np.int32), info_only=False)

    def missing(self, number: RunNo, positions: Sequence[int]) -> None:
        """Another node does not have these: who collects them is told so."""
        run = self.core.runs.get(number)
        for position in positions:
            self.core.holder.missing(number, position)
            for executor, request in self._collecting.pop((number, position), ()):
                self._reply(executor, request, None)
            self._redirect_holders.pop((number, position), None)
            for target, target_position in self._redirects.pop((number, position), ()):
                self._lost(target, target_position)
            if run is not None and run.sought[position]:
                run.sought[position] = 0
                # The master thought otherwise: it finds out where the value is, or has it made.
                run.lacking.add(position)
                if run.object_of[position] < 0 and run.left[position] and not run.cancelled:
                    self.core.tell_master(AskWhere(number, position))

    def _lost(self, number: RunNo, position: int) -> None:
        run = self.core.runs.get(number)
        epoch = run.epoch if run is not None else 0
        failure = Failure(
            position, 1, "object_lost", text="the node that held its only copy has dropped it"
        )
        self.core.tell_master(TaskFailed(number, epoch, failure))

    def peer_lost(self, peer: ProcessId) -> None:
        """Forget what a node that is gone asked for."""
        self.peers.pop(peer, None)
        self._lost_ids.add(peer)
        self._sendings.peer_lost(peer)
        for run in self.core.runs.values():
            run.fetchers.drop(lambda fetcher: fetcher[0] == peer)
            asked = np.flatnonzero(run.sought == peer)
            run.sought[asked] = 0
            run.lacking.update(asked.tolist())
        for key in [key for key, broker in self._redirect_holders.items() if broker == peer]:
            del self._redirect_holders[key]
            for number, position in self._redirects.pop(key, ()):
                target = self.core.runs.get(number)
                if target is not None:
                    target.lacking.add(position)
        for number, position in self._collecting:
            self.core.tell_master(AskWhere(number, position))
        self._data = {key: data for key, data in self._data.items() if key[0] != peer}
        self._wanted = {key: wanted for key, wanted in self._wanted.items() if key[0] != peer}
        self._missing = {key: lost for key, lost in self._missing.items() if key[0] != peer}

    def forget_gone(self) -> None:
        """Who was asked for something but is no node is gone: that was told before it was asked."""
        asked = set(self._redirect_holders.values())
        for run in self.core.runs.values():
            asked.update(map(ProcessId, distinct(run.sought[run.sought != 0]).tolist()))
        for peer in sorted(asked - self.peers.keys() - {self.core.broker}):
            self.peer_lost(peer)

    def master_lost(self) -> None:
        """Nobody waits for these answers any more; another master counts its requests anew."""
        self._requests.clear()

    # --- redirects, collects, outputs -------------------------------------------------------------

    def redirect(self, message: Redirect) -> None:
        """Give a position the value of another object, fetching it where need be."""
        number, core = RunNo(message.run), self.core
        run = core.runs.get(number)
        if run is None:
            if number not in core.ended_runs:
                self._early_redirects.setdefault(number, []).append(message)
            return
        if run.object_of[message.position] >= 0:
            return
        source = RunNo(message.source_run)
        stored = core.table.find(core.runs.get(source), source, message.source_position)
        if stored is not None and stored.storage is not None:
            self._alias(run, message.position, stored)
        elif message.source_broker == core.broker:
            self._lost(number, message.position)
        else:
            key = (source, message.source_position)
            targets = self._redirects.setdefault(key, [])
            if (number, message.position) not in targets:
                targets.append((number, message.position))
            run.lacking.discard(message.position)
            broker = ProcessId(message.source_broker)
            self._redirect_holders[key] = broker
            self.ask(broker, source, [message.source_position])

    def _alias(self, run: BrokerRun, position: int, source: StoredObject) -> None:
        if run.object_of[position] >= 0:
            return
        returned_graph = run.bundle_of[position] == RETURNED_GRAPH
        if not returned_graph:
            run.hold[position] |= EXPORTED  # a source: later subtrees may need it as well
        stored = self.core.table.alias(run, position, source)
        self.available(run, stored)
        if returned_graph:
            run.bundle_of[position] = -1  # so that a second redirect finds nothing to end
            run.expansions.pop(position, None)
            self.core.ledger.task_redirected(run, position)
            self.core.table.maybe_drop(run, stored)

    def fetch_value(self, message: FetchValue) -> None:
        """The client wants an object."""
        number, position = RunNo(message.run), message.position
        run = self.core.runs.get(number)
        stored = self.core.table.find(run, number, position)
        if stored is not None and stored.storage is not None:
            self._send_value(message.request, stored)
        elif run is not None and not run.cancelled:
            self._requests.setdefault((number, position), []).append(message.request)
        else:
            self.core.tell_master(Value(message.request, None))

    def _send_value(self, request: int, stored: StoredObject) -> None:
        stored.is_told = True
        frame = stored.storage.frame if stored.storage is not None else None
        self.core.tell_master(Value(request, stored.info), () if frame is None else (frame,))

    def get_value(self, executor: Executor, message: GetValue) -> None:
        """A task collects a Ref and waits."""
        number, position = RunNo(message.run), message.position
        run = self.core.runs.get(number)
        stored = self.core.table.find(run, number, position)
        if stored is not None and stored.storage is not None:
            self._reply(executor, message.request, stored)
        elif message.broker not in (0, self.core.broker) and (
            message.broker not in self.peers or message.broker in self._lost_ids
        ):
            # Its holder has gone, though another node may have its id by now, which would wait to
            # hear of the run; the value has moved, or is being made anew.
            self._collecting.setdefault((number, position), []).append((executor, message.request))
            self.core.tell_master(AskWhere(number, position))
        elif message.broker not in (0, self.core.broker):
            waiting = self._collecting.setdefault((number, position), [])
            if not waiting:
                self.ask(ProcessId(message.broker), number, [position])
            waiting.append((executor, message.request))
        else:
            self._reply(executor, message.request, None)

    def _reply(self, executor: Executor, request: int, stored: StoredObject | None) -> None:
        if self.core.executors.get(executor.id) is not executor:
            return  # it has been replaced since
        if stored is None or stored.storage is None:
            parcel = Parcel(ValueReply(request, None))
        else:
            self.core.table.pin(stored)
            executor.collected.append(stored)
            frame = stored.storage.frame
            parcel = Parcel(ValueReply(request, stored.info), () if frame is None else (frame,))
        self.core.actions.send_executor(executor.id, parcel)

    def collecting(self) -> set[ProcessId]:
        """Executors whose task waits for a value that isn't here."""
        return {executor.id for pairs in self._collecting.values() for executor, _ in pairs}

    def views_changed(self, executor: Executor, message: BundleDone) -> None:
        """Book which objects the executor still has views of."""
        table = self.core.table
        for number, first in message.held:
            run = self.core.runs.get(RunNo(number))
            stored = table.find(run, RunNo(number), first)
            for item in executor.collected:
                if stored is None and (item.run, item.info.first) == (number, first):
                    stored = item
            if stored is not None:
                table.hold_view(stored, executor.id)
        for number, first in message.dropped:
            table.drop_view(executor.id, RunNo(number), first)

    def flush_outputs(self, run: BrokerRun) -> None:
        """Tell the master of outputs that became available."""
        if not run.outputs_ready:
            return
        ready, run.outputs_ready = run.outputs_ready, []
        for stored in ready:
            stored.is_told = True
        frames = [s.storage.frame for s in ready if s.storage is not None]
        self.core.tell_master(
            OutputsReady(run.number, run.epoch, [stored.info for stored in ready]),
            [frame for frame in frames if frame is not None],
        )

    def run_ended(self, run: BrokerRun) -> None:
        """Forget what was asked of the run; who still waits is told that it is lost."""
        for (peer, _), positions in run.fetchers.items():
            self._missing.setdefault((peer, run.number), []).extend(positions)
        for key in [key for key in self._requests if key[0] == run.number]:
            for request in self._requests.pop(key):
                self.core.tell_master(Value(request, None))
        self._early.pop(run.number, None)
        self._early_stored.pop(run.number, None)
        self._early_redirects.pop(run.number, None)
        self.core.holder.run_ended(run.number)

    def flush(self, actions: "BrokerActions") -> None:
        """One message a peer and run for what this turn brought."""
        for peer, number, info_only in sorted(self._wanted):
            frame = b"".join(wanted.tobytes() for wanted in self._wanted[peer, number, info_only])
            run = self.core.runs.get(number)
            epoch = run.epoch if run is not None else 0
            actions.send_peer(peer, Parcel(FetchObjects(number, epoch, info_only), (frame,)))
        for (peer, number, info_only), data in sorted(self._data.items()):
            infos = [info for info, _ in data]
            frames = [] if info_only else [frame for _, frame in data]
            actions.send_peer(peer, Parcel(ObjectsData(number, infos, info_only), frames))
        for (peer, number), positions in sorted(self._missing.items()):
            frame = np.array(positions, np.int32).tobytes()
            actions.send_peer(peer, Parcel(ObjectsMissing(number), (frame,)))
        self._wanted.clear()
        self._data.clear()
        self._missing.clear()
