"""Graphs that front ends have made: what is dropped, what refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dagsched.delayed import delayed
from dagsched.errors import GraphError
from dagsched.graph import TaskGraph, build_graph


def small() -> TaskGraph:
    return build_graph(delayed(max)(delayed(abs)(-3), delayed(abs)(-4)))


def with_functions(before: list[Any], after: list[Any]) -> TaskGraph:
    """The graph of `small` with functions that no task calls before and after its own."""
    graph = small()
    return replace(
        graph,
        functions=[*before, *graph.functions, *after],
        function_names=[
            *["before"] * len(before), *graph.function_names, *["after"] * len(after)
        ],
        function_of=graph.function_of + np.int32(len(before)),
    )  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [([min], []), ([], [min]), ([min] * 5, [open])])
def test_functions_that_no_task_calls_are_left_out(before: list[Any], after: list[Any]) -> None:
    graph = build_graph(with_functions(before, after))
    assert list(graph.functions) == [abs, max]
    assert list(graph.function_names) == ["abs", "max"]
    assert graph.function_of.tolist() == [0, 0, 1]
    assert graph.function_of.dtype == np.int32


def test_a_graph_without_them_is_taken_as_it_is() -> None:
    graph = small()
    assert build_graph(graph) is graph


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"function_names": ["abs"]}, "2 functions, but 1 names"),
        ({"function_of": np.array([0, 0, 2], np.int32)}, "a function outside its 2: 0 to 2"),
        ({"function_of": np.array([-1, 0, 1], np.int32)}, "a function outside its 2: -1 to 1"),
        ({"entries": [(-3,)]}, "3 tasks, but entries of 1"),
        ({"plain": bytearray(2)}, "3 tasks, but plain of 2"),
        ({"serials": np.arange(4)}, "3 tasks, but serials of 4"),
        ({"own_keys": ["a"]}, "3 tasks, but own_keys of 1"),
        ({"indptr": np.array([0, 0, 2])}, "3 tasks, but indptr of 2"),
        ({"indptr": np.array([0, 0, 0, 3])}, "doesn't rise from 0 to its 2 dependencies"),
        ({"indptr": np.array([0, 1, 0, 2])}, "doesn't rise from 0 to its 2 dependencies"),
        ({"deps": np.array([0, 3], np.int32)}, "a dependency outside its 3: 0 to 3"),
        ({"outputs": np.array([-1], np.int32)}, "an output outside its 3: -1 to -1"),
        ({"deps": np.array([0, 2], np.int32)}, "task 2 of the graph needs task 2"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(GraphError, match=text):
        build_graph(replace(small(), **changed))


def test_what_a_source_is_needed_for_is_no_later_task() -> None:
    graph = build_graph(delayed(len)("x" * 100), 10)
    assert (graph.deps.tolist(), build_graph(graph)) == ([1], graph)
