"""Handles of runs as bytes: what comes back in another process."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dagsched import Config, delayed
from dagsched.entries import Slot
from dagsched.errors import DagschedError
from dagsched.graph import TaskGraph, build_graph
from dagsched.handles import HandleDumper, load_handle, submitted_wall_s
from dagsched.ids import run_base, run_id_of
from dagsched.plan import ClusterShape
from dagsched.planning import make_plan


@dataclass
class Pair:
    left: Any
    right: Any


def graph_of(dag: object) -> tuple[TaskGraph, Any]:
    graph = build_graph(dag, 64)
    return graph, make_plan(graph, ClusterShape(2, 4), Config(), {})


def dumped(dag: object) -> tuple[TaskGraph, Any, bytes]:
    graph, planned = graph_of(dag)
    return graph, planned, HandleDumper(graph, planned.order, 3, 1234.5)()


def some_dag() -> Pair:
    add, name = delayed(sum), delayed(max, name="largest", priority=2)
    leaves = [delayed(abs)(-n) for n in range(30)]
    sums = [add(leaves[n : n + 3]) for n in range(28)]
    return Pair({"a": name(*sums), "b": [sums[3], 7]}, (sums[0], b"c" * 100))


def test_all_but_the_work_comes_back() -> None:
    graph, planned, data = dumped(some_dag())
    handle = load_handle(data, planned.plan)
    loaded = handle.graph
    assert (handle.priority, handle.submitted_wall_s) == (3, 1234.5)
    assert submitted_wall_s(data) == 1234.5
    assert loaded.keys() == graph.keys()
    assert loaded.function_names == graph.function_names
    for name in ("function_of", "indptr", "deps", "outputs", "serials"):
        assert np.array_equal(getattr(loaded, name), getattr(graph, name)), name
        assert getattr(loaded, name).dtype == getattr(graph, name).dtype
    assert loaded.options == graph.options
    assert np.array_equal(handle.shape.order, planned.order)
    assert handle.shape.outputs == planned.plan.outputs.tolist()
    assert np.array_equal(handle.shape.subtree_starts, planned.plan.subtree_starts)
    values = list(range(len(graph.outputs)))
    assert loaded.resolve_outputs(values) == graph.resolve_outputs(values)
    edges = sorted(graph.to_networkx().edges)
    assert sorted(loaded.to_networkx().edges) == edges


def test_without_a_plan_the_result_and_the_names_are_there() -> None:
    graph, _, data = dumped(some_dag())
    handle = load_handle(data, None)
    values = list(range(len(graph.outputs)))
    assert handle.graph.resolve_outputs(values) == graph.resolve_outputs(values)
    assert handle.graph.keys() == graph.keys()
    assert handle.shape.subtree_starts.tolist() == [0, len(graph)]


def test_sources_that_were_asked_for_come_along_and_no_others() -> None:
    wanted, used = delayed(b"w" * 1000), delayed(b"u" * 1000)
    graph, planned, data = dumped([wanted, delayed(len)(used)])
    loaded = load_handle(data, planned.plan).graph
    assert len(loaded.sources) == len(graph.sources)
    kept = [source for source in loaded.sources if source is not None]
    assert kept == [graph.sources[int(o) - len(graph)] for o in graph.outputs if o >= len(graph)]
    assert b"u" * 1000 not in kept


def test_a_function_is_known_by_name_only() -> None:
    _, planned, data = dumped(delayed(abs)(-1))
    function = load_handle(data, planned.plan).graph.functions[0]
    assert function.__name__ == "abs"
    with pytest.raises(DagschedError, match="abs is known by its name only"):
        function(1)


def test_what_cannot_travel_is_said_when_it_is_wanted() -> None:
    _, planned, data = dumped([delayed(abs)(-1), threading.Lock()])
    assert data == b""
    assert submitted_wall_s(data) is None
    with pytest.raises(DagschedError, match="holds something that can't travel"):
        load_handle(data, planned.plan)


@pytest.mark.parametrize("data", [b"\0" * 8 + b"no pickle", b"short"])
def test_bytes_that_cannot_be_loaded_say_so(data: bytes) -> None:
    with pytest.raises(DagschedError, match="can't be loaded here"):
        load_handle(data, None)


def test_a_runs_number_says_whose_it_is() -> None:
    assert run_id_of(run_base("00c0ffee") + 12) == "00c0ffee-12"
    assert run_id_of((1 << 62 | run_base("ffffffff")) + 3) == "ffffffff-3"


@pytest.mark.parametrize("kind", [list, tuple])
def test_many_outputs_are_an_array_not_objects(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Slot) -> tuple[Any, ...]:
        raise AssertionError("each output was pickled by itself")

    monkeypatch.setattr(Slot, "__reduce__", refuse)
    _, planned, data = dumped(kind(delayed(abs)(-n) for n in range(500)))
    assert data, "a handle that can't be pickled is empty"
    loaded = load_handle(data, planned.plan).graph
    assert loaded.resolve_outputs(list(range(500))) == kind(range(500))
