"""Queues of subtrees by broker, and the messages that empty them: when what goes where. Pure.

A subtree becomes READY when all that it imports from has been placed (not: has ended), gets a
home by `placement`, waits in the home's queue for credit, and goes. A broker with nothing left of
a run takes from the end of the longest queue, where that ends the run earlier.
"""

import math
from bisect import insort
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from dagsched.config import Config
from dagsched.errors import InternalError
from dagsched.ids import ProcessId, SubtreeNo
from dagsched.master.dealing import LOOKED_AT, Turn, next_deal
from dagsched.master.events import RunStarted
from dagsched.master.journal import Placed
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.placement import UNKNOWN_BYTES, Candidate, Host, homes_of
from dagsched.master.slices import placing_parcel, positions_frame
from dagsched.master.state import (
    FEW,
    SOURCE,
    UNFINISHED,
    UNPLACED,
    MasterRun,
    Node,
    RunState,
    Share,
    Subtree,
    SubtreeState,
)
from dagsched.plan import ConstantSource, Int32, RefSource
from dagsched.protocol.messages import PutObjects, Redirect, Relocate

if TYPE_CHECKING:
    from numpy.typing import NDArray

Locate = Callable[[int, int], ProcessId | None]
"""The broker that has, or will have, (run, position) of any run."""


AHEAD_S = 0.25
"""Work a broker may have ahead for each executor: some hundred times a message's round trip."""


class Placer:
    """Places the subtrees of all runs."""

    def __init__(self, config: Config, members: Members, outbox: Outbox, locate: Locate) -> None:
        self._config = config
        self._members = members
        self._outbox = outbox
        self._locate = locate

    # --- inputs -----------------------------------------------------------------------------------

    def begin(self, run: MasterRun) -> None:
        """Subtrees that wait for no other may be placed."""
        for subtree in run.subtrees:
            if subtree.state is SubtreeState.WAITING:
                if run.is_interlocked or not subtree.unplaced_count:
                    self._make_ready(run, subtree)

    def place(self, run: MasterRun, now: float) -> None:
        """Give all READY subtrees homes, and send those for which there is credit."""
        nodes = self._members.usable(now)
        if not nodes or run.state is not RunState.RUNNING or run.recovering:
            return
        placements: list[tuple[int, int, int]] = []
        if run.is_dealt:
            self._deal(run, nodes, placements)
        elif run.is_interlocked:
            self._place_all(run, nodes, placements)
        else:
            hosts = self._hosts(run, nodes)
            while run.homeless:
                for broker in self._house(run, hosts):
                    self._send_from(run, self._members.nodes[broker], placements)
            for node in nodes:
                self._send_from(run, node, placements)
                self._maybe_steal(run, node, nodes, placements)
        self._note(run, placements)

    def place_at(self, run: MasterRun, broker: ProcessId, now: float) -> None:
        """The broker has ended a subtree of the run: give it the next."""
        node = self._members.nodes.get(broker)
        if node is None or not node.is_usable or run.is_interlocked or run.recovering:
            return
        placements: list[tuple[int, int, int]] = []
        if run.is_dealt:
            self._deal(run, [node], placements)
            self._note(run, placements)
            return
        self._send_from(run, node, placements)
        share = run.share(broker)
        if not share.unfinished_count and run.queued_count:
            self._maybe_steal(run, node, self._members.usable(now), placements)
        self._note(run, placements)
        if run.homeless:
            self.place(run, now)

    def empty_queues(self, run: MasterRun, brokers: Iterable[ProcessId]) -> None:
        """These brokers are to get nothing more: their queues need other homes."""
        for broker in brokers:
            share = run.shares.get(broker)
            if share is None:
                continue
            for number in share.queue:
                run.subtrees[number].home = None
                run.homeless.append(number)
            run.queued_count -= len(share.queue)
            share.queue.clear()
            share.queued_s = 0.0

    def take_back(self, run: MasterRun) -> None:
        """Let all wait again that has not been placed."""
        for subtree in run.subtrees:
            if subtree.state is SubtreeState.READY:
                subtree.move(SubtreeState.WAITING)
                subtree.home = None
        run.homeless.clear()
        run.queued_count = 0
        for share in run.shares.values():
            share.queue.clear()
            share.queued_s = 0.0

    def give_up(self, run: MasterRun, subtree: Subtree) -> None:
        """What it was to do is done otherwise, or not needed."""
        if subtree.state is SubtreeState.PLACED:
            self._end_load(run, subtree)
        subtree.move(SubtreeState.GONE)

    def shrink(
        self, run: MasterRun, subtree: Subtree, members: Int32, seconds: "NDArray[np.float64]"
    ) -> None:
        """Its broker has given some of it back, and does no more than these tasks."""
        self._end_load(run, subtree)
        subtree.members = members
        subtree.weight_s = float(seconds[run.plan.function_of[members]].sum())
        self._begin_load(run, subtree)

    def hurry(self, run: MasterRun, wanted: Int32) -> None:
        """Let go without credit what placed subtrees wait for: they won't end and give theirs.

        Args:
            run: that has recovered.
            wanted: positions that placed subtrees import or lack.
        """
        assert run.holder_of is not None
        assert run.producer_of is not None
        tasks = wanted[wanted < run.plan.task_count]
        stack = np.unique(run.producer_of[tasks[run.holder_of[tasks] == 0]]).tolist()
        while stack:
            subtree = run.subtrees[stack.pop()]
            if subtree.state is SubtreeState.WAITING and not subtree.urgent:
                subtree.urgent = True
                stack += subtree.predecessors.tolist()

    def adopt(self, run: MasterRun, subtree: Subtree, broker: ProcessId, attempt: int) -> None:
        """A broker has had it of a master before us, and works on it."""
        subtree.move(SubtreeState.PLACED)
        subtree.home, subtree.attempt = broker, attempt
        self._begin_load(run, subtree)

    def end_loads(self, run: MasterRun) -> None:
        """The run ends as it is: brokers no longer work for it."""
        for subtree in run.subtrees:
            if subtree.state is SubtreeState.PLACED:
                self._end_load(run, subtree)

    def finish(self, run: MasterRun, subtree: Subtree) -> None:
        """A subtree's tasks have all ended."""
        subtree.move(SubtreeState.DONE)
        self._end_load(run, subtree)
        run.unfinished_count -= 1
        if run.is_dealt:
            self._count_down(run, subtree)

    # --- how --------------------------------------------------------------------------------------

    def _end_load(self, run: MasterRun, subtree: Subtree) -> None:
        if subtree.home is None:
            raise InternalError(f"subtree {subtree.number} of run {run.number} is placed nowhere")
        share = run.shares[subtree.home]
        share.unfinished_count -= 1
        share.unfinished_tasks -= subtree.task_count
        left_s = share.unfinished_s - subtree.weight_s
        share.unfinished_s = left_s if share.unfinished_count else 0.0
        node = self._members.nodes.get(subtree.home)
        if node is not None:
            node.load_s = max(0.0, node.load_s - subtree.weight_s)

    def _begin_load(self, run: MasterRun, subtree: Subtree) -> None:
        if subtree.home is None:
            raise InternalError(f"subtree {subtree.number} of run {run.number} is placed nowhere")
        share, node = run.share(subtree.home), self._members.nodes[subtree.home]
        share.unfinished_count += 1
        share.unfinished_tasks += subtree.task_count
        share.unfinished_s += subtree.weight_s
        share.took_part = True
        share.placed_count += 1
        share.idle_count = 0
        node.load_s += subtree.weight_s

    def _make_ready(self, run: MasterRun, subtree: Subtree) -> None:
        subtree.move(SubtreeState.READY)
        subtree.ready_s = self._outbox.now
        if run.is_dealt:
            insort(run.homeless, subtree.number, key=partial(_turn_of, run))
        else:
            run.homeless.append(subtree.number)

    def _count_down(self, run: MasterRun, subtree: Subtree) -> None:
        """Those that wait for this one have one less to wait for."""
        for number in run.successors[subtree.number]:
            successor = run.subtrees[number]
            successor.unplaced_count -= 1
            # A broker may have had it of a master before us, or what waits for it is placed.
            if not successor.unplaced_count and successor.state is SubtreeState.WAITING:
                self._make_ready(run, successor)

    def _hosts(self, run: MasterRun, nodes: list[Node]) -> list[Host]:
        """The nodes as `placement` sees them."""
        hosts = []
        for node in nodes:
            share = run.shares.get(node.broker)
            load_s = node.load_s + (share.queued_s if share is not None else 0.0)
            hosts.append(Host(node.broker, node.speed, load_s / node.speed))
        return hosts

    def _house(self, run: MasterRun, hosts: list[Host]) -> list[ProcessId]:
        """Find a home for each READY subtree that has none; returns the homes, by rising id."""
        if len(hosts) == 1:
            homes = dict.fromkeys(run.homeless, hosts[0].broker)
        else:
            candidates = [self._candidate(run, run.subtrees[number]) for number in run.homeless]
            homes = homes_of(candidates, hosts)
        run.homeless.clear()
        for number in sorted(homes):
            self._enqueue(run, run.subtrees[number], homes[number])
        return sorted(set(homes.values()))

    def _enqueue(self, run: MasterRun, subtree: Subtree, home: ProcessId) -> None:
        subtree.home = home
        share = run.share(home)
        if subtree.urgent:
            share.queue.appendleft(subtree.number)
        else:
            share.queue.append(subtree.number)
        share.queued_s += subtree.weight_s
        run.queued_count += 1

    def _candidate(self, run: MasterRun, subtree: Subtree) -> Candidate:
        """A subtree as `placement` sees it: the bytes of its inputs, by where they lie."""
        bytes_by_broker: dict[ProcessId, float] = {}
        if len(subtree.imports):
            sizes = run.sizes[subtree.imports]
            sizes = np.where(sizes < 0, UNKNOWN_BYTES, sizes)
            is_task = subtree.producers != SOURCE
            places = run.locations(subtree.imports[is_task], subtree.producers[is_task])
            if len(places) <= FEW:
                pairs = zip(places.tolist(), sizes[is_task].tolist(), strict=True)
                for place, size in sorted(pairs):
                    if place:
                        bytes_by_broker[place] = bytes_by_broker.get(place, 0.0) + size
            else:
                sums = np.bincount(places, sizes[is_task])
                for broker in np.flatnonzero(np.bincount(places)).tolist():
                    if broker:
                        bytes_by_broker[ProcessId(broker)] = float(sums[broker])
            for position in subtree.imports[~is_task].tolist():
                source = run.plan.sources[position - run.plan.task_count]
                if isinstance(source, RefSource):
                    holder = self._locate(source.run, source.position)
                    if holder is not None:
                        there = bytes_by_broker.get(holder, 0.0)
                        bytes_by_broker[holder] = there + max(source.size_bytes, UNKNOWN_BYTES)
        return Candidate(subtree.number, subtree.weight_s, bytes_by_broker)

    def _place_all(
        self, run: MasterRun, nodes: list[Node], placements: list[tuple[int, int, int]]
    ) -> None:
        """Subtrees that wait for each other: all at once, neighbours together, by speed."""
        if not run.homeless:
            return
        numbers = sorted(run.homeless)
        run.homeless.clear()
        ends = np.cumsum([node.speed for node in nodes])
        weights = np.array([run.subtrees[number].weight_s for number in numbers]) + 1e-9
        middles = (np.cumsum(weights) - weights / 2) / weights.sum() * ends[-1]
        for number, index in zip(numbers, np.searchsorted(ends, middles).tolist(), strict=True):
            run.subtrees[number].home = nodes[index].broker
        for number in numbers:
            self._send(run, run.subtrees[number], placements)

    def _deal(
        self, run: MasterRun, nodes: Iterable[Node], placements: list[tuple[int, int, int]]
    ) -> None:
        """Place what is ready on idle executors, of these nodes and of those that were idle before.

        Afterwards nothing is ready, or nobody idle.
        """
        self._hurry_deals(run, placements)
        for node in nodes:
            run.idle[node.broker] = _idle_executors(run.share(node.broker), node)
            if run.idle[node.broker] <= 0:
                del run.idle[node.broker]
        while run.homeless and run.idle:
            ready = (run.subtrees[number] for number in islice(run.homeless, LOOKED_AT))
            turns = (
                Turn(self._candidate(run, subtree), self._outbox.now - subtree.ready_s)
                for subtree in ready
            )
            index, broker = next_deal(turns, run.idle)
            run.idle[broker] -= 1
            if run.idle[broker] <= 0:
                del run.idle[broker]
            member = self._members.nodes.get(broker)
            if member is None or not member.is_usable:
                run.idle.pop(broker, None)  # it has gone, or is about to
                continue
            subtree = run.subtrees[run.homeless[index]]
            del run.homeless[index]
            subtree.home = broker
            self._send(run, subtree, placements)

    def _hurry_deals(self, run: MasterRun, placements: list[tuple[int, int, int]]) -> None:
        """Place what placed subtrees wait for, whether somebody is idle or not."""
        while run.homeless and run.subtrees[run.homeless[0]].urgent:
            nodes = [node for node in self._members.nodes.values() if node.is_usable]
            if not nodes:
                return
            free = {n.broker: 1 for n in sorted(nodes, key=lambda node: node.load_s / node.speed)}
            subtree = run.subtrees[run.homeless.popleft()]
            turn = Turn(self._candidate(run, subtree), math.inf)
            _, subtree.home = next_deal([turn], free)
            self._send(run, subtree, placements)

    def _has_credit(self, share: Share, node: Node) -> bool:
        """Enough subtrees to keep it busy while the next is on its way, and no more.

        What is placed is not taken back from a slow node at once, so beyond two only as many as
        are done soon, and one where calls take longer than elsewhere. Subtrees of few tasks don't
        fill a broker's executors, so tasks count too.
        """
        executors, limit = len(node.executors), self._config.placed_subtrees_max
        if self._members.is_single or share.unfinished_tasks < 2 * executors:
            return True
        if share.idle_count:
            return True  # what it has waits for others
        if share.unfinished_count >= min(2 if node.slowness == 1.0 else 1, limit):
            return share.unfinished_count < limit and share.unfinished_s < AHEAD_S * node.speed
        return True

    def _send_from(
        self, run: MasterRun, node: Node, placements: list[tuple[int, int, int]]
    ) -> None:
        """Send from the broker's own queue while it has credit."""
        share = run.shares.get(node.broker)
        while share is not None and share.queue:
            subtree = run.subtrees[share.queue[0]]
            if not subtree.urgent and not self._has_credit(share, node):
                return
            share.queue.popleft()
            run.queued_count -= 1
            share.queued_s = share.queued_s - subtree.weight_s if share.queue else 0.0
            self._send(run, subtree, placements)

    def _maybe_steal(
        self,
        run: MasterRun,
        node: Node,
        nodes: list[Node],
        placements: list[tuple[int, int, int]],
    ) -> None:
        """Give a broker that has nothing of the run the end of the longest queue, if it pays."""
        share = run.share(node.broker)
        if share.unfinished_count or share.queue:
            return
        rich: Node | None = None
        rich_end_s = 0.0
        for other in nodes:
            theirs = run.shares.get(other.broker)
            if theirs is not None and theirs.queue:
                end_s = (other.load_s + theirs.queued_s) / other.speed
                if end_s > rich_end_s:
                    rich, rich_end_s = other, end_s
        if rich is None:
            return
        victim = run.shares[rich.broker]
        subtree = run.subtrees[victim.queue[-1]]
        host = Host(node.broker, node.speed, node.load_s / node.speed)
        if host.end_with(self._candidate(run, subtree)) < rich_end_s:
            victim.queue.pop()
            run.queued_count -= 1
            victim.queued_s = victim.queued_s - subtree.weight_s if victim.queue else 0.0
            subtree.home = node.broker
            self._send(run, subtree, placements)

    def _send(
        self, run: MasterRun, subtree: Subtree, placements: list[tuple[int, int, int]]
    ) -> None:
        """Hand a subtree with a home to its broker."""
        home = subtree.home
        if home is None:
            raise InternalError(f"subtree {subtree.number} of run {run.number} has no home")
        share = run.share(home)
        subtree.move(SubtreeState.PLACED)
        subtree.attempt += 1
        self._begin_load(run, subtree)
        parcel = placing_parcel(
            run.plan,
            subtree,
            epoch=run.epoch,
            priority=run.priority,
            importers=run.importers,
            import_brokers=self._import_brokers(run, subtree),
            known_functions=share.functions,
        )
        self._outbox.send_parcel(home, parcel)
        self.give_sources(run, subtree.imports[subtree.producers == SOURCE].tolist(), home)
        if run.lacking:
            self._tell_lacking(run, subtree, home)
        placements.append((subtree.number, home, subtree.attempt))
        if not run.is_interlocked and not run.is_dealt:
            self._count_down(run, subtree)

    def _import_brokers(self, run: MasterRun, subtree: Subtree) -> Int32:
        """Who has, or will have, each import; 0 for sources, which are given.

        A piece must know what isn't there yet, for that may depend on tasks of its own.
        """
        brokers = np.zeros(len(subtree.imports), np.int32)
        is_task = subtree.producers != SOURCE
        if is_task.any():
            brokers[is_task] = run.locations(subtree.imports[is_task], subtree.producers[is_task])
        if subtree.members is not None:
            brokers[subtree.producers >= 0] *= -1
        return brokers

    def _tell_lacking(self, run: MasterRun, subtree: Subtree, home: ProcessId) -> None:
        """Nodes wait for values of this subtree, which others had that are gone."""
        by_broker: dict[ProcessId, list[int]] = {}
        for position in [p for p in run.lacking if run.producer(p) is subtree]:
            for broker in run.lacking.pop(position):
                if broker in self._members.nodes:
                    by_broker.setdefault(broker, []).append(position)
        for broker, positions in by_broker.items():
            self.tell_relocated(run, broker, positions, [home] * len(positions))

    def tell_relocated(
        self, run: MasterRun, broker: ProcessId, positions: list[int], holders: list[ProcessId]
    ) -> None:
        """Tell a broker where values are, or will be, that it may lack."""
        frames = [positions_frame(np.array(column, np.int32)) for column in (positions, holders)]
        self._outbox.send(broker, Relocate(run.number), frames)

    def tell_where(self, run: MasterRun, broker: ProcessId, position: int) -> None:
        """Tell a broker where a task's value is, or as soon as somebody is to compute it."""
        is_task = position < run.plan.task_count
        is_held = is_task and run.holder_of is not None and run.holder_of[position]
        if is_task and not is_held and run.producer(position).state in UNPLACED:
            waiting = run.lacking.setdefault(position, [])
            waiting += [broker] if broker not in waiting else []
            return  # it will be told when somebody is to compute it
        holder = self._locate(run.number, position)
        place = holder if holder is not None and holder in self._members.nodes else ProcessId(0)
        if broker in self._members.nodes:
            self.tell_relocated(run, broker, [position], [place])

    def give_sources(self, run: MasterRun, positions: list[int], broker: ProcessId) -> None:
        """Send the broker the constants that it wasn't given yet, and where Refs lead.

        Refs are told each time: the broker drops the value when a subtree has done with it.
        """
        share = run.share(broker)
        constants, frames = [], []
        for position in positions:
            source = run.plan.sources[position - run.plan.task_count]
            if isinstance(source, ConstantSource):
                if position not in share.sources:
                    constants.append(position)
                    frames.append(source.data)
                continue
            holder = self._locate(source.run, source.position)
            if holder is None:
                raise InternalError(
                    f"run {run.number} needs position {source.position} of run {source.run}, "
                    "which nobody has any more"
                )
            redirect = Redirect(run.number, position, source.run, source.position, holder)
            self._outbox.send(broker, redirect)
        if constants:
            self._outbox.send(broker, PutObjects(run.number, constants), frames)
        share.sources.update(positions)

    def _note(self, run: MasterRun, placements: list[tuple[int, int, int]]) -> None:
        if not placements:
            return
        self._outbox.write(Placed(run.number, run.epoch, placements))
        if run.parent is None:
            self._outbox.happened(run, "placed", count=len(placements), placements=placements)
        if not run.started:
            run.started = True
            if run.parent is None:
                self._outbox.tell(RunStarted(run.number))

    def check(self, runs: Iterable[MasterRun]) -> list[str]:
        """Re-derive counts and queues; returns what is wrong."""
        wrong = []
        load_s = dict.fromkeys(self._members.nodes, 0.0)
        for run in runs:
            if run.state is RunState.RUNNING:
                if not run.recovering:
                    wrong += _wrong_in(run)
                for subtree in run.subtrees:
                    if subtree.state is SubtreeState.PLACED and subtree.home in load_s:
                        load_s[subtree.home] += subtree.weight_s
        for broker, node in self._members.nodes.items():
            if abs(node.load_s - load_s[broker]) > 1e-6 * (1 + load_s[broker]):
                wrong.append(f"node {broker} has a load of {node.load_s}, not {load_s[broker]}")
        return wrong


def _turn_of(run: MasterRun, number: SubtreeNo) -> tuple[bool, int]:
    """Subtrees of a dealt run come in this order."""
    return not run.subtrees[number].urgent, number


def _idle_executors(share: Share, node: Node) -> int:
    """Executors of a node that have no task of a dealt run.

    Of what a node had before the run was dealt it says only when all of it has ended: meanwhile
    what it tells of its executors is taken.
    """
    idle_count = len(node.executors) - share.unfinished_tasks
    if share.unfinished_tasks > share.unfinished_count:
        return max(idle_count, share.idle_count)
    return idle_count


def _wrong_in(run: MasterRun) -> list[str]:
    """What contradicts itself in one running run."""
    wrong = []
    queued: dict[SubtreeNo, ProcessId | None] = dict.fromkeys(run.homeless)
    for broker, share in run.shares.items():
        placed = [
            subtree
            for subtree in run.subtrees
            if subtree.state is SubtreeState.PLACED and subtree.home == broker
        ]
        tasks = sum(subtree.task_count for subtree in placed)
        if (len(placed), tasks) != (share.unfinished_count, share.unfinished_tasks):
            wrong.append(f"run {run.number}, broker {broker}: counts of unfinished are wrong")
        queued.update(dict.fromkeys(share.queue, broker))
    for subtree in run.subtrees:
        is_ready = subtree.state is SubtreeState.READY
        if is_ready != (subtree.number in queued) or (
            is_ready and queued[subtree.number] != subtree.home
        ):
            wrong.append(f"run {run.number}, subtree {subtree.number}: in the wrong queue")
        unplaced = sum(
            run.subtrees[number].state in run.awaited_states
            for number in subtree.predecessors.tolist()
        )
        is_unplaced = subtree.state in UNPLACED
        if is_unplaced and not run.is_interlocked and unplaced != subtree.unplaced_count:
            wrong.append(f"run {run.number}, subtree {subtree.number}: waits for {unplaced}")
    if run.queued_count != sum(len(share.queue) for share in run.shares.values()):
        wrong.append(
            f"run {run.number}: the count of queued subtrees, {run.queued_count}, is wrong"
        )
    unfinished = sum(subtree.state in UNFINISHED for subtree in run.subtrees)
    if unfinished != run.unfinished_count:
        wrong.append(f"run {run.number}: {unfinished} unfinished, not {run.unfinished_count}")
    return wrong
