"""What is recorded of runs of real processes: bundles, transfers, files; and that it can be off."""

from pathlib import Path

import numpy as np
import pytest

import dagsched.viz
from dagsched import Delayed, NodeEnv, RunEnv, addprocs, delayed, submit, visualize
from dagsched.config import Config
from dagsched.run import Run

BLOCK = 3_000_000
TABLES = ("tasks", "bundles", "transfers", "spills")


def block(number: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    return np.full(BLOCK, number, np.uint8)


def first_of(*blocks: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> list[int]:
    return [int(each[0]) for each in blocks]


def sizes(*lists: list[int]) -> int:
    return sum(map(len, lists))


def crossing(count: int) -> Delayed:
    """Each block is needed with others from all over, so that no cut has all of them together."""
    blocks = [delayed(block)(number) for number in range(count)]
    pairs = [delayed(first_of)(blocks[i], blocks[(i * 7 + 3) % count]) for i in range(count)]
    return delayed(sizes)(*pairs)


@pytest.fixture
def two_nodes() -> list[NodeEnv]:
    ids = addprocs(6)
    return [NodeEnv(ids[0], "127.0.0.1", ids[1:3]), NodeEnv(ids[3], "127.0.0.1", ids[4:6])]


def finished(env: RunEnv, count: int = 20) -> Run:
    run = submit(env, crossing(count))
    assert run.result(100) == 2 * count
    return run


def test_all_that_two_nodes_exchanged_and_moved_is_recorded(
    two_nodes: list[NodeEnv], tmp_path: Path
) -> None:
    config = Config(store_bytes_max=8 * BLOCK)
    with RunEnv(nodes=two_nodes, metastore="memory://", config=config) as env:
        run = finished(env)
        trace, stats = run.trace(), run.stats()
        run.save(tmp_path / "x.dagsched")
        summary = visualize(run, kind="summary").summary
    transfers, spills, bundles = trace.transfers, trace.spills, trace.bundles
    counted = {row["id"]: row["in_bytes"] for row in stats["brokers"]}
    for node, in_bytes in counted.items():
        assert transfers["size_bytes"][transfers["target"] == node].sum() == in_bytes
    assert max(counted.values()) > BLOCK
    assert (transfers["asked_ns"] <= transfers["start_ns"]).all()
    assert (transfers["start_ns"] <= transfers["end_ns"]).all()
    is_task = transfers["task"] >= 0
    if not any(event.kind == "recomputed" for event in trace.events):
        # Else work may have moved away from a node that had been asked for its values.
        assert (trace.node[transfers["task"][is_task]] == transfers["source"][is_task]).all()
    assert (trace.end_ns[transfers["task"][is_task]] <= transfers["end_ns"][is_task]).all()
    for row in stats["brokers"]:
        here = spills["kind"][spills["node"] == row["id"]]
        assert (here == 0).sum() == row["spill_count"]
    assert (spills["kind"] == 0).any()
    for row in stats["executors"]:
        here = bundles["executor"] == row["id"]
        assert bundles["task_count"][here].sum() == row["task_count"]
        for name in ("read_bytes", "written_bytes"):
            assert bundles[name][here].sum() == row[name]
    # Inputs of a task are the results of those that it needs.
    table = trace.table(keys=True)
    takers = np.flatnonzero([key.startswith("first_of-") for key in table["key"]])
    assert (table["in_bytes"][takers] > 2 * BLOCK).all()
    assert (table["size_bytes"][table["in_bytes"] == 0] > BLOCK).all()
    loaded = dagsched.viz.load(tmp_path / "x.dagsched").trace
    for name in TABLES:
        for column, values in trace.table(name).items():
            assert values.tolist() == loaded.table(name)[column].tolist(), (name, column)
    assert summary.course is not None
    assert sum(route.size_bytes for route in summary.course.routes) == sum(counted.values())


def test_only_so_many_rows_are_kept(two_nodes: list[NodeEnv]) -> None:
    with RunEnv(nodes=two_nodes, metastore="memory://", config=Config(trace_rows_max=4)) as env:
        run = finished(env)
        trace, drawing = run.trace(), visualize(run, kind="gantt")
    assert f"1 of {trace.transfers.every} transfers is kept" in drawing._repr_html_()
    for name in ("bundles", "transfers"):
        rows = getattr(trace, name)
        assert 0 < len(rows) <= 4
        assert rows.every > 1
        assert rows.every & (rows.every - 1) == 0
    assert trace.ran.all(), "of tasks all are kept"


def test_without_recording_a_run_is_the_same_but_nothing_is_known_of_it(
    two_nodes: list[NodeEnv],
) -> None:
    with RunEnv(nodes=two_nodes, metastore="memory://", config=Config(trace=False)) as env:
        run = finished(env)
        trace, stats = run.trace(), run.stats()
        assert visualize(run, kind="summary").summary.course is not None
    assert not trace.ran.any()
    assert [len(getattr(trace, name)) for name in ("bundles", "transfers", "spills")] == [0, 0, 0]
    assert sum(row["task_count"] for row in stats["executors"]) == trace.task_count
    assert sum(row["busy_s"] for row in stats["executors"]) > 0
