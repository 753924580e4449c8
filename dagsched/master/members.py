"""Which nodes the cluster shall have, which it has, and which of them are alive. Pure.

Knows nothing of runs: whoever calls it moves the work of nodes that it reports as lost.
"""

from collections.abc import Sequence

from dagsched.config import Config
from dagsched.ids import Epoch, ProcessId, RunNo
from dagsched.master.events import ExecutorMoved, NodeJoined, NodeRemoved
from dagsched.master.outbox import Outbox
from dagsched.master.state import Node
from dagsched.protocol.asking import end_in_words
from dagsched.protocol.messages import (
    BrokerHello,
    ExecutorChanged,
    Ping,
    SetExecutors,
    SetPeers,
    Shutdown,
    Welcome,
)

SETTLE_S = 0.05
"""The first run waits this long for the other nodes once one is there: brokers that were started
together are ready within some tens of milliseconds of each other, and a run that began with one
node would have placed its first subtrees badly."""

WantedNode = tuple[int, str, tuple[int, ...]]
Version = tuple[str, str, int]


class Members:
    """The nodes of the environment."""

    def __init__(self, config: Config, version: Version, outbox: Outbox) -> None:
        self.nodes: dict[ProcessId, Node] = {}  # by rising id
        self.wanted: dict[ProcessId, WantedNode] = {}
        self.empty_since_s: float | None = None  # no node is there or awaited since then
        self.gave_up = False  # not one of the nodes wanted at first came in time
        self.reasons: dict[ProcessId, str] = {}  # why nodes that are wanted aren't there
        self._config = config
        self._version = version
        self._outbox = outbox
        self._awaited: dict[ProcessId, float] = {}  # not joined yet: until when we wait
        self._unproven: dict[ProcessId, float] = {}  # no executor came yet: lost then
        self._epoch = 0
        self._settled = False
        self._settle_by_s: float | None = None
        self._ping_at_s: float | None = None
        self._ping_number = 0
        self._peers_changed = False
        self._removed: set[ProcessId] = set()  # in this turn
        self._told: dict[ProcessId, int] = {}  # who was there when nodes were told last
        self._orphans_expected: int | None = None  # None: orphans aren't taken in

    # --- what is wanted ---------------------------------------------------------------------------

    def set_wanted(self, wanted: Sequence[WantedNode], now: float) -> list[ProcessId]:
        """Change what the cluster shall be; returns the brokers that are to leave."""
        self.wanted = {ProcessId(node[0]): node for node in wanted}
        self.reasons.clear()
        self.gave_up = False
        for broker, (_, _, executors) in self.wanted.items():
            node = self.nodes.get(broker)
            if node is None:
                self._awaited.setdefault(broker, now + self._config.start_timeout_s)
            elif node.leaving:
                # Its process is on its way out; another one will be started for this id.
                self._awaited.setdefault(broker, now + self._config.start_timeout_s)
            elif node.executors != executors:
                node.executors = tuple(map(ProcessId, executors))
                self._outbox.send(broker, SetExecutors(node.executors))
        for broker in [broker for broker in self._awaited if broker not in self.wanted]:
            del self._awaited[broker]
        leaving = [
            broker
            for broker, node in self.nodes.items()
            if broker not in self.wanted and not node.is_orphan
        ]
        for broker in leaving:
            self.nodes[broker].leaving = True
        self._note_emptiness(now)
        return leaving

    # --- coming and going -------------------------------------------------------------------------

    def hello(self, message: BrokerHello, now: float) -> bool:
        """A broker presents itself; True if it is a node from now on."""
        broker = ProcessId(message.broker)
        if message.version != self._version:
            self._refuse(broker, message.version, now)
            return False
        wanted = self.wanted.get(broker)
        if wanted is None and message.runs and self._orphans_expected is not None:
            self._adopt(message, now)
            return True
        if wanted is None:
            self._outbox.send(broker, Shutdown())
            return False
        deadline_s = self._awaited.pop(broker, now + self._config.start_timeout_s)
        self._epoch += 1
        node = Node(
            broker=broker,
            host=wanted[1],
            address=message.address,
            epoch=Epoch(self._epoch),
            executors=tuple(map(ProcessId, wanted[2])),
            heard_s=now,
        )
        self._join(node, now)
        self._unproven[broker] = max(deadline_s, now + self._config.heartbeat_s)
        self._outbox.send(broker, SetExecutors(node.executors))
        self._note_emptiness(now)
        return True

    def _join(self, node: Node, now: float) -> None:
        self.nodes = dict(sorted([*self.nodes.items(), (node.broker, node)]))
        if self._ping_at_s is None:
            self._ping_at_s = now + self._config.heartbeat_s
        self._outbox.send(node.broker, Welcome(node.broker, node.epoch))
        self._peers_changed = True
        self._outbox.tell(NodeJoined(node.broker))

    # --- orphans ----------------------------------------------------------------------------------

    def expect_orphans(self, count: int) -> None:
        """So many brokers whose master is gone are to be taken in, and any that come later."""
        self._orphans_expected = (self._orphans_expected or 0) + count

    @property
    def has_all_orphans(self) -> bool:
        """All that are expected are there."""
        count = sum(node.is_orphan for node in self.nodes.values())
        return self._orphans_expected is not None and count >= self._orphans_expected

    def _adopt(self, message: BrokerHello, now: float) -> None:
        """Take in an orphan: it gets nothing new, and leaves with the runs that it brought."""
        self._epoch += 1
        node = Node(
            broker=ProcessId(message.broker),
            host=message.host,
            address=message.address,
            epoch=Epoch(self._epoch),
            executors=tuple(map(ProcessId, message.executors)),
            heard_s=now,
            leaving=True,
            is_orphan=True,
            foreign_runs=set(map(RunNo, message.runs)),
        )
        self._join(node, now)

    def _refuse(self, broker: ProcessId, version: Version, now: float) -> None:
        def described(version: Version) -> str:
            return f"Python {version[0]}, dagsched {version[1]}, protocol {version[2]}"

        self._outbox.disconnect(broker)
        self._awaited.pop(broker, None)
        reason = (
            f"version mismatch: node {broker} has {described(version)}, the master has "
            f"{described(self._version)}; install the same versions on both"
        )
        self._tell_removed(broker, reason)
        self._give_up_if_nobody_came(now)

    def _tell_removed(self, broker: ProcessId, reason: str) -> None:
        if broker in self.wanted:
            self.reasons[broker] = reason
        self._outbox.tell(NodeRemoved(broker, reason))

    def executor_changed(self, broker: ProcessId, message: ExecutorChanged, now: float) -> None:
        """An executor of a node came or went."""
        node = self.nodes[broker]
        executor = ProcessId(message.executor)
        if message.pid:
            self._unproven.pop(broker, None)
            node.pid_by_executor[executor] = message.pid
            if not self._settled and self._settle_by_s is None:
                self._settle_by_s = now + SETTLE_S
        else:
            node.pid_by_executor.pop(executor, None)
            node.last_end = end_in_words(executor, message.end)
        self._outbox.tell(ExecutorMoved(broker, executor, message.pid, message.restarts))

    def remove(self, broker: ProcessId, reason: str, now: float, *, is_lost: bool) -> None:
        """Take a node out: it was lost, or it leaves as it was told to."""
        del self.nodes[broker]
        self._unproven.pop(broker, None)
        if is_lost:
            self._outbox.disconnect(broker)
        else:
            self._outbox.send(broker, Shutdown())
        self._peers_changed = True
        self._removed.add(broker)
        self._tell_removed(broker, reason)
        self._note_emptiness(now)

    def tell_peers(self) -> None:
        """Tell all nodes who came and went, and new ones who is there: once a turn.

        Before all else of the turn, for that may speak of new nodes. But what was decided earlier
        in it may mean a node that has been lost since, and is back under its id with nothing.
        """
        if not self._peers_changed:
            return
        self._peers_changed = False
        returned = self._removed & self.nodes.keys()
        self._removed.clear()
        told, self._told = self._told, {node.broker: node.epoch for node in self.nodes.values()}
        everybody = [(node.broker, node.epoch, node.address) for node in self.nodes.values()]
        came = [peer for peer in everybody if told.get(ProcessId(peer[0])) != peer[1]]
        gone = [broker for broker in told if self._told.get(broker) != told[broker]]
        for broker, epoch in self._told.items():
            is_new = told.get(broker) != epoch
            peers = [peer for peer in (everybody if is_new else came) if peer[0] != broker]
            now_there = [peer for peer in peers if peer[0] not in returned]
            self._outbox.send_early(broker, SetPeers(now_there, None if is_new else gone))
            if returned - {broker}:
                back = [peer for peer in peers if peer[0] in returned]
                self._outbox.send(broker, SetPeers(back, []))

    def _note_emptiness(self, now: float) -> None:
        if self._awaited or any(not node.leaving for node in self.nodes.values()):
            self.empty_since_s = None
        elif self.empty_since_s is None:
            self.empty_since_s = now

    def _give_up_if_nobody_came(self, now: float) -> None:
        self._note_emptiness(now)
        if self.empty_since_s is not None and not self._epoch:
            self.gave_up = True

    # --- asked by the core ------------------------------------------------------------------------

    def usable(self, now: float) -> list[Node]:
        """Nodes that subtrees may go to, by rising id; none while the first ones gather."""
        nodes = [node for node in self.nodes.values() if node.is_usable]
        if nodes and len(nodes) == len(self.wanted):
            self._settled = True
        self._maybe_settle(now)
        return nodes if self._settled else []

    def _maybe_settle(self, now: float) -> None:
        if self._settle_by_s is not None and now >= self._settle_by_s:
            self._settled = True

    def awaited_until(self, broker: ProcessId) -> float | None:
        """Until when a node that hasn't joined is waited for; None: it isn't."""
        return self._awaited.get(broker)

    @property
    def is_single(self) -> bool:
        """The cluster is one node, and shall be."""
        return len(self.wanted) == 1

    # --- time -------------------------------------------------------------------------------------

    def heard(self, broker: ProcessId, now: float) -> None:
        """Something came from this broker."""
        self.nodes[broker].heard_s = now

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        times = list(self._awaited.values())
        times += self._unproven.values()
        if self._ping_at_s is not None:
            times.append(self._ping_at_s)
        if self._settle_by_s is not None and not self._settled:
            times.append(self._settle_by_s)
        return min(times, default=None)

    def handle_timer(self, now: float) -> list[tuple[ProcessId, str]]:
        """Ping the nodes; returns those that are lost, with the reason."""
        self._maybe_settle(now)
        for broker in sorted(self._awaited):
            if now >= self._awaited[broker]:
                del self._awaited[broker]
                waited_s = self._config.start_timeout_s
                reason = f"node {broker} did not join within {waited_s:g} s; see its broker's log"
                self._tell_removed(broker, reason)
                self._give_up_if_nobody_came(now)
        lost = [
            (broker, f"no executor of node {broker} could be started")
            for broker, until_s in self._unproven.items()
            if now >= until_s
        ]
        if self._ping_at_s is None or now < self._ping_at_s:
            return lost
        late_s = now - self._ping_at_s
        self._ping_at_s = now + self._config.heartbeat_s if self.nodes else None
        self._ping_number += 1
        for node in self.nodes.values():
            if late_s > self._config.heartbeat_s:
                # We ourselves were stopped: what nodes sent meanwhile may still wait to be read.
                node.heard_s = max(node.heard_s, min(now, node.heard_s + late_s))
            silent_s = now - node.heard_s
            if silent_s >= self._config.lease_s:
                lost.append((node.broker, f"node {node.broker} was silent for {silent_s:.1f} s"))
            else:
                self._outbox.send(node.broker, Ping(self._ping_number))
        return lost
