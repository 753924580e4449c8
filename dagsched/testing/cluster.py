"""A simulated cluster: the master's shell, the client, and the nodes around the real cores."""

import pickle
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from dagsched.config import Config
from dagsched.errors import InternalError
from dagsched.master.core import MasterCore
from dagsched.master.events import (
    ClientEvent,
    OutputsComplete,
    RunEnded,
    StatsArrived,
    ValueArrived,
)
from dagsched.master.journal import Record
from dagsched.plan import ClusterShape, RunPlan
from dagsched.protocol.messages import (
    BrokerToMaster,
    Failure,
    Frame,
    NodeStats,
    ObjectInfo,
    Parcel,
    Ping,
    Pong,
)
from dagsched.testing.clock import SimClock
from dagsched.testing.graphs import Planned, SimGraph, planned
from dagsched.testing.network import SimNetwork
from dagsched.testing.node import SimNode

STEPS_MAX = 2_000_000
NODE_START_S = 0.05
COPY_S = 0.0005  # until the client has copied outputs


@dataclass(slots=True)
class SimOutcome:
    """What came of a run."""

    run: int
    planned: Planned
    submitted_s: float
    state: str = "running"
    values: dict[int, int] = field(default_factory=dict)  # by position
    refs: list[tuple[int, int]] = field(default_factory=list)
    failure: Failure | None = None
    ended_s: float = 0.0
    stats: Sequence[NodeStats] = ()
    subtree_brokers: Sequence[int] = ()

    @property
    def is_over(self) -> bool:
        """It has ended, well or not."""
        return self.state != "running"

    @property
    def makespan_s(self) -> float:
        """From submission to end."""
        return self.ended_s - self.submitted_s

    def value_of(self, number: int) -> int:
        """The value of an output, by its id in the graph."""
        return self.values[int(self.planned.position_of[number])]


class SimCluster:
    """A cluster with its client; everything random comes from the seed.

    Args:
        nodes: executors by broker id.
        seed: of delays.
        config: limits; the default ones if None.
        library: graphs that tasks may return.
        slowness: how much longer tasks take on a node, by broker id.
        checks: whether cores check themselves after each turn.
        is_wired: whether batches are encoded and decoded.
        is_recorded: whether `story` is written.
    """

    def __init__(
        self,
        nodes: Mapping[int, int],
        *,
        seed: int = 0,
        config: Config | None = None,
        library: Sequence[SimGraph] = (),
        slowness: Mapping[int, float] | None = None,
        checks: bool = True,
        is_wired: bool = True,
        is_recorded: bool = False,
    ) -> None:
        self.config = config or Config()
        self.clock = SimClock()
        self.rng = random.Random(seed)
        self.network = SimNetwork(self.clock, self.rng, is_wired=is_wired)
        self.core = MasterCore(self.config)
        self.nodes: dict[int, SimNode] = {}
        self.checks = checks
        self.story: list[str] = []
        self.journal: list[Record] = []
        self.events: list[ClientEvent] = []
        self.executed: Counter[tuple[int, int]] = Counter()  # by run and position
        self.moved_bytes = 0  # by transfers of large objects
        self.outcomes: dict[int, SimOutcome] = {}
        self.answers: dict[int, ValueArrived | StatsArrived] = {}
        self._wanted: dict[int, int] = dict(nodes)
        self._slowness = dict(slowness or {})
        self._library = list(library)
        self._is_recorded = is_recorded
        self._run_count = 0
        self._request_count = 0
        self._wake_s: float | None = None
        self._apply_nodes()

    # --- what a test does -------------------------------------------------------------------------

    def shape(self) -> ClusterShape:
        """As the client knows it."""
        return ClusterShape(len(self._wanted), sum(self._wanted.values()))

    def submit(
        self, graph: SimGraph, *, priority: int = 0, timeout_s: float | None = None
    ) -> SimOutcome:
        """Cut a graph and start it; the outcome fills in as time goes by."""
        return self.submit_planned(
            planned(graph, self.shape(), self.config), priority=priority, timeout_s=timeout_s
        )

    def submit_planned(
        self, ready: Planned, *, priority: int = 0, timeout_s: float | None = None
    ) -> SimOutcome:
        """Start a run whose cut is given."""
        self._run_count += 1
        outcome = SimOutcome(self._run_count, ready, self.clock.now)
        self.outcomes[outcome.run] = outcome
        self.tell(f"submit run {outcome.run}: {ready.plan.task_count} tasks")
        self.core.submit(
            outcome.run, ready.plan, self.clock.now, priority=priority, timeout_s=timeout_s
        )
        self.turn()
        return outcome

    def run(self, graph: SimGraph, **kwargs: int) -> SimOutcome:
        """Submit a graph and wait for its end."""
        outcome = self.submit(graph, **kwargs)
        self.wait(outcome)
        return outcome

    def wait(self, *outcomes: SimOutcome, limit_s: float = 100.0) -> None:
        """Let time go by until these runs have ended."""
        self.step_until(lambda: all(outcome.is_over for outcome in outcomes), limit_s)

    def step_until(self, is_over: Callable[[], bool], limit_s: float = 1_000.0) -> None:
        """Let time go by until something is so.

        Raises:
            InternalError: it isn't within simulated `limit_s`; with the end of the story.
        """
        end_s = self.clock.now + limit_s
        steps = self.clock.step_count + STEPS_MAX
        while not is_over():
            if self.clock.now > end_s or self.clock.step_count > steps or not self.clock.step():
                tail = "\n".join(self.story[-50:])
                raise InternalError(f"still not over at {self.clock.now:.3f} s:\n{tail}")

    def let_pass(self, seconds: float) -> None:
        """Let this much time go by."""
        end_s = self.clock.now + seconds
        self.clock.at(end_s, lambda: None)
        self.step_until(lambda: self.clock.now >= end_s, 2 * seconds + 1)

    def cancel(self, outcome: SimOutcome) -> None:
        """Cancel a run."""
        self.tell(f"cancel run {outcome.run}")
        self.core.cancel(outcome.run, self.clock.now)
        self.turn()

    def fetch(self, run: int, position: int) -> int | None:
        """The value that a Ref names; None: nobody has it."""
        self._request_count += 1
        request = self._request_count
        self.core.fetch(request, run, position, self.clock.now)
        self.turn()
        self.step_until(lambda: request in self.answers, 10.0)
        answer = self.answers[request]
        if not isinstance(answer, ValueArrived) or answer.info is None:
            return None
        return self._copied(answer.broker, answer.info, answer.frame)[0]

    def drop_ref(self, run: int, position: int) -> None:
        """The client has no Ref to this any more."""
        self.core.drop_ref(run, position, self.clock.now)
        self.turn()

    def kill_executor(self, broker: int, index: int) -> None:
        """Kill one executor of a node, whatever it does; nothing if there is none."""
        node = self.nodes.get(broker)
        if node is not None and node.executors:
            ids = sorted(node.executors)
            node.executors[ids[index % len(ids)]].die(signal=9)

    def add_node(self, broker: int, executors: int) -> None:
        """Want one node more."""
        self.tell(f"add node {broker}")
        self._wanted[broker] = executors
        self._apply_nodes()

    def remove_node(self, broker: int) -> None:
        """Want one node less."""
        self.tell(f"remove node {broker}")
        self._wanted.pop(broker, None)
        self._apply_nodes()

    def kill_node(self, broker: int) -> None:
        """Lose a node at once; the master and its peers notice when their sockets close."""
        node = self.nodes.pop(broker, None)
        if node is None:
            return
        self.tell(f"node {broker} is lost")
        node.kill()
        self._wanted.pop(broker, None)

        def notice() -> None:
            self.core.peer_lost(broker, "its process ended", self.clock.now)
            self.turn()

        self.clock.after(0.001, notice)
        for other in list(self.nodes.values()):
            self.clock.after(0.001, partial(other.peer_lost, broker))

    def left_behind(self) -> list[str]:
        """What nodes still hold, in words; call it when all runs have ended."""
        self.let_pass(1.0)
        left = []
        for broker, node in sorted(self.nodes.items()):
            table = node.core.table
            if table.live_count or table.live_bytes:
                left.append(f"node {broker}: {table.live_count} objects, {table.live_bytes} bytes")
            left += [f"node {broker}: segment {segment}" for segment in node.memory.left()]
            if node.core.runs:
                left.append(f"node {broker}: runs {sorted(node.core.runs)}")
        return left

    # --- the master's shell -----------------------------------------------------------------------

    def _apply_nodes(self) -> None:
        wanted = []
        for broker, count in sorted(self._wanted.items()):
            executors = tuple(range(broker * 100, broker * 100 + count))
            wanted.append((broker, "host", executors))
        self.core.set_nodes(wanted, self.clock.now)
        for broker in sorted(self._wanted):
            if broker not in self.nodes:
                node = SimNode(self, broker, slowness=self._slowness.get(broker, 1.0))
                self.nodes[broker] = node
                self.clock.after(NODE_START_S * self.rng.uniform(0.5, 1.0), node.start)
        self.turn()

    def at_master(self, node: SimNode, parcels: Sequence[Parcel]) -> None:
        """A batch of a broker has arrived."""
        if self.nodes.get(node.broker) is not node and not node.is_alive:
            return
        for message, frames in parcels:
            self._record(f"{node.broker} -> master", message)
            known = cast("BrokerToMaster", message)
            self.core.receive(node.broker, known, frames, self.clock.now)
        self.turn()

    def turn(self) -> None:
        """Take the master's actions and do them."""
        actions = self.core.take_actions()
        if self.checks:
            self.core.check()
        self.journal += actions.journal
        for broker, parcels in actions.to_brokers.items():
            node = self.nodes.get(broker)
            for parcel in parcels:
                self._record(f"master -> {broker}", parcel.message)
            if node is not None:
                self.network.send(("master", 1), ("broker", broker), parcels, node.from_master)
        for event in actions.events:
            self._event(event)
        timer_s = self.core.next_timer()
        if timer_s is not None and (self._wake_s is None or timer_s < self._wake_s):
            self._wake_s = max(timer_s, self.clock.now + 1e-6)
            self.clock.at(self._wake_s, self._wake)

    def _wake(self) -> None:
        if self._wake_s is not None and self.clock.now >= self._wake_s:
            self._wake_s = None
            self.core.handle_timer(self.clock.now)
            self.turn()

    # --- the client -------------------------------------------------------------------------------

    def _event(self, event: ClientEvent) -> None:
        self.events.append(event)
        self._record("event", event)
        match event:
            case OutputsComplete():
                self.clock.after(COPY_S, lambda: self._take(event))
            case RunEnded():
                outcome = self.outcomes[event.run]
                outcome.state = event.state
                outcome.failure = event.failure
                outcome.ended_s = self.clock.now
                outcome.stats = event.stats
                outcome.subtree_brokers = event.subtree_brokers
            case ValueArrived() | StatsArrived():
                self.answers[event.request] = event
            case _:
                pass

    def _take(self, event: OutputsComplete) -> None:
        """Copy the outputs, unless a node that had them has gone meanwhile."""
        outcome = self.outcomes[event.run]
        is_gone = any(
            info.location is not None and broker not in self.nodes
            for broker, info, _ in event.objects
        )
        if outcome.is_over or is_gone:
            return  # it has ended otherwise, or the master will announce the outputs again
        outcome.refs = []
        for broker, info, frame in event.objects:
            values = self._copied(broker, info, frame)
            outcome.values.update(
                zip(range(info.first, info.first + info.count), values, strict=True)
            )
            outcome.refs += [(run, position) for run, position in info.refs]
        self.core.outputs_taken(event.run, self.clock.now)
        self.turn()

    def _copied(self, broker: int, info: ObjectInfo, frame: Frame | None) -> list[int]:
        if info.location is not None:
            frame = self.nodes[broker].memory.read(info.location)
        if frame is None:
            raise InternalError(f"object {info.first} came without bytes")
        loaded = pickle.loads(frame)
        return loaded if info.count > 1 else [loaded]

    # --- called by nodes --------------------------------------------------------------------------

    def between(self, sender: SimNode, peer: int, parcels: Sequence[Parcel]) -> None:
        """A broker sends a batch to another."""
        for parcel in parcels:
            self._record(f"{sender.broker} -> {peer}", parcel.message)

        def arrive(arrived: list[Parcel]) -> None:
            receiver = self.nodes.get(peer)
            if receiver is not None:
                receiver.from_peer(sender.broker, arrived)

        self.network.send(("broker", sender.broker), ("broker", peer), parcels, arrive)

    def node_left(self, node: SimNode) -> None:
        """A broker has done what `Shutdown` asked for."""
        node.kill()
        if self.nodes.get(node.broker) is node:
            del self.nodes[node.broker]
        for other in list(self.nodes.values()):
            self.clock.after(0.001, partial(other.peer_lost, node.broker))

    def note_executed(self, run: int, positions: Sequence[int]) -> None:
        """Tasks have been run."""
        self.executed.update((run, position) for position in positions)

    def note_moved(self, run: int, info: ObjectInfo) -> None:
        """A large object has gone from one node to another."""
        self.tell(f"run {run}: {info.size_bytes} bytes of position {info.first} moved")
        self.moved_bytes += info.size_bytes

    def returned_plan(self, index: int) -> RunPlan:
        """The plan of a graph that a task returns."""
        return planned(self._library[index], self.shape(), self.config).plan

    # --- the story --------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """Write a line of the story."""
        if self._is_recorded:
            self.story.append(f"{self.clock.now:11.6f}  {text}")

    def _record(self, who: str, what: object) -> None:
        if self._is_recorded and not isinstance(what, Ping | Pong):
            self.tell(f"{who:12}  {_in_short(what)}")


def _in_short(what: object) -> str:
    """A message or an event on one line; long fields by their length."""
    names: Sequence[str] = getattr(what, "__struct_fields__", ()) or getattr(what, "__slots__", ())
    parts = []
    for name in names:
        value = getattr(what, name)
        text = repr(value)
        parts.append(f"{name}={text}" if len(text) <= 40 else f"{name}=<{len(text)}>")
    return f"{type(what).__name__} {' '.join(parts)}"
