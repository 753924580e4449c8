"""A real broker with real executors, driven message by message: work, deaths, and clean ends."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dagsched._version import __version__
from dagsched.brokers.launch import GOODBYE, NODE_VARIABLE, package_root
from dagsched.brokers.processes import all_processes, parent_of
from dagsched.config import Config
from dagsched.faults import VARIABLE
from dagsched.protocol.codec import PROTOCOL_VERSION
from dagsched.protocol.messages import (
    EXPORTED,
    OUTPUT,
    BrokerHello,
    EndRun,
    ExecutorChanged,
    Parcel,
    Ping,
    PlaceSubtree,
    Pong,
    PutObjects,
    Release,
    RunClosed,
    SetExecutors,
    SetPeers,
    Shutdown,
    SubtreeDone,
    TaskFailed,
    Welcome,
)
from dagsched.serialize import dump_constant
from tests.integration.broker_harness import WAIT_S, HandMaster, one, subtree


def double(x):
    return 2 * x


def total(*values):
    return sum(values)


def wait_gone(pids):
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([pidfd], [], [], WAIT_S)[0], f"process {pid} lives on"
        os.close(pidfd)


@pytest.fixture
def master():
    with HandMaster() as made:
        yield made


def test_hello_tells_who_it_is(master):
    master.launch(2)
    hello = master.take(2, BrokerHello).message
    assert hello.pid == master.processes[2].pid
    assert hello.host == "127.0.0.1"
    assert hello.address == f"ipc://{master.directory}/b2.1.sock"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert list(hello.version) == [version, __version__, PROTOCOL_VERSION]


def test_shutdown_leaves_nothing(master):
    pids = master.join({2: [3, 4]})
    master.send(2, subtree(1, one(np.zeros, 1 << 20)))
    assert master.values(2, 1)[0].shape == (1 << 20,)
    assert master.segments(2)
    master.send(2, Shutdown())
    assert master.processes[2].wait(WAIT_S) == 0
    wait_gone(pids.values())
    assert master.segments(2) == []
    left = {path.name for path in master.directory.iterdir()}
    assert left - {"spill"} == {"m.sock", "broker-2.log"}


def test_a_small_graph(master):
    master.join({2: [3, 4]})
    leaves = [(double, (i,), (), 0) for i in range(200)]
    pairs = [(total, None, (2 * i, 2 * i + 1), OUTPUT) for i in range(100)]
    master.send(2, subtree(1, [*leaves, *pairs]))
    values = master.values(2, 100)
    assert values == {200 + i: 2 * (4 * i + 1) for i in range(100)}
    assert master.take(2, SubtreeDone).message.subtree == 0
    master.send(2, EndRun(1, ()))
    stats = master.take(2, RunClosed).message.stats
    assert sum(executor.task_count for executor in stats.executors) == 300


def test_tasks_run_where_the_client_is(master):
    master.join({2: [3]})

    def look():
        return (
            str(Path.cwd()),
            sys.path,
            os.environ.get("OMP_NUM_THREADS"),
            NODE_VARIABLE in os.environ,
        )

    master.send(2, subtree(1, one(look)))
    cwd, path, threads, has_node = master.values(2, 1)[0]
    assert cwd == str(Path.cwd())
    assert path == sys.path
    assert threads == os.environ.get("OMP_NUM_THREADS", "1")
    assert has_node


def test_ping_is_answered_while_tasks_compute(master):
    pids = master.join({2: [3]})
    master.send(2, subtree(1, one(signal.pause)))
    for number in range(5):
        master.send(2, Ping(number))
        assert master.take(2, Pong).message.number == number
    assert list(pids) == [3]


def test_killed_executor_is_replaced_and_its_task_repeated(master, tmp_path):
    pids = master.join({2: [3, 4]})

    def once(directory):
        mark = os.path.join(directory, "begun")
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    master.send(2, subtree(1, one(once, str(tmp_path))))
    gone = master.take(2, ExecutorChanged).message
    assert gone.pid == 0
    back = master.take(2, ExecutorChanged).message
    assert (back.executor, back.restarts) == (gone.executor, 1)
    assert back.pid not in (0, *pids.values())
    value = master.values(2, 1)[0]
    assert value in (back.pid, *pids.values())
    assert value != pids[gone.executor]


def test_poison_fails_alone_with_all_that_is_known():
    with HandMaster(Config(crash_limit=2)) as master:
        master.join({2: [3, 4]})

        def poison():
            print("last words")
            os.abort()

        master.send(2, subtree(1, one(poison)))
        failure = master.take(2, TaskFailed).message.failure
        assert (failure.position, failure.kind) == (0, "lost")
        assert failure.exit.signal == signal.SIGABRT
        assert failure.exit.exit_code is None
        assert "last words" in failure.exit.log_tail
        assert failure.exit.rss_bytes > 1 << 20
        master.send(2, EndRun(1, ()), subtree(2, one(double, 4)))
        assert master.values(2, 1) == {0: 8}


def _leave_daemon(path):
    """A daemon that tells its pid over a pipe in the file system, and never ends by itself."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with socket.socket(socket.AF_UNIX) as told:
                told.connect(path)
                told.sendall(str(os.getpid()).encode())
                told.shutdown(socket.SHUT_WR)
                while True:
                    signal.pause()
        os._exit(0)
    while True:
        signal.pause()


def daemon_at_work(master):
    """The pid of a process that a task has left behind, on its way to work for ever."""
    path = str(master.directory / "daemon.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        listening.settimeout(WAIT_S)
        master.send(2, subtree(1, one(_leave_daemon, path)))
        connection, _ = listening.accept()
    with connection, connection.makefile("rb") as told:
        return int(told.read())


@pytest.mark.parametrize("how", ["goodbye", "SIGTERM", "SIGKILL"])
def test_end_in_the_middle_of_work_leaves_nothing(master, how):
    pids = master.join({2: [3, 4]})
    daemon = daemon_at_work(master)
    process = master.processes[2]
    match how:
        case "goodbye":
            master.lifelines[2].write(GOODBYE)
        case "SIGTERM":
            process.terminate()
        case "SIGKILL":
            process.kill()
    began = time.monotonic()
    assert process.wait(WAIT_S) == (-signal.SIGKILL if how == "SIGKILL" else 0)
    wait_gone([*pids.values(), daemon])
    assert time.monotonic() - began < 2.0
    if how != "SIGKILL":
        assert master.segments(2) == []
        assert not (master.directory / "b2.1.sock").exists()


def test_signals_while_cleaning_up_do_not_end_it(master, monkeypatch):
    # Sockets of a killed broker end before the kernel tells of its death.
    monkeypatch.setenv(VARIABLE, "zygote.before_sweep:1:delay:300")
    pids = master.join({2: [3, 4]})
    daemon = daemon_at_work(master)
    process = master.processes[2]
    own = [pid for pid in all_processes() if parent_of(pid) == process.pid]
    (zygote,) = set(own) - set(pids.values())
    process.kill()
    process.wait(WAIT_S)
    for _ in range(10):
        time.sleep(0.01)
        os.kill(zygote, signal.SIGTERM)
    wait_gone([*pids.values(), daemon, zygote])


def test_interrupt_is_for_the_client(master):
    master.join({2: [3]})
    master.processes[2].send_signal(signal.SIGINT)
    master.send(2, Ping(1))
    assert master.take(2, Pong).message.number == 1


def test_executors_come_and_go(master):
    pids = master.join({2: [3, 4]})
    master.send(2, SetExecutors([3, 5]))
    changes = [master.take(2, ExecutorChanged).message for _ in range(2)]
    assert {change.executor: change.pid == 0 for change in changes} == {4: True, 5: False}
    wait_gone([pids[4]])
    os.kill(pids[3], 0)


def test_constants_are_stored_once_for_all(master):
    master.join({2: [3, 4]})
    array = np.arange(100_000)
    source = Parcel(PutObjects(1, (64,)), [dump_constant(array)])
    tasks = [(np.sum, None, (64,), OUTPUT) for _ in range(2)]
    master.send(2, source, subtree(1, tasks, total=65, imports=[(64, 0)]))
    assert master.values(2, 2) == {0: array.sum(), 1: array.sum()}


@pytest.mark.parametrize("count", [10, 3_000_000])
def test_objects_go_from_broker_to_broker(count):
    chunks = Config(transfer_chunk_bytes=1 << 20, transfer_window_bytes=4 << 20)
    with HandMaster(chunks) as master:
        master.join({2: [3], 5: [6]})
        make = [(np.arange, (count,), (), EXPORTED)]
        use = [(np.sum, None, (0,), OUTPUT)]
        # The one that needs it asks before the other has it, or knows of the run at all.
        master.send(5, subtree(1, use, lo=64, total=65, number=1, imports=[(0, 2)]))
        master.send(2, subtree(1, make, total=65))
        assert master.values(5, 1) == {64: count * (count - 1) // 2}
        for broker in (2, 5):
            master.send(broker, EndRun(1, ()))
            assert master.take(broker, RunClosed).message.stats.live_object_count == 0


def test_a_peers_next_incarnation_is_served(master):
    master.join({2: [3], 5: [6]})
    master.processes[5].kill()
    master.processes[5].wait(WAIT_S)
    master.launch(5, incarnation=2)
    address = master.take(5, BrokerHello).message.address
    master.send(2, SetPeers([(5, 2, address)]))
    master.send(
        5, Welcome(5, 2), SetPeers([(2, 1, f"ipc://{master.directory}/b2.1.sock")]),
        SetExecutors([6]),
    )  # fmt: skip
    master.send(2, subtree(1, [(np.arange, (1_000_000,), (), EXPORTED)], total=65))
    use = [(np.sum, None, (0,), OUTPUT)]
    master.send(5, subtree(1, use, lo=64, total=65, number=1, imports=[(0, 2)]))
    assert master.values(5, 1) == {64: 1_000_000 * 999_999 // 2}


def test_messages_that_make_no_sense_are_dropped(master):
    master.join({2: [3]})
    master.send(2, Parcel(PlaceSubtree(1, 1, 0, 1, 0, 1, 1, 0, (), ()), []))
    master.send(2, Parcel(PutObjects(1, (0, 1)), [b"one"]), Parcel(Release(1), [b"odd"]))
    master.send(2, subtree(2, one(double, 5)))
    assert master.values(2, 1) == {0: 10}
    assert master.logs()["broker-2.log"].count("what makes no sense") == 3


def test_nonsense_from_the_master_is_dropped(master):
    master.join({2: [3]})
    other_shape = bytes((0x98, PROTOCOL_VERSION, *bytes(6), 0x90))
    for frames in ([b"nonsense"], [b""], [other_shape]):
        master.endpoint.send(2, frames)
    master.send(2, Ping(7))
    assert master.take(2, Pong).message.number == 7
    assert master.logs()["broker-2.log"].count("what can't be read") == 3


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [(b"", 0, ""), (b"{}\n", 2, "settings"), (b"[1, 2\n", 2, "settings")],
)
def test_settings_that_are_none(line, code, said):
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "dagsched.brokers"],
        input=line,
        capture_output=True,
        timeout=WAIT_S,
        env=os.environ | {"PYTHONPATH": str(package_root())},
        check=False,
    )
    assert finished.returncode == code
    assert said in finished.stderr.decode()
