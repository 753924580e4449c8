"""Chunks of calls: each as if it were alone."""

import pickle
import threading
from typing import Any

import pytest

from dagsched.calls import Earlier, outcomes, pack, pack_call, pack_rows, run_calls, run_rows
from dagsched.errors import RemoteTraceback, SerializationError, TaskFailed


def add(x: Any, y: Any = 0) -> Any:
    return x + y


def grow(items: list[int]) -> list[int]:
    items.append(len(items))
    return items


def values_of(results: Any) -> list[Any]:
    found = list(outcomes(results, "a call"))
    assert [outcome.error for outcome in found] == [None] * len(found)
    return [outcome.value for outcome in found]


def test_rows_give_their_values_in_order() -> None:
    results, seconds = run_rows(add, pack_rows([(1, 2), (3,), ("a", "b")]))
    assert values_of(results) == [3, 3, "ab"]
    assert 0 < seconds < 1


def test_no_call_sees_what_another_did_to_its_arguments() -> None:
    shared = [7]
    results, _ = run_rows(grow, pack_rows([(shared,), (shared,)]))
    assert values_of(results) == [[7, 1], [7, 1]]
    assert shared == [7]


def test_a_value_is_what_it_was_when_its_call_ended() -> None:
    kept: list[int] = []

    def grow_kept(_: int) -> list[int]:
        return grow(kept)

    results, _ = run_rows(grow_kept, pack_rows([(0,), (0,)]))
    assert values_of(results) == [[0], [0, 1]]


def test_rows_end_with_the_first_failure() -> None:
    called: list[int] = []

    def check(x: int) -> int:
        called.append(x)
        return 1 // x

    results, _ = run_rows(check, pack_rows([(1,), (0,), (2,)]))
    first, second = outcomes(results, "a call of check")
    assert (first.value, called) == (1, [1, 0])
    assert type(second.error) is ZeroDivisionError
    assert second.error.__notes__ == ["raised by a call of check"]
    assert type(second.error.__cause__) is RemoteTraceback
    assert "return 1 // x" in str(second.error.__cause__)


def test_calls_go_on_after_a_failure() -> None:
    calls = [pack_call((0, (1, 0), {})), pack_call((0, (1,), {"y": 1})), pack_call((1, (4,), {}))]
    results, spent = run_calls([lambda x, y: x // y, str], calls)
    found = list(outcomes(results, "a call"))
    assert [outcome.value for outcome in found] == [None, 1, "4"]
    assert type(found[0].error) is ZeroDivisionError
    assert [(of.function, of.calls) for of in spent] == [(0, 2), (1, 1)]
    assert all(0 < of.longest_s <= of.seconds for of in spent)


def test_a_call_gets_its_own_copy_of_an_earlier_value() -> None:
    calls = [
        pack_call((0, (), {})),
        pack_call((1, (Earlier(0),), {})),
        pack_call((1, (Earlier(0),), {})),
        pack_call((2, ({"x": [Earlier(1), Earlier(2)]},), {})),
    ]
    results, _ = run_calls([list, grow, lambda held: held["x"]], calls)
    assert values_of(results) == [[], [0], [0], [[0], [0]]]


def test_what_needs_a_failed_call_fails_as_that() -> None:
    calls = [pack_call((0, (0,), {})), pack_call((0, (Earlier(0),), {}))]
    results, _ = run_calls([lambda x: 1 // x], calls)
    errors = [outcome.error for outcome in outcomes(results, "a call")]
    assert [type(error) for error in errors] == [ZeroDivisionError, ZeroDivisionError]


def test_what_is_no_exception_comes_as_the_cause_of_one() -> None:
    def leave(_: int) -> None:
        raise SystemExit(3)

    results, _ = run_rows(leave, pack_rows([(0,)]))
    (outcome,) = outcomes(results, "a call of leave")
    assert type(outcome.error) is TaskFailed
    assert isinstance(outcome.error.__cause__, SystemExit)


def test_a_result_that_cannot_travel_fails_its_own_call() -> None:
    results, _ = run_calls(
        [lambda x: {"held": threading.Lock()} if x else x],
        [pack_call((0, (1,), {})), pack_call((0, (0,), {}))],
    )
    first, second = outcomes(results, "a call")
    assert isinstance(first.error, SerializationError)
    assert "result['held']" in str(first.error)
    assert second.value == 0


def test_an_argument_that_cannot_travel_is_named() -> None:
    with pytest.raises(SerializationError, match=r"args\[1\]\['x'\]") as found:
        pack_rows([(1, 2), (1, {"x": threading.Lock()})])
    assert found.value.path == "args[1]['x']"


def test_atomic_arguments_are_not_pickled_one_by_one() -> None:
    call = (0, (1, "a", None), {})
    assert pack_call(call) is call
    assert pickle.loads(pack((1, [2]), "value")) == (1, [2])
