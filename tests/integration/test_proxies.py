"""Proxies of multiprocessing's managers, as arguments and results of tasks."""

from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.managers import BaseManager, SyncManager
from typing import Any

import joblib
import pytest

from dagsched import RunEnv, delayed, rundag, setrunenv
from dagsched.errors import SerializationError
from dagsched.plugins.futures import DagschedExecutor
from dagsched.plugins.joblib import register


class Counter:
    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int) -> int:
        self.total += number
        return self.total


class Counters(BaseManager):
    """With a type, and thereby proxies, of a user's own."""


Counters.register("Counter", Counter)


@pytest.fixture(scope="module")
def manager() -> Iterator[SyncManager]:
    with get_context("spawn").Manager() as manager:
        yield manager


def append(items: Any, item: object, *_: object, **__: object) -> str:
    items.append(item)
    return type(items).__name__


def test_tasks_use_what_a_manager_keeps(env: RunEnv, manager: SyncManager) -> None:
    items = manager.list()
    large = ["x" * 2000]
    calls = [
        delayed(append)(items, 1),
        delayed(append)(items, item=2),
        delayed(append)(*[items, 3, lambda: None]),
        delayed(append)(items, 4, large),
        delayed(append)(items, 5, large, lambda: None),
        delayed(append)(items, 6, more={"x": [large, Counter()]}),
    ]
    assert rundag(env, calls) == ["ListProxy"] * 6
    assert sorted(items) == [1, 2, 3, 4, 5, 6]
    # More calls of one function are told apart by nothing but their arguments.
    assert rundag(env, [delayed(append)([], n) for n in range(3)]) == ["list"] * 3


def test_a_function_may_hold_one_and_a_value_be_one(env: RunEnv, manager: SyncManager) -> None:
    items = manager.list()
    assert rundag(env, delayed(lambda: append(items, "in it"))()) == "ListProxy"
    found = rundag(env, delayed(lambda given: [given])(items))
    assert list(found[0]) == ["in it"]


def test_submitted_calls(env: RunEnv, manager: SyncManager) -> None:
    queue, event, lock = manager.Queue(), manager.Event(), manager.Lock()

    def work(number: int) -> None:
        with lock:
            queue.put(number)

    with DagschedExecutor(env=env) as executor:
        waiting = executor.submit(event.wait, 60)
        for _ in range(3):  # alone, and in chunks, once they are known to be short
            done = [executor.submit(queue.put, n) for n in range(10)]
            assert [future.result() for future in done] == [None] * 10
        list(executor.map(work, range(10)))
        event.set()
        assert waiting.result() is True
    assert sorted(queue.get() for _ in range(40)) == sorted([*range(10)] * 4)


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
def test_a_manager_with_types_and_a_key_of_its_own(env: RunEnv, address: Any) -> None:
    counters: Any = Counters(address, b"not that of this process", ctx=get_context("spawn"))
    with counters, DagschedExecutor(env=env) as executor:
        counter = counters.Counter()
        futures = [executor.submit(call, counter, n) for n in (1, 2, 3)]
        assert max(future.result() for future in futures) == 6
        assert counter.add(0) == 6


def call(counter: Any, number: int) -> int:
    total: int = counter.add(number)
    return total


def test_joblib_passes_them_on(env: RunEnv, manager: SyncManager) -> None:
    register()
    setrunenv(env)
    items = manager.list()
    with joblib.parallel_config("dagsched"):
        joblib.Parallel()(joblib.delayed(items.append)(n) for n in range(5))
    assert sorted(items) == [0, 1, 2, 3, 4]


def test_a_manager_that_has_gone_is_a_clear_error(env: RunEnv) -> None:
    context = get_context("spawn")
    with context.Manager() as manager:
        items = manager.list()
    with pytest.raises(SerializationError, match="can't be unpickled there"):
        rundag(env, delayed(len)(items))


def test_what_only_children_inherit_is_refused(env: RunEnv) -> None:
    made: list[Callable[[], Any]] = [get_context("spawn").Lock, get_context("spawn").Queue]
    for make in made:
        with pytest.raises(SerializationError, match="inherit"):
            rundag(env, delayed(id)(make()))
