"""Mappings that are kept: warm for the next use, and as if nobody had used them."""

import gc
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dagsched.brokers.objects import mappings as module
from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.layout import PAGE_BYTES
from dagsched.brokers.objects.reader import Reader
from dagsched.brokers.objects.segments import unlink_segments
from dagsched.config import Config
from dagsched.protocol.messages import Location
from dagsched.serialize import dump_value

PREFIX = f"dagsched-test-mappings-{os.getpid()}"
ITEMS = 8 * module.KEPT_BYTES_MIN // 8
PAGE_ITEMS = PAGE_BYTES // 8


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(PREFIX, Config())
    yield arena
    arena.close()
    unlink_segments(PREFIX)


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


def seal(arena: Arena, value: object) -> Location:
    dumped = dump_value(value)
    return arena.write(dumped.stream, dumped.buffers)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def mapped(segment: str) -> int:
    """How many mappings of a segment this process has."""
    return Path("/proc/self/maps").read_text().count(segment)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_a_place_is_mapped_once_for_uses_one_after_the_other(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(ITEMS))
    array = reader.load("k", location)
    first = address(array)
    assert array.sum() == ITEMS * (ITEMS - 1) // 2
    del array
    before = faults()
    array = reader.load("k", location)
    assert address(array) == first
    assert array.sum() == ITEMS * (ITEMS - 1) // 2
    # A page at a time it would be 2,048 of them, or 128 where 16 come at once.
    assert faults() - before < 64


def test_uses_at_the_same_time_have_mappings_of_their_own(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(ITEMS))
    one = reader.load("k", location)
    view = one[5:7]
    del one
    two = reader.load("k", location)
    two[:] = 0
    assert view.tolist() == [5, 6]
    view[:] = -1
    three = reader.load("k", location)
    assert three[5] == 5
    assert two[5] == 0
    del two, three, view
    first, second = reader.load("k", location), reader.load("k", location)
    first[5] = -1
    assert second[5] == 5


def write_a_few(array: np.ndarray) -> None:
    array[0] = -1
    array[7 * PAGE_ITEMS : 9 * PAGE_ITEMS] = -1
    array[-1] = -1


def write_every_other_page(array: np.ndarray) -> None:
    assert len(array) > 2 * module.RANGES_MAX * PAGE_ITEMS
    array[:: PAGE_ITEMS * 2] = -1


def write_all(array: np.ndarray) -> None:
    array[:] = -1


def write_in_a_thread(array: np.ndarray) -> None:
    thread = threading.Thread(target=write_a_few, args=(array,))
    thread.start()
    thread.join()


def write_by_the_kernel(array: np.ndarray) -> None:
    """A read from a file, for which the process itself writes nothing."""
    with open("/dev/urandom", "rb", buffering=0) as random:
        assert random.readinto(array[1000:1100].data.cast("B")) == 800


@pytest.mark.parametrize(
    "write",
    [write_a_few, write_every_other_page, write_all, write_in_a_thread, write_by_the_kernel],
)
def test_what_a_use_changes_the_next_one_does_not_see(
    arena: Arena, reader: Reader, write: Callable[[np.ndarray], None]
) -> None:
    location = seal(arena, np.arange(ITEMS))
    array = reader.load("k", location)
    first = address(array)
    array.sum()  # maps all pages, so that there is something to be undone
    write(array)
    assert not np.array_equal(array, np.arange(ITEMS))
    del array
    again = reader.load("k", location)
    assert address(again) == first
    assert np.array_equal(again, np.arange(ITEMS))


def test_memory_of_changes_is_given_back_when_tidied(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(ITEMS))
    array = reader.load("k", location)
    write_all(array)
    start = address(array)
    del array
    assert own_bytes(start) >= ITEMS * 8
    reader.tidy()
    assert own_bytes(start) == 0
    assert mapped(location.segment) == 2  # the arena's, and the one that is kept


def own_bytes(start: int) -> int:
    """Of the mapping that holds an address: the memory that is only this process's."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    here = False
    for line in lines:
        word, *rest = line.split()
        if "-" in word and not word.endswith(":"):
            low, high = (int(part, 16) for part in word.split("-"))
            here = low <= start < high
        elif here and word == "Anonymous:":
            return int(rest[0]) << 10
    raise AssertionError(f"nothing is mapped at {start:x}")


def test_a_place_that_is_used_again_shows_its_new_object(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(ITEMS))
    array = reader.load("old", location)
    array[3] = -1
    first = address(array)
    del array
    arena.free(location)
    assert seal(arena, np.arange(ITEMS) + 1) == location
    array = reader.load("new", location)
    assert address(array) == first
    assert np.array_equal(array, np.arange(ITEMS) + 1)


def test_objects_in_use_are_told_though_their_mapping_stays(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(ITEMS))
    array = reader.load("k", location)
    assert reader.try_close() == (["k"], [])
    del array
    assert reader.try_close() == ([], ["k"])
    assert not reader.is_live("k")


def test_as_many_are_kept_as_may_be(
    arena: Arena, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 3)
    places = [seal(arena, np.arange(ITEMS) + number) for number in range(5)]
    arrays = [reader.load(number, place) for number, place in enumerate(places)]
    of_arena = len({place.segment for place in places})
    assert mapped(PREFIX) == of_arena + 5
    arrays.clear()
    reader.tidy()
    assert mapped(PREFIX) == of_arena + 3
    monkeypatch.setattr(module, "KEPT_BYTES_MAX", ITEMS * 8 + (1 << 20))
    reader.tidy()
    assert mapped(PREFIX) == of_arena + 1
    reader.close()
    assert mapped(PREFIX) == of_arena
    assert reader.load("k", places[2])[0] == 2


@pytest.mark.parametrize("is_used", [False, True])
def test_mappings_of_an_unlinked_segment_end(arena: Arena, reader: Reader, is_used: bool) -> None:
    location = seal(arena, np.arange(ITEMS))
    held = [reader.load("k", location)]
    if not is_used:
        held.clear()
        reader.tidy()
    arena.unlink_all()
    arena.close()
    reader.tidy()
    assert mapped(location.segment) == int(is_used)
    held.clear()
    reader.tidy()
    gc.collect()
    assert mapped(location.segment) == 0


def test_nothing_is_kept_where_the_system_does_not_tell_what_was_changed(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = seal(arena, np.arange(ITEMS))
    monkeypatch.setattr(module, "_PAGEMAP", "/nowhere/pagemap")
    reader = Reader()
    array = reader.load("k", location)
    assert reader.try_close() == (["k"], [])
    array[:] = -1
    del array
    assert reader.try_close() == ([], ["k"])
    assert mapped(location.segment) == 1
    assert reader.load("k", location)[5] == 5
    reader.close()


def test_nothing_is_kept_if_the_system_ceases_to_tell(
    arena: Arena, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = seal(arena, np.arange(ITEMS))
    array = reader.load("k", location)
    array[:] = -1
    monkeypatch.setattr(module, "_PAGEMAP", "/nowhere/pagemap")
    del array
    reader.tidy()
    assert mapped(location.segment) == 1
    assert reader.load("k", location)[5] == 5
