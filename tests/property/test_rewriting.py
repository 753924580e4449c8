"""A journal made anew from the master's state says what the one written so far said."""

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagsched.master.journal import Ended
from dagsched.master.journaling import stored_record
from dagsched.master.outbox import MasterActions
from dagsched.metastore.fold import JournalState, fold_records
from dagsched.testing import SimCluster, SimGraph
from dagsched.testing.graphs import SimTask
from tests.property.test_cluster import WITHOUT_SHRINKING, clusters, sim_graphs


def what_counts(state: JournalState) -> dict[str, Any]:
    """What a resume goes by. What an older epoch did is of no use once a newer one has begun."""
    assert state.submitted is not None
    return {
        "plan": (
            tuple(state.submitted.plan_frames),
            state.submitted.parent,
            state.submitted.client,
        ),
        "priority": state.submitted.priority,
        "timeout": None
        if state.submitted.timeout_s is None
        else round(state.submitted.timeout_s, 6),
        "state": state.state,
        "failed": state.failed,
        "epoch": state.epoch,
        "placements": {
            subtree: (broker, attempt)
            for subtree, (broker, epoch, attempt) in state.placements.items()
            if epoch == state.epoch
        },
        "done": {
            subtree: (done.broker, done.attempt)
            for subtree, done in state.done.items()
            if done.epoch == state.epoch
        },
        "outputs": {
            first: output for first, output in state.outputs.items() if output.epoch == state.epoch
        },
    }


class Watched:
    """Reads along what the master of a cluster writes, and compares after each of its turns."""

    def __init__(self, cluster: SimCluster) -> None:
        self.compared = 0
        self.node_was_lost = False
        self.ends: dict[int, Ended] = {}
        self._written: dict[int, list[Any]] = {}
        self._core = cluster.master.core
        take_actions = self._core.take_actions

        def take_and_compare() -> MasterActions:
            actions = take_actions()
            self._compare(actions.journal)
            return actions

        self._core.take_actions = take_and_compare

    def _compare(self, news: Sequence[Any]) -> None:
        for record in news:
            if isinstance(record, Ended):
                self._written.pop(record.run, None)
                self.ends[record.run] = record
            else:
                self._written.setdefault(record.run, []).append(record)
        for run, records in self._written.items():
            anew = self._core.journal_of(run)
            assert anew is not None
            before = fold_records("before", map(stored_record, records))
            after = fold_records("after", map(stored_record, anew))
            self._assert_equal(what_counts(after), what_counts(before))
            self.compared += 1

    def _assert_equal(self, after: dict[str, Any], before: dict[str, Any]) -> None:
        # What was placed and given back, or went with a node, is not written anew.
        assert after["placements"].keys() <= before["placements"].keys()
        if self.node_was_lost:
            assert after["done"].keys() <= before["done"].keys()
            before["done"], before["placements"] = after["done"], after["placements"]
        before["placements"] = {key: before["placements"][key] for key in after["placements"]}
        assert after == before


@settings(
    max_examples=40,
    deadline=None,
    phases=WITHOUT_SHRINKING,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    graph=sim_graphs(),
    nodes=clusters,
    when_s=st.floats(0.0, 0.3),
    what=st.sampled_from(("nothing", "cancel", "failure", "executor", "node")),
    victim=st.integers(0, 59),
)
def test_at_any_time_of_any_run(
    graph: SimGraph, nodes: dict[int, int], when_s: float, what: str, victim: int
):
    if what == "failure":
        graph.tasks[victim % graph.count] = SimTask(victim, fails=True)
    cluster = SimCluster(nodes, seed=victim, checks=False)
    watched = Watched(cluster)
    outcome = cluster.submit(graph, priority=victim, timeout_s=50.0 if victim % 2 else None)
    cluster.let_pass(when_s)
    if what == "cancel" and not outcome.is_over:
        cluster.cancel(outcome)
    elif what == "executor":
        cluster.kill_executor(sorted(nodes)[victim % len(nodes)], victim)
    elif what == "node" and len(nodes) > 1:
        watched.node_was_lost = True
        cluster.kill_node(sorted(nodes)[victim % len(nodes)])
    cluster.wait(outcome, limit_s=10.0)
    assert watched.compared > 0
    for ref in set(outcome.refs):
        cluster.drop_ref(*ref)
    end = watched.ends[outcome.run]
    rest = fold_records("rest", map(stored_record, [*end.rest, end]))
    assert rest.state == outcome.state
    assert (rest.failed is not None) == (outcome.state in {"failed", "lost"})
    if outcome.state == "done":
        found = {
            position
            for output in rest.outputs.values()
            for position in range(output.info.first, output.info.first + output.info.count)
        }
        plan = outcome.planned.plan
        assert found >= {p for p in plan.outputs.tolist() if p < plan.task_count}
        assert end.is_whole or all(o.data is not None for o in rest.outputs.values())
    assert all(not other.rest for other in watched.ends.values() if other is not end)
