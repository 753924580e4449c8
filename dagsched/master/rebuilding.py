"""Where everything of a run is, derived anew from what its brokers told. Pure.

The second half of a recovery (`recovery`): what brokers hold and work on is kept, and what is
needed of the rest becomes pieces, subtrees of just these tasks.
"""

from typing import TYPE_CHECKING

import numpy as np

from dagsched.ids import ProcessId, SubtreeNo
from dagsched.master import spreading
from dagsched.master.dealing import LEFT_MAX, dealt_order
from dagsched.master.departures import send_taking
from dagsched.master.slices import (
    Linker,
    empty_slot,
    least_set,
    piece_of,
    positions_frame,
    singles_of,
)
from dagsched.master.state import (
    HELD,
    UNPLACED,
    MasterRun,
    RunState,
    Subtree,
    SubtreeState,
    Told,
)
from dagsched.plan import Int32
from dagsched.protocol.messages import PERSISTED, REFERENCED, Release, TellOutputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dagsched.master.recovery import Recoveries


class Rebuild:
    """Derives anew where everything of one run is, from what its brokers told."""

    def __init__(
        self, owner: "Recoveries", run: MasterRun, told: dict[ProcessId, Told], spreads: bool
    ) -> None:
        self.owner = owner
        self.run = run
        self.spreads = spreads
        self.told = dict(sorted(told.items()))
        self.outbox = owner.outbox
        self.placer = owner.placer
        self.nodes = owner.members.nodes
        plan = run.plan
        self.count = plan.task_count
        if run.producer_of is None:
            sizes = np.diff(plan.subtree_starts)
            run.producer_of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
            run.loss_counts = np.zeros(self.count, np.uint16)
        self.producer_of = run.producer_of
        self.seconds = owner.lives.seconds_of(run)
        self.active_at = np.zeros(self.count, np.int32)  # broker that computes it
        self.was_there = np.zeros(self.count, np.bool_)  # its subtree had ended
        self.is_again = np.zeros(self.count, np.bool_)  # it is needed, and had been executed
        self.givers: set[int] = set()  # subtrees that living brokers gave something back of

    def do(self, now: float) -> None:
        """Change the run's records and tell the brokers; the placer does the rest."""
        run = self.run
        self.placer.take_back(run)
        self._adopt_subtrees()
        holder_of = self._holders()
        self._forget_lost_outputs()
        is_there = (holder_of != 0) | (self.active_at != 0)
        self.told = spreading.missing_imports(run.plan, self.told, is_there)
        needed = self._needed(holder_of)
        run.holder_of = holder_of
        if len(needed) and self._is_lost_too_often(needed, now):
            return
        self._make_pieces(needed)
        self._link_up()
        self._settle_children(needed, now)
        self._relocate(needed)
        self._tell_outputs()
        self._release()
        self._move_from_leavers()
        self._count_progress()

    def _is_drained(self, broker: ProcessId) -> bool:
        return self.run.number in self.nodes[broker].drained

    # --- what is where ----------------------------------------------------------------------------

    def _adopt_subtrees(self) -> None:
        """Keep subtrees that brokers work on; give up those that nobody works on any more."""
        run, placer = self.run, self.placer
        reported: dict[int, tuple[ProcessId, int, Int32]] = {}
        number_max = len(run.subtrees) - 1
        for broker, told in self.told.items():
            for number, attempt, positions in told.subtrees:
                number_max = max(number_max, number)
                known = reported.get(number)
                if len(positions) and (known is None or attempt > known[1]):
                    reported[number] = (broker, attempt, positions)
        run.subtrees += [
            empty_slot(run.number, number) for number in range(len(run.subtrees), number_max + 1)
        ]
        run.successors += [[] for _ in range(len(run.subtrees) - len(run.successors))]
        placed = [s for s in run.subtrees if s.state is SubtreeState.PLACED]
        if self.spreads:
            self.givers = {s.number for s in placed if s.home in self.told}
        for subtree in placed:
            told_of = reported.get(subtree.number)
            if told_of is None or told_of[0] != subtree.home or self._is_drained(told_of[0]):
                placer.give_up(run, subtree)
        for number, (broker, attempt, positions) in sorted(reported.items()):
            if self._is_drained(broker):
                continue
            subtree = run.subtrees[number]
            if subtree.state is not SubtreeState.PLACED:
                subtree = self._adopted(number, broker, attempt, np.sort(positions))
            if self.spreads and len(positions) < subtree.task_count:
                self.placer.shrink(run, subtree, np.sort(positions), self.seconds)
            self.active_at[positions] = broker
            self.producer_of[positions] = subtree.number

    def _adopted(self, number: int, broker: ProcessId, attempt: int, positions: Int32) -> Subtree:
        """A record of what an orphan works on, of which the last master knew."""
        run = self.run
        if run.subtrees[number].state is SubtreeState.WAITING:
            self.placer.give_up(run, run.subtrees[number])
        piece = piece_of(run.number, number, run.plan, positions, self.seconds)
        # All that it lacks is told by the broker; the rest of its inputs is there.
        lacking = self.told[broker].lacking
        piece.imports = piece.imports[np.isin(piece.imports, lacking)]
        piece.producers = np.full(len(piece.imports), HELD, np.int32)
        run.subtrees[number] = piece
        self.placer.adopt(run, piece, broker, attempt)
        return piece

    def _holders(self) -> Int32:
        """Who has which value: its home if that lives, else the broker with the lowest id."""
        run = self.run
        tasks = np.arange(self.count, dtype=np.int32)
        before = run.locations(tasks, self.producer_of)
        holder_of = np.zeros(self.count, np.int32)
        for broker, told in self.told.items():
            positions = told.positions()
            mine = positions[positions < self.count]
            is_better = holder_of[mine] == 0
            if not self._leaves(np.array([broker], np.int32)).any():
                is_better |= (before[mine] == broker) | self._leaves(holder_of[mine])
            holder_of[mine[is_better]] = broker
            if len(run.sizes):
                known = told.firsts < self.count
                run.sizes[mine] = 0  # a block's bytes count for its first position
                run.sizes[told.firsts[known]] = told.sizes[known]
        return holder_of

    def _leaves(self, brokers: Int32) -> "NDArray[np.bool_]":
        leavers = [b for b, n in self.nodes.items() if n.leaving and not n.is_orphan]
        return np.isin(brokers, leavers)

    def _forget_lost_outputs(self) -> None:
        """Outputs that went with a node before the client, or the waiting task, had them."""
        run = self.run
        if run.taken:
            return
        is_child = run.parent is not None
        kept = []
        for broker, info, frame in run.objects:
            is_safe = info.location is None and not is_child
            if is_safe or broker in self.told:
                kept.append((broker, info, frame))
                continue
            for position in range(info.first, info.first + info.count):
                run.missing_count += not run.missing[position]
                run.missing[position] = 1
        if len(kept) != len(run.objects):
            run.objects = kept
            run.streamed = run.streamed and 0
            run.announced = False

    # --- what is to be done -----------------------------------------------------------------------

    def _needed(self, holder_of: Int32) -> Int32:
        run, plan = self.run, self.run.plan
        is_there = (holder_of != 0) | (self.active_at != 0)
        wanted: list[int] = []
        if self._is_wanted():
            wanted += np.flatnonzero(np.frombuffer(run.missing, np.uint8)).tolist()
        flags = plan.flags[: self.count]
        wanted += np.flatnonzero(flags & (REFERENCED | PERSISTED)).tolist()
        for broker, told in self.told.items():
            if not self._is_drained(broker):
                wanted += told.lacking.tolist()
        return least_set(plan, is_there, wanted)

    def _is_wanted(self) -> bool:
        """Somebody waits for the outputs: the client, or the task that returned this graph."""
        run = self.run
        if run.parent is None:
            return not run.taken
        above = self.owner.lives.runs[run.parent[0]]
        child = above.children.get(run.parent[1])
        return child is not None and child.wanted

    def _is_lost_too_often(self, needed: Int32, now: float) -> bool:
        run = self.run
        assert run.loss_counts is not None
        self._note_again(needed)
        lost = needed[self.was_there[needed]]
        self.owner.counters["recomputed_tasks"] += int(self.is_again[needed].sum())
        if not len(lost):
            return False
        run.loss_counts[lost] += 1
        worst = int(lost[int(np.argmax(run.loss_counts[lost]))])
        if run.loss_counts[worst] <= self.owner.limit:
            return False
        text = (
            f"the value at position {worst} of run {run.number} was lost "
            f"{run.loss_counts[worst]} times with the nodes that had it, and is not computed again "
            "(recovery_limit)"
        )
        lives = self.owner.lives
        lives.lose(lives.runs[run.root], "ObjectLost", text, now)
        return True

    def _note_again(self, needed: Int32) -> None:
        """Which of the tasks needed had been executed, as far as the master was told.

        All of a subtree that had ended; of others that went with their broker, as many as it had
        told: it doesn't say which.
        """
        run = self.run
        is_done = np.array([s.state is SubtreeState.DONE for s in run.subtrees], np.bool_)
        was_placed = np.array([s.attempt > 0 for s in run.subtrees], np.bool_)
        producers = self.producer_of[needed]
        self.was_there[needed] = is_done[producers]
        is_open = was_placed[producers] & ~is_done[producers]
        is_open &= ~np.isin(producers, [*self.givers])
        self.is_again[needed] = is_done[producers]
        self.is_again[needed[is_open][: run.lost_done_count]] = True
        run.lost_done_count = 0

    def _make_pieces(self, needed: Int32) -> None:
        """Group what is needed by the plan's subtrees; whole ones never placed stay as they are.

        Where the run is dealt, each task is a piece of its own, in a new order if there aren't too
        many.
        """
        run, plan = self.run, self.run.plan
        if run.is_dealt and len(needed) <= LEFT_MAX:
            self._make_singles(needed)
            return
        homes = np.searchsorted(plan.subtree_starts, needed, side="right") - 1
        numbers, borders = np.unique(homes, return_index=True)
        ends = np.append(borders[1:], len(needed))[: len(numbers)].tolist()
        whole: set[int] = set()
        pieces: list[Int32] = []
        for number, begin, end in zip(numbers.tolist(), borders.tolist(), ends, strict=True):
            original = run.subtrees[number]
            is_fresh = original.state is SubtreeState.WAITING and original.members is None
            if is_fresh and end - begin == original.task_count:
                whole.add(number)
                self.producer_of[needed[begin:end]] = number
            else:
                pieces.append(needed[begin:end])
        for subtree in run.subtrees:
            if subtree.state in UNPLACED and subtree.number not in whole:
                self.placer.give_up(run, subtree)
        pieces = spreading.split_around(pieces, self.active_at != 0)
        if self.spreads and not run.is_interlocked:
            count = spreading.part_count(self.nodes.values(), self.owner.parts_a_node)
            pieces = spreading.evened(pieces, plan, self.seconds, count)
        for members in pieces:
            number = len(run.subtrees)
            self._add_piece(piece_of(run.number, number, plan, members, self.seconds))

    def _make_singles(self, needed: Int32) -> None:
        """Each task a piece, in the order in which they shall be dealt."""
        run = self.run
        for subtree in run.subtrees:
            if subtree.state in UNPLACED:
                self.placer.give_up(run, subtree)
        executors = sum(len(node.executors) for node in self.nodes.values() if node.is_usable)
        order = dealt_order(run.plan, needed, self.seconds, executors)
        for piece in singles_of(run.number, len(run.subtrees), run.plan, order, self.seconds):
            self._add_piece(piece)

    def _add_piece(self, piece: Subtree) -> None:
        run, members = self.run, piece.positions()
        piece.attempt = run.subtrees[int(self.producer_of[members[0]])].attempt
        run.subtrees.append(piece)
        run.successors.append([])
        self.producer_of[members] = piece.number
        if run.parent is None:
            self.outbox.happened(
                run, "recomputed", count=int(self.is_again[members].sum()), subtree=piece.number,
                positions=members, text=run.losses,
            )  # fmt: skip

    def _link_up(self) -> None:
        """Who waits for whom among those not placed, and who imports what."""
        run = self.run
        assert run.holder_of is not None
        run.successors = [[] for _ in run.subtrees]
        waiting = [s for s in run.subtrees if s.state is SubtreeState.WAITING]
        placed = [s for s in run.subtrees if s.state is SubtreeState.PLACED]
        linker = Linker(run.plan, run.holder_of, self.producer_of)
        for subtree in waiting:
            subtree.imports, subtree.producers, subtree.predecessors = linker.links_of(subtree)
            before = [run.subtrees[number] for number in subtree.predecessors.tolist()]
            subtree.unplaced_count = sum(other.state in run.awaited_states for other in before)
            for other in before:
                run.successors[other.number].append(SubtreeNo(subtree.number))
        total = self.count + len(run.plan.sources)
        run.importers = np.zeros(total, np.int32)
        for subtree in (*waiting, *placed):
            run.importers[subtree.imports] += 1
        if not len(run.sizes):
            run.sizes = np.full(total, -1, np.int64)
        run.unfinished_count = len(waiting) + len(placed)
        waits = [told.lacking for told in self.told.values()] + [s.imports for s in placed]
        if waits:
            self.placer.hurry(run, np.unique(np.concatenate(waits)))

    def _settle_children(self, needed: Int32, now: float) -> None:
        """Graphs that tasks returned: who of them is still waited for."""
        run, lives = self.run, self.owner.lives
        waiters: dict[int, set[ProcessId]] = {}
        for broker, told in self.told.items():
            for position in told.awaited.tolist() if not self._is_drained(broker) else ():
                waiters.setdefault(position, set()).add(broker)
        for position, child in list(run.children.items()):
            index = int(np.searchsorted(needed, position))
            is_again = index < len(needed) and needed[index] == position
            child_run = lives.runs.get(child.run)
            if is_again and (child_run is None or child_run.state is not RunState.RUNNING):
                del run.children[position]  # the task will return its graph again
                continue
            child.waiters = waiters.get(position, set())
            child.wanted = is_again or bool(child.waiters) or bool(self.active_at[position])
            if child.waiters and child_run is not None and child_run.announced:
                lives.families.link_again(child_run, now)

    # --- telling brokers --------------------------------------------------------------------------

    def _relocate(self, needed: Int32) -> None:
        """Tell who lacks what where it will come from."""
        run = self.run
        assert run.holder_of is not None
        run.lacking.clear()
        run.told_where.clear()
        is_needed = np.zeros(self.count, np.bool_)
        is_needed[needed] = True
        for broker, told in self.told.items():
            if self._is_drained(broker):
                continue
            sources = told.lacking[told.lacking >= self.count].tolist()
            if sources:
                self.placer.give_sources(run, sources, broker)
            now_there: dict[int, ProcessId] = {}
            for position in told.lacking[told.lacking < self.count].tolist():
                if is_needed[position]:
                    run.lacking.setdefault(position, []).append(broker)
                    continue
                place = run.holder_of[position] or self.active_at[position]
                now_there[position] = ProcessId(int(place))
            if now_there:
                self.placer.tell_relocated(run, broker, [*now_there], [*now_there.values()])

    def _tell_outputs(self) -> None:
        """Outputs whose first holder is gone may live elsewhere, as inputs: those tell of them."""
        run = self.run
        assert run.holder_of is not None
        if run.taken or not run.missing_count:
            return
        missing = np.flatnonzero(np.frombuffer(run.missing, np.uint8))
        holders = run.holder_of[missing]
        for broker in np.unique(holders[holders != 0]).tolist():
            frame = positions_frame(missing[holders == broker].astype(np.int32))
            self.outbox.send(ProcessId(broker), TellOutputs(run.number), [frame])

    def _release(self) -> None:
        """Let go of what was named, and thereby held, in vain."""
        run = self.run
        assert run.holder_of is not None
        flags = run.plan.flags[: self.count]
        is_wanted = run.importers[: self.count] > 0
        is_wanted |= (flags & (REFERENCED | PERSISTED)) != 0
        for broker, told in self.told.items():
            positions = told.positions()
            positions = positions[positions < self.count]
            is_kept = is_wanted[positions] & (run.holder_of[positions] == broker)
            spent = positions[~is_kept]
            if len(spent):
                self.outbox.send(broker, Release(run.number), [positions_frame(spent)])

    def _move_from_leavers(self) -> None:
        """What only nodes that leave still have goes to others."""
        run = self.run
        assert run.holder_of is not None
        wanted = run.importers[: self.count] > 0
        wanted |= (run.plan.flags[: self.count] & (REFERENCED | PERSISTED)) != 0
        if not run.taken:
            wanted |= np.frombuffer(run.missing, np.uint8) != 0
        for broker in [b for b in self.told if self._is_drained(b)]:
            node = self.nodes[broker]
            positions = np.flatnonzero(wanted & (run.holder_of == broker)).astype(np.int32)
            target = self.owner.lives.departures.target_for(broker)
            if len(positions) and target is None:
                continue  # asked again when another node is there
            node.is_asked = True
            if target is not None and len(positions):
                send_taking(self.outbox, run, node, target, positions)

    def _count_progress(self) -> None:
        run = self.run
        root = self.owner.lives.runs[run.root]
        left = sum(s.task_count for s in run.subtrees if s.state is SubtreeState.WAITING)
        left += int((self.active_at != 0).sum())
        if run is root:
            root.progress_count = 0
        root.progress_count += run.plan.task_count - left
