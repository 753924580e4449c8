"""One run, as its events tell of it: counts, functions, subtrees, rates. Pure.

While it goes on a byte and two small numbers a task are kept; once it is over only sums are.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagsched.master.surveys import STATES, Standing
from dagsched.viz.live.facts import RunFacts
from dagsched.viz.live.patches import Patches, patches_of
from dagsched.viz.live.rates import Rates
from dagsched.viz.live.totals import FunctionTotals, Names

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

RATE_WINDOW_S = 5.0

_WORDS = np.array([state.name.lower() for state in STATES])
"""Of the states of subtrees, by index into `STATES`."""


class SeenRun:
    """A run of the environment.

    Args:
        facts: of the run.
        names: of all functions of the environment.
    """

    def __init__(self, facts: RunFacts, names: Names) -> None:
        self.facts: RunFacts | None = facts
        self.number, self.run_id = facts.number, facts.run_id
        self.submitted_s = facts.submitted_s
        self.state = "running"
        self.task_count = facts.task_count
        self.failed_count = self.retry_count = 0
        self._ended_count = 0  # as told: what was computed again is in it twice
        self.ended_s: float | None = None
        self.rates = Rates(facts.submitted_s)
        texts = facts.names.functions
        self._function_of = np.asarray(facts.names.function_of)[facts.order]
        self.functions = FunctionTotals(texts, self._function_of)
        self._number_of = names.numbers(texts)  # by index in the run
        self._has_ended = np.zeros(facts.task_count, np.bool_)
        self._place_of = np.zeros(facts.task_count, np.int32)  # in the batch that named it last
        self._standing: Standing | None = None
        self._failed_position = -1
        self._patches: Patches | None = None  # once it is over

    # --- what happens ---------------------------------------------------------------------------

    def take_progress(self, done_count: int, total: int, when: float) -> int:
        """So many tasks have ended; how many more than before."""
        more = max(0, done_count - self._ended_count)
        self._ended_count += more
        self.task_count = max(self.task_count, total)
        if more:
            self.rates.add(when, more)
        return more

    def take_traces(self, positions: Int32, stamps: Int64) -> tuple[Int64, Int64, Int64]:
        """Tasks that ended on one executor, as in `TaskTrace`.

        Returns:
            Of each: the number of its function in the environment, and when it began and ended.
        """
        ran = (positions >= 0) & (positions < len(self._has_ended))
        if self.facts is None or len(stamps) != len(positions) + 1 or not ran.any():
            nothing = np.empty(0, np.int64)
            return nothing, nothing, nothing
        starts, ends = stamps[:-1], stamps[1:]
        if not ran.all():
            positions, starts, ends = positions[ran], starts[ran], ends[ran]
        functions = self._function_of[positions]
        # One that stands here twice is counted once: at the last of its places.
        places = np.arange(len(positions), dtype=np.int32)
        self._place_of[positions] = places
        is_new = ~self._has_ended[positions] & (self._place_of[positions] == places)
        self.functions.add(functions, is_new, ends - starts)
        self._has_ended[positions] = True
        return self._number_of[functions], starts, ends

    def take_recomputed(self, positions: Int32) -> None:
        """What these tasks made is gone: they are to run again."""
        if self.facts is not None:
            again = positions[self._has_ended[positions]]
            self.functions.take_back(self._function_of[again])
            self._has_ended[again] = False

    @property
    def has_standing(self) -> bool:
        """Whether the master has said how its subtrees stand, or it is over."""
        return self._standing is not None or self._patches is not None

    def take_standing(self, standing: Standing) -> None:
        """How the master says that its subtrees stand."""
        self._standing = standing

    def take_failed(self, position: int) -> None:
        """A task has failed for good."""
        self.failed_count += 1
        self._failed_position = position

    def end(self, state: str, when: float, homes: "list[int]") -> int:
        """The run is over; how many more tasks have ended than was known.

        Args:
            state: as `Run.state` has it.
            when: monotonic seconds.
            homes: the node that each subtree of the plan was on last.
        """
        more = self.take_progress(self.task_count, 0, when) if state == "done" else 0
        self.state, self.ended_s = state, when
        if state == "done":
            self._has_ended[:] = True
            self.functions.end()
        self._patches = self._last_patches(homes)
        self.facts = self._standing = None
        self._function_of = self._place_of = np.empty(0, np.int32)
        self._has_ended = np.empty(0, np.bool_)
        return more

    # --- what is asked --------------------------------------------------------------------------

    @property
    def done_count(self) -> int:
        """Tasks that have ended."""
        return min(self._ended_count, self.task_count)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.ended_s is not None

    def row(self, now: float, wall_offset_s: float) -> dict[str, Any]:
        """As the snapshot lists it."""
        until_s = now if self.ended_s is None else self.ended_s
        duration_s = max(0.0, until_s - self.submitted_s)
        left_s: float | None = None
        if self.is_over:
            rate = self.done_count / duration_s if duration_s > 0 else 0.0
        else:
            rate = self.rates.per_second(now, RATE_WINDOW_S)
            left = self.task_count - self.done_count
            # When nothing has ended lately what the whole run did is the best guess.
            pace = rate or (self.done_count / duration_s if duration_s > 0 else 0.0)
            left_s = left / pace if pace > 0 else None
        return {
            "run_id": self.run_id,
            "state": self.state,
            "task_count": self.task_count,
            "done_count": self.done_count,
            "failed_count": self.failed_count,
            "retry_count": self.retry_count,
            "submitted_s": self.submitted_s + wall_offset_s,
            "duration_s": duration_s,
            "rate": rate,
            "left_s": left_s,
        }

    def patches(self, running: Sequence[int] = (), living: Collection[int] = ()) -> Patches:
        """Its subtrees.

        Args:
            running: positions of tasks that executors have in hand.
            living: nodes that are there.
        """
        if self._patches is not None:
            return self._patches
        standing, facts = self._standing, self.facts
        if standing is None or facts is None:
            return Patches(0, 0, [])
        state = _WORDS[standing.state]
        count, owners = len(state), standing.producer_of
        if owners is None:
            before = np.concatenate([[0], np.cumsum(self._has_ended)])
            tasks = standing.task_count.astype(np.int64)
            done = before[standing.hi] - before[standing.lo]
            in_hand = np.searchsorted(standing.hi, np.array(running, np.int64), side="right")
        else:
            owners = owners[: len(self._has_ended)]  # sources have none
            tasks = np.bincount(owners[owners >= 0], minlength=count)
            ended = owners[self._has_ended & (owners >= 0)]
            done = np.bincount(ended, minlength=count)
            in_hand = owners[np.array(running, np.int64)].astype(np.int64)
        done = np.where(state == "done", tasks, np.minimum(done, tasks))
        begun = done > 0
        begun[in_hand[(in_hand >= 0) & (in_hand < count)]] = True
        state = np.where((state == "placed") & begun, "running", state)
        # What is left of one that is gone has ended, and pieces have taken over the rest.
        is_there = np.isin(standing.home, list(living))
        state = np.where(state == "gone", np.where(is_there, "done", "lost"), state)
        shown = np.flatnonzero(tasks > 0)
        return patches_of(state[shown], standing.home[shown], tasks[shown], done[shown], shown)

    def _last_patches(self, homes: "list[int]") -> Patches:
        assert self.facts is not None
        starts = np.asarray(self.facts.subtree_starts, np.int64)
        count = len(starts) - 1
        tasks = starts[1:] - starts[:-1]
        before = np.concatenate([[0], np.cumsum(self._has_ended)])
        done = before[starts[1:]] - before[starts[:-1]]
        state = np.where(done == tasks, "done", "waiting")
        if 0 <= self._failed_position < int(starts[-1]):
            state = state.astype("<U8")
            state[int(np.searchsorted(starts, self._failed_position, side="right")) - 1] = "failed"
        home = np.full(count, -1)
        known = np.array(homes[:count], np.int64)
        home[: len(known)] = np.where(known > 0, known, -1)
        return patches_of(state, home, tasks, done, np.arange(count))
