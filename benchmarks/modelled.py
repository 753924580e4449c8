"""The product's own cut and master on a model of nodes: a million tasks on a thousand of them.

The brokers of `simulated` keep arrays of the whole run each, which is 14 MB on a real node and
14 GB for a thousand of them in one process. Here the master is the real one, and hears all that
brokers would tell it; a node is four executors that take ready tasks by rising position, each with
its share of a bundle's cost.
"""

import heapq
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from heft import BANDWIDTH_BYTES_S, LATENCY_S
from simulated import BUNDLE_S, LOCAL_S, TASK_S, Result, plan_of, quiet_config
from workflows import Float64, Graph, Int32

from dagsched.brokers.accounts import PROGRESS_RATE_MAX, PROGRESS_S
from dagsched.brokers.tracing import BUNDLES_MAX
from dagsched.master.core import MasterCore, own_version
from dagsched.master.events import OutputsComplete
from dagsched.plan import ClusterShape, RunPlan
from dagsched.protocol.messages import (
    EXPORTED,
    OUTPUT,
    BrokerHello,
    ExecutorChanged,
    ObjectInfo,
    OutputsReady,
    PlaceSubtree,
    Progress,
    SubtreeDone,
    TaskTrace,
)

MASTER_S = LATENCY_S + LOCAL_S
"""From an executor's end to the master, or back."""

ENDED, ARRIVED, TOLD, PLACED = range(4)


class Model:
    """One run on one cluster.

    Args:
        nodes: how many.
        executors: of each.
    """

    def __init__(self, nodes: int, executors: int) -> None:
        self.config = quiet_config()
        self.result = Result()
        self._shape = ClusterShape(nodes, nodes * executors)
        self._executors = executors
        self._master = MasterCore(self.config)
        self._brokers = list(range(2, 2 + nodes))
        self._events: list[tuple[float, int, int, object]] = []
        self._tie = 0
        self._now = 0.0
        self._is_complete = False
        self._progress_s = max(PROGRESS_S, nodes / PROGRESS_RATE_MAX)

    def run(self, graph: Graph, known_s: Float64 | None) -> Result:
        """Run a graph to its end; what client and master take tasks to last is `known_s`."""
        begun_s = time.thread_time()
        plan, order = plan_of(graph, known_s, self._shape, self.config)
        self.result.cut_s = time.thread_time() - begun_s
        self.result.subtree_count, self.result.is_interlocked = plan.subtree_count, plan.interlocked
        guessed_s = np.full(graph.count, self.config.unknown_task_s)
        self._prepare(graph, guessed_s if known_s is None else known_s, order, plan)
        self._join()
        self.result.master_s = 0.0
        self._tell(lambda: self._master.submit(1, plan, self._now))
        while not self._is_complete:
            self._now, _, kind, what = heapq.heappop(self._events)
            self._do(kind, what)
        self.result.makespan_s = self._now
        return self.result

    def _prepare(self, graph: Graph, known_s: Float64, order: Int32, plan: RunPlan) -> None:
        indptr, deps = plan.indptr, plan.deps
        seconds = graph.seconds[order]
        share = np.minimum(1.0, known_s[order] / self.config.bundle_s)
        self._is_bundle_end = np.diff(np.floor(np.cumsum(share)), prepend=-1.0) > 0
        self._lasting = (seconds + TASK_S + BUNDLE_S * share).tolist()
        sizes = graph.size_bytes[order]
        self._moved_s = (LATENCY_S + sizes / BANDWIDTH_BYTES_S).tolist()
        self._sizes, self._flags = sizes.astype(np.int64), plan.flags
        self._indptr, self._deps = indptr.tolist(), deps.tolist()
        by_dep = np.argsort(deps, kind="stable")
        owners = np.repeat(np.arange(graph.count, dtype=np.int32), np.diff(indptr))
        self._dependents = owners[by_dep].tolist()
        counts = np.bincount(deps, minlength=graph.count)
        self._dependents_from = np.concatenate(([0], np.cumsum(counts))).tolist()
        self._waits = np.diff(indptr).tolist()
        self._ready_s = [0.0] * graph.count
        self._end_s = [-1.0] * graph.count
        self._node_of = [-1] * graph.count
        self._subtree_of = [0] * graph.count
        self._left: dict[int, list[int]] = {}  # tasks left of a subtree, lo, hi, attempt
        self._idle = dict.fromkeys(self._brokers, self._executors)
        self._queues: dict[int, list[int]] = {broker: [] for broker in self._brokers}
        self._done = dict.fromkeys(self._brokers, 0)
        self._told_s = dict.fromkeys(self._brokers, 0.0)

    def _join(self) -> None:
        wanted = [
            (broker, "h", tuple(range(10_000 * broker, 10_000 * broker + self._executors)))
            for broker in self._brokers
        ]
        self._master.set_nodes(wanted, 0.0)
        for broker, _, executors in wanted:
            hello = BrokerHello(broker, broker, "h", str(broker), own_version())
            self._master.receive(broker, hello, (), 0.0)
            for executor in executors:
                self._master.receive(broker, ExecutorChanged(executor, 1, 0), (), 0.0)
        self._tell(lambda: None)

    # --- master -----------------------------------------------------------------------------------

    def _at(self, when_s: float, kind: int, what: object) -> None:
        self._tie += 1
        heapq.heappush(self._events, (when_s, self._tie, kind, what))

    def _tell(self, push: Callable[[], None]) -> None:
        begun_s = time.thread_time()
        push()
        actions = self._master.take_actions()
        self._master.next_timer()
        self.result.master_s += time.thread_time() - begun_s
        for broker, parcels in actions.to_brokers.items():
            placed = [p.message for p in parcels if isinstance(p.message, PlaceSubtree)]
            if placed:
                self._at(self._now + MASTER_S, PLACED, (broker, placed))
        self._is_complete |= any(isinstance(event, OutputsComplete) for event in actions.events)

    def _heard(self, broker: int, parcels: Sequence[tuple[Any, Any]]) -> None:
        def push() -> None:
            for message, frames in parcels:
                self._master.receive(broker, message, frames, self._now)

        self._tell(push)

    # --- nodes ------------------------------------------------------------------------------------

    def _do(self, kind: int, what: Any) -> None:
        if kind == ENDED:
            self._end(what)
        elif kind == ARRIVED:
            broker = self._node_of[what]
            heapq.heappush(self._queues[broker], what)
            self._begin(broker)
        elif kind == TOLD:
            self._heard(*what)
        else:
            broker, placed = what
            for message in placed:
                self._place(broker, message)
            self._begin(broker)

    def _place(self, broker: int, message: PlaceSubtree) -> None:
        lo, hi = message.lo, message.hi
        self._left[message.subtree] = [hi - lo, lo, hi, message.attempt]
        for task in range(lo, hi):
            self._node_of[task], self._subtree_of[task] = broker, message.subtree
            if self._waits[task] < self._indptr[task + 1] - self._indptr[task]:
                for dep in self._deps[self._indptr[task] : self._indptr[task + 1]]:
                    if self._end_s[dep] >= 0.0:
                        self._note_arrival(dep, task)
            if not self._waits[task]:
                self._at(max(self._now, self._ready_s[task]), ARRIVED, task)

    def _note_arrival(self, dep: int, task: int) -> None:
        moved_s = self._moved_s[dep] if self._node_of[dep] != self._node_of[task] else 0.0
        self._ready_s[task] = max(self._ready_s[task], self._end_s[dep] + moved_s)

    def _begin(self, broker: int) -> None:
        queue = self._queues[broker]
        while queue and self._idle[broker]:
            self._idle[broker] -= 1
            task = heapq.heappop(queue)
            self._at(self._now + self._lasting[task], ENDED, task)

    def _end(self, task: int) -> None:
        broker = self._node_of[task]
        self._end_s[task] = self._now
        self._idle[broker] += 1
        first, last = self._dependents_from[task], self._dependents_from[task + 1]
        for other in self._dependents[first:last]:
            self._waits[other] -= 1
            if self._node_of[other] >= 0:
                self._note_arrival(task, other)
                if not self._waits[other]:
                    self._at(self._ready_s[other], ARRIVED, other)
        self._begin(broker)
        self._report(broker, task)

    def _report(self, broker: int, task: int) -> None:
        """What the broker tells: times of each bundle with a subtree's end, outputs, progress."""
        parcels = []
        left = self._left[self._subtree_of[task]]
        left[0] -= 1
        self._done[broker] += 1
        if self._flags[task] & OUTPUT:
            info = ObjectInfo(task, 1, int(self._sizes[task]))
            parcels.append((OutputsReady(1, 1, [info]), [b""]))
        if not left[0]:
            _, lo, hi, attempt = left
            bundles = int(self._is_bundle_end[lo:hi].sum())
            self.result.bundle_count += bundles
            position = np.array([lo], np.int32).tobytes()
            row = np.array([1, 1, 0, 0]).tobytes()
            trace = (TaskTrace(1, 10_000 * broker, 1), [position, bytes(16), row, b""])
            parcels += [trace] * (self._executors * -(-bundles // BUNDLES_MAX))
            firsts = np.flatnonzero(self._flags[lo:hi] & EXPORTED).astype(np.int32) + np.int32(lo)
            frames = [firsts.tobytes(), self._sizes[firsts].tobytes()]
            parcels.append((SubtreeDone(1, 1, self._subtree_of[task], attempt, ()), frames))
        if self._now - self._told_s[broker] >= self._progress_s:
            self._told_s[broker] = self._now
            parcels.append((Progress(1, self._done[broker]), ()))
        if parcels:
            self._at(self._now + MASTER_S, TOLD, (broker, parcels))
