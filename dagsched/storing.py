"""The environment's metadata store and journal: opened, kept whole, closed.

Responsible for the environment's own records, and for having a journal that was lost written anew
from what the master knows. It decides nothing of runs.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dagsched._version import __version__
from dagsched.config import Config
from dagsched.errors import ClosedError, InternalError, StoreUnavailable
from dagsched.nodes import NodeEnv
from dagsched.rundir import RunNames

if TYPE_CHECKING:
    from dagsched.master.core import MasterCore
    from dagsched.metastore.journal import Journal
    from dagsched.metastore.port import MetaStore
    from dagsched.metastore.records import Record

logger = logging.getLogger(__name__)

Call = Callable[["Callable[[MasterCore, float], None]"], None]


class Storing:
    """Store and journal of one environment.

    Args:
        names: of the environment.
        config: limits.
        call: has a function called in the master's thread, which puts all records.
    """

    def __init__(self, names: RunNames, config: Config, call: Call) -> None:
        self._names = names
        self._config = config
        self._call = call
        self._nodes: Sequence[NodeEnv] = ()
        self._opened_wall_s = 0.0
        self._store: MetaStore | None = None
        self._journal: Journal | None = None

    def open(self, metastore: str | None) -> None:
        """Open the store and start the journal's thread.

        Raises:
            StoreUnavailable: the store of others can't be reached.
            ValueError: `metastore` is of no kind that we know.
        """
        from dagsched.master.journaling import stored_record
        from dagsched.metastore import open_store
        from dagsched.metastore.journal import Journal
        from dagsched.metastore.keys import environment_prefix

        names = self._names
        self._opened_wall_s = time.time()
        self._store = open_store(
            metastore,
            prefix=environment_prefix(os.getuid(), names.rootpath, names.token),
            run_directory=names.directory,
            config=self._config,
        )
        config = self._config
        if metastore == "memory://":
            # Nobody else will ever read it, and it is this process's own memory.
            config = replace(config, results_max=100, results_bytes_max=1 << 20)
        self._journal = Journal(
            self._store, config, convert=stored_record, on_torn=self._write_anew
        )
        self._journal.open()

    def close(self) -> None:
        """End both and remove every key; takes little time whatever the store does."""
        journal, self._journal = self._journal, None
        if journal is not None:
            # All keys go, so nothing need be written before.
            journal.close(flush_timeout_s=0.0)
        store, self._store = self._store, None
        if store is not None:
            try:
                store.erase()
            except StoreUnavailable as error:
                logger.warning("keys of environment %s stay until they expire: %s",
                               self._names.token, error)  # fmt: skip

    @property
    def journal(self) -> "Journal | None":
        """Where the master's records go, while it is open."""
        return self._journal

    def state(self) -> dict[str, str]:
        """How the store stands, for people."""
        state, reason = self._journal.state if self._journal is not None else ("closed", "")
        return {"state": state, "reason": reason}

    def note_nodes(self, nodes: Sequence[NodeEnv]) -> None:
        """Write down which nodes the environment has from now on; in the master's thread."""
        from dagsched.metastore.keys import ENVIRONMENT_RUN

        is_first = not self._nodes
        self._nodes = tuple(nodes)
        if self._journal is not None:
            for record in self._own_records()[0 if is_first else 1 :]:
                self._journal.put(ENVIRONMENT_RUN, record)

    def _own_records(self) -> "list[Record]":
        from dagsched.metastore.records import EnvironmentOpened, NodesChanged

        names = self._names
        return [
            EnvironmentOpened(
                names.token,
                names.rootpath,
                socket.gethostname(),
                os.getpid(),
                self._opened_wall_s,
                __version__,
            ),
            NodesChanged([(node.brokerid, node.host, node.executorids) for node in self._nodes]),
        ]

    def _write_anew(self, run: int) -> None:
        """A journal was lost or torn; in the journal's thread."""
        from dagsched.metastore.keys import ENVIRONMENT_RUN

        def write(core: "MasterCore", _now: float) -> None:
            journal = self._journal
            if journal is None:
                return
            if run == ENVIRONMENT_RUN:
                journal.restart(run, self._own_records())
            else:
                write_run_anew(journal, core, run)

        # Whoever closes has no use for it any more.
        with contextlib.suppress(ClosedError, InternalError):
            self._call(write)


def write_run_anew(journal: "Journal", core: "MasterCore", run: int) -> None:
    """Write the journal of a run from what the master knows; drop it if it knows none."""
    records = core.journal_of(run)
    if records is None:
        journal.forget(run)
    else:
        journal.restart(run, records)
