"""Every decoder and both cores against noise, damage and well-typed nonsense.

Nothing but `ProtocolError` (or another error of ours, said so) comes of it, nothing large is
allocated for a length that is only claimed, and a core is as it was before. `tests/chaos` has the
same with many more examples.
"""

import json
import socket
import struct
import typing
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dagsched.brokers.channel import Receiver
from dagsched.brokers.core import BrokerCore
from dagsched.brokers.entering import check_order, check_peer
from dagsched.brokers.launch import BrokerSettings
from dagsched.config import Config
from dagsched.errors import DagschedError, ProtocolError, VersionMismatch
from dagsched.metastore.records import decode_body, split_frames
from dagsched.plan import ConstantSource
from dagsched.protocol.checks import check_parcel
from dagsched.protocol.codec import Decoder
from dagsched.protocol.links import Links
from dagsched.protocol.messages import (
    BrokerHello,
    BrokerToBroker,
    BrokerToExecutor,
    BrokerToMaster,
    ExecutorHello,
    ExecutorToBroker,
    MasterToBroker,
    Parcel,
    PlaceSubtree,
    Refused,
    SetExecutors,
)
from dagsched.protocol.plans import decode_plan
from dagsched.transport.curve import parse_cluster_file
from tests.fuzzing import CORPUS, arrays, damaged, parcels_of, values_of
from tests.unit.dagsched.test_master_core import plan_of, ready

DECODERS = [
    Decoder(union)
    for union in (
        MasterToBroker | Refused,
        BrokerToMaster,
        BrokerToBroker,
        BrokerToExecutor,
        ExecutorToBroker,
    )
]
REFUSED = (ProtocolError, VersionMismatch)


def decode(batch):
    for decoder in DECODERS:
        with suppress(*REFUSED):
            arrival = decoder.decode_arrival(batch)
            assert sum(len(parcel.frames) for parcel in arrival.parcels) == len(batch) - 1


@pytest.mark.parametrize("header", CORPUS)
def test_corpus(header):
    for decoder in DECODERS:
        with suppress(*REFUSED):
            assert decoder.decode_arrival([header]).parcels == []
    with pytest.raises(ProtocolError):
        decode_plan([header])
    assert header == b"" or split_frames(header)[1] is not None
    with pytest.raises(ValueError, match="no record"):
        decode_body(header)
    with pytest.raises(DagschedError):
        parse_cluster_file(header, "cluster.json")
    with pytest.raises((ValueError, TypeError)):
        BrokerSettings.from_line(header)


@given(damaged())
def test_damaged_batches(batch):
    decode(batch)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_noise(batch):
    decode(batch)
    with suppress(ProtocolError):
        decode_plan(batch)
    for frame in batch:
        with suppress(DagschedError):
            split_frames(frame)
        with suppress(ValueError):
            decode_body(frame)


@given(st.lists(damaged(), max_size=6))
def test_links_hear_noise_and_go_on(batches):
    links = Links(Decoder(BrokerToMaster), Config(), lambda: 10)
    for batch in batches:
        with suppress(*REFUSED):
            links.receive(2, batch, 1.0)
        links.take_batches(1.0)
    assert len(links.peers) <= 1


# --- files and lines ------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
SETTINGS = BrokerSettings(
    2, "h", "t", "p", "/r", "/m", "/d", ["/x"], "/c", keys=["k"], config=Config()
)  # fmt: skip


@given(st.data())
def test_broker_settings(data):
    values = json.loads(SETTINGS.to_line())
    for name in data.draw(st.lists(st.sampled_from([*values, "other"]), max_size=3)):
        values[name] = data.draw(json_values)
    line = json.dumps(values).encode()
    end = data.draw(st.one_of(st.just(len(line)), st.integers(0, len(line))))
    with suppress(ValueError, TypeError):
        read = BrokerSettings.from_line(line[:end])
        assert type(read.broker) is int
        assert all(type(key) is str for key in read.keys)


@given(st.data())
def test_cluster_files(data):
    keys = {
        f"{role}_{kind}": "a" * 40 for role in ("server", "client") for kind in ("public", "secret")
    }
    values = {"version": 1, "address": "tcp://127.0.0.1:1", "keys": keys}
    for name in data.draw(st.lists(st.sampled_from([*values, "other"]), max_size=2)):
        values[name] = data.draw(json_values)
    for name in data.draw(st.lists(st.sampled_from(list(keys)), max_size=2)):
        keys[name] = data.draw(json_values)
    content = json.dumps(values).encode()
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    with suppress(DagschedError):
        address, read = parse_cluster_file(content[:end], "cluster.json")
        assert isinstance(address, str)
        assert len(read.server_secret) == 40


def test_each_cut_of_a_line_and_a_file_is_refused():
    line = SETTINGS.to_line().rstrip()
    for end in range(len(line)):
        with pytest.raises((ValueError, TypeError)):
            BrokerSettings.from_line(line[:end])


@given(st.binary(max_size=300), st.integers(1, 64))
def test_channel(data, piece):
    """A stream between broker and executor, in pieces."""
    left, right = socket.socketpair()
    with left, right:
        receiver = Receiver(right, batch_bytes_max=1 << 20)
        right.setblocking(False)
        with suppress(ProtocolError):
            for begin in range(0, len(data), piece):
                left.sendall(data[begin : begin + piece])
                receiver.receive()
        left.shutdown(socket.SHUT_WR)
        with suppress(ProtocolError):
            while not receiver.is_closed:
                receiver.receive()


@pytest.mark.parametrize("head", [struct.pack("<I", 1 << 31), struct.pack("<IQ", 1, 1 << 62)])
def test_a_channel_refuses_lengths_that_are_too_large(head):
    left, right = socket.socketpair()
    with left, right:
        left.sendall(head)
        with pytest.raises(ProtocolError, match="at most"):
            Receiver(right, batch_bytes_max=1 << 30).receive()


# --- cores ----------------------------------------------------------------------------------------


def driver():
    """A master with two nodes, and a run of a few subtrees on them."""
    made = ready({2: 1, 4: 1})
    deps = [[], [0], [0, 1], [], [2, 3], [4, 6]]
    made.submit(1, plan_of(deps, [0, 3, 6], [5], sources=[ConstantSource(b"source")]))
    return made


def honest_orders():
    """What node 2 is told in such a run."""
    made = ready({2: 1, 4: 1})
    kept = []
    take = made.core.take_actions

    def keep():
        actions = take()
        kept.extend(actions.to_brokers.get(2, ()))
        return actions

    made.core.take_actions = keep
    deps = [[], [0], [0, 1], [], [2, 3], [4, 6]]
    made.submit(1, plan_of(deps, [0, 3, 6], [5], sources=[ConstantSource(b"source")]))
    return kept


HONEST = honest_orders()
PLACES = [parcel for parcel in HONEST if isinstance(parcel.message, PlaceSubtree)]


@st.composite
def bent_places(draw):
    """A `PlaceSubtree` that is honest but for a field or a frame."""
    message, own_frames = draw(st.sampled_from(PLACES))
    message = replace(message, run=draw(st.integers(7, 1 << 40)))
    hints = typing.get_type_hints(PlaceSubtree)
    names = [name for name in hints if name != "run"]
    for name in draw(st.lists(st.sampled_from(names), max_size=2)):
        message = replace(message, **{name: draw(values_of(hints[name]))})
    changed = [bytes(frame) for frame in own_frames]
    for place in draw(st.lists(st.integers(0, len(changed) - 1), max_size=2)):
        changed[place] = draw(arrays | st.binary(max_size=9))
    return Parcel(message, changed[: draw(st.sampled_from([99, 99, 3]))])


def broker_core():
    core = BrokerCore(2, "h", Config())
    core.receive_master(SetExecutors((3,)), (), 0.0)
    core.receive_executor(3, ExecutorHello(3, 1, 1003), (), 0.0)
    for message, own_frames in HONEST:
        check_order(core, message, own_frames)
        core.receive_master(message, own_frames, 0.0)
    core.take_actions()
    core.check()
    return core


def try_broker(parcels):
    core = broker_core()
    for now, (message, own_frames) in enumerate(parcels):
        if isinstance(message, PlaceSubtree) and message.run in core.runs:
            continue  # a master that hands out tasks twice lies, which nobody can check
        try:
            if type(message) in BrokerToBroker.__args__:
                check_peer(core, message, own_frames)
                if not type(message).__name__.startswith("Transfer"):
                    core.receive_peer(4, message, own_frames, now)
            else:
                check_order(core, message, own_frames)
                core.receive_master(message, own_frames, now)
        except ProtocolError:
            continue
        core.take_actions()
        core.check()


def try_master(parcels):
    made = driver()
    for now, (message, own_frames) in enumerate(parcels):
        if isinstance(message, BrokerHello) and message.broker not in (2, 4):
            continue  # the shell sees to that
        try:
            check_parcel(message, own_frames, made.core.total_of)
            made.core.receive(2, message, own_frames, float(now))
        except ProtocolError:
            made.core.peer_lost(2, "nonsense", float(now))
        made.core.take_actions()
        made.core.check()


def test_honest_messages_pass():
    assert PLACES
    assert broker_core().runs
    assert driver().core.total_of(1) == 7


orders = st.lists(
    st.one_of(parcels_of(MasterToBroker), parcels_of(BrokerToBroker), bent_places()), max_size=4
)
reports = st.lists(parcels_of(BrokerToMaster), max_size=4)


@given(orders)
def test_a_broker_takes_any_well_typed_order(parcels):
    try_broker(parcels)


@given(reports)
def test_the_master_takes_any_well_typed_report(parcels):
    try_master(parcels)
