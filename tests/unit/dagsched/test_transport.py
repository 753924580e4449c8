"""ZeroMQ endpoints: who sent what, in order, without waiting and without loss."""

import os
import select
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from dagsched.errors import InternalError
from dagsched.transport import BrokerEndpoint, DataPort, MasterEndpoint, endpoints

WAIT_S = 10.0


@pytest.fixture
def directory():
    made = Path(tempfile.mkdtemp(prefix="run-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def context():
    made = zmq.Context()
    yield made
    made.term()


@pytest.fixture
def master(directory):
    made = MasterEndpoint(directory / "m.sock")
    yield made
    made.close()


@pytest.fixture
def broker(directory, context, master):
    made = BrokerEndpoint(context, 2, str(directory / "m.sock"))
    yield made
    made.close(0)


def drain(endpoint, count=1):
    """Batches, waiting on the descriptor for as many."""
    arrived, deadline = [], time.monotonic() + WAIT_S
    while len(arrived) < count:
        more = endpoint.drain()
        arrived += more
        if not more and len(arrived) < count:
            left = deadline - time.monotonic()
            assert select.select([endpoint.fd], [], [], max(0.0, left))[0], arrived
    return arrived


def test_both_ways(master, broker):
    broker.send([b"hello", b""])
    assert drain(master) == [(2, [b"hello", b""])]
    assert master.drain() == []
    assert not master.has_input()
    assert master.send(2, [b"welcome"])
    assert drain(broker) == [[b"welcome"]]


def test_a_broker_may_be_there_first(directory, context):
    broker = BrokerEndpoint(context, 7, str(directory / "late.sock"))
    broker.send([b"hello"])
    master = MasterEndpoint(str(directory / "late.sock"))
    assert drain(master) == [(7, [b"hello"])]
    broker.close(0)
    master.close()
    assert list(directory.iterdir()) == []


def test_order_is_kept(master, broker):
    count = 5 * endpoints.HIGH_WATER_BATCHES
    for number in range(count):
        broker.send([b"%d" % number, bytes(1000)])
    received = []
    while len(received) < count:
        received += master.drain()
        # What did not fit goes on when the descriptor says that there is room again.
        if select.select([broker.fd], [], [], 0)[0]:
            assert broker.drain() == []
    assert [int(frames[0]) for _, frames in received] == list(range(count))


def test_large_frames_are_not_copied(master, broker):
    large = os.urandom(endpoints.LARGE_BYTES)
    broker.send([b"header", large, large[:-1]])
    [(_, [header, received, small])] = drain(master)
    assert (header, small) == (b"header", large[:-1])
    assert isinstance(received, memoryview)
    assert received == large


def test_nobody_there_is_told(master):
    assert not master.send(3, [b"x"])


def test_new_incarnation_takes_over(master, broker, directory, context):
    broker.send([b"first"])
    drain(master)
    second = BrokerEndpoint(context, 2, str(directory / "m.sock"))
    second.send([b"second"])
    assert drain(master) == [(2, [b"second"])]
    assert master.send(2, [b"answer"])
    assert drain(second) == [[b"answer"]]
    assert broker.drain() == []
    second.close(0)


def test_strangers_are_counted(master, directory, context):
    stranger = context.socket(zmq.DEALER)
    stranger.setsockopt(zmq.IDENTITY, b"not a number")
    stranger.connect(f"ipc://{directory}/m.sock")
    stranger.send(b"x")
    known = BrokerEndpoint(context, 4, str(directory / "m.sock"))
    known.send([b"y"])
    assert drain(master) == [(4, [b"y"])]
    while not master.refused_count:
        assert select.select([master.fd], [], [], WAIT_S)[0]
        assert master.drain() == []
    assert master.refused_count == 1
    known.close(0)
    stranger.close(0)


def test_a_peer_that_does_not_read_loses_nothing(master, broker):
    broker.send([b"hello"])
    drain(master)
    count = 5 * endpoints.HIGH_WATER_BATCHES
    payload = bytes(1000)
    for number in range(count):
        assert master.send(2, [b"%d" % number, payload])
    received = []
    while len(received) < count:
        received += broker.drain()
        master.drain()
    assert [int(header) for header, _ in received] == list(range(count))


def test_own_queue_is_bounded(master, broker, monkeypatch):
    monkeypatch.setattr(endpoints, "QUEUE_BATCHES_MAX", 10)
    broker.send([b"hello"])
    drain(master)
    with suppress(InternalError):
        for _ in range(100_000):
            master.send(2, [bytes(1000)])
    with pytest.raises(InternalError, match="10 batches wait for one peer"):
        master.send(2, [b"one more"])


def test_closing_hands_over_the_last_batch(master, broker):
    broker.send([b"hello"])
    drain(master)
    master.send(2, [b"shutdown"])
    master.close()
    master.close()
    assert drain(broker) == [[b"shutdown"]]


def test_data_ports(directory, context):
    a = DataPort(context, 2, str(directory / "a.sock"))
    b = DataPort(context, 5, str(directory / "b.sock"))
    assert a.address == f"ipc://{directory}/a.sock"
    assert not a.send(5, [b"too early"])
    a.set_peers({5: b.address})
    b.set_peers({2: a.address})
    assert len(a.link_fds) == 1
    assert a.send(5, [b"to b"])
    assert b.send(2, [b"to a"])
    assert drain(b) == [(2, [b"to b"])]
    assert drain(a) == [(5, [b"to a"])]
    a.set_peers({})
    assert a.link_fds == []
    assert not a.send(5, [b"gone"])
    a.close()
    b.close()
    assert list(directory.iterdir()) == []


def test_a_new_address_is_a_new_link(directory, context):
    a = DataPort(context, 2, str(directory / "a.sock"))
    first = DataPort(context, 5, str(directory / "b1.sock"))
    second = DataPort(context, 5, str(directory / "b2.sock"))
    a.set_peers({5: first.address})
    a.send(5, [b"one"])
    assert drain(first) == [(2, [b"one"])]
    a.set_peers({5: second.address})
    a.send(5, [b"two"])
    assert drain(second) == [(2, [b"two"])]
    assert first.drain() == []
    for port in (a, first, second):
        port.close()


def test_links_that_were_full_are_flushed(directory, context):
    a = DataPort(context, 2, str(directory / "a.sock"))
    b = DataPort(context, 5, str(directory / "b.sock"))
    a.set_peers({5: b.address})
    count = 5 * endpoints.HIGH_WATER_BATCHES
    for number in range(count):
        assert a.send(5, [b"%d" % number, bytes(1000)])
    received = []
    while len(received) < count:
        received += b.drain()
        a.flush()
    assert [int(frames[0]) for _, frames in received] == list(range(count))
    a.close()
    b.close()
