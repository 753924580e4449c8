"""From a graph to a plan."""

import pickle
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagsched import serialize
from dagsched.brokers.code import RunCode, Special
from dagsched.config import Config
from dagsched.delayed import delayed
from dagsched.entries import fill
from dagsched.errors import SerializationError
from dagsched.graph import TaskGraph, build_graph
from dagsched.plan import ClusterShape, ConstantSource, RefSource, RunPlan
from dagsched.planning import PlannedRun, make_plan
from dagsched.protocol.messages import (
    CHUNK_TASKS,
    EXPORTED,
    META,
    OUTPUT,
    PERSISTED,
    REFERENCED,
    SOLO,
    TaskOptions,
)
from dagsched.ref import Ref
from tests import graphs
from tests.graphs import f, g

ONE_NODE = ClusterShape(1, 2)
TWO_NODES = ClusterShape(2, 4)
CONFIG = Config()


def planned(dag: Any, shape: ClusterShape = ONE_NODE, minimum: int = 65_536) -> PlannedRun:
    return make_plan(build_graph(dag, minimum), shape, CONFIG, {})


def evaluated(graph: TaskGraph, run: PlannedRun) -> Any:
    """Runs a plan from its pickles, dependencies first."""
    plan, count = run.plan, run.plan.task_count
    code = RunCode()
    for number, chunk in enumerate(plan.chunks):
        code.add_chunk(number, chunk)
    functions = [pickle.loads(data) for data in plan.function_pickles]
    entries = code.entries_of(range(count))
    values: list[Any] = [None] * count + list(graph.sources)
    # Interlocked subtrees wait for each other, so the order of positions need not do.
    for position in np.argsort(run.order).tolist():
        needed = plan.deps[plan.indptr[position] : plan.indptr[position + 1]].tolist()
        entry = entries[position]
        entry = entry.make() if isinstance(entry, Special) else entry
        args, kwargs = fill(entry, [values[number] for number in needed])
        values[position] = functions[plan.function_of[position]](*args, **kwargs)
    return graph.resolve_outputs([values[output] for output in plan.outputs.tolist()])


SHAPES = {
    "straight": lambda: graphs.straight([1] * 6**4),
    "cross": graphs.cross,
    "wide": lambda: graphs.wide(3000),
    "chain": lambda: graphs.chain(1000),
    "tree": lambda: graphs.tree(700),
    "ladder": lambda: graphs.ladder(40),
    "fan in": lambda: graphs.fan_in(500),
    "fan out": lambda: graphs.fan_out(500),
    "butterfly": lambda: graphs.butterfly(64),
    "layered": lambda: graphs.layered(7),
}


@pytest.mark.parametrize("shape", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_plan_gives_what_the_graph_gives(name: str, shape: ClusterShape) -> None:
    dag, expected = SHAPES[name]()
    graph = build_graph(dag)
    run = make_plan(graph, shape, CONFIG, {})
    assert sorted(run.order.tolist()) == list(range(len(graph)))
    assert evaluated(graph, run) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_random_graphs(seed: int, nodes: int) -> None:
    dag, expected = graphs.layered(seed, 6, 20)
    graph = build_graph(dag)
    run = make_plan(graph, ClusterShape(nodes, 2 * nodes), CONFIG, {})
    assert evaluated(graph, run) == expected
    check_against_graph(graph, run)


def check_against_graph(graph: TaskGraph, run: PlannedRun) -> None:
    """Each position says of its task what the graph says, and flags are those by definition."""
    plan, order, count = run.plan, run.order.tolist(), len(graph)
    position_of = {task: position for position, task in enumerate(order)}
    position_of.update((count + s, count + s) for s in range(len(graph.sources)))
    starts = plan.subtree_starts.tolist()
    subtree_of = [sum(start <= position for start in starts[1:]) for position in range(count)]
    exported = set()
    for position, task in enumerate(order):
        needed = plan.deps[plan.indptr[position] : plan.indptr[position + 1]].tolist()
        assert needed == [position_of[number] for number in graph.dependencies(task).tolist()]
        assert plan.function_of[position] == graph.function_of[task]
        exported.update(
            number
            for number in needed
            if number < count and subtree_of[number] != subtree_of[position]
        )
    assert np.flatnonzero(plan.flags & EXPORTED).tolist() == sorted(exported)
    outputs = [position_of[output] for output in graph.outputs.tolist()]
    assert plan.outputs.tolist() == outputs
    assert np.flatnonzero(plan.flags & OUTPUT).tolist() == sorted(set(outputs))


@pytest.mark.parametrize("name", ["wide", "tree", "butterfly"])
def test_values_that_leave_their_subtree_are_exported(name: str) -> None:
    graph = build_graph(SHAPES[name]()[0])
    run = make_plan(graph, TWO_NODES, CONFIG, {})
    assert run.plan.subtree_count > 1
    check_against_graph(graph, run)
    assert bool(np.any(run.plan.flags & EXPORTED)) == (name != "wide")


def test_flags_of_tasks_that_asked_for_something() -> None:
    plain = delayed(f)(1)
    kept = delayed(f, persist=True)(2)
    late = delayed(f, timeout=5, retries=2, priority=-3)(3)
    array = np.zeros(1000)
    gather = delayed(graphs.gathered, meta=True)(kept, array, Ref(1, 4, 99))
    run = planned([gather, delayed(g)(plain, late)], minimum=1000)
    place = dict(zip(run.order.tolist(), range(5), strict=True))  # positions by graph id
    by_task = {
        name: int(run.plan.flags[place[task]])
        for task, name in enumerate(["kept", "gather", "plain", "late", "sum"])
    }
    assert by_task == {
        "kept": PERSISTED | REFERENCED,
        "gather": META | SOLO | OUTPUT,
        "plain": 0,
        "late": SOLO,
        "sum": OUTPUT,
    }
    assert run.plan.flags[5:].tolist() == [REFERENCED, REFERENCED]
    late_place = place[3]
    assert run.plan.options == {late_place: TaskOptions(late_place, 2, 5.0, -3, CONFIG.crash_limit)}


def test_sources() -> None:
    array = np.arange(1000)
    run = planned([delayed(f)(array), delayed(f)([Ref(2, 7, 123), array])], minimum=1000)
    constant, reference = run.plan.sources
    assert isinstance(constant, ConstantSource)
    assert bytes(constant.data) == bytes(serialize.dump_constant(array))
    assert reference == RefSource(2, 7, 123)
    assert run.plan.deps.tolist() == [2, 3, 2]
    assert run.plan.outputs.tolist() == [0, 1]


def test_an_output_may_be_a_kept_value() -> None:
    node = delayed(f)(1)
    graph = build_graph([node], kept={node: Ref(1, 0)})
    plan = make_plan(graph, ONE_NODE, CONFIG, {}).plan
    assert (plan.task_count, plan.outputs.tolist(), plan.flags.tolist()) == (0, [0], [OUTPUT])
    assert plan.chunks == []
    assert plan.subtree_starts.tolist()[-1] == 0


def test_chunks_are_of_64_positions() -> None:
    count = 3 * CHUNK_TASKS + 1
    run = planned(graphs.wide(count)[0])
    assert [pickle.loads(chunk) for chunk in run.plan.chunks] == [
        [(index,) for index in run.order[start : start + CHUNK_TASKS].tolist()]
        for start in range(0, count, CHUNK_TASKS)
    ]
    only_values, _ = graphs.chain(2 * CHUNK_TASKS)
    assert [pickle.loads(chunk) for chunk in planned(only_values).plan.chunks] == [
        [(0,)] + [None] * (CHUNK_TASKS - 1),
        [None] * CHUNK_TASKS,
    ]


def test_no_task_sees_what_another_did_to_a_shared_constant() -> None:
    shared: list[int] = []

    def appended(items: list[int], more: int) -> list[int]:
        items.append(more)
        return items

    dag = [delayed(appended)(shared, index) for index in range(3)]
    graph = build_graph(dag)
    run = make_plan(graph, ONE_NODE, CONFIG, {})
    assert evaluated(graph, run) == [[0], [1], [2]]
    assert shared == []


def test_measured_durations_are_known_by_digest() -> None:
    graph = build_graph(delayed(g)(delayed(f)(1), 2))
    first = make_plan(graph, ONE_NODE, CONFIG, {}).plan
    assert [(info.index, info.name, info.seconds) for info in first.functions] == [
        (0, "f", None),
        (1, "g", None),
    ]
    digests = [info.digest for info in first.functions]
    assert [len(digest) for digest in digests] == [16, 16]
    again = make_plan(graph, ONE_NODE, CONFIG, {digests[1]: 2.5}).plan
    assert [(info.digest, info.seconds) for info in again.functions] == [
        (digests[0], None),
        (digests[1], 2.5),
    ]


def test_durations_decide_where_a_graph_is_cut() -> None:
    light, heavy = delayed(f), delayed(graphs.total)
    graph = build_graph([light(i) for i in range(400)] + [heavy(i) for i in range(8)])
    functions = make_plan(graph, TWO_NODES, CONFIG, {}).plan.functions
    seconds = {functions[0].digest: 1e-6, functions[1].digest: 1.0}
    plan = make_plan(graph, TWO_NODES, CONFIG, seconds).plan
    weights = np.where(plan.function_of == 0, 1e-6, 1.0)
    parts = np.add.reduceat(weights, plan.subtree_starts[:-1])
    assert plan.subtree_count > 2
    assert parts.max() < 2.5


def test_the_same_graph_gives_the_same_plan() -> None:
    graph = build_graph(graphs.tree(100)[0])
    first, second = (make_plan(graph, TWO_NODES, CONFIG, {}) for _ in range(2))
    assert first.plan.chunks == second.plan.chunks
    assert first.order.tolist() == second.order.tolist()


# What can't travel.


def test_an_argument_that_can_not_travel_is_named() -> None:
    nodes = [delayed(f)(index) for index in range(100)]
    nodes.append(delayed(graphs.total)(1, {"x": [threading.Lock()]}))
    with pytest.raises(SerializationError, match=nodes[-1].key) as caught:
        planned(nodes)
    assert caught.value.path == "args[1]['x'][0]"


def test_a_keyword_argument_that_can_not_travel_is_named() -> None:
    node = delayed(graphs.total)(nodes=[threading.Lock()])
    with pytest.raises(SerializationError, match=node.key) as caught:
        planned(node)
    assert "nodes" in caught.value.path


def test_a_function_that_can_not_travel_is_named() -> None:
    lock = threading.Lock()

    def locked() -> bool:
        return lock.locked()

    node = delayed(locked)()
    with pytest.raises(SerializationError, match=f"the function of task {node.key} can't travel"):
        planned([delayed(f)(1), node])


def test_a_constant_that_can_not_travel_is_named() -> None:
    node = delayed(f)([threading.Lock()] * 1000)
    with pytest.raises(SerializationError, match=f"a constant of task {node.key} can't travel"):
        planned([delayed(f)(1), node], minimum=1000)


def test_very_large_constants_are_warned_of_by_size_and_task() -> None:
    node = delayed(f)(np.zeros(1_500_000))
    with pytest.warns(UserWarning, match=rf"constant of 12 MB \(ndarray, used by task {node.key}"):
        planned([delayed(f)(1), node])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned(delayed(f)(np.zeros(1_000_000)))


def test_nothing_at_all() -> None:
    run = planned([])
    assert isinstance(run.plan, RunPlan)
    assert (run.plan.task_count, run.plan.chunks, run.plan.functions) == (0, [], [])
    assert run.order.tolist() == []


def test_a_crash_limit_of_its_own_and_a_bundle_of_its_own_if_it_may_not_crash_again() -> None:
    tasks = [delayed(f, crash_limit=limit)(limit) for limit in (None, 1, 5)]
    run = planned([*tasks, delayed(f, retries=1)(7)])
    place = dict(zip(run.order.tolist(), range(4), strict=True))
    limits = {position: options.crash_limit for position, options in run.plan.options.items()}
    assert limits == {place[1]: 1, place[2]: 5, place[3]: CONFIG.crash_limit}
    assert np.flatnonzero(run.plan.flags & SOLO).tolist() == [place[1]]
