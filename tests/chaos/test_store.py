"""Real faults of the metadata store: no run waits for it, and its journal is whole again after."""

import itertools
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from dagsched import NodeEnv, Run, RunEnv, addprocs, delayed, rundag, submit
from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.master.journaling import stored_record
from dagsched.metastore.embedded import EmbeddedStore
from dagsched.metastore.fold import fold_records
from dagsched.metastore.keys import environment_prefix
from dagsched.metastore.reading import read_run
from dagsched.metastore.redis import RedisStore
from tests.chaos import harness
from tests.chaos.harness import Gate
from tests.chaos.servers import OwnServer, ResettingProxy
from tests.property.test_rewriting import what_counts

QUICK = Config(journal_batch_s=0.001, journal_check_s=0.1, subtrees_a_node=20,
               placed_subtrees_max=2, store_timeout_s=1.0)  # fmt: skip
"""Many subtrees of a short run, so many records, each in an exchange of its own."""

TASKS = 200


def step(x: int) -> int:
    time.sleep(0.002)
    return x + 1


def total(gate: Any, *values: int) -> int:
    gate.wait()
    return sum(values)


EXPECTED = sum(n + 1 for n in range(TASKS))
SERIAL_S = 0.002 * TASKS


def begin(env: RunEnv, gate: Gate) -> Run:
    """A run that has done all but its last task, which waits at the gate."""
    return submit(env, delayed(total)(gate, *[delayed(step)(n) for n in range(TASKS)]))


@contextmanager
def opened(url: str | None, config: Config = QUICK) -> Iterator[RunEnv]:
    """Two nodes, so that there is much to place; closing takes 5 s at the most."""
    nodes = [NodeEnv(number, "127.0.0.1", addprocs(1)) for number in addprocs(2)]
    env = RunEnv(nodes=nodes, metastore=url, config=config)
    try:
        yield env
    finally:
        start = time.monotonic()
        env.close()
        assert time.monotonic() - start < 5


def state_of(env: RunEnv) -> dict[str, str]:
    """What users see of the store, without asking the nodes."""
    return env._cluster._storing.state()  # type: ignore[union-attr]


def flush(env: RunEnv) -> bool:
    return env._cluster._storing.journal.flush(10)  # type: ignore[union-attr]


def store_of(env: RunEnv) -> Any:
    return env._cluster._storing._store  # type: ignore[union-attr]


def until_degraded(env: RunEnv, words: str) -> None:
    """The state says what is wrong in the store's own words."""
    harness.until(
        lambda: state_of(env)["state"] == "degraded" and words in state_of(env)["reason"],
        what=f"degraded by {words!r}; it is {state_of(env)}",
    )
    assert env.stats()["store"] == state_of(env)


def until_ok(env: RunEnv) -> None:
    harness.until(lambda: state_of(env) == {"state": "ok", "reason": ""}, 20, "store is ok again")


def until_waiting(env: RunEnv, run: Run) -> None:
    """All but the last task have ended, and the master knows."""
    harness.until(lambda: run.progress()[0] >= TASKS, 30, "all but the last task")


def assert_journal_whole(env: RunEnv, run: Run, address: str) -> None:
    """What another process reads is what the master knows."""
    until_ok(env)
    told: list[Any] = []
    answered = threading.Event()

    def ask(core: Any, _now: float) -> None:
        told.extend(core.journal_of(run.number))
        answered.set()

    env._cluster._shell.call(ask)  # type: ignore[union-attr]
    assert answered.wait(10)
    assert flush(env)
    names = env._cluster._names  # type: ignore[union-attr]
    prefix = environment_prefix(os.getuid(), names.rootpath, names.token)
    reader = RedisStore(address, prefix, Config())
    reader.open()
    try:
        stored = read_run(reader, run.number)
        entries = reader.read(run.number)
    finally:
        reader.close()
    assert stored is not None
    assert stored.dropped is None
    assert [entry.position for entry in entries] == list(range(1, len(entries) + 1))
    assert what_counts(stored) == what_counts(fold_records("s", map(stored_record, told)))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of the journal."""
    return [
        record.message
        for record in caplog.records
        if record.name.startswith("dagsched.metastore") and record.levelno >= logging.WARNING
    ]


# --- T07a, T07b: killed, and back with all of its file or most of it ------------------------------


def embedded_address(env: RunEnv) -> str:
    return f"unix://{harness.directory_of(env) / 'store.sock'}"


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(False, id="whole file"),
        pytest.param(True, id="end of the file lost", marks=pytest.mark.slow),
    ],
)
def test_the_embedded_server_is_killed(
    cut: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Gate(tmp_path / "gate") as gate, opened(None) as env:
        run = begin(env, gate)
        harness.until(lambda: run.progress()[0] > TASKS // 4, what="a quarter of the tasks")
        store, data = store_of(env), harness.directory_of(env) / "store"
        start_server, may_start = EmbeddedStore._start_server, threading.Event()

        def start_later(self: EmbeddedStore) -> None:
            assert may_start.wait(20)
            if cut:
                (path,) = data.glob("appendonlydir/*.incr.aof")
                os.truncate(path, path.stat().st_size // 2)
            start_server(self)

        monkeypatch.setattr(EmbeddedStore, "_start_server", start_later)
        lengths = store.lengths([run.number])
        pid = harness.server_pid(env)
        os.kill(pid, signal.SIGKILL)
        until_degraded(env, "onnection")
        until_waiting(env, run)  # no dispatch waits for the store
        may_start.set()
        until_ok(env)
        assert harness.server_pid(env) != pid
        assert lengths[0] >= 2
        assert_journal_whole(env, run, embedded_address(env))
        gate.open()
        assert harness.value_of(env, run, SERIAL_S) == EXPECTED
        assert len(warnings_in(caplog)) == 1


# --- T07c: emptied --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["FLUSHALL", pytest.param("FLUSHDB", marks=pytest.mark.slow)])
@pytest.mark.parametrize("moment", ["while records come", "while nothing is to be written"])
def test_emptied(command: str, moment: str, tmp_path: Path) -> None:
    with OwnServer() as server, Gate(tmp_path / "gate") as gate, opened(server.url) as env:
        run = begin(env, gate)
        harness.until(lambda: run.progress()[0] > TASKS // 4, what="a quarter of the tasks")
        if moment == "while nothing is to be written":
            until_waiting(env, run)
            assert flush(env)
        server.do(command)
        until_waiting(env, run)
        harness.until(lambda: len(server.do("KEYS", "*run:*")) == 2, what="journals written anew")
        assert_journal_whole(env, run, server.url)
        assert server.do("SMEMBERS", f"dagsched:{os.getuid()}:environments") != []
        gate.open()
        assert harness.value_of(env, run, SERIAL_S) == EXPECTED
        assert state_of(env) == {"state": "ok", "reason": ""}
        env.close()
        assert server.do("KEYS", "*") == []


# --- T07d: it refuses -----------------------------------------------------------------------------


def fill_memory(server: OwnServer) -> Callable[[], None]:
    server.do("CONFIG", "SET", "maxmemory", "1")
    return lambda: server.do("CONFIG", "SET", "maxmemory", "0")


def make_replica(server: OwnServer) -> Callable[[], None]:
    server.do("REPLICAOF", "127.0.0.1", "1")
    return lambda: server.do("REPLICAOF", "NO", "ONE")


def fail_snapshots(server: OwnServer) -> Callable[[], None]:
    """As a full disk does: a snapshot has failed, so it takes no writes."""
    server.do("CONFIG", "SET", "dir", "/proc")
    server.do("CONFIG", "SET", "save", "1 1")
    with server.client() as client:
        client.set("stranger", "x")
        harness.until(lambda: client.info()["rdb_last_bgsave_status"] == "err", what="MISCONF")
        server.do("CONFIG", "SET", "save", "3600 1000000")

    def mend() -> None:
        server.do("CONFIG", "SET", "dir", str(server.directory))
        server.do("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        server.do("DEL", "stranger")

    return mend


def load_long(server: OwnServer) -> Callable[[], None]:
    """It starts again, with a file that takes long to read."""
    with server.client() as client, client.pipeline(transaction=False) as pipeline:
        for number in range(20_000):
            pipeline.set(f"stranger{number}", b"x")
        pipeline.execute()
    server.kill()
    server.start("--key-load-delay", "150", wait=False)
    return lambda: None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param(fill_memory, "maxmemory", id="OOM"),
        pytest.param(make_replica, "read only replica", id="READONLY", marks=pytest.mark.slow),
        pytest.param(fail_snapshots, "MISCONF", id="MISCONF", marks=pytest.mark.slow),
        pytest.param(load_long, "loading the dataset", id="LOADING", marks=pytest.mark.slow),
    ],
)
def test_it_refuses_in_its_own_words(
    fault: Callable[[OwnServer], Callable[[], None]],
    words: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ["--appendonly", "yes"] if fault is load_long else []
    with OwnServer(*options) as server, Gate(tmp_path / "gate") as gate, opened(server.url) as env:
        run = begin(env, gate)
        harness.until(lambda: run.progress()[0] > TASKS // 4, what="a quarter of the tasks")
        mend = fault(server)
        other = submit(env, delayed(step)(1))  # so that there is something to write
        until_degraded(env, words)
        if fault is not load_long:
            until_waiting(env, run)
            assert harness.value_of(env, other) == 2
            assert state_of(env)["state"] == "degraded"
        mend()
        until_waiting(env, run)
        assert_journal_whole(env, run, server.url)
        gate.open()
        assert harness.value_of(env, run, SERIAL_S) == EXPECTED
        (warning,) = warnings_in(caplog)
        assert words in warning or fault is load_long  # which is noticed by its end before


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with open(path, "wb", 0) as file, pytest.raises(OSError, match="No space"):
        file.writelines(itertools.repeat(bytes(4096)))


@pytest.mark.slow
def test_its_disk_is_full(tmp_path: Path) -> None:
    assert os.geteuid() == 0, "needs root, for a small file system of its own"
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        options = ("--appendonly", "yes", "--appendfsync", "everysec")
        with (
            OwnServer(*options, directory=disk) as server,
            Gate(tmp_path / "gate") as gate,
            opened(server.url) as env,
        ):
            run = begin(env, gate)
            harness.until(lambda: run.progress()[0] > TASKS // 4, what="a quarter of the tasks")
            fill(disk / "other")
            until_degraded(env, "No space left on device")
            until_waiting(env, run)
            (disk / "other").unlink()
            assert_journal_whole(env, run, server.url)
            gate.open()
            assert harness.value_of(env, run, SERIAL_S) == EXPECTED
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- T07e: it stalls ------------------------------------------------------------------------------


def noop(n: int) -> int:
    return n


def stop(server: OwnServer) -> None:
    server.signal(signal.SIGSTOP)
    threading.Timer(STALL_S, server.signal, [signal.SIGCONT]).start()


def pause_clients(server: OwnServer) -> None:
    server.do("CLIENT", "PAUSE", round(STALL_S * 1000), "ALL")


def sleep(server: OwnServer) -> None:
    def ask() -> None:
        with redis.Redis(unix_socket_path=str(server.socket_path), socket_timeout=20) as client:
            client.execute_command("DEBUG", "SLEEP", STALL_S)

    threading.Thread(target=ask).start()


STALL_S = 1.5


@pytest.mark.slow
@pytest.mark.parametrize("stall", [stop, pause_clients, sleep])
def test_no_dispatch_waits_for_a_store_that_stalls(stall: Callable[[OwnServer], None]) -> None:
    count = 2_000
    plain: list[float] = []
    stalled: list[float] = []
    with OwnServer() as server, opened(server.url, Config(store_timeout_s=2.5)) as env:

        def measure(seconds: list[float]) -> None:
            dag = [delayed(noop)(n) for n in range(count)]
            start = time.perf_counter()
            assert rundag(env, dag, progress=False) == list(range(count))
            seconds.append(time.perf_counter() - start)

        measure([])
        # The least of many short ones: whatever else the machine does only makes them longer, so
        # more of them tell the same more surely.
        while len(stalled) < 100 or (min(stalled) > 1.1 * min(plain) and len(stalled) < 2_000):
            for seconds, fault in [(plain, None), (stalled, stall)]:
                if fault is not None:
                    fault(server)
                end = time.monotonic() + STALL_S
                while time.monotonic() < end:
                    measure(seconds)
            until_ok(env)
            assert flush(env)
    assert min(stalled) <= 1.1 * min(plain)


# --- T07f: connections are reset ------------------------------------------------------------------


SOME = [1, 3, 11, 50]


@pytest.mark.parametrize(
    "every",
    [pytest.param(k, marks=[] if k in SOME else pytest.mark.slow) for k in range(1, 51)],
)
def test_every_kth_command_resets_the_connection(
    every: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        OwnServer() as server,
        ResettingProxy(server.socket_path, every) as proxy,
        Gate(tmp_path / "gate") as gate,
        opened(proxy.url) as env,
    ):
        proxy.every = every
        run = begin(env, gate)
        until_waiting(env, run)
        harness.until(lambda: proxy.reset_count > 0, what="a reset")
        proxy.every = 0
        assert_journal_whole(env, run, server.url)
        gate.open()
        assert harness.value_of(env, run, SERIAL_S) == EXPECTED
        assert len(warnings_in(caplog)) == 1


# --- T07g: it never comes back --------------------------------------------------------------------


def test_the_embedded_server_never_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: EmbeddedStore) -> None:
        raise StoreUnavailable("its program is gone")

    with Gate(tmp_path / "gate") as gate, opened(None) as env:
        run = begin(env, gate)
        harness.until(lambda: run.progress()[0] > TASKS // 4, what="a quarter of the tasks")
        monkeypatch.setattr(EmbeddedStore, "_start_server", refuse)
        os.kill(harness.server_pid(env), signal.SIGKILL)
        gate.open()
        assert harness.value_of(env, run, SERIAL_S) == EXPECTED
        until_degraded(env, "its program is gone")
        assert len(warnings_in(caplog)) == 1
        assert "could not be resumed" in warnings_in(caplog)[0]
        monkeypatch.undo()


@pytest.mark.parametrize("how", [pytest.param("killed", marks=pytest.mark.slow), "stopped"])
def test_a_server_never_comes_back(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with OwnServer() as server, Gate(tmp_path / "gate") as gate:
        with opened(server.url, Config(journal_check_s=0.1)) as env:
            run = begin(env, gate)
            harness.until(lambda: run.progress()[0] > TASKS // 4, what="a quarter of the tasks")
            if how == "killed":
                server.kill()
            else:
                server.signal(signal.SIGSTOP)
            gate.open()
            assert harness.value_of(env, run, SERIAL_S) == EXPECTED
            until_degraded(env, "unavailable")
        assert "could not be resumed" in warnings_in(caplog)[0]
        assert len(warnings_in(caplog)) == 1


@pytest.mark.slow
def test_a_process_does_not_grow_while_its_store_is_away() -> None:
    import psutil

    config = Config(journal_bytes_max=4 << 20, results_bytes_max=4 << 20)
    with OwnServer() as server, opened(server.url, config) as env:
        process = psutil.Process()

        def some_runs() -> None:
            for _ in range(100):
                values = [delayed(bytes)(10_000) for _ in range(10)]
                assert rundag(env, values, progress=False) == [bytes(10_000)] * 10

        some_runs()
        server.kill()
        until_degraded(env, "unavailable")
        for _ in range(3):
            some_runs()
        before = process.memory_info().rss
        for _ in range(10):
            some_runs()  # 100 MB of results
        assert process.memory_info().rss - before < 10 << 20
