"""Thin non-blocking wrappers over ZeroMQ sockets: who sent which frames, and no more.

Responsible for identities, options, and for never blocking and never losing a batch that a living
peer could take. What the frames mean is `dagsched.protocol.codec`'s affair. Like a socket, an
endpoint is open from its construction to `close`; all calls come from one thread. Inside a machine
sockets are Unix paths, in a directory that only its owner can enter; over TCP they are encrypted,
and only known keys get in (`curve`).

About a ZeroMQ descriptor (``fd``): it says that *something* may have changed, not that there is
input, and sending can take its signal away. So, before waiting for it: `drain` until nothing
comes, and after a send ask `has_input` (or drain) once more.
"""

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import zmq

from dagsched.errors import AuthenticationError, InternalError
from dagsched.protocol.messages import Frame
from dagsched.transport.curve import CurveKeys, Gate

logger = logging.getLogger(__name__)

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

HEARTBEAT_MS = 1_000
HEARTBEAT_TIMEOUT_MS = 4_000
"""Over TCP ZeroMQ asks whether the other side is still there, and closes a connection without an
answer: the kernel would take a quarter of an hour to notice."""

_MORE = int(zmq.SNDMORE) | int(zmq.NOBLOCK)
_LAST = int(zmq.NOBLOCK)

Batch = Sequence[Frame]


class _Listener:
    """A bound socket that hears many peers, each by the process id that it says.

    Args:
        context: of the socket.
        where: path of a Unix socket, or ``tcp://HOST``, where the system chooses the port.
        keys: of TCP.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        where: Path | str,
        keys: CurveKeys | None,
    ) -> None:
        self._paths: list[Path] = []
        self._gate: Gate | None = None
        if keys is not None:
            self._gate = Gate(context, [keys.client_public])
        self.socket = context.socket(zmq.ROUTER)
        try:
            self._open(where, keys)
        except (zmq.ZMQError, AuthenticationError):
            self.close(0)
            raise
        self._stranger_count = 0

    def _open(self, where: Path | str, keys: CurveKeys | None) -> None:
        router = self.socket
        _limit(router)
        # Sending to an unknown broker is an error to us, not a message lost in silence.
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A broker that was started again takes over the id of the one that died.
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if keys is not None:
            for option, value in keys.as_server.items():
                router.setsockopt(option, value)
        if is_tcp(where):
            if keys is None:
                raise AuthenticationError(f"nothing listens on {where} without keys")
            _keep_alive(router)
            router.bind(f"{where}:*")
            self.address = bytes(router.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        else:
            self.also_bind(Path(where))
            self.address = f"ipc://{where}"

    def also_bind(self, path: Path) -> None:
        """Listen at one Unix path more."""
        self.socket.bind(f"ipc://{path}")
        self._paths.append(path)

    @property
    def fds(self) -> list[int]:
        """Descriptors that say when `drain` may have something to do."""
        gates = [] if self._gate is None else [self._gate.fd]
        return [_descriptor(self.socket), *gates]

    @property
    def refused_count(self) -> int:
        """Connections without a known key, and batches of those that said no id."""
        return self._stranger_count + (0 if self._gate is None else self._gate.refused_count)

    def drain(self) -> list[tuple[int, list[Frame]]]:
        """What has come, by sender; also answers who asks to be let in."""
        if self._gate is not None:
            self._gate.answer()
        arrived, stranger_count = _drain_router(self.socket)
        self._stranger_count += stranger_count
        return arrived

    def close(self, linger_ms: int) -> None:
        """Close the socket, then the gate, and let go of the paths."""
        self.socket.close(linger_ms)
        if self._gate is not None:
            self._gate.close()
        for path in self._paths:
            path.unlink(missing_ok=True)


class MasterEndpoint:
    """The master's side: one bound socket for all brokers.

    Args:
        where: path of the Unix socket; or ``tcp://HOST``, an address of this machine.
        keys: of TCP; needed there.

    Raises:
        zmq.ZMQError: it can't be bound.
        AuthenticationError: TCP without keys.
    """

    def __init__(self, where: Path | str, keys: CurveKeys | None = None) -> None:
        self._context = zmq.Context()
        try:
            self._listener = _Listener(self._context, where, keys)
        except (zmq.ZMQError, AuthenticationError):
            self._context.term()
            raise
        self._socket = self._listener.socket
        self._has_keys = keys is not None
        self._plain: _Listener | None = None  # of Unix paths, beside a socket that wants keys
        self._plain_brokers: set[int] = set()
        self._queues: dict[int, deque[Batch]] = {}
        self.fd = _descriptor(self._socket)
        self.address = self._listener.address

    @property
    def fds(self) -> list[int]:
        """Descriptors that say when `drain` may have something to do."""
        return self._listener.fds + ([] if self._plain is None else self._plain.fds)

    @property
    def refused_count(self) -> int:
        """Connections that were not let in, and batches of those that said no id."""
        plain = self._plain
        return self._listener.refused_count + (0 if plain is None else plain.refused_count)

    def also_bind(self, path: Path | str) -> None:
        """Listen at a further Unix path, where brokers of another master look for one.

        `fds` may have more of them afterwards: who comes over a path has no keys of ours.

        Raises:
            zmq.ZMQError: it can't be bound.
        """
        if not self._has_keys:
            self._listener.also_bind(Path(path))
        elif self._plain is None:
            self._plain = _Listener(self._context, Path(path), None)
        else:
            self._plain.also_bind(Path(path))

    def drain(self) -> list[tuple[int, list[Frame]]]:
        """Batches that have come, with their sender's id, oldest first; empty: no more for now."""
        if self._queues:
            self._flush()
        arrived = self._listener.drain()
        if self._plain is not None:
            over_paths = self._plain.drain()
            self._plain_brokers.update(sender for sender, _ in over_paths)
            arrived += over_paths
        return arrived

    def has_input(self) -> bool:
        """Whether `drain` would bring something."""
        plain = self._plain
        return _has_input(self._socket) or (plain is not None and _has_input(plain.socket))

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
        self._listener.close(linger_ms)
        if self._plain is not None:
            self._plain.close(linger_ms)
        self._context.term()

    def _send_now(self, broker: int, frames: Batch) -> None:
        # ZeroMQ says "again" at the first part of a batch only, so none is ever sent in half.
        socket = self._socket
        if self._plain is not None and broker in self._plain_brokers:
            socket = self._plain.socket
        _send_parts(socket, (b"%d" % broker, *frames))

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
        where: where the master listens, or will soon: a path, or ``tcp://HOST:PORT``.
        keys: of TCP; needed there.
        is_immediate: ZeroMQ queues nothing before there is a connection.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        broker: int,
        where: str,
        keys: CurveKeys | None = None,
        *,
        is_immediate: bool = False,
    ) -> None:
        address = where if is_tcp(where) else f"ipc://{where}"
        self._socket = _dealer(context, broker, address, keys)
        self._address = address
        self._auth_monitor: zmq.Socket[bytes] | None = None
        if is_tcp(where):
            self._auth_monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._socket.setsockopt(zmq.IMMEDIATE, int(is_immediate))
        self._socket.connect(address)
        self._queue: deque[Batch] = deque()
        self.fd = _descriptor(self._socket)
        monitors = [] if self._auth_monitor is None else [_descriptor(self._auth_monitor)]
        self.fds = [self.fd, *monitors]

    def drain(self) -> list[list[Frame]]:
        """Batches that have come, oldest first; empty: no more for now.

        Raises:
            AuthenticationError: the master does not let this broker in.
        """
        if self._auth_monitor is not None and _has_input(self._auth_monitor):
            raise AuthenticationError(
                f"the master at {self._address} does not know this broker's key; a broker must be "
                "given the keys of the environment that it belongs to"
            )
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
        if self._auth_monitor is not None:
            self._socket.disable_monitor()
            self._auth_monitor.close(0)
        self._socket.close(linger_ms)


class DataPort:
    """A broker's links to all other brokers: one bound socket to hear them, one to speak to each.

    Args:
        context: shared with the broker's `BrokerEndpoint`.
        broker: own process id.
        where: path of the Unix socket that others connect to; or ``tcp://HOST``, an address of
            this machine.
        keys: of TCP; needed there.

    Raises:
        zmq.ZMQError: it can't be bound.
        AuthenticationError: TCP without keys.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        broker: int,
        where: str,
        keys: CurveKeys | None = None,
    ) -> None:
        self._context = context
        self._broker = broker
        self._keys = keys
        self._listener = _Listener(context, where, keys)
        self._socket = self._listener.socket
        self._links: dict[int, tuple[str, zmq.Socket[bytes], deque[Batch]]] = {}
        self.fd = _descriptor(self._socket)
        self.fds = self._listener.fds
        self.address = self._listener.address
        """What others connect to."""

    @property
    def refused_count(self) -> int:
        """Connections that were not let in, and batches of those that said no id."""
        return self._listener.refused_count

    @property
    def link_fds(self) -> list[int]:
        """Descriptors of the links: one is ready when `flush` may have something to do."""
        return [_descriptor(link) for _, link, _ in self._links.values()]

    def drain(self) -> list[tuple[int, list[Frame]]]:
        """Batches that have come, with their sender's id, oldest first; empty: no more for now."""
        return self._listener.drain()

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
                try:
                    link = _dealer(self._context, self._broker, address, self._keys)
                except AuthenticationError:
                    logger.warning("broker %d is at %s, and there are no keys", peer, address)
                    continue
                self._links[peer] = (address, link, deque())
                try:
                    link.connect(address)
                except zmq.ZMQError:
                    logger.warning("broker %d can't be at %r", peer, address)

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
        self._listener.close(0)


def is_tcp(where: Path | str) -> bool:
    """Whether this is an address of TCP; else it is a path."""
    return isinstance(where, str) and where.startswith("tcp://")


def _dealer(
    context: "zmq.Context[zmq.Socket[bytes]]", own_id: int, address: str, keys: CurveKeys | None
) -> "zmq.Socket[bytes]":
    """A socket that is about to connect."""
    dealer = context.socket(zmq.DEALER)
    _limit(dealer)
    dealer.setsockopt(zmq.IDENTITY, b"%d" % own_id)
    dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    if is_tcp(address):
        if keys is None:
            dealer.close(0)
            raise AuthenticationError(f"nothing connects to {address} without keys")
        _keep_alive(dealer)
        for option, value in keys.as_client.items():
            dealer.setsockopt(option, value)
    return dealer


def _keep_alive(socket: "zmq.Socket[bytes]") -> None:
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)


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


def _send_parts(socket: "zmq.Socket[bytes]", frames: Batch) -> None:
    """Send a batch or raise `zmq.Again`; a third of what `send_multipart` costs for each frame."""
    send = socket.send
    last = len(frames) - 1
    for index in range(last):
        frame = frames[index]
        send(frame, _MORE, copy=len(frame) < LARGE_BYTES)
    send(frames[last], _LAST, copy=len(frames[last]) < LARGE_BYTES)


def _send(socket: "zmq.Socket[bytes]", queue: deque[Batch], frames: Batch) -> None:
    if queue:
        _enqueue(queue, frames)
        return
    try:
        _send_parts(socket, frames)
    except zmq.Again:
        queue.append(frames)


def _flush(socket: "zmq.Socket[bytes]", queue: deque[Batch]) -> None:
    try:
        while queue:
            _send_parts(socket, queue[0])
            queue.popleft()
    except zmq.Again:
        return
