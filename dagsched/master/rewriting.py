"""What the master's state says of a run, as records: for a journal that was lost. Pure.

The fold of these records is that of all the records written of the run so far, in all that a
resume goes by. Also what still counts once the run is over.
"""

from collections.abc import Sequence

from dagsched.master.journal import (
    Failed,
    OutputsReached,
    Placed,
    Record,
    Submitted,
    SubtreeEnded,
)
from dagsched.master.state import MasterRun, Subtree, SubtreeState


def journal_of(run: MasterRun) -> list[Record]:
    """All records of a run that goes on, as if they were written now."""
    records: list[Record] = [_submitted(run, is_whole=True)]
    placed = [
        (subtree.number, subtree.home, subtree.attempt)
        for subtree in run.subtrees
        if subtree.state in (SubtreeState.PLACED, SubtreeState.DONE) and subtree.home is not None
    ]
    if placed:
        records.append(Placed(run.number, run.epoch, placed))
    records += [
        _subtree_ended(run, subtree)
        for subtree in run.subtrees
        if subtree.state is SubtreeState.DONE
    ]
    return records + _outcome(run)


def rest_of(run: MasterRun) -> Sequence[Record]:
    """What still counts of a run that is over, by which its result can be given again.

    The plan is among it if the result would have to be computed again: where values lie with
    brokers, which release them, and where the run was lost. Nothing counts of a graph that a task
    returned: its value is part of that task's run.
    """
    if run.parent is not None:
        return ()
    match run.outcome:
        case "done":
            is_whole = not _is_all_inline(run)
        case "lost":
            is_whole = True
        case _:
            is_whole = False
    return [_submitted(run, is_whole=is_whole), *_outcome(run)]


def _submitted(run: MasterRun, *, is_whole: bool) -> Submitted:
    timeout_s = None if run.deadline_s is None else run.deadline_s - run.submitted_s
    plan = run.plan if is_whole else None
    return Submitted(run.number, run.priority, timeout_s, plan, run.parent, run.client)


def _subtree_ended(run: MasterRun, subtree: Subtree) -> SubtreeEnded:
    firsts = subtree.positions()
    firsts = firsts[run.sizes[firsts] > 0] if len(run.sizes) else firsts[:0]
    return SubtreeEnded(
        run.number,
        run.epoch,
        subtree.number,
        subtree.attempt,
        subtree.home or 0,  # a recovery may have found its values in several places
        firsts.astype("<i4").tobytes(),
        run.sizes[firsts].astype("<i8").tobytes(),
    )


def _outcome(run: MasterRun) -> list[Record]:
    records: list[Record] = []
    if run.announced:
        records.append(OutputsReached(run.number, run.epoch, list(run.objects)))
    if run.failure is not None:
        records.append(Failed(run.number, run.failure, run.failure_frame, run.failed_node))
    return records


def _is_all_inline(run: MasterRun) -> bool:
    """Whether the journal alone has all output values, and none leads to values elsewhere."""
    outputs = run.plan.outputs
    has_sources = bool(len(outputs)) and int(outputs.max()) >= run.plan.task_count
    are_inline = all(info.location is None and not info.refs for _, info, _ in run.objects)
    return run.announced and are_inline and not has_sources
