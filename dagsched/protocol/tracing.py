"""What brokers tell of a run for its trace: tasks that ended, bundles, transfers, files. Pure.

All of it is rows of int64, gathered in arrays and sent a batch at a time; the master passes it on
unread. Stamps are ns of the monotonic clock of whoever noted them: on one machine of all.
"""

from dagsched.protocol.structs import Struct

TRACE_GAP = -1

BUNDLE_COLUMNS = ("number", "length", "read_bytes", "written_bytes")
"""A row a bundle that an executor has ended, or a lane of one: its number, how many entries of the
positions it has, and the bytes that the executor read and wrote for it."""

OBJECT_COLUMNS = ("first", "count", "size_bytes")
"""A row an object that these bundles made: values of neighbours may be one object."""

TRANSFER_COLUMNS = (
    "position", "count", "node", "size_bytes", "asked_ns", "start_ns", "end_ns"
)  # fmt: skip
"""A row an object that came from another node: the first value in it, how many, and from where;
when it was asked for (-1: not known), and when its first and its last bytes came."""

FILE_COLUMNS = ("position", "count", "kind", "size_bytes", "start_ns", "end_ns")
"""A row an object that went to a file or was read there; `kind` is one of the following."""

FILE_MOVED = 0  # from shared memory, as the store was above its mark
FILE_MADE = 1  # there at once, for shared memory had no room
FILE_READ = 2  # by a bundle, which was sent to its executor then


class TaskTrace(Struct, frozen=True, tag="trace"):
    """Tasks that ended. Frames: positions; stamps; rows of their bundles; rows of objects.

    ``stamps[0]`` (int64 ns) is the first task's start; ``stamps[i + 1]`` its end and the next one's
    start. Between two bundles stands `TRACE_GAP` in place of a position: nothing of the run ran
    then. Lanes of gangs may have such gaps inside.
    """

    run: int
    executor: int
    attempt: int


class NodeTrace(Struct, frozen=True, tag="node_trace"):
    """What came to the node from others, and what its files got. Frames: rows of each."""

    run: int
