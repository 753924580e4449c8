"""The live page of an environment: whether it is open, and who may ask for it.

Responsible for that an environment without one pays nothing but a socket in its run directory, by
which other processes of the same user have the page opened (`dagsched dashboard`), and for the
address. The page and its server are in `dagsched.viz.live`, imported when the first is opened.
"""

import contextlib
import json
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dagsched.background import BackgroundThread
from dagsched.errors import ClosedError

if TYPE_CHECKING:
    from dagsched.enquiries import Enquiries
    from dagsched.master.core import MasterCore
    from dagsched.master.events import ClientEvent
    from dagsched.roster import Roster
    from dagsched.run import Run
    from dagsched.rundir import RunNames
    from dagsched.viz.live.observer import Observer
    from dagsched.viz.live.server import LiveServer

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
BELL_NAME = "live.sock"
"""A Unix socket in the run directory: who connects is told where the page is, as a line of JSON."""

_ANSWER_TIMEOUT_S = 5.0
_CALLERS_MAX = 8

Address = tuple[str, int]
Call = Callable[["Callable[[MasterCore, float], None]"], None]


def dashboard_address(dashboard: bool | str) -> Address | None:
    """Where the page is to be served; None: nowhere. Port 0: whichever is free.

    Args:
        dashboard: False, True (this machine only), or ``HOST:PORT``.

    Raises:
        TypeError: it is neither a bool nor a str.
        ValueError: it is no address.
    """
    if isinstance(dashboard, bool):
        return (LOOPBACK, 0) if dashboard else None
    if not isinstance(dashboard, str):
        raise TypeError(f"dashboard must be a bool or 'HOST:PORT', not {dashboard!r}")
    host, colon, port = dashboard.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError(
            f"dashboard {dashboard!r} is not valid: it is True, or 'HOST:PORT' with an address of "
            "this machine and a port from 0 (any that is free) to 65535"
        )
    return host, int(port)


@dataclass(frozen=True, slots=True)
class Observed:
    """The parts of an environment that its page reads from."""

    names: "RunNames"
    enquiries: "Enquiries"
    roster: "Roster"
    store_state: Callable[[], Mapping[str, Any]]
    list_runs: "Callable[[], Sequence[Run]]"
    opened_s: float = field(default_factory=time.monotonic)


class Dashboard:
    """The page of one environment.

    Args:
        observed: the environment.
        call: has a function called in the master's thread.
    """

    def __init__(self, observed: Observed, call: Call) -> None:
        self._observed = observed
        self._path = observed.names.directory / BELL_NAME
        self._call = call
        self._lock = threading.Lock()  # guards what follows
        self._observer: Observer | None = None
        self._server: LiveServer | None = None
        self._closed = False
        self._bell: socket.socket | None = None
        self._porter = BackgroundThread("dagsched-live-porter")

    @property
    def url(self) -> str | None:
        """Where the page is, with its token; None: it isn't open."""
        server = self._server
        return None if server is None else server.url

    def put(self, event: "ClientEvent") -> None:
        """Pass on an event; in the master's thread."""
        observer = self._observer  # another thread may take it away
        if observer is not None:
            observer.put(event)

    def begin(self, run: "Run") -> None:
        """A run is about to be submitted."""
        observer = self._observer
        if observer is not None:
            observer.begin(run)

    def open(self, address: Address = (LOOPBACK, 0)) -> str:
        """Serve the page, if it isn't yet.

        Returns:
            Its URL.

        Raises:
            ImportError: a package that it needs is missing; says what to install.
            OSError: nothing can be served there, for the port is in use, say.
            ClosedError: the environment has been closed.
        """
        from dagsched.viz.live.observer import Observer
        from dagsched.viz.live.server import LiveServer
        from dagsched.viz.live.watching import WatchedEnvironment

        with self._lock:
            if self._closed:
                raise ClosedError("the environment has been closed; it has no live page any more")
            if self._server is not None:
                return self._server.url
            watched = WatchedEnvironment(self._observed)
            observer = Observer(watched)
            server = LiveServer(observer, watched, address)
            try:
                self._attach(observer)
                observer.open()
                server.open()
            except BaseException:
                self._observer = None
                server.close(_ANSWER_TIMEOUT_S)
                observer.close(_ANSWER_TIMEOUT_S)
                raise
            self._server = server
            logger.info("live page at %s", server.url)
            return server.url

    def _attach(self, observer: "Observer") -> None:
        """Tell an observer what has been, in a moment in which nothing happens, and then all."""
        is_done = threading.Event()

        def begin(_core: "MasterCore", _now: float) -> None:
            observer.catch_up(self._observed.list_runs())
            self._observer = observer
            is_done.set()

        self._call(begin)
        if not is_done.wait(_ANSWER_TIMEOUT_S):
            raise ClosedError("the environment doesn't answer; it has no live page")

    # --- others of the same user ------------------------------------------------------------------

    def listen(self, call_when_ready: "Callable[[int, Callable[[], None]], None]") -> None:
        """Let other processes of this user have the page opened.

        Args:
            call_when_ready: has a function called in the master's thread when a descriptor is
                readable; so nobody waits here in a thread of its own.
        """
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            bell.bind(str(self._path))
            self._path.chmod(0o600)
            bell.listen(_CALLERS_MAX)
        except BaseException:
            bell.close()
            raise
        self._bell = bell
        call_when_ready(bell.fileno(), self._rang)

    def _rang(self) -> None:
        """Somebody calls: in the master's thread, which must not wait for anything."""
        bell = self._bell
        if bell is None:
            return
        with contextlib.suppress(OSError):  # the caller has gone
            caller, _ = bell.accept()
            if not self._porter.do(lambda: self._answer(caller)):
                caller.close()

    def _answer(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            caller.settimeout(_ANSWER_TIMEOUT_S)
            size = struct.calcsize("3i")
            _, uid, _ = struct.unpack(
                "3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            )
            if uid not in (os.getuid(), 0):
                return
            try:
                answer = {"url": self.open()}
            except (ImportError, OSError, ClosedError) as error:
                answer = {"error": str(error)}
            caller.sendall(json.dumps(answer).encode() + b"\n")

    # --- the end ----------------------------------------------------------------------------------

    def close(self, timeout_s: float) -> None:
        """End the page and leave nothing; safe twice."""
        with self._lock:
            self._closed = True
            server, observer = self._server, self._observer
            self._server = self._observer = None
        if server is not None:
            server.close(timeout_s)
        if observer is not None:
            observer.close(timeout_s)
        self._porter.stop(timeout_s)

    def silence(self) -> None:
        """Take the socket away; nobody may be called any more for it."""
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()
            self._path.unlink(missing_ok=True)

    def forget_after_fork(self) -> None:
        """In a forked child: page and socket are the parent's."""
        self._closed = True
        server, self._server, self._observer = self._server, None, None
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()
        if server is not None:
            server.forget_after_fork()


def announce(url: str) -> None:
    """Say once where the page is: the token in the URL is what lets a browser in."""
    sys.stderr.write(f"dagsched: live page at {url}\n")
