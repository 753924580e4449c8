"""The nodes of one environment as the client sees them: wanted, joined, lost.

Responsible for starting and ending brokers until the nodes are those that were asked for, and for
waiting until they have joined. The master decides what they do.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from dagsched.errors import NoNodesError
from dagsched.launching import BrokerProcess, BrokerProcesses
from dagsched.nodes import NodeChanges, NodeEnv, node_changes

logger = logging.getLogger(__name__)


class Roster:
    """Which nodes there shall be, and which there are.

    Args:
        nodes: checked.
        brokers: starts their processes.
        is_over: whether nobody will join any more, for the environment closes or has failed.
    """

    def __init__(
        self, nodes: Sequence[NodeEnv], brokers: BrokerProcesses, is_over: Callable[[], bool]
    ) -> None:
        self._brokers = brokers
        self._is_over = is_over
        # Guards what follows; waited on for nodes.
        self._changed = threading.Condition()
        self._wanted = tuple(nodes)
        self._joined: set[int] = set()
        self._lost: dict[int, str] = {}

    @property
    def wanted(self) -> tuple[NodeEnv, ...]:
        """The nodes that there shall be."""
        return self._wanted

    @property
    def nodes(self) -> tuple[NodeEnv, ...]:
        """The nodes wanted, without those that were lost."""
        with self._changed:
            return tuple(node for node in self._wanted if node.brokerid not in self._lost)

    def standing(self) -> list[tuple[NodeEnv, str]]:
        """The nodes wanted, and whether each is ``starting``, ``up`` or ``lost``."""
        with self._changed:
            words = dict.fromkeys(self._joined, "up") | dict.fromkeys(self._lost, "lost")
            return [(node, words.get(node.brokerid, "starting")) for node in self._wanted]

    def describe_losses(self) -> str:
        """Which nodes were lost, and why."""
        with self._changed:
            return "; ".join(f"node {n}: {why}" for n, why in sorted(self._lost.items()))

    @property
    def joined_count(self) -> int:
        """Nodes that are wanted and there."""
        with self._changed:
            return len(self._usable())

    def begin(self) -> list[BrokerProcess]:
        """Start the brokers of all nodes."""
        return [self._brokers.launch(node, self._wanted) for node in self._wanted]

    def change(self, nodes: Sequence[NodeEnv]) -> NodeChanges:
        """Want other nodes from now on; what is left of a node that comes again is ended."""
        changes = node_changes(self.nodes, nodes)
        for node in changes.added:
            # What is left of a process with the same id must be gone before another may join.
            self._brokers.end_latest(node.brokerid)
        with self._changed:
            self._wanted = tuple(nodes)
            for node in changes.added:
                self._lost.pop(node.brokerid, None)
                self._joined.discard(node.brokerid)
        return changes

    def wait(self, count: int | None, timeout_s: float | None) -> Callable[[], None]:
        """Wait until `count` nodes have joined (None: all), or never will.

        Returns:
            What raises `TimeoutError` or `NoNodesError` if they have not.
        """
        with self._changed:
            wanted = len(self._wanted) if count is None else count

            def is_decided() -> bool:
                possible = len(self._wanted) - len(self._ended())
                return self._is_over() or len(self._usable()) >= wanted or possible < wanted

            in_time = self._changed.wait_for(is_decided, timeout_s)
            joined = self._usable()

        def check() -> None:
            if len(joined) >= wanted:
                return
            there = f"{len(joined)} of {wanted} nodes are there ({self.describe_losses()})"
            if not in_time:
                raise TimeoutError(f"{there} after {timeout_s} s")
            raise NoNodesError(
                f"{there}, and no more will come: see why, then reset the environment"
            )

        return check

    def wait_until_gone(self, broker: int, has_ended: Callable[[], bool], timeout_s: float) -> bool:
        """Whether a broker is lost, or has ended in that time."""

        def is_gone() -> bool:
            return broker in self._lost or has_ended()

        with self._changed:
            return self._changed.wait_for(is_gone, timeout_s)

    def wake(self) -> None:
        """Whoever waits shall look again."""
        with self._changed:
            self._changed.notify_all()

    # --- what the master tells, in its thread ---------------------------------------------------

    def has_joined(self, broker: int) -> bool:
        """Whether the master has said so."""
        return broker in self._joined

    def take_joined(self, broker: int) -> None:
        """A node is there."""
        with self._changed:
            self._joined.add(broker)
            self._lost.pop(broker, None)
            self._changed.notify_all()

    def take_removed(self, broker: int, reason: str) -> bool:
        """A node is gone; whether that is news, of a node that was wanted.

        What follows from a loss, such as the end of its process, is none of its reasons.
        """
        with self._changed:
            wanted = any(node.brokerid == broker for node in self._wanted)
            is_news = wanted and broker not in self._lost
            self._joined.discard(broker)
            if is_news:
                self._lost[broker] = reason
            self._changed.notify_all()
        return is_news

    def _usable(self) -> list[int]:
        wanted = {node.brokerid for node in self._wanted}
        return sorted(wanted & self._joined)

    def _ended(self) -> list[int]:
        """Nodes whose broker's process has ended."""
        latest = (self._brokers.latest(node.brokerid) for node in self._wanted)
        return [b.node.brokerid for b in latest if b and b.process.returncode is not None]
