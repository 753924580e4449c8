"""Arrays born where objects lie: no copy where nobody else has them, and the same values always."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagsched.brokers.objects import nursery as module
from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.layout import PAGE_BYTES
from dagsched.brokers.objects.nursery import Nursery
from dagsched.brokers.objects.reader import copy_value
from dagsched.brokers.objects.segments import unlink_segments
from dagsched.config import Config
from dagsched.protocol.messages import Location

MIB = 1 << 20
ITEMS = 2 * MIB // 8
PREFIX = f"dagsched-test-nursery-{os.getpid()}"

is_compiled = bool(list(Path(module.__file__).parent.glob("_nursery*.so")))
needs_compiled = pytest.mark.skipif(not is_compiled, reason="_nursery.c is not compiled here")

KEPT: list[Any] = []


class Cradle:
    """An arena and its nursery, and what an executor does with both."""

    def __init__(self, config: Config) -> None:
        self.arena = Arena(PREFIX, config)
        self.nursery = Nursery(self.arena)

    def seal(self, given: list[object]) -> Location:
        """As `Values.keep` does."""
        place = self.nursery.seal(given)
        if place is None:
            dumped = module.dump_value(given[0])
            place = self.arena.write(dumped.stream, dumped.buffers)
            given.clear()
        return place

    def close(self) -> None:
        """All ranges must be free by now."""
        self.nursery.give_back()
        unlink_segments(PREFIX)
        self.arena.check()
        self.arena.close()
        assert self.nursery.range_count == 0

    def warm(self, count: int = 1, items: int = ITEMS) -> None:
        """Have ranges for so many arrays of a size, as after tasks whose results were copied."""
        before = self.nursery.range_count
        places = [self.seal([np.full(items, 1.0)]) for _ in range(count)]
        for place in places:
            self.nursery.free(place)
        self.nursery.offer()
        assert self.nursery.range_count == before + count
        assert self.nursery.born_count == 0


@pytest.fixture
def cradle() -> Iterator[Cradle]:
    cradle = Cradle(Config())
    # The handler stays, and does nothing where nothing is offered.
    assert cradle.nursery.start() == is_compiled
    yield cradle
    KEPT.clear()
    gc.collect()
    cradle.close()


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def lies_in_arena(array: Any) -> bool:
    where = address(array)
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= where < high:
            return PREFIX in line
    raise AssertionError("the array lies nowhere")


@needs_compiled
def test_an_array_that_nobody_else_has_becomes_an_object_where_it_lies(cradle: Cradle) -> None:
    cradle.warm()
    array = np.full(ITEMS, 7.0)
    where = address(array)
    given: list[object] = [array]
    del array
    place = cradle.seal(given)
    assert given == []
    assert cradle.nursery.born_count == 1
    assert place.size_bytes == PAGE_BYTES + ITEMS * 8
    assert (copy_value(place) == 7.0).all()
    # The place is nobody else's while the object lives, and the next array's after it.
    assert not lies_in_arena(np.full(ITEMS, 8.0))
    assert (copy_value(place) == 7.0).all()
    cradle.nursery.free(place)
    again = np.full(ITEMS, 9.0)
    assert address(again) == where


@needs_compiled
def test_results_of_one_size_are_all_born_after_a_few(cradle: Cradle) -> None:
    """Each is freed when the next one has been made, as in a chain."""
    before: Location | None = None
    for number in range(10):
        cradle.nursery.offer()
        place = cradle.seal([np.full(ITEMS, float(number))])
        if before is not None:
            assert copy_value(before)[0] == number - 1  # type: ignore[index]
            cradle.nursery.free(before)
        before = place
        cradle.nursery.tend()
    assert cradle.nursery.born_count == 8
    assert before is not None
    cradle.nursery.free(before)


def keep_it(array: np.ndarray) -> np.ndarray:
    KEPT.append(array)
    return array


def keep_a_view(array: np.ndarray) -> np.ndarray:
    KEPT.append(array[10:20])
    return array


def keep_the_base(array: np.ndarray) -> np.ndarray:
    KEPT.append(array)
    return array[:]


def keep_a_memoryview(array: np.ndarray) -> np.ndarray:
    KEPT.append(memoryview(array))
    return array


def keep_a_cycle(array: np.ndarray) -> np.ndarray:
    loop: list[object] = [array]
    loop.append(loop)
    return array


@needs_compiled
@pytest.mark.parametrize(
    "keep", [keep_it, keep_a_view, keep_the_base, keep_a_memoryview, keep_a_cycle]
)
def test_what_somebody_else_has_is_copied(
    cradle: Cradle, keep: Callable[[np.ndarray], np.ndarray]
) -> None:
    cradle.warm()
    array = np.full(ITEMS, 7.0)
    where = address(array)
    given: list[object] = [keep(array)]
    del array
    place = cradle.seal(given)
    assert cradle.nursery.born_count == 0
    if KEPT:
        kept = np.asarray(KEPT[0])
        assert where <= address(kept) < where + ITEMS * 8
        kept[:] = -1
        assert not lies_in_arena(np.ones(ITEMS))
        assert (kept == -1).all()
        del kept
    assert (copy_value(place) == 7.0).all()
    cradle.nursery.free(place)
    KEPT.clear()
    gc.collect()
    assert address(np.ones(ITEMS)) == where


@needs_compiled
@pytest.mark.parametrize(
    ("make", "is_born"),
    [
        (lambda: np.full(ITEMS, 3.0).reshape(-1, 64), True),
        (lambda: np.full(ITEMS, 3.0).reshape(-1, 64).T, True),
        (lambda: np.full((ITEMS // 64, 64), 3.0, order="F"), True),
        (lambda: np.full(ITEMS, 3.0)[8:], True),
        (lambda: np.full(ITEMS, 3.0)[3:], False),  # not aligned as buffers of objects are
        (lambda: np.full(ITEMS, 3.0)[: ITEMS // 2], False),  # too much would be for nothing
        (lambda: np.full(ITEMS, 3.0)[::2], False),  # not contiguous
        (lambda: np.add(np.zeros(ITEMS), 1), True),
        (lambda: np.zeros(ITEMS), False),  # the system's, so that untouched zeros cost nothing
        (lambda: np.full(ITEMS, None), False),  # no numbers, but pointers
        (lambda: np.full(ITEMS, 3.0).astype("f4"), True),
        (lambda: np.full(ITEMS, 3.0).view(np.recarray), False),
        (lambda: np.full(100, 3.0), False),
        (lambda: np.full(ITEMS, 3, "M8[s]"), False),  # has no buffer
    ],
)
def test_arrays_of_all_kinds_come_out_as_they_were(
    cradle: Cradle, make: Callable[[], np.ndarray], is_born: bool
) -> None:
    cradle.warm()
    cradle.warm(items=ITEMS // 2)
    expected = make().copy(order="K")
    place = cradle.seal([make()])
    assert bool(cradle.nursery.born_count) == is_born
    found: Any = copy_value(place)
    assert type(found) is type(make())
    assert found.strides == expected.strides
    assert (found == expected).all()
    assert found.flags.f_contiguous == expected.flags.f_contiguous
    cradle.nursery.free(place)


@needs_compiled
def test_what_has_to_be_copied_is_not_pickled_for_nothing(
    cradle: Cradle, monkeypatch: pytest.MonkeyPatch
) -> None:
    cradle.warm()
    monkeypatch.setattr(module, "dump_value", None)
    for array in (np.full(2 * ITEMS, 3.0)[::2], np.zeros(ITEMS)):
        given: list[object] = [array]
        assert cradle.nursery.seal(given) is None
        assert given[0] is array


@needs_compiled
def test_an_array_may_grow_out_of_its_range(cradle: Cradle) -> None:
    cradle.warm()
    array = np.full(ITEMS, 5.0)
    where = address(array)
    array.resize(ITEMS - 10, refcheck=False)
    assert address(array) == where
    array.resize(4 * ITEMS, refcheck=False)
    assert not lies_in_arena(array)
    assert array.sum() == 5.0 * (ITEMS - 10)
    assert address(np.full(ITEMS, 6.0)) == where


@needs_compiled
def test_an_array_may_die_in_any_thread(cradle: Cradle) -> None:
    cradle.warm()
    given = [np.full(ITEMS, 5.0)]
    where = address(given[0])
    thread = threading.Thread(target=given.clear)
    thread.start()
    thread.join()
    assert address(np.full(ITEMS, 6.0)) == where


@needs_compiled
def test_other_threads_have_the_usual_memory(cradle: Cradle) -> None:
    cradle.warm()
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(lies_in_arena(np.full(ITEMS, 5.0))))
    thread.start()
    thread.join()
    assert found == [False]
    assert lies_in_arena(np.full(ITEMS, 5.0))


def in_a_fork(check: Callable[[], bool]) -> bool:
    """What a check says in a forked child."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFEXITED(status), status
    return os.waitstatus_to_exitcode(status) == 0


@needs_compiled
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_arrays_of_its_own(cradle: Cradle) -> None:
    cradle.warm(2)
    array = np.full(ITEMS, 5.0)
    told, tell = os.pipe()

    def child() -> bool:
        os.close(tell)
        os.read(told, 1)  # the parent has changed its array, and then ended this
        was_apart = bool((array == 5.0).all())
        array[:] = 6.0
        other = np.full(ITEMS, 7.0)
        return was_apart and not lies_in_arena(other) and bool((array == 6.0).all())

    pid = os.fork()
    if pid == 0:
        os._exit(0 if child() else 1)
    array[: ITEMS // 2] = -1
    os.close(told)
    os.close(tell)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (array[: ITEMS // 2] == -1).all()
    assert (array[ITEMS // 2 :] == 5.0).all()
    place = cradle.seal([array[:]])
    assert cradle.nursery.born_count == 0
    cradle.nursery.free(place)


@needs_compiled
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_a_forked_child_frees_stays_its_parents(cradle: Cradle) -> None:
    cradle.warm()
    held = [np.full(ITEMS, 5.0)]

    def child() -> bool:
        held.clear()
        return not lies_in_arena(np.full(ITEMS, 6.0)) and in_a_fork(
            lambda: not lies_in_arena(np.full(ITEMS, 7.0))
        )

    assert in_a_fork(child)
    assert (held[0] == 5.0).all()
    where = address(held[0])
    held.clear()
    assert address(np.full(ITEMS, 8.0)) == where


@needs_compiled
def test_what_is_not_used_for_long_is_taken_back(cradle: Cradle) -> None:
    cradle.warm(2)
    for _ in range(module.AGE_MAX + 2):
        np.full(ITEMS, 1.0)  # always in the same one of the two
    cradle.nursery.tend()
    assert cradle.nursery.range_count == 1
    for _ in range(module.AGE_MAX + 2):
        np.full(8 * ITEMS, 1.0)
    cradle.nursery.tend()
    assert cradle.nursery.range_count == 0
    cradle.nursery.offer()
    assert cradle.nursery.range_count == 0
    assert cradle.arena.used_bytes == 0


@needs_compiled
def test_a_few_ranges_of_a_size_are_enough(cradle: Cradle) -> None:
    places = [cradle.seal([np.full(ITEMS, 1.0)]) for _ in range(3 * module.OFFERED_MAX)]
    for place in places:
        cradle.nursery.free(place)
    cradle.nursery.offer()
    assert cradle.nursery.range_count == module.OFFERED_MAX
    # Objects that live at the same time need more; those go back to the arena.
    places = []
    for _ in range(2 * module.OFFERED_MAX):
        cradle.nursery.offer()
        places.append(cradle.seal([np.full(ITEMS, 1.0)]))
    assert cradle.nursery.born_count == len(places)
    for place in places:
        cradle.nursery.free(place)
    assert cradle.nursery.range_count == module.OFFERED_MAX


@needs_compiled
def test_ranges_make_room_for_objects() -> None:
    cradle = Cradle(Config(memory_limit_bytes=8 * MIB))
    cradle.nursery.start()
    cradle.warm(2)
    held = np.full(ITEMS, 4.0)
    place = cradle.seal([np.zeros(ITEMS)])
    # One range is the array's, the other one's memory is what the object got, and no file.
    assert cradle.nursery.range_count == 1
    assert "/" not in place.segment
    assert (held == 4.0).all()
    cradle.nursery.free(place)
    del held
    cradle.close()


@needs_compiled
def test_ranges_are_taken_back_where_the_node_is_full() -> None:
    cradle = Cradle(Config(store_bytes_max=8 * MIB))
    cradle.nursery.start()
    cradle.warm()
    places = [cradle.seal([np.zeros(ITEMS)]) for _ in range(2)]
    cradle.nursery.tend()
    assert cradle.nursery.range_count == 0
    cradle.nursery.offer()
    assert cradle.nursery.range_count == 0
    for place in places:
        cradle.nursery.free(place)
    cradle.close()


def test_without_the_compiled_part_all_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dagsched.brokers.objects._nursery", None)
    monkeypatch.delattr("dagsched.brokers.objects._nursery", raising=False)
    cradle = Cradle(Config())
    assert not cradle.nursery.start()
    for number in range(3):
        cradle.nursery.offer()
        given: list[object] = [np.full(ITEMS, float(number))]
        assert cradle.nursery.seal(given) is None
        place = cradle.seal(given)
        assert copy_value(place)[0] == number  # type: ignore[index]
        cradle.nursery.free(place)
        cradle.nursery.tend()
    assert cradle.nursery.range_count == cradle.nursery.born_count == 0
    cradle.close()
