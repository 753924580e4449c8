"""A broker whose master has died: how long it stays, and as whom it looks for another.

Responsible for the times and the names; the shell does what follows from them. Where there has
been no run, brokers are of no use to anybody and leave at once. Any other keeps working on
what it has, for whoever resumes its runs: as long as the oldest of them has lasted, so that what
took long to compute isn't lost soon, within limits.
"""

import os
import time
from pathlib import Path

from dagsched.config import Config
from dagsched.protocol.messages import EndRun, MasterToBroker, PlaceSubtree
from dagsched.tenancy import is_used

UNTIL_SUFFIX = ".until"

ORPHAN_IDS_FROM = 10**9
"""An orphan is known by this plus its pid, which nobody else on its machine is called."""


class Orphanage:
    """What a broker knows of its runs' ages, and of its own end.

    Args:
        directory: the run directory.
        config: limits.
    """

    def __init__(self, directory: Path, config: Config) -> None:
        self._directory = directory
        self._config = config
        self._begun_s: dict[int, float] = {}  # by run that has not ended
        self._had_run = False
        self._generation = 0
        self.leave_at_s: float | None = None
        """When to leave; None: there is a master."""

    @property
    def id(self) -> int:
        """Who this broker is to its next master."""
        return ORPHAN_IDS_FROM + os.getpid()

    @property
    def data_path(self) -> str:
        """Of a data socket that nobody who knew the broker before will dial."""
        return str(self._directory / f"o{os.getpid()}.{self._generation}.sock")

    @property
    def _until_path(self) -> Path:
        """Tells people until when the runs can be resumed."""
        return self._directory / f"o{os.getpid()}{UNTIL_SUFFIX}"

    def heed(self, message: MasterToBroker, now: float) -> None:
        """A message of the master may begin or end a run here."""
        if isinstance(message, PlaceSubtree):
            self._had_run = True
            self._begun_s.setdefault(message.run, now)
        elif isinstance(message, EndRun):
            self._begun_s.pop(message.run, None)

    def master_died(self, now: float) -> bool:
        """Whether to stay for another master; if so `leave_at_s` says until when."""
        if not self._had_run and not is_used(self._directory):
            return False
        self._generation += 1
        config = self._config
        age_s = now - min(self._begun_s.values(), default=now)
        grace_s = min(max(config.master_grace_s, age_s), config.master_grace_max_s)
        self.leave_at_s = now + grace_s
        self._until_path.write_text(f"{time.time() + grace_s:.0f}")
        return True

    def adopted(self) -> None:
        """There is a master again."""
        self.leave_at_s = None
        self._until_path.unlink(missing_ok=True)

    def next_timer(self) -> float | None:
        """When to look whether to leave."""
        return self.leave_at_s

    def is_due(self, now: float) -> bool:
        """Whether nobody came in time."""
        return self.leave_at_s is not None and now >= self.leave_at_s
