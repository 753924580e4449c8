"""Who wants which positions: few of them and crowds, against a plain list of pairs."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagsched.brokers.wants import CROWD_MIN, SPREAD_MAX, Wants


def rising(*values):
    return np.array(sorted(values), np.int32)


class Pairs:
    """The same by (owner, position)."""

    def __init__(self):
        self.pairs = []

    def add_many(self, positions, owner):
        self.pairs += [(owner, position) for position in positions.tolist()]

    def add(self, position, owner):
        self.pairs.append((owner, position))

    def take(self, first, count, is_due):
        taken = [(o, p) for o, p in self.pairs if first <= p < first + count and is_due(o)]
        self.pairs = [pair for pair in self.pairs if pair not in taken]
        return Counter(owner for owner, _ in taken)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 300), st.integers(0, 3)),
        st.tuples(st.just("few"), st.integers(0, 300), st.integers(0, 3)),
        st.tuples(st.just("many"), st.integers(0, 200), st.integers(0, 3)),
        st.tuples(st.just("sparse"), st.integers(0, 40), st.integers(0, 3)),
        st.tuples(st.just("take"), st.integers(0, 300), st.integers(1, 90)),
        st.tuples(st.just("take one"), st.integers(0, 300), st.just(1)),
        st.tuples(st.just("take even"), st.integers(0, 300), st.integers(1, 90)),
        st.tuples(st.just("drop"), st.integers(0, 3), st.just(0)),
    ),
    max_size=30,
)


@given(steps)
@settings(max_examples=200, deadline=None)
def test_as_a_list_of_pairs_does(script):
    wants, plain = Wants(), Pairs()
    for kind, number, other in script:
        if kind in ("few", "many", "sparse"):
            stop, step = {"few": (5, 1), "many": (97, 1), "sparse": (3_000, 40)}[kind]
            positions = np.arange(number, number + stop, step, dtype=np.int32)
            wants.add_many(positions, other)
            plain.add_many(positions, other)
        elif kind == "add":
            wants.add(number, other)
            plain.add(number, other)
        elif kind == "drop":
            wants.drop(lambda owner, gone=number: owner == gone)
            plain.pairs = [pair for pair in plain.pairs if pair[0] != number]
        else:
            even = kind == "take even"
            is_due = (lambda owner: owner % 2 == 0) if even else (lambda _: True)
            assert wants.take(number, other, is_due) == plain.take(number, other, is_due)
        items = [(owner, p) for owner, positions in wants.items() for p in positions]
        assert sorted(items) == sorted(plain.pairs)
        assert bool(wants) == bool(plain.pairs)
        expected = sorted({p for _, p in plain.pairs if 50 <= p < 150})
        assert wants.within(50, 150).tolist() == expected
    wants.clear()
    assert not wants
    assert wants.items() == []


def test_what_lies_far_apart_takes_no_array_as_long_as_the_way():
    wants = Wants()
    apart = np.arange(CROWD_MIN, dtype=np.int32) * SPREAD_MAX * 2
    wants.add_many(apart, "a")
    assert not wants._crowds
    wants.add_many(np.arange(CROWD_MIN, dtype=np.int32), "b")
    assert len(wants._crowds) == 1
    assert wants.take(0, 1) == {"a": 1, "b": 1}


@pytest.mark.parametrize("count", [1, 3, CROWD_MIN])
def test_nothing_is_taken_twice(count):
    wants = Wants()
    wants.add_many(np.arange(count, dtype=np.int32), "a")
    assert wants.take(0, count) == {"a": count}
    assert wants.take(0, count) == {}
    assert not wants
