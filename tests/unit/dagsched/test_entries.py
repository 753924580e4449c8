"""Argument entries and how values get into them."""

import copy
import pickle
from typing import Any

import pytest

from dagsched.entries import Slot, fill, slot

VALUES = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("entry", "args", "kwargs"),
    [
        (None, ["a", "b", "c"], {}),
        ((1, 2), (1, 2), {}),
        ((), (), {}),
        ([(None, 5, None), ((0, 1), (2, 1))], ["b", 5, "b"], {}),
        ({"args": (), "kwargs": {"k": 1}}, (), {"k": 1}),
        ({"args": (Slot(0),), "kwargs": {"k": Slot(2)}}, ("a",), {"k": "c"}),
        (
            {"args": ([Slot(0), {"x": (Slot(1),)}], 4), "kwargs": {"k": {"y": [Slot(2)]}}},
            (["a", {"x": ("b",)}], 4),
            {"k": {"y": ["c"]}},
        ),
    ],
)
def test_fill_of_each_kind(entry: Any, args: Any, kwargs: Any) -> None:
    before = copy.deepcopy(entry)
    filled_args, filled_kwargs = fill(entry, VALUES)
    assert filled_args == args
    assert filled_kwargs == kwargs
    assert entry == before


def test_a_value_that_is_a_container_is_not_looked_into() -> None:
    inner = [Slot(0)]
    args, _ = fill({"args": ([Slot(0)],), "kwargs": {}}, [inner])
    assert args[0][0] is inner


def test_a_container_in_two_arguments_stays_one() -> None:
    shared = [Slot(1)]
    args, kwargs = fill({"args": (shared,), "kwargs": {"k": shared}}, VALUES)
    assert args[0] == ["b"]
    assert args[0] is kwargs["k"]


def test_each_call_gets_containers_of_its_own() -> None:
    entry: Any = {"args": ([Slot(0)],), "kwargs": {}}
    first, _ = fill(entry, VALUES)
    first[0].append("changed")
    assert fill(entry, VALUES)[0] == (["a"],)


@pytest.mark.parametrize("index", [0, 255, 256, 100_000])
def test_slots_survive_pickling(index: int) -> None:
    loaded = pickle.loads(pickle.dumps(slot(index), 5))
    assert loaded == Slot(index)
    assert hash(loaded) == hash(Slot(index))
    assert loaded != Slot(index + 1)
    assert copy.deepcopy(loaded) is loaded
    assert repr(loaded) == f"Slot({index})"


def test_small_slots_are_one_object() -> None:
    assert slot(3) is slot(3)
    assert pickle.loads(pickle.dumps([slot(3), slot(3)], 5)) == [slot(3)] * 2
