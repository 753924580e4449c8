"""What is answered to single questions over HTTP: snapshot, metrics, why, keys, logs.

Called in threads, one a question, for some wait for the environment. A question that can't be
answered gets a sentence that says what was wrong and what to do.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from dagsched.errors import DagschedError, GraphError
from dagsched.viz.live.metrics import CONTENT_TYPE, exposition
from dagsched.viz.live.observer import Observer
from dagsched.viz.live.searching import keys_like
from dagsched.viz.live.troubles import TEXT_CHARS_MAX, shortened

if TYPE_CHECKING:
    from dagsched.run import Run
    from dagsched.viz.live.watching import Watched

LINES_MAX = 2_000
LINE_CHARS_MAX = 2_000
LOG_BYTES_MAX = 1 << 20
STORY_LINES_MAX = 500
KEYS_MAX = 20

Query = dict[str, str]


class Refusal(Exception):
    """A question that has no answer.

    Args:
        status: of HTTP.
        text: what was wrong, and what to do.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def _answered(method: "Callable[[Replies, Query], Response]") -> "Callable[..., Response]":
    """A method whose refusals become answers."""

    def answer(self: "Replies", query: Query) -> Response:
        try:
            return method(self, query)
        except Refusal as refusal:
            return JSONResponse({"error": str(refusal)}, refusal.status)
        except DagschedError as error:
            return JSONResponse({"error": shortened(str(error), TEXT_CHARS_MAX)}, 503)

    return answer


class Replies:
    """Answers for one environment.

    Args:
        observer: of the environment.
        watched: the environment.
    """

    def __init__(self, observer: Observer, watched: "Watched") -> None:
        self._observer = observer
        self._watched = watched

    @_answered
    def snapshot(self, query: Query) -> Response:
        """``?run=ID``: the snapshot, whole."""
        told = self._observer.told(query.get("run"))
        return Response(told.text, media_type="application/json")

    @_answered
    def metrics(self, _query: Query) -> Response:
        """All numbers for Prometheus."""
        text = self._observer.with_scene(exposition)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    @_answered
    def why(self, query: Query) -> Response:
        """``?run=ID&key=KEY``: why a task is where it is, and its story."""
        run = self._run(query)
        key = query.get("key", "")
        if not key:
            raise Refusal(400, "name a task: ?run=ID&key=KEY")
        try:
            text, story = run.explain(key), run.story(key)
        except GraphError as error:
            raise Refusal(404, shortened(str(error), TEXT_CHARS_MAX)) from None
        lines = [shortened(line, TEXT_CHARS_MAX) for line in story[-STORY_LINES_MAX:]]
        return JSONResponse({"text": shortened(text, 4 * TEXT_CHARS_MAX), "story": lines})

    @_answered
    def keys(self, query: Query) -> Response:
        """``?run=ID&like=TEXT``: keys of tasks that look like a text."""
        found = keys_like(self._run(query).graph, query.get("like", ""), KEYS_MAX)
        return JSONResponse({"keys": found})

    @_answered
    def logs(self, query: Query) -> Response:
        """``?node=N&executor=E&lines=200``: the end of what a process has printed."""
        node, executor = _number(query, "node"), _number(query, "executor", 0)
        count = min(_number(query, "lines", 200), LINES_MAX)
        known = {one.brokerid: one for one, _ in self._watched.surroundings().nodes}
        if node not in known:
            raise Refusal(404, f"there is no node {node}; there are {sorted(known)}")
        if executor and executor not in known[node].executorids:
            has = list(known[node].executorids)
            raise Refusal(404, f"node {node} has no executor {executor}; it has {has}")
        name = f"executor-{executor}.log" if executor else f"broker-{node}.log"
        return JSONResponse({"lines": last_lines(self._watched.directory / name, count)})

    def _run(self, query: Query) -> "Run":
        run_id = query.get("run", "")
        if not re.fullmatch("[0-9a-f]{8}-[0-9]+", run_id):
            raise Refusal(400, "name a run: ?run=ID, an id as the list of runs has it")
        for run in self._watched.runs():
            if run.run_id == run_id:
                return run
        raise Refusal(
            404,
            f"run {run_id} is not held by the program any more (or never was): keep what submit() "
            "returned, to ask about its tasks after its end",
        )


def _number(query: Query, name: str, default: int | None = None) -> int:
    text = query.get(name, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refusal(400, f"{name} must be a number: ?{name}=2")
    return int(text)


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log and, where it has just begun anew, of the one before."""
    data = b""
    for part in (path.with_name(path.name + ".old"), path):
        try:
            with open(part, "rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - LOG_BYTES_MAX))
                data += file.read(LOG_BYTES_MAX)
        except OSError:
            continue  # nothing was printed yet
    lines = data.decode(errors="replace").splitlines()[-count:] if count else []
    return [shortened(line, LINE_CHARS_MAX) for line in lines]
