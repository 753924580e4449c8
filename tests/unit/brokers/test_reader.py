"""Values read in place: private, writable, and known to be in use or not."""

import gc
import os
import resource
from collections.abc import Iterator

import numpy as np
import pytest

from dagsched.brokers.objects import reader as reader_module
from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.reader import COPY_BYTES_MAX, Reader, copy_value
from dagsched.brokers.objects.segments import unlink_segments
from dagsched.config import Config
from dagsched.errors import InternalError, ObjectLost
from dagsched.protocol.messages import Location
from dagsched.serialize import dump_value

LARGE = 2 * COPY_BYTES_MAX // 8


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(f"dagsched-test-reader-{os.getpid()}", Config())
    yield arena
    arena.close()
    unlink_segments(f"dagsched-test-reader-{os.getpid()}")


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


def seal(arena: Arena, value: object) -> Location:
    dumped = dump_value(value)
    return arena.write(dumped.stream, dumped.buffers)


def test_mapping_is_private_and_writable(arena: Arena, reader: Reader) -> None:
    location = seal(arena, {"a": np.arange(LARGE), "b": [1, 2]})
    one = reader.load("k", location)
    one["a"][:] = -1
    two = reader.load("k", location)
    assert two["a"][5] == 5
    assert two["b"] == [1, 2]
    assert not two["a"].flags.owndata
    assert two["a"].flags.aligned
    assert reader.read_bytes == 2 * location.size_bytes
    assert copy_value(location)["a"].sum() == np.arange(LARGE).sum()


def test_tells_held_once_and_dropped_once(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(LARGE))
    whole = reader.load("k", location)
    view = whole[3:10]
    del whole
    assert reader.try_close() == (["k"], [])
    assert reader.try_close() == ([], [])
    assert reader.is_live("k")
    # While it is held its bytes stay what they were, whatever else is mapped.
    assert view.tolist() == list(range(3, 10))
    del view
    assert reader.try_close() == ([], ["k"])
    assert reader.try_close() == ([], [])
    assert reader.live_count == 0


def test_value_dropped_at_once_is_never_told(arena: Arena, reader: Reader) -> None:
    reader.load("k", seal(arena, np.arange(LARGE)))
    assert reader.try_close() == ([], [])


def test_small_objects_are_copied(arena: Arena, reader: Reader) -> None:
    value = reader.load("k", seal(arena, np.arange(1000)))
    value[0] = 7
    assert reader.try_close() == ([], [])
    assert value[:2].tolist() == [7, 1]


def test_one_of_several_mappings_is_enough_to_hold(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(LARGE))
    kept = reader.load("k", location)
    reader.load("k", location)
    assert reader.try_close() == (["k"], [])
    assert kept[1] == 1


def test_unlinked_segment_is_lost_and_let_go(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(LARGE))
    reader.load("k", location)
    assert list(reader._files) == [location.segment]
    arena.unlink_all()
    assert reader.try_close() == ([], [])
    reader.tidy()
    assert list(reader._files) == []
    with pytest.raises(ObjectLost, match=location.segment):
        reader.load("k", location)
    with pytest.raises(ObjectLost):
        copy_value(location)


def test_open_files_are_bounded(
    arena: Arena, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "FILES_MAX", 2)
    arenas = [Arena(f"dagsched-test-reader-{os.getpid()}-{i}", Config()) for i in range(4)]
    locations = [seal(a, list(range(i, 10_000))) for i, a in enumerate(arenas)]
    for i, location in enumerate(locations):
        assert reader.load(i, location) == list(range(i, 10_000))
    assert list(reader._files) == [location.segment for location in locations[2:]]
    for a in arenas:
        a.close()


def test_without_descriptors_it_copies(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(LARGE))
    held = [reader.load(0, location)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 8, hard))
    try:
        held += [reader.load(key, location) for key in range(1, 40)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {int(value[9]) for value in held} == {9}
    assert 1 < reader.live_count < 40


def test_copy_of_a_long_header_and_of_big_bytes(arena: Arena) -> None:
    many = [np.full(200, i) for i in range(500)]
    copied = copy_value(seal(arena, many))
    assert [int(a[-1]) for a in copied] == list(range(500))
    big = bytes(range(256)) * 8192
    assert copy_value(seal(arena, big)) == big


def test_location_beyond_the_segment(arena: Arena, reader: Reader) -> None:
    location = seal(arena, np.arange(LARGE))
    beyond = Location(location.segment, 4 << 20, 1 << 20)
    with pytest.raises(InternalError, match="ends before"):
        reader.load("k", beyond)
    with pytest.raises(InternalError, match="ends before"):
        copy_value(beyond)


def test_views_in_cycles_are_held_until_collected(arena: Arena, reader: Reader) -> None:
    loop: list[object] = [reader.load("k", seal(arena, np.arange(LARGE)))]
    loop.append(loop)
    del loop
    assert reader.try_close() == (["k"], [])
    gc.collect()
    assert reader.try_close() == ([], ["k"])
