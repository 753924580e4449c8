"""A profile of the master's thread for each run, as text.

Responsible for the client's side of ``RunEnv(profile=True)``: files in the working directory, in a
directory named for the run, ``master_1_1.profile``: role, broker id, id.
"""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cProfile


class MasterProfile:
    """Profiles the thread that calls `start`, from run to run."""

    def __init__(self) -> None:
        self._profile: cProfile.Profile | None = None
        self.paths: list[Path] = []

    def start(self) -> None:
        """Begin, in the thread that is to be profiled."""
        import cProfile

        self._profile = cProfile.Profile()
        self._profile.enable()

    def write(self, run_id: str) -> None:
        """Write what was gathered since the last run, most expensive first; in that thread."""
        import pstats

        if self._profile is None:
            return
        self._profile.disable()
        text = io.StringIO()
        stats = pstats.Stats(self._profile, stream=text)
        stats.sort_stats("cumulative").print_stats()
        directory = Path(f"profile-{run_id}")
        directory.mkdir(exist_ok=True)
        path = directory / "master_1_1.profile"
        path.write_text(text.getvalue())
        self.paths.append(path)
        self.start()

    def tell(self) -> None:
        """Say where the files are."""
        if self.paths:
            sys.stderr.write(f"profiles of {len(self.paths)} run(s): {self.paths[-1].parent} ..\n")
