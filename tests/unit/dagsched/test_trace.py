"""What executors stamped, put together by graph ids."""

import doctest
import sys
from dataclasses import replace

import numpy as np
import pytest

import dagsched.trace
from dagsched.trace import Execution, Repeat, TaskNames, Trace, TraceBuilder


def test_stamps_become_starts_and_ends_by_graph_id() -> None:
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0, 1], np.int32), np.array([10, 15, 40], np.int64))
    builder.add(5, 6, 1, np.array([3], np.int32), np.array([20, 21], np.int64))
    trace = builder.build(np.array([3, 2, 1, 0]))
    assert trace.start_ns.tolist() == [20, -1, 15, 10]
    assert trace.end_ns.tolist() == [21, -1, 40, 15]
    assert trace.executor.tolist() == [6, -1, 3, 3]
    assert trace.node.tolist() == [5, -1, 2, 2]
    assert trace.executions.tolist() == [1, 0, 1, 1]
    assert trace.duration_ns.tolist() == [1, -1, 25, 5]
    assert trace.ran.tolist() == [True, False, True, True]
    assert trace.span_ns == 30
    assert trace.task_count == 4
    assert trace.part.tolist() == []


def test_frames_are_read_as_little_endian_arrays() -> None:
    builder = TraceBuilder()
    positions = np.array([1, 0], "<i4").tobytes()
    stamps = memoryview(np.array([5, 7, 11], "<i8").tobytes())
    builder.add(2, 3, 1, positions, stamps)
    trace = builder.build(np.array([0, 1]))
    assert trace.start_ns.tolist() == [7, 5]
    assert trace.end_ns.tolist() == [11, 7]


def test_nothing_ran_in_a_gap() -> None:
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0, 2, -1, 1], np.int32), np.array([5, 6, 7, 20, 24], np.int64))
    trace = builder.build(np.array([0, 1, 2, 3]))
    assert trace.start_ns.tolist() == [5, 20, 6, -1]
    assert trace.end_ns.tolist() == [6, 24, 7, -1]
    assert trace.executions.tolist() == [1, 1, 1, 0]
    assert builder.executions_of(1) == [(2, 3, 1, 20, 24)]
    assert builder.executions_of(3) == []


def test_the_highest_attempt_wins_whatever_the_order_of_arrival() -> None:
    builder = TraceBuilder()
    builder.add(5, 6, 2, np.array([0]), np.array([100, 200]))
    builder.add(2, 3, 1, np.array([0]), np.array([10, 20]))
    trace = builder.build(np.array([0]))
    assert trace.start_ns.tolist() == [100]
    assert trace.node.tolist() == [5]
    assert trace.attempt.tolist() == [2]
    assert trace.executions.tolist() == [2]


def test_failed_and_subtrees_are_told_by_graph_id() -> None:
    builder = TraceBuilder()
    trace = builder.build(np.array([2, 0, 1, 3]), failed=[0, 3], subtree_starts=np.array([0, 1, 4]))
    assert trace.failed == (2, 3)
    assert trace.part.tolist() == [1, 1, 0, 1]
    assert trace.span_ns == 0


def test_a_wrong_number_of_stamps_is_refused() -> None:
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0, 1]), np.array([1, 2]))
    with pytest.raises(ValueError, match="2 positions need 3 stamps, not 2"):
        builder.build(np.array([0, 1]))


def test_the_example_is_true() -> None:
    assert doctest.testmod(dagsched.trace).attempted == 9
    assert doctest.testmod(dagsched.trace).failed == 0


def test_seconds_of_some_tasks() -> None:
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0, 2]), np.array([0, 10**9, 3 * 10**9]))
    builder.add(2, 4, 2, np.array([0]), np.array([0, 5 * 10**8]))
    assert builder.seconds_of([0]) == 1.5
    assert builder.seconds_of([1]) == 0
    assert builder.seconds_of([0, 2]) == 3.5


def named_trace() -> Trace:
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0, 1]), np.array([10, 15, 40]))
    names = TaskNames(["load", "sum"], np.array([0, 1, 1]), np.array([7, 8, 9]), {1: "total"})
    trace = builder.build(np.arange(3), failed=[1], subtree_starts=np.array([0, 2, 3]))
    return replace(trace, names=names)


def test_the_table_has_a_row_a_task() -> None:
    table = named_trace().table(keys=True)
    assert {name: column.tolist() for name, column in table.items()} == {
        "task": [0, 1, 2],
        "function": [0, 1, 1],
        "start_ns": [10, 15, -1],
        "end_ns": [15, 40, -1],
        "duration_ns": [5, 25, -1],
        "node": [2, 2, -1],
        "executor": [3, 3, -1],
        "attempt": [1, 1, 0],
        "executions": [1, 1, 0],
        "failed": [False, True, False],
        "subtree": [0, 0, 1],
        "bundle": [-1, -1, -1],
        "in_bytes": [-1, -1, -1],
        "size_bytes": [-1, -1, -1],
        "key": ["load-7", "total-8", "sum-9"],
    }
    assert "key" not in named_trace().table()


def test_tables_of_other_packages_have_names_of_functions() -> None:
    arrow, frame = named_trace().to_arrow(keys=True), named_trace().to_pandas()
    assert arrow.column("function").to_pylist() == ["load", "sum", "sum"]
    assert arrow.column("key").to_pylist() == ["load-7", "total-8", "sum-9"]
    assert list(frame["function"]) == ["load", "sum", "sum"]
    assert list(frame["duration_ns"]) == [5, 25, -1]


@pytest.mark.parametrize(("package", "method"), [("pyarrow", "to_arrow"), ("pandas", "to_pandas")])
def test_without_the_package_the_error_names_it(monkeypatch, package: str, method: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install {package}\); table\(\) gives the same"):
        getattr(named_trace(), method)()


def test_executions_before_the_last_are_kept() -> None:
    builder = TraceBuilder()
    builder.add(5, 6, 2, np.array([1]), np.array([50, 60]))
    builder.add(2, 3, 1, np.array([0, -1, 1]), np.array([10, 20, 30, 40]))
    order = np.array([1, 0])
    assert builder.repeats(order) == [Repeat(0, Execution(2, 3, 1, 30, 40))]
    assert builder.build(order).start_ns.tolist() == [50, 10]
    assert TraceBuilder().repeats(order) == []
