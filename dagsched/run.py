"""A run's handle: its result, its progress, what happened in it.

Responsible for what a user can ask of one run, and for putting together what the master's thread
tells of it. How values are decoded is in `outcome`, how tables are made in `stats`, and how runs
begin in `submission`.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dagsched.errors import DagschedError, InternalError, ObjectLost, TaskFailed
from dagsched.ids import run_id_of
from dagsched.notebook import Shown

if TYPE_CHECKING:
    from pathlib import Path

    from dagsched.completion import CompletedOutputs
    from dagsched.graph import TaskGraph
    from dagsched.master.events import (
        HeldObject,
        NodeTraced,
        OutputsArrived,
        OutputsComplete,
        RunEnded,
        RunHappened,
        RunStalled,
        TracesArrived,
    )
    from dagsched.master.explaining import Explanation
    from dagsched.plan import Int32, Int64, RunPlan
    from dagsched.protocol.messages import Failure, NodeStats, ObjectInfo
    from dagsched.ref import Ref
    from dagsched.trace import Trace

logger = logging.getLogger(__name__)


class RunHost(Protocol):
    """What a run needs of its environment."""

    def cancel_run(self, number: int) -> None:
        """Ask the master to stop a run."""

    def pin(self, run: int, position: int) -> None:
        """Keep the object of a reference."""

    def unpin(self, run: int, position: int) -> None:
        """One reference less to an object."""

    def stream_outputs(self, run: "Run") -> None:
        """Call `take_arrived` of the run as its outputs come, and `end_arrivals` at its end."""

    def make_ref(self, run: int, broker: int, info: "ObjectInfo") -> "Ref":
        """A reference to an output, which is kept from the end of its run on."""

    def call_back(self, function: Callable[[], object]) -> None:
        """Call user code in the thread that is there for it."""

    def source_values(self, run: "Run") -> dict[int, object]:
        """Values of those outputs that no task of the run computes."""

    def explain(self, run: int, position: int) -> "Explanation | None":
        """Ask the master about a task; None: it knows nothing of it, or doesn't answer."""

    def troubles(self) -> Sequence[str]:
        """What of the environment doesn't go as it should, in a few words each."""

    def describe_losses(self) -> str:
        """Which nodes were lost, and why; empty if none was."""


@dataclass(slots=True)
class RunShape:
    """What stays of a plan after it was submitted: enough to tell tasks and places apart."""

    order: "Int32"  # graph id of the task at each position
    subtree_starts: "Int64"
    outputs: Sequence[int]  # positions, in the order of the graph's outputs
    function_names: Sequence[str]

    @classmethod
    def of(cls, plan: "RunPlan", order: "Int32") -> "RunShape":
        """The shape of a planned run."""
        names = [function.name for function in plan.functions]
        return cls(order, plan.subtree_starts, plan.outputs.tolist(), names)


@dataclass(slots=True)
class RunRecord:
    """What is known of how a run went; filled in by the master's thread."""

    submitted_s: float = field(default_factory=time.monotonic)
    started_s: float | None = None
    ended_s: float | None = None
    done_count: int = 0
    total: int = 0
    subtree_brokers: Sequence[int] = ()
    node_stats: "Sequence[NodeStats]" = ()
    events: "list[RunHappened | RunStalled]" = field(default_factory=list)  # in order
    output_bytes: dict[int, int] = field(default_factory=dict)  # by position, where known
    failed_node: int | None = None  # where a task failed for good
    trouble: str = ""  # what keeps it from going on at the moment
    tally: Mapping[str, int] = field(default_factory=dict)  # what happened, by kind, once over


class Run(Shown):
    """The handle of one run of a graph in an environment.

    Made by `submit`; also awaitable. Attributes of use: `run_id`, `graph`.
    """

    _objects: "Sequence[HeldObject]" = ()  # also of one whose making was interrupted

    def __init__(
        self,
        host: RunHost,
        number: int,
        graph: "TaskGraph",
        shape: RunShape,
        priority: int,
        *,
        as_refs: bool = False,
    ) -> None:
        from dagsched.completion import Arrivals
        from dagsched.trace import TraceBuilder

        self.number = number
        self.run_id = run_id_of(number)
        self.graph = graph
        self.shape = shape
        self.priority = priority
        self.record = RunRecord(total=len(shape.order))
        self.traces = TraceBuilder()
        self._host = host
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._state = "running"
        self.end: RunEnded | None = None  # as the master told it
        self._error: BaseException | None = None
        self._decoded: dict[int, object] = {}
        self._values: Sequence[object] = ()  # of the outputs, in their order
        self._value: object = None
        self._has_value = False
        self._taken = False
        self._as_refs = as_refs
        self._arrivals = Arrivals()
        self._is_streaming = False
        self.kept_positions: list[int] = []  # outputs that are given as references
        self._callbacks: list[Callable[[Run], object]] = []
        self._internal_callbacks: list[Callable[[], object]] = []

    # --- what users ask -------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """One of running, done, failed, cancelled, timed_out, lost, closed."""
        return self._state

    def done(self) -> bool:
        """Whether the run is over, well or not."""
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """The value, in the shape of what was submitted.

        Args:
            timeout: seconds to wait; None: as long as it takes.

        Raises:
            TimeoutError: the run isn't over yet; it goes on.
            Exception: a task's own, if one failed; or one of `dagsched.errors`.
        """
        self._wait(timeout)
        error = self._fresh_error()
        if error is not None:
            raise error
        return self._take_value()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` raises, or None if it gives a value; waits like it."""
        self._wait(timeout)
        return self._fresh_error()

    def cancel(self) -> bool:
        """Stop the run, if it is not over; its tasks that still run are ended soon.

        Returns:
            Whether it was still going on.
        """
        if self._ended.is_set():
            return False
        self._host.cancel_run(self.number)
        return True

    def progress(self) -> tuple[int, int]:
        """Tasks that have ended, and tasks in all."""
        record = self.record
        return min(record.done_count, record.total), record.total

    def add_done_callback(self, callback: "Callable[[Run], object]") -> None:
        """Have ``callback(run)`` called once the run is over; at once if it is.

        Raises:
            TypeError: `callback` can't be called.
        """
        if not callable(callback):
            raise TypeError(f"a callback must be callable, not {type(callback).__name__}")
        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        def wake_from_thread() -> None:
            try:
                loop.call_soon_threadsafe(wake)
            except RuntimeError:
                logger.debug("the loop that waited for %s is closed", self.run_id)

        self.add_internal_callback(wake_from_thread)
        yield from future
        try:
            return self.result()
        except StopIteration as error:
            # Raised as itself it would look like the end of this coroutine.
            raise TaskFailed(f"a task of run {self.run_id} raised StopIteration") from error

    def as_completed(self) -> "CompletedOutputs":
        """The outputs as they complete, for ``for`` and ``async for``: pairs of key and value.

        Each output that was asked for comes once, under the key of its `Delayed`; a value is the
        same object that `result` has. An asynchronous loop never blocks its event loop: values are
        fetched and unpickled in another thread. If the run fails, the error of `result` is
        raised after what had completed before.

        Example:
            >>> from dagsched import RunEnv, delayed, submit
            >>> with RunEnv() as env:  # doctest: +SKIP
            ...     run = submit(env, [delayed(abs)(-n) for n in range(3)])
            ...     for key, value in run.as_completed():
            ...         print(key, value)
        """
        from dagsched.completion import CompletedOutputs

        with self._lock:
            is_first, self._is_streaming = not self._is_streaming, True
        if is_first:
            self._host.stream_outputs(self)
        return CompletedOutputs(self, self._arrivals)

    def stats(self) -> dict[str, Any]:
        """The run's numbers; complete once it is over.

        Returns:
            ``brokers`` and ``executors`` (lists of dicts, one a process), and ``run``, a dict:
            ``run_id``, ``state``, ``task_count``, ``done_count``, ``failed_count``,
            ``cancelled_count``, ``duration_s``, ``critical_path_s``, ``subtree_count``,
            ``bundle_count``; ``retry_count``, of which ``exception_retry_count``,
            ``crash_retry_count`` (its executor died) and ``timeout_retry_count``;
            ``node_loss_count`` (nodes that it needed), ``recovery_count`` (of what they had),
            ``recomputed_count`` (tasks that had been executed), ``moved_count`` (values, off nodes
            that were to leave),
            ``stall_count`` (times that nothing moved for `Config.stall_warning_s`).
        """
        from dagsched.stats import run_stats

        return run_stats(self)

    def trace(self) -> "Trace":
        """When and where each task was executed, as far as it is known now."""
        from dagsched.history import trace_of

        return trace_of(self)

    def save(self, path: "str | Path") -> "Path":
        """Keep what pictures and tables need of the run, as far as it is known now, but no values.

        ``dagsched.viz.load(path)`` and ``dagsched viz PATH`` read it, on any machine. Raises
        OSError if the file can't be written.
        """
        from dagsched.historyfile import save_run

        return save_run(self, path)

    def explain(self, key: object) -> str:
        """In words, why a task is where it is: what it does, or what it waits for, and where.

        Args:
            key: a `Delayed` of the graph, or its key.

        Raises:
            GraphError: the run has no such task.
        """
        from dagsched.story import explain_task

        return explain_task(self, key)

    def story(self, key: object) -> list[str]:
        """All that is known to have happened to a task, in order, with seconds since the start.

        Of a run that was resumed: since then, so that what came before is below zero.

        Args:
            key: a `Delayed` of the graph, or its key.

        Raises:
            GraphError: the run has no such task.
        """
        from dagsched.story import task_story

        return task_story(self, key)

    def __repr__(self) -> str:
        done, total = self.progress()
        return f"<Run {self.run_id}: {self._state}, {done} of {total} tasks>"

    # --- what the environment tells, in the master's thread unless said otherwise ---------------

    def take_started(self) -> None:
        """The first subtree has been placed."""
        if self.record.started_s is None:
            self.record.started_s = time.monotonic()

    def take_happened(self, event: "RunHappened | RunStalled") -> None:
        """Something for the story."""
        from dagsched.master.events import RunStalled

        self.record.events.append(event)
        if isinstance(event, RunStalled):
            self.record.trouble = "nothing moves"
        elif event.kind in ("resumed", "recovering"):
            self.record.trouble = "recovering"
        elif event.kind != "node_lost":
            self.record.trouble = ""

    def take_progress(self, done_count: int, total: int) -> None:
        """So many tasks have ended."""
        self.record.done_count = done_count
        self.record.total = total

    def take_traces(self, event: "TracesArrived | NodeTraced", rows_max: int) -> None:
        """What a node tells for the trace, which keeps so many rows of a kind."""
        self.traces.take(event, rows_max)

    def take_outputs(self, event: "OutputsComplete") -> bool:
        """Keep the outputs; whether they are all here already and the cluster's can go.

        False means that `copy_outputs` is to be called, in a thread that may take its time.
        """
        if self._taken:
            return True
        for _, info, _ in event.objects:
            if info.count == 1:
                self.record.output_bytes[info.first] = info.size_bytes
            for run, position in info.refs:
                self._host.pin(run, position)
        self._unpin_objects()
        self._objects = event.objects
        self._taken = all(info.location is None for _, info, _ in event.objects)
        return self._taken

    def copy_outputs(self, is_gone: Callable[[int], bool]) -> bool:
        """Copy outputs out of shared memory; whether that is done. In the copying thread.

        Args:
            is_gone: whether a broker has gone, in which case what it held comes again.
        """
        for broker, info, _ in self._objects:
            if info.location is not None and info.first not in self._decoded:
                try:
                    self._decoded[info.first] = self._copied(broker, info)
                except ObjectLost as error:
                    if is_gone(broker):
                        return False
                    self._error = error
                except Exception as error:  # noqa: BLE001 - of the user's own unpickling code
                    self._error = error
        self._taken = True
        return True

    def take_arrived(self, event: "OutputsArrived", is_gone: Callable[[int], bool]) -> None:
        """Give outputs to those who wait for any. In the copying thread; arguments as above."""
        from dagsched.outcome import load_object

        known = self._decoded
        for broker, info, frame in event.objects:
            positions = range(info.first, info.first + info.count)
            if self._ended.is_set() or all(position in known for position in positions):
                continue
            try:
                if info.location is None:
                    load_object(info, frame, known)
                else:
                    known[info.first] = self._copied(broker, info)
            except ObjectLost:
                is_gone(broker)  # then it comes again; else the end of the run says what it means
            except Exception as error:  # noqa: BLE001 - of the user's own unpickling code
                logger.debug("an output of %s can't be loaded: %r", self.run_id, error)
            self._arrivals.put(
                (self._output_key(position), known[position])
                for position in positions
                if position in known
            )

    def end_arrivals(self) -> None:
        """The run is over: what hasn't been given yet is, with its error. In the same thread."""
        error: BaseException | None = None
        try:
            self.result()
            keys = map(self._output_key, self.shape.outputs)
            self._arrivals.put(zip(keys, self._values, strict=True))
        except BaseException as raised:  # noqa: BLE001 - it is for whoever iterates
            error = raised
        self._arrivals.end(error)

    def take_end(self, event: "RunEnded", tell: "Callable[[Run, str], object]") -> None:
        """The run is over; `tell` is called with its state before anybody else knows."""
        record = self.record
        record.subtree_brokers = event.subtree_brokers
        record.node_stats = event.stats
        record.tally = event.tally
        record.failed_node = event.node
        if event.state == "done":
            record.done_count = record.total
        record.ended_s = time.monotonic()
        self.end = event
        tell(self, event.state)
        self._finish(event.state)

    def troubles(self) -> str:
        """What doesn't go as it should at the moment, in a few words; empty: nothing."""
        if self.done():
            return ""
        own = (self.record.trouble,) if self.record.trouble else ()
        return ", ".join((*own, *self._host.troubles()))

    def ask_why(self, position: int) -> "Explanation | None":
        """What the master says of a task; None: nothing."""
        return self._host.explain(self.number, position)

    @property
    def failure(self) -> "Failure | None":
        """The task that failed for good, and how."""
        return None if self.end is None else self.end.failure

    def failure_text(self) -> str:
        """How that task failed, to be put behind a sentence."""
        failure = self.failure
        if failure is None:
            return ""
        text = failure.text.partition("\n")[0][:200]
        return f" ({': '.join(part for part in (failure.kind, failure.type_name, text) if part)})"

    def take_error(self, state: str, error: BaseException) -> None:
        """The run can't go on: the environment was closed, or the master failed."""
        if not self._ended.is_set():
            self._error = error
        self._finish(state)

    def finish_at_once(self, values: Sequence[object]) -> None:
        """The run had nothing to do; its outputs are known. In the client's thread."""
        self._values = values
        self._value = self.graph.resolve_outputs(values)
        self._has_value = True
        self._finish("done")

    def add_internal_callback(self, callback: Callable[[], object]) -> None:
        """Have `callback` called in the master's thread when the run is over; at once if it is."""
        with self._lock:
            if not self._ended.is_set():
                self._internal_callbacks.append(callback)
                return
        callback()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until the run is over; whether it is."""
        return self._ended.wait(timeout_s)

    # --- inside ---------------------------------------------------------------------------------

    def _finish(self, state: str) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            if self.record.ended_s is None:
                self.record.ended_s = time.monotonic()
            self._state = state
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
            internal, self._internal_callbacks = self._internal_callbacks, []
        if state != "done":
            # Nobody will ask for what came of it.
            self._unpin_objects()
        for wake in internal:
            wake()
        for callback in callbacks:
            self._host.call_back(lambda callback=callback: callback(self))  # type: ignore[misc]  # mypy can't infer such lambdas

    def _wait(self, timeout: float | None) -> None:
        if timeout is not None and (isinstance(timeout, bool) or not hasattr(timeout, "__float__")):
            raise TypeError(f"timeout must be seconds, not {type(timeout).__name__}")
        if timeout is not None and timeout < 0:
            raise ValueError(f"timeout must not be negative, not {timeout!r}")
        if not self._ended.wait(timeout):
            done, total = self.progress()
            raise TimeoutError(
                f"run {self.run_id} isn't over after {timeout} s ({done} of {total} tasks done); "
                "it goes on: wait longer, or cancel() it"
            )

    def _fresh_error(self) -> BaseException | None:
        """A new copy of what went wrong, so that no traceback grows with each call."""
        if self._state == "done":
            return _copied(self._error)
        if self._error is not None:
            return _copied(self._error)
        from dagsched.outcome import run_error

        if self.end is None:
            return InternalError(f"run {self.run_id} ended as {self._state} without a reason")
        return run_error(self, self.end, self._host.describe_losses())

    def _copied(self, broker: int, info: "ObjectInfo") -> object:
        """The value of an object in shared memory, or a reference where those are wanted."""
        from dagsched.outcome import copy_object

        if not self._as_refs:
            return copy_object(info)
        self.kept_positions.append(info.first)
        return self._host.make_ref(self.number, broker, info)

    def _output_key(self, position: int) -> str:
        count = self.graph.task_count
        if position < count:
            return self.graph.key(int(self.shape.order[position]))
        source = self.graph.sources[position - count]  # a reference, or what one stands for
        return str(getattr(source, "key", f"source-{position - count}"))

    def _take_value(self) -> object:
        with self._lock:
            if not self._has_value:
                self._value = self._decode()
                self._has_value = True
                self._unpin_objects()
                self._decoded = {}
            return self._value

    def _decode(self) -> object:
        from dagsched.outcome import load_object

        values = self._decoded
        if any(position >= len(self.shape.order) for position in self.shape.outputs):
            values.update(self._host.source_values(self))
        for _, info, frame in self._objects:
            positions = range(info.first, info.first + info.count)
            if info.location is None and not all(p in values for p in positions):
                load_object(info, frame, values)
        missing = [position for position in self.shape.outputs if position not in values]
        if missing:
            raise InternalError(
                f"run {self.run_id} is done, but outputs at positions {missing[:5]} are missing"
            )
        self._values = [values[position] for position in self.shape.outputs]
        return self.graph.resolve_outputs(self._values)

    def _unpin_objects(self) -> None:
        """Drop the outputs as they came; references inside them are on their own now."""
        objects, self._objects = self._objects, ()
        for _, info, _ in objects:
            for run, position in info.refs:
                self._host.unpin(run, position)

    def __del__(self) -> None:
        # Outputs that nobody asked for may hold references.
        self._unpin_objects()


def _copied(error: BaseException | None) -> BaseException | None:
    """An error of ours anew; of another kind the same one, its traceback cut off."""
    if isinstance(error, DagschedError):
        copy = type(error)(*error.args)
        copy.__dict__.update(error.__dict__)
        copy.__cause__ = error.__cause__
        return copy
    return None if error is None else error.with_traceback(None)
