"""Runs of which not all is known, and texts of users that would break what they stand in."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from dagsched import visualize
from dagsched.history import History
from dagsched.tables import Rows
from dagsched.trace import TraceBuilder, TraceEvent
from dagsched.viz.drawing import VIEWS
from tests.unit.viz.builders import GraphBuilder, chain, history_of, many

ODD = "a<b & \"c\" 'd' é中🎉 \0\x1b[31m\x85\u202e\ud800\ufffe <!--<script> </script> \r\n"
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff\ufffe]")


def seen_once(count: int = 3, **more: Any) -> History:
    """A chain of which only the first task's time and place are known."""
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0]), np.array([1_000, 2_000]))
    facts = {"submitted_ns": 0, "ended_ns": 9_000, **more}
    return history_of(chain(count), builder.build(np.arange(count)), **facts)


def renamed(history: History, name: str) -> History:
    """The same with another name for each function, and with a failure that says it, too."""
    names = replace(history.names, functions=[name for _ in history.names.functions])
    event = TraceEvent(1_500, "retried", 2, 3, 0, 1, text=name)
    trace = replace(history.trace, names=names, events=[event])
    return replace(history, names=names, trace=trace)


class Scripts(HTMLParser):
    """The scripts of a page, as a browser would cut them."""

    def __init__(self) -> None:
        super().__init__()
        self.starts = self.ends = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.starts += tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.ends += tag == "script"


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "suffix"), [(kind, suffix) for kind, view in VIEWS.items() for suffix in view.suffixes]
)
def test_any_name_can_be_drawn(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    visualize(renamed(seen_once(), ODD), path, kind=kind, title=ODD)
    if suffix in (".png", ".json.gz"):
        assert path.read_bytes()
        return
    text = path.read_bytes().decode()  # newlines as they are
    assert UNSEEN.search(text) is None
    if suffix == ".svg":
        ET.fromstring(text)


@pytest.mark.parametrize("kind", ["gantt", "dag"])
def test_a_name_does_not_end_the_script_that_it_stands_in(kind: str, tmp_path: Path) -> None:
    history = many(3_000) if kind == "dag" else seen_once()
    pages = []
    for name in ("f", ODD):
        visualize(renamed(history, name), tmp_path / "x.html", kind=kind)
        pages.append((tmp_path / "x.html").read_text())
    # Within a script "<!--<script" hides its end from browsers, though not from Python's parser.
    assert pages[1].count("<!--") == pages[0].count("<!--")
    found = Scripts()
    found.feed(pages[1])
    assert found.starts == found.ends == 2


def test_long_names_and_titles_are_cut_where_all_else_would_give_way() -> None:
    history = renamed(seen_once(), "n" * 300)
    for kind in ("dag", "gantt"):
        plain = visualize(history, kind=kind)._repr_html_()
        drawn = visualize(history, kind=kind, title="T" * 900)._repr_html_()
        assert f"<title>{'T' * 900}</title>" in drawn
        assert re.search(r'class="title">T+\u2026T+</text>', drawn)
        assert int(_first(drawn, "width")) <= max(1_300, int(_first(plain, "width")))
    assert max(map(len, _summary(history).splitlines())) < 300  # an error has 120 of them


def _first(svg: str, name: str) -> str:
    found = re.search(rf'{name}="(\d+)"', svg)
    assert found is not None
    return found[1]


# --- what isn't known -----------------------------------------------------------------------------


def test_a_run_of_constants_is_not_said_to_be_not_run() -> None:
    history = history_of(GraphBuilder().tasks(), TraceBuilder().build(np.arange(0)))
    assert ">0 tasks, 0 edges</text>" in visualize(history).svg
    assert "1 task, 0 edges, not run" in visualize(history_of(chain(1))).svg
    for kind in VIEWS:
        assert visualize(history, kind=kind)._repr_html_()


def test_all_tasks_of_a_run_that_is_done_have_run() -> None:
    history = seen_once()
    assert "done: 3 tasks run (when and where isn't known of 2) in" in _summary(history)
    gantt = visualize(history, kind="gantt")
    assert "3 tasks run (when and where isn&#x27;t known of 2), " in gantt._repr_html_()
    dag = visualize(history)
    assert "not run" not in dag.svg
    assert ">run, not known where</text>" in dag.svg
    assert dag.svg.count("\ndone") == 3
    assert "dasharray" not in dag.svg.partition("</style>")[2]


def test_tasks_of_a_run_that_failed_may_not_have_run() -> None:
    history = seen_once(state="failed")
    assert "failed: 1 of 3 tasks run in" in _summary(history)
    assert "2 not run" in visualize(history).svg
    assert "not known where" not in visualize(history).svg


def test_the_boxes_of_a_run_that_is_done_have_run(tmp_path: Path) -> None:
    history = many(3_000)
    trace = TraceBuilder().build(np.arange(3_000))
    history = replace(history, trace=replace(trace, names=history.names))
    for state, is_done in (("done", "true"), ("failed", "false")):
        visualize(replace(history, state=state), tmp_path / "x.html")
        page = (tmp_path / "x.html").read_text()
        assert f'"done":{is_done}' in page


def test_the_summary_says_that_graphs_were_returned() -> None:
    history = seen_once()
    event = TraceEvent(1_500, "expanded", task=1)
    history = replace(history, trace=replace(history.trace, events=[event]))
    assert "1 task returned a graph: what ran in it is in no number here" in _summary(history)
    assert "returned a graph: what" not in _summary(seen_once())


def test_nothing_is_said_of_how_long_a_value_took_that_nobody_asked_for() -> None:
    history = seen_once()
    row = [-1, 1, 5, 2, 40, -1, 1_800, 1_800]
    transfers = Rows.of("transfers", np.array([row]))
    text = _summary(replace(history, trace=replace(history.trace, transfers=transfers)))
    assert "1 value, 40 bytes, came from node 5 to node 2 in 1 object\n" in text
    assert "Slowest transfers" not in text


def test_a_path_of_one_task_waits_for_none() -> None:
    assert "a task that waits for none took 1 us: 11.1%" in _summary(seen_once(1))
    assert "1 level, the widest of 1 task" in _summary(seen_once(1))


def test_words_of_events_at_a_time_share_a_place() -> None:
    events = [TraceEvent(at, "node_lost", at // 1_000) for at in (2_000, 2_010, 8_990)]
    history = seen_once()
    svg = visualize(replace(history, trace=replace(history.trace, events=events)), kind="gantt").svg
    assert svg.count('class="event"') == 3
    assert ">node lost 2, node lost 2</text>" in svg
    # There is no room to the right of the last.
    assert re.search(r'text-anchor="end"[^>]*>node lost 8</text>', svg)


def _summary(history: History) -> str:
    return visualize(history, kind="summary").text


# --- what makes no sense --------------------------------------------------------------------------


def test_errors_name_what_is_wrong() -> None:
    history = seen_once()
    with pytest.raises(
        ValueError, match=r"kind is one of dag, gantt, trace, summary, not \['dag'\]"
    ):
        visualize(history, kind=["dag"])  # type: ignore[call-overload]  # wrong on purpose
    with pytest.raises(TypeError, match="title is a text, not 5"):
        visualize(history, title=5)  # type: ignore[call-overload]  # wrong on purpose
    for give in (history.trace.table, history.trace.to_arrow, history.trace.to_pandas):
        with pytest.raises(KeyError, match="no table 'nope': there are tasks, bundles, transfers"):
            give("nope")
