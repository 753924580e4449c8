"""What users hand over to be drawn, turned into a picture: graphs of every kind, and runs."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

from dagsched.delayed import Delayed
from dagsched.graph import TaskGraph, build_graph
from dagsched.trace import Trace
from dagsched.viz.model import Picture, Tasks
from dagsched.viz.picture import make_picture

if TYPE_CHECKING:
    import networkx as nx


@runtime_checkable
class TracedRun(Protocol):
    """What a picture needs of a `dagsched.Run`."""

    @property
    def run_id(self) -> str:
        """Stands at the top of the picture."""

    @property
    def graph(self) -> TaskGraph:
        """What was run."""

    def trace(self) -> Trace:
        """Where and when."""


def picture_of(dag_or_run: object, title: str | None = None) -> Picture:
    """The picture of a graph or a run.

    Raises:
        TypeError: it is neither.
    """
    # A Delayed answers to every attribute, so it must be known before anything is asked of it.
    if isinstance(dag_or_run, Delayed | list | tuple | dict | set | frozenset):
        return make_picture(tasks_of(build_graph(dag_or_run)), title=title or "")
    if isinstance(dag_or_run, TaskGraph):
        return make_picture(tasks_of(dag_or_run), title=title or "")
    if _is_networkx(dag_or_run):
        from dagsched.plugins.networkx import from_networkx

        graph = build_graph(from_networkx(dag_or_run))
        return make_picture(tasks_of(graph), title=title or "")
    if isinstance(dag_or_run, TracedRun):
        return make_picture(
            tasks_of(dag_or_run.graph),
            dag_or_run.trace(),
            title=f"run {dag_or_run.run_id}" if title is None else title,
            hosts=_hosts(dag_or_run),
        )
    raise TypeError(
        "visualize draws a Delayed, containers of them, a networkx.DiGraph or a Run, "
        f"not a {type(dag_or_run).__name__}"
    )


def _is_networkx(value: object) -> TypeGuard["nx.DiGraph[Any]"]:
    """Whether it is a networkx graph; who never imported networkx, has none and needs no import."""
    module = sys.modules.get("networkx")
    return module is not None and isinstance(value, module.DiGraph)


def tasks_of(graph: TaskGraph) -> Tasks:
    """A graph's arrays, as the picture's model takes them."""
    return Tasks(graph.function_names, graph.function_of, graph.indptr, graph.deps, graph.key)


def _hosts(run: object) -> Mapping[int, tuple[str, Sequence[int]]]:
    """Host and executors of the run's nodes by id, as far as statistics tell."""
    record = getattr(run, "record", None)
    return {
        stats.id: (stats.host, [executor.id for executor in stats.executors])
        for stats in getattr(record, "node_stats", ())
    }
