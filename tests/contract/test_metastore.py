"""One suite for every metadata store: memory, embedded, a real server over TCP and socket."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.metastore import open_store
from dagsched.metastore.embedded import EmbeddedStore
from dagsched.metastore.fold import Entry, fold_entries
from dagsched.metastore.journal import Journal, JournalHealth
from dagsched.metastore.port import Batch, MetaStore, Refusal, Settlement
from dagsched.metastore.records import Ended, Placed, Submitted

KINDS = ["memory", "embedded", "tcp", "socket"]


def url_of(kind: str, request: pytest.FixtureRequest) -> str | None:
    if kind == "memory":
        return "memory://"
    if kind == "embedded":
        return None
    server = request.getfixturevalue("redis_server")
    return server.url if kind == "tcp" else server.socket_url


@pytest.fixture(params=KINDS)
def store(
    request: pytest.FixtureRequest, redis_server: object, run_directory: Path, config: Config
) -> Iterator[MetaStore]:
    opened = open_store(
        url_of(request.param, request),
        prefix=f"dagsched:0/D:{secrets.token_hex(4)}",
        run_directory=run_directory,
        config=config,
    )
    yield opened
    opened.drop_all()
    assert opened.runs() == []
    opened.close()
    opened.close()
    opened.erase()


def test_nothing_is_there_at_first(store: MetaStore) -> None:
    store.ping()
    assert store.runs() == []
    assert store.read(1) == []


def test_entries_come_back_in_order(store: MetaStore) -> None:
    many = [Batch(7, position, b"%d" % position) for position in range(1, 101)]
    assert store.append(many[:3]) == []
    assert store.append([*many[3:], Batch(2, 1, b"other")]) == []
    assert store.read(7) == [Entry(position, b"%d" % position) for position in range(1, 101)]
    assert store.read(2) == [Entry(1, b"other")]
    assert store.runs() == [2, 7]


def test_bytes_are_kept_exactly(store: MetaStore) -> None:
    data = bytes(range(256)) * 40_000
    assert store.append([Batch(1, 1, data), Batch(1, 2, b"")]) == []
    assert store.read(1) == [Entry(1, data), Entry(2, b"")]


def test_a_repeated_append_is_stored_once(store: MetaStore) -> None:
    batches = [Batch(1, 1, b"a"), Batch(1, 2, b"b")]
    assert store.append(batches) == []
    assert store.append([*batches, Batch(1, 3, b"c")]) == []
    assert store.read(1) == [Entry(1, b"a"), Entry(2, b"b"), Entry(3, b"c")]


def test_another_writer_is_noticed(store: MetaStore) -> None:
    store.append([Batch(1, 1, b"a"), Batch(1, 2, b"b")])
    assert store.append([Batch(1, 2, b"mine")]) == [Refusal(1, 2, "taken")]
    assert store.read(1) == [Entry(1, b"a"), Entry(2, b"b")]


def test_a_stream_that_lost_its_end_is_noticed(store: MetaStore) -> None:
    store.append([Batch(1, position, b"%d" % position) for position in range(1, 5)])
    assert store.lengths([1, 9]) == [4, 0]
    store.truncate(1, 3)
    assert store.lengths([9, 1]) == [0, 2]
    refusals = store.append([Batch(1, 5, b"5"), Batch(2, 1, b"other"), Batch(1, 6, b"6")])
    assert {(refusal.run, refusal.kind) for refusal in refusals} == {(1, "gone")}
    assert store.read(2) == [Entry(1, b"other")]
    assert store.append([Batch(1, 1, b"A", is_fresh=True)]) == []
    assert store.read(1) == [Entry(1, b"A")]


def test_results_of_finished_runs(store: MetaStore) -> None:
    store.append([Batch(1, 1, b"a"), Batch(2, 1, b"b"), Batch(3, 1, b"c")])
    settlement = Settlement({1: b"one", 2: b"\x00\xff"}, [], [1, 2])
    store.settle(settlement)
    store.settle(settlement)
    assert (store.results(), store.runs()) == ([1, 2], [3])
    assert [store.result(run) for run in (1, 2, 3)] == [b"one", b"\x00\xff", None]
    store.settle(Settlement({5: b"five", 2: b"new"}, [1, 7], []))
    assert store.results() == [2, 5]
    assert store.result(2) == b"new"
    store.drop_all()
    assert store.results() == []


def test_a_lost_stream_is_noticed_and_not_begun_in_its_middle(store: MetaStore) -> None:
    store.append([Batch(1, 1, b"a"), Batch(2, 1, b"x")])
    store.drop(1)
    assert store.append([Batch(1, 2, b"b"), Batch(2, 2, b"y")]) == [Refusal(1, 2, "gone")]
    assert store.read(1) == []
    assert store.read(2) == [Entry(1, b"x"), Entry(2, b"y")]


def test_a_fresh_batch_begins_the_stream_anew(store: MetaStore) -> None:
    store.append([Batch(1, 1, b"a"), Batch(1, 2, b"b")])
    anew = [Batch(1, 1, b"A", is_fresh=True), Batch(1, 2, b"B")]
    assert store.append(anew) == []
    assert store.append(anew) == []
    assert store.read(1) == [Entry(1, b"A"), Entry(2, b"B")]


def test_a_truncated_stream_goes_on_from_there(store: MetaStore) -> None:
    store.append([Batch(1, position, b"%d" % position) for position in range(1, 6)])
    store.truncate(1, 4)
    store.truncate(1, 9)
    assert store.read(1) == [Entry(1, b"1"), Entry(2, b"2"), Entry(3, b"3")]
    assert store.append([Batch(1, 4, b"new")]) == []
    assert store.read(1)[-1] == Entry(4, b"new")
    store.truncate(1, 1)
    assert store.read(1) == []
    assert store.append([Batch(1, 1, b"first")]) == []


def test_dropping_a_run_leaves_the_others(store: MetaStore) -> None:
    store.append([Batch(1, 1, b"a"), Batch(2, 1, b"b")])
    store.drop(1)
    store.drop(1)
    assert store.runs() == [2]
    assert store.read(2) == [Entry(1, b"b")]
    store.drop_all()
    assert store.runs() == []
    assert store.read(2) == []


def test_info_names_kind_and_address(store: MetaStore) -> None:
    store.append([Batch(1, 1, b"a")])
    info = store.info()
    assert info.kind in {"memory", "embedded", "redis"}
    assert info.address.startswith(("memory://", "unix://", "redis://"))
    assert info.used_bytes > 0


def test_journal_to_fold(store: MetaStore, config: Config) -> None:
    journal = Journal(store, config)
    journal.open()
    large = os.urandom(20 << 20)
    journal.put(1, Submitted(0, None, [large]))
    for subtree in range(1000):
        journal.put(1, Placed(1, [(subtree, 2, 1)]))
    journal.put(1, Ended("done"))
    assert journal.flush(20)
    state = fold_entries("run 1", store.read(1))
    assert journal.close()
    assert state.submitted == Submitted(0, None, (large,))
    assert state.placements == dict.fromkeys(range(1000), (2, 1, 1))
    assert (state.state, state.dropped, state.record_count) == ("done", None, 1002)


# --- servers of others ----------------------------------------------------------------------


def test_environments_share_a_server_without_meeting(
    redis_url: str, run_directory: Path, config: Config
) -> None:
    one = open_store(
        redis_url, prefix="dagsched:0/D:aa", run_directory=run_directory, config=config
    )
    two = open_store(
        redis_url, prefix="dagsched:0/D:ab", run_directory=run_directory, config=config
    )
    one.append([Batch(1, 1, b"one")])
    two.append([Batch(1, 1, b"two")])
    one.drop_all()
    assert one.runs() == []
    assert two.read(1) == [Entry(1, b"two")]
    two.drop_all()
    one.close()
    two.close()


def test_keys_expire(redis_url: str, run_directory: Path) -> None:
    import redis

    config = Config(key_expiry_s=1000)
    store = open_store(
        redis_url, prefix="dagsched:0/D:e", run_directory=run_directory, config=config
    )
    store.append([Batch(3, 1, b"x")])
    with redis.Redis.from_url(redis_url) as client:
        assert sorted(client.keys("dagsched:0/D:e*")) == [
            b"dagsched:0/D:e:run:3",
            b"dagsched:0/D:e:runs",
        ]
        assert 990 <= client.ttl("dagsched:0/D:e:run:3") <= 1000
        assert 990 <= client.ttl("dagsched:0/D:e:runs") <= 1000
        store.append([Batch(3, 2, b"y", expiry_s=50)])
        assert 40 <= client.ttl("dagsched:0/D:e:run:3") <= 50
        store.settle(Settlement({4: b"result"}, [], []))
        assert 3590 <= client.ttl("dagsched:0/D:e:results") <= 3600
    store.drop_all()
    store.close()


@pytest.mark.parametrize(
    "url", ["http://x", "localhost:6379", "", "redis:/x", "memory://x", "unix:"]
)
def test_a_wrong_scheme_names_the_right_ones(url: str, run_directory: Path, config: Config) -> None:
    with pytest.raises(ValueError, match=r"memory://, redis://, rediss://, unix://"):
        open_store(url, prefix="p", run_directory=run_directory, config=config)


def open_fails(url: str, run_directory: Path, config: Config) -> str:
    """The message of the error that opening gives, within the time promised."""
    start = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        open_store(url, prefix="p", run_directory=run_directory, config=config)
    assert time.monotonic() - start < config.store_timeout_s
    return str(caught.value)


def test_nobody_listens(run_directory: Path, config: Config) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{bound.getsockname()[1]}/0"
        message = open_fails(url, run_directory, config)
    assert url in message
    assert "refused" in message


def test_no_such_socket(run_directory: Path, config: Config) -> None:
    url = f"unix://{run_directory}/none.sock"
    message = open_fails(url, run_directory, config)
    assert url in message
    assert "No such file" in message


@pytest.mark.parametrize(
    "answer",
    [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\xff\x00\r\n", b"*1\r\n$-5\r\n"],
)
def test_not_a_redis(answer: bytes | None, run_directory: Path, config: Config) -> None:
    """A server that says nothing (None), hangs up, or speaks another language."""

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(100)
                if answer is None:
                    done.wait(10)
                else:
                    connection.sendall(answer)

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        try:
            assert url in open_fails(url, run_directory, config)
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_password_is_not_told(run_directory: Path, config: Config) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"redis://me:secret@127.0.0.1:{bound.getsockname()[1]}/0"
        message = open_fails(url, run_directory, config)
    assert "secret" not in message
    assert "***@127.0.0.1" in message


def test_a_store_that_refuses_writes_says_so_in_its_own_words(
    redis_url: str, run_directory: Path, config: Config
) -> None:
    import redis

    store = open_store(
        redis_url, prefix="dagsched:0/D:m", run_directory=run_directory, config=config
    )
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                store.append([Batch(1, 1, b"x")])
        finally:
            client.config_set("maxmemory", "0")
    assert store.append([Batch(1, 1, b"x")]) == []
    store.drop_all()
    store.close()


def test_an_emptied_store_is_written_anew(
    redis_url: str, run_directory: Path, config: Config
) -> None:
    import redis

    store = open_store(
        redis_url, prefix="dagsched:0/D:f", run_directory=run_directory, config=config
    )
    torn: list[int] = []
    asked = threading.Event()

    def on_torn(run: int) -> None:
        torn.append(run)
        asked.set()

    journal = Journal(store, config, on_torn=on_torn)
    journal.open()
    records = [Submitted(0, None, [b"plan"]), Placed(1, [(0, 2, 1)]), Placed(1, [(1, 2, 1)])]
    journal.put(4, records[0])
    journal.put(4, records[1])
    assert journal.flush(10)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    journal.put(4, records[2])
    assert asked.wait(10)
    assert journal.health.state == "degraded"
    journal.restart(4, records)
    journal.put(4, Ended("done"))
    assert journal.close(flush_timeout_s=10)
    assert journal.health.state == "ok"
    assert torn == [4]
    state = fold_entries("run 4", store.read(4))
    assert (state.state, sorted(state.placements), state.record_count) == ("done", [0, 1], 4)
    store.drop_all()
    store.close()


# --- the embedded server ----------------------------------------------------------------------


def server_of(directory: Path) -> list[psutil.Process]:
    """Processes of the server in a directory, without its keeper."""
    found = []
    for process in psutil.process_iter(["cmdline", "name", "status"]):
        command = process.info["cmdline"] or []
        is_server = "valkey-server" in (process.info["name"] or "")
        if is_server and any(str(directory) in word for word in command):
            found.append(process)
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)  # what other processes do can only be looked at
    return True


def test_erasing_ends_the_server_and_removes_its_files(run_directory: Path, config: Config) -> None:
    store = EmbeddedStore(run_directory, "p", config)
    store.open()
    store.append([Batch(1, 1, b"x")])
    (server,) = server_of(run_directory)
    start = time.monotonic()
    store.erase()
    assert time.monotonic() - start < 1.0
    assert wait_until(lambda: not server.is_running(), 1.0)
    assert list(run_directory.iterdir()) == []


def test_erasing_at_once_works_too(run_directory: Path, config: Config) -> None:
    store = EmbeddedStore(run_directory, "p", config)
    store.open()
    store.erase()
    assert list(run_directory.iterdir()) == []
    assert wait_until(lambda: server_of(run_directory) == [])


def test_its_files_are_private(run_directory: Path, config: Config) -> None:
    store = EmbeddedStore(run_directory, "p", config)
    store.open()
    store.ping()
    assert (run_directory / "store.sock").stat().st_mode & 0o777 == 0o700
    assert (run_directory / "store").stat().st_mode & 0o777 == 0o700
    store.erase()


def test_a_killed_server_comes_back_with_its_data(run_directory: Path, config: Config) -> None:
    told: list[JournalHealth] = []
    recovered = threading.Event()

    def on_health(health: JournalHealth) -> None:
        told.append(health)
        if health.state == "ok":
            recovered.set()

    store = EmbeddedStore(run_directory, "p", config)
    store.open()
    journal = Journal(store, config, on_health=on_health)
    journal.open()
    journal.put(1, Submitted(0, None, [b"plan"]))
    assert journal.flush(10)
    (server,) = server_of(run_directory)
    server.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not server.is_running() or server.status() == "zombie")
    journal.put(1, Placed(1, [(0, 2, 1)]))
    assert journal.flush(10)
    assert recovered.wait(10)
    assert [health.state for health in told] == ["degraded", "ok"]
    assert journal.close()
    state = fold_entries("run 1", store.read(1))
    assert state.placements == {0: (2, 1, 1)}
    assert state.record_count == 2
    store.erase()


def test_a_server_that_never_comes_back_holds_nothing_up(
    run_directory: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddedStore(run_directory, "p", config)
    store.open()
    journal = Journal(store, config)
    journal.open()
    assert journal.flush(10)
    (server,) = server_of(run_directory)

    def refuse() -> None:
        raise StoreUnavailable("it stays away")

    monkeypatch.setattr(store, "open", refuse)
    server.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not server.is_running() or server.status() == "zombie")
    start = time.monotonic()
    for _ in range(1000):
        journal.put(1, Ended("done"))
    assert time.monotonic() - start < 0.5
    assert not journal.close(flush_timeout_s=0.3)
    assert journal.health.state == "degraded"
    assert time.monotonic() - start < 2.0
    store.erase()


def test_the_directory_of_a_live_store_is_taken(run_directory: Path) -> None:
    config = Config(store_timeout_s=0.5)
    first = EmbeddedStore(run_directory, "p", config)
    first.open()
    second = EmbeddedStore(run_directory, "p", config)
    with pytest.raises(StoreUnavailable, match="in use by another process"):
        second.open()
    first.append([Batch(1, 1, b"x")])
    assert first.read(1) == [Entry(1, b"x")]
    first.erase()


def test_a_path_too_long_for_a_socket(tmp_path: Path, config: Config) -> None:
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    with pytest.raises(ValueError, match="too long for a Unix socket"):
        open_store(None, prefix="p", run_directory=directory, config=config)


CLIENT = """
import os, sys, time
from pathlib import Path
from dagsched.config import Config
from dagsched.metastore.embedded import EmbeddedStore
from dagsched.metastore.port import Batch
store = EmbeddedStore(Path(sys.argv[1]), "p", Config())
store.open()
if sys.argv[2] != "early":
    store.append([Batch(1, 1, b"kept")])
child = 0
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        os.close(1)
        store.erase()
        time.sleep(60)
        os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["early", "used", "fork"])
def test_a_killed_client_leaves_no_server_and_keeps_its_data(
    moment: str, run_directory: Path, config: Config
) -> None:
    root = Path(__file__).parents[2]
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(run_directory), moment],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert client.stdout is not None
    child = int(client.stdout.readline())
    client.stdout.close()
    keepers = psutil.Process(client.pid).children()
    assert len(keepers) == (2 if child else 1)
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert wait_until(lambda: server_of(run_directory) == [], 2.0)
    if child:
        os.kill(child, signal.SIGKILL)
    again = EmbeddedStore(run_directory, "p", config)
    again.open()
    assert again.read(1) == ([] if moment == "early" else [Entry(1, b"kept")])
    again.erase()


IMPORTS = """
import sys
from pathlib import Path
from dagsched.config import Config
from dagsched.metastore.embedded import EmbeddedStore
from dagsched.metastore.port import Batch
store = EmbeddedStore(Path(sys.argv[1]), "p", Config())
store.open()
before = set(sys.modules)
store.append([Batch(1, 1, b"x")])
store.read(1)
print(sorted(set(sys.modules) - before))
store.erase()
"""


def test_nothing_is_imported_after_opening(run_directory: Path) -> None:
    """Imports in the journal's thread can leave the import lock taken when Ctrl-C hits."""
    output = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(run_directory)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert output == b"[]\n"
