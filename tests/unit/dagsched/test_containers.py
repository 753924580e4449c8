"""Looking into containers and rebuilding them."""

import dataclasses
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagsched.containers import has_leaf, is_container, leaves, rebuild


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Box:
    content: Any
    label: str = "box"
    size: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    content: Any


class Leaf:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Leaf({self.name})"


def is_leaf(item: object) -> bool:
    return type(item) is Leaf


def named(value: object) -> Any:
    return rebuild(value, lambda leaf: leaf.name, is_leaf)  # type: ignore[attr-defined]


A, B, C = Leaf("a"), Leaf("b"), Leaf("c")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (A, "a"),
        ([1, A], [1, "a"]),
        ((A, 1), ("a", 1)),
        ({"k": A, A: 1}, {"k": "a", A: 1}),
        ({A, 2}, {"a", 2}),
        (frozenset([A]), frozenset(["a"])),
        (Point(A, [B]), Point("a", ["b"])),
        (Box([A]), Box(["a"])),
        (Frozen((A,)), Frozen(("a",))),
        ([[], [[A]], {"x": ({B}, 1)}], [[], [["a"]], {"x": ({"b"}, 1)}]),
        ({(A, 1): 2, "k": [A]}, {(A, 1): 2, "k": ["a"]}),
    ],
)
def test_rebuilds_each_kind_of_container(value: object, expected: object) -> None:
    result = named(value)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        5,
        "text",
        [1, [2]],
        (1,),
        {"a": {1}},
        Point(1, 2),
        Box([1]),
        OrderedDict(a=1),
        Counter(a=A),
        range(3),
        Box,
    ],
)
def test_without_a_leaf_gives_the_very_same_object(value: object) -> None:
    assert named(value) is value
    assert not has_leaf(value, is_leaf)


def test_containers_without_a_leaf_stay_the_same_objects() -> None:
    inner: list[Any] = [1, [2]]
    result = named([inner, [A]])
    assert result == [inner, ["a"]]
    assert result[0] is inner


def test_a_shared_container_is_rebuilt_once() -> None:
    shared = [A]
    result = named([shared, {"again": shared}])
    assert result == [["a"], {"again": ["a"]}]
    assert result[0] is result[1]["again"]


def test_fields_that_are_not_arguments_are_kept() -> None:
    box = Box([A], "mine")
    box.size = 7
    result = named(box)
    assert (result.content, result.label, result.size) == (["a"], "mine", 7)
    assert box.content == [A]


def test_a_list_that_contains_itself() -> None:
    value: list[Any] = [A]
    value.append(value)
    result = named(value)
    assert result[0] == "a"
    assert result[1] is result
    assert list(leaves(value, is_leaf)) == [A]
    assert has_leaf(value, is_leaf)


def test_a_cycle_of_several_kinds() -> None:
    inner: dict[str, Any] = {"leaf": A}
    value = [(inner,)]
    inner["back"] = value
    result = named(value)
    assert result[0][0]["leaf"] == "a"
    assert result[0][0]["back"] is result


def test_a_cycle_without_leaves_is_left_alone() -> None:
    value: list[Any] = [1]
    value.append((value,))
    assert named(value) is value


def test_a_tuple_that_contains_itself_is_refused() -> None:
    inner: list[Any] = [A]
    value = (inner,)
    inner.append(value)
    with pytest.raises(ValueError, match="contains itself"):
        named(value)


def test_depth_beyond_the_interpreters_stack() -> None:
    depth = sys.getrecursionlimit() * 5
    value: Any = A
    for _ in range(depth):
        value = [value]
    result = named(value)
    for _ in range(depth):
        (result,) = result
    assert result == "a"
    assert list(leaves(value, is_leaf)) == [A]


def test_leaves_come_in_order_and_once_for_each_place() -> None:
    assert list(leaves([A, (B, {"k": C}), A], is_leaf)) == [A, B, C, A]


def test_replace_is_called_in_order_and_sets_by_key() -> None:
    seen: list[str] = []

    def replace(leaf: Any) -> int:
        seen.append(leaf.name)
        return len(seen)

    result = rebuild([B, ({C, A, B}, A), C], replace, is_leaf, lambda leaf: leaf.name)  # type: ignore[attr-defined]
    assert seen == ["b", "a", "b", "c", "a", "c"]
    assert result == [1, ({2, 3, 4}, 5), 6]


def test_a_leaf_may_be_a_container() -> None:
    assert rebuild([(1, 2), 3], sum, lambda item: type(item) is tuple) == [3, 3]  # type: ignore[arg-type]


def test_is_container() -> None:
    looked_into = [[], Point(1, 2), Box(1), OrderedDict(), defaultdict(list), deque()]
    assert all(map(is_container, looked_into))
    assert not any(map(is_container, ["a", Counter(), Box]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (OrderedDict(a=A, b=[B]), OrderedDict(a="a", b=["b"])),
        (defaultdict(list, a=A), defaultdict(list, a="a")),
        (deque([1, A, (B,)], maxlen=4), deque([1, "a", ("b",)], maxlen=4)),
    ],
)
def test_containers_of_the_collections_module_keep_their_state(
    value: object, expected: object
) -> None:
    found = named(value)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(found, defaultdict):
        assert found.default_factory is list
    if isinstance(found, deque):
        assert found.maxlen == 4


nested = st.recursive(
    st.one_of(st.integers(), st.sampled_from([A, B, C])),
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=2), inner),
        st.builds(Point, inner, inner),
        st.builds(Box, inner),
    ),
)


def naive(value: Any) -> Any:
    """What rebuild should give, by recursion."""
    if isinstance(value, Leaf):
        return value.name
    if isinstance(value, Point):
        return Point(*map(naive, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(naive, value))
    if isinstance(value, dict):
        return {key: naive(item) for key, item in value.items()}
    return Box(naive(value.content)) if isinstance(value, Box) else value


@given(nested)
def test_equals_the_naive_rebuild(value: object) -> None:
    assert named(value) == naive(value)
