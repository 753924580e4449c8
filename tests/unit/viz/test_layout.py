"""Where marks stand: levels, crossings, wrapping, routes."""

from itertools import pairwise

import pytest

from dagsched.viz.layout import GAP, MARK_HEIGHT, PAGES, STACK_GAP, Layout, make_layout
from dagsched.viz.levels import make_levels
from tests.unit.viz.builders import GraphBuilder, chain, straight, wide

EDGES_OF_A_DIAMOND = [(0, 1), (0, 2), (1, 3), (2, 3)]


def edges_of(graph: GraphBuilder) -> list[tuple[int, int]]:
    sources, targets = graph.tasks().edges()
    return list(zip(sources.tolist(), targets.tolist(), strict=True))


def assert_no_overlap(layout: Layout, widths: list[float]) -> None:
    boxes = sorted(
        (y, x - width / 2, x + width / 2)
        for (x, y), width in zip(layout.centres, widths, strict=True)
    )
    for (y, _, right), (other_y, left, _) in pairwise(boxes):
        assert other_y - y >= MARK_HEIGHT or (other_y == y and left >= right)
    for x, y in layout.centres:
        assert 0 <= x <= layout.width
        assert MARK_HEIGHT / 2 <= y <= layout.height - MARK_HEIGHT / 2


def test_levels_are_longest_paths() -> None:
    levels = make_levels(4, [(0, 1), (1, 2), (0, 3), (2, 3)])
    assert list(levels.level[:4]) == [0, 1, 2, 3]
    assert [len(row) for row in levels.rows] == [1, 2, 2, 1]  # with waypoints of the long edge
    assert [len(chain) for chain in levels.chains] == [2, 2, 4, 2]


def test_a_root_stands_just_above_the_first_that_needs_it() -> None:
    levels = make_levels(5, [(0, 1), (1, 2), (2, 4), (3, 4)])
    assert levels.level[3] == 2


def test_the_rows_of_the_acceptance_tree_have_its_widths() -> None:
    sources, targets = straight().edges()
    levels = make_levels(1036, list(zip(sources.tolist(), targets.tolist(), strict=True)))
    assert [len(row) for row in levels.rows] == [648, 216, 108, 36, 18, 6, 3, 1]


def test_crossings_that_can_be_avoided_are() -> None:
    # Two pairs written down crosswise.
    levels = make_levels(4, [(1, 2), (0, 3)])
    places = {mark: row.index(mark) for row in levels.rows for mark in row}
    assert (places[0] < places[1]) == (places[3] < places[2])


def test_a_diamond_is_symmetric() -> None:
    layout = make_layout([60.0] * 4, EDGES_OF_A_DIAMOND)
    (top_x, top_y), (left_x, left_y), (right_x, right_y), (end_x, end_y) = layout.centres
    assert top_x == pytest.approx(end_x)
    assert top_x - left_x == pytest.approx(right_x - top_x)
    assert right_x - left_x == pytest.approx(60 + GAP)
    assert top_y < left_y == right_y < end_y


def test_edges_lead_from_bottom_to_top() -> None:
    layout = make_layout([60.0] * 4, EDGES_OF_A_DIAMOND)
    for (source, target), route in zip(EDGES_OF_A_DIAMOND, layout.routes, strict=True):
        assert route.start is None
        assert route.end is None
        assert route.legs[0][:2] == (layout.centres[source][0], layout.centres[source][1] + 13)
        assert route.legs[-1][0] == layout.centres[target][0]
        assert route.legs[-1][2] == layout.centres[target][1] - 13


def test_a_long_edge_is_led_around_the_marks_between() -> None:
    layout = make_layout([60.0] * 4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    route = layout.routes[3]
    assert len(route.legs) == 4
    for mark, (x, _, _) in zip((1, 2), route.legs[1:3], strict=True):
        assert abs(x - layout.centres[mark][0]) > 30


def test_a_wide_row_is_wrapped_into_stacks() -> None:
    tasks = wide(216)
    sources, targets = tasks.edges()
    widths = [80.0] * tasks.count
    layout = make_layout(widths, list(zip(sources.tolist(), targets.tolist(), strict=True)))
    assert_no_overlap(layout, widths)
    assert layout.width <= PAGES[0]
    assert layout.height > 5 * (MARK_HEIGHT + STACK_GAP)
    sideways = [route for route in layout.routes[216:] if route.start is not None]
    stacks = len({x for x, _ in layout.centres[1:217]})
    assert len(sideways) == 216 - stacks


def test_the_acceptance_tree_fits_the_widest_page() -> None:
    sources, targets = straight().edges()
    widths = [70.0] * 1036
    layout = make_layout(widths, list(zip(sources.tolist(), targets.tolist(), strict=True)))
    assert_no_overlap(layout, widths)
    assert layout.width <= 4_000
    assert layout.width >= layout.height


def test_marks_without_edges_and_no_marks_at_all_have_a_layout() -> None:
    assert make_layout([], []).centres == []
    layout = make_layout([50.0] * 300, [])
    assert_no_overlap(layout, [50.0] * 300)


def test_a_chain_is_a_straight_line() -> None:
    sources, targets = chain(50).edges()
    layout = make_layout([60.0] * 50, list(zip(sources.tolist(), targets.tolist(), strict=True)))
    assert {x for x, _ in layout.centres} == {30.0}


def test_long_edges_of_a_deep_graph_do_not_fill_the_page_with_waypoints() -> None:
    graph = GraphBuilder()
    root = graph.call("root")
    last = root
    for _ in range(1_000):
        last = graph.call("step", last, root)
    levels = make_levels(1_001, edges_of(graph))
    assert len(levels.level) == 1_001
    assert make_layout([60.0] * 1_001, edges_of(graph)).width < 200


def test_the_same_graph_gives_the_same_layout() -> None:
    sources, targets = straight(3).edges()
    edges = list(zip(sources.tolist(), targets.tolist(), strict=True))
    assert make_layout([70.0] * 172, edges) == make_layout([70.0] * 172, edges)
