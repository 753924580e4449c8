"""Large arrays between tasks: the values that everybody gets, however little of them is copied."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagsched import RunEnv, delayed, rundag
from dagsched.bench.arrays import alternating_chain
from dagsched.brokers.objects import nursery
from dagsched.submission import submit

MEGABYTES = 4
ITEMS = MEGABYTES * 125_000
ROUNDS = 6
"""The first ones teach an executor what sizes there are."""

is_compiled = bool(list(Path(nursery.__file__).parent.glob("_nursery*.so")))

KEPT: list[Any] = []  # of executors


@pytest.fixture
def one() -> Iterator[RunEnv]:
    """A node with one executor."""
    with RunEnv(executors=1, metastore="memory://") as env:
        yield env


def filled(value: float) -> np.ndarray:
    return np.full(ITEMS, value)


def kept(value: float) -> np.ndarray:
    """A result to which its function keeps a reference."""
    array = np.full(ITEMS, value)
    KEPT.append(array)
    return array


def spoil(_: object) -> float:
    """Change what `kept` has kept, and let go of it."""
    array = KEPT.pop()
    array[:] = -1.0
    return float(array.sum())


def least_and_most(array: np.ndarray, *_: object) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def raised_in_place(array: np.ndarray) -> np.ndarray:
    array += 1
    return array


def where_born(_: object) -> str:
    """Of what kind the memory of a fresh array is, as the kernel says it."""
    array = np.full(ITEMS, 1.0)
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return "shared" if "rw-s" in line else "private"
    return "nowhere"


@pytest.mark.parametrize("name", ["env", "one"])
def test_a_chain_of_arrays(name: str, request: pytest.FixtureRequest) -> None:
    env: RunEnv = request.getfixturevalue(name)
    for _ in range(2):
        array = delayed(filled)(0.0)
        for _ in range(10):
            array = delayed(np.add)(array, 1)
        assert rundag(env, delayed(least_and_most)(array)) == (10.0, 10.0)


def test_a_chain_that_changes_executors(env: RunEnv) -> None:
    for _ in range(2):
        dag, arrays, expected = alternating_chain(8, MEGABYTES)
        run = submit(env, dag)
        assert run.result(60) == expected
        trace = run.trace()
        place = {key: number for number, key in enumerate(run.graph.keys())}
        where = trace.executor[[place[array.key] for array in arrays]]
        assert (where[1:] != where[:-1]).any()


@pytest.mark.skipif(not is_compiled, reason="_nursery.c is not compiled here")
def test_results_are_born_in_shared_memory(one: RunEnv) -> None:
    array = delayed(filled, timeout=60)(0.0)
    for _ in range(ROUNDS):
        array = delayed(np.add, timeout=60)(array, 1)
    assert rundag(one, delayed(where_born)(array)) == "shared"


def test_a_result_stays_as_it_was_returned(one: RunEnv) -> None:
    for number in range(ROUNDS):
        array = delayed(kept, timeout=60)(float(number))
        spoiled = delayed(spoil, timeout=60)(array[:1])
        seen = delayed(least_and_most, timeout=60)(array, spoiled)
        assert rundag(one, [seen, spoiled]) == [(number, number), -1.0 * ITEMS]


def test_a_result_stays_as_it_was_returned_within_a_bundle(one: RunEnv) -> None:
    for number in range(ROUNDS):
        array = delayed(kept)(float(number))
        spoiled = delayed(spoil)(delayed(len)(array))
        seen = delayed(least_and_most)(array, spoiled)
        assert rundag(one, [seen, spoiled]) == [(number, number), -1.0 * ITEMS]


def test_users_that_change_an_array_in_place_do_not_meet(env: RunEnv) -> None:
    for number in range(ROUNDS):
        array = delayed(filled)(float(number))
        raised = [delayed(raised_in_place)(array) for _ in range(4)]
        twice = delayed(raised_in_place)(raised[0])
        dag = [delayed(least_and_most)(each) for each in (array, *raised, twice)]
        expected = [number, *[number + 1] * 4, number + 2]
        assert rundag(env, dag) == [(value, value) for value in expected]


def test_arrays_reach_the_client(one: RunEnv) -> None:
    arrays = [rundag(one, delayed(filled)(float(number))) for number in range(ROUNDS)]
    for number, array in enumerate(arrays):
        assert (array == number).all()


def die_once(flag: str, array: np.ndarray) -> float:
    fresh = [array + 1 for _ in range(3)]
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(sum(each[0] for each in fresh))


def test_an_executor_may_die_with_arrays_in_its_memory(one: RunEnv, tmp_path: Path) -> None:
    for number in range(3):
        array = delayed(filled, timeout=60)(1.0)
        for _ in range(ROUNDS):
            array = delayed(np.add, timeout=60)(array, 1)
        dead = delayed(die_once)(str(tmp_path / str(number)), array)
        assert rundag(one, dead) == 3.0 * (ROUNDS + 2)
