"""Why one task is where it is, and what happened to it, in words.

Responsible for the texts of `Run.explain` and `Run.story` and for naming tasks in messages; made
when asked, from the run's trace and record, and while it goes on from what the master says.
"""

from typing import TYPE_CHECKING

from dagsched.errors import GraphError
from dagsched.keys import find_key, unknown_key

if TYPE_CHECKING:
    from dagsched.master.events import RunHappened, RunStalled
    from dagsched.pastrun import PastRun
    from dagsched.run import Run
    from dagsched.trace import Execution


def task_name(run: "Run", position: int) -> str:
    """A task of the run by key and function, for messages."""
    if not 0 <= position < len(run.shape.order):
        return f"a task of run {run.run_id} (position {position})"
    task = int(run.shape.order[position])
    return f"task {run.graph.key(task)} (function {_function(run, task)})"


def key_at(run: "Run | PastRun", position: int) -> str:
    """What the task or source at a position is called in sentences."""
    count = len(run.shape.order)
    if 0 <= position < count:
        return run.graph.key(int(run.shape.order[position]))
    if count <= position < count + len(run.graph.sources):
        return f"source {position - count}"
    return f"a task at position {position}"


def explain_task(run: "Run", key: object) -> str:
    """Why a task is where it is."""
    from dagsched.master.explaining import words

    task = find_task(run, key)
    position = _position(run, task)
    found = None if run.done() else run.ask_why(position)
    if found is None or found.task.state == "ending":
        return _from_record(run, task, position)
    text = words(found, lambda place: key_at(run, place))
    before = run.traces.executions_of(position)
    if before:
        text += f"; it has run {_last_execution(before)}"
    return f"{text}; it belongs to {_subtree_text(run, position)}"


def _from_record(run: "Run", task: int, position: int) -> str:
    """The same for a run that is over, or whose master says nothing."""
    name = run.graph.key(task)
    home = _last_home(run, position)
    place = f"it belongs to {_subtree_text(run, position)}" + (
        f", placed on node {home}" if home else ""
    )
    has_failed = position in _failed(run)
    before = run.traces.executions_of(position)
    if before:
        text = f"{name} has run {_last_execution(before)}; {place}"
        return f"{text}; it failed{run.failure_text()}" if has_failed else text
    if has_failed:
        return f"{name} failed{run.failure_text()}; {place}"
    if run.state == "done":
        unseen = "its node was lost first, another client had the run, or it returned a graph"
        return f"{name} has run, when and where isn't known ({unseen}); {place}"
    if run.done():
        return f"{name} was not run: the run ended as {run.state}; {place}"
    return f"{name} has not ended, and the master has not answered; {place}"


def _last_execution(executions: "list[Execution]") -> str:
    last = executions[-1]
    more = f", in all {len(executions)} times" if len(executions) > 1 else ""
    return (
        f"on executor {last.executor} of node {last.node} in "
        f"{(last.end_ns - last.start_ns) / 1e9:.6f} s{more}"
    )


# --- story ----------------------------------------------------------------------------------------


def task_story(run: "Run", key: object) -> list[str]:
    """All that is known to have happened to a task, with seconds since the run was submitted.

    Of a run that was resumed: since then.
    """
    from dagsched.master.events import RunHappened

    task = find_task(run, key)
    position = _position(run, task)
    record = run.record
    lines = _Teller(run, position).lines()
    for done in run.traces.executions_of(position):
        place = f"executor {done.executor} of node {done.node}"
        lines.append((done.start_ns / 1e9, f"started on {place}, attempt {done.attempt}"))
        seconds = (done.end_ns - done.start_ns) / 1e9
        lines.append((done.end_ns / 1e9, f"ended on {place} after {seconds:.6f} s"))
    if record.ended_s is not None:
        if position in _failed(run):
            lines.append((record.ended_s, f"failed for good{run.failure_text()}"))
        lines.append((record.ended_s, f"the run ended as {run.state}"))
    lines.sort(key=lambda line: line[0])  # stable: what came together stays in its order
    # What an earlier client saw of the run was before this one's time.
    since = [f"{when - record.submitted_s:.6f} s: {text}" for when, text in lines]
    is_resumed = any(isinstance(e, RunHappened) and e.kind == "resumed" for e in record.events)
    begun = "earlier" if is_resumed else f"{0:.6f} s"
    return [f"{begun}: {_beginning(run, task)}", *since]


def _beginning(run: "Run", task: int) -> str:
    dependencies = [run.graph.key(d) for d in _dependencies(run, task)]
    shown = ", ".join(dependencies[:_NAMES_MAX])
    if len(dependencies) > _NAMES_MAX:
        shown += f" and {len(dependencies) - _NAMES_MAX} more"
    return (
        f"{run.graph.key(task)} submitted with run {run.run_id}, function {_function(run, task)}, "
        + (f"depends on {shown}" if dependencies else "depends on nothing")
    )


class _Teller:
    """Goes through what happened to a run, and keeps what concerns one task."""

    def __init__(self, run: "Run", position: int) -> None:
        self._run = run
        self._position = position
        self._subtree = _subtree_of(run, position)  # the one that it is in at the moment
        self._home = 0
        self._is_hurt = False  # its node was lost, and what follows isn't known yet
        self._ended_ns = [(done.node, done.end_ns) for done in run.traces.executions_of(position)]

    def lines(self) -> list[tuple[float, str]]:
        """When, and what."""
        lines = []
        for event in self._run.record.events:
            text = self._line(event)
            if text:
                lines.append((event.time_s, text))
        return lines

    def _line(self, event: "RunHappened | RunStalled") -> str:
        from dagsched.master.events import RunStalled

        if isinstance(event, RunStalled):
            return f"nothing moved in the run: {stall_text(self._run, event)}"
        match event.kind:
            case "resumed":
                self._is_hurt = True
                return "the run goes on here, for its last client was lost"
            case "placed":
                return self._placed(event)
            case "retried" if event.position == self._position:
                place = f"executor {event.executor} of node {event.node}"
                return f"attempt {event.attempt} on {place} came to nothing: {event.text}"
            case "expanded" if event.position == self._position:
                return "returned a graph, whose value it waits for"
            case "node_lost" if event.node == self._home:
                self._is_hurt = True
                return f"node {event.node} was lost, {self._what_was_there(event)}: {event.text}"
            case "recovering" if self._is_hurt:
                return "the nodes that are left are asked what they hold"
            case "recomputed" if self._is_among(event):
                return self._recomputed(event)
            case "recovered" if self._is_hurt:
                self._is_hurt = False
                return "all have told what they hold"
            case "moved" if self._is_among(event):
                self._home = event.node
                return f"its value was moved to node {event.node}"
            case "cut":
                return "(more happened to the run than is kept: what follows may have gaps)"
        return ""

    def _placed(self, event: "RunHappened") -> str:
        for subtree, node, attempt in event.placements:
            if subtree == self._subtree:
                self._home = node
                again = f", attempt {attempt}" if attempt > 1 else ""
                return f"placed on node {node} with subtree {subtree}{again}"
        return ""

    def _recomputed(self, event: "RunHappened") -> str:
        self._subtree = event.subtree
        has_run = any(end_ns / 1e9 <= event.time_s for _, end_ns in self._ended_ns)
        what = "to be computed again" if has_run else "to be placed again"
        return f"{what}, in subtree {event.subtree}{f': {event.text}' if event.text else ''}"

    def _is_among(self, event: "RunHappened") -> bool:
        return event.positions is not None and bool((event.positions == self._position).any())

    def _what_was_there(self, event: "RunHappened") -> str:
        has_run = any(
            node == event.node and end_ns / 1e9 <= event.time_s for node, end_ns in self._ended_ns
        )
        return "which had its value" if has_run else "which was to run it"


def stall_text(run: "Run | PastRun", event: "RunStalled") -> str:
    """Why nothing moves, in words."""
    from dagsched.master.explaining import phrase, words

    seconds = event.time_s - event.since_s
    start = f"no task has run and nothing has moved for {seconds:.1f} s"
    found = event.found
    if found is None:
        return start
    if found.run == run.number:
        return f"{start}: {words(found, lambda place: key_at(run, place))}"
    last = found.cause or found.task
    return f"{start}: a task of a graph that a task returned {phrase(last)}"


# --- tasks ----------------------------------------------------------------------------------------

_NAMES_MAX = 5


def find_task(run: "Run", key: object) -> int:
    """Graph id of the task with a key, or of a `Delayed`.

    Raises:
        GraphError: the run has no such task; the message names some that look alike.
    """
    wanted = key if isinstance(key, str) else getattr(key, "key", None)
    if not isinstance(wanted, str):
        raise GraphError(f"a task is named by its key or its Delayed, not by {key!r:.100}")
    found = find_key(run.graph, wanted)
    if found is None:
        raise GraphError(f"run {run.run_id} has no task with key {unknown_key(run.graph, wanted)}")
    return found


def _position(run: "Run", task: int) -> int:
    import numpy as np

    return int(np.flatnonzero(run.shape.order == task)[0])


def _subtree_of(run: "Run", position: int) -> int:
    import numpy as np

    return int(np.searchsorted(run.shape.subtree_starts, position, side="right")) - 1


def _subtree_text(run: "Run", position: int) -> str:
    subtree = _subtree_of(run, position)
    starts = run.shape.subtree_starts
    return f"subtree {subtree} ({int(starts[subtree + 1] - starts[subtree])} tasks)"


def _last_home(run: "Run", position: int) -> int:
    subtree, brokers = _subtree_of(run, position), run.record.subtree_brokers
    return brokers[subtree] if subtree < len(brokers) else 0


def _failed(run: "Run") -> list[int]:
    failure = run.failure
    return [] if failure is None else [failure.position]


def _dependencies(run: "Run", task: int) -> list[int]:
    """The tasks, not the sources, that a task depends on."""
    count = len(run.shape.order)
    return [d for d in run.graph.dependencies(task).tolist() if d < count]


def _function(run: "Run", task: int) -> str:
    return run.graph.function_names[int(run.graph.function_of[task])]
