"""What an environment keeps of its last run, for pictures of it once nobody holds its handle.

Pure. No argument, result or function of the user's is in it, so that nothing large lives longer
than the user thinks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from dagsched.entries import Entry
    from dagsched.graph import TaskGraph
    from dagsched.protocol.messages import Failure
    from dagsched.run import Run, RunRecord, RunShape
    from dagsched.trace import TraceBuilder

PAST_TASKS_MAX = 1_000_000
"""Of a run of more tasks nothing is kept: some 60 bytes a task would be."""


@dataclass(frozen=True, slots=True)
class PastRun:
    """The parts of a `Run` that `dagsched.history` reads."""

    number: int
    run_id: str
    state: str
    failure: "Failure | None"
    graph: "TaskGraph"
    shape: "RunShape"
    record: "RunRecord"
    traces: "TraceBuilder"

    @classmethod
    def of(cls, run: "Run", state: str) -> "PastRun | None":
        """What is kept of a run that is over, as `state`; None: it is too large."""
        graph = run.graph
        if graph.task_count > PAST_TASKS_MAX:
            return None
        entries = cast("Sequence[Entry]", range(graph.task_count))  # they are only counted
        sources = [None] * len(graph.sources)
        bare = replace(
            graph, functions=(), entries=entries, sources=sources, shape=None, persisted={},
        )  # fmt: skip
        return cls(
            run.number, run.run_id, state, run.failure, bare, run.shape, run.record, run.traces
        )
