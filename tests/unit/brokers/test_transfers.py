"""Large objects between two brokers: all bytes arrive, within the window, whatever happens."""

import itertools
import os

import pytest

from dagsched.brokers import transfers
from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.transfers import IncomingTransfers, OutgoingTransfers, map_object
from dagsched.config import Config
from dagsched.errors import OutOfMemory, ProtocolError
from dagsched.protocol.messages import (
    Location,
    ObjectInfo,
    ObjectsMissing,
    TransferChunk,
    TransferCredit,
    TransferStart,
)

CONFIG = Config(transfer_chunk_bytes=1000, transfer_window_bytes=2500, segment_bytes=1 << 20)
A, B = 2, 5


@pytest.fixture
def arenas():
    made = [Arena(f"dagschedtest-{os.getpid()}-{name}", CONFIG) for name in "ab"]
    yield made
    for arena in made:
        arena.close()
        arena.unlink_all()


def _store(arena, data, first=7):
    location, target = arena.write_raw(len(data))
    target[:] = data
    return ObjectInfo(first, 1, len(data), location, "ndarray", ((1, 2),))


def _chunks(parcels):
    return [
        (parcel.message.offset, len(parcel.frames[0]))
        for _, parcel in parcels
        if isinstance(parcel.message, TransferChunk)
    ]


CLOCK = itertools.count().__next__
"""Each moment that is asked for is another."""


def _deliver(incoming, parcels):
    for peer, parcel in parcels:
        assert peer == B
        if isinstance(parcel.message, TransferStart):
            incoming.start(A, parcel.message)
        else:
            incoming.chunk(A, parcel.message, [bytes(frame) for frame in parcel.frames])


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 2500, 2501, 10_000, 100_000])
def test_object_arrives(arenas, size):
    source, target = arenas
    data = os.urandom(size)
    outgoing, incoming = OutgoingTransfers(CONFIG), IncomingTransfers(target, CLOCK)
    outgoing.start(B, 9, _store(source, data))
    done, stored, under_way = [], [], 0
    while not done:
        parcels = outgoing.take_parcels()
        under_way += sum(size for _, size in _chunks(parcels))
        assert 0 < under_way <= CONFIG.transfer_window_bytes
        _deliver(incoming, parcels)
        for peer, parcel in incoming.take_parcels():
            assert peer == A
            outgoing.credit(B, parcel.message)
        under_way = 0
        done += outgoing.take_done()
        stored += incoming.take_stored()
    assert done == [(B, 9, 7)]
    [(peer, run, info, (began_s, ended_s))] = stored
    assert ended_s == began_s + 1
    assert (peer, run, info.first, info.count, info.size_bytes) == (A, 9, 7, 1, size)
    assert (info.type_name, info.refs) == ("ndarray", ((1, 2),))
    assert bytes(map_object(info.location)) == data
    assert outgoing.take_parcels() == incoming.take_parcels() == []


def test_window_bounds_what_is_under_way(arenas):
    outgoing = OutgoingTransfers(CONFIG)
    outgoing.start(B, 9, _store(arenas[0], bytes(6000)))
    parcels = outgoing.take_parcels()
    start = parcels[0][1].message
    assert start == TransferStart(1, 9, ObjectInfo(7, 1, 6000, None, "ndarray", ((1, 2),)))
    assert _chunks(parcels) == [(0, 1000), (1000, 1000), (2000, 500)]
    assert outgoing.take_parcels() == []
    outgoing.credit(B, TransferCredit(1, 1000))
    assert _chunks(outgoing.take_parcels()) == [(2500, 1000)]
    outgoing.credit(B, TransferCredit(1, 2500))
    assert _chunks(outgoing.take_parcels()) == [(3500, 1000), (4500, 500)]
    outgoing.credit(B, TransferCredit(1, 5000))
    assert _chunks(outgoing.take_parcels()) == [(5000, 1000)]
    assert outgoing.take_done() == []
    outgoing.credit(B, TransferCredit(1, 6000))
    assert outgoing.take_done() == [(B, 9, 7)]
    outgoing.credit(B, TransferCredit(1, 6000))  # said twice
    assert outgoing.take_done() == outgoing.take_parcels() == []


def test_few_at_once_to_one_peer(arenas):
    outgoing = OutgoingTransfers(CONFIG)
    info = _store(arenas[0], bytes(10))
    for first in range(6):
        outgoing.start(B, 9, ObjectInfo(first, 1, 10, info.location))
    outgoing.start(A, 9, ObjectInfo(50, 1, 10, info.location))
    starts = [
        (peer, p.message.info.first)
        for peer, p in outgoing.take_parcels()
        if isinstance(p.message, TransferStart)
    ]
    assert starts == [(B, 0), (B, 1), (B, 2), (B, 3), (A, 50)]
    outgoing.credit(B, TransferCredit(2, 10))
    assert outgoing.take_done() == [(B, 9, 1)]
    [(peer, start), _] = outgoing.take_parcels()
    assert (peer, start.message.info.first) == (B, 4)


def test_sender_gives_up_when_the_peer_is_lost(arenas):
    outgoing = OutgoingTransfers(CONFIG)
    info = _store(arenas[0], bytes(10_000))
    for first in range(6):
        outgoing.start(B, 9, ObjectInfo(first, 1, 10_000, info.location))
    outgoing.start(A, 9, ObjectInfo(50, 1, 10_000, info.location))
    outgoing.peer_lost(B)
    assert sorted(outgoing.take_done()) == [(B, 9, first) for first in range(6)]
    assert {peer for peer, _ in outgoing.take_parcels()} == {A}
    outgoing.credit(B, TransferCredit(1, 1000))  # it comes too late
    assert outgoing.take_parcels() == []
    outgoing.start(B, 9, ObjectInfo(0, 1, 10_000, info.location))  # to its next incarnation
    assert len(outgoing.take_parcels()) == 4


def test_receiver_frees_what_will_never_be_whole(arenas):
    target = arenas[1]
    incoming = IncomingTransfers(target, CLOCK)
    incoming.start(A, TransferStart(1, 9, ObjectInfo(7, 1, 5000)))
    incoming.chunk(A, TransferChunk(1, 0), [bytes(1000)])
    assert target.used_bytes == 8192
    incoming.peer_lost(A)
    assert target.used_bytes == 0
    assert incoming.take_parcels() == incoming.take_stored() == []
    incoming.chunk(A, TransferChunk(1, 1000), [bytes(1000)])  # it comes too late
    assert incoming.take_parcels() == []
    target.check()


def test_no_room_is_told_and_the_sender_freed(arenas, monkeypatch):
    def full(size_bytes):
        raise OutOfMemory(f"no room for {size_bytes}")

    monkeypatch.setattr(arenas[1], "write_raw", full)
    incoming = IncomingTransfers(arenas[1], CLOCK)
    outgoing = OutgoingTransfers(CONFIG)
    outgoing.start(B, 9, _store(arenas[0], bytes(10_000)))
    _deliver(incoming, outgoing.take_parcels())
    assert incoming.take_failed() == [(9, 7, "no room for 10000")]
    [(peer, parcel)] = incoming.take_parcels()
    assert (peer, parcel.message) == (A, TransferCredit(1, 10_000))
    outgoing.credit(B, parcel.message)
    assert outgoing.take_done() == [(B, 9, 7)]
    assert outgoing.take_parcels() == []


def test_segment_that_is_gone_is_told_to_the_peer():
    outgoing = OutgoingTransfers(CONFIG)
    outgoing.start(B, 9, ObjectInfo(7, 1, 10, Location("dagschedtest-no-such-segment", 0, 10)))
    [(peer, parcel)] = outgoing.take_parcels()
    assert (peer, parcel.message) == (B, ObjectsMissing(9))
    assert parcel.frames == [b"\x07\x00\x00\x00"]
    assert outgoing.take_done() == [(B, 9, 7)]


def test_sender_refuses_wrong_credit(arenas):
    outgoing = OutgoingTransfers(CONFIG)
    outgoing.start(B, 9, _store(arenas[0], bytes(5000)))
    outgoing.credit(B, TransferCredit(1, 2000))
    for taken in (-1, 1000, 5001):
        with pytest.raises(ProtocolError, match="has taken"):
            outgoing.credit(B, TransferCredit(1, taken))
    outgoing.take_parcels()
    outgoing.credit(A, TransferCredit(1, 2500))  # not the one it is sent to
    assert outgoing.take_parcels() == []


@pytest.mark.parametrize(
    ("offset", "frames"),
    [(1, [b"xx"]), (-1, [b"xx"]), (0, []), (0, [b""]), (0, [b"x", b"y"]), (0, [bytes(5001)])],
)
def test_receiver_refuses_wrong_chunks(arenas, offset, frames):
    incoming = IncomingTransfers(arenas[1], CLOCK)
    incoming.start(A, TransferStart(1, 9, ObjectInfo(7, 1, 5000)))
    with pytest.raises(ProtocolError, match="wrong chunk"):
        incoming.chunk(A, TransferChunk(1, offset), frames)
    with pytest.raises(ProtocolError, match="can't start"):
        incoming.start(A, TransferStart(1, 9, ObjectInfo(8, 1, 5000)))
    with pytest.raises(ProtocolError, match="can't start"):
        incoming.start(A, TransferStart(2, 9, ObjectInfo(8, 1, 0)))


def test_a_segments_name_is_no_path():
    with pytest.raises(ProtocolError, match="no segment"):
        map_object(Location("../etc/passwd", 0, 10))


def test_mapping_is_read_only(arenas):
    info = _store(arenas[0], b"sealed")
    view = transfers.map_object(info.location)
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
