"""What an environment notes of itself in its run directory, so that others find it by its token.

Responsible for the file ``env.json``: its form, its versions, and that it is whole whenever it is
read. Only its owner can read it, for a store's URL may hold a password.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dagsched._version import __version__
from dagsched.errors import DagschedError, VersionMismatch
from dagsched.launching import import_path
from dagsched.nodes import NodeEnv
from dagsched.rundir import RunNames
from dagsched.tenancy import start_ticks

NOTE_NAME = "env.json"
NOTE_VERSION = 1

Process = tuple[int, int, str]
"""A broker's process, when it was started (so that a number used again is not taken for it), and
how the names of its segments begin."""


@dataclasses.dataclass(frozen=True, slots=True)
class EnvironmentNote:
    """One environment, as others need to know it."""

    token: str
    rootpath: str
    metastore: str | None
    """As given to `RunEnv`; None: a store of its own in the directory."""

    pid: int
    created_wall_s: float
    nodes: Sequence[tuple[int, str, Sequence[int]]] = ()
    brokers: Sequence[Process] = ()
    heirs: Sequence[str] = ()
    """Run directories of environments that took over runs of this one, oldest first."""

    sys_path: Sequence[str] = ()
    """Where the client, and so its executors, looked for modules."""

    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    dagsched: str = __version__
    version: int = NOTE_VERSION

    @classmethod
    def of(cls, names: RunNames, metastore: str | None) -> "EnvironmentNote":
        """The note of an environment that this process opens."""
        return cls(
            names.token,
            names.rootpath,
            metastore,
            os.getpid(),
            time.time(),
            sys_path=import_path(),
        )

    def with_nodes(
        self, nodes: Sequence[NodeEnv], processes: Sequence[tuple[int, str]]
    ) -> "EnvironmentNote":
        """The note with other nodes, whose brokers have these pids and segments named like that."""
        brokers = []
        for pid, prefix in processes:
            with contextlib.suppress(ProcessLookupError):
                brokers.append((pid, start_ticks(pid), prefix))
        plain = [(node.brokerid, node.host, node.executorids) for node in nodes]
        return dataclasses.replace(self, nodes=plain, brokers=brokers)

    def with_heir(self, directory: Path) -> "EnvironmentNote":
        """The note of an environment that has one heir more."""
        return dataclasses.replace(self, heirs=[*self.heirs, str(directory)])

    def living_brokers(self) -> dict[int, str]:
        """Brokers that live: pid, and how the names of their segments begin."""
        return {pid: prefix for pid, start, prefix in self.brokers if _is_process(pid, start)}


def write_note(directory: Path, note: EnvironmentNote) -> None:
    """Write a note in a run directory; a reader finds the old one or the new one."""
    fresh = directory / (NOTE_NAME + ".new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(dataclasses.asdict(note), file)
    fresh.replace(directory / NOTE_NAME)


def read_note(directory: Path) -> EnvironmentNote | None:
    """The note in a run directory; None: there is none.

    Raises:
        VersionMismatch: a newer dagsched wrote it.
        DagschedError: it is no note.
    """
    try:
        values = json.loads((directory / NOTE_NAME).read_text())
        if isinstance(values, dict) and values.get("version", 0) > NOTE_VERSION:
            raise VersionMismatch(
                f"the environment in {directory} was opened by dagsched {values.get('dagsched')}, "
                f"which writes notes of version {values['version']}; this is dagsched "
                f"{__version__}, which reads up to version {NOTE_VERSION}: use the newer one"
            )
        return EnvironmentNote(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DagschedError(f"{directory / NOTE_NAME} is no note of an environment") from error


def _is_process(pid: int, start: int) -> bool:
    try:
        return start_ticks(pid) == start
    except ProcessLookupError:
        return False
