"""Fixtures for all tests: real servers, and the check that a test leaves nothing behind."""

import gc
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dagsched.config import Config
from tests import leaks

os.environ[leaks.COOKIE_NAME] = leaks.COOKIE

LEAK_CHECKED = {"contract", "integration", "chaos"}
"""Folders of tests that start something."""


def pytest_collection_finish() -> None:
    """What was imported is no test's garbage: without it a collection after each is cheap."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a process, thread, descriptor, segment, file or key."""
    folder = request.node.path.relative_to(Path(__file__).parent).parts[0]
    if folder not in LEAK_CHECKED:
        yield
        return
    url = None
    if "redis_server" in request.fixturenames:
        url = request.getfixturevalue("redis_server").url
    before = leaks.look(url)
    yield
    left = leaks.left_behind(before, url)
    if left:
        pytest.fail("the test left behind:\n" + "\n".join(left))


@dataclass(frozen=True)
class RedisServer:
    """A real redis-server of this test session."""

    url: str
    socket_url: str
    pid: int


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A redis-server on a free port and a Unix socket, in a directory of its own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail(
            "these tests need a real redis-server and there is none in PATH: "
            "apt-get install redis-server (or: brew install redis), then run them again"
        )
    directory = Path(tempfile.mkdtemp(prefix="redis-"))
    port = _free_port()
    path = directory / "redis.sock"
    # It shall not outlive these tests, however they end.
    mortal = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    process = subprocess.Popen(
        [*mortal, program, "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(path),
         "--dir", str(directory), "--save", "", "--appendonly", "no"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for_port(port, process)
        yield RedisServer(f"redis://127.0.0.1:{port}/0", f"unix://{path}?db=0", process.pid)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL over TCP of a real redis-server."""
    return redis_server.url


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """An empty directory with a path short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix=f"run-{leaks.COOKIE}-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def config() -> Config:
    """The defaults."""
    return Config()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"redis-server did not start on port {port}: exit code {process.poll()}")
        time.sleep(0.005)  # another program's readiness can only be asked for
