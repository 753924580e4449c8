"""Several calls as one function, and results whose items are kept apart."""

import gc
import pickle
import weakref
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest

from dagsched.composed import Composed, dict_of, frozenset_of, list_of, set_of, tuple_of
from dagsched.items import Items, kept_apart, take_item


def nested(x: int, *, y: int) -> tuple[int, int]:
    return (x, y)


def test_calls_use_arguments_constants_and_earlier_results() -> None:
    calls = [
        (max, (0, 1), ()),
        (list_of, (3, 2), ()),
        (nested, (4, 0), ("y",)),
    ]
    composed = Composed("three", 2, ("constant",), calls)
    assert composed(1, 5) == ([5, "constant"], 1)
    assert composed.__name__ == "three"
    with pytest.raises(TypeError, match="three takes 2 arguments, not 1"):
        composed(1)


def test_a_composed_function_travels() -> None:
    composed = Composed("one", 1, (2,), [(pow, (0, 1), ())])
    assert pickle.loads(pickle.dumps(composed))(3) == 9


def test_what_is_large_does_not_outlive_its_last_use() -> None:
    seen: list[Any] = []

    def first() -> Any:
        value = np.zeros(10)
        seen.append(weakref.ref(value))
        return value

    def third(length: int) -> int:
        gc.collect()
        assert seen[0]() is None
        return length

    composed = Composed("chain", 0, (), [(first, (), ()), (len, (0,), ()), (third, (1,), ())])
    assert composed() == 10


def test_containers_are_made_anew() -> None:
    assert list_of(1, 2) == [1, 2]
    assert tuple_of(1, 2) == (1, 2)
    assert set_of(1, 2) == {1, 2}
    assert frozenset_of(1, 2) == frozenset((1, 2))
    assert dict_of("a", 1, "b", 2) == {"a": 1, "b": 2}


class Pieces(dict[Any, Any]):
    """As Dask's shuffle has them."""


class Pair(NamedTuple):
    first: list[int]
    second: list[int]


@pytest.mark.parametrize(
    "value",
    [{"a": [1], 2: [3]}, [[1], [2]], ([1], [2]), Pieces({0: [1], 1: [2]}), Pair([1], [2])],
)
def test_items_are_taken_one_by_one(value: Any) -> None:
    apart = pickle.loads(pickle.dumps(kept_apart(value), 5))
    assert type(apart) is Items
    for key in value if isinstance(value, dict) else range(-2, 2):
        assert take_item(apart, key) == take_item(value, key) == value[key]
    with pytest.raises(LookupError):
        take_item(apart, 5)


def test_an_item_is_a_copy_each_time() -> None:
    apart = kept_apart([[1], [2]])
    take_item(apart, 0).append(5)
    assert take_item(apart, 0) == [1]


def test_what_has_no_items_of_its_own_stays_as_it_is() -> None:
    class Reversed(list[int]):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(-1 - index)

    for value in (np.arange(3), defaultdict(int, {0: 0, 1: 1}), Reversed([2, 1, 0])):
        assert kept_apart(value) is value
        assert take_item(value, 1) == 1
