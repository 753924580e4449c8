"""What makes a story good: results equal the oracle, nothing is left, no message vanished."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagsched.testing.graphs import SimGraph, serial_values

if TYPE_CHECKING:
    from dagsched.testing.cluster import SimCluster, SimOutcome

QUIET_S = 30.0
"""What is on its way must have come by then."""


def judge_run(graph: SimGraph, library: Sequence[SimGraph], outcome: "SimOutcome") -> list[str]:
    """What is wrong with a run that has ended."""
    if outcome.state != "done":
        return [f"run {outcome.run}: {outcome.state}, {outcome.failure}"]
    values = serial_values(graph, library)
    wrong = [number for number in graph.outputs if outcome.value_of(number) != values[number]]
    return [f"wrong values of {wrong}"] if wrong else []


def unaccounted(cluster: "SimCluster") -> list[str]:
    """Messages that vanished, or came out of nothing: sent = taken, by kind.

    Of a link whose ends have been members throughout, every message was taken, once. What
    a departed process sent may come late, and again, after its link was forgotten.
    """
    cluster.let_pass(1.0)
    end_s = cluster.clock.now + QUIET_S
    cluster.step_until(lambda: cluster.clock.now > end_s or not _unbalanced(cluster))
    return _unbalanced(cluster)


def _unbalanced(cluster: "SimCluster") -> list[str]:
    steady = {process.address for process in cluster.processes()} - cluster.departed
    sent, taken = cluster.accounts.sent, cluster.accounts.taken
    wrong = []
    for key in sent.keys() | taken.keys():
        sender, receiver, kind = key
        is_lost = taken[key] < sent[key] and sender in steady and receiver in steady
        if is_lost or (taken[key] > sent[key] and sender in steady):
            wrong.append(
                f"{sent[key]} {kind} were sent from {sender} to {receiver}, {taken[key]} taken"
            )
    return sorted(wrong)
