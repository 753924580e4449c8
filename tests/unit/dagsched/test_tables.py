"""Tables of bundles, transfers and spills: what is made of rows, and which of many are kept."""

import doctest
from dataclasses import replace

import numpy as np
import pytest

import dagsched.tables
from dagsched.master.events import NodeTraced, TracesArrived
from dagsched.tables import Rows, Sample, input_bytes, thinned
from dagsched.trace import TaskNames, Trace, TraceBuilder

MANY = 1_000


def longs(*rows: int) -> bytes:
    return np.array(rows, "<i8").tobytes()


def told(
    positions: list[int],
    stamps: list[int],
    bundles: list[int],
    objects: list[int],
    executor: int = 3,
    attempt: int = 1,
) -> TracesArrived:
    ids = np.array(positions, "<i4").tobytes()
    return TracesArrived(
        7, 2, executor, attempt, ids, longs(*stamps), longs(*bundles), longs(*objects)
    )


def columns(rows: Rows) -> dict[str, list[int]]:
    return {name: column.tolist() for name, column in rows.columns.items()}


def test_examples() -> None:
    result = doctest.testmod(dagsched.tables)
    assert (result.failed, result.attempted > 5) == (0, True)


def test_bundles_are_cut_out_of_what_an_executor_ran() -> None:
    builder = TraceBuilder()
    # Bundle 8 is a lane with a gap inside; bundles 7 and 9 stand around it.
    builder.take(
        told([0, 1, -1, 2, -1, 3, -1, 4], [10, 11, 15, 20, 22, 30, 33, 40, 44],
             [7, 2, 5, 6, 8, 3, 0, 1, 9, 1, 70, 80], []), MANY,
    )  # fmt: skip
    builder.take(told([5], [5, 9], [3, 1, 0, 0], [], executor=4), MANY)
    order = np.array([5, 4, 3, 2, 1, 0])
    bundle, rows = builder.bundles(order)
    assert bundle.tolist() == [3, 9, 8, 8, 7, 7]
    assert columns(rows) == {
        "node": [2, 2, 2, 2],
        "executor": [4, 3, 3, 3],
        "bundle": [3, 7, 8, 9],
        "attempt": [1, 1, 1, 1],
        "start_ns": [5, 10, 20, 40],
        "end_ns": [9, 15, 33, 44],
        "task_count": [1, 2, 2, 1],
        "read_bytes": [0, 5, 0, 70],
        "written_bytes": [0, 6, 1, 80],
    }
    assert rows.every == 1


def test_a_task_that_ran_twice_is_in_the_bundle_of_its_last_attempt() -> None:
    builder = TraceBuilder()
    builder.take(told([0], [50, 60], [9, 1, 0, 0], [0, 1, 8], attempt=2), MANY)
    builder.take(told([0], [10, 20], [4, 1, 0, 0], [0, 1, 7]), MANY)
    bundle, rows = builder.bundles(np.array([0]))
    assert bundle.tolist() == [9]
    assert rows["bundle"].tolist() == [4, 9]
    assert builder.sizes(np.array([0])).tolist() == [8]


def test_without_bundles_there_is_no_table_and_no_column() -> None:
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0]), np.array([1, 2]))
    bundle, rows = builder.bundles(np.array([0]))
    assert (len(bundle), len(rows)) == (0, 0)
    assert builder.sizes(np.array([0])).tolist() == [-1]


def test_values_of_a_block_share_its_bytes() -> None:
    builder = TraceBuilder()
    builder.take(told([0, 1, 2, 3], [1, 2, 3, 4, 5], [7, 4, 0, 0], [1, 3, 101, 0, 1, 9]), MANY)
    assert builder.sizes(np.array([4, 3, 2, 1, 0])).tolist() == [-1, 33, 33, 35, 9]


def test_bytes_of_inputs_are_those_known() -> None:
    indptr = np.array([0, 0, 0, 0, 2, 3, 6])
    deps = np.array([0, 1, 2, 0, 1, 2])
    sizes = np.array([5, 7, -1, -1, -1, -1])
    assert input_bytes(indptr, deps, sizes).tolist() == [0, 0, 0, 12, -1, 12]


def test_transfers_and_spills_have_graph_ids_and_come_by_their_end() -> None:
    builder = TraceBuilder()
    transfers = longs(1, 2, 5, 40, -1, 9, 9, 4, 1, 5, 800, 3, 4, 6)
    builder.take(NodeTraced(7, 2, True, transfers, longs(0, 1, 0, 90, 1, 2)), MANY)
    builder.take(NodeTraced(7, 5, False, longs(0, 1, 2, 30, 1, 7, 7), b""), MANY)
    order = np.array([3, 2, 1, 0])  # position 4 is a constant's
    assert columns(builder.transfers(order)) == {
        "task": [-1, -1, 2],
        "value_count": [1, 1, 2],
        "source": [5, 2, 5],
        "target": [2, 5, 2],
        "size_bytes": [800, 30, 40],
        "asked_ns": [3, 1, -1],
        "start_ns": [4, 7, 9],
        "end_ns": [6, 7, 9],
    }
    assert columns(builder.spills(order)) == {
        "task": [3], "value_count": [1], "node": [2], "kind": [0], "size_bytes": [90],
        "start_ns": [1], "end_ns": [2],
    }  # fmt: skip


@pytest.mark.parametrize("piece", [1, 3, 7, 100])
def test_of_too_many_rows_every_kth_is_kept_however_they_come(piece: int) -> None:
    everything = np.arange(1_000).reshape(-1, 1)
    sample = Sample(1, rows_max=100)
    for begin in range(0, 1_000, piece):
        sample.add(everything[begin : begin + piece])
        assert len(sample.taken()[0]) <= 100
    rows, every = sample.taken()
    assert (rows.ravel().tolist(), every) == (list(range(0, 1_000, 16)), 16)
    rows, every = thinned(everything, 100)
    assert (rows.ravel().tolist(), every) == (list(range(0, 1_000, 16)), 16)


def test_the_limit_is_of_each_table_and_said() -> None:
    builder = TraceBuilder()
    for number in range(10):
        builder.take(told([number], [number, number + 1], [number, 1, 0, 0], []), 4)
        builder.take(NodeTraced(7, 2, True, longs(number, 1, 5, 40, 1, 2, number), b""), 4)
    order = np.arange(10)
    _, bundles = builder.bundles(order)
    transfers = builder.transfers(order)
    assert (bundles.every, bundles["bundle"].tolist()) == (4, [0, 4, 8])
    assert (transfers.every, transfers["task"].tolist()) == (4, [0, 4, 8])
    assert transfers.words("transfers") == "1 of 4 transfers is kept, counted as they were told"
    assert builder.spills(order).words("spills") == ""


def whole() -> Trace:
    builder = TraceBuilder()
    builder.take(told([0, 1], [1, 2, 3], [7, 2, 0, 0], [0, 1, 9]), MANY)
    files = longs(1, 1, 2, 90, 1, 2)
    builder.take(NodeTraced(7, 2, True, longs(5, 1, 5, 40, 1, 2, 3), files), MANY)
    order = np.arange(2)
    names = TaskNames(["load"], np.array([0, 0]), np.array([7, 8]))
    bundle, bundles = builder.bundles(order)
    return replace(
        builder.build(order), names=names, bundle=bundle, bundles=bundles,
        transfers=builder.transfers(order), spills=builder.spills(order),
    )  # fmt: skip


def test_each_table_can_be_had_for_other_packages() -> None:
    trace = whole()
    assert trace.table("transfers", keys=True)["key"].tolist() == [""]
    assert trace.table("spills", keys=True)["key"].tolist() == ["load-8"]
    assert "key" not in trace.table("bundles", keys=True)
    assert "key" not in trace.spills.columns, "the trace's own columns are as they were"
    with pytest.raises(KeyError):
        trace.table("losses")
    arrow, frame = trace.to_arrow("spills", keys=True), trace.to_pandas("spills")
    assert arrow.column("kind").to_pylist() == ["read"]
    assert arrow.column("key").to_pylist() == ["load-8"]
    assert list(frame["kind"]) == ["read"]
    assert trace.to_arrow("bundles").column("task_count").to_pylist() == [2]
