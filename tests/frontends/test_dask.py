"""Dask's collections and graphs on real executors, with Dask's own schedulers as the oracle."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask.callbacks import Callback
from dask.diagnostics import CacheProfiler, Profiler, ProgressBar

from dagsched import RunEnv, visualize
from dagsched.errors import CycleError, GraphError, TaskCancelled
from dagsched.plugins.dask import Client, Future, as_completed, futures_of, get, wait
from tests.checkout import ROOT


@pytest.fixture(autouse=True)
def in_use(env: RunEnv) -> Iterator[None]:
    with dask.config.set({"scheduler": get, "dataframe.shuffle.method": "tasks"}):
        yield


def test_arrays() -> None:
    x = da.random.default_rng(1).random((200, 200), chunks=(30, 50))
    y = (x @ x.T - x.mean(axis=0)[:200]).rechunk((70, 70))[5:, ::2].std(axis=1)
    np.testing.assert_allclose(y.compute(), y.compute(scheduler="sync"))


def test_bags() -> None:
    bag = db.range(1_000, npartitions=20).map(lambda x: x % 7)
    assert bag.frequencies().compute() == bag.frequencies().compute(scheduler="sync")
    assert (
        sorted(bag.groupby(lambda x: x).map(lambda kv: len(kv[1])).compute()) == [142] + [143] * 6
    )


def test_files_of_bags_are_gone_afterwards(env: RunEnv, tmp_path: Path) -> None:
    with dask.config.set(temporary_directory=str(tmp_path)):
        for _ in range(3):
            assert len(db.from_sequence(range(10), npartitions=2).groupby(bool).compute()) == 2
        with Client(env, set_as_default=False) as client:
            grouped = db.from_sequence(range(10), npartitions=2).groupby(bool)
            assert len(client.compute(grouped).result()) == 2
    assert list(tmp_path.iterdir()) == []


def test_dataframes() -> None:
    df = dd.from_pandas(
        pd.DataFrame({"a": range(200), "b": [f"x{n % 5}" for n in range(200)]}), npartitions=9
    )
    for result in (
        df.groupby("b").a.agg(["sum", "mean"]),
        df.set_index("b").a.sum(),
        df.merge(df, on="a"),
    ):
        got, expected = result.compute(), result.compute(scheduler="sync")
        if isinstance(got, pd.DataFrame):
            got, expected = got.sort_values(list(got)), expected.sort_values(list(got))
            pd.testing.assert_frame_equal(
                got.reset_index(drop=True), expected.reset_index(drop=True)
            )
        else:
            assert got == expected


def test_delayed_and_containers() -> None:
    one = dask.delayed(abs)(-1)
    assert dask.compute({"a": [one, 2]}, (one,)) == ({"a": [1, 2]}, (1,))
    assert one.persist().compute() == 1
    assert dask.optimize(one)[0].compute() == 1


def test_persisted_collections_go_on() -> None:
    x = da.ones(100, chunks=10).persist()
    assert (x + 1).sum().compute() == 200


def test_errors_are_the_users_own_and_name_the_key() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        get({("bad", 3): (lambda: 1 / 0,)}, [("bad", 3)])
    assert "('bad', 3)" in caught.value.__notes__[0]
    with pytest.raises(CycleError):
        get({"a": (abs, "b"), "b": (abs, "a")}, "a")
    with pytest.raises(GraphError, match="'x'"):
        get({}, "x")
    with pytest.raises(TypeError, match="mapping"):
        get([1], "x")


def test_retries_by_annotation(tmp_path: Path) -> None:
    def flaky(path: Path) -> int:
        with path.open("a") as file:
            file.write("x")
        if len(path.read_text()) < 3:
            raise OSError("not yet")
        return 5

    with dask.annotate(retries=3):
        value = dask.delayed(flaky)(tmp_path / "tries")
    assert value.compute(optimize_graph=False) == 5
    assert (tmp_path / "tries").read_text() == "xxx"


def test_a_task_computes_in_its_own_process() -> None:
    def inner() -> tuple[int, int]:
        own = os.getpid()
        return own, get({"pid": (os.getpid,)}, "pid")

    one, other = dask.delayed(inner)().compute()
    assert one == other != os.getpid()


class Noted(Callback):  # type: ignore[misc]  # of Dask, untyped here
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def _start(self, dsk: Any) -> None:
        self.calls.append(("start", set(dsk)))

    def _start_state(self, dsk: Any, state: Any) -> None:
        self.calls.append(("state", len(state["waiting"]), state["dependencies"]["b"]))

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:
        self.calls.append(("pre", key))

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        self.calls.append(("post", key, result))

    def _finish(self, dsk: Any, state: Any, failed: bool) -> None:
        self.calls.append(("finish", len(state.get("finished", ())), failed))


def test_callbacks_see_every_task_and_its_value() -> None:
    with Noted() as noted:
        assert get({"a": (abs, -1), "b": (abs, "a")}, "b") == 1
    assert noted.calls[:2] == [("start", {"a", "b"}), ("state", 2, {"a"})]
    assert sorted(noted.calls[2:4]) == [("pre", "a"), ("pre", "b")]
    assert sorted(noted.calls[4:6]) == [("post", "a", 1), ("post", "b", 1)]
    assert noted.calls[6:] == [("finish", 2, False)]
    with Noted() as noted, pytest.raises(TypeError):
        get({"a": (abs, "x"), "b": (abs, "a")}, "b")
    assert noted.calls[-1][::2] == ("finish", True)


def test_progress_bars_and_profilers() -> None:
    out = io.StringIO()
    with ProgressBar(out=out, dt=0.01), Profiler() as profiler:
        assert da.ones(100, chunks=10).sum().compute() == 100
    assert "100% Completed" in out.getvalue()
    assert len(profiler.results) > 5
    with CacheProfiler() as of_values:
        assert da.ones(100, chunks=10).sum().compute() == 100
    assert len(of_values.results) > 5


def test_pictures_show_the_keys(env: RunEnv, tmp_path: Path) -> None:
    from dagsched import submit
    from dagsched.plugins.dask.conversion import convert_graph

    run = submit(env, convert_graph({("x", 1): (abs, -1), "y": (abs, ("x", 1))}, "y"))
    assert run.result() == 1
    visualize(run, str(tmp_path / "graph.svg"))
    assert (
        "(&#x27;x&#x27;, 1)" in (text := (tmp_path / "graph.svg").read_text()) or "('x', 1)" in text
    )
    assert any("done" in line or "ended" in line or "ran" in line for line in run.story("('x', 1)"))


def test_shuffles_on_disk_leave_no_files(tmp_path: Path) -> None:
    frame = dd.from_pandas(pd.DataFrame({"a": range(100), "b": range(100)}), npartitions=4)
    with dask.config.set(
        {"temporary_directory": str(tmp_path), "dataframe.shuffle.method": "disk"}
    ):
        assert frame.shuffle("a").compute().b.sum() == 4_950
    assert list(tmp_path.iterdir()) == []


# --- the client ---------------------------------------------------------------------------------


def test_calls_and_their_futures(env: RunEnv) -> None:
    with Client(env, set_as_default=False) as client:
        one = client.submit(pow, 2, 5)
        two = client.submit(pow, one, exp=2)
        total = client.submit(sum, [one, two, 1])
        assert (total.result(), one.result(), two.status) == (1057, 32, "finished")
        many = client.map(lambda x, y: x + y, range(100), range(100))
        assert client.gather(many) == [2 * n for n in range(100)]
        assert client.gather({"a": (one, 5)}) == {"a": (32, 5)}
        assert sorted(f.result() for f in as_completed(many)) == [2 * n for n in range(100)]
        wait(many, timeout=10)


def test_an_exception_is_one_futures_own(env: RunEnv) -> None:
    def fussy(x: int) -> int:
        if x == 3:
            raise ValueError("three")
        return x

    with Client(env, set_as_default=False) as client:
        futures = client.map(fussy, range(50))
        wait(futures)
        assert [f.status for f in futures].count("error") == 1
        assert client.gather(futures[:3]) == [0, 1, 2]
        assert len(client.gather(futures, errors="skip")) == 49
        with pytest.raises(ValueError, match="three"):
            client.gather(futures)
        after = client.submit(abs, futures[3])
        assert repr(after.exception()) == "ValueError('three')"


def test_values_are_scattered_once(env: RunEnv) -> None:
    with Client(env, set_as_default=False) as client:
        array = np.arange(100_000)
        (future,) = client.scatter([array], broadcast=True)
        sums = client.map(lambda n, x: int(x.sum()) + n, range(20), [future] * 20)
        assert client.gather(sums) == [int(array.sum()) + n for n in range(20)]
        named = client.scatter({"a": 1, "b": [2]})
        assert client.gather(named) == {"a": 1, "b": [2]}
        assert list(client.who_has(future).values()) == [(f"127.0.0.1#{env.nodes[0].brokerid}",)]


def test_collections_by_a_client(env: RunEnv) -> None:
    with Client(env) as client:
        x = da.ones((100, 100), chunks=(10, 10))
        kept = (x + 1).persist()
        assert kept.sum().compute() == 20_000
        future = client.compute(kept.sum())
        assert isinstance(future, Future)
        assert client.submit(lambda v: v + 1, future).result() == 20_001
        assert client.compute([x.sum(), 3], sync=True) == [10_000, 3]
        df = dd.from_pandas(pd.DataFrame({"a": range(20)}), npartitions=4).persist()
        assert df.a.sum().compute() == 190
    assert dask.config.get("scheduler") is get


def test_a_future_is_cancelled() -> None:
    import time

    with (
        RunEnv(executors=1, metastore="memory://") as own,
        Client(own, set_as_default=False) as client,
    ):
        future = client.submit(time.sleep, 100)
        future.cancel()
        assert isinstance(future.exception(30), TaskCancelled)
        assert future.cancelled()
        with pytest.raises(TimeoutError):
            client.submit(time.sleep, 100).result(0.01)


def test_a_callback_that_raises_keeps_nothing_from_going_on(
    env: RunEnv, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_future: Future) -> None:
        raise ValueError("not liked")

    with Client(env, set_as_default=False) as client:
        first = client.submit(time.sleep, 0.3)
        first.add_done_callback(fail)
        second = client.submit(lambda _: 5, first)
        assert second.result(timeout=30) == 5
        for _ in range(40):  # more than are under way at a time
            client.submit(abs, -1).add_done_callback(fail)
        assert client.submit(abs, -2).result(timeout=30) == 2
    assert "a callback of a future has failed" in caplog.text


def test_dataframes_by_a_client(env: RunEnv) -> None:
    df = dd.from_pandas(pd.DataFrame({"a": range(60), "b": [1, 2, 3] * 20}), npartitions=4)
    frames = [
        df.a.sum(),
        df.groupby("b").a.mean(),
        df.merge(df, on="a"),
        df.set_index("a", npartitions=3),
        df.shuffle("b"),
        df.drop_duplicates("b", split_out=2),
    ]
    with Client(env) as client:
        for frame in frames:
            expected = frame.compute(scheduler="sync")
            for found in (client.compute(frame, sync=True), client.persist(frame).compute()):
                if isinstance(expected, pd.DataFrame):
                    found, wanted = found.sort_index(), expected.sort_index()
                    assert found.equals(wanted[found.columns])
                else:
                    assert (found == expected).all() if hasattr(found, "all") else found == expected
        kept, array = dask.persist(df.groupby("b").a.sum(), da.ones(10, chunks=5) + 1)
        assert (kept.compute().sum(), array.sum().compute()) == (1_770, 20)
        assert client.compute([df.a.sum(), array.sum()], sync=True) == [1_770, 20]


def test_of_many_calls_some_are_under_way_at_a_time(env: RunEnv) -> None:
    from dagsched.plugins.dask.client import WINDOW_RUNS

    def most_runs() -> int:
        return sum(not run.done() for run in env.runs)

    with Client(env, set_as_default=False) as client:
        before = most_runs()
        futures, counts = [], []
        for n in range(8 * WINDOW_RUNS):
            futures.append(client.submit(pow, n, 2))
            counts.append(most_runs())
        assert max(counts) <= before + WINDOW_RUNS
        assert client.gather(futures) == [n * n for n in range(len(futures))]


def test_what_waits_for_its_turn_is_cancelled_at_once() -> None:
    import time

    from dagsched.plugins.dask.client import WINDOW_RUNS

    with (
        RunEnv(executors=1, metastore="memory://") as own,
        Client(own, set_as_default=False) as client,
    ):
        futures = [client.submit(time.sleep, 100) for _ in range(2 * WINDOW_RUNS)]
        futures[-1].cancel()
        assert futures[-1].done()
        assert futures[-1].cancelled()
        client.cancel(futures)
        wait(futures, timeout=30)
        assert client.submit(abs, -1).result(30) == 1


def test_waiting_as_dask_users_do(env: RunEnv, tmp_path: Path) -> None:
    def wait_for(path: Path) -> int:
        import time

        while not path.exists():
            time.sleep(0.001)
        return 7

    with Client(env) as client:
        fast, slow = client.submit(abs, -1), client.submit(wait_for, tmp_path / "go")
        done, not_done = wait([fast, slow], return_when="FIRST_COMPLETED")
        assert (done, not_done) == ({fast}, {slow})
        with pytest.raises(TimeoutError):
            wait({"x": [slow]}, timeout=0.01)
        with pytest.raises(TimeoutError):
            list(as_completed([slow], timeout=0.01))
        (tmp_path / "go").touch()
        assert wait(slow).done == {slow}
        results = as_completed([fast], with_results=True)
        values = []
        for _, value in results:
            values.append(value)
            if value < 4:
                results.add(client.submit(lambda x: x + 1, value))
        assert values == [1, 2, 3, 4]
        failed = client.submit(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            next(as_completed([failed], with_results=True))
        (pair,) = as_completed([failed], with_results=True, raise_errors=False)
        assert isinstance(pair[1], ValueError)
        kept = client.persist(da.ones(10, chunks=2))
        assert len(futures_of(kept)) == len(wait(kept).done) == 5


def test_keywords_of_dask_that_have_no_effect_are_no_arguments(env: RunEnv) -> None:
    with Client(env, set_as_default=False) as client:
        options: dict[str, Any] = {"allow_other_workers": True, "fifo_timeout": "1s"}
        assert client.submit(abs, -1, **options).result() == 1
        assert client.gather(client.map(abs, [-1], batch_size=5, **options)) == [1]
    with pytest.raises(TypeError, match=r"RunEnv or None, not 'tcp://"):
        Client("tcp://127.0.0.1:8786")  # type: ignore[arg-type]


def test_a_future_is_awaited(env: RunEnv) -> None:
    import asyncio

    async def ask() -> Any:
        with Client(env, set_as_default=False) as client:
            return await client.submit(abs, -5)

    assert asyncio.run(ask()) == 5


def test_who_there_is(env: RunEnv) -> None:
    with Client(env, set_as_default=False) as client:
        info = client.scheduler_info()
        assert {worker["name"] for worker in info["workers"].values()} == {
            executor for node in env.nodes for executor in node.executorids
        }
        client.close()


def test_without_dask_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['dask'] = None; import dagsched.plugins.dask"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'dagsched[dask]'" in done.stderr.splitlines()[-1]
