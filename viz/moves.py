"""What was moved during a run: values from node to node, and to and from files.

Pure. Measured, as the nodes noted it; where nothing was measured, pictures fall back to what the
graph says (`dagsched.viz.perfetto.crossings`). Whole-array passes only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dagsched.history import History
from dagsched.plan import Int64
from dagsched.tables import SPILL_KINDS
from dagsched.viz.text import counted, duration, size

TRANSFER = len(SPILL_KINDS)
"""The kind of a move that isn't one of the kinds of spills."""

_FILE_WORDS = {
    "moved": "moved to a file of node {node}: its memory was above its mark",
    "made": "made in a file of node {node}: its memory had no room",
    "read": "read from a file of node {node}",
}


@dataclass(frozen=True, slots=True)
class Moves:
    """Transfers and spills by node and begin; times in ns since `Lanes.origin_ns`."""

    node: Int64  # where it came to, or in whose file it lay
    kind: Int64  # as `SPILL_KINDS` has them, or TRANSFER
    task: Int64  # whose value it is, or the first of those; -1: not known
    value_count: Int64
    source: Int64  # from which node; of files the same
    size_bytes: Int64
    begin_ns: Int64  # it was wanted and there; of files as `start_ns`
    start_ns: Int64  # its first bytes came
    end_ns: Int64

    def __len__(self) -> int:
        return len(self.node)

    def took_ns(self) -> Int64:
        """From when it was wanted and there to its last byte."""
        return self.end_ns - self.begin_ns

    def of_node(self, node: int) -> slice:
        """Those of a node; by begin."""
        first, last = np.searchsorted(self.node, [node, node + 1]).tolist()
        return slice(first, last)


class Route(NamedTuple):
    """All that came from one node to another."""

    source: int
    target: int
    object_count: int
    value_count: int
    size_bytes: int
    took_ns: int  # in all


class FileLine(NamedTuple):
    """All of a kind that went to files of a node, or was read there."""

    node: int
    kind: str  # of `SPILL_KINDS`
    object_count: int
    size_bytes: int
    took_ns: int


def make_moves(history: History, origin_ns: int) -> Moves:
    """The moves of a run, those that its trace keeps."""
    trace = history.trace
    transfers, spills = trace.transfers, trace.spills
    none = np.empty(0, np.int64)
    columns = [[none] * 9]
    if len(transfers):
        task, start_ns = transfers["task"], transfers["start_ns"]
        made_ns = np.where(task >= 0, trace.end_ns[task], -1) if trace.task_count else none
        begin_ns = np.maximum(transfers["asked_ns"], made_ns)
        # A stamp that isn't known, or of another machine's clock.
        begin_ns = np.where((begin_ns < 0) | (begin_ns > start_ns), start_ns, begin_ns)
        columns.append(
            [
                transfers["target"], np.full(len(task), TRANSFER), task, transfers["value_count"],
                transfers["source"], transfers["size_bytes"], begin_ns, start_ns,
                transfers["end_ns"],
            ]
        )  # fmt: skip
    if len(spills):
        columns.append(
            [
                spills["node"], spills["kind"], spills["task"], spills["value_count"],
                spills["node"], spills["size_bytes"], spills["start_ns"], spills["start_ns"],
                spills["end_ns"],
            ]
        )  # fmt: skip
    joined = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    for times in joined[6:]:
        times -= origin_ns
    order = np.lexsort((joined[6], joined[0]))
    return Moves(*(column[order] for column in joined))


def about(history: History, moves: Moves, index: int) -> list[str]:
    """What is known of a move, a fact a line."""
    task, kind = int(moves.task[index]), int(moves.kind[index])
    node, size_bytes = int(moves.node[index]), int(moves.size_bytes[index])
    more = int(moves.value_count[index]) - 1
    what = history.names.key(task) if task >= 0 else "a value without a task in the picture"
    what += f" and {counted(more, 'value')} more" if more else ""
    took, start = int(moves.took_ns()[index]), int(moves.start_ns[index])
    if kind != TRANSFER:
        words = _FILE_WORDS[SPILL_KINDS[kind]].format(node=node)
        lines = [what, words, f"{size(size_bytes)} at {duration(max(0, start))}"]
        return [*lines, f"took {_rated(size_bytes, took)}"] if took else lines
    lines = [what, f"from node {int(moves.source[index])} to node {node}"]
    waited = start - int(moves.begin_ns[index])
    lines.append(f"{size(size_bytes)} in {_rated(size_bytes, took)}")
    lines.append(f"came from {duration(max(0, start))} on, {duration(waited)} after it was wanted")
    return lines


def _rated(size_bytes: int, took_ns: int) -> str:
    """A length of time, and how much that is a second."""
    rate = f", {size(size_bytes * 1_000_000_000 // took_ns)}/s" if took_ns else ""
    return duration(took_ns) + rate


def routes_of(moves: Moves, every: int) -> list[Route]:
    """From which nodes to which; of a sample times as many as each stands for."""
    is_one = moves.kind == TRANSFER
    pairs = np.stack([moves.source[is_one], moves.node[is_one]], axis=1)
    names, inverse = np.unique(pairs, axis=0, return_inverse=True)
    sums = _sums(moves, is_one, inverse.ravel(), len(names), every)
    return [
        Route(*pair, *numbers) for pair, numbers in zip(names.tolist(), sums.tolist(), strict=True)
    ]


def files_of(moves: Moves, every: int) -> list[FileLine]:
    """By node and kind what went to files and was read there; of a sample as above."""
    is_one = moves.kind != TRANSFER
    pairs = np.stack([moves.node[is_one], moves.kind[is_one]], axis=1)
    names, inverse = np.unique(pairs, axis=0, return_inverse=True)
    sums = _sums(moves, is_one, inverse.ravel(), len(names), every)
    return [
        FileLine(node, SPILL_KINDS[kind], numbers[0], numbers[2], numbers[3])
        for (node, kind), numbers in zip(names.tolist(), sums.tolist(), strict=True)
    ]


def _sums(
    moves: Moves, chosen: "np.ndarray[tuple[int], np.dtype[np.bool_]]", group: Int64, count: int,
    every: int,
) -> Int64:  # fmt: skip
    """Objects, values, bytes and time of each group."""
    sums = np.zeros((count, 4), np.int64)
    columns = (
        np.ones(len(group), np.int64), moves.value_count[chosen], moves.size_bytes[chosen],
        moves.took_ns()[chosen],
    )  # fmt: skip
    for place, column in enumerate(columns):
        np.add.at(sums[:, place], group, column)
    return sums * every


def slowest(moves: Moves, count: int) -> list[int]:
    """The transfers that took longest, the longest first."""
    took = np.where(moves.kind == TRANSFER, moves.took_ns(), -1)
    order = np.argsort(-took, kind="stable")[:count]
    return [index for index in order.tolist() if took[index] >= 0]


def arrivals_ns(history: History, origin_ns: int) -> Int64:
    """When the last input of each task came to its node from another; -1: none is known to have.

    What comes more than once counts when it came first. Of small values that travelled as one
    object only the first is told, so that some are missed.
    """
    trace, transfers = history.trace, history.trace.transfers
    arrived = np.full(history.task_count, -1, np.int64)
    known = transfers["task"] >= 0 if len(transfers) else np.empty(0, np.bool_)
    if not known.any():
        return arrived
    task, target, end_ns = (transfers[name][known] for name in ("task", "target", "end_ns"))
    base = int(max(trace.node.max(initial=0), target.max())) + 1
    keys = task * base + target
    order = np.lexsort((end_ns, keys))
    keys, first = np.unique(keys[order], return_index=True)
    ends = end_ns[order][first]
    dependents = np.repeat(np.arange(history.task_count), np.diff(history.indptr))
    wanted = np.asarray(history.deps, np.int64) * base + trace.node[dependents]
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = (keys[places] == wanted) & (trace.node[dependents] >= 0)
    np.maximum.at(arrived, dependents[found], ends[places[found]] - origin_ns)
    return arrived
