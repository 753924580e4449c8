"""Keys of an environment's TCP endpoints, and who may connect: CurveZMQ, always.

Responsible for the cluster file (``cluster.json`` in the run directory, mode 0600), for setting
sockets up, and for the *gate*, which is asked for each new connection whether its key is known
(ZAP, https://rfc.zeromq.org/spec/27). A connection that isn't let in never brings a byte to us.

All that listens in an environment has the pair of keys `server`; all brokers dial with the pair
`client`, the only one that the gate lets in. Both are made anew for each environment, so a key is
also the proof of having been told of this very environment.
"""

import dataclasses
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Self

import zmq
from zmq.utils import z85

from dagsched.errors import DagschedError, VersionMismatch

CLUSTER_FILE = "cluster.json"
FILE_VERSION = 1
FILE_BYTES_MAX = 65_536

HANDSHAKE_MS = 5_000
"""A connection that hasn't shown its key by then is closed."""

BACKLOG = 1_024
"""Connections that wait to be taken; those of a flood beyond it try again."""

_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
_ZAP_DOMAIN = b"dagsched"
_KEY = re.compile(
    r"[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}"
)  # Z85, https://rfc.zeromq.org/spec/32


@dataclasses.dataclass(frozen=True, slots=True)
class CurveKeys:
    """The keys of an environment, as 40 characters of Z85 each."""

    server_public: str
    server_secret: str = dataclasses.field(repr=False)
    client_public: str
    client_secret: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) or not _KEY.fullmatch(value):
                raise ValueError(f"{field.name} is not a key of 40 characters of Z85")

    @classmethod
    def generate(cls) -> Self:
        """New keys, from the system's randomness."""
        pairs = (*zmq.curve_keypair(), *zmq.curve_keypair())
        return cls(*(key.decode() for key in pairs))

    @property
    def as_server(self) -> dict[int, bytes | int]:
        """Options of a socket that listens."""
        return {
            zmq.CURVE_SERVER: 1,
            zmq.CURVE_PUBLICKEY: self.server_public.encode(),
            zmq.CURVE_SECRETKEY: self.server_secret.encode(),
            zmq.ZAP_DOMAIN: _ZAP_DOMAIN,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.BACKLOG: BACKLOG,
        }

    @property
    def as_client(self) -> dict[int, bytes | int]:
        """Options of a socket that dials."""
        return {
            zmq.CURVE_SERVERKEY: self.server_public.encode(),
            zmq.CURVE_PUBLICKEY: self.client_public.encode(),
            zmq.CURVE_SECRETKEY: self.client_secret.encode(),
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
        }


class Gate:
    """Answers who may connect to the sockets of a context. Open before the first of them listens.

    Without a gate every key would do; so the sockets are closed before it.

    Args:
        context: of the sockets.
        allowed: public keys, in Z85.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", allowed: Collection[str]) -> None:
        self._allowed = {z85.decode(key.encode()) for key in allowed}
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ZAP_ADDRESS)
        self.fd = int(self._socket.getsockopt(zmq.FD))
        self.refused_count = 0

    def answer(self) -> None:
        """Answer all that has been asked."""
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            asked = self._socket.recv_multipart(zmq.NOBLOCK)
            is_allowed = self._is_allowed(asked)
            self.refused_count += not is_allowed
            status = (b"200", b"OK") if is_allowed else (b"400", b"unknown key")
            request_id = asked[1] if len(asked) > 1 else b""
            self._socket.send_multipart((_ZAP_VERSION, request_id, *status, b"", b""))

    def _is_allowed(self, asked: list[bytes]) -> bool:
        if len(asked) != 7:
            return False
        version, _, domain, _, _, mechanism, key = asked
        is_ours = (version, domain, mechanism) == (_ZAP_VERSION, _ZAP_DOMAIN, b"CURVE")
        return is_ours and key in self._allowed

    def close(self) -> None:
        """Answer nothing more."""
        self._socket.close(0)


def write_cluster_file(directory: Path, address: str, keys: CurveKeys) -> None:
    """Write where the master listens, and the keys, for nobody but the user to read."""
    path = directory / CLUSTER_FILE
    content = {"version": FILE_VERSION, "address": address, "keys": dataclasses.asdict(keys)}
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        json.dump(content, file)


def read_cluster_file(directory: Path) -> tuple[str, CurveKeys]:
    """Address and keys that an environment has written.

    Raises:
        FileNotFoundError: there are none.
        VersionMismatch: another version of dagsched wrote them.
        DagschedError: they are not what they should be, or others may read them.
    """
    path = directory / CLUSTER_FILE
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & 0o077 or status.st_uid != os.getuid():
            raise DagschedError(f"{path} must belong to the user, and be of mode 0600")
        content = file.read(FILE_BYTES_MAX + 1)
    return parse_cluster_file(content, str(path))


def parse_cluster_file(content: bytes, path: str) -> tuple[str, CurveKeys]:
    """The same, of the file's bytes.

    Raises:
        VersionMismatch: another version of dagsched wrote them.
        DagschedError: they are not what they should be.
    """
    try:
        values = json.loads(content[: FILE_BYTES_MAX + 1])
        version, address, keys = values["version"], values["address"], values["keys"]
        if isinstance(version, int) and version != FILE_VERSION:
            raise VersionMismatch(
                f"{path} is of version {version}; this side reads {FILE_VERSION}: install the same "
                "version of dagsched on both"
            )
        if (
            not isinstance(address, str)
            or not isinstance(keys, dict)
            or version is not FILE_VERSION
        ):
            raise TypeError("a value is not of its type")
        return address, CurveKeys(**keys)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        # Not what it says: there are secrets in it.
        raise DagschedError(f"{path} is no cluster file of dagsched") from error
