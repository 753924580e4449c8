"""From keys to tasks, and what a wrong key may have meant."""

import time

import numpy as np
import pytest

from dagsched.delayed import delayed
from dagsched.graph import TaskGraph, build_graph
from dagsched.keys import find_key, near_keys, unknown_key


def add(x: int, y: int = 0) -> int:
    return x + y


def multiply(x: int, y: int = 0) -> int:
    return x * y


@pytest.fixture
def graph() -> TaskGraph:
    tasks = [delayed(add)(n) for n in range(20)]
    named = delayed(multiply, name="the-end-9")(tasks[0], tasks[1])
    return build_graph([*tasks, named])


def test_each_key_leads_to_its_task_and_no_other(graph: TaskGraph) -> None:
    keys = graph.keys()
    assert [find_key(graph, key) for key in keys] == list(range(21))


@pytest.mark.parametrize(
    "key", ["", "add", "add-", "add--1", "-", "add-x", "add-99999999999999999999", "add-٣"]
)
def test_what_is_no_key(graph: TaskGraph, key: str) -> None:
    assert find_key(graph, key) is None


def test_the_number_alone_is_not_enough(graph: TaskGraph) -> None:
    serial = int(graph.serials[3])
    assert find_key(graph, f"multiply-{serial}") is None
    assert near_keys(graph, f"multiply-{serial}") == [graph.key(3)]


def test_near_keys_are_of_similar_names_and_near_numbers(graph: TaskGraph) -> None:
    last = int(graph.serials[19])
    assert near_keys(graph, f"ad-{last + 40}")[0] == graph.key(19)
    assert near_keys(graph, "the-end") == [graph.key(20)]
    assert near_keys(graph, "completely else") == []
    assert unknown_key(graph, "completely else") == "'completely else'"


def test_a_million_tasks_are_searched_without_making_a_text_of_each() -> None:
    count = 1_000_000
    graph = build_graph(delayed(add)(1))
    large = TaskGraph(
        functions=[add], function_names=["add"], function_of=np.zeros(count, np.int32),
        indptr=np.zeros(count + 1, np.int64), deps=graph.deps[:0], entries=[], plain=bytearray(),
        sources=[], options={}, serials=np.arange(count, 0, -1), outputs=graph.outputs, shape=None,
        persisted={},
    )  # fmt: skip
    begin = time.perf_counter()
    assert find_key(large, "add-1") == count - 1
    assert near_keys(large, "add-2000000") == ["add-1000000", "add-999999", "add-999998"]
    # Some milliseconds; a text of each task would take ten times as long.
    assert time.perf_counter() - begin < 0.2
