"""Turns of what a client starts."""

from collections.abc import Callable

import pytest

from dagsched.plugins.dask.window import Window


class Item:
    """Begins by a call, which tells whether it did."""

    def __init__(self, begin: Callable[[], bool], priority: int = 0) -> None:
        self.priority = priority
        self.launch = begin


def test_so_many_at_a_time_by_priority_and_age() -> None:
    begun: list[str] = []
    window = Window(2)

    def enter(name: str, priority: int = 0) -> None:
        window.enter(Item(lambda: begun.append(name) is None, priority))

    for name in "abcd":
        enter(name)
    enter("urgent", 1)
    assert begun == ["a", "b"]
    window.leave()
    window.leave()
    assert begun == ["a", "b", "urgent", "c"]
    window.leave()
    assert begun[-1] == "d"


def test_what_does_not_begin_takes_no_place() -> None:
    begun: list[int] = []
    window = Window(1)
    window.enter(Item(lambda: True))
    for _ in range(5_000):
        window.enter(Item(lambda: False))
    window.enter(Item(lambda: begun.append(1) is None))
    window.leave()
    assert begun == [1]


def test_an_interrupt_is_raised_and_keeps_no_other_from_its_turn() -> None:
    begun: list[str] = []
    window = Window(1)

    def interrupted() -> bool:
        window.enter(Item(lambda: begun.append("next") is None))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        window.enter(Item(interrupted))
    assert begun == ["next"]
    window.enter(Item(lambda: begun.append("last") is None))
    window.leave()
    assert begun == ["next", "last"]


def test_what_ends_as_it_begins_nests_nothing() -> None:
    ended: list[int] = []
    window = Window(1)

    def begin() -> bool:
        ended.append(1)
        window.leave()
        return True

    window.enter(Item(lambda: True))
    for _ in range(5_000):
        window.enter(Item(begin))
    window.leave()
    assert len(ended) == 5_000
