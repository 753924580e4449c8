"""Questions about tasks on their way: asked of brokers, put together, answered to the client. Pure.

An inquiry asks the node of a task, then the nodes of the inputs that are missing there, and
follows what those wait for from node to node. It is answered when nothing is open any more, or
after `PATIENCE_S`: a node that doesn't answer is part of the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dagsched.ids import ProcessId, RunNo
from dagsched.master.explaining import Explanation, Situation
from dagsched.master.lives import Lives
from dagsched.master.members import Members
from dagsched.master.outbox import Outbox
from dagsched.master.places import first_cause, place_of
from dagsched.master.state import MasterRun
from dagsched.protocol.asking import AskTask, TaskAnswer, TaskView

PATIENCE_S = 1.0
HOPS_MAX = 20
INQUIRIES_MAX = 100  # under way at once; beyond that one is answered from the master's state alone

AWAY = frozenset(("fetching", "lacking", "awaited", "unknown"))
"""What a node says of a value that has to come from elsewhere."""

OPEN = frozenset(("waiting", "uncut"))

Polled = Callable[[TaskAnswer | None], None]
"""Called once with a node's answer; None: it gave none."""

Told = Callable[[Explanation | None], None]
"""Called once with the answer; None: there is no such run any more."""


@dataclass(slots=True)
class Inquiry:
    """What was found so far."""

    run: MasterRun
    position: int
    told: Told
    ends_s: float
    task: Situation
    input_count: int = 0
    missing_count: int = 0
    inputs: dict[int, Situation] = field(default_factory=dict)
    cause: Situation | None = None
    depth: int = 0
    hops: int = 0
    open: dict[int, tuple[ProcessId, int, str]] = field(default_factory=dict)
    """By question: the broker, the position, and what it is: task, input or cause."""


@dataclass(frozen=True, slots=True)
class _Poll:
    broker: ProcessId
    told: Polled
    ends_s: float


class Inquiries:
    """All inquiries under way."""

    def __init__(self, members: Members, lives: Lives, outbox: Outbox) -> None:
        self._members = members
        self._lives = lives
        self._outbox = outbox
        self._question_count = 0
        self._inquiry_by_question: dict[int, Inquiry] = {}
        self._polls: dict[int, _Poll] = {}  # by question

    def begin(self, run: int, position: int, told: Told, now: float) -> None:
        """Find out about a task."""
        found = self._lives.runs.get(RunNo(run))
        if found is None or not 0 <= position < found.plan.task_count + len(found.plan.sources):
            told(None)
            return
        place = self._place(found, position, now)
        inquiry = Inquiry(found, position, told, now + PATIENCE_S, place)
        if place.state == "unplaced":
            inquiry.cause, inquiry.depth = self._first_cause(found, place, now)
        is_asked = len(self._inquiry_by_question) < INQUIRIES_MAX
        if is_asked and place.state in ("placed", "done"):
            self._ask(inquiry, position, place.node, "task")
        self._maybe_tell(inquiry)

    def poll(self, run: RunNo, broker: ProcessId, told: Polled, now: float) -> None:
        """Ask a node what of a run it would do next, and whether it does anything at all."""
        self._question_count += 1
        self._polls[self._question_count] = _Poll(broker, told, now + PATIENCE_S)
        self._outbox.send(broker, AskTask(self._question_count, run, -1))

    def answered(self, broker: ProcessId, answer: TaskAnswer, now: float) -> bool:
        """A broker answers; False if nobody waits for it any more."""
        poll = self._polls.pop(answer.request, None)
        if poll is not None:
            poll.told(answer)
            return True
        inquiry = self._inquiry_by_question.pop(answer.request, None)
        if inquiry is None:
            return False
        _, position, role = inquiry.open.pop(answer.request)
        if role == "task":
            self._take_task(inquiry, broker, answer, now)
        else:
            self._take_other(inquiry, broker, position, role, answer, now)
        self._maybe_tell(inquiry)
        return True

    def broker_lost(self, lost: ProcessId) -> None:
        """What was asked of it won't be answered."""
        for question in [q for q, poll in self._polls.items() if poll.broker == lost]:
            self._polls.pop(question).told(None)
        self._give_up(
            [q for q, one in self._inquiry_by_question.items() if one.open[q][0] == lost], "gone"
        )

    def next_timer(self) -> float | None:
        """When the first inquiry is answered with what is there by then."""
        ends = [one.ends_s for one in self._inquiry_by_question.values()]
        return min([*ends, *(poll.ends_s for poll in self._polls.values())], default=None)

    def handle_timer(self, now: float) -> None:
        """Answer inquiries that have taken long enough."""
        for question in [q for q, poll in self._polls.items() if now >= poll.ends_s]:
            self._polls.pop(question).told(None)
        self._give_up(
            [q for q, one in self._inquiry_by_question.items() if now >= one.ends_s], "silent"
        )

    # --- inside -----------------------------------------------------------------------------------

    def _place(self, run: MasterRun, position: int, now: float) -> Situation:
        root = self._lives.runs.get(run.root, run)
        place = place_of(run, root, position, self._members, now)
        if place.state == "ref":
            return replace(place, node=self._lives.locate(run.number, position) or 0)
        return place

    def _first_cause(
        self, run: MasterRun, place: Situation, now: float
    ) -> tuple[Situation | None, int]:
        root = self._lives.runs.get(run.root, run)
        return first_cause(run, root, place, self._members, now)

    def _ask(self, inquiry: Inquiry, position: int, node: int, role: str) -> None:
        broker = ProcessId(node)
        if broker not in self._members.nodes:
            self._note(inquiry, position, role, replace(inquiry.task, state="gone", node=node))
            return
        self._question_count += 1
        inquiry.open[self._question_count] = (broker, position, role)
        self._inquiry_by_question[self._question_count] = inquiry
        self._outbox.send(broker, AskTask(self._question_count, inquiry.run.number, position))

    def _take_task(
        self, inquiry: Inquiry, broker: ProcessId, answer: TaskAnswer, now: float
    ) -> None:
        inquiry.task = self._seen(inquiry.task, broker, answer)
        inquiry.input_count, inquiry.missing_count = answer.input_count, answer.missing_count
        for view in answer.inputs:
            self._look_into(inquiry, broker, view, "input", now)
        cause = answer.cause
        if cause is None:
            return
        inquiry.depth = answer.depth
        if answer.depth > 1 or cause.position not in inquiry.inputs:
            self._look_into(inquiry, broker, cause, "cause", now)

    def _take_other(
        self,
        inquiry: Inquiry,
        broker: ProcessId,
        position: int,
        role: str,
        answer: TaskAnswer,
        now: float,
    ) -> None:
        """The node of an input, or of what the task waits for in the end, has answered."""
        seen = self._seen(self._place(inquiry.run, position, now), broker, answer)
        if seen.state in ("held", "ended") and broker != inquiry.task.node:
            # Whoever waits has asked for it.
            seen = replace(seen, state="fetching")
        self._note(inquiry, position, role, seen)
        is_first = role == "cause" or position == next(iter(inquiry.inputs), None)
        if answer.cause is not None and is_first and inquiry.hops < HOPS_MAX:
            inquiry.hops += 1
            inquiry.depth = max(inquiry.depth, 1) + answer.depth
            self._look_into(inquiry, broker, answer.cause, "cause", now)

    def _seen(self, task: Situation, broker: ProcessId, answer: TaskAnswer) -> Situation:
        """A task as its node sees it, and what keeps the node from running it if it's ready."""
        seen = task.seen(answer.task, broker)
        node = self._members.nodes.get(broker)
        if seen.state != "ready" or node is None:
            return seen
        if not answer.executor_count:
            return replace(seen, detail=f"; no executor is there: {node.last_end or 'none yet'}")
        if answer.stopped_count == answer.executor_count:
            return replace(seen, detail="; all executors have been stopped by a signal")
        return seen

    def _look_into(
        self, inquiry: Inquiry, broker: ProcessId, view: TaskView, role: str, now: float
    ) -> None:
        """Take a node's view of a task, or ask the node where the task really is."""
        place = self._place(inquiry.run, view.position, now)
        if view.state not in AWAY:
            self._note(inquiry, view.position, role, place.seen(view, broker))
        elif place.state in ("placed", "done") and place.node != broker:
            self._note(inquiry, view.position, role, place)
            self._ask(inquiry, view.position, place.node, role)
        elif place.state in ("placed", "done"):
            self._note(inquiry, view.position, role, place.seen(view, broker))
        else:
            self._note(inquiry, view.position, role, place)
            cause, depth = self._first_cause(inquiry.run, place, now)
            if cause is not None:
                inquiry.cause, inquiry.depth = cause, inquiry.depth + depth

    def _note(self, inquiry: Inquiry, position: int, role: str, found: Situation) -> None:
        found = replace(found, position=position)
        if role == "input":
            inquiry.inputs[position] = found
        elif role == "cause":
            inquiry.cause = found
        else:
            inquiry.task = found

    def _give_up(self, questions: Sequence[int], state: str) -> None:
        for question in questions:
            inquiry = self._inquiry_by_question.pop(question)
            broker, position, role = inquiry.open.pop(question)
            self._note(inquiry, position, role, Situation(position, state, node=broker))
            self._maybe_tell(inquiry)

    def _maybe_tell(self, inquiry: Inquiry) -> None:
        if inquiry.open:
            return
        run, task = inquiry.run, inquiry.task
        graph_done = None
        child = run.children.get(inquiry.position)
        if task.state == "graph" and child is not None and child.run in self._lives.runs:
            below = self._lives.runs[child.run]
            done = sum(share.done_count for share in below.shares.values())
            graph_done = (done, below.plan.task_count)
        cause = inquiry.cause
        if cause is not None and cause.position in inquiry.inputs:
            cause = None  # it is told as an input already
        inputs = list(inquiry.inputs.values())
        counts = (inquiry.input_count, inquiry.missing_count)
        inquiry.told(
            Explanation(run.number, task, *counts, inputs, cause, inquiry.depth, graph_done)
        )
