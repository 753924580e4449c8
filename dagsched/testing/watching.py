"""Why a simulated cluster stands still: which runs and subtrees wait, and for what."""

from typing import TYPE_CHECKING

from dagsched.brokers.state import BrokerRun, BundleState
from dagsched.master.state import MasterRun, SubtreeState

if TYPE_CHECKING:
    from dagsched.testing.cluster import SimCluster
    from dagsched.testing.node import SimNode

LINES_MAX = 60


def stalled(cluster: "SimCluster") -> list[str]:
    """In words, what each unfinished run waits for, at the master and on each node."""
    master = cluster.master
    state = "dead" if not master.is_alive else "stopped" if master.is_paused else "there"
    lines = [f"the master is {state}; nodes it has: {sorted(master.core._members.nodes)}"]
    for run in master.core._lives.runs.values():
        lines += _run_lines(run)
    for node in cluster.all_nodes:
        if node.is_alive:
            lines += _node_lines(node)
    waiting = [outcome.run for outcome in cluster.outcomes.values() if not outcome.is_over]
    lines.append(f"the client waits for runs {waiting}")
    return lines[:LINES_MAX]


def _run_lines(run: MasterRun) -> list[str]:
    lines = [
        (
            f"run {run.number}: {run.state.name}, epoch {run.epoch}, {run.unfinished_count} of "
            f"{len(run.subtrees)} subtrees unfinished, {run.missing_count} outputs missing, "
            f"announced {run.announced}, taken {run.taken}, closing on {sorted(run.closing)}"
        )
    ]
    for subtree in run.subtrees:
        if subtree.state is not SubtreeState.DONE:
            unplaced = [
                number
                for number in subtree.predecessors.tolist()
                if run.subtrees[number].state in (SubtreeState.WAITING, SubtreeState.READY)
            ]
            lines.append(
                f"  subtree {subtree.number} ({subtree.lo} to {subtree.hi}): {subtree.state.name}, "
                f"home {subtree.home}, attempt {subtree.attempt}, after {unplaced}"
            )
    return lines


def _node_lines(node: "SimNode") -> list[str]:
    busy = {e.id: [b.number for b in e.queue] for e in node.core.executors.values()}
    state = ", stopped" if node.is_paused else ""
    lines = [
        (
            f"node {node.broker} (number {node.serial}, epoch {node.core.epoch}{state}): executors "
            f"{busy}, {node.unacknowledged_count()} batches unacknowledged"
        )
    ]
    for run in node.core.runs.values():
        lines += _broker_run_lines(run)
    return lines


def _broker_run_lines(run: BrokerRun) -> list[str]:
    lines = [f"  run {run.number}, epoch {run.epoch}, cancelled {run.cancelled}:"]
    lines += [
        f"    subtree {subtree.number}, attempt {subtree.attempt}: "
        f"{subtree.remaining_count} tasks remain, cut up to {subtree.cursor}"
        for subtree in run.subtrees.values()
        if subtree.remaining_count
    ]
    for bundle in run.bundles.values():
        lacking = [p for p in bundle.imports.tolist() if run.object_of[p] < 0]
        if bundle.state is BundleState.WAITING:
            lines.append(f"    bundle {bundle.number} waits for positions {lacking[:10]}")
    return lines
