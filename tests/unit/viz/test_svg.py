"""The drawn picture: what is in the SVG, checked by parsing it."""

import re
from xml.etree import ElementTree as ET

import numpy as np

from dagsched.trace import TraceBuilder
from dagsched.viz.model import Picture
from dagsched.viz.palette import node_colours
from dagsched.viz.picture import make_picture
from dagsched.viz.svg import draw_svg, svg_size
from tests.unit.viz.builders import chain, run_in_turns, straight, wide

SVG = "{http://www.w3.org/2000/svg}"
HOSTS = {2: ("east", [3, 4]), 5: ("west", [6, 7])}


def marks_of(svg: str) -> list[ET.Element]:
    root = ET.fromstring(svg)
    return [group for group in root.iter(f"{SVG}g") if "mark" in group.get("class", "").split()]


def outline(mark: ET.Element) -> ET.Element:
    """The last rectangle of a mark carries its fill and its border."""
    return mark.findall(f"{SVG}rect")[-1]


def edges_of(svg: str) -> list[ET.Element]:
    root = ET.fromstring(svg)
    groups = [group for group in root.iter(f"{SVG}g") if "edge" in group.get("class", "")]
    return [path for group in groups for path in group]


def text_of(svg: str) -> str:
    return "\n".join(element.text or "" for element in ET.fromstring(svg).iter())


def drawn_run(tasks) -> tuple[Picture, str]:
    picture = make_picture(tasks, run_in_turns(tasks, {2: [3, 4], 5: [6, 7]}), hosts=HOSTS)
    return picture, draw_svg(picture)


def test_the_acceptance_tree_is_drawn_whole_and_not_too_wide() -> None:
    _, svg = drawn_run(straight())
    assert len(marks_of(svg)) == 1036
    assert len(edges_of(svg)) == 1035
    assert svg_size(svg)[0] <= 4_000


def test_every_border_is_the_colour_of_a_node_of_the_legend() -> None:
    _, svg = drawn_run(wide(20))
    borders = {outline(mark).get("stroke") for mark in marks_of(svg)}
    legend = next(
        group for group in ET.fromstring(svg).iter(f"{SVG}g") if group.get("class") == "legend"
    )
    in_legend = {element.get("stroke") for element in legend.iter(f"{SVG}rect")}
    assert borders == set(node_colours(2))
    assert borders <= in_legend


def test_the_legend_tells_node_host_executors_tasks_and_busy_share() -> None:
    _, svg = drawn_run(wide(18))
    words = text_of(svg)
    assert "node 2 on east" in words
    assert "executors 3, 4" in words
    assert "node 5 on west" in words
    assert words.count("10 tasks") == 2
    assert words.count("% busy") == 2


def test_fills_grow_lighter_with_the_start() -> None:
    picture, svg = drawn_run(wide(30))
    fills = [outline(mark).get("fill") or "" for mark in marks_of(svg)]
    by_start = [
        int(fill[1:3], 16)
        for _, fill in sorted(zip((mark.start_ns for mark in picture.marks), fills, strict=True))
    ]
    assert by_start == sorted(by_start)
    assert len(set(by_start)) == 32


def test_a_graph_not_run_is_white_and_dashed_and_has_no_nodes() -> None:
    svg = draw_svg(make_picture(wide(3)))
    marks = marks_of(svg)
    assert {outline(mark).get("fill") for mark in marks} == {"#ffffff"}
    assert {outline(mark).get("stroke-dasharray") for mark in marks} == {"5 3"}
    assert "node " not in text_of(svg)
    assert "not run" in text_of(svg)


def test_text_is_white_on_the_first_and_dark_on_the_last() -> None:
    _, svg = drawn_run(chain(10))
    colours = [mark.find(f"{SVG}text").get("fill") for mark in marks_of(svg)]
    assert colours[0] == "#ffffff"
    assert colours[-1] == "#1a1a1a"


def test_failed_is_crossed_out_repeated_is_doubled() -> None:
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0]), np.array([1, 2]))
    builder.add(2, 3, 2, np.array([0]), np.array([5, 9]))
    trace = builder.build(np.arange(3), failed=[1])
    svg = draw_svg(make_picture(chain(3), trace))
    repeated, failed, waiting = marks_of(svg)
    assert len(repeated.findall(f"{SVG}rect")) == 2
    assert repeated.find(f"{SVG}path") is None
    assert failed.find(f"{SVG}path").get("class") == "cross"
    assert failed.get("class") == "mark failed"
    assert outline(failed).get("stroke-dasharray") is None
    assert outline(waiting).get("stroke-dasharray") == "5 3"
    assert "more than one attempt" in text_of(svg)
    assert "1 failed, 1 not run" in text_of(svg)


def test_labels_and_tooltips_tell_function_key_time_and_place() -> None:
    _, svg = drawn_run(wide(2))
    second = marks_of(svg)[1]
    assert second.find(f"{SVG}text").text == "square - 1"
    assert (second.find(f"{SVG}title").text or "").split("\n") == [
        "square, key square-1",
        "done",
        "started 1 us after the first, took 500 ns",
        "node 2, executor 4",
    ]


def test_boxes_tell_their_counts() -> None:
    svg = draw_svg(make_picture(wide(9_998)))
    marks = marks_of(svg)
    assert len(marks) == 120
    assert marks[1].find(f"{SVG}text").text == "square x 84"
    assert (marks[1].find(f"{SVG}title").text or "").startswith("part 1: square x 84\n84 tasks")


def test_names_with_special_characters_stay_valid() -> None:
    tasks = chain(1)
    tasks.functions[0] = '<lambda> & "co"'
    svg = draw_svg(make_picture(tasks, title="a < b"))
    assert marks_of(svg)[0].find(f"{SVG}text").text == '<lambda> & "co" - 0'


def test_nothing_outside_is_referred_to() -> None:
    _, svg = drawn_run(wide(3))
    assert re.findall(r"https?://[^\"']+", svg) == ["http://www.w3.org/2000/svg"]
    assert "<script" not in svg


def test_an_empty_graph_is_a_page_with_its_headline() -> None:
    tasks = chain(1)
    empty = type(tasks)([], np.array([], int), np.array([0]), np.array([], int), str)
    assert "0 tasks, 0 edges\n" in text_of(draw_svg(make_picture(empty)))
