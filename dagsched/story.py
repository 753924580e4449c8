"""What happened to one task, in words.

Responsible for the texts of `Run.explain` and `Run.story` and for naming tasks in messages; made
from the run's trace and record, when asked.
"""

from typing import TYPE_CHECKING

from dagsched.errors import GraphError

if TYPE_CHECKING:
    from dagsched.run import Run


def task_name(run: "Run", position: int) -> str:
    """A task of the run by key and function, for messages."""
    if not 0 <= position < len(run.shape.order):
        return f"a task of run {run.run_id} (position {position})"
    task = int(run.shape.order[position])
    return f"task {run.graph.key(task)} (function {_function(run, task)})"


def explain_task(run: "Run", key: object) -> str:
    """Why a task is where it is."""
    task = find_task(run, key)
    name = run.graph.key(task)
    trace = run.trace()
    place = _placement(run, task)
    if trace.end_ns[task] >= 0:
        seconds = (trace.end_ns[task] - trace.start_ns[task]) / 1e9
        text = (
            f"{name} has run on executor {trace.executor[task]} of node {trace.node[task]} in "
            f"{seconds:.6f} s; {place}"
        )
        if task in trace.failed:
            text += "; it failed"
        return text
    end = run.record.ended_s
    if task in trace.failed:
        return f"{name} failed; {place}"
    if end is not None:
        return f"{name} was not run: the run ended as {run.state}; {place}"
    waiting = [d for d in _dependencies(run, task) if trace.end_ns[d] < 0]
    if waiting:
        names = ", ".join(run.graph.key(d) for d in waiting[:5])
        more = f" and {len(waiting) - 5} more" if len(waiting) > 5 else ""
        return f"{name} waits for {names}{more}; {place}"
    if run.record.started_s is None:
        return f"{name} can run; the run has not been placed on a node yet"
    return f"{name} can run and waits for an executor, or runs now; {place}"


def task_story(run: "Run", key: object) -> list[str]:
    """All that is known to have happened to a task, with seconds since the run was submitted."""
    task = find_task(run, key)
    name = run.graph.key(task)
    record = run.record
    trace = run.trace()
    dependencies = [run.graph.key(d) for d in _dependencies(run, task)]
    story = [
        f"{0:.6f} s: {name} submitted with run {run.run_id}, function {_function(run, task)}, "
        + (f"depends on {', '.join(dependencies)}" if dependencies else "depends on nothing")
    ]
    if record.started_s is not None:
        after_s = record.started_s - record.submitted_s
        story.append(
            f"{after_s:.6f} s: the run's first subtree was placed; {_placement(run, task)}"
        )
    if trace.end_ns[task] >= 0:
        place = f"executor {trace.executor[task]} of node {trace.node[task]}"
        attempt = f"attempt {trace.attempt[task]}"
        start_s = trace.start_ns[task] / 1e9 - record.submitted_s
        end_s = trace.end_ns[task] / 1e9 - record.submitted_s
        story.append(f"{start_s:.6f} s: started on {place}, {attempt}")
        outcome = "failed" if task in trace.failed else "ended"
        story.append(f"{end_s:.6f} s: {outcome}, executed {trace.executions[task]} time(s)")
    elif task in trace.failed:
        story.append("failed for good")
    if record.ended_s is not None:
        after_s = record.ended_s - record.submitted_s
        story.append(f"{after_s:.6f} s: the run ended as {run.state}")
    return story


def find_task(run: "Run", key: object) -> int:
    """Graph id of the task with a key, or of a `Delayed`.

    Raises:
        GraphError: the run has no such task.
    """
    wanted = key if isinstance(key, str) else getattr(key, "key", None)
    for task in range(len(run.shape.order)):
        if run.graph.key(task) == wanted:
            return task
    raise GraphError(f"run {run.run_id} has no task with key {wanted!r}")


def _placement(run: "Run", task: int) -> str:
    import numpy as np

    position = int(np.flatnonzero(run.shape.order == task)[0])
    starts = run.shape.subtree_starts
    subtree = int(np.searchsorted(starts, position, side="right")) - 1
    brokers = run.record.subtree_brokers
    placed = f", placed on node {brokers[subtree]}" if subtree < len(brokers) else ""
    size = int(starts[subtree + 1] - starts[subtree])
    return f"it belongs to subtree {subtree} ({size} tasks){placed}"


def _dependencies(run: "Run", task: int) -> list[int]:
    """The tasks, not the sources, that a task depends on."""
    graph = run.graph
    deps = graph.deps[graph.indptr[task] : graph.indptr[task + 1]]
    return [int(d) for d in deps if d < len(run.shape.order)]


def _function(run: "Run", task: int) -> str:
    return run.graph.function_names[int(run.graph.function_of[task])]
