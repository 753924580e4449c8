"""Profiles of master, brokers and executors for each run, as text: ``RunEnv(profile=True)``.

Each process writes its own files, where it can: ``profile-<run>/<role>_<broker>_<id>.profile``
below the working directory of the client. Profiled is the thread that does the work of its role; an
executor's only while it runs bundles of the run.
"""

import io
import logging
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dagsched.nodes import NodeEnv

if TYPE_CHECKING:
    import cProfile

logger = logging.getLogger(__name__)

LATE_S = 0.3
"""The end of an environment waits for files of the last run while this long one more comes."""


class Profile:
    """Profiles the thread that calls `start`, until `write`, for one run after the other.

    Args:
        directory: working directory of the client.
        role: ``master``, ``broker`` or ``executor``.
        broker: id of the node's broker; the master's own id.
        number: id of the process.
    """

    def __init__(self, directory: str, role: str, broker: int, number: int) -> None:
        self._directory = Path(directory)
        self._name = profile_name(role, broker, number)
        self._profile: cProfile.Profile | None = None

    def start(self) -> None:
        """Begin, or go on, in the thread that is to be profiled."""
        if self._profile is None:
            import cProfile

            self._profile = cProfile.Profile()
        self._profile.enable()

    def pause(self) -> None:
        """Leave out what comes now."""
        if self._profile is not None:
            self._profile.disable()

    def write(self, run_id: str) -> Path | None:
        """Write what was gathered, most expensive first, and forget it; in that thread.

        Returns:
            The directory of the file; None: there was nothing to write, or it can't be written
            there (the working directory of a client may not be there on another machine).
        """
        profile, self._profile = self._profile, None
        if profile is None:
            return None
        import pstats

        profile.disable()
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats()
        directory = self._directory / f"profile-{run_id}"
        try:
            directory.mkdir(exist_ok=True)
            part = directory / f".{self._name}"
            part.write_text(text.getvalue())
            part.replace(directory / self._name)
        except OSError as error:
            logger.warning("no profile of run %s is written: %s", run_id, error)
            return None
        return directory


class MasterProfile(Profile):
    """The client's: knows also where all the others are."""

    def __init__(self) -> None:
        super().__init__(str(Path.cwd()), "master", 1, 1)
        self._directories: list[Path] = []

    def write(self, run_id: str) -> Path | None:
        """See `Profile`; goes on with the next run."""
        directory = super().write(run_id)
        if directory is not None:
            self._directories.append(directory)
        self.start()
        return directory

    def wait_for_nodes(self, nodes: Sequence[NodeEnv]) -> None:
        """Wait until the processes of these nodes have written theirs, too."""
        names: list[str] = []
        for node in nodes:
            names.append(profile_name("broker", node.brokerid, node.brokerid))
            names += [profile_name("executor", node.brokerid, n) for n in node.executorids]
        self.wait_for(names)

    def wait_for(self, names: Collection[str]) -> None:
        """Wait a moment for files of the last run, before their writers are ended.

        Args:
            names: all that there may be; whoever had no part in the run writes none.
        """
        for directory in self._directories[-1:]:
            count, since_s = 0, time.monotonic()
            while count < len(names) and time.monotonic() - since_s < LATE_S:
                time.sleep(0.01)
                there = sum((directory / name).exists() for name in names)
                if there > count:
                    count, since_s = there, time.monotonic()

    def tell(self) -> None:
        """Say where the files are."""
        count = len(self._directories)
        if count:
            sys.stderr.write(f"profiles of {count} run(s): {self._directories[-1]} ..\n")


def profile_name(role: str, broker: int, number: int) -> str:
    """Of a file.

    Example:
        >>> profile_name("executor", 2, 3)
        'executor_2_3.profile'
    """
    return f"{role}_{broker}_{number}.profile"
