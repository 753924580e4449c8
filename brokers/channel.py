"""Batches of frames over a connected Unix stream socket, between a broker and an executor.

Responsible for framing only; what frames mean is `dagsched.protocol.codec`. On the wire: frame
count (uint32), the frames' lengths (uint64 each), their bytes; little-endian.
"""

import select
import socket
import struct
from collections import deque
from collections.abc import Sequence

from dagsched.errors import DagschedError, ProtocolError
from dagsched.protocol.messages import Frame

FRAMES_MAX = 1 << 20
JOIN_BYTES_MAX = 64 << 10
"""Batches up to this size go out as one joined buffer: cheaper than a long scatter list."""

RECEIVE_BYTES = 256 << 10
_SCATTER_MAX = 512  # below the system's IOV_MAX of 1,024
_COUNT = struct.Struct("<I")


class ChannelFull(DagschedError):
    """The peer has stopped reading, and more than the bound waits to be sent."""


class Sender:
    """Sends batches; what the socket does not take at once waits, up to a bound.

    Args:
        sock: connected; blocking or not.
        pending_bytes_max: most bytes that may wait.
    """

    def __init__(self, sock: socket.socket, pending_bytes_max: int = 1 << 30) -> None:
        self._socket = sock
        self._pending: deque[memoryview] = deque()
        self._bytes_max = pending_bytes_max
        self.pending_bytes = 0

    def send_batch(self, frames: Sequence[Frame]) -> bool:
        """Send a batch, or queue what the socket does not take; True: nothing waits.

        Frames must not be changed until they are sent.

        Raises:
            ChannelFull: too much waits already.
            OSError: the peer is gone.
        """
        lengths = [len(frame) for frame in frames]
        head = struct.pack(f"<I{len(frames)}Q", len(frames), *lengths)
        total = len(head) + sum(lengths)
        if self.pending_bytes and self.pending_bytes + total > self._bytes_max:
            raise ChannelFull(f"{self.pending_bytes:,} bytes wait for a peer that does not read")
        if total <= JOIN_BYTES_MAX:
            joined = b"".join((head, *frames))
            sent = 0
            if not self._pending:
                try:
                    sent = self._socket.send(joined)
                except (BlockingIOError, InterruptedError):
                    sent = 0
                if sent == total:
                    return True
            self._pending.append(memoryview(joined)[sent:])
            self.pending_bytes += total - sent
        else:
            self._pending.append(memoryview(head))
            self._pending.extend(memoryview(frame).cast("B") for frame in frames if len(frame))
            self.pending_bytes += total
        return self.flush()

    def flush(self) -> bool:
        """Send what waits, as far as the socket takes it; True: nothing waits any more.

        Raises:
            OSError: the peer is gone.
        """
        pending = self._pending
        while pending:
            batch = [pending[i] for i in range(min(len(pending), _SCATTER_MAX))]
            try:
                sent = self._socket.sendmsg(batch)
            except BlockingIOError:
                return False
            except InterruptedError:
                continue
            self.pending_bytes -= sent
            while sent:
                first = pending[0]
                if sent >= len(first):
                    sent -= len(first)
                    pending.popleft()
                else:
                    pending[0] = first[sent:]
                    sent = 0
        return True


class Receiver:
    """Cuts a stream into batches, a piece at a time.

    Small batches are copied out of the receive buffer at once; what does not fit in it is received
    into memory of its own, and its frames are views of that.

    Args:
        sock: connected; blocking or not.
        batch_bytes_max: a larger batch is refused before anything is allocated for it.
    """

    def __init__(self, sock: socket.socket, batch_bytes_max: int = 1 << 40) -> None:
        self._socket = sock
        self._bytes_max = batch_bytes_max
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._lengths: Sequence[int] | None = None  # of the batch whose body is being received
        self._body: memoryview | None = None
        self._body_end = 0
        self.is_closed = False

    def receive(self) -> list[list[Frame]]:
        """Read once from the socket; the batches that are complete now, often one, maybe none.

        `is_closed` says afterwards whether the peer has closed its side.

        Raises:
            ProtocolError: this is no stream of batches, or one is too large.
        """
        if self._body is not None:
            target = self._body[self._body_end :]
        else:
            if self._start == self._end:
                self._start = self._end = 0
            elif self._end == len(self._view):
                self._compact()
            target = self._view[self._end :]
        try:
            count = self._socket.recv_into(target)
        except (BlockingIOError, InterruptedError):
            return []
        except ConnectionResetError:
            count = 0
        if count == 0:
            self.is_closed = True
            return []
        if self._body is None:
            self._end += count
            return self._cut()
        self._body_end += count
        return self._finish_body()

    def can_receive(self, timeout_s: float) -> bool:
        """Wait until there is something to read, or the peer has closed its side."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def receive_batch(self) -> list[list[Frame]]:
        """Block until at least one batch is complete; empty: the peer has closed its side."""
        while not self.is_closed:
            batches = self.receive()
            if batches:
                return batches
        return []

    def _compact(self) -> None:
        """Move what is left to the buffer's start; a head longer than it needs a larger one."""
        rest = bytes(self._view[self._start : self._end])
        if self._start == 0:
            self._buffer = bytearray(2 * len(self._buffer))
            self._view = memoryview(self._buffer)
        self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def _cut(self) -> list[list[Frame]]:
        batches: list[list[Frame]] = []
        while self._end - self._start >= 4:
            (frame_count,) = _COUNT.unpack_from(self._view, self._start)
            if frame_count > FRAMES_MAX:
                raise ProtocolError(f"a batch of {frame_count} frames (at most {FRAMES_MAX})")
            body = self._start + 4 + 8 * frame_count
            if body > self._end:
                break
            lengths = struct.unpack_from(f"<{frame_count}Q", self._view, self._start + 4)
            size = sum(lengths)
            if size > self._bytes_max:
                raise ProtocolError(f"a batch of {size} bytes (at most {self._bytes_max})")
            if body + size <= self._end:
                batches.append(_split(memoryview(bytes(self._view[body : body + size])), lengths))
                self._start = body + size
                continue
            if body + size > len(self._view):
                self._begin_body(lengths, size, body)
            break
        return batches

    def _begin_body(self, lengths: Sequence[int], size: int, body: int) -> None:
        """Receive the rest of a large batch into memory of its own."""
        own = memoryview(bytearray(size))
        have = self._end - body
        own[:have] = self._view[body : self._end]
        self._start = self._end = 0
        self._lengths, self._body, self._body_end = lengths, own, have

    def _finish_body(self) -> list[list[Frame]]:
        body, lengths = self._body, self._lengths
        if body is None or lengths is None or self._body_end < len(body):
            return []
        self._lengths = self._body = None
        return [_split(body, lengths)]


def _split(body: memoryview, lengths: Sequence[int]) -> list[Frame]:
    frames: list[Frame] = []
    start = 0
    for length in lengths:
        frames.append(body[start : start + length])
        start += length
    return frames
