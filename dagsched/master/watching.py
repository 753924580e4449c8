"""What a run's story, its explanations and its stalls need of the core, in one place. Pure.

A run is looked at when nothing of it has moved for `Config.stall_warning_s`. Its nodes are asked
then: where any executor does anything, tasks are merely long. Else `RunStalled` tells the client,
once until something moves again, of a task that could be next and what it waits for.
"""

from dagsched.config import Config
from dagsched.ids import ProcessId, RunNo
from dagsched.master.events import RunStalled, TaskExplained
from dagsched.master.explaining import Explanation
from dagsched.master.inquiries import Inquiries
from dagsched.master.lives import Lives
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.state import MasterRun, RunState, SubtreeState
from dagsched.protocol.asking import TaskAnswer, TaskRetried, end_in_words
from dagsched.protocol.messages import BrokerToMaster, ExecutorChanged, TaskExpanded

RETRIES = ("exception", "crash", "timeout")

COUNTED = ("node_losses", "executor_losses", *(f"{kind}_retries" for kind in RETRIES), "stalls")

AT_WORK = frozenset(("running", "bundled", "in_lane"))


class Watch:
    """Follows all runs, answers who asks why, and warns of those in which nothing moves."""

    def __init__(self, config: Config, members: Members, lives: Lives, outbox: Outbox) -> None:
        self.counters = dict.fromkeys(COUNTED, 0)
        self._config = config
        self._members = members
        self._lives = lives
        self._outbox = outbox
        self._inquiries = Inquiries(members, lives, outbox)
        self._look_at_s: float | None = None
        self._warned: dict[RunNo, float] = {}  # by root: since when nothing had moved

    # --- what happens -----------------------------------------------------------------------------

    def begin(self, number: int, now: float) -> None:
        """A run has begun."""
        self._touch(number)
        if self._look_at_s is None:
            self._look_at_s = now + self._config.stall_warning_s

    def resumed(self, number: int, now: float) -> None:
        """A run of a client that was lost goes on."""
        root = self._root(number)
        if root is not None and root.number == number:
            root.losses = "its last client was lost"
            self._outbox.happened(root, "resumed")
        self.begin(number, now)

    def heard(self, broker: ProcessId, message: BrokerToMaster, now: float) -> None:
        """A broker has told something; most of it shows that a run moves."""
        match message:
            case TaskAnswer():
                # One that comes late finds nobody waiting, which is as it should be.
                self._inquiries.answered(broker, message, now)
                return
            case TaskRetried():
                self._retried(broker, message)
            case TaskExpanded():
                self._expanded(message)
            case ExecutorChanged():
                end = message.end
                if end is not None and (end.exit_code != 0 or end.signal is not None):
                    self.counters["executor_losses"] += 1
                elif message.pid:
                    self.cluster_grew()
            case _:
                pass
        self._touch(getattr(message, "run", -1))

    def cluster_grew(self) -> None:
        """A node or an executor has come: whatever stands still now does so for another reason."""
        for run in self._lives.runs.values():
            run.moved_s = self._outbox.now

    def _expanded(self, message: TaskExpanded) -> None:
        run = self._lives.runs.get(RunNo(message.run))
        if run is not None and run.parent is None and message.position not in run.children:
            self._outbox.happened(run, "expanded", position=message.position)

    def _touch(self, number: int) -> None:
        root = self._root(number)
        if root is not None:
            root.moved_s = self._outbox.now

    def _root(self, number: int) -> MasterRun | None:
        run = self._lives.runs.get(RunNo(number))
        return None if run is None else self._lives.runs.get(run.root)

    def _retried(self, broker: ProcessId, message: TaskRetried) -> None:
        """A task is tried again; in a graph that a task returned it is that task's story."""
        kind = message.kind if message.kind in RETRIES else "crash"
        self.counters[f"{kind}_retries"] += 1
        run, position = self._lives.runs.get(RunNo(message.run)), message.position
        while run is not None and run.parent is not None:
            above = run.parent
            run, position = self._lives.runs.get(above[0]), above[1]
        if run is None:
            return
        end = end_in_words(message.executor, message.end) if message.end is not None else ""
        text = message.text or (end if kind == "crash" else "it took longer than its timeout")
        self._outbox.happened(
            run, "retried", node=broker, executor=message.executor, position=position,
            attempt=message.attempt, text=text,
        )  # fmt: skip
        run.tally[f"{kind}_retries"] = run.tally.get(f"{kind}_retries", 0) + 1

    def broker_lost(self, lost: ProcessId, reason: str) -> None:
        """A node is gone: it belongs into the story of each run that had something there."""
        self.counters["node_losses"] += 1
        self._inquiries.broker_lost(lost)
        roots = {
            run.root
            for run in self._lives.runs.values()
            if (share := run.shares.get(lost)) is not None and share.took_part
        }
        for number in sorted(roots):
            self._lives.runs[number].losses = f"node {lost} was lost"
            self._outbox.happened(self._lives.runs[number], "node_lost", node=lost, text=reason)

    # --- who asks why -----------------------------------------------------------------------------

    def explain(self, request: int, run: int, position: int, now: float) -> None:
        """Find out why a task is where it is; `TaskExplained` answers."""

        def told(found: Explanation | None) -> None:
            self._outbox.tell(TaskExplained(request, found))

        self._inquiries.begin(run, position, told, now)

    # --- stalls -----------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        times = (self._look_at_s, self._inquiries.next_timer())
        return min((when for when in times if when is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Look at runs in which nothing has moved for long."""
        self._inquiries.handle_timer(now)
        if self._look_at_s is None or now < self._look_at_s:
            return
        patience_s = self._config.stall_warning_s
        roots = [run for run in self._lives.runs.values() if run.parent is None]
        self._warned = {root.number: since for root in roots
                        if (since := self._warned.get(root.number)) is not None}  # fmt: skip
        next_s = now + patience_s
        for root in roots:
            if now - root.moved_s < patience_s:
                next_s = min(next_s, root.moved_s + patience_s)
            elif self._warned.get(root.number) != root.moved_s:
                self._look(root, now)
        self._look_at_s = next_s if roots else None

    def _look(self, root: MasterRun, now: float) -> None:
        """Ask all nodes that have something of the run what they do."""
        if root.announced or root.state is RunState.ENDING:
            return  # it waits for the client, or for nodes to let go of it, who are watched
        since_s = root.moved_s
        family = [self._lives.runs[number] for number in root.family]
        asked = [
            (run.number, broker)
            for run in family
            for broker in run.brokers()
            if broker in self._members.nodes
        ]
        open_count = len(asked)
        answers: list[TaskAnswer] = []

        def told(answer: TaskAnswer | None) -> None:
            nonlocal open_count
            open_count -= 1
            if answer is not None:
                answers.append(answer)
            if not open_count:
                self._judge(root, since_s, answers)

        for number, broker in asked:
            self._inquiries.poll(number, ProcessId(broker), told, now)
        if not asked:
            self._judge(root, since_s, [])

    def _judge(self, root: MasterRun, since_s: float, answers: list[TaskAnswer]) -> None:
        """All nodes have said what they do."""
        is_over = self._lives.runs.get(root.number) is not root
        if is_over or root.moved_s != since_s:
            return
        now = self._outbox.now
        if any(answer.running_count or answer.transfer_count for answer in answers):
            root.moved_s = now  # tasks are long, or objects large: look again later
            return
        run, position = self._next_task(root, answers)

        def told(found: Explanation | None) -> None:
            if root.moved_s != since_s or (found is not None and found.task.state in AT_WORK):
                return
            self._warned[root.number] = since_s
            self.counters["stalls"] += 1
            root.tally["stalled"] = root.tally.get("stalled", 0) + 1
            self._outbox.tell(RunStalled(root.number, self._outbox.now, since_s, found))

        self._inquiries.begin(run, position, told, now)

    def _next_task(self, root: MasterRun, answers: list[TaskAnswer]) -> tuple[int, int]:
        """A task that should be the next to run, as (run, position)."""
        for answer in answers:
            if answer.task.position >= 0:
                return answer.run, answer.task.position
        for number in root.family:
            run = self._lives.runs[number]
            for subtree in run.subtrees:
                if subtree.state is not SubtreeState.DONE:
                    return run.number, subtree.lo
        return root.number, 0
