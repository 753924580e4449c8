"""A run's handle, driven by the events that the master's thread would give."""

import asyncio
import gc
import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest

from dagsched.delayed import delayed
from dagsched.errors import (
    ClosedError,
    ExecutorLost,
    GraphError,
    InternalError,
    NoNodesError,
    ObjectLost,
    OutOfMemory,
    RemoteTraceback,
    SerializationError,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
)
from dagsched.graph import build_graph
from dagsched.ids import run_base
from dagsched.master.events import (
    OutputsArrived,
    OutputsComplete,
    RunEnded,
    RunHappened,
    RunStalled,
    TracesArrived,
)
from dagsched.master.explaining import Explanation, Situation
from dagsched.progress import wait_for_run
from dagsched.protocol.messages import ExitInfo, Failure, Location, ObjectInfo
from dagsched.ref import Ref
from dagsched.run import Run, RunShape


class FakeHost:
    """An environment that notes what it is asked."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []
        self.pins: list[tuple[int, int]] = []
        self.unpins: list[tuple[int, int]] = []
        self.explanation: Explanation | None = None
        self.environment_troubles: list[str] = []
        self.streamed = 0

    def cancel_run(self, number: int) -> None:
        self.cancelled.append(number)

    def pin(self, run: int, position: int) -> None:
        self.pins.append((run, position))

    def unpin(self, run: int, position: int) -> None:
        self.unpins.append((run, position))

    def call_back(self, function: Callable[[], object]) -> None:
        function()

    def stream_outputs(self, run: Run) -> None:
        self.streamed += 1
        run.add_internal_callback(run.end_arrivals)

    def make_ref(self, run: int, broker: int, info: ObjectInfo) -> Ref:
        return Ref(run, info.first, info.size_bytes, nodes=[broker])

    def source_values(self, run: Run) -> dict[int, object]:
        return {}

    def explain(self, run: int, position: int) -> Explanation | None:
        return self.explanation

    def troubles(self) -> list[str]:
        return self.environment_troubles

    def describe_losses(self) -> str:
        return "node 2: it died"


def add(x: int, y: int) -> int:
    return x + y


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


def make_run(host: FakeHost, *, as_refs: bool = False) -> Run:
    """Tasks 0: add(1, 2), 1: add(3, 4), 2: add(0, 1); at positions 0, 1, 2; outputs 2 and 0."""
    first, second = delayed(add)(1, 2), delayed(add)(3, 4)
    graph = build_graph({"total": delayed(add)(first, second), "first": [first]})
    order = np.arange(3, dtype=np.int32)
    shape = RunShape(order, np.array([0, 2, 3], np.int64), graph.outputs.tolist(), ["add"])
    return Run(host, run_base("cafe0123") + 7, graph, shape, 0, as_refs=as_refs)


def inline(
    first: int, value: object, count: int = 1, refs: object = ()
) -> tuple[int, ObjectInfo, bytes]:
    data = pickle.dumps(value, 5)
    return (2, ObjectInfo(first, count, len(data), refs=refs), data)  # type: ignore[arg-type]


def end(
    run: Run, state: str = "done", failure: Failure | None = None, frame: bytes | None = None
) -> None:
    event = RunEnded(run.number, state, failure, frame, 2, [], [2, 2])  # type: ignore[arg-type]
    run.take_end(event, lambda run, state: None)


def test_a_run_that_ends_well(host: FakeHost) -> None:
    run = make_run(host)
    assert (run.run_id, run.state, run.done(), run.progress()) == (
        "cafe0123-7",
        "running",
        False,
        (0, 3),
    )
    run.take_progress(2, 3)
    assert run.progress() == (2, 3)
    assert run.take_outputs(OutputsComplete(7, [inline(2, 10), inline(0, 3)])) is True
    assert not run.done()
    end(run)
    assert (run.done(), run.state, run.progress()) == (True, "done", (3, 3))
    assert run.result() == {"total": 10, "first": [3]}
    assert run.result() is run.result()
    assert run.exception() is None


def test_outputs_in_one_block(host: FakeHost) -> None:
    run = make_run(host)
    run.take_outputs(OutputsComplete(7, [inline(0, [3, 7, 10], count=3)]))
    end(run)
    assert run.result() == {"total": 10, "first": [3]}


def arrive(run: Run, *objects: tuple[int, ObjectInfo, bytes]) -> None:
    run.take_arrived(OutputsArrived(run.number, objects), lambda broker: False)


def test_outputs_come_as_they_complete_and_once(host: FakeHost) -> None:
    run = make_run(host)
    total, first = run.graph.key(2), run.graph.key(0)
    loop, other = run.as_completed(), run.as_completed()
    assert host.streamed == 1
    arrive(run, inline(0, 3))
    assert next(loop) == (first, 3)
    arrive(run, inline(0, 3), inline(2, [10]))
    key, value = next(loop)
    assert (key, value) == (total, [10])
    run.take_outputs(OutputsComplete(7, [inline(2, [10]), inline(0, 3)]))
    end(run)
    assert list(loop) == []
    assert list(other) == [(first, 3), (total, [10])]
    assert run.result()["total"] is value


def test_what_completed_with_the_run_comes_at_its_end(host: FakeHost) -> None:
    run = make_run(host)
    loop = run.as_completed()
    run.take_outputs(OutputsComplete(7, [inline(0, [3, 7, 10], count=3)]))
    end(run)
    assert list(loop) == [(run.graph.key(2), 10), (run.graph.key(0), 3)]


def test_outputs_can_be_had_of_a_run_whose_result_was_taken(host: FakeHost) -> None:
    run = make_run(host)
    run.take_outputs(OutputsComplete(7, [inline(2, 10), inline(0, 3)]))
    end(run)
    assert run.result() == {"total": 10, "first": [3]}
    assert list(run.as_completed()) == [(run.graph.key(2), 10), (run.graph.key(0), 3)]


def test_a_failure_comes_after_what_had_completed(host: FakeHost) -> None:
    run = make_run(host)
    loop = run.as_completed()
    arrive(run, inline(0, 3))
    end(run, "failed", *raised(KeyError("lost")))
    assert next(loop) == (run.graph.key(0), 3)
    for _ in range(2):
        with pytest.raises(KeyError, match="lost"):
            next(loop)


def test_outputs_for_an_asynchronous_loop(host: FakeHost) -> None:
    run = make_run(host)

    async def gather() -> list[tuple[str, object]]:
        found = []
        async for output in run.as_completed():
            found.append(output)
            # From another thread, while the loop waits.
            threading.Thread(target=finish).start()
        return found

    def finish() -> None:
        if not run.done():
            run.take_outputs(OutputsComplete(7, [inline(2, 10), inline(0, 3)]))
            end(run)

    arrive(run, inline(0, 3))
    loop = run.as_completed()
    arrive(run, inline(0, 3))
    assert next(loop) == (run.graph.key(0), 3)
    assert asyncio.run(gather()) == [(run.graph.key(0), 3), (run.graph.key(2), 10)]


def test_large_outputs_can_be_references(host: FakeHost) -> None:
    run = make_run(host, as_refs=True)
    far = ObjectInfo(2, 1, 100_000, Location("gone", 0, 100_000))
    event = OutputsComplete(7, [(2, far, None), inline(0, 3)])
    assert run.take_outputs(event) is False
    assert run.copy_outputs(lambda broker: False)
    assert run.kept_positions == [2]
    end(run)
    assert run.result() == {"total": Ref(run.number, 2), "first": [3]}


def test_waiting_too_long_leaves_the_run_going_on(host: FakeHost) -> None:
    run = make_run(host)
    with pytest.raises(TimeoutError, match=r"run cafe0123-7 isn't over after 0\.01 s \(0 of 3"):
        run.result(timeout=0.01)
    assert not run.done()
    assert host.cancelled == []
    with pytest.raises(ValueError, match="must not be negative"):
        run.result(timeout=-1)


def test_cancel_asks_the_master_once_it_matters(host: FakeHost) -> None:
    run = make_run(host)
    assert run.cancel() is True
    assert host.cancelled == [run.number]
    end(run, "cancelled")
    assert run.cancel() is False
    assert host.cancelled == [run.number]
    with pytest.raises(TaskCancelled, match="run cafe0123-7 was cancelled; 0 of 3 tasks"):
        run.result()


def raised(error: BaseException, kind: str = "raised") -> tuple[Failure, bytes]:
    failure = Failure(
        1, 2, kind, type_name=type(error).__name__, text=str(error), traceback="File x, line 1",
        executor=4,
    )  # fmt: skip
    return failure, pickle.dumps(error)


def test_a_tasks_own_exception_comes_as_itself(host: FakeHost) -> None:
    run = make_run(host)
    end(run, "failed", *raised(KeyError("lost")))
    with pytest.raises(KeyError) as info:
        run.result()
    error = info.value
    assert error.args == ("lost",)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "File x, line 1" in str(error.__cause__)
    key = run.graph.key(1)
    assert error.__notes__ == [
        f"raised by task {key} (function add), attempt 2, on node 2, executor 4"
    ]


def test_every_call_raises_a_fresh_exception(host: FakeHost) -> None:
    run = make_run(host)
    end(run, "failed", *raised(ValueError("no")))
    found = []
    for _ in range(3):
        with pytest.raises(ValueError, match="no") as info:
            run.result()
        found.append(info.value)
    assert len({id(error) for error in found}) == 3
    lengths = []
    for error in found:
        length, frame = 0, error.__traceback__
        while frame is not None:
            length, frame = length + 1, frame.tb_next
        lengths.append(length)
    assert len(set(lengths)) == 1
    assert len(found[-1].__notes__) == 1


def test_what_is_no_exception_is_a_task_failure(host: FakeHost) -> None:
    run = make_run(host)
    end(run, "failed", *raised(SystemExit(3), "not_exception"))
    with pytest.raises(TaskFailed, match="raised SystemExit: 3") as info:
        run.result()
    cause = info.value.__cause__
    assert type(cause) is SystemExit
    assert cause.code == 3
    assert isinstance(cause.__cause__, RemoteTraceback)


def test_an_exception_that_could_not_travel(host: FakeHost) -> None:
    run = make_run(host)
    failure, _ = raised(ValueError("secret"))
    end(run, "failed", failure, b"")
    with pytest.raises(TaskFailed, match=r"task add-\d+ .* raised ValueError: secret") as info:
        run.result()
    assert isinstance(info.value.__cause__, RemoteTraceback)


def test_an_exception_of_a_class_that_is_unknown_here(host: FakeHost) -> None:
    run = make_run(host)
    failure, _ = raised(ValueError("strange"))
    end(run, "failed", failure, b"cnowhere\nNothing\n.")
    with pytest.raises(TaskFailed, match="raised ValueError: strange"):
        run.result()


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (
            Failure(1, 1, "result", text="a lock", path="result[0]"),
            SerializationError,
            "the result of task .* can't travel between processes: a lock",
        ),
        (Failure(1, 1, "argument", text="no module"), SerializationError, "there: no module"),
        (Failure(1, 1, "timeout"), TaskTimedOut, "took longer than its timeout"),
        (Failure(1, 1, "memory", text="4 GB"), OutOfMemory, r"there was no room .*\(4 GB\)"),
        (Failure(1, 1, "nonsense"), InternalError, "failed in an unknown way"),
    ],
)  # fmt: skip
def test_kinds_of_failures(host: FakeHost, failure: Failure, kind: type, words: str) -> None:
    run = make_run(host)
    end(run, "failed", failure)
    with pytest.raises(kind, match=words) as info:
        run.result()
    assert run.graph.key(1) in str(info.value)
    if failure.path:
        assert info.value.path == "result[0]"


def test_a_lost_executor_tells_all(host: FakeHost) -> None:
    run = make_run(host)
    exit_info = ExitInfo(signal=11, rss_bytes=4096, log_tail="it hurts")
    end(run, "failed", Failure(1, 3, "lost", executor=4, exit=exit_info))
    with pytest.raises(ExecutorLost, match=r"killed by signal 11 \(SIGSEGV\) in attempt 3") as info:
        run.result()
    error = info.value
    assert (error.signal, error.exit_code, error.rss_bytes, error.log_tail) == (
        11,
        None,
        4096,
        "it hurts",
    )
    assert "it hurts" in str(error)


@pytest.mark.parametrize(
    ("name", "kind"), [("NoNodesError", NoNodesError), ("ObjectLost", ObjectLost)]
)
def test_lost_runs(host: FakeHost, name: str, kind: type) -> None:
    run = make_run(host)
    end(run, "lost", Failure(-1, 0, "lost", type_name=name, text="all gone"))
    with pytest.raises(kind, match="could not go on: all gone"):
        run.result()


def test_a_run_that_took_too_long(host: FakeHost) -> None:
    run = make_run(host)
    end(run, "timed_out")
    with pytest.raises(TaskTimedOut, match="longer than its timeout"):
        run.result()


def test_a_closed_environment_ends_its_runs(host: FakeHost) -> None:
    run = make_run(host)
    run.take_error("closed", ClosedError("closed now"))
    run.take_error("closed", ClosedError("and again"))
    with pytest.raises(ClosedError) as first:
        run.result()
    with pytest.raises(ClosedError) as second:
        run.result()
    assert str(first.value) == str(second.value) == "closed now"
    assert first.value is not second.value


def test_callbacks_are_called_once_with_the_run(host: FakeHost) -> None:
    run = make_run(host)
    called: list[Run] = []
    run.add_done_callback(called.append)
    assert called == []
    run.take_outputs(OutputsComplete(7, [inline(2, 10), inline(0, 3)]))
    end(run)
    end(run)
    assert called == [run]
    run.add_done_callback(called.append)
    assert called == [run, run]


def test_waiting_threads_are_woken(host: FakeHost) -> None:
    run = make_run(host)
    values: list[object] = []
    threads = [threading.Thread(target=lambda: values.append(run.result())) for _ in range(3)]
    for thread in threads:
        thread.start()
    run.take_outputs(OutputsComplete(7, [inline(2, 10), inline(0, 3)]))
    end(run)
    for thread in threads:
        thread.join(10)
    assert values == [{"total": 10, "first": [3]}] * 3


def test_awaiting_a_run(host: FakeHost) -> None:
    run = make_run(host)

    async def main() -> object:
        asyncio.get_running_loop().run_in_executor(None, finish)
        return await run

    def finish() -> None:
        run.take_outputs(OutputsComplete(7, [inline(2, 10), inline(0, 3)]))
        end(run)

    assert asyncio.run(main()) == {"total": 10, "first": [3]}

    async def again() -> object:
        return await run

    assert asyncio.run(again()) == {"total": 10, "first": [3]}


def test_stop_iteration_is_wrapped_when_awaited(host: FakeHost) -> None:
    run = make_run(host)
    end(run, "failed", *raised(StopIteration(5)))

    async def main() -> object:
        return await run

    with pytest.raises(TaskFailed, match="raised StopIteration"):
        asyncio.run(main())
    assert type(run.exception()) is StopIteration


def test_references_in_outputs_are_pinned_until_they_are_taken(host: FakeHost) -> None:
    run = make_run(host)
    run.take_outputs(OutputsComplete(7, [inline(2, 10, refs=[(7, 1)]), inline(0, 3)]))
    assert (host.pins, host.unpins) == ([(7, 1)], [])
    end(run)
    assert host.unpins == []
    run.result()
    assert host.unpins == [(7, 1)]
    del run
    gc.collect()
    assert host.unpins == [(7, 1)]


def test_references_in_outputs_that_nobody_takes_are_let_go(host: FakeHost) -> None:
    run = make_run(host)
    run.take_outputs(OutputsComplete(7, [inline(2, 10, refs=[(7, 1)]), inline(0, 3)]))
    end(run)
    del run
    gc.collect()
    assert (host.pins, host.unpins) == ([(7, 1)], [(7, 1)])


def test_outputs_of_a_run_that_failed_later_are_let_go(host: FakeHost) -> None:
    run = make_run(host)
    run.take_outputs(OutputsComplete(7, [inline(2, 10, refs=[(7, 1)]), inline(0, 3)]))
    end(run, "cancelled")
    assert host.unpins == [(7, 1)]


def test_outputs_in_shared_memory_wait_for_a_copy(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(host)
    location = Location("segment", 0, 99)
    objects = [(2, ObjectInfo(2, 1, 99, location), None), inline(0, 3)]
    assert run.take_outputs(OutputsComplete(7, objects)) is False
    monkeypatch.setattr("dagsched.outcome.copy_object", lambda info: 10)
    assert run.copy_outputs(lambda broker: False) is True
    end(run)
    assert run.result() == {"total": 10, "first": [3]}


def test_outputs_that_go_with_their_node_come_again(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(host)
    objects = [(2, ObjectInfo(2, 1, 99, Location("segment", 0, 99)), None), inline(0, 3)]
    run.take_outputs(OutputsComplete(7, objects))

    def gone(info: ObjectInfo) -> object:
        raise ObjectLost("the segment is gone")

    monkeypatch.setattr("dagsched.outcome.copy_object", gone)
    assert run.copy_outputs(lambda broker: broker == 2) is False
    assert run.take_outputs(OutputsComplete(7, [inline(2, 10), inline(0, 3)])) is True
    end(run)
    assert run.result() == {"total": 10, "first": [3]}


def test_a_missing_output_is_an_internal_error(host: FakeHost) -> None:
    run = make_run(host)
    run.take_outputs(OutputsComplete(7, [inline(2, 10)]))
    end(run)
    with pytest.raises(InternalError, match=r"outputs at positions \[0\] are missing"):
        run.result()


def test_a_task_of_a_run_that_is_done_has_run_though_nobody_said_where(host: FakeHost) -> None:
    run = make_run(host)
    run.take_outputs(OutputsComplete(7, [inline(2, 10), inline(0, 3)]))
    end(run)
    text = run.explain(run.graph.keys()[0])
    assert "has run, when and where isn't known (its node was lost first, another client" in text
    assert "not run" not in text


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(1, 1, "timeout", exit=ExitInfo(None, 9)), "it took longer than its timeout"),
        (
            Failure(1, 1, "lost", executor=4, exit=ExitInfo(None, 9, log_tail="a\nno!\n")),
            "executor 4 was killed by signal 9, its last words: no!",
        ),
        (Failure(1, 1, "lost", executor=4, exit=ExitInfo(3)), "executor 4 ended with exit code 3"),
        (Failure(1, 1, "result", text="a lock"), "its result can't travel between processes: a l"),
        (Failure(1, 1, "argument", text="no module"), "its function or arguments can't be unpickl"),
        (Failure(1, 1, "memory"), "there was no room for it in memory"),
        (Failure(1, 1, "raised", "ValueError", "no"), "ValueError: no"),
    ],
    ids=lambda value: value.kind if isinstance(value, Failure) else "",
)
def test_what_a_trace_says_of_a_failure(host: FakeHost, failure: Failure, words: str) -> None:
    run = make_run(host)
    end(run, "failed", failure, b"")
    event = run.trace().events[-1]
    assert (event.kind, event.attempt) == ("failed", 1)
    assert event.text.startswith(words)


def test_trace_story_and_explanation(host: FakeHost) -> None:
    run = make_run(host)
    keys = run.graph.keys()
    assert f"{keys[0]} has not ended, and the master has not answered" in run.explain(keys[0])
    host.explanation = Explanation(
        7,
        Situation(2, "waiting", node=2),
        2,
        2,
        [Situation(0, "running", 2, 4, 3.2, 1), Situation(1, "ready", 2, ahead_count=2)],
    )
    assert run.explain(keys[2]) == (
        f"{keys[2]} waits on node 2; it waits for 2 of 2 inputs: {keys[0]} is running on executor "
        f"4 of node 2, begun 3.2 s ago; {keys[1]} is ready on node 2 and waits for an "
        "executor, behind 2 bundles; it belongs to subtree 1 (1 tasks)"
    )
    run.take_started()
    positions = np.array([0, 1], "<i4").tobytes()
    stamps = np.array([1000, 3000, 4000], "<i8").tobytes()
    run.take_traces(TracesArrived(7, 2, 4, 1, positions, stamps, b"", b""), 10)
    trace = run.trace()
    assert trace.duration_ns.tolist() == [2000, 1000, -1]
    assert trace.executor.tolist() == [4, 4, -1]
    host.explanation = None
    text = run.explain(keys[0])
    assert f"{keys[0]} has run on executor 4 of node 2 in 0.000002 s" in text
    assert "belongs to subtree 0 (2 tasks)" in text
    failure, frame = raised(ValueError("no"))
    end(run, "failed", failure, frame)
    assert "was not run: the run ended as failed" in run.explain(keys[2])
    assert run.trace().failed == (1,)
    story = run.story(keys[1])
    assert f"{keys[1]} submitted with run cafe0123-7, function add" in story[0]
    assert any("started on executor 4 of node 2, attempt 1" in line for line in story)
    assert any("failed for good (raised" in line for line in story)
    assert story[-1].endswith("the run ended as failed")


def test_a_story_has_what_happened_in_order(host: FakeHost) -> None:
    run = make_run(host)
    keys = run.graph.keys()
    begin = run.record.submitted_s
    piece = np.array([0], np.int32)
    events = [
        RunHappened(7, begin + 1, "placed", placements=[(0, 2, 1), (1, 5, 1)]),
        RunHappened(7, begin + 2, "retried", 2, 4, 0, 1, text="executor 4 was killed by signal 9"),
        RunHappened(7, begin + 2, "retried", 2, 4, 1, 1, text="of another task"),
        RunHappened(7, begin + 3, "node_lost", 5, text="it was of another subtree"),
        RunHappened(7, begin + 4, "node_lost", 2, text="node 2 was silent for 6.0 s"),
        RunHappened(7, begin + 4, "recovering", text="node 2 was lost"),
        RunHappened(7, begin + 5, "recomputed", subtree=2, positions=piece, text="node 2 was lost"),
        RunHappened(7, begin + 5, "recovered"),
        RunHappened(7, begin + 6, "placed", placements=[(2, 5, 2)]),
        RunHappened(7, begin + 8, "moved", 3, positions=piece),
        RunHappened(7, begin + 9, "cut"),
    ]
    for event in events:
        run.take_happened(event)
    stamps = np.array([(begin + 2.5) * 1e9, (begin + 3.5) * 1e9], "<i8").tobytes()
    run.take_traces(TracesArrived(7, 2, 4, 2, piece.tobytes(), stamps, b"", b""), 10)
    lines = [line.partition(" s: ")[2] for line in run.story(keys[0])]
    assert lines == [
        f"{keys[0]} submitted with run cafe0123-7, function add, depends on nothing",
        "placed on node 2 with subtree 0",
        "attempt 1 on executor 4 of node 2 came to nothing: executor 4 was killed by signal 9",
        "started on executor 4 of node 2, attempt 2",
        "ended on executor 4 of node 2 after 1.000000 s",
        "node 2 was lost, which had its value: node 2 was silent for 6.0 s",
        "the nodes that are left are asked what they hold",
        "to be computed again, in subtree 2: node 2 was lost",
        "all have told what they hold",
        "placed on node 5 with subtree 2, attempt 2",
        "its value was moved to node 3",
        "(more happened to the run than is kept: what follows may have gaps)",
    ]
    assert "was of another subtree" in "".join(run.story(keys[2]))


def test_troubles_are_those_of_the_moment(host: FakeHost) -> None:
    run = make_run(host)
    assert run.troubles() == ""
    run.take_happened(RunHappened(7, 1.0, "node_lost", 2))
    run.take_happened(RunHappened(7, 1.0, "recovering"))
    host.environment_troubles = ["journal waits for its store"]
    assert run.troubles() == "recovering, journal waits for its store"
    run.take_happened(RunHappened(7, 2.0, "recovered"))
    assert run.troubles() == "journal waits for its store"
    run.take_happened(RunStalled(7, 40.0, 2.0, None))
    host.environment_troubles = ["no nodes"]
    assert run.troubles() == "nothing moves, no nodes"
    end(run)
    assert run.troubles() == ""


def test_the_progress_bar_shows_them(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(host)
    host.environment_troubles = ["no nodes"]
    # The bar is drawn once, where there is no terminal: as it stands when waiting is over.
    run.wait = lambda timeout_s: True  # type: ignore[method-assign]  # in place of time
    wait_for_run(run, progress=True)
    assert "no nodes" in capsys.readouterr().err


def test_an_unknown_key(host: FakeHost) -> None:
    run = make_run(host)
    with pytest.raises(GraphError, match="has no task with key 'nobody'"):
        run.explain("nobody")
    key = run.graph.key(1)
    with pytest.raises(GraphError, match=f"has no task with key 'ad{key[3:]}'; there are {key}"):
        run.story("ad" + key[3:])
    with pytest.raises(GraphError, match="by its key or its Delayed, not by 5"):
        run.explain(5)
