"""What makes a story good: results equal the oracle, nothing is left, no message vanished."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagsched.testing.graphs import SimGraph, serial_values

if TYPE_CHECKING:
    from dagsched.testing.cluster import SimCluster, SimOutcome


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
    cluster.step_until(lambda: not any(p.unacknowledged_count() for p in cluster.processes()))
    cluster.let_pass(1.0)
    steady = {process.address for process in cluster.processes()} - cluster.departed
    sent, taken = cluster.accounts.sent, cluster.accounts.taken
    wrong = []
    for key in sorted(sent.keys() | taken.keys()):
        sender, receiver, kind = key
        is_lost = taken[key] < sent[key] and sender in steady and receiver in steady
        if is_lost or (taken[key] > sent[key] and sender in steady):
            wrong.append(
                f"{sent[key]} {kind} were sent from {sender} to {receiver}, {taken[key]} taken"
            )
    return wrong
