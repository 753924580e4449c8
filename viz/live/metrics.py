"""The numbers of an environment in Prometheus' text format.

`README.md` lists all names, and a test compares. Labels are bounded: functions by name up to 50,
nodes and executors by id; never a key.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dagsched.viz.live.scene import Scene
from dagsched.viz.live.snapshot import Surroundings, node_rows
from dagsched.viz.live.totals import EDGES_S

CONTENT_TYPE = CONTENT_TYPE_LATEST

TASK_STATES = ("waiting", "ready", "placed", "running", "done", "failed", "lost")
EXECUTOR_STATES = ("starting", "idle", "busy", "lost")
NODE_STATES = ("starting", "up", "suspected", "drained", "lost")
RUN_STATES = ("done", "failed", "cancelled", "timed_out", "lost")


def exposition(scene: Scene, around: Surroundings, now: float) -> str:
    """All metrics, as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(scene, around, now))
    return generate_latest(registry).decode()


class _Numbers(Collector):
    """The metrics of one moment."""

    def __init__(self, scene: Scene, around: Surroundings, now: float) -> None:
        self._scene = scene
        self._around = around
        self._now = now
        self._nodes = node_rows(scene, around, now)

    def describe(self) -> Iterator[Metric]:
        """Nothing is asked for twice."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        yield from self._tasks()
        yield from self._runs()
        yield self._durations()
        yield from self._processes()
        yield from self._objects()
        yield from self._troubles()
        around = self._around
        labels = {"version": around.dagsched, "rootpath": around.rootpath, "token": around.token}
        build = GaugeMetricFamily("dagsched_build_info", "The environment; 1.", labels=[*labels])
        build.add_metric([*labels.values()], 1)
        yield build
        yield _gauge("dagsched_uptime_seconds", "Since the environment was opened.",
                     self._now - around.opened_s)  # fmt: skip
        yield _gauge("dagsched_store_up", "Whether the journal's store takes what it is given.",
                     float(around.store.get("state") == "up"))  # fmt: skip

    def _tasks(self) -> Iterator[Metric]:
        counts = self._scene.counts
        by_status = {"done": counts.done, "failed": counts.failed}
        yield _counter("dagsched_tasks", "Tasks that ended.", "status", by_status)
        yield CounterMetricFamily(
            "dagsched_task_retries", "Attempts that came to nothing.", counts.retried
        )
        yield CounterMetricFamily(
            "dagsched_tasks_recomputed",
            "Tasks to be computed again, or placed anew.",
            counts.recomputed,
        )
        yield _gauges(
            "dagsched_tasks", "Tasks of runs that go on.", "state", _tasks_by_state(self._scene)
        )
        yield _gauge("dagsched_tasks_per_second", "Tasks that ended, over the last 5 s.",
                     self._scene.rates.per_second(self._now, 5.0))  # fmt: skip

    def _runs(self) -> Iterator[Metric]:
        ended = dict.fromkeys(RUN_STATES, 0) | self._scene.counts.runs_by_state
        yield _counter("dagsched_runs", "Runs that ended.", "status", ended)
        going_on = sum(not run.is_over for run in self._scene.runs.values())
        yield _gauge("dagsched_runs_active", "Runs that go on.", going_on)

    def _durations(self) -> Metric:
        family = HistogramMetricFamily(
            "dagsched_task_duration_seconds", "How long tasks took.", labels=["function"]
        )
        edges = [*map(str, EDGES_S), "+Inf"]
        for label, counts, sum_s in self._scene.durations.rows(self._scene.names.texts):
            family.add_metric([label], list(zip(edges, counts, strict=True)), sum_s)
        return family

    def _processes(self) -> Iterator[Metric]:
        nodes = _gauges("dagsched_nodes", "Nodes by state.", "state",
                        _counted(NODE_STATES, (node["state"] for node in self._nodes)))  # fmt: skip
        yield nodes
        executors = GaugeMetricFamily(
            "dagsched_executors", "Executors by node and state.", labels=["node", "state"]
        )
        busy = GaugeMetricFamily(
            "dagsched_executor_busy_ratio",
            "Busy share of the last 5 s.",
            labels=["node", "executor"],
        )
        rss = GaugeMetricFamily(
            "dagsched_executor_resident_bytes", "Memory in use.", labels=["node", "executor"]
        )
        restarts = CounterMetricFamily(
            "dagsched_executor_restarts", "Processes that were replaced.", labels=["node"]
        )
        for node in self._nodes:
            name, rows = str(node["id"]), node["executors"]
            by_state = _counted(EXECUTOR_STATES, (row["state"] for row in rows))
            for state, count in by_state.items():
                executors.add_metric([name, state], count)
            for row in rows:
                busy.add_metric([name, str(row["id"])], row["busy_share"])
                rss.add_metric([name, str(row["id"])], row["rss_bytes"] or 0)
            restarts.add_metric([name], sum(row["restart_count"] for row in rows))
        yield from (executors, busy, rss, restarts)

    def _objects(self) -> Iterator[Metric]:
        live = GaugeMetricFamily(
            "dagsched_objects_bytes", "Bytes of objects by where they lie.", labels=["node", "kind"]
        )
        for node in self._nodes:
            kinds = ("live_bytes", "shared_bytes", "spilled_bytes")
            for kind in kinds:
                live.add_metric([str(node["id"]), kind.removesuffix("_bytes")], node[kind])
        yield live
        yield self._by_node(GaugeMetricFamily, "dagsched_objects", "Objects.", "live_object_count")
        yield self._by_node(GaugeMetricFamily, "dagsched_shared_limit_bytes",
                            "Most that objects in shared memory may take.",
                            "shared_limit_bytes")  # fmt: skip
        yield self._by_node(
            CounterMetricFamily, "dagsched_spills", "Objects moved to files.", "spill_count"
        )
        received = "Bytes of objects that came from other nodes."
        yield self._by_node(
            CounterMetricFamily, "dagsched_transfer_received_bytes", received, "in_bytes"
        )
        sent = "Bytes of objects that went to other nodes."
        yield self._by_node(CounterMetricFamily, "dagsched_transfer_sent_bytes", sent, "out_bytes")

    def _by_node(self, family: Any, name: str, text: str, field: str) -> Metric:
        metric: Metric = family(name, text, labels=["node"])
        for node in self._nodes:
            metric.add_metric([str(node["id"])], node[field])  # type: ignore[attr-defined]  # of each family
        return metric

    def _troubles(self) -> Iterator[Metric]:
        counters = self._scene.counters
        for name, text, key in (
            ("dagsched_node_losses", "Nodes that were lost.", "node_losses"),
            ("dagsched_executor_losses", "Executors that died or were killed.", "executor_losses"),
            ("dagsched_recoveries", "Times that nodes were asked what they hold.", "recoveries"),
            ("dagsched_stalls", "Times that nothing moved in a run.", "stalls"),
        ):
            yield CounterMetricFamily(name, text, counters.get(key, 0))


def _tasks_by_state(scene: Scene) -> Mapping[str, int]:
    """Tasks of runs that go on, by the state of their subtrees; what has ended is done."""
    counts = dict.fromkeys(TASK_STATES, 0)
    for run in scene.runs.values():
        if run.is_over:
            continue
        cells = run.patches().cells
        counts["done"] += run.done_count
        open_count = run.task_count - run.done_count
        for cell in cells:
            left = min(open_count, cell["task_count"] - cell["done_count"])
            if cell["state"] not in ("done", "lost"):
                counts[cell["state"]] += left
                open_count -= left
        counts["waiting"] += max(0, open_count)
    return counts


def _counted(words: "tuple[str, ...]", found: Iterator[str]) -> dict[str, int]:
    counts = dict.fromkeys(words, 0)
    for word in found:
        counts[word] += 1
    return counts


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family
