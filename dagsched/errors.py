"""What can go wrong, as types: messages say what happened, to which task, where, what to do."""


class DagschedError(Exception):
    """Root of all errors that dagsched itself raises."""


class GraphError(DagschedError, ValueError):
    """The graph, or a value given for one, can't be run as it is."""


class CycleError(GraphError):
    """The graph has a cycle; `cycle` names its tasks, each depending on the one before."""

    def __init__(self, message: str, cycle: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.cycle = cycle


class SerializationError(DagschedError, TypeError):
    """A value can't travel between processes; `path` says where in it the culprit is."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class TaskFailed(DagschedError):
    """A task failed with something that can't be raised here as itself."""


class TaskTimedOut(DagschedError, TimeoutError):
    """A task, or a whole run, took longer than it was allowed to."""


class TaskCancelled(DagschedError):
    """The run was cancelled before it ended."""


class ExecutorLost(DagschedError):
    """A task's executor died while it ran, more often than its crash limit allows."""

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        rss_bytes: int = 0,
        log_tail: str = "",
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.signal = signal
        self.rss_bytes = rss_bytes
        self.log_tail = log_tail


class NodeLost(DagschedError):
    """A node went away and its work could not be done elsewhere."""


class ObjectLost(DagschedError):
    """The only copy of a value is gone and it can't be computed again."""


class NoNodesError(DagschedError):
    """There is no node to run on."""


class StoreUnavailable(DagschedError, ConnectionError):
    """The metadata store can't be reached, or is not what it should be."""


class OutOfMemory(DagschedError, MemoryError):
    """Shared memory, or a task's memory budget, is used up."""


class AuthenticationError(DagschedError):
    """A peer did not show the right key."""


class VersionMismatch(DagschedError):
    """Two sides speak different versions of Python, dagsched or its protocol.

    `protocol` is the other side's version of the protocol, where that is what differs.
    """

    def __init__(self, message: str, protocol: int = 0) -> None:
        super().__init__(message)
        self.protocol = protocol


class ClosedError(DagschedError):
    """The environment, or what belonged to it, has been closed."""


class ProtocolError(DagschedError):
    """A peer sent something that is no message of ours."""


class InternalError(DagschedError):
    """A rule of dagsched's own was broken: a defect, please report it with this text."""


class RemoteTraceback(Exception):
    """The traceback of a task in its executor, as text: the cause of the task's exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
