"""Sees what goes on in one environment, and tells those who look.

Responsible for that the master's thread pays one append an event and nothing else, that nodes are
asked only while somebody looks and never more than twice a second, and for the thread that does the
sums. What is known stands in `scene`, what is told in `snapshot`.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dagsched.errors import DagschedError
from dagsched.master import events
from dagsched.viz.live.facts import RunFacts
from dagsched.viz.live.scene import Noted, Scene
from dagsched.viz.live.snapshot import INTERVAL_S, Since, Surroundings, snapshot

if TYPE_CHECKING:
    from dagsched.master.events import ClientEvent
    from dagsched.run import Run
    from dagsched.viz.live.watching import Watched

logger = logging.getLogger(__name__)

QUEUE_EVENTS_MAX = 50_000
"""Events that wait for the observer's thread; more are dropped, and counted."""

WANTED_FOR_S = 3.0
"""After somebody has looked, nodes are asked for so long."""

STANDING_S = 1.0
"""How often the master is asked at most how the subtrees of a run stand, .."""

STANDING_SHARE = 0.005
""".. and the share of its time that this may take."""


class Told(NamedTuple):
    """A snapshot as JSON, and what its reader has with it."""

    text: str
    since: Since
    mark: str
    """Changes with what there is to be seen; times and machines' figures don't count."""


class Observer:
    """Watches one environment.

    Args:
        watched: the environment.
    """

    def __init__(self, watched: "Watched") -> None:
        self._watched = watched
        self._queue: deque[Noted] = deque()
        self._begun: deque[RunFacts] = deque()
        self._lock = threading.RLock()  # guards what follows
        self._scene = Scene(time.monotonic())
        self._wanted_until_s = 0.0
        self._asked_at_s = 0.0
        self._standing_at_s = 0.0
        self._shown_at_s: dict[str | None, float] = {}  # when a run was looked at last, by its id
        self._told: dict[tuple[str | None, Since | None], Told] = {}  # of this tick
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.dropped_count = 0

    # --- called by the environment ----------------------------------------------------------------

    def put(self, event: "ClientEvent") -> None:
        """Take an event; never waits. In the master's thread."""
        if len(self._queue) < QUEUE_EVENTS_MAX:
            self._queue.append((time.monotonic(), event))
        else:
            self.dropped_count += 1

    def begin(self, run: "Run") -> None:
        """A run is there, before any event of it; once more does no harm."""
        self._begun.append(RunFacts.of(run))

    def catch_up(self, runs: "Sequence[Run]") -> None:
        """Take in what has happened to runs so far. In the master's thread, before the first event.

        That only makes lists; the sums are done later, by the thread.
        """
        for run in runs:
            self.begin(run)
            record, number = run.record, run.number
            since_s = record.submitted_s
            self._queue.append(
                (since_s, events.RunProgressed(number, record.done_count, record.total))
            )
            for piece in run.traces.pieces:
                self._queue.append((since_s, events.TracesArrived(number, *piece)))  # type: ignore[arg-type]  # pieces are the frames of such an event
            self._queue.extend((since_s, event) for event in record.events)
            if run.end is not None and record.ended_s is not None:
                self._queue.append((record.ended_s, run.end))

    def open(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="dagsched-observer", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    # --- called by those who look -----------------------------------------------------------------

    def told(self, run_id: str | None = None, since: Since | None = None) -> Told:
        """The snapshot; counts as somebody who looks.

        What nodes say of themselves is at most half a second old.

        Args:
            run_id: the run to show; None: the newest.
            since: what the reader has.
        """
        now = time.monotonic()
        is_first = now > self._wanted_until_s
        self._wanted_until_s = now + WANTED_FOR_S
        with self._lock:
            self._shown_at_s = {shown: when for shown, when in self._shown_at_s.items()
                                if now - when < WANTED_FOR_S} | {run_id: now}  # fmt: skip
        if is_first:
            self._look()
        with self._lock:
            if since is None:
                self._take()  # who asks once wants to know what is so now
            key = (run_id, since)
            known = self._told.get(key)
            if known is None:
                known = self._told[key] = self._tell(run_id, since)
            return known

    def with_scene(self, function: "Callable[[Scene, Surroundings, float], str]") -> str:
        """Call a function with what is known, which nobody changes meanwhile; counts as a look."""
        self.told()
        with self._lock:
            self._take()
            return function(self._scene, self._surroundings(), time.monotonic())

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            try:
                self._look()
            except DagschedError as error:
                logger.debug("the environment can't be observed now: %s", error)
            except Exception:
                # A page must not end with one event that wasn't understood.
                logger.exception("something that happened could not be observed")

    def _look(self) -> None:
        """Take in what has happened; ask nodes what they do, if somebody wants to know."""
        now = time.monotonic()
        if now < self._wanted_until_s and now - self._asked_at_s > INTERVAL_S * 0.9:
            self._asked_at_s = now
            self._ask(now)
        with self._lock:
            self._take()

    def _take(self) -> None:
        noted = [self._queue.popleft() for _ in range(len(self._queue))]
        # Events of a run come after its beginning, which was noted before it was submitted.
        while self._begun:
            self._scene.begin(self._begun.popleft())
        if noted or self._told:
            self._scene.take(noted, time.monotonic())
            self._told.clear()

    def _ask(self, now: float) -> None:
        """What the master knows comes at once; a node that doesn't answer takes a second."""
        looked_at = [run for run in map(self._scene.shown, list(self._shown_at_s)) if run]
        runs = {run.number: run for run in looked_at if not run.is_over}
        if now < self._standing_at_s:
            runs = {number: run for number, run in runs.items() if not run.has_standing}
        found = {number: self._watched.ask_standing(number) for number in runs or (-1,)}
        if runs:
            took_s = sum(took for _, _, took in found.values())
            self._standing_at_s = now + max(STANDING_S, took_s / STANDING_SHARE)
        with self._lock:
            self._take()
            for number, (standing, silences, _) in found.items():
                self._scene.silences = silences
                if standing is not None and not runs[number].is_over:
                    runs[number].take_standing(standing)
        answer = self._watched.ask_stats()
        with self._lock:
            self._take()
            if answer is not None:
                self._scene.take_stats(*answer, time.monotonic())

    # --- inside -----------------------------------------------------------------------------------

    def _surroundings(self) -> Surroundings:
        return self._watched.surroundings()

    def _tell(self, run_id: str | None, since: Since | None) -> Told:
        now = time.monotonic()
        whole = snapshot(self._scene, self._surroundings(), now, run_id=run_id, since=since)
        stream = whole["stream"]
        newest_bin = stream["first_bin"] + stream["bins"] - 1 + self._scene.origin_bin
        whole["environment"]["counters"]["dropped_events"] = self.dropped_count
        return Told(json.dumps(whole), Since(self._scene.tick, newest_bin), mark_of(whole))


def mark_of(whole: dict[str, Any]) -> str:
    """A text that is the same as long as there is nothing new to be seen in a snapshot."""
    nodes = [
        {name: value for name, value in node.items()
         if name not in ("cpu_load_1m", "memory_used_bytes", "executors")}
        | {"executors": [
            {name: value for name, value in one.items() if name != "rss_bytes"}
            for one in node["executors"]
        ]}
        for node in whole["nodes"]
    ]  # fmt: skip
    is_running = any(run["state"] == "running" for run in whole["runs"])
    parts: Sequence[object] = (
        whole["rate"], sum(whole["rates"]), whole["shown"], whole["failures"], nodes,
        whole["environment"]["store"], whole["environment"]["counters"],
        [(run["run_id"], run["state"], run["done_count"]) for run in whole["runs"]],
        whole["time_s"] if is_running else 0,
    )  # fmt: skip
    return json.dumps(parts)
