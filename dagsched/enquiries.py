"""What an environment asks its master and brokers on behalf of people: numbers, explanations.

Responsible for asking, for waiting only so long, and for remembering the numbers of the last run.
How tables are made of them is `stats`' affair.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dagsched.answers import NO_ANSWER, Answers
from dagsched.errors import ClosedError, InternalError
from dagsched.pastrun import PastRun

if TYPE_CHECKING:
    from dagsched.master.core import MasterCore
    from dagsched.master.explaining import Explanation
    from dagsched.master.surveys import Standing
    from dagsched.protocol.messages import NodeStats
    from dagsched.run import Run
    from dagsched.stats import RunNumbers

Call = Callable[["Callable[[MasterCore, float], None]"], None]

_STATS_TIMEOUT_S = 2.0
_WATCHED_TIMEOUT_S = 1.0  # asked again and again
_EXPLAIN_TIMEOUT_S = 5.0  # a node that does not answer has been given up by then


class Enquiries:
    """Questions of one environment.

    Args:
        call: has a function called in the master's thread.
        answers: where answers arrive.
        check_open: raises if the environment can't be used.
    """

    def __init__(self, call: Call, answers: Answers, check_open: Callable[[], None]) -> None:
        self._call = call
        self._answers = answers
        self._check_open = check_open
        self._last_numbers: RunNumbers | None = None
        self.last_run: PastRun | None = None
        """The run that was over last; None: there was none, or it was too large to be kept."""

    def note_numbers(self, run: "Run", state: str) -> None:
        """A run is over, as `state`."""
        from dagsched.stats import RunNumbers

        self._last_numbers = RunNumbers.of(run, state)
        self.last_run = PastRun.of(run, state)

    def stats(self) -> dict[str, Any]:
        """Numbers of the last run, with what the brokers hold now."""
        from dagsched.stats import add_idle_nodes, broker_rows, executor_rows, merge_live

        live, counters = self.ask_stats() or ((), {})
        stale_count = sum(node.stale_count for node in live)
        now = {
            "stalls": counters.get("stalls", 0),
            "counters": {**counters, "stale_peer_batches": stale_count},
        }
        numbers = self._last_numbers
        if numbers is None:
            rows = {"brokers": broker_rows(live), "executors": executor_rows(live)}
            return {"run": None, **rows, **now}
        result = numbers.as_dict()
        add_idle_nodes(result, live)
        merge_live(result["brokers"], live)
        return {**result, **now}

    def explain(self, run: int, position: int) -> "Explanation | None":
        """Ask the master about a task; None: it knows nothing of it, or doesn't answer."""
        # Of an environment that is being closed, or has failed, the run's own record tells.
        with contextlib.suppress(ClosedError, InternalError):
            request = self._answers.ask()
            self._call(lambda core, now: core.explain(request, run, position, now))
            answer = self._wait(request, _EXPLAIN_TIMEOUT_S)
            return None if answer is NO_ANSWER else answer  # type: ignore[return-value]  # the event says so
        return None

    def ask_stats(
        self, *, is_watched: bool = False
    ) -> "tuple[Sequence[NodeStats], Mapping[str, int]] | None":
        """What nodes hold now, and the master's counters; with `is_watched` what they do, too.

        Returns:
            None: some node doesn't answer, and is on its way to being lost.
        """
        request = self._answers.ask()
        self._call(lambda core, _now: core.surveys.ask(request, is_watched=is_watched))
        answer = self._wait(request, _WATCHED_TIMEOUT_S if is_watched else _STATS_TIMEOUT_S)
        return None if answer is NO_ANSWER else answer  # type: ignore[return-value]  # the event says so

    def ask_standing(
        self, run: int
    ) -> "tuple[Standing | None, Mapping[int, tuple[float, bool]], float]":
        """How a run's subtrees stand, `Surveys.silences`, and the seconds that telling took."""
        request = self._answers.ask()

        def look(core: "MasterCore", now: float) -> None:
            begun_s = time.perf_counter()
            found = core.surveys.standing(run), core.surveys.silences(now)
            self._answers.give(request, (*found, time.perf_counter() - begun_s))

        self._call(look)
        answer = self._wait(request, _STATS_TIMEOUT_S)
        return (None, {}, 0.0) if answer is NO_ANSWER else answer  # type: ignore[return-value]  # given above

    def _wait(self, request: int, timeout_s: float | None) -> object:
        answer = self._answers.wait(request, timeout_s)
        if answer is NO_ANSWER:
            self._check_open()
        return answer
