"""The schedule as a chart: a lane an executor, grouped by node, time from left to right.

Pure. Up to `BARS_MAX` executions each is a bar; beyond, a lane is cut into columns one px wide,
each with the function that took most of its time, the paler the more of it was idle.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dagsched.history import History
from dagsched.tables import COLUMNS
from dagsched.viz.lanes import Lanes, active, integral, make_lanes
from dagsched.viz.model import Integers
from dagsched.viz.moves import TRANSFER, Moves, about, make_moves
from dagsched.viz.palette import FAILED, node_colours, shortened, text_on, text_width
from dagsched.viz.perfetto import crossings
from dagsched.viz.text import counted, duration, markup, size

BARS_MAX = 3_000
"""Most executions that are drawn one by one."""

LANES_MAX = 256
"""Most lanes that are drawn; of more executors those with most work of each node."""

LINES_MAX = 150
"""Most values from node to node that are drawn as lines."""

CHART_WIDTH = 1000.0
LABEL_WIDTH = 190.0
MARGIN = 16.0
NAMES_SHOWN = 9
MOVES_HEIGHT = 10.0
FILES = "#7a4a21"
"""The colour of what went to files, or was read there; values from other nodes have theirs."""

_FONT = "DejaVu Sans, Verdana, Arial, sans-serif"
_STYLE = (
    f"text{{font-family:{_FONT};font-size:11px;fill:#333}}"
    ".title{font-size:15px;font-weight:bold;fill:#111}.node{font-weight:bold}"
    ".tick{stroke:#d5dae0;stroke-width:1}.value{stroke:#334;stroke-width:.8;stroke-opacity:.45}"
)


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn, and the scale."""

    history: History
    lanes: Lanes
    shown: Sequence[int]  # lanes, in order
    colours: Mapping[int, str]  # by function
    node_colours: Mapping[int, str]
    lane_height: float
    moves: Moves

    @property
    def px_per_ns(self) -> float:
        """The scale of time."""
        return CHART_WIDTH / max(1, self.lanes.length_ns)


def function_colours(history: History) -> tuple[dict[int, str], list[int]]:
    """A colour a function, and functions by falling time that they took."""
    trace, names = history.trace, history.names
    ran = trace.ran
    times = np.bincount(
        names.function_of[ran], trace.duration_ns[ran], minlength=len(names.functions)
    )
    order = np.argsort(-times, kind="stable").tolist()
    return dict(zip(order, node_colours(len(order)), strict=True)), order


def draw_gantt(history: History, title: str) -> str:
    """The chart as the text of an SVG file."""
    lanes = make_lanes(history)
    shown = _shown_lanes(lanes)
    colours, order = function_colours(history)
    height = 22.0 if len(shown) <= 40 else 12.0 if len(shown) <= 100 else 6.0
    moves = make_moves(history, lanes.origin_ns)
    nodes = sorted({node for node, _ in lanes.places} | set(moves.source.tolist()))
    by_node = dict(zip(nodes, node_colours(len(nodes)), strict=True))
    chart = Chart(history, lanes, shown, colours, by_node, height, moves)
    width = 2 * MARGIN + LABEL_WIDTH + CHART_WIDTH
    parts: list[str] = []
    y = _legend(parts, chart, order, title)
    top = y
    place_of: dict[int, float] = {}
    moved_at: dict[int, float] = {}
    last_node = -1
    body: list[str] = []
    for lane in shown:
        node = lanes.places[lane][0]
        if node != last_node:
            y += 22
            body.append(_node_label(chart, node, y))
            y += 6
            last_node = node
            if len(moves.node[moves.of_node(node)]):
                moved_at[node] = y
                body.append(_moves_label(chart, node, y))
                y += MOVES_HEIGHT + 2
        place_of[lane] = y
        body.append(_lane_label(chart, lane, y))
        y += height + 2
    bottom = y
    parts += [*_axis(lanes.length_ns, top, bottom), *body]
    is_fine = len(lanes.task) <= BARS_MAX
    for lane, place in place_of.items():
        parts += _bars(chart, lane, place) if is_fine else _columns(chart, lane, place)
    for node, place in moved_at.items():
        is_few = len(moves) <= BARS_MAX
        parts += _moves(chart, node, place) if is_few else _moves_in_columns(chart, node, place)
    if is_fine:
        measured = len(history.trace.transfers)
        parts += _transfers(chart, place_of, moved_at) if measured else _values(chart, place_of)
    parts += _events(chart, place_of, top, bottom)
    total = bottom + 30
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{total:.0f}" '
        f'viewBox="0 0 {width:.0f} {total:.0f}"><title>{markup(title)}</title>'
        f'<style>{_STYLE}</style><rect width="{width:.0f}" height="{total:.0f}" fill="#fff"/>'
    )
    return "\n".join([head, *parts, "</svg>"])


def _shown_lanes(lanes: Lanes) -> list[int]:
    if len(lanes.places) <= LANES_MAX:
        return list(range(len(lanes.places)))
    most = np.argsort(-np.diff(lanes.bounds), kind="stable")[:LANES_MAX]
    return sorted(most.tolist())


def _x(chart: Chart, time_ns: float) -> float:
    return MARGIN + LABEL_WIDTH + time_ns * chart.px_per_ns


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{markup(text)}</text>'


# --- around the lanes -----------------------------------------------------------------------------


def ran_words(history: History) -> str:
    """How many tasks have run.

    All have in a run that is done; of some it may not be known when and where: those whose node
    was lost before it told of them, that ran for an earlier client, or that returned a graph.
    """
    ran, count = int(history.trace.ran.sum()), history.task_count
    if history.state != "done" or ran == count:
        return f"{ran:,} of {counted(count, 'task')} run"
    return f"{counted(count, 'task')} run (when and where isn't known of {count - ran:,})"


def gantt_headline(history: History, lanes: Lanes) -> str:
    """The line under the title."""
    trace = history.trace
    parts = [ran_words(history)]
    if trace.repeats:
        parts.append(f"{counted(len(trace.repeats), 'execution')} more")
    parts.append(f"{duration(lanes.length_ns)} on {counted(len(lanes.places), 'executor')}")
    if trace.failed:
        parts.append(f"{len(trace.failed)} failed")
    busy = int(integral(*active(lanes.start_ns, lanes.end_ns), np.array([lanes.length_ns]))[0])
    if lanes.length_ns and lanes.places:
        parts.append(f"{busy / (lanes.length_ns * len(lanes.places)):.0%} busy")
    trace = history.trace
    parts += [rows.words(name) for name in COLUMNS if (rows := getattr(trace, name)).every > 1]
    return ", ".join(parts)


def _legend(parts: list[str], chart: Chart, order: Sequence[int], title: str) -> float:
    """Title, figures and functions; gives where the chart begins."""
    y = MARGIN + 14
    title = shortened(title, 17, LABEL_WIDTH + CHART_WIDTH)
    parts.append(_text(MARGIN, y, title, ' class="title"'))
    y += 20
    headline = gantt_headline(chart.history, chart.lanes)
    if len(chart.shown) < len(chart.lanes.places):
        headline += f"; the {len(chart.shown)} with most tasks are shown"
    parts.append(_text(MARGIN, y, headline))
    y += 22
    x, right = MARGIN, MARGIN + LABEL_WIDTH + CHART_WIDTH
    names = chart.history.names.functions
    entries = [(chart.colours[one], names[one]) for one in order[:NAMES_SHOWN]]
    if len(order) > NAMES_SHOWN:
        entries.append(("#ffffff", f"and {len(order) - NAMES_SHOWN} more functions"))
    entries.append(("#eef0f3", "idle"))
    kinds = set(chart.moves.kind.tolist())
    if TRANSFER in kinds:
        entries.append(("#ffffff", "thin bars: from the node of that colour, pale: not yet coming"))
    if kinds - {TRANSFER}:
        entries.append((FILES, "to a file, or read there"))
    if len(chart.lanes.task) > BARS_MAX:
        entries.append(
            ("#ffffff", "a px shows the function with most of its time, pale: partly idle")
        )
    for colour, name in entries:
        label = shortened(name, 11, 420)
        wide = 24 + text_width(label, 11) + 18
        if x + wide > right:
            x, y = MARGIN, y + 19
        if colour != "#ffffff":
            parts.append(
                f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="16" height="12" fill="{colour}"/>'
            )
        parts.append(_text(x + (21 if colour != "#ffffff" else 0), y, label))
        x += wide
    return y + 12


def _axis(length_ns: int, top: float, bottom: float) -> list[str]:
    """Lines and times at round numbers."""
    parts = []
    for tick in ticks(length_ns):
        x = MARGIN + LABEL_WIDTH + tick * CHART_WIDTH / max(1, length_ns)
        parts.append(f'<path class="tick" d="M{x:.1f} {top + 4:.1f}V{bottom + 4:.1f}"/>')
        text = duration(tick) if tick else "0"
        within = LABEL_WIDTH + CHART_WIDTH + 2 * MARGIN - text_width(text, 11) / 2
        parts.append(_text(min(x, within), bottom + 17, text, ' text-anchor="middle"'))
    return parts


def ticks(length_ns: int, count_max: int = 10) -> list[int]:
    """Round times from 0 to the end.

    Example:
        >>> ticks(1000, 5)
        [0, 200, 400, 600, 800, 1000]
    """
    rough = max(1.0, length_ns / count_max)
    unit = 10 ** math.floor(math.log10(rough))
    step = int(next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough))
    return list(range(0, length_ns + 1, step))


def _node_label(chart: Chart, node: int, y: float) -> str:
    colour = chart.node_colours[node]
    text = f"node {node}"
    for row in chart.history.stats.get("brokers", ()):
        if row["id"] == node:
            text += f" on {row['host']}, {size(row['in_bytes'])} in, {size(row['out_bytes'])} out"
            text += f", {size(row['peak_bytes'])} at most"
            text += f", {size(row['spilled_bytes'])} spilled" if row["spilled_bytes"] else ""
    wide = 18 + text_width(text, 11.5)
    return (
        f'<rect x="{MARGIN}" y="{y - 12:.1f}" width="{wide:.1f}" height="16" fill="#fff"/>'
        f'<rect x="{MARGIN + 1.5}" y="{y - 9:.1f}" width="9" height="9" fill="#fff" '
        f'stroke="{colour}" stroke-width="3"/>' + _text(MARGIN + 16, y, text, ' class="node"')
    )


def _lane_label(chart: Chart, lane: int, y: float) -> str:
    lanes, height = chart.lanes, chart.lane_height
    count = int(lanes.bounds[lane + 1] - lanes.bounds[lane])
    right = MARGIN + LABEL_WIDTH
    parts = (
        f'<rect x="{right:.1f}" y="{y:.1f}" width="{CHART_WIDTH:.1f}" height="{height:.1f}" '
        'fill="#eef0f3"/>'
    )
    if height < 10:
        return parts
    text = f"executor {lanes.places[lane][1]}, {counted(count, 'task')}"
    return parts + _text(right - 8, y + height / 2 + 4, text, ' text-anchor="end"')


def _moves_label(chart: Chart, node: int, y: float) -> str:
    right, moves = MARGIN + LABEL_WIDTH, chart.moves
    kinds = moves.kind[moves.of_node(node)]
    came = int((kinds == TRANSFER).sum())
    parts = [counted(came, "object") + " came"] if came else []
    parts += [f"{len(kinds) - came:,} with files"] if len(kinds) > came else []
    return (
        f'<rect x="{right:.1f}" y="{y:.1f}" width="{CHART_WIDTH:.1f}" height="{MOVES_HEIGHT}" '
        'fill="#f6f7f9"/>'
        + _text(right - 8, y + 9, ", ".join(parts), ' text-anchor="end" style="font-size:9.5px"')
    )


# --- in the lanes ---------------------------------------------------------------------------------


def _bars(chart: Chart, lane: int, y: float) -> list[str]:
    """A bar an execution, with its story as tooltip."""
    lanes, history = chart.lanes, chart.history
    trace, names, height = history.trace, history.names, chart.lane_height
    failed = frozenset(trace.failed)
    parts = []
    for place in range(int(lanes.bounds[lane]), int(lanes.bounds[lane + 1])):
        task = int(lanes.task[place])
        start, end = int(lanes.start_ns[place]), int(lanes.end_ns[place])
        x, wide = _x(chart, start), max(0.4, (end - start) * chart.px_per_ns)
        fill = chart.colours[int(names.function_of[task])]
        facts = [
            names.key(task),
            f"started at {duration(start) if start else '0'}, took {duration(end - start)}",
            f"node {lanes.places[lane][0]}, executor {lanes.places[lane][1]}",
        ]
        more = ""
        if not lanes.is_last[place]:
            facts.append("executed again later")
            more = ' fill-opacity=".45"'
        if task in failed:
            facts.append("failed for good")
        # Neighbours are told apart by a gap, where there is room for one.
        inner = wide - 0.6 if wide > 2.5 else wide
        parts.append(
            f'<g class="bar"><title>{markup(chr(10).join(facts))}</title><rect x="{x:.2f}" '
            f'y="{y:.1f}" width="{inner:.2f}" height="{height:.1f}" fill="{fill}"{more}/>'
        )
        label = names.key(task)
        if wide > 30 and height > 10 and text_width(label, 11) < wide - 6:
            parts.append(
                f'<text x="{x + 4:.1f}" y="{y + height / 2 + 4:.1f}" '
                f'style="fill:{text_on(fill)}">{markup(label)}</text>'
            )
        if task in failed and lanes.is_last[place]:
            parts.append(_cross(x + wide / 2, y + height / 2, min(wide / 2, 9), height / 2))
        parts.append("</g>")
    return parts


def _cross(x: float, y: float, reach: float, rise: float) -> str:
    reach = max(reach, 4.0)
    return (
        f'<path class="cross" d="M{x - reach:.1f} {y - rise:.1f}L{x + reach:.1f} {y + rise:.1f}'
        f'M{x + reach:.1f} {y - rise:.1f}L{x - reach:.1f} {y + rise:.1f}" stroke="{FAILED}" '
        'stroke-width="2.4"/>'
    )


def _columns(chart: Chart, lane: int, y: float) -> list[str]:
    """Neighbouring columns of the same look are one rectangle."""
    lanes, columns = chart.lanes, int(CHART_WIDTH)
    here = slice(int(lanes.bounds[lane]), int(lanes.bounds[lane + 1]))
    starts, ends = lanes.start_ns[here], lanes.end_ns[here]
    if not len(starts):
        return []
    functions = chart.history.names.function_of[lanes.task[here]]
    edges = np.linspace(0, lanes.length_ns, columns + 1)
    times, counts = active(starts, ends)
    share = np.diff(integral(times, np.minimum(counts, 1), edges)) / np.diff(edges)
    steps = np.ceil(np.clip(share, 0, 1) * 8).astype(np.int64)  # eight shades are enough
    function = _dominant(starts, ends, functions, edges)
    looks = np.where(steps > 0, function * 16 + steps, -1)
    borders = np.flatnonzero(np.diff(looks, prepend=-2, append=-2))
    parts = []
    for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        look = int(looks[begin])
        if look >= 0:
            opacity = 0.2 + 0.8 * (look % 16) / 8
            more = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
            parts.append(
                f'<rect x="{MARGIN + LABEL_WIDTH + begin:.0f}" y="{y:.1f}" width="{end - begin}" '
                f'height="{chart.lane_height:.1f}" fill="{chart.colours[look // 16]}"{more}/>'
            )
    return parts


def _dominant(
    starts: Integers,
    ends: Integers,
    functions: Integers,
    edges: "np.ndarray[tuple[int], np.dtype[np.float64]]",
) -> Integers:
    """The function with most time of the tasks that begin in each column, or that go on in it."""
    columns = len(edges) - 1
    column = np.clip(np.searchsorted(edges, starts, side="right") - 1, 0, columns - 1)
    base = int(functions.max()) + 1
    weights = np.minimum(ends, edges[column + 1]) - starts + 1.0
    pairs, inverse = np.unique(column * base + functions, return_inverse=True)
    sums = np.bincount(inverse, weights)
    order = np.lexsort((sums, pairs // base))
    best = np.full(columns, -1)
    best[pairs[order] // base] = pairs[order] % base
    # Where none begins, the one that began last before goes on.
    last = np.searchsorted(starts, edges[:-1], side="right") - 1
    going_on = functions[np.maximum(last, 0)]
    time_left = np.where(last >= 0, ends[np.maximum(last, 0)] - edges[:-1], 0)
    goes_on = (best < 0) | (time_left > (edges[1] - edges[0]) / 2)
    return np.where(goes_on, going_on, best)


def _move_colour(chart: Chart, index: int) -> str:
    moves = chart.moves
    is_transfer = moves.kind[index] == TRANSFER
    return chart.node_colours[int(moves.source[index])] if is_transfer else FILES


def _moves(chart: Chart, node: int, y: float) -> list[str]:
    """A thin bar a transfer or spill: pale while it was wanted and there, but hadn't begun."""
    moves, pale, parts = chart.moves, [], []
    here = moves.of_node(node)
    for index in range(here.start, here.stop):
        begin, start, end = (
            _x(chart, max(0, int(times[index])))
            for times in (moves.begin_ns, moves.start_ns, moves.end_ns)
        )
        told = markup("\n".join(about(chart.history, moves, index)))
        common = f'y="{y:.1f}" height="{MOVES_HEIGHT}" fill="{_move_colour(chart, index)}"'
        if start > begin:
            wide = start - begin
            pale.append(f'<rect x="{begin:.2f}" width="{wide:.2f}" fill-opacity=".3" {common}/>')
        parts.append(
            f'<g class="move"><title>{told}</title>'
            f'<rect x="{start:.2f}" width="{max(0.8, end - start):.2f}" {common}/></g>'
        )
    return pale + parts


def _moves_in_columns(chart: Chart, node: int, y: float) -> list[str]:
    """A column a px in which something moved: the darker, the more of its time."""
    moves = chart.moves
    here = moves.of_node(node)
    edges = np.linspace(0, chart.lanes.length_ns, int(CHART_WIDTH) + 1)
    begin, end = moves.begin_ns[here], np.maximum(moves.end_ns[here], moves.begin_ns[here] + 1)
    times, counts = active(begin, end)
    busy = np.diff(integral(times, np.minimum(counts, 1), edges)) / (edges[1] - edges[0])
    ended, _ = np.histogram(moves.end_ns[here], edges)
    return [
        f'<rect x="{MARGIN + LABEL_WIDTH + px:.0f}" y="{y:.1f}" width="1" height="{MOVES_HEIGHT}" '
        f'fill="#334" fill-opacity="{0.25 + 0.75 * min(1.0, float(busy[px])):.2f}">'
        f"<title>{counted(int(ended[px]), 'object')} came</title></rect>"
        for px in np.flatnonzero((busy > 0) | (ended > 0)).tolist()
    ]


def _transfers(
    chart: Chart, place_of: Mapping[int, float], moved_at: Mapping[int, float]
) -> list[str]:
    """Lines from where a value was made to its arrival at another node."""
    trace, lanes, moves = chart.history.trace, chart.lanes, chart.moves
    chosen = np.flatnonzero((moves.kind == TRANSFER) & (moves.task >= 0)).tolist()
    if len(chosen) > LINES_MAX:
        return []
    lane_of_place = {place: lane for lane, place in enumerate(lanes.places)}
    parts = []
    for index in chosen:
        task, node = int(moves.task[index]), int(moves.node[index])
        lane = lane_of_place.get((int(trace.node[task]), int(trace.executor[task])), -1)
        y, end_y = place_of.get(lane), moved_at.get(node)
        made = int(trace.end_ns[task]) - lanes.origin_ns
        if y is not None and end_y is not None and made <= moves.end_ns[index]:
            parts.append(
                f'<line class="value" x1="{_x(chart, made):.1f}" '
                f'y1="{y + chart.lane_height / 2:.1f}" '
                f'x2="{_x(chart, int(moves.end_ns[index])):.1f}" '
                f'y2="{end_y + MOVES_HEIGHT / 2:.1f}"/>'
            )
    return parts


def _values(chart: Chart, place_of: Mapping[int, float]) -> list[str]:
    """Lines from where a value was made to where it was first needed on another node."""
    trace, lanes, half = chart.history.trace, chart.lanes, chart.lane_height / 2
    pairs = crossings(chart.history)
    if len(pairs) > LINES_MAX:
        return []
    lane_of_place = {place: lane for lane, place in enumerate(lanes.places)}
    parts = []
    for source, target in pairs.tolist():
        ends = []
        for task, time_ns in ((source, trace.end_ns[source]), (target, trace.start_ns[target])):
            lane = lane_of_place[int(trace.node[task]), int(trace.executor[task])]
            ends.append((_x(chart, int(time_ns) - lanes.origin_ns), place_of.get(lane)))
        (x, y), (end_x, end_y) = ends
        if y is not None and end_y is not None:
            parts.append(
                f'<line class="value" x1="{x:.1f}" y1="{y + half:.1f}" x2="{end_x:.1f}" '
                f'y2="{end_y + half:.1f}"/>'
            )
    return parts


class Labels:
    """Words at places along a line; those that would stand on each other share the first's."""

    def __init__(self) -> None:
        self.kept: list[tuple[float, str]] = []

    def add(self, x: float, words: str) -> None:
        """Words at a place that is not before the last."""
        last_x, last = self.kept[-1] if self.kept else (-1e9, "")
        if x >= last_x + 10 + text_width(last, 11):
            self.kept.append((x, words))
        elif len(last) < 40:
            self.kept[-1] = last_x, f"{last}, {words}"


def _events(chart: Chart, place_of: Mapping[int, float], top: float, bottom: float) -> list[str]:
    """Attempts that came to nothing in their lanes, losses and recoveries across all."""
    lanes = chart.lanes
    lane_of_place = {place: lane for lane, place in enumerate(lanes.places)}
    parts, shown = [], Labels()
    for event in chart.history.trace.events:
        time_ns = min(max(0, event.time_ns - lanes.origin_ns), lanes.length_ns)
        x = _x(chart, time_ns)
        told = f"<title>{markup(f'{event.kind} at {duration(time_ns)}: {event.text}')}</title>"
        y = place_of.get(lane_of_place.get((event.node, event.executor), -1))
        if event.kind == "failed" and y is not None:
            cross = _cross(x, y + chart.lane_height / 2, 6, chart.lane_height / 2)
            parts.append(f"<g>{told}{cross}</g>")
        elif event.kind == "retried":
            if y is not None:
                down = y + chart.lane_height
                parts.append(
                    f'<path class="retried" fill="{FAILED}" d="M{x:.1f} {y + 3:.1f}'
                    f'L{x - 5:.1f} {down:.1f}H{x + 5:.1f}z">{told}</path>'
                )
        elif event.kind in ("node_lost", "stalled", "resumed", "recovered"):
            parts.append(
                f'<path class="event" d="M{x:.1f} {top + 4:.1f}V{bottom:.1f}" stroke="{FAILED}" '
                f'stroke-dasharray="5 3">{told}</path>'
            )
            words = event.kind.replace("_", " ") + (f" {event.node}" if event.node > 0 else "")
            shown.add(x, words)
    right = MARGIN + LABEL_WIDTH + CHART_WIDTH
    for x, words in shown.kept:
        is_late = x + 3 + text_width(words, 11) > right
        more = f' style="fill:{FAILED}"' + (' text-anchor="end"' if is_late else "")
        parts.append(_text(x - 3 if is_late else x + 3, top + 3, words, more))
    return parts
