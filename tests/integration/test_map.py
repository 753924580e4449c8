"""A function over many inputs, lazily."""

import itertools
import operator
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dagsched import Delayed, RunEnv, delayed, submit
from dagsched.errors import ClosedError, ExecutorLost, SerializationError
from dagsched.mapping import CHUNK_ROWS_MAX, chunks_under_way


def double(x: Any) -> Any:
    return x * 2


def check(x: int) -> int:
    if x == 5_000:
        raise ValueError(f"not {x}")
    return x


def grow(items: list[int]) -> list[int]:
    items.append(0)
    return items


def graph_of(x: int) -> Delayed:
    return delayed(double)(x)


def die(_: int) -> None:
    os._exit(3)


def test_results_come_in_order(env: RunEnv) -> None:
    assert list(env.map(double, range(20_000))) == [2 * n for n in range(20_000)]
    assert list(env.map(operator.add, range(5), [1, 2, 3])) == [1, 3, 5]
    assert list(env.starmap(pow, [(2, 3), [3, 2], (5, 1)])) == [8, 9, 5]
    assert list(env.map(double, [])) == []
    assert list(env.map(lambda x: x + 1, [0, 1], chunksize=2)) == [1, 2]


def test_or_as_they_complete(env: RunEnv) -> None:
    found = list(env.map(double, range(20_000), ordered=False))
    assert sorted(found) == [2 * n for n in range(20_000)]


def test_a_chunk_has_as_many_inputs_as_asked_for(env: RunEnv) -> None:
    calls: list[int] = []

    def count_up(x: int) -> int:
        """How many calls its chunk has had before: each unpickles the function, and the list."""
        calls.append(x)
        return len(calls) - 1

    assert list(env.map(count_up, range(10), chunksize=4)) == [0, 1, 2, 3] * 2 + [0, 1]


def test_inputs_are_taken_as_they_are_needed(env: RunEnv) -> None:
    """Of endless inputs a bounded number is ahead of what was given."""
    taken = ahead = 0

    def inputs() -> Iterator[int]:
        nonlocal taken
        for n in itertools.count():
            taken += 1
            yield n

    mapped = env.map(double, inputs())
    for given, value in enumerate(itertools.islice(mapped, 200_000)):
        assert value == 2 * given
        ahead = max(ahead, taken - given)
    assert ahead <= (chunks_under_way(2) + 1) * CHUNK_ROWS_MAX
    mapped.close()  # type: ignore[attr-defined]  # it is a generator


def test_large_inputs_are_taken_in_small_chunks(env: RunEnv) -> None:
    taken = ahead = 0

    def inputs() -> Iterator[np.ndarray]:
        nonlocal taken
        for n in range(200):
            taken += 1
            yield np.full(20_000, n)  # 160 KB

    for given, value in enumerate(env.map(np.sum, inputs())):
        assert value == 20_000 * given
        ahead = max(ahead, taken - given)
    assert taken == 200
    assert ahead < 100


def test_leaving_the_loop_cancels_what_is_under_way(env: RunEnv) -> None:
    gate = threading.Event()

    def inputs() -> Iterator[int]:
        yield 0
        gate.set()
        while True:
            yield 3600

    import time

    mapped = env.map(time.sleep, inputs(), chunksize=1)
    assert next(mapped) is None
    assert gate.is_set()
    started = env.runs
    mapped.close()  # type: ignore[attr-defined]  # it is a generator
    for run in started:
        run.wait(20)
        assert run.state in ("done", "cancelled")
    assert "cancelled" in {run.state for run in started}


def test_a_failure_comes_in_its_place(env: RunEnv) -> None:
    found = []
    with pytest.raises(ValueError, match="not 5000") as error:
        found.extend(env.map(check, range(20_000)))
    assert found == list(range(5_000))
    assert "call of check on one of the inputs" in error.value.__notes__[0]
    with pytest.raises(ValueError, match="not 5000"):
        list(env.map(check, range(4_999, 5_002), chunksize=1))


def test_an_error_of_the_inputs_comes_in_its_place(env: RunEnv) -> None:
    def inputs() -> Iterator[int]:
        yield from range(100)
        raise KeyError("inputs")

    found: list[int] = []
    with pytest.raises(KeyError, match="inputs"):
        found.extend(env.map(double, inputs()))
    assert found == [2 * n for n in range(100)]


def test_an_input_that_cannot_travel_is_named(env: RunEnv) -> None:
    found: list[int] = []
    with pytest.raises(SerializationError, match="args"):
        found.extend(env.map(double, [*range(10), threading.Lock()], chunksize=5))
    assert found == [2 * n for n in range(10)]


def test_each_call_has_inputs_of_its_own(env: RunEnv) -> None:
    shared = [1]
    assert list(env.map(grow, [shared] * 50)) == [[1, 0]] * 50
    assert list(env.map(grow, [shared] * 50, chunksize=25)) == [[1, 0]] * 50
    assert shared == [1]


def test_references_and_graphs_stand_for_their_values(env: RunEnv) -> None:
    ref = submit(env, delayed(np.arange)(10_000), as_refs=True).result()
    assert list(env.map(np.sum, [ref, delayed(double)(4), 5], chunksize=3)) == [49_995_000, 8, 5]
    assert list(env.map(graph_of, range(100), chunksize=10)) == [2 * n for n in range(100)]


def test_a_call_that_kills_its_executor_again_and_again(env: RunEnv) -> None:
    with pytest.raises(ExecutorLost):
        list(env.map(die, range(100)))
    assert list(env.map(double, range(100))) == [2 * n for n in range(100)]


def test_wrong_arguments_are_told_at_once(env: RunEnv) -> None:
    with pytest.raises(TypeError, match="must be callable"):
        env.map(3, [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least one iterable"):
        env.map(double)
    with pytest.raises(ValueError, match="at least 1"):
        env.map(double, [1], chunksize=0)
    with pytest.raises(TypeError, match="int or None"):
        env.map(double, [1], chunksize=1.5)  # type: ignore[arg-type]
    env.close()
    with pytest.raises(ClosedError):
        env.map(double, [1])
