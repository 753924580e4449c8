"""The base of all wire structs, and the records that several messages share. Pure."""

from collections.abc import Sequence

import msgspec

Frame = bytes | bytearray | memoryview


class Struct(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all wire structs: positional, immutable."""


class Location(Struct, frozen=True):
    """Where an object's bytes lie in the shared memory of its node."""

    segment: str  # a name, or the absolute path of a file where shared memory had no room
    offset: int
    size_bytes: int

    @property
    def is_spilled(self) -> bool:
        """Whether the bytes lie in a file."""
        return self.segment.startswith("/")


class ObjectInfo(Struct, frozen=True):
    """An object: the sealed value of one position, or a block of several consecutive ones.

    With ``location`` None the bytes are the next unused frame of the parcel. Inline bytes are one
    pickle (of the value, or for ``count > 1`` of the list of values); bytes in shared memory have
    the layout of `dagsched.brokers.objects.layout` and always hold one value.
    """

    first: int
    count: int
    size_bytes: int
    location: Location | None = None
    type_name: str = ""  # of the value; only for REFERENCED and OUTPUT positions
    refs: Sequence[tuple[int, int]] = ()  # (run, position) of Refs that the value contains


class TaskOptions(Struct, frozen=True):
    """What a task asked for beyond the defaults."""

    position: int
    retries: int = 0
    timeout_s: float | None = None
    priority: int = 0
    crash_limit: int = 3


class FunctionInfo(Struct, frozen=True):
    """A function of the run; its pickle is a frame, sent once to each node and executor."""

    index: int
    digest: bytes  # 16 bytes, of the pickle
    name: str
    seconds: float | None  # measured mean duration of one call, where known


class ExitInfo(Struct, frozen=True):
    """How an executor ended."""

    exit_code: int | None = None
    signal: int | None = None
    rss_bytes: int = 0
    log_tail: str = ""
    cause: str = ""  # in words, where more is known than its code or signal
    is_oom: bool = False  # the kernel killed it for want of memory


class Failure(Struct, frozen=True):
    """A task that has failed for good; `kind` says how to read it.

    ``raised``: the next unused frame is the pickled exception (empty if it could not travel).
    ``not_exception``: the same, of something that is no Exception (SystemExit, ..).
    ``result``: its result could not be pickled, ``text`` says why and ``path`` where.
    ``argument``: its arguments or function could not be unpickled in the executor.
    ``lost``: executors died while it ran; `exit` tells of the last.
    ``timeout``, ``memory``: it took too long; shared memory was full.
    """

    position: int
    attempt: int
    kind: str
    type_name: str = ""
    text: str = ""
    traceback: str = ""
    path: str = ""
    executor: int = 0
    exit: ExitInfo | None = None


class Doing(Struct, frozen=True):
    """What an executor does at this moment: tasks of a bundle, from the time `since_s` on."""

    run: int
    position: int  # of the task; of a bundle of several, the first one
    task_count: int
    since_s: float  # monotonic


class ExecutorStats(Struct, frozen=True):
    """What one executor did since the environment began, or in one run."""

    id: int
    pid: int
    task_count: int = 0
    bundle_count: int = 0
    busy_s: float = 0.0
    idle_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    restart_count: int = 0
    rss_peak_bytes: int = 0
    rss_bytes: int = 0  # now, if that was asked for
    doing: Doing | None = None  # the same


class NodeStats(Struct, frozen=True):
    """What one node did in one run, with what its broker holds now."""

    id: int
    host: str
    received_count: int = 0
    given_count: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    live_object_count: int = 0
    live_bytes: int = 0
    peak_bytes: int = 0
    spilled_bytes: int = 0
    bundle_count: int = 0
    retry_count: int = 0
    stale_count: int = 0
    executors: Sequence[ExecutorStats] = ()
    crash_retry_count: int = 0  # of `retry_count`: executors died
    timeout_retry_count: int = 0
    withheld_count: int = 0  # bundles held back because the store was above its mark
    shared_bytes: int = 0  # of `live_bytes` those in shared memory
    shared_peak_bytes: int = 0
    spill_count: int = 0  # objects moved from shared memory to files, since the node began
    pid: int = 0  # of the broker; this and what follows only if somebody watches
    cpu_load_1m: float = -1.0
    memory_used_bytes: int = -1  # of the whole machine
    memory_total_bytes: int = -1
    shared_limit_bytes: int = 0  # that `shared_bytes` may come to; 0: none
