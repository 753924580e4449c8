"""Copies of objects in files, made by a thread."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.reader import copy_value
from dagsched.brokers.objects.segments import unlink_segments
from dagsched.brokers.spilling import Spiller
from dagsched.config import Config
from dagsched.protocol.messages import Location
from dagsched.serialize import dump_value

PREFIX = f"dagsched-test-spilling-{os.getpid()}"


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(f"{PREFIX}-0", Config())
    yield arena
    arena.close()
    unlink_segments(PREFIX)


@pytest.fixture
def spiller(tmp_path: Path) -> Iterator[Spiller]:
    spiller = Spiller(tmp_path, f"{PREFIX}-s")
    spiller.open()
    yield spiller
    spiller.close()


def ended(spiller: Spiller) -> list[tuple[int, Location | None]]:
    """The next jobs that have ended, waited for by the descriptor."""
    assert select.select([spiller.fd], [], [], 20)[0]
    return spiller.take_done()


def test_a_copy_is_the_same_value_and_goes_when_it_is_freed(
    arena: Arena, spiller: Spiller, tmp_path: Path
) -> None:
    dumped = dump_value(bytearray(os.urandom(10_000_000)))
    arena.write(b"before", [])
    location = arena.write(dumped.stream, dumped.buffers)
    spiller.start(1, location)
    [(job, copied)] = ended(spiller)
    assert job == 1
    assert copied is not None
    assert copied.is_spilled
    assert copy_value(copied) == copy_value(location)
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}-s-1"]
    assert not spiller.free(location), "that is the arena's"
    assert spiller.free(copied)
    assert list(tmp_path.iterdir()) == []


def test_what_is_gone_or_has_no_room_leaves_nothing(
    arena: Arena, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    location = arena.write(b"some", [])
    nowhere = Spiller(tmp_path / "absent", f"{PREFIX}-s")
    nowhere.open()
    nowhere.start(1, location)
    assert ended(nowhere) == [(1, None)]
    nowhere.start(2, Location(f"{PREFIX}-gone", 0, 10))
    assert ended(nowhere) == [(2, None)]
    nowhere.close()
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "objects can't be moved to files"
    ], "said once"


def test_the_end_does_not_wait_for_all_that_was_wanted(arena: Arena, tmp_path: Path) -> None:
    location, _ = arena.write_raw(40_000_000)
    spiller = Spiller(tmp_path, f"{PREFIX}-s")
    spiller.open()
    for job in range(100):
        spiller.start(job, location)
    spiller.close()
    assert len(list(tmp_path.iterdir())) < 100
