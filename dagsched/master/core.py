"""MasterCore: everything that the master decides, as a state machine. Pure.

Runs come from the client as plans; their subtrees go to brokers (`placing`), which tell when
those have ended; the outputs go to the client, and then the run is ended everywhere (`lives`).
Nodes come and go (`members`). The shell pushes what happened and pulls `take_actions()` once a
turn. Rules for whoever edits this:

- no I/O, no clock (`now` is given, monotonic seconds), no randomness, no order by hash;
- every input has the time, also where it doesn't matter yet (hence ARG002);
- a message of an ended run, an old epoch or attempt is counted in `stale_count` and dropped;
- a subtree's and a run's state move by their `move` only;
- costs are per subtree, in array passes; never a Python step per task.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import assert_never

import numpy as np

from dagsched._version import __version__
from dagsched.config import Config
from dagsched.errors import InternalError, ProtocolError
from dagsched.ids import ProcessId, RunNo
from dagsched.master.balancing import Balance
from dagsched.master.events import RunProgressed, ValueArrived
from dagsched.master.journal import ClientPart, Record, RunPast, SubtreeEnded
from dagsched.master.kept import KeptObjects
from dagsched.master.lives import Lives
from dagsched.master.members import Members, Version, WantedNode
from dagsched.master.outbox import MasterActions, Outbox
from dagsched.master.paces import Paces
from dagsched.master.placing import Placer
from dagsched.master.rewriting import journal_of
from dagsched.master.slices import positions_frame
from dagsched.master.state import SOURCE, MasterRun, RunState, RunTerms, Subtree, SubtreeState
from dagsched.master.surveys import Surveys
from dagsched.master.tracing import traced
from dagsched.master.watching import Watch
from dagsched.plan import RunPlan
from dagsched.protocol.asking import TaskAnswer, TaskRetried
from dagsched.protocol.codec import PROTOCOL_VERSION
from dagsched.protocol.messages import (
    AskWhere,
    BrokerHello,
    BrokerToMaster,
    Drained,
    EndRun,
    ExecutorChanged,
    FetchValue,
    Frame,
    Holdings,
    NodeTrace,
    ObjectsTaken,
    OutputsReady,
    Pong,
    Progress,
    Release,
    RunClosed,
    Shutdown,
    Stats,
    SubtreeDone,
    TaskExpanded,
    TaskFailed,
    TaskTrace,
    Value,
)

__all__ = ["MasterActions", "MasterCore", "own_version"]

ESTIMATES_MAX = 100_000  # functions; the ones measured first are forgotten first
ESTIMATE_SHARE = 0.5  # of the newest measure in the moving mean


def own_version() -> Version:
    """What a broker must have told to be welcomed."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (python, __version__, PROTOCOL_VERSION)


class MasterCore:
    """The scheduler of an environment's runs.

    Args:
        config: limits and defaults.
        version: what brokers must tell; by default what this process has itself.
        base: where numbers of runs begin: different in each environment, so that runs keep theirs
            when another master goes on with them.
    """

    def __init__(self, config: Config, *, version: Version | None = None, base: int = 0) -> None:
        self.stale_count = 0
        self.version = version or own_version()
        self._outbox = Outbox(config.story_events_max)
        self._members = Members(config, self.version, self._outbox)
        self._kept = KeptObjects(self._outbox)
        self._estimates: dict[bytes, float] = {}
        self._lives = Lives(config, self._members, self._kept, self._outbox, self._estimates, base)
        self._paces = Paces()
        self._balance = Balance(self._members, self._lives, self._estimates)
        self._watch = Watch(config, self._members, self._lives, self._outbox)
        self.surveys = Surveys(self._members, self._lives, self._outbox, lambda: self.counters)
        self._resumed: set[RunNo] = set()
        self._fetches: dict[int, ProcessId] = {}  # by request: the broker that was asked
        self._closed = False

    @property
    def estimates(self) -> Mapping[bytes, float]:
        """Mean seconds of one call, by digest of the function."""
        return self._estimates

    def total_of(self, run: int) -> int | None:
        """How many positions a run has; None: it isn't known (any more)."""
        found = self._lives.runs.get(RunNo(run))
        return None if found is None else found.plan.task_count + len(found.plan.sources)

    def epoch_of(self, broker: int) -> int | None:
        """The epoch of a broker's membership; None: it is no node."""
        node = self._members.nodes.get(ProcessId(broker))
        return None if node is None else node.epoch

    @property
    def counters(self) -> dict[str, int]:
        """Losses, retries, stalls, recoveries, tasks placed again, objects moved, stale messages.

        All since the master began.
        """
        return {
            **self._watch.counters,
            **self._lives.recoveries.counters,
            "stale_messages": self.stale_count,
        }

    @property
    def _placer(self) -> Placer:
        return self._lives.placer

    # --- from the client --------------------------------------------------------------------------

    def set_nodes(self, nodes: Sequence[WantedNode], now: float, *, drop: bool = False) -> None:
        """Say which nodes the cluster shall have: (broker, host, executors) of each.

        Others leave when what they run has ended and what they hold is elsewhere; with `drop` at
        once, and what is lost with them is computed again.
        """
        self._outbox.now = now
        leaving = self._members.set_wanted(nodes, now)
        for run in self._lives.running():
            self._placer.empty_queues(run, leaving)
        for broker in leaving if drop else ():
            node = self._members.nodes.get(broker)
            if node is not None:  # else it had nothing, and went as soon as it could
                self._lives.remove_node(node, now)
        self._lives.departures.step(now)
        self._lives.place_all(now)

    def expect_orphans(self, count: int) -> None:
        """Take in brokers whose master is gone; runs resumed from now on wait for so many."""
        self._members.expect_orphans(count)

    def submit(
        self,
        run: int,
        plan: RunPlan,
        now: float,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        parent: tuple[int, int] | None = None,
        client: ClientPart = b"",
    ) -> None:
        """Start a run; `run` is a number never used before, below 2**40.

        Raises:
            GraphError: the plan is inconsistent.
        """
        if self._closed:
            raise InternalError(f"run {run} was submitted after the environment was closed")
        self._outbox.now = now
        number = RunNo(run)
        above = None if parent is None else (RunNo(parent[0]), parent[1])
        self._lives.open(number, plan, now, RunTerms(priority, timeout_s, above, client))
        self._watch.begin(run, now)
        if self._members.gave_up:
            self._lives.end_without_nodes(now)

    def resume(
        self,
        run: int,
        plan: RunPlan,
        past: RunPast,
        now: float,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        parent: tuple[int, int] | None = None,
        client: ClientPart = b"",
    ) -> None:
        """Go on with a run whose master is gone, under the number that it had.

        It waits for the orphans that are expected, for `orphans_timeout_s` at most; what no broker
        holds is computed again. A graph that a task returned comes after its `parent`.

        Raises:
            GraphError: the plan is inconsistent.
        """
        above = None if parent is None else (RunNo(parent[0]), parent[1])
        number = RunNo(run)
        self._outbox.now = now
        self._lives.resume(number, plan, past, now, RunTerms(priority, timeout_s, above, client))
        self._watch.resumed(number, now)
        self._resumed.add(number)
        self._note_orphan_runs()

    def _note_orphan_runs(self) -> None:
        """Orphans that are there have parts of runs that are resumed only now, or are over."""
        for broker, node in self._members.nodes.items():
            for number in node.foreign_runs & self._resumed:
                node.foreign_runs.discard(number)
                run = self._lives.runs.get(number)
                if run is not None:
                    run.share(broker).took_part = True
                else:
                    self._outbox.send(broker, EndRun(number, []))

    def cancel(self, run: int, now: float) -> None:
        """Stop a run; nothing happens if it has ended or is about to."""
        if (found := self._lives.find_active(RunNo(run))) is not None:
            self._lives.stop(found, "cancelled", now)

    def stream_outputs(self, run: int, now: float) -> None:  # noqa: ARG002
        """Tell of outputs as they come (`OutputsArrived`), first of those that are there."""
        if (found := self._lives.find_active(RunNo(run))) is not None:
            self._outbox.tell_outputs(found, is_asked=True)

    def outputs_taken(self, run: int, now: float, kept: Sequence[int] = ()) -> None:
        """The client has copied the outputs, or has Refs to those `kept`: the run can end."""
        if (found := self._lives.find_active(RunNo(run))) is not None and found.announced:
            for position in kept:
                self._lives.keep(run, position)
            found.taken = True
            self._lives.maybe_finish(found, now)

    def fetch(self, request: int, run: int, position: int, now: float) -> None:  # noqa: ARG002
        """Ask for the value of a Ref; `ValueArrived` answers."""
        broker = self._lives.locate(RunNo(run), position)
        if broker is None or broker not in self._members.nodes:
            self._outbox.tell(ValueArrived(request, broker or 0, None, None))
            return
        self._fetches[request] = broker
        self._outbox.send(broker, FetchValue(request, run, position))

    def drop_ref(self, run: int, position: int, now: float) -> None:  # noqa: ARG002
        """The client holds no Ref to this any more."""
        self._kept.drop((RunNo(run), position))

    def explain(self, request: int, run: int, position: int, now: float) -> None:
        """Ask why a task is where it is; `TaskExplained` answers, soon."""
        self._outbox.now = now
        self._watch.explain(request, run, position, now)

    def journal_of(self, run: int) -> list[Record] | None:
        """What to write anew of a run whose journal was lost; None: the run is over."""
        found = self._lives.runs.get(RunNo(run))
        return None if found is None else journal_of(found)

    def close(self, now: float) -> None:  # noqa: ARG002
        """End everything: runs are cancelled, brokers shut down; nothing is awaited."""
        if self._closed:
            return
        self._closed = True
        self._lives.abandon_all()
        for broker in self._members.nodes:
            self._outbox.send(broker, Shutdown())

    # --- from brokers -----------------------------------------------------------------------------

    def receive(
        self, broker: int, message: BrokerToMaster, frames: Sequence[Frame], now: float
    ) -> None:
        """Take a message of a broker.

        Raises:
            ProtocolError: its frames can't be what the message says.
        """
        sender = ProcessId(broker)
        if self._closed:
            return
        self._outbox.now = now
        if isinstance(message, BrokerHello):
            self._welcome(message, now)
            return
        if sender not in self._members.nodes:
            self.stale_count += 1
            return
        self._members.heard(sender, now)
        self._watch.heard(sender, message, now)
        match message:
            case SubtreeDone():
                self._subtree_done(sender, message, frames, now)
            case OutputsReady():
                run = self._current(message.run, message.epoch)
                if run is not None:
                    self._lives.outputs_ready(run, sender, message, frames, now)
            case TaskTrace() | NodeTrace():
                run = self._lives.runs.get(RunNo(message.run))
                if run is None:
                    self.stale_count += 1
                elif (event := traced(run, sender, message, frames)) is not None:
                    self._outbox.tell(event)
            case Progress():
                self._progressed(sender, message, now)
            case TaskFailed():
                run = self._current(message.run, message.epoch)
                if run is not None:
                    frame = frames[0] if frames else None
                    self._lives.fail(run, sender, message.failure, frame, now)
            case TaskExpanded():
                self._task_expanded(sender, message, frames, now)
            case Holdings():
                run = self._lives.runs.get(RunNo(message.run))
                if run is None or not self._lives.recoveries.take(
                    run, sender, message, frames, now
                ):
                    self.stale_count += 1
            case ObjectsTaken():
                there, gone = (np.frombuffer(frame, "<i4").tolist() for frame in frames)
                number = RunNo(message.run)
                self._lives.departures.taken(sender, number, there, gone, now)
            case Drained():
                self._drained(sender, message, now)
            case AskWhere():
                self._lives.where(sender, RunNo(message.run), message.position, now)
            case RunClosed():
                if not self._lives.closed(RunNo(message.run), sender, message.stats, now):
                    self.stale_count += 1
            case Value():
                self._value_arrived(sender, message, frames)
            case Stats():
                if not self.surveys.answered(sender, message.request, message.stats):
                    self.stale_count += 1
            case ExecutorChanged():
                self._executor_changed(sender, message, now)
            case Pong() | TaskRetried() | TaskAnswer():
                pass  # `heard` is all that they are for
            case _:
                assert_never(message)

    def peer_lost(self, broker: int, reason: str, now: float) -> None:
        """A broker is gone: its connection, its process, or its lease."""
        lost = ProcessId(broker)
        if self._closed or lost not in self._members.nodes:
            return
        self._outbox.now = now
        self._members.remove(lost, reason, now, is_lost=True)
        self._watch.broker_lost(lost, reason)
        for request in [r for r, asked in self._fetches.items() if asked == lost]:
            del self._fetches[request]
            self._outbox.tell(ValueArrived(request, broker, None, None))
        self.surveys.broker_lost(lost)
        self._lives.node_gone(lost, now)

    def _welcome(self, message: BrokerHello, now: float) -> None:
        broker = message.broker
        if broker in self._members.nodes:
            # Faster back than we noticed its end: what it had is gone.
            self.peer_lost(broker, f"node {broker} was started anew", now)
        if self._members.hello(message, now):
            self._watch.cluster_grew()
            if message.runs:
                self._orphan_came(ProcessId(broker), now)
        if self._members.gave_up:
            self._lives.end_without_nodes(now)

    def _orphan_came(self, broker: ProcessId, now: float) -> None:
        """It may bring what runs wait for, or are computing again for want of it."""
        self._note_orphan_runs()
        for run in self._lives.running():
            if run.parent is None and any(
                broker in member.shares and member.shares[broker].took_part
                for member in self._lives.family(run)
            ):
                if run.recovery is None or run.recovery.orphans_by_s is None:
                    self._lives.recoveries.begin(run, now, retell=True)
        self._lives.recoveries.handle_timer(now)
        self._lives.departures.step(now)

    def _current(self, number: int, epoch: int) -> MasterRun | None:
        """The run that a message belongs to, if it still wants to hear of it."""
        run = self._lives.runs.get(RunNo(number))
        if run is None or run.state is not RunState.RUNNING or run.epoch != epoch:
            self.stale_count += 1
            return None
        return run

    def _executor_changed(self, broker: ProcessId, message: ExecutorChanged, now: float) -> None:
        self._members.executor_changed(broker, message, now)
        self._lives.departures.step(now)  # a node may be able to take over now
        self._lives.place_all(now)
        self._lives.departures.step(now)  # who leaves may have waited for another node
        self._balance.maybe_idle(now)

    def _drained(self, broker: ProcessId, message: Drained, now: float) -> None:
        run = self._lives.runs.get(RunNo(message.run))
        catch_up = partial(self._drained, broker, message)
        if run is None or not self._lives.recoveries.defer(run, broker, catch_up):
            self._lives.departures.drained(broker, RunNo(message.run), now)

    def _task_expanded(
        self, broker: ProcessId, message: TaskExpanded, frames: Sequence[Frame], now: float
    ) -> None:
        run = self._current(message.run, message.epoch)
        catch_up = partial(self._task_expanded, broker, message, frames)
        if run is not None and not self._lives.recoveries.defer(run, broker, catch_up):
            self._lives.families.expand(run, broker, message.position, frames, now)

    def _subtree_done(
        self, broker: ProcessId, message: SubtreeDone, frames: Sequence[Frame], now: float
    ) -> None:
        run = self._current(message.run, message.epoch)
        catch_up = partial(self._subtree_done, broker, message, frames)
        if run is None or self._lives.recoveries.defer(run, broker, catch_up):
            return
        if run.recovering and message.subtree >= len(run.subtrees):
            self.stale_count += 1  # of the last master; what it gave is among its node's holdings
            return
        if not 0 <= message.subtree < len(run.subtrees) or len(frames) != 2:
            raise ProtocolError(f"broker {broker} ended subtree {message.subtree}, which isn't one")
        subtree = run.subtrees[message.subtree]
        is_placed = subtree.state is SubtreeState.PLACED and subtree.home == broker
        if not is_placed or subtree.attempt != message.attempt:
            self.stale_count += 1
            return
        self._note_sizes(run, subtree, frames)
        self._note_seconds(run, broker, message.seconds)
        self._placer.finish(run, subtree)
        self._outbox.write(
            SubtreeEnded(
                run.number, run.epoch, subtree.number, subtree.attempt, broker,
                bytes(frames[0]), bytes(frames[1]),
            )
        )  # fmt: skip
        self._release_imports(run, subtree)
        self._lives.families.end_bare_children(run, subtree, now)
        self._placer.place_at(run, broker, now)
        self._balance.maybe_idle(now)
        self._lives.maybe_finish(run, now)

    def _note_sizes(self, run: MasterRun, subtree: Subtree, frames: Sequence[Frame]) -> None:
        if not len(run.sizes):
            return
        firsts, sizes = np.frombuffer(frames[0], "<i4"), np.frombuffer(frames[1], "<i8")
        if len(firsts) != len(sizes) or (
            # Of an orphan's subtree only what hadn't ended when it was adopted is known here.
            len(firsts) and not 0 <= firsts.min() <= firsts.max() < run.plan.task_count
        ):
            raise ProtocolError(f"subtree {subtree.number} of run {run.number}: sizes don't fit")
        run.sizes[subtree.positions()] = 0  # a block's bytes count for its first position
        run.sizes[firsts] = sizes

    def _note_seconds(
        self, run: MasterRun, broker: ProcessId, seconds: Sequence[tuple[int, int, float]]
    ) -> None:
        for index, call_count, total_s in seconds:
            if call_count < 1 or not 0 <= index < len(run.plan.functions):
                continue
            digest = run.plan.functions[index].digest
            self._paces.note(self._members.nodes[broker], digest, call_count, total_s)
            mean_s = total_s / call_count
            known_s = self._estimates.get(digest, mean_s)
            if digest not in self._estimates and len(self._estimates) >= ESTIMATES_MAX:
                del self._estimates[next(iter(self._estimates))]
            self._estimates[digest] = known_s + ESTIMATE_SHARE * (mean_s - known_s)
        if seconds:
            run.is_measured = True
            self._balance.maybe_long(run, self._outbox.now)

    def _release_imports(self, run: MasterRun, subtree: Subtree) -> None:
        """What nobody else imports is no longer held for others by those who have it."""
        imports = subtree.imports
        if not len(imports):
            return
        run.importers[imports] -= 1
        spent = run.importers[imports] == 0
        if run.recovering:
            return  # what is still needed is being found out
        positions, producers = imports[spent], subtree.producers[spent]
        is_task = producers != SOURCE
        tasks, sources = positions[is_task], positions[~is_task]
        holders = run.locations(tasks, producers[is_task])
        by_holder = np.argsort(holders, kind="stable")  # one pass, not one a holder
        names, firsts = np.unique(holders[by_holder], return_index=True)
        pieces = np.split(tasks[by_holder], firsts[1:])[: len(names)]
        for holder, piece in zip(names.tolist(), pieces, strict=True):
            if holder in self._members.nodes:
                self._outbox.send(ProcessId(holder), Release(run.number), [positions_frame(piece)])
        for broker in run.brokers() if len(sources) else ():
            given = run.shares[broker].sources
            theirs = sources[np.array([p in given for p in sources.tolist()], bool)]
            if len(theirs):
                given.difference_update(theirs.tolist())  # a later piece may need it again
                self._outbox.send(broker, Release(run.number), [positions_frame(theirs)])

    def _progressed(self, broker: ProcessId, message: Progress, now: float) -> None:
        run = self._lives.runs.get(RunNo(message.run))
        if run is None or run.state is not RunState.RUNNING or broker not in run.shares:
            self.stale_count += 1
            return
        share, root = run.shares[broker], self._lives.runs[run.root]
        self._note_seconds(run, broker, message.seconds)
        share.idle_count, share.has_spare = message.idle_count, message.has_spare
        if message.idle_count or message.has_spare:
            self._balance.maybe_idle(now)
        if message.idle_count and (run.is_dealt or run.queued_count):
            self._placer.place_at(run, broker, now)
        if message.done_count > share.done_count:
            root.progress_count += message.done_count - share.done_count
            share.done_count = message.done_count
            self._outbox.tell(RunProgressed(root.number, root.progress_count, root.progress_total))

    def _value_arrived(self, broker: ProcessId, message: Value, frames: Sequence[Frame]) -> None:
        if self._fetches.get(message.request) != broker:
            self.stale_count += 1
            return
        del self._fetches[message.request]
        found = message.info, (frames[0] if frames else None)
        self._outbox.tell(ValueArrived(message.request, broker, *found))

    # --- time and actions -------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When `handle_timer` must be called at the latest, if ever."""
        if self._closed:
            return None
        owners = (self._members, self._lives, self._balance, self._watch)
        times = [owner.next_timer() for owner in owners]
        return min((when for when in times if when is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what has come due."""
        if self._closed:
            return
        self._outbox.now = now
        for broker, reason in self._members.handle_timer(now):
            self.peer_lost(broker, reason, now)
        if self._members.gave_up:
            self._lives.end_without_nodes(now)
        self._lives.handle_timer(now)
        self._lives.place_all(now)
        self._balance.handle_timer(now)
        self._watch.handle_timer(now)

    def take_actions(self) -> MasterActions:
        """Pull what is to be done."""
        self._members.tell_peers()
        return self._outbox.take()

    def check(self) -> None:
        """Re-derive every count and queue from scratch.

        Raises:
            InternalError: one is wrong.
        """
        wrong = self._placer.check(self._lives.runs.values())
        wrong += self._kept.check() + self._lives.check()
        for request, broker in self._fetches.items():
            if broker not in self._members.nodes:
                wrong.append(f"fetch {request} asks node {broker}, which is gone")
        if wrong:
            raise InternalError("master: " + "; ".join(wrong))
