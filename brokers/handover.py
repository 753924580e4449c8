"""Values from one executor of a node to another, without their broker.

Each slot of a node has a pair of connected datagram sockets: its executor reads one end, all others
write to the other. A datagram names run, bundle and attempt, so that what is late, or early, is
told apart; it holds pickled values by position, or says that its sender's lane is broken.

Nothing here waits without a bound, and whatever is lost on the way makes a lane end early, not
hang: what its tasks lack is then computed again.
"""

import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dagsched.protocol.messages import Frame

SLOTS_MAX = 64
"""Executors with a higher slot exchange values through their broker only."""

MESSAGE_BYTES_MAX = 65_536
"""Larger values go through the broker, as objects."""

WAIT_S = 0.002
"""A reader looks up so often whether it is to stop."""

RETRY_S = 0.000_2
EARLY_MAX = 512
"""Messages kept for bundles that the reader hasn't begun."""

_HEAD = struct.Struct("<qqqq")  # run, bundle, attempt, kind
_VALUES, _BROKEN = 0, 1


class Key(NamedTuple):
    """Which gang a message is of."""

    run: int
    bundle: int
    attempt: int


@dataclass(frozen=True, slots=True)
class SlotSockets:
    """The ends of the sockets of all slots: to be read, to be written to."""

    readers: Sequence[socket.socket]
    writers: Sequence[socket.socket]


def open_slots(count: int) -> SlotSockets:
    """Make the sockets of so many slots, before any executor is forked."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
    seconds, microseconds = divmod(round(WAIT_S * 1e6), 1_000_000)
    for reader, _ in pairs:
        reader.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", seconds, microseconds)
        )
    return SlotSockets([reader for reader, _ in pairs], [writer for _, writer in pairs])


@dataclass(slots=True)
class Handover:
    """One executor's end of it all.

    Args:
        reader: of its own slot.
        writers: to each slot.
    """

    reader: socket.socket
    writers: Sequence[socket.socket]
    _backlog: dict[int, deque[bytes]] = field(default_factory=dict)
    _early: deque[tuple[Key, int, bytes]] = field(default_factory=deque)
    _buffer: bytearray = field(default_factory=lambda: bytearray(2 * MESSAGE_BYTES_MAX))

    def begin(self) -> None:
        """A lane begins: what the one before could not send is of no use any more."""
        self._backlog.clear()

    def forget(self, run: int) -> None:
        """The run is over."""
        self._early = deque(item for item in self._early if item[0].run != run)

    def send(self, slot: int, key: Key, data: bytes) -> bool:
        """Send pickled values to a slot; False: they are too large."""
        if len(data) > MESSAGE_BYTES_MAX:
            return False
        self._put(slot, _HEAD.pack(*key, _VALUES) + data)
        return True

    def send_broken(self, slot: int, key: Key) -> None:
        """Say to a slot that this lane has not done, or will not do, all that it had."""
        self._put(slot, _HEAD.pack(*key, _BROKEN))

    def flush(self, should_stop: Callable[[], bool]) -> bool:
        """Wait until all is sent; False: it isn't, and shall not be waited for."""
        while self._send_backlog():
            if should_stop():
                return False
            time.sleep(RETRY_S)
        return True

    def receive(self, key: Key, *, wait: bool) -> tuple[bool, Frame] | None:
        """One message of this gang: whether its sender's lane is broken, and its values.

        Returns:
            None: there is none now, or (if it may `wait`) within some milliseconds.
        """
        if self._early:
            for index, (other, kind, kept) in enumerate(self._early):
                if other == key:
                    del self._early[index]
                    return kind == _BROKEN, kept
        while True:
            if self._backlog and self._send_backlog():
                # Whoever is to read it may be waiting for the same thing with us.
                if wait:
                    time.sleep(RETRY_S)
                flags = int(socket.MSG_DONTWAIT)
            else:
                flags = 0 if wait else int(socket.MSG_DONTWAIT)
            try:
                size = self.reader.recv_into(self._buffer, 0, flags)
            except (BlockingIOError, InterruptedError):
                return None
            run, bundle, attempt, kind = _HEAD.unpack_from(self._buffer)
            data = memoryview(self._buffer)[_HEAD.size : size]
            if (run, bundle, attempt) == key:
                return kind == _BROKEN, data
            self._early.append((Key(run, bundle, attempt), kind, bytes(data)))
            if len(self._early) > EARLY_MAX:
                self._early.popleft()

    def _put(self, slot: int, message: bytes) -> None:
        waiting = self._backlog.get(slot)
        if waiting:
            waiting.append(message)
            self._send_backlog()
            return
        try:
            self.writers[slot].send(message, socket.MSG_DONTWAIT)
        except OSError:  # its queue is full
            self._backlog[slot] = deque([message])

    def _send_backlog(self) -> bool:
        """Try again; whether something waits still."""
        for slot, waiting in list(self._backlog.items()):
            try:
                while waiting:
                    self.writers[slot].send(waiting[0], socket.MSG_DONTWAIT)
                    waiting.popleft()
            except OSError:
                continue
            del self._backlog[slot]
        return bool(self._backlog)
