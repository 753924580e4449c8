"""Network namespaces with a link each to a common one, and cuts between them. Needs root.

``m`` is where the client and its master live, ``a``, ``b``, .. are nodes; all addresses are of
namespaces that are made here, and end with them. A cut drops packets in silence, as a broken
network does: no side is told.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from dagsched import NodeEnv, RunEnv, addprocs, launching
from dagsched.config import Config

CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class NetSpaces:
    """The namespaces of one test.

    Args:
        names: of the members; they get the addresses .1, .2, ..
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._prefix = f"ds{os.getpid()}"
        self.address_by_name = {name: f"10.213.0.{i}" for i, name in enumerate(names, 1)}

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.fail("netsplits are made with network namespaces, which needs root: use sudo")
        hub = self._space("hub")
        try:
            self._run("ip", "netns", "add", hub)
            self._in("hub", "ip", "link", "add", "bridge", "type", "bridge")
            self._in("hub", "ip", "link", "set", "bridge", "up")
            for name, address in self.address_by_name.items():
                space = self._space(name)
                self._run("ip", "netns", "add", space)
                self._in(
                    "hub", "ip", "link", "add", f"to-{name}", "type", "veth",
                    "peer", "name", "eth", "netns", space,
                )  # fmt: skip
                self._in("hub", "ip", "link", "set", f"to-{name}", "master", "bridge", "up")
                self._in(name, "ip", "link", "set", "lo", "up")
                self._in(name, "ip", "address", "add", f"{address}/24", "dev", "eth")
                self._in(name, "ip", "link", "set", "eth", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name in ("hub", *self.address_by_name):
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False)

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def prefix_of(self, name: str) -> list[str]:
        """A command that becomes another one in a member's namespace."""
        return ["ip", "netns", "exec", self._space(name)]

    def _in(self, name: str, *command: str) -> None:
        self._run(*self.prefix_of(name), *command)

    @staticmethod
    def _run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")

    def cut(self, sender: str, receiver: str) -> None:
        """What `sender` sends to `receiver` is lost from now on; the other way works."""
        self._rule("-A", sender, receiver)

    def heal(self, sender: str, receiver: str) -> None:
        """Take back a cut."""
        self._rule("-D", sender, receiver)

    def _rule(self, what: str, sender: str, receiver: str) -> None:
        address = self.address_by_name[receiver]
        self._in(sender, "iptables", "-w", what, "OUTPUT", "-d", address, "-j", "DROP")

    @contextlib.contextmanager
    def split(self, *pairs: tuple[str, str]) -> Iterator[None]:
        """Cuts, for as long as the block lasts."""
        for pair in pairs:
            self.cut(*pair)
        yield
        for pair in pairs:
            self.heal(*pair)

    @contextlib.contextmanager
    def entered(self, name: str) -> Iterator[None]:
        """Sockets that this thread makes are of a member's namespace."""
        with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{self._space(name)}") as to:
            _enter(to.fileno())
            try:
                yield
            finally:
                _enter(own.fileno())


def _enter(fd: int) -> None:
    if _LIBC.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def both_ways(one: str, other: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The pairs of a full cut between two members."""
    return (one, other), (other, one)


@contextlib.contextmanager
def cluster(
    spaces: NetSpaces, monkeypatch: pytest.MonkeyPatch, **settings: float
) -> Iterator[RunEnv]:
    """An environment in ``m`` with a node of two executors in each other member, over TCP."""
    names = [name for name in spaces.address_by_name if name != "m"]
    first = addprocs(3 * len(names))[0]
    nodes = [
        NodeEnv(first + 3 * i, "127.0.0.1", (first + 3 * i + 1, first + 3 * i + 2))
        for i in range(len(names))
    ]
    name_by_broker = {node.brokerid: name for node, name in zip(nodes, names, strict=True)}

    def place(node: NodeEnv) -> tuple[list[str], str]:
        name = name_by_broker[node.brokerid]
        return spaces.prefix_of(name), f"tcp://{spaces.address_by_name[name]}"

    monkeypatch.setattr(launching, "place_broker", place)
    listen = f"tcp://{spaces.address_by_name['m']}"
    with spaces.entered("m"):
        env = RunEnv(nodes=nodes, listen=listen, config=Config(**settings))
    with env:
        env.wait_for_nodes(timeout=20)
        yield env


def log_of(env: RunEnv, broker: int) -> str:
    """What a broker has printed."""
    directory: Path = env._cluster._names.directory  # type: ignore[union-attr]
    return (directory / f"broker-{broker}.log").read_text(errors="replace")
