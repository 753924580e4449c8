"""What comes back from a run: objects to values, failures to exceptions.

Responsible for the client's decoding and for the words of its errors: each says what happened, to
which task, where, and what to do.
"""

import signal
from typing import TYPE_CHECKING, Any

from dagsched.errors import (
    DagschedError,
    ExecutorLost,
    InternalError,
    NodeLost,
    NoNodesError,
    ObjectLost,
    OutOfMemory,
    RemoteTraceback,
    SerializationError,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
)

if TYPE_CHECKING:
    from dagsched.master.events import RunEnded
    from dagsched.protocol.messages import Failure, Frame, ObjectInfo
    from dagsched.run import Run


def load_object(info: "ObjectInfo", frame: "Frame | None", values: dict[int, object]) -> None:
    """Unpickle an inline object into `values`, by position."""
    from dagsched.serialize import load_value

    if frame is None:
        raise InternalError(f"an object at position {info.first} came without its bytes")
    value: Any = load_value(frame, ())
    if info.count == 1:
        values[info.first] = value
    else:
        values.update(zip(range(info.first, info.first + info.count), value, strict=True))


def copy_object(info: "ObjectInfo") -> object:
    """The value of an object in this machine's shared memory, which may go away afterwards."""
    from dagsched.brokers.objects.reader import copy_value

    if info.location is None:
        raise InternalError(f"the object at position {info.first} is not in shared memory")
    return copy_value(info.location)


def load_fetched(info: "ObjectInfo", frame: "Frame | None", position: int) -> object:
    """The value at `position` of an object that was fetched for a reference."""
    if info.location is not None:
        return copy_object(info)
    values: dict[int, object] = {}
    load_object(info, frame, values)
    return values[position]


def run_error(run: "Run", end: "RunEnded", losses: str) -> BaseException:
    """What `Run.result` raises for a run that did not end well; a new one at each call.

    Args:
        run: that ended.
        end: how.
        losses: in words, which nodes were lost.
    """
    done, total = run.progress()
    so_far = f"{done} of {total} tasks were done"
    if end.state == "cancelled":
        return TaskCancelled(f"run {run.run_id} was cancelled; {so_far}")
    failure = end.failure
    if end.state == "timed_out":
        return TaskTimedOut(
            f"run {run.run_id} took longer than its timeout and was stopped; {so_far}: allow it "
            "more time, or look at run.stats() for what took so long"
        )
    if end.state == "lost":
        return _lost_error(run, failure, losses)
    if failure is None:
        return InternalError(f"run {run.run_id} ended as {end.state} without a failure")
    return failure_error(run, failure, end.failure_frame, end.node)


def failure_error(
    run: "Run", failure: "Failure", frame: "Frame | None", node: int | None
) -> BaseException:
    """The exception for a task that failed for good."""
    where = _where(run, failure, node)
    match failure.kind:
        case "raised" | "not_exception":
            return _raised(failure, frame, where)
        case "result":
            error: DagschedError = SerializationError(
                f"the result of {where} can't travel between processes: {failure.text}",
                failure.path,
            )
        case "argument":
            error = SerializationError(
                f"the function or the arguments of {where} can't be unpickled there: "
                f"{failure.text}; modules that they need must be importable on the nodes",
                failure.path,
            )
        case "lost":
            error = _executor_lost(failure, where)
        case "timeout":
            error = TaskTimedOut(
                f"{where} took longer than its timeout and was ended"
                f"{_said(failure.text)}: allow it more time with delayed(.., timeout=..)"
            )
        case "memory":
            error = OutOfMemory(
                f"there was no room for {where}{_said(failure.text)}: use smaller pieces, release "
                "references, or allow more with Config.store_bytes_max and spill_directory"
            )
        case _:
            error = InternalError(f"{where} failed in an unknown way: {failure!r}")
    if failure.traceback:
        error.__cause__ = RemoteTraceback(failure.traceback)
    return error


def _raised(failure: "Failure", frame: "Frame | None", where: str) -> BaseException:
    """The user's own exception where it can be raised here as itself."""
    original = _load_exception(frame)
    remote = RemoteTraceback(failure.traceback) if failure.traceback else None
    if failure.kind == "raised" and isinstance(original, Exception):
        if remote is not None:
            original.__cause__ = remote
        original.add_note(f"raised by {where}")
        return original
    text = failure.text[:2000]
    why = (
        "which is no Exception and would end this process if it were raised here as itself"
        if failure.kind == "not_exception"
        else "which can't travel as itself"
    )
    error = TaskFailed(f"{where} raised {failure.type_name}: {text} ({why})")
    if original is not None and failure.kind == "not_exception":
        original.__cause__ = remote
        error.__cause__ = original
    else:
        error.__cause__ = remote
    return error


def _load_exception(frame: "Frame | None") -> BaseException | None:
    """The exception in a frame; None if there is none, or it can't be unpickled here."""
    from dagsched.serialize import load_exception

    if frame is None or len(frame) == 0:
        return None
    try:
        return load_exception(frame)
    except SerializationError:
        # The class is not known here; its name, text and traceback are.
        return None


def _executor_lost(failure: "Failure", where: str) -> ExecutorLost:
    exit_info = failure.exit
    if exit_info is None:
        return ExecutorLost(f"the executor of {where} was lost{_said(failure.text)}")
    if exit_info.signal is not None:
        how = f"was killed by signal {exit_info.signal} ({_signal_name(exit_info.signal)})"
    else:
        how = f"ended with exit code {exit_info.exit_code}"
    if exit_info.cause:
        how += f" {exit_info.cause}"
    attempts = f" in attempt {failure.attempt}" if failure.attempt > 1 else ""
    tail = f"; the end of what it printed:\n{exit_info.log_tail}" if exit_info.log_tail else ""
    return ExecutorLost(
        f"the executor of {where} {how}{attempts}, its memory was {exit_info.rss_bytes} bytes: "
        f"look for a crash or os._exit in that function{_said(failure.text)}{tail}",
        exit_code=exit_info.exit_code,
        signal=exit_info.signal,
        rss_bytes=exit_info.rss_bytes,
        log_tail=exit_info.log_tail,
    )


def _lost_error(run: "Run", failure: "Failure | None", losses: str) -> DagschedError:
    more = f" ({losses})" if losses else ""
    if failure is None:
        return NodeLost(f"run {run.run_id} could not go on: its nodes are gone{more}")
    kinds: dict[str, type[DagschedError]] = {
        "NoNodesError": NoNodesError,
        "ObjectLost": ObjectLost,
        "NodeLost": NodeLost,
    }
    kind = kinds.get(failure.type_name, NodeLost)
    return kind(f"run {run.run_id} could not go on: {failure.text}{more}")


def _where(run: "Run", failure: "Failure", node: int | None) -> str:
    """Which task, in which attempt, where: for messages and notes."""
    from dagsched.story import task_name

    place = f"executor {failure.executor}" if failure.executor else "no executor"
    if node is not None:
        place = f"node {node}, {place}"
    return f"{task_name(run, failure.position)}, attempt {failure.attempt}, on {place}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _said(text: str) -> str:
    return f" ({text})" if text else ""
