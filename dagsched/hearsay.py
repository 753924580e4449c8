"""What a run's journal tells of one task, for whoever isn't the run's client.

Responsible for the texts of `dagsched explain` and `dagsched story`: what is known, in which order,
and what is not known. A journal has a record a subtree, not a task, and no times. It is read, and
nothing is changed.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dagsched.config import Config
from dagsched.errors import DagschedError, GraphError
from dagsched.keys import find_key, unknown_key
from dagsched.metastore.records import (
    Ended,
    Failed,
    Outputs,
    Placed,
    Record,
    Submitted,
    SubtreeDone,
)

if TYPE_CHECKING:
    from dagsched.envfile import EnvironmentNote
    from dagsched.graph import TaskGraph
    from dagsched.metastore.port import MetaStore
    from dagsched.plan import Int32, RunPlan
    from dagsched.run import RunShape

_NAMES_MAX = 5


@dataclass(frozen=True, slots=True)
class Journalled:
    """A run, as its journal and its environment's directory know it."""

    run_id: str
    records: Sequence[Record]
    graph: "TaskGraph"
    shape: "RunShape"
    plan: "RunPlan | None"
    """None: the run is over, and what is left of it has no plan."""

    client: str
    """In words: whether its client lives, and what can be done."""

    damage: str | None = None
    """What the journal's end lacks, in words."""


@dataclass(frozen=True, slots=True)
class TaskTale:
    """What a journal tells of a task."""

    run: str
    key: str
    state: str
    """``ended``, ``failed``, ``placed``, ``waiting`` or ``unknown``."""

    node: int | None
    subtree: int | None
    text: str
    story: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def tell(known: Journalled, key: str) -> TaskTale:
    """All that is known of a task.

    Raises:
        GraphError: the run has no such task; the message names some that look alike.
    """
    task = find_key(known.graph, key)
    if task is None:
        raise GraphError(f"run {known.run_id} has no task with key {unknown_key(known.graph, key)}")
    teller = _Teller(known, task)
    for record in known.records:
        teller.take(record)
    text = ". ".join([*teller.sentences(), known.client])
    if known.damage is not None:
        text += f". The journal is not whole: {known.damage}"
    return TaskTale(
        known.run_id, key, teller.state, teller.node, teller.subtree, text, teller.story
    )


class _Teller:
    """Goes through the records of a run, and keeps what concerns one task."""

    def __init__(self, known: Journalled, task: int) -> None:
        self._known = known
        self._name = known.graph.key(task)
        self._function = known.graph.function_names[int(known.graph.function_of[task])]
        self._task = task
        self.position = int(np.flatnonzero(known.shape.order == task)[0])
        self.subtree: int | None = None
        self._subtree_count = 0
        if known.plan is not None:
            self.subtree = self._subtree_of(self.position)
            self._subtree_count = known.plan.subtree_count
        self.state = "unknown"
        self.node: int | None = None
        self.story: list[str] = []
        self._placed: set[int] = set()
        self._attempt = 0
        self._piece_count = 0
        self._failure = ""
        self._run_state = ""

    def _subtree_of(self, position: int) -> int:
        plan = self._known.plan
        assert plan is not None
        return int(np.searchsorted(plan.subtree_starts, position, side="right")) - 1

    # --- the records, in order ------------------------------------------------------------------

    def take(self, record: Record) -> None:
        """Take the next record."""
        match record:
            case Submitted():
                self._begin()
            case Placed():
                for subtree, node, attempt in record.placements:
                    self._take_placed(subtree, node, attempt)
            case SubtreeDone():
                self._take_done(record)
            case Outputs():
                for node, info in record.objects:
                    if info.first <= self.position < info.first + info.count:
                        self.state, self.node = "ended", node
                        self.story.append(f"its value, which was asked for, came from node {node}")
            case Failed():
                self._take_failed(record)
            case Ended():
                self._run_state = record.state
                self.story.append(f"the run ended as {record.state}")
            case _:
                pass

    def _begin(self) -> None:
        if self.story:
            return  # the journal was written anew
        text = f"submitted with run {self._known.run_id}, function {self._function}"
        if self._known.plan is not None:
            keys = self._dependency_keys()
            text += f", depends on {_some(keys)}" if keys else ", depends on nothing"
        self.story.append(text)

    def _dependency_keys(self) -> list[str]:
        graph = self._known.graph
        deps = graph.dependencies(self._task).tolist()
        return [graph.key(dep) for dep in deps if dep < graph.task_count]

    def _take_placed(self, subtree: int, node: int, attempt: int) -> None:
        self._placed.add(subtree)
        if subtree == self.subtree:
            self.node, self._attempt = node, attempt
            if self.state == "unknown":
                self.state = "placed"
            self.story.append(f"placed on node {node} with subtree {subtree}, attempt {attempt}")
        elif self._subtree_count <= subtree:
            self._piece_count += 1
            self.story.append(
                f"a piece, subtree {subtree}, was placed on node {node} for what was lost; which "
                "tasks are in it isn't in the journal"
            )

    def _take_done(self, record: SubtreeDone) -> None:
        if record.subtree == self.subtree:
            self.state, self.node = "ended", record.broker
            self.story.append(f"all of subtree {record.subtree} ended on node {record.broker}")
        elif record.subtree >= self._subtree_count:
            firsts: Int32 = np.frombuffer(record.positions, "<i4")
            if (firsts == self.position).any():
                self.state, self.node = "ended", record.broker
                self.story.append(
                    f"its value was made in piece {record.subtree} on node {record.broker}"
                )

    def _take_failed(self, record: Failed) -> None:
        failure = record.failure
        if failure.position != self.position:
            self.story.append("another task failed, and the run with it")
            return
        words = (failure.kind, failure.type_name, failure.text.partition("\n")[0][:200])
        self._failure = ": ".join(word for word in words if word)
        self.state, self.node = "failed", record.node
        place = "" if record.node is None else f" on node {record.node}"
        if failure.executor:
            place += f", executor {failure.executor}"
        self.story.append(f"failed for good{place}, attempt {failure.attempt} ({self._failure})")

    # --- in words -------------------------------------------------------------------------------

    def sentences(self) -> list[str]:
        """What is known, and what isn't."""
        said = [self._first_sentence()]
        if self._piece_count and self.state != "failed":
            was = "piece of the run was" if self._piece_count == 1 else "pieces of the run were"
            said.append(f"{self._piece_count} {was} placed to make good what was lost")
        return said

    def _first_sentence(self) -> str:
        where = "" if self.subtree is None else f", with subtree {self.subtree}{self._size()}"
        match self.state:
            case "failed":
                return f"{self._name} failed for good ({self._failure})"
            case "ended":
                return f"{self._name} has ended on node {self.node}{where}"
            case "placed":
                over = f", and then the run ended as {self._run_state}" if self._run_state else ""
                return (
                    f"{self._name} was placed on node {self.node}{where}, attempt "
                    f"{self._attempt}{over}; that all of the subtree's tasks have ended isn't in "
                    "the journal, and single tasks never are"
                )
        if self._run_state == "done":
            return f"{self._name} has ended, for the run is done; where isn't known any more"
        if self._run_state:
            return (
                f"the run ended as {self._run_state}; whether {self._name} had run by then isn't "
                "in the journal"
            )
        self.state = "waiting"
        return f"{self._name} has not been placed on a node{where}{self._before()}"

    def _size(self) -> str:
        plan = self._known.plan
        if plan is None or self.subtree is None:
            return ""
        starts = plan.subtree_starts
        return f" ({int(starts[self.subtree + 1] - starts[self.subtree])} tasks)"

    def _before(self) -> str:
        """What must be placed before, in words."""
        plan = self._known.plan
        if plan is None or self.subtree is None:
            return ""
        lo, hi = plan.subtree_starts[self.subtree : self.subtree + 2].tolist()
        deps = plan.deps[plan.indptr[lo] : plan.indptr[hi]]
        outside = np.unique(deps[((deps < lo) | (deps >= hi)) & (deps < plan.task_count)])
        producers = np.unique(np.searchsorted(plan.subtree_starts, outside, side="right") - 1)
        waiting = [str(number) for number in producers.tolist() if number not in self._placed]
        if not waiting:
            return ", though all that it needs has been: no node had room for it, or none was there"
        return f", for it needs values of subtrees that have not been either: {_some(waiting)}"


def _some(words: Sequence[str]) -> str:
    more = len(words) - _NAMES_MAX
    return ", ".join(words[:_NAMES_MAX]) + (f" and {more} more" if more > 0 else "")


# --- finding --------------------------------------------------------------------------------------


def find_journalled(
    run_id: str, config: Config, rootpath: str, metastore: str | None
) -> Journalled:
    """A run, by its id, from its journal.

    Args:
        run_id: of the run.
        config: limits.
        rootpath: of its environment, where only a store knows it.
        metastore: where to look if the environment's directory is gone.

    Raises:
        DagschedError: it can't be found, or what is there can't be read.
        StoreUnavailable: its store can't be reached.
    """
    from dagsched.estates import split_run_id
    from dagsched.handles import load_handle
    from dagsched.ids import run_base
    from dagsched.metastore.reading import read_run
    from dagsched.protocol.plans import unpack_plan

    found = split_run_id(run_id)
    if found is None:
        raise DagschedError(
            f"{run_id!r} is no id of a run: those look like 5f0c2a91-1, and `dagsched runs` lists "
            "them"
        )
    token, count = found
    place = _Place.of(run_id, token, rootpath, metastore)
    with place.store(config) as store:
        state = read_run(store, run_base(token) + count, with_records=True)
    submitted = None if state is None else state.submitted
    if state is None or submitted is None:
        raise DagschedError(
            f"run {run_id} is not in the journals of its environment: it was never submitted, or "
            "is over for longer than results are kept (Config.result_expiry_s)"
        )
    for path in place.note.sys_path:
        if path not in sys.path:
            sys.path.append(path)
    plan = unpack_plan(submitted.plan_frames) if submitted.plan_frames else None
    handle = load_handle(submitted.client, plan)
    is_over = state.state not in ("open", "absent")
    return Journalled(
        run_id, state.records or (), handle.graph, handle.shape, plan,
        place.client_in_words(run_id, is_over=is_over), state.dropped,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an environment's journals are, and who is there."""

    directory: Path | None
    """None: it is gone; a store of others may know the environment still."""

    note: "EnvironmentNote"
    pid: int | None
    """Of the client, or of who goes on in its place; None: it has died."""

    @classmethod
    def of(cls, run_id: str, token: str, rootpath: str, metastore: str | None) -> "_Place":
        """Find it.

        Raises:
            DagschedError: there is nothing to look into.
        """
        from dagsched.envfile import EnvironmentNote, read_note
        from dagsched.rundir import find_run_directory
        from dagsched.tenancy import master_pid

        directory = find_run_directory(token)
        note = None if directory is None else read_note(directory)
        if directory is not None and note is not None:
            return cls(directory, note, master_pid(directory))
        if metastore is None:
            raise DagschedError(
                f"nothing is left of the environment of run {run_id} on this machine: its client "
                "has closed it, or runs elsewhere. If its journal is in a store of others, say "
                "which with --metastore URL (and --rootpath, if it isn't /D)"
            )
        return cls(None, EnvironmentNote(token, rootpath, metastore, 0, 0.0), None)

    @contextlib.contextmanager
    def store(self, config: Config) -> "Iterator[MetaStore]":
        """Its store, while it is read."""
        from dagsched.listing import store_of
        from dagsched.metastore import open_store
        from dagsched.metastore.keys import environment_prefix

        note = self.note
        if note.metastore == "memory://":
            whose = "its client's" if self.pid is None else f"the client's, process {self.pid}"
            raise DagschedError(
                f"the journal of environment {note.token} is in {whose} own memory (metastore "
                "'memory://'): only run.explain(..) and run.story(..) there can tell"
            )
        if self.directory is not None:
            is_living = self.pid is not None
            with store_of(self.directory, note, config, is_living=is_living) as store:
                yield store
            return
        prefix = environment_prefix(os.getuid(), note.rootpath, note.token)
        store = open_store(note.metastore, prefix=prefix, run_directory="", config=config)
        try:
            yield store
        finally:
            store.close()

    def client_in_words(self, run_id: str, *, is_over: bool) -> str:
        """Whether the client lives, and what can be done."""
        if self.pid is not None:
            more = "" if is_over else ": run.explain(..) there also says what happens right now"
            return f"Its client, process {self.pid}, lives{more}"
        if is_over:
            return "Its client is gone"
        count = len(self.note.living_brokers())
        brokers = f"{count} of its brokers live{'s' if count == 1 else ''}"
        return f"Its client is gone, {brokers}: `dagsched resume {run_id}` goes on with the run"
