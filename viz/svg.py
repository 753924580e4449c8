"""A picture as SVG text: colours, strokes, letters and the legend.

Pure. Where things stand comes from `layout`, what they say from `text`. Standalone: no script, no
reference to anything outside; every browser, and the PNG renderer, draws the same.
"""

import re
from collections.abc import Mapping, Sequence

from dagsched.viz.layout import MARK_HEIGHT, Layout, Route, make_layout
from dagsched.viz.model import Mark, NodeLine, Picture, State, is_unseen
from dagsched.viz.palette import (
    FAILED,
    NO_NODE,
    grey,
    node_colours,
    shortened,
    text_on,
    text_width,
)
from dagsched.viz.text import headline, label, markup, node_text, tooltip

MARGIN = 20.0
FONT = "DejaVu Sans, Verdana, Geneva, sans-serif"
FONT_SIZE = 11.5
LABEL_WIDTH_MAX = 190.0
TITLE_WIDTH_MAX = 1_100.0
ARROWS_MAX = 600
"""More edges than this are drawn without arrow heads; all lead down."""

_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
    'viewBox="0 0 {width:.0f} {height:.0f}">'
)
_ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7.4" refY="4" markerWidth="7" '
    'markerHeight="7" orient="auto"><path d="M0 .8L8 4L0 7.2z" fill="#9aa3ad"/></marker></defs>'
)
_STYLE = (
    "text{{font-family:{font};font-size:{size}px;text-anchor:middle}}"
    ".edge{{fill:none;stroke:#9aa3ad;stroke-width:1.3}}"
    ".back{{stroke-dasharray:4 4}}"
    ".legend text{{text-anchor:start;fill:#333;font-size:12px}}"
    ".legend .title{{font-size:15px;font-weight:bold;fill:#111}}"
)


def draw_svg(picture: Picture) -> str:
    """The picture as the text of an SVG file."""
    colours = colour_by_node(picture)
    labels = [shortened(label(mark), FONT_SIZE, LABEL_WIDTH_MAX) for mark in picture.marks]
    widths = [max(46.0, text_width(text, FONT_SIZE) + 24) for text in labels]
    layout = make_layout(widths, picture.edges)
    legend, legend_width, legend_height = _legend(picture, colours)
    width = max(layout.width, legend_width) + 2 * MARGIN
    top = MARGIN + legend_height
    left = (width - layout.width) / 2
    height = top + max(layout.height, 0) + 2 * MARGIN
    style = _STYLE.format(font=FONT, size=FONT_SIZE)
    parts = [
        _HEAD.format(width=width, height=height),
        f"<title>{markup(picture.title or 'dagsched')}</title><style>{style}</style>",
        _ARROW,
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
        legend,
        f'<g transform="translate({left:.1f} {top:.1f})">',
        *_edges(picture, layout),
        *_marks(picture, layout, labels, widths, colours),
        "</g></svg>",
    ]
    return "\n".join(parts)


def svg_size(svg: str) -> tuple[int, int]:
    """Width and height of a picture of ours, in px, from its text."""
    found = re.match(r'<svg [^>]*?width="(\d+)" height="(\d+)"', svg)
    if found is None:
        raise ValueError("not a picture drawn here")
    return int(found[1]), int(found[2])


def colour_by_node(picture: Picture) -> dict[int, str]:
    """The border colour of each node of the picture."""
    nodes = {line.id for line in picture.nodes}
    nodes.update(mark.node for mark in picture.marks if mark.node >= 0)
    return dict(zip(sorted(nodes), node_colours(len(nodes)), strict=True))


def fill_of(mark: Mark, rank_count: int) -> str:
    """The colour inside a mark: grey by order of start, white where it has not run."""
    return grey(mark.rank, rank_count) if mark.rank >= 0 else "#ffffff"


def rank_count_of(picture: Picture) -> int:
    """How many different starts there are."""
    return max((mark.rank for mark in picture.marks), default=-1) + 1


def _edges(picture: Picture, layout: Layout) -> list[str]:
    arrow = ' marker-end="url(#arrow)"' if len(picture.edges) <= ARROWS_MAX else ""
    parts = [f'<g class="edge"{arrow}>' if arrow else '<g class="edge">']
    parts += [f'<path d="{_path(route)}"/>' for route in layout.routes]
    parts.append("</g>")
    if picture.back_edges:
        parts.append('<g class="edge back">')
        for source, target in picture.back_edges:
            (x, y), (end_x, end_y) = layout.centres[source], layout.centres[target]
            parts.append(f'<path d="M{x:.1f} {y:.1f}L{end_x:.1f} {end_y:.1f}"/>')
        parts.append("</g>")
    return parts


def _path(route: Route) -> str:
    """The commands of an SVG path along a route."""
    (x, y, bottom), *rest = route.legs
    if route.start is None:
        commands = [f"M{x:.1f} {y:.1f}"]
    else:
        start_x, start_y = route.start
        commands = [f"M{start_x:.1f} {start_y:.1f}Q{x:.1f} {start_y:.1f} {x:.1f} {y:.1f}"]
    if bottom > y:
        commands.append(f"V{bottom:.1f}")
    for next_x, next_y, next_bottom in rest:
        if abs(next_x - x) < 0.5:
            commands.append(f"L{next_x:.1f} {next_y:.1f}")
        else:
            middle = (bottom + next_y) / 2
            commands.append(
                f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {next_y:.1f}"
            )
        x, bottom = next_x, next_bottom
        if next_bottom > next_y:
            commands.append(f"V{next_bottom:.1f}")
    if route.end is not None:
        end_x, end_y = route.end
        commands.append(f"Q{x:.1f} {end_y:.1f} {end_x:.1f} {end_y:.1f}")
    return "".join(commands)


def _marks(
    picture: Picture,
    layout: Layout,
    labels: Sequence[str],
    widths: Sequence[float],
    colours: Mapping[int, str],
) -> list[str]:
    count = rank_count_of(picture)
    first_ns = min((mark.start_ns for mark in picture.marks if mark.start_ns >= 0), default=0)
    parts = []
    for mark, text, width, (x, y) in zip(
        picture.marks, labels, widths, layout.centres, strict=True
    ):
        fill = fill_of(mark, count)
        border = colours.get(mark.node, NO_NODE)
        parts.append(
            f'<g class="mark {mark.state.name.lower()}"><title>{markup(tooltip(mark, first_ns))}'
            f"</title>{_outline(mark, x, y, width, fill, border)}"
            f'<text x="{x:.1f}" y="{y + FONT_SIZE * 0.36:.1f}" fill="{text_on(fill)}">'
            f"{markup(text)}</text>{_cross(mark, x, y, width)}</g>"
        )
    return parts


def _outline(
    mark: Mark, x: float, y: float, width: float, fill: str, border: str, stroke: float = 4.0
) -> str:
    """The shape of a mark: round for a task, square for a box; doubled if it ran again."""
    radius = 4.0 if mark.is_box else MARK_HEIGHT / 2 - stroke / 2
    parts = []
    if mark.executions > 1:
        parts.append(_rect(x, y, width + 8, MARK_HEIGHT + 8, radius + 4, "#ffffff", border, 1.6))
    if mark.state is State.WAITING:
        dashes = ' stroke-dasharray="5 3"'
        parts.append(_rect(x, y, width, MARK_HEIGHT, radius, fill, border, 1.6, dashes))
    else:
        parts.append(_rect(x, y, width, MARK_HEIGHT, radius, fill, border, stroke))
    return "".join(parts)


def _rect(
    x: float,
    y: float,
    width: float,
    height: float,
    radius: float,
    fill: str,
    border: str,
    stroke: float,
    more: str = "",
) -> str:
    """A rectangle around (x, y); its stroke stays within the given size."""
    return (
        f'<rect x="{x - (width - stroke) / 2:.1f}" y="{y - (height - stroke) / 2:.1f}" '
        f'width="{width - stroke:.1f}" height="{height - stroke:.1f}" rx="{radius:.1f}" '
        f'fill="{fill}" stroke="{border}" stroke-width="{stroke:g}"{more}/>'
    )


def _cross(mark: Mark, x: float, y: float, width: float) -> str:
    """A red cross over a mark that failed."""
    if mark.state is not State.FAILED:
        return ""
    reach, rise = min(width / 2 + 2, 30.0), MARK_HEIGHT / 2 + 3
    return (
        f'<path class="cross" d="M{x - reach:.1f} {y - rise:.1f}L{x + reach:.1f} {y + rise:.1f}'
        f'M{x + reach:.1f} {y - rise:.1f}L{x - reach:.1f} {y + rise:.1f}" '
        f'stroke="{FAILED}" stroke-width="3.4" stroke-opacity=".85"/>'
    )


def _legend(picture: Picture, colours: Mapping[int, str]) -> tuple[str, float, float]:
    """Title, figures, nodes and signs: the SVG text, its width and its height."""
    line_height, y = 21.0, MARGIN + 14
    title = shortened(picture.title or "dagsched", 17, TITLE_WIDTH_MAX)
    under = headline(picture)
    parts = ['<g class="legend">', _legend_text(MARGIN, y, title, ' class="title"')]
    y += line_height
    parts.append(_legend_text(MARGIN, y, under))
    width = max(text_width(title, 17), text_width(under, 12))
    rows = [node_text(line) for line in picture.nodes]
    columns = (
        [max(text_width(row[place], 12) for row in rows) + 22 for place in range(4)] if rows else []
    )
    for line, row in zip(picture.nodes, rows, strict=True):
        y += line_height
        parts.append(_node_line(line, row, columns, y, colours))
    width = max(width, 44 + sum(columns))
    if picture.has_run:
        y += line_height + 3
        signs, signs_width = _signs(picture, y)
        parts.append(signs)
        width = max(width, signs_width)
    parts.append("</g>")
    return "".join(parts), width, y + 6


def _node_line(
    line: NodeLine,
    texts: Sequence[str],
    columns: Sequence[float],
    y: float,
    colours: Mapping[int, str],
) -> str:
    parts = [_rect(MARGIN + 15, y - 4.5, 30, 15, 6, "#ffffff", colours[line.id], 4)]
    x = MARGIN + 42
    for text, column in zip(texts, columns, strict=True):
        parts.append(_legend_text(x, y, text))
        x += column
    return "".join(parts)


def _signs(picture: Picture, y: float) -> tuple[str, float]:
    """What fill, dashes, crosses and double borders mean; only those that occur."""
    steps, wide = 8, 14.0
    x = MARGIN
    parts = [
        f'<rect x="{x + step * wide:.1f}" y="{y - 11:.1f}" width="{wide}" height="13" '
        f'fill="{grey(step, steps)}"/>'
        for step in range(steps)
    ]
    parts.append(
        f'<rect x="{x}" y="{y - 11:.1f}" width="{steps * wide}" height="13" fill="none" '
        'stroke="#999" stroke-width=".8"/>'
    )
    x += steps * wide + 8
    text = "started first .. last"
    parts.append(_legend_text(x, y, text))
    x += text_width(text, 12) + 24
    samples = (
        (State.WAITING, 0, "not run", any(m.state is State.WAITING for m in picture.marks)),
        (State.DONE, 1, "run, not known where", any(is_unseen(m) for m in picture.marks)),
        (State.FAILED, 1, "failed", any(m.state is State.FAILED for m in picture.marks)),
        (State.DONE, 2, "more than one attempt", any(m.executions > 1 for m in picture.marks)),
    )
    for state, executions, text, occurs in samples:
        if not occurs:
            continue
        mark = Mark("", "", state, executions=executions)
        parts.append(
            f'<g transform="translate({x + 16:.1f} {y - 4.5:.1f}) scale(.58)">'
            f"{_outline(mark, 0, 0, 46, '#ffffff', NO_NODE)}{_cross(mark, 0, 0, 40)}</g>"
        )
        parts.append(_legend_text(x + 38, y, text))
        x += 38 + text_width(text, 12) + 24
    return "".join(parts), x


def _legend_text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{markup(text)}</text>'
