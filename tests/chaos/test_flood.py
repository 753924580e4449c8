"""Connections by the thousand to the port of a master, none with a key; some that say nothing."""

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dagsched import RunEnv, delayed, rundag
from dagsched.transport.curve import read_cluster_file
from tests.chaos.harness import directory_of, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CONNECTIONS = 10_000
SILENT = 200
FLOOD = """
import socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(count):
    try:
        with socket.create_connection((host, port), 5) as connection:
            connection.sendall(b"\\xff" + bytes(8) + b"\\x7f\\x03\\x00CURVE" + bytes(number % 97))
    except OSError:
        pass
"""


def pause(i: int) -> int:
    time.sleep(0.01)
    return i


def run_s(env: RunEnv) -> float:
    """How long a run of tasks takes that wait rather than compute, for the flood needs a CPU."""
    begin = time.monotonic()
    assert rundag(env, delayed(sum)([delayed(pause)(i) for i in range(100)])) == 4950
    return time.monotonic() - begin


@contextlib.contextmanager
def flood(host: str, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", FLOOD, host, str(port), str(CONNECTIONS)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_flood_of_connections_holds_nobody_up():
    with RunEnv(executors=2, listen="tcp://127.0.0.1") as env, contextlib.ExitStack() as silent:
        env.wait_for_nodes()
        address, _ = read_cluster_file(directory_of(env))
        host, port = address.removeprefix("tcp://").rsplit(":", 1)
        before_s = statistics.median(run_s(env) for _ in range(5))
        quiet = [
            silent.enter_context(socket.create_connection((host, int(port)), 5))
            for _ in range(SILENT)
        ]
        with flood(host, int(port)) as process:
            during = [run_s(env)]
            while process.poll() is None:
                during.append(run_s(env))
            assert process.returncode == 0
        during_s = statistics.median(during)
        print(f"before {before_s:.3f} s, during {during_s:.3f} s ({len(during)} runs)")
        assert during_s < 1.25 * before_s
        # Connections that say nothing are closed after a while.
        until(lambda: all(map(is_closed, quiet)), 20.0, "their end")
        assert statistics.median(run_s(env) for _ in range(5)) < 1.25 * before_s
        assert env.stats()["links"]["stale"] == 0
        assert len(env.nodes) == 1


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
