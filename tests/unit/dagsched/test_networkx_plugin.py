"""Graphs of networkx as delayed calls."""

from typing import Any

import networkx as nx
import pytest

from dagsched.errors import CycleError, GraphError
from dagsched.graph import build_graph
from dagsched.plugins.networkx import from_networkx
from tests.graphs import cross, difference, serial, straight


def record(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return (args, sorted(kwargs.items()))


def test_predecessors_come_first_in_the_order_of_edges() -> None:
    graph: Any = nx.DiGraph()
    for name in "xyz":
        graph.add_node(name, func=str, args=(name,))
    graph.add_node("all", callable=record, args=(1, 2), kwargs={"k": 3})
    graph.add_edge("z", "all")
    graph.add_edge("x", "all")
    graph.add_edge("y", "all", arg="middle")
    made = from_networkx(graph)
    assert list(made) == ["all"]
    assert serial(made["all"]) == (("z", "x", 1, 2), [("k", 3), ("middle", "y")])
    assert made["all"].key.startswith("all-")


def test_every_sink_is_there_and_shared_tasks_stay_one() -> None:
    graph: Any = nx.DiGraph()
    graph.add_node(0, func=int, args=(10,))
    graph.add_node(1, func=difference, args=(1,))
    graph.add_node(2, func=difference, args=(2,))
    graph.add_edges_from([(0, 1), (0, 2)])
    made = from_networkx(graph)
    assert serial(made) == {1: 9, 2: 8}
    assert len(build_graph(made)) == 3


def test_parallel_edges_give_the_value_more_than_once() -> None:
    graph: Any = nx.MultiDiGraph()
    graph.add_node("a", func=int, args=(4,))
    graph.add_node("b", func=record)
    graph.add_edge("a", "b")
    graph.add_edge("a", "b", arg="again")
    assert serial(from_networkx(graph)) == {"b": ((4,), [("again", 4)])}


def test_an_empty_graph() -> None:
    assert from_networkx(nx.DiGraph()) == {}


@pytest.mark.parametrize("attributes", [{}, {"func": None}, {"func": 5}])
def test_a_node_without_a_callable_is_named(attributes: dict[str, Any]) -> None:
    graph: Any = nx.DiGraph()
    graph.add_node("broken", **attributes)
    with pytest.raises(GraphError, match="node 'broken' needs an attribute func"):
        from_networkx(graph)


def test_wrong_keywords() -> None:
    graph: Any = nx.DiGraph()
    graph.add_node("a", func=int)
    graph.add_node("b", func=record, kwargs={"k": 1})
    graph.add_edge("a", "b", arg="k")
    with pytest.raises(GraphError, match="node 'b' gets two values for its argument 'k'"):
        from_networkx(graph)
    graph.edges["a", "b"]["arg"] = 3
    with pytest.raises(GraphError, match="edge to node 'b' has arg=3"):
        from_networkx(graph)


def test_undirected_graphs_are_refused() -> None:
    with pytest.raises(GraphError, match="must be directed"):
        from_networkx(nx.Graph())


def test_a_cycle_is_named_in_order() -> None:
    graph: Any = nx.DiGraph()
    graph.add_nodes_from("abcd", func=record)
    graph.add_edges_from([("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")])
    with pytest.raises(CycleError) as caught:
        from_networkx(graph)
    cycle = caught.value.cycle
    assert sorted(map(str, cycle)) == ["b", "c", "d"]
    for before, after in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
        assert graph.has_edge(before, after)


@pytest.mark.parametrize(("dag", "edges"), [(straight([1] * 216)[0], 171), (cross()[0], 114)])
def test_there_and_back_keeps_the_graph(dag: Any, edges: int) -> None:
    digraph = build_graph(dag).to_networkx()
    assert digraph.number_of_edges() == edges
    for _, attributes in digraph.nodes(data=True):
        attributes["func"] = attributes.pop("function")
    assert len(build_graph(from_networkx(digraph))) == len(digraph)
