"""Graphs of Dask as ours: ids, functions, entries; a naive evaluator is the oracle."""

import doctest
import importlib
import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from dask.task_spec import DataNode, GraphNode, List, Task, TaskRef

from dagsched.composed import Composed
from dagsched.entries import fill
from dagsched.errors import CycleError, GraphError
from dagsched.graph import TaskGraph
from dagsched.keys import find_key, near_keys
from dagsched.plugins.dask.annotations import options_by_key
from dagsched.plugins.dask.conversion import convert_graph
from dagsched.plugins.dask.nodes import fused_call
from dagsched.ref import Ref


def evaluated(graph: TaskGraph) -> Any:
    """What the graph computes, one task after the other."""
    count = len(graph)
    values: list[Any] = [None] * count + list(graph.sources)
    for task in range(count):
        needed = graph.dependencies(task).tolist()
        assert len(set(needed)) == len(needed)
        assert all(other < task or other >= count for other in needed)
        args, kwargs = fill(graph.entries[task], [values[other] for other in needed])
        values[task] = graph.functions[int(graph.function_of[task])](*args, **kwargs)
    return graph.resolve_outputs([values[output] for output in graph.outputs.tolist()])


def check(dsk: Mapping[Any, Any], keys: Any) -> TaskGraph:
    """The graph gives what Dask's own synchronous scheduler gives."""
    graph = convert_graph(dsk, keys)
    assert evaluated(graph) == dask.get(dsk, keys)
    return graph


def pair(x: Any, y: Any = 0, *more: Any, key: Any = None) -> Any:
    return (x, y, *more, key)


def test_plain_calls_are_functions_and_entries() -> None:
    dsk = {
        "a": Task("a", abs, -3),
        "b": Task("b", max, TaskRef("a"), 2),
        "c": Task("c", max, TaskRef("a"), TaskRef("b")),
    }
    graph = check(dsk, "c")
    assert [graph.functions[index] for index in graph.function_of] == [abs, max, max]
    assert graph.entries == [(-3,), [(None, 2), ((0, 0),)], None]
    assert graph.own_keys == ["a", "b", "c"]
    assert bytes(graph.plain) == b"\1\1\1"


def test_older_tuples() -> None:
    dsk = {
        "a": 1, "b": (operator.add, "a", 2), "alias": "b", ("c", 0): (sum, ["a", "b", ("d", 1)]),
        ("d", 1): (max, (abs, -7), "alias"), "e": ["a", ["b", 5]], "f": (pair, {"k": "a"}, "none"),
        "g": (pair, ("x", ["b"]), "b"), "literal": [1, 2],
    }  # fmt: skip
    keys = [list(dsk), "a", [[("c", 0)]]]
    graph = check(dsk, keys)
    assert len(graph) == 6


def test_nested_tasks_containers_and_data() -> None:
    dsk = {
        "data": DataNode("data", [1, 2]),
        "x": Task("x", abs, -1),
        "y": Task(
            "y", pair, Task(None, max, TaskRef("x"), 0), List(TaskRef("x"), TaskRef("data"), 4),
            DataNode(None, {"k": 1}), key=Task(None, sum, TaskRef("data")),
        ),
        "z": Task("y", pair, TaskRef("y"), TaskRef("y"), TaskRef("x"), key=TaskRef("y")),
    }  # fmt: skip
    graph = check(dsk, ["z", "y", "data"])
    assert graph.own_keys == ["x", "y", "z"]
    assert isinstance(graph.functions[1], Composed)


def test_the_form_is_shared_and_the_rest_are_arguments() -> None:
    dsk: dict[Any, Any] = {("x", i): Task(("x", i), pair, i, y=[i, {"k": i}]) for i in range(100)}
    dsk["all"] = Task("all", list, List(*[TaskRef(("x", i)) for i in range(100)]))
    graph = check(dsk, "all")
    assert len(graph.functions) == 2
    assert sorted(graph.function_names) == ["list", "x"]
    assert graph.entries[7] == (7, 7, "k", 7)
    assert all(graph.plain)


@pytest.mark.parametrize("length", [2, 3_000])
def test_fused_tasks_are_one_composed_function(length: int) -> None:
    inner = [Task("k0", operator.add, TaskRef("given"), 1)]
    inner += [Task(f"k{i}", operator.add, TaskRef(f"k{i - 1}"), 1) for i in range(1, length)]
    dsk = {"given": Task("given", abs, -5), "end": Task.fuse(*inner, key="end")}
    assert dsk["end"].func is fused_call
    graph = convert_graph(dsk, "end")
    assert evaluated(graph) == 5 + length
    assert len(graph) == 2
    assert len(graph.entries[1][0]) == length + 1  # type: ignore[index]


def test_a_fused_task_of_another_form_is_called_as_it_is() -> None:
    task = Task("end", fused_call, {"k": Task("k", abs, -4)}, "k", [])
    assert evaluated(convert_graph({"end": task}, "end")) == 4


def test_a_node_of_another_kind_is_asked_itself() -> None:
    class Odd(GraphNode):  # type: ignore[misc]  # of Dask, untyped here
        def __init__(self) -> None:
            self.key, self._dependencies = "odd", frozenset(["a"])

        def __call__(self, values: Any) -> Any:
            return values["a"] + 1

    assert evaluated(convert_graph({"a": Task("a", abs, -1), "odd": Odd()}, "odd")) == 2


def test_aliases_are_no_tasks() -> None:
    task = Task("a", abs, -1)
    dsk = {"a": task, "b": task.ref(), "c": type(task.ref())("c", "b")}
    graph = check(dsk, ["c", "b", "a"])
    assert len(graph) == 1


def test_what_is_not_needed_is_left_out_and_a_key_runs_once() -> None:
    dsk = {"a": (abs, -1), "b": (pair, "a", "a"), "c": (pair, "a", "b"), "other": (abs, 3)}
    graph = check(dsk, ["c", "c", "b"])
    assert graph.own_keys == ["a", "b", "c"]
    assert graph.indptr.tolist() == [0, 0, 1, 3]


def test_a_chain_of_100_000_tasks() -> None:
    dsk: dict[Any, Any] = {0: (abs, -1)}
    dsk.update(
        {("k", i): (operator.add, ("k", i - 1) if i > 1 else 0, 1) for i in range(1, 100_000)}
    )
    assert evaluated(convert_graph(dsk, ("k", 99_999))) == 100_000


def test_a_cycle_names_its_keys() -> None:
    dsk = {"a": (abs, "c"), "b": (abs, "a"), "c": (pair, "b", "d"), "d": 1}
    with pytest.raises(CycleError, match="depend on each other") as caught:
        convert_graph(dsk, "a")
    assert set(caught.value.cycle) == {"a", "b", "c"}
    with pytest.raises(CycleError, match="x -> y -> x"):
        convert_graph({"x": "y", "y": "x"}, "x")


def test_missing_keys_are_named() -> None:
    with pytest.raises(GraphError, match=r"the graph has no key 'b'"):
        convert_graph({"a": 1}, "b")
    with pytest.raises(GraphError, match=r"task 'a' needs \('x', 0\)"):
        convert_graph({"a": Task("a", abs, TaskRef(("x", 0)))}, "a")


def test_large_and_shared_constants_are_sources() -> None:
    large, shared, small = np.zeros(100_000), pd.DataFrame({"x": [1]}), np.arange(3)
    dsk = {
        "a": Task("a", pair, large, shared), "b": Task("b", pair, shared, small),
        "c": Task("c", pair, TaskRef("a"), TaskRef("b")), "d": DataNode("d", large),
    }  # fmt: skip
    graph = convert_graph(dsk, ["c", "d"])
    assert {id(source) for source in graph.sources} == {id(large), id(shared)}
    assert bytes(graph.plain) == b"\0\0\1"
    assert graph.outputs.tolist() == [2, 3]


def test_a_reference_is_a_source() -> None:
    ref = Ref(1, 2)
    graph = convert_graph({"r": ref, "a": (abs, "r")}, "a")
    assert graph.sources == [ref]
    assert graph.entries == [None]


def test_constants_that_plain_pickle_may_share() -> None:
    index = (slice(0, 5), slice(None), None)
    dsk = {"a": Task("a", pair, index, np.dtype("f8")), "b": Task("b", pair, np.int64(3), "x")}
    graph = convert_graph(dsk, ["a", "b"])
    assert all(graph.plain)
    assert evaluated(graph)[0][0] == index


def test_lists_that_a_task_may_change_are_new_in_each_call() -> None:
    def grown(items: list[int]) -> list[int]:
        items.append(1)
        return items

    items: list[int] = []
    graph = convert_graph({"a": (grown, items), "b": (grown, items)}, ["a", "b"])
    assert evaluated(graph) == ([1], [1])
    assert items == []


def test_items_that_many_tasks_take_are_kept_apart() -> None:
    dsk: dict[Any, Any] = {"all": (dict, [[i, [i]] for i in range(5)])}
    dsk.update({("one", i): (operator.getitem, "all", i) for i in range(5)})
    dsk["sum"] = (list, [("one", i) for i in range(5)])
    graph = check(dsk, "sum")
    assert "take_item" in {f.__name__ for f in graph.functions}
    graph = check(dsk, ["sum", "all"])  # who wants it whole gets it whole
    assert "take_item" not in {f.__name__ for f in graph.functions}


def test_keys_are_found_by_their_text() -> None:
    graph = convert_graph({("x", 0): (abs, -1), "y": (abs, ("x", 0))}, "y")
    assert graph.keys() == ["('x', 0)", "y"]
    assert find_key(graph, "('x', 0)") == 0
    assert find_key(graph, "z") is None
    assert near_keys(graph, "('x', 1)") == ["('x', 0)"]


def test_annotations_are_options() -> None:
    with dask.annotate(retries=2, priority=5, resources={"GPU": 1}, workers=["a"]):
        x = da.ones(4, chunks=2)
    options = options_by_key(x.__dask_graph__())
    found = [(o.retries, o.priority, dict(o.resources)) for o in options.values()]
    assert found == [(2, 5, {"GPU": 1})] * 2
    graph = convert_graph(x.__dask_graph__(), list(x.__dask_keys__()), options)
    assert {option.retries for option in graph.options.values()} == {2}


@pytest.mark.parametrize(
    "collection",
    [
        (da.arange(100, chunks=7) + 1)[3:90:2].rechunk(9).sum(),
        da.linalg.svd(da.ones((20, 5), chunks=(5, 5)))[1],
    ],
)
def test_collections(collection: Any) -> None:
    dsk, keys = dict(collection.__dask_graph__()), collection.__dask_keys__()
    got = evaluated(convert_graph(dsk, keys))
    np.testing.assert_allclose(
        np.concatenate([np.ravel(x) for x in got]),
        np.concatenate([np.ravel(x) for x in dask.get(dsk, keys)]),
    )


def test_partials_and_methods_are_one_function() -> None:
    add = partial(operator.add, 1)
    text = "abc"
    dsk: dict[Any, Any] = {("p", i): Task(("p", i), add, i) for i in range(10)}
    dsk.update({("m", i): Task(("m", i), text.count, "a") for i in range(10)})
    graph = check(dsk, list(dsk))
    assert len(graph.functions) == 2


@pytest.mark.parametrize("name", ["composed", "items", "plugins.optional", "plugins.dask.nodes",
                                  "plugins.dask.constants", "plugins.dask.conversion"])  # fmt: skip
def test_examples_in_the_documentation(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"dagsched.{name}"))
    assert results.attempted
    assert not results.failed
