"""The schedule as a page that zooms down to a task among a million. Needs no network.

Pure. Responsible for what the page is given; how it draws stands in `templates/gantt.html`. Columns
travel packed as in saved runs, and the browser unpacks them.
"""

from typing import Any

import numpy as np

from dagsched.history import History
from dagsched.tables import SPILL_KINDS
from dagsched.viz.gantt import FILES, function_colours, gantt_headline
from dagsched.viz.lanes import Lanes, make_lanes
from dagsched.viz.model import Integers
from dagsched.viz.moves import TRANSFER, Moves, make_moves
from dagsched.viz.pages import data_page
from dagsched.viz.palette import node_colours, text_on
from dagsched.viz.text import markup, size

EDGES_MAX = 2_000_000
"""Most edges that the page is given; without them it can't show what a task needed."""


def gantt_page(history: History, title: str) -> str:
    """The page's text."""
    lanes = make_lanes(history)
    return data_page(
        "gantt.html",
        _data(history, lanes),
        title=markup(title),
        headline=markup(gantt_headline(history, lanes)),
    )


def _data(history: History, lanes: Lanes) -> dict[str, Any]:
    names = history.names
    unit = max(1, -(-lanes.length_ns // (1 << 31)))  # ns in one, so that times fit 32 bits
    start, end = lanes.start_ns // unit, -(-lanes.end_ns // unit)
    steps = np.diff(start, prepend=0)
    first = lanes.bounds[:-1][np.diff(lanes.bounds) > 0]
    steps[first] = start[first]
    columns = {
        "start": steps,
        "length": end - start,
        "task": np.diff(lanes.task, prepend=0),
        "function": names.function_of[lanes.task],
        "serial": np.diff(names.serials[lanes.task], prepend=0),
    }
    if len(history.deps) <= EDGES_MAX:
        columns["inputs"] = np.diff(history.indptr)
        dependents = np.repeat(np.arange(history.task_count), columns["inputs"])
        columns["deps"] = dependents - history.deps
    moves = make_moves(history, lanes.origin_ns)
    columns |= _moves(moves, unit)
    colours, order = function_colours(history)
    by_function = [colours[function] for function in range(len(order))]
    return {
        "unit": unit,
        "length": max(1, lanes.length_ns // unit),
        "lanes": _lanes(history, lanes),
        "moves": _nodes_of(lanes, moves),
        "fileKinds": list(SPILL_KINDS.values()),
        "fileColour": FILES,
        "hasFiles": bool((moves.kind != TRANSFER).any()),
        "bounds": lanes.bounds.tolist(),
        "functions": list(names.functions),
        "order": order,
        "colours": by_function,
        "texts": [text_on(colour) for colour in by_function],
        "own": {str(task): name for task, name in names.own.items()},
        "keys": None if names.own_keys is None else [str(key) for key in names.own_keys],
        "failed": list(history.trace.failed),
        "again": np.flatnonzero(~lanes.is_last).tolist(),
        "events": _events(history, lanes, unit),
        "columns": columns,
    }


def _moves(moves: Moves, unit: int) -> dict[str, Integers]:
    """Columns of transfers and spills; their times as of tasks, none before the submission."""
    begin, start, end = (
        np.maximum(times, 0) // unit for times in (moves.begin_ns, moves.start_ns, moves.end_ns)
    )
    return {
        "moveBegin": np.diff(begin, prepend=0),
        "moveWait": start - begin,
        "moveLength": end - start,
        "moveTask": moves.task,
        "moveCount": moves.value_count,
        "moveKind": moves.kind,
        "moveSource": moves.source,
        "moveBytes": moves.size_bytes,
    }


def _nodes_of(lanes: Lanes, moves: Moves) -> list[dict[str, Any]]:
    """By node the range of its moves, and the colour that values from there have."""
    nodes = sorted({node for node, _ in lanes.places} | set(moves.source.tolist()))
    ranges = [moves.of_node(node) for node in nodes]
    return [
        {"node": node, "colour": colour, "first": here.start, "end": here.stop}
        for node, colour, here in zip(nodes, node_colours(len(nodes)), ranges, strict=True)
    ]


def _lanes(history: History, lanes: Lanes) -> list[dict[str, Any]]:
    nodes = sorted({node for node, _ in lanes.places})
    colours = dict(zip(nodes, node_colours(len(nodes)), strict=True))
    titles = {node: f"node {node}" for node in nodes}
    for row in history.stats.get("brokers", ()):
        if row["id"] in titles:
            titles[row["id"]] += (
                f" on {row['host']}, {size(row['in_bytes'])} in, {size(row['out_bytes'])} out, "
                f"{size(row['peak_bytes'])} at most, {size(row['spilled_bytes'])} spilled"
            )
    counts = np.diff(lanes.bounds).tolist()
    return [
        {
            "node": node,
            "executor": executor,
            "title": titles[node],
            "colour": colours[node],
            "count": count,
        }
        for (node, executor), count in zip(lanes.places, counts, strict=True)
    ]


def _events(history: History, lanes: Lanes, unit: int) -> list[dict[str, Any]]:
    lane_of_place = {place: lane for lane, place in enumerate(lanes.places)}
    return [
        {
            "time": min(max(0, event.time_ns - lanes.origin_ns), lanes.length_ns) // unit,
            "lane": lane_of_place.get((event.node, event.executor), -1),
            "words": event.kind.replace("_", " ") + (f" {event.node}" if event.node > 0 else ""),
            "cross": event.kind == "failed",
        }
        for event in history.trace.events
        if event.kind in ("retried", "failed", "node_lost", "stalled", "resumed", "recovered")
    ]
