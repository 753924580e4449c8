"""Numbers of a run and of an environment, and their tables.

Responsible for turning what nodes report into the documented fields and for printing them. Numbers
of a run are complete once the run is over; what brokers hold is asked for when it is shown.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagsched.plan import Int32, Int64
    from dagsched.protocol.messages import NodeStats
    from dagsched.run import Run, RunRecord, RunShape
    from dagsched.runenv import RunEnv
    from dagsched.trace import TraceBuilder

BROKER_FIELDS = (
    "id", "host", "received_count", "given_count", "in_bytes", "out_bytes",
    "live_object_count", "live_bytes", "peak_bytes", "spilled_bytes", "withheld_count",
    "shared_bytes", "shared_peak_bytes", "spill_count",
)  # fmt: skip
EXECUTOR_FIELDS = (
    "id", "task_count", "bundle_count", "busy_s", "idle_s", "read_bytes", "written_bytes",
    "restart_count", "rss_peak_bytes",
)  # fmt: skip
TALLY_FIELDS = {
    "node_loss_count": "node_lost",
    "recovery_count": "recovering",
    "recomputed_count": "recomputed",
    "moved_count": "moved",
    "stall_count": "stalled",
}
"""Of a run: how often what happened to it, by the kinds of `RunHappened`."""

LIVE_FIELDS = (
    "live_object_count", "live_bytes", "peak_bytes", "spilled_bytes", "shared_bytes",
    "shared_peak_bytes", "spill_count",
)  # fmt: skip
"""Of a broker: what is true now, not of one run."""


@dataclass(slots=True)
class RunNumbers:
    """All that the numbers of a run are made from; holds neither its values nor its arguments."""

    run_id: str
    state: str
    failed: bool
    record: "RunRecord"
    shape: "RunShape"
    traces: "TraceBuilder"
    indptr: "Int64"
    deps: "Int32"
    _critical_path_s: float | None = field(default=None)

    @classmethod
    def of(cls, run: "Run", state: str) -> "RunNumbers":
        """The numbers of a run that ends, or is, in `state`."""
        graph = run.graph
        failed = state == "failed"
        return cls(
            run.run_id, state, failed, run.record, run.shape, run.traces, graph.indptr, graph.deps
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields ``run``, ``brokers`` and ``executors``."""
        nodes = self.record.node_stats
        return {
            "run": self._run_fields(nodes),
            "brokers": broker_rows(nodes),
            "executors": executor_rows(nodes),
        }

    def _run_fields(self, nodes: "Sequence[NodeStats]") -> dict[str, Any]:
        record = self.record
        tally = record.tally
        ended = record.ended_s
        # A run that a task's failure has stopped: what had not ended was cancelled.
        rest = record.total - record.done_count - self.failed
        return {
            "run_id": self.run_id,
            "state": self.state,
            "task_count": record.total,
            "done_count": record.done_count,
            "failed_count": int(self.failed),
            "cancelled_count": 0 if self.state in ("running", "done") else max(0, rest),
            **retry_fields(nodes, tally),
            "duration_s": (ended - record.submitted_s) if ended is not None else 0.0,
            "critical_path_s": self._critical_path(),
            "subtree_count": len(self.shape.subtree_starts) - 1,
            "bundle_count": sum(node.bundle_count for node in nodes),
            **{name: tally.get(kind, 0) for name, kind in TALLY_FIELDS.items()},
        }

    def _critical_path(self) -> float:
        """Seconds of the longest path through the tasks' measured durations."""
        if self.record.ended_s is None:
            return 0.0
        if self._critical_path_s is None:
            trace = self.traces.build(self.shape.order)
            durations_ns = trace.duration_ns.clip(0).tolist()
            self._critical_path_s = (
                longest_path(self.indptr.tolist(), self.deps.tolist(), durations_ns) / 1e9
            )
        return self._critical_path_s


def retry_fields(nodes: "Sequence[NodeStats]", tally: Mapping[str, int]) -> dict[str, int]:
    """Attempts that came to nothing and were followed by another, by their cause.

    Crashes and timeouts are told to the master at once; exceptions that were tried again on a node
    that is lost since are known only as far as it had told of them.
    """
    crashes, timeouts = tally.get("crash_retries", 0), tally.get("timeout_retries", 0)
    counted = sum(
        node.retry_count - node.crash_retry_count - node.timeout_retry_count for node in nodes
    )
    exceptions = max(counted, tally.get("exception_retries", 0))
    return {
        "retry_count": exceptions + crashes + timeouts,
        "exception_retry_count": exceptions,
        "crash_retry_count": crashes,
        "timeout_retry_count": timeouts,
    }


def run_stats(run: "Run") -> dict[str, Any]:
    """The numbers of a run, as a dict."""
    return RunNumbers.of(run, run.state).as_dict()


def longest_path(indptr: list[int], deps: list[int], durations: list[int]) -> int:
    """Length of the longest path; tasks are in topological order, sources come after them."""
    return max(path_ends(indptr, deps, durations), default=0)


def path_ends(indptr: list[int], deps: list[int], durations: list[int]) -> list[int]:
    """Length of the longest path that ends with each task, the task included."""
    count = len(durations)
    ends = [0] * count
    for task, duration in enumerate(durations):
        start = 0
        for dependency in deps[indptr[task] : indptr[task + 1]]:
            if dependency < count and ends[dependency] > start:
                start = ends[dependency]
        ends[task] = start + duration
    return ends


def broker_rows(nodes: "Sequence[NodeStats]") -> list[dict[str, Any]]:
    """A row a broker."""
    return [{name: getattr(node, name) for name in BROKER_FIELDS} for node in nodes]


def executor_rows(nodes: "Sequence[NodeStats]") -> list[dict[str, Any]]:
    """A row an executor; `node` is its broker's id."""
    return [
        {"node": node.id, **{name: getattr(executor, name) for name in EXECUTOR_FIELDS}}
        for node in nodes
        for executor in node.executors
    ]


def merge_live(rows: list[dict[str, Any]], nodes: "Sequence[NodeStats]") -> None:
    """Put what brokers hold now into the rows of a run that is over."""
    live_by_id = {node.id: node for node in nodes}
    for row in rows:
        node = live_by_id.get(row["id"])
        if node is not None:
            row.update({name: getattr(node, name) for name in LIVE_FIELDS})


def add_idle_nodes(stats: dict[str, Any], nodes: "Sequence[NodeStats]") -> None:
    """Put in the rows of those of the nodes now present that the last run did not need.

    Args:
        stats: of the run; brokers and executors are in order of broker afterwards.
        nodes: all that are there now.
    """
    present = {row["id"] for row in stats["brokers"]}
    idle = [node for node in nodes if node.id not in present]
    if not idle:
        return
    nothing = dict.fromkeys(BROKER_FIELDS[2:], 0)
    executor_nothing = {**dict.fromkeys(EXECUTOR_FIELDS[1:], 0), "busy_s": 0.0}
    executor_nothing["idle_s"] = stats["run"]["duration_s"]
    for node in idle:
        stats["brokers"].append({"id": node.id, "host": node.host, **nothing})
        stats["executors"] += [
            {"node": node.id, "id": executor.id, **executor_nothing} for executor in node.executors
        ]
    stats["brokers"].sort(key=lambda row: row["id"])
    stats["executors"].sort(key=lambda row: row["node"])


def print_stats(env: "RunEnv", file: IO[str] | None = None) -> None:
    """Print the numbers of the environment's last run as tables.

    Args:
        env: the environment.
        file: where to; None: standard output.

    Raises:
        ClosedError: the environment has been closed.
        TypeError: `env` is none.
    """
    if not callable(getattr(env, "stats", None)):
        raise TypeError(f"print_stats needs a RunEnv, not {type(env).__name__}")
    out = sys.stdout if file is None else file
    out.write(format_stats(env.stats()) + "\n")


def format_stats(stats: Mapping[str, Any]) -> str:
    """The tables, as text."""
    run = stats["run"]
    if run is None:
        return "no run yet"
    tasks = (
        f"run {run['run_id']}: {run['state']}, {run['done_count']} of {run['task_count']} tasks, "
        f"{run['failed_count']} failed, {run['cancelled_count']} cancelled, "
        f"{run['retry_count']} retries"
    )
    times = (
        f"duration {run['duration_s']:.6f} s, critical path {run['critical_path_s']:.6f} s, "
        f"{run['subtree_count']} subtrees, {run['bundle_count']} bundles"
    )
    lines = [tasks, times, _troubles(run), ""]
    executors = [
        [
            f"executor {row['id']}", f"node {row['node']}", str(row["task_count"]),
            str(row["bundle_count"]), f"{row['busy_s']:.6f}", f"{row['idle_s']:.6f}",
            str(row["read_bytes"]), str(row["written_bytes"]), str(row["restart_count"]),
        ]
        for row in stats["executors"]
    ]  # fmt: skip
    header = ["executor", "node", "tasks", "bundles", "busy s", "idle s", "bytes read",
              "bytes written", "restarts"]  # fmt: skip
    lines += [*_table(header, executors), ""]
    brokers = [
        [
            f"broker {row['id']}", row["host"], str(row["received_count"]),
            str(row["given_count"]), str(row["in_bytes"]), str(row["out_bytes"]),
            str(row["live_object_count"]), str(row["live_bytes"]), str(row["peak_bytes"]),
            str(row["spilled_bytes"]), str(row["spill_count"]), str(row["withheld_count"]),
        ]
        for row in stats["brokers"]
    ]  # fmt: skip
    header = ["broker", "host", "parts received", "given away", "bytes in", "bytes out",
              "live objects", "live bytes", "peak bytes", "spilled bytes", "spills",
              "withheld bundles"]  # fmt: skip
    return "\n".join([*lines, *_table(header, brokers), *_environment_lines(stats)])


def _troubles(run: Mapping[str, Any]) -> str:
    """What went wrong in a run and was made good."""
    return (
        f"tried again: {run['exception_retry_count']} after an exception, "
        f"{run['crash_retry_count']} after a crash, {run['timeout_retry_count']} after a timeout; "
        f"nodes lost: {run['node_loss_count']}, recoveries: {run['recovery_count']}, tasks "
        f"computed again: {run['recomputed_count']}, objects moved: {run['moved_count']}, "
        f"stalls: {run['stall_count']}"
    )


def _environment_lines(stats: Mapping[str, Any]) -> list[str]:
    """What is true of the environment, not of one run."""
    lines = []
    counters = stats.get("counters")
    if counters:
        counted = ", ".join(f"{name.replace('_', ' ')}: {counters[name]}" for name in counters)
        lines += ["", f"since the environment began: {counted}"]
    store = stats.get("store")
    if store is not None:
        why = f" ({store['reason']})" if store.get("reason") else ""
        lines.append(f"metadata store: {store['state']}{why}")
    return lines


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines with columns of equal width; names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return [line(header), line(["-" * width for width in widths]), *map(line, rows)]
