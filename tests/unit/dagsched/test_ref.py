"""References: identity, travel, and `collect` with a stand-in for the environment."""

import gc
import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from dagsched import ref as ref_module
from dagsched.errors import ClosedError
from dagsched.ref import (
    Ref,
    collect,
    collecting_refs,
    register_environment,
    set_resolver,
    unregister_environment,
)


class FakeResolver:
    """Values by (run, position), given as pickles, so that references in them are restored."""

    def __init__(self, values: dict[tuple[int, int], object]) -> None:
        self.pickles = {key: pickle.dumps(value) for key, value in values.items()}
        self.adopted: list[tuple[int, int]] = []
        self.fetched: list[tuple[int, int]] = []

    def fetch(self, ref: Ref) -> object:
        self.fetched.append((ref.run, ref.position))
        return pickle.loads(self.pickles[ref.run, ref.position])

    def adopt(self, ref: Ref) -> None:
        self.adopted.append((ref.run, ref.position))


class BatchingResolver(FakeResolver):
    """One that is asked for many at once."""

    def __init__(self, values: dict[tuple[int, int], object]) -> None:
        super().__init__(values)
        self.batches: list[int] = []

    def fetch_many(self, refs: Sequence[Ref]) -> list[object]:
        self.batches.append(len(refs))
        return [self.fetch(ref) for ref in refs]


def make(position: int, env: str = "e") -> Ref:
    return Ref(1, position, 8, "int", (2,), env)


@pytest.fixture
def resolver() -> Iterator[FakeResolver]:
    found = FakeResolver({(1, 0): 10, (1, 1): "one", (1, 2): [make(0), make(1)], (1, 3): make(2)})
    register_environment("e", found)
    yield found
    unregister_environment("e")


def test_attributes_and_key() -> None:
    ref = Ref(3, 14, 80, "ndarray", [2, 5], "abc")
    assert (ref.run, ref.position, ref.nbytes, ref.type_name) == (3, 14, 80, "ndarray")
    assert (ref.nodes, ref.env, ref.key) == ((2, 5), "abc", "ref-3-14")


def test_equality_is_by_environment_run_and_position() -> None:
    ref = Ref(1, 2, 8, "int", (2,), "e")
    same = Ref(1, 2, 0, "", (), "e")
    assert ref == same
    assert hash(ref) == hash(same)
    others = [Ref(2, 2, 8, "int", (2,), "e"), Ref(1, 3, 8, "int", (2,), "e"), make(2, "f")]
    assert all(ref != other for other in others)
    assert ref != (1, 2)


def test_a_ref_can_not_be_changed() -> None:
    ref = make(0)
    with pytest.raises(AttributeError, match="can't be changed"):
        ref.run = 2
    assert ref.run == 1


def test_a_pickle_is_small_and_comes_back_equal() -> None:
    ref = Ref(12, 345_678, 10**9, "numpy.ndarray", (2,), "0123abcd")
    data = pickle.dumps(ref, 5)
    back = pickle.loads(data)
    assert len(data) < 120
    assert back == ref
    assert (back.nbytes, back.type_name, back.nodes) == (10**9, "numpy.ndarray", (2,))


def test_pickled_refs_are_collected_in_their_context_only() -> None:
    with collecting_refs() as outer:
        pickle.dumps([make(1), {"x": make(2)}])
        with collecting_refs() as inner:
            pickle.dumps(make(3))
        pickle.dumps(make(4))
    pickle.dumps(make(5))
    assert inner == [(1, 3)]
    assert outer == [(1, 1), (1, 2), (1, 4)]


def test_other_threads_do_not_see_the_context() -> None:
    with collecting_refs() as found:
        thread = threading.Thread(target=lambda: pickle.dumps(make(1)))
        thread.start()
        thread.join()
    assert found == []


def test_a_restored_ref_is_adopted(resolver: FakeResolver) -> None:
    pickle.loads(pickle.dumps(make(1)))
    assert resolver.adopted == [(1, 1)]


def test_collect_leaves_other_values_alone() -> None:
    value = [1, {"a": (2, 3)}]
    assert collect(value) is value
    assert collect(None) is None


def test_collect_a_ref_and_refs_in_containers(resolver: FakeResolver) -> None:
    assert collect(make(0)) == 10

    class Pair(NamedTuple):
        left: object
        right: object

    @dataclass
    class Box:
        item: object
        other: int

    value = [make(0), (make(1), 5), {"k": make(0)}, {make(1)}, Pair(make(0), 2), Box(make(1), 3)]
    expected = [10, ("one", 5), {"k": 10}, {"one"}, Pair(10, 2), Box("one", 3)]
    assert collect(value) == expected
    assert type(collect(value)[4]) is Pair  # type: ignore[index]


def test_equal_refs_are_fetched_once(resolver: FakeResolver) -> None:
    assert collect([make(0), make(0), make(0)]) == [10, 10, 10]
    assert resolver.fetched == [(1, 0)]


def test_references_inside_fetched_values_are_collected_too(resolver: FakeResolver) -> None:
    assert collect(make(2)) == [10, "one"]
    assert collect(make(3)) == [10, "one"]
    assert collect({"deep": make(3)}) == {"deep": [10, "one"]}


def test_many_refs_are_asked_for_at_once() -> None:
    resolver = BatchingResolver({(1, n): n * n for n in range(50)})
    register_environment("b", resolver)
    try:
        assert collect([make(n, "b") for n in range(50)]) == [n * n for n in range(50)]
        assert resolver.batches == [50]
    finally:
        unregister_environment("b")


def test_a_closed_environment_is_an_error(resolver: FakeResolver) -> None:
    unregister_environment("e")
    with pytest.raises(ClosedError, match=r"ref-1-0.*closed"):
        collect([make(0)])


def test_the_process_wide_resolver_is_the_last_resort(resolver: FakeResolver) -> None:
    other = FakeResolver({(1, 0): "elsewhere"})
    set_resolver(other)
    try:
        assert collect(make(0, "unknown")) == "elsewhere"
        assert collect(make(0)) == 10
    finally:
        set_resolver(None)


def test_a_ref_can_be_referred_to_weakly() -> None:
    import weakref

    dead: list[int] = []
    ref = make(0)
    weakref.finalize(ref, dead.append, 1)
    del ref
    gc.collect()
    assert dead == [1]


def test_a_forked_child_knows_no_environment(resolver: FakeResolver) -> None:
    import os

    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, str(len(ref_module._resolver_by_env)).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as told:
        assert told.read() == "0"
    assert os.waitpid(child, 0)[1] == 0
