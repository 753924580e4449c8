"""What the master asks of one task, what brokers answer, and what is told of retries. Pure.

Asked only when somebody wants to know why a task is where it is: it costs a run nothing.
"""

from collections.abc import Sequence

from dagsched.protocol.structs import ExitInfo, Failure, Struct

WORDS_MAX = 500  # characters of what an executor printed, in what is told of its end


class AskTask(Struct, frozen=True, tag="ask_task"):
    """How does this task stand? Answer `TaskAnswer`. Position -1: whichever comes first."""

    request: int
    run: int
    position: int


class TaskView(Struct, frozen=True):
    """A task, as a node sees it; `state` says which fields have a meaning.

    ``unknown``: the node has nothing of it.
    ``uncut``: its subtree isn't cut into bundles that far; `ahead_count` tasks come before it.
    ``waiting``: its bundle waits for inputs.
    ``ready``: its bundle waits for an executor, behind `ahead_count` others.
    ``held_back``: the same, and what frees memory goes first: the node's store is above its mark.
    ``queued``: its bundle was sent to `executor`, which runs another one now.
    ``bundled``: its bundle runs on `executor` for `seconds`; `ahead_count` tasks come before it.
    ``running``: it runs on `executor` for `seconds`, attempt `attempt`.
    ``stopped``: the same, but the process of its executor has been stopped by a signal.
    ``ended``: it has ended here, and its value isn't kept (any more).
    ``held``: its value is here.
    ``graph``: it returned a graph, whose value hasn't come.
    ``fetching``: its value was asked for from node `node`.
    ``lacking``: the same, but that node is gone: the master will say where it comes from.
    ``draining``: as ``ready`` or ``uncut``, but the node is to leave, and begins nothing any more.
    ``awaited``: a constant, or the value behind a Ref, that hasn't come.
    ``cancelled``: the run has been stopped here.
    """

    position: int
    state: str
    executor: int = 0
    seconds: float = -1.0  # for so long already; -1: not known
    attempt: int = 0
    ahead_count: int = 0
    node: int = 0


class TaskAnswer(Struct, frozen=True, tag="task_answer"):
    """Answer to `AskTask`.

    `cause`: where the way from the task over the first missing input of each leads to on this node,
    after `depth` steps; None: to the task itself.
    """

    request: int
    run: int
    task: TaskView
    input_count: int = 0
    missing_count: int = 0  # of its inputs, those that aren't here
    inputs: Sequence[TaskView] = ()  # of those the first ones
    cause: TaskView | None = None
    depth: int = 0
    executor_count: int = 0  # that are there
    running_count: int = 0  # of these, those that run something, of whatever run
    stopped_count: int = 0  # of these, those whose process has been stopped by a signal
    transfer_count: int = 0  # objects that are on their way from or to this node


class TaskRetried(Struct, frozen=True, tag="retried"):
    """A task is tried again; `kind`: ``exception``, ``crash`` or ``timeout``."""

    run: int
    position: int
    attempt: int  # the one that came to nothing
    kind: str
    executor: int
    text: str = ""  # of the exception: its type, and the start of its text
    end: ExitInfo | None = None


def shortened(end: ExitInfo) -> ExitInfo:
    """How an executor ended, with the last of what it printed only."""
    return ExitInfo(end.exit_code, end.signal, end.rss_bytes, end.log_tail[-WORDS_MAX:])


def end_in_words(executor: int, end: ExitInfo | None) -> str:
    """How an executor ended, and the last that it said."""
    if end is None:
        return f"executor {executor} has ended"
    if end.signal is not None:
        how = f"was killed by signal {end.signal}"
    else:
        how = f"ended with exit code {end.exit_code}"
    said = end.log_tail.strip().rpartition("\n")[2]
    return f"executor {executor} {how}" + (f", its last words: {said}" if said else "")


def failure_in_words(failure: Failure) -> str:
    """Why a task failed for good: the type and text of what it raised, or what became of it.

    Example:
        >>> failure_in_words(Failure(0, 1, "timeout"))
        'it took longer than its timeout and was ended'
        >>> failure_in_words(Failure(0, 1, "raised", "ValueError", "no"))
        'ValueError: no'
    """
    match failure.kind:
        case "timeout":
            what = "it took longer than its timeout and was ended"
        case "lost":
            what = end_in_words(failure.executor, failure.exit)
        case "memory":
            what = "there was no room for it in memory"
        case "result":
            what = "its result can't travel between processes"
        case "argument":
            what = "its function or arguments can't be unpickled on their node"
        case _:
            what = failure.type_name
    return ": ".join(part for part in (what, failure.text) if part)
