"""Numbers and their tables, from what nodes report."""

import io

import numpy as np
import pytest

from dagsched.protocol.messages import ExecutorStats, NodeStats
from dagsched.run import RunRecord, RunShape
from dagsched.stats import (
    RunNumbers,
    add_idle_nodes,
    broker_rows,
    executor_rows,
    format_stats,
    longest_path,
    merge_live,
    print_stats,
    retry_fields,
)
from dagsched.trace import TraceBuilder

NODES = [
    NodeStats(
        2, "127.0.0.1", received_count=3, given_count=1, in_bytes=10, out_bytes=20,
        live_object_count=4, live_bytes=400, peak_bytes=900, spilled_bytes=7, bundle_count=5,
        retry_count=2, withheld_count=1, shared_bytes=393, shared_peak_bytes=800, spill_count=2,
        executors=[
            ExecutorStats(3, 1003, task_count=6, bundle_count=3, busy_s=0.5, read_bytes=11),
            ExecutorStats(4, 1004, task_count=4, bundle_count=2, busy_s=0.25, written_bytes=12),
        ],
    ),
    NodeStats(5, "far", bundle_count=1, executors=[ExecutorStats(6, 1006, task_count=1)]),
]  # fmt: skip


def make_numbers(state: str = "done", done_count: int = 3) -> RunNumbers:
    """Three tasks: 0 and 1 before 2, the graph's ids in reverse order of position."""
    order = np.array([1, 0, 2], np.int32)
    record = RunRecord(submitted_s=10.0, ended_s=12.5, done_count=done_count, total=3)
    record.node_stats = NODES
    record.tally = {"crash_retries": 1, "node_lost": 1, "recomputed": 40, "placed": 2}
    traces = TraceBuilder()
    traces.add(2, 3, 1, np.array([0, 1], np.int32), np.array([0, 10**9, 4 * 10**9], np.int64))
    traces.add(2, 4, 1, np.array([2], np.int32), np.array([5 * 10**9, 7 * 10**9], np.int64))
    shape = RunShape(order, np.array([0, 2, 3]), [2], ["f"])
    indptr = np.array([0, 0, 0, 2], np.int64)
    deps = np.array([0, 1], np.int32)
    return RunNumbers("e-1", state, state == "failed", record, shape, traces, indptr, deps)


def test_fields_of_a_run_that_is_done() -> None:
    assert make_numbers().as_dict()["run"] == {
        "run_id": "e-1",
        "state": "done",
        "task_count": 3,
        "done_count": 3,
        "failed_count": 0,
        "cancelled_count": 0,
        "retry_count": 3,
        "exception_retry_count": 2,
        "crash_retry_count": 1,
        "timeout_retry_count": 0,
        "duration_s": 2.5,
        "critical_path_s": 5.0,
        "subtree_count": 2,
        "bundle_count": 6,
        "node_loss_count": 1,
        "recovery_count": 0,
        "recomputed_count": 40,
        "moved_count": 0,
        "stall_count": 0,
    }


def test_what_a_failed_run_did_not_do_was_cancelled() -> None:
    run = make_numbers("failed", done_count=1).as_dict()["run"]
    assert (run["done_count"], run["failed_count"], run["cancelled_count"]) == (1, 1, 1)


def test_a_cancelled_run_has_no_failure() -> None:
    run = make_numbers("cancelled", done_count=1).as_dict()["run"]
    assert (run["failed_count"], run["cancelled_count"]) == (0, 2)


def test_rows_of_brokers_and_executors() -> None:
    assert broker_rows(NODES)[0] == {
        "id": 2, "host": "127.0.0.1", "received_count": 3, "given_count": 1, "in_bytes": 10,
        "out_bytes": 20, "live_object_count": 4, "live_bytes": 400, "peak_bytes": 900,
        "spilled_bytes": 7, "withheld_count": 1, "shared_bytes": 393, "shared_peak_bytes": 800,
        "spill_count": 2,
    }  # fmt: skip
    rows = executor_rows(NODES)
    assert [(row["node"], row["id"], row["task_count"]) for row in rows] == [
        (2, 3, 6),
        (2, 4, 4),
        (5, 6, 1),
    ]
    assert rows[0] == {
        "node": 2, "id": 3, "task_count": 6, "bundle_count": 3, "busy_s": 0.5, "idle_s": 0.0,
        "read_bytes": 11, "written_bytes": 0, "restart_count": 0, "rss_peak_bytes": 0,
    }  # fmt: skip


def test_what_brokers_hold_is_as_of_now() -> None:
    rows = broker_rows(NODES)
    merge_live(rows, [NodeStats(2, "127.0.0.1", received_count=99, live_bytes=1)])
    assert (rows[0]["live_object_count"], rows[0]["live_bytes"]) == (0, 1)
    assert rows[0]["received_count"] == 3
    assert rows[1]["live_object_count"] == 0


def test_nodes_that_a_run_did_not_need_are_shown_as_idle() -> None:
    stats = make_numbers().as_dict()
    before = make_numbers().as_dict()
    add_idle_nodes(stats, NODES)
    assert stats == before
    other = NodeStats(
        4, "near", received_count=9, live_bytes=8, executors=[ExecutorStats(9, 1009, task_count=7)]
    )
    add_idle_nodes(stats, [*NODES, other])
    assert [row["id"] for row in stats["brokers"]] == [2, 4, 5]
    assert [row["id"] for row in stats["executors"]] == [3, 4, 9, 6]
    assert stats["brokers"][0] == before["brokers"][0]
    idle_broker, idle_executor = stats["brokers"][1], stats["executors"][2]
    assert idle_broker == {**dict.fromkeys(before["brokers"][0], 0), "id": 4, "host": "near"}
    assert idle_executor == {
        **dict.fromkeys(before["executors"][0], 0), "node": 4, "id": 9, "idle_s": 2.5
    }  # fmt: skip
    merge_live(stats["brokers"], [other])
    assert stats["brokers"][1]["live_bytes"] == 8


def test_longest_path_of_a_chain_a_diamond_and_nothing() -> None:
    assert longest_path([0], [], []) == 0
    assert longest_path([0, 0, 1, 2], [0, 1], [1, 2, 3]) == 6
    # 0 -> 1, 2 -> 3, with a source (id 4) that takes no time.
    assert longest_path([0, 1, 2, 3, 5], [4, 0, 0, 1, 2], [1, 5, 2, 1]) == 7


def test_longest_path_of_a_long_chain_is_linear() -> None:
    count = 100_000
    indptr = [0, *range(count)]
    assert longest_path(indptr, list(range(count - 1)), [1] * count) == count


def test_tables_name_every_process_with_its_numbers() -> None:
    stats = make_numbers().as_dict()
    lines = format_stats(stats).splitlines()
    assert lines[0] == "run e-1: done, 3 of 3 tasks, 0 failed, 0 cancelled, 3 retries"
    assert lines[1] == "duration 2.500000 s, critical path 5.000000 s, 2 subtrees, 6 bundles"
    assert lines[2] == (
        "tried again: 2 after an exception, 1 after a crash, 0 after a timeout; nodes lost: 1, "
        "recoveries: 0, tasks computed again: 40, objects moved: 0, stalls: 0"
    )
    words = [line.split() for line in lines]
    assert ["executor", "3", "node", "2", "6", "3", "0.500000", "0.000000", "11", "0", "0"] in words
    assert ["executor", "6", "node", "5", "1", "0", "0.000000", "0.000000", "0", "0", "0"] in words
    row = ["broker", "2", "127.0.0.1", "3", "1", "10", "20", "4", "400", "900", "7", "2", "1"]
    assert row in words
    assert ["broker", "5", "far", *(["0"] * 10)] in words


def test_retries_after_crashes_are_known_from_the_master_also_of_lost_nodes() -> None:
    nodes = [NodeStats(2, "h", retry_count=5, crash_retry_count=2, timeout_retry_count=1)]
    tally = {"crash_retries": 4, "timeout_retries": 1, "exception_retries": 1}
    assert retry_fields(nodes, tally) == {
        "retry_count": 7,
        "exception_retry_count": 2,
        "crash_retry_count": 4,
        "timeout_retry_count": 1,
    }


def test_counters_and_the_store_of_the_environment_are_shown() -> None:
    stats = make_numbers().as_dict()
    stats["counters"] = {"node_losses": 1, "stalls": 0}
    stats["store"] = {"state": "degraded", "reason": "Connection refused"}
    assert format_stats(stats).splitlines()[-2:] == [
        "since the environment began: node losses: 1, stalls: 0",
        "metadata store: degraded (Connection refused)",
    ]


class FakeEnv:
    def __init__(self, stats: dict[str, object]) -> None:
        self._stats = stats

    def stats(self) -> dict[str, object]:
        return self._stats


def test_printing_goes_to_the_file_given_and_returns_none() -> None:
    out = io.StringIO()
    assert print_stats(FakeEnv(make_numbers().as_dict()), file=out) is None  # type: ignore[arg-type, func-returns-value]
    assert out.getvalue().startswith("run e-1: done")
    assert out.getvalue().endswith("\n")


def test_an_environment_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    print_stats(FakeEnv({"run": None, "brokers": [], "executors": []}))  # type: ignore[arg-type]
    assert capsys.readouterr().out == "no run yet\n"
