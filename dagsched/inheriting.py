"""Runs of clients that died, continued in an open environment.

Responsible for taking over what such a client left (with all that its earlier heirs left), for
making handles of its runs again, and for ending all of it with the environment. How one estate is
found and read is `estates`' affair; what is computed again the master decides.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dagsched.brokers.orphanage import ORPHAN_IDS_FROM
from dagsched.config import Config
from dagsched.errors import ClosedError, DagschedError, GraphError, InternalError, ProtocolError
from dagsched.estates import (
    Estate,
    ask_state,
    known_tokens,
    split_run_id,
    take_estate,
)
from dagsched.ids import RUN_COUNT_BITS, run_base, run_id_of
from dagsched.launching import BrokerProcesses
from dagsched.nodes import LOCAL_HOST, NodeEnv
from dagsched.ref import register_environment, unregister_environment
from dagsched.references import References
from dagsched.run import Run
from dagsched.rundir import RunNames
from dagsched.storing import write_run_anew
from dagsched.tenancy import mark_used

if TYPE_CHECKING:
    from dagsched.handles import Handle
    from dagsched.journals import Journals
    from dagsched.master.core import MasterCore
    from dagsched.master.shell import Command, MasterShell
    from dagsched.metastore.fold import JournalState
    from dagsched.metastore.journal import Journal
    from dagsched.plan import RunPlan

    States = dict[int, JournalState]
    Checked = tuple[JournalState, RunPlan | None, Handle]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heir:
    """What an inheritance needs of the environment that has it."""

    names: RunNames
    metastore: str | None
    """Where to look for environments whose directories have gone."""

    shell: "MasterShell"
    brokers: BrokerProcesses
    references: References
    journals: "Journals"
    own_journal: "Journal"
    known_runs: Callable[[], Sequence[Run]]
    make_run: "Callable[[int, Handle], Run]"
    """A run's handle, known to the environment."""


class Inheritance:
    """All that one open environment has taken over.

    Args:
        heir: the environment.
        config: limits.
    """

    def __init__(self, heir: Heir, config: Config) -> None:
        self._heir = heir
        self._config = config
        self._lock = threading.Lock()
        self._estates: dict[str, Estate] = {}
        self._journals: dict[str, Journal] = {}
        self._asked_for: set[int] = set()

    def resume(self, run_id: str) -> Run:
        """The handle of a run of a client that died; the run goes on, if it was not over.

        Raises:
            DagschedError: no such run is known, or it can't be continued; the message says why.
        """
        found = split_run_id(run_id)
        if found is None:
            raise self._unknown(run_id)
        token, count = found
        number = run_base(token) + count
        with self._lock:
            if token == self._heir.names.token:
                return self._again(self._heir.own_journal, {}, number)
            estate = self._estates.get(token)
            if estate is not None:
                return self._again(self._journals[token], estate.states, number)
            world = self._take_world(token)
            if not world:
                raise self._unknown(run_id)
            try:
                checked = self._checked(token, world[0].states, number)
            except BaseException:
                for taken in world:
                    taken.leave()
                raise
            self._move_in(world)
            return self._continue(self._journals[token], world[0].states, number, checked)

    def _again(self, journal: "Journal", states: "States", number: int) -> Run:
        """A run of the environment's own, or of an estate that it has; nobody has its handle."""
        state = ask_state(journal, number, self._config.store_timeout_s)
        if state is not None:
            states[number] = state
        token = f"{number >> RUN_COUNT_BITS:08x}"
        if state is None and token == self._heir.names.token:
            known = ", ".join(run.run_id for run in self._heir.known_runs()) or "none"
            raise DagschedError(
                f"run {run_id_of(number)} is unknown in this environment: there was no such run, "
                f"or its result has expired; known are: {known}"
            )
        checked = self._checked(token, states, number)
        return self._continue(journal, states, number, checked)

    def close_references(self) -> None:
        """References of what was taken over can't be fetched any more."""
        for token in self._estates:
            unregister_environment(token)

    def close_journals(self) -> None:
        """End the journals' threads: what they wrote goes anyway."""
        for journal in self._journals.values():
            journal.close(flush_timeout_s=0.0)
        self._journals.clear()

    def close(self) -> None:
        """Remove all that was taken over; its brokers have been ended."""
        estates, self._estates = self._estates, {}
        for estate in estates.values():
            self._tell_what_ends(estate)
        failure: BaseException | None = None
        for estate in estates.values():
            try:
                estate.close()
            except DagschedError as error:
                failure = error
        if failure is not None:
            raise failure

    def _tell_what_ends(self, estate: Estate) -> None:
        others = [
            run_id_of(number)
            for number, state in estate.states.items()
            if state.state == "open"
            and state.submitted is not None
            and state.submitted.parent is None
            and number not in self._asked_for
        ]
        if others:
            logger.warning(
                "runs of the client that died which nobody asked for end with this environment: %s",
                ", ".join(others),
            )

    def forget_after_fork(self) -> None:
        """In a forked child: nothing of this is the child's."""
        for estate in self._estates.values():
            estate.tenancy.forget_after_fork()

    # --- taking over ----------------------------------------------------------------------------

    def _take_world(self, token: str) -> list[Estate]:
        """The estate with that token and those of its heirs; empty: there is none."""
        world: list[Estate] = []
        wanted = [token]
        try:
            while wanted:
                name = wanted.pop(0)
                if name in self._estates or any(estate.token == name for estate in world):
                    continue
                if name == self._heir.names.token:
                    continue
                estate = take_estate(
                    name, self._config, self._heir.names.rootpath, self._heir.metastore
                )
                if estate is not None:
                    world.append(estate)
                    wanted += [heir.name.rpartition("-")[2] for heir in estate.heirs]
                elif name == token:
                    break
        except BaseException:
            for estate in world:
                estate.leave()
            raise
        return world

    def _move_in(self, world: Sequence[Estate]) -> None:
        """From now on all of this is ours, and ends with us."""
        mark_used(self._heir.names.directory)
        for estate in world:
            self._estates[estate.token] = estate
            estate.bequeath(self._heir.names.directory)
            self._heir.references.take_token(estate.token)
            register_environment(estate.token, self._heir.references)
            self._journals[estate.token] = self._open_journal(estate)
        count = 0
        for estate in world:
            for pid, prefix in estate.living_brokers().items():
                try:
                    self._adopt(pid, prefix, estate.names.directory)
                except ProcessLookupError:
                    continue  # it has just ended
                count += 1
        self._heir.shell.call(lambda core, _now: core.expect_orphans(count))
        for estate in world:
            if estate.note is not None:
                self._heir.shell.admit(estate.token, estate.names.master_socket)

    def _open_journal(self, estate: Estate) -> "Journal":
        """Runs go on in the journals in which they began."""
        from dagsched.master.journaling import stored_record
        from dagsched.metastore.journal import Journal

        def write_anew(run: int) -> None:
            def write(core: "MasterCore", _now: float) -> None:
                write_run_anew(journal, core, run)

            # Whoever closes has no use for it any more.
            with contextlib.suppress(ClosedError, InternalError):
                self._heir.shell.call(write)

        journal = Journal(estate.store, self._config, convert=stored_record, on_torn=write_anew)
        journal.open()
        return journal

    def _adopt(self, pid: int, segment_prefix: str, directory: Path) -> None:
        """Have a broker's end noticed, and the broker ended with the environment."""
        node = NodeEnv(ORPHAN_IDS_FROM + pid, LOCAL_HOST, ())
        adopted = self._heir.brokers.adopt(node, pid, segment_prefix, directory)
        self._heir.shell.watch(node.brokerid, adopted.process)

    # --- one run --------------------------------------------------------------------------------

    def _checked(self, token: str, states: "States", number: int) -> "Checked":
        """What the journal says of a run.

        Raises:
            DagschedError: it says too little.
            StoreUnavailable: its journal or its plan is damaged.
            VersionMismatch: a newer dagsched wrote it.
        """
        from dagsched.handles import load_handle

        run_id = run_id_of(number)
        state = states.get(number)
        if state is not None and state.error is not None:
            raise state.error
        if state is None or state.submitted is None:
            known = ", ".join(
                run_id_of(run)
                for run, other in sorted(states.items())
                if other.submitted is not None and other.submitted.parent is None
            )
            raise DagschedError(
                f"the journal of environment {token} has no run {run_id}: its client died "
                "before the plan had reached the store, or there was no such run; it has: "
                f"{known or 'none'}"
            )
        plan = _plan_of(state)
        try:
            handle = load_handle(state.submitted.client, plan)
        except DagschedError as error:
            raise DagschedError(f"run {run_id} can't be resumed: {error}") from error
        return state, plan, handle

    def _continue(
        self, journal: "Journal", states: "States", number: int, checked: "Checked"
    ) -> Run:
        from dagsched.metastore.fold import family_of

        state, plan, handle = checked
        self._asked_for.add(number)
        run = self._heir.make_run(number, handle)
        if plan is None or _is_over(state):
            _finish(run, state)
            return run
        family = family_of(states, number)
        commands = [self._member(journal, states[member], member) for member in family]

        def resume_all(core: "MasterCore", now: float) -> None:
            try:
                for command in commands:
                    command(core, now)
            except GraphError as error:
                run.take_error("failed", error)

        self._heir.shell.call(resume_all)
        return run

    def _member(self, journal: "Journal", state: "JournalState", number: int) -> "Command":
        """What resumes one run of a family; its journal goes on where it ended."""
        from dagsched.master.journal import RunPast

        submitted, plan = state.submitted, _plan_of(state)
        assert submitted is not None
        assert plan is not None
        if state.dropped is not None:
            logger.warning("the end of a journal is damaged and is left out: %s", state.dropped)
            position = state.next_position
            journal.ask(
                lambda store: store.truncate(number, position), self._config.store_timeout_s
            )
        journal.resume(number, state.next_position)
        journals = self._heir.journals
        self._heir.shell.call(lambda _core, _now: journals.send(number, journal))
        past = RunPast(
            [(out.info, out.data) for out in state.outputs.values() if out.data is not None],
            max(state.epoch, 1) + (state.state != "open"),
        )

        def resume(core: "MasterCore", now: float) -> None:
            core.resume(
                number,
                plan,
                past,
                now,
                priority=submitted.priority,
                timeout_s=submitted.timeout_s,
                parent=submitted.parent,
                client=submitted.client,
            )

        return resume

    def _unknown(self, run_id: str) -> DagschedError:
        tokens = ", ".join(known_tokens()) or "none"
        return DagschedError(
            f"run {run_id!r} is unknown: it is none of this environment, and no client that died "
            f"has left it on this machine (environments left: {tokens}); `dagsched runs` lists "
            "what can be resumed"
        )


def _plan_of(state: "JournalState") -> "RunPlan | None":
    """The plan in a run's journal; None: it was trimmed."""
    from dagsched.errors import StoreUnavailable
    from dagsched.protocol.plans import unpack_plan

    assert state.submitted is not None
    if not state.submitted.plan_frames:
        return None
    try:
        return unpack_plan(state.submitted.plan_frames)
    except ProtocolError as error:
        raise StoreUnavailable(f"the plan in {state.stream} is damaged: {error}") from error


def _is_over(state: "JournalState") -> bool:
    """Whether the journal gives a run's end and all that came of it."""
    if state.state in ("open", "lost"):
        return False  # for want of nodes, which may be here
    # References lead to values that were released with the run, or with their client.
    outputs = state.outputs.values()
    return state.state != "done" or all(
        out.data is not None and not out.info.refs for out in outputs
    )


def _finish(run: Run, state: "JournalState") -> None:
    """Have a handle say what the journal says of a run that is over."""
    from dagsched.master.events import OutputsComplete, RunEnded

    failed = state.failed
    if state.state == "done":
        objects = [(out.broker, out.info, out.data) for out in state.outputs.values()]
        run.take_outputs(OutputsComplete(run.number, objects))
    run.take_end(
        RunEnded(
            run=run.number,
            state=state.state,  # type: ignore[arg-type]  # as the master called it
            failure=None if failed is None else failed.failure,
            failure_frame=None if failed is None else failed.data,
            node=None if failed is None else failed.node,
            stats=(),
            subtree_brokers=(),
        ),
        lambda _run, _state: None,
    )
