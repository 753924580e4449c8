"""Stores that go wrong: redis-servers of a test's own, and a proxy that resets connections."""

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import redis


class OwnServer:
    """A redis-server that a test may stop, kill and start again; with its file if asked for.

    Args:
        options: of the command line, beside those that make it ours.
        directory: of its file; None: one that is removed at the end.
    """

    def __init__(self, *options: str, directory: Path | None = None) -> None:
        program = shutil.which("redis-server")
        assert program is not None, "these tests need redis-server: apt-get install redis-server"
        self._home = Path(tempfile.mkdtemp(prefix="redis-"))
        self.directory = directory or self._home
        self.socket_path = self._home / "redis.sock"
        self.url = f"unix://{self.socket_path}?db=0"
        self._command = [
            program, "--port", "0", "--unixsocket", str(self.socket_path), "--save", "",
            "--dir", str(self.directory), "--enable-debug-command", "yes",
            "--enable-protected-configs", "yes", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        shutil.rmtree(self._home)

    def start(self, *options: str, wait: bool = True) -> None:
        """Start it, or start it again."""
        self.socket_path.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [*self._command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 10
        while wait:
            with self.client() as client, contextlib.suppress(redis.RedisError):
                client.ping()
                return
            assert time.monotonic() < deadline, "redis-server does not start"
            time.sleep(0.005)  # it tells nobody that it is ready

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def client(self) -> "redis.Redis":
        """A connection of the test's own."""
        return redis.Redis(unix_socket_path=str(self.socket_path))

    def do(self, *command: Any) -> Any:
        """Have it do one command."""
        with self.client() as client:
            return client.execute_command(*command)


class ResettingProxy:
    """Passes commands on to a server's socket, and resets the connection at every k-th.

    The k-th command reaches the server or does not, by chance; its answer never comes back.

    Args:
        socket_path: of the server.
        seed: of what is by chance.
    """

    def __init__(self, socket_path: Path, seed: int) -> None:
        self._target = str(socket_path)
        self._rng = random.Random(seed)
        self.every = 0  # the k; 0: none is reset
        self.command_count = 0
        self.reset_count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._target)
            waiting = b""
            while True:
                ready, _, _ = select.select([connection, server], [], [])
                if server in ready:
                    answer = server.recv(1 << 16)
                    if not answer:
                        return
                    connection.sendall(answer)
                if connection in ready:
                    try:
                        data = connection.recv(1 << 16)
                    except ConnectionError:
                        return
                    if not data:
                        return
                    waiting += data
                    while (length := _command_length(waiting)) is not None:
                        command, waiting = waiting[:length], waiting[length:]
                        if not self._pass_on(command, connection, server):
                            return

    def _pass_on(self, command: bytes, connection: socket.socket, server: socket.socket) -> bool:
        self.command_count += 1
        if not self.every or self.command_count % self.every:
            server.sendall(command)
            return True
        self.reset_count += 1
        if self._rng.random() < 0.5:
            server.sendall(command)
            server.shutdown(socket.SHUT_WR)
            while server.recv(1 << 16):  # it has done the command when it hangs up
                pass
        linger = (1).to_bytes(4, "little") + bytes(4)  # a reset instead of an orderly end
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return False


def _command_length(data: bytes) -> int | None:
    """Length of the first whole command (an array of bulk strings); None: it isn't all there."""
    end = data.find(b"\r\n")
    if end < 0:
        return None
    assert data[:1] == b"*"
    count, place = int(data[1:end]), end + 2
    for _ in range(count):
        end = data.find(b"\r\n", place)
        if end < 0:
            return None
        place = end + 2 + int(data[place + 1 : end]) + 2
        if place > len(data):
            return None
    return place
