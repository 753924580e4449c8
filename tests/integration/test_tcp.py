"""Runs over TCP: encrypted, with keys of the environment; who has none is not heard."""

import json
import os
import pickle
import select
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import zmq

from dagsched import NodeEnv, RunEnv, addprocs, delayed, rundag
from dagsched.brokers.launch import package_root
from dagsched.errors import AuthenticationError
from dagsched.protocol.codec import PROTOCOL_VERSION, Decoder, encode_batch
from dagsched.protocol.messages import BrokerHello, MasterToBroker, Parcel, Refused
from dagsched.protocol.session import Stamp
from dagsched.transport import BrokerEndpoint, CurveKeys
from dagsched.transport.curve import CLUSTER_FILE, read_cluster_file

WAIT_S = 20.0
HOST = "tcp://127.0.0.1"
STRANGER = 77


def counted(n):
    return np.arange(n, dtype=np.float64)


def total(*arrays):
    return float(sum(array.sum() for array in arrays))


def same(i):
    return i


def two_nodes():
    first = addprocs(6)[0]
    return [
        NodeEnv(first, "127.0.0.1", [first + 1, first + 2]),
        NodeEnv(first + 3, "127.0.0.1", [first + 4, first + 5]),
    ]


@pytest.fixture
def env():
    with RunEnv(executors=1, listen=HOST, metastore="memory://") as made:
        made.wait_for_nodes()
        yield made


def directory_of(env):
    return env._cluster._names.directory


def counts(env):
    return env.stats()["links"]


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)


@contextmanager
def dialled(env, keys):
    """A broker's end of a connection to the environment's master."""
    address, _ = read_cluster_file(directory_of(env))
    context = zmq.Context()
    endpoint = BrokerEndpoint(context, STRANGER, address, keys)
    try:
        yield endpoint
    finally:
        endpoint.close(0)
        context.term()


def answered(endpoint):
    """The batches that come next; raises what the endpoint says of the connection."""
    deadline = time.monotonic() + WAIT_S
    while not (arrived := endpoint.drain()):
        left_s = deadline - time.monotonic()
        assert select.select(endpoint.fds, [], [], max(0.0, left_s))[0]
    return arrived


def hello(env, **changes):
    shell = env._cluster._shell
    values = {
        "broker": STRANGER, "pid": 1, "host": "h", "address": "ipc://nowhere",
        "version": shell._core.version, "token": env._cluster.token,
    }  # fmt: skip
    return encode_batch([Parcel(BrokerHello(**values | changes))], 0, Stamp(1, 1))


def works(env):
    return rundag(env, delayed(sum)([delayed(same)(i) for i in range(100)])) == 4950


def test_a_run_with_large_objects():
    sizes = [800_000 + i for i in range(40)]
    arrays = [delayed(counted)(size) for size in sizes]
    sums = [delayed(total)(*arrays[i::8], arrays[(7 * i) % 40]) for i in range(8)]
    expected = sum(
        sum(size * (size - 1) / 2 for size in (*sizes[i::8], sizes[(7 * i) % 40])) for i in range(8)
    )
    with RunEnv(nodes=two_nodes(), listen=HOST) as env:
        env.wait_for_nodes()
        assert rundag(env, delayed(sum)(sums)) == pytest.approx(expected)
        assert sum(row["in_bytes"] for row in env.stats()["brokers"]) > 8 * 800_000
        assert works(env)
        assert counts(env)["refused"] == 0
        check_directory(env)


def check_directory(env):
    assert {path.name for path in directory_of(env).glob("*.sock")} <= {"store.sock", "live.sock"}


def test_the_cluster_file_is_for_nobody_else(env):
    path = directory_of(env) / CLUSTER_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    address, keys = read_cluster_file(directory_of(env))
    assert address.startswith("tcp://127.0.0.1:")
    assert keys.server_secret not in repr(keys)
    for log in directory_of(env).glob("*.log"):
        assert keys.client_secret not in log.read_text()


def test_a_wrong_key_is_refused_and_told(env):
    _, keys = read_cluster_file(directory_of(env))
    public, secret = (key.decode() for key in zmq.curve_keypair())
    wrong = CurveKeys(keys.server_public, keys.server_secret, public, secret)
    with dialled(env, wrong) as stranger:
        stranger.send(hello(env))
        with pytest.raises(AuthenticationError, match="does not know this broker's key"):
            answered(stranger)
    assert counts(env)["refused"] >= 1
    assert counts(env)["stale"] == 0
    assert works(env)


def test_keys_of_another_environment_are_no_keys_here(env):
    """The server's key is another one, so not even the handshake can be read."""
    with dialled(env, CurveKeys.generate()) as stranger:
        stranger.send(hello(env))
        assert works(env)
        assert stranger.drain() == []
    assert counts(env)["stale"] == 0


def test_without_keys_nothing_is_dialled():
    context = zmq.Context()
    with pytest.raises(AuthenticationError, match="without keys"):
        BrokerEndpoint(context, STRANGER, "tcp://127.0.0.1:9", None)
    context.term()


def test_plain_connections_and_noise_are_not_heard(env):
    """A peer without encryption, one that speaks HTTP, and one that says nothing."""
    address, _ = read_cluster_file(directory_of(env))
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    marker = directory_of(env) / "bomb-went-off"
    context = zmq.Context()
    plain = context.socket(zmq.DEALER)
    plain.setsockopt(zmq.LINGER, 0)
    plain.setsockopt(zmq.IDENTITY, b"77")
    plain.connect(address)
    with suppress(zmq.Again):  # it may have been refused already
        plain.send_multipart([pickle.dumps(Bomb(str(marker)))], zmq.NOBLOCK)
    with (
        socket.create_connection((host, int(port)), WAIT_S) as http,
        socket.create_connection((host, int(port)), WAIT_S),
    ):
        http.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(1000))
        assert works(env)
    plain.close(0)
    context.term()
    assert (counts(env)["stale"], counts(env)["nonsense"]) == (0, 0)
    assert not marker.exists()


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def recorded(address, keys, frames):
    """What a client with keys sends over a connection that carries a batch of it."""
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    said = bytearray()
    context = zmq.Context()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = BrokerEndpoint(
            context, STRANGER, f"tcp://127.0.0.1:{listening.getsockname()[1]}", keys
        )
        endpoint.send(frames)
        near, _ = listening.accept()
        with near, socket.create_connection((host, int(port)), WAIT_S) as far:
            answered = False
            while not answered:
                for sock in select.select([near, far, *endpoint.fds], [], [], WAIT_S)[0]:
                    if sock is near:
                        said += (data := near.recv(65_536))
                        far.sendall(data)
                    elif sock is far:
                        near.sendall(far.recv(65_536))
                answered = bool(endpoint.drain())
        endpoint.close(0)
    context.term()
    return bytes(said)


def test_a_replayed_connection_is_not_heard(env):
    """All bytes of an honest connection again, by somebody who has no key to make new ones."""
    address, keys = read_cluster_file(directory_of(env))
    said = recorded(address, keys, hello(env, token="00000000"))
    before = counts(env)
    assert before["refused"] == 1  # for its token, so it was heard
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), WAIT_S) as replayed:
        replayed.sendall(said)
        while replayed.recv(4096):
            pass
    assert works(env)
    assert counts(env)["refused"] == 1


def test_the_right_key_and_another_environments_token(env):
    _, keys = read_cluster_file(directory_of(env))
    with dialled(env, keys) as stranger:
        stranger.send(hello(env, token="00000000"))
        [batch] = answered(stranger)
    _, [parcel] = Decoder(MasterToBroker | Refused).decode_batch(batch)
    assert parcel.message == Refused("authentication", "it was started for another environment")
    assert counts(env)["refused"] == 1
    assert works(env)


@pytest.mark.parametrize(
    "version", [("3.2", None, None), (None, "9.9", None), (None, None, PROTOCOL_VERSION + 1)]
)
def test_another_version_is_told_both(env, version):
    own = env._cluster._shell._core.version
    version = tuple(theirs or mine for theirs, mine in zip(version, own, strict=True))
    _, keys = read_cluster_file(directory_of(env))
    start = time.monotonic()
    with dialled(env, keys) as stranger:
        stranger.send(hello(env, version=version))
        [batch] = answered(stranger)
    assert time.monotonic() - start < 5.0
    _, [parcel] = Decoder(MasterToBroker | Refused).decode_batch(batch)
    assert parcel.message.kind == "version"
    for python, dagsched, protocol in (own, version):
        assert f"Python {python}, dagsched {dagsched}, protocol {protocol}" in parcel.message.text
    assert len(env.nodes) == 1
    assert works(env)


def test_a_broker_that_speaks_another_protocol_is_told_in_ours(env):
    header = b"\x93\x01\x00\x90"  # of version 1
    _, keys = read_cluster_file(directory_of(env))
    with dialled(env, keys) as stranger:
        stranger.send([header])
        [batch] = answered(stranger)
    _, [parcel] = Decoder(MasterToBroker | Refused).decode_batch(batch)
    assert "protocol 1, the master has" in parcel.message.text
    assert works(env)


@pytest.mark.parametrize("who", ["a stranger", "with a node's id"])
def test_a_bomb_from_within_is_not_loaded(env, who):
    """A peer with the right keys sends pickles wherever a message could be."""
    _, keys = read_cluster_file(directory_of(env))
    marker = directory_of(env) / "bomb-went-off"
    bomb = pickle.dumps(Bomb(str(marker)))
    with dialled(env, keys) as stranger:
        for frames in ([bomb], [b"", bomb], [*hello(env)[:1], bomb], [bomb] * 3):
            stranger.send(frames)
        wait_for(lambda: counts(env)["nonsense"] >= 3)
        assert works(env)
    assert not marker.exists()


def test_a_broker_says_why_it_was_refused(env, tmp_path):
    """A broker's process with a key that the master doesn't know."""
    address, keys = read_cluster_file(directory_of(env))
    public, secret = (key.decode() for key in zmq.curve_keypair())
    settings = {
        "broker": STRANGER, "host": "127.0.0.1", "env_token": env._cluster.token,
        "name_prefix": f"dagsched-stranger-{os.getpid()}", "run_directory": str(tmp_path),
        "master_socket": "", "data_socket": "", "sys_path": [*sys.path], "cwd": str(tmp_path),
        "config": {}, "master_address": address, "listen": HOST,
        "keys": [keys.server_public, keys.server_secret, public, secret],
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "dagsched.brokers"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(package_root())},
    )
    process.stdin.write(json.dumps(settings).encode() + b"\n")
    process.stdin.flush()
    # Its standard input stays open, so that it ends for no other reason.
    assert process.wait(WAIT_S) == 77
    assert b"AuthenticationError" in process.stderr.read()
    process.stderr.close()
    with suppress(BrokenPipeError):
        process.stdin.close()
    assert works(env)


@pytest.mark.parametrize(
    ("listen", "error"),
    [
        ("tcp://*", ValueError), ("tcp://0.0.0.0", ValueError), ("127.0.0.1", ValueError),
        ("ipc://x", ValueError), ("tcp://127.0.0.1:80", ValueError), (7, TypeError),
        ("tcp://203.0.113.7", ValueError), ("tcp://", ValueError),
    ],
)  # fmt: skip
def test_addresses_that_are_none(listen, error):
    with pytest.raises(error, match=r"listen|no address of this machine"):
        RunEnv(executors=1, listen=listen)
