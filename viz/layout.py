"""Where each mark stands on the page and how each edge runs: the second half of a layered drawing.

Pure. A row too wide for the page is wrapped into *stacks*, columns of neighbours, so that marks
stay above what depends on them; edges leave and enter the middle of a stack through the gutter
beside it. Places along a row are those nearest to their neighbours' that keep the order and the
distances: an isotonic regression for each row (pool adjacent violators; Ayer et al., 1955).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dagsched.viz.levels import Levels, make_levels

PAGES = (1_600, 2_000, 2_500, 3_100, 3_900)
"""Widths that a page may have, in px, margins not counted; narrower where no row needs so much."""

MARK_HEIGHT = 26.0
GAP = 16.0  # between marks of a row
STACK_GAP = 7.0  # between marks of a stack
GUTTER = 22.0  # beside a stack, for its edges
WAYPOINT_WIDTH = 6.0
LEVEL_GAP = 44.0
ASPECT = 1.45  # of a page that holds wrapped rows, width by height
SWEEPS = 6


@dataclass(frozen=True, slots=True)
class Route:
    """How an edge runs: straight down its legs, curved from one to the next.

    `legs` are (x, y from, y to). `start` and `end` are given where the edge leaves or enters a
    mark sideways, at that point, into the gutter that is the first or last leg.
    """

    legs: Sequence[tuple[float, float, float]]
    start: tuple[float, float] | None = None
    end: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Places in px; (0, 0) is the top left corner."""

    centres: Sequence[tuple[float, float]]  # of the marks
    routes: Sequence[Route]  # of the edges
    width: float
    height: float


@dataclass(slots=True)
class _Item:
    """Something that takes a place in a row: a stack of marks, or a waypoint."""

    entries: Sequence[int]
    width: float
    neighbours_above: list["_Item"]
    neighbours_below: list["_Item"]
    x: float = 0.0


def make_layout(
    widths: Sequence[float], edges: Sequence[tuple[int, int]], height: float = MARK_HEIGHT
) -> Layout:
    """Places for marks of these widths.

    Args:
        widths: of the marks, in px.
        edges: (dependency, dependent); the dependency has the lower id.
        height: of every mark, in px.
    """
    levels = make_levels(len(widths), edges)
    rows = _rows_of_items(levels, widths, height)
    item_of = {entry: item for row in rows for item in row for entry in item.entries}
    for chain in levels.chains:
        for upper, lower in pairwise(chain):
            item_of[upper].neighbours_below.append(item_of[lower])
            item_of[lower].neighbours_above.append(item_of[upper])
    width = max((_row_width(row) for row in rows), default=0.0)
    _place_along_rows(rows, width)
    tops = _tops(rows, height)
    centres = [(0.0, 0.0)] * len(widths)
    for row, top in zip(rows, tops, strict=False):
        tallest = max(len(item.entries) for item in row)
        for item in row:
            # Short stacks stand at the bottom of their row, next to what depends on them.
            skipped = tallest - len(item.entries) if item.neighbours_below else 0
            for index, entry in enumerate(item.entries):
                if entry < levels.mark_count:
                    y = top + height / 2 + (index + skipped) * (height + STACK_GAP)
                    centres[entry] = (item.x, y)
    routes = _routes(levels, item_of, centres, widths, tops, rows, height)
    return Layout(centres, routes, width, tops[-1] - LEVEL_GAP if rows else 0.0)


def _rows_of_items(levels: Levels, widths: Sequence[float], height: float) -> list[list[_Item]]:
    """Every row as items, on the narrowest page that is not too tall for its width."""
    below: dict[int, int] = {}
    for chain in levels.chains:
        below.setdefault(chain[0], chain[1])
    rows: list[list[_Item]] = []
    for page in PAGES:
        rows = [_wrapped(row, levels, widths, below, page) for row in levels.rows]
        tall = sum(
            max(len(item.entries) for item in row) * (height + STACK_GAP) + 1.3 * LEVEL_GAP
            for row in rows
        )
        if all(_is_flat(row) for row in rows) or ASPECT * tall <= page:
            break
    return rows


def _wrapped(
    row: Sequence[int],
    levels: Levels,
    widths: Sequence[float],
    below: Mapping[int, int],
    page: float,
) -> list[_Item]:
    """The row in the lowest stacks that fit the page (or in the highest there can be)."""
    marks = [widths[entry] for entry in row if entry < levels.mark_count]
    room = page - (len(row) - len(marks)) * (WAYPOINT_WIDTH + GAP)
    wanted = sum(marks) + GAP * len(marks)
    stack_max = max(1, int(wanted / room)) if room > 0 else max(1, len(marks))
    while True:
        items = _items(row, levels, widths, below, stack_max)
        if _row_width(items) <= page or stack_max >= len(marks):
            return items
        stack_max += 1 + stack_max // 8


def _is_flat(row: Sequence[_Item]) -> bool:
    return all(len(item.entries) == 1 for item in row)


def _items(
    row: Sequence[int],
    levels: Levels,
    widths: Sequence[float],
    below: Mapping[int, int],
    stack_max: int,
) -> list[_Item]:
    """The row as stacks of neighbours, broken by preference where the dependents change."""
    items: list[_Item] = []
    stack: list[int] = []

    def close() -> None:
        if stack:
            wide = max(widths[entry] for entry in stack)
            items.append(_Item(tuple(stack), wide + (GUTTER if len(stack) > 1 else 0), [], []))
            stack.clear()

    for entry in row:
        if entry >= levels.mark_count:
            close()
            items.append(_Item((entry,), WAYPOINT_WIDTH, [], []))
            continue
        nearly = len(stack) > stack_max * 3 // 4
        if len(stack) >= stack_max or (nearly and below.get(stack[-1]) != below.get(entry)):
            close()
        stack.append(entry)
    close()
    return items


def _row_width(row: Sequence[_Item]) -> float:
    return sum(item.width for item in row) + GAP * (len(row) - 1)


def _place_along_rows(rows: Sequence[Sequence[_Item]], width: float) -> None:
    """Give every item its x, in sweeps down and up."""
    for row in rows:
        x = (width - _row_width(row)) / 2
        for item in row:
            item.x = x + item.width / 2
            x += item.width + GAP
    for sweep in range(2 * SWEEPS + 1):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wants = []
            for item in row:
                near = item.neighbours_above if down else item.neighbours_below
                wants.append(sum(other.x for other in near) / len(near) if near else item.x)
            weights = [4.0 if item.width == WAYPOINT_WIDTH else 1.0 for item in row]
            for item, x in zip(row, _spread(row, wants, weights, width), strict=True):
                item.x = x


def _spread(
    row: Sequence[_Item], wants: Sequence[float], weights: Sequence[float], width: float
) -> list[float]:
    """The places nearest to `wants` (least squares) that keep order, distances and the page."""
    offsets = [0.0]
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + GAP)
    low = row[0].width / 2
    high = max(low, width - row[-1].width / 2 - offsets[-1])
    blocks: list[tuple[float, float, int]] = []  # mean, weight, items
    for want, weight, offset in zip(wants, weights, offsets, strict=True):
        mean, total, count = want - offset, weight, 1
        while blocks and blocks[-1][0] > mean:
            other_mean, other_total, other_count = blocks.pop()
            mean = (mean * total + other_mean * other_total) / (total + other_total)
            total, count = total + other_total, count + other_count
        blocks.append((mean, total, count))
    places = [min(max(mean, low), high) for mean, _, count in blocks for _ in range(count)]
    return [place + offset for place, offset in zip(places, offsets, strict=True)]


def _tops(rows: Sequence[Sequence[_Item]], height: float) -> list[float]:
    """The y at which each row begins, and one more; wide jumps get more room to bend."""
    tops, y = [], 0.0
    for row in rows:
        tops.append(y)
        tallest = max(len(item.entries) for item in row)
        jump = max(
            (abs(item.x - other.x) for item in row for other in item.neighbours_below), default=0.0
        )
        bend = min(70.0, jump / 12)
        y += tallest * (height + STACK_GAP) - STACK_GAP + LEVEL_GAP + bend
    tops.append(y)
    return tops


def _routes(
    levels: Levels,
    item_of: dict[int, _Item],
    centres: Sequence[tuple[float, float]],
    widths: Sequence[float],
    tops: Sequence[float],
    rows: Sequence[Sequence[_Item]],
    height: float,
) -> list[Route]:
    """How each edge runs."""
    bottoms = [
        top + max(len(item.entries) for item in row) * (height + STACK_GAP) - STACK_GAP
        for row, top in zip(rows, tops, strict=False)
    ]
    routes = []
    for chain in levels.chains:
        source, target = chain[0], chain[-1]
        above, below = item_of[source], item_of[target]
        (x, y), (end_x, end_y) = centres[source], centres[target]
        start = end = None
        legs: list[tuple[float, float, float]] = []
        if source == above.entries[-1]:
            legs.append((x, y + height / 2, max(y + height / 2, bottoms[levels.level[source]])))
        else:
            start = (x + widths[source] / 2, y)
            gutter = above.x + above.width / 2
            legs.append((gutter, y + 6, bottoms[levels.level[source]]))
        for waypoint in chain[1:-1]:
            level = levels.level[waypoint]
            legs.append((item_of[waypoint].x, tops[level], bottoms[level]))
        if target == below.entries[0]:
            legs.append(
                (end_x, min(tops[levels.level[target]], end_y - height / 2), end_y - height / 2)
            )
        else:
            end = (end_x - widths[target] / 2, end_y)
            gutter = below.x - below.width / 2
            legs.append((gutter, tops[levels.level[target]], end_y - 6))
        routes.append(Route(legs, start, end))
    return routes
