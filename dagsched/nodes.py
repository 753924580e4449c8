"""Nodes: a broker and its executors on one host; checks and grouping of reserved processes.

Responsible for what a list of nodes may look like, and for making one from reserved processes. It
starts nothing.
"""

import functools
import socket
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dagsched.errors import NoNodesError
from dagsched.ids import MASTER

LOCAL_HOST = "127.0.0.1"


class NodeEnv:
    """One node: its broker's process id, its host, its executors' process ids.

    A broker with id 1 runs beside the master.

    Args:
        brokerid: process id of the broker.
        host: name or address of the machine.
        executorids: process ids of the executors; the order is kept.

    Raises:
        TypeError: an id is not an int, or the host not a str.

    Example:
        >>> NodeEnv(2, "127.0.0.1", [3, 4, 5])
        127.0.0.1 [2 <-> 3,4,5]
    """

    __slots__ = ("brokerid", "executorids", "host")

    brokerid: int
    host: str
    executorids: tuple[int, ...]

    def __init__(self, brokerid: int, host: str, executorids: Iterable[int]) -> None:
        if not isinstance(host, str):
            raise TypeError(f"host of a node must be a str, not {type(host).__name__}")
        if isinstance(executorids, str | bytes) or not isinstance(executorids, Iterable):
            raise TypeError(f"executorids must be ids in an iterable, not {executorids!r}")
        store = object.__setattr__
        store(self, "brokerid", _as_id(brokerid, "brokerid"))
        store(self, "host", host)
        store(self, "executorids", tuple(_as_id(given, "an executor id") for given in executorids))

    @property
    def ids(self) -> tuple[int, ...]:
        """The broker's id and the executors'."""
        return (self.brokerid, *self.executorids)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a NodeEnv can't be changed (attribute {name!r}); make a new one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a NodeEnv can't be changed (attribute {name!r})")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodeEnv):
            return NotImplemented
        return (self.host, self.ids) == (other.host, other.ids)

    def __hash__(self) -> int:
        return hash((self.host, self.ids))

    def __reduce__(self) -> tuple[object, ...]:
        return (NodeEnv, (self.brokerid, self.host, self.executorids))

    def __repr__(self) -> str:
        return f"{self.host} [{self.brokerid} <-> {','.join(map(str, self.executorids))}]"


class NodeChanges(NamedTuple):
    """What `reset` did: nodes started, nodes that were asked to leave, nodes that stay."""

    added: tuple[NodeEnv, ...]
    removed: tuple[NodeEnv, ...]
    kept: tuple[NodeEnv, ...]


def check_nodes(
    nodes: Iterable[NodeEnv], known_ids: Iterable[int], private_ids: Iterable[int] = ()
) -> tuple[NodeEnv, ...]:
    """Nodes as an environment can use them.

    Args:
        nodes: to be checked.
        known_ids: of the reserved processes.
        private_ids: further ones that the environment itself reserved.

    Raises:
        TypeError: one of them is no `NodeEnv`.
        ValueError: an id is unknown, in two places, or 1 as an executor; or a node has no executor.
        NoNodesError: there is no node, or one is on another host.
    """
    checked = tuple(nodes)
    if not checked:
        raise NoNodesError("the list of nodes is empty; an environment needs at least one node")
    known = {int(MASTER), *known_ids, *private_ids}
    listed = sorted({int(MASTER), *known_ids})
    seen: dict[int, NodeEnv] = {}
    for node in checked:
        if not isinstance(node, NodeEnv):
            raise TypeError(f"nodes must be NodeEnv objects, not {type(node).__name__}")
        if not node.executorids:
            raise ValueError(f"node {node!r} has no executor; a node needs at least one")
        if MASTER in node.executorids:
            raise ValueError(f"process 1 is the master and can't be an executor (node {node!r})")
        for number in node.ids:
            if number not in known:
                raise ValueError(
                    f"process {number} of node {node!r} is unknown; procs() has {listed}: reserve "
                    "more with addprocs"
                )
            if number in seen:
                raise ValueError(
                    f"process {number} is in two places: in node {seen[number]!r} and in {node!r}"
                )
            seen[number] = node
    for node in checked:
        if not is_local_host(node.host):
            raise NoNodesError(
                f"node {node!r} is on host {node.host!r}; starting processes on other hosts than "
                "this one is not possible yet: use host 127.0.0.1"
            )
    return checked


def group_nodes(host_by_id: Mapping[int, str]) -> tuple[NodeEnv, ...]:
    """Nodes of all reserved processes: one a host, its lowest id the broker.

    A host with a single process is left out with a warning.

    Args:
        host_by_id: the reserved processes.

    Raises:
        NoNodesError: no host has two processes.
    """
    ids_by_host: dict[str, list[int]] = {}
    for number in sorted(host_by_id):
        ids_by_host.setdefault(canonical_host(host_by_id[number]), []).append(number)
    nodes = [NodeEnv(ids[0], host, ids[1:]) for host, ids in ids_by_host.items() if len(ids) > 1]
    lonely = [(host, ids[0]) for host, ids in ids_by_host.items() if len(ids) == 1]
    if not nodes:
        host = lonely[0][0] if lonely else LOCAL_HOST
        raise NoNodesError(
            f"host {host} has {len(lonely)} process; a node needs a broker and at least one "
            "executor: addprocs some more"
        )
    for host, number in lonely:
        warnings.warn(
            f"process {number} on host {host} is alone there and not used; a node needs a broker "
            "and at least one executor",
            UserWarning,
            stacklevel=4,
        )
    return tuple(sorted(nodes, key=lambda node: node.brokerid))


def node_changes(before: Sequence[NodeEnv], wanted: Sequence[NodeEnv]) -> NodeChanges:
    """What leads from one list of nodes to another; a node is known by its broker and host.

    A node of which only executors change is kept: its broker starts and ends the others.
    """
    before_by_broker = {(node.brokerid, canonical_host(node.host)): node for node in before}
    wanted_keys = {(node.brokerid, canonical_host(node.host)) for node in wanted}
    added: list[NodeEnv] = []
    kept: list[NodeEnv] = []
    for node in wanted:
        known = (node.brokerid, canonical_host(node.host)) in before_by_broker
        (kept if known else added).append(node)
    removed = [node for key, node in before_by_broker.items() if key not in wanted_keys]
    return NodeChanges(tuple(added), tuple(removed), tuple(kept))


def canonical_host(host: str) -> str:
    """`host`, or 127.0.0.1 for every spelling of the local one."""
    return LOCAL_HOST if is_local_host(host) else host


def is_local_host(host: str) -> bool:
    """Whether `host` is a name or an address of this machine."""
    name = host.strip().strip("[]").lower()
    if name in {"localhost", LOCAL_HOST, "::1", "ip6-localhost"}:
        return True
    return name == socket.gethostname().lower() or _has_address(name)


@functools.cache
def _has_address(host: str) -> bool:
    """Whether a socket of this machine can be bound to one of `host`'s addresses."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError:
            continue
        return True
    return False


def _as_id(value: object, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an int, not {value!r}")
    return int(value.__index__())


def check_listen(listen: str) -> str:
    """``tcp://HOST``, if HOST is an address of this machine that others can dial.

    Raises:
        TypeError: it is not a str.
        ValueError: it is none.
    """
    if not isinstance(listen, str):
        raise TypeError(f"listen must be a str or None, not {type(listen).__name__}")
    scheme, _, host = listen.partition("://")
    wildcards = {"", "*", "0.0.0.0", "::", "[::]"}
    if scheme != "tcp" or host in wildcards or not host.replace("-", "").replace(".", "").isalnum():
        raise ValueError(
            f"listen {listen!r} is not valid: it is 'tcp://HOST', with one IPv4 address or name of "
            "this machine; the system chooses the port"
        )
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise ValueError(f"{host} is no address of this machine: {error.strerror}") from error
    return listen
