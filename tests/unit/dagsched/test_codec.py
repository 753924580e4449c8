"""Batches to frames and back, and what the decoder refuses."""

import msgspec
import pytest

from dagsched.config import Config
from dagsched.errors import ProtocolError, VersionMismatch
from dagsched.protocol.codec import PROTOCOL_VERSION, Decoder, encode_batch
from dagsched.protocol.messages import (
    BrokerToExecutor,
    ExitInfo,
    FetchValue,
    Location,
    MasterToBroker,
    ObjectInfo,
    Parcel,
    Ping,
    PutObjects,
    RunBundle,
    Shutdown,
    ValueReply,
)
from dagsched.protocol.session import Stamp

LATER = PROTOCOL_VERSION + 1
OPEN = b"\x98" + bytes([PROTOCOL_VERSION]) + b"\x01\x00\x00\x00\x00\x00"  # a header up to its items


def _header(items, version=PROTOCOL_VERSION, epoch=1):
    return msgspec.msgpack.encode((version, epoch, 0, 0, 0, 0, 0, items))


def test_one_parcel():
    message = RunBundle(
        1, 5, 2, (3,), (), (ObjectInfo(0, 1, 9, Location("s-1", 4096, 9)),), (), (7,), (), (), 100
    )
    frames = [b"positions", memoryview(b"indptr")]
    batch = encode_batch([Parcel(message, frames)], epoch=4)
    assert batch[1:] == frames
    assert batch[2] is frames[1]
    epoch, [parcel] = Decoder(BrokerToExecutor).decode_batch(batch)
    assert epoch == 4
    assert msgspec.msgpack.encode(parcel.message) == msgspec.msgpack.encode(message)
    assert parcel.message.imports[0].location == Location("s-1", 4096, 9)
    assert parcel.frames == frames


def test_many_parcels_keep_order_and_frames():
    parcels = [
        Parcel(Ping(1)),
        Parcel(PutObjects(3, (5, 6)), [b"five", b"six"]),
        Parcel(FetchValue(1, 2, 3)),
        Parcel(PutObjects(3, (7,)), [b"seven"]),
    ]
    _, decoded = Decoder(MasterToBroker).decode_batch(encode_batch(parcels, 0))
    assert [type(parcel.message) for parcel in decoded] == [
        Ping,
        PutObjects,
        FetchValue,
        PutObjects,
    ]
    assert [list(parcel.frames) for parcel in decoded] == [[], [b"five", b"six"], [], [b"seven"]]


def test_empty_batch():
    assert Decoder(MasterToBroker).decode_batch(encode_batch([], 9)) == (9, [])


def test_optional_parts_travel():
    batch = encode_batch([Parcel(ValueReply(8, None))], 0)
    assert Decoder(BrokerToExecutor).decode_batch(batch)[1][0].message == ValueReply(8, None)
    info = ExitInfo(None, 9, 1 << 40, "\udcffbad".encode(errors="replace").decode())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=ExitInfo) == info


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], "1 to"),
        ([b""], "can't be decoded"),
        ([b"\xc1"], "can't be decoded"),
        ([b"\x91" * 100_000], "can't be decoded"),
        ([OPEN + b"\xdd\xff\xff\xff\xff"], "can't be decoded"),
        ([_header([(0, ("ping", 1))]) + b"x"], "can't be decoded"),
        ([_header([(0, ("no such kind", 1))])], "can't be decoded"),
        ([_header([(0, ("bundle", 1))])], "can't be decoded"),  # of another sender
        ([_header([(0, ("ping", "one"))])], "can't be decoded"),
        ([_header([("0", ("ping", 1))])], "can't be decoded"),
        ([_header([(1, ("ping", 1))])], "speaks of 1 frames, but 0 came"),
        ([_header([(0, ("ping", 1))]), b"extra"], "speaks of 0 frames, but 1 came"),
        ([_header([]), b"extra"], "speaks of 0 frames, but 1 came"),
        ([_header([(2, ("ping", 1)), (-1, ("ping", 2))]), b"one"], "speaks of -1"),
        ([_header([(1, ("ping", 1)), (1, ("ping", 2))]), b"one"], "speaks of 2 frames, but 1"),
        ([_header([], epoch=-1)], "can't be decoded"),
    ],
)
def test_nonsense_is_refused(frames, text):
    with pytest.raises(ProtocolError, match=text):
        Decoder(MasterToBroker).decode_batch(frames)


def test_items_deeper_than_any_message_are_refused():
    deep = OPEN + b"\x91\x92\x00\x93\xa4ping\x01" + b"\x91" * 200_000 + b"\xc0"
    with pytest.raises(ProtocolError):
        Decoder(MasterToBroker).decode_batch([deep])


def test_large_header_is_refused_before_it_is_decoded():
    batch = encode_batch([Parcel(PutObjects(1, tuple(range(1000))), [b""] * 1000)], 0)
    size = len(batch[0])
    assert Decoder(MasterToBroker, Config(message_bytes_max=size)).decode_batch(batch)[0] == 0
    with pytest.raises(ProtocolError, match="at most"):
        Decoder(MasterToBroker, Config(message_bytes_max=size - 1)).decode_batch(batch)


def test_each_cut_of_a_header_is_refused():
    header = encode_batch([Parcel(FetchValue(1, 70_000, 3)), Parcel(Shutdown())], 5)[0]
    decoder = Decoder(MasterToBroker)
    for end in range(len(header)):
        with pytest.raises(ProtocolError):
            decoder.decode_batch([header[:end]])


def test_the_stamp_travels():
    stamp = Stamp(1 << 60, 3, 1 << 61, 2, 1)
    arrival = Decoder(MasterToBroker).decode_arrival(encode_batch([Parcel(Ping(1))], 5, stamp))
    assert arrival == (5, stamp, [Parcel(Ping(1), [])])


@pytest.mark.parametrize("place", range(5))
def test_a_stamp_of_numbers_below_zero_is_refused(place):
    stamp = Stamp(*[-1 if index == place else 1 for index in range(5)])
    with pytest.raises(ProtocolError, match="can't be decoded"):
        Decoder(MasterToBroker).decode_arrival(encode_batch([], 5, stamp))


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([_header([(0, ("ping", 1))], version=LATER)], f"version {LATER} of the protocol"),
        ([msgspec.msgpack.encode((1, 1, [(0, ("ping", 1))]))], "version 1 of the protocol"),
        ([_header([(0, ("later", 1))], version=LATER)], f"version {LATER} of the protocol"),
    ],
)
def test_another_version_is_told(frames, text):
    match = f"{text}, this side {PROTOCOL_VERSION}"
    with pytest.raises(VersionMismatch, match=match) as caught:
        Decoder(MasterToBroker).decode_batch(frames)
    assert caught.value.protocol in (1, LATER)
