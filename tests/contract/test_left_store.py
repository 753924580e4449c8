"""What a dead client left in its run directory, read by another process; T08 with real bytes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagsched.config import Config
from dagsched.errors import StoreUnavailable, VersionMismatch
from dagsched.metastore.embedded import EmbeddedStore
from dagsched.metastore.fold import fold_records
from dagsched.metastore.keys import environment_prefix, prefix_parts
from dagsched.metastore.opening import list_environments, open_left_store, open_store
from dagsched.metastore.port import Batch, MetaStore, Settlement
from dagsched.metastore.reading import read_environment, read_run, read_runs
from dagsched.metastore.records import (
    FRAME_OVERHEAD_BYTES,
    Ended,
    EnvironmentOpened,
    Placed,
    Record,
    Submitted,
    encode_record,
)

PREFIX = environment_prefix(os.getuid(), "/D/x", "5f0c2a91")
OPENED = EnvironmentOpened("5f0c2a91", "/D/x", "host", 12, 1.5, "0.1.0")
HISTORY: list[Record] = [
    Submitted(0, None, (b"plan",), None, b"client"),
    Placed(1, ((0, 2, 1),)),
    Placed(1, ((1, 2, 1), (2, 5, 1))),
]


def frames(*records: Record) -> bytes:
    return b"".join(frame for record in records for frame in encode_record(record))


def write_history(store: MetaStore) -> None:
    """One run that goes on, a record an entry, and one that is over."""
    store.append([Batch(0, 1, frames(OPENED))])
    store.append([Batch(7, 1 + index, frames(r)) for index, r in enumerate(HISTORY)])
    store.settle(Settlement({3: frames(Submitted(0, None, ()), Ended("done"))}, [], []))


CLIENT = """
import os, sys, signal
from pathlib import Path
from dagsched.config import Config
from dagsched.metastore.embedded import EmbeddedStore
from tests.contract.test_left_store import PREFIX, write_history
store = EmbeddedStore(Path(sys.argv[1]), PREFIX, Config())
store.open()
write_history(store)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def left(run_directory: Path) -> Path:
    """The run directory of a client that was killed."""
    root = Path(__file__).parents[2]
    client = subprocess.run(
        [sys.executable, "-c", CLIENT, str(run_directory)],
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert client.returncode == -signal.SIGKILL
    return run_directory


def file_of(directory: Path) -> Path:
    (path,) = directory.glob("store/appendonlydir/*.incr.aof")
    return path


def test_all_that_was_written_is_read(left: Path, config: Config) -> None:
    for _ in range(2):  # reading changes nothing
        store = open_left_store(left, config)
        assert store is not None
        assert store.environments() == [PREFIX]
        assert read_environment(store).environment == OPENED
        over, open_run = read_runs(store)
        assert (over.run, over.state) == (3, "done")
        assert (open_run.run, open_run.state) == (7, "open")
        assert open_run.placements == fold_records("s", HISTORY).placements
        assert read_run(store, 4) is None
        store.close()
    assert file_of(left).stat().st_size > 0


def test_its_journal_is_gone_on_with(left: Path, config: Config) -> None:
    store = open_left_store(left, config)
    assert store is not None
    state = read_run(store, 7)
    assert state is not None
    assert store.append([Batch(7, state.next_position, frames(Ended("cancelled")))]) == []
    store.close()
    again = open_left_store(left, config)
    assert again is not None
    assert [state.state for state in read_runs(again)] == ["done", "cancelled"]
    again.erase()
    assert list(left.iterdir()) == []


def test_nothing_is_left(run_directory: Path, config: Config) -> None:
    assert open_left_store(run_directory, config) is None
    assert list(run_directory.iterdir()) == []
    store = EmbeddedStore(run_directory, PREFIX, config)
    store.open()
    store.close()
    assert open_left_store(run_directory, config) is None


@pytest.mark.parametrize("cut", [1, 40, 150])
def test_a_file_whose_end_is_cut(cut: int, left: Path, config: Config) -> None:
    path = file_of(left)
    os.truncate(path, path.stat().st_size - cut)
    store = open_left_store(left, config)
    assert store is not None
    state = read_run(store, 7)
    assert state is not None
    assert state.submitted == HISTORY[0]
    assert state.dropped is None
    store.close()


def test_a_file_whose_end_is_garbage(
    left: Path, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    with open(file_of(left), "ab") as file:
        file.write(b"garbage\x00\xff that is no command")
    store = open_left_store(left, config)
    assert store is not None
    assert [state.run for state in read_runs(store)] == [3, 7]
    (warning,) = [record.message for record in caplog.records if "made no sense" in record.message]
    assert "the last 28 bytes" in warning
    store.close()


def test_a_file_that_is_no_file_of_a_store_says_so_at_once(left: Path, config: Config) -> None:
    (manifest,) = left.glob("store/appendonlydir/*.manifest")
    manifest.write_bytes(b"not a manifest\n")
    with pytest.raises(StoreUnavailable, match=r"has ended: .*manifest"):
        open_left_store(left, config)


def test_environments_on_a_server_are_listed(
    redis_url: str, run_directory: Path, config: Config
) -> None:
    assert list_environments(redis_url, config) == []
    prefixes = [environment_prefix(os.getuid(), "/D", token) for token in ("aa", "bb", "cc")]
    stores = [
        open_store(redis_url, prefix=prefix, run_directory=run_directory, config=config)
        for prefix in prefixes
    ]
    for store in stores:
        store.append([Batch(0, 1, frames(OPENED))])
    assert list_environments(redis_url, config) == prefixes
    assert [prefix_parts(prefix) for prefix in prefixes] == [
        ("/D", "aa"), ("/D", "bb"), ("/D", "cc")
    ]  # fmt: skip
    stores[1].erase()
    assert list_environments(redis_url, config) == [prefixes[0], prefixes[2]]
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.delete(f"{prefixes[0]}:runs", f"{prefixes[0]}:run:0")  # as if they had expired
        assert list_environments(redis_url, config) == [prefixes[2]]
        stores[2].erase()
        assert client.keys("*") == []
    stores[0].close()


# --- T08: real bytes of a real server -------------------------------------------------------------


@pytest.fixture
def server_store(redis_url: str, run_directory: Path, config: Config) -> Iterator[MetaStore]:
    store = open_store(redis_url, prefix=PREFIX, run_directory=run_directory, config=config)
    write_history(store)
    yield store
    store.erase()


def test_its_last_record_is_cut_at_each_byte(server_store: MetaStore) -> None:
    last = frames(HISTORY[2])
    expected = fold_records("s", HISTORY[:2])
    for length in range(len(last)):
        server_store.truncate(7, 3)
        assert server_store.append([Batch(7, 3, last[:length])]) == []
        state = read_run(server_store, 7)
        assert state is not None
        assert (state.placements, state.submitted) == (expected.placements, HISTORY[0])
        if length:
            assert state.dropped is not None
            assert "position 3" in state.dropped
            assert state.next_position == 3
            server_store.truncate(7, state.next_position)
            assert server_store.append([Batch(7, 3, last)]) == []
            whole = read_run(server_store, 7)
            assert whole is not None
            assert whole.placements == fold_records("s", HISTORY).placements


@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize("damage", ["garbage", "flipped", "empty tail"])
def test_damage_at_the_end_is_dropped_and_in_the_middle_an_error(
    position: int, damage: str, server_store: MetaStore
) -> None:
    entries = [entry.data for entry in server_store.read(7)]
    data = bytes(entries[position - 1])
    entries[position - 1] = {
        "garbage": b"garbage" * 9,
        "flipped": data[:14] + bytes([data[14] ^ 1]) + data[15:],
        "empty tail": data + bytes(10),
    }[damage]
    server_store.drop(7)
    server_store.append([Batch(7, 1 + index, data) for index, data in enumerate(entries)])
    if position < 3:
        with pytest.raises(StoreUnavailable, match=f"run 7, position {position}"):
            read_run(server_store, 7)
        over, unreadable = read_runs(server_store)
        assert over.state == "done"
        assert (unreadable.run, unreadable.state) == (7, "unreadable")
        assert f"position {position}" in str(unreadable.error)
        return
    state = read_run(server_store, 7)
    assert state is not None
    assert state.dropped is not None
    assert "run 7, position 3" in state.dropped


def test_an_entry_is_missing(server_store: MetaStore, redis_url: str) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.xdel(f"{PREFIX}:run:7", "2-0")
    with pytest.raises(StoreUnavailable, match="run 7, position 2 to 2"):
        read_run(server_store, 7)


def test_records_come_twice_and_in_another_order(server_store: MetaStore) -> None:
    server_store.drop(7)
    mixed = [HISTORY[2], HISTORY[0], HISTORY[1], HISTORY[2], HISTORY[0]]
    server_store.append([Batch(7, 1 + index, frames(r)) for index, r in enumerate(mixed)])
    state = read_run(server_store, 7)
    assert state is not None
    assert state.placements == fold_records("s", HISTORY).placements
    assert (state.submitted, state.state) == (HISTORY[0], "open")


def test_a_record_of_a_newer_version(server_store: MetaStore) -> None:
    import zlib

    newer = bytearray(frames(Ended("done")))
    newer[2] += 1
    head, body = newer[: FRAME_OVERHEAD_BYTES - 4], newer[FRAME_OVERHEAD_BYTES:]
    checksum = zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little")
    before = server_store.read(7)
    server_store.append([Batch(7, 4, bytes(head) + checksum + bytes(body))])
    with pytest.raises(VersionMismatch, match=r"version 2.*version 1"):
        read_run(server_store, 7)
    assert server_store.read(7)[:3] == before
    assert [state.state for state in read_runs(server_store)] == ["done", "unreadable"]
