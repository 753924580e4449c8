"""What nodes tell of a run for its trace, passed on unread to the client. Pure."""

from collections.abc import Sequence

from dagsched.ids import ProcessId
from dagsched.master.events import NodeTraced, TracesArrived
from dagsched.master.state import MasterRun
from dagsched.protocol.messages import Frame, NodeTrace, TaskTrace

FRAME_COUNTS = {TaskTrace: 4, NodeTrace: 2}


def traced(
    run: MasterRun,
    broker: ProcessId,
    message: TaskTrace | NodeTrace,
    frames: Sequence[Frame],
) -> TracesArrived | NodeTraced | None:
    """What the client is told, if anything.

    Tasks of graphs that tasks returned aren't the client's, but what they moved is the run's.
    """
    if len(frames) != FRAME_COUNTS[type(message)]:
        return None
    if isinstance(message, NodeTrace):
        return NodeTraced(run.root, broker, run.parent is None, *frames)
    if run.parent is not None:
        return None
    return TracesArrived(run.number, broker, message.executor, message.attempt, *frames)
