"""Cuts that are used again: when they are, when they aren't, and how many are kept."""

from collections.abc import Iterator

import numpy as np
import pytest

from dagsched import cuts as module
from dagsched.config import Config
from dagsched.cuts import DRIFT_MAX, SHORT_S, TASKS_MIN, CutMemory
from dagsched.graph import TaskGraph, build_graph
from dagsched.partition import Cut, cut_graph
from dagsched.plan import ClusterShape
from dagsched.planning import make_plan
from tests import graphs

CONFIG = Config()
TWO_NODES = ClusterShape(2, 4)
SHORT = 2e-6


@pytest.fixture
def memory() -> CutMemory:
    return CutMemory(CONFIG)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tasks each graph had that was cut anew."""
    counts: list[int] = []

    def counted(indptr: np.ndarray, *args: object) -> Cut:
        counts.append(len(indptr) - 1)
        return cut_graph(indptr, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "cut_graph", counted)
    return counts


def tree(leaf_count: int = 2_000) -> TaskGraph:
    return build_graph(graphs.tree(leaf_count)[0])


def cut(
    memory: CutMemory, graph: TaskGraph, seconds: float = SHORT, shape: ClusterShape = TWO_NODES
) -> Cut:
    each = [seconds] * len(graph.functions)
    return memory.cut(graph.indptr, graph.deps, graph.function_of, each, shape)


def anew(
    graph: TaskGraph, seconds: float = SHORT, shape: ClusterShape = TWO_NODES
) -> tuple[list[int], list[int]]:
    weights_s = np.full(len(graph), seconds)
    found = cut_graph(graph.indptr, graph.deps, weights_s, shape, CONFIG)
    return found.order.tolist(), found.subtree_starts.tolist()


def test_a_graph_of_the_same_shape_is_not_cut_again(memory: CutMemory, made: list[int]) -> None:
    first = cut(memory, tree())
    again = cut(memory, tree())
    assert again is first
    assert (first.order.tolist(), first.subtree_starts.tolist()) == anew(tree())
    assert made == [len(tree())]
    assert memory.reused_count == 1


def test_plans_with_a_memory_are_those_without(made: list[int]) -> None:
    memory = CutMemory(CONFIG)
    graph = tree()
    functions = make_plan(graph, TWO_NODES, CONFIG, {}).plan.functions
    estimates = {function.digest: SHORT for function in functions}
    expected = make_plan(graph, TWO_NODES, CONFIG, estimates)
    for _ in range(2):
        found = make_plan(tree(), TWO_NODES, CONFIG, estimates, memory)
        assert found.order.tolist() == expected.order.tolist()
        for name in ("subtree_starts", "indptr", "deps", "function_of", "flags", "level_starts"):
            ours, theirs = getattr(found.plan, name), getattr(expected.plan, name)
            assert ours.tolist() == theirs.tolist(), name
        assert found.plan.chunks == expected.plan.chunks
    assert memory.reused_count == 1
    assert made == [len(graph)]


def test_what_differs_is_cut_by_itself(memory: CutMemory) -> None:
    """One task more, one edge elsewhere, one call of another function, another cluster."""
    graph = tree()
    moved = graph.deps.copy()
    edge = int(graph.indptr[-1]) - 1
    moved[edge] -= 1
    functions = graph.function_of.copy()
    functions[0] = 1 - functions[0]
    seconds = [SHORT, 2 * SHORT]
    inputs = [
        (graph.indptr, graph.deps, graph.function_of, seconds, TWO_NODES),
        (graph.indptr, moved, graph.function_of, seconds, TWO_NODES),
        (graph.indptr, graph.deps, functions, seconds, TWO_NODES),
        (graph.indptr, graph.deps, graph.function_of, seconds, ClusterShape(2, 6)),
        (graph.indptr, graph.deps, graph.function_of, seconds, ClusterShape(3, 4)),
        (graph.indptr[:-1], graph.deps[:-2], graph.function_of[:-1], seconds, TWO_NODES),
    ]
    for given in inputs:
        memory.cut(*given)
    assert memory.reused_count == 0
    for number, given in enumerate(inputs, 1):
        indptr, deps, function_of, each, shape = given
        weights_s = np.array(each)[function_of]
        expected = cut_graph(indptr, deps, weights_s, shape, CONFIG)
        assert memory.cut(*given).order.tolist() == expected.order.tolist()
        assert memory.reused_count == number


@pytest.mark.parametrize("factor", [0.99 / DRIFT_MAX, 1.01 * DRIFT_MAX])
def test_estimates_that_have_moved_far_ask_for_a_new_cut(
    memory: CutMemory, made: list[int], factor: float
) -> None:
    cut(memory, tree())
    cut(memory, tree(), SHORT * factor)
    cut(memory, tree(), SHORT * factor)
    assert len(made) == 2
    assert memory.reused_count == 1


@pytest.mark.parametrize("factor", [1.01 / DRIFT_MAX, 0.99 * DRIFT_MAX])
def test_estimates_are_compared_with_those_of_the_cut(
    memory: CutMemory, made: list[int], factor: float
) -> None:
    """Small steps don't add up unnoticed."""
    cut(memory, tree())
    cut(memory, tree(), SHORT * factor)
    assert len(made) == 1
    cut(memory, tree(), SHORT * factor * factor)
    assert len(made) == 2


def test_one_function_that_takes_longer_is_enough(memory: CutMemory, made: list[int]) -> None:
    graph = tree()
    for seconds in ([SHORT, SHORT], [SHORT, 3 * SHORT], [SHORT, 3 * SHORT]):
        memory.cut(graph.indptr, graph.deps, graph.function_of, seconds, TWO_NODES)
    assert len(made) == 2


def test_long_tasks_are_always_cut_by_the_newest_estimates(
    memory: CutMemory, made: list[int]
) -> None:
    for _ in range(2):
        cut(memory, tree(), 1.01 * SHORT_S)
    assert len(made) == 2
    for _ in range(2):
        cut(memory, tree(), 0.99 * SHORT_S)
    assert len(made) == 3


def test_small_graphs_are_not_kept(memory: CutMemory, made: list[int]) -> None:
    small = build_graph(graphs.wide(TASKS_MIN - 1)[0])
    for _ in range(2):
        cut(memory, small)
    assert len(made) == 2
    assert cut(memory, build_graph([])).order.tolist() == []


def test_the_cut_not_used_for_longest_goes(made: list[int]) -> None:
    first, second, third = (build_graph(graphs.chain(1_000 + number)[0]) for number in range(3))
    memory = CutMemory(CONFIG, tasks_max=2_010)
    cut(memory, first)
    cut(memory, second)
    cut(memory, first)  # used again, so it is the other that goes
    cut(memory, third)
    assert made == [len(first), len(second), len(third)]
    cut(memory, first)
    assert len(made) == 3
    cut(memory, second)
    assert len(made) == 4


def test_a_graph_beyond_the_bound_is_not_kept_and_displaces_nothing(made: list[int]) -> None:
    memory = CutMemory(CONFIG, tasks_max=2_000)
    small, large = build_graph(graphs.chain(1_500)[0]), build_graph(graphs.chain(2_100)[0])
    for graph in (small, large, large, small):
        cut(memory, graph)
    assert made == [len(small), len(large), len(large)]


def test_what_is_kept_can_not_be_changed(memory: CutMemory) -> None:
    kept = cut(memory, tree())
    for array in (kept.order, kept.subtree_starts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
