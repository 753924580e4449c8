"""What users hand over to be drawn, turned into a `History`: graphs of every kind, runs, files."""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from dagsched.containers import leaves
from dagsched.delayed import Delayed
from dagsched.graph import TaskGraph, build_graph
from dagsched.history import History
from dagsched.run import Run
from dagsched.viz.model import Picture, Tasks
from dagsched.viz.picture import make_picture

if TYPE_CHECKING:
    import networkx as nx


def history_of(thing: object) -> History:
    """What is known of a graph or a run.

    Raises:
        TypeError: it is neither.
        ValueError: an environment without a run.
    """
    # A Delayed answers to every attribute, so it must be known before anything is asked of it.
    if isinstance(thing, Delayed | list | tuple | dict | set | frozenset):
        if next(leaves(thing, _is_run), None) is not None:
            raise TypeError("visualize draws one run at a time: hand over the run itself")
        return History.of_graph(build_graph(thing))
    if isinstance(thing, TaskGraph):
        return History.of_graph(thing)
    if isinstance(thing, Run):
        return History.of_run(thing)
    if isinstance(thing, History):
        return thing
    if _is_networkx(thing):
        from dagsched.plugins.networkx import from_networkx

        return History.of_graph(build_graph(from_networkx(thing)))
    if _is_environment(thing):
        run = thing._newest_run()
        if run is None:
            raise ValueError(
                "the environment has had no run, or its last one had over a million tasks and its "
                "handle is gone: keep what submit(env, dag) returns, and hand that over"
            )
        return History.of_run(run)
    raise TypeError(
        "visualize draws a Delayed, containers of them, a networkx.DiGraph, a Run, a RunEnv (its "
        f"last run) or what dagsched.viz.load gives, not a {type(thing).__name__}"
    )


def picture_of(history: History, title: str | None = None) -> Picture:
    """The picture of a graph, with its run if it had one."""
    tasks = Tasks(
        history.names.functions,
        history.names.function_of,
        history.indptr,
        history.deps,
        history.names.key,
        history.trace.size_bytes if len(history.trace.size_bytes) else None,
    )
    return make_picture(
        tasks,
        history.trace if history.has_run else None,
        title=title_of(history) if title is None else title,
        hosts=history.hosts,
    )


def title_of(history: History) -> str:
    """What stands at the top of a picture, if its maker has no better words."""
    return f"run {history.run_id}" if history.has_run else ""


def _is_networkx(value: object) -> TypeGuard["nx.DiGraph[Any]"]:
    """Whether it is a networkx graph; who never imported networkx, has none and needs no import."""
    module = sys.modules.get("networkx")
    return module is not None and isinstance(value, module.DiGraph)


def _is_run(value: object) -> bool:
    return isinstance(value, Run)


def _is_environment(value: object) -> TypeGuard[Any]:
    """The same for an environment."""
    module = sys.modules.get("dagsched.runenv")
    return module is not None and isinstance(value, module.RunEnv)
