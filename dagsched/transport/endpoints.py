"""Thin non-blocking wrappers over ZeroMQ sockets on Unix paths: who sent which frames, and no more.

Responsible for identities, options, and for never blocking and never losing a batch that a living
peer could take. What the frames mean is `dagsched.protocol.codec`'s affair. Like a socket, an
endpoint is open from its construction to `close`; all calls come from one thread.

About a ZeroMQ descriptor (``fd``): it says that *something* may have changed, not that there is
input, and sending can take its signal away. So, before waiting for it: `drain` until nothing
comes, and after a send ask `has_input` (or drain) once more.
"""

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import zmq

from dagsched.errors import InternalError
from dagsched.protocol.messages import Frame

LARGE_BYTES = 65_536
"""Frames from this size on are not copied between us and ZeroMQ; smaller ones are cheaper to copy
(it is also pyzmq's own default for sending)."""

HIGH_WATER_BATCHES = 1_000
"""Batches that ZeroMQ itself queues for a peer; further ones stay in our own queue."""

QUEUE_BATCHES_MAX = 100_000
"""Credit keeps our own queues far below this; a longer one means that credit is broken."""

DRAIN_BATCHES_MAX = 256
"""Batches taken in one turn, so that answers are not held up by a flood of input."""

LINGER_MS = 200
"""How long a closed endpoint may still try to hand over its last batches, such as Shutdown."""

RECONNECT_MS = 5
"""Brokers may be up before the master has bound its path; they should not then wait for long."""

RECONNECT_MAX_MS = 200

Batch = Sequence[Frame]


class MasterEndpoint:
    """The master's side: one bound socket for all brokers.

    Args:
        path: of the Unix socket; in a directory that only its owner can enter.

    Raises:
        zmq.ZMQError: the path can't be bound.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._context = zmq.Context()
        self._socket = _bound_router(self._context, self._path)
        self._queues: dict[int, deque[Batch]] = {}
        self.fd = _descriptor(self._socket)
        self.refused_count = 0

    def drain(self) -> list[tuple[int, list[Frame]]]:
        """Batches that have come, with their sender's id, oldest first; empty: no more for now."""
        if self._queues:
            self._flush()
        arrived, refused = _drain_router(self._socket)
        self.refused_count += refused
        return arrived

    def has_input(self) -> bool:
        """Whether `drain` would bring something."""
        return _has_input(self._socket)

    def send(self, broker: int, frames: Batch) -> bool:
        """Send a batch, at once or as soon as the broker takes it.

        Returns:
            False: no such broker is connected, and the batch is dropped.
        """
        queue = self._queues.get(broker)
        if queue is not None:
            _enqueue(queue, frames)
            return True
        try:
            self._send_now(broker, frames)
        except zmq.Again:
            self._queues[broker] = deque([frames])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Hand over what is under way, for at most `linger_ms`; then let go of the path."""
        if self._socket.closed:
            return
        self._socket.close(linger_ms)
        self._context.term()
        self._path.unlink(missing_ok=True)

    def _send_now(self, broker: int, frames: Batch) -> None:
        # ZeroMQ says "again" at the first part of a batch only, so none is ever sent in half.
        self._socket.send_multipart((b"%d" % broker, *frames), zmq.NOBLOCK, copy=False)

    def _flush(self) -> None:
        for broker, queue in list(self._queues.items()):
            try:
                while queue:
                    self._send_now(broker, queue[0])
                    queue.popleft()
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
            del self._queues[broker]


class BrokerEndpoint:
    """A broker's connection to its master.

    Args:
        context: shared with the broker's `DataPort`.
        broker: own process id.
        path: where the master is bound, or will be soon.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", broker: int, path: str) -> None:
        self._socket = _connected_dealer(context, broker, f"ipc://{path}")
        self._queue: deque[Batch] = deque()
        self.fd = _descriptor(self._socket)

    def drain(self) -> list[list[Frame]]:
        """Batches that have come, oldest first; empty: no more for now."""
        if self._queue:
            _flush(self._socket, self._queue)
        arrived: list[list[Frame]] = []
        while len(arrived) < DRAIN_BATCHES_MAX and _has_input(self._socket):
            arrived.append(_receive(self._socket))
        return arrived

    def has_input(self) -> bool:
        """Whether `drain` would bring something."""
        return _has_input(self._socket)

    def send(self, frames: Batch) -> None:
        """Send a batch, at once or as soon as the master takes it."""
        _send(self._socket, self._queue, frames)

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Hand over what is under way, for at most `linger_ms` (once the context ends)."""
        self._socket.close(linger_ms)


class DataPort:
    """A broker's links to all other brokers: one bound socket to hear them, one to speak to each.

    Args:
        context: shared with the broker's `BrokerEndpoint`.
        broker: own process id.
        path: of the Unix socket that others connect to.

    Raises:
        zmq.ZMQError: the path can't be bound.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", broker: int, path: str) -> None:
        self._context = context
        self._broker = broker
        self._path = Path(path)
        self._socket = _bound_router(context, self._path)
        self._links: dict[int, tuple[str, zmq.Socket[bytes], deque[Batch]]] = {}
        self.fd = _descriptor(self._socket)
        self.refused_count = 0

    @property
    def address(self) -> str:
        """What others connect to."""
        return f"ipc://{self._path}"

    @property
    def link_fds(self) -> list[int]:
        """Descriptors of the links: one is ready when `flush` may have something to do."""
        return [_descriptor(link) for _, link, _ in self._links.values()]

    def drain(self) -> list[tuple[int, list[Frame]]]:
        """Batches that have come, with their sender's id, oldest first; empty: no more for now."""
        arrived, refused = _drain_router(self._socket)
        self.refused_count += refused
        return arrived

    def has_input(self) -> bool:
        """Whether `drain` would bring something."""
        return _has_input(self._socket)

    def set_peers(self, addresses: dict[int, str]) -> None:
        """Connect to these, by id; links to others, or to old addresses, are closed."""
        for peer, (address, link, _) in list(self._links.items()):
            if addresses.get(peer) != address:
                link.close(0)
                del self._links[peer]
        for peer, address in addresses.items():
            if peer not in self._links:
                link = _connected_dealer(self._context, self._broker, address)
                self._links[peer] = (address, link, deque())

    def send(self, peer: int, frames: Batch) -> bool:
        """Send a batch, at once or as soon as the peer takes it.

        Returns:
            False: there is no such peer, and the batch is dropped.
        """
        found = self._links.get(peer)
        if found is None:
            return False
        _, link, queue = found
        _send(link, queue, frames)
        return True

    def flush(self) -> None:
        """Send what peers could not take before."""
        for _, link, queue in self._links.values():
            # Asking for events also makes ZeroMQ handle what its descriptor was ready for.
            if _events(link) & zmq.POLLOUT and queue:
                _flush(link, queue)

    def close(self) -> None:
        """Drop all links and let go of the path."""
        for _, link, _ in self._links.values():
            link.close(0)
        self._links.clear()
        self._socket.close(0)
        self._path.unlink(missing_ok=True)


def _bound_router(context: "zmq.Context[zmq.Socket[bytes]]", path: Path) -> "zmq.Socket[bytes]":
    router = context.socket(zmq.ROUTER)
    _limit(router)
    # Sending to an unknown broker is an error to us, not a message lost in silence.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    # A broker that was started again takes over the id of the one that died.
    router.setsockopt(zmq.ROUTER_HANDOVER, 1)
    try:
        router.bind(f"ipc://{path}")
    except zmq.ZMQError:
        router.close(0)
        raise
    return router


def _connected_dealer(
    context: "zmq.Context[zmq.Socket[bytes]]", own_id: int, address: str
) -> "zmq.Socket[bytes]":
    dealer = context.socket(zmq.DEALER)
    _limit(dealer)
    dealer.setsockopt(zmq.IDENTITY, b"%d" % own_id)
    dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    dealer.connect(address)
    return dealer


def _limit(socket: "zmq.Socket[bytes]") -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_BATCHES)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_BATCHES)


def _descriptor(socket: "zmq.Socket[bytes]") -> int:
    return int(socket.getsockopt(zmq.FD))


def _events(socket: "zmq.Socket[bytes]") -> int:
    return int(socket.getsockopt(zmq.EVENTS))


def _has_input(socket: "zmq.Socket[bytes]") -> bool:
    return bool(_events(socket) & zmq.POLLIN)


def _receive(socket: "zmq.Socket[bytes]") -> list[Frame]:
    frames: list[Frame] = []
    while True:
        part = socket.recv(zmq.NOBLOCK, copy=False)
        frames.append(part.bytes if len(part) < LARGE_BYTES else part.buffer)
        if not part.more:
            return frames


def _drain_router(socket: "zmq.Socket[bytes]") -> tuple[list[tuple[int, list[Frame]]], int]:
    """What has come, by sender, and how many batches came from nobody that we could answer."""
    arrived: list[tuple[int, list[Frame]]] = []
    refused = 0
    while len(arrived) < DRAIN_BATCHES_MAX and _has_input(socket):
        identity, *frames = _receive(socket)
        name = bytes(identity)
        if name.isdigit() and len(name) < 20:
            arrived.append((int(name), frames))
        else:
            refused += 1
    return arrived, refused


def _enqueue(queue: deque[Batch], frames: Batch) -> None:
    if len(queue) >= QUEUE_BATCHES_MAX:
        raise InternalError(f"{len(queue)} batches wait for one peer; credit should prevent that")
    queue.append(frames)


def _send(socket: "zmq.Socket[bytes]", queue: deque[Batch], frames: Batch) -> None:
    if queue:
        _enqueue(queue, frames)
        return
    try:
        socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
    except zmq.Again:
        queue.append(frames)


def _flush(socket: "zmq.Socket[bytes]", queue: deque[Batch]) -> None:
    try:
        while queue:
            socket.send_multipart(queue[0], zmq.NOBLOCK, copy=False)
            queue.popleft()
    except zmq.Again:
        return
