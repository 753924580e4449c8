"""What went wrong in an environment, as records of bounded length, newest first. Pure."""

from collections import deque
from typing import Any

from dagsched.master.events import RunEnded, RunHappened, RunStalled
from dagsched.master.explaining import words
from dagsched.protocol.asking import failure_in_words
from dagsched.viz.live.seen import SeenRun

TROUBLES_MAX = 100
TEXT_CHARS_MAX = 2_000
TRACEBACK_CHARS_MAX = 16_000

_TOLD = {"retried": "retried", "node_lost": "node_lost", "recovering": "recovering"}
"""Kinds of `RunHappened` that belong here, and what the snapshot calls them."""


class Troubles:
    """The last failures, retries, losses and stalls."""

    def __init__(self) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=TROUBLES_MAX)

    def rows(self, wall_offset_s: float) -> list[dict[str, Any]]:
        """As the snapshot has them, newest first."""
        return [row | {"time_s": row["time_s"] + wall_offset_s} for row in reversed(self._rows)]

    def happened(self, run: SeenRun, event: RunHappened) -> None:
        """An attempt that came to nothing, or a loss that a run felt."""
        kind = _TOLD.get(event.kind)
        if kind is None:
            return
        name, colon, text = event.text.partition(": ")
        has_type = kind == "retried" and colon and " " not in name
        self._put(
            run, event.time_s, kind, position=event.position, node=event.node,
            executor=event.executor, attempt=event.attempt,
            type=name if has_type else "", text=text if has_type else event.text,
        )  # fmt: skip

    def stalled(self, run: SeenRun, event: RunStalled) -> None:
        """Nothing moves in a run."""
        facts, text = run.facts, "the master can't tell why"
        if event.found is not None and facts is not None and event.found.run == run.number:
            text = words(event.found, lambda position: facts.key(position) or f"task {position}")
        since_s = event.time_s - event.since_s
        text = f"nothing has moved for {since_s:.1f} s: {text}"
        self._put(run, event.time_s, "stalled", text=text)

    def ended(self, run: SeenRun, event: RunEnded, when: float) -> None:
        """A run that did not end well."""
        failure = event.failure
        if event.state == "done":
            return
        if failure is None:
            texts = {"timed_out": "the run took longer than its timeout"}
            text = texts.get(event.state, f"the run was {event.state}")
            self._put(run, when, event.state, final=True, text=text)
            return
        text = failure.text if failure.type_name else failure_in_words(failure)
        self._put(
            run, when, "failed", final=True, position=failure.position, node=event.node or 0,
            executor=failure.executor, attempt=failure.attempt,
            type=failure.type_name or failure.kind, text=text, traceback=failure.traceback,
        )  # fmt: skip

    def lost(self, node: int, reason: str, when: float) -> None:
        """A node is gone, whether a run needed it or not."""
        self._rows.append(_row(when, "node_lost", node=node, text=reason))

    def _put(
        self, run: SeenRun, when: float, kind: str, *, position: int = -1, **values: Any
    ) -> None:
        facts = run.facts
        key = function = ""
        if facts is not None:
            key, function = facts.key(position), facts.function(position)
        row = _row(when, kind, run_id=run.run_id, key=key, function=function, **values)
        self._rows.append(row)


def _row(when: float, kind: str, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "time_s": when, "run_id": "", "key": "", "function": "", "node": 0, "executor": 0,
        "attempt": 0, "kind": kind, "final": False, "type": "", "text": "", "traceback": "",
    } | values  # fmt: skip
    row["key"] = shortened(row["key"], TEXT_CHARS_MAX)
    row["text"] = shortened(row["text"], TEXT_CHARS_MAX)
    # Of a traceback the end says most.
    trace = row["traceback"]
    if len(trace) > TRACEBACK_CHARS_MAX:
        trace = "(...)\n" + trace[-TRACEBACK_CHARS_MAX:]
    row["traceback"] = trace
    return row


def shortened(text: str, most: int) -> str:
    """The beginning of a text, of at most so many characters."""
    return text if len(text) <= most else text[: most - 5] + "(...)"
