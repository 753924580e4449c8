"""Measured transfers and spills in pictures: where and when they were, in every format."""

import doctest
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import dagsched.viz.moves
from dagsched import visualize
from dagsched.history import History
from dagsched.historyfile import load_history, save_history
from dagsched.tables import Rows
from dagsched.trace import TraceBuilder
from dagsched.viz.gantt import BARS_MAX, CHART_WIDTH, FILES, LABEL_WIDTH, MARGIN, draw_gantt
from dagsched.viz.moves import TRANSFER, FileLine, Moves, Route, about, arrivals_ns, make_moves
from dagsched.viz.summary import summarize
from tests.unit.viz.builders import GraphBuilder, history_of
from tests.unit.viz.test_run_pictures import has_no_reference, page_data, shown_by_browser

SVG = "{http://www.w3.org/2000/svg}"
MS = 1_000_000


@pytest.fixture
def moved() -> History:
    """Two values made on node 2, used on node 5, one of them after it lay in a file."""
    graph = GraphBuilder()
    first, second = graph.call("make"), graph.call("make")
    graph.call("use", first)
    graph.call("total", second, 2)
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0, 1]), np.array([10, 20, 40]) * MS)
    builder.add(5, 6, 1, np.array([2]), np.array([60, 70]) * MS)
    builder.add(5, 7, 1, np.array([3]), np.array([90, 100]) * MS)
    transfers = [
        [0, 1, 2, 5, 3_000_000, 5 * MS, 35 * MS, 50 * MS],  # wanted before it was made
        [1, 3, 2, 5, 500, 45 * MS, 55 * MS, 55 * MS],
        [-1, 1, 2, 5, 80, -1, 30 * MS, 30 * MS],
    ]
    spills = [
        [0, 1, 2, 0, 3_000_000, 22 * MS, 32 * MS],
        [1, 1, 5, 2, 500, 90 * MS, 90 * MS],
    ]
    trace = replace(
        builder.build(np.arange(4)),
        transfers=Rows.of("transfers", np.array(transfers)),
        spills=Rows.of("spills", np.array(spills)),
    )
    return history_of(graph.tasks(), trace, submitted_ns=0, ended_ns=110 * MS)


def moves_of(history: History) -> Moves:
    return make_moves(history, 0)


def test_examples() -> None:
    assert doctest.testmod(dagsched.viz.moves).failed == 0


def test_a_move_begins_when_it_was_wanted_and_there(moved: History) -> None:
    moves = moves_of(moved)
    rows = list(
        zip(
            *(column.tolist() for column in (moves.node, moves.kind, moves.task, moves.source)),
            strict=True,
        )
    )
    assert rows == [
        (2, 0, 0, 2), (5, TRANSFER, 0, 2), (5, TRANSFER, -1, 2), (5, TRANSFER, 1, 2), (5, 2, 1, 5)
    ]  # fmt: skip
    assert (moves.begin_ns // MS).tolist() == [22, 20, 30, 45, 90]
    assert (moves.start_ns // MS).tolist() == [22, 35, 30, 55, 90]
    assert (moves.end_ns // MS).tolist() == [32, 50, 30, 55, 90]
    assert (moves.of_node(5), moves.of_node(3)) == (slice(1, 5), slice(1, 1))


def test_stamps_of_another_clock_move_nothing_before_its_time(moved: History) -> None:
    transfers = dict(moved.trace.transfers.columns)
    transfers["asked_ns"] = transfers["asked_ns"] + 10**15
    trace = replace(moved.trace, transfers=Rows(transfers))
    moves = moves_of(replace(moved, trace=trace))
    of_tasks = (moves.kind == TRANSFER) & (moves.task >= 0)
    assert (moves.begin_ns <= moves.start_ns)[of_tasks].all()


def test_what_is_told_of_a_move(moved: History) -> None:
    moves = moves_of(moved)
    assert about(moved, moves, 0) == [
        "make-0", "moved to a file of node 2: its memory was above its mark",
        "2.86 MiB at 22 ms", "took 10 ms, 286 MiB/s",
    ]  # fmt: skip
    assert about(moved, moves, 1) == [
        "make-0", "from node 2 to node 5", "2.86 MiB in 30 ms, 95.4 MiB/s",
        "came from 35 ms on, 15 ms after it was wanted",
    ]  # fmt: skip
    assert about(moved, moves, 3)[0] == "make-1 and 2 values more"
    assert about(moved, moves, 4)[1:] == ["read from a file of node 5", "500 bytes at 90 ms"]


def test_thin_bars_stand_at_their_time_above_the_lanes_of_their_node(moved: History) -> None:
    root = ET.fromstring(draw_gantt(moved, "x"))
    groups = [group for group in root.iter(f"{SVG}g") if group.get("class") == "move"]
    titles = [group.findtext(f"{SVG}title", "") for group in groups]
    assert [title.partition("\n")[0] for title in titles] == [
        "make-0", "make-0", "a value without a task in the picture", "make-1 and 2 values more",
        "make-1",
    ]  # fmt: skip
    rects = [group.find(f"{SVG}rect") for group in groups]
    lefts = [float(rect.get("x", "")) for rect in rects if rect is not None]
    scale = CHART_WIDTH / 110
    expected = [MARGIN + LABEL_WIDTH + ms * scale for ms in (22, 35, 30, 55, 90)]
    assert lefts == pytest.approx(expected, abs=0.01)
    fills = [rect.get("fill") for rect in rects if rect is not None]
    assert fills[0] == fills[4] == FILES
    assert fills[1] == fills[2] == fills[3] not in (FILES, None)
    heights = [float(rect.get("y", "")) for rect in rects if rect is not None]
    assert heights[0] < heights[1] == heights[4]
    lanes = [float(r.get("y", "")) for g in root.iter(f"{SVG}g") if g.get("class") == "bar"
             for r in g.iter(f"{SVG}rect")]  # fmt: skip
    assert heights[0] < min(lanes)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "3 objects came, 1 with files" in texts


def test_measured_transfers_take_the_place_of_lines_from_the_graph(moved: History) -> None:
    assert draw_gantt(moved, "x").count('class="value"') == 2
    nothing = replace(
        moved,
        trace=replace(moved.trace, transfers=Rows.none("transfers"), spills=Rows.none("spills")),
    )
    svg = draw_gantt(nothing, "x")
    assert svg.count('class="value"') == 2
    assert 'class="move"' not in svg
    assert "thin bars" not in svg


def test_more_moves_than_can_be_told_apart_are_columns(moved: History) -> None:
    count = BARS_MAX + 1
    end = np.arange(count) * 110 * MS // (2 * count)
    rows = np.stack([np.zeros(count), np.ones(count), np.full(count, 2), np.full(count, 5),
                     np.full(count, 9), np.full(count, -1), end, end], axis=1)  # fmt: skip
    trace = replace(
        moved.trace, transfers=Rows.of("transfers", rows, every=4), spills=Rows.none("spills")
    )
    svg = draw_gantt(replace(moved, trace=trace), "x")
    ET.fromstring(svg)
    assert 'class="move"' not in svg
    came = [
        int(number.replace(",", "")) for number in re.findall(r"<title>([\d,]+) objects? came", svg)
    ]
    assert sum(came) == count
    assert len(came) == pytest.approx(CHART_WIDTH / 2, abs=2)
    assert "1 of 4 transfers is kept" in svg


def test_the_page_has_them_too(moved: History, tmp_path: Path) -> None:
    visualize(moved, tmp_path / "x.html", kind="gantt")
    page = (tmp_path / "x.html").read_text()
    assert has_no_reference(page)
    data, moves = page_data(page), moves_of(moved)
    columns = data["columns"]
    begin = np.cumsum(columns["moveBegin"]) * data["unit"]
    assert begin.tolist() == moves.begin_ns.tolist()
    assert (begin + columns["moveWait"]).tolist() == moves.start_ns.tolist()
    assert columns["moveLength"].tolist() == (moves.end_ns - moves.start_ns).tolist()
    assert columns["moveBytes"].tolist() == moves.size_bytes.tolist()
    assert [(one["node"], one["first"], one["end"]) for one in data["moves"]] == [
        (2, 0, 1), (5, 1, 5)
    ]  # fmt: skip
    assert "to a file, or read there" in shown_by_browser(tmp_path / "x.html", "make-0")


def test_the_trace_has_them_as_asynchronous_slices(moved: History, tmp_path: Path) -> None:
    visualize(moved, tmp_path / "x.json", kind="trace")
    events = json.loads((tmp_path / "x.json").read_text())["traceEvents"]
    begins = [event for event in events if event["ph"] == "b"]
    ends = {event["id2"]["local"]: event for event in events if event["ph"] == "e"}
    assert [event["cat"] for event in begins] == [
        "file moved", "transfer", "transfer", "transfer", "file read"
    ]  # fmt: skip
    assert [event["ts"] for event in begins] == [22_000, 35_000, 30_000, 55_000, 90_000]
    assert [ends[event["id2"]["local"]]["ts"] for event in begins] == [
        32_000,
        50_000,
        30_000,
        55_000,
        90_000,
    ]
    assert begins[1]["args"] == {
        "key": "make-0", "values": 1, "bytes": 3_000_000, "from node": 2, "wanted for us": 15_000
    }  # fmt: skip


def test_the_summary_counts_them(moved: History, tmp_path: Path) -> None:
    course = summarize(moved).course
    assert course is not None
    assert course.routes == [Route(2, 5, 3, 5, 3_000_580, 40 * MS)]
    assert course.files == [
        FileLine(2, "moved", 1, 3_000_000, 10 * MS), FileLine(5, "read", 1, 500, 0)
    ]  # fmt: skip
    visualize(moved, tmp_path / "x.txt", kind="summary")
    text = (tmp_path / "x.txt").read_text()
    assert "5 values, 2.86 MiB, came from node 2 to node 5 in 3 objects" in text
    assert "node 2: 1 object, 2.86 MiB, moved to files in 10 ms" in text
    slow = text.partition("Slowest transfers")[2].splitlines()[4:6]
    assert [line.split()[:4] for line in slow[1:]] == [["make-0", "2", "5", "2.86"]]
    visualize(moved, tmp_path / "x.json", kind="summary")
    told = json.loads((tmp_path / "x.json").read_text())
    assert told["transfers"][0]["size_bytes"] == 3_000_580
    assert told["kept"] == {"bundles": 1, "transfers": 1, "spills": 1}


def test_of_a_sample_the_summary_says_so_and_counts_as_if_it_were_all(moved: History) -> None:
    transfers = replace(moved.trace.transfers, every=8)
    sampled = replace(moved, trace=replace(moved.trace, transfers=transfers))
    course = summarize(sampled).course
    assert course is not None
    assert course.routes == [Route(2, 5, 24, 40, 24_004_640, 320 * MS)]
    text = visualize(sampled, kind="summary")._repr_html_()
    assert "1 of 8 transfers is kept" in text


def test_waiting_for_a_transfer_is_a_cause_of_its_own(moved: History) -> None:
    """Task 2 is ready at 20 ms, its input comes at 50, it begins at 60; task 3 at 70, 55, 90."""
    assert (arrivals_ns(moved, 0) // MS).tolist() == [-1, -1, 50, 55]
    course = summarize(moved).course
    assert course is not None
    idle = course.idle
    # 20 .. 50 task 2 waits for its input, 50 .. 60 no more; 10 .. 20 task 1 and 70 .. 90 task 3.
    assert idle.moving_ns == 30 * MS
    assert idle.waiting_ns == 40 * MS
    assert sum(idle) + course.busy_ns == 3 * 110 * MS
    nothing = replace(moved, trace=replace(moved.trace, transfers=Rows.none("transfers")))
    course = summarize(nothing).course
    assert course is not None
    assert (course.idle.moving_ns, course.idle.waiting_ns) == (0, 70 * MS)


def test_all_of_it_is_kept_in_files(moved: History, tmp_path: Path) -> None:
    loaded = load_history(save_history(moved, tmp_path / "x.dagsched"))
    assert draw_gantt(loaded, "x") == draw_gantt(moved, "x")
