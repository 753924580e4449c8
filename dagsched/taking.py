"""Outputs that are all there: copied, made safe from our own end, then let go by the cluster.

Until the journal has them, whoever resumes the run would have to compute everything again, for
brokers free what nobody needs any more. What took less than the wait is worth isn't waited for.
"""

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dagsched.background import BackgroundThread
from dagsched.errors import ClosedError, InternalError

if TYPE_CHECKING:
    from dagsched.journals import Journals
    from dagsched.master.core import MasterCore
    from dagsched.master.events import OutputsArrived, OutputsComplete
    from dagsched.run import Run

SECURED_FROM_S = 0.1
"""Runs that lasted less are sooner computed again than waited for: an answer takes some ms."""

_SECURING_TIMEOUT_S = 0.5
"""A store that stalls keeps nobody longer."""

Call = Callable[["Callable[[MasterCore, float], None]"], None]


class OutputTaking:
    """Takes the outputs of one environment's runs.

    Args:
        call: has a function called in the master's thread.
        is_gone: whether a broker's process has ended.
    """

    def __init__(self, call: Call, is_gone: Callable[[int], bool]) -> None:
        self.journals: Journals | None = None
        self._call = call
        self._is_gone = is_gone
        self._thread = BackgroundThread("dagsched-copies")

    def take(self, run: "Run", event: "OutputsArrived | OutputsComplete") -> None:
        """In the master's thread, which never waits: copies and answers come in another."""
        from dagsched.master.events import OutputsArrived

        if isinstance(event, OutputsArrived):
            self._thread.do(lambda: run.take_arrived(event, self._is_gone))
        elif not run.take_outputs(event):
            self._thread.do(lambda: self._copy(run))
        elif self._is_worth_securing(run):
            self._thread.do(lambda: self._secure(run))
        else:
            self._let_go(run)

    def stream(self, run: "Run") -> None:
        """Have a run's outputs given to it one by one, and its end told, in our thread."""

        def ask(core: "MasterCore", now: float) -> None:
            core.stream_outputs(run.number, now)

        def end() -> None:
            if not self._thread.do(run.end_arrivals):
                run.end_arrivals()

        with contextlib.suppress(ClosedError, InternalError):
            self._call(ask)
        run.add_internal_callback(end)

    def stop(self, timeout_s: float) -> None:
        """End the thread, when it has done what it has to."""
        self._thread.stop(timeout_s)

    def _copy(self, run: "Run") -> None:
        if run.copy_outputs(self._is_gone):
            self._secure(run)

    def _is_worth_securing(self, run: "Run") -> bool:
        if self.journals is None:
            return False
        age_s = time.monotonic() - run.record.submitted_s
        return age_s >= SECURED_FROM_S or self.journals.are_elsewhere(run.number)

    def _secure(self, run: "Run") -> None:
        if self.journals is not None and self._is_worth_securing(run):
            self.journals.secure(run.number, _SECURING_TIMEOUT_S)
        with contextlib.suppress(ClosedError, InternalError):
            self._let_go(run)

    def _let_go(self, run: "Run") -> None:
        kept = run.kept_positions

        def taken(core: "MasterCore", now: float) -> None:
            core.outputs_taken(run.number, now, kept)

        self._call(taken)
