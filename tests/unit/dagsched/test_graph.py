"""From calls to the compact graph."""

import dataclasses
import gc
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagsched.delayed import Delayed, delayed
from dagsched.entries import Slot, fill
from dagsched.errors import CycleError, GraphError
from dagsched.graph import TaskGraph, build_graph
from dagsched.ref import Ref
from tests import graphs
from tests.graphs import FakeRef, f, g, serial


def evaluated(graph: TaskGraph) -> Any:
    """The value of a graph by its own arrays and entries, without a scheduler."""
    count = len(graph)
    values: list[Any] = [None] * count + [
        source.value if isinstance(source, FakeRef) else source for source in graph.sources
    ]
    for task in range(count):
        needed = graph.dependencies(task).tolist()
        assert len(set(needed)) == len(needed)
        assert all(number < task or number >= count for number in needed)
        args, kwargs = fill(graph.entries[task], [values[number] for number in needed])
        values[task] = graph.functions[graph.function_of[task]](*args, **kwargs)
    return graph.resolve_outputs([values[output] for output in graph.outputs])


def counts(graph: TaskGraph) -> tuple[int, int, int]:
    """Tasks, edges between tasks, depth."""
    count = len(graph)
    depth = [0] * count
    for task in range(count):
        inner = [number for number in graph.dependencies(task).tolist() if number < count]
        depth[task] = 1 + max((depth[number] for number in inner), default=0)
    return count, int(np.sum(graph.deps < count)), max(depth, default=0)


def last_entry(dag: Any) -> tuple[Any, list[int], bool]:
    """Entry, dependencies and plainness of the last task."""
    graph = build_graph(dag, 1000)
    return graph.entries[-1], graph.dependencies(len(graph) - 1).tolist(), bool(graph.plain[-1])


# Acceptance graphs.


def test_straight() -> None:
    dag, expected = graphs.straight([1] * 6**4)
    graph = build_graph(dag)
    assert counts(graph) == (1036, 1035, 8)
    assert graph.function_names == ["f", "g", "h"]
    assert expected == evaluated(graph) == serial(dag) == 1


@pytest.mark.parametrize("size", [0, 1, 5, 12, 6**3 + 1])
def test_straight_needs_a_power_of_six(size: int) -> None:
    with pytest.raises(ValueError, match="power of 6"):
        graphs.straight([1] * size)


def test_cross() -> None:
    values = [graphs.cross(rounds)[1] for rounds in range(1, 7)]
    assert values == [19, 26, 35, 47, 63, 84]
    dag, expected = graphs.cross()
    assert counts(build_graph(dag)) == (60, 114, 22)
    assert expected == evaluated(build_graph(dag)) == serial(dag) == 84


def test_sort_to_one_chunk() -> None:
    dag = graphs.sort_graph([Ref(1, index) for index in range(40)])
    assert counts(build_graph(dag)) == (39, 38, 6)


def test_sort_to_forty_chunks() -> None:
    references = [Ref(1, index) for index in range(40)]
    dag = graphs.sort_graph(references, np.linspace(0, 1, 39))
    graph = build_graph(dag)
    assert counts(graph) == (1351, 1580, 10)
    names = [graph.name(task) for task in range(len(graph))]
    assert [names.count(name) for name in ("split_part", "merge", "gathered")] == [760, 590, 1]
    assert graph.meta.tolist() == [1350]
    assert len(graph.sources) == 40
    assert counts(build_graph(graphs.sort_concatenation(references)))[0] == 39


@pytest.mark.parametrize(
    ("total", "chunk_count", "result_count"),
    [(10_007, 40, 1), (10_007, 40, 40), (30, 40, 40), (100, 1, 1), (1_000, 7, 5)],
)
def test_sort_gives_what_numpy_gives(total: int, chunk_count: int, result_count: int) -> None:
    chunks = graphs.sort_inputs(total, chunk_count)
    pairs = serial(graphs.sort_preparation(chunks))
    splitters = graphs.sort_splitters([pair[1] for pair in pairs], result_count)
    result = serial(graphs.sort_graph([pair[0] for pair in pairs], splitters))
    if result_count > 1:
        assert len(result) == len(splitters) + 1
        result = serial(graphs.sort_concatenation(result))
    result = graphs.collected(result)
    assert result.tobytes() == np.sort(graphs.rand(total, 0)).tobytes()


def test_sort_of_equal_values() -> None:
    chunks = [np.full(25, 0.5) for _ in range(40)]
    pairs = serial(graphs.sort_preparation(chunks))
    splitters = graphs.sort_splitters([pair[1] for pair in pairs], 40)
    result = serial(graphs.sort_graph([pair[0] for pair in pairs], splitters))
    assert serial(graphs.sort_concatenation(result)).tolist() == [0.5] * 1000


def test_meta_and_quick_start() -> None:
    for dag, expected in (graphs.meta_graph(), graphs.quick_means(), graphs.quick_sum()):
        np.testing.assert_array_equal(graphs.collected(serial(dag)), expected)
    assert build_graph(graphs.meta_graph()[0]).meta.tolist() == [10]
    dag, expected = graphs.quick_sort(100_000)
    graph = build_graph(dag)
    assert [len(graph), len(graph.sources)] == [7, 4]
    np.testing.assert_array_equal(evaluated(graph), expected)


SHAPES = {
    "wide": lambda: graphs.wide(50),
    "chain": lambda: graphs.chain(500),
    "tree": lambda: graphs.tree(77),
    "ladder": lambda: graphs.ladder(40),
    "fan in": lambda: graphs.fan_in(10_000),
    "fan out": lambda: graphs.fan_out(100_000),
    "butterfly": lambda: graphs.butterfly(64),
    "layered": lambda: graphs.layered(5),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    dag, expected = SHAPES[shape]()
    assert serial(dag) == expected
    assert evaluated(build_graph(dag)) == expected


def test_ids_are_depth_first_in_the_order_of_arguments() -> None:
    leaf = [delayed(f, name=f"leaf{index}")(index) for index in range(4)]
    left, right = delayed(g, name="left")(leaf[0], leaf[1]), delayed(g, name="right")(leaf[2], 1)
    top = delayed(max, name="top")(left, [right, leaf[3]], key=None)
    graph = build_graph(top)
    assert [graph.name(task) for task in range(len(graph))] == [
        "leaf0", "leaf1", "left", "leaf2", "right", "leaf3", "top",
    ]  # fmt: skip
    assert graph.keys()[6] == top.key
    assert graph.serials[6] == top._serial


# Entries.

A, B = delayed(f)(1), delayed(f)(2)
BIG = b"x" * 1000
ARRAY = np.arange(10)


@pytest.mark.parametrize(
    ("dag", "entry", "deps", "plain"),
    [
        (delayed(f)(), (), [], True),
        (delayed(f)(1, "a", None, 2.0), (1, "a", None, 2.0), [], True),
        (delayed(f)(A), None, [0], True),
        (delayed(f)(A, B), None, [0, 1], True),
        (delayed(f)(A, 5), [(None, 5), ((0, 0),)], [0], True),
        (delayed(f)(A, B, A), [(None, None, None), ((0, 0), (1, 1), (2, 0))], [0, 1], True),
        (delayed(f)(1, B, A), [(1, None, None), ((1, 0), (2, 1))], [0, 1], True),
        (delayed(f)((1, "a")), ((1, "a"),), [], True),
        (delayed(f)([1, 2]), ([1, 2],), [], False),
        (delayed(f)((1, [2])), ((1, [2]),), [], False),
        (delayed(f)(k=1), {"args": (), "kwargs": {"k": 1}}, [], True),
        (delayed(f)(A, k=B), {"args": (Slot(0),), "kwargs": {"k": Slot(1)}}, [0, 1], True),
        (delayed(f)([A, [B]], A), {"args": ([Slot(0), [Slot(1)]], Slot(0)), "kwargs": {}}, [0, 1],
         False),
        (delayed(f)([[A], B]), {"args": ([[Slot(0)], Slot(1)],), "kwargs": {}}, [0, 1], False),
        (delayed(f)([B, A], A), {"args": ([Slot(0), Slot(1)], Slot(1)), "kwargs": {}}, [0, 1],
         True),
        (delayed(f)([A, [2]]), {"args": ([Slot(0), [2]],), "kwargs": {}}, [0], False),
        (delayed(f)({"k": {B}}), {"args": ({"k": {Slot(0)}},), "kwargs": {}}, [0], False),
        (delayed(f)(BIG), None, [1], True),
        (delayed(f)(BIG, 1), [(None, 1), ((0, 0),)], [1], True),
        (delayed(f)([BIG, A]), {"args": ([Slot(0), Slot(1)],), "kwargs": {}}, [2, 0], True),
        (delayed(f)(Ref(1, 7), A), None, [2, 0], True),
        (delayed(f)(np.float64(1)), (np.float64(1),), [], True),
        (delayed(f)(f), (f,), [], False),
        (delayed(f)(int), (int,), [], False),
    ],
)  # fmt: skip
def test_entries(dag: Delayed, entry: Any, deps: list[int], plain: bool) -> None:
    assert last_entry(dag) == (entry, deps, plain)


def test_small_arrays_travel_with_their_task() -> None:
    entry, deps, plain = last_entry(delayed(f)(ARRAY))
    assert entry[0] is ARRAY
    assert (deps, plain) == ([], False)


def test_what_is_inside_dataclasses_is_found() -> None:
    @dataclasses.dataclass
    class Pair:
        first: Any
        second: Any

    entry, deps, plain = last_entry(delayed(f)(Pair(1, [A])))
    assert entry["args"][0] == Pair(1, [Slot(0)])
    assert (deps, plain) == ([0], False)


def test_delayed_values_with_tasks_inside() -> None:
    graph = build_graph(delayed({"a": [A, 1]}))
    assert graph.function_names == ["f", "identity"]
    assert evaluated(graph) == {"a": [2, 1]}


# Sources.


def test_large_constants_are_sources_once() -> None:
    array = np.zeros(200)
    data = bytearray(2000)
    tasks = [delayed(f)(array), delayed(f)([array, data]), delayed(f)("y" * 999), delayed(f)(data)]
    graph = build_graph(tasks, 1000)
    assert [id(source) for source in graph.sources] == [id(array), id(data)]
    assert [graph.dependencies(task).tolist() for task in range(4)] == [[4], [4, 5], [], [5]]
    assert build_graph(tasks).sources == []


def test_long_containers_are_sources() -> None:
    numbers = list(range(200))
    graph = build_graph([delayed(sum)(numbers), delayed(sum)(tuple(numbers[:124]))], 1000)
    assert graph.sources == [numbers]
    assert graph.entries == [None, (tuple(numbers[:124]),)]


def test_an_object_of_several_tasks_is_a_source_for_all_but_the_first() -> None:
    class Model:
        pass

    model, other = Model(), Model()
    graph = build_graph([delayed(f)(model), delayed(g)(model, 2), delayed(g)(other, other)])
    assert graph.entries == [(model,), [(None, 2), ((0, 0),)], (other, other)]
    assert graph.sources == [model]


def test_references_are_sources_by_what_they_refer_to() -> None:
    graph = build_graph([delayed(f)(Ref(1, 2)), delayed(f)([Ref(1, 2), Ref(1, 3)])])
    assert graph.sources == [Ref(1, 2), Ref(1, 3)]
    assert graph.deps.tolist() == [2, 2, 3]


def test_kept_values_take_the_place_of_tasks() -> None:
    first = delayed(f)(1)
    kept = delayed(f)(first)
    unused = delayed(f)(first)
    top = delayed(g)(kept, kept)
    graph = build_graph([top, kept], kept={unused: Ref(3, 1), kept: Ref(3, 0)})
    assert graph.keys() == [top.key]
    assert graph.sources == [Ref(3, 0)]
    assert graph.deps.tolist() == [1]
    assert graph.outputs.tolist() == [0, 1]
    assert graph.resolve_outputs(["top", "kept"]) == ["top", "kept"]
    same = build_graph(delayed(f)([kept, Ref(3, 0)]), kept={kept: Ref(3, 0)})
    assert same.entries == [{"args": ([Slot(0), Slot(0)],), "kwargs": {}}]
    assert same.deps.tolist() == [1]


# Outputs.


def test_outputs_have_the_shape_that_was_asked_for() -> None:
    reference = Ref(1, 1)
    dag = {"a": [A, (B, A)], "b": 5, "c": reference}
    graph = build_graph(dag)
    assert graph.outputs.tolist() == [0, 1]
    assert graph.resolve_outputs(["x", "y"]) == {"a": ["x", ("y", "x")], "b": 5, "c": reference}
    assert dag == {"a": [A, (B, A)], "b": 5, "c": reference}


@pytest.mark.parametrize("dag", [[], {}, 5, [1, (2,)], None])
def test_graphs_without_tasks(dag: Any) -> None:
    graph = build_graph(dag)
    assert len(graph) == 0
    assert graph.outputs.tolist() == graph.deps.tolist() == []
    assert graph.indptr.tolist() == [0]
    assert graph.resolve_outputs([]) == dag


def test_outputs_that_others_need_and_sets_of_outputs() -> None:
    inner = delayed(f)(1)
    outer = delayed(f)(inner)
    graph = build_graph([outer, inner])
    assert graph.outputs.tolist() == [1, 0]
    order = [delayed(f)(index) for index in range(20)]
    assert build_graph({*order[10:], *order[:10]}).serials.tolist() == [
        node._serial for node in order
    ]


# Functions and options.


def test_a_function_is_one_however_often_it_was_wrapped() -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def up(self, by: int) -> int:
            return by

    one, two = Counter(), Counter()
    tasks = [delayed(c.up)(i) for i in range(3) for c in (one, two)] + [delayed(f)(1)] * 2
    graph = build_graph([*tasks, delayed(f)(2)])
    assert graph.function_names == ["up", "up", "f"]
    assert graph.function_of.tolist() == [0, 1, 0, 1, 0, 1, 2, 2]


def test_options_only_of_tasks_that_have_some() -> None:
    plain, kept = delayed(f)(1), delayed(f, persist=True, name="kept")(2)
    graph = build_graph([plain, kept, delayed(f, retries=0)(3)])
    assert list(graph.options) == [1]
    assert graph.persisted == {1: kept}
    assert graph.key(1) == kept.key
    assert graph.meta.tolist() == []


# Depth and size.


@pytest.mark.slow
def test_a_chain_of_a_million() -> None:
    dag, expected = graphs.chain(1_000_000)
    graph = build_graph(dag)
    assert len(graph) == len(graph.deps) + 1 == expected
    assert graph.deps.tolist() == list(range(expected - 1))


@pytest.mark.slow
def test_deleting_a_chain_of_a_million_leaves_the_process_alive() -> None:
    code = "from tests.graphs import chain\ndag, _ = chain(1_000_000)\ndel dag\nprint('alive')\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=100
    )
    assert done.stdout == b"alive\n"


def test_cost_is_by_task_and_not_by_path() -> None:
    dag, expected = graphs.ladder(2_000)
    start = time.perf_counter()
    graph = build_graph(dag)
    assert time.perf_counter() - start < 1
    assert len(graph) == 6_001
    assert evaluated(graph) == expected


def test_nested_lists_deeper_than_the_stack() -> None:
    value: Any = A
    for _ in range(sys.getrecursionlimit() * 3):
        value = [value]
    graph = build_graph(delayed(f)(value))
    assert len(graph) == 2
    assert graph.deps.tolist() == [0]


def test_garbage_collection_goes_on_afterwards() -> None:
    assert gc.isenabled()
    build_graph(A)
    assert gc.isenabled()
    gc.disable()
    try:
        build_graph(A)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_graph_does_not_change_by_being_built() -> None:
    dag, _ = graphs.cross()
    first, second = build_graph(dag), build_graph(dag)
    assert first.entries == second.entries
    assert first.keys() == second.keys()
    assert first.deps.tolist() == second.deps.tolist()


# Cycles.


def test_a_task_that_depends_on_itself() -> None:
    args: list[Any] = []
    node = delayed(f)(args)
    args.append(node)
    with pytest.raises(CycleError, match=f"{node.key} -> {node.key}") as caught:
        build_graph(node)
    assert caught.value.cycle == (node.key,)


def test_a_longer_cycle_is_named_in_order() -> None:
    args: list[Any] = [1]
    first = delayed(f)(args)
    second = delayed(g)(A, first)
    third = delayed(g)(second, first)
    args.append({"back": third})
    with pytest.raises(CycleError) as caught:
        build_graph(delayed(max)(A, third))
    cycle = caught.value.cycle
    # first -> third is the shortest way round; each depends on the one before.
    assert set(cycle) == {first.key, third.key}
    assert cycle in ((first.key, third.key), (third.key, first.key))


# networkx.


def test_functions_of_one_name_are_one_to_the_reader() -> None:
    squares = [delayed(lambda x, n=n: x * n)(abs_) for n, abs_ in enumerate([delayed(abs)(1)] * 4)]
    graph = build_graph([*squares, delayed(len)([])])
    assert len(graph.functions) == 6
    names = graph.task_names()
    assert sorted(names.functions) == ["<lambda>", "abs", "len"]
    assert [names.function(task) for task in range(len(graph))] == [
        graph.function_names[index] for index in graph.function_of.tolist()
    ]
    assert [names.key(task) for task in range(len(graph))] == graph.keys()


def test_to_networkx() -> None:
    top = delayed(g)(A, Ref(1, 1))
    digraph = build_graph(top).to_networkx()
    assert list(digraph.nodes(data=True)) == [
        (A.key, {"function": f, "name": "f"}),
        (top.key, {"function": g, "name": "g"}),
    ]
    assert list(digraph.edges) == [(A.key, top.key)]


# Any graph at all.


def joined(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return (*args, *sorted(kwargs.items()))


@st.composite
def nested_dags(draw: st.DrawFn) -> Any:
    """Tasks whose arguments are earlier tasks and constants in containers of all kinds."""
    task = delayed(joined)
    nodes: list[Any] = [task(0)]
    leaf = st.deferred(
        lambda: st.one_of(
            st.integers(),
            st.text(max_size=3),
            st.integers(0, 10**9).map(lambda i: nodes[i % len(nodes)]),
        )
    )  # fmt: skip
    argument = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.tuples(inner, inner),
            st.dictionaries(st.sampled_from("xyz"), inner, max_size=2),
        ),
        max_leaves=4,
    )
    for _ in range(draw(st.integers(0, 12))):
        args = draw(st.lists(argument, max_size=3))
        kwargs = draw(st.dictionaries(st.sampled_from(["k", "l"]), argument, max_size=1))
        nodes.append(task(*args, **kwargs))
    return draw(argument)


def test_a_dict_with_keys_of_users_own_types_needs_more_than_plain_pickle() -> None:
    @dataclasses.dataclass(frozen=True)
    class Key:
        number: int

    graph = build_graph(delayed(len)({Key(1): delayed(f)(1), "b": 2}))
    assert bytes(graph.plain) == b"\1\0"
    assert bytes(build_graph(delayed(len)({1: delayed(f)(1), "b": 2})).plain) == b"\1\1"


def test_a_delayed_as_key_of_a_dict_is_an_error() -> None:
    with pytest.raises(GraphError, match="with a Delayed as a key"):
        build_graph(delayed(len)([{delayed(f)(1): 2}]))


@settings(max_examples=200, deadline=None)
@given(nested_dags())
def test_any_graph_gives_what_the_serial_evaluator_gives(dag: Any) -> None:
    assert evaluated(build_graph(dag)) == serial(dag)
