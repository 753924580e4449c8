"""One open environment's machinery: broker processes, the master's thread, the store, the runs.

Responsible for starting and ending all of that in the right order, and for passing what the master
tells to whoever waits for it. `RunEnv` is its public face.
"""

import contextlib
import dataclasses
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dagsched.answers import Answers
from dagsched.background import BackgroundThread
from dagsched.config import Config
from dagsched.dashboard import Dashboard, Observed
from dagsched.enquiries import Enquiries
from dagsched.envfile import EnvironmentNote, write_note
from dagsched.errors import ClosedError, DagschedError, GraphError, InternalError
from dagsched.ids import run_base
from dagsched.launching import BrokerProcesses, kill_group
from dagsched.nodes import NodeEnv
from dagsched.profiling import MasterProfile
from dagsched.ref import Ref, register_environment, unregister_environment
from dagsched.references import References
from dagsched.roster import Roster
from dagsched.rundir import RunNames, remove_run_directory, sweep
from dagsched.storing import Storing
from dagsched.taking import OutputTaking
from dagsched.tenancy import Tenancy, mark_used
from dagsched.tracking import Tracker

if TYPE_CHECKING:
    from dagsched.cuts import CutMemory
    from dagsched.handles import Handle
    from dagsched.inheriting import Inheritance
    from dagsched.master.core import MasterCore
    from dagsched.master.events import ClientEvent, RunEnded, RunStalled
    from dagsched.master.explaining import Explanation
    from dagsched.master.shell import MasterShell
    from dagsched.nodes import NodeChanges
    from dagsched.plan import RunPlan
    from dagsched.protocol.messages import ObjectInfo
    from dagsched.run import Run
    from dagsched.transport import MasterEndpoint

logger = logging.getLogger(__name__)


class Cluster:
    """What runs behind one `RunEnv`.

    Args:
        names: of all that is put on this machine.
        config: limits.
        nodes: checked.
        debug: log every decision.
        profile: write a profile of each run: of the master's thread, brokers and executors.
        track: address of a listener to events, if there is one.
        listen: ``tcp://HOST`` for TCP between master and brokers; None: Unix sockets.
    """

    def __init__(
        self,
        names: RunNames,
        config: Config,
        nodes: Sequence[NodeEnv],
        *,
        debug: bool = False,
        profile: bool = False,
        track: str | None = None,
        listen: str | None = None,
    ) -> None:
        self._names = names
        self._config = config
        self._debug = debug
        self._tenancy = Tenancy(names.directory, is_new=True)
        self._brokers = BrokerProcesses(names, config, debug=debug, profile=profile, listen=listen)
        self._listen = listen
        self._endpoint: MasterEndpoint | None = None  # of TCP
        self._roster = Roster(
            nodes, self._brokers, lambda: self._closing or self._crash is not None
        )
        self._shell: MasterShell | None = None
        self._core: MasterCore | None = None
        self._cuts: CutMemory | None = None
        self._profile = MasterProfile() if profile else None
        self._tracker = Tracker(track, names.token) if track is not None else None
        self._storing = Storing(names, config, self._call)
        self._journals: Any = None
        self._taking = OutputTaking(self._call, self._is_gone)
        self._caller = BackgroundThread("dagsched-callbacks")
        self._sweeper = BackgroundThread("dagsched-sweep")
        self._inheritance: Inheritance | None = None
        self._answers = Answers()
        self.enquiries = Enquiries(self._call, self._answers, self.check_open)
        self._references = References(names.token, self._call, self._answers, self.check_open)
        observed = Observed(
            names, self.enquiries, self._roster, self._storing.state, lambda: self.runs
        )
        self.dashboard = Dashboard(observed, self._call)
        self._note = EnvironmentNote.of(names, None)
        self._lock = threading.Lock()  # guards what follows
        self._base = run_base(names.token)
        self._run_count = 0
        self._running: dict[int, Run] = {}
        self._run_by_number: weakref.WeakValueDictionary[int, Run] = weakref.WeakValueDictionary()
        self._plan_by_run: dict[int, RunPlan] = {}
        self._crash: BaseException | None = None
        self._closing = False
        self._pid = os.getpid()

    # --- opening and closing --------------------------------------------------------------------

    def open(self, metastore: str | None) -> None:
        """Start everything; returns as soon as work can be submitted.

        Raises:
            StoreUnavailable: the metadata store can't be reached.
        """
        # Brokers take longest to start: they come first, and what this process needs is imported
        # while they do.
        self._tenancy.live()
        self._tenancy.rule()
        if self._listen is not None:
            self._open_tcp(self._listen)
        self._brokers.are_resumable = metastore != "memory://"
        started = self._roster.begin()
        self._note = EnvironmentNote.of(self._names, metastore)
        self._write_note()
        self._storing.open(metastore)
        from dagsched.cuts import CutMemory
        from dagsched.master.core import MasterCore
        from dagsched.master.shell import MasterShell

        core = MasterCore(self._config, base=self._base)
        where = self._endpoint or self._names.master_socket
        tokens = [self._names.token]
        shell = MasterShell(core, where, self._config, self, tokens=tokens, debug=self._debug)
        self._core = core
        self._cuts = CutMemory(self._config)
        self._shell = shell
        self._tell_nodes()  # waits for the thread, so that no broker comes before it is wanted
        for broker in started:
            shell.watch(broker.node.brokerid, broker.process)
        shell.start()
        from dagsched.journals import Journals

        assert self._storing.journal is not None
        self._journals = self._taking.journals = Journals(self._storing.journal)
        shell.keep_journal(self._journals)
        register_environment(self._names.token, self._references)
        if self._tracker is not None:
            self._tracker.open()
        self.dashboard.listen(shell.call_when_ready)
        self._sweeper.do(sweep)
        # The journal's thread imports a store's client meanwhile, and with it this module, which
        # can't be imported any more once the program has begun to exit.
        import concurrent.futures.thread  # noqa: F401

        import dagsched.outcome
        import dagsched.planning
        import dagsched.run  # noqa: F401 - the first run shall not wait for these imports

    def _open_tcp(self, listen: str) -> None:
        from dagsched.transport import CurveKeys, MasterEndpoint
        from dagsched.transport.curve import write_cluster_file

        keys = CurveKeys.generate()
        endpoint = self._endpoint = MasterEndpoint(listen, keys)
        self._brokers.master_address = endpoint.address
        self._brokers.keys = list(dataclasses.astuple(keys))
        write_cluster_file(self._names.directory, endpoint.address, keys)

    def close(self) -> None:
        """End everything and leave nothing; safe to call again, also after an interruption."""
        self._closing = True
        if self._pid != os.getpid():
            return
        timeout_s = self._config.close_timeout_s
        # Each step is done whatever becomes of the others; they are called last to first.
        with contextlib.ExitStack() as steps:
            if self._inheritance is not None:
                steps.callback(self._inheritance.close)
            steps.callback(self._tenancy.close)
            steps.callback(remove_run_directory, self._names)
            steps.callback(self._unlink_segments, self._names.segment_prefix)
            steps.callback(self._brokers.end_all, timeout_s)
            steps.callback(self._sweeper.stop, timeout_s)
            steps.callback(self._caller.stop, timeout_s)
            steps.callback(self._taking.stop, timeout_s)
            steps.callback(self._storing.close)
            if self._inheritance is not None:
                steps.callback(self._inheritance.close_journals)
            if self._tracker is not None:
                steps.callback(self._tracker.close)
            if self._profile is not None:
                steps.callback(self._profile.tell)
            steps.callback(self.dashboard.silence)
            if self._endpoint is not None and self._shell is None:
                steps.callback(self._endpoint.close)
            if self._shell is not None:
                steps.callback(self._shell.stop, timeout_s)
            steps.callback(self._brokers.let_go)
            steps.callback(self._tell_closing)
            if self._profile is not None:
                steps.callback(self._profile.wait_for_nodes, self.nodes)
            steps.callback(unregister_environment, self._names.token)
            if self._inheritance is not None:
                steps.callback(self._inheritance.close_references)
            steps.callback(self.dashboard.close, timeout_s)

    def _tell_closing(self) -> None:
        self._references.close()
        error = ClosedError("the environment was closed while the run went on")
        self._fail_all("closed", error)
        if self._shell is not None:
            # If the master's thread has gone, the ends of their lifelines tell the brokers.
            with contextlib.suppress(ClosedError, InternalError):
                self._shell.call(lambda core, now: core.close(now))

    def forget_after_fork(self) -> None:
        """In a forked child: nothing of this is the child's."""
        self._closing = True
        self._references.close()
        self._tenancy.forget_after_fork()
        self.dashboard.forget_after_fork()
        if self._inheritance is not None:
            self._inheritance.forget_after_fork()
        self._brokers.forget_after_fork()
        if self._shell is not None:
            self._shell.forget_after_fork()

    # --- runs -----------------------------------------------------------------------------------

    def start_run(
        self,
        dag: object,
        *,
        timeout_s: float | None,
        priority: int,
        started: "list[Run]",
        as_refs: bool = False,
    ) -> "Run":
        """Make a graph and a plan of `dag`, and submit it; the run is in `started` before that."""
        from dagsched.graph import build_graph
        from dagsched.handles import HandleDumper
        from dagsched.plan import ClusterShape
        from dagsched.planning import make_plan
        from dagsched.run import Run, RunShape

        assert self._core is not None
        graph = build_graph(dag, self._config.source_bytes_min, self._references.kept or None)
        self._references.check_own(graph.sources)
        nodes = self.nodes or self._roster.wanted
        cluster = ClusterShape(len(nodes), sum(len(node.executorids) for node in nodes))
        planned = make_plan(graph, cluster, self._config, self._core.estimates, self._cuts)
        with self._lock:
            if not self._run_count:
                mark_used(self._names.directory)
            self._run_count += 1
            number = self._base + self._run_count
            shape = RunShape.of(planned.plan, planned.order)
            run = Run(self, number, graph, shape, priority, as_refs=as_refs)
            self._run_by_number[number] = self._running[number] = run
            if graph.persisted:
                self._plan_by_run[number] = planned.plan
        self.dashboard.begin(run)
        started.append(run)
        plan = planned.plan
        dumper = HandleDumper(graph, planned.order, priority, time.time())
        if plan.task_count == 0:
            self._finish_without_tasks(run)
            return run

        def submit(core: "MasterCore", now: float) -> None:
            try:
                core.submit(
                    number, plan, now, priority=priority, timeout_s=timeout_s, client=dumper
                )
            except GraphError as error:
                self._running.pop(number, None)
                run.take_error("failed", error)

        try:
            self._call(submit)
        except DagschedError:
            self._running.pop(number, None)
            raise
        return run

    def _finish_without_tasks(self, run: "Run") -> None:
        """A run of nothing but constants and kept values needs no cluster."""
        values = self.source_values(run)
        self.enquiries.note_numbers(run, "done")
        self._running.pop(run.number, None)
        run.finish_at_once([values[position] for position in run.shape.outputs])

    def source_values(self, run: "Run") -> dict[int, object]:
        """Values of those outputs that are sources: the client has them, or fetches them."""
        return self._references.source_values(run)

    def cancel_run(self, number: int) -> None:
        """Ask the master to stop a run."""
        if not self._closing:
            self._call(lambda core, now: core.cancel(number, now))

    def call_back(self, function: Callable[[], object]) -> None:
        """Call user code in a thread of its own."""
        self._caller.do(function)

    @property
    def runs(self) -> "list[Run]":
        """Runs that are not over or whose handles are still held, oldest first."""
        with self._lock:
            return [run for _, run in sorted(self._run_by_number.items())]

    def find_run(self, run_id: str) -> "Run":
        """The run with an id, of this environment or of a client that died.

        Raises:
            DagschedError: there is none, or it can't be continued.
        """
        found = next((run for run in self.runs if run.run_id == run_id), None)
        if found is not None:
            return found
        if self._inheritance is None:
            self._inheritance = self._make_inheritance()
        return self._inheritance.resume(run_id)

    def _make_inheritance(self) -> "Inheritance":
        from dagsched.inheriting import Heir, Inheritance

        assert self._shell is not None
        assert self._storing.journal is not None
        heir = Heir(
            names=self._names,
            metastore=self._note.metastore,
            shell=self._shell,
            brokers=self._brokers,
            references=self._references,
            journals=self._journals,
            own_journal=self._storing.journal,
            known_runs=lambda: self.runs,
            make_run=self._make_run,
        )
        return Inheritance(heir, self._config)

    def _make_run(self, number: int, handle: "Handle") -> "Run":
        """The handle of a run that goes on under the number that it had."""
        from dagsched.run import Run

        run = Run(self, number, handle.graph, handle.shape, handle.priority)
        with self._lock:
            self._run_by_number[number] = self._running[number] = run
        self.dashboard.begin(run)
        return run

    # --- nodes ----------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """Names the environment."""
        return self._names.token

    @property
    def nodes(self) -> tuple[NodeEnv, ...]:
        """The nodes wanted, without those that were lost."""
        return self._roster.nodes

    def troubles(self) -> list[str]:
        """What doesn't go as it should at the moment, in a few words each."""
        found = [] if self._roster.joined_count else ["no nodes"]
        if self._storing.state()["state"] == "degraded":
            found.append("journal waits for its store")
        return found

    def describe_losses(self) -> str:
        """Which nodes were lost, and why."""
        return self._roster.describe_losses()

    def set_nodes(self, nodes: Sequence[NodeEnv], *, drop: bool = False) -> "NodeChanges":
        """Start and end nodes until there are these; with `drop` those that end do so at once."""
        changes = self._roster.change(nodes)
        self._tell_nodes(drop=drop)
        assert self._shell is not None
        for node in changes.added:
            self._shell.watch(node.brokerid, self._brokers.launch(node, nodes).process)
        self._write_note()
        return changes

    def wait_for_nodes(self, count: int | None, timeout_s: float | None) -> None:
        """Wait until `count` nodes have joined; None: all of them.

        Raises:
            TimeoutError: they have not.
            NoNodesError: so many of their processes have ended that they never will.
        """
        check = self._roster.wait(count, timeout_s)
        self.check_open()
        check()

    def _tell_nodes(self, *, drop: bool = False) -> None:
        nodes = self._roster.wanted
        wanted = [(node.brokerid, node.host, node.executorids) for node in nodes]

        def tell(core: "MasterCore", now: float) -> None:
            core.set_nodes(wanted, now, drop=drop)
            self._storing.note_nodes(nodes)

        self._call(tell)

    def _write_note(self) -> None:
        """Tell others how to find this environment if its client dies."""
        self._note = self._note.with_nodes(self._roster.wanted, self._brokers.own())
        write_note(self._names.directory, self._note)

    # --- what is asked --------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Numbers of the last run, with what the brokers hold now."""
        links = {} if self._shell is None else self._shell.link_counts
        return self.enquiries.stats() | {"store": self._storing.state(), "links": links}

    def explain(self, run: int, position: int) -> "Explanation | None":
        """Ask the master about a task; None: it knows nothing of it, or doesn't answer."""
        return self.enquiries.explain(run, position)

    def stream_outputs(self, run: "Run") -> None:
        """Have a run told of its outputs one by one."""
        self._taking.stream(run)

    def make_ref(self, run: int, broker: int, info: "ObjectInfo") -> Ref:
        """A reference to an output, which is kept from the end of its run on."""
        return self._references.make(run, broker, info)

    def pin(self, run: int, position: int) -> None:
        """One reference more to an object."""
        self._references.pin(run, position)

    def unpin(self, run: int, position: int) -> None:
        """One reference less to an object."""
        self._references.unpin(run, position)

    # --- what the master tells, in its thread ---------------------------------------------------

    def take_start(self) -> None:
        """The thread begins."""
        if self._profile is not None:
            self._profile.start()

    def take_event(self, event: "ClientEvent") -> None:
        """Pass an event on to whoever waits for it."""
        from dagsched.master import events

        if self._tracker is not None:
            self._tracker.put(event)
        self.dashboard.put(event)
        run = self._running.get(getattr(event, "run", 0))
        match event:
            case events.RunProgressed() if run is not None:
                run.take_progress(event.done_count, event.total)
            case events.TracesArrived() | events.NodeTraced() if run is not None:
                run.take_traces(event, self._config.trace_rows_max)
            case events.RunStarted() if run is not None:
                run.take_started()
            case events.RunHappened() if run is not None:
                run.take_happened(event)
            case events.RunStalled():
                self._take_stall(event)
            case events.TaskExplained():
                self._answers.give(event.request, event.found)
            case events.OutputsArrived() | events.OutputsComplete() if run is not None:
                self._taking.take(run, event)
            case events.RunEnded():
                self._take_end(event)
            case events.ValueArrived():
                self._answers.give(event.request, event)
            case events.StatsArrived():
                self._answers.give(event.request, (event.stats, event.counters))
            case events.KeptMoved():
                self._references.take_moved(event.run, event.position, event.broker)
            case events.NodeJoined():
                self._roster.take_joined(event.broker)
            case events.NodeRemoved():
                self._take_removed(event.broker, event.reason)
            case events.ExecutorMoved():
                logger.debug(
                    "executor %d of node %d: pid %d", event.executor, event.broker, event.pid
                )

    def _take_stall(self, event: "RunStalled") -> None:
        from dagsched.story import stall_text

        run = self._running.get(event.run)
        if run is not None:
            run.take_happened(event)
            logger.warning("run %s: %s", run.run_id, stall_text(run, event))

    def take_crash(self, error: BaseException) -> None:
        """The master's thread has failed: nobody may wait any longer."""
        self._crash = error
        self._fail_all("lost", self._crash_error(error))

    def take_exit(self, broker: int, return_code: int) -> str:
        """A broker's process has ended: remove what it left, and say why."""
        started = self._brokers.latest(broker)
        if started is not None and started.process.returncode is not None:
            self._unlink_segments(started.segment_prefix)
        self._brokers.close_lifelines()
        reason = self._brokers.describe_exit(broker, return_code)
        if not self._roster.has_joined(broker):
            # The master doesn't know it yet and won't tell.
            self._take_removed(broker, reason)
        return reason

    def end_broker(self, broker: int) -> None:
        """The core has given a broker up."""
        started = self._brokers.latest(broker)
        if started is not None:
            kill_group(started.process)

    def _is_gone(self, broker: int) -> bool:
        """Whether a broker's process has ended, or does so now."""
        started = self._brokers.latest(broker)
        if started is None:
            return True
        return self._roster.wait_until_gone(
            broker, lambda: started.process.returncode is not None, timeout_s=1.0
        )

    def _take_end(self, event: "RunEnded") -> None:
        run = self._running.pop(event.run, None)
        plan = self._plan_by_run.pop(event.run, None)
        if run is None:
            return
        if plan is not None and event.state == "done":
            self._references.keep(run, plan, event)
        if self._profile is not None:
            self._profile.write(run.run_id)
        run.take_end(event, self.enquiries.note_numbers)

    def _take_removed(self, broker: int, reason: str) -> None:
        is_news = self._roster.take_removed(broker, reason)
        self._references.forget_node(broker)
        if is_news and not self._closing:
            logger.warning("node %d is lost: %s", broker, reason)

    # --- inside ---------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise if the environment can't be used.

        Raises:
            ClosedError: it was closed, or belongs to the parent of this process.
        """
        if self._pid != os.getpid():
            raise ClosedError(
                "the environment belongs to the parent of this process; make another one here"
            )
        if self._closing:
            raise ClosedError("the environment has been closed; make another RunEnv")
        self._check_crash()

    def _check_crash(self) -> None:
        if self._crash is not None:
            raise self._crash_error(self._crash)

    @staticmethod
    def _crash_error(error: BaseException) -> InternalError:
        failure = InternalError(
            f"the master has failed: {type(error).__name__}: {error}; this is a defect of "
            "dagsched, please report it with this text"
        )
        failure.__cause__ = error
        return failure

    def _call(self, command: "Callable[[MasterCore, float], None]") -> None:
        if self._shell is None:
            raise ClosedError("the environment is not open")
        self._shell.call(command)

    def _fail_all(self, state: str, error: BaseException) -> None:
        """End every run that is not over, and wake everybody."""
        with self._lock:
            runs = list(self._running.values())
            self._running.clear()
        self._roster.wake()
        self._answers.close()
        for run in runs:
            run.take_error(state, error)

    def _unlink_segments(self, prefix: str) -> None:
        from dagsched.brokers.objects.segments import SPILL_NAME, unlink_segments

        unlink_segments(prefix, spill=self._names.directory / SPILL_NAME)
