"""Links over real sockets that break: nothing is lost, and nothing comes twice."""

import itertools
import select
import shutil
import socket
import struct
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import pytest
import zmq

from dagsched.config import Config
from dagsched.protocol.codec import Decoder
from dagsched.protocol.links import Links
from dagsched.protocol.messages import BrokerToMaster, MasterToBroker, Parcel, Ping, Pong
from dagsched.transport import BrokerEndpoint, CurveKeys, MasterEndpoint

WAIT_S = 80.0  # with a reset at every 15th read most of a connection is its handshake
CONFIG = Config(resend_s=0.1)


class Proxy:
    """Between a broker and its master over TCP; resets its connections at every k-th read."""

    def __init__(self, address: str, every: int) -> None:
        host, port = address.removeprefix("tcp://").rsplit(":", 1)
        self._target = (host, int(port))
        self._every = every
        self._reads = itertools.count(1)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self.reset_count = 0
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.close()
        self._thread.join()
        self._wake.close()
        self._listening.close()

    def _run(self) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        while True:
            ready, _, _ = select.select([self._wake, self._listening, *peers], [], [])
            for sock in ready:
                if sock is self._wake:
                    for each in peers:
                        each.close()
                    return
                if sock is self._listening:
                    near, _ = self._listening.accept()
                    far = socket.create_connection(self._target)
                    peers |= {near: far, far: near}
                elif sock in peers:
                    self._pass_on(sock, peers)

    def _pass_on(self, sock: socket.socket, peers: dict[socket.socket, socket.socket]) -> None:
        other = peers[sock]
        try:
            data = sock.recv(4096)
            is_reset = next(self._reads) % self._every == 0
            if data and not is_reset:
                other.sendall(data)
                return
        except OSError:
            is_reset = False
        self.reset_count += is_reset
        for each in (sock, other):
            # Closed with a reset: what was on its way in either direction is lost.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()
            del peers[each]


@pytest.fixture
def context():
    made = zmq.Context()
    yield made
    made.destroy(0)


def exchange(master, broker, count, payload=b""):
    """Each side sends so many batches; what came of them at the master, and at the broker."""
    number = time.monotonic_ns
    at_master = Links(Decoder(BrokerToMaster), CONFIG, number)
    at_broker = Links(Decoder(MasterToBroker), CONFIG, number)
    came_to_master, came_to_broker = [], []
    sent, deadline = 0, time.monotonic() + WAIT_S
    while len(came_to_master) < count or len(came_to_broker) < count:
        now = time.monotonic()
        assert now < deadline, (len(came_to_master), len(came_to_broker), at_broker.summary())
        if sent < count:
            at_broker.send(1, [Parcel(Pong(sent), [payload])], now)
            at_master.send(2, [Parcel(Ping(sent), [payload])], now)
            sent += 1
        for sender, frames in master.drain():
            for _, parcels in at_master.receive(sender, frames, now):
                came_to_master += [parcel.message.number for parcel in parcels]
        for frames in broker.drain():
            for _, parcels in at_broker.receive(1, frames, now):
                came_to_broker += [parcel.message.number for parcel in parcels]
        for links in (at_master, at_broker):
            links.handle_timer(now)
        for _, frames in at_broker.take_batches(now):
            broker.send(frames)
        for peer, frames in at_master.take_batches(now):
            master.send(peer, frames)
        if sent == count:
            select.select([*master.fds, *broker.fds], [], [], 0.01)
    return came_to_master, came_to_broker


@pytest.mark.parametrize("every", [15, 40])
def test_connections_are_reset_again_and_again(context, every):
    keys = CurveKeys.generate()
    master = MasterEndpoint("tcp://127.0.0.1", keys)
    with Proxy(master.address, every) as proxy:
        broker = BrokerEndpoint(context, 2, proxy.address, keys)
        to_master, to_broker = exchange(master, broker, 300, bytes(500))
        broker.close(0)
    master.close(0)
    assert proxy.reset_count > 3
    assert to_master == to_broker == list(range(300))


def test_nothing_is_lost_when_a_master_binds_anew(context):
    """The path goes and comes again, with all that was queued in sockets lost."""
    directory = Path(tempfile.mkdtemp(prefix="run-"))
    path = directory / "m.sock"
    master = MasterEndpoint(path)
    broker = BrokerEndpoint(context, 2, str(path))
    number = time.monotonic_ns
    at_broker = Links(Decoder(MasterToBroker), CONFIG, number)
    at_master = Links(Decoder(BrokerToMaster), CONFIG, number)
    came, sent, deadline = [], 0, time.monotonic() + WAIT_S
    while len(came) < 200:
        now = time.monotonic()
        assert now < deadline, (len(came), at_broker.summary())
        if sent < 200:
            at_broker.send(1, [Parcel(Pong(sent))], now)
            sent += 1
            if sent % 50 == 0:
                master.close(0)
                master = MasterEndpoint(path)
        for sender, frames in master.drain():
            for _, parcels in at_master.receive(sender, frames, now):
                came += [parcel.message.number for parcel in parcels]
        for frames in broker.drain():
            at_broker.receive(1, frames, now)
        for links in (at_master, at_broker):
            links.handle_timer(now)
        for _, frames in at_broker.take_batches(now):
            broker.send(frames)
        for peer, frames in at_master.take_batches(now):
            master.send(peer, frames)
        if sent == 200:
            select.select([master.fd, broker.fd], [], [], 0.01)
    assert came == list(range(200))
    broker.close(0)
    master.close(0)
    shutil.rmtree(directory)


@pytest.mark.parametrize("keys", [None, CurveKeys.generate()], ids=["path", "tcp"])
def test_further_paths_lead_to_the_same_master(context, keys):
    """Also to one that wants keys on its port: who comes over a path needs none."""
    directory = Path(tempfile.mkdtemp(prefix="run-"))
    own = directory / "m.sock" if keys is None else "tcp://127.0.0.1"
    master = MasterEndpoint(own, keys)
    for name in ("old.sock", "older.sock"):
        master.also_bind(directory / name)
    brokers = [
        BrokerEndpoint(context, 2, master.address.removeprefix("ipc://"), keys),
        BrokerEndpoint(context, 10**9 + 7, str(directory / "old.sock")),
        BrokerEndpoint(context, 10**9 + 8, str(directory / "older.sock")),
    ]
    for broker in brokers:
        broker.send([b"hello"])
    heard = []
    while len(heard) < 3:
        assert select.select(master.fds, [], [], WAIT_S)[0]
        heard += master.drain()
    assert sorted(sender for sender, _ in heard) == [2, 10**9 + 7, 10**9 + 8]
    for number, broker in zip((2, 10**9 + 7, 10**9 + 8), brokers, strict=True):
        assert master.send(number, [b"welcome"])
        while not (arrived := broker.drain()):
            assert select.select(broker.fds, [], [], WAIT_S)[0]
        assert arrived == [[b"welcome"]]
    for broker in brokers:
        broker.close(0)
    master.close()
    assert list(directory.iterdir()) == []
    directory.rmdir()
