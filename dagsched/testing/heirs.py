"""What a new client makes of the journals that a dead one left: runs go on, by the same fold."""

from typing import TYPE_CHECKING

from dagsched.errors import InternalError
from dagsched.master.journal import RunPast
from dagsched.metastore.fold import JournalState, family_of, fold_entries
from dagsched.protocol.plans import unpack_plan

if TYPE_CHECKING:
    from dagsched.testing.cluster import SimCluster, SimOutcome

WRITTEN_S = 20.0
"""A run that began so long ago, with a store that has been well since then, is in its journal."""


def inherit(cluster: "SimCluster") -> None:
    """Resume all runs whose results the client still waits for; submit anew what was never written.

    Raises:
        InternalError: a journal is damaged in its middle.
    """
    store = cluster.store
    states = {run: fold_entries(f"run {run}", store.entries(run)) for run in store.runs()}
    count = sum(node.will_stay for node in cluster.all_nodes)
    cluster.command(lambda core, _now: core.expect_orphans(count))
    waiting = [outcome for outcome in cluster.outcomes.values() if not outcome.is_over]
    for outcome in waiting:
        state = states.get(outcome.run)
        if state is None or state.submitted is None:
            if min(cluster.clock.now - outcome.submitted_s, cluster.store.well_s) > WRITTEN_S:
                cluster.complaints.append(f"run {outcome.run} was in no journal")
            cluster.start_run(outcome)
        elif _is_over(state):
            _finish(outcome, state, cluster.clock.now)
        else:
            for number in family_of(states, outcome.run):
                _resume(cluster, number, states[number])


def _is_over(state: JournalState) -> bool:
    """Whether the journal gives a run's end and all that came of it."""
    if state.state in ("open", "lost"):
        return False
    return state.state != "done" or all(out.data is not None for out in state.outputs.values())


def _finish(outcome: "SimOutcome", state: JournalState, now: float) -> None:
    outcome.state, outcome.ended_s = state.state, now
    outcome.failure = None if state.failed is None else state.failed.failure
    outcome.refs = []
    for output in state.outputs.values():
        if output.data is None:
            raise InternalError(f"run {outcome.run}: output {output.info.first} has no bytes")
        outcome.take(output.info, output.data)


def _resume(cluster: "SimCluster", number: int, state: JournalState) -> None:
    submitted = state.submitted
    if submitted is None:
        raise InternalError(f"run {number} has no plan")
    plan = unpack_plan(submitted.plan_frames)
    if state.dropped is not None:
        cluster.store.truncate(number, state.next_position)
    cluster.master.journal.resume(number, state.next_position)
    outputs = [(out.info, out.data) for out in state.outputs.values() if out.data is not None]
    cluster.tell(f"resume run {number}: {len(outputs)} outputs, {len(state.done)} subtrees done")
    cluster.command(
        lambda core, now: core.resume(
            number,
            plan,
            RunPast(outputs),
            now,
            priority=submitted.priority,
            timeout_s=submitted.timeout_s,
            parent=submitted.parent,
            client=submitted.client,
        )
    )
