"""A run in the trace format of Chrome, which Perfetto's viewer opens.

Pure. Nodes are processes, executors threads, tasks slices; values that were needed on another node
are flows, what happened to the run are instants. Measured transfers, and what went to files or was
read there, are asynchronous slices of the node: as many at once as there were. Written in pieces: a
million tasks need no more memory than a few thousand.

The format: "Trace Event Format" (Google, 2016), https://ui.perfetto.dev opens it.
"""

import json
from collections.abc import Iterator

import numpy as np

from dagsched.history import History
from dagsched.plan import Int64
from dagsched.tables import SPILL_KINDS
from dagsched.viz.lanes import Lanes, make_lanes
from dagsched.viz.moves import TRANSFER, Moves, make_moves

FLOWS_MAX = 20_000
"""Most values from node to node that are drawn as flows."""

_PIECE = 20_000


def perfetto_pieces(history: History) -> Iterator[str]:
    """The text of the file, in pieces; times in microseconds since the run was submitted."""
    lanes = make_lanes(history)
    yield '{"displayTimeUnit":"ms","otherData":' + json.dumps(
        {"run": history.run_id, "state": history.state, "tasks": history.task_count}
    )
    yield ',"traceEvents":['
    yield ",\n".join(_head(history, lanes))
    lane_of = lanes.lane_of()
    for begin in range(0, len(lanes.task), _PIECE):
        piece = slice(begin, begin + _PIECE)
        yield ",\n" + ",\n".join(_slices(history, lanes, lane_of, piece))
    moves = make_moves(history, lanes.origin_ns)
    for begin in range(0, len(moves), _PIECE):
        piece = slice(begin, begin + _PIECE)
        yield ",\n" + ",\n".join(_moves(history, moves, piece))
    for lines in (_instants(history, lanes), _flows(history, lanes)):
        if lines:
            yield ",\n" + ",\n".join(lines)
    yield "\n]}\n"


def _head(history: History, lanes: Lanes) -> list[str]:
    """Names of nodes and executors, in the order of the other pictures."""
    hosts = history.hosts
    lines = []
    for node in sorted({node for node, _ in lanes.places}):
        name = f"node {node}" + (f" on {hosts[node][0]}" if node in hosts else "")
        lines.append(_named("process_name", node, 0, name))
    lines += [
        _named("thread_name", node, executor, f"executor {executor}")
        for node, executor in lanes.places
    ]
    title = f"run {history.run_id}: {history.state}"
    return [_named("process_name", 0, 0, title), *lines]


def _named(kind: str, process: int, thread: int, name: str) -> str:
    event = {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}
    return json.dumps(event)


def _slices(history: History, lanes: Lanes, lane_of: Int64, piece: slice) -> list[str]:
    trace, names = history.trace, history.names
    failed = frozenset(trace.failed)
    texts = [json.dumps(name) for name in names.functions]
    own = names.own
    lines = []
    for task, lane, start, end, is_last, function, serial, attempt in zip(
        lanes.task[piece].tolist(),
        lane_of[piece].tolist(),
        lanes.start_ns[piece].tolist(),
        lanes.end_ns[piece].tolist(),
        lanes.is_last[piece].tolist(),
        names.function_of[lanes.task[piece]].tolist(),
        names.serials[lanes.task[piece]].tolist(),
        trace.attempt[lanes.task[piece]].tolist(),
        strict=True,
    ):
        node, executor = lanes.places[lane]
        text = texts[function]
        if task in own or names.own_keys is not None:
            key = json.dumps(names.key(task))
        else:
            key = f'{text[:-1]}-{serial}"'
        more = "" if is_last else ',"note":"executed again later"'
        more += ',"failed":true' if task in failed else ""
        lines.append(
            f'{{"ph":"X","name":{text},"cat":"task","pid":{node},"tid":{executor},'
            f'"ts":{start / 1000},"dur":{(end - start) / 1000},'
            f'"args":{{"key":{key},"task":{task},"attempt":{attempt}{more}}}}}'
        )
    return lines


def _moves(history: History, moves: Moves, piece: slice) -> list[str]:
    """Begin and end of each move."""
    lines = []
    for number in range(*piece.indices(len(moves))):
        kind, task = int(moves.kind[number]), int(moves.task[number])
        category = "transfer" if kind == TRANSFER else f"file {SPILL_KINDS[kind]}"
        facts = {
            "key": history.names.key(task) if task >= 0 else "",
            "values": int(moves.value_count[number]),
            "bytes": int(moves.size_bytes[number]),
            "from node": int(moves.source[number]),
            "wanted for us": int(moves.start_ns[number] - moves.begin_ns[number]) / 1000,
        }
        for phase, times in (("b", moves.start_ns), ("e", moves.end_ns)):
            event = {
                "ph": phase, "cat": category, "name": category, "id2": {"local": str(number)},
                "pid": int(moves.node[number]), "tid": 0, "ts": max(0, int(times[number])) / 1000,
            }  # fmt: skip
            lines.append(json.dumps(event | ({"args": facts} if phase == "b" else {})))
    return lines


def _instants(history: History, lanes: Lanes) -> list[str]:
    lines = []
    for event in history.trace.events:
        facts = {name: value for name, value in event._asdict().items() if value not in (-1, "")}
        if event.task >= 0:
            facts["key"] = history.names.key(event.task)
        has_place = event.executor > 0 and event.node > 0
        lines.append(
            json.dumps(
                {
                    "ph": "i",
                    "name": event.kind,
                    "cat": "story",
                    "s": "t" if has_place else "p",
                    "pid": max(event.node, 0),
                    "tid": max(event.executor, 0) if has_place else 0,
                    "ts": max(0, event.time_ns - lanes.origin_ns) / 1000,
                    "args": facts,
                }
            )
        )
    return lines


def _flows(history: History, lanes: Lanes) -> list[str]:
    """From the end of a task to the first on another node that needed its value."""
    trace = history.trace
    lines = []
    for number, (source, target) in enumerate(crossings(history)[:FLOWS_MAX].tolist()):
        start = (trace.start_ns[source] + trace.end_ns[source]) // 2 - lanes.origin_ns
        common = f'"name":"value","cat":"value","id":{number}'
        lines.append(
            f'{{"ph":"s",{common},"pid":{trace.node[source]},"tid":{trace.executor[source]},'
            f'"ts":{start / 1000}}}'
        )
        begun = (trace.start_ns[target] + trace.end_ns[target]) // 2 - lanes.origin_ns
        lines.append(
            f'{{"ph":"f","bp":"e",{common},"pid":{trace.node[target]},'
            f'"tid":{trace.executor[target]},"ts":{begun / 1000}}}'
        )
    return lines


def crossings(history: History) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """Values that were needed on another node than the one that made them.

    Returns:
        A row each: the task that made it, and the first task that needed it on that node; in order
        of the latter's start. Only of tasks that were run.
    """
    trace = history.trace
    dependents = np.repeat(np.arange(history.task_count), np.diff(history.indptr))
    sources = np.asarray(history.deps, np.int64)
    node, start = trace.node, trace.start_ns
    apart = (node[sources] != node[dependents]) & (start[sources] >= 0) & (start[dependents] >= 0)
    sources, targets = sources[apart], dependents[apart]
    order = np.argsort(start[targets], kind="stable")
    sources, targets = sources[order], targets[order]
    nodes = int(node.max(initial=0)) + 1
    _, first = np.unique(sources * nodes + node[targets], return_index=True)
    return np.stack([sources, targets], axis=1)[np.sort(first)]
