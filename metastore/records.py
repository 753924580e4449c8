"""What the journal says, and its form in bytes. Pure.

A record is one fact about a run. Its bytes are a frame: magic, version, length, checksum, then
MessagePack. The checksum covers version and length too, so that no damaged frame poses as another.
A batch is frames one after the other; a store keeps batches, and never looks inside.

A record too large for a store's comfort is split into `Part`s, each a record of its own; the fold
joins them.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import msgpack
import msgspec
from msgspec.structs import replace

from dagsched.errors import VersionMismatch
from dagsched.protocol.messages import Failure, Frame, ObjectInfo

VERSION = 1
MAGIC = b"dJ"
PART_BYTES = 8 << 20
"""Larger records are split: servers keep a command's bytes in one piece of memory."""

_HEADER = struct.Struct("<2sBxI")  # magic, version, unused, length of the body
_CHECKSUM = struct.Struct("<I")
FRAME_OVERHEAD_BYTES = _HEADER.size + _CHECKSUM.size


@dataclass(frozen=True, slots=True)
class EnvironmentOpened:
    """First record of the environment's own journal."""

    KIND: ClassVar[int] = 1
    token: str
    rootpath: str
    host: str
    pid: int
    opened_wall_s: float
    version: str


@dataclass(frozen=True, slots=True)
class NodesChanged:
    """The nodes that the environment has from now on: (broker, host, executors)."""

    KIND: ClassVar[int] = 2
    nodes: Sequence[tuple[int, str, Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Submitted:
    """First record of a run: its plan, encoded by `dagsched.protocol.plans`.

    No plan: the run has ended and need never be computed again. `client` is what the client needs
    to make a handle of the run again.
    """

    KIND: ClassVar[int] = 3
    priority: int
    timeout_s: float | None
    plan_frames: Sequence[Frame]
    parent: tuple[int, int] | None = None  # run and position of the task that returned this graph
    client: Frame = b""


@dataclass(frozen=True, slots=True)
class Placed:
    """Subtrees were given to brokers: (subtree, broker, attempt)."""

    KIND: ClassVar[int] = 4
    epoch: int
    placements: Sequence[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class SubtreeDone:
    """All tasks of a subtree ended; its exports are held by `broker`."""

    KIND: ClassVar[int] = 5
    epoch: int
    subtree: int
    attempt: int
    broker: int
    positions: Frame  # int32 little-endian, rising
    sizes: Frame  # int64 little-endian, bytes of each


@dataclass(frozen=True, slots=True)
class Outputs:
    """Objects that hold results which the client asked for, and the broker that has each.

    `data` has the bytes of the inline ones, in their order.
    """

    KIND: ClassVar[int] = 6
    epoch: int
    objects: Sequence[tuple[int, ObjectInfo]]
    data: Sequence[Frame]


@dataclass(frozen=True, slots=True)
class Failed:
    """A task failed for good on `node`; `data` is the pickled exception, or empty."""

    KIND: ClassVar[int] = 7
    failure: Failure
    data: Frame = b""
    node: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """Last record of a run; `state` as the master calls it: ``done``, ``failed``, .."""

    KIND: ClassVar[int] = 8
    state: str


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the bytes of a record too large for one."""

    KIND: ClassVar[int] = 9
    group: int  # tells apart what was split; unique in a journal
    index: int
    count: int
    data: Frame


Record = (
    EnvironmentOpened | NodesChanged | Submitted | Placed | SubtreeDone | Outputs | Failed | Ended
    | Part
)  # fmt: skip


class Damage(NamedTuple):
    """Where a batch stops making sense, and why."""

    offset: int
    reason: str


def encode_record(record: Record, *, group: int = 0) -> list[bytes]:
    """Frames of a record: one, or several for a large one.

    Args:
        record: what to encode.
        group: number for the pieces of a large record; must not repeat in one journal.
    """
    body = _pack([record.KIND, *_fields(record)])
    if len(body) <= PART_BYTES:
        return [_frame(body)]
    starts, view = range(0, len(body), PART_BYTES), memoryview(body)
    return [
        _frame(_pack([Part.KIND, group, index, len(starts), view[start : start + PART_BYTES]]))
        for index, start in enumerate(starts)
    ]


def record_bytes(record: Record) -> int:
    """About how long a record's frames will be, of one that may be long."""
    if isinstance(record, Submitted):
        return len(record.client) + sum(map(len, record.plan_frames))
    return sum(map(len, record.data)) if isinstance(record, Outputs) else 0


def split_frames(batch: Frame) -> tuple[list[bytes], Damage | None]:
    """Bodies of a batch's frames, up to its end or the first thing that is no whole frame.

    Raises:
        VersionMismatch: a frame was written by a newer dagsched.
    """
    data = bytes(batch)
    bodies: list[bytes] = []
    offset = 0
    while offset < len(data):
        if len(data) - offset < FRAME_OVERHEAD_BYTES:
            return bodies, Damage(offset, "the frame's head is cut off")
        magic, version, length = _HEADER.unpack_from(data, offset)
        if magic != MAGIC:
            return bodies, Damage(offset, "no record begins here")
        end = offset + FRAME_OVERHEAD_BYTES + length
        if end > len(data):
            return bodies, Damage(offset, "the record is cut off")
        (checksum,) = _CHECKSUM.unpack_from(data, offset + _HEADER.size)
        body = data[offset + FRAME_OVERHEAD_BYTES : end]
        if checksum != _checksum(data[offset : offset + _HEADER.size], body):
            return bodies, Damage(offset, "the checksum is wrong")
        if version > VERSION:
            raise VersionMismatch(
                f"the journal has a record of version {version}; this dagsched reads up to version "
                f"{VERSION}: use the dagsched that wrote it, or a newer one"
            )
        bodies.append(body)
        offset = end
    return bodies, None


def decode_body(body: bytes) -> Record:
    """The record in a frame's body.

    Raises:
        ValueError: the body is no record of this version.
    """
    try:
        kind, *fields = msgpack.unpackb(body, use_list=False, raw=False, strict_map_key=False)
        return _DECODERS[kind](*fields)
    except (TypeError, KeyError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"no record of version {VERSION}: {error!r}") from error


def decode_parts(parts: Sequence[Part]) -> Record:
    """The record that was split into these, given in the order of their indices."""
    return decode_body(b"".join(part.data for part in parts))


def _checksum(header: bytes, body: Frame) -> int:
    return zlib.crc32(body, zlib.crc32(header))


def _frame(body: bytes) -> bytes:
    header = _HEADER.pack(MAGIC, VERSION, len(body))
    return b"".join((header, _CHECKSUM.pack(_checksum(header, body)), body))


def _pack(fields: list[object]) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def _fields(record: Record) -> list[object]:
    """What stands after the kind, in terms of MessagePack; undone by ``_DECODERS``."""
    match record:
        case Outputs(epoch, objects, data):
            plain = [(broker, msgspec.to_builtins(info)) for broker, info in objects]
            return [epoch, plain, list(data)]
        case Failed(failure, data, node):
            return [msgspec.to_builtins(failure), data, node]
        case _:
            return [getattr(record, name) for name in record.__slots__]


def _outputs(epoch: int, objects: object, data: Sequence[bytes]) -> Outputs:
    held = msgspec.convert(objects, tuple[tuple[int, ObjectInfo], ...])
    # A sequence becomes a list; records are compared, and all else in them is a tuple.
    exact = tuple((broker, replace(info, refs=tuple(info.refs))) for broker, info in held)
    return Outputs(epoch, exact, data)


def _failed(failure: object, data: bytes, node: int | None = None) -> Failed:
    return Failed(msgspec.convert(failure, Failure), data, node)


_DECODERS: dict[int, Callable[..., Record]] = {
    EnvironmentOpened.KIND: EnvironmentOpened,
    NodesChanged.KIND: NodesChanged,
    Submitted.KIND: Submitted,
    Placed.KIND: Placed,
    SubtreeDone.KIND: SubtreeDone,
    Outputs.KIND: _outputs,
    Failed.KIND: _failed,
    Ended.KIND: Ended,
    Part.KIND: Part,
}
