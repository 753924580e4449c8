"""Graphs of networkx as graphs of delayed calls."""

from collections.abc import Callable, Hashable
from typing import Any

import networkx as nx

from dagsched.delayed import Delayed, delayed
from dagsched.errors import CycleError, GraphError


def from_networkx(digraph: "nx.DiGraph[Any]") -> dict[Hashable, Delayed]:
    """Turns a directed graph whose nodes are calls into delayed calls.

    An edge leads from a task to one that needs its value. A node has attribute ``func`` (or
    ``callable``), and may have ``args`` and ``kwargs``. Its predecessors' values come first, in
    the order in which the edges were added; an edge with attribute ``arg`` gives the value by that
    keyword instead. Nodes that are written as strings show under their own names.

    Args:
        digraph: Nodes can be anything hashable.

    Returns:
        The nodes on which no other depends, in the graph's order.

    Raises:
        CycleError: The graph has a cycle; ``cycle`` names its nodes.
        GraphError: A node has no callable, or two values for one keyword.

    >>> graph = nx.DiGraph()
    >>> graph.add_node("one", func=int, args=("1",))
    >>> graph.add_node("sum", func=lambda x, y: x + y, args=(2,))
    >>> graph.add_edge("one", "sum")
    >>> list(from_networkx(graph))
    ['sum']
    """
    if not digraph.is_directed():
        raise GraphError("a graph must be directed, so that it says which task needs which")
    made: dict[Hashable, Delayed] = {}
    for node in _ordered(digraph):
        attributes = digraph.nodes[node]
        args: list[Any] = []
        kwargs: dict[str, Any] = dict(attributes.get("kwargs") or {})
        for source, edge in digraph.pred[node].items():
            # A multigraph has several edges between two nodes; each gives the value.
            for data in edge.values() if digraph.is_multigraph() else (edge,):
                _give(made[source], data.get("arg"), args, kwargs, node)
        args.extend(attributes.get("args") or ())
        name = node if isinstance(node, str) and node else None
        made[node] = delayed(_function(node, attributes), name=name)(*args, **kwargs)
    return {node: made[node] for node in digraph if digraph.out_degree(node) == 0}


def _give(
    value: Delayed, keyword: Any, args: list[Any], kwargs: dict[str, Any], node: Hashable
) -> None:
    """Adds a predecessor's value to the arguments of a node."""
    if keyword is None:
        args.append(value)
    elif not isinstance(keyword, str):
        raise GraphError(f"an edge to node {node!r} has arg={keyword!r}, which is no keyword")
    elif keyword in kwargs:
        raise GraphError(f"node {node!r} gets two values for its argument {keyword!r}")
    else:
        kwargs[keyword] = value


def _function(node: Hashable, attributes: dict[str, Any]) -> Callable[..., Any]:
    function = attributes.get("func", attributes.get("callable"))
    if not callable(function):
        raise GraphError(f"node {node!r} needs an attribute func that can be called")
    return function  # type: ignore[no-any-return]  # callable() leaves it untyped


def _ordered(digraph: "nx.DiGraph[Any]") -> list[Any]:
    """Nodes in topological order."""
    try:
        return list(nx.topological_sort(digraph))
    except nx.NetworkXUnfeasible:
        pass
    edges = nx.find_cycle(digraph)
    # Edges lead from a task to one that needs it, so each node needs the one before.
    cycle = tuple(edge[0] for edge in edges)
    names = " -> ".join(map(repr, (*cycle, cycle[0])))
    raise CycleError(f"nodes depend on each other: {names}", cycle)
