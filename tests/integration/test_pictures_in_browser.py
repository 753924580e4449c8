"""Pages of runs in a real browser, on a laptop and on a phone: words, widths, and fingers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagsched import visualize
from dagsched.history import History
from dagsched.tables import Rows
from dagsched.trace import TraceBuilder, TraceEvent
from tests.browsing import browser, visit
from tests.unit.viz.builders import chain, history_of

MS = 1_000_000
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LAPTOP: dict[str, Any] = {}

WORDS = """() => {
  const found = [], draw = pen.fillText;
  pen.fillText = function (text, x, y) {
    const wide = this.measureText(text).width;
    found.push([text, x - {left: 0, center: wide / 2, right: wide}[this.textAlign], y, wide]);
    draw.call(this, text, x, y);
  };
  fit();
  delete pen.fillText;
  return found;
}"""
"""All that is written on the canvas: text, left, baseline, width."""

BROKEN = """() => [...document.querySelectorAll("td, th")].filter(one => {
  const range = document.createRange();
  range.selectNodeContents(one);
  const text = one.textContent, isShort = text.length < 10 && !text.includes(" ");
  return isShort && range.getClientRects().length > 1;
}).map(one => one.textContent)"""
"""Short words and figures of tables that are cut in two."""

FINGERS = """([kind, xs]) => canvas.dispatchEvent(new TouchEvent(kind, {touches: xs.map((x, id) =>
  new Touch({identifier: id, target: canvas, clientX: x, clientY: 200}))}))"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def lost() -> History:
    """Two nodes, one of which is lost; the run ends at a round time."""
    builder = TraceBuilder()
    for task in range(8):
        node, start = 2 + 3 * (task % 2), (1 + task * 4) * MS
        builder.add(node, node + 1, 1, np.array([task]), np.array([start, start + 3 * MS]))
    trace = builder.build(np.arange(8))
    came = Rows.of("transfers", np.array([[0, 1, 2, 5, 40, 1 * MS, 5 * MS, 6 * MS]]))
    kinds = ("node_lost", "recovering", "recovered", "stalled")
    events = [TraceEvent(20 * MS + at, kind, 5) for at, kind in enumerate(kinds)]
    events.append(TraceEvent(40 * MS - 1, "node_lost", 5))
    trace = replace(trace, transfers=came, events=events)
    return history_of(chain(8), trace, submitted_ns=0, ended_ns=40 * MS)


@pytest.mark.parametrize("screen", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_no_words_of_the_schedule_stand_on_others(
    chromium: Any, lost: History, screen: dict[str, Any], tmp_path: Path
) -> None:
    visualize(lost, tmp_path / "x.html", kind="gantt")
    with visit(chromium, f"file://{tmp_path}/x.html", **screen) as seen:
        words = seen.page.evaluate(WORDS)
        wide = seen.page.evaluate("document.documentElement.clientWidth")
        legend = seen.page.locator("#legend").inner_text()
    assert {"0 ns", "40 ms", "executor 3, 4 tasks", "1 object moved"} <= {one[0] for one in words}
    assert any(text.startswith("node lost 5, recovered 5") for text, *_ in words)
    for text, x, y, width in words:
        assert x >= 0, text
        assert x + width <= wide + 1, text
        over = [
            other for other, left, line, size in words
            if other != text and abs(line - y) < 9 and left < x + width and x < left + size
        ]  # fmt: skip
        assert not over, (text, over)
    assert "thin bars" in legend
    assert "to a file" not in legend  # nothing went to files


def test_fingers_zoom_and_move(chromium: Any, lost: History, tmp_path: Path) -> None:
    visualize(lost, tmp_path / "x.html", kind="gantt")
    with visit(chromium, f"file://{tmp_path}/x.html", **PHONE) as seen:

        def after(*gestures: tuple[str, list[float]]) -> list[float]:
            for gesture in gestures:
                seen.page.evaluate(FINGERS, list(gesture))
            return seen.page.evaluate("[from * data.unit, to * data.unit]")  # type: ignore[no-any-return]  # of the page

        left, wide = seen.page.evaluate("[LEFT, chartWidth()]")
        near, far = left + wide * 0.4, left + wide * 0.6
        assert after() == [0, 40 * MS]
        # The fingers go to the ends: what was between them fills the page.
        zoomed = after(("touchstart", [near, far]), ("touchmove", [left, left + wide]))
        assert zoomed == pytest.approx([16 * MS, 24 * MS])
        moved = after(("touchstart", [near]), ("touchmove", [near + wide / 4]))
        assert moved == pytest.approx([14 * MS, 22 * MS])


@pytest.mark.parametrize("kind", ["summary", "gantt"])
def test_a_page_is_read_without_moving_it_sideways(
    chromium: Any, lost: History, kind: str, tmp_path: Path
) -> None:
    names = replace(lost.names, functions=["n" * 300])
    history = replace(lost, names=names, trace=replace(lost.trace, names=names))
    visualize(history, tmp_path / "x.html", kind=kind, title="T" * 300)
    context = chromium.new_context(**PHONE)
    try:
        page = context.new_page()
        page.goto(f"file://{tmp_path}/x.html")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate(BROKEN) == []
    finally:
        context.close()
