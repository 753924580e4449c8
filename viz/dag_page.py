"""A large graph as a page whose boxes open, down to single tasks. Needs no network.

Pure. Responsible for what the page is given; how it draws what is opened stands in
`templates/dag.html`.
"""

import numpy as np

from dagsched.history import History
from dagsched.viz.model import Picture
from dagsched.viz.pages import data_page
from dagsched.viz.palette import node_colours
from dagsched.viz.text import markup

ITEMS_MAX = 8_000_000
"""Most tasks and edges, together, that a page is given."""


def can_open(history: History, picture: Picture) -> bool:
    """Whether there are boxes, and few enough tasks for a browser."""
    return picture.box_of is not None and history.task_count + len(history.deps) <= ITEMS_MAX


def dag_page(history: History, picture: Picture, svg: str) -> str:
    """The page around the drawn boxes.

    Args:
        history: of the graph or run.
        picture: of it; its marks are boxes.
        svg: the drawn picture.
    """
    assert picture.box_of is not None
    trace, names = history.trace, history.names
    ran = trace.ran
    first_ns = int(trace.start_ns[ran].min()) if ran.any() else 0
    unit = max(1, -(-trace.span_ns // (1 << 31)))  # ns in one, so that times fit 32 bits
    nodes = sorted({line.id for line in picture.nodes} | set(np.unique(trace.node[ran]).tolist()))
    dependents = np.repeat(np.arange(history.task_count), np.diff(history.indptr))
    columns = {
        "inputs": np.diff(history.indptr),
        "deps": dependents - history.deps,
        "function": names.function_of,
        "serial": np.diff(names.serials, prepend=0),
        "start": np.where(ran, (trace.start_ns - first_ns) // unit + 1, 0),  # 0: not run
        "length": trace.duration_ns.clip(0) // unit,
        "node": trace.node,
        "executor": trace.executor,
        "box": picture.box_of,
    }
    data = {
        "unit": unit,
        "functions": list(names.functions),
        "own": {str(task): name for task, name in names.own.items()},
        "keys": None if names.own_keys is None else [str(key) for key in names.own_keys],
        "failed": list(trace.failed),
        "done": history.state == "done",  # then all have run, those without times as well
        "boxes": [mark.key for mark in picture.marks],
        "colours": dict(zip(map(str, nodes), node_colours(len(nodes)), strict=True)),
        "columns": columns,
    }
    return data_page("dag.html", data, title=markup(picture.title or "dagsched"), svg=svg)
