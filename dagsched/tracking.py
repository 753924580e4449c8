"""Events of an environment, sent to a listener as JSON lines.

Responsible for that nobody waits for the listener: one that is absent, slow or dies costs dropped
events, which are counted, and nothing else.
"""

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from dagsched.errors import DagschedError
from dagsched.ids import run_id_of

logger = logging.getLogger(__name__)

ADDRESS_VARIABLE = "DAGSCHED_TRACK"
QUEUE_EVENTS_MAX = 10_000

_CONNECT_TIMEOUT_S = 2.0
_SEND_TIMEOUT_S = 5.0
_RETRY_S = 1.0
_PLAIN = (int, float, str, bool, type(None))


def track_address(remotetrack: bool | str) -> str | None:
    """The address of the listener; None: nobody is to be told.

    Args:
        remotetrack: ``host:port``, ``unix:PATH``, or True for the one in ``DAGSCHED_TRACK``.

    Raises:
        ValueError: it is no address, or True and none is set.
    """
    if remotetrack is False or remotetrack is None:
        return None
    address = os.environ.get(ADDRESS_VARIABLE, "") if remotetrack is True else remotetrack
    if not isinstance(address, str):
        raise TypeError(f"remotetrack must be a bool or an address, not {remotetrack!r}")
    host, _, port = address.rpartition(":")
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address
    if host and port.isdigit():
        return address
    hint = f" (set {ADDRESS_VARIABLE})" if remotetrack is True else ""
    raise ValueError(
        f"remotetrack address {address!r} is not valid{hint}: it is host:port or unix:PATH"
    )


class Tracker:
    """Sends events to a listener, in a thread of its own.

    Args:
        address: as `track_address` gives it.
        token: of the environment; stands in each line.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._token = token
        self._queue: deque[bytes] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.dropped_count = 0

    def open(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="dagsched-track", daemon=True)
        self._thread.start()

    def put(self, event: object) -> None:
        """Send an event some time; never waits."""
        if len(self._queue) >= QUEUE_EVENTS_MAX:
            self.dropped_count += 1
            return
        self._queue.append(event_line(event, self._token))
        self._wake.set()

    def close(self) -> None:
        """End the thread; what the listener has not taken by now is dropped."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CONNECT_TIMEOUT_S)
        if self.dropped_count:
            logger.info("%d events were not sent to %s", self.dropped_count, self._address)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with contextlib.closing(self._connected()) as connection:
                    self._send_all(connection.sendall)
            except OSError as error:
                logger.debug("listener %s: %s", self._address, error)
                self._closing.wait(_RETRY_S)

    def _send_all(self, send: Callable[[bytes], object]) -> None:
        """Send what is there and what comes, until the end."""
        while True:
            while self._queue:
                # Taken out first: a line sent in part must not be sent again on a new connection.
                line = self._queue.popleft()
                try:
                    send(line)
                except OSError:
                    self.dropped_count += 1
                    raise
            if self._closing.is_set():
                return
            self._wake.wait()
            self._wake.clear()

    def _connected(self) -> socket.socket:
        if self._address.startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(_CONNECT_TIMEOUT_S)
                connection.connect(self._address.removeprefix("unix:"))
            except OSError:
                connection.close()
                raise
        else:
            host, _, port = self._address.rpartition(":")
            connection = socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S)
        connection.settimeout(_SEND_TIMEOUT_S)
        return connection


def event_line(event: object, token: str) -> bytes:
    """An event as a line of JSON: its time, name and plain fields.

    Raises:
        DagschedError: it is no event.
    """
    if not dataclasses.is_dataclass(event):
        raise DagschedError(f"{type(event).__name__} is no event")
    line: dict[str, object] = {
        "time": time.time(),
        "env": token,
        "event": type(event).__name__,
    }
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if field.name == "run":
            line["run"] = run_id_of(value)
        elif isinstance(value, _PLAIN):
            line[field.name] = value
        elif isinstance(value, bytes | bytearray | memoryview | list | tuple):
            line[f"{field.name}_length"] = len(value)
        else:
            line[field.name] = type(value).__name__
    return json.dumps(line).encode() + b"\n"
