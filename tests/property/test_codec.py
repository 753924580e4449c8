"""Whatever is encoded comes back; whatever else arrives is a ProtocolError and nothing worse."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from dagsched.errors import ProtocolError, VersionMismatch
from dagsched.protocol.codec import Decoder, encode_batch
from dagsched.protocol.messages import (
    BrokerToBroker,
    BrokerToExecutor,
    BrokerToMaster,
    ExecutorToBroker,
    FetchObjects,
    Location,
    MasterToBroker,
    ObjectInfo,
    ObjectsData,
    Parcel,
    TransferChunk,
    TransferStart,
)

DECODERS = [
    Decoder(union)
    for union in (
        MasterToBroker,
        BrokerToMaster,
        BrokerToBroker,
        BrokerToExecutor,
        ExecutorToBroker,
    )
]
ints = st.integers(-(2**63), 2**64 - 1)
locations = st.builds(Location, st.text(), ints, ints)
infos = st.builds(
    ObjectInfo,
    ints,
    ints,
    ints,
    st.none() | locations,
    st.text(),
    st.lists(st.tuples(ints, ints), max_size=3),
)
messages = st.one_of(
    st.builds(FetchObjects, ints, ints),
    st.builds(ObjectsData, ints, st.lists(infos, max_size=4)),
    st.builds(TransferStart, ints, ints, infos),
    st.builds(TransferChunk, ints, ints),
)
parcels = st.lists(
    st.builds(Parcel, messages, st.lists(st.binary(max_size=20), max_size=4)), max_size=6
)


def _pairs(batch):
    return [(message, list(frames)) for message, frames in batch]


@given(parcels, st.integers(0, 2**63 - 1))
def test_round_trip(batch, epoch):
    decoded = Decoder(BrokerToBroker).decode_batch(encode_batch(batch, epoch))
    assert decoded[0] == epoch
    assert [frames for _, frames in _pairs(decoded[1])] == [frames for _, frames in _pairs(batch)]
    # Tuples come back as lists, and both encode to the same bytes.
    assert encode_batch(decoded[1], epoch) == encode_batch(batch, epoch)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_noise_is_refused(frames):
    for decoder in DECODERS:
        with suppress(ProtocolError, VersionMismatch):
            epoch, decoded = decoder.decode_batch(frames)
            assert isinstance(epoch, int)
            assert sum(len(parcel.frames) for parcel in decoded) == len(frames) - 1


@given(parcels, st.data())
def test_damaged_header_is_refused_or_whole(batch, data):
    header, *rest = encode_batch(batch, 1)
    damaged = bytearray(header)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for decoder in DECODERS:
        with suppress(ProtocolError, VersionMismatch):
            _, decoded = decoder.decode_batch([bytes(damaged), *rest])
            assert sum(len(parcel.frames) for parcel in decoded) == len(rest)
