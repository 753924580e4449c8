"""What has to be known of a run to read its events: taken once, when it begins.

Neither values nor arguments are in it, so that keeping it keeps none of them alive.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagsched.plan import Int32, Int64
from dagsched.trace import TaskNames

if TYPE_CHECKING:
    from dagsched.run import Run


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run as it was submitted."""

    number: int
    run_id: str
    names: TaskNames  # by graph id
    order: Int32  # graph id of the task at each position
    subtree_starts: Int64
    submitted_s: float  # monotonic

    @classmethod
    def of(cls, run: "Run") -> "RunFacts":
        """Of a run that is known to the client."""
        shape = run.shape
        return cls(
            run.number,
            run.run_id,
            run.graph.task_names(),
            shape.order,
            shape.subtree_starts,
            run.record.submitted_s,
        )

    @property
    def task_count(self) -> int:
        """Tasks of its graph."""
        return len(self.order)

    def key(self, position: int) -> str:
        """The key of the task at a position; empty: it is no task of this run."""
        if not 0 <= position < len(self.order):
            return ""
        return self.names.key(int(self.order[position]))

    def function(self, position: int) -> str:
        """Name of the function of the task at a position; empty: it is no task of this run."""
        if not 0 <= position < len(self.order):
            return ""
        return self.names.function(int(self.order[position]))
