"""Which runs there are, of living clients and of those that died: what `dagsched runs` shows.

Responsible for looking everywhere once, and for changing nothing. A store of a dead client's own is
started for that and ended again, its files untouched.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dagsched.brokers.orphanage import UNTIL_SUFFIX
from dagsched.config import Config
from dagsched.envfile import EnvironmentNote, read_note
from dagsched.errors import DagschedError
from dagsched.handles import submitted_wall_s
from dagsched.ids import run_id_of
from dagsched.rundir import run_directories
from dagsched.tenancy import Tenancy, master_pid

if TYPE_CHECKING:
    from dagsched.metastore.fold import JournalState
    from dagsched.metastore.port import MetaStore


class ListedRun(NamedTuple):
    """One run, as far as its journal and its directory tell."""

    run: str
    state: str
    """``running`` (its client lives), ``resumable`` (it has died), ``unreadable``, or its end."""

    done: int
    total: int
    started_wall_s: float | None
    where: str
    until_wall_s: float | None
    """Until when brokers keep what a dead client has left; None: it lives, or they are gone."""


class Listing(NamedTuple):
    """All runs that were found, oldest first, and what could not be looked into."""

    runs: list[ListedRun]
    problems: list[str]


def list_runs(metastore: str | None, config: Config) -> Listing:
    """All runs of this user that this machine, and a store, know of.

    Args:
        metastore: URL of a store to look into as well; None: only those that directories name.
        config: limits.
    """
    listing = Listing([], [])
    seen = set()
    for directory in run_directories():
        try:
            note = read_note(directory)
            if note is not None:
                seen.add(note.token)
                listing.runs.extend(_runs_in(directory, note, config))
        except (DagschedError, OSError) as error:
            listing.problems.append(str(error))
    if metastore is not None:
        listing.runs.extend(_runs_of_store(metastore, seen, config))
    listing.runs.sort(key=lambda run: (run.started_wall_s or 0.0, run.run))
    return listing


def _runs_in(directory: Path, note: EnvironmentNote, config: Config) -> list[ListedRun]:
    pid = master_pid(directory)
    if note.metastore == "memory://":
        if pid is None:
            return []
        raise DagschedError(f"the runs of process {pid} are known to itself alone (memory://)")
    from dagsched.metastore.reading import read_runs

    with store_of(directory, note, config, is_living=pid is not None) as store:
        states = read_runs(store)
    if pid is not None:
        where, until_s = f"process {pid}", None
    else:
        count = len(note.living_brokers())
        where, until_s = f"{count} {'broker' if count == 1 else 'brokers'}", _until_s(directory)
    return _listed(states, where, until_s, is_living=pid is not None)


@contextlib.contextmanager
def store_of(
    directory: Path, note: EnvironmentNote, config: Config, *, is_living: bool
) -> "Iterator[MetaStore]":
    """The store of an environment, while it is read.

    Args:
        directory: the environment's.
        note: of the environment.
        config: limits.
        is_living: whether its client, or who took its place, lives, and a store of its own with it.

    Raises:
        DagschedError: somebody takes the environment over, or removes it, in this moment.
        StoreUnavailable: the store can't be reached.
    """
    from dagsched.metastore import open_store
    from dagsched.metastore.embedded import SOCKET_NAME
    from dagsched.metastore.keys import environment_prefix

    prefix = environment_prefix(os.getuid(), note.rootpath, note.token)
    url = note.metastore
    if url is None and is_living:
        url = f"unix://{directory / SOCKET_NAME}"
    tenancy = Tenancy(directory)
    try:
        if not is_living and not (tenancy.live() and tenancy.rule()):
            raise DagschedError(f"environment {note.token} is just being resumed, or removed")
        store = open_store(url, prefix=prefix, run_directory=directory, config=config)
        try:
            yield store
        finally:
            store.close()
    finally:
        tenancy.close()


def _runs_of_store(metastore: str, seen: set[str], config: Config) -> list[ListedRun]:
    """Runs of environments whose directories have gone, if a store knows them still."""
    from dagsched.metastore import open_store
    from dagsched.metastore.reading import read_runs

    runs: list[ListedRun] = []
    probe = open_store(metastore, prefix=_user_prefix(), run_directory="", config=config)
    try:
        prefixes = probe.environments()
    finally:
        probe.close()
    for prefix in prefixes:
        token = prefix.rpartition(":")[2]
        if token not in seen:
            store = open_store(metastore, prefix=prefix, run_directory="", config=config)
            try:
                runs += _listed(read_runs(store), "store only", None, is_living=False)
            finally:
                store.close()
    return runs


def _user_prefix() -> str:
    from dagsched.metastore.keys import environment_prefix

    return environment_prefix(os.getuid(), "/D", "none")


def _listed(
    states: "Sequence[JournalState]", where: str, until_s: float | None, *, is_living: bool
) -> list[ListedRun]:
    found = []
    for state in states:
        submitted = state.submitted
        if state.error is not None:
            run_id = run_id_of(state.run)
            found.append(ListedRun(run_id, state.state, 0, 0, None, where, until_s))
        if submitted is None or submitted.parent is not None:
            continue
        done, total = _progress(state)
        word = state.state
        if word == "open":
            word = "running" if is_living else "resumable"
        started_s = submitted_wall_s(submitted.client)
        found.append(ListedRun(run_id_of(state.run), word, done, total, started_s, where, until_s))
    return found


def _progress(state: "JournalState") -> tuple[int, int]:
    """Tasks that have ended for sure, and tasks in all (0: the plan has gone)."""
    from dagsched.protocol.plans import unpack_plan

    assert state.submitted is not None
    if not state.submitted.plan_frames:
        return 0, 0
    plan = unpack_plan(state.submitted.plan_frames)
    starts = plan.subtree_starts.tolist()
    if state.state == "done":
        return plan.task_count, plan.task_count
    done = sum(starts[k + 1] - starts[k] for k in state.done if k + 1 < len(starts))
    return done, plan.task_count


def _until_s(directory: Path) -> float | None:
    times = []
    for path in directory.glob(f"*{UNTIL_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            times.append(float(path.read_text()))
    return max(times, default=None)
