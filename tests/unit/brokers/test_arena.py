"""Segments grow, are reused, limited and removed."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.layout import PAGE_BYTES
from dagsched.brokers.objects.reader import copy_value
from dagsched.brokers.objects.segments import (
    SHM_DIRECTORY,
    default_store_bytes,
    unlink_segments,
)
from dagsched.config import Config
from dagsched.errors import InternalError, OutOfMemory
from dagsched.protocol.messages import Location
from dagsched.serialize import dump_value

MIB = 1 << 20


@pytest.fixture
def prefix() -> Iterator[str]:
    name = f"dagsched-test-arena-{os.getpid()}"
    yield name
    unlink_segments(name)


def segments(prefix: str) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in sorted(SHM_DIRECTORY.glob(f"{prefix}-*"))}


def seal(arena: Arena, value: object) -> Location:
    dumped = dump_value(value)
    return arena.write(dumped.stream, dumped.buffers)


def test_write_free_and_reuse(prefix: str) -> None:
    arena = Arena(prefix, Config())
    first = seal(arena, bytearray(b"x" * 100_000))
    assert first.segment == f"{prefix}-0"
    assert copy_value(first) == bytearray(b"x" * 100_000)
    assert segments(prefix) == {f"{prefix}-0": 4 * MIB}
    assert arena.used_bytes == -(-first.size_bytes // PAGE_BYTES) * PAGE_BYTES
    arena.free(first)
    assert arena.used_bytes == 0
    assert seal(arena, bytearray(b"y" * 100_000)) == first
    arena.check()
    arena.unlink_all()
    arena.close()
    assert segments(prefix) == {}


def test_segments_double_up_to_the_configured_size(prefix: str) -> None:
    arena = Arena(prefix, Config(segment_bytes=8 * MIB))
    for _ in range(6):
        arena.write_raw(4 * MIB)
    assert list(segments(prefix).values()) == [4 * MIB, 4 * MIB, 8 * MIB, 8 * MIB]
    arena.check()
    arena.close()


def test_large_object_has_a_segment_that_goes_when_cold(prefix: str) -> None:
    arena = Arena(prefix, Config(segment_bytes=4 * MIB))
    locations = []
    for _ in range(4):
        location, view = arena.write_raw(6 * MIB)
        view.release()
        locations.append(location)
    assert list(segments(prefix).values()) == [6 * MIB] * 4
    for location in locations:
        arena.free(location)
    assert len(segments(prefix)) == 2  # kept warm
    assert arena.total_bytes == 12 * MIB
    again, _ = arena.write_raw(6 * MIB)
    assert again.segment in segments(prefix)
    assert len(segments(prefix)) == 2
    arena.check()
    arena.close()


def test_empty_segments_stay_up_to_the_size_of_one(prefix: str) -> None:
    arena = Arena(prefix, Config(segment_bytes=8 * MIB))
    locations = []
    for _ in range(8):
        location, view = arena.write_raw(4 * MIB)
        view.release()
        locations.append(location)
    assert list(segments(prefix).values()) == [4 * MIB, 4 * MIB, 8 * MIB, 8 * MIB, 8 * MIB]
    for location in locations:
        arena.free(location)
    assert list(segments(prefix).values()) == [8 * MIB]
    assert arena.total_bytes == 8 * MIB
    arena.check()
    arena.close()


def test_limit_is_honoured_and_empty_segments_make_room(prefix: str) -> None:
    arena = Arena(prefix, Config(memory_limit_bytes=10 * MIB, segment_bytes=8 * MIB))
    small, view = arena.write_raw(1000)
    view.release()
    with pytest.raises(OutOfMemory, match=r"8,388,608 more bytes.*memory_limit_bytes"):
        arena.write_raw(8 * MIB)
    assert arena.total_bytes == 4 * MIB
    arena.free(small)
    large, _ = arena.write_raw(8 * MIB)  # the empty small segment had to go
    assert segments(prefix) == {large.segment: 8 * MIB}
    arena.close()


def test_full_shared_memory_is_an_error_and_leaves_nothing(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = os.posix_fallocate, []

    def fail(fd: int, offset: int, size: int) -> None:
        asked.append(size)
        if size > MIB:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fail)
    arena = Arena(prefix, Config())
    with pytest.raises(OutOfMemory, match=r"no shared memory for 2,097,152 more bytes.*/dev/shm"):
        arena.write_raw(2 * MIB)
    assert asked == [4 * MIB, 2 * MIB]
    assert segments(prefix) == {}
    location, _ = arena.write_raw(5000)  # a usual segment does not fit, the object itself does
    assert segments(prefix) == {location.segment: 8192}
    arena.check()
    arena.close()


def test_other_arenas_objects_are_refused(prefix: str) -> None:
    arena = Arena(prefix, Config())
    with pytest.raises(InternalError, match="is not of arena"):
        arena.free(Location("other-0", 0, 10))


def test_sweep_keeps_what_it_is_told_and_longer_names(prefix: str) -> None:
    names = [f"{prefix}-1-0", f"{prefix}-1-1", f"{prefix}-10-0"]
    for name in names:
        Path(SHM_DIRECTORY, name).touch()
    assert unlink_segments(f"{prefix}-1", keep={names[1]}) == [names[0]]
    assert sorted(segments(prefix)) == names[1:]
    assert unlink_segments(prefix) == names[1:]
    assert unlink_segments(prefix) == []


def test_what_has_no_room_goes_to_files_and_back(prefix: str, tmp_path: Path) -> None:
    arena = Arena(prefix, Config(memory_limit_bytes=6 * MIB, segment_bytes=4 * MIB), tmp_path)
    first = arena.write_raw(3 * MIB)[0]
    spilled = [arena.write_raw(3 * MIB)[0] for _ in range(3)]
    assert not first.is_spilled
    assert all(each.is_spilled for each in spilled)
    assert arena.spilled_bytes == 12 * MIB
    assert sorted(os.listdir(tmp_path)) == [Path(each.segment).name for each in spilled]
    location = arena.write(*dump_value(bytearray(b"x" * MIB))[:2])
    assert copy_value(location) == bytearray(b"x" * MIB)
    arena.check()
    for each in (first, *spilled, location):
        arena.free(each)
    assert os.listdir(tmp_path) == [], "files go when they are empty"
    assert arena.spilled_bytes == 0
    assert not arena.write_raw(3 * MIB)[0].is_spilled
    arena.check()
    arena.close()


def test_no_room_anywhere_names_both_places(prefix: str, tmp_path: Path) -> None:
    arena = Arena(prefix, Config(memory_limit_bytes=4 * MIB), tmp_path / "missing")
    with pytest.raises(OutOfMemory, match=r"memory_limit_bytes.*/dev/shm.*/missing, which has 0"):
        arena.write_raw(8 * MIB)
    arena.check()


def test_files_of_the_dead_are_removed_with_their_segments(prefix: str, tmp_path: Path) -> None:
    arena = Arena(f"{prefix}-7-1", Config(memory_limit_bytes=4 * MIB), tmp_path)
    names = [arena.write_raw(3 * MIB)[0].segment for _ in range(3)]
    (tmp_path / "others").touch()
    arena.close()
    assert unlink_segments(f"{prefix}-7-1", {names[1]}, tmp_path) == sorted([names[0], names[2]])
    assert unlink_segments(prefix, spill=tmp_path) == [names[1]]
    assert os.listdir(tmp_path) == ["others"]


def test_the_arenas_of_a_node_are_bounded_together(prefix: str, tmp_path: Path) -> None:
    config = Config(store_bytes_max=10 * MIB, segment_bytes=MIB)
    arenas = [Arena(f"{prefix}-{number}-1", config, tmp_path, prefix) for number in (3, 4)]
    written = [arenas[k % 2].write_raw(2 * MIB)[0] for k in range(8)]
    assert [location.is_spilled for location in written] == [False] * 5 + [True] * 3
    assert sum(segments(prefix).values()) == 10 * MIB
    # Whoever frees lets go of it, for another may want it; and memory is used again.
    arenas[0].free(written[0])
    assert sum(segments(prefix).values()) == 8 * MIB
    assert not arenas[1].write_raw(2 * MIB)[0].is_spilled
    # What the dead have left counts too.
    (SHM_DIRECTORY / f"{prefix}-9-1-0").write_bytes(bytes(MIB))
    arenas[1].free(written[1])
    assert arenas[0].write_raw(2 * MIB)[0].is_spilled
    for arena in arenas:
        arena.check()
        arena.close()


def test_a_store_below_its_bound_keeps_warm_segments(prefix: str) -> None:
    arena = Arena(f"{prefix}-3-1", Config(store_bytes_max=100 * MIB), None, prefix)
    location, _ = arena.write_raw(20 * MIB)
    arena.free(location)
    assert sum(segments(prefix).values()) == 20 * MIB
    arena.close()


def test_the_bound_where_nobody_says() -> None:
    limit = default_store_bytes()
    stats = os.statvfs(SHM_DIRECTORY)
    assert limit is not None
    assert 0 < limit <= stats.f_blocks * stats.f_frsize * 4 // 5
