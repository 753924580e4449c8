"""What pictures say: marks, ranks, nodes, boxes."""

import numpy as np
import pytest

from dagsched.trace import TraceBuilder
from dagsched.viz.model import BOXES_MAX, NodeLine, State, Tasks, ranks
from dagsched.viz.picture import make_picture
from tests.unit.viz.builders import GraphBuilder, chain, run_in_turns, straight, wide


def test_a_graph_not_run_has_waiting_marks_and_no_nodes() -> None:
    picture = make_picture(wide(2))
    assert [mark.key for mark in picture.marks] == ["root-0", "square-1", "square-2", "total-3"]
    assert {mark.state for mark in picture.marks} == {State.WAITING}
    assert {mark.rank for mark in picture.marks} == {-1}
    assert picture.edges == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert (picture.task_count, picture.edge_count) == (4, 4)
    assert picture.nodes == []
    assert not picture.has_run
    assert not picture.is_folded


def test_a_run_gives_place_order_and_time() -> None:
    tasks = wide(2)
    picture = make_picture(tasks, run_in_turns(tasks, {2: [3], 5: [6]}))
    assert [mark.node for mark in picture.marks] == [2, 5, 2, 5]
    assert [mark.executor for mark in picture.marks] == [3, 6, 3, 6]
    assert [mark.rank for mark in picture.marks] == [0, 1, 2, 3]
    assert [mark.duration_ns for mark in picture.marks] == [500] * 4
    assert picture.nodes == [
        NodeLine(2, "", (3,), 2, 1000 / 3500),
        NodeLine(5, "", (6,), 2, 1000 / 3500),
    ]


def test_hosts_add_names_and_idle_executors_to_the_legend() -> None:
    tasks = wide(2)
    trace = run_in_turns(tasks, {2: [3]})
    picture = make_picture(tasks, trace, hosts={2: ("east", [3, 4]), 5: ("west", [6])})
    assert picture.nodes == [
        NodeLine(2, "east", (3, 4), 4, 2000 / (2 * 3500)),
        NodeLine(5, "west", (6,), 0, 0.0),
    ]


def test_ranks_are_without_gaps_and_shared_by_equal_starts() -> None:
    assert ranks(np.array([50, -1, 10, 50, 20])) == [2, -1, 0, 2, 1]
    assert ranks(np.array([-1])) == [-1]


def test_failed_waiting_and_repeated_tasks_are_told_apart() -> None:
    tasks = chain(3)
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0]), np.array([1, 2]))
    builder.add(2, 3, 2, np.array([0]), np.array([5, 9]))
    picture = make_picture(tasks, builder.build(np.arange(3), failed=[1]))
    assert [mark.state for mark in picture.marks] == [State.DONE, State.FAILED, State.WAITING]
    assert [mark.executions for mark in picture.marks] == [2, 0, 0]
    assert picture.marks[0].start_ns == 5


def test_constants_and_references_are_not_drawn() -> None:
    tasks = Tasks(["f"], np.array([0, 0]), np.array([0, 1, 3]), np.array([2, 0, 3]), str)
    assert make_picture(tasks).edges == [(0, 1)]


def test_ids_that_are_not_topological_are_refused() -> None:
    tasks = Tasks(["f"], np.array([0, 0]), np.array([0, 1, 1]), np.array([1]), str)
    with pytest.raises(ValueError, match="task 0 depends on task 1, which is not before it"):
        make_picture(tasks)


def test_a_trace_of_another_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="a trace of 3 tasks for a graph of 4"):
        make_picture(wide(2), run_in_turns(chain(3), {2: [3]}))


def test_the_acceptance_tree_has_its_counts() -> None:
    picture = make_picture(straight())
    assert (picture.task_count, picture.edge_count) == (1036, 1035)
    assert (len(picture.marks), len(picture.edges)) == (1036, 1035)


def test_large_graphs_become_boxes_that_hold_every_task_once() -> None:
    picture = make_picture(wide(9_998))
    assert len(picture.marks) == BOXES_MAX
    assert sum(mark.task_count for mark in picture.marks) == 10_000
    assert picture.is_folded
    assert picture.edge_count == 2 * 9_998
    assert picture.marks[0].detail == "square x 83, root x 1"
    assert picture.marks[0].key == "part 0"
    # The first box holds the root and the last the sum; each other has an edge from and to them.
    last = BOXES_MAX - 1
    inner = set(range(1, last))
    expected = {(0, box) for box in inner} | {(box, last) for box in inner} | {(0, last)}
    assert set(picture.edges) == expected


def test_boxes_are_pieces_of_the_subtrees_where_those_are_known() -> None:
    tasks = chain(1_200)
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.arange(600), np.arange(601))
    builder.add(5, 6, 1, np.arange(600, 1_080), np.arange(600, 1_081))
    trace = builder.build(np.arange(1_200), subtree_starts=np.array([0, 600, 1_200]))
    picture = make_picture(tasks, trace, tasks_max=100)
    keys = [mark.key for mark in picture.marks]
    assert keys[0] == "subtree 0, 1 of 30"
    assert keys[-1] == "subtree 1, 30 of 30"
    assert {mark.task_count for mark in picture.marks} == {20}
    assert [mark.node for mark in picture.marks] == [2] * 30 + [5] * 24 + [-1] * 6
    assert [mark.rank for mark in picture.marks] == [*range(54), *[-1] * 6]
    assert picture.marks[0].duration_ns == 20
    assert picture.edges == [(box, box + 1) for box in range(59)]


def test_subtrees_that_wait_for_each_other_get_edges_back() -> None:
    # Even tasks of a chain are one subtree, odd ones the other.
    order = np.concatenate([np.arange(0, 1_200, 2), np.arange(1, 1_200, 2)])
    trace = TraceBuilder().build(order, subtree_starts=np.array([0, 600, 1_200]))
    picture = make_picture(chain(1_200), trace, tasks_max=100)
    assert [mark.key for mark in picture.marks[:3]] == [
        "subtree 0, 1 of 30",
        "subtree 1, 1 of 30",
        "subtree 0, 2 of 30",
    ]
    assert picture.edges == [(box, box + 1) for box in range(59)]
    assert picture.back_edges == [(box + 1, box) for box in range(0, 59, 2)]


def test_boxes_stand_below_what_they_wait_for() -> None:
    # The last task is of the first subtree, most of which has lower ids than the second.
    graph = GraphBuilder()
    for _ in range(1_199):
        graph.call("any")
    graph.call("last", 1_190)
    order = np.concatenate([np.arange(599), [1_199], np.arange(599, 1_199)])
    trace = TraceBuilder().build(order, subtree_starts=np.array([0, 600, 1_200]))
    picture = make_picture(graph.tasks(), trace, tasks_max=100)
    ((source, target),) = picture.edges
    assert picture.marks[source].key == "subtree 1, 30 of 30"
    assert picture.marks[target].key == "subtree 0, 30 of 30"
    assert list(picture.back_edges) == []


def test_a_knot_is_drawn_as_fewer_boxes() -> None:
    rng = np.random.default_rng(5)
    graph = GraphBuilder()
    for task in range(3_000):
        graph.call("any", *rng.integers(0, task, min(task, 3)).tolist())
    picture = make_picture(graph.tasks())
    assert len(picture.marks) == 15
    assert sum(mark.task_count for mark in picture.marks) == 3_000
    assert picture.box_of is not None
    assert np.bincount(picture.box_of).tolist() == [mark.task_count for mark in picture.marks]


def test_graphs_are_drawn_task_by_task_up_to_a_limit() -> None:
    assert len(make_picture(chain(2_000)).marks) == 2_000
    assert make_picture(chain(2_001)).is_folded


def test_a_box_is_failed_if_any_of_its_tasks_is() -> None:
    trace = TraceBuilder().build(np.arange(1_000), failed=[999])
    picture = make_picture(chain(1_000), trace, tasks_max=100)
    assert [mark.state for mark in picture.marks].count(State.FAILED) == 1
    assert picture.marks[-1].state is State.FAILED
