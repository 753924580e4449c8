"""What the master's own state says of where a task is, and of why nothing can be placed. Pure."""

from dataclasses import replace

from dagsched.master.explaining import NAMES_MAX, Situation
from dagsched.master.members import Members
from dagsched.master.state import UNPLACED, MasterRun, RunState, Subtree, SubtreeState
from dagsched.plan import ConstantSource


def place_of(
    run: MasterRun, root: MasterRun, position: int, members: Members, now: float
) -> Situation:
    """What the master itself knows of a task, or of a source.

    Args:
        run: the run.
        root: the run of the client that it belongs to.
        position: of the task.
        members: the nodes.
        now: monotonic seconds.
    """
    if run.state is not RunState.RUNNING:
        return Situation(position, "ending", detail=root.outcome or "done")
    count = run.plan.task_count
    if position >= count:
        source = run.plan.sources[position - count]
        return Situation(position, "constant" if isinstance(source, ConstantSource) else "ref")
    subtree = run.producer(position)
    found = Situation(
        position, "placed", subtree=subtree.number, attempt=subtree.attempt,
        recomputed=_why_again(run, root, subtree, position),
    )  # fmt: skip
    if subtree.state is SubtreeState.PLACED and subtree.home is not None:
        return replace(found, node=int(subtree.home))
    holder = run.location(position)
    if subtree.state not in UNPLACED and holder is not None and holder in members.nodes:
        return replace(found, state="done", node=int(holder))
    if run.recovering:
        return replace(found, state="recovering", detail=_recovery_text(root, members))
    match subtree.state:
        case SubtreeState.WAITING:
            return replace(found, state="unplaced", others=unplaced_before(run, subtree))
        case SubtreeState.READY if subtree.home is None:
            return _homeless(found, run, subtree, members, now)
        case SubtreeState.READY:
            return _withheld(found, run, subtree)
        case _:
            return replace(found, state="dropped", detail=root.losses)


def _why_again(run: MasterRun, root: MasterRun, subtree: Subtree, position: int) -> str:
    """Why a task is placed, or its value made, once more; empty: it isn't."""
    if subtree.members is None or subtree.number < run.plan.subtree_count:
        return ""  # a piece with the number of one of the plan's goes on where the last master was
    was_lost = run.loss_counts is not None and run.loss_counts[position] > 0
    what = "computed" if was_lost else "placed"
    return f"it is {what} again, for {root.losses or 'its node has left'}"


def _recovery_text(root: MasterRun, members: Members) -> str:
    """What a recovery waits for."""
    recovery = root.recovery
    why = root.losses or "a node leaves, or the master is a new one"
    if recovery is None:
        return why
    if recovery.orphans_by_s is not None:
        return f"{why}; nodes that the last master had are waited for"
    asked = sorted({int(broker) for broker, _ in recovery.awaiting if broker in members.nodes})
    shown = ", ".join(str(broker) for broker in asked[:NAMES_MAX])
    return f"{why}; of nodes {shown} it is not known yet what they hold"


def _withheld(found: Situation, run: MasterRun, subtree: Subtree) -> Situation:
    assert subtree.home is not None
    share = run.shares[subtree.home]
    count = share.unfinished_count
    return replace(
        found,
        state="withheld",
        node=int(subtree.home),
        ahead_count=share.queue.index(subtree.number),
        detail=f"it has {count} subtree{'' if count == 1 else 's'} unfinished",
    )


def _homeless(
    found: Situation, run: MasterRun, subtree: Subtree, members: Members, now: float
) -> Situation:
    if members.usable(now):
        if run.is_dealt and not run.idle:
            return replace(found, state="dealt", ahead_count=run.homeless.index(subtree.number))
        return replace(found, state="turn")
    if any(node.is_usable for node in members.nodes.values()):
        return replace(found, state="settling")
    return replace(found, state="no_node", detail=trouble_with_nodes(members, now))


def unplaced_before(run: MasterRun, subtree: Subtree) -> list[int]:
    """Subtrees that must be placed before this one can be."""
    return [
        number
        for number in subtree.predecessors.tolist()
        if run.subtrees[number].state in run.awaited_states
    ]


def first_cause(
    run: MasterRun, root: MasterRun, place: Situation, members: Members, now: float
) -> tuple[Situation | None, int]:
    """From a task whose subtree isn't placed to the subtree that has to be placed first."""
    depth = 0
    found = place
    while found.state == "unplaced" and found.others:
        first = int(run.subtrees[found.others[0]].positions()[0])
        found = place_of(run, root, first, members, now)
        depth += 1
    return (found if depth else None), depth


def trouble_with_nodes(members: Members, now: float) -> str:
    """Why there is no node that could take anything."""
    if not members.wanted and not members.nodes:
        return "the environment has no nodes: add processes and reset it"
    troubles = []
    for broker in sorted(members.wanted.keys() | members.nodes.keys()):
        node = members.nodes.get(broker)
        awaited_until_s = members.awaited_until(broker)
        if node is None and awaited_until_s is not None:
            left_s = max(0.0, awaited_until_s - now)
            troubles.append(f"node {broker} has not joined yet (awaited for {left_s:.1f} s more)")
        elif node is None:
            troubles.append(f"node {broker} is not there{_bracketed(members.reasons.get(broker))}")
        elif node.leaving:
            troubles.append(f"node {broker} is leaving")
        elif not node.pid_by_executor:
            troubles.append(f"node {broker} has no executor yet{_bracketed(node.last_end)}")
    shown = troubles[:NAMES_MAX]
    if len(troubles) > len(shown):
        shown.append(f"{len(troubles) - len(shown)} more nodes are in no better state")
    return "; ".join(shown)


def _bracketed(text: str | None) -> str:
    return f" ({text})" if text else ""
