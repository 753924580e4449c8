"""`visualize` with what users hand over, and every file format."""

import doctest
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import networkx as nx
import numpy as np
import pytest

import dagsched.viz.drawing
from dagsched import delayed, visualize
from dagsched.graph import TaskGraph, build_graph
from dagsched.history import History
from dagsched.trace import TraceBuilder
from dagsched.viz import Drawing


def add(*values: int) -> int:
    return sum(values)


@pytest.fixture
def total():
    return delayed(add)(delayed(abs)(-1), delayed(abs)(2))


def finished_run(run_id: str, graph: TaskGraph) -> History:
    """What is left of a run of three tasks on two nodes."""
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0, 1]), np.array([10, 20, 30]))
    builder.add(5, 6, 1, np.array([2]), np.array([40, 90]))
    trace = builder.build(np.arange(3))
    return replace(History.of_graph(graph), trace=trace, run_id=run_id, state="done")


def test_a_delayed_is_drawn(total) -> None:
    drawing = visualize(total)
    assert isinstance(drawing, Drawing)
    assert [mark.function for mark in drawing.picture.marks] == ["abs", "abs", "add"]
    assert drawing.picture.edges == [(0, 2), (1, 2)]
    assert repr(drawing).startswith("<Drawing of 3 tasks, ")


@pytest.mark.parametrize("container", [list, tuple, lambda items: {"a": items[0], "b": items[1]}])
def test_containers_are_drawn_as_one_graph(container) -> None:
    shared = delayed(abs)(1)
    drawing = visualize(container([delayed(add)(shared), delayed(add)(shared, 1)]))
    assert drawing.picture.edges == [(0, 1), (0, 2)]


def test_a_networkx_graph_is_drawn() -> None:
    graph = nx.DiGraph()
    graph.add_node("load", func=abs, args=(1,))
    graph.add_node("sum", func=add)
    graph.add_edge("load", "sum")
    assert visualize(graph).picture.edges == [(0, 1)]


def test_a_run_is_drawn_with_its_id(total) -> None:
    drawing = visualize(finished_run("r7", build_graph(total)))
    assert drawing.picture.title == "run r7"
    assert [line.id for line in drawing.picture.nodes] == [2, 5]
    assert [mark.rank for mark in drawing.picture.marks] == [0, 1, 2]
    assert visualize(finished_run("r7", build_graph(total)), title="x").picture.title == "x"


@pytest.mark.parametrize("thing", [7, "graph", None, object()])
def test_anything_else_is_a_type_error(thing) -> None:
    with pytest.raises(TypeError, match=f"not a {type(thing).__name__}"):
        visualize(thing)


@pytest.mark.parametrize("kind", ["gantt", "trace"])
def test_what_only_a_run_can_show_says_so(total, kind) -> None:
    with pytest.raises(ValueError, match=f"'{kind}' shows a run, and this graph was not run: hand"):
        visualize(total, kind=kind)


def test_an_unknown_kind_names_the_known_ones(total) -> None:
    with pytest.raises(ValueError, match="one of dag, gantt, trace, summary, not 'pie'"):
        visualize(total, kind="pie")


def test_an_unknown_suffix_names_the_known_ones_and_writes_nothing(total, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg, \.png, \.html, \.dot, \.json; not as '\.pdf'"):
        visualize(total, tmp_path / "x.pdf")
    with pytest.raises(ValueError, match="not as 'no suffix'"):
        visualize(total, tmp_path / "x")
    with pytest.raises(ValueError, match=r"'gantt' are written as \.html, \.svg, \.png; not as"):
        visualize(finished_run("r7", build_graph(total)), tmp_path / "x.dot", kind="gantt")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_can_not_be_written_says_what_to_do(total, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"can't be written .*: name a file in a directory that"):
        visualize(total, tmp_path / "absent" / "x.svg")


def test_png_without_its_package_names_it(total, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"pip install resvg_py\); \.svg and \.html need nothing"):
        visualize(total, tmp_path / "x.png")


def test_svg_file_is_the_drawing(total, tmp_path: Path) -> None:
    drawing = visualize(total, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text() == drawing.svg
    assert ET.fromstring(drawing.svg).tag.endswith("svg")


def test_png_file_has_the_size_of_the_drawing(total, tmp_path: Path) -> None:
    drawing = visualize(total, str(tmp_path / "x.PNG"))
    data = (tmp_path / "x.PNG").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == drawing.size


def test_html_file_holds_the_picture_and_refers_to_nothing(total, tmp_path: Path) -> None:
    drawing = visualize(total, tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert drawing.svg in page
    rest = page.replace("http://www.w3.org/2000/svg", "")
    assert all(word not in rest for word in ("http:", "https:", "src=", "href=", "<script"))


def test_dot_file_has_nodes_edges_and_colours(total, tmp_path: Path) -> None:
    visualize(finished_run("r7", build_graph(total)), tmp_path / "x.dot")
    lines = (tmp_path / "x.dot").read_text().splitlines()
    assert lines[0] == 'digraph "run r7" {'
    assert lines[-1] == "}"
    assert [line for line in lines if "->" in line] == ["  0 -> 2;", "  1 -> 2;"]
    assert "rankdir=TB" in lines[1]
    assert 'color="#0072b2", fillcolor="#424242", fontcolor="#ffffff"' in lines[4]
    assert 'color="#e69f00"' in lines[6]


def test_json_file_has_tasks_nodes_and_edges(total, tmp_path: Path) -> None:
    visualize(finished_run("r7", build_graph(total)), tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["edges"] == [[0, 2], [1, 2]]
    assert [task["start_ns"] for task in content["tasks"]] == [10, 20, 40]
    assert [task["executor"] for task in content["tasks"]] == [3, 3, 6]
    assert [node["task_count"] for node in content["nodes"]] == [2, 1]
    assert content["task_count"] == 3


def test_notebooks_get_svg_and_html(total) -> None:
    drawing = visualize(total)
    assert drawing._repr_svg_() == drawing.svg
    assert drawing.svg in drawing._repr_html_()


def test_characters_beyond_the_kept_letters_are_drawn_too(tmp_path: Path) -> None:
    drawing = visualize(delayed(abs, name="\u00fcbung\u6570")(1), tmp_path / "x.png")
    assert "\u00fcbung\u6570" in drawing.svg
    assert (tmp_path / "x.png").stat().st_size > 500


def test_the_example_is_true() -> None:
    result = doctest.testmod(dagsched.viz.drawing)
    assert (result.failed, result.attempted) == (0, 4)


def test_the_graph_is_left_as_it_was(total) -> None:
    before = [repr(total), total.key]
    visualize(total)
    assert [repr(total), total.key] == before
