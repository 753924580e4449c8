"""What a client that died left behind: its run directory, its store, its brokers, its runs.

Responsible for finding that by a run's id, for taking it over so that nobody else does, and for
reading what the journal says. What becomes of the runs is `inheriting`'s affair.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dagsched._version import __version__
from dagsched.config import Config
from dagsched.envfile import EnvironmentNote, read_note, write_note
from dagsched.errors import DagschedError, VersionMismatch
from dagsched.rundir import (
    RunNames,
    find_run_directory,
    names_of,
    remove_environment,
    run_directories,
)
from dagsched.tenancy import Tenancy, master_pid

if TYPE_CHECKING:
    from dagsched.metastore.fold import JournalState
    from dagsched.metastore.journal import Journal
    from dagsched.metastore.port import MetaStore

logger = logging.getLogger(__name__)

_RUN_ID = re.compile(r"([0-9a-f]{8})-([1-9][0-9]*)")


def split_run_id(run_id: str) -> tuple[str, int] | None:
    """Token of the environment, and the run's count in it; None: this is no id of a run."""
    match = _RUN_ID.fullmatch(run_id)
    return None if match is None else (match[1], int(match[2]))


@dataclass(eq=False)
class Estate:
    """One dead client's environment, ours from `take` to `close` or `leave`."""

    names: RunNames
    note: EnvironmentNote | None
    """None: the directory is gone, and only a store of others knows the environment."""

    tenancy: Tenancy
    store: "MetaStore"
    states: dict[int, "JournalState"] = field(default_factory=dict)
    """What the journal says of each run, when it was taken over."""

    @property
    def token(self) -> str:
        """Of the environment."""
        return self.names.token

    @property
    def heirs(self) -> list[Path]:
        """Run directories of those who took over runs of this one before."""
        return [] if self.note is None else [Path(heir) for heir in self.note.heirs]

    def living_brokers(self) -> Mapping[int, str]:
        """Brokers that live: pid, and how the names of their segments begin."""
        return {} if self.note is None else self.note.living_brokers()

    def bequeath(self, heir: Path) -> None:
        """Note that another environment has runs of this one from now on."""
        if self.note is not None and heir not in self.heirs:
            self.note = self.note.with_heir(heir)
            write_note(self.names.directory, self.note)

    def leave(self) -> None:
        """Let go of it, as if nobody had touched it."""
        self.store.close()
        if self.note is not None and self.tenancy.is_last():
            # Its brokers have gone meanwhile, and left the rest to us.
            remove_environment(self.names.directory)
        self.tenancy.close()

    def close(self) -> None:
        """Remove all that is left of it; its brokers have been ended."""
        try:
            self.store.erase()
        finally:
            if self.note is not None:
                remove_environment(self.names.directory)
            self.tenancy.close()


def take_estate(token: str, config: Config, rootpath: str, metastore: str | None) -> Estate | None:
    """Take over what is left of an environment; None: nothing is.

    Args:
        token: of the environment.
        config: limits.
        rootpath: of the environment, where only a store knows it.
        metastore: where to look for it if its directory is gone.

    Raises:
        DagschedError: its client lives, or its journal died with it.
        VersionMismatch: it was written by another Python, or a newer dagsched.
        StoreUnavailable: the store, or what it holds, is not what it should be.
    """
    directory = find_run_directory(token)
    if directory is None:
        return _from_store(token, config, rootpath, metastore)
    note = read_note(directory)
    if note is None:
        raise DagschedError(
            f"the environment in {directory} has no note of itself: its client died while it "
            "opened it, before it could run anything"
        )
    _check_version(note)
    tenancy = Tenancy(directory)
    try:
        if not tenancy.live():
            return None  # it is just being removed
        if not tenancy.rule():
            raise DagschedError(
                f"the runs of environment {token} are run by process {master_pid(directory)}, "
                "which lives: ask for them there, or end it first"
            )
        if note.metastore == "memory://":
            raise DagschedError(
                f"the journal of environment {token} was in the memory of its client (metastore "
                "'memory://'), and died with it: use the default, or redis://, for runs that shall "
                "outlive their client"
            )
        names = names_of(directory, note.rootpath)
        return _opened(Estate(names, note, tenancy, _open_store(note.metastore, names, config)))
    except BaseException:
        tenancy.close()
        raise


def _from_store(token: str, config: Config, rootpath: str, metastore: str | None) -> Estate | None:
    """An environment whose directory has gone, if a store of others knows it still."""
    if metastore is None or metastore == "memory://":
        return None
    names = RunNames(token, "", rootpath, Path("/nonexistent"))
    estate = Estate(names, None, Tenancy(names.directory), _open_store(metastore, names, config))
    _opened(estate)
    if estate.states:
        return estate
    estate.leave()
    return None


def _open_store(metastore: str | None, names: RunNames, config: Config) -> "MetaStore":
    from dagsched.metastore import open_store
    from dagsched.metastore.keys import environment_prefix

    prefix = environment_prefix(os.getuid(), names.rootpath, names.token)
    return open_store(metastore, prefix=prefix, run_directory=names.directory, config=config)


def _opened(estate: Estate) -> Estate:
    """Read all journals; what was opened is closed again if that can't be done."""
    from dagsched.metastore.reading import read_runs

    try:
        estate.states = {state.run: state for state in read_runs(estate.store)}
    except BaseException:
        estate.store.close()
        raise
    return estate


def ask_state(journal: "Journal", run: int, timeout_s: float) -> "JournalState | None":
    """What an open journal's store says of one run now; None: nothing.

    Raises:
        StoreUnavailable: it can't be read in that time, or is damaged.
    """
    from dagsched.metastore.fold import Entry, fold_entries

    def read(store: "MetaStore") -> list[Entry]:
        result = store.result(run)
        return store.read(run) if result is None else [Entry(1, result)]

    entries = journal.ask(read, timeout_s)
    return fold_entries(f"run {run}", entries, run=run) if entries else None


def _check_version(note: EnvironmentNote) -> None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if note.python != own or note.dagsched != __version__:
        raise VersionMismatch(
            f"environment {note.token} was opened with Python {note.python} and dagsched "
            f"{note.dagsched}; this is Python {own} and dagsched {__version__}: resume its runs "
            "with the same versions"
        )


def known_tokens() -> list[str]:
    """Tokens of environments of dead clients that have a run directory still."""
    return [
        directory.name.rpartition("-")[2]
        for directory in run_directories()
        if master_pid(directory) is None
    ]
