"""Records to bytes and back; damage is told exactly."""

import struct
import zlib

import msgpack
import msgspec
import pytest

from dagsched.errors import VersionMismatch
from dagsched.metastore.records import (
    FRAME_OVERHEAD_BYTES,
    PART_BYTES,
    VERSION,
    Damage,
    Ended,
    EnvironmentOpened,
    Failed,
    NodesChanged,
    Outputs,
    Part,
    Placed,
    Record,
    Submitted,
    SubtreeDone,
    decode_body,
    decode_parts,
    encode_record,
    split_frames,
)
from dagsched.protocol.messages import ExitInfo, Failure, Location, ObjectInfo

FAILURE = Failure(3, 1, "lost", "ValueError", "text", "tb", "a.b", 4, ExitInfo(1, 9, 100, "tail"))
FAILURE_PLAIN = msgspec.to_builtins(FAILURE)
RECORDS: list[Record] = [
    EnvironmentOpened("5f0c", "/D", "host", 12, 1.5, "0.1.0"),
    NodesChanged(((2, "127.0.0.1", (3, 4)), (5, "b", (6,)))),
    Submitted(1, None, (b"header", b"\x00\xff")),
    Submitted(-2, 2.5, (), (1, 7), b"handle"),
    Placed(1, ((0, 2, 1), (1, 5, 1))),
    SubtreeDone(1, 4, 2, 5, b"\x01\x00\x00\x00", b"\x08" + bytes(7)),
    Outputs(
        1,
        (
            (2, ObjectInfo(3, 1, 5, None, "int", ((1, 2),))),
            (5, ObjectInfo(4, 2, 9, Location("seg", 64, 9))),
        ),
        (b"hello",),
    ),
    Failed(FAILURE, b"pickle", 7),
    Failed(Failure(0, 0, "raised")),
    Ended("done"),
    Part(7, 0, 2, b"abc"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_equal(record: Record) -> None:
    (frame,) = encode_record(record)
    (body,), damage = split_frames(frame)
    assert damage is None
    assert decode_body(body) == record


@pytest.mark.parametrize(
    ("fields", "record"),
    [
        ([3, 1, None, [b"plan"], [1, 7]], Submitted(1, None, (b"plan",), (1, 7), b"")),
        ([7, FAILURE_PLAIN, b"pickle"], Failed(FAILURE, b"pickle", None)),
    ],
    ids=["Submitted", "Failed"],
)
def test_what_older_ones_did_not_say_has_defaults(fields: list[object], record: Record) -> None:
    assert decode_body(msgpack.packb(fields)) == record


def test_the_form_of_a_frame_is_fixed() -> None:
    (frame,) = encode_record(Ended("done"))
    head = b"dJ\x01\x00\x07\x00\x00\x00"
    body = b"\x92\x08\xa4done"
    assert frame == head + struct.pack("<I", zlib.crc32(head + body)) + body


def test_a_large_record_is_split_and_joined() -> None:
    record = Submitted(0, None, (bytes(2 * PART_BYTES), b"end"))
    frames = encode_record(record, group=5)
    assert len(frames) == 3
    bodies, damage = split_frames(b"".join(frames))
    assert damage is None
    parts = [decode_body(body) for body in bodies]
    assert [(part.group, part.index, part.count) for part in parts if isinstance(part, Part)] == [
        (5, 0, 3),
        (5, 1, 3),
        (5, 2, 3),
    ]
    assert decode_parts([part for part in parts if isinstance(part, Part)]) == record


def test_a_batch_cut_anywhere_gives_its_whole_frames() -> None:
    frames = [encode_record(record)[0] for record in RECORDS[:4]]
    batch = b"".join(frames)
    ends = [sum(map(len, frames[:count])) for count in range(5)]
    for length in range(len(batch) + 1):
        bodies, damage = split_frames(batch[:length])
        whole = sum(end <= length for end in ends) - 1
        assert [decode_body(body) for body in bodies] == RECORDS[:whole]
        if length in ends:
            assert damage is None
        elif length - ends[whole] < FRAME_OVERHEAD_BYTES:
            assert damage == Damage(ends[whole], "the frame's head is cut off")
        else:
            assert damage == Damage(ends[whole], "the record is cut off")


def test_any_changed_byte_is_noticed() -> None:
    first, second = (encode_record(record)[0] for record in RECORDS[3:5])
    for index in range(len(first)):
        changed = bytearray(first + second)
        changed[index] ^= 0x40
        bodies, damage = split_frames(changed)
        assert bodies == []
        assert damage is not None
        assert damage.offset == 0


def test_a_newer_version_is_refused_naming_both() -> None:
    head = struct.pack("<2sBxI", b"dJ", VERSION + 1, 1)
    frame = head + struct.pack("<I", zlib.crc32(b"\xc0", zlib.crc32(head))) + b"\xc0"
    with pytest.raises(VersionMismatch, match=f"version {VERSION + 1}.*version {VERSION}"):
        split_frames(frame)


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", b"\x91\x63", b"\x91\x08", b"\x93\x08\xa1a\xa1b", b"\x90"]
)
def test_a_body_that_is_no_record(body: bytes) -> None:
    with pytest.raises(ValueError, match="no record of version 1"):
        decode_body(body)
