"""Runs on real processes: values and their shapes, handles, side by side, in time."""

import asyncio
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from dagsched import RunEnv, delayed, resume, rundag, submit
from dagsched.errors import DagschedError, GraphError, TaskCancelled, TaskTimedOut
from dagsched.graph import build_graph
from tests import graphs


@delayed
def add(x: int, y: int = 0) -> int:
    return x + y


@delayed
def wait_for(path: str) -> str:
    """Wait until a file is there: a gate that a test can open."""
    while not Path(path).exists():
        time.sleep(0.002)
    return path


class Pair(NamedTuple):
    left: object
    right: object


@dataclass
class Box:
    item: object
    note: str


def test_one_task(env: RunEnv) -> None:
    assert rundag(env, add(1, 2)) == 3


def test_results_have_the_shape_of_what_was_asked(env: RunEnv) -> None:
    one, two = add(1), add(one_more := 1, y=1)
    assert one_more == 1
    assert rundag(env, [one, two]) == [1, 2]
    assert rundag(env, (one, two)) == (1, 2)
    assert rundag(env, {"a": one, "b": [two, 5]}) == {"a": 1, "b": [2, 5]}
    assert rundag(env, Pair(one, {"x": two})) == Pair(1, {"x": 2})
    assert rundag(env, Box([one], "kept")) == Box([1], "kept")
    assert rundag(env, [one, one]) == [1, 1]


def test_constants_need_no_task(env: RunEnv) -> None:
    assert rundag(env, [1, "a", {"b": (2,)}]) == [1, "a", {"b": (2,)}]
    assert rundag(env, []) == []
    assert rundag(env, delayed([1, add(2)])) == [1, 2]


def test_arguments_anywhere_in_containers(env: RunEnv) -> None:
    @delayed
    def total(items: list[object], extra: dict[str, int]) -> int:
        return sum(items[0]) + items[1]["x"] + extra["y"]  # type: ignore[arg-type, index]

    assert rundag(env, total([(add(1), add(2)), {"x": add(3)}], extra={"y": add(4)})) == 10


def test_functions_by_value_and_by_reference(env: RunEnv) -> None:
    factor = 3

    def local(x: int) -> int:
        return x * factor

    assert rundag(env, delayed(local)(add(2))) == 6
    assert rundag(env, delayed(lambda x: x + factor)(2)) == 5
    assert rundag(env, delayed(np.sum)([1, 2, 3])) == 6
    assert rundag(env, delayed(len)("four")) == 4


@pytest.mark.parametrize(
    "build",
    [
        lambda: graphs.straight([1] * 6**4),
        graphs.cross,
        lambda: graphs.wide(3000),
        lambda: graphs.chain(3000),
        lambda: graphs.tree(1024),
        graphs.ladder,
        lambda: graphs.fan_in(1000),
        lambda: graphs.fan_out(1000),
        lambda: graphs.butterfly(64),
        lambda: graphs.layered(3),
        graphs.quick_sum,
    ],
    ids=["straight", "cross", "wide", "chain", "tree", "ladder", "fan_in", "fan_out", "butterfly",
         "layered", "quick_sum"],
)  # fmt: skip
def test_graphs_of_many_shapes(env: RunEnv, build: object) -> None:
    dag, expected = build()  # type: ignore[operator]
    assert rundag(env, dag) == expected
    # Measured durations change the cut; the values stay.
    assert rundag(env, dag) == expected


def test_large_arrays_in_and_out(env: RunEnv) -> None:
    array = np.arange(1_000_000, dtype=np.float64)
    double = delayed(lambda x: x * 2)(array)
    result = rundag(env, {"double": double, "sum": delayed(np.sum)(double)})
    assert result["sum"] == 2 * array.sum()
    np.testing.assert_array_equal(result["double"], array * 2)
    result["double"][0] = 5
    assert result["double"][0] == 5


def test_a_task_that_returns_a_graph_is_replaced_by_its_result(env: RunEnv) -> None:
    @delayed
    def countdown(n: int) -> object:
        return n if n == 0 else countdown_again(n - 1)

    def countdown_again(n: int) -> object:
        return delayed(lambda m: m * 10)(n)

    assert rundag(env, add(countdown(5), 1)) == 41


def test_running_leaves_the_graph_as_it_was(env: RunEnv) -> None:
    import cloudpickle

    dag = add(add(1), y=add(2))
    before = cloudpickle.dumps(dag)
    assert rundag(env, dag) == 3
    assert rundag(env, dag) == 3
    assert cloudpickle.dumps(dag) == before


def test_a_handle_of_a_run(env: RunEnv, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run = submit(env, add(delayed(len)(wait_for(str(gate))), 1))
    assert not run.done()
    assert run in env.runs
    with pytest.raises(TimeoutError, match="it goes on"):
        run.result(timeout=0.05)
    called = threading.Event()
    run.add_done_callback(lambda ended: called.set() if ended is run else None)
    gate.touch()
    assert run.result(timeout=30) == len(str(gate)) + 1
    assert run.exception() is None
    assert run.progress() == (3, 3)
    assert called.wait(10)
    assert resume(env, run.run_id) is run
    assert rundag(env, add(1)) == 1


def test_callbacks_may_use_the_environment(env: RunEnv) -> None:
    values: list[int] = []
    ended = threading.Event()

    def again(run: object) -> None:
        values.append(rundag(env, add(20, 3)))
        ended.set()

    submit(env, add(1)).add_done_callback(again)
    assert ended.wait(20)
    assert values == [23]


def test_awaiting_runs(env: RunEnv) -> None:
    async def main() -> list[int]:
        runs = [submit(env, add(n, n)) for n in range(10)]
        return await asyncio.gather(*map(awaited, runs))

    async def awaited(run: object) -> int:
        return await run  # type: ignore[misc, no-any-return]

    assert asyncio.run(main()) == [2 * n for n in range(10)]


def test_runs_side_by_side_in_threads(env: RunEnv) -> None:
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        results[number] = [rundag(env, add(number, n)) for n in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {number: [number + n for n in range(20)] for number in range(4)}


def test_the_same_graph_twice_at_once(env: RunEnv) -> None:
    dag, expected = graphs.cross()
    runs = [submit(env, dag) for _ in range(5)]
    assert [run.result(30) for run in runs] == [expected] * 5
    assert len({run.run_id for run in runs}) == 5


def test_a_small_run_is_not_last(env: RunEnv) -> None:
    large = submit(env, [delayed(time.sleep)(0.02) for _ in range(200)])
    assert rundag(env, add(1, 1)) == 2
    assert not large.done()
    assert large.result(60) == [None] * 200


def test_cancelling_a_run(env: RunEnv, tmp_path: Path) -> None:
    run = submit(env, [wait_for(str(tmp_path / "never")) for _ in range(4)])
    started = time.monotonic()
    assert run.cancel() is True
    with pytest.raises(TaskCancelled, match=run.run_id):
        run.result(timeout=10)
    assert time.monotonic() - started < 5
    assert run.state == "cancelled"
    assert run.stats()["run"]["state"] == "cancelled"
    assert rundag(env, add(1, 1)) == 2


def test_a_run_that_takes_too_long_is_stopped(env: RunEnv, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TaskTimedOut, match="longer than its timeout"):
        rundag(env, wait_for(str(tmp_path / "never")), timeout=0.3)
    assert 0.25 < time.monotonic() - started < 5
    assert rundag(env, add(1, 1)) == 2


def test_no_time_at_all(env: RunEnv) -> None:
    with pytest.raises(TaskTimedOut):
        rundag(env, delayed(time.sleep)(10), timeout=0)
    assert rundag(env, add(1)) == 1


def test_what_is_no_graph_is_refused(env: RunEnv) -> None:
    with pytest.raises(TypeError, match=r"not function \(call it: delayed\(f\)\(x\)\)"):
        rundag(env, test_one_task)
    with pytest.raises(TypeError, match="not int"):
        rundag(env, 5)
    with pytest.raises(TypeError, match="first argument must be a RunEnv, not Delayed"):
        rundag(add(1), env)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be negative"):
        rundag(env, add(1), timeout=-1)
    with pytest.raises(TypeError, match="timeout must be seconds"):
        rundag(env, add(1), timeout="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="priority must be an int"):
        rundag(env, add(1), priority=1.5)  # type: ignore[arg-type]


def test_a_graph_with_a_function_that_no_task_calls(env: RunEnv) -> None:
    graph = build_graph(delayed(abs)(-3))
    more = replace(
        graph, functions=[min, *graph.functions], function_names=["min", "abs"],
        function_of=graph.function_of + np.int32(1),
    )  # fmt: skip
    assert rundag(env, more, timeout=30) == 3


def test_a_networkx_graph(env: RunEnv) -> None:
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_node("two", func=lambda: 2)
    graph.add_node("five", func=lambda: 5)
    graph.add_node("sum", func=lambda a, b: a + b)
    graph.add_edge("two", "sum")
    graph.add_edge("five", "sum")
    assert rundag(env, graph) == {"sum": 7}
    graph.add_edge("sum", "two")
    with pytest.raises(GraphError):
        rundag(env, graph)


def test_persisted_values_are_not_computed_again(env: RunEnv, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def costly(x: int) -> int:
        with log.open("a") as out:
            out.write("x")
        return x * 7

    kept = delayed(costly, persist=True)(6)
    assert rundag(env, add(kept, 1)) == 43
    assert rundag(env, add(kept, 2)) == 44
    assert rundag(env, [kept]) == [42]
    assert log.read_text() == "x"


def test_an_unknown_run_can_not_be_resumed(env: RunEnv) -> None:
    with pytest.raises(DagschedError, match="run 'nobody' is unknown"):
        resume(env, "nobody")


def test_a_run_explains_its_tasks(env: RunEnv) -> None:
    first = add(1)
    second = add(first, 2)
    run = submit(env, second)
    assert run.result(30) == 3
    trace = run.trace()
    assert trace.ran.all()
    assert set(trace.node.tolist()) == {env.nodes[0].brokerid}
    assert set(trace.executor.tolist()) <= set(env.nodes[0].executorids)
    assert f"{first.key} has run on executor" in run.explain(first)
    assert sum("ended on executor" in line for line in run.story(second.key)) == 1


def test_wrong_arguments_of_a_handle(env: RunEnv) -> None:
    run = submit(env, add(1))
    with pytest.raises(TypeError, match="timeout must be seconds, not str"):
        run.result("soon")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a callback must be callable, not int"):
        run.add_done_callback(5)  # type: ignore[arg-type]
    assert run.result() == 1


def test_progress_is_shown_when_asked_for(env: RunEnv, capsys: pytest.CaptureFixture[str]) -> None:
    assert rundag(env, [add(n) for n in range(50)], progress=True) == list(range(50))
    assert "50/50" in capsys.readouterr().err
    rundag(env, add(1), progress=None)
    assert capsys.readouterr().err == ""


def test_many_small_runs_leave_nothing(env: RunEnv) -> None:
    import os

    for n in range(20):
        rundag(env, add(n))
    before = (len(os.listdir("/proc/self/fd")), threading.active_count())
    for n in range(200):
        assert rundag(env, add(n, 1)) == n + 1
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert env.stats()["brokers"][0]["live_object_count"] == 0


def test_an_iterative_program_is_cut_once(env: RunEnv) -> None:
    """The same shape with other numbers, until a cut has been used again, and once more."""
    memory = env._cluster_in_use()._cuts
    assert memory is not None
    for start in range(50):  # estimates of calls that do nothing move much on a busy machine
        reused_count = memory.reused_count
        dag = delayed(sum)([add(start, number) for number in range(3_000)])
        assert rundag(env, dag) == 3_000 * start + sum(range(3_000))
        if reused_count:
            break
    else:
        pytest.fail("no cut was ever used again")
