"""What has to be computed again after a loss: asked of all brokers, decided in one place. Pure.

A family of runs *recovers* when a node that took part in it is gone, when a node is to leave with
objects that are still needed, and when its master is a new one. All its brokers are asked what they
hold; what they tell is in order with all that they told before, and what they name stays where it
is until it is released. From that, backwards from the outputs that are missing and from what living
subtrees still lack, follows the least set of tasks (`least_set`). Those become *pieces*: subtrees
of just these tasks, which are placed before all others. Meanwhile nothing of the family is placed;
what brokers have goes on.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dagsched.config import Config
from dagsched.ids import ProcessId, RunNo, SubtreeNo
from dagsched.master import spreading
from dagsched.master.departures import send_taking
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.placing import Placer
from dagsched.master.slices import (
    empty_slot,
    imports_of,
    least_set,
    piece_of,
    positions_frame,
)
from dagsched.master.state import (
    HELD,
    SOURCE,
    UNPLACED,
    MasterRun,
    Recovery,
    RunState,
    Subtree,
    SubtreeState,
    Told,
)
from dagsched.master.telling import told_by
from dagsched.plan import Int32
from dagsched.protocol.messages import (
    PERSISTED,
    REFERENCED,
    AskHoldings,
    Frame,
    Holdings,
    Release,
    TellOutputs,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dagsched.master.lives import Lives


class Recoveries:
    """Part of `Lives`, which owns the runs."""

    def __init__(
        self, lives: "Lives", members: Members, outbox: Outbox, placer: Placer, config: Config
    ) -> None:
        self._lives = lives
        self._members = members
        self._outbox = outbox
        self._placer = placer
        self._limit = config.recovery_limit
        self._parts_a_node = config.subtrees_a_node
        self._count = 0
        kinds = ("recoveries", "rebalances", "recomputed_tasks", "moved_objects")
        self.counters = dict.fromkeys(kinds, 0)

    # --- asking -----------------------------------------------------------------------------------

    def await_orphans(self, root: MasterRun, until_s: float) -> None:
        """A resumed run: ask when the brokers that it had are there."""
        if root.recovery is None:
            root.recovery = Recovery(0, orphans_by_s=until_s)

    def next_timer(self) -> float | None:
        """When a run stops waiting for orphans."""
        waits = [run.recovery.orphans_by_s for run in self._lives.runs.values() if run.recovery]
        return min((when for when in waits if when is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Go on without the orphans that haven't come."""
        for root in [run for run in self._lives.runs.values() if run.recovery is not None]:
            by_s = root.recovery.orphans_by_s if root.recovery is not None else None
            if by_s is not None and (now >= by_s or self._members.has_all_orphans):
                self.begin(root, now, retell=True)

    def begin(
        self,
        root: MasterRun,
        now: float,
        *,
        retell: bool = False,
        give_back: Sequence[RunNo] = (),
    ) -> None:
        """Ask the brokers of a family what they hold; a recovery under way begins anew.

        Of the runs in `give_back` they are to give back what they haven't begun.
        """
        if root.state is not RunState.RUNNING:
            return
        if root.recovery is not None and root.recovery.orphans_by_s is not None and not retell:
            return  # it will begin as soon as the orphans are there
        before, root.recovery = root.recovery, None
        for catch_up in before.later if before is not None else ():
            catch_up(now)  # what brokers told before they are asked once more
        if not _is_running(root):
            return
        self._count += 1
        is_quiet = bool(give_back) and (before is None or before.is_quiet)
        self.counters["rebalances" if is_quiet else "recoveries"] += 1
        if not is_quiet:
            self._outbox.happened(root, "recovering", text=root.losses)
        spreads = bool(give_back) or (before is not None and before.spreads)
        recovery = root.recovery = Recovery(self._count, spreads, is_quiet)
        recovery.askers = before.askers if before is not None else []
        asked: dict[ProcessId, list[int]] = {}
        for run in self._lives.family(root):
            if run.state is not RunState.RUNNING:
                continue
            run.recovering = True
            run.is_dealt = False  # what is placed may wait for what isn't, and must not block it
            recovery.told[run.number] = {}
            for broker in run.brokers():
                if broker in self._members.nodes:
                    recovery.awaiting.add((broker, run.number))
                    asked.setdefault(broker, []).append(run.number)
        for broker, runs in asked.items():
            self._outbox.send(broker, AskHoldings(recovery.number, runs, retell, give_back))
        self._maybe_conclude(root, now)

    def look_for(self, run: MasterRun, broker: ProcessId, position: int, now: float) -> None:
        """A broker looks for a value; a task may collect it, of which holdings say nothing."""
        root = self._lives.runs[run.root]
        share = run.shares.get(broker)
        place = self._lives.locate(run.number, position)
        if root.recovery is None and (broker, position) not in run.told_where:
            run.told_where.add((broker, position))  # once
            if place in self._members.nodes and place != broker:
                self._placer.tell_where(run, broker, position)
                return
        if root.recovery is None and share is not None and share.took_part:
            self.begin(root, now)
        if root.recovery is None:
            self._placer.tell_where(run, broker, position)
        else:
            is_told_after = (broker, run.number) in root.recovery.awaiting
            root.recovery.askers.append((broker, run.number, position, is_told_after))

    def spread(self, now: float) -> None:
        """A node has come, or grown: if it has nothing to do, others give it of what they have."""
        nodes = self._members.usable(now)
        roots = [run for run in self._lives.running() if run.parent is None]
        for root in roots if len(nodes) > 1 else ():
            # Not while tasks wait for graphs that they returned, whose values would have to follow.
            if root.recovery is None and not root.taken and not root.children:
                family = [run for run in self._lives.family(root) if _is_running(run)]
                runs = spreading.only_givers(family, nodes)
                if runs:
                    self.begin(root, now, give_back=runs)

    def take(
        self,
        run: MasterRun,
        broker: ProcessId,
        message: Holdings,
        frames: Sequence[Frame],
        now: float,
    ) -> bool:
        """A broker says what it holds; False: nobody waits for that.

        Raises:
            ProtocolError: its frames can't be what the message says.
        """
        root = self._lives.runs[run.root]
        recovery = root.recovery
        key = (broker, run.number)
        if recovery is None or recovery.number != message.number or key not in recovery.awaiting:
            return False
        recovery.awaiting.discard(key)
        recovery.told[run.number][broker] = told_by(run, broker, message, frames)
        self._maybe_conclude(root, now)
        return True

    def defer(self, run: MasterRun, broker: ProcessId, catch_up: Callable[[float], None]) -> bool:
        """Whether something that a broker told after its holdings has to wait for the conclusion.

        To the conclusion the broker still works on what had not ended when it told its holdings.
        """
        recovery = self._lives.runs[run.root].recovery
        if recovery is None or broker not in recovery.told.get(run.number, ()):
            return False
        recovery.later.append(catch_up)
        return True

    def _maybe_conclude(self, root: MasterRun, now: float) -> None:
        recovery = root.recovery
        if recovery is None or recovery.awaiting or recovery.orphans_by_s is not None:
            return
        root.recovery = None
        family = [run for run in self._lives.family(root) if run.number in recovery.told]
        for run in family:  # parents come before the runs that their tasks began
            if run.state is RunState.RUNNING:
                Rebuild(self, run, recovery.told[run.number], recovery.spreads).do(now)
                if root.state is not RunState.RUNNING:
                    return  # something is lost for good
        for run in family:
            if run.state is RunState.RUNNING:
                run.recovering = False
                self._placer.begin(run)
        for run in family:
            if run.state is RunState.RUNNING:
                self._placer.place(run, now)
                if run.announced:
                    self._lives.families.link_again(run, now)
                self._lives.maybe_announce(run, now)
        for broker, number, position, is_known in recovery.askers:
            asked_of = self._lives.runs.get(number)
            if asked_of is not None and asked_of.state is RunState.RUNNING:
                if is_known:
                    self._placer.tell_where(asked_of, broker, position)
                else:  # what the broker held may not be so any more
                    self.look_for(asked_of, broker, position, now)
        if not recovery.is_quiet:
            self._outbox.happened(root, "recovered")
        for catch_up in recovery.later:
            catch_up(now)
        self._lives.recovered(root, now)


def _is_running(run: MasterRun) -> bool:
    return run.state is RunState.RUNNING


class Rebuild:
    """Derives anew where everything of one run is, from what its brokers told."""

    def __init__(
        self, owner: Recoveries, run: MasterRun, told: dict[ProcessId, Told], spreads: bool
    ) -> None:
        self.owner = owner
        self.run = run
        self.spreads = spreads
        self.told = dict(sorted(told.items()))
        self.outbox = owner._outbox
        self.placer = owner._placer
        self.nodes = owner._members.nodes
        plan = run.plan
        self.count = plan.task_count
        if run.producer_of is None:
            sizes = np.diff(plan.subtree_starts)
            run.producer_of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
            run.loss_counts = np.zeros(self.count, np.uint16)
        self.producer_of = run.producer_of
        self.seconds = owner._lives.seconds_of(run)
        self.active_at = np.zeros(self.count, np.int32)  # broker that computes it
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
        above = self.owner._lives.runs[run.parent[0]]
        child = above.children.get(run.parent[1])
        return child is not None and child.wanted

    def _is_lost_too_often(self, needed: Int32, now: float) -> bool:
        run = self.run
        assert run.loss_counts is not None
        states = np.array([s.state is SubtreeState.DONE for s in run.subtrees], np.bool_)
        was_placed = np.array([s.attempt > 0 for s in run.subtrees], np.bool_)
        producers = self.producer_of[needed]
        lost = needed[states[producers]]
        is_again = was_placed[producers] & ~np.isin(producers, [*self.givers])
        self.owner.counters["recomputed_tasks"] += int(is_again.sum())
        if not len(lost):
            return False
        run.loss_counts[lost] += 1
        worst = int(lost[int(np.argmax(run.loss_counts[lost]))])
        if run.loss_counts[worst] <= self.owner._limit:
            return False
        text = (
            f"the value at position {worst} of run {run.number} was lost "
            f"{run.loss_counts[worst]} times with the nodes that had it, and is not computed again "
            "(recovery_limit)"
        )
        lives = self.owner._lives
        lives.lose(lives.runs[run.root], "ObjectLost", text, now)
        return True

    def _make_pieces(self, needed: Int32) -> None:
        """Group what is needed by the plan's subtrees; whole ones never placed stay as they are."""
        run, plan = self.run, self.run.plan
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
            count = spreading.part_count(self.nodes.values(), self.owner._parts_a_node)
            pieces = spreading.evened(pieces, plan, self.seconds, count)
        for members in pieces:
            number = len(run.subtrees)
            piece = piece_of(run.number, number, plan, members, self.seconds)
            before = run.subtrees[int(self.producer_of[members[0]])]
            piece.attempt = before.attempt
            run.subtrees.append(piece)
            run.successors.append([])
            self.producer_of[members] = number
            if run.parent is None:
                is_again = piece.attempt and before.number not in self.givers
                count = len(members) if is_again else 0
                self.outbox.happened(
                    run, "recomputed", count=count, subtree=number, positions=members,
                    text=run.losses,
                )  # fmt: skip

    def _link_up(self) -> None:
        """Who waits for whom among those not placed, and who imports what."""
        run = self.run
        assert run.holder_of is not None
        run.successors = [[] for _ in run.subtrees]
        waiting = [s for s in run.subtrees if s.state is SubtreeState.WAITING]
        placed = [s for s in run.subtrees if s.state is SubtreeState.PLACED]
        for subtree in waiting:
            imports = imports_of(run.plan, subtree.positions())
            subtree.imports = imports
            producers = np.full(len(imports), SOURCE, np.int32)
            is_task = imports < self.count
            tasks = imports[is_task]
            is_held = run.holder_of[tasks] != 0
            producers[is_task] = np.where(is_held, HELD, self.producer_of[tasks])
            subtree.producers = producers
            subtree.predecessors = np.unique(producers[producers >= 0])
            before = [run.subtrees[number] for number in subtree.predecessors.tolist()]
            subtree.unplaced_count = sum(other.state in UNPLACED for other in before)
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
        run, lives = self.run, self.owner._lives
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
            target = self.owner._lives.departures.target_for(broker)
            if len(positions) and target is None:
                continue  # asked again when another node is there
            node.is_asked = True
            if target is not None and len(positions):
                send_taking(self.outbox, run, node, target, positions)

    def _count_progress(self) -> None:
        run = self.run
        root = self.owner._lives.runs[run.root]
        left = sum(s.task_count for s in run.subtrees if s.state is SubtreeState.WAITING)
        left += int((self.active_at != 0).sum())
        if run is root:
            root.progress_count = 0
        root.progress_count += run.plan.task_count - left
