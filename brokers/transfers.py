"""Large objects on their way between brokers: in chunks, a window of bytes under way at once.

Responsible for the bytes only: who wants what, and how long an object must stay, the core decides.
A sender reads the object's segment where it lies; a receiver writes into the broker's own arena.
Nothing here sends: the shell takes the parcels of a turn, and sends each chunk as a batch of its
own, so that the receiver can work on one while the next is under way.
"""

import mmap
import os
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dagsched.brokers.objects.segments import open_segment
from dagsched.config import Config
from dagsched.errors import OutOfMemory, ProtocolError
from dagsched.protocol.messages import (
    Frame,
    Location,
    ObjectInfo,
    ObjectsMissing,
    Parcel,
    TransferChunk,
    TransferCredit,
    TransferStart,
)

TRANSFERS_A_PEER_MAX = 4
"""Objects under way to one peer at once; the others wait their turn."""


Span = tuple[float, float]
"""When something began and ended, monotonic seconds."""


@dataclass(slots=True, eq=False)
class Sending:
    """An object under way to a peer."""

    number: int
    peer: int
    run: int
    info: ObjectInfo
    view: memoryview
    sent_bytes: int = 0
    taken_bytes: int = 0


class OutgoingTransfers:
    """Objects that this broker sends.

    Args:
        config: sizes of chunk and window.
        mapped: gives the bytes of an object, read-only.
    """

    def __init__(
        self, config: Config, mapped: Callable[[Location], memoryview] | None = None
    ) -> None:
        self._mapped = mapped or map_object
        self._chunk_bytes = config.transfer_chunk_bytes
        self._window_bytes = config.transfer_window_bytes
        self._count = 0
        self._sending: dict[int, Sending] = {}
        self._active_count: dict[int, int] = {}
        self._waiting: dict[int, deque[tuple[int, ObjectInfo]]] = {}
        self._parcels: list[tuple[int, Parcel]] = []
        self._done: list[tuple[int, int, int]] = []

    def start(self, peer: int, run: int, info: ObjectInfo) -> None:
        """Send an object that lies in shared memory; it must stay until `take_done` names it."""
        if self._active_count.get(peer, 0) >= TRANSFERS_A_PEER_MAX:
            self._waiting.setdefault(peer, deque()).append((run, info))
        else:
            self._begin(peer, run, info)

    def credit(self, peer: int, message: TransferCredit) -> None:
        """The receiver has taken some; send more, or be done.

        Raises:
            ProtocolError: it claims more than there is, or takes back what it said.
        """
        sending = self._sending.get(message.transfer)
        if sending is None or sending.peer != peer:
            return  # of a transfer that ended when the peer was taken for lost
        size = len(sending.view)
        if not sending.taken_bytes <= message.taken_bytes <= size:
            raise ProtocolError(
                f"peer {peer} has taken {message.taken_bytes} of {size} bytes, "
                f"after {sending.taken_bytes}"
            )
        sending.taken_bytes = message.taken_bytes
        if message.taken_bytes == size:
            self._end(sending)
        else:
            self._push(sending)

    def peer_lost(self, peer: int) -> None:
        """Give up all that was under way to a peer."""
        for run, info in self._waiting.pop(peer, ()):
            self._done.append((peer, run, info.first))
        for sending in [s for s in self._sending.values() if s.peer == peer]:
            self._end(sending)
        self._parcels = [(to, parcel) for to, parcel in self._parcels if to != peer]

    def take_parcels(self) -> list[tuple[int, Parcel]]:
        """What to send now: peer and parcel, each a batch of its own, in order."""
        parcels, self._parcels = self._parcels, []
        return parcels

    def take_done(self) -> list[tuple[int, int, int]]:
        """Transfers that have ended, well or not: peer, run, first position."""
        done, self._done = self._done, []
        return done

    def _begin(self, peer: int, run: int, info: ObjectInfo) -> None:
        if info.location is None:
            raise ProtocolError(f"object {info.first} of run {run} is not in shared memory")
        try:
            view = self._mapped(info.location)
        except FileNotFoundError:
            positions = array("i", range(info.first, info.first + info.count)).tobytes()
            self._parcels.append((peer, Parcel(ObjectsMissing(run), [positions])))
            self._done.append((peer, run, info.first))
            return
        self._count += 1
        sending = Sending(self._count, peer, run, info, view)
        self._sending[sending.number] = sending
        self._active_count[peer] = self._active_count.get(peer, 0) + 1
        bare = ObjectInfo(
            info.first, info.count, len(sending.view), None, info.type_name, info.refs
        )
        self._parcels.append((peer, Parcel(TransferStart(sending.number, run, bare))))
        self._push(sending)

    def _push(self, sending: Sending) -> None:
        end = min(len(sending.view), sending.taken_bytes + self._window_bytes)
        while sending.sent_bytes < end:
            begin = sending.sent_bytes
            chunk = sending.view[begin : min(begin + self._chunk_bytes, end)]
            message = TransferChunk(sending.number, begin)
            self._parcels.append((sending.peer, Parcel(message, [chunk])))
            sending.sent_bytes += len(chunk)

    def _end(self, sending: Sending) -> None:
        # ZeroMQ may still hold slices of the view; the mapping goes with the last of them.
        del self._sending[sending.number]
        self._active_count[sending.peer] -= 1
        self._done.append((sending.peer, sending.run, sending.info.first))
        waiting = self._waiting.get(sending.peer)
        while waiting and self._active_count[sending.peer] < TRANSFERS_A_PEER_MAX:
            run, info = waiting.popleft()
            self._begin(sending.peer, run, info)


@dataclass(slots=True, eq=False)
class Receiving:
    """An object that comes from a peer."""

    run: int
    info: ObjectInfo
    location: Location
    target: memoryview
    started_s: float
    taken_bytes: int = 0


class Room(Protocol):
    """Where received objects are written: the broker's own `Arena`."""

    def write_raw(self, size_bytes: int) -> tuple[Location, memoryview]:
        """Space for an object, to be filled by the caller."""

    def free(self, location: Location) -> None:
        """Give it back."""


class IncomingTransfers:
    """Objects that this broker receives.

    Args:
        arena: the broker's own.
        clock: gives the monotonic time, seconds.
    """

    def __init__(self, arena: Room, clock: Callable[[], float]) -> None:
        self._arena = arena
        self._clock = clock
        self._receiving: dict[tuple[int, int], Receiving] = {}
        self._parcels: list[tuple[int, Parcel]] = []
        self._stored: list[tuple[int, int, ObjectInfo, Span]] = []
        self._failed: list[tuple[int, int, str]] = []

    def start(self, peer: int, message: TransferStart) -> None:
        """An object will follow.

        Raises:
            ProtocolError: one of that number is under way already, or it has no bytes.
        """
        key = (peer, message.transfer)
        info = message.info
        if key in self._receiving or info.size_bytes <= 0:
            raise ProtocolError(f"peer {peer} can't start transfer {message.transfer}")
        try:
            location, target = self._arena.write_raw(info.size_bytes)
        except OutOfMemory as error:
            self._failed.append((message.run, info.first, str(error)))
            # The sender shall not wait; what it has sent already is dropped when it comes.
            self._credit(key, info.size_bytes)
            return
        self._receiving[key] = Receiving(message.run, info, location, target, self._clock())

    def chunk(self, peer: int, message: TransferChunk, frames: Sequence[Frame]) -> None:
        """Some of an object's bytes.

        Raises:
            ProtocolError: they are not the next bytes of the object.
        """
        key = (peer, message.transfer)
        receiving = self._receiving.get(key)
        if receiving is None:
            return  # there was no room for it
        begin, size = receiving.taken_bytes, receiving.info.size_bytes
        if len(frames) != 1 or message.offset != begin or not 0 < len(frames[0]) <= size - begin:
            raise ProtocolError(f"peer {peer} sent a wrong chunk of transfer {message.transfer}")
        end = begin + len(frames[0])
        receiving.target[begin:end] = frames[0]
        receiving.taken_bytes = end
        self._credit(key, end)
        if end == size:
            del self._receiving[key]
            receiving.target.release()
            info = receiving.info
            stored = ObjectInfo(
                info.first, info.count, size, receiving.location, info.type_name, info.refs
            )
            span = (receiving.started_s, self._clock())
            self._stored.append((peer, receiving.run, stored, span))

    def peer_lost(self, peer: int) -> None:
        """Drop what will never be whole."""
        for key in [key for key in self._receiving if key[0] == peer]:
            receiving = self._receiving.pop(key)
            receiving.target.release()
            self._arena.free(receiving.location)
        self._parcels = [(to, parcel) for to, parcel in self._parcels if to != peer]

    def take_parcels(self) -> list[tuple[int, Parcel]]:
        """What to send now: peer and parcel."""
        parcels, self._parcels = self._parcels, []
        return parcels

    def take_stored(self) -> list[tuple[int, int, ObjectInfo, Span]]:
        """Objects that are whole now: sender, run, where they lie, first and last moment."""
        stored, self._stored = self._stored, []
        return stored

    def take_failed(self) -> list[tuple[int, int, str]]:
        """Objects for which there was no room: run, first position, why."""
        failed, self._failed = self._failed, []
        return failed

    def _credit(self, key: tuple[int, int], taken_bytes: int) -> None:
        peer, transfer = key
        self._parcels.append((peer, Parcel(TransferCredit(transfer, taken_bytes))))


def map_object(location: Location) -> memoryview:
    """The bytes of an object, read-only, straight from its segment.

    Raises:
        FileNotFoundError: the segment is gone.
        ProtocolError: its name is none.
    """
    fd = open_segment(location.segment)
    try:
        mapped = mmap.mmap(fd, location.size_bytes, prot=mmap.PROT_READ, offset=location.offset)
    finally:
        os.close(fd)
    return memoryview(mapped)
