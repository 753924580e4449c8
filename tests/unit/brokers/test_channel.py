"""Batches over a socket, in pieces, of all sizes, in both modes."""

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from dagsched.brokers.channel import RECEIVE_BYTES, ChannelFull, Receiver, Sender
from dagsched.errors import ProtocolError

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    yield one, two
    one.close()
    two.close()


def plain(batches: list[list[object]]) -> list[list[bytes]]:
    return [[bytes(frame) for frame in batch] for batch in batches]  # type: ignore[call-overload]


def test_small_batches_come_together(pair: Pair) -> None:
    sender, receiver = Sender(pair[0]), Receiver(pair[1])
    assert sender.send_batch([b"head", b"", memoryview(b"abc")])
    assert sender.send_batch([])
    assert sender.send_batch([b"x" * 1000])
    assert plain(receiver.receive_batch()) == [[b"head", b"", b"abc"], [], [b"x" * 1000]]
    pair[0].close()
    assert receiver.receive_batch() == []
    assert receiver.is_closed


def test_byte_by_byte(pair: Pair) -> None:
    receiver = Receiver(pair[1])
    pair[1].setblocking(False)
    data = struct.pack("<IQQ", 2, 3, 1) + b"abcz"
    assert receiver.receive() == []
    for place in range(len(data) - 1):
        pair[0].sendall(data[place : place + 1])
        assert receiver.receive() == []
    pair[0].sendall(data[-1:])
    assert plain(receiver.receive()) == [[b"abc", b"z"]]
    assert not receiver.is_closed


@pytest.mark.parametrize("size", [RECEIVE_BYTES - 30, RECEIVE_BYTES, 3_000_000])
def test_large_batches_both_blocking(pair: Pair, size: int) -> None:
    frames = [b"h" * 10, bytes(range(256)) * (size // 256), b"t" * 5]
    thread = threading.Thread(target=lambda: [Sender(pair[0]).send_batch(f) for f in (frames,) * 3])
    thread.start()
    receiver, got = Receiver(pair[1]), []
    while len(got) < 3:
        got += plain(receiver.receive_batch())
    thread.join()
    assert got == [frames] * 3


def test_many_frames_need_several_calls_and_a_larger_buffer(pair: Pair) -> None:
    frames = [b"%05d" % i for i in range(40_000)]
    thread = threading.Thread(target=lambda: Sender(pair[0]).send_batch(frames))
    thread.start()
    receiver = Receiver(pair[1])
    assert plain(receiver.receive_batch()) == [frames]
    thread.join()


def test_what_the_socket_does_not_take_waits_up_to_a_bound(pair: Pair) -> None:
    pair[0].setblocking(False)
    sender, receiver = Sender(pair[0], pending_bytes_max=10_000_000), Receiver(pair[1])
    big = b"b" * 6_000_000
    assert not sender.send_batch([big])
    assert 0 < sender.pending_bytes < 6_000_012
    assert not sender.send_batch([b"small"])
    with pytest.raises(ChannelFull):
        sender.send_batch([big])
    got: list[list[bytes]] = []
    while len(got) < 2:
        got += plain(receiver.receive())
        sender.flush()
    assert got == [[big], [b"small"]]
    assert sender.pending_bytes == 0
    assert sender.send_batch([b"again"])


def test_received_frames_are_not_overwritten(pair: Pair) -> None:
    sender, receiver = Sender(pair[0]), Receiver(pair[1])
    sender.send_batch([b"one"])
    first = receiver.receive_batch()
    sender.send_batch([b"two"])
    receiver.receive_batch()
    assert plain(first) == [[b"one"]]


def test_nonsense_is_refused(pair: Pair) -> None:
    pair[0].sendall(struct.pack("<I", 0xFFFFFFFF))
    with pytest.raises(ProtocolError, match="4294967295 frames"):
        Receiver(pair[1]).receive()
    pair[0].sendall(struct.pack("<IQ", 1, 1 << 50))
    with pytest.raises(ProtocolError, match="bytes"):
        Receiver(pair[1], batch_bytes_max=1 << 30).receive()
