"""Pictures of runs: places and times in every format are those of the trace, task by task."""

import base64
import doctest
import gzip
import json
import re
import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import dagsched.viz.gantt
import dagsched.viz.lanes
import dagsched.viz.perfetto
from dagsched import visualize
from dagsched.columns import unpack
from dagsched.history import History
from dagsched.historyfile import load_history, save_history
from dagsched.trace import TraceBuilder, TraceEvent
from dagsched.viz.gantt import BARS_MAX, CHART_WIDTH, LABEL_WIDTH, MARGIN, draw_gantt
from dagsched.viz.lanes import make_lanes, ready_ns
from dagsched.viz.perfetto import crossings
from dagsched.viz.summary import summarize
from tests.unit.viz.builders import GraphBuilder, chain, history_of, many, run_in_turns, straight

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def turns() -> History:
    """The acceptance tree on three executors of two nodes, which take its tasks in turns."""
    tasks = straight(3)
    trace = run_in_turns(tasks, {2: [3, 4], 5: [6]})
    return history_of(tasks, trace, submitted_ns=0, ended_ns=200_000)


@pytest.fixture
def troubled() -> History:
    """Four tasks: one ran twice, one failed, one did not run; a node was lost."""
    graph = GraphBuilder()
    first = graph.call("load")
    graph.call("total", graph.call("load"), first)
    graph.call("late", 2)
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0]), np.array([1_000, 2_000]))
    builder.add(5, 6, 2, np.array([0]), np.array([5_000, 6_000]))
    builder.add(5, 6, 1, np.array([1, 2]), np.array([6_500, 7_000, 9_000]))
    trace = builder.build(np.arange(4), failed=[2])
    trace = replace(
        trace,
        repeats=builder.repeats(np.arange(4)),
        events=[
            TraceEvent(3_000, "node_lost", 2, text="it died"),
            TraceEvent(6_200, "retried", 5, 6, 1, 1, text="ValueError: <no>"),
        ],
    )
    return history_of(graph.tasks(), trace, state="failed", submitted_ns=0, ended_ns=10_000)


def page_data(page: str) -> dict[str, Any]:
    """What a page is given, with its columns unpacked."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    for name, column in data["columns"].items():
        packed = base64.b64decode(column["packed"])
        data["columns"][name] = unpack(column["kind"], column["items"], packed).astype(np.int64)
    return data


def has_no_reference(page: str) -> bool:
    rest = page.replace("http://www.w3.org/2000/svg", "")
    return all(word not in rest for word in ("http:", "https:", "src=", "href=", "@import"))


# --- lanes ----------------------------------------------------------------------------------------


def test_lanes_hold_every_execution_once_in_its_executor_and_order(turns: History) -> None:
    lanes, trace = make_lanes(turns), turns.trace
    assert lanes.places == [(2, 3), (2, 4), (5, 6)]
    assert sorted(lanes.task.tolist()) == list(range(turns.task_count))
    lane_of = lanes.lane_of()
    for place, task in enumerate(lanes.task.tolist()):
        assert lanes.places[lane_of[place]] == (trace.node[task], trace.executor[task])
        assert lanes.start_ns[place] == trace.start_ns[task]
        assert lanes.end_ns[place] == trace.end_ns[task]
    for lane in range(3):
        starts = lanes.start_ns[lanes.bounds[lane] : lanes.bounds[lane + 1]]
        assert (np.diff(starts) > 0).all()


def test_an_execution_that_was_repeated_has_a_place_too(troubled: History) -> None:
    lanes = make_lanes(troubled)
    assert lanes.places == [(2, 3), (5, 6)]
    assert lanes.task.tolist() == [0, 0, 1, 2]
    assert lanes.is_last.tolist() == [False, True, True, True]
    assert lanes.bounds.tolist() == [0, 1, 4]
    assert lanes.start_ns.tolist() == [1_000, 5_000, 6_500, 7_000]


def test_executors_that_had_nothing_to_do_have_a_lane(turns: History) -> None:
    stats = {"brokers": [{"id": 9, "host": "far"}], "executors": [{"node": 9, "id": 10}]}
    lanes = make_lanes(replace(turns, stats=stats))
    assert lanes.places[-1] == (9, 10)
    assert lanes.bounds[-1] == lanes.bounds[-2]


def test_a_task_is_ready_when_its_last_input_has_ended(troubled: History) -> None:
    assert ready_ns(troubled).tolist() == [-1, -1, 7_000, 9_000]
    graph = GraphBuilder()
    graph.call("use", graph.call("known"), graph.call("unknown"))
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0]), np.array([1, 2]))
    assert ready_ns(history_of(graph.tasks(), builder.build(np.arange(3)))).tolist() == [-1] * 3


def test_values_that_crossed_are_told_once_for_each_node() -> None:
    graph = GraphBuilder()
    root = graph.call("root")
    for _ in range(3):
        graph.call("use", root)
    builder = TraceBuilder()
    for task, (node, start) in enumerate([(2, 0), (5, 300), (5, 200), (2, 100)]):
        builder.add(node, node + 1, 1, np.array([task]), np.array([start, start + 50]))
    history = history_of(graph.tasks(), builder.build(np.arange(4)))
    assert crossings(history).tolist() == [[0, 2]]


# --- gantt ----------------------------------------------------------------------------------------


def test_every_bar_stands_in_its_lane_at_its_time(turns: History) -> None:
    root = ET.fromstring(draw_gantt(turns, "x"))
    lanes, trace = make_lanes(turns), turns.trace
    task_of_key = {turns.names.key(task): task for task in range(turns.task_count)}
    bars = [group for group in root.iter(f"{SVG}g") if group.get("class") == "bar"]
    assert len(bars) == turns.task_count
    scale = CHART_WIDTH / lanes.length_ns
    height_of: dict[float, set[int]] = {}
    for bar in bars:
        title, rect = bar.find(f"{SVG}title"), bar.find(f"{SVG}rect")
        assert title is not None
        assert title.text is not None
        assert rect is not None
        task = task_of_key.pop(title.text.partition("\n")[0])
        expected = MARGIN + LABEL_WIDTH + trace.start_ns[task] * scale
        assert float(rect.get("x", "")) == pytest.approx(expected, abs=0.01)
        assert f"node {trace.node[task]}, executor {trace.executor[task]}" in title.text
        height_of.setdefault(float(rect.get("y", "")), set()).add(int(trace.executor[task]))
    # Lanes from top to bottom are executors by node.
    assert [height_of[y] for y in sorted(height_of)] == [{3}, {4}, {6}]


def test_failures_repeats_and_losses_are_seen(troubled: History) -> None:
    svg = draw_gantt(troubled, "x")
    ET.fromstring(svg)
    assert svg.count('class="cross"') == 1
    assert svg.count('fill-opacity=".45"') == 1
    assert svg.count('class="retried"') == 1
    assert "retried at 6.2 us: ValueError: &lt;no&gt;" in svg
    assert ">node lost 2</text>" in svg
    assert "3 of 4 tasks run, 1 execution more, 10 us on 2 executors, 1 failed" in svg


def test_values_from_node_to_node_are_lines(turns: History) -> None:
    small = history_of(chain(4), run_in_turns(chain(4), {2: [3], 5: [6]}))
    assert draw_gantt(small, "x").count('class="value"') == 3


def test_many_executions_become_columns_that_tell_busy_from_idle() -> None:
    tasks = chain(BARS_MAX + 1)
    builder = TraceBuilder()  # the first half of the time is busy, the second idle but for the end
    builder.add(2, 3, 1, np.arange(BARS_MAX), 1_000 * np.arange(BARS_MAX + 1))
    end = 2_000 * BARS_MAX
    builder.add(2, 3, 1, np.array([BARS_MAX]), np.array([end - 10, end]))
    history = history_of(tasks, builder.build(np.arange(tasks.count)), ended_ns=end)
    root = ET.fromstring(draw_gantt(history, "x"))
    rects = [
        (float(rect.get("x", "")) - MARGIN - LABEL_WIDTH, float(rect.get("width", "")))
        for rect in root.iter(f"{SVG}rect")
        if rect.get("fill") == "#0072b2" and float(rect.get("x", "")) >= MARGIN + LABEL_WIDTH
    ]
    assert rects == [(0, CHART_WIDTH / 2), (CHART_WIDTH - 1, 1)]


def test_the_page_is_given_what_the_trace_has(turns: History, tmp_path: Path) -> None:
    visualize(turns, tmp_path / "x.html", kind="gantt")
    page = (tmp_path / "x.html").read_text()
    assert has_no_reference(page)
    data = page_data(page)
    columns, trace = data["columns"], turns.trace
    task = np.cumsum(columns["task"])
    assert data["unit"] == 1
    for lane, place in enumerate(data["lanes"]):
        here = slice(data["bounds"][lane], data["bounds"][lane + 1])
        ids = task[here]
        assert set(trace.executor[ids].tolist()) == {place["executor"]}
        assert set(trace.node[ids].tolist()) == {place["node"]}
        assert np.cumsum(columns["start"][here]).tolist() == trace.start_ns[ids].tolist()
        assert columns["length"][here].tolist() == trace.duration_ns[ids].tolist()
        names = [data["functions"][index] for index in columns["function"][here]]
        assert names == [turns.names.function(one) for one in ids.tolist()]
    assert np.cumsum(columns["serial"]).tolist() == turns.names.serials[task].tolist()
    assert np.cumsum(columns["inputs"]).tolist() == turns.indptr[1:].tolist()


def test_what_a_page_is_given_can_not_end_its_script(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.call("</script><b>")
    history = history_of(graph.tasks(), run_in_turns(graph.tasks(), {2: [3]}))
    visualize(history, tmp_path / "x.html", kind="gantt", title="<i>")
    page = (tmp_path / "x.html").read_text()
    assert "</script><b>" not in page
    assert "<i>" not in page
    assert page_data(page)["functions"] == ["</script><b>"]


def test_boxes_open_in_the_page_of_a_large_graph(tmp_path: Path) -> None:
    tasks = chain(2_500)
    history = history_of(tasks, run_in_turns(tasks, {2: [3], 5: [6]}))
    drawing = visualize(history, tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert has_no_reference(page)
    data, trace = page_data(page), history.trace
    columns = data["columns"]
    assert len(data["boxes"]) == len(drawing.picture.marks)
    counts = [mark.task_count for mark in drawing.picture.marks]
    assert np.bincount(columns["box"]).tolist() == counts
    assert (columns["start"] - 1).tolist() == trace.start_ns.tolist()
    assert columns["node"].tolist() == trace.node.tolist()
    assert columns["executor"].tolist() == trace.executor.tolist()
    dependents = np.repeat(np.arange(tasks.count), columns["inputs"])
    assert (dependents - columns["deps"]).tolist() == history.deps.tolist()


def pixels_of(path: Path) -> set[bytes]:
    """The different pixels of a PNG file without filters undone: enough to tell it from a blank."""
    data, place, packed = path.read_bytes(), 8, b""
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + length]
        place += 12 + length
    content = zlib.decompress(packed)
    return {content[place : place + 4] for place in range(0, len(content) - 4, 4)}


def test_a_png_is_not_blank(turns: History, tmp_path: Path) -> None:
    for kind in ("dag", "gantt"):
        visualize(turns, tmp_path / "x.png", kind=kind)
        assert len(pixels_of(tmp_path / "x.png")) > 50


def shown_by_browser(page: Path, place: str) -> str:
    """The document of a page once its script has run, where a browser is installed."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a browser: apt-get install chromium")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
         f"--user-data-dir={page.parent / 'browser'}", "--dump-dom", f"file://{page}#{place}"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert 'data-ready="yes"' in done.stdout, done.stderr
    return done.stdout


def test_a_browser_finds_a_task_and_opens_a_box(tmp_path: Path) -> None:
    history = many(100_000)
    visualize(history, tmp_path / "gantt.html", kind="gantt")
    dom = shown_by_browser(tmp_path / "gantt.html", "merge-98999")
    assert '<span id="found">merge-98999</span>' in dom
    visualize(history, tmp_path / "dag.html")
    dom = shown_by_browser(tmp_path / "dag.html", "3/2")
    assert dom.count('class="task"') > 5  # a thousand tasks a box, 25 a box in it
    assert re.search(r"<b>\d+ tasks: leaf, \.\.</b>", dom)


# --- trace ----------------------------------------------------------------------------------------


def checked_trace(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Events after a check of what the format asks of each phase."""
    needs = {
        "X": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "dur": float},
        "M": {"name": str, "pid": int, "tid": int, "args": dict},
        "i": {"name": str, "s": str, "pid": int, "tid": int, "ts": float},
        "s": {"id": int, "name": str, "cat": str, "pid": int, "tid": int, "ts": float},
        "f": {"id": int, "name": str, "cat": str, "pid": int, "tid": int, "ts": float, "bp": str},
    }
    for event in content["traceEvents"]:
        for name, kind in needs[event["ph"]].items():
            assert isinstance(event[name], kind), event
    return list(content["traceEvents"])


def test_the_trace_has_every_task_at_its_place_and_time(turns: History, tmp_path: Path) -> None:
    visualize(turns, tmp_path / "x.json", kind="trace")
    events = checked_trace(json.loads((tmp_path / "x.json").read_text()))
    trace = turns.trace
    slices = [event for event in events if event["ph"] == "X"]
    assert sorted(event["args"]["task"] for event in slices) == list(range(turns.task_count))
    for event in slices:
        task = event["args"]["task"]
        assert event["args"]["key"] == turns.names.key(task)
        assert event["name"] == turns.names.function(task)
        assert (event["pid"], event["tid"]) == (trace.node[task], trace.executor[task])
        assert event["ts"] == trace.start_ns[task] / 1000
        assert event["dur"] == trace.duration_ns[task] / 1000
    named = {(event["pid"], event["tid"]): event["args"]["name"] for event in events[1:6]}
    assert named[2, 4] == "executor 4"
    # A flow begins and ends inside the slices that it binds to.
    flows = {key: [e for e in events if e["ph"] == key] for key in "sf"}
    pairs = crossings(turns).tolist()
    assert len(flows["s"]) == len(flows["f"]) == len(pairs) > 0
    for ends, column in ((flows["s"], 0), (flows["f"], 1)):
        for event, pair in zip(ends, pairs, strict=True):
            task = pair[column]
            assert (event["pid"], event["tid"]) == (trace.node[task], trace.executor[task])
            assert trace.start_ns[task] <= event["ts"] * 1000 <= trace.end_ns[task]


def test_the_trace_tells_failures_and_losses(troubled: History, tmp_path: Path) -> None:
    visualize(troubled, tmp_path / "x.json.gz", kind="trace")
    events = checked_trace(json.loads(gzip.decompress((tmp_path / "x.json.gz").read_bytes())))
    slices = [event for event in events if event["ph"] == "X"]
    assert [event["args"].get("failed") for event in slices] == [None, None, None, True]
    assert [event["args"].get("note") for event in slices].count("executed again later") == 1
    instants = [event for event in events if event["ph"] == "i"]
    assert [(event["name"], event["s"], event["ts"]) for event in instants] == [
        ("node_lost", "p", 3.0),
        ("retried", "t", 6.2),
    ]


# --- summary --------------------------------------------------------------------------------------


def test_the_critical_path_is_the_longest_by_measured_times() -> None:
    graph = GraphBuilder()
    slow, fast = graph.call("slow"), graph.call("fast")
    middle = graph.call("middle", fast)
    graph.call("total", slow, middle)
    builder = TraceBuilder()
    for task, (start, end) in enumerate([(0, 100), (0, 10), (10, 50), (100, 130)]):
        builder.add(2, 3 + task, 1, np.array([task]), np.array([start, end]))
    summary = summarize(history_of(graph.tasks(), builder.build(np.arange(4))))
    assert summary.course is not None
    assert (summary.course.critical, summary.course.critical_ns) == ([0, 3], 130)
    assert summary.course.busy_ns == 180
    assert summary.course.parallelism_max == 2
    assert [line.name for line in summary.functions] == ["slow", "middle", "total", "fast"]
    assert (summary.shape.depth, summary.shape.widest) == (3, 2)
    assert (summary.shape.root_count, summary.shape.leaf_count) == (2, 1)


def test_idle_time_is_told_apart_by_what_was_ready() -> None:
    # Two executors. 10 until the first start; 30 alone while nothing else was ready; from 40 on
    # two tasks are ready, one begins at 40 and one at 60; both end at 80; the run ends at 100.
    graph = GraphBuilder()
    root = graph.call("root")
    for _ in range(2):
        graph.call("use", root)
    builder = TraceBuilder()
    for task, (executor, start, end) in enumerate([(3, 10, 40), (3, 40, 80), (4, 60, 80)]):
        builder.add(2, executor, 1, np.array([task]), np.array([start, end]))
    history = history_of(graph.tasks(), builder.build(np.arange(3)), submitted_ns=0, ended_ns=100)
    course = summarize(history).course
    assert course is not None
    assert course.idle._asdict() == {
        "before_ns": 20,
        "starved_ns": 30,
        "moving_ns": 0,
        "waiting_ns": 20,
        "after_ns": 40,
        "lost_ns": 0,
    }
    assert sum(course.idle) + course.busy_ns == 2 * 100


def test_executors_of_a_lost_node_are_idle_for_no_other_cause() -> None:
    # Three tasks are ready from the submission on. Executor 4 is lost with its node at 30, having
    # run one from 10 to 20; executor 3 runs the others until 80; the run ends at 100.
    builder = TraceBuilder()
    for task, (node, start, end) in enumerate([(2, 0, 40), (2, 40, 80), (5, 10, 20)]):
        builder.add(node, node + 1, 1, np.array([task]), np.array([start, end]))
    trace = builder.build(np.arange(3))
    losses = [TraceEvent(at, "node_lost", node) for at, node in ((30, 5), (60, 5), (70, 9))]
    graph = GraphBuilder()
    for _ in range(3):
        graph.call("use")
    history = history_of(graph.tasks(), replace(trace, events=losses), submitted_ns=0, ended_ns=100)
    course = summarize(history).course
    assert course is not None
    # Executor 4 waits for 10 + 10, then is gone for 70; executor 3 is idle at the end for 20.
    assert tuple(course.idle) == (0, 0, 0, 20, 20, 70)
    assert sum(course.idle) + course.busy_ns == 2 * 100
    assert "their node was lost" in visualize(history, kind="summary").text
    assert (
        "their node"
        not in visualize(
            replace(history, trace=replace(history.trace, events=[])), kind="summary"
        ).text
    )


def test_only_as_many_executors_wait_as_are_idle() -> None:
    # After the root, four tasks are ready at 10; one executor takes three of them, the other
    # begins at 40.
    graph = GraphBuilder()
    root = graph.call("root")
    for _ in range(4):
        graph.call("use", root)
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.arange(4), np.array([0, 10, 30, 50, 70]))
    builder.add(2, 4, 1, np.array([4]), np.array([40, 70]))
    history = history_of(graph.tasks(), builder.build(np.arange(5)), submitted_ns=0, ended_ns=70)
    course = summarize(history).course
    assert course is not None
    assert tuple(course.idle) == (0, 10, 0, 30, 0, 0)


def test_parallelism_has_the_area_of_the_work(turns: History) -> None:
    course = summarize(turns).course
    assert course is not None
    area = course.parallelism.mean() * course.length_ns
    assert area == pytest.approx(course.busy_ns)


def test_summaries_are_written_as_page_text_and_json(troubled: History, tmp_path: Path) -> None:
    for suffix in ("html", "txt", "json"):
        visualize(troubled, tmp_path / f"x.{suffix}", kind="summary")
    page, text = (tmp_path / "x.html").read_text(), (tmp_path / "x.txt").read_text()
    assert has_no_reference(page)
    for content in (page, text):
        for words in ("Critical path", "Idle time by cause", "node lost", "failed for good: total"):
            assert words in content
    assert "ValueError: &lt;no&gt;" in page
    told = json.loads((tmp_path / "x.json").read_text())
    assert told["critical_keys"] == ["load-0", "total-2"]
    assert (told["state"], told["length_ns"]) == ("failed", 10_000)


def test_a_graph_that_was_not_run_has_a_summary_of_its_shape() -> None:
    text = visualize(history_of(straight(4)), kind="summary").text
    assert "1,036 tasks, 1,035 edges; 648 without dependencies, 1 that nobody needs; 8" in text
    assert "Idle" not in text


def test_a_run_of_which_nothing_has_ended_has_every_picture(tmp_path: Path) -> None:
    nothing = TraceBuilder().build(np.arange(3))
    history = history_of(chain(3), nothing, state="running", submitted_ns=5)
    for kind, suffix in (("dag", "svg"), ("gantt", "svg"), ("gantt", "html"), ("trace", "json"),
                         ("summary", "txt")):  # fmt: skip
        visualize(history, tmp_path / f"x.{suffix}", kind=kind)
    assert "0 of 3 tasks run" in (tmp_path / "x.txt").read_text()


# --- size -----------------------------------------------------------------------------------------


# Of the child, which nothing but this has made large; KiB.
DRAW_ALL = """
import json, resource, sys, time
from pathlib import Path
from dagsched import visualize
from dagsched.viz import load
folder = Path(sys.argv[1])
history = load(folder / "x.dagsched")
loaded_s = time.process_time()
for kind, suffix in (("summary", "html"), ("gantt", "html"), ("gantt", "svg"), ("dag", "html")):
    visualize(history, folder / f"{kind}.{suffix}", kind=kind)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([loaded_s, time.process_time() - loaded_s, usage.ru_maxrss]))
"""


def test_a_million_tasks(tmp_path: Path) -> None:
    history = many()
    begun = time.process_time()
    save_history(history, tmp_path / "x.dagsched")
    assert time.process_time() - begun < 5
    child = subprocess.run(
        [sys.executable, "-c", DRAW_ALL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    loaded_s, drawn_s, peak_kib = json.loads(child.stdout)
    assert loaded_s < 5
    assert drawn_s < 20
    assert peak_kib < 2 << 20
    assert (tmp_path / "x.dagsched").stat().st_size < 10 << 20
    assert "1,000,000 of 1,000,000 tasks run" in (tmp_path / "gantt.svg").read_text()
    columns = page_data((tmp_path / "gantt.html").read_text())["columns"]
    assert sorted(np.cumsum(columns["task"]).tolist()) == list(range(1_000_000))
    loaded = load_history(tmp_path / "x.dagsched")
    assert (loaded.trace.start_ns == history.trace.start_ns).all()
    assert (loaded.deps == history.deps).all()


@pytest.mark.parametrize("module", [dagsched.viz.gantt, dagsched.viz.lanes])
def test_the_examples_are_true(module) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0
