"""Batches of messages to frames and back; the one place that knows the form of a batch. Pure.

A batch is what one peer gets in one turn. Frame 0 is the MessagePack of ``(PROTOCOL_VERSION,
epoch, session, sequence, heard, ack, missing, [(frame_count, message), ...])``; the frames of all
messages follow, in order, untouched. The five numbers after the epoch are the stamp of the link's
session (see `session`); where nothing can be lost, between a broker and its executors, they are 0.
Whatever arrives is checked here before anybody else looks at it: the answer is well-typed
messages, or `ProtocolError`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from dagsched.config import Config
from dagsched.errors import ProtocolError, VersionMismatch
from dagsched.protocol.messages import Frame, Message, Parcel
from dagsched.protocol.session import Stamp

PROTOCOL_VERSION = 4
"""Rises whenever a message of either side could be misread by the other."""

FRAMES_MAX = 1 << 20
"""More frames than this in one batch are refused."""

NO_SESSION = Stamp(0, 0)
"""The stamp of links that need no session."""

_encode = msgspec.msgpack.Encoder().encode
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Arrival(NamedTuple):
    """A decoded batch."""

    epoch: int
    stamp: Stamp
    parcels: list[Parcel]


def encode_batch(parcels: Sequence[Parcel], epoch: int, stamp: Stamp = NO_SESSION) -> list[Frame]:
    """Frames of a batch; the parcels' own frames are in it by reference.

    Args:
        parcels: messages with their frames, in the order in which they shall be handled.
        epoch: of the sender's membership; receivers drop what is older than what they know.
        stamp: of the link's session.

    Example:
        >>> from dagsched.protocol.messages import Ping
        >>> len(encode_batch([Parcel(Ping(1)), Parcel(Ping(2), [b"bulk"])], epoch=7))
        2
    """
    items = [(len(frames), message) for message, frames in parcels]
    batch: list[Frame] = [_encode((PROTOCOL_VERSION, epoch, *stamp, items))]
    for _, frames in parcels:
        batch += frames
    return batch


class Decoder:
    """Checks and decodes batches of one kind of sender.

    Args:
        union: the messages that may come, such as `dagsched.protocol.messages.BrokerToMaster`.
        config: gives the size of the largest header; None: the default's.

    Example:
        >>> from dagsched.protocol.messages import MasterToBroker, Ping
        >>> decoder = Decoder(MasterToBroker)
        >>> decoder.decode_batch(encode_batch([Parcel(Ping(1))], epoch=7))
        (7, [Parcel(message=Ping(number=1), frames=[])])
    """

    def __init__(self, union: Any, config: Config | None = None) -> None:
        self._header_bytes_max = (config or Config()).message_bytes_max
        header: Any = tuple[
            int, _Count, _Count, _Count, _Count, _Count, _Count, list[tuple[int, union]]
        ]
        self._decode = msgspec.msgpack.Decoder(header).decode

    def decode_batch(self, frames: Sequence[Frame]) -> tuple[int, list[Parcel]]:
        """Epoch and parcels of a batch.

        Raises:
            ProtocolError: it is no batch of messages of this sender's kind.
            VersionMismatch: the sender speaks another version of the protocol.
        """
        epoch, _, parcels = self.decode_arrival(frames)
        return epoch, parcels

    def decode_arrival(self, frames: Sequence[Frame]) -> Arrival:
        """Epoch, stamp and parcels of a batch.

        Raises:
            ProtocolError: it is no batch of messages of this sender's kind.
            VersionMismatch: the sender speaks another version of the protocol.
        """
        epoch, stamp, items = self._decode_header(frames)
        if len(items) == 1:
            count, message = items[0]
            if count != len(frames) - 1:
                raise _wrong_counts(count, len(frames) - 1)
            return Arrival(epoch, stamp, [Parcel(message, frames[1:])])
        parcels = []
        begin = 1
        for count, message in items:
            if count < 0:
                raise _wrong_counts(count, len(frames) - 1)
            parcels.append(Parcel(message, frames[begin : begin + count]))
            begin += count
        if begin != len(frames):
            raise _wrong_counts(begin - 1, len(frames) - 1)
        return Arrival(epoch, stamp, parcels)

    def _decode_header(
        self, frames: Sequence[Frame]
    ) -> tuple[int, Stamp, list[tuple[int, Message]]]:
        if not 1 <= len(frames) <= FRAMES_MAX:
            raise ProtocolError(f"a batch has 1 to {FRAMES_MAX} frames, not {len(frames)}")
        header = frames[0]
        if len(header) > self._header_bytes_max:
            raise ProtocolError(
                f"a batch's header has at most {self._header_bytes_max} bytes "
                f"(message_bytes_max), not {len(header)}"
            )
        try:
            version, epoch, session, sequence, heard, ack, missing, items = self._decode(header)
        except (
            msgspec.MsgspecError,
            ValueError,
            OverflowError,
            RecursionError,
            MemoryError,
        ) as error:
            version = _version_of(header)
            if version is not None and version != PROTOCOL_VERSION:
                raise _wrong_version(version) from error
            raise ProtocolError(f"a batch's header can't be decoded: {error}") from error
        if version != PROTOCOL_VERSION:
            raise _wrong_version(version)
        return epoch, Stamp(session, sequence, heard, ack, missing), items


def _version_of(header: Frame) -> int | None:
    """The version that a header claims, which is its first item in all versions."""
    start = bytes(header[:2])
    # A fixarray (of three in version 1), a positive fixint: see the MessagePack specification.
    is_header = len(start) == 2 and start[0] & 0xF0 == 0x90 and start[1] < 0x80
    return start[1] if is_header else None


def _wrong_version(version: int) -> VersionMismatch:
    return VersionMismatch(
        f"the sender speaks version {version} of the protocol, this side {PROTOCOL_VERSION}; "
        "install the same version of dagsched on both",
        version,
    )


def _wrong_counts(told: int, found: int) -> ProtocolError:
    return ProtocolError(f"a batch's header speaks of {told} frames, but {found} came")
