"""A simulated cluster: master, nodes, store and network in one process; and what befalls them."""

import pickle
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from dagsched.config import Config
from dagsched.errors import InternalError
from dagsched.ids import ProcessId
from dagsched.master.core import MasterCore
from dagsched.master.events import ClientEvent, RunEnded, TaskExplained, ValueArrived
from dagsched.master.explaining import Explanation
from dagsched.plan import ClusterShape, RunPlan
from dagsched.protocol.messages import Failure, Frame, NodeStats, ObjectInfo, Ping, Pong
from dagsched.testing.clock import SimClock
from dagsched.testing.graphs import Planned, SimGraph, planned
from dagsched.testing.heirs import inherit
from dagsched.testing.links import Accounts
from dagsched.testing.master import SimMaster
from dagsched.testing.network import Address, SimNetwork
from dagsched.testing.node import ORPHAN_IDS_FROM, SimNode
from dagsched.testing.store import SimStore
from dagsched.testing.surroundings import Surroundings
from dagsched.testing.watching import stalled

STEPS_MAX = 2_000_000
NODE_START_S = 0.05
RESCUE_S = 1.0
LEAVE_S = 15.0  # a hello that was lost comes again after ten seconds at the latest, and is refused
NOTICE_S = 0.001  # until the end of a process is noticed by whoever started it


@dataclass(slots=True)
class SimOutcome:
    """What came of a run."""

    run: int
    planned: Planned
    submitted_s: float
    priority: int = 0
    timeout_s: float | None = None
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

    def take(self, info: ObjectInfo, data: Frame) -> None:
        """An object with outputs."""
        loaded = pickle.loads(data)
        values = loaded if info.count > 1 else [loaded]
        self.values.update(zip(range(info.first, info.first + info.count), values, strict=True))
        self.refs += [(run, position) for run, position in info.refs]

    def value_of(self, number: int) -> int:
        """The value of an output, by its id in the graph."""
        return self.values[int(self.planned.position_of[number])]


class SimCluster(Surroundings):
    """A cluster with its client; everything random comes from the seed.

    Args:
        nodes: executors by broker id.
        seed: of delays.
        config: limits; the default ones if None.
        library: graphs that tasks may return.
        slowness: how much longer tasks take, by id of a node's broker or of an executor.
        checks: whether cores check themselves after each turn.
        is_wired: whether batches for executors are encoded and decoded (others always are).
        is_recorded: whether `story` is written.
        is_local: nodes are processes of the client's machine, so it sees them end, and ends them.
        clocks_differ: monotonic clocks of processes are hours apart.
        is_rescued: when all nodes are gone, another is wanted a second later.
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
        is_local: bool = True,
        clocks_differ: bool = False,
        is_rescued: bool = False,
    ) -> None:
        self.config = config or Config()
        self.clock = SimClock()
        self.rng = random.Random(seed)
        self.network = SimNetwork(self.clock, self.rng, is_wired=is_wired)
        self.accounts = Accounts()
        self.store = SimStore(self.clock)
        self.is_local = is_local
        self.checks = checks
        self.story: list[str] = []
        self.events: list[ClientEvent] = []
        self.executed: Counter[tuple[int, int]] = Counter()  # by run and position
        self.places: dict[tuple[int, int], list[int]] = {}  # the same: serials of nodes
        self.moved_bytes = 0  # by transfers of large objects
        self.losses: list[tuple[str, int]] = []  # what was lost so far: what, which
        self.complaints: list[str] = []  # what should not have happened, though all went well
        self.departed: set[Address] = set()  # processes that are no members, or weren't for a time
        self.record_count = 0  # of the journal
        self.on_record: Callable[[int], None] | None = None
        self.outcomes: dict[int, SimOutcome] = {}
        self.nodes: dict[int, SimNode] = {}  # the latest of each id
        self.all_nodes: list[SimNode] = []  # by serial
        self._wanted: dict[int, int] = dict(nodes)
        self._slowness = dict(slowness or {})
        self._library = list(library)
        self._is_recorded = is_recorded
        self._clocks_differ = clocks_differ
        self._is_rescued = is_rescued
        self._run_count = 0
        self._request_count = 0
        self._processes: dict[Address, SimMaster | SimNode] = {}
        self._master_count = 0
        self.master = self._new_master()
        self._apply_nodes()

    @property
    def core(self) -> MasterCore:
        """Of the present master."""
        return self.master.core

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
        outcome = SimOutcome(0, ready, self.clock.now, priority=priority, timeout_s=timeout_s)
        self.start_run(outcome)
        return outcome

    def start_run(self, outcome: SimOutcome) -> None:
        """For the first time, or because its client died before anything of it was written."""
        self._run_count += 1
        self.outcomes.pop(outcome.run, None)
        outcome.run = ((self.master.number - 1) << 24) + self._run_count
        self.outcomes[outcome.run] = outcome
        plan = outcome.planned.plan
        self.tell(f"submit run {outcome.run}: {plan.task_count} tasks")
        self.command(
            lambda core, now: core.submit(
                outcome.run, plan, now, priority=outcome.priority, timeout_s=outcome.timeout_s
            )
        )

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
            InternalError: it isn't within simulated `limit_s`; says who waits for what.
        """
        end_s = self.clock.now + limit_s
        steps = self.clock.step_count + STEPS_MAX
        while not is_over():
            if self.clock.now > end_s or self.clock.step_count > steps or not self.clock.step():
                waits = "\n".join([*stalled(self), *self.story[-50:]])
                raise InternalError(f"still not over at {self.clock.now:.3f} s:\n{waits}")

    def let_pass(self, seconds: float) -> None:
        """Let this much time go by."""
        end_s = self.clock.now + seconds
        self.clock.at(end_s, lambda: None)
        self.step_until(lambda: self.clock.now >= end_s, 2 * seconds + 1)

    def cancel(self, outcome: SimOutcome) -> None:
        """Cancel a run."""
        self.tell(f"cancel run {outcome.run}")
        self.command(lambda core, now: core.cancel(outcome.run, now))

    def fetch(self, run: int, position: int) -> int | None:
        """The value that a Ref names; None: nobody has it."""
        self._request_count += 1
        request, master = self._request_count, self.master
        self.command(lambda core, now: core.fetch(request, run, position, now))
        self.step_until(lambda: request in master.answers, 60.0)
        answer = master.answers[request]
        if not isinstance(answer, ValueArrived) or answer.info is None:
            return None
        value: int = pickle.loads(master.bytes_of(answer.broker, answer.info, answer.frame))
        return value

    def explain(self, run: int, position: int) -> Explanation | None:
        """What master and nodes say of where a task is, and why."""
        self._request_count += 1
        request = self._request_count
        self.command(lambda core, now: core.explain(request, run, position, now))
        found: list[TaskExplained] = []

        def is_there() -> bool:
            found.extend(
                event
                for event in self.events
                if isinstance(event, TaskExplained) and event.request == request
            )
            return bool(found)

        self.step_until(is_there, 60.0)
        return found[0].found

    def drop_ref(self, run: int, position: int) -> None:
        """The client has no Ref to this any more."""
        self.command(lambda core, now: core.drop_ref(run, position, now))

    def command(self, command: Callable[[MasterCore, float], None]) -> None:
        """Have the client's thread ask the master's for something; nothing if they are dead."""
        master = self.master

        def act() -> None:
            command(master.core, master.now)
            master.turn()

        master.take(act)

    # --- faults of processes ----------------------------------------------------------------------

    def kill_executor(self, broker: int, index: int) -> None:
        """Kill one executor of a node, whatever it does; nothing if there is none."""
        node = self.nodes.get(broker)
        if node is not None and node.is_alive and node.executors:
            ids = sorted(node.executors)
            executor = node.executors[ids[index % len(ids)]]
            self.losses.append(("executor", node.serial))
            executor.die(signal=9)

    def add_node(self, broker: int, executors: int) -> None:
        """Want one node more."""
        self.tell(f"add node {broker}")
        leaving = self.nodes.get(broker)
        if leaving is not None and broker not in self._wanted:
            self._end_node(leaving)  # as the client does: it must be gone before another joins
        self._wanted[broker] = executors
        self._apply_nodes()

    def remove_node(self, broker: int) -> None:
        """Want one node less: it leaves when it has given away what is needed."""
        self._want_less(broker, drop=False)

    def drop_node(self, broker: int) -> None:
        """Want one node less, at once: what it has is lost."""
        self._want_less(broker, drop=True)

    def _want_less(self, broker: int, *, drop: bool) -> None:
        self.tell(f"{'drop' if drop else 'remove'} node {broker}")
        self._wanted.pop(broker, None)
        self._apply_nodes(drop=drop)
        if self._is_rescued and not self._wanted:  # else runs would end, and be right to
            self.clock.after(RESCUE_S, self._rescue)

    def kill_orphan(self, index: int) -> None:
        """Lose one of the brokers whose master has died, if there are any."""
        if orphans := [n for n in self.all_nodes if n.is_alive and n.broker >= ORPHAN_IDS_FROM]:
            self._end_node(orphans[index % len(orphans)])

    def kill_node(self, broker: int) -> None:
        """Lose a node at once, and don't want it any more."""
        self._wanted.pop(broker, None)
        self._kill_node(broker)

    def restart_node(self, broker: int) -> None:
        """Lose a node at once; its broker is started again under the same id."""
        if self._kill_node(broker):
            self.clock.after(10 * NOTICE_S, self._start_nodes)

    def _kill_node(self, broker: int) -> bool:
        node = self.nodes.get(broker)
        if node is None or not node.is_alive:
            return False
        self.tell(f"node {broker} is lost")
        self._end_node(node)
        return True

    def _end_node(self, node: SimNode) -> None:
        node.kill()
        self.departed.add(node.address)
        self.losses.append(("node", node.serial))
        self._notice_end(node, "its process ended")

    def _notice_end(self, node: SimNode, reason: str) -> None:
        """A local node's end is seen at once; that of another by its silence, or by its hello."""
        if self.nodes.get(node.broker) is node:
            del self.nodes[node.broker]
        if self._is_rescued and self._is_deserted():
            self.clock.after(RESCUE_S, self._rescue)
        if not self.is_local:
            return
        master = self.master

        def notice() -> None:
            if self.nodes.get(node.broker, node) is node:
                master.take(lambda: master.peer_lost(node.broker, reason))

        self.clock.after(NOTICE_S, notice)

    def _is_deserted(self) -> bool:
        return not self.nodes.keys() & self._wanted.keys()

    def _rescue(self) -> None:
        if self._is_deserted():
            self._wanted.clear()
            self.add_node(1_000 + len(self.all_nodes), 2)

    def pause_node(self, broker: int, seconds: float, whole: float = 1) -> None:
        """Stop a node, or its broker only, for so long."""
        node = self.nodes.get(broker)
        if node is None or not node.is_alive or node.is_paused:
            return
        self.tell(f"node {broker} stands still for {seconds:.3f} s")
        if whole:
            node.pause_all()
        else:
            node.pause()

        def proceed() -> None:
            if node.is_alive:
                self.tell(f"node {broker} goes on")
                node.proceed()

        self.clock.after(seconds, proceed)

    def pause_master(self, seconds: float) -> None:
        """Stop the master's process for so long."""
        master = self.master
        if master.is_paused or not master.is_alive:
            return
        self.tell(f"the master stands still for {seconds:.3f} s")
        master.pause()

        def proceed() -> None:
            if master.is_alive:
                self.tell("the master goes on")
                master.proceed()

        self.clock.after(seconds, proceed)

    def kill_master(self, seconds: float) -> None:
        """Kill the client with the master in it; so much later another client resumes its runs."""
        master = self.master
        if not master.is_alive:
            return
        self.tell("the master is lost")
        master.kill()
        self.losses.append(("master", master.number))
        for node in self.all_nodes:
            if node.is_alive:
                self.clock.after(NOTICE_S, partial(node.take, node.master_died))
        self.clock.after(seconds, self._begin_again)

    def orphaned(self, node: SimNode) -> None:
        """A broker goes on without a master, elsewhere."""
        self.departed.add(node.address)
        self._processes[node.address] = node
        if self.master.is_alive:
            self._find_orphan(node)

    def _find_orphan(self, node: SimNode) -> None:
        """An orphan dials the next master by itself."""
        self.nodes[node.broker] = node
        master = self.master

        def dial() -> None:
            if master.is_alive:
                node.dial(master.address)

        node.after(self.rng.uniform(0.0, 0.2), dial)

    def _begin_again(self) -> None:
        """A new client, with nodes of its own, takes over what the last one has left."""
        self.nodes = {}
        self.master = self._new_master()
        self.tell("another master begins")
        inherit(self)
        self._apply_nodes()
        for node in self.all_nodes:
            if node.is_alive and node.core.is_orphan:
                self._find_orphan(node)

    # --- the end ----------------------------------------------------------------------------------

    def left_behind(self) -> list[str]:
        """What nodes still hold, in words; call it when all runs have ended."""
        end_s = self.clock.now + LEAVE_S  # what is still being sent again gets its time
        self.let_pass(1.0)
        while (left := self._left_now()) and self.clock.now < end_s:
            self.let_pass(0.5)
        return left

    def _left_now(self) -> list[str]:
        left = list(self.complaints)
        left += [f"node {node.broker}: it was to leave" for node in self._leavers()]
        for node in self.all_nodes:
            if not node.is_alive or self._waits_for_another_client(node):
                continue
            table, name = node.core.table, f"node {node.broker}"
            if self.nodes.get(node.broker) is not node:
                left.append(f"{name}, number {node.serial}: the process, which nobody wants")
            if table.live_count or table.live_bytes:
                left.append(f"{name}: {table.live_count} objects, {table.live_bytes} bytes")
            left += [f"{name}: segment {segment}" for segment in node.memory.left()]
            if node.core.runs:
                left.append(f"{name}: runs {sorted(node.core.runs)}")
        return left

    def _leavers(self) -> list[SimNode]:
        """Those that aren't wanted any more, and have yet to go."""
        known = self.core._members.nodes
        return [
            node
            for broker, node in self.nodes.items()
            if node.is_alive
            and broker not in (self._wanted if broker < ORPHAN_IDS_FROM else known)
            and not node.core.is_orphan
        ]

    def _waits_for_another_client(self, node: SimNode) -> bool:
        """An orphan that is on its way to this client, or has runs that it hasn't resumed."""
        known = self.core._members.nodes.get(ProcessId(node.broker))
        return node.core.is_orphan or (known is not None and bool(known.foreign_runs))

    # --- nodes ------------------------------------------------------------------------------------

    def _offset_s(self) -> float:
        return self.rng.uniform(0.0, 7200.0) if self._clocks_differ else 0.0

    def _new_master(self) -> SimMaster:
        self._master_count += 1
        master = SimMaster(self, self._master_count, clock_offset_s=self._offset_s())
        self._processes[master.address] = master
        return master

    def _apply_nodes(self, *, drop: bool = False) -> None:
        wanted = []
        for broker, count in sorted(self._wanted.items()):
            executors = tuple(range(broker * 100, broker * 100 + count))
            wanted.append((broker, "host", executors))
        self.command(lambda core, now: core.set_nodes(wanted, now, drop=drop))
        if self.master.is_alive:
            self._start_nodes()

    def _start_nodes(self) -> None:
        for broker in sorted(self._wanted):
            if broker in self.nodes or not self.master.is_alive:
                continue
            node = SimNode(
                self,
                broker,
                len(self.all_nodes) + 1,
                slowness=self._slowness,
                clock_offset_s=self._offset_s(),
            )
            self.nodes[broker] = node
            self.all_nodes.append(node)
            self._processes[node.address] = node
            start_s = NODE_START_S * self.rng.uniform(0.5, 1.0)
            node.after(start_s, partial(node.start, self.master.address))

    def processes(self) -> list[SimMaster | SimNode]:
        """Those that live."""
        masters = [self.master] if self.master.is_alive else []
        return [*masters, *(node for node in self.all_nodes if node.is_alive)]

    def find_process(self, address: Address) -> SimMaster | SimNode | None:
        """The living process at an address."""
        process = self._processes.get(address)
        is_there = process is not None and process.is_alive and process.address == address
        return process if is_there else None

    def node_of(self, master: SimMaster, broker: int) -> SimNode | None:
        """The living node that this master knows by an id."""
        node = self.nodes.get(broker) if master is self.master else None
        return node if node is not None and node.is_alive else None

    def node_left(self, node: SimNode) -> None:
        """A broker has done what `Shutdown` asked for."""
        node.kill()
        self.departed.add(node.address)
        self._notice_end(node, "it left")

    def gone(self, broker: int) -> None:
        """The master has taken a node out that was lost."""
        if broker in self.nodes:
            self.departed.add(self.nodes[broker].address)

    def end_broker(self, broker: int) -> None:
        """The master has given a broker up: kill its process, if that can be reached."""
        node = self.nodes.get(broker)
        if node is not None:
            self.end_node(node)

    def end_node(self, node: SimNode) -> None:
        """The same, of a process."""
        self.departed.add(node.address)

        def end() -> None:
            if node.is_alive:
                self.tell(f"node {node.broker} is killed by its master")
                self._end_node(node)

        if self.is_local:
            self.clock.after(NOTICE_S / 2, end)

    # --- told by processes ------------------------------------------------------------------------

    def run_ended(self, event: RunEnded) -> None:
        """The client hears that a run is over."""
        outcome = self.outcomes[event.run]
        outcome.state = event.state
        outcome.failure = event.failure
        outcome.ended_s = self.clock.now
        outcome.stats = event.stats
        outcome.subtree_brokers = event.subtree_brokers

    def record_written(self) -> None:
        """The master has put a record into its journal."""
        self.record_count += 1
        if self.on_record is not None:
            self.on_record(self.record_count)

    def note_executed(self, node: SimNode, run: int, positions: Sequence[int]) -> None:
        """Tasks have been run."""
        for position in positions:
            self.executed[run, position] += 1
            self.places.setdefault((run, position), []).append(node.serial)

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

    def record(self, who: str, what: object) -> None:
        """Write a message or an event into the story."""
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
