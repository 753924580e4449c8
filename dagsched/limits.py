"""What the system allows this user, against what an environment needs; said before it starts.

Light: imported by every client that opens an environment.
"""

import os
import resource
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagsched.errors import DagschedError

if TYPE_CHECKING:
    from dagsched.nodes import NodeEnv

BROKER_DESCRIPTORS = 40
"""Of a broker without executors: its own 20, and as many for transfers and peers."""

EXECUTOR_DESCRIPTORS = 4
"""What a broker has open for each executor: socket, pidfd, the pipe and the file of its output."""

CLIENT_DESCRIPTORS = 28
NODE_DESCRIPTORS = 4
"""What a client opens for itself (sockets, store), and for each node."""


def check_descriptors(nodes: "Sequence[NodeEnv]") -> None:
    """See that client and brokers may open as many files as they will need.

    Raises:
        DagschedError: they may not; says the numbers.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = len(os.listdir("/proc/self/fd")) + CLIENT_DESCRIPTORS + NODE_DESCRIPTORS * len(nodes)
    if soft != resource.RLIM_INFINITY and client > soft:
        raise DagschedError(
            f"this process would need about {client} open files for {len(nodes)} nodes, and may "
            f"have {soft}: raise its limit (ulimit -n {2 * client})"
        )
    for node in nodes:
        count = len(node.executorids)
        needed = BROKER_DESCRIPTORS + EXECUTOR_DESCRIPTORS * count
        if hard != resource.RLIM_INFINITY and needed > hard:
            raise DagschedError(
                f"the broker of node {node.brokerid} needs {needed} open files for its {count} "
                f"executors, and {hard} are available: raise the hard limit (ulimit -Hn "
                f"{2 * needed}), or give the node fewer executors"
            )


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may, if it wants to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
