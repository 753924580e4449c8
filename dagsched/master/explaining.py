"""Why a task is where it is: what the master and its brokers know of it, and that in words. Pure.

Where the facts come from stand in `places` (the master's own state) and `inquiries` (what brokers
answer). Nothing of it is made unless somebody asks, or a run stalls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dagsched.protocol.asking import TaskView

NAMES_MAX = 5  # tasks, subtrees or nodes named in one sentence

Name = Callable[[int], str]
"""What the task at a position is called."""


@dataclass(frozen=True, slots=True)
class Situation:
    """How one task stands.

    Its state is one of `TaskView`'s, or one that only the master knows:

    ``no_node``: there is no node that its subtree could go to; `detail` says why.
    ``settling``: the first nodes gather, for some tens of milliseconds.
    ``withheld``: its subtree is to go to `node`, which has its fill, behind `ahead_count` others.
    ``dealt``: each executor has a task of the run, and `ahead_count` others come before it.
    ``unplaced``: its subtree needs values of subtrees `others`, which haven't been placed.
    ``placed``: its subtree is on `node`; asked, the node will say more.
    ``silent``: the same, but `node` hasn't answered.
    ``gone``: the same, but `node` was lost before it could answer.
    ``done``: its subtree has ended on `node`.
    ``constant``: it is a constant of the graph. ``ref``: the value of an earlier run, on `node`.
    ``turn``: a node is found for it in this very turn.
    ``recovering``: nodes are being asked what they hold; `detail` says why, and which.
    ``dropped``: it went with a node that was lost, and nobody needs it any more.
    ``ending``: the run is over; `detail` says how.
    """

    position: int
    state: str
    node: int = 0
    executor: int = 0
    seconds: float = -1.0
    attempt: int = 0
    ahead_count: int = 0
    detail: str = ""
    subtree: int = -1
    others: Sequence[int] = ()
    recomputed: str = ""  # why it is computed once more

    def seen(self, view: TaskView, node: int) -> "Situation":
        """The same task as its node sees it."""
        return replace(
            self,
            state=view.state,
            node=node,
            executor=view.executor,
            seconds=view.seconds,
            attempt=view.attempt or self.attempt,
            ahead_count=view.ahead_count,
            detail="",
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is known of where a task of a run is, and why."""

    run: int
    task: Situation
    input_count: int = 0
    missing_count: int = 0
    inputs: Sequence[Situation] = ()  # of the missing ones the first
    cause: Situation | None = None  # what it waits for in the end, if that is none of the above
    depth: int = 0  # tasks from the task to that
    graph_done: tuple[int, int] | None = None  # of the graph that the task returned: done, total


# --- in words -------------------------------------------------------------------------------------


def words(found: Explanation, name: Name) -> str:
    """A sentence or two: where the task is, what it waits for, and what that waits for.

    Args:
        found: what is known.
        name: what to call the task at a position.
    """
    task = found.task
    text = f"{name(task.position)} {phrase(task)}"
    if found.graph_done is not None:
        done, total = found.graph_done
        text += f"; {done} of {total} tasks of that graph have ended"
    if found.missing_count:
        shown = [f"{name(one.position)} {phrase(one)}" for one in found.inputs]
        if found.missing_count > len(shown):
            shown.append(f"and {found.missing_count - len(shown)} more")
        count = f"{found.missing_count} of {found.input_count} inputs"
        text += f"; it waits for {count}: {'; '.join(shown)}"
    cause = found.cause
    if cause is not None:
        way = f"{found.depth} steps before it" if found.depth > 1 else "before it"
        text += f"; in the end it waits for {name(cause.position)}, {way}, which {phrase(cause)}"
    return text


def phrase(task: Situation) -> str:
    """What follows the name of a task that is in this situation."""
    text = _PHRASES[task.state].format(
        node=task.node,
        executor=task.executor,
        ago=_seconds(task.seconds),
        attempt=f", attempt {task.attempt}" if task.attempt > 1 else "",
        ahead=task.ahead_count,
        behind=f"behind {_counted(task.ahead_count, 'bundle')}" if task.ahead_count else "as next",
        detail=task.detail,
        subtree=task.subtree,
        others=_listed("subtree", task.others),
    )
    is_over = task.state in ("held", "ended", "done", "fetching", "dropped", "ending")
    return text if is_over or not task.recomputed else f"{text} ({task.recomputed})"


_PHRASES = {
    "running": "is running on executor {executor} of node {node}, begun {ago} ago{attempt}",
    "stopped": (
        "was begun {ago} ago on executor {executor} of node {node}{attempt}, whose process has "
        "been stopped by a signal: continue it or kill it"
    ),
    "bundled": (
        "is in a bundle that executor {executor} of node {node} has run for {ago}{attempt}, "
        "{ahead} tasks behind the one that runs"
    ),
    "in_lane": (
        "is among what executor {executor} of node {node} has run for {ago}{attempt} hand in hand "
        "with others, and waits for a value of one of them"
    ),
    "queued": "is with executor {executor} of node {node}, which runs another bundle first",
    "ready": "is ready on node {node} and waits for an executor, {behind}{attempt}{detail}",
    "held_back": (
        "is ready on node {node} and held back: the node's store is above its mark, and what frees "
        "memory goes first (Config.store_bytes_max, withhold_roots)"
    ),
    "waiting": "waits on node {node}",
    "uncut": "is on node {node}, which comes to it after {ahead} tasks of its subtree",
    "ended": "has ended on node {node}",
    "held": "has ended, and its value is on node {node}",
    "graph": "has run on node {node} and returned a graph, whose value it waits for",
    "fetching": "has ended, and its value is being fetched from node {node}",
    "awaited": "has not come to node {node} yet",
    "unknown": "is to come to node {node}, which has not heard of it yet",
    "cancelled": "was stopped with its run on node {node}",
    "placed": "is on node {node}",
    "silent": "is on node {node}, which does not answer",
    "gone": "was on node {node}, which has just been lost",
    "done": "has ended on node {node}",
    "no_node": "can't be placed: {detail}",
    "settling": "is placed as soon as the first nodes have gathered, within some 50 ms",
    "withheld": (
        "is not placed yet: its subtree {subtree} is to go to node {node}, behind {ahead} others; "
        "that node gets the next when it has ended one ({detail})"
    ),
    "dealt": (
        "is not placed yet: it is dealt to the first executor that gets free; {ahead} go before it"
    ),
    "unplaced": "is not placed yet: its subtree {subtree} needs values of {others}",
    "constant": "is a constant of the graph, on its way to the node",
    "ref": "is the value of an earlier run, on its way from node {node}",
    "turn": "is placed in this very moment",
    "recovering": "is not placed while the run recovers: {detail}",
    "dropped": "went with what was lost ({detail}), and nobody needs it any more",
    "lacking": "was asked for from a node that is gone; the master finds out where it comes from",
    "draining": (
        "is on node {node}, which is to leave and begins nothing more: another node takes it over "
        "as soon as there is one"
    ),
    "ending": "won't run any more: the run is over ({detail})",
}


def _listed(what: str, numbers: Sequence[int]) -> str:
    """Some of them by number: "subtree 1", "subtrees 1, 2, 3 and 4 more"."""
    shown = ", ".join(str(number) for number in numbers[:NAMES_MAX])
    more = len(numbers) - NAMES_MAX
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}" + (
        f" and {more} more" if more > 0 else ""
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _seconds(seconds: float) -> str:
    if seconds < 0:
        return "an unknown time"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
